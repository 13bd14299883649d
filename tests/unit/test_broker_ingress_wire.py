"""The ingress as a client sees it: bytes on a socket, and what is in the log after them."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.ingress import Ingress
from broker.log.memory import MemoryLog
from broker.log.port import Entry, Page
from broker.resources import DEFAULT_CLASS
from broker.table import TableBuilder
from core.clock import SystemClock
from core.limits import MAX_BATCH_BYTES, MAX_EVENT_BYTES, MAX_HEAD_BYTES, MAX_HEADERS
from core.net.pages import HEALTH, Pages
from core.telemetry import Metrics
from tests.support.broker import broker
from tests.support.http import DEADLINE_S, Raw, raw, serving

EVENT = b"Ce-Specversion: 1.0\r\nCE-ID: 1\r\nce-source: /shop\r\nce-type: order\r\n"
TEXT = b"content-type: text/plain; charset=utf-8"


class Spoken:
    """A connection to an ingress, and its log."""

    def __init__(self, connection: Raw, log: MemoryLog) -> None:
        self.connection = connection
        self.log = log

    async def post(self, headers: bytes, body: bytes = b"", target: bytes = b"/default/default") -> tuple[bytes, bytes]:
        length = b"Content-Length: %d\r\n" % len(body) if b"hunked" not in headers else b""
        self.connection.send(b"POST %b HTTP/1.1\r\nHost: a\r\n%b%b\r\n%b" % (target, length, headers, body))
        return await self.connection.answer()

    async def stored(self) -> list[Entry]:
        found: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        self.log.read("default/default", 0, 100, found.set_result)  # type: ignore[arg-type]  # it never fails
        async with asyncio.timeout(DEADLINE_S):
            return [record.entry for record in (await found).records]


@asynccontextmanager
async def speaking() -> AsyncIterator[Spoken]:
    metrics, log = Metrics(), MemoryLog()
    pages = Pages(metrics=metrics, checks={HEALTH: str})
    ingress = Ingress(logs={DEFAULT_CLASS: log}, clock=SystemClock(), metrics=metrics, pages=pages.handle)
    ingress.swap(TableBuilder().build([broker()], []))
    async with serving(ingress.handle) as server, raw(server.address) as connection:
        yield Spoken(connection, log)


@pytest.mark.parametrize(
    ("headers", "body", "attributes", "data"),
    [
        pytest.param(
            EVENT + b"Content-Type: Text/Plain; charset=x\r\nX-Other: 1\r\nAuthorization: Basic x\r\n",
            b"\0\xff as it is",
            {"datacontenttype": "Text/Plain; charset=x"},
            b"\0\xff as it is",
            id="binary: the media type and the bytes as they came, other headers left out",
        ),
        pytest.param(
            EVENT + b'ce-name: Euro%20%e2%82%ac%20%F0%9F%98%80\r\nCe-Quoted: "a \\"b\\" %25"\r\nce-empty:\r\n',
            b"",
            {"name": "Euro € 😀", "quoted": 'a "b" %', "empty": ""},
            b"",
            id="binary: percent-encoded, quoted and empty values",
        ),
        pytest.param(
            EVENT + "ce-name: grün\r\n".encode(), b"", {"name": "grün"}, b"", id="binary: bytes of UTF-8 in a header"
        ),
        pytest.param(
            EVENT + b"Transfer-Encoding: chunked\r\n", b"2\r\n{}\r\n0\r\n\r\n", {}, b"{}", id="binary: in chunks"
        ),
        pytest.param(
            b'content-type: Application/CloudEvents+JSON ; charset="UTF-8"\r\nce-id: ignored\r\n',
            b'{"specversion":"1.0","id":"1","source":"/shop","type":"order","n":7,"yes":true,"no":null,'
            b'"data":{"a": 1.0, "a": 1e400}}',
            {"datacontenttype": "application/json", "n": "7", "yes": "true"},
            b'{"a": 1.0, "a": 1e400}',
            id="structured: JSON byte for byte",
        ),
        pytest.param(
            b"content-type: application/cloudevents+json\r\n",
            b'{"specversion":"1.0","id":"1","source":"/shop","type":"order","datacontenttype":"image/png",'
            b'"data_base64":"' + base64.b64encode(bytes(range(256))) + b'"}',
            {"datacontenttype": "image/png"},
            bytes(range(256)),
            id="structured: Base64",
        ),
        pytest.param(
            b"content-type: application/cloudevents-batch+json; charset=utf-8\r\n",
            b' [ {"specversion":"1.0","id":"1","source":"/shop","type":"order","data":"text"} ] ',
            {"datacontenttype": "application/json"},
            b'"text"',
            id="batched",
        ),
    ],
)
async def test_an_event_is_kept_as_it_was_sent(headers: bytes, body: bytes, attributes: dict[str, str], data: bytes):
    async with speaking() as spoken:
        head, said = await spoken.post(headers, body)
        assert (head.split(b"\r\n")[0], said) == (b"HTTP/1.1 202 Accepted", b"")
        (entry,) = await spoken.stored()
        assert entry.attributes == {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order", **attributes}
        assert entry.data == data


LARGE = b"Ce-Large: " + b"x" * MAX_HEAD_BYTES + b"\r\n"
MANY = b"".join(b"Ce-X%d: 1\r\n" % number for number in range(MAX_HEADERS))


@pytest.mark.parametrize(
    ("headers", "body", "status", "says"),
    [
        pytest.param(b"", b"{}", 400, b"send the headers ce-specversion", id="no event"),
        pytest.param(EVENT + b"ce-id: 2\r\n", b"", 400, b"id: is given more than once", id="attribute twice"),
        pytest.param(EVENT + b"ce-data: 2\r\n", b"", 400, b"data: is reserved", id="data as a header"),
        pytest.param(EVENT + b"ce-a_b: 2\r\n", b"", 400, b"a_b: is not an attribute name", id="name"),
        pytest.param(EVENT + b"ce-a: %C0%A0\r\n", b"", 400, b"a: must be percent-encoded valid UTF-8", id="overlong"),
        pytest.param(EVENT + b"ce-a: %ED%A0%80\r\n", b"", 400, b"a: must be percent-encoded valid", id="surrogate"),
        pytest.param(EVENT + b"ce-a: %00\r\n", b"", 400, b"a: must not hold control characters", id="NUL"),
        pytest.param(EVENT + b"ce-time: now\r\n", b"", 400, b"(got 'now')", id="value that is told"),
        pytest.param(
            EVENT + b"Content-Type: a/b\r\nContent-Type: a/b\r\n", b"", 400, b"datacontenttype", id="two media types"
        ),
        pytest.param(EVENT + b"Content-Encoding: gzip\r\n", b"x", 415, b"Content-Encoding gzip", id="coded"),
        pytest.param(
            b"content-type: application/cloudevents+xml\r\n", b"<x/>", 415, b"application/cloudevents+xml", id="format"
        ),
        pytest.param(EVENT + LARGE, b"", 431, b"65536 bytes", id="large head"),
        pytest.param(EVENT + MANY, b"", 431, b"200", id="many headers"),
        pytest.param(EVENT, b"x" * (MAX_EVENT_BYTES + 1), 413, b"1048576 bytes", id="large body"),
        pytest.param(
            EVENT + b"Transfer-Encoding: chunked\r\n",
            b"100001\r\n" + b"x" * (MAX_EVENT_BYTES + 1) + b"\r\n0\r\n\r\n",
            413,
            b"1048576 bytes",
            id="large body in chunks",
        ),
        pytest.param(
            b"Content-Type: application/cloudevents-batch+json\r\n",
            b"x" * (MAX_BATCH_BYTES + 1),
            413,
            b"4194304 bytes",
            id="large batch",
        ),
    ],
)
async def test_what_is_no_event_or_too_large_is_refused_in_plain_text(
    headers: bytes, body: bytes, status: int, says: bytes
):
    async with speaking() as spoken:
        head, said = await spoken.post(headers, body)
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert TEXT in head.lower()
        assert says in said
        assert said.endswith(b"\n")
        assert await spoken.stored() == []


async def test_a_body_that_is_announced_as_too_large_is_refused_before_it_is_sent():
    async with speaking() as spoken:
        spoken.connection.send(
            b"POST /default/default HTTP/1.1\r\nHost: a\r\n%bContent-Length: 9999999\r\nExpect: 100-continue\r\n\r\n"
            % EVENT
        )
        head, _ = await spoken.connection.answer()
        assert head.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"PATCH", b"DELETE"])
async def test_other_methods_are_told_which_ones_there_are(method: bytes):
    async with speaking() as spoken:
        spoken.connection.send(b"%b /default/default HTTP/1.1\r\nHost: a\r\n%b\r\n" % (method, EVENT))
        head = await spoken.connection.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nallow: POST, OPTIONS\r\n" in head
        assert await spoken.stored() == []


async def test_events_may_be_pipelined_and_each_has_its_answer():
    async with speaking() as spoken:
        one = b"POST /default/default HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n%b\r\nx" % EVENT
        spoken.connection.send(one + one.replace(b"CE-ID: 1\r\n", b"") + one)
        statuses = [(await spoken.connection.answer())[0][9:12] for _ in range(3)]
        assert statuses == [b"202", b"400", b"202"]
        assert len(await spoken.stored()) == 2
