"""Values that YAML 1.1 reads as something else than what stands in the rule."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cityward import documents
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_text
from detectors.sigma.written import misread
from tests.detectors.sigma.city import event, rule_of


def said(line: str) -> list[str]:
    """What is said of one line of a selection."""
    return [one.what for one in misread(rule_of(f"  s:\n    {line}\n  condition: s\n"))]


def finds(line: str, seen: str) -> bool | None:
    """Whether a rule of this line finds an event; None if it is refused."""
    rules = load_text(rule_of(f"  s:\n    {line}\n  condition: s\n"))
    return None if rules.refused else bool([*Engine(rules).detect([event(0, f=seen)])])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("f: yes", "`yes` is read as true; write 'yes' if the text is meant"),
        ("f: Off", "`Off` is read as false; write 'Off' if the text is meant"),
        ("f: ~", "`~` is read as null, which is no value; write '~' if the text is meant"),
        ("f: 010", "`010` is read as the number 8; write '010' if the text is meant"),
        ("f|neq: 010", "`010` is read as the number 8; write '010' if the text is meant"),
        ("f: -010", "`-010` is read as the number -8; write '-010' if the text is meant"),
        ("f: 1:30", "`1:30` is read as the number 90; write '1:30' if the text is meant"),
        ("f: 0x1F", "`0x1F` is read as the number 31; write '0x1F' if the text is meant"),
        ("f: 0b11", "`0b11` is read as the number 3; write '0b11' if the text is meant"),
        ("f: 1_000", "`1_000` is read as the number 1000; write '1_000' if the text is meant"),
        ("f: .inf", "`.inf` is read as the number inf; write '.inf' if the text is meant"),
        (
            "f: .nan",
            "`.nan` is read as nan, which equals nothing; write '.nan' if the text is meant",
        ),
        (
            "f: 2024-01-01 10:00:00",
            "`2024-01-01 10:00:00` is read as the time 2024-01-01T10:00:00; "
            "write '2024-01-01 10:00:00' if the text is meant",
        ),
        ("f|contains: 5.10", "`5.10` is read as the number 5.1; write '5.10' if the text is meant"),
        ("f|re: 0x1F", "`0x1F` is read as the number 31; write '0x1F' if the text is meant"),
        (
            "f|cased|contains: True",
            "`True` is read as true; write 'True' if the text is meant",
        ),
        ("f|gt: 010", "`010` is read as the number 8; write 10 if that is meant"),
        ("f|hour: 010", "`010` is read as the number 8; write 10 if that is meant"),
        ("f|gte: 1:30", "`1:30` is read as the number 90; write 90 if that is meant"),
    ],
)
def test_a_value_that_is_not_what_it_looks_like_is_told(line: str, told: str) -> None:
    assert said(line) == [told]


@pytest.mark.parametrize(
    "value",
    [
        *("5", "-5", "+5", "007", "5.0", "5.10", "1.5e+3", "true", "False", "TRUE", "null", "NULL"),
        *("2024-01-01", "y", "N", "08", "0o17", "1e3", "'010'", '"yes"', "!!int 010", "", "a yes"),
    ],
)
def test_a_value_that_is_what_it_looks_like_is_not(value: str) -> None:
    assert said(f"f: {value}") == []


@pytest.mark.parametrize(
    "line",
    [
        *("f|gt: 0x1F", "f|lte: 1_000", "f|exists: yes", "f|contains: true", "f|contains: 5"),
        *("f|hour: [7, 07, 08]", "f|cased: True"),
        *("f|re: yes", "f|cidr: 010", "f|fieldref: on", "f|gt: on", "f|base64: ~"),
    ],
)
def test_where_a_number_or_a_flag_is_meant_or_a_line_is_refused_nothing_is_said(line: str) -> None:
    assert said(line) == []


def test_line_and_column_are_those_of_the_value() -> None:
    text = (
        "title: 010\ndate: yes\nlogsource: {service: on}\ndetection:\n"
        "  s: {ä: 010, b: ['x', off]}\n"
        "  k:\n    - 0x10\n    - c: 1\n      d|all: [9, 1_0]\n  condition: 010\n---\n"
        "correlation: {type: event_count, condition: {gte: 010, lt: 1_00, field: 010}}\n---\n"
        "filter: {rules: [010], condition: on, s: {f: no}}\n"
    )

    found = [*misread(text)]

    columns = [(one.line, one.column, one.what.split("`")[1]) for one in found]
    assert columns == [
        *((5, 10, "010"), (5, 24, "off"), (7, 7, "0x10"), (9, 18, "1_0")),
        *((12, 51, "010"), (14, 46, "no")),
    ]
    lines = text.split("\n")
    for line, column, value in columns:
        assert lines[line - 1][column - 1 :].startswith(value)


def test_a_text_that_cannot_be_read_is_not_told_twice() -> None:
    assert [*misread("detection: {s: {f: 010}, t: *x}\n")] == []
    assert [*misread("detection: {s: {f: 010}, s: {f: 010}\n")] == []


PLAIN = st.one_of(
    st.from_regex(r"\A[-+]?[0-9.:_xabeE+-]{1,8}\Z"),
    st.from_regex(r"\A[12]\d{3}-[01]?\d-[0-3]\d([Tt ][0-2]\d:[0-5]\d:[0-5]\d(\.\d)?Z?)?\Z"),
    st.sampled_from(["yes", "No", "ON", "off", "y", "n", "true", "False", "~", "null", "Null"]),
    st.sampled_from([".inf", "-.INF", ".NaN", "0x1f", "0b1", "010", "0o7", "1_0", "1:0"]),
)


@settings(deadline=None)
@given(PLAIN)
def test_told_is_what_an_event_that_says_the_same_is_not_found_by(text: str) -> None:
    """And what is advised finds it, and is not told again."""
    found = finds(f"f: {text}", text)
    if text.lower() == "null" or found is None:
        assert said(f"f: {text}") == []
    else:
        assert bool(said(f"f: {text}")) is not found
        assert finds(f"f: '{text}'", text)
        assert said(f"f: '{text}'") == []


@settings(deadline=None)
@given(PLAIN, st.sampled_from(["contains", "cased|startswith", "endswith", "windash"]))
def test_what_is_not_told_finds_its_own_text(text: str, how: str) -> None:
    line = f"f|{how}: {text}"

    assert said(line) or finds(line, text) is not False


@pytest.mark.slow
def test_of_sigmahqs_rules_none_is_told(data: Path) -> None:
    """All their 966 values without quotes, numbers mostly, are what they look like."""
    told, values = [], 0
    with tarfile.open(data / "sigma/sigmahq_rules.tar.gz") as archive:
        for member in archive:
            if member.name.endswith(".yml") and (file := archive.extractfile(member)):
                text = file.read().decode()
                told += [(member.name, one) for one in misread(text)]
                found = documents.unquoted(text)
                values += sum(one.place[0] == "detection" for one in found)

    assert told == []
    assert values == 966
