"""The hub's end of the channel: what of an operator is taken, and what it is answered.

An envelope is taken in an order that survives a kill anywhere: its document, its receipt, then the
link by compare-and-set, then the answer. A node that heard no answer sends the same bytes again,
and what was done already is not done twice.
"""

from __future__ import annotations

import base64
import logging
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cityward import CitywardError, TransientError, Unsafe
from siem.city.authority import Operator, Operators
from siem.city.commons import CITY, TLP, Commons, Rights, Write
from siem.city.intake import INT64, Refused, check, check_version, document_of
from siem.city.known import Link
from siem.city.lease import LINK, Lease
from siem.city.letters import Letters
from siem.city.links import Taken, links
from siem.city.reading import Accessed, accesses
from siem.city.refusals import Audit, Refusals
from siem.city.shares import whole
from siem.sharing.envelope import (
    ADDED,
    BEGIN,
    KINDS,
    Envelope,
    Kind,
    Receipt,
    Signed,
    key_id,
    payload_hash,
    sign,
    verified,
)
from siem.sharing.policy import CLOSEST_TLP
from siem.sharing.wire import Enrolled, Enrolling, Heartbeat, InboxLine, Withdrawal
from siem.store.faults import fault
from siem.store.protocol import TIME_MIN, Conflict, Document, Range

RECEIPT, TOMBSTONE, ANSWER = "receipt", "tombstone", "answer"
"""Kinds of records: what was answered, what was taken back, and what an operator answered to a
request."""
_HASH = re.compile("[0-9a-f]{64}")
PAGE = 500
SAID_MAX = 300
HEARTBEAT_MAX = 64 << 10
LOST_MAX = 200
"""Sources that a heartbeat names as lost."""
CLOCKS_MAX = 50
"""Legal clocks of which a heartbeat tells."""
LOOKED_AGAIN, LOOKED_AT = timedelta(days=1), 500
"""So long after a withdrawal it is made sure that nothing of it came back, of so many at once."""
TAKEN: tuple[Kind, ...] = (
    "share", "update", "withdraw", "heartbeat", "evidence_answer", "proposal_answer", "sample",
)  # fmt: skip
"""What operators may send."""
ALL = Rights(audiences=tuple(CLOSEST_TLP), tlp=TLP[:4])

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Who hears what operators share: the hub's joins."""

    def shared(self, document: Document) -> None:
        """A share is durable; it may have been told before."""
        ...

    def withdrawn(self, operator: str, share_ids: Sequence[str]) -> Mapping[str, Any]:
        """Shares are gone; what rests on them is mended when this returns.

        What it says of that – what was done, what cannot be undone – stands in the receipt.
        """
        ...

    def heard(self, operator: str, heartbeat: Heartbeat) -> None:
        """An operator said that it is there."""
        ...


class Deaf:
    """A listener to whom nothing matters."""

    def shared(self, document: Document) -> None:
        """Nothing."""

    def withdrawn(self, operator: str, share_ids: Sequence[str]) -> Mapping[str, Any]:
        """Nothing rests on them."""
        return {}

    def heard(self, operator: str, heartbeat: Heartbeat) -> None:
        """Nothing."""


class Answered(Protocol):
    """Keeps how a proposal stands at an operator; see `siem/city/proposals.py`."""

    def __call__(self, operator: str, campaign: str, payload: Mapping[str, Any]) -> None:
        """It may have been told before.

        Raises:
            Refused: it is no answer, or of what was not proposed to this operator.
        """
        ...


class Samples(Protocol):
    """Keeps the samples that operators let out; see `siem/city/samples.py`."""

    def take(self, operator: str, envelope: Envelope) -> None:
        """It may have been told before.

        Raises:
            Refused: it is no sample, or may not be passed on.
        """
        ...

    def withdrawn(self, operator: str, id: str) -> int:
        """It is taken back; how many were told of it, 0 also if there is none."""
        ...


