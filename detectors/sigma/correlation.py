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

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from graphlib import TopologicalSorter
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, Literal

import msgspec

from cityward.event import Event
from cityward.finding import Finding
from detectors.sigma import speak
from detectors.sigma.match import Key, Match, key_of, keys_of, texts_of, time_us
from detectors.sigma.measures import Entry
from detectors.sigma.rule import Absence, Correlation, RuleSet
from detectors.sigma.view import View
from detectors.sigma.window import (
    KEPT_MAX,
    OPERATORS,
    UNKNOWN,
    Kept,
    Reached,
    Terms,
    Window,
    with_dates,
)

GROUPS_MAX = 10_000
PENDING_MAX = 1_000
"""Triggers of one group of an absence that wait; the oldest is decided when more come."""
EXPECTED_MAX = 1_000
"""Times of expected events that one group of an absence remembers."""

Bases = tuple[tuple[str, tuple[str, ...]], ...]
"""Ids of rules and correlations, each with the fields by which its events are grouped."""


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
    windows: list[tuple[tuple[str, ...], Kept]] = []
    absences: list[tuple[tuple[str, ...], AbsenceGroup]] = []


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
        order = {id: place for place, id in enumerate(self._states, 1)}
        self._bases: dict[str, Bases] = {
            id: tuple(
                (base, _fields_of(state.one, base))
                for base in sorted(
                    dict.fromkeys(bases_of(state.one)), key=lambda b: order.get(b, 0)
                )
            )
            for id, state in self._states.items()
        }
        """Of each; rules first, as they match before correlations do."""
        self._used = frozenset(base for bases in self._bases.values() for base, _ in bases)
        loud = {base for one in rules.correlations if one.generate for base in one.rules}
        self.silenced = self._used - loud
        """Ids of what only serves as a base and does not speak for itself."""

    def see(self, rule: str, event: Event) -> list[Finding]:
        """Take a match; what it completes speaks, and what that completes in turn."""
        return self.see_all([rule], [event]).get(0, [])

    def see_all(self, rules: Sequence[str], events: Sequence[Event]) -> dict[int, list[Finding]]:
        """Take matches in their order; by place what each completes, if anything.

        What that completes in turn stands after it.

        Args:
            rules: What matched.
            events: Of each what it matched on.
        """
        by_base: dict[str, list[Match]] = {}
        for number, rule in enumerate(rules):
            if rule in self._used:
                event = events[number]
                match = Match(rule, event, event.fields, time_us(event.time), number)
                by_base.setdefault(rule, []).append(match)
        return self._see(by_base)

    def _see(self, by_base: dict[str, list[Match]]) -> dict[int, list[Finding]]:
        found: dict[int, list[Finding]] = {}
        given: dict[Bases, Given] = {}
        for id, bases in self._bases.items() if by_base else ():
            if bases not in given:
                given[bases] = Given(bases, by_base)
            if given[bases].matches:
                state, upward = self._states[id], by_base.setdefault(id, [])
                for number, finding in state.take(given[bases]):
                    said = self._said(state, finding, upward, number)
                    found.setdefault(number, []).extend(said)
        return found

    def tick(self, now: datetime) -> Iterator[Finding]:
        """Time has come to `now`: absences are decided, old windows forgotten."""
        waiting: list[Match] = []
        for state in self._states.values():
            # What is left over of a window has been fed upward when the window first spoke.
            upward = waiting if isinstance(state, _Absences) else []
            for finding in state.tick(now):
                yield from self._said(state, finding, upward, len(waiting))
        by_base: dict[str, list[Match]] = {}
        for match in waiting:
            by_base.setdefault(match.rule, []).append(match)
        found = self._see(by_base)
        yield from chain.from_iterable(found[number] for number in sorted(found))

    def leftover(self) -> Iterator[Finding]:
        """The input has ended: windows say what they had kept for later; absences stay open."""
        for state in self._states.values():
            if isinstance(state, _Windows):
                for finding in state.leftover():
                    yield from self._said(state, finding, [], 0)

    def _said(
        self, state: _Windows | _Absences, finding: Finding, upward: list[Match], number: int
    ) -> list[Finding]:
        """What is heard of a finding; what builds on it will hear of it as a match."""
        state.counts["spoken"] += 1
        if state.id in self._used:
            event = finding.events[-1]
            row = View({"@timestamp": event.time, **event.fields, **dict(finding.group)}).flat
            upward.append(Match(state.id, event, row, time_us(event.time), number))
        return [] if state.id in self.silenced else [finding]

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


def takes_each(one: Correlation | Absence) -> bool:
    """True if it cannot speak without an event of each of its rules."""
    if isinstance(one, Absence) or not one.type.startswith("temporal") or one.expression:
        return False
    return not any(
        all(OPERATORS[name](seen, limit) for name, limit in one.limits)
        for seen in range(1, len(one.rules))
    )


def kind_of(one: Correlation | Absence) -> Literal["correlation", "absence"]:
    """What it is called."""
    return "correlation" if isinstance(one, Correlation) else "absence"


