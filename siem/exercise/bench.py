"""The city lane of the Sigma engine: our own rules on the demo's evening, in nodes and alone.

An evening of the invented city, the steps of the strangers included, is written into files and read
by one node an operator. What the nodes kept is then shown to fresh engines: as Events, which is how
a node has them, and decoded from the lines in which they are stored, as an engine beside a node
would have to.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec

from cityward import Event, Finding, plugin
from detectors.sigma.engine import Engine
from siem import assembly, config
from siem.exercise.evening import Clock, Put, Stage, afternoon, ordinary
from siem.exercise.frames import pcap_head, pcap_record
from siem.exercise.saltmere import City, Place, captures_of
from siem.exercise.steps import scenes
from siem.node import Node, document, event_of, settle_memory

BATCH = 512
BEGAN = datetime(2026, 1, 5, 18, tzinfo=UTC)


class Run(msgspec.Struct):
    """What one process measures, in seconds of CPU; it grows operator by operator."""

    rules: int = 0
    events: int = 0
    findings: int = 0
    """Of the engine, repeats included."""
    load_s: float = 0.0
    node_s: float = 0.0
    """The nodes' whole path, from records to findings that are kept."""
    engine_s: float = 0.0
    """Of this, what the engine took."""
    cold_s: float = 0.0
    """A fresh engine on Events."""
    warm_s: float = 0.0
    """The same events a day later."""
    lines_s: float = 0.0
    """Another day later, from stored lines, decoding included."""
    rss_mb: int = 0


def measured(rounds: int = 3) -> dict[str, Any]:
    """The row of the city lane: events a CPU second as Events, from lines, and in nodes."""
    ran = [_in_child() for _ in range(rounds)]
    events = ran[0].events
    node_s = min(one.node_s for one in ran)
    return {
        "lane": "city",
        "rules": ran[0].rules,
        "events": events,
        "findings": ran[0].findings,
        "batch": BATCH,
        "cold_per_s": round(events / min(one.cold_s for one in ran)),
        "warm_per_s": round(events / min(one.warm_s for one in ran)),
        "lines_per_s": round(events / min(one.lines_s for one in ran)),
        "node_per_s": round(events / node_s),
        "engine_of_node": f"{min(one.engine_s for one in ran) / node_s:.0%}",
        "load_s": round(min(one.load_s for one in ran), 2),
        "rss_mb": max(one.rss_mb for one in ran),
    }


def _in_child() -> Run:
    words = [sys.executable, "-m", "siem.exercise.bench"]
    done = subprocess.run(words, capture_output=True, check=True)
    return msgspec.json.decode(done.stdout, type=Run)


def ours(seed: int = 1) -> Run:
    """Measure here; the process should do nothing else."""
    run = Run()
    settle_memory()
    for place, puts in evening(seed):
        with tempfile.TemporaryDirectory(prefix="cityward-bench-") as folder:
            node = _node(place, puts, Path(folder))
            events = _through(node, run)
            engine = cast(Engine, node.detectors[0])
            node.close()
        _alone(engine, events, run)
    run.rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return run


# ---- The evening, in nodes


def evening(seed: int) -> Iterator[tuple[Place, list[Put]]]:
    """What the sources of each operator say, in the order of its time."""
    city, clock = City(seed), Clock(BEGAN)
    told = defaultdict[str, list[Put]](list)
    for step, scene in scenes(city, clock):
        told[step.operator] += scene.puts
    for place in city.places.values():
        stage = Stage(city, place, clock, "ordinary")
        puts = [*afternoon(stage), *ordinary(stage), *told[place.operator]]
        yield place, sorted(puts, key=lambda one: one.at_s)


def _node(place: Place, puts: Sequence[Put], folder: Path) -> Node:
    """A node of an operator that reads its evening from files."""
    text = place.settings(folder, defaultdict(lambda: 514))
    collectors = plugin.load("collectors")
    said = defaultdict[str, list[Put]](list)
    for put in puts:
        said[put.source].append(put)
    sources = []
    for feed in place.feeds:
        for name in captures_of(feed) if feed.kind == "tap" else (feed.id,):
            for file in _files(folder / name, feed.kind, said[name]):
                sources.append(
                    assembly.file_source(file, collectors, source=file.stem, named=feed.collector)
                )
    settings = config.parse(tomllib.loads(text))
    return assembly.node_of(settings, sources=sources, event_time=True)


def _files(path: Path, kind: str, puts: Sequence[Put]) -> Iterator[Path]:
    """A source as it would be in files: a capture, a document each, or a log."""
    if kind == "tap":
        file = path.with_suffix(".pcap")
        times = [(BEGAN + timedelta(seconds=put.at_s)).timestamp() for put in puts]
        frames = [
            pcap_record(round(time_s * 1e6), put.data)
            for time_s, put in zip(times, puts, strict=True)
        ]
        file.write_bytes(pcap_head() + b"".join(frames))
        yield file
    elif kind == "folder":
        for number, put in enumerate(puts):
            file = path.with_name(f"{path.name}-{number}")
            file.write_bytes(put.data)
            yield file
    else:
        file = path.with_suffix(".log")
        file.write_bytes(b"".join(put.data + b"\n" for put in puts))
        yield file


def _through(node: Node, run: Run) -> list[Event]:
    """Every event a node keeps; adds what the whole path took, and what the engine took."""
    kept: list[Event] = []
    began_s = time.process_time()
    for source in node.sources:
        for gathered in node.collect_from(source):
            events = node.keep(gathered)
            kept += events
            found: list[Finding] = []
            for detector in node.detectors:
                at_s = time.process_time()
                found += detector.detect(events)
                if detector.name == Engine.name:
                    run.engine_s += time.process_time() - at_s
            node.conclude(found)
    run.node_s += time.process_time() - began_s
    return kept


# ---- The engine alone


def _alone(engine: Engine, events: Sequence[Event], run: Run) -> None:
    """A fresh engine with the rules and lists of a node, on what the node kept."""
    began_s = time.process_time()
    fresh = Engine(engine.rules, engine.placeholders)
    fresh.prepare()
    run.load_s += time.process_time() - began_s
    run.rules = len(engine.rules.speaking())
    run.events += len(events)
    for day in (0, 1):
        given = _later(events, day)
        began_s = time.process_time()
        findings = 0
        for start in range(0, len(given), BATCH):
            findings += sum(one.count for one in fresh.detect(given[start : start + BATCH]))
        spent_s = time.process_time() - began_s
        if day:
            run.warm_s += spent_s
        else:
            run.cold_s += spent_s
            run.findings += findings
    lines = [msgspec.json.encode(document(event)) for event in _later(events, 2)]
    began_s = time.process_time()
    for start in range(0, len(lines), BATCH):
        deque(fresh.detect([*map(_stored, lines[start : start + BATCH])]), maxlen=0)
    run.lines_s += time.process_time() - began_s


def _later(events: Sequence[Event], days: int) -> list[Event]:
    wait = timedelta(days=days)
    return [msgspec.structs.replace(event, time=event.time + wait) for event in events]


def _stored(line: bytes) -> Event:
    fields = msgspec.json.decode(line)
    fields["@timestamp"] = datetime.fromisoformat(fields["@timestamp"])
    return event_of(fields)


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(ours()))
