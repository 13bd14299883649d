"""The application around the resource API: its pages, other routers, the trust boundary."""

import pytest
from fastapi import APIRouter

from core.control.memory import MemoryStore
from core.errors import FieldError, InvalidInput, NotFound, Overloaded, Unavailable
from core.resources import Key, Resource
from tests.support.apiserver import WIDGETS, ApiFixture, widget


def router() -> APIRouter:
    found = APIRouter()

    @found.get("/penstock/v1/things")
    async def things(limit: int = 1) -> dict[str, int]:
        return {"limit": limit}

    @found.get("/penstock/v1/fail/{how}")
    async def fail(how: str) -> None:
        errors = {
            "absent": NotFound("There is no such event."),
            "invalid": InvalidInput("It is wrong.", [FieldError(path="a.b", rule="must be 1", value=2)]),
            "busy": Overloaded("Too much.", retry_after_s=7),
        }
        raise errors.get(how) or ZeroDivisionError("unforeseen")

    return found


@pytest.fixture
def api() -> ApiFixture:
    return ApiFixture(extra_routers=(router(),))


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz"])
async def test_health_is_ok(api, path):
    answer = await api.get(path)
    assert (answer.code, answer.body) == (200, b"ok")


class UnreachableStore(MemoryStore):
    async def get(self, key: Key) -> Resource:
        raise Unavailable("The disk is full.")


async def test_a_server_whose_store_does_not_answer_lives_but_is_not_ready():
    api = ApiFixture(UnreachableStore())
    assert (await api.get("/livez")).code == 200
    answer = await api.get("/readyz")
    assert answer.code == 503
    assert b"The disk is full." in answer.body


async def test_metrics_count_requests_by_verb_and_answer(api):
    await api.create(widget("a"))
    await api.get(f"{WIDGETS}/a")
    await api.get(f"{WIDGETS}/b")
    text = (await api.get("/metrics")).body.decode()
    assert 'penstock_apiserver_requests_total{verb="POST",code="201"} 1' in text
    assert 'penstock_apiserver_requests_total{verb="GET",code="200"} 1' in text
    assert 'penstock_apiserver_requests_total{verb="GET",code="404"} 1' in text


async def test_the_version_is_one_that_clients_can_compare(api):
    assert (await api.get("/version")).json["gitVersion"].startswith("v1.32.")


async def test_other_routers_are_served_beside_the_api(api):
    assert (await api.get("/penstock/v1/things?limit=3")).json == {"limit": 3}


@pytest.mark.parametrize(
    ("method", "target", "code", "message"),
    [
        ("GET", "/nowhere", 404, "Nothing is served at /nowhere"),
        ("POST", "/healthz", 405, "POST is not possible at /healthz"),
        ("POST", "/penstock/v1/things", 405, "POST is not possible"),
        ("GET", "/penstock/v1/things?limit=x", 422, "query.limit"),
        ("GET", "/penstock/v1/fail/absent", 404, "There is no such event."),
        ("GET", "/penstock/v1/fail/invalid", 422, "It is wrong."),
        ("GET", "/penstock/v1/fail/busy", 429, "Too much."),
        ("GET", "/penstock/v1/fail/otherwise", 500, "see the server's log"),
    ],
)
async def test_every_error_of_every_route_is_a_status(api, method, target, code, message):
    answer = await api.call(method, target)
    assert (answer.code, answer.json["kind"], answer.json["code"]) == (code, "Status", code)
    assert message in answer.message


async def test_the_time_to_come_back_and_the_methods_allowed_are_headers(api):
    assert (await api.get("/penstock/v1/fail/busy")).headers["retry-after"] == "7"
    assert (await api.call("PUT", WIDGETS)).headers["allow"] == "GET, POST, DELETE"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8082",
        "localhost",
        "localhost:8082",
        "LOCALHOST.:8082",
        "api.localhost:8082",
        "[::1]:8082",
        "10.1.2.3",
        "control:8082",
        "control.penstock.svc.cluster.local",
        "",
    ],
)
async def test_the_api_is_reached_by_names_that_no_foreign_page_can_have(api, host):
    assert (await api.get("/version", host=host)).code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:8082"},
        {"host": "evil.example", "origin": "http://evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
    ],
)
async def test_requests_that_a_foreign_page_makes_a_browser_send_are_refused(api, headers):
    answer = await api.call("POST", WIDGETS, widget("a"), headers=headers)
    assert answer.code == 403
    assert answer.json["reason"] == "Forbidden"
    assert (await api.get(f"{WIDGETS}/a")).code == 404


async def test_a_page_of_the_server_itself_may_use_the_api(api):
    assert (await api.get("/version", origin="http://127.0.0.1:8082")).code == 200


async def test_head_has_the_headers_of_get_and_no_body(api):
    await api.create(widget("a"))
    full = await api.get(f"{WIDGETS}/a")
    head = await api.call("HEAD", f"{WIDGETS}/a")
    assert head.body == b""
    assert head.headers["content-length"] == full.headers["content-length"]


async def test_head_never_streams(api):
    head = await api.call("HEAD", f"{WIDGETS}?watch=1")
    assert head.code == 200
