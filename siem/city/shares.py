"""Shared findings as every home of the common store keeps them: names, places, what is sound."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterator
from datetime import datetime

from cityward.errors import InputError
from cityward.fields import FIELDS, FINDING_FIELDS, SHARED_FIELDS
from cityward.finding import SEVERITIES
from siem.city.commons import TLP, Rights, Write
from siem.store.protocol import Conflict, Document

SHARE_FIELDS: dict[str, str] = {
    name: one.type
    for table in (FIELDS, FINDING_FIELDS, SHARED_FIELDS)
    for name, one in table.items()
} | {"finding.severity": "severity"}
"""What a query over shared findings may ask for."""

DATES = frozenset(name for name, kind in SHARE_FIELDS.items() if kind == "date")
SORTS = (
    "finding.first_seen",
    "finding.last_seen",
    "finding.severity",
    "finding.risk",
    "finding.count",
    "finding.type",
    "rule.id",
    "cw.operator",
    "cw.sector",
)
"""What shared findings are sorted by, then the newest first, then by id; no value is the least."""

UNSAID = frozenset(
    ("source.token", "destination.token", "cw.campaign.tokens", "cw.share.derived_from")
)
"""Bare words are not looked for in them: who may not read a token must not find it by guessing."""
TALLIED = frozenset(("keyword", "long", "boolean", "ip", "severity"))
"""Types whose values are counted."""
OPERATOR = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
NAME_BYTES_MAX = 400
TEXT_BYTES_MAX = 8_191
"""Of one value; Lucene cannot index much longer ones."""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value.encode(errors="replace")) <= TEXT_BYTES_MAX


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _is_time(value: object) -> bool:
    if not isinstance(value, datetime) or value.tzinfo is None:
        return False
    return 1970 <= value.year < 9999


def _is_address(value: object) -> bool:
    try:
        return isinstance(value, str) and str(ipaddress.ip_address(value)) == value
    except ValueError:
        return False


def _is_place(value: object) -> bool:
    try:
        latitude, longitude = map(float, str(value).split(","))
    except ValueError:
        return False
    return abs(latitude) <= 90 and abs(longitude) <= 180


_FITS: dict[str, Callable[[object], bool]] = {
    "keyword": _is_text,
    "text": _is_text,
    "severity": lambda value: value in SEVERITIES,
    "ip": _is_address,
    "date": _is_time,
    "long": _is_whole,
    "double": _is_number,
    "float": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "geo_point": _is_place,
    "flat_object": lambda value: isinstance(value, dict),
}


def faults_of(write: Write) -> str:
    """Why no home may take a share; empty if it is sound.

    Its values are checked too, since a cluster would refuse some that SQLite takes.
    """
    document = write.document
    for name, value in document.items():
        kind = SHARE_FIELDS.get(name)
        if kind is not None and not _fits(kind, value):
            return f"{name} is not what the field table wants, {kind}"
    if not _ID.fullmatch(document.get("cw.share.id", "")):
        return "cw.share.id is no id"
    if not OPERATOR.fullmatch(document.get("cw.operator", "")):
        return "cw.operator is no operator id"
    if document.get("cw.marking.tlp") not in TLP[:4]:
        return "cw.marking.tlp is none that is indexed"
    if "finding.first_seen" not in document:
        return "finding.first_seen is missing, it names the index"
    if not 0 < write.revision < 1 << 62:
        return f"{write.revision} is no revision"
    return ""


def _fits(kind: str, value: object) -> bool:
    if kind.endswith("[]"):
        return isinstance(value, (list, tuple)) and all(map(_FITS[kind[:-2]], value))
    return _FITS[kind](value)


def whole(document: Document) -> Document:
    """A share as homes keep it: one that does not say when it was last seen was seen once."""
    return {"finding.last_seen": document["finding.first_seen"], **document}


def texts(document: Document) -> Iterator[str]:
    """Every text of a share that a bare word is looked for in."""
    for name, value in document.items():
        if name not in SHARE_FIELDS or name in UNSAID:
            continue
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (one for one in value if isinstance(one, str))


def order_of(sort: str) -> tuple[str, bool]:
    """Field that is sorted by, and whether downwards.

    Raises:
        InputError: shares are not sorted by it.
    """
    name = sort.removeprefix("-")
    if name not in SORTS:
        raise InputError(f"shares are not sorted by {name}", "sort", f"One of {sorted(SORTS)}.")
    return name, sort.startswith("-")


def check_tallied(field: str) -> None:
    """Let only fields pass whose values are counted.

    Raises:
        InputError: its values are not counted.
    """
    if SHARE_FIELDS.get(field, "").removesuffix("[]") not in TALLIED:
        raise InputError(f"values of {field} are not counted", "field", "Name a field of words.")


def check_record(kind: str, name: str) -> None:
    """Let only names of records pass that every home takes.

    Raises:
        InputError: it is no name.
    """
    if not _KIND.fullmatch(kind) or not 0 < len(name.encode(errors="replace")) <= NAME_BYTES_MAX:
        raise InputError(
            f"no name of a record: {kind[:40]} {name[:40]}", "record", "At most 400 bytes."
        )


def may_be_seen(rights: Rights, document: Document) -> bool:
    """Whether somebody may see a share that is there; the homes say the same in their queries."""
    operator = document["cw.operator"]
    if rights.operators is not None and operator not in rights.operators:
        return False
    if rights.own and operator == rights.own:
        return True
    is_for = set(rights.audiences).intersection(document.get("cw.share.audiences", ()))
    return bool(is_for) and document["cw.marking.tlp"] in rights.tlp


def conflict(kind: str, name: str) -> Conflict:
    """Another version of a record is there."""
    return Conflict(f"{kind} {name} has another version", "version", "Read it again, then decide.")
