"""What a source is recognised as, and how the host answers; its life as a process is in the conformance suite."""

import asyncio
import json
import os
import stat
import threading

import pytest
from cloudevents.core.v1.event import CloudEvent

from serving.functions import host
from serving.functions.detect import NotRecognised, Program, PythonFunction, expand, recognise


@pytest.fixture
def root(tmp_path):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "serve"
    program.write_text("#!/bin/sh\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def folder(root, name, *files):
    made = root / name
    made.mkdir(parents=True)
    for file in files:
        (made / file).parent.mkdir(parents=True, exist_ok=True)
        (made / file).touch()
    return str(made)


@pytest.mark.parametrize(
    ("files", "module"),
    [
        (["function.py", "main.py", "app.py"], "function"),
        (["app.py", "main.py"], "main"),
        (["app.py", "other.py"], "app"),
    ],
    ids=["function.py first", "then main.py", "then app.py"],
)
def test_a_folder_with_python_files_is_a_function(root, files, module):
    place = folder(root, "functions/scan", *files)
    assert recognise("functions/scan", root=root) == PythonFunction(place, module)
    assert recognise(place, root=root) == PythonFunction(place, module)


@pytest.mark.parametrize(
    ("handler", "files"),
    [("work:run", ["work.py"]), ("work.steps:run", ["work/steps.py"]), ("work:run", ["work/__init__.py"])],
    ids=["a module", "a module of a package", "a package"],
)
def test_a_handler_names_another_module_and_attribute(root, handler, files):
    place = folder(root, "f", "function.py", *files)
    module, attribute = handler.split(":")
    assert recognise("f", root=root, handler=handler) == PythonFunction(place, module, attribute)


def test_a_folder_with_a_command_is_a_program_in_that_folder(root):
    place = folder(root, "web", "function.py", "run")
    run = root / "web" / "run"
    run.chmod(0o755)
    path = str(root / "bin")
    assert recognise("web", root=root, command=["serve"], args=["-v"], path=path) == Program(
        place, (str(root / "bin" / "serve"), "-v")
    )
    assert recognise("web", root=root, command=["./run"]) == Program(place, (f"{place}/run",))


def test_anything_else_is_a_command_line_in_the_root(root):
    found = recognise("serve --port $PORT 'two words'", root=root, path=str(root / "bin"))
    assert found == Program(str(root), (str(root / "bin" / "serve"), "--port", "$PORT", "two words"))
    assert recognise("bin/serve now", root=root, path="") == Program(str(root), (str(root / "bin" / "serve"), "now"))


@pytest.mark.parametrize(
    ("source", "more", "reason", "said"),
    [
        pytest.param("empty", {}, "FunctionMissing", ["function.py, main.py, app.py", "empty"], id="an empty folder"),
        pytest.param("f", {"handler": "handle"}, "HandlerInvalid", ["module:attribute"], id="a handler without module"),
        pytest.param("f", {"handler": "work:run"}, "HandlerMissing", ["work.py"], id="a handler's module missing"),
        pytest.param("functions/typo", {}, "SourceMissing", ["functions/typo"], id="no such folder"),
        pytest.param("nothere --now", {}, "CommandMissing", ["nothere on the PATH"], id="no such program"),
        pytest.param("f", {"command": ["./run"]}, "CommandMissing", ["./run"], id="no such program in the folder"),
        pytest.param("notes.txt", {}, "SourceNotRunnable", ["notes.txt", "not executable"], id="a plain file"),
        pytest.param("say 'hello", {}, "SourceNotRunnable", ["No closing quotation"], id="an open quote"),
    ],
)
def test_what_cannot_be_run_is_refused_with_what_was_looked_for(root, source, more, reason, said):
    folder(root, "empty")
    folder(root, "f", "function.py")
    (root / "notes.txt").touch()
    with pytest.raises(NotRecognised) as refused:
        recognise(source, root=root, path=str(root / "bin"), **more)
    assert refused.value.reason == reason
    assert all(text in str(refused.value) for text in said), str(refused.value)


def test_variables_in_a_command_are_expanded_as_shells_and_kubernetes_write_them():
    found = expand(["$PORT", "${PORT}", "$(PORT)", "a$PORT.b", "$UNKNOWN", "$$PORT", "5$"], {"PORT": "80"})
    assert found == ["80", "80", "80", "a80.b", "$UNKNOWN", "$PORT", "5$"]


# The host

HEADERS = {
    "ce-specversion": "1.0",
    "ce-id": "1",
    "ce-source": "/pictures",
    "ce-type": "uploaded",
    "ce-subject": "caf%C3%A9",
    "content-type": "application/json",
}


def ask(function, *, method="POST", headers=None, body=b'{"size": 3}', chunks=None):
    """(status, headers, body) of one request."""
    headers = HEADERS if headers is None else headers
    scope = {"method": method, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    parts = chunks or [body]
    messages = [
        {"type": "http.request", "body": part, "more_body": index < len(parts) - 1} for index, part in enumerate(parts)
    ]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(host.EventApp(function)(scope, receive, send))
    start, end = sent
    return start["status"], dict(start["headers"]), end["body"]


def test_a_binary_event_reaches_the_function_and_its_reply_comes_back_in_binary_mode():
    def handle(event):
        assert (event.get_id(), event.get_source(), event.get_type()) == ("1", "/pictures", "uploaded")
        assert event.get_subject() == "café"
        return CloudEvent(
            {"type": "approved", "source": "/scan", "id": "2", "subject": "naïve"}, {"was": event.get_data()}
        )

    status, headers, body = ask(handle)
    assert status == 200
    assert (headers[b"ce-type"], headers[b"ce-id"], headers[b"ce-subject"]) == (b"approved", b"2", b"na%C3%AFve")
    assert headers[b"content-length"] == str(len(body)).encode()
    assert json.loads(body) == {"was": {"size": 3}}


def test_a_structured_event_reaches_the_function_in_pieces():
    document = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {"a": [1]}}
    text = json.dumps(document).encode()
    seen = []
    headers = {"content-type": "application/cloudevents+json; charset=utf-8"}
    status, _, body = ask(lambda event: seen.append(event.get_data()), headers=headers, chunks=[text[:10], text[10:]])
    assert (status, body, seen) == (204, b"", [{"a": [1]}])


def test_an_async_function_and_a_function_that_returns_an_awaitable_are_awaited():
    async def handle(event):
        await asyncio.sleep(0)
        return event

    class Handler:
        async def __call__(self, event):
            return event

    for function in (handle, Handler(), lambda event: asyncio.sleep(0, event)):
        assert ask(function)[0] == 200


def test_a_plain_function_does_not_hold_up_the_loop():
    seen = []
    ask(lambda event: seen.append(threading.current_thread() is threading.main_thread()))
    assert seen == [False]


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        ({"content-type": "application/json"}, b"{}", "ce-specversion, ce-id, ce-source and ce-type"),
        ({**HEADERS, "ce-source": ""}, b"", "source"),
        ({name: text for name, text in HEADERS.items() if name != "ce-type"}, b"", "type"),
        ({**HEADERS, "ce-time": "yesterday"}, b"", "cannot be read"),
        ({"content-type": "application/cloudevents+json"}, b"{not json", "cannot be read"),
        ({"content-type": "application/cloudevents+json"}, b"[]", "cannot be read"),
        ({"content-type": "application/cloudevents-batch+json"}, b"[]", "carries no CloudEvent"),
    ],
    ids=["no event", "empty source", "no type", "a time that is none", "no JSON", "a list", "a batch"],
)
def test_what_is_no_event_is_answered_400_with_what_to_send(headers, body, said):
    status, _, answer = ask(lambda event: pytest.fail("called"), headers=headers, body=body)
    assert status == 400
    assert said in answer.decode()
    assert answer.count(b"\n") == 1


