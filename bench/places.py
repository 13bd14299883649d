"""Where the repository is: benchmarks run what is checked out."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["REPOSITORY"]

REPOSITORY: Final = Path(__file__).resolve().parent.parent
