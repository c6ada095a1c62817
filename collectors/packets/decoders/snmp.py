"""SNMP versions 1, 2c and 3: who reads or sets which objects, and with which kind of community.

Understood: requests with their first objects, joined to their answers; set requests as commands;
traps; errors; user and engine of version 3. Of a community it is kept whether it is one that
everybody knows, and two digits of its SHA-256, by which another one is told.

Not understood: what version 3 encrypts; what an object means (that is in the MIB of its maker).

References:
    RFC 1157, section 4 (version 1); RFC 3416, section 3 (version 2); RFC 3412, section 6, and
    RFC 3414, section 2.4 (version 3).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from typing import Any, NamedTuple

from cityward import LogSource, Session, decoder
from collectors.packets.decoders import ber
from collectors.packets.decoders.pairs import Pairs, broken, printable, unreadable

SNMP = LogSource(category="network", service="snmp")

OBJECTS_SHOWN = 8
"""Variables of one message that are shown."""
VARIABLES_MAX = 256
DEFAULT_COMMUNITIES = frozenset(
    (
        *(b"public", b"private", b"admin", b"administrator", b"cisco", b"community", b"default"),
        *(b"ILMI", b"manager", b"monitor", b"network", b"password", b"proxy", b"read", b"rmon"),
        *(b"rmon_admin", b"secret", b"security", b"snmp", b"snmpd", b"SNMP_trap", b"system"),
        *(b"test", b"write", b"rw", b"ro", b"access", b"agent", b"c0de", b"tivoli", b"openview"),
    )
)
"""Communities of which every scanner knows; most of them a device left the factory with."""


class Kind(NamedTuple):
    """What a PDU does."""

    name: str
    operation: str
    direction: str
    is_command: bool = False


KINDS: dict[int, Kind] = {
    0xA0: Kind("get_request", "read", "request"),
    0xA1: Kind("get_next_request", "read", "request"),
    0xA2: Kind("response", "read", "response"),
    0xA3: Kind("set_request", "config", "request", True),
    0xA4: Kind("trap", "alarm", "unsolicited"),
    0xA5: Kind("get_bulk_request", "read", "request"),
    0xA6: Kind("inform_request", "alarm", "request"),
    0xA7: Kind("trap_v2", "alarm", "unsolicited"),
    0xA8: Kind("report", "diagnostic", "response"),
}
ERRORS: dict[int, str] = {
    1: "too_big", 2: "no_such_name", 3: "bad_value", 4: "read_only", 5: "gen_err", 6: "no_access",
    7: "wrong_type", 8: "wrong_length", 9: "wrong_encoding", 10: "wrong_value", 11: "no_creation",
    12: "inconsistent_value", 13: "resource_unavailable", 14: "commit_failed", 15: "undo_failed",
    16: "authorization_error", 17: "not_writable", 18: "inconsistent_name",
}  # fmt: skip
TRAPS = (
    "cold_start", "warm_start", "link_down", "link_up", "authentication_failure",
    "egp_neighbor_loss", "enterprise_specific",
)  # fmt: skip
VERSIONS = {0: "1", 1: "2c", 3: "3"}

_SEQUENCE, _INTEGER, _OCTETS, _NULL, _OID, _ADDRESS = 0x30, 0x02, 0x04, 0x05, 0x06, 0x40
_UNSIGNED = (0x41, 0x42, 0x43, 0x46, 0x47)
_ABSENT = {0x80: "no_such_object", 0x81: "no_such_instance", 0x82: "end_of_mib_view"}
_TRAP, _BULK = 0xA4, 0xA5
_SECRETS = (
    *("1.3.6.1.6.3.15.", "1.3.6.1.6.3.18.", "1.3.6.1.4.1.1206.4.2.6.5."),
    "1.3.6.1.4.1.9.9.96.1.1.1.1.8.",
)
"""Where values are secrets: keys of users, communities, security of NTCIP; the password with which
a Cisco device copies its configuration."""
_SNMP_TRAP_OID = "1.3.6.1.6.3.1.1.4.1.0"

Fields = dict[str, Any]


@decoder("snmp", SNMP, transport="udp", ports=(161, 162), begins=b"\x30")
class Snmp:
    """One manager and one agent."""

    def __init__(self, session: Session) -> None:
        self.pairs = Pairs(session)
        self._always = {
            **session.base,
            "network.protocol": "snmp",
            "event.category": ["network"],
            "event.type": ["protocol"],
        }

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a sequence that fills the datagram, a version, and what belongs to it."""
        try:
            parts, version = _message(head)
        except ber.BerError:
            return False
        if len(parts) < 3:
            return False
        if version == 3:
            return parts[1].tag == _SEQUENCE and parts[2].tag == _OCTETS
        return version in (0, 1) and parts[1].tag == _OCTETS and parts[2].tag in KINDS

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        try:
            parts, version = _message(data)
            own = {
                **self._always,
                "event.action": "snmp_message",
                "cw.vendor": {"version": VERSIONS.get(version, str(version))},
            }
        except ber.BerError as error:
            return len(data), [unreadable(self._always, str(error))]
        try:
            if version == 3:
                self._secured(data, parts, own, time_s)
            elif version in VERSIONS:
                self._plain(data, parts, own, time_s)
            else:
                raise ber.BerError(f"version {version} is not known")
        except ber.BerError as error:
            own["event.action"] = "unreadable"
            own["ot.is_command"] = False
            broken(own, str(error))
        return len(data), [own]

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; datagrams have no gaps."""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; settings that nobody answered. Other requests are counted."""
        return self.pairs.end("snmp_unanswered")

    def _plain(self, data: bytes, parts: list[ber.Element], own: Fields, time_s: float) -> None:
        """A message of version 1 or 2c."""
        if len(parts) < 3 or parts[1].tag != _OCTETS:
            raise ber.BerError("a message has a version, a community and data")
        community = data[parts[1].at : parts[1].stop]
        own["cw.vendor"]["community"] = (
            "default" if community in DEFAULT_COMMUNITIES else "own" if community else "empty"
        )
        # Enough to see that it is another one, too little to try guesses on.
        own["cw.vendor"]["community_mark"] = hashlib.sha256(community).hexdigest()[:2]
        self._pdu(data, parts[2], own, time_s)

    def _secured(self, data: bytes, parts: list[ber.Element], own: Fields, time_s: float) -> None:
        """A message of version 3 with the user-based security model."""
        if len(parts) < 4:
            raise ber.BerError("a message of version 3 has four parts")
        head = ber.elements(data, parts[1].at, parts[1].stop, 4)
        if len(head) < 4 or head[2].tag != _OCTETS or head[2].at == head[2].stop:
            raise ber.BerError("the header of version 3 has four parts")
        flags = data[head[2].at]
        own["cw.vendor"]["security"] = (
            "encrypted" if flags & 2 else "authenticated" if flags & 1 else "none"
        )
        said = ber.expect(data, parts[2].at, parts[2].stop, _SEQUENCE)
        names = ber.elements(data, said.at, said.stop, 6)
        if len(names) >= 4:
            own["cw.vendor"]["engine_id"] = data[names[0].at : names[0].stop][:32].hex()
            if user := printable(data[names[3].at : names[3].stop]):
                own["user.name"] = user
        if parts[3].tag == _OCTETS:
            own["event.action"] = "snmp_encrypted"
            return
        scoped = ber.elements(data, parts[3].at, parts[3].stop, 3)
        if len(scoped) < 3:
            raise ber.BerError("a scoped message has three parts")
        self._pdu(data, scoped[2], own, time_s)

    def _pdu(self, data: bytes, pdu: ber.Element, own: Fields, time_s: float) -> None:
        kind = KINDS.get(pdu.tag)
        if kind is None:
            raise ber.BerError(f"no PDU has the tag 0x{pdu.tag:02x}")
        own |= {
            "event.action": f"snmp_{kind.name}",
            "ot.function.code": str(pdu.tag & 31),
            "ot.function.name": kind.name,
            "ot.operation": kind.operation,
            "ot.direction": kind.direction,
            "ot.is_command": kind.is_command,
        }
        if pdu.tag == _TRAP:
            _trap(data, pdu, own)
            return
        parts = ber.elements(data, pdu.at, pdu.stop, 4)
        if len(parts) < 4 or parts[3].tag != _SEQUENCE:
            raise ber.BerError(f"a {kind.name} has four parts")
        number = ber.integer(data, parts[0].at, parts[0].stop)
        if number.bit_length() > 31:
            raise ber.BerError(f"a request id has 32 bits, not {number.bit_length() + 1}")
        status = ber.integer(data, parts[1].at, parts[1].stop)
        own["event.sequence"] = number
        _variables(data, parts[3], own)
        if kind.direction == "request":
            self.pairs.ask(number, own, time_s)
        elif kind.direction == "response":
            own["event.outcome"] = "success"
            if status and pdu.tag != _BULK:
                own["event.outcome"] = "failure"
                own["ot.exception"] = ERRORS.get(status) or f"error_{status}"
            asked = self.pairs.answer(number, own, time_s)
            if asked:
                own["ot.operation"] = asked["ot.operation"]


