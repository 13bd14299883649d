"""The control plane's three servers, each started, paused, killed and stopped on its own.

The API server's port, the certificates and what etcd stored outlive a server, so that a client's address stays right
through a restart.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.support.controlplane.access import ClusterAccess, kubeconfig
from tests.support.controlplane.build import binaries
from tests.support.controlplane.pki import Authority, key_pair

__all__ = ["ControlPlane", "Server"]

#: A server that does not answer by then does not start. On a machine busy with other tests it takes half of that.
START_TIMEOUT_S: Final = 90.0
#: What is not gone by then is killed.
STOP_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.05
#: The kernel counts the thread that starts a process as its parent. This one lives as long as we do; a test's own
#: threads do not.
_LAUNCHER: Final = ThreadPoolExecutor(1, thread_name_prefix="control-plane")

SERVICE_RANGE: Final = "10.96.0.0/16"
POD_RANGE: Final = "10.244.0.0/16"
#: The first of SERVICE_RANGE: the API server's own Service, `kubernetes` in `default`.
API_SERVICE: Final = "10.96.0.1"
#: What clusters of Penstock rest on; the rest of the controllers (certificates, cron, cloud) only cost.
CONTROLLERS: Final = (
    "deployment-controller",
    "replicaset-controller",
    "statefulset-controller",
    "daemonset-controller",
    "job-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "root-ca-certificate-publisher-controller",
    "disruption-controller",
    "horizontal-pod-autoscaler-controller",
    "clusterrole-aggregation-controller",
    "node-lifecycle-controller",
    "taint-eviction-controller",
    "pod-garbage-collector-controller",
    "resourcequota-controller",
    "persistentvolume-binder-controller",
    "persistentvolumeclaim-protection-controller",
    "persistentvolume-protection-controller",
)


class Server:
    """One process, and how to tell that it serves. It dies with us, whatever becomes of the test run."""

    def __init__(self, *, name: str, argv: list[str], log: Path, ready: Callable[[], bool]) -> None:
        self.name = name
        self.log = log
        self._argv = argv
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def launch(self) -> None:
        """Start it, or start it again on what it had stored, and do not wait."""
        # setpriv becomes the program: the kernel ends it with us, even where we are killed.
        command = ["setpriv", "--pdeathsig", "KILL", "--", *self._argv]
        with self.log.open("ab") as log:
            launched = _LAUNCHER.submit(subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self._process = launched.result()

    def start(self) -> None:
        """Launch it and wait until it serves. Raises RuntimeError with the end of its log where it does not."""
        self.launch()
        self.wait()

    def wait(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._ready():
            if not self.running or time.monotonic() > deadline_s:
                self.kill()
                raise RuntimeError(f"{self.name} does not start:\n{self.log.read_text(errors='replace')[-4000:]}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It holds its connections and answers nothing, as a machine that hangs."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
        self._process = None


class ControlPlane:
    """etcd, kube-apiserver and kube-controller-manager on free ports; RBAC holds, and so does every default admission.

    `address` is where the API server listens and what pods are told: the loopback address for clients on this machine,
    the bridge's for the pods of the test kubelet. `kubelet_authority` is what signs kubelets' serving certificates.
    """

    def __init__(self, folder: Path, *, address: str = "127.0.0.1") -> None:
        self.folder = folder
        self.address = address
        folder.mkdir(parents=True, exist_ok=True)
        self._bin = binaries()
        self._etcd_port, self._etcd_peer_port, self.port, self._manager_port = _free_ports(4)
        self.authority = Authority(folder / "pki")
        #: What an administrator's client connects with.
        self.tls = ssl.create_default_context(cafile=str(self.authority.certificate))
        self._account_keys = key_pair(folder / "pki", "service-account")
        self._admin = self.authority.client("penstock-admin", group="system:masters")
        self.tls.load_cert_chain(*map(str, self._admin))
        self.access = ClusterAccess(
            kubeconfig=self._kubeconfig("admin", self._admin),
            server=self.url,
            ca=self.authority.certificate.read_bytes(),
            programs=self._bin,
        )
        self.etcd = self._etcd_server()
        self.apiserver = self._api_server()
        self.manager = self._manager_server()

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.port}"

    @property
    def servers(self) -> tuple[Server, ...]:
        """In the order in which they start."""
        return (self.etcd, self.apiserver, self.manager)

    @property
    def helm(self) -> Path:
        return self._bin / "helm"

    def start(self) -> None:
        """All three, until pods can be made in the default namespace. Raises RuntimeError where one does not serve."""
        self.etcd.launch()
        self.apiserver.launch()
        self.etcd.wait()
        self.apiserver.wait()
        self.manager.start()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers(f"{self.url}/api/v1/namespaces/default/serviceaccounts/default"):
            if time.monotonic() > deadline_s:
                raise RuntimeError("the controller manager makes no service account: see " + str(self.manager.log))
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """At once: an API server that is asked to stop waits for its watches, and nothing here is kept."""
        for server in reversed(self.servers):
            server.kill()

    def __enter__(self) -> ControlPlane:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _etcd_server(self) -> Server:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._etcd_peer_port}"
        flags = {
            "name": "tests",
            "data-dir": self.folder / "etcd",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"tests={peer}",
            # What a killed etcd had written is in the page cache still: only a killed machine loses it.
            "unsafe-no-fsync": "true",
            "log-level": "warn",
            "logger": "zap",
        }
        return Server(
            name="etcd",
            argv=["etcd", *_flags(flags)],
            log=self.folder / "etcd.log",
            ready=lambda: self._answers(f"{client}/health"),
        )

    def _api_server(self) -> Server:
        hosts = {"127.0.0.1", "localhost", self.address, API_SERVICE}
        hosts |= {"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
        certificate, key = self.authority.serving("kube-apiserver", sorted(hosts))
        kubelet_client = self.authority.client("kube-apiserver-kubelet-client", group="system:masters")
        public, private = self._account_keys
        loopback = self.address.startswith("127.")
        flags: dict[str, object] = {
            "etcd-servers": f"http://127.0.0.1:{self._etcd_port}",
            "bind-address": self.address if loopback else "0.0.0.0",  # noqa: S104 - a network namespace of its own
            "secure-port": self.port,
            "tls-cert-file": certificate,
            "tls-private-key-file": key,
            "client-ca-file": self.authority.certificate,
            "kubelet-certificate-authority": self.authority.certificate,
            "kubelet-client-certificate": kubelet_client[0],
            "kubelet-client-key": kubelet_client[1],
            "kubelet-preferred-address-types": "InternalIP",
            "authorization-mode": "Node,RBAC",
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
            "service-account-key-file": public,
            "service-account-signing-key-file": private,
            "service-cluster-ip-range": SERVICE_RANGE,
            "profiling": "false",
            # The Service `kubernetes` may not lead to a loopback address; nothing but pods asks for it.
            "endpoint-reconciler-type": "none" if loopback else "lease",
        }
        if not loopback:
            flags["advertise-address"] = self.address
        return Server(
            name="kube-apiserver",
            argv=[str(self._bin / "kube-apiserver"), *_flags(flags)],
            log=self.folder / "kube-apiserver.log",
            ready=lambda: self._answers(f"{self.url}/readyz"),
        )

    def _manager_server(self) -> Server:
        config = self._kubeconfig("manager", self.authority.client("system:kube-controller-manager"))
        certificate, key = self.authority.serving("kube-controller-manager", ["127.0.0.1"])
        flags = {
            "kubeconfig": config,
            "authentication-kubeconfig": config,
            "authorization-kubeconfig": config,
            "bind-address": "127.0.0.1",
            "secure-port": self._manager_port,
            "tls-cert-file": certificate,
            "tls-private-key-file": key,
            "authentication-skip-lookup": "true",
            # There is one; one that waits out the lease of the one before it would start half a minute late.
            "leader-elect": "false",
            "use-service-account-credentials": "true",
            "service-account-private-key-file": self._account_keys[1],
            "root-ca-file": self.authority.certificate,
            "cluster-cidr": POD_RANGE,
            "service-cluster-ip-range": SERVICE_RANGE,
            "controllers": ",".join(CONTROLLERS),
            "profiling": "false",
        }
        return Server(
            name="kube-controller-manager",
            argv=[str(self._bin / "kube-controller-manager"), *_flags(flags)],
            log=self.folder / "kube-controller-manager.log",
            ready=lambda: self._answers(f"https://127.0.0.1:{self._manager_port}/healthz"),
        )

    def _kubeconfig(self, name: str, identity: tuple[Path, Path]) -> Path:
        certificate, key = identity
        path = self.folder / f"{name}.kubeconfig"
        return kubeconfig(path, server=self.url, ca=self.authority.certificate, certificate=certificate, key=key)

    def _answers(self, url: str) -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2.0, context=self.tls) as response:
                return bool(response.status == 200)
        except OSError:
            return False


def _flags(values: dict[str, object] | dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(sock.getsockname()[1]) for sock in sockets]
