"""Fare gates: validations and states, one JSON object a line, in a form of cityward's own.

Send: Let the fare system write or send over syslog or MQTT a line an event, and read it
(`reader = "file"`, `collector = "gates"`). `{"time": "2026-03-01T08:00:00+02:00",
"station": "ST04", "gate": "ST04-G2", "event": "validation", "result": "open",
"ticket": "9f86d081884c7d65"}`.

Understood: `event` is `validation` with `result` `open`, `refused` (and `reason`) or `forced`
(somebody went through without), and `ticket`, a hash the fare system makes; or `state` with
`state` `in_service`, `out_of_service`, `open`, `forced`, `tampered` or `offline`, `previous` and
`cause`. Both have `time` (ISO 8601 or epoch seconds) and `gate`, and may have `station`, `media`
(`card`, `phone`, `paper`), `line`, `user` (who set a state), `source` (from which address)
and more, which is kept as it is.

Not understood: Fares and journeys. A ticket that looks like the number of a payment card is left
out.

References:
    EN 1545 for what tickets hold; the form is cityward's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.values import Table, address, flat, moment, read_json, sort_in, text, word

GATE = LogSource(category="fare", service="gate")

RESULTS = {
    "open": {"event.action": "gate_opened", "event.outcome": "success", "phys.state": "open"},
    "refused": {"event.action": "gate_refused", "event.outcome": "failure"},
    "forced": {"event.action": "gate_forced", "event.outcome": "failure", "phys.state": "forced"},
}
"""What a validation came to."""
STATES = frozenset(("in_service", "out_of_service", "open", "forced", "tampered", "offline"))

TABLE: Table = {
    "gate": ("phys.point", word),
    "station": ("cw.site", word),
    "ticket": ("phys.subject", word),
    "state": ("phys.state", text),
    "previous": ("phys.state_prev", text),
    "reason": ("event.reason", text),
    "line": ("ot.trip.route", word),
    "user": ("user.name", text),
    "source": ("source.ip", address),
}

_LONG_NUMBER = re.compile(rb"\d{13}")


def looks_like_gates(head: bytes) -> bool:
    """The first line is an object with a gate, and a validation or a state of it."""
    line = head.lstrip().partition(b"\n")[0]
    return (
        b"{" in line[:256]
        and b'"gate"' in line
        and b'"event"' in line
        and (b'"validation"' in line or b'"state"' in line)
    )


@collector(GATE, looks_like=looks_like_gates, strength=80)
def gates(records: Iterable[Record]) -> Iterator[Event]:
    """Read gates: one event a line."""
    for record in records:
        try:
            start = max(record.data.find(b"{", 0, 256), 0)
            yield _line(read_json(record.data[start:]), record)
        except ValueError as error:
            event = Event.malformed(record, GATE, why=str(error))
            yield _without_card(event) if _LONG_NUMBER.search(record.data) else event


def _line(line: dict[str, Any], record: Record) -> Event:
    time, kind = moment(line.pop("time", None)), line.pop("event", None)
    if time is None or word(line.get("gate")) is None:
        raise ValueError("a line of a gate without its time or its gate")
    is_card = _is_card(line.get("ticket"))
    if is_card:
        del line["ticket"]
    result, state = word(line.get("result")), word(line.get("state"))
    own: dict[str, Any]
    if kind == "validation" and result in RESULTS:
        own = {"event.kind": "event", **RESULTS[result]}
    elif kind == "state" and state in STATES:
        action = "gate_forced" if state == "forced" else "gate_state"
        own = {"event.kind": "state", "event.action": action}
    elif kind in ("validation", "state"):
        what = result if kind == "validation" else state
        raise ValueError(f"a {kind} that this form does not have: {str(what)[:64]!r}")
    else:
        raise ValueError(f"neither a validation nor a state: {str(kind)[:64]!r}")
    fields, vendor = sort_in(flat(line), TABLE)
    if is_card:
        vendor["ticket"] = "left out: it looks like the number of a payment card"
    own |= {
        "event.category": ["physical_access"],
        "event.dataset": "fare.gate",
        "cw.domain": ["physical"],
        "cw.time_source": "source",
    }
    event = Event(time, GATE, {**own, **fields, "cw.vendor": vendor}, record)
    return _without_card(event) if is_card else event


def _is_card(ticket: Any) -> bool:
    """13 to 19 digits with a right check digit (ISO/IEC 7812-1)."""
    digits = word(ticket) or ""
    if not (13 <= len(digits) <= 19 and digits.isascii() and digits.isdigit()):
        return False
    doubled = [int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits))]
    return sum(digit - 9 if digit > 9 else digit for digit in doubled) % 10 == 0


def _without_card(event: Event) -> Event:
    """What may hold the number of a card is not kept as it came."""
    event.fields["event.original"] = "left out: it may hold the number of a payment card"
    return event
