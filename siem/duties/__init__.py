"""Legal duties of an incident: their clocks, and drafts filled from the case.

Deadlines and recipients are data (`siem/data/deadlines.yml`, or a file of the operator's own). The
node starts the clocks, warns, and fills in what it knows; it never submits: the duty stays a
person's.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec

from cityward import Analytic, ConfigError, Event, Finding, RuleError, documents
from siem.store.cases import Incident
from siem.store.protocol import Document

SHIPPED = Path(__file__).parent.parent / "data" / "deadlines.yml"
WARN_AT = (0.5, 0.8, 0.95, 1.0)
"""Shares of the time at which people are told."""
LOOK_EVERY = timedelta(seconds=30)
TIMELINE_MAX = 60

_WITHIN = re.compile(r"(\d{1,3}) ?(h|days?|months?)")

Source = Literal[
    "",
    "operator",
    "aware_at",
    "summary",
    "cause",
    "severity",
    "impact",
    "services",
    "indicators",
    "timeline",
    "measures",
    "sites",
]


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from"}):
    """One thing a recipient wants to know."""

    name: str
    asks: str
    source: Source = ""
    """What of the case fills it in; empty: a person does."""


class Duty(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One duty, as the file of deadlines has it."""

    id: str
    name: str
    law: str
    to: str
    begins: str
    """`aware`, or the id of the duty whose submission starts it."""
    within: str
    fields: tuple[Asked, ...]
    usual: bool = False

    def due(self, begin: datetime) -> datetime:
        """When it has to be done by; a month is one of the calendar."""
        found = _WITHIN.fullmatch(self.within)
        assert found is not None  # the loader saw to it
        number = int(found[1])
        if found[2] == "h":
            return begin + timedelta(hours=number)
        if found[2].startswith("day"):
            return begin + timedelta(days=number)
        return _months_later(begin, number)


Duties = Mapping[str, Duty]


class Clock(msgspec.Struct, frozen=True):
    """Where a duty of an incident stands."""

    duty: Duty
    state: Literal["waits", "runs", "overdue", "submitted", "submitted late"]
    begin: datetime | None = None
    due: datetime | None = None
    share: float = 0.0
    """Of the time that is over; 1 and more: too late."""
    filled: int = 0
    """Fields of the draft that have an answer."""
    after: str = ""
    """What it waits for, in words."""


class Answer(msgspec.Struct, frozen=True):
    """One field of a draft."""

    asked: Asked
    text: str
    by_person: bool
    """A person wrote it; otherwise the case filled it in."""


def load(path: Path = SHIPPED) -> Duties:
    """Read a file of deadlines.

    Raises:
        ConfigError: it cannot be read, or says what cannot be.
    """
    where = str(path)
    try:
        (document,) = documents.read(path)
        duties = msgspec.convert(document.value, dict[str, tuple[Duty, ...]])["duties"]
    except RuleError as error:
        raise ConfigError(error.what, error.where, error.todo) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where, "Check deadlines.") from error
    except (msgspec.ValidationError, KeyError, ValueError) as error:
        raise ConfigError(
            f"no deadlines: {error}", where, "See siem/data/deadlines.yml."
        ) from error
    found = {duty.id: duty for duty in duties}
    for duty in duties:
        if not _WITHIN.fullmatch(duty.within):
            raise ConfigError(f"{duty.within!r} is no time", f"{where}, {duty.id}", "Write 24h.")
        if duty.begins != "aware" and duty.begins not in found:
            todo = "Write aware, or the id of a duty of this file."
            raise ConfigError(f"no duty is called {duty.begins!r}", f"{where}, {duty.id}", todo)
    if len(found) < len(duties):
        raise ConfigError("a duty is there twice", where, "Give each an id of its own.")
    return found


def usual(duties: Duties) -> tuple[str, ...]:
    """Ids of what stands on every incident."""
    return tuple(duty.id for duty in duties.values() if duty.usual)


def clocks(
    incident: Incident, duties: Duties, now: datetime, findings: Sequence[Document] = ()
) -> list[Clock]:
    """Where each duty of an incident stands, those that are due first first."""
    found = [
        _clock(incident, duties[id], duties, now, findings)
        for id in incident.duties
        if id in duties
    ]
    return sorted(found, key=lambda one: (one.due is None, one.due or now))


def _clock(
    incident: Incident, duty: Duty, duties: Duties, now: datetime, findings: Sequence[Document]
) -> Clock:
    answers = draft(incident, duty, findings)
    filled = sum(bool(one.text) for one in answers)
    begin = _begin(incident, duty)
    if begin is None:
        after = "the time of awareness"
        if duty.begins != "aware":
            after = f"the submission of: {duties[duty.begins].name}"
        return Clock(duty, "waits", filled=filled, after=after)
    due = duty.due(begin)
    done = next((one for one in incident.submissions if one.duty == duty.id), None)
    share = ((done.time if done else now) - begin) / (due - begin)
    if done is not None:
        state: Any = "submitted" if done.time <= due else "submitted late"
    else:
        state = "runs" if now < due else "overdue"
    return Clock(duty, state, begin, due, share, filled)


def _begin(incident: Incident, duty: Duty) -> datetime | None:
    if duty.begins == "aware":
        return incident.aware_at
    return next((one.time for one in incident.submissions if one.duty == duty.begins), None)


