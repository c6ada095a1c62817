"""Playbooks and runs for the pages: a real journal, plans that a test writes down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from cityward import Command, Target
from cityward.errors import InputError, Unsafe
from playbooks.flow import new_run
from playbooks.journal import Change, Effect, Run, StepRow, action_key
from playbooks.model import Action as Does
from playbooks.model import (
    ActionClass,
    BlastLimit,
    Check,
    Plan,
    Planned,
    Playbook,
    Rollback,
    RunState,
    Safety,
    Stage,
    Step,
)
from siem.console.protocol import Why
from siem.store.protocol import Conflict, Document
from siem.store.runs import RunStore

SCANNER = "playbook--11111111-0000-4000-8000-000000000001"
VENDOR = "playbook--11111111-0000-4000-8000-000000000002"
_NAMES = (
    "kill switch",
    "signature and stage",
    "same operator",
    "known target",
    "never touched",
    "zone",
    "protected peers",
    "blast radius",
    "corroboration",
    "marking",
    "rates",
    "approvals",
)
_WHYS = (
    "Nothing is stopped.",
    "Signed by soc-2026, stage live.",
    "Target and actuator belong to op-energy.",
    "The target is outside of everybody we know.",
    "It touches nothing that a process or people depend on.",
    "A1 may act in external.",
    "It is no protected peer.",
    "1 of 3 assets.",
    "Two independent analytics agree.",
    "PAP green allows a visible action.",
    "0 of 10 runs in this hour.",
    "It waits for a person.",
)


def checks() -> tuple[Check, ...]:
    """All twelve, of which the last wants a person."""
    return tuple(
        Check(number, name, "needs approval" if number == 12 else "allow", why, {"seen": number})
        for number, (name, why) in enumerate(zip(_NAMES, _WHYS, strict=True), 1)
    )


def playbook(
    id: str, name: str, step_name: str, action_class: ActionClass, rollback: Rollback
) -> Playbook:
    """One that denies something at the gateway, and tells people if that fails."""
    deny = Step(
        id=f"action--{id[-1]}",
        name=step_name,
        type="action",
        description="At the edge; no controller is touched.",
        action=Does(
            actuator="nftables",
            verb="deny",
            target={"type": "ipv4_net", "value": "${finding.source.ip}"},
        ),
        safety=Safety(
            action_class=action_class,
            time_box=timedelta(hours=4),
            rollback=rollback,
            blast_limit=BlastLimit(3, 0, 0),
            requires=("corroborated", "mode:normal"),
        ),
        on_completion="end--1",
        on_failure="action--9",
    )
    tell = Step(
        id="action--9",
        name="Tell the shift",
        type="action",
        action=Does(actuator="manual", args={"text": "Call the shift lead.", "role": "shift"}),
        on_completion="end--1",
    )
    steps = (
        Step(id="start--1", name="Start", type="start", on_completion=deny.id),
        deny,
        tell,
        Step(id="end--1", name="End", type="end"),
    )
    return Playbook(
        id=id,
        name=name,
        description=f"{name}: says so, cuts it off for four hours, and gives it back.",
        version=f"{id[-1]}c41" * 16,
        steps={one.id: one for one in steps},
        start="start--1",
        exception="action--9",
        trigger={"finding.category": "Recon.Scanning", "finding.severity": ["high", "critical"]},
        stage="live",
        signed_by="soc-2026",
        file="/etc/cityward/playbooks/one.yml",
    )


def library() -> list[Playbook]:
    """Two playbooks: one at the edge, one towards a control zone."""
    return [
        playbook(SCANNER, "External scanner at the perimeter", "Block the scanner", "A1", "device"),
        playbook(
            VENDOR,
            "Stranger writes to a controller",
            "Close vendor remote access into cz-north",
            "A3",
            "lease",
        ),
    ]


def planned(one: Playbook, finding: Mapping[str, Any], now: datetime) -> Planned:
    """What its first step would do."""
    step = next(step for step in one.steps.values() if step.safety.time_box)
    assert step.action is not None
    assert step.safety.time_box is not None
    until = now + step.safety.time_box
    target = Target("ipv4_net", str(finding.get("source.ip", "198.51.100.73")))
    return Planned(
        step=step.id,
        name=step.name,
        action_class=step.safety.action_class,
        actuator="nftables",
        target=target,
        commands=(Command("deny", target, "allow", until, {"direction": "both"}),),
        prior={"policy": "allow"},
        until=until,
        undo="The device ends it by itself after 4 h.",
        dependants=("eng-vendor-1",),
        checks=checks(),
    )


class FakeResponder:
    """A responder whose plans and playbooks a test sets; its journal is a real one."""

    def __init__(self, runs: RunStore, finding: Any, now: Any) -> None:
        self.runs = runs
        self.is_on = False
        self.shelf: list[Playbook] = []
        self.wrong: list[Why] = []
        self._finding = finding
        self._now = now

    def playbooks(self) -> Sequence[Playbook]:
        return self.shelf

    def refused(self) -> Sequence[Why]:
        return self.wrong

    def fitting(self, finding: Document) -> Sequence[Playbook]:
        return self.shelf if finding.get("finding.severity") in ("high", "critical") else ()

    def plan(self, playbook: str, finding: str) -> Plan:
        one, found = self._known(playbook), self._finding(finding)
        if found is None:
            raise InputError(f"there is no finding {finding[:40]!r}", "finding", "See the list.")
        return Plan(
            playbook=one.id,
            version=one.version,
            finding=finding,
            revision=1,
            operator="op-energy",
            made=self._now(),
            actions=(planned(one, found, self._now()),),
        )

    def start(self, playbook: str, finding: str, by: str, plan_hash: str) -> str:
        if not self.is_on:
            raise Unsafe("responses are off", "response.on", "Nothing was started.")
        plan = self.plan(playbook, finding)
        if plan.hash != plan_hash:
            raise Conflict("the plan is not the one that you saw", "plan", "Look again.")
        return self.begun(playbook, finding, by).id

    def set_stage(self, playbook: str, stage: Stage, by: str, reason: str) -> None:
        known = self._known(playbook)
        place = self.shelf.index(known)
        self.shelf[place] = msgspec.structs.replace(known, stage=stage)

    def shadow_runs(self, playbook: Playbook) -> int:
        runs = self.runs.all(limit=200)
        own = (one for one in runs if one.playbook == playbook and one.stage == "shadow")
        return sum(one.state in ("done", "failed", "denied") for one in own)

    def _known(self, id: str) -> Playbook:
        found = next((one for one in self.shelf if one.id == id), None)
        if found is None:
            raise InputError(f"no playbook is called {id[:40]!r}", "playbook", "See the list.")
        return found

    # ---- What a runner would do

    def begun(self, playbook: str, finding: str, by: str = "", id: str = "") -> Run:
        """A run that stands before its first step."""
        one, plan = self._known(playbook), self.plan(playbook, finding)
        made = new_run(
            id or f"run-{len(self.runs.all())}",
            one,
            plan,
            self._now(),
            finding=self._finding(finding),
            stage=one.stage,
            asked_by=by,
        )
        assert self.runs.start(made)
        return made

    def waiting(self, playbook: str, finding: str, by: str = "", id: str = "") -> Run:
        """A run whose first action waits for a yes."""
        run = self.begun(playbook, finding, by, id)
        row = self._row(run)
        self._record(run.id, row)
        self._record(run.id, msgspec.structs.replace(row, state="gated"))
        self._record(run.id, msgspec.structs.replace(row, state="waiting_approval"))
        return self.get(run.id)

    def applied(self, playbook: str, finding: str, by: str = "", id: str = "") -> Run:
        """A run whose first action is in force."""
        run = self.begun(playbook, finding, by, id)
        row, now = self._row(run), self._now()
        self._record(run.id, row)
        assert row.planned is not None
        (command,) = row.planned.commands
        effect = Effect(
            key=action_key(run.id, row.id, command.target, command.verb),
            step=row.id,
            actuator="nftables",
            command=command,
            until=row.planned.until,
            began=now,
        )
        self._record(run.id, msgspec.structs.replace(row, state="gated"))
        self._record(run.id, msgspec.structs.replace(row, state="intended"), effect)
        effect = msgspec.structs.replace(effect, state="applied")
        self._record(run.id, msgspec.structs.replace(row, state="applied"), effect)
        self._record(run.id, msgspec.structs.replace(row, state="verified"))
        return self.get(run.id)

    def get(self, id: str) -> Run:
        found = self.runs.get(id)
        assert found is not None
        return found

    def _row(self, run: Run) -> StepRow:
        (action,) = run.plan.actions
        return StepRow(
            id=action.step,
            step=action.step,
            since=run.made,
            deadline=run.made + timedelta(minutes=11),
            planned=action,
        )

    def _record(self, run: str, row: StepRow, *effects: Effect) -> None:
        claimed = self.runs.claim(run, self._now())
        assert claimed is not None
        state: RunState = "waiting" if row.state in ("waiting_approval", "verified") else "running"
        self.runs.record(
            Change(run=claimed, state=state, steps=(row,), effects=effects, wake=self._now())
        )
