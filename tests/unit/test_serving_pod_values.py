"""What the pods of a Revision are, and what is told of them: tables."""

import pytest

from core.resources import ObjectMeta, Resource
from core.resources.builtin import POD
from serving.instances.kubernetes.deployment import deployment_of
from serving.instances.kubernetes.status import instance_of, steps
from serving.instances.kubernetes.template import LOST_NODE_S, PRE_STOP_S, REVISION_LABEL
from serving.instances.port import FOLLOWS, Instance
from serving.instances.spec import instance_spec
from serving.resources import REVISION

CONTAINER = {"name": "user-container", "image": "example.com/hello"}


def revision(annotations=None, **pod):
    meta = ObjectMeta(
        name="hello-00001",
        namespace="shop",
        uid="uid-1",
        labels={
            "serving.knative.dev/service": "hello",
            "serving.knative.dev/configuration": "hello",
            "team": "pictures",
        },
        annotations=annotations or {},
    )
    body = {"containers": [CONTAINER], "timeoutSeconds": 60, "containerConcurrency": 3, **pod}
    return Resource(ref=REVISION, meta=meta, body={"spec": body})


def deployment(given):
    return deployment_of(instance_spec(given))


def pod_of(given):
    return deployment(given).spec["template"]["spec"]


def test_the_deployment_has_knatives_name_and_labels_and_belongs_to_the_revision():
    made = deployment(revision())
    assert (made.meta.namespace, made.meta.name) == ("shop", "hello-00001-deployment")
    assert made.meta.labels == {
        "app": "hello-00001",
        "team": "pictures",
        "serving.knative.dev/service": "hello",
        "serving.knative.dev/configuration": "hello",
        "serving.knative.dev/revision": "hello-00001",
        "serving.knative.dev/revisionUID": "uid-1",
        REVISION_LABEL: "hello-00001",
    }
    (owner,) = made.meta.owner_references
    assert (owner.kind, owner.uid, owner.controller) == ("Revision", "uid-1", True)
    assert made.spec["selector"] == {"matchLabels": {"serving.knative.dev/revisionUID": "uid-1"}}
    assert made.spec["template"]["metadata"]["labels"] == made.meta.labels


def test_annotations_of_the_pods_are_the_revisions_without_those_about_the_revision():
    given = {
        "sidecar.istio.io/inject": "false",
        "autoscaling.knative.dev/min-scale": "2",
        "serving.knative.dev/creator": "somebody",
        "penstock.dev/handler": "app:handle",
    }
    template = deployment(revision(given)).spec["template"]
    assert template["metadata"]["annotations"] == {
        "sidecar.istio.io/inject": "false",
        "penstock.dev/handler": "app:handle",
    }


def test_the_whole_pod_specification_is_passed_through():
    given = {
        "initContainers": [{"name": "fetch", "image": "example.com/fetch"}],
        "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
        "affinity": {"nodeAffinity": {}},
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "topologySpreadConstraints": [{"maxSkew": 1}],
        "runtimeClassName": "nvidia",
        "priorityClassName": "high",
        "schedulerName": "mine",
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["10.0.0.1"]},
        "hostAliases": [{"ip": "10.0.0.2", "hostnames": ["db"]}],
        "securityContext": {"runAsNonRoot": True},
        "serviceAccountName": "painter",
        "imagePullSecrets": [{"name": "registry"}],
        "shareProcessNamespace": True,
        "enableServiceLinks": False,
    }
    pod = pod_of(revision(**given))
    pod["tolerations"] = pod["tolerations"][:1]
    assert {name: pod[name] for name in given} == given
    assert not {"timeoutSeconds", "containerConcurrency"} & pod.keys()


