"""The Instances port: say how many instances of a Revision there are to be, learn which are ready and where, stop one,
read its log.

Every adapter (local processes, pods, the in-memory fake) passes `tests/conformance/instances.py`. An instance is to a
Revision what a pod is in Kubernetes: it keeps its name while its process is restarted.

How many there are to be is a level, not an order for so many more: where instances are pods, others make them some
time after they were asked for. Saying the same number again changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, Final, Literal, Protocol

import msgspec

from core.errors import FieldError, InvalidInput
from core.net.types import Address
from core.resources import OwnerReference

__all__ = [
    "FOLLOWS",
    "CannotRun",
    "Instance",
    "InstanceSpec",
    "Instances",
    "Listener",
    "LogLine",
    "Phase",
    "PodTemplate",
    "Readiness",
]

#: "waiting" is the back-off before a restart; "gone" is told once and is the last that is heard of an instance.
Phase = Literal["starting", "ready", "waiting", "draining", "gone"]

#: The lifecycle: which phases may follow which.
FOLLOWS: Final[dict[Phase, frozenset[Phase]]] = {
    "starting": frozenset({"ready", "waiting", "draining", "gone"}),
    "ready": frozenset({"waiting", "draining", "gone"}),
    "waiting": frozenset({"starting", "draining", "gone"}),
    "draining": frozenset({"gone"}),
    "gone": frozenset(),
}


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """When an instance counts as ready: it accepts a connection, or answers `path` with a status from 200 to 399, or
    `command` exits with 0. Times in seconds."""

    kind: Literal["tcp", "http", "exec"] = "tcp"
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()
    initial_delay_s: float = 0.0
    timeout_s: float = 1.0
    successes: int = 1


class PodTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """The Revision's pod as it is written, for adapters that make pods: its labels and annotations, its whole pod
    specification, and the reference by which what is made for it is collected with it."""

    owner: OwnerReference
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    spec: dict[str, Any] = {}


class InstanceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, the same for all instances of a Revision. Times in seconds, sizes in bytes.

    `environment` holds the container's own variables, their sources resolved; it is empty where a cluster resolves
    them. `source` and `handler` are the `penstock.dev/` annotations ("" where absent). `mounts` are the container's
    volume mounts, `init_containers` the names of what runs before it. `port` is the container's declared port, 0 for
    the default. `template` is all of it as written.
    """

    namespace: str
    revision: str
    service: str
    configuration: str
    image: str
    source: str = ""
    handler: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    environment: dict[str, str] = {}
    mounts: tuple[str, ...] = ()
    init_containers: tuple[str, ...] = ()
    port: int = 0
    readiness: Readiness = Readiness()
    memory_limit: int | None = None
    start_timeout_s: float = 600.0
    drain_timeout_s: float = 300.0
    template: PodTemplate | None = None


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One instance as it is now. `address` is known from "ready" on. `reason` and `message` say why it waits, or why it
    is gone where nobody asked for that: a CamelCase word and a sentence, with the last lines of the log where the
    process ended by itself."""

    name: str
    namespace: str
    revision: str
    phase: Phase
    address: Address | None = None
    restarts: int = 0
    reason: str = ""
    message: str = ""


class LogLine(msgspec.Struct, frozen=True):
    """One line that an instance wrote, without its line end."""

    instance: str
    text: str


#: Told of every change, on the event loop; must not block and must not raise.
Listener = Callable[[Instance], None]


class CannotRun(InvalidInput):
    """This specification cannot be run here, whatever the number. `reason` is the CamelCase word for a condition."""

    def __init__(self, reason: str, message: str, *, path: str = "", value: object = None) -> None:
        self.reason = reason
        super().__init__(message, [FieldError(path=path, rule=message, value=value)] if path else ())


class Instances(Protocol):
    """Where functions run."""

    def watch(self, listener: Listener) -> None:
        """Tell `listener` every instance that there is, now, and from then on every change of any."""
        ...

    async def scale(self, spec: InstanceSpec, count: int) -> None:
        """There are to be `count` instances of the Revision, not counting those that drain or that `stop` was called
        for: what is missing is begun (as far as a stated limit of the adapter allows), and what was asked for and has
        not appeared yet is taken back. Those that are there stay, also where they are more than `count`.

        Returns at once; `watch` tells which instances appear and how they fare. An instance whose process ends by
        itself is started again, after a growing pause. With a count of 0 this is only a check.

        Raises CannotRun; Unavailable or Conflict where the adapter's own store cannot be written just now.
        """
        ...

    async def stop(self, namespace: str, name: str) -> None:
        """Ask an instance to finish what it is doing, and end it when it has, or after its drain timeout. No other
        takes its place. Returns when it is gone; one that does not exist is gone already. Route nothing to it before
        calling this. Never raises: what cannot be written just now is tried again."""
        ...

    def log(self, namespace: str, revision: str, *, tail: int | None, follow: bool) -> AsyncGenerator[LogLine]:
        """What the Revision's instances wrote: the last `tail` lines of each (None for all that is kept), those that
        are gone included as far as the place keeps their logs; with `follow`, then every line to come, without end."""
        ...
