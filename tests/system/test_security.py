"""Every way to log in, by real relays on one secured lab: Kafka with mutual TLS, PLAIN, SCRAM and OAUTHBEARER, Redis
with TLS and an ACL user; and what a user reads when a password, a certificate, an authority or a right is wrong.

Writers and the oracle use the lab's own administrator on a listener that the relay never sees.
"""

from __future__ import annotations

import base64
import http.server
import itertools
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from confluent_kafka.admin import ResourceType as Resource
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509 import load_pem_x509_certificate
from rig import Answer, KafkaSide, RedisSide

from crossfade.lab import Lab, pki, secure
from crossfade.lab.secure import APP, NOBODY

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

#: one broker: what is tried here is who may come in, not how many copies there are
_ONE_BROKER = {"min.insync.replicas": "1"}
_PASSPHRASE = "a pass phrase"
_RECORDS = 300
_TOKEN_S = 20


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One secured broker and a secured Redis 7.0, for this file alone."""
    name = f"tests-secured-{os.getpid()}"
    started = Lab.up(name, brokers=1, redis="standalone", secure=True, owner_pid=os.getpid())
    yield started
    started.down()


@pytest.fixture(scope="module")
def certificates(lab: Lab) -> Path:
    """Where the lab keeps its certificates, with the same client key in the forms that people have."""
    folder = lab.folder / "config" / "pki"
    certificate, key = (folder / f"{APP}.crt").read_bytes(), (folder / f"{APP}.key").read_bytes()
    private: Any = serialization.load_pem_private_key(key, None)
    sealed = serialization.BestAvailableEncryption(_PASSPHRASE.encode())
    (folder / "sealed.key").write_bytes(
        private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed)
    )
    store = pkcs12.serialize_key_and_certificates(b"app", private, load_pem_x509_certificate(certificate), None, sealed)
    (folder / "store.p12").write_bytes(store)
    (folder / "phrase").write_text(_PASSPHRASE + "\n")
    pki.issue(folder, "expired", APP, days=0)
    pki.make(folder / "stranger", [APP])
    return folder


class SecureKafka(KafkaSide):
    """A topic that the relay reaches in one way, and the test in another."""

    properties: dict[str, str]

    def __init__(self, lab: Lab, properties: dict[str, str], configs: dict[str, str] | None = None) -> None:
        super().__init__(lab, 2, f"sys-{secrets.token_hex(5)}", _ONE_BROKER | (configs or {}))
        self.properties = properties


class SecureRedis(RedisSide):
    """Stream keys that the relay reaches over TLS with an account."""

    def __init__(self, lab: Lab, folder: Path, user: str = APP, password: str = "") -> None:
        super().__init__(lab, 2, f"sys-{secrets.token_hex(5)}:<lane>")
        parts = urlsplit(lab.redis_url(user=APP))
        secret = folder / f"{user}.password"
        secret.write_text((password or str(parts.password)) + "\n")
        self.settings = {
            "kind": "redis",
            "url": f"rediss://127.0.0.1:{parts.port}/0",
            "username": user,
            "password": f"${{file:{secret}}}",
            "tls": {"ca": parts.query.partition("=")[2]},
        }

    def broker(self) -> dict[str, Any]:
        return dict(self.settings)


@pytest.fixture
def properties(lab: Lab, certificates: Path, tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """`properties("mtls-sealed")`: one mode as a user would write it, secrets in files."""

    def make(mode: str) -> dict[str, str]:
        way, _, form = mode.partition("-")
        given = lab.kafka_properties(listener={"scram": "CLIENT", "plain": "SASLPLAIN"}.get(way, way.upper()))
        for name in {"sasl.password", "sasl.oauthbearer.config"} & given.keys():
            (tmp_path / name).write_text(given[name] + "\n")
            given[name] = f"${{file:{tmp_path / name}}}"
        if form:
            del given["ssl.key.location"]
        phrase = f"${{file:{certificates}/phrase}}"
        if form == "sealed":
            given |= {"ssl.key.location": str(certificates / "sealed.key"), "ssl.key.password": phrase}
        if form in ("pem", "keystore"):
            del given["ssl.certificate.location"]
        if form == "pem":
            key, certificate = (f"${{file:{certificates / APP}.{kind}}}" for kind in ("key", "crt"))
            given |= {"ssl.key.pem": key, "ssl.certificate.pem": certificate}
        if form == "keystore":
            given |= {"ssl.keystore.location": str(certificates / "store.p12"), "ssl.keystore.password": phrase}
        return given

    return make


@pytest.mark.parametrize(
    ("writing", "reading"),
    [
        ("scram", "oauth"),
        ("plain", "mtls-sealed"),
        pytest.param("oauth", "scram", marks=pytest.mark.long),
        pytest.param("mtls", "plain", marks=pytest.mark.long),
    ],
)
def test_redis_over_tls_to_kafka_and_back(
    workshop: Any, lab: Lab, tmp_path: Path, properties: Callable[[str], dict[str, str]], writing: str, reading: str
) -> None:
    """Redis -> a topic -> other keys of Redis, by two relays that share their lanes through their groups."""
    middle = SecureKafka(lab, properties(writing))
    ends = [SecureRedis(lab, tmp_path), SecureRedis(lab, tmp_path)]
    workshop.sides += [middle, *ends]
    forth, back = workshop.copy(ends[0], middle, allow_weak=True), workshop.copy(middle, ends[1])
    back.document["brokers"]["old"]["properties"] = properties(reading)
    back.write_config()
    for lane in range(2):
        ends[0].write_numbers(lane, range(lane, _RECORDS, 2))
    relays = [made.run("--start") for made in (forth, back)]
    forth.wait_drained()
    back.wait_drained(records=_RECORDS)
    assert forth.check().source_records == back.check().source_records == _RECORDS
    assert [relay.stop() for relay in relays] == [0, 0]


@pytest.mark.parametrize(
    ("here", "there"),
    [
        pytest.param("mtls-sealed", "oauth", marks=pytest.mark.long),
        pytest.param("oauth", "mtls-pem", marks=pytest.mark.long),
        pytest.param("scram", "mtls-keystore", marks=pytest.mark.long),
        pytest.param("plain", "scram", marks=pytest.mark.long),
    ],
)
def test_kafka_to_kafka_each_by_its_own_login(
    workshop: Any, lab: Lab, properties: Callable[[str], dict[str, str]], here: str, there: str
) -> None:
    made = workshop.copy(SecureKafka(lab, properties(here)), SecureKafka(lab, properties(there)), allow_weak=True)
    workshop.sides += [made.source, made.target]
    for lane in range(2):
        made.source.write_numbers(lane, range(lane, _RECORDS, 2))
    relay = made.run("--start")
    made.wait_drained()
    assert made.check().source_records == _RECORDS
    assert relay.stop() == 0


class TokenEndpoint:
    """An identity provider of one grant: who shows the client's secret is given a token that holds for a while."""

    def __init__(self, lab: Lab, holds_s: float) -> None:
        self._port = 0
        self.secret = secrets.token_hex(12)
        self.given = 0
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
                login = base64.b64encode(f"{APP}:{endpoint.secret}".encode()).decode()
                known = "grant_type=client_credentials" in asked and self.headers["Authorization"] == f"Basic {login}"
                body = {"error": "invalid_client"}
                if known:
                    endpoint.given += 1
                    body = {"access_token": secure.token(lab.folder, APP, holds_s=holds_s), "token_type": "Bearer"}
                self.send_response(200 if known else 401)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._handler = Handler
        self.start()
        self.url = f"http://127.0.0.1:{self._port}/token"

    def start(self) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self._port), self._handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.long
