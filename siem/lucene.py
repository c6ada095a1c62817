"""What a rule compares, as expressions of Lucene: each says of a whole value what ours does.

A search cluster keeps values as they came, and knows no case but that of ASCII. So a letter is
written with every letter that becomes it when it is folded; what cannot be said exactly is refused
(`Inexpressible`), never said roughly.

References:
    Lucene 9.12, `org.apache.lucene.util.automaton.RegExp`, all of its operators on. RE2, "Syntax".
    RFC 3986, IPv6address.
"""

from __future__ import annotations

import importlib
import re
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import groupby, pairwise
from typing import Any

import msgspec

from detectors.sigma.matchers import Like
from detectors.sigma.texts import DASHES, Sign

MAX_LENGTH = 998
"""Characters of one expression: `index.max_regex_length` of OpenSearch, less a pair of brackets."""


class Inexpressible(Exception):  # noqa: N818 – becomes a line of a report
    """A search cannot say this as we do; why, in words."""


ONES_MAX = 6
"""So many `?` may a text have: each may double the automaton that Lucene makes of it."""

# --- Characters --------------------------------------------------------------------------------

_SPECIAL = frozenset('.?+*|{}[]()"\\#@&<>~^$-/')
_LAST = 0x10FFFF
_DOTTED = "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}"
"""The one character that becomes two when it is folded: i and a dot."""
_UNSURE = frozenset(
    "\N{COMBINING DOT ABOVE}\N{GREEK SMALL LETTER SIGMA}\N{GREEK SMALL LETTER FINAL SIGMA}"
)
"""What may come from a part of a character, or from another one at the end of a word."""


def escaped(text: str) -> str:
    """A text that stands for itself."""
    return "".join(f"\\{char}" if char in _SPECIAL else char for char in text)


@cache
def _origins() -> dict[str, str]:
    """A folded letter to all letters that become it alone."""
    found: dict[str, str] = {}
    for char in map(chr, range(_LAST + 1)):
        folded = char.lower()
        if folded != char and len(folded) == 1:
            found[folded] = found.get(folded, folded) + char
    return found


def _letter(char: str, more: str = "") -> str:
    """A folded character as it may be written."""
    several = _origins().get(char, char) + more
    return escaped(char) if len(several) == 1 else f"[{''.join(map(escaped, several))}]"


# --- Texts with wildcards ----------------------------------------------------------------------


class Shape(msgspec.Struct, frozen=True):
    """A text as an expression, and whether any characters may stand before and behind it."""

    before: bool
    core: str
    behind: bool

    def whole(self, core: str) -> str:
        """The expression of a whole value."""
        return f"{'.*' * self.before}{core}{'.*' * self.behind}"


def word_of(one: Like) -> str | None:
    """The one value that a text stands for; None if there are others."""
    word = "".join(str(part) for part in one.text if not isinstance(part, Sign))
    if any(isinstance(part, Sign) for part in one.text):
        return None
    return word if one.cased or all(_letter(char) == escaped(char) for char in word) else None


def any_of(texts: Iterable[Like]) -> list[str]:
    """Expressions of which one holds on a value if one of the texts does; as few as there can be.

    Raises:
        Inexpressible: what is wrong with one of them.
    """
    shapes = sorted({_shape(one) for one in texts}, key=lambda one: (one.before, one.behind))
    found: list[str] = []
    for _, alike in groupby(shapes, lambda one: (one.before, one.behind)):
        ordered = sorted(alike, key=lambda one: one.core)
        found += _drawn_together(ordered)
    return found


def _drawn_together(shapes: Sequence[Shape]) -> Iterator[str]:
    """Alternatives of one shape, as many in an expression as it may hold."""
    some: list[str] = []
    for one in shapes:
        if ".*" in one.core:
            yield one.whole(one.core)  # together they would be an automaton without end
            continue
        if len(one.whole(f"({'|'.join([*some, one.core])})")) > MAX_LENGTH:
            if some:
                yield _one_of(one, some)
            some = []
        some.append(one.core)
        if len(one.whole(one.core)) > MAX_LENGTH:
            raise Inexpressible(f"a text is longer than {MAX_LENGTH} characters as an expression")
    if some:
        yield _one_of(shapes[0], some)


def _one_of(shape: Shape, cores: Sequence[str]) -> str:
    return shape.whole(cores[0] if len(cores) == 1 else f"({'|'.join(cores)})")


