"""CAN buses of vehicles: logs as `candump -L` writes them, a file of many frames a record.

Send: Let `candump -L can0` write files of a minute or so, or a gateway send such text over MQTT,
and read the folder (`reader = "folder"`, `collector = "can"`). What a bus usually says is learnt
over all files of a source.

Understood: Classic, FD and remote frames; times since 1970 or since the start of the log. A bus
says thousands of frames a second, so an event is what one id said in one second: how many frames
(`network.packets`), how many payloads, its first and last data, and the mean interval as a reading.
Events of their own are an id that is new on a bus that was watched for a minute, error
frames, a controller that left the bus, and a signal that froze: a byte that changed in most frames
and now stands still far longer than it ever did, as when an attacker holds a value. All frames are
accounted for in one event at the end of each file.

Not understood: What the bytes mean (DBC files), J1939, NMEA 2000 and diagnosis (UDS); CAN XL.
Bytes that stand at 00 or FF count as at rest, so a value that is held there is not found, nor one
that changes seldom. Columns behind the data are not looked at.

References:
    can-utils, candump, "log file format"; Linux kernel, linux/can.h and linux/can/error.h.
    Gazdag et al. 2023, "CrySyS dataset of CAN traffic logs" (real attacks on such signals).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from cityward import Event, LogSource, Record, collector
from cityward.event import utc

CAN = LogSource(category="ot_protocol", service="can")

_FRAME = re.compile(
    rb"\((\d{1,10}(?:\.\d{1,9})?)\)[ \t]+([\w.:-]{1,32})[ \t]+"
    rb"([0-9A-Fa-f]{3}|[0-9A-Fa-f]{8})#"
    rb"(?:(R)([0-9A-Fa-f]?)|#([0-9A-Fa-f])((?:[0-9A-Fa-f]{2}){0,64})|((?:[0-9A-Fa-f]{2}){0,8}))"
    rb"(?=[ \t\r]|$)"
)
"""Time, bus, id; then remote and its length, or FD flags and data, or data."""
LINE_MAX = 512
_TIME = re.compile(rb"^\((\d{1,10}(?:\.\d{1,9})?)\) ", re.MULTILINE)
RELATIVE_BELOW = 1e8
"""Times below are seconds since the start of the log, not since 1970."""

ERROR_FLAG = 0x20000000
ERROR_CLASSES = 0x1FF
EXTENDED = 8
"""Digits of an id with 29 bits (and of an error frame)."""
OTHERS = "others"
ERRORS = (
    (0x001, "tx_timeout"),
    (0x002, "arbitration_lost"),
    (0x004, "controller"),
    (0x008, "protocol"),
    (0x010, "transceiver"),
    (0x020, "no_acknowledgement"),
    (0x040, "bus_off"),
    (0x080, "bus_error"),
    (0x100, "restarted"),
)
"""Classes of an error frame; linux/can/error.h."""

BUSES_MAX, IDS_MAX = 16, 4_096
"""What is learnt of; frames of further ids are counted together."""
PAYLOADS_MAX = 64
"""Different payloads that are told apart within a second."""
LEARN_S = 60
"""Seconds a bus speaks before an id is called new; slow ids come each ten seconds or so."""

LIVELY_FRAMES, LIVELY_SHARE = 100, 0.5
"""A byte can freeze once so many frames were compared, if it changed in this share of them."""
FROZEN_FRAMES, FROZEN_S, FROZEN_TIMES = 20, 1.0, 4
"""It froze when it stands for so many frames, so long, and so many times its longest rest."""
AT_REST = (0x00, 0xFF)
"""A vehicle that stands has speed 0; FF is "not available"."""


def looks_like_can(head: bytes) -> bool:
    """The first lines, comments aside, are all frames."""
    lines = [one for one in head[:4_096].split(b"\n") if one.strip() and one[:1] != b"#"]
    whole = lines[:-1] or lines
    return bool(whole) and all(_FRAME.match(line) for line in whole[:20])


class _Id:
    """One id of one bus: what is known of it, and what it said in the second that runs."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.number = None if text == OTHERS else int(text, 16)
        self.is_error = len(text) == EXTENDED and bool(self.number and self.number & ERROR_FLAG)
        self.last_s = -1.0
        self.data = b""
        self.compared = 0
        self.changes: list[int] = []
        self.longest: list[int] = []
        self.run: list[int] = []
        self.since_s: list[float] = []
        self.frozen: set[int] = set()
        self.start(0.0)

    def start(self, time_s: float) -> None:
        """Begin a second."""
        self.first_s = time_s
        self.count = self.size = self.remote = self.fd = self.moved = self.intervals = 0
        self.interval_s, self.shortest_s = 0.0, float("inf")
        self.payloads: set[bytes] = set()
        self.first = self.last = b""

    def take(self, time_s: float, data: bytes, remote: bool, fd: bool) -> None:
        """Count a frame."""
        if not self.count:
            self.start(time_s)
            self.first = data
        if self.last_s >= 0.0 and time_s >= self.last_s:
            gap = time_s - self.last_s
            self.intervals += 1
            self.interval_s += gap
            self.shortest_s = min(self.shortest_s, gap)
        self.count += 1
        self.size += len(data)
        self.remote += remote
        self.fd += fd
        if len(self.payloads) < PAYLOADS_MAX:
            self.payloads.add(data)
        self.last_s, self.last = time_s, data

    def compare(self, time_s: float, data: bytes) -> tuple[list[int], list[int]]:
        """Bytes that froze with this frame, and bytes that were frozen and move again."""
        before, self.data = self.data, data
        if len(before) != len(data):
            self.compared = 0
            self.changes, self.run = [0] * len(data), [0] * len(data)
            self.longest, self.since_s = [0] * len(data), [time_s] * len(data)
            self.frozen.clear()
            return [], []
        self.compared += 1
        self.moved += before != data
        froze, thawed = [], []
        for at, (old, new) in enumerate(zip(before, data, strict=True)):
            if old != new:
                self.changes[at] += 1
                self.longest[at] = max(self.longest[at], self.run[at])
                self.run[at] = 0
                if at in self.frozen:
                    thawed.append(at)
                else:
                    self.since_s[at] = time_s
            else:
                self.run[at] += 1
                if self.run[at] >= FROZEN_FRAMES and self._froze(at, time_s, new):
                    froze.append(at)
        self.frozen.update(froze)
        self.frozen.difference_update(thawed)
        return froze, thawed

    def _froze(self, at: int, time_s: float, value: int) -> bool:
        return (
            self.compared - self.run[at] >= LIVELY_FRAMES
            and self.changes[at] >= LIVELY_SHARE * (self.compared - self.run[at])
            and self.run[at] >= FROZEN_TIMES * self.longest[at]
            and time_s - self.since_s[at] >= FROZEN_S
            and value not in AT_REST
            and at not in self.frozen
        )


