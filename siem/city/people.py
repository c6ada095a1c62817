"""People of a hub with a standby: who may sign in stands in the common store, too.

Each hub has people in its own `node.db`; the newer of two versions of a person wins on both. The
records are sealed with a key that only the hubs have, so that who can write to the cluster makes
nobody a CISO.
"""

from __future__ import annotations

import hmac
import logging
from contextlib import suppress
from typing import Any

import msgspec

from siem.city.commons import Records, Versioned
from siem.store.accounts import Accounts
from siem.store.protocol import Conflict, Person
from siem.store.trail import Proof

PERSON, HEAD = "person", "audit-head"

log = logging.getLogger(__name__)


class People:
    """Keeps the people of this hub and those in the common store alike.

    Args:
        accounts: Of this hub.
        records: The hub's memory.
        key: What all hubs of the city have, and nobody else.
    """

    def __init__(self, accounts: Accounts, records: Records, key: bytes) -> None:
        self._accounts = accounts
        self._records = records
        self._key = hmac.digest(key, b"people", "sha256")

    def step(self) -> None:
        """Take what is newer there, and leave there what is newer here."""
        there = dict(self._records.all(PERSON))
        for person in self._accounts.people():
            kept = there.pop(person.name, None)
            other = self._read(kept) if kept else None
            if other is None or other.epoch < person.epoch:
                self._leave(person, kept)
            elif _said(other) != _said(person):
                self._accounts.add(other)
        for kept in there.values():
            if (other := self._read(kept)) is not None:
                self._accounts.add(other)

    def leave_head(self, holder: str, proof: Proof) -> None:
        """Leave the head of this hub's audit trail where this hub alone cannot change it."""
        found = self._records.get(HEAD, holder)
        value = {"lines": proof.lines, "head": proof.head}
        with suppress(Conflict):
            self._records.put(HEAD, holder, value, found.version if found else None)

    def _leave(self, person: Person, kept: Versioned | None) -> None:
        said = _said(person)
        value = {"person": said, "seal": self._seal(said)}
        with suppress(Conflict):  # the other hub was first, and is looked at in the next turn
            self._records.put(PERSON, person.name, value, kept.version if kept else None)

    def _read(self, kept: Versioned) -> Person | None:
        """A person as another hub left them; None if no hub did."""
        said = kept.value.get("person")
        if not hmac.compare_digest(str(kept.value.get("seal")), self._seal(said)):
            log.error("A person in the common store was written by no hub; passed over.")
            return None
        return msgspec.convert(said, Person)

    def _seal(self, said: Any) -> str:
        data = msgspec.json.encode(said, order="sorted")
        return hmac.new(self._key, data, "sha256").hexdigest()


def _said(person: Person) -> dict[str, Any]:
    said: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(person, seen=None))
    return said
