"""A control pod's process: one of several that leads. The leader reconciles, scales, and answers; the others wait.

What the leader does begins and ends with its Lease, all of it, so that no pod that waits follows old state or makes
decisions that the leader's contradict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from broker.app import create_router as broker_router
from broker.reconcile import reconcilers as broker_reconcilers
from broker.resending.app import create_router as resending_router
from broker.resending.forward import Forward
from core.clock import SystemClock
from core.control.events import EventRecorder
from core.control.kubernetes.store import KubernetesStore
from core.control.leader import Election
from core.control.loop import ControlLoop
from core.control.reconcile import Reconciler
from core.net.client import Client
from core.net.names import Names
from core.resources import Key
from core.resources.builtin import LEASE
from penstock.apiserver.app import create_own_app
from penstock.apiserver.listener import serving
from penstock.apiserver.webhook import create_webhook, serving_webhook
from penstock.cluster.eventlog import REMEDIES, classes, make_readers
from penstock.cluster.leading import LeaderLabel
from penstock.cluster.names import KIND as SERVICE_KIND
from penstock.cluster.names import RouteNames
from penstock.cluster.process import Frame
from penstock.cluster.settings import Settings
from penstock.kinds import registry
from penstock.process import running
from serving.app import create_router as serving_router
from serving.autoscaler import FOLLOWED as AUTOSCALER_FOLLOWS
from serving.autoscaler import Autoscaler
from serving.instances.kubernetes.client import ClusterPodLogs
from serving.instances.kubernetes.logs import PodLogs
from serving.instances.kubernetes.pods import FOLLOWED as PODS_FOLLOW
from serving.instances.kubernetes.pods import KINDS as POD_KINDS
from serving.instances.kubernetes.pods import PodInstances
from serving.instances.spec import instance_spec
from serving.reconcile import reconcilers as serving_reconcilers
from serving.scaling import ScalingSettings
from sources.reconcile import reconcilers as source_reconcilers

__all__ = ["LEASE_NAME", "compose", "reconcilers_of"]

#: The Lease in the release's namespace that one control pod holds.
LEASE_NAME: Final = "penstock-control"
#: Requests are answered in milliseconds; what takes longer is a stream, and its client comes again.
API_DRAIN_S: Final = 1.0


async def compose(frame: Frame) -> Callable[[], str]:
    """A candidate for the Lease. Ready at once: a pod that waits in good order is what a cluster should count on."""
    settings, clock = frame.settings, SystemClock()
    namespace = settings.release.namespace
    store = await frame.store((*registry(), *POD_KINDS, SERVICE_KIND))
    pod_logs = ClusterPodLogs(await frame.api())
    label = LeaderLabel(store, namespace, settings.pod)
    if settings.webhook_certificates is not None:
        app = create_webhook(registry())
        sock = frame.listen(settings.webhook_port)
        await frame.stack.enter_async_context(
            serving_webhook(app, sock, settings.webhook_certificates, drain_s=API_DRAIN_S)
        )

    async def lead() -> None:
        label.set(True)
        try:
            await _lead(frame, store, pod_logs)
        finally:
            label.set(False)

    election = Election(store, Key(LEASE, namespace, LEASE_NAME), settings.pod, clock, metrics=frame.metrics)
    await frame.stack.enter_async_context(running(label=label.run(), elect=election.run(lead)))
    return str


async def _lead(frame: Frame, store: KubernetesStore, pod_logs: PodLogs) -> None:
    """All the work, until cancelled."""
    settings, clock, metrics = frame.settings, SystemClock(), frame.metrics
    recorder = EventRecorder(store, clock, "penstock-control", metrics=metrics)
    loop = ControlLoop(
        store,
        reconcilers_of(settings),
        clock,
        also_follow=AUTOSCALER_FOLLOWS | PODS_FOLLOW,
        on_status=recorder.status_changed,
        metrics=metrics,
    )
    instances = PodInstances(store=store, follower=loop.follower, logs=pod_logs)
    autoscaler = Autoscaler(
        store=store,
        follower=loop.follower,
        instances=instances,
        # The pods' own node fills in what variables and volumes refer to.
        describe=instance_spec,
        clock=clock,
        settings=ScalingSettings(),
        metrics=metrics,
        gateways_in=settings.release.namespace,
    )
    readers, client = make_readers(settings.event_log), Client()
    forward = Forward(client, Names(), settings.release.ingress_url)
    app = create_own_app(
        (
            broker_router(readers=readers, view=loop.follower),
            resending_router(readers=readers, view=loop.follower, forward=forward),
            serving_router(autoscaler=autoscaler, instances=instances),
        )
    )
    try:
        async with serving(app, frame.listen(settings.port), drain_s=API_DRAIN_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(loop.run(), name="reconcile")
            tasks.create_task(instances.run(), name="instances")
            tasks.create_task(autoscaler.run(), name="scale")
            tasks.create_task(recorder.run(), name="record")
    finally:
        await client.close()


def reconcilers_of(settings: Settings) -> tuple[Reconciler, ...]:
    """Those of all planes, and the one that gives Routes their names in the cluster."""
    release = settings.release
    return (
        *broker_reconcilers(
            ingress_url=release.ingress_url, classes=frozenset(classes(settings.event_log)), remedies=REMEDIES
        ),
        *source_reconcilers(),
        *serving_reconcilers(url_suffix=settings.url_suffix),
        RouteNames(gateway=release.host(release.gateway)),
    )
