"""Correlations and absences: what several events say together.

**Windows** slide on event time: an event at t completes a window if the condition holds over the
group's events from t minus the time span up to t, both ends included. A late event is put where it
belongs, and the windows that it completes speak; how late it may be says `Window.take`.

**One voice a window.** A group speaks when its condition first holds. As long as it goes on, it
speaks again at most once a time span; the `count` of such a finding is the number of base events
on which the condition held since it last spoke. What is left over speaks when time has passed.

**Bounds.** A correlation keeps `GROUPS_MAX` groups and `KEPT_MAX` base events; when more come, the
group that was touched longest ago goes. An event without one of the `group-by` fields belongs to no
group. All of this is counted (`counts`).

References:
    Sigma specification 2.1.0, "Correlation rules".
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from graphlib import TopologicalSorter
from operator import itemgetter
from typing import Any, Literal

import msgspec

from cityward.event import Event
from cityward.finding import Finding
from detectors.sigma import speak
from detectors.sigma.measures import Entry
from detectors.sigma.rule import Absence, Correlation, RuleSet
from detectors.sigma.view import View, text_of
from detectors.sigma.window import (
    KEPT_MAX,
    UNKNOWN,
    Kept,
    Match,
    Reached,
    Terms,
    Window,
    time_us,
    with_dates,
)

GROUPS_MAX = 10_000
PENDING_MAX = 1_000
"""Triggers of one group of an absence that wait; the oldest is decided when more come."""
EXPECTED_MAX = 1_000
"""Times of expected events that one group of an absence remembers."""

Key = tuple[str, ...]
Given = tuple[int, Match, int, "Key | None"]
"""The number of a match, the match, its time in microseconds, and its group if it has one."""


class AbsenceGroup(msgspec.Struct):
    """What one group of an absence waits for."""

    pending: list[tuple[int, Event]] = []
    """Triggers by time, microseconds since 1970."""
    expected: list[int] = []


class Saved(msgspec.Struct):
    """One correlation in a snapshot."""

    version: str
    """Content hash of its document: another one begins anew."""
    counts: dict[str, int]
    windows: list[tuple[Key, Kept]] = []
    absences: list[tuple[Key, AbsenceGroup]] = []


class Correlator:
    """All correlations and absences of a rule set, base before what builds on it."""

    def __init__(self, rules: RuleSet) -> None:
        titles = {one.id: one.analytic.name for one in rules.speaking()}
        states: dict[str, _Windows | _Absences] = {
            **{one.id: _Windows(one, titles) for one in rules.correlations},
            **{one.id: _Absences(one, titles) for one in rules.absences},
        }
        below = {id: states.keys() & bases_of(state.one) for id, state in states.items()}
        self._states = {id: states[id] for id in TopologicalSorter(below).static_order()}
        """Base before what builds on it."""
        self._upper = frozenset(id for id, bases in below.items() if bases)
        """Those that build on others."""
        self._uses: dict[str, _Uses] = {}
        for state in self._states.values():
            for base in dict.fromkeys(bases_of(state.one)):
                self._uses.setdefault(base, _Uses()).add(state.id, _fields_of(state.one, base))
        loud = {base for one in rules.correlations if one.generate for base in one.rules}
        self.silenced = frozenset(set(self._uses) - loud)
        """Ids of what only serves as a base and does not speak for itself."""

    def see(self, match: Match) -> list[Finding]:
        """Take a match; what it completes speaks, and what that completes in turn."""
        return self.see_all([match])[0]

    def see_all(self, matches: Sequence[Match]) -> list[list[Finding]]:
        """Take matches in the order given; what each completes, and what that does in turn."""
        found: list[list[Finding]] = [[] for _ in matches]
        given: dict[str, list[Given]] = {id: [] for id in self._states}
        for number, match in enumerate(matches):
            self._give(given, number, match)
        for id, state in self._states.items():
            if id in self._upper:  # matches of what is below came last
                given[id].sort(key=itemgetter(0))
            for number, finding in state.take(given[id]):
                upward: list[Match] = []
                found[number] += self._said(state, finding, upward)
                for match in upward:
                    self._give(given, number, match)
        return found

    def _give(self, given: dict[str, list[Given]], number: int, match: Match) -> None:
        """Pass a match on to what builds on its rule."""
        uses = self._uses.get(match.rule)
        if uses is not None:
            then_us = time_us(match.event.time)
            keys = [_key(match, fields) for fields in uses.groupings]
            for id, grouping in uses.ids:
                given[id].append((number, match, then_us, keys[grouping]))

    def tick(self, now: datetime) -> Iterator[Finding]:
        """Time has come to `now`: absences are decided, old windows forgotten."""
        waiting: list[Match] = []
        for state in self._states.values():
            # What is left over of a window has been fed upward when the window first spoke.
            upward = waiting if isinstance(state, _Absences) else []
            for finding in state.tick(now):
                yield from self._said(state, finding, upward)
        for found in self.see_all(waiting):
            yield from found

    def leftover(self) -> Iterator[Finding]:
        """The input has ended: windows say what they had kept for later; absences stay open."""
        for state in self._states.values():
            if isinstance(state, _Windows):
                for finding in state.leftover():
                    yield from self._said(state, finding, [])

    def _said(
        self, state: _Windows | _Absences, finding: Finding, waiting: list[Match]
    ) -> Iterator[Finding]:
        state.counts["spoken"] += 1
        if state.id in self._uses:
            event = finding.events[-1]
            fields = {"@timestamp": event.time, **event.fields, **dict(finding.group)}
            waiting.append(Match(state.id, event, View(fields).flat))
        if state.id not in self.silenced:
            yield finding

    def counts(self, correlation: str) -> Counter[str]:
        """What became of base events: `seen`, `spoken`, `late`, `ungrouped`, `evicted`, `cut`."""
        return self._states[correlation].counts

    def snapshot(self) -> dict[str, Any]:
        """Open windows of every correlation, ready for JSON."""
        return {key: msgspec.to_builtins(state.save()) for key, state in self._states.items()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take windows back; correlations that are new or changed begin anew.

        Raises:
            ValueError: this is no snapshot.
        """
        try:
            read = msgspec.convert(saved, dict[str, Saved])
        except msgspec.ValidationError as error:
            raise ValueError(f"no windows of correlations: {error}") from error
        for key, one in read.items():
            state = self._states.get(key)
            if state is not None and state.one.analytic.version == one.version:
                state.load(one)


