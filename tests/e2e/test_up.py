"""`penstock up` as a person meets it: what it prints, what it refuses, how it stops, what it survives."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from penstock.testing import Platform, descendants, wait_until
from tests.support.hello import MANIFEST, write_hello

pytestmark = pytest.mark.e2e


def test_it_says_where_everything_is_and_leaves_nothing_running(tmp_path):
    manifest = write_hello(tmp_path)
    with Platform.start(data=tmp_path / "data", root=tmp_path, arguments=("--apply", str(manifest))) as platform:
        for url in (platform.places.gateway, platform.places.broker, platform.places.api):
            assert url in platform.output()
        assert "kubeconfig" in platform.output()
        wait_until(lambda: "3 created" in platform.output(), what="the manifests are applied")
        for url in (
            f"{platform.places.api}/metrics",
            f"{platform.places.broker}/metrics",
            f"{platform.places.admin}/metrics",
        ):
            with urllib.request.urlopen(url) as answer:
                assert b"# TYPE penstock_" in answer.read()
        platform.penstock("send", "--type", "hello", "--id", "one")
        wait_until(lambda: "got one" in platform.penstock("logs", "hello").stdout, what="the function got the event")
    assert platform.process.returncode == 0
    assert "Traceback" not in platform.output()


def test_an_event_can_be_followed_from_publishing_to_its_reply(tmp_path):
    manifest = write_hello(tmp_path)
    with Platform.start(data=tmp_path / "data", root=tmp_path) as platform:
        platform.penstock("apply", "-f", str(manifest))
        wait_until(lambda: platform.is_ready("trigger", "hello"), what="the Trigger is ready")
        platform.penstock("send", "--type", "hello", "--id", "one", "--data", '{"to": "you"}')

        def settled() -> str | None:
            told = platform.penstock("explain", "one", check=False).stdout
            return told if "delivered" in told and "re-one" in told else None

        told = wait_until(settled, what="explain tells of the delivery and the reply")
        assert "hello" in told
        explained = json.loads(platform.penstock("explain", "one", "--output", "json").stdout)
        assert explained
        events = platform.penstock("events").stdout
        assert "hello.reply" in events


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("apply", "-f", "none.yaml"), "none.yaml does not exist", id="a missing file"),
        pytest.param(("get", "nonsense"), "There is no kind 'nonsense'", id="an unknown kind"),
        pytest.param(("explain", "nobody"), "nobody", id="an unknown event"),
        pytest.param(("logs", "nobody"), "nobody", id="an unknown service"),
        pytest.param(("send", "--type", "x", "--broker", "none"), "none", id="an unknown broker"),
    ],
)
def test_what_does_not_exist_is_said_without_a_traceback(platform, arguments, says):
    done = platform.penstock(*arguments, check=False)
    assert done.returncode in (1, 3)
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_one_wrong_document_and_nothing_is_applied(platform, tmp_path):
    manifest = tmp_path / "app.yaml"
    manifest.write_text(MANIFEST.replace("subscriber:", "subscribr:"))
    done = platform.penstock("apply", "-f", str(manifest), check=False)
    assert done.returncode == 1
    assert "app.yaml, document 3" in done.stderr
    assert "subscribr" in done.stderr
    assert platform.penstock("get", "brokers", "-o", "json").stdout.count('"name"') == 0


def test_a_port_in_use_and_a_data_directory_in_use_are_refused_with_what_to_do(platform, tmp_path):
    port = platform.places.api.rpartition(":")[2]
    with pytest.raises(RuntimeError, match="--api-port") as caught:
        Platform.start(data=tmp_path / "other", root=tmp_path, arguments=("--api-port", port))
    assert "Traceback" not in str(caught.value)
    with pytest.raises(RuntimeError, match="--data-dir"):
        Platform.start(data=platform.data, root=tmp_path)


def test_no_platform_is_exit_code_4(tmp_path):
    command = [sys.executable, "-m", "penstock", "get", "brokers", "--server", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 4
    assert "penstock up" in done.stderr


def test_a_broker_that_starts_again_while_control_is_silent_goes_on_taking_events(platform, tmp_path):
    platform.penstock("apply", "-f", str(write_hello(tmp_path)))
    wait_until(lambda: platform.is_ready("broker", "default"), what="the Broker is ready")
    pids = platform.pids()
    os.kill(pids["control"], signal.SIGSTOP)
    try:
        os.kill(pids["broker"], signal.SIGKILL)
        assert "stored" in platform.penstock("send", "--type", "hello", "--id", "meanwhile").stdout
    finally:
        os.kill(pids["control"], signal.SIGCONT)
    wait_until(lambda: "got meanwhile" in platform.penstock("logs", "hello").stdout, what="the function got the event")


def test_when_the_supervisor_is_killed_everything_ends_by_itself(tmp_path):
    manifest = write_hello(tmp_path)
    platform = Platform.start(data=tmp_path / "data", root=tmp_path)
    platform.penstock("apply", "-f", str(manifest))
    platform.penstock("send", "--type", "hello")
    wait_until(lambda: len(descendants(platform.process.pid)) > 3, what="an instance runs")
    pids = descendants(platform.process.pid)
    os.kill(platform.process.pid, signal.SIGKILL)
    platform.process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), what="nothing is left running")
