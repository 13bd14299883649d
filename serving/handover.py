"""How one gateway hands a request over to another: what is on the wire, as pure functions.

The request keeps its method, target, body and headers. Its Host names the revision, which was chosen already, and the
client's own Host travels in a header, so that the taker finds the way by Host as for any request. It never hands the
request on. Somebody else who asks for such a Host reaches a revision, as by a Route's tag, and nothing more.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from core.net.types import Headers, NetError, RequestHead
from serving.routing import RevisionKey

__all__ = [
    "EXPECT",
    "MISDIRECTED",
    "NOT_THE_OWNER",
    "NotTheOwner",
    "handed_headers",
    "is_given_back",
    "revision_of",
    "taken_head",
]

#: Asks the taker to say 100 Continue once it begins (RFC 9110, 10.1.1).
EXPECT: Final = b"expect: 100-continue\r\n"

#: How a taker gives a request back: 421 Misdirected Request with this reason.
MISDIRECTED: Final = 421
NOT_THE_OWNER: Final = "not-the-owner"
_REASON: Final = (b"penstock-reason", NOT_THE_OWNER.encode())

_HOST: Final = b"penstock-host"
_SUFFIX: Final = b".revision.penstock.internal"


class NotTheOwner(NetError):
    """The gateway that a request was handed to has no instance of the revision any more."""

    def __init__(self) -> None:
        super().__init__("The gateway that it was handed to has no instance of the revision any more.")


def handed_headers(headers: Headers, key: RevisionKey) -> Headers:
    """The headers of a request for revision `key` as another gateway gets it."""
    kept: Headers = [(b"host", b"%b.%b%b" % (key.name.encode(), key.namespace.encode(), _SUFFIX))]
    for name, value in headers:
        if name == b"host":
            kept.append((_HOST, value))
        elif name != _HOST:
            kept.append((name, value))
    return kept


def revision_of(host: bytes) -> RevisionKey | None:
    """Which revision a request with this Host is handed over for; None where it is not."""
    if not host.endswith(_SUFFIX):
        return None
    name, dot, namespace = host.removesuffix(_SUFFIX).decode("latin-1").rpartition(".")
    return RevisionKey(namespace, name) if dot else None


def taken_head(head: RequestHead) -> RequestHead:
    """The head of a request that was handed over, as the client sent it."""
    host = next((value for name, value in head.headers if name == _HOST), head.host)
    kept: Headers = [(name, host if name == b"host" else value) for name, value in head.headers if name != _HOST]
    return replace(head, host=host.lower(), headers=kept)


def is_given_back(status: int, headers: Headers) -> bool:
    """Whether this is no answer to the request, but says that it was handed to the wrong gateway."""
    return status == MISDIRECTED and _REASON in headers