class NoSamples:
    """What a hub has that passes none on."""

    def take(self, operator: str, envelope: Envelope) -> None:
        """Refuse it."""
        where = f"operator {operator}"
        raise Refused(403, "this hub passes no samples on", where, "Keep it.")

    def withdrawn(self, operator: str, id: str) -> int:
        """There is none."""
        return 0


class _At(NamedTuple):
    """A link as this hub has read or written it last."""

    taken: Taken
    version: str | None
    is_ours: bool
    """This hub wrote it last, and nothing that it began is half done."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt, and what it is of."""

    hash: str
    payload_sha256: str
    position: int
    answer: str
    at: datetime | None = None


class Tombstone(msgspec.Struct, frozen=True, kw_only=True):
    """That a share was taken back; nothing of what it said."""

    reason: str
    at: datetime
    revision: int = 0
    """Of an expired share: what is newer may come again."""

    def holds(self, revision: int) -> bool:
        """Whether a revision of the share may not come again."""
        return self.reason != "expired" or revision <= self.revision


class _Turn(NamedTuple):
    """An envelope whose turn it is."""

    operator: Operator
    signed: Signed
    envelope: Envelope
    now: datetime

    @property
    def place(self) -> str:
        """Name of its receipt."""
        what = self.envelope.revision or self.envelope.type
        return f"{self.operator.name}/{self.envelope.share_id}/{what}"


class _Done(NamedTuple):
    """What came of it."""

    home: str = ""
    did: Mapping[str, Any] = {}
    counted: Literal["shares", "withdrawals", ""] = ""
    document: Document | None = None
    heartbeat: Heartbeat | None = None


