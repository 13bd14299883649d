"""What a process in a cluster is told by its command line, most of it by the chart through environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from broker.log.port import Retention

__all__ = [
    "DEFAULT_ADMIN_PORT",
    "DEFAULT_CONTROL_PORT",
    "DEFAULT_PORT",
    "DEFAULT_SUFFIX",
    "DEFAULT_WEBHOOK_PORT",
    "EventLogSettings",
    "LogKind",
    "Release",
    "Settings",
]

LogKind = Literal["redis", "kafka"]

DEFAULT_PORT: Final = 8080
DEFAULT_CONTROL_PORT: Final = 8082
DEFAULT_WEBHOOK_PORT: Final = 8443
DEFAULT_ADMIN_PORT: Final = 9090
#: A Service's URL before a domain is configured: the name that works inside the cluster.
DEFAULT_SUFFIX: Final = ".svc.cluster.local"
#: Of the names of Kubernetes Services, which end in it on nearly every cluster.
_CLUSTER_DOMAIN: Final = "svc.cluster.local"


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """Where the platform itself runs: its namespace and the names of its Kubernetes Services."""

    namespace: str = "penstock"
    control: str = "penstock-control"
    gateway: str = "penstock-gateway"
    ingress: str = "penstock-broker-ingress"

    def host(self, service: str) -> str:
        """The name of one of the Services anywhere in the cluster."""
        return f"{service}.{self.namespace}.{_CLUSTER_DOMAIN}"

    @property
    def ingress_url(self) -> str:
        """What Brokers' addresses begin with."""
        return f"http://{self.host(self.ingress)}"


class EventLogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps the Brokers' events. `name` is what its keys or topics begin with: one of each release."""

    kind: LogKind = "redis"
    redis_url: str = ""
    kafka_servers: str = ""
    name: str = "penstock"
    retention: Retention = Retention()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One process's settings. Times in seconds.

    `pod` is its pod's name, which no other living process has. `notice_s` is for how long it still serves after it was
    asked to end: until then every client and proxy has heard of it. `kubeconfig` "" means the pod's own account.
    `url_suffix` follows ``<service>.<namespace>`` in a Service's URL. Without `webhook_certificates` (a folder with
    ``tls.crt`` and ``tls.key``) there are no admission webhooks.
    """

    role: str
    pod: str
    release: Release = Release()
    host: str = "0.0.0.0"  # noqa: S104 - a pod's own network, which NetworkPolicies close
    port: int = DEFAULT_PORT
    control_port: int = DEFAULT_CONTROL_PORT
    webhook_port: int = DEFAULT_WEBHOOK_PORT
    admin_port: int = DEFAULT_ADMIN_PORT
    notice_s: float = 5.0
    drain_s: float = 25.0
    kubeconfig: str = ""
    event_log: EventLogSettings = EventLogSettings()
    url_suffix: str = DEFAULT_SUFFIX
    webhook_certificates: Path | None = None
    data: Path = Path("/data")
    log_level: str = "INFO"
