"""What the autoscaler publishes of a revision's instances: an EndpointSlice for each that is ready, with whose it is.

Gateways read nothing else. Where there may be several of them, the instances of a revision with a hard limit are shared
out here (`serving.sharing` decides how).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from core.control.port import ResourceStore
from core.errors import AlreadyExists, Conflict, NotFound, PenstockError
from core.resources import ObjectMeta, Resource, owner_reference
from core.resources.builtin import ENDPOINT_SLICE
from serving.gateways import Absences, Gateway, Holding, gateways, holding, noted
from serving.instances.port import Instance
from serving.resources import DEFAULT_TIMEOUT_S, LABEL_CONFIGURATION, LABEL_REVISION, LABEL_SERVICE
from serving.routing import Return
from serving.sharing import MOVE_EVERY_S, Sharing, share

__all__ = ["GatewayList", "Published", "Situation", "is_published"]

_log = logging.getLogger(__name__)

_MANAGED_BY: Final = "endpointslice.kubernetes.io/managed-by"
_MANAGER: Final = "autoscaler.penstock.dev"


class GatewayList:
    """The gateways that are listed in a namespace: what the workers of all revisions share."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.listed: dict[str, Gateway] = {}
        self.absences = Absences()

    def relist(self, slices: Iterable[Resource], now: float) -> bool:
        """Read them anew; whether they changed. Raises msgspec.ValidationError."""
        before = self.listed
        self.listed = gateways(slices, self.namespace)
        self.absences.relist(self.listed, now)
        return self.listed != before


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """What matters for whose an instance is, beside the gateways: see `serving.sharing.Sharing`."""

    need: Mapping[str, float]
    now: float


