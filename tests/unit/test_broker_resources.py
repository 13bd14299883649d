from typing import Any

import msgspec
import pytest

from broker.cesql import Expression
from broker.filters import ANYTHING, All, Cesql, Exact
from broker.filters import Any as AnyOf
from broker.resources import (
    BROKER_LABEL,
    CLASS_ANNOTATION,
    DEPENDENCY_ANNOTATION,
    KINDS,
    TriggerShape,
    compile_filter,
)
from core.resources import ObjectMeta, Resource

BROKER_KIND, TRIGGER_KIND = KINDS
TO = {"uri": "http://subscriber.test/"}


def broker(annotations: dict[str, str] | None = None, **spec: Any) -> Resource:
    meta = ObjectMeta(name="default", namespace="ns", annotations=annotations or {})
    return BROKER_KIND.default(Resource(ref=BROKER_KIND.ref, meta=meta, body={"spec": spec} if spec else {}))


def trigger(annotations: dict[str, str] | None = None, **spec: Any) -> Resource:
    meta = ObjectMeta(name="t", namespace="ns", annotations=annotations or {}, labels={"mine": "kept"})
    body = {"spec": {"subscriber": TO, **spec}}
    return TRIGGER_KIND.default(Resource(ref=TRIGGER_KIND.ref, meta=meta, body=body))


def rules(resource: Resource, old: Resource | None = None) -> list[str]:
    kind = BROKER_KIND if resource.ref == BROKER_KIND.ref else TRIGGER_KIND
    return [error.path for error in kind.validate(resource, old)]


# ---- defaults


def test_a_broker_gets_its_class_and_knatives_delivery_defaults():
    made = broker()
    assert made.meta.annotations[CLASS_ANNOTATION] == "Penstock"
    assert made.spec["delivery"] == {"retry": 10, "backoffPolicy": "exponential", "backoffDelay": "PT0.2S"}
    assert rules(made) == []


def test_knatives_own_class_is_read_as_the_default():
    assert broker({CLASS_ANNOTATION: "MTChannelBasedBroker"}).meta.annotations[CLASS_ANNOTATION] == "Penstock"


def test_a_brokers_own_delivery_is_left_as_it_is():
    assert broker(delivery={"retry": 2}).spec["delivery"] == {"retry": 2}


def test_references_get_the_namespace_of_who_refers():
    ref = {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "scan"}
    made = trigger(subscriber={"ref": ref}, delivery={"deadLetterSink": {"ref": {**ref, "namespace": "other"}}})
    assert made.spec["subscriber"]["ref"]["namespace"] == "ns"
    assert made.spec["delivery"]["deadLetterSink"]["ref"]["namespace"] == "other"
    assert "namespace" not in ref, "a default must not change what it was given"
    assert broker(config={"kind": "ConfigMap", "name": "c", "apiVersion": "v1"}).spec["config"]["namespace"] == "ns"


def test_a_trigger_gets_the_default_broker_a_filter_and_its_brokers_label():
    made = trigger()
    assert made.spec["broker"] == "default"
    assert made.spec["filter"] == {}
    assert made.meta.labels == {"mine": "kept", BROKER_LABEL: "default"}
    assert rules(made) == []


# ---- rules


@pytest.mark.parametrize(
    ("annotations", "spec", "broken"),
    [
        pytest.param({CLASS_ANNOTATION: "Rabbit"}, {}, f"metadata.annotations[{CLASS_ANNOTATION}]", id="unknown class"),
        pytest.param({}, {"config": {"name": "c"}}, "spec.config.kind", id="config without kind"),
        pytest.param({}, {"delivery": {"retry": -1}}, "spec.delivery.retry", id="negative retry"),
        pytest.param({}, {"delivery": {"retry": 10_000}}, "spec.delivery.retry", id="endless retry"),
        pytest.param({}, {"delivery": {"backoffPolicy": "random"}}, "spec.delivery.backoffPolicy", id="policy"),
        pytest.param({}, {"delivery": {"backoffDelay": "1s"}}, "spec.delivery.backoffDelay", id="a Go duration"),
        pytest.param({}, {"delivery": {"timeout": "PT0S"}}, "spec.delivery.timeout", id="no time at all"),
        pytest.param({}, {"delivery": {"retryAfterMax": "x"}}, "spec.delivery.retryAfterMax", id="retryAfterMax"),
        pytest.param({}, {"delivery": {"format": "avro"}}, "spec.delivery.format", id="format"),
        pytest.param({}, {"delivery": {"deadLetterSink": {}}}, "spec.delivery.deadLetterSink", id="empty sink"),
    ],
)
def test_a_broker_that_breaks_a_rule_is_refused_with_the_field(annotations, spec, broken):
    assert rules(broker(annotations, **spec)) == [broken]


