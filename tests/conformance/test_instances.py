"""The Instances suite on local processes and on the fake, and what only processes do."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from serving.instances.local import LocalProcesses
from serving.instances.memory import MemoryInstances
from serving.instances.port import CannotRun, InstanceSpec, Readiness
from serving.instances.process import boot_id, identity_of
from tests.conformance.instances import DEADLINE_S, InstancesConformance, Watched

FUNCTION = """
import os, sys, time

def handle(event):
    print(event.get_subject(), flush=True)
    if event.get_type() == "crash":
        print("it was told to", flush=True)
        os._exit(3)
    if event.get_type() == "slow":
        time.sleep(0.5)
        print("finished", flush=True)
"""

PROGRAM = """
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print(os.environ["GREETING"], sys.argv[1:], flush=True)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/healthz" else 500)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Answer).serve_forever()
"""


async def post(address: tuple[str, int], event_type: str, subject: str) -> bytes:
    """Send an event to a function; the first line of its answer, empty where it closed the connection."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        head = f"ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /t\r\nce-type: {event_type}\r\nce-subject: {subject}\r\n"
        writer.write(f"POST / HTTP/1.1\r\nhost: f\r\ncontent-length: 0\r\nconnection: close\r\n{head}\r\n".encode())
        line = await reader.readline()
        await reader.read()
        return line
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


class MemoryHarness:
    refused = ("ImageNotMapped", "example.com/unknown")
    namespace = "default"
    keeps_logs = True

    def __init__(self) -> None:
        self.instances = MemoryInstances(start_s=0.01, drain_s=0.01, restart_s=0.05)

    def spec(self, revision: str = "hello-00001") -> InstanceSpec:
        return InstanceSpec(
            namespace="default",
            revision=revision,
            service="hello",
            configuration="hello",
            image="example.com/hello",
            source="functions/hello",
        )

    def unknown_spec(self) -> InstanceSpec:
        return replace(self.spec(), image="example.com/unknown", source="")

    async def crash(self, name: str) -> None:
        self.instances.crash(name)

    async def write(self, name: str, text: str) -> None:
        await self.instances.write(name, text)


class TestMemoryInstances(InstancesConformance):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[MemoryHarness]:
        harness = MemoryHarness()
        yield harness
        harness.instances.close()


class LocalHarness:
    refused = ("ImageNotMapped", "example.com/unknown")
    namespace = "default"
    keeps_logs = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        function = directory / "hello"
        function.mkdir(exist_ok=True)
        (function / "function.py").write_text(FUNCTION)
        self.instances = self.make()
        self.watched = Watched(self.instances)

    def make(self) -> LocalProcesses:
        environment = {"PATH": os.environ["PATH"]}
        return LocalProcesses(directory=self.directory / "instances", root=self.directory, environment=environment)

    def spec(self, revision: str = "hello-00001") -> InstanceSpec:
        return InstanceSpec(
            namespace="default",
            revision=revision,
            service="hello",
            configuration="hello",
            image="example.com/hello",
            source="hello",
            drain_timeout_s=10,
        )

    def unknown_spec(self) -> InstanceSpec:
        return replace(self.spec(), image="example.com/unknown", source="")

    async def send(self, name: str, event_type: str, subject: str) -> bytes:
        address = self.watched.latest(name).address
        assert address is not None
        return await post(address, event_type, subject)

    async def crash(self, name: str) -> None:
        await self.send(name, "crash", "boom")

    async def write(self, name: str, text: str) -> None:
        assert b" 204 " in await self.send(name, "say", text)


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalHarness]:
    harness = LocalHarness(tmp_path)
    await harness.instances.start()
    yield harness
    await harness.instances.close()


class TestLocalProcesses(InstancesConformance):
    @pytest.fixture
    def harness(self, local: LocalHarness) -> LocalHarness:
        return local


async def made(harness: LocalHarness, spec: InstanceSpec) -> str:
    (name,) = await harness.watched.begun(spec, 1)
    return name


async def log_of(harness: LocalHarness, revision: str = "hello-00001") -> list[str]:
    lines = harness.instances.log("default", revision, tail=None, follow=False)
    return [line.text async for line in lines]


