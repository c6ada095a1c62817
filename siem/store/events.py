"""The events of an operator: a spool of what just came, and Parquet of everything before.

One process writes (`append`), others read at the same time (`EventStore(…, write=False)`). A batch
is durable when its commit line is: one write, one fdatasync. Whole segments become Parquet in a
process of its own (`siem/store/compact.py`). The name of a Parquet file says which batches it
holds, so nothing is ever counted twice, whatever a crash left lying about.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import msgspec

from cityward.errors import ConfigError, InputError, TransientError
from cityward.event import ORIGINAL_MAX_BYTES
from cityward.fields import FIELDS
from siem.store.faults import fault, is_due
from siem.store.protocol import Document, Page, Range
from siem.store.query import DuckDialect, from_micros, in_network, parse, steps

log = logging.getLogger(__name__)

FORMAT = 1
"""Of the folder; a newer one is refused."""
SEGMENT_MAX_BYTES = 64 * 1024 * 1024
SEGMENT_MAX_AGE = timedelta(seconds=60)
LINE_MAX_BYTES = 1024 * 1024
QUARANTINE_MAX_BYTES = 64 * 1024 * 1024
MEMORY_LIMIT = "512MB"
INT64 = 2**63

Clock = Callable[[], datetime]


def event_id(operator: str, source: str, place: str, number: int) -> str:
    """Id of an event: the same event has the same id, however often it is read.

    References:
        Schema, "Ids": first 32 hex digits of sha256(operator, source id, place, number).
    """
    said = "\x1f".join((operator, source, place, str(number)))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]


EVENT_ID_SQL = (
    'left(sha256(concat_ws(chr(31), coalesce("cw.operator", \'\'), "cw.record.source",'
    ' "cw.record.place", CAST("cw.record.number" AS VARCHAR))), 32)'
)

_DUCK_TYPES = {
    "keyword": "VARCHAR",
    "text": "VARCHAR",
    "ip": "VARCHAR",
    "geo_point": "VARCHAR",
    "date": "TIMESTAMP",
    "long": "BIGINT",
    "double": "DOUBLE",
    "float": "DOUBLE",
    "boolean": "BOOLEAN",
    "flat_object": "JSON",
}
COLUMNS: dict[str, str] = {
    name: _DUCK_TYPES[field.type.removesuffix("[]")] + ("[]" if field.type.endswith("[]") else "")
    for name, field in FIELDS.items()
    if name != "event.id"
}
"""Fields and their DuckDB types; times are UTC, ids are computed when they are read."""

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


# ---- Documents → lines


class Encoder:
    """Stored documents as lines; what does not fit the field table is moved, and counted."""

    def __init__(self) -> None:
        self.moved: Counter[str] = Counter()
        """Values that were moved to `cw.vendor` or cut, by field."""
        self._json = msgspec.json.Encoder()

    def lines(self, documents: Sequence[bytes | Document]) -> bytes:
        """One line a document.

        Raises:
            ValueError: a document has no time, or is given as bytes and does not begin with it.
        """
        if not any(isinstance(one, bytes) for one in documents):
            checked = [self._checked(one) for one in documents]  # type: ignore[arg-type]
            try:
                data = self._json.encode_lines(checked)
            except (UnicodeEncodeError, TypeError, msgspec.MsgspecError):
                data = b""  # line by line below
            if len(data) <= LINE_MAX_BYTES or (data and max(map(len, checked)) < 64):
                longest = max(map(len, data.splitlines()), default=0) if data else 0
                if data and longest < LINE_MAX_BYTES:
                    return data
                if not documents:
                    return b""
        return b"".join(self._line(one) for one in documents)

    def _line(self, document: bytes | Document) -> bytes:
        if isinstance(document, bytes):
            if not document.startswith(b'{"@timestamp":') or b"\n" in document.rstrip(b"\n"):
                raise ValueError(f"no event line: {document[:80]!r}")
            return document.rstrip(b"\n") + b"\n"
        checked = self._checked(document)
        try:
            line = self._json.encode(checked)
        except (UnicodeEncodeError, TypeError, msgspec.MsgspecError):
            self.moved["text"] += 1
            line = self._json.encode(_harmless(checked))
        if len(line) >= LINE_MAX_BYTES:
            self.moved["line"] += 1
            line = self._json.encode(_shortened(checked))
        return line + b"\n"

    def _checked(self, document: Document) -> Document:
        """The document if all of its values fit; else one in which they do."""
        time_ = document.get("@timestamp")
        if type(time_) is not datetime:
            raise ValueError(f"an event without a time: {str(document)[:200]}")
        for name, value in document.items():
            check = _CHECKS.get(name)
            if check is None or not check(value):
                return self._mended(document)
        if next(iter(document)) != "@timestamp":
            return {"@timestamp": time_, **document}
        return document

    def _mended(self, document: Document) -> Document:
        vendor = dict(document.get("cw.vendor") or {})
        kept: Document = {"@timestamp": _utc(document["@timestamp"])}
        for name, value in document.items():
            check = _CHECKS.get(name)
            if name in ("@timestamp", "cw.vendor", "event.id") or value is None:
                continue
            if check is not None and check(value):
                kept[name] = value
            elif isinstance(value, datetime) and COLUMNS.get(name) == "TIMESTAMP":
                kept[name] = _utc(value)
            elif name == "cw.record.place":
                kept[name] = str(value)
            else:
                self.moved[name] += 1
                vendor[name] = str(value)[:ORIGINAL_MAX_BYTES]
        if vendor:
            kept["cw.vendor"] = vendor
        return kept


def _utc(value: datetime) -> datetime:
    """DuckDB reads no offsets, so every time is written in UTC."""
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_long(value: Any) -> bool:
    return type(value) is int and -INT64 <= value < INT64


def _is_double(value: Any) -> bool:
    # An infinite or undefined reading would be written as null.
    kind = type(value)
    return (kind is float and value - value == 0) or (kind is int and abs(value) < 10**300)


def _is_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(type(one) is str for one in value)


_CHECK_OF: dict[str, Callable[[Any], bool]] = {
    "VARCHAR": _is_text,
    "VARCHAR[]": _is_texts,
    "TIMESTAMP": lambda value: type(value) is datetime and value.tzinfo is UTC,
    "BIGINT": _is_long,
    "DOUBLE": _is_double,
    "BOOLEAN": lambda value: type(value) is bool,
    "JSON": lambda value: type(value) is dict,
}
_CHECKS: dict[str, Callable[[Any], bool]] = {
    name: _CHECK_OF[kind] for name, kind in COLUMNS.items()
}


def _harmless(value: Any) -> Any:
    """The same with texts that are UTF-8 and numbers that JSON knows."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_harmless(str(key)): _harmless(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_harmless(one) for one in value]
    if value is None or isinstance(value, (bool, int, float, datetime)):
        return value
    return _harmless(str(value))