def _shape(one: Like) -> Shape:
    if one.text.count(Sign.ONE) > ONES_MAX:
        raise Inexpressible(f"more than {ONES_MAX} `?` in a text")
    letters = {char for part in one.text if isinstance(part, str) for char in part}
    if not one.cased and not letters.isdisjoint(_UNSURE):
        raise Inexpressible("how a letter of the text is folded depends on its neighbours")
    pieces: list[list[str | Sign]] = [[]]
    for part in one.text:
        if part is Sign.MANY:
            pieces.append([])
        elif isinstance(part, Sign):
            pieces[-1].append(part)
        else:
            pieces[-1] += part
    last = len(pieces) - 1
    cores = [
        _piece(piece, one.cased, before=place > 0, behind=place < last)
        for place, piece in enumerate(pieces)
    ]
    before, behind = last > 0 and not cores[0], last > 0 and not cores[-1]
    inner = cores[before : len(cores) - behind] if cores != ["", ""] else []
    return Shape(before, ".*".join(inner), behind and cores != ["", ""])


def _piece(parts: Sequence[str | Sign], cased: bool, *, before: bool, behind: bool) -> str:
    """What stands between two `*`; any characters may stand before it, behind it."""
    if cased:
        return "".join(_plain(part) for part in parts)
    last = len(parts) - 1
    lengths: dict[int, str] = {len(parts): "", len(parts) + 1: ""}
    for place in range(last, -1, -1):
        part = parts[place]
        at_edge = (place == 0 and before) or (place == last and behind)
        if part is Sign.ONE:
            here = "." if at_edge else f"[^{_DOTTED}]"
        elif isinstance(part, Sign):
            here = _plain(part)
        else:
            here = _letter(part, _DOTTED if part == "i" and place == last and behind else "")
        made = here + lengths[place + 1]
        if part in ("i", Sign.ONE) and place < last and parts[place + 1] is Sign.ONE:
            made = f"({made}|{_DOTTED}{lengths[place + 2]})"
        if len(made) > MAX_LENGTH:
            raise Inexpressible(f"a text is longer than {MAX_LENGTH} characters as an expression")
        lengths[place] = made
    return lengths[0]


def _plain(part: str | Sign) -> str:
    if part is Sign.ONE:
        return "."
    return f"[{escaped(DASHES)}]" if isinstance(part, Sign) else escaped(part)


# --- Numbers and addresses in texts ------------------------------------------------------------


def number(limit: float) -> str:
    """Texts that are this number; those that shift its point by an exponent are not among them."""
    digits = format(Decimal(repr(limit)), "f")
    sign, digits = ("-", digits[1:]) if digits.startswith("-") else (r"\+?", digits)
    whole, _, part = digits.partition(".")
    whole, part = whole.lstrip("0"), part.rstrip("0")
    tail = r"([eE][+\-]?0+)?"
    if not whole and not part:
        return r"[+\-]?(0+(\.0*)?|\.0+)([eE][+\-]?[0-9]+)?"
    if not part:
        return rf"{_sign(sign)}0*{whole}(\.0*)?{tail}"
    return rf"{_sign(sign)}0*{whole}\.{part}0*{tail}"


def _sign(sign: str) -> str:
    return r"\-" if sign == "-" else sign


_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_FOUR = rf"{_OCTET}(\.{_OCTET}){{3}}"
_HEX = "[0-9a-fA-F]{1,4}"
_SCOPE = r"(%[^%\/]+)?"


def network(text: str) -> str:
    """Texts that are an address of a network; not those that write IPv4 in the digits of IPv6.

    Raises:
        Inexpressible: it is a network of IPv6 that takes too many spellings.
    """
    given = ip_network(text)
    return _four(given) if isinstance(given, IPv4Network) else _six(given)


def _four(given: IPv4Network) -> str:
    octets = []
    for first, last in zip(given[0].packed, given[-1].packed, strict=True):
        if (first, last) == (0, 255):
            octets.append(_OCTET)
        else:
            several = range(first, last + 1)
            octets.append(f"({'|'.join(map(str, several))})" if first < last else str(first))
    mapped = "((0{1,4}:){5}[fF]{4}:|::(0{1,4}:){0,4}[fF]{4}:)?"
    return mapped + r"\.".join(octets)


def _six(given: IPv6Network) -> str:
    first, bits = int(given[0]) >> 112, given.prefixlen
    if given == _LOOPBACK:
        begin = rf"[0:]*:(0{{0,3}}1|0\.0\.0\.1){_SCOPE}"
    elif 0 < bits <= 16 and first >= 0x1000:
        groups = range(first, (int(given[-1]) >> 112) + 1)
        begin = f"{_begins(f'{groups[0]:04x}', f'{groups[-1]:04x}')}:.*"
    else:
        raise Inexpressible(f"an address of {given} is written in too many ways in a text")
    return f"({begin})&(({_any_six()}){_SCOPE})"


