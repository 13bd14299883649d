"""What all tests share: how Hypothesis runs, and the servers that tests need.

A test says so by ``@pytest.mark.service("redis")``; with ``own=True`` it starts one itself, to stop and kill it. Where
the server cannot be had, the test is left out and the run ends with a line that says how to get it, or fails where
$PENSTOCK_REQUIRE_SERVICES names it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.controlplane.access import ClusterAccess, existing
from tests.support.controlplane.servers import ControlPlane
from tests.support.kafka.server import KafkaServer
from tests.support.services import SERVICES, RedisServer, Service

# No test judges by the wall clock: a busy machine must not make a right answer wrong.
settings.register_profile("penstock", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("penstock")

_LEFT_OUT = pytest.StashKey[dict[str, int]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out: dict[str, int] = {}
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        absent = _absent(item)
        (dropped if absent else kept).append(item)
        for name in absent:
            left_out[name] = left_out.get(name, 0) + 1
    config.stash[_LEFT_OUT] = left_out
    required = set(os.environ.get("PENSTOCK_REQUIRE_SERVICES", "").replace(",", " ").split())
    for name in sorted(required):
        if name not in SERVICES:
            raise pytest.UsageError(f"PENSTOCK_REQUIRE_SERVICES names {name!r}; known are {', '.join(SERVICES)}.")
        if name in left_out:
            raise pytest.UsageError(_line(SERVICES[name], left_out[name]))
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept
    _prepare(config, kept)


def _prepare(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Here and not in a fixture, where a test's time limit would end it."""
    wanted = {
        name
        for item in items
        for mark in item.iter_markers("service")
        for name in mark.args
        if mark.kwargs.get("own") or not SERVICES[name].given
    }
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        for name in sorted(wanted):
            try:
                SERVICES[name].prepare(lambda line: print(line, flush=True))
            except RuntimeError as error:
                raise pytest.UsageError(f"{name} cannot be made ready: {error}") from error


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, count in sorted(config.stash.get(_LEFT_OUT, {}).items()):
        terminalreporter.write_line(_line(SERVICES[name], count), yellow=True)


def _absent(item: pytest.Item) -> set[str]:
    """The servers that the test needs and that cannot be had."""
    absent = set()
    for mark in item.iter_markers("service"):
        for name in mark.args:
            service = SERVICES[name]
            if not (service.startable if mark.kwargs.get("own") else service.available):
                absent.add(name)
    return absent


def _line(service: Service, count: int) -> str:
    line = f"{service.name} could not be had: {count} tests did not run. Provide it by: {service.install}"
    return f"{line}   (or set {service.variable})" if service.variable else line


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis that every test shares; each takes a log name of its own."""
    given = os.environ.get(str(SERVICES["redis"].variable))
    if given:
        yield given
        return
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def kafka_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bootstrap servers of a Kafka that every test shares; each takes names of its own."""
    given = os.environ.get(str(SERVICES["kafka"].variable))
    if given:
        yield given
        return
    server = KafkaServer(tmp_path_factory.mktemp("kafka"))
    server.start()
    yield server.servers
    server.stop()


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of our own, to stop and kill its servers; who does so starts them again.

    Every test shares it; each takes a namespace of its own.
    """
    with ControlPlane(tmp_path_factory.mktemp("kubernetes")) as plane:
        yield plane


@pytest.fixture(scope="session")
def kubernetes(request: pytest.FixtureRequest) -> ClusterAccess:
    """A real API server with its controllers and no nodes: pods are made and stay Pending."""
    given = os.environ.get(str(SERVICES["kubernetes"].variable))
    if given:
        return existing(Path(given))
    plane: ControlPlane = request.getfixturevalue("control_plane")
    return plane.access
