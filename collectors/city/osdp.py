"""Card readers at doors: OSDP frames of a capture, one JSON line a frame (`.osdpcap`).

Send: let a listener on the RS-485 line or the controller write its trace to a file
(`reader = "file"`, one line a frame).

Understood: commands and replies by name and address, CRC and checksum, sequence, secure channel or
none; cards (`phys.subject`, personal) and keys pressed, tamper and power, readers that are gone,
refusals. Opening an output, a new address, keys and firmware are commands. A request that got no
answer is told by the next.

Not understood: data inside an encrypted channel, biometric and smart card data, makers' own
commands, what an input or an output is wired to.

References:
    SIA OSDP 2.2 (IEC 60839-11-5:2020), 5.9 (frame, CRC), annex A (commands), annex B (replies);
    libosdp-conformance, "osdpcap format".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.values import clean, moment, read_json, whole

OSDP = LogSource(category="physical_access", service="osdp")

FRAME_MAX = 1_440
"""Bytes of the longest frame that readers agree to."""
CARD_BITS_MAX = 1_024
WAITING_MAX = 1_024

COMMANDS = {
    0x60: "poll",
    0x61: "identify",
    0x62: "capabilities",
    0x64: "local_status",
    0x65: "input_status",
    0x66: "output_status",
    0x67: "reader_status",
    0x68: "output_control",
    0x69: "led_control",
    0x6A: "buzzer_control",
    0x6B: "text_output",
    0x6E: "communication_set",
    0x73: "biometric_read",
    0x74: "biometric_match",
    0x75: "key_set",
    0x76: "challenge",
    0x77: "server_cryptogram",
    0x7B: "receive_size",
    0x7C: "file_transfer",
    0x80: "manufacturer_command",
    0xA1: "extended_write",
    0xA2: "abort",
    0xA3: "piv_data",
    0xA4: "general_authenticate",
    0xA5: "challenge_authenticate",
    0xA7: "keep_active",
}
REPLIES = {
    0x40: "ack",
    0x41: "nak",
    0x45: "identification",
    0x46: "capabilities_report",
    0x48: "local_status_report",
    0x49: "input_status_report",
    0x4A: "output_status_report",
    0x4B: "reader_status_report",
    0x50: "card_read",
    0x51: "card_read_formatted",
    0x53: "keys_pressed",
    0x54: "communication_report",
    0x57: "biometric_read_report",
    0x58: "biometric_match_report",
    0x76: "client_cryptogram",
    0x78: "initial_mac",
    0x79: "busy",
    0x7A: "file_transfer_status",
    0x80: "piv_data_report",
    0x81: "general_authenticate_report",
    0x82: "challenge_authenticate_report",
    0x90: "manufacturer_report",
    0xB1: "extended_read",
}
OPERATIONS = {
    0x61: "discovery",
    0x62: "discovery",
    0x68: "control",
    0x69: "control",
    0x6A: "control",
    0x6B: "control",
    0x6E: "config",
    0x75: "config",
    0x76: "auth",
    0x77: "auth",
    0x7C: "firmware",
    0x80: "config",
    0xA1: "write",
}
"""What a command does; any other reads. Those that change the reader or the door are commands."""
CHANGES = frozenset(("control", "config", "firmware", "write"))
REFUSALS = {
    1: "checksum or CRC wrong",
    2: "command length wrong",
    3: "command unknown",
    4: "sequence number unexpected",
    5: "security block not supported",
    6: "encrypted communication required",
    7: "biometric type not supported",
    8: "biometric format not supported",
    9: "command cannot be carried out",
}
READER_STATES = {0: "normal", 1: "offline", 2: "tampered"}


def looks_like_osdp(head: bytes) -> bool:
    """The first line is a JSON object with the mark of such a trace."""
    line = head.lstrip().partition(b"\n")[0]
    return line[:1] == b"{" and b'"osdpTraceVersion"' in line and b'"data"' in line


@collector(OSDP, looks_like=looks_like_osdp, strength=80)
class Osdp:
    """Read frames; whose request is open is remembered, to see readers that do not answer."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int], bool] = {}

    def __call__(self, records: Iterable[Record]) -> Iterator[Event]:
        """One event a frame."""
        for record in records:
            try:
                yield self._read(record)
            except ValueError as error:
                yield Event.malformed(record, OSDP, why=str(error))

    def _read(self, record: Record) -> Event:
        line = read_json(record.data)
        seconds, nanos = whole(line.get("timeSec")), whole(line.get("timeNano"))
        time = moment(seconds) if seconds is not None else None
        if time is None:
            raise ValueError(f"no time in timeSec: {line.get('timeSec')!r:.80}")
        if nanos is not None and 0 <= nanos < 10**9:
            time += timedelta(microseconds=nanos // 1_000)
        said = line.get("data")
        if not isinstance(said, str) or len(said) > 4 * FRAME_MAX:
            raise ValueError("no bytes in data")
        try:
            data = bytes.fromhex(said)
        except ValueError:
            raise ValueError(f"data is no hexadecimal: {said[:80]!r}") from None
        fields = _frame(data)
        self._match(record.source, fields)
        return Event(time, OSDP, fields, record)

    def _match(self, source: str, fields: dict[str, Any]) -> None:
        """Say of a request that the one before got no answer, and of an answer nobody asked for."""
        key = (source, int(fields["ot.unit"]))
        waiting = self._waiting.pop(key, None)
        is_request = fields["ot.direction"] == "request"
        self._waiting[key] = is_request
        if len(self._waiting) > WAITING_MAX:
            del self._waiting[next(iter(self._waiting))]
        if is_request and waiting:
            fields["event.outcome"] = "unknown"
            fields.setdefault("event.reason", "the reader did not answer the request before")
        elif not is_request and waiting is False:
            fields.setdefault("event.reason", "an answer that nobody asked for")


def _frame(data: bytes) -> dict[str, Any]:
    """Start, address, length, control, security block, code and data, CRC (5.9).

    Raises:
        ValueError: no frame, or one that was damaged; the message says how.
    """
    data = data[1:] if data[:1] == b"\xff" else data
    if len(data) < 7 or data[0] != 0x53:
        raise ValueError(f"no OSDP frame: {data[:16].hex(' ')}")
    size = int.from_bytes(data[2:4], "little")
    if size != len(data):
        raise ValueError(f"a frame of {len(data)} bytes that says it has {size}")
    control = data[4]
    _check(data, has_crc=bool(control & 4))
    at, secure, kind = 5, "none", 0
    if control & 8:
        if len(data) < 9 or data[5] < 2 or 5 + data[5] >= size - 2:
            raise ValueError("a security block that does not fit")
        kind = data[6]
        secure = "handshake" if kind < 0x15 else "authenticated" if kind < 0x17 else "encrypted"
        at += data[5]
    end = size - (2 if control & 4 else 1) - (4 if kind >= 0x15 else 0)
    if at >= end:
        raise ValueError("a frame without a code")
    body = data[at + 1 : end]
    return _told(data, data[at], b"" if secure == "encrypted" else body, secure)


def _check(data: bytes, *, has_crc: bool) -> None:
    if has_crc:
        own, said = _crc(data[:-2]), int.from_bytes(data[-2:], "little")
    else:
        own, said = -sum(data[:-1]) & 0xFF, data[-1]
    if own != said:
        raise ValueError(f"frame damaged: its check is {own:04x}, not {said:04x}")


def _crc(data: bytes) -> int:
    """CRC-16 with polynomial 1021 that starts at 1D0F (annex C)."""
    found = 0x1D0F
    for byte in data:
        found = (found << 8 & 0xFF00) ^ _CRC[found >> 8 ^ byte]
    return found


def _crc_of(byte: int) -> int:
    found = byte << 8
    for _ in range(8):
        found = (found << 1 ^ 0x1021 if found & 0x8000 else found << 1) & 0xFFFF
    return found


_CRC = tuple(map(_crc_of, range(256)))


def _told(data: bytes, code: int, body: bytes, secure: str) -> dict[str, Any]:
    is_reply, address = bool(data[1] & 0x80), data[1] & 0x7F
    name = (REPLIES if is_reply else COMMANDS).get(code, "message")
    operation = "report" if is_reply else OPERATIONS.get(code, "read")
    vendor: dict[str, Any] = {"sequence": data[4] & 3, "secure_channel": secure}
    fields: dict[str, Any] = {
        "event.kind": "event",
        "event.category": ["physical_access"],
        "event.action": f"osdp_{name}",
        "event.dataset": "osdp.frame",
        "network.protocol": "osdp",
        "cw.domain": ["physical"],
        "ot.direction": "response" if is_reply else "request",
        "ot.operation": operation,
        "ot.is_command": not is_reply and operation in CHANGES,
        "ot.function.code": f"0x{code:02x}",
        "ot.function.name": name,
        "ot.unit": str(address),
        "phys.point": f"reader-{address}",
        "cw.vendor": vendor,
    }
    if is_reply:
        _reply(code, body, fields, vendor)
    elif body and code not in (0x75, 0x76, 0x77):  # keys are nobody's business
        vendor["data"] = body[:256].hex()
    return fields


def _reply(code: int, body: bytes, fields: dict[str, Any], vendor: dict[str, Any]) -> None:
    if code == 0x41:
        error = body[0] if body else 0
        fields["event.outcome"] = "failure"
        fields["ot.exception"] = fields["event.reason"] = REFUSALS.get(error, f"error {error}")
    elif code == 0x48 and len(body) >= 2:
        fields["event.kind"] = "state"
        fields["phys.state"] = "tampered" if body[0] else "power_failed" if body[1] else "normal"
        vendor |= {"tamper": bool(body[0]), "power_failed": bool(body[1])}
    elif code == 0x4B and body:
        fields["event.kind"] = "state"
        fields["phys.state"] = READER_STATES.get(max(body), "unknown")
    elif code == 0x50 and len(body) >= 4:
        bits = int.from_bytes(body[2:4], "little")
        if bits > CARD_BITS_MAX or len(body) - 4 < (bits + 7) // 8:
            fields["event.reason"] = f"a card of {bits} bits in {len(body) - 4} bytes"
        else:
            fields["phys.subject"] = body[4 : 4 + (bits + 7) // 8].hex()
        vendor |= {"reader": body[0], "format": body[1], "bits": bits}
    elif code == 0x51 and len(body) >= 3:
        fields["phys.subject"] = clean(body[3 : 3 + body[2]].decode("latin-1")) or "(empty)"
        vendor["reader"] = body[0]
    elif code == 0x53 and len(body) >= 2:
        # Which keys they were may be a PIN.
        vendor |= {"reader": body[0], "keys": body[1]}
    elif code in (0x49, 0x4A):
        fields["event.kind"] = "state"
        vendor["inputs" if code == 0x49 else "outputs"] = body[:64].hex(" ")
    elif code == 0x45 and len(body) >= 12:
        vendor |= {"maker": body[:3].hex(), "model": body[3], "version": body[4]}
        vendor["serial"] = body[5:9].hex()
        fields["ot.firmware.version"] = ".".join(str(part) for part in body[9:12])
    elif body and code not in (0x57, 0x58, 0x76, 0x78):
        vendor["data"] = body[:256].hex()