_LOOPBACK = ip_network("::1/128")


def _begins(first: str, last: str) -> str:
    """Four hexadecimal digits between two numbers that differ in their last bits alone."""
    made = []
    for low, high in zip(first, last, strict=True):
        several = [f"{digit:x}" for digit in range(int(low, 16), int(high, 16) + 1)]
        made.append(f"[{''.join(dict.fromkeys(c for d in several for c in (d, d.upper())))}]")
    return "".join(made)


def _any_six() -> str:
    """Every spelling of an IPv6 address: eight groups, or at most seven and one gap between."""
    some = f"({_HEX}(:{_HEX})*)?"
    short = f"({some}::{some})&((:{{0,2}}{_HEX}){{0,7}}:{{0,2}})"
    mixed = f"({some}::({_HEX}:)*{_FOUR})&((:{{0,2}}{_HEX}){{0,5}}:{{1,2}}{_FOUR})"
    return f"{_HEX}(:{_HEX}){{7}}|({_HEX}:){{6}}{_FOUR}|{short}|{mixed}"


# --- Regular expressions of RE2 ----------------------------------------------------------------

_Ranges = tuple[tuple[int, int], ...]
_CATEGORIES: dict[str, _Ranges] = {
    "DIGIT": ((48, 57),),
    "WORD": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "SPACE": ((9, 10), (12, 13), (32, 32)),
}
"""As RE2 has them: ASCII, and no vertical tab."""
_FOLDS = {"k": "\N{KELVIN SIGN}", "s": "\N{LATIN SMALL LETTER LONG S}"}
"""Letters beyond ASCII that RE2 takes for one of ASCII where case does not count."""
_FLAGS_FIRST = re.compile(r"\(\?([ims]+)\)")
_NOT_PYTHON = re.compile(r"\[\[:|\[:\^?[a-z]+:\]|\{,\d|\\[zQEpPCx]\{?|\(\?P?<?[=!]")


def regex(pattern: str, flags: str) -> list[str]:
    """An expression of RE2 that is looked for anywhere in a value, as several; one has to hold.

    Raises:
        Inexpressible: it has what Lucene does not have or what we read differently, or it is too
            large there: RE2 needs no automaton as a whole, Lucene does.
    """
    if found := _FLAGS_FIRST.match(pattern):
        pattern, flags = pattern[found.end() :], flags + found[1]
    tree = _parsed(pattern.replace(r"\z", r"\Z"), pattern)
    reader = _Regex(set(flags))
    made = dict.fromkeys(reader.whole(one) for one in reader.edges(tree))
    if any(len(one) > MAX_LENGTH for one in made):
        raise Inexpressible(f"a regular expression is longer than {MAX_LENGTH} characters there")
    return list(made)


def _parsed(pattern: str, given: str) -> list[Any]:
    # What Python parses with a warning or differently is not parsed at all.
    if _NOT_PYTHON.search(given.replace(r"\z", "").replace("\\\\", "")):
        raise Inexpressible(f"{given[:60]!r} has what only RE2 reads")
    parser = importlib.import_module("re._parser")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = parser.parse(pattern)
    except (re.error, Warning, OverflowError, RecursionError) as error:
        raise Inexpressible(f"{given[:60]!r} has what only RE2 reads: {error}") from error
    if found.state.flags & ~re.UNICODE:
        raise Inexpressible(f"{given[:60]!r} sets flags within itself")
    return list(found)


