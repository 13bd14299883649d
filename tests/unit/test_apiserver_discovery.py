import msgspec
import pytest

from core.resources import Kind, KindRef, Registry
from penstock.apiserver import gnostic
from penstock.apiserver.discovery import Discovery
from penstock.apiserver.openapi import OpenApi
from tests.support.apiserver import GROUP, REGISTRY, ApiFixture

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList"


@pytest.fixture
def api() -> ApiFixture:
    return ApiFixture()


async def test_groups_and_versions_are_found(api):
    assert (await api.get("/api")).json["versions"] == ["v1"]
    groups = {group["name"]: group for group in (await api.get("/apis")).json["groups"]}
    assert set(groups) == {GROUP, "coordination.k8s.io", "discovery.k8s.io"}
    assert groups[GROUP]["preferredVersion"] == {"groupVersion": f"{GROUP}/v1", "version": "v1"}
    assert [version["version"] for version in groups[GROUP]["versions"]] == ["v1", "v1alpha1"]
    one = (await api.get(f"/apis/{GROUP}")).json
    assert (one["kind"], one["name"]) == ("APIGroup", GROUP)


async def test_the_kinds_of_a_version_are_listed_with_what_can_be_done(api):
    listed = (await api.get(f"/apis/{GROUP}/v1")).json
    widgets, status = listed["resources"]
    assert (listed["kind"], listed["groupVersion"]) == ("APIResourceList", f"{GROUP}/v1")
    assert widgets == {
        "name": "widgets",
        "singularName": "widget",
        "namespaced": True,
        "kind": "Widget",
        "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        "shortNames": ["wd"],
        "categories": ["all"],
    }
    assert (status["name"], status["verbs"]) == ("widgets/status", ["get", "patch", "update"])
    core = {resource["name"] for resource in (await api.get("/api/v1")).json["resources"]}
    assert {"namespaces", "namespaces/status", "configmaps", "secrets", "events"} <= core
    assert "configmaps/status" not in core


@pytest.mark.parametrize("version", ["v2", "v2beta1"])
async def test_discovery_is_aggregated_for_clients_that_ask_for_it(api, version):
    accept = AGGREGATED.format(version)
    answer = await api.get("/apis", accept=f"{accept},application/json")
    core = await api.get("/api", accept=accept)
    assert answer.headers["content-type"] == accept
    assert answer.json["apiVersion"] == f"apidiscovery.k8s.io/{version}"
    groups = {item["metadata"]["name"]: item for item in answer.json["items"]}
    (widgets,) = groups[GROUP]["versions"][0]["resources"]
    assert widgets["responseKind"] == {"group": GROUP, "version": "v1", "kind": "Widget"}
    assert (widgets["scope"], widgets["shortNames"]) == ("Namespaced", ["wd"])
    assert [one["subresource"] for one in widgets["subresources"]] == ["status"]
    assert [item["metadata"]["name"] for item in core.json["items"]] == [""]


async def test_unknown_aggregations_fall_back_to_the_plain_document(api):
    answer = await api.get("/apis", accept=AGGREGATED.format("v9") + ",application/json")
    assert answer.json["kind"] == "APIGroupList"


def test_the_preferred_version_is_the_highest_stable_one():
    versions = ["v1alpha1", "v2beta1", "v1", "v10", "v2", "v2beta3", "odd"]
    kinds = [Kind(ref=KindRef("g", version, "K"), plural="ks", singular="k") for version in versions]
    group = Discovery(Registry(kinds)).group("g")
    assert group is not None
    found = [entry["version"] for entry in group["versions"]]
    assert found == ["v10", "v2", "v1", "v2beta3", "v2beta1", "v1alpha1", "odd"]


async def test_openapi_v3_tells_schemas_and_that_the_server_validates(api):
    paths = (await api.get("/openapi/v3")).json["paths"]
    url = paths[f"apis/{GROUP}/v1"]["serverRelativeURL"]
    document = (await api.get(url)).json
    patch = document["paths"][f"/apis/{GROUP}/v1/namespaces/{{namespace}}/widgets/{{name}}"]["patch"]
    schemas = document["components"]["schemas"]
    spec = schemas["WidgetSpec"]
    assert set(paths) >= {"api/v1", f"apis/{GROUP}/v1", f"apis/{GROUP}/v1alpha1"}
    assert {"dryRun", "fieldValidation"} <= {parameter["name"] for parameter in patch["parameters"]}
    assert "application/strategic-merge-patch+json" not in patch["requestBody"]["content"]
    assert spec["required"] == ["size"]
    assert spec["properties"]["madeOf"] == {"$ref": "#/components/schemas/Part"}
    assert spec["properties"]["colour"] == {"enum": ["blue", "red"], "type": "string"}
    kind = schemas["dev.penstock.testing.v1.Widget"]
    assert kind["x-kubernetes-group-version-kind"] == [{"group": GROUP, "version": "v1", "kind": "Widget"}]
    assert kind["properties"]["spec"] == {"$ref": "#/components/schemas/WidgetSpec"}
    assert (await api.get("/openapi/v3/apis/none/v1")).code == 404


def test_every_reference_of_a_schema_leads_somewhere():
    openapi = OpenApi(REGISTRY)
    documents = [openapi.v2_json()] + [openapi.group_version(path) or b"" for path in (f"apis/{GROUP}/v1", "api/v1")]
    for text in documents:
        document = msgspec.json.decode(text)
        schemas = document.get("definitions") or document["components"]["schemas"]
        for reference in _references(document):
            assert reference.rpartition("/")[2] in schemas


def _references(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [found for item in value.values() for found in _references(item)]
    if isinstance(value, list):
        return [found for item in value for found in _references(item)]
    return []


async def test_openapi_v2_is_served_as_json_and_as_protobuf(api):
    plain = await api.get("/openapi/v2")
    packed = await api.get("/openapi/v2", accept="application/com.github.proto-openapi.spec.v2@v1.0+protobuf")
    assert plain.json["swagger"] == "2.0"
    assert "@" not in packed.headers["content-type"]
    assert packed.body == gnostic.document(plain.json)
    assert b"dev.penstock.testing.v1.Widget" in packed.body


def test_the_protobuf_encoding_is_gnostics():
    document = {"swagger": "2.0", "info": {"title": "T", "version": "1"}, "definitions": {"A": {"type": "object"}}}
    info, schema = b"\x0a\x01T\x12\x011", b"\xb2\x01\x08\x0a\x06object"
    named = b"\x0a\x01A" + b"\x12" + bytes([len(schema)]) + schema
    definitions = b"\x0a" + bytes([len(named)]) + named
    assert gnostic.document(document) == (
        b"\x0a\x032.0" + b"\x12\x06" + info + b"\x42\x00" + b"\x4a" + bytes([len(definitions)]) + definitions
    )
