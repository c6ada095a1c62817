"""City: a minute's reading for whoever answers for the city's security."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby, islice
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from siem.city.known import Duty, Shares
from siem.city.picture import STATES, Picture, Standing
from siem.city.watch import Change
from siem.console import city_map, formats
from siem.console.access import Session
from siem.console.campaigns import lanes
from siem.console.city_map import GLYPHS
from siem.console.city_site import CitySite, sees_all
from siem.console.timespan import Choice
from siem.console.view import View, title_case

CHANGES_SHOWN = 8
BLIND_SHOWN = 8
DRAWN = 40
"""Shares of a campaign that its timeline here is drawn from."""
GROUPS = {
    "energy": "Energy",
    "transport": "Transport",
    "water": "Water",
    "administration": "City",
    "emergency": "Emergency",
    "digital": "Telecom",
    "waste": "Waste",
}
"""First word of a sector, and how people call it."""
PORT = "transport.maritime"


class City:
    """The page of the city."""

    def __init__(self, site: CitySite) -> None:
        self.site = site
        self.node = site.node

    def page(self, request: Request) -> Response:
        """The state of each service, campaigns, what changed, what is not seen."""
        session = self.site.access.enter(request, "city")
        form = formats.form_of(request)
        view = self.site.view_of(request)
        now = self.node.now()
        choice = self.site.choice(view, now)
        shown = self.site.picture(session, choice)
        state = view.one("state") if view.one("state") in STATES else ""
        standings = [one for one in shown.standings if state in ("", one.state)]
        if form:
            self.site.exported(session, request)
            listed = [document(one) for one in standings]
            return formats.rows(form, listed, len(listed), head(shown), "city")
        reading = self.site.reading(session)
        first = shown.campaigns[0] if shown.campaigns else None
        joined = (
            self.site.shares_of(reading, first.derived_from, DRAWN, shown.joined) if first else []
        )
        told = self.node.told(first.id) if first and sees_all(reading.rights) else ()
        return self.site.hub_page(
            request,
            session,
            "city.html",
            shown=[*(one.document for one in shown.campaigns), *joined],
            title="City",
            current="city",
            choice=choice,
            town=self.node.town,
            picture=shown,
            state_word=state,
            groups=_groups(standings),
            counts=[(one, GLYPHS[one], len(shown.of(one))) for one in STATES],
            glyphs=GLYPHS,
            map=city_map.draw(self.node.town, shown),
            campaign=first,
            lanes=lanes(first, joined) if first else None,
            answers=answers(told, first.operators) if first else "",
            since=self._since(session, reading, shown, now),
            duties=clocks(self.node.duties(session.person), now),
            blind_shown=BLIND_SHOWN,
            list_of=_links(choice),
        )

    def _since(
        self, session: Session, reading: Shares, shown: Picture, now: datetime
    ) -> tuple[datetime | None, list[Change]] | None:
        """When the person was here before, and what changed since; None: they are not told."""
        if not shown.is_whole or session.by_token:
            return None
        before = self.site.watch.visit(session.person.name, now)
        since = before or now - timedelta(days=1)
        # Of a campaign that was taken back since nothing is told any more.
        told = (
            one
            for one in self.site.watch.changes(since)
            if one.kind != "campaign" or reading.get(one.about)
        )
        return before, list(islice(told, CHANGES_SHOWN))


@dataclass(frozen=True, slots=True)
class Group:
    """The services of a sector."""

    name: str
    troubled: Sequence[Standing]
    running: Sequence[Standing]


def _groups(standings: Sequence[Standing]) -> list[Group]:
    """Services by sector, in the order in which the city names its sectors; worst first."""
    made = []
    for name, members in groupby(sorted(standings, key=_group_order), key=_group):
        every = list(members)
        troubled = [one for one in every if one.state != "running"]
        running = [one for one in every if one.state == "running"]
        made.append(Group(name, troubled, running))
    return made


def _group(one: Standing) -> str:
    sector = one.service.sector
    word = sector.partition(".")[0]
    return "Port" if sector == PORT else GROUPS.get(word, title_case(word))


def _group_order(one: Standing) -> tuple[int, str, int]:
    names = ["Energy", "Transport", "Port", "Water", "City"]
    name = _group(one)
    place = names.index(name) if name in names else len(names)
    return place, name, STATES.index(one.state)


def _links(choice: Choice) -> Any:
    """Where the list of the shares of a service is."""
    kept = (("from", choice.since_word), ("to", choice.until_word))

    def link(one: Standing) -> str:
        return View("/shared", kept).link(q=one.service.query)

    return link


@dataclass(frozen=True, slots=True)
class Clock:
    """A duty and how much of its time is gone."""

    duty: Duty
    left_s: float
    gone: float
    """Per cent of the time."""
    kind: str
    """Class of the bar: grey below 50 %, amber, from 80 % red."""


def clocks(duties: Sequence[Duty], now: datetime) -> list[Clock]:
    """Open duties, soonest first."""
    made = []
    for one in sorted(duties, key=lambda one: one.due):
        whole = max((one.due - one.began).total_seconds(), 1.0)
        gone = min(max(100 * (now - one.began).total_seconds() / whole, 0.0), 100.0)
        kind = "" if gone < 50 else "mid" if gone < 80 else "hot"
        made.append(Clock(one, (one.due - now).total_seconds(), gone, kind))
    return made


def answers(told: Sequence[Any], operators: Sequence[str]) -> str:
    """Who has answered, in one sentence; empty if nobody was asked."""
    if not told:
        return ""
    answered = {one.operator for one in told if one.answer}
    asked = list(dict.fromkeys(one.operator for one in told))
    open_still = [one for one in asked if one not in answered]
    if not open_still:
        return f"All {len(asked)} that were told have answered."
    who = open_still[0] if len(open_still) == 1 else f"{len(open_still)} operators"
    return f"{len(answered)} of {len(asked)} answered, {who} not yet."


def document(one: Standing) -> dict[str, Any]:
    """A service as programs read it."""
    return {
        "id": one.service.id,
        "name": one.service.name,
        "sector": one.service.sector,
        "operator": one.service.operator,
        "state": one.state,
        "since": one.since,
        "why": one.why,
        "affected": one.affected,
        "unit": one.service.unit,
        "districts": [place.id for place in one.places],
        "exercise": one.exercise,
        "shares": list(one.shares),
    }


def head(shown: Picture) -> dict[str, Any]:
    """What else is on the page."""
    return {
        "headline": shown.headline,
        "counts": {one: len(shown.of(one)) for one in STATES},
        "campaigns": [one.id for one in shown.campaigns],
        "blind": [{"name": one.name, "what": one.what, "since": one.since} for one in shown.blind],
    }
