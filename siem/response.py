"""Findings start runs, and runs go on: the node's own driver of the runner.

A thread beside the path: it follows the findings with a cursor, so that none is missed whatever
was killed, and calls `advance` for every run whose time has come. With a Redis it only rings its
bell, and goes on itself with what nobody has looked at for a while.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from cityward import CitywardError, ConfigError
from cityward.when import compile_when
from playbooks import plan as planning
from playbooks import safety
from playbooks.flow import group_of, new_run
from playbooks.journal import Queue, Run
from playbooks.model import Check, Plan, Planned, Playbook, Step
from playbooks.runner import Runner
from siem import evidence
from siem.actuators import actuators_of, specs
from siem.config import Settings
from siem.facts import book_of, stop_file
from siem.playbooks import playbooks_of
from siem.store.embedded import NodeDb
from siem.store.protocol import Document, Events
from siem.store.stages import staged

log = logging.getLogger(__name__)

CURSOR = "response_changes"
AT_ONCE = 50
"""Findings, and runs, that one turn looks at."""
PAUSE_S = 0.5
LATE = timedelta(seconds=15)
"""With workers elsewhere the node goes on itself with what is so late."""
STOP_S = 3.0
OVER = ("resolved", "archived", "deleted", "suppressed")
"""Findings in these states start nothing."""

Bell = Callable[[Sequence[tuple[str, Queue]]], object]


class Shelf:
    """The playbooks of a node, and its runner: its actuators, and a gate that sees the world.

    Raises:
        ConfigError: an actuator is set up wrongly.
    """

    def __init__(self, settings: Settings, db: NodeDb, events: Events) -> None:
        self._runs = db.runs
        self._stages = db.stages
        self._actuators = actuators_of(settings, tell=evidence.teller(db, db.runs.now))
        self._facts = book_of(settings, db, events, specs())
        loaded = playbooks_of(settings, db.runs.now()).playbooks
        self._playbooks = [(compile_when(one.trigger), one) for one in loaded if one.trigger]
        db.runs.stop_file = stop_file(settings)

    def fitting(self, finding: Document) -> list[Playbook]:
        """Those whose trigger holds for a finding, each with the stage that holds here."""
        said = self._stages.all()
        return [staged(one, said) for fits, one in self._playbooks if fits(finding)]

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
        return safety.gate(planned, run.playbook, run.finding, now, consent)


def bell_of(settings: Settings, environment: Mapping[str, str] = os.environ) -> Bell | None:
    """What rings for workers elsewhere; None: there is no Redis.

    Raises:
        ConfigError: the variable with its password is not set.
    """
    if not settings.response.redis:
        return None
    from playbooks import tasks

    app = tasks.app_of(settings.response.redis, password=redis_password(settings, environment))
    return lambda runs: tasks.ring(app, runs)


def redis_password(settings: Settings, environment: Mapping[str, str] = os.environ) -> str:
    """The password of Redis; empty if none is named.

    Raises:
        ConfigError: its variable is not set.
    """
    name = settings.response.redis_secret_env
    if name and not environment.get(name):
        raise ConfigError(f"{name} is not set", "response.redis_secret_env", "Set the variable.")
    return environment[name] if name else ""


class Response:
    """The driver in a thread of its own; `start` and `stop` are the node's.

    Args:
        db: Findings and journal.
        shelf: Which playbooks there are.
        runner: Makes one transition; None where only workers do.
        bell: Rings for them.
    """

    def __init__(self, db: NodeDb, shelf: Shelf, runner: Runner, bell: Bell | None = None) -> None:
        self._db = db
        self._shelf = shelf
        self._runner = runner
        self._bell = bell
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_failing = False

    def start(self) -> None:
        """Follow the findings from now on, and go on with what is open."""
        self.begin()
        self._thread = threading.Thread(target=self._turns, name="response", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Findings of before the first start began no run, and begin none now."""
        if self._db.setting(CURSOR) is None:
            at = 0
            while changes := self._db.changes_after(at, 10_000):
                at = changes[-1][0]
            self._db.keep_setting(CURSOR, str(at).encode())

    def stop(self) -> None:
        """End after the transition under way; the journal knows the rest."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _turns(self) -> None:
        while not self._ended.is_set():
            if not self.turn():
                self._ended.wait(PAUSE_S)

    def turn(self) -> bool:
        """New findings, then runs that are due; False if there was nothing to do."""
        try:
            did = self._findings()
            did = self._advance() or did
        except Exception as error:  # it must go on, whatever it was: effects have to end
            if not self._is_failing:
                log.exception("Responses do not go on; they are tried again.")
            self._is_failing = True
            return isinstance(error, ConfigError)
        self._is_failing = False
        return did

    def _advance(self) -> bool:
        late = timedelta() if self._bell is None else LATE
        due = self._runner.reaper(AT_ONCE, late)
        for run in due:
            if self._ended.is_set():
                break
            self._runner.advance(run)
        return bool(due)

    def _findings(self) -> bool:
        """Start what fits the findings that were written since; the cursor moves behind them."""
        at = int(self._db.setting(CURSOR) or b"0")
        changes = self._db.changes_after(at, AT_ONCE)
        begun: list[tuple[str, Queue]] = []
        for _, id in changes:
            finding = self._db.get(id)
            if finding is not None and finding.get("finding.status") not in OVER:
                begun += [(run, "control") for run in self._begin(finding)]
        if changes:
            self._db.keep_setting(CURSOR, str(changes[-1][0]).encode(), replace=True)
        if begun and self._bell is not None:
            self._bell(begun)
        return bool(changes)

    def _begin(self, finding: Document) -> Iterator[str]:
        for playbook in self._shelf.fitting(finding):
            try:
                if run := self._begun(playbook, finding):
                    yield run
            except CitywardError as error:
                log.warning("Playbook %s did not start: %s.", playbook.name, error.what)

    def _begun(self, playbook: Playbook, finding: Document) -> str:
        """The run of a playbook for a finding; empty: there is one, or it would be too often."""
        runs, now = self._db.runs, self._db.runs.now()
        group = group_of(playbook, finding)
        last, rate = runs.last_of(group), playbook.rate
        id = run_id(playbook, finding)
        if runs.get(id) is not None or (last is not None and now - last < rate.cooldown):
            return ""
        if (
            runs.runs_but(playbook.id, now - timedelta(hours=1), "") >= rate.per_hour
            or runs.open_but(playbook.id, "") >= rate.at_once
        ):
            log.warning("Playbook %s fits more findings than it may run for.", playbook.name)
            return ""
        plan = self._shelf.plan(playbook, finding)
        run = new_run(id, playbook, plan, now, finding=finding, group=group, stage=playbook.stage)
        return id if runs.start(run) else ""


def run_id(playbook: Playbook, finding: Mapping[str, Any]) -> str:
    """A finding starts a playbook once, however often it grows."""
    said = f"{playbook.id}\0{finding['finding.id']}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def response_of(settings: Settings, db: NodeDb, events: Events) -> Response | None:
    """The driver of a node, not yet started; None: responses are off.

    Raises:
        ConfigError: an actuator or Redis is set up wrongly.
    """
    if not settings.response.on:
        return None
    shelf = Shelf(settings, db, events)
    return Response(db, shelf, shelf.runner(), bell_of(settings))
