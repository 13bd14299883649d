"""What a benchmark answers: its figures, whether each target is met, and on what machine that was."""

from __future__ import annotations

import os
import platform
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from bench import nginx

__all__ = ["Figures", "Machine", "Measured", "Options", "machine", "missed", "report", "say_failures"]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to run. `quick` makes everything small: it shows that the benchmark works, its figures are rough."""

    seed: int
    quick: bool
    progress: Callable[[str], None]

    def rng(self) -> random.Random:
        """The generator behind the interval, the same for the same seed."""
        return random.Random(self.seed)

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """A benchmark's own figures; each becomes a key of the JSON object."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One benchmark's outcome. `target` has the upper limits by figure; `broken` says why the figures are worth
    nothing, where they are."""

    figures: Figures
    target: Mapping[str, float]
    broken: str | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures were measured on."""

    cores: int
    cpu: str
    kernel: str
    python: str
    nginx: str


def machine() -> Machine:
    """The facts of this machine. Raises Broken where nginx is missing."""
    return Machine(
        cores=os.cpu_count() or 1,
        cpu=_cpu_model(),
        kernel=platform.release(),
        python=platform.python_version(),
        nginx=nginx.version(),
    )


def report(benchmark: str, measured: Measured, options: Options, facts: Machine, others_cpu: float) -> dict[str, Any]:
    """The JSON object: the figures, then the targets and whether they are met, then how and where it was measured.

    `others_cpu` is the share of the machine that other programs took meanwhile.
    """
    figures: dict[str, Any] = msgspec.to_builtins(measured.figures)
    above = missed(measured.target, figures)
    return {
        "benchmark": benchmark,
        **{name: _rounded(value) for name, value in figures.items()},
        "target": dict(measured.target),
        "met": not above and measured.broken is None,
        "missed": above,
        **({"broken": measured.broken} if measured.broken else {}),
        "quick": options.quick,
        "seed": options.seed,
        "others_cpu": _rounded(others_cpu),
        "machine": msgspec.to_builtins(facts),
    }


def missed(target: Mapping[str, float], figures: Mapping[str, float]) -> list[str]:
    """The targets whose figure is above its limit. Raises KeyError where a target has no figure."""
    return [name for name, limit in target.items() if figures[name] > limit]


def say_failures(failures: Mapping[str, int]) -> str | None:
    """``3 x status 503, 1 x no answer``; None where there are none."""
    return ", ".join(f"{count} x {what}" for what, count in sorted(failures.items())) or None


def _rounded(value: Any) -> Any:
    """Three decimals: nothing here is more precise."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return value


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
