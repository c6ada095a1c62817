"""Correlations: windows on event time, groups, late events, restart."""

from __future__ import annotations

import re
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cityward.event import LogSource
from cityward.finding import Finding
from detectors.sigma import correlation as module
from detectors.sigma import window as windows
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_text
from tests.detectors.sigma.city import HEAD, START, engine, event, reasons
from tests.detectors.sigma.test_truth import unpacked

BASES = "".join(
    f"{HEAD}name: {name}\ndetection: {{selection: {{act: {name}}}, condition: selection}}\n---\n"
    for name in ("a", "b", "c")
)


def correlated(section: str, extra: str = "") -> str:
    return f"{BASES}title: Together\nname: together\n{extra}correlation: {{{section}}}\n"


COUNT = correlated(
    "type: event_count, rules: a, group-by: [source.ip], timespan: 10m, condition: {gte: 3}"
)


def acts(one: Engine, *seen: tuple[float, str], **fields: object) -> list[Finding]:
    fields = {"source__ip": "10.0.0.9", **fields}
    return list(one.detect([event(at, act=act, **fields) for at, act in seen]))


def test_the_third_event_within_ten_minutes_speaks_and_says_so_with_numbers() -> None:
    found = acts(engine(COUNT), (0, "a"), (300, "a"), (600, "a"))

    assert len(found) == 1
    assert found[0].description == "Together: 3 events within 10 min, source.ip 10.0.0.9."
    assert found[0].group == (("source.ip", "10.0.0.9"),)
    assert found[0].fields["source.ip"] == "10.0.0.9"
    assert found[0].type == "correlation"
    assert len(found[0].events) == 3
    assert (found[0].first_seen, found[0].last_seen) == (START, START + timedelta(seconds=600))
    assert (found[0].why.score, found[0].why.threshold) == (3.0, 3.0)


@pytest.mark.parametrize(
    ("last_s", "speaks"), [(599.999999, True), (600.0, True), (600.000001, False)]
)
def test_the_window_holds_both_its_ends_to_the_microsecond(last_s: float, speaks: bool) -> None:
    found = acts(engine(COUNT), (0, "a"), (300, "a"), (last_s, "a"))

    assert bool(found) is speaks


def test_correlation_windows_cut_at_fixed_boundaries() -> None:
    """Three events around a full hour are one window, not two halves."""
    found = acts(engine(COUNT), (3500, "a"), (3590, "a"), (3610, "a"))

    assert len(found) == 1


def test_events_out_of_order_complete_a_window() -> None:
    found = acts(engine(COUNT), (600, "a"), (0, "a"), (300, "a"))

    assert len(found) == 1


def test_a_late_event_completes_a_window_that_lies_behind() -> None:
    one = engine(COUNT)

    assert acts(one, (0, "a"), (10, "a"), (605, "a")) == []
    assert len(acts(one, (20, "a"))) == 1


def test_groups_do_not_mix_and_an_event_without_the_field_is_counted() -> None:
    one = engine(COUNT)

    found = list(
        one.detect(
            [
                event(0, act="a", source__ip="10.0.0.1"),
                event(1, act="a", source__ip="10.0.0.1"),
                event(2, act="a", source__ip="10.0.0.2"),
                event(3, act="a"),
            ]
        )
    )

    assert found == []
    assert one.states()[-1].lost == {"ungrouped": 1}


def test_a_group_that_goes_on_speaks_once_a_time_span_and_counts_the_rest() -> None:
    one = engine(COUNT)
    list(one.tick(START))

    found = acts(one, *((60.0 * minute, "a") for minute in range(25)))
    rest = list(one.tick(START + timedelta(hours=1)))

    assert [finding.count for finding in found] == [1, 10, 10]
    assert [finding.count for finding in rest] == [2]
    assert list(one.tick(START + timedelta(hours=2))) == []


