"""The platform with its events in Redis: the pictures example unchanged, and what people are told."""

import json
import os
import signal
from pathlib import Path

import pytest

from examples.pictures.demo import HERE, Buckets, check_results
from examples.pictures.make_pictures import make_pictures
from penstock.testing import Platform, wait_until
from tests.support.services import RedisServer

pytestmark = pytest.mark.e2e

PLAIN = """
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata:
  name: plain
"""
CLASSED = """
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata:
  name: classed
  annotations: {eventing.knative.dev/broker.class: Redis}
"""


def with_redis(root: Path, url: str) -> Platform:
    return Platform.start(data=root / "data", root=root, arguments=("--broker-log", "redis", "--redis-url", url))


@pytest.mark.service("redis")
def test_the_pictures_example_runs_unchanged_and_is_explained_though_the_broker_is_killed(
    tmp_path: Path, redis_url: str
):
    buckets = Buckets.make(tmp_path)
    with with_redis(tmp_path, redis_url) as platform:
        platform.penstock("apply", "-f", str(HERE / "manifests"))
        pictures = make_pictures(buckets.uploads, 8, seed=5)
        wait_until(buckets.audited, what="an event is audited")
        before = platform.pids()["broker"]
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: platform.pids().get("broker", before) != before, what="the broker is restarted")
        wait_until(lambda: buckets.is_complete(pictures), what="every upload judged, every approved one made smaller")
        check_results(buckets, pictures)
        listed = [json.loads(line) for line in platform.penstock("events", "-o", "json").stdout.splitlines()]
        assert not (tmp_path / "data" / "broker" / "log.db").exists()
        uploaded = next(event for event in listed if event.get("subject") == pictures[0].key)
        said = platform.penstock("explain", uploaded["id"]).stdout
        assert "scan" in said
        assert "delivered" in said


@pytest.mark.service("redis", own=True)
def test_redis_may_be_killed_and_come_back_while_pictures_flow(tmp_path: Path):
    server = RedisServer(tmp_path / "redis")
    server.start()
    buckets = Buckets.make(tmp_path)
    try:
        with with_redis(tmp_path, server.url) as platform:
            platform.penstock("apply", "-f", str(HERE / "manifests"))
            pictures = make_pictures(buckets.uploads, 8, seed=6)
            wait_until(buckets.audited, what="an event is audited")
            server.kill()
            late = make_pictures(buckets.uploads, 4, seed=7)
            server.start()
            names = {picture.key: picture for picture in (*pictures, *late)}
            everything = list(names.values())
            wait_until(lambda: buckets.is_complete(everything), what="every upload is judged")
    finally:
        server.kill()


@pytest.mark.service("redis")
def test_a_broker_that_asks_for_redis_is_ready_where_the_platform_has_it_and_says_why_not_elsewhere(
    tmp_path: Path, redis_url: str, platform: Platform
):
    platform.penstock("apply", "-f", "-", text=CLASSED)
    ready = wait_until(lambda: conditions(platform).get("Ready"), what="the Broker is judged")
    assert ready["status"] == "False"
    assert ready["reason"] == "BrokerClassNotServed"
    assert "--redis-url or PENSTOCK_REDIS_URL" in ready["message"]
    with with_redis(tmp_path / "other", redis_url) as other:
        other.penstock("apply", "-f", "-", text=CLASSED)
        wait_until(lambda: other.is_ready("broker", "classed"), what="the Broker is ready")


@pytest.mark.service("redis")
def test_one_platform_keeps_each_brokers_events_in_the_log_of_its_class_and_tells_of_all(
    tmp_path: Path, redis_url: str
):
    data = tmp_path / "data"
    with Platform.start(data=data, root=tmp_path, arguments=("--redis-url", redis_url)) as platform:
        platform.penstock("apply", "-f", "-", text=f"{PLAIN}---{CLASSED}")
        for name in ("plain", "classed"):
            wait_until(lambda name=name: platform.is_ready("broker", name), what=f"{name} is ready")
            platform.penstock("send", "--broker", name, "--type", "hello", "--id", f"to-{name}")
        listed = [json.loads(line) for line in platform.penstock("events", "-o", "json").stdout.splitlines()]
        assert [(event["id"], event["seq"]) for event in listed] == [("to-plain", 1), ("to-classed", 1)]
        assert "default/classed" in platform.penstock("explain", "to-classed").stdout
        assert (data / "broker" / "log.db").exists()
        assert (data / "broker" / "redis-log-name").exists()


@pytest.mark.service("redis", own=True)
def test_a_further_log_that_is_away_keeps_only_its_own_brokers_waiting(tmp_path: Path):
    server = RedisServer(tmp_path / "redis")
    arguments = ("--redis-url", server.url)
    with Platform.start(data=tmp_path / "data", root=tmp_path, arguments=arguments) as platform:
        platform.penstock("apply", "-f", "-", text=f"{PLAIN}---{CLASSED}")
        for name in ("plain", "classed"):
            wait_until(lambda name=name: platform.is_ready("broker", name), what=f"{name} is ready")
        platform.penstock("send", "--broker", "plain", "--type", "hello")
        refused = platform.penstock("send", "--broker", "classed", "--type", "hello", check=False)
        assert "class, Redis, cannot be had now" in refused.stderr
        listed = platform.penstock("events", "-o", "json")
        gap, event = map(json.loads, listed.stdout.splitlines())
        assert ([each["log"] for each in gap["away"]], event["broker"]) == (["Redis"], "default/plain")
        assert "The log Redis is away, and its events are missing here." in listed.stderr
        explained = platform.penstock("explain", event["id"])
        assert "warning: The log Redis is away" in explained.stderr
        nobody = platform.penstock("explain", "nobody", check=False)
        assert "No log that can be read has an event with the id 'nobody'. The log Redis:" in nobody.stderr
        server.start()
        try:

            def sent() -> bool:
                return platform.penstock("send", "--broker", "classed", "--type", "hello", check=False).returncode == 0

            wait_until(sent, what="the Broker takes events once its Redis is there")
        finally:
            server.kill()


def test_a_platform_without_its_redis_says_what_to_do(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"cannot be used: .*apt-get install redis-server.*--redis-url"):
        with_redis(tmp_path, "redis://127.0.0.1:1/0")


def conditions(platform: Platform) -> dict[str, dict[str, str]]:
    found = platform.get("broker", "classed").get("status", {}).get("conditions", [])
    return {condition["type"]: condition for condition in found}
