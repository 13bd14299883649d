"""A ResourceStore that fails, waits and breaks its watches when a test says so, around one that does not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing

from core.control.port import Change, Listing, ResourceStore
from core.errors import Gone, PenstockError, Unavailable
from core.resources import Key, KindRef, Resource

__all__ = ["FaultyStore"]


class FaultyStore:
    """`inner` with faults. `calls` counts operations by name, `open_watches` those that are under way."""

    def __init__(self, inner: ResourceStore) -> None:
        self.inner = inner
        self.calls: Counter[str] = Counter()
        self.open_watches = 0
        #: Every operation raises this while it is set.
        self.down: PenstockError | None = None
        #: What the next calls of an operation raise, in order: {"update": [Conflict(...)]}.
        self.fail_next: dict[str, list[PenstockError]] = {}
        #: How long each write takes on the loop's clock.
        self.write_takes_s = 0.0
        #: What a watch yields is held back for this long; that of one kind, where `lagging` names it.
        self.watch_lags_s = 0.0
        self.lagging: KindRef | None = None
        #: An answer to `get` is on its way for this long.
        self.answer_takes_s = 0.0
        self._broken: asyncio.Future[PenstockError | None] | None = None

    def go_down(self) -> None:
        """Refuse every call and break every watch until `come_up`."""
        self.down = Unavailable("The store is down for this test.")
        self.break_watches(self.down)

    def come_up(self) -> None:
        self.down = None

    def break_watches(self, error: PenstockError | None) -> None:
        """End all open watches with `error`, or (None) as if the server had closed them."""
        if self._broken is not None:
            self._broken.set_result(error)
            self._broken = None

    def expire_watches(self) -> None:
        """End all open watches as if what they wait for were no longer kept."""
        self.break_watches(Gone("What was asked for is no longer kept. List again."))

    async def get(self, key: Key) -> Resource:
        self._call("get")
        found = await self.inner.get(key)
        if self.answer_takes_s:
            await asyncio.sleep(self.answer_takes_s)
        return found

    async def list(self, kind: KindRef, namespace: str | None = None) -> Listing:
        self._call("list")
        return await self.inner.list(kind, namespace)

    async def watch(self, kind: KindRef, since: int, namespace: str | None = None) -> AsyncGenerator[Change, None]:
        self._call("watch")
        if self._broken is None:
            self._broken = asyncio.get_running_loop().create_future()
        broken = self._broken
        self.open_watches += 1
        try:
            async with aclosing(self.inner.watch(kind, since, namespace)) as changes:
                while (change := await self._next(changes, broken)) is not None:
                    if self.watch_lags_s and self.lagging in (None, kind):
                        await asyncio.sleep(self.watch_lags_s)
                        if broken.done() and (error := broken.result()) is not None:
                            raise error
                    yield change
        finally:
            self.open_watches -= 1

    async def create(self, resource: Resource) -> Resource:
        await self._write("create")
        return await self.inner.create(resource)

    async def update(self, resource: Resource) -> Resource:
        await self._write("update")
        return await self.inner.update(resource)

    async def update_status(self, resource: Resource) -> Resource:
        await self._write("update_status")
        return await self.inner.update_status(resource)

    async def delete(self, key: Key, *, uid: str | None = None) -> Resource:
        await self._write("delete")
        return await self.inner.delete(key, uid=uid)

    @staticmethod
    async def _next(
        changes: AsyncGenerator[Change, None], broken: asyncio.Future[PenstockError | None]
    ) -> Change | None:
        following = asyncio.ensure_future(anext(changes))
        try:
            await asyncio.wait((following, broken), return_when=asyncio.FIRST_COMPLETED)
            if not broken.done():
                return following.result()
            error = broken.result()
            if error is not None:
                raise error
            return None
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _write(self, operation: str) -> None:
        self._call(operation)
        if self.write_takes_s:
            await asyncio.sleep(self.write_takes_s)

    def _call(self, operation: str) -> None:
        self.calls[operation] += 1
        if self.down is not None:
            # Not this one: an error that is raised again and again grows with each traceback.
            raise type(self.down)(str(self.down)) from None
        planned = self.fail_next.get(operation)
        if planned:
            raise planned.pop(0)
