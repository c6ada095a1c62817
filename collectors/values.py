"""Values from strangers: what a typed field may hold, checked once; the rest is vendor's."""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

Check = Callable[[Any], Any]
"""A value in the type of its field, or None if it is none."""
Table = Mapping[str, tuple[str, Check]]
"""Flat name of the source → our field and its check."""

KEYWORD_MAX = 8_191
"""Characters of a keyword: four bytes each stay below the 32 766 bytes a search index takes."""
LONG_MAX = 2**63 - 1
FLAT_DEPTH, FLAT_VALUES = 12, 2_048
"""How deep and how wide `flat` looks; Suricata's statistics have about 700 values."""


def read_json(data: bytes) -> dict[str, Any]:
    """One JSON object, also one that is a little wrong (bytes that are no UTF-8, lone surrogates).

    Whoever may write into a field could otherwise make the whole line unreadable.

    Raises:
        ValueError: no JSON, too deep, a number out of range, or no object; the message says which.
    """
    try:
        found = msgspec.json.decode(data)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None
    except (ValueError, msgspec.MsgspecError) as error:
        found = _read_leniently(data, why=str(error))
    if not isinstance(found, dict):
        raise ValueError(f"JSON {type(found).__name__} where an object was expected")
    return found


def _read_leniently(data: bytes, why: str) -> Any:
    try:
        return json.loads(data.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        raise ValueError(why) from None


def flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Nested objects as dotted names; a list of scalars stays a list, any other becomes text.

    What lies deeper than `FLAT_DEPTH` is written as text; what is more than `FLAT_VALUES` is
    counted under `cityward.cut`.
    """
    found: dict[str, Any] = {}
    cut = _spread(record, "", FLAT_DEPTH, found)
    if cut:
        found["cityward.cut"] = cut
    return found


def _spread(part: Mapping[str, Any], prefix: str, depth: int, found: dict[str, Any]) -> int:
    cut = 0
    for key, value in part.items():
        name = clean(f"{prefix}{key}")
        if isinstance(value, dict) and value and depth:
            cut += _spread(value, f"{name}.", depth - 1, found)
        elif len(found) >= FLAT_VALUES:
            cut += 1
        else:
            found[name] = value
    return cut


def sort_in(record: Mapping[str, Any], table: Table) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put a flat record into our fields; what has no field, or a wrong value for it, is vendor's.

    Where two names of the source mean the same field, the first good value keeps it.
    """
    fields: dict[str, Any] = {}
    vendor: dict[str, Any] = {}
    for key, value in record.items():
        if value is None:
            continue
        known = table.get(key)
        if known is not None and known[0] not in fields:
            checked = known[1](value)
            if checked is not None:
                fields[known[0]] = checked
                continue
        vendor[key] = scalar(value)
    return fields, vendor


def scalar(value: Any) -> str | int | float | bool:
    """Any value as one that `cw.vendor` takes."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, int):
        return value if -LONG_MAX <= value <= LONG_MAX else clean(_digits(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    try:
        return clean(msgspec.json.encode(value).decode())
    except (ValueError, TypeError, RecursionError, msgspec.MsgspecError):
        return clean(repr(type(value).__name__))


def _digits(value: int) -> str:
    # Python refuses to write very long numbers as decimals; hexadecimal has no such limit.
    return str(value) if value.bit_length() < 4_096 else hex(value)


def clean(value: str) -> str:
    """Text that every store takes: capped, lone surrogates written out."""
    if len(value) > KEYWORD_MAX:
        value = value[:KEYWORD_MAX]
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")


def text(value: Any) -> str | None:
    """A keyword or text field: text that is not empty."""
    return clean(value) if isinstance(value, str) and value else None


def word(value: Any) -> str | None:
    """A keyword that the source may write as a number (ids, codes)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return clean(_digits(value))
    return text(value)


def lower(value: Any) -> str | None:
    """A keyword whose case says nothing (protocol names)."""
    found = text(value)
    return found and found.lower()


def texts(value: Any) -> list[str] | None:
    """A keyword list; one text alone is a list of one."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value or len(value) > 256:
        return None
    return [clean(one) for one in value] if all(isinstance(one, str) for one in value) else None


def address(value: Any) -> str | None:
    """An IP address in its usual form; an IPv4 address inside IPv6 as IPv4, without a zone."""
    return _address(value) if isinstance(value, str) and 2 <= len(value) <= 64 else None


@lru_cache(maxsize=65_536)
def _address(value: str) -> str | None:
    try:
        found = ipaddress.ip_address(value)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        mapped = found.ipv4_mapped
        return str(mapped) if mapped else str(found).partition("%")[0]
    return str(found)


def port(value: Any) -> int | None:
    """0 to 65 535, as a number or in digits."""
    found = whole(value)
    return found if found is not None and 0 <= found <= 65_535 else None


def count(value: Any) -> int | None:
    """A number of things: 0 to 2⁶³ − 1, as a number or in digits."""
    found = whole(value)
    return found if found is not None and found >= 0 else None


def whole(value: Any) -> int | None:
    """A `long`, as a number or in digits."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    elif isinstance(value, str):
        # `isdigit` holds for digits that are no ASCII, too; and long ones take long to read.
        plain = value[1:] if value[:1] == "-" else value
        short = len(plain) <= 19 and plain.isascii() and plain.isdigit()
        value = int(value) if short else None
    return value if isinstance(value, int) and -LONG_MAX <= value <= LONG_MAX else None


def real(value: Any) -> float | None:
    """A finite `double`, as a number or in digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str) and len(value) > 64:
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def mac(value: Any) -> str | None:
    """A MAC address in the form of ECS: upper case, with hyphens."""
    if not isinstance(value, str) or len(value) != 17:
        return None
    parts = value.replace("-", ":").split(":")
    if len(parts) != 6 or not all(len(part) == 2 and _is_hex(part) for part in parts):
        return None
    return "-".join(parts).upper()


def _is_hex(value: str) -> bool:
    return all(sign in "0123456789abcdefABCDEF" for sign in value)


def place(latitude: Any, longitude: Any) -> str | None:
    """A `geo_point`, `lat,lon` in WGS 84 degrees with six decimals (0.1 m)."""
    north, east = real(latitude), real(longitude)
    if north is None or east is None or abs(north) > 90 or abs(east) > 180:
        return None
    return f"{north:.6f},{east:.6f}"


def moment(value: Any) -> datetime | None:
    """A time from epoch seconds or ISO 8601 text, in UTC; text without a zone is UTC."""
    try:
        if isinstance(value, str):
            if len(value) > 40:
                return None
            if value[4:5] != "-":
                value = float(value)
            else:
                found = datetime.fromisoformat(value)
                zoned = found if found.tzinfo else found.replace(tzinfo=UTC)
                return zoned.astimezone(UTC)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None