def _message(data: bytes) -> tuple[list[ber.Element], int]:
    """The parts of a message that fills a datagram, and its version.

    Raises:
        BerError: it is none.
    """
    whole = ber.expect(data, 0, len(data), _SEQUENCE)
    if whole.stop != len(data):
        raise ber.BerError(f"{len(data) - whole.stop} bytes lie behind the message")
    parts = ber.elements(data, whole.at, whole.stop, 4)
    if not parts or parts[0].tag != _INTEGER:
        raise ber.BerError("a message begins with its version")
    return parts, ber.integer(data, parts[0].at, parts[0].stop)


def _trap(data: bytes, pdu: ber.Element, own: Fields) -> None:
    """A trap of version 1, which is built in its own way."""
    parts = ber.elements(data, pdu.at, pdu.stop, 6)
    if len(parts) < 6:
        raise ber.BerError("a trap has six parts")
    generic = ber.integer(data, parts[2].at, parts[2].stop)
    own["ot.cause"] = TRAPS[generic] if 0 <= generic < len(TRAPS) else str(generic)
    own["cw.vendor"]["enterprise"] = ber.oid(data, parts[0].at, parts[0].stop)
    own["cw.vendor"]["specific"] = ber.integer(data, parts[3].at, parts[3].stop)
    if parts[1].stop - parts[1].at == 4:
        agent = ipaddress.ip_address(data[parts[1].at : parts[1].stop])
        own["cw.vendor"]["agent"] = str(agent)
    _variables(data, parts[5], own)


