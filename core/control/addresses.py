"""Where one of the platform's own components listens now, from the EndpointSlices that list it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from core.control.cache import Follower, Observed
from core.net.types import Address
from core.resources.builtin import ENDPOINT_SLICE
from core.resources.endpoints import component_slices, read_slice

__all__ = ["ListedAddresses"]

_log: Final = logging.getLogger(__name__)


class ListedAddresses:
    """The addresses of a component's ready processes: `core.net.types.Places`.

    `component` is the value of the label ``penstock.dev/component`` on the EndpointSlices, `port` the name of the port.
    Where none is ready, those that are listed and not being ended will do: a listing may be behind.
    """

    def __init__(self, *, component: str, namespace: str, port: str = "http") -> None:
        self._component = component
        self._namespace = namespace
        self._port = port
        self._follower: Follower | None = None
        self._addresses: tuple[Address, ...] = ()

    def __call__(self) -> tuple[Address, ...]:
        return self._addresses

    def follow(self, follower: Follower) -> None:
        """Stay current with `follower`, which holds EndpointSlices. Before it runs."""
        self._follower = follower
        follower.subscribe(self._changed)

    def _changed(self, batch: Sequence[Observed]) -> None:
        if self._follower is None or not any(each.key.kind == ENDPOINT_SLICE for each in batch):
            return
        ready: set[Address] = set()
        others: set[Address] = set()
        slices = self._follower.list(ENDPOINT_SLICE, self._namespace)
        for held in component_slices(slices, self._component, self._namespace):
            try:
                endpoints = read_slice(held, (self._port,))
            except msgspec.ValidationError as error:
                facts = {"slice": str(held.key), "error": str(error)}
                _log.error("an EndpointSlice of the platform cannot be read and is left out", extra={"facts": facts})
                continue
            for endpoint in endpoints:
                if not endpoint.terminating:
                    (ready if endpoint.ready else others).add((endpoint.host, endpoint.port))
        addresses = tuple(sorted(ready or others))
        # The same tuple while nothing changes: that is how clients see a change.
        if addresses != self._addresses:
            self._addresses = addresses
