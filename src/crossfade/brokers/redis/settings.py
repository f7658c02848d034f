"""How to reach a Redis or Valkey service: addresses, mode, credentials, TLS, timeouts.

Hides the forms in which people write these down (`redis://user:secret@host:6379/0`, `rediss://`, `unix://`, several
seeds). Invariant: a secret is asked for at every connection, so that it can rotate without a restart, and never shows
in `repr`. Called by `wiring`; read by `nodes` and `link`.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from ...errors import Unreachable, UsageError

Secret: TypeAlias = str | Callable[[], str]
Mode: TypeAlias = Literal["standalone", "sentinel", "cluster"]

#: where nothing else is said, Redis and its Sentinel listen here
PORT_DEFAULT = 6379
SENTINEL_PORT_DEFAULT = 26379


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP endpoint, or a Unix socket where `path` is set."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """What a TLS connection checks and shows; files are PEM."""

    ca_file: str = ""  # "" = the system's authorities
    cert_file: str = ""
    key_file: str = ""
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """A client context. Raises UsageError where a file is missing or unreadable."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"the TLS files of a Redis broker cannot be used ({self._files}): {error}",
                hint="check tls.ca, tls.cert and tls.key: PEM, readable by this user",
            ) from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def context_now(self) -> ssl.SSLContext:
        """`context` for a connection. The files were there when the configuration was read, and whoever writes them
        anew may not be done: raises Unreachable."""
        try:
            return self.context()
        except UsageError as error:
            raise Unreachable(error.message, hint=f"{error.hint}; the relay tries again") from error

    @property
    def _files(self) -> str:
        return ", ".join(filter(None, (self.ca_file, self.cert_file, self.key_file))) or "of the system"


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """Everything that is needed to open a connection; see `from_urls` for the usual way to make one."""

    addresses: tuple[Address, ...]
    mode: Mode = "standalone"
    #: the name under which the Sentinels know the primary
    sentinel_name: str = ""
    username: str = ""
    password: Secret = field(default="", repr=False)
    sentinel_username: str = ""
    sentinel_password: Secret = field(default="", repr=False)
    db: int = 0
    tls: TlsSettings | None = None
    connect_timeout_s: float = 5.0
    request_timeout_s: float = 5.0
    #: names this service in markers; "" = the Sentinel name, else the addresses. Set it before an address changes
    server_id: str = ""

    @classmethod
    def from_urls(
        cls,
        urls: str | Sequence[str],
        *,
        mode: Mode = "standalone",
        sentinel_name: str = "",
        username: str = "",
        password: Secret = "",
        sentinel_username: str = "",
        sentinel_password: Secret = "",
        tls: TlsSettings | None = None,
        connect_timeout_s: float = 5.0,
        request_timeout_s: float = 5.0,
        server_id: str = "",
    ) -> RedisSettings:
        """Settings from one URL or several seeds; what is given by name wins over what stands in a URL.

        Raises UsageError.
        """
        parsed = [_parse(url, mode) for url in ([urls] if isinstance(urls, str) else urls)]
        if not parsed:
            raise UsageError("a Redis broker needs at least one url", hint="for example redis://localhost:6379")
        if mode == "sentinel" and not sentinel_name:
            raise UsageError("mode sentinel needs sentinel_name", hint="the name in `sentinel monitor <name> ...`")
        first = parsed[0]
        if mode == "cluster" and first.db:
            raise UsageError("Redis Cluster has database 0 only", hint="remove the number at the end of the url")
        if mode == "standalone" and len(parsed) > 1:
            raise UsageError("mode standalone takes one url", hint="set mode: sentinel or mode: cluster")
        if tls is None and any(part.secure for part in parsed):
            tls = TlsSettings()
        return cls(
            addresses=tuple(part.address for part in parsed),
            mode=mode,
            sentinel_name=sentinel_name,
            username=username or first.username,
            password=password or first.password,
            sentinel_username=sentinel_username,
            sentinel_password=sentinel_password,
            db=first.db,
            tls=tls,
            connect_timeout_s=connect_timeout_s,
            request_timeout_s=request_timeout_s,
            server_id=server_id,
        )

    @property
    def identity(self) -> str:
        """What tells this service from others, and survives restarts and failovers.

        A source is never written to, so no id can be kept there: it is `server_id` where given, the Sentinel name, or
        the sorted addresses (which a failover behind one DNS name or a Cluster does not change).
        """
        if self.server_id:
            place = self.server_id
        elif self.mode == "sentinel":
            place = f"sentinel/{self.sentinel_name}"
        else:
            place = ",".join(sorted(str(address) for address in self.addresses))
        return f"redis:{place}/{self.db}"


@dataclass(frozen=True, slots=True)
class _Parsed:
    address: Address
    secure: bool
    username: str
    password: str
    db: int


def _parse(url: str, mode: Mode) -> _Parsed:
    parts = urlsplit(url if "://" in url else f"redis://{url}")
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise UsageError(
            f"{parts.scheme}:// is not a Redis url", hint="redis://host:port/db, rediss:// for TLS, unix:///path"
        )
    username, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme == "unix":
        return _Parsed(Address("", 0, parts.path), False, username, password, 0)
    try:
        port = parts.port or (SENTINEL_PORT_DEFAULT if mode == "sentinel" else PORT_DEFAULT)
        db = int(parts.path.strip("/") or 0)
    except ValueError as error:
        raise UsageError(
            f"the port or database number in a Redis url for host {parts.hostname!r} is wrong: {error}",
            hint="redis://host:6379/0",
        ) from error
    if not parts.hostname:
        raise UsageError("a Redis url names no host", hint="redis://host:6379/0")
    return _Parsed(Address(parts.hostname, port), parts.scheme == "rediss", username, password, db)
