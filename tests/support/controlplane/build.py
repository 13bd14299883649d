"""Builds kube-apiserver, kube-controller-manager, kubectl and helm from their Go modules, once a machine.

``python -m tests.support.controlplane.build`` prints the folder that has them. What is built is pinned by go.mod and
go.sum in tests/controlplane; the folder's name is a hash of those, the compiler and its flags, so that a change builds
anew and the same is never built twice. A first build takes some six minutes on two cores, and 3 GB for Go's own caches.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["PROGRAMS", "binaries", "compiles"]

MODULE: Final = Path(__file__).resolve().parents[2] / "controlplane"
PROGRAMS: Final = {
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "helm": "helm.sh/helm/v3/cmd/helm",
}
#: A line of progress this often: a silent build of minutes looks like a hang.
_PROGRESS_S: Final = 15.0
#: Nothing looks into the module's own packages: it has none.
_ENVIRONMENT: Final = {"CGO_ENABLED": "0", "GOWORK": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"}


def binaries(say: Callable[[str], None] = print) -> Path:
    """The folder with the programs, which are built first where they are not there yet.

    Two that ask at once build once: the second waits. Raises RuntimeError, with the compiler's words, where it fails.
    """
    target = _target()
    if not _complete(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_suffix(".lock"), say):
            if not _complete(target):
                _build(target, say)
    return target / "bin"


@functools.cache
def compiles() -> bool:
    """Whether Go is there, and new enough for the module."""
    if shutil.which("go") is None:
        return False
    needed = re.search(r"^go (\d+)\.(\d+)", (MODULE / "go.mod").read_text(), re.MULTILINE)
    found = re.search(r"go(\d+)\.(\d+)", _go("version"))
    return needed is not None and found is not None and _numbers(found) >= _numbers(needed)


def _numbers(match: re.Match[str]) -> tuple[int, int]:
    return int(match[1]), int(match[2])


def _complete(target: Path) -> bool:
    return all((target / "bin" / name).is_file() for name in PROGRAMS)


def _target() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256()
    for part in (MODULE / "go.mod", MODULE / "go.sum"):
        digest.update(part.read_bytes())
    digest.update(_go("version").encode())
    digest.update(" ".join(_flags()).encode())
    return cache / "penstock" / "control-plane" / digest.hexdigest()[:16]


def _flags() -> list[str]:
    """Small programs that say which release they are: helm and kubectl ask the API server for it."""
    found = re.search(r"^\s*k8s\.io/kubernetes (v(\d+)\.(\d+)\.\d+)$", (MODULE / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{MODULE / 'go.mod'} does not require a release of k8s.io/kubernetes")
    version, major, minor = found.groups()
    variables = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    set_them = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in variables.items())
    return ["-trimpath", f"-ldflags=-s -w {set_them}"]


@contextmanager
def _lock(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("control plane: another process builds it; waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(target: Path, say: Callable[[str], None]) -> None:
    """Into a folder beside it, which then takes its name at once."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    (partial / "bin").mkdir(parents=True)
    say(f"control plane: building {', '.join(PROGRAMS)} (once a machine, some six minutes on two cores)")
    began_s = time.monotonic()
    total = len(_go("list", "-deps", *PROGRAMS.values()).splitlines())
    log = partial / "build.log"
    with log.open("wb") as handle:
        command = ["nice", "go", "build", "-v", *_flags(), "-o", f"{partial / 'bin'}/", *PROGRAMS.values()]
        process = subprocess.Popen(command, cwd=MODULE, env=os.environ | _ENVIRONMENT, stdout=handle, stderr=handle)
        while True:
            try:
                code = process.wait(_PROGRESS_S)
                break
            except subprocess.TimeoutExpired:
                compiled = log.read_bytes().count(b"\n")
                say(f"control plane: {compiled} of at most {total} packages, {time.monotonic() - began_s:.0f} s")
    if code != 0:
        raise RuntimeError(f"the control plane cannot be built:\n{log.read_text()[-4000:]}")
    partial.rename(target)
    say(f"control plane: built in {time.monotonic() - began_s:.0f} s")


def _go(*arguments: str) -> str:
    done = subprocess.run(
        ["go", *arguments], cwd=MODULE, env=os.environ | _ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"go {arguments[0]} failed:\n{done.stderr[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    print(binaries(lambda line: print(line, file=sys.stderr, flush=True)))
