"""A rule as a condition over the columns of stored events.

Every line of a rule is a test on values. So each distinct value of a column is decided once, by
the rule's own test, and the values that hold become a literal condition of SQL under the rule's
own `and`, `or`, `not`. A field that is missing is a value too: NULL.

What cannot be said so – a line over too many values – is left open. The condition then lets through
more than the rule, never less, and the engine has the last word on those rows (`Answer.is_exact`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import astuple, replace

from cityward.event import LogSource
from detectors.sigma.ask import Ask
from detectors.sigma.condition import Condition, Group, Name, Not
from detectors.sigma.databases import Databases
from detectors.sigma.filter import covers
from detectors.sigma.find import Finder
from detectors.sigma.load import compile_detection
from detectors.sigma.matchers import (
    Exists,
    Item,
    Null,
    Placeholders,
    Reference,
    Regex,
    Test,
    predicate_of,
)
from detectors.sigma.memory import Room
from detectors.sigma.native import elsewhere
from detectors.sigma.rule import Detection, Rule, Selection
from detectors.sigma.view import View
from siem.hints import NEVER, hint
from siem.store.distinct import (
    PLACE,
    VENDOR,
    Column,
    Raw,
    Values,
    document_of,
    none_of,
    one_of,
    split,
)
from siem.store.lines import COLUMNS
from siem.store.protocol import Document

LITERALS_MAX = 10_000
"""Values of one column that are written into a condition."""
TOGETHER_MAX = 200
"""The same for several columns together."""
NAMED_MAX = 500
"""So many more values are sooner named than those that are left out."""
REMEMBERED_MAX = 50_000
"""Decisions on values that a line remembers over files."""

FEW = 8
"""Of more comparisons in a line, one look-up for all is quicker than each by itself."""
SCAN_FROM = 24
"""And so many are found by one scan."""
SCAN_ROOM_BYTES = 4_000_000
"""So much each scan may remember, of as many as a rule has."""


SOURCE = tuple(Column(f"cw.logsource.{part}") for part in ("category", "product", "service"))
OURS = "cw."
"""Keywords do not look at what the node adds, but at `cw.vendor` (`detectors/sigma/view.py`)."""


class Answer(msgspec.Struct, frozen=True):
    """What is known of a condition in one file, as SQL, in which NULL is as good as false."""

    may: str
    """True at least for every row on which it holds."""
    may_not: str
    """True at least for every row on which it does not."""
    is_exact: bool = True
    """Whether `may` is true for no other row."""

    @property
    def is_never(self) -> bool:
        """Whether it holds on no row."""
        return self.may == "FALSE"


YES, NO = Answer("TRUE", "FALSE"), Answer("FALSE", "TRUE")
OPEN = Answer("TRUE", "TRUE", False)

Distinct = Callable[[Sequence[Column], str], Iterator[Raw]]
"""Distinct values of columns in the rows of a file for which SQL is true."""
Placed = Callable[[Column, str, int], list[tuple[int, Any]]]
"""Rows of a file for which SQL is true, but at most so many: their places, and a column's value."""


class Leaf:
    """One line of a rule, and the columns on which it depends; None for keywords: on any."""

    def __init__(
        self,
        columns: tuple[Column, ...] | None,
        test: Callable[[Document], bool],
        item: Item | None = None,
    ) -> None:
        self.columns = columns
        self._test = test
        self._item = item
        self._of_value = None if item is None else _of_value(item)
        self._decided: dict[tuple[tuple[Column, ...], Raw], bool] = {}

    @property
    def is_negated(self) -> bool:
        """Whether it holds where its comparisons do not."""
        return self._item is not None and self._item.negated

    @property
    def is_dear(self) -> bool:
        """Whether DuckDB takes long for its hint: then it is asked where the rest leaves rows."""
        return self._item is not None and any(
            isinstance(one, Regex) for one in self._item.comparisons
        )

    def hint(self, columns: tuple[Column, ...]) -> str | None:
        """SQL without which its comparisons do not hold; None: nothing can be said."""
        if self._item is None or len(columns) > 1:
            return None
        return hint(self._item, columns[0])

    def holds(self, columns: tuple[Column, ...], raw: Raw) -> bool:
        """Whether the test holds on an event of which only this is known."""
        return self._test(document_of(columns, raw))

    def decider(self, columns: tuple[Column, ...]) -> Callable[[Raw], bool]:
        """The same for many values; of texts and numbers of one column no event is made."""
        of_value = self._of_value
        if of_value is None or len(columns) > 1 or columns[0].key or not _is_plain(columns[0]):
            return partial(self.holds, columns)
        absent = self.holds(columns, (None,))
        return lambda raw: absent if raw[0] is None else of_value(raw[0])

    def held(self, columns: tuple[Column, ...], raw: Raw) -> bool:
        """The same; texts and numbers are remembered, for the next file has them again."""
        if any(isinstance(value, list) for value in raw):
            return self.holds(columns, raw)
        key = columns, raw
        found = self._decided.get(key)
        if found is None:
            if len(self._decided) > REMEMBERED_MAX:
                self._decided.clear()
            found = self._decided[key] = self.holds(columns, raw)
        return found


