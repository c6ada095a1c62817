"""Selections and modifiers: each with values that hold and values that do not."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cityward.event import LogSource
from detectors.sigma.lines import compile_item
from detectors.sigma.load import load_text
from detectors.sigma.matchers import Like, predicate_of
from detectors.sigma.plan import CLAUSES
from detectors.sigma.texts import DASHES, Sign, folded, normal
from detectors.sigma.view import View
from tests.detectors.sigma.city import HEAD, engine, event, reasons, rule_of

NOON = datetime(2026, 1, 5, 12, 30, tzinfo=UTC)


class _Absent:
    """The field is not there; the same words in every process, as xdist needs."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = _Absent()


def holds(key: str, wanted: Any, seen: Any, **placeholders: list[str]) -> bool:
    fields = {} if seen is ABSENT else {key.split("|", maxsplit=1)[0]: seen}
    return compile_item(key, wanted, placeholders).holds(View(fields))


CASES: list[tuple[str, Any, list[Any], list[Any]]] = [
    # modifiers, wanted, held by, not held by
    ("f", "Modbus", ["modbus", "MODBUS"], ["modbus ", "mod", "", None, ABSENT]),
    ("f", ["a", "b"], ["A", "b", ["x", "b"]], ["ab", [], ["x"], ABSENT]),
    ("f", "", [""], [" ", None, ABSENT]),
    ("f", None, [None, ABSENT, [], [None]], ["", 0, "null", ["x"]]),
    ("f", 42, [42, "42", 42.0, "42.0", [1, 42]], [43, "4", "42 ", True, None, ABSENT]),
    ("f", "42", [42, "42", 42.0], ["42.0", 43, ABSENT]),
    ("f", 1, [1, "1"], [True, "true"]),
    ("f", 2.5, [2.5, "2.5"], [2, "2,5"]),
    ("f", True, [True, "true", "True"], [False, 1, "1", ABSENT]),
    ("f", "*", ["x", "", 0, False], [None, ABSENT]),
    ("f", "a*", ["a", "ab", "a\nb"], ["ba"]),
    ("f", "*a", ["a", "ba"], ["ab"]),
    ("f", "*a*", ["a", "bab"], ["b"]),
    ("f", "a*b*c", ["abc", "a--b--c", "abbc"], ["ac", "acb", "xabc"]),
    ("f", "ab*ba", ["abba", "abxba"], ["aba"]),
    ("f", "a?c", ["abc", "aäc", "a\nc"], ["ac", "abbc"]),
    ("f", "46*", [4624, "4625"], [5462]),
    ("f", r"a\*c", ["a*c"], ["abc", r"a\c"]),
    ("f", r"a\?c", ["a?c"], ["abc"]),
    ("f", r"a\\*c", [r"a\bc", r"a\c"], ["abc", "a*c"]),
    ("f", r"C:\Windows", [r"c:\windows"], ["C:Windows"]),
    ("f", r"\\\\server", [r"\\server"], [r"\server"]),
    ("f|contains", "WIN", ["xwiny"], ["w in", ABSENT]),
    ("f|contains", ["a", "b"], ["xa", "bx"], ["x"]),
    ("f|contains|all", ["a", "b"], ["ba", "a b", ["a", "b"]], ["a", "b", ABSENT]),
    ("f|contains", "a*b", ["xaxbx"], ["ba"]),
    ("f|startswith", "a", ["ABC"], ["ba"]),
    ("f|startswith", 46, [4624, "46"], [5464]),
    ("f|endswith", ".exe", ["X.EXE"], [".exe.txt"]),
    ("f|cased", "Ab", ["Ab"], ["ab", "AB"]),
    ("f|contains|cased", "Ab", ["xAbx"], ["xabx"]),
    ("f|cased|startswith", "A?", ["Abc"], ["abc", "A"]),
    ("f|exists", True, ["x", None, ""], [ABSENT]),
    ("f|exists", False, [ABSENT], ["x", None]),
    ("f|neq", "a", ["b", "", ABSENT, None], ["A", ["b", "a"]]),
    ("f|neq", ["a", "b"], ["c", ABSENT], ["a", "b"]),
    ("f|contains|neq", "a", ["b"], ["bab"]),
    ("f|re", "^f.o$", ["foo"], ["Foo", "xfoo", "f\no", ABSENT]),
    ("f|re", "o+", ["foo"], ["f"]),
    ("f|re|i", "^foo$", ["FOO"], ["foo1"]),
    ("f|re|m", "^b$", ["a\nb\nc"], ["ab"]),
    ("f|re|s", "a.b", ["a\nb"], ["ab"]),
    ("f|re|i|m|s", "^A.b$", ["x\na\nB"], ["xa\nb"]),
    ("f|re", r"^\d+$", [42, "42"], ["x42"]),
    ("f|re", "a", ["\ud800a"], ["\ud800"]),
    ("f|base64", "foo", ["Zm9v"], ["Zm9vx", "foo"]),
    ("f|base64|contains", "foobar", ["x Zm9vYmFy x"], ["foobar"]),
    (
        "f|base64offset|contains",
        "/bin/bash",
        ["L2Jpbi9iYXNo", "IC9iaW4vYmFzaA==", "ICAvYmluL2Jhc2g=", "eDEvYmluL2Jhc2ggLWk="],
        ["/bin/bash", "L2Jpbg=="],
    ),
    ("f|base64offset|contains", "ä!", ["w6Qh", "IMOkIQ==", "ICDDpCE="], ["w6Q="]),
    ("f|wide|base64", "foo", ["ZgBvAG8A"], ["Zm9v"]),
    ("f|utf16le|base64", "foo", ["ZgBvAG8A"], ["Zm9v"]),
    ("f|utf16be|base64", "foo", ["AGYAbwBv"], ["ZgBvAG8A"]),
    ("f|utf16|base64", "foo", ["//5mAG8AbwA="], ["ZgBvAG8A"]),
    ("f|wide|base64offset|contains", "äb", ["5ABiAA=="], ["w6Ri"]),
    ("f|wide", "ab", ["a\0b\0"], ["ab"]),
    ("f|utf16le|base64offset|contains", "foo", ["ZgBvAG8A", "IGYAbwBvAA=="], ["Zm9v"]),
    ("f|utf16be|base64offset|contains", "foo", ["AGYAbwBv", "IABmAG8Abw=="], ["ZgBvAG8A"]),
    ("f|utf16|base64offset|contains", "foo", ["//5mAG8AbwA=", "IP/+ZgBvAG8A"], ["ZgBvAG8A"]),
    ("f|windash|wide|base64", "-a", ["LQBhAA==", "LwBhAA==", "EyBhAA=="], ["KwBhAA=="]),
    ("f|base64offset|contains|all", ["foo", "bar"], ["Zm9v YmFy"], ["Zm9v", "YmFy"]),
    ("f|contains|all|neq", ["a", "b"], ["a", ABSENT], ["ab"]),
    ("f|neq", 42, [43, "x", ABSENT], [42, "42", "42.0", 42.0]),
    ("f|neq", None, ["x", 0], [None, ABSENT]),
    ("f|neq", True, [False, "no", 1], [True, "true"]),
    ("f|all", ["a*", "*b"], ["ab", ["ax", "xb"]], ["a", "b"]),
    ("f", "*?*", ["a", "ab"], ["", ABSENT]),
    ("f", "?*b", ["ab", "xxb"], ["b"]),
    (
        "f|windash|contains",
        " -enc x",
        ["p -enc x", "p /enc x", "p \u2013enc x", "p \u2014enc x", "p \u2015enc x"],
        ["p enc x", "p +enc x", "p \u2010enc x"],
    ),
    ("f|contains|windash", "-a-b", ["/a-b"], ["/a/b"]),
    ("f|windash|base64", "-a", ["LWE=", "L2E=", "4oCTYQ=="], ["K2E="]),
    ("f|lt", 5, [4, "4.9", -1], [5, "x", True, None, ABSENT]),
    ("f|lte", 5, [5, "5.0"], [5.1]),
    ("f|gt", "5", [6, "5.1"], [5]),
    ("f|gte", 5.5, [5.5, "1e1"], [5, "nan", float("nan")]),
    ("f|gte", [10, 20], [10, 15], [9]),
    ("f|cidr", "10.0.0.0/8", ["10.1.2.3", "::ffff:10.0.0.1"], ["11.0.0.1", "x", "", ABSENT]),
    (
        "f|cidr",
        ["10.0.0.0/8", "192.168.0.0/16"],
        ["192.168.1.1", ["8.8.8.8", "10.0.0.1"]],
        ["8.8.8.8"],
    ),
    ("f|cidr", "::ffff:10.0.0.0/104", ["10.1.2.3", "::ffff:10.0.0.1"], ["11.0.0.1", "::1"]),
    ("f|cidr", "0.0.0.0/0", ["1.2.3.4"], ["::1", "x"]),
    ("f|cidr|neq", "10.0.0.0/8", ["11.0.0.1", "x", ABSENT], ["10.0.0.1"]),
    ("f|cidr", "2001:db8::/32", ["2001:DB8::1"], ["2001:db9::1", "10.0.0.1"]),
    ("f|minute", 30, [NOON, "2026-01-05T12:30:59+00:00"], ["12:30", 30, ABSENT]),
    ("f|hour", 12, [NOON, "2026-01-05T14:30:00+02:00"], ["2026-01-05T14:30:00Z"]),
    ("f|hour|gte", 12, [NOON], ["2026-01-05T11:59:59Z"]),
    ("f|day", 5, [NOON], ["2026-01-06"]),
    ("f|week", 2, [NOON], ["2026-01-04"]),
    ("f|month", [1, 2], [NOON], ["2026-03-01"]),
    ("f|year", 2026, [NOON], ["2025-12-31"]),
    ("f|hour|neq", 12, ["2026-01-05T11:00:00Z", ABSENT], [NOON]),
]


