"""The store on a cluster before any cluster: how the cluster is found, and what its answers on the wire become."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from core.control.kubernetes import store as module
from core.control.kubernetes.connection import Cluster, ServiceAccount, connected, find_cluster
from core.control.kubernetes.store import KubernetesStore
from core.errors import InvalidInput, Overloaded, PenstockError, Unavailable
from core.resources import Key
from core.resources.builtin import CONFIG_MAP, KINDS
from tests.support.document import ROOT

CERTIFICATE = ROOT / "tests/support/tls/localhost.crt"
DEADLINE_S = 10.0
CONFIG_MAP_KEY = Key(CONFIG_MAP, "default", "a")
EMPTY_LIST = b'{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[]}'


def added(name: str, version: int, fill: int = 0) -> bytes:
    meta = f'"metadata":{{"name":"{name}","namespace":"default","uid":"u","resourceVersion":"{version}"}}'
    data = f'"data":{{"fill":"{"x" * fill}"}}'
    return f'{{"type":"ADDED","object":{{"kind":"ConfigMap","apiVersion":"v1",{meta},{data}}}}}\n'.encode()


Respond = Callable[[asyncio.StreamWriter], None]


def whole(body: bytes, status: str = "200 OK", header: str = "") -> Respond:
    """A complete answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{header}\r\n"
    return lambda writer: writer.write(head.encode() + body)


def streamed(*pieces: bytes, ended: bool = True, broken: bool = False) -> Respond:
    """A chunked answer of these pieces; unless it is `ended` or `broken` off, it goes on in silence."""

    def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if broken:
            writer.close()
        elif ended:
            writer.write(b"0\r\n\r\n")

    return respond


@asynccontextmanager
async def cluster(tmp_path: Path, watch: Respond, other: Respond) -> AsyncIterator[KubernetesStore]:
    """A store whose API server answers watches and everything else as the test says."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                (watch if b"watch=1" in head else other)(writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    path = tmp_path / "kubeconfig"
    path.write_text(
        f"""
