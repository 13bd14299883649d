"""The kind KafkaSource: its defaults, each rule with the field it names, and how its Secrets reach the brokers."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from core.errors import InvalidInput, NotFound
from core.resources import ObjectMeta, Resource
from sources.kafka.access import Access, Login, access_of
from sources.kafka.resources import KAFKA_SOURCE, KEY_TYPE_LABEL, KIND, KafkaSourceSpec, kafka_spec, key_type_of

SINK = {"uri": "http://example.com/"}
SPEC: dict[str, Any] = {"sink": SINK, "bootstrapServers": ["kafka:9092"], "topics": ["orders"]}


def kafka(labels: dict[str, str] | None = None, **spec: object) -> Resource:
    meta = ObjectMeta(name="k", namespace="n", labels=labels or {})
    return Resource(ref=KAFKA_SOURCE, meta=meta, body={"spec": {**SPEC, **spec}})


def secret(name: str, key: str, **more: object) -> dict[str, Any]:
    return {"secretKeyRef": {"name": name, "key": key, **more}}


SASL = {"enable": True, "user": secret("login", "user"), "password": secret("login", "password")}


def test_a_source_without_a_group_gets_one_of_its_own_that_stays() -> None:
    one, two = KIND.default(kafka()), KIND.default(kafka())
    assert kafka_spec(one).consumer_group.startswith("knative-kafka-source-")
    assert kafka_spec(one).consumer_group != kafka_spec(two).consumer_group
    assert KIND.default(one) == one


def test_the_defaults_are_knatives() -> None:
    spec = kafka_spec(KIND.default(kafka()))
    assert (spec.initial_offset, spec.ordering, spec.consumers) == ("latest", "ordered", 1)


def test_no_consumers_is_not_a_missing_number() -> None:
    assert kafka_spec(KIND.default(kafka(consumers=0))).consumers == 0


@pytest.mark.parametrize(
    ("resource", "paths"),
    [
        pytest.param(kafka(), [], id="a plain source"),
        pytest.param(kafka(sink=None), ["spec.sink"], id="no sink"),
        pytest.param(kafka(bootstrapServers=[]), ["spec.bootstrapServers"], id="no servers"),
        pytest.param(kafka(bootstrapServers=["[::1]:9092", "a.b:1"]), [], id="an IPv6 address"),
        pytest.param(
            kafka(bootstrapServers=["kafka", "kafka:0", "kafka:99999", "http://kafka:9092"]),
            [f"spec.bootstrapServers[{number}]" for number in range(4)],
            id="no ports",
        ),
        pytest.param(kafka(topics=[]), ["spec.topics"], id="no topics"),
        pytest.param(
            kafka(topics=["a/b", "a", "a", "..", ""]),
            ["spec.topics[0]", "spec.topics[2]", "spec.topics[3]", "spec.topics[4]"],
            id="names of topics",
        ),
        pytest.param(kafka(topics=[f"t{n}" for n in range(101)]), ["spec.topics"], id="too many topics"),
        pytest.param(kafka(consumers=-1), ["spec.consumers"], id="negative consumers"),
        pytest.param(kafka({KEY_TYPE_LABEL: "int"}), [], id="a key type"),
        pytest.param(kafka({KEY_TYPE_LABEL: "uuid"}), [f"metadata.labels[{KEY_TYPE_LABEL}]"], id="no key type"),
        pytest.param(
            kafka(delivery={"retry": -1, "backoffDelay": "1s"}),
            ["spec.delivery.retry", "spec.delivery.backoffDelay"],
            id="a delivery",
        ),
        pytest.param(kafka(net={"sasl": SASL, "tls": {"enable": True}}), [], id="a login and TLS"),
        pytest.param(
            kafka(net={"sasl": {"enable": True}}),
            ["spec.net.sasl.user", "spec.net.sasl.password"],
            id="a login without a user",
        ),
        pytest.param(
            kafka(net={"sasl": {**SASL, "tokenProvider": secret("login", "x")}}),
            ["spec.net.sasl.tokenProvider"],
            id="a token",
        ),
        pytest.param(
            kafka(net={"tls": {"enable": True, "cert": secret("tls", "tls.crt")}}), ["spec.net.tls"], id="half a pair"
        ),
        pytest.param(
            kafka(net={"tls": {"enable": True, "caCert": secret("tls", "")}}),
            ["spec.net.tls.caCert.secretKeyRef"],
            id="a key without a name",
        ),
        pytest.param(
            kafka(ceOverrides={"extensions": {"id": "x"}}), ["spec.ceOverrides.extensions[id]"], id="an override"
        ),
    ],
)
def test_each_rule_names_its_field(resource: Resource, paths: list[str]) -> None:
    assert [error.path for error in KIND.validate(KIND.default(resource), None)] == paths


def test_the_group_is_immutable() -> None:
    old, new = kafka(consumerGroup="a"), kafka(consumerGroup="b")
    assert [error.path for error in KIND.validate(new, old)] == ["spec.consumerGroup"]
    assert list(KIND.validate(old, old)) == []


def test_a_key_is_text_unless_the_label_says_otherwise() -> None:
    assert key_type_of(kafka()) == "string"
    assert key_type_of(kafka({KEY_TYPE_LABEL: "byte-array"})) == "byte-array"


# ---- how the brokers are reached

LOGIN = Login(mechanism="PLAIN", user="me", password="s3cret")  # noqa: S106 - nobody's
TLS = Path(__file__).parent.parent / "support" / "tls"


async def reached(secrets: Mapping[str, Mapping[str, bytes]], **net: object) -> Access:
    async def read(name: str) -> Mapping[str, bytes]:
        if name not in secrets:
            raise NotFound(f'Secret "{name}" does not exist.')
        return secrets[name]

    return await access_of(kafka_spec(kafka(net=net)), read)


async def test_without_net_the_brokers_are_spoken_to_plainly() -> None:
    assert await reached({}) == Access(servers=("kafka:9092",))


async def test_a_login_is_plain_unless_the_secret_says_otherwise_and_loses_its_lines_end() -> None:
    login = {"user": b"me\n", "password": b"s3cret\n", "type": b"SCRAM-SHA-512\n"}
    plain = await reached({"login": login}, sasl=SASL)
    assert plain.login == LOGIN
    scram = await reached({"login": login}, sasl={**SASL, "type": secret("login", "type")})
    assert scram.login is not None
    assert scram.login.mechanism == "SCRAM-SHA-512"


def test_a_password_is_not_shown() -> None:
    assert LOGIN.password not in repr(LOGIN)


@pytest.mark.parametrize(
    ("login", "said"),
    [
        ({"user": b"me"}, r"spec\.net\.sasl\.password\.secretKeyRef\.key.*login.*user"),
        ({"user": b"me", "password": b"\xff"}, r"spec\.net\.sasl\.password.*UTF-8"),
        ({"user": b"me", "password": b"x", "type": b"GSSAPI"}, r"spec\.net\.sasl\.type.*SCRAM-SHA-256.*GSSAPI"),
    ],
    ids=["no such key", "no text", "another mechanism"],
)
async def test_a_secret_that_does_not_do_is_named_with_the_field(login: dict[str, bytes], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        await reached({"login": login}, sasl={**SASL, "type": secret("login", "type", optional=True)})


async def test_a_secret_that_does_not_exist_is_named() -> None:
    with pytest.raises(NotFound, match="login"):
        await reached({}, sasl=SASL)


async def test_the_secrets_authority_is_the_only_one_that_is_trusted() -> None:
    held = {"tls": {"ca.crt": (TLS / "localhost.crt").read_bytes()}}
    access = await reached(held, tls={"enable": True, "caCert": secret("tls", "ca.crt")})
    assert access.tls is not None
    assert access.tls.cert_store_stats()["x509"] == 1
    assert access.tls.check_hostname
    assert access.tls.verify_mode == ssl.CERT_REQUIRED


async def test_a_certificate_of_our_own_leaves_no_key_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held = {"tls": {"cert": (TLS / "localhost.crt").read_bytes(), "key": (TLS / "localhost.key").read_bytes()}}
    tls = {"enable": True, "cert": secret("tls", "cert"), "key": secret("tls", "key")}
    assert (await reached(held, tls=tls)).tls is not None
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("field", "values"),
    [("caCert", {"caCert": b"no PEM"}), ("tls", {"cert": b"no PEM", "key": b"no PEM"})],
    ids=["an authority", "a pair"],
)
async def test_what_is_no_pem_is_named(field: str, values: dict[str, bytes]) -> None:
    tls = {"enable": True, **{name: secret("tls", name) for name in values}}
    with pytest.raises(InvalidInput, match=field):
        await reached({"tls": values}, tls=tls)


def test_the_spec_takes_no_unknown_field() -> None:
    assert KIND.spec_type is KafkaSourceSpec
