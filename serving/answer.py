"""The answer to one attempt, on its way from an instance or through another gateway to the client."""

from __future__ import annotations

from typing import Final, Protocol

from core.net.types import Exchange, Headers, NetError, RequestHead
from core.net.wire import ReadyHeaders
from serving.forwarding import answer_headers
from serving.handover import is_given_back

__all__ = ["Answer", "PeerAnswer", "refuse"]

#: An answer of known length up to this is put together and written to the client at once.
MAX_WHOLE_ANSWER_BYTES: Final = 64 * 1024

_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")


class Asked(Protocol):
    """The request that is answered, as its answer needs it: a `serving.lane.Forward`."""

    head: RequestHead
    exchange: Exchange
    #: It wants to be told who served it.
    asked: bool

    def told(self) -> ReadyHeaders:
        """What it is told then."""
        ...

    def answering(self) -> None:
        """The head of the answer is there."""
        ...

    def answered(self, status: int) -> None:
        """The whole answer went to the client."""
        ...

    def failed(self, error: NetError) -> None:
        """This attempt is over."""
        ...

    def accepted(self) -> None:
        """The other gateway begins with the request."""
        ...

    def given_back(self) -> None:
        """The other gateway has no instance any more."""
        ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Answer:
    """One attempt's answer (core.net's WholeResponseListener)."""

    __slots__ = ("_content", "_exchange", "_forward", "_headers", "_length", "_status", "started")

    def __init__(self, forward: Asked) -> None:
        self._forward = forward
        self._exchange = forward.exchange
        self._status = 0
        self._headers: Headers = []
        self._length = 0
        self._content = b""
        #: The client has been sent the head.
        self.started = False

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self._exchange.respond(status, self._passed_on(headers), body)
        self._forward.answered(status)

    def head(self, status: int, headers: Headers, content_length: int | None) -> None:
        forward = self._forward
        forward.answering()
        self._status = status
        headers = self._passed_on(headers)
        if content_length is None or content_length > MAX_WHOLE_ANSWER_BYTES or forward.head.method == b"HEAD":
            self.started = True
            self._exchange.start(status, headers, content_length)
        else:
            # Many servers write head and body apart; a short answer still goes out in one piece.
            self._headers = headers
            self._length = content_length

    def body(self, chunk: bytes) -> None:
        if not self.started:
            if len(chunk) == self._length:
                self._content = chunk
                return
            self.started = True
            self._exchange.start(self._status, self._headers, self._length)
        self._exchange.write(chunk)

    def end(self) -> None:
        if self.started:
            self._exchange.end()
        else:
            self._exchange.respond(self._status, self._headers, self._content)
        self._forward.answered(self._status)

    def failed(self, error: NetError) -> None:
        self._forward.failed(error)

    def writable(self, ready: bool) -> None:
        if ready:
            self._forward.resume()
        else:
            self._forward.pause()

    def _passed_on(self, headers: Headers) -> Headers:
        headers = answer_headers(headers)
        forward = self._forward
        return forward.told().before(headers) if forward.asked else headers


class PeerAnswer(Answer):
    """The answer of another gateway, or through it (core.net's ProceedListener as well)."""

    __slots__ = ()

    def proceed(self) -> None:
        self._forward.accepted()

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        if is_given_back(status, headers):
            self._forward.given_back()
        else:
            super().whole(status, headers, body)

    def head(self, status: int, headers: Headers, content_length: int | None) -> None:
        if is_given_back(status, headers):
            self._forward.given_back()
        else:
            super().head(status, headers, content_length)


def refuse(
    exchange: Exchange,
    status: int,
    reason: str,
    text: str,
    *,
    retry_after_s: float | None = None,
    told: ReadyHeaders | None = None,
) -> None:
    """Answer in the gateway's own name: one sentence, and the reason as a word in ``penstock-reason``."""
    headers: Headers = [*(told.headers if told is not None else ()), _TEXT, (b"penstock-reason", reason.encode())]
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(retry_after_s))))
    exchange.respond(status, headers, text.encode() + b"\n")