def test_tokens_of_an_identity_provider_are_renewed_while_the_relay_runs(
    workshop: Any, lab: Lab, tmp_path: Path
) -> None:
    """OpenID Connect: the client's secret in a file, tokens hold for seconds; a wrong secret is refused by name."""
    # Much shorter, and a connection made late in a token's life would log in again within a second: brokers refuse it.
    endpoint = TokenEndpoint(lab, holds_s=_TOKEN_S)
    secret = tmp_path / "client.secret"
    secret.write_text("wrong\n")
    properties = lab.kafka_properties(listener="OIDC") | {
        "sasl.oauthbearer.token.endpoint.url": endpoint.url,
        "sasl.oauthbearer.client.secret": f"${{file:{secret}}}",
    }
    made = workshop.copy(SecureRedis(lab, tmp_path), SecureKafka(lab, properties), allow_weak=True)
    workshop.sides += [made.source, made.target]
    _refused(made.cli("relay", "start"), "sasl.oauthbearer")
    secret.write_text(endpoint.secret + "\n")
    made.source.write_numbers(0, range(_RECORDS))
    relay = made.run("--start")
    made.wait_drained()
    given = endpoint.given
    time.sleep(_TOKEN_S + 1)
    assert endpoint.given > given
    # The first tokens have expired: new connections need the new ones.
    lab.faults.reset("kafka-1-oidc")
    made.source.write_numbers(1, range(_RECORDS))
    made.wait_drained()
    # An identity provider that does not answer is no wrong password: the relay waits for it.
    endpoint.stop()
    time.sleep(_TOKEN_S + 1)
    lab.faults.reset("kafka-1-oidc")
    made.source.write_numbers(1, range(_RECORDS, 2 * _RECORDS))
    time.sleep(_TOKEN_S)
    assert relay.is_running, relay.said[-3000:]
    endpoint.start()
    made.wait_drained()
    assert made.check().source_records == 3 * _RECORDS
    assert relay.stop() == 0
    endpoint.stop()


