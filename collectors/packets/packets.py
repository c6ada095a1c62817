"""Captures and interfaces: packets in, flows and the messages of their protocols out.

Send: mirror a switch port to an interface of this node (`reader = "interface"`, CAP_NET_RAW), read
a pcap or pcapng file (`reader = "capture"`), or run `cityward collect` where the traffic is.

Understood: Ethernet with up to three VLAN tags, Linux cooked and raw IP captures, IPv4 and IPv6
with their extension headers, GRE and IP in IP; a flow with bytes, packets, flags and community id
when it ends, or every five minutes; the protocols below.

Not understood: later fragments of an IP packet, encrypted tunnels, Wi-Fi and serial captures; they
are counted by reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cityward import Event, Record, collector, plugin
from collectors.packets.capture import Chunk
from collectors.packets.flows import FLOW_SOURCE, FlowEvents, plain
from collectors.packets.link import Links
from collectors.packets.meter import ACTIVE, SLOTS, Meter
from collectors.packets.streams import LOOKS, Registry, Streams
from collectors.packets.walk import LINK, METERED, REASONS, Walked, walk

CAPTURE_MAGIC = (
    b"\xd4\xc3\xb2\xa1",
    b"\xa1\xb2\xc3\xd4",
    b"\x4d\x3c\xb2\xa1",
    b"\xa1\xb2\x3c\x4d",
    b"\x0a\x0d\x0d\x0a",
)
"""First bytes of pcap (µs and ns, both byte orders) and pcapng."""


def is_capture(head: bytes) -> bool:
    """Whether a file is a capture."""
    return head[:4] in CAPTURE_MAGIC


@collector(FLOW_SOURCE, framing="packets", looks_like=is_capture, strength=100)
class Packets:
    """Meters every packet and decodes the protocols it knows, of one source."""

    def __init__(
        self,
        decoders: Mapping[str, Any] | None = None,
        *,
        slots: int = SLOTS,
        vlan_in_key: bool = False,
    ) -> None:
        """Begin with an empty table of flows.

        Args:
            decoders: Decoder classes by name; None for all registered ones, `{}` for flows only.
            slots: Flows that are metered at the same time.
            vlan_in_key: The same addresses in two VLANs are two flows.
        """
        self.registry = Registry(plugin.load("decoders") if decoders is None else decoders)
        self.meter = Meter(
            slots, vlan_in_key=vlan_in_key, hinted=self.registry.hinted(), looks=LOOKS
        )
        self.flows = FlowEvents("", self.registry.ports, self.registry.names)
        self.streams = Streams(self.registry, self.meter, self.flows)
        self.links = Links(self.registry)
        self.packets = 0
        self.rejected: dict[str, int] = {}
        """Packets of no flow, by reason."""
        self._is_live = False
        self._received: datetime | None = None
        self._links: set[int] = set()

    def __call__(self, records: Iterable[Record]) -> Iterator[Event]:
        """Read a chunk."""
        if isinstance(records, Chunk):
            return self._read(records)
        return (Event.malformed(one, FLOW_SOURCE, "no chunk of packets") for one in records)

    def tick(self, now: datetime) -> Iterator[Event]:
        """End flows of an interface on which nothing comes; a capture has its own time."""
        if self._is_live:
            now_ns = int(now.timestamp() * 1e9)
            self.meter.sweep(now_ns)
            yield from self._ended()
            yield from self.links.sweep(now_ns, self._at())

    def end(self) -> Iterator[Event]:
        """The source ended, and so does every flow."""
        self.meter.end()
        yield from self._ended()
        yield from self.links.end(self._at())

    @property
    def counts(self) -> dict[str, int]:
        """`packets` = `merged` + the sum of `rejected.*`; the rest says what else happened."""
        meter, streams, links = self.meter, self.streams, self.links
        return {
            "packets": self.packets,
            "merged": meter.merged,
            **{f"rejected.{reason}": count for reason, count in self.rejected.items()},
            "flows": meter.flows,
            "flows_open": len(meter),
            "flows_evicted": meter.evicted,
            "flows_folded": self.flows.folded,
            "hash_collisions": meter.collisions,
            "streams_open": len(streams.open),
            "streams_crowded_out": streams.crowded,
            "links_open": len(links.open),
            "links_crowded_out": links.crowded,
            "tcp_gaps": streams.gaps,
            "tcp_overlaps": streams.overlaps,
            "decoder_faults": streams.broken + links.broken,
        }

    def _read(self, chunk: Chunk) -> Iterator[Event]:
        if not len(chunk):
            return
        self.flows.source = chunk.source
        self._received, self._is_live = chunk.received, chunk.live
        walked = walk(chunk)
        yield from self.links.decode(chunk, walked)
        yield from self._count(chunk, walked)
        for merged, first in self.meter.add(chunk, walked):
            if len(first.rows):
                yield from self.streams.decode(chunk, walked, merged, first)
        yield from self._ended()
        yield from self.links.sweep(int(chunk.columns.time_ns[-1]), chunk.received)

    def _at(self) -> datetime:
        """When the last packets were received."""
        return self._received or datetime.fromtimestamp(0, UTC)

    def _count(self, chunk: Chunk, walked: Walked) -> Iterator[Event]:
        self.packets += len(chunk)
        for reason, count in enumerate(np.bincount(walked.reason).tolist()):
            if count and reason != METERED:
                name = REASONS[reason]
                self.rejected[name] = self.rejected.get(name, 0) + count
        rows = np.flatnonzero(walked.reason == LINK)
        kinds, first = np.unique(chunk.columns.link[rows], return_index=True)
        for kind, row in zip(kinds.tolist(), rows[first].tolist(), strict=True):
            if kind not in self._links:
                self._links.add(kind)
                why = f"link type {kind} is not known: its packets are counted, not metered"
                yield Event.malformed(chunk[row], FLOW_SOURCE, why)

    def _ended(self) -> Iterator[Event]:
        received = self._at()
        ended = self.meter.take_ended()
        if ended is None:
            return
        if self.streams.open:
            rows = list(plain(ended))
            ended.flows["verdict"] = [self.streams.verdict(flow) for flow in rows]
            over = [flow.first_frame for flow in rows if flow.reason != ACTIVE]
            yield from self.streams.close(over, received)
        yield from self.flows.events(ended, received)
