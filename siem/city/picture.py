"""The picture of the city: from shared findings and heartbeats to the state of each service.

Pure functions: the same shares, links and time give the same picture. Who may see the shares was
decided before (`siem/city/reading.py`); a reader who sees only some of them gets a picture that
says nothing of the rest, neither that it runs nor that it does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

import msgspec

from cityward.finding import SEVERITIES
from siem.city.commons import CITY
from siem.city.known import Link, Lost
from siem.city.town import District, Service, Town
from siem.store.protocol import Document

State = Literal["at risk", "degraded", "blind", "running"]
STATES: tuple[State, ...] = ("at risk", "degraded", "blind", "running")
"""The worst first."""

LOOKED_AT = "finding.severity:(medium or high or critical or fatal)"
"""Shares that can change the state of a service or are a campaign, in words of the query bar."""
SEVERE = frozenset(("high", "critical", "fatal"))
HINDERS = frozenset(("loss_of_availability", "loss_of_view"))
ENDANGERS = frozenset(("loss_of_control", "loss_of_safety"))
"""Impacts of findings (IDMEFv2 words and our own)."""
OVER_STATUS = frozenset(("resolved", "archived", "deleted"))
OVER_VERDICT = frozenset(("false_positive", "benign", "test", "duplicate"))
SMALL = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
)  # fmt: skip
SPOKEN = 2
"""Services of a state that the headline names; more are counted."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a service stands."""

    service: Service
    state: State
    since: datetime | None = None
    why: str = ""
    places: Sequence[District] = ()
    """Where it is touched, as far as known."""
    affected: int = 0
    """How many of its unit are there."""
    shares: Sequence[str] = ()
    """Shares that touch it, the one that decides first."""
    exercise: bool = False
    """What decides is part of an exercise or a test."""
    campaign: str = ""
    """Id of the campaign that the deciding share is part of."""


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub joined from shares of several operators."""

    id: str
    title: str
    severity: str
    join: str
    """Why it was joined, in words."""
    confidence: float | None
    first_seen: datetime
    last_seen: datetime
    operators: Sequence[str]
    sectors: Sequence[str]
    tokens: Sequence[str]
    derived_from: Sequence[str]
    exercise: bool
    document: Document


class Blind(msgspec.Struct, frozen=True):
    """A blind spot."""

    name: str
    what: str
    since: datetime | None


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of it at one time."""

    standings: Sequence[Standing]
    """Worst first."""
    campaigns: Sequence[Campaign]
    """Newest first."""
    blind: Sequence[Blind]
    links: Sequence[Link]
    districts: Mapping[str, State]
    """Worst state in each district; a district that is not here is not touched."""
    headline: str
    is_whole: bool
    """The reader sees all shares and links, so that what is not touched is known to run."""
    exercise: bool
    """All that is said rests on an exercise or a test."""
    joined: Mapping[str, Document]
    """Shares that campaigns rest on, by id, as far as they were looked at."""

    def of(self, state: str) -> list[Standing]:
        """Services of one state."""
        return [one for one in self.standings if one.state == state]


