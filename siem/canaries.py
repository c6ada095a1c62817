"""Canaries: what a rule must find is shown to it as it runs, one rule after another.

A rule may be on, and its source arrive, and yet it would never speak: a filter hides all, a list is
too wide, a field has another name now. So each is asked now and then about a sample of its own. No
finding is made of it, nothing is counted, and an event of it is never kept.

A rule that asks for lists of the site has no canary: its samples speak of the lists of another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import msgspec

from cityward import CitywardError, Event, Finding
from detectors.sigma.engine import Engine
from detectors.sigma.rule import Rule
from detectors.sigma.samples import events_of, parse_samples

EVERY_S = 5.0
"""So seldom one rule is asked: to read samples takes some milliseconds."""


class Canary(msgspec.Struct, frozen=True):
    """When a rule was last asked about a sample that it must find, and whether it found it."""

    time: datetime
    is_found: bool


class Canaries:
    """Asks the rules of the running engine in turn: a detector that says nothing.

    Args:
        engine: The engine that runs.
        samples_of: YAML of a rule's samples; empty: there are none.
    """

    name = "canaries"

    def __init__(self, engine: Callable[[], Engine], samples_of: Callable[[Rule], str]) -> None:
        self._engine = engine
        self._samples_of = samples_of
        self._at = 0
        self._next_s = 0.0
        self._last: dict[str, Canary] = {}

    def of(self, id: str) -> Canary | None:
        """The last one of a rule."""
        return self._last.get(id)

    def detect(self, events: Sequence[Event]) -> Iterator[Finding]:
        """Events are nothing to it."""
        return iter(())

    def tick(self, now: datetime) -> Iterator[Finding]:
        """Ask the next rule, if it is time."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + EVERY_S
            self._ask_next(now)
        return iter(())

    def snapshot(self) -> bytes:
        """Nothing: after a start all are asked anew."""
        return b""

    def restore(self, state: bytes) -> None:
        """Nothing is taken back."""

    def _ask_next(self, now: datetime) -> None:
        rules = self._engine().rules.rules
        if self._at >= len(rules):
            ids = {one.id for one in rules}
            self._last = {id: one for id, one in self._last.items() if id in ids}
            self._at = 0
        if not rules:
            return
        rule = rules[self._at]
        self._at += 1
        events = () if rule.needs else sample_of(rule, self._samples_of(rule))
        if events:
            is_found = any(self._engine().matches(rule, event) for event in events)
            self._last[rule.id] = Canary(now, is_found)
        else:
            self._last.pop(rule.id, None)


def sample_of(rule: Rule, samples: str) -> Sequence[Event]:
    """Events of its first sample that must match and needs no collector; empty: it has none."""
    if not samples:
        return ()
    try:
        cases = parse_samples(samples).cases
        wanted = (one for one in cases if one.kind == "must match" and not one.is_raw)
        case = next(wanted, None)
        return events_of(case, rule) if case is not None else ()
    except (CitywardError, ValueError):  # what is wrong with samples is said where they are tested
        return ()