class Exchange:
    """Takes envelopes, answers with receipts, and keeps what operators are sent.

    Args:
        commons: The common store.
        operators: Who may send.
        lease: Whether this hub is the active one.
        audit: Keeps refusals in the audit trail.
        clock: The hub's time.
        listener: Hears what was shared.
    """

    def __init__(
        self,
        commons: Commons,
        operators: Operators,
        lease: Lease,
        audit: Audit,
        clock: Callable[[], datetime],
        listener: Listener | None = None,
    ) -> None:
        self._commons = commons
        self._records = commons.records
        self.operators = operators
        self._lease = lease
        self._audit = audit
        self._refusals = Refusals(audit, clock)
        self._clock = clock
        self.listener: Listener = listener or Deaf()
        self.answered: Answered = _nothing_proposed
        self.samples: Samples = NoSamples()
        self._key: Ed25519PrivateKey = operators.signing_key
        self._key_id = key_id(self._key.public_key())
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._links: dict[str, _At] = {}
        self._buried: dict[tuple[str, str], datetime] | None = None
        """When what was taken back lately; None: not read yet since this hub is active."""
        self.letters = Letters(self._records, lease, self._key, clock)

    # ---- what operators send

    def take(self, operator: str, signed: Signed, known: Operator | None = None) -> Signed:
        """Take one envelope; returns its receipt, which is durable.

        Args:
            operator: Who sends it.
            signed: What it sends.
            known: What is known of the operator, where it was just read.

        Raises:
            Refused: it is not taken, and nothing of it is kept.
            TransientError: this hub is not the active one, or its store does not answer.
        """
        try:
            turn = self._opened(operator, signed, known or self.operators.known(operator))
            with self._turns[operator]:
                return self._taken(turn)
        except Refused as error:
            self.refuse(operator, error)
            with self._turns[operator], suppress(Conflict, TransientError):
                self._count(error, operator)
            raise

    def enrol(self, asked: Enrolling) -> tuple[str, Enrolled]:
        """Admit an operator that brings a token; its name, and what it is answered.

        Raises:
            Unsafe: token or keys are none.
            TransientError: this hub is not the active one, or its store does not answer.
        """
        if asked.seq and not self._lease.is_active:
            raise TransientError("this hub is not the active one", "lease", "Try the other hub.")
        name, enrolled = self.operators.enrol(asked.token, asked.csr, asked.signing_key)
        if not enrolled.seq < asked.seq < INT64 or not _HASH.fullmatch(asked.prev):
            return name, enrolled
        with self._turns[name]:
            self._links.pop(name, None)
            at = self._link(name, self._lease.token)
            if at.taken.seq < asked.seq:
                said = msgspec.structs.replace(at.taken, seq=asked.seq, hash=asked.prev, answer="")
                self._records.put(LINK, name, msgspec.to_builtins(said), at.version)
        what = f"had {enrolled.seq} envelopes of it, goes on behind {asked.seq}"
        self._audit(name, "exchange went on", what, self._clock())
        return name, msgspec.structs.replace(
            enrolled, seq=asked.seq, prev=asked.prev, had=enrolled.seq
        )

    def refuse(self, by: str, error: CitywardError) -> None:
        """Keep a refusal in the audit trail."""
        self._refusals.note(by, error.what, error.where)

    def told(self, by: str, action: str, about: str) -> None:
        """Keep what an operator did, in the audit trail."""
        self._audit(by, action, about, self._clock())

    def _count(self, error: Refused, operator: str) -> None:
        """An operator's page says how much of it was refused."""
        self._links.pop(operator, None)
        found = self._records.get(LINK, operator)
        taken = msgspec.convert(found.value, Taken) if found else None
        if found is not None and taken is not None and taken.fence == self._lease.token:
            said = msgspec.structs.replace(
                taken,
                refused=taken.refused + 1,
                gaps=taken.gaps + bool(error.said.get("is_gap")),
            )
            self._records.put(LINK, operator, msgspec.to_builtins(said), found.version)

    def _opened(self, operator: str, signed: Signed, known: Operator | None) -> _Turn:
        where = f"operator {operator}"
        if known is None or known.state(self._clock()) == "revoked" or not known.signing_key:
            raise Refused(403, "an operator that is not enrolled", where, "Enrol first.")
        check_version(signed)
        try:
            envelope = verified(signed, known.key)
        except Refused:
            raise
        except Unsafe as error:
            raise Refused(403, error.what[:SAID_MAX], error.where or where, error.todo) from error
        now = self._clock()
        check(envelope, known, key_id(known.key), now)
        if envelope.type in KINDS and envelope.type not in TAKEN:
            what = f"a {envelope.type} is not an operator's to send"
            raise Refused(400, what, where, f"Send one of {list(TAKEN)}.")
        return _Turn(known, signed, envelope, now)

    def _taken(self, turn: _Turn) -> Signed:
        token = self._lease.token
        if not token:
            raise TransientError("this hub is not the active one", "lease", "Try the other hub.")
        at = self._link(turn.operator.name, token)
        taken = at.taken
        is_next = turn.envelope.seq == taken.seq + 1 and turn.envelope.prev == taken.hash
        kept = None if is_next and at.is_ours else self._kept(turn, taken)
        if not is_next:
            if kept is None:
                raise _out_of_turn(turn, taken)
            return _signed(kept.answer)
        is_share = turn.envelope.type in ("share", "update")
        try:
            # What rests on a withdrawn share is mended by others, each step by itself.
            with self._commons.together() if is_share else nullcontext():
                done, answer, gone_on = self._in_turn(turn, at, kept)
        except Conflict as error:
            self._undo(turn)
            what = "another hub has taken over"
            raise TransientError(what, "lease", "Try the other hub.") from error
        self._links[turn.operator.name] = gone_on
        fault("exchange-link")
        self._tell(turn, done)
        return answer

    def _in_turn(self, turn: _Turn, at: _At, kept: _Kept | None) -> tuple[_Done, Signed, _At]:
        """Document, receipt, link, in this order."""
        if kept is not None and kept.hash == turn.signed.hash:
            # The kill was between receipt and link; nobody may have heard of it yet.
            done, answer, position = self._before(turn), _signed(kept.answer), kept.position
        else:
            done = self._done_or_not(turn)
            position = at.taken.position + 1
            answer = self._receipt(turn, done, position)
            fault("exchange-receipt")
        return done, answer, self._advance(turn, at, done, answer, position)

    def _link(self, operator: str, token: int) -> _At:
        """The link of an operator; what this hub remembers of it is good for one try.

        Remembered or read, compare-and-set says whether another hub has taken over.
        """
        at = self._links.pop(operator, None)
        if at is not None and at.taken.fence == token:
            return at
        found = self._records.get(LINK, operator)
        if found is None:
            return _At(Taken(fence=token), None, is_ours=False)
        taken = msgspec.convert(found.value, Taken)
        if taken.fence > token:
            raise TransientError("another hub has taken over", "lease", "Try the other hub.")
        return _At(msgspec.structs.replace(taken, fence=token), found.version, is_ours=False)

    def _kept(self, turn: _Turn, taken: Taken) -> _Kept | None:
        """What was answered to these bytes, or to the same share in others, before."""
        hash_, sha = turn.signed.hash, turn.envelope.payload_sha256
        if hash_ == taken.hash and taken.answer:
            return _Kept(
                hash=hash_, payload_sha256=sha, position=taken.position, answer=taken.answer
            )
        if not turn.envelope.share_id:
            return None
        found = self._records.get(RECEIPT, turn.place)
        kept = msgspec.convert(found.value, _Kept) if found else None
        return kept if kept and (kept.hash == hash_ or kept.payload_sha256 == sha) else None

    def _receipt(self, turn: _Turn, done: _Done, position: int) -> Signed:
        """What is answered; durable, if it is of a share."""
        envelope, link = turn.envelope, turn.operator.name
        said = Receipt(
            share_id=envelope.share_id,
            payload_sha256=envelope.payload_sha256,
            operator=link,
            seq=envelope.seq,
            hash=turn.signed.hash,
            position=position,
            index=done.home,
            did=dict(done.did),
        )
        payload = msgspec.to_builtins(said)
        answer = sign(
            Envelope(
                type="receipt", sent=turn.now, operator=CITY, key_id=self._key_id, seq=position,
                prev=BEGIN, payload=payload, payload_sha256=payload_hash(payload),
            ),
            self._key,
        )  # fmt: skip
        if envelope.share_id:
            kept = _Kept(
                hash=turn.signed.hash,
                payload_sha256=envelope.payload_sha256,
                position=position,
                answer=answer.lines().decode(),
                at=turn.now,
            )
            self._keep_receipt(turn.place, msgspec.to_builtins(kept))
        return answer

    def _keep_receipt(self, place: str, kept: Mapping[str, Any]) -> None:
        try:
            self._records.put(RECEIPT, place, kept, None)
        except Conflict:  # seldom: the same revision was shared before, with something else in it
            before = self._records.get(RECEIPT, place)
            self._records.put(RECEIPT, place, kept, before.version if before else None)

    def _advance(
        self,
        turn: _Turn,
        at: _At,
        done: _Done,
        answer: Signed,
        position: int,
    ) -> _At:
        """The link goes on by one, if no other hub has taken over meanwhile."""
        taken, name = at.taken, turn.operator.name
        said = msgspec.structs.replace(
            taken,
            seq=turn.envelope.seq,
            hash=turn.signed.hash,
            position=position,
            heard=turn.now,
            answer=answer.lines().decode(),
            shares=taken.shares + (done.counted == "shares"),
            withdrawals=taken.withdrawals + (done.counted == "withdrawals"),
            refused=taken.refused + ("refused" in done.did),
            beat=turn.now if done.heartbeat else taken.beat,
            heartbeat=done.heartbeat or taken.heartbeat,
        )
        version = self._records.put(LINK, name, msgspec.to_builtins(said), at.version)
        return _At(said, version, is_ours=True)

    def _undo(self, turn: _Turn) -> None:
        """What was taken back while we were stopped must not come back through us."""
        operator, share_id = turn.operator.name, turn.envelope.share_id
        if self._tombstone(operator, share_id) and self._own(operator, share_id):
            self._commons.remove([share_id])

    def _tell(self, turn: _Turn, done: _Done) -> None:
        """What is durable is durable, whatever becomes of who hears of it."""
        try:
            if done.document is not None:
                self.listener.shared(done.document)
            if done.heartbeat is not None:
                self.listener.heard(turn.operator.name, done.heartbeat)
        except Exception:
            log.exception("The hub's joins failed on an envelope of %s.", turn.operator.name)

    # ---- what becomes of an envelope, by its type

    def _done_or_not(self, turn: _Turn) -> _Done:
        """What may not be kept is receipted as refused: the channel must not stop at it."""
        try:
            return self._done(turn)
        except Refused as error:
            self.refuse(turn.operator.name, error)
            return _Done(did={"refused": error.what, "todo": error.todo})

    def _done(self, turn: _Turn) -> _Done:
        match turn.envelope.type:
            case "share" | "update":
                return self._share(turn)
            case "withdraw":
                return self._withdraw(turn)
            case "heartbeat":
                return self._beat(turn)
            case "proposal_answer":
                said = turn.envelope
                self.answered(turn.operator.name, said.share_id, said.payload)
                return _Done()
            case "sample":
                return self._sample(turn)
            case "evidence_answer":
                return self._answered(turn)
            case _:
                what = f"a {turn.envelope.type}, which this hub does not understand"
                where = f"operator {turn.operator.name}"
                raise Refused(400, what, where, "Bring the hub up to date.")

    def _before(self, turn: _Turn) -> _Done:
        """What was done already, as far as the link and the joins do not know it."""
        if turn.envelope.type == "withdraw":
            return _Done(counted="withdrawals")
        there = self._own(turn.operator.name, turn.envelope.share_id)
        return _Done(counted="shares" if there else "", document=there)

    def _share(self, turn: _Turn) -> _Done:
        envelope, operator = turn.envelope, turn.operator.name
        where = f"share {envelope.share_id} of operator {operator}"
        document, passed_over = document_of(envelope, turn.operator, turn.now)
        if tomb := self._tombstone(operator, envelope.share_id):
            if tomb.holds(envelope.revision):
                raise Refused(403, "a share that was taken back", where, "It stays taken back.")
            self._open_tombstone(operator, envelope.share_id)
        write = Write(document, envelope.revision)
        outcome = self._commons.put([write])[0]
        if outcome == "old" and self._is_other(operator, write):
            # The policy has changed, the finding has not.
            self._commons.remove([envelope.share_id])
            outcome = self._commons.put([write])[0]
        if outcome == "refused":
            raise Refused(403, "a share that the store refuses", where, "Its log says why.")
        if outcome == "later":
            raise TransientError("the store is busy", where, "Send it again later.")
        fault("exchange-put")
        month = f"{document['finding.first_seen'].astimezone(UTC):%Y.%m}"
        did = {"passed_over": passed_over} if passed_over else {}
        return _Done(f"cw-shared-{operator}-{month}", did, "shares", document)

    def _sample(self, turn: _Turn) -> _Done:
        envelope, operator = turn.envelope, turn.operator.name
        if self._tombstone(operator, envelope.share_id):
            where = f"sample {envelope.share_id} of operator {operator}"
            raise Refused(403, "a sample that was taken back", where, "It stays taken back.")
        self.samples.take(operator, envelope)
        self._audit(operator, "sample: taken", envelope.share_id, turn.now)
        return _Done()

    def _is_other(self, operator: str, write: Write) -> bool:
        """Whether the hub has this revision of a share with something else in it."""
        there = self._own(operator, write.document["cw.share.id"])
        return (
            there is not None
            and there["cw.share.revision"] == write.revision
            and there != whole(write.document)
        )

    def _own(self, operator: str, share_id: str) -> Document | None:
        return self._commons.get(_own(operator), share_id)

    def _withdraw(self, turn: _Turn) -> _Done:
        envelope, operator = turn.envelope, turn.operator.name
        try:
            said = msgspec.convert(envelope.payload, Withdrawal)
        except msgspec.ValidationError as error:
            what = f"no withdrawal: {error}"[:SAID_MAX]
            raise Refused(400, what, f"share {envelope.share_id}", "Give a reason.") from error
        at = self._bury(operator, envelope.share_id, said.reason, turn.now)
        is_there = self._own(operator, envelope.share_id) is not None
        removed = self._commons.remove([envelope.share_id]) if is_there else 0
        fault("exchange-remove")
        did = dict(self.listener.withdrawn(operator, [envelope.share_id]))
        if told := self.samples.withdrawn(operator, envelope.share_id):
            did["samples_told"] = told
        return _Done(did={"removed": removed, "withdrawn": at, **did}, counted="withdrawals")

    def _beat(self, turn: _Turn) -> _Done:
        try:
            said = msgspec.convert(turn.envelope.payload, Heartbeat)
        except msgspec.ValidationError as error:
            where = f"operator {turn.operator.name}"
            what = f"no heartbeat: {error}"[:SAID_MAX]
            raise Refused(400, what, where, "Update the node.") from error
        if len(turn.signed.data) > HEARTBEAT_MAX:
            where = f"operator {turn.operator.name}"
            raise Refused(413, "a heartbeat that says too much", where, "Update the node.")
        said = msgspec.structs.replace(
            said,
            lost=said.lost[:LOST_MAX],
            clocks=said.clocks[:CLOCKS_MAX],
            hears=tuple(one for one in ADDED if one in said.hears),
        )
        head = {"ledger": said.ledger, "ledger_head": said.ledger_head}
        return _Done(did={"countersigned": head, "takes": ADDED}, heartbeat=said)

    def _answered(self, turn: _Turn) -> _Done:
        envelope = turn.envelope
        value = {
            "type": envelope.type,
            "share_id": envelope.share_id,
            "at": turn.now,
            "payload": envelope.payload,
        }
        with suppress(Conflict):  # a kill was between this and the link
            name = f"{turn.operator.name}/{envelope.seq:012}"
            self._records.put(ANSWER, name, msgspec.to_builtins(value), None)
        return _Done()

    # ---- tombstones

    def _tombstone(self, operator: str, share_id: str) -> Tombstone | None:
        found = self._records.get(TOMBSTONE, f"{operator}/{share_id}")
        return msgspec.convert(found.value, Tombstone) if found else None

    def _bury(
        self, operator: str, share_id: str, reason: str, now: datetime, revision: int = 0
    ) -> datetime:
        """Keep that a share was taken back; returns since when."""
        name = f"{operator}/{share_id}"
        found = self._records.get(TOMBSTONE, name)
        there = msgspec.convert(found.value, Tombstone) if found else None
        if there is not None and (there.reason != "expired" or there.revision >= revision > 0):
            return there.at
        made = msgspec.to_builtins(Tombstone(reason=reason, at=now, revision=revision))
        self._records.put(TOMBSTONE, name, made, found.version if found else None)
        if self._buried is not None:
            self._buried[operator, share_id] = now
        return now

    def _open_tombstone(self, operator: str, share_id: str) -> None:
        found = self._records.get(TOMBSTONE, f"{operator}/{share_id}")
        if found is not None:
            self._records.delete(TOMBSTONE, f"{operator}/{share_id}", found.version)

    def expire(self, now: datetime) -> int:
        """Withdraw what is past its time, as if its operator had; returns how many.

        What was taken back lately is looked for again: a hub that was stopped in the middle of
        taking it, and killed before it saw that another one is active, may have left it.
        """
        if not self._lease.is_active:
            self._buried = None
            return 0
        self._look_again(now)
        count, query = 0, f'cw.share.expires:<"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"'
        while rows := self._commons.search(ALL, query, Range(), limit=PAGE).rows:
            by_operator: defaultdict[str, list[str]] = defaultdict(list)
            for one in rows:
                by_operator[one["cw.operator"]].append(one["cw.share.id"])
            removed = sum(self._expired(*one, now) for one in by_operator.items())
            count += removed
            if not removed:
                break
        return count

    def _expired(self, operator: str, share_ids: Sequence[str], now: datetime) -> int:
        """Withdraw what is past its time; a newer revision that came meanwhile is not."""
        with self._turns[operator]:
            gone = []
            for share_id in share_ids:
                there = self._own(operator, share_id)
                if there is not None and there["cw.share.expires"] < now:
                    self._bury(operator, share_id, "expired", now, there["cw.share.revision"])
                    gone.append(share_id)
            removed = self._commons.remove(gone)
            self.listener.withdrawn(operator, gone)
        return removed

    def _look_again(self, now: datetime) -> None:
        """Remove what was taken back lately and is there all the same, of its operator alone."""
        if self._buried is None:
            self._buried = {}
            for name, one in self._records.all(TOMBSTONE):
                operator, _, share_id = name.partition("/")
                at = msgspec.convert(one.value, Tombstone).at
                self._buried[operator, share_id] = at
        for key, at in list(self._buried.items()):
            if now - at >= LOOKED_AGAIN:
                self._buried.pop(key, None)
        for operator, share_id in list(self._buried)[:LOOKED_AT]:
            with self._turns[operator]:
                there = self._own(operator, share_id)
                tomb = self._tombstone(operator, share_id) if there else None
                if there and tomb and tomb.holds(there["cw.share.revision"]):
                    self._commons.remove([share_id])
            # It comes again behind the others.
            self._buried[operator, share_id] = self._buried.pop((operator, share_id))

    # ---- what is asked of the exchange

    def inbox(self, operator: str, after: int) -> Iterator[InboxLine]:
        """What was left for an operator behind a number, as far as its node understands it."""
        found = self._records.get(LINK, operator)
        hears = msgspec.convert(found.value, Taken).heartbeat.hears if found else ()
        return self.letters.inbox(operator, after, hears)

    def mirror(self, operator: str) -> Iterator[Mapping[str, Any]]:
        """What the hub holds of an operator, with the hashes that its ledger has too."""
        place, skip = TIME_MIN, 0
        while True:
            rows = self._commons.search(
                _own(operator), "", Range(place), "finding.last_seen", PAGE, skip
            ).rows
            for one in rows:
                skip = skip + 1 if one["finding.last_seen"] == place else 1
                place = one["finding.last_seen"]
                name = f"{operator}/{one['cw.share.id']}/{one['cw.share.revision']}"
                found = self._records.get(RECEIPT, name)
                yield {
                    "share_id": one["cw.share.id"],
                    "revision": one["cw.share.revision"],
                    "payload_sha256": found.value["payload_sha256"] if found else "",
                }
            if len(rows) < PAGE:
                return

    def accesses(self, operator: str) -> Iterator[Accessed]:
        """Who read what an operator shared."""
        return accesses(self._records, operator)

    def links(self) -> list[Link]:
        """Every operator, as the hub knows it."""
        return links(self.operators, self._records, self._clock())


