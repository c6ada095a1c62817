r"""Sentences of NMEA 0183: frame, checksum and tag block, before anybody asks what they mean.

References:
    IEC 61162-1:2016, 7.2 (sentences, checksum) and 7.2.4 (tag blocks `\s:…,c:…*hh\`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import reduce
from math import asin, cos, radians, sin, sqrt
from operator import xor

import msgspec

from cityward import Event, LogSource, Record
from cityward.event import text_of
from collectors.values import clean, moment

KNOT = 0.514444
"""m/s."""
LINE_MAX = 1_024
"""IEC 61162-1 allows 82 characters; makers exceed it, but not so far."""
MILLISECONDS = 1e11
"""A tag block's time above this is in ms, below in s."""
EARTH_M = 6_371_008.8


class Sentence(msgspec.Struct, frozen=True, gc=False):
    """One sentence whose checksum is right."""

    talker: str
    """`GP`, `AI` …; `P` for a maker's own."""
    kind: str
    """`RMC`, `VDM` …; of a maker's own all behind the `P`."""
    values: list[str]
    raw: bytes
    """The sentence without its tag block."""
    station: str = ""
    """Who heard it, by the tag block."""
    time: datetime | None = None
    """When it was heard, by the tag block."""


def sentence(data: bytes) -> Sentence:
    """Take a line apart.

    Raises:
        ValueError: no sentence, or one that was damaged on its way; the message says how.
    """
    data = data.strip()
    if len(data) > LINE_MAX:
        raise ValueError(f"{len(data)} bytes where a sentence has at most {LINE_MAX}")
    station, time = "", None
    if data[:1] == b"\\":
        block, found, data = data[1:].partition(b"\\")
        if not found:
            raise ValueError("a tag block without its end")
        station, time = _tags(block)
    if data[:1] not in (b"$", b"!"):
        raise ValueError("no NMEA 0183 sentence")
    body, found, sums = data.partition(b"*")
    if found and b"," in sums:
        # Loggers put their time behind the checksum: `…*5C,1276256786`.
        sums, _, logged = sums.partition(b",")
        data, time = body + found + sums, time or _time(logged.decode("latin-1"))
    address, *values = _checked(data[1:], "sentence").split(",")
    if not (4 <= len(address) <= 12 and address.replace("-", "").isalnum()):
        raise ValueError(f"no address of a sentence: {address[:16]!r}")
    cut = 1 if address[0] == "P" else 2
    return Sentence(address[:cut], address[cut:], values, data, station, time)


def _checked(data: bytes, what: str) -> str:
    """Text before the `*`, if the two digits behind it are its checksum."""
    body, found, said = data.partition(b"*")
    if not found:
        raise ValueError(f"a {what} without checksum")
    if not data.isascii():
        raise ValueError(f"a {what} with bytes that are no ASCII")
    sums = f"{reduce(xor, body, 0):02X}"
    if said[:2].upper().decode() != sums or len(said) > 2:
        raise ValueError(f"{what} damaged: its checksum is {sums}, not {said[:8].decode()}")
    return body.decode()


def _tags(block: bytes) -> tuple[str, datetime | None]:
    tags = dict(part.partition(":")[::2] for part in _checked(block, "tag block").split(","))
    return clean(tags.get("s", "")), _time(tags.get("c", ""))


def _time(said: str) -> datetime | None:
    if not (said.isascii() and said.isdigit() and len(said) <= 15):
        return None
    return moment(int(said) / 1_000 if int(said) > MILLISECONDS else int(said))


def comment(line: bytes, record: Record, logsource: LogSource, dataset: str) -> Event:
    """A line that begins with `#`: people and programs note there what the log is."""
    fields = {
        "event.kind": "state",
        "event.action": "log_comment",
        "event.dataset": dataset,
        "message": clean(text_of(line).strip()),
        "cw.time_source": "collector",
    }
    return Event(record.received, logsource, fields, record)


def each_line(
    record: Record, logsource: LogSource, read: Callable[[bytes, Record], list[Event]]
) -> Iterator[Event]:
    """Events of all lines of a record: a datagram often holds several sentences."""
    number = 0
    for line in record.data.split(b"\n"):
        if not line.strip():
            continue
        try:
            found = read(line, record)
        except ValueError as error:
            found = [Event.malformed(record, logsource, why=str(error))]
        for event in found:
            yield Event(event.time, event.logsource, event.fields, record, number)
            number += 1
    if not number:
        yield Event.malformed(record, logsource, why="an empty record")


def first_lines(head: bytes) -> list[bytes]:
    """Whole lines of the beginning of a file that say something, some fifty at most."""
    lines = head[:4_096].split(b"\n")
    return [line for line in lines[: max(1, len(lines) - 1)] if line.strip() and line[:1] != b"#"]


def distance_m(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Great circle between two places in degrees (haversine)."""
    north, east = radians(other[0] - one[0]), radians(other[1] - one[1])
    across = cos(radians(one[0])) * cos(radians(other[0])) * sin(east / 2) ** 2
    return 2 * EARTH_M * asin(min(1.0, sqrt(sin(north / 2) ** 2 + across)))