def draft(incident: Incident, duty: Duty, findings: Sequence[Document]) -> list[Answer]:
    """The fields of a duty, with what a person wrote or, where nobody did, what the case knows."""
    written = incident.answers.get(duty.id, {})
    return [
        Answer(asked, written[asked.name], True)
        if asked.name in written
        else Answer(asked, _known(asked.source, incident, findings), False)
        for asked in duty.fields
    ]


def _known(source: Source, incident: Incident, findings: Sequence[Document]) -> str:
    match source:
        case "operator":
            return incident.operator
        case "aware_at":
            return _time(incident.aware_at) if incident.aware_at else ""
        case "summary":
            return incident.summary or incident.title
        case "cause":
            return "" if incident.cause == "unknown" else incident.cause
        case "severity":
            return incident.severity
        case "services":
            return ", ".join(incident.services)
        case "impact":
            return _values(findings, "finding.impact")
        case "sites":
            return _values(findings, "cw.site")
        case "indicators":
            return "\n".join(_indicators(findings))
        case "timeline":
            return "\n".join(_timeline(incident, findings))
        case "measures":
            done = [one.text for one in incident.tasks if one.done_at is not None]
            return "\n".join(done)
        case "":
            return ""


def _values(findings: Iterable[Document], name: str) -> str:
    found: dict[str, None] = {}
    for one in findings:
        value = one.get(name)
        for text in value if isinstance(value, list) else [value]:
            if text:
                found[str(text)] = None
    return ", ".join(found)


def _indicators(findings: Sequence[Document]) -> Iterable[str]:
    for name in (
        "source.ip",
        "url.domain",
        "dns.question.name",
        "file.hash.sha256",
        "tls.client.ja3",
    ):
        if values := _values(findings, name):
            yield f"{name}: {values}"


def _timeline(incident: Incident, findings: Sequence[Document]) -> list[str]:
    said = [(one["finding.first_seen"], str(one["finding.title"])) for one in findings]
    said += [
        (one.time, f"{one.what}: {one.why}" if one.why else one.what) for one in incident.history
    ]
    return [f"{_time(time)} {what}" for time, what in sorted(said)][:TIMELINE_MAX]


def _time(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _months_later(begin: datetime, months: int) -> datetime:
    """The same day so many months later, or the last day of a month that is shorter."""
    year, month = divmod(begin.month - 1 + months, 12)
    year, month = begin.year + year, month + 1
    return begin.replace(
        year=year, month=month, day=min(begin.day, calendar.monthrange(year, month)[1])
    )


class DutyWatch:
    """Says when half, four fifths, nearly all and all of the time of a duty is over: a detector.

    What it says are findings like any other, so people are told on the ways they chose.

    Args:
        duties: All that are known.
        incidents: The open incidents.
    """

    name = "duties"

    def __init__(self, duties: Duties, incidents: Callable[[], Sequence[Incident]]) -> None:
        self._duties = duties
        self._incidents = incidents
        self._said: set[str] = set()
        self._looked: datetime | None = None

    def detect(self, events: Sequence[Event]) -> Iterator[Finding]:
        """Events are nothing to it."""
        return iter(())

    def tick(self, now: datetime) -> Iterator[Finding]:
        """What is due to be said."""
        if self._looked is not None and now - self._looked < LOOK_EVERY:
            return
        self._looked = now
        kept: set[str] = set()
        for incident in self._incidents():
            for clock in clocks(incident, self._duties, now):
                for mark in WARN_AT:
                    key = f"{incident.id} {clock.duty.id} {mark}"
                    if clock.state not in ("runs", "overdue") or clock.share < mark:
                        continue
                    kept.add(key)
                    # After a long stop only the latest mark is news.
                    if key not in self._said and clock.share < _next(mark):
                        yield _warning(incident, clock, mark)
        self._said = kept

    def snapshot(self) -> bytes:
        """What was said."""
        return msgspec.json.encode(sorted(self._said))

    def restore(self, state: bytes) -> None:
        """Take up what was said before a restart."""
        try:
            self._said = set(msgspec.json.decode(state, type=list[str]))
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from error


def _next(mark: float) -> float:
    later = [one for one in WARN_AT if one > mark]
    return later[0] if later else float("inf")


def _warning(incident: Incident, clock: Clock, mark: float) -> Finding:
    assert clock.begin is not None
    assert clock.due is not None
    at = clock.begin + (clock.due - clock.begin) * mark
    duty = clock.duty
    is_over = mark >= 1
    what = "is overdue" if is_over else f"is due {_time(clock.due)}"
    draft_ = f"its draft has {clock.filled} of {len(duty.fields)} answers"
    return Finding(
        analytic=Analytic(
            id=f"duty.{duty.id}",
            name=duty.name,
            kind="manual",
            version="1",
            level="critical" if is_over else "high" if mark > 0.9 else "medium",
            references=(duty.law,),
            description=f"{duty.law}, to: {duty.to}.",
        ),
        title=f"{duty.name} {'is overdue' if is_over else 'is due'}",
        description=(
            f"{duty.name} of incident {incident.id} ({incident.title}) {what}: "
            f"{round(mark * 100)} % of the time is over, {draft_}."
        ),
        severity="critical" if is_over else "high" if mark > 0.9 else "medium",
        group=(("duty", duty.id), ("incident", incident.id), ("share", str(mark))),
        first_seen=at,
        last_seen=at,
        events=(),
        type="posture",
        confidence=1.0,
        fields={"cw.incident_id": incident.id, "cw.operator": incident.operator},
    )
