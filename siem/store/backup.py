"""A backup of a node's state in one file, made while it runs, and how it comes back.

The file is a plain tar: `cityward.toml`, `state/…`, and last `manifest.json` with the SHA-256 of
everything before it. Without its manifest a file is no backup, so one that was cut is known.

What belongs together is taken together: no segment is compacted meanwhile; `node.db` is copied
first and the events after it, up to a commit. So the events are never behind what was concluded on
them, and what is newer is detected when the restored node starts, as after a crash.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

import msgspec

from cityward.errors import ConfigError, InputError, TransientError, Unsafe
from siem.store import embedded, events
from siem.store.archive import archives
from siem.store.faults import fault
from siem.store.spool import committed, pairs, segments, sync_folder

FORMAT = 1
"""Of the file; a newer one is refused."""
MANIFEST = "manifest.json"
SETTINGS = "cityward.toml"
MANIFEST_MAX_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
STAGED = ".backup"
"""Folder in the state in which the files of a backup are linked while it is written."""
DATABASES: dict[str, tuple[str, ...]] = {"node.db": ("tokens", "people"), "commons.db": ()}
"""Copied whole while others write; the tables that hold secrets. A hub has the second one too."""
OWN = (
    *("events", "ring", STAGED),
    *(name + end for name in DATABASES for end in ("", "-wal", "-shm")),
)
"""Parts of the state that are taken in their own way, or not at all: a ring of packets is full of
what nobody asked for, and new every hour."""
PASSING = (".lock", ".tmp", ".part")


class Member(msgspec.Struct, frozen=True):
    """One file of a backup."""

    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds."""

    format: int = FORMAT
    made: datetime
    operator: str
    secrets: bool
    """Whether keys, accounts and tokens are in it."""
    formats: dict[str, int]
    """Of the stores that are in it."""
    files: list[Member]


class Sums:
    """A file that is read by others, and counted and hashed on the way."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file = file
        self._left = limit
        self._hash = hashlib.sha256()
        self.bytes = 0

    def read(self, size: int) -> bytes:
        """The next bytes, never beyond the limit."""
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        self._hash.update(data)
        self.bytes += len(data)
        return data

    def member(self, name: str) -> Member:
        """What was read."""
        return Member(name, self.bytes, self._hash.hexdigest())


# ---- Backup


def backup(
    state: Path, settings: Path | None, target: Path, *, operator: str, now: datetime, secrets: bool
) -> Manifest:
    """Write a backup of a state folder, whose node may run; it has its name when it is whole.

    Raises:
        Unsafe: the file is there already, or would lie in the state.
        TransientError: another backup runs, or it cannot be written.
    """
    if target.exists():
        raise Unsafe("the file is there already", str(target), "Name another one.")
    if target.resolve().is_relative_to(state.resolve()):
        raise Unsafe("a backup inside of the state", str(target), "Name a file elsewhere.")
    unfinished = target.with_name(target.name + ".part")
    try:
        with _alone(state / "backup.lock"), _staged(state) as staged:
            stage(state, settings, staged, secrets=secrets)
            made = _write(staged, unfinished, operator=operator, now=now, secrets=secrets)
        fault("backup-before-rename")
        unfinished.rename(target)
        sync_folder(target.parent)
    except (OSError, sqlite3.Error) as error:
        unfinished.unlink(missing_ok=True)
        why = getattr(error, "strerror", None) or str(error)
        raise TransientError(
            f"the backup cannot be written: {why}", str(target), "Make room; try again."
        ) from error
    return made


@contextmanager
def _alone(path: Path, *, wait: bool = False) -> Iterator[None]:
    with path.open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise TransientError("another backup is running", str(path), "Wait for it.") from error
        yield


@contextmanager
def _staged(state: Path) -> Iterator[Path]:
    """A folder on the same disk, where links cost nothing; what a killed backup left goes."""
    staged = state / STAGED
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(mode=0o700)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def stage(state: Path, settings: Path | None, staged: Path, *, secrets: bool) -> None:
    """Take everything that belongs together, in the order that keeps it together."""
    if settings is not None:
        shutil.copyfile(settings, staged / SETTINGS)
    kept = staged / "state"
    kept.mkdir()
    (state / "events").mkdir(exist_ok=True)
    # A compaction that runs is waited for; the next one finds the lock taken and comes later.
    with _alone(state / "events" / "compact.lock", wait=True):
        for db, secret in DATABASES.items():
            if (state / db).exists():
                _copy_db(state / db, kept / db, () if secrets else secret)
        fault("backup-between")
        _link_events(state / "events", kept / "events")
    for path in sorted(state.rglob("*")):
        name = path.relative_to(state)
        if path.is_symlink() or not path.is_file() or name.parts[0] in OWN:
            continue
        if path.suffix in PASSING or path.name == "lock" or (path.suffix == ".key" and not secrets):
            continue
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, kept / name)


def _copy_db(source: Path, target: Path, left_out: Sequence[str]) -> None:
    """A whole copy of a database, without the rows of some tables."""
    fault("backup-db")
    with (
        closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)  # in one step: a copy in several would begin anew at each write
        new.execute("PRAGMA journal_mode = DELETE")
        if left_out:
            new.execute("PRAGMA secure_delete = ON")
            for table in left_out:
                new.execute(f"DELETE FROM {table}")
            new.commit()


def _link_events(folder: Path, kept: Path) -> None:
    """Links cost nothing; the newest segment goes on growing, and is taken up to a commit."""
    (kept / "spool").mkdir(parents=True)
    if (folder / "format").exists():
        shutil.copyfile(folder / "format", kept / "format")
    for one in archives(folder):
        day = kept / "parquet" / one.path.parent.name
        day.mkdir(parents=True, exist_ok=True)
        try:
            os.link(one.path, day / one.path.name)
        except FileNotFoundError:
            continue  # too old, or too much: let go meanwhile
    for segment, following in pairs(segments(folder)):
        kept_path = kept / "spool" / segment.path.name
        if following is not None:
            os.link(segment.path, kept_path)
            continue
        data = segment.path.read_bytes()
        kept_path.write_bytes(data[: committed(data) or data.find(b"\n") + 1])


def _write(
    staged: Path, unfinished: Path, *, operator: str, now: datetime, secrets: bool
) -> Manifest:
    files: list[Member] = []
    # What a killed backup left goes; nobody else's file, nor a link, is written into.
    unfinished.unlink(missing_ok=True)
    with open(unfinished, "xb", opener=_private) as out:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(staged.rglob("*")):
                if path.is_file():
                    fault("backup-write")
                    files.append(_add(tar, path, path.relative_to(staged).as_posix(), now))
            manifest = Manifest(
                made=now,
                operator=operator,
                secrets=secrets,
                formats={"events": events.FORMAT, "node.db": embedded.FORMAT},
                files=files,
            )
            data = msgspec.json.format(msgspec.json.encode(manifest))
            fault("backup-manifest")
            tar.addfile(_info(MANIFEST, len(data), now), io.BytesIO(data))
        out.flush()
        os.fsync(out.fileno())
    return manifest


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _add(tar: tarfile.TarFile, path: Path, name: str, now: datetime) -> Member:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        read = Sums(file, size)
        tar.addfile(_info(name, size, now), read)  # type: ignore[arg-type]
    return read.member(name)


def _info(name: str, size: int, now: datetime) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(now.timestamp())
    return info


# ---- Restore


def restore(source: Path, folder: Path) -> Manifest:
    """Bring a backup back into an empty folder: `cityward.toml` and `state`.

    Everything is compared with the manifest before it has its name.

    Raises:
        Unsafe: the folder is not empty.
        InputError: the file is no backup, was cut or was damaged.
        ConfigError: a newer cityward wrote it.
        TransientError: it cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise Unsafe("the folder is not empty", str(folder), "Name another; nothing changed.")
    was_there = folder.exists()
    unfinished = folder / ".part"
    try:
        unfinished.mkdir(parents=True, mode=0o700)
        made = _unpack(source, unfinished)
        for part in sorted(unfinished.iterdir()):
            part.rename(folder / part.name)
        unfinished.rmdir()
        sync_folder(folder)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not was_there and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
        if isinstance(error, OSError):
            raise TransientError(
                f"it cannot be restored: {error.strerror or error}", str(folder), "Make room."
            ) from error
        raise
    return made


