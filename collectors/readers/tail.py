"""Lines of a file or a stream: what is there now, over rotation and restart."""

from __future__ import annotations

import logging
import os
import re
import select
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from cityward.event import Record
from collectors.readers.batch import MAX_BATCH_BYTES, MAX_RECORDS, PAUSE_S, Batch, Clock
from collectors.readers.lines import Line, LineCutter
from collectors.readers.text import HEAD_BYTES, Identity, Text, is_zipped, open_raw

log = logging.getLogger(__name__)

GRACE_S = 1.0
"""How long a renamed file must be quiet until it is left: its writer may not have noticed yet."""
_ROTATED = re.compile(r"(?:\.(\d{1,4})|[.-](\d{4}-?\d{2}-?\d{2}[\w.:-]*?))(?:\.gz)?")
"""What logrotate puts behind a name: a number that grows with age, or a date."""


class Taken:
    """What was taken from a source in one go."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.rejected: Counter[str] = Counter()
        self.lost = 0
        self.ended = False
        self._bytes = 0
        self._until_s = time.monotonic() + PAUSE_S

    def __bool__(self) -> bool:
        return bool(self.lines or self.rejected or self.lost)

    @property
    def full(self) -> bool:
        """True if this is a batch, though there may be more to take."""
        return (
            len(self.lines) >= MAX_RECORDS
            or self._bytes >= MAX_BATCH_BYTES
            or time.monotonic() >= self._until_s
        )

    def add(self, line: Line, base: int) -> None:
        """Take a line; `base` is where its file begins among all of this source."""
        self.lines.append(line._replace(start=base + line.start))
        self._bytes += len(line.data)

    def batch(self, source: str, name: str, clock: Clock, place: Any) -> Batch:
        """The batch of these lines; its records are of source `name`."""
        received = clock()
        return Batch(
            source,
            [Record(line.data, name, line.start, received) for line in self.lines],
            place,
            lost=self.lost,
            rejected=dict(self.rejected),
            ended=self.ended,
            cut=sum(line.cut for line in self.lines),
        )


class Lines:
    """Lines of a text; how the text goes on is said by `Stream` and `Tail`."""

    pause_s = PAUSE_S
    """How long to wait after a take that was not full."""

    def __init__(self) -> None:
        self._waiting: deque[Line] = deque()
        self._cutter = LineCutter()
        self._base = 0
        self._finished = False
        """The text is at its end for good."""

    def take(self) -> Taken:
        """As many lines as are there and a batch may hold."""
        taken = Taken()
        while not taken.full:
            if self._waiting:
                taken.add(self._waiting.popleft(), self._base)
                continue
            text = self._now_open(taken)
            if text is None:
                break
            try:
                chunk = text.read()
            except OSError as error:
                self._failed(error)
                break
            if chunk is not None:
                self._came(chunk)
            elif not self._exhausted(text, taken):
                break
        return taken

    def place(self) -> Any:
        """Where the source stands after what was taken."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the file."""

    def _now_open(self, taken: Taken) -> Text | None:
        raise NotImplementedError

    def _exhausted(self, text: Text, taken: Taken) -> bool:
        """The text has no more for now; True if it is to be asked again at once."""
        raise NotImplementedError

    def _failed(self, error: OSError) -> None:
        """The text cannot be read; raises unless it is worth another try later."""
        raise error

    def _came(self, chunk: bytes) -> None:
        self._waiting.extend(self._cutter.feed(chunk))

    def _offset(self) -> int:
        return self._waiting[0].start if self._waiting else self._cutter.start

    def _finish(self, text: Text, taken: Taken) -> None:
        """No more will come: a last line without line end is a line, a cut archive is said."""
        self._waiting.extend(self._cutter.feed(text.rest()))
        self._waiting.extend(self._cutter.end())
        if text.fault:
            taken.rejected["gzip_broken"] += 1
        elif not text.whole:
            taken.rejected["gzip_cut"] += 1
        self._finished = True


