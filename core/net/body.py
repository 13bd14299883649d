"""Sinks for handlers that do not stream: gather a whole body, or ignore it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from core.net.types import BodySink, Exchange, RequestHead
from core.net.wire import PLAIN_TEXT

__all__ = ["IGNORE", "collect"]


class _Ignore:
    """Hears everything and does nothing."""

    __slots__ = ()

    def body(self, chunk: bytes) -> None:
        return None

    def end(self) -> None:
        return None

    def lost(self) -> None:
        return None

    def writable(self, ready: bool) -> None:
        return None


#: For handlers that answered at once: after a complete answer a sink hears nothing more.
IGNORE: Final[BodySink] = _Ignore()


class _Collector(_Ignore):
    __slots__ = ("_chunks", "_exchange", "_left", "_lost", "_max_bytes", "_then")

    def __init__(
        self, exchange: Exchange, max_bytes: int, then: Callable[[bytes], None], lost: Callable[[], None] | None
    ) -> None:
        self._exchange = exchange
        self._max_bytes = max_bytes
        self._left = max_bytes
        self._then = then
        self._lost = lost
        self._chunks: list[bytes] = []

    def body(self, chunk: bytes) -> None:
        self._left -= len(chunk)
        if self._left < 0:
            self._chunks.clear()
            _answer_413(self._exchange, self._max_bytes)
            return
        self._chunks.append(chunk)

    def end(self) -> None:
        chunks = self._chunks
        self._then(chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def lost(self) -> None:
        self._chunks.clear()
        if self._lost is not None:
            self._lost()


def collect(
    exchange: Exchange,
    *,
    max_bytes: int,
    then: Callable[[bytes], None],
    head: RequestHead | None = None,
    lost: Callable[[], None] | None = None,
) -> BodySink:
    """Gather the whole body and call `then` with it; over `max_bytes` answer 413 and never call it.

    With `head` given a stated length over the limit is refused before any of the body is read. `lost` is called when
    the client leaves before its answer was complete, whether or not `then` was called by then.
    """
    if head is not None and head.content_length is not None and head.content_length > max_bytes:
        _answer_413(exchange, max_bytes)
        return IGNORE
    return _Collector(exchange, max_bytes, then, lost)


def _answer_413(exchange: Exchange, max_bytes: int) -> None:
    text = f"The body is larger than {max_bytes} bytes.\n".encode()
    exchange.respond(413, [PLAIN_TEXT], text)
