"""The verbs, through the whole application but without sockets."""

from typing import Any

import msgspec
import pytest

from core.control.memory import MemoryStore
from core.errors import Conflict, Unavailable
from core.limits import MAX_RESOURCE_BYTES
from core.resources import Key, Resource, owner_reference
from core.resources.builtin import CONFIG_MAP, NAMESPACE
from penstock.apiserver.exchange import MAX_BODY_BYTES
from tests.support.apiserver import ALL_WIDGETS, BASINS, CONFIG_MAPS, GROUP, WIDGET, WIDGETS, ApiFixture, widget

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"


@pytest.fixture
def api() -> ApiFixture:
    return ApiFixture()


async def test_a_created_resource_is_defaulted_and_can_be_read(api):
    created = await api.create(widget("a"))
    read = await api.get(f"{WIDGETS}/a")
    assert created["spec"] == {"size": 1, "colour": "red"}
    assert created["metadata"]["namespace"] == "default"
    assert created["metadata"]["generation"] == 1
    assert read.code == 200
    assert read.json == created
    assert list(read.json) == ["apiVersion", "kind", "metadata", "spec"]


async def test_what_only_the_store_may_fill_is_not_taken_from_a_create(api):
    document = widget("a") | {"status": {"made": True}}
    document["metadata"] |= {"uid": "mine", "generation": 9, "creationTimestamp": None, "managedFields": [{}]}
    created = await api.create(document)
    assert "status" not in created
    assert created["metadata"]["uid"] != "mine"
    assert created["metadata"]["generation"] == 1
    assert "managedFields" not in created["metadata"]


