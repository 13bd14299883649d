"""Durations, conditions, destinations and references: the values that every plane's resources share."""

import pytest

from core.resources import (
    Condition,
    Destination,
    Key,
    KindRef,
    KReference,
    ObjectMeta,
    Resource,
    Unresolved,
    is_ready,
    merge_conditions,
    parse_go_duration,
    parse_iso_duration,
    resolve,
    summarize,
    validate_destination,
)

BROKER = KindRef("eventing.knative.dev", "v1", "Broker")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("PT0.2S", 0.2), ("PT1M30S", 90), ("P1DT2H", 93_600), ("PT0S", 0), ("P2D", 172_800)],
)
def test_iso_durations(text, seconds):
    assert parse_iso_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "P", "PT", "1s", "PT5", "P1Y", "-PT1S"])
def test_what_is_not_an_iso_duration_is_refused(text):
    with pytest.raises(ValueError, match="ISO 8601"):
        parse_iso_duration(text)


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("1m30s", 90), ("1.5h", 5400), ("500ms", 0.5), ("0", 0)])
def test_go_durations(text, seconds):
    assert parse_go_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "60", "s", "1 m", "1m30", "-1s"])
def test_what_is_not_a_go_duration_is_refused(text):
    with pytest.raises(ValueError, match="not a duration"):
        parse_go_duration(text)


@pytest.mark.parametrize(
    ("dependents", "ready", "reason"),
    [
        pytest.param([], "True", "", id="nothing to wait for"),
        pytest.param([Condition(type="A", status="True")], "True", "", id="all true"),
        pytest.param(
            [Condition(type="A", status="Unknown", reason="U"), Condition(type="B", status="False", reason="F")],
            "False",
            "F",
            id="false outweighs unknown",
        ),
        pytest.param([Condition(type="A", status="Unknown", reason="U")], "Unknown", "U", id="unknown"),
        pytest.param([Condition(type="A", status="False", severity="Info")], "True", "", id="info does not count"),
    ],
)
def test_the_happy_condition_sums_up_the_others(dependents, ready, reason):
    happy = summarize("Ready", dependents)[-1]
    assert (happy.type, happy.status, happy.reason) == ("Ready", ready, reason)


def test_a_transition_time_moves_only_with_the_status():
    first = merge_conditions([], [Condition(type="Ready", status="Unknown", reason="A")], now=0)
    second = merge_conditions(first, [Condition(type="Ready", status="Unknown", reason="B")], now=60)
    third = merge_conditions(second, [Condition(type="Ready", status="True")], now=120)
    times = [entries[0]["lastTransitionTime"] for entries in (first, second, third)]
    assert times == ["1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "1970-01-01T00:02:00Z"]


def test_a_status_of_an_older_generation_says_nothing_about_now():
    status = {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}
    assert is_ready(status, 1) == "True"
    assert is_ready(status, 2) == "Unknown"


def broker(address: str | None) -> Resource:
    status = {"address": {"url": address}} if address else {}
    return Resource(ref=BROKER, meta=ObjectMeta(name="b", namespace="n"), body={"status": status})


@pytest.mark.parametrize(
    ("destination", "url"),
    [
        pytest.param(Destination(uri="http://x/y"), "http://x/y", id="uri"),
        pytest.param(
            Destination(ref=KReference(kind="Broker", name="b", api_version="eventing.knative.dev/v1")),
            "http://in/n/b",
            id="ref in the same namespace",
        ),
        pytest.param(
            Destination(ref=KReference(kind="Broker", name="b", api_version="eventing.knative.dev/v1"), uri="more"),
            "http://in/n/b/more",
            id="uri relative to the ref",
        ),
        pytest.param(
            Destination(ref=KReference(kind="Service", name="s", api_version="v1", namespace="m")),
            "http://s.m.svc.cluster.local",
            id="a Kubernetes Service by its cluster name",
        ),
    ],
)
def test_a_destination_resolves(destination, url):
    held = {Key(BROKER, "n", "b"): broker("http://in/n/b")}
    assert resolve(destination, "n", held.get) == url


@pytest.mark.parametrize(("held", "reason"), [(None, "NotFound"), (broker(None), "AddressNotReady")])
def test_a_destination_that_leads_nowhere_yet_says_why(held, reason):
    destination = Destination(ref=KReference(kind="Broker", name="b", api_version="eventing.knative.dev/v1"))
    with pytest.raises(Unresolved) as caught:
        resolve(destination, "n", lambda key: held)
    assert caught.value.reason == reason


@pytest.mark.parametrize("ref", [None, KReference(kind="Service", name="b", api_version="v1")])
def test_a_uri_that_is_no_url_does_not_resolve(ref):
    with pytest.raises(Unresolved, match="is no URL"):
        resolve(Destination(ref=ref, uri="//["), "n", lambda key: None)


@pytest.mark.parametrize(
    ("destination", "path"),
    [
        (None, "spec.sink"),
        (Destination(), "spec.sink"),
        (Destination(uri="/relative"), "spec.sink.uri"),
        (Destination(uri="ftp://x"), "spec.sink.uri"),
        (Destination(uri="http://["), "spec.sink.uri"),
        (Destination(ref=KReference(kind="Service", name="b", api_version="v1"), uri="//["), "spec.sink.uri"),
        (Destination(ref=KReference(name="b", api_version="v1")), "spec.sink.ref.kind"),
        (Destination(ref=KReference(kind="Broker", name="b")), "spec.sink.ref.apiVersion"),
    ],
)
def test_an_unusable_destination_is_refused_at_its_path(destination, path):
    assert [error.path for error in validate_destination(destination, "spec.sink")] == [path]
