"""The query bar: text → conditions → SQL for findings (SQLite) and for events (DuckDB).

Lucene words, read kindly: `and or not` in any case, `>= > <= <`, ranges `[a to b]`, `field:*`,
wildcards, phrases, `field:(a or b)`, networks on addresses, dates and `now-24h`, bare words.
Words side by side must all hold. A bare word is a case-folded substring of the texts.
"""

from __future__ import annotations

import ipaddress
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

import msgspec

from cityward.errors import CitywardError
from cityward.finding import SEVERITIES
from siem.store.protocol import Range

MAX_CHARACTERS = 4_000
MAX_DEPTH = 12
"""Parentheses in each other; Elasticsearch takes 30 levels, and each may hold `and` within `or`."""
MAX_TESTS = 500
MAX_WILDCARDS = 8
MAX_PATTERN = 200
"""Characters of a pattern or of a part of a text: for longer ones clusters give up …"""
MAX_PATTERN_ONE = 64
"""… and with `?` in them still earlier, for each doubles what they have to keep in mind."""

Kind = Literal["keyword", "text", "number", "boolean", "date", "ip", "severity", "object"]
KINDS: Mapping[str, Kind] = {
    "keyword": "keyword",
    "text": "text",
    "long": "number",
    "double": "number",
    "float": "number",
    "boolean": "boolean",
    "date": "date",
    "ip": "ip",
    "geo_point": "keyword",
    "flat_object": "object",
    "severity": "severity",
}
"""Types of the field table to what the query bar can do with them."""


class QueryError(CitywardError):
    """The query cannot be read: it names the character and what to write instead."""

    def __init__(self, what: str, position: int, todo: str) -> None:
        super().__init__(what, f"query, character {position}", todo)
        self.position = position
        """From 1."""


# ---- Conditions


class Has(msgspec.Struct, frozen=True):
    """The field is there."""

    field: str
    kind: Kind
    many: bool


class Is(msgspec.Struct, frozen=True):
    """The field, or one of its values, is just this."""

    field: str
    kind: Kind
    many: bool
    value: str | bool


class Like(msgspec.Struct, frozen=True):
    """The field, or one of its values, fits a pattern of `*` and `?`, given as its pieces.

    With `folded` both sides are case-folded.
    """

    field: str
    kind: Kind
    many: bool
    pattern: tuple[str, ...]
    """Literal pieces with `*` and `?` as one-character pieces of their own, prefixed by `\\0`."""
    folded: bool = False


class Between(msgspec.Struct, frozen=True):
    """A number, a rank or a time (microseconds since 1970) lies in a span; None: open."""

    field: str
    kind: Kind
    many: bool
    low: float | int | None
    high: float | int | None
    with_low: bool = True
    with_high: bool = True


class Within(msgspec.Struct, frozen=True):
    """An address lies in a network."""

    field: str
    kind: Kind
    many: bool
    network: str


class Says(msgspec.Struct, frozen=True):
    """One of the document's texts fits a folded pattern."""

    pattern: tuple[str, ...]


class All(msgspec.Struct, frozen=True):
    """Every part holds; with none it always holds."""

    parts: tuple[Condition, ...]


class Any_(msgspec.Struct, frozen=True):  # noqa: N801 – `Any` is taken by typing
    """At least one part holds."""

    parts: tuple[Condition, ...]


class No(msgspec.Struct, frozen=True):
    """The part does not hold."""

    part: Condition


Test = Has | Is | Like | Between | Within | Says
Condition = Test | All | Any_ | No
EVERYTHING = All(())

STAR = "\0*"
ONE = "\0?"

# ---- Text → conditions

_NAME = re.compile(r"[A-Za-z_@][\w.@-]*(?=:)")
_HEX_GROUP = re.compile(r"[0-9A-Fa-f]{1,4}")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
_WORD_END = re.compile(r"[\s()\"]")
_BOUND_END = re.compile(r"[\s\]}\"]")
_OPERATORS = {"and": "AND", "or": "OR", "not": "NOT"}
_SPECIAL = frozenset(":~^(){}[]/\"'+-<>\\")
_LOCK = threading.Lock()
"""The lexer of luqum is one object of its module."""


