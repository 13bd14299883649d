"""Order, rate and the annotations as pure pieces; Hypothesis looks for what breaks their promises."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.flow.gathering import MAX_BATCH_BYTES, Gathering
from broker.flow.order import Lanes, key_of
from broker.flow.rate import Bucket, burst_of
from broker.flow.repeats import Repeats
from broker.flow.settings import ANNOTATIONS, FLOW_GROUP, KAFKA_ORDER, ORDER_KEYS, PLAIN, Flow, flow_of, validate_flow
from broker.log.port import Entry, Record
from broker.memo import NOTHING, Planned, decode_memo, encode_memo


def annotated(**settings: str) -> dict[str, str]:
    return {f"{FLOW_GROUP}/{name.replace('_', '-')}": text for name, text in settings.items()}


# ---- annotations


@pytest.mark.parametrize(
    ("annotations", "flow"),
    [
        pytest.param({"example.com/other": "x"}, PLAIN, id="none of ours"),
        pytest.param(annotated(order="ordered"), Flow(order_by=ORDER_KEYS), id="order"),
        pytest.param(annotated(order="unordered"), PLAIN, id="no order"),
        pytest.param(annotated(order="ordered", order_key="subject"), Flow(order_by=("subject",)), id="a key"),
        pytest.param({KAFKA_ORDER: "ordered"}, Flow(order_by=ORDER_KEYS), id="Knative's name for order"),
        pytest.param({KAFKA_ORDER: "ordered", **annotated(order="unordered")}, PLAIN, id="ours comes first"),
        pytest.param(annotated(parallelism="1"), Flow(parallelism=1), id="parallelism"),
        pytest.param(annotated(rate="0.5"), Flow(rate=0.5), id="a rate in seconds"),
        pytest.param(annotated(rate="30/m"), Flow(rate=0.5), id="a rate in minutes"),
        pytest.param(annotated(delay="PT5M"), Flow(delay_s=300.0), id="an ISO delay"),
        pytest.param(annotated(delay="1m30s"), Flow(delay_s=90.0), id="a Go delay"),
        pytest.param(annotated(deduplicate="10m"), Flow(window_s=600.0), id="deduplicate"),
        pytest.param(annotated(batch="50", batch_wait="250ms"), Flow(batch=50, batch_wait_s=0.25), id="batch"),
        pytest.param(annotated(paused="true"), Flow(paused=True), id="paused"),
        pytest.param(annotated(paused="false"), PLAIN, id="not paused"),
    ],
)
def test_annotations_say_how_events_flow(annotations: dict[str, str], flow: Flow):
    assert flow_of(annotations) == flow
    assert list(validate_flow(annotations)) == []


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        (annotated(order="yes"), "order]: must be ordered or unordered (yes)"),
        (annotated(order="ordered", order_key="Sub-ject"), "order-key]: must be an attribute's name"),
        (annotated(order_key="subject"), "order-key]: needs delivery.penstock.dev/order to be ordered"),
        (annotated(parallelism="0"), "parallelism]: must be a whole number from 1 to 1024 (0)"),
        (annotated(parallelism="1_0"), "parallelism]: must be a whole number"),
        (annotated(rate="fast"), "rate]: must be events a second"),
        (annotated(rate="0"), "rate]: must be from 1/h"),
        (annotated(rate="1e3"), "rate]: must be events a second"),
        (annotated(delay="soon"), "delay]: must be a duration such as PT30S"),
        (annotated(delay="P8D"), "delay]: must be at most 604800 seconds (P8D)"),
        (annotated(deduplicate="25h"), "deduplicate]: must be at most 86400 seconds"),
        (annotated(batch="1001"), "batch]: must be a whole number from 1 to 1000"),
        (annotated(batch_wait="1s"), "batch-wait]: needs delivery.penstock.dev/batch to be 2 or more"),
        (annotated(batch="2", order="ordered"), "batch]: must be 1 where events are ordered"),
        (annotated(paused="yes"), "paused]: must be true or false (yes)"),
        (annotated(pause="true"), "pause]: is not one of"),
        ({KAFKA_ORDER: "fifo"}, "kafka.eventing.knative.dev/delivery.order]: must be ordered or unordered (fifo)"),
    ],
)
def test_a_bad_annotation_is_refused_with_its_key_rule_and_value(annotations: dict[str, str], said: str):
    (error,) = validate_flow(annotations)
    told = f"{error.path}: {error.rule} ({error.value})"
    assert said in told
    assert error.path.startswith("metadata.annotations[")


def test_every_annotation_can_be_set():
    assert {f"{FLOW_GROUP}/{name}" for name in ("order", "order-key", "parallelism", "rate", "delay")} < ANNOTATIONS


# ---- order


def test_the_first_of_the_key_attributes_that_an_event_has_is_its_key():
    assert key_of({"subject": "s", "partitionkey": "p"}, ORDER_KEYS) == "p"
    assert key_of({"subject": "s"}, ORDER_KEYS) == "s"
    assert key_of({"id": "1"}, ORDER_KEYS) is None


@given(
    keys=st.lists(st.sampled_from("abc"), max_size=40),
    choices=st.lists(st.integers(0, 1_000_000), max_size=200),
)
def test_of_each_key_one_goes_at_a_time_and_all_go_in_order(keys: list[str], choices: list[int]):
    lanes: Lanes[tuple[str, int]] = Lanes()
    coming = list(enumerate(keys))
    going: list[tuple[str, int]] = []
    gone: list[tuple[str, int]] = []
    for choice in [*choices, *range(200)]:
        if coming and (choice % 2 or not going):
            number, key = coming.pop(0)
            if lanes.enter(key, (key, number)):
                going.append((key, number))
        elif going:
            done = going.pop(choice // 2 % len(going))
            gone.append(done)
            following = lanes.leave(done[0])
            if following is not None:
                going.append(following)
        assert max(Counter(key for key, _ in going).values(), default=0) <= 1
        keys_going = {key for key, _ in going}
        assert {key for key, _ in lanes.held()} <= keys_going, "what waits has something to wait for"
    assert not coming
    assert not going
    for key in "abc":
        assert [n for k, n in gone if k == key] == [n for n, k in enumerate(keys) if k == key]


def test_what_was_on_its_way_before_the_order_mattered_is_waited_for_whole():
    lanes: Lanes[int] = Lanes()
    lanes.join("a")
    lanes.join("a")
    assert not lanes.enter("a", 3)
    assert lanes.leave("a") is None
    assert lanes.leave("a") == 3
    assert lanes.leave("a") is None
    assert lanes.enter("a", 4)


# ---- rate


@given(
    rate=st.floats(0.01, 5000),
    waits=st.lists(st.floats(0, 10), min_size=1, max_size=60),
    counts=st.lists(st.integers(1, 3), min_size=60, max_size=60),
)
def test_no_window_of_any_length_has_more_than_the_rate_and_its_burst(rate: float, waits: list[float], counts):
    now = 1000.0
    bucket = Bucket(rate, now)
    went: list[tuple[float, int]] = []
    for wait_s, count in zip(waits, counts, strict=False):
        now += wait_s
        while (patience_s := bucket.take(now, count)) > 0:
            now += patience_s
        went.append((now, count))
    for first in range(len(went)):
        total = 0
        for at, count in went[first:]:
            total += count
            most = rate * (at - went[first][0]) + burst_of(rate)
            # Those of one call go together: the last one may bring as many beyond it, less one.
            assert total <= most + (count - 1) + 1e-6 * (1 + most)


def test_who_waits_as_long_as_told_may_go_and_the_rate_is_reached():
    bucket = Bucket(10.0, 0.0)
    now, went = 0.0, 0
    while now < 100.0:
        wait_s = bucket.take(now)
        if wait_s:
            now += wait_s
        else:
            went += 1
    assert went == pytest.approx(1000, abs=2)


def test_a_restart_does_not_give_a_whole_burst_again():
    bucket = Bucket(1000.0, 0.0)
    assert bucket.take(0.0) == 0.0
    assert bucket.take(0.0) > 0


# ---- what is left for the next process


@given(st.lists(st.tuples(st.integers(1, 2**60), st.integers(1, 9999), st.integers(0, 9999), st.floats(0, 2e9))))
def test_what_is_planned_is_found_again(rows):
    planned = [Planned(*row) for row in rows]
    assert list(decode_memo(encode_memo(planned)).planned) == planned


def test_what_cannot_be_read_counts_as_nothing(caplog: pytest.LogCaptureFixture):
    assert decode_memo(b"") == NOTHING
    assert decode_memo(b"\x00") == NOTHING
    assert "cannot be read" in caplog.text


# ---- batches


class Item:
    """As much of a delivery as a gathering looks at."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.courier = None
        entry = Entry("default/default", {}, b"", b"x" * size, 0.0, 255)
        self.record = Record(number, entry)


