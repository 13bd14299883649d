"""The whole gateway node: a store to follow, an autoscaler to report to, an instance to reach, clients that wait."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from core.control.memory import MemoryStore
from core.control.port import Change, Listing
from core.errors import Unavailable
from core.net.body import collect
from core.net.client import Client
from core.net.server import HttpServer
from core.net.types import Address, BodySink, Exchange, RequestHead, Response
from core.resources import KindRef, Resource
from core.telemetry import Metrics
from serving.gateways import Identity
from serving.node import CLIENT_LIMITS, GatewayNode
from tests.support.functions import Call, Function, until


class Api(MemoryStore):
    """A store that can go away: lists fail, and watches break at their next change."""

    away = False

    async def list(self, kind: KindRef, namespace: str | None = None) -> Listing:
        if self.away:
            raise Unavailable("The API is away.")
        return await super().list(kind, namespace)

    async def watch(self, kind: KindRef, since: int, namespace: str | None = None) -> AsyncGenerator[Change, None]:
        if self.away:
            raise Unavailable("The API is away.")
        async for change in super().watch(kind, since, namespace):
            if self.away:
                raise Unavailable("The API is away.")
            yield change

    async def put(self, kind: str, api_version: str, name: str, **body: Any) -> None:
        labels = body.pop("labels", {})
        status = body.pop("status", None)
        document = {
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {"name": name, "namespace": "shop", "labels": labels},
            **body,
        }
        created = await self.create(Resource.from_dict(document))
        if status is not None:
            await self.update_status(created.with_status(status))

    async def deploy(self, **spec: Any) -> None:
        """A Revision behind a Route, at zero."""
        await self.put("Revision", "serving.knative.dev/v1", "app-1", spec={"containers": [{"image": "x"}], **spec})
        traffic = [{"revisionName": "app-1", "percent": 100}]
        await self.put("Route", "serving.knative.dev/v1", "app", spec={}, status={"traffic": traffic})

    async def add_instance(self, address: Address, name: str = "app-1-0") -> None:
        await self.put(
            "EndpointSlice",
            "discovery.k8s.io/v1",
            name,
            labels={"serving.knative.dev/revision": "app-1"},
            addressType="IPv4",
            endpoints=[{"addresses": [address[0]], "conditions": {"ready": True}, "targetRef": {"name": name}}],
            ports=[{"name": "http", "port": address[1]}],
        )


class Control:
    """The API port's demand route."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []

    def handle(self, head: RequestHead, exchange: Exchange) -> BodySink:
        assert head.target == b"/penstock/v1/demand"

        def then(body: bytes) -> None:
            self.reports.append(msgspec.json.decode(body))
            exchange.respond(202, [])

        return collect(exchange, max_bytes=1 << 16, then=then)


@asynccontextmanager
async def listening(server: HttpServer) -> AsyncIterator[Address]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    await server.start(sock)
    try:
        yield server.address
    finally:
        await server.drain(0.0)


class Running:
    def __init__(self, api: Api, node: GatewayNode, control: Control) -> None:
        self.api = api
        self.node = node
        self.control = control
        self.client = Client()
        self.gateway: Address = ("", 0)
        self.admin: Address = ("", 0)

    async def ask(self, host: bytes = b"app.shop.localhost:8080", body: bytes = b"hello") -> Response:
        headers = [(b"host", host)]
        return await self.client.request(self.gateway, b"POST", b"/", headers, body, timeout_s=10.0, max_bytes=1 << 20)

    async def look(self, path: bytes) -> Response:
        headers = [(b"host", b"admin")]
        return await self.client.request(self.admin, b"GET", path, headers, b"", timeout_s=10.0, max_bytes=1 << 20)


@asynccontextmanager
async def running() -> AsyncIterator[Running]:
    api, control, metrics = Api(), Control(), Metrics()
    upstreams = Client(limits=CLIENT_LIMITS)
    async with listening(HttpServer(control.handle)) as control_address:
        node = GatewayNode(
            store=api,
            client=upstreams,
            control_address=control_address,
            broker_address=None,
            me=Identity(id="gateway-1"),
            metrics=metrics,
            rng=random.Random(1),
        )
        it = Running(api, node, control)
        async with (
            listening(HttpServer(node.handler)) as it.gateway,
            listening(HttpServer(node.admin_handler)) as it.admin,
        ):
            try:
                yield it
            finally:
                await it.client.close()
                await node.drain(0.0)
                await upstreams.close()


async def hello(call: Call) -> None:
    call.answer(200, b"from the function: " + await call.body())


