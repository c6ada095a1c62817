"""Flows as events: who started it, how it ended, and what a flood is folded into.

References:
    Zeek, conn.log, `conn_state`, for the states of a connection.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cityward import Event, LogSource, Record
from collectors.packets.community_id import community_id
from collectors.packets.meter import ACTIVE, REASON_NAMES, Ended
from collectors.packets.walk import (
    FIN,
    ICMP,
    ICMP6,
    ICMP6_PAIRS,
    ICMP_PAIRS,
    IPV4,
    MAC,
    MAC_NAMES,
    MIX_1,
    MIX_2,
    RST,
    SCTP,
    SYN,
    SYN_ACK,
    TCP,
    UDP,
)

FLOW_SOURCE = LogSource(category="flow")
FLOW_NUMBER = 1_000_000
"""Number within its first frame of the first report of a flow; the next report has the next."""
FOLD_PER_S = 2_000
"""Unanswered flows of one second that are reported one by one."""
FOLDS_AT_ONCE = 2_000
"""Folded events of one sweep; if there were more, the fold gets coarser."""
SECONDS_KEPT = 1_024

TRANSPORTS = {
    1: "icmp",
    2: "igmp",
    6: "tcp",
    17: "udp",
    33: "dccp",
    46: "rsvp",
    47: "gre",
    50: "esp",
    51: "ah",
    58: "ipv6-icmp",
    88: "eigrp",
    89: "ospf",
    103: "pim",
    112: "vrrp",
    115: "l2tp",
    132: "sctp",
    136: "udplite",
}
"""IP protocol → keyword of the IANA registry, as ECS wants it."""
_PORTED = frozenset((TCP, UDP, SCTP))
_SYSTEM_PORTS = 1_024


class Flow(NamedTuple):
    """One row of the meter as plain values; side 0 is the lower end, 1 the higher."""

    first_frame: int
    first: int
    start: int
    last: int
    packets: list[int]
    octets: list[int]
    flags: int
    verdict: int
    reports: int
    turned: bool
    family: int
    protocol: int
    vlan: int
    sport: int
    dport: int
    addresses: bytes
    reason: int


def plain(ended: Ended) -> Iterator[Flow]:
    """Rows as plain values."""
    columns = [ended.flows[name].tolist() for name in Flow._fields[:-1]]
    return map(Flow._make, zip(*columns, ended.reasons.tolist(), strict=True))


def first_is_client(flow: Flow, known: frozenset[int]) -> bool:
    """Whether the first sender that was seen started the conversation.

    Who sent SYN did, who answered with SYN and ACK did not; else the side with an expected port is
    the server, or, if both spoke, the only one with a system port; else who spoke first.

    Args:
        flow: A flow with ports.
        known: Ports on which a decoder expects its server.
    """
    mine, other = flow.flags & 0xFF, flow.flags >> 8
    if flow.turned:
        mine, other = other, mine
    if (mine ^ other) & SYN:
        return mine & SYN > 0
    if (mine ^ other) & SYN_ACK:
        return other & SYN_ACK > 0
    sport, dport = flow.sport, flow.dport
    if (sport in known) != (dport in known):
        return dport in known
    if all(flow.packets) and (sport < _SYSTEM_PORTS) != (dport < _SYSTEM_PORTS):
        return dport < _SYSTEM_PORTS
    return True


def _state_of(asked: int, answered: int, has_answer: bool) -> str:
    """Zeek's state of a TCP connection from the state bits of both sides."""
    if asked & SYN:
        if answered & SYN_ACK:
            return _established(asked, answered)
        if answered & RST:
            return "REJ"
        if has_answer:
            return "OTH"
        return "RSTOS0" if asked & RST else "SH" if asked & FIN else "S0"
    if answered & SYN_ACK:
        return "RSTRH" if answered & RST else "SHR" if answered & FIN else "OTH"
    return "OTH"


def _established(asked: int, answered: int) -> str:
    if asked & answered & FIN:
        return "SF"
    if (asked | answered) & RST:
        return "RSTO" if asked & RST else "RSTR"
    return "S2" if asked & FIN else "S3" if answered & FIN else "S1"


def outcome_of(flow: Flow, client: int) -> tuple[str, str]:
    """Connection state, and outcome: success if answered, failure if TCP was reset or not answered.

    One-way traffic that expects no answer (multicast, syslog) is neither.

    Args:
        flow: A flow between IP addresses.
        client: Side of who started it.
    """
    asked, answered = flow.flags & 0xFF, flow.flags >> 8
    if client:
        asked, answered = answered, asked
    has_answer = flow.packets[not client] > 0
    both = has_answer and flow.packets[client] > 0
    if flow.protocol != TCP:
        state = "SF" if both else "SHR" if has_answer else "S0"
        if flow.protocol in (ICMP, ICMP6):
            state = "OTH"
        return state, "success" if both else "unknown"
    state = _state_of(asked, answered, has_answer)
    if state != "SF" and ((asked | answered) & RST or state in ("S0", "SH")):
        return state, "failure"
    return state, "success" if both else "unknown"


