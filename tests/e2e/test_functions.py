"""Functions of every shape on a running platform: served, split, rolled out under load, crashed, drained."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.testing import Platform, wait_until

pytestmark = pytest.mark.e2e

ASGI = """
import core  # this folder's, whatever else is called so
import broker

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = f"{core.NAME} {broker.NAME} {scope['path']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})
"""

ASYNC = """
import asyncio
from cloudevents.core.v1.event import CloudEvent

async def handle(event):
    await asyncio.sleep(0.01)
    return CloudEvent({"id": "re-" + event.get_id(), "source": "/async", "type": "answered"}, {"to": event.get_id()})
"""

SYNC = """
def handle(event):
    print("got", event.get_id(), event.get_type(), flush=True)
"""

RAISES = """
def handle(event):
    raise ValueError("no good: " + event.get_id())
"""

PROGRAM = """
import http.server, os

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"a program")

    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""

VERSION = """
import asyncio

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await asyncio.sleep(0.02)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%s"})
"""

SLOW = """
import asyncio
from pathlib import Path

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        Path("shut-down").touch()
        await send({"type": "lifespan.shutdown.complete"})
        return
    Path("began").touch()
    while not Path("go-on").exists():
        await asyncio.sleep(0.01)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"whole"})
"""


def service(name: str, source: str, *, revision: str = "", annotations: str = "", traffic: str = "") -> str:
    named = f"name: {revision}, " if revision else ""
    return f"""
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {{name: {name}}}
spec:
  template:
    metadata: {{{named}annotations: {{penstock.dev/source: "{source}", {annotations}}}}}
    spec: {{containers: [{{image: dev.local/{name}}}]}}
{traffic}
"""


def trigger(name: str, wanted: str, subscriber: str, *, delivery: str = "{}", broker: str = "default") -> str:
    return f"""
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {{name: {name}}}
spec:
  broker: {broker}
  filter: {{attributes: {{type: {wanted}}}}}
  subscriber: {{ref: {{apiVersion: serving.knative.dev/v1, kind: Service, name: {subscriber}}}}}
  delivery: {delivery}
"""


def broker(name: str = "default") -> str:
    return f"apiVersion: eventing.knative.dev/v1\nkind: Broker\nmetadata: {{name: {name}}}\n"