@given(
    most=st.integers(2, 5),
    sizes=st.lists(st.sampled_from([10, 300_000, 600_000, 2_000_000]), max_size=30),
    waits=st.lists(st.floats(0, 3), min_size=30, max_size=30),
)
def test_batches_are_within_their_limits_in_order_and_none_waits_longer_than_asked(most: int, sizes, waits):
    gathering = Gathering(most, 1.0)
    now, sent = 100.0, []
    arrived: dict[int, float] = {}

    def pump() -> None:
        while count := gathering.count(now):
            batch = gathering.take(count)
            numbers = [delivery.number for delivery in batch.deliveries]
            assert 1 <= len(numbers) <= most
            assert len(numbers) == 1 or sum(sizes[number] for number in numbers) <= MAX_BATCH_BYTES
            sent.extend(numbers)

    for number, (size, wait_s) in enumerate(zip(sizes, waits, strict=False)):
        due = gathering.next_at()
        if due is not None and due <= now + wait_s:
            now = max(due, now)
            pump()
        now = max(now, 100.0 + sum(waits[: number + 1]))
        pump()
        arrived[number] = now
        gathering.add(Item(number, size), now)  # type: ignore[arg-type]  # a fake
        pump()
        assert all(arrived[held.number] + 1.0 > now - 1e-9 for held in gathering.held())
    while (due := gathering.next_at()) is not None:
        now = due
        pump()
    assert sent == list(range(len(sizes)))


