"""What values a Parquet file holds, column by column: looked up once, and kept beside the file.

Most columns of events repeat a few values. Who knows them can say of a rule that it cannot match
anything in a file without reading the file. `<name>.parquet` has them in `<name>.values.json`:
compaction writes it, so that the first backtest knows them already, and it goes when the file
goes. What is not in it is looked up when a rule wants it, and added; so is all of it where an
older cityward compacted.

References:
    Fast path, part C, "Backtest".
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from siem.store.archive import quoted
from siem.store.lines import COLUMNS
from siem.store.protocol import Document

FORMAT = 3
VALUES_MAX = 10_000
"""A column with more values is not kept: it is asked when a rule wants it."""
BYTES_MAX = 1024 * 1024
"""Nor is one whose values are longer than this together."""
NOTED_MAX = 2 * BYTES_MAX
"""Of all columns compaction notes so much, those with the shortest values first."""
UNREPEATED = 5 * VALUES_MAX
"""A column of so many rows for which DuckDB wrote no dictionary has more values than we keep."""
BLOCKS, BLOCK = 16, 4096
"""So many blocks of so many bytes are looked at to tell a file from another one."""
_FOOT = 8
"""Bytes at the end: how long the footer is, and `PAR1`."""
KEYS_MAX = 1_000
"""Names within `cw.vendor` that are kept."""
VENDOR = "cw.vendor"

Raw = tuple[Any, ...]
"""Values of some columns in one row, as DuckDB gives them."""
Rows = Callable[[str], Sequence[tuple[Any, ...]]]
"""Asks DuckDB."""


class Column(msgspec.Struct, frozen=True):
    """A column of stored events, or one name within `cw.vendor`."""

    field: str
    key: str = ""
    """Top-level name within `cw.vendor`."""

    @property
    def kind(self) -> str:
        """Its DuckDB type."""
        return "VARCHAR" if self.key else COLUMNS.get(self.field, "BIGINT")

    @property
    def sql(self) -> str:
        """How it is read; what stands within `cw.vendor` as the text of its JSON."""
        if not self.key:
            return f'"{self.field}"'
        pointer = quoted("/" + self.key.replace("~", "~0").replace("/", "~1"))
        return f'CAST(json_extract("{self.field}", {pointer}) AS VARCHAR)'


PLACE = Column("file_row_number")
"""Which row of its file an event is."""


def document_of(columns: Sequence[Column], raw: Raw) -> Document:
    """The part of an event that these values are; NULL is no field."""
    found: Document = {}
    for column, value in zip(columns, raw, strict=True):
        if value is None:
            continue
        if column.key:
            found.setdefault(column.field, {})[column.key] = msgspec.json.decode(value)
        elif column.kind == "JSON":
            found[column.field] = msgspec.json.decode(value)
        elif isinstance(value, datetime):
            found[column.field] = value.replace(tzinfo=UTC)
        else:
            found[column.field] = value
    return found


def one_of(columns: Sequence[Column], raws: Sequence[Raw]) -> str:
    """SQL that is true for rows with one of these values; for others it is false, or NULL.

    Values stand in it as literals, and nothing stands around them: only so does DuckDB skip groups
    of rows, and decides on the words of its dictionary instead of each row.
    """
    if not raws:
        return "FALSE"
    if len(columns) > 1:
        return "(" + " OR ".join(_same(columns, raw) for raw in raws) + ")"
    (column,) = columns
    there = [literal(column.kind, value) for (value,) in raws if value is not None]
    has_null = len(there) < len(raws)
    if not there:
        return f"{column.sql} IS NULL"
    found = f"{column.sql} = {there[0]}" if len(there) == 1 else _listed(column, "IN", there)
    return f"({column.sql} IS NULL OR {found})" if has_null else found


def none_of(columns: Sequence[Column], raws: Sequence[Raw]) -> str:
    """The same for rows with any other values."""
    if not raws:
        return "TRUE"
    if len(columns) > 1:
        return f"NOT {one_of(columns, raws)}"
    (column,) = columns
    there = [literal(column.kind, value) for (value,) in raws if value is not None]
    has_null = len(there) < len(raws)
    if not there:
        return f"{column.sql} IS NOT NULL"
    found = _listed(column, "NOT IN", there)
    return found if has_null else f"({column.sql} IS NULL OR {found})"


def _listed(column: Column, how: str, literals: Sequence[str]) -> str:
    return f"{column.sql} {how} ({', '.join(literals)})"


def _same(columns: Sequence[Column], raw: Raw) -> str:
    pairs = zip(columns, raw, strict=True)
    tests = (
        f"{column.sql} IS NOT DISTINCT FROM "
        + ("NULL" if value is None else literal(column.kind, value))
        for column, value in pairs
    )
    return "(" + " AND ".join(tests) + ")"


def literal(kind: str, value: Any) -> str:
    """A value of a DuckDB type as SQL."""
    if kind.endswith("[]"):
        return f"[{', '.join(literal(kind[:-2], one) for one in value)}]::{kind}"
    if kind in ("VARCHAR", "JSON"):
        # A text with a NUL in it would end there.
        return "(" + " || chr(0) || ".join(quoted(part) for part in value.split("\0")) + ")"
    if kind == "TIMESTAMP":
        return f"TIMESTAMP '{value.isoformat(sep=' ')}'"
    return f"'{value!r}'::{kind}"  # the smallest whole number is none without its sign


class _Known(msgspec.Struct):
    """Values that some columns have together; None: there are too many."""

    columns: tuple[Column, ...]
    values: msgspec.Raw
    """JSON of `list[Raw] | None`: most of it is never looked at."""


class _Kept(msgspec.Struct):
    """The file beside a Parquet file."""

    format: int
    identity: str
    """Of the Parquet file: of another one, this says nothing."""
    rows: int
    fields: list[str]
    """Columns that the Parquet file has …"""
    full: list[str]
    """… and those of them that every row has."""
    many: list[str]
    """Columns of which the file itself says that they have too many values."""
    keys: list[str] | None = None
    """Names that stand within `cw.vendor`; None: not looked up, or too many."""
    known: list[_Known] = []


class Values:
    """The distinct values of one Parquet file, asked when they are wanted first."""

    def __init__(self, path: Path, rows: Rows, *, keep: bool = True) -> None:
        """Look at a file.

        Args:
            path: The Parquet file.
            rows: Asks DuckDB.
            keep: Whether what is found is written beside it.
        """
        self.path = path
        self.table = f"read_parquet({quoted(str(path))}, file_row_number=true)"
        self._rows = rows
        self._keep = keep
        self._is_new = False
        self._identity = identity(path) if keep else ""
        kept = _read(beside(path), self._identity) if keep else None
        self._kept = kept or self._looked_at()
        self.fields = frozenset(self._kept.fields)
        self.full = frozenset(self._kept.full)
        self._told = {one.columns: one.values for one in self._kept.known}
        self._known: dict[tuple[Column, ...], list[Raw] | None] = {}

    @property
    def count(self) -> int:
        """Rows of the file."""
        return self._kept.rows

    def has(self, column: Column) -> bool:
        """Whether some row has it."""
        if column.field not in self.fields:
            return False
        if not column.key:
            return True
        if self._kept.keys is not None:
            return column.key in self._kept.keys
        values = self.of((column,))
        return values is None or any(raw != (None,) for raw in values)

    def of(self, columns: tuple[Column, ...]) -> list[Raw] | None:
        """Which values these columns have together; None: too many to be kept."""
        if any(column.kind in ("TIMESTAMP", "JSON") for column in columns):
            return None  # nearly as many as there are rows
        if any(column.field in self._kept.many for column in columns if not column.key):
            return None
        if columns not in self._known:
            told = self._told.get(columns)
            self._known[columns] = self._asked(columns) if told is None else _VALUES.decode(told)
            self._is_new |= told is None
        return self._known[columns]

    def note(self) -> None:
        """Look up every column of few values, and the names within `cw.vendor`; then `save`."""
        if VENDOR in self.fields and self._kept.keys is None:
            self._kept.keys = self._names_within()
        for name in sorted(self.fields):
            self.of((Column(name),))
        left = NOTED_MAX
        noted = {columns: _VALUES_AS(values) for columns, values in self._known.items()}
        for columns, values in sorted(noted.items(), key=lambda pair: len(pair[1])):
            left -= len(values)
            if left < 0:
                del self._known[columns]

    def _names_within(self) -> list[str] | None:
        names = self._rows(
            f'SELECT DISTINCT unnest(json_keys("{VENDOR}")) FROM {self.table} LIMIT {KEYS_MAX + 1}'
        )
        return sorted(name for (name,) in names) if len(names) <= KEYS_MAX else None

    def _asked(self, columns: tuple[Column, ...]) -> list[Raw] | None:
        listed = ", ".join(column.sql for column in columns)
        found = self._rows(f"SELECT DISTINCT {listed} FROM {self.table} LIMIT {VALUES_MAX + 1}")
        if len(found) > VALUES_MAX:
            return None
        if sum(len(str(value)) for row in found for value in row) > BYTES_MAX:
            return None
        return list(found)

    def save(self) -> None:
        """Write what was found beside the file; without a place to write, it is asked again."""
        if not (self._keep and self._is_new and self.path.exists()):
            return
        told = self._told | {
            columns: msgspec.Raw(_VALUES_AS(values)) for columns, values in self._known.items()
        }
        known = [_Known(columns, values) for columns, values in told.items()]
        kept = msgspec.structs.replace(self._kept, known=known)
        with contextlib.suppress(OSError):
            _write(beside(self.path), msgspec.json.encode(kept))

    def _looked_at(self) -> _Kept:
        """What the end of the file says of all of it."""
        file = quoted(str(self.path))
        count = self._rows(f"SELECT num_rows FROM parquet_file_metadata({file})")[0][0]
        columns = self._rows(
            "SELECT split_part(path_in_schema, ', ', 1), sum(stats_null_count),"
            f" bool_or(if(stats_distinct_count IS NOT NULL, stats_distinct_count > {VALUES_MAX},"
            f" type <> 'BOOLEAN' AND num_values - coalesce(stats_null_count, 0) > {UNREPEATED}))"
            f" FROM parquet_metadata({file}) GROUP BY 1"
        )
        known = [one for one in columns if one[0] in COLUMNS]
        self._is_new = True
        return _Kept(
            format=FORMAT,
            identity=self._identity,
            rows=count,
            fields=[name for name, _, _ in known],
            full=[name for name, nulls, _ in known if nulls == 0 and "[]" not in COLUMNS[name]],
            many=[name for name, _, is_many in known if is_many],
        )


_VALUES = msgspec.json.Decoder(list[Raw] | None)
_VALUES_AS = msgspec.json.encode


def note(path: Path, rows: Rows) -> None:
    """Write the values of a new Parquet file beside it.

    Args:
        path: The Parquet file.
        rows: Asks DuckDB.
    """
    values = Values(path, rows)
    values.note()
    values.save()


def beside(path: Path) -> Path:
    """Where the values of a Parquet file are kept."""
    return path.with_suffix(".values.json")


def let_go(path: Path) -> None:
    """The Parquet file goes: so do its values."""
    beside(path).unlink(missing_ok=True)


def clean(folder: Path) -> None:
    """Take away values whose Parquet file is gone: it went while they were asked."""
    for path in folder.glob("parquet/day=*/*.values.json"):
        if not path.with_name(path.name.replace(".values.json", ".parquet")).exists():
            path.unlink(missing_ok=True)


def split(
    columns: Sequence[Column], raws: Iterable[Raw], holds: Callable[[Raw], bool], most: int
) -> tuple[list[Raw] | None, list[Raw] | None]:
    """Values for which something holds, and the others; None for a side that became too long."""
    sides: list[list[Raw] | None] = [[], []]
    sizes = [0, 0]
    for raw in raws:
        side = 0 if holds(raw) else 1
        kept = sides[side]
        if kept is None:
            continue
        kept.append(raw)
        sizes[side] += sum(len(value) for value in raw if isinstance(value, str))
        if len(kept) > most or sizes[side] > 8 * BYTES_MAX:
            sides[side] = None
        if sides == [None, None]:
            break
    return sides[0], sides[1]


def identity(path: Path) -> str:
    """What tells a Parquet file from another one, also of its size and put there with its times.

    That is its size, its footer – where each column begins, its smallest and largest values – and
    blocks all over it; to read all would take longer than to ask it.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _FOOT, 0))
        length = int.from_bytes(file.read(4), "little")
        begin = max(size - _FOOT - length, 0)
        made = hashlib.blake2b(str(size).encode(), digest_size=16)
        for place in (begin, *(begin * n // BLOCKS for n in range(BLOCKS))):
            file.seek(place)
            made.update(file.read(size - begin if place == begin else BLOCK))
    return made.hexdigest()


def _read(path: Path, identity: str) -> _Kept | None:
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (OSError, msgspec.MsgspecError):
        return None  # made again
    return kept if (kept.format, kept.identity) == (FORMAT, identity) else None


def _write(path: Path, data: bytes) -> None:
    """A whole file or none; two that write at once both have it right."""
    made, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(made, "wb") as file:
        file.write(data)
    os.replace(unfinished, path)