class Pushed:
    """One rule with its filters, ready to be asked of any file.

    Raises:
        KeyError: a placeholder has no value; it is named.
        RuleError: with these values of placeholders it is no rule.
    """

    def __init__(self, rule: Rule, placeholders: Placeholders) -> None:
        if missing := sorted(name for name in rule.needs if not placeholders.get(name)):
            raise KeyError("%, %".join(missing))
        self.rule = rule
        self.leaves: list[Leaf] = []
        self.limits: dict[str, date] = {}
        """Names of the conditions on time, and from which day they hold."""
        detection = filled(rule.detection, rule, "detection", placeholders)
        parts = [self._source(rule.logsource), self._detection(detection)]
        for one in rule.filters:
            own = self._detection(filled(one.detection, one, "filter", placeholders))
            expires = one.own.expires
            parts.append(own if expires is None else Group(False, (self._after(expires), own)))
        self.tree = Group(True, tuple(parts))

    @property
    def fields(self) -> frozenset[str] | None:
        """Fields of stored events that decide it; None: any."""
        columns = [leaf.columns for leaf in self.leaves]
        if None in columns:
            return None
        named = {column.field for each in columns if each is not None for column in each}
        return frozenset(named | {"@timestamp"})

    def _leaf(
        self,
        columns: tuple[Column, ...] | None,
        test: Callable[[Document], bool],
        item: Item | None = None,
    ) -> Name:
        self.leaves.append(Leaf(columns, test, item))
        return Name(str(len(self.leaves) - 1))

    def _source(self, wanted: LogSource) -> Condition:
        """The log source, of which only the parts count that the rule names."""
        columns = tuple(
            column for column, part in zip(SOURCE, astuple(wanted), strict=True) if part
        )

        def covered(document: Document) -> bool:
            return covers(
                wanted, LogSource(*(document.get(one.field, "").lower() for one in SOURCE))
            )

        return self._leaf(columns, covered)

    def _after(self, day: date) -> Condition:
        name = f"after {day}"
        self.limits[name] = day
        return Name(name)

    def _detection(self, detection: Detection) -> Condition:
        made: dict[str, Condition] = {}

        def whole(condition: Condition) -> Condition:
            if isinstance(condition, Name):
                if condition.name not in made:
                    selection = detection.selections[condition.name]
                    made[condition.name] = self._selection(selection)
                return made[condition.name]
            if isinstance(condition, Not):
                return Not(whole(condition.part))
            return Group(condition.every, tuple(whole(part) for part in condition.parts))

        return Group(False, tuple(whole(one) for _, one in detection.conditions))

    def _selection(self, selection: Selection) -> Condition:
        if not isinstance(selection, Item):
            return Group(selection.every, tuple(self._selection(one) for one in selection.parts))
        asked = [names_asked(test, selection.field) for test in selection.tests]
        if None not in asked:
            names = dict.fromkeys(name for one in asked for name in one or ())
            columns = dict.fromkeys(column for name in names for column in columns_of(name))
            return self._leaf(tuple(columns), _test_of(selection), selection)
        # Keywords: a value anywhere satisfies one, so each column is decided by itself.
        alone = [(one,) for one in selection.comparisons]
        parts = alone if selection.every else [selection.comparisons]
        leaves = []
        for part in parts:
            item = replace(selection, comparisons=part, every=False, negated=False)
            leaves.append(self._leaf(None, _test_of(item), item))
        found = Group(selection.every, tuple(leaves))
        return Not(found) if selection.negated else found


def filled(detection: Detection, one: Any, section: str, placeholders: Placeholders) -> Detection:
    """A detection with its placeholders filled in."""
    return compile_detection(one.document, section, placeholders) if one.needs else detection


