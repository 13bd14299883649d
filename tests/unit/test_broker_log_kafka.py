"""The Kafka event log's pure parts: whose a subscription is, how positions are encoded, and what is removed when."""

import itertools
import random

import pytest
from aiokafka.errors import KafkaStorageError, NotEnoughReplicasError
from hypothesis import given
from hypothesis import strategies as st

from broker.ledger import Attempt
from broker.log.kafka.address import Address, address_of, shown
from broker.log.kafka.batch import BATCH_POSITIONS, HURRIED_POSITIONS, Batch, payloads
from broker.log.kafka.connection import unavailable
from broker.log.kafka.layout import (
    Said,
    Stored,
    Topics,
    decode_kept,
    encode_batch,
    encode_dropped,
    encode_kept,
    encode_said,
    member_key,
    position_key,
    stored_in,
    undelivered_key,
)
from broker.log.kafka.retention import Sizes, removable
from broker.log.kafka.state import LEASE_S, Holder, State
from broker.log.kafka.topics import MAX_STATE_BATCH_BYTES
from broker.log.port import LogFull, Position, Subscription
from core.errors import Corrupt, Unavailable


class Topic:
    """A state topic that is written one record at a time; its clock moves by hand."""

    def __init__(self) -> None:
        self.records: list[Stored] = []
        self.state = State()
        self.now_ms = 1_000_000

    def write(self, key: bytes, value: bytes | None) -> int:
        record = Stored(len(self.records), self.now_ms, key, value)
        self.records.append(record)
        self.state.apply(record)
        return record.offset

    def say(self, owner: str, *asks: str, life: str = "1", **holds: int) -> int:
        """The fencing token that the asking has if it is granted."""
        return self.write(member_key(owner), encode_said(Said(life, len(asks) + len(holds), holds, asks))) + 1

    def keep(self, uid: str, token: int, through: int) -> None:
        self.write(position_key(uid), encode_kept(token, "default/default", f"default/{uid}", Position(through)))

    def through(self, uid: str) -> int | None:
        kept = self.state.kept(uid)
        return None if kept is None else kept.through


@pytest.fixture
def topic() -> Topic:
    return Topic()


class TestWhoseASubscriptionIs:
    def test_who_asks_first_gets_it_and_who_asks_second_does_not(self, topic: Topic):
        token = topic.say("a", "u")
        topic.say("b", "u")
        assert topic.state.holder("u") == Holder("a", token)

    def test_it_stays_with_who_says_that_it_has_it(self, topic: Topic):
        token = topic.say("a", "u")
        for _ in range(10):
            topic.now_ms += 1500
            topic.say("a", u=token)
            topic.say("b", "u")
        assert topic.state.holder("u") == Holder("a", token)

    def test_it_is_free_once_its_holder_says_that_it_has_it_no_more(self, topic: Topic):
        topic.say("a", "u")
        topic.say("a")
        assert topic.state.holder("u") is None
        token = topic.say("b", "u")
        assert topic.state.holder("u") == Holder("b", token)

    def test_it_is_free_once_its_holder_has_left(self, topic: Topic):
        topic.say("a", "u")
        topic.write(member_key("a"), None)
        assert topic.state.holder("u") is None
        assert topic.state.members() == {}

    def test_it_may_be_asked_for_once_its_holder_has_said_nothing_for_a_leases_time(self, topic: Topic):
        topic.say("a", "u")
        topic.now_ms += int(LEASE_S * 1000)
        topic.say("b", "u")
        assert topic.state.holder("u") == Holder("a", 1)
        topic.now_ms += 1
        token = topic.say("b", "u")
        assert topic.state.holder("u") == Holder("b", token)
        assert topic.state.members() == {"b": 1}

    def test_a_holder_that_comes_back_late_has_lost_it_to_who_asked_meanwhile(self, topic: Topic):
        stale = topic.say("a", "u")
        topic.now_ms += int(LEASE_S * 1000) + 1
        token = topic.say("b", "u")
        topic.say("a", u=stale)
        assert topic.state.holder("u") == Holder("b", token)

    def test_who_starts_again_under_its_name_asks_for_its_own_and_gets_it_at_once(self, topic: Topic):
        topic.say("a", "u", "v")
        token = topic.say("a", "u", life="2")
        assert topic.state.holder("u") == Holder("a", token)
        assert topic.state.holder("v") is None
        assert topic.state.life("a") == "2"

    def test_what_cannot_be_read_is_as_good_as_gone(self, topic: Topic):
        topic.say("a", "u")
        topic.write(member_key("a"), b"{")
        assert topic.state.holder("u") is None

    @given(st.randoms(use_true_random=False))
    def test_every_reader_of_the_same_records_has_the_same_picture_and_nothing_has_two_holders(
        self, rng: random.Random
    ):
        topic = world(rng)
        again = State()
        for record in topic.records:
            again.apply(record)
        uids = ("u", "v", "w")
        assert [again.holder(uid) for uid in uids] == [topic.state.holder(uid) for uid in uids]

    @given(st.randoms(use_true_random=False))
    def test_who_begins_to_read_amid_the_records_has_the_same_picture_after_a_leases_time(self, rng: random.Random):
        """As compaction leaves them: only what was superseded long ago is gone."""
        topic = world(rng)
        begin = rng.randrange(len(topic.records))
        held = {uid: topic.state.holder(uid) for uid in ("u", "v", "w")}
        for _ in range(3):  # everybody says what it has, as it does
            for owner in topic.state.members():
                topic.say(
                    owner, **{uid: holder.token for uid, holder in held.items() if holder and holder.owner == owner}
                )
            topic.now_ms += 1500
        late = State()
        for record in topic.records[begin:]:
            late.apply(record)
        for uid in held:
            assert late.holder(uid) == topic.state.holder(uid)

    def test_an_asking_that_was_refused_is_not_granted_by_who_finds_its_holder_compacted_away(self, topic: Topic):
        token = topic.say("a", "u")
        topic.say("b", "u")  # refused, and b is never heard of again
        for _ in range(4):
            topic.now_ms += 1500
            topic.say("a", u=token)
        topic.keep("u", token, 5)
        late = State()
        for record in topic.records[1:]:
            late.apply(record)
        assert late.holder("u") == Holder("a", token)
        kept = late.kept("u")
        assert kept is not None
        assert kept.through == 5


