"""Approvals: what waits for a yes, and the page on which a person decides, on a phone too."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError, Unsafe
from siem.console import formats
from siem.console.access import Session
from siem.console.body import body_of
from siem.console.responses import (
    REASON_MAX,
    STEP_GLYPHS,
    UNDONE_BY,
    Ask,
    Responses,
    ask_of,
    asks,
    diff_of,
    length_of,
    outcome_counts,
)
from siem.console.site import see_other
from siem.console.triage import text
from siem.console.view import path_of
from siem.store.protocol import Conflict, Document


class Approvals(Responses):
    """The list of what waits, and the page of one question."""

    def listing(self, request: Request) -> Response:
        """Runs that wait for a yes, as a page or for programs."""
        session = self.site.access.enter(request, "approvals")
        found = asks(self.responder)
        if form := formats.form_of(request):
            self.site.exported(session, request)
            return formats.rows(form, [_row(one) for one in found], len(found), {}, "approvals")
        return self.page(
            request,
            session,
            "approvals.html",
            title="Approvals",
            current="approvals",
            asks=found,
            person=session.person,
        )

    def one(self, request: Request, run_id: str) -> Response:
        """What a run asks: what, why, on what, for how long, how it is undone; or how it ended."""
        session = self.site.access.enter(request, "approvals")
        run = self.responder.runs.get(run_id)
        if run is None:
            return self.unknown(request, session, f"no run is called {run_id[:80]}", "approvals")
        ask = ask_of(run)
        if formats.form_of(request) == "json":
            return formats.json(_document(ask) if ask else {"run": run.id, "state": run.state})
        if ask is None:
            return see_other(path_of("runs", run.id))
        return self.page(request, session, "approval.html", **self._question(ask, session))

    def _question(self, ask: Ask, session: Session) -> dict[str, Any]:
        planned, run = ask.planned, ask.run
        lasts = {row.id: length_of(row.planned, run.plan) for row in ask.rows if row.planned}
        step = run.playbook.steps.get(planned.step)
        return {
            "title": ask.title,
            "current": "approvals",
            "ask": ask,
            "run": run,
            "planned": planned,
            "diffs": [list(diff_of(row.planned, lasts[row.id])) for row in ask.rows if row.planned],
            "lasts": length_of(planned, run.plan),
            "undone_by": UNDONE_BY[step.safety.rollback if step else "none"],
            "limit": step.safety.blast_limit if step else None,
            "counts": outcome_counts(planned),
            "glyphs": STEP_GLYPHS,
            "may": session.may("approve"),
            "why_not": ask.why_not(session.person),
            "role": ask.role_of(session.person),
        }

    async def answer(self, request: Request) -> Response:
        """Say yes or no to the plan that was seen."""
        form = await body_of(request)
        return await run_in_threadpool(self._answer, request, form)

    def _answer(self, request: Request, form: FormData) -> Response:
        session = self.site.access.enter_by_form(request, "approve", text(form, "csrf"))
        run_id = text(form, "id")
        done = self._decide(session, form, run_id)
        if formats.form_of(request):
            return formats.json({"run": run_id, "done": done})
        return see_other(f"{path_of('runs', run_id)}?done={done}")

    def _decide(self, session: Session, form: FormData, run_id: str) -> str:
        runs, person = self.responder.runs, session.person
        reason, answer = text(form, "reason").strip()[:REASON_MAX], text(form, "answer")
        ask = ask_of(runs.get(run_id))
        if ask is None:
            raise Conflict(f"run {run_id[:80]} waits for no yes", "id", "See what became of it.")
        if not reason:
            raise CitywardError("the reason is empty", "reason", "Say why, in a line.")
        if answer == "refuse":
            runs.order(run_id, "cancel", person.name, f"refused: {reason}")
            return "refused"
        if answer != "approve":
            raise CitywardError(
                f"no answer is called {answer[:40]!r}", "answer", "Write approve or refuse."
            )
        if why := ask.why_not(person):
            raise Unsafe(why, run_id, "Nothing was approved.")
        role, seen = ask.role_of(person), text(form, "plan")
        if not runs.approve(run_id, person.name, role, seen, reason):
            raise Conflict(
                "the plan is not the one that you saw",
                f"run {run_id}",
                "Nothing was approved; look at the plan as it is now.",
            )
        return "approved"


def _row(ask: Ask) -> Document:
    planned = ask.planned
    return {
        "run": ask.run.id,
        "playbook": ask.run.playbook.name,
        "finding": ask.run.plan.finding,
        "title": ask.title,
        "class": planned.action_class,
        "actuator": planned.actuator,
        "target": f"{planned.target.type} {planned.target.value}".strip(),
        "asked_by": ask.run.asked_by,
        "yes": [one.by for one in ask.yes],
        "needed": ask.needed,
        "until": ask.until,
        "plan": ask.run.plan.hash,
    }


def _document(ask: Ask) -> Document:
    return _row(ask) | {
        "steps": [
            {
                "step": row.id,
                "name": one.name,
                "commands": one.commands,
                "prior": one.prior,
                "until": one.until,
                "undo": one.undo,
                "dependants": one.dependants,
                "checks": one.checks,
            }
            for row in ask.rows
            if (one := row.planned) is not None
        ]
    }
