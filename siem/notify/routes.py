"""Routes of the settings as the outbox works them: who is told of what, and when."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from cityward import ConfigError, TransientError
from cityward.finding import severity_rank
from cityward.when import When, compile_when
from siem.notify import settings
from siem.notify.settings import DIGEST, QUIET, TRANSPORTS
from siem.store.findings import FINDING_FIELDS
from siem.store.notices import Delivery, Tally
from siem.store.protocol import Document

DRY = ("exercise", "test")
"""Modes in which findings are not real."""


class Route(msgspec.Struct, frozen=True):
    """A route with its condition compiled."""

    said: settings.Route
    when: When | None

    @property
    def id(self) -> str:
        """Its name in the settings."""
        return self.said.id

    @property
    def receivers(self) -> tuple[str, ...]:
        """To whom it sends, in words that everybody may read: many put a token behind the `?`."""
        if self.said.to == "mail":
            return self.said.receivers
        return (self.said.url.partition("?")[0] or self.said.server,)

    @property
    def transport(self) -> str:
        """How its server is spoken to."""
        named = self.said.transport
        return named if named != "auto" else TRANSPORTS[self.said.to][0]

    @property
    def max_per_hour(self) -> int:
        """Messages of single findings in a clock hour; 0: no limit."""
        return self.said.max_per_hour

    @property
    def escalate_after(self) -> timedelta | None:
        """How long it waits for somebody to take a finding."""
        minutes = self.said.escalate_after_min
        return timedelta(minutes=minutes) if minutes else None

    @property
    def escalate_to(self) -> str:
        """Which route is told then."""
        return self.said.escalate_to

    def wants(self, finding: Document) -> bool:
        """Whether it is told of a finding."""
        return self.when is not None and self.when(finding) and self.accepts(finding)

    def accepts(self, finding: Document) -> bool:
        """Whether it may be told at all: what is not real only goes where that is wished."""
        return self.said.exercises or finding.get("finding.mode") not in DRY

    def due(self, now: datetime, severity: str) -> tuple[datetime, str]:
        """When news is sent, and why not at once (`digest`, `quiet`); empty: at once."""
        due, why = _digest(self.said, now)
        breaks = severity_rank(severity) >= severity_rank(self.said.breaks_quiet)
        ends = None if breaks else _quiet_until(self.said, due)
        return (ends, "quiet") if ends else (due, why)

    def secret(self) -> str:
        """The password at the mail server, or the secret that signs.

        Raises:
            TransientError: its variable is not set; what is due is sent once it is.
        """
        name = self.said.secret_env
        if not name:
            return ""
        if not (secret := os.environ.get(name, "")):
            raise TransientError(
                f"the variable {name} is not set",
                f"route {self.id}, secret_env",
                "Set it where the node is started, for instance in its systemd unit.",
            )
        return secret


def routes_of(every: Sequence[settings.Route]) -> dict[str, Route]:
    """Routes of the settings, by id.

    Raises:
        ConfigError: a condition is none, or asks for a field that findings do not have.
    """
    routes = {}
    for number, said in enumerate(every):
        where = f"route[{number}].when"
        for name in said.when or ():
            if name not in FINDING_FIELDS:
                raise ConfigError(
                    f"findings have no field {name!r}", where, "See docs/notify.md for the usual."
                )
        when = None if said.when is None else compile_when(said.when, where)
        routes[said.id] = Route(said, when)
    return routes


def _digest(said: settings.Route, now: datetime) -> tuple[datetime, str]:
    """When the digest of what is found now is sent; at once if there is none."""
    if said.digest == "immediately":
        return now, ""
    if said.digest == "hourly":
        return now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1), "digest"
    found = DIGEST.fullmatch(said.digest)
    assert found is not None, said.digest
    return _next(now, time(int(found[1]), int(found[2])), ZoneInfo(said.zone)), "digest"


def _quiet_until(said: settings.Route, at: datetime) -> datetime | None:
    """The end of the quiet hours that a time lies in; None if it lies in none."""
    if not (found := QUIET.fullmatch(said.quiet_hours)):
        return None
    zone = ZoneInfo(said.zone)
    begin, end = time(int(found[1]), int(found[2])), time(int(found[3]), int(found[4]))
    clock = at.astimezone(zone).time()
    is_quiet = begin <= clock < end if begin <= end else clock >= begin or clock < end
    return _next(at, end, zone) if is_quiet else None


def _next(now: datetime, clock: time, zone: ZoneInfo) -> datetime:
    """The next time that the clocks of a zone show a time."""
    day = now.astimezone(zone).date()
    for one in (day, day + timedelta(days=1)):
        found = datetime.combine(one, clock, tzinfo=zone).astimezone(UTC)
        if found > now:
            return found
    return found


def words(routes: Mapping[str, Route]) -> list[dict[str, Any]]:
    """What is set of each route, for a list."""
    return [
        {
            "route": one.id,
            "to": one.said.to,
            "receivers": list(one.receivers),
            "when": one.said.when,
            "digest": one.said.digest,
            "quiet_hours": one.said.quiet_hours,
            "escalates": f"{one.said.escalate_after_min} min to {one.escalate_to}"
            if one.escalate_to
            else "",
            "max_per_hour": one.max_per_hour,
            "exercises": one.said.exercises,
        }
        for one in routes.values()
    ]


def route_row(said: Mapping[str, Any], tally: Tally) -> dict[str, Any]:
    """A route as it is set, and what it has done, as programs read it."""
    last = tally.last
    return {
        **said,
        "sent": tally.sent,
        "waiting": tally.waiting,
        "retrying": tally.retrying,
        "dead": tally.dead,
        "last": f"{last.state}: {last.answer}" if last else "",
        "last_at": last.tried if last else None,
    }


def delivery_row(delivery: Delivery) -> dict[str, Any]:
    """A delivery as programs read it."""
    return {
        "time": delivery.tried or delivery.made,
        "id": delivery.id,
        "route": delivery.route,
        "kind": delivery.kind,
        "state": delivery.state,
        "about": delivery.about,
        "findings": delivery.findings,
        "receivers": list(delivery.receivers),
        "attempts": delivery.attempts,
        "answer": delivery.answer,
        "made": delivery.made,
        "next_attempt": delivery.due if delivery.state == "due" else None,
    }
