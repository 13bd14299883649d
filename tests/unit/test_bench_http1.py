"""The load generator's reading of answers and of delivered events."""

from __future__ import annotations

import pytest

from bench.http1 import UNREADABLE, frame
from bench.messages import Request
from bench.sink import Sink

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, world!"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(OK, (200, len(OK)), id="a length"),
        pytest.param(b"HTTP/1.1 202 Accepted\r\ncontent-length:0\r\n\r\n", (202, 43), id="an empty body"),
        pytest.param(b"HTTP/1.1 204 No Content\r\ndate: x\r\n\r\n", (204, 36), id="204 needs no length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            (200, 60),
            id="chunks, all here",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", None, id="chunks, more to come"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nabc", (UNREADABLE, 22), id="an end that cannot be told"),
        pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na", (UNREADABLE, 39), id="not HTTP/1.1"),
        pytest.param(b"220 smtp ready\r\n\r\n", (UNREADABLE, 18), id="not HTTP"),
    ],
)
def test_an_answers_status_and_end(data: bytes, expected: tuple[int, int] | None) -> None:
    assert frame(data) == expected


def test_an_answer_that_comes_in_pieces_is_complete_only_at_its_last_byte() -> None:
    for length in range(len(OK)):
        assert frame(OK[:length]) is None
    assert frame(OK + b"extra") == (200, len(OK))


def test_a_numbered_request_carries_its_number() -> None:
    assert Request(before=b"a-", after=b"-b", numbered=True).bytes_of(17) == b"a-17-b"
    assert Request(before=b"a-").bytes_of(17) == b"a-"


class Wire:
    """The transport's side that a sink uses."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.aborted = True


def sink() -> tuple[Sink, Wire, list[int]]:
    wire, arrived = Wire(), list[int]()
    made = Sink(arrived.append)
    made.connection_made(wire)  # type: ignore[arg-type]  # the two methods it uses
    return made, wire, arrived


EVENT = b"POST / HTTP/1.1\r\nhost: x\r\nCe-Id: bench-1-%d\r\ncontent-length: 4\r\n\r\nData"


def test_a_sink_takes_events_whole_however_they_arrive() -> None:
    for size in (1, 7, 1_000):
        made, wire, arrived = sink()
        stream = b"".join(EVENT % number for number in range(5))
        for start in range(0, len(stream), size):
            made.data_received(stream[start : start + size])
        assert arrived == [0, 1, 2, 3, 4]
        assert len(wire.written) == 5
        assert not wire.aborted


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n", id="no id"),
        pytest.param(b"POST / HTTP/1.1\r\nce-id: bench-1\r\n\r\n", id="no length"),
    ],
)
def test_a_sink_drops_the_connection_on_what_it_cannot_read(request_bytes: bytes) -> None:
    made, wire, arrived = sink()
    made.data_received(request_bytes)
    assert wire.aborted
    assert arrived == []
    assert wire.written == []
