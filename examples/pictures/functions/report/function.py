"""Sums up, each time it is asked, what the audit log and the CDN's bucket hold, and writes it as one JSON file.

Events are counted by their identity (source and id), so an event that was delivered twice counts once, and asking twice
writes the same report. The file appears complete or not at all.
"""

import json
import os
import tempfile
from collections import Counter
from pathlib import Path

from cloudevents.core.v1.event import CloudEvent

LOG = Path(os.environ["AUDIT_LOG"]).resolve()
CDN = Path(os.environ["CDN"]).resolve()
REPORT = Path(os.environ["REPORT"]).resolve()

UPLOADED = "com.amazonaws.s3.ObjectCreated:Put"
APPROVED = "penstock.examples.pictures.approved"
REJECTED = "penstock.examples.pictures.rejected"


def handle(event: CloudEvent) -> None:
    report = summary()
    write(json.dumps(report, indent=2, ensure_ascii=False).encode() + b"\n")
    print(
        f"{report['uploaded']} uploaded, {report['approved']} approved, {report['rejected']} rejected, "
        f"{report['thumbnails']} thumbnails of {report['thumbnail_bytes']} bytes"
    )


def summary() -> dict:
    types: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for line in lines():
        identity = (line["source"], line["id"])
        if identity in seen:
            continue
        seen.add(identity)
        types[line["type"]] += 1
        if line["type"] == REJECTED:
            reasons[line["subject"]] = line["data"]["reason"]
    sizes = [path.stat().st_size for path in CDN.rglob("*.jp*g") if not path.name.startswith(".")]
    return {
        "uploaded": types[UPLOADED],
        "approved": types[APPROVED],
        "rejected": types[REJECTED],
        "reasons": dict(sorted(reasons.items())),
        "thumbnails": len(sizes),
        "thumbnail_bytes": sum(sizes),
    }


def lines():
    """Each line of the log that is complete: another instance may be in the middle of one."""
    try:
        file = LOG.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue


def write(content: bytes) -> None:
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=REPORT.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, REPORT)
    except BaseException:
        os.unlink(temporary)
        raise
