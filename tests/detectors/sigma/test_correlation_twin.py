"""The engine's windows and the plain ones say the same, however events are given to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cityward.event import Event
from cityward.finding import Finding
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_text
from tests.detectors.sigma import plain_correlation as plain
from tests.detectors.sigma.city import HEAD, START, event
from tests.detectors.sigma.plain_correlation import Group, Holds, Measure, Said, Seen

SPAN_S = 10
BASES = "".join(
    f"{HEAD}name: {name}\ndetection: {{selection: {{act: {name}}}, condition: selection}}\n---\n"
    for name in ("a", "b", "c")
)


def at_least(limit: float) -> Holds:
    return lambda value: value >= limit


ALL = "rules: [a, b, c]"
KINDS: dict[str, tuple[str, Measure, Holds]] = {
    "count": (
        f"type: event_count, {ALL}, condition: {{gte: 3}}",
        plain.number,
        at_least(3),
    ),
    "count in a range": (
        f"type: event_count, {ALL}, condition: {{gt: 1, lt: 5, neq: 3}}",
        plain.number,
        lambda value: value in (2, 4),
    ),
    "count of one rule": (
        "type: event_count, rules: a, condition: {eq: 2}",
        lambda events: sum(one.rule == "a" for one in events),
        lambda value: value == 2,
    ),
    "values": (
        f"type: value_count, {ALL}, condition: {{field: v, gte: 2}}",
        plain.different,
        at_least(2),
    ),
    "few values": (
        f"type: value_count, {ALL}, condition: {{field: v, lte: 1}}",
        plain.different,
        lambda value: value <= 1,
    ),
    "sum": (
        f"type: value_sum, {ALL}, condition: {{field: v, gt: 4}}",
        plain.total,
        lambda value: value > 4,
    ),
    "sum that is not": (
        f"type: value_sum, {ALL}, condition: {{field: v, neq: 2}}",
        plain.total,
        lambda value: value != 2,
    ),
    "mean": (
        f"type: value_avg, {ALL}, condition: {{field: v, lt: 1.5}}",
        plain.mean,
        lambda value: value < 1.5,
    ),
    "median": (
        f"type: value_median, {ALL}, condition: {{field: v, gte: 1}}",
        plain.middle,
        at_least(1),
    ),
    "percentile": (
        f"type: value_percentile, {ALL}, condition: {{field: v, percentile: 90, gte: 2}}",
        plain.ninetieth,
        at_least(2),
    ),
    "share": (
        f"type: value_percentile, {ALL}, condition: {{field: v, lte: 40}}",
        plain.share,
        lambda value: value <= 40,
    ),
    "together": (f"type: temporal, {ALL}", plain.rules, at_least(3)),
    "together, but": (
        "type: temporal, condition: a and b and not c",
        plain.when(lambda seen: {"a", "b"} <= seen and "c" not in seen),
        at_least(1),
    ),
    "in order": (
        "type: temporal_ordered, rules: [a, b, a, c]",
        plain.in_order("a", "b", "a", "c"),
        at_least(3),
    ),
    "in order, one of them": (
        "type: temporal_ordered, condition: a and (b or c)",
        plain.in_order_when(lambda seen: "a" in seen and bool(seen & {"b", "c"}), "a", "b", "c"),
        at_least(1),
    ),
}
RULES = {
    kind: load_text(
        f"{BASES}title: Together\ncorrelation: "
        f"{{{section}, timespan: {SPAN_S}s, group-by: [source.ip]}}\n"
    )
    for kind, (section, _, _) in KINDS.items()
}
STEADY_S = st.integers(0, 3)
JUMPY_S = st.one_of(STEADY_S, st.sampled_from([0, 0, 1, 12, 25, -1, -4, -11, -30]))


def streams(steps_s: st.SearchStrategy[int], least: int) -> st.SearchStrategy[list[Any]]:
    """Steps in time, rules, groups and values; a finding shows all events of so many."""
    rules, groups = st.sampled_from("abc"), st.sampled_from(["x", "x", "x", "y", ""])
    values = st.sampled_from([None, 0, 1, 2, 2.5, 0.1, -1, 1e17])
    wholes = st.sampled_from([1, 1, 2, 3])
    return st.one_of(
        st.lists(st.tuples(steps_s, rules, groups, values), min_size=least, max_size=45),
        st.lists(st.tuples(steps_s, rules, groups, wholes), min_size=least, max_size=45),
    )


STREAMS = st.one_of(streams(JUMPY_S, 0), streams(STEADY_S, 20))


def shown(seen: Seen) -> Event:
    group: dict[str, Any] = {"source__ip": seen.group} if seen.group else {}
    return event(seen.at_s, act=seen.rule, v=seen.value, **group)


def said(finding: Finding) -> Said:
    assert finding.why.score is not None
    at_s = tuple((one.time - START) // timedelta(seconds=1) for one in finding.events)
    return Said(finding.group[0][1], finding.count, finding.why.score, at_s)


def given_to(one: Engine, events: Sequence[Event], batch: int) -> list[Finding]:
    starts = range(0, len(events), batch)
    found = [finding for start in starts for finding in one.detect(events[start : start + batch])]
    return [finding for finding in found if finding.type == "correlation"]


def expected(
    stream: Sequence[Seen], measure: Measure, holds: Holds, takes: Callable[[Seen], bool]
) -> tuple[list[Said], dict[str, int]]:
    groups: dict[str, Group] = {}
    found = []
    for seen in filter(takes, stream):
        group = groups.setdefault(seen.group, Group(SPAN_S, measure, holds))
        found.append(group.see(seen))
    return [one for one in found if one], {name: one.open for name, one in groups.items()}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(steps=STREAMS, restart=st.integers(0, 30), batch=st.sampled_from([1, 3, 9, 512]))
def test_windows_and_plain_ones_say_the_same(
    kind: str,
    steps: list[tuple[int, str, str, float | None]],
    restart: int,
    batch: int,
) -> None:
    """In order and late, in batches of any size, across a restart, and at the end of the input."""
    _, measure, holds = KINDS[kind]
    at_s, stream = 0, []
    for step_s, rule, group, value in steps:
        at_s += step_s
        stream.append(Seen(at_s, rule, group, value))
    events = [shown(seen) for seen in stream]
    before, after = Engine(RULES[kind]), Engine(RULES[kind])

    found = given_to(before, events[:restart], batch)
    after.restore(before.snapshot())
    found += given_to(after, events[restart:], batch)
    left = {finding.group[0][1]: finding.count for finding in after.leftover()}

    bases = RULES[kind].correlations[0].rules
    names = {rule.name for rule in RULES[kind].rules if rule.id in bases}
    wanted, open_ = expected(
        stream, measure, holds, lambda seen: seen.group != "" and seen.rule in names
    )
    assert [said(finding) for finding in found] == wanted
    assert left == {name: count for name, count in open_.items() if count}


def test_a_value_that_comes_again_counts_from_then_on() -> None:
    one = Engine(RULES["values"])
    seen = [(0, 1), (0, 2), (0, 2), (8, 1), (8, 1), (8, 1), (12, 3)]
    events = [shown(Seen(at_s, "a", "x", value)) for at_s, value in seen]

    found = given_to(one, events, 3)

    assert [said(finding) for finding in found] == [
        Said("x", 1, 2.0, (0, 0)),
        Said("x", 5, 2.0, (8, 8, 8, 12)),
    ]
