"""One pod from its binding to its end: carries out what `lifecycle` decides, and tells the API server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.support.kubelet import container, volumes
from tests.support.kubelet.api import AWAY, Api, ApiError
from tests.support.kubelet.environment import ConfigError, References, command, decoded, environment, wanted
from tests.support.kubelet.identity import ROOT, USERS_ALLOWED, identity
from tests.support.kubelet.images import Image, Images
from tests.support.kubelet.lifecycle import Ended, Life, Plan, State, all_containers, backoff_s, plan
from tests.support.kubelet.probes import Verdict, attempt, judge
from tests.support.kubelet.sandbox import DNS_ADDRESS, Network, Sandbox
from tests.support.kubelet.spec import Container, Pod, Probe
from tests.support.kubelet.status import pod_status

__all__ = ["Machine", "PodWorker", "log_path"]

_LOG = logging.getLogger("kubelet.pod")
#: How long what refers to something absent, or an unknown image, waits before it is tried again.
_RETRY_S: Final = 1.0
#: SIGTERM gets this much, though a preStop hook used up the grace period.
_LEAST_GRACE_S: Final = 2.0
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What all pods of a kubelet share. `restart_base_s` is the back-off's first step: Kubernetes has ten seconds."""

    api: Api
    client: aiohttp.ClientSession
    network: Network
    images: Images
    folder: Path
    node_address: str
    restart_base_s: float


def log_path(folder: Path, namespace: str, pod: str, name: str, number: int) -> Path:
    return folder / "logs" / namespace / pod / name / f"{number}.log"


