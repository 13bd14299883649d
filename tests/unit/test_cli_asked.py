"""What the options that say which events become in a query."""

import click
import msgspec
import pytest
from click.testing import CliRunner

from broker.sieve import STATES as SERVED_STATES
from broker.sieve import read_filters
from penstock.cli.asked import STATES, Question, asking


def asked(*arguments: str) -> Question:
    found: list[Question] = []

    @click.command()
    @asking
    def command(question: Question) -> None:
        found.append(question)

    done = CliRunner().invoke(command, arguments)
    if not found:
        raise click.UsageError(done.output)
    return found[0]


@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        ([], []),
        (["--broker", "b", "-n", "ns", "--trigger", "t"], [("namespace", "ns"), ("broker", "b"), ("trigger", "t")]),
        (["--id", "e1"], [("id", "e1")]),
        (["--state", "failed", "--state", "pending"], [("state", "failed"), ("state", "pending")]),
        (["--since", "2026-11-25T18:00:00Z"], [("since", "1795629600.0")]),
    ],
)
def test_plain_options_are_asked_by_their_names(arguments: list[str], query: list[tuple[str, str]]):
    assert list(asked(*arguments).query) == query


@pytest.mark.parametrize(
    ("arguments", "filters"),
    [
        (["--type", "a", "--source", "/s", "--subject", "x"], [{"type": "a"}, {"source": "/s"}, {"subject": "x"}]),
        (["-e", "key=a=b", "--extension", "other=1"], [{"key": "a=b"}, {"other": "1"}]),
        (["--filter", "type=order.created"], [{"type": "order.created"}]),
    ],
)
def test_attributes_become_filters_that_the_platform_reads(arguments: list[str], filters: list[dict[str, str]]):
    ((name, text),) = asked(*arguments).query
    assert (name, msgspec.json.decode(text)) == ("filters", [{"exact": each} for each in filters])
    read_filters(text)


@pytest.mark.parametrize(
    ("expression", "read"),
    [
        ("type = 'a'", [{"cesql": "type = 'a'"}]),
        ("type='a'", [{"cesql": "type='a'"}]),
        ("EXISTS key", [{"cesql": "EXISTS key"}]),
        ('[{"prefix": {"type": "a."}}]', [{"prefix": {"type": "a."}}]),
        ('{"not": {"exact": {"type": "a"}}}', [{"not": {"exact": {"type": "a"}}}]),
    ],
)
def test_an_expression_is_taken_as_what_it_looks_like(expression: str, read: list[object]):
    ((_, text),) = asked("--filter", expression).query
    assert msgspec.json.decode(text) == read
    read_filters(text)


def test_only_final_states_are_awaited():
    assert asked("--state", "failed").awaits
    assert not asked("--state", "failed", "--state", "pending").awaits
    assert not asked().awaits


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-e", "key"], "must be NAME=VALUE"),
        (["-e", "type=a"], "use --type"),
        (["--filter", "[{"], "is not JSON"),
        (["--since", "yesterday"], "'yesterday' is no time"),
        (["--state", "lost"], "'lost' is not one of"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments: list[str], says: str):
    with pytest.raises(click.UsageError) as refused:
        asked(*arguments)
    assert says in str(refused.value)


def test_the_states_are_those_of_the_platform():
    assert set(STATES) == set(SERVED_STATES)
