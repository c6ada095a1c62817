"""What each filter hides of the events that are kept: the one that hides nothing can go.

A filter is counted by itself, as if it had counted all the time until it expires: so of two that
hide the same, both are said to hide it, and neither to be useless.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from cityward.errors import CitywardError
from siem.console.tuning import HideCount, HideCounts
from siem.store.protocol import Range

if TYPE_CHECKING:
    from detectors.sigma.matchers import Placeholders
    from detectors.sigma.rule import Filter, Rule, RuleSet
    from siem.backtest import TunedOut
    from siem.store.archive import Looking

log = logging.getLogger(__name__)

DAYS = 30
COUNT_S = 300.0
"""In which all are counted, those of few rules first; what is left then is said to be too much."""
AGE = timedelta(hours=1)
"""Older numbers are counted again as soon as somebody looks."""
WAIT_S = 0.4
"""So long a page waits for the numbers; it then comes without those that are missing."""
STOP_S = 5.0
PAUSE_S = 0.01
"""Between two rules, so that whoever waits for their turn has it."""

TOO_LONG = f"not counted in {COUNT_S:.0f} s"
FAILED = "it could not be counted; the log says why"
NO_RULE = "it tunes no rule that counts here"
NO_EVENT = f"no event of the last {DAYS} days is kept"


def counted(
    folder: Path,
    rules: RuleSet,
    placeholders: Placeholders,
    ids: Collection[str],
    now: datetime,
    stop: threading.Event,
    turn: AbstractContextManager[object] | None = None,
) -> Iterator[tuple[str, HideCount]]:
    """What filters hide of the events of the last `DAYS` days, each as soon as it is known.

    Args:
        folder: The events.
        rules: What counts.
        placeholders: Values of `%name%`.
        ids: Of the filters that are asked for.
        now: Up to when.
        stop: Set by somebody who does not want to wait longer; it is set after `COUNT_S`.
        turn: Held while a rule is asked; whoever waits for it comes before the next rule.
    """
    from siem.store.archive import MEMORY_LIMIT, Looking

    tuned = _tuned(rules)
    sums = {id: _Sum(tuned.get(id, {})) for id in ids}
    yield from ((id, one.told(now)) for id, one in sums.items() if not one.waits)
    left_s = COUNT_S
    with closing(Looking(folder, MEMORY_LIMIT)) as looking:
        for rule in _in_order(sums):
            if stop.wait(PAUSE_S):
                break
            with turn or nullcontext(), _stopped_after(left_s, stop):
                start_s = monotonic()
                known = _asked(looking, rule, sums, placeholders, now, stop)
                left_s -= monotonic() - start_s
            for id in known:
                yield id, sums[id].told(now)
    for id, one in sums.items():
        if one.waits:
            yield id, HideCount(None, DAYS, now, TOO_LONG)


@contextmanager
def _stopped_after(seconds: float, stop: threading.Event) -> Iterator[None]:
    """Set the stop if what is done takes longer."""
    late = threading.Timer(max(seconds, 0.0), stop.set)
    late.daemon = True  # no process waits for it to end
    late.start()
    try:
        yield
    finally:
        late.cancel()


def _in_order(sums: Mapping[str, _Sum]) -> list[Rule]:
    """Rules of filters; first those of filters that are soon counted."""
    effort: dict[str, int] = {}
    rules: dict[str, Rule] = {}
    for one in sums.values():
        rules |= one.waits
        for id in one.waits:
            effort[id] = min(len(one.waits), effort.get(id, len(one.waits)))
    return sorted(rules.values(), key=lambda rule: effort[rule.id])


def _asked(
    looking: Looking,
    rule: Rule,
    sums: Mapping[str, _Sum],
    placeholders: Placeholders,
    now: datetime,
    stop: threading.Event,
) -> list[str]:
    """Ask of one rule what its filters hide; the filters that are counted with it."""
    from siem.backtest import TunedOut, tuned_out

    mine = tuple(one for one in rule.filters if one.id in sums)
    asked = msgspec.structs.replace(rule, filters=mine)
    span = Range(now - timedelta(days=DAYS), now)
    try:
        found = tuned_out(looking, asked, span=span, placeholders=placeholders, stop=stop)
    except CitywardError as error:  # the other rules are asked all the same
        found = TunedOut((0,) * len(mine), True, None, [error.what], "")
    if not found.is_whole:
        return []
    return [one.id for place, one in enumerate(mine) if sums[one.id].add(rule, found, place)]


class _Sum:
    """What one filter hides of its rules, as far as they have been asked."""

    def __init__(self, waits: Mapping[str, Rule]) -> None:
        self.waits = dict(waits)
        """Rules that have not been asked yet."""
        self._why = "" if waits else NO_RULE
        self._matches = 0
        self._first: datetime | None = None

    def add(self, rule: Rule, found: TunedOut, place: int) -> bool:
        """Count what is hidden of a rule; true if that was the last one."""
        del self.waits[rule.id]
        self._first = found.first or self._first
        if found.idle:
            self._why = f"{rule.title} is not evaluated: {found.idle}"
        else:
            self._matches += found.matches[place]
            self._why = next(iter(found.lacking), self._why)
        return not self.waits

    def told(self, now: datetime) -> HideCount:
        if self._first is None:
            return HideCount(None, DAYS, now, self._why or NO_EVENT)
        days = min(DAYS, -((self._first - now) // timedelta(days=1)))
        return HideCount(self._matches, days, now, self._why)


class Counter:
    """Counts what filters hide in a thread of its own, and remembers it; any thread may ask.

    Args:
        folder: The events.
        clock: The node's time.
        turn: Held while it asks a rule: whatever else walks through the events waits for that.
    """

    def __init__(self, folder: Path, clock: Callable[[], datetime], turn: threading.Lock) -> None:
        self._folder = folder
        self._clock = clock
        self._turn = turn
        self._own = threading.Lock()
        self._known: dict[str, tuple[str, HideCount]] = {}
        """By filter: the mark of what was counted, and the number."""
        self._rules: RuleSet | None = None
        self._marks: Mapping[str, str] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def ask(self, rules: RuleSet, placeholders: Placeholders) -> HideCounts:
        """What is known of each filter of these rules; what is not is counted from now on."""
        with self._own:
            if rules is not self._rules:
                self._rules, self._marks = rules, _marks(rules, placeholders)
            if not self._is_counting and (ids := self._missing()):
                self._stop = threading.Event()
                self._thread = threading.Thread(
                    target=self._count,
                    args=(rules, placeholders, ids, self._marks, self._stop),
                    name="filters",
                    daemon=True,
                )
                self._thread.start()
        if self._thread is not None:
            self._thread.join(WAIT_S)
        is_over = not self._is_counting
        with self._own:
            of = {id: self._known[id][1] for id in self._marks if self._is_known(id)}
            return HideCounts(of, is_over and not self._missing())

    def close(self) -> None:
        """Stop counting."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_S)

    @property
    def _is_counting(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _is_known(self, id: str) -> bool:
        return id in self._known and self._known[id][0] == self._marks[id]

    def _missing(self) -> list[str]:
        oldest = self._clock() - AGE
        return [
            id for id in self._marks if not self._is_known(id) or self._known[id][1].time < oldest
        ]

    def _count(
        self,
        rules: RuleSet,
        placeholders: Placeholders,
        ids: Sequence[str],
        marks: Mapping[str, str],
        stop: threading.Event,
    ) -> None:
        now = self._clock()
        known = {
            id: (mark, one) for id, (mark, one) in self._known.items() if marks.get(id) == mark
        }
        left = set(ids)
        try:
            for id, one in counted(self._folder, rules, placeholders, ids, now, stop, self._turn):
                known[id] = marks[id], one
                left.discard(id)
                with self._own:
                    self._known = dict(known)
        except Exception:  # the list goes on without
            log.exception("What filters hide could not be counted.")
            failed = HideCount(None, DAYS, now, FAILED)
            with self._own:
                self._known = known | {id: (marks[id], failed) for id in left}


def _marks(rules: RuleSet, placeholders: Placeholders) -> dict[str, str]:
    """Of each filter: whatever decides what it hides, in few letters."""
    tuned = _tuned(rules)
    return {one.id: _mark(one, tuned.get(one.id, {}), placeholders) for one in rules.filters}


def _mark(one: Filter, tuned: Mapping[str, Rule], placeholders: Placeholders) -> str:
    needs = one.needs.union(*(rule.needs for rule in tuned.values()))
    lists = {name: [str(value) for value in placeholders.get(name, ())] for name in sorted(needs)}
    written = [one.document.value, *(rule.document.value for rule in tuned.values()), lists]
    # Not as JSON: in YAML a key may be a flag, `on:`, or null.
    return hashlib.sha256(repr(written).encode()).hexdigest()


def _tuned(rules: RuleSet) -> dict[str, dict[str, Rule]]:
    """By filter: the rules that it tunes, by their ids."""
    found: dict[str, dict[str, Rule]] = {}
    for rule in rules.rules:
        for one in rule.filters:
            found.setdefault(one.id, {})[rule.id] = rule
    return found
