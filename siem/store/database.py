"""A SQLite file that several threads and processes write to: what is committed is durable."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cityward.errors import ConfigError, TransientError
from siem.store.query import sqlite_functions

Connection = sqlite3.Connection
BUSY_MS = 15_000
PRAGMAS = (
    f"busy_timeout = {BUSY_MS}",
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    "journal_size_limit = 67108864",
    "cache_size = -32768",
    "trusted_schema = OFF",
)


class Database:
    """The file, with one connection a thread."""

    def __init__(
        self,
        path: Path,
        steps: Sequence[Sequence[str]],
        *,
        secure: bool = False,
        brought_up: Callable[[sqlite3.Connection, int], None] = lambda db, found: None,
    ) -> None:
        """Open, or make, the file.

        Args:
            path: Beside it SQLite keeps `-wal` and `-shm`.
            steps: Statements that each format has more than the one before it; how many there are
                is the file's format (`user_version`). A newer one is refused.
            secure: What is deleted is overwritten.
            brought_up: What else an older file needs, in the transaction that brings it up from
                the format it had.

        Raises:
            ConfigError: the file was written by a newer cityward, or is no database.
        """
        self.path = path
        self._local = threading.local()
        self._open: dict[threading.Thread, sqlite3.Connection] = {}
        self._lock = threading.Lock()
        self._turn = threading.RLock()
        """Held by who writes: SQLite lets who waits sleep, so that the path would come too late."""
        self._pragmas = (*PRAGMAS, "secure_delete = ON") if secure else PRAGMAS
        try:
            self._bring_up(steps, brought_up)
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"no database: {error}", str(path), "Restore it from a backup."
            ) from error

    def _bring_up(
        self,
        steps: Sequence[Sequence[str]],
        brought_up: Callable[[sqlite3.Connection, int], None],
    ) -> None:
        with self.writing() as db:
            found = db.execute("PRAGMA user_version").fetchone()[0]
            if found > len(steps):
                raise ConfigError(
                    f"format {found} of the database is newer than {len(steps)}",
                    str(self.path),
                    "Run the cityward that wrote it, or a newer one.",
                )
            if found == len(steps):
                return
            for statement in (one for step in steps[found:] for one in step):
                db.execute(statement)
            brought_up(db, found)
            db.execute(f"PRAGMA user_version = {len(steps)}")

    @property
    def here(self) -> sqlite3.Connection:
        """The connection of this thread."""
        found: sqlite3.Connection | None = getattr(self._local, "db", None)
        if found is None:
            # Another thread may close it.
            found = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            found.row_factory = sqlite3.Row
            for pragma in self._pragmas:
                found.execute(f"PRAGMA {pragma}")
            for name, arguments, function in sqlite_functions():
                found.create_function(name, arguments, function, deterministic=True)
            self._local.db = found
            with self._lock:
                # A console's threads come and go with its requests.
                for thread in [one for one in self._open if not one.is_alive()]:
                    self._open.pop(thread).close()
                self._open[threading.current_thread()] = found
        return found

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that has the right to write from its beginning.

        Raises:
            TransientError: the disk is full, or another process holds the file for too long.
        """
        db = self.here
        if getattr(self._local, "is_together", False):
            yield db
            return
        with self._turn:
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.commit()
            except (sqlite3.OperationalError, OSError) as error:
                db.rollback()
                raise TransientError(
                    f"the state cannot be written: {error}", str(self.path), "Make room; try again."
                ) from error
            except BaseException:
                db.rollback()
                raise

    @contextmanager
    def together(self) -> Iterator[None]:
        """What this thread writes within becomes durable at the end, all of it or nothing."""
        with self.writing():
            self._local.is_together = True
            try:
                yield
            finally:
                self._local.is_together = False

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """What stands in the file at one moment."""
        db = self.here
        if db.in_transaction:  # see `together`
            yield db
            return
        db.execute("BEGIN")
        try:
            yield db
        finally:
            db.rollback()

    def purge(self) -> None:
        """Let nothing of what was deleted stay in the file, nor in the log beside it."""
        self.here.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            for db in self._open.values():
                db.close()
            self._open.clear()
        self._local = threading.local()
