"""The reconcilers of this plane: where a Broker is, and what a Trigger's references resolve to.

Conditions, reasons and their order are those of knative/eventing `pkg/apis/eventing/v1/broker_lifecycle.go` and
`trigger_lifecycle.go`. Deciding is all there is to it: the broker process follows the same resources for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from broker.resources import BROKER, TRIGGER, BrokerShape, DeliveryShape, TriggerShape, dependency_of
from core.control.reconcile import Outcome, View
from core.resources import (
    Condition,
    Destination,
    Key,
    KindRef,
    Resource,
    Unresolved,
    is_ready,
    merge_conditions,
    resolve,
    summarize,
)

__all__ = ["ADDRESSABLES", "INGRESS_HOST", "BrokerReconciler", "TriggerReconciler", "reconcilers"]

#: The ingress' cluster name in Knative; senders of the platform route it by name (`core.net.names`).
INGRESS_HOST: Final = "broker-ingress.knative-eventing.svc.cluster.local"
#: Kinds that a subscriber or a dead-letter sink may refer to. A Kubernetes Service needs no looking up.
ADDRESSABLES: Final = (
    KindRef("serving.knative.dev", "v1", "Service"),
    KindRef("serving.knative.dev", "v1", "Route"),
    BROKER,
)

Related = Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]


class BrokerReconciler:
    """A Broker is ready once it has an address and its dead-letter sink, if it names one, is known."""

    def __init__(self, *, ingress_host: str = INGRESS_HOST) -> None:
        self._ingress_host = ingress_host
        self._related: Related = dict.fromkeys((kind for kind in ADDRESSABLES if kind != BROKER), self._referring)

    @property
    def kind(self) -> KindRef:
        return BROKER

    @property
    def related(self) -> Related:
        return self._related

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        """The address is the same from the start: the ingress answers 404 until it has seen the Broker."""
        meta = resource.meta
        delivery = msgspec.convert(resource.spec, BrokerShape).delivery
        status: dict[str, Any] = {"observedGeneration": meta.generation}
        status["address"] = {"name": "http", "url": f"http://{self._ingress_host}/{meta.namespace}/{meta.name}"}
        found = (
            Condition(type="Addressable", status="True"),
            _dead_letter_sink(delivery, meta.namespace, view, status),
        )
        return _outcome(resource, status, found, now)

    def _referring(self, referent: Resource, view: View) -> Iterator[Key]:
        for broker in view.list(BROKER):
            if referent.key in _sinks(msgspec.convert(broker.spec, BrokerShape).delivery, broker.meta.namespace):
                yield broker.key


class TriggerReconciler:
    """A Trigger is ready once its Broker is, its subscriber and dead-letter sink are known, and its dependency is."""

    def __init__(self) -> None:
        self._related: Related = dict.fromkeys(ADDRESSABLES, self._referring)

    @property
    def kind(self) -> KindRef:
        return TRIGGER

    @property
    def related(self) -> Related:
        return self._related

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        """`status.subscriberUri` is what the broker process delivers to; it stays out while it cannot be resolved."""
        spec, namespace = msgspec.convert(resource.spec, TriggerShape), resource.meta.namespace
        status: dict[str, Any] = {"observedGeneration": resource.meta.generation}
        broker = _broker_ready(Key(BROKER, namespace, spec.broker), view)
        found = (
            broker,
            _dependency(resource, view),
            _subscriber(spec.subscriber, namespace, view, status),
            _dead_letter_sink(spec.delivery, namespace, view, status),
            # There is no Subscription behind a Trigger here: the dispatcher takes it up with the Broker.
            msgspec.structs.replace(broker, type="SubscriptionReady"),
        )
        return _outcome(resource, status, found, now)

    def _referring(self, referent: Resource, view: View) -> Iterator[Key]:
        for trigger in view.list(TRIGGER):
            spec, namespace = msgspec.convert(trigger.spec, TriggerShape), trigger.meta.namespace
            keys = {Key(BROKER, namespace, spec.broker), *_sinks(spec.delivery, namespace)}
            keys |= set(_keys(spec.subscriber, namespace))
            if referent.key in keys:
                yield trigger.key


def reconcilers() -> tuple[BrokerReconciler, TriggerReconciler]:
    """One for each kind of this plane. The control loop must know the kinds in `ADDRESSABLES`."""
    return BrokerReconciler(), TriggerReconciler()


def _outcome(resource: Resource, status: dict[str, Any], found: Iterable[Condition], now: float) -> Outcome:
    before = resource.status.get("conditions") or ()
    return Outcome(status={**status, "conditions": merge_conditions(before, summarize("Ready", found), now)})


def _broker_ready(key: Key, view: View) -> Condition:
    broker = view.get(key)
    if broker is None:
        message = (
            f'Broker "{key.name}" does not exist in namespace "{key.namespace}". Create it, or correct spec.broker.'
        )
        return Condition(type="BrokerReady", status="False", reason="BrokerDoesNotExist", message=message)
    ready = is_ready(broker.status, broker.meta.generation)
    if ready == "True":
        return Condition(type="BrokerReady", status="True")
    message = f'Broker "{key.name}" is not ready; see its conditions.'
    return Condition(type="BrokerReady", status=ready, reason="BrokerNotReady", message=message)


def _dependency(resource: Resource, view: View) -> Condition:
    reference = dependency_of(resource)
    if reference is None:
        return Condition(type="DependencyReady", status="True")
    kind = KindRef.parse(reference.api_version, reference.kind)
    found = view.get(Key(kind, reference.namespace or resource.meta.namespace, reference.name))
    if found is None:
        message = f'{reference.kind} "{reference.name}" does not exist.'
        return Condition(type="DependencyReady", status="False", reason="DependencyDoesNotExist", message=message)
    ready = is_ready(found.status, found.meta.generation)
    if ready == "True":
        return Condition(type="DependencyReady", status="True")
    message = f'{reference.kind} "{reference.name}" is not ready; see its conditions.'
    return Condition(type="DependencyReady", status=ready, reason="DependencyNotReady", message=message)


def _subscriber(wanted: Destination | None, namespace: str, view: View, status: dict[str, Any]) -> Condition:
    try:
        if wanted is None:
            raise Unresolved("NoSubscriber", "The Trigger names no subscriber. Set spec.subscriber.")
        status["subscriberUri"] = resolve(wanted, namespace, view.get)
    except Unresolved as error:
        return Condition(type="SubscriberResolved", status="False", reason=error.reason, message=str(error))
    return Condition(type="SubscriberResolved", status="True")


def _dead_letter_sink(delivery: DeliveryShape | None, namespace: str, view: View, status: dict[str, Any]) -> Condition:
    name = "DeadLetterSinkResolved"
    if delivery is None or delivery.dead_letter_sink is None:
        return Condition(type=name, status="True", reason="DeadLetterSinkNotConfigured")
    try:
        status["deadLetterSinkUri"] = resolve(delivery.dead_letter_sink, namespace, view.get)
    except Unresolved as error:
        return Condition(type=name, status="False", reason=error.reason, message=str(error))
    return Condition(type=name, status="True")


def _sinks(delivery: DeliveryShape | None, namespace: str) -> tuple[Key, ...]:
    return _keys(delivery.dead_letter_sink, namespace) if delivery is not None else ()


def _keys(destination: Destination | None, namespace: str) -> tuple[Key, ...]:
    """What a destination refers to: at most one resource."""
    if destination is None or destination.ref is None:
        return ()
    ref = destination.ref
    return (Key(KindRef.parse(ref.api_version or f"{ref.group}/v1", ref.kind), ref.namespace or namespace, ref.name),)
