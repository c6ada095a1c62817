"""Frames without IP to decoders: who sends frames of one kind says them in one conversation.

Which frames these are is asked for all of a chunk at once; only they go on one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np

from cityward import Event, Record
from cityward.plugin import Session
from collectors.packets.capture import Chunk
from collectors.packets.flows import time_of
from collectors.packets.gather import gather
from collectors.packets.streams import (
    END_NUMBER,
    Known,
    Messages,
    Registry,
    first_that_recognises,
)
from collectors.packets.walk import DECODED, MAC_TYPES, OTHER_L3, Walked

MAX_CONVERSATIONS = 8_192
"""Of all kinds; the one that was silent longest gives way, which is counted."""
IDLE_NS = 300_000_000_000
"""Silence that ends a conversation, by the clock of the packets."""

_MACS = np.dtype([("to", "V6"), ("of", "V6")])

Key = tuple[int, bytes, int]
"""Number of the decoder, sender, VLAN."""


class Conversation:
    """What one sender says in frames of one kind."""

    __slots__ = ("base", "decoder", "frame", "known", "last_ns", "to")

    def __init__(self, known: Known, base: dict[str, Any], to: bytes, frame: int) -> None:
        self.known, self.base, self.to, self.frame = known, base, to, frame
        self.last_ns = 0
        self.decoder: Any = known.make(Session(base, base["source.mac"], base["destination.mac"]))
        """None after it broke its promise never to raise."""


class Links:
    """All conversations without IP of one source."""

    def __init__(self, registry: Registry) -> None:
        self.decoders = registry.links
        self.max_conversations = MAX_CONVERSATIONS
        self.open: dict[Key, Conversation] = {}
        """By their last frame, the latest at the end."""
        self.crowded = self.broken = 0
        self.source = ""
        self._is_ours = np.zeros(65_536, np.bool_)
        self._is_ours[[kind for kind in self.decoders if 0 < kind < 65_536]] = True

    def decode(self, chunk: Chunk, w: Walked) -> Iterator[Event]:
        """Events of the frames that have a decoder; those of no flow get their own reason."""
        rows = np.flatnonzero(self._is_ours[w.ethertype])
        if not len(rows):
            return
        self.source = chunk.source
        w.reason[rows[w.reason[rows] == OTHER_L3]] = DECODED
        columns = chunk.columns
        starts = columns.starts[rows]
        macs = gather(chunk.data, starts, _MACS)
        for row, kind, vlan, to, of, at, end, time_ns in zip(
            rows.tolist(),
            *(w.ethertype[rows].tolist(), w.vlan[rows].tolist()),
            *(macs["to"].tolist(), macs["of"].tolist()),
            *(w.l4[rows].tolist(), (starts + columns.caplen[rows]).tolist()),
            columns.time_ns[rows].tolist(),
            strict=True,
        ):
            data, frame = bytes(chunk.data[at:end]), chunk.frame + row
            known = self._known(kind, data)
            key = known.verdict, of, vlan
            conversation = self.open.pop(key, None)
            if conversation is None:
                if len(self.open) >= self.max_conversations:
                    self.crowded += 1
                    yield from self._close(next(iter(self.open)), chunk.received)
                conversation = Conversation(known, _base(known, kind, of, to, vlan), to, frame)
            self.open[key] = conversation
            conversation.last_ns = time_ns
            messages = self._feed(conversation, data, time_ns, frame)
            if messages:
                if to != conversation.to:
                    messages = _addressed(messages, conversation, to)
                record = Record(b"", chunk.source, frame, chunk.received)
                yield from _told(conversation, messages, record, 0)

    def sweep(self, now_ns: int, received: datetime) -> Iterator[Event]:
        """End what was silent for long; a clock that jumps ends conversations too."""
        while self.open:
            key, oldest = next(iter(self.open.items()))
            if abs(now_ns - oldest.last_ns) <= IDLE_NS:
                return
            yield from self._close(key, received)

    def end(self, received: datetime) -> Iterator[Event]:
        """The source ended."""
        for key in list(self.open):
            yield from self._close(key, received)

    def _known(self, kind: int, data: bytes) -> Known:
        """Whose frame it is; where nobody recognises it the first reads it, and says what it is."""
        candidates = self.decoders[kind]
        if len(candidates) == 1:
            return candidates[0]
        return first_that_recognises(candidates, data) or candidates[0]

    def _feed(self, one: Conversation, data: bytes, time_ns: int, frame: int) -> Messages:
        """A decoder promises never to raise; one that does is heard no more on this."""
        if one.decoder is None:
            return ()
        try:
            messages: Messages = one.decoder.feed(data, True, time_ns / 1e9, frame)[1]
        except Exception as error:
            return [self._fault(one, error)]
        return messages

    def _close(self, key: Key, received: datetime) -> Iterator[Event]:
        one = self.open.pop(key)
        if one.decoder is None:
            return
        try:
            messages = one.decoder.end()
        except Exception as error:
            messages = [self._fault(one, error)]
        record = Record(b"", self.source, one.frame, received)
        yield from _told(one, messages, record, END_NUMBER)

    def _fault(self, one: Conversation, error: Exception) -> dict[str, Any]:
        self.broken += 1
        one.decoder = None
        return {
            **one.base,
            "event.kind": "pipeline_error",
            "event.action": "unreadable",
            "event.outcome": "failure",
            "event.reason": f"the decoder of {one.known.spec.name} failed: {error!r}"[:1000],
        }


def _told(one: Conversation, messages: Messages, record: Record, number: int) -> Iterator[Event]:
    when, logsource = time_of(one.last_ns), one.known.spec.logsource
    for at, fields in enumerate(messages, number):
        yield Event(when, logsource, fields, record, at)


def _base(known: Known, kind: int, of: bytes, to: bytes, vlan: int) -> dict[str, Any]:
    name = known.spec.name
    fields = {
        "source.mac": of.hex("-").upper(),
        "destination.mac": to.hex("-").upper(),
        "network.type": MAC_TYPES.get(kind, f"0x{kind:04x}"),
        "network.protocol": name,
        "event.dataset": f"packets.{name}",
    }
    if vlan:
        fields["network.vlan.id"] = str(vlan)
    return fields


def _addressed(messages: Messages, one: Conversation, to: bytes) -> Messages:
    """This frame goes to another address than the first one of its conversation."""
    first, here = one.base["destination.mac"], to.hex("-").upper()
    return [
        {**fields, "destination.mac": here} if fields.get("destination.mac") == first else fields
        for fields in messages
    ]
