"""What a rule compares, as expressions of Lucene: each says of a whole value what ours does.

A search cluster keeps values as they came, and knows no case but that of ASCII. So a letter is
written with every letter that becomes it when it is folded; what cannot be said exactly is refused
(`Inexpressible`), never said roughly.

References:
    Lucene 9.12, `org.apache.lucene.util.automaton.RegExp`, all of its operators on. RFC 4291,
    "Text Representation of Addresses".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import groupby

import msgspec

from detectors.sigma.matchers import Like
from detectors.sigma.texts import DASHES, Sign, folded

MAX_LENGTH = 998
"""Characters of one expression: `index.max_regex_length` of OpenSearch, less a pair of brackets."""


class Inexpressible(Exception):  # noqa: N818 – becomes a line of a report
    """A search cannot say this as we do; why, in words."""


ONES_MAX = 6
"""So many `?` may a text have: each may double the automaton that Lucene makes of it."""


def is_long(expression: str) -> bool:
    """True if a cluster refuses an expression: it counts in UTF-16."""
    length = len(expression)
    if not expression.isascii():
        length += sum(char > "\uffff" for char in expression)
    return length > MAX_LENGTH


# --- Characters --------------------------------------------------------------------------------

_SPECIAL = frozenset('.?+*|{}[]()"\\#@&<>~^$-/')
_DOTTED = "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}"
"""The one character that becomes two when it is folded: i and a dot."""
_UNSURE = "\N{COMBINING DOT ABOVE}"
"""What may come from a part of a character."""


def escaped(text: str) -> str:
    """A text that stands for itself."""
    return "".join(f"\\{char}" if char in _SPECIAL else char for char in text)


@cache
def _origins() -> dict[str, str]:
    """A folded letter to all letters that become it alone."""
    found: dict[str, str] = {}
    for char in map(chr, range(0x110000)):
        small = folded(char)
        if small != char and len(small) == 1:
            found[small] = found.get(small, small) + char
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
        if is_long(one.whole(one.core)):
            raise Inexpressible(f"a text is longer than {MAX_LENGTH} characters as an expression")
        if ".*" in one.core:
            yield one.whole(one.core)  # together they would be an automaton without end
            continue
        if some and is_long(one.whole(f"({'|'.join([*some, one.core])})")):
            yield _one_of(one, some)
            some = []
        some.append(one.core)
    if some:
        yield _one_of(shapes[0], some)


def _one_of(shape: Shape, cores: Sequence[str]) -> str:
    return shape.whole(cores[0] if len(cores) == 1 else f"({'|'.join(cores)})")


def _shape(one: Like) -> Shape:
    if one.text.count(Sign.ONE) > ONES_MAX:
        raise Inexpressible(f"more than {ONES_MAX} `?` in a text")
    letters = {char for part in one.text if isinstance(part, str) for char in part}
    if not one.cased and _UNSURE in letters:
        raise Inexpressible("a part of a letter of the text is folded with what stands before it")
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
        if is_long(made):
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
