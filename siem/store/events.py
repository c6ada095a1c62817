"""The events of an operator: a spool of what just came, and Parquet of everything before.

One process writes (`append`), others read at the same time (`EventStore(…, write=False)`). A batch
is durable when its commit line is: one write, one fdatasync. Whole segments become Parquet in a
process of its own (`siem/store/compact.py`). The name of a Parquet file says which batches it
holds, so nothing is ever counted twice, whatever a crash left lying about.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from cityward.errors import ConfigError, InputError, TransientError
from cityward.fields import FIELDS
from siem.store import distinct
from siem.store.archive import EVENT_ID_SQL, MEMORY_LIMIT, Archived, Look, Looking, archives
from siem.store.faults import fault, is_due
from siem.store.lines import COLUMNS, Encoder, documents_of, event_id
from siem.store.protocol import TIME_MAX, TIME_MIN, Document, Page, Range
from siem.store.query import DuckDialect, from_micros, parse, steps
from siem.store.room import ROOM_BYTES, SPARED, is_full
from siem.store.spool import Header, Segment, commit_line, pairs, segments, sync_folder

__all__ = ["EventStore", "event_id"]

log = logging.getLogger(__name__)

FORMAT = 1
"""Of the folder; a newer one is refused."""
SEGMENT_MAX_BYTES = 64 * 1024 * 1024
SEGMENT_MAX_AGE = timedelta(seconds=60)
QUARANTINE_MAX_BYTES = 64 * 1024 * 1024
ATTEMPTS = 3
"""How often a question is asked whose files are compacted under it."""

Clock = Callable[[], datetime]
T = TypeVar("T")

SEARCHED = (
    "message",
    "event.original",
    "event.action",
    "event.dataset",
    "event.outcome",
    "event.reason",
    "error.message",
    "source.ip",
    "source.domain",
    "destination.ip",
    "destination.domain",
    "network.protocol",
    "host.name",
    "user.name",
    "process.name",
    "process.command_line",
    "file.path",
    "url.original",
    "dns.question.name",
    "rule.name",
    "cw.asset.asset_id",
    "cw.asset.zone",
    "cw.record.source",
    "ot.operation",
    "ot.function.name",
    "ot.point.tag",
    "ot.mqtt.topic",
    "phys.point",
    "phys.state",
    "phys.track",
)
"""Where a bare word is looked for."""

_QUERY_FIELDS = {name: field.type for name, field in FIELDS.items()}
_SQL_NAMES = {**{name: f'"{name}"' for name in COLUMNS}, "event.id": EVENT_ID_SQL}
_DIALECT = DuckDialect(_SQL_NAMES, SEARCHED)


class EventStore:
    """Events of one operator in a folder; `append` and `replay` for the path, the rest to look.

    The path opens it with `write=True`, once a folder; the console with `write=False`.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock = lambda: datetime.now(UTC),
        *,
        write: bool = True,
        retention_days: int = 30,
        quota_bytes: int = 0,
        segment_max_bytes: int = SEGMENT_MAX_BYTES,
        segment_max_age: timedelta = SEGMENT_MAX_AGE,
        memory_limit: str = MEMORY_LIMIT,
    ) -> None:
        """Open, or make, the folder.

        Args:
            folder: Everything is in here.
            clock: The node's time; it names the day of a Parquet file.
            write: Whether this process appends; only one may.
            retention_days: Days of receipt that are kept; today's not counted.
            quota_bytes: Disk that events may take; 0: as much as there is.
            segment_max_bytes: A segment is closed when it is this large …
            segment_max_age: … or this old.
            memory_limit: What DuckDB may use in a query and in a compaction.

        Raises:
            ConfigError: a newer cityward wrote the folder, or another process writes to it.
        """
        self.folder = folder
        self.encoder = Encoder()
        self.memory_limit = memory_limit
        self._clock = clock
        self._retention_days = retention_days
        self._quota_bytes = quota_bytes
        self._max_bytes = segment_max_bytes
        self._max_age = segment_max_age
        self._places: dict[str, Any] = {}
        self._batch = 0
        self._file: IO[bytes] | None = None
        self._writer: IO[bytes] | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._looking: Looking | None = None
        self._lock = threading.Lock()
        for part in ("spool", "parquet", "quarantine"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        self._check_format(write)
        if write:
            self._own()
            self._recover()

    @classmethod
    def open(cls, folder: Path, clock: Clock, **settings: Any) -> EventStore:
        """Open a folder for writing; see `EventStore`."""
        return cls(folder, clock, **settings)

    def _check_format(self, write: bool) -> None:
        path = self.folder / "format"
        try:
            text = path.read_text(encoding="ascii").strip()
            found = int(text) if text else 0
        except FileNotFoundError:
            found = 0
        except (ValueError, UnicodeDecodeError) as error:
            raise ConfigError("no format number", str(path), "Restore it from a backup.") from error
        if found > FORMAT:
            raise ConfigError(
                f"format {found} of the events is newer than {FORMAT}",
                str(path),
                "Run the cityward that wrote it, or a newer one.",
            )
        if found == 0 and write:
            path.write_text(f"{FORMAT}\n", encoding="ascii")
            sync_folder(self.folder)

    def _own(self) -> None:
        """Be the only one that writes; the lock goes with the process."""
        self._writer = (self.folder / "writer.lock").open("wb")
        try:
            fcntl.flock(self._writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._writer.close()
            raise ConfigError(
                "another process writes these events",
                str(self.folder),
                "Stop the other node, or give this one a state_dir of its own.",
            ) from error

    def _recover(self) -> None:
        """Find the last whole batch; cut what was being written when the process ended."""
        found = segments(self.folder)
        while found and found[-1].header() is None:
            # A segment gets its name when its first line is whole: the disk has damaged this one.
            damaged = found.pop().path
            log.error("%s has no first line and is put aside.", damaged)
            damaged.rename(self.folder / "quarantine" / damaged.name)
        self._batch = max((one.last for one in archives(self.folder)), default=0)
        if found:
            self._take_up(found[-1])
        try:
            self._begin_segment()
        except OSError as error:
            if not is_full(error) or not self.make_room(self._clock()):
                raise
            self._begin_segment()

    def _take_up(self, last: Segment) -> None:
        header = last.header()
        assert header is not None
        self._places = dict(header.places)
        self._batch = max(self._batch, header.first - 1)
        end = last.header_bytes()
        for batch in last.batches():
            end = batch.end
            self._batch = batch.commit.batch
            self._places.update(msgspec.json.decode(batch.commit.places))
            if not batch.is_sound:
                log.error("Batch %d in %s was damaged on disk.", self._batch, last.path)
        size = last.path.stat().st_size
        if size > end:
            log.warning("The last %d bytes of %s were not committed.", size - end, last.path)
        with last.path.open("rb+") as file:
            file.truncate(end)
            # A process that was killed before its sync left a batch that only the memory has.
            os.fsync(file.fileno())

    # ---- Writing

    def append(self, documents: Sequence[bytes | Document], places: Mapping[str, Any]) -> int:
        """Make a batch durable: its events and where their sources stand after them.

        Returns:
            Its number: 1, 2, 3 … over the life of the folder, without a gap.

        Raises:
            ValueError: a document has no time.
            OSError: the disk refuses; the batch is not kept.
        """
        lines = self.encoder.lines(documents)
        if self._is_full():
            self._rotate()
        assert self._file is not None
        number = self._batch + 1
        data = lines + commit_line(number, lines, len(documents), msgspec.json.encode(places))
        fault("before-commit")
        start = self._file.tell()
        try:
            self._write(self._file, data)
        except OSError:
            # Half a batch must not stand before a whole one.
            self._file.truncate(start)
            self._file.seek(start)
            raise
        fault("after-commit")
        self._batch = number
        self._places.update(places)
        return number

    @staticmethod
    def _write(file: IO[bytes], data: bytes) -> None:
        if is_due("during-write"):
            file.write(data[: len(data) // 2])
            os.kill(os.getpid(), 9)
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        fault("before-sync")
        os.fdatasync(file.fileno())

    def places(self) -> dict[str, Any]:
        """Where every source stood after the last batch, by source."""
        return dict(self._places)

    @property
    def last_batch(self) -> int:
        """Number of the last batch; 0: there is none."""
        return self._batch

    def _is_full(self) -> bool:
        assert self._file is not None
        if self._batch < self._first:
            return False
        now = self._clock()
        return (
            self._file.tell() >= self._max_bytes
            or abs(now - self._opened) >= self._max_age
            or now.date() != self._opened.date()
        )

    def _rotate(self) -> None:
        fault("rotate")
        self._begin_segment()

    def _begin_segment(self) -> None:
        """A new file with all places, durable before the first batch goes into it."""
        first, opened = self._batch + 1, self._clock().astimezone(UTC)
        path = self.folder / "spool" / f"{first:016d}.ndjson"
        unfinished = path.with_suffix(".tmp")
        file = unfinished.open("wb", buffering=0)
        try:
            header = Header(FORMAT, first, opened, self._places)
            self._write(file, msgspec.json.encode(header) + b"\n")
            fault("rotate-before-rename")
            # A segment of this name holds no batch, but all places: it is never gone for a moment.
            unfinished.replace(path)
        except OSError:
            # The old segment goes on: what went into a file without a name would be lost.
            file.close()
            raise
        if self._file is not None:
            self._file.close()
        self._file, self._first, self._opened = file, first, opened
        sync_folder(path.parent)
        fault("rotate-after-rename")

    def replay(self, after_batch: int) -> Iterator[tuple[int, list[Document]]]:
        """Batches after a number, from the spool, oldest first, as they were appended."""
        for segment, following in pairs(segments(self.folder)):
            if following is not None and following.first - 1 <= after_batch:
                continue
            for batch in segment.batches():
                if batch.commit.batch > after_batch and batch.is_sound:
                    yield batch.commit.batch, documents_of(batch.lines)

    # ---- Tidying

    def compact(self, upto_batch: int, *, wait: bool = False) -> bool:
        """Turn whole segments into Parquet in another process.

        Args:
            upto_batch: Batches up to here are not needed for a replay any more.
            wait: Come back when it is done.

        Returns:
            False if an earlier one is still running, or the last one failed.
        """
        if self._batch >= self._first and abs(self._clock() - self._opened) >= self._max_age:
            self._rotate()
        if not self._reap(wait):
            return False
        if not self._closed(upto_batch):
            return True
        command = (sys.executable, "-m", "siem.store.compact", str(self.folder))
        settings = (str(min(upto_batch, self._first - 1)), self.memory_limit)
        self._child = subprocess.Popen((*command, *settings), stdin=subprocess.DEVNULL)
        return self._reap(wait) if wait else True

    def _closed(self, upto_batch: int) -> bool:
        """Whether there is a segment to compact."""
        following = [after.first for _, after in pairs(segments(self.folder)) if after]
        return any(first - 1 <= upto_batch for first in following)

    def _reap(self, wait: bool) -> bool:
        """True if no compaction is running and the last one went well."""
        if self._child is None:
            return True
        try:
            code = self._child.wait() if wait else self._child.poll()
        except KeyboardInterrupt:
            return False
        if code is None:
            return False
        self._child = None
        if code < 0 and wait:
            return False  # ended by us; the next one begins anew
        if code != 0:
            log.error("Compaction ended with code %d; the segments stay.", code)
        return code == 0

    def retain(self, now: datetime) -> dict[str, int]:
        """Let go of what is old, and of what is too much; counted.

        Order: days older than the retention, the oldest first. If the folder is still larger than
        the quota: the oldest Parquet file of the oldest day, and so on, today's last. The spool
        never goes: it has not been compacted, and may not have been looked at by the detectors.
        """
        gone: Counter[str] = Counter(days=0, files=0, batches=0, bytes=0)
        limit = (now.astimezone(UTC) - timedelta(days=self._retention_days)).date().isoformat()
        for one in archives(self.folder):
            if one.day < limit:
                _let_go(one, gone)
        if self._quota_bytes:
            before = gone["bytes"]
            surplus = self.used_bytes() - self._quota_bytes
            for one in archives(self.folder):
                if gone["bytes"] - before >= surplus:
                    break
                fault("retain")
                _let_go(one, gone)
        distinct.clean(self.folder)
        for day in sorted((self.folder / "parquet").glob("day=*")):
            try:
                day.rmdir()
                gone["days"] += 1
            except OSError:
                continue  # not empty
        self._trim_quarantine(gone)
        if gone["files"]:
            log.warning("%d files of events went, %d bytes.", gone["files"], gone["bytes"])
        return dict(gone)

    def make_room(self, now: datetime, wanted_bytes: int = ROOM_BYTES) -> int:
        """Let the oldest events go when the disk is full; those of today and yesterday never.

        Returns:
            Bytes that are free now; 0: there is nothing that may go.
        """
        gone: Counter[str] = Counter(self.retain(now))
        spared = (now.astimezone(UTC) - SPARED).date().isoformat()
        for one in archives(self.folder):
            if gone["bytes"] >= wanted_bytes or one.day >= spared:
                break
            _let_go(one, gone)
            log.warning("The disk is full: the events in %s went.", one.path)
        return gone["bytes"]

    def _trim_quarantine(self, gone: Counter[str]) -> None:
        files = sorted((self.folder / "quarantine").iterdir())
        size = sum(one.stat().st_size for one in files)
        for one in files:
            if size <= QUARANTINE_MAX_BYTES:
                return
            size -= one.stat().st_size
            one.unlink()
            gone["quarantined"] += 1

    def used_bytes(self) -> int:
        """What the folder takes."""
        return sum(self.usage().values())

    def usage(self) -> dict[str, int]:
        """Bytes by part: `spool`, `parquet`, `quarantine`."""
        return {
            part: sum(_size(path) for path in (self.folder / part).rglob("*"))
            for part in ("spool", "parquet", "quarantine")
        }

    def close(self) -> None:
        """Let go of the files; a compaction under way is ended, and begins anew another time."""
        if self._child is not None:
            self._child.terminate()
        self._reap(wait=True)
        for file in (self._file, self._writer):
            if file is not None:
                file.close()
        self._file = self._writer = None
        if self._looking is not None:
            self._looking.close()
            self._looking = None

    # ---- Looking

    def search(self, query: str, span: Range, limit: int = 50, offset: int = 0) -> Page:
        """Events of the span, newest first."""
        where, values = self._where(query, span)
        order = '"@timestamp" DESC, "cw.record.source", "cw.record.place" DESC,'
        order += ' "cw.record.number" DESC'

        def ask(look: Look) -> Page:
            files = look.files(span)
            total = look.rows(f"SELECT count(*) FROM {files} WHERE {where}", values)[0][0]
            if not total or limit <= 0:
                return Page([], total, look.damaged())
            # First where they are, then the rows: whole rows are dear.
            hits = look.rows(
                f"SELECT filename, file_row_number FROM {files} WHERE {where}"
                f" ORDER BY {order} LIMIT {int(limit)} OFFSET {int(offset)}",
                values,
            )
            return Page(look.documents(hits), total, look.damaged())

        return self._ask(ask)

    def get(self, event_id: str, near: datetime | None = None) -> Document | None:
        """One event; `near` its time makes it quick."""
        spans = [Range()]
        if near is not None:
            minute = timedelta(minutes=1)
            near = min(max(near, TIME_MIN + minute), TIME_MAX)
            spans.insert(0, Range(near - minute, near + minute))
        for span in spans:
            if found := self._ask(lambda look, span=span: self._one(look, event_id, span)):  # type: ignore[misc]
                return found[0]
        return None

    def _one(self, look: Look, event_id: str, span: Range) -> list[Document]:
        where, values = self._where("", span)
        hits = look.rows(
            f"SELECT filename, file_row_number FROM {look.files(span)}"
            f" WHERE {where} AND {EVENT_ID_SQL} = ? LIMIT 1",
            [*values, event_id],
        )
        return look.documents(hits)

    def histogram(self, query: str, span: Range, buckets: int = 96) -> list[tuple[datetime, int]]:
        """Start of each bucket and its count; empty if nothing is in the range."""
        where, values = self._where(query, span)

        def ask(look: Look) -> list[tuple[datetime, int]]:
            files = look.files(span)
            first, last = look.rows(
                f'SELECT epoch_us(min("@timestamp")), epoch_us(max("@timestamp")) FROM {files}'
                f" WHERE {where}",
                values,
            )[0]
            if first is None:
                return []
            start, step = steps(span, first, last, buckets)
            made = [0] * buckets
            for place, count in look.rows(
                f'SELECT (epoch_us("@timestamp") - ?) // ? AS place, count(*) FROM {files}'
                f" WHERE {where} GROUP BY place",
                [start, step, *values],
            ):
                made[min(place, buckets - 1)] += count
            return [(from_micros(start + step * place), count) for place, count in enumerate(made)]

        return self._ask(ask)

    def top_values(
        self, query: str, span: Range, field: str, limit: int = 10
    ) -> tuple[list[tuple[str, int]], int]:
        """Most frequent values with their counts, and how many matching events have the field."""
        column = self._column(field)
        where, values = self._where(query, span)
        is_list = COLUMNS.get(field, "").endswith("[]")
        value = f"unnest({column})" if is_list else f"CAST({column} AS VARCHAR)"
        having = f"len({column}) > 0" if is_list else f"{column} IS NOT NULL"

        def ask(look: Look) -> tuple[list[tuple[str, int]], int]:
            files = look.files(span)
            rows = look.rows(
                f"SELECT value, count(*) AS n FROM (SELECT {value} AS value FROM {files}"
                f" WHERE {where} AND {having}) GROUP BY value ORDER BY n DESC, value"
                f" LIMIT {int(limit)}",
                values,
            )
            counted = f"SELECT count(*) FROM {files} WHERE {where} AND {having}"
            return [(str(value), n) for value, n in rows], look.rows(counted, values)[0][0]

        return self._ask(ask)

    def fields(self, query: str, span: Range) -> list[tuple[str, int]]:
        """Fields that matching events have, with counts, most frequent first."""
        where, values = self._where(query, span)
        counted = ", ".join(f'count("{name}")' for name in COLUMNS)
        row = self._ask(
            lambda look: look.rows(
                f"SELECT {counted} FROM {look.files(span)} WHERE {where}", values
            )
        )[0]
        found = [(name, count) for name, count in zip(COLUMNS, row, strict=True) if count]
        return sorted(found, key=lambda one: (-one[1], one[0]))

    def _where(self, query: str, span: Range) -> tuple[str, list[Any]]:
        text, values = _DIALECT.where(parse(query, _QUERY_FIELDS, self._clock()))
        limits = [time_.astimezone(UTC).replace(tzinfo=None) for time_ in (span.since, span.until)]
        return f'"@timestamp" >= ? AND "@timestamp" < ? AND {text}', [*limits, *values]

    def _column(self, field: str) -> str:
        if field not in _SQL_NAMES:
            raise InputError(f"there is no field {field}", "field", "Choose one of the list.")
        return _SQL_NAMES[field]

    def _ask(self, question: Callable[[Look], T]) -> T:
        """Answer a question; again if its files were compacted under it."""
        with self._lock:
            if self._looking is None:
                self._looking = Looking(self.folder, self.memory_limit)
        for _ in range(ATTEMPTS - 1):
            try:
                with Look(self._looking) as look:
                    return question(look)
            except TransientError:
                continue
        with Look(self._looking) as look:
            return question(look)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def _let_go(one: Archived, gone: Counter[str]) -> None:
    gone["bytes"] += _size(one.path) + _size(distinct.beside(one.path))
    gone["files"] += 1
    gone["batches"] += one.last - one.first + 1
    one.path.unlink(missing_ok=True)
    distinct.let_go(one.path)