async def test_a_request_at_zero_wakes_the_autoscaler_and_is_served_once_there_is_an_instance() -> None:
    async with running() as it, Function(hello) as function:
        await it.api.deploy()
        await it.node.start()
        await until(lambda: it.node.synced)
        asked = asyncio.create_task(it.ask())
        await until(lambda: bool(it.control.reports))
        assert it.control.reports[0] == {
            "gateway": "gateway-1",
            "revisions": [{"namespace": "shop", "name": "app-1", "concurrency": 1.0, "rps": 0.0, "queued": 1}],
        }
        await it.api.add_instance(function.endpoint.address)
        assert (await asked).body == b"from the function: hello"


async def test_the_last_table_stays_in_use_while_the_api_is_away_and_the_next_one_follows() -> None:
    async with running() as it, Function(hello) as function:
        await it.api.deploy()
        await it.api.add_instance(function.endpoint.address)
        await it.node.start()
        assert (await _served(it)).status == 200
        it.api.away = True
        await it.api.put("Route", "serving.knative.dev/v1", "other", spec={}, status={"traffic": []})
        for _ in range(5):
            assert (await it.ask()).status == 200
        it.api.away = False
        traffic = {"traffic": [{"revisionName": "app-1", "percent": 100}]}
        await it.api.put("Route", "serving.knative.dev/v1", "late", spec={}, status=traffic)
        await until(lambda: b"late.shop" in it.node.hosts)
        assert (await it.ask(b"late.shop.svc.cluster.local")).status == 200


async def test_an_api_that_is_away_at_the_start_is_waited_for() -> None:
    async with running() as it, Function(hello) as function:
        it.api.away = True
        await it.node.start()
        assert (await it.ask()).status == 503
        assert (await it.look(b"/healthz")).status == 503
        it.api.away = False
        await it.api.deploy()
        await it.api.add_instance(function.endpoint.address)
        assert (await _served(it)).status == 200
        assert (await it.look(b"/healthz")).body == b"ok\n"


async def test_a_resource_that_cannot_be_read_is_logged_once_and_the_rest_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as it, Function(hello) as function:
        await it.api.put("Route", "serving.knative.dev/v1", "bad", spec={}, status={"traffic": "all of it"})
        await it.api.deploy()
        await it.node.start()
        await until(lambda: it.node.synced)
        await it.api.add_instance(function.endpoint.address)
        assert (await it.ask()).status == 200
        assert (await it.ask(b"bad.shop")).status == 404
    said = [record for record in caplog.records if record.name == "serving.node"]
    assert len(said) == 1
    assert 'Route.serving.knative.dev "shop/bad"' in said[0].facts["problem"]  # type: ignore[attr-defined]  # from extra=


async def test_metrics_tell_of_requests_by_revision() -> None:
    async with running() as it, Function(hello) as function:
        await it.api.deploy()
        await it.api.add_instance(function.endpoint.address)
        await it.node.start()
        await _served(it)
        text = (await it.look(b"/metrics")).body.decode()
        assert 'penstock_gateway_requests_total{namespace="shop",revision="app-1",code="2xx"} 1' in text
        assert 'penstock_gateway_requests_in_flight{namespace="shop",revision="app-1"} 0' in text
        assert (await it.look(b"/elsewhere")).status == 404


async def test_a_node_that_drains_says_so_and_ends_its_following() -> None:
    async with running() as it:
        await it.api.deploy()
        await it.node.start()
        await until(lambda: it.node.synced)
        await it.node.drain(1.0)
        answer = await it.look(b"/healthz")
        assert (answer.status, answer.body) == (503, b"stopping\n")


async def test_a_drain_goes_on_serving_what_waits_until_its_instance_comes() -> None:
    async with running() as it, Function(hello) as function:
        await it.api.deploy()
        await it.node.start()
        await until(lambda: it.node.synced)
        asked = asyncio.create_task(it.ask())
        await until(lambda: bool(it.control.reports))
        drained = asyncio.create_task(it.node.drain(10.0))
        assert (await it.look(b"/healthz")).body == b"stopping\n"
        await it.api.add_instance(function.endpoint.address)
        assert (await asked).status == 200
        await drained


async def _served(it: Running) -> Response:
    """The first answer after the table is there."""
    await until(lambda: it.node.synced)
    await until(lambda: b"app.shop" in it.node.hosts)
    return await it.ask()


async def test_a_gateway_that_stops_following_by_a_fault_says_so_and_one_that_drains_does_not() -> None:
    async with running() as it:
        broken = asyncio.ensure_future(it.node.failed())
        await it.node.start()
        await it.node.drain(0.0)
        await asyncio.sleep(0)
        assert not broken.done()
        broken.cancel()
    async with running() as it:

        async def fault(*_: object, **__: object) -> None:
            raise RuntimeError("a fault")

        it.api.list = fault  # type: ignore[method-assign, assignment]
        await it.node.start()
        async with asyncio.timeout(5):
            await it.node.failed()
        assert it.node.problem() == "not following the API"