class _Regex:
    """Writes a parsed expression in Lucene's way."""

    def __init__(self, flags: set[str]) -> None:
        self._flags = flags

    def edges(self, parts: Sequence[Any]) -> Iterator[list[Any]]:
        """The alternatives of an expression, with `^` and `$` at their very ends if anywhere."""
        is_open = bool(parts) and (len(parts) == 1 or _has_anchor(parts[0]))
        if is_open and (several := _opened(parts[0])):
            for one in several:
                yield from self.edges([*one, *parts[1:]])
        elif len(parts) > 1 and _has_anchor(parts[-1]) and (several := _opened(parts[-1])):
            for one in several:
                yield from self.edges([*parts[:-1], *one])
        else:
            yield list(parts)

    def whole(self, parts: list[Any]) -> str:
        """An alternative as an expression of a whole value."""
        begins = bool(parts) and _is_anchor(parts[0], "AT_BEGINNING")
        ends = bool(parts) and _is_anchor(parts[-1], "AT_END")
        if (begins or ends) and "m" in self._flags:
            raise Inexpressible("`^` and `$` of lines")
        inner = parts[begins : len(parts) - ends]
        while inner and _is_anchor(inner[0], "AT_BEGINNING"):
            inner = inner[1:]
        made = self._sequence(inner)
        _refuse_large([*_ANY[begins:], *inner, *_ANY[ends:]], self)
        if not begins and not ends:
            return f".*{made}.*" if made else ".*"
        return f"{'' if begins else '.*'}{made}{'' if ends else '.*'}"

    def _sequence(self, parts: Iterable[Any]) -> str:
        return "".join(map(self._part, parts))

    def characters(self, part: Any) -> _Ranges | None:
        """What a part that is one character may be; None if it is none."""
        match str(part[0]), part[1]:
            case "LITERAL", value:
                return self._folded(((value, value),))
            case "NOT_LITERAL", value:
                return _rest(self._folded(((value, value),)))
            case "ANY", _:
                return ((0, _LAST),) if "s" in self._flags else _rest(((10, 10),))
            case "IN", value:
                return self._class(value)
            case "EVERY", _:
                return ((0, _LAST),)
        return None

    def _part(self, part: Any) -> str:
        kind, value = str(part[0]), part[1]
        if (characters := self.characters(part)) is not None:
            return _written(characters)
        match kind:
            case "BRANCH":
                return f"({'|'.join(self._sequence(one) for one in value[1])})"
            case "SUBPATTERN":
                _, added, removed, inner = value
                if added or removed:
                    raise Inexpressible("flags within an expression")
                return f"({self._sequence(inner)})"
            case "MAX_REPEAT" | "MIN_REPEAT":
                return self._repeated(*value)
        raise Inexpressible(f"{_WORDS.get(str(value), kind.lower())} within an expression")

    def _repeated(self, least: int, most: Any, inner: Any) -> str:
        made = self._sequence(inner)
        if not made:
            return ""
        several = {(0, 1): "?", (0, None): "*", (1, None): "+"}
        top = None if str(most) == "MAXREPEAT" else int(most)
        sign = several.get((least, top))
        if sign is None:
            sign = f"{{{least}}}" if least == top else f"{{{least},{'' if top is None else top}}}"
        return f"({made}){sign}"

    def _class(self, items: Iterable[Any]) -> _Ranges:
        found: list[tuple[int, int]] = []
        is_not = False
        for kind, value in items:
            match str(kind):
                case "NEGATE":
                    is_not = True
                case "LITERAL":
                    found += self._folded(((value, value),))
                case "RANGE":
                    found += self._folded((value,))
                case _:
                    name = str(value).removeprefix("CATEGORY_")
                    ranges = _CATEGORIES[name.removeprefix("NOT_")]
                    found += _rest(ranges) if name.startswith("NOT_") else ranges
        made = _ordered(found)
        return _rest(made) if is_not else made

    def _folded(self, ranges: _Ranges) -> _Ranges:
        if "i" not in self._flags:
            return ranges
        found = list(ranges)
        for low, high in ranges:
            if high - low > 0x500 or any(
                char > "\x7f" and char.isalpha() for char in map(chr, range(low, high + 1))
            ):
                raise Inexpressible("letters beyond ASCII whose case does not count")
            for char in map(chr, range(low, high + 1)):
                others = char.lower() + char.upper() + _FOLDS.get(char.lower(), "")
                found += [(ord(one), ord(one)) for one in others]
        return _ordered(found)


EFFORT_MAX = 60_000
"""Lucene gives up after 100,000 steps towards an automaton, and counts not quite as we do."""
_ANY = [("MAX_REPEAT", (0, "MAXREPEAT", [("EVERY", None)]))]


