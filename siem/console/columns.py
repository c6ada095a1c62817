"""Which fields of some events are worth a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from siem.store.protocol import Document

COLUMNS: tuple[tuple[str, str], ...] = (
    ("source.ip", "Source"),
    ("destination.ip", "Destination"),
    ("destination.port", "Port"),
    ("host.name", "Host"),
    ("user.name", "User"),
    ("cw.asset.asset_id", "Asset"),
    ("network.protocol", "Protocol"),
    ("event.action", "Action"),
    ("ot.function.name", "Function"),
    ("ot.point.address", "Register"),
    ("ot.value", "Value"),
    ("phys.point", "Point"),
    ("phys.reading", "Reading"),
    ("phys.unit", "Unit"),
    ("event.outcome", "Outcome"),
    ("event.reason", "Reason"),
    ("rule.name", "Rule"),
    ("message", "Message"),
    ("event.dataset", "Dataset"),
)
"""Fields that are worth a column, most telling first, and their head."""

COLUMNS_MOST = 8


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table of events."""

    field: str
    head: str
    is_number: bool


def columns(rows: Sequence[Document], asked: str = "") -> list[Column]:
    """The columns asked for, else those that at least a fifth of the rows fill."""
    heads = dict(COLUMNS)
    if asked:
        names = [name for name in asked.split(",") if name][:20]
    else:
        enough = max(1, len(rows) // 5)
        names = [name for name in heads if sum(_has(row, name) for row in rows) >= enough]
        names = names[:COLUMNS_MOST]
    return [
        Column(name, heads.get(name, name), _is_numeric([row.get(name) for row in rows]))
        for name in names
    ]


def _has(row: Document, name: str) -> bool:
    return row.get(name) not in (None, "", [])


def _is_numeric(values: Sequence[Any]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in present
    )
