"""Files in, rules out: filters, lint, ATT&CK, and documents that mean harm."""

from __future__ import annotations

import sys
import time
from datetime import date, timedelta
from pathlib import Path

import pytest

from cityward.errors import RuleError
from cityward.event import LogSource
from detectors.sigma import attack
from detectors.sigma.engine import Engine
from detectors.sigma.lint import UNSEEN_MAX, check, problems_of, unseen
from detectors.sigma.load import load_folder, load_text, rule_files
from tests.detectors.sigma.city import HEAD, START, engine, event, reasons, rule_of

OT = LogSource(category="ot_protocol", service="test")
RULE = (
    "title: Write\nname: write\nid: 11111111-1111-4111-8111-111111111111\n"
    "logsource: {category: ot_protocol, service: test}\nlevel: high\n"
    "detection: {s: {ot.operation: write}, condition: s}\n"
)
FILTER = (
    "title: The historian\nlogsource: {category: ot_protocol}\n"
    "cityward: {reason: it writes at night, expires: 2026-06-01}\n"
    "filter: {rules: [write], s: {source.ip: 10.0.0.5}, condition: not s}\n"
)


def sources(one: Engine, day: date | None = None) -> list[str]:
    at_s = 0.0 if day is None else (day - START.date()).total_seconds()
    seen = [
        event(at_s, OT, ot__operation="write", source__ip=source)
        for source in ("10.0.0.5", "10.0.0.6")
    ]
    return [finding.fields["source.ip"] for finding in one.detect(seen)]


def test_a_filter_takes_out_what_it_names() -> None:
    assert sources(engine(f"{RULE}---\n{FILTER}")) == ["10.0.0.6"]


def test_filter_read_as_and_not() -> None:
    """A filter's condition is ANDed as written: one without `not` keeps only what it names."""
    rules = load_text(f"{RULE}---\n{FILTER.replace('not s', 's')}")

    assert reasons(rules) == ["11: the filter lacks `not`: it would keep only what it names"]
    assert sources(Engine(rules)) == ["10.0.0.5", "10.0.0.6"]


def test_a_filter_ends_on_the_day_it_expires() -> None:
    one = engine(f"{RULE}---\n{FILTER}")

    assert sources(one, date(2026, 5, 31)) == ["10.0.0.6"]
    assert sources(one, date(2026, 6, 1)) == ["10.0.0.5", "10.0.0.6"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("reason: it writes at night, ", "", "the filter has no reason (cityward: {reason: …})"),
        (", expires: 2026-06-01", "", "the filter never expires (cityward: {expires: …})"),
        ("[write]", "[wrote, write]", "the filter binds to nothing: no rule wrote"),
        (
            "category: ot_protocol",
            "category: flow",
            "the filter binds to nothing: no such rule has its log source",
        ),
        ("[write]", "[many, write]", "many is a correlation; filter its rules"),
    ],
)
def test_a_filter_that_does_not_hold_up_is_refused(old: str, new: str, reason: str) -> None:
    many = (
        "title: Many\nname: many\n"
        "correlation: {type: event_count, rules: write, timespan: 1m, condition: {gte: 5}}\n"
    )

    rules = load_text(f"{RULE}---\n{many}---\n{FILTER.replace(old, new)}")

    assert [one.partition(": ")[2] for one in reasons(rules)] == [reason]
    assert rules.filters == ()


def test_a_filter_for_any_rule_has_its_log_source_and_its_placeholders() -> None:
    text = FILTER.replace("[write]", "any").replace(
        "{source.ip: 10.0.0.5}", "{source.ip|expand: '%quiet%'}"
    )

    assert sources(engine(f"{RULE}---\n{text}", {"quiet": ["10.0.0.6"]})) == ["10.0.0.5"]
    assert engine(f"{RULE}---\n{text}").states()[0].reason == "needs %quiet%"


def test_technique_ids_of_version_18_are_put_into_version_19() -> None:
    meaning = attack.read_tags(["attack.t0855", "attack.impair-process-control", "attack.s0604"])

    assert meaning == attack.Meaning(("T1692.001",), ("TA0106",), "attack-ics")


