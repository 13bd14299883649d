"""What the broker plane's tests share: resources to start from, and subscribers that answer as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from broker.resources import BROKER, TRIGGER
from core.events import CloudEvent, from_http
from core.net.types import Address, Headers, NetError, RequestHead, Response
from core.resources import ObjectMeta, Resource

CREATED = "2023-11-14T22:13:20Z"  # the start of `VirtualClock`


def broker(
    name: str = "default", *, namespace: str = "default", status: Mapping[str, Any] | None = None, **spec: Any
) -> Resource:
    meta = ObjectMeta(name=name, namespace=namespace, uid=f"uid-broker-{name}", generation=1)
    return Resource(ref=BROKER, meta=meta, body={"spec": spec, **({"status": dict(status)} if status else {})})


def trigger(
    name: str,
    uri: str | None = "http://subscriber.test/",
    *,
    namespace: str = "default",
    dead_letter_uri: str | None = None,
    annotations: dict[str, str] | None = None,
    **spec: Any,
) -> Resource:
    """A Trigger as the data plane sees it: its subscriber is resolved to `uri`."""
    meta = ObjectMeta(
        name=name,
        namespace=namespace,
        uid=f"uid-{name}",
        generation=1,
        creation_timestamp=CREATED,
        annotations=annotations or {},
    )
    spec = {"broker": "default", "subscriber": {"uri": uri or "http://unresolved.test/"}, **spec}
    status: dict[str, Any] = {}
    if uri is not None:
        status["subscriberUri"] = uri
    if dead_letter_uri is not None:
        status["deadLetterSinkUri"] = dead_letter_uri
    return Resource(ref=TRIGGER, meta=meta, body={"spec": spec, "status": status})


def binary(event_id: str = "e1", event_type: str = "test.made", **extensions: str) -> Headers:
    """The headers of a binary-mode event."""
    attributes = {"specversion": "1.0", "id": event_id, "source": "/test", "type": event_type, **extensions}
    return [(b"content-type", b"application/json"), *((f"ce-{n}".encode(), v.encode()) for n, v in attributes.items())]


@dataclass
class Answer:
    """What a subscriber does with one request: answer after a while, or fail."""

    status: int = 202
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    after_s: float = 0.01
    error: NetError | None = None


@dataclass
class Request:
    """One request that a subscriber got. `at` is the loop's time."""

    at: float
    url: str
    headers: Headers
    body: bytes
    timeout_s: float

    @property
    def event(self) -> CloudEvent:
        return from_http(self.headers, self.body)

    def header(self, name: bytes) -> list[bytes]:
        return [value for held, value in self.headers if held == name]


class Subscribers:
    """Stands in for the network: every destination by its host, each answering by a script.

    A script gets the request and how many this host got before it. Unknown hosts answer 202.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.scripts: dict[str, Callable[[Request, int], Answer]] = {}
        self.counts: dict[str, int] = {}
        self.under_way: dict[str, int] = {}
        self.most: dict[str, int] = {}

    def at(self, host: str) -> list[Request]:
        return [request for request in self.requests if request.url.split("/")[2] == host]

    def ids(self, host: str) -> list[str]:
        return [request.event.id for request in self.at(host)]

    def fetch(
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
        assert method == b"POST"
        lines = [line.split(b": ", 1) for line in encoded_headers.split(b"\r\n")[:-1]]
        assert encoded_headers == b"".join(b"%b: %b\r\n" % (line[0], line[1]) for line in lines)
        loop = asyncio.get_running_loop()
        host = dict(headers)[b"host"].decode()
        everything = [*headers, *((line[0], line[1]) for line in lines)]
        request = Request(loop.time(), f"http://{host}{target.decode()}", everything, body, timeout_s)
        before = self.counts.get(host, 0)
        self.counts[host] = before + 1
        self.requests.append(request)
        self.under_way[host] = self.under_way.get(host, 0) + 1
        self.most[host] = max(self.most.get(host, 0), self.under_way[host])
        answer = self.scripts.get(host, lambda request, n: Answer())(request, before)

        def answered() -> None:
            self.under_way[host] -= 1
            then(answer.error or Response(answer.status, answer.headers, answer.body))

        return loop.call_later(answer.after_s, answered).cancel


class Spoken:
    """An exchange that keeps what it was answered, and a way to ask a handler."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self.body = b""
        self.answered = asyncio.Event()

    def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        assert not self.status, "answered twice"
        self.status, self.headers, self.body = status, headers, body
        self.answered.set()

    def header(self, name: bytes) -> bytes | None:
        return dict(self.headers).get(name)


def ask(
    handler: Callable[[RequestHead, Any], Any],
    target: str = "/default/default",
    headers: Headers | None = None,
    body: bytes = b"{}",
    *,
    method: str = "POST",
) -> Spoken:
    """Send one request to a `core.net` handler. The answer may come later: wait for `answered`."""
    exchange = Spoken()
    head = RequestHead(
        method.encode(),
        target.encode(),
        b"ingress.test",
        binary() if headers is None else headers,
        len(body),
        "127.0.0.1",
    )
    sink = handler(head, exchange)
    if not exchange.status:
        if body:
            sink.body(body)
        if not exchange.status:
            sink.end()
    return exchange
