"""The parts of the REST store that need no server: what its errors mean, and how a watch's bytes become lines."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.control.api_status import error_of_answer, error_of_status, is_status
from core.control.rest_watch import LineStream
from core.errors import (
    AlreadyExists,
    Conflict,
    Gone,
    InvalidInput,
    NotFound,
    Overloaded,
    PenstockError,
    Unavailable,
)
from core.limits import MAX_RESOURCE_BYTES
from core.net.types import ConnectionLost
from tests.support.virtual_time import run_virtual


def status(code: int, reason: str = "", message: str = "It is so.", **details: object) -> bytes:
    document = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message}
    return json.dumps({**document, "details": details}).encode()


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (400, "BadRequest", InvalidInput),
        (401, "Unauthorized", Unavailable),
        (403, "Forbidden", InvalidInput),
        (404, "NotFound", NotFound),
        (405, "MethodNotAllowed", InvalidInput),
        (408, "Timeout", Unavailable),
        (409, "Conflict", Conflict),
        (409, "AlreadyExists", AlreadyExists),
        (410, "Expired", Gone),
        (410, "Gone", Gone),
        (413, "RequestEntityTooLarge", InvalidInput),
        (422, "Invalid", InvalidInput),
        (429, "TooManyRequests", Overloaded),
        (500, "InternalError", Unavailable),
        (503, "ServiceUnavailable", Unavailable),
        (504, "Timeout", Unavailable),
    ],
)
def test_each_status_becomes_the_error_that_says_what_to_do(code: int, reason: str, error: type[PenstockError]):
    found = error_of_answer(code, status(code, reason))
    assert type(found) is error
    assert "It is so." in str(found)
    assert type(error_of_status(status(code, reason))) is error


def test_causes_become_field_errors_and_a_stated_pause_is_kept():
    causes = [{"reason": "FieldValueInvalid", "field": "spec.size", "message": "Invalid value: -1"}]
    invalid = error_of_answer(422, status(422, "Invalid", causes=causes))
    assert isinstance(invalid, InvalidInput)
    assert [(error.path, error.rule) for error in invalid.errors] == [("spec.size", "Invalid value: -1")]
    overloaded = error_of_answer(429, status(429, retryAfterSeconds=7))
    assert isinstance(overloaded, Overloaded)
    assert overloaded.retry_after_s == 7


@pytest.mark.parametrize(("header", "seconds"), [("3", 3.0), ("soon", 1.0), (None, 1.0)])
def test_a_pause_that_only_the_header_states_is_kept(header: str | None, seconds: float):
    for body in (b"Too many requests, please try again later.", b'{"kind":"Status","code":429}'):
        overloaded = error_of_answer(429, body, header)
        assert isinstance(overloaded, Overloaded)
        assert overloaded.retry_after_s == seconds


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>Bad Gateway</html>", b'{"kind": 7}', b"\xff\xfe", b"null", b'{"kind":"Status","details":null}'],
)
def test_an_answer_that_is_no_status_is_still_judged_by_its_code(body: bytes):
    assert type(error_of_answer(502, body)) is Unavailable
    assert type(error_of_answer(404, body)) is NotFound
    assert type(error_of_status(body)) is Unavailable


def test_a_status_is_told_from_a_resource():
    assert is_status(status(200))
    assert not is_status(b'{"kind":"Status","apiVersion":"example.com/v1"}')
    assert not is_status(b'{"kind":"Flow","apiVersion":"v1","metadata":{}}')


class Upstream:
    """The client's side of the request, which only notes what the stream asks of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def write(self, chunk: bytes) -> None:
        self.asked.append("write")

    def end(self) -> None:
        self.asked.append("end")

    def cancel(self) -> None:
        self.asked.append("cancel")

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")


def stream(status_code: int = 200) -> tuple[LineStream, Upstream]:
    made, upstream = LineStream(), Upstream()
    made.request = upstream
    made.head(status_code, [], None)
    return made, upstream


async def rest_of(lines: LineStream) -> list[bytes]:
    taken = []
    while (line := await lines.next_line()) is not None:
        taken.append(line)
    return taken


@given(
    st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"x"))),
    st.lists(st.integers(1, 7), min_size=1),
)
def test_lines_come_out_as_they_went_in_however_they_were_cut(lines: list[bytes], cuts: list[int]):
    async def main() -> list[bytes]:
        made, _ = stream()
        text, position = b"".join(line + b"\n" for line in lines), 0
        while position < len(text):
            size = cuts[position % len(cuts)]
            made.body(text[position : position + size])
            position += size
        made.end()
        return await rest_of(made)

    assert run_virtual(main()) == [line for line in lines if line]


def test_lines_before_a_failure_are_still_told_then_the_failure():
    async def main() -> None:
        made, _ = stream()
        made.body(b"one\ntwo\nhal")
        made.failed(ConnectionLost("The peer went.", sent=True, fresh=True))
        assert await made.next_line() == b"one"
        assert await made.next_line() == b"two"
        for _ in range(2):
            with pytest.raises(Unavailable, match="The peer went"):
                await made.next_line()

    run_virtual(main())


def test_a_refused_watch_raises_what_its_body_says():
    async def main() -> None:
        made, _ = stream(410)
        made.body(status(410, "Expired", "Too old.")[:10])
        made.body(status(410, "Expired", "Too old.")[10:])
        made.end()
        with pytest.raises(Gone, match="Too old"):
            await made.next_line()

    run_virtual(main())


def test_a_reader_that_falls_behind_stops_the_peer_until_it_has_caught_up():
    async def main() -> None:
        made, upstream = stream()
        line = b"x" * (MAX_RESOURCE_BYTES // 2) + b"\n"
        for _ in range(4):
            made.body(line)
        assert upstream.asked == []
        made.body(line)
        assert upstream.asked == ["pause"]
        for _ in range(4):
            await made.next_line()
        assert upstream.asked == ["pause"]
        await made.next_line()
        assert upstream.asked == ["pause", "resume"]

    run_virtual(main())


def test_a_line_without_end_is_given_up():
    async def main() -> None:
        made, upstream = stream()
        made.body(b"x" * (2 * MAX_RESOURCE_BYTES + 1))
        assert upstream.asked == ["cancel"]
        with pytest.raises(Unavailable, match="line of more than"):
            await made.next_line()
        made.close()
        assert upstream.asked == ["cancel"]

    run_virtual(main())


def test_a_waiting_reader_is_woken_by_a_line_an_end_and_a_failure():
    async def main() -> None:
        made, _ = stream()
        waiting = asyncio.ensure_future(made.next_line())
        await asyncio.sleep(0)
        made.body(b"one\n")
        assert await waiting == b"one"
        waiting = asyncio.ensure_future(made.next_line())
        await asyncio.sleep(0)
        made.end()
        assert await waiting is None

    run_virtual(main())


def test_closing_cancels_the_request_once_and_not_after_its_end():
    made, upstream = stream()
    made.close()
    made.close()
    assert upstream.asked == ["cancel"]
    ended, upstream = stream()
    ended.end()
    ended.close()
    assert upstream.asked == []