def bases_of(one: Correlation | Absence) -> tuple[str, ...]:
    """Ids of what it builds on."""
    return one.rules if isinstance(one, Correlation) else (one.trigger, one.expected)


def kind_of(one: Correlation | Absence) -> Literal["correlation", "absence"]:
    """What it is called."""
    return "correlation" if isinstance(one, Correlation) else "absence"


class _Uses:
    """What builds on a rule, and by which of its fields: many group alike."""

    def __init__(self) -> None:
        self.ids: list[tuple[str, int]] = []
        """Each with the number of its grouping."""
        self.groupings: list[tuple[str, ...]] = []

    def add(self, id: str, fields: tuple[str, ...]) -> None:
        if fields not in self.groupings:
            self.groupings.append(fields)
        self.ids.append((id, self.groupings.index(fields)))


def _key(match: Match, fields: tuple[str, ...]) -> Key | None:
    """Values of the `group-by` fields; None if the event lacks one."""
    found: list[str] = []
    for field in fields:
        value = match.row.get(field)
        if type(value) is str:  # nearly always
            found.append(value)
            continue
        values = match.view.values(field)
        if not values or values[0] is None:
            return None
        found.append(",".join(map(text_of, values)))
    return tuple(found)


def _fields_of(one: Correlation | Absence, rule: str) -> tuple[str, ...]:
    aliases = one.aliases if isinstance(one, Correlation) else {}
    return tuple(aliases.get(name, {}).get(rule, name) for name in one.group_by)


