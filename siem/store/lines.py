"""Stored events as lines of JSON: their ids, their columns, and what does not fit."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from cityward.event import ORIGINAL_MAX_BYTES
from cityward.fields import FIELDS
from siem.store.protocol import Document

LINE_MAX_BYTES = 1024 * 1024
INT64 = 2**63
UNWRITABLE = (UnicodeEncodeError, TypeError, OverflowError, msgspec.MsgspecError)


def event_id(operator: str, source: str, place: str, number: int) -> str:
    """Id of an event: the same event has the same id, however often it is read.

    References:
        Schema, "Ids": first 32 hex digits of sha256(operator, source id, place, number).
    """
    said = "\x1f".join((operator, source, place, str(number)))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]


_DUCK_TYPES = {
    "keyword": "VARCHAR",
    "text": "VARCHAR",
    "ip": "VARCHAR",
    "geo_point": "VARCHAR",
    "date": "TIMESTAMP",
    "long": "BIGINT",
    "double": "DOUBLE",
    "float": "DOUBLE",
    "boolean": "BOOLEAN",
    "flat_object": "JSON",
}
COLUMNS: dict[str, str] = {
    name: _DUCK_TYPES[field.type.removesuffix("[]")] + ("[]" if field.type.endswith("[]") else "")
    for name, field in FIELDS.items()
    if name != "event.id"
}
"""Fields and their DuckDB types; times are UTC, ids are computed when they are read."""


class Encoder:
    """Stored documents as lines; what does not fit the field table is moved, and counted."""

    def __init__(self) -> None:
        self.moved: Counter[str] = Counter()
        """Values that were moved to `cw.vendor` or cut, by field."""
        self._json = msgspec.json.Encoder()

    def lines(self, documents: Sequence[bytes | Document]) -> bytes:
        """One line a document.

        Raises:
            ValueError: a document has no time, or is given as bytes and does not begin with it.
        """
        if not any(isinstance(one, bytes) for one in documents):
            try:
                data = self._json.encode_lines([self._checked(one) for one in documents])  # type: ignore[arg-type]
                if len(data) < LINE_MAX_BYTES or max(map(len, data.split(b"\n"))) < LINE_MAX_BYTES:
                    return data
            except UNWRITABLE:
                pass  # one by one below: the culprit alone is mended
        return b"".join(self._line(one) for one in documents)

    def _line(self, document: bytes | Document) -> bytes:
        if isinstance(document, bytes):
            if not document.startswith(b'{"@timestamp":') or b"\n" in document.rstrip(b"\n"):
                raise ValueError(f"no event line: {document[:80]!r}")
            return document.rstrip(b"\n") + b"\n"
        checked = self._checked(document)
        try:
            line = self._json.encode(checked)
        except UNWRITABLE:
            self.moved["text"] += 1
            line = self._json.encode(harmless(checked))
        if len(line) >= LINE_MAX_BYTES:
            self.moved["line"] += 1
            line = self._json.encode(_shortened(checked))
        return line + b"\n"

    def _checked(self, document: Document) -> Document:
        """The document if all of its values fit; else one in which they do."""
        time_ = document.get("@timestamp")
        if type(time_) is not datetime:
            raise ValueError(f"an event without a time: {str(document)[:200]}")
        for name, value in document.items():
            check = _CHECKS.get(name)
            if check is None or not check(value):
                return self._mended(document)
        if next(iter(document)) != "@timestamp":
            return {"@timestamp": time_, **document}
        return document

    def _mended(self, document: Document) -> Document:
        vendor = dict(document.get("cw.vendor") or {})
        kept: Document = {"@timestamp": _utc(document["@timestamp"])}
        for name, value in document.items():
            check = _CHECKS.get(name)
            if name in ("@timestamp", "cw.vendor", "event.id") or value is None:
                continue
            if check is not None and check(value):
                kept[name] = value
            elif isinstance(value, datetime) and COLUMNS.get(name) == "TIMESTAMP":
                kept[name] = _utc(value)
            elif name == "cw.record.place":
                kept[name] = str(value)
            else:
                self.moved[name] += 1
                vendor[name] = str(value)[:ORIGINAL_MAX_BYTES]
        if vendor:
            kept["cw.vendor"] = vendor
        return kept


def _utc(value: datetime) -> datetime:
    """DuckDB reads no offsets, so every time is written in UTC."""
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_long(value: Any) -> bool:
    return type(value) is int and -INT64 <= value < INT64


def _is_double(value: Any) -> bool:
    # An infinite or undefined reading would be written as null.
    kind = type(value)
    return (kind is float and value - value == 0) or (kind is int and abs(value) < 10**300)


def _is_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(type(one) is str for one in value)


_CHECK_OF: dict[str, Callable[[Any], bool]] = {
    "VARCHAR": _is_text,
    "VARCHAR[]": _is_texts,
    "TIMESTAMP": lambda value: type(value) is datetime and value.tzinfo is UTC,
    "BIGINT": _is_long,
    "DOUBLE": _is_double,
    "BOOLEAN": lambda value: type(value) is bool,
    "JSON": lambda value: type(value) is dict,
}
_CHECKS: dict[str, Callable[[Any], bool]] = {
    name: _CHECK_OF[kind] for name, kind in COLUMNS.items()
}


def harmless(value: Any) -> Any:
    """The same with texts that are UTF-8 and numbers that JSON knows."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {harmless(str(key)): harmless(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [harmless(one) for one in value]
    if value is None or isinstance(value, (bool, float, datetime)) or _is_long(value):
        return value
    return harmless(str(value))


def _shortened(document: Document) -> Document:
    """A document whose line fits: long texts are cut, what the source said beside is left out."""
    short = {
        name: value[:4096] if isinstance(value, str) else value[:64] if _is_texts(value) else value
        for name, value in harmless(document).items()
        if name != "cw.vendor"
    }
    return {**short, "cw.vendor": {"cityward.cut": "line"}}


_DECODER = msgspec.json.Decoder(dict[str, Any])
_DATES = tuple(name for name, kind in COLUMNS.items() if kind == "TIMESTAMP")


def documents_of(lines: bytes) -> list[Document]:
    """Event lines as they were appended."""
    found = [_DECODER.decode(line) for line in lines.splitlines()]
    for document in found:
        for name in _DATES:
            if name in document:
                document[name] = datetime.fromisoformat(document[name])
    return found
