"""Operators: who may send to this hub, admitted by a token that serves once.

What is known of an operator is a record of the common store, so a standby hub knows it too; only
the authority's key, and the key that signs receipts, are files of `state/exchange/`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cityward import ConfigError, Unsafe
from cityward.fields import SECTORS
from siem.city.commons import CITY, Records
from siem.sharing import certificates
from siem.sharing.certificates import NAME, Authority, common_name, key_of_request, write_secret
from siem.sharing.envelope import BEGIN, key_id
from siem.sharing.identity import public_text
from siem.sharing.wire import TOKEN_PREFIX, Enrolled, Renewed
from siem.store.protocol import Conflict

FOLDER = "exchange"
"""In the state folder: the keys of authority and receipts."""
OPERATOR, AUTHORITY = "operator", "authority"
"""Kinds of the records of operators, and of what the keys of the exchange are known by."""
TOKEN_FOR = timedelta(minutes=60)
CERTIFICATE_DAYS = 30.0
CERTIFICATES_MAX = 2
"""In force at once: the newest, and the one that it was asked with until the newest is used."""
TRIES = 5


class Certificate(msgspec.Struct, frozen=True):
    """A certificate that was signed."""

    serial: str
    """Hexadecimal."""
    until: datetime


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub knows of one operator."""

    name: str
    sector: str = ""
    added: datetime | None = None
    token_sha256: str = ""
    """Of the token's secret; empty once it was used."""
    token_until: datetime | None = None
    enrolled: datetime | None = None
    certificates: tuple[Certificate, ...] = ()
    """The newest last."""
    signing_key: str = ""
    """Ed25519, raw, in base64: signs its envelopes."""
    revoked: datetime | None = None

    @property
    def valid_until(self) -> datetime | None:
        """End of its newest certificate."""
        return self.certificates[-1].until if self.certificates else None

    @property
    def key(self) -> Ed25519PublicKey:
        """What its envelopes are verified with."""
        return read_signing_key(self.signing_key, f"operator {self.name}")

    def state(self, now: datetime) -> str:
        """In a word."""
        if self.revoked is not None:
            return "revoked"
        if self.valid_until is not None:
            return "enrolled" if self.valid_until > now else "expired"
        return "waiting" if self.token_until and self.token_until > now else "token expired"


