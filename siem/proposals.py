"""What comes of the city's proposals here: this node's own engine plans them, or says why not.

The hub's word starts at most a plan. The run is one as any trigger would start it – of the
operator's own playbook, about its own finding, through its own gate – but for two things: its
stage is never `live`, so that a person here has to say yes to each effect, and the marking of the
city's campaign counts for the gate where it is the stricter one.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta
from typing import Protocol

import msgspec

from cityward import CitywardError, TransientError
from cityward.finding import severity_rank
from playbooks.flow import STRICTEST, group_of, new_run
from playbooks.journal import RUN_ENDS, Run
from playbooks.model import Plan, Playbook, Rate
from siem.sharing.envelope import Envelope
from siem.sharing.policy import PAP
from siem.sharing.tokens import tokens_in
from siem.store.embedded import NodeDb
from siem.store.proposals import ASKED_BY, Proposed, State, Why
from siem.store.protocol import Document

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""What is open is looked at so often."""
OVER = ("resolved", "archived", "deleted", "suppressed")
"""Findings in these states start nothing."""
RUNS_READ = 200
_HELD_BACK = ("draft", "shadow")


class Shelf(Protocol):
    """The playbooks of this node, and its planner; `siem/response.py` has it."""

    def named(self, name: str) -> Playbook | None:
        """A playbook by id, name or file name, with the stage that holds here."""
        ...

    def plan(self, playbook: Playbook, finding: Document) -> Plan:
        """What it would do about a finding now."""
        ...


class Proposals:
    """Turns proposals into plans, and follows what becomes of them.

    Args:
        db: Proposals, findings, ledger and journal.
        shelf: The playbooks here.
    """

    def __init__(self, db: NodeDb, shelf: Shelf) -> None:
        self._db = db
        self._shelf = shelf
        self._look_s = 0.0

    def turn(self) -> bool:
        """Look at what is open, now and then; whether something has changed."""
        if time.monotonic() < self._look_s:
            return False
        self._look_s = time.monotonic() + LOOK_S
        return self.look()

    def look(self) -> bool:
        """Plan what is new, and say how all others stand; whether something has changed."""
        did = False
        for one in self._db.proposals.open():
            did = (self._begin(one) if one.state == "new" else self._follow(one)) or did
        return did

    # ---- what is new

    def _begin(self, one: Proposed) -> bool:
        try:
            state, why, run, finding = self._planned(one)
        except TransientError as error:  # looked at again a moment later, until it ends
            log.warning("Proposal %s of the city waits: %s.", one.id, error.what)
            return False
        now = self._db.runs.now()
        did = self._db.proposals.settle(one, state, why, now, run=run, about=finding)
        if not did and run == one.own_run:  # somebody declined it meanwhile
            self._db.runs.order(run, "cancel", f"{ASKED_BY}{one.said.by}", "declined here")
        return did

    def _planned(self, one: Proposed) -> tuple[State, Why, str, str]:
        """How it stands after planning, with run and finding."""
        if ended := self._ended(one):
            return "expired", ended, "", ""
        playbook = self._shelf.named(one.said.playbook)
        if playbook is None:
            return "not possible", "no playbook", "", ""
        finding = self._finding(one)
        if finding is None:
            return "not possible", "no finding", "", ""
        try:
            run, why = self._started(one, playbook, finding)
        except TransientError:
            raise
        except CitywardError as error:
            log.warning("Proposal %s of the city cannot be planned: %s.", one.id, error.what)
            run, why = "", "failed"
        about = str(finding["finding.id"])
        return ("planned", "", run, about) if run else ("not possible", why, "", about)

    def _started(self, one: Proposed, own: Playbook, found: Document) -> tuple[str, Why]:
        """The run that does what was proposed, which may be there already; or why there is none."""
        runs, now, id = self._db.runs, self._db.runs.now(), one.own_run
        if runs.get(id) is not None:  # a kill was between it and our saying so
            return id, ""
        group = group_of(own, found)
        there = next((run for run in runs.all(limit=RUNS_READ) if run.group == group), None)
        if there is not None and _does_it(there, own, now):
            return there.id, ""
        if is_too_often(self._db, own.id, _citys(own.rate)):
            return "", "too often"
        stage = min(own.stage, "approve_all", key=STRICTEST.index)
        playbook = msgspec.structs.replace(own, stage=stage)
        finding = {**found, "cw.marking.pap": _stricter(found.get("cw.marking.pap"), one.said.pap)}
        run = new_run(
            id,
            playbook,
            self._shelf.plan(playbook, finding),
            now,
            finding=finding,
            group=group,
            stage=stage,
            asked_by=f"{ASKED_BY}{one.said.by}",
        )
        return (id, "") if runs.start(run) else ("", "too often")

    def _finding(self, one: Proposed) -> Document | None:
        """Our own finding that is meant, of several the most severe and newest.

        Its share is one that the city names, as our own ledger knows it; with an indicator only one
        of which that very token has left.
        """
        found = []
        for id in dict.fromkeys(one.said.shares):
            shared = self._db.outgoing.shared(id)
            if shared is None or shared.state != "shared":
                continue
            document = self._db.get(shared.finding)
            if document is None or document.get("finding.status") in OVER:
                continue
            if one.said.indicator and one.said.indicator not in self._tokens(shared.seq):
                continue
            found.append(document)
        return max(found, key=_weight, default=None)

    def _tokens(self, seq: int) -> frozenset[str]:
        with self._db.outgoing.desk() as desk:
            line = desk.line(seq)
        if line is None:
            return frozenset()
        payload = msgspec.json.decode(line.data, type=Envelope).payload
        return frozenset(token for _, token in tokens_in(payload))

    # ---- what was planned

    def _follow(self, one: Proposed) -> bool:
        runs, now = self._db.runs, self._db.runs.now()
        run = runs.get(one.run)
        if run is None:
            return self._db.proposals.settle(one, "expired", "time", now)
        state, why = outcome(run)
        ended = self._ended(one)
        if ended and state == "planned":
            state, why = "expired", ended
            if run.id == one.own_run:  # one that is over takes no order
                runs.order(run.id, "cancel", run.asked_by, f"the proposal ended: {ended}")
        return self._db.proposals.settle(one, state, why, now)

    def _ended(self, one: Proposed) -> Why:
        """Why it is not to be planned any more; empty: it is."""
        if one.is_withdrawn:
            return "withdrawn"
        return "time" if one.expires <= self._db.runs.now() else ""


