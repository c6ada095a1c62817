"""`cityward calendar`: when and where another mode holds: maintenance, an exercise, a test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from siem import assembly
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import (
    ConfigFile,
    Output,
    UsageError,
    moment,
    settings_with_state,
    who,
)
from siem.config import Settings
from siem.modes import of_settings
from siem.node import now_utc
from siem.store.embedded import NodeDb
from siem.store.protocol import Mode, ModeEntry

COLUMNS = (
    "number",
    "mode",
    "since",
    "until",
    "site",
    "zone",
    "assets",
    "reason",
    "by",
    "holds",
)


def list_(*, config: ConfigFile = None, output: Output = None) -> int:
    """List the calendar: what was added here, and what stands in the settings file.

    Example: cityward calendar list

    Args:
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    now = now_utc()
    with _opened(config) as (db, settings):
        entries = sorted([*of_settings(settings), *db.inventory.entries()], key=lambda e: e.since)
    rows: list[dict[str, Any]] = []
    for one in entries:
        holds = "now" if one.since <= now < one.until else "past" if one.until <= now else "later"
        row = msgspec.structs.asdict(one)
        row |= {"number": one.number or "settings", "assets": list(one.assets), "holds": holds}
        rows.append({name: row[name] for name in COLUMNS})
    streams.write(rows, streams.form_for(output, sys.stdout), COLUMNS)
    if not rows:
        print(f"The calendar is empty; the mode is {settings.mode}.", file=sys.stderr)
    return 0


def add(
    mode: Mode,
    *,
    until: str,
    since: Annotated[str, Parameter(name=["--from"])] = "",
    site: str = "",
    zone: str = "",
    asset: Annotated[list[str] | None, Parameter(name=["--asset"], negative=())] = None,
    reason: str = "",
    config: ConfigFile = None,
) -> int:
    """Add a span in which another mode holds; events of its time and place carry it.

    Example: cityward calendar add maintenance --until 4h --zone bay-7 --reason "relay test"

    Args:
        mode: normal, maintenance, exercise or test.
        until: Its end: 4h from now, or a time.
        since: Its begin; otherwise now.
        site: Only at this site.
        zone: Only in this zone.
        asset: Only at this asset; once for each.
        reason: Why.
        config: Settings file; otherwise the first one found counts.
    """
    now = now_utc()
    begin = moment(since, "--from", now) if since else now
    end = moment(until, "--until", now, ahead=True)
    if end <= begin:
        raise UsageError(f"{until} is before {since}", "--until", "Choose an end after the start.")
    with _opened(config) as (db, settings):
        zones = {one.id for one in settings.zone}
        if zone and zones and zone not in zones:
            raise UsageError(f"there is no zone {zone!r}", "--zone", ", ".join(sorted(zones)) + ".")
        entry = ModeEntry(begin, end, mode, site, zone, tuple(asset or ()), reason, who())
        number = db.inventory.add_entry(entry, now)
    print(f"entry {number} added: {mode} until {end:%Y-%m-%d %H:%M} UTC", file=sys.stderr)
    return 0


def remove(number: int, *, config: ConfigFile = None) -> int:
    """Take an entry out of the calendar.

    Example: cityward calendar remove 3

    Args:
        number: Its number in the list.
        config: Settings file; otherwise the first one found counts.
    """
    with _opened(config) as (db, _):
        if not db.inventory.remove_entry(number, who(), now_utc()):
            raise UsageError(
                f"there is no entry {number}", "NUMBER", "cityward calendar list numbers them."
            )
    print(f"entry {number} removed", file=sys.stderr)
    return 0


@contextmanager
def _opened(config: str | None) -> Iterator[tuple[NodeDb, Settings]]:
    settings = settings_with_state(config)
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    try:
        yield db, settings
    finally:
        db.close()
