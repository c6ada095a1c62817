"""Sharing: what would leave beside what stays, who waits for a yes, the ledger, the inbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError
from siem.console import formats
from siem.console.access import Session
from siem.console.body import body_of
from siem.console.protocol import Sharer
from siem.console.site import ROWS_MAX, Fault, Site, back_to, number_in, see_other
from siem.console.triage import text
from siem.console.view import PAGE_ROWS
from siem.sharing import preview as previews
from siem.sharing.envelope import Envelope
from siem.sharing.inbox import newest, told_row
from siem.sharing.ledger import as_document
from siem.sharing.policy import Policy
from siem.sharing.preview import Shown
from siem.sharing.readers import Read
from siem.sharing.wire import Reason
from siem.store.outgoing import Line, Waiting
from siem.store.protocol import Document, Range

SPANS = {"24h": timedelta(hours=24), "7d": timedelta(days=7), "30d": timedelta(days=30)}
FINDINGS_MAX = 2_000
"""So many findings are looked at for a preview, the newest."""
SHOWN = 50
"""Findings in the table of a preview; programs get all."""
INBOX_SHOWN = 200
REASONS: tuple[str, ...] = get_args(Reason)
REASON_MAX = 500
STATES = {
    "receipted": ("Receipted", "running"),
    "sent": ("On its way", "degraded"),
    "not receipted": ("Not receipted", "blind"),
    "refused": ("Refused, sealed anew", "degraded"),
}
"""Word and sign of what the hub said of an envelope."""
DONE = {"approve": "said yes to", "refuse": "said no to", "withdraw": "taken back"}


@dataclass(frozen=True, slots=True)
class Waits:
    """Something that waits for a person, and the very document that would leave."""

    waiting: Waiting
    title: str
    severity: str
    needed: int
    yes: Sequence[str]
    """Who said yes so far."""
    shown: Shown | None


class Sharing:
    """The pages of sharing, at a node."""

    def __init__(self, site: Site, node: Sharer) -> None:
        self.site = site
        self.node = node

    # ---- Preview

    def preview(self, request: Request) -> Response:
        """What would leave of the findings here, as a page or for programs."""
        session = self.site.access.enter(request, "sharing")
        form, view = formats.form_of(request), self.site.view_of(request)
        now = self.node.now()
        since = view.one("since") if view.one("since") in SPANS else "7d"
        policy, fault = self._policy()
        rows = self._findings(now - SPANS[since], now)
        shown = list(previews.preview(policy, rows, now))
        audience = view.one("audience")
        told = previews.for_audience(shown, audience)
        leave = [one for one in told if one.share]
        if form:
            limit = number_in(view.one("limit"), PAGE_ROWS, 0, ROWS_MAX)
            self.site.exported(session, request)
            listed = [previews.row(one) for one in told]
            said = {"since": since, "audience": audience}
            return formats.rows(form, listed[:limit], len(listed), said, "sharing")
        ordered = sorted(told, key=lambda one: one.share is None)
        return self._page(
            request,
            session,
            "sharing.html",
            fault=Fault.of(fault) if fault else None,
            policy=policy,
            since=since,
            spans=list(SPANS),
            audience=audience,
            told=previews.tallies(shown),
            total=len(shown),
            leaving=sum(one.share is not None for one in shown),
            rows=ordered[:SHOWN],
            listed=len(told),
            one=_chosen(told, leave, view.one("id")),
            words=previews.WORDS,
            goes_to=self.node.sharing.goes_to,
        )

    def _policy(self) -> tuple[Policy | None, CitywardError | None]:
        try:
            return self.node.sharing.policy(), None
        except CitywardError as error:
            return None, error

    def _findings(self, since: datetime, now: datetime) -> Sequence[Document]:
        span = Range(since, now + timedelta(days=1))
        return self.node.findings.search("", span, "-finding.last_seen", FINDINGS_MAX).rows

    # ---- Waiting for a yes

    def waiting(self, request: Request) -> Response:
        """What waits for a person before it leaves."""
        session = self.site.access.enter(request, "sharing")
        form = formats.form_of(request)
        policy, fault = self._policy()
        rows = [self._waits(one, policy) for one in self.node.sharing.store.waiting("approval")]
        if form:
            self.site.exported(session, request)
            listed = [_waits_row(one) for one in rows]
            return formats.rows(form, listed, len(listed), {}, "waiting")
        return self._page(
            request,
            session,
            "sharing_waiting.html",
            fault=Fault.of(fault) if fault else None,
            rows=rows,
            samples=[
                one
                for one in self.node.releases.own()
                if one.release and one.release.state == "approval"
            ],
        )

    def _waits(self, one: Waiting, policy: Policy | None) -> Waits:
        finding = self.node.findings.get(one.finding) or {}
        store = self.node.sharing.store
        shown = next(previews.preview(policy, [finding], self.node.now()), None)
        share = shown.share if shown else None
        return Waits(
            waiting=one,
            title=str(finding.get("finding.title", one.finding)),
            severity=str(finding.get("finding.severity", "informational")),
            needed=2 if share and share.approval == "two_person" else 1,
            yes=store.approvers(one.share_id, one.policy, one.rule),
            shown=shown,
        )

    # ---- The ledger

    def ledger(self, request: Request) -> Response:
        """Everything that was sent, with what the hub said of it."""
        session = self.site.access.enter(request, "sharing")
        form, view = formats.form_of(request), self.site.view_of(request)
        store = self.node.sharing.store
        limit = number_in(view.one("limit"), PAGE_ROWS, 1, ROWS_MAX if form else 500)
        offset = number_in(view.one("offset"), 0, 0, 10_000_000)
        lines = store.ledger(view.one("q"), None, limit + 1, offset)
        if form:
            self.site.exported(session, request)
            listed = [as_document(one) for one in lines[:limit]]
            said = {"query": view.one("q"), "offset": offset, "limit": limit}
            return formats.rows(form, listed, offset + len(lines), said, "ledger")
        return self._page(
            request,
            session,
            "sharing_ledger.html",
            rows=[(line, _told_of(line)) for line in lines[:limit]],
            more=len(lines) > limit,
            limit=limit,
            offset=offset,
            proof=self.node.sharing.proof() if view.one("verify") else None,
            states=STATES,
            reasons=REASONS,
        )

    # ---- What the city said

    def inbox(self, request: Request) -> Response:
        """What came from the city: campaigns that our shares are part of."""
        session = self.site.access.enter(request, "sharing")
        form = formats.form_of(request)
        every = [told_row(one) for one in self.node.sharing.store.inbox(1_000)]
        if form:
            self.site.exported(session, request)
            return formats.rows(form, every, len(every), {}, "inbox")
        rows = newest(every)[:INBOX_SHOWN]
        asked = bool(self.site.view_of(request).one("readers"))
        reads, fault = self._readers() if asked else ((), None)
        return self._page(
            request,
            session,
            "sharing_inbox.html",
            fault=Fault.of(fault) if fault else None,
            rows=rows,
            asked=asked,
            reads=reads,
        )

    def _readers(self) -> tuple[Sequence[Read], CitywardError | None]:
        try:
            return self.node.sharing.readers(), None
        except CitywardError as error:
            return (), error

    # ---- What people decide

    async def change(self, request: Request) -> Response:
        """Approve, refuse or withdraw, by a form that needs no script; no program may."""
        form = await body_of(request)
        return await run_in_threadpool(self._change, request, form)

    def _change(self, request: Request, form: FormData) -> Response:
        session = self.site.access.enter_by_form(request, "share", text(form, "csrf"))
        act, note = text(form, "act"), text(form, "note").strip()[:REASON_MAX]
        if act not in DONE:
            raise CitywardError(f"{act!r} is no act", "act", "One of approve, refuse, withdraw.")
        if not note:
            raise CitywardError("the reason is missing", "note", "Say why, in a sentence.")
        did = self._decided if act in ("approve", "refuse") else self._withdrawn
        done = did(session, act, form, note)
        back = back_to(text(form, "back"), "/sharing")
        return see_other(f"{back}{'&' if '?' in back else '?'}done={act}&count={done}")

    def _decided(self, session: Session, act: str, form: FormData, note: str) -> int:
        id, now, by = text(form, "share"), self.node.now(), session.person.name
        if not self.node.sharing.store.approve(id, by, now, yes=act == "approve"):
            what = f"nothing waits under {id[:60]!r}"
            raise CitywardError(what, "share", "It left, or somebody else decided. Load again.")
        self.node.audit(by, "sharing: reason", f"{id}: {note}", now)
        return 1

    def _withdrawn(self, session: Session, act: str, form: FormData, note: str) -> int:
        reason = text(form, "reason")
        if reason not in REASONS:
            raise CitywardError(f"{reason!r} is no reason", "reason", f"{', '.join(REASONS)}.")
        named = {key: text(form, key).strip() for key in ("share", "rule", "token")}
        sent = _span(text(form, "since").strip(), text(form, "until").strip())
        if not any(named.values()) and sent is None:
            what = "nothing says what is taken back"
            raise CitywardError(what, "withdraw", "Name a share, a rule, a token or a time.")
        gone = self.node.sharing.store.withdraw(
            session.person.name,
            reason,
            self.node.now(),
            note=note,
            share_id=named["share"],
            rule=named["rule"],
            token=named["token"],
            sent=sent,
        )
        return len(gone)

    def _page(self, request: Request, session: Session, template: str, **context: Any) -> Response:
        view = self.site.view_of(request)
        said = number_in(view.one("count"), 0, 0, 10_000_000)
        return self.site.page(
            request,
            session,
            template,
            title="Sharing",
            current="sharing",
            tally=self.node.sharing.store.tally(),
            may_change=session.may("share"),
            done=f"{said:,} {'share' if said == 1 else 'shares'} {DONE[view.one('done')]}"
            if view.one("done") in DONE
            else "",
            **context,
        )


def _chosen(told: Sequence[Shown], leave: Sequence[Shown], id: str) -> Shown | None:
    """The finding that is shown whole: the one asked for, else the newest that would leave."""
    asked = (one for one in told if id and one.id == id)
    return next((one for group in (asked, leave, told) for one in group), None)


def _waits_row(one: Waits) -> dict[str, Any]:
    share = one.shown.share if one.shown else None
    return {
        "share_id": one.waiting.share_id,
        "rule": one.waiting.rule,
        "offered": one.waiting.offered,
        "title": one.title,
        "severity": one.severity,
        "needed": one.needed,
        "yes": list(one.yes),
        "leaves": share.payload if share else {},
    }


def _told_of(line: Line) -> Mapping[str, Any]:
    """What an envelope said, for its line: audiences, marking, title."""
    try:
        said = msgspec.json.decode(line.data, type=Envelope)
    except msgspec.MsgspecError:
        return {"audiences": (), "tlp": "", "title": "", "payload": {}}
    return {
        "audiences": said.audiences,
        "tlp": said.tlp,
        "title": said.payload.get("finding.title", ""),
        "payload": said.payload,
    }


def _span(since: str, until: str) -> Range | None:
    """A span of time, by its ends in ISO 8601; None if neither is named.

    Raises:
        CitywardError: an end is no time.
    """
    if not since and not until:
        return None
    ends = {}
    for name, said in (("since", since), ("until", until)):
        if said:
            try:
                time = datetime.fromisoformat(said)
            except ValueError:
                what = f"{said[:40]!r} is no time"
                raise CitywardError(what, name, "Write 2026-11-12T03:00Z.") from None
            ends[name] = time if time.tzinfo else time.replace(tzinfo=UTC)
    return Range(**ends)