def _nothing_proposed(operator: str, campaign: str, payload: Mapping[str, Any]) -> None:
    where = f"operator {operator}"
    raise Refused(403, "an answer to what was not proposed", where, "Answer what was.")


def _own(operator: str) -> Rights:
    """An operator sees what is its own, whatever its audiences."""
    return Rights(audiences=(), tlp=(), own=operator, operators=(operator,))


def _signed(answer: str) -> Signed:
    signature, _, data = answer.partition("\n")
    return Signed(data.removesuffix("\n").encode(), base64.b64decode(signature))


def _out_of_turn(turn: _Turn, taken: Taken) -> Refused:
    seq = turn.envelope.seq
    where = f"envelope {seq} of operator {turn.operator.name}"
    expected = {"seq": taken.seq + 1, "prev": taken.hash}
    if seq > taken.seq + 1:
        what = f"a gap: envelope {taken.seq + 1} did not come"
        todo = "Send it first."
    elif seq <= taken.seq:
        what = f"envelope {taken.seq} was taken already, and this one is another"
        todo = "Was the node set back, or does another one use its key? Then enrol again."
    else:
        what = "it does not follow the envelope before it"
        todo = "Does another node use the key of this one? Then enrol again."
    return Refused(409, what, where, todo, expected=expected, is_gap=seq > taken.seq + 1)
