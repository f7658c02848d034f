"""Properties that pass through, those that do not, error codes, threads, and what the doctor says."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from crossfade.brokers.kafka import KafkaInspector, names, verdicts
from crossfade.brokers.kafka import failures as failures_module
from crossfade.brokers.kafka import settings as settings_module
from crossfade.brokers.kafka.board import TOPIC_CONFIG
from crossfade.brokers.kafka.cluster import ConfigValue, TopicFacts
from crossfade.brokers.kafka.failures import HandleHealth, doubt, translate
from crossfade.brokers.kafka.group import SESSION_TIMEOUT_MS, _Member
from crossfade.brokers.kafka.guarantee import weaknesses
from crossfade.brokers.kafka.lanes import generation_of
from crossfade.brokers.kafka.properties import property_mistakes
from crossfade.brokers.kafka.settings import _LOGIN_TAKES_S, DOUBT_S, REFUSED, RETRY_BACKOFF_MS, KafkaSettings
from crossfade.brokers.kafka.threads import HandleThread
from crossfade.brokers.protocol import Level
from crossfade.config import Secret
from crossfade.errors import AccessRefused, Fenced, Indeterminate, Kind, Unreachable, UsageError

AT = {"bootstrap.servers": "127.0.0.1:1"}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_break_the_guarantee_is_refused_by_name(name):
    with pytest.raises(UsageError, match=name.replace(".", r"\.")) as caught:
        KafkaSettings(AT | {name: "1"})
    assert caught.value.hint


@pytest.mark.parametrize(
    "name",
    ["enable.idempotence", "acks", "isolation.level", "retry.backoff.ms", "transactional.id", "auto.offset.reset"],
)
def test_the_bearers_of_the_guarantee_are_on_the_list(name):
    assert name in REFUSED


@pytest.mark.parametrize("name", ["oauth_cb", "default.topic.config", "error_cb", "logger"])
def test_what_is_no_text_is_refused(name):
    with pytest.raises(UsageError, match="uses it itself"):
        KafkaSettings(AT | {name: "x"})


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, []),
        ({"linger.ms": "5", "compression.type": "lz4", "client.rack": "a", "security.protocol": "ssl"}, []),
        (
            {"foo.bar": "1", "sasl.usrname": "x"},
            [
                ("foo.bar", "an unknown property", "a property of librdkafka", ""),
                ("sasl.usrname", "an unknown property", "a property of librdkafka", "sasl.username"),
            ],
        ),
        (
            {"security.protocol": "SASLSSL"},
            [("security.protocol", "", "one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL", "SASL_SSL")],
        ),
        ({"compression.type": "lz5"}, [("compression.type", "", "one of none, gzip, snappy, lz4, zstd", "lz4")]),
        ({"linger.ms": "abc"}, [("linger.ms", "", "a value that librdkafka takes", "")]),
        ({"queued.min.messages": "0"}, [("queued.min.messages", "", "a number in the range 1..10000000", "")]),
        ({"debug": "foo"}, [("debug", "", "a value that librdkafka takes", "")]),
        (
            {"ssl.ca.location": "/nope.pem"},
            [("ssl.ca.location", "", "a file that can be read (No such file or directory)", "")],
        ),
        (
            {"acks": "1"},
            [("acks", "a property that cannot be set (an acknowledged record could be lost)", "no such key", "")],
        ),
        ({"oauth_cb": "x"}, [("oauth_cb", "a property that Crossfade sets itself", "no such key", "")]),
        (
            {"default.topic.config": "x"},
            [("default.topic.config", "a property that Crossfade sets itself", "no such key", "")],
        ),
        (
            {"sasl.jaas.config": "x", "ssl.truststore.location": "x.jks"},
            [
                ("sasl.jaas.config", "a property of the Java client", "sasl.username and sasl.password", ""),
                (
                    "ssl.truststore.location",
                    "a property of the Java client",
                    "ssl.ca.location, the file of the certificate authority in PEM",
                    "",
                ),
            ],
        ),
        (
            {"security.protocol": "SASL_SSL"},
            [("sasl.mechanism", "nothing", "one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER", "")],
        ),
        (
            {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA512"},
            [("sasl.mechanism", "", "one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER", "SCRAM-SHA-512")],
        ),
        (
            {"security.protocol": "SASL_SSL", "sasl.mechanisms": "scram-sha-256", "sasl.username": "a"},
            [("sasl.mechanisms", "", "one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER", "SCRAM-SHA-256")],
        ),
        ({"client.id": "\udcff"}, [("client.id", "text that is not UTF-8", "UTF-8 text", "")]),
        ({"ssl.ca.location": "a\0b"}, [("ssl.ca.location", "", "a file that can be read (embedded null byte)", "")]),
        (
            {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "OAUTHBEARER",
                "sasl.oauthbearer.method": "oidc",
            },
            [
                (
                    "sasl.oauthbearer.token.endpoint.url",
                    "nothing",
                    "where the identity provider gives tokens",
                    "",
                )
            ],
        ),
        (
            {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"},
            [
                (
                    "",
                    "what librdkafka does not take (sasl.username and sasl.password must be set)",
                    "what goes together",
                    "",
                )
            ],
        ),
        (
            {"fetch.max.bytes": "5"},
            [
                (
                    "fetch.max.bytes",
                    "what librdkafka does not take (`fetch.max.bytes` must be >= `message.max.bytes`)",
                    "what goes together",
                    "",
                )
            ],
        ),
    ],
)
def test_wrong_properties_are_told_before_any_connection(properties, expected):
    assert property_mistakes(AT | properties) == expected


def test_the_check_reaches_no_broker_and_no_identity_provider():
    """A handle with an address connects as soon as it is made; one with a token endpoint asks for a token."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.5)
        at = f"127.0.0.1:{listening.getsockname()[1]}"
        sasl = {"security.protocol": "SASL_PLAINTEXT", "bootstrap.servers": at}
        oidc = {
            "sasl.mechanism": "OAUTHBEARER",
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": "a",
            "sasl.oauthbearer.client.secret": "b",
            "sasl.oauthbearer.token.endpoint.url": f"http://{at}/token",
        }
        plain = {"sasl.mechanism": "PLAIN", "sasl.username": "u", "sasl.password": "p"}
        for more in (plain, oidc):
            assert property_mistakes(sasl | more) == []
            with pytest.raises(TimeoutError):
                listening.accept()