@pytest.mark.parametrize(
    ("key", "wanted", "held", "not_held"), CASES, ids=lambda one: str(one)[:40]
)
def test_modifier(key: str, wanted: Any, held: list[Any], not_held: list[Any]) -> None:
    assert [holds(key, wanted, seen) for seen in held] == [True] * len(held)
    assert [holds(key, wanted, seen) for seen in not_held] == [False] * len(not_held)


@pytest.mark.parametrize(
    ("key", "a", "b", "expected"),
    [
        ("a|fieldref", "x", "X", True),
        ("a|fieldref", 42, "42", True),
        ("a|fieldref", "x", "y", False),
        ("a|fieldref", ABSENT, ABSENT, False),
        ("a|fieldref", ["x", "y"], ["y"], True),
        ("a|fieldref|cased", "x", "X", False),
        ("a|fieldref|neq", "x", "y", True),
        ("a|fieldref|neq", "x", "x", False),
        ("a|fieldref|neq", ABSENT, "x", True),
        ("a|fieldref|contains", "abc", "B", True),
        ("a|fieldref|startswith", "abc", "a", True),
        ("a|fieldref|startswith", "abc", "b", False),
        ("a|fieldref|endswith", "abc", "c", True),
        ("a|endswith|fieldref", "abc", "b", False),
    ],
)
def test_two_fields_are_compared(key: str, a: Any, b: Any, expected: bool) -> None:
    fields = {name: value for name, value in (("a", a), ("b", b)) if value is not ABSENT}

    assert compile_item(key, "b").holds(View(fields)) is expected


