"""Campaigns: what the hub joined from shares of several operators, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError
from cityward.finding import SEVERITIES
from siem.city.picture import Campaign, campaign, is_campaign
from siem.console import formats
from siem.console.access import Session
from siem.console.body import body_of
from siem.console.city_site import CAMPAIGNS, CitySite, sees_all
from siem.console.findings import added_chip
from siem.console.site import PAGE_MAX, ROWS_MAX, Fault, number_in, see_other
from siem.console.timespan import Choice, word
from siem.console.triage import text
from siem.console.view import PAGE_ROWS, Mark, View, clock, path_of, query_of
from siem.store.protocol import Document, Page

LANES_MAX = 12
LANE_PX = 26
APART = 2.4
"""Glyphs that are nearer than this, in per cent of the width, are drawn as the worse of them."""
MARKS = 5


class Campaigns:
    """The pages of campaigns."""

    def __init__(self, site: CitySite) -> None:
        self.site = site
        self.node = site.node

    def listing(self, request: Request) -> Response:
        """Campaigns, the newest first, as a page or for programs."""
        session = self.site.access.enter(request, "campaigns")
        form = formats.form_of(request)
        view = self.site.view_of(request)
        if added := added_chip(view):
            return see_other(added)
        choice = self.site.choice(view, self.node.now())
        limit = number_in(view.one("limit"), PAGE_ROWS, 0, ROWS_MAX if form else PAGE_MAX)
        offset = number_in(view.one("offset"), 0, 0, 1_000_000)
        query, shift = query_of(view, CAMPAIGNS)
        reading = self.site.reading(session)
        fault, page = None, Page([], 0)
        try:
            page = reading.search(query, choice.span, "-finding.last_seen", limit, offset)
        except CitywardError as error:
            fault = Fault.of(error, view.one("q"), shift)
            if form:
                return formats.error(400, fault.what, fault.where, fault.todo)
        if form:
            self.site.exported(session, request)
            said = {"query": query, "from": word(choice.span.since), "to": word(choice.span.until)}
            return formats.rows(form, page.rows, page.total, said, "campaigns")
        return self.site.hub_page(
            request,
            session,
            "campaigns.html",
            400 if fault else 200,
            shown=page.rows,
            title="Campaigns",
            current="campaigns",
            view=view,
            choice=choice,
            fault=fault,
            rows=[campaign(one) for one in page.rows],
            total=page.total,
            limit=limit,
            offset=offset,
            empty=None if page.rows or fault else self._why_empty(view, choice),
            query_hint="Query campaigns, for example  cw.campaign.join:token",
        )

    def _why_empty(self, view: View, choice: Choice) -> str:
        return "match" if view.one("q").strip() or view.chips else "range"

    def one(self, request: Request, campaign_id: str) -> Response:
        """One campaign with all that it rests on, as a page or as JSON."""
        session = self.site.access.enter(request, "campaigns")
        form = formats.form_of(request)
        reading = self.site.reading(session)
        found = reading.get(campaign_id)
        if found is None or not is_campaign(found):
            return self._unknown(request, session, campaign_id)
        one = campaign(found)
        shares = self.site.shares_of(reading, one.derived_from)
        told = list(self.node.told(one.id)) if sees_all(reading.rights) else []
        may_propose = session.may("propose") and sees_all(reading.rights)
        if form:
            return formats.json({**found, "rests_on": shares, "told": told})
        return self.site.hub_page(
            request,
            session,
            "campaign.html",
            shown=[found, *shares],
            title=one.title,
            current="campaigns",
            view=View("/shared", ()),
            campaign=one,
            lanes=lanes(one, shares),
            shares=shares,
            hidden=max(0, len(one.derived_from) - len(shares)),
            told_rows=told,
            done=self.site.view_of(request).one("done") == "proposed",
            ways=self.node.proposable() if may_propose else (),
            concerned=self.node.concerned(one.id) if may_propose else (),
            may_see_told=sees_all(reading.rights),
        )

    async def propose(self, request: Request) -> Response:
        """Propose a response to operators of a campaign, by a form that needs no script."""
        form = await body_of(request)
        return await run_in_threadpool(self._propose, request, form)

    def _propose(self, request: Request, form: FormData) -> Response:
        session = self.site.access.enter_by_form(request, "propose", text(form, "csrf"))
        id, reading = text(form, "id"), self.site.reading(session)
        found = reading.get(id)
        if found is None or not is_campaign(found) or not sees_all(reading.rights):
            return self._unknown(request, session, id)
        operators = [str(one) for one in form.getlist("operator") if isinstance(one, str)]
        reason, by = text(form, "reason").strip(), session.person.name
        self.node.propose(id, text(form, "playbook"), operators, reason, by)
        if formats.form_of(request):
            return formats.json({"campaign": id, "done": "proposed", "operators": operators})
        return see_other(f"{path_of('campaigns', id)}?done=proposed")

    def _unknown(self, request: Request, session: Session, campaign_id: str) -> Response:
        what = f"no campaign has the id {campaign_id[:80]}, or it is not for you"
        todo = "Look in the list; one that was withdrawn is gone."
        return self.site.unknown(request, session, "campaigns", what, todo)


@dataclass(frozen=True, slots=True)
class Spot:
    """A share on a lane."""

    x: str
    severity: str
    id: str


@dataclass(frozen=True, slots=True)
class Lane:
    """An operator's row of the timeline."""

    operator: str
    y: int
    since: str
    until: str
    spots: Sequence[Spot]
    count: int
    first: datetime
    last: datetime
    worst: str