def _unpack(source: Path, folder: Path) -> Manifest:
    found: list[Member] = []
    said: bytes | None = None
    try:
        with tarfile.open(source, "r:") as tar:
            for info in tar:
                if said is not None:
                    raise _damaged(source, "something stands behind its manifest")
                # Of a sparse file the archive holds less than would be written.
                is_plain = info.isreg() and not info.issparse()
                content = tar.extractfile(info) if is_plain else None
                if content is None:
                    raise _damaged(source, f"{info.name!r} is no file")
                if info.name == MANIFEST:
                    said = content.read(MANIFEST_MAX_BYTES)
                else:
                    found.append(_unpack_one(source, folder, info.name, info.size, content))
    except tarfile.TarError as error:
        raise _damaged(source, str(error)) from error
    except FileNotFoundError as error:
        raise InputError("there is no such file", str(source), "Check the path.") from error
    return _agreed(source, said, found)


def _unpack_one(source: Path, folder: Path, name: str, size: int, content: IO[bytes]) -> Member:
    place = PurePosixPath(name)
    if place.parts[:1] not in ((SETTINGS,), ("state",)) or ".." in place.parts or "\0" in name:
        raise _damaged(source, f"{name!r} is no place in a state")
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    read = Sums(content, size)
    try:
        with open(path, "xb", opener=_private) as file:
            while data := read.read(CHUNK_BYTES):
                fault("restore-write")
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except (FileExistsError, NotADirectoryError) as error:
        raise _damaged(source, f"{name!r} is there twice") from error
    return read.member(name)


def _agreed(source: Path, said: bytes | None, found: list[Member]) -> Manifest:
    """The manifest, if it says what is there."""
    if said is None:
        raise _damaged(source, "it has no manifest: it was cut, or never whole")
    try:
        head: Any = msgspec.json.decode(said)
        if isinstance(head, dict) and isinstance(head.get("format"), int):
            _not_newer(source, "backup", head["format"], FORMAT)
        manifest = msgspec.convert(head, Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(source, f"its manifest cannot be read: {error}") from error
    known = {"events": events.FORMAT, "node.db": embedded.FORMAT}
    for store, number in manifest.formats.items():
        _not_newer(source, store, number, known.get(store, 0))
    expected = {one.name: one for one in manifest.files}
    for one in found:
        if expected.pop(one.name, None) != one:
            raise _damaged(source, f"{one.name} is not as it was when the backup was made")
    if expected:
        raise _damaged(source, f"{next(iter(expected))} is missing")
    return manifest


def _not_newer(source: Path, what: str, found: int, known: int) -> None:
    if found > known:
        raise ConfigError(
            f"format {found} of the {what} is newer than {known}",
            str(source),
            "Restore it with the cityward that wrote it, or a newer one.",
        )


def _damaged(source: Path, why: str) -> InputError:
    return InputError(f"no sound backup: {why}", str(source), "Use another one.")
