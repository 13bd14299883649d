"""The servers that tests need: started for a person, and what is said where one cannot be had."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.services import SERVICES

#: A busy machine takes a while for a JVM and an API server.
START_TIMEOUT_S = 120
#: Programs that a machine without any of the servers still has.
PYTHON_ONLY = {"PATH": str(Path(sys.executable).parent)}
NEEDS_REDIS = "tests/conformance/test_event_log_redis.py"


def pytest_run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A run of pytest that only collects, on a machine without the servers' programs."""
    kept = {name: value for name, value in os.environ.items() if name not in _variables()}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments],
        env={**kept, **PYTHON_ONLY, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=START_TIMEOUT_S,
    )


def _variables() -> set[str]:
    return {"PENSTOCK_REQUIRE_SERVICES", *(service.variable for service in SERVICES.values() if service.variable)}


def test_a_run_without_a_server_ends_with_a_line_that_says_how_to_get_it():
    done = pytest_run(NEEDS_REDIS)
    assert re.search(
        r"^redis could not be had: \d+ tests did not run\. Provide it by: apt-get install -y redis-server"
        r"   \(or set REDIS_URL\)$",
        done.stdout,
        re.MULTILINE,
    ), done.stdout


def test_a_server_that_is_required_and_cannot_be_had_is_a_failure():
    done = pytest_run(NEEDS_REDIS, PENSTOCK_REQUIRE_SERVICES="kafka, redis")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "redis could not be had" in done.stderr


def test_where_a_server_is_given_only_the_tests_that_kill_theirs_miss_it():
    def missed(**variables: str) -> int:
        said = re.search(r"could not be had: (\d+) tests", pytest_run(NEEDS_REDIS, **variables).stdout)
        return int(said.group(1)) if said else 0

    assert 0 < missed(REDIS_URL="redis://127.0.0.1:1/0") < missed()


def test_a_required_server_that_nobody_knows_is_an_error_that_names_the_known():
    done = pytest_run(NEEDS_REDIS, PENSTOCK_REQUIRE_SERVICES="reddis")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "names 'reddis'; known are redis, kubernetes, kafka" in done.stderr


def test_the_last_words_of_make_test_name_each_server_and_its_command():
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.services", "--missing"],
        env={**os.environ, **PYTHON_ONLY},
        capture_output=True,
        text=True,
        check=False,
        timeout=START_TIMEOUT_S,
    )
    assert done.returncode == 0
    for name, service in SERVICES.items():
        assert f"{name} could not be had. Provide it by: {service.install}" in done.stderr


@pytest.mark.service("redis", "kafka", "kubernetes", "kcat", own=True)
@pytest.mark.timeout(2 * START_TIMEOUT_S)
def test_a_person_gets_every_server_and_its_variable_until_ctrl_c(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.services"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline().strip() for _ in range(3)]
        given = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        assert list(given) == ["REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS", "KUBECONFIG"]
        with socket.create_connection(_address(given["REDIS_URL"])) as sock:
            sock.sendall(b"PING\r\n")
            assert sock.recv(16) == b"+PONG\r\n"
        for command in (
            ["kcat", "-b", given["KAFKA_BOOTSTRAP_SERVERS"], "-L"],
            ["kubectl", f"--kubeconfig={given['KUBECONFIG']}", "get", "--raw", "/readyz"],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=START_TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        assert process.wait(START_TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert not list(tmp_path.iterdir()), "what the servers stored is gone"
    for url in (given["REDIS_URL"], f"kafka://{given['KAFKA_BOOTSTRAP_SERVERS']}"):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(_address(url))


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return str(parts.hostname), int(parts.port or 0)