class PodWorker:
    """Owns a pod's processes. `update` gives it the pod as it is now, `gone` says that the API server forgot it."""

    def __init__(self, machine: Machine, pod: Pod) -> None:
        self._machine = machine
        self.pod = pod
        self._states = {one.name: State() for one in all_containers(pod.spec)}
        self._processes: dict[str, container.Process] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sandbox: Sandbox | None = None
        self._began_at = time.time()
        self._changed = asyncio.Event()
        self._gone = False
        self._written: dict[str, Any] | None = None
        # Both outlive a container, so that it starts again while the API server is away.
        self._volumes: dict[str, Path] | None = None
        self._referred: dict[str, References] = {}

    def update(self, pod: Pod) -> None:
        self.pod = pod
        self._changed.set()

    def gone(self) -> None:
        self._gone = True
        self._changed.set()

    async def run(self) -> None:
        """Until the pod is gone. Everything it started has ended then."""
        try:
            self._sandbox = await self._machine.network.create()
            while not self._gone and self.pod.metadata.deletion_timestamp is None:
                self._changed.clear()
                await self._advance()
            await self._end()
        finally:
            await self._clean()

    async def _advance(self) -> None:
        """Start what is to start, write what changed, and wait for the next change."""
        now = time.time()
        next_step = plan(self.pod.spec, self._states, now)
        for name in next_step.start:
            await self._start(next(one for one in all_containers(self.pod.spec) if one.name == name))
        if next_step.start:
            next_step = plan(self.pod.spec, self._states, time.time())
        if next_step.finished:
            await self._stop_all(time.time() + self.pod.spec.termination_grace_period_seconds)
        written = await self._write(next_step)
        wake_at = next_step.wake_at if written else time.time() + _RETRY_S
        try:
            async with asyncio.timeout(None if wake_at is None else max(0.0, wake_at - time.time())):
                await self._changed.wait()
        except TimeoutError:
            return

    # Starting

    async def _start(self, spec: Container) -> None:
        image = self._machine.images.find(spec.image)
        if image is None:
            reason = "ImagePullBackOff" if self._states[spec.name].reason else "ErrImagePull"
            self._hold(spec.name, reason, f'the test knows no image "{spec.image}"')
            return
        try:
            process = await self._launch(spec, image)
        except ConfigError as error:
            self._hold(spec.name, "CreateContainerConfigError", str(error))
            return
        except (ApiError, *AWAY) as error:
            self._hold(spec.name, "ContainerCreating", str(error))
            return
        self._processes[spec.name] = process
        # Without a startup probe a container has started once it runs, without a readiness probe it is ready then.
        started = spec.startup_probe is None
        self._states[spec.name] = replace(
            self._states[spec.name],
            life=Life.RUNNING,
            started_at=time.time(),
            started=started,
            ready=started and spec.readiness_probe is None,
            reason="",
            message="",
            container_id=process.container_id,
            image_id=image.digest,
        )
        self._own(f"{spec.name}/run", self._follow(process))
        if spec.lifecycle.post_start is not None:
            self._own(f"{spec.name}/post-start", self._post_start(process))
        if spec.startup_probe is None:
            self._probe(process)
        else:
            self._judge(process, spec.startup_probe, "startup", self._startup_changed(process), passing=False)

    async def _launch(self, spec: Container, image: Image) -> container.Process:
        assert self._sandbox is not None
        pod, api, folder = self.pod, self._machine.api, self._folder
        facts = {
            "status.podIP": self._sandbox.address,
            "status.podIPs": self._sandbox.address,
            "status.hostIP": self._machine.node_address,
        }
        if self._volumes is None:
            self._volumes = await volumes.provide(api, pod, folder / "volumes", facts)
        hostname = pod.spec.hostname or pod.metadata.name
        who = identity(pod, spec, image) if USERS_ALLOWED else ROOT
        base = (
            {"PATH": _PATH, "HOSTNAME": hostname, "HOME": "/" if who.user else "/root"} | _SERVICE_VARIABLES | image.env
        )
        variables = environment(pod, spec, await self._references(spec), base, facts)
        words = command(spec, variables, image.entrypoint, image.args)
        if not words:
            raise ConfigError(f'no command: the image "{spec.image}" has none, nor has the container')
        number = self._states[spec.name].restarts
        log = log_path(self._machine.folder, pod.metadata.namespace, pod.metadata.name, spec.name, number)
        log.parent.mkdir(parents=True, exist_ok=True)
        return await container.start(
            spec,
            sandbox=self._sandbox,
            folder=folder / "containers" / spec.name,
            log=log,
            number=number,
            hostname=hostname,
            command=words,
            working_dir=spec.working_dir or image.working_dir,
            environment=variables,
            mounts=volumes.mounts(spec, self._volumes),
            files=self._files(hostname),
            identity=who,
        )

    def _files(self, hostname: str) -> dict[str, Path]:
        """The files that make names work in the container."""
        assert self._sandbox is not None
        domain = "svc.cluster.local"
        contents = {
            "resolv.conf": f"nameserver {DNS_ADDRESS}\n"
            f"search {self.pod.metadata.namespace}.{domain} {domain} cluster.local\noptions ndots:5\n",
            "hosts": f"127.0.0.1 localhost\n::1 localhost\n{self._sandbox.address} {hostname}\n",
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (self._folder / name).write_text(content)
        return {f"/etc/{name}": self._folder / name for name in contents}

    async def _references(self, spec: Container) -> References:
        """What the environment refers to, as it is now; as it was at the last start while the API server is away."""
        try:
            self._referred[spec.name] = await self._read(spec)
        except AWAY:
            if spec.name not in self._referred:
                raise
        return self._referred[spec.name]

    async def _read(self, spec: Container) -> References:
        config_maps, secrets = wanted(spec)
        maps = {name: await self._object("configmaps", name) for name in config_maps}
        hidden = {name: await self._object("secrets", name) for name in secrets}
        return References(
            config_maps={name: found.get("data") or {} for name, found in maps.items() if found is not None},
            secrets={name: decoded(found) for name, found in hidden.items() if found is not None},
        )

    async def _object(self, kind: str, name: str) -> dict[str, Any] | None:
        path = f"/api/v1/namespaces/{self.pod.metadata.namespace}/{kind}/{name}"
        try:
            found: dict[str, Any] = await self._machine.api.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            return None
        return found

    def _hold(self, name: str, reason: str, message: str) -> None:
        state = self._states[name]
        self._states[name] = replace(state, reason=reason, message=message, may_start_at=time.time() + _RETRY_S)

    # While it runs

    async def _follow(self, process: container.Process) -> None:
        code = await process.wait()
        name, now = process.spec.name, time.time()
        for kind in ("startup", "startup-limit", "readiness", "liveness", "post-start"):
            task = self._tasks.pop(f"{name}/{kind}", None)
            if task is not None:
                task.cancel()
        state = self._states[name]
        ended = Ended(
            code=code,
            started_at=state.started_at,
            finished_at=now,
            reason=state.reason,
            container_id=state.container_id,
        )
        again = plan(
            self.pod.spec, {**self._states, name: replace(state, life=Life.EXITED, ended=ended, reason="")}, now
        )
        restarts = name in again.start and self.pod.metadata.deletion_timestamp is None
        delay_s = backoff_s(state.restarts, self._machine.restart_base_s)
        self._states[name] = replace(
            state,
            life=Life.EXITED,
            started=False,
            ready=False,
            ended=ended,
            restarts=state.restarts + 1 if restarts else state.restarts,
            may_start_at=now + delay_s if restarts else 0.0,
            reason="CrashLoopBackOff" if restarts and delay_s > 0 else "",
            message=f"back-off {delay_s:g}s restarting failed container={name}" if restarts and delay_s > 0 else "",
        )
        self._processes.pop(name, None)
        self._changed.set()

    def _probe(self, process: container.Process) -> None:
        spec = process.spec
        if spec.readiness_probe is not None:
            self._judge(process, spec.readiness_probe, "readiness", self._readiness_changed(process), passing=False)
        if spec.liveness_probe is not None:
            self._judge(
                process,
                spec.liveness_probe,
                "liveness",
                self._liveness_changed(process, spec.liveness_probe),
                passing=True,
            )

    def _judge(
        self,
        process: container.Process,
        probe: Probe,
        kind: str,
        changed: Callable[[bool], Awaitable[bool]],
        *,
        passing: bool,
    ) -> None:
        task = judge(process, probe, Verdict(passing=passing), changed, self._machine.client)
        self._own(f"{process.spec.name}/{kind}", task)
        if kind == "startup":
            self._own(f"{process.spec.name}/startup-limit", self._startup_limit(process, probe))

    def _startup_changed(self, process: container.Process) -> Callable[[bool], Awaitable[bool]]:
        async def changed(passing: bool) -> bool:
            self._set(process, started=passing, ready=passing and process.spec.readiness_probe is None)
            self._probe(process)
            return False

        return changed

    def _readiness_changed(self, process: container.Process) -> Callable[[bool], Awaitable[bool]]:
        async def changed(passing: bool) -> bool:
            self._set(process, ready=passing)
            return True

        return changed

    def _liveness_changed(self, process: container.Process, probe: Probe) -> Callable[[bool], Awaitable[bool]]:
        grace_s = probe.termination_grace_period_seconds
        if grace_s is None:
            grace_s = self.pod.spec.termination_grace_period_seconds

        async def changed(passing: bool) -> bool:
            if not passing:
                await self._stop(process, time.time() + grace_s)
            return passing

        return changed

    async def _startup_limit(self, process: container.Process, probe: Probe) -> None:
        """A container that has not started after so many probes is restarted."""
        await asyncio.sleep(probe.initial_delay_seconds + probe.period_seconds * probe.failure_threshold)
        if not self._states[process.spec.name].started:
            await self._stop(process, time.time() + self.pod.spec.termination_grace_period_seconds)

    async def _post_start(self, process: container.Process) -> None:
        hook = process.spec.lifecycle.post_start
        if hook is not None and not await attempt(process, hook, 60.0, self._machine.client):
            process.kill()

    def _set(self, process: container.Process, **values: bool) -> None:
        name = process.spec.name
        if self._processes.get(name) is process:
            self._states[name] = replace(self._states[name], **values)  # type: ignore[arg-type]
            self._changed.set()

    # Ending

    async def _end(self) -> None:
        """The pod was deleted: drain, say how it ended, and let the API server forget it."""
        grace_s = self.pod.metadata.deletion_grace_period_seconds
        if grace_s is None or self._gone:
            grace_s = 0
        stopping = asyncio.ensure_future(self._stop_all(time.time() + grace_s))
        while not stopping.done():
            self._changed.clear()
            await self._write(plan(self.pod.spec, self._states, time.time()))
            changed = asyncio.ensure_future(self._changed.wait())
            await asyncio.wait({stopping, changed}, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            if self._gone:
                for process in list(self._processes.values()):
                    process.kill()
        await stopping
        metadata = self.pod.metadata
        while not self._gone:
            try:
                await self._write(plan(self.pod.spec, self._states, time.time()))
                body = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata.uid}}
                await self._machine.api.delete(f"/api/v1/namespaces/{metadata.namespace}/pods/{metadata.name}", body)
                return
            except ApiError as error:
                if error.status in {404, 409}:
                    return
                _LOG.warning("%s: %s", self.pod.key, error)
            except AWAY as error:
                _LOG.info("%s: %s", self.pod.key, error)
            await asyncio.sleep(_RETRY_S)

    async def _stop_all(self, deadline: float) -> None:
        """The pod's own containers at once, then sidecars, the last one first."""
        spec = self.pod.spec
        mains = [self._processes[one.name] for one in spec.containers if one.name in self._processes]
        await asyncio.gather(*(self._stop(process, deadline) for process in mains))
        for init in reversed(spec.init_containers):
            if init.name in self._processes:
                await self._stop(self._processes[init.name], deadline)

    async def _stop(self, process: container.Process, deadline: float) -> None:
        """preStop, SIGTERM, and SIGKILL at the deadline."""
        left_s = deadline - time.time()
        hook = process.spec.lifecycle.pre_stop
        if hook is not None and left_s > 0:
            await attempt(process, hook, left_s, self._machine.client)
        process.terminate()
        following = self._tasks.get(f"{process.spec.name}/run")
        waited = {following} if following is not None else set()
        if waited and left_s > 0:
            await asyncio.wait(waited, timeout=max(deadline - time.time(), _LEAST_GRACE_S))
        process.kill()
        if waited:
            await asyncio.wait(waited)

    async def _clean(self) -> None:
        for process in list(self._processes.values()):
            process.kill()
        tasks = [task for task in self._tasks.values() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._sandbox is not None:
            await self._machine.network.destroy(self._sandbox)

    # Telling

    async def _write(self, next_step: Plan) -> bool:
        """Whether the API server has the status as it is now."""
        pod = self.pod
        status = pod_status(
            pod,
            next_step,
            self._states,
            node_address=self._machine.node_address,
            address=self._sandbox.address if self._sandbox is not None else "",
            started_at=self._began_at,
            now=time.time(),
        )
        if status == self._written or self._gone:
            return True
        path = f"/api/v1/namespaces/{pod.metadata.namespace}/pods/{pod.metadata.name}/status"
        try:
            await self._machine.api.merge(path, {"metadata": {"uid": pod.metadata.uid}, "status": status})
        except ApiError as error:
            if error.status not in {404, 409}:
                _LOG.warning("%s: %s", pod.key, error)
                return False
        except AWAY as error:
            _LOG.info("%s: %s", pod.key, error)
            return False
        self._written = status
        return True

    @property
    def _folder(self) -> Path:
        return self._machine.folder / "pods" / self.pod.metadata.uid

    def _own(self, name: str, work: Any) -> None:
        self._tasks[name] = asyncio.ensure_future(self._guard(name, work))

    async def _guard(self, name: str, work: Awaitable[None]) -> None:
        """A task's boundary: a fault in one is told, and does not end the kubelet."""
        try:
            await work
        except Exception:  # noqa: BLE001 - a task's boundary, which logs
            _LOG.exception("%s: %s", self.pod.key, name)


_SERVICE_VARIABLES: Final = {
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "KUBERNETES_SERVICE_PORT": "443",
    "KUBERNETES_SERVICE_PORT_HTTPS": "443",
    "KUBERNETES_PORT": "tcp://10.96.0.1:443",
}