def quoted(value: str) -> str:
    """A value as one phrase of the query language."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def parse(text: str, fields: Mapping[str, str], now: datetime) -> Condition:
    """Read a query.

    Args:
        text: What was typed; empty: everything.
        fields: Names that may be asked for, with their type in the words of the field table.
        now: What `now` means.

    Raises:
        QueryError: it cannot be read; nothing is guessed.
    """
    if len(text) > MAX_CHARACTERS:
        raise QueryError(
            f"a query of {len(text)} characters", MAX_CHARACTERS, "Write fewer than 4,000."
        )
    if found := _CONTROL.search(text):
        raise QueryError("a control character", found.start() + 1, "Write * in its place.")
    if not text.strip():
        return EVERYTHING
    plain, places = _prepare(text)
    return _Reader(fields, now, places).condition(_tree(plain, places), "", 0)


def _tree(plain: str, places: Sequence[int]) -> Any:
    from luqum.exceptions import ParseError
    from luqum.parser import parser

    try:
        with _LOCK:
            return parser.parse(plain)
    except ParseError as error:
        found = re.search(r"at position (\d+)", str(error))
        at = places[min(int(found[1]), len(places) - 1)] if found else places[-1]
        raise QueryError(
            "the query stops in the middle" if not found else "this does not fit here",
            at + 1,
            "Close what is open: ( with ), [ with ].",
        ) from None
    except (RecursionError, ValueError, TypeError, AttributeError) as error:
        raise QueryError(f"no query: {error}", 1, "Write it simpler.") from None


class _Scan:
    """Rewrites a query so that Lucene's grammar takes it, and remembers where things stood."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.out: list[str] = []
        self.places: list[int] = []
        self.open: list[bool] = []
        """For each open parenthesis: does it hold values of a field?"""

    def copy(self, count: int = 1) -> None:
        self.put(self.text[self.at : self.at + count], self.at)
        self.at += count

    def put(self, piece: str, at: int, *, still: bool = False) -> None:
        self.out.append(piece)
        self.places += [at if still else at + place for place in range(len(piece))]

    def value(self, end: re.Pattern[str]) -> None:
        """Copy one value; what has a meaning in Lucene is escaped."""
        start = self.at
        while self.at < len(self.text) and not end.match(self.text, self.at):
            character = self.text[self.at]
            if character == "\\" and self.at + 1 < len(self.text):
                self.copy(2)
                continue
            if character in _SPECIAL:
                self.put("\\", self.at)
            self.copy()
        word = self.text[start : self.at]
        # Words of the grammar that stand for themselves as a value: `a:AND`, `a:to`.
        if word in ("AND", "OR", "NOT", "TO"):
            self.out[-len(word)] = "\\" + word[0]
            self.places.append(self.at - 1)

    def phrase(self) -> None:
        start = self.at
        self.copy()
        while self.at < len(self.text) and self.text[self.at] != '"':
            self.copy(2 if self.text[self.at] == "\\" else 1)
        if self.at >= len(self.text):
            raise QueryError("a quote that is never closed", start + 1, 'End it with ".')
        self.copy()

    def span(self) -> None:
        """A range: `[a to b]`, `{a to b}`."""
        start = self.at
        self.copy()
        words = 0
        while self.at < len(self.text) and self.text[self.at] not in "]}":
            if self.text[self.at].isspace():
                self.copy()
            elif self.text[self.at] == '"':
                self.phrase()
                words += 1
            elif self.text[self.at : self.at + 2].lower() == "to" and words == 1:
                self.put("TO", self.at)
                self.at += 2
                words += 1
            else:
                self.value(_BOUND_END)
                words += 1
        if self.at >= len(self.text) or words != 3:
            raise QueryError("a range that is not whole", start + 1, "Write field:[10 to 20].")
        self.copy()


