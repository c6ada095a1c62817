"""A node's findings and events, copied into a search cluster of its own.

The node itself does not need the cluster: it detects, keeps and shows from its own files. What was
copied is said by two numbers that move only when the cluster has answered; so whatever stops in
between, everything arrives, and once.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

import msgspec

from cityward.errors import CitywardError
from siem.store.bulk import BulkWriter, Chunk, chunked
from siem.store.cluster import stored
from siem.store.lines import UNWRITABLE, event_id, harmless
from siem.store.protocol import Document
from siem.store.protocol_cluster import Cluster, Write
from siem.store.tail import EventTail, head_of
from siem.store.templates import (
    Names,
    ism_policy,
    month_of,
    months_before,
    prepare,
    put_ism_policies,
    retain,
)

T = TypeVar("T")
log = logging.getLogger(__name__)

STATE = "mirror"
"""Name under which `node.db` keeps how far the copying has come."""
LOOK_S = 1.0
SAY_S = 5.0
STOP_S = 4.0
"""A cluster that hangs must not keep the node; what it has taken meanwhile is sent again."""
RETAIN_S = 3_600.0
FINDINGS_AT_ONCE = 200
CHUNKS_AT_ONCE = 16
"""After so many chunks of one kind, the other one has its turn."""
BEHIND_MAX = 1_000
"""What waits is counted so far."""
SILENT = timedelta(minutes=2)
"""A state that is older is of a node that does not run."""
IDLE_SAY_S = 30.0
AHEAD = timedelta(days=2)
"""How far a clock may be ahead of the node's."""
LONG_LINE = 30_000
_MONTH = re.compile(r"\d{4}\.(0\d|1[0-2])", re.ASCII)
VENDOR_TEXT = 8_000
"""Characters of a text in `cw.vendor`: as one term it may not have more than 32,766 bytes."""


class State(msgspec.Struct):
    """How far the copying has come, and how it goes; for Health and doctor, too."""

    cluster: str = ""
    """Id of the cluster; another one begins anew."""
    findings: int = 0
    """Number of the last change of a finding that is settled."""
    events: int = 0
    """Number of the last batch of events that is settled."""
    url: str = ""
    version: str = ""
    said: datetime | None = None
    findings_behind: int = 0
    batches_behind: int = 0
    written: int = 0
    dead: int = 0
    dropped: int = 0
    """Dead letters for which there was no room."""
    skipped: int = 0
    """Findings of months that are not kept there."""
    unreadable: int = 0
    """What stands in the node's files and is no finding or event any more."""
    missed: int = 0
    """Batches of events that the node's own retention took first."""
    trouble: str = ""
    since: datetime | None = None
    """Since when there is trouble."""


class Findings(Protocol):
    """What of `node.db` is needed; `embedded.NodeDb` fulfils it."""

    def changes_after(self, number: int, limit: int) -> list[tuple[int, str]]:
        """Findings written since."""
        ...

    def get(self, finding_id: str) -> Document | None:
        """One finding."""
        ...

    def events_of(self, finding_id: str) -> list[Document]:
        """Copies of its events."""
        ...

    def setting(self, name: str) -> bytes | None:
        """A kept value."""
        ...

    def keep_setting(self, name: str, value: bytes) -> bytes:
        """Keep one."""
        ...


class Kept(msgspec.Struct, frozen=True):
    """What is copied, and for how long it stays."""

    events: bool = True
    months: int = 13
    events_months: int = 3