def test_a_password_changes_while_the_relay_runs(
    workshop: Any, lab: Lab, tmp_path: Path, properties: Callable[[str], dict[str, str]]
) -> None:
    """The new password into the file, then to the brokers; every connection logs in anew, and nothing is restarted."""
    made = workshop.copy(SecureRedis(lab, tmp_path), SecureKafka(lab, properties("scram")), allow_weak=True)
    workshop.sides += [made.source, made.target]
    made.source.write_numbers(0, range(_RECORDS))
    relay = made.run("--start")
    made.wait_drained()
    old, new = (tmp_path / "sasl.password").read_text().strip(), secrets.token_hex(12)
    admin = AdminClient(lab.kafka_properties(direct=True))

    def change(password: str) -> None:
        (tmp_path / "sasl.password").write_text(password + "\n")
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        update = UserScramCredentialUpsertion(APP, info, password.encode())
        admin.alter_user_scram_credentials([update])[APP].result()

    try:
        change(new)
        assert lab.faults.reset("kafka-1").observed["connections_reset"]
        made.source.write_numbers(1, range(_RECORDS))
        made.wait_drained()
        assert made.check().source_records == 2 * _RECORDS
        assert relay.stop() == 0
    finally:
        change(old)


def test_a_redis_password_changes_while_the_relay_runs(workshop: Any, lab: Lab, tmp_path: Path) -> None:
    """The user has both passwords for a moment; the file says the new one, and every connection logs in anew."""
    users, old, new = [f"rotated-{secrets.token_hex(3)}" for _ in range(2)], *(secrets.token_hex(8) for _ in range(2))
    ends = [SecureRedis(lab, tmp_path, user, old) for user in users]
    workshop.sides += ends
    admin = ends[0].client
    for user in users:
        admin.execute_command("ACL", "SETUSER", user, "on", f">{old}", "~*", "+@all")
    made = workshop.copy(*ends)
    made.source.write_numbers(0, range(_RECORDS))
    relay = made.run("--start")
    made.wait_drained()
    try:
        for user in users:
            admin.execute_command("ACL", "SETUSER", user, f">{new}")
            (tmp_path / f"{user}.password").write_text(new + "\n")
            admin.execute_command("ACL", "SETUSER", user, f"<{old}")
            assert admin.execute_command("CLIENT", "KILL", "USER", user) > 0
        made.source.write_numbers(1, range(_RECORDS))
        made.wait_drained()
        assert made.check().source_records == 2 * _RECORDS
        assert relay.stop() == 0
    finally:
        admin.execute_command("ACL", "DELUSER", *users)


# -- the least rights -------------------------------------------------------------------------------------------------


def _grant(lab: Lab, commands: list[str], principal: str) -> None:
    """Do what printed lines of kafka-acls.sh say, for this principal."""
    kinds = {"--topic": Resource.TOPIC, "--group": Resource.GROUP, "--transactional-id": Resource.TRANSACTIONAL_ID}
    rules = []
    for line in commands:
        words = line.split()
        pattern = ResourcePatternType.PREFIXED if "prefixed" in words else ResourcePatternType.LITERAL
        pairs = list(itertools.pairwise(words))
        kind, name = next((kinds[flag], value) for flag, value in pairs if flag in kinds)
        for flag, value in pairs:
            if flag == "--operation":
                operation = AclOperation["".join("_" * c.isupper() + c for c in value).lstrip("_").upper()]
                rules.append(AclBinding(kind, name, pattern, principal, "*", operation, AclPermissionType.ALLOW))
    admin = AdminClient(lab.kafka_properties(direct=True))
    for future in admin.create_acls(rules).values():
        future.result()


def test_the_printed_rights_are_enough_for_a_certificate_and_a_redis_user(
    workshop: Any, lab: Lab, tmp_path: Path
) -> None:
    """A principal that may only log in is refused by name; with what `doctor --print-acls` prints it copies."""
    middle = SecureKafka(lab, lab.kafka_properties(listener="MTLS", user=NOBODY))
    users, password = [f"least-{secrets.token_hex(3)}" for _ in range(2)], secrets.token_hex(8)
    ends = [SecureRedis(lab, tmp_path, user, password) for user in users]
    workshop.sides += [middle, *ends]
    copies = [workshop.copy(ends[0], middle, allow_weak=True), workshop.copy(middle, ends[1])]
    admin = ends[0].client
    for user in users:
        admin.execute_command("ACL", "SETUSER", user, "on", f">{password}", "resetkeys", "-@all")
    _refused(copies[0].cli("relay", "start"), "doctor")
    for made, user in zip(copies, users, strict=True):
        answer = made.cli("doctor", "--print-acls")
        assert answer.code == 0, answer.err
        for row in json.loads(answer.out)["rights"]:
            if row["commands"][0].startswith("kafka-acls.sh"):
                assert "User:CN=" in row["commands"][0]
                _grant(lab, row["commands"], f"User:CN={NOBODY}")
            else:
                for line in row["commands"]:
                    words = line.split()
                    assert words[:4] == ["ACL", "SETUSER", user, "on"], line
                    admin.execute_command(*words)  # the password that the user has stays
    for lane in range(2):
        ends[0].write_numbers(lane, range(lane, _RECORDS, 2))
    relays = [made.run("--start") for made in copies]
    copies[0].wait_drained()
    copies[1].wait_drained(records=_RECORDS)
    assert [made.check().source_records for made in copies] == [_RECORDS, _RECORDS]
    assert [relay.stop() for relay in relays] == [0, 0]


