"""What the pages of the hub's console share: shell, picture, marking."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError
from siem.city import picture
from siem.city.commons import CITY, TLP, Rights
from siem.city.known import Link, Shares
from siem.city.picture import LOOKED_AT, Picture
from siem.city.watch import Watch
from siem.console import timespan, view
from siem.console.access import LANDS_ON, Access, Session
from siem.console.city_protocol import CityConsole
from siem.console.site import Entry, Shell, Site
from siem.store.protocol import Document, Range

log = logging.getLogger(__name__)

HUB_SHELL = Shell(
    nav=(
        Entry("city", "/city", "City", "c"),
        Entry("campaigns", "/campaigns", "Campaigns", "m", "in 24 h"),
        Entry("shared", "/shared", "Findings", "f", icon="findings"),
        Entry("incidents", "/incidents", "Incidents", "i", "open"),
        Entry("duties", "/duties", "Duties", "d", "open"),
        Entry("operators", "/operators", "Operators", "o"),
        Entry("people", "/people", "People", "p"),
        Entry("audit", "/audit", "Audit", "u"),
    ),
    lists=("/shared", "/campaigns"),
    timed=("/city", "/shared", "/campaigns"),
    search=("/shared", "Query shared findings"),
    lands_on=LANDS_ON | {"administrator": "/operators"},
    otherwise="/keys",
    state="state_hub.html",
    scope="All operators",
)

CAMPAIGNS = f"cw.operator:{CITY} and cw.campaign.join:*"
SEVERE_ONES = "finding.severity:(high or critical or fatal)"
SHARES_MAX = 3_000
"""Shares that a picture rests on, and as many severe ones besides."""
COUNTED_FOR = timedelta(seconds=30)
FRESH = timedelta(seconds=5)
"""How old a picture may be; it is one person's."""
LINKS_FOR = timedelta(seconds=1)
PICTURES_MAX = 64
HINT = "Query shared findings, for example  cw.sector:energy.* and finding.severity:critical"
ROTATE_S = 30
"""Seconds that a page stands in a kiosk."""
KIOSK = ("/city", "/campaigns")


