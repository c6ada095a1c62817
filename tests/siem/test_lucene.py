"""Expressions for Lucene say of a whole value what the engine says of it.

But for one operator (`&`) what is written is read alike by Python, so most of it is proved without
a server; `test_rule_export.py` asks a real one.
"""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detectors.sigma.matchers import Like, Number, Regex, number_of, predicate_of
from detectors.sigma.texts import Sign, normal, parse
from siem import lucene, lucene_regex
from siem.lucene import MAX_LENGTH, Inexpressible

patient = settings(deadline=None)
LETTERS = (
    "abkKiIsS\u212a\u0130\u017f\xdf\u1e9e\xc4\xe4\u03a3\u03c3\u03c25.-/\\*?\n\"'&|<>~#@[](){}^$+ "
)
VALUES = st.text(LETTERS, max_size=8)
TEXTS = st.text(LETTERS.replace("\u0130", ""), max_size=8)
"""What it becomes when it is folded is refused in a rule."""


def holds(expressions: list[str], value: str) -> bool:
    return any(re.fullmatch(one, value, re.DOTALL) for one in expressions)


@patient
@given(st.lists(TEXTS, min_size=1, max_size=4), VALUES, st.booleans())
@example(["*i?"], "xi\u0130", False)
@example(["??"], "\u0130", False)
@example(["i*"], "\u0130", False)
@example(["?i"], "\u0130i", False)
@example(["k"], "\u212a", False)
@example(["k"], "\u212a", True)
@example(["\u03bf\u03b4\u03c2"], "\u039f\u0394\u03a3", False)
@example(["*\u03c2"], "\u03c3", False)
@example(["\u03c3"], "\u03c2", True)
def test_a_value_is_one_of_the_texts_exactly_if_the_engine_says_so(
    texts: list[str], value: str, cased: bool
) -> None:
    likes = [Like(normal(parse(text), cased=cased), cased) for text in texts]
    words = [word for one in likes if (word := lucene.word_of(one)) is not None]

    found = lucene.any_of(one for one in likes if lucene.word_of(one) is None)

    wanted = any(predicate_of(one)(value) for one in likes)
    assert (value in words or holds(found, value)) == wanted


PARTS = [
    r"a",
    r"k",
    r"s",
    r"i",
    r".",
    r"\.",
    r"\d",
    r"\s",
    r"[a-k]",
    r"[^k]",
    r"[\w-]",
    r"\\z",
    r"\x41",
    r"^",
    r"$",
    r"\z",
    r"\A",
    r'"',
    r"&",
    r"#",
    r"@",
    r"<",
]
EXPRESSIONS = st.recursive(
    st.sampled_from([*PARTS, "\xe4"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        inner.map(lambda part: f"(?:{part})?"),
        inner.map(lambda part: f"(?:{part}){{1,3}}"),
    ),
    max_leaves=8,
)


@patient
@given(EXPRESSIONS, st.text(LETTERS + "zZA", max_size=8), st.sampled_from(["", "i", "s", "is"]))
@example("C:\\\\zone", "C:\\zone", "")
@example("(^|\\s)k$", " \u212a", "i")
@example("a|b$", "ax", "")
def test_an_expression_is_found_in_a_value_exactly_if_re2_finds_it(
    pattern: str, value: str, flags: str
) -> None:
    try:
        found = lucene_regex.regex(pattern, flags)
    except Inexpressible:
        return

    assert holds(found, value) == predicate_of(Regex(pattern, flags))(value)


@pytest.mark.parametrize(
    ("pattern", "flags", "why"),
    [
        (r"\bcmd", "", "`\\b` within an expression"),
        (r"a^b", "", "`^` within an expression"),
        (r"(?m)^a", "", "`^` and `$` of lines"),
        (r"(?i:a)b", "", "flags within an expression"),
        (r"[[:alpha:]]", "", "what only RE2 reads"),
        (r"\pL", "", "what only RE2 reads"),
        ("\xe4", "i", "letters beyond ASCII whose case does not count"),
        (".{2,128} -Destination .{1,32}x", "", "too large there"),
        ("^" + "ab" * 500, "", f"longer than {MAX_LENGTH} characters"),
    ],
    ids=range(9),
)
def test_what_lucene_cannot_say_is_refused_with_the_reason(
    pattern: str, flags: str, why: str
) -> None:
    with pytest.raises(Inexpressible, match=re.escape(why)):
        lucene_regex.regex(pattern, flags)


@pytest.mark.parametrize("pattern", ["(^|x)a", "(?i)a", "a{2}|b+?$", r"[\s\S]", r"\x41\."])
def test_what_lucene_can_say_is_not_refused(pattern: str) -> None:
    assert lucene_regex.regex(pattern, "")


@patient
@given(
    st.one_of(st.integers(-200, 200), st.sampled_from([0.5, -1.25, 1e20, 0.0, 10.0])),
    st.from_regex(r"[+-]?0{0,2}[0-9]{0,3}\.?[0-9]{0,2}([eE][+-]?0)?", fullmatch=True),
)
@example(5, "+05.0e0")
@example(0, "-.0")
@example(100, "100")
def test_a_text_is_a_number_exactly_if_the_engine_says_so(limit: float, text: str) -> None:
    assert holds([lucene.number(limit)], text) == predicate_of(Number("eq", limit))(text), (
        number_of(text)
    )


@pytest.mark.parametrize(
    "network", ["10.0.0.0/8", "172.16.0.0/12", "192.0.2.77/32", "0.0.0.0/0", "10.128.0.0/9"]
)
@patient
@given(address=st.ip_addresses(v=4))
def test_a_text_is_an_address_of_a_network_exactly_if_it_is_one(
    network: str, address: ipaddress.IPv4Address
) -> None:
    given_ = ipaddress.ip_network(network)
    inside = ipaddress.ip_address(int(given_[0]) + int(address) % given_.num_addresses)

    expression = [lucene.network(network)]

    assert holds(expression, str(inside))
    assert holds(expression, f"::ffff:{inside}")
    assert holds(expression, str(address)) == (address in given_)
    assert not holds(expression, f"{inside}0.1")


def test_texts_that_are_too_long_are_refused_and_many_are_drawn_together() -> None:
    many = [Like(("\\" + str(number) + "x",)) for number in range(1_000)]

    assert len(lucene.any_of(many)) < 20
    assert all(len(one) <= MAX_LENGTH for one in lucene.any_of(many))
    emoji = [Like((Sign.MANY, "\U0001f600" * number)) for number in range(1, 60)]
    assert all(len(one.encode("utf-16-le")) <= 2 * MAX_LENGTH for one in lucene.any_of(emoji))
    with pytest.raises(Inexpressible, match="longer than"):
        lucene.any_of([Like(("a" * 1_000,))])
    with pytest.raises(Inexpressible, match="longer than"):
        lucene.any_of([Like(("ab" * 120, Sign.MANY, "ba" * 120))])
    with pytest.raises(Inexpressible, match=r"more than 6 `\?`"):
        lucene.any_of([Like(normal(parse("a" + "?" * 7), cased=False))])
    with pytest.raises(Inexpressible, match="folded with what stands before"):
        lucene.any_of([Like(("i\u0307",))])
