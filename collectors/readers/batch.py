"""What a reader gives, and what a reader is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from cityward.event import Record
from cityward.plugin import Framing

Clock = Callable[[], datetime]

MAX_RECORDS = 1000
"""Records a batch holds at most."""
MAX_BATCH_BYTES = 8 << 20
"""Data a batch holds at most, give or take one record."""
PAUSE_S = 0.25
"""How long a reader waits when nothing arrives; an empty batch follows, so time passes too."""


def nothing() -> None:
    """What there is to do for a source that waits for no acknowledgement."""


class Batch(msgspec.Struct, frozen=True):
    """Records of one source that are committed together with the place behind them.

    At every reader an outside count of the input equals `records + rejected + lost`.
    """

    source: str
    """Source id of the reader."""
    records: Sequence[Record]
    """Lines, datagrams, documents; for captures a chunk whose length is its number of packets."""
    place: Any
    """JSON-able: where the source stands after these records; given back to `read`."""
    lost: int = 0
    """Records known to be lost since the last batch (kernel drops, a rotated file that is gone)."""
    rejected: Mapping[str, int] = {}
    """Records that will never become events, by reason; normally empty."""
    ended: bool = False
    """Last batch of a source that ends."""
    cut: int = 0
    """How many of `records` were too long and carry only their beginning; no part of the sum."""
    done: Callable[[], None] = nothing
    """Called when the records are durable: acknowledges outward. Never raises."""


class Reader(Protocol):
    """Where records come from; all input and output of a source is here, in one thread."""

    source: str
    framing: Framing

    def read(self, place: Any | None, stop: threading.Event) -> Iterator[Batch]:
        """Yield batches from `place` on; an empty one at least every 0.5 s when nothing arrives.

        Args:
            place: What the last committed batch said; None for the beginning.
            stop: When set, the reader ends promptly.
        """
        ...


def utc_now() -> datetime:
    """The clock a reader has when it is given none."""
    return datetime.now(UTC)