@pytest.mark.parametrize("properties", [{"foo.bar": "1"}, {"linger.ms": "abc"}, {"ssl.ca.location": "/nope.pem"}])
def test_a_handle_that_cannot_be_made_is_a_mistake_and_not_retried(properties):
    with pytest.raises(KafkaException) as caught:
        Producer({"security.protocol": "ssl"} | properties)
    error = translate(caught.value, "testing")
    assert isinstance(error, UsageError)
    assert (error.exit_code, error.kind) == (2, Kind.HALT)
    assert isinstance(doubt(caught.value, "testing"), UsageError)
    # The same code, of a call: not this.
    assert isinstance(translate(KafkaError(KafkaError._INVALID_ARG), "testing"), Unreachable)


def test_addresses_are_needed():
    with pytest.raises(UsageError, match="address"):
        KafkaSettings({"security.protocol": "SSL"})


def test_properties_pass_through_to_the_handles_that_know_them():
    made = KafkaSettings(AT | {"ssl.ca.location": "/ca", "linger.ms": 20, "fetch.min.bytes": 10, "client.id": "me"})
    health = HandleHealth("test")
    consumer, producer, admin = made.consumer(health), made.producer(health, linger_ms=5), made.admin(health)
    for found in (consumer, producer, admin):
        assert found["ssl.ca.location"] == "/ca"
        assert found["client.id"] == "me"
        assert found["allow.auto.create.topics"] is False
    assert "linger.ms" not in consumer
    assert producer["linger.ms"] == 20  # the user's word before ours
    assert "fetch.min.bytes" not in producer
    assert consumer["fetch.min.bytes"] == 10
    assert not {"linger.ms", "fetch.min.bytes"} & admin.keys()


def test_secrets_are_read_when_a_handle_is_made():
    secrets = iter(["one", "two"])
    made = KafkaSettings(AT | {"sasl.password": lambda: next(secrets)})
    assert made.consumer(HandleHealth("test"))["sasl.password"] == "one"
    assert made.consumer(HandleHealth("test"))["sasl.password"] == "two"


def _handles(settings):
    health = HandleHealth("test")
    return (
        lambda: settings.consumer(health),
        lambda: settings.producer(health),
        lambda: settings.admin(health),
    )


@pytest.mark.parametrize("name", ["sasl.password", "sasl.username", "ssl.key.pem", "sasl.oauthbearer.client.secret"])
def test_a_secret_that_cannot_be_read_now_is_tried_again(name, tmp_path):
    file = tmp_path / "secret"
    made = KafkaSettings(AT | {name: Secret("${file:secret}", {}, tmp_path).get})
    for handle in _handles(made):
        file.unlink(missing_ok=True)
        with pytest.raises(Unreachable, match=rf"{name} cannot be read now: cannot read .* No such file") as gone:
            handle()
        assert (gone.value.kind, "tries again" in gone.value.hint) == (Kind.RETRY, True)
        file.write_text("\n")
        with pytest.raises(Unreachable, match=f"{name} cannot be read now: it is empty"):
            handle()
        file.write_text("new\n")
        assert handle()[name] == "new"


@pytest.mark.parametrize("name", ["ca", "certificate", "key", "keystore", "crl"])
def test_a_tls_file_that_cannot_be_read_now_is_tried_again(name, tmp_path):
    file = tmp_path / "tls.pem"
    made = KafkaSettings(AT | {"security.protocol": "SASL_SSL", f"ssl.{name}.location": str(file)})
    for handle in _handles(made):
        file.unlink(missing_ok=True)
        with pytest.raises(Unreachable, match=r"tls\.pem .*cannot be read now: No such file"):
            handle()
        file.write_bytes(b"")
        with pytest.raises(Unreachable, match="cannot be read now: it is empty"):
            handle()
        file.write_bytes(b"PEM")
        assert handle()[f"ssl.{name}.location"] == str(file)


@pytest.mark.parametrize("place", ["probe", "."])
def test_authorities_may_be_a_folder_or_the_systems(place):
    made = KafkaSettings(AT | {"security.protocol": "ssl", "ssl.ca.location": place})
    assert made.admin(HandleHealth("test"))["ssl.ca.location"] == place


def test_what_is_no_secret_may_be_empty():
    made = KafkaSettings(AT | {"client.rack": lambda: "", "sasl.oauthbearer.scope": lambda: ""})
    assert made.producer(HandleHealth("test"))["sasl.oauthbearer.scope"] == ""


