"""How the Redis event log writes things down, and what asks for it."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.ledger import Attempt
from broker.log.encoding import arrival_of, decode_attempt, decode_record, encode_attempt, encode_entry
from broker.log.port import Entry, Position, Record, Subscription
from broker.log.redis.batch import Batch, other_commands
from broker.log.redis.connection import shown, version_of
from broker.log.redis.layout import Keys, decode_kept, encode_kept
from core.errors import Corrupt
from core.events import CloudEvent, binary_head
from penstock.standalone.eventlog import log_name
from penstock.standalone.settings import functions_environment

BROKER = "default/default"


def entry(data: bytes, cause: int | None = None, via: str | None = None, at: float = 1000.5) -> Entry:
    event = CloudEvent.of({"specversion": "1.0", "id": "a", "source": "/test", "type": "test.made"}, data)
    return Entry(BROKER, event.attributes, binary_head(event), data, at, 7, cause, via)


@given(
    data=st.binary(max_size=50), cause=st.none() | st.integers(1, 2**40), via=st.none() | st.text("abc-1", min_size=1)
)
def test_an_entry_reads_as_it_was_written(data: bytes, cause: int | None, via: str | None):
    given_entry = entry(data, cause, via)
    assert decode_record(3, BROKER, encode_entry(given_entry)) == Record(3, given_entry)


def test_a_row_of_the_ledger_reads_as_it_was_written_and_one_of_the_first_version_as_well():
    attempt = Attempt(3, "uid-1", 1000.5, 1, 503, 0.25, "retrying", "busy", "scan-00002", 0.125)
    assert decode_attempt(encode_attempt(attempt)) == attempt
    first = b'[3,"uid-1",1000.5,1,503,0.25,"retrying","busy"]'
    assert decode_attempt(first) == Attempt(3, "uid-1", 1000.5, 1, 503, 0.25, "retrying", "busy")


def test_a_row_of_the_ledger_that_is_no_text_any_more_is_corrupt():
    with pytest.raises(Corrupt, match="cannot be read"):
        decode_attempt(b'[3,"uid-\xff",1000.5,1,503,0.25,"retrying","busy"]')


@given(at=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_changed_bit_anywhere_is_corrupt(at: int, bit: int):
    stored = bytearray(encode_entry(entry(b"payload", 5, "uid-1")))
    stored[at % len(stored)] ^= 1 << bit
    with pytest.raises(Corrupt):
        decode_record(3, BROKER, bytes(stored))


@given(st.binary(max_size=40))
def test_bytes_that_are_no_entry_are_corrupt_and_tell_no_time_or_some(stored: bytes):
    with pytest.raises(Corrupt):
        decode_record(3, BROKER, stored)
    assert isinstance(arrival_of(stored), float)


def test_an_entry_belongs_to_its_broker():
    with pytest.raises(Corrupt):
        decode_record(3, "default/other", encode_entry(entry(b"")))


def test_a_position_reads_as_it_was_written():
    kept = decode_kept(encode_kept(BROKER, "default/one", 9, (3, 7)))
    assert (kept.broker, kept.name, kept.position) == (BROKER, "default/one", Position(9, (3, 7)))
    with pytest.raises(Corrupt):
        decode_kept(b"{")
    older = b'{"broker":"default/default","name":"default/one","through":9,"open":[3,7]}'
    assert decode_kept(older).position == kept.position


@pytest.mark.parametrize(
    ("was", "becomes"), [(b"9", b"8"), (b"3,7", b"3"), (b"default/o", b"default/O"), (b"/default", b"/defaulu")]
)
def test_a_changed_position_is_corrupt(was: bytes, becomes: bytes):
    stored = encode_kept(BROKER, "default/one", 9, (3, 7))
    with pytest.raises(Corrupt):
        decode_kept(stored.replace(was, becomes, 1))


def test_what_was_refused_comes_before_what_came_since_and_what_was_dropped_since_stays_dropped():
    refused, since = Batch(), Batch()
    gone, moved = (Subscription(uid, BROKER, uid, Position(1), lambda held: None) for uid in ("gone", "moved"))
    refused.dirty = {"gone": gone, "moved": moved}
    refused.released = [("lease", "1 first")]
    since.dropped = {"gone": None}
    since.put_back(refused)
    assert since.dirty == {"moved": moved}
    assert since.released == [("lease", "1 first")]
    commands, keep = other_commands(Keys("name"), since, lambda uid: "4")
    assert [words[0] for words in commands] == ["HDEL", "HDEL", "HDEL", "EVAL", "EVAL"]
    assert keep == 3
    assert commands[3][-4:-1] == ("moved", "4", "moved")


def test_a_log_keeps_its_name_and_no_two_have_the_same(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert log_name(first, "redis") == log_name(first, "redis") != log_name(second, "redis")
    assert log_name(first, "kafka") != log_name(first, "redis")


def test_functions_do_not_inherit_the_logs_password():
    own = {"PATH": "/bin", "PENSTOCK_PROCESS": "{}", "PENSTOCK_REDIS_URL": "redis://:secret@cache.test"}
    assert functions_environment(own) == {"PATH": "/bin"}


def test_a_url_is_shown_without_its_password():
    assert shown("redis://user:secret@cache.test:6380/2") == "redis://cache.test:6380/2"


def test_the_servers_version_is_its_first_number():
    assert version_of(b"# Server\r\nredis_version:7.0.15\r\nredis_git_sha1:0\r\n") == 7
    assert version_of(b"") == 0


def test_a_platform_on_sqlite_does_not_load_the_redis_client():
    loaded = "import sys, penstock.standalone.broker, penstock.standalone.control; print('redis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
