"""A process that appends numbered events and says which are acknowledged, until it is killed.

`python writer.py FOLDER BATCHES VARIANT`; the variants are broken on purpose, `right` is not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from siem.store import compact
from siem.store.events import EventStore
from siem.store.faults import fault
from siem.store.protocol import Document

START = datetime(2026, 3, 1, 23, 59, 0, tzinfo=UTC)
PER_BATCH = 10


def document(number: int) -> Document:
    at = START + timedelta(seconds=number)
    return {
        "@timestamp": at,
        "event.sequence": number,
        "cw.operator": "op-test",
        "cw.record.source": "s",
        "cw.record.place": str(number),
        "cw.record.number": 0,
        "event.ingested": at,
    }


def say(number: int) -> None:
    """Everything below is acknowledged."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def delete_first(db: Any, folder: Path, group: tuple[Sequence[Any], int, str]) -> None:
    """A compaction that trusts itself: segments go before the file has its name."""
    members, last, day = group
    target = folder / "parquet" / f"day={day}" / f"{members[0].first:016d}-{last:016d}.parquet"
    target.parent.mkdir(exist_ok=True)
    unfinished = target.with_name(target.name + ".tmp")
    compact.salvaged_copy(db, members, unfinished, folder / "quarantine")
    for one in members:
        one.path.unlink()
    compact._finish(unfinished, target)


def main(folder: Path, batches: int, variant: str) -> None:
    compact.MERGE_AT = 3
    if variant == "delete_first":
        compact._archive = delete_first
    clock = [START]
    store = EventStore(folder, lambda: clock[0], segment_max_bytes=4_000)
    number = store.places().get("s", 0)
    say(number)
    for turn in range(batches):
        documents = [document(number + place) for place in range(PER_BATCH)]
        after = number + PER_BATCH
        clock[0] = START + timedelta(seconds=after)
        if variant == "early":
            say(after)
        if variant == "two_steps":
            store.append(documents, {})
            fault("between")
            store.append([], {"s": after})
        else:
            store.append(documents, {"s": after})
        number = after
        say(number)
        if turn % 8 == 7:
            compact.compact(folder, min(store.last_batch, store._first - 1))
    store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