class Given:
    """Matches for what builds on these bases, and the groups that they belong to."""

    def __init__(self, bases: Bases, by_base: Mapping[str, list[Match]]) -> None:
        several = [by_base[base] for base, _ in bases if base in by_base]
        self.matches = several[0] if len(several) == 1 else _in_order(several)
        self._fields = dict(bases)

    @cached_property
    def keys(self) -> Sequence[Key | None]:
        """Of each match its group; None if its event lacks a field."""
        groupings = {*self._fields.values()}
        if len(groupings) == 1:
            return keys_of(self.matches, groupings.pop())
        return [keys_of([one], self._fields[one.rule])[0] for one in self.matches]

    @cached_property
    def groups(self) -> Sequence[tuple[Key, list[int]]]:
        """The places of each group's matches; the group that comes last is at the end."""
        groups: defaultdict[Key | None, list[int]] = defaultdict(list)
        for place, key in enumerate(self.keys):
            groups[key].append(place)
        return sorted(
            ((key, places) for key, places in groups.items() if key is not None), key=_last
        )

    @cached_property
    def times(self) -> list[int]:
        """When they were, in microseconds."""
        return [match.time_us for match in self.matches]

    @cached_property
    def in_order(self) -> bool:
        """True if no event is older than the one before it."""
        return self.times == sorted(self.times)

    @cached_property
    def rules(self) -> list[str]:
        """What matched."""
        return [match.rule for match in self.matches]

    @cached_property
    def events(self) -> list[Event]:
        """What it matched on."""
        return [match.event for match in self.matches]

    def alone(self) -> Iterator[tuple[Key, list[int]]]:
        """Each match by itself."""
        return ((key, [place]) for place, key in enumerate(self.keys) if key is not None)


def _last(group: tuple[Key, list[int]]) -> int:
    return group[1][-1]


def _in_order(several: Iterable[list[Match]]) -> list[Match]:
    return sorted(chain.from_iterable(several), key=attrgetter("number"))


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

    def take(self, given: Given) -> list[tuple[int, Finding]]:
        """Take matches; numbers of those that something is said of, and what."""
        matches, groups, counts = given.matches, self.groups, self.counts
        values = self.terms.values(matches)
        entry_of = [*map(Entry, given.times, given.rules, values, given.events)].__getitem__
        counts["seen"] += len(matches)
        counts["ungrouped"] += given.keys.count(None)
        found: list[tuple[int, Finding]] = []
        has_room, in_order = self._has_room(given), given.in_order
        for key, places in given.groups if has_room else given.alone():
            window = groups.get(key)
            if window is None:
                window = groups[key] = Window(self.terms)
            else:
                groups.move_to_end(key)
            window.touched_us = self.now_us
            size = len(window.entries) + len(places)
            for reached in window.feed([*map(entry_of, places)], counts, in_order=in_order):
                number = matches[places[reached.number]].number
                found.append((number, self._finding(key, reached)))
            self.kept += len(places)
            if len(window.entries) != size:
                self.kept += len(window.entries) - size
                counts["cut"] += window.newly_cut()
            if not has_room:
                self._evict(key)
        found.sort(key=itemgetter(0))
        return found

    def _has_room(self, given: Given) -> bool:
        """True if no group has to go, so that it does not matter which was touched last."""
        if self.kept + len(given.matches) > KEPT_MAX:
            return False
        return (
            len(self.groups) + len(given.groups) <= GROUPS_MAX
            or len(self.groups.keys() | dict(given.groups).keys()) <= GROUPS_MAX
        )

    def _evict(self, newest: Key) -> None:
        while len(self.groups) > GROUPS_MAX or self.kept > KEPT_MAX:
            oldest = next(iter(self.groups))
            if oldest == newest:
                return
            self.kept -= len(self.groups.pop(oldest).entries)
            self.counts["evicted"] += 1

    def _finding(self, key: Key, reached: Reached) -> Finding:
        group = tuple(zip(self.one.group_by, texts_of(key), strict=True))
        return speak.of_correlation(self.one, group, reached, self.titles)

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
        reached = window.rest()
        if reached is not None:
            yield self._finding(key, reached)

    def save(self) -> Saved:
        return Saved(
            self.one.analytic.version,
            dict(sorted(self.counts.items())),
            windows=[(texts_of(key), window.kept()) for key, window in self.groups.items()],
        )

    def load(self, saved: Saved) -> None:
        self.counts = Counter(saved.counts)
        self.groups = OrderedDict(
            (key_of(texts), Window(self.terms, kept)) for texts, kept in saved.windows
        )
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

    def take(self, given: Given) -> list[tuple[int, Finding]]:
        """Take matches; numbers of those that something is said of, and what."""
        seen = [self._see(*one) for one in zip(given.matches, given.keys, strict=True)]
        numbered = zip(given.matches, seen, strict=True)
        return [(match.number, finding) for match, finding in numbered if finding is not None]

    def _see(self, match: Match, key: Key | None) -> Finding | None:
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
            self._expected(group, match.time_us)
        if match.rule == self.one.trigger:
            return self._triggered(key, group, match.time_us, match.event)
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
        group = tuple(zip(self.one.group_by, texts_of(key), strict=True))
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
        absences = [(texts_of(key), group) for key, group in self.groups.items()]
        return Saved(
            self.one.analytic.version, dict(sorted(self.counts.items())), absences=absences
        )

    def load(self, saved: Saved) -> None:
        self.counts = Counter(saved.counts)
        self.groups = OrderedDict((key_of(texts), group) for texts, group in saved.absences)
        for group in self.groups.values():
            group.pending = [(then, with_dates(event)) for then, event in group.pending]
