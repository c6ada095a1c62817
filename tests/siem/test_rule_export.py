"""What is exported finds on a real OpenSearch what the engine finds, or says why it is not."""

from __future__ import annotations

import itertools
import json
import random
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cityward import Event, LogSource, Record
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_folder, load_text
from detectors.sigma.rule import RuleSet
from detectors.sigma.samples import events_of, read_samples, samples_file
from siem import assembly, config
from siem.assets import from_settings
from siem.cli import run
from siem.commands.rule import TOLD_MAX
from siem.rule_export import LIMITS, Export, export, monitors, queries
from siem.ruleset import RULES_FOLDER
from siem.samples import collect
from siem.store.protocol import Switch
from siem.store.templates import Names
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
    "{{7}}",
    "\u039f\u0394\u039f\u03a3",
    "\u03bf\u03b4\u03bf\u03c3",
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
        {"b{{b}}": "{{7}}"},
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
    "{{7}}",
    "\u03bf\u03b4\u03bf\u03c2",
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
            ": '(x|)i(|a)$'",
            ": '^()a'",
        )
    ),
)
CONDITIONS = ("s", "not s", "s and not t", "s or not t", "not (s or t)", "1 of them")


def hard_rules() -> Iterator[str]:
    """Every line on every field, then some of them together under each condition."""
    chance = random.Random(7)
    names = [*FIELDS, "Image", "cw.vendor.Image", "a.b", "c-ip", "image", "b{{b}}"]
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
    yield event({"source.ip": "172.16.9.1", "cw.vendor": {"c-ip": "10.1.2.3"}})
    yield event({"source.ip": "10.1.2.3", "cw.vendor": {"c-ip": "172.16.9.1"}})


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.full)], ids=str)
def test_hard_cases_are_equal_or_refused_with_a_reason(
    opensearch: Server, index_prefix: str, step: int
) -> None:
    """What `LIMITS` says is left out: two names for one value of which one is null, `5.0` in JSON
    beside a rule's text, addresses of IPv4 in the digits of IPv6."""
    rules = load_text("---\n".join(itertools.islice(hard_rules(), 0, None, step)), "hard.yml")
    indexed = Indexed(opensearch, index_prefix, hard_events())
    given = export(rules, {})

    differ, matches = differences(given, rules, indexed, {})

    assert differ == []
    assert len(given.written) + len(given.left) == len(rules.rules)
    assert sum(map(bool, matches.values())) > 700 / step


@pytest.mark.slow
def test_a_query_string_finds_no_pattern_in_a_sources_own_fields(
    opensearch: Server, index_prefix: str
) -> None:
    """Why rules are written in the query DSL, and not as pySigma's backend does."""
    indexed = Indexed(opensearch, index_prefix, [event({"cw.vendor": {"Image": "C:\\x.exe"}})])

    plain, string, pattern, dsl = indexed.found(
        [
            {"query_string": {"query": r'cw.vendor.Image:"C:\\x.exe"'}},
            {"query_string": {"query": r"cw.vendor.Image:*\\x.exe", "analyze_wildcard": True}},
            {"query_string": {"query": r"cw.vendor.Image:/.*\\x\.exe/"}},
            {"regexp": {"cw.vendor.Image": {"value": r".*\\x\.exe"}}},
        ]
    )

    assert (len(plain), len(string), len(pattern), len(dsl)) == (1, 0, 0, 1)


# ---- what belongs to a rule

RULE = """\
title: Login by a stranger
id: 00000000-0000-4000-8000-000000000001
description: Somebody whom nobody knows.
author: Somebody Else
level: high
tags: [attack.initial-access, attack.t1078]
references: [https://rules.example/1]
logsource: {service: test}
detection:
  login: {event.action: login}
  known: {user.name|expand: '%people%'}
  condition: login and not known
"""
FILTER = """\
title: The night watch
id: 00000000-0000-4000-8000-000000000002
logsource: {service: test}
filter:
  rules: [00000000-0000-4000-8000-000000000001]
  watch: {host.name|startswith: gate-}
  condition: not watch
cityward: {reason: the watch walks, expires: 2026-01-06}
"""
COUNTED = """\
title: Many strangers
id: 00000000-0000-4000-8000-000000000003
correlation:
  type: event_count
  rules: [00000000-0000-4000-8000-000000000001]
  group-by: [source.ip]
  timespan: 5m
  condition: {gte: 5}
"""
WORDS = """\
title: A word anywhere
id: 00000000-0000-4000-8000-000000000004
logsource: {service: test}
detection:
  words: [mimikatz]
  condition: words
"""
PEOPLE = {"people": ["Ann", "b*b"]}