async def test_a_failed_import_is_quoted_as_the_reason(local: LocalHarness) -> None:
    (local.directory / "hello" / "function.py").write_text("import a_module_that_is_missing\n")
    name = await made(local, local.spec())
    await local.watched.until(lambda: local.watched.latest(name).phase == "waiting")
    waiting = local.watched.latest(name)
    assert waiting.reason == "ExitCode1"
    last = waiting.message.splitlines()[-1]
    assert "function cannot be imported: ModuleNotFoundError" in last
    assert "a_module_that_is_missing" in last


async def test_a_running_request_is_finished_before_the_instance_ends(local: LocalHarness) -> None:
    name = await made(local, local.spec())
    await local.watched.ready(name)
    slow = asyncio.create_task(local.send(name, "slow", "begun"))
    lines = local.instances.log("default", "hello-00001", tail=None, follow=True)
    async with asyncio.timeout(DEADLINE_S):
        assert (await anext(lines)).text == "begun"
    await local.instances.stop("default", name)
    assert b" 204 " in await slow
    assert (await log_of(local))[-1] == "finished"


async def test_an_instance_that_ignores_the_request_to_stop_is_killed_after_its_time(local: LocalHarness) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); " + PORT_LISTENER
    (local.directory / "deaf.py").write_text(deaf)
    name = await made(local, replace(local.spec(), source=f"{sys.executable} deaf.py", drain_timeout_s=0.1))
    await local.watched.ready(name)
    await local.instances.stop("default", name)
    assert local.watched.phases(name)[-2:] == ["draining", "gone"]


async def test_closing_does_not_wait_for_long_requests(local: LocalHarness) -> None:
    (local.directory / "deaf.py").write_text("import signal, time; signal.signal(15, signal.SIG_IGN); " + PORT_LISTENER)
    name = await made(local, replace(local.spec(), source=f"{sys.executable} deaf.py", drain_timeout_s=300))
    await local.watched.ready(name)
    await local.instances.close(within_s=0.1)
    assert local.watched.phases(name)[-1] == "gone"


@pytest.mark.parametrize(
    ("changed", "reason", "named"),
    [
        ({"mounts": ("/models",)}, "VolumesNotSupported", "/models"),
        ({"init_containers": ("fetch-models",)}, "InitContainersNotSupported", "fetch-models"),
    ],
    ids=["volumes", "init containers"],
)
async def test_what_only_a_cluster_can_give_is_refused(
    local: LocalHarness, changed: dict[str, tuple[str, ...]], reason: str, named: str
) -> None:
    with pytest.raises(CannotRun, match=named) as refused:
        await local.instances.scale(replace(local.spec(), **changed), 0)
    assert refused.value.reason == reason


async def test_the_machine_has_a_limit_of_instances(tmp_path: Path) -> None:
    harness = LocalHarness(tmp_path)
    limited = LocalProcesses(
        directory=tmp_path / "instances", root=tmp_path, environment={"PATH": os.environ["PATH"]}, max_instances=2
    )
    try:
        watched = Watched(limited)
        await limited.scale(harness.spec(), 3)
        assert len(watched.present) == 2
        await limited.scale(harness.spec(), 3)
        assert len(watched.present) == 2
    finally:
        await limited.close()


async def test_a_memory_limit_makes_allocations_beyond_it_fail(local: LocalHarness) -> None:
    greedy = "def handle(event):\n    print(event.get_subject(), flush=True)\n    return bytearray(1 << 30) and None\n"
    (local.directory / "hello" / "function.py").write_text(greedy)
    name = await made(local, replace(local.spec(), memory_limit=512 * 1024 * 1024))
    await local.watched.ready(name)
    assert b" 500 " in await local.send(name, "say", "too much")
    assert "MemoryError" in (await log_of(local))


PORT_LISTENER = """
import os, socket
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    time.sleep(1)
"""


async def test_a_program_gets_its_variables_and_is_probed(local: LocalHarness) -> None:
    (local.directory / "hello" / "serve.py").write_text(PROGRAM)
    spec = replace(
        local.spec(),
        command=(sys.executable, "serve.py"),
        args=("$(K_SERVICE)", "${GREETING}"),
        environment={"GREETING": "good day"},
        readiness=Readiness(kind="http", path="/healthz", successes=2),
    )
    name = await made(local, spec)
    await local.watched.ready(name)
    assert await log_of(local) == ["good day ['hello', 'good day']"]


