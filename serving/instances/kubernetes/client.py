"""Containers' logs through the Kubernetes API, which asks the kubelet of the pod's node."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client import ApiClient

from core.errors import NotFound, PenstockError, Unavailable
from core.limits import CONNECT_TIMEOUT_S

__all__ = ["ClusterPodLogs"]

#: The longest line that is told; the rest of it is left out.
MAX_LINE_BYTES: Final = 256 * 1024

#: A refusal's body, which is quoted.
_MAX_ERROR_BYTES: Final = 4096

#: A log that is not followed and sends nothing for so long is held up by its node.
_SILENCE_S: Final = 30.0


class ClusterPodLogs:
    """Implements `serving.instances.kubernetes.logs.PodLogs`. The client stays its owner's."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def read(
        self, namespace: str, pod: str, container: str, *, tail: int | None, since: str | None, follow: bool
    ) -> AsyncGenerator[tuple[str, str]]:
        query: dict[str, str | int] = {"container": container, "timestamps": "true", "follow": str(follow).lower()}
        if tail is not None:
            query["tailLines"] = tail
        if since is not None:
            query["sinceTime"] = since
        target = f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}/log?{urlencode(query)}"
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=None if follow else _SILENCE_S
        )
        try:
            response = await self._get(target, timeout)
            try:
                if response.status != 200:
                    said = (await response.content.read(_MAX_ERROR_BYTES)).decode(errors="replace")
                    raise _refused(response.status, f"{namespace}/{pod}", said)
                async for line in _lines(response.content):
                    time, _, text = line.decode(errors="replace").partition(" ")
                    yield time, text
            finally:
                _let_go(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"The log of the pod {namespace}/{pod} cannot be read: {error!r}.") from error

    async def _get(self, target: str, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        headers = dict(self._client.default_headers)
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], target, "GET", None)
        url = self._client.configuration.host + target
        answer = await self._client.rest_client.request("GET", url, headers=headers, _request_timeout=timeout)
        response: aiohttp.ClientResponse = answer.response
        return response


async def _lines(content: aiohttp.StreamReader) -> AsyncGenerator[bytes]:
    rest, is_told = b"", False
    async for piece in content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if not is_told:
                yield line[:MAX_LINE_BYTES]
            is_told = False
        if len(rest) > MAX_LINE_BYTES and not is_told:
            yield rest[:MAX_LINE_BYTES]
            is_told = True
        if is_told:
            rest = b""
    if rest:
        yield rest


def _let_go(response: aiohttp.ClientResponse) -> None:
    """One that is given up before its end is cut off: TLS's goodbye would outlive the client."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()


def _refused(status: int, pod: str, said: str) -> PenstockError:
    # 400 is Kubernetes' answer for a container that has not started yet.
    if status in (400, 404):
        return NotFound(f"The pod {pod} has no log yet, or none any more: {said}")
    return Unavailable(f"The log of the pod {pod} cannot be read: the API server answered {status}: {said}")
