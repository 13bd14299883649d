"""A gateway on virtual time, with in-memory stand-ins for the two ends of core.net: clients and instances."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from core.net.types import (
    Address,
    BodySink,
    Headers,
    NetError,
    RequestHead,
    Response,
    ResponseListener,
)
from core.telemetry import Metrics
from serving.answer import Answer
from serving.demand import DemandReporter
from serving.gateway import Gateway
from serving.routing import Endpoint, Return, RevisionKey, RevisionLimits, RouteTarget, RoutingTable, Snapshot
from tests.support.virtual_time import run_virtual

APP = RevisionKey("shop", "app-1")
NEXT = RevisionKey("shop", "app-2")
HOST = b"app.shop.localhost:8080"


@dataclass
class Attempt:
    """One request at an instance: `core.net.types.UpstreamRequest`, driven by the test through `listener`."""

    address: Address
    method: bytes
    target: bytes
    headers: Headers
    listener: ResponseListener
    encoded: bytes = b""
    written: list[bytes] = field(default_factory=list)
    ended: bool = False
    cancelled: bool = False
    paused: bool = False

    def write(self, chunk: bytes) -> None:
        self.written.append(chunk)

    def end(self) -> None:
        self.ended = True

    def cancel(self) -> None:
        self.cancelled = True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def answer(self, status: int = 200, body: bytes = b"ok") -> None:
        """As it comes in several reads; `answer_whole` is how it comes in one."""
        self.listener.head(status, [(b"x-from", self.address[0].encode())], len(body))
        if body:
            self.listener.body(body)
        self.listener.end()

    def answer_whole(self, status: int = 200, body: bytes = b"ok") -> None:
        assert isinstance(self.listener, Answer)
        self.listener.whole(status, [(b"x-from", self.address[0].encode())], body)


class Outside:
    """A client of the gateway: `core.net.types.Exchange`. `status` is None until an answer began."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}
        self.content = b""
        self.complete = False
        self.aborted = False
        self.paused = False
        self.told_to_proceed = False
        self.sink: BodySink | None = None

    def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        self.start(status, headers, len(body))
        self.content = body
        self.end()

    def start(self, status: int, headers: Headers, content_length: int | None) -> None:
        assert self.status is None, "answered twice"
        self.status = status
        self.headers = dict(headers)

    def write(self, chunk: bytes) -> None:
        assert self.status is not None
        assert not self.complete
        self.content += chunk

    def end(self) -> None:
        assert not self.complete
        assert not self.aborted
        self.complete = True

    def abort(self) -> None:
        assert not self.complete
        self.aborted = True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def proceed(self) -> None:
        self.told_to_proceed = True

    @property
    def reason(self) -> bytes | None:
        return self.headers.get(b"penstock-reason")

    def leave(self) -> None:
        assert self.sink is not None
        self.sink.lost()


class World:
    """A gateway with its two ends in memory."""

    def __init__(self, *, broker: Address | None = None, synced: bool = True) -> None:
        loop = asyncio.get_running_loop()
        self.metrics = Metrics()
        self.attempts: list[Attempt] = []
        self.reports: list[tuple[float, str, int]] = []
        self.reporter = DemandReporter(
            gateway_id="g", address=("127.0.0.1", 8082), fetch=self._fetch, monotonic=loop.time
        )
        self.gateway = Gateway(
            send=self._send,
            reporter=self.reporter,
            metrics=self.metrics,
            rng=random.Random(1),
            monotonic=loop.time,
            broker=broker,
        )
        self.limits: dict[RevisionKey, RevisionLimits] = {APP: RevisionLimits()}
        self.split: list[tuple[RevisionKey, int]] = [(APP, 100)]
        self.endpoints: dict[RevisionKey, tuple[Endpoint, ...]] = {}
        self.peers: frozenset[str] = frozenset()
        #: What was reported, as it is on the wire, and the instances that were said to be given back.
        self.demand: list[dict[str, Any]] = []
        self.returned: set[str] = set()
        if synced:
            self.swap()

    def swap(self, *, peers: Iterable[str] | None = None, returned: Iterable[str] = ()) -> None:
        """Go over to what is set; `peers` are the hosts of gateways, `returned` instances that are asked back."""
        if peers is not None:
            self.peers = frozenset(peers)
        target = RouteTarget.of("shop/app", self.split)
        self.gateway.swap(
            Snapshot(
                table=RoutingTable({b"app.shop.localhost": target} if self.split else {}),
                limits=dict(self.limits),
                endpoints=dict(self.endpoints),
                returns=frozenset(Return(APP.namespace, APP.name, name, "1") for name in returned),
                peers=self.peers,
            )
        )

    def instances(self, *names: str, of: RevisionKey = APP, limits: RevisionLimits | None = None) -> None:
        self.endpoints[of] = tuple(Endpoint(name, (name, 80)) for name in names)
        if limits is not None:
            self.limits[of] = limits
        self.swap()

    def ask(
        self,
        method: bytes = b"GET",
        *,
        host: bytes = HOST,
        length: int | None = 0,
        target: bytes = b"/",
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> Outside:
        outside = Outside()
        head = RequestHead(method, target, host, [(b"host", host), *headers], length, "10.0.0.9")
        outside.sink = self.gateway.handle(head, outside)
        if length == 0:
            outside.sink.end()
        return outside

    def value(self, line: str) -> float:
        """The sample of the metric whose name and labels are `line`."""
        for sample in self.metrics.expose().splitlines():
            name, _, value = sample.rpartition(" ")
            if name == line:
                return float(value)
        raise AssertionError(f"no sample {line} in {self.metrics.expose()}")

    def close(self) -> None:
        self.reporter.close()

    def _send(
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        content_length: int | None,
        listener: ResponseListener,
        *,
        encoded_headers: bytes = b"",
    ) -> Attempt:
        self.attempts.append(Attempt(address, method, target, headers, listener, encoded_headers))
        return self.attempts[-1]

    def _fetch(
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        *,
        timeout_s: float,
        max_bytes: int,
        then: Callable[[Response | NetError], None],
    ) -> Callable[[], None]:
        report = msgspec.json.decode(body)
        self.demand += report["revisions"]
        self.returned.update(each["name"] for each in report.get("returned", ()))
        for told in report["revisions"]:
            self.reports.append((asyncio.get_running_loop().time(), told["name"], told["queued"]))
        handle = asyncio.get_running_loop().call_soon(then, Response(202, [], b""))
        return handle.cancel


def virtually(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run the coroutine function `test` on virtual time."""

    async def main() -> None:
        await test()

    def run() -> None:
        run_virtual(main())

    run.__name__ = test.__name__  # type: ignore[attr-defined]  # a function has a name
    return run
