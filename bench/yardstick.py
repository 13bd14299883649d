"""nginx as reverse proxy under closed-loop load: what every figure of CPU is divided by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.load import Load
from bench.messages import Connect, Request
from bench.nginx import Nginx, proxy_site, reply_site
from bench.pairs import Subject

__all__ = ["CONNECTIONS", "get", "yardstick"]

#: Keep-alive connections of every closed loop.
CONNECTIONS: Final = 32


def get(host: str) -> Request:
    """The request of the HTTP benchmarks."""
    return Request(before=f"GET / HTTP/1.1\r\nhost: {host}\r\nuser-agent: penstock-bench\r\n\r\n".encode())


@contextmanager
def yardstick(folder: Path, load: Load) -> Iterator[tuple[Subject, Nginx]]:
    """nginx proxying to an nginx that answers 13 bytes, with connections from `load`; and that far end."""
    with Nginx(folder / "far-end") as far, Nginx(folder / "proxy") as proxy:
        far.start(reply_site(str(far.port)))
        proxy.start(proxy_site(str(proxy.port), far.port))
        name = f"nginx {proxy.port}"
        load.connect(Connect(target=name, host="127.0.0.1", port=proxy.port, connections=CONNECTIONS))
        yield Subject(load=load, target=name, pids=(proxy.pid,), request=get("bench.localhost")), far