class Mirror:
    """Copies in a thread of its own; `start` and `stop` are the node's."""

    def __init__(
        self,
        db: Findings,
        tail: EventTail,
        last_batch: Callable[[], int],
        cluster: Cluster,
        writer: Callable[[threading.Event], BulkWriter],
        names: Names,
        kept: Kept,
        clock: Callable[[], datetime],
        *,
        url: str = "",
    ) -> None:
        """Take up both ends; nothing is asked yet.

        Args:
            db: Findings, and how far the copying has come.
            tail: The node's events.
            last_batch: Number of their newest batch.
            cluster: Where to.
            writer: Makes what writes there; it is given what stops it.
            names: Of indices and templates.
            kept: What is copied.
            clock: What now is.
            url: For people.
        """
        self._stop = threading.Event()
        self._db = db
        self._tail = tail
        self._last_batch = last_batch
        self._cluster = cluster
        self._writer = writer(self._stop)
        self._names = names
        self._kept = kept
        self._clock = clock
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._events: Iterator[Chunk[int | None]] | None = None
        self._said = ""
        self._due = {"say": 0.0, "retain": 0.0, "alive": 0.0}
        before = state_of(db) or State()
        self.state = State(before.cluster, before.findings, before.events, url)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Give up what waits; the next start sends it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        self._cluster.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                idle = not self.copy()
            except CitywardError as error:
                self._trouble(error.what)
                idle = True
            except Exception as error:  # copying must not stop the node
                if not self.state.trouble:
                    log.exception("Copying to the cluster failed; it is tried again.")
                self._trouble(repr(error))
                idle = True
            if idle:
                self._stop.wait(LOOK_S)
        try:
            self._say(now=True)
        except Exception:  # the node may be gone already
            log.warning("How far the copying has come was not kept; some is sent again.")

    def copy(self) -> bool:
        """One round; False if there was nothing more to do.

        Raises:
            CitywardError: the cluster cannot be asked, or `node.db` cannot be written.
        """
        if not self.state.version:
            self._begin()
        if self._is_due("retain", RETAIN_S):
            self.retain()
        moved = self._copy_findings()
        if self._kept.events:
            moved |= self._copy_events()
        if not self._stop.is_set():
            self._trouble("")
        self._say(now=moved)
        return moved

    def _begin(self) -> None:
        """Make the cluster ready, and go on where this cluster stands."""
        version = self._cluster.health().version
        uuid = self._cluster.request("GET", "/")["cluster_uuid"]
        prepare(self._cluster, self._names)
        put_ism_policies(self._cluster, policies(self._names, self._kept))
        # Another cluster begins anew; so do other events than those of before.
        if self.state.cluster != uuid:
            self.state.findings = self.state.events = 0
        if self.state.events > self._last_batch():
            self.state.events = 0
        self.state.cluster, self.state.version = uuid, version
        log.info("Findings and events are copied to %s, %s.", self.state.url, version)

    def retain(self) -> list[str]:
        """Delete whole months that are not kept any more; tells which indices."""
        return retain_all(self._cluster, self._names, self._kept, self._clock())

    # ---- Findings

    def _copy_findings(self) -> bool:
        before = self.state.findings
        chunks = islice(chunked(self._finding_writes(before), None), CHUNKS_AT_ONCE)
        for number in self._writer.flow(chunks, meanwhile=self._say):
            if number is not None:
                self.state.findings = number
        return self.state.findings != before

    def _finding_writes(self, number: int) -> Iterator[tuple[int | None, bytes]]:
        while changes := self._db.changes_after(number, FINDINGS_AT_ONCE):
            for change, finding in changes:
                document = self._db.get(finding)
                yield change, self._made(self._finding_write, document) if document else b""
            number = changes[-1][0]

    def _made(self, make: Callable[[T], bytes], of: T) -> bytes:
        """A write; nothing for what cannot be made one, so that what follows is not held up."""
        try:
            return make(of)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if not self.state.unreadable:
                log.error("What was kept cannot be copied: %r, %.200s", error, of)
            self.state.unreadable += 1
            return b""

    def _finding_write(self, document: Document) -> bytes:
        """A finding as a write; nothing if its month is not kept there."""
        now = self._clock()
        month = month_of(document["finding.first_seen"])
        if not months_before(now, self._kept.months) <= month <= month_of(now + AHEAD):
            # A wrong clock would make an index for every month it names, until there may be none.
            self.state.skipped += 1
            return b""
        made = stored(_indexable(document), self._db.events_of(document["finding.id"]))
        return Write(
            self._names.findings_in(document["finding.first_seen"]),
            document["finding.id"],
            _encoded(made),
            document["finding.revision"],
        ).lines()

    # ---- Events

    def _copy_events(self) -> bool:
        before = self.state.events
        if self._events is None:
            self._events = chunked(self._event_writes(before), None)
        moved = False
        try:
            for number in self._writer.flow(
                islice(self._events, CHUNKS_AT_ONCE), meanwhile=self._say
            ):
                moved = True
                if number is not None:
                    self.state.events = number
        except BaseException:
            self._events = None
            raise
        if not moved:
            self._events = None  # all was given; what comes is asked for anew
        self.state.missed = self._tail.missed
        return moved

    def _event_writes(self, number: int) -> Iterator[tuple[int | None, bytes]]:
        write = partial(event_write, names=self._names)
        for told, line in self._tail.after(number):
            yield told, self._made(write, line) if line else b""

    # ---- What people are told

    def _is_due(self, what: str, every_s: float) -> bool:
        now_s = time.monotonic()
        if now_s < self._due[what]:
            return False
        self._due[what] = now_s + every_s
        return True

    def _trouble(self, why: str) -> None:
        if why and not self.state.trouble:
            self.state.since = self._clock()
            log.warning("The cluster has nothing of what is new: %s", why)
        self.state.trouble = why
        if not why:
            self.state.since = None
        self._say(now=False)

    def _say(self, *, now: bool = False) -> None:
        """Keep how far it has come; sometimes without being asked."""
        if not (now or self._is_due("say", SAY_S)):
            return
        state, tally = self.state, self._writer.tally
        if tally.trouble and not state.trouble:
            state.trouble, state.since = tally.trouble, self._clock()
        state.written, state.dead = tally.written, tally.dead
        state.findings_behind = len(self._db.changes_after(state.findings, BEHIND_MAX + 1))
        state.batches_behind = max(0, self._last_batch() - state.events) * self._kept.events
        state.dropped = self._writer.dropped
        said = repr(msgspec.structs.replace(state, said=None))
        if said != self._said or now or self._is_due("alive", IDLE_SAY_S):
            self._said = said
            state.said = self._clock()
            self._db.keep_setting(STATE, msgspec.json.encode(state))


