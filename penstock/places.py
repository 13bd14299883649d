"""Where a running platform is: its addresses and its data directory, as the command line finds them again.

``penstock up`` writes them to ``<data>/platform.json`` once it is ready; every other command reads that file, unless
``--server`` or ``PENSTOCK_SERVER`` names an API server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

__all__ = ["DEFAULT_API_PORT", "DEFAULT_BROKER_PORT", "DEFAULT_DATA", "DEFAULT_GATEWAY_PORT", "Places", "read_places"]

DEFAULT_DATA: Final = ".penstock"
DEFAULT_GATEWAY_PORT: Final = 8080
DEFAULT_BROKER_PORT: Final = 8081
DEFAULT_API_PORT: Final = 8082
DEFAULT_ADMIN_PORT: Final = 8083
_FILE: Final = "platform.json"


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """The listeners of one platform, as ``http://host:port``, and the supervisor's process id."""

    api: str = f"http://127.0.0.1:{DEFAULT_API_PORT}"
    broker: str = f"http://127.0.0.1:{DEFAULT_BROKER_PORT}"
    gateway: str = f"http://127.0.0.1:{DEFAULT_GATEWAY_PORT}"
    admin: str = f"http://127.0.0.1:{DEFAULT_ADMIN_PORT}"
    pid: int = 0

    def write(self, data: Path) -> None:
        (data / _FILE).write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")


def read_places(data: Path) -> Places | None:
    """What the platform of this data directory wrote; None where there is none, or it is being written. Raises OSError
    where there is one that cannot be read."""
    try:
        return msgspec.json.decode((data / _FILE).read_bytes(), type=Places)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None
