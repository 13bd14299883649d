"""The cluster that the tests share, started once a run; each test takes a namespace of its own."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kubelet.cluster import Cluster, checkout_image


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, and nothing installed. Who stops one of its servers starts it again."""
    with Cluster(tmp_path_factory.mktemp("cluster"), images=[checkout_image("example.com/checkout*")]) as running:
        yield running


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"test-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:10]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.service("kubernetes", "cluster", own=True))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where no cluster can be had, all of this folder is left out, which is told, and no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
