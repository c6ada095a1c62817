"""Lines that can never hold: each claim is held against the engine, on events that come near."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from detectors.sigma import never
from detectors.sigma.correlation import Correlator
from detectors.sigma.engine import Engine
from detectors.sigma.lines import compile_item
from detectors.sigma.load import load_text
from detectors.sigma.matchers import TIME_PARTS
from detectors.sigma.rule import Correlation, RuleSet
from detectors.sigma.view import View
from tests.detectors.sigma.city import HEAD, START, event, rule_of

NEVER, ALWAYS, SINGLE = "this can never hold", "this always holds", "no single value"


def said(selection: Any) -> list[str]:
    """What is said of one selection, each with its place in it."""
    claims = never.of_detection({"detection": {"s": selection, "condition": "s"}}, "detection")
    return [f"{'/'.join(map(str, one.place[2:]))}: {one.what}" for one in claims]


@pytest.mark.parametrize(
    ("selection", "told"),
    [
        ({"t|hour": 25}, "t|hour: no hour is 25: there are 0 to 23, so this can never hold"),
        ({"t|minute": 60}, "t|minute: no minute is 60: there are 0 to 59, so this can never hold"),
        ({"t|month": 13}, "t|month: no month is 13: there are 1 to 12, so this can never hold"),
        ({"t|day": 0}, "t|day: no day is 0: there are 1 to 31, so this can never hold"),
        ({"t|week": 54}, "t|week: no week is 54: there are 1 to 53, so this can never hold"),
        ({"t|year": 0}, "t|year: no year is 0: there are 1 to 9999, so this can never hold"),
        ({"t|hour": 1.5}, "t|hour: no hour is 1.5: there are 0 to 23, so this can never hold"),
        (
            {"t|hour|gt": 23},
            "t|hour|gt: no hour is more than 23: there are 0 to 23, so this can never hold",
        ),
        ({"t|hour|neq": 24}, "t|hour|neq: no hour is 24: there are 0 to 23, so this always holds"),
        ({"t|hour|lt": 24}, "t|hour|lt: every hour is less than 24: there are 0 to 23"),
        ({"t|hour": [23, 24]}, "t|hour/1: no hour is 24: there are 0 to 23"),
        (
            [{"f": 1}, {"t|hour|all": [1, 24]}],
            "1/t|hour|all/1: no hour is 24: there are 0 to 23, so this can never hold",
        ),
        (
            {"f|exists": False, "f": "a"},
            "f: this can never hold: `f|exists` beside it excludes it, "
            "as one of them wants a value and the other one wants none",
        ),
        (
            {"f|contains": "a", "f": None},
            "f: this can never hold: `f|contains` beside it excludes it, "
            "as one of them wants a value and the other one wants none",
        ),
        (
            {"f": ["a", "b"], "f|neq": ["b", "A", "c"]},
            "f|neq: this can never hold: `f` beside it excludes the same",
        ),
        (
            {"f|gt": 5, "g": 1, "f|lt": 3},
            "f|lt: no single value is both this and what `f|gt` wants: both hold only of an event "
            "that has several values of f",
        ),
        (
            {"t|hour|gte": 22, "t|hour|lt": 6},
            "t|hour|lt: no single value is both this and what `t|hour|gte` wants: both hold only of"
            " an event that has several values of t",
        ),
    ],
)
def test_what_can_never_hold_is_told(selection: Any, told: str) -> None:
    assert said(selection) == [told]


@pytest.mark.parametrize(
    "selection",
    [
        {"f|gt": 3, "f|lt": 5},
        {"f|gte": 5, "f|lte": 5},
        {"f|gt": 9007199254740992, "f|lt": 9007199254740994},
        {"f": float("inf"), "f|gt": 3},
        {"t|hour": [0, 23], "t|minute": 59, "t|day": 31, "t|week": 53, "t|month": 1},
        {"t|hour|gt": 22, "t|minute|lt": 6},
        {"f|all": ["a", "b"]},
        {"f": "a", "f|cased": "B"},
        {"f": 5, "f|contains": "7"},
        {"f|exists": True, "f": "a"},
        {"f|exists": True, "f": None},
        {"f|exists": False, "f": None},
        {"f|exists": False, "f|neq": "a"},
        {"f|exists": False, "g": "a"},
        {"f|exists": False, "f": ["a", None]},
        {"f": ["a", None], "f|contains": "a"},
        {"f": ["a", "b"], "f|neq": "a"},
        {"f": "a", "f|all|neq": ["a", "b"]},
        [{"f|gt": 5}, {"f|lt": 3}],
        {"t|day|expand": "%days%"},
        {"f|hour": "noon", "f|gt": "x"},
        ["a", "b"],
    ],
)
def test_of_what_can_hold_nothing_is_said(selection: Any) -> None:
    assert said(selection) == []


MINUTES = [datetime(2024, 12, 30, tzinfo=UTC) + timedelta(minutes=one) for one in range(0, 1501)]
DAYS = [
    datetime(year, 1, 1, tzinfo=UTC) + timedelta(days=one)
    for year in (2020, 2024)
    for one in range(366)
]
YEARS = [datetime(year, 6, 1, tzinfo=UTC) for year in (1, 2, 30, 60, 9998, 9999)]


@pytest.mark.parametrize("part", TIME_PARTS)
def test_parts_of_a_time_are_what_times_have(part: str) -> None:
    """Every limit from -1 to 61, and around the last year, against times of every kind."""
    limits = [*range(-1, 62), *(9998, 9999, 10000)]
    times = [View({"t": one}) for one in (*MINUTES, *DAYS, *YEARS)]
    for how, limit in product(("", "|lt", "|gte"), limits):
        if part == "year" and not how and 2 < limit < 9998:
            continue
        key = f"t|{part}{how}"
        item = compile_item(key, limit)
        found = {item.holds(view) for view in times}

        told = said({key: limit})

        assert [NEVER in one for one in told] == ([] if len(found) == 2 else [found == {False}])


VALUES = st.sampled_from([*("a", "A", "b", "5", "", "true"), 1, 3, 4, 5, 7, 5.5, True, None])
TIMES = st.sampled_from([START, START + timedelta(hours=13), "2026-02-28T23:59:00"])
SEEN = st.one_of(VALUES, TIMES, st.lists(VALUES | TIMES, max_size=3))
EVENTS = st.dictionaries(st.sampled_from(["f", "g", "cw.vendor.f"]), SEEN, max_size=3)
ORDERS = ["|lt", "|lte", "|gt", "|gte"]
NUMBERS = st.sampled_from([1, 3, 4, 5, 5.5, 7])
TEXTS = st.sampled_from(["a", "b", "5", 5, True, None])
NEGATED = st.sampled_from(["", "|neq", "|all", "|all|neq"])


def lines(kinds: list[str], values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    named = st.tuples(st.sampled_from("ffg"), st.sampled_from(kinds), NEGATED).map("".join)
    return st.tuples(named, values | st.lists(values, min_size=1, max_size=3))


LINES = st.one_of(
    lines([""], TEXTS),
    lines(["|contains", "|cased"], st.sampled_from(["a", "b", "5"])),
    lines(ORDERS, NUMBERS),
    lines([f"|hour{how}" for how in ("", *ORDERS)], st.sampled_from([-1, 0, 10, 22, 23, 24])),
    lines(["|fieldref"], st.sampled_from(["f", "g"])),
    st.tuples(st.just("f|exists"), st.booleans()),
)
MAPS = st.lists(LINES, min_size=2, max_size=4).map(dict)


def matches(selection: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """What the engine says of one event."""
    written = json.dumps({"s": selection, "condition": "s"})
    rules = load_text(f"{HEAD}detection: {written}\n")
    assert not rules.refused
    return bool([*Engine(rules).detect([event(0, **fields)])])


@settings(deadline=None, max_examples=400)
@given(MAPS, st.lists(EVENTS, min_size=1, max_size=12))
def test_no_event_contradicts_what_is_said(selection: dict[str, Any], events: list[Any]) -> None:
    """Never, of no event; always, of each; no single value, of none without a list."""
    told = said(selection)
    assume(told)
    for fields in events:
        if any(NEVER in one for one in told):
            assert not matches(selection, fields)
        for one in told:
            if ALWAYS in one:
                key = one.partition(": ")[0].partition("/")[0]
                assert matches({key: selection[key]}, fields)
        if any(SINGLE in one for one in told):
            single = {name: one for name, one in fields.items() if not isinstance(one, list)}
            assert not matches(selection, {"g": 1, **single})


QUARTERS = [one / 4 for one in range(-4, 40)]
"""Between any two of the numbers that are compared with there is one."""


def test_long_lists_are_held_against_each_other_in_no_time() -> None:
    """Number by number, these would take an hour, while whoever edits the rule waits."""
    numbers = [*range(10, 50_010)]
    began_s = time.process_time()

    assert said({"f": numbers, "f|gt": [*numbers, 49_000], "f|lt": [3, 5]}) == [
        "f|lt: no single value is both this and what `f` wants: "
        "both hold only of an event that has several values of f",
        "f|lt: no single value is both this and what `f|gt` wants: "
        "both hold only of an event that has several values of f",
    ]
    assert time.process_time() - began_s < 60


@settings(deadline=None)
@given(*[st.tuples(st.sampled_from(["", *ORDERS]), st.lists(NUMBERS, min_size=1, max_size=2))] * 2)
def test_ranges_that_exclude_each_other_are_those_that_no_number_is_in(
    one: tuple[str, list[float]], other: tuple[str, list[float]]
) -> None:
    assume(one[0] != other[0])
    selection = {f"f{how}": limits for how, limits in (one, other)}
    items = [compile_item(key, limits) for key, limits in selection.items()]
    both = [at for at in QUARTERS if all(item.holds(View({"f": at})) for item in items)]

    assert [SINGLE in told for told in said(selection)] == ([] if both else [True])


# --- Correlations -------------------------------------------------------------------------------


def correlated(kind: str, limits: Mapping[str, float], field: str = "") -> RuleSet:
    condition = {**limits, **({"field": field} if field else {})}
    bases = "\n---\n".join(
        rule_of(f"  s: {{f: {name}}}\n  condition: s\n").replace(
            "title: T", f"title: T\nname: {name}"
        )
        for name in ("a", "b")
    )
    section = {"type": kind, "rules": ["a", "b"], "timespan": "1m", "condition": condition}
    rules = load_text(f"{bases}\n---\ntitle: C\ncorrelation: {json.dumps(section)}\n")
    assert not rules.refused, rules.refused
    return rules


def claims(one: Correlation) -> list[str]:
    return [f"{claim.place[-1]}: {claim.what}" for claim in never.of_correlation(one)]


EXCLUDE = "this can never hold: the limits exclude each other"
EVENTS_FROM = "this can never hold: a number of events is whole and at least 1"
VALUES_FROM = "this can never hold: a number of values is whole and at least 0"


@pytest.mark.parametrize(
    ("kind", "limits", "told"),
    [
        ("event_count", {"gte": 10, "lt": 5}, [f"lt: {EXCLUDE}"]),
        ("event_count", {"eq": 5, "neq": 5}, [f"neq: {EXCLUDE}"]),
        ("event_count", {"lt": 0}, [f"lt: {EVENTS_FROM}"]),
        ("event_count", {"lt": 1}, [f"lt: {EVENTS_FROM}"]),
        ("event_count", {"eq": 0}, [f"eq: {EVENTS_FROM}"]),
        ("event_count", {"eq": 2.5}, [f"eq: {EVENTS_FROM}"]),
        ("event_count", {"gt": 3, "lt": 4}, [f"lt: {EVENTS_FROM}"]),
        ("event_count", {"gt": 3, "lt": 5}, []),
        ("event_count", {"lt": 2}, []),
        ("value_count", {"lt": 0}, [f"lt: {VALUES_FROM}"]),
        ("value_count", {"eq": 0}, []),
        ("value_sum", {"lt": 0}, []),
        ("value_sum", {"gt": 3, "lt": 4}, []),
        ("value_avg", {"gt": 4, "lte": 4}, [f"lte: {EXCLUDE}"]),
        ("value_median", {"gte": 4, "lte": 4}, []),
        ("value_percentile", {"gt": 100}, ["gt: this can never hold: a share is 0 to 100 percent"]),
        ("value_percentile", {"gt": 99}, []),
        (
            "temporal",
            {"gte": 3},
            ["gte: this can never hold: it counts which of its 2 rules were seen"],
        ),
        ("temporal", {"gte": 2}, []),
        (
            "temporal_ordered",
            {"gt": 2},
            ["gt: this can never hold: it counts how many of its 2 rules came in order"],
        ),
        ("temporal_ordered", {"eq": 2}, []),
    ],
)
def test_limits_that_nothing_reaches_are_told(
    kind: str, limits: dict[str, float], told: list[str]
) -> None:
    field = "v" if kind.startswith("value_") else ""

    assert claims(correlated(kind, limits, field).correlations[0]) == told


def test_a_percentile_of_numbers_has_no_end_and_a_condition_in_words_no_limits() -> None:
    (one,) = correlated("value_percentile", {"gt": 100, "percentile": 90}, "v").correlations
    section = {"type": "temporal", "timespan": "1m", "condition": "a and b"}
    bases = correlated("temporal", {"gte": 2}).rules
    text = "\n---\n".join(
        [json.dumps({**one.document.value}) for one in bases]
        + [json.dumps({"title": "C", "correlation": section})]
    )
    (other,) = load_text(text).correlations

    assert claims(one) == claims(other) == []


LIMITS = st.dictionaries(
    st.sampled_from(["lt", "lte", "gt", "gte", "eq", "neq"]),
    st.sampled_from([-1, 0, 1, 2, 2.5, 3, 4, 100, 101]),
    min_size=1,
    max_size=3,
)
KINDS = st.sampled_from(
    [
        *("event_count", "value_count", "value_sum", "value_avg", "value_median"),
        *("value_percentile", "temporal", "temporal_ordered"),
    ]
)
TAKEN = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from("ab"), st.sampled_from([None, -1, 0, 1, 2, 5])),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=400)
@given(KINDS, LIMITS, TAKEN)
def test_no_events_reach_limits_that_are_called_out_of_reach(
    kind: str, limits: dict[str, float], taken: list[tuple[int, str, int | None]]
) -> None:
    rules = correlated(kind, limits, "v" if kind.startswith("value_") else "")
    (one,) = rules.correlations
    assume(claims(one))
    correlator, ids = Correlator(rules), {rule.name: rule.id for rule in rules.rules}
    seen = [event(at_s, f=name, v=v) for at_s, name, v in taken]

    found = correlator.see_all([ids[name] for _, name, _ in taken], seen)

    assert found == {}
    assert [*correlator.leftover()] == []


@settings(deadline=None)
@given(LIMITS)
def test_a_number_of_events_that_there_can_be_is_reached(limits: dict[str, float]) -> None:
    """The other way: what nothing is said of comes about, sooner or later."""
    rules = correlated("event_count", limits)
    (one,) = rules.correlations
    (id, *_) = one.rules

    found = Correlator(rules).see_all([id] * 103, [event(at / 2, f="a") for at in range(103)])

    assert bool(found) is not bool(claims(one))