def world(rng: random.Random) -> Topic:
    """Some processes that ask, hold, give back, and fall silent."""
    topic = Topic()
    for _ in range(rng.randrange(1, 40)):
        owner = rng.choice("abc")
        mine = {
            uid: holder.token
            for uid in ("u", "v", "w")
            if (holder := topic.state.holder(uid)) and holder.owner == owner
        }
        kept = {uid: token for uid, token in mine.items() if rng.random() < 0.8}
        topic.say(owner, *(uid for uid in ("u", "v", "w") if uid not in mine and rng.random() < 0.5), **kept)
        topic.now_ms += rng.choice((10, 1500, 6000))
    return topic


class TestPositions:
    def test_the_last_one_of_its_holder_counts(self, topic: Topic):
        token = topic.say("a", "u")
        topic.keep("u", token, 5)
        topic.keep("u", token, 7)
        assert topic.through("u") == 7

    def test_what_a_holder_keeps_after_another_was_granted_does_not_count(self, topic: Topic):
        stale = topic.say("a", "u")
        topic.keep("u", stale, 5)
        topic.now_ms += 6000
        topic.say("b", "u")
        topic.keep("u", stale, 9)
        assert topic.through("u") == 5

    def test_what_was_kept_before_the_release_counts(self, topic: Topic):
        token = topic.say("a", "u")
        topic.keep("u", token, 5)
        topic.say("a")
        topic.keep("u", token, 6)
        assert topic.through("u") == 6

    def test_a_dropped_one_is_gone_and_what_was_in_flight_for_it_brings_it_not_back(self, topic: Topic):
        token = topic.say("a", "u")
        topic.keep("u", token, 5)
        topic.write(position_key("u"), encode_dropped("default/default", "default/u"))
        topic.keep("u", token, 6)
        assert topic.through("u") is None
        assert topic.state.all_kept() == {}
        assert decode_kept(topic.state.stored()["u"]).name == "default/u"

    def test_one_that_cannot_be_read_is_none(self, topic: Topic):
        topic.write(position_key("u"), b"{")
        assert topic.through("u") is None

    def test_events_that_nobody_took_are_known_until_they_are_removed(self, topic: Topic):
        topic.write(undelivered_key(5), b"")
        topic.write(undelivered_key(7), b"")
        topic.write(undelivered_key(5), None)
        assert topic.state.undelivered == {7}

    @given(st.integers(0, 2**40), st.sets(st.integers(1, 5000)))
    def test_a_position_is_read_as_it_was_written(self, base: int, opened: set[int]):
        position = Position(base + max(opened, default=0), tuple(base + seq for seq in sorted(opened)))
        assert decode_kept(encode_kept(3, "b", "n", position)).position == position

    @pytest.mark.parametrize(
        "stored", [b"[]", b'{"token":0,"broker":"\xe9","name":"n"}'], ids=["no object", "no UTF-8"]
    )
    def test_what_is_no_position_is_refused(self, stored: bytes):
        with pytest.raises(Corrupt):
            decode_kept(stored)