# ---- repeats


def record(seq: int, event_id: str, at: float, source: str = "/s") -> Record:
    return Record(seq, Entry("default/default", {"source": source, "id": event_id}, b"", b"", at, 255))


@given(
    sent=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 30)), max_size=60),
    window_s=st.sampled_from([5.0, 60.0]),
)
def test_a_repeat_is_what_has_the_same_id_as_one_within_the_window_before_it(sent, window_s: float):
    repeats = Repeats(window_s)
    records, now = [], 1000.0
    for number, (event_id, wait_s) in enumerate(sent):
        now += wait_s
        records.append(record(number, event_id, now))
    for number, made in enumerate(records):
        id_, at = made.entry.attributes["id"], made.entry.at
        before = [r for r in records[:number] if r.entry.attributes["id"] == id_ and at - r.entry.at <= window_s]
        assert repeats.is_repeat(made) == bool(before)
        assert not repeats.is_repeat(made), "an event is no repeat of itself"


def test_source_and_id_are_not_mixed_up():
    repeats = Repeats(60.0)
    assert not repeats.is_repeat(record(1, "2/3", 0.0, source="1"))
    assert not repeats.is_repeat(record(2, "3", 0.0, source="12/"))
    assert repeats.is_repeat(record(3, "2/3", 0.0, source="1"))


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("broker.flow.repeats.MAX_REMEMBERED", 10)
    repeats = Repeats(1000.0)
    for number in range(100):
        assert not repeats.is_repeat(record(number, str(number), 0.0))
    assert len(repeats) == 10
    assert repeats.is_repeat(record(100, "95", 0.0))
    assert not repeats.is_repeat(record(101, "5", 0.0))
