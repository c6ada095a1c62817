"""Regular expressions of RE2 as those of Lucene.

RE2 looks for an expression anywhere in a value and needs no automaton as a whole; Lucene compares a
whole value and makes all of the automaton first. So what is written here is measured before
(`_refuse_large`), and what the two read differently is refused.

References:
    RE2, "Syntax". Lucene 9.12, `RegExp` and `Operations.determinize`.
"""

from __future__ import annotations

import importlib
import re
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from siem.lucene import MAX_LENGTH, Inexpressible, escaped, is_long

_LAST = 0x10FFFF
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
_NOT_PYTHON = re.compile(r"\[:\^?[a-z]+:\]|\{,\d|\\[QEpPC]|\\x\{")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def regex(pattern: str, flags: str) -> list[str]:
    """An expression of RE2 that is looked for anywhere in a value, as several; one has to hold.

    Raises:
        Inexpressible: it has what Lucene does not have or what we read differently, or it is too
            large there: RE2 needs no automaton as a whole, Lucene does.
    """
    if found := _FLAGS_FIRST.match(pattern):
        pattern, flags = pattern[found.end() :], flags + found[1]
    tree = _parsed(pattern)
    reader = _Regex(set(flags))
    made = dict.fromkeys(reader.whole(one) for one in reader.edges(tree))
    if any(map(is_long, made)):
        raise Inexpressible(f"a regular expression is longer than {MAX_LENGTH} characters there")
    return list(made)


def _parsed(pattern: str) -> list[Any]:
    """An expression as Python reads it, which is as RE2 does but for what is refused here."""
    if _NOT_PYTHON.search(pattern.replace("\\\\", "")):
        raise Inexpressible(f"{pattern[:60]!r} has what only RE2 reads")
    parser = importlib.import_module("re._parser")
    end_as_here = _ESCAPE.sub(lambda found: r"\Z" if found[1] == "z" else found[0], pattern)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = parser.parse(end_as_here)
    except (re.error, Warning, OverflowError, RecursionError) as error:
        raise Inexpressible(f"{pattern[:60]!r} has what only RE2 reads: {error}") from error
    if found.state.flags & ~re.UNICODE:
        raise Inexpressible(f"{pattern[:60]!r} sets flags within itself")
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
                return f"({'|'.join(self._sequence(one) or '()' for one in value[1])})"
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
