"""The query bar: what is understood, what is refused, and both SQLs against plain Python."""

from __future__ import annotations

import ipaddress
import json
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cityward.finding import SEVERITIES
from siem.store.query import (
    ONE,
    STAR,
    All,
    Any_,
    Between,
    Condition,
    DuckDialect,
    Has,
    Is,
    Like,
    No,
    QueryError,
    Says,
    SqliteDialect,
    Within,
    fold,
    folded,
    from_micros,
    micros,
    parse,
    sqlite_functions,
)
from siem.store.query import in_network as in_network_sql

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HERE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
"""A list of one's own stands in the place of that of all tests: a busy machine is no fault here."""
FIELDS = {
    "@timestamp": "date",
    "message": "text",
    "user.name": "keyword",
    "tags": "keyword[]",
    "source.ip": "ip",
    "related.ip": "ip[]",
    "event.severity": "long",
    "ot.value": "double",
    "ot.is_command": "boolean",
    "finding.severity": "severity",
    "cw.vendor": "flat_object",
}
TEXTS = ("message", "user.name", "source.ip")


# ---- The twin: what a condition means, without SQL


def holds(condition: Condition, document: Mapping[str, Any]) -> bool:
    match condition:
        case All(parts):
            return all(holds(part, document) for part in parts)
        case Any_(parts):
            return any(holds(part, document) for part in parts)
        case No(part):
            return not holds(part, document)
        case Says(pattern):
            return any(fits(fold(document[name]), pattern) for name in TEXTS if name in document)
    return any(fits_one(condition, value) for value in values_of(condition.field, document))


def values_of(field: str, document: Mapping[str, Any]) -> list[Any]:
    if field.startswith("cw.vendor."):
        inner = document.get("cw.vendor", {}).get(field.removeprefix("cw.vendor."))
        return [] if inner is None else [json.dumps(inner) if inner in (True, False) else inner]
    value = document.get(field)
    return value if isinstance(value, list) else [] if value in (None, {}) else [value]


def fits_one(test: Condition, value: Any) -> bool:
    match test:
        case Has():
            return True
        case Is(value=wanted):
            return str(value) == wanted if isinstance(wanted, str) else value is wanted
        case Like(pattern=pattern, folded=is_folded):
            return fits(fold(str(value)) if is_folded else str(value), pattern)
        case Within(network=network):
            address, wanted = ipaddress.ip_address(value), ipaddress.ip_network(network)
            return address.version == wanted.version and address in wanted
        case Between():
            if isinstance(value, datetime):
                value = micros(value)
            if test.kind == "severity":
                value = SEVERITIES.index(value)
            low = test.low is None or (value >= test.low if test.with_low else value > test.low)
            high = test.high is None or (
                value <= test.high if test.with_high else value < test.high
            )
            return low and high
    raise AssertionError(test)


def fits(text: str, pattern: tuple[str, ...]) -> bool:
    """Recursive, and so simple that it is right."""
    if not pattern:
        return text == ""
    first, rest = pattern[0], pattern[1:]
    if first == STAR:
        return any(fits(text[place:], rest) for place in range(len(text) + 1))
    if first == ONE:
        return bool(text) and fits(text[1:], rest)
    return text.startswith(first) and fits(text[len(first) :], rest)


# ---- The same documents in both databases


