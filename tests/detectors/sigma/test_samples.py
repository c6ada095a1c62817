"""Samples: cases run on a fresh engine, raw ones through a collector that is handed in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cityward.errors import RuleError
from cityward.event import Event, Record
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_text
from detectors.sigma.rule import RuleSet
from detectors.sigma.samples import (
    Frame,
    Outcome,
    Samples,
    lacks,
    read_samples,
    run_case,
    samples_file,
    surviving_mutants,
)
from tests.detectors.sigma.city import START, TEST, reasons

RULES = load_text(
    "title: Write\nid: 11111111-1111-4111-8111-111111111111\nlogsource: {service: test}\n"
    "detection:\n  write: {ot.operation: write, ot.is_command: true}\n"
    "  known: {source.ip|expand: '%ot_writers%'}\n  condition: write and not known\n"
    "cityward: {sentence: '{source.ip} wrote'}\n"
)
WRITE = "ot.operation: write, ot.is_command: true"


def collect(collector: str, records: Sequence[bytes], frames: Sequence[Frame]) -> list[Event]:
    """A collector of words: `source operation`."""
    assert collector == "words"
    lines = [*records, *(frame.data for frame in frames)]
    found = []
    for number, line in enumerate(lines):
        source, operation = line.decode().split()
        fields = {"source.ip": source, "ot.operation": operation, "ot.is_command": True}
        found.append(Event(START, TEST, fields, Record(line, "sample", number, START)))
    return found


def samples(
    folder: Path, cases: str, head: str = "placeholders: {ot_writers: [10.0.0.1]}"
) -> Samples:
    file = folder / "write.test.yml"
    file.write_text(f"{head}\ncases:\n{cases}")
    return read_samples(file)


def outcomes(given: Samples, rules: RuleSet = RULES) -> list[Outcome]:
    assert not reasons(rules)
    return [
        run_case(case, rules.rules[0], lambda site: Engine(rules, site), collect)
        for case in given.cases
    ]


def test_each_kind_of_case_passes(tmp_path: Path) -> None:
    given = samples(
        tmp_path,
        f"""
  - name: events
    kind: must match
    events:
      - {{"@timestamp": 2026-01-05T10:00:00Z, source.ip: 10.0.0.9, {WRITE}}}
      - {{source.ip: 10.0.0.9, {WRITE}}}
    expect: {{count: 2, fields: {{source.ip: 10.0.0.9}}, sentence: 0.9 wrote}}
  - {{name: lines, kind: must match, collector: words, records: [10.0.0.9 write]}}
  - name: frames
    kind: must match
    collector: words
    frames: [{{hex: "31302e302e302e39 20 7772697465", time: 2026-01-05T10:00:00Z}}]
  - {{name: reader, kind: near miss, collector: words, records: [10.0.0.9 read]}}
  - {{name: writer, kind: ordinary, events: [{{source.ip: 10.0.0.1, {WRITE}}}]}}
  - name: other site
    kind: must match
    placeholders: {{ot_writers: [10.0.0.2]}}
    events: [{{source.ip: 10.0.0.1, {WRITE}}}]
  - name: other log source
    kind: ordinary
    logsource: {{service: other}}
    events: [{{source.ip: 10.0.0.9, {WRITE}}}]
  - name: own log source
    kind: ordinary
    events: [{{cw.logsource.service: other, source.ip: 10.0.0.9, {WRITE}}}]
""",
    )

    assert [one for one in outcomes(given) if not one.passed] == []
    assert lacks(given) == []


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("kind: must match, records: [10.0.0.1 write]", "0 findings, expected 1"),
        ("kind: ordinary, records: [10.0.0.9 write]", "1 findings, expected 0"),
        (
            "kind: must match, records: [10.0.0.9 write], expect: {fields: {source.ip: 10.0.0.8}}",
            "source.ip is '10.0.0.9', expected '10.0.0.8'",
        ),
        (
            "kind: must match, records: [10.0.0.9 write], expect: {sentence: read}",
            "the sentence is '10.0.0.9 wrote'",
        ),
        (
            "kind: must match, frames: [{hex: xyz}]",
            "the events cannot be made: non-hexadecimal number found "
            "in fromhex() arg at position 0",
        ),
    ],
)
def test_a_case_that_fails_says_why(tmp_path: Path, case: str, problem: str) -> None:
    given = samples(tmp_path, f"  - {{name: x, collector: words, {case}}}\n")

    assert outcomes(given)[0].problems == (problem,)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("{name: x, kind: must match}", "case 'x' has neither events nor records nor frames"),
        (
            "{name: x, kind: must match, events: [{f: 1}], records: [a]}",
            "case 'x' has events and records",
        ),
        (
            "{name: x, kind: must match, records: [a]}",
            "case 'x': records and frames need a collector, events have none",
        ),
        ("{name: x, kind: perhaps, events: [{f: 1}]}", "case 1: Invalid enum value 'perhaps'"),
        ("{name: x, kind: ordinary, evnets: [{f: 1}]}", "case 1: Object contains unknown field"),
        ("text", "case 1: "),
    ],
)
def test_a_faulty_sample_file_is_refused_with_its_line(
    tmp_path: Path, case: str, reason: str
) -> None:
    with pytest.raises(RuleError) as caught:
        samples(tmp_path, f"  - {case}\n")

    assert caught.value.what.startswith(reason)
    assert caught.value.where == f"{tmp_path / 'write.test.yml'}:3"


def test_missing_samples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="there are no samples"):
        read_samples(samples_file(tmp_path / "write.yml"))


def test_a_line_whose_loss_no_case_notices_is_named(tmp_path: Path) -> None:
    poor = samples(
        tmp_path,
        "  - {name: m, kind: must match, collector: words, records: [10.0.0.9 write]}\n"
        "  - {name: n, kind: near miss, collector: words, records: [10.0.0.9 read]}\n",
    )
    good = samples(
        tmp_path,
        "  - {name: m, kind: must match, collector: words, records: [10.0.0.9 write]}\n"
        "  - {name: n, kind: near miss, collector: words, records: [10.0.0.9 read]}\n"
        "  - {name: c, kind: near miss, events: [{source.ip: 10.0.0.9, ot.operation: write}]}\n",
    )

    assert surviving_mutants(poor, RULES.rules[0], RULES, collect) == ["write: ot.is_command"]
    assert surviving_mutants(good, RULES.rules[0], RULES, collect) == []


def test_an_absence_speaks_once_time_has_passed(tmp_path: Path) -> None:
    rules = load_text(
        "title: A\nname: a\nlogsource: {service: test}\ndetection: {s: {x: a}, condition: s}\n---\n"
        "title: B\nname: b\nlogsource: {service: test}\ndetection: {s: {x: b}, condition: s}\n---\n"
        "title: A without B\ncw_absence: {trigger: a, expected: b, within: 30s}\n"
    )
    given = samples(
        tmp_path,
        "  - {name: m, kind: must match, logsource: {service: test}, events: [{x: a}], "
        "until: 2026-01-05T10:00:31Z}\n"
        "  - {name: n, kind: near miss, logsource: {service: test}, events: [{x: a}, {x: b}], "
        "until: 2026-01-05T10:00:31Z}\n",
    )

    found = [
        run_case(case, rules.absences[0], lambda site: Engine(rules, site)) for case in given.cases
    ]

    assert [one.passed for one in found] == [True, True]
