"""A streamed answer as lines, with back-pressure: what a watch over the Kubernetes REST protocol reads."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from core.control.api_status import error_of_answer
from core.errors import PenstockError, Unavailable
from core.limits import MAX_RESOURCE_BYTES
from core.net.types import Headers, NetError, UpstreamRequest

__all__ = ["LineStream"]

#: Lines that wait to be taken, together: at twice the largest resource the peer is stopped.
_PAUSE_BYTES: Final = 2 * MAX_RESOURCE_BYTES

#: One line: a resource as JSON, whose encoding by another server may be longer than ours, and what is around it.
_MAX_LINE_BYTES: Final = 2 * MAX_RESOURCE_BYTES

#: An error's body, which is read whole.
_MAX_ERROR_BYTES: Final = 64 * 1024


class LineStream:
    """A `ResponseListener` whose lines one coroutine takes. Raises what ended the stream once they are all taken."""

    __slots__ = ("_ended", "_error", "_held", "_lines", "_partial", "_paused", "_status", "_waiter", "request")

    def __init__(self) -> None:
        #: Set by the owner as soon as the request is sent; the client calls nothing before that.
        self.request: UpstreamRequest | None = None
        self._status = 0
        self._lines: deque[bytes] = deque()
        self._held = 0
        self._partial = b""
        self._paused = False
        self._ended = False
        self._error: PenstockError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def next_line(self) -> bytes | None:
        """The next line without its end; None at the end. Raises PenstockError where the stream failed."""
        while not self._lines:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        line = self._lines.popleft()
        self._held -= len(line)
        if self._paused and not self._lines and self.request is not None:
            self._paused = False
            self.request.resume()
        return line

    def close(self) -> None:
        """Give the stream up. Idempotent."""
        if self.request is not None and not self._ended:
            self._ended = True
            self.request.cancel()

    # ---- core.net.types.ResponseListener

    def head(self, status: int, headers: Headers, content_length: int | None) -> None:
        self._status = status

    def body(self, chunk: bytes) -> None:
        if self._status != 200:
            self._partial = (self._partial + chunk)[:_MAX_ERROR_BYTES]
            return
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if len(self._partial) > _MAX_LINE_BYTES:
            self._fail(Unavailable(f"The API server sent a line of more than {_MAX_LINE_BYTES} bytes in a watch."))
            if self.request is not None:
                self.request.cancel()
            return
        for line in lines:
            if line:
                self._lines.append(line)
                self._held += len(line)
        if self._held > _PAUSE_BYTES and not self._paused and self.request is not None:
            self._paused = True
            self.request.pause()
        if lines:
            self._wake()

    def end(self) -> None:
        if self._status != 200:
            self._fail(error_of_answer(self._status, self._partial))
            return
        self._ended = True
        self._wake()

    def failed(self, error: NetError) -> None:
        unavailable = Unavailable(f"The API server's watch broke off: {error}")
        unavailable.__cause__ = error
        self._fail(unavailable)

    def writable(self, ready: bool) -> None:
        return None

    def _fail(self, error: PenstockError) -> None:
        self._ended = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
