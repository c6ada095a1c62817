"""Tie documents together: correlations to their rules, filters to what they tune."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cityward.errors import RuleError
from detectors.sigma.condition import Condition, Group, Name, Not
from detectors.sigma.correlation import bases_of
from detectors.sigma.filter import bind_filters
from detectors.sigma.rule import Absence, Correlation, Filter, Rule, RuleSet, Speaking

Names = Mapping[str, Sequence[str]]
"""An id or a name to the ids it stands for."""


def bind(found: Iterable[Speaking | Filter], refused: list[RuleError]) -> RuleSet:
    """Make a set of documents; those that refer to nothing are refused, the rest stays."""
    speaking, filters = _unique(found, refused)
    names = _names(speaking)
    rules = [one for one in speaking if isinstance(one, Rule)]
    built: list[Correlation | Absence] = []
    for one in speaking:
        try:
            if isinstance(one, Correlation):
                built.append(_bind_correlation(one, names))
            elif isinstance(one, Absence):
                built.append(_bind_absence(one, names))
        except RuleError as error:
            refused.append(error)
    tuned, good_filters = bind_filters(rules, built, filters, refused)
    ordered = _ordered({one.id for one in rules}, built, refused)
    return RuleSet(
        rules=tuple(tuned),
        correlations=tuple(one for one in ordered if isinstance(one, Correlation)),
        absences=tuple(one for one in ordered if isinstance(one, Absence)),
        filters=tuple(good_filters),
        refused=tuple(refused),
    )


def _unique(
    found: Iterable[Speaking | Filter], refused: list[RuleError]
) -> tuple[list[Speaking], list[Filter]]:
    seen: dict[str, Speaking | Filter] = {}
    for one in found:
        if one.id in seen:
            first = seen[one.id].document.where("id")
            refused.append(
                RuleError(
                    f"id {one.id} is already used at {first}",
                    one.document.where("id"),
                    "Give it an id of its own.",
                )
            )
        else:
            seen[one.id] = one
    filters = [one for one in seen.values() if isinstance(one, Filter)]
    return [one for one in seen.values() if not isinstance(one, Filter)], filters


def _names(speaking: Iterable[Speaking]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for one in speaking:
        for name in {one.id, one.name} - {""}:
            names.setdefault(name, []).append(one.id)
    return names


def _resolve(one: Correlation | Absence, reference: str, names: Names, *place: str | int) -> str:
    found = names.get(reference) or names.get(reference.lower()) or ()
    if len(found) != 1:
        what = "is not there" if not found else "names several rules"
        raise RuleError(
            f"rule {reference} {what}", one.document.where(*place), "Name one that is loaded."
        )
    return found[0]


def _bind_correlation(one: Correlation, names: Names) -> Correlation:
    ids = {
        reference: _resolve(one, reference, names, "correlation", "rules", number)
        for number, reference in enumerate(one.rules)
    }
    aliases = {
        alias: {
            _resolve(one, reference, names, "correlation", "aliases", alias, reference): field
            for reference, field in mapping.items()
        }
        for alias, mapping in one.aliases.items()
    }
    expression = None if one.expression is None else _renamed(one.expression, ids)
    return msgspec.structs.replace(
        one, rules=tuple(ids[name] for name in one.rules), aliases=aliases, expression=expression
    )


def _bind_absence(one: Absence, names: Names) -> Absence:
    return msgspec.structs.replace(
        one,
        trigger=_resolve(one, one.trigger, names, "cw_absence", "trigger"),
        expected=_resolve(one, one.expected, names, "cw_absence", "expected"),
    )


def _renamed(expression: Condition, ids: Mapping[str, str]) -> Condition:
    if isinstance(expression, Name):
        return Name(ids[expression.name])
    if isinstance(expression, Not):
        return Not(_renamed(expression.part, ids))
    return Group(expression.every, tuple(_renamed(part, ids) for part in expression.parts))


def _ordered(
    ready: set[str], built: Sequence[Correlation | Absence], refused: list[RuleError]
) -> list[Correlation | Absence]:
    """Base before what builds on it; what is in a circle, or builds on one, is refused."""
    known = {one.id: one for one in built}
    missing = {one.id: len(set(bases_of(one)) - ready) for one in built}
    above: dict[str, list[str]] = {}
    for one in built:
        for base in set(bases_of(one)) - ready:
            above.setdefault(base, []).append(one.id)
    free = deque(id for id, count in missing.items() if count == 0)
    ordered: list[Correlation | Absence] = []
    while free:
        ordered.append(known[free.popleft()])
        for id in above.get(ordered[-1].id, ()):
            missing[id] -= 1
            if missing[id] == 0:
                free.append(id)
    for one in built:
        if missing[one.id]:
            refused.append(
                RuleError(
                    "it builds on itself, or on what is refused",
                    one.document.where(),
                    "Break the circle, or mend what it builds on.",
                )
            )
    return ordered
