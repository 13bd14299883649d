"""What is known of one Revision's Deployment and pods, and what was told of them. No I/O."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from core.resources import Resource
from core.resources.builtin import POD
from serving.instances.kubernetes.deployment import leaving, overdue
from serving.instances.kubernetes.status import instance_of, steps, why_ended
from serving.instances.port import Instance

__all__ = ["Known"]


class Known:
    """`keep` and `lose` take in what a follower tells and what was written; `news` is what follows for instances.

    Each call looks only at pods that changed: there may be a thousand, and each changes several times in its life.
    """

    def __init__(self) -> None:
        #: Held while the Deployment is written.
        self.lock = asyncio.Lock()
        self.deployment: Resource | None = None
        self.pods: dict[str, Resource] = {}
        self.told: dict[str, Instance] = {}
        #: Pods that are to be named as leaving with the next write.
        self.chosen: set[str] = set()
        self._left: frozenset[str] = frozenset()
        self._changed: set[str] = set()

    @property
    def is_nothing(self) -> bool:
        return self.deployment is None and not self.pods and not self.told and not self.lock.locked()

    def keep(self, resource: Resource) -> None:
        """This state, unless a newer one is known: the follower is behind what was just written."""
        if resource.ref == POD:
            if _is_newer(resource, self.pods.get(resource.meta.name)):
                self.pods[resource.meta.name] = resource
                self._changed.add(resource.meta.name)
        elif _is_newer(resource, self.deployment):
            self.replace(resource)

    def wrote(self, pod: Resource) -> None:
        """What came of a write to a pod; it may have been deleted before the answer was here."""
        if pod.meta.name in self.pods:
            self.keep(pod)

    def replace(self, deployment: Resource | None) -> None:
        """The Deployment as it is now, None where there is none."""
        self.deployment = deployment
        left = leaving(deployment) if deployment is not None else frozenset[str]()
        self._changed |= left ^ self._left
        self._left = left

    def lose(self, resource: Resource) -> None:
        """It is gone, or is none of this Revision's any more."""
        if resource.ref == POD:
            self.pods.pop(resource.meta.name, None)
            self._changed.add(resource.meta.name)
        elif self.deployment is not None and self.deployment.meta.uid == resource.meta.uid:
            self.replace(None)

    def is_leaving(self, name: str) -> bool:
        return name in self._left

    def overdue(self) -> list[Resource]:
        """Pods that leave and that the cluster would keep."""
        if self.deployment is None or not self._left:
            return []
        return [self.pods[name] for name in overdue(self.deployment, self.pods)]

    def news(self) -> list[Instance]:
        """What has not been told; of pods that are told of for the first time, those that were made first come first,
        so that a new process ends the oldest first as the one before it did."""
        found: list[Instance] = []
        for name in sorted(self._changed, key=self._age):
            pod = self.pods.get(name)
            instance = instance_of(pod, is_leaving=name in self._left) if pod is not None else None
            if instance is not None:
                for step in steps(self.told.get(name), instance):
                    self.told[name] = step
                    found.append(step)
            elif name in self.told:
                reason, message = why_ended(pod) if pod is not None else ("", "")
                gone = replace(self.told.pop(name), phase="gone", address=None, reason=reason, message=message)
                found.append(gone)
        self._changed.clear()
        return found

    def _age(self, name: str) -> tuple[str, str]:
        pod = self.pods.get(name)
        return (pod.meta.creation_timestamp or "" if pod is not None else "", name)


def _is_newer(resource: Resource, held: Resource | None) -> bool:
    if held is None or held.meta.uid != resource.meta.uid:
        return True
    return int(resource.meta.resource_version) >= int(held.meta.resource_version)
