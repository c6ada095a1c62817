"""Playbooks: the library, a plan before anything, runs with their journal, what is in force."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError, InputError
from playbooks.journal import RUN_ENDS, Run, StepRow
from playbooks.model import Playbook, Stage
from playbooks.safety import is_breaker_open
from siem.console import formats
from siem.console.access import Session
from siem.console.body import body_of
from siem.console.responses import (
    EFFECT_WORDS,
    GLOBAL,
    REASON_MAX,
    RUN_GLYPHS,
    STAGE_WORDS,
    STEP_GLYPHS,
    Responses,
    actuators_in,
    ask_of,
    class_of,
    diff_of,
    in_force_rows,
    left_of,
    length_of,
    run_row,
)
from siem.console.site import ROWS_MAX, back_to, number_in, see_other
from siem.console.triage import text
from siem.console.view import path_of
from siem.store.protocol import Document
from siem.store.stages import SHADOW_RUNS

RUNS_READ = 200
"""Newest runs that the library counts."""
RUNS_SHOWN = 25
STAGES: tuple[Stage, ...] = ("draft", "shadow", "approve_all", "live")
JUDGED = {
    **dict.fromkeys(("true_positive", "suspicious"), "people judged right"),
    **dict.fromkeys(("false_positive", "benign"), "people judged wrong"),
}
"""What people said of a finding, as a playbook in shadow is compared with it."""
UNJUDGED = "nobody has judged"


@dataclass(frozen=True, slots=True)
class Breaker:
    """The circuit breaker of an actuator."""

    actuator: str
    failures: int
    """Since a person last closed it, as are the rollbacks."""
    rollbacks: int
    is_open: bool


class Playbooks(Responses):
    """Pages of playbooks and runs, and what people do there."""

    # ---- The library

    def listing(self, request: Request) -> Response:
        """Every playbook with its stage, trigger and runs, as a page or for programs."""
        session = self.site.access.enter(request, "playbooks")
        runs = self.responder.runs.all(limit=RUNS_READ)
        rows = [self._row(one, runs) for one in self.responder.playbooks()]
        if form := formats.form_of(request):
            self.site.exported(session, request)
            return formats.rows(form, rows, len(rows), {}, "playbooks")
        return self.page(
            request,
            session,
            "playbooks.html",
            title="Playbooks",
            current="playbooks",
            rows=rows,
            refused=self.responder.refused(),
            breakers=[one for one in self._breakers(*self.responder.playbooks()) if one.is_open],
            running=[run_row(one) for one in runs if one.state not in RUN_ENDS],
            over=[run_row(one) for one in runs if one.state in RUN_ENDS][:RUNS_SHOWN],
            glyphs=RUN_GLYPHS,
            stage_words=STAGE_WORDS,
        )

    def _row(self, one: Playbook, runs: list[Run]) -> Document:
        own = [run for run in runs if run.playbook.id == one.id]
        last = own[0] if own else None
        return {
            "playbook": one.id,
            "name": one.name,
            "description": one.description,
            "stage": one.stage,
            "class": class_of(one),
            "trigger": dict(one.trigger),
            "signed_by": one.signed_by,
            "version": one.version,
            "runs": len(own),
            "open": sum(run.state not in RUN_ENDS for run in own),
            "last": last.made if last else None,
            "last_state": last.state if last else "",
            "file": one.file,
        }

    def one(self, request: Request, playbook_id: str) -> Response:
        """One playbook: its steps, the safety of each, what it did in shadow, its runs."""
        session = self.site.access.enter(request, "playbooks")
        found = self._playbook(playbook_id)
        if found is None:
            return self.unknown(request, session, f"no playbook is called {playbook_id[:80]}")
        if formats.form_of(request) == "json":
            said = {"shadow_runs": self.responder.shadow_runs(found)}
            return formats.json({**msgspec.to_builtins(found), **said})
        runs = [run for run in self.responder.runs.all(limit=RUNS_READ) if _is_of(run, found)]
        return self.page(
            request,
            session,
            "playbook.html",
            title=found.name,
            current="playbooks",
            one=found,
            action_class=class_of(found),
            runs=[run_row(run) for run in runs[:RUNS_SHOWN]],
            shadow=Counter(run.state for run in runs if run.stage == "shadow"),
            held=sum(len(_held_back(run)) for run in runs),
            judged=self._judged([run for run in runs if run.stage == "shadow"]),
            shadow_runs=self.responder.shadow_runs(found),
            shadow_wanted=SHADOW_RUNS,
            stages=STAGES,
            stage_words=STAGE_WORDS,
            glyphs=RUN_GLYPHS,
            may_stage=session.may("stage"),
            breakers=self._breakers(found),
            name_of={step.id: step.name for step in found.steps.values()},
        )

    def plan(self, request: Request, playbook_id: str) -> Response:
        """What a playbook would do about a finding now; nothing is sent."""
        session = self.site.access.enter(request, "plan")
        found, finding_id = self._playbook(playbook_id), self.site.view_of(request).one("finding")
        if found is None:
            return self.unknown(request, session, f"no playbook is called {playbook_id[:80]}")
        plan = self.responder.plan(found.id, finding_id)
        if formats.form_of(request) == "json":
            return formats.json({"hash": plan.hash, **msgspec.to_builtins(plan)})
        finding = self.node.findings.get(finding_id) or {}
        return self.page(
            request,
            session,
            "plan.html",
            title=f"Plan: {found.name}",
            current="playbooks",
            one=found,
            plan=plan,
            finding=finding,
            diffs=[list(diff_of(planned)) for planned in plan.actions],
            lasts=[length_of(planned, plan) for planned in plan.actions],
            stage_words=STAGE_WORDS,
        )

    def _judged(self, runs: list[Run]) -> Counter[str]:
        """What people said of the findings that it would have acted on."""
        found = (self.node.findings.get(run.plan.finding) for run in runs)
        verdicts = (one.get("finding.verdict", "") if one else "" for one in found)
        return Counter(JUDGED.get(verdict, UNJUDGED) for verdict in verdicts)

    def _breakers(self, *playbooks: Playbook) -> list[Breaker]:
        """The circuit breaker of each actuator that they name."""
        runs = self.responder.runs
        found = ((one, runs.failures(one), runs.rollbacks(one)) for one in actuators_in(playbooks))
        return [
            Breaker(name, len(failed), len(taken_back), is_breaker_open(failed, taken_back))
            for name, failed, taken_back in found
        ]

    # ---- Runs

    def run(self, request: Request, run_id: str) -> Response:
        """One run: plan, checks, journal, effects with the time left."""
        session = self.site.access.enter(request, "playbooks")
        found = self.responder.runs.get(run_id)
        if found is None:
            return self.unknown(request, session, f"no run is called {run_id[:80]}")
        history = self.responder.runs.history(run_id)
        if formats.form_of(request) == "json":
            said = {**run_row(found), **msgspec.to_builtins(found), "history": history}
            return formats.json(said)
        now = self.node.now()
        return self.page(
            request,
            session,
            "run.html",
            title=f"Run of {found.playbook.name}",
            current="playbooks",
            run=found,
            ask=ask_of(found),
            proposal=self.node.sharing.proposals.of_run(run_id),
            rows=[
                (row, found.playbook.steps.get(row.step), _diff(row))
                for row in found.steps
                if row.planned or row.note
            ],
            about={row.id: _name(found, row) for row in found.steps},
            effects=[
                (one, EFFECT_WORDS[one.state], left_of(one.until, now)) for one in found.effects
            ],
            history=history,
            step_glyphs=STEP_GLYPHS,
            glyphs=RUN_GLYPHS,
            is_over=found.state in RUN_ENDS,
        )

    def in_force(self, request: Request) -> Response:
        """What is blocked now: since when, until when, by whom, why; undo now."""
        session = self.site.access.enter(request, "playbooks")
        rows = in_force_rows(self.responder)
        if form := formats.form_of(request):
            self.site.exported(session, request)
            view = self.site.view_of(request)
            limit = number_in(view.one("limit"), 50, 0, ROWS_MAX)
            offset = number_in(view.one("offset"), 0, 0, 1_000_000)
            return formats.rows(form, rows[offset : offset + limit], len(rows), {}, "in-force")
        now = self.node.now()
        left = {one["effect"]: left_of(one["until"], now) for one in rows}
        return self.page(
            request,
            session,
            "in_force.html",
            title="In force",
            current="playbooks",
            rows=rows,
            left=left,
            words=EFFECT_WORDS,
        )

    # ---- Changes

    async def start(self, request: Request) -> Response:
        """Start a playbook on a finding, with the plan that was seen."""
        return await self._post(request, "plan", self._start)

    async def stage(self, request: Request) -> Response:
        """Say how far a playbook may go."""
        return await self._post(request, "stage", self._stage)

    async def stop(self, request: Request) -> Response:
        """Stop everything, a playbook or an actuator; or let it go on."""
        return await self._post(request, "halt", self._stop)

    async def breaker(self, request: Request) -> Response:
        """Close the circuit breaker of an actuator."""
        return await self._post(request, "halt", self._close)

    async def change(self, request: Request) -> Response:
        """Undo an effect, cancel a run, or answer a manual step."""
        return await self._post(request, "halt", self._change)

    async def _post(
        self, request: Request, part: str, do: Callable[[FormData, str], tuple[str, str]]
    ) -> Response:
        form = await body_of(request)
        return await run_in_threadpool(self._done, request, form, part, do)

    def _done(
        self,
        request: Request,
        form: FormData,
        part: str,
        do: Callable[[FormData, str], tuple[str, str]],
    ) -> Response:
        session: Session = self.site.access.enter_by_form(request, part, text(form, "csrf"))
        path, done = do(form, session.person.name)
        if formats.form_of(request):
            return formats.json({"done": done, "path": path})
        back, _, _ = back_to(text(form, "back"), path).partition("?")
        return see_other(f"{back}?done={done}")

    def _start(self, form: FormData, by: str) -> tuple[str, str]:
        playbook, finding = text(form, "playbook"), text(form, "finding")
        run = self.responder.start(playbook, finding, by, text(form, "plan"))
        return path_of("runs", run), "started"

    def _stage(self, form: FormData, by: str) -> tuple[str, str]:
        playbook, stage = text(form, "playbook"), text(form, "stage")
        chosen = next((one for one in STAGES if one == stage), None)
        if chosen is None:
            raise InputError(f"no stage is called {stage[:40]!r}", "stage", f"One of {STAGES}.")
        self.responder.set_stage(playbook, chosen, by, _reason(form))
        return path_of("playbooks", playbook), "stage"

    def _stop(self, form: FormData, by: str) -> tuple[str, str]:
        name, act = text(form, "name") or GLOBAL, text(form, "act")
        if act not in ("stop", "release"):
            raise InputError(f"no act is called {act[:40]!r}", "act", "Write stop or release.")
        if name != GLOBAL and name not in dict(self._names()):
            raise InputError(f"nothing is called {name[:80]!r}", "name", "See the list.")
        self.responder.runs.switch(name, by, _reason(form), on=act == "stop")
        return "/playbooks", "stopped" if act == "stop" else "released"

    def _close(self, form: FormData, by: str) -> tuple[str, str]:
        name = text(form, "actuator")
        if name not in actuators_in(self.responder.playbooks()):
            raise InputError(f"no actuator is called {name[:80]!r}", "actuator", "See the list.")
        self.responder.runs.close_breaker(name, by, _reason(form))
        return "/playbooks", "closed"

    def _change(self, form: FormData, by: str) -> tuple[str, str]:
        run_id, act = text(form, "id"), text(form, "act")
        about, reason = text(form, "about"), text(form, "reason").strip()[:REASON_MAX]
        runs = self.responder.runs
        match act:
            case "undo":
                taken = runs.order(run_id, "undo", by, reason or "undone by a person", about)
            case "cancel":
                taken = runs.order(run_id, "cancel", by, _reason(form))
            case "done" | "failed":
                taken = runs.order(run_id, "answer", by, f"{act}: {reason}", about)
            case _:
                raise InputError(f"no act is called {act[:40]!r}", "act", "See /api.")
        if not taken:
            raise InputError(f"run {run_id[:80]} is over", "id", "Nothing of it is in force.")
        return path_of("runs", run_id), act

    def _playbook(self, id: str) -> Playbook | None:
        return next((one for one in self.responder.playbooks() if one.id == id), None)


def _reason(form: FormData) -> str:
    said = text(form, "reason").strip()[:REASON_MAX]
    if not said:
        raise CitywardError("the reason is empty", "reason", "Say why, in a line.")
    return said


def _name(run: Run, row: StepRow) -> str:
    step = run.playbook.steps.get(row.step)
    return step.name if step is not None else row.step


def _diff(row: StepRow) -> list[tuple[str, str]]:
    """What a step changes; a person's task stands in its form."""
    if row.planned is None or row.planned.actuator == "manual":
        return []
    return list(diff_of(row.planned))


def _is_of(run: Run, playbook: Playbook) -> bool:
    return run.playbook.id == playbook.id


def _held_back(run: Run) -> list[Any]:
    return [row for row in run.steps if row.note.startswith("held back")]
