"""From link layer to ports: what each packet of a chunk belongs to, for all packets at once.

Every packet ends with one reason. `METERED` packets belong to a flow; the others are counted.

Rules, written down once (the plain twin in the tests follows them packet by packet):

* **truncated**: the captured bytes end before the end of a header that must be read. Those are the
  link header; each VLAN tag (4 bytes); the IPv4 header with its options; the IPv6 header and each
  extension header, by its own length; the GRE header with its optional words; and of the transport
  20 bytes of TCP, 8 of UDP, 12 of SCTP, 4 of ICMP and ICMPv6, 0 of any other. Only captured bytes
  count, never what a length field claims. For frames of a MAC-level flow it is the link header.
* **bad_header**: an IPv4 header of another version or shorter than 20 bytes, an IPv6 header of
  another version. It is asked before the length of options or extensions.
* **fragment**: any fragment but the first: it has no ports. Asked before the transport is read.
  In IPv4 it is asked after the options were found whole.
* **extensions**: more than six IPv6 extension headers.
* **tunnel**: more than two levels of IPIP, 6in4 or GRE (version 0 that carries IP). Any other GRE
  is a flow of protocol 47.
* **vlan**: more than three tags. **other_l3**: any other ethertype. **link**: unknown link type.
* **decoded**: any other ethertype of which a decoder takes the frames; `link.py` says so, not here.

Bytes of a packet are IP bytes: the total length of IPv4; 40 and the payload length of IPv6; where
that is 0 (offloaded or jumbo) or, in IPv4, less than the header, what was on the wire behind the
link header. In a tunnel they are those of the innermost packet. Bytes of a MAC-level flow are
those of the frame.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from collectors.packets.capture import Chunk
from collectors.packets.gather import gather

METERED, TRUNCATED, BAD_HEADER, FRAGMENT, EXTENSIONS, TUNNEL, VLAN, OTHER_L3, LINK = range(9)
DECODED = 9
REASONS = (
    "metered",
    "truncated",
    "bad_header",
    "fragment",
    "extensions",
    "tunnel",
    "vlan",
    "other_l3",
    "link",
    "decoded",
)
IPV4, IPV6, MAC = 4, 6, 2
"""Families of addresses."""
MAX_TAGS, MAX_EXTENSIONS, MAX_TUNNELS = 3, 6, 2

MAC_TYPES = {0x0806: "arp", 0x88B8: "goose", 0x88BA: "sv", 0x8892: "profinet"}
"""Ethertypes metered by their MAC addresses (IEC 61850-8-1, 61850-9-2, IEC 61158)."""
MAC_NAMES = tuple(MAC_TYPES.values())
"""Protocol number of a MAC-level flow → name."""

FIN, SYN, RST, SYN_ACK, DATA = 1, 2, 4, 8, 16
"""State bits of a TCP segment; `SYN` without, `SYN_ACK` with acknowledgement."""

_ETHERNET, _NULL, _RAW, _SLL, _RAW4, _RAW6, _SLL2 = 1, 0, 101, 113, 228, 229, 276
_LINK_BYTES = {_ETHERNET: 14, _NULL: 4, _RAW: 0, _SLL: 16, _RAW4: 0, _RAW6: 0, _SLL2: 20}
_TYPE_AT = {_ETHERNET: 12, _SLL: 14, _SLL2: 0}
_LINKS = tuple(_LINK_BYTES)

_U2 = np.dtype([("value", ">u2")])
_U4 = np.dtype([("value", "<u4")])
_TAG = np.dtype([("control", ">u2"), ("type", ">u2")])
_FOUR = np.dtype(
    {
        "names": ["first", "length", "fragment", "protocol", "source", "destination"],
        "formats": ["u1", ">u2", ">u2", "u1", ">u4", ">u4"],
        "offsets": [0, 2, 6, 9, 12, 16],
        "itemsize": 20,
    }
)
_SIX = np.dtype(
    {
        "names": ["first", "length", "next", "sh", "sl", "dh", "dl"],
        "formats": ["u1", ">u2", "u1", ">u8", ">u8", ">u8", ">u8"],
        "offsets": [0, 4, 6, 8, 16, 24, 32],
        "itemsize": 40,
    }
)
_EXTENSION = np.dtype([("next", "u1"), ("length", "u1"), ("fragment", ">u2")])
_PORTS = np.dtype(
    {
        "names": ["source", "destination", "seq", "offset", "flags"],
        "formats": [">u2", ">u2", ">u4", "u1", "u1"],
        "offsets": [0, 2, 4, 12, 13],
        "itemsize": 16,
    }
)
_MACS = np.dtype(
    {
        "names": ["dh", "dl", "sh", "sl"],
        "formats": [">u2", ">u4", ">u2", ">u4"],
        "offsets": [0, 2, 6, 8],
        "itemsize": 12,
    }
)


def _table(size: int, values: dict[int, int], kind: Any = np.uint8) -> NDArray[Any]:
    found = np.zeros(size, kind)
    for at, value in values.items():
        found[at] = value
    return found


TCP, UDP, ICMP, ICMP6, SCTP, GRE, IPIP, SIX_IN_FOUR = 6, 17, 1, 58, 132, 47, 4, 41
_NEEDED = _table(256, {TCP: 20, UDP: 8, SCTP: 12, ICMP: 4, ICMP6: 4}, np.int64)
_HAS_PORTS = _table(256, {TCP: 1, UDP: 1, SCTP: 1}, np.bool_)
_IS_ICMP = _table(256, {ICMP: 1, ICMP6: 1}, np.bool_)
_IS_EXTENSION = _table(256, dict.fromkeys((0, 43, 44, 51, 60, 135, 139, 140), 1), np.bool_)
_IS_TUNNEL = _table(256, {GRE: 1, IPIP: 1, SIX_IN_FOUR: 1}, np.bool_)

ICMP_PAIRS = {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17, 10: 9, 9: 10}
ICMP6_PAIRS = {128: 129, 129: 128, 133: 134, 134: 133, 135: 136, 136: 135, 130: 131, 131: 130}
ICMP6_PAIRS |= {144: 145, 145: 144, 139: 140, 140: 139}
"""Type → type of its answer. Community ID version 1: the pair stands for ports."""
_ANSWER = np.full((2, 256), -1, np.int64)
for _table_of, _pairs in enumerate((ICMP_PAIRS, ICMP6_PAIRS)):
    for _asked, _answered in _pairs.items():
        _ANSWER[_table_of, _asked] = _answered

_STATE = np.zeros((2, 256), np.uint8)
for _flags in range(256):
    _state = (FIN if _flags & 1 else 0) | (RST if _flags & 4 else 0)
    if _flags & 2:
        _state |= SYN_ACK if _flags & 16 else SYN
    _STATE[0, _flags], _STATE[1, _flags] = _state, _state | DATA

_DRAW = np.random.default_rng()
MIX_1, MIX_2 = (_DRAW.integers(1 << 62, 1 << 63, 2, np.uint64) | np.uint64(1)).tolist()
"""Odd multipliers drawn for each process: who sends packets cannot aim at collisions."""
_MIX_1, _MIX_2 = np.uint64(MIX_1), np.uint64(MIX_2)

Rows = NDArray[np.int64]
Words = NDArray[np.uint64]


class Walked(NamedTuple):
    """One row for each packet of a chunk."""

    reason: NDArray[np.uint8]
    family: NDArray[np.uint8]
    protocol: NDArray[np.uint8]
    vlan: NDArray[np.uint16]
    """Outermost VLAN id; 0 if there is none."""
    bytes: Rows
    sender: Words
    """Address and port in one word: the address << 16 for IPv4 and MAC, mixed for IPv6."""
    receiver: Words
    sport: NDArray[np.uint16]
    """Port; for ICMP type and type of the answer, or type and code."""
    dport: NDArray[np.uint16]
    l3: Rows
    """Offset of the innermost IP header, or of the frame."""
    l4: Rows
    """Offset of what the innermost IP header carries, or of what is behind the ethertype."""
    ethertype: NDArray[np.uint16]
    """Of an Ethernet frame without IP, behind its tags; 0 of any other packet."""
    state: NDArray[np.uint8]
    """TCP state bits."""
    seq: NDArray[np.uint32]
    payload: Rows
    """Offset of the payload of TCP or UDP."""
    length: Rows
    """Captured bytes of it."""


def walk(chunk: Chunk) -> Walked:
    """Walk through every packet of a chunk."""
    return _Walk(chunk).run()


class _Walk:
    """Columns under construction; every step works on the rows concerned."""

    def __init__(self, chunk: Chunk) -> None:
        self.data, self.columns = chunk.data, chunk.columns
        count = len(chunk)
        self.end = self.columns.starts + self.columns.caplen
        self.at = self.columns.starts.copy()
        self.type = np.zeros(count, np.uint16)
        self.w = Walked(
            np.full(count, OTHER_L3, np.uint8),
            np.zeros(count, np.uint8),
            np.zeros(count, np.uint8),
            np.zeros(count, np.uint16),
            np.zeros(count, np.int64),
            np.zeros(count, np.uint64),
            np.zeros(count, np.uint64),
            np.zeros(count, np.uint16),
            np.zeros(count, np.uint16),
            np.zeros(count, np.int64),
            np.zeros(count, np.int64),
            np.zeros(count, np.uint16),
            np.zeros(count, np.uint8),
            np.zeros(count, np.uint32),
            np.zeros(count, np.int64),
            np.zeros(count, np.int64),
        )
        # The last header that was read ends here; IP bytes on the wire are counted from `l3`.
        self.wire_end = self.columns.starts + self.columns.wirelen

    def run(self) -> Walked:
        link = self.columns.link
        if len(link):
            kinds = [int(link[0])] if (link == link[0]).all() else np.unique(link).tolist()
            for kind in kinds:
                self._link(kind, np.flatnonzero(link == kind))
            self._ip()
            self._transport()
        return self.w

    # ------------------------------------------------------------------------- link layer

    def _link(self, kind: int, rows: Rows) -> None:
        reason = self.w.reason
        if kind not in _LINK_BYTES:
            reason[rows] = LINK
            return
        size = _LINK_BYTES[kind]
        short = self.columns.caplen[rows] < (size or 1)
        if short.any():
            reason[rows[short]] = TRUNCATED
            rows = rows[~short]
        at = self.at[rows]
        if kind in _TYPE_AT:
            self.type[rows] = gather(self.data, at + _TYPE_AT[kind], _U2)["value"]
        elif kind == _NULL:
            self.type[rows] = _null_type(gather(self.data, at, _U4)["value"])
        else:
            first = np.frombuffer(self.data, np.uint8)[at]
            version = {_RAW4: 4, _RAW6: 6}.get(kind, first >> 4)
            self.type[rows] = np.where(version == 4, 0x0800, np.where(version == 6, 0x86DD, 0))
        self.at[rows] = at + size
        self._tags(rows)
        if kind == _ETHERNET:
            self._without_ip(rows)

    def _tags(self, rows: Rows) -> None:
        for depth in range(MAX_TAGS + 1):
            kind = self.type[rows]
            tagged = (kind == 0x8100) | (kind == 0x88A8) | (kind == 0x9100)
            if not tagged.any():
                return
            rows = rows[tagged]
            if depth == MAX_TAGS:
                self.w.reason[rows] = VLAN
                self.type[rows] = 0
                return
            rows = self._whole(rows, self.at[rows] + 4)
            tag = gather(self.data, self.at[rows], _TAG)
            if depth == 0:
                self.w.vlan[rows] = tag["control"] & 0x0FFF
            self.type[rows] = tag["type"]
            self.at[rows] += 4

    def _whole(self, rows: Rows, behind: Rows) -> Rows:
        """The rows whose header ends within the captured bytes; the others are truncated."""
        cut = behind > self.end[rows]
        if cut.any():
            self._reject(rows[cut], TRUNCATED)
            return rows[~cut]
        return rows

    def _reject(self, rows: Rows, reason: int) -> None:
        self.w.reason[rows] = reason
        self.type[rows] = 0

    def _without_ip(self, rows: Rows) -> None:
        kind = self.type[rows]
        other = (kind != 0x0800) & (kind != 0x86DD)
        if not other.any():
            return
        rows, kind = rows[other], kind[other]
        self.w.ethertype[rows], self.w.l4[rows] = kind, self.at[rows]
        for number, ethertype in enumerate(MAC_TYPES):
            of_it = kind == ethertype
            if of_it.any():
                self._mac_flow(rows[of_it], number)

    def _mac_flow(self, rows: Rows, number: int) -> None:
        w, start = self.w, self.columns.starts[rows]
        macs = gather(self.data, start, _MACS)
        w.sender[rows] = (macs["sh"].astype(np.uint64) << 48) | (macs["sl"].astype(np.uint64) << 16)
        w.receiver[rows] = (macs["dh"].astype(np.uint64) << 48) | (
            macs["dl"].astype(np.uint64) << 16
        )
        w.reason[rows], w.family[rows], w.protocol[rows] = METERED, MAC, number
        w.bytes[rows], w.l3[rows] = self.columns.wirelen[rows], start
        self.type[rows] = 0

    # ------------------------------------------------------------------------- network layer

    def _ip(self) -> None:
        kind = self.type
        pending = np.flatnonzero((kind == 0x0800) | (kind == 0x86DD))
        for level in range(MAX_TUNNELS + 1):
            four = self.type[pending] == 0x0800
            if four.all():
                self._four(pending)
            else:
                self._four(pending[four])
                self._six(pending[~four])
            pending = pending[self.w.reason[pending] == METERED]
            pending = pending[_IS_TUNNEL[self.w.protocol[pending]]]
            if not len(pending):
                return
            pending = self._inner(pending)
            if level == MAX_TUNNELS:
                self._reject(pending, TUNNEL)

    def _four(self, rows: Rows) -> None:
        w = self.w
        rows = self._whole(rows, self.at[rows] + 20)
        at = self.at[rows]
        ip = gather(self.data, at, _FOUR)
        size = (ip["first"] & 0x0F).astype(np.int64) * 4
        bad = (ip["first"] >> 4 != 4) | (size < 20)
        cut = at + size > self.end[rows]
        later = ip["fragment"] & 0x1FFF != 0
        if (bad | cut | later).any():
            w.reason[rows[later]] = FRAGMENT
            w.reason[rows[cut]] = TRUNCATED
            w.reason[rows[bad]] = BAD_HEADER
            good = ~(bad | cut | later)
            rows, at, ip, size = rows[good], at[good], ip[good], size[good]
        total = ip["length"].astype(np.int64)
        unsaid = total < size
        if unsaid.any():
            total = np.where(unsaid, self.wire_end[rows] - at, total)
        w.reason[rows], w.family[rows], w.protocol[rows] = METERED, IPV4, ip["protocol"]
        w.sender[rows] = ip["source"].astype(np.uint64) << np.uint64(16)
        w.receiver[rows] = ip["destination"].astype(np.uint64) << np.uint64(16)
        w.bytes[rows], w.l3[rows], w.l4[rows] = total, at, at + size

    def _six(self, rows: Rows) -> None:
        w = self.w
        rows = self._whole(rows, self.at[rows] + 40)
        at = self.at[rows]
        ip = gather(self.data, at, _SIX)
        bad = ip["first"] >> 4 != 6
        if bad.any():
            w.reason[rows[bad]] = BAD_HEADER
            rows, at, ip = rows[~bad], at[~bad], ip[~bad]
        if not len(rows):
            return
        length = ip["length"].astype(np.int64)
        total = np.where(length == 0, self.wire_end[rows] - at, length + 40)
        w.reason[rows], w.family[rows], w.protocol[rows] = METERED, IPV6, ip["next"]
        w.sender[rows], w.receiver[rows] = _mixed(ip["sh"], ip["sl"]), _mixed(ip["dh"], ip["dl"])
        w.bytes[rows], w.l3[rows], w.l4[rows] = total, at, at + 40
        self._extensions(rows)

    def _extensions(self, rows: Rows) -> None:
        w = self.w
        for depth in range(MAX_EXTENSIONS + 1):
            rows = rows[_IS_EXTENSION[w.protocol[rows]]]
            if not len(rows):
                return
            if depth == MAX_EXTENSIONS:
                self._reject(rows, EXTENSIONS)
                return
            # Its own length stands in its first eight bytes.
            rows = self._whole(rows, w.l4[rows] + 8)
            head = gather(self.data, w.l4[rows], _EXTENSION)
            kind = w.protocol[rows]
            length = head["length"].astype(np.int64)
            size = np.where(kind == 51, length * 4 + 8, length * 8 + 8)
            size[kind == 44] = 8
            whole = self._whole(rows, w.l4[rows] + size)
            kept = w.reason[rows] == METERED if len(whole) != len(rows) else slice(None)
            rows, head, kind, size = whole, head[kept], kind[kept], size[kept]
            w.protocol[rows] = head["next"]
            w.l4[rows] += size
            later = (kind == 44) & (head["fragment"] & 0xFFF8 != 0)
            if later.any():
                self._reject(rows[later], FRAGMENT)
                rows = rows[~later]

    def _inner(self, rows: Rows) -> Rows:
        """Rows whose tunnel carries IP, with type and place of what is inside."""
        w = self.w
        protocol = w.protocol[rows]
        inside = np.where(protocol == IPIP, 0x0800, 0x86DD).astype(np.uint16)
        skip = np.zeros(len(rows), np.int64)
        gre = protocol == GRE
        if gre.any():
            over = rows[gre]
            whole = w.l4[over] + 4 <= self.end[over]
            head = gather(self.data, np.where(whole, w.l4[over], 0), _TAG)
            flags = head["control"].astype(np.int64)
            size = 4 + 4 * (
                (flags & 0xC000 != 0).astype(np.int64) + (flags >> 13 & 1) + (flags >> 12 & 1)
            )
            whole &= w.l4[over] + np.where(whole, size, 4) <= self.end[over]
            carries = (head["type"] == 0x0800) | (head["type"] == 0x86DD)
            inside[gre] = np.where(whole & carries & (flags & 7 == 0), head["type"], 0)
            skip[gre] = size
            # A cut header may have carried anything.
            self._reject(over[~whole], TRUNCATED)
        rows, inside, skip = rows[inside > 0], inside[inside > 0], skip[inside > 0]
        self.type[rows] = inside
        self.at[rows] = w.l4[rows] + skip
        return rows

    # ------------------------------------------------------------------------- transport

    def _transport(self) -> None:
        w = self.w
        rows = np.flatnonzero((w.reason == METERED) & (w.family != MAC))
        rows = self._whole(rows, w.l4[rows] + _NEEDED[w.protocol[rows]])
        at, protocol = w.l4[rows], w.protocol[rows]
        head = gather(self.data, np.minimum(at, len(self.data) - 16), _PORTS)
        sport, dport = head["source"].astype(np.uint16), head["destination"].astype(np.uint16)
        plain = _HAS_PORTS[protocol]
        if not plain.all():
            icmp = np.flatnonzero(_IS_ICMP[protocol])
            icmp_sport, icmp_dport = _icmp_ports(sport[icmp], protocol[icmp] == ICMP6)
            sport, dport = np.where(plain, sport, 0), np.where(plain, dport, 0)
            sport[icmp], dport[icmp] = icmp_sport, icmp_dport
        w.sport[rows], w.dport[rows] = sport, dport
        w.sender[rows] |= sport
        w.receiver[rows] |= dport
        stop = np.minimum(w.l3[rows] + w.bytes[rows], self.end[rows])
        is_tcp, is_udp = protocol == TCP, protocol == UDP
        size = np.maximum(head["offset"] >> 4, 5).astype(np.int64) * 4
        payload = at + np.where(is_tcp, size, 8)
        length = np.where(is_tcp | is_udp, np.maximum(stop - payload, 0), 0)
        w.payload[rows], w.length[rows] = payload, length
        state = _STATE[(length > 0).astype(np.intp), head["flags"]]
        w.state[rows] = np.where(is_tcp, state, 0)
        w.seq[rows] = head["seq"]


def _null_type(family: NDArray[Any]) -> NDArray[np.uint16]:
    """Ethertype of a BSD loopback family, which stands in the byte order of who captured."""
    swapped = family.astype("<u4").byteswap()
    small = np.minimum(family, swapped)
    six = (small == 24) | (small == 28) | (small == 30) | (small == 10)
    return np.where(small == 2, 0x0800, np.where(six, 0x86DD, 0)).astype(np.uint16)


def _mixed(high: NDArray[Any], low: NDArray[Any]) -> Words:
    """An IPv6 address in the upper 48 bits of a word."""
    word = (high.astype(np.uint64) * _MIX_1) ^ (low.astype(np.uint64) + _MIX_2)
    word ^= word >> np.uint64(29)
    word *= _MIX_2
    word ^= word >> np.uint64(32)
    return word & np.uint64(0xFFFF_FFFF_FFFF_0000)


def _icmp_ports(
    both: NDArray[np.uint16], is_six: NDArray[np.bool_]
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    kind, code = both >> 8, both & 0xFF
    answer = _ANSWER[is_six.astype(np.intp), kind]
    return kind.astype(np.uint16), np.where(answer >= 0, answer, code).astype(np.uint16)
