import pytest

from core.resources import ObjectMeta, Registry, Resource
from core.resources.builtin import EVENT, KINDS
from penstock.apiserver.selectors import parse_selection
from penstock.apiserver.statuses import Refused
from tests.support.apiserver import WIDGET

EVENT_KIND = Registry(KINDS).get(EVENT)
RED = Resource(
    ref=WIDGET.ref,
    meta=ObjectMeta(name="red", namespace="default", labels={"colour": "red", "x.y/tier": "1", "empty": ""}),
    body={},
)


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("colour=red", True),
        ("colour==red", True),
        ("colour = red", True),
        ("colour=blue", False),
        ("colour!=blue", True),
        ("colour!=red", False),
        ("missing!=red", True),
        ("colour", True),
        ("!colour", False),
        ("!missing", True),
        ("empty=", True),
        ("colour in (blue, red)", True),
        ("colour in (blue)", False),
        ("colour notin (blue)", True),
        ("missing notin (blue)", True),
        ("x.y/tier=1,colour=red", True),
        ("x.y/tier=1,colour=blue", False),
        ("colour in (red,blue),!missing,empty=", True),
        ("", True),
    ],
)
def test_a_label_selector_selects(selector, matches):
    assert parse_selection(WIDGET, selector, "").matches(RED) is matches


@pytest.mark.parametrize("selector", ["=x", "a=b,", "a in b", "a in (b", "a b", "a=b c", ",", "a>1", "a=" + "é"])
def test_a_label_selector_that_cannot_be_read_is_refused_not_ignored(selector):
    with pytest.raises(Refused, match="labelSelector"):
        parse_selection(WIDGET, selector, "")


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("metadata.name=red", True),
        ("metadata.name!=red", False),
        ("metadata.namespace=default,metadata.name=red", True),
        ("metadata.name=red,metadata.namespace=other", False),
    ],
)
def test_a_field_selector_selects(selector, matches):
    assert parse_selection(WIDGET, "", selector).matches(RED) is matches


def test_events_are_selected_by_what_they_are_about():
    about = {"involvedObject": {"kind": "Widget", "name": "red", "uid": "1"}, "type": "Warning"}
    event = Resource(ref=EVENT, meta=ObjectMeta(name="e"), body=about)
    found = parse_selection(EVENT_KIND, "", "involvedObject.name=red,involvedObject.uid=1,type!=Normal")
    other = parse_selection(EVENT_KIND, "", "involvedObject.namespace=elsewhere")
    assert found.matches(event)
    assert not other.matches(event)


@pytest.mark.parametrize("selector", ["spec.size=1", "involvedObject.name=red", "metadata.name", "=x"])
def test_other_fields_are_refused(selector):
    with pytest.raises(Refused):
        parse_selection(WIDGET, "", selector)
