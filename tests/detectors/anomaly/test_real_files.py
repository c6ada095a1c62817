"""The models on real captures and feeds: quiet on ordinary ones, one forged write stands out."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward import Event, Finding, Record, Session
from cityward.finding import severity_rank
from collectors.packets.decoders.modbus import Modbus
from detectors.anomaly.series import Series
from detectors.anomaly.silence import Silence
from detectors.anomaly.surprise import Surprise
from tests.detectors.anomaly.real import capture_events, document_events

pytestmark = pytest.mark.slow

MESSAGES_BEFORE = 9_000
PLC = "141.81.0.86"


def found_in(events: Sequence[Event]) -> list[Finding]:
    """What the three models say of events that come in batches, and when time passes."""
    found: list[Finding] = []
    for model in (Surprise(), Series(), Silence()):
        for at in range(0, len(events), 500):
            batch = events[at : at + 500]
            found += model.detect(batch)
            found += model.tick(max(event.time for event in batch))
    return found


@pytest.mark.parametrize(
    ("name", "events"),
    [
        ("energy/modbus_plant1_normal.pcap", 15_992),
        ("energy/modbus_icsnpp_example.pcap", 50),
        ("energy/iec104_wattson_normal.pcapng", 736),
        ("transport/gtfsrt_nyct_subway_ace_1707397157.pb", 320),
        ("transport/gtfsrt_nyct_subway_ace_1707397217.pb", 314),
        ("transport/gtfsrt_nyct_subway_with_alert.pb", 160),
        ("transport/gtfsrt_vehicle_positions_bullrunner.pb", 10),
        ("transport/gtfsrt_wmata_bus_2345.pb", 324),
        ("city/river_usgs_instantaneous_values.json", 20),
    ],
)
def test_an_ordinary_file_gives_nothing_above_low(data: Path, name: str, events: int) -> None:
    path = data / name
    read = capture_events(path) if path.suffix.startswith(".pcap") else document_events(path)

    found = found_in(read)

    assert len(read) == events
    assert [one.description for one in found if severity_rank(one.severity) > 1] == []
    assert len(found) <= 1


def forged(source: str, like: Event, payload: bytes) -> Event:
    """A request to the PLC one millisecond after another message, through the real decoder."""
    base: dict[str, Any] = {
        "source.ip": source,
        "source.port": 50_000,
        "destination.ip": PLC,
        "destination.port": 502,
        "network.transport": "tcp",
    }
    session = Session(base, f"{source}:50000", f"{PLC}:502")
    _, [fields] = Modbus(session).feed(payload, True, like.time.timestamp(), 1)
    when = like.time + timedelta(milliseconds=1)
    return Event(when, like.logsource, fields, Record(b"", "forged", 1, when))


WRITE_REGISTER_2 = struct.pack(">HHHBBHH", 7, 0, 6, 1, 6, 2, 65_280)


@pytest.mark.parametrize("source", ["141.81.0.250", "141.81.0.10"])
def test_one_forged_write_among_the_messages_of_a_plant_is_ranked_first(
    data: Path, source: str
) -> None:
    read = capture_events(data / "energy/modbus_plant1_normal.pcap")
    messages = [event for event in read if event.logsource.category == "ot_protocol"]
    write = forged(source, messages[MESSAGES_BEFORE], WRITE_REGISTER_2)

    scores: dict[int, float] = {}
    model = Surprise()
    remembered = model.score

    def score(event: Event, number: int) -> Any:
        scored = remembered(event, number)
        scores[id(event)] = scored[2] if scored else 0.0
        return scored

    model.score = score  # type: ignore[method-assign]
    found = list(
        model.detect([*messages[: MESSAGES_BEFORE + 1], write, *messages[MESSAGES_BEFORE + 1 :]])
    )

    assert len(scores) == 15_979
    assert scores[id(write)] == max(scores.values())
    assert scores[id(write)] > 60.0
    # the stranger is told in the first minute; what the master does, not in its first day
    told = {one.description for one in found}
    assert told == (
        {
            "141.81.0.250 writes register 2 of 141.81.0.86, to which it never spoke in 46 s; "
            "value 65280"
        }
        if source == "141.81.0.250"
        else set()
    )
