"""Filters: how an operator tunes rules that are not its own.

A filter's condition is ANDed to the rule's as written, so an exclusion says `not`. A filter is
refused (and hides nothing) if it has no `not`, no reason, no day on which it expires, or binds to
nothing. What only makes no sense today, as a day that is past, is asked when one is deployed, not
here: a filter that has ended is still to be read. Reason and day stand under its attribute
`cityward`:

    cityward: {reason: "the historian writes at night, change 4711", expires: 2027-03-01}

References:
    Sigma specification 2.1.0, "Filters".
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import msgspec

from cityward.errors import RuleError
from cityward.event import LogSource
from detectors.sigma import condition
from detectors.sigma.rule import Absence, Correlation, Filter, Rule


def bind_filters(
    rules: Sequence[Rule],
    others: Iterable[Correlation | Absence],
    filters: Sequence[Filter],
    refused: list[RuleError],
) -> tuple[list[Rule], list[Filter]]:
    """Give each rule its filters; those that do not hold up are put to `refused`."""
    not_rules = {name for one in others for name in (one.id, one.name) if name}
    named: dict[str, list[Rule]] = {}
    for rule in rules:
        for name in {rule.id, rule.name} - {""}:
            named.setdefault(name, []).append(rule)
    good: list[Filter] = []
    bound: dict[str, list[Filter]] = {}
    for one in filters:
        meant = [rule for name in one.rules for rule in named.get(name, ())]
        tuned = {rule.id for rule in (meant if one.rules else rules) if binds(one, rule)}
        faults = list(_faults(one, named.keys(), not_rules, binds_to_any=bool(tuned)))
        refused += faults
        if not faults:
            good.append(one)
            for id in tuned:
                bound.setdefault(id, []).append(one)
    return [_tuned(rule, bound.get(rule.id, ())) for rule in rules], good


def _faults(
    one: Filter, known: Container[str], not_rules: set[str], *, binds_to_any: bool
) -> Iterable[RuleError]:
    """What speaks against a filter."""
    texts = one.detection.conditions
    if not any(negated for _, read in texts for _, negated in condition.named(read)):
        yield _fault(one, "the filter lacks `not`: it would keep only what it names", "condition")
    if not one.own.reason:
        yield _fault(one, "the filter has no reason (cityward: {reason: …})")
    if one.own.expires is None:
        yield _fault(one, "the filter never expires (cityward: {expires: …})")
    for number, name in enumerate(one.rules):
        if name in not_rules:
            yield _fault(one, f"{name} is a correlation; filter its rules", "rules", number)
        elif name not in known:
            yield _fault(one, f"the filter binds to nothing: no rule {name}", "rules", number)
    if not binds_to_any:
        yield _fault(one, "the filter binds to nothing: no such rule has its log source", "rules")


def binds(one: Filter, rule: Rule) -> bool:
    """True if the filter tunes the rule: it is named, and has the filter's log source."""
    named = not one.rules or rule.id in one.rules or (rule.name != "" and rule.name in one.rules)
    return named and covers(one.logsource, rule.logsource)


NARROWER = {
    "registry_event": frozenset(
        ("registry_add", "registry_delete", "registry_set", "registry_rename")
    ),
}
"""Categories that are part of a wider one; SigmaHQ, "Log sources", Windows registry."""


def covers(wanted: LogSource, given: LogSource) -> bool:
    """True if every part that is wanted is given so, or more narrowly; in any case of letters."""
    category = given.category.lower()
    return (
        (wanted.category in ("", category) or category in NARROWER.get(wanted.category, ()))
        and wanted.product in ("", given.product.lower())
        and wanted.service in ("", given.service.lower())
    )


def _tuned(rule: Rule, filters: Sequence[Filter]) -> Rule:
    if not filters:
        return rule
    needs = rule.needs.union(*(one.needs for one in filters))
    return msgspec.structs.replace(rule, filters=tuple(filters), needs=needs)


def _fault(one: Filter, what: str, *place: str | int) -> RuleError:
    return RuleError(what, one.document.where("filter", *place), "Mend the filter.")