def address_text(raw: bytes, family: int) -> str:
    """An address as text; MAC addresses as ECS writes them (RFC 7042)."""
    if family == IPV4:
        return socket.inet_ntoa(raw[:4])
    if family == MAC:
        return raw[:6].hex("-").upper()
    return socket.inet_ntop(socket.AF_INET6, raw[:16])


def time_of(time_ns: int) -> datetime:
    """Epoch nanoseconds as a time; microseconds are kept exactly, what is finer is cut."""
    return datetime.fromtimestamp(time_ns // 1000 / 1e6, UTC)


def ends_fields(flow: Flow, client_first: bool) -> dict[str, Any]:
    """`source.*`, `destination.*` and `network.*`: what names a flow."""
    family, protocol = flow.family, flow.protocol
    one, two = flow.addresses[:16], flow.addresses[16:]
    texts = address_text(one, family), address_text(two, family)
    source, destination = texts if client_first else texts[::-1]
    fields: dict[str, Any]
    if family == MAC:
        fields = {
            "source.mac": source,
            "destination.mac": destination,
            "network.type": "arp" if protocol == 0 else MAC_NAMES[protocol],
            "network.protocol": MAC_NAMES[protocol],
        }
    else:
        size = 4 if family == IPV4 else 16
        fields = {
            "source.ip": source,
            "destination.ip": destination,
            "network.type": "ipv4" if family == IPV4 else "ipv6",
            "network.transport": TRANSPORTS.get(protocol, str(protocol)),
            "network.community_id": community_id(
                one[:size], two[:size], protocol, flow.sport, flow.dport
            ),
        }
        if protocol in _PORTED:
            ports = (flow.sport, flow.dport) if client_first else (flow.dport, flow.sport)
            fields["source.port"], fields["destination.port"] = ports
    if flow.vlan:
        fields["network.vlan.id"] = str(flow.vlan)
    return fields


class FlowEvents:
    """Makes events of flows, and folds floods."""

    def __init__(self, source: str, known: frozenset[int], names: Sequence[str]) -> None:
        """Begin.

        Args:
            source: Source id of the records.
            known: Ports on which a decoder expects its server.
            names: Name of the protocol for each verdict; empty for those that name none.
        """
        self.source, self.known, self.names = source, known, names
        self.folded = 0
        """Flows that were folded into others' events."""
        self._told: dict[int, int] = {}

    def events(self, ended: Ended, received: datetime) -> Iterator[Event]:
        """One event for each flow, but for those of a flood."""
        fold = self._to_fold(ended)
        if fold is None:
            for flow in plain(ended):
                yield self.event(flow, received)
            return
        for flow in plain(ended.where(~fold)):
            yield self.event(flow, received)
        self.folded += int(np.count_nonzero(fold))
        for folded in _folds(ended.where(fold)):
            yield self._fold(folded, received)

    def client_first(self, flow: Flow) -> bool:
        """Whether the first sender started it."""
        if flow.family == MAC or flow.protocol not in _PORTED:
            return True
        return first_is_client(flow, self.known)

    def event(self, flow: Flow, received: datetime) -> Event:
        """The event of one flow, or of a report on it."""
        client_first = self.client_first(flow)
        client = int(flow.turned == client_first)
        server = 1 - client
        fields = ends_fields(flow, client_first)
        vendor: dict[str, Any] = {}
        outcome = "success" if all(flow.packets) else "unknown"
        if flow.family != MAC:
            vendor["conn_state"], outcome = outcome_of(flow, client)
            if flow.protocol in (ICMP, ICMP6):
                vendor["icmp_type"] = flow.sport
                if flow.sport not in (ICMP_PAIRS if flow.protocol == ICMP else ICMP6_PAIRS):
                    vendor["icmp_code"] = flow.dport
        if flow.reports or flow.reason == ACTIVE:
            vendor["report"] = flow.reports + 1
        end_ns = max(flow.start, flow.last)
        end = time_of(end_ns)
        name = self.names[flow.verdict]
        if name:
            fields["network.protocol"] = fields["network.application"] = name
        fields["event.action"] = "flow_continues" if flow.reason == ACTIVE else "flow_ended"
        fields["event.category"] = ["network"]
        fields["event.dataset"] = "packets.flow"
        fields["event.outcome"] = outcome
        fields["event.reason"] = REASON_NAMES[flow.reason]
        fields["event.start"], fields["event.end"] = time_of(flow.start), end
        fields["event.duration"] = end_ns - flow.start
        fields["source.packets"], fields["source.bytes"] = flow.packets[client], flow.octets[client]
        fields["destination.packets"] = flow.packets[server]
        fields["destination.bytes"] = flow.octets[server]
        fields["network.packets"], fields["network.bytes"] = sum(flow.packets), sum(flow.octets)
        if vendor:
            fields["cw.vendor"] = vendor
        record = Record(b"", self.source, flow.first_frame, received)
        return Event(end, FLOW_SOURCE, fields, record, FLOW_NUMBER + flow.reports)

    # ------------------------------------------------------------------------- floods

    def _to_fold(self, ended: Ended) -> Any | None:
        """Which of these flows are beyond what a second may report; None if none is."""
        flows = ended.flows
        lonely = (flows["packets"] == 0).any(axis=1) & (flows["family"] != MAC)
        lonely &= (ended.reasons != ACTIVE) & (flows["reports"] == 0)
        positions = np.flatnonzero(lonely)
        if not len(positions):
            return None
        positions = positions[np.argsort(flows["first_frame"][positions])]
        seconds = flows["start"][positions] // 1_000_000_000
        fold = np.zeros(len(flows), np.bool_)
        every, counts = np.unique(seconds, return_counts=True)
        for second, count in zip(every.tolist(), counts.tolist(), strict=True):
            told = self._told.get(second, 0)
            if told + count > FOLD_PER_S:
                fold[positions[seconds == second][max(0, FOLD_PER_S - told) :]] = True
            self._told[second] = min(FOLD_PER_S, told + count)
        while len(self._told) > SECONDS_KEPT:
            del self._told[next(iter(self._told))]
        return fold if fold.any() else None

    def _fold(self, fold: Fold, received: datetime) -> Event:
        first = fold.first
        end_ns = max(fold.start, fold.last)
        fields: dict[str, Any] = {
            "event.action": "flow_ended",
            "event.category": ["network"],
            "event.dataset": "packets.flow",
            "event.outcome": "failure" if first.protocol == TCP else "unknown",
            "event.reason": "folded",
            "event.start": time_of(fold.start),
            "event.end": time_of(end_ns),
            "event.duration": end_ns - fold.start,
            "source.packets": fold.packets,
            "source.bytes": fold.octets,
            "network.type": "ipv4" if first.family == IPV4 else "ipv6",
            "network.transport": TRANSPORTS.get(first.protocol, str(first.protocol)),
            "network.packets": fold.packets,
            "network.bytes": fold.octets,
            "cw.vendor": {
                "conn_state": "S0" if first.protocol == TCP else "OTH",
                "flows": fold.flows,
                "sources": fold.sources,
                "destinations": fold.destinations,
                "ports": fold.ports,
            },
        }
        if fold.sources == 1:
            fields["source.ip"] = address_text(first.addresses[:16], first.family)
        if fold.destinations == 1:
            fields["destination.ip"] = address_text(first.addresses[16:], first.family)
        if fold.ports == 1 and first.protocol in _PORTED:
            fields["destination.port"] = first.dport
        record = Record(b"", self.source, first.first_frame, received)
        return Event(time_of(end_ns), FLOW_SOURCE, fields, record, FLOW_NUMBER)


class Fold(NamedTuple):
    """Flows that became one event."""

    first: Flow
    """The one that began first."""
    start: int
    last: int
    packets: int
    octets: int
    flows: int
    sources: int
    destinations: int
    ports: int


def _folds(ended: Ended) -> Iterator[Fold]:
    """Groups by destination, port and second; coarser if they are too many.

    All of a group have the same family and protocol. The rows are in the order of first frames.
    """
    flows = ended.flows
    words = np.frombuffer(flows["addresses"].tobytes(), np.uint64).reshape(-1, 4)
    source, destination = _mixed(words[:, 0], words[:, 1]), _mixed(words[:, 2], words[:, 3])
    kind = _mixed(flows["family"], flows["protocol"])
    second, port = flows["start"] // 1_000_000_000, flows["dport"]
    key = kind
    for columns in (
        (destination, port, second),
        (destination, second),
        (source, second),
        (second,),
        (),
    ):
        key = _mixed(kind, *columns)
        if len(np.unique(key)) <= FOLDS_AT_ONCE:
            break
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    order = np.argsort(group, kind="stable")
    heads = np.flatnonzero(np.diff(group[order], prepend=-1))
    sums = (
        np.minimum.reduceat(flows["start"][order], heads),
        np.maximum.reduceat(flows["last"][order], heads),
        np.add.reduceat(flows["packets"].sum(axis=1)[order], heads),
        np.add.reduceat(flows["octets"].sum(axis=1)[order], heads),
        np.bincount(group),
        *(_distinct(group, values) for values in (source, destination, port)),
    )
    begun = plain(Ended(flows[first], ended.reasons[first]))
    rows = zip(begun, *(column.tolist() for column in sums), strict=True)
    return iter(sorted((Fold(*row) for row in rows), key=lambda fold: fold.first.first_frame))


def _mixed(*columns: NDArray[Any]) -> NDArray[np.uint64]:
    """Several columns in one word each."""
    word = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        word ^= column.astype(np.uint64)
        word *= np.uint64(MIX_1)
        word ^= word >> np.uint64(29)
        word *= np.uint64(MIX_2)
        word ^= word >> np.uint64(32)
    return word


def _distinct(group: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """How many different values each group has."""
    _, first = np.unique(_mixed(group, values), return_index=True)
    return np.bincount(group[first])