def test_a_container_keeps_its_own_and_gets_what_knative_gives():
    container = {
        **CONTAINER,
        "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "envFrom": [{"configMapRef": {"name": "texts"}}],
        "resources": {"limits": {"nvidia.com/gpu": "1", "memory": "1Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    }
    (made,) = pod_of(revision(containers=[container]))["containers"]
    for name in ("envFrom", "resources", "securityContext", "volumeMounts", "image"):
        assert made[name] == container[name]
    assert made["env"] == [
        *container["env"],
        {"name": "PORT", "value": "8080"},
        {"name": "K_REVISION", "value": "hello-00001"},
        {"name": "K_CONFIGURATION", "value": "hello"},
        {"name": "K_SERVICE", "value": "hello"},
    ]
    assert made["ports"] == [{"name": "http1", "containerPort": 8080, "protocol": "TCP"}]
    assert made["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_a_pod_serves_on_before_its_sigterm_and_then_has_a_requests_time():
    pod = pod_of(revision())
    assert pod["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": PRE_STOP_S}}}
    assert pod["terminationGracePeriodSeconds"] == 60 + PRE_STOP_S


def test_a_lost_nodes_pods_are_given_up_early_unless_the_revision_says_when():
    own = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 600}
    assert pod_of(revision(tolerations=[own]))["tolerations"] == [
        own,
        {
            "key": "node.kubernetes.io/not-ready",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": LOST_NODE_S,
        },
    ]


def test_of_several_containers_the_one_with_a_port_serves_and_each_waits_before_its_end():
    sidecar = {"name": "proxy", "image": "example.com/proxy"}
    serving = {**CONTAINER, "ports": [{"containerPort": 9000, "name": "h2c"}]}
    first, second = pod_of(revision(containers=[sidecar, serving]))["containers"]
    assert "ports" not in first
    assert [one["name"] for one in first["env"]] == ["K_REVISION", "K_CONFIGURATION", "K_SERVICE"]
    assert second["ports"] == [{"name": "h2c", "containerPort": 9000, "protocol": "TCP"}]
    assert second["env"][0] == {"name": "PORT", "value": "9000"}
    assert first["lifecycle"] == second["lifecycle"]


@pytest.mark.parametrize(
    ("given", "made"),
    [
        pytest.param(
            {"tcpSocket": {"port": 0}, "successThreshold": 1},
            {"tcpSocket": {"port": 8080}, "successThreshold": 1, "periodSeconds": 1},
            id="Knative's default asks every second",
        ),
        pytest.param(
            {"httpGet": {"path": "/healthz"}, "periodSeconds": 5},
            {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 5},
            id="a period of its own",
        ),
        pytest.param(
            {"httpGet": {"path": "/", "port": 9999}, "periodSeconds": 0, "timeoutSeconds": 0},
            {"httpGet": {"path": "/", "port": 9999}, "periodSeconds": 1},
            id="a port of its own",
        ),
        pytest.param({"exec": {"command": ["true"]}}, {"exec": {"command": ["true"]}, "periodSeconds": 1}, id="exec"),
    ],
)
def test_probes_get_the_containers_port_and_a_period(given, made):
    (container,) = pod_of(revision(containers=[{**CONTAINER, "readinessProbe": given}]))["containers"]
    assert container["readinessProbe"] == made


def test_only_readiness_is_asked_for_quickly():
    probes = {word: {"httpGet": {"path": "/"}, "periodSeconds": 0} for word in ("livenessProbe", "startupProbe")}
    (container,) = pod_of(revision(containers=[{**CONTAINER, **probes}]))["containers"]
    for word in probes:
        assert container[word] == {"httpGet": {"path": "/", "port": 8080}}


# What is told of a pod

READY = {"type": "Ready", "status": "True"}
NOT_READY = {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}


def pod(status, *, deleted=False):
    meta = ObjectMeta(
        name="hello-00001-deployment-1",
        namespace="shop",
        labels={REVISION_LABEL: "hello-00001"},
        deletion_timestamp="2026-01-01T00:00:00Z" if deleted else None,
    )
    containers = [{"name": "proxy"}, {"name": "user-container", "ports": [{"containerPort": 9000}]}]
    return Resource(ref=POD, meta=meta, body={"spec": {"containers": containers}, "status": status})


def container(state, *, last=None, restarts=0):
    return {"name": "user-container", "state": state, "lastState": last or {}, "restartCount": restarts}


EXITED = {"terminated": {"exitCode": 3, "reason": "Error", "message": "boom\n"}}


@pytest.mark.parametrize(
    ("status", "told"),
    [
        pytest.param({}, ("starting", "", ""), id="just made"),
        pytest.param(
            {"conditions": [NOT_READY], "containerStatuses": [container({"waiting": {"reason": "ContainerCreating"}})]},
            ("starting", "", ""),
            id="its container is being made",
        ),
        pytest.param(
            {
                "conditions": [NOT_READY],
                "initContainerStatuses": [container({"terminated": {"exitCode": 0, "reason": "Completed"}})],
                "containerStatuses": [container({"running": {}})],
            },
            ("starting", "", ""),
            id="initialised, not ready yet",
        ),
        pytest.param({"conditions": [READY], "podIP": "10.0.0.9"}, ("ready", "", ""), id="ready"),
        pytest.param({"conditions": [READY]}, ("starting", "", ""), id="ready, and its address is not known yet"),
        pytest.param(
            {
                "conditions": [NOT_READY],
                "containerStatuses": [
                    container({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})
                ],
            },
            ("waiting", "ImagePullBackOff", "no such image"),
            id="an image that cannot be pulled",
        ),
        pytest.param(
            {
                "conditions": [NOT_READY],
                "containerStatuses": [container({"waiting": {"reason": "CrashLoopBackOff"}}, last=EXITED, restarts=4)],
            },
            ("waiting", "ExitCode3", "boom"),
            id="crashed again and again",
        ),
        pytest.param(
            {"conditions": [NOT_READY], "containerStatuses": [container(EXITED)]},
            ("waiting", "ExitCode3", "boom"),
            id="crashed",
        ),
        pytest.param(
            {
                "conditions": [NOT_READY],
                "containerStatuses": [container({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})],
            },
            ("waiting", "OOMKilled", "It was killed because it used more memory than its limit."),
            id="out of memory",
        ),
        pytest.param(
            {"conditions": [NOT_READY], "initContainerStatuses": [container(EXITED)]},
            ("waiting", "ExitCode3", "boom"),
            id="an init container failed",
        ),
        pytest.param(
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}
                ]
            },
            ("waiting", "Unschedulable", "no GPU"),
            id="no node for it",
        ),
        pytest.param(
            {"conditions": [NOT_READY], "containerStatuses": [container({"running": {}}, last=EXITED, restarts=1)]},
            ("starting", "ExitCode3", "boom"),
            id="started again after a crash",
        ),
    ],
)
def test_the_phase_of_a_pod(status, told):
    found = instance_of(pod(status), is_leaving=False)
    assert (found.phase, found.reason, found.message) == told
    assert found.address == (("10.0.0.9", 9000) if found.phase == "ready" else None)
    assert (found.namespace, found.revision) == ("shop", "hello-00001")