def _prepare(text: str) -> tuple[str, list[int]]:
    """The query in Lucene's own spelling, and for each of its characters where it stood."""
    scan = _Scan(text)
    after_name = False
    while scan.at < len(text):
        character = text[scan.at]
        named, after_name = after_name, False
        if character.isspace():
            scan.copy()
            after_name = named
        elif character == "(":
            scan.open.append(named or bool(scan.open and scan.open[-1]))
            if len(scan.open) > MAX_DEPTH:
                raise QueryError("too deep", scan.at + 1, "Write it with fewer parentheses.")
            scan.copy()
        elif character == ")":
            if not scan.open:
                raise QueryError(") without (", scan.at + 1, "Take it out, or quote it.")
            scan.open.pop()
            scan.copy()
        elif character == '"':
            scan.phrase()
            # Lucene reads two things side by side; a phrase that touches a word is a slip.
        elif character in "[{" and named:
            scan.span()
        elif character in "<>" and (named or (scan.open and scan.open[-1])):
            scan.copy(2 if text[scan.at : scan.at + 2] in (">=", "<=") else 1)
            after_name = True
        elif character in "+-" and not named and text[scan.at + 1 : scan.at + 2].strip():
            scan.copy()
        else:
            after_name = _word(scan, named)
    if scan.open:
        raise QueryError("( without )", len(text), "Close the parenthesis.")
    return "".join(scan.out), scan.places


def _word(scan: _Scan, named: bool) -> bool:
    """Copy an operator, a field name or a value; True if a field name was copied."""
    text = scan.text
    in_values = named or bool(scan.open and scan.open[-1])
    if not named:
        end = _WORD_END.search(text, scan.at)
        word = text[scan.at : end.start() if end else len(text)]
        if operator := _OPERATORS.get(word.lower()):
            scan.put(operator, scan.at)
            scan.at += len(word)
            return False
    name = None if in_values else _NAME.match(text, scan.at)
    # The beginning of an address (`fe80::1`, `aa:bb:…`) looks like a name.
    if name and not _HEX_GROUP.fullmatch(name[0]):
        for character in name[0]:
            if character in _SPECIAL:
                scan.put("\\", scan.at)
            scan.copy()
        scan.copy()
        return True
    scan.value(_WORD_END)
    return False


