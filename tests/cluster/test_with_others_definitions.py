"""The chart where another platform's definitions of the same kinds are there already. The last file of the run: it
installs anew."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Final

from penstock.cluster.crds import custom_kinds, definition
from penstock.kinds import registry
from tests.support.hello import FUNCTION
from tests.support.kubelet.cluster import Cluster
from tests.support.release import Release, function_image, knative_service, trigger

THEIRS: Final = {"app.kubernetes.io/name": "knative-eventing", "app.kubernetes.io/version": "1.20.0"}
OWN_GROUP: Final = ".penstock.dev"
#: Knative has this kind in an extension, which need not be installed.
NOT_THERE: Final = "kafkasources.sources.knative.dev"
#: Knative serves this one in a second version, through a webhook that is not there where its controllers are not.
CONVERTED: Final = "pingsources.sources.knative.dev"
#: What Knative's definitions of a Revision's probes and containers do not have, and therefore prune.
PRUNED: Final = {"terminationGracePeriodSeconds", "restartPolicy"}


def test_functions_and_events_work_on_definitions_that_the_chart_leaves_alone(
    release: Release, cluster: Cluster, namespace: str, tmp_path: Path
):
    (tmp_path / "function.py").write_text(FUNCTION)
    cluster.use(function_image("hello", tmp_path))
    release.uninstall()
    for kind in custom_kinds(registry()):
        cluster.kubectl("delete", "crd", f"{kind.plural}.{kind.ref.group}")
    theirs = their_definitions()
    cluster.apply(*theirs)
    anew = Release(cluster)
    anew.install("crds.install=false")
    for each in theirs:
        found = cluster.get("crd", each["metadata"]["name"])
        assert found["metadata"]["labels"] == THEIRS
        assert found["spec"]["versions"][0]["schema"] == each["spec"]["versions"][0]["schema"]
    there = {each["metadata"]["name"] for each in cluster.get("crds")}
    assert NOT_THERE not in there
    assert "objectstoresources.sources.penstock.dev" in there, "nobody else has it"

    broker = {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "metadata": {"name": "default"}}
    sink = {"ref": {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "name": "default"}}
    tick = {"apiVersion": "sources.knative.dev/v1", "kind": "PingSource", "metadata": {"name": "tick"}}
    hello = knative_service("hello", "dev.local/hello:1", scaling={"initial-scale": "0"})
    made = (broker, hello, trigger("hello", "hello", type_="hello"), tick | {"spec": {"sink": sink}})
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=as_list(*made))
    for kind, name in (("broker", "default"), ("ksvc", "hello"), ("trigger", "hello"), ("pingsource", "tick")):
        anew.until_ready(kind, name, namespace)
    cluster.until(lambda: anew.publish(namespace, "o1") == 202, what="the ingresses know the Broker")
    cluster.until(lambda: anew.explained("re-o1"), what="the function's answer is in the Broker")
    said = cluster.kubectl("apply", "-n", namespace, "-f", "-", given=trigger("broken", ""), check=False)
    assert "spec.subscriber" in said, "the webhook judges these kinds, whoever defined them"


def their_definitions() -> list[dict[str, Any]]:
    made = []
    for kind in custom_kinds(registry()):
        each = definition(kind)
        if each["spec"]["group"].endswith(OWN_GROUP) or each["metadata"]["name"] == NOT_THERE:
            continue
        each["metadata"]["labels"] = THEIRS
        (version,) = each["spec"]["versions"]
        version["schema"]["openAPIV3Schema"] = without(version["schema"]["openAPIV3Schema"], PRUNED)
        if each["metadata"]["name"] == CONVERTED:
            each["spec"]["versions"].append(copy.deepcopy(version) | {"name": "v1beta2", "storage": False})
            service = {"name": "eventing-webhook", "namespace": "knative-eventing"}
            webhook = {"conversionReviewVersions": ["v1"], "clientConfig": {"service": service}}
            each["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
        made.append(each)
    return made


def without(schema: Any, names: set[str]) -> Any:
    """The schema without these properties at any depth."""
    if isinstance(schema, dict):
        return {key: without(value, names) for key, value in schema.items() if key not in names}
    return [without(value, names) for value in schema] if isinstance(schema, list) else schema


def as_list(*objects: object) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "List", "items": list(objects)}
