"""``penstock serve``: a function in the foreground, as a container image runs it."""

import http.client
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.testing import wait_until

pytestmark = pytest.mark.e2e

FUNCTION = """
import os
from cloudevents.core.v1.event import CloudEvent

def handle(event):
    return CloudEvent({"id": "re", "source": "/f", "type": "answered"}, {"port": os.environ["PORT"]})
"""


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "penstock", "serve", str(folder), *options]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def listening_port(pid: int) -> int | None:
    """The port on which the process of this id listens."""
    inodes = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            return int(fields[1].rpartition(":")[2], 16)
    return None


def test_a_folder_is_served_until_sigterm(tmp_path):
    (tmp_path / "function.py").write_text(FUNCTION)
    process = start(tmp_path, "--port", "0")
    try:
        port = wait_until(lambda: listening_port(process.pid), what="it listens")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/t", "ce-type": "asked"}
        connection.request("POST", "/", headers=headers)
        answer = connection.getresponse()
        assert (answer.status, answer.headers["ce-type"]) == (200, "answered")
        assert answer.read() == b'{"port": "%d"}' % port
        connection.close()
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


def test_a_folder_without_a_function_is_refused_with_what_was_looked_for(tmp_path):
    process = start(tmp_path)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.startswith("error: The folder")
    assert "function.py, main.py, app.py" in errors


def test_an_address_that_is_taken_is_said(tmp_path):
    (tmp_path / "function.py").write_text(FUNCTION)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(tmp_path, "--port", str(port))
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in errors
