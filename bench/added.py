"""How soon a Trigger that is added takes effect: from the API's answer to its first delivery, in a stream of events."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final

import msgspec

from bench import manifests
from bench.broken import Broken
from bench.platform import NAMESPACE, address
from broker.resources import TRIGGER
from penstock.cli.api import collection_path
from penstock.kinds import registry
from penstock.testing import Platform

__all__ = ["Added"]

#: A Trigger that has got nothing by then is broken.
_TIMEOUT_S: Final = 10.0


class Added:
    """Publishes events of a type that nobody wants, one after the other, and adds Triggers that want them; a context
    manager. Its own subscriber notes when each one got its first."""

    def __init__(self, platform: Platform, broker: str) -> None:
        self._platform = platform
        self._broker = broker
        self._subscriber = _Subscriber()
        self._stopped = False
        self._publisher = threading.Thread(target=self._publish, daemon=True)
        self._listener = threading.Thread(target=self._subscriber.serve_forever, daemon=True)
        host, port = address(platform.places.api)
        self._api = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)

    def __enter__(self) -> Added:
        self._listener.start()
        self._publisher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._publisher.join()
        self._subscriber.shutdown()
        self._subscriber.server_close()
        self._api.close()

    def add(self, name: str) -> float:
        """Seconds from the API's answer to the Trigger's first delivery. It is deleted again."""
        arrived = self._subscriber.expect(name)
        uri = f"http://127.0.0.1:{self._subscriber.server_port}/{name}"
        path = collection_path(registry().get(TRIGGER), NAMESPACE)
        self._ask("POST", path, manifests.trigger(name, self._broker, "bench.added", uri))
        answered_s = time.monotonic()
        if not arrived.wait(_TIMEOUT_S):
            raise Broken(f"The added Trigger {name} got no event within {_TIMEOUT_S:g} s.")
        self._ask("DELETE", f"{path}/{name}", None)
        return max(0.0, self._subscriber.first_s[name] - answered_s)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> None:
        text = None if body is None else msgspec.json.encode(body)
        self._api.request(method, path, text, {"content-type": "application/json"})
        answer = self._api.getresponse()
        said = answer.read()
        if answer.status >= 300:
            raise Broken(f"The API answered {method} {path} with {answer.status}: {said.decode(errors='replace')}")

    def _publish(self) -> None:
        host, port = address(self._platform.places.broker)
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        number = 0
        while not self._stopped:
            number += 1
            headers = {"ce-specversion": "1.0", "ce-source": "/penstock/added", "ce-type": "bench.added"}
            connection.request("POST", f"/{NAMESPACE}/{self._broker}", b"", headers | {"ce-id": f"added-{number}"})
            connection.getresponse().read()
        connection.close()


class _Subscriber(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.first_s: dict[str, float] = {}
        self._expected: dict[str, threading.Event] = {}

    def expect(self, name: str) -> threading.Event:
        return self._expected.setdefault(name, threading.Event())

    def arrived(self, name: str) -> None:
        self.first_s.setdefault(name, time.monotonic())
        self._expected[name].set()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Subscriber

    def do_POST(self) -> None:
        self.server.arrived(self.path.removeprefix("/"))
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(202)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its base's name
        return
