"""Tokens: what becomes of a value that others may compare but not read.

`l:` is keyed with a key of this operator alone: stable here, meaningless elsewhere. `j:` and `p:`
are keyed with a root that the operators exchange without the hub, anew every 30 days: equal at
every operator, so that the hub can join them, and it cannot try values, since it lacks the root.
`j:` stands for the value itself, `p:` for something coarser (its /24 or /48, its registered
domain), so that an attacker who moves still joins. `n:` is a network in clear.

A token is `j:<epoch>:<128 bits in hex>`, `p:` alike, and `l:<128 bits in hex>`. Before any key a
value has its canonical form and the type it is of: `ipv4-addr:203.0.113.7`.

References:
    RFC 2104 (HMAC), RFC 5869 (HKDF); federation.md, "Why not plain hashes".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol

from cityward import ConfigError

ROOT_BYTES = 32
EPOCH_DAYS = 30
OVERLAP_DAYS = 7
"""In the first days of an epoch the token of the one before it is sent, too."""
TOKEN_BYTES = 16
JOINED = ("j:", "p:")
"""How a token begins that other operators can make."""
_CHECK_BYTES = 2
_GROUP = 5


class Joiner(Protocol):
    """Makes tokens that are equal at every operator; `hmac` does it offline."""

    def token(self, name: str, epoch: int) -> str:
        """The token of a canonical value in an epoch."""
        ...


class Hmac:
    """Tokens by a root that only the operators have; any one of them could try values.

    Raises:
        ConfigError: the root has not 32 bytes.
    """

    def __init__(self, root: bytes) -> None:
        if len(root) != ROOT_BYTES:
            what = f"a root of {len(root)} bytes, not {ROOT_BYTES}"
            raise ConfigError(what, "join key", "Make one: cityward share join-key new.")
        self._root = root
        self._key = lru_cache(maxsize=8)(self._epoch_key)

    def token(self, name: str, epoch: int) -> str:
        """The token of a canonical value in an epoch."""
        return _mac(self._key(epoch), name)

    def _epoch_key(self, epoch: int) -> bytes:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        said = f"cityward join epoch {epoch}".encode()
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=said).derive(self._root)


class Tokens:
    """Both kinds of tokens of one operator.

    Args:
        local_key: Of this operator; never exported.
        joiner: Makes join tokens; None: no root was exchanged, so nothing is joined.
    """

    def __init__(self, local_key: bytes, joiner: Joiner | None = None) -> None:
        self._local_key = local_key
        self.joiner = joiner
        self.local = lru_cache(maxsize=16_384)(self._local)
        self._joined = lru_cache(maxsize=16_384)(self._join_token)

    def _local(self, name: str) -> str:
        """What a canonical value is called outside, by us alone."""
        return f"l:{_mac(self._local_key, name)}"

    def joined(self, names: Iterable[tuple[str, str]], at: datetime) -> list[str]:
        """Tokens of marks (`j`, `p`) with canonical values, for a time.

        The time is the finding's own, not that of sending: what happened together joins although
        one operator's link was down for a month.
        """
        return [self._joined(mark, name, epoch) for epoch in epochs(at) for mark, name in names]

    def _join_token(self, mark: str, name: str, epoch: int) -> str:
        assert self.joiner is not None
        return f"{mark}:{epoch}:{self.joiner.token(name, epoch)}"


def epochs(at: datetime) -> tuple[int, ...]:
    """The epoch of a time and, in its first days, the one before."""
    days = int(at.timestamp() // 86_400)
    epoch, day = divmod(days, EPOCH_DAYS)
    return (epoch, epoch - 1) if day < OVERLAP_DAYS else (epoch,)


def tokens_in(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every join token of a shared finding, with the field it stands in."""
    for name, value in document.items():
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, str) and one.startswith(JOINED):
                yield name, one


def new_root() -> bytes:
    """A root for the join tokens of a city."""
    return secrets.token_bytes(ROOT_BYTES)


def root_text(root: bytes) -> str:
    """A root as it is read out or handed over: groups of letters and digits, with a check."""
    said = base64.b32encode(root + hashlib.sha256(root).digest()[:_CHECK_BYTES]).decode()
    said = said.rstrip("=")
    return "-".join(said[at : at + _GROUP] for at in range(0, len(said), _GROUP))


def root_of(text: str, where: str) -> bytes:
    """The root that somebody wrote down; see `root_text`.

    Raises:
        ConfigError: letters are wrong or missing.
    """
    said = "".join(one for one in text.upper() if one.isalnum())
    try:
        data = base64.b32decode(said + "=" * (-len(said) % 8))
    except (binascii.Error, ValueError):
        data = b""
    root, check = data[:ROOT_BYTES], data[ROOT_BYTES:]
    if len(root) != ROOT_BYTES or not hmac.compare_digest(
        check, hashlib.sha256(root).digest()[:_CHECK_BYTES]
    ):
        raise ConfigError(
            "no join key: a letter is wrong or missing", where, "Compare it group by group."
        )
    return root


def fingerprint(root: bytes) -> str:
    """Twelve letters by which two operators compare their roots aloud; it tells nothing of them."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    said = HKDF(algorithm=SHA256(), length=8, salt=None, info=b"cityward join fingerprint")
    shown = base64.b32encode(said.derive(root)).decode()[:12]
    return "-".join((shown[:4], shown[4:8], shown[8:]))


def _mac(key: bytes, name: str) -> str:
    return hmac.digest(key, name.encode(), "sha256")[:TOKEN_BYTES].hex()