@pytest.mark.parametrize(
    ("spec", "broken"),
    [
        pytest.param({"subscriber": None}, "spec.subscriber", id="no subscriber"),
        pytest.param({"subscriber": {"uri": "/path"}}, "spec.subscriber.uri", id="relative uri"),
        pytest.param({"filter": {"attributes": {"Type": "x"}}}, "spec.filter.attributes[Type]", id="attribute name"),
        pytest.param({"filters": [{"exact": {"ty-pe": "x"}}]}, "spec.filters[0].exact[ty-pe]", id="name in filters"),
        pytest.param({"filters": [{"exact": {"type": ""}}]}, "spec.filters[0].exact[type]", id="empty value"),
        pytest.param({"filters": [{"prefix": {}}]}, "spec.filters[0].prefix", id="empty dialect"),
        pytest.param({"filters": [{"all": []}]}, "spec.filters[0].all", id="empty all"),
        pytest.param({"filters": [{"any": []}]}, "spec.filters[0].any", id="empty any"),
        pytest.param({"filters": [{"not": {}}]}, "spec.filters[0].not", id="empty not"),
        pytest.param(
            {"filters": [{}, {"any": [{"all": [{}]}]}]}, "spec.filters[1].any[0].all[0]", id="empty, deep down"
        ),
        pytest.param({"filters": [{"exact": {"a": "b"}, "suffix": {"a": "b"}}]}, "spec.filters[0]", id="two dialects"),
        pytest.param({"filters": [{"cesql": "type ="}]}, "spec.filters[0].cesql", id="cesql"),
        pytest.param({"filters": [{"cesql": ""}]}, "spec.filters[0].cesql", id="empty cesql"),
        pytest.param({"filters": [{"exact": {"a": "b"}}] * 201}, "spec.filters", id="too many"),
        pytest.param({"delivery": {"backoffDelay": "soon"}}, "spec.delivery.backoffDelay", id="delivery"),
    ],
)
def test_a_trigger_that_breaks_a_rule_is_refused_with_the_field(spec, broken):
    assert rules(trigger(**spec)) == [broken]


def test_an_annotation_that_cannot_be_read_is_refused_with_its_name():
    assert rules(trigger({"delivery.penstock.dev/rate": "10/s", "example.com/rate": "any"})) == []
    assert rules(trigger({"delivery.penstock.dev/rate": "fast"})) == [
        "metadata.annotations[delivery.penstock.dev/rate]"
    ]


def test_an_expression_is_refused_with_the_place_and_what_should_stand_there():
    (error,) = TRIGGER_KIND.validate(trigger(filters=[{"not": {"cesql": "type LIKE 5"}}]), None)
    assert error.path == "spec.filters[0].not.cesql"
    assert error.value == "type LIKE 5"
    assert error.rule == (
        "is not a CloudEvents SQL expression: at column 11: found '5', expected a string in quotes after LIKE"
    )


def test_an_expression_with_a_function_that_there_is_not_is_refused():
    wrong, unknown = TRIGGER_KIND.validate(trigger(filters=[{"cesql": "TRUE OR ABS(1, 2) = SQRT(2)"}]), None)
    assert wrong.rule == "ABS does not take 2 arguments: there is ABS(Integer)"
    assert unknown.rule.startswith("there is no function SQRT: there are ABS, BOOL,")


