"""Speed of the whole path on files that a person names, by stage, with the machine beside it."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cityward import Finding
from cityward.plugin import load
from siem import assembly
from siem.config import Settings
from siem.node import Node, settle_memory


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def node(files: Sequence[Path], repeat: int) -> dict[str, Any]:
    """Run every file `repeat` times through the whole path, in this process.

    Returns:
        Records, events, findings, CPU seconds by stage, events a CPU second and peak memory.
    """
    with tempfile.TemporaryDirectory(prefix="cityward-bench-") as state:
        collectors = load("collectors")
        sources = [
            assembly.file_source(path, collectors, source=f"{path.name}#{number}")
            for number in range(repeat)
            for path in files
        ]
        made = assembly.node_of(Settings(state_dir=state), sources=sources, event_time=True)
        settle_memory()
        cpu_s: dict[str, float] = defaultdict(float)
        findings = 0
        began_s = time.process_time()
        for source in made.sources:
            findings += _through(made, source, cpu_s)
        total_s = time.process_time() - began_s
        made.close()
    events = sum(source.state.events for source in made.sources)
    return {
        "records": sum(source.state.records for source in made.sources),
        "events": events,
        "findings": findings,
        "cpu_s": round(total_s, 3),
        "events_per_cpu_s": round(events / total_s) if total_s else 0,
        **{f"{name}_us_per_event": _us(cpu_s[name], events) for name in sorted(cpu_s)},
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _through(made: Node, source: Any, cpu_s: dict[str, float]) -> int:
    """One source through the stages; adds the CPU seconds of each and counts its matches."""
    found = 0
    at_s = time.process_time()
    for gathered in made.collect_from(source):
        at_s = _lap("read", at_s, cpu_s)
        events = made.keep(gathered)
        at_s = _lap("collect and keep", at_s, cpu_s)
        findings: list[Finding] = []
        for detector in made.detectors:
            findings += detector.detect(events)
            at_s = _lap(detector.name, at_s, cpu_s)
        made.conclude(findings)
        at_s = _lap("conclude", at_s, cpu_s)
        found += len(findings)
    return found


def _lap(name: str, since_s: float, cpu_s: dict[str, float]) -> float:
    now_s = time.process_time()
    cpu_s[name] += now_s - since_s
    return now_s


def _us(seconds: float, events: int) -> float:
    return round(seconds / events * 1e6, 2) if events else 0.0


def in_fresh_process(files: Sequence[Path], repeat: int) -> dict[str, Any]:
    """The same in a process of its own, so that peak memory is its own."""
    words = [sys.executable, "-m", "siem.bench", str(repeat), *map(str, files)]
    done = subprocess.run(words, check=True, capture_output=True)
    found: dict[str, Any] = msgspec.json.decode(done.stdout)
    return found


def node_rows(files: Sequence[Path], repeats: Sequence[int] = (1, 10)) -> Iterator[dict[str, Any]]:
    """One row a size of input: the rate must hold and memory must not grow with it.

    Raises:
        InputError: a file cannot be read, or no collector recognises it.
    """
    collectors = load("collectors")
    for file in files:
        assembly.file_source(file, collectors)
    for repeat in repeats:
        yield {"input": f"×{repeat}", **in_fresh_process(files, repeat)}


if __name__ == "__main__":
    result = node([Path(one) for one in sys.argv[2:]], int(sys.argv[1]))
    print(msgspec.json.encode(result).decode())
