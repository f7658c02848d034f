"""What is wrong with the properties of a Kafka broker, found before any connection is made.

Hides how librdkafka is asked: each property alone, behind one that it always refuses, so that no handle comes to life;
then all together by a producer and a consumer that know no address. Invariant: nothing is sent anywhere, and no
mistake holds the value of a property. Called through `config.load`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer

from ...config import PropertyMistake
from ...config.tree import nearest
from .failures import HandleHealth, error_of
from .settings import NOT_TEXT, REFUSED, KafkaSettings

#: librdkafka refuses this one whatever it holds: what stands before it was taken
_LAST = "sasl.jaas.config"

#: names of the Java client, with what says the same here
_OF_JAVA: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"sasl\.jaas\.config"), "sasl.username and sasl.password"),
    (re.compile(r"ssl\.truststore\..*"), "ssl.ca.location, the file of the certificate authority in PEM"),
    (
        re.compile(r"ssl\.keystore\.(?:type|key|certificate\.chain)"),
        "ssl.certificate.location and ssl.key.location in PEM, or ssl.keystore.location in PKCS#12",
    ),
    (re.compile(r"(?:key|value)\.(?:de)?serializer"), "no such key: records are copied as they are"),
    (re.compile(r"sasl\..*callback\.handler\.class"), "sasl.oauthbearer.method: oidc with sasl.oauthbearer.*"),
    (re.compile(r"buffer\.memory"), "queue.buffering.max.kbytes"),
    (re.compile(r"max\.request\.size"), "no such key: it is taken from the target topic"),
)
_TOKEN_URL = "sasl.oauthbearer.token.endpoint.url"
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
_COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")
_CHOICES = {
    "security.protocol": ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
    "sasl.mechanism": _MECHANISMS,
    "sasl.mechanisms": _MECHANISMS,
    "compression.type": _COMPRESSIONS,
    "compression.codec": _COMPRESSIONS,
}
_FILE = re.compile(r"ssl\.(?:ca|certificate|key|crl|keystore)\.location|sasl\.oauthbearer\..*\.file")

#: the names that a misspelled one may mean (librdkafka 2.16)
_LISTED = """
    api.version.fallback.ms api.version.request api.version.request.timeout.ms batch.num.messages batch.size
    bootstrap.servers broker.address.family broker.address.ttl broker.version.fallback client.dns.lookup client.id
    client.rack compression.codec compression.level compression.type connections.max.idle.ms
    coordinator.query.interval.ms debug enable.metrics.push enable.random.seed enable.sasl.oauthbearer.unsecure.jwt
    enable.ssl.certificate.verification fetch.error.backoff.ms fetch.max.bytes fetch.message.max.bytes
    fetch.min.bytes fetch.queue.backoff.ms fetch.wait.max.ms https.ca.location https.ca.pem linger.ms
    log.connection.close log.thread.name log_level max.partition.fetch.bytes message.copy.max.bytes
    metadata.max.age.ms metadata.recovery.rebootstrap.trigger.ms metadata.recovery.strategy
    queue.buffering.backpressure.threshold queue.buffering.max.kbytes queue.buffering.max.messages
    queue.buffering.max.ms queued.max.messages.kbytes queued.min.messages receive.message.max.bytes
    reconnect.backoff.jitter.ms reconnect.backoff.max.ms reconnect.backoff.ms request.timeout.ms
    sasl.kerberos.keytab sasl.kerberos.kinit.cmd sasl.kerberos.min.time.before.relogin sasl.kerberos.principal
    sasl.kerberos.service.name sasl.mechanism sasl.mechanisms sasl.oauthbearer.assertion.algorithm
    sasl.oauthbearer.assertion.claim.aud sasl.oauthbearer.assertion.claim.exp.seconds
    sasl.oauthbearer.assertion.claim.iss sasl.oauthbearer.assertion.claim.jti.include
    sasl.oauthbearer.assertion.claim.nbf.seconds sasl.oauthbearer.assertion.claim.sub
    sasl.oauthbearer.assertion.file sasl.oauthbearer.assertion.jwt.template.file
    sasl.oauthbearer.assertion.private.key.file sasl.oauthbearer.assertion.private.key.passphrase
    sasl.oauthbearer.assertion.private.key.pem sasl.oauthbearer.client.credentials.client.id
    sasl.oauthbearer.client.credentials.client.secret sasl.oauthbearer.client.id sasl.oauthbearer.client.secret
    sasl.oauthbearer.config sasl.oauthbearer.extensions sasl.oauthbearer.grant.type
    sasl.oauthbearer.metadata.authentication.type sasl.oauthbearer.method sasl.oauthbearer.scope
    sasl.oauthbearer.sub.claim.name sasl.oauthbearer.token.endpoint.url sasl.password sasl.username
    security.protocol socket.connection.setup.timeout.ms socket.keepalive.enable socket.max.fails
    socket.nagle.disable socket.receive.buffer.bytes socket.send.buffer.bytes socket.timeout.ms
    ssl.ca.certificate.stores ssl.ca.location ssl.ca.pem ssl.certificate.location ssl.certificate.pem
    ssl.cipher.suites ssl.crl.location ssl.curves.list ssl.endpoint.identification.algorithm ssl.engine.id
    ssl.engine.location ssl.key.location ssl.key.password ssl.key.pem ssl.keystore.location ssl.keystore.password
    ssl.providers ssl.sigalgs.list statistics.interval.ms sticky.partitioning.linger.ms topic.blacklist
    topic.metadata.propagation.max.ms topic.metadata.refresh.fast.interval.ms topic.metadata.refresh.interval.ms
    topic.metadata.refresh.sparse
