"""Configuration -> one Revision per generation; its status names the latest created and the latest ready one.

Behaviour: knative/serving `pkg/reconciler/configuration` and `configuration_lifecycle.go`. The latest ready Revision
moves only forward, and only to one that is ready, so that a rollout that fails leaves the old one serving. Revisions
that nothing leads to any more are deleted as `pkg/reconciler/gc` deletes them, so that their number stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from core.clock import parse_rfc3339, rfc3339
from core.control.reconcile import Action, Apply, Delete, Outcome, View
from core.resources import Condition, Key, KindRef, ObjectMeta, Resource, is_ready, owner_reference
from serving.reconcile.route import targets_of
from serving.reconcile.status import condition_of, owner_keys, status_of, unknown
from serving.resources import (
    CONFIGURATION,
    LABEL_CONFIGURATION,
    LABEL_CONFIGURATION_GENERATION,
    LABEL_CONFIGURATION_UID,
    LABEL_SERVICE,
    LABEL_SERVICE_UID,
    REVISION,
    ROUTE,
    child_name,
)

__all__ = ["ConfigurationReconciler", "conflicting_revision"]

#: Knative's `config-gc`: this many Revisions without traffic are kept (min-non-active-revisions), and so are those that
#: are younger than two days (retain-since-create-time).
KEPT_REVISIONS: Final = 20
KEPT_FOR_S: Final = 48 * 3600.0

#: On a Revision, keeps it for good.
_NO_GC: Final = "serving.knative.dev/no-gc"

_FAILED: Final = "RevisionFailed"


class ConfigurationReconciler:
    """Makes a Revision of each generation, and follows which of them are ready."""

    kind = CONFIGURATION

    @property
    def related(self) -> Mapping[KindRef, Callable[[Resource, View], Iterable[Key]]]:
        return {
            REVISION: lambda revision, view: owner_keys(revision, CONFIGURATION),
            ROUTE: lambda route, view: [
                Key(CONFIGURATION, route.meta.namespace, name) for name in sorted(targets_of(route)[0])
            ],
        }

    def decide(self, resource: Resource, view: View, now: float) -> Outcome:
        if resource.meta.deletion_timestamp:
            return Outcome()
        conflict = conflicting_revision(resource, view)
        if conflict is not None:
            message = f'Revision creation failed: a Revision "{conflict.meta.name}" exists that is not this one.'
            failed = Condition(type="Ready", status="False", reason=_FAILED, message=message)
            return Outcome(status=_status(resource, failed, now))
        actions: tuple[Action, ...] = ()
        created = _current(resource, view)
        if created is None:
            created = _revision(resource)
            actions = (Apply(created),)
        latest_ready = _latest_ready(resource, view)
        ready = _ready(resource, created, latest_ready)
        status = _status(resource, ready, now, created=created.meta.name, latest=latest_ready)
        return Outcome(status=status, actions=(*actions, *_collect(resource, view, status, now)))


def conflicting_revision(configuration: Resource, view: View) -> Resource | None:
    """A Revision that has the name of the Configuration's next one and is not it: another's, or one of a template that
    changed while its name did not."""
    held = view.get(Key(REVISION, configuration.meta.namespace, _name(configuration)))
    if held is None:
        return None
    if not any(owner.uid == configuration.meta.uid for owner in held.meta.owner_references):
        return held
    template = configuration.spec["template"]
    same_generation = _generation(held) == configuration.meta.generation
    return None if same_generation or held.spec == template.get("spec") else held


def _name(configuration: Resource) -> str:
    metadata = configuration.spec["template"].get("metadata") or {}
    generated = child_name(configuration.meta.name, f"-{configuration.meta.generation:05d}")
    return str(metadata.get("name") or generated)


def _generation(revision: Resource) -> int:
    text = revision.meta.labels.get(LABEL_CONFIGURATION_GENERATION, "")
    return int(text) if text.isdecimal() else 0


def _current(configuration: Resource, view: View) -> Resource | None:
    """The Revision of the Configuration's generation."""
    named = view.get(Key(REVISION, configuration.meta.namespace, _name(configuration)))
    if named is not None:
        return named
    owned = view.owned(configuration, REVISION)
    return next((one for one in owned if _generation(one) == configuration.meta.generation), None)


def _revision(configuration: Resource) -> Resource:
    template = configuration.spec["template"]
    metadata = template.get("metadata") or {}
    given = configuration.meta.labels
    labels = {
        **(metadata.get("labels") or {}),
        LABEL_CONFIGURATION: configuration.meta.name,
        LABEL_CONFIGURATION_GENERATION: str(configuration.meta.generation),
        LABEL_CONFIGURATION_UID: configuration.meta.uid,
        **{label: given[label] for label in (LABEL_SERVICE, LABEL_SERVICE_UID) if label in given},
    }
    meta = ObjectMeta(
        name=_name(configuration),
        namespace=configuration.meta.namespace,
        labels=labels,
        annotations=dict(metadata.get("annotations") or {}),
        owner_references=(owner_reference(configuration),),
    )
    return Resource(ref=REVISION, meta=meta, body={"spec": template.get("spec") or {}})


def _latest_ready(configuration: Resource, view: View) -> str | None:
    """The newest ready Revision that is not older than the one known as latest ready."""
    known = configuration.status.get("latestReadyRevisionName")
    owned = view.owned(configuration, REVISION)
    oldest = next((_generation(one) for one in owned if one.meta.name == known), 0)
    for revision in sorted(owned, key=_generation, reverse=True):
        if _generation(revision) >= oldest and is_ready(revision.status, revision.meta.generation) == "True":
            return revision.meta.name
    return known


def _collect(configuration: Resource, view: View, status: Mapping[str, Any], now: float) -> list[Delete]:
    """Revisions to delete: without traffic or a name in any Route, old, and more than are kept."""
    named = {status.get("latestCreatedRevisionName"), status.get("latestReadyRevisionName")}
    for route in view.list(ROUTE, configuration.meta.namespace):
        named |= targets_of(route)[1]
    unused = [
        revision
        for revision in view.owned(configuration, REVISION)
        if revision.meta.name not in named and _NO_GC not in revision.meta.annotations
    ]
    unused.sort(key=_generation)
    return [
        Delete(revision.key, revision.meta.uid)
        for revision in unused[: max(0, len(unused) - KEPT_REVISIONS)]
        if now - parse_rfc3339(revision.meta.creation_timestamp or rfc3339(now)) > KEPT_FOR_S
    ]


def _ready(configuration: Resource, created: Resource, latest_ready: str | None) -> Condition:
    state = is_ready(created.status, created.meta.generation)
    if state == "False":
        why = condition_of(created, "Ready")
        message = f'Revision "{created.meta.name}" failed: {why.message if why else ""}'
        return Condition(type="Ready", status="False", reason=_FAILED, message=message)
    if latest_ready != created.meta.name:
        return unknown("Ready")
    held = condition_of(configuration, "Ready")
    return held if state == "Unknown" and held is not None else Condition(type="Ready", status="True")


def _status(
    configuration: Resource, ready: Condition, now: float, *, created: str | None = None, latest: str | None = None
) -> dict[str, Any]:
    before = configuration.status
    return status_of(
        configuration,
        (ready,),
        now,
        latestCreatedRevisionName=created or before.get("latestCreatedRevisionName"),
        latestReadyRevisionName=latest or before.get("latestReadyRevisionName"),
    )
