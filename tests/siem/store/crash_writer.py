"""A process that keeps events, findings and what leaves, and says what is durable.

`python crash_writer.py FOLDER STEPS SYNCHRONOUS`; its writes are traced, see `crash.py`. With
`OFF` its database is broken on purpose.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import msgspec

from siem.sharing.envelope import Envelope
from siem.sharing.outbox import Outbox
from siem.store.embedded import NodeDb
from siem.store.events import EventStore
from tests.siem.sharing.standin import (
    KEY,
    NOON,
    OPERATOR,
    Clock,
    FakeHub,
    FakePolicy,
    key_from,
    match,
)

CHECKPOINT_PAGES = 25
"""So the database file itself is written to often."""


def say(*words: object) -> None:
    """Everything said is durable."""
    sys.stdout.write(" ".join(str(one) for one in words) + "\n")
    sys.stdout.flush()


def main(folder: Path, steps: int, synchronous: str) -> None:
    clock = Clock()
    db = NodeDb(folder / "node.db", KEY, clock=clock)
    db._db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    db._db.execute(f"PRAGMA synchronous = {synchronous}")
    events = EventStore(folder / "events", clock)
    policy = FakePolicy()
    outbox = Outbox(db.outgoing, OPERATOR, key_from("node"), lambda: policy, clock=clock)
    hub = FakeHub(key_from("node"), key_from("hub"))
    say("begin")
    for number in range(steps):
        clock.pass_(1)
        at = NOON + timedelta(seconds=number)
        event = {
            "@timestamp": at, "event.sequence": number, "event.ingested": at,
            "cw.operator": OPERATOR, "cw.record.source": "s", "cw.record.place": str(number),
            "cw.record.number": 0,
        }  # fmt: skip
        say("batch", events.append([event], {"s": number}))
        [kept] = db.keep([match(number)], number + 1, now=clock())
        say("finding", kept)
        outbox.offer()
        while (signed := outbox.next()) is not None:
            said = msgspec.json.decode(signed.data, type=Envelope)
            say("sent", said.seq, signed.hash)
            outbox.receipted(hub.take(signed), hub.public)
            say("receipted", said.seq)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
