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
from msgspec.structs import astuple

from cityward.event import LogSource
from detectors.sigma.condition import Condition, Group, Name, Not
from detectors.sigma.filter import covers
from detectors.sigma.load import compile_detection
from detectors.sigma.matchers import (
    Exists,
    Item,
    Null,
    Placeholders,
    Reference,
    Test,
    predicate_of,
)
from detectors.sigma.native import elsewhere
from detectors.sigma.rule import Detection, Rule, Selection
from detectors.sigma.view import View
from siem.store.distinct import VENDOR, Column, Raw, Values, document_of, one_of, split
from siem.store.lines import COLUMNS
from siem.store.protocol import Document

LITERALS_MAX = 10_000
"""Values of one column that are written into a condition."""
TOGETHER_MAX = 200
"""The same for several columns together."""
REMEMBERED_MAX = 50_000
"""Decisions on values that a line remembers over files."""

FEW = 8
"""Of more comparisons in a line, one look-up for all is quicker than each by itself."""

SOURCE = tuple(Column(f"cw.logsource.{part}") for part in ("category", "product", "service"))
OURS = "cw."
"""Keywords do not look at what the node adds, but at `cw.vendor` (`detectors/sigma/view.py`)."""


class Answer(msgspec.Struct, frozen=True):
    """What is known of a condition in one file, as SQL."""

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


class Leaf:
    """One test, and the columns on which it depends; None for keywords: on any."""

    def __init__(
        self,
        columns: tuple[Column, ...] | None,
        test: Callable[[Document], bool],
        item: Item | None = None,
    ) -> None:
        self.columns = columns
        self._test = test
        self._of_value = None if item is None else _of_value(item)
        self._decided: dict[tuple[tuple[Column, ...], Raw], bool] = {}

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
            test = partial(_holds, selection)
            return self._leaf(tuple(columns), test, selection)
        # Keywords: a value anywhere satisfies a test, so each column is decided by itself.
        tests = tuple(self._leaf(None, partial(_is_found, test)) for test in selection.tests)
        found = Group(selection.every, tests)
        return Not(found) if selection.negated else found


def filled(detection: Detection, one: Any, section: str, placeholders: Placeholders) -> Detection:
    """A detection with its placeholders filled in."""
    return compile_detection(one.document, section, placeholders) if one.needs else detection


def _holds(item: Item, document: Document) -> bool:
    return item.holds(View(document))


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


def _is_found(test: Test, document: Document) -> bool:
    return test(View(document), None)


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

    def __init__(self, pushed: Pushed, values: Values, distinct: Distinct) -> None:
        self._pushed = pushed
        self._values = values
        self._distinct = distinct
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
            leaf = self._pushed.leaves[index]
            self._answers[self._many[0]] = self._sided(
                columns, self._distinct(columns, found.may), leaf.decider(columns)
            )

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
        yes = None if held is None else one_of(columns, held)
        no = None if failed is None else one_of(columns, failed)
        if yes is None:
            return Answer("TRUE" if no == "FALSE" else f"NOT {no}", no or "")
        if no is None:
            return Answer(yes, "TRUE" if yes == "FALSE" else f"NOT {yes}")
        return Answer("TRUE" if no == "FALSE" else yes, "TRUE" if yes == "FALSE" else no)


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
