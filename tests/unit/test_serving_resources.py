import copy

import msgspec
import pytest

from core.errors import FieldError
from core.resources import OwnerReference, Registry, Resource
from serving.podspec import parse_quantity
from serving.resources import (
    CONFIGURATION,
    KINDS,
    REVISION,
    ROUTE,
    SERVICE,
    RevisionSpec,
    ServiceSpec,
    child_name,
    protocol_of,
    spec_of,
)

KINDS_BY_REF = Registry(KINDS)
POD = "spec.template.spec"
FIRST = f"{POD}.containers[0]"
VOLUME = {"name": "v", "emptyDir": {}}
MOUNT = {"name": "v", "mountPath": "/v"}
PREFIX = "autoscaling.knative.dev/"


def resource(ref, spec, *, name="hello", annotations=None, labels=None, owners=()):
    metadata = {"name": name, "namespace": "default", "annotations": annotations or {}, "labels": labels or {}}
    made = Resource.from_dict({"apiVersion": ref.api_version, "kind": ref.kind, "metadata": metadata, "spec": spec})
    return made.with_meta(owner_references=tuple(owners))


def service(container=None, *, spec=None, annotations=None, traffic=None, name="hello", revision_name="", **template):
    pod = {"containers": [{"image": "example.com/hello", **(container or {})}], **template}
    metadata = {"annotations": annotations or {}, **({"name": revision_name} if revision_name else {})}
    body = {"template": {"metadata": metadata, "spec": pod}, **({"traffic": traffic} if traffic else {})}
    return resource(SERVICE, {**body, **(spec or {})}, name=name)


def errors(new, old=None):
    kind = KINDS_BY_REF.get(new.ref)
    found = list(kind.validate(kind.default(new), old and kind.default(old)))
    assert all(isinstance(error, FieldError) for error in found)
    return [(error.path, error.rule) for error in found]


def paths(new, old=None):
    return [path for path, _ in errors(new, old)]


def default(new):
    return KINDS_BY_REF.get(new.ref).default(new)


def test_a_service_gets_knatives_defaults():
    spec = default(service()).spec
    assert spec == {
        "template": {
            "metadata": {"annotations": {}},
            "spec": {
                "containerConcurrency": 0,
                "timeoutSeconds": 300,
                "enableServiceLinks": False,
                "containers": [
                    {
                        "name": "user-container",
                        "image": "example.com/hello",
                        "resources": {},
                        "readinessProbe": {"successThreshold": 1, "tcpSocket": {"port": 0}},
                    }
                ],
            },
        },
        "traffic": [{"latestRevision": True, "percent": 100}],
    }


def test_defaults_keep_what_was_given_and_change_nothing_in_place():
    given = service(
        {"name": "web", "readinessProbe": {"httpGet": {"path": "/up"}, "periodSeconds": 5}},
        containerConcurrency=3,
        timeoutSeconds=60,
        traffic=[{"revisionName": "hello-00001", "percent": 100}, {"tag": "next"}],
    )
    before = copy.deepcopy(given.body)
    spec = default(given).spec
    pod = spec["template"]["spec"]
    assert (pod["containerConcurrency"], pod["timeoutSeconds"], pod["containers"][0]["name"]) == (3, 60, "web")
    probe = pod["containers"][0]["readinessProbe"]
    assert probe == {
        "httpGet": {"path": "/up"},
        "periodSeconds": 5,
        "successThreshold": 1,
        "failureThreshold": 3,
        "timeoutSeconds": 1,
    }
    assert spec["traffic"] == [
        {"revisionName": "hello-00001", "percent": 100, "latestRevision": False},
        {"tag": "next", "latestRevision": True, "percent": 0},
    ]
    assert given.body == before
    assert default(default(given)) == default(given)


def test_several_containers_get_numbered_names_around_those_that_are_taken():
    spec = {"containers": [{"image": "a", "ports": [{}]}, {"image": "b", "name": "user-container-0"}, {"image": "c"}]}
    names = [one["name"] for one in default(resource(REVISION, spec)).spec["containers"]]
    assert names == ["user-container-1", "user-container-0", "user-container-2"]


