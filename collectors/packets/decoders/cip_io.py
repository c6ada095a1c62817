"""CIP I/O: cyclic data of EtherNet/IP, one event a connection and second.

Understood: connection, sequence, size of the data; how many packets came, how often the data
changed, how many sequence numbers are missing or came twice or late.

Not understood: what the data mean, which only the project of the controller knows; whether the
first two bytes are a counter, so a change in them alone is not counted; CIP Safety.

References:
    ODVA, The CIP Networks Library, volume 2, section 2-6 (sequenced address and connected data
    items) and 3-2 (transport classes 0 and 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

import msgspec

from cityward import Session, decoder
from collectors.packets.decoders.enip import ENIP
from collectors.packets.decoders.pairs import Fields, unreadable

WINDOW_S = 1.0
CONNECTIONS_MAX = 256
"""Connections of one conversation; the one that was silent for longest gives way, and is told."""
BYTES_SHOWN = 32

_HEAD = Struct("<HHHIIHH")
"""Two items: sequenced address (connection, sequence), connected data."""
_ADDRESS, _DATA = 0x8002, 0xB1
_LONG = 1 << 32


class Window(msgspec.Struct):
    """What one connection sent since its last event."""

    since_s: float
    sequence: int
    data: bytes
    from_client: bool
    packets: int = 0
    changes: int = 0
    missing: int = 0
    repeated: int = 0
    """Twice or late."""


@decoder("cip_io", ENIP, transport="udp", ports=(2_222,), begins=b"\x02")
class CipIo:
    """Cyclic data between two ends."""

    def __init__(self, session: Session) -> None:
        self._windows: dict[tuple[bool, int], Window] = {}
        self._base: Fields = {
            **session.base,
            "network.protocol": "cip_io",
            "event.category": ["process_control"],
        }

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`."""
        return not _fault(head)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        why = _fault(data)
        if why:
            return len(data), [unreadable(self._base, why)]
        _, _, _, connection, sequence, _, _ = _HEAD.unpack_from(data)
        found: list[Fields] = []
        content = data[_HEAD.size :]
        key = (from_client, connection)
        window = self._windows.pop(key, None)
        if window is None:
            if len(self._windows) >= CONNECTIONS_MAX:
                oldest = next(iter(self._windows))
                found += self._told(oldest, self._windows.pop(oldest), time_s)
            window = Window(time_s, sequence, content, from_client, packets=1)
            found.append(self._event(key, window, time_s, "begins"))
            self._windows[key] = Window(time_s, sequence, content, from_client)
            return len(data), found
        # Whoever spoke last stands last.
        self._windows[key] = window
        window.packets += 1
        ahead = (sequence - window.sequence) % _LONG
        if 0 < ahead < _LONG >> 1:
            window.missing += ahead - 1
            window.sequence = sequence
            # Transport class 1 counts in front of the data.
            window.changes += content[2:] != window.data[2:]
            window.data = content
        else:
            window.repeated += 1
        if time_s - window.since_s >= WINDOW_S or time_s < window.since_s:
            found += self._told(key, window, time_s)
            if window.repeated > window.packets // 2:
                # Whoever sends has begun to count anew.
                window.sequence, window.data = sequence, content
            self._windows[key] = Window(time_s, window.sequence, window.data, from_client)
        return len(data), found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; datagrams have none."""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; what came since the last event of each connection."""
        found: list[Fields] = []
        for key, window in self._windows.items():
            found += self._told(key, window, window.since_s)
        self._windows.clear()
        return found

    def _told(self, key: tuple[bool, int], window: Window, time_s: float) -> list[Fields]:
        return [self._event(key, window, time_s, "data")] if window.packets else []

    def _event(self, key: tuple[bool, int], window: Window, time_s: float, name: str) -> Fields:
        said: Fields = {
            "connection": f"0x{key[1]:08x}",
            "packets": window.packets,
            "bytes": len(window.data),
            "from": "client" if window.from_client else "server",
        }
        if window.changes:
            said["changes"] = window.changes
        if window.missing:
            said["missing"] = window.missing
        if window.repeated:
            said["repeated"] = window.repeated
        more = "…" if len(window.data) > BYTES_SHOWN else ""
        fields: Fields = {
            **self._base,
            "event.action": f"cip_io_{name}",
            "event.sequence": window.sequence,
            "ot.operation": "report",
            "ot.is_command": False,
            "ot.direction": "unsolicited",
            "ot.function.name": "cyclic_data",
            "ot.unit": said["connection"],
            "cw.vendor": said,
        }
        if window.data:
            fields["ot.value_raw"] = window.data[:BYTES_SHOWN].hex() + more
        if time_s > window.since_s:
            fields["event.duration"] = int((time_s - window.since_s) * 1e9)
        return fields


def _fault(data: bytes) -> str:
    """Say what a datagram lacks to be cyclic data."""
    if len(data) < _HEAD.size:
        return f"cyclic data have at least {_HEAD.size} bytes, not {len(data)}"
    count, address, size, _, _, kind, length = _HEAD.unpack_from(data)
    if (count, address, size, kind) != (2, _ADDRESS, 8, _DATA):
        return "cyclic data are two items: a sequenced address and connected data"
    if _HEAD.size + length != len(data):
        return f"{length} bytes of data are announced, {len(data) - _HEAD.size} are there"
    return ""