def test_windows_survive_a_restart() -> None:
    before, after = engine(COUNT), engine(COUNT)
    acts(before, (0, "a"), (1, "a"))

    after.restore(before.snapshot())
    found = acts(after, (2, "a"))

    assert len(found) == 1
    assert [one.time for one in found[0].events] == [
        START + timedelta(seconds=second) for second in (0, 1, 2)
    ]


def test_a_changed_correlation_begins_anew_after_a_restart() -> None:
    before, after = engine(COUNT), engine(COUNT.replace("gte: 3", "gte: 4"))
    acts(before, (0, "a"), (1, "a"), (2, "a"))

    after.restore(before.snapshot())

    assert acts(after, (3, "a")) == []


@pytest.mark.parametrize(
    "state", [b"", b"[]", b'{"version": 99}', b'{"version": 1, "counts": {}, "windows": {"x": 1}}']
)
def test_what_is_no_snapshot_changes_nothing(state: bytes) -> None:
    one = engine(COUNT)
    acts(one, (0, "a"), (1, "a"))

    with pytest.raises(ValueError, match="snapshot"):
        one.restore(state)

    assert len(acts(one, (2, "a"))) == 1


def test_too_late_an_event_is_counted_and_a_clock_set_back_begins_anew() -> None:
    one = engine(COUNT)
    acts(one, (1_000_000, "a"))

    found = acts(one, (0, "a"), (1, "a"))
    assert found == []
    assert one.states()[-1].lost == {"late": 2}

    assert len(acts(one, (2, "a"))) == 1


def test_base_rules_speak_for_themselves_only_if_the_correlation_generates() -> None:
    silent = acts(engine(COUNT), (0, "a"))
    loud = acts(engine(COUNT.replace("{type", "{generate: true, type")), (0, "a"))

    assert silent == []
    assert [finding.title for finding in loud] == ["T"]


@pytest.mark.parametrize(
    ("condition", "values", "speaks"),
    [
        ("type: value_count, condition: {field: v, gte: 3}", ["x", "y", "y"], False),
        ("type: value_count, condition: {field: v, gte: 3}", ["x", "y", "z"], True),
        ("type: value_count, condition: {field: v, gte: 2}", [42, "42", None], False),
        ("type: value_sum, condition: {field: v, gt: 10}", [5, 5], False),
        ("type: value_sum, condition: {field: v, gt: 10}", [5, "5.5"], True),
        ("type: value_avg, condition: {field: v, gte: 4}", [2, 5.9], False),
        ("type: value_avg, condition: {field: v, gte: 4}", [2, 6], True),
        ("type: value_median, condition: {field: v, eq: 5}", [9, 5], False),
        ("type: value_median, condition: {field: v, eq: 7}", [9, 5], True),
        ("type: value_percentile, condition: {field: v, percentile: 90, gt: 9}", [9, 9], False),
        ("type: value_percentile, condition: {field: v, percentile: 90, gt: 9}", [0, 11], True),
        ("type: value_percentile, condition: {field: v, lte: 50}", ["x", "y"], True),
        ("type: value_percentile, condition: {field: v, lte: 49}", ["x", "y"], False),
        ("type: event_count, condition: {gte: 2, lte: 3}", ["x"], False),
        ("type: event_count, condition: {gte: 2, lte: 3}", ["x", "y"], True),
        ("type: event_count, condition: {gt: 2, neq: 3}", ["x", "y", "z"], False),
    ],
)
def test_what_is_measured(condition: str, values: list[object], speaks: bool) -> None:
    one = engine(correlated(f"{condition}, rules: a, timespan: 1h"))

    found = list(one.detect([event(at, act="a", v=value) for at, value in enumerate(values)]))

    # The last event decides: what spoke before it (a share of 100 %) is not asked.
    assert any(finding.events[-1].fields["v"] == values[-1] for finding in found) is speaks


def test_a_range_of_limits_ends_above_too() -> None:
    one = engine(correlated("type: event_count, rules: a, timespan: 5s, condition: {gt: 1, lt: 3}"))

    found = list(one.detect([event(at, act="a") for at in (0, 0.1, 0.2, 0.3)]))
    found += one.tick(START + timedelta(seconds=60))

    assert [finding.count for finding in found] == [1]