@pytest.mark.parametrize(
    ("key", "wanted", "seen", "expected"),
    [
        ("f|expand", "%writers%", "10.0.0.2", True),
        ("f|expand", "%writers%", "10.0.0.3", False),
        ("f|expand|neq", "%writers%", "10.0.0.3", True),
        ("f|expand", "ip-%writers%-x", "ip-10.0.0.1-x", True),
        ("f|expand|startswith", "%writers%", "10.0.0.1:502", True),
        ("f|expand", "%stars%", "a*b", True),
        ("f|expand", "%stars%", "axb", False),
        ("f|expand|cidr", "%nets%", "10.9.0.1", True),
        ("f|cidr|expand", "%nets%", "192.0.2.1", True),
        ("f|cidr|expand", "%nets%", "11.0.0.1", False),
        ("f|re|expand", "^%stars%$", "a*b", True),
        ("f|re|expand", "^%stars%$", "aab", False),
        ("f", "%writers%", "%writers%", True),
        ("f|gt|expand", "%limit%", 6, True),
    ],
)
def test_placeholders_are_filled_in(key: str, wanted: str, seen: Any, expected: bool) -> None:
    site = {
        "writers": ["10.0.0.1", "10.0.0.2"],
        "stars": ["a*b"],
        "nets": ["10.0.0.0/8", "192.0.2.1"],
        "limit": ["5"],
    }

    assert holds(key, wanted, seen, **site) is expected


