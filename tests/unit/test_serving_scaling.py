"""From annotations to KPA settings, from a Revision to what its instances run."""

import base64

import pytest

from core.resources import Key, Resource
from serving.instances.port import CannotRun, Readiness
from serving.instances.spec import instance_spec
from serving.resources import REVISION
from serving.scaling import ScalingSettings, kpa_spec

PREFIX = "autoscaling.knative.dev/"


def resolved(concurrency=0, reachable=True, **annotations):
    given = {PREFIX + name.replace("_", "-"): text for name, text in annotations.items()}
    return kpa_spec(given, container_concurrency=concurrency, reachable=reachable, settings=ScalingSettings())


def test_without_annotations_the_settings_are_knatives():
    spec = resolved()
    assert (spec.metric, spec.target_value, spec.total_value) == ("concurrency", 70, 100)
    assert (spec.stable_window_s, spec.panic_window_s, spec.panic_threshold) == (60, 6, 2)
    assert (spec.max_scale_up_rate, spec.max_scale_down_rate, spec.target_burst_capacity) == (1000, 2, 211)
    assert (spec.min_scale, spec.max_scale, spec.initial_scale, spec.scale_down_delay_s) == (0, 0, 1, 0)
    assert spec.progress_deadline_s == 600


@pytest.mark.parametrize(
    ("given", "target", "total"),
    [
        pytest.param({"concurrency": 10}, 7, 10, id="a hard limit is what one instance takes"),
        pytest.param({"target": "50"}, 35, 50, id="a soft target"),
        pytest.param({"target": "50", "concurrency": 10}, 7, 10, id="never above the hard limit"),
        pytest.param({"target": "5", "concurrency": 10}, 3.5, 5, id="below the hard limit"),
        pytest.param({"target_utilization_percentage": "100", "concurrency": 10}, 10, 10, id="full use"),
        pytest.param({"metric": "rps"}, 140, 200, id="requests per second"),
        pytest.param({"metric": "rps", "target": "300", "concurrency": 10}, 210, 300, id="rps knows no hard limit"),
        pytest.param({"target": "0.01"}, 0.01, 0.01, id="never below the least"),
    ],
)
def test_the_target_per_instance(given, target, total):
    spec = resolved(**given)
    assert spec.target_value == pytest.approx(target)
    assert spec.total_value == total


def test_annotations_override_the_settings():
    spec = resolved(
        window="30s",
        panic_window_percentage="20",
        panic_threshold_percentage="150",
        min_scale="2",
        max_scale="9",
        initial_scale="3",
        activation_scale="4",
        scale_down_delay="15m",
        scale_to_zero_pod_retention_period="90s",
        target_burst_capacity="-1",
    )
    assert (spec.stable_window_s, spec.panic_window_s, spec.panic_threshold) == (30, 6, 1.5)
    assert (spec.min_scale, spec.max_scale, spec.initial_scale, spec.activation_scale) == (2, 9, 3, 4)
    assert (spec.scale_down_delay_s, spec.retention_s, spec.target_burst_capacity) == (900, 90, -1)


def test_an_unreachable_revision_has_no_minimum_and_no_retention():
    spec = resolved(reachable=False, min_scale="2", scale_to_zero_pod_retention_period="90s")
    assert (spec.min_scale, spec.retention_s, spec.reachable) == (0, 0, False)


def test_older_spellings_are_read():
    spec = kpa_spec(
        {PREFIX + "minScale": "2", PREFIX + "scaleDownDelay": "5s"},
        container_concurrency=0,
        reachable=True,
        settings=ScalingSettings(),
    )
    assert (spec.min_scale, spec.scale_down_delay_s) == (2, 5)


def revision(container=None, *, annotations=None, **spec):
    return Resource.from_dict(
        {
            "apiVersion": REVISION.api_version,
            "kind": "Revision",
            "metadata": {
                "name": "hello-00001",
                "namespace": "default",
                "labels": {"serving.knative.dev/service": "hello", "serving.knative.dev/configuration": "hello-config"},
                "annotations": annotations or {},
            },
            "spec": {"containers": [{"image": "example.com/hello", **(container or {})}], **spec},
        }
    )


