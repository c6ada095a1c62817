"""What can go wrong, grouped by who acts next.

Every message says what happened (with the value), where, and what to do.
"""

from __future__ import annotations


class CitywardError(Exception):
    """Anything cityward raises on purpose.

    Args:
        what: What happened, with the value that caused it.
        where: File and line, key path, address or source.
        todo: The next step for the reader.
    """

    exit_code = 1

    def __init__(self, what: str, where: str = "", todo: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.todo = todo

    def __str__(self) -> str:
        return "\n".join(line for line in (self.what, self.where, self.todo) if line)


class ConfigError(CitywardError):
    """Fix the settings file: it names file and key."""

    exit_code = 4


class RuleError(CitywardError):
    """Fix the rule: it names file and line."""

    exit_code = 4


class PluginError(CitywardError):
    """Fix the plug-in: it names the entry point."""

    exit_code = 4


class InputError(CitywardError):
    """The input cannot be read as a whole: it names the file or source."""

    exit_code = 7


class TransientError(CitywardError):
    """Something outside did not answer; we try again."""

    exit_code = 5


class Unsafe(CitywardError):  # noqa: N818 – a hold, not a fault
    """Hold, and ask a person."""

    exit_code = 6
