"""The plain walk: every rule of an event's log source, as written, one after the other.

What it says is what Sigma means; the engine has to say the same, only sooner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from cityward.event import Event, LogSource
from detectors.sigma.engine import Engine
from detectors.sigma.filter import covers
from detectors.sigma.load import compile_detection
from detectors.sigma.rule import Detection, Filter, Rule, RuleSet
from detectors.sigma.view import View


class Plain:
    """Rules alone; correlations only see what rules have matched."""

    def __init__(
        self, rules: RuleSet, placeholders: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.placeholders = placeholders or {}
        self.rules = [rule for rule in rules.rules if all(map(self.placeholders.get, rule.needs))]
        self.evaluated = {rule.id: 0 for rule in self.rules}
        self.never_seen = {rule.id: set(rule.detection.fields()) for rule in self.rules}
        self._detections = {
            rule.id: self._filled(rule.detection, rule, "detection") for rule in self.rules
        }

    def _filled(self, detection: Detection, rule: Rule | Filter, section: str) -> Detection:
        if not rule.needs:
            return detection
        return compile_detection(rule.document, section, self.placeholders)

    def matched(self, event: Event) -> list[str]:
        """Ids of the rules that match, in the order they were loaded."""
        view = View.of(event)
        return [rule.id for rule in self._routed(event.logsource) if self._holds(rule, event, view)]

    def _routed(self, logsource: LogSource) -> Iterator[Rule]:
        return (rule for rule in self.rules if covers(rule.logsource, logsource))

    def _holds(self, rule: Rule, event: Event, view: View) -> bool:
        self.evaluated[rule.id] += 1
        self.never_seen[rule.id] = {n for n in self.never_seen[rule.id] if not view.has(n)}
        return self._detections[rule.id].holds(view) and all(
            self._expired(one, event.time) or self._filled(one.detection, one, "filter").holds(view)
            for one in rule.filters
        )

    def _expired(self, one: Filter, time: datetime) -> bool:
        day = one.own.expires
        return day is not None and time >= datetime(day.year, day.month, day.day, tzinfo=UTC)


def differences(
    rules: RuleSet,
    events: Sequence[Event],
    batch: int = 512,
    placeholders: Mapping[str, Sequence[str]] | None = None,
    least: int = 0,
) -> list[object]:
    """Where engine and plain walk disagree on what matches, or on what they count.

    Args:
        rules: Correlations and absences are left out.
        events: What both are asked about.
        batch: So many at once.
        placeholders: Values of `%name%` by name.
        least: Of so many events a rule matches at least; otherwise that they agree proves nothing.
    """
    rules = msgspec.structs.replace(rules, correlations=(), absences=())
    engine, plain = Engine(rules, placeholders), Plain(rules, placeholders)
    found: list[object] = []
    speaking = 0
    for start in range(0, len(events), batch):
        part = events[start : start + batch]
        ours: dict[int, list[str]] = {}
        for finding in engine.detect(part):
            ours.setdefault(id(finding.events[-1]), []).append(finding.analytic.id)
        for event in part:
            theirs = plain.matched(event)
            speaking += bool(theirs)
            if (mine := ours.get(id(event), [])) != theirs:
                found.append((mine, theirs, event))
    for state in engine.states():
        if state.id in plain.evaluated:
            told = (state.evaluated, state.never_seen)
            never = tuple(sorted(plain.never_seen[state.id])) if state.arriving else ()
            if told != (plain.evaluated[state.id], never):
                found.append((state, plain.evaluated[state.id], never))
    return found if speaking >= least else [*found, f"rules match {speaking} events only"]
