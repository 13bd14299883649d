"""Options that several commands have."""

import pytest
from click.testing import CliRunner

from penstock.cli.main import main


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["up", "--drain", "nan"], id="how long the platform drains"),
        pytest.param(["up", "--log-max-age", "nan"], id="how long delivered events are kept"),
        pytest.param(["up", "--log-undelivered-age", "nan"], id="how long letters are kept"),
        pytest.param(["serve", "--drain", "nan"], id="how long a function drains"),
    ],
)
def test_seconds_that_are_no_number_are_refused_before_anything_starts(arguments: list[str]):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "nan is not in the range" in result.output