def test_an_expression_that_hardly_anybody_means_is_doubted_with_its_path():
    doubted = trigger(filters=[{"exact": {"type": "x"}}, {"any": [{"not": {"cesql": "LENGTH(subject)"}}]}])
    assert rules(doubted) == []
    (doubt,) = TRIGGER_KIND.doubts(doubted)
    assert str(doubt) == (
        "spec.filters[1].any[0].not.cesql: gives an Integer, and a filter needs a Boolean: no event passes"
    )


@pytest.mark.parametrize(
    ("annotation", "broken"),
    [
        ("{", ""),
        ('{"name": "x", "apiVersion": "v1"}', ".kind"),
        ('{"kind": "PingSource", "name": "x", "apiVersion": "v1", "namespace": "other"}', ".namespace"),
    ],
)
def test_a_dependency_must_be_a_whole_reference_in_the_own_namespace(annotation, broken):
    assert rules(trigger({DEPENDENCY_ANNOTATION: annotation})) == [
        f"metadata.annotations[{DEPENDENCY_ANNOTATION}]{broken}"
    ]


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        pytest.param(trigger(), trigger(broker="other"), ["spec.broker"], id="a Trigger's Broker"),
        pytest.param(trigger(), trigger(subscriber={"uri": "http://x/"}), [], id="a subscriber may change"),
        pytest.param(
            broker(), broker(config={"kind": "ConfigMap", "name": "c"}), ["spec.config"], id="a Broker's config"
        ),
        pytest.param(broker(), broker(delivery={"retry": 1}), [], id="a Broker's delivery may change"),
        pytest.param(
            broker().with_meta(annotations={CLASS_ANNOTATION: "Redis"}),
            broker(),
            [f"metadata.annotations[{CLASS_ANNOTATION}]"],
            id="a Broker's class",
        ),
    ],
)
def test_what_is_immutable_stays(old, new, broken):
    assert rules(new, old) == broken


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"filter": {"attributes": {"count": 5}}}, id="a number for a string"),
        pytest.param({"filters": [{"exakt": {"type": "x"}}]}, id="an unknown dialect"),
        pytest.param({"filters": {"exact": {"type": "x"}}}, id="no list"),
        pytest.param({"brocker": "x"}, id="an unknown field"),
    ],
)
def test_a_filter_or_field_of_another_shape_is_not_read(spec):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"subscriber": TO, **spec}, TriggerShape)


# ---- compiled filters


@pytest.mark.parametrize(
    ("spec", "compiled"),
    [
        ({}, ANYTHING),
        ({"filter": {}}, ANYTHING),
        ({"filters": []}, ANYTHING),
        ({"filter": {"attributes": {"type": "x", "source": ""}}}, Exact((("source", ""), ("type", "x")))),
        ({"filters": [{"exact": {"type": "x"}}]}, All((Exact((("type", "x"),)),))),
        ({"filters": [{}]}, All((ANYTHING,))),
        ({"filters": [{"cesql": "TYPE = 'x'"}]}, All((Cesql(Expression('type = "x"')),))),
        (
            {"filter": {"attributes": {"type": "y"}}, "filters": [{"any": [{"exact": {"type": "x"}}]}]},
            All((AnyOf((Exact((("type", "x"),)),)),)),
        ),
    ],
    ids=[
        "none",
        "empty filter",
        "empty filters",
        "attributes",
        "filters",
        "accepts all",
        "cesql",
        "filters replace filter",
    ],
)
def test_a_spec_compiles_to_its_filter(spec, compiled):
    assert compile_filter(msgspec.convert(spec, TriggerShape)) == compiled


def test_a_stored_filter_that_cannot_be_read_is_an_error_and_not_an_open_door():
    with pytest.raises(ValueError, match=r"spec\.filters\[0\]\.any\[1\]\.cesql"):
        compile_filter(msgspec.convert({"filters": [{"any": [{"cesql": "TRUE"}, {"cesql": "TRUE("}]}]}, TriggerShape))