def _shortened(document: Document) -> Document:
    """A document whose line fits: long texts are cut, what the source said beside is left out."""
    short = {
        name: value[:4096] if isinstance(value, str) else value[:64] if _is_texts(value) else value
        for name, value in _harmless(document).items()
        if name != "cw.vendor"
    }
    return {**short, "cw.vendor": {"cityward.cut": "line"}}


# ---- Segments

_COMMIT = b'{"cw.batch":'
_HEADER = b'{"cw.segment":'


class Commit(msgspec.Struct, frozen=True):
    """The line that makes a batch durable."""

    batch: int = msgspec.field(name="cw.batch")
    events: int
    crc: int
    """CRC-32 of the event lines and the places as they stand."""
    places: msgspec.Raw


class Header(msgspec.Struct, frozen=True):
    """The first line of a segment."""

    format: int = msgspec.field(name="cw.segment")
    first: int
    """Number of its first batch."""
    opened: datetime
    places: dict[str, Any]
    """Where every source stood when the segment began."""


_COMMIT_DECODER = msgspec.json.Decoder(Commit)
_HEADER_DECODER = msgspec.json.Decoder(Header)
_DOCUMENT_DECODER = msgspec.json.Decoder(dict[str, Any])
_DATES = tuple(name for name, kind in COLUMNS.items() if kind == "TIMESTAMP")


def commit_line(batch: int, lines: bytes, events: int, places: bytes) -> bytes:
    """The closing line of a batch."""
    crc = zlib.crc32(places, zlib.crc32(lines))
    return b'{"cw.batch":%d,"events":%d,"crc":%d,"places":%s}\n' % (batch, events, crc, places)


