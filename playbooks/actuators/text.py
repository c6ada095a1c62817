"""What a command says to people, in a shape that nothing can be hidden in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cityward import Command, ConfigError, Unsafe

LINE_MAX = 200
TEXT_MAX = 20_000
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


def key_of(command: Command) -> str:
    """The key of a command, which goes into headers and message ids.

    Raises:
        Unsafe: it has none, or one that is no plain word.
    """
    if not _KEY.fullmatch(command.key):
        raise Unsafe(f"{command.key[:40]!r} is no key", command.verb[:40], "Plan it again.")
    return command.key


def only(args: Mapping[str, Any], *known: str) -> Mapping[str, Any]:
    """Arguments, if there are no others than those.

    Raises:
        Unsafe: there are.
    """
    if unknown := [name for name in args if name not in known]:
        what = f"{str(unknown[0])[:40]!r} is no argument"
        raise Unsafe(what, "args", f"Use {', '.join(known)}.")
    return args


def listed(value: Sequence[str], where: str) -> tuple[str, ...]:
    """A list of the settings; one word would be taken for its letters.

    Raises:
        ConfigError: it is no list of texts.
    """
    if isinstance(value, str) or not all(isinstance(one, str) for one in value):
        raise ConfigError(f"{value!r} is no list of texts", where, 'Write ["…"].')
    return tuple(value)


def line(value: Any, most: int = LINE_MAX) -> str:
    """One line: whatever is not printable is written as its escape."""
    return _cut("".join(map(_shown, _text(value, most))), most)


def text(value: Any, most: int = TEXT_MAX) -> str:
    """Lines for people; of what is not printable only the ends of lines stay."""
    said = _text(value, most).replace("\r\n", "\n")
    return _cut("".join(char if char == "\n" else _shown(char) for char in said), most)


def _text(value: Any, most: int) -> str:
    return (value if isinstance(value, str) else "" if value is None else str(value))[: most + 1]


def _shown(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def _cut(said: str, most: int) -> str:
    return said if len(said) <= most else f"{said[: most - 1]}…"