def test_a_missing_placeholder_leaves_the_rule_out_and_says_what_it_needs() -> None:
    text = rule_of("  s: {f|expand: '%writers%'}\n  condition: not s\n")

    for values in ({}, {"writers": []}):
        one = engine(text, values)

        assert list(one.detect([event(f="x")])) == []
        assert (one.states()[0].state, one.states()[0].reason) == (
            "not evaluated",
            "needs %writers%",
        )
    assert len(list(engine(text, {"writers": ["y"]}).detect([event(f="x")]))) == 1


def test_a_changed_placeholder_changes_the_rules_that_name_it_and_no_window() -> None:
    one = engine(rule_of("  s: {f|expand: '%writers%'}\n  condition: s\n"))
    assert list(one.detect([event(f="x")])) == []

    one.use_placeholders({"writers": ["x"]})

    assert len(list(one.detect([event(f="x")]))) == 1
    assert one.states()[0].state == "on"


def test_a_placeholder_of_a_wrong_kind_refuses_the_rule() -> None:
    text = rule_of("  s: {f|cidr|expand: '%nets%'}\n  condition: s\n")

    state = engine(text, {"nets": ["my net"]}).states()[0]

    assert state.state == "refused"
    assert "my net" in state.reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("f|colour: x", "unknown modifier 'colour'"),
        ("f|re: '(?=x)'", "invalid perl operator"),
        ("f|re: '(a)\\1'", "invalid escape sequence"),
        ("f|re: '('", "missing )"),
        ("f|re: 'a{5000}'", "invalid repetition size"),
        ("f|cidr: 10.0.0.1/8", "has host bits set"),
        ("f|cidr: x", "does not appear to be"),
        ("f|lt: x", "'x' is no number"),
        ("f|exists: 'yes'", "exists wants true or false"),
        ("f|exists|contains: true", "contains cannot stand with exists"),
        ("f|lt|gt: 5", "gt and lt exclude each other"),
        ("f|i: x", "i cannot stand with text"),
        ("f|contains|contains: x", "a modifier stands twice"),
        ("f|contains: null", "null cannot stand with contains"),
        ("f|base64: 'a*'", "wildcards cannot be encoded"),
        ("f|fieldref: 'a*'", "without wildcards"),
        ("f|re|cidr: x", "cidr cannot stand with re"),
        ("f: []", "f has an empty list of values"),
        ("f: {g: x}", "is no value"),
        ("f: [[x]]", "is no value"),
        ("'|exists': true", "exists needs a field"),
    ],
)
def test_a_faulty_line_is_refused_with_its_line(line: str, reason: str) -> None:
    refused = reasons(load_text(rule_of(f"  s:\n    {line}\n  condition: s\n")))

    assert len(refused) == 1
    assert refused[0].startswith("6: ")
    assert reason in refused[0]


def matches(detection: str, **fields: Any) -> bool:
    return bool(list(engine(rule_of(detection)).detect([event(**fields)])))


@pytest.mark.parametrize(
    ("condition", "a", "b", "expected"),
    [
        ("a", 1, 0, True),
        ("not a", 0, 0, True),
        ("a and b", 1, 0, False),
        ("a or b", 0, 1, True),
        ("a or b and not a", 1, 0, True),
        ("(a or b) and not a", 1, 0, False),
        ("not a and not b", 0, 0, True),
        ("not (a and b)", 1, 0, True),
        ("NOT a AND b", 0, 1, True),
        ("1 of them", 0, 1, True),
        ("any of them", 0, 0, False),
        ("all of them", 1, 1, True),
        ("all of them", 1, 0, False),
        ("1 of a*", 1, 0, True),
        ("1 of _*", 0, 0, True),
        ("not 1 of b*", 1, 1, False),
        ("[a, b]", 0, 1, True),
        ("[a, b]", 0, 0, False),
    ],
)
def test_condition(condition: str, a: int, b: int, expected: bool) -> None:
    detection = f"  a: {{f: 1}}\n  b: {{g: 1}}\n  _c: {{h: 0}}\n  condition: {condition}\n"

    assert matches(detection, f=a, g=b, h=0) is expected


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("x", "selection 'x' is not defined"),
        ("a and", "the condition ends too early"),
        ("(a", "a bracket of the condition is not closed"),
        ("a b", "'b' is not expected in the condition"),
        ("2 of a*", "`2 of` is no Sigma; write `1 of` or `all of`"),
        ("1 of z*", "`1 of z*` selects nothing"),
        ("a*", "pattern 'a*' needs `1 of` or `all of` before it"),
        ("a | count() > 5", "pipe aggregation is deprecated; write a correlation document"),
        ("'a # b'", "'#' is not expected in the condition"),
        ("''", "the condition is empty"),
    ],
)
def test_a_faulty_condition_is_refused_with_its_line(condition: str, reason: str) -> None:
    detection = f"  a: {{f: 1}}\n  b: {{g: 1}}\n  condition: {condition}\n"

    assert reasons(load_text(rule_of(detection))) == [f"7: {reason}"]


