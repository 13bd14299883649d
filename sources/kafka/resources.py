"""The kind KafkaSource: its shape, defaults and rules.

Sources: knative-extensions/eventing-kafka-broker `control-plane/pkg/apis/sources/v1/kafka_*.go` and `bindings/v1/
kafka_types.go`; the legal names of topics are Kafka's own (`org.apache.kafka.common.internals.Topic`).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from core.errors import FieldError
from core.resources import Column, DeliveryShape, Destination, Kind, KindRef, Resource, validate_delivery
from sources.resources import CloudEventOverrides, check_source

__all__ = [
    "KAFKA_SOURCE",
    "KEY_TYPE_LABEL",
    "KIND",
    "KafkaSourceSpec",
    "KeyType",
    "SaslShape",
    "SecretKey",
    "SecretValue",
    "TlsShape",
    "kafka_spec",
    "key_type_of",
]

KAFKA_SOURCE: Final = KindRef("sources.knative.dev", "v1", "KafkaSource")
#: How a record's key is read: Knative's label.
KEY_TYPE_LABEL: Final = "kafkasources.sources.knative.dev/key-type"

KeyType = Literal["string", "int", "float", "byte-array"]
KEY_TYPES: Final[tuple[KeyType, ...]] = ("string", "int", "float", "byte-array")

#: One client reads all topics of a source; somebody who needs more of them in one group is better served by several.
MAX_TOPICS: Final = 100
_GROUP_PREFIX: Final = "knative-kafka-source-"
_TOPIC: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}\Z")
_SERVER: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})\Z")
_MAX_PORT: Final = 65_535


class _Shape(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    """What all shapes here have in common."""


class SecretKey(_Shape, frozen=True, kw_only=True):
    """One value of a Secret in the source's namespace (Kubernetes' SecretKeySelector)."""

    name: str = ""
    key: str = ""
    optional: bool | None = None


class SecretValue(_Shape, frozen=True, kw_only=True):
    """Where a value is kept."""

    secret_key_ref: SecretKey | None = None


class SaslShape(_Shape, frozen=True, kw_only=True, rename={"role_arn": "roleARN", "token_provider": "tokenProvider"}):
    """How to log in. `type` holds the mechanism; without it PLAIN."""

    enable: bool = False
    user: SecretValue | None = None
    password: SecretValue | None = None
    type: SecretValue | None = None
    role_arn: SecretValue | None = None
    token_provider: SecretValue | None = None


class TlsShape(_Shape, frozen=True, kw_only=True):
    """TLS to the brokers: the CA to trust (the machine's without) and a certificate of our own, all PEM."""

    enable: bool = False
    cert: SecretValue | None = None
    key: SecretValue | None = None
    ca_cert: SecretValue | None = None


class NetShape(_Shape, frozen=True, kw_only=True):
    """How the brokers are spoken to."""

    sasl: SaslShape = SaslShape()
    tls: TlsShape = TlsShape()


class KafkaSourceSpec(_Shape, frozen=True, kw_only=True):
    """A consumer group's place in some topics, and where their records go as events."""

    bootstrap_servers: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    consumer_group: str = ""
    consumers: int | None = None
    initial_offset: Literal["latest", "earliest"] = "latest"
    ordering: Literal["ordered", "unordered"] = "ordered"
    net: NetShape = NetShape()
    delivery: DeliveryShape | None = None
    sink: Destination | None = None
    ce_overrides: CloudEventOverrides | None = None


def kafka_spec(resource: Resource) -> KafkaSourceSpec:
    """The typed spec. Raises msgspec.ValidationError where the shape is wrong, which nobody can store."""
    return msgspec.convert(resource.spec, KafkaSourceSpec)


def key_type_of(resource: Resource) -> KeyType:
    """How the records' keys are read."""
    named = resource.meta.labels.get(KEY_TYPE_LABEL)
    return next((known for known in KEY_TYPES if known == named), "string")


def _default(resource: Resource) -> Resource:
    spec = dict(resource.spec)
    if not spec.get("consumerGroup"):
        # Random, as Knative's: a source that is deleted and made again is another group, and starts anew.
        spec["consumerGroup"] = f"{_GROUP_PREFIX}{uuid.uuid4()}"
    for name, value in (("consumers", 1), ("initialOffset", "latest"), ("ordering", "ordered")):
        if spec.get(name) is None:
            spec[name] = value
    return resource.with_spec(spec)


def _check(new: Resource, old: Resource | None) -> Iterator[FieldError]:
    spec = kafka_spec(new)
    yield from check_source(spec.sink, spec.ce_overrides)
    yield from _server_errors(spec.bootstrap_servers)
    yield from _topic_errors(spec.topics)
    if spec.consumers is not None and spec.consumers < 0:
        rule = "must not be negative; 0 pauses the source"
        yield FieldError(path="spec.consumers", rule=rule, value=spec.consumers)
    yield from validate_delivery(spec.delivery, "spec.delivery")
    yield from _net_errors(spec.net)
    named = new.meta.labels.get(KEY_TYPE_LABEL)
    if named is not None and named not in KEY_TYPES:
        rule = f"must be one of {', '.join(KEY_TYPES)}"
        yield FieldError(path=f"metadata.labels[{KEY_TYPE_LABEL}]", rule=rule, value=named)
    if old is not None and kafka_spec(old).consumer_group != spec.consumer_group:
        rule = "is immutable: make another source to read as another group"
        yield FieldError(path="spec.consumerGroup", rule=rule, value=spec.consumer_group)


def _server_errors(servers: tuple[str, ...]) -> Iterator[FieldError]:
    if not servers:
        yield FieldError(path="spec.bootstrapServers", rule="is required: host:port of one broker or more")
    for number, server in enumerate(servers):
        match = _SERVER.match(server)
        if match is None or not 0 < int(match[1]) <= _MAX_PORT:
            rule = "must be host:port, such as kafka.example.com:9092"
            yield FieldError(path=f"spec.bootstrapServers[{number}]", rule=rule, value=server)


def _topic_errors(topics: tuple[str, ...]) -> Iterator[FieldError]:
    if not topics:
        yield FieldError(path="spec.topics", rule="is required: one topic or more")
    if len(topics) > MAX_TOPICS:
        rule = f"must not name more than {MAX_TOPICS} topics; make several sources"
        yield FieldError(path="spec.topics", rule=rule, value=len(topics))
    for number, topic in enumerate(topics):
        path = f"spec.topics[{number}]"
        if _TOPIC.match(topic) is None or topic in (".", ".."):
            rule = "must be a topic's name: up to 249 letters, digits, dots, underscores and hyphens"
            yield FieldError(path=path, rule=rule, value=topic[:300])
        elif topic in topics[:number]:
            yield FieldError(path=path, rule="is named twice", value=topic)


def _net_errors(net: NetShape) -> Iterator[FieldError]:
    for path, value in (
        ("sasl.user", net.sasl.user),
        ("sasl.password", net.sasl.password),
        ("sasl.type", net.sasl.type),
        ("sasl.roleARN", net.sasl.role_arn),
        ("sasl.tokenProvider", net.sasl.token_provider),
        ("tls.cert", net.tls.cert),
        ("tls.key", net.tls.key),
        ("tls.caCert", net.tls.ca_cert),
    ):
        ref = value.secret_key_ref if value is not None else None
        if ref is not None and not (ref.name and ref.key):
            yield FieldError(path=f"spec.net.{path}.secretKeyRef", rule="needs the Secret's name and the key in it")
    if net.sasl.enable:
        for name, value in (("user", net.sasl.user), ("password", net.sasl.password)):
            if not _given(value):
                rule = "is required where sasl is enabled (secretKeyRef)"
                yield FieldError(path=f"spec.net.sasl.{name}", rule=rule)
        for name, value in (("roleARN", net.sasl.role_arn), ("tokenProvider", net.sasl.token_provider)):
            if _given(value):
                rule = "is of OAUTHBEARER, which is not supported; use PLAIN or SCRAM, or a client certificate"
                yield FieldError(path=f"spec.net.sasl.{name}", rule=rule)
    if net.tls.enable and _given(net.tls.cert) != _given(net.tls.key):
        yield FieldError(path="spec.net.tls", rule="needs cert and key together")


def _given(value: SecretValue | None) -> bool:
    return value is not None and value.secret_key_ref is not None


KIND: Final = Kind(
    ref=KAFKA_SOURCE,
    plural="kafkasources",
    singular="kafkasource",
    categories=("all", "knative", "sources"),
    spec_type=KafkaSourceSpec,
    default=_default,
    validate=_check,
    columns=(
        Column(name="Topics", path=".spec.topics"),
        Column(name="BootstrapServers", path=".spec.bootstrapServers"),
        Column(name="Ready", path=".status.conditions[Ready].status"),
        Column(name="Reason", path=".status.conditions[Ready].reason"),
    ),
)
