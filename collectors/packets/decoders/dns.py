"""DNS, multicast DNS and LLMNR: one event a query and one an answer, joined by number and name.

Understood: questions, answers (addresses, names, texts, services; the first 16), response codes
and the registered domain of a name, over UDP and TCP; names that point at each other in a circle or
hold bytes that are no text are shown escaped.

Not understood: what DNSSEC signs, the options of EDNS, and DNS over TLS or HTTPS beyond its server
name.

References:
    RFC 1035, sections 4.1 and 4.2 (messages, compression, TCP), 5.1 (escapes).
    RFC 6762 (multicast DNS), RFC 4795 (LLMNR), RFC 2136 (update), RFC 6895 (codes).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from struct import Struct
from typing import Any, NamedTuple

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.pairs import Pairs, broken, unreadable

DNS = LogSource(category="dns")

QUESTIONS_MAX = 64
RECORDS_MAX = 1_024
"""A message with more is no DNS."""
ANSWERS_SHOWN = 16
DATA_SHOWN = 256
"""Characters of one answer that are kept."""
NAME_MAX = 255
POINTERS_MAX = 32
"""Pointers within one name; real ones have one or two."""
_SEARCH_BYTES = 300
"""A question has fewer; as many are kept in search of the next message."""

TYPES: dict[int, str] = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 10: "NULL", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT",
    17: "RP", 18: "AFSDB", 24: "SIG", 25: "KEY", 28: "AAAA", 29: "LOC", 33: "SRV", 35: "NAPTR",
    37: "CERT", 39: "DNAME", 41: "OPT", 42: "APL", 43: "DS", 44: "SSHFP", 46: "RRSIG", 47: "NSEC",
    48: "DNSKEY", 50: "NSEC3", 51: "NSEC3PARAM", 52: "TLSA", 59: "CDS", 60: "CDNSKEY", 64: "SVCB",
    65: "HTTPS", 99: "SPF", 249: "TKEY", 250: "TSIG", 251: "IXFR", 252: "AXFR", 255: "ANY",
    256: "URI", 257: "CAA", 65_399: "PRIVATE",
}  # fmt: skip
RESPONSE_CODES: dict[int, str] = {
    0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED",
    6: "YXDOMAIN", 7: "YXRRSET", 8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE",
}  # fmt: skip
OPERATIONS: dict[int, str] = {0: "QUERY", 1: "IQUERY", 2: "STATUS", 4: "NOTIFY", 5: "UPDATE"}
MULTICAST: dict[int, str] = {5353: "mdns", 5355: "llmnr"}
"""Questions to all hosts of a network, which are answered from other addresses, by port."""
SECOND_LEVEL = frozenset(["ac", "co", "com", "edu", "gob", "gov", "gouv", "net", "nom", "org"])
"""Names below a country under which others register theirs: `example.gov.gr`."""

_HEADER = Struct(">HHHHHH")
_WORD = Struct(">H")
_FIXED = Struct(">HHIH")
_SERVICE = Struct(">HHH")
_ESCAPED = {number: f"\\{number:03d}" for number in (*range(32), *range(127, 256))} | {
    ord("."): "\\.",
    ord("\\"): "\\\\",
}
_NETBIOS_BIT, _QUESTION_BITS = 0x40, 0x7FFF

Fields = dict[str, Any]


class Question(NamedTuple):
    """The first question of a message."""

    name: str
    type: str


class _DnsError(ValueError):
    """The message is none; the text says where."""


@decoder("dns", DNS, transport=("udp", "tcp"), ports=(53, *MULTICAST))
class Dns:
    """One conversation with a name server."""

    def __init__(self, session: Session) -> None:
        self.pairs = Pairs(session)
        self.skipped_bytes = 0
        self._is_stream = session.base.get("network.transport") == "tcp"
        ports = (session.base.get("source.port"), session.base.get("destination.port"))
        name = next((MULTICAST[port] for port in ports if port in MULTICAST), "dns")
        self._is_multicast = name != "dns"
        self._always = {
            **session.base,
            "network.protocol": name,
            "event.category": ["network"],
            "event.type": ["protocol"],
        }
        self._lost = [False, False]
        self._rest = [0, 0]

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a whole message, or the beginning of one behind its length in TCP."""
        return _fits(head, 0, len(head)) or _begins_stream(head, 0)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        if not self._is_stream:
            return len(data), [self._message(data, time_s)]
        found: list[Fields] = []
        at, end = 0, len(data)
        if self._lost[from_client]:
            at, self._lost[from_client] = _next_message(data)
            self.skipped_bytes += at
        while not self._lost[from_client] and end - at >= 2:
            stop = at + 2 + _WORD.unpack_from(data, at)[0]
            if stop > end:
                break
            found.append(self._message(data[at + 2 : stop], time_s))
            at = stop
        self._rest[from_client] = end - at
        return at, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`."""
        self._lost[from_client], self._rest[from_client] = True, 0

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; messages that were cut. Questions that nobody answered are counted."""
        found = [
            unreadable(self._always, f"the conversation ended {rest} bytes into a message")
            for rest in self._rest
            if rest and self._is_stream
        ]
        self._rest = [0, 0]
        return [*self.pairs.end("dns_unanswered"), *found]

    def _message(self, data: bytes, time_s: float) -> Fields:
        if len(data) < 12:
            return unreadable(self._always, f"a message has at least 12 bytes, not {len(data)}")
        number, flags, asked, answered, _, _ = _HEADER.unpack_from(data)
        is_answer = bool(flags & 0x8000)
        operation = OPERATIONS.get(flags >> 11 & 15) or f"OPCODE{flags >> 11 & 15}"
        code = RESPONSE_CODES.get(flags & 15) or f"RCODE{flags & 15}"
        own: Fields = {
            **self._always,
            "event.action": "dns_answer" if is_answer else "dns_query",
            "dns.id": str(number),
            "dns.type": "answer" if is_answer else "query",
            "dns.op_code": operation,
        }
        if is_answer:
            own["dns.response_code"] = code
            own["event.outcome"] = "failure" if flags & 15 else "success"
        key = ""
        try:
            question, at = _questions(data, asked, own)
            key = f"{number} {question.type} {question.name.lower()}" if question else f"{number}"
            if is_answer or self._is_multicast:
                _answers(data, at, answered, own)
        except _DnsError as error:
            broken(own, str(error))
            own["event.action"] = "unreadable"
        if self._is_multicast or "event.kind" in own:
            return own
        if is_answer:
            self.pairs.answer(key, own, time_s)
        else:
            self.pairs.ask(key, own, time_s)
        return own


def _questions(data: bytes, count: int, own: Fields) -> tuple[Question | None, int]:
    """The first question into the fields; where the answers begin."""
    if count > QUESTIONS_MAX:
        raise _DnsError(f"{count} questions in one message")
    first: Question | None = None
    at = 12
    for number in range(count):
        name, at = _name(data, at)
        if at + 4 > len(data):
            raise _DnsError(f"question {number + 1} is cut")
        if first is None:
            kind = _WORD.unpack_from(data, at)[0]
            first = Question(name, TYPES.get(kind) or f"TYPE{kind}")
            own["dns.question.name"] = name
            own["dns.question.type"] = first.type
            own["dns.question.registered_domain"] = registered_domain(name)
        at += 4
    if count > 1:
        own["cw.vendor"] = {"questions": count}
    return first, at


def _answers(data: bytes, at: int, count: int, own: Fields) -> None:
    if not count:
        return
    if count > RECORDS_MAX:
        raise _DnsError(f"{count} answers in one message")
    said: list[str] = []
    types: list[str] = []
    addresses: list[str] = []
    least = 0xFFFF_FFFF
    for number in range(min(count, ANSWERS_SHOWN)):
        name, at = _name(data, at)
        if at + 10 > len(data):
            raise _DnsError(f"answer {number + 1} is cut")
        kind, _, ttl, length = _FIXED.unpack_from(data, at)
        at += 10
        stop = at + length
        if stop > len(data):
            raise _DnsError(f"answer {number + 1} claims {length} bytes, {len(data) - at} are left")
        if not number:
            own["dns.answers.name"] = name
        text = _data(data, at, stop, kind)
        said.append(text)
        types.append(TYPES.get(kind) or f"TYPE{kind}")
        least = min(least, ttl)
        if (kind == 1 and length == 4) or (kind == 28 and length == 16):
            addresses.append(text)
        at = stop
    own["dns.answers.data"] = ",".join(said) + (",…" if count > ANSWERS_SHOWN else "")
    own["dns.answers.type"] = ",".join(types)
    own["dns.answers.ttl"] = least
    if addresses:
        own["dns.resolved_ip"] = addresses


def _data(data: bytes, at: int, stop: int, kind: int) -> str:
    """What a record says, as text."""
    length = stop - at
    if (kind == 1 and length == 4) or (kind == 28 and length == 16):
        return str(ipaddress.ip_address(data[at:stop]))
    if kind in (2, 5, 12, 39) or (kind == 6 and length):
        return _name(data, at)[0]
    if kind == 15 and length > 2:
        return f"{_WORD.unpack_from(data, at)[0]} {_name(data, at + 2)[0]}"
    if kind == 33 and length > 6:
        priority, weight, port = _SERVICE.unpack_from(data, at)
        return f"{priority} {weight} {port} {_name(data, at + 6)[0]}"
    if kind in (16, 99):
        return _strings(data[at:stop])
    shown = data[at : min(stop, at + DATA_SHOWN // 8)].hex()
    return f"{shown}…" if length > DATA_SHOWN // 8 else shown


def _strings(data: bytes) -> str:
    """Character strings one behind the other, as far as they are shown."""
    found, at, size = [], 0, 0
    while at < len(data) and size < DATA_SHOWN:
        text = _label(data[at + 1 : at + 1 + data[at]])
        found.append(text)
        size += len(text) + 1
        at += 1 + data[at]
    return " ".join(found)[:DATA_SHOWN]


def _name(data: bytes, at: int) -> tuple[str, int]:
    """A name that may be compressed, without the dot at its end; where what follows it begins."""
    labels: list[str] = []
    behind, size, limit, pointers = 0, 0, len(data), 0
    while True:
        if at >= len(data):
            raise _DnsError(f"the name at byte {at} is cut")
        length = data[at]
        if length < 64:
            at += 1
            if not length:
                break
            size += length + 1
            if at + length > len(data):
                raise _DnsError(f"the label at byte {at - 1} claims {length} bytes")
            if size > NAME_MAX:
                raise _DnsError(f"a name has more than {NAME_MAX} bytes")
            labels.append(_label(data[at : at + length]))
            at += length
        elif length >= 192:
            if at + 2 > len(data):
                raise _DnsError(f"the pointer at byte {at} is cut")
            behind = behind or at + 2
            target = _WORD.unpack_from(data, at)[0] & 0x3FFF
            # Each one points to before the one it came from, so that no circle is gone round.
            pointers += 1
            if target >= min(at, limit) or pointers > POINTERS_MAX:
                raise _DnsError(f"the name at byte {at} points forward or round in a circle")
            at = limit = target
        else:
            raise _DnsError(f"the label at byte {at} is of unknown kind 0x{length & 192:02x}")
    return ".".join(labels), behind or at


def _label(raw: bytes) -> str:
    """Text as zone files write it: what cannot be printed as a backslash and three digits."""
    if raw.isascii():
        text = raw.decode("ascii")
        return text if text.isprintable() and not set(".\\") & set(text) else _escaped(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return _escaped(raw)
    return text if text.isprintable() and not set(".\\") & set(text) else _escaped(raw)


def _escaped(raw: bytes) -> str:
    return raw.decode("latin-1").translate(_ESCAPED)


def registered_domain(name: str) -> str:
    """The domain that somebody registered to have this name, as far as it shows without a list."""
    labels = name.lower().rsplit(".", 3)
    below_country = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in SECOND_LEVEL
    return ".".join(labels[-3:] if below_country else labels[-2:])


# What is DNS.


def _fits(data: bytes, start: int, stop: int, is_whole: bool = True) -> bool:
    """Whether a message lies there: its counts fit, and with `is_whole` it ends where it should."""
    if stop - start < 17:
        return False
    _, flags, asked, *records = _HEADER.unpack_from(data, start)
    total = sum(records)
    if flags & _NETBIOS_BIT or (flags >> 11 & 15) not in OPERATIONS or flags & 15 > 10:
        return False
    if asked > QUESTIONS_MAX or total > RECORDS_MAX or not asked + total:
        return False
    message = data[start:stop]
    at = 12
    try:
        for _ in range(asked):
            name, at = _name(message, at)
            kind, group = _WORD.unpack_from(message, at)[0], _WORD.unpack_from(message, at + 2)[0]
            if kind not in TYPES or group & _QUESTION_BITS not in (1, 3, 4, 254, 255):
                return False
            if _is_netbios(name, kind):
                return False
            at += 4
        if not is_whole:
            return bool(asked == 1)
        for _ in range(total):
            _, at = _name(message, at)
            at += 10 + _FIXED.unpack_from(message, at)[3]
    except (_DnsError, struct.error):
        return False
    return bool(at == len(message))


def _is_netbios(name: str, kind: int) -> bool:
    """Names of NetBIOS are 32 letters from A to P (RFC 1001), of types that DNS uses otherwise."""
    first = name.partition(".")[0]
    return kind in (32, 33) and len(first) == 32 and not first.strip("ABCDEFGHIJKLMNOP")


def _begins_stream(data: bytes, at: int) -> bool:
    if len(data) - at < 19:
        return False
    length = _WORD.unpack_from(data, at)[0]
    stop = min(at + 2 + length, at + 2 + _SEARCH_BYTES, len(data))
    return length >= 17 and _fits(data, at + 2, stop, is_whole=False)


def _next_message(data: bytes) -> tuple[int, bool]:
    """Where the next message of a stream begins, and True if there is none yet."""
    for at in range(len(data) - 18):
        if _begins_stream(data, at):
            return at, False
    return max(0, len(data) - _SEARCH_BYTES), True