def wait_for(waiting: Batch, uid: str) -> None:
    """Have a position of this subscription wait to be kept."""
    waiting.dirty[uid] = Subscription(uid, "b", "n", Position(3), lambda _: None)


class TestBatches:
    def test_a_batch_is_read_as_it_was_written_from_any_offset_on(self):
        pairs = [(b"k%d" % n, b"v%d" % n if n % 2 else None, 1000 + n) for n in range(5)]
        stored = list(stored_in(encode_batch(pairs), 2))
        assert [(each.key, each.value, each.time_ms) for each in stored] == pairs[2:]
        assert [each.offset for each in stored] == [2, 3, 4]

    def test_the_records_of_a_batch_with_a_wrong_checksum_are_told_without_content(self):
        data = bytearray(encode_batch([(b"k", b"value", 1000), (b"k", b"other", 1000)]))
        data[-3] ^= 1
        assert [(each.offset, each.value) for each in stored_in(bytes(data), 0)] == [(0, None), (1, None)]

    def test_a_position_is_written_before_what_gives_its_subscription_back(self):
        waiting = Batch()
        held = Subscription("u", "default/default", "default/u", Position(3), lambda _: None)
        waiting.dirty["u"] = held
        waiting.say()
        taken = waiting.take(positions=False)
        made, count = payloads(Topics.of("log"), "me", taken, lambda _: 4, lambda: Said("1"))
        keys = [each.key for each in stored_in(made["log-state"], 0)]
        assert keys == [position_key("u"), member_key("me")]
        assert count == 2
        assert waiting.empty

    def test_positions_wait_while_nobody_asks_for_them(self):
        waiting = Batch()
        wait_for(waiting, "u")
        waiting.notes.append(Attempt(1, "u", 1.0, 1, 202, 0.1, "delivered"))
        taken = waiting.take(positions=False)
        assert len(taken.notes) == 1
        assert not taken.dirty
        assert waiting.has_state

    def test_many_positions_take_several_round_trips_but_all_come_before_what_is_said(self):
        waiting = Batch()
        for n in range(BATCH_POSITIONS + 44):
            wait_for(waiting, f"u{n}")
        assert len(waiting.take(positions=True).dirty) == BATCH_POSITIONS
        assert len(waiting.dirty) == 44
        for n in range(BATCH_POSITIONS):
            wait_for(waiting, f"v{n}")
        waiting.say()
        taken = waiting.take(positions=False)
        assert (len(taken.dirty), taken.says) == (BATCH_POSITIONS + 44, True)

    def test_what_is_said_waits_for_no_more_positions_than_were_there_and_is_in_no_batch_that_is_too_large(self):
        waiting = Batch()
        for n in range(2 * HURRIED_POSITIONS + 1):
            wait_for(waiting, f"u{n}")
        waiting.say()
        for said in (False, False, True):
            taken = waiting.take(positions=False)
            assert (len(taken.dirty), taken.says) == (HURRIED_POSITIONS, said)
            for n in range(HURRIED_POSITIONS):  # each moves on at once
                wait_for(waiting, f"u{n}")
        assert not waiting.says

    def test_positions_with_much_open_make_no_batch_that_the_topic_refuses_as_too_large(self):
        waiting = Batch()
        position = Position(5_000_000, tuple(range(1000, 4_097_000, 1000)))  # all that a Trigger with an order may have
        for n in range(HURRIED_POSITIONS):
            waiting.dirty[f"u{n}"] = Subscription(f"u{n}", "b", "n", position, lambda _: None)
        waiting.say()
        taken, says = 0, False
        while not says:
            batch = waiting.take(positions=False)
            taken, says = taken + len(batch.dirty), batch.says
            made, _ = payloads(Topics.of("log"), "me", batch, lambda _: 4, lambda: Said("1"))
            assert len(made["log-state"]) < MAX_STATE_BATCH_BYTES * 3 // 4
        assert taken == HURRIED_POSITIONS

    def test_what_is_remembered_makes_no_batch_that_the_topic_refuses_as_too_large(self):
        waiting = Batch()
        for n in range(HURRIED_POSITIONS):
            wait_for(waiting, f"u{n}")
            waiting.memos[f"u{n}"] = bytes(30 * 1024)
        waiting.say()
        taken = waiting.take(positions=False)
        made, _ = payloads(Topics.of("log"), "me", taken, lambda _: 4, lambda: Said("1"))
        assert taken.says
        assert len(made["log-state"]) < MAX_STATE_BATCH_BYTES // 2
        assert len(taken.memos) + len(waiting.memos) == HURRIED_POSITIONS
        assert waiting.take(positions=True).memos

    def test_what_is_said_comes_after_the_positions_also_once_those_were_refused_or_dropped(self):
        waiting = Batch()
        for n in range(HURRIED_POSITIONS + 2):
            wait_for(waiting, f"u{n}")
        waiting.say()
        waiting.put_back_state(waiting.take(positions=False))
        assert not waiting.take(positions=False).says
        for uid in tuple(waiting.dirty):
            waiting.dropped[uid] = waiting.dirty.pop(uid)
        assert waiting.take(positions=False).says

    def test_what_was_refused_is_kept_unless_something_newer_is_there(self):
        waiting, refused = Batch(), Batch()
        old, new = (Subscription("u", "b", "n", Position(n), lambda _: None) for n in (1, 2))
        other = Subscription("v", "b", "n", Position(1), lambda _: None)
        refused.dirty = {"u": old, "v": other}
        waiting.dirty, waiting.dropped = {"u": new}, {"v": other}
        waiting.put_back_state(refused)
        assert waiting.dirty == {"u": new}
        assert waiting.dropped == {"v": other}