def test_a_timeframe_is_refused_with_its_line() -> None:
    text = rule_of("  a: {f: 1}\n  timeframe: 5m\n  condition: a\n")

    assert reasons(load_text(text)) == ["6: timeframe is deprecated; write a correlation document"]


def test_lists_of_mappings_are_alternatives_and_lines_of_a_mapping_all_count() -> None:
    detection = "  s:\n    - {f: 1, g: 1}\n    - {h: 1}\n    - word\n  condition: s\n"

    assert matches(detection, f=1, g=1)
    assert not matches(detection, f=1, g=2)
    assert matches(detection, h=1)
    assert matches(detection, x="a Word here")


def test_keyword_on_structured_events_ignored() -> None:
    """A keyword looks at every value of an event, whatever its field, and at the raw record."""
    one = "  k: [failed, denied]\n  condition: k\n"
    both = "  k:\n    '|all': [failed, denied]\n  condition: k\n"

    assert matches(one, event__reason="login FAILED")
    assert matches(one, cw__vendor={"deep": "failed"})
    assert not matches(one, cw__operator="failed")
    assert not matches(both, event__reason="login failed")
    assert matches(both, event__reason="login failed", x="denied")
    assert list(engine(rule_of(one)).detect([event(0, data=b"x failed")]))
    assert matches("  k: 4624\n  condition: k\n", x="event 4624")
    assert matches("  k:\n    '|re': 'f.*d'\n  condition: k\n", x="xfooood")


def test_42_is_not_unequal_to_its_text() -> None:
    assert matches("  s: {f: 42}\n  condition: s\n", f="42")
    assert matches("  s: {f: '42'}\n  condition: s\n", f=42)


def test_a_rule_needs_all_that_it_names_however_much_it_is() -> None:
    words = [f"w{number}" for number in range(2 * CLAUSES)]
    both = ["  s: {f|contains|all: [" + ", ".join(words) + "]}", "  t: {g: [x, y]}"]
    one = engine(rule_of("\n".join([*both, "  condition: s and t\n"])))

    fully = event(f=" ".join(words), g="y")
    lacking = [event(f=" ".join(w for w in words if w != word), g="x") for word in words]

    assert [place for place, _ in one.matched([*lacking, fully])] == [len(words)]


def test_missing_field_under_not() -> None:
    assert matches("  s: {f: 1}\n  condition: not s\n", g=1)


def test_two_dashes_instead_of_five() -> None:
    for dash in "-/\u2013\u2014\u2015":
        assert matches("  s: {f|windash|contains: ' -x'}\n  condition: s\n", f=f"a {dash}x")


def test_results_silently_cut_at_ten_rules() -> None:
    text = "---\n".join(
        rule_of("  s: {f: 1}\n  condition: s\n").replace("T\n", f"T{n}\n", 1) for n in range(25)
    )

    assert len(list(engine(text).detect([event(f=1)]))) == 25


def found_by(texts: Sequence[str], values: Sequence[Any]) -> list[list[str]]:
    """Of each value, in one batch, the titles of the rules that match: a letter each, from A."""
    titled = (text.replace("T\n", f"{chr(65 + n)}\n", 1) for n, text in enumerate(texts))
    one = engine("---\n".join(titled))
    found: list[list[str]] = [[] for _ in values]
    for place, rules in one.matched([event(f=value) for value in values]):
        found[place] = [rule.title for rule in rules]
    assert [state.faults for state in one.states()] == [0] * len(texts)
    return found


def of_field(line: str) -> str:
    """A rule of one line."""
    return rule_of(f"  s: {{{line}}}\n  condition: s\n")