@pytest.mark.slow
def test_filters_hold_until_they_expire_and_lists_are_filled_in(
    opensearch: Server, index_prefix: str
) -> None:
    rules = load_text(f"{RULE}---\n{FILTER}", "mine.yml")
    days = [datetime(2026, 1, 5, 23, 59, 59, 999_999, UTC), datetime(2026, 1, 6, tzinfo=UTC)]
    indexed = Indexed(
        opensearch,
        index_prefix,
        [
            event({"event.action": "login", "user.name": who, "host.name": where}, time=day)
            for who in ("ann", "eve", "bob", "b*b")
            for where in ("gate-1", "desk")
            for day in days
        ],
    )
    given = export(rules, PEOPLE)

    differ, matches = differences(given, rules, indexed, PEOPLE)

    assert differ == []
    assert list(matches.values()) == [6]  # eve and bob, but for each once at the gate


def test_what_is_no_query_is_told_with_file_and_reason() -> None:
    rules = load_text(f"{RULE}---\n{COUNTED}---\n{WORDS}", "mine.yml")

    given = export(rules, {})

    assert {one.title: (one.kind, one.file, one.reason) for one in given.left} == {
        "Login by a stranger": ("rule", "mine.yml:1", "not evaluated here: needs %people%"),
        "A word anywhere": (
            "rule",
            "mine.yml:23",
            "words in any field: the record itself cannot be searched there",
        ),
        "Many strangers": (
            "correlation",
            "mine.yml:14",
            "it counts or orders events; a query looks at one",
        ),
    }
    assert given.written == ()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Image|fieldref: ParentImage", "a field is compared with another one"),
        ("Image|exists: true", "whether cw.vendor.Image is there without a value is not known"),
        ("tags|exists: false", "whether tags is there without a value is not known"),
        ("Code: '007'", "007 may be a number or a text in cw.vendor.Code"),
        ("Count|gte: 5", "cw.vendor.Count is a text there, and is compared as a number"),
        ("source.port|startswith: '8'", "source.port is a number there, and is compared as a text"),
        ("source.geo.location: '1,2'", "source.geo.location is no single value there"),
        ("cw.vendor: null", "cw.vendor is no single value there"),
        ("event.original|contains: x", "event.original is stored there and cannot be searched"),
        ("event.id: x", "event.id is given to events when they are copied"),
        ("'@timestamp|hour': 3", "@timestamp is no text there"),
        ("Ip|cidr: '2001:db8::/32'", "an address of 2001:db8::/32 is written in too many ways"),
        (
            f"Hash|contains: [{', '.join(f'x{number}{chr(97) * 50}' for number in range(600))}]",
            "125,",
        ),
        (f"Ip|cidr: [{', '.join(f'10.{n // 256}.{n % 256}.0/24' for n in range(1100))}]", "1,101"),
    ],
    ids=itertools.count(),
)
def test_what_the_index_cannot_be_asked_is_refused_with_the_reason(line: str, reason: str) -> None:
    given = export(load_text(rule_of(line)), {})

    assert [one.reason.startswith(reason) for one in given.left] == [True], given.left


def test_only_rules_that_speak_for_themselves_become_monitors() -> None:
    rules = load_text(f"{RULE}---\n{COUNTED}", "mine.yml")
    names = Names("cw", "op")

    given = export(rules, PEOPLE)

    assert [(one["title"], one["speaks"]) for one in queries(given, names)["queries"]] == [
        ("Login by a stranger", False)
    ]
    assert monitors(given, names)["monitors"] == []


def test_no_value_of_a_rule_is_a_template_of_its_monitor() -> None:
    """The cluster fills in what stands in double braces, and finds something else then."""
    braces = r"""
title: R
id: 6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b11
level: low
logsource: {service: test}
detection:
  exact: {url.path|cased: ['{{period_end}}', 'plain']}
  part: {url.query|contains: '{{#a}}'}
  pattern: {url.original|re: '\{\{7\}\}|{{'}
  name: {'cw.vendor.{{a}}': '1.1'}
  condition: 1 of *
"""
    given = export(load_text(braces), {})

    (made,) = monitors(given, Names("cw", "op"))["monitors"]
    text = json.dumps(made["inputs"][0]["search"]["query"])

    assert given.left == ()
    assert re.findall("{{[^}]*}}", text) == ["{{period_end}}"] * 2
    assert text.count("{{") == 2
    assert {"term": {"url.path": "plain"}} in _every_part(given.written[0].query)


def _every_part(query: Any) -> Iterator[Any]:
    """A query, and all that it is made of."""
    yield query
    for one in query.values() if isinstance(query, dict) else query:
        if isinstance(one, (dict, list)):
            yield from _every_part(one)


