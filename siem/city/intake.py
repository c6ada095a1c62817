"""What comes in: whether an envelope of an operator may be taken, and the document it becomes.

The payload has names and types of the field tables. What marks and addresses it – operator,
audiences, TLP – comes from certificate and envelope, never from the payload.
"""

from __future__ import annotations

import ipaddress
import math
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec

from cityward import Unsafe
from cityward.fields import FIELDS, FINDING_FIELDS, SCHEMA_VERSION, SECTORS
from cityward.finding import SEVERITIES
from siem.city.authority import Operator
from siem.city.joins import OURS_VERSION
from siem.sharing.envelope import AHEAD_MAX, VERSION, Envelope, Signed
from siem.sharing.policy import CLOSEST_TLP, PAP, TLP
from siem.store.protocol import Document

TYPES: dict[str, str] = {
    name: one.type for table in (FIELDS, FINDING_FIELDS) for name, one in table.items()
} | {"source.token": "keyword[]", "destination.token": "keyword[]"}
"""What a payload may hold."""
NEEDED, LAST = "finding.first_seen", "finding.last_seen"
"""It names the index."""
OLDEST = timedelta(days=400)
"""What was first seen before is refused: every month of an operator is an index of its own, and a
clock that is wrong would make hundreds of them."""
KEPT_FOR = timedelta(days=90)
"""A share that does not say when it expires."""
TEXT_MAX, LIST_MAX = 8_000, 500
"""Characters of a value – an index takes no term of more than 32 kB – and members of a list."""
WORD_MAX, ID_BYTES_MAX = 256, 128
INT64 = 1 << 63
NAMED_MAX = 20
_NAME = re.compile(r"@?[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
_TYPE = re.compile(r"[a-z_]{1,32}")
_WORD = re.compile(r"[\x20-\x7e]*")
_GEO = re.compile(r"-?\d{1,2}(\.\d{1,12})?,-?\d{1,3}(\.\d{1,12})?")
_HUB = ("cw.share.", "cw.campaign.")
"""Only the hub says these of a share."""


class Refused(Unsafe):
    """An envelope or a request that is not taken, and the HTTP status that says so."""

    def __init__(self, status: int, what: str, where: str, todo: str, **said: Any) -> None:
        super().__init__(what, where, todo)
        self.status = status
        self.said: Mapping[str, Any] = said
        """What a program has to know besides."""


class _Version(msgspec.Struct):
    v: int = VERSION


def check_version(signed: Signed) -> None:
    """Refuse what a much older or a newer node says, in words.

    Raises:
        Refused: it speaks another protocol.
    """
    try:
        v = msgspec.json.decode(signed.data, type=_Version).v
    except (msgspec.MsgspecError, RecursionError) as error:
        why = f"no envelope: {str(error)[:200]}"
        raise Refused(400, why, "envelope", "Send what the protocol says.") from error
    if not VERSION - 1 <= v <= VERSION:
        todo = "Bring the hub up to date." if v > VERSION else "Bring the node up to date."
        what = f"an envelope of version {v}, this hub speaks version {VERSION}"
        raise Refused(400, what, "envelope", todo)


def check(envelope: Envelope, operator: Operator, key_id: str, now: datetime) -> None:
    """Whether an envelope can be one of this operator, whatever it carries.

    Raises:
        Refused: it cannot.
    """
    where = f"envelope {envelope.seq} of operator {operator.name}"
    if envelope.operator != operator.name:
        what = "an envelope in the name of another operator"
        raise Refused(403, what, where, "Send only what is yours.")
    if envelope.key_id != key_id:
        raise Refused(403, "an envelope signed with another key", where, "Enrol again.")
    if envelope.sent.tzinfo is None or (envelope.expires and envelope.expires.tzinfo is None):
        raise Refused(400, "a time without a zone", where, "Send times in UTC.")
    if envelope.sent - now > AHEAD_MAX:
        what = "an envelope from more than a day in the future"
        raise Refused(400, what, where, "Set the clock of the node.")
    if not (0 < envelope.seq < INT64 and 0 <= envelope.revision < INT64):
        raise Refused(400, "a number that is none", where, "Count from 1.")
    words = (envelope.policy, envelope.rule, *envelope.audiences)
    if any(len(one) > WORD_MAX or not _WORD.fullmatch(one) for one in words):
        raise Refused(400, "a name that is none", where, "Write plain names.")
    if not _TYPE.fullmatch(envelope.type) or len(envelope.share_id.encode()) > ID_BYTES_MAX:
        raise Refused(400, "a type or an id that is none", where, "Write plain names.")
    if envelope.type in ("share", "update", "withdraw", "sample") and not _is_id(envelope.share_id):
        raise Refused(400, "no share id", where, "Send a UUID, in lower case.")
    if envelope.derived_from:
        raise Refused(403, "a campaign is the hub's to say", where, "Share findings.")


def document_of(
    envelope: Envelope, operator: Operator, now: datetime
) -> tuple[Document, tuple[str, ...]]:
    """The document that a share becomes, and the names that were passed over.

    A newer node may know fields that this hub does not; they are not kept, and the receipt says so.

    Raises:
        Refused: it is marked, addressed or made up as no share may be.
    """
    where = f"share {envelope.share_id} of operator {operator.name}"
    _check_marks(envelope, where)
    made: Document = {}
    passed_over = []
    for name, value in envelope.payload.items():
        if name in TYPES:
            made[name] = _value(name, value, where)
        elif _NAME.fullmatch(name) and not name.startswith(_HUB):
            passed_over.append(name)
        else:
            raise Refused(400, "a field that no share has", where, "Send names of the schema.")
    if NEEDED not in made:
        raise Refused(400, f"{NEEDED} is missing", where, "The policy has to let it out.")
    if not now - OLDEST < made[NEEDED] < now + AHEAD_MAX or made.get(LAST, now) > now + AHEAD_MAX:
        what = f"a time that cannot be: first seen {made[NEEDED]:%Y-%m-%d}"
        raise Refused(400, what, where, "Set the clock of the node, or of what it reads.")
    said = {
        "cw.operator": operator.name,
        "cw.marking.tlp": envelope.tlp,
        "cw.marking.pap": envelope.pap or PAP[2],
    }
    for name, value in said.items():
        if made.get(name, value) != value:
            raise Refused(403, f"{name} is not what its envelope says", where, "Send it as it is.")
    if made.get("finding.severity", SEVERITIES[0]) not in SEVERITIES:
        raise Refused(400, "a severity that is none", where, f"One of {list(SEVERITIES)}.")
    if made.setdefault("cw.sector", operator.sector or "other") not in SECTORS:
        raise Refused(400, "a sector that is none", where, "See the list of the schema.")
    made |= said
    made |= {
        "cw.schema": SCHEMA_VERSION,
        "cw.share.id": envelope.share_id,
        "cw.share.revision": envelope.revision,
        "cw.share.policy": envelope.policy,
        "cw.share.rule": envelope.rule,
        "cw.share.audiences": list(envelope.audiences),
        "cw.share.expires": envelope.expires or envelope.sent + KEPT_FOR,
    }
    return made, tuple(passed_over[:NAMED_MAX])


def _check_marks(envelope: Envelope, where: str) -> None:
    if envelope.revision < 1:
        raise Refused(400, "a share without a revision", where, "Count from 1.")
    if envelope.tlp not in TLP:
        raise Refused(400, "a TLP that is none", where, f"One of {list(TLP)}.")
    if envelope.tlp == "red":
        todo = "Tell the persons it is for yourself."
        raise Refused(403, "TLP:RED is never kept at the hub", where, todo)
    if envelope.pap and envelope.pap not in PAP:
        raise Refused(400, "a PAP that is none", where, f"One of {list(PAP)}.")
    if not envelope.audiences or not CLOSEST_TLP.keys() >= {*envelope.audiences}:
        raise Refused(400, "no audience that there is", where, f"Of {list(CLOSEST_TLP)}.")
    for one in envelope.audiences:
        if TLP.index(envelope.tlp) > TLP.index(CLOSEST_TLP[one]):
            what = f"TLP:{envelope.tlp.upper()} is closed to {one}"
            raise Refused(403, what, where, "Open the marking, or close the audience.")


def _value(name: str, value: Any, where: str) -> Any:
    kind = TYPES[name]
    try:
        if not kind.endswith("[]"):
            return _READ[kind](value)
        if not isinstance(value, list) or len(value) > LIST_MAX:
            raise ValueError(value)
        return [_READ[kind[:-2]](one) for one in value]
    except (ValueError, TypeError, OverflowError, msgspec.ValidationError) as error:
        raise Refused(400, f"{name} is no {kind}", where, "Send the schema's types.") from error


def _is_id(text: str) -> bool:
    try:
        made = uuid.UUID(text)
    except ValueError:
        return False
    return str(made) == text and made.version != OURS_VERSION


# ---- Readers of values, by type


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > TEXT_MAX or "\0" in value:
        raise ValueError(value)
    return value


def _long(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -INT64 <= value < INT64:
        raise ValueError(value)
    return value


def _double(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _date(value: Any) -> datetime:
    time = msgspec.convert(value, datetime)
    if time.tzinfo is None or not 1970 <= time.year < 9999:
        raise ValueError(value)
    return time


def _ip(value: Any) -> str:
    return str(ipaddress.ip_address(_text(value)))


def _geo_point(value: Any) -> str:
    if not _GEO.fullmatch(_text(value)):
        raise ValueError(value)
    latitude, _, longitude = value.partition(",")
    if abs(float(latitude)) > 90 or abs(float(longitude)) > 180:
        raise ValueError(value)
    return str(value)


def _object(value: Any) -> dict[str, Any]:
    """One level of plain values."""
    if not isinstance(value, dict) or len(value) > LIST_MAX:
        raise ValueError(value)
    for name, one in value.items():
        _text(name)
        if isinstance(one, str):
            _text(one)
        elif not isinstance(one, bool):
            _long(one) if isinstance(one, int) else _double(one)
    return value


_READ: Mapping[str, Callable[[Any], Any]] = {
    "keyword": _text,
    "text": _text,
    "long": _long,
    "double": _double,
    "float": _double,
    "boolean": _boolean,
    "date": _date,
    "ip": _ip,
    "geo_point": _geo_point,
    "flat_object": _object,
}
