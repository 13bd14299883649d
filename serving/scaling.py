"""The `autoscaling.knative.dev/` annotations: what each may hold, and the KPA settings that follow from them.

Source of names, spellings and rules: knative/serving `pkg/apis/autoscaling/register.go` and `annotation_validation.go`;
of the target's resolution: `pkg/reconciler/autoscaling/resources/target.go`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from core.errors import FieldError
from core.resources import parse_go_duration
from serving.kpa import KpaSpec

__all__ = ["AUTOSCALING_GROUP", "KPA_CLASS", "PROGRESS_DEADLINE", "ScalingSettings", "kpa_spec", "validate_scaling"]

AUTOSCALING_GROUP: Final = "autoscaling.knative.dev"
KPA_CLASS: Final = f"kpa.{AUTOSCALING_GROUP}"
HPA_CLASS: Final = f"hpa.{AUTOSCALING_GROUP}"
PROGRESS_DEADLINE: Final = "serving.knative.dev/progress-deadline"

WINDOW_MIN_S: Final = 6.0
WINDOW_MAX_S: Final = 3600.0
TARGET_MIN: Final = 0.01
_MAX_INT32: Final = 2**31 - 1
# Narrower than Python: no underscores, blanks, "nan" or "inf".
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}\Z")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?\Z")

#: Annotations (without the group) and the older spellings that Knative still reads, newest first.
_SPELLINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "class": ("class",),
    "min-scale": ("min-scale", "minScale"),
    "max-scale": ("max-scale", "maxScale"),
    "initial-scale": ("initial-scale", "initialScale"),
    "activation-scale": ("activation-scale",),
    "scale-down-delay": ("scale-down-delay", "scaleDownDelay"),
    "metric": ("metric",),
    "target": ("target",),
    "target-utilization-percentage": ("target-utilization-percentage", "targetUtilizationPercentage"),
    "target-burst-capacity": ("target-burst-capacity", "targetBurstCapacity"),
    "window": ("window",),
    "panic-window-percentage": ("panic-window-percentage", "panicWindowPercentage"),
    "panic-threshold-percentage": ("panic-threshold-percentage", "panicThresholdPercentage"),
    "scale-to-zero-pod-retention-period": ("scale-to-zero-pod-retention-period", "scaleToZeroPodRetentionPeriod"),
    "metric-aggregation-algorithm": ("metric-aggregation-algorithm", "metricAggregationAlgorithm"),
}


class ScalingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The platform-wide defaults, with the values of Knative's `config-autoscaler`. Times in seconds.

    `scale_to_zero_grace_s` is Knative's wait for the network to be reprogrammed towards the activator. Our gateway is
    always in the path, so there is nothing to wait for and the default is 0 (Knative: 30).
    """

    tick_s: float = 2.0
    enable_scale_to_zero: bool = True
    concurrency_target: float = 100.0
    concurrency_target_fraction: float = 0.7
    rps_target: float = 200.0
    rps_target_fraction: float = 0.7
    target_burst_capacity: float = 211.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    stable_window_s: float = 60.0
    panic_window_percentage: float = 10.0
    panic_threshold_percentage: float = 200.0
    scale_to_zero_grace_s: float = 0.0
    scale_to_zero_retention_s: float = 0.0
    scale_down_delay_s: float = 0.0
    min_scale: int = 0
    max_scale: int = 0
    initial_scale: int = 1
    progress_deadline_s: float = 600.0


