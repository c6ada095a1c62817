"""Who may ship events to this node: its own certificate authority, and tokens that serve once.

Everything is in `state/sensors/`: the authority, the certificate of the port, and one file a
sensor. A sensor is admitted by a token that a person carries over; the token holds a secret, of
which the node keeps only the hash, and the fingerprint of the authority, by which the sensor knows
the node before it says anything.

References:
    RFC 5280 (certificates), RFC 2986 (certification requests).
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cityward import ConfigError, Unsafe
from siem.node import Clock
from siem.store.faults import fault
from siem.store.spool import sync_folder

NODE = "cityward-node"
"""Name in the certificate of every node's port; a sensor knows its node by the authority."""
TOKEN_HOURS = 24
AUTHORITY_DAYS, SENSOR_DAYS = 3_650, 730
SKEW = timedelta(days=1)
"""Clocks of sensors may be behind by so much, for instance by their zone."""
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
PREFIX = "cw1."


class Admission(msgspec.Struct, frozen=True):
    """What the node knows of one sensor."""

    name: str
    token_sha256: str = ""
    """Of the secret; empty once it was used."""
    token_until: datetime | None = None
    serial: str = ""
    """Of its certificate, hexadecimal."""
    valid_until: datetime | None = None
    revoked: bool = False

    def state(self, now: datetime) -> str:
        """In a word."""
        if self.revoked:
            return "revoked"
        if self.valid_until is not None:
            return "admitted" if self.valid_until > now else "expired"
        return "waiting" if self.token_until and self.token_until > now else "token expired"