def retain_all(cluster: Cluster, names: Names, kept: Kept, now: datetime) -> list[str]:
    """Delete whole months that are not kept any more; tells which indices."""
    gone = retain(cluster, names.findings, months_before(now, kept.months))
    gone += retain(cluster, names.events, months_before(now, kept.events_months))
    if gone:
        log.info("Whole months went from the cluster: %s.", ", ".join(gone))
    return gone


def policies(names: Names, kept: Kept) -> list[tuple[str, dict[str, Any]]]:
    """Policies of Index State Management by name."""
    return [
        (f"{names.prefix}-{what}", ism_policy([f"{names.prefix}-{what}-*"], months))
        for what, months in (("findings", kept.months), ("events", kept.events_months))
    ]


def event_write(line: bytes, names: Names) -> bytes:
    """A stored event as a write: created once under its id, in the month it was taken in.

    Raises:
        ValueError: it is no event.
    """
    head = head_of(line)
    id = event_id(head.operator, head.source, head.place, head.number)
    at = head.ingested or head.time
    if len(line) > LONG_LINE:
        line = _encoded(_indexable(msgspec.json.decode(line)))
    month = f"{at[:4]}.{at[5:7]}"
    if not _MONTH.fullmatch(month):
        raise ValueError(f"{at!r} is no time")
    action = msgspec.json.encode({"create": {"_index": names.events_in(month), "_id": id}})
    return b'%s\n{"event.id":"%s",%s\n' % (action, id.encode(), line[1:])


def _indexable(document: Document) -> Document:
    """A document whose longest texts are cut where a cluster could not take them."""
    vendor = document.get("cw.vendor")
    if not isinstance(vendor, dict) or not _is_long(vendor):
        return document
    return document | {"cw.vendor": _cut(vendor) | {"cityward.cut": "value"}}


def _is_long(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) > VENDOR_TEXT
    if isinstance(value, dict):
        return any(map(_is_long, value)) or any(map(_is_long, value.values()))
    return isinstance(value, list) and any(map(_is_long, value))


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value[:VENDOR_TEXT]
    if isinstance(value, dict):
        return {key[:VENDOR_TEXT]: _cut(one) for key, one in value.items()}
    return [_cut(one) for one in value] if isinstance(value, list) else value


def _encoded(document: Document) -> bytes:
    try:
        return msgspec.json.encode(document)
    except UNWRITABLE:
        return msgspec.json.encode(harmless(document))


def in_words(state: State | None, now: datetime) -> tuple[bool, str]:
    """Whether the copying goes well, and how it goes, for people."""
    if state is None or state.said is None:
        return False, "nothing was copied yet"
    said = [f"{state.version or state.url}, copied {_ago(now - state.said)} ago"]
    if state.trouble:
        since = f" since {state.since:%Y-%m-%d %H:%M}Z" if state.since else ""
        said = [f"takes nothing{since}: {state.trouble}"]
    for count, what in (
        (state.findings_behind, "findings wait"),
        (state.batches_behind, "batches of events wait"),
        (state.dead, "documents were refused"),
        (state.dropped, "refused ones had no room"),
        (state.skipped, "findings are of months not kept there"),
        (state.unreadable, "cannot be read here"),
        (state.missed, "batches were gone before they were copied"),
    ):
        if count:
            more = "more than " if count > BEHIND_MAX else ""
            said.append(f"{more}{min(count, BEHIND_MAX):,} {what}")
    wrong = state.trouble or state.dead or state.missed or now - state.said > SILENT
    return not wrong, "; ".join(said)


def _ago(span: timedelta) -> str:
    seconds = max(0, int(span.total_seconds()))
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"


def state_of(db: Findings) -> State | None:
    """How the copying of a node goes; None: it never began."""
    said = db.setting(STATE)
    return msgspec.json.decode(said, type=State) if said else None
