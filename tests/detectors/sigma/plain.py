"""The plain walk: every rule of an event's log source, as written, one after the other.

What it says is what Sigma means; the engine has to say the same, only sooner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import NamedTuple

import msgspec

from cityward.event import Event, LogSource
from detectors.sigma.engine import Engine
from detectors.sigma.filter import covers
from detectors.sigma.load import compile_detection
from detectors.sigma.rule import Detection, Filter, Rule, RuleSet
from detectors.sigma.view import View


class Asked(NamedTuple):
    """A rule that is evaluated, its placeholders filled in."""

    rule: Rule
    detection: Detection
    filters: tuple[tuple[Filter, Detection], ...]

    def holds(self, view: View, time: datetime) -> bool:
        """True if the rule matches an event of its log source."""
        return self.detection.holds(view) and all(
            _expired(one, time) or detection.holds(view) for one, detection in self.filters
        )


class Routed:
    """The rules of one log source, and what its events had."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        self.asked = asked
        self.events = 0
        self.unseen = {name for one in asked for name in one.rule.detection.fields()}
        """Fields that rules look at and none of the events had."""
        self._looked_at: set[tuple[str, ...]] = set()

    def look_at(self, view: View) -> None:
        """Which fields an event has depends on its names alone."""
        self.events += 1
        names = tuple(view.flat)
        if names not in self._looked_at:
            self._looked_at.add(names)
            self.unseen = {name for name in self.unseen if not view.has(name)}


class Plain:
    """Rules alone; correlations only see what rules have matched."""

    def __init__(
        self, rules: RuleSet, placeholders: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        given = placeholders or {}
        self.asked = {
            rule.id: Asked(
                rule,
                _filled(rule.detection, rule, "detection", given),
                tuple((one, _filled(one.detection, one, "filter", given)) for one in rule.filters),
            )
            for rule in rules.rules
            if all(map(given.get, rule.needs))
        }
        self._routed: dict[LogSource, Routed] = {}

    def matched(self, event: Event) -> list[str]:
        """Ids of the rules that match, in the order they were loaded."""
        view, routed = View.of(event), self.routed(event.logsource)
        routed.look_at(view)
        return [one.rule.id for one in routed.asked if one.holds(view, event.time)]

    def routed(self, logsource: LogSource) -> Routed:
        """The rules of a log source; whether it covers is asked once, not for each event."""
        if logsource not in self._routed:
            every = self.asked.values()
            asked = [one for one in every if covers(one.rule.logsource, logsource)]
            self._routed[logsource] = Routed(asked)
        return self._routed[logsource]

    def counted(self, id: str) -> tuple[int, tuple[str, ...]]:
        """How many events a rule was tried on, and the fields it looks at that none of them had."""
        rule = self.asked[id].rule
        routes = [one for seen, one in self._routed.items() if covers(rule.logsource, seen)]
        fields = rule.detection.fields().intersection(*(one.unseen for one in routes))
        return sum(one.events for one in routes), tuple(sorted(fields))


def _filled(
    detection: Detection, one: Rule | Filter, section: str, given: Mapping[str, Sequence[str]]
) -> Detection:
    return compile_detection(one.document, section, given) if one.needs else detection


def _expired(one: Filter, time: datetime) -> bool:
    day = one.own.expires
    return day is not None and time >= datetime(day.year, day.month, day.day, tzinfo=UTC)


def differences(
    rules: RuleSet,
    events: Iterable[Event],
    batch: int = 512,
    placeholders: Mapping[str, Sequence[str]] | None = None,
    least: int = 0,
) -> list[object]:
    """Where engine and plain walk disagree on what matches, or on what they count.

    Args:
        rules: Correlations and absences are left out.
        events: What both are asked about; taken as they come, so there may be very many.
        batch: So many at once.
        placeholders: Values of `%name%` by name.
        least: Of so many events a rule matches at least; otherwise that they agree proves nothing.
    """
    rules = msgspec.structs.replace(rules, correlations=(), absences=())
    engine, plain = Engine(rules, placeholders), Plain(rules, placeholders)
    found: list[object] = []
    speaking = 0
    given = iter(events)
    while part := [*islice(given, batch)]:
        ours: dict[int, list[str]] = {}
        for finding in engine.detect(part):
            ours.setdefault(id(finding.events[-1]), []).append(finding.analytic.id)
        for event in part:
            theirs = plain.matched(event)
            speaking += bool(theirs)
            if (mine := ours.get(id(event), [])) != theirs:
                found.append((mine, theirs, event))
    for state in engine.states():
        if state.id in plain.asked:
            evaluated, unseen = plain.counted(state.id)
            never = unseen if state.arriving else ()
            if (state.evaluated, state.never_seen) != (evaluated, never):
                found.append((state, evaluated, never))
    return found if speaking >= least else [*found, f"rules match {speaking} events only"]
