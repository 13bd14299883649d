"""The cluster that the tests share, started once a run; each test takes a namespace of its own."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kubelet.cluster import Cluster, checkout_image
from tests.support.release import Release

#: Pods take seconds to start, Leases to run out, and the cron a minute: with that, and the chart's installation, in it.
TIMEOUT_S = 600


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, and nothing installed. Who stops one of its servers starts it again."""
    with Cluster(tmp_path_factory.mktemp("cluster"), images=[checkout_image("example.com/checkout*")]) as running:
        yield running


@pytest.fixture(scope="session")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the nodes that is /buckets in the sources' pod, and that a function may have as a volume."""
    folder = tmp_path_factory.mktemp("buckets")
    folder.chmod(0o777)
    return folder


@pytest.fixture(scope="session")
def release(cluster: Cluster, buckets: Path) -> Iterator[Release]:
    """The chart, installed once a run. Who kills a pod of it waits until it is whole again."""
    release = Release(cluster)
    release.install(
        "sources.extraVolumes[0].name=buckets",
        f"sources.extraVolumes[0].hostPath.path={buckets}",
        "sources.extraVolumeMounts[0].name=buckets",
        "sources.extraVolumeMounts[0].mountPath=/buckets",
    )
    yield release
    release.uninstall()


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"test-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:10]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What needs no release goes first: an installed platform tidies up instances that no Revision of its own has.
    items.sort(key=lambda item: "release" in getattr(item, "fixturenames", ()))
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.service("kubernetes", "cluster", own=True))
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where no cluster can be had, all of this folder is left out, which is told, and no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
