"""What the hub says to operators: envelopes of its own, signed, in a chain for each of them.

An operator fetches them; nothing at an operator listens for the city.
"""

from __future__ import annotations

import base64
import threading
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cityward import TransientError
from siem.city.commons import CITY, Records
from siem.city.lease import OUT, Lease
from siem.sharing.envelope import (
    ADDED,
    BEGIN,
    Envelope,
    Kind,
    Signed,
    key_id,
    payload_hash,
    sign,
)
from siem.sharing.wire import InboxLine, Withdrawal
from siem.store.faults import fault
from siem.store.protocol import Conflict

LETTER = "letter"
"""Kind of the records of what operators were sent."""
LETTERS_MAX = 10_000
"""Kept for an operator; as many as it keeps itself."""
INBOX_MAX, INBOX_BYTES = 200, 4 << 20
"""Envelopes in one answer, and their bytes."""


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub remembers of the envelopes that it has sent to one operator."""

    fence: int
    seq: int = 0
    hash: str = BEGIN


class _Typed(msgspec.Struct):
    type: str


class Letters:
    """Envelopes to operators.

    Args:
        records: The hub's memory.
        lease: Whether this hub is the active one.
        key: Signs.
        clock: The hub's time.
    """

    def __init__(
        self,
        records: Records,
        lease: Lease,
        key: Ed25519PrivateKey,
        clock: Callable[[], datetime],
    ) -> None:
        self._records = records
        self._lease = lease
        self._key = key
        self._clock = clock
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def send(
        self,
        operator: str,
        kind: Kind,
        payload: Mapping[str, Any],
        *,
        share_id: str = "",
        revision: int = 0,
        audiences: Sequence[str] = (),
        tlp: str = "",
        pap: str = "",
        expires: datetime | None = None,
        derived_from: Sequence[str] = (),
    ) -> int:
        """Leave an envelope for an operator; durable when this returns its number.

        Raises:
            TransientError: this hub is not the active one, or its store does not answer.
            Unsafe: it is too large.
        """
        plain = msgspec.to_builtins(dict(payload))
        with self._turns[operator]:
            while True:
                sent, version = self._sent(operator)
                signed = sign(
                    Envelope(
                        type=kind, sent=self._clock(), operator=CITY,
                        key_id=key_id(self._key.public_key()), seq=sent.seq + 1, prev=sent.hash,
                        share_id=share_id, revision=revision, audiences=tuple(audiences), tlp=tlp,
                        pap=pap, expires=expires, derived_from=tuple(derived_from),
                        payload=plain, payload_sha256=payload_hash(plain),
                    ),
                    self._key,
                )  # fmt: skip
                if self._is_left(operator, sent, version, signed):
                    return sent.seq + 1

    def inbox(
        self, operator: str, after: int, hears: Container[str] = ADDED
    ) -> Iterator[InboxLine]:
        """What was left for an operator behind a number, in order, as much as one answer holds.

        A node that was set back to an older version may not understand (`hears`) a letter any more,
        and would fetch nothing behind it: it gets a withdrawal in its place.
        """
        size, sent = 0, self._records.get(OUT, operator)
        after = max(after, sent.value["seq"] - LETTERS_MAX if sent else 0)
        for n in range(after + 1, after + 1 + INBOX_MAX):
            found = self._records.get(LETTER, _name(operator, n))
            if found is None or size > INBOX_BYTES:
                return
            kept = found.value
            kind = msgspec.json.decode(kept["data"], type=_Typed).type
            if kind in ADDED and kind not in hears:
                kept = self._blanked(kept)
            size += len(kept["data"])
            yield InboxLine(n, kept["signature"], kept["data"])

    def blank(self, operator: str, n: int) -> None:
        """Let go of what a letter said; who has not fetched it gets a withdrawal in its place.

        It keeps its number and what it follows; what follows it names the bytes that were there.
        """
        found = self._records.get(LETTER, _name(operator, n))
        if found is None:
            return
        with suppress(Conflict):  # it is forgotten at this moment
            self._records.put(LETTER, _name(operator, n), self._blanked(found.value), found.version)

    def _blanked(self, letter: Mapping[str, str]) -> dict[str, str]:
        """A withdrawal in the place of a letter."""
        said = msgspec.json.decode(letter["data"], type=Envelope)
        payload = msgspec.to_builtins(Withdrawal(reason="consent"))
        made = Envelope(
            type="withdraw", sent=said.sent, operator=CITY,
            key_id=key_id(self._key.public_key()), seq=said.seq, prev=said.prev,
            share_id=said.share_id, payload=payload, payload_sha256=payload_hash(payload),
        )  # fmt: skip
        return _kept(sign(made, self._key))

    def _sent(self, operator: str) -> tuple[Sent, str | None]:
        token = self._lease.token
        if not token:
            raise TransientError("this hub is not the active one", "lease", "Try the other hub.")
        found = self._records.get(OUT, operator)
        sent = msgspec.convert(found.value, Sent) if found else Sent(fence=token)
        if sent.fence > token:
            raise TransientError("another hub has taken over", "lease", "Try the other hub.")
        return msgspec.structs.replace(sent, fence=token), found.version if found else None

    def _is_left(self, operator: str, sent: Sent, version: str | None, signed: Signed) -> bool:
        """Whether it was; not if a kill had left one of this number, which is counted now."""
        name, is_ours = _name(operator, sent.seq + 1), True
        try:
            self._records.put(LETTER, name, _kept(signed), None)
        except Conflict:
            found = self._records.get(LETTER, name)
            is_ours = False
            if found is not None:
                signed = Signed(
                    found.value["data"].encode(), base64.b64decode(found.value["signature"])
                )
        fault("exchange-letter")
        said = msgspec.structs.replace(sent, seq=sent.seq + 1, hash=signed.hash)
        try:
            self._records.put(OUT, operator, msgspec.to_builtins(said), version)
        except Conflict as error:
            what = "another hub has taken over"
            raise TransientError(what, "lease", "Try the other hub.") from error
        self._forget(operator, said.seq - LETTERS_MAX)
        return is_ours

    def _forget(self, operator: str, n: int) -> None:
        found = self._records.get(LETTER, _name(operator, n)) if n > 0 else None
        if found is not None:
            with suppress(Conflict):
                self._records.delete(LETTER, _name(operator, n), found.version)


def _kept(signed: Signed) -> dict[str, str]:
    """A letter, as it is kept."""
    return {
        "signature": base64.b64encode(signed.signature).decode(),
        "data": signed.data.decode(),
    }


def _name(operator: str, n: int) -> str:
    return f"{operator}/{n:012}"
