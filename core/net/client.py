"""The HTTP/1.1 client of the hot path: keep-alive pools per address, no task per request."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable

from core.net.bounds import ClientLimits
from core.net.heads import ResponseHeads
from core.net.pool import Pool
from core.net.types import (
    Address,
    Headers,
    NetError,
    Places,
    PlacesOf,
    Response,
    ResponseListener,
    ResponseTimeout,
    ResponseTooLarge,
    UpstreamRequest,
)
from core.net.upstream import Upstream
from core.net.wire import check_target, header_lines

__all__ = ["Client", "ClientLimits"]

_log = logging.getLogger(__name__)

#: How often time-outs of whole requests are looked at while there are any: their accuracy.
DEADLINE_SWEEP_S = 0.1

#: How often idle connections are looked at while there are connections.
IDLE_SWEEP_S = 1.0

#: Methods for which "no body" is stated with Content-Length: 0 (RFC 9110, 8.6).
_BODY_METHODS = frozenset((b"POST", b"PUT", b"PATCH"))


def _itself(_: Address) -> Places | None:
    return None


class Client:
    """Sends requests from the loop's thread. Its owner closes it.

    `tls` says whom to trust where TLS is asked for; without it, the system's authorities, read when first needed.
    `places` says which addresses stand for several equal listeners (see `core.net.pool`).
    """

    def __init__(
        self,
        *,
        limits: ClientLimits | None = None,
        tls: ssl.SSLContext | None = None,
        places: PlacesOf = _itself,
    ) -> None:
        self.limits = limits or ClientLimits()
        self.places = places
        self.heads = ResponseHeads()
        self.closed = False
        #: The loop's time as of the last idle sweep.
        self.now = 0.0
        self._pools: dict[tuple[Address, bool], Pool] = {}
        self._tls = tls
        self._idle_timer: asyncio.TimerHandle | None = None
        self._fetches: set[_Fetch] = set()
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None

    def send(
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        content_length: int | None,
        listener: ResponseListener,
        *,
        encoded_headers: bytes = b"",
        tls: bool = False,
    ) -> UpstreamRequest:
        """Send a request whose body the caller writes (None: chunked; 0: none, and `end` need not be called).

        `headers` include Host; framing headers in them are left out. `encoded_headers` are ready lines, each ended by
        CRLF. The listener hears nothing before this returns. There is no time-out but that of connecting. Raises
        ValueError where a header or the target holds characters that would end its line.
        """
        check_target(method, target)
        framing = _framing(method, content_length)
        first = b"%b %b HTTP/1.1\r\n%b%b%b\r\n" % (method, target, header_lines(headers), encoded_headers, framing)
        request = Upstream(listener, first, head_only=method == b"HEAD", content_length=content_length)
        self._pool(address, tls).submit(request)
        return request

    def fetch(  # noqa: PLR0913 - a request has this many parts
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
        encoded_headers: bytes = b"",
        tls: bool = False,
    ) -> Callable[[], None]:
        """Send a whole request; `then` hears the whole answer (of at most `max_bytes`) or why there is none.

        `timeout_s` is for all of it, connecting included, kept to a tenth of a second. The function returned gives
        the request up: `then` hears nothing any more. `then` is never called before this returns.
        """
        check_target(method, target)
        framing = _framing(method, len(body))
        lines = header_lines(headers)
        first = b"%b %b HTTP/1.1\r\n%b%b%b\r\n%b" % (method, target, lines, encoded_headers, framing, body)
        pool = self._pool(address, tls)
        loop = asyncio.get_running_loop()
        fetch = _Fetch(self._fetches, then, max_bytes, loop.time() + timeout_s)
        request = fetch.request = Upstream(fetch, first, head_only=method == b"HEAD", content_length=0)
        self._fetches.add(fetch)
        if self._deadline_timer is None:
            self._deadline_timer = loop.call_later(DEADLINE_SWEEP_S, self._sweep_deadlines)
        pool.submit(request)
        return fetch.cancel

    async def request(  # noqa: PLR0913 - as fetch
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        *,
        timeout_s: float,
        max_bytes: int,
        encoded_headers: bytes = b"",
        tls: bool = False,
    ) -> Response:
        """`fetch` for coroutines. Raises NetError."""
        done: asyncio.Future[Response | NetError] = asyncio.get_running_loop().create_future()

        def then(result: Response | NetError) -> None:
            if not done.done():
                done.set_result(result)

        cancel = self.fetch(
            address,
            method,
            target,
            headers,
            body,
            timeout_s=timeout_s,
            max_bytes=max_bytes,
            then=then,
            encoded_headers=encoded_headers,
            tls=tls,
        )
        try:
            result = await done
        except asyncio.CancelledError:
            cancel()
            raise
        if isinstance(result, NetError):
            raise result
        return result

    async def close(self) -> None:
        """Fail what is under way, close every connection, and wait until they are."""
        self.closed = True
        self._emptied = asyncio.Event()
        for timer in (self._idle_timer, self._deadline_timer):
            if timer is not None:
                timer.cancel()
        tasks = [task for pool in list(self._pools.values()) for task in pool.shut()]
        await asyncio.gather(*tasks, return_exceptions=True)
        for pool in list(self._pools.values()):
            self.tidy(pool)
        while self._pools:
            self._emptied.clear()
            await self._emptied.wait()

    # ---- pools

    def _pool(self, address: Address, tls: bool) -> Pool:
        key = (address, tls)
        pool = self._pools.get(key)
        if self.closed:
            raise RuntimeError("the client is closed")
        if pool is None:
            pool = self._pools[key] = Pool(self, address, tls)
            if self._idle_timer is None:
                loop = asyncio.get_running_loop()
                self.now = loop.time()
                self._idle_timer = loop.call_later(IDLE_SWEEP_S, self._sweep_idle)
        return pool

    def tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def tidy(self, pool: Pool) -> None:
        """Forget a pool that has nothing left: addresses come and go with instances."""
        if pool.empty and self._pools.pop(pool.key, None) is not None and self._emptied is not None:
            self._emptied.set()

    # ---- sweeps

    def _sweep_idle(self) -> None:
        loop = asyncio.get_running_loop()
        self._idle_timer = None
        self.now = loop.time()
        for pool in list(self._pools.values()):
            pool.sweep(self.now - self.limits.idle_timeout_s)
        if self._pools:
            self._idle_timer = loop.call_later(IDLE_SWEEP_S, self._sweep_idle)

    def _sweep_deadlines(self) -> None:
        loop = asyncio.get_running_loop()
        self._deadline_timer = None
        now = loop.time()
        for fetch in [fetch for fetch in self._fetches if fetch.deadline <= now]:
            fetch.expire()
        if self._fetches:
            self._deadline_timer = loop.call_later(DEADLINE_SWEEP_S, self._sweep_deadlines)


class _Fetch:
    """The listener of a whole request."""

    __slots__ = ("_chunks", "_fetches", "_headers", "_left", "_status", "_then", "deadline", "request")

    #: None once it is over: the two refer to each other, and would wait for the garbage collector otherwise.
    request: Upstream | None

    def __init__(
        self,
        fetches: set[_Fetch],
        then: Callable[[Response | NetError], None],
        max_bytes: int,
        deadline: float,
    ) -> None:
        self._fetches = fetches
        self._then = then
        self._left = max_bytes
        self._status = 0
        self._headers: Headers = []
        self._chunks: list[bytes] = []
        self.deadline = deadline

    def head(self, status: int, headers: Headers, content_length: int | None) -> None:
        self._status = status
        self._headers = headers
        too_large = content_length is not None and content_length > self._left
        if too_large and self.request is not None and not self.request.head_only:
            self._give_up(ResponseTooLarge("The answer is larger than is accepted."))

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        if len(body) > self._left:
            self.failed(ResponseTooLarge("The answer is larger than is accepted."))
            return
        self._fetches.discard(self)
        self.request = None
        self._then(Response(status, headers, body))

    def body(self, chunk: bytes) -> None:
        self._left -= len(chunk)
        if self._left < 0:
            self._give_up(ResponseTooLarge("The answer is larger than is accepted."))
            return
        self._chunks.append(chunk)

    def end(self) -> None:
        self._fetches.discard(self)
        self.request = None
        chunks = self._chunks
        self._then(Response(self._status, self._headers, chunks[0] if len(chunks) == 1 else b"".join(chunks)))

    def failed(self, error: NetError) -> None:
        self._fetches.discard(self)
        self.request = None
        self._then(error)

    def writable(self, ready: bool) -> None:
        return None

    def cancel(self) -> None:
        self._fetches.discard(self)
        request, self.request = self.request, None
        if request is not None:
            request.cancel()

    def expire(self) -> None:
        self._give_up(ResponseTimeout("The answer did not come in time."))

    def _give_up(self, error: NetError) -> None:
        self.cancel()
        try:
            self._then(error)
        except Exception:  # noqa: BLE001 - the request's boundary
            _log.exception("a listener failed on hearing of an error")


def _framing(method: bytes, content_length: int | None) -> bytes:
    if content_length is None:
        return b"transfer-encoding: chunked\r\n"
    if content_length or method in _BODY_METHODS:
        return b"content-length: %d\r\n" % content_length
    return b""
