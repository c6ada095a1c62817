"""The archive: events in Parquet, and how they are asked; DuckDB meets cityward here."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import msgspec

from cityward.errors import ConfigError, InputError, TransientError
from cityward.event import utc
from siem.store.lines import COLUMNS, LINE_MAX_BYTES, event_id
from siem.store.protocol import Document, Range
from siem.store.query import in_network
from siem.store.spool import Segment, committed, pairs, segments

log = logging.getLogger(__name__)

MEMORY_LIMIT = "512MB"
COPY_MAX_BYTES = 256 * 1024 * 1024

EVENT_ID_SQL = (
    'left(sha256(concat_ws(chr(31), coalesce("cw.operator", \'\'), "cw.record.source",'
    ' "cw.record.place", CAST("cw.record.number" AS VARCHAR))), 32)'
)


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
        " union_by_name=true, hive_partitioning=false, filename=true, file_row_number=true))"
    )


def parquet_options(columns: int) -> str:
    """How a Parquet file is written; fewer rows a group when there are many columns.

    With 225 columns a group of 122,880 rows did not fit into 512 MB: the copy took 50 times as
    long from disk.
    """
    rows = max(10_240, min(122_880, 122_880 * 40 // max(1, columns)))
    return f"FORMAT parquet, COMPRESSION zstd, PARQUET_VERSION v2, ROW_GROUP_SIZE {rows}"


def quoted(text: str) -> str:
    """A text as an SQL literal; for names of files and columns, which take no parameters."""
    return "'" + text.replace("'", "''") + "'"


_PLACE = "cityward-look-"


def _own_place() -> tuple[Path, int]:
    """A temporary folder, and a descriptor that holds it as long as its process lives.

    Those of ours that nobody holds are removed: their processes were killed.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PLACE}*"):
        with suppress(OSError, RecursionError):  # it is held, or somebody else's
            descriptor = _hold(left)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    shutil.rmtree(left)
            finally:
                os.close(descriptor)
    made = Path(tempfile.mkdtemp(prefix="cityward-new-"))
    descriptor = _hold(made)  # before anybody can take it for one that was left
    return made.rename(made.with_name(made.name.replace("cityward-new-", _PLACE))), descriptor


