"""The sharing end of a node, put together from its settings: outbox, and link or file drop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

from cityward import ConfigError
from siem.assembly import deadlines_of
from siem.config import Settings
from siem.duties import Clock, Duties, clocks
from siem.leaving import Current
from siem.library import words_of
from siem.node import Node
from siem.register import known
from siem.sharing.drop import Drop
from siem.sharing.identity import Identity
from siem.sharing.link import Link
from siem.sharing.outbox import Outbox
from siem.sharing.wire import Heartbeat, LostSource, RunningClock
from siem.store.protocol import SourceState

SILENT_AFTER = timedelta(minutes=15)
"""Without a record for so long a source is silent, as on the page Health."""
LATE_AFTER_S = 60.0
CLOCKS_MAX = 50
"""Legal clocks of which a heartbeat tells, those that are due first."""


def carrier_of(settings: Settings, node: Node) -> Link | Drop | None:
    """What carries findings out, not yet started; None: nothing leaves.

    Raises:
        ConfigError: both ways are named.
    """
    said = settings.sharing
    if not said.hub and not said.drop_dir:
        return None
    if said.hub and said.drop_dir:
        what = "a hub and a drop are named, envelopes have one way"
        raise ConfigError(what, "sharing.drop_dir", "Remove it, or sharing.hub.")
    identity = Identity(settings.state_path)
    outbox = Outbox(
        node.db.outgoing,
        settings.operator,
        identity.signing_key(),
        Current(settings, lambda: known(settings, node.db.inventory.assets(merged=True))),
        health=health_of(settings, node),
        clock=node.clock,
    )
    if said.hub:
        plans = settings.response.on
        return Link(outbox, identity, node.clock, said.hub, plans=plans, words_of=words_of)
    return Drop(outbox, Path(said.drop_dir).expanduser(), identity, node.clock)


def health_of(settings: Settings, node: Node) -> Callable[[], Heartbeat]:
    """What a heartbeat says of a node: whether it sees, and with which rules."""
    program = version("cityward")
    deadlines = deadlines_of(settings)
    quiet = {one.id for one in settings.source if one.quiet_ok}
    began = node.clock()

    def health() -> Heartbeat:
        sources, states = [one.state for one in node.sources], node.db.rules()
        rules = hashlib.sha256(repr([(one.id, one.state) for one in states]).encode())
        return Heartbeat(
            version=program,
            rules=rules.hexdigest()[:16] if states else "",
            mode=settings.mode,
            running=sum(one.state == "running" for one in sources),
            lost=tuple(_lost(sources, quiet, began, node.clock())),
            clocks=tuple(_running(node, deadlines)) if settings.sharing.clocks else (),
        )

    return health


def _lost(
    sources: Sequence[SourceState], quiet: set[str], began: datetime, now: datetime
) -> Iterator[LostSource]:
    """Where this node is blind, or sees late; not the error: that may name files and addresses."""
    for one in sources:
        last = one.last_received
        is_silent = now - (last or began) > SILENT_AFTER and one.source not in quiet
        if one.state == "failed":
            yield LostSource(one.source, "failed", last)
        elif one.state in ("running", "waiting") and is_silent:
            yield LostSource(one.source, "no data", last)
        elif one.state == "running" and one.lag_s > LATE_AFTER_S:
            yield LostSource(one.source, f"late by {one.lag_s / 60:.0f} min", last)


def _running(node: Node, deadlines: Duties) -> Iterator[RunningClock]:
    """The clocks of open incidents that nobody has submitted, those that are due first first."""
    now = node.clock()
    found: list[tuple[str, Clock]] = []
    for case in node.db.cases.all(open_only=True):
        known_ = [row for row in map(node.db.get, case.findings) if row is not None]
        found += [(case.id, clock) for clock in clocks(case, deadlines, now, known_)]
    open_ = [(id, one) for id, one in found if one.state in ("runs", "overdue")]
    for id, one in sorted(open_, key=lambda pair: pair[1].due or now)[:CLOCKS_MAX]:
        assert one.begin is not None
        assert one.due is not None
        yield RunningClock(
            incident=id,
            duty=f"{one.duty.name}, {one.duty.within}",
            began=one.begin,
            due=one.due,
            draft=f"{one.filled} of {len(one.duty.fields)} fields",
        )
