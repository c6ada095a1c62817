"""Automatic tank gauges: the serial protocol of Veeder-Root TLS-350 over TCP, one event a message.

Understood: inquiries (`I20100`, in computer format `i20100`) and settings (`S60201…`) by function
and tank, whether a security code stands in front of them (never the code), answers joined by the
function that they repeat, name of the station, how many tanks a report lists and its first lines;
`9999FF1B`, the answer to what the gauge does not know. Settings are commands.

Not understood: values of reports in computer format. An answer without its end mark (emulators
leave it out) is told when the next inquiry comes or the connection ends.

References:
    Veeder-Root 576013-635, Serial Interface Manual for TLS-300/350 Monitoring Systems, sections 5
    (framing, security code) and 7 (function codes).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.pairs import Fields, Pairs, broken, printable, unreadable

TANK_GAUGE = LogSource(category="ot_protocol", service="tank_gauge")

ANSWER_MAX = 8_192
"""As much of an answer is kept; the rest is passed over."""
SETTING_MAX = 512
"""Longest setting that is awaited without its end."""
LINES_SHOWN = 16
"""Lines of a report that an event keeps."""

_ALWAYS: Fields = {
    "network.protocol": "tank_gauge",
    "event.category": ["process_control"],
}
_SOH, _ETX = 0x01, 0x03
_UNKNOWN = b"9999FF1B"
_COMMAND = re.compile(rb"\x01(\d{6})?([IiSs])([0-9A-Fa-f]{3})(\d\d)")
_ECHO = re.compile(rb"[\x01\r\n ]{0,8}([IiSs][0-9A-Fa-f]{3}\d\d)")
_REFUSAL = re.compile(rb"[\x01\r\n ]{0,8}9999FF1B")
_ENDS = re.compile(rb"[\r\n\x01\x03]")
_ANSWERS = re.compile(
    rb"\x01?[\r\n]{0,4}(?:9999FF1B|[IS][0-9A-F]{3}\d\d\r?\n)|\x01[is][0-9A-F]{3}\d{12}"
)
_TANK = re.compile(rb"^ {0,3}(\d{1,2}) +\S.* {2}", re.MULTILINE)
_COMMAND_MIN = 7

FUNCTIONS: dict[str, str] = {
    "001": "system_reset",
    "002": "power_reset_flag_clear",
    "003": "alarm_reset",
    "051": "delivery_reports_clear",
    "052": "leak_test_start",
    "053": "leak_test_stop",
    "101": "system_status",
    "102": "system_configuration",
    "111": "priority_alarm_history",
    "112": "non_priority_alarm_history",
    "201": "in_tank_inventory",
    "202": "in_tank_delivery",
    "203": "in_tank_leak_detect",
    "204": "shift_inventory",
    "205": "in_tank_status",
    "206": "in_tank_alarm_history",
    "207": "leak_test_history",
    "251": "csld_results",
    "301": "liquid_sensor_status",
    "302": "liquid_sensor_alarm_history",
    "501": "time_of_day",
    "503": "print_header",
    "602": "tank_product_label",
}
_OPERATIONS: dict[str, str] = {
    "001": "restart",
    "003": "alarm",
    "052": "control",
    "053": "control",
    "501": "time_sync",
}
"""Operation of a setting, where it is no configuration."""


class Tally(msgspec.Struct):
    """What became of the bytes of a conversation; for tests and for health."""

    requests: int = 0
    responses: int = 0
    unknown: int = 0
    malformed: int = 0
    skipped_bytes: int = 0
    """Of commands: line ends, telnet, and whatever else is no command."""


@decoder("tank_gauge", TANK_GAUGE, ports=(10001,), begins=b"\x01\r\n9IS")
class TankGauge:
    """One conversation with a tank gauge."""

    def __init__(self, session: Session) -> None:
        self.tally = Tally()
        self.pairs = Pairs(session)
        self._base = {**session.base, **_ALWAYS}
        self._text = b""
        """Of an answer that has no end yet."""
        self._arrived_s = 0.0
        self._last = ""
        """What was asked last; a gauge that does not know it does not repeat it."""
        self._lost = [False, False]
        self._rest = b""
        """Of a command that has no end yet."""

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a command behind its start, or the beginning of an answer."""
        return bool(_COMMAND.match(head) or _ANSWERS.match(head))

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        if from_client:
            return self._commands(data, time_s)
        return len(data), self._answers(data, time_s)

    def gap(self, from_client: bool) -> None:
        """See `Decoder`."""
        self._lost[from_client] = True
        if from_client:
            self._rest = b""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; what waited for its end, and commands that nobody answered."""
        found = self._answered()
        match = _COMMAND.match(self._rest)
        if match:
            found.append(self._command(match, self._rest[match.end() :], 0.0))
        self._rest = b""
        return [*found, *self.pairs.end("tank_gauge_unanswered")]

    # ------------------------------------------------------------------------- commands

    def _commands(self, data: bytes, time_s: float) -> tuple[int, list[Fields]]:
        found: list[Fields] = []
        at = 0
        while True:
            start = data.find(_SOH, at)
            if start < 0:
                self.tally.skipped_bytes += len(data) - at
                self._rest = b""
                return len(data), found
            self.tally.skipped_bytes += start - at
            match = _COMMAND.match(data, start)
            if match is None:
                if _may_become(data, start):
                    self._rest = data[start:]
                    return start, found
                if not self._lost[True]:
                    # Said once; the text is not shown: it may be a security code.
                    found.append(self._unreadable("what begins here is no command"))
                self._lost[True] = True
                at = start + 1
                continue
            at = match.end()
            self._lost[True] = False
            setting = b""
            if match[2] in b"Ss":
                ends = _ENDS.search(data, at, at + SETTING_MAX)
                if ends is None and len(data) - at < SETTING_MAX:
                    self._rest = data[start:]
                    return start, found
                stop = ends.start() if ends else at + SETTING_MAX
                setting = data[at:stop]
                at = stop
            found += self._answered()
            found.append(self._command(match, setting, time_s))

    def _command(self, match: re.Match[bytes], setting: bytes, time_s: float) -> Fields:
        self.tally.requests += 1
        letter, function, tank = match[2].decode(), match[3].decode().upper(), match[4].decode()
        is_setting = letter in "Ss"
        name = FUNCTIONS.get(function) or f"function_{function}"
        code = f"{letter}{function}{tank}"
        fields: Fields = {
            **self._base,
            "event.action": f"tank_gauge_{'set' if is_setting else 'get'}_{name}",
            "ot.function.code": code,
            "ot.function.name": name,
            "ot.operation": _OPERATIONS.get(function, "config") if is_setting else "read",
            "ot.direction": "request",
            "ot.is_command": is_setting,
            "ot.point.type": "tank",
            "ot.point.address": int(tank),
            "cw.vendor": {"security_code": "present" if match[1] else "absent"},
        }
        if setting:
            fields["ot.value_raw"] = printable(setting)
        self._last = code.upper()
        self.pairs.ask(self._last, fields, time_s)
        return fields

    # ------------------------------------------------------------------------- answers

    def _answers(self, data: bytes, time_s: float) -> list[Fields]:
        found: list[Fields] = []
        at = 0
        while at < len(data):
            # An answer begins at the start of a text, and ends with its mark if it has one.
            end = data.find(_ETX, at)
            stop = len(data) if end < 0 else end
            room = ANSWER_MAX - len(self._text)
            self._text += data[at : min(stop, at + room)]
            self._arrived_s = time_s
            at = stop + (end >= 0)
            while refusal := _REFUSAL.match(self._text):
                rest, self._text = self._text[refusal.end() :], refusal[0]
                found += self._answered()
                self._text = rest
            if end >= 0:
                found += self._answered()
        return found

    def _answered(self) -> list[Fields]:
        """Tell the answer that has come so far, if there is one."""
        text, self._text = self._text, b""
        time_s = self._arrived_s
        was_lost, self._lost[False] = self._lost[False], False
        head = text.strip(b"\x01\r\n ")
        if not head:
            return []
        self.tally.responses += 1
        fields: Fields = {**self._base, "ot.direction": "response", "ot.is_command": False}
        if head.startswith(_UNKNOWN):
            self.tally.unknown += 1
            return [self._refused(fields, time_s)]
        echo = _ECHO.match(text)
        if echo is None:
            self.tally.malformed += 1
            where = "behind a gap an answer has no beginning" if was_lost else "no answer begins so"
            return [self._unreadable(f"{where}: {printable(head[:16])!r}")]
        code = echo[1].decode()
        asked = self.pairs.answer(code.upper(), fields, time_s)
        function = code[1:4].upper()
        name = FUNCTIONS.get(function) or f"function_{function}"
        verb = "set" if code[0] in "Ss" else "get"
        fields |= {
            "event.action": f"tank_gauge_{verb}_{name}",
            "event.outcome": "success",
            "ot.function.code": code,
            "ot.function.name": name,
            "ot.operation": asked["ot.operation"] if asked else "read",
            "ot.point.type": "tank",
            "ot.point.address": int(code[4:]),
        }
        if len(text) >= ANSWER_MAX:
            broken(fields, f"an answer is longer than {ANSWER_MAX} bytes, the rest is not kept")
        if code[0] in "IS":
            fields |= _report(text[echo.end() :])
        return [fields]

    def _refused(self, fields: Fields, time_s: float) -> Fields:
        asked = self.pairs.answer(self._last, fields, time_s)
        fields |= {
            "event.action": asked["event.action"] if asked else "tank_gauge_unknown_command",
            "event.outcome": "failure",
            "event.code": _UNKNOWN.decode(),
            "ot.exception": "unknown_command",
        }
        if asked:
            for name in ("ot.function.code", "ot.function.name", "ot.operation"):
                fields[name] = asked[name]
        return fields

    def _unreadable(self, why: str) -> Fields:
        self.tally.malformed += 1
        return unreadable(self._base, why)


def _may_become(data: bytes, start: int) -> bool:
    """Whether what begins here may be a command when more has come."""
    rest = data[start:]
    if len(rest) >= _COMMAND_MIN + 6:
        return False
    filled = rest + b"\x01000000I00000"[len(rest) :]
    return bool(_COMMAND.match(filled) or _COMMAND.match(rest + b"I00000"[len(rest) - 1 :]))


def _report(text: bytes) -> Fields:
    """A report in display format: date, station, and lines of which some begin with a tank."""
    lines = [printable(line).strip() for line in text.splitlines()]
    said = [line for line in lines if line]
    vendor: dict[str, Any] = {}
    if len(said) > 1 and said[0][:1].isdigit():
        vendor["station"] = said[1]
    if said:
        vendor["report"] = said[:LINES_SHOWN]
    own: Fields = {"cw.vendor": vendor} if vendor else {}
    tanks = {match[1] for match in _TANK.finditer(text)}
    return {**own, "ot.point.count": len(tanks)} if tanks else own