def picture(
    town: Town,
    shares: Iterable[Document],
    links: Sequence[Link],
    now: datetime,
    *,
    is_whole: bool = True,
    threshold: int = 1,
) -> Picture:
    """How the city stands.

    Args:
        town: Its services and districts.
        shares: Shared findings that the reader may see.
        links: Operators; none for a reader who is not told how their links do.
        now: Now.
        is_whole: See `Picture`.
        threshold: Counts of operators below it are not told.
    """
    every = [one for one in shares if _counts(one)]
    campaigns = sorted(
        (campaign(one) for one in every if is_campaign(one)),
        key=lambda one: one.last_seen,
        reverse=True,
    )
    raised = {
        share: one.id
        for one in reversed(campaigns)
        if one.severity in SEVERE
        for share in one.derived_from
    }
    by_operator: dict[str, list[Document]] = {}
    for one in every:
        by_operator.setdefault(str(one.get("cw.operator")), []).append(one)
    known = {one.operator: one for one in links}
    standings = [
        _standing(town, one, by_operator.get(one.operator, ()), known.get(one.operator), raised)
        for one in town.services
    ]
    standings.sort(key=lambda one: STATES.index(one.state))
    if not is_whole:
        standings = [one for one in standings if one.shares and one.state != "running"]
    troubled = [one for one in standings if one.state != "running"]
    return Picture(
        standings=standings,
        campaigns=campaigns,
        blind=list(_blind(standings, links, now)),
        links=links,
        districts=_districts(troubled),
        headline=_headline(standings, campaigns, links, is_whole=is_whole, threshold=threshold),
        is_whole=is_whole,
        exercise=bool(troubled or campaigns)
        and all(one.exercise or one.state == "blind" for one in troubled)
        and all(one.exercise for one in campaigns),
        joined=_joined(every, campaigns),
    )


def _joined(shares: Sequence[Document], campaigns: Sequence[Campaign]) -> dict[str, Document]:
    wanted = {share for one in campaigns for share in one.derived_from}
    return {one["cw.share.id"]: one for one in shares if one.get("cw.share.id") in wanted}


def is_campaign(share: Document) -> bool:
    """Whether the hub made it by joining shares."""
    return share.get("cw.operator") == CITY and bool(share.get("cw.campaign.join"))


JOINS = {
    "token": "the same token of an outside address or name",
    "sequence": "the same techniques in the same order",
    "heartbeat": "heartbeats lost together",
    "place": "cyber and physical findings in one place",
    "rate": "many more new tokens than usual",
}
"""Why shares were joined, in words."""


def campaign(share: Document) -> Campaign:
    """A campaign as its document says it."""
    join = str(share.get("cw.campaign.join", ""))
    confidence = share.get("finding.confidence")
    return Campaign(
        id=str(share.get("cw.share.id", "")),
        title=str(share.get("finding.title") or "Campaign"),
        severity=str(share.get("finding.severity", "informational")),
        join=JOINS.get(join, join or "not known"),
        confidence=confidence if isinstance(confidence, int | float) else None,
        first_seen=share["finding.first_seen"],
        last_seen=share.get("finding.last_seen") or share["finding.first_seen"],
        operators=_words(share.get("cw.campaign.operators")),
        sectors=_words(share.get("cw.campaign.sectors")),
        tokens=_words(share.get("cw.campaign.tokens")),
        derived_from=_words(share.get("cw.share.derived_from")),
        exercise=is_exercise(share),
        document=share,
    )


def is_exercise(share: Document) -> bool:
    """Whether it is part of an exercise or a test."""
    return share.get("finding.mode") in ("exercise", "test")


def told(count: int, threshold: int) -> str:
    """A count as it may be told: below the release threshold only that it is below."""
    return f"<{threshold}" if 0 < count < threshold else f"{count:,}"


# How a service stands


def _counts(share: Document) -> bool:
    return (
        share.get("finding.status") not in OVER_STATUS
        and share.get("finding.verdict") not in OVER_VERDICT
        and isinstance(share.get("finding.first_seen"), datetime)
    )


class _Touching(NamedTuple):
    """A share that touches a service, and what it makes of it."""

    state: State
    share: Document
    districts: Sequence[str]


def _judged(share: Document, raised: Mapping[str, str]) -> State:
    """What a share makes of the service that it touches."""
    severity = share.get("finding.severity")
    impacts = set(_words(share.get("finding.impact")))
    if severity not in SEVERITIES or SEVERITIES.index(severity) < SEVERITIES.index("medium"):
        return "running"
    if impacts & HINDERS and not impacts & ENDANGERS:
        return "degraded"
    is_hazard = share.get("finding.type") == "hazard"
    if severity in SEVERE or is_hazard or share.get("cw.share.id") in raised:
        return "at risk"
    return "running"


