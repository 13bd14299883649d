"""``penstock up``: the whole platform on this machine, in the foreground."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
    from penstock.standalone.supervisor import Ports, Supervisor

__all__ = ["up"]


@click.command()
@click.option(
    "--apply",
    "files",
    multiple=True,
    metavar="PATH",
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
    "--drain", "drain_s", type=click.FloatRange(0), default=10.0, show_default=True, help="Seconds to finish."
)
@click.option("--quiet", is_flag=True, help="Do not show events as they happen.")
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
    quiet: bool,
) -> None:
    """Start the platform here; Ctrl-C drains and stops everything.

    A port of 0 takes any free one; `penstock` finds the platform again through its data directory.

    \b
    Examples:
      penstock up
      penstock up --apply examples/pictures/manifests
    """
    began_s = time.monotonic()
    import uvloop  # noqa: PLC0415 - every other command does without the event loop

    from penstock.standalone.supervisor import Ports  # noqa: PLC0415 - as above

    ports = Ports(host=host, gateway=gateway_port, broker=broker_port, api=api_port, admin=admin_port)
    code = uvloop.run(_run(ports, data.resolve(), root.resolve(), drain_s, files, quiet=quiet, began_s=began_s))
    sys.exit(code)


async def _run(
    ports: Ports, data: Path, root: Path, drain_s: float, files: tuple[str, ...], *, quiet: bool, began_s: float
) -> int:
    from penstock.standalone.child import StartFailed  # noqa: PLC0415 - see `up`
    from penstock.standalone.supervisor import Supervisor  # noqa: PLC0415 - see `up`

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    supervisor = Supervisor(data=data, root=root, ports=ports, drain_s=drain_s, on_restart=_say_restart)
    try:
        await supervisor.start()
    except StartFailed as error:
        raise Failure(str(error)) from error
    try:
        places = _publish(supervisor, data)
        _banner(places, data, ready_s=time.monotonic() - began_s)
        code = await _serve(places, files, stop, quiet=quiet)
    finally:
        click.secho("\nDraining ...", dim=True)
        await supervisor.stop()
        (data / "platform.json").unlink(missing_ok=True)
    click.secho("Stopped. Nothing is left running; state is kept in " + str(data), dim=True)
    return code


async def _serve(places: Places, files: tuple[str, ...], stop: asyncio.Event, *, quiet: bool) -> int:
    """Apply what was asked for, then show events until it is time to stop."""
    from penstock.cli.screen import newest_position, show_events  # noqa: PLC0415 - see `up`

    # Taken before anything is applied: what the sources of these manifests emit at once is to be seen as well.
    position = await newest_position(places)
    if files and not await _apply(places, files):
        return FAILED
    showing = None if quiet else asyncio.create_task(show_events(places, position), name="show events")
    await stop.wait()
    if showing is not None:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)
    return 0


async def _apply(places: Places, files: tuple[str, ...]) -> bool:
    """Run ``penstock apply`` in a process of its own, so that this one stays small. False where it fails."""
    named = [argument for file in files for argument in ("-f", file)]
    command = [sys.executable, "-m", "penstock", "apply", "--quiet", "--server", places.api, *named]
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
    return await process.wait() == 0


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


def _say_restart(name: str, code: int) -> None:
    click.secho(f"The {name} process ended with code {code}; restarting it.", fg="yellow", err=True)
