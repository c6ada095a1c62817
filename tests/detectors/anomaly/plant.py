"""An invented small plant: one master polls one controller, an engineer's host writes now and then.

Nothing in it is random: noise is a fixed sequence, so the same call gives the same events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cityward import Event, LogSource, Record

START = datetime(2026, 1, 5, tzinfo=UTC)
"""A Monday."""
MODBUS = LogSource(category="ot_protocol", service="modbus")
FLOW = LogSource(category="flow")
GAUGE = LogSource(category="sensor_reading", service="river_gauge")
CONTROLLER, MASTER, WRITER, STRANGER = "10.0.1.7", "10.0.0.9", "10.0.0.8", "10.0.0.66"
DAY_S = 86_400.0
POLL_S = 30.0
KEY = f"{CONTROLLER}|modbus"


def event(
    at_s: float,
    fields: dict[str, Any],
    logsource: LogSource = MODBUS,
    source: str = "tap",
    received_s: float | None = None,
) -> Event:
    """An event some seconds after START, received at once or when it is said."""
    time = START + timedelta(seconds=at_s)
    received = time if received_s is None else START + timedelta(seconds=received_s)
    return Event(time, logsource, fields, Record(b"", source, int(at_s), received))


def noise(number: int) -> float:
    """Between −1 and 1, spread like chance, the same each time."""
    return ((number * 2_654_435_761 & 0xFFFFFFFF) / 0x80000000) - 1.0


def message(
    at_s: float,
    function: int,
    register: int,
    value: int | None = None,
    *,
    source: str = MASTER,
    answer: bool = False,
    more: Mapping[str, Any] = {},
) -> Event:
    """A Modbus request, or its answer, on one register of the controller."""
    write = function in (5, 6, 15, 16)
    fields: dict[str, Any] = {
        "source.ip": source,
        "destination.ip": CONTROLLER,
        "destination.port": 502,
        "network.protocol": "modbus",
        "network.transport": "tcp",
        "ot.direction": "response" if answer else "request",
        "ot.function.code": str(function),
        "ot.function.name": {3: "read_holding_registers", 6: "write_single_register"}.get(
            function, f"function_{function}"
        ),
        "ot.operation": "write" if write else "read",
        "ot.is_command": write and not answer,
        "ot.unit": 1,
        "ot.point.address": register,
        "ot.point.type": "holding_register",
        "ot.point.count": 1,
        **more,
    }
    if value is not None:
        fields["ot.value"] = value
    return event(at_s, fields)


def ordinary(days: float, since_s: float = 0.0, poll_s: float = POLL_S) -> Iterator[Event]:
    """Polls of registers 0 to 3 in turn with values 400 to 500; a write to register 1 each hour."""
    polls = int(days * DAY_S / poll_s)
    for number in range(polls):
        at_s = since_s + number * poll_s
        register = number % 4
        value = int(450 + 50 * noise(number))
        yield message(at_s, 3, register)
        yield message(at_s + 0.02, 3, register, value, answer=True)
        if number % int(3_600 / poll_s) == 7:
            value = int(450 + 450 * noise(number))
            yield message(at_s + 1.0, 6, 1, value, source=WRITER)
            yield message(at_s + 1.02, 6, 1, value, source=WRITER, answer=True)


def flow(
    at_s: float, peer: str, port: int = 443, *, size: int = 5_000, more: Mapping[str, Any] = {}
) -> Event:
    """A finished conversation of the master."""
    fields = {
        "source.ip": MASTER,
        "destination.ip": peer,
        "destination.port": port,
        "network.transport": "tcp",
        "source.bytes": size // 5,
        "destination.bytes": size,
        "source.packets": 6,
        "destination.packets": 8,
        "event.duration": 40_000_000,
        "event.outcome": "success",
        "cw.vendor": {"conn_state": "SF"},
        **more,
    }
    return event(at_s, fields, FLOW)


def gauge(
    at_s: float, level_m: float, *, point: str = "bridge-3", more: Mapping[str, Any] = {}
) -> Event:
    """A reading of a river gauge."""
    fields = {
        "phys.point": point,
        "phys.quantity": "water_level",
        "phys.reading": level_m,
        "phys.unit": "m",
        **more,
    }
    return event(at_s, fields, GAUGE, "gauges")