class Both:
    """Some documents in SQLite and in DuckDB."""

    def __init__(self) -> None:
        self.lite = sqlite3.connect(":memory:")
        for name, arguments, function in sqlite_functions():
            self.lite.create_function(name, arguments, function, deterministic=True)
        self.lite.execute("CREATE TABLE t (n, document, folded, name)")
        self.duck = duckdb.connect(config={"threads": "1"})
        self.duck.create_function("in_network", in_network_sql, ["VARCHAR", "VARCHAR"], "BOOLEAN")
        self.duck.execute(
            'CREATE TABLE t (n INT, "@timestamp" TIMESTAMP, "message" VARCHAR,'
            ' "user.name" VARCHAR, "tags" VARCHAR[], "source.ip" VARCHAR, "related.ip" VARCHAR[],'
            ' "event.severity" BIGINT, "ot.value" DOUBLE, "ot.is_command" BOOLEAN,'
            ' "finding.severity" BIGINT, "cw.vendor" JSON)'
        )
        columns = {name: f'"{name}"' for name in FIELDS}
        self.duck_sql = DuckDialect(columns, TEXTS)
        # One field as a column of its own, the others in JSON: both ways are tried.
        self.lite_sql = SqliteDialect({"user.name": "name"}, "document", "folded")

    def fill(self, documents: list[dict[str, Any]]) -> None:
        self.lite.execute("DELETE FROM t")
        self.duck.execute("DELETE FROM t")
        for number, one in enumerate(documents):
            plain = dict(one)
            if "@timestamp" in one:
                plain["@timestamp"] = micros(one["@timestamp"])
            if "finding.severity" in one:
                plain["finding.severity"] = SEVERITIES.index(one["finding.severity"])
            searched = folded(one[name] for name in TEXTS if name in one)
            self.lite.execute(
                "INSERT INTO t VALUES (?, ?, ?, ?)",
                (number, json.dumps(plain), searched, one.get("user.name")),
            )
            row = [plain.get(name) for name in FIELDS]
            if "@timestamp" in one:
                row[0] = one["@timestamp"].replace(tzinfo=None)
            if "cw.vendor" in one:
                row[-1] = json.dumps(one["cw.vendor"])
            self.duck.execute(f"INSERT INTO t VALUES (?{', ?' * len(FIELDS)})", [number, *row])

    def ask(self, condition: Condition) -> tuple[list[int], list[int]]:
        text, values = self.lite_sql.where(condition)
        lite = self.lite.execute(f"SELECT n FROM t WHERE {text} ORDER BY n", values).fetchall()
        text, values = self.duck_sql.where(condition)
        duck = self.duck.execute(f"SELECT n FROM t WHERE {text} ORDER BY n", values).fetchall()
        return [row[0] for row in lite], [row[0] for row in duck]


@pytest.fixture(scope="module")
def both() -> Both:
    return Both()


LETTERS = "aAbBσΣİ.*?%_\\'\"[ ]/:-1"
words = st.text(LETTERS, min_size=1, max_size=5)
addresses = st.sampled_from(
    ["192.0.2.1", "192.0.2.200", "198.51.100.7", "2001:db8::1", "2001:db8:1::", "::1"]
)
severities = st.sampled_from(SEVERITIES)
numbers = st.integers(-4, 4)
times = st.integers(-3, 3).map(lambda hours: from_micros(micros(NOW) + hours * 3_600_000_000))
documents = st.fixed_dictionaries(
    {},
    optional={
        "@timestamp": times,
        "message": words,
        "user.name": words,
        "tags": st.lists(words, max_size=3),
        "source.ip": addresses,
        "related.ip": st.lists(addresses, max_size=2),
        "event.severity": numbers,
        "ot.value": numbers.map(float),
        "ot.is_command": st.booleans(),
        "finding.severity": severities,
        "cw.vendor": st.fixed_dictionaries({}, optional={"a": words, "b": st.booleans()}),
    },
)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def bare(text: str) -> str:
    """A word with wildcards left as they are, and everything else escaped."""
    return "".join(one if one in "*?" or one.isalnum() else "\\" + one for one in text)


values = st.one_of(words.map(quoted), words.map(bare))
networks = st.sampled_from(
    ["192.0.2.0/24", "192.0.0.0/9", "0.0.0.0/0", "2001:db8::/32", "::/0", "192.0.2.1", "192.*"]
)
moments = st.sampled_from(
    ["2026-03-01", "now", "now-2h", "2026-03-01T12:00", "2026-03-01T13:00:00Z"]
)
leaves = st.one_of(
    values,
    st.builds("{}:{}".format, st.sampled_from(["message", "user.name", "tags"]), values),
    st.builds("{}:{}".format, st.sampled_from(["cw.vendor.a", "cw.vendor.b"]), values),
    st.builds("{}:({} or {})".format, st.sampled_from(["user.name", "tags"]), values, values),
    st.builds("{}:{}".format, st.sampled_from(["source.ip", "related.ip"]), networks),
    st.builds("{}:*".format, st.sampled_from(sorted(FIELDS))),
    st.builds(
        "{}:{}{}".format,
        st.sampled_from(["event.severity", "ot.value"]),
        st.sampled_from(["", ">", ">=", "<", "<="]),
        numbers,
    ),
    st.builds("event.severity:[{} to {}}}".format, numbers, numbers),
    st.builds("finding.severity:>={}".format, severities),
    st.builds("ot.is_command:{}".format, st.sampled_from(["true", "false"])),
    st.builds("@timestamp:{}{}".format, st.sampled_from(["", ">", ">=", "<", "<="]), moments),
)
queries = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} OR {})".format, inner, inner),
        st.builds("not {}".format, inner),
        st.builds("{} {}".format, inner, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=HERE)