def store(**data):
    """A look-up in these ConfigMaps and Secrets."""

    def lookup(key: Key):
        held = data.get(f"{key.kind.kind}_{key.name}")
        return held and Resource(ref=key.kind, meta=revision().meta, body=held)

    return lookup


def nothing(_key):
    return None


def test_a_revision_says_what_to_run():
    spec = instance_spec(
        revision(
            {
                "command": ["run"],
                "args": ["-v"],
                "workingDir": "sub",
                "ports": [{"containerPort": 9000}],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}],
                "resources": {"limits": {"memory": "64Mi"}},
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            },
            annotations={
                "penstock.dev/source": "functions/hello",
                "penstock.dev/handler": "a:b",
                "serving.knative.dev/progress-deadline": "30s",
            },
            timeoutSeconds=20,
        ),
        nothing,
    )
    assert (spec.service, spec.configuration, spec.revision) == ("hello", "hello-config", "hello-00001")
    assert (spec.source, spec.handler, spec.command, spec.args) == ("functions/hello", "a:b", ("run",), ("-v",))
    assert spec.environment == {"A": "1", "B": "12"}
    assert (spec.port, spec.working_dir, spec.mounts, spec.memory_limit) == (9000, "sub", ("/v",), 67_108_864)
    assert (spec.start_timeout_s, spec.drain_timeout_s) == (30, 20)


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        (None, Readiness()),
        ({"tcpSocket": {"port": 0}, "successThreshold": 2}, Readiness(successes=2)),
        (
            {"httpGet": {"path": "/up", "httpHeaders": [{"name": "a", "value": "b"}]}, "initialDelaySeconds": 3},
            Readiness(kind="http", path="/up", headers=(("a", "b"),), initial_delay_s=3),
        ),
        (
            {"exec": {"command": ["check"]}, "periodSeconds": 5, "timeoutSeconds": 4},
            Readiness(kind="exec", command=("check",), timeout_s=4),
        ),
        ({"grpc": {"port": 1}}, Readiness()),
    ],
    ids=["none", "tcp", "http", "exec", "grpc"],
)
def test_a_readiness_probe(probe, expected):
    container = {"readinessProbe": probe} if probe else {}
    assert instance_spec(revision(container), nothing).readiness == expected


def test_the_container_with_the_port_is_the_one_that_runs():
    given = revision().with_spec({"containers": [{"image": "a"}, {"image": "b", "ports": [{"containerPort": 1}]}]})
    assert instance_spec(given, nothing).image == "b"


def test_variables_come_from_their_sources_and_single_ones_win():
    container = {
        "envFrom": [
            {"prefix": "C_", "configMapRef": {"name": "c"}},
            {"secretRef": {"name": "s"}},
            {"secretRef": {"name": "absent", "optional": True}},
        ],
        "env": [
            {"name": "TOKEN", "value": "mine"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "ABSENT", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "none", "optional": True}}},
            {"name": "NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {
                "name": "SERVICE",
                "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['serving.knative.dev/service']"}},
            },
        ],
    }
    secret = {"data": {"k": base64.b64encode(b"hidden").decode(), "TOKEN": base64.b64encode(b"theirs").decode()}}
    lookup = store(ConfigMap_c={"data": {"a": "1"}}, Secret_s=secret)
    assert instance_spec(revision(container), lookup).environment == {
        "C_a": "1",
        "k": "hidden",
        "TOKEN": "mine",
        "KEY": "hidden",
        "NAMESPACE": "default",
        "SERVICE": "hello",
    }


@pytest.mark.parametrize(
    ("container", "said"),
    [
        ({"envFrom": [{"secretRef": {"name": "gone"}}]}, 'Secret "gone"'),
        ({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "gone", "key": "k"}}}]}, 'ConfigMap "gone"'),
        ({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]}, "has no key k"),
        ({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "bad"}}}]}, "base64"),
        ({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]}, "spec.nodeName"),
    ],
    ids=["no secret", "no config map", "no key", "not base64", "no such field"],
)
def test_a_variable_that_cannot_be_set_is_told(container, said):
    lookup = store(ConfigMap_c={"data": {}}, Secret_s={"data": {"bad": "%%%"}})
    with pytest.raises(CannotRun, match=said) as refused:
        instance_spec(revision(container), lookup)
    assert refused.value.reason == "CreateContainerConfigError"
