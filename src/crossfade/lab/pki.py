"""A certificate authority for one lab, with the server's certificate and one for each account, and a key for tokens.

Valid for the loopback only, for a year, keys unencrypted in the lab's folder with mode 0600. Called by secure, and by
tests that need a certificate that has expired, or a token.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from crossfade.lab.errors import LabError

_DAYS = 365
_AUTHORITY = "crossfade lab"
_TOKEN_KEY_ID = "lab-1"


def make(folder: Path, names: Iterable[str]) -> None:
    """Write `ca.pem` and `ca.key`, and what `issue` writes for `server` and for each of `names`.

    Files that exist are kept, so that a lab that starts again is still trusted.
    """
    if (folder / "server.pem").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    _write(folder / "ca.key", _key_pem(key))
    _write(folder / "ca.pem", _pem(_certificate(_AUTHORITY, key.public_key(), key, days=_DAYS, is_ca=True)))
    for name in names:
        issue(folder, name)
    _make_token_key(folder)
    issue(folder, "server", "localhost")


def issue(folder: Path, stem: str, name: str = "", *, days: int = _DAYS) -> tuple[Path, Path]:
    """Certify `CN=<name>` (default: the stem) from yesterday for `days`; 0 or less makes one that has expired.

    Writes `<stem>.key`, `<stem>.crt` and `<stem>.pem` (key, certificate, authority); returns (certificate, key).
    """
    ca_pem, ca_key_pem = (folder / "ca.pem").read_bytes(), (folder / "ca.key").read_bytes()
    ca_key = serialization.load_pem_private_key(ca_key_pem, None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise LabError(f"{folder}/ca.key is not a key of this lab", hint="remove the lab and start it anew")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _pem(_certificate(name or stem, key.public_key(), ca_key, days=days, is_ca=False))
    _write(folder / f"{stem}.key", _key_pem(key))
    _write(folder / f"{stem}.crt", certificate)
    _write(folder / f"{stem}.pem", _key_pem(key) + certificate + ca_pem)
    return folder / f"{stem}.crt", folder / f"{stem}.key"


def _make_token_key(folder: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    public = key.public_key().public_numbers()
    numbers = {
        name: _base64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))
        for name, number in (("n", public.n), ("e", public.e))
    }
    shown = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": _TOKEN_KEY_ID, **numbers}
    _write(folder / "token.key", _key_pem(key))
    _write(folder / "jwks.json", json.dumps({"keys": [shown]}).encode())


def sign(folder: Path, claims: dict[str, object]) -> str:
    """These claims as a signed token (JWT, RS256)."""
    key = serialization.load_pem_private_key((folder / "token.key").read_bytes(), None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise LabError(f"{folder}/token.key is not a key of this lab", hint="remove the lab and start it anew")
    head = {"alg": "RS256", "typ": "JWT", "kid": _TOKEN_KEY_ID}
    text = ".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
    return f"{text}.{_base64url(key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _certificate(
    name: str, public_key: ec.EllipticCurvePublicKey, issuer_key: ec.EllipticCurvePrivateKey, *, days: int, is_ca: bool
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _AUTHORITY)]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1 + max(0, 1 - days)))
        .not_valid_after(now + datetime.timedelta(days=days, hours=-1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if is_ca:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    else:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(both, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    # Kafka reads unencrypted PKCS 8 only.
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)
