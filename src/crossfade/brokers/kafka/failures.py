"""Kafka's error codes as Crossfade's errors, one sentence a case.

Hides librdkafka's numbers, and that a wrong password shows only in a callback while every call reports a transport
problem. Everything in this folder that talks to a broker turns its exceptions into errors here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import structlog
from confluent_kafka import KafkaError, KafkaException

from ...errors import AccessRefused, BrokerError, Fenced, Indeterminate, Unreachable, UsageError

_E = KafkaError

_AUTHENTICATION = frozenset({_E._AUTHENTICATION, _E.SASL_AUTHENTICATION_FAILED, _E._SSL})
_ACCESS: dict[int, str] = {
    _E.TOPIC_AUTHORIZATION_FAILED: "grant the topic rights that `crossfade doctor --print-acls` lists",
    _E.GROUP_AUTHORIZATION_FAILED: "grant the group rights that `crossfade doctor --print-acls` lists",
    _E.CLUSTER_AUTHORIZATION_FAILED: "grant the cluster rights that `crossfade doctor --print-acls` lists",
    _E.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "grant Write on the ids that `crossfade doctor --print-acls` lists",
    _E.UNKNOWN_TOPIC_OR_PART: "create the topic, or correct its name",
    _E._UNKNOWN_TOPIC: "create the topic, or correct its name",
    _E._UNKNOWN_PARTITION: "the topic has fewer partitions than expected",
    _E.TOPIC_EXCEPTION: "correct the topic's name",
    _E.POLICY_VIOLATION: "the cluster's policy forbids it: ask its administrator",
    _E.INVALID_REPLICATION_FACTOR: "the cluster has fewer brokers than the replication factor",
    _E.INVALID_TRANSACTION_TIMEOUT: "raise transaction.max.timeout.ms of the brokers to 10 seconds at least",
    _E.UNSUPPORTED_VERSION: "the broker is too old for this request",
    _E._UNSUPPORTED_FEATURE: "the broker is too old for this request",
}
TOPIC_MISSING = (_E.UNKNOWN_TOPIC_OR_PART, _E._UNKNOWN_TOPIC, _E._UNKNOWN_PARTITION, _E.UNKNOWN_TOPIC_ID)
_FENCED = frozenset({_E._FENCED, _E.INVALID_PRODUCER_EPOCH, _E.PRODUCER_FENCED})
_STALE_MEMBER = frozenset({_E.ILLEGAL_GENERATION, _E.UNKNOWN_MEMBER_ID, _E.FENCED_INSTANCE_ID, _E.STALE_MEMBER_EPOCH})

#: what a broker says that does not take a client's certificate; librdkafka calls it a transport problem
_ALERT = re.compile(r"alert (?:[a-z ]*certificate|unknown ca|access denied)")
#: the identity provider gave no answer (what libcurl says, or a proxy): it may come back, unlike one that refuses
_NO_ANSWER = re.compile(
    "(?:connect to|connection refused|resolve host|timed out|timeout|empty reply|returned nothing|recv failure"
    "|send failure|reset by peer|failure when|failed sending|service (?:temporarily )?unavailable|bad gateway"
    "|gateway time)"
)
#: (words in a refusal, what to do), the first that fits
_FIXES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        _ALERT,
        "the brokers do not take the client certificate: check ssl.certificate.location and ssl.key.location (or "
        "ssl.keystore.location), who signed it, and until when it holds",
    ),
    (
        re.compile("certificate|ssl handshake|ssl routines"),
        "check ssl.ca.location, and that the brokers' certificate names these hosts",
    ),
    (re.compile("unsupported.*mechanism"), "check sasl.mechanism: the listener offers others"),
    (
        re.compile("oauthbearer|token"),
        "check sasl.oauthbearer.*: the token must hold now, and be one the brokers trust",
    ),
    (re.compile("mechanism|username|credential"), "check sasl.username, sasl.password and sasl.mechanism"),
)

#: what the client says of an address of the configuration at which nobody answers: the address, and why
_NOT_THERE = re.compile(
    r"(?s)(?:\w+://)?(\S+)/bootstrap: ((?:Failed to resolve|Connect to|Connection setup timed out in state CONNECT).*)"
)
_AFTER = re.compile(r" \(after \d+ms in state \w+.*\)$", re.S)
#: what a call says that got no answer
_SILENCE = frozenset({_E._TIMED_OUT, _E._TRANSPORT, _E._ALL_BROKERS_DOWN, _E._RESOLVE})

#: how long an authentication failure explains the transport errors that follow it
_EXPLAINS_S = 30.0


class HandleHealth:
    """What the error callback of one handle said last; made before the handle, and asked when a call fails."""

    def __init__(self, what: str) -> None:
        self.what = what
        #: reads the credentials anew; True where they have just changed, or are being changed: a refusal was of the old
        self.renew_login: Callable[[], bool] = lambda: False
        #: since when the credentials are those that they are now: `time.monotonic()`
        self.login_since: Callable[[], float] = lambda: 0.0
        #: the error after which the handle is of no use
        self.fatal: KafkaError | None = None
        self._refused: KafkaError | None = None
        self._refused_at = 0.0
        self._heard: KafkaError | None = None
        self._heard_at = 0.0
        self._no_token: KafkaError | None = None
        self._no_token_at = 0.0

    def on_error(self, error: KafkaError) -> None:
        """librdkafka's error_cb."""
        text = error.str().lower()
        if "acquire sasl oauthbearer token" in text:  # told when it is another reason than the last time, then no more
            self._no_token = error if _NO_ANSWER.search(text) else None
        if error.code() in _AUTHENTICATION or _ALERT.search(text):
            if self._no_token is not None:
                self._no_token_at = time.monotonic()
            elif not self.renew_login():
                self._refused, self._refused_at = error, time.monotonic()
        if error.code() in (_E._TRANSPORT, _E._RESOLVE):
            self._heard, self._heard_at = error, time.monotonic()
        if error.fatal():  # a producer's next call raises it too; a consumer says only "fatal"
            self.fatal = error
        else:
            structlog.get_logger("kafka.client").debug("client error", handle=self.what, error=error.str())

    def refusal(self) -> KafkaError | None:
        """The authentication failure that explains a transport error now, if any."""
        is_recent = time.monotonic() - self._refused_at < _EXPLAINS_S
        return self._refused if is_recent and self._refused_at >= self.login_since() else None

    def no_token(self) -> str:
        """What kept the identity provider from answering, where that explains a failure to log in just now, else "".

        Brokers refuse an expired token; while there can be no new one, that is no refusal of the credentials.
        """
        recent = self._no_token is not None and time.monotonic() - self._no_token_at < _EXPLAINS_S
        return self._no_token.str() if recent and self._no_token is not None else ""

    def heard(self) -> str:
        """What the client said about its connections last, "" where it said nothing for a while."""
        recent = self._heard is not None and time.monotonic() - self._heard_at < _EXPLAINS_S
        return self._heard.str() if recent and self._heard is not None else ""


