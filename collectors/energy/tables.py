"""Meters and loggers: tables of readings (CSV), a header and then a line a time.

Send: Let the logger or historian write such a file and follow it (`reader = "file"`,
`follow = true`, `collector = "tables"`), or read a folder of exports (`reader = "folder"`).

Understood: Lines separated by `;`, `,` or tab (with `;` or tab also decimal commas), a column of
times (ISO 8601, epoch seconds, `31.12.2026 14:05`; without a zone it is UTC) and columns of
numbers: each of them is a reading, whose point is the file and the column, whose quantity is the
column, and whose unit stands in its brackets, as in `Flow [m3/h]`. A value that is missing or no
number is a reading of bad quality; columns of text are kept beside the readings.

Not understood: Values over several lines; tables without a header. Columns called anomaly,
changepoint, label and the like are what somebody knew afterwards and are kept nowhere.

References:
    RFC 4180 (CSV).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.values import clean, moment, real, scalar

TABLE = LogSource(category="sensor_reading", service="table")

TIMES = frozenset(
    (
        *("time", "datetime", "date_time", "timestamp", "date", "ts", "datum", "zeit", "zeitpunkt"),
        *("zeitstempel", "time_utc", "timestamp_utc", "date time", "recorded_at", "measured_at"),
    )
)
"""Names of the column of times."""
LABELS = frozenset(
    (
        *("anomaly", "anomalies", "is_anomaly", "changepoint", "label", "labels", "attack"),
        *("attack_label", "is_attack", "ground_truth", "normal/attack"),
    )
)
"""Names of columns that hold what somebody knew afterwards."""
MISSING = frozenset(("", "-", "--", "nan", "na", "n/a", "null", "none", "nil"))
SEPARATORS = (";", "\t", ",")
COLUMNS_MAX = 256
HEADERS_MAX = 1_024
LINE_MAX = 65_536

_UNIT = re.compile(r"(.{1,200}?)\s*[\[(]([^\[\]()]{1,32})[\])]\s*")
_DAY = re.compile(r"(\d\d?)\.(\d\d?)\.(\d{4})[ T](\d\d?):(\d\d)(?::(\d\d))?")

READING = {
    "event.kind": "metric",
    "event.category": ["environment"],
    "event.action": "reading",
    "event.dataset": "table.reading",
    "cw.domain": ["physical"],
    "cw.time_source": "source",
}


def looks_like_table(head: bytes) -> bool:
    """A header with a column of times, and under it lines with a time and a number."""
    lines = [line for line in head[:16_384].split(b"\n", 8)[:7] if line.strip()]
    if len(lines) < 2:
        return False
    try:
        found = _header(lines[0])
        if found is None:
            return False
        if len(lines) > 2:
            lines.pop()  # it may be cut
        for line in lines[1:]:
            cells = _cells(line, found["separator"])
            if len(cells) != len(found["columns"]) or _moment(cells[found["time"]]) is None:
                return False
            if not any(
                _number(cells[at], found["separator"]) is not None for at in _readings(found)
            ):
                return False
    except ValueError:
        return False
    return True


@collector(TABLE, looks_like=looks_like_table, strength=20)
class Tables:
    """Read tables: one event a number."""

    def __init__(self) -> None:
        self.memory: dict[str, dict[str, Any]] = {}
        """The header of each file, kept over a restart."""

    def __call__(self, records: Iterable[Record]) -> Iterator[Event]:
        """Events of lines."""
        for record in records:
            try:
                yield from self._line(record)
            except ValueError as error:
                yield Event.malformed(record, TABLE, why=str(error))

    def _line(self, record: Record) -> Iterator[Event]:
        if len(record.data) > LINE_MAX:
            raise ValueError(f"a line of more than {LINE_MAX} bytes")
        header = self.memory.get(record.source)
        if announced := _header(record.data):
            self.memory.pop(record.source, None)
            self.memory[record.source] = announced
            if len(self.memory) > HEADERS_MAX:
                del self.memory[next(iter(self.memory))]
            yield _announced(announced, record)
        elif header is None:
            raise ValueError("a line of values before any header")
        else:
            yield from _row(header, record)


def _header(line: bytes) -> dict[str, Any] | None:
    """Separator, names and place of the time of a header; None if the line is none."""
    text = line[:LINE_MAX].decode("utf-8-sig", "backslashreplace").strip("\r\n")
    separator = next((sign for sign in SEPARATORS if sign in text), None)
    if separator is None:
        return None
    columns = [cell.strip() for cell in _cells(line, separator)]
    names = [column.lower() for column in columns]
    at = next((at for at, name in enumerate(names) if name in TIMES), None)
    if at is None or not 2 <= len(columns) <= COLUMNS_MAX or len(set(names)) != len(names):
        return None
    if not all(names) or any(_number(name, separator) is not None for name in names):
        return None
    return {"separator": separator, "columns": [clean(one)[:200] for one in columns], "time": at}


def _readings(header: dict[str, Any]) -> list[int]:
    """Which columns may hold readings: all but times and labels."""
    return [
        at
        for at, name in enumerate(header["columns"])
        if at != header["time"] and name.lower() not in LABELS
    ]


def _cells(line: bytes, separator: str) -> list[str]:
    text = line.decode("utf-8-sig", "backslashreplace").strip("\r\n")
    try:
        return next(csv.reader([text.replace("\n", " ").replace("\r", " ")], delimiter=separator))
    except (csv.Error, StopIteration):
        raise ValueError("no line of a table") from None


def _announced(header: dict[str, Any], record: Record) -> Event:
    fields = {
        "event.kind": "state",
        "event.action": "table_header",
        "event.dataset": "table.header",
        "ot.point.count": len(_readings(header)),
        "cw.time_source": "collector",
    }
    return Event(record.received, TABLE, fields, record)


def _row(header: dict[str, Any], record: Record) -> Iterator[Event]:
    separator, columns = header["separator"], header["columns"]
    cells = _cells(record.data, separator)
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} values, the header has {len(columns)} columns")
    time = _moment(cells[header["time"]])
    if time is None:
        raise ValueError(f"no time in {columns[header['time']]}: {cells[header['time']][:64]!r}")
    wanted = _readings(header)
    numbers = {at: _number(cells[at], separator) for at in wanted}
    if all(number is None for number in numbers.values()):
        raise ValueError("a line without a number")
    texts = header.setdefault("texts", {})
    common: dict[str, Any] = dict(READING)
    if len(wanted) + 1 < len(columns):
        kept = [cells[at] for at in sorted((*wanted, header["time"]))]
        common["event.original"] = clean(separator.join(kept))
    vendor = {}
    for at in wanted:
        # A column is of text as long as it never held a number.
        if numbers[at] is not None:
            texts[str(at)] = False
        elif cells[at].strip().lower() not in MISSING:
            texts.setdefault(str(at), True)
        if texts.get(str(at)):
            vendor[columns[at]] = scalar(cells[at])
    if vendor:
        common["cw.vendor"] = vendor
    number = 0
    for at in wanted:
        if not texts.get(str(at)):
            fields = {**common, **_reading(record.source, columns[at], cells[at], numbers[at])}
            yield Event(time, TABLE, fields, record, number)
            number += 1


def _reading(source: str, column: str, cell: str, number: float | None) -> dict[str, Any]:
    name, unit = column, ""
    if found := _UNIT.fullmatch(column):
        name, unit = found[1].strip(), found[2].strip()
    fields: dict[str, Any] = {"phys.point": clean(f"{source}/{name}"), "phys.quantity": name}
    if unit:
        fields["phys.unit"] = unit
    if number is not None:
        return {**fields, "phys.reading": number, "phys.quality": "good"}
    missing = cell.strip().lower() in MISSING
    why = "no data" if missing else f"no number: {clean(cell)[:64]!r}"
    return {**fields, "phys.quality": "bad", "event.reason": why}


def _number(cell: str, separator: str) -> float | None:
    text = cell.strip()
    if separator != "," and text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    # Python also reads `1_000` and digits of other scripts; a logger writes none.
    if not text.isascii() or "_" in text:
        return None
    return real(text)


def _moment(cell: str) -> datetime | None:
    text = cell.strip()
    if found := _DAY.fullmatch(text):
        day, month, year, hour, minute, second = (int(part or 0) for part in found.groups())
        try:
            return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            return None
    return moment(text)