def test_tactics_follow_from_techniques_where_none_is_named() -> None:
    assert attack.read_tags(["attack.t1486"]).tactics == ("TA0040",)
    assert attack.read_tags(["attack.t1486"]).framework == "attack-enterprise"
    assert attack.read_tags(["attack.t9999", "tlp.red"]).unknown == ("t9999",)
    assert attack.technique_name("T1692.001") != ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a\n", "1: the document is no mapping"),
        ("title: T\n", "1: the document has no detection, correlation, filter or cw_absence"),
        (
            f"{HEAD}action: global\ndetection: {{s: {{f: 1}}, condition: s}}\n",
            "4: `action` collections are deprecated",
        ),
        (f"{HEAD}detection: {{s: {{f: 1}}}}\n", "4: the condition is missing"),
        (f"{HEAD}detection: {{s: {{}}, condition: s}}\n", "4: the selection is empty"),
        (f"{HEAD}detection: {{s: , condition: s}}\n", "4: the selection is empty"),
        (f"{HEAD}detection: {{s: {{1: x}}, condition: s}}\n", "4: field 1 is no text"),
        (f"{HEAD}id: x\ndetection: {{s: {{f: 1}}, condition: s}}\n", "4: 'x' is no UUID"),
        (
            f"{HEAD}cityward: {{sentense: x}}\ndetection: {{s: {{f: 1}}, condition: s}}\n",
            "4: Object contains unknown field `sentense`",
        ),
        (
            "title: T\ndetection: {s: {f: 1}, condition: s}\n",
            "1: `logsource` is missing or no mapping",
        ),
        (
            "title: T\nlogsource: {definition: x}\ndetection: {s: {f: 1}, condition: s}\n",
            "2: the log source names no category, product or service",
        ),
        (
            "title: T\nlogsource: {service: x}\nlevel: bad\ndetection: {s: {f: 1}, condition: s}\n",
            "3: 'bad' is no level",
        ),
        (
            "logsource: {service: x}\ndetection: {s: {f: 1}, condition: s}\n",
            "1: the title is missing",
        ),
    ],
)
def test_a_faulty_document_is_refused_with_its_line(text: str, reason: str) -> None:
    assert reasons(load_text(text)) == [reason]


def test_an_id_is_used_once() -> None:
    assert reasons(load_text(f"{RULE}---\n{RULE}")) == [
        "10: id 11111111-1111-4111-8111-111111111111 is already used at <text>:3"
    ]


def test_a_folder_loads_without_samples_and_pipelines(tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "map.yml").write_text("transformations: []\n")
    (tmp_path / "write.yml").write_text(RULE)
    (tmp_path / "write.test.yml").write_text("cases: []\n")
    (tmp_path / "bad.yml").write_text("title: [\n")

    rules = load_folder(tmp_path)

    assert [rule.title for rule in rules.rules] == ["Write"]
    assert [error.where for error in rules.refused] == [f"{tmp_path / 'bad.yml'}:2"]
    assert all(isinstance(error, RuleError) for error in rules.refused)


def test_files_come_before_folders_and_neither_hidden_ones_nor_circles(tmp_path: Path) -> None:
    for name in ("b.yml", "a/z.yaml", "a/y.yml", "c/x.yml", ".hidden/h.yml", ".h.yml", "a/n.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(RULE)
    for name in ("a/W.YAML", "a/W.test.YML"):
        (tmp_path / name).write_text(RULE)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "c" / "self.yml").symlink_to(tmp_path / "c" / "self.yml")
    (tmp_path / "c" / "other.yml").symlink_to(tmp_path / "b.yml")

    assert [*rule_files(tmp_path)] == [
        tmp_path / name
        for name in ("b.yml", "a/W.YAML", "a/y.yml", "a/z.yaml", "c/other.yml", "c/x.yml")
    ]
    assert [*rule_files(tmp_path / "a" / "y.yml")] == [tmp_path / "a" / "y.yml"]
    assert [*rule_files(tmp_path / "nowhere")] == []


# --- Documents that mean harm ------------------------------------------------------------------


def test_an_exponential_regex_runs_in_linear_time() -> None:
    one = engine(rule_of("  s: {f|re: '^(a+)+$'}\n  condition: s\n"))

    assert list(one.detect([event(f="a" * 100_000 + "b")])) == []


def test_many_wildcards_run_in_linear_time() -> None:
    one = engine(rule_of(f"  s: {{f: '{'*a' * 200}*b'}}\n  condition: s\n"))
    two = engine(rule_of(f"  s: {{f: '{'*a?' * 100}*b'}}\n  condition: s\n"))

    assert list(one.detect([event(f="a" * 100_000)])) == []
    assert list(two.detect([event(f="a" * 100_000)])) == []


