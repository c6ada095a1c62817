"""Proposals of the city: what this node's engine made of them, and what people say to them."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError, InputError
from siem.console import formats
from siem.console.body import body_of
from siem.console.site import ROWS_MAX, NodeSite, see_other
from siem.console.triage import text
from siem.sharing.proposals import WHY_WORDS, in_words
from siem.store.proposals import DECLINES, Proposed, Why
from siem.store.protocol import Conflict, Document

PATH = "/sharing/proposals"
SHOWN = 200
"""The newest, on the page; programs get all that are kept."""
GLYPHS = {
    "new": "degraded",
    "planned": "degraded",
    "approved": "degraded",
    "applied": "running",
    "undone": "running",
    "done": "running",
    "declined": "blind",
    "not possible": "blind",
    "expired": "blind",
}
"""Sign of a state."""
DONE = {"accept": "It is planned anew", "decline": "Declined"}


class Proposals:
    """The page of proposals, and what people do there."""

    def __init__(self, site: NodeSite) -> None:
        self.site = site
        self.node = site.node

    def listing(self, request: Request) -> Response:
        """What the city proposed, the newest first, as a page or for programs."""
        session = self.site.access.enter(request, "sharing")
        form = formats.form_of(request)
        found = self.node.sharing.proposals.all(ROWS_MAX if form else SHOWN)
        if form:
            self.site.exported(session, request)
            return formats.rows(form, [_row(one) for one in found], len(found), {}, "proposals")
        return self.site.page(
            request,
            session,
            "proposals.html",
            title="Proposals of the city",
            current="sharing",
            tally=self.node.sharing.store.tally(),
            waiting=self.node.sharing.proposals.waiting(),
            rows=[(one, in_words(one.state, one.why), self._title(one)) for one in found],
            glyphs=GLYPHS,
            declines=[(one, WHY_WORDS[one]) for one in DECLINES],
            answers=self._answers(),
            most=SHOWN,
            is_on=self.node.response.is_on,
            may_decide=session.may("plan"),
            done=DONE.get(self.site.view_of(request).one("done"), ""),
        )

    def _title(self, one: Proposed) -> str:
        finding = self.node.findings.get(one.finding) if one.finding else None
        return str(finding.get("finding.title", "")) if finding else ""

    def _answers(self) -> str:
        """How much of an answer leaves."""
        try:
            policy = self.node.sharing.policy()
        except CitywardError:
            return "none"
        return policy.answers if policy else "none"

    async def change(self, request: Request) -> Response:
        """Have one planned, or decline it."""
        form = await body_of(request)
        return await run_in_threadpool(self._change, request, form)

    def _change(self, request: Request, form: FormData) -> Response:
        session = self.site.access.enter_by_form(request, "plan", text(form, "csrf"))
        id, act = text(form, "id"), text(form, "act")
        self._do(act, id, form, session.person.name)
        if formats.form_of(request):
            return formats.json({"proposal": id, "done": act})
        return see_other(f"{PATH}?done={act}")

    def _do(self, act: str, id: str, form: FormData, by: str) -> None:
        store, now = self.node.sharing.proposals, self.node.now()
        one = store.get(id)
        if one is None:
            raise InputError(f"no proposal is called {id[:80]}", "id", "Look in the list.")
        match act:
            case "accept":
                done = store.accept(id, by, now)
            case "decline":
                why = _why(text(form, "why"))
                done = store.decline(id, by, why, text(form, "note").strip(), now)
                if done:
                    self._cancel(one, by, why)
            case _:
                raise InputError(f"no act is called {act[:40]!r}", "act", "accept or decline.")
        if not done:
            what = f"the proposal is over, or does it already: {in_words(one.state, one.why)}"
            raise Conflict(what, f"proposal {id[:80]}", "What is in force is undone at its run.")

    def _cancel(self, one: Proposed, by: str, why: str) -> None:
        """The run that it began goes with it; one of our own, or of another proposal, goes on."""
        if one.run == one.own_run:
            self.node.response.runs.order(one.run, "cancel", by, f"declined: {WHY_WORDS[why]}")


def _why(said: str) -> Why:
    for one in DECLINES:
        if one == said:
            return one
    todo = f"One of {', '.join(DECLINES)}."
    raise InputError(f"{said[:40]!r} is no reason that may leave", "why", todo)


def _row(one: Proposed) -> Document:
    said: dict[str, Any] = {
        "proposal": one.id, "campaign": one.campaign, "received": one.received,
        "expires": one.expires, "playbook": one.said.playbook, "action": one.said.action,
        "reason": one.said.reason, "by": one.said.by, "indicator": one.said.indicator,
        "state": one.state, "why": one.why, "person": one.person, "note": one.note,
        "finding": one.finding, "run": one.run, "changed": one.changed,
        "answered": one.answered.partition("/")[0],
    }  # fmt: skip
    return said