async def test_a_probe_that_never_succeeds_ends_at_the_deadline(local: LocalHarness) -> None:
    (local.directory / "hello" / "serve.py").write_text(PROGRAM)
    spec = replace(
        local.spec(),
        command=(sys.executable, "serve.py"),
        environment={"GREETING": "hello"},
        readiness=Readiness(kind="http", path="/broken"),
        start_timeout_s=0.5,
    )
    name = await made(local, spec)
    await local.watched.until(lambda: local.watched.latest(name).phase == "waiting")
    assert local.watched.latest(name).reason == "StartTimeout"


async def test_what_a_program_started_ends_with_it(local: LocalHarness) -> None:
    wrapper = "import subprocess, sys, time\nchild = subprocess.Popen([sys.executable, 'listen.py'])\n"
    wrapper += "print(child.pid, flush=True)\ntime.sleep(60)\n"
    (local.directory / "wrapper.py").write_text(wrapper)
    (local.directory / "listen.py").write_text(
        f"import time, signal\nsignal.signal(15, signal.SIG_IGN)\n{PORT_LISTENER}"
    )
    name = await made(local, replace(local.spec(), source=f"{sys.executable} wrapper.py"))
    await local.watched.ready(name)
    child = int((await log_of(local))[0])
    await local.instances.stop("default", name)
    await ended(child)


CONTROL = """
import asyncio, sys
from pathlib import Path
from serving.instances.local import LocalProcesses
from serving.instances.port import InstanceSpec
import msgspec

async def main():
    directory = Path(sys.argv[1])
    instances = LocalProcesses(directory=directory / "instances", root=directory, environment={})
    await instances.start()
    instances.watch(lambda one: print(one.name, one.phase, one.address and one.address[1], flush=True))
    await instances.scale(msgspec.json.decode(sys.argv[2], type=InstanceSpec), 2)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def killed_control(directory: Path, spec: InstanceSpec) -> dict[str, int]:
    """Start two instances from another process and kill that process; the ports by instance."""
    control = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CONTROL,
        str(directory),
        msgspec.json.encode(spec).decode(),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert control.stdout is not None
    ports: dict[str, int] = {}
    async with asyncio.timeout(DEADLINE_S):
        while len(ports) < 2:
            name, phase, port = (await control.stdout.readline()).decode().split()
            if phase == "ready":
                ports[name] = int(port)
    control.send_signal(signal.SIGKILL)
    await control.wait()
    return ports


async def test_instances_survive_a_crash_of_their_control_process_and_are_adopted(tmp_path: Path) -> None:
    harness = LocalHarness(tmp_path)
    ports = await killed_control(tmp_path, harness.spec())
    name, other = ports
    assert b" 204 " in await post(("127.0.0.1", ports[name]), "say", "nobody watches")
    await harness.instances.start()
    try:
        await harness.watched.ready(name, other)
        assert harness.watched.latest(name).address == ("127.0.0.1", ports[name])
        await harness.write(name, "adopted")
        assert await log_of(harness) == ["nobody watches", "adopted"]
        await harness.crash(other)
        await harness.watched.until(lambda: harness.watched.phases(other).count("ready") == 2)
        assert "waiting" in harness.watched.phases(other)
    finally:
        await harness.instances.close()
    assert {harness.watched.latest(one).phase for one in ports} == {"gone"}


async def test_processes_without_a_record_are_ended(tmp_path: Path) -> None:
    harness = LocalHarness(tmp_path)
    ports = await killed_control(tmp_path, harness.spec())
    for record in (tmp_path / "instances" / "records").iterdir():
        record.unlink()
    await harness.instances.start()
    try:
        assert harness.watched.told == []
        for port in ports.values():
            await closed(port)
    finally:
        await harness.instances.close()


async def ended(pid: int) -> None:
    """Wait until that process has ended; it is not a child of this one."""
    async with asyncio.timeout(DEADLINE_S):
        while identity_of(pid, boot_id()) is not None:  # noqa: ASYNC110 - another process's child offers no event
            await asyncio.sleep(0.01)


async def closed(port: int) -> None:
    """Wait until nothing listens there."""
    async with asyncio.timeout(DEADLINE_S):
        while await is_listening(port):  # noqa: ASYNC110 - a port offers no event
            await asyncio.sleep(0.01)


async def is_listening(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    return True