@given(queries, st.lists(documents, min_size=1, max_size=6))
def test_both_databases_agree_with_plain_python(
    both: Both, query: str, stored: list[dict[str, Any]]
) -> None:
    condition = parse(query, FIELDS, NOW)
    both.fill(stored)

    lite, duck = both.ask(condition)

    expected = [number for number, one in enumerate(stored) if holds(condition, one)]
    assert (lite, duck) == (expected, expected), query


@pytest.mark.full
@settings(max_examples=600, deadline=None, suppress_health_check=HERE)
@given(
    st.lists(queries, min_size=5, max_size=5),
    st.lists(documents, min_size=1, max_size=6),
)
def test_both_databases_agree_with_plain_python_for_long(
    both: Both, asked: list[str], stored: list[dict[str, Any]]
) -> None:
    """3,000 queries, five of the same documents: to write them takes longer than to ask."""
    both.fill(stored)

    for query in asked:
        condition = parse(query, FIELDS, NOW)
        lite, duck = both.ask(condition)

        expected = [number for number, one in enumerate(stored) if holds(condition, one)]
        assert (lite, duck) == (expected, expected), query


# ---- What a query means

ANNA = {
    "@timestamp": datetime(2026, 3, 1, 10, 30, tzinfo=UTC),
    "message": "Failed password for Anna",
    "user.name": "anna",
    "tags": ["insider", "vpn"],
    "source.ip": "192.0.2.7",
    "event.severity": 5,
    "ot.is_command": True,
    "finding.severity": "high",
    "cw.vendor": {"conn_state": "S0"},
}


@pytest.mark.parametrize(
    "query",
    [
        "",
        "*",
        "FAILED",
        "failed anna",
        '"password for"',
        "fail*for",
        "anna or nobody",
        "user.name:anna",
        "user.name:a?na",
        "user.name:(bob or anna)",
        "not user.name:bob",
        "-user.name:bob",
        "message:PASSWORD",
        "tags:vpn",
        "tags:*",
        "source.ip:192.0.2.0/24",
        "source.ip:192.0.2.*",
        "event.severity:>=5",
        "event.severity:[1 TO 5]",
        "event.severity:(>=5 and <6)",
        "ot.is_command:true",
        "finding.severity:>=medium",
        "finding.severity:[low to high]",
        "@timestamp:2026-03-01",
        "@timestamp:>=now-2h",
        "@timestamp:[2026-03-01T10:30 to now]",
        "@timestamp:now/d",
        "cw.vendor.conn_state:S0",
        "a:b or user.name:anna".replace("a:b", "user.name:b"),
        "user.name:bob or user.name:anna and tags:vpn",
    ],
)
def test_a_query_that_finds_anna(both: Both, query: str) -> None:
    both.fill([ANNA])

    assert both.ask(parse(query, FIELDS, NOW)) == ([0], [0])


@pytest.mark.parametrize(
    "query",
    [
        "nobody",
        "user.name:Anna",
        'user.name:"a*"',
        "user.name:ann",
        "not anna",
        "tags:in",
        "source.ip:192.0.2.8",
        "event.severity:>5",
        "event.severity:[1 TO 5}",
        "finding.severity:>high",
        "ot.value:*",
        "@timestamp:>2026-03-01",
        "@timestamp:<2026-03-01",
        "@timestamp:>now-1h",
        "failed nobody",
        "message:fail?password",
    ],
)
def test_a_query_that_does_not_find_anna(both: Both, query: str) -> None:
    both.fill([ANNA])

    assert both.ask(parse(query, FIELDS, NOW)) == ([], [])


