"""The pods of a Revision: its whole pod specification as it is written, and what the platform adds to it.

Behaviour: knative/serving `pkg/reconciler/revision/resources/deploy.go`, without the queue-proxy, whose work is done by
the gateway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from serving.instances.port import CannotRun, InstanceSpec, PodTemplate
from serving.resources import LABEL_REVISION

__all__ = ["DEFAULT_PORT", "PRE_STOP_S", "REVISION_LABEL", "REVISION_UID_LABEL", "pod_labels", "pod_template"]

#: On everything that this adapter makes: the name of the Revision. What lacks it is not looked at, so that a Knative
#: beside the platform keeps its own.
REVISION_LABEL: Final = "penstock.dev/revision"
REVISION_UID_LABEL: Final = "serving.knative.dev/revisionUID"

#: Where a container listens that names no port (Knative's).
DEFAULT_PORT: Final = 8080

#: A pod that is deleted goes on serving for so long before its SIGTERM: the autoscaler hears of it, withdraws its
#: EndpointSlice, and the gateways hear of that, which takes tens of milliseconds; the rest is for a busy API server.
PRE_STOP_S: Final = 3

#: Probing as often as Kubernetes can where the Revision asks for Knative's own quick probing (`periodSeconds: 0`).
QUICK_PERIOD_S: Final = 1

#: A pod on a node that cannot be heard is given up after this long, and another takes its place: functions keep
#: nothing. Kubernetes' own five minutes are for pods that others cannot stand in for.
LOST_NODE_S: Final = 30
_LOST_NODE: Final = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")

#: Annotations that are about the Revision, not about its pods.
_NOT_FOR_PODS: Final = ("autoscaling.knative.dev/", "serving.knative.dev/", "kubectl.kubernetes.io/")

#: A RevisionSpec's own members, which are none of a pod's.
_NOT_OF_PODS: Final = frozenset(
    {"containerConcurrency", "timeoutSeconds", "responseStartTimeoutSeconds", "idleTimeoutSeconds"}
)


def pod_labels(spec: InstanceSpec) -> dict[str, str]:
    """Knative's labels of a Revision's Deployment and pods, and the one that this adapter finds them by."""
    template = template_of(spec)
    return {
        "app": spec.revision,
        **template.labels,
        LABEL_REVISION: spec.revision,
        REVISION_UID_LABEL: template.owner.uid,
        REVISION_LABEL: spec.revision,
    }


def template_of(spec: InstanceSpec) -> PodTemplate:
    """The Revision's pod as written. Raises CannotRun where the specification has none."""
    if spec.template is None:
        raise CannotRun("PodMissing", f"Nothing says what the pods of the Revision {spec.revision} are.")
    return spec.template


def pod_template(spec: InstanceSpec) -> dict[str, Any]:
    """The template of the Revision's Deployment. Raises CannotRun."""
    template = template_of(spec)
    pod = {name: value for name, value in template.spec.items() if name not in _NOT_OF_PODS}
    containers = list(pod.get("containers") or ())
    serving = next((index for index, one in enumerate(containers) if one.get("ports")), 0)
    pod["containers"] = [_container(one, spec, serves=index == serving) for index, one in enumerate(containers)]
    # What is under way when SIGTERM comes may take as long as a request may.
    pod["terminationGracePeriodSeconds"] = int(spec.drain_timeout_s) + PRE_STOP_S
    pod["tolerations"] = [*(pod.get("tolerations") or ()), *_tolerations(pod)]
    annotations = {name: text for name, text in template.annotations.items() if not name.startswith(_NOT_FOR_PODS)}
    return {"metadata": {"labels": pod_labels(spec), "annotations": annotations}, "spec": pod}


def _tolerations(pod: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """How long to wait for a lost node, where the Revision does not say."""
    said = {toleration.get("key") for toleration in pod.get("tolerations") or ()}
    for key in _LOST_NODE:
        if key not in said:
            yield {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE_S}


def _container(written: Mapping[str, Any], spec: InstanceSpec, *, serves: bool) -> dict[str, Any]:
    container = {
        "terminationMessagePolicy": "FallbackToLogsOnError",  # so that a failure can quote what was written last
        **written,
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_S}}},
    }
    port = spec.port or DEFAULT_PORT
    variables = [
        ("K_REVISION", spec.revision),
        ("K_CONFIGURATION", spec.configuration),
        ("K_SERVICE", spec.service),
    ]
    if serves:
        given: dict[str, Any] = (written.get("ports") or ({},))[0]
        container["ports"] = [{"name": given.get("name") or "http1", "containerPort": port, "protocol": "TCP"}]
        variables.insert(0, ("PORT", str(port)))
    added = [{"name": name, "value": value} for name, value in variables]
    container["env"] = [*(written.get("env") or ()), *added]
    for word in ("readinessProbe", "livenessProbe", "startupProbe"):
        if written.get(word):
            container[word] = _probe(written[word], port, quick=word == "readinessProbe")
    return container


def _probe(written: Mapping[str, Any], port: int, *, quick: bool) -> dict[str, Any]:
    """The probe on the container's own port, and without Knative's zeros: they are Kubernetes' defaults, but for the
    period of a `quick` one."""
    probe = {name: value for name, value in written.items() if value != 0}
    if quick:
        probe.setdefault("periodSeconds", QUICK_PERIOD_S)
    for word in ("httpGet", "tcpSocket", "grpc"):
        if word in probe:
            probe[word] = {**probe[word], "port": probe[word].get("port") or port}
    return probe
