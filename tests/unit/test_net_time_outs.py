"""When the server loses patience. The sweep is given the time; no socket, no waiting."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.net.connection import ServerConnection
from core.net.server import HttpServer, ServerLimits
from tests.support.http import Deaf, Recorder

LIMITS = ServerLimits(head_timeout_s=10, idle_timeout_s=75, stall_timeout_s=60, linger_timeout_s=2)
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n"


class Scene:
    """One connection, at time 0."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.server = HttpServer(self.recorder, limits=LIMITS)
        self.connection = ServerConnection(self.server)
        self.transport = Deaf(self.connection)

    def receive(self, data: bytes) -> None:
        self.connection.data_received(data)

    def answer(self, body: bytes = b"") -> None:
        self.recorder.exchanges[-1].respond(200, [], body)

    def start_answer(self) -> None:
        self.recorder.exchanges[-1].start(200, [], None)
        self.connection.pause_writing()
        self.transport.unsent = 1000

    def sweep(self, now: float) -> None:
        self.server.sweep(now)

    def ended(self) -> str:
        """How the server ended it, if it did."""
        if self.transport.aborted:
            return "aborted"
        if self.transport.closed:
            return "closed"
        if self.transport.ended:
            return self.transport.written.rsplit(b"HTTP/1.1 ", 1)[1][:3].decode()
        return "open"


def _nothing_sent(scene: Scene) -> None:
    pass


def _part_of_a_head(scene: Scene) -> None:
    scene.receive(GET[:-2])


def _one_byte_now_and_then(scene: Scene) -> None:
    for now, byte in enumerate(GET[:9]):
        scene.sweep(now)
        scene.receive(bytes([byte]))


def _idle_after_a_request(scene: Scene) -> None:
    scene.receive(GET)
    scene.answer()
    scene.transport.take()


def _part_of_the_next_head(scene: Scene) -> None:
    _idle_after_a_request(scene)
    scene.receive(GET[:5])


def _part_of_a_body(scene: Scene) -> None:
    scene.receive(POST + b"123")


def _part_of_a_body_whose_answer_began(scene: Scene) -> None:
    scene.receive(POST + b"123")
    scene.recorder.exchanges[0].start(200, [], None)


def _part_of_a_body_that_is_only_dropped(scene: Scene) -> None:
    scene.receive(POST + b"123")
    scene.answer()


def _answer_not_taken(scene: Scene) -> None:
    scene.receive(GET)
    scene.start_answer()
    scene.sweep(60)  # seen to have something unsent


def _refused_and_still_there(scene: Scene) -> None:
    scene.receive(b"BAD\r\n\r\n")


@pytest.mark.parametrize(
    ("prepare", "last_s", "over_s", "ended"),
    [
        (_nothing_sent, 9, 10, "closed"),
        (_part_of_a_head, 9, 10, "408"),
        (_one_byte_now_and_then, 9, 10, "408"),
        (_idle_after_a_request, 74, 75, "closed"),
        (_part_of_the_next_head, 9, 10, "408"),
        (_part_of_a_body, 59, 60, "408"),
        (_part_of_a_body_whose_answer_began, 59, 60, "aborted"),
        (_part_of_a_body_that_is_only_dropped, 59, 60, "aborted"),
        (_answer_not_taken, 119, 120, "aborted"),
        (_refused_and_still_there, 1, 2, "aborted"),
    ],
    ids=lambda value: value.__name__.strip("_").replace("_", " ") if callable(value) else None,
)
async def test_a_client_has_so_long(prepare: Callable[[Scene], None], last_s: float, over_s: float, ended: str) -> None:
    scene = Scene()
    prepare(scene)
    before = scene.ended()
    scene.sweep(last_s)
    assert scene.ended() == before
    scene.sweep(over_s)
    assert scene.ended() == ended


async def test_a_client_whose_body_stalls_is_lost_to_its_handler() -> None:
    scene = Scene()
    _part_of_a_body(scene)
    scene.sweep(60)
    assert scene.recorder.sinks[0].names == ["body", "lost"]


async def test_a_handler_may_take_as_long_as_it_likes() -> None:
    scene = Scene()
    scene.receive(GET)
    scene.sweep(100_000)
    assert scene.ended() == "open"
    scene.answer(b"at last")
    assert scene.transport.take().endswith(b"at last")


async def test_a_client_is_not_blamed_for_a_body_that_the_handler_keeps_back() -> None:
    scene = Scene()
    scene.receive(POST)
    scene.recorder.exchanges[0].pause()
    assert not scene.transport.reading
    scene.sweep(100_000)
    assert scene.ended() == "open"


async def test_a_body_that_trickles_is_waited_for() -> None:
    scene = Scene()
    scene.receive(POST)
    for number in range(9):
        scene.sweep(number * 50)
        scene.receive(b"x")
    assert scene.ended() == "open"


async def test_an_answer_that_is_taken_slowly_is_not_cut_off() -> None:
    scene = Scene()
    scene.receive(GET)
    scene.start_answer()
    for number in range(1, 9):
        scene.sweep(number * 60)
        assert scene.ended() == "open"
        scene.transport.unsent -= 100
    scene.connection.resume_writing()
    scene.sweep(100_000)
    assert scene.ended() == "open"


async def test_time_counts_from_the_last_sweep_and_not_from_the_start() -> None:
    scene = Scene()
    scene.sweep(9)
    scene.receive(GET)
    scene.answer()
    scene.transport.take()
    scene.sweep(83)
    assert scene.ended() == "open"
    scene.sweep(84)
    assert scene.ended() == "closed"