class _Bus:
    """One bus: its ids, and the second that runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.second = -1
        self.seconds = 0
        """Seconds in which it spoke."""
        self.ids: dict[str, _Id] = {}
        self.spoke: dict[str, _Id] = {}


class _Log:
    """One file: where its times start, and what it counts."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.base_s = 0.0
        first, last = _TIME.search(record.data), _TIME.findall(record.data[-4_096:])
        self.is_relative = first is not None and float(first[1]) < RELATIVE_BELOW
        if self.is_relative and last:
            self.base_s = record.received.timestamp() - float(last[-1])
        self.counts = {"frames": 0, "error_frames": 0, "comments": 0, "unreadable": 0}
        self.why = ""

    def unreadable(self, number: int, why: str) -> None:
        """Count a line that is no frame, and remember the first."""
        self.counts["unreadable"] += 1
        self.why = self.why or f"line {number}: {why}"


@collector(CAN, framing="document", looks_like=looks_like_can, strength=40)
class Can:
    """Read logs: one event an id and second, and what is strange."""

    def __init__(self) -> None:
        self._buses: dict[str, _Bus] = {}

    @property
    def memory(self) -> dict[str, Any]:
        """Which ids each bus has, kept over a restart; how their bytes move is learnt anew."""
        return {
            bus.name: {"seconds": bus.seconds, "ids": list(bus.ids)} for bus in self._buses.values()
        }

    @memory.setter
    def memory(self, kept: dict[str, Any]) -> None:
        for name, known in kept.items():
            bus = self._buses[name] = _Bus(name)
            bus.seconds = known["seconds"]
            bus.ids = {text: _Id(text) for text in known["ids"]}

    def __call__(self, records: Iterable[Record]) -> Iterator[Event]:
        """Events of files."""
        for record in records:
            for number, (time_s, fields) in enumerate(self._of(_Log(record))):
                if fields.get("event.kind") == "pipeline_error":
                    why = fields["event.reason"]
                    yield Event.malformed(record, CAN, why=why, number=number)
                else:
                    yield Event(utc(time_s), CAN, fields, record, number)

    def _of(self, log: _Log) -> Iterator[tuple[float, dict[str, Any]]]:
        newest_s = log.record.received.timestamp()
        for number, line in enumerate(log.record.data.split(b"\n"), start=1):
            if not line.strip():
                continue
            if line[:1] == b"#":
                log.counts["comments"] += 1
                continue
            found = _FRAME.match(line) if len(line) <= LINE_MAX else None
            if found is None:
                log.unreadable(number, "no frame of candump")
                continue
            newest_s = log.base_s + float(found[1])
            yield from self._frame(log, number, int(float(found[1])), newest_s, found)
        for bus in self._buses.values():
            yield from _second(bus, log)
        if log.counts["unreadable"]:
            lines = sum(log.counts.values())
            why = f"{log.counts['unreadable']} of {lines} lines could not be read, {log.why}"
            yield newest_s, {"event.kind": "pipeline_error", "event.reason": why}
        elif not log.counts["frames"] + log.counts["error_frames"]:
            yield newest_s, {"event.kind": "pipeline_error", "event.reason": "a log without frames"}
        if log.counts["frames"] + log.counts["error_frames"]:
            fields = {**_base(log, "can_log_read"), "event.kind": "state"}
            yield newest_s, {**fields, "cw.vendor": {**log.counts, "buses": len(self._buses)}}

    def _frame(
        self, log: _Log, number: int, second: int, time_s: float, found: re.Match[bytes]
    ) -> Iterator[tuple[float, dict[str, Any]]]:
        name, text = found[2].decode(), found[3].decode().upper()
        bus = self._buses.get(name)
        if bus is None:
            if len(self._buses) >= BUSES_MAX:
                log.unreadable(number, f"more than {BUSES_MAX} buses")
                return
            bus = self._buses[name] = _Bus(name)
        if second != bus.second:
            yield from _second(bus, log)
            bus.second = second
            bus.seconds += 1
        is_error = len(text) == EXTENDED and bool(int(text, 16) & ERROR_FLAG)
        if is_error:
            text = f"{int(text, 16) & (ERROR_FLAG | ERROR_CLASSES):08X}"
        log.counts["error_frames" if is_error else "frames"] += 1
        one = bus.ids.get(text)
        if one is None:
            one = _met(bus, text)
            if not is_error and bus.seconds > LEARN_S and one.last_s < 0.0:
                yield time_s, _new(bus, one, log)
        bus.spoke[one.text] = one
        data = bytes.fromhex((found[7] or found[8] or b"").decode())
        one.take(time_s, data, found[4] is not None, found[6] is not None)
        if one.text != OTHERS and not is_error and found[4] is None:
            froze, thawed = one.compare(time_s, data)
            if froze:
                yield time_s, _frozen(bus, one, froze, time_s, log)
            if thawed:
                yield time_s, _thawed(bus, one, thawed, time_s, log)


