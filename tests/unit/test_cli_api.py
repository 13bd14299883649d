"""The command line's connection: what it makes of servers that refuse, break off, or are something else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from penstock.cli.api import Api, Refused, collection_path, connect, object_path
from penstock.cli.failure import FAILED, NOT_FOUND, UNREACHABLE, Failure
from penstock.cli.words import registry

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}'
DEADLINE_S = 10.0

Talk = Callable[[socket.socket], None]


@contextmanager
def server(*talks: Talk) -> Iterator[Api]:
    """A server that has one conversation after the other, each on a connection of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)

        def serve() -> None:
            for talk in talks:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(DEADLINE_S)
                    talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Api(f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            thread.join(DEADLINE_S)
    assert not thread.is_alive()


def answer(text: bytes) -> Talk:
    def talk(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(text)

    return talk


def hang_up(connection: socket.socket) -> None:
    connection.recv(65_536)


def refused(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def test_a_get_is_sent_again_when_the_process_behind_the_listener_is_restarted():
    with server(hang_up, answer(OK)) as api:
        assert api.request("GET", "/") == {"a": 1}


def test_what_may_have_been_done_is_not_done_twice():
    with server(hang_up) as api, pytest.raises(Failure) as caught:
        api.request("POST", "/", body={})
    assert caught.value.exit_code == UNREACHABLE


def test_a_listener_that_never_answers_is_no_platform():
    with server(hang_up, hang_up) as api, pytest.raises(Failure) as caught:
        api.request("GET", "/")
    assert caught.value.exit_code == UNREACHABLE
    assert "penstock up" in caught.value.hint


@pytest.mark.parametrize(
    ("told", "code", "message"),
    [
        pytest.param(refused("404 x", b'{"message": "no such thing"}'), NOT_FOUND, "no such thing", id="Status"),
        pytest.param(refused("422 x", b'{"detail": "not so"}'), FAILED, "not so", id="detail"),
        pytest.param(refused("413 x", b"too large\n"), FAILED, "too large", id="text"),
        pytest.param(refused("500 x", b""), FAILED, "The server answered 500.", id="nothing"),
    ],
)
def test_a_refusal_is_told_with_its_own_words(told, code, message):
    with server(answer(told)) as api, pytest.raises(Refused) as caught:
        api.request("POST", "/", body={})
    assert (caught.value.exit_code, caught.value.message) == (code, message)


def test_what_the_server_warns_of_is_told_once(capsys):
    warned = (
        b'HTTP/1.1 200 OK\r\nWarning: 299 - "a \\"b\\" c"\r\nWarning: 299 - "d"\r\nWarning: 110 x\r\n'
        + OK.partition(b"\r\n")[2]
    )
    with server(answer(warned), answer(warned)) as api:
        assert api.request("POST", "/", body={}) == {"a": 1}
        assert api.request("POST", "/", body={}) == {"a": 1}
    assert capsys.readouterr().err == 'warning: a "b" c\nwarning: d\n'


def test_a_refusal_is_read_though_the_body_was_not():
    def refuse_early(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(refused("413 x", b"too large"))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1_000_000):
            pass

    with server(refuse_early) as api, pytest.raises(Refused, match="too large"):
        api.request("POST", "/", body=b"x" * 20_000_000)


def test_something_else_that_answers_is_no_platform():
    page = b"<html>Welcome</html>"
    with server(answer(refused("200 OK", page))) as api, pytest.raises(Failure) as caught:
        api.request("GET", "/")
    assert "not the API server of a platform" in caught.value.message
    assert caught.value.exit_code == UNREACHABLE


@pytest.mark.parametrize(
    "url", ["", "foo", "localhost:8082", "https://127.0.0.1", "http://", "http://x:y", "http://x:99999", "http://x/api"]
)
def test_what_is_no_url_of_a_platform_is_refused_with_how_to_write_it(url):
    with pytest.raises(Failure) as caught:
        Api(url)
    assert repr(url) in caught.value.message
    assert "http://127.0.0.1:8082" in caught.value.hint


def test_a_stream_gives_lines_as_they_come_and_says_where_it_breaks_off():
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server(answer(head + b"4\r\na\nb\n\r\n5\r\nhal")) as api:
        lines = api.stream("/")
        assert (next(lines), next(lines)) == (b"a\n", b"b\n")
        with pytest.raises(Failure) as caught:
            list(lines)
    assert caught.value.exit_code == UNREACHABLE


def test_names_cannot_lead_to_another_path():
    kind = registry().find("ksvc")
    assert kind is not None
    assert object_path(kind, "a/b", "../c?d") == "/apis/serving.knative.dev/v1/namespaces/a%2Fb/services/..%2Fc%3Fd"
    assert collection_path(kind, None) == "/apis/serving.knative.dev/v1/services"


def test_where_a_platform_is_comes_from_its_data_directory(tmp_path):
    assert connect(None, tmp_path)[0].base == "http://127.0.0.1:8082"
    (tmp_path / "platform.json").write_text('{"api": "http://127.0.0.1:7"}')
    assert connect(None, tmp_path)[0].base == "http://127.0.0.1:7"
    assert connect("http://127.0.0.1:9/", tmp_path)[0].base == "http://127.0.0.1:9"
    (tmp_path / "platform.json").write_text("{half of it")
    assert connect(None, tmp_path)[0].base == "http://127.0.0.1:8082"
    (tmp_path / "platform.json").unlink()
    (tmp_path / "platform.json").mkdir()
    with pytest.raises(Failure, match="Is a directory"):
        connect(None, tmp_path)
