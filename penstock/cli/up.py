"""``penstock up``: the whole platform on this machine, in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from penstock.cli import options, retention
from penstock.cli.failure import FAILED, Failure
from penstock.places import (
    DEFAULT_ADMIN_PORT,
    DEFAULT_API_PORT,
    DEFAULT_BROKER_PORT,
    DEFAULT_DATA,
    DEFAULT_GATEWAY_PORT,
    Places,
)

if TYPE_CHECKING:
    from penstock.standalone.supervisor import Supervisor

__all__ = ["up"]

#: Functions may take ten minutes for a request; nobody waits longer for a platform to stop.
MAX_DRAIN_S: Final = 600.0
#: Where --broker-log redis looks for one, where no other is named.
DEFAULT_REDIS_URL: Final = "redis://127.0.0.1:6379/0"
#: The same of --broker-log kafka.
DEFAULT_KAFKA_SERVERS: Final = "127.0.0.1:9092"


@click.command(short_help="Start the platform here, until Ctrl-C.")
@click.option(
    "--apply",
    "files",
    multiple=True,
    metavar="PATH",
    type=click.Path(exists=True),
    help="Apply these manifests (a file or a folder) once it is up.",
)
@click.option(
    "--data-dir",
    "data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(DEFAULT_DATA),
    show_default=True,
    envvar="PENSTOCK_DATA",
    help="Where all state is kept.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path(),
    help="What relative paths in manifests are relative to.  [default: the working directory]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--gateway-port", type=click.IntRange(0, 65_535), default=DEFAULT_GATEWAY_PORT, show_default=True)
@click.option("--broker-port", type=click.IntRange(0, 65_535), default=DEFAULT_BROKER_PORT, show_default=True)
@click.option("--api-port", type=click.IntRange(0, 65_535), default=DEFAULT_API_PORT, show_default=True)
@click.option("--admin-port", type=click.IntRange(0, 65_535), default=DEFAULT_ADMIN_PORT, show_default=True)
@click.option(
    "--drain",
    "drain_s",
    type=click.FloatRange(0, MAX_DRAIN_S),
    callback=lambda _context, _option, value: options.finite(value, MAX_DRAIN_S),
    default=10.0,
    show_default=True,
    help="Seconds that what is under way may take at the end.",
)
@click.option(
    "--broker-log",
    "kind",
    type=click.Choice(["sqlite", "redis", "kafka"]),
    default="sqlite",
    show_default=True,
    envvar="PENSTOCK_BROKER_LOG",
    help="What keeps the events of Brokers that ask for no class: a file in the data directory, a Redis or a Kafka.",
)
@click.option(
    "--redis-url",
    envvar="PENSTOCK_REDIS_URL",
    help="The Redis (rediss:// for TLS) of --broker-log redis, and of Brokers that ask for the class Redis whatever "
    "--broker-log says.  [default: redis://127.0.0.1:6379/0 with --broker-log redis, else none]",
)
@click.option(
    "--kafka-servers",
    envvar="PENSTOCK_KAFKA_BOOTSTRAP_SERVERS",
    callback=options.kafka_servers,
    metavar="HOST:PORT,...",
    help="The Kafka (sasl_ssl://user:password@host:port for a login and TLS) of --broker-log kafka, and of Brokers "
    "that ask for the class Kafka whatever --broker-log says.  "
    "[default: 127.0.0.1:9092 with --broker-log kafka, else none]",
)
@retention.options
@click.option("-q", "--quiet", is_flag=True, help="Do not show events as they happen.")
def up(
    files: tuple[str, ...],
    data: Path,
    root: Path,
    host: str,
    gateway_port: int,
    broker_port: int,
    api_port: int,
    admin_port: int,
    drain_s: float,
    kind: str,
    redis_url: str | None,
    kafka_servers: str | None,
    quiet: bool,
    **told: Any,
) -> None:
    """Start the platform here; Ctrl-C drains and stops everything, a second Ctrl-C does not wait for the drain.

    A port of 0 takes any free one; `penstock` finds the platform again through its data directory.

    \b
    Examples:
      penstock up
      penstock up --apply examples/pictures/manifests
      penstock up --broker-log redis --redis-url redis://127.0.0.1:6379/0
      penstock up --broker-log kafka --kafka-servers 127.0.0.1:9092
      penstock up --data-dir /tmp/other --gateway-port 0 --broker-port 0 --api-port 0 --admin-port 0
    """
    began_s = time.monotonic()
    import uvloop  # noqa: PLC0415 - every other command does without the event loop

    from penstock.standalone.settings import BrokerLog  # noqa: PLC0415 - as above
    from penstock.standalone.supervisor import Ports, Supervisor  # noqa: PLC0415 - as above

    kept = retention.taken(told)
    ports = Ports(host=host, gateway=gateway_port, broker=broker_port, api=api_port, admin=admin_port)
    supervisor = Supervisor(
        data=data.resolve(),
        root=root.resolve(),
        ports=ports,
        drain_s=drain_s,
        broker_log=BrokerLog(
            kind=kind,
            redis_url=redis_url or (DEFAULT_REDIS_URL if kind == "redis" else ""),
            kafka_servers=kafka_servers or (DEFAULT_KAFKA_SERVERS if kind == "kafka" else ""),
            retention=kept,
        ),
        on_trouble=_say_trouble,
    )
    code = uvloop.run(_run(supervisor, data.resolve(), files, quiet=quiet, began_s=began_s))
    sys.exit(code)


async def _run(supervisor: Supervisor, data: Path, files: tuple[str, ...], *, quiet: bool, began_s: float) -> int:
    from penstock.standalone.child import StartFailed  # noqa: PLC0415 - see `up`

    stop = _stop_on_signals(supervisor)
    try:
        if not await _unless(stop, supervisor.start()):
            _say("Stopped before it was up. Nothing is left running.")
            return FAILED
    except StartFailed as error:
        raise Failure(str(error)) from error
    try:
        places = _publish(supervisor, data)
        _banner(places, data, ready_s=time.monotonic() - began_s)
        code = await _serve(places, files, stop, quiet=quiet)
    finally:
        _say("\nDraining ... (Ctrl-C again does not wait)")
        await supervisor.stop()
        (data / "platform.json").unlink(missing_ok=True)
    _say(f"Stopped. Nothing is left running; state is kept in {data}")
    return code


def _stop_on_signals(supervisor: Supervisor) -> asyncio.Event:
    """An event that Ctrl-C, SIGTERM and the end of the terminal set; each further one forces the stop."""
    stop = asyncio.Event()

    def ask() -> None:
        if stop.is_set():
            supervisor.force()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, ask)
    return stop


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Whether `work` was done before it was time to stop; it is cancelled otherwise. Raises what it raises."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    done = working.done()
    for task in (working, stopping):
        task.cancel()
    await asyncio.gather(working, stopping, return_exceptions=True)
    if done:
        working.result()
    return done


async def _serve(places: Places, files: tuple[str, ...], stop: asyncio.Event, *, quiet: bool) -> int:
    """Apply what was asked for, then show events until it is time to stop."""
    from penstock.cli.screen import newest_position, show_events  # noqa: PLC0415 - see `up`

    # Taken before anything is applied: what the sources of these manifests emit at once is to be seen as well.
    position = await newest_position(places)
    if files and not await _apply(places, files, stop):
        return FAILED
    showing = None if quiet else asyncio.create_task(show_events(places, position), name="show events")
    await stop.wait()
    if showing is not None:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)
    return 0


async def _apply(places: Places, files: tuple[str, ...], stop: asyncio.Event) -> bool:
    """Run ``penstock apply`` in a process of its own, so that this one stays small. False where it fails."""
    named = [argument for file in files for argument in ("-f", file)]
    command = [sys.executable, "-m", "penstock", "apply", "--quiet", "--server", places.api, *named]
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, start_new_session=True)
    if await _unless(stop, process.wait()):
        return process.returncode == 0
    process.terminate()
    await process.wait()
    return True


def _publish(supervisor: Supervisor, data: Path) -> Places:
    """Write down where everything is, for the other commands and for kubectl."""
    from penstock.standalone.kubeconfig import write_kubeconfig  # noqa: PLC0415 - see `up`

    urls = {name: f"http://{host}:{port}" for name, (host, port) in supervisor.addresses.items()}
    places = Places(**urls, pid=os.getpid())
    write_kubeconfig(data, places.api)
    places.write(data)
    return places


def _banner(places: Places, data: Path, *, ready_s: float) -> None:
    port = places.gateway.rpartition(":")[2]
    kubeconfig = _shown(data / "kubeconfig")
    click.secho("Penstock", bold=True, fg="cyan", nl=False)
    click.echo(f" is up after {ready_s:.2f} s\n")
    for title, where, what in (
        ("gateway", places.gateway, f"functions: http://<service>.<namespace>.localhost:{port}"),
        ("broker", places.broker, "publish CloudEvents: POST /<namespace>/<broker>"),
        ("api", places.api, f"kubectl: export KUBECONFIG={kubeconfig}"),
        ("metrics", f"{places.admin}/metrics", f"also {places.broker}/metrics and {places.api}/metrics"),
    ):
        click.echo(f"  {title:<9}{click.style(where, fg='green'):<30}  {what}")
    click.echo("\n  Try, in another terminal:")
    command = _own_command()
    for tried in (
        f'{command} send --type hello --data \'{{"to": "you"}}\'',
        f"{command} events --follow",
        f"kubectl --kubeconfig {kubeconfig} get brokers,triggers,ksvc",
    ):
        click.secho(f"    {tried}", bold=True)
    click.echo()


def _own_command() -> str:
    """How to call this command here: by its name where the shell finds it, else by its path."""
    own = Path(sys.argv[0])
    found = shutil.which("penstock")
    if found is not None and Path(found).resolve() == own.resolve():
        return "penstock"
    return _shown(own.absolute()) if own.name == "penstock" else f"{_shown(Path(sys.executable))} -m penstock"


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _say_trouble(said: str) -> None:
    with contextlib.suppress(OSError):
        click.secho(said, fg="yellow", err=True)


def _say(text: str) -> None:
    """Print by the way: a terminal or a pipe that is gone does not keep the platform from stopping in order."""
    with contextlib.suppress(OSError):
        click.secho(text, dim=True)
