"""What a rule says itself: values that are no secret, since whoever has the rule can read them.

A sample of a rule that all operators share may hold such a value where nothing else may leave: the
user `root` that it asks for, the flag of a decoder, the word in a path. Of a longer value nothing
but the rule's own words is left. What the rule wants to be there, to group or to count by, gets a
stand-in. A list of the site (`%name%`) and a regular expression are no values, so they free none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from cityward.fields import FIELDS
from detectors.sigma.condition import named
from detectors.sigma.matchers import (
    AnyOf,
    Comparison,
    Exists,
    Flag,
    Item,
    Like,
    Number,
    predicate_of,
)
from detectors.sigma.rule import Rule, RuleSet, items_of
from detectors.sigma.texts import Sign, Text
from detectors.sigma.view import TIME, text_of
from siem.sharing.samples import STAND_IN

TRIES = 3
"""Words put together may hold another word of the rule: so often it is looked at anew."""
_STAND_IN = re.compile(rf"{STAND_IN}[1-9]\d{{0,3}}")

_Word = Like | Number | Flag


class Literals:
    """The values that a rule says, and what it builds on; made once, asked by any thread.

    Args:
        rules: The rule alone, see `samples.alone`.
    """

    def __init__(self, rules: RuleSet) -> None:
        self._words: dict[str, list[_Word]] = {}
        self._present: set[str] = set()
        for rule in rules.rules:
            for item in _wanted(rule):
                self._add(item)
        for correlation in rules.correlations:
            self._present.update(correlation.field, correlation.group_by)
            for of in correlation.aliases.values():
                self._present.update(of.values())
        for absence in rules.absences:
            self._present.update(absence.group_by)
        self._present.discard(TIME)

    @property
    def fields(self) -> frozenset[str]:
        """Fields of which it says a value."""
        return frozenset(self._words)

    @property
    def present(self) -> frozenset[str]:
        """Fields that only have to be there, or to be told apart."""
        return frozenset(self._present)

    def of(self, field: str, value: Any) -> Any:
        """What a value is in the rule's own words; None: it says nothing of it.

        Args:
            field: As the rule calls it.
            value: One value: a text, a number or a flag.
        """
        for _ in range(TRIES):
            made = self._once(field, value)
            if made is None or _is_same(made, value):
                return made
            value = made
        return None

    def allows(self, field: str, value: Any) -> bool:
        """Whether a sample may hold a value since the rule says it, or stands for one."""
        if field in self._present and isinstance(value, str) and _STAND_IN.fullmatch(value):
            return True
        return isinstance(value, (str, int, float)) and _is_same(self.of(field, value), value)

    def _add(self, item: Item) -> None:
        assert item.field is not None
        for one in _parts(item.comparisons):
            if one == Exists(wanted=True) or (isinstance(one, Like) and one.text == (Sign.MANY,)):
                self._present.add(item.field)
            elif isinstance(one, (Like, Flag)) or (isinstance(one, Number) and one.how == "eq"):
                self._words.setdefault(item.field, []).append(one)

    def _once(self, field: str, value: Any) -> Any:
        said = [one for one in self._words.get(field, ()) if predicate_of(one)(value)]
        for one in said:
            if not isinstance(one, Like):
                limit = one.wanted if isinstance(one, Flag) else one.limit
                return text_of(limit) if isinstance(value, str) else value
            if one.text and not any(isinstance(part, Sign) for part in one.text):
                return _word(field, str(one.text[0]), value)
        patterns = [one.text for one in said if isinstance(one, Like)]
        return _together(patterns) or None


def _wanted(rule: Rule) -> Iterator[Item]:
    """Lines of a rule that it wants to hold; its exceptions are none."""
    detection = rule.detection
    names = {
        name
        for _, condition in detection.conditions
        for name, is_negated in named(condition)
        if not is_negated
    }
    for name in sorted(names & detection.selections.keys()):
        for item in items_of(detection.selections[name]):
            if item.field and item.field != TIME and not item.negated:
                yield item


def _parts(comparisons: Sequence[Comparison]) -> Iterator[Comparison]:
    for one in comparisons:
        if isinstance(one, AnyOf):
            yield from one.parts
        elif not (isinstance(one, Number) and one.part):
            yield one


def _word(field: str, word: str, value: Any) -> Any:
    """A word in the type that the field has."""
    kind = FIELDS[field].type.removesuffix("[]") if field in FIELDS else ""
    return word if kind == "keyword" or isinstance(value, str) else value


def _together(patterns: Sequence[Text]) -> str:
    """Words of several patterns in one text that each of them may find again."""
    first = [_plain(one) for one in patterns if one[:1] != (Sign.MANY,)]
    last = [_plain(one) for one in patterns if one[:1] == (Sign.MANY,) and one[-1] != Sign.MANY]
    within = [_plain(one) for one in patterns if one[:1] == one[-1:] == (Sign.MANY,)]
    longest = [max(some, key=len) for some in (first, last) if some]
    middle = [
        one for n, one in enumerate(within)
        if one not in within[:n]
        and not any(one in other and one != other for other in (*within, *longest))
        and one not in longest
    ]  # fmt: skip
    begin, end = longest[:1] if first else [], longest[-1:] if last else []
    return "".join((*begin, " ".join(middle), *end))


def _plain(text: Text) -> str:
    signs = {Sign.MANY: "", Sign.ONE: "x", Sign.DASH: "-"}
    return "".join(signs[part] if isinstance(part, Sign) else part for part in text)


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and text_of(one) == text_of(other)
