"""Traffic signal controllers: one JSON object a line, in a form of cityward's own.

Send: Let the traffic computer write or send over syslog or MQTT a line an event, and read it
(`reader = "file"`, `collector = "signals"`). `{"time": "2026-03-01T08:00:00+02:00",
"controller": "sig-014", "event": "mode", "mode": "flash", "cause": "conflict"}`.

Understood: Each line has `time` (ISO 8601 or epoch seconds), `controller` and `event`, which is
`phase` (`phase`, `state` `green`, `amber`, `red`); `plan` (`plan`, `previous`); `mode` (`mode`
`normal`, `flash`, `all_red`, `dark`, `manual`; `previous`; `cause` `schedule`, `conflict`,
`operator`, `power`, `fault`); `conflict` (greens that must not meet: `phases`); `door` (`door`,
`state` `open`, `closed`); `priority` (`vehicle`, `class` `emergency`, `transit`, `freight`,
`cyclist`; `state` `requested`, `granted`, `refused`, `ended`; `request`, `latitude`,
`longitude`, `speed` in m/s); `login` (`user`, `method` `pin`, `password`, `key`; `result`
`success`, `failure`; `is_default`, true for a PIN that vendors ship). Any may have `source` (an
address) and `user`; more is kept as it is.

Not understood: The protocols themselves (NTCIP 1202 and 1211, OCIT, RSMP); signal timing.

References:
    NTCIP 1202 v03 (modes, plans, conflicts) and NTCIP 1211 (priority) for the words; the form is
    cityward's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.values import (
    Table,
    address,
    flat,
    moment,
    place,
    read_json,
    real,
    sort_in,
    text,
    word,
)

SIGNALS = LogSource(category="traffic_control", service="signal_controller")

KINDS: dict[str, tuple[str, str, str]] = {
    # event → action, what names its state, operation
    "phase": ("signal_phase", "state", "report"),
    "plan": ("signal_plan", "plan", "mode_change"),
    "mode": ("signal_mode", "mode", "mode_change"),
    "conflict": ("signal_conflict", "", "alarm"),
    "door": ("cabinet_door", "state", "report"),
    "priority": ("priority_request", "state", "control"),
    "login": ("login", "", "auth"),
}
"""What a line can say; the state it must have goes to `phys.state`."""
OUTCOMES = {"success": "success", "failure": "failure", "granted": "success", "refused": "failure"}

TABLE: Table = {
    "controller": ("host.name", word),
    "previous": ("phys.state_prev", word),
    "cause": ("event.reason", text),
    "vehicle": ("phys.track", word),
    "class": ("phys.priority_class", text),
    "request": ("ot.link_id", word),
    "speed": ("phys.speed", real),
    "user": ("user.name", text),
    "source": ("source.ip", address),
}


def looks_like_signals(head: bytes) -> bool:
    """The first line is an object with a controller, a time, and an event of a known kind."""
    line = head.lstrip().partition(b"\n")[0]
    return (
        b"{" in line[:256]
        and all(name in line for name in (b'"controller"', b'"event"', b'"time"'))
        and any(b'"%s"' % kind.encode() in line for kind in KINDS)
    )


@collector(SIGNALS, looks_like=looks_like_signals, strength=80)
def signals(records: Iterable[Record]) -> Iterator[Event]:
    """Read controllers: one event a line."""
    for record in records:
        try:
            start = max(record.data.find(b"{", 0, 256), 0)
            yield _line(read_json(record.data[start:]), record)
        except ValueError as error:
            yield Event.malformed(record, SIGNALS, why=str(error))


def _line(line: dict[str, Any], record: Record) -> Event:
    time, kind = moment(line.pop("time", None)), line.pop("event", None)
    name = word(line.get("controller"))
    if time is None or name is None:
        raise ValueError("a line of a controller without its time or its name")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"no event of a controller: {str(kind)[:64]!r}")
    action, key, operation = KINDS[kind]
    own: dict[str, Any] = {
        "event.kind": "alert" if kind == "conflict" else "event",
        "event.category": ["authentication" if kind == "login" else "process_control"],
        "event.action": action,
        "event.dataset": "signal.controller",
        "ot.operation": operation,
        "phys.point": name,
        "cw.domain": ["cyber" if kind == "login" else "physical"],
        "cw.time_source": "source",
    }
    if key:
        state = word(line.pop(key, None))
        if state is None:
            raise ValueError(f"a {kind} without its {key}")
        own["phys.state"] = state
    result = own.get("phys.state") if kind == "priority" else line.get("result")
    if isinstance(result, str) and result in OUTCOMES:
        own["event.outcome"] = OUTCOMES[result]
    where = place(line.get("latitude"), line.get("longitude"))
    if where:
        own["phys.position"] = where
        del line["latitude"], line["longitude"]
    fields, vendor = sort_in(flat(line), TABLE)
    return Event(time, SIGNALS, {**own, **fields, "cw.vendor": vendor}, record)
