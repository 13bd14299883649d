"""The reconcilers of Broker and Trigger: addresses, resolved destinations, and conditions with Knative's names; and
where all of this plane's are put together.

Sources: knative/specs `eventing/control-plane.md` ("Broker Lifecycle", "Trigger Lifecycle", "Destination resolution");
condition types and reasons of knative/eventing `pkg/apis/eventing/v1/{broker,trigger}_lifecycle.go` and
`pkg/reconciler/broker/trigger`. Conditions of Knative's own parts that do not exist here (its channel, its filter and
ingress deployments) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from broker.conditions import conditions_of, readable, ready_of, refers, sink_condition, sink_of
from broker.flows import PARALLEL, SEQUENCE
from broker.messaging import CHANNELS
from broker.reconcile_event_types import EventTypeReconciler
from broker.reconcile_flows import ParallelReconciler, SequenceReconciler
from broker.reconcile_messaging import ChannelReconciler, InMemoryChannelReconciler, SubscriptionReconciler
from broker.resources import (
    BROKER,
    CLASS_ANNOTATION,
    DEFAULT_CLASS,
    TRIGGER,
    BrokerShape,
    TriggerShape,
    class_of,
    dependency_of,
)
from core.control.reconcile import Outcome, Reconciler, View
from core.resources import (
    Condition,
    Key,
    KindRef,
    Resource,
    Unresolved,
    is_ready,
    merge_conditions,
    resolve,
    summarize,
)

__all__ = ["ADDRESSABLES", "DEPENDENCIES", "INGRESS_URL", "BrokerReconciler", "TriggerReconciler", "reconcilers"]

#: Where all Brokers are; a Broker's own address is ``<this>/<namespace>/<name>``.
INGRESS_URL: Final = "http://broker-ingress.knative-eventing.svc.cluster.local"

#: Kinds that a subscriber, a reply or a dead-letter sink may refer to. A Kubernetes Service needs no looking up: its
#: name is its address.
ADDRESSABLES: Final = (
    KindRef("serving.knative.dev", "v1", "Service"),
    KindRef("serving.knative.dev", "v1", "Route"),
    BROKER,
    *CHANNELS,
    SEQUENCE,
    PARALLEL,
)
#: Kinds that a Trigger may depend on (``knative.dev/dependency``).
DEPENDENCIES: Final = (
    KindRef("sources.knative.dev", "v1", "PingSource"),
    KindRef("sources.penstock.dev", "v1alpha1", "ObjectStoreSource"),
)

Related = Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]


class BrokerReconciler:
    """Gives a Broker its address and resolves its dead-letter sink."""

    def __init__(
        self,
        *,
        ingress_url: str = INGRESS_URL,
        addressables: Iterable[KindRef] = ADDRESSABLES,
        classes: frozenset[str] = frozenset({DEFAULT_CLASS}),
        remedies: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._ingress_url = ingress_url.rstrip("/")
        self._classes = classes
        self._remedies = remedies
        self._related: Related = dict.fromkeys(addressables, _brokers_of)

    @property
    def kind(self) -> KindRef:
        return BROKER

    @property
    def related(self) -> Related:
        return self._related

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        meta = resource.meta
        if class_of(resource) not in self._classes:
            return self._not_served(resource, now)
        status: dict[str, Any] = {
            "observedGeneration": meta.generation,
            "address": {"name": "http", "url": f"{self._ingress_url}/{meta.namespace}/{meta.name}"},
        }
        shape = msgspec.convert(resource.spec, BrokerShape)
        sink = sink_condition(sink_of(shape.delivery), meta.namespace, view, status)
        found = summarize("Ready", (Condition(type="Addressable", status="True"), sink))
        status["conditions"] = merge_conditions(conditions_of(resource), found, now)
        return Outcome(status=status)

    def _not_served(self, resource: Resource, now: float) -> Outcome:
        """A Broker of a class whose log this platform does not have: it has no address, and says why."""
        asked, served = class_of(resource), ", ".join(sorted(self._classes))
        message = (
            f"Its class is {asked}, and this platform's event logs serve {served}. "
            f"{self._remedies.get(asked, 'Start the platform with a log that does.')} "
            f"Or create the Broker anew without the annotation {CLASS_ANNOTATION}."
        )
        missing = Condition(type="Addressable", status="False", reason="BrokerClassNotServed", message=message)
        conditions = merge_conditions(conditions_of(resource), summarize("Ready", (missing,)), now)
        return Outcome(status={"observedGeneration": resource.meta.generation, "conditions": conditions})


class TriggerReconciler:
    """Resolves a Trigger's subscriber and dead-letter sink, and says whether its Broker and dependency are ready."""

    def __init__(
        self, *, addressables: Iterable[KindRef] = ADDRESSABLES, dependencies: Iterable[KindRef] = DEPENDENCIES
    ) -> None:
        related: dict[KindRef, Callable[[Resource, View], Iterable[Key]]] = dict.fromkeys(addressables, _triggers_of)
        related |= dict.fromkeys(dependencies, _dependents_of)
        related[BROKER] = _triggers_of_broker
        self._related: Related = related

    @property
    def kind(self) -> KindRef:
        return TRIGGER

    @property
    def related(self) -> Related:
        return self._related

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        shape = msgspec.convert(resource.spec, TriggerShape)
        namespace = resource.meta.namespace
        status: dict[str, Any] = {"observedGeneration": resource.meta.generation}
        broker = view.get(Key(BROKER, namespace, shape.broker))
        subscriber = _subscriber_condition(shape, namespace, view, status)
        conditions = (
            _broker_condition(shape.broker, broker),
            subscriber,
            _dead_letter_condition(shape, broker, namespace, view, status),
            _dependency_condition(resource, view),
            _subscription_condition(broker, subscriber),
        )
        status["conditions"] = merge_conditions(conditions_of(resource), summarize("Ready", conditions), now)
        return Outcome(status=status)


