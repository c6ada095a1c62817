"""Protected samples that operators let out: the hub checks them, keeps them, and passes them on.

A sample of a rule that all operators share goes to all the others, under an id of the hub's own:
who got one cannot take it back in the name of who released it. Whose it is they are told if its
operator says so; else by a name that stands for it, another one for each who is told. What is
taken back goes from the records and the letters, and all who were told are told.
"""

from __future__ import annotations

import hmac
import uuid
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import msgspec

from cityward import TransientError, Unsafe
from siem.city.commons import Records
from siem.city.intake import Refused
from siem.city.letters import Letters
from siem.city.refusals import Rate
from siem.sharing.envelope import Envelope
from siem.sharing.samples import (
    AUDIENCE,
    EXPIRES_WITHIN,
    MARKING,
    Words,
    checked,
    no_words,
    plain,
)
from siem.sharing.wire import Withdrawal
from siem.store.faults import fault
from siem.store.protocol import Conflict
from siem.store.samples import OF_OPERATOR_MAX, OF_RULE_MAX

SAMPLE = "sample"
"""Kind of the records of what operators let out."""
TRIES = 5
LOOKED_EVERY = timedelta(minutes=1)
"""With 4,000 samples it takes 0.7 s to look through them."""
A_DAY, AT_ONCE = OF_OPERATOR_MAX, 2 * OF_OPERATOR_MAX
"""New samples of an operator: who lets out and takes back again and again would fill the letters
of all others, in which campaigns are told, too."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A sample, and who was told of it."""

    operator: str
    id: str
    """As its operator calls it."""
    rule: str
    payload: dict[str, Any]
    """Empty once it is taken back."""
    payload_sha256: str
    at: datetime
    expires: datetime
    is_gone: bool = False
    told: dict[str, int] = {}
    """Operators, and the number of the letter that has it; 0: perhaps none was left yet."""


