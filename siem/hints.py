"""What a value must at least have for a comparison to hold on it, as SQL.

Of a column with a million values, DuckDB finds the few that may be meant sooner than they could be
brought here. Each of these is then decided by the comparison itself, so a hint may let through too
much, but never too little.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from ipaddress import IPv4Network, ip_network

from detectors.sigma.matchers import (
    AnyOf,
    Comparison,
    Item,
    Like,
    Network,
    Number,
    Regex,
    number_of,
)
from detectors.sigma.texts import Text
from siem.store.distinct import Column, literal

NEVER = "FALSE"
MANY = 64
"""Of more comparisons no hint is made: DuckDB tries one after the other."""
INT64 = 2**63

_ASCII = re.compile(r"[\0-\x7f]+")
_OF_OTHERS = re.compile(r"\\[pPC\0]|\0|\(\?<")
"""Classes of Unicode, single bytes, what no literal holds, and groups named as of late."""
_WRITTEN = {
    "TIMESTAMP": frozenset("0123456789-:.+tT"),
    "BIGINT": frozenset("0123456789-"),
    "DOUBLE": frozenset("0123456789-+.eE"),
}
"""All characters that values of these kinds have when they are compared as texts."""


def hint(item: Item, column: Column) -> str | None:
    """SQL that is true at least for every value on which some (`all`: each) comparison holds.

    Returns:
        None if nothing can be said.
    """
    if column.key or len(item.comparisons) > MANY:
        return None
    return _together(item.every, (_of(one, column) for one in item.comparisons))


def _together(every: bool, hints: Iterable[str | None]) -> str | None:
    found = list(dict.fromkeys(hints))
    told = [one for one in found if one is not None]
    if every:
        if not told or NEVER in told:
            return NEVER if told else None
        return "(" + " AND ".join(told) + ")"
    if len(told) < len(found):
        return None
    told = [one for one in told if one != NEVER]
    return "(" + " OR ".join(told) + ")" if told else NEVER


def _of(one: Comparison, column: Column) -> str | None:
    match one:
        case AnyOf(parts):
            return _together(False, (_of(part, column) for part in parts))
        case Like(text, cased) if column.kind == "VARCHAR":
            return _of_text(text, cased, column)
        case Like(text, _) if written := _WRITTEN.get(column.kind):
            return _of_digits(text, written, column)
        case Number(how, limit, "") if column.kind in ("BIGINT", "DOUBLE"):
            return _of_number(how, limit, column)
        case Network(text) if column.kind == "VARCHAR":
            return _of_network(text, column)
        case Regex(pattern, flags) if column.kind == "VARCHAR":
            return _of_regex(pattern, flags, column)
    return None


def _of_text(text: Text, cased: bool, column: Column) -> str | None:
    """The longest word in it; DuckDB folds ASCII as we do, and other letters perhaps not."""
    words = [part for part in text if isinstance(part, str)]
    pieces = words if cased else [piece for word in words for piece in _ASCII.findall(word)]
    longest = max(pieces, key=len, default="")
    if not longest:
        return None if text else f"{column.sql} = ''"
    seen = column.sql if cased else f"lower({column.sql})"
    if text == (longest,):
        return f"{seen} = {literal('VARCHAR', longest)}"
    return f"contains({seen}, {literal('VARCHAR', longest)})"


def _of_regex(pattern: str, flags: str, column: Column) -> str | None:
    """DuckDB has RE2 too, but of another year: it may know less, and fails on what it does not."""
    if not _ASCII.fullmatch(pattern) or _OF_OTHERS.search(pattern):
        return None
    head = f"(?{flags})" if flags else ""
    return f"regexp_matches({column.sql}, {literal('VARCHAR', head + pattern)})"


def _of_digits(text: Text, written: frozenset[str], column: Column) -> str | None:
    """Of a number or a time: whether it could be written so at all."""
    match text:
        case (str(word),) if (number := number_of(word)) is not None and column.kind != "TIMESTAMP":
            return _of_number("eq", number, column)
    words = (part for part in text if isinstance(part, str))
    return None if all(written.issuperset(word) for word in words) else NEVER


def _of_number(how: str, limit: float, column: Column) -> str | None:
    """Limits are rounded outwards, and count themselves: one too many does no harm."""
    if not math.isfinite(limit) or abs(limit) >= INT64 // 2:
        return None
    low, high = math.floor(limit), math.ceil(limit)
    compare = {
        "eq": f"BETWEEN {low} AND {high}",
        "lt": f"<= {high}",
        "lte": f"<= {high}",
        "gt": f">= {low}",
        "gte": f">= {low}",
    }
    return f"{column.sql} {compare[how]}"


def _of_network(text: str, column: Column) -> str | None:
    """Whole octets in front; an IPv4 address may also be written as IPv6."""
    network = ip_network(text)
    octets = network.prefixlen // 8
    if not isinstance(network, IPv4Network) or octets == 0:
        return None
    parts = str(network.network_address).split(".")[:octets]
    prefix = literal("VARCHAR", ".".join(parts) + ("." if octets < 4 else ""))
    return f"(starts_with({column.sql}, {prefix}) OR contains({column.sql}, ':'))"