class _Reader:
    """Turns a tree of luqum into conditions."""

    def __init__(self, fields: Mapping[str, str], now: datetime, places: Sequence[int]) -> None:
        self.fields = fields
        self.now = now
        self.places = places
        self.tests = 0

    def condition(self, node: Any, field: str, depth: int) -> Condition:
        from luqum import tree

        if depth > MAX_DEPTH * 6:
            raise self.error(node, "too deep", "Write it with fewer parentheses.")
        deeper = depth + 1
        match node:
            case tree.OrOperation():
                return Any_(tuple(self.condition(one, field, deeper) for one in node.children))
            case tree.AndOperation() | tree.UnknownOperation():
                return All(tuple(self.condition(one, field, deeper) for one in _flat(node)))
            case tree.Not() | tree.Prohibit():
                return No(self.condition(node.children[0], field, deeper))
            case tree.Plus() | tree.Group() | tree.FieldGroup():
                return self.condition(node.children[0], field, deeper)
            case tree.SearchField():
                return self.condition(node.children[0], _plain(node.name), deeper)
        self.tests += 1
        if self.tests > MAX_TESTS:
            raise self.error(node, f"more than {MAX_TESTS} conditions", "Write fewer.")
        return self.test(node, field)

    def test(self, node: Any, field: str) -> Condition:
        from luqum import tree

        if not field:
            if not isinstance(node, (tree.Word, tree.Phrase)):
                raise self.error(node, f"{node!s} without a field", "Write field:value.")
            return self.says(node)
        kind, many = self.kind(node, field)
        match node:
            case tree.Range():
                ends = (node.low, node.include_low), (node.high, node.include_high)
                return self.between(node, field, *ends)
            case tree.From():
                return self.between(node, field, (node.children[0], node.include), (None, True))
            case tree.To():
                return self.between(node, field, (None, True), (node.children[0], node.include))
            case tree.Phrase():
                return self.equal(node, field, kind, many, (_unescape(node.value[1:-1]),))
            case tree.Word():
                return self.equal(node, field, kind, many, _pieces(node.value))
        raise self.error(node, f"{node!s} is not known here", "Quote it.")

    def says(self, node: Any) -> Condition:
        phrase = node.value.startswith('"') and type(node).__name__ == "Phrase"
        pieces = (_unescape(node.value[1:-1]),) if phrase else _pieces(node.value)
        self.bounded(node, pieces, is_text=True)
        if all(piece == STAR for piece in pieces):
            return EVERYTHING
        return Says(_within_text(pieces))

    def kind(self, node: Any, field: str) -> tuple[Kind, bool]:
        declared = self.fields.get(field)
        if declared is None:
            outer = field.rpartition("vendor.")
            if outer[1] and self.fields.get(outer[0] + "vendor") == "flat_object":
                return "object", False
            near = _nearest(field, self.fields)
            raise QueryError(
                f"there is no field {field}",
                self.place(node, before=field),
                f"Write {near}." if near else f'Choose a field, or quote it: "{field}:…".',
            )
        return KINDS[declared.removesuffix("[]")], declared.endswith("[]")

    def bounded(self, node: Any, pieces: Sequence[str], *, is_text: bool) -> None:
        wildcards = [piece for piece in pieces if piece in (STAR, ONE)]
        if len(wildcards) > MAX_WILDCARDS:
            raise self.error(node, f"more than {MAX_WILDCARDS} wildcards in a word", "Write fewer.")
        most = MAX_PATTERN_ONE if ONE in wildcards else MAX_PATTERN
        length = sum(map(len, pieces)) - len(wildcards)
        if (wildcards or is_text) and length > most:
            raise self.error(node, f"a word of {length} characters", f"Write at most {most}.")

    def equal(
        self, node: Any, field: str, kind: Kind, many: bool, pieces: tuple[str, ...]
    ) -> Condition:
        self.bounded(node, pieces, is_text=kind == "text")
        if pieces == (STAR,):
            return Has(field, kind, many)
        wild = any(piece in (STAR, ONE) for piece in pieces)
        text = "".join(pieces)
        if kind in ("number", "date", "boolean", "severity") and wild:
            raise self.error(node, f"{field} has no wildcards", f"Write {_example(kind, field)}.")
        match kind:
            case "text":
                return Like(field, kind, many, _within_text(pieces), folded=True)
            case "boolean":
                if text.lower() not in ("true", "false"):
                    raise self.error(node, f"{text} is neither true nor false", "Write true.")
                return Is(field, kind, many, text.lower() == "true")
            case "number" | "severity":
                value = self.number(node, field, kind, text)
                return Between(field, kind, many, value, value)
            case "date":
                low, high = self.time(node, text)
                return Between(field, kind, many, low, high, True, low == high)
            case "ip" if not wild:
                return self.address(node, field, many, text)
        if kind == "object" and field in self.fields:
            raise self.error(node, f"{field} is no single value", f"Write {field}.name:value.")
        return Like(field, kind, many, pieces) if wild else Is(field, kind, many, text)

    def address(self, node: Any, field: str, many: bool, text: str) -> Condition:
        address, slash, length = text.partition("/")
        try:
            canonical = str(ipaddress.ip_address(address))
        except ValueError:
            raise self.error(
                node, f"{address} is no address", "Write 192.0.2.7, 192.0.2.* or 192.0.2.0/24."
            ) from None
        if not slash:
            return Is(field, "ip", many, canonical)
        try:
            network = ipaddress.ip_network(f"{canonical}/{length}", strict=False)
        except ValueError:
            example = "192.0.2.0/24" if "." in address else "2001:db8::/32"
            raise self.error(
                node, f"no network is /{length}", f"Write {example} or a single address."
            ) from None
        return Within(field, "ip", many, str(network))

    def between(
        self, node: Any, field: str, low: tuple[Any, bool], high: tuple[Any, bool]
    ) -> Condition:
        kind, many = self.kind(node, field)
        if kind not in ("number", "date", "severity"):
            raise self.error(
                node, f"{field} is not ordered", f"Write {_example(kind, field)} instead."
            )
        down, with_low = self.bound(*low, field, kind, is_low=True)
        up, with_high = self.bound(*high, field, kind, is_low=False)
        return Between(field, kind, many, down, up, with_low, with_high)

    def bound(
        self, node: Any, included: bool, field: str, kind: Kind, *, is_low: bool
    ) -> tuple[float | int | None, bool]:
        """A limit, and whether it belongs to the span; a day as a limit means its end or start."""
        text = "*" if node is None else _unescape(str(node).strip().strip('"'))
        if text == "*":
            return None, True
        if kind != "date":
            return self.number(node, field, kind, text), included
        first, after = self.time(node, text)
        if first == after:
            return first, included
        if is_low:
            return (first if included else after), True
        return (after if included else first), False

    def number(self, node: Any, field: str, kind: Kind, text: str) -> float | int:
        if kind == "severity":
            if text.lower() not in SEVERITIES:
                raise self.error(node, f"{text} is no severity", f"Write {', '.join(SEVERITIES)}.")
            return SEVERITIES.index(text.lower())
        try:
            value = float(text)
            if re.fullmatch(r"[+-]?\d{1,18}", text):
                return int(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(node, f"{text} is no number", f"Write {field}:10 or {field}:>=10.")
        return value

    def time(self, node: Any, text: str) -> tuple[int, int]:
        """First microsecond that a time means, and the first one after it; equal: an instant."""
        try:
            return read_time(text, self.now)
        except (ValueError, OverflowError):
            raise self.error(
                node, f"{text} is no time", "Write 2026-03-01, 2026-03-01T12:30Z or now-24h."
            ) from None

    def error(self, node: Any, what: str, todo: str) -> QueryError:
        return QueryError(what, self.place(node), todo)

    def place(self, node: Any, before: str = "") -> int:
        at = getattr(node, "pos", 0) or 0
        at = self.places[min(at, len(self.places) - 1)] + 1
        return max(1, at - len(before) - 1) if before else at


def _flat(node: Any) -> Iterator[Any]:
    """Parts of an implicit operation; luqum nests them as deep as there are words."""
    from luqum import tree

    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, (tree.UnknownOperation, tree.AndOperation)):
            waiting += reversed(one.children)
        else:
            yield one


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