def kpa_spec(
    annotations: Mapping[str, str],
    *,
    container_concurrency: int,
    reachable: bool,
    settings: ScalingSettings,
) -> KpaSpec:
    """What `kpa.decide` needs to know of a revision. The annotations have been checked by `validate_scaling`."""
    read = _Reader(annotations)
    metric = read.text("metric") or "concurrency"
    target, total = _target(read, metric, container_concurrency, settings)
    window_s = read.duration("window", settings.stable_window_s)
    panic_percentage = read.number("panic-window-percentage", settings.panic_window_percentage)
    deadline = annotations.get(PROGRESS_DEADLINE)
    return KpaSpec(
        metric="rps" if metric == "rps" else "concurrency",
        target_value=target,
        total_value=total,
        target_burst_capacity=read.number("target-burst-capacity", settings.target_burst_capacity),
        max_scale_up_rate=settings.max_scale_up_rate,
        max_scale_down_rate=settings.max_scale_down_rate,
        stable_window_s=window_s,
        # Buckets are one second wide, so a shorter panic window would hold nothing.
        panic_window_s=max(1.0, window_s * panic_percentage / 100),
        panic_threshold=read.number("panic-threshold-percentage", settings.panic_threshold_percentage) / 100,
        scale_down_delay_s=read.duration("scale-down-delay", settings.scale_down_delay_s),
        min_scale=read.count("min-scale", settings.min_scale) if reachable else 0,
        max_scale=read.count("max-scale", settings.max_scale),
        initial_scale=read.count("initial-scale", settings.initial_scale),
        activation_scale=read.count("activation-scale", 1),
        reachable=reachable,
        enable_scale_to_zero=settings.enable_scale_to_zero,
        grace_s=settings.scale_to_zero_grace_s,
        retention_s=read.duration("scale-to-zero-pod-retention-period", settings.scale_to_zero_retention_s)
        if reachable
        else 0.0,
        progress_deadline_s=parse_go_duration(deadline) if deadline else settings.progress_deadline_s,
        tick_s=settings.tick_s,
    )


def _target(read: _Reader, metric: str, container_concurrency: int, settings: ScalingSettings) -> tuple[float, float]:
    """(value to aim for per instance, the most that one instance may have)."""
    if metric == "rps":
        total, fraction = settings.rps_target, settings.rps_target_fraction
    else:
        total = float(container_concurrency) or settings.concurrency_target
        fraction = settings.concurrency_target_fraction
    asked = read.number("target", 0.0)
    if asked:
        total = asked
        if metric != "rps" and container_concurrency:
            total = min(asked, float(container_concurrency))
    fraction = read.number("target-utilization-percentage", fraction * 100) / 100
    return max(TARGET_MIN, total * fraction), total


def validate_scaling(annotations: Mapping[str, str], path: str) -> Iterator[FieldError]:
    """Each autoscaling annotation at `path` that Knative's webhook would refuse."""
    read = _Reader(annotations)
    yield from _check_class_and_metric(read, path)
    yield from _check_scales(read, path)
    for name, low, high in (
        ("panic-window-percentage", 1.0, 100.0),
        ("panic-threshold-percentage", 110.0, 1000.0),
        ("target", TARGET_MIN, math.inf),
        ("target-utilization-percentage", 1.0, 100.0),
        ("target-burst-capacity", -1.0, math.inf),
    ):
        yield from _check_number(read, name, low, high, path)
    yield from _check_duration(read, "window", WINDOW_MIN_S, path, whole=True)
    yield from _check_duration(read, "scale-down-delay", 0.0, path, whole=True)
    yield from _check_duration(read, "scale-to-zero-pod-retention-period", 0.0, path, whole=False)
    deadline = annotations.get(PROGRESS_DEADLINE)
    if deadline:
        yield from _check_seconds(deadline, 0.0, math.inf, f"{path}[{PROGRESS_DEADLINE}]", whole=True)


def _check_class_and_metric(read: _Reader, path: str) -> Iterator[FieldError]:
    klass = read.text("class") or KPA_CLASS
    if klass.endswith(".knative.dev") and klass not in (KPA_CLASS, HPA_CLASS):
        yield FieldError(path=read.place("class", path), rule=f"must be {KPA_CLASS} or {HPA_CLASS}", value=klass)
    metric = read.text("metric")
    if metric is not None and klass == KPA_CLASS and metric not in ("concurrency", "rps"):
        yield FieldError(path=read.place("metric", path), rule="must be concurrency or rps", value=metric)
    if metric == "" and klass == HPA_CLASS:
        yield FieldError(path=read.place("metric", path), rule="must not be empty", value=metric)
    algorithm = read.text("metric-aggregation-algorithm")
    if algorithm and klass == KPA_CLASS and algorithm not in ("linear", "weighted-exponential", "weightedExponential"):
        rule = "must be linear or weighted-exponential"
        yield FieldError(path=read.place("metric-aggregation-algorithm", path), rule=rule, value=algorithm)


