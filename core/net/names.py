"""Senders route by name, not by DNS: the cluster's names lead to the platform's own listeners.

``<service>.<namespace>.svc.cluster.local`` and ``<service>.<namespace>.localhost`` lead to the gateway, and so does
``<revision>.<namespace>.revision.localhost``, where a revision answers whatever traffic its Route gives it;
``broker-ingress.*`` to the broker's ingress; the Host header keeps the name. Every other name is left to DNS.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import SplitResult, quote, urlsplit

import msgspec

from core.net.types import Address

__all__ = ["REVISION_SUFFIX", "Names", "Target", "revision_host"]

#: Of the hosts of single revisions. One label longer than a Route's host, so that no Route can have it.
REVISION_SUFFIX: Final = ".revision.localhost"

_SUFFIXES: Final = (".svc.cluster.local", ".localhost")

# What a path may hold beside letters, digits and "-._~" (RFC 3986, 3.3), and "%" because escapes stay as they are.
_KEPT = "/%:@!$&'()*+,;="


class Target(msgspec.Struct, frozen=True):
    """Where to connect for a URL, and what to ask for there. `function` tells that it is a name such as functions have,
    so that a gateway is likely to answer."""

    address: Address
    host: bytes
    path: bytes
    tls: bool = False
    function: bool = False


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """The platform's names. `gateway` and `broker` are where those listeners are; None leaves the names to DNS."""

    gateway: Address | None = None
    broker: Address | None = None

    def target(self, url: str) -> Target:
        """Where `url` leads. Raises ValueError where it is not an absolute http or https URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not an absolute http or https URL")
        tls = parts.scheme == "https"
        known = None if tls else self._own(parts.hostname)
        function = not tls and _is_function(parts.hostname)
        address = known or (parts.hostname, parts.port or (443 if tls else 80))
        path = quote(parts.path, safe=_KEPT) or "/"
        if parts.query:
            path += "?" + quote(parts.query, safe=_KEPT + "?")
        try:
            return Target(address, _host(parts).encode("idna"), path.encode(), tls, function)
        except UnicodeError as error:
            raise ValueError(f"{url!r} has a host that is not a DNS name: {error}") from error

    def _own(self, hostname: str) -> Address | None:
        if _is_function(hostname):
            return self.gateway
        return self.broker if hostname.endswith(_SUFFIXES) else None


def _is_function(hostname: str) -> bool:
    return hostname.endswith(_SUFFIXES) and not hostname.startswith("broker-ingress.")


def revision_host(namespace: str, name: str) -> str:
    """The host at which the gateway serves one revision, with traffic of its Route or without."""
    return f"{name}.{namespace}{REVISION_SUFFIX}"


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    return f"{host}:{parts.port}" if parts.port else host
