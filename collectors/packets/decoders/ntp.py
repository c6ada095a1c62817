"""NTP: who asks whom for the time, and who asks a server for its clients or changes its settings.

Understood: requests and answers with stratum and reference; broadcasts; control messages (mode 6)
and private ones (mode 7) by name, `monlist` among them.

Not understood: extension fields and authentication; what control messages contain.

References:
    RFC 5905, sections 7.3 (packet) and 7.4 (kiss codes); RFC 9327 (control messages).
    ntpd source of the NTP project, ntp_request.h (facts: request codes of mode 7).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from struct import Struct
from typing import Any, NamedTuple

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.pairs import Pairs, broken, printable, unreadable

NTP = LogSource(category="network", service="ntp")

MODES = {
    1: "symmetric_active",
    2: "symmetric_passive",
    3: "client",
    4: "server",
    5: "broadcast",
}


class Request(NamedTuple):
    """A control message."""

    name: str
    operation: str = "diagnostic"
    is_command: bool = False


CONTROL: dict[int, Request] = {
    1: Request("read_status"),
    2: Request("read_variables"),
    3: Request("write_variables", "config", True),
    4: Request("read_clock_variables"),
    5: Request("write_clock_variables", "config", True),
    6: Request("set_trap", "config", True),
    7: Request("trap_response"),
    8: Request("configure", "config", True),
    9: Request("save_configuration", "file", True),
    10: Request("read_monlist", "discovery"),
    11: Request("read_ordered_list"),
    12: Request("request_nonce"),
    31: Request("unset_trap", "config", True),
}
PRIVATE: dict[int, Request] = {
    0: Request("peer_list"),
    1: Request("peer_list_summary"),
    2: Request("peer_info"),
    3: Request("peer_stats"),
    4: Request("system_info"),
    5: Request("system_stats"),
    6: Request("io_stats"),
    7: Request("memory_stats"),
    8: Request("loop_info"),
    9: Request("timer_stats"),
    10: Request("configure_peer", "config", True),
    11: Request("unconfigure_peer", "config", True),
    12: Request("set_system_flag", "config", True),
    13: Request("clear_system_flag", "config", True),
    14: Request("monitor", "config", True),
    15: Request("no_monitor", "config", True),
    16: Request("get_restrictions"),
    17: Request("add_restriction", "config", True),
    18: Request("reduce_restriction", "config", True),
    19: Request("remove_restriction", "config", True),
    20: Request("monlist", "discovery"),
    21: Request("reset_statistics", "config", True),
    22: Request("reset_peer", "config", True),
    23: Request("reread_keys", "config", True),
    26: Request("trust_key", "config", True),
    27: Request("untrust_key", "config", True),
    28: Request("authentication_info"),
    29: Request("traps"),
    30: Request("add_trap", "config", True),
    31: Request("clear_trap", "config", True),
    32: Request("request_key", "config", True),
    33: Request("control_key", "config", True),
    34: Request("control_stats"),
    35: Request("leap_info"),
    36: Request("clock_info"),
    37: Request("set_clock_fudge", "config", True),
    38: Request("kernel_info"),
    39: Request("clock_bug_info"),
    41: Request("set_precision", "config", True),
    42: Request("monlist", "discovery"),
    43: Request("host_name"),
    44: Request("interface_stats"),
    45: Request("reload_interfaces", "config", True),
}
"""Request codes of ntpdc; what is not listed was never used."""

_LENGTHS = (48, 52, 64, 68, 72)
"""Without and with a digest; extension fields make it any multiple of four above."""
_PACKET = Struct(">BBbbIII8s8s8s8s")
_CONTROL = Struct(">BBHHHHH")
_WORD = Struct(">H")
_MODE_CONTROL, _MODE_PRIVATE = 6, 7
_NO_TIME = bytes(8)
_EPOCH_S = 2_208_988_800
"""Seconds from 1900 to 1970."""

Fields = dict[str, Any]


_BEGINS = bytes(first for first in range(256) if 1 <= first >> 3 & 7 <= 4 and first & 7)
"""Version and mode, whatever is said of leap seconds."""


@decoder("ntp", NTP, transport="udp", ports=(123,), begins=_BEGINS)
class Ntp:
    """Two clocks."""

    def __init__(self, session: Session) -> None:
        self.pairs = Pairs(session)
        self._always = {
            **session.base,
            "network.protocol": "ntp",
            "event.category": ["network"],
            "event.type": ["protocol"],
        }

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a packet whose parts are possible, or a control message that fits."""
        if len(head) < 8 or not 1 <= head[0] >> 3 & 7 <= 4:
            return False
        mode = head[0] & 7
        if mode == _MODE_CONTROL:
            return _is_control(head)
        if mode == _MODE_PRIVATE:
            return _is_private(head)
        if mode not in MODES or len(head) % 4 or not 48 <= len(head) <= 1_024:
            return False
        _, stratum, poll, precision, delay, dispersion, *_, sent = _PACKET.unpack_from(head)
        return (
            stratum <= 16
            and 0 <= poll <= 17
            and -32 <= precision <= 0
            and delay >> 16 < 256
            and dispersion >> 16 < 256
            and (len(head) in _LENGTHS or mode in (3, 4))
            and (sent != _NO_TIME or not stratum)
        )

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        mode = data[0] & 7 if data else 0
        if mode == _MODE_CONTROL and len(data) >= 12:
            found = self._control(data, time_s)
        elif mode == _MODE_PRIVATE and len(data) >= 8:
            found = self._private(data, time_s)
        elif mode in MODES and len(data) >= 48:
            found = self._packet(data, mode, time_s)
        else:
            why = f"mode {mode} in a message of {len(data)} bytes"
            found = unreadable(self._always, why)
        return len(data), [found]

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; datagrams have no gaps."""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; commands that nobody answered. Other requests are counted."""
        return self.pairs.end("ntp_unanswered")

    def _packet(self, data: bytes, mode: int, time_s: float) -> Fields:
        _, stratum, _, _, _, _, reference, _, origin, _, sent = _PACKET.unpack_from(data)
        own: Fields = {
            **self._always,
            "event.action": f"ntp_{MODES[mode]}",
            "ot.operation": "time_sync",
            "ot.is_command": False,
            "ot.function.code": str(mode),
            "ot.function.name": MODES[mode],
            "cw.vendor": {"version": data[0] >> 3 & 7, "stratum": stratum},
        }
        if mode == 3:
            own["ot.direction"] = "request"
            self.pairs.ask(sent, own, time_s)
        elif mode == 4:
            own["ot.direction"] = "response"
            own["event.outcome"] = "success"
            self._answer(origin, sent, own, time_s)
            if not stratum:
                # A kiss of death: the server refuses, and says why in four letters.
                own["event.outcome"] = "failure"
                own["ot.exception"] = printable(reference.to_bytes(4)).strip(".")
            elif data[0] >> 6 == 3:
                own["event.outcome"] = "failure"
                own["ot.exception"] = "clock_not_synchronised"
            if stratum > 1:
                own["cw.vendor"]["reference"] = str(ipaddress.IPv4Address(reference))
            elif stratum == 1:
                own["cw.vendor"]["reference"] = printable(reference.to_bytes(4).rstrip(b"\0"))
        else:
            own["ot.direction"] = "unsolicited"
        return own

    def _answer(self, origin: bytes, sent: bytes, own: Fields, time_s: float) -> None:
        self.pairs.answer(origin, own, time_s)
        if seconds := int.from_bytes(sent[:4]):
            # How far the two clocks are apart, as it looks from here; in whole seconds.
            apart = seconds - _EPOCH_S - int(time_s)
            own["ot.value"] = (apart + (1 << 31)) % (1 << 32) - (1 << 31)
            own["ot.unit_of_measure"] = "s"

    def _control(self, data: bytes, time_s: float) -> Fields:
        _, code, sequence, status, _, _, count = _CONTROL.unpack_from(data)
        request = CONTROL.get(code & 31) or Request(f"control_{code & 31}")
        is_answer = bool(code & 128)
        own = self._managed(request, is_answer, code & 31, 6)
        own["event.sequence"] = sequence
        if count > len(data) - 12:
            broken(own, f"{count} bytes are claimed, {len(data) - 12} are there")
        if code & 64:
            own["event.outcome"] = "failure"
            own["ot.exception"] = f"error_{status >> 8}"
        self._join((6, sequence, code & 31), own, is_answer, bool(code & 32), time_s)
        return own

    def _private(self, data: bytes, time_s: float) -> Fields:
        code = data[3]
        request = PRIVATE.get(code) or Request(f"private_{code}")
        is_answer = bool(data[0] & 128)
        own = self._managed(request, is_answer, code, 7)
        error, items = data[4] >> 4, _WORD.unpack_from(data, 4)[0] & 0xFFF
        own["ot.point.count"] = items
        if is_answer and error:
            own["event.outcome"] = "failure"
            own["ot.exception"] = f"error_{error}"
        self._join((7, code), own, is_answer, bool(data[0] & 64), time_s)
        return own

    def _join(
        self, key: tuple[int, ...], own: Fields, is_answer: bool, has_more: bool, time_s: float
    ) -> None:
        """An answer may come in many datagrams; the last one is joined, the others are linked."""
        if not is_answer:
            self.pairs.ask(key, own, time_s)
        elif has_more and (asked := self.pairs.waits(key)):
            own["ot.link_id"] = asked["ot.link_id"]
        else:
            self.pairs.answer(key, own, time_s)

    def _managed(self, request: Request, is_answer: bool, code: int, mode: int) -> Fields:
        own = {
            **self._always,
            "event.action": f"ntp_{request.name}",
            "ot.operation": request.operation,
            "ot.is_command": request.is_command and not is_answer,
            "ot.direction": "response" if is_answer else "request",
            "ot.function.code": str(mode),
            "ot.function.name": request.name,
            "ot.function.sub": str(code),
        }
        if is_answer:
            own["event.outcome"] = "success"
        return own


def _is_control(head: bytes) -> bool:
    if len(head) < 12 or head[0] >> 6:
        return False
    _, code, _, _, _, _, count = _CONTROL.unpack_from(head)
    rest = len(head) - 12
    return code & 31 in CONTROL and count <= rest <= count + 100 and not rest % 4


def _is_private(head: bytes) -> bool:
    """Implementation 2 or 3, a request that there is, and items that fit into the rest."""
    number, size = (_WORD.unpack_from(head, at)[0] & 0xFFF for at in (4, 6))
    return (
        head[2] in (0, 2, 3)
        and head[3] in PRIVATE
        and not head[1] & 127
        and size <= 500
        and number * size <= len(head) - 8
        and (bool(head[0] & 128) or head[4] < 16)
    )