_GOES_ON = (
    "nothing to do: the relay reads the markers in the target and goes on from there; where it happens again and "
    "again, look at the load of the brokers and at the network to them"
)


#: a broker's refusal of what a record holds
_CONTENT = frozenset({_E.INVALID_RECORD, _E.INVALID_TIMESTAMP})

#: what librdkafka says when a handle is made, and then alone
_NOT_MADE = re.compile(r"^Failed to create |[Cc]onfiguration property|^Java ")


class PropertiesRefused(UsageError, BrokerError):
    """librdkafka made no handle of these properties: no broker was asked, and trying again says the same."""


def error_of(exception: KafkaException) -> KafkaError:
    """The KafkaError inside an exception."""
    first = exception.args[0] if exception.args else None
    return first if isinstance(first, KafkaError) else KafkaError(_E._FAIL, str(exception))


def _plain(failure: KafkaException | KafkaError) -> KafkaError:
    return failure if isinstance(failure, KafkaError) else error_of(failure)


def is_fenced(error: KafkaError) -> bool:
    """True where a newer owner took over: by transactional id, or by the group's generation."""
    return error.code() in _FENCED or error.code() in _STALE_MEMBER


def is_topic_missing(error: KafkaError) -> bool:
    return error.code() in TOPIC_MISSING


