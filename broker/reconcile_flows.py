"""The reconcilers of Sequence and Parallel: they keep the channels and Subscriptions that a flow is made of.

Sources: condition types and reasons of knative/eventing `pkg/apis/flows/v1/*_lifecycle.go`; `pkg/reconciler/sequence`
and `/parallel`. Conditions of event policies, which do not exist here, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from broker.conditions import conditions_of, owners_of, ready_of
from broker.flows import PARALLEL, SEQUENCE, Plan, plan_parallel, plan_sequence, with_defaults
from broker.messaging import CHANNELS, SUBSCRIPTION, make_channel
from core.control.lifecycle import same_json
from core.control.reconcile import Action, Apply, Delete, Outcome, View
from core.resources import Condition, Key, KindRef, Resource, merge_conditions, summarize

__all__ = ["ParallelReconciler", "SequenceReconciler"]

Related = Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]

_NO_READY: Final = {"type": "Ready", "status": "Unknown", "reason": "NoReady"}


class SequenceReconciler:
    """A channel and a Subscription for each step."""

    kind = SEQUENCE

    @property
    def related(self) -> Related:
        return _related(SEQUENCE)

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        resource = with_defaults(resource)
        plan = plan_sequence(resource)
        parts = _Parts(resource, plan, view)
        status: dict[str, Any] = {
            "observedGeneration": resource.meta.generation,
            "channelStatuses": [parts.channel(name, _ready_entry) for name in plan.channels],
            "subscriptionStatuses": [parts.subscription(each) for each in plan.subscriptions],
        }
        conditions = _conditions(status, parts, "Unknown")
        return _outcome(resource, status, conditions, parts.actions(), now)


class ParallelReconciler:
    """A channel in front, and for each branch a Subscription that filters, a channel, and one that delivers."""

    kind = PARALLEL

    @property
    def related(self) -> Related:
        return _related(PARALLEL)

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        resource = with_defaults(resource)
        plan = plan_parallel(resource)
        parts = _Parts(resource, plan, view)
        first, *others = (parts.channel(name, _addressed_entry) for name in plan.channels)
        told = [parts.subscription(each) for each in plan.subscriptions]
        status: dict[str, Any] = {
            "observedGeneration": resource.meta.generation,
            "ingressChannelStatus": first,
            "branchStatuses": [
                {
                    "filterSubscriptionStatus": asked,
                    "filterChannelStatus": channel,
                    "subscriberSubscriptionStatus": sent,
                }
                for asked, channel, sent in zip(told[: len(others)], others, told[len(others) :], strict=True)
            ],
        }
        conditions = _conditions(status, parts, "False")
        return _outcome(resource, status, conditions, parts.actions(), now)


class _Parts:
    """What a flow is to be made of, held against what there is."""

    def __init__(self, flow: Resource, plan: Plan, view: View) -> None:
        self._flow = flow
        self._plan = plan
        self._view = view
        template = flow.spec["channelTemplate"]
        self._template: Mapping[str, Any] = template.get("spec") or {}
        self.channel_kind = KindRef.parse(template["apiVersion"], template["kind"])
        #: By name; a part that is not there is None.
        self.channels = {name: view.get(self._key(self.channel_kind, name)) for name in plan.channels}
        self.subscriptions = {
            each.meta.name: view.get(self._key(SUBSCRIPTION, each.meta.name)) for each in plan.subscriptions
        }

    @property
    def known(self) -> bool:
        """Whether there are channels of the kind that is asked for."""
        return self.channel_kind in CHANNELS

    def strangers(self) -> Iterator[Resource]:
        """Subscriptions that have the name of one of its own, and are somebody else's."""
        return (held for held in self.subscriptions.values() if held is not None and not self._owns(held))

    def channel(self, name: str, entry: Callable[[Resource | None], Mapping[str, Any]]) -> dict[str, Any]:
        """A channel in the status."""
        return {"channel": self._reference(self.channel_kind, name), "ready": entry(self.channels[name])}

    def subscription(self, wanted: Resource) -> dict[str, Any]:
        """A Subscription in the status."""
        name = wanted.meta.name
        return {"subscription": self._reference(SUBSCRIPTION, name), "ready": _ready_entry(self.subscriptions[name])}

    def actions(self) -> Iterator[Action]:
        if self._flow.meta.deletion_timestamp is not None or not self.known:
            return
        for name, held in self.channels.items():
            if held is None:
                yield Apply(make_channel(name, self._flow, self.channel_kind, self._template))
        for wanted in self._plan.subscriptions:
            held = self.subscriptions[wanted.meta.name]
            if held is not None and not self._owns(held):
                continue
            if held is not None and not same_json(held.spec.get("channel"), wanted.spec["channel"]):
                yield Delete(held.key, held.meta.uid)  # the channel of a Subscription cannot be changed
            yield Apply(wanted)
        for kind, names in ((SUBSCRIPTION, self.subscriptions), *((kind, self.channels) for kind in CHANNELS)):
            for held in self._view.owned(self._flow, kind):
                if held.meta.name not in names or (kind in CHANNELS and kind != self.channel_kind):
                    yield Delete(held.key, held.meta.uid)

    def _owns(self, part: Resource) -> bool:
        return any(owner.uid == self._flow.meta.uid for owner in part.meta.owner_references)

    def _key(self, kind: KindRef, name: str) -> Key:
        return Key(kind, self._flow.meta.namespace, name)

    def _reference(self, kind: KindRef, name: str) -> dict[str, str]:
        namespace = self._flow.meta.namespace
        return {"apiVersion": kind.api_version, "kind": kind.kind, "name": name, "namespace": namespace}


