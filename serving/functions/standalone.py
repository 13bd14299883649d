"""One function as this very process: what a container's command is, where no platform starts it.

The counterpart of `serving.instances.launch` for an image: the same recognition of a folder, the same host, but in the
foreground, on the port that the container was given.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Final, NoReturn

from serving.functions.detect import Program, expand, recognise

__all__ = ["HOST_SCRIPT", "serve"]

HOST_SCRIPT: Final = str(Path(__file__).resolve().parent / "host.py")

#: Connections that wait to be accepted while the function starts; the kernel caps it at net.core.somaxconn.
_BACKLOG: Final = 4_096


def serve(folder: str, *, handler: str, host: str, port: int, drain_s: float) -> NoReturn:
    """Become the process of the function in `folder`, which listens on `host` and `port` (0: a free one).

    Raises NotRecognised where the folder holds no function, OSError where the address cannot be had.
    """
    what = recognise(folder, root=Path.cwd(), handler=handler)
    if isinstance(what, Program):
        environment = {**os.environ, "PORT": str(port)}
        os.chdir(what.folder)
        argv = expand(what.argv, environment)
        os.execvpe(argv[0], argv, environment)  # noqa: S606 - becoming that program is what was asked for
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listening.set_inheritable(True)
    # Nobody waits for the host's "ready": a container's readiness is found out by a probe of its port.
    ready_fd = os.open(os.devnull, os.O_WRONLY)
    os.set_inheritable(ready_fd, True)
    settings = {
        "listen_fd": listening.fileno(),
        "ready_fd": ready_fd,
        "folder": what.folder,
        "module": what.module,
        "attribute": what.attribute,
        "drain_s": drain_s,
    }
    os.environ["PORT"] = str(listening.getsockname()[1])
    sys.stdout.flush()
    argv = [sys.executable, "-P", "-u", HOST_SCRIPT, json.dumps(settings)]
    os.execv(sys.executable, argv)  # noqa: S606 - as above
