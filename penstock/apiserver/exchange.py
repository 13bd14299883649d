"""One request and its answer as values, and the ASGI edge that reads and writes them.

The REST verbs work on `ApiRequest` and return `Reply` (or a stream): bytes in, bytes out, no model layer between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope, Send

from core.limits import MAX_RESOURCE_BYTES
from core.telemetry import Counter, Metrics
from penstock.apiserver.statuses import Refused, Status, bad_request

__all__ = [
    "JSON",
    "MAX_BODY_BYTES",
    "ApiRequest",
    "Reply",
    "RequestCounters",
    "Stream",
    "json_reply",
    "read_request",
    "send_reply",
    "status_reply",
]

JSON: Final = "application/json"

#: A request body. YAML and JSON patches are longer than the resource they make; Kubernetes takes 3 MiB.
MAX_BODY_BYTES: Final = 2 * MAX_RESOURCE_BYTES

#: Of a body that is too large, this much is read and dropped so that its sender gets to read the answer.
_MAX_DRAINED_BYTES: Final = 32 * 1024 * 1024

#: Query parameters in one request; the API knows about twenty.
_MAX_QUERY_FIELDS: Final = 64

_ENCODER: Final = msgspec.json.Encoder()


class ApiRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Header values are text, "" where missing; of a repeated query parameter the last counts."""

    method: str
    path: str
    query: Mapping[str, str] = {}
    accept: str = ""
    content_type: str = ""
    user_agent: str = ""
    body: bytes = b""

    def flag(self, name: str) -> bool:
        """A boolean parameter as Go's strconv.ParseBool takes it. Raises Refused (400) for other words."""
        text = self.query.get(name, "")
        if text in ("1", "t", "T", "true", "TRUE", "True"):
            return True
        if text in ("", "0", "f", "F", "false", "FALSE", "False"):
            return False
        raise bad_request(f"The query parameter {name} must be true or false, not {text!r}.")

    def number(self, name: str) -> int | None:
        """A parameter that counts something. Raises Refused (400) unless it is a whole number from 0."""
        text = self.query.get(name, "")
        if not text:
            return None
        if not (text.isascii() and text.isdigit()):
            raise bad_request(f"The query parameter {name} must be a whole number from 0, not {text!r}.")
        return int(text)


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A complete answer."""

    code: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Stream(Protocol):
    """An answer that goes on: it writes itself and returns when it is over."""

    async def run(self, receive: Receive, send: Send) -> None: ...


def json_reply(value: Any, *, code: int = 200, content_type: str = JSON) -> Reply:
    return Reply(code=code, body=_ENCODER.encode(value), content_type=content_type)


def status_reply(status: Status, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    retry_after_s = status.details.retry_after_seconds
    if retry_after_s:
        headers = (*headers, (b"retry-after", str(retry_after_s).encode()))
    return Reply(code=status.code, body=_ENCODER.encode(status), headers=headers)


async def read_request(scope: Scope, receive: Receive) -> ApiRequest:
    """The whole request. Raises Refused (413) where its body is over MAX_BODY_BYTES."""
    accept = content_type = user_agent = ""
    for name, value in scope["headers"]:
        if name == b"accept":
            accept = f"{accept},{value.decode('latin-1')}" if accept else value.decode("latin-1")
        elif name == b"content-type":
            content_type = value.decode("latin-1")
        elif name == b"user-agent":
            user_agent = value.decode("latin-1")
    method = scope["method"]
    return ApiRequest(
        method=method,
        path=scope["path"],
        query=_query(scope["query_string"]),
        accept=accept,
        content_type=content_type,
        user_agent=user_agent,
        body=b"" if method == "GET" else await _read_body(receive),
    )


def _query(raw: bytes) -> dict[str, str]:
    if not raw:
        return {}
    try:
        return dict(parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS))
    except ValueError as error:
        raise bad_request(f"The query string cannot be read: {error}.") from error


async def _read_body(receive: Receive) -> bytes:
    chunks, size, more = [], 0, True
    while more and size <= _MAX_DRAINED_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise bad_request("The connection ended before the whole body had come.")
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if size <= MAX_BODY_BYTES:
            chunks.append(chunk)
        else:
            chunks.clear()
    if size > MAX_BODY_BYTES:
        message_text = f"The request body is larger than the limit of {MAX_BODY_BYTES} bytes."
        raise Refused(Status.failure(413, message_text))
    return b"".join(chunks)


async def send_reply(reply: Reply, send: Send, *, head_only: bool = False) -> None:
    headers = [
        (b"content-type", reply.content_type.encode("latin-1")),
        (b"content-length", str(len(reply.body)).encode()),
        *reply.headers,
    ]
    await send({"type": "http.response.start", "status": reply.code, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head_only else reply.body})


class RequestCounters:
    """Requests by verb and answer; the children are looked up once each."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counters: dict[tuple[str, int], Counter] = {}

    def count(self, verb: str, code: int) -> None:
        counter = self._counters.get((verb, code))
        if counter is None:
            counter = self._metrics.counter(
                "penstock_apiserver_requests_total",
                "Requests to the resource API by verb and answer.",
                verb=verb,
                code=str(code),
            )
            self._counters[(verb, code)] = counter
        counter.value += 1
