"""The smallest thing that shows all of a platform: a Broker, a function that answers events, and its Trigger."""

from pathlib import Path

FUNCTION = """
from cloudevents.core.v1.event import CloudEvent

def handle(event):
    print("got", event.get_id(), flush=True)
    if event.get_type() == "hello":
        return CloudEvent({"id": "re-" + event.get_id(), "source": "/hello", "type": "hello.reply"}, None)
"""

MANIFEST = """
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: default}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: hello}
spec:
  template:
    metadata:
      annotations: {penstock.dev/source: hello, autoscaling.knative.dev/initial-scale: "0"}
    spec:
      containers: [{image: dev.local/hello}]
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: hello}
spec:
  broker: default
  filter: {attributes: {type: hello}}
  subscriber: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: hello}}
"""


def write_hello(root: Path, more: str = "") -> Path:
    """The function's folder and its manifests, `more` documents after them, in `root`; the manifests' path."""
    (root / "hello").mkdir()
    (root / "hello/function.py").write_text(FUNCTION)
    (root / "hello.yaml").write_text(MANIFEST + more)
    return root / "hello.yaml"
