"""The pieces of the cluster composition: who is where, which names there are, who leads, and what probes are told."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from broker.log.kafka.log import KafkaLog
from broker.log.port import Retention
from broker.log.redis.log import RedisLog
from core.control.index import Index
from core.control.memory import MemoryStore
from core.control.reconcile import Apply, Delete
from core.errors import Unavailable
from core.net.client import Client
from core.net.types import Address
from core.resources import Key, ObjectMeta, Resource, owner_reference
from core.resources.builtin import ENDPOINT_SLICE, POD
from core.telemetry import Metrics
from penstock.cli.main import main
from penstock.cluster.eventlog import make_log
from penstock.cluster.health import Health
from penstock.cluster.leading import LEADER_LABEL, LeaderLabel
from penstock.cluster.names import SERVICE, RouteNames
from penstock.cluster.peers import Peers, hosts_of
from penstock.cluster.process import Frame
from penstock.cluster.settings import EventLogSettings, LogKind, Release, Settings
from penstock.process import Ending, running
from serving.resources import ROUTE
from tests.support.broker import ask
from tests.support.http import DEADLINE_S, HOST, Raw, raw_server
from tests.support.stores import FaultyStore
from tests.support.virtual_time import run_virtual

RELEASE = Release(namespace="platform")
GATEWAY = (RELEASE.host(RELEASE.gateway), 80)
HELLO = ("hello.default.svc.cluster.local", 80)
GATEWAY_HOST = "penstock-gateway.penstock.svc.cluster.local"


def endpoint_slice(
    component: str, *hosts: str, namespace: str = "platform", ready: bool = True, port: int = 8080
) -> Resource:
    labels = {"penstock.dev/component": component}
    meta = ObjectMeta(name=f"{component}-{namespace}", namespace=namespace, labels=labels)
    endpoints = [{"addresses": [host], "conditions": {"ready": ready}} for host in hosts]
    return Resource(
        ref=ENDPOINT_SLICE, meta=meta, body={"endpoints": endpoints, "ports": [{"name": "http", "port": port}]}
    )


def route(name: str = "hello", *, tags: tuple[str, ...] = (), uid: str = "uid-1", url: str = "") -> Resource:
    meta = ObjectMeta(name=name, namespace="default", uid=uid)
    traffic = [{"configurationName": name, "percent": 100}, *({"tag": tag, "percent": 0} for tag in tags)]
    status: dict[str, Any] = {"url": url, "traffic": []}
    if url:
        status["traffic"] = [{"tag": tag, "url": url.replace("://", f"://{tag}-")} for tag in tags]
    return Resource(ref=ROUTE, meta=meta, body={"spec": {"traffic": traffic}, "status": status})


async def settled() -> None:
    """Everything that is due now has happened, and a second of whatever waits."""
    await asyncio.sleep(1)


# ---- peers


def places(peers: Peers, address: Address) -> tuple[Address, ...]:
    where = peers.places(address)
    assert where is not None
    return where()


def test_a_service_of_the_platform_stands_for_its_ready_pods():
    async def main() -> None:
        store = MemoryStore()
        await store.create(endpoint_slice("gateway", "10.0.0.2", "10.0.0.1"))
        await store.create(endpoint_slice("gateway", "10.9.9.9", namespace="somebody-else"))
        peers = Peers(store, RELEASE, routes=False, metrics=Metrics())
        assert places(peers, GATEWAY) == (GATEWAY,), "left to DNS until the first listing is there"
        following = asyncio.create_task(peers.run())
        await settled()
        assert places(peers, GATEWAY) == (("10.0.0.1", 8080), ("10.0.0.2", 8080))
        assert places(peers, GATEWAY) is places(peers, GATEWAY), "clients see a change by another tuple"
        gone = endpoint_slice("gateway", "10.0.0.2")
        await store.update(gone)
        await settled()
        assert places(peers, GATEWAY) == (("10.0.0.2", 8080),)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    run_virtual(main())


def test_the_hosts_of_routes_stand_for_gateways_and_all_others_for_themselves():
    async def main() -> None:
        store = MemoryStore()
        await store.create(endpoint_slice("gateway", "10.0.0.1"))
        peers = Peers(store, RELEASE, routes=True, metrics=Metrics())
        following = asyncio.create_task(peers.run())
        await settled()
        other = ("database.default.svc.cluster.local", 5432)
        where = peers.places(HELLO)
        assert where is not None
        assert where() == (HELLO,), "nothing of ours yet"
        made = await store.create(route())
        await settled()
        assert where() == (("10.0.0.1", 8080),), "one that was asked for before the Route was known"
        assert places(peers, other) == (other,)
        assert places(peers, ("hello-1.default.revision.localhost", 80)) == (("10.0.0.1", 8080),)
        assert peers.places(("10.1.2.3", 8080)) is None
        await store.delete(made.key)
        await settled()
        assert where() == (HELLO,)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    run_virtual(main())


async def test_a_client_asks_the_platforms_pods_by_what_peers_knows_of_them():
    async def answer(peer: Raw) -> None:
        await peer.until(b"\r\n\r\n")
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    store = MemoryStore()
    async with raw_server(answer) as (address, _):
        await store.create(endpoint_slice("gateway", address[0], port=address[1]))
        await store.create(route())
        peers = Peers(store, RELEASE, routes=True, metrics=Metrics())
        client = Client(places=peers.places)
        async with running(peers=peers.run()):
            await peers.synced.wait()
            answered = await client.request(HELLO, b"GET", b"/", HOST, b"", timeout_s=DEADLINE_S, max_bytes=2)
            await client.close()
    assert answered.body == b"ok"


def test_a_route_is_called_by_its_names_in_the_cluster_and_by_those_of_its_urls():
    assert set(hosts_of(route(tags=("blue",), url="http://hello.default.apps.example.com"))) == {
        "hello.default.svc.cluster.local",
        "blue-hello.default.svc.cluster.local",
        "hello.default.apps.example.com",
        "blue-hello.default.apps.example.com",
    }


# ---- names


def decided(route_: Resource, *services: Resource) -> tuple[Any, ...]:
    view = Index()
    for one in (route_, *services):
        view.put(one)
    return RouteNames(gateway=GATEWAY_HOST).decide(route_, view, 0.0).actions


def service(name: str, *, owner: Resource | None = None) -> Resource:
    owners = (owner_reference(owner),) if owner is not None else ()
    meta = ObjectMeta(name=name, namespace="default", uid=f"uid-{name}", owner_references=owners)
    return Resource(ref=SERVICE, meta=meta, body={"spec": {"type": "ClusterIP"}})


def test_a_route_and_each_of_its_tags_has_a_name_that_leads_to_the_gateway():
    made = decided(route(tags=("blue", "green")))
    assert [action.resource.meta.name for action in made] == ["hello", "blue-hello", "green-hello"]
    for action in made:
        assert isinstance(action, Apply)
        assert action.resource.spec == {
            "type": "ExternalName",
            "externalName": GATEWAY_HOST,
            "sessionAffinity": "None",
        }
        assert action.resource.meta.owner_references[0].uid == "uid-1"


def test_a_service_of_that_name_that_is_somebody_elses_stays_as_it_is():
    assert decided(route(), service("hello")) == ()


def test_the_name_of_a_tag_that_is_gone_goes():
    owner = route()
    _, removed = decided(owner, service("blue-hello", owner=owner))
    assert removed == Delete(Key(SERVICE, "default", "blue-hello"), "uid-blue-hello")


def test_a_service_that_changes_touches_the_route_that_has_it_or_waits_for_its_name():
    view, owner = Index(), route()
    view.put(owner)
    related = RouteNames(gateway=GATEWAY_HOST).related[SERVICE]
    assert list(related(service("blue-hello", owner=owner), view)) == [owner.key]
    assert list(related(service("hello"), view)) == [owner.key]
    assert list(related(service("other"), view)) == []


# ---- leading


def test_the_label_on_the_pod_follows_who_leads_through_an_outage():
    async def main() -> None:
        store = FaultyStore(MemoryStore())
        meta = ObjectMeta(name="control-1", namespace="platform", labels={"app": "x", LEADER_LABEL: "true"})
        pod = await store.create(Resource(ref=POD, meta=meta, body={"spec": {}}))

        async def labels() -> dict[str, str]:
            return (await store.inner.get(pod.key)).meta.labels

        label = LeaderLabel(store, "platform", "control-1")
        running = asyncio.create_task(label.run())
        await settled()
        assert await labels() == {"app": "x", LEADER_LABEL: "false"}, "of a container before this one"
        store.go_down()
        label.set(True)
        await settled()
        store.come_up()
        await asyncio.sleep(5)
        assert (await labels())[LEADER_LABEL] == "true"
        label.set(False)
        await settled()
        assert (await labels())[LEADER_LABEL] == "false"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtual(main())


# ---- probes


def test_a_pod_is_alive_while_it_turns_and_ready_while_it_should_get_requests():
    health = Health(Metrics())

    def asked(path: str) -> tuple[int, bytes]:
        exchange = ask(health.handler, path, method="GET")
        return exchange.status, exchange.body

    assert asked("/healthz") == (200, b"ok\n")
    assert asked("/readyz") == (503, b"starting\n")
    health.problem = str
    assert asked("/readyz") == (200, b"ok\n")
    health.stop()
    assert asked("/readyz") == (503, b"stopping\n")
    assert asked("/healthz") == (200, b"ok\n")
    assert asked("/")[0] == 404


def test_what_is_missing_at_the_start_is_waited_for_and_the_pod_says_for_what():
    async def main() -> None:
        async with AsyncExitStack() as stack:
            frame = Frame(Settings(role="ingress", pod="p"), Ending(20.0), stack)
            answers: list[str | Unavailable] = [Unavailable("Redis is away."), Unavailable("Redis is away."), "log"]

            async def attempt() -> str:
                answer = answers.pop(0)
                if isinstance(answer, Unavailable):
                    raise answer
                return answer

            waiting = asyncio.create_task(frame.once("the event log", attempt))
            await asyncio.sleep(0.01)
            assert frame.health.problem() == "Redis is away."
            async with asyncio.timeout(10):
                assert await waiting == "log"

    run_virtual(main())


@pytest.mark.parametrize(
    ("drain_s", "expected_s"), [pytest.param(20.0, 5.0, id="asked"), pytest.param(0.0, 0.0, id="told not to wait")]
)
def test_a_pod_that_leaves_is_not_ready_and_serves_on_until_all_have_heard(drain_s: float, expected_s: float):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            frame = Frame(Settings(role="gateway", pod="p", notice_s=5.0), Ending(drain_s), stack)
            frame.health.problem = str
            began_s = loop.time()
            leaving = asyncio.create_task(frame.give_notice())
            await asyncio.sleep(0)
            assert ask(frame.health.handler, "/readyz", method="GET").body == b"stopping\n"
            await leaving
            assert loop.time() - began_s == pytest.approx(expected_s)

    run_virtual(main())


# ---- the command line


def test_a_roles_settings_are_what_the_command_line_and_its_variables_say(monkeypatch):
    told: list[Settings] = []
    monkeypatch.setattr("penstock.cluster.process.run_role", lambda compose, settings: told.append(settings))
    words = ["ingress", "--ingress-service=other-ingress", "--notice=1", "--log-name=one", "--port=1234"]
    words.append("--log-max-bytes=1000")
    variables = {
        "PENSTOCK_POD": "ingress-7",
        "PENSTOCK_NAMESPACE": "platform",
        "PENSTOCK_REDIS_URL": "redis://r:6379/0",
        "PENSTOCK_LOG_MAX_AGE": "60",
        "PENSTOCK_LOG_UNDELIVERED_AGE": "120",
        "PENSTOCK_LOG_FULL_BYTES": "2000",
    }
    done = CliRunner().invoke(main, ["cluster", *words], env=variables)
    assert done.exit_code == 0, done.output
    (settings,) = told
    assert (settings.role, settings.pod, settings.port, settings.notice_s) == ("ingress", "ingress-7", 1234, 1.0)
    assert settings.release.ingress_url == "http://other-ingress.platform.svc.cluster.local"
    assert (settings.event_log.redis_url, settings.event_log.name) == ("redis://r:6379/0", "one")
    assert settings.event_log.retention == Retention(
        max_age_s=60.0, max_bytes=1000, undelivered_age_s=120.0, full_bytes=2000
    )
    assert settings.data == Path("/data")


def test_a_log_that_would_be_full_before_anything_goes_is_refused():
    words = ["dispatcher", "--log-max-bytes=2000", "--log-full-bytes=1000"]
    done = CliRunner().invoke(main, ["cluster", *words], env={})
    assert done.exit_code == 2
    assert "1000 is less than --log-max-bytes, 2000" in " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize("kind", ["redis", "kafka"])
def test_a_log_on_a_server_keeps_events_as_the_settings_say(kind: LogKind):
    retention = Retention(max_bytes=1000, full_bytes=2000)
    told = EventLogSettings(kind=kind, redis_url="redis://r:1/0", kafka_servers="k:1", retention=retention)
    log = make_log(kind, Settings(role="ingress", pod="ingress-7", event_log=told))
    assert isinstance(log, RedisLog | KafkaLog)
    assert log.retention is retention
