"""Results on standard output: a table for a person, lines for a pipe; nothing else goes there."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TextIO

import msgspec

if TYPE_CHECKING:
    from rich.console import Console

Form = Literal["table", "json", "ndjson", "csv"]
Row = Mapping[str, Any]

_UNSEEN = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What JSON leaves as it is, and a terminal obeys: C1 controls, changes of direction."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters that a spreadsheet takes for a formula."""
PIPE_WIDTH = 120
_WHOLE = ("@timestamp", "finding.last_seen", "last_event", "source", "source.mac", "check", "time")
"""Columns that are never folded."""
_VAGUE = ("ip", "mac", "name", "id", "port", "address")
_CULPRITS = (
    "source.ip",
    "source.mac",
    "phys.track",
    "phys.point",
    "host.name",
    "cw.asset.asset_id",
    "user.name",
)
"""Fields that name whom a finding is about, most telling first."""
_COLOURS = {
    "low": "cyan",
    "medium": "yellow",
    "high": "red",
    "critical": "bold red",
    "fatal": "bold white on red",
}
"""Colour of a severity; the word always stands beside it."""


def form_for(asked: Form | None, out: TextIO) -> Form:
    """The form asked for; else a table for a terminal and lines of JSON for a pipe."""
    return asked or ("table" if out.isatty() else "ndjson")


def write(
    rows: Iterable[Row],
    form: Form,
    columns: Sequence[str],
    out: TextIO | None = None,
    *,
    head: bool = True,
) -> None:
    """Write rows in a form.

    Args:
        rows: Flat documents, written in their order.
        form: `json`, `ndjson` write every field; `table`, `csv` the columns named.
        columns: Field names of the table, most important first.
        out: Where to, standard output by default.
        head: Name the columns; a list that goes on does so once.
    """
    out = out or sys.stdout
    if form == "ndjson":
        for row in rows:
            out.write(_json(row) + "\n")
    elif form == "json":
        out.write(msgspec.json.format(_json(list(rows))) + "\n")
    elif form == "csv":
        writer = csv.writer(out, lineterminator="\n")
        if head:
            writer.writerow(columns)
        writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    else:
        _table(rows, columns, out, head)


def write_findings(
    rows: Iterable[Row], form: Form, columns: Sequence[str], *, head: bool = True
) -> None:
    """Write findings: as `write`, but a table gives title and sentence room."""
    if form != "table":
        write(rows, form, columns, head=head)
        return
    rows = list(rows)
    if not rows:
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=head)
    table.add_column("severity", no_wrap=True)
    table.add_column("finding", ratio=1, overflow="fold")
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("by", overflow="fold", min_width=8)
    with_id = "finding.id" in columns
    if with_id:
        table.add_column("id", no_wrap=True)
    for row in rows:
        severity = str(row["finding.severity"])
        said = Text(visible(row["finding.title"]), style="bold")
        said.append("\n" + visible(row["finding.description"]), style="not bold")
        cells = [
            Text(severity, style=_COLOURS.get(severity, "")),
            said,
            Text(f"{row.get('finding.count', 1):,}"),
            Text(visible(culprit(row))),
        ]
        table.add_row(*cells, *([Text(row["finding.id"][:8])] if with_id else []))
    _console(sys.stdout).print(table)


def culprit(row: Row) -> str:
    """Who or what a finding is about, as far as one word says it."""
    return next((text(row[name]) for name in _CULPRITS if row.get(name)), "")


def _table(rows: Iterable[Row], columns: Sequence[str], out: TextIO, head: bool) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=head)
    cells = [[visible(text(row.get(name))) for name in columns] for row in rows]
    if not cells:
        return
    shown = [at for at, _ in enumerate(columns) if any(line[at] for line in cells)]
    for at in shown:
        number = all(line[at][:1].isdecimal() for line in cells)
        keep = columns[at] in _WHOLE
        right = number and not keep
        table.add_column(
            _heading(columns[at]),
            overflow="fold",
            no_wrap=keep,
            justify="right" if right else "left",
        )
    for line in cells:
        table.add_row(*(line[at] for at in shown))
    _console(out).print(table)


def _console(out: TextIO) -> Console:
    from rich.console import Console

    # A pipe has no width; 80 columns would fold what a file has room for.
    width = None if out.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=out, highlight=False, markup=False, width=width)


def _heading(name: str) -> str:
    """Last part of a field name; with the one before where that alone says nothing."""
    *before, last = name.split(".")
    words = [*before[-1:], last] if last in _VAGUE else [last]
    return " ".join(words).strip("@").replace("_", " ")


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
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%S}Z"
    return str(msgspec.to_builtins(value))


def many(count: int, of: str) -> str:
    """So many of something, which is named as one of it: `1 event`, `2,000 events`."""
    return f"{count:,} {of if count == 1 else of + 's'}"


def visible(value: str) -> str:
    """Text from outside with its control and direction characters shown, not obeyed."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in value
    )


def _json(value: Any) -> str:
    """JSON whose every character is printable: what obeys a terminal is written as its number."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", msgspec.json.encode(value).decode())


def _cell(value: Any) -> str:
    cell = visible(text(value))
    return "'" + cell if cell.startswith(_FORMULA) and not isinstance(value, (int, float)) else cell
