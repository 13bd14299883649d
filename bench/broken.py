"""The one error of the benchmarks."""

from __future__ import annotations

__all__ = ["Broken"]


class Broken(Exception):
    """The measurement is worth nothing (errors, losses, something did not start). The message says what to do."""
