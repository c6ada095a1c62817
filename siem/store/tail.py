"""The events of an operator in the order they were kept, for who follows them with a cursor."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from siem.store.archive import Archived, archives, connect, quoted, whole_row
from siem.store.lines import Encoder
from siem.store.spool import Segment, pairs, segments

log = logging.getLogger(__name__)

MEMORY_LIMIT = "128MB"
ROWS_AT_ONCE = 500
Told = tuple[int | None, bytes]
"""A number once its batch is whole, None before; and the line of an event, or nothing."""


class EventTail:
    """Follows one folder of events; another process may write and tidy it meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, tuple[int, int]] = {}
        """Of a segment: the last batch that was given, and where it ends."""
        self.missed = 0
        """Batches that retention took before they were given."""

    def after(self, number: int) -> Iterator[Told]:
        """Lines of the batches after a number, each batch closed by its own, as far as there are.

        A batch may be given twice when it became Parquet meanwhile, since a file of these has no
        inner marks; none is left out that is still there.
        """
        while True:
            # The spool is listed first: what is compacted in between is then in both.
            spool = segments(self._folder)
            if spool and spool[0].first <= number + 1:
                yield from self._spooled(spool, number)
                return
            archived = next((one for one in archives(self._folder) if one.last > number), None)
            begin = archived.first if archived else spool[0].first if spool else number + 1
            self.missed += max(0, begin - number - 1)
            if archived is None:
                if not spool:
                    return
                number = begin - 1
                continue
            yield from _rows(archived)
            yield archived.last, b""
            number = archived.last

    def _spooled(self, spool: Sequence[Segment], number: int) -> Iterator[Told]:
        live = {one.path for one in spool}
        self._seen = {path: seen for path, seen in self._seen.items() if path in live}
        for segment, following in pairs(spool):
            if following is not None and following.first - 1 <= number:
                continue
            seen, start = self._seen.get(segment.path, (0, 0))
            try:
                for batch in segment.batches(start if seen <= number else 0):
                    if batch.commit.batch > number:
                        if batch.is_sound:
                            yield from ((None, line) for line in batch.lines.splitlines())
                        yield batch.commit.batch, b""
                    self._seen[segment.path] = batch.commit.batch, batch.end
            except FileNotFoundError:
                return  # compacted meanwhile: the archive has it the next time


def _rows(archived: Archived) -> Iterator[Told]:
    encoder = Encoder()
    with tempfile.TemporaryDirectory(prefix="cityward-tail-") as temporary:
        db = connect(MEMORY_LIMIT, Path(temporary))
        try:
            path = quoted(str(archived.path))
            db.execute(f"SELECT * FROM read_parquet({path}, hive_partitioning=false)")
            names = [column[0] for column in db.description]
            while rows := db.fetchmany(ROWS_AT_ONCE):
                documents = [whole_row(dict(zip(names, row, strict=True))) for row in rows]
                for document in documents:
                    del document["event.id"]
                    yield None, encoder.lines([document]).rstrip(b"\n")
        finally:
            db.close()


class Head(msgspec.Struct, gc=False):
    """What of an event its place in a cluster follows from."""

    operator: str = msgspec.field(name="cw.operator", default="")
    source: str = msgspec.field(name="cw.record.source", default="")
    place: str = msgspec.field(name="cw.record.place", default="")
    number: int = msgspec.field(name="cw.record.number", default=0)
    ingested: str = msgspec.field(name="event.ingested", default="")
    time: str = msgspec.field(name="@timestamp", default="")


head_of = msgspec.json.Decoder(Head).decode
