"""What is exported finds on a real OpenSearch what the engine finds, or says why it is not."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cityward import Event, LogSource, Record
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_folder, load_text
from detectors.sigma.rule import RuleSet
from detectors.sigma.samples import events_of, read_samples, samples_file
from siem.rule_export import Export, export
from siem.ruleset import RULES_FOLDER
from siem.samples import collect
from tests.opensearch import Server
from tests.siem.indexed import Indexed

START = datetime(2026, 1, 5, tzinfo=UTC)
TEST = LogSource(service="test")


def event(fields: Mapping[str, Any], source: LogSource = TEST, time: datetime = START) -> Event:
    return Event(time, source, dict(fields), Record(b"", "s", 0, START))


def differences(
    given: Export, rules: RuleSet, indexed: Indexed, lists: Mapping[str, Sequence[str]]
) -> tuple[list[Any], Counter[str]]:
    """Where query and engine differ, and how often each rule matched."""
    engine = Engine(rules, lists)
    wanted: dict[str, set[str]] = {}
    ids = list(indexed.events)
    for place, matched in engine.matched(list(indexed.events.values())):
        for rule in matched:
            wanted.setdefault(rule.id, set()).add(ids[place])
    found = indexed.found([one.query for one in given.written])
    differ = [
        (one.rule.title, sorted(there), sorted(here), one.query)
        for one, there in zip(given.written, found, strict=True)
        if there != (here := wanted.get(one.rule.id, set()))
    ]
    return differ, Counter({one.rule.id: len(wanted.get(one.rule.id, ())) for one in given.written})


# ---- the rules that are shipped


@pytest.mark.slow
def test_every_shipped_rule_finds_there_what_the_engine_finds(
    opensearch: Server, index_prefix: str
) -> None:
    rules = load_folder(RULES_FOLDER)
    lists: dict[str, list[str]] = {}
    events: list[Event] = []
    for one in rules.speaking():
        for case in read_samples(samples_file(Path(one.document.file))).cases:
            if case.frames:
                continue  # the packet path takes long; what it makes is among the events
            for name, values in case.placeholders.items():
                lists[name] = sorted({*lists.get(name, ()), *map(str, values)})
            events += events_of(case, one, collect)
    indexed = Indexed(opensearch, index_prefix, events)
    given = export(rules, lists)

    differ, matches = differences(given, rules, indexed, lists)

    assert differ == []
    left = {one.title: one.reason for one in given.left if one.kind == "rule"}
    assert left == {"SQL injection in a web request": "a regular expression is too large there"}
    assert {one.kind for one in given.left} == {"rule", "correlation", "absence"}
    assert len(given.written) == len(rules.rules) - 1
    assert sum(map(bool, matches.values())) >= 160


# ---- hard cases


def quoted(text: str) -> str:
    """A text as YAML takes it."""
    return json.dumps(text, ensure_ascii=False)


TEXTS = (
    "",
    "a",
    "A",
    "PowerShell.EXE",
    "powershell",
    "C:\\Windows\\a b\\x.exe",
    "\u212a",
    "k",
    "\u0130",
    "i",
    "xi",
    "x\u0130",
    "i\u0307",
    "a\u0130b",
    "aib",
    "\xc4PFEL",
    "\xe4pfel",
    "\u1e9e",
    "stra\xdfe",
    "a*b",
    "a?b",
    'say "x" & y | z',
    "a\nb",
    "[x](y){2}~^$#@<1-3>.+",
    "/etc/passwd",
    "-enc",
    "\u2013enc",
    "/enc",
    "true",
    "TRUE",
    "False",
    "5",
    "05",
    "5.0",
    "+5",
    "5e0",
    "-3",
    "0",
    "-0.0",
    ".5",
    "0.50",
    "42x",
    "10.1.2.3",
    "10.1.2.03",
    "::ffff:10.1.2.3",
    "172.16.9.1",
    "172.32.0.1",
    "::1",
    "0:0:0:0:0:0:0:1",
    "::0001",
    "::0.0.0.1",
    "fe80::1",
    "FE80:0:0::A",
    "fe80::1%eth0",
    "fe80:::1",
    "fec0::1",
    "1:2:3:4:5:6:7:8",
    "\U0001f600",
    "x" * 3_000,
)
NUMBERS = (0, 1, 5, -3, 42, 2**62)
FIELDS: dict[str, Sequence[Any]] = {
    "host.name": TEXTS,
    "message": TEXTS,
    "tags": [[one, "other"] for one in TEXTS] + [[]],
    "source.ip": TEXTS,
    "source.port": NUMBERS,
    "ot.value": [*NUMBERS[:5], 0.5, -1.5, 5.0, 1e20],
    "ot.is_command": [True, False],
    "cw.vendor": [
        *({"Image": one} for one in [*TEXTS, *NUMBERS, True, False, 0.5, ["a", "K"], None, []]),
        {"image": "powershell"},
        {"ImageX": "powershell"},
        {"a.b": "x"},
        {"aXb": "x"},
        {"a": {"b": "y"}},
        {"Image": "a", "c-ip": "10.1.2.3"},
        {"c-ip": None},
    ],
}
VALUES = (
    "a",
    "powershell",
    "*shell*",
    "k",
    "*k*",
    "i",
    "*i",
    "i*",
    "*i*",
    "x?",
    "??",
    "*?i*",
    "a?b",
    "i?",
    "?i",
    "a\\?b",
    "a\\*b",
    "*\\\\x.exe",
    "*\\\\Windows\\\\*",
    "\xe4pfel",
    "*\xdfe",
    "*",
    "",
    "?*",
    "[x](y){2}~^$#@<1-3>.+",
    'say "x" & y | z',
    "a?b*",
    "\U0001f600",
    "true",
    "5",
    "*.0",
    "xxx*",
)
LINES = (
    *(f"{{F}}: {quoted(one)}" for one in VALUES),
    *(f"{{F}}|cased: {quoted(one)}" for one in VALUES),
    *(f"{{F}}|contains: {quoted(one)}" for one in ("a", "K", "I", "\xc4", "?", ".", "\n")),
    *(f"{{F}}|startswith: {quoted(one)}" for one in ("i", "x", "/", "-")),
    *(f"{{F}}|endswith: {quoted(one)}" for one in ("i", "\\x.exe", "b")),
    *(f"{{F}}: {one}" for one in (0, 5, -3, 0.5, 1, 42, 4611686018427387904)),
    *(f"{{F}}: {one}" for one in ("true", "false", "null", "[a, K, '5']", "[a, null]")),
    *(f"{{F}}|{how}: {one}" for how in ("lt", "lte", "gt", "gte") for one in (0, 4.5, 10**30)),
    *(f"{{F}}|exists: {one}" for one in ("true", "false")),
    *(f"{{F}}|cidr: {one}" for one in ("10.0.0.0/8", "172.16.0.0/12", "0.0.0.0/0", "10.1.2.3/32")),
    *(f"{{F}}|cidr: '{one}'" for one in ("::1/128", "fe80::/10", "fc00::/7", "::/0", "2001::/20")),
    "{F}|windash: ' -enc'",
    "{F}|windash|contains: '-enc'",
    "{F}|contains|all: [a, x]",
    "{F}|contains|neq: a",
    "{F}|neq: [a, k]",
    "{F}|wide|base64offset|contains: x",
    *(
        f"{{F}}|re{one}"
        for one in (
            ": '^a'",
            ": 'b$'",
            ": 'a.b'",
            "|s: 'a.b'",
            "|i: 'K'",
            "|i: '[j-l]$'",
            "|i: 's'",
            ": '(^|x)i'",
            ": '[^a-z]\\d?$'",
            ": '^$'",
            ": 'a|^5$'",
            ": '\\s\\w+\\S'",
            ": '[\\w.-]{3,}'",
            ": '(?i)POWER(shell)?'",
            ": '[x\\]\\[(]+'",
            ": '\"x\" & y'",
            ": '\\bx\\b'",
            ": '.*'",
        )
    ),
)
CONDITIONS = ("s", "not s", "s and not t", "s or not t", "not (s or t)", "1 of them")


def hard_rules() -> Iterator[str]:
    """Every line on every field, then some of them together under each condition."""
    chance = random.Random(7)
    names = [*FIELDS, "Image", "cw.vendor.Image", "a.b", "c-ip", "image"]
    lines = [line.replace("{F}", name) for name in names for line in LINES]
    yield from (rule_of(line) for line in lines)
    for condition in itertools.chain.from_iterable(itertools.repeat(CONDITIONS, 40)):
        yield rule_of(chance.choice(lines), chance.choice(lines), condition)


def rule_of(line: str, other: str = "host.name: a", condition: str = "s") -> str:
    return (
        f"title: {quoted(f'{line} / {other} / {condition}')}\nlogsource: {{service: Test}}\n"
        f"detection:\n  s:\n    {line}\n  t:\n    {other}\n  condition: {condition}\n"
    )


def hard_events() -> Iterator[Event]:
    for name, values in FIELDS.items():
        for value in values:
            yield event({name: value})
            yield event({name: value, "host.name": "a"}, LogSource(service="TeST"))
    yield event({"host.name": "a"}, LogSource(category="test", product="test"))
    yield event({"source.ip": "10.1.2.3", "cw.vendor": {"Image": "a"}})


@pytest.mark.slow
def test_hard_cases_are_equal_or_refused_with_a_reason(
    opensearch: Server, index_prefix: str
) -> None:
    rules = load_text("---\n".join(hard_rules()), "hard.yml")
    indexed = Indexed(opensearch, index_prefix, hard_events())
    given = export(rules, {})

    differ, matches = differences(given, rules, indexed, {})

    assert differ == []
    assert len(given.written) + len(given.left) == len(rules.rules)
    assert sum(map(bool, matches.values())) > 500
