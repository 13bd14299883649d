"""The reconcilers of this plane: where a source's sink is, and what its status says.

Conditions as Knative's sources have them: SinkProvided is decided here; Deployed says whether the source runs, and is
reported by the harness (`sources.harness`), as a Deployment's availability is on a cluster; Ready sums them up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from core.control.reconcile import Outcome, View
from core.resources import (
    Condition,
    Destination,
    Key,
    KindRef,
    Resource,
    Unresolved,
    merge_conditions,
    resolve,
    summarize,
)
from sources.kafka.records import RECORD, kafka_source_of
from sources.kafka.resources import KAFKA_SOURCE, kafka_spec
from sources.objectstore import CREATED, bucket_of
from sources.ping import PING, ping_source_of
from sources.resources import OBJECT_STORE_SOURCE, PING_SOURCE, delivery_of, object_store_spec, sink_of

__all__ = ["ADDRESSABLES", "DEPLOYED", "SourceReconciler", "deployed_of", "reconcilers", "with_deployed"]

DEPLOYED: Final = "Deployed"
#: Kinds that a sink may refer to. A Kubernetes Service needs no looking up: its name is its address.
ADDRESSABLES: Final = (
    KindRef("eventing.knative.dev", "v1", "Broker"),
    KindRef("flows.knative.dev", "v1", "Parallel"),
    KindRef("flows.knative.dev", "v1", "Sequence"),
    KindRef("messaging.knative.dev", "v1", "Channel"),
    KindRef("messaging.knative.dev", "v1", "InMemoryChannel"),
    KindRef("serving.knative.dev", "v1", "Route"),
    KindRef("serving.knative.dev", "v1", "Service"),
)


class EventAttributes(msgspec.Struct, frozen=True):
    """What a source's events look like: an entry of ``status.ceAttributes``."""

    type: str
    source: str


class _Wanted(msgspec.Struct, frozen=True):
    """A destination that a source cannot run without, the status member for its address, and the condition."""

    destination: Destination | None
    member: str
    condition: str


def _sinks(resource: Resource) -> Iterator[_Wanted]:
    yield _Wanted(sink_of(resource)[0], "sinkUri", "SinkProvided")
    delivery = delivery_of(resource)
    if delivery is not None and delivery.dead_letter_sink is not None:
        yield _Wanted(delivery.dead_letter_sink, "deadLetterSinkUri", "DeadLetterSinkResolved")


def _refers(destination: Destination | None, to: Resource, namespace: str) -> bool:
    ref = destination.ref if destination is not None else None
    if ref is None or ref.name != to.meta.name or ref.kind != to.ref.kind:
        return False
    return (ref.namespace or namespace) == to.meta.namespace


class SourceReconciler:
    """The decision about one kind of source."""

    def __init__(
        self,
        kind: KindRef,
        attributes: Callable[[Resource], Sequence[EventAttributes]],
        addressables: Iterable[KindRef] = ADDRESSABLES,
    ) -> None:
        self._kind = kind
        self._attributes = attributes
        self._related: Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]
        self._related = dict.fromkeys(addressables, self._sources_of)

    @property
    def kind(self) -> KindRef:
        return self._kind

    @property
    def related(self) -> Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]:
        return self._related

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        """The status that follows from the sink, and from what the harness said last of the source itself."""
        conditions: list[Condition] = []
        status: dict[str, Any] = {"observedGeneration": resource.meta.generation}
        for wanted in _sinks(resource):
            try:
                if wanted.destination is None:
                    raise Unresolved("NoDestination", "Neither a ref nor a uri is given.")
                status[wanted.member] = resolve(wanted.destination, resource.meta.namespace, view.get)
                conditions.append(Condition(type=wanted.condition, status="True"))
            except Unresolved as error:
                reason, message = error.reason, str(error)
                conditions.append(Condition(type=wanted.condition, status="False", reason=reason, message=message))
        if all(condition.status == "True" for condition in conditions):
            deployed = deployed_of(resource) or Condition(
                type=DEPLOYED, status="Unknown", reason="Starting", message="The source has not started yet."
            )
        else:
            status.pop("sinkUri", None)  # by which the harness starts it
            message = "The source starts once its sink is known."
            deployed = Condition(type=DEPLOYED, status="Unknown", reason="WaitingForSink", message=message)
        status["ceAttributes"] = [msgspec.to_builtins(each) for each in self._attributes(resource)]
        found = summarize("Ready", (*conditions, deployed))
        status["conditions"] = merge_conditions(_conditions(resource), found, now)
        return Outcome(status=status)

    def _sources_of(self, sink: Resource, view: View) -> Iterable[Key]:
        """The sources that refer to this resource."""
        for source in view.list(self._kind):
            if any(_refers(wanted.destination, sink, source.meta.namespace) for wanted in _sinks(source)):
                yield source.key


def reconcilers(addressables: Iterable[KindRef] = ADDRESSABLES) -> tuple[SourceReconciler, ...]:
    """One for each kind of this plane. The control loop must know the kinds in `addressables`."""
    kinds = tuple(addressables)
    return (
        SourceReconciler(PING_SOURCE, _ping_attributes, kinds),
        SourceReconciler(OBJECT_STORE_SOURCE, _object_store_attributes, kinds),
        SourceReconciler(KAFKA_SOURCE, _kafka_attributes, kinds),
    )


def deployed_of(resource: Resource) -> Condition | None:
    """The condition that the harness reported last; None where it has not yet, or the source has waited since."""
    for entry in _conditions(resource):
        if entry.get("type") == DEPLOYED and entry.get("reason") != "WaitingForSink":
            return Condition(
                type=DEPLOYED,
                status=entry.get("status", "Unknown"),
                reason=entry.get("reason", ""),
                message=entry.get("message", ""),
            )
    return None


def with_deployed(resource: Resource, deployed: Condition, now: float) -> Resource:
    """The resource with this condition in its status, the other conditions as they are."""
    before = _conditions(resource)
    others = [entry for entry in before if entry.get("type") != DEPLOYED]
    entries = sorted([*others, *merge_conditions(before, [deployed], now)], key=lambda entry: str(entry.get("type")))
    return resource.with_status({**resource.status, "conditions": entries})


def _conditions(resource: Resource) -> list[dict[str, Any]]:
    """The stored conditions. A status can be written by anybody, in any shape."""
    held = resource.status.get("conditions")
    return [entry for entry in held if isinstance(entry, dict)] if isinstance(held, list) else []


def _ping_attributes(resource: Resource) -> list[EventAttributes]:
    return [EventAttributes(PING, ping_source_of(resource.meta.namespace, resource.meta.name))]


def _object_store_attributes(resource: Resource) -> list[EventAttributes]:
    return [EventAttributes(CREATED, bucket_of(object_store_spec(resource)).source)]


def _kafka_attributes(resource: Resource) -> list[EventAttributes]:
    """Of its plain records; those that are CloudEvents keep their own."""
    namespace, name = resource.meta.namespace, resource.meta.name
    return [EventAttributes(RECORD, kafka_source_of(namespace, name, topic)) for topic in kafka_spec(resource).topics]