@pytest.mark.parametrize(
    ("kind", "order", "speaks"),
    [
        ("temporal", "ab", False),
        ("temporal", "cab", True),
        ("temporal_ordered", "cab", False),
        ("temporal_ordered", "abc", True),
        ("temporal_ordered", "aacbc", True),
        ("temporal_ordered", "acb", False),
    ],
)
def test_rules_together_and_in_order(kind: str, order: str, speaks: bool) -> None:
    one = engine(correlated(f"type: {kind}, rules: [a, b, c], timespan: 1m"))

    found = acts(one, *enumerate(order))

    assert bool(found) is speaks


def test_an_ordered_window_whose_first_event_is_too_old_is_silent() -> None:
    one = engine(correlated("type: temporal_ordered, rules: [a, b, c], timespan: 1m"))

    assert acts(one, (0, "a"), (59, "b"), (60.5, "c")) == []
    assert len(acts(one, (61, "a"), (62, "b"), (63, "c"))) == 1


@pytest.mark.parametrize(
    ("expression", "order", "speaks"),
    [
        ("a and (b or c)", "ba", True),
        ("a and (b or c)", "bc", False),
        ("a and not b", "a", True),
        ("a and not b", "ba", False),
    ],
)
def test_boolean_conditions_over_rule_names(expression: str, order: str, speaks: bool) -> None:
    one = engine(correlated(f"type: temporal, timespan: 1m, condition: {expression}"))

    found = acts(one, *enumerate(order))

    assert bool(found) is speaks


def test_aliases_join_fields_of_different_names() -> None:
    one = engine(
        correlated(
            "type: temporal, rules: [a, b], group-by: [who], timespan: 1m, "
            "aliases: {who: {a: source.ip, b: destination.ip}}"
        )
    )

    found = list(
        one.detect(
            [
                event(0, act="a", source__ip="10.0.0.1", destination__ip="10.0.0.2"),
                event(1, act="b", source__ip="10.0.0.3", destination__ip="10.0.0.2"),
                event(2, act="b", source__ip="10.0.0.3", destination__ip="10.0.0.1"),
            ]
        )
    )

    assert [finding.group for finding in found] == [(("who", "10.0.0.1"),)]
    assert found[0].events[-1].time == START + timedelta(seconds=2)


CHAIN = COUNT + (
    "---\ntitle: Chain\ncorrelation: {type: temporal, rules: [together, b], timespan: 1h, "
    "group-by: [source.ip]}\n"
)


def test_a_correlation_builds_on_another() -> None:
    found = acts(engine(CHAIN), (0, "a"), (1, "a"), (2, "a"), (3, "b"))

    assert [finding.title for finding in found] == ["Chain"]


def test_a_circle_of_correlations_is_refused_with_its_line_and_the_rest_loads() -> None:
    text = (
        f"{BASES}title: X\nname: x\ncorrelation: {{type: temporal, rules: [a, y], timespan: 1m}}\n"
        "---\ntitle: Y\nname: y\ncorrelation: {type: temporal, rules: [x, b], timespan: 1m}\n"
    )

    rules = load_text(text)

    assert len(rules.rules) == 3
    assert [reason.partition(": ")[2] for reason in reasons(rules)] == [
        "it builds on itself, or on what is refused"
    ] * 2


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ("type: event_count, rules: z, timespan: 1m, condition: {gte: 1}", "rule z is not there"),
        ("type: magic, rules: a, timespan: 1m", "'magic' is no type of correlation"),
        (
            "type: event_count, rules: a, timespan: 1m",
            "the condition of the correlation is missing",
        ),
        ("type: temporal, rules: a, timespan: 0s", "'0s' is no time span like 90s, 5m, 1h or 7d"),
        ("type: value_sum, rules: a, timespan: 1m, condition: {gt: 1}", "value_sum needs a field"),
        (
            "type: event_count, rules: a, timespan: 1m, condition: a",
            "a boolean condition needs a temporal type",
        ),
        (
            "type: event_count, rules: a, timespan: 1m, condition: {gte: true}",
            "True is no number",
        ),
        ("type: temporal, rules: a, timespan: 1m, colour: red", "'colour' is not known here"),
        (
            "type: temporal, rules: [a, b], timespan: 1m, condition: a and c",
            "rules and condition differ in b",
        ),
    ],
)
def test_a_faulty_correlation_is_refused(section: str, reason: str) -> None:
    rules = load_text(correlated(section))

    assert [one.partition(": ")[2] for one in reasons(rules)] == [reason]


