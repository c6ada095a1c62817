"""What values a Parquet file holds, column by column: looked up once, and kept beside the file.

Most columns of events repeat a few values. Who knows them can say of a rule that it cannot match
anything in a file without reading the file. `<name>.parquet` has them in `<name>.values.json`,
which goes when the file goes, and is made again if it is missing.

References:
    Fast path, part C, "Backtest".
"""

from __future__ import annotations

import contextlib
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

FORMAT = 1
VALUES_MAX = 10_000
"""A column with more values is not kept: it is asked when a rule wants it."""
BYTES_MAX = 1024 * 1024
"""Nor is one whose values are longer than this together."""
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
        return "VARCHAR" if self.key else COLUMNS[self.field]

    @property
    def sql(self) -> str:
        """How it is read; what stands within `cw.vendor` as the text of its JSON."""
        if not self.key:
            return f'"{self.field}"'
        pointer = quoted("/" + self.key.replace("~", "~0").replace("/", "~1"))
        return f'CAST(json_extract("{self.field}", {pointer}) AS VARCHAR)'


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
    """SQL that is true for rows with one of these values, and never NULL.

    Values stand in it as literals: only those let DuckDB skip groups of rows.
    """
    if not raws:
        return "FALSE"
    if len(columns) > 1:
        return "(" + " OR ".join(_same(columns, raw) for raw in raws) + ")"
    (column,) = columns
    listed = ", ".join(_literal(column.kind, value) for (value,) in raws if value is not None)
    has_null = any(value is None for (value,) in raws)
    if not listed:
        return f"{column.sql} IS NULL"
    if has_null:
        return f"({column.sql} IS NULL OR {column.sql} IN ({listed}))"
    return f"({column.sql} IS NOT NULL AND {column.sql} IN ({listed}))"


def _same(columns: Sequence[Column], raw: Raw) -> str:
    pairs = zip(columns, raw, strict=True)
    tests = (
        f"{column.sql} IS NOT DISTINCT FROM "
        + ("NULL" if value is None else _literal(column.kind, value))
        for column, value in pairs
    )
    return "(" + " AND ".join(tests) + ")"


def _literal(kind: str, value: Any) -> str:
    if kind.endswith("[]"):
        return f"[{', '.join(_literal(kind[:-2], one) for one in value)}]::{kind}"
    if kind in ("VARCHAR", "JSON"):
        # A text with a NUL in it would end there.
        return "(" + " || chr(0) || ".join(quoted(part) for part in value.split("\0")) + ")"
    if kind == "TIMESTAMP":
        return f"TIMESTAMP '{value.isoformat(sep=' ')}'"
    return f"{str(value).lower() if isinstance(value, bool) else repr(value)}::{kind}"


class _Known(msgspec.Struct):
    """Values that some columns have together; None: there are too many."""

    columns: tuple[Column, ...]
    values: list[Raw] | None


class _Kept(msgspec.Struct):
    """The file beside a Parquet file."""

    format: int
    size: int
    """Bytes of the Parquet file: of another one, this says nothing."""
    rows: int
    fields: list[str]
    """Columns that the Parquet file has …"""
    full: list[str]
    """… and those of them that every row has."""
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
        self._size = path.stat().st_size
        kept = _read(beside(path), self._size) if keep else None
        self._kept = kept or self._looked_at()
        self.fields = frozenset(self._kept.fields)
        self.full = frozenset(self._kept.full)
        self._known = {one.columns: one.values for one in self._kept.known}

    @property
    def count(self) -> int:
        """Rows of the file."""
        return self._kept.rows

    def has(self, column: Column) -> bool:
        """Whether some row has it."""
        if column.field not in self.fields:
            return False
        values = self.of((column,)) if column.key else None
        return not column.key or values is None or any(raw != (None,) for raw in values)

    def of(self, columns: tuple[Column, ...]) -> list[Raw] | None:
        """Which values these columns have together; None: too many to be kept."""
        if any(column.kind in ("TIMESTAMP", "JSON") for column in columns):
            return None  # nearly as many as there are rows
        if columns not in self._known:
            self._known[columns] = self._asked(columns)
            self._is_new = True
        return self._known[columns]

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
        known = [_Known(columns, values) for columns, values in self._known.items()]
        kept = msgspec.structs.replace(self._kept, known=known)
        with contextlib.suppress(OSError):
            _write(beside(self.path), msgspec.json.encode(kept))

    def _looked_at(self) -> _Kept:
        """What the end of the file says of all of it."""
        file = quoted(str(self.path))
        count = self._rows(f"SELECT num_rows FROM parquet_file_metadata({file})")[0][0]
        columns = self._rows(
            "SELECT split_part(path_in_schema, ', ', 1), sum(stats_null_count)"
            f" FROM parquet_metadata({file}) GROUP BY 1"
        )
        known = [(name, nulls) for name, nulls in columns if name in COLUMNS]
        self._is_new = True
        return _Kept(
            format=FORMAT,
            size=self._size,
            rows=count,
            fields=[name for name, _ in known],
            full=[name for name, nulls in known if nulls == 0 and "[]" not in COLUMNS[name]],
        )


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


def _read(path: Path, size: int) -> _Kept | None:
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (OSError, msgspec.MsgspecError):
        return None  # made again
    return kept if (kept.format, kept.size) == (FORMAT, size) else None


def _write(path: Path, data: bytes) -> None:
    """A whole file or none; two that write at once both have it right."""
    made, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(made, "wb") as file:
        file.write(data)
    os.replace(unfinished, path)
