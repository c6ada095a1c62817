"""Events of real files, by the real readers and collectors."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

from cityward import Event, Record
from collectors.city.river import river
from collectors.packets.capture import CaptureReader
from collectors.packets.packets import Packets
from collectors.transport.gtfs import gtfs_realtime


def capture_events(path: Path) -> list[Event]:
    """All events of a capture, flows and messages, in the order in which a node gets them."""
    collector = Packets()
    found: list[Event] = []
    for batch in CaptureReader(path, path.name).read(None, threading.Event()):
        found += collector(batch.records)
    return [*found, *collector.end()]


def document_events(path: Path) -> list[Event]:
    """All events of a GTFS-realtime feed or of a document of river gauges."""
    record = Record(path.read_bytes(), path.name, 0, datetime(2026, 1, 5, tzinfo=UTC))
    return list((gtfs_realtime if path.suffix == ".pb" else river)([record]))