def _outcome(
    resource: Resource,
    status: dict[str, Any],
    conditions: Sequence[Condition],
    actions: Iterable[Action],
    now: float,
) -> Outcome:
    status["conditions"] = merge_conditions(conditions_of(resource), summarize("Ready", conditions), now)
    return Outcome(status=status, actions=tuple(actions))


def _conditions(status: dict[str, Any], parts: _Parts, not_ready: Any) -> tuple[Condition, ...]:
    """What the parts come to, and the address, which goes into `status`. `not_ready` is the status of what is not: a
    Sequence's is Unknown, a Parallel's False."""
    first = next(iter(parts.channels.values()), None)
    url = (first.status.get("address") or {}).get("url") if first is not None else None
    if url:
        status["address"] = {"url": url}
        addressable = Condition(type="Addressable", status="True")
    else:
        message = "Its first channel has no address yet."
        addressable = Condition(type="Addressable", status=not_ready, reason="emptyAddress", message=message)
    channels, subscriptions = _statuses(status)
    return (
        _whole("ChannelsReady", "ChannelsNotReady", channels, _channel_problem(parts), not_ready),
        _whole("SubscriptionsReady", "SubscriptionsNotReady", subscriptions, _stranger_problem(parts), not_ready),
        addressable,
    )


def _whole(kind: str, reason: str, entries: Iterable[Mapping[str, Any]], problem: str, not_ready: Any) -> Condition:
    """Whether all of these parts are ready."""
    waiting = [entry for entry in entries if entry["ready"].get("status") != "True"]
    if not waiting and not problem:
        return Condition(type=kind, status="True")
    if not problem:
        part = waiting[0].get("channel") or waiting[0]["subscription"]
        problem = f"{len(waiting)} of them are not ready; the first is {part['name']}."
    return Condition(type=kind, status=not_ready, reason=reason, message=problem)


def _statuses(status: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The entries of a status: of channels, and of Subscriptions."""
    if "branchStatuses" not in status:
        return status["channelStatuses"], status["subscriptionStatuses"]
    branches = status["branchStatuses"]
    asking = [branch["filterSubscriptionStatus"] for branch in branches]
    sending = [branch["subscriberSubscriptionStatus"] for branch in branches]
    return [status["ingressChannelStatus"], *(each["filterChannelStatus"] for each in branches)], asking + sending


def _channel_problem(parts: _Parts) -> str:
    if parts.known:
        return ""
    kinds = " and ".join(kind.kind for kind in CHANNELS)
    return f"spec.channelTemplate asks for {parts.channel_kind}; what there is here is {kinds}."


def _stranger_problem(parts: _Parts) -> str:
    stranger = next(parts.strangers(), None)
    return f"{stranger.key} exists and is not its own. Delete it, or rename it." if stranger is not None else ""


def _ready_entry(part: Resource | None) -> Mapping[str, Any]:
    """A part's condition Ready."""
    found = ready_of(part) if part is not None else {}
    if found:
        return found
    return {**_NO_READY, "message": "It does not have the condition Ready yet."}


def _addressed_entry(part: Resource | None) -> Mapping[str, Any]:
    """A channel of a Parallel is ready when it has an address."""
    if part is not None and (part.status.get("address") or {}).get("url"):
        return {"type": "Ready", "status": "True"}
    return {"type": "Ready", "status": "False", "reason": "NotAddressable", "message": "Channel is not addressable"}


def _related(flow: KindRef) -> Related:
    """A flow is looked at again when one of its parts changes, or what has the name of one."""

    def flows(part: Resource, view: View) -> Iterable[Key]:
        yield from owners_of(part, flow)
        name, found, _ = part.meta.name.rpartition(f"-kn-{flow.kind.lower()}")
        if found:
            yield Key(flow, part.meta.namespace, name)

    return dict.fromkeys((*CHANNELS, SUBSCRIPTION), flows)
