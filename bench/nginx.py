"""nginx on free loopback ports: the yardstick (as reverse proxy), and the far end (a function, a subscriber).

Each server is one process (`master_process off`): one worker, whose process id is the one that was started.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

from bench.broken import Broken

__all__ = [
    "REPLY",
    "Nginx",
    "NginxLog",
    "free_ports",
    "function_command",
    "proxy_site",
    "reply_site",
    "sink_site",
    "sinks_site",
    "version",
]

#: What the far end answers: 13 bytes.
REPLY: Final = "Hello, world!"
_START_TIMEOUT_S: Final = 5.0

_CONFIG: Final = """\
daemon off;
master_process off;
worker_processes 1;
error_log stderr warn;
pid {folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {site}
}}
"""


def reply_site(port: str) -> str:
    """A server that answers 13 bytes."""
    return f'server {{ listen 127.0.0.1:{port}; location / {{ return 200 "{REPLY}"; }} }}'


def proxy_site(port: str, upstream: int) -> str:
    """A reverse proxy with keep-alive on both sides."""
    return f"""\
upstream far_end {{
    server 127.0.0.1:{upstream};
    keepalive 64;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://far_end; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}"""


def sink_site(port: str, log: Path) -> str:
    """A subscriber that answers 202 and logs each event's id and the time."""
    return f"""\
log_format ids "$http_ce_id $msec";
  server {{
    listen 127.0.0.1:{port};
    access_log {log} ids buffer=64k flush=50ms;
    location / {{ return 202; }}
  }}"""


def sinks_site(ports: Sequence[int], log: Path) -> str:
    """As many subscribers as `ports`, as `sink_site`; each event's id is logged with the port that it came to."""
    listen = " ".join(f"listen 127.0.0.1:{port};" for port in ports)
    return f"""\
log_format ids "$http_ce_id@$server_port $msec";
  server {{
    {listen}
    access_log {log} ids buffer=64k flush=50ms;
    location / {{ return 202; }}
  }}"""


def version() -> str:
    """The version of the nginx that is installed. Raises Broken where none is."""
    text = subprocess.run([_program(), "-v"], capture_output=True, text=True, check=True).stderr
    found = re.search(r"nginx/(\S+)", text)
    return found[1] if found else text.strip()


def function_command(folder: Path) -> str:
    """A command that serves 13 bytes on ``$PORT``, as a function that costs next to nothing. It is made in `folder`."""
    config = folder / "function.conf"
    config.write_text(_CONFIG.format(folder="@FOLDER@", site=reply_site("@PORT@")))
    script = folder / "function.sh"
    script.write_text(
        "#!/bin/sh\n"
        f'own="{folder}/function.$PORT"\n'
        'mkdir -p "$own"\n'
        f'sed -e "s|@PORT@|$PORT|" -e "s|@FOLDER@|$own|" "{config}" > "$own/nginx.conf"\n'
        f'exec "{_program()}" -p "$own" -c "$own/nginx.conf"\n'
    )
    script.chmod(0o755)
    return str(script)


class Nginx:
    """A running nginx (a context manager) with one site, which listens on `port`. Its files are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        [self.port] = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, site: str) -> Nginx:
        """Serve `site`, which must listen on `port`. Raises Broken where it does not within a few seconds."""
        config = self._folder / "nginx.conf"
        config.write_text(_CONFIG.format(folder=self._folder, site=site))
        errors = self._folder / "error.log"
        with errors.open("wb") as stderr:
            self._process = subprocess.Popen([_program(), "-p", self._folder, "-c", config], stderr=stderr)
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not _accepts(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise Broken(f"nginx does not serve on port {self.port}: {errors.read_text(errors='replace').strip()}")
            time.sleep(0.005)
        return self

    def stop(self) -> None:
        """End it; `start` may follow."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Nginx:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class NginxLog:
    """What a sink has logged since the last look: how often each event id came, and when the last one did."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""
        self.counts: dict[str, int] = {}
        self.last_at_s = 0.0

    def read(self) -> None:
        """Take in the lines that are new."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            event_id, _, at_s = line.decode().rpartition(" ")
            self.counts[event_id] = self.counts.get(event_id, 0) + 1
            self.last_at_s = max(self.last_at_s, float(at_s))

    def clear(self) -> None:
        self.counts.clear()
        self.last_at_s = 0.0


def _program() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Broken(
            "nginx is not installed, and it is what every figure is compared with: apt-get install nginx-light"
        )
    return found


def free_ports(count: int) -> list[int]:
    """As many ports of the loopback interface on which nothing listens now."""
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