def _check_scales(read: _Reader, path: str) -> Iterator[FieldError]:
    found: dict[str, int] = {}
    for name in ("min-scale", "max-scale", "initial-scale", "activation-scale"):
        text = read.text(name)
        if text is None:
            continue
        number = _whole(text)
        if number is None or not 0 <= number <= _MAX_INT32:
            rule = f"must be a whole number within 0 and {_MAX_INT32}"
            yield FieldError(path=read.place(name, path), rule=rule, value=text)
        else:
            found[name] = number
    low, high = found.get("min-scale", 0), found.get("max-scale", 0)
    if high and high < low:
        rule = f"must not be less than min-scale {low}"
        yield FieldError(path=read.place("max-scale", path), rule=rule, value=high)
    activation = found.get("activation-scale")
    if activation is None:
        return
    place = read.place("activation-scale", path)
    if activation < low:
        yield FieldError(path=place, rule=f"must not be less than min-scale {low}", value=activation)
    elif high and activation > high:
        yield FieldError(path=place, rule=f"must not be more than max-scale {high}", value=activation)
    elif activation < 2:
        yield FieldError(path=place, rule="must be greater than 1", value=activation)


def _check_number(read: _Reader, name: str, low: float, high: float, path: str) -> Iterator[FieldError]:
    text = read.text(name)
    if text is None:
        return
    if not _NUMBER.match(text):
        yield FieldError(path=read.place(name, path), rule="must be a number", value=text)
        return
    number = float(text)
    refused = not low <= number <= high or (name == "target-burst-capacity" and -1 < number < 0)
    if refused:
        bounds = f"within {low:g} and {high:g}" if high < math.inf else f"at least {low:g}"
        if name == "target-burst-capacity":
            bounds = "-1 (no limit), 0 or more"
        yield FieldError(path=read.place(name, path), rule=f"must be {bounds}", value=text)


def _check_duration(read: _Reader, name: str, low: float, path: str, *, whole: bool) -> Iterator[FieldError]:
    text = read.text(name)
    if text is not None:
        yield from _check_seconds(text, low, WINDOW_MAX_S, read.place(name, path), whole=whole)


def _check_seconds(text: str, low: float, high: float, place: str, *, whole: bool) -> Iterator[FieldError]:
    try:
        seconds = parse_go_duration(text)
    except ValueError as error:
        yield FieldError(path=place, rule=str(error))
        return
    if not low <= seconds <= high:
        bounds = f"within {low:g}s and {high:g}s" if high < math.inf else f"at least {low:g}s"
        yield FieldError(path=place, rule=f"must be {bounds}", value=text)
    elif whole and seconds != int(seconds):
        yield FieldError(path=place, rule="must be given in whole seconds", value=text)


def _whole(text: str) -> int | None:
    return int(text) if _WHOLE.match(text) else None


class _Reader:
    """The annotations by today's names, whichever spelling was used."""

    def __init__(self, annotations: Mapping[str, str]) -> None:
        self._annotations = annotations

    def _key(self, name: str) -> str:
        keys = [f"{AUTOSCALING_GROUP}/{spelling}" for spelling in _SPELLINGS[name]]
        return next((key for key in keys if key in self._annotations), keys[0])

    def place(self, name: str, path: str) -> str:
        return f"{path}[{self._key(name)}]"

    def text(self, name: str) -> str | None:
        return self._annotations.get(self._key(name))

    def number(self, name: str, default: float) -> float:
        text = self.text(name)
        return default if text is None else float(text)

    def count(self, name: str, default: int) -> int:
        text = self.text(name)
        return default if text is None else int(text)

    def duration(self, name: str, default_s: float) -> float:
        text = self.text(name)
        return default_s if text is None else parse_go_duration(text)