async def test_a_name_can_be_generated(api):
    document = {"metadata": {"generateName": "job-"}, "spec": {"size": 1}}
    names = {(await api.create(document))["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("job-") and len(name) == 9 for name in names)


async def test_yaml_bodies_are_taken(api):
    text = b"apiVersion: testing.penstock.dev/v1\nkind: Widget\nmetadata: {name: a}\nspec: {size: 3}\n"
    answer = await api.call("POST", WIDGETS, text, content_type="application/yaml")
    assert answer.code == 201
    assert answer.json["spec"]["size"] == 3


REFUSALS = [
    pytest.param(
        "POST", WIDGETS, widget("Bad_Name"), 422, "Invalid", 'metadata.name: Invalid value: "Bad_Name"', id="name"
    ),
    pytest.param("POST", WIDGETS, {"spec": {"size": 1}}, 422, "Invalid", "metadata.name: Required value", id="no name"),
    pytest.param(
        "POST",
        WIDGETS,
        widget("a", size=101),
        422,
        "Invalid",
        "spec.size: Invalid value: 101: must be at most 100",
        id="rule",
    ),
    pytest.param(
        "POST",
        WIDGETS,
        widget("a", size="x", colour="green"),
        422,
        "Invalid",
        'Widget.testing.penstock.dev "a" is invalid: [spec.size: Invalid value: "x": must be an integer, not a string, '
        'spec.colour: Invalid value: "green": must be one of "red", "blue"]',
        id="types",
    ),
    pytest.param(
        "POST",
        WIDGETS,
        widget("a", foo=1, parts=[{"name": "p", "bar": 1}]),
        400,
        "BadRequest",
        'Widget in version "v1" cannot be handled as a Widget: strict decoding error: '
        'unknown field "spec.foo", unknown field "spec.parts[0].bar"',
        id="unknown",
    ),
    pytest.param(
        "POST",
        WIDGETS,
        widget("a") | {"spce": {}},
        400,
        "BadRequest",
        'unknown field "spce" (did you mean "spec"?)',
        id="top",
    ),
    pytest.param(
        "POST",
        WIDGETS,
        {"metadata": {"nmae": "a"}, "spec": {"size": 1}},
        400,
        "BadRequest",
        '"metadata.nmae"',
        id="meta",
    ),
    pytest.param("POST", WIDGETS, widget("a") | {"kind": "Gadget"}, 400, "BadRequest", "'Gadget'", id="other kind"),
    pytest.param(
        "POST", WIDGETS, widget("a") | {"apiVersion": "v2"}, 400, "BadRequest", "apiVersion", id="other version"
    ),
    pytest.param("POST", WIDGETS, widget("a") | {"status": "ok"}, 422, "Invalid", "status: Invalid value", id="status"),
    pytest.param(
        "POST",
        WIDGETS,
        {"metadata": {"name": "a", "namespace": "other"}, "spec": {"size": 1}},
        400,
        "BadRequest",
        "does not match the namespace sent on the request (default)",
        id="namespace",
    ),
    pytest.param(
        "POST",
        BASINS,
        {"metadata": {"name": "a", "namespace": "x"}},
        422,
        "Invalid",
        "metadata.namespace",
        id="cluster-scoped",
    ),
    pytest.param(
        "POST",
        WIDGETS.replace("default", "No_Good"),
        widget("a"),
        422,
        "Invalid",
        'metadata.namespace: Invalid value: "No_Good"',
        id="namespace name",
    ),
    pytest.param("POST", WIDGETS, [widget("a")], 400, "BadRequest", "not a list", id="list"),
    pytest.param("POST", WIDGETS, b"{", 400, "BadRequest", "not JSON", id="not JSON"),
    pytest.param("POST", WIDGETS, b"", 400, "BadRequest", "no body", id="no body"),
    pytest.param(
        "POST",
        WIDGETS,
        {"metadata": {"name": "a", "resourceVersion": "4"}, "spec": {"size": 1}},
        400,
        "BadRequest",
        "resourceVersion",
        id="version",
    ),
    pytest.param("POST", WIDGETS + "?dryRun=maybe", widget("a"), 400, "BadRequest", "dryRun", id="dry run"),
    pytest.param(
        "POST", WIDGETS + "?fieldValidation=Lax", widget("a"), 400, "BadRequest", "fieldValidation", id="policy"
    ),
    pytest.param("POST", ALL_WIDGETS, widget("a"), 405, "MethodNotAllowed", "name the namespace", id="all namespaces"),
    pytest.param("PUT", WIDGETS, widget("a"), 405, "MethodNotAllowed", "GET, POST, DELETE", id="put collection"),
    pytest.param(
        "POST", WIDGETS + "/a", widget("a"), 405, "MethodNotAllowed", "GET, PUT, PATCH, DELETE", id="post object"
    ),
    pytest.param("DELETE", WIDGETS + "/a/status", None, 405, "MethodNotAllowed", "GET, PUT, PATCH", id="delete status"),
    pytest.param("POST", "/apis", None, 405, "MethodNotAllowed", "GET", id="post discovery"),
    pytest.param(
        "GET", WIDGETS + "/a", None, 404, "NotFound", 'widgets.testing.penstock.dev "a" not found', id="absent"
    ),
    pytest.param("GET", CONFIG_MAPS + "/a", None, 404, "NotFound", 'configmaps "a" not found', id="absent core"),
    pytest.param("DELETE", WIDGETS + "/a", None, 404, "NotFound", '"a" not found', id="delete absent"),
    pytest.param("PUT", WIDGETS + "/a", widget("a"), 404, "NotFound", '"a" not found', id="put absent"),
    pytest.param("GET", f"/apis/{GROUP}/v1/gadgets", None, 404, "NotFound", "could not find", id="unknown plural"),
    pytest.param("GET", f"/apis/{GROUP}/v9", None, 404, "NotFound", "could not find", id="unknown version"),
    pytest.param("GET", "/apis/no.such.group", None, 404, "NotFound", "could not find", id="unknown group"),
    pytest.param("GET", f"/apis/{GROUP}/v1/widgets/a", None, 404, "NotFound", "could not find", id="no namespace"),
    pytest.param(
        "GET", f"/apis/{GROUP}/v1alpha1/namespaces/x/basins", None, 404, "NotFound", "could", id="one too many"
    ),
    pytest.param("GET", WIDGETS + "/a/scale", None, 404, "NotFound", "could not find", id="subresource"),
    pytest.param("GET", CONFIG_MAPS + "/a/status", None, 404, "NotFound", "could not find", id="no status"),
    pytest.param("GET", WIDGETS + "?limit=-1", None, 400, "BadRequest", "limit", id="limit"),
    pytest.param("GET", WIDGETS + "?watch=maybe", None, 400, "BadRequest", "watch must be true or false", id="flag"),
    pytest.param("GET", WIDGETS + "?continue=nonsense", None, 400, "BadRequest", "continue", id="continue"),
    pytest.param("GET", WIDGETS + "?labelSelector=a=b,", None, 400, "BadRequest", "labelSelector", id="selector"),
    pytest.param("GET", WIDGETS + "?fieldSelector=spec.size=1", None, 400, "BadRequest", "field label", id="field"),
    pytest.param(
        "GET", WIDGETS + "?resourceVersion=99", None, 504, "Timeout", "Too large resource version", id="future"
    ),
    pytest.param("GET", WIDGETS + "?" + "&".join(["a=1"] * 99), None, 400, "BadRequest", "query string", id="query"),
    pytest.param("PATCH", WIDGETS + "/a", {}, 415, "UnsupportedMediaType", MERGE, id="patch type"),
]


@pytest.mark.parametrize(("method", "target", "body", "code", "reason", "message"), REFUSALS)
async def test_a_refusal_is_a_status_that_says_what_is_wrong(api, method, target, body, code, reason, message):
    answer = await api.call(method, target, body)
    status = answer.json
    assert (answer.code, status["code"]) == (code, code)
    assert (status["kind"], status["apiVersion"], status["status"]) == ("Status", "v1", "Failure")
    assert status["reason"] == reason
    assert message in status["message"]


async def test_an_invalid_resource_lists_each_broken_rule_as_a_cause(api):
    answer = await api.call("POST", WIDGETS, widget("a", size=101, parts=[{"name": n} for n in "abc"]))
    assert answer.json["details"] == {
        "name": "a",
        "group": GROUP,
        "kind": "Widget",
        "causes": [
            {
                "reason": "FieldValueInvalid",
                "message": "Invalid value: 101: must be at most 100",
                "field": "spec.size",
            },
            {
                "reason": "FieldValueInvalid",
                "message": "Invalid value: may have at most 2 entries",
                "field": "spec.parts",
            },
        ],
    }


async def test_a_taken_name_is_refused(api):
    await api.create(widget("a"))
    answer = await api.call("POST", WIDGETS, widget("a"))
    assert answer.code == 409
    assert answer.json["reason"] == "AlreadyExists"
    assert answer.json["details"] == {"name": "a", "group": GROUP, "kind": "widgets"}


@pytest.mark.parametrize(("policy", "warnings"), [("Warn", '299 - "unknown field \\"spec.foo\\""'), ("Ignore", None)])
async def test_unknown_fields_can_be_dropped_with_or_without_a_warning(api, policy, warnings):
    answer = await api.call("POST", f"{WIDGETS}?fieldValidation={policy}", widget("a", foo=[1]))
    assert answer.code == 201
    assert answer.json["spec"] == {"size": 1, "colour": "red"}
    assert answer.headers.get("warning") == warnings


async def test_what_is_doubted_is_stored_with_a_warning_in_one_line(api):
    doubt = '299 - "spec.size: brings \\"bad luck\\", as some say (got 13)"'
    created = await api.call("POST", WIDGETS, widget("a", size=13))
    assert (created.code, created.headers.get("warning")) == (201, doubt)
    changed = await api.call(
        "PATCH", f"{WIDGETS}/a", {"spec": {"size": 1}}, content_type="application/merge-patch+json"
    )
    assert (changed.code, changed.headers.get("warning")) == (200, None)
    back = await api.call("PATCH", f"{WIDGETS}/a", {"spec": {"size": 13}}, content_type="application/merge-patch+json")
    assert (back.code, back.headers.get("warning")) == (200, doubt)
    told = await api.call("PUT", f"{WIDGETS}/a/status", {**back.json, "status": {"x": 1}})
    assert (told.code, told.headers.get("warning")) == (200, None)


async def test_a_resource_that_is_too_large_is_refused(api):
    big = {"metadata": {"name": "a"}, "data": {"k": "v" * MAX_RESOURCE_BYTES}}
    answer = await api.call("POST", CONFIG_MAPS, big)
    assert answer.code == 413
    assert answer.json["reason"] == "RequestEntityTooLarge"


async def test_a_body_that_is_too_large_is_refused_unread(api):
    answer = await api.call("POST", CONFIG_MAPS, b" " * (MAX_BODY_BYTES + 1))
    assert answer.code == 413
    assert str(MAX_BODY_BYTES) in answer.message


@pytest.mark.parametrize(("depth", "code"), [(90, 201), (110, 400), (5_000, 400), (200_000, 400)])
async def test_a_document_nested_too_deeply_is_the_senders_fault(api, depth, code):
    body = b'{"metadata":{"name":"a"},"data":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
    assert (await api.call("POST", CONFIG_MAPS, body)).code == code


class TestUpdate:
    async def test_replaces_what_is_wanted_and_keeps_status_and_what_the_store_owns(self, api):
        created = await api.create(widget("a"))
        await api.call("PUT", f"{WIDGETS}/a/status", created | {"status": {"made": 1}})
        answer = await api.call("PUT", f"{WIDGETS}/a", widget("a", size=5) | {"status": {"made": 2}})
        assert answer.code == 200
        assert answer.json["spec"]["size"] == 5
        assert answer.json["status"] == {"made": 1}
        assert answer.json["metadata"]["uid"] == created["metadata"]["uid"]
        assert answer.json["metadata"]["generation"] == 2

    async def test_of_another_version_than_the_stored_one_conflicts(self, api):
        created = await api.create(widget("a"))
        await api.call("PUT", f"{WIDGETS}/a", widget("a", size=2))
        answer = await api.call("PUT", f"{WIDGETS}/a", created)
        assert answer.code == 409
        assert answer.json["reason"] == "Conflict"
        assert "has been modified" in answer.message

    async def test_of_another_uid_conflicts(self, api):
        await api.create(widget("a"))
        document = widget("a")
        document["metadata"]["uid"] = "other"
        assert (await api.call("PUT", f"{WIDGETS}/a", document)).code == 409

    async def test_cannot_rename(self, api):
        await api.create(widget("a"))
        answer = await api.call("PUT", f"{WIDGETS}/a", widget("b"))
        assert answer.code == 400
        assert "the name on the URL (a)" in answer.message

    async def test_holds_the_rules_about_what_may_change(self, api):
        await api.create(widget("a"))
        answer = await api.call("PUT", f"{WIDGETS}/a", widget("a", colour="blue"))
        assert answer.code == 422
        assert 'spec.colour: Invalid value: "blue": is immutable' in answer.message

    async def test_that_changes_nothing_writes_nothing(self, api):
        created = await api.create(widget("a"))
        assert (await api.call("PUT", f"{WIDGETS}/a", created)).json == created

    async def test_cannot_add_a_finalizer_to_what_is_being_deleted(self, api):
        document = widget("a")
        document["metadata"]["finalizers"] = ["x.y/z"]
        await api.create(document)
        await api.call("DELETE", f"{WIDGETS}/a")
        document["metadata"]["finalizers"].append("x.y/more")
        answer = await api.call("PUT", f"{WIDGETS}/a", document)
        assert answer.code == 422
        assert "metadata.finalizers" in answer.message


class TestStatus:
    async def test_is_read_and_written_beside_the_rest(self, api):
        created = await api.create(widget("a"))
        answer = await api.call("PUT", f"{WIDGETS}/a/status", created | {"spec": {"size": 9}, "status": {"made": 1}})
        assert answer.code == 200
        assert answer.json["status"] == {"made": 1}
        assert answer.json["spec"] == created["spec"]
        assert answer.json["metadata"]["generation"] == 1
        assert (await api.get(f"{WIDGETS}/a/status")).json == answer.json

    async def test_takes_patches(self, api):
        await api.create(widget("a"))
        patch = {"status": {"made": 1}, "spec": {"size": 9}}
        answer = await api.call("PATCH", f"{WIDGETS}/a/status", patch, content_type=MERGE)
        assert answer.json["status"] == {"made": 1}
        assert answer.json["spec"]["size"] == 1

    async def test_of_an_old_version_conflicts(self, api):
        created = await api.create(widget("a"))
        await api.call("PATCH", f"{WIDGETS}/a/status", {"status": {"made": 1}}, content_type=MERGE)
        assert (await api.call("PUT", f"{WIDGETS}/a/status", created | {"status": {}})).code == 409


class TestPatch:
    @pytest.mark.parametrize(
        ("content_type", "patch"),
        [
            (MERGE, {"spec": {"size": 7, "parts": [{"name": "p"}]}}),
            (
                JSON_PATCH,
                [
                    {"op": "test", "path": "/spec/size", "value": 1},
                    {"op": "replace", "path": "/spec/size", "value": 7},
                    {"op": "add", "path": "/spec/parts", "value": [{"name": "p"}]},
                ],
            ),
            (APPLY + "; charset=utf-8", {"spec": {"size": 7, "parts": [{"name": "p"}]}}),
        ],
    )
    async def test_changes_a_part(self, api, content_type, patch):
        await api.create(widget("a"))
        target = f"{WIDGETS}/a?fieldManager=me"
        answer = await api.call("PATCH", target, patch, content_type=content_type)
        assert answer.code == 200
        assert answer.json["spec"] == {"size": 7, "colour": "red", "parts": [{"name": "p"}]}

    async def test_of_a_custom_kind_is_never_strategic(self, api):
        await api.create(widget("a"))
        answer = await api.call("PATCH", f"{WIDGETS}/a", {}, content_type=STRATEGIC)
        assert answer.code == 415
        assert f"use {MERGE}" in answer.message

    async def test_of_a_kubernetes_kind_may_be_strategic(self, api):
        await api.create({"metadata": {"name": "c"}, "data": {"a": "1", "b": "2"}}, CONFIG_MAPS)
        patch = {"data": {"$patch": "replace", "c": "3"}}
        answer = await api.call("PATCH", f"{CONFIG_MAPS}/c", patch, content_type=STRATEGIC)
        assert answer.json["data"] == {"c": "3"}

    @pytest.mark.parametrize(
        ("content_type", "patch", "code", "message"),
        [
            (MERGE, {"spec": {"size": "x"}}, 422, "must be an integer"),
            (MERGE, {"spec": {"sise": 1}}, 400, "unknown field"),
            (MERGE, {"metadata": {"name": "b"}}, 400, "cannot be renamed"),
            (MERGE, {"metadata": {"resourceVersion": "1"}}, 409, "modified"),
            (MERGE, [], 400, "must be an object"),
            (JSON_PATCH, [{"op": "remove", "path": "/spec/none"}], 422, "operation 0: /spec/none does not exist"),
            (JSON_PATCH, [{"op": "replace", "path": "", "value": 3}], 400, "must be one Widget"),
            (JSON_PATCH, {}, 422, "list of operations"),
            (MERGE, b"{", 400, "not JSON"),
            (APPLY, b"a: [", 400, "not YAML"),
            (APPLY, {"metadata": {"managedFields": [{}]}}, 400, "managedFields"),
        ],
    )
    async def test_that_breaks_a_rule_changes_nothing(self, api, content_type, patch, code, message):
        created = await api.create(widget("a"))
        answer = await api.call("PATCH", f"{WIDGETS}/a?fieldManager=me", patch, content_type=content_type)
        assert answer.code == code
        assert message in answer.message
        assert (await api.get(f"{WIDGETS}/a")).json == created

    async def test_removing_the_last_finalizer_of_what_is_being_deleted_deletes_it(self, api):
        document = widget("a")
        document["metadata"]["finalizers"] = ["x.y/z"]
        await api.create(document)
        pending = await api.call("DELETE", f"{WIDGETS}/a")
        assert pending.json["metadata"]["deletionTimestamp"]
        await api.call("PATCH", f"{WIDGETS}/a", {"metadata": {"finalizers": None}}, content_type=MERGE)
        assert (await api.get(f"{WIDGETS}/a")).code == 404


class RacingStore(MemoryStore):
    """Another writer is always a little faster."""

    races = 0

    async def update(self, resource: Resource) -> Resource:
        if self.races > 0:
            self.races -= 1
            raise Conflict("somebody else was faster")
        return await super().update(resource)


async def test_a_patch_is_tried_again_when_somebody_else_writes_in_between():
    store = RacingStore()
    api = ApiFixture(store)
    await api.create(widget("a"))
    store.races = 4
    answer = await api.call("PATCH", f"{WIDGETS}/a", {"spec": {"size": 2}}, content_type=MERGE)
    assert (answer.code, store.races) == (200, 0)
    store.races = 5
    answer = await api.call("PATCH", f"{WIDGETS}/a", {"spec": {"size": 3}}, content_type=MERGE)
    assert answer.code == 409
    assert "others kept changing it" in answer.message


class TestApply:
    async def apply(self, api: ApiFixture, manager: str, spec: dict[str, Any], query: str = "") -> Any:
        body = msgspec.json.encode(
            {"apiVersion": f"{GROUP}/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": spec}
        )
        return await api.call("PATCH", f"{WIDGETS}/a?fieldManager={manager}{query}", body, content_type=APPLY)

    async def test_creates_what_is_not_there(self, api):
        answer = await self.apply(api, "ann", {"size": 1})
        assert answer.code == 201
        assert answer.json["spec"] == {"size": 1, "colour": "red"}
        assert [entry["manager"] for entry in answer.json["metadata"]["managedFields"]] == ["ann"]

    async def test_again_changes_nothing(self, api):
        first = await self.apply(api, "ann", {"size": 1, "parts": [{"name": "p"}]})
        api.clock.now_s += 60
        again = await self.apply(api, "ann", {"size": 1, "parts": [{"name": "p"}]})
        assert again.code == 200
        assert again.json == first.json

    async def test_conflicts_with_another_manager_unless_forced(self, api):
        await self.apply(api, "ann", {"size": 1})
        refused = await self.apply(api, "bob", {"size": 2})
        assert refused.code == 409
        assert refused.json["details"]["causes"] == [
            {"reason": "FieldManagerConflict", "message": 'conflict with "ann"', "field": ".spec.size"}
        ]
        forced = await self.apply(api, "bob", {"size": 2}, "&force=true")
        assert forced.json["spec"]["size"] == 2

    async def test_of_a_document_that_is_not_whole_says_what_is_missing(self, api):
        answer = await self.apply(api, "ann", {})
        assert answer.code == 422
        assert "spec.size: Required value" in answer.message

    async def test_warns_of_unknown_fields_where_asked_to(self, api):
        answer = await self.apply(api, "ann", {"size": 1, "foo": 1}, "&fieldValidation=Warn")
        assert answer.code == 201
        assert "spec.foo" in answer.headers["warning"]

    async def test_needs_a_manager_and_is_not_for_status(self, api):
        await api.create(widget("a"))
        nameless = await api.call("PATCH", f"{WIDGETS}/a", {}, content_type=APPLY)
        status = await api.call("PATCH", f"{WIDGETS}/a/status?fieldManager=me", {}, content_type=APPLY)
        assert (nameless.code, status.code) == (400, 415)


class TestDryRun:
    async def test_of_a_create_answers_as_if_and_stores_nothing(self, api):
        answer = await api.call("POST", f"{WIDGETS}?dryRun=All", widget("a"))
        assert answer.code == 201
        assert answer.json["spec"]["colour"] == "red"
        assert answer.json["metadata"]["uid"]
        assert (await api.get(f"{WIDGETS}/a")).code == 404

    async def test_of_a_create_in_a_new_namespace_leaves_no_namespace(self, api):
        await api.call("POST", WIDGETS.replace("default", "new") + "?dryRun=All", widget("a"))
        assert (await api.get("/api/v1/namespaces/new")).code == 404

    async def test_of_a_taken_name_says_so(self, api):
        await api.create(widget("a"))
        assert (await api.call("POST", f"{WIDGETS}?dryRun=All", widget("a"))).code == 409

    async def test_of_other_writes_stores_nothing(self, api):
        created = await api.create(widget("a"))
        target = f"{WIDGETS}/a?dryRun=All"
        put = await api.call("PUT", target, widget("a", size=2))
        patched = await api.call("PATCH", target, {"spec": {"size": 3}}, content_type=MERGE)
        status = await api.call("PUT", f"{WIDGETS}/a/status?dryRun=All", created | {"status": {"made": 1}})
        deleted = await api.call("DELETE", target)
        in_body = await api.call("DELETE", f"{WIDGETS}/a", {"dryRun": ["All"]})
        all_of_them = await api.call("DELETE", f"{WIDGETS}?dryRun=All")
        assert [put.json["spec"]["size"], patched.json["spec"]["size"]] == [2, 3]
        assert status.json["status"] == {"made": 1}
        assert (deleted.code, in_body.code, len(all_of_them.json["items"])) == (200, 200, 1)
        assert (await api.get(f"{WIDGETS}/a")).json == created


class TestDelete:
    async def test_answers_with_a_status_that_names_what_is_gone(self, api):
        created = await api.create(widget("a"))
        answer = await api.call("DELETE", f"{WIDGETS}/a", {"kind": "DeleteOptions", "propagationPolicy": "Background"})
        assert answer.json["status"] == "Success"
        assert answer.json["details"] == {
            "name": "a",
            "group": GROUP,
            "kind": "widgets",
            "uid": created["metadata"]["uid"],
        }
        assert (await api.get(f"{WIDGETS}/a")).code == 404

    @pytest.mark.parametrize(
        ("options", "code"),
        [
            ({"preconditions": {"uid": "other"}}, 409),
            ({"preconditions": {"resourceVersion": "99"}}, 409),
            ({"propagationPolicy": "Sideways"}, 400),
            ([], 400),
            ({"preconditions": {}}, 200),
            ({"gracePeriodSeconds": 0, "propagationPolicy": "Foreground"}, 200),
        ],
    )
    async def test_holds_preconditions(self, api, options, code):
        await api.create(widget("a"))
        assert (await api.call("DELETE", f"{WIDGETS}/a", options)).code == code

    async def test_can_leave_the_dependents_without_their_owner(self, api):
        await api.create(widget("owner"))
        owner = await api.store.get(Key(WIDGET.ref, "default", "owner"))
        dependent = widget("dependent")
        dependent["metadata"]["ownerReferences"] = [msgspec.to_builtins(owner_reference(owner))]
        await api.create(dependent)
        await api.call("DELETE", f"{WIDGETS}/owner?propagationPolicy=Orphan")
        assert "ownerReferences" not in (await api.get(f"{WIDGETS}/dependent")).json["metadata"]

    async def test_of_a_collection_takes_what_a_selector_names(self, api):
        for name in "abc":
            document = widget(name)
            document["metadata"]["labels"] = {"keep": "yes" if name == "b" else "no"}
            await api.create(document)
        answer = await api.call("DELETE", f"{WIDGETS}?labelSelector=keep%3Dno")
        assert [item["metadata"]["name"] for item in answer.json["items"]] == ["a", "c"]
        left = (await api.get(WIDGETS)).json["items"]
        assert [item["metadata"]["name"] for item in left] == ["b"]


class TestList:
    @pytest.fixture
    async def full(self, api: ApiFixture) -> ApiFixture:
        for name in "abcde":
            await api.create(widget(name))
        await api.create(widget("z"), WIDGETS.replace("default", "other"))
        return api

    async def test_is_of_one_namespace_or_all(self, full):
        one, every = await full.get(WIDGETS), await full.get(ALL_WIDGETS)
        assert one.json["kind"] == "WidgetList"
        assert [item["metadata"]["name"] for item in one.json["items"]] == list("abcde")
        assert [item["metadata"]["name"] for item in every.json["items"]] == list("abcdez")
        assert {(item["kind"], item["apiVersion"]) for item in one.json["items"]} == {("Widget", f"{GROUP}/v1")}

    async def test_comes_in_pages_that_together_are_the_whole(self, full):
        names, token, versions, remaining = [], "", set(), []
        while True:
            page = (await full.get(f"{ALL_WIDGETS}?limit=2&continue={token}")).json
            names += [item["metadata"]["name"] for item in page["items"]]
            versions.add(page["metadata"]["resourceVersion"])
            remaining.append(page["metadata"].get("remainingItemCount"))
            token = page["metadata"].get("continue", "")
            if not token:
                break
            await full.call(
                "PATCH", f"{WIDGETS}/a", {"metadata": {"labels": {"n": str(len(names))}}}, content_type=MERGE
            )
        assert names == list("abcdez")
        assert len(versions) == 1
        assert remaining == [4, 2, None]

    async def test_is_narrowed_by_fields(self, full):
        found = (await full.get(f"{ALL_WIDGETS}?fieldSelector=metadata.name%3Dz,metadata.namespace%3Dother")).json
        assert [item["metadata"]["name"] for item in found["items"]] == ["z"]

    async def test_of_a_version_that_is_over_is_gone(self, full):
        answer = await full.get(f"{WIDGETS}?resourceVersion=2&resourceVersionMatch=Exact")
        assert answer.code == 410
        assert answer.json["reason"] == "Expired"
        assert (await full.get(f"{WIDGETS}?resourceVersion=0")).code == 200

    async def test_comes_as_a_table(self, full):
        full.clock.now_s += 90
        accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
        table = (await full.get(f"{WIDGETS}?limit=2", accept=accept)).json
        assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
        assert [column["name"] for column in table["columnDefinitions"]] == ["Name", "Size", "Ready", "Colour", "Age"]
        assert [row["cells"] for row in table["rows"]] == [["a", 1, None, "red", "90s"], ["b", 1, None, "red", "90s"]]
        assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
        assert table["metadata"]["continue"]
        whole = (await full.get(f"{WIDGETS}/a?includeObject=Object", accept=accept)).json
        assert whole["rows"][0]["object"]["spec"]["size"] == 1
        assert "object" not in (await full.get(f"{WIDGETS}?includeObject=None", accept=accept)).json["rows"][0]
        assert (await full.get(f"{WIDGETS}?includeObject=Some", accept=accept)).code == 400

    async def test_comes_as_metadata_alone(self, full):
        accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
        found = (await full.get(WIDGETS, accept=accept)).json
        one = (
            await full.get(f"{WIDGETS}/a", accept="application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")
        ).json
        assert found["kind"] == "PartialObjectMetadataList"
        assert found["items"][0] == one
        assert "spec" not in one


class TestNamespaces:
    async def test_are_created_when_they_are_first_used(self, api):
        await api.create(widget("a"), WIDGETS.replace("default", "new"))
        namespace = (await api.get("/api/v1/namespaces/new")).json
        assert namespace["status"] == {"phase": "Active"}
        assert namespace["metadata"]["labels"] == {"kubernetes.io/metadata.name": "new"}

    async def test_can_be_created_and_are_active_at_once(self, api):
        created = await api.create({"metadata": {"name": "mine"}}, "/api/v1/namespaces")
        assert created["status"] == {"phase": "Active"}
        assert (await api.get("/api/v1/namespaces/mine/status")).json == created

    async def test_take_what_is_in_them_along(self, api):
        await api.create(widget("a"), WIDGETS.replace("default", "new"))
        await api.create(widget("a"))
        await api.call("DELETE", "/api/v1/namespaces/new")
        left = (await api.get(ALL_WIDGETS)).json["items"]
        assert [item["metadata"]["namespace"] for item in left] == ["default"]
        assert (await api.get("/api/v1/namespaces/new")).code == 404

    async def test_that_are_being_deleted_take_nothing_new(self, api):
        await api.create({"metadata": {"name": "old", "finalizers": ["x.y/z"]}}, "/api/v1/namespaces")
        await api.call("DELETE", "/api/v1/namespaces/old")
        answer = await api.call("POST", WIDGETS.replace("default", "old"), widget("a"))
        assert answer.code == 403
        assert "being terminated" in answer.message

    async def test_default_stays(self, api):
        await api.create(widget("a"))
        assert (await api.call("DELETE", "/api/v1/namespaces/default")).code == 403
        assert (await api.get(f"{WIDGETS}/a")).code == 200

    async def test_have_names_of_one_label(self, api):
        assert (await api.call("POST", "/api/v1/namespaces", {"metadata": {"name": "a.b"}})).code == 422


class BrokenStore(MemoryStore):
    """Cannot be reached, or fails in a way that nobody foresaw."""

    async def get(self, key: Key) -> Resource:
        if key.name == "bug":
            raise ZeroDivisionError("unforeseen")
        raise Unavailable("The disk is full.")


async def test_an_unreachable_store_is_service_unavailable():
    answer = await ApiFixture(BrokenStore()).get(f"{WIDGETS}/a")
    assert answer.code == 503
    assert answer.json["reason"] == "ServiceUnavailable"
    assert answer.message == "The disk is full."


async def test_an_unforeseen_error_is_a_status_without_a_traceback_and_a_log_line_with_one(caplog):
    answer = await ApiFixture(BrokenStore()).get(f"{WIDGETS}/bug")
    (record,) = caplog.records
    assert answer.code == 500
    assert answer.json["reason"] == "InternalError"
    assert "unforeseen" not in answer.message
    assert record.exc_info is not None
    assert record.facts == {"method": "GET", "path": f"{WIDGETS}/bug"}


async def test_config_maps_are_taken_as_they_are(api):
    created = await api.create({"metadata": {"name": "c"}, "data": {"a": "1"}, "immutable": False}, CONFIG_MAPS)
    assert created["apiVersion"] == "v1"
    assert created["kind"] == "ConfigMap"
    assert created["data"] == {"a": "1"}
    assert (await api.store.get(Key(CONFIG_MAP, "default", "c"))).body["immutable"] is False
    assert (await api.store.get(Key(NAMESPACE, "", "default"))).status == {"phase": "Active"}
