"""From packets to flows: a bounded table of columns, filled by whole chunks.

A flow is what two ends (address, port, protocol) say to each other, both ways. Its clock is that of
the packets. It ends

* `idle`: its next packet is more than 60 s away, in either direction of time, or time has gone on
  that far; so a clock that jumps ends flows and never keeps them;
* `fin`, `rst`: both sides said FIN, or one said RST, and then 5 s passed or a new SYN came;
* `evicted`: the table is full and it is among those that were silent longest;
* `end`: its source ended.

A flow that lasts is reported after every 300 s (`active`); a report counts what came since the last
one, so sums are right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from collectors.packets.capture import Chunk
from collectors.packets.walk import DATA, FIN, METERED, RST, SYN, SYN_ACK, Rows, Walked, Words

SLOTS = 262_144
IDLE_NS = 60_000_000_000
ACTIVE_NS = 300_000_000_000
LINGER_NS = 5_000_000_000
SWEEP_NS = 1_000_000_000

NOT_ENDED, IDLE, ACTIVE, FINISHED, RESET, EVICTED, END = range(7)
REASON_NAMES = ("", "idle", "active", "fin", "rst", "evicted", "end")

_PACKET = np.int64(1 << 40)
"""Packets and bytes of one direction share a word, so that two sums do for a chunk."""
_BYTES = np.int64((1 << 40) - 1)
_ROW_BITS = np.uint64(0xFFFF)
_NEW = -1

Pieces = NDArray[np.intp]
UNDECIDED, REFUSED = 0, 255
"""Verdicts on what a flow speaks; between them stands the number of a decoder, from 1."""

_COLUMNS: dict[str, Any] = {
    "hash": np.uint64,
    "lo": np.uint64,
    "hi": np.uint64,
    "first_frame": np.int64,
    "first": np.int64,
    "last": np.int64,
    "start": np.int64,
    "packets": (np.int64, (2,)),
    "octets": (np.int64, (2,)),
    "flags": np.uint16,
    "seen": np.uint8,
    "verdict": np.uint8,
    "reports": np.uint32,
    "turned": np.bool_,
    "family": np.uint8,
    "protocol": np.uint8,
    "vlan": np.uint16,
    "sport": np.uint16,
    "dport": np.uint16,
    "addresses": np.dtype("V32"),
}
FLOW = np.dtype(list(_COLUMNS.items()))
"""A flow. `turned`: its first sender is the higher end, direction 1. `packets`, `octets`: since
`start`, of the lower and the higher end. `flags`: state bits, those of the higher end << 8.
`addresses`: raw, of the first sender and the first receiver, 16 bytes each, left-aligned.
`sport`: of the first sender."""


class Ended(NamedTuple):
    """Flows to report."""

    flows: NDArray[Any]
    """Rows of `FLOW` as they stood."""
    reasons: NDArray[np.uint8]

    def where(self, chosen: NDArray[np.bool_]) -> Ended:
        """Some of them."""
        return Ended(_taken(self.flows, chosen), self.reasons[chosen])


class Pick(NamedTuple):
    """Packets whose payload is to be looked at, in the order of arrival."""

    rows: Pieces
    """Row in the chunk."""
    slots: NDArray[np.int64]
    uids: Rows
    """First frame of the flow: its identity."""
    direction: NDArray[np.bool_]
    """True: from the higher end."""


class Merged(NamedTuple):
    """What a chunk was merged into; needed until its payloads are done with."""

    order: Pieces
    """Rows sorted by flow, then by arrival."""
    piece: Pieces
    """For each of them the number of its flow's piece."""
    slots: NDArray[np.int64]
    uids: Rows
    turned: NDArray[np.bool_]
    has_data: NDArray[np.bool_]
    picked: NDArray[np.bool_]