# -- who may not come in ----------------------------------------------------------------------------------------------


def _refused(answer: Answer, *words: str, error: str = "AccessRefused") -> None:
    """Exit code 5, the error by its name, in its hint what to change, and no stack trace."""
    assert answer.code == 5, answer.err
    assert "Traceback" not in answer.out + answer.err
    said = json.loads((answer.out + answer.err).strip().splitlines()[-1])
    assert said["error"] == error, said
    for word in words:
        assert word in said["hint"], said


_KAFKA_MISTAKES: dict[str, tuple[str, dict[str, str | None], tuple[str, ...]]] = {
    "scram password": ("scram", {"sasl.password": "wrong"}, ("sasl.password",)),
    "plain password": ("plain", {"sasl.password": "wrong"}, ("sasl.password",)),
    "unknown authority": ("mtls", {"ssl.ca.location": "stranger/ca.pem"}, ("ssl.ca.location",)),
    "certificate of another authority": (
        "mtls",
        {"ssl.certificate.location": "stranger/app.crt", "ssl.key.location": "stranger/app.key"},
        ("ssl.certificate.location",),
    ),
    "expired certificate": (
        "mtls",
        {"ssl.certificate.location": "expired.crt", "ssl.key.location": "expired.key"},
        ("ssl.certificate.location",),
    ),
    "no certificate": (
        "mtls",
        {"ssl.certificate.location": None, "ssl.key.location": None},
        ("ssl.certificate.location",),
    ),
    "expired token": ("oauth", {"sasl.oauthbearer.config": "principal=app lifeSeconds=-60"}, ("sasl.oauthbearer",)),
    "wrong mechanism": (
        "oauth",
        {"sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "app", "sasl.password": "x"},
        ("sasl.mechanism",),
    ),
    "no TLS": ("scram", {"security.protocol": "SASL_PLAINTEXT"}, ("security.protocol",)),
}


@pytest.mark.parametrize(
    "mistake", [pytest.param(name, marks=pytest.mark.long if name == "no TLS" else ()) for name in _KAFKA_MISTAKES]
)
def test_kafka_refuses_and_the_fix_is_named(
    workshop: Any, lab: Lab, certificates: Path, properties: Callable[[str], dict[str, str]], mistake: str
) -> None:
    mode, changes, words = _KAFKA_MISTAKES[mistake]
    given: dict[str, str] = properties(mode)
    for name, value in changes.items():
        if value is None:
            del given[name]
        else:
            given[name] = str(certificates / value) if name.endswith(".location") else value
    made = workshop.copy(SecureRedis(lab, certificates), SecureKafka(lab, given))
    workshop.sides += [made.source, made.target]
    # Whether a listener expects TLS cannot be known; the client's own words say what to look at.
    _refused(made.cli("relay", "start"), *words, error="Unreachable" if mistake == "no TLS" else "AccessRefused")


_REDIS_MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "password": ({"password": "wrong"}, "password"),
    "user": ({"username": "nobody-knows"}, "user"),
    "authority": ({"tls": {"ca": "stranger/ca.pem"}}, "tls.ca"),
}


@pytest.mark.parametrize("mistake", _REDIS_MISTAKES)
def test_redis_refuses_and_the_fix_is_named(
    workshop: Any, lab: Lab, certificates: Path, properties: Callable[[str], dict[str, str]], mistake: str
) -> None:
    changes, word = _REDIS_MISTAKES[mistake]
    side = SecureRedis(lab, certificates)
    side.settings |= changes
    if "tls" in changes:
        side.settings["tls"] = {"ca": str(certificates / changes["tls"]["ca"])}
    made = workshop.copy(side, SecureKafka(lab, properties("plain")))
    workshop.sides += [made.source, made.target]
    error = "Unreachable" if mistake == "authority" else "AccessRefused"
    _refused(made.cli("relay", "start"), word, error=error)
