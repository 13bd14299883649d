"""Watches on virtual time, through the application but without sockets."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from core.control.memory import MemoryStore
from core.control.port import Change
from core.resources import KindRef
from penstock.apiserver import watching
from tests.support.apiserver import WIDGETS, ApiFixture, AsgiExchange, widget
from tests.support.virtual_time import run_virtual

MERGE = "application/merge-patch+json"


class WatchClient:
    """A watch that is under way."""

    def __init__(self, api: ApiFixture, query: str, **headers: str) -> None:
        separator = "&" if "?" in query else "?"
        self.exchange = AsgiExchange("GET", f"{WIDGETS}{query}{separator}watch=1", headers=headers)
        self._task = asyncio.ensure_future(self.exchange.run(api.app))

    async def next(self) -> Any:
        return msgspec.json.decode(await self.exchange.lines.get())

    async def told(self) -> tuple[str, str]:
        event = await self.next()
        return event["type"], event["object"]["metadata"].get("name", "")

    async def end(self) -> None:
        self.exchange.hang_up()
        await self._task

    async def ended(self) -> None:
        await self._task


def watch_test(body: Callable[[ApiFixture], Awaitable[None]]) -> None:
    async def main() -> None:
        await body(ApiFixture())

    run_virtual(main())


async def label(api: ApiFixture, name: str, colour: str | None) -> None:
    patch = {"metadata": {"labels": {"colour": colour}}}
    assert (await api.call("PATCH", f"{WIDGETS}/{name}", patch, content_type=MERGE)).code == 200


async def current(api: ApiFixture) -> str:
    version: str = (await api.get(WIDGETS)).json["metadata"]["resourceVersion"]
    return version


def test_a_watch_from_a_version_tells_what_comes_after_it():
    async def body(api: ApiFixture) -> None:
        await api.create(widget("before"))
        client = WatchClient(api, f"?resourceVersion={await current(api)}")
        await api.create(widget("a"))
        await label(api, "a", "red")
        await api.call("DELETE", f"{WIDGETS}/a")
        assert [await client.told() for _ in range(3)] == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
        await client.end()
        assert client.exchange.lines.empty()

    watch_test(body)


def test_what_has_piled_up_is_told_in_one_turn_of_the_loop():
    async def body(api: ApiFixture) -> None:
        since = await current(api)
        for number in range(50):
            await api.create(widget(f"w{number}"))
        client = WatchClient(api, f"?resourceVersion={since}")
        assert await client.told() == ("ADDED", "w0")
        assert client.exchange.lines.qsize() == 49
        await client.end()

    watch_test(body)


@pytest.mark.parametrize("query", ["", "?resourceVersion=0"])
def test_a_watch_without_a_version_begins_with_what_is_there(query):
    async def body(api: ApiFixture) -> None:
        await api.create(widget("a"))
        client = WatchClient(api, query)
        assert await client.told() == ("ADDED", "a")
        await api.create(widget("b"))
        assert await client.told() == ("ADDED", "b")
        await client.end()

    watch_test(body)


def test_the_end_of_what_was_there_is_marked_where_asked_for():
    async def body(api: ApiFixture) -> None:
        await api.create(widget("a"))
        query = "?sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&resourceVersion=1"
        client = WatchClient(api, query)
        assert await client.told() == ("ADDED", "a")
        mark = await client.next()
        assert mark["type"] == "BOOKMARK"
        assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        await client.end()

    watch_test(body)


def test_a_resource_that_leaves_or_enters_a_label_selector_is_deleted_or_added():
    async def body(api: ApiFixture) -> None:
        for name in ("in", "out"):
            await api.create(widget(name))
        await label(api, "in", "red")
        client = WatchClient(api, f"?labelSelector=colour%3Dred&resourceVersion={await current(api)}")
        # The watch learns the present state before anything else is written.
        await asyncio.sleep(1)
        await label(api, "in", "blue")
        await label(api, "out", "green")
        await label(api, "out", "red")
        await api.call("PATCH", f"{WIDGETS}/out", {"spec": {"size": 2}}, content_type=MERGE)
        await api.call("DELETE", f"{WIDGETS}/in")
        await api.call("DELETE", f"{WIDGETS}/out")
        told = [await client.told() for _ in range(4)]
        await client.end()
        assert told == [("DELETED", "in"), ("ADDED", "out"), ("MODIFIED", "out"), ("DELETED", "out")]
        assert client.exchange.lines.empty()

    watch_test(body)


def test_changes_from_before_the_watch_began_are_told_by_what_is_known_of_them():
    async def body(api: ApiFixture) -> None:
        await api.create(widget("was"))
        await label(api, "was", "red")
        since = await current(api)
        await label(api, "was", "blue")
        await api.create(widget("never"))
        client = WatchClient(api, f"?labelSelector=colour%3Dred&resourceVersion={since}")
        assert await client.told() == ("DELETED", "was")
        await label(api, "never", "red")
        assert await client.told() == ("ADDED", "never")
        await client.end()

    watch_test(body)


def test_a_field_selector_narrows_to_one_resource():
    async def body(api: ApiFixture) -> None:
        await api.create(widget("a"))
        await api.create(widget("b"))
        client = WatchClient(api, f"?fieldSelector=metadata.name%3Db&resourceVersion={await current(api)}")
        await label(api, "a", "red")
        await label(api, "b", "red")
        await api.call("DELETE", f"{WIDGETS}/a")
        await api.call("DELETE", f"{WIDGETS}/b")
        assert [await client.told() for _ in range(2)] == [("MODIFIED", "b"), ("DELETED", "b")]
        await client.end()
        assert client.exchange.lines.empty()

    watch_test(body)


def test_a_version_that_is_no_longer_kept_is_told_as_an_error():
    async def main() -> None:
        api = ApiFixture(MemoryStore(max_changes=2))
        for name in "abc":
            await api.create(widget(name))
        client = WatchClient(api, "?resourceVersion=2")
        event = await client.next()
        await client.ended()
        assert event["type"] == "ERROR"
        assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
        assert client.exchange.finished

    run_virtual(main())


def test_a_watch_ends_after_its_time():
    async def body(api: ApiFixture) -> None:
        client = WatchClient(api, "?timeoutSeconds=5&resourceVersion=1")
        await client.ended()
        assert asyncio.get_running_loop().time() == pytest.approx(5, abs=0.1)
        assert client.exchange.finished

    watch_test(body)


def test_a_quiet_watch_gets_bookmarks_and_ends_after_an_hour():
    async def body(api: ApiFixture) -> None:
        client = WatchClient(api, "?allowWatchBookmarks=true&resourceVersion=1")
        event = await client.next()
        assert asyncio.get_running_loop().time() == pytest.approx(watching.BOOKMARK_PERIOD_S, abs=0.1)
        assert event == {
            "type": "BOOKMARK",
            "object": {
                "kind": "Widget",
                "apiVersion": "testing.penstock.dev/v1",
                "metadata": {"resourceVersion": "1", "creationTimestamp": None},
            },
        }
        await client.ended()
        assert asyncio.get_running_loop().time() == pytest.approx(3_600, abs=1)

    watch_test(body)


class BookmarkingStore(MemoryStore):
    """Tells of a version without a change."""

    async def watch(self, kind: KindRef, since: int, namespace: str | None = None) -> AsyncGenerator[Change, None]:
        yield Change("BOOKMARK", 77)


@pytest.mark.parametrize(("query", "told"), [("?allowWatchBookmarks=1", ["77"]), ("", [])])
def test_the_stores_bookmarks_are_passed_on_to_those_who_allow_them(query, told):
    async def main() -> None:
        client = WatchClient(ApiFixture(BookmarkingStore()), query)
        await client.ended()
        events = [msgspec.json.decode(line) for line in client.exchange.received.splitlines()]
        assert [event["object"]["metadata"]["resourceVersion"] for event in events] == told

    run_virtual(main())


def test_a_watch_tells_tables_to_those_who_ask_for_them():
    async def body(api: ApiFixture) -> None:
        client = WatchClient(api, "", accept="application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
        await api.create(widget("a"))
        event = await client.next()
        assert event["type"] == "ADDED"
        assert event["object"]["kind"] == "Table"
        assert event["object"]["rows"][0]["cells"][0] == "a"
        await client.end()

    watch_test(body)


def test_closing_ends_every_watch_and_each_later_one():
    async def body(api: ApiFixture) -> None:
        clients = [WatchClient(api, "?resourceVersion=1") for _ in range(3)]
        await asyncio.sleep(1)
        assert "penstock_apiserver_watches 3" in api.metrics.expose()
        api.app.state.watches.close()
        for client in [*clients, WatchClient(api, "?resourceVersion=1")]:
            await client.ended()
            assert client.exchange.finished
        assert "penstock_apiserver_watches 0" in api.metrics.expose()

    watch_test(body)


def test_more_watches_than_the_limit_are_refused_with_a_time_to_come_back():
    async def body(api: ApiFixture) -> None:
        clients = [WatchClient(api, "") for _ in range(watching.MAX_WATCHES)]
        await asyncio.sleep(1)
        answer = await api.get(f"{WIDGETS}?watch=true")
        assert answer.code == 429
        assert answer.json["reason"] == "TooManyRequests"
        assert answer.headers["retry-after"] == "1"
        await clients.pop().end()
        await WatchClient(api, "?timeoutSeconds=1").ended()
        api.app.state.watches.close()
        await asyncio.gather(*(client.ended() for client in clients))

    watch_test(body)


def test_a_client_that_takes_nothing_is_given_up(caplog):
    async def body(api: ApiFixture) -> None:
        exchange = AsgiExchange("GET", f"{WIDGETS}?watch=1")

        async def stuck(message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        await api.create(widget("a"))
        await api.app(exchange.scope, asyncio.Event().wait, stuck)
        assert asyncio.get_running_loop().time() == pytest.approx(watching.SEND_TIMEOUT_S, abs=0.1)

    watch_test(body)
    assert "took nothing" in caplog.text