def test_true_equals_1_equals_1_0() -> None:
    """They share a place in a dict: none may answer for another, whichever comes first."""
    rules = [of_field("f: true"), of_field("f: 1"), of_field("f|re: '^1'"), of_field("f: '1.0'")]
    wanted: dict[str, list[str]] = {
        "True": ["A"],
        "1": ["B", "C", "D"],
        "1.0": ["B", "C", "D"],
        "'1'": ["B", "C"],
        "'1.0'": ["B", "C", "D"],
        "'true'": ["A"],
    }

    for first in itertools.permutations([True, 1, 1.0, "1"]):
        values = [*first, "1.0", "true", *first]
        assert found_by(rules, values) == [wanted[repr(one)] for one in values]


def test_lists_are_unhashable() -> None:
    rules = [of_field("f: a"), of_field("f: null"), of_field("f|contains|all: [a, b]")]
    values = [["a", "x"], [], ["xa", ["b"]], [None], {"a": "b"}, [{"a": "b"}], "ab", ["a", "x"]]

    assert found_by(rules, values) == [["A"], ["B"], ["C"], ["B"], ["B"], ["B"], ["C"], ["A"]]


def test_backslash_z_differs() -> None:
    r"""`$` and `\z` are the very end, however the engine below reads them; `\Z` is refused."""
    rules = [of_field(r"f|re: 'ab$'"), of_field(r"f|re: 'ab\z'"), of_field("f|re|m: 'ab$'")]
    values = ["ab", "ab\n", "ab\r\n", "ab\nx", "x\nab"]

    assert found_by(rules, values) == [["A", "B", "C"], ["C"], [], ["C"], ["A", "B", "C"]]
    (refused,) = reasons(load_text(of_field(r"f|re: 'ab\Z'")))
    assert "invalid escape sequence" in refused


WILD = st.lists(st.sampled_from([Sign.MANY, Sign.ONE, Sign.DASH, "a", "-", "b.", "ä"]), max_size=7)


@settings(max_examples=2_000, deadline=None)
@given(WILD, st.lists(st.text("abA.-/\u2013äÄ\n", max_size=8), min_size=1, max_size=6))
def test_a_text_with_wildcards_is_like_what_its_expression_finds(
    signs: list[str | Sign], seen: list[str]
) -> None:
    text = normal(tuple(signs), cased=False)
    said = {Sign.MANY: ".*", Sign.ONE: ".", Sign.DASH: f"[{re.escape(DASHES)}]"}
    pattern = "".join(said[one] if isinstance(one, Sign) else re.escape(one) for one in text)
    says = predicate_of(Like(text))

    for one in seen:
        assert says(one) is (re.fullmatch(pattern, folded(one), re.DOTALL) is not None)


def test_non_ascii_and_control_characters_fold_differently() -> None:
    rules = [
        *(of_field(f"f|contains: {word}") for word in ("straße", "kelvin", "ss", "é")),
        of_field('f|contains: "a\\x01b"'),
        of_field('f|contains: "a\\x85b"'),
    ]
    values = [
        "STRASSE",
        "STRA\u1e9eE",
        "\u212aELVIN",
        "\u017fs",
        "É",
        "e\u0301",
        "A\x01B",
        "A\x85B",
    ]

    assert found_by(rules, values) == [["C"], ["A"], ["B"], [], ["D"], [], ["E"], ["F"]]


def test_a_sigma_is_the_same_letter_at_the_end_of_a_word_and_within_one() -> None:
    asked = ("f|contains: ΟΔΟΣ", "f|contains|cased: ΟΔΟΣ", "f|startswith: οδος", "f: ΟΔΟΣ")
    rules = [*map(of_field, asked), rule_of("  s: [ΟΔΟΣ]\n  condition: s\n")]
    values = ["xΟΔΟΣx", "ΟΔΟΣ", "οδος", "οδοσα", "ΟΔΟ"]

    found = [["A", "B", "E"], ["A", "B", "C", "D", "E"], ["A", "C", "D", "E"], ["A", "C", "E"], []]
    assert found_by(rules, values) == found


