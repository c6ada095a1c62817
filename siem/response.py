"""Findings start runs, and runs go on: the node's own driver of the runner.

A thread beside the path: it follows the findings with a cursor, so that none is missed whatever
was killed, and makes the transitions of every run whose time has come. A second thread only
undoes, so that no slow step of another holds it up. With a Redis workers are rung for, and the
node itself goes on with what nobody has looked at for a while.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from cityward import CitywardError, TransientError
from cityward.when import compile_when
from playbooks import plan as planning
from playbooks import safety
from playbooks.flow import group_of, new_run
from playbooks.journal import QUEUES, UNDOES, Queue, Run
from playbooks.model import Check, Plan, Planned, Playbook, Step
from playbooks.runner import Runner
from siem import evidence
from siem.actuators import actuators_of, specs
from siem.bell import redis_password
from siem.config import Settings
from siem.facts import book_of, stop_file
from siem.playbooks import Library, named
from siem.proposals import OVER, Proposals, is_too_often
from siem.store.embedded import NodeDb
from siem.store.protocol import Document, Events
from siem.store.stages import held_to, staged

log = logging.getLogger(__name__)

CURSOR = "response_changes"
AT_ONCE = 50
"""Findings that one turn looks at."""
TURN_S = 1.0
"""So long a turn makes transitions before it looks at the findings again."""
PAUSE_S = 0.2
"""Between looks at what people and findings have given it to do."""
LATE = timedelta(seconds=15)
"""With workers elsewhere the node goes on itself with what is so late."""
STOP_S = 3.0


class Shelf:
    """The playbooks of a node, and its runner: its actuators, and a gate that sees the world.

    Raises:
        ConfigError: an actuator is set up wrongly.
    """

    def __init__(self, settings: Settings, db: NodeDb, events: Events) -> None:
        self._runs = db.runs
        self._stages = db.stages
        now = db.runs.now
        self._actuators = actuators_of(settings, tell=evidence.teller(db, now), clock=now)
        self._facts = book_of(settings, db, events, specs())
        self._library = Library(settings, db.runs.now)
        self._library.loaded()
        db.runs.stop_file = stop_file(settings)

    def fitting(self, finding: Document) -> list[Playbook]:
        """Those whose trigger holds for a finding, each with the stage that holds here."""
        said = self._stages.all()
        return [
            staged(one, said)
            for one in self._library.loaded().playbooks
            if one.trigger and compile_when(one.trigger)(finding)
        ]

    def named(self, name: str) -> Playbook | None:
        """A playbook by id, name or file name, with the stage that holds here."""
        found = named(self._library.loaded().playbooks, name)
        return staged(found, self._stages.all()) if found else None

    def plan(self, playbook: Playbook, finding: Document) -> Plan:
        """What a playbook would do about a finding now."""
        facts = self._facts.at(self._runs.now())
        return planning.plan(playbook, finding, facts, self._actuators)

    def runner(self) -> Runner:
        """The runner over the journal of this node."""
        return Runner(self._runs, self._actuators, self._planned, self._gate)

    def _planned(self, run: Run, step: Step) -> Planned:
        now = self._facts.at(self._runs.now(), run.id)
        return planning.planned(step, run.playbook, run.finding, now, self._actuators)

    def _gate(self, run: Run, planned: Planned) -> Sequence[Check]:
        now = self._facts.at(self._runs.now(), run.id)
        consent = safety.Consent(plan=run.plan, approvals=run.approvals, asked_by=run.asked_by)
        playbook = held_to(run.playbook, self._stages.all())
        return safety.gate(planned, playbook, run.finding, now, consent)


class Response:
    """The driver in two threads of its own; `start` and `stop` are the node's.

    Args:
        db: Findings and journal.
        shelf: Which playbooks there are.
        runner: Makes transitions.
        undoer: Makes those of the thread that undoes; its actuators are no other thread's.
        is_on: False: nothing begins any more, and what is in force is undone in its time.
    """

    def __init__(
        self, db: NodeDb, shelf: Shelf, runner: Runner, undoer: Runner, *, is_on: bool = True
    ) -> None:
        self._db = db
        self._is_on = is_on
        self._shelf = shelf
        self._proposals = Proposals(db, shelf)
        self._runner = runner
        self._undoer = undoer
        # With workers elsewhere the node only goes on with what they have left.
        self._late = LATE if db.runs.bell is not None else timedelta()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._failing: set[str] = set()

    def start(self) -> None:
        """Follow the findings from now on, and go on with what is open."""
        self.begin()
        turns = ((self.turn, "response"), (self.undo, "undoing"))
        for turn, name in turns if self._is_on else turns[1:]:
            thread = threading.Thread(target=self._turns, args=(turn,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def begin(self) -> None:
        """Findings of before the first start began no run, and begin none now."""
        if self._db.setting(CURSOR) is None:
            at = 0
            while changes := self._db.changes_after(at, 10_000):
                at = changes[-1][0]
            self._db.keep_setting(CURSOR, str(at).encode())

    def stop(self) -> None:
        """End after the transitions under way; the journal knows the rest."""
        self._ended.set()
        for thread in self._threads:
            thread.join(STOP_S)

    def _turns(self, turn: Callable[[], bool]) -> None:
        while not self._ended.is_set():
            try:
                did = turn()
            except Exception:  # it must go on, whatever it was: effects have to end
                if turn.__name__ not in self._failing:
                    log.exception("Responses do not go on; they are tried again.")
                self._failing.add(turn.__name__)
                did = False
            else:
                self._failing.discard(turn.__name__)
            if not did:
                self._ended.wait(PAUSE_S)

    def turn(self) -> bool:
        """New findings, what the city proposes, runs that are due; False: there was nothing."""
        did = False
        try:
            did = self._findings()
            did = self._proposals.turn() or did
        finally:  # whatever cannot begin now, what has begun goes on
            did = self._work(self._runner, QUEUES) or did
        return did

    def undo(self) -> bool:
        """Only what has to be undone; False if there was nothing."""
        return self._work(self._undoer, (UNDOES,))

    def _work(self, runner: Runner, queues: Sequence[Queue]) -> bool:
        did, ends_s = False, time.monotonic() + TURN_S
        for _ in runner.work(queues, self._late):
            did = True
            if self._ended.is_set() or time.monotonic() > ends_s:
                break
        return did

    def _findings(self) -> bool:
        """Start what fits the findings that were written since; the cursor moves behind them."""
        at = int(self._db.setting(CURSOR) or b"0")
        changes = self._db.changes_after(at, AT_ONCE)
        for _, id in changes:
            finding = self._db.get(id)
            if finding is not None and finding.get("finding.status") not in OVER:
                for playbook in self._shelf.fitting(finding):
                    self._run(playbook, finding)
        if changes:
            self._db.keep_setting(CURSOR, str(changes[-1][0]).encode(), replace=True)
        return bool(changes)

    def _run(self, playbook: Playbook, finding: Document) -> None:
        """Start a playbook for a finding, unless it did already, or would run too often.

        Raises:
            TransientError: the journal is held; the cursor stays, so the finding is not lost.
        """
        runs, now = self._db.runs, self._db.runs.now()
        group = group_of(playbook, finding)
        last = runs.last_of(group)
        id = run_id(playbook, finding)
        if runs.get(id) is not None or (last is not None and now - last < playbook.rate.cooldown):
            return
        if is_too_often(self._db, playbook.id, playbook.rate):
            log.warning("Playbook %s fits more findings than it may run for.", playbook.name)
            return
        try:
            plan = self._shelf.plan(playbook, finding)
        except TransientError:
            raise
        except CitywardError as error:
            log.warning("Playbook %s did not start: %s.", playbook.name, error.what)
        except Exception:  # of an actuator of a stranger: other findings must not wait for it
            log.exception("Playbook %s did not start.", playbook.name)
        else:
            made = new_run(
                id, playbook, plan, now, finding=finding, group=group, stage=playbook.stage
            )
            runs.start(made)


def run_id(playbook: Playbook, finding: Mapping[str, Any]) -> str:
    """A finding starts a playbook once, however often it grows."""
    said = f"{playbook.id}\0{finding['finding.id']}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def response_of(settings: Settings, db: NodeDb, events: Events) -> Response | None:
    """The driver of a node, not yet started; None: responses are off, and nothing is in force.

    Raises:
        ConfigError: an actuator is set up wrongly, or the password of Redis is not there.
    """
    is_on, held = settings.response.on, len(db.runs.in_force())
    if is_on:
        redis_password(settings)
    elif held:
        log.warning("Responses are off; %d effects that are in force are undone in time.", held)
    else:
        return None
    shelf, undoing = Shelf(settings, db, events), Shelf(settings, db, events)
    return Response(db, shelf, shelf.runner(), undoing.runner(), is_on=is_on)