def _test_of(item: Item) -> Callable[[Document], bool]:
    """An item as a test on an event; of keywords, on any of its values."""
    is_plain = not any(isinstance(one, Reference) for one in item.comparisons)
    if is_plain and len(item.tests) >= SCAN_FROM:
        return _Scan(item)
    if item.field is None:
        return lambda document: any(map(item.found_in, View(document).every_value()))
    return lambda document: item.holds(View(document))


class _Scan:
    """Many comparisons, by the matchers of the engine."""

    def __init__(self, item: Item) -> None:
        self._item = item
        every = [frozenset({one}) for one in item.comparisons]
        parts = every if item.every else [frozenset(item.comparisons)]
        self._asks = frozenset(Ask(item.field, part) for part in parts)
        self._finder = Finder(self._asks, Databases(), Room(SCAN_ROOM_BYTES))

    def __call__(self, document: Document) -> bool:
        view, field = View(document), self._item.field
        if field is None:
            held = self._finder.held(tuple(view.every_value()))
        else:
            held = self._finder.held(view.values(field) if view.has(field) else None)
        return self._asks.issubset(held) is not self._item.negated


def _of_value(item: Item) -> Callable[[Any], bool] | None:
    """An item as a test on one value that is there; None if it looks at more, or at much."""
    if len(item.comparisons) > FEW or any(
        isinstance(one, (Exists, Null, Reference)) for one in item.comparisons
    ):
        return None
    predicates = [predicate_of(one) for one in item.comparisons]
    negated = item.negated
    if len(predicates) == 1 and not negated:
        return predicates[0]
    some = all if item.every else any
    return lambda value: some(predicate(value) for predicate in predicates) is not negated


def _is_plain(column: Column) -> bool:
    return column.kind in ("VARCHAR", "BIGINT", "DOUBLE", "BOOLEAN")


class _Asked(View):
    """An event without fields that remembers which ones it was asked for."""

    __slots__ = ("anything", "names")

    def __init__(self) -> None:
        super().__init__({})
        self.names: dict[str, None] = {}
        self.anything = False

    def has(self, name: str) -> bool:
        self.names[name] = None
        return False

    def values(self, name: str) -> tuple[Any, ...]:
        self.names[name] = None
        return ()

    def every_value(self) -> Iterator[Any]:
        self.anything = True
        return iter(())


def names_asked(test: Test, field: str | None) -> list[str] | None:
    """Names of the fields on which a test depends; None: it looks at every value."""
    asked = _Asked()
    test(asked, field)
    return None if asked.anything else list(asked.names)


def columns_of(name: str) -> Iterator[Column]:
    """Where stored events may have a field: in a column, within `cw.vendor`, or nowhere."""
    for one in (name, *elsewhere(name)):
        if one.startswith(f"{VENDOR}."):
            parts = one.removeprefix(f"{VENDOR}.").split(".")
            # Nested or flat, what is named so stands below one of these.
            for end in range(1, len(parts) + 1):
                yield Column(VENDOR, ".".join(parts[:end]))
        elif COLUMNS.get(one, "JSON") != "JSON":
            yield Column(one)