_plain = _unescape


def _pieces(word: str) -> tuple[str, ...]:
    """Literal pieces and wildcards of a word; an escaped star is no wildcard."""
    found: list[str] = []
    literal = ""
    for part in re.findall(r"\\.|.", word, flags=re.DOTALL):
        if part not in ("*", "?"):
            literal += part[-1]
            continue
        if literal:
            found.append(literal)
            literal = ""
        if part == "?" or not found or found[-1] != STAR:
            found.append("\0" + part)
    return (*found, literal) if literal else tuple(found)


def _within_text(pieces: Sequence[str]) -> tuple[str, ...]:
    """A pattern that may stand anywhere in a text, folded."""
    body = [piece if piece in (STAR, ONE) else fold(piece) for piece in pieces]
    front = [] if body and body[0] == STAR else [STAR]
    back = [] if body and body[-1] == STAR else [STAR]
    return (*front, *body, *back)


def _example(kind: Kind, field: str) -> str:
    return {
        "number": f"{field}:>=10",
        "date": f"{field}:>=now-24h",
        "boolean": f"{field}:true",
        "severity": f"{field}:>=high",
        "ip": f"{field}:192.0.2.0/24",
    }.get(kind, f"{field}:value")


def _nearest(field: str, fields: Mapping[str, str]) -> str:
    import difflib

    ends = [name for name in fields if name.endswith("." + field)]
    return next(iter(ends or difflib.get_close_matches(field[:80], fields, 1, 0.75)), "")


# ---- Times

_RELATIVE = re.compile(r"now(?:([+-])(\d{1,6})([smhdw]))?(?:/([smhdw]))?")
_UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
_SHAPES = (
    (re.compile(r"\d{4}-\d\d-\d\d"), timedelta(days=1)),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(Z|[+-]\d\d:\d\d)?"), timedelta(minutes=1)),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)?"), timedelta(seconds=1)),
    (
        re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}(Z|[+-]\d\d:\d\d)?"),
        timedelta(0),
    ),
)


