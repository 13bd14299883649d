"""An API server in memory: kinds to test with, and a client that calls the ASGI application without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from core.control.memory import MemoryStore
from core.control.port import ResourceStore
from core.errors import FieldError
from core.resources import Column, Kind, KindRef, Registry, Resource
from core.resources.builtin import KINDS
from core.telemetry import Metrics
from penstock.apiserver.app import create_app

GROUP = "testing.penstock.dev"


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    count: int = 1


class WidgetSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Something to make."""

    size: int
    colour: Literal["red", "blue"] | None = None
    parts: tuple[Part, ...] = ()
    spares: dict[str, Part] = {}
    made_of: Part | None = None
    open_ended: Any = None


def _with_colour(widget: Resource) -> Resource:
    return widget if widget.spec.get("colour") else widget.with_spec({**widget.spec, "colour": "red"})


def _widget_rules(new: Resource, old: Resource | None) -> Iterable[FieldError]:
    size = new.spec["size"]
    if size > 100:
        yield FieldError(path="spec.size", rule="must be at most 100", value=size)
    if len(new.spec.get("parts", ())) > 2:
        yield FieldError(path="spec.parts", rule="may have at most 2 entries")
    if old is not None and old.spec["colour"] != new.spec["colour"]:
        yield FieldError(path="spec.colour", rule="is immutable", value=new.spec["colour"])


def _widget_doubts(new: Resource) -> Iterable[FieldError]:
    if new.spec["size"] == 13:
        yield FieldError(path="spec.size", rule='brings "bad luck",\r\nas some say', value=13)


WIDGET = Kind(
    ref=KindRef(GROUP, "v1", "Widget"),
    plural="widgets",
    singular="widget",
    short_names=("wd",),
    categories=("all",),
    spec_type=WidgetSpec,
    default=_with_colour,
    validate=_widget_rules,
    doubts=_widget_doubts,
    columns=(
        Column(name="Size", path=".spec.size"),
        Column(name="Ready", path=".status.conditions[Ready].status"),
        Column(name="Colour", path=".spec.colour", wide=True),
    ),
)


class BasinSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    depth: float = 1.0


BASIN = Kind(
    ref=KindRef(GROUP, "v1alpha1", "Basin"), plural="basins", singular="basin", namespaced=False, spec_type=BasinSpec
)

REGISTRY = Registry((*KINDS, WIDGET, BASIN))
WIDGETS = f"/apis/{GROUP}/v1/namespaces/default/widgets"
ALL_WIDGETS = f"/apis/{GROUP}/v1/widgets"
BASINS = f"/apis/{GROUP}/v1alpha1/basins"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


def widget(name: str, **spec: Any) -> dict[str, Any]:
    """The document of a Widget."""
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Widget",
        "metadata": {"name": name},
        "spec": {"size": 1, **spec},
    }


class FixedClock:
    """Wall time that the test moves."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.now_s = now_s

    def now(self) -> float:
        return self.now_s


class Answer(msgspec.Struct, frozen=True):
    code: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def message(self) -> str:
        text: str = self.json["message"]
        return text


class ApiFixture:
    """An application on a store, and calls to it."""

    def __init__(self, store: ResourceStore | None = None, **options: Any) -> None:
        self.clock = FixedClock()
        self.store = store or MemoryStore(clock=self.clock)
        self.metrics = Metrics()
        self.app = create_app(store=self.store, registry=REGISTRY, clock=self.clock, metrics=self.metrics, **options)

    async def call(
        self,
        method: str,
        target: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request and its whole answer; a body that is not bytes is sent as JSON."""
        sent = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        exchange = AsgiExchange(method, target, sent, {"content-type": content_type, **(headers or {})})
        await exchange.run(self.app)
        return exchange.answer()

    async def get(self, target: str, **headers: str) -> Answer:
        return await self.call("GET", target, headers=headers)

    async def create(self, document: dict[str, Any], collection: str = WIDGETS) -> Any:
        answer = await self.call("POST", collection, document)
        assert answer.code == 201, answer.body
        return answer.json


class AsgiExchange:
    """One ASGI request. `lines` gets each piece of the body as it comes; `hang_up` ends the connection."""

    def __init__(self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        path, _, query = target.partition("?")
        given = {"host": "127.0.0.1:8082", **(headers or {})}
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
            "server": ("127.0.0.1", 8082),
            "client": ("127.0.0.1", 50_000),
        }
        self._body: list[bytes] = [body]
        self._gone = asyncio.Event()
        self._start: dict[str, Any] = {}
        self.lines: asyncio.Queue[Any] = asyncio.Queue()
        self.received = b""
        self.finished = False

    async def run(self, app: Any) -> None:
        await app(self.scope, self._receive, self._send)

    def hang_up(self) -> None:
        self._gone.set()

    async def _receive(self) -> dict[str, Any]:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(0), "more_body": bool(self._body)}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        chunk = message.get("body", b"")
        self.received += chunk
        if chunk:
            self.lines.put_nowait(chunk)
        if not message.get("more_body", False):
            self.finished = True

    def answer(self) -> Answer:
        headers = {name.decode(): value.decode("latin-1") for name, value in self._start["headers"]}
        return Answer(self._start["status"], headers, self.received)
