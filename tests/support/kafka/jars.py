"""Fetches Apache Kafka's jars with Maven, once a machine.

``python -m tests.support.kafka.jars`` prints the folder that has them; its name is the version that pom.xml pins.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["jars"]

POM: Final = Path(__file__).with_name("pom.xml")
#: 43 MB over a slow line; a Maven that is silent for longer has no line at all.
FETCH_TIMEOUT_S: Final = 600.0


def jars(say: Callable[[str], None] = print) -> Path:
    """The folder with the jars, which are fetched first where they are not there yet.

    Two that ask at once fetch once: the second waits. Raises RuntimeError, with Maven's words, where it fails.
    """
    target = _target()
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f"{target.name}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not target.is_dir():
                _fetch(target, say)
    return target


def _target() -> Path:
    found = re.search(r"<kafka\.version>(.+?)</kafka\.version>", POM.read_text())
    if found is None:
        raise RuntimeError(f"{POM} does not say which version of Kafka it wants")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "penstock" / "kafka" / found[1]


def _fetch(target: Path, say: Callable[[str], None]) -> None:
    """Into a folder beside it, which then takes its name at once."""
    say(f"kafka: fetching Apache Kafka {target.name} with Maven (once a machine, 43 MB)")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = ["mvn", "-B", "-q", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={partial}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"Kafka's jars cannot be fetched: Maven took over {FETCH_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise RuntimeError(f"Kafka's jars cannot be fetched:\n{(done.stdout + done.stderr)[-4000:]}")
    partial.rename(target)


if __name__ == "__main__":
    print(jars(lambda line: print(line, file=sys.stderr, flush=True)))
