"""Names, durations and variables, as the files of a playbook spell them.

References:
    CACAO Security Playbooks 2.0, sections 10.10 (identifiers) and 10.18 (variables); ISO 8601
    durations, of which only weeks to seconds are taken: a month has no fixed length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import UUID, uuid5

from cityward.fields import FIELDS as EVENT_FIELDS
from cityward.fields import FINDING_FIELDS, SHARED_FIELDS

NAMESPACE = UUID("5f2b7c1e-8a43-5d06-9e1f-3c6a7d20b948")
"""Of every id that is made from a name, so that the same name has the same id everywhere."""

FIELDS = {**EVENT_FIELDS, **FINDING_FIELDS, **SHARED_FIELDS}
"""What a finding may have, of one's own or from the city."""

DURATION_MAX = timedelta(days=31)
_DURATION = re.compile(
    r"P(?:(\d{1,2})W)?(?:(\d{1,3})D)?(?:T(?:(\d{1,4})H)?(?:(\d{1,5})M)?(?:(\d{1,7})S)?)?"
)
_FIELD = re.compile(r"[a-z0-9_.]{1,110}")
_VARIABLE = re.compile(r"\$\{([^{}$]{0,120})\}")
_CACAO_VARIABLE = re.compile(r"__(finding-[a-z0-9_-]{1,110}?)__:value")


def id_of(kind: str, *names: str) -> str:
    """CACAO identifier of something, from its names, outermost first."""
    return f"{kind}--{uuid5(NAMESPACE, chr(0).join((kind, *names)))}"


def duration(text: str) -> timedelta:
    """Read an ISO 8601 duration: `PT30M`, `P1DT12H`.

    Raises:
        ValueError: it is none, or not between a second and `DURATION_MAX`.
    """
    parts = _DURATION.fullmatch(text)
    if parts is None:
        raise ValueError(f"{text[:40]!r} is no duration such as PT30M")
    weeks, days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    length = timedelta(days, seconds, 0, 0, minutes, hours, weeks)
    if not timedelta() < length <= DURATION_MAX:
        raise ValueError(f"{text[:40]} is not between a second and {DURATION_MAX.days} days")
    return length


def spelled(length: timedelta) -> str:
    """Write a duration as `duration` reads it."""
    hours, rest = divmod(int(length.total_seconds()) % 86_400, 3_600)
    minutes, seconds = divmod(rest, 60)
    days = f"{length.days}D" if length.days else ""
    time = "".join(f"{n}{unit}" for n, unit in ((hours, "H"), (minutes, "M"), (seconds, "S")) if n)
    return f"P{days}" + (f"T{time}" if time else "")


def variables(text: str) -> Iterator[str]:
    """Names of the variables in a text, `finding.source.ip` for `${finding.source.ip}`."""
    return (match[1] for match in _VARIABLE.finditer(text))


def field_of(variable: str) -> str | None:
    """Field of the finding that a variable stands for; None: there is no such field.

    `finding.source.ip` is the field `source.ip`; a field that begins with `finding.` is not
    written twice: `finding.title`.
    """
    head, _, field = variable.partition(".")
    is_name = head == "finding" and _FIELD.fullmatch(field) is not None
    return next((name for name in (variable, field) if is_name and name in FIELDS), None)


def only_variable(text: str) -> str | None:
    """The variable of a text that is nothing but one."""
    match = _VARIABLE.fullmatch(text)
    return match[1] if match else None


def replaced(text: str, by: Callable[[str], str]) -> str:
    """A text with something else in the place of its variables."""
    return _VARIABLE.sub(lambda match: by(match[1]), text)


def from_cacao(text: str) -> str:
    """A text with its CACAO variables as we write them."""
    return _CACAO_VARIABLE.sub(lambda match: f"${{{match[1].replace('-', '.')}}}", text)


def has_variable(text: str) -> bool:
    """Whether a text has a variable, one of CACAO, or the beginning of one."""
    return "${" in text or _CACAO_VARIABLE.search(text) is not None
