"""The records of a machine's instances."""

from pathlib import Path

import pytest

from serving.instances.records import Records


@pytest.mark.parametrize("content", [b"", b"[]", b'{"name": "\xe9"}'], ids=["empty", "no object", "no UTF-8"])
def test_a_record_that_cannot_be_read_is_removed(tmp_path: Path, content: bytes):
    records = Records(tmp_path)
    (tmp_path / "scan-00001-abcde.json").write_bytes(content)
    assert records.read() == []
    assert list(tmp_path.iterdir()) == []
