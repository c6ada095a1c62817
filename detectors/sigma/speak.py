"""Findings of rules and correlations, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from cityward.event import Event
from cityward.fields import FIELDS
from cityward.finding import EVENTS_KEPT, Check, Finding, Why, group_of
from detectors.sigma.rule import Absence, Correlation, Rule
from detectors.sigma.sentence import first_sentence, say, shown, timespan
from detectors.sigma.window import Reached

KEY_ENTITIES = (
    "source.",
    "destination.",
    "host.name",
    "user.name",
    "ot.",
    "phys.",
    "network.protocol",
    "network.transport",
    "process.",
    "file.",
    "url.",
    "dns.question.name",
    "cw.asset.",
    "cw.source.",
    "cw.destination.",
    "cw.domain",
    "cw.site",
)
"""Beginnings of the fields that a finding takes over from the event that decided it."""

Group = tuple[tuple[str, str], ...]

_FIRST = 10
"""Of a window's events a finding shows so many first ones, and the newest."""

_WORDS = {"lt": "less than", "lte": "at most", "gt": "more than", "gte": "at least"}
_WORDS |= {"eq": "exactly", "neq": "not"}


def key_entities(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a finding takes over from the event that decided it."""
    return {name: value for name, value in fields.items() if _is_key_entity(name)}


@lru_cache(maxsize=4096)
def _is_key_entity(name: str) -> bool:
    return name.startswith(KEY_ENTITIES) and name in FIELDS


def of_rule(rule: Rule, event: Event, why: Why) -> Finding:
    """What a rule says of one event."""
    return _finding(
        rule,
        first_sentence(rule.analytic.description, rule.title),
        {},
        group=group_of(event),
        events=(event,),
        why=why,
    )


def of_correlation(
    one: Correlation,
    group: Group,
    reached: Reached,
    titles: Mapping[str, str],
) -> Finding:
    """What a correlation says of a window.

    Args:
        one: The correlation.
        group: Names and values by which it groups.
        reached: The window.
        titles: Titles of the base rules.
    """
    span, events = timespan(one.timespan_s), reached.events
    measured = _measured(one, reached.value)
    wanted = " and ".join(f"{_WORDS[name]} {limit:g}" for name, limit in one.limits)
    whose = "".join(f", {name} {shown(value)}" for name, value in group)
    usual = f"{first_sentence(one.analytic.description, one.analytic.name).rstrip('.')}: "
    usual += f"{measured} within {span}{whose}."
    what = f"{one.type} within {span}"
    checks = [Check("window", what, wanted or one.condition_text, measured, True)]
    seen = Counter[str]()
    for entry in reached.entries:
        seen[entry.rule] += entry.added[0]
    checks += [
        Check("rules", titles.get(rule, rule), "seen", f"{times} times", True)
        for rule, times in seen.items()
    ]
    checks += [Check("group-by", name, "the same", value, True) for name, value in group]
    threshold = one.limits[0][1] if one.limits else None
    return _finding(
        one,
        usual,
        {"count": seen.total(), "value": reached.value, "timespan": span, **dict(group)},
        group=group,
        events=[*events[:_FIRST], *events[_FIRST:][-(EVENTS_KEPT - _FIRST) :]],
        why=Why(one.condition_text, tuple(checks), reached.value, threshold),
        count=reached.count,
    )


def of_absence(one: Absence, group: Group, event: Event, titles: Mapping[str, str]) -> Finding:
    """What an absence says of a trigger that nothing came with."""
    trigger, expected = (titles.get(rule, rule) for rule in (one.trigger, one.expected))
    before, within = timespan(one.before_s), timespan(one.within_s)
    usual = f"{first_sentence(one.analytic.description, one.analytic.name).rstrip('.')}: "
    usual += f"{trigger}, and no {expected} from {before} before to {within} after it."
    checks = (
        Check("trigger", trigger, "seen", shown(event.time), True),
        Check("expected", expected, f"from -{before} to +{within}", "nothing", False, True),
        *(Check("by", name, "the same", value, True) for name, value in group),
    )
    return _finding(
        one,
        usual,
        {"timespan": within, **dict(group)},
        group=group,
        events=(event,),
        why=Why(f"{trigger} without {expected}", checks),
    )


def _finding(
    one: Rule | Correlation | Absence,
    sentence: str,
    words: Mapping[str, Any],
    *,
    group: Group,
    events: Sequence[Event],
    why: Why,
    count: int = 1,
) -> Finding:
    own, deciding = one.own, events[-1]
    entities = key_entities(deciding.fields)
    entities |= {name: value for name, value in group if name in FIELDS and name not in entities}
    if own.sentence:
        sentence = say(own.sentence, {"@timestamp": deciding.time, **words, **deciding.fields})
    times = [event.time for event in events]
    return Finding(
        analytic=one.analytic,
        title=one.analytic.name,
        description=sentence,
        severity=one.analytic.level,
        group=tuple(sorted(group)),
        first_seen=min(times),
        last_seen=max(times),
        events=tuple(events),
        count=count,
        type=own.type or ("detection" if isinstance(one, Rule) else "correlation"),
        confidence=own.confidence,
        cause=own.cause,
        category=own.category,
        impact=own.impact,
        why=why,
        fields=entities,
    )


def _measured(one: Correlation, value: float) -> str:
    field = ", ".join(one.field)
    words = {
        "event_count": f"{value:g} events",
        "value_count": f"{value:g} different values of {field}",
        "value_sum": f"sum {value:g} of {field}",
        "value_avg": f"mean {value:g} of {field}",
        "value_median": f"median {value:g} of {field}",
        "value_percentile": f"percentile {value:g} of {field}",
    }
    if one.expression is not None:
        return "the condition holds"
    return words.get(one.type, f"{value:g} of {len(one.rules)} rules")