class Question:
    """One rule asked of one file."""

    def __init__(self, pushed: Pushed, values: Values, distinct: Distinct, placed: Placed) -> None:
        self._pushed = pushed
        self._values = values
        self._distinct = distinct
        self._placed = placed
        self._answers: dict[tuple[int, tuple[Column, ...]], Answer] = {}
        self._many: list[tuple[int, tuple[Column, ...]]] = []

    def answer(self) -> Answer:
        """The condition for this file.

        First by the values that are known; a column of many values is only asked if the others
        leave rows, and only for those.
        """
        while True:
            self._many = []
            found = self._of(self._pushed.tree)
            if found.is_never or found.is_exact or not self._many:
                return found
            index, columns = self._many[0]
            self._answers[self._many[0]] = self._asked(
                self._pushed.leaves[index], columns, found.may
            )

    def _asked(self, leaf: Leaf, columns: tuple[Column, ...], where: str) -> Answer:
        """A column of many values, where the rest of the rule leaves rows."""
        decide = leaf.decider(columns)
        some = leaf.hint(columns)
        if some is None:
            return self._sided(columns, self._distinct(columns, where), decide)
        (column,), negated = columns, leaf.is_negated
        first = f"{where} AND {some}" if leaf.is_dear else some
        rows = [] if some == NEVER else self._placed(column, first, LITERALS_MAX + 1)
        if len(rows) <= LITERALS_MAX:
            places = [(place,) for place, value in rows if decide((value,)) is not negated]
            inside, outside = one_of((PLACE,), places), none_of((PLACE,), places)
            return Answer(*((outside, inside) if negated else (inside, outside)))
        if leaf.is_dear:  # what its hint leaves out is sooner decided than asked for again
            return self._sided(columns, self._distinct(columns, where), decide)
        raws = self._distinct(columns, f"{where} AND {some}")
        found, _ = split(columns, raws, lambda raw: decide(raw) is not negated, LITERALS_MAX)
        # Where the hint is false, nothing is found.
        inside = some if found is None else one_of(columns, found)
        outside = "TRUE" if found is None else none_of(columns, found)
        may, may_not = (outside, inside) if negated else (inside, outside)
        return Answer(may, may_not, found is not None)

    def _of(self, condition: Condition) -> Answer:
        if isinstance(condition, Name):
            limit = self._pushed.limits.get(condition.name)
            return self._decided(int(condition.name)) if limit is None else _after(limit)
        if isinstance(condition, Not):
            part = self._of(condition.part)
            return Answer(part.may_not, part.may, part.is_exact)
        return self._together(condition.every, map(self._of, condition.parts))

    @staticmethod
    def _together(every: bool, answers: Iterator[Answer]) -> Answer:
        """AND or OR; the rest is not asked once it is settled."""
        settled = NO if every else YES
        parts = []
        for part in answers:
            if part.is_exact and (part.may, part.may_not) == (settled.may, settled.may_not):
                return settled
            parts.append(part)
        may = _joined(every, [part.may for part in parts])
        may_not = _joined(not every, [part.may_not for part in parts])
        return Answer(may, may_not, all(part.is_exact for part in parts))

    def _decided(self, index: int) -> Answer:
        leaf = self._pushed.leaves[index]
        if leaf.columns is None:
            seen = [Column(name) for name in sorted(self._values.fields) if _is_seen(name)]
            return self._together(False, (self._by(index, (column,)) for column in seen))
        return self._by(index, tuple(one for one in leaf.columns if self._values.has(one)))

    def _by(self, index: int, columns: tuple[Column, ...]) -> Answer:
        leaf = self._pushed.leaves[index]
        if not columns:
            return YES if leaf.holds((), ()) else NO
        if (index, columns) not in self._answers:
            raws = self._values.of(columns)
            if raws is None:
                self._many.append((index, columns))
                return OPEN
            self._answers[index, columns] = self._sided(columns, raws, partial(leaf.held, columns))
        return self._answers[index, columns]

    @staticmethod
    def _sided(columns: tuple[Column, ...], raws: Any, holds: Callable[[Raw], bool]) -> Answer:
        most = LITERALS_MAX if len(columns) == 1 else TOGETHER_MAX
        held, failed = split(columns, raws, holds, most)
        if held is None and failed is None:
            return OPEN
        return Answer(_with(columns, held, failed), _with(columns, failed, held))


def _with(columns: tuple[Column, ...], values: list[Raw] | None, others: list[Raw] | None) -> str:
    """SQL for rows with these values, of all that there are: they are named, unless they are many.

    Either side may be None if it became too long.
    """
    if values == [] or others == []:
        return "FALSE" if values == [] else "TRUE"
    if values is None or (others is not None and len(values) > NAMED_MAX + len(others)):
        return none_of(columns, others or [])
    return one_of(columns, values)


def _is_seen(name: str) -> bool:
    """Whether keywords look at a column."""
    return not name.startswith(OURS) or name == VENDOR


def _after(limit: date) -> Answer:
    text = f"TIMESTAMP '{limit.isoformat()} 00:00:00'"
    return Answer(f'"@timestamp" >= {text}', f'"@timestamp" < {text}')


def _joined(every: bool, parts: Sequence[str]) -> str:
    """Conditions in one, without what says nothing."""
    nothing, all_ = ("TRUE", "FALSE") if every else ("FALSE", "TRUE")
    told = list(dict.fromkeys(part for part in parts if part != nothing))
    if all_ in told:
        return all_
    if len(told) < 2:
        return told[0] if told else nothing
    return "(" + (" AND " if every else " OR ").join(told) + ")"
