"""`cityward source`: what arrives."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from cityward import CitywardError
from siem import assembly
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import (
    ConfigFile,
    Output,
    UsageError,
    settings_of,
    stopping,
)
from siem.config import NEEDED, Settings
from siem.node import Source, now_utc
from siem.output import visible
from siem.store.protocol import SourceState

COLUMNS = (
    "source",
    "collector",
    "state",
    "records",
    "events",
    "malformed",
    "rejected",
    "lost",
    "last_event",
)
CHECK_COLUMNS = ("source", "collector", "records", "events", "malformed", "rejected", "first", "ok")
SAMPLE_RECORDS = 1000
SAMPLE_S = 10.0


def list_(*, config: ConfigFile = None, output: Output = None) -> int:
    """List the sources of this node: last event, rate, lost, unreadable.

    Example: cityward source list

    Args:
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    settings, _ = settings_of(config)
    rows = list(_rows(settings))
    streams.write(rows, streams.form_for(output, sys.stdout), COLUMNS)
    if not rows:
        print("No source is set; add a [[source]] to the settings file.", file=sys.stderr)
    return 0


def show(id: str, *, config: ConfigFile = None, output: Output = None) -> int:
    """Show all that is known of one source, with the newest record that could not be read.

    Example: cityward source show auth-log

    Args:
        id: Its id in the settings file.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    settings, origin = settings_of(config)
    row = next((row for row in _rows(settings) if row["source"] == id), None)
    if row is None:
        raise UsageError(f"there is no source {id!r}", origin, "cityward source list names them.")
    form = streams.form_for(output, sys.stdout)
    if form == "table":
        for name, value in row.items():
            if value not in (None, ""):
                said = streams.text(value).replace("\n", "; ")
                print(f"{name.replace('_', ' '):<14} {visible(said)}")
    else:
        streams.write([row], form, tuple(row))
    return 0


def check(*ids: str, config: ConfigFile = None, output: Output = None) -> int:
    """Read a sample of each source and keep nothing: does it arrive, can it be read.

    Example: cityward source check

    Args:
        ids: Which ones; none: all.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    settings, origin = settings_of(config)
    known = {one.id for one in settings.source}
    if unknown := [one for one in ids if one not in known]:
        raise UsageError(
            f"there is no source {unknown[0]!r}", origin, "cityward source list names them."
        )
    rows = []
    with stopping(threading.Event()) as stop:
        for one in settings.source:
            if not stop.is_set() and (not ids or one.id in ids):
                print(f"{one.id}: reading a sample …", file=sys.stderr)
                rows.append(_checked(settings, one.id, stop))
    streams.write(rows, streams.form_for(output, sys.stdout), CHECK_COLUMNS)
    if any("in use" in row["first"] for row in rows):
        print("If the node runs, it holds its ports: cityward source list.", file=sys.stderr)
    return 0 if all(row["ok"] == "yes" for row in rows) else 3


def _rows(settings: Settings) -> Iterator[dict[str, Any]]:
    """What the settings name, with what the path last said of it."""
    states = states_of(settings)
    for one in settings.source:
        said = states.get(one.id, SourceState(source=one.id, collector=one.collector))
        row = msgspec.structs.asdict(said)
        yield {"source": one.id, "reader": one.reader, **row, "where": one.where}


def states_of(settings: Settings) -> Mapping[str, SourceState]:
    """What the path of the node last said of its sources."""
    if not (settings.state_path / "node.db").is_file():
        return {}
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    try:
        return {one.source: one for one in db.sources()}
    finally:
        db.close()


def _checked(settings: Settings, id: str, stop: threading.Event) -> dict[str, Any]:
    """What a sample of a source gives."""
    (one,) = chosen = tuple(one for one in settings.source if one.id == id)
    row: dict[str, Any] = {"source": id, "collector": "", "first": "", "ok": "no"}
    row |= dict.fromkeys(("records", "events", "malformed", "rejected"), 0)
    try:
        (source,) = assembly.sources_of(msgspec.structs.replace(settings, source=chosen))
        row["collector"] = source.name
        _sample(source, stop, row)
    except CitywardError as error:
        row["first"] = error.what
        print(f"{error.what}\n{error.where}\n{error.todo}", file=sys.stderr)
        return row
    if not row["records"]:
        at = f" at {one.listen}" if NEEDED.get(one.reader) == "listen" else ""
        row["first"] = f"nothing arrived{at} within {SAMPLE_S:.0f} s"
    row["ok"] = "yes" if row["records"] and not row["malformed"] else "no"
    return row


def _sample(source: Source, stop: threading.Event, row: dict[str, Any]) -> None:
    enough = threading.Event()
    until = datetime.now(UTC) + timedelta(seconds=SAMPLE_S)
    for batch in source.reader.read(None, enough):
        now = datetime.now(UTC)
        events = source.events(batch, now)
        row["records"] += len(batch.records)
        row["rejected"] += sum(batch.rejected.values())
        row["events"] += len(events)
        bad = [event for event in events if event.is_malformed]
        row["malformed"] += len(bad)
        if bad and not row["first"]:
            row["first"] = str(bad[0].fields.get("event.reason", ""))[:200]
        caught_up = row["records"] and not len(batch.records)
        enough_read = caught_up or batch.ended or row["records"] >= SAMPLE_RECORDS
        if enough_read or stop.is_set() or now > until:
            enough.set()
            return
