"""The ResourceStore over HTTP on the platform's own client: the way to desired state of every process of the standalone
composition that does not hold it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Final

import msgspec

from core.control.api import ApiStore, Document
from core.control.api_status import error_of_answer
from core.control.rest_watch import LineStream
from core.errors import Unavailable
from core.limits import MAX_RESOURCE_BYTES
from core.net.client import Client
from core.net.types import Address, Headers, NetError
from core.resources import Kind

__all__ = ["RestStore"]

#: The API server answers from its own disk; what takes longer is stuck.
_TIMEOUT_S: Final = 15.0

#: Servers send a bookmark about once a minute; a watch that hears nothing for this long is connected to nobody.
_WATCH_SILENCE_S: Final = 180.0

#: An answer about one resource: the resource, as another server may encode it.
_MAX_ANSWER_BYTES: Final = 2 * MAX_RESOURCE_BYTES


class RestStore(ApiStore):
    """The API server at `address`, which serves `kinds` (a Registry will do). `headers` go with every request; the
    client stays its owner's."""

    def __init__(
        self,
        client: Client,
        address: Address,
        kinds: Iterable[Kind],
        *,
        tls: bool = False,
        headers: Headers | None = None,
    ) -> None:
        super().__init__(_ClientTransport(client, address, tls=tls, headers=headers or []), kinds)


class _ClientTransport:
    """Requests by a `core.net` client."""

    def __init__(self, client: Client, address: Address, *, tls: bool, headers: Headers) -> None:
        self._client = client
        self._address = address
        self._tls = tls
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.where = f"{host}:{address[1]}"
        self._headers: Headers = [(b"host", self.where.encode()), (b"accept", b"application/json"), *headers]

    async def call(
        self, method: str, target: str, document: Document | None = None, *, max_bytes: int = _MAX_ANSWER_BYTES
    ) -> bytes:
        body = b"" if document is None else msgspec.json.encode(document)
        headers = [*self._headers, (b"content-type", b"application/json")] if body else self._headers
        try:
            response = await self._client.request(
                self._address,
                method.encode(),
                target.encode(),
                headers,
                body,
                timeout_s=_TIMEOUT_S,
                max_bytes=max_bytes,
                tls=self._tls,
            )
        except NetError as error:
            raise Unavailable(
                f"The API server at {self.where} does not answer: {error} Check that the platform runs."
            ) from error
        except RuntimeError as error:
            raise Unavailable("The client of the API server is closed.") from error
        if response.status >= 300:
            raise error_of_answer(response.status, response.body)
        return response.body

    async def lines(self, target: str) -> AsyncGenerator[bytes, None]:
        stream = LineStream()
        try:
            stream.request = self._client.send(
                self._address, b"GET", target.encode(), self._headers, 0, stream, tls=self._tls
            )
        except RuntimeError as error:
            raise Unavailable("The client of the API server is closed.") from error
        try:
            while (line := await self._next_line(stream)) is not None:
                yield line
        finally:
            stream.close()

    async def _next_line(self, stream: LineStream) -> bytes | None:
        try:
            async with asyncio.timeout(_WATCH_SILENCE_S):
                return await stream.next_line()
        except TimeoutError as error:
            raise Unavailable(f"The API server at {self.where} fell silent during a watch.") from error
