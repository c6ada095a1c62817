"""Payload to decoders: recognise a protocol by its structure, put TCP in order, make events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cityward import Event, LogSource, Record
from cityward.plugin import DecoderSpec, Session
from collectors.packets.capture import Chunk
from collectors.packets.flows import Flow, FlowEvents, ends_fields, time_of
from collectors.packets.meter import NOT_ENDED, REFUSED, Merged, Meter, Pick, pick_rest
from collectors.packets.reassembly import Budget, Direction
from collectors.packets.walk import SYN, SYN_ACK, TCP, UDP, Walked

MAX_STREAMS = 65_536
"""Conversations that are decoded or about to be recognised; the oldest gives way."""
MAX_DECODERS = 254
LOOKS = 3
"""First payload packets of a flow that are looked at on ports nobody expects."""
HINTED_LOOKS = 16
"""The same on an expected port, where a capture may begin within a message."""
HEAD_BYTES = 4_096
"""As much is kept of a direction until its protocol is recognised."""
REST_BYTES = 65_536
"""As much may a decoder leave unconsumed."""
END_NUMBER = 2_000_000
"""Number within the first frame of its flow of the first event without a frame of its own."""
_WORD = 0xFFFF_FFFF

Messages = Sequence[dict[str, Any]]


class Known(NamedTuple):
    """A decoder class and what it says of itself."""

    verdict: int
    make: Any
    spec: DecoderSpec


class Registry:
    """The decoders there are, where they are expected and how they begin."""

    def __init__(self, decoders: Mapping[str, Any]) -> None:
        made = [
            Known(number, make, make.cityward_spec)
            for number, (_, make) in enumerate(sorted(decoders.items()), 1)
        ][:MAX_DECODERS]
        self.names = [""] * 256
        """Protocol for each verdict."""
        for known in made:
            self.names[known.verdict] = known.spec.name
        self.ports = frozenset(port for known in made for port in known.spec.ports)
        self.links: dict[int, list[Known]] = {}
        """Ethertype → decoders of such frames."""
        for known in made:
            for ethertype in known.spec.ethertypes if "link" in known.spec.transports else ():
                self.links.setdefault(ethertype, []).append(known)
        self._begin: dict[int, list[tuple[Known, ...]]] = {}
        """IP protocol → for each first byte the decoders that may begin so."""
        self._expected: dict[int, set[int]] = {}
        """IP protocol → ports on which a decoder expects its server."""
        for number, name in ((TCP, "tcp"), (UDP, "udp")):
            carried = [known for known in made if name in known.spec.transports]
            self._begin[number] = [
                tuple(known for known in carried if may_begin(known, first)) for first in range(256)
            ]
            self._expected[number] = {port for known in carried for port in known.spec.ports}

    def hinted(self) -> NDArray[np.bool_] | None:
        """For each port whether a protocol is expected there; None if no payload is decoded."""
        if not any(any(begin) for begin in self._begin.values()):
            return None
        found = np.zeros(65_536, np.bool_)
        found[[port for port in self.ports if 0 <= port < 65_536]] = True
        return found

    def expects(self, protocol: int, sport: int, dport: int) -> bool:
        """Whether a decoder of this transport expects its server on one of the ports."""
        ports = self._expected.get(protocol, ())
        return sport in ports or dport in ports

    def recognise(self, protocol: int, sport: int, dport: int, head: bytes) -> Known | None:
        """Who takes this head for its own; who expects one of the ports is asked first."""
        begin = self._begin.get(protocol)
        able: Sequence[Known] = begin[head[0]] if begin and head else ()
        if len(able) > 1 and self.expects(protocol, sport, dport):
            able = sorted(able, key=lambda known: not is_expected(known, sport, dport))
        return first_that_recognises(able, head)


def may_begin(known: Known, first: int) -> bool:
    """Whether a conversation of this protocol may begin with a byte."""
    return not known.spec.begins or first in known.spec.begins


def is_expected(known: Known, sport: int, dport: int) -> bool:
    """Whether a decoder expects its server on one of the ports."""
    return sport in known.spec.ports or dport in known.spec.ports


def first_that_recognises(candidates: Sequence[Known], head: bytes) -> Known | None:
    """The first of these decoders that takes a head for its own."""
    for known in candidates:
        try:
            if known.make.recognises(head):
                return known
        except Exception:
            continue
    return None


class Stream:
    """One conversation whose payload is looked at."""

    __slots__ = (
        "client",
        "count",
        "decoder",
        "flow",
        "frame",
        "known",
        "looks",
        "sides",
        "slot",
        "stuck",
        "time_ns",
    )

    def __init__(self, flow: Flow, slot: int, budget: Budget) -> None:
        self.flow, self.slot = flow, slot
        self.decoder: Any = None
        self.known: Known | None = None
        self.client = False
        """Which direction is the client's: True is the higher end's."""
        self.looks = HINTED_LOOKS
        self.sides = (Direction(budget), Direction(budget))
        self.frame, self.time_ns = flow.first_frame, flow.first
        self.count = 0
        """Events made of `frame`."""
        self.stuck: bool | None = None
        """The direction whose first segment is missing while later ones wait for it."""


class Streams:
    """All conversations of one source."""

    def __init__(self, registry: Registry, meter: Meter, flows: FlowEvents) -> None:
        self.registry, self.meter, self.flows = registry, meter, flows
        self.max_streams = MAX_STREAMS
        self.open: dict[int, Stream] = {}
        """First frame of the flow → conversation; never more than flows in the meter."""
        self.budget = Budget()
        self.gaps = self.overlaps = self.broken = self.crowded = 0
        self._refused: set[int] = set()
        self._fresh: list[int] = []
        self._starts: dict[int, dict[bool, int]] = {}
        """First frame of a flow without payload so far → sequence number of each side's SYN."""

    def decode(self, chunk: Chunk, w: Walked, merged: Merged, first: Pick) -> list[Event]:
        """Events of the payload of a chunk."""
        self._refused, self._fresh = set(), []
        out: list[Event] = []
        self._run(chunk, w, first, out)
        if self._fresh:
            # What was recognised just now has more payload here than its first looks.
            self._run(chunk, w, pick_rest(merged, self._fresh), out)
        return out

    def close(self, uids: Iterable[int], received: datetime) -> Iterator[Event]:
        """End conversations: what waited behind gaps is decoded, and the decoder has its say."""
        for uid in uids:
            stream = self.open.pop(uid, None)
            if stream is not None:
                yield from self._close(stream, received)

    def verdict(self, flow: Flow) -> int:
        """What a flow speaks, also where it ended in the chunk in which it was recognised."""
        stream = self.open.get(flow.first_frame)
        return stream.known.verdict if stream and stream.known else flow.verdict

    def _run(self, chunk: Chunk, w: Walked, some: Pick, out: list[Event]) -> None:
        """One packet after the other; the common case, in order and decoded, stays here."""
        rows = some.rows
        columns = (
            *(rows, some.slots, some.uids, some.direction, w.protocol[rows], w.seq[rows]),
            *(w.state[rows], w.payload[rows], w.length[rows], chunk.columns.time_ns[rows]),
        )
        data, streams, refused, base = chunk.data, self.open, self._refused, chunk.frame
        source, received = chunk.source, chunk.received
        for row, slot, uid, side, protocol, number, state, at, size, time_ns in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            stream = streams.get(uid)
            if stream is None:
                if not size or uid in refused:
                    if state & (SYN | SYN_ACK):
                        self._note(uid, side, number)
                    continue
                stream = self._begin(w, row, slot, uid, data[at : at + size])
                if stream is None:
                    continue
            frame = base + row
            stream.frame, stream.time_ns, stream.count = frame, time_ns, 0
            direction, payload = stream.sides[side], data[at : at + size]
            if protocol == TCP:
                seq = number
                if state & (SYN | SYN_ACK):
                    if direction.syn(number):
                        self._gap(stream, side)
                    seq = number + 1 & _WORD
                if not size:
                    continue
                if stream.stuck is not None and stream.stuck is not side:
                    # Nobody answers what has not arrived: it was lost on the way to us alone.
                    late, stream.stuck = stream.sides[not side], None
                    record = Record(b"", source, frame, received)
                    self._deliver(stream, not side, late.flush(once=True), record, out)
                if seq != direction.next or direction.held:
                    record = Record(b"", source, frame, received)
                    self._deliver(stream, side, direction.accept(seq, payload), record, out)
                    stream.stuck = side if direction.is_stuck() else None
                    continue
                direction.next = seq + size & _WORD
            elif not size:
                continue
            if stream.decoder is None or direction.rest:
                self._piece(stream, side, payload, Record(b"", source, frame, received), out)
                continue
            used, messages = self._feed(stream, payload, side)
            if messages:
                self._tell(stream, messages, Record(b"", source, frame, received), out)
            if used < size and protocol == TCP:
                self._keep(stream, side, payload, used)

    # ------------------------------------------------------------------------- recognition

    def _note(self, uid: int, side: bool, seq: int) -> None:
        """Keep where a direction begins until its flow has payload; the oldest gives way."""
        if uid not in self._starts and len(self._starts) >= self.max_streams:
            del self._starts[next(iter(self._starts))]
        self._starts.setdefault(uid, {})[side] = seq

    def _begin(self, w: Walked, row: int, slot: int, uid: int, head: bytes) -> Stream | None:
        """Follow a flow if its payload shows what it is, or if its port says to wait for more."""
        which = w.protocol.item(row), w.sport.item(row), w.dport.item(row)
        known = self.registry.recognise(*which, head)
        if known is None and not self.registry.expects(*which):
            return None
        flow = self._flow(slot, uid)
        stream = Stream(flow, slot, self.budget)
        stream.client = flow.turned == self.flows.client_first(flow)
        for side, seq in self._starts.pop(uid, {}).items():
            stream.sides[side].syn(seq)
        while len(self.open) >= self.max_streams:
            self.crowded += 1
            self._refuse(next(iter(self.open)))
        self.open[uid] = stream
        if known is not None:
            self._become(stream, known)
        return stream

    def _flow(self, slot: int, uid: int) -> Flow:
        column = self.meter.column
        values = [column[name][slot].tolist() for name in Flow._fields[:-1]]
        return Flow._make([*values, NOT_ENDED])._replace(first_frame=uid)

    def _become(self, stream: Stream, known: Known) -> None:
        flow = stream.flow
        fields = ends_fields(flow, flow.turned == stream.client)
        fields["network.protocol"] = known.spec.name
        fields["event.dataset"] = f"packets.{known.spec.name}"
        client, server = (
            f"{fields[f'{end}.ip']}:{fields[f'{end}.port']}" for end in ("source", "destination")
        )
        stream.known = known
        stream.decoder = known.make(Session(fields, client, server))
        self.meter.decide(stream.slot, flow.first_frame, known.verdict)
        self._fresh.append(flow.first_frame)

    def _refuse(self, uid: int) -> None:
        stream = self.open.pop(uid, None)
        if stream is None:
            return  # its flow has ended, and what waited behind a gap shows no protocol
        for direction in stream.sides:
            self._drop(direction)
        self.meter.decide(stream.slot, uid, REFUSED)
        self._refused.add(uid)

    def _drop(self, direction: Direction) -> None:
        self.gaps += direction.lost
        self.overlaps += direction.overlaps
        direction.close()

    # ------------------------------------------------------------------------- bytes in order

    def _deliver(
        self, stream: Stream, side: int, pieces: Iterator[bytes | None], record: Record,
        out: list[Event],
    ) -> None:  # fmt: skip
        for piece in pieces:
            if piece is None:
                self._gap(stream, side)
            else:
                self._piece(stream, side, piece, record, out)

    def _gap(self, stream: Stream, side: int) -> None:
        stream.sides[side].keep(b"")
        if stream.decoder is not None:
            try:
                stream.decoder.gap(side == stream.client)
            except Exception:
                self.broken += 1

    def _piece(
        self, stream: Stream, side: int, data: bytes, record: Record, out: list[Event]
    ) -> None:
        direction = stream.sides[side]
        if stream.decoder is None:
            self._wait(stream, side, data, record, out)
            return
        if direction.rest:
            data = direction.rest + data
        used, messages = self._feed(stream, data, side)
        if messages:
            self._tell(stream, messages, record, out)
        if used < len(data) and stream.flow.protocol == TCP:
            self._keep(stream, side, data, used)
        elif direction.rest:
            direction.keep(b"")

    def _keep(self, stream: Stream, side: int, data: bytes, used: int) -> None:
        """The decoder wants more behind what it has not consumed; there is a bound to that."""
        direction = stream.sides[side]
        rest = data[used:] if used > 0 else data
        direction.keep(rest)
        if len(rest) > REST_BYTES or self.budget.bytes > self.budget.max_bytes:
            direction.lost += 1
            self._gap(stream, side)

    def _feed(self, stream: Stream, data: bytes, side: int) -> tuple[int, Messages]:
        """A decoder promises never to raise; one that does is heard no more on this flow."""
        try:
            used, messages = stream.decoder.feed(
                data, side == stream.client, stream.time_ns / 1e9, stream.frame
            )
        except Exception as error:
            return len(data), [self._fault(stream, error)]
        return used, messages

    def _fault(self, stream: Stream, error: Exception) -> dict[str, Any]:
        self.broken += 1
        if stream.flow.first_frame in self.open:
            self._refuse(stream.flow.first_frame)
        name = stream.known.spec.name if stream.known else ""
        return {
            **ends_fields(stream.flow, stream.flow.turned == stream.client),
            "network.protocol": name,
            "event.kind": "pipeline_error",
            "event.action": "unreadable",
            "event.outcome": "failure",
            "event.reason": f"the decoder of {name} failed: {error!r}"[:1000],
        }

    def _wait(
        self, stream: Stream, side: int, data: bytes, record: Record, out: list[Event]
    ) -> None:
        """Bytes on an expected port of which it is not yet clear what they are."""
        direction, flow = stream.sides[side], stream.flow
        which = flow.protocol, flow.sport, flow.dport
        head = direction.rest + data if flow.protocol == TCP else data
        known = self.registry.recognise(*which, head)
        if known is None and direction.rest:
            # A capture may begin within a message: then a later segment begins with one.
            known, head = self.registry.recognise(*which, data), data
        if known is None:
            stream.looks -= 1
            if stream.looks <= 0:
                self._refuse(flow.first_frame)
            elif flow.protocol == TCP:
                direction.keep((direction.rest + data)[-HEAD_BYTES:])
            return
        direction.keep(b"")
        self._become(stream, known)
        other = stream.sides[not side].rest
        stream.sides[not side].keep(b"")
        if other:
            self._piece(stream, not side, other, record, out)
        self._piece(stream, side, head, record, out)

    def _tell(self, stream: Stream, messages: Messages, record: Record, out: list[Event]) -> None:
        assert stream.known is not None
        when, logsource = time_of(stream.time_ns), stream.known.spec.logsource
        for number, fields in enumerate(messages, stream.count):
            # What travels inside another protocol has a log source of its own.
            own = _logsource(fields) if "cw.logsource.service" in fields else logsource
            out.append(Event(when, own, fields, record, number))
        stream.count += len(messages)

    def _close(self, stream: Stream, received: datetime) -> list[Event]:
        out: list[Event] = []
        record = Record(b"", self.flows.source, stream.flow.first_frame, received)
        stream.count = END_NUMBER
        for side in (0, 1):
            self._deliver(stream, side, stream.sides[side].flush(), record, out)
        if stream.decoder is not None:
            try:
                self._tell(stream, stream.decoder.end(), record, out)
            except Exception as error:
                self._tell(stream, [self._fault(stream, error)], record, out)
        for direction in stream.sides:
            self._drop(direction)
        return out


def _logsource(fields: Mapping[str, Any]) -> LogSource:
    parts = ("category", "product", "service")
    return LogSource(*(fields.get(f"cw.logsource.{part}", "") for part in parts))