def test_only_post_is_served():
    status, headers, _ = ask(lambda event: None, method="GET")
    assert (status, headers[b"allow"]) == (405, b"POST")


def test_a_body_that_is_too_large_is_refused():
    assert ask(lambda event: None, chunks=[b"x" * host.MAX_BODY_BYTES, b"x"])[0] == 413


def test_an_exception_is_answered_500_with_one_line_and_its_traceback_goes_to_the_log(capsys):
    def handle(event):
        raise ValueError("the picture\nis broken")

    status, _, body = ask(handle)
    assert (status, body) == (500, b"ValueError: the picture is broken\n")
    assert "Traceback" in capsys.readouterr().err


def test_a_result_that_is_no_event_is_an_error_that_says_so(capsys):
    status, _, body = ask(lambda event: {"a": 1})
    assert status == 500
    assert b"returned a dict" in body
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "attribute", "said"),
    [
        ("import nothing_of_this_name\n", "", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def other(event): pass\n", "", "has no function handle(event) or app"),
        ("handle = 3\n", "", "has no function handle(event) or app"),
        ("def handle(event): pass\n", "work", "has no function work"),
        ("syntax error\n", "", "SyntaxError"),
        ("def handle(one, two): pass\n", "", "handle takes 2 arguments"),
    ],
    ids=["an import fails", "no handle", "not callable", "no such attribute", "a syntax error", "two arguments"],
)
def test_a_function_that_cannot_be_loaded_ends_the_process_with_a_readable_last_line(
    tmp_path, monkeypatch, capsys, code, attribute, said
):
    name = f"function_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {
        "folder": str(tmp_path),
        "module": name,
        "attribute": attribute,
        "drain_s": 1,
        "ready_fd": -1,
        "listen_fd": -1,
    }
    monkeypatch.setattr("sys.argv", ["host.py", json.dumps({**settings, "ready_fd": -1, "listen_fd": -1})])
    here = os.getcwd()
    try:
        with pytest.raises(SystemExit) as ended:
            host.main()
    finally:
        os.chdir(here)
    assert ended.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert said in last
    assert name in last or "arguments" in last
