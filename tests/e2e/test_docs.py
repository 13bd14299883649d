"""The pages that tell a person what to type are typed here, against a real platform, and answer what they show.

How such a page is written is in CONTRIBUTING.md, "Documentation".
"""

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.testing import Platform, wait_until
from tests.support import document

pytestmark = pytest.mark.e2e

#: Commands that only look: what they show may come a moment later, so they are run again until it is there.
LOOKING = re.compile(r"penstock (get|describe|events|explain|logs|dlq (list|show))\b|kubectl get\b")
LOOK_S = 30.0
#: The ports as the pages name them.
PORTS = {"gateway": "8080", "broker": "8081", "api": "8082", "admin": "8083"}


@dataclass(frozen=True)
class Step:
    """A command of a page, and the output that it shows for it ("" where it shows none)."""

    command: str
    output: str


def steps(console: str) -> Iterator[Step]:
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield Step(command, output)


def shows(output: str, told: str) -> bool:
    """Whether `told` is `output`, where ``...`` stands for anything, lines included; columns may have another width."""
    narrow = re.sub(" +", " ", output).rstrip("\n")
    pattern = r"[\s\S]*?".join(re.escape(part) for part in narrow.split("..."))
    return re.fullmatch(rf"{pattern}\s*", re.sub(" +", " ", told)) is not None


class Reader:
    """Somebody who does what a page says, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.platform: Platform | None = None

    def follow(self, page: Path) -> None:
        for block in document.blocks(page):
            if block.path:
                path = self.folder / block.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
            elif block.language == "console":
                for step in steps(block.text):
                    self.take(step)

    def take(self, step: Step) -> None:
        told = ""

        def found() -> bool:
            nonlocal told
            told = self.as_shown(self.platform.output()) if starts and self.platform else self.run(step.command)
            return shows(step.output, told)

        starts = step.command.startswith("penstock up")
        if starts:
            arguments = tuple(step.command.split()[2:])
            self.platform = Platform.start(data=self.folder / ".penstock", root=self.folder, arguments=arguments)
        try:
            wait_until(found, what=step.command, timeout_s=LOOK_S if starts or LOOKING.match(step.command) else 0)
        except TimeoutError:
            pytest.fail(f"$ {step.command}\n{told}\n--- but the page shows:\n{step.output}")

    def run(self, command: str) -> str:
        """What the command prints, as a shell in the folder with the virtual environment activated runs it."""
        binaries = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", self.by_own_ports(command)],
            cwd=self.folder,
            env={**os.environ, "PATH": binaries, "KUBECONFIG": ".penstock/kubeconfig"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return self.as_shown(done.stdout)

    def ports(self) -> dict[str, str]:
        """The port that the platform has for each that the pages name."""
        assert self.platform is not None, "the page starts a platform first"
        places = self.platform.places
        return {PORTS[name]: getattr(places, name).rpartition(":")[2] for name in PORTS}

    def by_own_ports(self, text: str) -> str:
        own = self.ports()
        return re.sub(r"(?<=:)(808\d)\b", lambda match: own[match[1]], text)

    def as_shown(self, text: str) -> str:
        """What was printed, with the ports and the paths that a reader in the folder sees."""
        default = {own: port for port, own in self.ports().items()}
        text = text.replace(f"{self.folder}/", "")
        return re.sub(rf"(?<=:)({'|'.join(default)})\b", lambda match: default[match[1]], text)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    someone = Reader(tmp_path)
    yield someone
    if someone.platform is not None:
        someone.platform.stop()


@pytest.mark.parametrize(
    "page",
    [
        "explain.md",
        "getting-started.md",
        "events.md",
        "filters.md",
        "replay-and-dead-letters.md",
        "channels-and-flows.md",
        "delivery.md",
    ],
)
def test_what_a_page_tells_to_type_does_what_it_shows(reader, page):
    reader.follow(document.ROOT / "docs" / page)
    assert reader.platform is not None
    assert "Traceback" not in reader.platform.output()
    check_metrics(reader.platform)


def check_metrics(platform: Platform) -> None:
    """Every metric that a platform tells has the type and the labels that docs/metrics.md says."""
    rows = re.findall(
        r"^\| `(penstock_\w+)` \| (\w+) \|([^|]*)\|", (document.ROOT / "docs/metrics.md").read_text(), re.M
    )
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    for place in (platform.places.api, platform.places.broker, platform.places.admin):
        with urllib.request.urlopen(f"{place}/metrics") as answer:
            text = answer.read().decode()
        told = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M))
        assert told
        for name, kind in told.items():
            assert kind == documented[name][0], name
        for sample, labels in re.findall(r"^(\w+)\{(.*)\} ", text, re.M):
            name = sample if sample in told else re.sub("_(bucket|sum|count)$", "", sample)
            assert set(re.findall(r'(\w+)="', labels)) - {"le"} == documented[name][1], name
