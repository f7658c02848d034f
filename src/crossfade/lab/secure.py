"""Keys, accounts and rules of a secured lab (`--secure`): TLS, SASL and ACLs on Kafka, TLS and ACL users on Redis.

Three accounts: `admin` may do everything, `app` may use every topic, group, transactional id and key, `nobody` may
log in and nothing else. Everything is made for one lab and goes away with it. Called by lab; kafka and redis put the
results into their files.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from crossfade.lab.errors import LabUsage
from crossfade.lab.state import Options, State

ADMIN, APP, NOBODY = "admin", "app", "nobody"
USERS = (ADMIN, APP, NOBODY)
#: the proxied listeners of a secured broker besides CLIENT (SASL_SSL with SCRAM-SHA-512 or PLAIN)
EXTRA_LISTENERS = ("SASLPLAIN", "MTLS", "OAUTH", "OIDC")
_TOKEN_ISSUER, _TOKEN_AUDIENCE = "https://127.0.0.1/lab", "kafka"
#: older ones call what Java 24 has taken away
_VERSION_MIN = (3, 9)
_SECURITY = "org.apache.kafka.common.security"


@dataclass(frozen=True)
class KafkaSecurity:
    """What a broker needs to know to ask for TLS, SASL and ACLs."""

    folder: Path
    passwords: dict[str, str]

    def properties(self) -> dict[str, str]:
        """The part of server.properties that secures a node."""
        password = self.passwords[ADMIN]
        accounts = " ".join(f'user_{user}="{self.passwords[user]}"' for user in USERS)
        plain = f'{_SECURITY}.plain.PlainLoginModule required username="{ADMIN}" password="{password}" {accounts};'
        scram = f'{_SECURITY}.scram.ScramLoginModule required username="{ADMIN}" password="{password}";'
        oauth = f'{_SECURITY}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="{ADMIN}";'
        out = {
            "listener.security.protocol.map": "CLIENT:SASL_SSL,SASLPLAIN:SASL_PLAINTEXT,MTLS:SSL,OAUTH:SASL_SSL,"
            "OIDC:SASL_SSL,DIRECT:SASL_PLAINTEXT,INTERNAL:SASL_SSL,CONTROLLER:SASL_SSL",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
            # PLAIN, because the controllers have no credentials to look up before they have a log.
            "sasl.mechanism.controller.protocol": "PLAIN",
            "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
            "listener.name.oauth.oauthbearer.sasl.jaas.config": oauth,
            **self._oidc(),
            "listener.name.mtls.ssl.client.auth": "required",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.folder / "server.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.folder / "ca.pem"),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{ADMIN}",
        }
        for listener in ("client", "saslplain", "direct", "internal", "controller"):
            out[f"listener.name.{listener}.plain.sasl.jaas.config"] = plain
            out[f"listener.name.{listener}.scram-sha-512.sasl.jaas.config"] = scram
        return out

    def _oidc(self) -> dict[str, str]:
        """A listener that takes signed tokens, as an identity provider issues them."""
        own = "listener.name.oidc"
        validator = f"{_SECURITY}.oauthbearer.OAuthBearerValidatorCallbackHandler"
        return {
            f"{own}.sasl.enabled.mechanisms": "OAUTHBEARER",
            f"{own}.oauthbearer.sasl.jaas.config": f"{_SECURITY}.oauthbearer.OAuthBearerLoginModule required;",
            f"{own}.oauthbearer.sasl.server.callback.handler.class": validator,
            f"{own}.oauthbearer.sasl.oauthbearer.jwks.endpoint.url": self.keys_url,
            f"{own}.oauthbearer.sasl.oauthbearer.expected.issuer": _TOKEN_ISSUER,
            f"{own}.oauthbearer.sasl.oauthbearer.expected.audience": _TOKEN_AUDIENCE,
        }

    @property
    def keys_url(self) -> str:
        """Where the brokers find the keys of tokens."""
        return (self.folder / "jwks.json").as_uri()

    def format_arguments(self) -> list[str]:
        """The accounts that exist before the first broker runs."""
        out = []
        for user in USERS:
            out += ["--add-scram", f"SCRAM-SHA-512=[name={user},password={self.passwords[user]}]"]
        return out


@dataclass(frozen=True)
class Security:
    """All of a secured lab."""

    kafka: KafkaSecurity
    redis_lines: Callable[[str], list[str]]
    secrets: dict[str, str]


def check(options: Options) -> None:
    """Refuse what cannot be secured.  Raises LabUsage."""
    needs_login = options.secure and options.brokers > 0
    if needs_login and tuple(int(part) for part in options.kafka_version.split(".")) < _VERSION_MIN:
        raise LabUsage(
            f"Kafka {options.kafka_version} cannot log in on the lab's Java", hint="--secure needs Kafka 3.9 or newer"
        )
    if options.secure and options.redis != "none" and options.redis_flavour == "valkey":
        raise LabUsage("the packaged Valkey has no TLS", hint="use the flavour redis7 with --secure")


def prepare(folder: Path, state: State) -> Security:
    """Make what is not there yet: certificates, passwords."""
    from crossfade.lab import pki

    place = _pki(folder)
    pki.make(place, USERS)
    passwords = state.secrets or {user: secrets.token_hex(12) for user in USERS}
    return Security(
        KafkaSecurity(place, passwords), lambda name: _redis_lines(place, passwords, state, name), passwords
    )


def token(folder: Path, user: str, *, holds_s: float) -> str:
    """A token for this account at the listener OIDC, as an identity provider would issue it."""
    from crossfade.lab import pki

    now = time.time()
    claims = {"iss": _TOKEN_ISSUER, "aud": _TOKEN_AUDIENCE, "sub": user, "iat": int(now), "exp": int(now + holds_s)}
    return pki.sign(_pki(folder), claims)


def _pki(folder: Path) -> Path:
    return folder / "config" / "pki"


def _redis_lines(place: Path, passwords: dict[str, str], state: State, name: str) -> list[str]:
    out = [
        "port 0",  # the line before it is overruled: this server speaks TLS only
        f"tls-port {state.ports[name]}",
        f"tls-cert-file {place}/server.crt",
        f"tls-key-file {place}/server.key",
        f"tls-ca-cert-file {place}/ca.pem",
        "tls-auth-clients optional",
        "tls-replication yes",
    ]
    if name.startswith("sentinel"):
        from crossfade.lab.redis import SERVICE

        return [*out, f"sentinel auth-user {SERVICE} {ADMIN}", f"sentinel auth-pass {SERVICE} {passwords[ADMIN]}"]
    if state.options.redis == "cluster":
        shown = state.ports.get(f"proxy.{name}", state.ports[name])
        out += ["tls-cluster yes", f"cluster-announce-tls-port {shown}"]
    return [
        *out,
        f"masteruser {ADMIN}",
        f"masterauth {passwords[ADMIN]}",
        "user default off",
        f"user {ADMIN} on >{passwords[ADMIN]} ~* &* +@all",
        f"user {APP} on >{passwords[APP]} ~* &* +@all -@admin -flushall -flushdb",
        f"user {NOBODY} on >{passwords[NOBODY]} -@all +ping",
    ]


def kafka_client(folder: Path, state: State, listener: str, user: str = APP) -> dict[str, str]:
    """What a librdkafka client needs besides addresses; nothing in an open lab.  Raises LabUsage."""
    if not state.options.secure:
        if listener not in ("CLIENT", "DIRECT"):
            raise LabUsage(f"an open lab has no listener {listener!r}", hint="start it with --secure")
        return {}
    place = _pki(folder)
    tls = {"ssl.ca.location": str(place / "ca.pem")}
    login = {"sasl.username": user, "sasl.password": state.secrets.get(user, "")}
    if listener == "DIRECT":
        admin = {"sasl.username": ADMIN, "sasl.password": state.secrets[ADMIN]}
        return {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", **admin}
    if listener == "CLIENT":
        return {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512", **login, **tls}
    if listener == "SASLPLAIN":
        return {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", **login}
    if listener == "MTLS":
        own = {"ssl.certificate.location": str(place / f"{user}.crt"), "ssl.key.location": str(place / f"{user}.key")}
        return {"security.protocol": "SSL", **tls, **own}
    if listener == "OAUTH":
        unsigned = {"enable.sasl.oauthbearer.unsecure.jwt": "true", "sasl.oauthbearer.config": f"principal={user}"}
        return {"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER", **tls, **unsigned}
    if listener == "OIDC":  # whoever uses it adds the address and the secret of a token endpoint
        oidc = {"sasl.oauthbearer.method": "oidc", "sasl.oauthbearer.client.id": user}
        return {"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER", **tls, **oidc}
    raise LabUsage(f"there is no listener {listener!r}", hint=f"one of: CLIENT, {', '.join(EXTRA_LISTENERS)}")


def redis_url(folder: Path, state: State, port: int, *, user: str | None = APP) -> str:
    """The URL of a server at this port, as this user (none: without an account)."""
    if not state.options.secure:
        return f"redis://127.0.0.1:{port}/0"
    login = "" if user is None else f"{user}:{state.secrets[user]}@"
    return f"rediss://{login}127.0.0.1:{port}/0?ssl_ca_certs={quote(str(_pki(folder) / 'ca.pem'))}"


def env(folder: Path, state: State) -> dict[str, str]:
    """Accounts and files as environment variables; nothing in an open lab."""
    if not state.options.secure:
        return {}
    place = _pki(folder)
    out = {"CROSSFADE_LAB_CA": str(place / "ca.pem")}
    if state.options.brokers:
        out |= {"KAFKA_USERNAME": APP, "KAFKA_PASSWORD": state.secrets[APP]}
        out |= {"KAFKA_CERTIFICATE": str(place / f"{APP}.crt"), "KAFKA_KEY": str(place / f"{APP}.key")}
        out |= {"KAFKA_ADMIN_USERNAME": ADMIN, "KAFKA_ADMIN_PASSWORD": state.secrets[ADMIN]}
    return out
