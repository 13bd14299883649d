"""What the chart makes of values: rendered by helm, and kept as snapshots.

``python -m tests.support.chart`` writes the snapshots anew. The first one is whole; each other one is what changes
against it, so that a reader sees what a value does.
"""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.controlplane.build import binaries

__all__ = ["BASE", "CASES", "CHART", "documents", "helm", "render", "snapshot", "snapshot_path"]

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = ROOT / "charts/penstock"
FOLDER: Final = ROOT / "tests/e2e/snapshots/chart"
#: helm asks no cluster when it only renders.
KUBERNETES: Final = "1.34.0"

#: The values that all cases share: the smallest with which the chart installs. The definitions of kinds have tests of
#: their own, and the webhooks' certificate is another one each time.
BASE: Final = ("redis.install=true", "crds.install=false", "webhook.enabled=false")
_HUNK: Final = re.compile(r"^@@ -(\d+).*@@")
_AFFINITY: Final = "gateway.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
_REQUIRED: Final = f"{_AFFINITY}.nodeSelectorTerms[0].matchExpressions[0]"
#: By name, what is set instead of (`BASE`'s redis.install) or beside it.
CASES: Final[dict[str, tuple[str, ...]]] = {
    "base": (),
    "redis-url": (
        "redis.install=false",
        "eventLog.redis.url=rediss://:secret@redis.example:6380/2",
    ),
    "redis-secret": (
        "redis.install=false",
        "eventLog.redis.existingSecret=my-redis",
        "eventLog.redis.secretKey=address",
    ),
    "kafka": (
        "redis.install=false",
        r"eventLog.kafka.servers=kafka-0.example:9092\,kafka-1.example:9092",
    ),
    "kafka-secret": ("redis.install=false", "eventLog.kafka.existingSecret=my-kafka", "eventLog.kafka.secretKey=where"),
    "both-logs": ("eventLog.kind=kafka", "eventLog.kafka.servers=kafka.example:9092"),
    "redis-without-volume": ("redis.persistence.enabled=false",),
    "log-name": ("eventLog.name=events",),
    "retention": (
        "eventLog.retention.maxAgeSeconds=3600",
        "eventLog.retention.maxBytes=50Mi",
        "eventLog.retention.fullBytes=104857600",
    ),
    "redis-memory": ("redis.resources.limits.memory=4Gi", "redis.persistence.size=12Gi"),
    "image": (
        "image.repository=registry.example/penstock",
        "image.tag=1.2.3",
        "image.pullPolicy=Always",
        "imagePullSecrets[0].name=registry",
    ),
    "webhook": ("webhook.enabled=true", "webhook.existingSecret=mine", "webhook.caBundle=Q0E="),
    "domain": ("domain.suffix=.apps.example.com",),
    "load-balancer": (
        "gateway.service.type=LoadBalancer",
        "gateway.service.port=8000",
        "gateway.service.annotations.example\\.com/zone=a",
    ),
    "one-of-each": ("control.replicas=1", "brokerIngress.replicas=1", "dispatcher.replicas=1", "gateway.replicas=1"),
    "autoscaling": (
        "brokerIngress.autoscaling.enabled=true",
        "dispatcher.autoscaling.enabled=true",
        "gateway.autoscaling.enabled=true",
        "gateway.autoscaling.maxReplicas=20",
    ),
    "ending": ("gateway.noticeSeconds=15", "gateway.drainSeconds=600"),
    "without-network-policies": ("networkPolicies.enabled=false",),
    "sources-volume": ("sources.persistence.enabled=true", "sources.persistence.storageClass=fast"),
    "sources-folder": (
        "sources.persistence.enabled=true",
        "sources.persistence.existingClaim=mine",
        "sources.extraVolumes[0].name=uploads",
        "sources.extraVolumes[0].persistentVolumeClaim.claimName=uploads",
        "sources.extraVolumeMounts[0].name=uploads",
        "sources.extraVolumeMounts[0].mountPath=/uploads",
    ),
    "scheduling": (
        "gateway.nodeSelector.pool=edge",
        "gateway.tolerations[0].key=edge",
        "gateway.tolerations[0].operator=Exists",
        "gateway.podAnnotations.example\\.com/team=events",
        "gateway.resources.limits.memory=1Gi",
        f"{_REQUIRED}.key=disk",
        f"{_REQUIRED}.operator=Exists",
    ),
    "telling": ("logLevel=DEBUG", "scrapeAnnotations=false", "serviceAccount.annotations.example\\.com/role=events"),
}


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    """Run helm, whatever comes of it."""
    command = [str(binaries() / "helm"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def render(*values: str, release: str = "penstock", namespace: str = "penstock") -> str:
    """The manifests of a release with these values. Raises RuntimeError with what helm said."""
    settings = [word for value in values for word in ("--set", value)]
    words = ("template", release, str(CHART), "--namespace", namespace, "--kube-version", KUBERNETES, *settings)
    done = helm(*words)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return done.stdout


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def snapshot(name: str) -> str:
    """What the snapshot of a case has to hold."""
    base = render(*BASE)
    if name == "base":
        return base
    changed = render(*BASE, *CASES[name])
    before, after = base.splitlines(keepends=True), changed.splitlines(keepends=True)
    lines = list(difflib.unified_diff(before, after, "base", name, n=2))
    return "".join(_HUNK.sub(lambda hunk: f"@@ {_place(before, int(hunk[1]))} @@", line) for line in lines)


def _place(lines: list[str], number: int) -> str:
    """The manifest that a line is in. Numbers of lines would change with whatever changes above."""
    begins = max((index for index in range(number) if lines[index] == "---\n"), default=0)
    ends = next((index for index in range(begins + 1, len(lines)) if lines[index] == "---\n"), len(lines))
    (document,) = documents("".join(lines[begins:ends])) or ({"kind": "", "metadata": {"name": ""}},)
    return f"{document['kind']} {document['metadata']['name']}"


def snapshot_path(name: str) -> Path:
    return FOLDER / (f"{name}.yaml" if name == "base" else f"{name}.diff")


def main() -> int:
    for path in FOLDER.iterdir():
        path.unlink()
    for name in CASES:
        snapshot_path(name).write_text(snapshot(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
