"""What goes on the wire, and the pure readers: header lines, chunks, heads."""

from __future__ import annotations

import contextlib

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.net.framing import ChunkedBody, Refused
from core.net.heads import MAX_KNOWN_HEAD_BYTES, MAX_KNOWN_HEADS, RequestHeads, ResponseHeads
from core.net.types import Headers
from core.net.wire import LAST_CHUNK, check_target, chunk, closing_text, header_lines, status_line

TOKEN = st.text("!#$%&'*+.^_`|~09azAZ-", min_size=1, max_size=12).map(str.encode)
VALUE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f")).map(
    lambda text: text.strip(" \t\xa0\x85").encode("latin-1").translate(None, bytes(range(0x80, 0xA0))).strip()
)


@pytest.mark.parametrize("bad", [b"\r", b"\n", b"\0", b"a\r\nb: c"], ids=["CR", "LF", "NUL", "a second line"])
@pytest.mark.parametrize("part", [0, 1], ids=["name", "value"])
def test_a_header_that_would_end_its_line_is_refused(part: int, bad: bytes) -> None:
    header = (b"x" + bad, b"y") if part == 0 else (b"x", b"y" + bad)
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        header_lines([(b"a", b"b"), header])


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"GET", b"/ HTTP/1.1\r\nX: y"),
        (b"GET", b"/a b"),
        (b"GET", b"/\0"),
        (b"GET", b"/\t"),
        (b"GET", b""),
        (b"GE T", b"/"),
        (b"", b"/"),
    ],
    ids=["two lines", "space", "NUL", "tab", "no target", "space in the method", "no method"],
)
def test_a_target_or_method_that_would_break_the_request_line_is_refused(method: bytes, target: bytes) -> None:
    with pytest.raises(ValueError, match="request line"):
        check_target(method, target)


def test_framing_headers_are_left_out_of_what_is_given() -> None:
    given_headers = [(b"a", b"b"), (b"content-length", b"3"), (b"connection", b"x"), (b"transfer-encoding", b"chunked")]
    assert header_lines(given_headers) == b"a: b\r\n"


@pytest.mark.parametrize("status", [0, 99, 101, 600], ids=str)
def test_a_status_that_is_no_answer_is_refused(status: int) -> None:
    with pytest.raises(ValueError, match="status"):
        status_line(status)


def test_an_answer_in_the_servers_own_name_closes_and_says_so() -> None:
    assert closing_text(400, "No.", [(b"retry-after", b"1")]) == (
        b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nretry-after: 1\r\n"
        b"content-length: 4\r\nconnection: close\r\n\r\nNo.\n"
    )


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.data())
def test_what_is_written_in_chunks_is_read_back_however_it_is_split(pieces: list[bytes], data: st.DataObject) -> None:
    sent = b"".join(map(chunk, pieces)) + LAST_CHUNK
    body = ChunkedBody()
    read, held = b"", b""
    while sent:
        size = data.draw(st.integers(1, len(sent)))
        held, sent = held + sent[:size], sent[size:]
        at = 0
        while at < len(held):
            before = at
            piece, at = body.step(held, at)
            read += piece
            if at == before:
                break
        held = held[at:]
    assert body.done
    assert held == b""
    assert read == b"".join(pieces)


@given(st.binary(max_size=60))
def test_no_bytes_make_the_chunk_reader_fail_in_another_way_than_refusing(junk: bytes) -> None:
    body = ChunkedBody()
    at = 0
    with contextlib.suppress(Refused):
        while at < len(junk) and not body.done:
            before = at
            piece, at = body.step(junk, at)
            assert at >= before + len(piece)
            if at == before:
                break


def _request(headers: Headers) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n"


@given(st.lists(st.tuples(TOKEN, VALUE), max_size=12))
def test_headers_are_handed_over_as_sent_with_names_in_lower_case(headers: Headers) -> None:
    judged = {b"host", b"expect", b"te", b"upgrade"}
    headers = [header for header in headers if header[0].lower() not in judged]
    read = RequestHeads().read(_request(headers), "peer").headers
    assert list(read) == [(b"host", b"a"), *[(name.lower(), value) for name, value in headers]]