class Stream(Lines):
    """Standard input or a pipe: read once, with no way back.

    Args:
        fd: Open file; closed at the end unless it is standard input.
        place: Where numbering goes on: what comes now is behind it.
        stop: Ends a wait for input.
    """

    pause_s = 0.0

    def __init__(self, fd: int, place: Any | None, stop: threading.Event) -> None:
        super().__init__()
        self._fd = fd
        self._stop = stop
        self._text = Text(self._raw)
        self._base = place if isinstance(place, int) else 0

    def place(self) -> Any:
        """Offset of the next line."""
        return self._base + self._offset()

    def close(self) -> None:
        """Close what was opened."""
        if self._fd != sys.stdin.fileno():
            os.close(self._fd)

    def _raw(self, size: int) -> bytes | None:
        if self._stop.is_set() or not select.select([self._fd], [], [], PAUSE_S)[0]:
            return None
        return os.read(self._fd, size)

    def _now_open(self, taken: Taken) -> Text | None:
        taken.ended = self._finished
        return None if self._finished else self._text

    def _exhausted(self, text: Text, taken: Taken) -> bool:
        if text.ended:
            self._finish(text, taken)
        return text.ended


class FilePlace(msgspec.Struct, frozen=True):
    """Where a file stands."""

    file: Identity
    offset: int
    """Of the next line, in the uncompressed text of this file."""
    base: int
    """Where this file begins among all that this source ever read."""
    size: int
    """Bytes the file had when it was last looked at."""
    changed_ns: int