def test_a_login_that_is_empty_for_a_moment_is_given_to_no_handle():
    password = ["old"]
    made = KafkaSettings(AT | {"sasl.username": "relay", "sasl.password": lambda: password[0]})
    made.consumer(HandleHealth("test"))
    live = Handle()
    made.track(live)
    password[0] = ""
    assert made.renew_login() is True  # perhaps it was the old one that was refused
    assert live.got == []
    password[0] = "new"
    assert made.renew_login() is True
    _wait(lambda: live.got)
    assert live.got == [("relay", "new")]


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    for module in (settings_module, failures_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def _with_password_in(file):
    return KafkaSettings(
        AT | {"sasl.username": "relay", "sasl.password": Secret("${file:" + file.name + "}", {}, file.parent).get}
    )


_BAD_PASSWORD = KafkaError(KafkaError._AUTHENTICATION, "bad password")


def test_a_login_that_is_refused_while_its_file_is_away_is_waited_for_but_not_for_ever(tmp_path, clock):
    """A password that changes: the brokers have the new one, and the file is just being replaced."""
    file = tmp_path / "password"
    file.write_text("old")
    made, health = _with_password_in(file), HandleHealth("test")
    made.consumer(health)
    live = Handle()
    made.track(live)
    for _ in range(2):  # each time it is away is one of its own
        file.unlink()
        for waited_s in (0, _LOGIN_TAKES_S / 2):
            clock[0] += waited_s
            health.on_error(_BAD_PASSWORD)
            assert health.refusal() is None
            assert type(translate(_BAD_PASSWORD, "testing", health)) is Unreachable
        assert live.got == []
        file.write_text(f"new at {clock[0]}")
        health.on_error(_BAD_PASSWORD)
        assert health.refusal() is None
        _wait(lambda: live.got)
        assert live.got == [("relay", f"new at {clock[0]}")]
        live.got.clear()
    clock[0] += _LOGIN_TAKES_S
    file.unlink()
    health.on_error(_BAD_PASSWORD)
    assert health.refusal() is None
    clock[0] += _LOGIN_TAKES_S
    health.on_error(_BAD_PASSWORD)
    assert type(translate(KafkaError(KafkaError._TRANSPORT), "testing", health)) is AccessRefused


def test_a_refusal_of_what_was_renewed_since_explains_nothing(tmp_path, clock):
    file = tmp_path / "password"
    file.write_text("old")
    made, first, second = _with_password_in(file), HandleHealth("first"), HandleHealth("second")
    for health in (first, second):
        made.consumer(health)
    clock[0] += 1
    first.on_error(_BAD_PASSWORD)
    assert first.refusal() is _BAD_PASSWORD
    clock[0] += 1
    file.write_text("new")
    second.on_error(_BAD_PASSWORD)
    assert (first.refusal(), second.refusal()) == (None, None)
    assert type(translate(KafkaError(KafkaError._TRANSPORT), "testing", first)) is Unreachable
    clock[0] += _LOGIN_TAKES_S
    first.on_error(_BAD_PASSWORD)  # the new one is wrong too
    assert first.refusal() is _BAD_PASSWORD


def test_a_call_that_a_changed_password_fails_is_tried_again():
    """What a member is told of a login that failed may come before the callback does."""
    password = ["old"]
    made = KafkaSettings(AT | {"sasl.username": "relay", "sasl.password": lambda: password[0]})
    health = HandleHealth("test")
    made.consumer(health)
    assert type(translate(_BAD_PASSWORD, "testing", health)) is AccessRefused
    password[0] = "new"
    assert type(translate(_BAD_PASSWORD, "testing", health)) is Unreachable


def test_addresses_that_are_a_reference_are_shown():
    assert KafkaSettings({"bootstrap.servers": lambda: "h:1"}).bootstrap == "h:1"
    assert KafkaSettings({"metadata.broker.list": "h:2"}).bootstrap == "h:2"


def test_a_token_callback_passes_through_uncalled():
    made = KafkaSettings(AT | {"oauth_cb": pytest.fail})
    assert made.producer(HandleHealth("test"))["oauth_cb"] is pytest.fail


class Handle:
    """A live handle, and the logins that it was given."""

    def __init__(self):
        self.got = []

    def set_sasl_credentials(self, username, password):
        self.got.append((username, password))


class ClosedHandle:
    def set_sasl_credentials(self, username, password):
        raise RuntimeError("Handle has been closed")


def _wait(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_refused_password_is_read_anew_and_given_to_every_handle():
    password = ["old"]
    made = KafkaSettings(AT | {"sasl.username": "relay", "sasl.password": lambda: password[0]})
    health = HandleHealth("test")
    made.consumer(health)
    live, gone = Handle(), Handle()
    for handle in (ClosedHandle(), live, gone):
        made.track(handle)
    made.untrack(gone)
    refused = KafkaError(KafkaError._AUTHENTICATION, "bad password")
    health.on_error(refused)
    assert health.refusal() is refused
    # Changed meanwhile: the refusal was of the old one.
    second = HandleHealth("test")
    made.producer(second)
    password[0] = "new"
    second.on_error(refused)
    assert second.refusal() is None
    _wait(lambda: live.got)
    late = Handle()  # it was made with the old one, and is there only now
    made.track(late)
    second.on_error(refused)  # of a connection that still used the old one
    assert second.refusal() is None
    _wait(lambda: late.got)
    assert set(live.got) == set(late.got) == {("relay", "new")}
    assert gone.got == []
    assert made.producer(HandleHealth("test"))["sasl.password"] == "new"


_REFUSED_AT_EACH_CALLBACK = """
import itertools, sys, time
from confluent_kafka import Consumer, Producer
from crossfade.brokers.kafka.failures import HandleHealth
from crossfade.brokers.kafka.settings import KafkaSettings

number = itertools.count()
settings = KafkaSettings({
    "bootstrap.servers": "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3",
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "PLAIN",
    "sasl.username": "relay",
    "sasl.password": lambda: str(next(number)),
})
heard = []

def told(error):
    heard.append(error)
    settings.renew_login()

health = HandleHealth("test")
handles = [
    Producer(settings.producer(health) | {"error_cb": told}),
    Consumer(settings.consumer(health, group_id="g") | {"error_cb": told}),
]
for handle in handles:
    settings.track(handle)
deadline = time.monotonic() + 60
while len(heard) < 8 and time.monotonic() < deadline:
    time.sleep(0.3)  # several callbacks for one poll
    for handle in handles:
        handle.poll(0.05)
print(len(heard))
"""


def test_a_login_may_change_in_a_callback():
    """Real handles, in a process of their own: called from within its callback, a handle's next callback crashes it."""
    done = subprocess.run(
        [sys.executable, "-c", _REFUSED_AT_EACH_CALLBACK], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 8


@pytest.mark.parametrize(
    "said",
    [
        "Failed to connect to 127.0.0.1:1 after 0 ms: Could not connect to server",
        "Could not resolve host: idp.example",
        "Operation timed out after 5000 milliseconds with 0 bytes received",
        "<html><head><title>503 Service Temporarily Unavailable</title></head></html>",
    ],
)
def test_an_identity_provider_that_does_not_answer_refuses_nothing(said):
    health = HandleHealth("test")
    health.on_error(KafkaError(KafkaError._AUTHENTICATION, f"Failed to acquire SASL OAUTHBEARER token: {said}"))
    expired = KafkaError(KafkaError._AUTHENTICATION, '{"status":"invalid_token"}')
    health.on_error(expired)  # what brokers say of the old token meanwhile
    assert health.refusal() is None
    for failure in (expired, KafkaError(KafkaError._TRANSPORT)):
        found = translate(failure, "testing", health)
        assert type(found) is Unreachable
        assert said in found.message
        assert "identity provider" in found.hint
    assert type(translate(KafkaError(KafkaError._FENCED), "testing", health)) is Fenced


@pytest.mark.parametrize("said", ['{"error":"invalid_client"}', 'Expected JSON response with "access_token" field'])
def test_an_identity_provider_that_refuses_is_named(said):
    health = HandleHealth("test")
    health.on_error(KafkaError(KafkaError._AUTHENTICATION, f"Failed to acquire SASL OAUTHBEARER token: {said}"))
    found = translate(KafkaError(KafkaError._TRANSPORT), "testing", health)
    assert type(found) is AccessRefused
    assert "sasl.oauthbearer" in found.hint


class OneMessage:
    """A consumer with one error to tell."""

    def __init__(self, error):
        self.told = error

    def poll(self, wait_s):
        return self

    def error(self):
        return self.told


def test_a_member_outlives_the_outage_of_an_identity_provider():
    """The library tells a member of every login that failed, and goes on trying."""
    refused = KafkaError(KafkaError._AUTHENTICATION, "FindCoordinator response error: Local: Authentication failure")
    health = HandleHealth("test")
    member = _Member(KafkaSettings(AT), health, "crossfade.r", "crossfade.r.lanes", "one")
    member._consumer, member._log = OneMessage(refused), structlog.get_logger()
    with pytest.raises(KafkaException):
        member.poll(0)
    for reason, is_outage in (("Could not connect to server", True), ('{"error":"invalid_client"}', False)):
        health.on_error(KafkaError(KafkaError._AUTHENTICATION, f"Failed to acquire SASL OAUTHBEARER token: {reason}"))
        if is_outage:
            member.poll(0)
        else:
            with pytest.raises(KafkaException):
                member.poll(0)


def test_a_password_that_cannot_change_is_refused_at_once():
    made = KafkaSettings(AT | {"sasl.username": "relay", "sasl.password": "old"})
    health = HandleHealth("test")
    made.consumer(health)
    health.on_error(KafkaError(KafkaError._AUTHENTICATION, "bad password"))
    assert health.refusal() is not None


_SECURITY = {
    "security.protocol": "SASL_SSL",
    "sasl.mechanism": "OAUTHBEARER",
    "sasl.oauthbearer.method": "oidc",
    "sasl.oauthbearer.client.id": "relay",
    "sasl.oauthbearer.client.secret": "s",
    "sasl.oauthbearer.scope": "kafka",
    "sasl.oauthbearer.extensions": "a=b",
    "sasl.oauthbearer.token.endpoint.url": "https://127.0.0.1/token",
    "sasl.oauthbearer.config": "principal=relay",
    "enable.sasl.oauthbearer.unsecure.jwt": "true",
    "https.ca.location": "/ca",
    "ssl.ca.location": "/ca",
    "ssl.ca.pem": "PEM",
    "ssl.certificate.location": "/crt",
    "ssl.certificate.pem": "PEM",
    "ssl.key.location": "/key",
    "ssl.key.pem": "PEM",
    "ssl.key.password": "p",
    "ssl.keystore.location": "/p12",
    "ssl.keystore.password": "p",
    "ssl.crl.location": "/crl",
    "ssl.endpoint.identification.algorithm": "https",
    "enable.ssl.certificate.verification": "true",
    "sasl.username": "u",
    "sasl.password": "p",
}


@pytest.mark.parametrize("name", _SECURITY)
def test_what_secures_a_connection_reaches_every_handle_also_as_a_secret(name):
    for given in (_SECURITY[name], lambda: _SECURITY[name]):
        made = KafkaSettings(AT | {name: given})
        health = HandleHealth("test")
        for found in (made.consumer(health), made.producer(health), made.admin(health)):
            assert found[name] == _SECURITY[name]


@pytest.mark.parametrize(
    ("given", "principal"),
    [
        ({"sasl.username": lambda: "relay"}, "User:relay"),
        ({"security.protocol": "ssl", "ssl.certificate.location": "/crt"}, "User:CN=crossfade"),
        ({"sasl.mechanism": "OAUTHBEARER", "sasl.oauthbearer.config": "scope=x principal=relay"}, "User:relay"),
        ({"sasl.mechanism": "OAUTHBEARER", "sasl.oauthbearer.method": "oidc"}, "User:crossfade"),
        ({}, "User:crossfade"),
    ],
)
def test_rights_are_printed_for_who_the_brokers_see(given, principal):
    assert KafkaSettings(AT | given).principal == principal


def test_a_step_in_doubt_is_shorter_than_any_retry_of_the_client():
    assert DOUBT_S * 1000 <= 0.8 * RETRY_BACKOFF_MS
    assert RETRY_BACKOFF_MS <= 500  # the wait before a second TxnOffsetCommit cannot be configured


def test_an_outage_does_not_flood_the_log():
    logger = KafkaSettings(AT).consumer(HandleHealth("test"))["logger"]
    with structlog.testing.capture_logs() as lines:
        for number in range(50):
            logger.error("FAIL [client] broker %d is down", number)
        logger.warning("GETPID [client] other")
    assert [line["event"].split(" ")[0] for line in lines] == ["FAIL", "GETPID"]
    assert {line["log_level"] for line in lines} == {"info"}  # a relay shows it, a command its error alone
    assert lines[1]["left_out"] == 49


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (KafkaError._TRANSPORT, Unreachable),
        (KafkaError._ALL_BROKERS_DOWN, Unreachable),
        (KafkaError.REQUEST_TIMED_OUT, Unreachable),
        (KafkaError._AUTHENTICATION, AccessRefused),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, AccessRefused),
        (KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, AccessRefused),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, AccessRefused),
        (KafkaError._FENCED, Fenced),
        (KafkaError.INVALID_PRODUCER_EPOCH, Fenced),
        (KafkaError.ILLEGAL_GENERATION, Fenced),
        (KafkaError.UNKNOWN_MEMBER_ID, Fenced),
    ],
)
def test_codes_become_errors(code, expected):
    found = translate(KafkaException(KafkaError(code)), "testing")
    assert type(found) is expected
    assert "testing" in found.message
    if expected is not Fenced:
        assert found.hint