kind: Config
clusters: [{{name: c, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: u, user: {{}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"""
    )
    try:
        async with connected(Cluster(kubeconfig=str(path))) as client:
            yield KubernetesStore(client, KINDS)
    finally:
        server.close()


async def watched(store: KubernetesStore) -> tuple[list[str], PenstockError | None]:
    """The names that a watch tells until it ends, and what ended it."""
    names: list[str] = []
    try:
        async with asyncio.timeout(DEADLINE_S):
            async for change in store.watch(CONFIG_MAP, 7):
                assert change.resource is not None
                names.append(change.resource.meta.name)
    except PenstockError as error:
        return names, error
    return names, None


@pytest.mark.parametrize("size", [1, 7, 1_000])
async def test_the_lines_of_a_watch_come_out_however_they_were_cut(tmp_path: Path, size: int):
    text = added("a", 8) + added("b", 9, fill=3_000) + added("c", 10)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    async with cluster(tmp_path, streamed(*pieces), whole(EMPTY_LIST)) as store:
        assert await watched(store) == (["a", "b", "c"], None)


async def test_a_watch_that_breaks_off_tells_what_came_and_is_unavailable(tmp_path: Path):
    async with cluster(tmp_path, streamed(added("a", 8), b'{"type":', broken=True), whole(EMPTY_LIST)) as store:
        names, error = await watched(store)
    assert names == ["a"]
    assert isinstance(error, Unavailable)


async def test_a_request_that_is_given_up_before_its_answer_leaves_no_connection_behind(tmp_path: Path):
    listener = socket.create_server(("127.0.0.1", 0))
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def serve_silently() -> str:
        """Take one request over TLS and answer neither it nor TLS' goodbye; how the connection ended."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(CERTIFICATE, CERTIFICATE.with_suffix(".key"))
        accepted, _ = listener.accept()
        with accepted.dup() as below, tls.wrap_socket(accepted, server_side=True) as above:
            assert above.recv(65_536).startswith(b"GET /api/v1/configmaps")
            loop.call_soon_threadsafe(asked.set)
            below.settimeout(DEADLINE_S)
            try:
                while below.recv(65_536):
                    pass
            except ConnectionResetError:
                pass
            except TimeoutError:
                return "still open"
            return "ended"

    path = tmp_path / "kubeconfig"
    path.write_text(
        f"""
kind: Config
clusters: [{{name: c, cluster: {{server: "https://127.0.0.1:{listener.getsockname()[1]}",
                                 certificate-authority: {CERTIFICATE}}}}}]
users: [{{name: u, user: {{}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"""
    )
    with listener:
        server = asyncio.create_task(asyncio.to_thread(serve_silently))
        async with connected(Cluster(kubeconfig=str(path))) as client:
            request = asyncio.create_task(KubernetesStore(client, KINDS).list(CONFIG_MAP))
            await asked.wait()
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
        assert await server == "ended"


async def test_a_watch_that_falls_silent_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_WATCH_SILENCE_S", 0.05)
    async with cluster(tmp_path, streamed(added("a", 8), ended=False), whole(EMPTY_LIST)) as store:
        names, error = await watched(store)
    assert names == ["a"]
    assert isinstance(error, Unavailable)


async def test_a_line_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MAX_ANSWER_BYTES", 1_000)
    async with cluster(tmp_path, streamed(b"x" * 600, b"x" * 600, ended=False), whole(EMPTY_LIST)) as store:
        names, error = await watched(store)
    assert names == []
    assert "more than 1000 bytes" in str(error)


async def test_a_server_that_is_too_busy_says_when_to_come_back(tmp_path: Path):
    busy = whole(b"Too many requests, please try again later.\n", "429 Too Many Requests", "Retry-After: 3\r\n")
    async with cluster(tmp_path, busy, busy) as store:
        with pytest.raises(Overloaded) as refused:
            await store.list(CONFIG_MAP)
    assert refused.value.retry_after_s == 3


async def test_an_answer_that_is_too_long_is_given_up(tmp_path: Path):
    long = whole(EMPTY_LIST + b" " * 4_000_000)
    async with cluster(tmp_path, long, long) as store:
        with pytest.raises(Unavailable, match="bytes in one answer"):
            await store.get(CONFIG_MAP_KEY)


async def test_the_api_server_must_prove_who_it_is_as_to_kubernetes_own_clients(tmp_path: Path):
    (tmp_path / "ca.crt").write_bytes(CERTIFICATE.read_bytes())
    (tmp_path / "token").write_text("secret\n")
    async with connected(ServiceAccount(server="https://127.0.0.1:1", folder=tmp_path)) as client:
        context = client.rest_client.ssl_context
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
        assert not context.verify_flags & ssl.VERIFY_X509_STRICT
        assert client.configuration.api_key == {"BearerToken": "Bearer secret"}


def test_the_cluster_is_found_as_kubernetes_clients_find_it():
    pod = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443", "HOME": "/home/me"}
    assert find_cluster(None, "", pod) == ServiceAccount(server="https://[fd00::1]:6443")
    assert find_cluster("file", "", pod) == Cluster(kubeconfig="file")
    assert find_cluster(None, "one", {**pod, "KUBECONFIG": "a:b"}) == Cluster(kubeconfig="a:b", context="one")
    assert find_cluster(None, "", {"HOME": "/home/me"}) == Cluster(kubeconfig="/home/me/.kube/config")


@pytest.mark.parametrize("text", ["", "{", "kind: Config\nclusters: []\nusers: []\ncontexts: []\ncurrent-context: x\n"])
async def test_a_kubeconfig_that_cannot_be_used_is_told(tmp_path: Path, text: str):
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=str(path)):
        async with connected(Cluster(kubeconfig=str(path))):
            pass
    with pytest.raises(InvalidInput, match="absent"):
        async with connected(Cluster(kubeconfig=str(tmp_path / "absent"))):
            pass
    with pytest.raises(InvalidInput, match="service account"):
        async with connected(ServiceAccount(server="https://127.0.0.1:1", folder=tmp_path)):
            pass