class Tail(Lines):
    """One file, and the files it is rotated into.

    Args:
        path: The file.
        place: What `place` said before.
        follow: Wait for more at the end.
        oldest: Without a place, begin with this rotated file.
    """

    def __init__(
        self, path: Path, place: Any | None, follow: bool, oldest: Path | None = None
    ) -> None:
        super().__init__()
        self._path = path
        self._follow = follow
        self._oldest = oldest or path
        self._text: Text | None = None
        self._file: BinaryIO | None = None
        self._identity = Identity(0, 0, 0, "")
        self._aside = False
        """The open file is a rotated one, to be left at its end."""
        self._last = known_place(place, path)
        self._size = 0
        self._changed_ns = 0
        self._active_s = time.monotonic()
        self._rests = False
        self._said = 0

    def place(self) -> Any:
        """Where the file stands; None as long as there was no file."""
        here = self._last if self._file is None else self._here()
        return None if here is None else msgspec.to_builtins(here)

    def close(self) -> None:
        """Let go of the file; the next `take` opens it again where it stood."""
        if self._file is not None:
            self._last = self._here()
            self._file.close()
            self._file = self._text = None
            self._waiting.clear()

    @property
    def quiet_s(self) -> float:
        """How long nothing came."""
        return time.monotonic() - self._active_s

    @property
    def is_open(self) -> bool:
        """True while the file is held open."""
        return self._file is not None

    def rest(self) -> None:
        """Close a file that has nothing to say until it `stirs`."""
        self.close()
        self._rests = True

    def stirs(self, stat: os.stat_result | None) -> bool:
        """True unless the file rests and is as it was, or is gone."""
        if not self._rests or stat is None:
            return not self._rests
        last = self._last
        return last is None or (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) != (
            last.file.device,
            last.file.inode,
            last.size,
            last.changed_ns,
        )

    def _here(self) -> FilePlace:
        return FilePlace(self._identity, self._offset(), self._base, self._size, self._changed_ns)

    # ---- opening

    def _now_open(self, taken: Taken) -> Text | None:
        self._rests = False
        try:
            if self._finished:
                if not self._aside and not self._follow:
                    taken.ended = True
                    return None
                self._switch()
            elif self._file is None:
                self._resume(taken)
            if self._follow and not self._aside and self._file is not None:
                self._check_same(self._file, taken)
        except InterruptedError:
            return None
        except OSError as error:
            self._failed(error)
            return None
        return self._text

    def _failed(self, error: OSError) -> None:
        if not self._follow:
            raise error
        if self._said != error.errno:
            log.warning("%s cannot be read, it is tried again: %s.", self._path, error.strerror)
            self._said = error.errno or 0
        self.close()

    def _switch(self) -> None:
        """Open what came after the file that was read to its end."""
        base = self._base + self._cutter.start
        before = _inodes(self._path)
        self._start(self._newer(self._identity, self._changed_ns)[0], 0, before)
        self._base = base
        self._last = None

    def _resume(self, taken: Taken) -> None:
        """Open the file, or the rotated one that the place is in."""
        last, before = self._last, _inodes(self._path)
        if last is None:
            self._start(self._oldest, 0, before)
            return
        found = _find(last.file, last.offset, [self._path, *reversed(rotated_of(self._path))])
        if found == self._path and not last.file.head_bytes:
            # It was empty and is known by its inode alone; what it held since may be copied away.
            found = self._newer(last.file, last.changed_ns)[0]
        if found is None:
            self._go_on_without(last, before, taken)
        else:
            self._start(found, last.offset, before)
            self._base = last.base
        self._last = None

    def _go_on_without(self, last: FilePlace, before: dict[str, int], taken: Taken) -> None:
        """The file of the place is nowhere: read what came after it, and say what is known."""
        self._start(self._newer(last.file, last.changed_ns)[0], 0, before)
        self._base = last.base + max(last.size, last.offset)
        unread_bytes = max(0, last.size - last.offset)
        if unread_bytes:
            taken.lost += 1
        log.warning(
            "%s was replaced while nobody read it; %d bytes of the old file are known to be lost.",
            self._path,
            unread_bytes,
        )

    def _start(self, path: Path, offset: int, before: dict[str, int]) -> None:
        """Open a file.

        Args:
            path: The file or a rotated one.
            offset: Where to begin, in its text.
            before: The inodes by which the choice was made.

        Raises:
            InterruptedError: names were changed meanwhile; choose again.
        """
        file = open_raw(path)
        if _inodes(self._path) != before:
            file.close()
            raise InterruptedError
        if self._file is not None:
            self._file.close()
        self._file = file
        self._aside = path != self._path
        self._identity = Identity.of(file)
        self._look(file)
        self._cutter = LineCutter(offset)
        self._finished = False
        if offset and not is_zipped(file):
            file.seek(offset)
            self._text = Text(file.read, plain=True)
        else:
            self._text = Text(file.read, skip=offset)

    def _newer(self, known: Identity, changed_ns: int) -> list[Path]:
        """Rotated files that came after a known one, oldest first, then the file itself."""
        rotated = [path for path in rotated_of(self._path) if not _is_copied_now(path, self._path)]
        found = _find(known, 0, rotated)
        if found is not None:
            return [*rotated[rotated.index(found) + 1 :], self._path]
        return [*(path for path in rotated if _changed_ns(path) > changed_ns), self._path]

    # ---- the open file changes

    def _look(self, file: BinaryIO) -> None:
        stat = os.fstat(file.fileno())
        self._size, self._changed_ns = stat.st_size, stat.st_mtime_ns

    def _check_same(self, file: BinaryIO, taken: Taken) -> None:
        """Notice that the file was emptied for others to fill it (copy-truncate)."""
        known, known_bytes, changed_ns = self._identity, self._size, self._changed_ns
        self._look(file)
        if self._changed_ns != changed_ns and self._was_copied_away(known, changed_ns):
            self._changed_ns = changed_ns
            self._leave()
            return
        if self._size >= file.tell() and known.begins(file):
            if known.head_bytes < HEAD_BYTES:
                self._identity = Identity.of(file)
            return
        before = _inodes(self._path)
        copy = _find(known, self._cutter.start, list(reversed(rotated_of(self._path))))
        if copy is not None:
            self._start(copy, self._cutter.start, before)
            return
        if known_bytes > file.tell():
            taken.lost += 1
            log.warning(
                "%s was emptied before its last %d bytes were read, and no copy is beside it.",
                self._path,
                known_bytes - file.tell(),
            )
        self._leave()

    def _was_copied_away(self, known: Identity, changed_ns: int) -> bool:
        """True if a file that was empty was filled, copied and emptied since, maybe repeatedly."""
        if known.head_bytes:
            return False
        rotated = rotated_of(self._path)
        later = any(_changed_ns(path) > changed_ns for path in rotated)
        return later and _find(known, 0, rotated) is None

    def _leave(self) -> None:
        """The open file holds something else by now: go on as if it had been renamed."""
        self._waiting.extend(self._cutter.end())
        self._finished = self._aside = True
        self._text = Text(lambda size: b"", plain=True)

    def _came(self, chunk: bytes) -> None:
        self._active_s = time.monotonic()
        super()._came(chunk)

    def _exhausted(self, text: Text, taken: Taken) -> bool:
        if self._finished:
            return True
        if self._aside or not self._follow:
            self._finish(text, taken)
            return True
        if self.quiet_s < GRACE_S:
            return False
        if self._was_renamed():
            self._finish(text, taken)
            return True
        if text.fault:
            self._finish(text, taken)
            self._finished = False
            return False
        if text.zipped and text.whole:
            # Archives are not appended to: what has no line end by now will not get one.
            self._waiting.extend(self._cutter.end())
        return bool(self._waiting)

    def _was_renamed(self) -> bool:
        """True if the name means another file by now, and that file has something to say."""
        try:
            stat = self._path.stat()
        except OSError:
            return False
        mine = (self._identity.device, self._identity.inode)
        return (stat.st_dev, stat.st_ino) != mine and stat.st_size > 0


