"""Storage for claims: for each that names no class a volume of its own, which is a folder of the machine."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, Final

from tests.support.kubelet.api import AWAY, Api, ApiError

__all__ = ["Claims"]

_LOG = logging.getLogger("kubelet.claims")
_RETRY_S: Final = 1.0


class Claims:
    """Makes the volumes; that claim and volume are bound then, the controller manager says."""

    def __init__(self, api: Api, folder: Path) -> None:
        self._api = api
        self._folder = folder
        self._waiting: asyncio.Queue[Any] = asyncio.Queue()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            path = "/api/v1/persistentvolumeclaims"
            group.create_task(self._api.follow(path, self._changed, self._synced))
            group.create_task(self._provide())

    def _synced(self, claims: list[Any]) -> None:
        for claim in claims:
            self._changed("ADDED", claim)

    def _changed(self, kind: str, claim: Any) -> None:
        spec = claim["spec"]
        # Those of a class wait for a volume of that class, which somebody makes.
        if kind == "ADDED" and not spec.get("volumeName") and not spec.get("storageClassName"):
            self._waiting.put_nowait(claim)

    async def _provide(self) -> None:
        while True:
            claim = await self._waiting.get()
            try:
                await self._api.create("/api/v1/persistentvolumes", self._volume(claim))
            except ApiError as error:
                if error.status != 409:
                    _LOG.warning("a volume for %s: %s", claim["metadata"]["name"], error)
            except AWAY:
                await asyncio.sleep(_RETRY_S)
                self._waiting.put_nowait(claim)

    def _volume(self, claim: Any) -> dict[str, Any]:
        metadata, spec = claim["metadata"], claim["spec"]
        reference = {"kind": "PersistentVolumeClaim", "apiVersion": "v1"}
        reference |= {key: metadata[key] for key in ("namespace", "name", "uid")}
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"pvc-{metadata['uid']}"},
            "spec": {
                "capacity": spec["resources"]["requests"],
                "accessModes": spec["accessModes"],
                "storageClassName": spec.get("storageClassName", ""),
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": str(self._folder / "claims" / metadata["namespace"] / metadata["name"])},
                "claimRef": reference,
            },
        }
