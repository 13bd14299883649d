"""The command line on a running platform: one session of everything, in text and in JSON, compared by meaning."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock.testing import Platform, wait_until
from tests.support import document
from tests.support.hello import MANIFEST, write_hello

pytestmark = pytest.mark.e2e

#: A Trigger whose subscriber does not exist yet.
EARLY = """\
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: early}
spec:
  broker: default
  filter: {attributes: {type: hello.reply}}
  subscriber: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: later}}
"""

ALL = MANIFEST + EARLY

TITLES = [
    "broker.eventing.knative.dev/default",
    "service.serving.knative.dev/hello",
    "trigger.eventing.knative.dev/hello",
    "trigger.eventing.knative.dev/early",
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with the manifest applied and one event, "one", delivered and answered."""
    root = tmp_path_factory.mktemp("cli")
    manifest = write_hello(root, EARLY)
    with Platform.start(data=root / "data", root=root) as platform:
        said = platform.penstock("apply", "-f", str(manifest)).stdout.splitlines()
        assert said[: len(TITLES)] == [f"{title} created" for title in TITLES]
        assert "penstock get ksvc" in said[-3] + said[-2] + said[-1]
        wait_until(lambda: platform.is_ready("trigger", "hello"), what="the Trigger is ready")
        said = platform.penstock("send", "--type", "hello", "--id", "one", "--data", '{"to": "you"}').stdout
        assert "stored one in default/default" in said
        assert "penstock explain one" in said
        wait_until(lambda: states(platform, "re-one") == {"early": "pending"}, what="the reply waits")
        yield platform


def states(platform: Platform, event_id: str) -> dict[str, str]:
    """How the event of that id stands for each Trigger that wants it, as `penstock events` tells."""
    found = (json.loads(line) for line in platform.penstock("events", "-o", "json").stdout.splitlines())
    return {
        delivery["trigger"].partition("/")[2]: delivery["state"]
        for event in found
        if event["id"] == event_id
        for delivery in event["deliveries"]
    }


def read_json(platform: Platform, *arguments: str) -> Any:
    return json.loads(platform.penstock(*arguments, "-o", "json").stdout)


def test_applying_again_changes_nothing(running):
    file = str(running.data.parent / "hello.yaml")
    told = read_json(running, "apply", "-f", file)
    assert told == [{"resource": title, "result": "unchanged"} for title in TITLES]
    assert running.penstock("apply", "-q", "-f", file).stdout == f"Applied {file}: 4 unchanged.\n"
    changed = ALL.replace("type: hello}", "type: hello, source: /penstock/send}")
    told = json.loads(running.penstock("apply", "-f", "-", "-o", "json", text=changed).stdout)
    assert [each["result"] for each in told] == ["unchanged", "unchanged", "configured", "unchanged"]
    running.penstock("apply", "-f", file)
    assert running.get("trigger", "hello")["spec"]["filter"] == {"attributes": {"type": "hello"}}


def test_get_tells_the_same_in_every_format(running):
    table = [line.split() for line in running.penstock("get", "triggers").stdout.splitlines()]
    documents = read_json(running, "get", "triggers")
    names = running.penstock("get", "triggers", "-o", "name").stdout.split()
    assert table[0][:3] == ["NAME", "BROKER", "SUBSCRIBER_URI"]
    assert (
        [row[0] for row in table[1:]] == [item["metadata"]["name"] for item in documents["items"]] == ["early", "hello"]
    )
    assert names == ["trigger.eventing.knative.dev/early", "trigger.eventing.knative.dev/hello"]
    assert yaml.safe_load(running.penstock("get", "triggers", "-o", "yaml").stdout) == documents
    one = read_json(running, "get", "trigger/hello")
    assert one in documents["items"]
    several = read_json(running, "get", "brokers,triggers")
    assert [item["kind"] for item in several["items"]] == ["Broker", "Trigger", "Trigger"]
    assert "service.serving.knative.dev/hello" in running.penstock("get", "all", "-A").stdout
    assert running.penstock("get", "configmaps").stderr == "There are no configmaps in the namespace default.\n"


