"""Record and Event: what arrived, and what was seen in it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

ORIGINAL_MAX_BYTES = 65_536
"""How much of a raw record an event may carry; the rest is named by its hash."""


class LogSource(msgspec.Struct, frozen=True, gc=False):
    """Where an event comes from in Sigma's words; an empty string means "not given".

    References:
        Sigma specification 2.1.0, "Log source".
    """

    category: str = ""
    product: str = ""
    service: str = ""

    def __str__(self) -> str:
        return "/".join(part or "*" for part in (self.product, self.category, self.service))


class Record(msgspec.Struct, frozen=True, gc=False):
    """What arrived, not yet interpreted."""

    data: bytes
    """One line without its line end, one datagram, one document; empty for a frame of a capture."""
    source: str
    """Id of the source, stable over restarts."""
    place: int | str
    """Place in its source: byte offset, frame number (from 1), message id."""
    received: datetime
    """When the reader got it, UTC."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One thing that was seen, in flat ECS names (`cityward/fields.py`)."""

    time: datetime
    """When it happened, UTC (`@timestamp`)."""
    logsource: LogSource
    fields: dict[str, Any]
    """Flat field names to values; never changed after the event is made."""
    record: Record
    """The record it was read from."""
    number: int = 0
    """Number of the event within its record."""

    @classmethod
    def malformed(
        cls,
        record: Record,
        logsource: LogSource,
        why: str,
        fields: Mapping[str, Any] | None = None,
        number: int = 0,
    ) -> Event:
        """Say that a record, or a part of it, could not be read, and why; nothing is lost."""
        said = {
            "event.kind": "pipeline_error",
            "event.action": "unreadable",
            "event.outcome": "failure",
            "event.reason": why[:1000],
        }
        if record.data:
            said["event.original"] = text_of(record.data)
        return cls(record.received, logsource, {**(fields or {}), **said}, record, number)

    @property
    def is_malformed(self) -> bool:
        """True if the event only says that something could not be read."""
        return self.fields.get("event.kind") == "pipeline_error"

    def get(self, name: str) -> Any:
        """Value of a field, `@timestamp` included; None if the event does not have it."""
        return self.time if name == "@timestamp" else self.fields.get(name)


def text_of(data: bytes) -> str:
    """Raw bytes as text, capped, with bytes that are no UTF-8 shown in hexadecimal."""
    return data[:ORIGINAL_MAX_BYTES].decode("utf-8", "backslashreplace")


def utc(epoch_s: float) -> datetime:
    """Seconds since 1970 as an aware time."""
    return datetime.fromtimestamp(epoch_s, UTC)
