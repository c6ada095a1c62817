"""Results on standard output: a table for a person, lines for a pipe; nothing else goes there."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TextIO

import msgspec

Form = Literal["table", "json", "ndjson", "csv"]
Row = Mapping[str, Any]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters that a spreadsheet takes for a formula."""


def form_for(asked: Form | None, out: TextIO) -> Form:
    """The form asked for; else a table for a terminal and lines of JSON for a pipe."""
    return asked or ("table" if out.isatty() else "ndjson")


def write(
    rows: Iterable[Row],
    form: Form,
    columns: Sequence[str],
    out: TextIO | None = None,
) -> None:
    """Write rows in a form.

    Args:
        rows: Flat documents, written in their order.
        form: `json`, `ndjson` write every field; `table`, `csv` the columns named.
        columns: Field names of the table, most important first.
        out: Where to, standard output by default.
    """
    out = out or sys.stdout
    if form == "ndjson":
        for row in rows:
            out.write(msgspec.json.encode(row).decode() + "\n")
    elif form == "json":
        out.write(msgspec.json.format(msgspec.json.encode(list(rows))).decode() + "\n")
    elif form == "csv":
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    else:
        _table(rows, columns, out)


def _table(rows: Iterable[Row], columns: Sequence[str], out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name.rpartition(".")[2].replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(visible(text(row.get(name))) for name in columns))
    Console(file=out, highlight=False, markup=False).print(table)


def text(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return ", ".join(text(one) for one in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(msgspec.to_builtins(value))


def visible(value: str) -> str:
    """Text from outside with its control and direction characters shown, not obeyed."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in value
    )


def _cell(value: Any) -> str:
    cell = text(value)
    return "'" + cell if cell.startswith(_FORMULA) and not isinstance(value, (int, float)) else cell
