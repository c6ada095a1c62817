"""Events of a sensor elsewhere: what its collectors made, one JSON object a line.

Send: run `cityward collect` on the sensor; this node has a source with `reader = "sensors"` and
admits it by a one-time token (`cityward source add sensor NAME`).

Understood: every field of the table; the node adds operator, zones and assets by its own
inventory, whatever the sensor says of them.

Not understood: lines that break the field table; they are events that say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from cityward import Event, LogSource, Record, collector
from cityward.checks import KEYWORD_MAX, wrong_fields
from cityward.fields import FIELDS

SENSOR = LogSource(category="sensor", product="cityward")
OURS = frozenset(("cw.schema", "cw.operator", "cw.sector", "cw.mode", "event.id", "event.ingested"))
"""What only the node says."""
LOGSOURCE_MAX, REASON_MAX = 100, 200
ADDRESS_MAX, LIST_MAX, WORD_MAX, PORT_MAX = 45, 16, 200, 65_535
_KINDS = {name: field.type for name, field in FIELDS.items()}
_ALWAYS = frozenset((("boolean", bool), ("date", datetime)))
_UNREADABLE = (ValueError, KeyError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError)
_PREFIXES = ("cw.record.", "cw.source.", "cw.destination.", "cw.asset.", "cw.conduit.")
_DATES = tuple(name for name, field in FIELDS.items() if field.type == "date")
_STATES = {"connected": ("sensor_connected", "success"), "gone": ("sensor_gone", "failure")}


def looks_like_shipped(head: bytes) -> bool:
    """A line of a spool."""
    return head.startswith(b"{") and b'"cw.record.place"' in head[:65_536].partition(b"\n")[0]


@collector(SENSOR, looks_like=looks_like_shipped, strength=90)
def shipped(records: Iterable[Record]) -> Iterator[Event]:
    """Read what sensors ship."""
    for record in records:
        try:
            yield _event(record)
        except _UNREADABLE as error:
            yield Event.malformed(record, SENSOR, f"no event of a sensor: {error}")


def _event(record: Record) -> Event:
    said = msgspec.json.decode(record.data, type=dict[str, Any])
    name, _, number = str(record.place).partition("|")
    if number.startswith("state|"):  # only the reader writes such places
        return _state(record, said)
    time = _moment(said.pop("@timestamp"))
    logsource = _logsource([said.pop(f"cw.logsource.{part}", "") for part in _PARTS])
    seen_by = said.get("observer.name", "")
    if "event.ingested" in said:
        said["event.created"] = said["event.ingested"]
    fields = {
        key: value
        for key, value in said.items()
        if key not in OURS and not key.startswith(_PREFIXES)
    }
    for key in _DATES:
        if key in fields:
            fields[key] = _moment(fields[key])
    fields["observer.name"] = f"{name}/{seen_by}"
    fields["observer.type"] = "sensor"
    doubtful = {key: value for key, value in fields.items() if not _is_plain(key, value)}
    if doubtful and (faults := wrong_fields(doubtful)):
        raise ValueError(_said(faults[0]))
    # The line is only how the event came; what the sensor read is in `event.original`.
    return Event(time, logsource, fields, msgspec.structs.replace(record, data=b""))


_PARTS = ("category", "product", "service")


def _logsource(parts: list[Any]) -> LogSource:
    if not all(isinstance(part, str) and len(part) <= LOGSOURCE_MAX for part in parts):
        raise ValueError("a log source that is none")
    return LogSource(*parts)


def _state(record: Record, said: dict[str, Any]) -> Event:
    name, state = str(said["cw.sensor"])[:64], str(said.get("state"))
    action, outcome = _STATES.get(state, ("sensor_unknown", "unknown"))
    fields = {
        "event.action": action,
        "event.outcome": outcome,
        "event.category": ["host"],
        "event.dataset": "cityward.sensor",
        "cw.domain": ["availability"],
        "host.name": name,
    }
    if faults := wrong_fields(fields):
        raise ValueError(_said(faults[0]))
    return Event(record.received, SENSOR, fields, record)


def _is_plain(name: str, value: Any) -> bool:
    """Whether a value is in order at a glance; the whole test costs as much as all else here."""
    kind = _KINDS.get(name)
    if type(value) is str:
        if kind == "ip":
            return len(value) <= ADDRESS_MAX and _is_address(value)
        return kind in ("keyword", "text") and len(value) <= KEYWORD_MAX
    if type(value) is int:
        return kind == "long" and 0 <= value <= PORT_MAX
    if type(value) is list:
        is_short = kind == "keyword[]" and len(value) <= LIST_MAX
        return is_short and all(type(one) is str and len(one) <= WORD_MAX for one in value)
    return (kind, type(value)) in _ALWAYS


@lru_cache(maxsize=65_536)
def _is_address(text: str) -> bool:
    return not wrong_fields({"source.ip": text})


def _said(fault: str) -> str:
    """A fault names what came, which may be what no store could keep."""
    return fault.encode("ascii", "backslashreplace").decode()[:REASON_MAX]


def _moment(text: Any) -> datetime:
    time = datetime.fromisoformat(text)
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