@given(st.lists(st.tuples(TOKEN, VALUE), max_size=12))
def test_headers_passed_on_as_read_are_the_same_headers(headers: Headers) -> None:
    heads = RequestHeads()
    first = heads.read(_request(headers), "peer")
    passed_on = b"GET / HTTP/1.1\r\n" + header_lines(first.headers) + b"\r\n"
    assert list(heads.read(passed_on, "peer").headers) == list(first.headers)


@pytest.mark.parametrize(
    "lines",
    [
        [b"Content-Length: 3"],
        [b"A: b", b"content-length: 3", b"C: d"],
        [b"Connection: keep-alive", b"Keep-Alive: timeout=5", b"A: b"],
        [b"Connection: x-one, X-Two", b"X-One: 1", b"A: b", b"x-two: 2"],
        [b"Connection: close", b"Connection: x-one", b"X-One: 1", b"A: b"],
        [b"TE: trailers", b"Trailer: x", b"Upgrade: h2c", b"Proxy-Connection: close", b"A: b"],
        [b"Expect: 100-continue", b"A: b"],
        [b"Transfer-Encoding: chunked", b"A: b"],
        [b"A: Connection: close", b"Connection: keep-alive"],
    ],
    ids=lambda lines: b", ".join(lines).decode(),
)
def test_headers_of_the_connection_and_the_framing_are_not_passed_on(lines: list[bytes]) -> None:
    head = RequestHeads().read(b"\r\n".join([b"POST / HTTP/1.1", b"Host: h", *lines, b"", b""]), "peer")
    kept = [line for line in lines if line[:2] in (b"A:", b"C:")]
    assert header_lines(head.headers).lower().split(b"\r\n")[1:-1] == [line.lower() for line in kept]
    assert list(head.headers)[1:] == [(line[:1].lower(), line[3:]) for line in kept]


