"""What people plan and start: playbooks of the settings, facts of now, runs in the journal.

The desk sends nothing itself: a run that it starts is gone on with by the node's path process.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property

from cityward import Actuator, InputError, Unsafe
from cityward.when import compile_when
from playbooks import plan as planning
from playbooks.flow import group_of, new_run
from playbooks.model import Plan, Playbook, Stage
from siem.actuators import actuators_of, specs
from siem.config import Settings
from siem.console.protocol import Why
from siem.facts import FactBook, book_of, stop_file
from siem.playbooks import Library, named
from siem.store.embedded import NodeDb
from siem.store.protocol import Conflict, Document, Events
from siem.store.runs import RunStore
from siem.store.stages import staged


class ResponseDesk:
    """Fulfils `siem.console.protocol.Responder` over the files of a node.

    Args:
        settings: Of the node.
        db: Its findings, inventory and journal.
        events: Flows of the last day.
        clock: Its time.
    """

    def __init__(
        self, settings: Settings, db: NodeDb, events: Events, clock: Callable[[], datetime]
    ) -> None:
        self._settings = settings
        self._db = db
        self._stages = db.stages
        self._events = events
        self._clock = clock
        self._library = Library(settings, clock)
        db.runs.stop_file = stop_file(settings)
        if settings.response.on:
            db.runs.is_steady = True  # as in the process of the path

    @property
    def is_on(self) -> bool:
        """Whether the settings let playbooks act."""
        return self._settings.response.on

    @property
    def runs(self) -> RunStore:
        """The journal."""
        return self._db.runs

    def playbooks(self) -> Sequence[Playbook]:
        """All that can be used, each with the stage that was said for this very version."""
        said = self._stages.all()
        return [staged(one, said) for one in self._library.loaded().playbooks]

    def refused(self) -> Sequence[Why]:
        """Files that are no playbook."""
        return [Why(one.where, "", one.what, one.todo) for one in self._library.loaded().refused]

    def fitting(self, finding: Document) -> Sequence[Playbook]:
        """Those whose trigger holds for a finding."""
        return [
            one for one in self.playbooks() if one.trigger and compile_when(one.trigger)(finding)
        ]

    def plan(self, playbook: str, finding: str) -> Plan:
        """What a playbook would do about a finding now; nothing is sent.

        Raises:
            InputError: there is no such playbook or finding.
            ConfigError: an actuator is set up wrongly.
        """
        facts = self._facts.at(self.runs.now())
        return planning.plan(self.known(playbook), self._finding(finding), facts, self._actuators)

    def start(self, playbook: str, finding: str, by: str, plan_hash: str) -> str:
        """Start a run of the plan that a person saw; returns its id.

        Raises:
            Unsafe: responses are off, or everything is stopped.
            Conflict: the world has changed the plan, or the same runs already.
        """
        if not self.is_on:
            what = "responses are off: playbooks only plan"
            raise Unsafe(what, "response.on", "Nothing was started. Set it to true, if you may.")
        if stopped := self.runs.stopped():
            what = f"stopped: {', '.join(sorted(set(stopped)))}"
            raise Unsafe(what, "kill switch", "Nothing was started. See who stopped it, and why.")
        one, found = self.known(playbook), self._finding(finding)
        plan = self.plan(one.id, finding)
        if plan.hash != plan_hash:
            what = "the plan is not the one that you saw"
            raise Conflict(what, f"finding {finding}", "Look at the plan as it is now.")
        run = new_run(
            secrets.token_hex(8),
            one,
            plan,
            self.runs.now(),
            finding=found,
            group=group_of(one, found),
            stage=one.stage,
            asked_by=by,
        )
        if not self.runs.start(run):
            what = f"{one.name} runs for the same already"
            raise Conflict(what, f"finding {finding}", "Look at its run.")
        return run.id

    def set_stage(self, playbook: str, stage: Stage, by: str, reason: str) -> None:
        """Say how far a playbook may go at this node; a new version begins anew.

        Raises:
            InputError: there is no such playbook, or a reason is missing.
            Unsafe: it has not run in shadow often enough to go live.
        """
        self._stages.put(self.known(playbook), stage, by, reason, self._clock())

    def shadow_runs(self, playbook: Playbook) -> int:
        """How often a playbook as it is now has come to its end in shadow."""
        return self._stages.shadow_runs(playbook)

    def known(self, name: str) -> Playbook:
        """A playbook by id, name or file name.

        Raises:
            InputError: there is none.
        """
        found = named(self.playbooks(), name)
        if found is None:
            todo = "cityward playbook list names them."
            raise InputError(f"no playbook is called {name[:80]!r}", "playbook", todo)
        return found

    def _finding(self, id: str) -> Document:
        found = self._db.get(id)
        if found is None:
            todo = "cityward finding list names them."
            raise InputError(f"there is no finding {id[:80]!r}", "finding", todo)
        return found

    @cached_property
    def _actuators(self) -> Mapping[str, Actuator]:
        return actuators_of(self._settings, clock=self.runs.now)

    @cached_property
    def _facts(self) -> FactBook:
        return book_of(self._settings, self._db, self._events, specs())
