"""Where URLs lead."""

from __future__ import annotations

import pytest

from core.net.names import Names, Target

NAMES = Names(gateway=("127.0.0.1", 8080), broker=("127.0.0.1", 8081))
GATEWAY, BROKER = NAMES.gateway, NAMES.broker


@pytest.mark.parametrize(
    ("url", "address", "host", "path"),
    [
        ("http://scan.default.svc.cluster.local", GATEWAY, b"scan.default.svc.cluster.local", b"/"),
        ("http://scan.default.svc.cluster.local/a?b=c", GATEWAY, b"scan.default.svc.cluster.local", b"/a?b=c"),
        ("http://scan.default.localhost:8080/", GATEWAY, b"scan.default.localhost:8080", b"/"),
        ("http://scan-1.default.revision.localhost/", GATEWAY, b"scan-1.default.revision.localhost", b"/"),
        ("http://broker-ingress.ns.svc.cluster.local/ns/b", BROKER, b"broker-ingress.ns.svc.cluster.local", b"/ns/b"),
        ("http://broker-ingress.localhost:8080/ns/b", BROKER, b"broker-ingress.localhost:8080", b"/ns/b"),
        ("http://example.com", ("example.com", 80), b"example.com", b"/"),
        ("http://example.com:81?q", ("example.com", 81), b"example.com:81", b"/?q"),
        ("http://user:secret@example.com/", ("example.com", 80), b"example.com", b"/"),
        ("http://localhost:9000/", ("localhost", 9000), b"localhost:9000", b"/"),
        ("http://[::1]:9000/", ("::1", 9000), b"[::1]:9000", b"/"),
        (
            "http://example.com/a b/\u00e9?x=\u00e9 y#part",
            ("example.com", 80),
            b"example.com",
            b"/a%20b/%C3%A9?x=%C3%A9%20y",
        ),
        ("http://example.com/a%2Fb", ("example.com", 80), b"example.com", b"/a%2Fb"),
        ("http://b\u00fccher.example/", ("b\u00fccher.example", 80), b"xn--bcher-kva.example", b"/"),
    ],
)
def test_a_name_of_ours_leads_to_its_listener_and_every_other_to_itself(
    url: str, address: tuple[str, int], host: bytes, path: bytes
) -> None:
    assert NAMES.target(url) == Target(address, host, path, function=address == GATEWAY)


def test_https_is_never_ours_because_the_listeners_speak_plain_http() -> None:
    url = "https://scan.default.svc.cluster.local/x"
    assert NAMES.target(url) == Target(
        ("scan.default.svc.cluster.local", 443), b"scan.default.svc.cluster.local", b"/x", True
    )


def test_without_a_listener_of_that_kind_names_are_left_to_dns() -> None:
    assert Names().target("http://a.b.svc.cluster.local").address == ("a.b.svc.cluster.local", 80)


@pytest.mark.parametrize(
    "url", ["", "/path", "ftp://a/", "http://", "http:///x", "http://a:b/", "http://a:99999/", "http://a..b/"]
)
def test_what_is_no_absolute_http_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - some of these are urllib's own
        NAMES.target(url)
