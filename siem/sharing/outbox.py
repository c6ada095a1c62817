"""The outbox: which findings wait to leave, in which order, and how one becomes an envelope.

What leaves is made of the finding as it is, by the policy as it is, at the moment of sending; the
number, the hash of the envelope before it, the signature and the line of the ledger are made in
that same transaction. One envelope is on its way at a time; after a kill its very bytes go again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cityward import Unsafe
from cityward.finding import SEVERITIES
from siem.sharing.envelope import (
    ADDED,
    Envelope,
    Kind,
    Receipt,
    Signed,
    key_id,
    payload_hash,
    sign,
)
from siem.sharing.envelope import verified as opened
from siem.sharing.policy import Samples
from siem.sharing.samples import AUDIENCE, MARKING, ends_at
from siem.sharing.share import Share, share_id
from siem.sharing.wire import Heartbeat, ProposalAnswer, Withdrawal
from siem.store.faults import fault
from siem.store.outgoing import TERMINAL, Desk, Line, OutgoingStore, Shared, Waiting
from siem.store.proposals import Proposed
from siem.store.protocol import Document
from siem.store.samples import SAMPLES, Release

CHANGES_AT_ONCE = 50
"""So few that the path, which writes to the same file, never waits for long."""
UPDATE_EVERY = timedelta(minutes=1)
"""A finding that grows is sent again so often at most, unless it became more severe."""
HEARTBEAT_EVERY = timedelta(minutes=1)
TRIED_AT_ONCE = 100
"""So many findings are judged in one transaction, if none of them is to be sent."""
PERSONS = {"auto": 0, "person": 1, "two_person": 2}
"""Who must say yes, counted."""

log = logging.getLogger(__name__)


class Policy(Protocol):
    """A sharing policy, as the outbox sees it."""

    @property
    def hash(self) -> str:
        """Of its content."""
        ...

    @property
    def answers(self) -> str:
        """How much the city is told of what becomes of its proposals: see `ANSWERS`."""
        ...

    @property
    def samples(self) -> Samples:
        """What it says of protected samples."""
        ...

    def share(self, document: Document, now: datetime) -> Share | None:
        """What may leave of a finding; None: nothing."""
        ...


class Outbox:
    """Makes envelopes of what waits; one thread uses it.

    Args:
        store: The tables in `node.db`.
        operator: Who sends.
        key: Signs.
        policy: The policy in force now; None: nothing leaves but heartbeats.
        health: What a heartbeat says of the node, but for what the outbox knows itself.
        clock: The node's time.
    """

    def __init__(
        self,
        store: OutgoingStore,
        operator: str,
        key: Ed25519PrivateKey,
        policy: Callable[[], Policy | None],
        *,
        health: Callable[[], Heartbeat] = Heartbeat,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.store = store
        self.operator = operator
        self._key = key
        self._key_id = key_id(key.public_key())
        self._policy = policy
        self._health = health
        self._clock = clock
        self._beat: datetime | None = None
        self._room = 0
        store.begin()

    # ---- what waits

    def offer(self) -> int:
        """Look at findings that were written since the last time; returns how many."""
        policy = self._policy()
        if not self.store.has_changes():
            return 0
        if policy is None:
            if not self.store.had_policy():
                self.store.begin(anew=True)
            return 0
        now = self._clock()
        with self.store.desk() as desk:
            desk.policy(policy.hash, now)
            changed = desk.changes(CHANGES_AT_ONCE)
            for one in changed:
                self._offered(desk, policy, one, now)
            self._room -= len(changed)
            if self._room < 0:  # to count a million takes longer than to offer some
                dropped, self._room = desk.bound()
                if dropped:
                    log.error("The outbox is full: %d findings will not be sent.", dropped)
            fault("offer-before-commit")
        return len(changed)

    def _offered(self, desk: Desk, policy: Policy, finding: str, now: datetime) -> None:
        document = desk.finding(finding)
        if document is None:
            return
        before = desk.shared(share_id(finding))
        if before is not None and before.state == "withdrawn":
            return
        share = _judged(policy, document, now)
        if share is None:
            self._not_any_more(desk, share_id(finding), before, now)
            return
        rank = SEVERITIES.index(document["finding.severity"])
        grew = before is not None and rank <= before.rank
        desk.offer(
            Waiting(
                share_id=share.share_id,
                finding=finding,
                rank=rank,
                offered=now,
                due=before.sent + UPDATE_EVERY if before and grew else now,
                policy=share.policy,
                rule=share.rule,
            )
        )

    def _not_any_more(self, desk: Desk, id: str, before: Shared | None, now: datetime) -> None:
        """The policy lets it out no more: what waits goes, what was shared is taken back."""
        if before is None:
            desk.drop(id)
        else:
            desk.take_back(before, "consent", "the policy lets it out no more", now)

    # ---- what is sent

    def next(self) -> Signed | None:
        """The envelope to send now: the one on its way, else a new one; None: nothing is due."""
        now = self._clock()
        is_beat_due = self._is_beat_due(now)
        is_due = self.store.has_due(now)
        if not (is_beat_due or is_due or self._has_answer() or self._has_release()):
            return None
        health = self._said(now) if is_beat_due else None
        policy = self._policy()
        with self.store.desk() as desk:
            if line := desk.on_the_way():
                return Signed(line.data, line.signature)
            if policy is not None:
                desk.policy(policy.hash, now)
            signed = self._made(desk, policy, health, now)
            fault("seal-before-commit")
        fault("seal-after-commit")
        if signed is not None and health is not None:
            self._beat = now
        return signed

    def _made(
        self, desk: Desk, policy: Policy | None, health: Heartbeat | None, now: datetime
    ) -> Signed | None:
        if health is not None:
            head = desk.head()
            health = msgspec.structs.replace(health, ledger=head.seq, ledger_head=head.chain)
            return self._sealed(desk, "heartbeat", _plain(health), now)
        if policy is not None and policy.answers != "none" and (one := desk.next_answer()):
            return self._answer(desk, policy, one, now)
        if signed := self._released(desk, policy, now):
            return signed
        for _ in range(TRIED_AT_ONCE):
            waits = desk.next(now)
            if waits is None:
                return None
            if waits.kind == "withdraw":
                desk.drop(waits.share_id)
                said = Withdrawal(reason=waits.reason, note=waits.note)  # type: ignore[arg-type]
                return self._sealed(desk, "withdraw", _plain(said), now, waits=waits)
            if policy is None:
                return None
            if signed := self._shared(desk, policy, waits, now):
                return signed
        return None

    def _shared(self, desk: Desk, policy: Policy, waits: Waiting, now: datetime) -> Signed | None:
        """The envelope of a finding; None if it is not to be sent, or not yet."""
        document = desk.finding(waits.finding)
        before = desk.shared(waits.share_id)
        share = _judged(policy, document, now) if document is not None else None
        if document is None:
            desk.drop(waits.share_id)
            return None
        if share is None:
            self._not_any_more(desk, waits.share_id, before, now)
            return None
        approvers = desk.approvers(share.share_id, share.policy, share.rule)
        if not _is_approved(share, approvers):
            desk.hold(share.share_id, share.policy, share.rule)
            return None
        desk.drop(share.share_id)
        if before is not None:
            content = (payload_hash(share.payload), _marks(share))
            if (before.payload_sha256, before.marks) == content:
                return None
            # The hub keeps what is newer, also where only its marks are other ones.
            newer = max(share.revision, before.revision + 1)
            share = msgspec.structs.replace(share, revision=newer)
        rank = SEVERITIES.index(document["finding.severity"])
        try:
            return self._sealed(
                desk, "update" if before else "share", share.payload, now,
                waits=waits, share=share, approvers=approvers, rank=rank,
            )  # fmt: skip
        except Unsafe as error:
            log.error("Finding %s cannot be shared: %s.", share.finding, error)
            return None

    def _has_answer(self) -> bool:
        """Whether the city is to be told what became of a proposal, and may be."""
        if not self.store.has_answer():
            return False
        policy = self._policy()
        return policy is not None and policy.answers != "none"

    def _answer(self, desk: Desk, policy: Policy, one: Proposed, now: datetime) -> Signed:
        """What became of a proposal: a state, and a reason of a list if the policy lets it out."""
        why = one.why if policy.answers == "reason" else ""
        said = ProposalAnswer(proposal=one.id, state=one.state, why=why)
        waits = Waiting(
            share_id=one.campaign, finding=one.finding, rank=0, offered=now, due=now,
            policy=policy.hash, rule="answers",
        )  # fmt: skip
        signed = self._sealed(desk, "proposal_answer", _plain(said), now, waits=waits)
        desk.set_answered(one, desk.head().seq)
        return signed

    def _has_release(self) -> bool:
        """Whether the hub is to be told of a sample, or that one is taken back."""
        policy = self._policy()
        return self.store.has_release(policy.hash if policy else "")

    def _released(self, desk: Desk, policy: Policy | None, now: datetime) -> Signed | None:
        """The envelope of a sample that people let out, or of its withdrawal."""
        if policy is not None:
            _hold_against(desk, policy, now)
        while one := desk.samples.next(may_leave=policy is not None):
            if one.state == "withdraw":
                taken_back = Withdrawal(reason=one.why)  # type: ignore[arg-type]
                return self._sample(desk, one, "withdraw", _plain(taken_back), None, now)
            assert policy is not None
            if not _is_enough(policy.samples.people, one.people):
                desk.samples.hold(one.id, "approval", now)
                continue
            if "sample" not in desk.takes():
                desk.samples.hold(one.id, "older", now)
                continue
            payload = msgspec.json.decode(one.payload)
            share = Share(
                share_id=one.id, finding=one.finding, revision=0, policy=policy.hash,
                rule=SAMPLES, audiences=(AUDIENCE,), tlp=MARKING, pap=MARKING,
                expires=ends_at(now, policy.samples.retention), payload=payload, kept=(),
            )  # fmt: skip
            return self._sample(desk, one, "sample", payload, share, now)
        return None

    def _sample(
        self,
        desk: Desk,
        one: Release,
        kind: Kind,
        payload: dict[str, Any],
        share: Share | None,
        now: datetime,
    ) -> Signed:
        waits = Waiting(
            share_id=one.id, finding=one.finding, rank=0, offered=now, due=now,
            policy=one.policy, rule=SAMPLES,
        )  # fmt: skip
        fields = {name for event in payload.get("events", ()) for name in event}
        signed = self._sealed(
            desk, kind, payload, now, waits=waits, share=share, approvers=one.people,
            fields=tuple(sorted(fields or payload)),
        )  # fmt: skip
        desk.samples.set_sent(one, desk.head().seq, now, share.expires if share else None)
        return signed

    def _sealed(
        self,
        desk: Desk,
        kind: Kind,
        payload: dict[str, Any],
        now: datetime,
        *,
        waits: Waiting | None = None,
        share: Share | None = None,
        approvers: tuple[str, ...] = (),
        rank: int = 0,
        fields: tuple[str, ...] = (),
    ) -> Signed:
        head = desk.head()
        envelope = Envelope(
            type=kind,
            sent=now,
            operator=self.operator,
            key_id=self._key_id,
            seq=head.seq + 1,
            prev=head.hash,
            share_id=waits.share_id if waits else "",
            revision=share.revision if share else 0,
            policy=share.policy if share else waits.policy if waits else "",
            rule=share.rule if share else waits.rule if waits else "",
            audiences=share.audiences if share else (),
            tlp=share.tlp if share else "",
            pap=share.pap if share else "",
            expires=share.expires if share else None,
            payload=payload,
            payload_sha256=payload_hash(payload),
        )
        signed = sign(envelope, self._key)
        desk.append(
            Line(
                seq=envelope.seq, type=kind, share_id=envelope.share_id,
                finding=waits.finding if waits else "", policy=envelope.policy,
                rule=envelope.rule, approvers=approvers,
                fields=fields or tuple(sorted(payload)),
                sent=now, data=signed.data, signature=signed.signature, hash=signed.hash,
                chain="", state="sent",
            )
        )  # fmt: skip
        if share is not None and kind != "sample":
            desk.set_shared(
                Shared(
                    share_id=share.share_id, finding=share.finding, state="shared",
                    policy=share.policy, rule=share.rule, rank=rank,
                    payload_sha256=envelope.payload_sha256, marks=_marks(share),
                    revision=share.revision, seq=envelope.seq, sent=now,
                )
            )  # fmt: skip
        return signed

    # ---- what the hub answers

    def receipted(self, receipt: Signed, hub: Ed25519PublicKey) -> Receipt:
        """Keep the receipt of an envelope.

        Raises:
            Unsafe: it is none of the hub, or of an envelope of ours.
        """
        said = receipt_of(receipt, hub)
        with self.store.desk() as desk:
            line = desk.line(said.seq)
            if line is None:
                raise Unsafe("a receipt of what was not sent", f"seq {said.seq}", "Ask the hub.")
            check_receipt(said, line, self.operator)
            desk.set_receipt(line.seq, receipt.data, receipt.signature, self._clock())
            refused = str(said.did.get("refused", ""))
            if line.type == "heartbeat":
                desk.set_takes([one for one in ADDED if one in said.did.get("takes", ())])
            if line.type == "sample":
                desk.samples.receipted(line.seq, refused, self._clock())
            fault("receipt-before-commit")
        fault("receipt-after-commit")
        if refused:
            log.error("The hub does not keep share %s: %s.", said.share_id, refused)
        return said

    def again(self) -> bool:
        """What the hub refused is sealed anew, if that may help; False: its bytes stay as they are.

        It helps where they were signed with a key that was lost since, or by a clock that was ahead
        and was put right, or where the hub was set back to a version that does not know the type:
        that waits until it says that it does. The line stays in the ledger as refused, and what
        follows has its number.
        """
        now = self._clock()
        with self.store.desk() as desk:
            line = desk.on_the_way()
            if line is None:
                return False
            said = msgspec.json.decode(line.data, type=Envelope)
            is_unknown = line.type in ADDED
            if said.key_id == self._key_id and line.sent <= now and not is_unknown:
                return False
            if is_unknown:
                desk.set_takes(())
            desk.set_aside(line, said.prev, _waiting_again(desk, line, said, now))
            desk.answer_again(line.seq - 1)
            desk.samples.again(line.seq - 1)
        log.warning("Envelope %d was refused for good, and is sealed anew.", line.seq)
        return True

    # ---- heartbeats

    def _is_beat_due(self, now: datetime) -> bool:
        return self._beat is None or not timedelta() <= now - self._beat < HEARTBEAT_EVERY

    def _said(self, now: datetime) -> Heartbeat:
        tally = self.store.tally()
        policy = self._policy()
        return msgspec.structs.replace(
            self._health(),
            policy=policy.hash if policy else "",
            hears=ADDED,
            waiting=tally.waiting,
            lag_s=max(0.0, (now - tally.oldest).total_seconds()) if tally.oldest else 0.0,
            dropped=tally.dropped,
        )


def receipt_of(receipt: Signed, hub: Ed25519PublicKey) -> Receipt:
    """What a receipt says, once its signature holds.

    Raises:
        Unsafe: it is none of the hub.
    """
    envelope = opened(receipt, hub)
    if envelope.type != "receipt":
        raise Unsafe(f"a {envelope.type}, no receipt", "receipt", "Ask the hub.")
    try:
        return msgspec.convert(envelope.payload, Receipt)
    except msgspec.ValidationError as error:
        raise Unsafe(f"no receipt: {error}", "receipt", "Ask the hub.") from error


def check_receipt(said: Receipt, line: Line, operator: str) -> None:
    """Whether a receipt is of a line of the ledger.

    Raises:
        Unsafe: it is of something else.
    """
    ours = msgspec.json.decode(line.data, type=Envelope)
    wanted = (operator, line.seq, line.hash, line.share_id, ours.payload_sha256)
    if (said.operator, said.seq, said.hash, said.share_id, said.payload_sha256) != wanted:
        raise Unsafe("a receipt of something else", f"seq {line.seq}", "Ask the hub.")


def _judged(policy: Policy, document: Document, now: datetime) -> Share | None:
    """What a policy says; where it fails, nothing leaves."""
    try:
        return policy.share(document, now)
    except Exception:
        log.exception("The policy failed on finding %s; it stays here.", document["finding.id"])
        return None


def _waiting_again(desk: Desk, line: Line, said: Envelope, now: datetime) -> Waiting | None:
    """What a refused envelope carried; a heartbeat is made anew anyway."""
    before = desk.shared(line.share_id)
    if before is None:
        return None
    waits = Waiting(
        share_id=line.share_id, finding=line.finding, rank=before.rank, offered=now, due=now,
        policy=line.policy, rule=line.rule,
    )  # fmt: skip
    if line.type != "withdraw":
        return waits
    taken_back = msgspec.convert(said.payload, Withdrawal)
    return msgspec.structs.replace(
        waits, kind="withdraw", reason=taken_back.reason, note=taken_back.note
    )


def _is_approved(share: Share, approvers: tuple[str, ...]) -> bool:
    """Whether enough said yes; two persons are two who signed in."""
    return _is_enough(PERSONS[share.approval], approvers)


def _hold_against(desk: Desk, policy: Policy, now: datetime) -> None:
    """Under another policy than before, samples that it would not let out are taken back."""
    for one in desk.samples.under_another(policy.hash):
        if policy.samples.lets_out(msgspec.json.decode(one.payload)):
            desk.samples.set_policy(one.id, policy.hash)
        else:
            desk.samples.take_back("consent", now, id=one.id)


def _is_enough(needed: int, people: tuple[str, ...]) -> bool:
    counted = [one for one in people if needed < 2 or not one.endswith(TERMINAL)]
    return len(counted) >= needed


def _marks(share: Share) -> str:
    said = (share.audiences, share.tlp, share.pap, share.expires)
    return msgspec.json.encode(said).decode()


def _plain(said: Heartbeat | Withdrawal | ProposalAnswer) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(said)
    return plain