class CitySite(Site):
    """The console of a hub."""

    shell = HUB_SHELL
    node: CityConsole

    def __init__(self, node: CityConsole, access: Access) -> None:
        super().__init__(node, access)
        self.watch = Watch(node.records)
        self._pictures: OrderedDict[tuple[str, str, str], tuple[datetime, Picture]] = OrderedDict()
        self._counted: OrderedDict[str, tuple[datetime, int]] = OrderedDict()
        self._links: tuple[datetime, Sequence[Link]] | None = None
        self._lock = threading.Lock()

    def counts(self, session: Session, now: datetime) -> dict[str, str]:
        """Operators, and campaigns of the last 24 h as far as the person may see them."""
        counts: dict[str, str] = {}
        try:
            if session.may("operators"):
                counts["operators"] = view.number(len(self.links()))
            if session.may("duties"):
                running = len(self.node.duties(session.person))
                counts["duties"] = view.number(running) if running else ""
            if session.may("incidents"):
                cases = self.node.cases.running()
                counts["incidents"] = view.number(cases) if cases else ""
            if session.may("campaigns"):
                found = self._campaigns(session, now)
                counts["campaigns"] = view.number(found) if found else ""
        except CitywardError as error:
            log.warning("Counts beside the navigation failed: %s.", error.what)
        return counts

    def _campaigns(self, session: Session, now: datetime) -> int:
        """Campaigns of the last 24 h; a count of half a minute ago will do beside a word."""
        day = timespan.choose("", "", now)
        with self._lock:
            kept = self._pictures.get(_key(session, day))
            counted = self._counted.get(session.person.name)
        if kept and timedelta() <= now - kept[0] < COUNTED_FOR:
            return len(kept[1].campaigns)
        if counted and timedelta() <= now - counted[0] < COUNTED_FOR:
            return counted[1]
        found = self.reading(session).search(CAMPAIGNS, day.span, limit=1).total
        with self._lock:
            self._counted[session.person.name] = (now, found)
            while len(self._counted) > PICTURES_MAX:
                self._counted.popitem(last=False)
        return found

    def state(self, session: Session, now: datetime) -> dict[str, Any]:
        """How operators are linked; a person who may not see them is told nothing of them."""
        if not session.may("operators"):
            return {"links": None}
        links = [one for one in self.links() if one.state != "revoked"]
        silent = [one for one in links if one.state == "silent"]
        since = [one.heartbeat for one in silent if one.heartbeat]
        signed = [one.countersigned for one in links if one.countersigned]
        return {
            "links": len(links),
            "linked": sum(one.state == "linked" for one in links),
            "silent": silent,
            "silent_s": (now - min(since)).total_seconds() if since else None,
            "lag_s": max((one.lag_s for one in links), default=0.0),
            "gaps": sum(one.gaps for one in links),
            "countersigned": max(signed, default=None),
            "facts": self.node.facts(),
        }

    def links(self) -> Sequence[Link]:
        """Every operator; a page asks several times, and once is enough."""
        now = self.node.now()
        asked = self._links
        if asked is None or not timedelta() <= now - asked[0] < LINKS_FOR:
            asked = self._links = (now, self.node.links())
        return asked[1]

    def reading(self, session: Session) -> Shares:
        """Shared findings as the person of a session may see them."""
        return self.node.reading(session.person)

    def picture(self, session: Session, choice: timespan.Choice) -> Picture:
        """How the city stands, as far as a person may see it."""
        now = self.node.now()
        key = _key(session, choice)
        with self._lock:
            kept = self._pictures.get(key)
        if kept and timedelta() <= now - kept[0] < FRESH:
            return kept[1]
        reading = self.reading(session)
        is_whole = sees_all(reading.rights)
        rows = self._looked_at(reading, choice.span)
        links = self.links() if is_whole and session.may("operators") else ()
        made = picture.picture(
            self.node.town,
            rows,
            links,
            now,
            is_whole=is_whole,
            threshold=reading.rights.threshold,
        )
        # A shorter range leaves out what is still so, and would make changes that are none.
        if is_whole and (choice.since_word, choice.until_word) == timespan.DEFAULT:
            self.watch.look(made, now)
        with self._lock:
            self._pictures[key] = (now, made)
            while len(self._pictures) > PICTURES_MAX:
                self._pictures.popitem(last=False)
        return made

    def _looked_at(self, reading: Shares, span: Range) -> list[Document]:
        """The newest shares that can change a picture; of too many also older severe ones."""
        page = reading.search(LOOKED_AT, span, limit=SHARES_MAX)
        rows = list(page.rows)
        if page.total > len(rows):
            there = {one.get("cw.share.id") for one in rows}
            severe = reading.search(SEVERE_ONES, span, limit=SHARES_MAX).rows
            rows += [one for one in severe if one.get("cw.share.id") not in there]
        return rows

    def shares_of(
        self,
        reading: Shares,
        ids: Sequence[str],
        limit: int = 200,
        known: Mapping[str, Document] = MappingProxyType({}),
    ) -> list[Document]:
        """Shares by their ids, the newest first; one that is gone or not to be seen is left out.

        Args:
            reading: Of who asks.
            ids: Which ones.
            limit: How many at most.
            known: Those that were read for this person already.
        """
        wanted = list(dict.fromkeys(ids))[:limit]
        found = [share for one in wanted if (share := known.get(one) or reading.get(one))]
        return sorted(found, key=lambda one: one["finding.last_seen"], reverse=True)

    def hub_page(
        self,
        request: Request,
        session: Session,
        template: str,
        status: int = 200,
        *,
        shown: Iterable[Document] = (),
        **context: Any,
    ) -> Response:
        """A page with its marking; in a kiosk it goes on by itself.

        Args:
            request: What was asked.
            session: By whom.
            template: Of the page.
            status: Of the answer.
            shown: Shared findings that are on it: the most closed of them marks the page.
            **context: For the template.
        """
        rights = self.reading(session).rights
        tlp = marking(rights, shown)
        asked = self.view_of(request)
        is_kiosk = asked.one("kiosk") == "1"
        context.setdefault("query_hint", HINT)
        response = self.page(
            request,
            session,
            template,
            status,
            tlp=tlp,
            sheet=tlp.replace("+", "-"),
            readers=readers(rights),
            kiosk=is_kiosk,
            told=lambda count: picture.told(count, rights.threshold),
            **context,
        )
        if is_kiosk and status == 200:
            after = KIOSK[(KIOSK.index(asked.path) + 1) % len(KIOSK)] if asked.path in KIOSK else ""
            onward = f"; url={asked.link(after)}" if after else ""
            response.headers["refresh"] = f"{ROTATE_S}{onward}"
        return response


def _key(session: Session, choice: timespan.Choice) -> tuple[str, str, str]:
    who = session.person
    return f"{who.name}\0{who.epoch}", choice.since_word, choice.until_word


def sees_all(rights: Rights) -> bool:
    """Whether somebody is of the city's own SOC, who sees all that the hub holds."""
    return "city-soc" in rights.audiences and rights.operators is None


def marking(rights: Rights, shown: Iterable[Document]) -> str:
    """The TLP of a page: that of the most closed share on it; of the SOC never less than its own.

    What is on no share – services, links, what was told – is of the city's SOC alone.
    """
    if sees_all(rights):
        return "amber+strict"
    found = {one.get("cw.marking.tlp") for one in shown}
    return max((one for one in TLP if one in found), key=TLP.index, default="green")


def readers(rights: Rights) -> str:
    """Who may read a page, in words."""
    if sees_all(rights):
        return "city SOC only; operators' names may be spoken, addresses are tokens"
    if rights.own:
        return f"{rights.own}: its own shares, and what is for all operators"
    who = ", ".join(rights.audiences) or "nobody"
    return f"{who}: only what was given to this audience"


def silent_s(link: Link, now: datetime) -> float | None:
    """Seconds since an operator was heard of."""
    heard = link.heartbeat or link.heard
    return (now - heard).total_seconds() if heard else None
