"""The pictures example on a cluster: applied with kubectl, its functions woken from zero and back there, in pods."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.pictures.demo import FUNCTIONS, HERE, Buckets, check_report, check_results
from examples.pictures.make_pictures import make_pictures
from tests.support.kubelet.cluster import Cluster
from tests.support.release import Release, function_image

COUNT = 16
#: The cron ticks once a minute; starting its function comes on top.
REPORT_TIMEOUT_S = 120.0


@pytest.fixture
def example(cluster: Cluster, release: Release, namespace: str, buckets: Path, tmp_path: Path) -> Iterator[Buckets]:
    """The example as its README says it: images of the functions' folders, and the kustomization applied."""
    place = tmp_path / "examples/pictures"
    place.mkdir(parents=True)
    (place / "buckets").symlink_to(buckets)
    for name in ("uploads", "cdn", "audit"):
        (buckets / name).mkdir()
    for name in FUNCTIONS:
        cluster.use(function_image(f"pictures-{name}", HERE / "functions" / name))
    manifests = cluster.kubectl("kustomize", str(HERE)).replace("/srv/pictures", str(buckets))
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=manifests)
    for kind, names in (
        ("broker", ("default",)),
        ("trigger", ("scan", "thumbnail", "audit")),
        ("ksvc", FUNCTIONS),
        ("objectstoresource", ("uploads",)),
        ("pingsource", ("every-minute",)),
    ):
        for name in names:
            release.until_ready(kind, name, namespace)
    yield Buckets(tmp_path)
    cluster.kubectl("delete", "pv", "pictures", "--wait=false")
    for each in list(buckets.iterdir()):
        shutil.rmtree(each) if each.is_dir() else each.unlink()


def test_every_upload_is_judged_and_every_approved_one_made_smaller_by_functions_that_were_at_zero(
    example: Buckets, cluster: Cluster, namespace: str
):
    cluster.until(lambda: not cluster.get("pods", "-n", namespace), what="every function is at zero")
    pictures = make_pictures(example.uploads, COUNT, seed=3)
    cluster.until(
        lambda: example.is_complete(pictures),
        what="every upload judged, every approved one made smaller",
        timeout_s=120,
    )
    counts = check_results(example, pictures)
    assert counts["lost"] == 0
    cluster.until(lambda: check_report(example, counts), what="the cron's report agrees", timeout_s=REPORT_TIMEOUT_S)
    cluster.until(lambda: not cluster.get("pods", "-n", namespace), what="every function is back at zero")
