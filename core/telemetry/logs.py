"""Structured logs: one JSON object a line on standard error, through the standard library's logging.

Pass facts as ``extra={"facts": {...}}`` with the field's own names (revision, trigger, event_id); the message stays a
constant sentence, so that lines can be counted by it.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import msgspec

from core.clock import rfc3339

__all__ = ["configure_logging"]


class _JsonLines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": rfc3339(record.created, fraction=True),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        facts = getattr(record, "facts", None)
        if facts:
            line.update(facts)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def configure_logging(process: str, *, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream` (standard error) as JSON lines that name `process`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonLines(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
