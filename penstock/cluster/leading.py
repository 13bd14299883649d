"""Which control pod leads, told on the pod itself: the control Service selects by that, so that requests find it."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

from core.control.backoff import Backoff
from core.control.port import ResourceStore
from core.errors import NotFound, PenstockError
from core.resources import Key
from core.resources.builtin import POD

__all__ = ["LEADER_LABEL", "LeaderLabel"]

log: Final = logging.getLogger(__name__)

LEADER_LABEL: Final = "penstock.dev/leader"
#: An API server that is away takes no label; the sooner after that, the sooner requests find the leader.
_BACKOFF: Final = Backoff(first_s=0.1, cap_s=2.0)


class LeaderLabel:
    """Keeps this pod's label at what `set` said last, at first that it does not lead: a container that is started again
    finds the label of the one before it. `run` it in a task."""

    def __init__(self, store: ResourceStore, namespace: str, pod: str) -> None:
        self._store = store
        self._key = Key(POD, namespace, pod)
        self._leads = False
        self._wake = asyncio.Event()
        self._wake.set()

    def set(self, leads: bool) -> None:
        self._leads = leads
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled. The label of a pod that ends matters no more: it is not ready."""
        rng = random.Random()  # noqa: S311 - jitter, not a secret
        failures = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._write()
                failures = 0
            except NotFound:
                log.warning(
                    "this process is in no pod: no Service leads to it", extra={"facts": {"pod": str(self._key)}}
                )
            except PenstockError as error:
                failures += 1
                if failures <= 2:
                    log.warning("the label of the leader was not written", extra={"facts": {"error": str(error)}})
                await asyncio.sleep(_BACKOFF.delay_s(failures, rng))
                self._wake.set()

    async def _write(self) -> None:
        pod = await self._store.get(self._key)
        wanted = "true" if self._leads else "false"
        if pod.meta.labels.get(LEADER_LABEL) != wanted:
            await self._store.update(pod.with_meta(labels={**pod.meta.labels, LEADER_LABEL: wanted}))
