"""What the hub remembers of each operator's envelopes, and what it shows of it."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from siem.city.authority import Operator, Operators
from siem.city.commons import Records
from siem.city.known import Duty, Link, LinkState, Lost
from siem.city.lease import LINK
from siem.sharing.envelope import BEGIN
from siem.sharing.wire import Heartbeat

SILENT_AFTER = timedelta(minutes=5)
"""An operator whose heartbeat is older is silent."""


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a link: what was taken of one operator."""

    fence: int
    """Of the hub that wrote it, see `siem/city/lease.py`."""
    seq: int = 0
    hash: str = BEGIN
    position: int = 0
    heard: datetime | None = None
    answer: str = ""
    """The last receipt, as it was sent."""
    shares: int = 0
    withdrawals: int = 0
    refused: int = 0
    gaps: int = 0
    beat: datetime | None = None
    """When the last heartbeat came …"""
    heartbeat: Heartbeat = Heartbeat()
    """… and what it said."""


def links(operators: Operators, records: Records, now: datetime) -> list[Link]:
    """Every operator, as the hub knows it."""
    taken = {name: msgspec.convert(one.value, Taken) for name, one in records.all(LINK)}
    nothing = Taken(fence=0)
    return [_link(one, taken.get(one.name, nothing), now) for one in operators.all()]


def hearing(operators: Operators, records: Records, kind: str, now: datetime) -> list[str]:
    """Operators that are enrolled, whose nodes say that they understand a type of envelope."""
    enrolled = {one.name for one in operators.all() if one.state(now) == "enrolled"}
    return [
        name
        for name, one in records.all(LINK)
        if name in enrolled and kind in msgspec.convert(one.value, Taken).heartbeat.hears
    ]


def _link(operator: Operator, taken: Taken, now: datetime) -> Link:
    said = taken.heartbeat
    return Link(
        operator=operator.name,
        sector=operator.sector,
        state=_state(operator, taken, now),
        enrolled=operator.enrolled,
        heartbeat=taken.beat,
        heard=taken.heard,
        seq=taken.seq,
        gaps=taken.gaps,
        refused=taken.refused,
        version=said.version,
        rules=said.rules,
        policy=said.policy,
        waiting=said.waiting,
        lag_s=said.lag_s,
        mode=said.mode,
        shares=taken.shares,
        withdrawals=taken.withdrawals,
        certificate_until=operator.valid_until,
        ledger_head=said.ledger_head,
        countersigned=taken.beat,
        clocks=[
            Duty(
                incident=one.incident,
                operator=operator.name,
                duty=one.duty,
                began=one.began,
                due=one.due,
                draft=one.draft,
            )
            for one in said.clocks
        ],
        lost=[
            Lost(one.source, one.what, one.since, one.what.startswith("late")) for one in said.lost
        ],
    )


def _state(operator: Operator, taken: Taken, now: datetime) -> LinkState:
    if operator.state(now) == "revoked":
        return "revoked"
    if taken.beat is None:
        return "waiting"
    return "linked" if now - taken.beat < SILENT_AFTER else "silent"