def test_groups_are_bounded_and_the_one_not_seen_for_longest_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GROUPS_MAX", 2)
    one = engine(COUNT)

    for at, source in enumerate(["1", "1", "2", "3", "1"]):
        list(one.detect([event(at, act="a", source__ip=source)]))

    assert one.states()[-1].lost == {"evicted": 2}


def test_a_full_window_drops_its_oldest_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "ENTRIES_MAX", 5)
    one = engine(COUNT)

    acts(one, *((second, "a") for second in range(8)))

    assert one.states()[-1].lost == {"cut": 3}


@pytest.mark.parametrize(("kind", "limit"), [("value_sum", 25_000), ("value_avg", 1.25)])
def test_a_sum_counts_all_events_of_a_full_window(kind: str, limit: float) -> None:
    rules = load_text(
        correlated(f"type: {kind}, rules: a, timespan: 1h, condition: {{field: v, gte: {limit}}}")
    )
    one = Engine(rules)
    values = [1] * 15_000 + [2] * 5_000  # 1.25 on average, and 25,000

    said = [
        list(one.detect([event(number * 0.1, act="a", v=value)]))
        for number, value in enumerate(values)
    ]

    assert [number for number, found in enumerate(said) if found] == [19_999]
    ((found,),) = [found for found in said if found]
    assert found.why is not None
    assert "20000 times" in [check.saw for check in found.why.checks]
    assert one.states()[-1].lost == {}


def test_a_late_event_that_fills_a_window_is_spoken_of_before_it_is_added_up() -> None:
    condition = "condition: {field: v, gte: 100000}"
    one = Engine(load_text(correlated(f"type: value_sum, rules: a, timespan: 1h, {condition}")))
    full = windows.Terms(one.rules.correlations[0]).full

    early = [event(1 + number * 0.1, act="a", v=1) for number in range(full)]
    assert list(one.detect(early)) == []
    (said,) = one.detect([event(500, act="a", v=100_000)])
    more = list(one.detect([event(1 + full * 0.1 + number, act="a", v=1) for number in range(9)]))

    assert any(seen.fields["v"] == 100_000 for seen in said.events)
    assert more == []


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3_000_000), st.sampled_from([0.1, 3.0, -7.25, 1e17]), st.booleans()
        ),
        min_size=60,
        max_size=400,
    ),
    st.sampled_from(["value_sum", "value_avg"]),
)
def test_what_is_added_up_stays_what_it_adds_up_to(
    seen: list[tuple[int, float, bool]], kind: str
) -> None:
    rule = load_text(
        correlated(f"type: {kind}, rules: a, timespan: 10s, condition: {{field: v, gte: 1}}")
    ).correlations[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "ENTRIES_MAX", 64)
        patch.setattr(windows, "EVENTS_KEPT", 2)
        window = windows.Window(windows.Terms(rule))
        span_us, grain_us = 10_000_000, window._terms.grain_us
        every: list[windows.Entry] = []
        now_us = 0
        for step_us, value, has in seen:
            now_us += step_us
            entry = windows.Entry(now_us, "a", (value, 1.0) if has else (), None)
            every.append(msgspec.structs.replace(entry))
            window.feed([entry], Counter())

            begins = range(now_us - span_us - grain_us, now_us - span_us + 1)
            possible = {
                str(windows.measured(rule, [one for one in every if one.time_us >= start_us]))
                for start_us in {begins[0], begins[-1], *(one.time_us for one in every)}
                if start_us in begins
            }
            assert len(window.entries) <= 72
            assert str(window._newest()) in possible
            rebuilt = windows.Window(window._terms, window.kept())
            assert str(rebuilt._newest()) == str(window._newest())