class Samples:
    """Takes samples, and passes them on; of the active process.

    Args:
        records: The hub's memory.
        letters: Leaves envelopes for operators.
        operators: Names of all that may be told, and would understand it.
        library: Ids of the rules that all operators share.
        secret: Of the hub: makes the ids and names under which samples are passed on.
        clock: The hub's time.
        words_of: What one of these rules says itself, so that samples of it may.
    """

    def __init__(
        self,
        records: Records,
        letters: Letters,
        operators: Callable[[], Sequence[str]],
        library: Callable[[], Container[str]],
        secret: bytes,
        clock: Callable[[], datetime],
        words_of: Callable[[str], Words] = no_words,
    ) -> None:
        self._records = records
        self._words_of = words_of
        self._letters = letters
        self._operators = operators
        self._library = library
        self._secret = hmac.digest(secret, b"samples", "sha256")
        self._clock = clock
        self._changes = 0
        self._looked: tuple[int, Sequence[str]] | None = None
        """What was so when all was looked through last …"""
        self._again = clock()
        """… and until when that is enough, if nothing is new."""
        self._rate = Rate(A_DAY / 86_400, AT_ONCE, lambda: clock().timestamp())

    # ---- what operators send

    def take(self, operator: str, envelope: Envelope) -> None:
        """Keep a sample; the same one again changes nothing.

        Raises:
            Refused: it is none, or may not be passed on.
        """
        where = f"sample {envelope.share_id} of operator {operator}"
        now = self._clock()
        _check_marks(envelope, now, where)
        try:
            said = checked(envelope.payload, where, self._words_of)
        except Unsafe as error:
            raise Refused(400, error.what, error.where, error.todo) from error
        if said.operator:
            raise Refused(403, "a sample that says whose it is", where, "The hub says it.")
        if said.rule not in self._library():
            todo = "Only of rules that all operators share."
            raise Refused(403, "a sample of a rule that is not shared", where, todo)
        name = f"{operator}/{envelope.share_id}"
        if found := self._records.get(SAMPLE, name):
            if msgspec.convert(found.value, Kept).payload_sha256 != envelope.payload_sha256:
                raise Refused(403, "another sample of this id", where, "Take it back first.")
            return
        self._check_room(operator, said.rule, where)
        assert envelope.expires is not None
        kept = Kept(
            operator=operator,
            id=envelope.share_id,
            rule=said.rule,
            payload=plain(said),  # what was looked at, and no more
            payload_sha256=envelope.payload_sha256,
            at=now,
            expires=envelope.expires,
        )
        with suppress(Conflict):  # a kill was between this and the link
            self._records.put(SAMPLE, name, msgspec.to_builtins(kept), None)
        self._changes += 1
        fault("sample-kept")

    def _check_room(self, operator: str, rule: str, where: str) -> None:
        there = [one for _, one, _ in self._all() if one.operator == operator and not one.is_gone]
        of_rule = sum(one.rule == rule for one in there)
        if of_rule >= OF_RULE_MAX or len(there) >= OF_OPERATOR_MAX:
            what = f"{of_rule} samples of this rule are kept, {len(there):,} of this operator"
            raise Refused(403, what, where, "Take some back; they end by themselves, too.")
        if not self._rate.allows(operator):
            raise Refused(403, f"more than {A_DAY} new samples a day", where, "Wait a day.")

    def withdrawn(self, operator: str, id: str) -> int:
        """Let go of what a sample says; who was told of it is told by the next `step`.

        Returns:
            How many operators were told of it; 0 also if there is none.
        """
        name = f"{operator}/{id}"
        for _ in range(TRIES):
            found = self._records.get(SAMPLE, name)
            if found is None:
                return 0
            kept = msgspec.convert(found.value, Kept)
            gone = msgspec.structs.replace(kept, is_gone=True, payload={})
            with suppress(Conflict):  # it is passed on at this moment
                self._records.put(SAMPLE, name, msgspec.to_builtins(gone), found.version)
                self._changes += 1
                return len(kept.told)
        raise TransientError("a record that changes all the time", name, "It comes again.")

    # ---- what operators are told

    def step(self) -> int:
        """Pass on what is new, and that something is gone; returns how many letters were left.

        It looks through all samples if one came or went, or who is told, and now and then.
        """
        now, count = self._clock(), 0
        operators = list(self._operators())
        seen = (self._changes, operators)
        if seen == self._looked and self._again - LOOKED_EVERY <= now < self._again:
            return 0
        for name, kept, version in list(self._all()):
            if kept.is_gone or kept.expires <= now:
                count += self._end(name, kept, version, is_over=not kept.is_gone)
                continue
            for receiver in operators:
                if receiver != kept.operator and not kept.told.get(receiver):
                    count += self._pass_on(name, receiver)
        self._looked, self._again = seen, now + LOOKED_EVERY
        return count

    def _pass_on(self, name: str, receiver: str) -> bool:
        """Leave it for an operator, who is noted before: whatever is killed, it can be told more.

        Again after a kill it may get a second letter, which says the same to it.
        """
        kept = self._note(name, receiver, 0)
        if kept is None or kept.is_gone:
            return False
        fault("sample-before-letter")
        said = {**kept.payload, "operator": self._called(kept, receiver)}
        number = self._letters.send(
            receiver, "sample", said, share_id=self._outward(kept), audiences=(AUDIENCE,),
            tlp=MARKING, pap=MARKING, expires=kept.expires,
        )  # fmt: skip
        fault("sample-after-letter")
        self._note(name, receiver, number)
        return True

    def _end(self, name: str, kept: Kept, version: str, *, is_over: bool) -> int:
        """Nothing of it stays in the letters; who was told of it is told, unless it knows."""
        count, id = 0, self._outward(kept)
        for receiver, number in kept.told.items():
            if number:
                self._letters.blank(receiver, number)
            if not is_over:  # its end stood in it
                said = msgspec.to_builtins(Withdrawal(reason="consent"))
                self._letters.send(receiver, "withdraw", said, share_id=id)
                count += 1
            fault("sample-end")
        with suppress(Conflict):  # it was taken back at this moment: the next round says so
            self._records.delete(SAMPLE, name, version)
        return count

    def _note(self, name: str, receiver: str, number: int) -> Kept | None:
        """Note that an operator is told, by the letter of that number; None: it is gone."""
        for _ in range(TRIES):
            found = self._records.get(SAMPLE, name)
            if found is None:
                return None
            kept = msgspec.convert(found.value, Kept)
            kept = msgspec.structs.replace(kept, told={**kept.told, receiver: number})
            with suppress(Conflict):  # it was taken back at this moment
                self._records.put(SAMPLE, name, msgspec.to_builtins(kept), found.version)
                return kept
        raise TransientError("a record that changes all the time", name, "It comes again.")

    def _outward(self, kept: Kept) -> str:
        """The id under which it is passed on."""
        made = hmac.digest(self._secret, f"{kept.operator}\0{kept.id}".encode(), "sha256")
        return str(uuid.UUID(bytes=made[:16], version=4))

    def _called(self, kept: Kept, receiver: str) -> str:
        """Who released it, as a receiver is told."""
        if kept.payload.get("is_named"):
            return kept.operator
        made = hmac.digest(self._secret, f"{kept.operator}\0{receiver}".encode(), "sha256")
        return f"operator-{made.hex()[:8]}"

    def _all(self) -> Iterator[tuple[str, Kept, str]]:
        for name, one in self._records.all(SAMPLE):
            yield name, msgspec.convert(one.value, Kept), one.version


def _check_marks(envelope: Envelope, now: datetime, where: str) -> None:
    if (envelope.audiences, envelope.tlp) != ((AUDIENCE,), MARKING):
        todo = f"Mark it {MARKING}, for {AUDIENCE}."
        raise Refused(403, "a sample that not all operators may read", where, todo)
    expires = envelope.expires
    if expires is None or not now < expires < now + EXPIRES_WITHIN:
        raise Refused(400, "a sample that is over, or never ends", where, "Say until when.")
