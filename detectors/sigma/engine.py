"""The Sigma engine: events in, findings that say why out.

Rules are not walked one by one: what they ask is one plan a log source (`plan.py`), each field's
matchers are asked once for each distinct value (`find.py`, `memory.py`), and events go through in
columns (`route.py`). The tests have the plain walk beside it; both agree finding by finding.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path
from time import perf_counter_ns
from typing import Literal

import msgspec

from cityward.errors import RuleError
from cityward.event import Event, LogSource
from cityward.finding import Check, Finding, Why
from detectors.sigma import explain, speak
from detectors.sigma.compiled import undisturbed
from detectors.sigma.correlation import Correlator, bases_of, kind_of, takes_each
from detectors.sigma.databases import Databases
from detectors.sigma.filter import covers
from detectors.sigma.jsonlines import Lines
from detectors.sigma.knowledge import Library
from detectors.sigma.load import compile_detection
from detectors.sigma.matchers import Placeholders
from detectors.sigma.memory import Room
from detectors.sigma.plan import (
    Asks,
    Expired,
    Plan,
    Planned,
    Spoken,
    Tree,
    first_fields,
    joined,
    tree_of,
)
from detectors.sigma.route import Route, verdicts_on
from detectors.sigma.rule import Absence, Correlation, Detection, Filter, Rule, RuleSet
from detectors.sigma.view import View

log = logging.getLogger(__name__)

SNAPSHOT_VERSION = 1
ROUTES_MAX = 1024
"""Log sources remembered; a sender who invents more costs time, not memory."""
PLANS_MAX = 256
"""Plans remembered; when there are more, they are made anew as they are needed."""
MEASURED_NS = 10_000_000_000
"""Rules are weighed each time they have taken so long; none is set aside before."""
HEAVY = 0.25
"""A rule that takes a larger part of the time of all is heavy …"""
BUSY = 0.1
"""… while rules take this part of the time that passes: a quarter of nothing is nothing."""
BATCH = 512
"""Events that are looked at together; more at once are no faster."""

LOSSES = ("late", "ungrouped", "evicted", "cut")
"""Too late, without a group field, group gone for want of room, window full."""

State = Literal["on", "not evaluated", "refused"]


class RuleState(msgspec.Struct, frozen=True):
    """How a document is doing: what cannot speak is shown, not hidden."""

    id: str
    """UUID; file and line for what could not be loaded."""
    title: str
    kind: Literal["rule", "correlation", "absence", "filter", "document"]
    level: str
    state: State
    reason: str = ""
    evaluated: int = 0
    """Events it was tried on (rules), or base events it got (correlations)."""
    matches: int = 0
    arriving: bool = False
    """True if an event of its log source, or of a base rule, has been seen."""
    never_seen: tuple[str, ...] = ()
    """Fields it looks at that no event had so far."""
    faults: int = 0
    """Events on which it failed; it is then passed over."""
    share: float = 0.0
    """Rules: part of all time that went into what it alone asks, sampled; what rules ask together
    is parted among them."""
    heavy: bool = False
    """True if that is much of what is not little (`HEAVY`, `BUSY`)."""
    lost: Mapping[str, int] = {}
    """Correlations: base events that did not count, by reason (`LOSSES`)."""
    file: str = ""


class _Active(Planned):
    """A rule that is evaluated, and what is known of it."""

    def __init__(
        self,
        rule: Rule,
        detection: Detection,
        filters: tuple[Filter, ...],
        asks: Asks,
        taken: set[str],
    ) -> None:
        self.rule = rule
        self.id = rule.id
        self.detection = detection
        self.filters = filters
        self.expiries = [_midnight(one) for one in filters]
        self.evaluated = 0
        self.matches = 0
        self.faults = 0
        self.fields = detection.fields()
        self.never_seen = taken | self.fields
        """Of the fields it looks at, and those that correlations take of its events."""
        tuned = [
            joined(False, (Tree(leaf=Expired(expiry)), tree_of(one.detection, asks)))
            for one, expiry in zip(filters, self.expiries, strict=True)
        ]
        super().__init__(joined(True, (tree_of(detection, asks), *tuned)))

    def filters_at(self, time: datetime) -> tuple[Filter, ...]:
        """The filters that had not expired."""
        pairs = zip(self.filters, self.expiries, strict=True)
        return tuple(one for one, expiry in pairs if time < expiry)


class _Aside(msgspec.Struct, frozen=True):
    """Why a rule is evaluated no more, and what was known of it."""

    reason: str
    evaluated: int
    matches: int
    faults: int
    share: float


class Engine:
    """Sigma rules, correlations and absences over a stream of events.

    Args:
        rules: What was loaded.
        placeholders: Values of `%name%` by name. A rule that needs one that is missing or empty is
            not evaluated, and says so.
        share_max: A rule that takes a larger part of all time is set aside when time passes
            (`tick`), and says so; None leaves it to who reads `states`.
        databases: A folder of our own that keeps what finds words, for the next start.
    """

    name = "sigma"

    @undisturbed()
    def __init__(
        self,
        rules: RuleSet,
        placeholders: Placeholders | None = None,
        share_max: float | None = None,
        databases: Path | None = None,
    ) -> None:
        self.rules = rules
        self.share_max = share_max
        self._databases = databases
        self._spent_ns = self._weighed_ns = 0
        self._weighed_at_ns = perf_counter_ns()
        self._times_before_ns: Mapping[str, float] = {}
        self._heavy: set[str] = set()
        self.placeholders: Placeholders = placeholders or {}
        self._asks = Asks()
        self._active: dict[str, _Active] = {}
        self._idle: dict[str, tuple[State, str]] = {}
        self._aside: dict[str, _Aside] = {}
        """Rules that took too much time: whatever changes, they stay so."""
        self._places: dict[LogSource, list[int]] = {}
        """Of each log source that rules want, where these are among all."""
        self._taken = _taken(rules)
        self._taken_of: defaultdict[str, set[str]] = defaultdict(set)
        """Of each rule: the fields that correlations take of its events."""
        for id, names in chain.from_iterable(one.items() for one in self._taken.values()):
            self._taken_of[id] |= names
        for place, rule in enumerate(rules.rules):
            self._places.setdefault(rule.logsource, []).append(place)
            self._activate(rule)
        self._library = Library(
            (one.leaves for one in self._active.values()), Room(), Databases(databases)
        )
        self._correlator = Correlator(rules)
        self._silent = self._correlator.silenced
        self._routes: dict[LogSource, Route[_Active] | None] = {}
        self._plans: dict[tuple[str, ...], Route[_Active]] = {}
        self._left: list[Route[_Active]] = []
        """Routes for which there was no room any more; within a batch they may yet be counted."""

    def with_rules(self, rules: RuleSet) -> Engine:
        """An engine like this with other rules; the windows of unchanged correlations go on.

        A rule that was set aside and has not changed stays so.
        """
        fresh = Engine(rules, self.placeholders, self.share_max, self._databases)
        fresh.restore(self.snapshot())
        fresh._heavy = self._heavy & fresh._active.keys()
        before = {rule.id: rule for rule in self.rules.rules if rule.id in self._aside}
        fresh._leave_out(
            {
                rule.id: self._aside[rule.id]
                for rule in rules.rules
                if rule.id in before and _says_the_same(rule, before[rule.id])
            }
        )
        return fresh

    def _activate(self, rule: Rule) -> None:
        if rule.id in self._aside:
            return
        try:
            self._active[rule.id] = self._compiled(rule)
        except KeyError as missing:
            self._idle[rule.id] = ("not evaluated", f"needs %{missing.args[0]}%")
        except RuleError as error:
            self._idle[rule.id] = ("refused", f"{error.what} ({error.where})")

    def _compiled(self, rule: Rule) -> _Active:
        """The rule with its placeholders filled in."""
        detection, filters = rule.detection, list(rule.filters)
        if missing := sorted(name for name in rule.needs if not self.placeholders.get(name)):
            raise KeyError("%, %".join(missing))
        if rule.needs:
            detection = compile_detection(rule.document, "detection", self.placeholders)
            filters = [
                msgspec.structs.replace(
                    one, detection=compile_detection(one.document, "filter", self.placeholders)
                )
                for one in filters
            ]
        return _Active(rule, detection, tuple(filters), self._asks, self._taken_of[rule.id])

    def detect(self, events: Sequence[Event]) -> Iterator[Finding]:
        """One finding a match of a rule, and those of the correlations it completes."""
        for start in range(0, len(events), BATCH):
            yield from self._detect(events[start : start + BATCH])

    def _detect(self, events: Sequence[Event]) -> Iterator[Finding]:
        every: list[_Active] = []
        seen: list[Event] = []
        for place, matched in self._matched_by(events):
            every += matched
            seen += [events[place]] * len(matched)
        built = self._correlator.see_all([active.id for active in every], seen)
        for number, active in enumerate(every):
            if active.id not in self._silent:
                yield self._spoken(active, seen[number])
            if number in built:
                yield from built[number]

    def matched(self, events: Sequence[Event]) -> Iterator[tuple[int, list[Rule]]]:
        """Places of the events that rules match, and these; nothing is said of it.

        For who counts or looks back: correlations do not see these events.
        """
        for start in range(0, len(events), BATCH):
            for place, matched in self._matched_by(events[start : start + BATCH]):
                yield start + place, [active.rule for active in matched]

    def _matched_by(self, events: Sequence[Event]) -> Iterable[tuple[int, tuple[_Active, ...]]]:
        self._let_go()
        start_ns = perf_counter_ns()
        verdicts = verdicts_on(dict(enumerate(events)), self._known_route)
        self._spent_ns += perf_counter_ns() - start_ns
        return self._told(verdicts) if verdicts else ()

    def matched_lines(
        self, lines: Sequence[bytes], time: datetime
    ) -> Iterator[tuple[int, list[Rule] | None]]:
        """Places of the lines that rules match, and these; None for a line that is broken.

        This is sooner done than to make events of lines and ask `matched`. What `states` says of
        fields that were never seen, it does not know of lines.

        Args:
            lines: One JSON object each, which may name its log source (`jsonlines.PARTS`).
            time: When they happened, or came.
        """
        for start in range(0, len(lines), BATCH):
            self._let_go()
            start_ns = perf_counter_ns()
            verdicts, broken = self._lines.verdicts(lines[start : start + BATCH], time)
            self._spent_ns += perf_counter_ns() - start_ns
            for place, matched in self._told(verdicts):
                yield start + place, [active.rule for active in matched]
            yield from ((start + place, None) for place in broken)

    @cached_property
    def _lines(self) -> Lines[_Active]:
        return Lines(self._known_route, self._first, self._library.room)

    @cached_property
    def _first(self) -> frozenset[str]:
        return first_fields(self._active.values())

    def _known_route(self, logsource: LogSource) -> Route[_Active]:
        return self._routes.get(logsource) or self._route(logsource)

    def _told(
        self, verdicts: Mapping[int, Spoken[_Active]]
    ) -> Iterator[tuple[int, tuple[_Active, ...]]]:
        """What holds of events, in their order; it is counted."""
        for place in sorted(verdicts):
            matched, failed = verdicts[place]
            for active in failed:
                self._failed(active)
            for active in matched:
                active.matches += 1
            yield place, matched

    def _failed(self, active: _Active) -> None:
        """A rule that fails is passed over, so that it does not silence the others."""
        active.faults += 1
        if active.faults == 1:
            log.error("Rule %s fails on an event.", active.rule.id)

    def _spoken(self, active: _Active, event: Event) -> Finding:
        filters = active.filters_at(event.time)
        why = explain.why_matched(active.detection, filters, View.of(event))
        return speak.of_rule(active.rule, event, why)

    def tick(self, now: datetime) -> Iterator[Finding]:
        """Time passes: absences speak, windows that nobody needs any more are forgotten."""
        if self._spent_ns - self._weighed_ns > MEASURED_NS:
            self._weigh()
        yield from self._correlator.tick(now)

    def _weigh(self) -> None:
        """See what each rule took since the last time: who takes much is named, too much set aside.

        What it was when the engine began says little of what holds the node up now.
        """
        now_ns, times_ns = perf_counter_ns(), self._times_ns()
        spent_ns = max(self._spent_ns - self._weighed_ns, 1)
        busy = spent_ns / max(now_ns - self._weighed_at_ns, 1)
        shares = {
            key: (time_ns - self._times_before_ns.get(key, 0.0)) / spent_ns
            for key, time_ns in times_ns.items()
        }
        self._weighed_ns, self._weighed_at_ns = self._spent_ns, now_ns
        self._times_before_ns = times_ns
        if self.share_max is not None:
            self._set_aside({key: one for key, one in shares.items() if one > self.share_max})
        heavy = {key for key, one in shares.items() if one > HEAVY and key in self._active}
        heavy = heavy if busy > BUSY else set()
        for key in heavy - self._heavy:
            told = self._active[key].rule.title, key, f"{shares[key]:.0%}"
            log.warning("Rule %s (%s) takes %s of the time of all rules.", *told)
        self._heavy = heavy

    def _set_aside(self, shares: Mapping[str, float]) -> None:
        """Rules that take more than their share are not evaluated any more."""
        self._settle()
        aside: dict[str, _Aside] = {}
        for key, share in shares.items():
            one = self._active[key]
            limit = f"the limit is {self.share_max:.0%}"
            reason = f"set aside: it took {share:.0%} of the time, {limit}"
            aside[key] = _Aside(reason, one.evaluated, one.matches, one.faults, share)
            log.warning("Rule %s (%s) is %s.", one.rule.title, key, reason)
        self._leave_out(aside)

    def _leave_out(self, aside: Mapping[str, _Aside]) -> None:
        """These rules are not evaluated any more."""
        self._settle()
        self._aside |= aside
        for key in aside:
            self._active.pop(key, None)
        if aside:
            self._plan_again()

    def _shares(self) -> dict[str, float]:
        """The part of all time that each rule took."""
        return {key: time_ns / max(self._spent_ns, 1) for key, time_ns in self._times_ns().items()}

    def _times_ns(self) -> dict[str, float]:
        """What each rule took; what several ask is parted among them."""
        users = Counter(ask for one in self._active.values() for ask in one.asks)
        return {
            key: sum(ask.spent_ns / users[ask] for ask in one.asks)
            for key, one in self._active.items()
        }

    def leftover(self) -> Iterator[Finding]:
        """The input has ended: what windows that had spoken kept for the end of their span."""
        yield from self._correlator.leftover()

    def use_placeholders(self, placeholders: Placeholders) -> None:
        """Take new values of placeholders; only the rules that name a changed one are compiled."""
        self._settle()
        names = {*self.placeholders, *placeholders}
        old = self.placeholders
        changed = {name for name in names if [*old.get(name, ())] != [*placeholders.get(name, ())]}
        self.placeholders = placeholders
        for rule in self.rules.rules:
            if rule.needs & changed:
                before = self._active.pop(rule.id, None)
                self._idle.pop(rule.id, None)
                self._activate(rule)
                if before is not None and (now := self._active.get(rule.id)):
                    now.evaluated, now.matches = before.evaluated, before.matches
        self._plan_again()

    def _route(self, logsource: LogSource) -> Route[_Active]:
        """The route of a log source not seen yet; those of equal rules are one."""
        route = self._route_of(self._routed(logsource))
        if logsource in self._routes or len(self._routes) < ROUTES_MAX:
            self._routes[logsource] = route
        return route

    @undisturbed()
    def prepare(self, *, for_lines: bool = False) -> None:
        """Make now what else is made when the first events come, or the first lines of JSON."""
        for logsource in self._places:
            self._route_of(self._routed(logsource)).prepare(for_lines=for_lines)
        self._library.prepare()

    def _route_of(self, rules: tuple[_Active, ...]) -> Route[_Active]:
        key = tuple(active.rule.id for active in rules)
        route = self._plans.get(key)
        if route is None:
            if len(self._plans) >= PLANS_MAX:
                self._left += self._plans.values()
                self._plans.clear()
                self._routes = dict.fromkeys(self._routes)
                self.__dict__.pop("_lines", None)
            plan = Plan(rules, self._library.room, self._first)
            route = self._plans[key] = Route(plan, self._library)
        return route

    def _plan_again(self) -> None:
        """Rules have changed: what others ask of a field is kept, with what is known of it."""
        self._settle()
        self.__dict__.pop("_lines", None)
        first = self.__dict__.pop("_first", None)
        kept = self._plans  # so that the new plans find it
        is_same = first is None or first == self._first  # what a plan looks at first is fixed
        self._plans = {
            key: route for key, route in kept.items() if is_same and self._is_current(route)
        }
        for seen in self._routes:
            self._route(seen)

    def _is_current(self, route: Route[_Active]) -> bool:
        return all(self._active.get(one.rule.id) is one for one in route.plan.rules)

    def _let_go(self) -> None:
        """A batch begins: of the one before nobody holds a route any more."""
        if self._left:
            self._settle()
            self._left.clear()

    def _settle(self) -> None:
        """Give each rule the events that its routes have counted."""
        for route in chain(self._plans.values(), self._left):
            for active in route.plan.rules:
                active.evaluated += route.events
            route.events = 0

    def _routed(self, logsource: LogSource) -> tuple[_Active, ...]:
        """The rules of a log source, in the order they were loaded."""
        wanted = [places for one, places in self._places.items() if self._covers(one, logsource)]
        ids = (self.rules.rules[place].id for place in sorted(chain(*wanted)))
        return tuple(self._active[id] for id in ids if id in self._active)

    def _covers(self, wanted: LogSource, given: LogSource) -> bool:
        """True if rules that want the one are asked about events of the other."""
        return covers(wanted, given)

    def explain(self, rule: Rule | str, event: Event) -> Why:
        """Every line of a rule beside what the event has, whether it matches or not.

        Raises:
            KeyError: no rule has this id, or it is not evaluated.
        """
        return explain.why_all(*self._asked(rule, event))

    def against(self, rule: Rule | str, event: Event) -> tuple[Check, ...]:
        """Just the lines because of which a rule does not match an event; none if it matches.

        Raises:
            KeyError: no rule has this id, or it is not evaluated.
        """
        return explain.against(*self._asked(rule, event))

    def _asked(
        self, rule: Rule | str, event: Event
    ) -> tuple[Detection, tuple[Filter, ...], View, LogSource, LogSource]:
        active = self._active[rule if isinstance(rule, str) else rule.id]
        filters, wanted = active.filters_at(event.time), active.rule.logsource
        return active.detection, filters, View.of(event), wanted, event.logsource

    def matches(self, rule: Rule | str, event: Event) -> bool:
        """True if the rule alone, its log source included, matches the event."""
        active = self._active.get(rule if isinstance(rule, str) else rule.id)
        return active is not None and (
            covers(active.rule.logsource, event.logsource)
            and active.detection.holds(View.of(event))
            and all(one.detection.holds(View.of(event)) for one in active.filters_at(event.time))
        )

    def tree(self, rule: Rule | str) -> Tree:
        """The condition of a rule as one tree: filters included, lists filled in.

        Raises:
            KeyError: no rule has this id, or it is not evaluated.
        """
        return self._active[rule if isinstance(rule, str) else rule.id].tree

    def states(self) -> list[RuleState]:
        """How every document is doing, those that could not be loaded included."""
        self._settle()
        shares = self._shares()
        found = [self._state_of(rule, shares.get(rule.id, 0.0)) for rule in self.rules.rules]
        found += self._built_states(found)
        found += [
            RuleState(one.id, one.title, "filter", "", "on", file=one.document.where())
            for one in self.rules.filters
        ]
        found += [
            RuleState(error.where, "", "document", "", "refused", error.what, file=error.where)
            for error in self.rules.refused
        ]
        return found

    def _state_of(self, rule: Rule, share: float) -> RuleState:
        state = RuleState(
            rule.id, rule.title, "rule", rule.analytic.level, "on", file=rule.document.where()
        )
        if rule.id in self._aside:
            kept = msgspec.structs.asdict(self._aside[rule.id])
            return msgspec.structs.replace(state, state="not evaluated", **kept)
        if rule.id in self._idle:
            idle, reason = self._idle[rule.id]
            return msgspec.structs.replace(state, state=idle, reason=reason)
        active = self._active[rule.id]
        arriving = any(covers(rule.logsource, seen) for seen in self._routes)
        return msgspec.structs.replace(
            state,
            evaluated=active.evaluated,
            matches=active.matches,
            arriving=arriving,
            never_seen=tuple(sorted(active.never_seen & active.fields)) if arriving else (),
            faults=active.faults,
            share=share,
            heavy=rule.id in self._heavy,
        )

    def _built_states(self, base: Iterable[RuleState]) -> Iterator[RuleState]:
        """Correlations and absences: one whose base is not evaluated cannot be either."""
        known = {one.id: one for one in base}
        for one in _built(self.rules):
            idle = [known[i] for i in bases_of(one) if known[i].state != "on"]
            counts = self._correlator.counts(one.id)
            known[one.id] = RuleState(
                one.id,
                one.analytic.name,
                kind_of(one),
                one.analytic.level,
                "not evaluated" if idle else "on",
                "; ".join(f"{base.title}: {base.reason}" for base in idle),
                evaluated=counts["seen"],
                matches=counts["spoken"],
                arriving=any(known[i].arriving for i in bases_of(one)),
                never_seen=() if idle else self._never_taken(one, known),
                lost={name: counts[name] for name in LOSSES if counts[name]},
                file=one.document.where(),
            )
            yield known[one.id]

    def _never_taken(
        self, one: Correlation | Absence, known: Mapping[str, RuleState]
    ) -> tuple[str, ...]:
        """Fields that it takes and no event had, if it cannot speak without them."""
        lacking = [
            names & self._active[rule].never_seen
            for rule, names in self._taken[one.id].items()
            if known[rule].arriving
        ]
        cannot = any(lacking) if takes_each(one) else all(lacking)
        return tuple(sorted(frozenset().union(*lacking))) if cannot else ()

    def snapshot(self) -> bytes:
        """Open windows and counts, as JSON."""
        self._settle()
        known: dict[str, _Active | _Aside] = {**self._active, **self._aside}
        counts = {key: [one.evaluated, one.matches, one.faults] for key, one in known.items()}
        state = {
            "version": SNAPSHOT_VERSION,
            "counts": counts,
            "windows": self._correlator.snapshot(),
        }
        return msgspec.json.encode(state)

    def restore(self, state: bytes) -> None:
        """Take a snapshot back; windows of correlations that have changed begin anew.

        Raises:
            ValueError: it is no snapshot of this version.
        """
        try:
            given = json.loads(state)
            version = given["version"]
            if version == SNAPSHOT_VERSION:
                counts = {key: [int(n) for n in value] for key, value in given["counts"].items()}
                self._correlator.restore(given["windows"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no snapshot of the Sigma engine: {error!r}") from error
        if version != SNAPSHOT_VERSION:
            raise ValueError(f"snapshot of version {version}, not {SNAPSHOT_VERSION}")
        self._settle()
        for key, (evaluated, matches, faults) in counts.items():
            if active := self._active.get(key):
                active.evaluated, active.matches, active.faults = evaluated, matches, faults


def _built(rules: RuleSet) -> Iterator[Correlation | Absence]:
    """Correlations and absences, base before what builds on it."""
    every: list[Correlation | Absence] = [*rules.correlations, *rules.absences]
    built = {one.id: one for one in every}
    order = TopologicalSorter({one.id: bases_of(one) for one in every}).static_order()
    return (built[name] for name in order if name in built)


def _taken(rules: RuleSet) -> dict[str, dict[str, frozenset[str]]]:
    """Of each correlation and absence, by rule: the fields that it takes of what that matches.

    What builds on another one takes what that takes, and fields by which that does not group.
    """
    found: dict[str, dict[str, frozenset[str]]] = {}
    groups: dict[str, frozenset[str]] = {}
    for one in _built(rules):
        taken = found[one.id] = {}
        groups[one.id] = frozenset(one.group_by)
        bases = bases_of(one) if isinstance(one, Correlation) else (one.trigger,)
        for base in bases:
            more = one.fields(base) - groups.get(base, frozenset())
            for rule, names in found.get(base, {base: frozenset()}).items():
                taken[rule] = taken.get(rule, frozenset()) | names | more
    return found


def _says_the_same(one: Rule, other: Rule) -> bool:
    """Whether two rules, with their filters, are written alike."""
    said = [
        [rule.document.value, *(f.document.value for f in rule.filters)] for rule in (one, other)
    ]
    return said[0] == said[1]


def _midnight(one: Filter) -> datetime:
    day = one.own.expires
    return (
        datetime.max.replace(tzinfo=UTC)
        if day is None
        else datetime(day.year, day.month, day.day, tzinfo=UTC)
    )