def test_a_wrong_password_explains_the_transport_errors_after_it():
    health = HandleHealth("test")
    assert type(translate(KafkaError(KafkaError._TRANSPORT), "testing", health)) is Unreachable
    health.on_error(KafkaError(KafkaError._AUTHENTICATION, "bad password"))
    found = translate(KafkaError(KafkaError._TRANSPORT), "testing", health)
    assert type(found) is AccessRefused
    assert "bad password" in found.message


_AT = "sasl_ssl://127.0.0.1:1/bootstrap: "


@pytest.mark.parametrize(
    ("code", "said", "fix"),
    [
        (
            KafkaError._TRANSPORT,
            "Receive failed: error:0A000416:SSL routines::ssl/tls alert certificate unknown",
            "key",
        ),
        (KafkaError._TRANSPORT, "Receive failed: SSL routines::tlsv13 alert certificate required: 116", "keystore"),
        (
            KafkaError._TRANSPORT,
            "Receive failed: SSL routines::tlsv1 alert unknown ca: SSL alert number 48",
            "keystore",
        ),
        (KafkaError._SSL, "SSL handshake failed: certificate verify failed", "ssl.ca.location"),
        (
            KafkaError._AUTHENTICATION,
            "SASL authentication error: invalid credentials with SASL mechanism SCRAM-SHA-512",
            "sasl.password",
        ),
        (KafkaError._AUTHENTICATION, "Authentication failed: Invalid username or password", "sasl.password"),
        (KafkaError._AUTHENTICATION, "Unsupported mechanism: broker's supported mechanisms: X", "sasl.mechanism"),
        (KafkaError._AUTHENTICATION, "Failed to acquire SASL OAUTHBEARER token: expired", "sasl.oauthbearer"),
    ],
)
def test_a_refusal_says_which_property_to_look_at(code, said, fix):
    health = HandleHealth("test")
    health.on_error(KafkaError(code, _AT + said))
    found = translate(KafkaError(KafkaError._TIMED_OUT), "testing", health)
    assert type(found) is AccessRefused
    assert said in found.message
    assert fix in found.hint


