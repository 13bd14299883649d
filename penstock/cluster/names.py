"""A name inside the cluster for each Route: a Kubernetes Service that leads to the gateway, as Knative makes it.

``http://hello.default.svc.cluster.local`` then works from every pod. Composed by the cluster's root alone. Behaviour:
knative/serving `pkg/reconciler/route/resources/service.go` (the placeholder Services).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from core.control.reconcile import Action, Apply, Delete, Outcome, View
from core.resources import Key, Kind, KindRef, ObjectMeta, Resource, owner_reference
from serving.reconcile.status import owner_keys
from serving.resources import ROUTE

__all__ = ["KIND", "SERVICE", "RouteNames"]

SERVICE: Final = KindRef("", "v1", "Service")
KIND: Final = Kind(ref=SERVICE, plural="services", singular="service")


class RouteNames:
    """Keeps the Services of a Route: one of its own name, and one for each tag.

    A Service of that name that is somebody else's stays as it is. `gateway` is the host of the gateways' own Service.
    """

    kind = ROUTE

    def __init__(self, *, gateway: str) -> None:
        self._gateway = gateway

    @property
    def related(self) -> Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]:
        return {SERVICE: _routes_of}

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        if resource.meta.deletion_timestamp:
            return Outcome()
        wanted = dict.fromkeys(_names(resource))
        actions: list[Action] = []
        for name in wanted:
            held = view.get(Key(SERVICE, resource.meta.namespace, name))
            if held is None or _belongs(held, resource):
                actions.append(Apply(self._service(resource, name)))
        for held in view.owned(resource, SERVICE):
            if held.meta.name not in wanted:
                actions.append(Delete(held.key, held.meta.uid))
        return Outcome(actions=tuple(actions))

    def _service(self, route: Resource, name: str) -> Resource:
        meta = ObjectMeta(
            name=name,
            namespace=route.meta.namespace,
            owner_references=(owner_reference(route),),
        )
        # With what the API server would fill in, so that the stored one is the same.
        spec = {"type": "ExternalName", "externalName": self._gateway, "sessionAffinity": "None"}
        return Resource(ref=SERVICE, meta=meta, body={"spec": spec})


def _names(route: Resource) -> Iterator[str]:
    yield route.meta.name
    for target in route.spec.get("traffic") or ():
        if target.get("tag"):
            yield f"{target['tag']}-{route.meta.name}"


def _belongs(service: Resource, route: Resource) -> bool:
    return any(owner.uid == route.meta.uid for owner in service.meta.owner_references)


def _routes_of(service: Resource, view: View) -> Iterable[Key]:
    """The Route that a Service is made for; where it is nobody's, the one whose name it has taken."""
    owners = owner_keys(service, ROUTE)
    if owners:
        return owners
    named = Key(ROUTE, service.meta.namespace, service.meta.name)
    return (named,) if view.get(named) is not None else ()
