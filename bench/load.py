"""A benchmark's handle on a load process."""

from __future__ import annotations

import selectors
import subprocess
import sys
from types import TracebackType
from typing import IO, Final, TypeVar

import msgspec

from bench.broken import Broken
from bench.messages import (
    Answer,
    Closed,
    ClosedResult,
    Command,
    Connect,
    Connected,
    Deliveries,
    DeliveriesResult,
    Failed,
    Open,
    OpenResult,
)
from bench.places import REPOSITORY

__all__ = ["Load"]

#: Commands carry their own time limits; a process that takes longer than this beyond them hangs.
_MARGIN_S: Final = 30.0

A = TypeVar("A", Connected, ClosedResult, OpenResult, DeliveriesResult)


class Load:
    """A running load process (a context manager). `precise` is for open loops, else it is made for closed ones."""

    def __init__(self, *, precise: bool = False) -> None:
        arguments = [sys.executable, "-m", "bench.loader", *(["precise"] if precise else [])]
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY, bufsize=0
        )
        self._decoder = msgspec.json.Decoder(Answer)

    def connect(self, command: Connect) -> Connected:
        return self._ask(command, Connected, _MARGIN_S)

    def closed(self, command: Closed) -> ClosedResult:
        return self._ask(command, ClosedResult, command.timeout_s + _MARGIN_S)

    def open(self, command: Open) -> OpenResult:
        return self._ask(command, OpenResult, _open_limit_s(command))

    def deliveries(self, command: Deliveries) -> DeliveriesResult:
        return self._ask(command, DeliveriesResult, _open_limit_s(command.publish) + _MARGIN_S)

    def __enter__(self) -> Load:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, command: Command, kind: type[A], limit_s: float) -> A:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(command) + b"\n")
        except BrokenPipeError as error:
            raise Broken("The load process ended; its own output above says why.") from error
        answer = self._decoder.decode(_read_line(self._process.stdout, limit_s))
        if isinstance(answer, Failed):
            raise Broken(f"The load process could not run {type(command).__name__}: {answer.reason}")
        if not isinstance(answer, kind):
            raise Broken(f"The load process answered {type(command).__name__} with {type(answer).__name__}.")
        return answer


def _open_limit_s(command: Open) -> float:
    return command.count / command.rate_per_s + command.timeout_s + _MARGIN_S


def _read_line(pipe: IO[bytes], limit_s: float) -> bytes:
    """One line from an unbuffered pipe. Raises Broken where none comes in time or the process is gone."""
    chunks: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not (chunks and chunks[-1].endswith(b"\n")):
            if not selector.select(limit_s):
                raise Broken(f"The load process gave no answer within {limit_s:g} s.")
            chunk = pipe.read(1 << 16)
            if not chunk:
                raise Broken("The load process ended; its own output above says why.")
            chunks.append(chunk)
    return b"".join(chunks)