def _standing(
    town: Town,
    service: Service,
    shares: Iterable[Document],
    link: Link | None,
    raised: Mapping[str, str],
) -> Standing:
    judged = [
        _Touching(_judged(one, raised), one, districts)
        for one in shares
        if (districts := _touched(town, service, one)) is not None
    ]
    judged.sort(key=_urgency)
    found = [str(one.share.get("cw.share.id")) for one in judged]
    if not judged or judged[0].state == "running":
        return _unseen(town, service, link, found)
    first = judged[0]
    worst = [one for one in judged if one.state == first.state]
    ids = {name for one in worst for name in one.districts}
    why = str(first.share.get("finding.title") or first.share.get("finding.type") or "finding")
    silent = link is not None and link.state == "silent"
    return Standing(
        service=service,
        state=first.state,
        since=min(one.share["finding.first_seen"] for one in worst),
        why=f"{why}; {service.operator} is silent" if silent else why,
        places=[one for one in town.districts if one.id in ids],
        affected=sum(service.districts.get(one, 0) for one in ids),
        shares=found,
        exercise=all(is_exercise(one.share) for one in worst),
        campaign=raised.get(found[0], ""),
    )


def _unseen(town: Town, service: Service, link: Link | None, found: Sequence[str]) -> Standing:
    """A service that no share troubles: it runs, as far as it is seen."""
    why, since = _why_blind(service, link)
    if not why:
        return Standing(service=service, state="running", shares=found)
    return Standing(
        service=service,
        state="blind",
        since=since,
        why=why,
        places=[one for one in town.districts if one.id in service.districts],
        affected=service.amount,
        shares=found,
    )


def _why_blind(service: Service, link: Link | None) -> tuple[str, datetime | None]:
    if link is None:
        return f"{service.operator} is not enrolled", None
    if link.state != "linked":
        said = {
            "silent": "is silent",
            "waiting": "has not been heard of yet",
            "revoked": "is revoked",
        }
        return f"{link.operator} {said[link.state]}", link.heartbeat or link.heard or link.enrolled
    lost = [one for one in link.lost if one.source in service.sources and not one.is_late]
    if service.sources and {one.source for one in lost} >= set(service.sources):
        since = [one.since for one in lost if one.since]
        return f"{', '.join(service.sources)}: {lost[0].what}", max(since, default=None)
    return "", None


def _touched(town: Town, service: Service, share: Document) -> Sequence[str] | None:
    """Districts in which a share touches a service; None if it does not."""
    ways = [one for one in service.touched_by if one.holds(share)]
    if service.touched_by and not ways:
        return None
    if (place := place_of(share)) and (district := town.district_of(*place)):
        return [district.id]
    named = [name for way in ways for name in way.districts]
    return named or list(service.districts)


def place_of(share: Document) -> tuple[float, float] | None:
    """Longitude and latitude of a share, if it says where it was."""
    try:
        latitude, longitude = map(float, str(share.get("phys.location", "")).split(","))
    except ValueError:
        return None
    return longitude, latitude


def _urgency(judged: _Touching) -> tuple[int, int, float]:
    """Order in which shares decide: state, severity, the newest."""
    severity = judged.share.get("finding.severity")
    rank = SEVERITIES.index(severity) if severity in SEVERITIES else -1
    last: datetime = judged.share.get("finding.last_seen") or judged.share["finding.first_seen"]
    return STATES.index(judged.state), -rank, -last.timestamp()


def _districts(troubled: Sequence[Standing]) -> dict[str, State]:
    found: dict[str, State] = {}
    for one in reversed(troubled):
        found |= dict.fromkeys((place.id for place in one.places), one.state)
    return found


# What is not seen