def read_time(text: str, now: datetime) -> tuple[int, int]:
    """What a time means, in microseconds since 1970: its first, and the first after it.

    Raises:
        ValueError: it is no time.
    """
    if relative := _RELATIVE.fullmatch(text):
        sign, count, unit, floor = relative.groups()
        at = now
        if sign:
            at += _UNITS[unit] * int(count) * (1 if sign == "+" else -1)
        if floor:
            start = _MONDAY if floor == "w" else _EPOCH
            at = start + (at - start) // _UNITS[floor] * _UNITS[floor]
            return micros(at), micros(at + _UNITS[floor])
        return micros(at), micros(at)
    for shape, length in _SHAPES:
        if shape.fullmatch(text):
            at = datetime.fromisoformat(text)
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
            return micros(at), micros(at) + length // timedelta(microseconds=1)
    raise ValueError(text)


def micros(time: datetime) -> int:
    """Microseconds since 1970."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_micros(value: int) -> datetime:
    """The time of some microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=value)


def steps(span: Range, first: int, last: int, buckets: int) -> tuple[int, int]:
    """Start and width of the buckets, in microseconds: of the span, or of what is in it."""
    start = micros(span.since) if span.since.year > 1970 else first
    end = micros(span.until) if span.until.year < 9999 else last + 1
    return start, max(1, -(-(end - start) // buckets))


# ---- Folding and patterns, the same in Python and in both SQLs


class _Folding(dict[int, str]):
    def __missing__(self, code: int) -> str:
        character = chr(code)
        lower = character.lower()
        # Only simple mappings, as DuckDB folds: İ becomes i, and Σ is σ wherever it stands.
        self[code] = lower if len(lower) == 1 else lower[0]
        return self[code]


_FOLDING = _Folding()


def fold(text: str) -> str:
    """Text in lower case, letter by letter."""
    return text.lower() if text.isascii() else text.translate(_FOLDING)


BETWEEN_TEXTS = "\x1e"
"""Between the folded texts of a document; no query can contain it."""


def folded(texts: Iterable[str]) -> str:
    """Texts as bare words search them in SQLite."""
    return BETWEEN_TEXTS.join(fold(text).replace(BETWEEN_TEXTS, " ") for text in texts)


@lru_cache(maxsize=256)
def matcher(pattern: tuple[str, ...]) -> Callable[[str], bool]:
    """A pattern as a function that never goes back: a hostile pattern costs length × length."""
    parts: list[list[str]] = [[]]
    for piece in pattern:
        if piece == STAR:
            parts.append([])
        else:
            parts[-1].append("." if piece == ONE else re.escape(piece))
    first, *rest = [re.compile("".join(part), re.DOTALL) for part in parts]
    if not rest:
        return lambda text: first.fullmatch(text) is not None
    *middle, last = rest
    width = sum(len(piece) if piece != ONE else 1 for piece in _last_part(pattern))

    def fits(text: str) -> bool:
        start = first.match(text)
        if start is None:
            return False
        at = start.end()
        for part in middle:
            found = part.search(text, at)
            if found is None:
                return False
            at = found.end()
        end = len(text) - width
        return end >= at and last.fullmatch(text, end) is not None

    return fits


def _last_part(pattern: Sequence[str]) -> list[str]:
    stars = [place for place, piece in enumerate(pattern) if piece == STAR]
    return list(pattern[stars[-1] + 1 :])


@lru_cache(maxsize=256)
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)


@lru_cache(maxsize=65_536)
def in_network(address: str, network: str) -> bool:
    """Whether an address lies in a network; False for what is no address."""
    try:
        return ipaddress.ip_address(address) in _network(network)
    except ValueError:
        return False


# ---- Conditions → SQL

Sql = tuple[str, list[Any]]


class Dialect:
    """What both visitors share: and, or, not. Every leaf is true or false, never NULL."""

    def where(self, condition: Condition) -> Sql:
        """A condition as an expression with `?` for each of its values."""
        match condition:
            case All(parts=parts):
                return self._join(" AND ", parts, "TRUE")
            case Any_(parts=parts):
                return self._join(" OR ", parts, "FALSE")
            case No(part=part):
                text, values = self.where(part)
                return f"(NOT {text})", values
            case _:
                return self.leaf(condition)

    def _join(self, word: str, parts: Sequence[Condition], empty: str) -> Sql:
        made = [self.where(part) for part in parts]
        if not made:
            return empty, []
        text = word.join(text for text, _ in made)
        return f"({text})", [value for _, values in made for value in values]

    def leaf(self, test: Test) -> Sql:
        """One test as SQL."""
        raise NotImplementedError


def _span(operand: str, test: Between) -> Sql:
    parts, values = [], []
    if test.low is not None:
        parts.append(f"{operand} {'>=' if test.with_low else '>'} ?")
        values.append(test.low)
    if test.high is not None:
        parts.append(f"{operand} {'<=' if test.with_high else '<'} ?")
        values.append(test.high)
    return " AND ".join(parts) or "TRUE", values


class SqliteDialect(Dialect):
    """Findings: columns for what is asked often, JSON for the rest.

    The connection needs the functions of `sqlite_functions`.
    """

    def __init__(self, columns: Mapping[str, str], document: str, folded: str) -> None:
        self._columns = columns
        self._document = document
        self._folded = folded

    def leaf(self, test: Test) -> Sql:
        """One test as SQL."""
        if isinstance(test, Says):
            return _wild(self._folded, test.pattern, "wild_any")
        if column := self._columns.get(test.field):
            inner, values = self._on(test, column, f"text_of({column})")
            return f"({column} IS NOT NULL AND {inner})", values
        key, path = _json_path(test)
        operand = "CASE type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE atom END"
        if test.kind in ("number", "date", "severity"):
            operand = "atom"
        inner, values = self._on(test, operand, f"text_of({operand})")
        source = f"json_each({self._document}, ?)"
        if key:
            return (
                f"EXISTS (SELECT 1 FROM {source} AS outer_ WHERE outer_.key = ? AND {inner})",
                [path, key, *values],
            )
        atoms = "atom IS NOT NULL" if test.kind != "object" else "TRUE"
        return f"EXISTS (SELECT 1 FROM {source} WHERE {atoms} AND {inner})", [path, *values]

    def _on(self, test: Test, operand: str, text: str) -> Sql:
        match test:
            case Is(value=bool() as value):
                return f"{operand} = ?", ["true" if value else "false"]
            case Is(value=value):
                return f"{text} = ?", [value]
            case Like():
                return _wild(f"fold({text})" if test.folded else text, test.pattern)
            case Within():
                return f"in_network({text}, ?)", [test.network]
            case Between():
                return _span(operand, test)
        return "TRUE", []


def _json_path(test: Test) -> tuple[str, str]:
    """Key inside a flat object, and the path of the field."""
    assert not isinstance(test, Says)
    if test.kind == "object" and not test.field.endswith("vendor"):
        outer, vendor, key = test.field.partition("vendor.")
        return key, f'$."{outer}{vendor[:-1]}"'
    return "", f'$."{test.field}"'


def _wild(operand: str, pattern: Sequence[str], function: str = "wild") -> Sql:
    # A plain substring needs no call out of SQLite.
    if len(pattern) == 3 and pattern[0] == pattern[2] == STAR and pattern[1] != ONE:
        return f"instr({operand}, ?) > 0", [pattern[1]]
    return f"{function}(?, {operand})", ["\1".join(pattern)]


def sqlite_functions() -> Iterator[tuple[str, int, Callable[..., Any]]]:
    """Functions that the SQL for findings calls: name, number of arguments, function."""

    def wild(pattern: str, text: str | None) -> bool:
        return text is not None and matcher(tuple(pattern.split("\1")))(text)

    def text_of(value: Any) -> str | None:
        return None if value is None else value if isinstance(value, str) else repr(value)

    def wild_any(pattern: str, texts: str) -> bool:
        fits = matcher(tuple(pattern.split("\1")))
        return any(fits(text) for text in texts.split(BETWEEN_TEXTS))

    yield "wild", 2, wild
    yield "wild_any", 2, wild_any
    yield "fold", 1, lambda text: None if text is None else fold(text)
    yield "text_of", 1, text_of
    yield "in_network", 2, lambda address, network: address and in_network(address, network)


class DuckDialect(Dialect):
    """Events: one column a field.

    The connection needs the function `in_network`.
    """

    def __init__(self, columns: Mapping[str, str], texts: Sequence[str]) -> None:
        """Make it.

        Args:
            columns: Field names to SQL expressions; what is missing is NULL everywhere.
            texts: Fields in which a bare word is looked for.
        """
        self._columns = columns
        self._texts = [columns[name] for name in texts if name in columns]

    def leaf(self, test: Test) -> Sql:
        """One test as SQL."""
        if isinstance(test, Says):
            made = [self._like(f"lower({column})", test.pattern) for column in self._texts]
            parts = [
                f"({column} IS NOT NULL AND {text})"
                for column, (text, _) in zip(self._texts, made, strict=True)
            ]
            return f"({' OR '.join(parts) or 'FALSE'})", [one for _, some in made for one in some]
        key = ""
        column = self._columns.get(test.field)
        if column is None and test.kind == "object":
            outer, vendor, key = test.field.partition("vendor.")
            column = self._columns.get(outer + vendor[:-1])
        if column is None:
            return "FALSE", []
        if key:
            column = f"json_extract_string({column}, '{_json_key(key)}')"
        if test.many:
            inner, values = self._on(test, "x")
            if isinstance(test, Has):
                return f"coalesce(len({column}) > 0, FALSE)", []
            if isinstance(test, Is):
                return f"coalesce(list_contains({column}, ?), FALSE)", [test.value]
            return f"coalesce(len(list_filter({column}, lambda x: {inner})) > 0, FALSE)", values
        if test.kind == "object" and not key:
            return f"({column} IS NOT NULL AND CAST({column} AS VARCHAR) <> '{{}}')", []
        inner, values = self._on(test, column)
        # A conjunction, no coalesce: so the value still prunes row groups.
        return f"({column} IS NOT NULL AND {inner})", values

    def _on(self, test: Test, operand: str) -> Sql:
        match test:
            case Is(value=value):
                return f"{operand} = ?", [value]
            case Like():
                return self._like(f"lower({operand})" if test.folded else operand, test.pattern)
            case Within():
                return _duck_network(operand, test.network)
            case Between(kind="date"):
                times = {
                    name: None if value is None else from_micros(int(value)).replace(tzinfo=None)
                    for name, value in (("low", test.low), ("high", test.high))
                }
                text, _ = _span(operand, test)
                return text, [time for time in times.values() if time is not None]
            case Between():
                return _span(operand, test)
        return "TRUE", []

    def _like(self, operand: str, pattern: Sequence[str]) -> Sql:
        # A plain substring is searched, anything else goes to RE2, which never goes back.
        if len(pattern) == 3 and pattern[0] == pattern[2] == STAR and pattern[1] != ONE:
            return f"contains({operand}, ?)", [pattern[1]]
        if len(pattern) == 2 and pattern[1] == STAR and pattern[0] != ONE:
            return f"starts_with({operand}, ?)", [pattern[0]]
        made = {STAR: ".*", ONE: "."}
        expression = "".join(made.get(piece) or _re2_escape(piece) for piece in pattern)
        return f"regexp_full_match({operand}, ?, 's')", [expression]


def _re2_escape(text: str) -> str:
    # RE2 takes a backslash before punctuation of ASCII only.
    return re.sub(r"[!-/:-@\[-`{-~]", r"\\\g<0>", text)


def _json_key(key: str) -> str:
    """A key as part of a literal; the reader lets only harmless characters through."""
    if not re.fullmatch(r"[\w.@-]+", key):
        raise QueryError(f"{key} is no name", 1, "Use letters, digits, `.`, `_`, `-`.")
    return f'$."{key}"'


def _duck_network(operand: str, network: str) -> Sql:
    wanted = ipaddress.ip_network(network)
    if wanted.version == 6:
        return f"(contains({operand}, ':') AND in_network({operand}, ?))", [network]
    # DuckDB's inet is an extension that would have to be loaded from outside.
    number = " + ".join(
        f"coalesce(TRY_CAST(split_part({operand}, '.', {place}) AS BIGINT), 0) * {factor}"
        for place, factor in ((1, 16_777_216), (2, 65_536), (3, 256), (4, 1))
    )
    low, high = int(wanted.network_address), int(wanted.broadcast_address)
    return (
        f"(NOT contains({operand}, ':') AND contains({operand}, '.') AND {number} BETWEEN ? AND ?)",
        [low, high],
    )
