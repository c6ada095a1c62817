"""The envelope: what an operator and the hub say to each other, signed over the very bytes sent.

Both ends keep those bytes, so there is no canonical form to get wrong. On the wire and in a file
drop a signed envelope is two lines: the signature in base64, and the JSON.

References:
    RFC 8032 (Ed25519).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cityward import Unsafe

VERSION = 1
BEGIN = "0" * 64
"""What the first envelope of a sender names as the one before it."""
AHEAD_MAX = timedelta(hours=24)
"""An envelope from further in the future is refused."""
BYTES_MAX = 256 << 10
"""Largest envelope, in bytes."""

Kind = Literal[
    "share",
    "update",
    "withdraw",
    "heartbeat",
    "receipt",
    "evidence_request",
    "evidence_answer",
    "proposal",
    "proposal_answer",
    "sample",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Types that this version knows; of others it says that it does not understand them."""
ADDED: tuple[Kind, ...] = ("sample",)
"""Types that the first versions do not know: they refuse them, and take nothing that follows. So
they are sent only to who says that it understands them."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message; fields that a newer version adds are passed over by an older one."""

    v: int = VERSION
    type: str
    """One of `KINDS`, or of a newer version."""
    sent: datetime
    operator: str
    """Who sends; the hub's name in what the hub sends."""
    key_id: str
    """Begin of the hash of the public key that signed."""
    seq: int
    """Counts this sender's envelopes to this receiver from 1, without a gap."""
    prev: str
    """Hash of the envelope before it, `BEGIN` for the first."""
    share_id: str = ""
    revision: int = 0
    """Of the finding; the external version of its document."""
    policy: str = ""
    """Content hash of the policy that let it out."""
    rule: str = ""
    audiences: tuple[str, ...] = ()
    tlp: str = ""
    pap: str = ""
    expires: datetime | None = None
    derived_from: tuple[str, ...] = ()
    """Of a campaign: the shares it rests on."""
    payload: dict[str, Any] = {}
    payload_sha256: str = ""


class Signed(msgspec.Struct, frozen=True):
    """An envelope as it is sent and kept: its bytes and their signature."""

    data: bytes
    signature: bytes

    @property
    def hash(self) -> str:
        """What the next envelope names as `prev`."""
        return hashlib.sha256(self.data).hexdigest()

    def lines(self) -> bytes:
        """As it is sent, or dropped as a file."""
        return base64.b64encode(self.signature) + b"\n" + self.data + b"\n"


def payload_hash(payload: dict[str, Any]) -> str:
    """Hash of a payload, as `payload_sha256` carries it."""
    return hashlib.sha256(msgspec.json.encode(payload, order="sorted")).hexdigest()


def key_id(key: Ed25519PublicKey) -> str:
    """Short name of a key."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def sign(envelope: Envelope, key: Ed25519PrivateKey) -> Signed:
    """Sign an envelope; what comes out is what is sent.

    Raises:
        Unsafe: it is larger than `BYTES_MAX`.
    """
    data = msgspec.json.encode(envelope)
    if len(data) > BYTES_MAX:
        raise Unsafe(f"an envelope of {len(data):,} bytes", envelope.share_id, "Share less of it.")
    return Signed(data, key.sign(data))


def split(lines: bytes) -> Signed:
    """The two lines of a signed envelope.

    Raises:
        Unsafe: they are none, or too long.
    """
    signature, _, data = lines.partition(b"\n")
    data = data.rstrip(b"\n")
    if len(data) > BYTES_MAX:
        raise Unsafe(f"an envelope of {len(data):,} bytes", "envelope", f"At most {BYTES_MAX:,}.")
    try:
        return Signed(data, base64.b64decode(signature, validate=True))
    except (binascii.Error, ValueError) as error:
        raise Unsafe(
            "no signed envelope", "envelope", "Send the signature, then the JSON."
        ) from error


def verified(signed: Signed, key: Ed25519PublicKey) -> Envelope:
    """What a signed envelope says, once its signature and its payload's hash hold.

    Raises:
        Unsafe: they do not hold, or it is no envelope.
    """
    try:
        key.verify(signed.signature, signed.data)
    except InvalidSignature as error:
        raise Unsafe("the signature does not hold", "envelope", "Enrol again.") from error
    try:
        envelope = msgspec.json.decode(signed.data, type=Envelope)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Unsafe(f"no envelope: {error}", "envelope", "Send what the protocol says.") from error
    if envelope.payload_sha256 != payload_hash(envelope.payload):
        raise Unsafe("the payload is not what its hash says", envelope.share_id, "Send it again.")
    return envelope


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub says of an envelope once it is durable: the payload of a `receipt`."""

    share_id: str
    payload_sha256: str
    operator: str
    seq: int
    hash: str
    """Of the envelope that was taken."""
    position: int
    """Place in the hub's own ledger of what it took from this operator."""
    index: str = ""
    """Where the document is."""
    did: dict[str, Any] = {}
    """Of a withdrawal: what was done, and what cannot be undone."""
