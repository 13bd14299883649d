"""Headers on the way through the gateway, and when a failed attempt may be repeated."""

from __future__ import annotations

import pytest

from core.net.types import (
    ConnectFailed,
    ConnectionLost,
    Headers,
    NetError,
    RequestHead,
    ResponseInvalid,
    ResponseTimeout,
)
from serving.forwarding import MAX_ATTEMPTS, MAX_REMEMBERED, Forwarded, Retry, after_failure, answer_headers


def head(*headers: tuple[bytes, bytes], peer: str = "10.1.2.3", host: bytes = b"app.shop:8080") -> RequestHead:
    return RequestHead(b"GET", b"/", host, [(b"host", host), *headers], 0, peer)


def sent(request: RequestHead, forwarded: Forwarded | None = None) -> Headers:
    """All headers that go out, the ready lines read back."""
    headers, lines, _ = (forwarded or Forwarded()).headers(request)
    for line in lines.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b": ")
        headers = [*headers, (name, value)]
    return headers


def test_an_instance_learns_where_the_request_came_from_and_gets_the_host_as_it_was() -> None:
    assert sent(head((b"accept", b"*/*"))) == [
        (b"host", b"app.shop:8080"),
        (b"accept", b"*/*"),
        (b"x-forwarded-for", b"10.1.2.3"),
        (b"x-forwarded-host", b"app.shop:8080"),
        (b"x-forwarded-proto", b"http"),
        (b"forwarded", b'for=10.1.2.3;host="app.shop:8080";proto=http'),
    ]


def test_an_ipv6_client_is_bracketed_where_rfc_7239_asks_for_it() -> None:
    found = dict(sent(head(peer="::1")))
    assert found[b"x-forwarded-for"] == b"::1"
    assert found[b"forwarded"] == b'for="[::1]";host="app.shop:8080";proto=http'


def test_what_earlier_proxies_said_is_continued_and_repeated_fields_are_joined() -> None:
    found = sent(
        head(
            (b"x-forwarded-for", b"1.1.1.1"),
            (b"x-forwarded-for", b"2.2.2.2"),
            (b"forwarded", b"for=1.1.1.1"),
            (b"x-forwarded-proto", b"https"),
            (b"x-forwarded-host", b"shop.example.com"),
            (b"accept", b"*/*"),
        )
    )
    assert found == [
        (b"host", b"app.shop:8080"),
        (b"accept", b"*/*"),
        (b"x-forwarded-for", b"1.1.1.1, 2.2.2.2, 10.1.2.3"),
        (b"x-forwarded-host", b"shop.example.com"),
        (b"x-forwarded-proto", b"https"),
        (b"forwarded", b'for=1.1.1.1, for=10.1.2.3;host="app.shop:8080";proto=http'),
    ]


def test_what_is_meant_for_a_proxy_stays_there_both_ways() -> None:
    assert b"proxy-authorization" not in dict(sent(head((b"proxy-authorization", b"Basic x"))))
    assert answer_headers([(b"proxy-authenticate", b"Basic"), (b"etag", b"1"), (b"set-cookie", b"a")]) == [
        (b"etag", b"1"),
        (b"set-cookie", b"a"),
    ]


def test_each_client_and_host_gets_its_own_however_many_there_are() -> None:
    forwarded = Forwarded()
    for number in range(MAX_REMEMBERED + 10):
        peer = f"10.0.{number // 256}.{number % 256}"
        assert dict(sent(head(peer=peer), forwarded))[b"x-forwarded-for"] == peer.encode()


REFUSED = ConnectFailed("refused")


def lost(*, sent: bool, fresh: bool) -> ConnectionLost:
    return ConnectionLost("lost", sent=sent, fresh=fresh)


#: (error, method, without body, step); each row for a request whose body so far is still at hand.
SAFE: dict[str, tuple[NetError, bytes, bool, Retry]] = {
    "never connected": (REFUSED, b"GET", True, Retry.OTHER),
    "never connected, with body": (REFUSED, b"POST", False, Retry.OTHER),
    "new connection broke before a byte was sent": (lost(sent=False, fresh=True), b"POST", False, Retry.OTHER),
    "old connection broke before a byte was sent": (lost(sent=False, fresh=False), b"POST", False, Retry.SAME),
    "old connection, GET": (lost(sent=True, fresh=False), b"GET", True, Retry.SAME),
    "old connection, HEAD": (lost(sent=True, fresh=False), b"HEAD", True, Retry.SAME),
    "old connection, OPTIONS": (lost(sent=True, fresh=False), b"OPTIONS", True, Retry.SAME),
    "old connection, DELETE": (lost(sent=True, fresh=False), b"DELETE", True, Retry.SAME),
    "old connection, POST without body": (lost(sent=True, fresh=False), b"POST", True, Retry.GIVE_UP),
    "old connection, PATCH": (lost(sent=True, fresh=False), b"PATCH", True, Retry.GIVE_UP),
    "old connection, PUT with body": (lost(sent=True, fresh=False), b"PUT", False, Retry.GIVE_UP),
    "new connection broke after sending, GET": (lost(sent=True, fresh=True), b"GET", True, Retry.GIVE_UP),
    "new connection broke after sending, POST": (lost(sent=True, fresh=True), b"POST", False, Retry.GIVE_UP),
    "not HTTP": (ResponseInvalid("not HTTP"), b"GET", True, Retry.GIVE_UP),
    "too late": (ResponseTimeout("late"), b"GET", True, Retry.GIVE_UP),
}


@pytest.mark.parametrize(("error", "method", "bodiless", "step"), SAFE.values(), ids=SAFE)
def test_only_what_is_safe_is_sent_again(error: NetError, method: bytes, bodiless: bool, step: Retry) -> None:
    assert after_failure(error, method=method, bodiless=bodiless, replayable=True, attempts=1) is step


@pytest.mark.parametrize(("error", "method", "bodiless", "step"), SAFE.values(), ids=SAFE)
def test_nothing_is_sent_again_once_some_of_its_body_is_let_go(
    error: NetError, method: bytes, bodiless: bool, step: Retry
) -> None:
    assert after_failure(error, method=method, bodiless=bodiless, replayable=False, attempts=1) is Retry.GIVE_UP


def test_attempts_have_an_end() -> None:
    steps = [
        after_failure(REFUSED, method=b"GET", bodiless=True, replayable=True, attempts=n)
        for n in range(1, MAX_ATTEMPTS + 1)
    ]
    assert steps == [Retry.OTHER] * (MAX_ATTEMPTS - 1) + [Retry.GIVE_UP]