def _blind(standings: Sequence[Standing], links: Sequence[Link], now: datetime) -> Iterator[Blind]:
    for link in links:
        if link.state == "silent":
            yield Blind(link.operator, "no heartbeat", link.heartbeat or link.heard)
        elif link.state == "waiting":
            yield Blind(link.operator, "enrolled, never heard of", link.enrolled)
        else:
            yield from _lost(link.operator, link.lost)
        if link.gaps:
            gaps = "a gap" if link.gaps == 1 else f"{link.gaps:,} gaps"
            yield Blind(link.operator, f"{gaps} in what it sent", link.heard)
        if link.lag_s > 600:
            yield Blind(
                link.operator,
                f"late: {link.waiting:,} findings wait there",
                now - timedelta(seconds=link.lag_s),
            )
    for one in standings:
        if one.state == "blind":
            yield Blind(one.service.name, one.why, one.since)


def _lost(operator: str, lost: Sequence[Lost]) -> Iterator[Blind]:
    for one in lost:
        yield Blind(f"{operator}, {one.source}", one.what, one.since)


# The headline


def number_word(count: int) -> str:
    """Small numbers as words."""
    return SMALL[count] if count < len(SMALL) else f"{count:,}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _headline(
    standings: Sequence[Standing],
    campaigns: Sequence[Campaign],
    links: Sequence[Link],
    *,
    is_whole: bool,
    threshold: int,
) -> str:
    parts = [
        part
        for state in STATES[:-1]
        if (part := _part(state, [one for one in standings if one.state == state]))
    ]
    at_risk = parts.pop(0) if standings and standings[0].state == "at risk" else ""
    said = [f"{_upper(one)}." for one in (at_risk, ", ".join(parts)) if one]
    if campaigns:
        operators = {name for one in campaigns for name in one.operators}
        runs = "campaign runs" if len(campaigns) == 1 else "campaigns run"
        said.append(
            f"{_upper(number_word(len(campaigns)))} {runs}{_at(len(operators), threshold)}."
        )
    if not any(one.state != "running" for one in standings):
        said.insert(0, _calm(len(standings), links, is_whole=is_whole))
    return " ".join(said)


def _at(operators: int, threshold: int) -> str:
    if not operators:
        return ""
    if operators < threshold:
        return f" at fewer than {number_word(threshold)} operators"
    return f" at {number_word(operators)} {'operator' if operators == 1 else 'operators'}"


def _calm(services: int, links: Sequence[Link], *, is_whole: bool) -> str:
    if not is_whole:
        return "Nothing that was given to you touches a service."
    if not services:
        return "No services are named yet, so that only campaigns and operators are shown."
    heard = sum(one.state == "linked" for one in links)
    return (
        f"All {number_word(services)} services run, "
        f"as far as {number_word(heard)} linked operators see."
    )


def _part(state: State, standings: Sequence[Standing]) -> str:
    """What is said of the services of a state; of those at risk with their numbers."""
    if not standings:
        return ""
    names = [one.service.short or one.service.name.lower() for one in standings]
    if state == "at risk" and len(standings) <= SPOKEN:
        said = [f"{name}{_where(one)}" for name, one in zip(names, standings, strict=True)]
        said[0] = f"{names[0]} {_is(names[0])} at risk{_where(standings[0])}"
        return "; ".join(said)
    if state != "degraded" and len(standings) <= SPOKEN:
        verb = _is(names[0]) if len(names) == 1 else "are"
        return f"{_listed(names)} {verb} {state}"
    things = "service is" if len(standings) == 1 else "services are"
    return f"{number_word(len(standings))} {things} {state}"


def _is(name: str) -> str:
    return "are" if name.endswith("s") else "is"


def _where(one: Standing) -> str:
    places = _listed([place.name for place in one.places]) if 0 < len(one.places) < 4 else ""
    where = f" in {places}" if places else f" in {number_word(len(one.places))} districts"
    amount = f": {one.affected:,} {one.service.unit}" if one.affected and one.service.unit else ""
    return f"{where if one.places else ''}{amount}"


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [one for one in value or () if isinstance(one, str)]