class Segment(msgspec.Struct, frozen=True):
    """One file of the spool."""

    path: Path
    first: int
    """Number of its first batch."""

    def header(self) -> Header | None:
        """Its first line; None if it was never written whole."""
        try:
            with self.path.open("rb") as file:
                line = file.readline(LINE_MAX_BYTES * 64)
            return _HEADER_DECODER.decode(line) if line.endswith(b"\n") else None
        except msgspec.MsgspecError:
            return None

    def batches(self) -> Iterator[tuple[int, Commit, bytes, bool]]:
        """Whole batches: end in the file, commit line, event lines, and whether the sum fits.

        A batch whose sum does not fit has been damaged on the disk after it was written.
        """
        with self.path.open("rb") as file:
            end = len(file.readline())
            lines: list[bytes] = []
            for line in file:
                end += len(line)
                if not line.startswith(_COMMIT):
                    lines.append(line)
                    continue
                try:
                    commit = _COMMIT_DECODER.decode(line) if line.endswith(b"\n") else None
                except msgspec.MsgspecError:
                    commit = None
                if commit is None:
                    lines.append(line)
                    continue
                data = b"".join(lines)
                lines = []
                crc = zlib.crc32(bytes(commit.places), zlib.crc32(data))
                yield end, commit, data, crc == commit.crc


def segments(folder: Path) -> list[Segment]:
    """Files of the spool, oldest first; the last one is the one that is written."""
    found = [
        Segment(path, int(path.stem)) for path in (folder / "spool").glob("*.ndjson")
        if path.stem.isdigit()
    ]  # fmt: skip
    return sorted(found, key=lambda one: one.first)


class Archived(msgspec.Struct, frozen=True):
    """One Parquet file."""

    path: Path
    first: int
    last: int
    """Numbers of the first and last batch it holds."""

    @property
    def day(self) -> str:
        """Day of receipt, UTC: `2026-03-01`."""
        return self.path.parent.name.removeprefix("day=")

    def covers(self, first: int, last: int) -> bool:
        """Whether it holds a range of batches."""
        return self.first <= first and last <= self.last


_ARCHIVE_NAME = re.compile(r"(\d+)-(\d+)\.parquet")


def archives(folder: Path) -> list[Archived]:
    """Parquet files, oldest first, without those whose batches are in a larger one too."""
    found = [
        Archived(path, int(name[1]), int(name[2]))
        for path in folder.glob("parquet/day=*/*.parquet")
        if (name := _ARCHIVE_NAME.fullmatch(path.name))
    ]
    found.sort(key=lambda one: (one.first, -one.last))
    kept: list[Archived] = []
    for one in found:
        if not (kept and kept[-1].covers(one.first, one.last)):
            kept.append(one)
    return kept


