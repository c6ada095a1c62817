"""Regular expressions of RE2: linear time, whatever the pattern, and what a text must have for one.

References:
    RE2, "Syntax": what patterns may say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import re2


def compile_regex(pattern: str, flags: str = "") -> Callable[[str], bool]:
    """A search in linear time, whatever the pattern.

    Args:
        pattern: RE2 syntax: no look-around, no back-reference.
        flags: Any of `i`, `m`, `s`.

    Raises:
        ValueError: RE2 does not take the pattern; why, in words.
    """
    search = compiled_regex(pattern, flags).search  # for a text it would count its letters
    if not flags and len(pattern) <= PLAIN_MAX and _PLAIN.fullmatch(pattern):
        plain = re.compile(pattern).search
        return lambda seen: plain(seen) is not None
    match: Callable[[bytes], list[int]] | None = None

    def found(seen: str) -> bool:
        nonlocal match
        data = seen.encode("utf-8", "replace")
        if len(data) <= SHORT_BYTES:
            if match is None:
                match = _alone(pattern, flags)
            if numbers := match(data):
                return len(numbers) > 1
        return search(data) is not None

    return found


SHORT_BYTES = 200
"""Of a text of so many bytes RE2 says sooner whether something is found than where; of a longer one
it is the other way round, since it looks for all places where something could end."""


def _alone(pattern: str, flags: str) -> Callable[[bytes], list[int]]:
    """`regex_set` of one; what there is no room for gives nothing."""
    try:
        match: Callable[[bytes], list[int]] = regex_set([(pattern, flags)]).Match
    except ValueError:
        return lambda data: []
    return match


def compiled_regex(pattern: str, flags: str = "") -> Any:
    """The same, as RE2's own object."""
    head = f"(?{flags})" if flags else ""
    try:
        return re2.compile(clean(head + pattern), _options())
    except re2.error as error:
        why = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(why) from error


def regex_set(regexes: Sequence[tuple[str, str]]) -> Any:
    """RE2's own set of patterns with their flags, each of which it takes alone.

    `Match(data)` gives the numbers of those that are found. The number behind the last one is
    always among them, unless RE2 had no room for a search: then it says nothing of any.

    Raises:
        ValueError: RE2 has no room for all of them together.
    """
    found = re2.Set.SearchSet(_options())
    try:
        for pattern, flags in regexes:
            found.Add(clean(f"(?{flags}:{pattern})"))
        found.Add("")
        found.Compile()
    except re2.error as error:
        raise ValueError(str(error)) from error
    return found


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    return options


def clean(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


_PLAIN = re.compile(
    r"""
      ( \\[!-/:-@[-`{-~] | [A-Za-z0-9:/,;<>=!@%&~'"_-] | \[ ( [A-Za-z0-9] (-[A-Za-z0-9])? )+ ] )+
    """,
    re.VERBOSE,
)
"""Patterns of signs and of simple kinds of signs. They say the same to Python, which answers in an
eighth of the time …"""
PLAIN_MAX = 100
"""… and looks at no letter more often than they have signs, since nothing in them comes several
times; they have no more signs than these."""


def counts_far(pattern: str) -> bool:
    """True if it counts so far that in a set of others RE2 would have a state for each mixture."""
    return any(int(count) >= FAR for count in _COUNT.findall(pattern))


FAR = 100
_COUNT = re.compile(r"\{(\d{1,4})[,}]")


# --- What a text must have ---------------------------------------------------------------------

_PART = re.compile(
    r"""
      (?P<sign> \\[^\w] | [^][(){}.*+?^$|\\] )
    | (?P<kind> \\[dDsSwWbBAzantrfv] | [].^${}] | \[ \^? ]? ( \[:\^?\w+:] | \\. | [^]\\] )* ] )
    | (?P<open> \( ( \?P?<\w+> | \?[imsU-]*:? )? ) | (?P<close> \) ) | (?P<or> \| )
    """,
    re.VERBOSE | re.DOTALL,
)
"""What a pattern is made of: a sign itself, one of a kind or a place, and groups."""
_TIMES = re.compile(r"(?P<maybe_none> (?:[*?]|\{[\d,]*})+ ) | (?P<once_more> \+) \??", re.VERBOSE)
"""How often a part may come."""


def needed(pattern: str) -> str:
    """The longest word that each text has in which a pattern is found, folded (`texts.folded`).

    Empty if none is told by what stands beside groups, or if there are alternatives. A text with
    letters beyond ASCII may have others: RE2 takes them for those of ASCII where case is the same.
    """
    words, word, depth, place = [""], "", 0, 0
    pattern = clean(pattern)  # as RE2 has it
    while place < len(pattern):
        part = _PART.match(pattern, place)
        if part is None or (part["or"] and not depth):
            return ""
        depth += bool(part["open"]) - bool(part["close"])
        times = _TIMES.match(pattern, part.end())
        place = times.end() if times else part.end()
        sign = (part["sign"] or "")[-1:]
        if depth or not sign.isascii() or (times and times["maybe_none"]):
            sign = ""
        word += sign.lower()
        if not sign or times:
            words.append(word)
            word = ""
    return max((*words, word), key=len)
