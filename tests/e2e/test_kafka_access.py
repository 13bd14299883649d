"""Logging in to a real Kafka that has TLS and SASL, with what Secrets hold."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from sources.kafka.access import access_of
from sources.kafka.member import connect
from sources.kafka.resources import KafkaSourceSpec, NetShape, SaslShape, SecretKey, SecretValue, TlsShape
from sources.kafka.source import KafkaSource
from tests.support.kafka.jars import jars
from tests.support.kafka.server import KafkaServer
from tests.support.sources import RecordingContext, running

pytestmark = [pytest.mark.e2e, pytest.mark.service("kafka", own=True)]
TLS = Path(__file__).parent.parent / "support" / "tls"
AUTHORITY = (TLS / "localhost.crt").read_bytes()
DEADLINE_S = 90.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A Kafka that lets in the users me (by PLAIN) and other (by SCRAM), over TLS."""
    folder = tmp_path_factory.mktemp("kafka")
    keystore = folder / "server.pem"
    keystore.write_bytes((TLS / "localhost.key").read_bytes() + AUTHORITY)
    users = " ".join(f'user_{name}="{name}-password"' for name in ("admin", "me"))
    login = f'{{module}} required username="admin" password="admin-password" {users};'
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
    kafka = KafkaServer(
        folder / "kafka",
        listener_security_protocol_map="PLAINTEXT:SASL_SSL,CONTROLLER:PLAINTEXT",
        sasl_enabled_mechanisms="PLAIN,SCRAM-SHA-256",
        sasl_mechanism_inter_broker_protocol="PLAIN",
        listener_name_plaintext_plain_sasl_jaas_config=login.replace("{module}", plain),
        **{
            "listener_name_plaintext_scram-sha-256_sasl_jaas_config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            )
        },
        ssl_keystore_type="PEM",
        ssl_keystore_location=str(keystore),
        ssl_truststore_type="PEM",
        ssl_truststore_location=str(TLS / "localhost.crt"),
    )
    kafka.start()
    add_scram_user(kafka, folder, plain)
    yield kafka
    kafka.kill()


def add_scram_user(kafka: KafkaServer, folder: Path, module: str) -> None:
    config = folder / "admin.properties"
    config.write_text(
        "security.protocol=SASL_SSL\nsasl.mechanism=PLAIN\nssl.truststore.type=PEM\n"
        f"ssl.truststore.location={TLS / 'localhost.crt'}\n"
        f'sasl.jaas.config={module} required username="admin" password="admin-password";\n'
    )
    command = ["java", "-cp", f"{jars()}/*", "kafka.admin.ConfigCommand", "--bootstrap-server", kafka.servers]
    command += ["--command-config", str(config), "--alter", "--entity-type", "users", "--entity-name", "other"]
    command += ["--add-config", "SCRAM-SHA-256=[password=other-password]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def value(name: str, key: str) -> SecretValue:
    return SecretValue(secret_key_ref=SecretKey(name=name, key=key))


NET = NetShape(
    tls=TlsShape(enable=True, ca_cert=value("tls", "ca.crt")),
    sasl=SaslShape(
        enable=True, user=value("login", "user"), password=value("login", "password"), type=value("login", "type")
    ),
)


def secrets_of(user: str, mechanism: str, password: str | None = None) -> dict[str, dict[str, bytes]]:
    login = {"user": user, "password": password or f"{user}-password", "type": mechanism}
    return {"tls": {"ca.crt": AUTHORITY}, "login": {key: text.encode() for key, text in login.items()}}


def spec_of(server: KafkaServer, topic: str, net: NetShape = NET) -> KafkaSourceSpec:
    return KafkaSourceSpec(
        bootstrap_servers=(server.servers,),
        topics=(topic,),
        consumer_group=f"group-{topic}",
        initial_offset="earliest",
        net=net,
    )


def context_of(secrets: dict[str, dict[str, bytes]]) -> RecordingContext:
    context = RecordingContext()
    context.secrets = secrets
    return context


def made(spec: KafkaSourceSpec) -> Any:
    return lambda context: KafkaSource(context=context, spec=spec, key_type="string", connect=connect)


async def produce(server: KafkaServer, topic: str, text: bytes) -> None:
    context = context_of(secrets_of("me", "PLAIN"))
    access = await access_of(spec_of(server, topic), context.secret)
    assert access.login is not None
    producer = AIOKafkaProducer(
        bootstrap_servers=server.servers,
        security_protocol="SASL_SSL",
        ssl_context=access.tls,
        sasl_plain_username=access.login.user,
        sasl_plain_password=access.login.password,
    )
    await producer.start()
    try:
        await producer.send_and_wait(topic, text)
    finally:
        await producer.stop()


@pytest.mark.parametrize(("user", "mechanism"), [("me", "PLAIN"), ("other", "SCRAM-SHA-256")])
async def test_records_are_read_over_tls_as_the_user_that_the_secret_names(
    server: KafkaServer, user: str, mechanism: str
) -> None:
    topic = f"topic-of-{user}"
    await produce(server, topic, b"hello")
    context = context_of(secrets_of(user, mechanism))
    async with running(made(spec_of(server, topic)), context, deadline_s=DEADLINE_S) as rig:
        await rig.until(lambda: len(rig.outlet.events) == 1)
    assert rig.outlet.events[0].data == b"hello"


async def test_a_wrong_password_is_told_and_a_changed_secret_is_read_without_a_restart(server: KafkaServer) -> None:
    await produce(server, "secrets", b"hello")
    context = context_of(secrets_of("me", "PLAIN", password="wrong"))  # noqa: S106 - that is the point
    async with running(made(spec_of(server, "secrets")), context, deadline_s=DEADLINE_S) as rig:
        await rig.until(lambda: "LoginFailed" in context.said)
        assert "me (PLAIN)" in context.messages[0]
        assert "wrong" not in context.messages[0]
        context.secrets = secrets_of("me", "PLAIN")
        await rig.until(lambda: len(rig.outlet.events) == 1)


async def test_servers_that_another_authority_has_signed_are_not_trusted(server: KafkaServer) -> None:
    net = NetShape(tls=TlsShape(enable=True), sasl=NET.sasl)
    context = context_of(secrets_of("me", "PLAIN"))
    async with running(made(spec_of(server, "x", net)), context, deadline_s=DEADLINE_S) as rig:
        await rig.until(lambda: "TlsFailed" in context.said)
    assert "certificate" in context.messages[0].lower()


async def test_a_listener_with_tls_that_is_spoken_to_plainly_is_told_with_what_to_do(server: KafkaServer) -> None:
    context = context_of({})
    async with running(made(spec_of(server, "x", NetShape())), context, deadline_s=DEADLINE_S) as rig:
        await rig.until(lambda: "ConnectionFailed" in context.said)
    assert "spec.net.tls" in context.messages[0]