"""
_NAMES = _LISTED.split()


def property_mistakes(properties: Mapping[str, str]) -> list[PropertyMistake]:
    """Everything that is wrong with these properties, secrets resolved; no broker is asked."""
    found = [mistake for name in properties if (mistake := _of_one(name, properties[name])) is not None]
    return found or list(_of_all(properties))


def _of_one(name: str, value: str) -> PropertyMistake | None:
    if name in REFUSED:
        return PropertyMistake(name, f"a property that cannot be set ({REFUSED[name]})", "no such key")
    if name in NOT_TEXT:
        return PropertyMistake(name, "a property that Crossfade sets itself", "no such key")
    for java, instead in _OF_JAVA:
        if java.fullmatch(name):
            return PropertyMistake(name, "a property of the Java client", instead)
    try:
        f"{name}{value}".encode()
    except UnicodeEncodeError:  # of a variable
        return PropertyMistake(name, "text that is not UTF-8", "UTF-8 text")
    said = _refusal(Producer, {name: value, _LAST: ""})
    if said.startswith("No such configuration property"):
        return PropertyMistake(name, "an unknown property", "a property of librdkafka", nearest(name, _NAMES))
    if not said.startswith("Java JAAS"):
        return _wrong_value(name, value, said)
    if _FILE.fullmatch(name) and value != "probe":
        reason = _unreadable(Path(value))
        if reason:
            return PropertyMistake(name, "", f"a file that can be read ({reason})")
    return None


def _wrong_value(name: str, value: str, said: str) -> PropertyMistake:
    choices = _CHOICES.get(name)
    if choices:
        return PropertyMistake(name, "", f"one of {', '.join(choices)}", _nearest_of(value, choices))
    allowed = re.search(r"allowed range (\S+)", said)
    expected = f"a number in the range {allowed[1]}" if allowed else "a value that librdkafka takes"
    return PropertyMistake(name, "", expected)


def _nearest_of(value: str, choices: tuple[str, ...]) -> str:
    by_lower = {choice.lower(): choice for choice in choices}
    return by_lower.get(nearest(value, by_lower), "")


def _unreadable(path: Path) -> str:
    try:
        if not path.is_dir():
            with path.open("rb"):
                return ""
    except OSError as error:
        return error.strerror or type(error).__name__
    except ValueError as error:  # a NUL in it
        return str(error)
    return "" if os.access(path, os.R_OK | os.X_OK) else "Permission denied"


def _of_all(properties: Mapping[str, str]) -> Iterator[PropertyMistake]:
    """What does not go together."""
    mechanism = next((name for name in ("sasl.mechanism", "sasl.mechanisms") if name in properties), "sasl.mechanism")
    is_sasl = properties.get("security.protocol", "").lower().startswith("sasl")
    chosen = properties.get(mechanism, "")
    if is_sasl and chosen not in (*_MECHANISMS, "GSSAPI"):  # librdkafka takes no other case
        found = "" if chosen else "nothing"
        yield PropertyMistake(mechanism, found, f"one of {', '.join(_MECHANISMS)}", _nearest_of(chosen, _MECHANISMS))
        return
    if properties.get("sasl.oauthbearer.method", "").lower() == "oidc":
        if not {_TOKEN_URL, "sasl.oauthbearer.metadata.authentication.type"} & properties.keys():
            yield PropertyMistake(_TOKEN_URL, "nothing", "where the identity provider gives tokens")
        return  # such a handle asks for its token at once
    settings, health = KafkaSettings(properties), HandleHealth("check")
    for make, built in (
        (Producer, settings.producer(health)),
        (Consumer, settings.consumer(health, group_id="check")),
    ):
        said = _refusal(
            make, {n: v for n, v in built.items() if n not in ("bootstrap.servers", "metadata.broker.list")}
        )
        if said:
            named = (name for name in re.findall(r"[a-z0-9_]+(?:\.[a-z0-9_]+)+", said) if name in properties)
            reason = said.partition(": ")[2] or said
            yield PropertyMistake(next(named, ""), f"what librdkafka does not take ({reason})", "what goes together")
            return


def _refusal(make: Callable[[dict[str, Any]], Any], properties: Mapping[str, Any]) -> str:
    """What librdkafka says against these properties, "" where it takes them."""
    mute = logging.Logger("crossfade.kafka.check")
    mute.addHandler(logging.NullHandler())
    try:
        handle = make({**properties, "logger": mute})
    except KafkaException as error:
        return error_of(error).str().strip()
    if isinstance(handle, Consumer):
        handle.close()
    return ""
