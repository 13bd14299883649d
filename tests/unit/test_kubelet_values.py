"""The test kubelet's environment, scheduling, Services and names: pure functions of what the API says."""

import socket
import struct
from decimal import Decimal
from typing import Any

import pytest

from tests.support.kubelet.dns import answer
from tests.support.kubelet.environment import ConfigError, References, command, environment, expand
from tests.support.kubelet.identity import Identity, identity
from tests.support.kubelet.images import Image
from tests.support.kubelet.reader import Query, query
from tests.support.kubelet.rootfs import Mount, root_script, shared_mounts
from tests.support.kubelet.scheduling import place, quantity
from tests.support.kubelet.services import Names, forwards, names, resolve
from tests.support.kubelet.spec import Container, EndpointSlice, Node, Pod, Service, parse


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("$(NAME)!", "value!"),
        ("$$(NAME)", "$(NAME)"),
        ("$(ABSENT)", "$(ABSENT)"),
        ("$NAME $", "$NAME $"),
    ],
)
def test_references_are_expanded_and_unknown_ones_stay(text: str, expanded: str):
    assert expand(text, {"NAME": "value"}) == expanded


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({}, ["entry", "image"], id="the image's own"),
        pytest.param({"args": ["x"]}, ["entry", "x"], id="args take the place of the image's"),
        pytest.param({"command": ["c"]}, ["c"], id="a command takes the place of both"),
        pytest.param({"command": ["c"], "args": ["$(A)"]}, ["c", "1"], id="both"),
    ],
)
def test_a_command_is_put_together_of_the_image_and_the_container(fields: dict[str, Any], words: list[str]):
    container = parse(Container, {"name": "c"} | fields)

    assert command(container, {"A": "1"}, ("entry",), ("image",)) == words


def test_what_an_environment_refers_to_must_exist_unless_it_is_optional():
    def made(optional: bool) -> dict[str, str]:
        key = {"name": "absent", "key": "k", "optional": optional}
        variable = {"name": "A", "valueFrom": {"configMapKeyRef": key}}
        container = parse(Container, {"name": "c", "env": [variable, {"name": "B", "value": "b"}]})
        return environment(pod(), container, References(), {}, {})

    assert made(optional=True) == {"B": "b"}
    with pytest.raises(ConfigError, match='key "k" of configmap "absent" not found'):
        made(optional=False)


def test_a_whole_config_map_and_secret_become_variables_and_later_ones_win():
    sources = [{"configMapRef": {"name": "m"}}, {"prefix": "S_", "secretRef": {"name": "s"}}]
    container = parse(Container, {"name": "c", "envFrom": sources, "env": [{"name": "two", "value": "own"}]})
    references = References(config_maps={"m": {"one": "1", "two": "2"}}, secrets={"s": {"one": "x"}})

    found = environment(pod(), container, references, {"base": "b"}, {})

    assert found == {"base": "b", "one": "1", "two": "own", "S_one": "x"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", "0.5"), ("2", "2"), (3, "3"), (0.5, "0.5"), ("2Gi", str(2 * 1024**3)), ("1k", "1000"), ("1e3", "1000")],
)
def test_quantities_are_kubernetes(text: Any, value: str):
    assert quantity(text) == Decimal(value)


def test_what_is_no_quantity_is_refused():
    with pytest.raises(ValueError, match="'2 GB' is no quantity"):
        quantity("2 GB")


HOST = "kubernetes.io/hostname"
NODE_TERMS = "requiredDuringSchedulingIgnoredDuringExecution"


@pytest.mark.parametrize(
    ("spec", "outcome"),
    [
        pytest.param({}, "b", id="the node with the fewest pods"),
        pytest.param({"nodeSelector": {HOST: "a"}}, "a", id="a selector"),
        pytest.param({"nodeSelector": {HOST: "z"}}, "affinity/selector", id="a selector that nothing matches"),
        pytest.param(
            {
                "affinity": {
                    "nodeAffinity": {
                        NODE_TERMS: {
                            "nodeSelectorTerms": [
                                {"matchExpressions": [{"key": HOST, "operator": "NotIn", "values": ["b"]}]}
                            ]
                        }
                    }
                }
            },
            "a",
            id="node affinity",
        ),
        pytest.param(
            {
                "affinity": {
                    "podAntiAffinity": {
                        NODE_TERMS: [{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "x"}}}]
                    }
                }
            },
            "2 node(s) didn't match pod anti-affinity rules",
            id="pods that do not want a zone with it",
        ),
        pytest.param(
            {
                "affinity": {
                    "podAffinity": {NODE_TERMS: [{"topologyKey": HOST, "labelSelector": {"matchLabels": {"app": "x"}}}]}
                }
            },
            "a",
            id="pods that want a node with it",
        ),
        pytest.param(
            {"tolerations": [{"key": "gpu", "operator": "Exists"}], "nodeSelector": {HOST: "g"}}, "g", id="a toleration"
        ),
        pytest.param({"nodeSelector": {HOST: "g"}}, "untolerated taint {gpu: yes}", id="a taint"),
    ],
)
def test_a_pod_is_bound_where_it_fits_or_told_why_not(spec: dict[str, Any], outcome: str):
    nodes = [
        node("a", zone="1"),
        node("b", zone="1"),
        node("g", zone="2", taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]),
    ]
    others = [pod("other", app="x", nodeName="a")]

    found = place(pod(**spec), nodes, others)

    assert outcome in (found.node or found.reason)