def test_what_the_client_heard_last_is_told():
    health = HandleHealth("test")
    assert "security.protocol" in translate(KafkaError(KafkaError._TIMED_OUT), "testing", health).hint
    health.on_error(KafkaError(KafkaError._TRANSPORT, _AT + "Connection refused"))
    found = translate(KafkaError(KafkaError._TIMED_OUT), "testing", health)
    assert type(found) is Unreachable
    assert "127.0.0.1:1/bootstrap: Connection refused" in found.message


@pytest.mark.parametrize("protocol", ["", "sasl_ssl://"])
@pytest.mark.parametrize(
    ("code", "said", "fix"),
    [
        (KafkaError._RESOLVE, "Failed to resolve 'h:9092': Name or service not known", "host, port and DNS"),
        (KafkaError._TRANSPORT, "Connect to ipv4#10.0.0.9:9092 failed: Connection refused", "host and port"),
        (KafkaError._TRANSPORT, "Connection setup timed out in state CONNECT", "host and port"),
    ],
)
def test_an_address_at_which_nobody_answers_is_named(protocol, code, said, fix):
    health = HandleHealth("test")
    health.on_error(KafkaError(code, f"{protocol}h:9092/bootstrap: {said} (after 1ms in state CONNECT)"))
    health.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    found = translate(KafkaError(KafkaError._TIMED_OUT, "Failed while waiting for controller"), "testing", health)
    assert type(found) is Unreachable
    assert found.message == f"Kafka at h:9092 cannot be reached: {said} (while testing)"
    assert fix in found.hint
    assert "bootstrap.servers" in found.hint
    # What a broker has answered is no matter of addresses.
    found = translate(KafkaError(KafkaError.NOT_COORDINATOR, "not here"), "testing", health)
    assert found.message.startswith("Kafka failed while testing: not here (")