def test_a_pod_that_leaves_or_is_deleted_drains_at_its_address():
    status = {"conditions": [READY], "podIP": "10.0.0.9"}
    for found in (instance_of(pod(status), is_leaving=True), instance_of(pod(status, deleted=True), is_leaving=False)):
        assert (found.phase, found.address) == ("draining", ("10.0.0.9", 9000))


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_a_pod_that_has_ended_is_no_instance(phase):
    assert instance_of(pod({"phase": phase, "conditions": [READY]}), is_leaving=False) is None


def seen(phase, restarts=0, reason=""):
    return Instance(name="a", namespace="n", revision="r", phase=phase, restarts=restarts, reason=reason)


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        pytest.param(None, seen("ready"), ["ready"], id="seen for the first time"),
        pytest.param(seen("starting"), seen("starting"), [], id="nothing new"),
        pytest.param(seen("starting"), seen("ready"), ["ready"], id="at once"),
        pytest.param(seen("ready"), seen("starting"), ["waiting", "starting"], id="not ready any more"),
        pytest.param(seen("waiting"), seen("ready"), ["starting", "ready"], id="back, and the start was not seen"),
        pytest.param(seen("ready"), seen("ready", 1), ["waiting", "starting", "ready"], id="a crash nobody saw"),
        pytest.param(seen("starting"), seen("starting", 1), ["waiting", "starting"], id="a crash at the start"),
        pytest.param(seen("waiting", 1), seen("starting", 2), ["starting"], id="started again"),
        pytest.param(seen("draining"), seen("ready"), [], id="who leaves does not come back"),
        pytest.param(seen("waiting", 0, "A"), seen("waiting", 0, "B"), ["waiting"], id="another reason"),
    ],
)
def test_the_steps_to_tell_keep_to_the_lifecycle(before, now, told):
    found = list(steps(before, now))
    assert [one.phase for one in found] == told
    for one in found:
        assert before is None or one.phase == before.phase or one.phase in FOLLOWS[before.phase]
        assert one.phase != "waiting" or one.reason or now.reason == ""
        before = one


def test_a_failing_readiness_probe_is_told_as_such():
    waiting, _ = steps(seen("ready"), seen("starting"))
    assert (waiting.reason, waiting.message) == ("NotReady", "It answered before, and its readiness probe fails now.")
