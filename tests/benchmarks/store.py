"""`python tests/benchmarks/store.py`: how fast events are kept and asked, and findings listed."""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cityward import Analytic, Event, Finding, LogSource, Record
from siem.store.embedded import NodeDb
from siem.store.events import EventStore
from siem.store.protocol import Document, Range

START = datetime(2026, 3, 1, 6, tzinfo=UTC)
ACTIONS = ("modbus_read", "modbus_write", "login", "flow_ended")


def document(number: int, dice: random.Random) -> Document:
    """One event with 30 fields."""
    at = START + timedelta(milliseconds=number)
    return {
        "@timestamp": at,
        "event.kind": "event",
        "event.outcome": "success",
        "event.action": ACTIONS[number % 4],
        "event.category": ["network"],
        "event.dataset": "modbus",
        "cw.domain": ["cyber"],
        "cw.schema": "1.0.0",
        "cw.operator": "op-metro",
        "cw.sector": "transport.public",
        "cw.mode": "normal",
        "event.ingested": at,
        "observer.name": "tap-north-1",
        "observer.type": "collector",
        "source.ip": f"192.0.2.{dice.randrange(200)}",
        "source.port": 40_000 + number % 20_000,
        "destination.ip": f"198.51.100.{dice.randrange(40)}",
        "destination.port": 502,
        "network.transport": "tcp",
        "network.protocol": "modbus",
        "ot.operation": "read",
        "ot.is_command": False,
        "ot.function.code": "3",
        "ot.function.name": "read_holding_registers",
        "ot.point.address": dice.randrange(2_000),
        "ot.value": dice.random() * 900,
        "cw.record.source": "tap-north-1",
        "cw.record.place": str(number),
        "cw.record.number": 0,
        "cw.logsource.category": "ot_protocol",
    }


def timed(name: str, work: Callable[[], Any], per: int = 0) -> Any:
    """Run something once and say how long it took."""
    wall, cpu = time.perf_counter(), _cpu_s()
    result = work()
    wall, cpu = time.perf_counter() - wall, _cpu_s() - cpu
    each = f"  {cpu / per * 1e6:7.2f} µs CPU each" if per else ""
    print(f"{name:58} {wall:8.3f} s wall {cpu:8.3f} s CPU{each}")
    return result


def _cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def events(folder: Path, count: int) -> None:
    """Append, compact, and ask."""
    dice = random.Random(7)
    documents = [document(number, dice) for number in range(count)]
    batches = [documents[place : place + 1000] for place in range(0, count, 1000)]
    store = EventStore(folder, lambda: START, segment_max_bytes=64 << 20)
    timed("append, batches of 1,000", lambda: _append(store, batches), count)
    store._rotate()  # the benchmark cannot wait for a minute
    timed(
        "compact, in a process of its own",
        lambda: store.compact(store.last_batch, wait=True),
        count,
    )
    size = store.usage()["parquet"] / count
    print(f"Parquet: {size:.1f} B/event")
    look = EventStore(folder, lambda: START, write=False)
    narrow = Range(START + timedelta(seconds=60), START + timedelta(seconds=65))
    for name, ask in (
        ("first question (opens DuckDB)", lambda: look.search("", Range(), limit=1)),
        ("search, everything, 50 rows", lambda: look.search("", Range())),
        ("search, one value", lambda: look.search("event.action:login", Range())),
        ("search, network", lambda: look.search("source.ip:192.0.2.0/28", Range())),
        ("search, bare word", lambda: look.search("holding", Range())),
        ("search, 5 s window", lambda: look.search("", narrow)),
        ("histogram", lambda: look.histogram("", Range())),
        ("top values", lambda: look.top_values("", Range(), "source.ip")),
        ("fields", lambda: look.fields("", Range())),
    ):
        timed(name, ask)
    one = look.search("", narrow, limit=1).rows[0]
    timed("get, near its time", lambda: look.get(one["event.id"], one["@timestamp"]))
    timed("get, nowhere (every id is computed)", lambda: look.get("0" * 32))
    look.close()
    store.close()


def _append(store: EventStore, batches: list[list[Document]]) -> None:
    for number, batch in enumerate(batches):
        store.append(batch, {"tap-north-1": number})


def findings(path: Path, count: int) -> None:
    """Keep findings, and list them."""
    db = NodeDb(path, b"bench", clock=lambda: START + timedelta(days=1))
    made = [finding(number) for number in range(count)]
    timed("keep findings, 500 a transaction", lambda: _keep(db, made), count)
    day = Range(START, START + timedelta(days=1))
    for name, ask in (
        ("groups, everything", lambda: db.groups("", Range())),
        ("groups, one day, open, high", lambda: db.groups(
            "finding.status:(new or in_progress) finding.severity:>=high", day)),
        ("groups, by a field of the JSON", lambda: db.groups("threat.technique.id:T1110", day)),
        ("groups, bare word", lambda: db.groups("jump", day)),
        ("search, 50 rows", lambda: db.search("", day)),
        ("counts", lambda: db.counts("", day)),
        ("histogram", lambda: db.histogram("", day)),
    ):  # fmt: skip
        timed(name, ask)
    db.close()


def finding(number: int) -> Finding:
    """One match of one of 40 rules on one of 250 hosts."""
    at = START + timedelta(milliseconds=number * 800)
    fields = {"source.ip": f"192.0.2.{number % 250}", "cw.operator": "op", "host.name": "jump-1"}
    record = Record(b"", "s", number, at)
    event = Event(at, LogSource(service="sshd"), fields, record)
    level = ("low", "medium", "high", "critical")[number % 4]
    rule = Analytic(
        id=f"rule-{number % 40}", name="R", kind="rule", version="1", level=level,  # type: ignore[arg-type]
        techniques=("T1110",),
    )  # fmt: skip
    return Finding(
        analytic=rule, title="Password guessed", description="n", severity=rule.level,
        group=(("source.ip", f"{number}"),), first_seen=at, last_seen=at, events=(event,),
    )  # fmt: skip


def _keep(db: NodeDb, made: list[Finding]) -> None:
    for place in range(0, len(made), 500):
        db.keep(made[place : place + 500], place, now=made[place].last_seen)


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as place_:
        events(Path(place_) / "events", wanted)
        findings(Path(place_) / "node.db", wanted // 10)
