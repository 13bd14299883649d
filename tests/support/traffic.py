"""Steady traffic at a release while something is broken: requests to a function, and events through a Broker.

Every request and every event is accounted for: what failed, with when and why, and what was accepted.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException
from types import TracebackType
from typing import Self

__all__ = ["Calls", "Events"]

#: An answer that takes longer is none: the function answers at once, a cold start takes a few seconds here.
ANSWER_TIMEOUT_S = 60.0
#: A pause between two requests of one client: traffic, not a benchmark, on a machine with two cores.
_PAUSE_S = 0.02


class _Clients:
    """Threads that do the same again and again, until the context is left."""

    def __init__(self, count: int, name: str) -> None:
        self._stop = threading.Event()
        self._began_s = time.monotonic()
        self.failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"{name} {number}") for number in range(count)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        raise NotImplementedError

    def _failed(self, text: str) -> None:
        self.failures.append(f"{time.monotonic() - self._began_s:.2f} s: {text}")


class Calls(_Clients):
    """Clients that ask a Host for its page, each on a connection of its own to one of `addresses` in turn.

    `answers` counts the bodies of answers with 200; whatever else came is in `failures`.
    """

    def __init__(self, host: str, addresses: Sequence[tuple[str, int]], *, clients: int = 4, path: str = "/") -> None:
        super().__init__(clients, f"calls of {host}")
        self._host = host
        self._path = path
        self._addresses = addresses
        self.answers: Counter[str] = Counter()

    def _run(self, number: int) -> None:
        address = self._addresses[number % len(self._addresses)]
        connection = HTTPConnection(*address, timeout=ANSWER_TIMEOUT_S)
        while not self._stop.is_set():
            try:
                connection.request("GET", self._path, headers={"Host": self._host})
                answer = connection.getresponse()
                body = answer.read().decode()
            except (OSError, HTTPException) as error:
                self._failed(f"{address[0]}: {type(error).__name__}: {error}")
                connection.close()
            else:
                if answer.status == 200:
                    self.answers[body] += 1
                else:
                    self._failed(f"{address[0]}: {answer.status} {body.strip()}")
            self._stop.wait(_PAUSE_S)
        connection.close()


class Events(_Clients):
    """Publishers that send each event until it is accepted: `accepted` are the ids that were answered 202.

    A refused connection or a 503 is a publisher's daily business, and no failure: it sends the event again. `send`
    publishes an id and gives the status.
    """

    def __init__(self, send: Callable[[str], int], *, publishers: int = 2) -> None:
        super().__init__(publishers, "events")
        self._send = send
        self.accepted: set[str] = set()
        self.repeats = 0

    def _run(self, number: int) -> None:
        for count in itertools.count():
            if self._stop.is_set():
                return
            event_id = f"{number}-{count}"
            while not self._accept(event_id) and not self._stop.is_set():
                self.repeats += 1
                self._stop.wait(_PAUSE_S)
            self._stop.wait(_PAUSE_S)

    def _accept(self, event_id: str) -> bool:
        try:
            status = self._send(event_id)
        except (OSError, HTTPException):
            return False
        if status == 202:
            self.accepted.add(event_id)
            return True
        if status != 503:
            self._failed(f"{event_id}: {status}")
        return False