class _States:
    """An expression as an automaton that may be in several states at once."""

    def __init__(self, reader: _Regex) -> None:
        self._reader = reader
        self.steps: list[tuple[_Ranges, int] | None] = []
        """What each state takes, and where it leads."""
        self.free: dict[int, list[int]] = {}
        """Where it leads without taking anything."""

    def _new(self) -> int:
        self.steps.append(None)
        return len(self.steps) - 1

    def add(self, parts: Iterable[Any], at: int) -> int:
        """Put parts behind a state; returns where they end."""
        for part in parts:
            at = self._add(part, at)
        return at

    def _add(self, part: Any, at: int) -> int:
        characters, value = self._reader.characters(part), part[1]
        end = self._new()
        if characters is not None:
            self.steps[begin := self._new()] = (characters, end)
            self.free.setdefault(at, []).append(begin)
            return end
        if str(part[0]) == "MAX_REPEAT" or str(part[0]) == "MIN_REPEAT":
            least, most, inner = value
            return self._repeat(least, most, inner, at)
        for one in value[1] if str(part[0]) == "BRANCH" else [value[3]]:
            self.free.setdefault(self.add(one, at), []).append(end)
        return end

    def _repeat(self, least: int, most: Any, inner: Any, at: int) -> int:
        for _ in range(least):
            at = self.add(inner, at)
        end = self._new()
        if str(most) == "MAXREPEAT":
            self.free.setdefault(at, []).append(end)
            self.free.setdefault(self.add(inner, end), []).append(end)
            return end
        for _ in range(most - least):
            self.free.setdefault(at, []).append(end)
            at = self.add(inner, at)
        self.free.setdefault(at, []).append(end)
        return end

    def closed(self, states: Iterable[int]) -> frozenset[int]:
        """States that are reached without taking anything, and take something or are the last."""
        seen, waiting = set(states), list(states)
        while waiting:
            new = [one for one in self.free.get(waiting.pop(), ()) if one not in seen]
            seen.update(new)
            waiting += new
        return frozenset(one for one in seen if self.steps[one] or one not in self.free)


def _refuse_large(parts: Iterable[Any], reader: _Regex) -> None:
    """Refuse what takes Lucene too long, as it would itself, but only once it is asked."""
    states = _States(reader)
    states.add(parts, states._new())
    cuts = sorted({end for step in states.steps if step for a, b in step[0] for end in (a, b + 1)})
    waiting = [states.closed([0])]
    seen, effort = set(waiting), 0
    while waiting:
        here = waiting.pop()
        effort += len(here)
        if effort > EFFORT_MAX:
            raise Inexpressible("a regular expression is too large there")
        leads: dict[int, set[int]] = {}
        for step in filter(None, map(states.steps.__getitem__, here)):
            for low, high in step[0]:
                for cut in range(bisect_left(cuts, low), bisect_left(cuts, high + 1)):
                    leads.setdefault(cut, set()).add(step[1])
        for targets in map(states.closed, set(map(frozenset, leads.values()))):
            if targets not in seen:
                seen.add(targets)
                waiting.append(targets)


_WORDS = {
    "AT_BOUNDARY": r"`\b`",
    "AT_NON_BOUNDARY": r"`\B`",
    "AT_BEGINNING": "`^`",
    "AT_END": "`$`",
}


def _is_anchor(part: Any, name: str) -> bool:
    return str(part[0]) == "AT" and str(part[1]) in (name, f"{name}_STRING")


def _has_anchor(part: Any) -> bool:
    kind, value = str(part[0]), part[1]
    if kind == "SUBPATTERN":
        return any(map(_has_anchor, value[3]))
    if kind == "BRANCH":
        return any(_has_anchor(one) for each in value[1] for one in each)
    return _is_anchor(part, "AT_BEGINNING") or _is_anchor(part, "AT_END")


def _opened(part: Any) -> list[list[Any]]:
    """The alternatives of a group; none if it is none."""
    kind, value = str(part[0]), part[1]
    if kind == "SUBPATTERN" and not value[1] and not value[2]:
        return [list(value[3])]
    return [list(one) for one in value[1]] if kind == "BRANCH" else []


def _ordered(ranges: Iterable[tuple[int, int]]) -> _Ranges:
    """The same characters, in order and each once."""
    made: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if made and low <= made[-1][1] + 1:
            made[-1] = (made[-1][0], max(high, made[-1][1]))
        else:
            made.append((low, high))
    return tuple(made)


def _rest(ranges: _Ranges) -> _Ranges:
    """All other characters."""
    ends = [(-1, -1), *_ordered(ranges), (_LAST + 1, _LAST + 1)]
    return tuple((a[1] + 1, b[0] - 1) for a, b in pairwise(ends) if a[1] + 1 <= b[0] - 1)


def _written(ranges: _Ranges) -> str:
    if not ranges:
        raise Inexpressible("a set without characters")
    if ranges == ((0, _LAST),):
        return "."
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return escaped(chr(ranges[0][0]))
    sign, shown = ("^", _rest(ranges)) if ranges[-1][1] == _LAST else ("", ranges)
    return f"[{sign}{''.join(map(_range, shown))}]"


def _range(one: tuple[int, int]) -> str:
    low, high = (escaped(chr(end)) for end in one)
    return low if one[0] == one[1] else f"{low}{'' if one[1] == one[0] + 1 else '-'}{high}"
