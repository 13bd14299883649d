"""The serving routes of the API port, asked as an ASGI application."""

import asyncio
import json

from fastapi import FastAPI

from serving.app import MAX_REPORT_BYTES, create_router
from serving.instances.memory import MemoryInstances
from serving.instances.port import InstanceSpec
from serving.scaler import ScalingDecision
from tests.support.virtual_time import run_virtual

DECISION = ScalingDecision(
    time=1.0,
    revision="hello-00001",
    desired=2,
    ready=1,
    mode="stable",
    phase="active",
    demand=90.0,
    stable=90.0,
    panic=95.5,
    excess_burst_capacity=-3,
    explanation="because",
)


class Autoscaler:
    """What the routes ask of it."""

    def __init__(self):
        self.reports = []
        self.names = ["hello-00001", "hello-00002"]

    def report(self, report):
        self.reports.append(report)

    def revisions(self, namespace, service):
        return self.names if (namespace, service) == ("default", "hello") else []

    def decisions(self, namespace, service):
        return [DECISION] if service == "hello" else []


async def ask(app, method, path, body=b"", *, chunks=None):
    """(status, body); ends a stream after that many chunks."""
    path, _, query = path.partition("?")
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode()}
    scope |= {"headers": [], "http_version": "1.1", "scheme": "http", "asgi": {"version": "3.0"}}
    status, parts, enough = [], [], asyncio.Event()
    incoming = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if incoming:
            return incoming.pop()
        await enough.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.start":
            status.append(message["status"])
        elif message.get("body"):
            parts.append(message["body"])
            if chunks is not None and len(parts) >= chunks:
                enough.set()

    await app(scope, receive, send)
    return status[0], b"".join(parts).decode()


async def serving():
    """(app, its autoscaler, its instances, the names of one instance per revision)."""
    autoscaler, instances = Autoscaler(), MemoryInstances()
    for revision in autoscaler.revisions("default", "hello"):
        spec = InstanceSpec(
            namespace="default", revision=revision, service="hello", configuration="hello", image="x", source="x"
        )
        await instances.scale(spec, 1)
    app = FastAPI()
    app.include_router(create_router(autoscaler=autoscaler, instances=instances))
    return app, autoscaler, instances, [one.name for one in instances.instances]


def test_a_demand_report_reaches_the_autoscaler():
    async def main():
        app, autoscaler, _, _ = await serving()
        told = {"namespace": "default", "name": "hello-00001", "concurrency": 1.5, "rps": 3, "queued": 2}
        body = json.dumps({"gateway": "g", "revisions": [told]}).encode()
        assert await ask(app, "POST", "/penstock/v1/demand", body) == (204, "")
        (report,) = autoscaler.reports
        assert report.gateway == "g"
        assert (report.revisions[0].name, report.revisions[0].concurrency, report.revisions[0].queued) == (
            "hello-00001",
            1.5,
            2,
        )

    run_virtual(main())


def test_a_report_that_cannot_be_read_is_refused_and_changes_nothing():
    async def main():
        app, autoscaler, _, _ = await serving()
        status, text = await ask(app, "POST", "/penstock/v1/demand", b'{"gateway": 3}')
        assert status == 400
        assert "gateway" in text
        assert (await ask(app, "POST", "/penstock/v1/demand", b" " * (MAX_REPORT_BYTES + 1)))[0] == 413
        assert autoscaler.reports == []

    run_virtual(main())


def test_logs_name_the_instance_before_each_line():
    async def main():
        app, _, instances, (one, two) = await serving()
        for name, text in ((one, "a"), (one, "b"), (two, "c")):
            await instances.write(name, text)
        assert await ask(app, "GET", "/penstock/v1/logs/default/hello") == (200, f"{one} a\n{one} b\n{two} c\n")
        assert await ask(app, "GET", "/penstock/v1/logs/default/hello?tail=1") == (200, f"{one} b\n{two} c\n")
        found = await ask(app, "GET", "/penstock/v1/logs/default/hello?revision=hello-00002")
        assert found == (200, f"{two} c\n")

    run_virtual(main())


def test_followed_logs_of_several_revisions_come_as_they_are_written():
    async def main():
        app, _, instances, (one, two) = await serving()
        await instances.write(one, "before")
        following = asyncio.create_task(ask(app, "GET", "/penstock/v1/logs/default/hello?follow=true", chunks=3))
        await asyncio.sleep(1)
        await instances.write(two, "later")
        await asyncio.sleep(1)
        await instances.write(one, "last")
        assert await following == (200, f"{one} before\n{two} later\n{one} last\n")
        instances.close()

    run_virtual(main())


def test_followed_logs_are_joined_by_a_revision_that_is_made_later_and_left_by_one_that_goes():
    async def main():
        app, autoscaler, instances, (one, two) = await serving()
        path = "/penstock/v1/logs/default/hello?follow=true&tail=0"
        following = asyncio.create_task(ask(app, "GET", path, chunks=3))
        await asyncio.sleep(1)
        spec = InstanceSpec(
            namespace="default", revision="hello-3", service="hello", configuration="hello", image="x", source="x"
        )
        await instances.scale(spec, 1)
        three = instances.instances[-1].name
        await instances.write(three, "first")
        autoscaler.names = ["hello-00002", "hello-3"]
        await asyncio.sleep(1)
        await instances.write(one, "from one that is gone")
        await instances.write(three, "second")
        await asyncio.sleep(1)
        await instances.write(two, "third")
        assert await following == (200, f"{three} first\n{three} second\n{two} third\n")
        instances.close()

    run_virtual(main())


def test_logs_of_what_does_not_exist_say_so():
    async def main():
        app, _, _, _ = await serving()
        status, text = await ask(app, "GET", "/penstock/v1/logs/default/other")
        assert status == 404
        assert "default/other" in text
        status, text = await ask(app, "GET", "/penstock/v1/logs/default/hello?revision=hello-00009")
        assert status == 404
        assert "hello-00009" in text

    run_virtual(main())


def test_the_last_decisions_are_told_with_their_inputs():
    async def main():
        app, _, _, _ = await serving()
        status, text = await ask(app, "GET", "/penstock/v1/scaling/default/hello")
        assert status == 200
        (decision,) = json.loads(text)["decisions"]
        assert decision["desired"] == 2
        assert decision["excessBurstCapacity"] == -3
        assert decision["explanation"] == "because"

    run_virtual(main())
