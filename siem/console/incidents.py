"""Incidents: the board, a page a case with its clocks, and drafts of what the law asks for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import InputError
from cityward.finding import SEVERITIES
from siem.console import formats, timespan
from siem.console.access import Session
from siem.console.body import body_of
from siem.console.protocol import Cased
from siem.console.site import ROWS_MAX, Site, back_to, number_in, see_other
from siem.console.triage import opened, text
from siem.console.view import View, path_of
from siem.duties import Clock, Duty, clocks, draft
from siem.store.cases import CAUSES, STAGES, Incident, Submission
from siem.store.protocol import Document

FINDINGS_SHOWN = 100
BOARD = STAGES[:-1]
BOARD_SHOWN = 50
SOON = timedelta(hours=6)
"""A clock that ends within this time is shown in red before it is overdue."""


class Incidents:
    """The pages of incidents, at a node and at the hub.

    Args:
        site: The console.
        node: What is behind it.
        findings_at: Path under which a finding of an incident has its page.
    """

    def __init__(self, site: Site, node: Cased, findings_at: str = "findings") -> None:
        self.site = site
        self.node = node
        self._findings_at = findings_at

    # ---- The board

    def listing(self, request: Request) -> Response:
        """All incidents by stage, as a page or for programs."""
        session = self.site.access.enter(request, "incidents")
        form, view = formats.form_of(request), self.site.view_of(request)
        closed = view.one("closed") == "1"
        rows = self.node.cases.all(open_only=not closed, words=view.one("q"))
        now = self.node.now()
        if form:
            limit = number_in(view.one("limit"), 50, 0, ROWS_MAX)
            offset = number_in(view.one("offset"), 0, 0, 1_000_000)
            self.site.exported(session, request)
            said = {"query": view.one("q"), "offset": offset, "limit": limit}
            shown = [self._document(one, now) for one in rows[offset : offset + limit]]
            return formats.rows(form, shown, len(rows), said, "incidents")
        running = {one.id: self._clocks(one, now) for one in rows}
        stages = [stage for stage in BOARD if closed or stage != "closed"]
        return self.site.page(
            request,
            session,
            "incidents.html",
            title="Incidents",
            current="incidents",
            query_path="/incidents",
            query_hint="Words of the title, service, owner or number",
            board=[
                (
                    stage,
                    [(one, running[one.id]) for one in rows if one.stage == stage][:BOARD_SHOWN],
                )
                for stage in stages
            ],
            counts={stage: sum(one.stage == stage for one in rows) for stage in stages},
            total=len(rows),
            closed=closed,
            soon=SOON,
            severities=SEVERITIES,
            may_change=session.may("cases"),
        )

    def _clocks(self, one: Incident, now: datetime) -> list[Clock]:
        return clocks(one, self.node.deadlines, now, self.node.case_findings(one.findings))

    def _document(self, one: Incident, now: datetime) -> Document:
        said: Document = msgspec.to_builtins(one)
        running = self._clocks(one, now)
        return said | {
            "clocks": [
                {
                    "duty": clock.duty.id,
                    "state": clock.state,
                    "due": clock.due,
                    "filled": clock.filled,
                    "fields": len(clock.duty.fields),
                }
                for clock in running
            ]
        }

    # ---- One

    def one(self, request: Request, incident_id: str) -> Response:
        """One incident, as a page or as JSON."""
        session = self.site.access.enter(request, "incidents")
        found = self.node.cases.get(incident_id)
        if found is None:
            return self._unknown(request, session, incident_id)
        now = self.node.now()
        if formats.form_of(request) == "json":
            return formats.json(self._document(found, now))
        findings = self.node.case_findings(found.findings)
        running = clocks(found, self.node.deadlines, now, findings)
        return self.site.page(
            request,
            session,
            "incident.html",
            title=f"{found.id} {found.title}",
            current="incidents",
            one=found,
            home=path_of("incidents", found.id),
            findings=findings[:FINDINGS_SHOWN],
            findings_at=self._findings_at,
            assets=_assets(findings),
            clocks=running,
            soon=SOON,
            timeline=_timeline(found, findings),
            deadlines=self.node.deadlines,
            stages=BOARD,
            causes=CAUSES,
            severities=SEVERITIES,
            others=[one for one in self.node.cases.all(open_only=True) if one.id != found.id],
            people=[one.name for one in self.node.accounts.people() if not one.disabled],
            may_change=session.may("cases") and not found.merged_into,
            done=self.site.view_of(request).one("done"),
        )

    def draft(self, request: Request, incident_id: str, duty_id: str) -> Response:
        """The draft of a duty: what the case knows, what people wrote, and who sent it."""
        session = self.site.access.enter(request, "incidents")
        found, duty = self.node.cases.get(incident_id), self.node.deadlines.get(duty_id)
        if found is None or duty is None:
            return self._unknown(request, session, f"{incident_id} {duty_id}")
        findings = self.node.case_findings(found.findings)
        now = self.node.now()
        (clock,) = clocks(
            msgspec.structs.replace(found, duties=(duty.id,)), self.node.deadlines, now, findings
        )
        return self.site.page(
            request,
            session,
            "draft.html",
            title=f"{duty.name}, {found.id}",
            current="incidents",
            one=found,
            duty=duty,
            clock=clock,
            answers=draft(found, duty, findings),
            soon=SOON,
            sent=next((one for one in found.submissions if one.duty == duty.id), None),
            home=path_of("incidents", found.id),
            may_change=session.may("cases") and not found.merged_into,
            done=self.site.view_of(request).one("done"),
        )

    def _unknown(self, request: Request, session: Session, what: str) -> Response:
        said, todo = f"no incident is called {what[:80]}", "Look in the list of incidents."
        return self.site.unknown(request, session, "incidents", said, todo)

    # ---- Changes

    async def change(self, request: Request) -> Response:
        """One act on an incident, by a form that needs no script."""
        form = await body_of(request)
        return await run_in_threadpool(self._change, request, form)

    def _change(self, request: Request, form: FormData) -> Response:
        session = self.site.access.enter_by_form(request, "cases", text(form, "csrf"))
        changed = self._do(form, session.person.name, self.node.now())
        if formats.form_of(request):
            return formats.json(self._document(changed, self.node.now()))
        back = back_to(text(form, "back"), path_of("incidents", changed.id))
        path, _, _ = back.partition("?")
        return see_other(View(path, ()).link(done=text(form, "act")))

    def _do(self, form: FormData, by: str, now: datetime) -> Incident:
        cases, act, id = self.node.cases, text(form, "act"), text(form, "id")
        findings = [str(one) for one in form.getlist("finding") if str(one)]
        match act:
            case "open":
                said = _changes(form, now)
                return opened(self.node, said.pop("title", ""), by, now, findings, **said)
            case "change":
                seen = number_in(text(form, "revision"), 0, 0, 1_000_000_000) or None
                said = _changes(form, now)
                return cases.change(id, by, now, text(form, "reason"), seen, **said)
            case "join":
                return cases.join(id, findings, by, now)
            case "leave":
                return cases.leave(id, findings, by, now)
            case "note":
                return cases.note(id, text(form, "text"), by, now)
            case "task":
                return cases.add_task(id, text(form, "text"), by, now)
            case "done":
                number = number_in(text(form, "number"), 0, 0, 100_000)
                return cases.do_task(id, number, by, now)
            case "answer":
                duty = self._duty(text(form, "duty"))
                answers = {
                    asked.name: text(form, f"a.{asked.name}")
                    for asked in duty.fields
                    if f"a.{asked.name}" in form
                }
                return cases.answer(id, duty.id, answers, by, now)
            case "submit":
                return self._submit(form, id, by, now)
            case "merge":
                return cases.merge(id, text(form, "other"), by, now)
            case "split":
                return cases.split(id, findings, text(form, "title"), by, now)
        raise InputError(f"no act is called {act[:40]!r}", "act", "See /api.")

    def _submit(self, form: FormData, id: str, by: str, now: datetime) -> Incident:
        duty = self._duty(text(form, "duty"))
        found = self.node.cases.get(id)
        if found is None:
            raise InputError(f"there is no incident {id[:40]!r}", "id", "See the list.")
        answers = draft(found, duty, self.node.case_findings(found.findings))
        said = "\n\n".join(f"{one.asked.asks}\n{one.text}" for one in answers if one.text)
        time = text(form, "time")
        sent = Submission(
            duty=duty.id,
            by=by,
            time=timespan.moment(time, "time", now) if time else now,
            to=text(form, "to").strip() or duty.to,
            reference=text(form, "reference").strip()[:200],
            text=said,
        )
        return self.node.cases.submit(id, sent, now)

    def _duty(self, id: str) -> Duty:
        duty = self.node.deadlines.get(id)
        if duty is None:
            todo = f"One of {', '.join(self.node.deadlines)}."
            raise InputError(f"no duty is called {id[:40]!r}", "duty", todo)
        return duty


def _changes(form: FormData, now: datetime) -> dict[str, Any]:
    said: dict[str, Any] = {
        name: text(form, name).strip()
        for name in ("title", "stage", "severity", "cause", "summary", "owner")
        if name in form and (text(form, name) or name in ("summary", "owner"))
    }
    if "services" in form:
        said["services"] = [one.strip() for one in text(form, "services").split(",")]
    if "duties" in form:
        said["duties"] = [str(one) for one in form.getlist("duties") if str(one)]
    if aware := text(form, "aware_at").strip():
        time = timespan.moment(aware, "aware_at", now)
        if time > now:
            raise InputError(f"{aware} is not past", "aware_at", "Say when it became known.")
        said["aware_at"] = time
    return said


def _assets(findings: Sequence[Document]) -> list[str]:
    found = (str(one.get("cw.asset.asset_id", "")) for one in findings)
    return list(dict.fromkeys(one for one in found if one))


def _timeline(one: Incident, findings: Sequence[Document]) -> list[dict[str, Any]]:
    """Findings and what people did, newest first."""
    said: list[dict[str, Any]] = [
        {
            "time": finding["finding.first_seen"],
            "what": finding["finding.title"],
            "finding": finding,
            "by": "",
            "why": "",
        }
        for finding in findings[:FINDINGS_SHOWN]
    ]
    said += [
        {"time": step.time, "what": step.what, "finding": None, "by": step.by, "why": step.why}
        for step in one.history
    ]
    far = datetime.max.replace(tzinfo=UTC)
    return sorted(said, key=lambda line: line["time"] or far, reverse=True)
