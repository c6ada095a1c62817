"""What the commands share: their options, the node they ask, and errors of the command line."""

from __future__ import annotations

import getpass
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Annotated

from cyclopts import Parameter

from cityward import CitywardError, ConfigError
from siem import config as settings_file
from siem.config import Settings
from siem.output import Form
from siem.store.protocol import TIME_MIN, Document, Range

ConfigFile = Annotated[str | None, Parameter(name=["--config", "-c"])]
Output = Annotated[Form | None, Parameter(name=["--output", "-o"])]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())]

POLL_S = 1.0
PROGRESS_EVERY_S = 10.0
LIVE_EVERY_S = 0.2
OVERLAP = timedelta(seconds=10)
"""How far back a followed list looks for what a transaction under way had not shown yet."""

_SPAN = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class UsageError(CitywardError):
    """The command line asks for what cannot be: it names the option."""

    exit_code = 2


def settings_of(named: str | None) -> tuple[Settings, str]:
    """The settings in force and where they come from."""
    path = settings_file.find(named)
    return (settings_file.load(path), str(path)) if path else (Settings(), "defaults")


def settings_with_state(named: str | None) -> Settings:
    """The settings of a node that has run on this machine.

    Raises:
        ConfigError: there is nothing in its state folder.
    """
    settings, origin = settings_of(named)
    if not (settings.state_path / "node.db").is_file():
        raise ConfigError(
            "no node has run here yet",
            f"state_dir {settings.state_path} ({origin})",
            "Make one with cityward init, or name its settings file with --config.",
        )
    return settings


def span(since: str, until: str, now: datetime) -> Range:
    """A span of time as people write its ends; empty is open, see `moment`.

    Raises:
        UsageError: an end is no time, or they are in the wrong order.
    """
    wanted = Range(since=moment(since, "--since", now)) if since else Range(since=TIME_MIN)
    if until:
        wanted = Range(wanted.since, moment(until, "--until", now))
    if wanted.until <= wanted.since:
        raise UsageError(f"{until} is before {since}", "--until", "Choose an end after the start.")
    return wanted


def moment(text: str, option: str, now: datetime, *, ahead: bool = False) -> datetime:
    """A time as people write it: `24h` from now (back, or ahead), or ISO 8601.

    Raises:
        UsageError: it is no time; with `ahead` also if it is past or more than a year away.
    """
    found = _SPAN.fullmatch(text.removeprefix("now-"))
    try:
        if found:
            away = timedelta(seconds=int(found[1]) * _SECONDS[found[2]])
            time = now + away if ahead else now - away
        else:
            time = datetime.fromisoformat(text)
            time = time if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        what = f"{text!r} is no time"
        raise UsageError(what, option, "Write 24h, 7d or 2026-11-12T03:00Z.") from None
    if ahead and not now < time <= now + timedelta(days=366):
        what = f"{text} is past, or more than a year away"
        raise UsageError(what, option, "Choose a time within the next year.")
    return time


@contextmanager
def readable_query() -> Iterator[None]:
    """Say an error in a query as one of the command line."""
    from siem.store.query import QueryError

    try:
        yield
    except QueryError as error:
        raise UsageError(error.what, error.where, error.todo) from error


@contextmanager
def stopping(stop: threading.Event) -> Iterator[threading.Event]:
    """Ctrl+C (or SIGTERM) sets the event, a second one stops at once."""

    def set_(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, set_) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def newer(query: str, field: str, since: datetime) -> str:
    """A query narrowed to what was kept since a time."""
    narrowed = f'{field}:>="{since.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"'
    return f"({query}) AND {narrowed}" if query.strip() else narrowed


def as_they_come(
    first: Sequence[Document],
    fresh: Callable[[datetime], Sequence[Document]],
    key: str,
    stop: threading.Event,
    clock: Callable[[], datetime],
) -> Iterator[list[Document]]:
    """What is there, then what was not there before, until `stop` is set.

    Args:
        first: What is printed at once.
        fresh: What was kept since a time, oldest first.
        key: Field that tells one row from the other; a row that changed has another value.
        stop: Set by Ctrl+C.
        clock: The node's time.
    """
    rows, asked = list(first), clock()
    seen = {row[key]: asked for row in fresh(asked - OVERLAP)}
    while not stop.is_set():
        now = clock()
        seen |= {row[key]: now for row in rows}
        if rows:
            yield rows
        seen = {one: at for one, at in seen.items() if now - at < 10 * OVERLAP}
        stop.wait(POLL_S)
        since, asked = asked - OVERLAP, clock()
        rows = [row for row in fresh(since) if row[key] not in seen]


def who() -> str:
    """The person at this terminal, for the history of what is changed."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown account"


class Teller:
    """Lines on standard error; on a terminal the progress is one line that is written over."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty()
        self._every_s = LIVE_EVERY_S if self._live else PROGRESS_EVERY_S
        self._said_s = time.monotonic()
        self._open = False

    def line(self, text: str) -> None:
        """Say something that stays."""
        if self._quiet or not text:
            return
        print(("\r\x1b[K" if self._open else "") + text, file=sys.stderr)
        self._open = False

    def progress(self, text: str) -> None:
        """Say where it stands, not too often."""
        now_s = time.monotonic()
        if self._quiet or now_s - self._said_s < self._every_s:
            return
        self._said_s = now_s
        if self._live:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(text, file=sys.stderr)
