"""A hint may let through too much, never too little; DuckDB itself says what it leaves out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from detectors.sigma.load import load_text
from detectors.sigma.matchers import Item, Regex, predicate_of
from detectors.sigma.view import View
from siem.hints import NEVER, hint
from siem.store.archive import MEMORY_LIMIT, connect
from siem.store.distinct import Column, literal

TEXTS = (
    "admin",
    "ADMIN from 10.1.0.5",
    "no one",
    "",
    "it's 5% _x_ \\ [a]",
    "a\0admin",
    "\u212aELVIN",  # the sign of kelvin is a k when folded
    "KELVIN \u0130stanbul",
    "stra\u00dfe \u0391\u03a3",
    "10.1.0.5",
    "::ffff:10.1.0.5",
    "10.10.0.1",
    "2001:db8::1",
    "5",
    "-5",
    "line\nadmin\tend",
)
LONGS = (0, 5, -5, 55, 2**62 + 1, -(2**63))
DOUBLES = (0.0, 5.0, 5.5, -0.25, 1e-7, 1e300, float(2**53))
TIMES = (datetime(2026, 3, 1, 6, 0, 7, tzinfo=UTC), datetime(1999, 12, 31, 23, 59, 59, 5, UTC))
COLUMNS: dict[str, tuple[Any, ...]] = {
    "message": TEXTS,
    "source.port": LONGS,
    "phys.reading": DOUBLES,
    "event.created": TIMES,
}
LINES = (
    {"|contains": ["admin", "kelvin"]},
    {"|contains|all": ["admin", "from"]},
    {"|contains|cased": "ADMIN"},
    {"|startswith": "KELVIN"},
    {"|endswith": ["5", "\u03b1\u03c3"]},
    {"": "it's 5% _x_ \\\\ [a]"},
    {"": "*\u0130stan*"},
    {"": "a?admin"},
    {"": "*2*07*"},
    {"": ["5", "-5"]},
    {"": ""},
    {"|cased": "5"},
    {"|windash|contains": "-5"},
    {"|cidr": ["10.1.0.0/16", "10.1.0.5/32"]},
    {"|cidr": "10.0.0.0/13"},
    {"|cidr": "2001:db8::/32"},
    {"|gt": 5},
    {"|lte": 5.25},
    {"|lt": -0.2},
    {"|gte": 2**53},
    {"": 55},
    {"|re": "adm.n"},
    {"|re": ["^10\\.", "(?i)KELVIN$"]},
    {"|re|i": "^admin"},
    {"|re|i|m": "^ADMIN\\tend$"},
    {"|re|s": "line.admin"},
    {"|re|i": "k[a-z]*n"},
    {"|re": "\\bno\\b|\\x00admin"},
    {"|re": "stra\u00dfe"},
    {"|re": "\\p{Greek}"},
)


def items() -> Iterator[Item]:
    for name in COLUMNS:
        for line in LINES:
            field = {f"{name}{key}": value for key, value in line.items()}
            rule = {
                "title": "R",
                "id": "6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b11",
                "level": "low",
                "logsource": {"service": "test"},
                "detection": {"x": field, "condition": "x"},
            }
            rules = load_text(msgspec.json.encode(rule).decode())
            for one in rules.rules:
                selection = one.detection.selections["x"]
                found = selection if isinstance(selection, Item) else selection.parts[0]
                assert isinstance(found, Item)
                yield found


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return connect(MEMORY_LIMIT, Path(tmp_path_factory.mktemp("duck")))


def let_through(db: Any, sql: str, column: Column, value: Any) -> bool:
    seen = value.replace(tzinfo=None) if isinstance(value, datetime) else value
    row = f"SELECT {literal(column.kind, seen)} AS {column.sql}"
    return bool(db.execute(f"SELECT {sql} FROM ({row})").fetchone()[0])


def test_what_holds_is_let_through_and_much_else_is_not(db: Any) -> None:
    hinted = kept = held = 0
    for item in items():
        column = Column(item.field or "")
        sql = hint(item, column)
        for value in COLUMNS[column.field]:
            holds = item.holds(View({column.field: value}))
            passes = sql is None or let_through(db, sql, column, value)
            assert passes or not holds, (item.wanted, value, sql)
            held += holds and sql is not None
            kept += passes and sql is not None
            hinted += sql is not None
    assert 0 < held < kept < hinted / 2


def test_ascii_letters_come_from_the_same_characters_in_duckdb(db: Any) -> None:
    folding = [
        char
        for char in map(chr, range(0x80, sys.maxunicode + 1))
        if not "\ud800" <= char <= "\udfff" and any(one.isascii() for one in char.lower())
    ]

    assert "\u212a" in folding
    for char in folding:
        (found,) = db.execute(f"SELECT lower({literal('VARCHAR', char)})").fetchone()
        assert [one for one in char.lower() if one.isascii()] == [
            one for one in found if one.isascii()
        ]


def test_a_word_is_never_written_in_a_time_or_a_number(db: Any) -> None:
    (words,) = [one for one in items() if one.field == "message"][:1]

    assert hint(words, Column("event.created")) == NEVER
    assert hint(words, Column("source.port")) == NEVER
    assert hint(words, Column("cw.vendor", "name")) is None


def test_duckdb_takes_each_expression_that_it_is_given(db: Any) -> None:
    parts = [r"\z", r"\Aa", "a{1000}", "(a{30}){30}", "[[:word:]]", "(?U)a+", r"\Qa.\E", "(?s:a.b)"]
    parts += [
        "(?P<n>a)",
        "(?<n>a)",
        "(?-s).",
        "(?m)^b$",
        r"\x{41}",
        r"\101",
        "a*?",
        r"[^\d\s]",
        "a|",
    ]

    for pattern in parts:
        item = Item("message", (Regex(pattern),), False, False, "")
        asked = hint(item, Column("message"))
        if asked is None:
            assert pattern == "(?<n>a)"  # which its RE2 does not know
        else:
            found = predicate_of(Regex(pattern))
            for seen in ("a", "A", "a\nb", "b\n", "", "aaa"):
                query = f"SELECT {asked} FROM (SELECT {literal('VARCHAR', seen)} AS message)"
                assert db.execute(query).fetchone() == (found(seen),), (pattern, seen)


def test_of_an_expression_duckdb_is_asked_unless_it_may_know_other_letters() -> None:
    def asked(pattern: str) -> str | None:
        return hint(Item("message", (Regex(pattern, "i"),), False, False, ""), Column("message"))

    assert asked("^adm") == """(regexp_matches("message", ('(?i)^adm')))"""
    assert asked("stra\u00dfe") is None
    assert asked("\\p{Greek}") is None
    assert asked("a\0b") is None