def sync_folder(path: Path) -> None:
    """Make names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- The store


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
        self._looking: _Looking | None = None
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
            # A segment that began and never got its first line holds no batch.
            found.pop().path.unlink(missing_ok=True)
        self._batch = max((one.last for one in archives(self.folder)), default=0)
        if found:
            last = found[-1]
            header = last.header()
            assert header is not None
            self._places = dict(header.places)
            self._batch = max(self._batch, header.first - 1)
            end = _header_bytes(last.path)
            for end_, commit, _, sound in last.batches():
                end = end_
                self._batch = commit.batch
                self._places.update(msgspec.json.decode(commit.places))
                if not sound:
                    log.error("Batch %d in %s was damaged on disk.", commit.batch, last.path)
            size = last.path.stat().st_size
            if size > end:
                log.warning("The last %d bytes of %s were not committed.", size - end, last.path)
                with last.path.open("rb+") as file:
                    file.truncate(end)
                    os.fsync(file.fileno())
        self._begin_segment()

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

    def _write(self, file: IO[bytes], data: bytes) -> None:
        if is_due("during-commit"):
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
        self._first = self._batch + 1
        self._opened = self._clock().astimezone(UTC)
        path = self.folder / "spool" / f"{self._first:016d}.ndjson"
        header = Header(FORMAT, self._first, self._opened, self._places)
        if self._file is not None:
            self._file.close()
        # Unbuffered; whatever had this name held no batch.
        self._file = path.open("wb", buffering=0)
        self._file.write(msgspec.json.encode(header) + b"\n")
        os.fsync(self._file.fileno())
        fault("rotate-before-folder")
        sync_folder(path.parent)

    def replay(self, after_batch: int) -> Iterator[tuple[int, list[Document]]]:
        """Batches after a number, from the spool, oldest first, as they were appended."""
        for segment, following in _pairs(segments(self.folder)):
            if following is not None and following.first - 1 <= after_batch:
                continue
            for _, commit, lines, sound in segment.batches():
                if commit.batch > after_batch and sound:
                    yield commit.batch, documents_of(lines)

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
        pairs = _pairs(segments(self.folder))
        return any(after is not None and after.first - 1 <= upto_batch for _, after in pairs)

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
            for one in archives(self.folder):
                if self.used_bytes() <= self._quota_bytes:
                    break
                fault("retain")
                _let_go(one, gone)
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
        """Let go of the files; a compaction under way is waited for."""
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
        with self._look() as look:
            files = look.files(span)
            total = look.rows(f"SELECT count(*) FROM {files} WHERE {where}", values)[0][0]
            if not total or limit <= 0:
                return Page([], total)
            # First where they are, then the rows: whole rows are dear.
            hits = look.rows(
                f"SELECT filename, file_row_number FROM {files} WHERE {where}"
                f" ORDER BY {order} LIMIT {int(limit)} OFFSET {int(offset)}",
                values,
            )
            return Page(look.documents(hits), total)

    def get(self, event_id: str, near: datetime | None = None) -> Document | None:
        """One event; `near` its time makes it quick."""
        spans = [Range()]
        if near is not None:
            minute = timedelta(minutes=1)
            spans.insert(0, Range(near - minute, near + minute))
        for span in spans:
            where, values = self._where("", span)
            with self._look() as look:
                hits = look.rows(
                    f"SELECT filename, file_row_number FROM {look.files(span)}"
                    f" WHERE {where} AND {EVENT_ID_SQL} = ? LIMIT 1",
                    [*values, event_id],
                )
                if hits:
                    return look.documents(hits)[0]
        return None

    def histogram(self, query: str, span: Range, buckets: int = 96) -> list[tuple[datetime, int]]:
        """Start of each bucket and its count; empty if nothing is in the range."""
        where, values = self._where(query, span)
        with self._look() as look:
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

    def top_values(
        self, query: str, span: Range, field: str, limit: int = 10
    ) -> tuple[list[tuple[str, int]], int]:
        """Most frequent values with their counts, and how many matching events have the field."""
        column = self._column(field)
        where, values = self._where(query, span)
        is_list = COLUMNS.get(field, "").endswith("[]")
        value = f"unnest({column})" if is_list else f"CAST({column} AS VARCHAR)"
        having = f"len({column}) > 0" if is_list else f"{column} IS NOT NULL"
        with self._look() as look:
            files = look.files(span)
            total = look.rows(f"SELECT count(*) FROM {files} WHERE {where} AND {having}", values)[
                0
            ][0]
            rows = look.rows(
                f"SELECT value, count(*) AS n FROM (SELECT {value} AS value FROM {files}"
                f" WHERE {where} AND {having}) GROUP BY value ORDER BY n DESC, value"
                f" LIMIT {int(limit)}",
                values,
            )
        return [(str(value), count) for value, count in rows], total

    def fields(self, query: str, span: Range) -> list[tuple[str, int]]:
        """Fields that matching events have, with counts, most frequent first."""
        where, values = self._where(query, span)
        counted = ", ".join(f'count("{name}")' for name in COLUMNS)
        with self._look() as look:
            row = look.rows(f"SELECT {counted} FROM {look.files(span)} WHERE {where}", values)[0]
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

    def _look(self) -> _Look:
        with self._lock:
            if self._looking is None:
                self._looking = _Looking(self.folder, self.memory_limit)
            return _Look(self._looking)


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return len(file.readline())


def _pairs(found: Sequence[Segment]) -> Iterator[tuple[Segment, Segment | None]]:
    """Each segment with the one behind it; the last has none."""
    return zip(found, [*found[1:], None], strict=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def _let_go(one: Archived, gone: Counter[str]) -> None:
    gone["bytes"] += _size(one.path)
    gone["files"] += 1
    gone["batches"] += one.last - one.first + 1
    one.path.unlink(missing_ok=True)


def documents_of(lines: bytes) -> list[Document]:
    """Event lines as they were appended."""
    found = [_DOCUMENT_DECODER.decode(line) for line in lines.splitlines()]
    for document in found:
        for name in _DATES:
            if name in document:
                document[name] = datetime.fromisoformat(document[name])
    return found


# ---- DuckDB, in this one place


def connect(memory_limit: str, temporary: Path, threads: int = 1) -> Any:
    """A DuckDB in memory that loads nothing from outside.

    Raises:
        ConfigError: DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError as error:
        raise ConfigError(
            "searching events needs DuckDB", "package duckdb", "pip install duckdb"
        ) from error
    db = duckdb.connect(
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "threads": str(threads),
            "memory_limit": memory_limit,
            "temp_directory": str(temporary),
            "max_temp_directory_size": "4GB",
            "preserve_insertion_order": "true",
        }
    )
    return db