def _met(bus: _Bus, text: str) -> _Id:
    """An id for the first time; once there are too many, the one that stands for the others."""
    if len(bus.ids) >= IDS_MAX:
        text = OTHERS
    return bus.ids.setdefault(text, _Id(text))


def _base(log: _Log, action: str) -> dict[str, Any]:
    return {
        "event.category": ["process_control"],
        "event.action": action,
        "event.dataset": "can.candump",
        "network.protocol": "can",
        "cw.time_source": "collector" if log.is_relative else "source",
    }


def _said(bus: _Bus, one: _Id, action: str, log: _Log) -> dict[str, Any]:
    """What all events of an id have."""
    return {
        **_base(log, action),
        "ot.unit": bus.name,
        "ot.function.code": one.text,
        **({} if one.number is None else {"ot.point.address": one.number}),
        "phys.point": f"{bus.name} {one.text}",
    }


def _new(bus: _Bus, one: _Id, log: _Log) -> dict[str, Any]:
    fields = _said(bus, one, "can_id_new", log)
    fields["event.reason"] = f"not seen in {bus.seconds - 1} s; {len(bus.ids)} ids are known"
    return fields


def _second(bus: _Bus, log: _Log) -> Iterator[tuple[float, dict[str, Any]]]:
    """What each id said in the second that is over."""
    for one in bus.spoke.values():
        fields = _errors(bus, one, log) if one.is_error else _messages(bus, one, log)
        fields["network.packets"], fields["network.bytes"] = one.count, one.size
        fields["event.start"], fields["event.end"] = utc(one.first_s), utc(one.last_s)
        fields["ot.value_raw"] = one.last.hex().upper()
        yield one.first_s, fields
        one.count = 0
    bus.spoke.clear()


