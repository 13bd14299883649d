"""A sources pod's process: the one that holds the Lease runs all sources, so that nothing is told twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from core.clock import SystemClock
from core.control.kubernetes.store import KubernetesStore
from core.control.leader import Election
from core.net.client import Client
from core.net.names import Names
from core.resources import Key
from core.resources.builtin import KINDS as BUILTIN_KINDS
from core.resources.builtin import LEASE, WORKLOADS
from penstock.cluster.peers import Peers
from penstock.cluster.process import Frame
from penstock.process import running
from serving.resources import KINDS as SERVING_KINDS
from sources.checkpoints import SqliteCheckpoints
from sources.factories import FACTORIES
from sources.harness import SourceRunner
from sources.kinds import KINDS as SOURCE_KINDS

__all__ = ["LEASE_NAME", "compose"]

#: The Lease in the release's namespace that one sources pod holds.
LEASE_NAME: Final = "penstock-sources"


async def compose(frame: Frame) -> Callable[[], str]:
    """A candidate for the Lease; ready at once, as a control pod is."""
    settings = frame.settings
    store = await frame.store((*BUILTIN_KINDS, *WORKLOADS, *SERVING_KINDS, *SOURCE_KINDS))
    peers = Peers(store, settings.release, routes=True, metrics=frame.metrics)
    client = Client(places=peers.places)
    frame.stack.push_async_callback(client.close)

    async def run() -> None:
        await _run(frame, store, client)

    lease = Key(LEASE, settings.release.namespace, LEASE_NAME)
    election = Election(store, lease, settings.pod, SystemClock(), metrics=frame.metrics)
    await frame.stack.enter_async_context(running(peers=peers.run(), elect=election.run(run)))
    return str


async def _run(frame: Frame, store: KubernetesStore, client: Client) -> None:
    """All sources, until cancelled."""
    folder = frame.settings.data / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = SqliteCheckpoints(folder / "checkpoints.db")
    try:
        runner = SourceRunner(
            store=store,
            factories=FACTORIES,
            requester=client,
            names=Names(),
            checkpoints=checkpoints,
            clock=SystemClock(),
            metrics=frame.metrics,
            # Only absolute paths make sense in a pod: those of its mounted volumes.
            root=Path("/"),
        )
        await runner.run()
    finally:
        await checkpoints.close()