def ndjson_sql(paths: Sequence[Path]) -> str:
    """A table over segments: event lines only, every field of the table as a column."""
    columns = ", ".join(f"{quoted(name)}: {quoted(kind)}" for name, kind in COLUMNS.items())
    files = ", ".join(quoted(str(path)) for path in paths)
    return (
        f"(SELECT * FROM read_json([{files}], format='newline_delimited', columns={{{columns}}},"
        f' maximum_object_size={2 * LINE_MAX_BYTES}) WHERE "@timestamp" IS NOT NULL)'
    )


def parquet_sql(paths: Sequence[Path]) -> str:
    """A table over Parquet files with `filename` and `file_row_number`."""
    nothing = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in COLUMNS.items())
    empty = (
        f"SELECT {nothing}, NULL::VARCHAR AS filename, NULL::BIGINT AS file_row_number WHERE FALSE"
    )
    if not paths:
        return f"({empty})"
    files = ", ".join(quoted(str(path)) for path in paths)
    return (
        f"({empty} UNION ALL BY NAME SELECT * FROM read_parquet([{files}],"
        " union_by_name=true, filename=true, file_row_number=true))"
    )


PARQUET_OPTIONS = "FORMAT parquet, COMPRESSION zstd, PARQUET_VERSION v2, ROW_GROUP_SIZE 122880"


def quoted(text: str) -> str:
    """A text as an SQL literal; for names of files and columns, which take no parameters."""
    return "'" + text.replace("'", "''") + "'"


class _Looking:
    """What readers of one process share: the connection, and the spool as Parquet pieces.

    New batches of the spool are copied up to their last commit line, so that a torn tail is never
    read, and turned into a small Parquet file once; so a query never parses JSON twice.
    """

    def __init__(self, folder: Path, memory_limit: str) -> None:
        self._folder = folder
        self.place = Path(tempfile.mkdtemp(prefix="cityward-look-"))
        self.db = connect(memory_limit, self.place / "tmp")
        self.db.create_function("in_network", in_network, ["VARCHAR", "VARCHAR"], "BOOLEAN")
        self.lock = threading.Lock()
        self._pieces: dict[Path, list[Path]] = {}
        self._read: dict[Path, int] = {}
        self._spans: dict[Path, tuple[datetime, datetime] | None] = {}

    def close(self) -> None:
        self.db.close()
        shutil.rmtree(self.place, ignore_errors=True)

    def files(self, span: Range) -> list[Path]:
        """Parquet files that may hold events of the span: the archive's, and pieces of the spool.

        The spool is listed first: what is compacted in between is then in both lists, and is
        taken from the archive.
        """
        for _ in range(5):
            try:
                spool = segments(self._folder)
                archive = archives(self._folder)
                return self._within(archive, self._uncovered(spool, archive), span)
            except FileNotFoundError:
                continue  # compacted while we looked
        raise TransientError("the events are being tidied", str(self._folder), "Try again.")

    def _uncovered(self, spool: Sequence[Segment], archive: Sequence[Archived]) -> list[Path]:
        found: list[Path] = []
        live = set()
        for segment, after in _pairs(spool):
            last = after.first - 1 if after else segment.first
            if any(one.covers(segment.first, last) for one in archive):
                continue
            live.add(segment.path)
            self._catch_up(segment.path)
            found += self._pieces.get(segment.path, [])
        for gone in self._pieces.keys() - live:
            for piece in self._pieces.pop(gone):
                self._spans.pop(piece, None)
                piece.unlink(missing_ok=True)
            self._read.pop(gone, None)
        return found

    def _catch_up(self, path: Path) -> None:
        """Turn what was committed since the last look into a piece."""
        start = self._read.get(path, 0)
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(SEGMENT_MAX_BYTES * 4)
        end = _committed(data)
        if end == 0:
            return
        number = len(self._pieces.get(path, ()))
        copy = self.place / f"{path.stem}-{number}.ndjson"
        piece = copy.with_suffix(".parquet")
        copy.write_bytes(data[:end])
        try:
            salvaged_copy(self.db, [copy], piece, quarantine=None)
        finally:
            copy.unlink(missing_ok=True)
        self._pieces.setdefault(path, []).append(piece)
        self._read[path] = start + end

    def _within(
        self, archive: Sequence[Archived], pieces: Sequence[Path], span: Range
    ) -> list[Path]:
        paths = [*(one.path for one in archive), *pieces]
        for path in paths:
            if path not in self._spans:
                self._spans[path] = _span_of(self.db, path)
        for path in self._spans.keys() - set(paths):
            del self._spans[path]
        return [
            path
            for path in paths
            if (held := self._spans[path]) and held[0] < span.until and span.since <= held[1]
        ]


