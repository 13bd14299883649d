"""What the gateway tells about who served a request, as it is on the wire."""

from __future__ import annotations

import pytest

from core.net.heads import ResponseHeads
from core.net.served import ASKS, Served, asks, served_by, telling
from core.net.types import Headers
from core.net.wire import header_lines


@pytest.mark.parametrize("cold_start_s", [None, 0.0, 0.812, 12.5])
def test_what_a_gateway_tells_is_read_as_it_was(cold_start_s: float | None) -> None:
    headers = telling("scan-00002", cold_start_s).before([(b"content-type", b"text/plain")])
    assert served_by(headers) == Served("scan-00002", cold_start_s)


@pytest.mark.parametrize(
    ("headers", "read"),
    [
        ([], None),
        ([(b"penstock-cold-start", b"1.000")], None),
        ([(b"penstock-revision", b"")], None),
        ([(b"penstock-revision", b"a" * 254)], None),
        ([(b"penstock-revision", b"caf\xe9")], None),
        ([(b"penstock-revision", b"a"), (b"penstock-cold-start", b"soon")], Served("a")),
        ([(b"penstock-revision", b"a"), (b"penstock-cold-start", b"-1.0")], Served("a")),
        ([(b"penstock-revision", b"a"), (b"penstock-cold-start", b"inf")], Served("a")),
        ([(b"penstock-revision", b"a"), (b"penstock-cold-start", b"9" * 400 + b".0")], Served("a")),
        ([(b"penstock-revision", b"gateway"), (b"penstock-revision", b"function")], Served("gateway")),
        ([(b"date", b"now"), (b"penstock-revision", b"function")], None),
    ],
    ids=[
        "nothing",
        "no revision",
        "empty",
        "long",
        "not ascii",
        "words",
        "below zero",
        "inf",
        "huge",
        "twice",
        "not first",
    ],
)
def test_only_what_a_gateway_would_write_is_believed_and_only_where_a_gateway_puts_it(
    headers: Headers, read: Served | None
) -> None:
    assert served_by(headers) == read


def test_a_request_asks_with_one_header() -> None:
    assert asks([(b"host", b"a"), ASKS])
    assert not asks([(b"host", b"a"), (b"penstock-explain", b"?0")])


def test_headers_that_were_read_stay_as_they_were_spelled_behind_others() -> None:
    heads = ResponseHeads()
    heads.read(b"HTTP/1.1 200 OK\r\nX-From: a\r\nContent-Length: 3\r\n\r\n")
    both = telling("a-1", None).before(heads.headers)
    assert list(both) == [(b"penstock-revision", b"a-1"), (b"x-from", b"a")]
    assert header_lines(both) == b"penstock-revision: a-1\r\nX-From: a\r\n"