@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from("vwxyz"), st.booleans()), max_size=40),
    st.sampled_from([3, 10_000]),
)
def test_counting_as_they_come_agrees_with_counting_a_window_again(
    seen: list[tuple[int, str, bool]], most: int
) -> None:
    """A full window has lost events; their values still count as long as they are within it."""
    rule = load_text(
        correlated("type: value_count, rules: a, timespan: 10s, condition: {field: v, gte: 1}")
    ).correlations[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "ENTRIES_MAX", most)
        window = windows.Window(windows.Terms(rule))

    for at_s, value, has in seen:
        entry = windows.Entry(at_s * 1_000_000, "a", (value,) if has else (), None)
        window.feed([entry], Counter())

        newest = window.entries[-1].time_us
        within = [one for one in window.entries if one.time_us >= newest - 10_000_000]
        counted = windows.measured(rule, within)
        if most > len(seen):
            assert len(window.last) == counted
        else:
            assert counted <= len(window.last) <= most


MEASURED = {
    "event_count": "rules: [a, b, c], condition: {gte: 1}",
    "value_count": "rules: [a, b, c], condition: {field: v, gte: 1}",
    "value_sum": "rules: [a, b, c], condition: {field: v, gte: 1}",
    "value_avg": "rules: [a, b, c], condition: {field: v, gte: 1}",
    "value_median": "rules: [a, b, c], condition: {field: v, gte: 1}",
    "value_percentile": "rules: [a, b, c], condition: {field: v, percentile: 90, gte: 1}",
    "value_percentile ": "rules: [a, b, c], condition: {field: v, gte: 1}",
    "temporal": "rules: [a, b, c]",
    "temporal ": "condition: a and b and not c",
    "temporal_ordered": "rules: [a, b, a]",
    "temporal_ordered ": "condition: a and (b or c)",
}


IDS = {one.name: one.id for one in load_text(BASES).rules}
TERMS = {
    kind: windows.Terms(
        load_text(correlated(f"type: {kind}, timespan: 10s, {section}")).correlations[0]
    )
    for kind, section in MEASURED.items()
}
VALUES = st.sampled_from([None, 1, 0.1, 1e17])


@pytest.mark.parametrize("kind", MEASURED)
@settings(max_examples=60, deadline=None)
@given(
    seen=st.lists(st.tuples(st.integers(-3, 4), st.sampled_from("abc"), VALUES), max_size=60),
    restart=st.integers(0, 60),
)
def test_measuring_as_they_come_agrees_with_measuring_a_window_again(
    kind: str, seen: list[tuple[int, str, float | None]], restart: int
) -> None:
    """In order and late, across a restart: exactly the same number."""
    terms = TERMS[kind]
    window, now_s = windows.Window(terms), 0

    for number, (step_s, base, value) in enumerate(seen):
        now_s += step_s
        values = () if value is None else (str(value) if terms.texts else value,)
        entry = windows.Entry(now_s * 1_000_000, IDS[base], values, None)
        if number == restart:
            saved = msgspec.json.encode(window.kept())
            window = windows.Window(terms, msgspec.json.decode(saved, type=windows.Kept))
        lost = Counter[str]()
        window.feed([entry], lost)
        if lost["late"]:
            continue

        newest_us = window.entries[-1].time_us
        within = [one for one in window.entries if one.time_us >= newest_us - 10_000_000]
        assert repr(float(window._newest())) == repr(float(windows.measured(terms.one, within)))