def is_too_often(db: NodeDb, playbook: str, rate: Rate) -> bool:
    """Whether a playbook runs as often as it may."""
    since = db.runs.now() - timedelta(hours=1)
    return (
        db.runs.runs_but(playbook, since, "") >= rate.per_hour
        or db.runs.open_but(playbook, "") >= rate.at_once
    )


def _citys(rate: Rate) -> Rate:
    """What the city may have of it: however much a hub proposes, our own findings find a place."""
    return Rate(per_hour=max(1, rate.per_hour // 2), at_once=max(1, rate.at_once - 1))


def outcome(run: Run) -> tuple[State, Why]:
    """How a run stands, as the city may be told of it."""
    acting = [one.state for one in run.effects if one.command.undo]
    if any(state in ("applied", "rolling_back") for state in acting):
        return "applied", ""
    if "rolled_back" in acting:
        return "undone", ""
    rows = [row for row in run.steps if row.planned and row.planned.action_class != "A0"]
    if any(row.state == "denied" for row in rows):
        return "not possible", "refused"
    if run.state == "cancelled":
        return "declined", "declined"
    if any(row.state == "expired" for row in rows):
        return "expired", "time"
    if any(row.note.startswith("held back") for row in rows):
        return "planned", "shadow"
    if any(row.state == "failed" for row in rows) or run.state == "failed":
        return "not possible", "failed"
    if run.state == "denied":
        return "not possible", "refused"
    if run.state == "done":
        return "done", ""
    is_approved = any(yes.plan_hash == run.plan.hash for yes in run.approvals)
    return ("approved", "") if is_approved else ("planned", "")


def _does_it(run: Run, own: Playbook, now: datetime) -> bool:
    """Whether a run about the same is what would be begun: it goes on, or was a moment ago."""
    if run.state not in RUN_ENDS:
        return True
    was_held_back = run.stage in _HELD_BACK and own.stage not in _HELD_BACK
    return now - run.made < own.rate.cooldown and not was_held_back


def _weight(finding: Document) -> tuple[int, datetime]:
    return severity_rank(finding["finding.severity"]), finding["finding.last_seen"]


def _stricter(own: object, citys: str) -> str | None:
    """The stricter of two markings PAP; None: neither is one."""
    said = [PAP.index(one) for one in (own, citys) if one in PAP]
    return PAP[max(said)] if said else None
