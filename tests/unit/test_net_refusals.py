"""What the server refuses: everything that two readers could read in two ways, and everything over a limit."""

from __future__ import annotations

import pytest

from core.limits import MAX_HEAD_BYTES, MAX_HEADERS
from core.net.body import IGNORE, collect
from core.net.framing import MAX_CHUNK_LINE_BYTES, MAX_EXTENSION_BYTES, MAX_TRAILER_BYTES
from core.net.heads import MAX_START_LINE_BYTES
from core.net.server import HttpServer
from core.net.types import BodySink, Exchange, RequestHead
from tests.support.http import raw, serving


def _echo(head: RequestHead, exchange: Exchange) -> BodySink:
    return collect(exchange, max_bytes=1 << 20, then=lambda body: exchange.respond(200, [], head.target + b"|" + body))


def _get(*lines: bytes) -> bytes:
    return b"\r\n".join([b"GET / HTTP/1.1", *lines, b"", b""])


def _chunked(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body


CHUNK = b"1\r\nx\r\n"

REFUSED = {
    "content-length and transfer-encoding": (
        400,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "transfer-encoding and content-length": (
        400,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ),
    "two equal content-lengths": (400, _get(b"Host: a", b"Content-Length: 0", b"Content-Length: 0")),
    "two content-lengths spelled differently": (400, _get(b"Host: a", b"Content-Length: 0", b"content-length: 1")),
    "a list of content-lengths": (400, _get(b"Host: a", b"Content-Length: 0, 0")),
    "content-length with a sign": (400, _get(b"Host: a", b"Content-Length: +0")),
    "negative content-length": (400, _get(b"Host: a", b"Content-Length: -1")),
    "hexadecimal content-length": (400, _get(b"Host: a", b"Content-Length: 0x0")),
    "content-length with an underscore": (400, _get(b"Host: a", b"Content-Length: 1_0")),
    "empty content-length": (400, _get(b"Host: a", b"Content-Length: ")),
    "content-length, and a bad host": (400, _get(b"Content-Length: 5", b"Host: a b")),
    "content-length, and no host": (400, _get(b"Content-Length: 5")),
    "content-length, and an unknown expectation": (417, _get(b"Host: a", b"Content-Length: 5", b"Expect: x")),
    "close, and a bad host": (400, _get(b"Connection: close", b"Host: a b")),
    "upgrade, and a bad host": (400, _get(b"Connection: upgrade", b"Upgrade: x", b"Host: a b")),
    "1.0 with a bad host": (400, b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n"),
    "content-length beyond 64 bits": (400, _get(b"Host: a", b"Content-Length: 18446744073709551616")),
    "content-length beyond 18 digits": (400, _get(b"Host: a", b"Content-Length: 1000000000000000000")),
    "gzip, chunked": (400, _get(b"Host: a", b"Transfer-Encoding: gzip, chunked")),
    "chunked, identity": (400, _get(b"Host: a", b"Transfer-Encoding: chunked, identity")),
    "identity": (400, _get(b"Host: a", b"Transfer-Encoding: identity")),
    "xchunked": (400, _get(b"Host: a", b"Transfer-Encoding: xchunked")),
    "quoted chunked": (400, _get(b"Host: a", b'Transfer-Encoding: "chunked"')),
    "chunked twice": (400, _get(b"Host: a", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    "chunked with a vertical tab": (400, _get(b"Host: a", b"Transfer-Encoding: \x0bchunked")),
    "transfer-encoding on 1.0": (400, b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "no host": (400, _get(b"Accept: */*")),
    "two hosts": (400, _get(b"Host: a", b"Host: a")),
    "two hosts spelled differently": (400, _get(b"Host: a", b"hOST: b")),
    "two hosts on 1.0": (400, b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
    "empty host": (400, _get(b"Host: ")),
    "host with a space": (400, _get(b"Host: a b")),
    "host with a slash": (400, _get(b"Host: a/b")),
    "host with user information": (400, _get(b"Host: a@b")),
    "host with a comma": (400, _get(b"Host: a,b")),
    "host with a percent escape": (400, _get(b"Host: a%2fb")),
    "host with a word for a port": (400, _get(b"Host: a:b")),
    "host with bytes beyond ASCII": (400, _get(b"Host: \xc3\xa4")),
    "space before a colon": (400, _get(b"Host: a", b"X : b")),
    "space before host's colon": (400, _get(b"Host : a")),
    "space before content-length's colon": (400, _get(b"Host: a", b"Content-Length : 3")),
    "folded line": (400, _get(b"Host: a", b"X: b", b" c")),
    "folded line with a tab": (400, _get(b"Host: a", b"X: b", b"\tTransfer-Encoding: chunked")),
    "first header line is folded": (400, _get(b" Host: a")),
    "line without a colon": (400, _get(b"Host: a", b"X")),
    "empty name": (400, _get(b"Host: a", b": b")),
    "name with a byte beyond ASCII": (400, _get(b"Host: a", b"X\xe9: b")),
    "name with a slash": (400, _get(b"Host: a", b"X/Y: b")),
    "bare LF between lines": (400, b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"),
    "bare LF after the request line": (400, b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    "bare CR in a value": (400, _get(b"Host: a", b"X: b\rY: c")),
    "bare CR at the end of a value": (400, _get(b"Host: a", b"X: b\r")),
    "NUL in a value": (400, _get(b"Host: a", b"X: b\0c")),
    "NUL in a name": (400, _get(b"Host: a", b"X\0: b")),
    "control character in a value": (400, _get(b"Host: a", b"X: \x01")),
    "DEL in a value": (400, _get(b"Host: a", b"X: \x7f")),
    "two spaces in the request line": (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "tab in the request line": (400, b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "space in the target": (400, b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "space after the version": (400, b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    "NUL in the target": (400, b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "bare CR in the target": (400, b"GET /\ra HTTP/1.1\r\nHost: a\r\n\r\n"),
    "bytes beyond ASCII in the target": (400, b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"),
    "fragment in the target": (400, b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "fragment in a 1.0 target": (400, b"GET /a#b HTTP/1.0\r\nHost: a\r\n\r\n"),
    "target without a slash": (400, b"GET a HTTP/1.1\r\nHost: a\r\n\r\n"),
    "empty target": (400, b"GET  HTTP/1.1\r\nHost: a\r\n\r\n"),
    "asterisk with GET": (400, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute target for another host": (400, b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute target for another port": (400, b"GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute target with user information": (400, b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute target of another scheme": (400, b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "no version": (400, b"GET /\r\n\r\n"),
    "lower-case version": (400, b"GET / http/1.1\r\nHost: a\r\n\r\n"),
    "two empty lines first": (400, b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a TLS handshake": (400, b"\x16\x03\x01\x02\x00\x01\x00"),
    "an SSH greeting in lower case": (400, b"ssh-2.0"),
    "HTTP/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/2.0": (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    "HTTP/1.2": (505, b"GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    "HTTP/0.9": (505, b"GET / HTTP/0.9\r\nHost: a\r\n\r\n"),
    "CONNECT": (501, b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"),
    "unknown method": (501, b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "lower-case method": (501, b"GeT / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "unknown expectation": (417, _get(b"Host: a", b"Expect: a-miracle")),
    "request line too long, complete": (414, b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * MAX_START_LINE_BYTES)),
    "request line too long, without an end": (414, b"GET /" + b"a" * MAX_START_LINE_BYTES),
    "a long line of garbage": (414, b"A" * (MAX_START_LINE_BYTES + 1)),
    "head too large, complete": (431, _get(b"Host: a", *[b"X%d: %b" % (n, b"a" * 8000) for n in range(9)])),
    "head too large, without an end": (431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * MAX_HEAD_BYTES),
    "too many header lines": (431, _get(b"Host: a", *[b"X%d: b" % n for n in range(MAX_HEADERS)])),
    "too many header lines of one name": (431, _get(b"Host: a", *[b"X: b"] * MAX_HEADERS)),
}

REFUSED_BODIES = {
    "chunk size with a sign": b"+1\r\nx\r\n",
    "chunk size with a prefix": b"0x1\r\nx\r\n",
    "chunk size with an underscore": b"1_0\r\nx\r\n",
    "chunk size of 16 digits": b"0000000000000001\r\nx\r\n",
    "empty chunk size": b"\r\nx\r\n",
    "space before the chunk size": b" 1\r\nx\r\n",
    "space after the chunk size": b"1 \r\nx\r\n",
    "chunk size ended by LF": b"1\nx\r\n0\r\n\r\n" + b" " * MAX_CHUNK_LINE_BYTES,
    "bare LF in an extension": b"1;a\nb\r\nx\r\n",
    "bare CR in an extension": b"1;a\rb\r\nx\r\n",
    "NUL in an extension": b"1;\0\r\nx\r\n",
    "chunk-size line too long": b"1;" + b"a" * MAX_CHUNK_LINE_BYTES + b"\r\nx\r\n",
    "chunk-size line too long, without an end": b"1;" + b"a" * MAX_CHUNK_LINE_BYTES,
    "extensions too long together": (b"1;" + b"a" * 200 + b"\r\nx\r\n") * (MAX_EXTENSION_BYTES // 200 + 1),
    "chunk longer than its size": b"1\r\nxy\r\n0\r\n\r\n",
    "chunk ended by something else": b"1\r\nxAB0\r\n\r\n",
    "chunk ended by LF": b"1\r\nx\n0\r\n\r\n",
    "trailer without a colon": b"0\r\nx\r\n\r\n",
    "folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
    "bare LF in a trailer": b"0\r\nX: y\nZ: z\r\n\r\n",
    "trailers too large": b"0\r\n" + b"X: y\r\n" * (MAX_TRAILER_BYTES // 4) + b"\r\n",
    "one trailer too large, without an end": b"0\r\nX: " + b"y" * MAX_TRAILER_BYTES,
}


async def _others_are_served(server: HttpServer) -> None:
    """What one connection sent changes nothing for another."""
    async with raw(server.address) as peer:
        peer.send(_get(b"Host: a"))
        assert (await peer.answer())[1] == b"/|"


@pytest.mark.parametrize(("status", "sent"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_refused_head_is_answered_with_a_reason_and_the_connection_closed(status: int, sent: bytes) -> None:
    async with serving(_echo) as server:
        async with raw(server.address) as peer:
            peer.send(sent)
            answer = await peer.rest()
        await _others_are_served(server)
    head, _, text = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0].split(b" ")[1] == b"%d" % status
    assert b"connection: close" in lines
    assert b"content-type: text/plain; charset=utf-8" in lines
    assert text.endswith(b".\n")
    assert text.count(b"\n") == 1  # one answer: what follows a refused head is not read as a request


@pytest.mark.parametrize("body", REFUSED_BODIES.values(), ids=REFUSED_BODIES.keys())
async def test_a_refused_chunked_body_is_answered_400_and_the_connection_closed(body: bytes) -> None:
    async with serving(_echo) as server:
        async with raw(server.address) as peer:
            peer.send(_chunked(body))
            answer = await peer.rest()
        await _others_are_served(server)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


ACCEPTED = {
    "the shortest": (_get(b"Host: a"), b"/|"),
    "an empty line before": (b"\r\n" + _get(b"Host: a"), b"/|"),
    "no space after the colon": (_get(b"Host:a"), b"/|"),
    "space around a value": (_get(b"Host: \t a \t "), b"/|"),
    "host with a port": (_get(b"Host: a-b_c.d:8080"), b"/|"),
    "IPv6 host": (_get(b"Host: [::1]:80"), b"/|"),
    "absolute target": (b"GET http://A/b?c HTTP/1.1\r\nHost: a\r\n\r\n", b"/b?c|"),
    "absolute target without a path": (b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", b"/|"),
    "absolute target with a query alone": (b"GET http://a?b HTTP/1.1\r\nHost: a\r\n\r\n", b"/?b|"),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"*|"),
    "repeated ordinary header": (_get(b"Host: a", b"X: b", b"X: c"), b"/|"),
    "body of a stated length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", b"/|hi"),
    "content-length with zeroes": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 002\r\n\r\nhi", b"/|hi"),
    "chunked": (_chunked(b"2\r\nhi\r\n0\r\n\r\n"), b"/|hi"),
    "chunked in capitals": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"/|hi",
    ),
    "chunk extensions and trailers are dropped": (_chunked(b'2;a="b";c\r\nhi\r\n00;d\r\nX: y\r\n\r\n'), b"/|hi"),
    "upgrade is an ordinary request": (_get(b"Host: a", b"Connection: Upgrade", b"Upgrade: websocket"), b"/|"),
    "upgrade with a body": (
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
        b"/|hi",
    ),
    "obsolete text in a value": (_get(b"Host: a", b"X: \xff"), b"/|"),
    "as many headers as allowed": (_get(b"Host: a", *[b"X%d: b" % n for n in range(MAX_HEADERS - 1)]), b"/|"),
}


@pytest.mark.parametrize(("sent", "expected"), ACCEPTED.values(), ids=ACCEPTED.keys())
async def test_an_acceptable_request_is_answered_and_the_connection_kept(sent: bytes, expected: bytes) -> None:
    async with serving(_echo) as server, raw(server.address) as peer:
        for _ in range(2):  # the second one shows that the first was read exactly to its end
            peer.send(sent)
            head, body = await peer.answer()
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert body == expected


async def test_bytes_after_a_refused_request_are_not_read_as_another() -> None:
    seen: list[bytes] = []

    def handler(head: RequestHead, exchange: Exchange) -> BodySink:
        seen.append(head.target)
        exchange.respond(200, [])
        return IGNORE

    async with serving(handler) as server, raw(server.address) as peer:
        peer.send(
            b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        )
        await peer.rest()
    assert seen == []