class Operators:
    """Admits operators, and says whose a certificate is.

    Args:
        records: The hub's memory.
        folder: Where its two keys are; made by `make`.
        clock: The hub's time.
    """

    def __init__(self, records: Records, folder: Path, clock: Callable[[], datetime]) -> None:
        self._records = records
        self._folder = folder
        self._clock = clock
        self.authority = Authority(folder, clock, "operators")

    def make(self) -> None:
        """Make authority and signing key, if the city has none yet.

        Raises:
            ConfigError: it has some, and they are not here: at a standby they are to be copied.
        """
        found = self._records.get(AUTHORITY, FOLDER)
        with self.authority.locked():
            path = self._folder / "signing.key"
            if found is None or path.exists():
                self.authority.make()
                if not path.exists():
                    write_secret(path, _raw(Ed25519PrivateKey.generate()))
            is_here = path.exists() and (self._folder / "ca.pem").exists()
        ours = {"ca": self.authority.fingerprint, "key": self._key_id} if is_here else {}
        if found is None:
            with suppress(Conflict):
                self._records.put(AUTHORITY, FOLDER, ours, None)
            found = self._records.get(AUTHORITY, FOLDER)
        if found is not None and found.value != ours:
            raise ConfigError(
                "the city has an exchange already, and its keys are not here",
                str(self._folder),
                "Copy ca.pem, ca.key and signing.key from the other hub.",
            )

    @property
    def _key_id(self) -> str:
        return key_id(self.signing_key.public_key())

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """Signs what the hub says."""
        return Ed25519PrivateKey.from_private_bytes((self._folder / "signing.key").read_bytes())

    def context(self, names: Sequence[str]) -> ssl.SSLContext:
        """For the port; `names` are those by which operators call it."""
        with self.authority.locked():
            return self.authority.context(names)

    # ---- what a person does

    def all(self) -> list[Operator]:
        """Every operator that was ever added, by name."""
        return [msgspec.convert(one.value, Operator) for _, one in self._records.all(OPERATOR)]

    def known(self, name: str) -> Operator | None:
        """One of them."""
        return self._read(name)[0]

    def add(self, name: str, sector: str = "") -> str:
        """A token for a new operator, or for a known one that shall have a new certificate.

        Raises:
            ConfigError: name or sector is none, or the authority has lost its key.
        """
        if not NAME.fullmatch(name) or name == CITY:
            todo = "Write a-z, 0-9, -, _ or ., as `operator` in its settings says."
            raise ConfigError(f"{name!r} is no name of an operator", "NAME", todo)
        if sector and sector not in SECTORS:
            raise ConfigError(f"{sector!r} is no sector", "--sector", f"One of {list(SECTORS)}.")
        self.make()
        token = self.authority.token(name)
        now = self._clock()

        def added(known: Operator | None) -> Operator:
            known = known or Operator(name=name, added=now)
            return msgspec.structs.replace(
                known,
                sector=sector or known.sector,
                token_sha256=token.hash,
                token_until=now + TOKEN_FOR,
            )

        self._change(name, added)
        return token.text(TOKEN_PREFIX)

    def revoke(self, name: str) -> None:
        """Take nothing of an operator any more, from its next request on.

        Raises:
            ConfigError: there is none of this name.
        """

        def revoked(known: Operator | None) -> Operator:
            if known is None:
                todo = "cityward operator list names them."
                raise ConfigError(f"there is no operator {name!r}", "NAME", todo)
            now = known.revoked or self._clock()
            return msgspec.structs.replace(known, revoked=now, token_sha256="", certificates=())

        self._change(name, revoked)

    # ---- what the port asks

    def of(self, certificate: bytes) -> Operator:
        """Whose certificate (DER) it is.

        Raises:
            Unsafe: it is none, was revoked, has ended, or another one took its place.
        """
        try:
            shown = x509.load_der_x509_certificate(certificate)
            name, serial = common_name(shown), f"{shown.serial_number:x}"
        except ValueError as error:
            raise Unsafe("no certificate", "TLS", "Enrol again.") from error
        known, version = self._read(name) if NAME.fullmatch(name) else (None, None)
        signed = (
            next((c for c in known.certificates if c.serial == serial), None) if known else None
        )
        if known is None or signed is None or signed.until < self._clock():
            raise Unsafe(
                "its certificate is not in force", f"operator {name[:64]!r}", "Enrol again."
            )
        if signed is known.certificates[-1] and len(known.certificates) > 1:
            known = msgspec.structs.replace(known, certificates=(signed,))
            self._keep(known, version)
        return known

    def enrol(self, text: str, csr: str, signing_key: str) -> tuple[str, Enrolled]:
        """Sign the key of an operator that brings its token; the token serves once.

        Returns:
            Its name, and what it is answered.

        Raises:
            Unsafe: the token is none, was used, is too old or of another hub; or a key is none.
        """
        token = certificates.read_token(text, TOKEN_PREFIX, "token")
        where = f"operator {token.name}"
        todo = "Ask the hub for a new one: cityward operator enrol."
        if token.authority != self.authority.fingerprint:
            raise Unsafe("the token is of another hub", where, todo)
        known, version = self._read(token.name)
        if known is None or not hmac.compare_digest(known.token_sha256, token.hash):
            raise Unsafe("the token is not in force", where, todo)
        now = self._clock()
        if known.token_until is None or known.token_until < now:
            raise Unsafe("the token is too old", where, todo)
        read_signing_key(signing_key, where)
        made = self._sign(token.name, csr)
        enrolled = msgspec.structs.replace(
            known,
            token_sha256="",
            token_until=None,
            enrolled=now,
            revoked=None,
            signing_key=signing_key,
            certificates=(_certificate(made),),
        )
        # Of two that bring the same token at once, only one finds the version it read.
        if not self._keep(enrolled, version):
            raise Unsafe("the token is not in force", where, todo)
        link = self._records.get("link", token.name)
        return token.name, Enrolled(
            certificate=certificates.pem(made) + self.authority.certificate,
            signing_key=public_text(self.signing_key.public_key()),
            seq=link.value["seq"] if link else 0,
            prev=link.value["hash"] if link else BEGIN,
        )

    def renew(self, name: str, csr: str) -> Renewed:
        """A new certificate for an operator that showed the one it has.

        Raises:
            Unsafe: the request is none, or the operator was revoked.
        """
        made = self._sign(name, csr)

        def renewed(known: Operator | None) -> Operator:
            if known is None or not known.certificates:
                raise Unsafe("its certificate is not in force", f"operator {name}", "Enrol again.")
            kept = (*known.certificates, _certificate(made))[-CERTIFICATES_MAX:]
            return msgspec.structs.replace(known, certificates=kept)

        self._change(name, renewed)
        return Renewed(certificate=certificates.pem(made) + self.authority.certificate)

    def _sign(self, name: str, csr: str) -> x509.Certificate:
        key = key_of_request(csr, name, f"operator {name}")
        return self.authority.signed(name, key, CERTIFICATE_DAYS)

    # ---- the records

    def _read(self, name: str) -> tuple[Operator | None, str | None]:
        found = self._records.get(OPERATOR, name)
        if found is None:
            return None, None
        return msgspec.convert(found.value, Operator), found.version

    def _keep(self, operator: Operator, version: str | None) -> bool:
        """Whether nobody else has written since."""
        try:
            self._records.put(OPERATOR, operator.name, msgspec.to_builtins(operator), version)
        except Conflict:
            return False
        return True

    def _change(self, name: str, change: Callable[[Operator | None], Operator]) -> None:
        """A command and the hub may change an operator at the same time."""
        for _ in range(TRIES):
            known, version = self._read(name)
            if self._keep(change(known), version):
                return
        raise Conflict(f"operator {name} changes all the time", "records", "Try again.")


def read_signing_key(text: str, where: str) -> Ed25519PublicKey:
    """A public key as it was sent.

    Raises:
        Unsafe: it is none.
    """
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error) as error:
        raise Unsafe("no signing key", where, "Send an Ed25519 key, raw, in base64.") from error


def _raw(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.Raw,
        serialization.PrivateFormat.Raw,
        serialization.NoEncryption(),
    )


def _certificate(made: x509.Certificate) -> Certificate:
    return Certificate(f"{made.serial_number:x}", made.not_valid_after_utc)
