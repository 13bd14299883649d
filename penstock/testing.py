"""A real platform for tests and scripts: started in the background on free ports, and stopped with nothing left behind.

with Platform.start(data=tmp / "data", root=Path()) as platform:
    platform.penstock("apply", "-f", "app.yaml")
    wait_until(lambda: platform.is_ready("ksvc", "hello"), what="hello is ready")
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from penstock.cli.api import Api
from penstock.places import Places, read_places

__all__ = ["Following", "Platform", "descendants", "wait_until"]

T = TypeVar("T")

#: Start-up takes about a second; this is for a machine that is busy with something else.
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 60.0
COMMAND_TIMEOUT_S: Final = 60.0
#: How often a condition is looked at.
_POLL_S: Final = 0.02


def wait_until(condition: Callable[[], T | None], *, what: str, timeout_s: float = 60.0) -> T:
    """The first true value of `condition`. Raises TimeoutError naming `what` did not happen in time."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {timeout_s:g} s: {what} (last seen: {found!r})")
        time.sleep(_POLL_S)


def descendants(pid: int) -> list[int]:
    """The process ids of all living descendants of `pid`, from /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


class Following:
    """What a command has printed so far, read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.text = ""
        self._process = process
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def end(self) -> int:
        """Its exit code, once it has ended and all that it printed is in `text`."""
        code = self._process.wait(COMMAND_TIMEOUT_S)
        self._reader.join(COMMAND_TIMEOUT_S)
        return code

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe; tells the type checker
        with self._process.stdout as stream:
            for line in stream:
                self.text += line


class Platform:
    """A running ``penstock up``. Leaving the context stops it as Ctrl-C does."""

    def __init__(self, process: subprocess.Popen[bytes], data: Path, log: Path) -> None:
        self.process = process
        self.data = data
        self.log = log
        self.places = Places()

    @classmethod
    def start(cls, *, data: Path, root: Path, arguments: tuple[str, ...] = ()) -> Platform:
        """Start on free loopback ports and wait until it serves. Raises RuntimeError with what it said otherwise."""
        data.mkdir(parents=True, exist_ok=True)
        (data / "platform.json").unlink(missing_ok=True)
        log = data / "up.log"
        ports = [f"--{name}-port=0" for name in ("gateway", "broker", "api", "admin")]
        command = [
            sys.executable,
            "-m",
            "penstock",
            "up",
            "--quiet",
            f"--data-dir={data}",
            f"--root={root}",
            *ports,
            *arguments,
        ]
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own command
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        platform = cls(process, data, log)
        platform._await_start()
        return platform

    def _await_start(self) -> None:
        def started() -> Places | None:
            if self.process.poll() is not None:
                raise RuntimeError(f"penstock up ended with code {self.process.returncode}:\n{self.output()}")
            return read_places(self.data)

        try:
            self.places = wait_until(started, what="penstock up serves", timeout_s=START_TIMEOUT_S)
        except TimeoutError:
            self.kill()
            raise

    def __enter__(self) -> Platform:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()

    @property
    def api(self) -> Api:
        return Api(self.places.api)

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    @property
    def environment(self) -> dict[str, str]:
        """In which ``penstock`` finds this platform."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        return {**kept, "PENSTOCK_DATA": str(self.data)}

    @contextlib.contextmanager
    def following(self, *arguments: str) -> Iterator[Following]:
        """A ``penstock`` command that goes on until Ctrl-C, which it gets on leaving. Raises RuntimeError where it then
        does not end well."""
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "penstock", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        following = Following(process)
        try:
            yield following
        finally:
            process.send_signal(signal.SIGINT)
            code = following.end()
        if code != 0:
            raise RuntimeError(f"penstock {' '.join(arguments)} ended with code {code}:\n{following.text}")

    def penstock(
        self, *arguments: str, check: bool = True, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a ``penstock`` command against this platform. Raises RuntimeError with its output where it fails, and
        subprocess.TimeoutExpired where it does not end."""
        done = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "penstock", *arguments],
            env=self.environment,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT_S,
        )
        if check and done.returncode != 0:
            said = f"{done.stdout}{done.stderr}"
            raise RuntimeError(f"penstock {' '.join(arguments)} ended with code {done.returncode}:\n{said}")
        return done

    def get(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
        """One resource as JSON, {} where it does not exist."""
        done = self.penstock("get", kind, name, "-n", namespace, "-o", "json", check=False)
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        return found

    def is_ready(self, kind: str, name: str, namespace: str = "default") -> bool:
        """Whether its condition Ready is True."""
        conditions = self.get(kind, name, namespace).get("status", {}).get("conditions", [])
        return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)

    def pids(self) -> dict[str, int]:
        """The platform's own processes by name (control, broker, gateway), and "supervisor"."""
        found = {"supervisor": self.process.pid}
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                found |= {
                    word.rpartition(b".")[2].decode(): pid for word in words if word.startswith(b"penstock.standalone.")
                }
        return found

    def everything(self) -> list[int]:
        """The process ids of all that runs here: supervisor, processes, functions' instances."""
        return [self.process.pid, *descendants(self.process.pid)]

    def kill(self) -> None:
        """SIGKILL to everything at once, as a power cut would."""
        for pid in self.everything():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Ctrl-C, and wait. Raises RuntimeError where anything is left running."""
        running = self.everything()
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"penstock up did not stop within {STOP_TIMEOUT_S:g} s:\n{self.output()}") from None
        left = [pid for pid in running if _alive(pid)]
        if left:
            raise RuntimeError(f"still running after penstock up stopped: {left}")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
