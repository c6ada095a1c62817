"""Who says that a playbook may run: Ed25519 over the very bytes of its file, in a file beside it.

Nothing is brought into another form before it is signed or checked, so there is nothing to disagree
about: a changed blank is a changed file. A public key is a small YAML file with its validity; to
revoke it, its line `revoked` is set, and all that it ever signed counts no more.

References:
    RFC 8032 (Ed25519); CACAO Security Playbooks 2.0, section 2.5, which signs a canonical JSON
    within the playbook instead: a file beside it also covers YAML, and needs no canonical form.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec

from cityward import ConfigError, RuleError, documents

CONTEXT = b"cityward playbook signature 1\n"
"""Before what is signed, so that a signature of something else is never one of a playbook."""
WAIVER = b"cityward playbook waiver of shadow runs 1\n"
"""Before a playbook that somebody lets go `live` without runs in shadow."""
SUFFIXES = {CONTEXT: ".sig", WAIVER: ".waiver"}
SIGNATURE_MAX_BYTES = 4_096
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
KEY_KEYS = {"public_key", "valid_from", "valid_until", "revoked"}


class PublicKey(msgspec.Struct, frozen=True):
    """A key whose signatures count here."""

    name: str
    """That of its file."""
    raw: bytes
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    revoked: datetime | None = None

    @property
    def id(self) -> str:
        """Fingerprint, by which people compare it."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def fault(self, now: datetime) -> str:
        """Why its signatures do not count now; empty: they do."""
        if self.revoked is not None:
            return f"the key {self.name} is revoked since {self.revoked:%Y-%m-%d}"
        if self.valid_from is not None and now < self.valid_from:
            return f"the key {self.name} is valid from {self.valid_from:%Y-%m-%d} only"
        if self.valid_until is not None and now >= self.valid_until:
            return f"the key {self.name} was valid until {self.valid_until:%Y-%m-%d}"
        return ""


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in the file beside a playbook."""

    key: str
    """Name of the key, as its owner calls it; `id` decides."""
    id: str
    signed: str
    """When, by the clock of who signed."""
    value: str


def new_key(now: datetime, valid_until: datetime | None = None) -> tuple[bytes, bytes]:
    """Make a key: its private file, and the public one to hand out."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = Ed25519PrivateKey.generate()
    private = made.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    lines = [
        "# Public key for cityward playbooks; to revoke it write revoked: and a date.",
        f"public_key: {_text(_raw(made.public_key()))}",
        f"valid_from: {now.astimezone(UTC):%Y-%m-%d}",
    ]
    if valid_until is not None:
        lines.append(f"valid_until: {valid_until.astimezone(UTC):%Y-%m-%d}")
    return private, "\n".join((*lines, "")).encode()


def read_key(path: Path) -> PublicKey:
    """Read a public key's file.

    Raises:
        ConfigError: it is none.
    """
    todo = "Make one with cityward playbook sign --new-key NAME."
    name = path.name.partition(".")[0]
    try:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name[:40]!r} is no name of a key")
        (document,) = documents.read(path)
        said = document.value
        if not isinstance(said, dict) or not said.keys() <= KEY_KEYS:
            raise ValueError(f"its keys are {', '.join(sorted(KEY_KEYS))}")
        raw = base64.b64decode(str(said["public_key"]), validate=True)
        if len(raw) != 32:
            raise ValueError(f"{len(raw)} bytes instead of 32")
        times = {key: _time(said[key]) for key in KEY_KEYS - {"public_key"} if key in said}
    except RuleError as error:
        raise ConfigError(error.what, error.where, todo) from error
    except OSError as error:
        raise ConfigError(f"not read: {error.strerror}", str(path), "Check the path.") from error
    except (ValueError, KeyError) as error:
        what = f"no public key of a playbook: {str(error)[:80]}"
        raise ConfigError(what, str(path), todo) from error
    return PublicKey(name=name, raw=raw, **times)


def sign(data: bytes, private: bytes, name: str, now: datetime, context: bytes = CONTEXT) -> bytes:
    """The file that goes beside a playbook.

    Args:
        data: The playbook's file as it is.
        private: The private key's file.
        name: Of the key.
        now: Goes into what is signed.
        context: What is said of it, `CONTEXT` or `WAIVER`.

    Raises:
        ConfigError: this is no private key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        key = serialization.load_pem_private_key(private, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("no private key", name, "Name the file of the key.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError("no Ed25519 key", name, "Make one with --new-key.")
    signed = now.astimezone(UTC).isoformat(timespec="seconds")
    raw = _raw(key.public_key())
    made = Signature(
        key=name,
        id=PublicKey(name, raw).id,
        signed=signed,
        value=_text(key.sign(_message(data, signed, context))),
    )
    return msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n"


def verify(
    data: bytes,
    signature: bytes,
    keys: Sequence[PublicKey],
    now: datetime,
    context: bytes = CONTEXT,
) -> str:
    """Name of the key that signed these bytes.

    Raises:
        ValueError: nobody whose word counts did; the message says why.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        said = msgspec.json.decode(signature[:SIGNATURE_MAX_BYTES], type=Signature)
        value = base64.b64decode(said.value, validate=True)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"no signature: {str(error)[:80]}") from error
    key = next((one for one in keys if one.id == said.id), None)
    if key is None:
        raise ValueError(f"signed by {said.id[:16]!r} ({said.key[:40]!r}), whose key is not here")
    if fault := key.fault(now):
        raise ValueError(fault)
    try:
        message = _message(data, said.signed, context)
        Ed25519PublicKey.from_public_bytes(key.raw).verify(value, message)
    except (InvalidSignature, ValueError) as error:
        raise ValueError(f"changed after {key.name} signed it") from error
    return key.name


def beside(path: Path, context: bytes = CONTEXT) -> Path:
    """The file with the signature of another."""
    return path.with_name(path.name + SUFFIXES[context])


def _message(data: bytes, signed: str, context: bytes) -> bytes:
    return context + signed.encode("utf-8", "replace") + b"\n" + data


def _raw(key: Any) -> bytes:
    return bytes(key.public_bytes_raw())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _time(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    raise ValueError(f"{str(value)[:40]!r} is no time")
