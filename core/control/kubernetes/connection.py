"""Where the cluster is and who we are there: a kubeconfig, or the service account of the pod that we run in."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import yaml
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_kube_config

from core.errors import InvalidInput

__all__ = ["ApiClient", "Cluster", "ServiceAccount", "connected", "find_cluster", "reading"]

#: Where the kubelet puts a pod's credentials, and the variables that say where the API server is.
_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_HOST: Final = "KUBERNETES_SERVICE_HOST"
_PORT: Final = "KUBERNETES_SERVICE_PORT"

#: Open connections to the API server: each watch and each followed log holds one, and what is asked besides must never
#: wait for one of them to end. (The client's own limit is 100.)
_MAX_CONNECTIONS: Final = 1_024


class ServiceAccount(msgspec.Struct, frozen=True, kw_only=True):
    """A pod's own way in: the API server, and the folder of its token and authority (``token``, ``ca.crt``)."""

    server: str
    folder: Path = _ACCOUNT


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """A kubeconfig (several, as $KUBECONFIG lists them) and one of its contexts; "" is the current one."""

    kubeconfig: str
    context: str = ""


def find_cluster(kubeconfig: str | None, context: str, environ: Mapping[str, str]) -> Cluster | ServiceAccount:
    """The cluster that is meant, as Kubernetes' own clients find it: the file named, else that of the pod in which this
    runs, else $KUBECONFIG, else ``~/.kube/config``."""
    host = environ.get(_HOST, "")
    if kubeconfig is None and not context and host:
        host = f"[{host}]" if ":" in host else host
        return ServiceAccount(server=f"https://{host}:{environ.get(_PORT, '443')}")
    home = Path(environ.get("HOME", "/")) / ".kube" / "config"
    return Cluster(kubeconfig=kubeconfig or environ.get("KUBECONFIG") or str(home), context=context)


@asynccontextmanager
async def reading(response: aiohttp.ClientResponse) -> AsyncIterator[aiohttp.ClientResponse]:
    """The response while it is read. One that is given up before its end is cut off: the goodbye that TLS would wait
    for outlives the client."""
    try:
        yield response
    finally:
        connection = response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        response.close()


class _Connector(aiohttp.TCPConnector):
    """Cuts off the connections of requests that are given up before an answer came, for the same reason: there is no
    response yet to do it by."""

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        if should_close or protocol.should_close:
            protocol.abort()
        super()._release(key, protocol, should_close=should_close)


class _Requests(RESTClientObject):  # type: ignore[misc]  # the package has no types
    def _create_connector(self) -> aiohttp.TCPConnector:
        return _Connector(limit=self.maxsize, ssl=self.ssl_context)


@asynccontextmanager
async def connected(cluster: Cluster | ServiceAccount) -> AsyncIterator[ApiClient]:
    """A client of the cluster, closed on leaving. Raises InvalidInput where its configuration cannot be used."""
    try:
        if isinstance(cluster, ServiceAccount):
            configuration = _of_account(cluster)
        else:
            configuration = Configuration()
            context = cluster.context or None
            await load_kube_config(cluster.kubeconfig, context, configuration, persist_config=False)
        configuration.connection_pool_maxsize = _MAX_CONNECTIONS
        # Chain and name are checked as ever. Python 3.13 besides asks for extensions that the authorities of common
        # clusters (k3s, EKS) do not have, and that Kubernetes' own clients do not ask for.
        configuration.disable_strict_ssl_verification = True
        client = ApiClient(configuration)
    except (ConfigException, OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        # The last three are how the package takes a document that is not a kubeconfig at all.
        raise InvalidInput(f"{_told(cluster)} cannot be used: {error}") from error
    client.rest_client = _Requests(configuration)
    client.user_agent = "penstock"
    try:
        yield client
    finally:
        await client.close()


def _of_account(account: ServiceAccount) -> Configuration:
    configuration = Configuration(host=account.server, ssl_ca_cert=str(account.folder / "ca.crt"))
    refresh = _TokenFile(account.folder / "token").refresh
    refresh(configuration)
    configuration.refresh_api_key_hook = refresh
    return configuration


class _TokenFile:
    """A service account's token, read again whenever the kubelet has replaced it: it is valid for about an hour."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None

    def refresh(self, configuration: Configuration) -> None:
        """Called by the client before each request; a file in memory, so that looking costs microseconds."""
        stat = self._path.stat()
        seen = (stat.st_ino, stat.st_mtime_ns)
        if seen != self._seen:
            configuration.api_key["BearerToken"] = f"Bearer {self._path.read_text().strip()}"
            self._seen = seen


def _told(cluster: Cluster | ServiceAccount) -> str:
    if isinstance(cluster, ServiceAccount):
        return f"The service account in {cluster.folder}"
    names = cluster.kubeconfig.replace(os.pathsep, ", ")
    return f"The kubeconfig {names}" + (f" with the context {cluster.context!r}" if cluster.context else "")