class Published:
    """One revision's EndpointSlices. `slices` are those that there are, by the name of their instance.

    Without `shared_by`, every gateway may use every instance.
    """

    def __init__(self, store: ResourceStore, slices: dict[str, Resource], shared_by: GatewayList | None) -> None:
        self._store = store
        self._slices = slices
        self._gateways = shared_by
        self._released: set[str] = set()
        #: When an instance was last asked back.
        self._moved_at = -math.inf

    def returned(self, gateway: str, told: Return) -> bool:
        """`gateway` says that it has given an instance back; whether that is news."""
        held = self._slices.get(told.name)
        if held is None or told.name in self._released or held.meta.resource_version != told.version:
            return False
        if holding(held) != Holding(before=gateway):
            return False
        self._released.add(told.name)
        return True

    async def publish(
        self, instances: Iterable[Instance], revision: Resource | None, situation: Situation
    ) -> float | None:
        """Make the EndpointSlices say which of `instances`, all that are to stay, are ready, where, and whose they are.

        Returns in how many seconds time alone will change whose one is; None where it will not. Raises PenstockError
        where the store refuses; then this is to be called again.
        """
        there = {one.name: one for one in instances} if revision is not None else {}
        ready = {name: one for name, one in there.items() if one.phase == "ready"}
        whose, again_s = self._share(ready, revision, situation)
        for name, one in ready.items():
            if revision is not None:
                await self._put(name, endpoint_slice(one, revision, whose[name]))
        for name in self._slices.keys() - ready.keys():
            held = self._slices[name]
            if name in there and holding(held) is not None:
                # Its owner may have requests there; when it is ready again, another gets it no sooner than otherwise.
                await self._put(name, _unready(held))
            else:
                await self._delete(name)
        return again_s

    async def clear(self) -> None:
        """Delete what can be deleted; what is left is collected with the Revision that owns it."""
        for name in list(self._slices):
            with contextlib.suppress(PenstockError):
                await self._delete(name)

    def _share(
        self, names: Iterable[str], revision: Resource | None, situation: Situation
    ) -> tuple[Mapping[str, Holding | None], float | None]:
        spec = {} if revision is None else revision.spec
        limit = spec.get("containerConcurrency") or 0
        if self._gateways is None or limit <= 0:
            return dict.fromkeys(names), None
        holdings = {name: self._holding(name) for name in names}
        listed, now = self._gateways.listed, situation.now
        holders = {whose.owner or whose.before for whose in holdings.values()} - {""}
        timeout_s = float(spec.get("timeoutSeconds") or DEFAULT_TIMEOUT_S)
        lost, again_s = self._gateways.absences.lost(holders, listed, timeout_s=timeout_s, now=now)
        said = share(
            Sharing(
                holdings=holdings,
                gateways=listed,
                need=situation.need,
                lost=lost,
                released=self._released,
                limit=limit,
                settled=now - self._moved_at >= MOVE_EVERY_S,
            )
        )
        if any(whose.before and holdings[name].owner for name, whose in said.items()):
            self._moved_at = now
        return said, again_s

    def _holding(self, name: str) -> Holding:
        held = self._slices.get(name)
        return (held and holding(held)) or Holding()

    async def _put(self, name: str, wanted: Resource) -> None:
        held = self._slices.get(name)
        if held is None:
            try:
                self._slices[name] = await self._store.create(wanted)
                self._released.discard(name)
            except AlreadyExists:
                # Another process wrote it; whose it is by that counts.
                self._slices[name] = await self._store.get(wanted.key)
                raise Conflict(f"{wanted.key} exists already.") from None
        elif held.body != wanted.body or holding(held) != holding(wanted):
            try:
                version = held.meta.resource_version
                self._slices[name] = await self._store.update(wanted.with_meta(resource_version=version))
            except Conflict:
                self._slices[name] = await self._store.get(wanted.key)
                raise
            except NotFound:
                del self._slices[name]
                raise
            self._released.discard(name)
            if holding(held) != holding(wanted):
                facts = {"namespace": held.meta.namespace, "instance": name}
                _log.info("an instance changes hands", extra={"facts": facts | _hands(held, wanted)})

    async def _delete(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            await self._store.delete(self._slices[name].key)
        del self._slices[name]
        self._released.discard(name)


def _hands(before: Resource, after: Resource) -> dict[str, str]:
    """Whose an instance was and is, for the log."""
    was, is_ = (holding(each) or Holding() for each in (before, after))
    return {"from": was.owner or was.before or "nobody", "to": is_.owner or "nobody yet"}


def _unready(held: Resource) -> Resource:
    """The same EndpointSlice of an instance that is not ready."""
    state = {"ready": False, "serving": False, "terminating": False}
    endpoints = [{**endpoint, "conditions": state} for endpoint in held.body.get("endpoints") or ()]
    return msgspec.structs.replace(held, body={**held.body, "endpoints": endpoints})


def is_published(held: Resource) -> bool:
    """Whether this EndpointSlice was written here."""
    return held.meta.labels.get(_MANAGED_BY) == _MANAGER


def endpoint_slice(instance: Instance, revision: Resource, whose: Holding | None) -> Resource:
    """The EndpointSlice of one ready instance: its name, the one address it listens at, and whose it is."""
    host, port = instance.address or ("", 0)
    labels = {
        name: revision.meta.labels[name]
        for name in (LABEL_SERVICE, LABEL_CONFIGURATION)
        if name in revision.meta.labels
    }
    meta = ObjectMeta(
        name=instance.name,
        namespace=instance.namespace,
        labels={**labels, LABEL_REVISION: instance.revision, _MANAGED_BY: _MANAGER},
        annotations=noted(whose),
        owner_references=(owner_reference(revision),),
    )
    endpoint = {
        "addresses": [host],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "targetRef": {"kind": "Pod", "namespace": instance.namespace, "name": instance.name},
    }
    body = {
        "addressType": "IPv6" if ":" in host else "IPv4",
        "endpoints": [endpoint],
        "ports": [{"name": "http", "protocol": "TCP", "port": port}],
    }
    return Resource(ref=ENDPOINT_SLICE, meta=meta, body=body)
