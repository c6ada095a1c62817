"""Charging stations: OCPP messages as a central system logs them, one a line.

Send: Let the central system write its OCPP messages to a file or to syslog, and read it
(`reader = "file"`, `collector = "ocpp"`); SteVe does so at level INFO. Best is
`{"ts": "2026-03-01T08:00:00Z", "cp": "CP-17", "dir": "in", "msg": [2, "id", "Heartbeat", {}]}`.

Understood: All actions of OCPP-J 1.6 (with its security extension) and 2.0.1, answers joined to
their calls, commands of the central system, meter values, secrets left out. Lines are the bare
message, an object around it (time, station, direction, message under the names that `NAMES` lists;
the message as JSON or as text), or lines of SteVe, also for connections. Where a line does not say
who sent it, the action does, and an answer has the direction of its call.

Not understood: SOAP (OCPP 1.2 to 1.6S); calls without an answer are said only when a station has
too many of them. A time without a zone is UTC.

References:
    OCPP-J 1.6, section 4; OCPP 2.0.1 edition 3, part 4, section 4.
    SteVe, `WebSocketLogger` (facts of the form only).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import msgspec

from cityward import Event, LogSource, Record, collector
from collectors.energy.ocpp_messages import ACTIONS, Exchange, looks_like_call
from collectors.values import clean, moment, read_json, word

OCPP = LogSource(category="ot_protocol", service="ocpp")

STATIONS_MAX = 1_024
"""Stations whose open calls are known; the one that was silent longest makes room."""
OPEN_MAX = 256
"""Calls of one station whose direction is remembered."""
LINE_MAX = 1 << 20

NAMES = {
    "time": ("ts", "time", "timestamp", "@timestamp", "datetime"),
    "charger": (
        *("cp", "charger", "charge_point", "chargePoint", "charge_point_id", "chargePointId"),
        *("chargeBoxId", "charging_station", "chargingStation", "station", "identity"),
    ),
    "direction": ("dir", "direction"),
    "message": ("msg", "message", "ocpp", "payload", "raw"),
    "host": ("host", "server", "csms"),
}
"""What is around a message, and the names it goes by; the first one counts."""
FROM_CHARGER = frozenset(("in", "inbound", "rx", "recv", "received", "receive", "from_cp", "up"))
FROM_CENTRAL = frozenset(("out", "outbound", "tx", "send", "sent", "sending", "to_cp", "down"))

_STEVE = re.compile(
    rb"\[chargeBoxId=([^,\]]{1,256}), sessionId=[^\]]{1,128}\] "
    rb"(?:(Sending|Received)(?: message)?: )?"
)
PREFIX_MAX = 1_024
"""Where the prefix of SteVe ends."""
_TIME = re.compile(
    rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?(?![\d:])"
)
_SECRET = re.compile(
    rb"authorizationkey|password|passphrase|id_?tag|id_?token|authorizationlist|://[^/@\s]{1,256}@",
    re.IGNORECASE,
)
_SAYS = {
    b"Connection is established": ("ocpp_connected", "success"),
    b"Connection is closed": ("ocpp_disconnected", "unknown"),
}


class Said(msgspec.Struct, frozen=True):
    """A message and what its line says around it."""

    text: bytes
    time: datetime | None = None
    charger: str = ""
    from_charger: bool | None = None
    host: str = ""


def looks_like_ocpp(head: bytes) -> bool:
    """The first line has a call of OCPP or is one of SteVe."""
    line = head.lstrip().partition(b"\n")[0][:4_096]
    if _STEVE.search(line[:PREFIX_MAX]):
        return True
    if line[:1] == b"[":
        return looks_like_call(line)
    has_names = line[:1] == b"{" and all(
        any(b'"%s"' % name.encode() in line for name in NAMES[part])
        for part in ("time", "charger", "message")
    )
    return has_names and bool(_TYPE.search(line))


_TYPE = re.compile(rb'"\s{0,4}:\s{0,4}"?\[\s{0,4}[234]\s{0,4},\s{0,4}\\?"')
"""A value that begins like a message, also as text in text."""


@collector(OCPP, looks_like=looks_like_ocpp, strength=78)
class Ocpp:
    """Read messages; an answer knows its call."""

    def __init__(self) -> None:
        self._stations: OrderedDict[str, _Station] = OrderedDict()

    def __call__(self, records: Iterable[Record]) -> Iterator[Event]:
        """Events of lines."""
        for record in records:
            try:
                yield from self._line(record)
            except ValueError as error:
                event = Event.malformed(record, OCPP, why=str(error))
                event.fields.update(_without_secret(record))
                yield event

    def _line(self, record: Record) -> Iterator[Event]:
        if len(record.data) > LINE_MAX:
            raise ValueError(f"a line of more than {LINE_MAX} bytes")
        host = clean(record.source)
        if (found := _STEVE.search(record.data[:PREFIX_MAX])) and found[2] is None:
            yield _connection(record, found, host)
            return
        said = _opened(record.data, found)
        time = said.time or record.received
        for number, fields in enumerate(self._station(said.charger).read(said, time.timestamp())):
            own = {
                **fields,
                "event.dataset": "ocpp.log",
                "host.name": said.host or host,
                "cw.time_source": "source" if said.time else "collector",
                **_without_secret(record),
            }
            yield Event(time, OCPP, own, record, number)

    def _station(self, charger: str) -> _Station:
        station = self._stations.get(charger)
        if station is None:
            station = self._stations[charger] = _Station(charger)
            if len(self._stations) > STATIONS_MAX:
                self._stations.popitem(last=False)
        else:
            self._stations.move_to_end(charger)
        return station


class _Station:
    """One station: its exchange, and who asked what is open."""

    def __init__(self, charger: str) -> None:
        self._exchange = Exchange(charger, link=f"{clean(charger)}." if charger else "")
        self._asked: OrderedDict[str, bool] = OrderedDict()

    def read(self, said: Said, time_s: float) -> list[dict[str, Any]]:
        """Fields of the events of a message."""
        from_charger = said.from_charger
        try:
            message = msgspec.json.decode(said.text)
        except (ValueError, RecursionError, msgspec.MsgspecError):
            message = None
        match message:
            case [2, str(ident), str(action), *_]:
                if from_charger is None:
                    from_charger = not _is_central(action)
                self._asked[ident] = from_charger
                if len(self._asked) > OPEN_MAX:
                    self._asked.popitem(last=False)
            case [3 | 4, str(ident), *_]:
                asked = self._asked.pop(ident, None)
                if from_charger is None:
                    from_charger = not asked if asked is not None else True
        return self._exchange.read(said.text, bool(from_charger), time_s)


def _without_secret(record: Record) -> dict[str, Any]:
    """What stands for the text of a line that may hold a secret or name a person."""
    held = _SECRET.search(record.data)
    return {"event.original": "left out: it may hold a secret or a token"} if held else {}


def _is_central(action: str) -> bool:
    """Whether the central system sends this."""
    operation, is_command = ACTIONS.get(action, ("", False))
    return is_command or operation == "read" or action == "CostUpdated"


def _opened(data: bytes, steve: re.Match[bytes] | None) -> Said:
    """A message out of its line.

    Raises:
        ValueError: there is none.
    """
    if steve is not None:
        time, is_received = _time(data[: steve.start()]), steve[2] == b"Received"
        return Said(data[steve.end() :].strip(), time, _text(steve[1]), is_received)
    start = data.lstrip()[:1]
    if start == b"[":
        return Said(data.strip())
    line = read_json(data[max(data.find(b"{", 0, 256), 0) :])
    message = _named(line, "message")
    if isinstance(message, str):
        message = message.encode("utf-8", "backslashreplace")
    elif isinstance(message, list):
        message = msgspec.json.encode(message)
    else:
        raise ValueError("a line without a message of OCPP")
    direction = str(_named(line, "direction") or "").lower()
    from_charger = True if direction in FROM_CHARGER else None
    if direction in FROM_CENTRAL:
        from_charger = False
    return Said(
        message,
        moment(_named(line, "time")),
        word(_named(line, "charger")) or "",
        from_charger,
        word(_named(line, "host")) or "",
    )


def _named(line: dict[str, Any], part: str) -> Any:
    return next((line[name] for name in NAMES[part] if line.get(name) is not None), None)


def _connection(record: Record, found: re.Match[bytes], host: str) -> Event:
    """What SteVe says of a connection."""
    told = record.data[found.end() :].strip()
    action, outcome = next(
        (said for start, said in _SAYS.items() if told.startswith(start)), ("ocpp_log", "unknown")
    )
    time = _time(record.data[: found.start()])
    fields = {
        "event.kind": "event",
        "event.category": ["network"],
        "event.action": action,
        "event.outcome": outcome,
        "event.dataset": "ocpp.log",
        "network.protocol": "ocpp",
        "ot.operation": "session",
        "ot.charger.id": _text(found[1]),
        "host.name": host,
        "message": _text(told),
        "cw.time_source": "source" if time else "collector",
    }
    return Event(time or record.received, OCPP, fields, record)


def _time(before: bytes) -> datetime | None:
    found = _TIME.search(before[:512])
    return moment(found[0].decode().replace(",", ".")) if found else None


def _text(data: bytes) -> str:
    return clean(data.decode("utf-8", "backslashreplace"))
