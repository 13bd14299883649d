"""A small asyncio client of the API server: requests, and following a collection through its watch."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

__all__ = ["Api", "ApiError"]

_LOG = logging.getLogger("kubelet.api")
#: Between tries while the API server is away.
_RETRY_S: Final = 0.2
#: An API server that hangs is one that is away.
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10.0)
_WATCH_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
_MAX_LINE: Final = 8 * 1024 * 1024
#: What a client may meet when the API server is away, hangs or restarts.
AWAY: Final = (aiohttp.ClientError, TimeoutError, ConnectionError)


class ApiError(Exception):
    """The API server refused. `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    def __init__(self, kubeconfig: Path) -> None:
        document = yaml.safe_load(kubeconfig.read_text())
        cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
        self._server: str = cluster["server"]
        self._tls = ssl.create_default_context(cadata=_decoded(cluster["certificate-authority-data"]))
        with tempfile.NamedTemporaryFile("w") as pair:
            pair.write(_decoded(user["client-certificate-data"]) + _decoded(user["client-key-data"]))
            pair.flush()
            self._tls.load_cert_chain(pair.name)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Api:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        self._session = aiohttp.ClientSession(self._server, connector=connector, read_bufsize=_MAX_LINE)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str) -> Any:
        return await self._request("GET", path)

    async def create(self, path: str, body: object) -> Any:
        return await self._request("POST", path, body)

    async def replace(self, path: str, body: object) -> Any:
        return await self._request("PUT", path, body)

    async def merge(self, path: str, body: object) -> Any:
        return await self._request("PATCH", path, body, "application/merge-patch+json")

    async def delete(self, path: str, body: object | None = None) -> Any:
        return await self._request("DELETE", path, body)

    async def follow(self, path: str, changed: Callable[[str, Any], None], synced: Callable[[list[Any]], None]) -> None:
        """Tell `synced` the whole collection, then `changed` of each change, for ever; relists where it must."""
        while True:
            try:
                listing = await self.get(path)
                synced(listing["items"])
                async for kind, thing in self._watch(path, listing["metadata"]["resourceVersion"]):
                    changed(kind, thing)
            except ApiError as error:
                _LOG.info("%s: %s", path, error)
            except AWAY as error:
                _LOG.info("%s: %s", path, error)
            await asyncio.sleep(_RETRY_S)

    async def _watch(self, path: str, version: str) -> AsyncIterator[tuple[str, Any]]:
        """Changes after `version`, over as many watches as it takes. Raises ApiError once the version is too old."""
        while True:
            query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
            async with self._open().get(path, params=query, timeout=_WATCH_TIMEOUT) as response:
                if response.status != 200:
                    raise ApiError(response.status, await response.text())
                async for line in response.content:
                    event = json.loads(line)
                    kind, thing = event["type"], event["object"]
                    if kind == "ERROR":
                        raise ApiError(thing.get("code", 500), thing.get("message", ""))
                    version = thing["metadata"]["resourceVersion"]
                    if kind != "BOOKMARK":
                        yield kind, thing

    async def _request(self, method: str, path: str, body: object = None, media: str = "application/json") -> Any:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": media} if data is not None else {}
        async with self._open().request(method, path, data=data, headers=headers, timeout=_TIMEOUT) as response:
            answer = await response.json(content_type=None)
            if response.status >= 300:
                raise ApiError(response.status, answer.get("message", ""))
            return answer

    def _open(self) -> aiohttp.ClientSession:
        assert self._session is not None, "use it as a context manager"
        return self._session


def _decoded(data: str) -> str:
    return base64.b64decode(data).decode()