@pytest.mark.parametrize(
    "text",
    [
        "title: " + "x" * 10_000_000,
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "[" * 100_000,
        "a: {" * 5_000,
        "\x00",
        rule_of(f"  s: {{f: 1}}\n  condition: {'(' * 5000}s{')' * 5000}\n"),
        rule_of(f"  s: {{f: 1}}\n  condition: {'not ' * 5000}s\n"),
        rule_of(f"  s: {{f: 1}}\n  condition: s{' and s' * 50_000}\n"),
        rule_of(f"  s: {{f|windash|base64: '{' -a' * 10}'}}\n  condition: s\n"),
        rule_of(f"  s: {{f|re: '{'(a{0,999}){0,999}' * 3}'}}\n  condition: s\n"),
        rule_of(
            "".join(f"  a{n}: {{f|windash|base64: -a -b -c -d -e{n}}}\n" for n in range(999))
            + "  condition: 1 of a*\n"
        ),
        rule_of(
            "".join(f"  a{n}: {{f|re: 'a{{999}}{n}'}}\n" for n in range(2000))
            + "  condition: 1 of a*\n"
        ),
        rule_of(
            "".join(f"  a{n}: {{f: {n}}}\n" for n in range(5_000))
            + f"  condition: {' or '.join(f'1 of a{n}*' for n in range(5_000))}\n"
        ),
        rule_of(
            "".join(f"  a{n}: {{f: {n}}}\n" for n in range(5_000))
            + f"  condition: {' or '.join(['1 of a*'] * 5_000)}\n"
        ),
        rule_of("  s: {f: " + "1" + ":1" * 50_000 + "}\n  condition: s\n"),
        rule_of("  s: {f: '*" + "a?" * 101 + "b*'}\n  condition: s\n"),
        rule_of("  s: {f|windash|contains: '" + " -a" * 101 + "'}\n  condition: s\n"),
    ],
    ids=[
        "10 MB",
        "aliases",
        "deep list",
        "deep map",
        "null",
        "brackets",
        "nots",
        "long",
        "dashes",
        "repeats",
        "many dashes",
        "many repeats",
        "many patterns",
        "one pattern often",
        "sixties",
        "single letters",
        "dashes of any kind",
    ],
)
def test_a_hostile_document_is_refused(text: str) -> None:
    start_s = time.process_time()

    rules = load_text(text)

    assert len(rules.refused) == 1
    assert rules.refused[0].where.startswith("<text>")
    assert rules.rules == ()
    assert time.process_time() - start_s < 20


def test_a_chain_of_thousands_of_correlations_is_bound_in_linear_time() -> None:
    """Written from its end, so that each builds on the one behind it."""
    chain = "---\n".join(
        f"title: T\nname: n{number}\ncorrelation: {{type: event_count, rules: n{number + 1}, "
        "timespan: 1m, condition: {gte: 2}}\n"
        for number in range(3_000)
    )
    last = rule_of("  s: {f: 1}\n  condition: s\n").replace("title: T", "title: T\nname: n3000")

    rules = load_text(f"{chain}---\n{last}")

    assert rules.refused == ()
    assert [one.name for one in rules.correlations][:2] == ["n2999", "n2998"]
    assert len(rules.correlations) == 3_000


def test_a_circle_of_thousands_is_refused_and_each_is_named() -> None:
    circle = "---\n".join(
        f"title: T\nname: n{number}\ncorrelation: {{type: event_count, "
        f"rules: n{(number + 1) % 1_000}, timespan: 1m, condition: {{gte: 2}}}}\n"
        for number in range(1_000)
    )

    rules = load_text(circle)

    assert rules.correlations == ()
    assert len({one.where for one in rules.refused}) == 1_000


def test_a_hundred_thousand_values_are_one_look_up() -> None:
    values = ", ".join(f"v{number}" for number in range(100_000))
    one = engine(rule_of(f"  s: {{f: [{values}]}}\n  condition: s\n"))

    found = list(one.detect([event(f=f"V{number}") for number in range(99_990, 100_010)]))

    assert len(found) == 10


def test_placeholders_that_multiply_are_refused() -> None:
    text = rule_of("  s: {f|expand: '%a%%a%%a%'}\n  condition: s\n")

    state = engine(text, {"a": [str(number) for number in range(100)]}).states()[0]

    assert state.state == "refused"


ODD = [10**5000, float("inf"), float("nan"), "\ud800", b"\xff", {"a": {"b": [[1]]}}, [None]]


@pytest.mark.parametrize("value", [*ODD, object()], ids=range(8))
def test_odd_values_stop_nothing(value: object) -> None:
    lines = [
        "f: a",
        "f|contains: a",
        "f|re: a",
        "f|gt: 1",
        "f|cidr: 10.0.0.0/8",
        "f|hour: 1",
        "f|fieldref: f",
        "f: 1",
        "f: 'a?'",
        "f|cased: a",
    ]
    text = "---\n".join(rule_of(f"  s: {{{line}}}\n  condition: s\n") for line in lines)
    one = engine(text + "---\n" + rule_of("  s: [word]\n  condition: s\n"))

    list(one.detect([event(f=value), event(f="a")]))

    assert [state.faults for state in one.states()] == [0] * 11
    assert one.states()[0].matches == 1


