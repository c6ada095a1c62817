"""Keys and certificates of those who speak to us from elsewhere: sensors and operators.

An authority of our own is two files of a folder, `ca.pem` and `ca.key`. Who is to be admitted gets
a token that a person carries over; it holds a secret, of which only the hash is kept, and the
fingerprint of the authority, by which the other end is known before anything is said.

References:
    RFC 5280 (certificates), RFC 2986 (certification requests).
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import ipaddress
import os
import re
import secrets
import ssl
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cityward import ConfigError, Unsafe
from siem.store.faults import fault
from siem.store.spool import sync_folder

AUTHORITY_DAYS = 3_650
SKEW = timedelta(days=1)
"""Clocks of others may be behind by so much, for instance by their zone."""
SECRET_BYTES = 24
CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
"""Of keys that are signed."""
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
"""Whom a token admits."""


class Token(msgspec.Struct, frozen=True):
    """What a token says; it is written as a prefix and base64."""

    name: str
    secret: bytes
    authority: str
    """Fingerprint of the authority that will sign."""

    @property
    def hash(self) -> str:
        """Of its secret: all that is kept of it."""
        return hashlib.sha256(self.secret).hexdigest()

    def text(self, prefix: str) -> str:
        """As a person carries it."""
        return prefix + base64.urlsafe_b64encode(msgspec.json.encode(self)).decode()


def read_token(text: str, prefix: str, option: str) -> Token:
    """What a token holds; `option` is where a person gave it.

    Raises:
        Unsafe: it is none.
    """
    try:
        data = base64.urlsafe_b64decode(text.removeprefix(prefix))
        token = msgspec.json.decode(data, type=Token)
        is_sound = text.startswith(prefix) and NAME.fullmatch(token.name)
    except (msgspec.MsgspecError, binascii.Error, ValueError):
        is_sound = None
    if not is_sound:
        raise Unsafe("no token", option, "Copy the whole line that was printed.")
    return token


class Authority:
    """Signs certificates; its key is a file that only its owner reads.

    Args:
        folder: Where its files are; made with the first of them.
        clock: Gives the begin and end of certificates.
        whose: What it is the authority of, for messages: `sensors`, `operators`.
    """

    def __init__(self, folder: Path, clock: Callable[[], datetime], whose: str) -> None:
        self.folder = folder
        self._clock = clock
        self._whose = whose

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A command and a running process may change these files at the same time."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def make(self) -> None:
        """Make key and certificate, unless they are there; the caller holds the lock.

        Raises:
            ConfigError: the key is missing.
        """
        if (self.folder / "ca.pem").exists():
            if not (self.folder / "ca.key").exists():
                raise ConfigError(
                    f"the key of the {self._whose}' authority is missing",
                    str(self.folder),
                    "Restore it from a backup with secrets, or remove the folder and add all"
                    " again.",
                )
            return
        key = ec.generate_private_key(ec.SECP256R1())
        name = name_of("cityward authority")
        made = (
            self._builder(name, name, key.public_key(), timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        write_secret(self.folder / "ca.key", private_pem(key))
        write_secret(self.folder / "ca.pem", pem(made).encode())

    @property
    def certificate(self) -> str:
        """Its certificate, as PEM."""
        return (self.folder / "ca.pem").read_text(encoding="ascii")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its certificate."""
        return fingerprint(self._issuer())

    def token(self, name: str) -> Token:
        """A new token for somebody."""
        return Token(name, secrets.token_bytes(SECRET_BYTES), self.fingerprint)

    def signed(self, name: str, key: ec.EllipticCurvePublicKey, days: float) -> x509.Certificate:
        """The certificate of somebody who connects to us; only the name given here stands in it."""
        return (
            self._builder(name_of(name), self._issuer().subject, key, timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
            .sign(self._key(), hashes.SHA256())
        )

    def context(self, names: Sequence[str]) -> ssl.SSLContext:
        """For a port of ours: its own certificate, made anew, and those of others asked for.

        The caller holds the lock.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        days = timedelta(days=AUTHORITY_DAYS)
        called = x509.SubjectAlternativeName([_general(one) for one in names])
        made = (
            self._builder(name_of(names[0]), self._issuer().subject, key.public_key(), days)
            .add_extension(called, critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
            .sign(self._key(), hashes.SHA256())
        )
        write_secret(self.folder / "port.key", private_pem(key))
        write_secret(self.folder / "port.pem", pem(made).encode())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.folder / "port.pem", self.folder / "port.key")
        context.load_verify_locations(self.folder / "ca.pem")
        # Who has none yet may ask for one, and for nothing else.
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _builder(
        self,
        subject: x509.Name,
        issuer: x509.Name,
        key: ec.EllipticCurvePublicKey,
        lasts: timedelta,
    ) -> x509.CertificateBuilder:
        now = self._clock()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + lasts)
        )

    def _issuer(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.folder / "ca.pem").read_bytes())

    def _key(self) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key((self.folder / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key


# ---- The end that asks


def new_key(name: str) -> tuple[bytes, str]:
    """A private key, and the request for its certificate, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(name_of(name))
    return private_pem(key), pem(request.sign(key, hashes.SHA256()))


def key_of_request(request: str, name: str, where: str) -> ec.EllipticCurvePublicKey:
    """The key that a request asks a certificate for; nothing else of it is believed.

    Raises:
        Unsafe: it is no request of this name, its signature does not hold, its key is weak, or it
            asks to be an authority itself.
    """
    todo = "Make a new request; the name in it is the one of the token."
    try:
        asked = x509.load_pem_x509_csr(request.encode())
        is_sound = asked.is_signature_valid
        key = asked.public_key()
        is_authority = any(
            isinstance(one.value, x509.BasicConstraints) and one.value.ca
            for one in asked.extensions
        )
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise Unsafe(f"no certification request: {str(error)[:200]}", where, todo) from error
    if not is_sound:
        raise Unsafe("a request that is not sound", where, todo)
    if is_authority:
        raise Unsafe("a request to be an authority", where, todo)
    if common_name(asked) != name:
        raise Unsafe("a request in another name", where, todo)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, CURVES):
        raise Unsafe("a request with a weak key, or one of another kind", where, "Take P-256.")
    return key


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def common_name(part: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """Whose it is; empty if it says no name."""
    names = part.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def name_of(common: str) -> x509.Name:
    """A name as certificates write it."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def pem(part: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """A certificate, or a request for one, as text."""
    return part.public_bytes(serialization.Encoding.PEM).decode()


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as text; it is nobody else's."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def write_secret(path: Path, data: bytes) -> None:
    """A file that only its owner reads; there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made, unfinished = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(made, "wb") as file:
            fault("write-secret")
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        Path(unfinished).unlink(missing_ok=True)
        raise
    Path(unfinished).replace(path)
    sync_folder(path.parent)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=signs, crl_sign=signs,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
