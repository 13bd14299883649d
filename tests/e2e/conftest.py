"""Real platforms on free ports, each in a folder of its own, stopped with nothing left running."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.testing import Platform


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with Platform.start(data=tmp_path / "data", root=tmp_path) as running:
        yield running
