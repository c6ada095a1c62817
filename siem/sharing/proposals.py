"""Proposals of the city as an operator takes them in: checked, bounded, and never believed.

Its signature says only that the hub said it. Whether anything comes of it decide this node's own
playbooks, gate and people.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from cityward import Unsafe
from siem.sharing.envelope import Envelope
from siem.sharing.wire import Proposal
from siem.store.proposals import Proposed, Said, Why

ENDS_WITHIN = timedelta(days=7)
"""A proposal that is to count for longer is none: the world is another by then."""
SHARES_MAX = 50
_ID_MAX = 64
_WORDS = ("", "clear", "green", "amber", "amber+strict", "red")

STATE_WORDS = {
    "new": "Came, and is looked at",
    "planned": "Planned",
    "approved": "Approved",
    "applied": "Applied",
    "undone": "Undone",
    "done": "Done, nothing is in force",
    "declined": "Declined",
    "not possible": "Not possible",
    "expired": "Expired",
}
WHY_WORDS = {
    "shadow": "in shadow, nothing was done",
    "off": "responses are off",
    "no playbook": "no such playbook",
    "no finding": "no open finding of it",
    "too often": "the playbook runs too often already",
    "refused": "the operator's own safety gate refuses it",
    "failed": "tried and failed",
    "not needed": "not needed",
    "harm": "it would do harm",
    "other way": "done another way",
    "later": "not now",
    "declined": "a person said no",
    "time": "nobody decided in time",
    "withdrawn": "the campaign does not hold any more",
}
"""What may be answered, in words for people of both ends."""


def in_words(state: str, why: str) -> str:
    """An answer, for people."""
    said = STATE_WORDS.get(state, state)
    if state == "planned" and not why:
        return f"{said}, waits for a person"
    return f"{said}: {WHY_WORDS[why]}" if why in WHY_WORDS else said


def read(envelope: Envelope, operator: str, now: datetime, *, plans: bool = True) -> Proposed:
    """A proposal as it is kept.

    Args:
        envelope: Of the hub; its signature was checked.
        operator: Who we are, by the hub's name for us.
        now: The node's time.
        plans: Responses are on here.

    Raises:
        Unsafe: it is none, or not for us.
    """
    where = f"proposal of envelope {envelope.seq}"
    try:
        said = msgspec.convert(envelope.payload, Proposal)
    except (msgspec.ValidationError, RecursionError) as error:
        raise Unsafe(f"no proposal: {str(error)[:200]}", where, "Ask the hub.") from error
    if said.operator != operator:
        raise Unsafe("a proposal for another operator", where, "Ask the hub.")
    expires, shares = envelope.expires, envelope.derived_from
    if expires is None or expires.tzinfo is None or expires - now > ENDS_WITHIN:
        what = f"a proposal that does not end within {ENDS_WITHIN.days} days"
        raise Unsafe(what, where, "Ask the hub.")
    ids = (envelope.share_id, *shares)
    if len(shares) > SHARES_MAX or not all(0 < len(one) <= _ID_MAX for one in ids):
        raise Unsafe("a proposal that names no campaign, or too much", where, "Ask the hub.")
    if envelope.tlp not in _WORDS or envelope.pap not in _WORDS:
        raise Unsafe("a proposal with a marking that is none", where, "Ask the hub.")
    why: Why = "" if plans else "off"
    return Proposed(
        id=said.id,
        campaign=envelope.share_id,
        received=now,
        expires=expires,
        said=Said(
            playbook=said.playbook,
            action=said.action,
            indicator=said.indicator,
            reason=said.reason,
            by=said.by,
            shares=shares,
            tlp=envelope.tlp,
            pap=envelope.pap,
        ),
        state="new" if plans else "not possible",
        why=why,
        changed=now,
    )
