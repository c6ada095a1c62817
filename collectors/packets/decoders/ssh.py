"""SSH: the banner of both sides and what they offer for encryption, from which HASSH names tools.

Understood: identification strings, key exchange offers with HASSH and HASSHServer, disconnections
before encryption. What is encrypted is passed over and only counted.

Not understood: user names, whether a login worked (both are encrypted; the log of the server has
them), SSH 1 beyond its banner.

References:
    RFC 4253, sections 4.2 (identification), 6 (packets), 7.1 (key exchange), 11.1 (disconnection).
    HASSH (Salesforce): MD5 of the offered algorithms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.pairs import printable, unreadable

SSH = LogSource(category="network", service="ssh")

BANNER_MAX = 255
"""Bytes of an identification string (RFC 4253, section 4.2)."""
LINES_MAX = 64
"""Lines that a server may send before it."""
PACKET_MAX = 35_000
"""Bytes of a packet (RFC 4253, section 6.1)."""
LISTS = 10
"""Name lists of a key exchange offer: keys, host keys, then pairs for both directions."""
REASONS: dict[int, str] = {
    1: "host_not_allowed_to_connect",
    2: "protocol_error",
    3: "key_exchange_failed",
    5: "mac_error",
    6: "compression_error",
    7: "service_not_available",
    8: "protocol_version_not_supported",
    9: "host_key_not_verifiable",
    10: "connection_lost",
    11: "by_application",
    12: "too_many_connections",
    13: "auth_cancelled_by_user",
    14: "no_more_auth_methods_available",
    15: "illegal_user_name",
}

_DISCONNECT, _KEXINIT, _NEWKEYS = 1, 20, 21
_SIDES = ("server", "client")

Fields = dict[str, Any]


class Lane(msgspec.Struct):
    """One direction."""

    software: str = ""
    lines: int = 0
    """Lines before the banner."""
    is_encrypted: bool = False
    """Nothing more is read: encrypted, or not in step."""
    rest: int = 0


@decoder("ssh", SSH, ports=(22,), begins=b"S")
class Ssh:
    """One SSH connection."""

    def __init__(self, session: Session) -> None:
        self.encrypted_bytes = 0
        self._always = {
            **session.base,
            "network.protocol": "ssh",
            "event.category": ["network"],
            "event.type": ["protocol"],
        }
        self._lanes = (Lane(), Lane())

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; an identification string."""
        return head.startswith((b"SSH-2.0-", b"SSH-1.99-", b"SSH-1.5-", b"SSH-1.3-")) and (
            len(head) < BANNER_MAX or b"\n" in head[:BANNER_MAX]
        )

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        if lane.is_encrypted:
            self.encrypted_bytes += len(data)
            return len(data), ()
        found: list[Fields] = []
        at, end = 0, len(data)
        while at < end and not lane.is_encrypted:
            read = self._packet if lane.software else self._line
            used = read(data, at, lane, from_client, found)
            if not used:
                break
            at += used
        if lane.is_encrypted:
            self.encrypted_bytes += end - at
            at = end
        lane.rest = end - at
        return at, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; packets have no mark by which the next one could be found."""
        self._lanes[from_client].is_encrypted = True
        self._lanes[from_client].rest = 0

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; messages that were cut."""
        found = [
            unreadable(
                self._always,
                f"the conversation ended {lane.rest} bytes into a message of the {who}",
            )
            for lane, who in zip(self._lanes, _SIDES, strict=True)
            if lane.rest
        ]
        for lane in self._lanes:
            lane.rest = 0
        return found

    def _line(
        self, data: bytes, at: int, lane: Lane, from_client: bool, found: list[Fields]
    ) -> int:
        """A line before the packets: the banner, or what a server says before it."""
        stop = data.find(b"\n", at, at + BANNER_MAX + 1)
        if stop < 0:
            if len(data) - at <= BANNER_MAX:
                return 0
            found.append(self._lost(lane, "an identification string has at most 255 bytes"))
            return len(data) - at
        line = data[at:stop].rstrip(b"\r")
        if line.startswith(b"SSH-"):
            version, _, software = line[4:].partition(b"-")
            lane.software = printable(software) or "unnamed"
            own = self._side(from_client)
            own["event.action"] = "ssh_banner"
            own["cw.vendor"]["ssh_version"] = printable(version)
            found.append(own)
            # From version 1 on nothing that follows is understood.
            lane.is_encrypted = not version.startswith((b"2.", b"1.99"))
        else:
            lane.lines += 1
            if from_client or lane.lines > LINES_MAX:
                found.append(self._lost(lane, "no identification string comes first"))
        return stop + 1 - at

    def _packet(
        self, data: bytes, at: int, lane: Lane, from_client: bool, found: list[Fields]
    ) -> int:
        """A packet that is not encrypted yet."""
        if len(data) - at < 6:
            return 0
        length, padding, kind = int.from_bytes(data[at : at + 4]), data[at + 4], data[at + 5]
        if not padding + 2 <= length <= PACKET_MAX:
            found.append(self._lost(lane, f"a packet of {length} bytes, {padding} of them padding"))
            return len(data) - at
        if len(data) - at < 4 + length:
            return 0
        payload = data[at + 5 : at + 4 + length - padding]
        if kind == _KEXINIT:
            found.append(self._offer(payload, from_client))
        elif kind == _DISCONNECT:
            found.append(self._disconnect(payload, from_client))
        lane.is_encrypted = kind == _NEWKEYS
        return 4 + length

    def _side(self, from_client: bool) -> Fields:
        """What each event says of the side it is about."""
        side = _SIDES[from_client]
        software = self._lanes[from_client].software
        own = {**self._always, "cw.vendor": {"side": side, "software": software}}
        if client := self._lanes[True].software:
            own["user_agent.original"] = client
        return own

    def _offer(self, payload: bytes, from_client: bool) -> Fields:
        own = self._side(from_client)
        own["event.action"] = "ssh_key_exchange"
        lists = _name_lists(payload[17:])
        if len(lists) < LISTS:
            why = f"the key exchange offer has {len(lists)} of its {LISTS} lists"
            return unreadable(self._always, why)
        offered = [lists[0], *(lists[place + (not from_client)] for place in (2, 4, 6))]
        name = "hassh" if from_client else "hassh_server"
        own["cw.vendor"][name] = hashlib.md5(b";".join(offered), usedforsecurity=False).hexdigest()
        return own

    def _disconnect(self, payload: bytes, from_client: bool) -> Fields:
        own = self._side(from_client)
        code = int.from_bytes(payload[1:5])
        own["event.action"] = "ssh_disconnect"
        own["event.code"] = REASONS.get(code) or str(code)
        own["event.outcome"] = "unknown" if code == 11 else "failure"
        text = payload[9 : 9 + int.from_bytes(payload[5:9])] if len(payload) > 9 else b""
        if text:
            own["event.reason"] = printable(text)
        return own

    def _lost(self, lane: Lane, why: str) -> Fields:
        lane.is_encrypted = True
        return unreadable(self._always, why)


def _name_lists(data: bytes) -> list[bytes]:
    """The name lists of an offer, as far as they are whole."""
    found: list[bytes] = []
    at = 0
    while len(found) < LISTS and at + 4 <= len(data):
        stop = at + 4 + int.from_bytes(data[at : at + 4])
        if stop > len(data):
            break
        found.append(data[at + 4 : stop])
        at = stop
    return found
