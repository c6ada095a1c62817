"""What is looked for beside a regular expression is in every text in which it is found."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from detectors.sigma import find, regexes
from detectors.sigma.ask import Ask
from detectors.sigma.databases import Databases
from detectors.sigma.find import Finder
from detectors.sigma.matchers import Regex
from detectors.sigma.memory import Room
from detectors.sigma.regexes import (
    SHORT_BYTES,
    compile_regex,
    compiled_regex,
    counts_far,
    needed,
    regex_set,
)

SIGNS = st.sampled_from(
    [
        *(
            "a",
            "b",
            "S",
            "k",
            "K",
            ".",
            "0",
            " ",
            r"\.",
            r"\\",
            r"\(",
            r"\d",
            r"\s",
            r"\b",
            "^",
            "$",
        ),
        *("[ab]", "[^a]", "[]a]", "[[:alpha:]b]", r"[\]a]", "ä", r"\x61", r"\pL", r"\Qa.b\E"),
    ]
)
TIMES = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "+?", "??"])
PARTS = st.recursive(
    st.tuples(SIGNS, TIMES).map("".join),
    lambda part: st.one_of(
        st.lists(part, min_size=1, max_size=4).map("".join),
        st.tuples(part, part).map("|".join),
        st.tuples(st.sampled_from(["(", "(?:", "(?i:", "(?P<n>"]), part, st.just(")"), TIMES).map(
            "".join
        ),
    ),
    max_leaves=12,
)
TEXTS = st.text(st.sampled_from("abABkKsS.\\ (01\nä\u212a\u017f"), max_size=12)


@settings(max_examples=1_000, deadline=None)
@given(PARTS, st.sampled_from(["", "i", "s", "(?i)"]), st.lists(TEXTS, min_size=1, max_size=8))
def test_a_regular_expression_among_words_says_what_it_says_alone(
    pattern: str, how: str, texts: list[str]
) -> None:
    flags, pattern = ("", how + pattern) if how.startswith("(") else (how, pattern)
    try:
        found = compile_regex(pattern, flags)
    except ValueError:
        assume(False)
    ask = Ask("f", frozenset((Regex(pattern, flags),)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "NEEDED_FROM", 1)  # so that short words matter, too
        finder = Finder([ask], Databases(), Room())

    for text in texts:
        assert finder.held([text]) == ({ask} if found(text) else set()), (pattern, text)


PLAIN = st.sampled_from(
    ["a", "B", "0", ":", r"\.", r"\\", r"\-", "[ab]", "[a-cX0-9]", "[ky-z]", "/"]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(PLAIN, min_size=1, max_size=5).map("".join), st.lists(TEXTS, max_size=12))
def test_python_says_of_a_plain_pattern_what_re2_says(pattern: str, texts: list[str]) -> None:
    assert regexes._PLAIN.fullmatch(pattern)
    found, search = compile_regex(pattern), compiled_regex(pattern).search

    for text in (*texts, "aB0:.\\-/", "cba\\", "K", "\u212a:\\"):
        assert found(text) is (search(text.encode()) is not None)


@pytest.mark.parametrize(
    "pattern",
    ["a+", "a?", "(a)", "a|b", "^a", "a$", "a.", r"\d", r"\s", "[^a]", r"[\w]", "[[:alpha:]]", "ä"],
)
def test_what_is_not_plain_is_left_to_re2(pattern: str) -> None:
    assert not regexes._PLAIN.fullmatch(pattern)


def test_a_long_plain_pattern_is_left_to_re2_as_it_looks_at_each_letter_once() -> None:
    pattern = "[ab]" * 20_000 + "c"
    found = compile_regex(pattern)

    assert not found("a" * 1_000)
    assert found("ab" * 10_000 + "c")


@pytest.mark.parametrize("size", [0, SHORT_BYTES - 2, SHORT_BYTES - 1, SHORT_BYTES, 5_000])
def test_a_text_of_any_length_is_searched(size: int) -> None:
    found = compile_regex("^x+y$")

    assert found("x" * size + "xy")
    assert not found("x" * size + "yx")


def test_what_a_set_of_one_has_no_room_for_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(regexes: object) -> object:
        raise ValueError("no room")

    monkeypatch.setattr(regexes, "regex_set", refuse)
    found = compile_regex("a+b$")

    assert [found(text) for text in ("xaab", "aabx", "b")] == [True, False, False]


def test_re2_takes_letters_beyond_ascii_for_others_where_case_does_not_matter() -> None:
    ask = Ask("f", frozenset((Regex("task", "i"),)))
    finder = Finder([ask], Databases(), Room())

    assert needed("task") == "task"
    assert finder.held(["ta\u017f\u212a"]) == finder.held(["TASK"]) == {ask}
    assert finder.held(["ta\u0161k"]) == set()


@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        (r"net\s+config", "config"),
        (r"(?i)\.exe\s+WERFAULT\.exe[\"']?", "werfault.exe"),
        (r"C:\\Windows\\__1\d{9}\.tmp$", "c:\\windows\\__1"),
        (r"(one|two)three", "three"),
        (r"abc?d", "ab"),
        (r"a{2}bc", "bc"),
        (r"ab+c", "ab"),
        (r"x[]y]zz", "zz"),
        (r"x{a}yzz", "yzz"),
        (r"[[:alpha:]y]word", "word"),
        ("one|two", ""),
        (r"\x41bc", ""),
        (r"a\Qb|c\E", ""),
        (r"(.){200,}", ""),
        ("äb", "b"),
        ("abcd\ud800", "abc"),  # for RE2 a half of a character is `?`
    ],
)
def test_the_longest_word_beside_groups_is_needed(pattern: str, word: str) -> None:
    compile_regex(pattern)

    assert needed(pattern) == word


def test_a_half_of_a_character_is_for_re2_a_sign_of_its_own() -> None:
    ask = Ask("f", frozenset((Regex("abcd\ud800"),)))
    finder = Finder([ask], Databases(), Room())

    assert finder.held(["abc"]) == finder.held(["abcd"]) == {ask}
    assert finder.held(["ab"]) == set()


def test_what_re2_has_no_room_for_together_is_asked_one_by_one() -> None:
    large = [Regex(rf"{letter}\pL{{60}}|z{letter}") for letter in "abcdefghijklmnopqrst"]
    asks = {one: Ask("f", frozenset((one,))) for one in large}
    with pytest.raises(ValueError, match="failed to compile"):
        regex_set([(one.pattern, one.flags) for one in large])
    finder = Finder(asks.values(), Databases(), Room())

    assert finder.held(["zc"]) == {asks[large[2]]}
    assert finder.held(["b" + "x" * 60]) == {asks[large[1]]}


def test_who_counts_far_is_told_from_who_does_not() -> None:
    assert [
        counts_far(one) for one in ("(.){200,}", "a{100}", "a{1,256}", "[{]300,}", "a{99}")
    ] == [*(True, True, False, False, False)]
