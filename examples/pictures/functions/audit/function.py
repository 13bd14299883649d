"""Appends every event that passes through the Broker to a log: one JSON line each, on disk before it is acknowledged.

Several instances may append at once: a line is one write to a file opened for appending. Events are delivered at least
once, so a line can be there twice; `source` and `id` together tell an event from all others, and readers count by them.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from cloudevents.core.v1.event import CloudEvent

LOG = Path(os.environ["AUDIT_LOG"]).resolve()


def handle(event: CloudEvent) -> None:
    happened = event.get_time()
    line = {
        "at": datetime.now(UTC).isoformat(),
        "id": event.get_id(),
        "source": event.get_source(),
        "type": event.get_type(),
        "subject": event.get_subject(),
        "time": happened.isoformat() if happened else None,
        "data": plain(event.get_data()),
    }
    append(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def plain(data: object) -> object:
    """Data as JSON can hold it; of what is not text, the length."""
    if not isinstance(data, bytes):
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"({len(data)} bytes)"


def append(line: bytes) -> None:
    LOG.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(file, line)
        os.fdatasync(file)
    finally:
        os.close(file)
    if written != len(line):
        raise OSError(f"only {written} of {len(line)} bytes of a line fitted on the disk")
