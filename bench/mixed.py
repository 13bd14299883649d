"""Ten thousand Triggers whose filters are of every dialect, of which ten want the benchmark's event."""

from __future__ import annotations

import http.client
import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from bench import manifests
from bench.broken import Broken
from bench.platform import NAMESPACE, address
from broker.resources import TRIGGER
from penstock.cli.api import collection_path
from penstock.kinds import registry
from penstock.testing import Platform, wait_until

__all__ = ["MATCHING", "create", "matching", "others"]

#: The API's process is busy with two of them; more only wait.
_CONNECTIONS: Final = 4
_READY_TIMEOUT_S: Final = 300.0

_GAUGE: Final = "penstock_broker_triggers "

_OWN: Final = {"exact": {"type": "bench.cpu"}}
#: Specs that the event matches, one of each kind.
_MATCHING: Final[tuple[Mapping[str, Any], ...]] = (
    {},
    {"filter": {"attributes": {"type": "bench.cpu"}}},
    {"filters": [_OWN]},
    {"filters": [{"prefix": {"type": "bench."}}]},
    {"filters": [{"suffix": {"source": "/bench"}}]},
    {"filters": [{"exact": {"source": "/penstock/bench", "datacontenttype": "application/json"}}]},
    {"filters": [{"all": [_OWN, {"prefix": {"source": "/penstock/"}}]}]},
    {"filters": [{"any": [{"exact": {"type": "bench.other"}}, {"suffix": {"type": ".cpu"}}]}]},
    {"filters": [{"not": {"exact": {"type": "bench.other"}}}]},
    {"filters": [{"cesql": "type LIKE 'bench.%' AND EXISTS source"}]},
)
MATCHING: Final = len(_MATCHING)


def matching(of: str, uris: Sequence[str]) -> list[dict[str, Any]]:
    """A Trigger of the Broker for each of as many subscribers as `MATCHING`, whose filters the event matches."""
    return [
        _trigger(f"{of}-wants-{n}", of, spec, uri) for n, (spec, uri) in enumerate(zip(_MATCHING, uris, strict=True))
    ]


def others(of: str, count: int, uri: str) -> list[dict[str, Any]]:
    """Triggers of the Broker that the event does not match, no two with the same filter."""
    return [_trigger(f"{of}-other-{n}", of, _other(n), uri) for n in range(count)]


def _other(n: int) -> Mapping[str, Any]:
    if n % 1000 == 999:  # implies nothing that could be looked up
        return {"filters": [{"not": {"any": [{"prefix": {"type": "bench."}}, {"exact": {"tenant": f"t{n}"}}]}}]}
    kinds: tuple[Mapping[str, Any], ...] = (
        {"filter": {"attributes": {"type": f"bench.other-{n}"}}},
        {"filter": {"attributes": {"type": "bench.cpu", "tenant": f"t{n}"}}},
        {"filters": [{"exact": {"type": "bench.cpu", "source": f"/other/{n}"}}]},
        {"filters": [{"prefix": {"source": f"/penstock/bench/{n}/"}}]},
        {"filters": [{"suffix": {"source": f"/bench-{n}"}}]},
        {"filters": [{"all": [_OWN, {"prefix": {"subject": f"tenants/{n}/"}}]}]},
        {"filters": [{"any": [{"exact": {"type": f"bench.other-{n}"}}, {"exact": {"subject": f"s{n}"}}]}]},
        {"filters": [_OWN, {"not": {"exact": {"datacontenttype": "text/plain"}}}, {"suffix": {"source": f"-{n}"}}]},
        {"filters": [{"cesql": f"type = 'bench.cpu' AND source = '/other/{n}'"}]},
    )
    return kinds[n % len(kinds)]


def _trigger(name: str, of: str, wants: Mapping[str, Any], uri: str) -> dict[str, Any]:
    manifest = manifests.trigger(name, of, "", uri)
    del manifest["spec"]["filter"]
    manifest["spec"] |= wants
    return manifest


def create(platform: Platform, triggers: Iterable[Mapping[str, Any]], *, beside: int) -> None:
    """Create the Triggers through the API, `beside` those that there are, and wait until the broker has all of them and
    each is Ready. Raises Broken."""
    path = collection_path(registry().get(TRIGGER), NAMESPACE)
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    count = beside
    for trigger in triggers:
        waiting.put(msgspec.json.encode(trigger))
        count += 1
    refused: list[str] = []
    threads = [
        threading.Thread(target=_post, args=(platform, path, waiting, refused), daemon=True)
        for _ in range(_CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if refused:
        raise Broken(f"The API refused a Trigger: {refused[0]}")
    try:
        wait_until(lambda: _held(platform) >= count, what="the broker has all", timeout_s=_READY_TIMEOUT_S)
        wait_until(lambda: _ready(platform, path) >= count, what="all are ready", timeout_s=_READY_TIMEOUT_S)
    except TimeoutError as error:
        raise Broken(f"The Triggers: {error}") from error


def _post(platform: Platform, path: str, waiting: queue.SimpleQueue[bytes], refused: list[str]) -> None:
    host, port = address(platform.places.api)
    connection = http.client.HTTPConnection(host, port, timeout=30)
    while not refused:
        try:
            body = waiting.get_nowait()
        except queue.Empty:
            break
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != http.client.CREATED:
            refused.append(text.decode(errors="replace"))
    connection.close()


def _held(platform: Platform) -> int:
    """How many Triggers the broker process delivers for."""
    host, port = address(platform.places.broker)
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(_GAUGE)), 0)


def _ready(platform: Platform, path: str) -> int:
    """How many Triggers are Ready."""
    listed = platform.api.request("GET", path)["items"]
    return sum(
        any(each["type"] == "Ready" and each["status"] == "True" for each in item["status"].get("conditions", ()))
        for item in listed
        if "status" in item
    )