def test_a_name_that_brokers_announce_and_nobody_knows_is_told():
    health = HandleHealth("test")
    health.on_error(KafkaError(KafkaError._RESOLVE, "b1.inside:9092/1: Failed to resolve 'b1.inside:9092': unknown"))
    found = translate(KafkaError(KafkaError._TIMED_OUT), "testing", health)
    assert "Failed to resolve 'b1.inside:9092'" in found.message
    assert "advertised.listeners" in found.hint
    assert "security.protocol" not in found.hint


def test_inside_a_transaction_a_lost_reply_is_a_doubt():
    assert type(doubt(KafkaError(KafkaError._TIMED_OUT), "committing")) is Indeterminate
    assert type(doubt("it took 3 s", "committing")) is Indeterminate
    assert type(doubt(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART), "sending records")) is Indeterminate
    assert type(doubt(KafkaError(KafkaError._FENCED), "committing")) is Fenced
    assert type(doubt(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), "committing")) is AccessRefused


# ------------------------------------------------------------------------------------------------------ threads


async def test_calls_of_a_thread_keep_their_order_and_raise_at_the_caller():
    thread = HandleThread("test")
    seen = []

    def fail():
        raise ValueError("no")

    results = await asyncio.gather(*(thread.call(lambda n=n: seen.append(n) or n) for n in range(50)))
    assert results == seen == list(range(50))
    with pytest.raises(ValueError, match="no"):
        await thread.call(fail)
    assert await thread.call(lambda: threading.current_thread().name) == "kafka-test"
    thread.stop()
    with pytest.raises(Unreachable):
        await thread.call(len, [])
    thread.join(5)
    assert not thread._thread.is_alive()


async def test_a_cancelled_call_does_not_stop_the_thread():
    thread = HandleThread("test")
    done = threading.Event()

    def slow():
        time.sleep(0.1)
        done.set()

    task = asyncio.create_task(thread.call(slow))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await thread.call(done.is_set)
    thread.stop()
    thread.join(5)


def test_the_generation_in_a_group_handle():
    assert generation_of(b"CGMDv2:\x05\x00\x00\x00group\x00member\x00") == 5
    assert generation_of(b"CGMDv2:\xff\xff\xff\xffgroup\x00\x00") == -1
    assert generation_of(None) == -1
    assert generation_of(b"CGMDv9:\x05\x00\x00\x00group\x00member\x00") == -1


# ------------------------------------------------------------------------------------------------------ the doctor


def facts(replication=3, in_sync=3, leader=1, operations=("READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS")):
    replicas = tuple(range(replication))
    return TopicFacts("t", "id", (replicas,) * 2, (replicas[:in_sync],) * 2, (leader,) * 2, frozenset(operations))


def config(**values):
    return {name.replace("_", "."): ConfigValue(str(value), False) for name, value in values.items()}


GOOD = {"min_insync_replicas": 2, "retention_ms": -1, "message_timestamp_after_max_ms": 1 << 62}


def levels(findings):
    return {finding.check: finding.level for finding in findings}


def test_a_fit_target_has_no_finding():
    found = verdicts.topic_findings("target", facts(), config(**GOOD), 1e6, 1e9)
    assert set(levels(found).values()) == {Level.OK}
    assert all(not finding.fix for finding in found)


