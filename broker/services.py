"""What all dispatchers of a log's Triggers in one process are handed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

import msgspec

from broker.ledger import Ledger, OutcomeName
from broker.log.port import EventLog
from broker.table import TriggerSpec
from core.clock import Clock
from core.net.names import Names
from core.net.types import Address, Headers, NetError, Response

__all__ = ["Sender", "Services"]


class Sender(Protocol):
    """What a dispatcher needs of `core.net.client.Client`."""

    def fetch(  # noqa: PLR0913 - as the client has it
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        *,
        timeout_s: float,
        max_bytes: int,
        then: Callable[[Response | NetError], None],
        encoded_headers: bytes = b"",
        tls: bool = False,
    ) -> Callable[[], None]: ...


def _nobody(uri: str) -> str | None:
    return None


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """What all dispatchers of a process share. `home` gives the Broker or channel of `log` whose address a URI is: what
    is sent there can be stored here."""

    log: EventLog
    ledger: Ledger
    client: Sender
    names: Names
    clock: Clock
    rng: random.Random
    count: Callable[[TriggerSpec, OutcomeName, float], None]
    home: Callable[[str], str | None] = _nobody