def reconcilers(
    *,
    ingress_url: str = INGRESS_URL,
    addressables: Iterable[KindRef] = ADDRESSABLES,
    dependencies: Iterable[KindRef] = DEPENDENCIES,
    classes: frozenset[str] = frozenset({DEFAULT_CLASS}),
    remedies: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Reconciler, ...]:
    """All reconcilers of this plane. The control loop must know the kinds named; `classes` are those of the Brokers
    that the platform's event logs serve, `remedies` say by class how to have a log that serves another one."""
    kinds = tuple(addressables)
    return (
        BrokerReconciler(ingress_url=ingress_url, addressables=kinds, classes=classes, remedies=remedies),
        TriggerReconciler(addressables=kinds, dependencies=dependencies),
        ChannelReconciler(),
        InMemoryChannelReconciler(ingress_url=ingress_url, addressables=kinds),
        SubscriptionReconciler(addressables=kinds),
        SequenceReconciler(),
        ParallelReconciler(),
        EventTypeReconciler(addressables=kinds),
    )


# ---- conditions


def _broker_condition(name: str, broker: Resource | None) -> Condition:
    if broker is None:
        message = f'Broker "{name}" does not exist. Create it, or correct spec.broker.'
        return Condition(type="BrokerReady", status="False", reason="BrokerDoesNotExist", message=message)
    ready = ready_of(broker)
    if ready.get("status") == "True":
        return Condition(type="BrokerReady", status="True")
    if not ready:
        message = "Broker has not yet been reconciled."
        return Condition(type="BrokerReady", status="Unknown", reason="BrokerNotConfigured", message=message)
    reason, message = ready.get("reason") or "BrokerNotReady", ready.get("message") or "The Broker is not ready."
    return Condition(type="BrokerReady", status="False", reason=reason, message=message)


def _subscriber_condition(shape: TriggerShape, namespace: str, view: View, status: dict[str, Any]) -> Condition:
    try:
        if shape.subscriber is None:
            raise Unresolved("NoDestination", "spec.subscriber is not given.")
        status["subscriberUri"] = resolve(shape.subscriber, namespace, view.get)
    except Unresolved as error:
        return Condition(type="SubscriberResolved", status="False", reason=error.reason, message=str(error))
    return Condition(type="SubscriberResolved", status="True")


