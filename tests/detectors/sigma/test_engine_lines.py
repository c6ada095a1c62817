"""Lines of JSON that are read no further than rules ask find what whole events find."""

from __future__ import annotations

import json
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.sigma import jsonlines, plan
from detectors.sigma.engine import Engine
from detectors.sigma.jsonlines import BROKEN, event_of
from detectors.sigma.load import load_text
from detectors.sigma.rule import RuleSet
from tests.detectors.sigma.city import START, rule_of
from tests.detectors.sigma.plain import Plain
from tests.detectors.sigma.test_engine_twin import FILTER, RULES, near, written

Said = list[tuple[int, list[str] | None]]


def read(rules: RuleSet, lines: Sequence[bytes], first_from: int = 1, wide_from: int = 24) -> Said:
    """Places of lines, and the rules that match or None, in their order.

    Args:
        rules: The rules.
        lines: Objects.
        first_from: A field that so many rules begin with is read first.
        wide_from: Lines of which so many members are asked are read whole.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "GATED_FROM", first_from)
        patch.setattr(jsonlines, "WIDE_FROM", wide_from)
        told = [*Engine(rules).matched_lines(lines, START)]
    said = ((place, None if found is None else [one.id for one in found]) for place, found in told)
    return sorted(said, key=itemgetter(0))


def walked(rules: RuleSet, lines: Sequence[bytes]) -> Said:
    """The same, of lines that are read whole."""
    plain = Plain(rules)
    said: Said = []
    for place, line in enumerate(lines):
        try:
            matched: list[str] | None = plain.matched(event_of(line, START))
        except BROKEN:
            matched = None
        if matched != []:
            said.append((place, matched))
    return said


def rule(detection: str, logsource: str = "{service: test}") -> str:
    """One rule."""
    return (
        "title: T\nid: 00000000-0000-4000-8000-000000000001\n"
        f"logsource: {logsource}\ndetection: {detection}\n"
    )


# --- By hand -----------------------------------------------------------------------------------


def test_a_broken_line_is_told_and_the_next_is_read() -> None:
    rules = load_text(rule("{a: {f: evil}, condition: a}"))
    whole = b'{"service":"test","f":"evil"}'
    broken = [
        *(b"", b"\n", b"no json", b"[1]", b"null", b'{"f":"evil"', whole + b"}", b'{"f":"\xff"}'),
        *(b'{"service":"test","f":"\\x"}', b'{"service":"test","f":"\xff"}', b'{"f":1e999}'),
        b'{"service":"test","f":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    ]

    assert read(rules, [*broken, whole]) == [
        *((place, None) for place in range(len(broken))),
        (len(broken), ["00000000-0000-4000-8000-000000000001"]),
    ]


def test_what_no_rule_asks_does_not_break_a_line() -> None:
    rules = load_text(rule("{a: {f: evil}, condition: a}"))

    ((place, said),) = read(rules, [b'{"service":"test","f":"evil","x":"\xff","y":1e999}'])

    assert (place, said) == (0, ["00000000-0000-4000-8000-000000000001"])


KEYWORDS = [
    (r"['evil']", rb'"x":"an EVIL text"'),
    (r"['evil']", rb'"x":"\u0065vil"'),
    (r"['evil']", rb'"x":{"y":["evil"]}'),
    (r"['kelvin']", '"x":"\u212aelvin"'.encode()),
    (r"['kelvin']", rb'"x":"\u212Aelvin"'),
    ("['i\u0307']", '"x":"\u0130"'.encode()),
    (r"['a/b']", rb'"x":"a\/b"'),
    (r"""['a\b']""", rb'"x":"a\\b"'),
    (r"""['a"b']""", rb'"x":"a\"b"'),
    (r"""["a\tb"]""", rb'"x":"a\tb"'),
    (r"['äevil']", rb'"x":"\u00c4EVIL"'),
    (r"['1000']", rb'"x":1e3'),
    (r"['true']", rb'"x":true'),
    (r"{'|re': ['ev.l']}", rb'"x":"evil"'),
]


@pytest.mark.parametrize("word", ["2026-01-05T10", ":00:0", "-05T1", "01"])
def test_a_keyword_is_found_in_the_time_that_a_line_has_not_itself(word: str) -> None:
    rules = load_text(rule(f"{{a: ['{word}'], condition: a}}"))

    assert [place for place, _ in read(rules, [b'{"service":"test"}'])] == [0]


@pytest.mark.parametrize(("words", "member"), KEYWORDS)
def test_a_keyword_is_found_however_the_line_writes_it(words: str, member: bytes) -> None:
    rules = load_text(rule(f"{{a: {words}, condition: a}}"))
    line = b'{"service":"test",' + member + b"}"
    other = b'{"service":"test","x":"of no interest"}'

    assert rules.refused == ()
    assert [place for place, _ in read(rules, [other, line])] == [1]
    assert read(rules, [other, line]) == walked(rules, [other, line])


NUMEROUS = "{" + ", ".join(f"f{number}: x" for number in range(30)) + "}"
"""So many fields are asked that lines are read whole, and their keywords told by what they have."""
NAMED = [
    *(
        b'"x":"an EVIL text"',
        b'"evil":"x"',
        b'"x":{"evil":1}',
        b'"x":["evil"]',
        b'"x":"\\u0065vil"',
    ),
    *(b'"x":"x","Evil x":"y"', b'"evil":1,"x":"evil"', b'"x":"\\nevil"', b'"x":"evi","y":"l"'),
    *(b'"x":true', b'"x":"true"', b'"x":[1, 2]', b'"x":"1, 2"', b'"x":"a{evil}"', b'"f3":["evil"]'),
    *(b'"x":"evil","x":"y"', b'"x":"evil","\\u0078":"y"', b'"x":["evil"],"x":1', b'"x":"nevil"'),
    *(b'"cw":"evil"', b'"cw.x":"evil"', '"x":"ev\u0130l"'.encode()),
]


@pytest.mark.parametrize("word", ["evil", "true", "1, 2", "nevil"])
def test_a_keyword_is_told_from_a_name_and_from_what_stands_between(word: str) -> None:
    rules = load_text(rule(f"{{a: ['{word}'], b: {NUMEROUS}, condition: a or b}}"))
    lines = [b'{"service":"test",' + member + b"}" for member in NAMED]

    assert read(rules, lines) == walked(rules, lines)
    assert read(rules, lines) != []


MEMBERS = [
    *(b'"f":"evil"', b'"\\u0066":"evil"', b'"f":"x","f":"evil"', b'"f":["x","evil"]'),
    *(b'"cw":{"vendor":{"f":"evil"}}', b'"cw.vendor":{"f":"evil"}', b'"cw.vendor.f":"evil"'),
    *(b'"\\u0063w.vendor.f":"evil"', b'"f":"\\u0065vil"'),
]


@pytest.mark.parametrize("member", MEMBERS)
def test_a_field_is_found_however_the_line_names_it(member: bytes) -> None:
    rules = load_text(rule("{a: {f|startswith: evil}, condition: a}"))

    assert [place for place, _ in read(rules, [b'{"service":"test",' + member + b"}"])] == [0]


@pytest.mark.parametrize(
    "member", [b'"n.m.f":"evil"', b'"n":{"m.f":"evil"}', b'"n":[{"m":{"f":"evil"}}]']
)
def test_a_nested_field_is_found(member: bytes) -> None:
    rules = load_text(rule("{a: {n.m.f|startswith: evil}, condition: a}"))

    assert [place for place, _ in read(rules, [b'{"service":"test",' + member + b"}"])] == [0]


def test_a_nested_field_is_found_that_many_rules_begin_with() -> None:
    text = "---\n".join(
        f"title: T{number}\nlogsource: {{service: test}}\n"
        f"detection: {{a: {{n.m.id: {number}, g|contains: evil}}, condition: a}}\n"
        for number in range(10)
    )
    ids = (b'"n.m.id":3', b'"n":{"m.id":3}', b'"n":[{"m":{"id":3}}]', b'"n.m":{"id":3}')
    lines = [b'{"service":"test","g":"evil",' + member + b"}" for member in ids]

    for wide_from in (0, 24):
        assert [place for place, _ in read(load_text(text), lines, 8, wide_from)] == [0, 1, 2, 3]


@pytest.mark.parametrize("first_from", [1, 8])
def test_what_a_line_names_its_log_source_with_is_a_field_as_well(first_from: int) -> None:
    rules = load_text(rule("{a: {service: test, f: evil}, condition: a}", "{product: p}"))
    sources = (
        b'"service":"test"',
        b'"service":"TEST"',
        b'"service":"other"',
        b'"service":["test"]',
    )
    lines = [b'{"product":"p","f":"evil",' + source + b"}" for source in sources]

    assert [place for place, _ in read(rules, lines, first_from)] == [0, 1, 3]


def test_a_number_a_flag_and_a_text_stay_what_they_are() -> None:
    rules = load_text(rule("{a: {f: 1}, b: {f: true}, condition: a and not b}"))
    values = (b"1", b"true", b"1.0", b'"1"', b'"true"', b"1e0", b"10e-1", b"false")
    lines = [b'{"service":"test","f":' + value + b"}" for value in values]

    assert read(rules, lines) == walked(rules, lines)
    assert [place for place, _ in read(rules, lines)] == [0, 2, 3, 5, 6]


def test_lines_count_as_events_do() -> None:
    sigma = Engine(load_text(rule("{a: {f: evil}, condition: a}")))
    lines = [b'{"service":"test","f":"evil"}', b'{"service":"test","f":{"g":1}}', b"", b"{}"]

    assert len([*sigma.matched_lines(lines * 400, START)]) == 800

    (state,) = sigma.states()
    assert (state.evaluated, state.matches) == (800, 400)


def test_lines_follow_a_change_of_placeholders() -> None:
    sigma = Engine(load_text(rule("{a: {f|expand: '%who%'}, condition: a}")), {"who": ["evil"]})
    lines = [b'{"service":"test","f":"evil"}', b'{"service":"test","f":"worse"}']

    before = [place for place, _ in sigma.matched_lines(lines, START)]
    sigma.use_placeholders({"who": ["worse"]})

    assert before == [0]
    assert [place for place, _ in sigma.matched_lines(lines, START)] == [1]


def test_lines_follow_when_a_field_is_no_more_read_first() -> None:
    text = "\n---\n".join(
        f"title: T{number}\nlogsource: {{service: test}}\n"
        f"detection: {{a: {{f: {number}, g|contains: evil}}, condition: a}}\n"
        for number in range(10)
    )
    other = rule("{a: {f|expand|contains: '%who%'}, condition: a}", "{service: other}")
    sigma = Engine(load_text(f"{text}---\n{other}"))
    line = b'{"service":"test","f":3,"g":"evil"}'

    before = [place for place, _ in sigma.matched_lines([line], START)]
    sigma.use_placeholders({"who": ["worse"]})  # now a word has to be looked for in it

    assert before == [0]
    assert [place for place, _ in sigma.matched_lines([line], START)] == [0]


@pytest.mark.parametrize(("field", "found"), [("f", []), (".f", [0])])
def test_what_a_member_without_a_name_holds_is_no_field_of_the_line(
    field: str, found: list[int]
) -> None:
    rules = load_text(rule(f"{{a: {{{field}: evil}}, condition: a}}"))
    lines = [b'{"service":"test","":{"f":"evil"}}']

    assert read(rules, lines) == walked(rules, lines)
    assert [place for place, _ in read(rules, lines)] == found


# --- Hostile lines -----------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        *("f", "g", "n", "n.m.f", "n.m", "cs-method", "http.request.method", "http", "source.ip"),
        *("source", "@timestamp", "cw.vendor", "cw.vendor.f", "cw", "cw.f", "x", "product"),
        *("service", "category", ""),
    ]
)
TEXTS = st.sampled_from(
    [
        *("a", "A", "ab", "ABC", "-a b", "/a B", r"\a", '"a"', "ab\n", "äÖ", "ß", "ας", "42", "1"),
        *("\u212a", "\u0130", "true", "10.0.0.1", "", "p", "test", "xa\nby", "aaaaXb" * 900, "GET"),
    ]
)
VALUES = st.recursive(
    st.one_of(
        TEXTS,
        st.sampled_from([42, 42.0, 42.5, 1, 1.0, 0, -0.0, 1e3, True, False, None, 10**25]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.sampled_from(["f", "m", "m.f", "ip", "vendor"]), inner, max_size=2),
    ),
    max_leaves=4,
)
SOURCES = st.sampled_from(
    [
        *('"service":"test"', '"product":"p","service":"test"', '"service":["test"]'),
        *('"product":"p","category":"registry_set"', '"service":"\\u0074est"', '"x":1'),
    ]
)


SIZES = st.tuples(st.sampled_from([1, 100]), st.sampled_from([0, 24]))


@st.composite
def _texts(draw: st.DrawFn, value: str) -> str:
    """A text of JSON, with some signs escaped that need not be."""
    said = json.dumps(value, ensure_ascii=draw(st.booleans()))
    if draw(st.integers(0, 3)):
        return said
    how = draw(st.sampled_from(["\\u{:04x}", "\\u{:04X}"]))
    signs = [how.format(ord(sign)) if ord(sign) < 0x10000 else sign for sign in value]
    return '"' + "".join(signs).replace("\\u002f", "\\/") + '"'


@st.composite
def _written(draw: st.DrawFn, value: Any) -> str:
    if isinstance(value, str):
        return draw(_texts(value))
    if isinstance(value, list):
        return "[" + ",".join(draw(_written(one)) for one in value) + "]"
    if isinstance(value, dict):
        parts = (f"{draw(_texts(name))}: {draw(_written(one))}" for name, one in value.items())
        return "{" + ", ".join(parts) + "}"
    return json.dumps(value)


@st.composite
def _lines(draw: st.DrawFn) -> bytes:
    """An object whose members may come twice."""
    pairs = draw(st.lists(st.tuples(NAMES, VALUES), max_size=5))
    members = [f"{draw(_texts(name))}:{draw(_written(value))}" for name, value in pairs]
    members.insert(draw(st.integers(0, len(members))), draw(SOURCES))
    return ("{" + ",".join(members) + "}").encode()


def _near(rules: list[Any]) -> list[bytes]:
    sources = [
        {"service": "test"},
        {},
        {"product": "p"},
        {"product": "p", "category": "registry_set"},
    ]
    return [json.dumps({**fields, **sources[source]}).encode() for fields, source, _ in near(rules)]


@settings(max_examples=200, deadline=None)
@given(RULES, FILTER, st.lists(_lines(), min_size=1, max_size=6), SIZES)
def test_lines_find_what_the_plain_walk_finds_on_events(
    rules: list[Any], tuning: Any, given: list[bytes], sizes: tuple[int, int]
) -> None:
    loaded = load_text(written(rules, tuning))
    lines = [*given, *_near(rules)]

    assert read(loaded, lines, *sizes) == walked(loaded, lines)


@pytest.mark.full
@settings(max_examples=10_000, deadline=None)
@given(RULES, FILTER, st.lists(_lines(), min_size=1, max_size=6), SIZES)
def test_very_many_lines_find_what_the_plain_walk_finds(
    rules: list[Any], tuning: Any, given: list[bytes], sizes: tuple[int, int]
) -> None:
    loaded = load_text(written(rules, tuning))
    lines = [*given, *_near(rules)]

    assert read(loaded, lines, *sizes) == walked(loaded, lines)


@pytest.mark.parametrize(
    ("name", "ours"), [("src_ip", "source.ip"), ("query", "dns.question.name")]
)
def test_a_field_stands_under_a_name_that_is_asked_itself(name: str, ours: str) -> None:
    rules = rule_of(f"  a: {{{name}: x}}\n  b: {{{ours}: y}}\n  condition: a or b\n")
    lines = [json.dumps({"service": "test", ours: value}).encode() for value in "xyz"]

    told = [place for place, _ in Engine(load_text(rules)).matched_lines(lines, START)]

    assert told == [0, 1]