def _variables(data: bytes, listed: ber.Element, own: Fields) -> None:
    """Names of the first variables, and their values where they are told."""
    all_of_them = ber.elements(data, listed.at, listed.stop, VARIABLES_MAX)
    names: list[str] = []
    values: list[str] = []
    for one in all_of_them[:OBJECTS_SHOWN]:
        pair = ber.elements(data, one.at, one.stop, 2)
        if len(pair) < 2 or pair[0].tag != _OID:
            raise ber.BerError(f"the variable at byte {one.at} has no name and value")
        name = ber.oid(data, pair[0].at, pair[0].stop)
        value, number = ("", None) if name.startswith(_SECRETS) else _value(data, pair[1])
        names.append(name)
        values.append(value)
        if len(names) == 1 and number is not None and number.bit_length() < 64:
            own["ot.value"] = number
        if name == _SNMP_TRAP_OID:
            own["ot.cause"] = value
    more = ",…" if len(all_of_them) > OBJECTS_SHOWN else ""
    own["ot.point.count"] = len(all_of_them)
    if names:
        own["ot.point.tag"] = ",".join(names) + more
    if any(values):
        own["ot.value_raw"] = ",".join(values) + more


def _value(data: bytes, one: ber.Element) -> tuple[str, int | None]:
    """A value as text, and as a number if it is one."""
    if one.tag in (_INTEGER, *_UNSIGNED):
        read = ber.integer if one.tag == _INTEGER else ber.unsigned
        number = read(data, one.at, one.stop)
        return str(number), number
    raw = data[one.at : one.stop]
    if one.tag == _OID:
        return ber.oid(data, one.at, one.stop), None
    if one.tag == _ADDRESS and len(raw) == 4:
        return str(ipaddress.ip_address(raw)), None
    if one.tag == _NULL:
        return "", None
    text = printable(raw) if raw[:64].isascii() and b"\0" not in raw[:64] else raw[:32].hex()
    return _ABSENT.get(one.tag) or text, None