def _messages(bus: _Bus, one: _Id, log: _Log) -> dict[str, Any]:
    vendor: dict[str, Any] = {
        "first": one.first.hex().upper(),
        "payloads": len(one.payloads),
        "changes": one.moved,
        "is_extended": len(one.text) == EXTENDED,
    }
    if one.remote:
        vendor["remote"] = one.remote
    if one.fd:
        vendor["fd"] = one.fd
    fields = {**_said(bus, one, "can_messages", log), "event.kind": "metric"}
    if one.intervals:
        vendor["interval_min_s"] = round(one.shortest_s, 6)
        fields["phys.quantity"], fields["phys.unit"] = "frame_interval", "s"
        fields["phys.reading"] = round(one.interval_s / one.intervals, 6)
    return {**fields, "cw.vendor": vendor}


def _errors(bus: _Bus, one: _Id, log: _Log) -> dict[str, Any]:
    names = [name for bit, name in ERRORS if (one.number or 0) & bit]
    action = "can_bus_off" if "bus_off" in names else "can_errors"
    return {
        **_said(bus, one, action, log),
        "event.kind": "event",
        "event.outcome": "failure",
        "ot.exception": " ".join(names) or "unspecified",
    }


def _frozen(bus: _Bus, one: _Id, at: list[int], time_s: float, log: _Log) -> dict[str, Any]:
    byte = at[0]
    for_s = time_s - one.since_s[byte]
    return {
        **_said(bus, one, "can_signal_frozen", log),
        "event.kind": "event",
        "event.start": utc(one.since_s[byte]),
        "event.reason": f"byte {_listed(at)} stands at {one.data[byte]:02X} for {one.run[byte]} "
        f"frames and {for_s:.1f} s; it changed in {one.changes[byte]} of "
        f"{one.compared - one.run[byte]} frames before and never rested for more than "
        f"{one.longest[byte]}",
        "ot.value": float(one.data[byte]),
        "ot.value_raw": one.data.hex().upper(),
        "cw.vendor": {"bytes": _listed(at)},
    }


def _thawed(bus: _Bus, one: _Id, at: list[int], time_s: float, log: _Log) -> dict[str, Any]:
    since_s, one.since_s[at[0]] = one.since_s[at[0]], time_s
    for byte in at[1:]:
        one.since_s[byte] = time_s
    return {
        **_said(bus, one, "can_signal_moves", log),
        "event.kind": "event",
        "event.start": utc(since_s),
        "event.duration": max(0, int((time_s - since_s) * 1e9)),
        "ot.value_raw": one.data.hex().upper(),
        "cw.vendor": {"bytes": _listed(at)},
    }


def _listed(at: list[int]) -> str:
    return " ".join(str(byte) for byte in at)
