"""The time picker: words of the address bar to a span of time, and back to words for people."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cityward.errors import CitywardError
from siem.store.protocol import TIME_MAX, TIME_MIN, Range

QUICK: tuple[tuple[str, str, str], ...] = (
    ("now-15m", "now", "Last 15 min"),
    ("now-1h", "now", "Last hour"),
    ("now-6h", "now", "Last 6 h"),
    ("now-24h", "now", "Last 24 h"),
    ("now/d", "now", "Today"),
    ("now-7d", "now", "Last 7 days"),
    ("now-30d", "now", "Last 30 days"),
    ("all", "now", "All that is kept"),
)
"""From, to, and the word for it."""

DEFAULT = ("now-24h", "now")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_RELATIVE = re.compile(r"now(?:-(\d{1,7})([smhdw]))?(?:/([hd]))?")


@dataclass(frozen=True, slots=True)
class Choice:
    """A span of time as a person chose it."""

    since_word: str
    until_word: str
    span: Range
    label: str
    now: datetime

    @property
    def ends_now(self) -> bool:
        """True if the range moves with the clock."""
        return self.until_word == "now"

    @property
    def drawn(self) -> Range:
        """The span that charts show; the open ends of "all" are cut to what can be drawn."""
        until = self.now + timedelta(seconds=1) if self.ends_now else self.span.until
        return Range(self.span.since, min(self.span.until, max(until, self.span.since)))


def choose(since_word: str, until_word: str, now: datetime) -> Choice:
    """Read `from` and `to`; empty words mean the default of 24 hours.

    Raises:
        CitywardError: A word is no time, or the range ends before it starts.
    """
    since_word, until_word = since_word or DEFAULT[0], until_word or DEFAULT[1]
    since = TIME_MIN if since_word == "all" else moment(since_word, "from", now)
    # An event of this very second belongs to a range that ends now, also with a clock ahead of us.
    until = (
        TIME_MAX if (since_word, until_word) == ("all", "now") else moment(until_word, "to", now)
    )
    if until_word == "now" and until is not TIME_MAX:
        until += timedelta(minutes=5)
    if until <= since:
        raise CitywardError(
            f"the range from {since_word} to {until_word} ends before it starts",
            "time picker",
            "Choose an end after the start.",
        )
    label = _label(since_word, until_word, since, until, now)
    return Choice(since_word, until_word, Range(since, until), label, now)


def word(time: datetime) -> str:
    """A time as it stands in the address bar."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(text: str, where: str, now: datetime) -> datetime:
    """A time as people write it: `now-24h`, `now/d` or ISO 8601; without a zone it is UTC.

    Raises:
        CitywardError: It is no time.
    """
    found = _RELATIVE.fullmatch(text)
    try:
        if found is None:
            time = datetime.fromisoformat(text)
            time = time if time.tzinfo else time.replace(tzinfo=UTC)
            # Nothing is kept outside; beyond it there is no room for a zone or five minutes more.
            return min(max(time, TIME_MIN), TIME_MAX)
        time = now - timedelta(seconds=int(found[1] or 0) * _SECONDS[found[2] or "s"])
    except (ValueError, OverflowError):
        raise CitywardError(
            f"{text[:60]!r} is no time",
            f"time picker, {where}",
            "Write now-24h, now/d or 2026-11-12T03:00.",
        ) from None
    if found[3] == "d":
        return time.replace(hour=0, minute=0, second=0, microsecond=0)
    return time.replace(minute=0, second=0, microsecond=0) if found[3] else time


def _label(
    since_word: str, until_word: str, since: datetime, until: datetime, now: datetime
) -> str:
    for known_since, known_until, text in QUICK:
        if (known_since, known_until) == (since_word, until_word):
            return text
    if until_word == "now":
        return f"Since {_short(since, now)}"
    if since.date() == until.date():
        return f"{_short(since, now)}–{until:%H:%M}"
    return f"{_short(since, now)} – {_short(until, now)}"


def _short(time: datetime, now: datetime) -> str:
    if time.date() == now.date():
        return f"{time:%H:%M}"
    if time.year == now.year:
        return f"{time.day} {time:%b %H:%M}"
    return f"{time:%Y-%m-%d %H:%M}"
