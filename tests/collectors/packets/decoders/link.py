"""Frames without IP: a decoder fed with them, and the events of a whole capture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cityward import Event, Session
from cityward.fields import faults
from collectors.packets.packets import Packets
from collectors.packets.walk import walk
from tests.collectors.packets.wire import chunks, collected, unaccounted

OF, TO = "02-00-00-00-00-0A", "01-0C-CD-01-00-00"


def speaker(made: Any) -> Any:
    """A decoder of one sender."""
    return made(Session({"source.mac": OF, "destination.mac": TO}, OF, TO))


def heard(decoder: Any, data: bytes, time_s: float = 0.0) -> list[dict[str, Any]]:
    """What a decoder makes of one frame."""
    used, found = decoder.feed(data, True, time_s, 1)
    assert used == len(data)
    assert [fault for fields in found for fault in faults(fields)] == []
    return list(found)


def captured(made: Any, capture: Path) -> list[Event]:
    """Events of one decoder of a capture."""
    collector = Packets({made.cityward_spec.name: made})
    events = collected(collector, chunks(capture))
    assert unaccounted(collector, events) == 0
    assert collector.counts["decoder_faults"] == 0
    assert [fault for event in events for fault in faults(event.fields)] == []
    assert len({(event.record.place, event.number) for event in events}) == len(events)
    return [event for event in events if event.logsource == made.cityward_spec.logsource]


def frames_of(events: Sequence[Event]) -> int:
    """How many frames events stand for."""
    return sum(event.fields["cw.vendor"]["frames"] for event in events)


def frames_without_ip(data: Path, but: int) -> list[bytes]:
    """What is behind the ethertype of every frame without IP, but those of one kind."""
    found = []
    for name in (
        "energy/iec61850_goose_sample.pcap",
        "energy/iec61850_mms_and_goose.pcap",
        "port/profinet_dcp_change_ip.pcap",
        "network/arp_scan.pcap",
    ):
        for chunk in chunks(data / name):
            walked = walk(chunk)
            for row, kind in enumerate(walked.ethertype.tolist()):
                if kind not in (0, but):
                    start = int(chunk.columns.starts[row])
                    found.append(chunk.packet(row)[int(walked.l4[row]) - start :])
    return found