def _committed(data: bytes) -> int:
    """Length up to the end of the last whole commit line; 0: none."""
    end = data.rfind(b"\n") + 1
    while end > 0:
        start = data.rfind(b"\n", 0, end - 1) + 1
        if data.startswith(_COMMIT, start):
            return end
        end = start
    return 0


def _span_of(db: Any, path: Path) -> tuple[datetime, datetime] | None:
    """Time of the first and last event of a Parquet file; None if it is empty."""
    try:
        first, last = db.execute(
            f'SELECT min("@timestamp"), max("@timestamp") FROM read_parquet({quoted(str(path))})'
        ).fetchone()
    except Exception as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        log.error("%s cannot be read: %s.", path, error)
        return None
    return None if first is None else (first.replace(tzinfo=UTC), last.replace(tzinfo=UTC))


class _Look:
    """One question to the events; the files it asks stay the same until it is answered."""

    def __init__(self, looking: _Looking) -> None:
        self._looking = looking
        self._db: Any = None

    def __enter__(self) -> _Look:
        # DuckDB uses all its threads for one question; another one waits.
        self._looking.lock.acquire()
        self._db = self._looking.db
        return self

    def __exit__(self, *_: object) -> None:
        self._looking.lock.release()

    def files(self, span: Range) -> str:
        """A table over the events of the span, some others included."""
        return parquet_sql(self._looking.files(span))

    def rows(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Ask; a file that went away meanwhile, or too little memory, is said in our words."""
        import duckdb

        try:
            rows: list[tuple[Any, ...]] = self._db.execute(sql, values).fetchall()
        except duckdb.IOException as error:
            raise TransientError(
                "the events were tidied while they were read", str(error)[:200], "Ask again."
            ) from error
        except duckdb.OutOfMemoryException as error:
            raise InputError(
                "the question needs more memory than it may have",
                str(error)[:200],
                "Ask for a shorter time, or for fewer values.",
            ) from error
        return rows

    def documents(self, hits: Sequence[tuple[str, int]]) -> list[Document]:
        """Whole rows of hits, in their order."""
        wanted: dict[str, list[int]] = {}
        for path, row in hits:
            wanted.setdefault(path, []).append(row)
        found: dict[tuple[str, int], Document] = {}
        for path, numbers in wanted.items():
            listed = ", ".join(str(int(number)) for number in numbers)
            cursor = self._db.execute(
                f"SELECT * FROM read_parquet({quoted(path)}, file_row_number=true)"
                f" WHERE file_row_number IN ({listed})"
            )
            names = [column[0] for column in cursor.description]
            for row in cursor.fetchall():
                document = dict(zip(names, row, strict=True))
                number = document.pop("file_row_number")
                found[path, number] = _whole(document)
        return [found[hit] for hit in hits if hit in found]


def _whole(row: Document) -> Document:
    """A row as the event it was, with its id."""
    document: Document = {}
    for name, value in row.items():
        if value is None:
            continue
        kind = COLUMNS.get(name)
        if kind == "TIMESTAMP":
            document[name] = value.replace(tzinfo=UTC)
        elif kind == "JSON":
            document[name] = msgspec.json.decode(value)
        else:
            document[name] = value
    document["event.id"] = event_id(
        document.get("cw.operator", ""),
        document.get("cw.record.source", ""),
        document.get("cw.record.place", ""),
        document.get("cw.record.number", 0),
    )
    return document


def salvaged_copy(db: Any, sources: Sequence[Path], target: Path, quarantine: Path | None) -> None:
    """Copy segments into a Parquet file; lines that DuckDB refuses are set aside.

    For each of them an event says so, in its place.
    """
    import duckdb

    options = PARQUET_OPTIONS
    try:
        db.execute(f"COPY {ndjson_sql(sources)} TO {quoted(str(target))} ({options})")
        return
    except duckdb.IOException:
        raise
    except duckdb.Error as error:
        log.warning("Some lines cannot be copied: %s.", str(error)[:200])
    target.unlink(missing_ok=True)
    mended = target.with_name(target.name + ".mended.ndjson")
    try:
        with mended.open("wb") as file:
            for source in sources:
                _mend(db, source, file, quarantine)
        db.execute(f"COPY {ndjson_sql([mended])} TO {quoted(str(target))} ({options})")
    finally:
        mended.unlink(missing_ok=True)


def _mend(db: Any, source: Path, out: IO[bytes], quarantine: Path | None) -> None:
    """Copy event lines; of a block that is refused, halves, until the bad line is alone."""
    with source.open("rb") as file:
        lines: list[bytes] = []
        for line in file:
            if not line.startswith((_COMMIT, _HEADER)):
                lines.append(line)
            if len(lines) >= 4096:
                _mend_lines(db, lines, out, source, quarantine)
                lines = []
        _mend_lines(db, lines, out, source, quarantine)


def _mend_lines(
    db: Any, lines: Sequence[bytes], out: IO[bytes], source: Path, quarantine: Path | None
) -> None:
    if not lines:
        return
    if _is_accepted(db, lines, Path(out.name)):
        out.writelines(lines)
        return
    if len(lines) > 1:
        middle = len(lines) // 2
        _mend_lines(db, lines[:middle], out, source, quarantine)
        _mend_lines(db, lines[middle:], out, source, quarantine)
        return
    if quarantine is not None:
        with (quarantine / f"{source.stem}.ndjson").open("ab") as file:
            file.write(lines[0])
    out.write(_refused(lines[0], source))


def _is_accepted(db: Any, lines: Sequence[bytes], beside: Path) -> bool:
    import duckdb

    trial = beside.with_name(beside.name + ".trial")
    trial.write_bytes(b"".join(lines))
    try:
        # Every column is read: a count alone would not decode them.
        counted = ", ".join(f'count("{name}")' for name in COLUMNS)
        found = db.execute(f"SELECT count(*), {counted} FROM {ndjson_sql([trial])}").fetchone()
        return bool(found[0] == len(lines))
    except duckdb.Error:
        return False
    finally:
        trial.unlink(missing_ok=True)


def _refused(line: bytes, source: Path) -> bytes:
    """The event that stands for a line nobody can read; it keeps its identity if it says one."""
    try:
        said = _DOCUMENT_DECODER.decode(line)
    except msgspec.MsgspecError:
        said = {}
    at = datetime.fromtimestamp(source.stat().st_mtime, UTC)
    kept = {
        name: said[name]
        for name in ("cw.operator", "cw.sector", "cw.record.source", "cw.record.place")
        if isinstance(said.get(name), str)
    }
    number = said.get("cw.record.number")
    document = {
        "@timestamp": at,
        "event.kind": "pipeline_error",
        "event.action": "unreadable",
        "event.outcome": "failure",
        "event.reason": "the archive refused this line; it is in quarantine",
        "event.original": line[:4096].decode("utf-8", "backslashreplace").rstrip("\n"),
        **kept,
        "cw.record.number": number if _is_long(number) else 0,
    }
    return msgspec.json.encode(document) + b"\n"


def wait_until(done: Callable[[], bool], timeout_s: float) -> bool:
    """Poll a condition; False if it did not hold in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.02)
    return done()
