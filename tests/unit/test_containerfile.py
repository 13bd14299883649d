"""The Containerfile copies what is there, and what the build may see."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "Containerfile").read_text().splitlines()
#: The first stage builds; what the second one copies comes from it.
COPIED = [word for line in LINES if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]]


def test_everything_that_is_copied_is_there_and_may_be_seen():
    seen = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    assert set(COPIED) == seen
    assert [name for name in COPIED if not (ROOT / name).exists()] == []


def test_every_package_is_copied():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) <= set(COPIED)
    assert project["project"]["readme"] in COPIED


def test_it_runs_as_the_user_of_the_charts_pods():
    (user,) = [line for line in LINES if line.startswith("USER ")]
    helpers = (ROOT / "charts/penstock/templates/_helpers.tpl").read_text()
    assert user == "USER 65532:65532"
    assert "runAsUser: 65532" in helpers


def test_the_image_has_the_charts_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = (ROOT / "charts/penstock/Chart.yaml").read_text()
    assert f"version: {version}\n" in chart
    assert f'appVersion: "{version}"' in chart
