"""A correlation that no event can complete, for want of a field, says which."""

from __future__ import annotations

from typing import Any

import pytest

from tests.detectors.sigma.city import HEAD, engine, event

BASES = "".join(
    f"{HEAD}name: {name}\ndetection: {{selection: {{act: {name}}}, condition: selection}}\n---\n"
    for name in ("a", "b")
)
COUNTED = "timespan: 1m, condition: {gte: 2}"
ALIASED = "aliases: {who: {a: source.ip, b: destination.ip}}, group-by: [who]"


def never_seen(section: str, *events: dict[str, Any]) -> tuple[str, ...]:
    """What the correlation lacks after these events, each of which rule `a` or `b` matches."""
    one = engine(f"{BASES}title: T\nname: t\ncorrelation: {{{section}}}\n")
    list(one.detect([event(**given) for given in events]))
    assert [state.never_seen for state in one.states()[:2]] == [(), ()]
    return one.states()[-1].never_seen


@pytest.mark.parametrize(
    ("section", "events", "lacks"),
    [
        (
            f"type: value_count, rules: a, group-by: [x], {COUNTED[:-1]}, field: y}}",
            [{"act": "a"}],
            ("x", "y"),
        ),
        (f"type: event_count, rules: a, group-by: [x], {COUNTED}", [{"act": "a", "x": 1}], ()),
        (f"type: event_count, rules: a, group-by: [x], {COUNTED}", [], ()),
        # An event of another rule with that log source has it, so it may come yet.
        (f"type: event_count, rules: a, group-by: [x], {COUNTED}", [{"act": "z", "x": 1}], ()),
        (
            f"type: event_count, rules: [a, b], {ALIASED}, {COUNTED}",
            [{"act": "a"}, {"act": "b"}],
            ("destination.ip", "source.ip"),
        ),
        # Events of one rule are enough to be counted, not to come together.
        (
            f"type: event_count, rules: [a, b], {ALIASED}, {COUNTED}",
            [{"act": "a", "source.ip": "192.0.2.1"}, {"act": "b"}],
            (),
        ),
        (
            f"type: temporal, rules: [a, b], {ALIASED}, timespan: 1m",
            [{"act": "a", "source.ip": "192.0.2.1"}, {"act": "b"}],
            ("destination.ip",),
        ),
        # One of them alone is enough.
        (
            f"type: temporal, rules: [a, b], {ALIASED}, timespan: 1m, condition: {{gte: 1}}",
            [{"act": "a", "source.ip": "192.0.2.1"}, {"act": "b"}],
            (),
        ),
        (
            f"type: temporal, rules: [a, b], {ALIASED}, timespan: 1m, condition: a or b",
            [{"act": "a", "source.ip": "192.0.2.1"}, {"act": "b"}],
            (),
        ),
    ],
)
def test_a_correlation_names_the_fields_that_it_waits_for_in_vain(
    section: str, events: list[dict[str, Any]], lacks: tuple[str, ...]
) -> None:
    assert never_seen(section, *events) == lacks


def test_what_builds_on_a_correlation_lacks_what_that_lacks() -> None:
    below = f"name: below\ncorrelation: {{type: event_count, rules: a, {COUNTED}, group-by: [x]}}"
    above = (
        f"title: A\ncorrelation: {{type: event_count, rules: below, {COUNTED}, group-by: [x, y]}}"
    )
    one = engine(f"{BASES}title: B\n{below}\n---\n{above}\n")

    list(one.detect([event(act="a")]))

    assert [state.never_seen for state in one.states()] == [(), (), ("x",), ("x", "y")]


def test_an_absence_names_the_field_that_it_waits_for_in_vain() -> None:
    absence = "cw_absence: {trigger: a, expected: b, within: 1m, by: [x]}"
    one = engine(f"{BASES}title: A\n{absence}\nlevel: low\n")

    list(one.detect([event(act="a")]))

    assert one.states()[-1].never_seen == ("x",)