@dataclass(frozen=True, slots=True)
class Lanes:
    """Timeline of a campaign by operator, x in per cent."""

    lanes: Sequence[Lane]
    marks: Sequence[Mark]
    height: int
    said: str
    """The same in words."""
    more: int
    """Operators that are not drawn."""


def lanes(one: Campaign, shares: Sequence[Document]) -> Lanes | None:
    """The timeline of a campaign from the shares that may be seen; None without any."""
    if not shares:
        return None
    first = min(share["finding.first_seen"] for share in shares)
    last = max(_last(share) for share in shares)
    first, last = _frame(first, last)
    whole_s = (last - first).total_seconds()

    def at(time: datetime) -> float:
        return 100 * (time - first).total_seconds() / whole_s

    by_operator: dict[str, list[Document]] = {}
    for share in shares:
        by_operator.setdefault(str(share.get("cw.operator", "")), []).append(share)
    order = sorted(by_operator, key=lambda name: min(_firsts(by_operator[name])))
    drawn = [
        _lane(name, number, by_operator[name], at) for number, name in enumerate(order[:LANES_MAX])
    ]
    step_s = whole_s / (MARKS - 1)
    marks = [
        Mark(
            f"{100 * number / (MARKS - 1):.0f}%",
            f"{first + timedelta(seconds=number * step_s):%H:%M}"
            if whole_s < 2 * 86_400
            else f"{first + timedelta(seconds=number * step_s):%d %b}",
            "start" if number == 0 else "end" if number == MARKS - 1 else "middle",
        )
        for number in range(MARKS)
    ]
    said = ", ".join(f"{lane.operator} from {clock(lane.first, 'full')[:16]}" for lane in drawn)
    return Lanes(
        drawn,
        marks,
        len(drawn) * LANE_PX + 20,
        f"Campaign by operator over time: {said}, rising to {one.severity}",
        len(order) - len(drawn),
    )


def _lane(name: str, number: int, shares: Sequence[Document], at: Any) -> Lane:
    spots: list[Spot] = []
    placed: list[float] = []
    for share in sorted(shares, key=lambda one: one["finding.first_seen"]):
        x = at(share["finding.first_seen"])
        severity = str(share.get("finding.severity", "informational"))
        spot = Spot(f"{x:.1f}%", severity, str(share.get("cw.share.id", "")))
        if placed and x - placed[-1] < APART:
            if _rank(severity) > _rank(spots[-1].severity):
                spots[-1] = Spot(spots[-1].x, severity, spot.id)
            continue
        spots.append(spot)
        placed.append(x)
    first, last = min(_firsts(shares)), max(map(_last, shares))
    worst = max((str(one.get("finding.severity")) for one in shares), key=_rank)
    y = number * LANE_PX + LANE_PX // 2
    ends = max(at(last), placed[-1])
    return Lane(
        name, y, f"{at(first):.1f}%", f"{ends:.1f}%", spots, len(shares), first, last, worst
    )


def _frame(first: datetime, last: datetime) -> tuple[datetime, datetime]:
    """The span that is drawn, a little wider, at least ten minutes, in whole minutes."""
    edge = max((last - first) / 14, timedelta(minutes=5))
    return (first - edge).replace(second=0, microsecond=0), last + edge


def _firsts(shares: Sequence[Document]) -> list[datetime]:
    return [share["finding.first_seen"] for share in shares]


def _last(share: Document) -> datetime:
    last: datetime = share.get("finding.last_seen") or share["finding.first_seen"]
    return last


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else -1
