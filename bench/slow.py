"""A subscriber that takes ten seconds for each event: threads that wait, beside a benchmark that only watches."""

from __future__ import annotations

import socketserver
import threading
import time
from types import TracebackType
from typing import Final

__all__ = ["Slow"]

#: What the target says of the slow subscriber.
DELAY_S: Final = 10.0


class Slow:
    """Listens on a free loopback port, `port` (a context manager)."""

    def __init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), _Answer)
        self._thread = threading.Thread(target=self._server.serve_forever, name="slow subscriber", daemon=True)
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Slow:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False  # its threads sleep; they end with the process
    request_queue_size = 128


class _Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while (head := self._head()) is not None:
            self.rfile.read(head)
            time.sleep(DELAY_S)
            try:
                self.wfile.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
            except OSError:  # the broker has ended meanwhile
                return

    def _head(self) -> int | None:
        """The length of the body that follows; None at the connection's end."""
        length = 0
        try:
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                if name.strip().lower() == b"content-length":
                    length = int(value)
        except OSError:
            return None
        return length if line else None