def test_connection_cannot_take_host_away() -> None:
    head = RequestHeads().read(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: host\r\n\r\n", "peer")
    assert list(head.headers) == [(b"host", b"h")]


def test_a_list_made_of_read_headers_is_encoded_anew() -> None:
    head = RequestHeads().read(b"GET / HTTP/1.1\r\nHost: h\r\nX-Y: z\r\n\r\n", "peer")
    assert header_lines(head.headers) == b"Host: h\r\nX-Y: z\r\n"
    assert header_lines([*head.headers, (b"more", b"1")]) == b"host: h\r\nx-y: z\r\nmore: 1\r\n"


class _Oracle:
    """llhttp's own reading of a request."""

    def __init__(self) -> None:
        self.headers: Headers = []
        self.complete = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete += 1


LINE = st.one_of(
    st.sampled_from(
        [
            b"Host: a",
            b"Host: b",
            b"Content-Length: 0",
            b"Content-Length: 5",
            b"content-length: 5",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip",
            b"Connection: close",
            b"Connection: Upgrade",
            b"Upgrade: x",
            b" folded",
            b"X : y",
            b"X: y\rZ: z",
            b"X: y\nZ: z",
            b"X:y ",
            b"X:",
            b"",
        ]
    ),
    st.binary(max_size=8),
)


@given(st.lists(LINE, max_size=6), st.sampled_from([b"GET / HTTP/1.1", b"POST /a?b HTTP/1.1", b"PUT / HTTP/1.0"]))
def test_what_is_accepted_is_read_as_llhttp_reads_it(lines: list[bytes], start: bytes) -> None:
    raw = b"\r\n".join([start, *lines, b"", b""])
    raw = raw[: raw.index(b"\r\n\r\n") + 4]
    try:
        head = RequestHeads().read(raw, "peer")
    except Refused:
        return
    oracle = _Oracle()
    parser = httptools.HttpRequestParser(oracle)
    with contextlib.suppress(httptools.HttpParserUpgrade):
        parser.feed_data(raw)
    assert oracle.complete == 1
    ours = {b"connection", b"content-length", b"transfer-encoding", b"upgrade"}
    assert list(head.headers) == [header for header in oracle.headers if header[0] not in ours]


BAD_ANSWERS = {
    "both lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    "length with a sign": b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
    "gzip, chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "chunked on 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "space before a colon": b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
    "folded": b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\r\nX: y\nZ: z\r\n\r\n",
    "bare CR in the reason": b"HTTP/1.1 200 O\rK\r\n\r\n",
    "NUL in the reason": b"HTTP/1.1 200 O\0K\r\n\r\n",
    "NUL in a value": b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
    "length, close and both": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\ncontent-length: 1\r\n\r\n",
    "two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status 0": b"HTTP/1.1 000 OK\r\n\r\n",
    "status 600": b"HTTP/1.1 600 OK\r\n\r\n",
    "HTTP/2": b"HTTP/2 200 OK\r\n\r\n",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\n\r\n",
    "not HTTP": b"220 mail.example ESMTP\r\n\r\n",
    "only lines": b"\r\n\r\n",
}


@pytest.mark.parametrize("raw", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_an_answer_that_could_be_read_in_two_ways_is_refused(raw: bytes) -> None:
    heads = ResponseHeads()
    with pytest.raises(Refused):
        heads.read(raw)
    assert heads.read(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n") == 200  # another connection's
    assert heads.length == 7


@pytest.mark.parametrize(
    ("raw", "status", "length", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", 200, 7, True),
        (b"HTTP/1.1 200\r\nContent-Length: 7\r\n\r\n", 200, 7, True),
        (b"HTTP/1.1 200 \r\nContent-Length: 7\r\n\r\n", 200, 7, True),
        (b"HTTP/1.1 500 \xe4h\r\nContent-Length: 7\r\n\r\n", 500, 7, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, None, True),
        (b"HTTP/1.1 200 OK\r\n\r\n", 200, -1, True),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n", 200, 0, False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 7\r\n\r\n", 200, 7, False),
    ],
    ids=["length", "no reason", "empty reason", "odd reason", "chunked", "until close", "close", "1.0"],
)
def test_an_answers_framing_is_read(raw: bytes, status: int, length: int | None, keep_alive: bool) -> None:
    heads = ResponseHeads()
    for _ in range(2):  # one reader reads many heads, whatever the last one was
        assert heads.read(raw) == status
        assert (heads.length, heads.keep_alive) == (length, keep_alive)


def test_an_answers_head_is_read_once_and_known_by_its_bytes():
    heads = ResponseHeads()
    first = b"HTTP/1.1 202 Accepted\r\nDate: Wed, 25 Nov 2026 10:00:00 GMT\r\nContent-Length: 0\r\n\r\n"
    known = heads.of(first)
    assert (known.status, known.length, known.keep_alive) == (202, 0, True)
    later = heads.of(first.replace(b"10:00:00", b"10:00:01"))
    assert dict(later.headers)[b"date"].endswith(b"10:00:01 GMT")
    assert heads.of(bytes(bytearray(first))) is known
    closing = heads.of(first.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert not closing.keep_alive


def test_the_heads_that_are_known_are_bounded():
    heads = ResponseHeads()
    for number in range(MAX_KNOWN_HEADS + 1):
        heads.of(b"HTTP/1.1 200 OK\r\nx-number: %d\r\n\r\n" % number)
    heads.of(b"HTTP/1.1 200 OK\r\nx-long: %b\r\n\r\n" % (b"x" * MAX_KNOWN_HEAD_BYTES))
    assert len(heads.known) == 1


def test_a_head_that_is_refused_is_refused_each_time():
    heads = ResponseHeads()
    for _ in range(2):
        with pytest.raises(Refused):
            heads.of(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
