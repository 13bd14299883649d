"""Runs a command on a machine of its own: private network, processes and mounts, and a bridge for pods.

``python -m tests.support.netns -- pytest tests/cluster``. Nothing of the machine's own network is touched, two runs do
not meet, and all that was started inside ends with the command. Needs root, or user namespaces that users may make.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Final

__all__ = ["BRIDGE", "BRIDGE_ADDRESS", "INSIDE", "inside", "why_not"]

#: Set for the command, so that tests can tell where they run.
INSIDE: Final = "PENSTOCK_TEST_NETNS"
BRIDGE: Final = "pods0"
#: The pods' gateway, where the API server and the kubelet listen.
BRIDGE_ADDRESS: Final = "10.244.0.1"
_POD_PREFIX: Final = 16
#: All of it belongs to this machine, so that the stand-in for kube-proxy can listen on any Service's address.
_SERVICE_RANGE: Final = "10.96.0.0/16"

_SETUP: Final = f"""
set -e
mount -t tmpfs tmpfs /run/netns 2>/dev/null || {{ mount -t tmpfs tmpfs /run; mkdir /run/netns; }}
mount --make-shared /run/netns
ip link set lo up
ip link add {BRIDGE} type bridge
ip addr add {BRIDGE_ADDRESS}/{_POD_PREFIX} dev {BRIDGE}
ip link set {BRIDGE} up
ip route add local {_SERVICE_RANGE} dev lo
"""
#: What containers need besides.
_OVERLAY: Final = """
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/usr,upperdir=/mnt/upper,workdir=/mnt/work,userxattr /mnt/root
"""


def inside() -> bool:
    return bool(os.environ.get(INSIDE))


def why_not() -> str:
    """Why a machine of its own cannot be made here; empty where it can."""
    try:
        command = [*_unshare(), "sh", "-c", _SETUP + _OVERLAY]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        return "unshare (Debian: util-linux) is missing"
    return "" if done.returncode == 0 else done.stderr.strip() or f"unshare ended with {done.returncode}"


def _unshare() -> list[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]


def _first_process(command: list[str]) -> int:
    """What process 1 of the new machine does: set up, run the command, and bury orphans meanwhile."""
    subprocess.run(["sh", "-c", _SETUP], check=True)
    child = subprocess.Popen(command, env=os.environ | {INSIDE: "1"})
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: child.send_signal(number))
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--first-process"]:
        return _first_process(arguments[1:])
    command = arguments[arguments.index("--") + 1 :] if "--" in arguments else arguments
    if not command:
        print("usage: python -m tests.support.netns -- COMMAND ...", file=sys.stderr)
        return 2
    reason = why_not()
    if reason:
        print(f"no network of its own: {reason}", file=sys.stderr)
    else:
        command = [*_unshare(), sys.executable, "-m", "tests.support.netns", "--first-process", *command]
    # It takes this process's place, so that signals reach it.
    return os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.exit(code if code >= 0 else 128 - code)
