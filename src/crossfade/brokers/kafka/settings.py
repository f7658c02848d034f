"""Connection settings: librdkafka properties pass through, except those that would break the guarantee.

Hides how a role (source, target, group, board, admin) turns the user's properties into the configuration of one
librdkafka handle, and how secrets rotate on live handles. Invariant: no handle exists whose guarantee-bearing
properties came from the user. Everything in this folder gets its configuration here.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog
from confluent_kafka import KafkaException

from ...config.secret import read_again
from ...errors import Unreachable, UsageError
from .failures import HandleHealth, error_of, translate

#: Properties that carry the guarantee, with the reason why they are not the user's to set.
REFUSED: dict[str, str] = {
    "enable.idempotence": "records would be duplicated or reordered by retries",
    "acks": "an acknowledged record could be lost",
    "request.required.acks": "an acknowledged record could be lost",
    "transactional.id": "it is the fence between two relays, and made from route and instance",
    "transaction.timeout.ms": "it bounds how long a dead relay holds up readers",
    "isolation.level": "aborted records would be copied",
    "enable.auto.commit": "the position lives in the target, in the transaction of the records",
    "auto.commit.enable": "the position lives in the target, in the transaction of the records",
    "auto.commit.interval.ms": "the position lives in the target, in the transaction of the records",
    "enable.auto.offset.store": "the position lives in the target, in the transaction of the records",
    "auto.offset.reset": "a trimmed or re-created source would be skipped in silence",
    "retry.backoff.ms": "it tells a commit that was sent once from one that was sent twice",
    "retry.backoff.max.ms": "it tells a commit that was sent once from one that was sent twice",
    "retries": "a failed batch would leave a hole",
    "message.send.max.retries": "a failed batch would leave a hole",
    "message.timeout.ms": "a late batch would leave a hole",
    "delivery.timeout.ms": "a late batch would leave a hole",
    "max.in.flight": "batches could be reordered",
    "max.in.flight.requests.per.connection": "batches could be reordered",
    "enable.gapless.guarantee": "it is implied by the transaction",
    "message.max.bytes": "it is taken from the target topic",
    "partitioner": "the relay says which lane a record goes to",
    "delivery.report.only.error": "the marker needs the offset of the last record",
    "group.id": "it is made from the route",
    "group.instance.id": "it is the name of the process (--instance)",
    "group.protocol": "lanes are handed out by the classic protocol with static members",
    "group.remote.assignor": "lanes are handed out by the classic protocol with static members",
    "partition.assignment.strategy": "lanes must move one by one, not all at once",
    "session.timeout.ms": "it bounds the takeover by another process",
    "heartbeat.interval.ms": "it bounds the takeover by another process",
    "max.poll.interval.ms": "the relay polls in a thread of its own",
    "enable.partition.eof": "the relay must see the end of a lane",
    "check.crcs": "damaged batches must be seen",
    "allow.auto.create.topics": "a topic must never appear by accident",
    "queuing.strategy": "memory would not be bounded",
}

#: what holds no login, and no key, where it is empty
_NEVER_EMPTY = re.compile(r"password|secret|\.pem$|oauthbearer\.config|^sasl\.username$")
#: files that librdkafka reads when a handle is made
_TLS_FILES = tuple(f"ssl.{name}.location" for name in ("ca", "certificate", "key", "keystore", "crl"))
#: where librdkafka makes no handle because of what such a file, or a secret in its place, holds
_TLS_REFUSED = re.compile(r"\bssl\.(?:ca|certificate|key|keystore|crl)\.(?:location|pem)\b")
#: a changed password is known to all brokers, and used by all connections, by then
_LOGIN_TAKES_S = 20.0
#: one line of librdkafka's log of each kind in this time
_QUIET_S = 10.0

#: what Crossfade gives to the client itself, or what text cannot say
NOT_TEXT = (
    "default.topic.config",
    "error_cb",
    "logger",
    "oauth_cb",
    "stats_cb",
    "on_delivery",
    "on_commit",
    "throttle_cb",
    "log_cb",
    "plugin.library.paths",
)

_PRODUCER_ONLY = frozenset(
    {
        "linger.ms",
        "queue.buffering.max.ms",
        "batch.size",
        "batch.num.messages",
        "compression.type",
        "compression.codec",
        "compression.level",
        "queue.buffering.max.messages",
        "queue.buffering.max.kbytes",
        "queue.buffering.backpressure.threshold",
        "sticky.partitioning.linger.ms",
        "request.timeout.ms",
    }
)
_CONSUMER_ONLY = frozenset(
    {
        "client.rack",
        "fetch.wait.max.ms",
        "fetch.queue.backoff.ms",
        "fetch.message.max.bytes",
        "max.partition.fetch.bytes",
        "fetch.max.bytes",
        "fetch.min.bytes",
        "fetch.error.backoff.ms",
        "queued.min.messages",
        "queued.max.messages.kbytes",
    }
)

#: librdkafka's own retries never come sooner than 0.8 times this (jitter); its TxnOffsetCommit waits 500 ms as well
RETRY_BACKOFF_MS = 500
#: a step of a transaction that takes this long may have been sent twice, and one of them may come late
DOUBT_S = 0.8 * RETRY_BACKOFF_MS / 1000
#: a dead relay holds the readers' last stable offset this long, plus the broker's sweep
TRANSACTION_TIMEOUT_MS = 10_000

#: For all handles. A stopped leader stalls a request until `socket.timeout.ms`, whatever the other timeouts say.
_EVERYWHERE: dict[str, Any] = {
    "socket.timeout.ms": 4000,
    "socket.keepalive.enable": True,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 1000,
    "topic.metadata.refresh.interval.ms": 30_000,
    "allow.auto.create.topics": False,
    "log.connection.close": False,
}


class _Rotatable(Protocol):
    def set_sasl_credentials(self, username: str, password: str) -> None: ...


_Handle = TypeVar("_Handle", bound=_Rotatable)


class _ToStructlog(logging.Handler):
    """Carries librdkafka's log lines over to structlog, of each kind one in a while: an outage gives 20 a second."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, float] = {}
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._tell(record)
        except Exception:  # noqa: BLE001 - else it would come out of whatever call the client tells it in
            self.handleError(record)

    def _tell(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        kind, now = text.split(" ", 1)[0], time.monotonic()
        if now - self._seen.get(kind, -_QUIET_S) < _QUIET_S:
            self._left_out += 1
            return
        self._seen[kind] = now
        left_out, self._left_out = self._left_out, 0
        more = {"left_out": left_out} if left_out else {}
        # Commands, which show warnings, end with an error that says it better; relays tell more than warnings.
        structlog.get_logger("kafka.client").log(min(record.levelno, logging.INFO), text, **more)


def _client_logger() -> logging.Logger:
    logger = logging.Logger("crossfade.kafka.client", logging.INFO)
    logger.addHandler(_ToStructlog())
    return logger


class KafkaSettings:
    """How to reach one Kafka cluster.

    `properties` are librdkafka's; a value may be a callable without arguments (a secret that is read when a handle is
    made). `oauth_cb` passes through. Raises UsageError naming the first refused property.
    """

    def __init__(self, properties: Mapping[str, Any]) -> None:
        for name in properties:
            if name in REFUSED:
                raise UsageError(
                    f"the Kafka property {name!r} cannot be set: {REFUSED[name]}",
                    hint=f"remove {name!r} from the broker's properties",
                )
            if name in NOT_TEXT and not (name == "oauth_cb" and callable(properties[name])):
                raise UsageError(
                    f"the Kafka property {name!r} cannot be set: Crossfade uses it itself",
                    hint=f"remove {name!r} from the broker's properties",
                )
        if not (properties.get("bootstrap.servers") or properties.get("metadata.broker.list")):
            raise UsageError("no Kafka address is given", hint="set bootstrap.servers: host:port[,host:port]")
        self._properties = dict(properties)
        self._handles: dict[int, _Rotatable] = {}
        #: user and password that the handles have now, and since when
        self._login: tuple[str, str] | None = None
        self._login_at = -_LOGIN_TAKES_S
        self._login_lock = threading.Lock()
        #: since when they cannot be read
        self._unread_at: float | None = None
        #: handles that are being given a new one
        self._given_to: set[int] = set()
        self._logger = _client_logger()

    @property
    def bootstrap(self) -> str:
        """The addresses, for messages."""
        return self._text("bootstrap.servers") or self._text("metadata.broker.list")

    @property
    def principal(self) -> str:
        """Who the brokers take us for, in the form of their default rules; `crossfade` stands where only they know."""
        if username := self._text("sasl.username"):
            return f"User:{username}"
        if self._text("security.protocol").lower() == "ssl":
            return "User:CN=crossfade"  # the subject of the client certificate
        named = re.search(r"\bprincipal=([^\s,]+)", self._text("sasl.oauthbearer.config"))
        return f"User:{named[1]}" if named else "User:crossfade"

    def _text(self, name: str) -> str:
        value = self._properties.get(name, "")
        return str(value() if callable(value) else value)

    def _now(self, name: str) -> Any:
        """A property for a handle; a secret is read anew. Raises Unreachable where it cannot be read now."""
        value = self._properties.get(name, "")
        if not callable(value) or name == "oauth_cb":
            return value
        return read_again(value, f"the Kafka property {name}", may_be_empty=not _NEVER_EMPTY.search(name))

    def consumer(self, health: HandleHealth, **overrides: Any) -> dict[str, Any]:
        """Properties of a consumer handle; `overrides` are librdkafka names with `_` for `.`. Raises Unreachable."""
        return self._build(_PRODUCER_ONLY, health, overrides)

    def producer(self, health: HandleHealth, **overrides: Any) -> dict[str, Any]:
        """Properties of a producer handle. Raises Unreachable."""
        return self._build(_CONSUMER_ONLY, health, overrides)

    def admin(self, health: HandleHealth) -> dict[str, Any]:
        """Properties of an admin handle. Raises Unreachable."""
        return self._build(_PRODUCER_ONLY | _CONSUMER_ONLY, health, {})

    def make(self, kind: Callable[[dict[str, Any]], _Handle], properties: dict[str, Any]) -> _Handle:
        """A handle of properties that were made here: it gets every new login, until `untrack`.

        Raises Unreachable where what TLS needs is not fit now, PropertiesRefused.
        """
        try:
            handle = kind(properties)
        except KafkaException as failure:
            said = error_of(failure).str().strip()
            if not _TLS_REFUSED.search(said):
                raise translate(failure, "making a connection") from failure
            # They were right when the configuration was read: whoever writes them anew is not done.
            files = ", ".join(str(properties[name]) for name in _TLS_FILES if properties.get(name))
            raise Unreachable(
                f"the TLS files of Kafka ({files or 'given as text'}) cannot be used now: {said}",
                hint="the relay tries again; see that they are whole, and that certificate and key belong together",
            ) from failure
        self.track(handle)
        return handle

    def track(self, handle: _Rotatable) -> None:
        """Give this handle every new login, until `untrack`."""
        self._handles[id(handle)] = handle

    def untrack(self, handle: _Rotatable) -> None:
        """Forget a handle that is closed."""
        self._handles.pop(id(handle), None)

    def renew_login(self) -> bool:
        """Read user and password anew and give them to all handles; called when a broker has refused them.

        True where they have changed a moment ago, or cannot be read since a moment, because they are being changed:
        then the refusal was of the old ones, and the next one decides.
        """
        if not callable(self._properties.get("sasl.password")):
            return False
        try:
            return self._use_login(self._now("sasl.username"), self._now("sasl.password"))
        except Unreachable:  # the file is just being replaced: the next refusal looks again
            now = time.monotonic()
            if self._unread_at is None:
                self._unread_at = now
            return now - self._unread_at < _LOGIN_TAKES_S

    def _use_login(self, username: str, password: str) -> bool:
        """Give them to all handles where they have changed a moment ago; False where they have not."""
        with self._login_lock:
            self._unread_at = None
            known, self._login = self._login, (username, password)
            if known is not None and known != self._login:
                self._login_at = time.monotonic()
            if time.monotonic() - self._login_at >= _LOGIN_TAKES_S:
                return False
            # Again at each refusal: a handle that was just being made had the old ones.
            keys = [key for key in list(self._handles) if key not in self._given_to]
            self._given_to.update(keys)
        for key in keys:
            try:
                threading.Thread(target=self._give_login, args=(key,), name="kafka-login", daemon=True).start()
            except RuntimeError as failure:  # no more threads: the next refusal tries again
                structlog.get_logger("kafka.client").warning("a handle gets no new login", error=str(failure))
                self._given_to.discard(key)
        return True

    def _give_login(self, key: int) -> None:
        """Give the present login to one handle.

        In a thread of its own, because what calls for it is a handle's error callback. A call of a handle from within
        its own callback makes the next callback of the same poll crash the process (confluent-kafka 2.16), and one of
        a consumer waits for that consumer's poll to end, which may be waiting for us.
        """
        given = None
        try:
            while True:
                with self._login_lock:
                    handle, login = self._handles.get(key), self._login
                    if handle is None or login is None or login == given:
                        self._given_to.discard(key)
                        return
                handle.set_sasl_credentials(*login)
                given = login
        except Exception as failure:  # noqa: BLE001 - it was closed meanwhile, or the client takes no such text
            structlog.get_logger("kafka.client").debug("no new login for a handle", error=str(failure))
            self._given_to.discard(key)

    def _build(self, unwanted: frozenset[str], health: HandleHealth, overrides: Mapping[str, Any]) -> dict[str, Any]:
        built: dict[str, Any] = dict(_EVERYWHERE)
        for name, value in overrides.items():
            built[name.replace("_", ".")] = value
        for name in self._properties:
            if name not in unwanted:
                built[name] = self._now(name)
        if "ssl" in str(built.get("security.protocol", "")).lower():
            _require_files(built)
        if "sasl.password" in built:
            self._use_login(str(built.get("sasl.username", "")), str(built["sasl.password"]))
        health.renew_login = self.renew_login
        health.login_since = lambda: self._login_at
        built["error_cb"] = health.on_error
        built["logger"] = self._logger
        return built


def _require_files(built: Mapping[str, Any]) -> None:
    """Raise Unreachable where a file cannot be read now, which was there when the configuration was read.

    librdkafka would call it a mistake in the properties.
    """
    for name in _TLS_FILES:
        path = str(built.get(name, ""))
        if not path or path == "probe":  # librdkafka looks for the system's authorities by itself
            continue
        try:
            if Path(path).is_dir() or Path(path).read_bytes():
                continue
            reason = "it is empty"
        except OSError as error:
            reason = error.strerror or type(error).__name__
        raise Unreachable(
            f"the file {path} of the Kafka property {name} cannot be read now: {reason}",
            hint="the relay tries again; see that the file is there, in PEM or PKCS 12, and readable by this user",
        )
