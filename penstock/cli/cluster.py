"""``penstock cluster <role>``: what the pods of the Helm chart run."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from penstock.cli import options, retention
from penstock.cli.options import finite
from penstock.cluster.settings import (
    DEFAULT_ADMIN_PORT,
    DEFAULT_CONTROL_PORT,
    DEFAULT_PORT,
    DEFAULT_SUFFIX,
    DEFAULT_WEBHOOK_PORT,
    EventLogSettings,
    Release,
    Settings,
)

__all__ = ["cluster"]

F = TypeVar("F")

#: A pod that is asked to end and has not within this time is killed: a day is more than anybody waits.
MAX_DRAIN_S: Final = 86_400.0


@click.group(short_help="Run one role of the platform in a Kubernetes cluster.")
def cluster() -> None:
    """The platform's processes in a Kubernetes cluster, one a pod. The Helm chart charts/penstock runs them; by hand
    they are for looking into what goes on.

    \b
    Examples:
      helm install penstock charts/penstock -n penstock --create-namespace --set redis.install=true
      penstock cluster gateway --kubeconfig ~/.kube/config --notice 0
    """


def _options(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_seconds: Final[Any] = {
    "type": click.FloatRange(0, MAX_DRAIN_S),
    "callback": lambda _context, _option, value: finite(value, MAX_DRAIN_S),
    "show_default": True,
}

_every_role = _options(
    click.option(
        "--pod",
        envvar="PENSTOCK_POD",
        default=socket.gethostname,
        help="The pod's name, which no other running process has.  [default: the host's name]",
    ),
    click.option(
        "-n",
        "--namespace",
        envvar="PENSTOCK_NAMESPACE",
        default="penstock",
        show_default=True,
        help="The namespace that the platform runs in.",
    ),
    click.option(
        "--control-service", default="penstock-control", show_default=True, help="The Service of the control pods."
    ),
    click.option(
        "--gateway-service", default="penstock-gateway", show_default=True, help="The Service of the gateway pods."
    ),
    click.option(
        "--ingress-service",
        default="penstock-broker-ingress",
        show_default=True,
        help="The Service of the broker's ingress pods.",
    ),
    click.option(
        "--host",
        envvar="PENSTOCK_HOST",
        default="0.0.0.0",  # noqa: S104 - a pod has a network of its own
        show_default=True,
        help="The address to listen on.",
    ),
    click.option(
        "--admin-port",
        type=click.IntRange(0, 65_535),
        default=DEFAULT_ADMIN_PORT,
        show_default=True,
        help="Where /healthz, /readyz and /metrics are.",
    ),
    click.option(
        "--notice",
        "notice_s",
        default=5.0,
        help="Seconds that it goes on after SIGTERM, until all clients know that it leaves.",
        **_seconds,
    ),
    click.option(
        "--drain", "drain_s", default=25.0, help="Seconds that what is under way may take after that.", **_seconds
    ),
    click.option(
        "--kubeconfig",
        default="",
        metavar="FILE",
        help="How to reach the cluster.  [default: as the pod's ServiceAccount, else $KUBECONFIG, else ~/.kube/config]",
    ),
    click.option(
        "--log-level",
        type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]),
        default="INFO",
        show_default=True,
        help="The least that is logged.",
    ),
)


def _port(default: int) -> Callable[[F], F]:
    option: Any = click.option(
        "--port", type=click.IntRange(0, 65_535), default=default, show_default=True, help="Where requests come in."
    )
    decorate: Callable[[F], F] = option
    return decorate


_event_log = _options(
    click.option(
        "--broker-log",
        "kind",
        type=click.Choice(["redis", "kafka"]),
        default="redis",
        show_default=True,
        envvar="PENSTOCK_BROKER_LOG",
        help="What keeps the Brokers' events.",
    ),
    click.option(
        "--redis-url",
        default="",
        envvar="PENSTOCK_REDIS_URL",
        metavar="URL",
        help="The Redis (rediss:// for TLS) of --broker-log redis, and of Brokers that ask for the class Redis.",
    ),
    click.option(
        "--kafka-servers",
        default="",
        envvar="PENSTOCK_KAFKA_BOOTSTRAP_SERVERS",
        metavar="HOST:PORT,...",
        callback=options.kafka_servers,
        help="The Kafka (sasl_ssl://user:password@host:port for a login and TLS) of --broker-log kafka, and of Brokers "
        "that ask for the class Kafka.",
    ),
    click.option(
        "--log-name", default="penstock", show_default=True, help="What the keys or topics of the log begin with."
    ),
    *retention.OPTIONS,
)


@cluster.command(short_help="Reconcilers and autoscaler.")
@_event_log
@_port(DEFAULT_CONTROL_PORT)
@click.option(
    "--url-suffix",
    default=DEFAULT_SUFFIX,
    show_default=True,
    help="What follows <service>.<namespace> in a Service's URL.",
)
@click.option(
    "--webhook-certificates",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="FOLDER",
    help="Answer the cluster's admission webhooks, with tls.crt and tls.key of this folder.",
)
@click.option(
    "--webhook-port",
    type=click.IntRange(0, 65_535),
    default=DEFAULT_WEBHOOK_PORT,
    show_default=True,
    help="Where they are answered.",
)
@_every_role
def control(**told: Any) -> None:
    """Reconcile everything and scale functions, as the one replica that leads; the others wait to take over. The
    leader takes gateways' reports and tells of events.

    \b
    Example:
      penstock cluster control --kubeconfig ~/.kube/config --redis-url redis://127.0.0.1:6379/0
    """
    from penstock.cluster.control import compose  # noqa: PLC0415 - each role imports what it needs

    _run("control", compose, told)


@cluster.command(short_help="Takes events for Brokers.")
@_event_log
@_port(DEFAULT_PORT)
@_every_role
def ingress(**told: Any) -> None:
    """Take events for every Broker at POST /<namespace>/<broker>, and answer once they are stored.

    \b
    Example:
      penstock cluster ingress --kubeconfig ~/.kube/config --redis-url redis://127.0.0.1:6379/0
    """
    from penstock.cluster.broker import compose_ingress  # noqa: PLC0415 - as above

    _run("ingress", compose_ingress, told)


@cluster.command(short_help="Delivers events to Triggers' subscribers.")
@_event_log
@_every_role
def dispatcher(**told: Any) -> None:
    """Deliver stored events, for those Triggers that this replica holds.

    \b
    Example:
      penstock cluster dispatcher --kubeconfig ~/.kube/config --redis-url redis://127.0.0.1:6379/0
    """
    from penstock.cluster.broker import compose_dispatcher  # noqa: PLC0415 - as above

    _run("dispatcher", compose_dispatcher, told)


@cluster.command(short_help="Takes requests to functions.")
@_port(DEFAULT_PORT)
@_every_role
def gateway(**told: Any) -> None:
    """Take requests to functions, and hold those whose function is starting.

    \b
    Example:
      penstock cluster gateway --kubeconfig ~/.kube/config --notice 0
    """
    from penstock.cluster.gateway import compose  # noqa: PLC0415 - as above

    _run("gateway", compose, told)


@cluster.command(short_help="Runs sources.")
@click.option(
    "--data-dir",
    "data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/data"),
    show_default=True,
    help="Where sources remember how far they are.",
)
@_every_role
def sources(**told: Any) -> None:
    """Run the sources, as the one replica that holds their lease; others wait to take over.

    \b
    Example:
      penstock cluster sources --kubeconfig ~/.kube/config --data-dir /tmp/sources
    """
    from penstock.cluster.sources import compose  # noqa: PLC0415 - as above

    _run("sources", compose, told)


def _run(role: str, compose: Any, told: dict[str, Any]) -> None:
    from penstock.cluster.process import run_role  # noqa: PLC0415 - as above

    release = Release(
        namespace=told.pop("namespace"),
        control=told.pop("control_service"),
        gateway=told.pop("gateway_service"),
        ingress=told.pop("ingress_service"),
    )
    log: dict[str, Any] = {name: told.pop(name) for name in ("kind", "redis_url", "kafka_servers") if name in told}
    if "log_name" in told:
        log["name"] = told.pop("log_name")
        log["retention"] = retention.taken(told)
    run_role(compose, Settings(role=role, release=release, event_log=EventLogSettings(**log), **told))