class Meter:
    """A table of flows."""

    def __init__(
        self,
        slots: int = SLOTS,
        idle_ns: int = IDLE_NS,
        active_ns: int = ACTIVE_NS,
        *,
        vlan_in_key: bool = False,
        hinted: NDArray[np.bool_] | None = None,
        looks: int = 3,
    ) -> None:
        """Begin with an empty table.

        Args:
            slots: Flows it holds at most, at least 16.
            idle_ns: Silence that ends a flow.
            active_ns: Time after which a lasting flow is reported.
            vlan_in_key: The same addresses in two VLANs are two flows.
            hinted: For each port whether a decoder expects its protocol there; None: payload is
                never picked.
            looks: First payload packets of a flow that are looked at on any other port.
        """
        self.idle_ns, self.active_ns, self.vlan_in_key = idle_ns, active_ns, vlan_in_key
        self.hinted, self.looks = hinted, looks
        self.table = np.zeros(slots, FLOW)
        self.column = {name: self.table[name] for name in _COLUMNS}
        # Columns that every chunk touches lie apart, packed.
        for name in ("last", "start", "flags", "first_frame", "verdict", "seen", "lo", "hi"):
            self.column[name] = np.zeros(slots, FLOW[name])
        for name in ("packets", "octets"):
            self.column[name] = np.zeros((slots, 2), np.int64)
        self.free = np.arange(slots - 1, -1, -1, dtype=np.int64)
        self.free_count = slots
        self.keys: Words = np.zeros(0, np.uint64)
        self.key_slots: NDArray[np.int64] = np.zeros(0, np.int64)
        self.merged = self.flows = self.evicted = self.collisions = 0
        self.now_ns = 0
        self._swept_ns: int | None = None
        self._ended: list[Ended] = []
        rng = np.random.default_rng()
        draw = rng.integers(1 << 62, 1 << 63, 4, np.uint64) | np.uint64(1)
        self._odd: tuple[np.uint64, ...] = tuple(draw)

    def __len__(self) -> int:
        return len(self.keys)

    # ------------------------------------------------------------------------- in

    def add(self, chunk: Chunk, w: Walked) -> Iterator[tuple[Merged, Pick]]:
        """Merge the metered packets of a chunk; flows that ended wait in `take_ended`.

        What is yielded is to be used before the next is asked for.
        """
        rows = np.flatnonzero(w.reason == METERED)
        step = max(4, min(65_536, len(self.table) // 4))
        for at in range(0, len(rows), step):
            yield self._add(chunk, w, rows[at : at + step])
        if len(chunk):
            self.sweep(int(chunk.columns.time_ns[-1]))

    def _add(self, chunk: Chunk, w: Walked, rows: Rows) -> tuple[Merged, Pick]:
        sender, receiver = w.sender[rows], w.receiver[rows]
        turned = sender > receiver
        lo, hi = np.minimum(sender, receiver), np.maximum(sender, receiver)
        key = self._hash(lo, hi, w, rows)
        key &= ~_ROW_BITS
        key |= np.arange(len(rows), dtype=np.uint64)
        key.sort()
        order = (key & _ROW_BITS).astype(np.intp)
        key >>= np.uint64(16)
        heads = np.concatenate(([0], np.flatnonzero(key[1:] != key[:-1]) + 1))
        groups = key[heads]
        slot = self._find(groups)
        first_of = order[heads]
        self._count_collisions(slot, lo[first_of], hi[first_of])

        rows, turned = rows[order], turned[order]
        time_ns = chunk.columns.time_ns[rows]
        state = w.state[rows].astype(np.uint16)
        np.left_shift(state, 8, out=state, where=turned)
        cuts = self._cuts(heads, slot, time_ns, state)

        fresh = np.flatnonzero(slot == _NEW)
        slot[fresh] = self._allot(groups[fresh], slot)
        pieces = _Pieces(heads, slot, fresh, cuts, len(rows))
        new = _sums(chunk, w, rows, turned, state, time_ns, pieces.at)
        new["hash"] = groups[pieces.group]
        new["lo"], new["hi"] = lo[order[pieces.at]], hi[order[pieces.at]]
        has_data = w.length[rows] > 0 if self.hinted is not None else np.zeros(0, np.bool_)
        return self._apply(w, rows, turned, has_data, pieces, new)

    def _hash(self, lo: Words, hi: Words, w: Walked, rows: Rows) -> Words:
        one, two, three, four = self._odd
        key = lo * one
        key ^= key >> np.uint64(31)
        key += hi
        key *= two
        kind = (w.family[rows].astype(np.uint64) << np.uint64(8)) | w.protocol[rows]
        if self.vlan_in_key:
            kind |= w.vlan[rows].astype(np.uint64) << np.uint64(16)
        key ^= kind * three
        key ^= key >> np.uint64(29)
        key *= four
        key ^= key >> np.uint64(32)
        key *= one
        return key

    def _find(self, groups: Words) -> NDArray[np.int64]:
        if not len(self.keys):
            return np.full(len(groups), _NEW, np.int64)
        at = np.searchsorted(self.keys, groups)
        at[at == len(self.keys)] = 0
        return np.where(self.keys[at] == groups, self.key_slots[at], _NEW)

    def _count_collisions(self, slot: NDArray[np.int64], lo: Words, hi: Words) -> None:
        known = slot != _NEW
        at = slot[known]
        other = (self.column["lo"][at] != lo[known]) | (self.column["hi"][at] != hi[known])
        self.collisions += int(np.count_nonzero(other))

    # ------------------------------------------------------------------------- ends inside

    def _cuts(
        self, heads: Pieces, slot: NDArray[np.int64], time_ns: Rows, state: NDArray[np.uint16]
    ) -> list[tuple[int, int, int]]:
        """Where flows end or are reported inside the chunk: group, position, reason."""
        ends = np.append(heads[1:], len(time_ns))
        known = slot != _NEW
        column = self.column
        first = time_ns[heads]
        before = np.where(known, column["last"][slot], first)
        gap = np.empty_like(time_ns)
        gap[1:] = time_ns[1:] - time_ns[:-1]
        gap[heads] = first - before
        np.abs(gap, out=gap)
        longest = np.maximum.reduceat(gap, heads)
        flags = np.bitwise_or.reduceat(state, heads)
        flags |= np.where(known, column["flags"][slot], 0).astype(np.uint16)
        start = np.where(known, column["start"][slot], first)
        newest = np.maximum.reduceat(time_ns, heads)
        hard = (longest > self.idle_ns) | (newest - start >= self.active_ns)
        closing = _closed(flags)
        if closing.any():
            again = state & (SYN | SYN << 8) > 0
            again[heads[~known]] = False
            hard |= closing & ((longest > LINGER_NS) | np.logical_or.reduceat(again, heads))
        found: list[tuple[int, int, int]] = []
        for group in np.flatnonzero(hard).tolist():
            a, z = int(heads[group]), int(ends[group])
            was = int(column["flags"][slot[group]]) if known[group] else None
            cuts = self._walk_group(
                time_ns[a:z].tolist(),
                state[a:z].tolist(),
                (int(before[group]), int(start[group]), was),
            )
            found.extend((group, a + at, reason) for at, reason in cuts)
        return found

    def _walk_group(
        self, times: list[int], states: list[int], was: tuple[int, int, int | None]
    ) -> list[tuple[int, int]]:
        """Packet by packet, for the few flows in which something may end."""
        last, start, flags = was
        found = []
        for at, (time_ns, state) in enumerate(zip(times, states, strict=True)):
            if flags is not None:
                reason = self._ends(time_ns, state, last, start, flags)
                if reason:
                    found.append((at, reason))
                    start = time_ns
                    if reason != ACTIVE:
                        flags = 0
            last, flags = time_ns, (flags or 0) | state
        return found

    def _ends(self, time_ns: int, state: int, last: int, start: int, flags: int) -> int:
        gap = abs(time_ns - last)
        why = _closed_by(flags)
        if why and (gap > LINGER_NS or state & (SYN | SYN << 8)):
            return why
        if gap > self.idle_ns:
            return IDLE
        return ACTIVE if time_ns - start >= self.active_ns else NOT_ENDED

    # ------------------------------------------------------------------------- the table

    def _allot(self, groups: Words, used: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots for new flows; makes room first if there is too little."""
        count = len(groups)
        if count > self.free_count:
            self._evict(count - self.free_count, used[used != _NEW])
        self.free_count -= count
        slots = self.free[self.free_count : self.free_count + count].copy()
        at = np.searchsorted(self.keys, groups)
        self.keys = np.insert(self.keys, at, groups)
        self.key_slots = np.insert(self.key_slots, at, slots)
        self.flows += count
        return slots

    def _evict(self, missing: int, spared: NDArray[np.int64]) -> None:
        live = self.key_slots
        last = self.column["last"][live].copy()
        last[np.isin(live, spared)] = np.iinfo(np.int64).max
        count = min(len(live) - len(spared), max(missing, len(self.table) // 16))
        newest = np.partition(last, count - 1)[count - 1]
        older, same = np.flatnonzero(last < newest), np.flatnonzero(last == newest)
        # Of flows silent equally long the first go, so that a capture read again gives the same.
        frames = self.column["first_frame"][live[same]]
        same = same[np.argsort(frames)][: count - len(older)]
        self.evicted += count
        self._end(np.sort(np.concatenate((older, same))), EVICTED)

    def _end(self, positions: NDArray[np.intp], reasons: int | NDArray[np.uint8]) -> None:
        """End the flows at these positions of the key order."""
        slots = self.key_slots[positions]
        self._report(slots, np.broadcast_to(np.asarray(reasons, np.uint8), slots.shape))
        self.free[self.free_count : self.free_count + len(slots)] = slots
        self.free_count += len(slots)
        keep = np.ones(len(self.keys), np.bool_)
        keep[positions] = False
        self.keys, self.key_slots = self.keys[keep], self.key_slots[keep]

    def _report(self, slots: NDArray[np.int64], reasons: NDArray[np.uint8]) -> None:
        flows = _taken(self.table, slots)
        for name, values in self.column.items():
            flows[name] = values[slots]
        self._ended.append(Ended(flows, reasons))

    def _apply(
        self,
        w: Walked,
        rows: Rows,
        turned: NDArray[np.bool_],
        has_data: NDArray[np.bool_],
        pieces: _Pieces,
        new: dict[str, NDArray[Any]],
    ) -> tuple[Merged, Pick]:
        """Bring the pieces into the table, the first of each flow, then the second, and so on."""
        column = self.column
        count = len(pieces.at)
        uids = np.zeros(count, np.int64)
        verdict, seen = np.zeros(count, np.uint8), np.zeros(count, np.uint8)
        data_count = (
            np.add.reduceat(has_data, pieces.at, dtype=np.int64)
            if len(has_data)
            else np.zeros(count, np.int64)
        )
        for these in pieces.rounds():
            slots, reason = pieces.slot[these], pieces.reason[these]
            ending = reason > 0
            if ending.any():
                self._report(slots[ending], reason[ending].astype(np.uint8))
                self._go_on(slots[reason == ACTIVE], these[reason == ACTIVE], new)
                self.flows += int(np.count_nonzero(ending & (reason != ACTIVE)))
            opening = pieces.is_new[these] | (ending & (reason != ACTIVE))
            if opening.any():
                self._open(slots[opening], these[opening], new)
            column["packets"][slots] += new["packets"][these]
            column["octets"][slots] += new["octets"][these]
            column["flags"][slots] |= new["flags"][these]
            column["last"][slots] = new["last"][these]
            uids[these] = column["first_frame"][slots]
            verdict[these], seen[these] = column["verdict"][slots], column["seen"][slots]
            column["seen"][slots] = np.minimum(seen[these] + data_count[these], 255)
        self.merged += len(rows)
        piece = np.repeat(np.arange(count), np.diff(np.append(pieces.at, len(rows))))
        picked = self._interest(w, rows, has_data, (piece, pieces.at, verdict, seen))
        merged = Merged(rows, piece, pieces.slot, uids, turned, has_data, picked)
        return merged, pick(merged, np.flatnonzero(picked))

    def _open(self, slots: NDArray[np.int64], these: Pieces, new: dict[str, NDArray[Any]]) -> None:
        column = self.column
        for name in ("hash", "lo", "hi", "first_frame", "first", "turned", "family", "protocol"):
            column[name][slots] = new[name][these]
        for name in ("vlan", "sport", "dport", "addresses"):
            column[name][slots] = new[name][these]
        column["start"][slots] = new["first"][these]
        for name in ("packets", "octets", "flags", "seen", "verdict", "reports"):
            column[name][slots] = 0

    def _go_on(self, slots: NDArray[np.int64], these: Pieces, new: dict[str, NDArray[Any]]) -> None:
        """After a report the flow counts anew."""
        column = self.column
        column["start"][slots] = new["first"][these]
        column["reports"][slots] += 1
        column["packets"][slots] = 0
        column["octets"][slots] = 0

    def _interest(
        self,
        w: Walked,
        rows: Rows,
        has_data: NDArray[np.bool_],
        of: tuple[Pieces, Pieces, NDArray[np.uint8], NDArray[np.uint8]],
    ) -> NDArray[np.bool_]:
        """Payloads to look at: of flows that are decoded, and the first ones of the others."""
        piece, at, verdict, seen = of
        if self.hinted is None:
            return np.zeros(0, np.bool_)
        hint = self.hinted[w.sport[rows[at]]] | self.hinted[w.dport[rows[at]]]
        decoded = (verdict != UNDECIDED) & (verdict != REFUSED)
        followed = decoded | ((verdict == UNDECIDED) & hint)
        looked = ~followed & (verdict == UNDECIDED) & (seen < self.looks)
        syn = w.state[rows] & (SYN | SYN_ACK) > 0
        picked = followed[piece] & (has_data | syn)
        if looked.any():
            rank = np.cumsum(has_data)
            before = rank[at] - has_data[at] - seen
            picked |= looked[piece] & has_data & (rank - before[piece] <= self.looks)
        return np.asarray(picked, np.bool_)

    def decide(self, slot: int, uid: int, verdict: int) -> None:
        """Note what a flow speaks, if it still is there."""
        if self.column["first_frame"][slot] == uid:
            self.column["verdict"][slot] = verdict

    # ------------------------------------------------------------------------- out

    def sweep(self, now_ns: int) -> None:
        """End what is over at this time, once a second."""
        self.now_ns = now_ns
        recent = self._swept_ns is not None and abs(now_ns - self._swept_ns) < SWEEP_NS
        if recent:
            return
        self._swept_ns = now_ns
        slots = self.key_slots
        if not len(slots):
            return
        gap = np.abs(now_ns - self.column["last"][slots])
        over = gap > LINGER_NS
        if not over.any():
            return
        flags = self.column["flags"][slots]
        reasons = np.where(gap > self.idle_ns, IDLE, NOT_ENDED).astype(np.uint8)
        closed = over & _closed(flags)
        reset = flags & (RST | RST << 8) > 0
        reasons[closed] = np.where(reset[closed], RESET, FINISHED)
        positions = np.flatnonzero(reasons)
        if len(positions):
            self._end(positions, reasons[positions])

    def end(self) -> None:
        """End every flow."""
        self._end(np.arange(len(self.keys)), END)

    def take_ended(self) -> Ended | None:
        """Flows that ended or are reported since the last call, by their first frame."""
        if not self._ended:
            return None
        first, *more = self._ended
        self._ended = []
        flows, reasons = first
        if more:
            flows = np.concatenate([flows, *(ended.flows for ended in more)])
            reasons = np.concatenate([reasons, *(ended.reasons for ended in more)])
        # Their order in the table comes from a hash that is another in each process.
        order = np.lexsort((flows["reports"], flows["first_frame"]))
        return Ended(_taken(flows, order), reasons[order])


class _Pieces:
    """Runs of packets of one flow without an end inside; most groups are one piece."""

    def __init__(
        self,
        heads: Pieces,
        slot: NDArray[np.int64],
        fresh: Pieces,
        cuts: list[tuple[int, int, int]],
        count: int,
    ) -> None:
        is_new = np.zeros(len(heads), np.bool_)
        is_new[fresh] = True
        self.at, self.group = heads, np.arange(len(heads))
        self.reason = np.zeros(len(heads), np.int64)
        self.rank = np.zeros(len(heads), np.int64)
        if cuts:
            self._cut(heads, cuts, count)
        self.slot = slot[self.group]
        self.is_new = is_new[self.group] & (self.rank == 0)

    def _cut(self, heads: Pieces, cuts: list[tuple[int, int, int]], count: int) -> None:
        reasons = {position: reason for _, position, reason in cuts}
        at = np.union1d(heads, np.fromiter(reasons, np.intp))
        self.at = at.astype(np.intp)
        self.group = np.searchsorted(heads, at, "right") - 1
        self.reason = np.zeros(len(at), np.int64)
        self.reason[np.searchsorted(at, list(reasons))] = list(reasons.values())
        first = np.searchsorted(at, heads)
        self.rank = np.arange(len(at)) - first[self.group]

    def rounds(self) -> list[Pieces]:
        """Pieces by their rank within their flow; a slot occurs once in each round."""
        if not self.rank.any():
            return [np.arange(len(self.at))]
        order = np.argsort(self.rank, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.rank[order])) + 1)


def pick(merged: Merged, positions: Pieces) -> Pick:
    """Packets at these positions of the flow order, in the order of arrival."""
    rows = merged.order[positions]
    positions = positions[np.argsort(rows)]
    piece = merged.piece[positions]
    return Pick(
        merged.order[positions], merged.slots[piece], merged.uids[piece], merged.turned[positions]
    )


def pick_rest(merged: Merged, uids: list[int]) -> Pick:
    """Packets with payload, not yet picked, of flows that were recognised meanwhile."""
    wanted = np.isin(merged.uids, np.array(uids, np.int64))
    return pick(merged, np.flatnonzero(wanted[merged.piece] & merged.has_data & ~merged.picked))


def _sums(
    chunk: Chunk,
    w: Walked,
    rows: Rows,
    turned: NDArray[np.bool_],
    state: NDArray[np.uint16],
    time_ns: Rows,
    at: Pieces,
) -> dict[str, NDArray[Any]]:
    """What each piece adds, and what a flow that begins with it is."""
    weight = w.bytes[rows] + _PACKET
    both = np.add.reduceat(weight, at)
    higher = np.add.reduceat(np.where(turned, weight, 0), at)
    sides = np.stack((both - higher, higher), axis=1)
    first = rows[at]
    ends = np.append(at[1:], len(rows)) - 1
    return {
        "packets": sides >> 40,
        "octets": sides & _BYTES,
        "flags": np.bitwise_or.reduceat(state, at),
        "first": time_ns[at],
        "last": time_ns[ends],
        "first_frame": first + chunk.frame,
        "turned": turned[at],
        "family": w.family[first],
        "protocol": w.protocol[first],
        "vlan": w.vlan[first],
        "sport": w.sport[first],
        "dport": w.dport[first],
        "addresses": _addresses(chunk, w, first),
    }


_ADDRESSES = {4: (12, 4), 6: (8, 16), 2: (0, 6)}
"""Family → offset of the source address (for MAC of the destination), its length."""


def _addresses(chunk: Chunk, w: Walked, rows: Rows) -> NDArray[Any]:
    """Raw addresses of the sender and the receiver of these packets."""
    out = np.zeros((len(rows), 32), np.uint8)
    data = np.frombuffer(chunk.data, np.uint8)
    for family, (offset, size) in _ADDRESSES.items():
        these = np.flatnonzero(w.family[rows] == family)
        if len(these):
            at = w.l3[rows[these]] + offset
            both = data[at[:, None] + np.arange(size * 2)]
            one, two = (
                (both[:, size:], both[:, :size])
                if family == 2
                else (both[:, :size], both[:, size:])
            )
            out[these, :size], out[these, 16 : 16 + size] = one, two
    return out.view("V32").reshape(-1)


def _taken(flows: NDArray[Any], at: NDArray[Any]) -> NDArray[Any]:
    """Rows of a table; as bytes, which is several times faster than field by field."""
    taken: NDArray[Any] = flows.view(f"V{FLOW.itemsize}")[at].view(FLOW)
    return taken


def _closed(flags: NDArray[Any]) -> NDArray[np.bool_]:
    fins = FIN | FIN << 8
    closed: NDArray[np.bool_] = (flags & (RST | RST << 8) > 0) | (flags & fins == fins)
    return closed


def _closed_by(flags: int) -> int:
    if flags & (RST | RST << 8):
        return RESET
    return FINISHED if flags & FIN and flags & FIN << 8 else NOT_ENDED


__all__ = ["DATA", "FLOW", "Ended", "Merged", "Meter", "Pick", "pick", "pick_rest"]
