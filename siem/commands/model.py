"""`cityward model`: what a second opinion says of the events that the online models let pass."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from cityward import Event
from detectors.anomaly.challenger import ROWS_MIN, Strange, challenge
from siem import assembly
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import ConfigFile, Output, settings_with_state, span
from siem.node import event_of, now_utc
from siem.store.events import EventStore
from siem.store.protocol import Document, Findings, Range

COLUMNS = ("time", "source", "destination", "score", "feature", "observed", "usual", "spoken_of")
LEARN_DAYS = 7
EVENTS_MAX = 50_000
"""Events that are learnt from, and judged, at most: the newest."""


def audit(
    kind: Literal["ot_protocol", "flow"] = "ot_protocol",
    *,
    since: str = "24h",
    config: ConfigFile = None,
    output: Output = None,
) -> int:
    """Let a batch model judge recent events by the week before, and say who spoke of them.

    It makes no findings: it audits the online models. Events that it finds strange and of which
    no finding spoke are worth a look. Example: cityward model audit flow --since 24h

    Args:
        kind: Which events: messages of industrial protocols, or flows.
        since: How far back recent goes: 24h, 7d, a time.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv.
    """
    settings = settings_with_state(config)
    events = assembly.events_of(settings, now_utc, write=False)
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    recent = span(since, "", now_utc())
    before = Range(recent.since - timedelta(days=LEARN_DAYS), recent.since)
    with closing(events), closing(db):
        known = list(_events(events, kind, before))
        if len(known) < ROWS_MIN:
            what = f"{len(known)} events of the week before {since} are too few to learn from"
            print(f"{what}: {ROWS_MIN} are needed.", file=sys.stderr)
            return 0
        found = challenge(kind, known, list(_events(events, kind, recent)))
        rows = [_row(one, db) for one in found]
    streams.write(rows, streams.form_for(output, sys.stdout), COLUMNS)
    return 0


def _events(events: EventStore, kind: str, wanted: Range) -> Iterator[Event]:
    query = f"cw.logsource.category:{kind}"
    for stored in events.search(query, wanted, limit=EVENTS_MAX).rows:
        yield event_of(stored)


def _row(one: Strange, findings: Findings) -> Document:
    return {**msgspec.structs.asdict(one), "spoken_of": _spoken_of(one, findings)}


def _spoken_of(one: Strange, findings: Findings) -> str:
    """Titles of findings on the same two ends about that time; empty: nobody spoke."""
    query = f'source.ip:"{one.source}" AND destination.ip:"{one.destination}"'
    near = findings.search(query, _around(one.time), limit=3)
    return ", ".join(str(row["finding.title"]) for row in near.rows)


def _around(time: datetime) -> Range:
    return Range(time - timedelta(hours=1), time + timedelta(hours=1))
