"""The control process: API server, reconcilers, garbage collection, autoscaler, instances, and sources."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from broker.app import create_router as broker_router
from broker.reconcile import reconcilers as broker_reconcilers
from broker.resending.app import create_router as resending_router
from broker.resending.forward import Forward
from core.clock import SystemClock
from core.control.events import EventRecorder, EventSweeper
from core.control.gc import GarbageCollector
from core.control.loop import ControlLoop
from core.control.reconcile import Reconciler
from core.control.sqlite import SqliteStore
from core.net.client import Client
from core.net.names import Names
from core.resources.builtin import EVENT
from core.telemetry import Metrics
from penstock.apiserver.app import create_app
from penstock.apiserver.listener import serving
from penstock.kinds import registry
from penstock.process import running
from penstock.standalone.eventlog import REMEDIES, classes, make_readers
from penstock.standalone.process import Ending, run_process
from penstock.standalone.settings import Settings, functions_environment
from serving.app import create_router as serving_router
from serving.autoscaler import Autoscaler
from serving.instances.local import LocalProcesses
from serving.instances.spec import instance_spec
from serving.reconcile import reconcilers as serving_reconcilers
from serving.scaling import ScalingSettings
from sources.checkpoints import SqliteCheckpoints
from sources.factories import FACTORIES
from sources.harness import SourceRunner
from sources.reconcile import reconcilers as source_reconcilers

__all__ = ["compose"]

#: Requests to the API are answered in milliseconds; what takes longer is a stream, and its client comes again.
API_DRAIN_S: Final = 1.0


@asynccontextmanager
async def compose(settings: Settings, ending: Ending) -> AsyncIterator[None]:
    """Everything of the control side, serving; on leaving, drained and closed in the reverse order of starting."""
    clock, metrics, kinds = SystemClock(), Metrics(), registry()
    data, root = Path(settings.data), Path(settings.root)
    async with AsyncExitStack() as stack:
        store = SqliteStore(data / "store.db", clock=clock)
        stack.callback(store.close)
        client = Client()
        stack.push_async_callback(client.close)
        instances = LocalProcesses(
            directory=data / "instances", root=root, environment=functions_environment(os.environ)
        )
        await instances.start()
        stack.push_async_callback(_close, instances, ending)
        recorder = EventRecorder(store, clock, "penstock-control", metrics=metrics)
        loop = ControlLoop(
            store,
            _reconcilers(settings),
            clock,
            also_follow=(kind.ref for kind in kinds if kind.ref != EVENT),
            on_status=recorder.status_changed,
            metrics=metrics,
        )
        collector = GarbageCollector(store, loop.follower, metrics=metrics)
        autoscaler = Autoscaler(
            store=store,
            follower=loop.follower,
            instances=instances,
            describe=lambda revision: instance_spec(revision, loop.follower.get),
            clock=clock,
            settings=ScalingSettings(),
            metrics=metrics,
        )
        # On leaving, gateways are told before the instances stop.
        stack.push_async_callback(autoscaler.withdraw)
        names = Names(gateway=settings.gateway.address, broker=settings.broker.address)
        checkpoints = SqliteCheckpoints(data / "sources" / "checkpoints.db")
        stack.push_async_callback(checkpoints.close)
        sources = SourceRunner(
            store=store,
            factories=FACTORIES,
            requester=client,
            names=names,
            checkpoints=checkpoints,
            clock=clock,
            metrics=metrics,
            root=root,
        )
        readers = make_readers(settings)
        routers = (
            broker_router(readers=readers, view=loop.follower),
            resending_router(readers=readers, view=loop.follower, forward=Forward(client, names)),
            serving_router(autoscaler=autoscaler, instances=instances),
        )
        app = create_app(store=store, registry=kinds, clock=clock, metrics=metrics, extra_routers=routers)
        await stack.enter_async_context(serving(app, settings.api.socket(), drain_s=API_DRAIN_S))
        await stack.enter_async_context(
            running(
                reconcile=loop.run(),
                collect=collector.run(),
                scale=autoscaler.run(),
                emit=sources.run(),
                record=recorder.run(),
                sweep=EventSweeper(store, clock).run(),
            )
        )
        yield


async def _close(instances: LocalProcesses, ending: Ending) -> None:
    """Drain and stop all instances; where that is broken off, kill them: nobody would end them later."""
    try:
        await instances.close(within_s=ending.drain_s)
    except asyncio.CancelledError:
        await instances.close(within_s=0)
        raise


def _reconcilers(settings: Settings) -> tuple[Reconciler, ...]:
    """Those of all planes."""
    return (
        *broker_reconcilers(classes=frozenset(classes(settings.broker_log)), remedies=REMEDIES),
        *source_reconcilers(),
        *serving_reconcilers(url_suffix=settings.url_suffix),
    )


if __name__ == "__main__":
    run_process(compose)
