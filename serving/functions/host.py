"""The process of one Python function: serves it over HTTP on a listening socket that it was given.

Run by path, never imported by the platform: ``python -P -u host.py <settings as JSON>``. Self-contained, so that it
starts quickly and works in the function's own environment: the standard library, uvicorn, and the CloudEvents SDK.

Settings: `listen_fd` (a bound socket), `ready_fd` (a pipe; one byte is written once requests are accepted), `folder`
(first on ``sys.path``, and the working directory), `module`, `attribute` ("" means ``handle``, else ``app``),
`drain_s` (how long requests may take to finish after SIGTERM, in seconds).

- ``handle(event)``, plain or ``async``, gets a CloudEvent of the SDK and returns one to reply with, or None. A plain
  function runs in one of `MAX_THREADS` threads.
- An object that is called with ``(scope, receive, send)`` is an ASGI application and is served as it is.

Exit codes: 0 after SIGTERM, when what was running has finished; 1 where the function cannot be loaded, with the reason
in the last line of standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import importlib
import importlib.util
import inspect
import json
import os
import signal
import socket
import sys
import traceback
import types
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn


def _skip_command_line() -> None:
    """Make `uvicorn` importable without its ``__init__``, which imports its command line (click, multiprocessing): an
    eighth of a cold start. A function that uses uvicorn itself finds everything there on first use."""
    spec = importlib.util.find_spec("uvicorn")
    if spec is None or spec.submodule_search_locations is None:
        return
    package = types.ModuleType("uvicorn")
    package.__spec__ = spec
    package.__path__ = list(spec.submodule_search_locations)
    package.__file__ = spec.origin

    def on_first_use(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module("uvicorn.main"), name)

    vars(package)["__getattr__"] = on_first_use
    sys.modules["uvicorn"] = package


if __name__ == "__main__":
    # While everything is imported there is no garbage, and looking for it takes 7 % of a cold start.
    gc.disable()
    _skip_command_line()

from uvicorn.config import Config  # noqa: E402 - after the line above
from uvicorn.server import Server  # noqa: E402 - as above

#: Plain functions that run at once; more wait their turn. Python's own default for a machine of 28 cores or more.
MAX_THREADS: Final = 32

#: A request's body: the largest event that the platform carries (1 MiB), with room for structured mode's base64.
MAX_BODY_BYTES: Final = 2 * 1024 * 1024

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def main() -> None:
    settings = json.loads(sys.argv[1])
    os.chdir(settings["folder"])
    sys.path.insert(0, settings["folder"])
    function = _load(settings["module"], settings["attribute"])
    is_event_function = _takes_an_event(function)
    config = Config(
        EventApp(function) if is_event_function else function,
        http="httptools",
        ws="none",
        lifespan="off" if is_event_function else "auto",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=settings["drain_s"],
    )
    server = _Server(config, ready_fd=settings["ready_fd"])
    config.load()
    # What is loaded now stays: the collector need not look at it again.
    gc.freeze()
    gc.enable()
    listening = socket.socket(fileno=settings["listen_fd"])
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(server.serve(sockets=[listening]))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - used where it is installed
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class _Server(Server):
    """uvicorn's server, without its ten wake-ups a second, that says when it is ready and stops on SIGTERM."""

    def __init__(self, config: Config, *, ready_fd: int) -> None:
        super().__init__(config)
        self._ready_fd = ready_fd
        self._stop = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # The control process may be gone by now; its successor finds us by our port.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._ready_fd, b"\n")
        os.close(self._ready_fd)

    async def main_loop(self) -> None:
        await self._stop.wait()


def _load(module_name: str, attribute: str) -> Any:
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:  # noqa: BLE001 - the function's code may raise anything, and this process ends
        traceback.print_exc()
        return _fail(f"The module {module_name} cannot be imported: {_one_line(error)}")
    for name in (attribute,) if attribute else ("handle", "app"):
        found = getattr(module, name, None)
        if callable(found):
            return found
    wanted = attribute or "handle(event) or app"
    return _fail(f"The module {module_name} ({module.__file__}) has no function {wanted}.")


def _takes_an_event(function: Any) -> bool:
    """Whether it is called with one event, rather than with (scope, receive, send)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [one for one in parameters if one.kind in kinds and one.default is inspect.Parameter.empty]
    if len(needed) == 1:
        return True
    if len(needed) == 3:
        return False
    name = getattr(function, "__name__", type(function).__name__)
    return _fail(
        f"{name} takes {len(needed)} arguments: a function takes one, the event; an ASGI application takes three."
    )


def _fail(reason: str) -> NoReturn:
    print(reason, file=sys.stderr, flush=True)  # noqa: T201 - this process's output is the function's log
    sys.exit(1)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class NotAnEvent(ValueError):
    """The request carries no event; the text says what to send."""


class EventApp:
    """An ASGI application that gives each request's event to a function and answers with the event it returns."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object may have an async __call__
        )
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="function")
        # Imported here, so that an ASGI application starts without it.
        self._binding = importlib.import_module("cloudevents.core.bindings.http")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await _answer(send, 405, "This is a function: POST a CloudEvent to it.\n", [(b"allow", b"POST")])
            return
        body = await _body(receive)
        if body is None:
            await _answer(send, 413, f"An event may have at most {MAX_BODY_BYTES} bytes.\n")
            return
        try:
            event = self._event(scope["headers"], body)
        except NotAnEvent as error:
            await _answer(send, 400, f"{error}\n")
            return
        try:
            status, headers, reply = self._reply(await self._call(event))
        except Exception as error:  # noqa: BLE001 - the boundary of a request: the function may raise anything
            traceback.print_exc()
            await _answer(send, 500, f"{_one_line(error)}\n")
            return
        await _respond(send, status, headers, reply)

    async def _call(self, event: Any) -> Any:
        if self._is_async:
            return await self._function(event)
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._threads, functools.partial(context.run, self._function, event))
        return await result if inspect.isawaitable(result) else result

    def _event(self, headers: list[tuple[bytes, bytes]], body: bytes) -> Any:
        texts = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        content_type = texts.get("content-type", "").partition(";")[0].strip().lower()
        message = self._binding.HTTPMessage(headers=texts, body=body)
        try:
            if "ce-specversion" in texts:
                return self._binding.from_binary_event(message)
            if content_type == "application/cloudevents+json":
                return self._binding.from_structured_event(message)
        except Exception as error:  # whatever the SDK raises, the request is what is wrong
            raise NotAnEvent(f"The event cannot be read: {_one_line(error)}") from error
        raise NotAnEvent(
            "The request carries no CloudEvent: send the headers ce-specversion, ce-id, ce-source and ce-type (binary "
            "mode), or a JSON body with Content-Type application/cloudevents+json (structured mode)."
        )

    def _reply(self, result: Any) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        if result is None:
            return 204, [], b""
        if not (hasattr(result, "get_attributes") and hasattr(result, "get_data")):
            raise TypeError(f"the function returned a {type(result).__name__}; return a CloudEvent, or None")
        message = self._binding.to_binary_event(result)
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in message.headers.items()]
        return 200, headers, message.body


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None where it is too large (what is left is read by the server)."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(chunks)
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            return None
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _answer(send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    kind = (b"content-type", b"text/plain; charset=utf-8")
    await _respond(send, status, [kind, *(headers or [])], text.encode("utf-8", "replace"))


async def _respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    if status != 204:
        headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    main()