@pytest.mark.parametrize(
    ("changes", "about", "check", "level"),
    [
        ({"min_insync_replicas": 1}, facts(), "kafka.min-insync-replicas", Level.FAIL),
        ({"min_insync_replicas": 3}, facts(), "kafka.min-insync-replicas", Level.WARN),
        ({"min_insync_replicas": 4}, facts(), "kafka.min-insync-replicas", Level.WARN),
        ({"unclean_leader_election_enable": "true"}, facts(), "kafka.unclean-election", Level.FAIL),
        ({"cleanup_policy": "compact"}, facts(), "kafka.cleanup-policy", Level.WARN),
        ({"retention_ms": 1000}, facts(), "kafka.retention", Level.FAIL),
        ({"retention_bytes": 1000}, facts(), "kafka.retention", Level.WARN),
        ({"retention_ms": 1_500_000_000}, facts(), "kafka.retention", Level.WARN),
        ({"message_timestamp_before_max_ms": 1_500_000_000}, facts(), "kafka.time-behind", Level.WARN),
        ({"max_message_bytes": 1000}, facts(), "kafka.message-bytes", Level.WARN),
        ({"message_timestamp_after_max_ms": 3_600_000}, facts(), "kafka.time-ahead", Level.WARN),
        ({"message_timestamp_type": "LogAppendTime"}, facts(), "kafka.time-type", Level.WARN),
        ({}, facts(replication=1, in_sync=1), "kafka.replication", Level.FAIL),
        ({}, facts(replication=2, in_sync=2), "kafka.replication", Level.WARN),
        ({}, facts(in_sync=2), "kafka.under-replicated", Level.WARN),
        ({}, facts(leader=-1), "kafka.under-replicated", Level.FAIL),
        ({}, facts(operations=()), "kafka.acl", Level.UNKNOWN),
        ({}, facts(operations=("READ", "DESCRIBE", "DESCRIBE_CONFIGS")), "kafka.acl", Level.FAIL),
    ],
)
def test_each_weakness_of_a_target_is_named_with_its_fix(changes, about, check, level):
    found = verdicts.topic_findings("target", about, config(**(GOOD | changes)), 1e6, 2e6)
    assert levels(found)[check] is level
    assert next(finding for finding in found if finding.check == check).fix


def test_more_replicas_in_sync_than_there_are_is_told_from_all_of_them():
    def fix(minimum):
        found = verdicts.topic_findings("target", facts(), config(**(GOOD | {"min_insync_replicas": minimum})), 1e6)
        return next(finding.fix for finding in found if finding.check == "kafka.min-insync-replicas")

    assert "one broker less" in fix(3)
    assert "before Kafka 3.7 refuse every write" in fix(4)


@pytest.mark.parametrize(
    ("about", "changes"),
    [
        (facts(), {}),
        (facts(replication=2, in_sync=2), {}),
        (facts(replication=1, in_sync=1), {}),
        (facts(), {"min_insync_replicas": 1}),
        (facts(), {"min_insync_replicas": 4}),
        (facts(), {"unclean_leader_election_enable": "true"}),
        (facts(replication=1, in_sync=1), {"min_insync_replicas": 1, "unclean_leader_election_enable": "true"}),
    ],
)
def test_the_doctor_fails_a_topic_where_a_start_refuses_it(about, changes):
    told = config(**(GOOD | changes))
    failed = [one for one in verdicts.topic_findings("target", about, told, 1e6, 1e9) if one.level is Level.FAIL]
    assert len(failed) == len(weaknesses(about, told))
    assert all(isinstance(one, verdicts.Weakness) for one in failed)


def test_a_source_is_judged_as_a_source():
    found = levels(verdicts.topic_findings("source", facts(operations=("READ", "DESCRIBE")), config(), 1.0))
    assert set(found.values()) == {Level.OK}
    assert "kafka.min-insync-replicas" not in found
    short = levels(verdicts.topic_findings("source", facts(), config(retention_ms=1000), 1e6))
    assert short["kafka.retention"] is Level.FAIL


def test_the_retention_of_a_target_is_judged_by_the_oldest_record_that_comes():
    def level(oldest_s, **values):
        found = levels(verdicts.topic_findings("target", facts(), config(**(GOOD | values)), 86_400, oldest_s))
        return found["kafka.retention"], found["kafka.time-behind"]

    week_s, hour_ms = 604_800, 3_600_000
    assert level(week_s, retention_ms=hour_ms) == (Level.FAIL, Level.OK)
    assert level(60, retention_ms=hour_ms) == (Level.OK, Level.OK)
    assert level(week_s, retention_ms=48 * hour_ms) == (Level.WARN, Level.OK)  # long enough for the copy itself
    assert level(None, retention_ms=hour_ms) == (Level.UNKNOWN, Level.OK)
    assert level(None, cleanup_policy="compact", retention_ms=hour_ms)[0] is Level.OK
    assert level(60, message_timestamp_before_max_ms=hour_ms)[1] is Level.WARN
    assert level(60, message_timestamp_before_max_ms=48 * hour_ms)[1] is Level.OK
    assert level(week_s, message_timestamp_before_max_ms=48 * hour_ms)[1] is Level.WARN
    assert level(week_s, message_timestamp_before_max_ms=(1 << 63) - 1)[1] is Level.OK


