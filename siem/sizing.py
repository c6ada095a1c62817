"""What a node needs, from measurement: cores and disk for so many events a second."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from cityward.plugin import load
from siem import assembly
from siem.config import Settings
from siem.node import now_utc, settle_memory
from siem.store.events import SEGMENT_MAX_AGE

RATE = 1_000
"""Events a second that the figures are for."""
DAY_S = 86_400


def measure(path: Path) -> dict[str, Any]:
    """Run a file through the whole path and through a compaction, in this process.

    Returns:
        Records, events, and for `RATE` events a second: cores of the path, cores of the compaction,
        GB a day in the archive; GB an hour in the spool before it is compacted; peak memory.
    """
    now = [now_utc()]
    with tempfile.TemporaryDirectory(prefix="cityward-sizing-") as state:
        source = assembly.file_source(path, load("collectors"))
        made = assembly.node_of(
            Settings(state_dir=state), sources=[source], clock=lambda: now[0], event_time=True
        )
        settle_memory()
        began_s = time.process_time()
        for gathered in made.collect_from(source):
            made.conclude(made.detect(made.keep(gathered)))
        made.finish()
        path_s = time.process_time() - began_s
        spool_bytes = made.events.usage()["spool"]
        now[0] += SEGMENT_MAX_AGE + timedelta(seconds=1)
        made.events.compact(made.events.last_batch, wait=True)
        kept_bytes = made.events.usage()["parquet"]
        made.close()
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    events = max(1, source.state.events)
    return {
        "input": path.name,
        "collector": source.name,
        "records": source.state.records,
        "events": source.state.events,
        "cores_path": round(path_s / events * RATE, 3),
        "cores_compaction": round((child.ru_utime + child.ru_stime) / events * RATE, 3),
        "gb_per_day": round(kept_bytes / events * RATE * DAY_S / 1e9, 2),
        "spool_gb_per_hour": round(spool_bytes / events * RATE * DAY_S / 24 / 1e9, 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def rows(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """One row a file, each in a process of its own, so that peak memory is its own."""
    for path in files:
        words = [sys.executable, "-m", "siem.sizing", str(path)]
        done = subprocess.run(words, check=True, capture_output=True)
        yield msgspec.json.decode(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(msgspec.json.encode(measure(Path(sys.argv[1]))).decode())