@pytest.mark.parametrize(
    ("query", "position", "what", "todo"),
    [
        ("source.ip:192.0.2.0/33", 11, "no network is /33",
         "Write 192.0.2.0/24 or a single address."),
        ("anna source.ip:192.0.2.0/33", 16, "no network is /33",
         "Write 192.0.2.0/24 or a single address."),
        ("source.ip:host", 11, "host is no address", "Write 192.0.2.7, 192.0.2.* or 192.0.2.0/24."),
        ("x.y:1", 1, "there is no field x.y", 'Choose a field, or quote it: "x.y:…".'),
        ("anna and user.nam:1", 10, "there is no field user.nam", "Write user.name."),
        ("event.severity:high", 16, "high is no number",
         "Write event.severity:10 or event.severity:>=10."),
        ("finding.severity:>=bad", 20, "bad is no severity",
         "Write informational, low, medium, high, critical, fatal."),
        ("@timestamp:>yesterday", 13, "yesterday is no time",
         "Write 2026-03-01, 2026-03-01T12:30Z or now-24h."),
        ("ot.is_command:maybe", 15, "maybe is neither true nor false", "Write true."),
        ('message:"open', 9, "a quote that is never closed", 'End it with ".'),
        ("(anna", 5, "( without )", "Close the parenthesis."),
        ("anna)", 5, ") without (", "Take it out, or quote it."),
        ("event.severity:[1 to", 16, "a range that is not whole", "Write field:[10 to 20]."),
        ("user.name:>=a", 11, "user.name is not ordered", "Write user.name:value instead."),
        ("anna and", 8, "the query stops in the middle", "Close what is open: ( with ), [ with ]."),
        ("a*a*a*a*a*a*a*a*a*a*", 1, "more than 8 wildcards in a word", "Write fewer."),
        ("x" * 201, 1, "a word of 201 characters", "Write at most 200."),
        ("anna user.name:" + "x" * 64 + "?", 16, "a word of 65 characters", "Write at most 64."),
        ("a\x00b", 2, "a control character", "Write * in its place."),
    ],
)  # fmt: skip
def test_a_fault_names_its_character_and_what_to_write(
    query: str, position: int, what: str, todo: str
) -> None:
    with pytest.raises(QueryError) as caught:
        parse(query, FIELDS, NOW)

    error = caught.value
    assert (error.position, error.what, error.todo) == (position, what, todo)
    assert error.where == f"query, character {position}"


# ---- Hostile queries


@pytest.mark.slow
@given(st.text(max_size=200))
@settings(max_examples=500, deadline=None)
def test_any_text_is_a_query_or_a_query_error(text: str) -> None:
    try:
        condition = parse(text, FIELDS, NOW)
    except QueryError as fault:
        position = fault.position
        condition = All(())
    else:
        position = 1

    assert 1 <= position <= max(1, len(text))
    DuckDialect({name: f'"{name}"' for name in FIELDS}, TEXTS).where(condition)
    SqliteDialect({}, "document", "folded").where(condition)


@pytest.mark.slow
@given(st.text("()[]{}\"\\:*?<>=+-/ aorndt1.,'~^", max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_punctuation_is_a_query_or_a_query_error(text: str) -> None:
    try:
        condition = parse(text, FIELDS, NOW)
    except QueryError as fault:
        position = fault.position
        condition = All(())
    else:
        position = 1

    assert 1 <= position <= max(1, len(text))
    DuckDialect({name: f'"{name}"' for name in FIELDS}, TEXTS).where(condition)


@pytest.mark.parametrize(
    "query",
    [
        "(" * 3000 + "a" + ")" * 3000,
        "not " * 999 + "a",
        "a " * 1999,
        "a" * 4001,
        "-" * 3999,
        "(" * 39 + "not " * 900 + "a" + ")" * 39,
        "user.name:(" * 300 + "a" + ")" * 300,
    ],
)
def test_a_query_beyond_the_bounds_is_refused(query: str) -> None:
    with pytest.raises(QueryError):
        parse(query, FIELDS, NOW)


@pytest.mark.parametrize("database", ["lite", "duck"])
def test_what_a_query_says_is_never_sql(both: Both, database: str) -> None:
    both.fill([ANNA])
    evil = "x' OR 1=1; DROP TABLE t; --"

    for query in (quoted(evil), f"user.name:{quoted(evil)}", f"cw.vendor.a:{quoted(evil)}",
                  f"tags:{quoted(evil + '*')}"):  # fmt: skip
        assert both.ask(parse(query, FIELDS, NOW)) == ([], [])

    assert getattr(both, database).execute("SELECT count(*) FROM t").fetchone() == (1,)


def test_a_name_under_vendor_cannot_leave_its_literal() -> None:
    with pytest.raises(QueryError):
        DuckDialect({"cw.vendor": '"cw.vendor"'}, ()).where(
            Is("cw.vendor.a' OR TRUE --", "object", False, "x")
        )


def test_a_hostile_pattern_on_a_long_text_ends(both: Both) -> None:
    both.fill([{"message": "a" * 60_000}])

    assert both.ask(parse("message:a?*a?*a?*a?b", FIELDS, NOW)) == ([], [])


def test_one_field_may_be_asked_from_many_threads(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    texts = [f"user.name:a{number} and tags:b{number}" for number in range(200)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: parse(text, FIELDS, NOW), texts))

    assert found == [
        All((Is("user.name", "keyword", False, f"a{n}"), Is("tags", "keyword", True, f"b{n}")))
        for n in range(200)
    ]