@pytest.mark.parametrize("kind", ["value_count", "value_sum", "temporal_ordered"])
def test_a_match_costs_the_same_with_ten_and_ten_thousand_distinct_values(kind: str) -> None:
    """In steps of the interpreter, which do not depend on what else the machine does."""
    section = "rules: [a, b], condition: {field: v, gte: 50000}"
    if kind == "temporal_ordered":
        section = "rules: [a, b]"
    rule = load_text(correlated(f"type: {kind}, timespan: 1d, {section}")).correlations[0]

    def steps(distinct: int) -> int:
        window = windows.Window(windows.Terms(rule))
        word: Any = str if kind == "value_count" else float
        entries = [
            windows.Entry(at * 1_000, rule.rules[0], (word(at % distinct),), None)
            for at in range(10_000)
        ]
        for entry in entries[:9_000]:
            window.feed([entry], Counter())
        counted = 0

        def count(*_: object) -> Any:
            nonlocal counted
            counted += 1
            return count

        sys.settrace(count)
        try:
            for entry in entries[9_000:]:
                window.feed([entry], Counter())
        finally:
            sys.settrace(None)
        return counted

    assert steps(10_000) < 1.5 * steps(10)


BUILT = """---
title: {title}
name: {name}
correlation: {{type: {what}, timespan: 20s, group-by: [source.ip], generate: {loud}}}
"""
TOGETHER = BASES + "".join(
    BUILT.format(title=name, name=name, what=what, loud=loud)
    for name, what, loud in [
        ("count", "event_count, rules: [a, b], condition: {gte: 2}", "true"),
        ("above", "temporal_ordered, rules: [count, c]", "false"),
        ("missing", "event_count, rules: [absent, c], condition: {gte: 2}", "true"),
        ("values", "value_count, rules: [a], condition: {field: v, gte: 2}", "false"),
        ("sum", "value_sum, rules: [b, c], condition: {field: v, gt: 3}", "true"),
    ]
)
TOGETHER = TOGETHER.replace("---\n---\n", "---\n") + (
    "---\ntitle: Absent\nname: absent\n"
    "cw_absence: {trigger: a, expected: b, within: 0s, before: 5s, by: [source.ip]}\n"
)


@given(
    st.lists(
        st.tuples(st.integers(-9, 9), st.sampled_from("abc"), st.sampled_from("xy"), VALUES),
        max_size=40,
    )
)
@settings(max_examples=60, deadline=None)
def test_events_say_together_what_they_say_one_by_one(
    seen: list[tuple[int, str, str, float | None]],
) -> None:
    """In the same order, late ones too, and what builds on correlations and on absences."""
    at_s, events = 0, []
    for step_s, act, source, value in seen:
        at_s += step_s
        events.append(event(at_s, act=act, source__ip=source, v=value))
    one, other = engine(TOGETHER), engine(TOGETHER)

    together = list(one.detect(events))

    assert together == [finding for alone in events for finding in other.detect([alone])]
    assert one.snapshot() == other.snapshot()


def test_the_correlation_lane_of_rsigma_fires_as_often_as_it_does_there(
    data: Path, tmp_path: Path
) -> None:
    """Its ids are no UUIDs; what a finding stands for, and what was left over, is a firing each."""
    lane = unpacked(data, "rsigma_lanes", tmp_path)
    text = (lane / "correlation.yml").read_text()
    for word in sorted(set(re.findall("perf-[a-z-]+", text)), key=len, reverse=True):
        text = text.replace(word, str(uuid5(NAMESPACE_URL, word)))
    lines = (lane / "correlation.ndjson").read_bytes().splitlines()
    source = LogSource(category="authentication")
    one = engine(text)
    fired = Counter[str]()

    seen = [event(n / 1000, source, **msgspec.json.decode(line)) for n, line in enumerate(lines)]
    for finding in (*one.detect(seen), *one.leftover()):
        fired[finding.title] += finding.count

    assert fired == {
        "Authentication Failure Then Success": 9_600,
        "Authentication Source Fanout by Host": 7_898,
        "Authentication Egress Volume by Host": 7_819,
        "Authentication Failure Burst by User": 7_700,
    }