def _dead_letter_condition(
    shape: TriggerShape, broker: Resource | None, namespace: str, view: View, status: dict[str, Any]
) -> Condition:
    own = sink_of(shape.delivery)
    if own is not None or broker is None:
        return sink_condition(own, namespace, view, status)
    brokers = sink_of(msgspec.convert(broker.spec, BrokerShape).delivery)
    if brokers is None:
        return sink_condition(None, namespace, view, status)
    uri = broker.status.get("deadLetterSinkUri")
    if uri:
        status["deadLetterSinkUri"] = uri
        return Condition(type="DeadLetterSinkResolved", status="True")
    message = f'Broker "{broker.meta.name}" has not resolved its dead-letter sink; see its conditions.'
    reason = "BrokerDeadLetterSinkNotResolved"
    return Condition(type="DeadLetterSinkResolved", status="False", reason=reason, message=message)


def _dependency_condition(resource: Resource, view: View) -> Condition:
    kind = "DependencyReady"
    try:
        reference = dependency_of(resource)
    except ValueError as error:
        return Condition(type=kind, status="False", reason="ReferenceError", message=str(error))
    if reference is None:
        return Condition(type=kind, status="True")
    key = Key(KindRef.parse(reference.api_version, reference.kind), resource.meta.namespace, reference.name)
    dependency = view.get(key)
    if dependency is None:
        message = f"{key} does not exist, or is of a kind that nothing can depend on here."
        return Condition(type=kind, status="False", reason="DependencyDoesNotExist", message=message)
    if dependency.status.get("observedGeneration") != dependency.meta.generation:
        message = f"The status of {key} speaks of an older generation."
        return Condition(type=kind, status="Unknown", reason="GenerationNotEqual", message=message)
    ready = ready_of(dependency)
    if not ready:
        message = "Dependency has not yet been reconciled."
        return Condition(type=kind, status="Unknown", reason="DependencyNotConfigured", message=message)
    if ready.get("status") == "True":
        return Condition(type=kind, status="True")
    reason, message = ready.get("reason") or "DependencyNotReady", ready.get("message") or f"{key} is not ready."
    status: Any = "False" if ready.get("status") == "False" else "Unknown"
    return Condition(type=kind, status=status, reason=reason, message=message)


def _subscription_condition(broker: Resource | None, subscriber: Condition) -> Condition:
    """Whether the Broker delivers to the subscriber: it does once both are there."""
    if broker is not None and is_ready(broker.status, broker.meta.generation) == "True" and subscriber.status == "True":
        return Condition(type="SubscriptionReady", status="True")
    message = "The Broker delivers once it is ready and the subscriber has an address."
    return Condition(type="SubscriptionReady", status="Unknown", reason="SubscriptionNotConfigured", message=message)


# ---- who has to be looked at again


def _brokers_of(changed: Resource, view: View) -> Iterable[Key]:
    """The Brokers whose dead letters go to `changed`."""
    for broker, shape in readable(view.list(BROKER), BrokerShape):
        if refers(sink_of(shape.delivery), changed, broker.meta.namespace):
            yield broker.key


def _triggers_of(changed: Resource, view: View) -> Iterable[Key]:
    """The Triggers whose events or dead letters go to `changed`."""
    for trigger, shape in readable(view.list(TRIGGER), TriggerShape):
        namespace = trigger.meta.namespace
        if refers(shape.subscriber, changed, namespace) or refers(sink_of(shape.delivery), changed, namespace):
            yield trigger.key


def _triggers_of_broker(broker: Resource, view: View) -> Iterable[Key]:
    """A Broker's own Triggers, and those that send to it."""
    for trigger in view.list(TRIGGER, broker.meta.namespace):
        if trigger.spec.get("broker") == broker.meta.name:
            yield trigger.key
    yield from _triggers_of(broker, view)


def _dependents_of(changed: Resource, view: View) -> Iterable[Key]:
    """The Triggers that depend on `changed`."""
    for trigger in view.list(TRIGGER, changed.meta.namespace):
        try:
            reference = dependency_of(trigger)
        except ValueError:
            continue  # its own condition says so
        if reference is not None and (reference.kind, reference.name) == (changed.ref.kind, changed.meta.name):
            yield trigger.key
