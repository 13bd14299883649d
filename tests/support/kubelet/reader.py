"""Reads objects as ``kubectl get -o json`` does, without a process for each look: tests look many times a second."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

__all__ = ["Query", "Reader", "query"]

#: One answer that describes every kind of a server.
_DISCOVERY: Final = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is asked for: a kind by any of its names, and one object of it or all that match."""

    kind: str
    name: str = ""
    namespace: str = "default"
    everywhere: bool = False
    selector: str = ""


def query(words: tuple[str, ...]) -> Query:
    """From the words of ``kubectl get``: KIND [NAME] or KIND/NAME, -n, -l, -A. Raises ValueError for any other."""
    named: list[str] = []
    options: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word in {"-n", "--namespace", "-l", "--selector"}:
            options[word.lstrip("-")[0]] = next(rest)
        elif word in {"-A", "--all-namespaces"}:
            options["A"] = word
        elif word.startswith("-"):
            raise ValueError(f"{word} is not understood here: use kubectl")
        else:
            named += word.split("/", 1)
    if len(named) not in {1, 2}:
        raise ValueError(f"{' '.join(words)!r} names no kind, or more than one object")
    return Query(
        kind=named[0].lower(),
        name=named[1] if len(named) > 1 else "",
        namespace=options.get("n", "default"),
        everywhere="A" in options,
        selector=options.get("l", ""),
    )


class Reader:
    """A client of the API server at `url`. Its one connection is kept, and made anew where the server went away."""

    def __init__(self, url: str, tls: ssl.SSLContext) -> None:
        self._connection = http.client.HTTPSConnection(urlsplit(url).netloc, timeout=_TIMEOUT_S, context=tls)
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[str, bool]] = {}

    def get(self, *words: str) -> Any:
        """An object, or a list's items. Raises RuntimeError, in the server's words, where it cannot be had."""
        wanted = query(words)
        base, namespaced = self._kind(wanted.kind)
        prefix, plural = base.rsplit("/", 1)
        place = f"/namespaces/{wanted.namespace}" if namespaced and not wanted.everywhere else ""
        path = f"{prefix}{place}/{plural}"
        if wanted.name:
            return self._read(f"{path}/{wanted.name}")
        found = self._read(path + (f"?{urlencode({'labelSelector': wanted.selector})}" if wanted.selector else ""))
        return found["items"]

    def close(self) -> None:
        self._connection.close()

    def _kind(self, name: str) -> tuple[str, bool]:
        """The path of a kind's collection, and whether it is in namespaces. New kinds are looked for once."""
        if name not in self._kinds:
            self._kinds = {}
            # As with kubectl, the first that has a name keeps it: `services` are Kubernetes' own.
            for root in ("/api", "/apis"):
                for group in self._read(root, accept=_DISCOVERY)["items"]:
                    self._kinds = _kinds(root, group) | self._kinds
        if name not in self._kinds:
            raise RuntimeError(f'the server has no resource type "{name}"')
        return self._kinds[name]

    def _read(self, path: str, *, accept: str = "application/json") -> Any:
        try:
            with self._lock:
                status, body = self._exchange(path, accept)
        except (OSError, http.client.HTTPException) as error:
            raise RuntimeError(f"GET {path}: {error!r}") from error
        answer = json.loads(body)
        if status != 200:
            raise RuntimeError(f"GET {path}: ({answer.get('reason')}) {answer.get('message')}")
        return answer

    def _exchange(self, path: str, accept: str) -> tuple[int, bytes]:
        try:
            return self._once(path, accept)
        except (OSError, http.client.HTTPException):
            # The server closed what was idle, or was restarted; a closed connection is opened again.
            self._connection.close()
        try:
            return self._once(path, accept)
        except BaseException:
            self._connection.close()
            raise

    def _once(self, path: str, accept: str) -> tuple[int, bytes]:
        self._connection.request("GET", path, headers={"Accept": accept})
        response = self._connection.getresponse()
        return response.status, response.read()


def _kinds(root: str, group: Any) -> dict[str, tuple[str, bool]]:
    """By each name of each kind of the group's preferred version; names with the group work too."""
    found: dict[str, tuple[str, bool]] = {}
    name = group["metadata"].get("name", "")
    version = group["versions"][0]
    for resource in version.get("resources", ()):
        plural = resource["resource"]
        base = f"{root}/{name + '/' if name else ''}{version['version']}/{plural}"
        entry = (base, resource["scope"] == "Namespaced")
        names = {plural, resource.get("singularResource", ""), resource["responseKind"]["kind"].lower()}
        for one in {*names, *resource.get("shortNames", ())} - {""}:
            found[one] = entry
            if name:
                found[f"{one}.{name}"] = entry
    return found