def test_a_monitor_has_the_form_that_pysigma_gives_it() -> None:
    from sigma.backends.opensearch import OpensearchLuceneBackend
    from sigma.collection import SigmaCollection

    text = RULE.replace("|expand: '%people%'", ": ann")
    indices = ["cw-events-op-*", "-cw-events-op-*-*"]
    backend = OpensearchLuceneBackend(index_names=indices)
    (theirs,) = backend.convert(SigmaCollection.from_yaml(text), "monitor_rule")

    (ours,) = monitors(export(load_text(text), {}), Names("cw", "op"))["monitors"]

    theirs["triggers"][0]["severity"] = str(theirs["triggers"][0]["severity"])
    assert ours["inputs"][0]["search"].pop("query")["size"] == 1
    assert theirs["inputs"][0]["search"].pop("query")["size"] == 1
    assert ours == theirs


# ---- the command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three documents, a filter and settings with a list."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CITYWARD_CONFIG", raising=False)
    (tmp_path / "mine").mkdir()
    for name, text in (("rule", RULE), ("filter", FILTER), ("words", WORDS)):
        (tmp_path / "mine" / f"{name}.yml").write_text(text)
    (tmp_path / "cityward.toml").write_text(
        'operator = "op-port"\nstate_dir = "state"\n'
        '[cluster]\nurl = "https://search.example:9200"\nprefix = "quay"\n'
        '[rules]\nfolders = ["mine"]\nshipped = false\n[lists]\npeople = ["ann"]\n'
    )
    return tmp_path


def test_the_command_prints_queries_for_the_indices_of_the_settings(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["rule", "export", "--to", "opensearch"])

    said = capsys.readouterr()
    given = json.loads(said.out)
    assert code == 7
    (one,) = given["queries"]
    assert one.pop("query")["bool"]["must_not"] == [
        {"regexp": {"user.name": {"value": "[aA][nN][nN]"}}}
    ]
    assert one == {
        "id": "00000000-0000-4000-8000-000000000001",
        "title": "Login by a stranger",
        "level": "high",
        "author": "Somebody Else",
        "license": "",
        "tags": ["attack.initial-access", "attack.t1078"],
        "file": "mine/rule.yml:1",
        "speaks": True,
        "index": "quay-events-op-port-*,-quay-events-op-port-*-*",
    }
    (left,) = given["not_expressible"]
    assert left["file"] == "mine/words.yml:1"
    assert given["limits"] == list(LIMITS)
    assert "not expressible: mine/words.yml:1: words in any field" in said.err
    assert said.err.endswith("1 rule written, 1 not expressible\n")


def test_the_command_says_of_many_rules_that_are_not_written_how_many_there_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(TOLD_MAX + 2):
        text = re.sub(r"(?m)^id: .*$", f"id: {uuid.UUID(int=number + 99)}", WORDS)
        (folder / "mine" / f"words{number}.yml").write_text(text)

    run(["rule", "export", "--to", "opensearch"])

    said = capsys.readouterr().err.splitlines()
    assert sum(": words in any field" in line for line in said) == TOLD_MAX + 1
    assert "not expressible: 3 more: words in any field: the record itself" in said[-2]


def test_the_command_writes_the_named_rules_alone_and_then_leaves_with_0(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["rule", "export", "mine/rule.yml", "--to", "opensearch", "--as", "monitors"])

    given = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [one["name"] for one in given["monitors"]] == ["SIGMA - Login by a stranger"]
    assert given["not_expressible"] == []


def test_the_command_writes_nothing_for_a_rule_that_is_off(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = folder / "cityward.toml"
    off = 'off = ["00000000-0000-4000-8000-000000000001"]\n[lists]'
    settings.write_text(settings.read_text().replace("[lists]", off))

    run(["rule", "export", "--to", "opensearch"])

    assert json.loads(capsys.readouterr().out)["queries"] == []


def test_the_command_writes_nothing_for_a_rule_that_a_person_switched_off(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config.load(folder / "cityward.toml")
    with closing(assembly.db_of(settings, from_settings(settings), lambda: START)) as db:
        off = Switch("00000000-0000-4000-8000-000000000001", False, "too loud", "a.ana", START)
        assert db.accounts.switch(off)

    run(["rule", "export", "--to", "opensearch"])

    assert json.loads(capsys.readouterr().out)["queries"] == []


def test_the_command_takes_rules_from_elsewhere_and_names_those_that_cannot_be_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder / "others"
    other.mkdir()
    (other / "one.yml").write_text(RULE.replace("-000000000001", "-0000000000aa"))
    (other / "bad.yml").write_text("title: Bad\ndetection: {}\n")

    code = run(["rule", "export", "others", "--to", "opensearch"])

    said = capsys.readouterr()
    assert code == 7
    assert len(json.loads(said.out)["queries"]) == 1
    assert "refused: others/bad.yml:" in said.err
