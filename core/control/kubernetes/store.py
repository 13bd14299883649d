"""The ResourceStore on a cluster: the API's protocol over the package `kubernetes`, without its typed models."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Final

import aiohttp
import msgspec
from kubernetes.aio.client import ApiClient

from core.control.api import ApiStore, Document, set_back
from core.control.api_status import error_of_answer
from core.control.kubernetes.connection import reading
from core.control.port import Change
from core.errors import PenstockError, Unavailable
from core.limits import CONNECT_TIMEOUT_S, MAX_RESOURCE_BYTES
from core.resources import Kind, KindRef, Resource

__all__ = ["KubernetesStore"]

#: The API server gives a request up after a minute; admission webhooks may take half of that.
_TIMEOUT_S: Final = 60.0

#: The API server sends a bookmark once a minute; a watch that hears nothing for this long is connected to nobody, as
#: after a node or a network was lost.
_WATCH_SILENCE_S: Final = 90.0

#: An answer about one resource: the resource as the server encodes it.
_MAX_ANSWER_BYTES: Final = 2 * MAX_RESOURCE_BYTES

#: A refusal's body, which is read whole.
_MAX_ERROR_BYTES: Final = 64 * 1024


class KubernetesStore(ApiStore):
    """The cluster that `client` reaches. Resources come with their kinds' defaults, as Knative's controllers see them:
    what was stored while no admission webhook ran has only what its schema gives. The client stays its owner's."""

    def __init__(self, client: ApiClient, kinds: Iterable[Kind]) -> None:
        super().__init__(_ClusterTransport(client), kinds, settle=_defaulted)

    async def watch(self, kind: KindRef, since: int, namespace: str | None = None) -> AsyncGenerator[Change, None]:
        # An API server asked for the future waits for it in silence. After its etcd was set back to a backup, that
        # would be until as many changes have been made again; so ask first where it is.
        newest = await self._newest(kind, namespace)
        if since > newest:
            raise set_back(since, newest)
        async with aclosing(super().watch(kind, since, namespace)) as changes:
            async for change in changes:
                yield change


def _defaulted(kind: Kind, resource: Resource) -> Resource:
    """`resource` with its defaults; one of the wrong shape as it is, for its reconciler to refuse."""
    if kind.spec_type is None:
        return resource
    try:
        msgspec.convert(resource.spec, kind.spec_type)
    except msgspec.ValidationError:
        return resource
    return kind.default(resource)


class _ClusterTransport:
    """Requests by the package's client, with its credentials."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self.where: str = client.configuration.host

    async def call(
        self, method: str, target: str, document: Document | None = None, *, max_bytes: int = _MAX_ANSWER_BYTES
    ) -> bytes:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with reading(await self._send(method, target, document, timeout)) as response:
                return await self._read(response, max_bytes)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unavailable(error) from error

    async def lines(self, target: str) -> AsyncGenerator[bytes, None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=_WATCH_SILENCE_S)
        try:
            async with reading(await self._send("GET", target, None, timeout)) as response:
                if response.status >= 300:
                    await self._read(response, _MAX_ERROR_BYTES)
                rest = b""
                async for piece in response.content.iter_any():
                    *lines, rest = (rest + piece).split(b"\n")
                    if len(rest) > _MAX_ANSWER_BYTES:
                        raise Unavailable(
                            f"A watch of {self.where} sent a line of more than {_MAX_ANSWER_BYTES} bytes."
                        )
                    for line in lines:
                        yield line
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unavailable(error) from error

    async def _send(
        self, method: str, target: str, document: Document | None, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json", **self._client.default_headers}
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], target, method, document)
        url = self._client.configuration.host + target
        try:
            answer = await self._client.rest_client.request(
                method, url, headers=headers, body=document, _request_timeout=timeout
            )
        except RuntimeError as error:
            raise Unavailable("The client of the API server is closed.") from error
        response: aiohttp.ClientResponse = answer.response
        return response

    async def _read(self, response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
        body = bytearray()
        async for piece in response.content.iter_any():
            body += piece
            if len(body) > max_bytes:
                response.close()
                raise Unavailable(f"The API server at {self.where} sent more than {max_bytes} bytes in one answer.")
        if response.status >= 300:
            raise error_of_answer(response.status, bytes(body), response.headers.get("retry-after"))
        return bytes(body)

    def _unavailable(self, error: Exception) -> PenstockError:
        text = str(error) or type(error).__name__
        return Unavailable(f"The API server at {self.where} does not answer: {text}. Check that it can be reached.")
