"""Samples of rules through the real collectors: what `rule test` runs.

A rule is tried on its own, with what it builds on: a rule that only serves a correlation does not
speak in a node, but its samples still say what it matches.
"""

from __future__ import annotations

import struct
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from cityward import Event, Record, plugin
from collectors.packets.capture import CaptureReader
from detectors.sigma.correlation import bases_of
from detectors.sigma.engine import Engine
from detectors.sigma.matchers import Placeholders
from detectors.sigma.rule import Absence, Correlation, Rule, RuleSet, Speaking
from detectors.sigma.samples import (
    FIRST_TIME,
    Frame,
    Outcome,
    Samples,
    run_case,
    surviving_mutants,
)

SOURCE = "sample"
"""Source id of the records of a sample."""

_PCAP_HEAD = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 1)
"""File header: times in nanoseconds, Ethernet (draft-ietf-opsawg-pcap)."""


def collect(collector: str, records: Sequence[bytes], frames: Sequence[Frame]) -> list[Event]:
    """Run the raw records of a sample through the collector of this name, to its end.

    Raises:
        ValueError: no collector is called so, or it reads the other kind of records.
    """
    collectors = _collectors()
    if collector not in collectors:
        raise ValueError(f"no collector is called {collector!r}: {', '.join(sorted(collectors))}")
    part = collectors[collector]
    if (part.cityward_spec.framing == "packets") is not bool(frames):
        raise ValueError(f"{collector} reads {part.cityward_spec.framing}")
    read = part() if isinstance(part, type) else part
    batches = _chunks(frames) if frames else [_records(records)]
    found = [event for batch in batches for event in read(batch)]
    if end := getattr(read, "end", None):
        found += end()
    return found


@cache
def _collectors() -> Mapping[str, Any]:
    """They are looked for once: to ask every installed package takes longer than a sample."""
    return plugin.load("collectors")


def _records(lines: Sequence[bytes]) -> list[Record]:
    return [Record(line, SOURCE, number, FIRST_TIME) for number, line in enumerate(lines)]


def _chunks(frames: Sequence[Frame]) -> Iterator[Any]:
    """Frames as a capture reader gives them."""
    with tempfile.TemporaryDirectory(prefix="cityward-") as folder:
        file = Path(folder) / "sample.pcap"
        file.write_bytes(_PCAP_HEAD + b"".join(_framed(frame) for frame in frames))
        reader = CaptureReader(file, SOURCE, lambda: FIRST_TIME)
        for batch in reader.read(None, threading.Event()):
            yield batch.records


def _framed(frame: Frame) -> bytes:
    # Microseconds, as an exact integer: a float of today's seconds is good for no more.
    time_us = round(frame.time_s * 1_000_000)
    size = len(frame.data)
    head = struct.pack("<IIII", time_us // 1_000_000, time_us % 1_000_000 * 1000, size, size)
    return head + frame.data


def alone(one: Speaking, rules: RuleSet) -> RuleSet:
    """The rule set that holds only this rule and what it builds on, filters included."""
    wanted, waiting = {one.id}, [one.id]
    every: list[Correlation | Absence] = [*rules.correlations, *rules.absences]
    built = {each.id: each for each in every}
    while waiting:
        if base := built.get(waiting.pop()):
            waiting += [each for each in bases_of(base) if each not in wanted]
            wanted.update(bases_of(base))
    return msgspec.structs.replace(
        rules,
        rules=tuple(each for each in rules.rules if each.id in wanted),
        correlations=tuple(each for each in rules.correlations if each.id in wanted),
        absences=tuple(each for each in rules.absences if each.id in wanted),
        refused=(),
    )


def outcomes(one: Speaking, rules: RuleSet, samples: Samples) -> Iterator[Outcome]:
    """Run every case of a rule."""
    own = alone(one, rules)

    def engine(placeholders: Placeholders) -> Engine:
        return Engine(own, placeholders)

    for case in samples.cases:
        yield run_case(case, one, engine, collect)


def unnoticed(one: Speaking, rules: RuleSet, samples: Samples) -> list[str]:
    """Lines of a rule that could be left out without a case failing."""
    if not isinstance(one, Rule):
        return []
    return surviving_mutants(samples, one, alone(one, rules), collect)