def translate(failure: KafkaException | KafkaError, doing: str, health: HandleHealth | None = None) -> BrokerError:
    """The error to raise for a failed call; `doing` completes "Kafka failed while ..."."""
    error = _plain(failure)
    code, text = error.code(), error.str()
    if code == _E._INVALID_ARG and _NOT_MADE.search(text):
        return PropertiesRefused(
            f"Kafka's client does not take the properties while {doing}: {text.strip()}",
            hint="correct the broker's properties; `crossfade doctor` checks them",
        )
    refusal = health.refusal() if health is not None else None
    no_token = health.no_token() if health is not None else ""
    if code in _AUTHENTICATION and refusal is None and health is not None and health.renew_login():
        return Unreachable(
            f"Kafka refused the credentials while {doing}: {text}",
            hint="nothing to do: they have just changed, or are being changed, and the relay tries again",
        )
    if (code in _AUTHENTICATION and not no_token) or refusal is not None:
        said = (refusal or error).str()
        fixes = (fix for words, fix in _FIXES if words.search(said.lower()))
        return AccessRefused(
            f"Kafka refused the credentials while {doing}: {said}",
            hint=next(fixes, "check security.protocol, sasl.* and ssl.* of this broker"),
        )
    if code in _FENCED:
        return Fenced(f"a newer claim took over while {doing}: {text}", hint="nothing to do; the newer claim goes on")
    if code in _STALE_MEMBER:
        return Fenced(f"the group handed the lanes to another process while {doing}: {text}")
    if code in _ACCESS:
        return AccessRefused(f"Kafka refused while {doing}: {text}", hint=_ACCESS[code])
    if no_token:
        return Unreachable(
            f"Kafka failed while {doing}: {text} ({no_token})",
            hint="check that the identity provider at sasl.oauthbearer.token.endpoint.url runs and can be reached",
        )
    heard = health.heard() if health is not None else ""
    if code in _SILENCE and (not_there := _NOT_THERE.fullmatch(heard)):
        address, said = not_there.groups()
        what = "host, port and DNS" if said.startswith("Failed to resolve") else "that it runs, and host and port"
        return Unreachable(
            f"Kafka at {address} cannot be reached: {_AFTER.sub('', said)} (while {doing})",
            hint=f"check {what} in bootstrap.servers of this broker",
        )
    hint = "check that the brokers run and can be reached"
    if "Failed to resolve" in heard:
        hint += ", and that this host resolves the names in their advertised.listeners"
    elif not heard:  # of a connection that was closed at once the client says nothing
        hint += ", and security.protocol: a listener that expects TLS, or none, closes the connection"
    more = f" ({heard})" if heard and heard != text else ""
    return Unreachable(f"Kafka failed while {doing}: {text}{more}", hint=hint)


def doubt(failure: KafkaException | KafkaError | str, doing: str, health: HandleHealth | None = None) -> BrokerError:
    """The error for a step inside a transaction: Fenced, AccessRefused, or else Indeterminate."""
    if isinstance(failure, str):
        return Indeterminate(f"it is in doubt whether the transaction happened: {failure} while {doing}", hint=_GOES_ON)
    error = translate(failure, doing, health)
    if _plain(failure).code() in _CONTENT:
        return Indeterminate(
            f"the topic takes a record of this transaction not as it is: {error.message}",
            hint="nothing of it arrived, and trying again will not help: look what the topic asks of records "
            "(compaction wants keys; message.timestamp.*; validation of schemas), and correct it or the mapping",
        )
    # A topic that was just created, or has just moved, may be unknown to the coordinator: the next claim looks again.
    if isinstance(error, Unreachable) or is_topic_missing(_plain(failure)):
        return Indeterminate(f"it is in doubt whether the transaction happened: {error.message}", hint=_GOES_ON)
    return error