@pytest.mark.parametrize(
    ("low_water", "aged", "very_aged", "undelivered", "crowded", "expected"),
    [
        pytest.param(100, 50, 10, None, 0, 50, id="what is old goes"),
        pytest.param(30, 50, 10, None, 0, 30, id="but for what somebody still needs"),
        pytest.param(100, 50, 10, 20, 0, 19, id="and what nobody took, with all after it"),
        pytest.param(100, 50, 30, 20, 0, 30, id="until that is very old"),
        pytest.param(100, 50, 10, 20, 60, 60, id="or the log is too large"),
        pytest.param(40, 50, 10, 20, 60, 40, id="which removes nothing that somebody needs"),
        pytest.param(100, 0, 0, None, 0, 0, id="what is young stays"),
    ],
)
def test_events_go_from_the_beginning_up_to_the_first_that_stays(
    low_water: int, aged: int, very_aged: int, undelivered: int | None, crowded: int, expected: int
):
    upto = removable(low_water=low_water, aged=aged, very_aged=very_aged, undelivered=undelivered, crowded=crowded)
    assert upto == expected


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.data())
def test_sizes_are_known_to_within_a_mark_and_an_event(sizes: list[int], data: st.DataObject):
    largest = 100_000
    known = Sizes(start=10, end=10, size=0, largest=largest)
    for seq, size in enumerate(sizes, 11):
        known.add(seq, size)
    near = largest // 1000 + max(sizes)
    ends = [0, *itertools.accumulate(sizes)]
    gone = data.draw(st.integers(0, len(sizes)))
    assert abs(known.after(10 + gone) - (ends[-1] - ends[gone])) <= near
    wanted = data.draw(st.integers(0, ends[-1]))
    left = ends[-1] - ends[known.position(wanted) - 10]
    assert abs(left - wanted) <= near
    known.forget(10 + gone)
    assert abs(known.after(10 + gone) - (ends[-1] - ends[gone])) <= near


def test_what_was_there_before_is_taken_to_have_grown_evenly():
    known = Sizes(start=0, end=100, size=1000, largest=10_000)
    assert known.after(50) == 500
    assert known.position(250) == 75


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("localhost:9092", Address(servers=("localhost:9092",))),
        ("a:1,b:2", Address(servers=("a:1", "b:2"))),
        ("ssl://a:1", Address(servers=("a:1",), protocol="SSL")),
        (
            "sasl_ssl://me:p%40ss@a:1,b:2?mechanism=SCRAM-SHA-512",
            Address(servers=("a:1", "b:2"), protocol="SASL_SSL", mechanism="SCRAM-SHA-512", user="me", password="p@ss"),  # noqa: S106
        ),
    ],
)
def test_an_address_is_read(written: str, read: Address):
    assert address_of(written) == read
    assert "p@ss" not in shown(written)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("localhost", "'localhost' is not host:port"),
        ("", "no host:port is given"),
        ("http://a:1", "http:// is none of plaintext://"),
        ("sasl_ssl://a:1", "needs user:password@"),
        ("a:1,b", "'b' is not host:port"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_with_the_reason(written: str, why: str):
    with pytest.raises(ValueError, match=why):
        address_of(written)


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        pytest.param(KafkaStorageError(), LogFull, id="disk"),
        pytest.param(NotEnoughReplicasError(), Unavailable, id="replicas"),
        pytest.param(OSError("away"), Unavailable, id="connection"),
        pytest.param(LogFull("full"), LogFull, id="said already"),
    ],
)
def test_what_kafka_answers_becomes_the_refusal_of_the_same_meaning(error: Exception, refusal: type[Exception]):
    assert type(unavailable(error)) is refusal