def test_a_node_takes_no_more_than_it_has():
    asks = {"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": 1}}}]}
    nodes = [node("a", resources={"nvidia.com/gpu": "1"})]

    assert place(pod(**asks), nodes, []).node == "a"
    assert place(pod(**asks), nodes, [pod("first", nodeName="a", **asks)]).reason == (
        "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    )


def test_a_service_leads_to_ready_endpoints_and_to_ending_ones_where_none_is_ready():
    ready = {"addresses": ["10.0.0.1"], "conditions": {"ready": True}}
    not_yet = {"addresses": ["10.0.0.2"], "conditions": {"ready": False, "serving": False}}
    ending = {"addresses": ["10.0.0.3"], "conditions": {"ready": False, "serving": True, "terminating": True}}

    assert led([ready, not_yet, ending]) == (("10.0.0.1", 8080),)
    assert led([not_yet, ending]) == (("10.0.0.3", 8080),)
    assert led([not_yet]) is None


def test_names_are_those_of_services_headless_ones_and_external_ones():
    services = [
        service("web", clusterIP="10.96.0.7"),
        service("each", clusterIP="None"),
        service("out", type="ExternalName", externalName="web.ns.svc.cluster.local."),
        service("round", type="ExternalName", externalName="round.ns.svc.cluster.local"),
    ]
    endpoints = [{"addresses": ["10.0.0.1"], "hostname": "zero"}, {"addresses": ["10.0.0.2"]}]
    table = names(services, [endpoint_slice("each", endpoints)])
    domain = "ns.svc.cluster.local"

    assert resolve(table, f"WEB.{domain}.") == ([], ("10.96.0.7",))
    assert resolve(table, f"each.{domain}") == ([], ("10.0.0.1", "10.0.0.2"))
    assert resolve(table, f"zero.each.{domain}") == ([], ("10.0.0.1",))
    assert resolve(table, f"out.{domain}") == ([(f"out.{domain}", f"web.{domain}")], ("10.96.0.7",))
    assert resolve(table, f"absent.{domain}") is None
    found = resolve(table, f"round.{domain}")
    assert found is not None
    assert found[1] == ()


def test_a_name_server_answers_addresses_aliases_and_that_there_is_no_such_name():
    table = Names(addresses={"a.b": ("10.96.0.7",)}, aliases={"c.d": "a.b"})

    assert answered(table, "a.b", 1) == (0, [("a.b", 1, socket.inet_aton("10.96.0.7"))])
    assert answered(table, "c.d", 1) == (0, [("c.d", 5, b"\1a\1b\0"), ("a.b", 1, socket.inet_aton("10.96.0.7"))])
    assert answered(table, "a.b", 28) == (0, [])
    assert answered(table, "x.y", 1) == (3, [])
    assert answer(table, b"\0\1") == b""


def test_a_machines_own_file_systems_are_seen_but_not_those_of_the_kernel_nor_inner_ones_twice():
    points = ["/", "/proc", "/dev/shm", "/checkout", "/checkout/inner", "/etc/hosts", "/data", "/tmp/x"]
    mountinfo = "\n".join(f"1 2 0:1 / {point} rw - ext4 d rw" for point in points)

    assert shared_mounts(mountinfo) == ["/checkout", "/data"]


def test_a_containers_file_system_has_outer_mounts_before_inner_ones(tmp_path):
    mounts = [Mount(source=tmp_path, target="/srv/a/b"), Mount(source=tmp_path, target="/srv/a", read_only=True)]
    script = root_script(root=tmp_path, hostname="h", mounts=mounts, files={}, shared=["/checkout"], read_only=False)

    binds = [line.split()[-1] for line in script.splitlines() if line.startswith("mount --bind")]
    assert binds == [f"{tmp_path}/root/srv/a", f"{tmp_path}/root/srv/a/b"]
    assert f"mount -o remount,bind,ro {tmp_path}/root/srv/a" in script.splitlines()


def pod(name: str = "p", *, app: str = "p", **spec: Any) -> Pod:
    metadata = {"name": name, "namespace": "ns", "labels": {"app": app}}
    return parse(Pod, {"metadata": metadata, "spec": {"containers": [{"name": "c"}]} | spec})


def node(name: str, *, zone: str = "", resources: dict[str, str] | None = None, **spec: Any) -> Node:
    labels = {HOST: name, "zone": zone}
    status = {"allocatable": {"pods": "10"} | (resources or {})}
    return parse(Node, {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": status})


def service(name: str, **spec: Any) -> Service:
    return parse(Service, {"metadata": {"name": name, "namespace": "ns"}, "spec": {"ports": [{"port": 80}]} | spec})


def endpoint_slice(name: str, endpoints: list[dict[str, Any]]) -> EndpointSlice:
    metadata = {"name": f"{name}-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": name}}
    return parse(EndpointSlice, {"metadata": metadata, "endpoints": endpoints, "ports": [{"port": 8080}]})


def led(endpoints: list[dict[str, Any]]) -> tuple[tuple[str, int], ...] | None:
    table = forwards([service("web", clusterIP="10.96.0.7")], [endpoint_slice("web", endpoints)])
    return table.get(("10.96.0.7", 80))


def answered(table: Names, name: str, kind: int) -> tuple[int, list[tuple[str, int, bytes]]]:
    """The reply's code and records, as a resolver reads them."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    question = labels + struct.pack("!HH", kind, 1)
    reply = answer(table, struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + question)
    number, flags, _, count, _, _ = struct.unpack_from("!HHHHHH", reply)
    assert (number, reply[12 : 12 + len(question)]) == (7, question)
    records, at = [], 12 + len(question)
    for _ in range(count):
        owner = []
        while reply[at]:
            owner.append(reply[at + 1 : at + 1 + reply[at]].decode())
            at += 1 + reply[at]
        found, _, _, size = struct.unpack_from("!HHIH", reply, at + 1)
        records.append((".".join(owner), found, reply[at + 11 : at + 11 + size]))
        at += 11 + size
    return flags & 0xF, records


@pytest.mark.parametrize(
    ("whole", "own", "image", "who"),
    [
        pytest.param({}, {}, 0, Identity(), id="root unless somebody says otherwise"),
        pytest.param({}, {}, 7, Identity(user=7), id="the image's user"),
        pytest.param({"runAsUser": 8, "fsGroup": 9}, {}, 7, Identity(user=8, groups=(9,)), id="the pod's"),
        pytest.param({"runAsUser": 8}, {"runAsUser": 0}, 7, Identity(), id="the container's own"),
        pytest.param({"runAsNonRoot": True}, {}, 7, Identity(user=7), id="anybody but root"),
    ],
)
def test_a_containers_user_is_the_nearest_that_is_said(
    whole: dict[str, Any], own: dict[str, Any], image: int, who: Identity
):
    container = parse(Container, {"name": "c", "securityContext": own})

    assert identity(pod(securityContext=whole), container, Image(pattern="*", user=image)) == who


def test_a_container_that_must_not_be_root_and_would_be_is_refused():
    with pytest.raises(ConfigError, match="runAsNonRoot"):
        identity(pod(securityContext={"runAsNonRoot": True}), Container(name="c"), Image(pattern="*"))


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("pods",), Query(kind="pods")),
        (("pod", "p", "-n", "ns"), Query(kind="pod", name="p", namespace="ns")),
        (("-n", "ns", "pod/p"), Query(kind="pod", name="p", namespace="ns")),
        (("pods", "-A", "-l", "a=b"), Query(kind="pods", everywhere=True, selector="a=b")),
    ],
)
def test_what_a_test_asks_for_is_read_as_kubectl_reads_it(words: tuple[str, ...], asked: Query):
    assert query(words) == asked


@pytest.mark.parametrize("words", [(), ("pods", "a", "b"), ("pods", "--watch")])
def test_what_is_not_read_here_is_refused(words: tuple[str, ...]):
    with pytest.raises(ValueError, match=r"names no kind|not understood"):
        query(words)
