"""Dead letters and replays on a running platform: a function that fails, one that is mended, and who gets what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.testing import Platform, wait_until

pytestmark = pytest.mark.e2e

#: Fails for every event whose data has no name, and says whom it served.
FUNCTION = """
def handle(event):
    print("version {version}:", event.get_id(), (event.get_data() or {{}})["name"], flush=True)
"""

MANIFEST = """\
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: default}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: orders}
spec:
  template:
    metadata:
      annotations: {penstock.dev/source: VERSION}
    spec:
      containers: [{image: dev.local/orders}]
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: orders}
spec:
  broker: default
  filter: {attributes: {type: order}}
  delivery: {retry: 0}
  subscriber: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: orders}}
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    root = tmp_path_factory.mktemp("replay")
    for version, function in (("v1", FUNCTION), ("v2", FUNCTION.replace('["name"]', '.get("name", "nobody")'))):
        (root / version).mkdir()
        (root / version / "function.py").write_text(function.format(version=version[1]))
    with Platform.start(data=root / "data", root=root) as platform:
        deploy(platform, "v1")
        wait_until(lambda: platform.is_ready("trigger", "orders"), what="the Trigger is ready")
        yield platform


def deploy(platform: Platform, version: str) -> None:
    platform.penstock("apply", "-f", "-", text=MANIFEST.replace("VERSION", version))


def letters(platform: Platform, *arguments: str) -> list[dict[str, Any]]:
    lines = platform.penstock("dlq", "list", "-o", "json", *arguments).stdout.splitlines()
    return [json.loads(line) for line in lines]


def served(platform: Platform) -> list[str]:
    """What the functions have said, of all revisions."""
    said = "".join(path.read_text() for path in Path(platform.data).rglob("*.log"))
    return [line[line.index("version ") :] for line in said.splitlines() if "version " in line and "print" not in line]


def test_a_letter_is_seen_mended_and_sent_again_and_a_replay_reaches_a_trigger_and_a_revision(running, monkeypatch):
    for number in range(3):
        data = "{}" if number == 1 else f'{{"name": "n{number}"}}'
        running.penstock("send", "--type", "order", "--id", f"order-{number}", "--data", data)
    (letter,) = wait_until(lambda: letters(running), what="the event that fails is a letter")
    assert (letter["event_id"], letter["outcome"], letter["trigger"]) == ("order-1", "dropped", "default/orders")
    told = running.penstock("dlq", "show", letter["id"]).stdout
    assert "There is no dead-letter sink" in told
    assert '"id": "order-1"' in told
    assert letter["id"] in running.penstock("dlq", "list").stdout

    # Mended by a new revision, and sent again.
    deploy(running, "v2")
    wait_until(
        lambda: running.get("ksvc", "orders")["status"].get("latestReadyRevisionName") == "orders-00002",
        what="the second revision is ready",
    )
    done = json.loads(running.penstock("dlq", "redrive", "--trigger", "orders", "-o", "json").stdout)
    assert [each["letter"] for each in done["done"]] == [letter["id"]]
    wait_until(lambda: "version 2: order-1 nobody" in served(running), what="it is served by the second revision")
    assert letters(running) == []
    assert "redriven" in running.penstock("explain", "order-1").stdout

    # Replayed to the Trigger, then to the first revision, which has no traffic any more.
    told = running.penstock("replay", "--trigger", "orders", "--since", "1h", "--dry-run").stdout
    assert [line.split()[-1] for line in told.splitlines()] == ["order-0", "order-1", "order-2"]
    replay = ("replay", "--trigger", "orders", "--all", "--wait", "-o", "json")
    done = json.loads(running.penstock(*replay, "--rate", "0").stdout)
    assert (done["sent"], done["missing"], done["states"]) == (3, 0, {"delivered": 3})
    assert {f"version 2: order-{n} n{n}" for n in (0, 2)} <= set(served(running))
    done = json.loads(running.penstock(*replay, "--resume", done["replay"]).stdout)
    assert (done["sent"], done["before"]) == (0, 3)
    to_first = ("--revision", "orders-00001", "--id", "order-2")
    assert "1 delivered" in running.penstock("replay", "--trigger", "orders", "--wait", *to_first).stdout
    assert served(running).count("version 1: order-2 n2") == 2

    # As it is edited, where it is refused the work is not lost.
    monkeypatch.setenv("VISUAL", "sed -i s/specversion/specs/")
    running.penstock("send", "--type", "order", "--id", "order-8", "--data", "8")
    wait_until(lambda: letters(running), what="one more is a letter")
    refused = running.penstock("dlq", "redrive", "order-8", "--edit", check=False)
    assert refused.returncode == 1
    assert "specversion" in refused.stderr
    kept = Path(refused.stderr.split("--with ")[1].strip())
    assert '"specs"' in kept.read_text()
    kept.unlink()
    monkeypatch.setenv("VISUAL", """sed -i 's/: 8/: {"name": "m"}/'""")
    mended = running.penstock("dlq", "redrive", "order-8", "--edit")
    assert "1 letter redriven" in mended.stderr
    wait_until(lambda: "version 2: order-8 m" in served(running), what="it is served as it was edited")

    # Dropped for good.
    wrong = '{"specversion": "1.0", "id": "order-9", "source": "/x", "type": "order", "data": 7}'
    running.penstock("send", "--type", "order", "--id", "order-9", "--data", "7")
    (letter,) = wait_until(lambda: letters(running), what="another one is a letter")
    again = running.penstock("dlq", "redrive", "order-9", "--with", "-", "-o", "json", text=wrong)
    assert json.loads(again.stdout)["done"], "sent again, edited, and as wrong as before"
    (letter,) = wait_until(lambda: letters(running), what="it is a letter again")
    assert letter["repeats"] is not None
    running.penstock("dlq", "drop", letter["id"].removeprefix("default/"), "--yes")
    assert letters(running) == []