def _hold(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class Looking:
    """What readers of one process share: the connection, and the spool as Parquet pieces.

    New batches of the spool are copied up to their last commit line, so that a torn tail is never
    read, and turned into a small Parquet file once; so a query never parses JSON twice.
    """

    def __init__(self, folder: Path, memory_limit: str) -> None:
        self._folder = folder
        self.place, self._held = _own_place()
        self.db = connect(memory_limit, self.place / "tmp")
        self.db.create_function("in_network", in_network, ["VARCHAR", "VARCHAR"], "BOOLEAN")
        self.lock = threading.Lock()
        self._pieces: dict[Path, list[Path]] = {}
        self._read: dict[Path, int] = {}
        self._spans: dict[Path, tuple[datetime, datetime] | None] = {}
        self._damaged: dict[Path, str] = {}

    def close(self) -> None:
        """Let go of the connection and of the pieces."""
        self.db.close()
        shutil.rmtree(self.place, ignore_errors=True)
        os.close(self._held)

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

    def span_of(self, path: Path) -> tuple[datetime, datetime]:
        """Time of the first and last event of a file that `files` has named."""
        held = self._spans[path]
        assert held is not None
        return held

    def lacking(self, span: Range) -> list[str]:
        """What the last list of files lacks, in words: damaged files, and batches that are gone.

        What went by retention is no lack: it was the oldest.
        """
        found = self.damaged()
        spool, archive = segments(self._folder), archives(self._folder)
        for one, after in pairwise(archive):
            held, following = self._spans.get(one.path), self._spans.get(after.path)
            is_apart = (held and held[0] >= span.until) or (following and following[1] < span.since)
            if after.first > one.last + 1 and not is_apart:
                found.append(_gone(one.last + 1, after.first - 1))
        if spool and archive and spool[0].first > archive[-1].last + 1:
            found.append(_gone(archive[-1].last + 1, spool[0].first - 1))
        return found

    def damaged(self) -> list[str]:
        """Files of the last list that cannot be read, in words; each may be of any span."""
        return [f"{path} cannot be read: {why}" for path, why in sorted(self._damaged.items())]

    def _uncovered(self, spool: Sequence[Segment], archive: Sequence[Archived]) -> list[Path]:
        found: list[Path] = []
        live = set()
        for segment, after in pairs(spool):
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
            data = file.read(COPY_MAX_BYTES)
        end = committed(data)
        if end == 0:
            return
        if start:  # every segment has a first line
            data, start, end = b"{}\n" + data, start - 3, end + 3
        number = len(self._pieces.get(path, ()))
        copy = self.place / f"{path.stem}-{number}.ndjson"
        piece = copy.with_suffix(".parquet")
        copy.write_bytes(data[:end])
        try:
            salvaged_copy(self.db, [Segment(copy, 0)], piece)
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
                try:
                    self._spans[path] = _span_of(self.db, path)
                except DamagedError as error:
                    log.error("%s cannot be read: %s.", path, error)
                    self._spans[path], self._damaged[path] = None, str(error)
        for path in self._spans.keys() - set(paths):
            del self._spans[path]
            self._damaged.pop(path, None)
        return [
            path
            for path in paths
            if (held := self._spans[path]) and held[0] < span.until and span.since <= held[1]
        ]


class DamagedError(Exception):
    """A file is there, and cannot be read."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Ask one file.

    Raises:
        FileNotFoundError: it was tidied away.
        DamagedError: what is in it cannot be read; why, in words.
    """
    import duckdb

    try:
        yield
    except (duckdb.Error, TransientError) as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        raise DamagedError(" ".join(str(error).split())[:200]) from error


def _gone(first: int, last: int) -> str:
    which = f"batch {first} is" if first == last else f"batches {first} to {last} are"
    return f"{which} not there any more"


def _span_of(db: Any, path: Path) -> tuple[datetime, datetime] | None:
    """Time of the first and last event of a Parquet file; None if it is empty."""
    with reading(path):
        first, last = db.execute(
            f'SELECT min("@timestamp"), max("@timestamp") FROM read_parquet({quoted(str(path))})'
        ).fetchone()
    return None if first is None else (first.replace(tzinfo=UTC), last.replace(tzinfo=UTC))


class Look:
    """One question to the events; the files it asks stay the same until it is answered."""

    def __init__(self, looking: Looking) -> None:
        self._looking = looking
        self._db: Any = None

    def __enter__(self) -> Look:
        # DuckDB uses all its threads for one question; another one waits.
        self._looking.lock.acquire()
        self._db = self._looking.db
        return self

    def __exit__(self, *_: object) -> None:
        self._looking.lock.release()

    def files(self, span: Range) -> str:
        """A table over the events of the span, some others included."""
        return parquet_sql(self._looking.files(span))

    def paths(self, span: Range) -> list[Path]:
        """Files that may hold events of the span, the archive's before those of the spool."""
        return self._looking.files(span)

    def damaged(self) -> tuple[str, ...]:
        """Files that cannot be read, see `Looking.damaged`."""
        return tuple(self._looking.damaged())

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Ask; a file that went away meanwhile, or too little memory, is said in our words."""
        return self._execute(sql, values)[1]

    def parts(self, sql: str, size: int = 5_000) -> Iterator[list[tuple[Any, ...]]]:
        """The same for an answer that may be long: so many rows at a time."""
        with _in_our_words():
            found = self._db.cursor().execute(sql)
            while rows := found.fetchmany(size):
                yield rows

    def _execute(self, sql: str, values: Sequence[Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Names of the columns, and rows."""
        with _in_our_words():
            found = self._db.execute(sql, values)
            return [column[0] for column in found.description], found.fetchall()

    def documents(self, hits: Sequence[tuple[str, int]]) -> list[Document]:
        """Whole rows of hits, in their order."""
        wanted: dict[str, list[int]] = {}
        for path, place in hits:
            wanted.setdefault(path, []).append(place)
        found: dict[tuple[str, int], Document] = {}
        for path, numbers in wanted.items():
            listed = ", ".join(str(int(number)) for number in numbers)
            names, rows = self._execute(
                f"SELECT * FROM read_parquet({quoted(path)}, file_row_number=true,"
                " hive_partitioning=false)"
                f" WHERE file_row_number IN ({listed})",
                (),
            )
            for row in rows:
                document = dict(zip(names, row, strict=True))
                place = document.pop("file_row_number")
                found[path, place] = whole_row(document)
        return [found[hit] for hit in hits if hit in found]


@contextmanager
def _in_our_words() -> Iterator[None]:
    """What DuckDB cannot do, as an error of ours."""
    import duckdb

    try:
        yield
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


def whole_row(row: Document) -> Document:
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


def salvaged_copy(
    db: Any, sources: Sequence[Segment], target: Path, quarantine: Path | None = None
) -> None:
    """Copy segments into a Parquet file, which is made.

    What the disk has damaged and lines that DuckDB refuses are set aside in the quarantine, and
    an event says so in their place: as many rows as events were committed.
    """
    import duckdb

    if all(batch.is_sound for one in sources for batch in one.batches()):
        try:
            _copy(db, [one.path for one in sources], target)
        except duckdb.IOException:
            raise
        except duckdb.Error as error:
            log.warning("Some lines cannot be copied: %s.", str(error)[:200])
        else:
            return
    target.unlink(missing_ok=True)
    mended = target.with_name(target.name + ".mended")
    try:
        with mended.open("wb") as file:
            for source in sources:
                _mend(db, source, file, quarantine)
        _copy(db, [mended], target)
    finally:
        mended.unlink(missing_ok=True)


def _copy(db: Any, sources: Sequence[Path], target: Path) -> None:
    """Copy event lines; only fields that some event has become columns."""
    table = ndjson_sql(sources)
    counted = ", ".join(f'count("{name}")' for name in COLUMNS)
    counts = db.execute(f"SELECT {counted} FROM {table}").fetchone()
    present = [f'"{name}"' for name, n in zip(COLUMNS, counts, strict=True) if n]
    chosen = ", ".join(present or ['"@timestamp"'])
    options = parquet_options(len(present))
    db.execute(f"COPY (SELECT {chosen} FROM {table}) TO {quoted(str(target))} ({options})")


def _mend(db: Any, source: Segment, out: IO[bytes], quarantine: Path | None) -> None:
    """Copy event lines; of a batch that is refused, halves, until the bad line is alone."""
    for batch in source.batches():
        if batch.is_sound:
            _mend_lines(db, batch.lines.splitlines(keepends=True), out, source, quarantine)
            continue
        _set_aside(batch.lines, source, quarantine)
        for number in range(batch.commit.events):
            place = f"batch {batch.commit.batch}, event {number}"
            out.write(_refused(b"", source, "the disk damaged its batch", place))


def _set_aside(lines: bytes, source: Segment, quarantine: Path | None) -> None:
    if quarantine is not None:
        with (quarantine / source.path.name).open("ab") as file:
            file.write(lines)


def _mend_lines(
    db: Any, lines: Sequence[bytes], out: IO[bytes], source: Segment, quarantine: Path | None
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
    _set_aside(lines[0], source, quarantine)
    out.write(_refused(lines[0], source, "the archive refused this line"))


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


def _refused(line: bytes, source: Segment, why: str, place: str = "") -> bytes:
    """The event that stands for a line nobody can read; it keeps its identity if it says one."""
    try:
        said = msgspec.json.decode(line, type=dict[str, Any]) if line else {}
    except msgspec.MsgspecError:
        said = {}
    header = source.header()
    kept = {
        name: said[name]
        for name in ("cw.operator", "cw.sector", "cw.record.source", "cw.record.place")
        if isinstance(said.get(name), str)
    }
    number = said.get("cw.record.number")
    document = {
        "@timestamp": header.opened if header else utc(source.path.stat().st_mtime),
        "event.kind": "pipeline_error",
        "event.action": "unreadable",
        "event.outcome": "failure",
        "event.reason": f"{why}; it is in quarantine",
        "event.original": line[:4096].decode("utf-8", "backslashreplace").rstrip("\n"),
        "cw.record.source": "cityward.spool",
        "cw.record.place": place or source.path.name,
        **kept,
        "cw.record.number": number if type(number) is int and abs(number) < 2**63 else 0,
    }
    return msgspec.json.encode(document) + b"\n"