class _Windows:
    """One correlation and its groups, the one touched last at the end."""

    def __init__(self, one: Correlation, titles: Mapping[str, str]) -> None:
        self.one = one
        self.id = one.id
        self.counts: Counter[str] = Counter()
        self.groups: OrderedDict[Key, Window] = OrderedDict()
        self.titles = titles
        self.kept = 0
        self.now_us = UNKNOWN
        self.terms = Terms(one)

    def take(self, given: Sequence[Given]) -> Iterator[tuple[int, Finding]]:
        """Take matches; numbers of those that something is said of, and what."""
        terms, groups, counts, now_us = self.terms, self.groups, self.counts, self.now_us
        compare, limit, span_us = terms.compare, terms.limit, terms.span_us
        values_of = terms.values if terms.has_values else None
        counts["seen"] += len(given)
        for number, match, then_us, key in given:
            if key is None:
                counts["ungrouped"] += 1
                continue
            window = groups.get(key)
            is_crowded = False
            if window is None:
                window = groups[key] = Window(terms)
                is_crowded = len(groups) > GROUPS_MAX
            else:
                groups.move_to_end(key)
            window.touched_us = now_us
            values = () if values_of is None else values_of(match)
            entry = Entry(then_us, match.rule, values, match.event)
            entries = window.entries
            before = len(entries)
            reached: Reached | None = None
            if not before or then_us >= entries[-1].time_us:  # nearly every event comes in order
                value = window.add(entry)
                if value is not None and compare(value, limit):
                    window.since += 1
                    fired_us = window.fired_us
                    if fired_us is None or abs(then_us - fired_us) >= span_us:
                        reached = window.newest(value)
            else:
                reached = self._late(window, entry)
            more = len(window.entries) - before
            if more != 1:
                counts["cut"] += window.newly_cut()
            self.kept += more
            if is_crowded or self.kept > KEPT_MAX:
                self._evict(key)
            if reached is not None:
                yield number, self._finding(key, window, reached, entry)

    def _late(self, window: Window, entry: Entry) -> Reached | None:
        """Take a match that is older than another; the window of which is now to be spoken."""
        if not window.take(entry):
            self.counts["late"] += 1
            return None
        reached = window.reached(entry)
        if reached is None:
            return None
        window.since += 1
        fired_us = window.fired_us
        is_soon = fired_us is not None and abs(entry.time_us - fired_us) < self.terms.span_us
        return None if is_soon else reached

    def _evict(self, newest: Key) -> None:
        while len(self.groups) > GROUPS_MAX or self.kept > KEPT_MAX:
            oldest = next(iter(self.groups))
            if oldest == newest:
                return
            self.kept -= len(self.groups.pop(oldest).entries)
            self.counts["evicted"] += 1

    def _finding(self, key: Key, window: Window, reached: Reached, deciding: Entry) -> Finding:
        group = tuple(zip(self.one.group_by, key, strict=True))
        count = window.since
        window.fired_us, window.since = deciding.time_us, 0
        return speak.of_correlation(self.one, group, reached, self.titles, count)

    def tick(self, now: datetime) -> Iterator[Finding]:
        """What was left over speaks; windows that no event can reach any more are forgotten."""
        self.now_us, span_us = time_us(now), self.terms.span_us
        for key, window in list(self.groups.items()):
            if window.touched_us == UNKNOWN:
                window.touched_us = self.now_us
            quiet_us = self.now_us - window.touched_us
            if quiet_us >= span_us:
                yield from self._left(key, window)
            if quiet_us > 2 * span_us:
                self.kept -= len(window.entries)
                del self.groups[key]

    def leftover(self) -> Iterator[Finding]:
        """What every group has not said yet."""
        for key, window in self.groups.items():
            yield from self._left(key, window)

    def _left(self, key: Key, window: Window) -> Iterator[Finding]:
        newest = window.entries[-1] if window.entries else None
        if window.since and newest is not None and newest.event is not None:
            # The last measure is not kept: the window is measured once more.
            everything = Reached(0.0, window.entries, 0, len(window.entries))
            again = window.reached(newest) or everything
            yield self._finding(key, window, again, newest)

    def save(self) -> Saved:
        return Saved(
            self.one.analytic.version,
            dict(self.counts),
            windows=[(key, window.kept()) for key, window in self.groups.items()],
        )

    def load(self, saved: Saved) -> None:
        self.counts = Counter(saved.counts)
        self.groups = OrderedDict((key, Window(self.terms, kept)) for key, kept in saved.windows)
        for window in self.groups.values():
            window.touched_us = UNKNOWN
            for entry in window.entries + window.late:
                entry.event = None if entry.event is None else with_dates(entry.event)
        self.kept = sum(len(window.entries) for window in self.groups.values())


