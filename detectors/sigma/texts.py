"""A value of a rule as text: words, wildcards between them, and the forms modifiers give it.

References:
    Sigma specification 2.1.0, "Wildcards", and appendix "Modifiers".
"""

from __future__ import annotations

import base64
import enum
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

MAX_ALTERNATIVES = 10_000
"""So many texts may one value stand for once dashes, offsets and placeholders are written out."""

DASHES = "-/\u2013\u2014\u2015"
"""Hyphen, slash, en dash, em dash, horizontal bar: what Windows tools take for a dash."""


class Sign(enum.IntEnum):
    """What stands in a text for characters it does not name."""

    MANY = 1
    """Any characters, or none: `*`."""
    ONE = 2
    """One character: `?`."""
    DASH = 3
    """One of `DASHES`."""


Text = tuple[str | Sign, ...]
"""A value's words and the wildcards between them."""

_WILDCARDS = {"*": Sign.MANY, "?": Sign.ONE}


def parse(value: str) -> Text:
    r"""Split a value at its wildcards; `\*`, `\?` and `\\` are the characters themselves."""
    if not _SPECIAL.search(value):
        return (value,) if value else ()
    parts: list[str | Sign] = []
    word: list[str] = []
    place = 0
    while place < len(value):
        char = value[place]
        if char == "\\" and value[place + 1 : place + 2] in ("*", "?", "\\"):
            place += 1
            word.append(value[place])
        elif char in _WILDCARDS:
            if word:
                parts.append("".join(word))
                word = []
            parts.append(_WILDCARDS[char])
        else:
            word.append(char)
        place += 1
    if word:
        parts.append("".join(word))
    return tuple(parts)


def folded(text: str) -> str:
    """As texts are compared without regard to case: each letter alone, wherever it stands.

    Python has another small sigma for the end of a word, and a word may be cut from another.
    """
    return text.lower().replace("ς", "σ")


_SPECIAL = re.compile(r"[*?\\]")


def written(word: str) -> str:
    """A word as a value that stands for it alone; `parse` gives it back."""
    return _SPECIAL.sub(r"\\\g<0>", word)


def normal(text: Text, *, cased: bool) -> Text:
    """The same text, written in the one way: folded unless cased, words joined, `*?*` as `?*`."""
    if len(text) == 1 and isinstance(text[0], str):
        return text if cased else (folded(text[0]),)
    parts: list[str | Sign] = []
    for kind, group in itertools.groupby(text, _kind):
        same = list(group)
        if kind is str:
            word = "".join(str(part) for part in same)
            if word:
                parts.append(word if cased else folded(word))
        elif kind is Sign.MANY:
            parts += [Sign.ONE] * same.count(Sign.ONE) + [Sign.MANY] * (Sign.MANY in same)
        else:
            parts += same
    return tuple(parts)


def _kind(part: str | Sign) -> Any:
    """What may be joined with its like."""
    if not isinstance(part, Sign):
        return str
    return Sign.DASH if part is Sign.DASH else Sign.MANY


def step_of(modifier: str) -> Callable[[Text], Iterable[Text]] | None:
    """What a modifier makes of a text; None if it does not change texts."""
    return _STEPS.get(modifier)


def around(text: Text) -> Text:
    """Anywhere within a value."""
    return (Sign.MANY, *text, Sign.MANY)


def bound(choices: Iterable[Sequence[Any]]) -> None:
    """Refuse choices that multiply to more than `MAX_ALTERNATIVES`."""
    total = 1
    for choice in choices:
        total *= len(choice)
        if total > MAX_ALTERNATIVES:
            raise ValueError(f"one value stands for more than {MAX_ALTERNATIVES} texts")


def _plain_bytes(text: Text) -> bytes:
    if any(isinstance(part, Sign) for part in text):
        raise ValueError("wildcards cannot be encoded as base64")
    return "".join(str(part) for part in text).encode("utf-8", "surrogateescape")


def _base64(text: Text) -> Iterator[Text]:
    for plain in dashes_written_out(text):
        yield (base64.b64encode(_plain_bytes(plain)).decode(),)


def _base64_offset(text: Text) -> Iterator[Text]:
    """The three forms a text has within base64, without the characters its neighbours change."""
    for plain in dashes_written_out(text):
        data = _plain_bytes(plain)
        for offset in range(3):
            start = (0, 2, 3)[offset]
            end = (None, -3, -2)[(len(data) + offset) % 3]
            yield (base64.b64encode(b" " * offset + data)[start:end].decode(),)


def dashes_written_out(text: Text) -> Iterator[Text]:
    """The texts that a text with dashes of any kind stands for."""
    choices = [DASHES if part is Sign.DASH else (part,) for part in text]
    bound(choices)
    yield from itertools.product(*choices)


def _encode(codec: str, mark: bytes = b"") -> Callable[[Text], Iterator[Text]]:
    """Each word as the bytes of an encoding; what is no UTF-8 is kept for a base64 behind it."""

    def step(text: Text) -> Iterator[Text]:
        for plain in dashes_written_out(text):
            marked: Text = (mark.decode("utf-8", "surrogateescape"),) if mark else ()
            yield marked + tuple(
                part
                if isinstance(part, Sign)
                else part.encode(codec, "surrogatepass").decode("utf-8", "surrogateescape")
                for part in plain
            )

    return step


WRITTEN_OUT_MAX = 5_000
"""pySigma writes out every text that dashes stand for: of so many it makes a fifth of a second."""


def is_written_out_far(section: Any) -> bool:
    """True if a part of a document has more dashes of any kind than pySigma can be given."""
    return _written_out(section, 0) > WRITTEN_OUT_MAX


def _written_out(value: Any, times: int) -> int:
    """How many texts pySigma makes of those whose field has `windash` so many times."""
    if isinstance(value, dict):
        return sum(
            _written_out(one, str(key).split("|").count("windash")) for key, one in value.items()
        )
    if isinstance(value, list):
        return sum(_written_out(one, times) for one in value)
    dashes = times * len(_DASH.findall(value)) if times and isinstance(value, str) else 0
    return len(DASHES) ** min(dashes, _DASHES_FAR) if dashes else 0


_DASHES_FAR = 20
_DASH = re.compile(r"\B[-/]\b")


def _windash(text: Text) -> Iterator[Text]:
    """A dash or slash that begins a word becomes any of the five."""
    parts: list[str | Sign] = []
    for part in text:
        if isinstance(part, Sign):
            parts.append(part)
            continue
        place = 0
        for found in _DASH.finditer(part):
            if found.start() > place:
                parts.append(part[place : found.start()])
            parts.append(Sign.DASH)
            place = found.end()
        if place < len(part):
            parts.append(part[place:])
    yield tuple(parts)


_STEPS: dict[str, Callable[[Text], Iterable[Text]]] = {
    "contains": lambda text: [around(text)],
    "startswith": lambda text: [(*text, Sign.MANY)],
    "endswith": lambda text: [(Sign.MANY, *text)],
    "base64": _base64,
    "base64offset": _base64_offset,
    "wide": _encode("utf-16-le"),
    "utf16le": _encode("utf-16-le"),
    "utf16be": _encode("utf-16-be"),
    "utf16": _encode("utf-16-le", mark=b"\xff\xfe"),
    "windash": _windash,
}
