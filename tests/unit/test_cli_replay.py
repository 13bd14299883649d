"""What the commands of replays and dead letters refuse, and how they read filters. The rest is in tests/e2e."""

import pytest
from click.testing import CliRunner

from penstock.cli.asked import filters_of
from penstock.cli.main import main


@pytest.mark.parametrize(
    ("given", "filters"),
    [
        pytest.param("type=a", [{"exact": {"type": "a"}}], id="exact"),
        pytest.param("[]", [], id="everything"),
        pytest.param('[{"prefix": {"type": "a"}}]', [{"prefix": {"type": "a"}}], id="JSON"),
        pytest.param('{"not": {"exact": {"id": "1"}}}', [{"not": {"exact": {"id": "1"}}}], id="one in JSON"),
        pytest.param("EXISTS subject", [{"cesql": "EXISTS subject"}], id="CloudEvents SQL"),
    ],
)
def test_a_filter_is_given_as_for_events(given, filters):
    assert list(filters_of((given,))) == filters


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param("replay --since 1h", "Missing option '--trigger'", id="no trigger"),
        pytest.param("replay --trigger t", "Say which events: --since TIME, --id ID, or --all", id="no events"),
        pytest.param("replay --trigger t --all --since 1h", "two beginnings", id="two beginnings"),
        pytest.param("replay --trigger t --all --resume A/B", "is no replay's name", id="no replay"),
        pytest.param("replay --trigger t --since soon", "'soon' is no time", id="no time"),
        pytest.param("replay --trigger t --all --filter [1", "is not JSON", id="no filter"),
        pytest.param("dlq redrive", "Name letters, or choose them with --trigger or --all", id="no letters"),
        pytest.param("dlq redrive a/1 --all", "Name letters, or choose", id="letters and all"),
        pytest.param("dlq drop a/1 --since 1h", "are for --trigger and --all", id="a time for named letters"),
        pytest.param("dlq list --reason lost", "'lost' is not one of", id="no reason"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_asked(words: str, told: str):
    result = CliRunner().invoke(main, words.split())
    assert (result.exit_code, told in result.output) == (2, True), result.output


def test_a_log_that_would_be_full_before_anything_goes_is_refused_when_the_platform_is_started():
    result = CliRunner().invoke(main, ["up", "--log-max-bytes", "2000", "--log-full-bytes", "1000"])
    assert result.exit_code == 2
    assert "1000 is less than --log-max-bytes, 2000" in " ".join(result.output.split())


@pytest.mark.parametrize("words", ["dlq show a/1", "dlq list", "replay --trigger t --all"])
def test_where_no_platform_answers_that_is_said_at_once(words: str):
    result = CliRunner().invoke(main, [*words.split(), "--server", "http://127.0.0.1:1"])
    assert (result.exit_code, "No platform answers" in result.output) == (4, True)
