"""What the admission webhooks answer: defaults as a patch, rules as the embedded API server words them."""

import base64
import json
from typing import Any

import msgspec
import pytest

from core.resources import Resource
from penstock.apiserver.reviews import defaulted, read_review, validated
from penstock.apiserver.statuses import Refused
from tests.support.apiserver import GROUP, REGISTRY, ApiFixture, widget
from tests.support.virtual_time import run_virtual


def review(new: dict[str, Any] | None, old: dict[str, Any] | None = None, **changed: Any) -> bytes:
    """An AdmissionReview as an API server sends it."""
    name = (new or old or {}).get("metadata", {}).get("name", "")
    request = {
        "uid": "705ab4f5",
        "kind": {"group": GROUP, "version": "v1", "kind": "Widget"},
        "resource": {"group": GROUP, "version": "v1", "resource": "widgets"},
        "namespace": "default",
        "name": name,
        "operation": "CREATE" if old is None else "UPDATE",
        "userInfo": {"username": "admin"},
        "object": new,
        "oldObject": old,
        "options": {},
        "dryRun": False,
        **changed,
    }
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


def in_namespace(document: dict[str, Any], **meta: Any) -> dict[str, Any]:
    return {**document, "metadata": {**document["metadata"], "namespace": "default", **meta}}


def answered(answer: Any, body: bytes) -> dict[str, Any]:
    told = msgspec.json.decode(msgspec.json.encode(answer(read_review(body), REGISTRY)))
    assert (told["apiVersion"], told["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    assert told["response"]["uid"] == "705ab4f5"
    response: dict[str, Any] = told["response"]
    return response


def patch_of(response: dict[str, Any]) -> list[dict[str, Any]]:
    assert response["allowed"]
    if "patch" not in response:
        return []
    assert response["patchType"] == "JSONPatch"
    found: list[dict[str, Any]] = json.loads(base64.b64decode(response["patch"]))
    return found


def test_defaults_come_as_a_patch_and_only_where_something_is_missing():
    patch = patch_of(answered(defaulted, review(in_namespace(widget("a")))))
    assert patch == [{"op": "add", "path": "/spec", "value": {"size": 1, "colour": "red"}}]
    assert patch_of(answered(defaulted, review(in_namespace(widget("a", colour="blue"))))) == []


def test_a_resource_whose_name_is_still_to_be_generated_is_defaulted():
    document = in_namespace(widget(""), generateName="w-")
    del document["metadata"]["name"]
    assert patch_of(answered(defaulted, review(document)))


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(widget("a", size=101), id="a rule"),
        pytest.param(widget("a", size="large", parts=[{"name": 7}]), id="wrong types"),
        pytest.param(widget("a", sise=3), id="an unknown member"),
        pytest.param(widget("a", parts=[{"count": 1}]), id="a missing member"),
        pytest.param(widget("a", size=101, parts=[{"name": "x"}] * 3), id="two rules"),
    ],
)
def test_a_refusal_is_worded_as_the_embedded_api_server_words_it(document: dict[str, Any]):
    async def embedded() -> Any:
        api = ApiFixture()
        return (await api.call("POST", f"/apis/{GROUP}/v1/namespaces/default/widgets", document)).json

    response = answered(validated, review(in_namespace(document)))
    expected = run_virtual(embedded())
    assert not response["allowed"]
    assert response["status"] == expected
    assert response["status"]["code"] in (400, 422)


def test_an_update_is_judged_by_what_was_stored():
    old = in_namespace(widget("a", colour="red"), uid="u", resourceVersion="7")
    new = in_namespace(widget("a", colour="blue"), uid="u", resourceVersion="7")
    response = answered(validated, review(new, old))
    assert not response["allowed"]
    assert [cause["field"] for cause in response["status"]["details"]["causes"]] == ["spec.colour"]
    # What was stored without its defaults is compared as if it had them.
    assert answered(validated, review(old, in_namespace(widget("a"), uid="u")))["allowed"]


@pytest.mark.parametrize("answer", [defaulted, validated])
def test_what_breaks_a_rule_can_still_lose_its_finalizers_and_go(answer: Any):
    old = in_namespace(widget("a", size=999), uid="u", finalizers=["x/y"], resourceVersion="7")
    without = in_namespace(widget("a", size=999), uid="u", resourceVersion="7")
    assert answered(answer, review(without, old))["allowed"]
    ending = in_namespace(widget("a", size=999, colour="blue"), uid="u", deletionTimestamp="2026-01-01T00:00:00Z")
    assert answered(answer, review(ending, old))["allowed"]
    assert not answered(validated, review(in_namespace(widget("a", size=998), uid="u"), old))["allowed"]


def test_what_is_doubted_is_allowed_with_a_warning():
    response = answered(validated, review(in_namespace(widget("a", size=13))))
    assert response["allowed"]
    assert response["warnings"] == ['spec.size: brings "bad luck",\r\nas some say (got 13)']
    assert "warnings" not in answered(defaulted, review(in_namespace(widget("a", size=13))))
    assert "warnings" not in answered(validated, review(in_namespace(widget("a", size=12))))


def test_a_delete_is_nothing_to_judge():
    old = in_namespace(widget("a", size=999))
    assert answered(validated, review(None, old, operation="DELETE"))["allowed"]


def test_a_kind_that_is_not_ours_is_refused_and_says_whose_mistake_it_is():
    response = answered(validated, review(widget("a"), kind={"group": "", "version": "v1", "kind": "Pod"}))
    assert not response["allowed"]
    assert "webhook's rules" in response["status"]["message"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", review(widget("a")).replace(b"k8s.io/v1", b"k8s.io/v1beta1"), b'{"request": null}']
)
def test_a_body_that_is_no_review_is_refused(body: bytes):
    with pytest.raises(Refused) as refused:
        read_review(body)
    assert refused.value.status.code == 400


def test_a_patch_makes_what_the_embedded_api_server_stores():
    async def embedded() -> Any:
        return await ApiFixture().create(widget("a"))

    (change,) = patch_of(answered(defaulted, review(in_namespace(widget("a")))))
    assert Resource.from_dict(run_virtual(embedded())).spec == change["value"]