def test_nested_input_is_flattened_and_lists_match_if_a_member_does() -> None:
    detection = "  s: {a.b: x, a.c: 2}\n  condition: s\n"

    assert matches(detection, a={"b": ["y", "x"], "c": 2})
    assert matches(detection, a=[{"b": "x"}, {"c": 2}])
    assert not matches(detection, a={"b": "y", "c": 2})


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("{service: test}", True),
        ("{category: flow}", True),
        ("{category: flow, service: test}", True),
        ("{category: FLOW}", True),
        ("{product: zeek}", False),
        ("{category: flow, service: other}", False),
    ],
)
def test_negations_alone_match_what_is_not_routed_away(wanted: str, expected: bool) -> None:
    """A rule that is nothing but a negation sees only events of its log source."""
    text = rule_of("  s: {f: 1}\n  condition: not s\n").replace("{service: test}", wanted)
    seen = event(0, LogSource(category="flow", service="test"), f=2)

    assert bool(list(engine(text).detect([seen]))) is expected


def test_why_it_spoke_and_why_it_did_not() -> None:
    one = engine(rule_of("  s: {f: [a, b], g|gt: 5}\n  old: {h: x}\n  condition: s and not old\n"))

    found = next(iter(one.detect([event(f="A", g=7)])))
    not_found = one.explain(found.analytic.id, event(f="c", h="x"))

    assert [(c.field, c.wanted, c.saw, c.held, c.negated) for c in found.why.checks] == [
        ("f", "is one of a, b", "A", True, False),
        ("g", "is more than 5", "7", True, False),
        ("h", "is x", "(missing)", False, True),
    ]
    assert found.why.condition == "s and not old"
    assert [(c.field, c.saw, c.held, c.negated) for c in not_found.checks] == [
        ("f", "c", False, False),
        ("g", "(missing)", False, False),
        ("h", "x", True, True),
    ]


@pytest.mark.parametrize(
    ("condition", "fields", "lines"),
    [
        ("either and one", {"f": "a", "h": "x"}, ["h"]),  # the other way to hold it is no reason
        ("either and one", {"f": "c", "h": "c"}, ["f", "g"]),
        ("one and not either", {"h": "c", "g": "b"}, ["not g"]),
        ("one and not both", {"h": "c", "f": "a", "g": "b"}, ["not f", "not g"]),
        ("1 of e* and one", {"f": "a"}, ["h"]),
        ("not (one or both)", {"h": "c", "f": "a"}, ["not h"]),
        ("not (not one)", {"h": "x"}, ["h"]),
        ("either", {"f": "a"}, []),
    ],
)
def test_just_the_lines_that_keep_a_rule_silent_are_named(
    condition: str, fields: dict[str, str], lines: list[str]
) -> None:
    text = rule_of(
        "  either: [{f: a}, {g: b}]\n  both: {f: a, g: b}\n  one: {h: c}\n"
        f"  condition: {condition}\n"
    )
    one = engine(text)

    found = one.against(one.rules.rules[0], event(**fields))

    assert [f"{'not ' * line.negated}{line.field}" for line in found] == lines
    assert bool(lines) is not one.matches(one.rules.rules[0], event(**fields))


def test_a_filter_and_another_log_source_keep_a_rule_silent() -> None:
    text = rule_of("  one: {h: c}\n  condition: one\n")
    narrowed = f"""{text}---
title: Not x
id: 00000000-0000-4000-8000-0000000000ff
logsource: {{service: test}}
filter: {{rules: any, known: {{f: x}}, condition: not known}}
cityward: {{reason: ours, expires: 2100-01-01}}
"""
    one = engine(narrowed)
    rule = one.rules.rules[0]

    hidden = one.against(rule, event(h="c", f="x"))
    elsewhere = one.against(rule, event(0, LogSource(service="other"), h="c"))

    assert [(line.selection, line.negated) for line in hidden] == [("filter Not x: known", True)]
    assert [(line.selection, line.saw) for line in elsewhere] == [("logsource", "*/*/other")]


