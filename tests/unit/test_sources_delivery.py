"""Handing an event to a sink: what counts as accepted, what is sent again and when, and what is given up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from core.events import CloudEvent, new_event
from core.net.names import Names
from core.net.types import Address, ConnectFailed, ConnectionLost, Headers, NetError, Response, ResponseTimeout
from core.resources import DeliveryShape, Destination
from core.telemetry import Metrics
from sources.delivery import (
    DEFAULT_RETRIES,
    MAX_IN_FLIGHT,
    PATIENT,
    RETRY_BACKOFF,
    Accepted,
    Delivery,
    DeliveryMetrics,
    Policy,
    Reject,
    RetryIn,
    decide,
    policy_of,
)
from sources.port import Refused
from tests.support.virtual_time import run_virtual

EVENT = new_event(type="t", source="/s", now=0.0, data=b"{}", id="1", content_type="application/json")


def response(status: int, *headers: tuple[bytes, bytes]) -> Response:
    return Response(status, list(headers), b"because")


class ScriptedSink:
    """A `Requester` that answers from a script, then 202; it keeps what it was sent and when."""

    def __init__(self, *script: Response | NetError) -> None:
        self.script = list(script)
        self.sent: list[tuple[float, Address, bytes, dict[bytes, bytes], bytes]] = []
        self.hold: asyncio.Event | None = None
        self.under_way = 0
        self.most = 0

    async def request(
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        *,
        timeout_s: float,
        max_bytes: int,
        tls: bool = False,
    ) -> Response:
        self.sent.append((asyncio.get_running_loop().time(), address, target, dict(headers), body))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        if self.hold is not None:
            await self.hold.wait()
        self.under_way -= 1
        answer = self.script.pop(0) if self.script else response(202)
        if isinstance(answer, NetError):
            raise answer
        return answer


def delivery(
    sink: ScriptedSink, metrics: Metrics | None = None, policy: Policy = PATIENT, **extensions: str
) -> Delivery:
    return Delivery(
        requester=sink,
        names=Names(broker=("127.0.0.1", 8081)),
        sink="http://broker-ingress.knative-eventing.svc.cluster.local/default/main",
        extensions=extensions,
        metrics=DeliveryMetrics(metrics or Metrics(), {"name": "x"}),
        facts={"source": "x"},
        rng=random.Random(1),
        policy=policy,
    )


@pytest.mark.parametrize("status", [200, 202, 204])
def test_a_2xx_means_accepted(status: int) -> None:
    assert decide(response(status), 1, random.Random(1)) == Accepted()


@pytest.mark.parametrize("status", [400, 413, 415, 422, 431])
def test_a_status_about_the_event_itself_is_final_and_quoted(status: int) -> None:
    decision = decide(response(status), 1, random.Random(1))
    assert isinstance(decision, Reject)
    assert decision.status == status
    assert "because" in decision.message


@pytest.mark.parametrize(
    "outcome",
    [
        *(response(status) for status in (301, 401, 403, 404, 405, 408, 409, 429, 500, 502, 503, 504)),
        ConnectFailed("refused"),
        ConnectionLost("reset", sent=True, fresh=True),
        ResponseTimeout("slow"),
    ],
    ids=str,
)
def test_everything_else_is_sent_again(outcome: Response | NetError) -> None:
    assert isinstance(decide(outcome, 1, random.Random(1)), RetryIn)


def test_pauses_grow_to_a_cap_and_stay_there() -> None:
    pauses = []
    for attempt in range(1, 2000):
        decision = decide(response(503), attempt, random.Random(attempt))
        assert isinstance(decision, RetryIn)
        pauses.append(decision.seconds)
    assert pauses[0] <= RETRY_BACKOFF.first_s
    assert all(RETRY_BACKOFF.cap_s / 2 <= pause <= RETRY_BACKOFF.cap_s for pause in pauses[20:])


@pytest.mark.parametrize(
    ("value", "at_least_s", "at_most_s"),
    [(b"3", 3.0, 3.0), (b"86400", 60.0, 60.0), (b"Wed, 21 Oct 2026 07:28:00 GMT", 0.0, 0.1), (b"-5", 0.0, 0.1)],
    ids=["seconds", "too long", "a date", "negative"],
)
def test_a_pause_that_the_sink_asks_for_is_kept_within_a_limit(
    value: bytes, at_least_s: float, at_most_s: float
) -> None:
    decision = decide(response(429, (b"retry-after", value)), 1, random.Random(1))
    assert isinstance(decision, RetryIn)
    assert at_least_s <= decision.seconds <= at_most_s


def test_an_event_goes_out_in_binary_mode_to_where_the_name_leads_under_its_own_host() -> None:
    sink = ScriptedSink()
    run_virtual(delivery(sink).emit(EVENT))
    _, address, target, headers, body = sink.sent[0]
    assert address == ("127.0.0.1", 8081)
    assert target == b"/default/main"
    assert headers[b"host"] == b"broker-ingress.knative-eventing.svc.cluster.local"
    assert headers[b"ce-id"] == b"1"
    assert headers[b"content-type"] == b"application/json"
    assert body == b"{}"


def test_an_outage_is_waited_out_with_the_same_event_and_counted() -> None:
    metrics = Metrics()
    sink = ScriptedSink(ConnectFailed("refused"), response(503), ConnectionLost("reset", sent=True, fresh=True))
    run_virtual(delivery(sink, metrics).emit(EVENT))
    assert [sent[3][b"ce-id"] for sent in sink.sent] == [b"1"] * 4
    gaps = [later[0] - earlier[0] for earlier, later in zip(sink.sent, sink.sent[1:], strict=False)]
    assert all(gap > 0 for gap in gaps)
    exposed = metrics.expose()
    assert 'penstock_source_retries_total{name="x"} 3' in exposed
    assert 'penstock_source_events_total{name="x",outcome="accepted"} 1' in exposed
    assert 'penstock_source_waiting_events{name="x"} 0' in exposed


def test_a_refused_event_is_raised_with_the_sinks_words() -> None:
    metrics = Metrics()
    with pytest.raises(Refused, match=r"415.*because") as raised:
        run_virtual(delivery(ScriptedSink(response(415)), metrics).emit(EVENT))
    assert raised.value.status == 415
    assert 'outcome="refused"} 1' in metrics.expose()


def test_overrides_are_set_on_every_event() -> None:
    sink = ScriptedSink()
    run_virtual(delivery(sink, team="blue", partitionkey="7").emit(EVENT))
    assert sink.sent[0][3][b"ce-team"] == b"blue"
    assert sink.sent[0][3][b"ce-partitionkey"] == b"7"


def test_overrides_that_make_an_invalid_event_refuse_it_instead_of_trying_for_ever() -> None:
    with pytest.raises(Refused, match="ceOverrides"):
        run_virtual(delivery(ScriptedSink(), team="line\nbreak").emit(EVENT))


def test_no_more_than_the_limit_is_under_way_at_once() -> None:
    async def main() -> ScriptedSink:
        sink = ScriptedSink()
        sink.hold = asyncio.Event()
        one = delivery(sink)
        events: list[CloudEvent] = [EVENT.with_attributes(id=str(number)) for number in range(100)]
        async with asyncio.TaskGroup() as tasks:
            for event in events:
                tasks.create_task(one.emit(event))
            await asyncio.sleep(1)
            assert len(sink.sent) == MAX_IN_FLIGHT
            sink.hold.set()
        return sink

    sink = run_virtual(main())
    assert sink.most == MAX_IN_FLIGHT
    assert len(sink.sent) == 100


@pytest.mark.parametrize("sink", ["", "not a url", "ftp://host/x"])
def test_a_sink_that_is_no_http_url_is_refused_at_once(sink: str) -> None:
    make: Callable[[], Delivery] = lambda: Delivery(  # noqa: E731 - one expression to raise from
        requester=ScriptedSink(),
        names=Names(),
        sink=sink,
        extensions={},
        metrics=DeliveryMetrics(Metrics(), {}),
        facts={},
        rng=random.Random(1),
    )
    with pytest.raises(ValueError, match="URL"):
        make()


# ---- with a delivery spec

DEAD_LETTERS = "http://letters.default.svc.cluster.local/dead"


def test_without_a_delivery_spec_a_sink_is_waited_for_without_end() -> None:
    assert policy_of(None, "") == PATIENT
    assert PATIENT.retries is None


def test_a_delivery_spec_is_read_in_seconds() -> None:
    shape = DeliveryShape(
        retry=3, backoff_delay="PT0.5S", backoff_policy="linear", timeout="PT7S", retry_after_max="PT1M", format="json"
    )
    expected = Policy(retries=3, pause_s=0.5, linear=True, timeout_s=7, retry_after_max_s=60, structured=True)
    assert policy_of(shape, "") == expected


def test_a_dead_letter_sink_without_a_number_of_retries_gets_knatives_default() -> None:
    shape = DeliveryShape(dead_letter_sink=Destination(uri=DEAD_LETTERS))
    assert policy_of(shape, DEAD_LETTERS).retries == DEFAULT_RETRIES
    assert policy_of(DeliveryShape(timeout="PT7S"), "").retries is None


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "exponential"])
def test_pauses_grow_from_the_specs_delay_to_the_cap(linear: bool) -> None:
    policy = Policy(pause_s=2.0, linear=linear)
    pauses = []
    for attempt in range(1, 10):
        decision = decide(response(503), attempt, random.Random(attempt), policy)
        assert isinstance(decision, RetryIn)
        pauses.append(decision.seconds)
    assert 1.0 <= pauses[0] <= 2.0
    assert all(RETRY_BACKOFF.cap_s / 2 <= pause <= RETRY_BACKOFF.cap_s for pause in pauses[5:])


@pytest.mark.parametrize("outcome", [response(503), ConnectFailed("refused")], ids=str)
def test_an_event_is_given_up_after_the_specs_retries(outcome: Response | NetError) -> None:
    policy = Policy(retries=2)
    assert isinstance(decide(outcome, 2, random.Random(1), policy), RetryIn)
    given_up = decide(outcome, 3, random.Random(1), policy)
    assert isinstance(given_up, Reject)
    assert given_up.message.startswith("Given up after 3 attempts: ")


def test_an_event_that_is_given_up_without_a_dead_letter_sink_is_refused() -> None:
    sink = ScriptedSink(response(503), response(500))
    with pytest.raises(Refused, match="Given up after 2 attempts: The sink answered 500") as raised:
        run_virtual(delivery(sink, policy=Policy(retries=1)).emit(EVENT))
    assert raised.value.status == 500


@pytest.mark.parametrize("script", [[response(503), response(503)], [response(400)]], ids=["given up", "refused"])
def test_an_event_that_the_sink_does_not_take_is_the_dead_letter_sinks_which_is_waited_for(
    script: list[Response],
) -> None:
    metrics = Metrics()
    away = [response(503)] * 5
    sink = ScriptedSink(*script, *away)
    run_virtual(delivery(sink, metrics, policy=Policy(retries=1, dead_letter_sink=DEAD_LETTERS)).emit(EVENT))
    assert len(sink.sent) == len(script) + len(away) + 1
    _, _, target, headers, body = sink.sent[-1]
    assert target == b"/dead"
    assert headers[b"host"] == b"letters.default.svc.cluster.local"
    assert headers[b"ce-knativeerrordest"].endswith(b"/default/main")
    assert headers[b"ce-knativeerrorcode"] == str(script[-1].status).encode()
    assert (headers[b"ce-id"], body) == (b"1", b"{}")
    assert 'outcome="dead-letter"} 1' in metrics.expose()


def test_a_dead_letter_that_is_refused_as_well_is_raised_with_both_sinks_words() -> None:
    sink = ScriptedSink(response(400), response(413))
    with pytest.raises(Refused, match=r"answered 400.*dead-letter sink.*413") as raised:
        run_virtual(delivery(sink, policy=Policy(dead_letter_sink=DEAD_LETTERS)).emit(EVENT))
    assert raised.value.status == 413


def test_the_format_json_sends_events_in_structured_mode() -> None:
    sink = ScriptedSink()
    run_virtual(delivery(sink, policy=Policy(structured=True)).emit(EVENT))
    _, _, _, headers, body = sink.sent[0]
    assert headers[b"content-type"].startswith(b"application/cloudevents+json")
    assert b'"data":{}' in body