def test_deep_nesting_in_an_event_is_bounded() -> None:
    deep: dict[str, object] = {"x": 1}
    for _ in range(5_000):
        deep = {"x": deep}

    assert list(engine(rule_of("  s: {f: 1}\n  condition: s\n")).detect([event(f=deep)])) == []


# --- Lint --------------------------------------------------------------------------------------

GOOD = (
    "title: Write from a stranger\nid: 11111111-1111-4111-8111-111111111111\n"
    "description: A host wrote.\nauthor: A. Nybody\ntaxonomy: cityward\n"
    "tags: [attack.t0836]\nfalsepositives: [a new engineering host]\n"
    "logsource: {category: ot_protocol, service: modbus}\nlevel: high\n"
    "detection:\n  s:\n    ot.operation: write\n  condition: s\n"
    "cityward:\n  sentence: '{source.ip} wrote'\n"
)
SAMPLES = """
cases:
  - {name: m1, kind: must match, events: [{ot.operation: write}]}
  - {name: m2, kind: must match, collector: packets, frames: [{hex: "00 01"}]}
  - {name: n, kind: near miss, events: [{ot.operation: read}]}
  - {name: o1, kind: ordinary, events: [{ot.operation: read}]}
  - {name: o2, kind: ordinary, events: [{ot.operation: diagnose}]}
"""


def problems(folder: Path, rule: str, samples: str | None = SAMPLES) -> list[str]:
    (folder / "write.yml").write_text(rule)
    if samples is not None:
        (folder / "write.test.yml").write_text(samples)
    return [str(one).replace(f"{folder}/", "") for one in check(folder)]


def test_a_good_rule_has_no_problems(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD) == []