def test_each_line_of_a_trial_says_of_which_filter_it_is_and_no_finding_does() -> None:
    text = rule_of("  one: {h: c}\n  condition: one\n")
    ids = [f"00000000-0000-4000-8000-0000000000f{number}" for number in (1, 2)]
    for id, known in zip(ids, ("x", "y"), strict=True):
        text += f"""---
title: Not x
id: {id}
logsource: {{service: test}}
filter: {{rules: any, known: {{f: {known}}}, condition: not known}}
cityward: {{reason: ours, expires: 2100-01-01}}
"""
    one = engine(text)
    rule = one.rules.rules[0]

    why, hidden = one.explain(rule, event(h="c", f="y")), one.against(rule, event(h="c", f="y"))
    (found,) = one.detect([event(h="c", f="z")])

    assert [line.filter or "" for line in why.checks] == ["", *ids]
    assert [(line.selection, line.filter) for line in hidden] == [("filter Not x: known", ids[1])]
    assert [line.selection for line in found.why.checks][1:] == ["filter Not x: known"] * 2
    assert all("filter" not in one for one in msgspec.to_builtins(found.why)["checks"])


def test_the_sentence_names_values_and_leaves_out_what_is_missing() -> None:
    text = rule_of("  s: {f: 1}\n  condition: s\n") + (
        "cityward: {sentence: '{source.ip} wrote {ot.point.address}[, value {ot.value}].', "
        "impact: [loss_of_control], cause: malicious}\n"
    )
    one = engine(text)

    found = list(
        one.detect(
            [
                event(f=1, source__ip="10.0.0.9", ot__point__address=4001, ot__value=2.5),
                event(f=1, source__ip="10.0.0.9"),
            ]
        )
    )

    assert found[0].description == "10.0.0.9 wrote 4001, value 2.5."
    assert found[1].description == "10.0.0.9 wrote (unknown)."
    assert found[0].fields == {
        "source.ip": "10.0.0.9",
        "ot.point.address": 4001,
        "ot.value": 2.5,
    }
    assert found[0].group == (("source.ip", "10.0.0.9"),)
    assert (found[0].severity, found[0].impact, found[0].cause) == (
        "high",
        ("loss_of_control",),
        "malicious",
    )


def test_a_sentence_says_that_a_list_goes_on() -> None:
    text = rule_of("  s: {f: 1}\n  condition: s\n") + "cityward: {sentence: 'Doors {g}.'}\n"
    one = engine(text)

    found = list(one.detect([event(f=1, g=list(range(10))), event(f=1, g=list(range(11)))]))

    assert found[0].description == "Doors 0, 1, 2, 3, 4, 5, 6, 7, 8, 9."
    assert found[1].description == "Doors 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …."


def test_a_rule_knows_its_log_source_fields_and_matches() -> None:
    one = engine(rule_of("  s: {f: 1, g: 1}\n  condition: 1 of s\n"))

    assert one.states()[0].arriving is False
    list(one.detect([event(f=1), event(f=2)]))

    state = one.states()[0]
    assert (state.arriving, state.evaluated, state.matches, state.never_seen) == (
        True,
        2,
        0,
        ("g",),
    )


def test_many_rules_that_begin_with_the_time_of_an_event_are_asked() -> None:
    text = "\n---\n".join(
        rule_of(f"  s: {{'@timestamp': '2026-01-05T10:00:0{second}+00:00', f|contains: x}}\n")
        + "  condition: s\n"
        for second in range(10)
    )

    (found,) = engine(text).detect([event(3.0, f="axb"), event(20.0, f="axb")])

    assert found.events[-1].time.second == 3


def test_fields_are_compared_in_each_log_source_that_a_rule_is_for() -> None:
    given = [event(logsource=LogSource(product=name, service="test"), f=1, g=1) for name in "ab"]
    other = rule_of("  s: {h: 1}\n  condition: s\n").replace("{service", "{product: b, service")

    one = engine(rule_of("  s: {f|fieldref: g}\n  condition: s\n") + f"---\n{other}")

    assert len(list(one.detect(given))) == 2


def test_a_file_that_fails_is_named_and_the_rest_loads() -> None:
    rules = load_text(
        f"{HEAD}detection: {{s: {{f|x: 1}}, condition: s}}\n---\n"
        + rule_of("  s: {f: 1}\n  condition: s\n")
    )

    assert len(rules.rules) == 1
    assert reasons(rules) == ["4: unknown modifier 'x'"]


def test_a_field_that_another_is_compared_with_is_looked_at_too() -> None:
    one = engine(rule_of("  s: {source.ip|fieldref: destination.ip}\n  condition: s\n"))

    list(one.detect([event(source__ip="192.0.2.1")]))

    assert one.states()[0].never_seen == ("destination.ip",)
    list(one.detect([event(destination__ip="192.0.2.1")]))
    assert one.states()[0].never_seen == ()