class SensorAuthority:
    """Signs the certificates of the sensors of one node; see `collectors.readers.sensors`."""

    def __init__(self, state: Path, clock: Clock) -> None:
        self._folder = state / "sensors"
        self._clock = clock

    def admissions(self) -> list[Admission]:
        """All sensors that were ever added."""
        return [_read(path) for path in sorted(self._folder.glob("*.json"))]

    def add(self, name: str) -> str:
        """A token for a new sensor, or for a known one that shall have a new certificate.

        Raises:
            ConfigError: the name is none, or the authority has lost its key.
        """
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name of a sensor", "NAME", "Write a-z, 0-9, - or _.")
        secret = secrets.token_bytes(24)
        until = self._clock() + timedelta(hours=TOKEN_HOURS)
        with self._locked():
            self._authority()
            known = self._known(name) or Admission(name)
            hashed = hashlib.sha256(secret).hexdigest()
            self._keep(msgspec.structs.replace(known, token_sha256=hashed, token_until=until))
        said = {"name": name, "secret": secret, "authority": self.fingerprint}
        return PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(said)).decode()

    def revoke(self, name: str) -> None:
        """Admit a sensor no more; an open connection ends with its next batch.

        Raises:
            ConfigError: there is none of this name.
        """
        with self._locked():
            known = self._known(name)
            if known is None:
                todo = "cityward source sensors names them."
                raise ConfigError(f"there is no sensor {name!r}", "NAME", todo)
            self._keep(msgspec.structs.replace(known, revoked=True, token_sha256=""))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate."""
        made = x509.load_pem_x509_certificate((self._folder / "ca.pem").read_bytes())
        return made.fingerprint(hashes.SHA256()).hex()

    # ---- what the port asks

    def context(self) -> ssl.SSLContext:
        """For the port: its own certificate, and those of sensors asked for."""
        with self._locked():
            self._authority()
            self._port()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._folder / "port.pem", self._folder / "port.key")
        context.load_verify_locations(self._folder / "ca.pem")
        # Who has none yet may ask for one, and for nothing else.
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def sensor(self, certificate: bytes) -> str:
        """Name of the sensor that showed a certificate.

        Raises:
            Unsafe: it was revoked, it expired, or another one took its place.
        """
        shown = x509.load_der_x509_certificate(certificate)
        name = str(shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        known = self._known(name) if NAME.fullmatch(name) else None
        is_known = known and not known.revoked and known.serial == f"{shown.serial_number:x}"
        if not is_known or shown.not_valid_after_utc < self._clock():
            raise Unsafe("its certificate is not in force", f"sensor {name}", "Add it again.")
        return name

    def admits(self, name: str) -> bool:
        """Whether a sensor of this name may connect."""
        known = self._known(name) if NAME.fullmatch(name) else None
        return known is not None and known.state(self._clock()) == "admitted"

    def enrol(self, token: str, request: str) -> Mapping[str, str]:
        """Sign the key of a sensor that brings its token; the token serves once.

        Raises:
            Unsafe: the token is none, was used, or is too old; or the request is none.
        """
        name, secret, _ = read_token(token)
        with self._locked():
            known = self._known(name)
            hashed = hashlib.sha256(secret).hexdigest()
            if known is None or not hmac.compare_digest(known.token_sha256, hashed):
                raise Unsafe("the token is not in force", f"sensor {name}", "Make a new one.")
            if known.token_until is None or known.token_until < self._clock():
                raise Unsafe("the token is too old", f"sensor {name}", "Make a new one.")
            certificate = self._signed(name, request)
            self._keep(
                Admission(
                    name,
                    serial=f"{certificate.serial_number:x}",
                    valid_until=certificate.not_valid_after_utc,
                )
            )
        return {"certificate": _pem(certificate)}

    def greeting(self) -> Mapping[str, str]:
        """The authority's certificate, which a new sensor compares with its token."""
        return {"authority": (self._folder / "ca.pem").read_text()}

    # ---- keys and certificates

    def _authority(self) -> None:
        if (self._folder / "ca.pem").exists():
            if not (self._folder / "ca.key").exists():
                todo = (
                    "Restore it from a backup with secrets, or remove the folder and add all again."
                )
                raise ConfigError(
                    "the key of the sensors' authority is missing", str(self._folder), todo
                )
            return
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("cityward authority")
        made = (
            self._builder(name, name, key.public_key(), AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        write_secret(self._folder / "ca.key", _private(key))
        write_secret(self._folder / "ca.pem", _pem(made).encode())

    def _port(self) -> None:
        """The certificate of the port, made anew at each start."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = (
            self._builder(_name(NODE), self._issuer().subject, key.public_key(), AUTHORITY_DAYS)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(NODE)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
            .sign(self._key(), hashes.SHA256())
        )
        write_secret(self._folder / "port.key", _private(key))
        write_secret(self._folder / "port.pem", _pem(made).encode())

    def _signed(self, name: str, request: str) -> x509.Certificate:
        try:
            asked = x509.load_pem_x509_csr(request.encode())
            sound = asked.is_signature_valid
            key = asked.public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            what = f"no certification request: {error}"
            raise Unsafe(what, f"sensor {name}", "Run cityward collect --enrol.") from error
        if not sound or not isinstance(key, ec.EllipticCurvePublicKey):
            raise Unsafe("a request that is not sound", f"sensor {name}", "Make a new one.")
        return (
            self._builder(_name(name), self._issuer().subject, key, SENSOR_DAYS)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
            .sign(self._key(), hashes.SHA256())
        )

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: Any, days: int
    ) -> x509.CertificateBuilder:
        now = self._clock()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + timedelta(days=days))
        )

    def _issuer(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self._folder / "ca.pem").read_bytes())

    def _key(self) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key((self._folder / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    # ---- the files

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """A command and the path may change these files at the same time."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _known(self, name: str) -> Admission | None:
        path = self._folder / f"{name}.json"
        return _read(path) if path.exists() else None

    def _keep(self, admission: Admission) -> None:
        write_secret(self._folder / f"{admission.name}.json", msgspec.json.encode(admission))


def read_token(token: str) -> tuple[str, bytes, str]:
    """Name, secret and fingerprint that a token holds.

    Raises:
        Unsafe: it is none.
    """
    try:
        said = msgspec.json.decode(
            base64.urlsafe_b64decode(token.removeprefix(PREFIX)), type=_Token
        )
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        raise Unsafe("no token", "--enrol", "Copy the whole line that was printed.") from error
    if not NAME.fullmatch(said.name):
        raise Unsafe("no token", "--enrol", "Copy the whole line that was printed.")
    return said.name, said.secret, said.authority


class _Token(msgspec.Struct, frozen=True):
    name: str
    secret: bytes
    authority: str


def new_key(name: str) -> tuple[bytes, str]:
    """A private key, and the request for its certificate, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(name))
    return _private(key), _pem(request.sign(key, hashes.SHA256()))


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


def _read(path: Path) -> Admission:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Admission)
    except msgspec.MsgspecError as error:
        todo = "Remove the file and add the sensor again."
        raise ConfigError(f"no admission: {error}", str(path), todo) from error


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=signs, crl_sign=signs,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(part: x509.Certificate | x509.CertificateSigningRequest) -> str:
    return part.public_bytes(serialization.Encoding.PEM).decode()


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
