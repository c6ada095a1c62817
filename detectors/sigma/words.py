"""Words that are looked for in many values at once, by one scan if Hyperscan is installed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from detectors.sigma.databases import Databases
from detectors.sigma.texts import Sign, Text, folded

SCAN_FROM = 24
"""What finds so many words is made at once …"""
SCAN_AFTER = 200
"""… and what finds a few once so many values have been asked for each of them."""

WORD_MAX = 1_000
"""Of a longer word so much is looked for: Hyperscan takes no more than 16,000 bytes."""

EDGE = b"\xff"
"""Stands before and behind a value: no text has this byte in UTF-8."""


def part_of(text: Text, cased: bool) -> tuple[bytes, bool] | None:
    """Bytes that a value has if it is like the text, and whether they are enough to say so."""
    words = [part for part in text if type(part) is str]
    word = word_of(words)
    try:
        data = (folded(word) if cased else word).encode()
    except UnicodeEncodeError:
        return None
    if not data:
        return None
    if words != [word] or Sign.ONE in text or Sign.DASH in text:
        return data, False
    if text[0] == word:
        data = EDGE + data
    if text[-1] == word:
        data += EDGE
    return data, not cased


def word_of(words: Iterable[str]) -> str:
    """The longest part of words that Hyperscan can look for: to it a text ends before a NUL."""
    parts = (part for word in words for part in word.split("\0"))
    return max(parts, key=len, default="")[:WORD_MAX]


class Scanner:
    """Finds which of many words data has.

    Args:
        words: The words.
        databases: Makes what finds them in one scan.
        scan_from: Of fewer that is only made when it has been worth it.
        any_case: True if ASCII letters of either case are the same; words are in lower case.
    """

    def __init__(
        self,
        words: Sequence[bytes],
        databases: Databases,
        scan_from: int = SCAN_FROM,
        any_case: bool = False,
    ) -> None:
        self._words = words
        self._any_case = any_case
        self._databases = databases
        self._one_by_one = 0 if len(words) >= scan_from else SCAN_AFTER if len(words) > 1 else -1
        """So often they are still looked for so; below zero for ever."""
        self._scan: Callable[..., object] | None = None
        self._found: list[int] = []
        put = self._found.append
        self._take = lambda number, start, end, flags, context: put(number)

    def prepare(self) -> None:
        """Make now what else is made on the first value."""
        if self._one_by_one == 0:
            self._one_by_one = -1
            database = self._databases.of(self._words, self._any_case)
            self._scan = None if database is None else database.scan

    def found(self, data: bytes) -> list[int]:
        """Numbers of the words that are in the data."""
        if self._scan is None:
            self.prepare()
        if self._scan is None:
            self._one_by_one -= self._one_by_one > 0
            data = data.lower() if self._any_case else data
            return [number for number, word in enumerate(self._words) if word in data]
        self._found.clear()
        self._scan(data, self._take)
        return self._found

    def found_in(self, several: Sequence[bytes]) -> dict[int, list[int]]:
        """Numbers of the words that are in each, by its place; where none is, it is left out."""
        if self._scan is None:
            every = ((place, [*self.found(data)]) for place, data in enumerate(several))
            return {place: numbers for place, numbers in every if numbers}
        found: dict[int, list[int]] = defaultdict(list)

        def take(number: int, start: int, end: int, flags: int, place: int) -> None:
            found[place].append(number)

        for place, data in enumerate(several):
            self._scan(data, take, 0, place)
        return found
