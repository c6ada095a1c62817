"""Gaps in the sequence numbers of exporters, who count three things in the same field.

References:
    Cisco, "NetFlow Export Datagram Format" (version 5 counts flows); RFC 3954, 5.1 (version 9
    counts messages); RFC 7011, 3.1 (IPFIX counts records before this message). Some exporters
    count otherwise: softflowd 0.9 counts the records of the message itself, too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

LEARNED = 2
"""So often must a way to count have held before a gap is believed."""
HITS_MAX = 8
LATE_MAX = 1_000
"""A number that is less by so much is late or came twice; by more, the exporter started anew."""
LATE_RUN = 4
"""More late ones than so many in a row are a new start as well."""
GAP_MAX = 1_000_000
"""A larger step is a new start, too."""
_WRAP = 1 << 32


class Heard(NamedTuple):
    """What is known of one stream."""

    number: int
    records: int
    hits: tuple[int, int, int]
    """How often each way to count held: messages, records before, records with this message's."""
    backwards: int = 0


class Sequences:
    """How far each stream has counted.

    Args:
        streams_max: Streams that are remembered; who was silent for longest goes.
    """

    def __init__(self, streams_max: int) -> None:
        self.streams_max = streams_max
        self.streams: OrderedDict[Hashable, Heard] = OrderedDict()

    def forget(self, key: Hashable) -> None:
        """A message could not be counted: begin anew."""
        self.streams.pop(key, None)

    def lost(self, key: Hashable, number: int, records: int) -> tuple[int, bool]:
        """How much is missing before this message, and whether it is counted in messages."""
        before = self.streams.get(key)
        if before is None:
            self._keep(key, Heard(number, records, (0, 0, 0)))
            return 0, False
        step = (number - before.number) % _WRAP
        if step == 0 or step >= _WRAP - LATE_MAX:
            # A run of such numbers is no disorder: the exporter counts from there now.
            late = before.backwards + 1
            again = Heard(number, records, (0, 0, 0))
            self._keep(key, again if late > LATE_RUN else before._replace(backwards=late))
            return 0, False
        if step > GAP_MAX:
            self._keep(key, Heard(number, records, (0, 0, 0)))
            return 0, False
        gaps = (step - 1, step - before.records, step - records)
        most = max(before.hits)
        believed = [gap for gap, hit in zip(gaps, before.hits, strict=True) if hit == most]
        fits = 0 in gaps
        hits = tuple(
            min(HITS_MAX, hit + 1) if gap == 0 else max(0, hit - fits)
            for gap, hit in zip(gaps, before.hits, strict=True)
        )
        self._keep(key, Heard(number, records, (hits[0], hits[1], hits[2])))
        missing = min(believed)
        if most < LEARNED or missing <= 0:
            return 0, False
        return missing, before.hits[0] == most

    def _keep(self, key: Hashable, heard: Heard) -> None:
        self.streams[key] = heard
        self.streams.move_to_end(key)
        if len(self.streams) > self.streams_max:
            self.streams.popitem(last=False)
