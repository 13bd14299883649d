"""The Helm chart: what it makes of values, what it refuses, and whether a real API server takes it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.event_types import EVENT_TYPE
from broker.flows import PARALLEL, SEQUENCE
from broker.messaging import CHANNEL, IN_MEMORY_CHANNEL, SUBSCRIPTION
from broker.node import FOLLOWED as BROKER_FOLLOWS
from core.resources import KindRef
from core.resources.builtin import DEPLOYMENT, ENDPOINT_SLICE, EVENT, LEASE, POD, WORKLOADS
from penstock.cluster.control import reconcilers_of
from penstock.cluster.crds import custom_kinds
from penstock.cluster.names import KIND as CLUSTER_SERVICE_KIND
from penstock.cluster.names import SERVICE as CLUSTER_SERVICE
from penstock.cluster.settings import Settings
from penstock.kinds import registry
from serving.autoscaler import FOLLOWED as AUTOSCALER_FOLLOWS
from serving.gateways import SILENT_REST_S
from serving.instances.kubernetes.pods import FOLLOWED as PODS_FOLLOW
from serving.node import FOLLOWED as GATEWAY_FOLLOWS
from serving.resources import CONFIGURATION, POD_AUTOSCALER, REVISION, ROUTE, SERVICE
from sources.factories import FACTORIES
from tests.support import chart
from tests.support.controlplane.access import ClusterAccess

pytestmark = [pytest.mark.e2e, pytest.mark.service("kubernetes")]

ROLES = ("broker-ingress", "control", "dispatcher", "gateway", "sources")
PLURALS = {kind.ref: kind.plural for kind in (*registry(), *WORKLOADS, CLUSTER_SERVICE_KIND)}
Right = tuple[str, str, str]
#: What control makes, and ends; the rest that is made is collected with its owner.
MADE = {
    CONFIGURATION: ("create", "update"),
    ROUTE: ("create", "update"),
    REVISION: ("create", "update", "delete"),
    POD_AUTOSCALER: ("create", "update"),
    DEPLOYMENT: ("create", "update"),
    POD: ("update", "delete"),
    ENDPOINT_SLICE: ("create", "update", "delete"),
    CLUSTER_SERVICE: ("create", "update", "delete"),
    EVENT: ("create", "update"),
    CHANNEL: ("create", "delete"),
    IN_MEMORY_CHANNEL: ("create", "delete"),
    SUBSCRIPTION: ("create", "update", "delete"),
}


@pytest.fixture(scope="module")
def base() -> list[dict[str, Any]]:
    return chart.documents(chart.render(*chart.BASE))


def named(documents: Iterable[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in documents if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pods(documents: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pod template of each workload, by its name."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]
        for each in documents
        if each["kind"] in ("Deployment", "StatefulSet")
    }


# ---- values


def test_it_passes_helms_own_linter():
    done = chart.helm("lint", "--strict", str(chart.CHART), "--set", "redis.install=true")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", chart.CASES)
def test_each_value_changes_what_its_snapshot_says(name: str):
    held = chart.snapshot_path(name).read_text() if chart.snapshot_path(name).exists() else ""
    assert held == chart.snapshot(name), "run: python -m tests.support.chart"


def test_there_is_a_case_for_every_part_of_the_values():
    shown = {
        setting.partition("=")[0].partition(".")[0].partition("[")[0]
        for case in chart.CASES.values()
        for setting in case
    }
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    # What installs is in every case; the roles share their templates, so that the gateway shows for all.
    assert shown | {"crds"} == set(values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param((), "Nothing is named that keeps events", id="no log"),
        pytest.param(("eventLog.kind=redis",), "Set eventLog.redis.url", id="redis without address"),
        pytest.param(("eventLog.kind=kafka",), "Set eventLog.kafka.servers", id="kafka without address"),
        pytest.param(
            ("eventLog.kind=redis", "eventLog.redis.url=redis://a:1/0", "eventLog.redis.existingSecret=b"),
            "are both set",
            id="two addresses",
        ),
        pytest.param(("redis.install=true", "eventLog.redis.url=redis://a:1/0"), "names another one", id="two redises"),
        pytest.param(
            ("redis.install=true", "eventLog.kafka.servers=a:1"), "it is not said which of them", id="two logs"
        ),
        pytest.param(
            ("eventLog.kafka.servers=a:1", "eventLog.kafka.existingSecret=b"), "are both set", id="two kafkas"
        ),
        pytest.param(("eventLog.kafka.servers=kafka",), "/eventLog/kafka/servers", id="kafka without port"),
        pytest.param(("eventLog.kind=sqlite",), "must be one of '', 'redis', 'kafka'", id="unknown log"),
        pytest.param(("redis.install=true", "gatway.replicas=3"), "'gatway' not allowed", id="misspelt"),
        pytest.param(("redis.install=true", "gateway.replica=3"), "'replica' not allowed", id="misspelt inside"),
        pytest.param(("redis.install=true", "gateway.replicas=many"), "got string, want integer", id="wrong type"),
        pytest.param(("redis.install=true", "domain.suffix=example.com"), "/domain/suffix", id="suffix without dot"),
        pytest.param(("redis.install=true", "logLevel=LOUD"), "/logLevel", id="unknown level"),
        pytest.param(
            ("redis.install=true", "redis.resources.limits.memory=1e9"), "not a number of bytes", id="unread limit"
        ),
        pytest.param(("redis.install=true", "eventLog.retention.maxBytes=1GB"), "/retention/maxBytes", id="no size"),
        pytest.param(
            ("eventLog.kind=redis", "eventLog.redis.url=http://a"), "/eventLog/redis/url", id="another protocol"
        ),
    ],
)
def test_values_that_cannot_work_are_refused_with_what_to_do(values: tuple[str, ...], says: str):
    with pytest.raises(RuntimeError) as caught:
        chart.render(*values)
    assert says in str(caught.value)


def test_it_brings_the_definition_of_every_kind_and_keeps_it_at_the_end():
    made = chart.documents(chart.render("redis.install=true"))
    definitions = [each for each in made if each["kind"] == "CustomResourceDefinition"]
    assert {each["metadata"]["name"] for each in definitions} == {
        path.name.removesuffix(".yaml") for path in (chart.CHART / "files/crds").iterdir()
    }
    assert {each["metadata"]["annotations"]["helm.sh/resource-policy"] for each in definitions} == {"keep"}


def test_beside_knatives_definitions_it_brings_those_of_its_own_groups():
    made = chart.documents(chart.render("redis.install=true", "crds.install=false"))
    groups = {each["spec"]["group"] for each in made if each["kind"] == "CustomResourceDefinition"}
    assert groups == {"sources.penstock.dev"}


def test_two_releases_share_nothing_but_the_kinds():
    def names(release: str, namespace: str) -> set[tuple[str, str, str]]:
        made = chart.documents(chart.render(*chart.BASE, release=release, namespace=namespace))
        return {
            (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"])
            for each in made
            if each["kind"] != "CustomResourceDefinition"
        }

    assert not names("penstock", "one") & names("penstock", "two")
    assert not names("a", "one") & names("b", "one")


# ---- memory

QUANTITIES = {"Mi": 2**20, "Gi": 2**30}


def in_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * QUANTITIES[quantity[-2:]]


@pytest.mark.parametrize("values", [(), chart.CASES["redis-memory"]], ids=["by default", "with more memory"])
def test_what_events_may_take_fits_the_redis_that_it_installs(values: tuple[str, ...]):
    made = chart.documents(chart.render(*chart.BASE, *values))
    spec = named(made, "StatefulSet", "penstock-redis")["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (volume,) = spec["volumeClaimTemplates"]
    words = container["args"]
    limit, most = in_bytes(container["resources"]["limits"]["memory"]), int(words[words.index("--maxmemory") + 1])
    assert words[words.index("--maxmemory-policy") + 1] == "noeviction", "what does not fit is refused, not lost"
    assert most == limit * 60 // 100, "what is copied while its file is written anew is not counted"
    assert in_bytes(volume["spec"]["resources"]["requests"]["storage"]) >= 3 * limit, "two files, and what is appended"
    for role in ("broker-ingress", "control", "dispatcher"):
        told = pods(made)[f"penstock-{role}"]["spec"]["containers"][0]["args"]
        arguments = dict(word.split("=", 1) for word in told)
        largest, full = int(arguments["--log-max-bytes"]), int(arguments["--log-full-bytes"])
        # A small event takes about twice its size, and the ledger is bounded by the size of the events.
        assert 3 * largest < most, role
        assert largest < full < most, role


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("1Gi", 2**30), ("500M", 500_000_000), ("2097152Ki", 2**31), ("1048576k", 1_048_576_000), ("2147483648", 2**31)],
)
def test_the_limit_of_memory_is_read_as_kubernetes_reads_it(limit: str, expected: int):
    made = chart.documents(chart.render(*chart.BASE, f"redis.resources.limits.memory={limit}"))
    words = pods(made)["penstock-redis"]["spec"]["containers"][0]["args"]
    assert int(words[words.index("--maxmemory") + 1]) == expected * 60 // 100


def test_a_redis_without_a_limit_of_memory_has_none_of_its_own():
    made = chart.documents(chart.render(*chart.BASE, "redis.resources.limits=null"))
    assert "--maxmemory" not in pods(made)["penstock-redis"]["spec"]["containers"][0]["args"]


# ---- security


@pytest.mark.parametrize("workload", [*(f"penstock-{role}" for role in ROLES), "penstock-redis"])
def test_every_pod_runs_without_rights_on_a_read_only_root(base: list[dict[str, Any]], workload: str):
    spec = pods(base)[workload]["spec"]
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert spec["automountServiceAccountToken"] is (workload != "penstock-redis")
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"]["cpu"].endswith("m"), "small enough for a laptop's cluster"
        assert {"readinessProbe", "livenessProbe"} <= container.keys()


def test_whoever_is_replaced_has_the_time_to_finish(base: list[dict[str, Any]]):
    for name, template in pods(base).items():
        if name == "penstock-redis":
            continue
        arguments = dict(word.split("=", 1) for word in template["spec"]["containers"][0]["args"] if "=" in word)
        needed_s = float(arguments["--notice"]) + float(arguments["--drain"])
        assert template["spec"]["terminationGracePeriodSeconds"] > needed_s, name


def test_a_stalled_gateway_is_killed_before_others_take_over_what_it_held(base: list[dict[str, Any]]):
    (container,) = pods(base)["penstock-gateway"]["spec"]["containers"]
    probe = container["livenessProbe"]
    # The stall begins just after a probe; each one that fails takes its time-out, or until the next one is due.
    each_s = max(probe["periodSeconds"], probe["timeoutSeconds"])
    worst_s = probe["periodSeconds"] + probe["failureThreshold"] * each_s + probe["terminationGracePeriodSeconds"]
    assert worst_s == 9, "as serving.gateways says"
    assert worst_s * 1.5 <= SILENT_REST_S, "the kubelet may be late"
    ready = container["readinessProbe"]
    assert ready["timeoutSeconds"] > probe["timeoutSeconds"], "a slow answer alone makes no gateway silent first"


# ---- rights


def rights(documents: Iterable[dict[str, Any]], role: str) -> set[Right]:
    """What a role may do: in the cluster, and in the release's namespace ("" and "penstock")."""
    found = set()
    for each in documents:
        if each["kind"] not in ("Role", "ClusterRole") or not each["metadata"]["name"].endswith(f"penstock-{role}"):
            continue
        for rule in each["rules"]:
            assert not set(rule) - {"apiGroups", "resources", "verbs"}
            found |= {
                (f"{resource}.{group}", verb, each["metadata"].get("namespace", ""))
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
    return found


def reading(kinds: Iterable[KindRef], namespace: str = "") -> set[Right]:
    return {(f"{PLURALS[kind]}.{kind.group}", verb, namespace) for kind in kinds for verb in ("get", "list", "watch")}


def leading() -> set[Right]:
    return {(f"{PLURALS[LEASE]}.{LEASE.group}", verb, "penstock") for verb in ("get", "create", "update")}


def test_a_gateway_reads_what_it_follows(base: list[dict[str, Any]]):
    assert rights(base, "gateway") == reading(GATEWAY_FOLLOWS)


def test_an_ingress_reads_what_it_follows(base: list[dict[str, Any]]):
    assert rights(base, "broker-ingress") == reading(BROKER_FOLLOWS)


def test_a_dispatcher_reads_what_it_follows_and_where_its_peers_are_and_makes_event_types(base: list[dict[str, Any]]):
    expected = reading((*BROKER_FOLLOWS, ROUTE)) | reading((ENDPOINT_SLICE,), "penstock")
    expected |= {(f"{PLURALS[EVENT_TYPE]}.{EVENT_TYPE.group}", verb, "") for verb in ("list", "create")}
    assert rights(base, "dispatcher") == expected


def test_sources_read_their_kinds_and_write_their_status(base: list[dict[str, Any]]):
    statuses = {(f"{PLURALS[kind]}/status.{kind.group}", "update", "") for kind in FACTORIES}
    expected = reading((*FACTORIES, ROUTE)) | statuses | reading((ENDPOINT_SLICE,), "penstock") | leading()
    assert rights(base, "sources") == expected | {("secrets.", "get", "")}


def test_control_reads_what_it_reconciles_and_writes_what_it_makes(base: list[dict[str, Any]]):
    reconcilers = reconcilers_of(Settings(role="control", pod="control-1"))
    followed = {kind for each in reconcilers for kind in (each.kind, *each.related)} | AUTOSCALER_FOLLOWS | PODS_FOLLOW
    # The autoscaler writes PodAutoscalers' status; a Route's has one writer, and its names have none.
    told = {each.kind for each in reconcilers} | {POD_AUTOSCALER}
    owners = (SERVICE, ROUTE, CONFIGURATION, REVISION, CHANNEL, SEQUENCE, PARALLEL)
    expected = reading(followed) | leading() | {("pods.", verb, "penstock") for verb in ("get", "update")}
    expected |= {(f"{PLURALS[kind]}/status.{kind.group}", "update", "") for kind in told}
    expected |= {(f"{PLURALS[kind]}/finalizers.{kind.group}", "update", "") for kind in owners}
    expected |= {(f"{PLURALS[kind]}.{kind.group}", verb, "") for kind, verbs in MADE.items() for verb in verbs}
    assert rights(base, "control") == expected | {("pods/log.", "get", "")}


def test_only_sources_read_secrets_each_by_its_name_and_nobody_may_do_everything(base: list[dict[str, Any]]):
    found = {(role, *right) for role in ROLES for right in rights(base, role)}
    assert {each for each in found if each[1].startswith("secrets")} == {("sources", "secrets.", "get", "")}
    assert not [each for each in found if "*" in each[1] + each[2]]
    without = chart.documents(chart.render(*chart.BASE, "sources.readSecrets=false"))
    assert not [right for right in rights(without, "sources") if right[0].startswith("secrets")]


def test_people_may_read_every_kind_and_write_those_that_are_theirs(base: list[dict[str, Any]]):
    kinds = {kind.ref: kind for kind in custom_kinds(registry())}
    own = [ref for ref, kind in kinds.items() if not kind.internal]
    writes = ("create", "update", "patch", "delete", "deletecollection")
    assert rights(base, "view") == reading(kinds)
    assert rights(base, "edit") == {(f"{PLURALS[ref]}.{ref.group}", verb, "") for ref in own for verb in writes}
    labels = {
        name: named(base, "ClusterRole", f"penstock-penstock-{name}")["metadata"]["labels"] for name in ("view", "edit")
    }
    assert labels["view"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert labels["edit"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert labels["edit"]["rbac.authorization.k8s.io/aggregate-to-admin"] == "true"


# ---- a real API server


@pytest.fixture(scope="module")
def restricted(kubernetes: ClusterAccess) -> Iterator[str]:
    """A namespace where pods must keep to Kubernetes' strictest standard."""
    name = "chart-restricted"
    kubectl(kubernetes, "create", "namespace", name)
    levels = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")]
    kubectl(kubernetes, "label", "namespace", name, *levels)
    yield name
    kubectl(kubernetes, "delete", "namespace", name, "--wait=false")


def kubectl(kubernetes: ClusterAccess, *words: str) -> str:
    """What it says on standard error."""
    command = ["kubectl", *words]
    done = subprocess.run(command, env=kubernetes.environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("name", chart.CASES)
def test_an_api_server_takes_what_is_rendered_under_the_strictest_pod_security(
    kubernetes: ClusterAccess, restricted: str, name: str, tmp_path: Path
):
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(chart.render(*chart.BASE, *chart.CASES[name], namespace=restricted))
    assert kubectl(kubernetes, "apply", "--dry-run=server", "--validate=strict", "-f", str(manifests)) == ""


def test_a_pod_that_may_more_would_be_told_of(kubernetes: ClusterAccess, restricted: str, tmp_path: Path):
    manifests = tmp_path / "manifests.yaml"
    told = chart.render(*chart.BASE, namespace=restricted).replace("readOnlyRootFilesystem: true", "privileged: false")
    manifests.write_text(told.replace("drop: [ALL]", "add: [NET_ADMIN]"))
    assert "would violate PodSecurity" in kubectl(kubernetes, "apply", "--dry-run=server", "-f", str(manifests))
