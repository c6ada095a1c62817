"""Speed of a backtest over millions of kept events, beside a walk over every one of them.

The store is made by the node's own writer and compaction: four weeks, a file or more a day, events
of 35 fields of which three fifths are Modbus, a quarter flows, the rest logins with a message.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from cityward.fields import SCHEMA_VERSION
from siem.store.protocol import Document, Range

DAYS = 28
WEEK = 7
"""Days with events of their own; after them they come again under other dates."""
BATCH = 5_000
BEGIN = datetime(2026, 3, 2, tzinfo=UTC)
END = BEGIN + timedelta(days=DAYS)
WALKED = 100_000
"""Events of the walk; what all would take is worked out from these."""
RULES = {
    "writes by one host": """
  write: {ot.operation: write, ot.point.type: holding_register}
  who: {source.ip|endswith: [".9", ".19"], cw.destination.zone_type: control}
  not_who: {cw.mode: maintenance}
  condition: write and who and not not_who""",
    "a rare login": """
  login: {event.action: ssh_login, event.outcome: success, user.name: root}
  usual: {source.ip|cidr: 10.0.0.0/22}
  condition: login and not usual""",
    "words in a message": """
  words: {message|contains: ["for invalid user admin from 198.51.100.7 "]}
  condition: words""",
    "no such value": """
  stop: {ot.operation: program_download, ot.function.code: "90"}
  condition: stop""",
}
"""Rules by what is particular in them, each a detection."""

_RULE = """\
title: {title}
id: 6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b11
level: low
logsource: {{category: {category}}}
detection:{detection}
"""
_CONSTANT = {
    "event.kind": "event",
    "cw.schema": SCHEMA_VERSION,
    "cw.operator": "op-metro",
    "cw.sector": "transport.rail",
    "cw.domain": ["cyber"],
    "cw.mode": "normal",
    "cw.site": "depot-east",
    "observer.type": "collector",
}


def make(folder: Path, events: int) -> None:
    """Write a store of so many events, unless it is there.

    Raises:
        ConfigError: something else is in the folder.
    """
    from siem.store.compact import compact
    from siem.store.events import EventStore

    done = folder / f"made-{events}"
    if done.exists():
        return
    clock = BEGIN
    with (
        closing(EventStore.open(folder, lambda: clock, segment_max_bytes=1 << 29)) as store,
        tempfile.TemporaryDirectory(dir=folder) as week,
    ):
        for day in range(DAYS):
            clock = BEGIN + timedelta(days=day)
            for lines in _day(day, events // DAYS, Path(week)):
                store.append(lines.splitlines(), {})
            clock += timedelta(days=1)
            store.append([], {})  # it begins a segment: the others are whole
            compact(folder, store.last_batch - 1)
    done.touch()


def _day(day: int, per_day: int, week: Path) -> Iterator[bytes]:
    """Lines of a day in batches; from the second week on those of the first, with other dates."""
    from siem.store.lines import Encoder

    weekday = day % WEEK
    kept = week / f"{weekday}.ndjson"
    if day == weekday:
        encoder, end = Encoder(), (day + 1) * per_day
        with kept.open("wb") as file:
            for first in range(day * per_day, end, BATCH):
                file.write(encoder.lines(_events(range(first, min(first + BATCH, end)), per_day)))
    then, now = (f"{BEGIN + timedelta(days=one):%Y-%m-%d}T".encode() for one in (weekday, day))
    with kept.open("rb") as file:
        while lines := b"".join(islice(file, BATCH)):
            yield lines.replace(then, now)


def _events(numbers: range, per_day: int) -> list[Document]:
    step = timedelta(days=1) / per_day
    return [_event(number, BEGIN + number * step) for number in numbers]


def _event(number: int, time: datetime) -> Document:
    """The same number is always the same event; a multiplier stands for chance."""
    chance = number * 2_654_435_761 % 4_294_967_296
    kind = chance % 20
    fields = _modbus(chance) if kind < 12 else _flow(chance) if kind < 17 else _login(chance)
    return {
        "@timestamp": time,
        **_CONSTANT,
        **fields,
        "event.ingested": time,
        "cw.record.source": "core",
        "cw.record.place": str(number),
        "cw.record.number": 0,
    }


def _ends(chance: int) -> Document:
    return {
        "source.ip": f"10.0.{chance >> 7 & 3}.{chance >> 9 & 63}",
        "source.port": 1024 + (chance >> 5) % 60_000,
        "source.mac": f"02:00:00:00:00:{chance >> 9 & 63:02x}",
        "destination.ip": f"10.1.0.{chance >> 15 & 127}",
        "destination.mac": f"02:00:00:00:01:{chance >> 15 & 127:02x}",
        "network.transport": "tcp",
        "network.type": "ipv4",
        "cw.source.zone": f"zone-{chance >> 7 & 3}",
        "cw.source.zone_type": "supervisory",
        "cw.destination.zone": "cell-1",
        "cw.destination.zone_type": "control",
        "cw.asset.asset_id": f"plc-{chance >> 15 & 127}",
    }


def _modbus(chance: int) -> Document:
    is_write = chance >> 20 & 63 == 0
    return {
        **_ends(chance),
        "event.action": "modbus_write_register" if is_write else "modbus_read_registers",
        "event.category": ["process_control"],
        "event.outcome": "success",
        "event.dataset": "packets",
        "network.protocol": "modbus",
        "destination.port": 502,
        "ot.operation": "write" if is_write else "read",
        "ot.is_command": is_write,
        "ot.direction": "request",
        "ot.function.code": "6" if is_write else "3",
        "ot.function.name": "write_single_register" if is_write else "read_holding_registers",
        "ot.unit": str(chance >> 3 & 7),
        "ot.point.address": (chance >> 11) % 900,
        "ot.point.type": "holding_register",
        "ot.value": (chance >> 13) % 4_000 / 4,
        "cw.logsource.category": "ot_protocol",
        "cw.logsource.service": "modbus",
    }


def _flow(chance: int) -> Document:
    return {
        **_ends(chance),
        "event.action": "flow_ended",
        "event.category": ["network"],
        "event.outcome": "unknown",
        "event.dataset": "packets",
        "event.duration": chance % 9_000_000,
        "network.protocol": ("https", "dns", "modbus", "ntp")[chance >> 4 & 3],
        "destination.port": (443, 53, 502, 123)[chance >> 4 & 3],
        "source.bytes": chance % 65_536,
        "destination.bytes": (chance >> 8) % 1_000_000,
        "source.packets": chance % 97,
        "destination.packets": chance % 89,
        "network.bytes": chance % 65_536 + (chance >> 8) % 1_000_000,
        "cw.logsource.category": "flow",
    }


def _login(chance: int) -> Document:
    is_good = chance >> 6 & 15 == 0
    user = ("root", "admin", "operator", "maint")[chance >> 10 & 3]
    address, port = f"198.51.100.{chance >> 12 & 255}", 1024 + (chance >> 8) % 60_000
    said = (
        f"Accepted password for {user}" if is_good else f"Failed password for invalid user {user}"
    )
    return {
        "event.action": "ssh_login",
        "event.category": ["authentication"],
        "event.outcome": "success" if is_good else "failure",
        "event.dataset": "sshd",
        "message": f"{said} from {address} port {port} ssh2",
        "source.ip": address if is_good else f"10.0.{chance >> 7 & 3}.{chance >> 9 & 63}",
        "source.port": port,
        "host.name": f"gw-{chance >> 20 & 15}",
        "user.name": user,
        "process.name": "sshd",
        "process.pid": chance % 32_768,
        "network.protocol": "ssh",
        "network.transport": "tcp",
        "cw.asset.asset_id": f"gw-{chance >> 20 & 15}",
        "cw.logsource.category": "authentication",
        "cw.logsource.product": "linux",
        "cw.logsource.service": "sshd",
    }


def linked(folder: Path, copies: int) -> Path:
    """The same files many times, under the numbers of batches of their own; it takes no room."""
    from siem.store.archive import archives
    from siem.store.distinct import beside

    target = folder.with_name(f"{folder.name}-x{copies}")
    if target.exists():
        return target
    found = archives(folder)
    batches = found[-1].last
    for copy in range(copies):
        for one in found:
            first, last = one.first + copy * batches, one.last + copy * batches
            path = target / "parquet" / f"day={one.day}" / f"{first:016d}-{last:016d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(one.path, path)
            if beside(one.path).exists():
                os.link(beside(one.path), beside(path))
    (target / "spool").mkdir()
    return target


def measure(folder: Path, name: str) -> dict[str, Any]:
    """Backtest one rule twice: the second time, the values of the columns are known."""
    from detectors.sigma.load import load_text
    from siem.backtest import backtest
    from siem.store.archive import MEMORY_LIMIT, Looking

    rules = load_text(_text(name))
    row: dict[str, Any] = {"rule": name}
    for which in ("first_cpu_s", "again_cpu_s"):
        began_s = time.process_time()
        with closing(Looking(folder, MEMORY_LIMIT)) as looking:
            found = backtest(
                looking,
                rules.rules[0].id,
                rules,
                span=Range(BEGIN, END),
                now=END,
                placeholders={},
            )
        row[which] = round(time.process_time() - began_s, 3)
    row |= {"events": found.events, "found": found.total.would, "unread": found.unread}
    row |= {"files": found.files, "peak_rss_mb": _peak_mb()}
    return row


def walk(name: str, events: int) -> dict[str, Any]:
    """Every event decoded from its line and shown to the engine: what a rescan takes."""
    from detectors.sigma.engine import Engine
    from detectors.sigma.load import load_text
    from siem.backtest import event_of
    from siem.store.lines import Encoder, documents_of

    engine = Engine(load_text(_text(name)))
    found, cpu_s = 0, 0.0
    for first in range(0, WALKED, BATCH):
        numbers = range(first, first + BATCH)
        lines = Encoder().lines(_events(numbers, WALKED))
        began_s = time.process_time()
        read = [event_of({**one, "event.id": ""}) for one in documents_of(lines)]
        found += sum(1 for _ in engine.detect(read))
        cpu_s += time.process_time() - began_s
    return {
        "rule": name,
        "rescan_cpu_s": round(cpu_s / WALKED * events, 1),
        "rescan_of": WALKED,
        "found": found,
        "peak_rss_mb": _peak_mb(),
    }


def _text(name: str) -> str:
    detection = RULES[name]
    category = "authentication" if "message" in detection or "login" in detection else "ot_protocol"
    return _RULE.format(title=name, category=category, detection=detection)


def _peak_mb() -> int:
    """Of this program; what `getrusage` says is also that of the one which started it."""
    try:
        (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        peak_kb = int(line)
    except (OSError, ValueError):  # no Linux
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak_kb / 1024)


def rows(folder: Path, events: int) -> Iterator[dict[str, Any]]:
    """One row a rule, each in a process of its own, so that CPU and memory are its own."""
    make(folder, events)
    for name in RULES:
        row = _alone("measure", str(folder), name)
        rescan = _alone("walk", name, str(events))
        row["rescan_cpu_s"] = rescan["rescan_cpu_s"]
        row["times_less"] = round(row["rescan_cpu_s"] / max(row["first_cpu_s"], 0.001))
        many = _alone("measure", str(linked(folder, 10)), name)
        row |= {"x10_first_cpu_s": many["first_cpu_s"], "x10_again_cpu_s": many["again_cpu_s"]}
        row["x10_peak_rss_mb"] = many["peak_rss_mb"]
        yield row


def _alone(*words: str) -> dict[str, Any]:
    command = (sys.executable, "-m", "siem.backtest_bench", *words)
    done = subprocess.run(command, check=True, capture_output=True)
    found: dict[str, Any] = msgspec.json.decode(done.stdout)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        result = measure(Path(sys.argv[2]), sys.argv[3])
    else:
        result = walk(sys.argv[2], int(sys.argv[3]))
    print(msgspec.json.encode(result).decode())