def test_what_get_prints_can_be_applied_again(running):
    printed = running.penstock("get", "broker/default", "trigger/hello", "-o", "yaml").stdout
    again = json.loads(running.penstock("apply", "-f", "-", "-o", "json", text=printed).stdout)
    assert [each["resource"] for each in again] == [TITLES[0], TITLES[2]]
    assert running.is_ready("trigger", "hello")


def test_kubectl_describe_shows_what_became_of_a_resource(running):
    def described(*words: str) -> str:
        command = ["kubectl", "--kubeconfig", str(running.data / "kubeconfig"), "describe", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    wait_until(lambda: "Warning  NotFound" in described("trigger", "early"), what="the Event is written")
    ready = described("trigger", "hello").partition("Events:")[2]
    assert "penstock-control" in ready
    assert "Trigger is ready." in ready
    told = running.penstock("describe", "trigger", "hello").stdout.partition("Events:")[2]
    assert re.search(r"Normal +Ready +Trigger is ready\.", told)


def test_describe_shows_a_service_with_its_url_traffic_and_revisions(running):
    told = running.penstock("describe", "ksvc", "hello").stdout
    url = running.get("ksvc", "hello")["status"]["url"]
    assert re.search(rf"^URL: +{re.escape(url)}$", told, re.MULTILINE)
    assert re.search(r"^  100% +hello-00001 +latest", told, re.MULTILINE)
    assert re.search(r"^  hello-00001 +True +[01]/[01] +hello +\d+[sm]$", told, re.MULTILINE)
    assert "penstock logs hello" in told
    assert read_json(running, "describe", "ksvc/hello")["metadata"]["name"] == "hello"
    assert "trigger" not in running.penstock("describe", "broker", "default").stdout.partition("Triggers:")[0]
    assert "early  False  NotFound" in running.penstock("describe", "broker", "default").stdout


def test_the_story_of_an_event_is_told_with_what_waits_and_why(running):
    told = running.penstock("explain", "one").stdout
    assert re.search(r"├─ early: not wanted: filter\.attributes: type is 'hello\.reply'; the event has 'hello'", told)
    assert "└─ hello: delivered" in told
    assert 'early: pending: Service.serving.knative.dev "default/later" does not exist.' in told
    (explained,) = read_json(running, "explain", "one")
    assert {each["trigger"]: each["state"] for each in explained["triggers"]} == {
        "default/early": "not wanted",
        "default/hello": "delivered",
    }
    (reply,) = explained["triggers"][1]["replies"]
    assert reply["event"]["id"] == "re-one"


def test_events_are_told_alike_in_text_and_json(running):
    lines = running.penstock("events", "--type", "hello.reply").stdout.splitlines()
    found = [
        json.loads(line)
        for line in running.penstock("events", "--type", "hello.reply", "-o", "json").stdout.splitlines()
    ]
    assert len(lines) == len(found) > 0
    for line, event in zip(lines, found, strict=True):
        assert event["id"] in line
        assert "… early" in line
    nothing = running.penstock("events", "--type", "nothing.like.it")
    assert (nothing.stdout, nothing.returncode) == ("", 0)
    assert "No events that match" in nothing.stderr


def test_events_are_followed_by_what_they_carry_and_by_what_becomes_of_them(running):
    wanted = ("-e", "lot=7", "--filter", "type LIKE 'hello%'", "--trigger", "hello", "--state", "delivered")
    with running.following("events", "--follow", "-o", "json", *wanted) as events:
        for number, lot in enumerate("787"):
            running.penstock("send", "--type", "hello", "--id", f"lot-{number}", "-e", f"lot={lot}")
        wait_until(lambda: "lot-2" in events.text, what="the last one is shown")
    found = [json.loads(line) for line in events.text.splitlines()]
    assert [event["id"] for event in found] == ["lot-0", "lot-2"]
    assert {each["state"] for event in found for each in event["deliveries"]} == {"delivered"}


def test_logs_are_told_alike_in_text_and_json(running):
    lines = running.penstock("logs", "hello").stdout.splitlines()
    found = [json.loads(line) for line in running.penstock("logs", "hello", "-o", "json").stdout.splitlines()]
    assert [f"{each['instance']} {each['line']}" for each in found] == lines
    assert "got one" in [each["line"] for each in found]


def test_version_is_told_alike_in_text_and_json(running):
    told = read_json(running, "version")
    assert f"penstock {told['penstock']} (Python {told['python']})" in running.penstock("version").stdout
    assert running.penstock("--version").stdout == f"penstock {told['penstock']}\n"


def test_following_survives_the_restart_of_the_process_behind_it(running):
    with (
        running.following("events", "--follow", "--limit", "1") as events,
        running.following("logs", "hello", "--follow") as log,
    ):
        wait_until(lambda: "got one" in log.text and events.text, what="both have begun")
        control = running.pids()["control"]
        os.kill(control, signal.SIGKILL)
        assert running.penstock("get", "ksvc", "hello").returncode == 0
        wait_until(lambda: running.pids().get("control", control) != control, what="control runs again")
        running.penstock("send", "--type", "hello", "--id", "after")
        wait_until(lambda: re.search(r"hello  after  ✓ hello", events.text), what="the event after it is shown")
        wait_until(lambda: "got after" in log.text, what="the line after it is shown")
    assert events.text.count("hello  after  ✓") == 1
    assert "Traceback" not in events.text + log.text
    assert "Aborted" not in events.text + log.text


def test_a_paused_trigger_keeps_its_events_until_it_is_resumed(running):
    said = running.penstock("trigger", "pause", "hello").stdout
    assert said == "trigger.eventing.knative.dev/hello paused\n"
    running.penstock("send", "--type", "hello", "--id", "held", "--data", '{"to": "you"}')
    explained = running.penstock("explain", "held").stdout
    assert "hello: pending: it is paused; `penstock trigger resume hello -n default` lets it go on" in explained
    done = running.penstock("trigger", "resume", "hello", "nobody", "-o", "json", check=False)
    assert json.loads(done.stdout) == [
        {"resource": "trigger.eventing.knative.dev/hello", "result": "resumed"},
        {"resource": "trigger.eventing.knative.dev/nobody", "result": "does not exist"},
    ]
    assert done.returncode == 3
    wait_until(lambda: states(running, "held") == {"hello": "delivered"}, what="the event is delivered")


def test_delete_says_what_is_gone_and_what_never_was(running):
    manifest = ALL.split("---\n")[3].replace("name: early", "name: gone")
    running.penstock("apply", "-f", "-", text=manifest)
    done = running.penstock("delete", "trigger/gone", "ksvc/never", "-o", "json", check=False)
    assert json.loads(done.stdout) == [
        {"resource": "trigger.eventing.knative.dev/gone", "result": "deleted"},
        {"resource": "service.serving.knative.dev/never", "result": "does not exist"},
    ]
    assert done.returncode == 3


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param("get", 2, "Missing argument", id="get nothing"),
        pytest.param("get nonsense", 3, "Known are: brokers", id="an unknown kind"),
        pytest.param("get ksvc nobody", 3, 'services.serving.knative.dev "nobody" not found', id="an unknown name"),
        pytest.param("get ksvc hello -A", 2, "--all-namespaces", id="a name of every namespace"),
        pytest.param("get ksvc -n ../x", 2, "--namespace", id="a namespace that is none"),
        pytest.param("get ksvc -o xml", 2, "'xml' is not one of", id="an unknown format"),
        pytest.param("get ksvc --server http://127.0.0.1:9", 4, "penstock up", id="no platform"),
        pytest.param("get ksvc --server nonsense", 1, "'nonsense' is not the URL", id="a server that is none"),
        pytest.param("describe ksvc", 2, "Name one KIND and one NAME", id="describe all"),
        pytest.param("delete", 2, "Name a KIND and a NAME", id="delete nothing"),
        pytest.param("delete ksvc", 2, "penstock delete service NAME", id="delete all"),
        pytest.param("apply", 2, "--filename", id="apply nothing"),
        pytest.param("apply -f none.yaml", 1, "none.yaml does not exist", id="a missing file"),
        pytest.param("send", 2, "--type", id="send nothing"),
        pytest.param("send --type x --broker nobody", 3, "penstock get brokers", id="an unknown Broker"),
        pytest.param("send --type x -e id=1", 2, "use --id", id="an attribute as extension"),
        pytest.param("send --type x -e Bad=1", 1, "Bad: is not an attribute name", id="no attribute name"),
        pytest.param("send --type x --data {", 1, "--data is not JSON", id="no JSON"),
        pytest.param("send --type x --data @none", 1, "none cannot be read", id="no data"),
        pytest.param("send --type x --data 1 --content-type json", 2, "media type", id="no media type"),
        pytest.param("send --type x --data @/dev/null --content-type a/b --source a|b", 1, "source:", id="no URI"),
        pytest.param("explain nobody", 3, "penstock events", id="an unknown event"),
        pytest.param("plan", 2, "--delete TRIGGER", id="plan nothing"),
        pytest.param("plan --delete nobody", 3, "penstock get triggers", id="an unknown Trigger"),
        pytest.param("plan -f none.yaml", 1, "none.yaml does not exist", id="plan a missing file"),
        pytest.param("events --filter type=", 1, "filters[0].cesql", id="a filter that cannot be read"),
        pytest.param("logs nobody", 3, "penstock get ksvc", id="an unknown Service"),
        pytest.param("events --limit 0", 2, "--limit", id="a limit out of range"),
        pytest.param("up --drain nan", 2, "nan is not in the range", id="a drain that is no number"),
        pytest.param("up --kafka-servers host", 2, "'host' is not host:port", id="a Kafka that is no address"),
        pytest.param("up --apply none.yaml", 2, "'none.yaml' does not exist", id="up with a missing file"),
        pytest.param("nonsense", 2, "No such command", id="an unknown command"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do_and_an_exit_code(running, arguments, code, says):
    done = running.penstock(*arguments.split(), check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_changes_nothing_and_says_what_would(running):
    file = str(running.data.parent / "hello.yaml")
    running.penstock("apply", "-f", file)
    assert running.penstock("plan", "-f", file, "--exit-code").stdout.endswith("Applying it would change nothing.\n")
    before = running.get("trigger", "hello")
    changed = ALL.replace("type: hello}", "type: other}").replace("name: early", "name: eager")
    done = running.penstock("plan", "-f", "-", "--exit-code", text=changed, check=False)
    assert done.returncode == 5, done.stderr
    assert re.search(
        r"trigger\S*/hello configured\n  of all \d+ events since .*: \d+ now, 0 then\n  - \d+ lost\n", done.stdout
    )
    assert re.search(
        r"trigger\S*/eager created\n  of all \d+ events since .*: 0 now, \d+ then\n  \+ \d+ gained\n", done.stdout
    )
    assert running.get("trigger", "hello") == before
    assert running.get("trigger", "eager") == {}
    wrong = running.penstock("plan", "-f", "-", text=changed.replace("subscriber:", "subscribr:", 1), check=False)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "It could not be applied.\n  standard input, document 3: Trigger hello: " in wrong.stderr


def test_too_large_an_event_is_refused_by_its_limit(running):
    done = running.penstock(
        "send", "--type", "x", "--data", "-", "--content-type", "text/plain", check=False, text="x" * 3_000_000
    )
    assert done.returncode == 1
    assert "at most 1048576 bytes are taken" in done.stderr


def test_one_wrong_document_and_none_is_applied(running):
    wrong = ALL.replace("name: default}", "name: other}").replace("subscriber:", "subscribr:", 1)
    done = running.penstock("apply", "-f", "-", check=False, text=f"{wrong}---\n- a list\n")
    assert done.returncode == 1
    assert "standard input, document 5: must be a mapping" in done.stderr
    done = running.penstock("apply", "-f", "-", check=False, text=wrong)
    assert "standard input, document 3: Trigger hello" in done.stderr
    assert "subscribr" in done.stderr
    assert running.get("broker", "other") == {}


def test_every_command_has_help_with_an_example(running):
    commands = re.findall(r"^  (\w+)  ", running.penstock("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert set(commands) == {name.split()[1] for name in document.commands() if " " in name}
    for command in commands:
        told = running.penstock(command, "-h").stdout
        assert command == "version" or re.search(rf"Examples?:\n(?: +.*\n)*? +penstock {command}", told), told


def test_colours_are_for_terminals_that_want_them(running):
    command = [sys.executable, "-m", "penstock", "describe", "ksvc", "hello"]

    def on_a_terminal(**variables: str) -> bytes:
        ours, theirs = pty.openpty()
        with os.fdopen(ours, "rb", buffering=0) as reader:
            process = subprocess.Popen(
                command, stdin=theirs, stdout=theirs, stderr=theirs, env={**running.environment, **variables}
            )
            os.close(theirs)
            told = b""
            try:
                while part := reader.read(65_536):
                    told += part
            except OSError:  # how Linux tells that the other side is closed
                pass
            assert process.wait() == 0
        return told

    assert b"\x1b[" in on_a_terminal(NO_COLOR="")
    assert b"\x1b[" not in on_a_terminal(NO_COLOR="1")
    assert "\x1b[" not in running.penstock("describe", "ksvc", "hello").stdout


def test_a_reader_that_goes_away_ends_the_command_quietly(running):
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", "events", "--follow"],
        env=running.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    running.penstock("send", "--type", "nobody.wants.it")
    assert b"Traceback" not in process.stderr.read()
    assert process.wait() == 1
    process.stderr.close()


def test_bash_completes_commands_and_options(running):
    script = """
    eval "$(_PENSTOCK_COMPLETE=bash_source penstock)"
    COMP_WORDS=(penstock ex) COMP_CWORD=1; _penstock_completion penstock; echo "${COMPREPLY[@]}"
    COMP_WORDS=(penstock get --out) COMP_CWORD=2 COMPREPLY=(); _penstock_completion penstock; echo "${COMPREPLY[@]}"
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env={**running.environment, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["explain", "--output"], done.stderr


HANGS = """
import time

def handle(event):
    print("holding", flush=True)
    time.sleep(600)
"""


def test_a_second_ctrl_c_waits_for_no_drain_and_leaves_nothing(tmp_path):
    (tmp_path / "hello").mkdir()
    (tmp_path / "hello/function.py").write_text(HANGS)
    (tmp_path / "app.yaml").write_text(ALL)
    with Platform.start(data=tmp_path / "data", root=tmp_path, arguments=("--drain", "300")) as platform:
        platform.penstock("apply", "-f", str(tmp_path / "app.yaml"))
        platform.penstock("send", "--type", "hello")
        wait_until(lambda: "holding" in platform.penstock("logs", "hello", check=False).stdout, what="it hangs")
        everything = platform.everything()
        platform.process.send_signal(signal.SIGINT)
        wait_until(lambda: "Draining" in platform.output(), what="it drains")
        platform.process.send_signal(signal.SIGTERM)
        assert platform.process.wait(30) == 0
    assert not [pid for pid in everything if Path(f"/proc/{pid}").exists()]
    assert "Nothing is left running" in platform.output()
    assert "Traceback" not in platform.output()
