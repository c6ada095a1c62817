"""Hostile input for any collector, and what every collector promises whatever it is given."""

from __future__ import annotations

import ipaddress
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from inspect import isclass
from typing import Any

import msgspec

from cityward import Event, Record
from cityward.fields import FIELDS, faults

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

TOKENS = (
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\\udc00x",
    b"1e999",
    b"-1",
    b"99999999999999999999999",
    b"9" * 400,
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b'{"a":' * 60,
    b'"',
    b"]",
    b"999.999.999.999",
    b"fe80::1%eth0",
    b"::ffff:10.0.0.1",
    b" from 6.6.6.6 port 66 ssh2",
    b"0000-00-00T99:99:99Z",
    b"Feb 30 25:61:61",
    b"<999>",
    b"\r\n",
    b"\t",
    "é￿𝟜".encode(),
    b"A" * 9_000,
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    65_536,
    2**63,
    10**400,
    1.5,
    "",
    "x",
    "-5",
    "999.1.1.1",
    "²",
    "\x00",
    "\ud800",
    "x" * 9_000,
    [],
    [[]],
    [1, None, "a"],
    {},
    {"a": {"b": [1]}},
)


def records(data: Iterable[bytes]) -> list[Record]:
    """Records of one source, as a reader numbers them."""
    return [Record(one, "src", place, NOW) for place, one in enumerate(data)]


def mutants(sample: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Broken variants of a record, the same for the same seed."""
    chance = random.Random(seed)
    for _ in range(count):
        change = _retyped if sample[:1] == b"{" and chance.random() < 0.5 else _damaged
        yield change(sample, chance)


def _damaged(sample: bytes, chance: random.Random) -> bytes:
    data = bytearray(sample)
    for _ in range(chance.randint(1, 3)):
        at, to = sorted((chance.randint(0, len(data)), chance.randint(0, len(data))))
        match chance.randrange(6):
            case 0:
                data[at : at + chance.randint(0, 9)] = chance.choice(TOKENS)
            case 1:
                del data[at:to]
            case 2:
                data[at:at] = data[at : min(to, at + 200)]
            case 3:
                del data[at:]
            case 4 if data:
                data[min(at, len(data) - 1)] = chance.randrange(256)
            case _:
                data[at:at] = chance.randbytes(chance.randint(1, 8))
    return bytes(data)


def _retyped(sample: bytes, chance: random.Random) -> bytes:
    """JSON in which some values have another type."""
    document = json.loads(sample)
    for _ in range(chance.randint(1, 3)):
        part = document
        while True:
            keys = list(part) if isinstance(part, dict) else list(range(len(part)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(part[key], (dict, list)) and chance.random() < 0.8:
                part = part[key]
                continue
            part[key] = deepcopy(chance.choice(VALUES))
            break
    return json.dumps(document).encode("utf-8", "surrogatepass")


def run(part: Any, given: Sequence[Record]) -> list[list[Event]]:
    """Events of each record, from a collector that is a function or a class."""
    collect: Callable[[Iterable[Record]], Iterator[Event]] = part() if isclass(part) else part
    return [list(collect([record])) for record in given]


def broken_promises(record: Record, events: Sequence[Event]) -> list[str]:
    """What a collector promises for every record, and these events do not keep."""
    found = []
    if not events:
        found.append("a record without an event")
    if [event.number for event in events] != list(range(len(events))):
        found.append(f"numbers {[event.number for event in events][:9]}")
    for event in events:
        found += faults(event.fields)
        if event.record is not record:
            found.append("an event of another record")
        if event.time.utcoffset() is None:
            found.append(f"naive time {event.time}")
        for name, value in event.fields.items():
            found += [f"{name}: {why}" for why in _wrong(name, value)]
    return found


def _wrong(name: str, value: Any) -> Iterator[str]:
    kind = FIELDS[name].type.removesuffix("[]") if name in FIELDS else ""
    for one in value if isinstance(value, list) else [value]:
        if kind == "ip" and not _is_address(one):
            yield f"no address {one!r}"
        if name.endswith(".port") and not 0 <= one <= 65_535:
            yield f"no port {one!r}"
        if kind == "long" and not -(2**63) <= one < 2**63:
            yield f"no long {one!r}"
        if kind in ("double", "float") and not abs(one) < float("inf"):
            yield f"no number {one!r}"
        if kind == "date" and one.utcoffset() is None:
            yield f"naive {one!r}"
    try:
        msgspec.json.encode(value)
        json.dumps(value, default=str, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        yield f"cannot be stored: {error}"
    if kind == "keyword" and name != "event.original" and len(str(value)) > 40_000:
        yield "too long"


def _is_address(value: Any) -> bool:
    try:
        return "%" not in str(ipaddress.ip_address(value))
    except ValueError:
        return False
