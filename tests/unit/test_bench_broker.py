"""What the benchmarks of the broker send, and the subscriber that is slow."""

import http.client
from types import SimpleNamespace

import pytest

from bench import slow
from bench.broker import DATA_BYTES, event
from bench.ingest import batch
from core.events import from_http
from core.events.jsonformat import from_batch
from core.limits import MAX_BATCH_BYTES


def parts(request: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The headers and the body of a request."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
    return [(name.lower(), value) for name, _, value in lines], body


def test_a_published_event_is_valid_has_its_number_in_its_id_and_data_of_the_stated_size():
    headers, body = parts(event("h:1", "cpu").bytes_of(42))
    sent = from_http(headers, body)
    assert (sent.id, sent.type) == ("cpu-42", "bench.cpu")
    assert len(body) == DATA_BYTES == int(dict(headers)[b"content-length"])


def test_a_batch_has_as_many_valid_events_as_asked_and_fits_the_ingress():
    headers, body = parts(batch("h:1", 50, 200, "held").bytes_of(1))
    events = list(from_batch(dict(headers)[b"content-type"], body))
    assert len({each.id for each in events}) == 50
    assert {each.type for each in events} == {"bench.held"}
    assert {len(each.data or b"") for each in events} == {200}
    assert len(body) == int(dict(headers)[b"content-length"]) < MAX_BATCH_BYTES


def test_the_slow_subscriber_takes_its_time_for_each_of_a_connections_events(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr(slow, "time", SimpleNamespace(sleep=waits.append))
    with slow.Slow() as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for _ in range(2):
            connection.request("POST", "/", b"x" * 1000)
            with connection.getresponse() as answer:
                assert (answer.status, answer.read()) == (202, b"")
        connection.close()
    assert waits == [slow.DELAY_S, slow.DELAY_S]
