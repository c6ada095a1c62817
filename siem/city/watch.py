"""What changed in the city, and when each person was there last: kept in the hub's records.

`service`: the state last seen of each service and operator. `change`: one record a change, so that
a person who comes back is told what happened meanwhile. `visit`: when somebody was there.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import msgspec

from cityward.errors import TransientError
from siem.city.commons import CITY, CITY_SOC, Commons, Records, Versioned
from siem.city.known import Link
from siem.city.picture import Picture, picture
from siem.city.town import Town
from siem.store.protocol import Conflict

log = logging.getLogger(__name__)

(SOC,) = CITY_SOC.audiences
DAY = timedelta(days=1)
STATE = "service"
"""Kind of the records of the state last seen, also of operators and campaigns."""
VISIT = timedelta(minutes=30)
"""Who comes back within it is on the same visit."""
CHANGES_MAX = 500
"""Changes that are kept; the oldest go first."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Something in the city changed."""

    at: datetime
    kind: str
    """`service`, `operator` or `campaign`."""
    about: str
    """Its id."""
    name: str
    before: str
    after: str
    why: str = ""


class Watch:
    """Keeps changes and visits."""

    def __init__(self, records: Records) -> None:
        self.records = records

    def look(self, shown: Picture, now: datetime) -> None:
        """Keep what is other than at the last look; of two hubs, the first to see it."""
        try:
            kept = dict(self.records.all(STATE))
            for change in _states(shown, now):
                name = f"{change.kind}:{change.about}"
                with suppress(Conflict):
                    self._keep(name, change, kept.get(name), now)
        except TransientError as error:
            log.warning("What changed in the city was not kept: %s.", error.what)

    def _keep(self, name: str, change: Change, kept: Versioned | None, now: datetime) -> None:
        before = str(kept.value.get("state", "")) if kept else ""
        if before == change.after:
            return
        value = {"state": change.after, "at": now.isoformat()}
        self.records.put(STATE, name, value, kept.version if kept else None)
        # Of the first look only trouble is news.
        if not before and change.after not in ("at risk", "degraded", "began"):
            return
        change = msgspec.structs.replace(change, before=before or change.before)
        moment = f"{int(now.timestamp() * 1e6):020d}-{name}"
        self.records.put("change", moment, msgspec.to_builtins(change), None)
        self._forget()

    def _forget(self) -> None:
        every = list(self.records.all("change"))
        for name, kept in every[: max(0, len(every) - CHANGES_MAX)]:
            self.records.delete("change", name, kept.version)

    def changes(self, since: datetime) -> list[Change]:
        """What changed since then, newest first."""
        found = [msgspec.convert(kept.value, Change) for _, kept in self.records.all("change")]
        return sorted((one for one in found if one.at >= since), key=lambda one: one.at)[::-1]

    def visit(self, person: str, now: datetime) -> datetime | None:
        """When somebody was here before this visit; None: never. Says that they are here now."""
        name = hashlib.sha256(person.encode()).hexdigest()
        kept = self.records.get("visit", name)
        said = kept.value if kept else {}
        seen, before = _time(said.get("seen")), _time(said.get("before"))
        if seen and now - seen > VISIT:
            before = seen
        if seen is None or now - seen > timedelta(minutes=1):
            value = {"seen": now.isoformat(), "before": before.isoformat() if before else ""}
            try:
                self.records.put("visit", name, value, kept.version if kept else None)
            except (Conflict, TransientError) as error:
                log.info("A visit was not kept: %s.", error)
        return before


def look_around(
    commons: Commons, town: Town, links: Sequence[Link], now: datetime, span: timedelta = DAY
) -> Picture:
    """Keep what has changed when nobody looks: the hub does it every minute.

    Args:
        commons: The common store, read as the hub itself reads it.
        town: Services and districts.
        links: How operators are linked.
        now: Now.
        span: What a share's last sighting may be away to count.
    """
    # Of a campaign there is one document for each audience; the city's picture has the SOC's own.
    shares = (
        one
        for one in commons.scan(now - span)
        if one["cw.operator"] != CITY or SOC in one["cw.share.audiences"]
    )
    made = picture(town, shares, links, now)
    Watch(commons.records).look(made, now)
    return made


def _states(shown: Picture, now: datetime) -> Iterator[Change]:
    for one in shown.standings:
        yield Change(
            at=min(one.since or now, now),
            kind="service",
            about=one.service.id,
            name=one.service.name,
            before="running",
            after=one.state,
            why=one.why,
        )
    for link in shown.links:
        since = link.heartbeat if link.state == "silent" else now
        yield Change(
            at=since or now,
            kind="operator",
            about=link.operator,
            name=link.operator,
            before="linked",
            after=link.state,
        )
    for campaign in shown.campaigns:
        yield Change(
            at=campaign.first_seen,
            kind="campaign",
            about=campaign.id,
            name=campaign.title,
            before="",
            after="began",
        )


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC) if text else None
    except ValueError:
        return None