def known_place(place: Any, path: Path) -> FilePlace | None:
    """A place as it was given out; None, and a warning, if it is none of ours."""
    if place is None:
        return None
    try:
        return msgspec.convert(place, FilePlace)
    except msgspec.ValidationError as error:
        log.warning("%s is read from its beginning: its place is unknown (%s).", path, error)
        return None


def rotated_base(name: str, others: Container[str]) -> str | None:
    """The name among `others` whose rotated file `name` is, if it is one."""
    for at, sign in enumerate(name):
        if at and sign in ".-" and name[:at] in others and _ROTATED.fullmatch(name[at:]):
            return name[:at]
    return None


def rotated_of(path: Path) -> list[Path]:
    """Rotated files beside a file (`x.1`, `x.2.gz`, `x-20240131`), oldest first."""
    found: dict[tuple[int, int, str], Path] = {}
    try:
        names = os.listdir(path.parent)
    except OSError:
        return []
    for name in sorted(names):
        end = _ROTATED.fullmatch(name.removeprefix(path.name)) if name != path.name else None
        if end is None or not name.startswith(path.name):
            continue
        number, date = end.groups()
        age = (0, -int(number), "") if number else (1, 0, date)
        # While x.1 is being packed, x.1.gz is not whole; sorted, the plain one comes first.
        found.setdefault(age, path.parent / name)
    return [found[age] for age in sorted(found)]


def _inodes(path: Path) -> dict[str, int]:
    """Names of a file and of those beside it that are called alike, with their inodes."""
    try:
        with os.scandir(path.parent) as entries:
            return {one.name: one.inode() for one in entries if one.name.startswith(path.name)}
    except OSError:
        return {}


def _is_copied_now(copy: Path, path: Path) -> bool:
    """True if a rotated file is a copy of what the file still holds (copy-truncate, half done)."""
    try:
        with open_raw(copy) as one, open_raw(path) as other:
            shorter = os.fstat(one.fileno()).st_size <= os.fstat(other.fileno()).st_size
            return shorter and Identity.of(one).begins(other)
    except OSError:
        return False


def _find(known: Identity, offset: int, paths: Sequence[Path]) -> Path | None:
    """The file among `paths` that is the known one and reaches to `offset`, its inode first."""
    matching: Path | None = None
    for path in paths:
        try:
            with open_raw(path) as file:
                if not known.is_of(file):
                    continue
                if os.fstat(file.fileno()).st_size < offset and not is_zipped(file):
                    continue
                if known.is_inode_of(Identity.of(file)):
                    return path
        except OSError:
            continue
        matching = matching or path
    return matching


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