def test_what_builds_on_an_absence_hears_of_it_in_the_same_batch() -> None:
    found = acts(engine(TOGETHER), (0, "a"), (1, "a"))

    assert "missing" in [one.title for one in found]


def test_time_that_passes_forgets_windows() -> None:
    one = engine(COUNT)
    list(one.tick(START))
    acts(one, (0, "a"), (1, "a"))

    list(one.tick(START + timedelta(hours=1)))

    assert b'"entries":[{' not in one.snapshot()


def test_a_log_that_is_read_long_after_its_time_keeps_its_windows() -> None:
    one = engine(COUNT)
    read_at = START + timedelta(days=3)

    list(one.tick(read_at))
    acts(one, (0, "a"), (1, "a"))
    list(one.tick(read_at + timedelta(seconds=1)))
    found = acts(one, (2, "a"))

    assert len(found) == 1


ABSENT = (
    f"{BASES}title: Command without order\ncw_absence: "
    "{trigger: a, expected: b, within: 30s, before: 60s, by: [phys.point]}\n"
)


@pytest.mark.parametrize(
    ("order_s", "speaks"),
    [(-60.0, False), (-60.5, True), (0.0, False), (30.0, False), (30.5, True), (None, True)],
)
def test_a_trigger_without_what_it_should_come_with(order_s: float | None, speaks: bool) -> None:
    one = engine(ABSENT)
    events = [event(100, act="a", phys__point="P1")]
    if order_s is not None:
        events.append(event(100 + order_s, act="b", phys__point="P1"))
    events.sort(key=lambda seen: seen.time)

    found = list(one.detect(events)) + list(one.tick(START + timedelta(seconds=131)))

    assert bool(found) is speaks


def test_an_absence_waits_until_its_time_is_over_and_survives_a_restart() -> None:
    before, after = engine(ABSENT), engine(ABSENT)
    assert list(before.detect([event(0, act="a", phys__point="P1")])) == []
    assert list(before.tick(START + timedelta(seconds=30))) == []

    after.restore(before.snapshot())
    found = list(after.tick(START + timedelta(seconds=31)))

    assert [finding.title for finding in found] == ["Command without order"]
    assert found[0].description == (
        "Command without order: T, and no T from 60 s before to 30 s after it."
    )
    assert list(after.tick(START + timedelta(seconds=90))) == []


def test_what_is_expected_at_another_point_does_not_count() -> None:
    one = engine(ABSENT)

    list(one.detect([event(0, act="a", phys__point="P1"), event(1, act="b", phys__point="P2")]))

    assert len(list(one.tick(START + timedelta(seconds=31)))) == 1


def test_an_absence_with_no_time_to_wait_decides_at_once() -> None:
    one = engine(ABSENT.replace("within: 30s", "within: 0s"))

    found = list(one.detect([event(0, act="a", phys__point="P1")]))

    assert len(found) == 1


def test_a_correlation_counts_what_was_missing() -> None:
    counted = "title: Twice\ncorrelation: {type: event_count, rules: absent, timespan: 1h, "
    counted += "condition: {gte: 2}}\n"
    one = engine(ABSENT.replace("cw_absence", "name: absent\ncw_absence") + "---\n" + counted)

    list(one.detect([event(0, act="a", phys__point="P1"), event(1, act="a", phys__point="P2")]))

    assert [found.title for found in one.tick(START + timedelta(seconds=40))] == ["Twice"]
    assert {state.title: state.matches for state in one.states()}["Twice"] == 1


def test_a_correlation_whose_base_is_not_evaluated_says_so() -> None:
    text = COUNT.replace("{act: a}", "{'act|expand': '%acts%'}")

    state = Engine(load_text(text)).states()[-1]

    assert (state.state, state.reason) == ("not evaluated", "T: needs %acts%")
