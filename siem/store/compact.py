"""`python -m siem.store.compact FOLDER UPTO [MEMORY]`: whole segments of events → Parquet.

A process of its own, so that its memory and its crash are its own. Every step may be the last one:
the file is whole before it has its name, and it has its name before the segments go.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from siem.store import distinct
from siem.store.archive import (
    MEMORY_LIMIT,
    Archived,
    archives,
    connect,
    parquet_options,
    quoted,
    salvaged_copy,
)
from siem.store.faults import fault
from siem.store.spool import Segment, segments, sync_folder

log = logging.getLogger(__name__)

GROUP_MAX_BYTES = 512 * 1024 * 1024
"""Segments that become one file."""
SMALL_BYTES = 8 * 1024 * 1024
"""Files smaller than this are merged …"""
MERGE_AT = 16
"""… when a day has so many of them in a row."""


def compact(folder: Path, upto_batch: int, memory_limit: str = MEMORY_LIMIT) -> int:
    """Compact, then merge; returns how many Parquet files were written.

    Only one process does it at a time; a second one finds nothing to do.
    """
    with (folder / "compact.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return 0
        clean(folder)
        db = connect(memory_limit, folder / "tmp")
        made = 0
        for group in _groups(folder, upto_batch):
            _archive(db, folder, group)
            made += 1
        for files in _small(archives(folder)):
            _merge(db, files)
            made += 1
        db.close()
        return made


def clean(folder: Path) -> None:
    """Take away what an earlier run left: unfinished files, and what a whole file holds too."""
    for path in folder.glob("parquet/day=*/*.tmp*"):
        path.unlink(missing_ok=True)
    found = archives(folder)
    kept = {one.path for one in found}
    for path in folder.glob("parquet/day=*/*.parquet"):
        if path not in kept:
            path.unlink(missing_ok=True)
    distinct.clean(folder)
    for segment, after in pairwise(segments(folder)):
        if any(one.covers(segment.first, after.first - 1) for one in found):
            segment.path.unlink(missing_ok=True)


def _groups(folder: Path, upto_batch: int) -> Iterator[tuple[list[Segment], int, str]]:
    """Segments that go into one file together, their last batch, and the day of their receipt."""
    group: list[Segment] = []
    last, day, size = 0, "", 0
    for segment, after in pairwise(segments(folder)):
        if after.first - 1 > upto_batch:
            break
        header = segment.header()
        opened = header.opened.date().isoformat() if header else day
        if group and (opened != day or size > GROUP_MAX_BYTES):
            yield group, last, day
            group, size = [], 0
        group.append(segment)
        last, day = after.first - 1, opened
        size += segment.path.stat().st_size
    if group:
        yield group, last, day


def _archive(db: Any, folder: Path, group: tuple[list[Segment], int, str]) -> None:
    members, last, day = group
    target = folder / "parquet" / f"day={day}" / f"{members[0].first:016d}-{last:016d}.parquet"
    target.parent.mkdir(exist_ok=True)
    unfinished = target.with_name(target.name + ".tmp")
    fault("compact")
    salvaged_copy(db, members, unfinished, folder / "quarantine")
    kept = db.execute(f"SELECT count(*) FROM read_parquet({quoted(str(unfinished))})").fetchone()[0]
    expected = sum(batch.commit.events for one in members for batch in one.batches())
    if kept != expected:
        unfinished.unlink()
        raise SystemExit(f"{target.name} would hold {kept} events of {expected}; segments stay.")
    _finish(unfinished, target)
    for one in members:
        fault("compact-during-delete")
        one.path.unlink(missing_ok=True)
    _note(db, target)


def _note(db: Any, target: Path) -> None:
    """What values the file has; the events are safe without it, and a backtest looks them up."""
    import duckdb

    try:
        distinct.note(target, lambda sql: db.execute(sql).fetchall())
    except (duckdb.Error, OSError) as error:  # it may have gone already, when the disk is full
        log.warning("The values of %s are not noted: %s.", target, str(error)[:200])


def _finish(unfinished: Path, target: Path) -> None:
    """Durable content, then the name, then the durable name."""
    fault("compact-before-rename")
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.rename(target)
    sync_folder(target.parent)
    sync_folder(target.parent.parent)
    fault("compact-after-rename")


def _small(found: Sequence[Archived]) -> Iterator[list[Archived]]:
    """Runs of small files of one day whose batches follow each other."""
    run: list[Archived] = []
    for one in found:
        follows = run and run[-1].day == one.day and run[-1].last + 1 == one.first
        if not (follows and one.path.stat().st_size < SMALL_BYTES):
            if len(run) >= MERGE_AT:
                yield run
            run = []
        if one.path.stat().st_size < SMALL_BYTES:
            run.append(one)
    if len(run) >= MERGE_AT:
        yield run


def _merge(db: Any, files: Sequence[Archived]) -> None:
    target = files[0].path.with_name(f"{files[0].first:016d}-{files[-1].last:016d}.parquet")
    unfinished = target.with_name(target.name + ".tmp")
    listed = ", ".join(quoted(str(one.path)) for one in files)
    fault("merge")
    table = f"(SELECT * FROM read_parquet([{listed}], union_by_name=true, hive_partitioning=false))"
    columns = db.execute(f"SELECT count(*) FROM (DESCRIBE {table})").fetchone()[0]
    db.execute(f"COPY {table} TO {quoted(str(unfinished))} ({parquet_options(columns)})")
    _finish(unfinished, target)
    for one in files:
        fault("merge-during-delete")
        one.path.unlink(missing_ok=True)
        distinct.let_go(one.path)
    _note(db, target)


if __name__ == "__main__":
    os.nice(5)  # what comes in has the right of way
    compact(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:4])
