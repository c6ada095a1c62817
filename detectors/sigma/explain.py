"""Why a rule spoke, and why it did not: the lines of its selections beside what was seen."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from cityward.event import LogSource
from cityward.finding import Check, Why
from detectors.sigma import condition
from detectors.sigma.condition import Condition
from detectors.sigma.filter import covers
from detectors.sigma.matchers import Item
from detectors.sigma.rule import Detection, Filter, Selection
from detectors.sigma.sentence import shown
from detectors.sigma.view import View

CHECKS_MAX = 60
"""A finding shows so many lines; `rule try` shows all."""


def why_matched(detection: Detection, filters: tuple[Filter, ...], view: View) -> Why:
    """The proof of a match: what held, and what the condition wanted not to hold."""
    held = detection.held(view)
    if held is None:
        return Why()
    text, read = held
    checks = list(_proof(detection, read, view, ""))
    for one in filters:
        passed = one.detection.held(view)
        if passed is not None:
            text = f"({text}) and ({_prefix(one)}{passed[0]})"
            checks += _proof(one.detection, passed[1], view, _prefix(one))
    return Why(condition=text, checks=tuple(checks[:CHECKS_MAX]))


def why_all(
    detection: Detection,
    filters: tuple[Filter, ...],
    view: View,
    wanted: LogSource,
    given: LogSource,
) -> Why:
    """Every line, held or not, for somebody who tries a rule."""
    checks = list(_source(wanted, given))
    sections = _sections(detection, filters)
    for one, section in sections:
        for _, read in section.conditions:
            checks += _of(one, _every(section, read, view))
    texts = [
        _prefix(one) + " or ".join(text for text, _ in section.conditions)
        for one, section in sections
    ]
    whole = texts[0] if len(texts) == 1 else " and ".join(f"({text})" for text in texts)
    return Why(condition=whole, checks=tuple(dict.fromkeys(checks)))


def against(
    detection: Detection,
    filters: tuple[Filter, ...],
    view: View,
    wanted: LogSource,
    given: LogSource,
) -> tuple[Check, ...]:
    """Just the lines because of which a rule is silent; none if it speaks."""
    checks = list(_source(wanted, given))
    for one, section in _sections(detection, filters):
        if not section.holds(view):
            for _, read in section.conditions:
                checks += _of(one, _unlike(section, read, view, wanted=True))
    return tuple(dict.fromkeys(checks))


def _every(section: Detection, read: Condition, view: View) -> Iterator[Check]:
    """The lines of each selection that a condition names."""
    for name, negated in condition.named(read):
        yield from (_check(name, item, view, negated) for item in _all(section.selections[name]))


def _unlike(section: Detection, read: Condition, view: View, *, wanted: bool) -> Iterator[Check]:
    """Lines because of which a condition does not hold, or holds where it is not wanted."""
    if isinstance(read, condition.Name):
        for item in _opposed(section.selections[read.name], view, wanted):
            yield _check(read.name, item, view, not wanted)
    elif isinstance(read, condition.Not):
        yield from _unlike(section, read.part, view, wanted=not wanted)
    elif condition.holds(read, lambda name: section.selections[name].holds(view)) is not wanted:
        for part in read.parts:
            yield from _unlike(section, part, view, wanted=wanted)


def _opposed(selection: Selection, view: View, wanted: bool) -> Iterator[Item]:
    """Lines because of which a selection is not as it is wanted."""
    if selection.holds(view) is wanted:
        return
    if isinstance(selection, Item):
        yield selection
    else:
        for part in selection.parts:
            yield from _opposed(part, view, wanted)


def _source(wanted: LogSource, given: LogSource) -> Iterator[Check]:
    if not covers(wanted, given):
        yield Check("logsource", "logsource", f"is {wanted}", str(given), False)


def _sections(
    detection: Detection, filters: tuple[Filter, ...]
) -> list[tuple[Filter | None, Detection]]:
    """A rule, which is of no filter, and its filters."""
    return [(None, detection), *((one, one.detection) for one in filters)]


def _of(one: Filter | None, checks: Iterator[Check]) -> Iterator[Check]:
    """Lines that say of which filter they are."""
    for check in checks:
        name = f"{_prefix(one)}{check.selection}"
        yield replace(check, selection=name, filter=one.id) if one else check


def _prefix(one: Filter | None) -> str:
    return f"filter {one.title}: " if one else ""


def _proof(detection: Detection, read: Condition, view: View, prefix: str) -> Iterator[Check]:
    for name, negated in dict.fromkeys(condition.named(read)):
        selection = detection.selections[name]
        holds = selection.holds(view)
        if negated and not holds:
            yield from (_check(f"{prefix}{name}", item, view, True) for item in _all(selection))
        elif holds and not negated:
            yield from (
                _check(f"{prefix}{name}", item, view, False) for item in _held(selection, view)
            )


def _all(selection: Selection) -> Iterator[Item]:
    if isinstance(selection, Item):
        yield selection
    else:
        for part in selection.parts:
            yield from _all(part)


def _held(selection: Selection, view: View) -> Iterator[Item]:
    """The lines of a selection that holds which make it hold."""
    if isinstance(selection, Item):
        yield selection
    else:
        for part in selection.parts:
            if part.holds(view):
                yield from _held(part, view)


def _check(name: str, item: Item, view: View, negated: bool) -> Check:
    return Check(
        selection=name,
        field=item.field or "(any field)",
        wanted=item.wanted,
        saw=_saw(item, view),
        held=item.holds(view),
        negated=negated,
    )


def _saw(item: Item, view: View) -> str:
    if item.field is None:
        hits = (value for value in view.every_value() if item.found_in(value))
        return shown(next(hits, "nothing"))
    if not view.has(item.field):
        return "(missing)"
    values = view.values(item.field)
    return shown(values[0] if len(values) == 1 else list(values))
