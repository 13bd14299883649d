"""What a person names on the command line."""

import click
import pytest

from penstock.cli.failure import NOT_FOUND, Failure
from penstock.cli.words import parse_words, registry, title

KINDS = registry()


def named(*words):
    return [(kind.plural, name) for kind, name in parse_words(words, KINDS)]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ksvc"], [("services", None)]),
        (["Service"], [("services", None)]),
        (["triggers.eventing.knative.dev"], [("triggers", None)]),
        (["ksvc", "a", "b"], [("services", "a"), ("services", "b")]),
        (["brokers,triggers"], [("brokers", None), ("triggers", None)]),
        (["ksvc/a", "trigger/b"], [("services", "a"), ("triggers", "b")]),
        (["eventing"], [("brokers", None), ("triggers", None), ("eventtypes", None)]),
    ],
)
def test_words_name_kinds_and_resources(words, found):
    assert named(*words) == found


def test_all_is_what_a_person_made_and_what_follows_from_it_but_nothing_internal():
    found = {plural for plural, _ in named("all")}
    assert {"brokers", "triggers", "services", "revisions", "routes"} <= found
    assert not found & {"podautoscalers", "endpointslices", "secrets"}


@pytest.mark.parametrize(
    "words", [["ksvc/a", "b"], ["ksvc/"], ["/a"], ["ksvc/a/b"], ["broker,trigger", "a"], ["all", "a"]]
)
def test_words_that_do_not_fit_together_are_wrong_usage(words):
    with pytest.raises(click.UsageError):
        named(*words)


@pytest.mark.parametrize("word", ["nonsense", "", "broker,nonsense", "nonsense/a"])
def test_an_unknown_kind_is_not_found_and_the_known_ones_are_listed(word):
    with pytest.raises(Failure) as caught:
        named(word)
    assert caught.value.exit_code == NOT_FOUND
    assert "services (kservice/ksvc)" in caught.value.hint


def test_titles_are_as_kubectl_writes_them():
    (trigger, _), (config_map, _) = parse_words(["trigger,cm"], KINDS)
    assert title(trigger, "scan") == "trigger.eventing.knative.dev/scan"
    assert title(config_map, "settings") == "configmap/settings"
