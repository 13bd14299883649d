"""What a person gives instead of a letter's event, where it cannot be read."""

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from penstock.cli.main import main

EVENT = {"specversion": "1.0", "id": "e1", "source": "/test", "type": "made"}


class Keeps:
    """A platform that has the letter, and what it was asked to send."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def request(self, method: str, _path: str, *, body: Any = None) -> dict[str, Any]:
        if method == "GET":
            return {"event": EVENT}
        self.sent.append(body["event"])
        return {"position": 2}


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> Keeps:
    platform = Keeps()
    monkeypatch.setattr("penstock.cli.dlq.Patient", lambda _session: platform)
    return platform


def redrive(*options: str) -> Result:
    return CliRunner().invoke(main, ["dlq", "redrive", "scan/1", "--server", "http://127.0.0.1:1", *options])


def leaves(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """An editor that leaves this."""
    program = f"import pathlib, sys; pathlib.Path(sys.argv[1]).write_bytes({content!r})"
    monkeypatch.setenv("VISUAL", shlex.join([sys.executable, "-c", program]))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"id": ', id="no JSON"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b'{"id": "\xe9"}', id="no UTF-8"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_sentence_and_what_was_edited_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: Keeps, content: bytes
):
    (tmp_path / "event.json").write_bytes(content)
    given = redrive("--with", str(tmp_path / "event.json"))
    assert (given.exit_code, "Nothing was sent." in given.output) == (1, True), given.output
    leaves(monkeypatch, content)
    edited = redrive("--edit")
    assert (edited.exit_code, "Nothing was sent." in edited.output) == (1, True), edited.output
    kept = Path(edited.output.split("--with ")[1].strip())
    assert kept.read_bytes() == content
    kept.unlink()
    assert platform.sent == []


def test_an_editor_may_put_the_mark_of_its_encoding_before_the_event(monkeypatch: pytest.MonkeyPatch, platform: Keeps):
    leaves(monkeypatch, b'\xef\xbb\xbf{"id": "e2"}')
    assert redrive("--edit").exit_code == 0
    assert platform.sent == [{"id": "e2"}]