def test_what_cannot_be_asked_is_unknown():
    assert levels(verdicts.topic_findings("target", facts(), None, 1.0))["kafka.topic-config"] is Level.UNKNOWN
    assert levels(verdicts.broker_findings("target", None)) == {"kafka.broker-config": Level.UNKNOWN}
    assert levels(verdicts.unaskable("target")) == {"kafka.clock": Level.BY_HAND, "kafka.readers": Level.BY_HAND}
    (found,) = verdicts.internal_findings("__consumer_offsets", "kafka.offsets-topic", None, None)
    assert found.level is Level.UNKNOWN


def test_rights_on_what_is_our_own():
    everything = ("READ", "WRITE", "CREATE", "DESCRIBE", "DELETE", "ALTER", "DESCRIBE_CONFIGS", "ALTER_CONFIGS")
    on_cluster = frozenset(
        {"CREATE", "CLUSTER_ACTION", "DESCRIBE_CONFIGS", "ALTER_CONFIGS", "IDEMPOTENT_WRITE", "ALTER", "DESCRIBE"}
    )
    assert verdicts.is_unrestricted(on_cluster, facts(operations=everything))
    assert not verdicts.is_unrestricted(on_cluster - {"ALTER"}, facts(operations=everything))
    assert not verdicts.is_unrestricted(on_cluster, facts(operations=everything[:-1]))
    assert not verdicts.is_unrestricted(frozenset(), facts(operations=()))
    assert verdicts.missing_on_own(facts(operations=("READ", "DESCRIBE"))) == ["Write", "Delete"]
    assert verdicts.missing_on_own(facts(operations=())) == []
    assert verdicts.own_rights(["Read on x"], ["Create on y"]).level is Level.FAIL
    assert verdicts.own_rights([], ["Create on y"]).level is Level.UNKNOWN
    assert verdicts.own_rights([], []).level is Level.OK


def test_a_source_needs_no_group_where_the_target_has_it():
    settings = KafkaSettings({"bootstrap.servers": "h:1"})
    assert any("--group" in line for line in KafkaInspector(settings, "t", "r").acls("source"))
    assert not any("--group" in line for line in KafkaInspector(settings, "t", "r", has_group=False).acls("source"))
    assert any("--group" in line for line in KafkaInspector(settings, "t", "r", has_group=False).acls("target"))


def test_broker_settings():
    verified = config(transaction_partition_verification_enable="true")
    found = levels(verdicts.broker_findings("target", verified))
    assert set(found.values()) == {Level.OK}
    untold = levels(verdicts.broker_findings("target", config()))
    assert untold["kafka.transaction-verification"] is Level.UNKNOWN
    bad = config(
        transaction_partition_verification_enable="false",
        inter_broker_protocol_version="2.4-IV1",
        offsets_retention_minutes=60,
        transaction_max_timeout_ms=1000,
        group_min_session_timeout_ms=SESSION_TIMEOUT_MS + 1,
    )
    found = levels(verdicts.broker_findings("target", bad))
    assert found["kafka.version"] is Level.FAIL
    assert found["kafka.offsets-retention"] is Level.WARN
    assert found["kafka.transaction-timeout"] is Level.FAIL
    assert found["kafka.transaction-verification"] is Level.WARN
    assert found["kafka.session-timeout"] is Level.FAIL
    good = levels(verdicts.broker_findings("source", config(inter_broker_protocol_version="3.5-IV2")))
    assert good["kafka.version"] is Level.OK
    (found,) = verdicts.internal_findings("x", "c", facts(replication=1, in_sync=1), config())
    assert found.level is Level.FAIL
    found = verdicts.internal_findings(
        "x", "c", facts(), config(min_insync_replicas=2, unclean_leader_election_enable="true")
    )
    assert [(one.check, one.level) for one in found] == [("c", Level.OK), ("kafka.unclean-election", Level.FAIL)]
    (untold,) = verdicts.internal_findings("x", "c", facts(), config())
    assert (untold.check, untold.level) == ("c", Level.UNKNOWN)


def test_the_topic_of_the_board_is_judged_by_how_much_of_it_stays():
    def found(values):
        return verdicts.board_finding(config(**values), "h:1")

    made = {name.replace(".", "_"): value for name, value in TOPIC_CONFIG.items()}
    assert (found(made).level, found(made).fix) == (Level.OK, "")
    for changes in (
        {"min_compaction_lag_ms": 86_400_000},
        {"segment_bytes": 1 << 30},
        {"segment_ms": 7 * 86_400_000},
    ):
        weak = found(made | changes)
        assert weak.level is Level.WARN
        (value,) = changes.values()
        assert str(value) in weak.found
        assert "kafka-configs.sh --bootstrap-server h:1 --alter --topic crossfade.control --add-config" in weak.fix
        assert all(f"{name}={value}" in weak.fix for name, value in TOPIC_CONFIG.items())
    # As it was made once: the rest is the brokers' default.
    old = found({"cleanup_policy": "compact", "min_compaction_lag_ms": 86_400_000})
    assert (old.level, "segment.bytes=1073741824" in old.found) == (Level.WARN, True)
    assert found(made | {"cleanup_policy": "compact,delete"}).level is Level.FAIL
    untold = verdicts.board_finding(None, "h:1")
    assert (untold.level, "DescribeConfigs" in untold.fix) == (Level.UNKNOWN, True)


def test_groups_that_no_route_can_have_are_not_ours():
    assert names.route_of_group("crossfade.orders") == "orders"
    assert {names.route_of_group(name) for name in ("crossfade.My.App", "crossfade.", "other.orders", "crossfade")} == {
        ""
    }
