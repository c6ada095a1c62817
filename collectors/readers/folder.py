"""All files of a folder, and new ones as they appear."""

from __future__ import annotations

import fnmatch
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cityward.plugin import Framing
from collectors.readers.batch import PAUSE_S, Batch, Clock, utc_now
from collectors.readers.files import read_document
from collectors.readers.tail import Tail, rotated_base, rotated_of

log = logging.getLogger(__name__)

FILES_MAX = 1000
"""Files whose place is remembered."""
OPEN_MAX = 256
"""Files held open at a time."""
REST_S = 60.0
"""A file that was quiet for so long is closed until it changes."""


class FolderReader:
    """Every file of a folder whose name matches, followed; links are not.

    Batches are of this reader's source, which has one place for the whole folder. Each batch is
    from one file, and its records' source is `<source>/<file name>`, so places stay unique.
    Rotated files (`x.log.1`) are read as the past of the file they belong to (`x.log`).

    Documents are taken when they have kept still for a moment; place is their change time (ns).
    The newest 1,000 are remembered by name, size and change time; what is older than all of those
    counts as done.

    Args:
        path: The folder; it is waited for.
        glob: Which names, as in a shell.
        source: Id of the source.
        framing: `lines` or `document`.
        clock: Gives `Record.received`.
    """

    def __init__(
        self,
        path: str | Path,
        glob: str,
        source: str,
        framing: Framing = "lines",
        *,
        clock: Clock = utc_now,
    ) -> None:
        self.path = Path(path)
        self.glob = glob
        self.source = source
        self.framing: Framing = framing
        self._clock = clock
        self._said: set[str] = set()

    def read(self, place: Any | None, stop: threading.Event) -> Iterator[Batch]:
        """Yield batches from `place` on; a folder never ends."""
        part = self._documents if self.framing == "document" else self._lines
        yield from part(place if isinstance(place, dict) else {}, stop)

    # ---- lines

    def _lines(self, place: dict[str, Any], stop: threading.Event) -> Iterator[Batch]:
        places = dict(place)
        tails: dict[str, Tail] = {}
        try:
            while not stop.is_set():
                there = self._files()
                rejected = self._meet(there, tails, places)
                if rejected:
                    yield Batch(self.source, [], dict(places), rejected=rejected)
                busy = yielded = False
                for name in self._awake(there, tails):
                    if stop.is_set():
                        return
                    taken = tails[name].take()
                    busy = busy or taken.full
                    if not taken and not taken.full:
                        self._let_rest(tails[name], tails)
                    places[name] = tails[name].place()
                    if taken:
                        yielded = True
                        yield taken.batch(
                            self.source, f"{self.source}/{name}", self._clock, dict(places)
                        )
                if not yielded:
                    yield Batch(self.source, [], dict(places))
                if not busy:
                    stop.wait(PAUSE_S)
        finally:
            for tail in tails.values():
                tail.close()

    def _meet(
        self, there: dict[str, os.stat_result], tails: dict[str, Tail], places: dict[str, Any]
    ) -> Counter[str]:
        """Make a tail for each new file; forget files that are gone when there are too many."""
        rejected: Counter[str] = Counter()
        known = {*there, *places}
        for name in [*places, *there]:
            if name in tails or (name not in places and rotated_base(name, known)):
                continue
            if len(tails) >= FILES_MAX and not self._forget(there, tails, places):
                if self._once(name, "%s is not read: %d files are followed already.", FILES_MAX):
                    rejected["too_many_files"] += 1
                continue
            rotated = rotated_of(self.path / name)
            past = [path for path in rotated if path.name in there and path.name not in places]
            tails[name] = Tail(self.path / name, places.get(name), True, next(iter(past), None))
            places.setdefault(name, None)
        return rejected

    def _forget(
        self, there: dict[str, os.stat_result], tails: dict[str, Tail], places: dict[str, Any]
    ) -> bool:
        gone = next((name for name in tails if name not in there), None)
        if gone is None:
            return False
        tails.pop(gone).close()
        places.pop(gone, None)
        return True

    def _awake(self, there: dict[str, os.stat_result], tails: dict[str, Tail]) -> list[str]:
        """Files to look at: not at rest, or changed since."""
        return [name for name, tail in tails.items() if tail.stirs(there.get(name))]

    def _let_rest(self, tail: Tail, tails: dict[str, Tail]) -> None:
        if tail.quiet_s > REST_S or sum(one.is_open for one in tails.values()) > OPEN_MAX:
            tail.rest()

    # ---- documents

    def _documents(self, place: dict[str, Any], stop: threading.Event) -> Iterator[Batch]:
        done = {str(name): (size, changed) for name, size, changed in place.get("done", ())}
        before_ns = int(place.get("before_ns", 0))
        seen: dict[str, tuple[int, int]] = {}
        while not stop.is_set():
            there = self._files()
            now = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in there.items()}
            yielded = False
            for name, version in sorted(now.items(), key=lambda item: item[1][1]):
                if stop.is_set():
                    return
                fresh = version[1] > before_ns and done.get(name) != version
                if not fresh or seen.get(name) != version:
                    continue
                found = self._document(name, version[1], stop)
                if found is None:
                    continue
                done[name] = version
                before_ns = _bounded(done, now, before_ns)
                yielded = True
                yield Batch(self.source, found[0], _done_place(done, before_ns), rejected=found[1])
            seen = now
            if not yielded:
                yield Batch(self.source, [], _done_place(done, before_ns))
                stop.wait(PAUSE_S)

    def _document(
        self, name: str, place: int, stop: threading.Event
    ) -> tuple[list[Any], dict[str, int]] | None:
        try:
            return read_document(
                self.path / name, f"{self.source}/{name}", place, self._clock, stop
            )
        except OSError as error:
            self._once(name, "%s cannot be read: %s.", error)
            return None

    # ---- both

    def _files(self) -> dict[str, os.stat_result]:
        """Regular files whose name matches; hidden ones only if the pattern says so."""
        found = {}
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    hidden = entry.name.startswith(".") and not self.glob.startswith(".")
                    if hidden or not fnmatch.fnmatchcase(entry.name, self.glob):
                        continue
                    try:
                        if entry.is_file(follow_symlinks=False):
                            found[entry.name] = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue  # it went away while we looked
        except OSError as error:
            self._once("", "%s cannot be listed: %s.", error)
        return dict(sorted(found.items()))

    def _once(self, name: str, message: str, more: object) -> bool:
        if name in self._said or len(self._said) > FILES_MAX:
            return False
        self._said.add(name)
        log.warning(message, self.path / name, more)
        return True


def _bounded(
    done: dict[str, tuple[int, int]], there: dict[str, tuple[int, int]], before_ns: int
) -> int:
    """Forget what is gone, then the oldest; gives the time up to which all counts as done."""
    if len(done) <= FILES_MAX:
        return before_ns
    gone = [name for name in done if name not in there]
    for name in gone:
        del done[name]
    while len(done) > FILES_MAX:
        oldest = min(done, key=lambda name: done[name][1])
        before_ns = max(before_ns, done.pop(oldest)[1])
    return before_ns


def _done_place(done: dict[str, tuple[int, int]], before_ns: int) -> dict[str, Any]:
    return {"done": [[name, *version] for name, version in done.items()], "before_ns": before_ns}