AT_ZERO = 'autoscaling.knative.dev/initial-scale: "0"'
FOLDERS = {
    "one/app.py": ASGI,
    "one/core/__init__.py": 'NAME = "core of one"',
    "one/broker.py": 'NAME = "broker of one"',
    "two/app.py": ASGI,
    "two/core.py": 'NAME = "core of two"',
    "two/broker/__init__.py": 'NAME = "broker of two"',
    "async/function.py": ASYNC,
    "sync/function.py": SYNC,
    "raises/function.py": RAISES,
    "crashes/function.py": "import no_such_module_here\n\ndef handle(event):\n    pass\n",
    "program/serve.py": PROGRAM,
    "v1/app.py": VERSION % "one",
    "v2/app.py": VERSION % "two",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    root = tmp_path_factory.mktemp("functions")
    write(root, FOLDERS)
    with Platform.start(data=root / "data", root=root) as platform:
        yield platform


def apply(platform: Platform, *manifests: str) -> None:
    platform.penstock("apply", "-f", "-", text="---\n".join(manifests))


def applied(platform: Platform, name: str, *manifests: str) -> None:
    """Apply, and wait until the Service of that name is ready."""
    apply(platform, *manifests)
    wait_until(lambda: platform.is_ready("ksvc", name), what=f"{name} is ready")


def ask(platform: Platform, service_name: str, path: str = "/") -> tuple[int, str]:
    """One GET through the gateway."""
    host, _, port = platform.places.gateway.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Host": f"{service_name}.default.localhost"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def states(platform: Platform, event_id: str) -> dict[str, str]:
    """How the event stands for each Trigger that matches it."""
    done = platform.penstock("explain", event_id, "-o", "json", check=False)
    told = json.loads(done.stdout) if done.returncode == 0 else []
    return {
        each["trigger"].partition("/")[2]: each["state"]
        for explained in told
        for each in explained["triggers"]
        if each["matched"]
    }


class Load:
    """Requests from several clients at once, one after the other each, until leaving; `answers` counts them."""

    def __init__(self, platform: Platform, service_name: str, clients: int = 4) -> None:
        self.answers: collections.Counter[tuple[int, str]] = collections.Counter()
        self._platform, self._service = platform, service_name
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers[ask(self._platform, self._service)] += 1
            except (OSError, http.client.HTTPException) as error:
                self.answers[(0, repr(error))] += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_asgi_functions_keep_to_their_own_modules_though_their_names_clash(running):
    apply(running, service("one", "one"), service("two", "two"))
    wait_until(lambda: running.is_ready("ksvc", "one") and running.is_ready("ksvc", "two"), what="both are ready")
    assert ask(running, "one", "/x") == (200, "core of one broker of one /x")
    assert ask(running, "two", "/y") == (200, "core of two broker of two /y")


def test_a_command_that_listens_on_its_port_is_a_function(running):
    applied(running, "program", service("program", "python3 program/serve.py", annotations=AT_ZERO))
    assert ask(running, "program") == (200, "a program")


def test_handles_sync_and_async_get_events_and_answer_with_events(running):
    apply(
        running,
        broker(),
        service("async", "async", annotations=AT_ZERO),
        service("sync", "sync", annotations=AT_ZERO),
        trigger("asks", "asked", "async"),
        trigger("tells", "answered", "sync"),
    )
    wait_until(lambda: running.is_ready("trigger", "asks") and running.is_ready("trigger", "tells"), what="ready")
    running.penstock("send", "--type", "asked", "--id", "q1")
    wait_until(lambda: states(running, "re-q1") == {"tells": "delivered"}, what="the answer is delivered")
    assert "got re-q1 answered" in running.penstock("logs", "sync").stdout
    told = running.penstock("explain", "q1").stdout
    assert re.search(r"attempt 1  \S+  200 from async-00001  [\d.]+ ms \(cold start \d+ ms\)  delivered", told), told


def test_triggers_wait_for_brokers_and_subscribers_that_come_later(running):
    apply(running, trigger("patient", "early", "late", broker="later"))
    told = running.penstock("describe", "trigger", "patient").stdout
    assert "BrokerDoesNotExist" in told
    apply(running, broker("later"))
    wait_until(lambda: running.is_ready("broker", "later"), what="the Broker is ready")
    running.penstock("send", "--broker", "later", "--type", "early", "--id", "e1")
    wait_until(lambda: states(running, "e1") == {"patient": "pending"}, what="the event waits")
    assert '"default/late" does not exist' in running.penstock("explain", "e1").stdout
    apply(running, service("late", "sync", annotations=AT_ZERO))
    wait_until(lambda: states(running, "e1") == {"patient": "delivered"}, what="the event is delivered")


def test_a_function_that_raises_is_tried_again_and_given_up_to_the_dead_letter_sink(running):
    buried = "{ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: buried}}"
    sink = f"{{retry: 2, backoffPolicy: linear, backoffDelay: PT0.05S, deadLetterSink: {buried}}}"
    apply(
        running,
        broker(),
        service("raises", "raises", annotations=AT_ZERO),
        service("buried", "sync", annotations=AT_ZERO),
        trigger("given-up", "bad", "raises", delivery=sink),
        trigger("dropped", "bad", "raises", delivery="{retry: 0}"),
    )
    wait_until(lambda: running.is_ready("trigger", "given-up") and running.is_ready("trigger", "dropped"), what="ready")
    running.penstock("send", "--type", "bad", "--id", "b1")
    final = {"given-up": "dead-lettered", "dropped": "dropped"}
    wait_until(lambda: states(running, "b1") == final, what="both Triggers give up")
    assert "ValueError: no good: b1" in running.penstock("logs", "raises").stdout
    assert "got b1 bad" in running.penstock("logs", "buried").stdout
    told = running.penstock("explain", "b1").stdout
    assert "Given up after 3 attempts: the subscriber answered 500. It goes to the dead-letter sink." in told
    assert "dropped: given up, and there is no dead-letter sink" in told


def test_a_crash_at_import_is_told_by_the_revision_with_the_last_line_of_the_log(running):
    apply(running, service("crashes", "crashes"))

    def failure() -> str:
        conditions = running.get("revision", "crashes-00001").get("status", {}).get("conditions", [])
        return next((c["message"] for c in conditions if c["type"] == "Ready" and c["status"] == "False"), "")

    told = wait_until(failure, what="the Revision says why")
    assert "No module named 'no_such_module_here'" in told.splitlines()[-1]
    assert "no_such_module_here" in running.penstock("describe", "ksvc", "crashes").stdout
    status, text = ask(running, "crashes")
    assert status == 503
    assert "penstock describe route crashes" in text


def test_traffic_is_split_between_revisions_and_taken_back(running):
    applied(running, "split", service("split", "v1", revision="split-a"))
    both = "  traffic: [{revisionName: split-a, percent: 80}, {revisionName: split-b, percent: 20, tag: new}]"
    applied(running, "split", service("split", "v2", revision="split-b", traffic=both))
    wait_until(lambda: "new" in running.penstock("describe", "ksvc", "split").stdout, what="the split is in force")
    wait_until(lambda: ask(running, "new-split") == (200, "two"), what="the tag leads to the new revision")
    seen = collections.Counter(ask(running, "split") for _ in range(150))
    assert set(seen) == {(200, "one"), (200, "two")}
    # 150 draws of 20 %: outside of 10 to 50 once in some hundred thousand runs.
    assert 10 <= seen[(200, "two")] <= 50
    back = "  traffic: [{revisionName: split-a, percent: 100}]"
    applied(running, "split", service("split", "v2", revision="split-b", traffic=back))
    wait_until(lambda: {ask(running, "split") for _ in range(20)} == {(200, "one")}, what="all goes to the old one")


def test_a_rollout_under_load_has_no_error_and_one_that_fails_leaves_the_old_revision_serving(running):
    applied(running, "roll", service("roll", "v1"))
    with Load(running, "roll") as load:
        wait_until(lambda: load.answers[(200, "one")] >= 20, what="the old revision serves")
        apply(running, service("roll", "v2"))
        wait_until(lambda: load.answers[(200, "two")] >= 20, what="the new revision serves")
        apply(running, service("roll", "crashes"))
        wait_until(
            lambda: "roll-00003  False" in running.penstock("describe", "ksvc", "roll").stdout, what="the third failed"
        )
        before = load.answers[(200, "two")]
        wait_until(lambda: load.answers[(200, "two")] >= before + 20, what="the second goes on serving")
    assert set(load.answers) == {(200, "one"), (200, "two")}


def test_a_service_that_is_deleted_is_gone_with_all_that_it_made(running):
    applied(running, "brief", service("brief", "v1"))
    assert ask(running, "brief") == (200, "one")
    running.penstock("delete", "ksvc", "brief")

    def left() -> str:
        told = running.penstock("get", "revisions,routes,configurations,endpointslices", "-o", "name").stdout
        return "\n".join(line for line in told.splitlines() if "/brief" in line)

    wait_until(lambda: not left(), what="nothing of it is left")
    wait_until(lambda: ask(running, "brief")[0] == 404, what="its host is unknown")


def test_a_request_under_way_is_answered_while_everything_stops(tmp_path):
    write(tmp_path, {"slow/app.py": SLOW})
    with Platform.start(data=tmp_path / "data", root=tmp_path) as platform:
        applied(platform, "slow", service("slow", "slow"))
        answers: list[tuple[int, str]] = []
        asking = threading.Thread(target=lambda: answers.append(ask(platform, "slow")))
        asking.start()
        wait_until((tmp_path / "slow/began").exists, what="the request has begun")
        platform.process.terminate()
        wait_until(lambda: "Draining" in platform.output(), what="it drains")
        (tmp_path / "slow/go-on").touch()
        assert platform.process.wait(60) == 0
        asking.join(60)
    assert answers == [(200, "whole")]
    assert (tmp_path / "slow/shut-down").exists()
    assert "Traceback" not in platform.output()