def test_init_containers_get_names_of_their_own():
    spec = {"containers": [{"image": "a", "name": "init-container"}], "initContainers": [{"image": "b"}]}
    (name,) = [one["name"] for one in default(resource(REVISION, spec)).spec["initContainers"]]
    assert name == "init-container-0"


def test_mounts_are_read_only_except_of_what_can_be_written_to():
    volumes = [
        {"name": "config", "configMap": {"name": "x"}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
        {"name": "host", "hostPath": {"path": "/data"}},
    ]
    mounts = [{"name": volume["name"], "mountPath": f"/{volume['name']}"} for volume in volumes]
    given = service({"volumeMounts": mounts}, volumes=volumes, initContainers=[{"image": "b", "volumeMounts": mounts}])
    pod = default(given).spec["template"]["spec"]
    for container in (*pod["containers"], *pod["initContainers"]):
        assert [mount.get("readOnly", False) for mount in container["volumeMounts"]] == [True, False, False, True]
    assert errors(given) == []


def test_everything_that_knatives_feature_flags_can_allow_of_a_pod_is_taken():
    given = service(
        {
            "env": [{"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
            "resources": {"limits": {"nvidia.com/gpu": 1}},
            "securityContext": {"capabilities": {"drop": ["ALL"]}, "privileged": False},
            "volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "HostToContainer"}],
        },
        volumes=[{"name": "v", "csi": {"driver": "secrets-store.csi.k8s.io"}}],
        initContainers=[{"image": "b"}, {"image": "c", "restartPolicy": "Always", "startupProbe": {"exec": {}}}],
        affinity={"nodeAffinity": {}},
        nodeSelector={"gpu": "yes"},
        tolerations=[{"operator": "Exists"}],
        topologySpreadConstraints=[{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
        runtimeClassName="nvidia",
        priorityClassName="high",
        schedulerName="mine",
        dnsPolicy="None",
        dnsConfig={"nameservers": ["10.0.0.1"]},
        hostAliases=[{"ip": "10.0.0.2", "hostnames": ["db"]}],
        securityContext={"runAsNonRoot": True},
        shareProcessNamespace=True,
        hostNetwork=True,
        hostPID=True,
        hostIPC=True,
        serviceAccountName="painter",
        imagePullSecrets=[{"name": "registry"}],
    )
    assert errors(given) == []
    spec_of(default(given), ServiceSpec)


@pytest.mark.parametrize(
    "name",
    ["restartPolicy", "nodeName", "hostname", "terminationGracePeriodSeconds", "activeDeadlineSeconds", "os"],
)
def test_what_of_a_pod_is_the_platforms_or_makes_no_sense_is_unknown(name):
    with pytest.raises(msgspec.ValidationError, match=name):
        spec_of(service(**{name: "x"}), ServiceSpec)


def test_an_existing_revision_gets_no_new_defaults():
    held = resource(REVISION, {"containers": [{"image": "a"}]}).with_meta(uid="1")
    assert default(held) == held


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(service(), id="the least"),
        pytest.param(
            service(
                {
                    "command": ["run"],
                    "args": ["--now"],
                    "env": [
                        {"name": "A", "value": "1"},
                        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                    ],
                    "envFrom": [{"prefix": "X_", "configMapRef": {"name": "c"}}],
                    "ports": [{"name": "h2c", "containerPort": 8080}],
                    "resources": {"limits": {"memory": "64Mi", "cpu": 1}, "requests": {"cpu": "100m"}},
                    "livenessProbe": {"httpGet": {"path": "/", "port": 8080}},
                    "workingDir": "/srv",
                    "securityContext": {"runAsUser": 1000},
                    "imagePullPolicy": "Always",
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                },
                serviceAccountName="me",
                imagePullSecrets=[{"name": "pull"}],
                responseStartTimeoutSeconds=30,
                idleTimeoutSeconds=0,
            ),
            id="everything that is allowed",
        ),
        pytest.param(service(revision_name="hello-one"), id="a named revision"),
    ],
)
def test_what_knative_accepts_is_accepted(given):
    assert errors(given) == []
    spec_of(default(given), KINDS_BY_REF.get(SERVICE).spec_type)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        pytest.param(service(name="Hello"), "metadata.name", id="a name that is no DNS label"),
        pytest.param(service(name="h" * 64), "metadata.name", id="a name that is too long"),
        pytest.param(service({"image": ""}), f"{FIRST}.image", id="no image"),
        pytest.param(service({"image": "a b"}), f"{FIRST}.image", id="no image reference"),
        pytest.param(service(containerConcurrency=1001), f"{POD}.containerConcurrency", id="concurrency over 1000"),
        pytest.param(service(containerConcurrency=-1), f"{POD}.containerConcurrency", id="concurrency < 0"),
        pytest.param(service(timeoutSeconds=601), f"{POD}.timeoutSeconds", id="a timeout over 600 s"),
        pytest.param(service(idleTimeoutSeconds=301), f"{POD}.idleTimeoutSeconds", id="idle over timeout"),
        pytest.param(service(containers=[]), f"{POD}.containers", id="no container"),
        pytest.param(
            service({"env": [{"name": "PORT", "value": "1"}]}),
            f"{FIRST}.env[0].name",
            id="PORT",
        ),
        pytest.param(
            service({"env": [{"name": "A", "valueFrom": {}}]}),
            f"{FIRST}.env[0].valueFrom",
            id="a value from nowhere",
        ),
        pytest.param(service({"envFrom": [{}]}), f"{FIRST}.envFrom[0]", id="envFrom nothing"),
        pytest.param(
            service({"ports": [{"containerPort": 8012}]}),
            f"{FIRST}.ports[0].containerPort",
            id="a reserved port",
        ),
        pytest.param(
            service({"ports": [{"containerPort": 80, "name": "web"}]}),
            f"{FIRST}.ports[0].name",
            id="a port name",
        ),
        pytest.param(
            service({"ports": [{"containerPort": 80}, {"containerPort": 81}]}),
            f"{POD}.containers[*].ports",
            id="two ports",
        ),
        pytest.param(
            service({"resources": {"limits": {"memory": "lots"}}}),
            f"{FIRST}.resources.limits.memory",
            id="no quantity",
        ),
        pytest.param(
            service({"readinessProbe": {"httpGet": {}, "tcpSocket": {}}}),
            f"{FIRST}.readinessProbe",
            id="two probes in one",
        ),
        pytest.param(
            service({"readinessProbe": {"timeoutSeconds": 3}}),
            f"{FIRST}.readinessProbe.timeoutSeconds",
            id="a threshold without period",
        ),
        pytest.param(
            service({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
            f"{FIRST}.volumeMounts[0].name",
            id="a mount without volume",
        ),
        pytest.param(
            service(volumes=[{"name": "v", "emptyDir": {}}]),
            f"{POD}.volumes[0].name",
            id="unmounted volume",
        ),
        pytest.param(
            service(volumes=[{"name": "v"}], initContainers=[{"image": "b", "volumeMounts": [MOUNT]}]),
            f"{POD}.volumes[0]",
            id="a volume of nothing",
        ),
        pytest.param(
            service({"volumeMounts": [{**MOUNT, "mountPropagation": "Bidirectional"}]}, volumes=[VOLUME]),
            f"{FIRST}.volumeMounts[0].mountPropagation",
            id="mounts that spread to the node",
        ),
        pytest.param(
            service({"securityContext": {"privileged": True}}),
            f"{FIRST}.securityContext.privileged",
            id="a privileged container",
        ),
        pytest.param(service({"restartPolicy": "Always"}), f"{FIRST}.restartPolicy", id="a restart policy"),
        pytest.param(
            service(initContainers=[{"image": "b", "restartPolicy": "Never"}]),
            f"{POD}.initContainers[0].restartPolicy",
            id="an init container's restart policy",
        ),
        pytest.param(
            service(initContainers=[{"image": "b", "startupProbe": {"exec": {}}}]),
            f"{POD}.initContainers[0].startupProbe",
            id="an init container with a probe",
        ),
        pytest.param(
            service({"name": "a"}, initContainers=[{"image": "b", "name": "a"}]),
            f"{POD}.initContainers[0].name",
            id="a name twice",
        ),
        pytest.param(service({"name": "queue-proxy"}), f"{FIRST}.name", id="a reserved name"),
        pytest.param(service(revision_name="other-1"), "spec.template.metadata.name", id="a revision name's prefix"),
        pytest.param(service(revision_name="hello-A"), "spec.template.metadata.name", id="a revision name's letters"),
        pytest.param(
            service(automountServiceAccountToken=True),
            f"{POD}.automountServiceAccountToken",
            id="automount",
        ),
    ],
)
def test_what_knative_refuses_is_refused_at_its_place(given, path):
    assert paths(given) == [path]


@pytest.mark.parametrize(
    ("traffic", "found"),
    [
        pytest.param([{"percent": 100}], [], id="all to the latest"),
        pytest.param([{"percent": 60}, {"revisionName": "hello-1", "percent": 40}], [], id="a split"),
        pytest.param([{"percent": 100}, {"revisionName": "hello-1", "tag": "old"}], [], id="a tag without share"),
        pytest.param([{"percent": 99}], ["spec.traffic"], id="99"),
        pytest.param([{"percent": 60}, {"percent": 60}], ["spec.traffic"], id="120"),
        pytest.param(
            [{"percent": 101}, {"percent": -1}], ["spec.traffic[0].percent", "spec.traffic[1].percent"], id="range"
        ),
        pytest.param(
            [{"percent": 100, "tag": "a"}, {"revisionName": "hello-1", "tag": "a"}],
            ["spec.traffic[1].tag"],
            id="a tag twice",
        ),
        pytest.param([{"percent": 100, "tag": "A"}], ["spec.traffic[0].tag"], id="a tag that is no label"),
        pytest.param(
            [{"percent": 100, "revisionName": "hello-1", "latestRevision": True}],
            ["spec.traffic[0].latestRevision"],
            id="pinned and latest",
        ),
        pytest.param([{"percent": 100, "latestRevision": False}], ["spec.traffic[0].latestRevision"], id="neither"),
        pytest.param(
            [{"percent": 100, "configurationName": "hello"}], ["spec.traffic[0].configurationName"], id="configuration"
        ),
        pytest.param([{"percent": 100, "url": "http://x"}], ["spec.traffic[0].url"], id="a url"),
    ],
)
def test_a_services_traffic(traffic, found):
    assert paths(service(traffic=traffic)) == found


@pytest.mark.parametrize(
    ("traffic", "found"),
    [
        ([{"configurationName": "hello", "percent": 100}], []),
        ([{"percent": 100}], ["spec.traffic[0]"]),
        ([], ["spec.traffic"]),
        (
            [{"configurationName": "hello", "revisionName": "hello-1", "percent": 100}],
            ["spec.traffic[0]"],
        ),
    ],
    ids=["a configuration", "nothing named", "empty", "both"],
)
def test_a_routes_traffic(traffic, found):
    assert paths(resource(ROUTE, {"traffic": traffic})) == found


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("min-scale", ["0", "3"], ["-1", "1.5", "x", "", "99999999999"]),
        ("max-scale", ["0", "100"], ["-1", "many"]),
        ("initial-scale", ["0", "1", "7"], ["-1", "a"]),
        ("activation-scale", ["2", "9"], ["1", "0", "x"]),
        ("target", ["0.01", "100", "1e2"], ["0", "0.001", "-5", "ten", "nan", "1_0"]),
        ("target-utilization-percentage", ["1", "70", "100"], ["0", "101", "x"]),
        ("target-burst-capacity", ["-1", "0", "200"], ["-2", "-0.5", "x"]),
        ("window", ["6s", "60s", "1h"], ["5s", "61m", "90", "6500ms"]),
        ("panic-window-percentage", ["1", "10", "100"], ["0.5", "101"]),
        ("panic-threshold-percentage", ["110", "200", "1000"], ["109", "1001"]),
        ("scale-down-delay", ["0s", "15m", "1h"], ["2h", "1500ms", "x"]),
        ("scale-to-zero-pod-retention-period", ["0s", "90s", "1500ms"], ["2h", "x"]),
        ("metric", ["concurrency", "rps"], ["cpu", ""]),
        ("class", ["kpa.autoscaling.knative.dev", "mine.example.com"], ["other.autoscaling.knative.dev"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_autoscaling_annotation(name, good, bad):
    for text in good:
        assert errors(service(annotations={PREFIX + name: text})) == [], text
    for text in bad:
        found = paths(service(annotations={PREFIX + name: text}))
        assert found == [f"spec.template.metadata.annotations[{PREFIX}{name}]"], text


@pytest.mark.parametrize(
    ("annotations", "wrong"),
    [
        ({"min-scale": "3", "max-scale": "2"}, "max-scale"),
        ({"minScale": "3", "maxScale": "2"}, "maxScale"),
        ({"min-scale": "4", "activation-scale": "3"}, "activation-scale"),
        ({"max-scale": "2", "activation-scale": "3"}, "activation-scale"),
    ],
    ids=["min over max", "older spelling", "activation under min", "activation over max"],
)
def test_scales_that_contradict_each_other(annotations, wrong):
    given = {PREFIX + name: text for name, text in annotations.items()}
    assert paths(service(annotations=given)) == [f"spec.template.metadata.annotations[{PREFIX}{wrong}]"]


def test_autoscaling_annotations_on_the_service_itself_do_nothing_and_are_refused():
    given = service().with_meta(annotations={PREFIX + "min-scale": "1"})
    ((path, rule),) = errors(given)
    assert path == f"metadata.annotations[{PREFIX}min-scale]"
    assert "spec.template.metadata.annotations" in rule


def test_a_revision_cannot_be_changed():
    held = resource(REVISION, {"containers": [{"image": "a"}], "timeoutSeconds": 10})
    changed = held.with_spec({**held.spec, "timeoutSeconds": 20})
    ((path, rule),) = errors(changed, held)
    assert path == "spec"
    assert "immutable" in rule
    assert "timeoutSeconds" in rule
    assert errors(held.with_meta(labels={"a": "b"}), held) == []


def test_a_named_revisions_template_changes_only_together_with_its_name():
    held = service(revision_name="hello-one")
    assert paths(service(revision_name="hello-one", timeoutSeconds=5), held) == ["spec.template.metadata.name"]
    assert errors(service(revision_name="hello-two", timeoutSeconds=5), held) == []
    assert errors(service(timeoutSeconds=5), held) == []


def test_a_label_of_the_platform_must_name_the_owner():
    labels = {"serving.knative.dev/service": "hello"}
    spec = service().spec
    given = resource(CONFIGURATION, {"template": spec["template"]}, labels=labels)
    assert paths(given) == ["metadata.labels[serving.knative.dev/service]"]
    owner = OwnerReference(api_version=SERVICE.api_version, kind="Service", name="hello", uid="1")
    assert errors(given.with_meta(owner_references=(owner,))) == []


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("ksvc", "Service"),
        ("kservice", "Service"),
        ("cfg", "Configuration"),
        ("rev", "Revision"),
        ("rt", "Route"),
        ("kpa", "PodAutoscaler"),
        ("pa", "PodAutoscaler"),
    ],
)
def test_kinds_are_found_by_their_short_names(word, kind):
    assert KINDS_BY_REF.find(word).ref.kind == kind


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", 0.5), ("2", 2), ("64Mi", 67_108_864), ("1k", 1000), ("1e3", 1000), (0.5, 0.5), ("1.5Gi", 1_610_612_736)],
)
def test_a_quantity(text, number):
    assert float(parse_quantity(text)) == number


def test_the_protocol_is_the_ports_name():
    plain = spec_of(default(resource(REVISION, {"containers": [{"image": "a"}]})), RevisionSpec)
    h2c = spec_of(resource(REVISION, {"containers": [{"image": "a", "ports": [{"name": "h2c"}]}]}), RevisionSpec)
    assert (protocol_of(plain), protocol_of(h2c)) == ("http1", "h2c")


def test_a_childs_name_stays_within_a_dns_label_and_distinct():
    assert child_name("hello", "-00001") == "hello-00001"
    long, other = child_name("h" * 63, "-00001"), child_name("h" * 62 + "x", "-00001")
    assert (len(long), len(other)) == (63, 63)
    assert long != other
    assert long.endswith("-00001")