class _Absences:
    """One absence and its groups."""

    def __init__(self, one: Absence, titles: Mapping[str, str]) -> None:
        self.one = one
        self.id = one.id
        self.counts: Counter[str] = Counter()
        self.groups: OrderedDict[Key, AbsenceGroup] = OrderedDict()
        self.titles = titles
        self.before_us = one.before_s * 1_000_000
        self.within_us = one.within_s * 1_000_000

    def take(self, given: Sequence[Given]) -> Iterator[tuple[int, Finding]]:
        """Take matches; numbers of those that something is said of, and what."""
        for number, match, then_us, key in given:
            finding = self._see(match, then_us, key)
            if finding is not None:
                yield number, finding

    def _see(self, match: Match, then_us: int, key: Key | None) -> Finding | None:
        self.counts["seen"] += 1
        if key is None:
            self.counts["ungrouped"] += 1
            return None
        group = self.groups.setdefault(key, AbsenceGroup())
        self.groups.move_to_end(key)
        if len(self.groups) > GROUPS_MAX:
            self.groups.popitem(last=False)
            self.counts["evicted"] += 1
        if match.rule == self.one.expected:
            self._expected(group, then_us)
        if match.rule == self.one.trigger:
            return self._triggered(key, group, then_us, match.event)
        return None

    def _expected(self, group: AbsenceGroup, then_us: int) -> None:
        group.expected.append(then_us)
        if len(group.expected) > EXPECTED_MAX:
            del group.expected[0]
            self.counts["cut"] += 1
        group.pending = [one for one in group.pending if not self._answers(then_us, one[0])]

    def _answers(self, expected_us: int, trigger_us: int) -> bool:
        return trigger_us - self.before_us <= expected_us <= trigger_us + self.within_us

    def _triggered(
        self, key: Key, group: AbsenceGroup, then_us: int, event: Event
    ) -> Finding | None:
        if any(self._answers(one, then_us) for one in group.expected):
            return None
        if self.within_us == 0:
            return self._finding(key, event)
        group.pending.append((then_us, event))
        if len(group.pending) > PENDING_MAX:
            self.counts["cut"] += 1
            return self._finding(key, group.pending.pop(0)[1])
        return None

    def _finding(self, key: Key, event: Event) -> Finding:
        group = tuple(zip(self.one.group_by, key, strict=True))
        return speak.of_absence(self.one, group, event, self.titles)

    def tick(self, now: datetime) -> Iterator[Finding]:
        """Triggers whose time is over, and nothing came."""
        now_us = time_us(now)
        for key, group in list(self.groups.items()):
            over = [event for then, event in group.pending if then + self.within_us < now_us]
            group.pending = [one for one in group.pending if one[0] + self.within_us >= now_us]
            for event in over:
                yield self._finding(key, event)
            oldest = now_us - 2 * (self.before_us + self.within_us) - 1_000_000
            group.expected = [one for one in group.expected if one >= oldest]
            if not group.pending and not group.expected:
                del self.groups[key]

    def save(self) -> Saved:
        return Saved(
            self.one.analytic.version, dict(self.counts), absences=list(self.groups.items())
        )

    def load(self, saved: Saved) -> None:
        self.counts = Counter(saved.counts)
        self.groups = OrderedDict(saved.absences)
        for group in self.groups.values():
            group.pending = [(then, with_dates(event)) for then, event in group.pending]
