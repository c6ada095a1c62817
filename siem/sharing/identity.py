"""Who this node is to its hub: its keys and certificate, in `state/sharing/`.

`link.key` is key and certificate in one file, so that a kill never leaves a pair that is none;
`hub.json` says who the hub is and is written last: where it is, the node has joined.
"""

from __future__ import annotations

import base64
import ssl
from datetime import datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cityward import ConfigError
from siem.sharing.certificates import write_secret
from siem.sharing.ledger import Keys, keys_of

FOLDER = "sharing"
TODO = "Ask the hub for a token, then: cityward operator join URL --token-file FILE."


class Hub(msgspec.Struct, frozen=True, kw_only=True):
    """The hub that a node joined."""

    url: str
    operator: str
    """This node, as the hub knows it."""
    authority: str
    """PEM; its certificates are believed by it, and by no other."""
    signing_keys: tuple[str, ...] = ()
    """Ed25519, raw, in base64; the newest last."""

    own_keys: tuple[str, ...] = ()
    """What this node signs and has signed with; the newest last."""

    @property
    def keys(self) -> Keys:
        """What its receipts are verified with."""
        return keys_of(*(public_key(one) for one in self.signing_keys))

    @property
    def key(self) -> Ed25519PublicKey:
        """What it signs with now."""
        return public_key(self.signing_keys[-1])


class Identity:
    """The files in `state/sharing/`."""

    def __init__(self, state: Path) -> None:
        self.folder = state / FOLDER

    @property
    def has_joined(self) -> bool:
        """Whether a hub has admitted this node."""
        return (self.folder / "hub.json").is_file()

    def hub(self) -> Hub:
        """The hub that this node joined.

        Raises:
            ConfigError: it has joined none.
        """
        path = self.folder / "hub.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Hub)
        except FileNotFoundError as error:
            raise ConfigError("this node has joined no hub yet", str(path), TODO) from error
        except msgspec.MsgspecError as error:
            raise ConfigError(f"the hub cannot be read: {error}", str(path), TODO) from error

    def keep_hub(self, hub: Hub) -> None:
        """From now on this node has joined."""
        write_secret(self.folder / "hub.json", msgspec.json.encode(hub))

    def signing_key(self) -> Ed25519PrivateKey:
        """What this node signs with; made once.

        Raises:
            ConfigError: the file holds none.
        """
        path = self.folder / "signing.key"
        if not path.exists():
            write_secret(path, Ed25519PrivateKey.generate().private_bytes_raw())
        try:
            return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
        except (ValueError, InvalidKey) as error:
            todo = "Restore it from a backup with secrets."
            raise ConfigError("no signing key", str(path), todo) from error

    def own_keys(self) -> Keys:
        """What this node signs and has signed with, for the proof of its ledger."""
        before = self.hub().own_keys if self.has_joined else ()
        return keys_of(self.signing_key().public_key(), *(public_key(one) for one in before))

    def keep_certificate(self, key: bytes, certificate: str) -> None:
        """Use another certificate from now on."""
        write_secret(self.folder / "link.key", key + certificate.encode())

    def certificate(self) -> x509.Certificate:
        """The certificate in use."""
        return x509.load_pem_x509_certificates((self.folder / "link.key").read_bytes())[0]

    def context(self, authority: str) -> ssl.SSLContext:
        """For a connection to the hub, with our certificate."""
        context = known_by(authority)
        context.load_cert_chain(self.folder / "link.key")
        return context


def known_by(authority: str) -> ssl.SSLContext:
    """For a connection to who is known by an authority (PEM), and by no other."""
    context = ssl.create_default_context(cadata=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def renewal_due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether two thirds of its life are over."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= begin + (end - begin) * 2 / 3


def public_text(key: Ed25519PublicKey) -> str:
    """A public key as it is sent."""
    return base64.b64encode(key.public_bytes_raw()).decode()


def public_key(text: str) -> Ed25519PublicKey:
    """A public key as it was sent.

    Raises:
        ConfigError: it is none.
    """
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except ValueError as error:
        raise ConfigError("no public key", "hub", TODO) from error