def test_a_character_that_nobody_sees_is_told_with_its_line(tmp_path: Path) -> None:
    hidden = "\ufeff" + GOOD.lstrip("\n") + "# \u202e a\tb \u200b \u202e\n"
    line = hidden.count("\n")

    told = [one for one in problems(tmp_path, hidden) if "invisible" in one]

    assert [one.partition(".yml:")[2] for one in told] == [
        f"{line}: warning: an invisible character U+200B, zero width space",
        f"{line}: warning: an invisible character U+202E, right-to-left override",
    ]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "ot.operation: write",
            "ot.operatoin: write",
            "write.yml:12: error: ot.operatoin is no field of the table",
        ),
        ("{source.ip}", "{source.pi}", "write.yml:15: error: source.pi is no field of the table"),
        ("id: 11111111-1111-4111-8111-111111111111\n", "", "write.yml:1: error: `id` is missing"),
        ("level: high\n", "", "write.yml:1: error: `level` is missing"),
        (
            "t0836",
            "t0999",
            "write.yml:6: error: t0999 is unknown to ATT&CK "
            "attack-ics 19.1 and attack-enterprise 19.1",
        ),
        ("t0836", "t0855", "write.yml:6: warning: T0855 is T1692.001 now"),
        (
            "Write from a stranger",
            "W" * 46,
            "write.yml:1: warning: the title has 46 characters, more than 45",
        ),
        (
            "  condition: s",
            "  t: {ot.unit: 1}\n  condition: s",
            "write.yml:13: warning: no condition uses the selection t",
        ),
        ("condition: s", "condition: x", "write.yml:13: error: selection 'x' is not defined"),
        (
            "level: high",
            "level: high\nstatus: fine",
            "write.yml:10: warning: 'fine' is none of "
            "deprecated, experimental, stable, test, unsupported",
        ),
        (
            "level: high",
            "level: high\ndate: 5th of May",
            "write.yml:10: warning: date is no day like 2026-01-31",
        ),
        ("author: A. Nybody", "author: 7", "write.yml:4: warning: author is no text"),
        (
            "[a new engineering host]",
            "a host",
            "write.yml:7: warning: falsepositives is no list",
        ),
        (
            "ot.operation: write",
            "ot.operation: '*write*'",
            "write.yml:10: warning: String contains wildcards at beginning and end instead of "
            "being modified with contains modifier (detection item ot.operation)",
        ),
        (
            "ot.operation: write",
            "ot.operation: [read, 010]",
            "write.yml:12:26: warning: `010` is read as the number 8; write '010' if the text is "
            "meant",
        ),
        (
            "ot.operation: write",
            "'@timestamp|hour': [23, 24]",
            "write.yml:12: warning: no hour is 24: there are 0 to 23",
        ),
        (
            "condition: s",
            "condition: all of them",
            "write.yml:13: warning: Rule refers to 'them' but has only one condition",
        ),
    ],
)
def test_a_problem_is_named_with_its_line(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert problem in problems(tmp_path, GOOD.replace(old, new))


def test_what_can_never_hold_is_told_of_filters_and_correlations_too(tmp_path: Path) -> None:
    many = (
        "title: Many\nname: many\n"
        "correlation:\n  type: event_count\n  rules: write\n  timespan: 1m\n"
        "  condition: {gte: 0x10, lt: 010}\n"
    )
    tuned = FILTER.replace("s: {source.ip: 10.0.0.5}", "s: {source.ip: 010, source.ip|neq: 8}")
    text = f"{RULE}---\n{many}---\n{tuned}"

    said = [one for one in problems(tmp_path, text) if "never hold" in one or "is read" in one]

    assert said == [
        "write.yml:14: warning: this can never hold: the limits exclude each other",
        "write.yml:14:30: warning: `010` is read as the number 8; write 10 if that is meant",
        "write.yml:19: warning: this can never hold: `source.ip` beside it excludes the same",
        "write.yml:19:41: warning: `010` is read as the number 8; write '010' if the text is meant",
    ]


def test_problems_stand_in_the_order_of_the_lines_and_columns(tmp_path: Path) -> None:
    values = ", ".join(["010"] * 9)
    places = [
        one.split(": ")[0] for one in problems(tmp_path, GOOD.replace("write\n", f"[{values}]\n"))
    ]

    assert [one for one in places if one.count(":") == 2] == [
        f"write.yml:12:{20 + 5 * number}" for number in range(9)
    ]


def test_of_one_text_only_so_many_values_are_told() -> None:
    values = ", ".join(["010"] * 2 * UNSEEN_MAX)

    assert len(unseen(f"detection: {{s: {{f: [{values}]}}}}\n", "f.yml")) == UNSEEN_MAX


def test_validators_of_pysigma_ask_nothing_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a rule check is made without the network")

    monkeypatch.setattr("socket.socket.connect", connect)

    assert problems(tmp_path, GOOD) == []


def test_what_pysigma_would_write_out_without_end_is_not_given_to_it(tmp_path: Path) -> None:
    dashes = f"user.name|windash: '{'-a ' * 60}'"

    said = problems(tmp_path, GOOD.replace("ot.operation: write", dashes))

    assert (
        "write.yml:10: warning: the validators of sigma-cli are not asked: the dashes stand for"
        " too many texts"
    ) in said


def test_without_pysigma_a_check_is_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sigma.validation", None)

    assert problems(tmp_path, GOOD.replace("operation: write", "operation: '*write*'")) == []


def test_missing_and_poor_samples_are_problems(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD, None) == ["write.test.yml: error: there are no samples"]
    assert problems(tmp_path, GOOD, "cases: []\n") == [
        "write.test.yml: error: 0 of at least 1 cases of kind 'near miss'",
        "write.test.yml: error: 0 of at least 2 cases of kind 'must match'",
        "write.test.yml: error: 0 of at least 2 cases of kind 'ordinary'",
        "write.test.yml: error: no 'must match' case is raw "
        "(records or frames through a collector)",
    ]


def test_rules_that_others_build_on_are_not_checked_themselves(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "write.yml").write_text(RULE)
    (tmp_path / "many.yml").write_text(
        "title: Many\ncorrelation: {type: event_count, rules: write, timespan: 1m, "
        "condition: {gte: 5}}\n"
    )

    found = check(tmp_path / "many.yml", tmp_path / "base")

    assert {one.where.rpartition("/")[2].partition(":")[0] for one in found} == {
        "many.yml",
        "many.test.yml",
    }


def test_rules_of_the_folder_that_one_is_in_are_checked_part_by_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "poor.yml").write_text(rule_of("  s: {f: 1}\n  condition: s\n"))
    monkeypatch.chdir(tmp_path)

    rules = load_folder(Path())

    assert [one.document.file for one in rules.rules] == ["part/poor.yml"]
    assert [*problems_of(rules, Path("part"))] == [*problems_of(rules, Path())] != []


def test_time_between_snapshots_does_not_matter_for_counts() -> None:
    before, after = engine(RULE), engine(RULE)
    sources(before)

    after.restore(before.snapshot())

    assert (after.states()[0].evaluated, after.states()[0].matches) == (2, 2)
    assert list(after.tick(START + timedelta(days=1))) == []
