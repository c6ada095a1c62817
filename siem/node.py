"""The path of an operator's node: records in, events kept, findings out.

A node is two processes on the same files: this one, and the console.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import msgspec

from cityward import CitywardError, Detector, Event, Finding, LogSource, Record
from cityward.event import ORIGINAL_MAX_BYTES, text_of
from cityward.fields import SCHEMA_VERSION
from cityward.plugin import CollectorSpec
from collectors.readers import Batch, Reader
from siem.assets import Inventory
from siem.learning import Learner
from siem.modes import Modes
from siem.store.embedded import NodeDb
from siem.store.events import EventStore
from siem.store.faults import fault
from siem.store.protocol import Document, RuleState, SourceState
from siem.store.room import is_full

log = logging.getLogger(__name__)

QUEUE_BATCHES = 32
"""Batches that wait between the readers and the path; a full queue makes readers wait."""
SNAPSHOT_EVERY = timedelta(minutes=5)
TICK_S = 0.5
"""Detectors are told at least so often that time has passed."""
RETRY_S = 10.0
"""A reader that failed is tried again after so long."""
STOP_S = 4.0
"""After the stop, what readers have taken already is kept for at most so long."""
LATE_STOP_S = 3.0
"""So long after the stop events are still looked at; those behind are at the next start."""
SLICE_EVENTS = 1_000
"""Detectors are given so many at once, so that a stop need not wait for a long batch."""
ROOM_S = 2.0
"""A node whose disk is full tries again after so long."""
STATES_EVERY_S = 1.0
COMPACT_EVERY_S = 60.0
RETAIN_EVERY_S = 3600.0
RATE_OVER, RATE_STEP = timedelta(minutes=5), timedelta(seconds=1)
"""The rate is over so long, and counted in such steps."""
LATE_S = 60.0
"""An event is late if its source has already sent one this much newer."""

Clock = Callable[[], datetime]
T = TypeVar("T")


def now_utc() -> datetime:
    """The clock of a node that runs in real time."""
    return datetime.now(UTC)


class Source:
    """A reader, its collector, and what is known of them."""

    def __init__(self, reader: Reader, name: str, collector: Any) -> None:
        spec: CollectorSpec = collector.cityward_spec
        self.reader = reader
        self.id = reader.source
        self.name = name
        self.framing = spec.framing
        self.logsource = spec.logsource
        # A class remembers across batches and is made once; a function is called anew each time.
        self.collector = collector() if isinstance(collector, type) else collector
        self._is_broken = False
        self.rereads: bool = getattr(reader, "rereads", False)
        self._lost_flows = 0
        self.skip = 0
        """Events that are read again and already durable."""
        self.state = SourceState(source=self.id, collector=name)
        self._recent: deque[tuple[datetime, int]] = deque(maxlen=RATE_OVER // RATE_STEP + 1)

    def resume(self, place: Mapping[str, Any] | None) -> Any:
        """Where the reader goes on, from what the event store kept of this source.

        A capture that was not read to its end is read again from its start, since flows that
        were open cannot be taken up in the middle; what it has given already is not kept twice.
        """
        if place is None:
            return None
        self.state = msgspec.convert(place["state"], SourceState)
        self._lost_flows = place.get("open_flows", 0)
        if "memory" in place:
            self.collector.memory = place["memory"]
        if self.rereads and self.state.state != "ended":
            self._lost_flows = 0
            self.skip = self.state.events
            self.state = SourceState(
                source=self.id,
                collector=self.name,
                events=self.state.events,
                malformed=self.state.malformed,
            )
            return None
        return place["at"]

    def place(self, batch: Batch) -> dict[str, Any]:
        """What the event store keeps of this source beside its events: counts, too, are exact."""
        place = {"at": batch.place, "state": msgspec.to_builtins(self.state)}
        if self.framing == "packets" and not self.rereads:
            place["open_flows"] = self.collector.counts["flows_open"]
        if memory := getattr(self.collector, "memory", None):
            place["memory"] = msgspec.to_builtins(memory)
        return place

    def events(self, batch: Batch, now: datetime) -> list[Event]:
        """What the collector makes of a batch, without what is already durable."""
        found = self._made(batch.records) if len(batch.records) else []
        if (tick := getattr(self.collector, "tick", None)) and not len(batch.records):
            found += tick(now)
        if batch.ended and (end := getattr(self.collector, "end", None)):
            found += end()
        if self._lost_flows:
            found.insert(0, self._loss(now))
        again = min(self.skip, len(found))
        self.skip -= again
        return found[again:]

    def _made(self, records: Sequence[Record]) -> list[Event]:
        """Events of records; of those that break the collector, one by one, that they do."""
        try:
            return list(self.collector(records))
        except Exception as fault_:  # a record must not stop the node, now and at every start
            if not self._is_broken:
                self._is_broken = True
                log.exception("Collector %s failed on a record of %s.", self.name, self.id)
            if len(records) > 1 and self.framing != "packets":
                return [event for one in records for event in self._made([one])]
            why = f"the collector failed: {type(fault_).__name__}"
            return [Event.malformed(records[0], self.logsource, why)]

    def _loss(self, now: datetime) -> Event:
        """Flows that were open on an interface when the process ended; nobody can end them now."""
        why = f"{self._lost_flows} open flows were lost with the process that metered them"
        self._lost_flows = 0
        record = Record(b"", self.id, f"restart {now.isoformat()}", now)
        return Event.malformed(record, self.logsource, why)

    def count(self, batch: Batch, events: Sequence[Event], now: datetime) -> None:
        """Bring the state that Health shows up to date."""
        state = self.state
        malformed = [event for event in events if event.is_malformed]
        last = state.last_event
        newest = max((event.time for event in events), default=last)
        late = sum((last - event.time).total_seconds() > LATE_S for event in events) if last else 0
        # If all are late, the clock of the source was set back.
        set_back = late == len(events)
        if self._recent and abs(now - self._recent[-1][0]) < RATE_STEP:
            self._recent[-1] = self._recent[-1][0], self._recent[-1][1] + len(events)
        else:
            self._recent.append((now, len(events)))
        window = now - RATE_OVER
        self.state = msgspec.structs.replace(
            state,
            records=state.records + len(batch.records),
            events=state.events + len(events),
            rejected=state.rejected + sum(batch.rejected.values()),
            malformed=state.malformed + len(malformed),
            lost=state.lost + batch.lost,
            cut=state.cut + batch.cut,
            late=state.late + late,
            last_event=max(last, newest) if last and newest and not set_back else newest,
            last_received=now if events else state.last_received,
            rate_per_min=sum(n for at, n in self._recent if at > window) / 5,
            lag_s=(now - newest).total_seconds() if events and newest else state.lag_s,
            state="ended" if batch.ended else "running",
            error="",
            sample=str(malformed[-1].fields.get("event.original", ""))[:200]
            if malformed
            else state.sample,
        )


class Gathered(msgspec.Struct, frozen=True):
    """A batch with its source, or the reason why the source failed."""

    source: Source
    batch: Batch | None
    error: str = ""


class Node:
    """One operator's path: what it reads, what it knows, where it keeps things."""

    def __init__(
        self,
        *,
        operator: str,
        sector: str,
        site: str = "",
        mode: str = "normal",
        sources: Sequence[Source],
        inventory: Inventory,
        detectors: Sequence[Detector],
        events: EventStore,
        db: NodeDb,
        findings_days: int = 365,
        clock: Clock = now_utc,
        event_time: bool = False,
        off: Set[str] = frozenset(),
        rule_states: Callable[[], Sequence[RuleState]] = lambda: (),
        watch: Callable[[Source, Batch, int], None] = lambda source, batch, events: None,
        learner: Learner | None = None,
        modes: Modes | None = None,
        version: Callable[[], object] | None = None,
        reread: Callable[[], None] = lambda: None,
    ) -> None:
        self.sources = sources
        self.inventory = inventory
        self.detectors = detectors
        self.events = events
        self.db = db
        self.clock = clock
        self._findings_days = findings_days
        self._event_time = event_time
        self.stop = threading.Event()
        self._constant = {
            "cw.schema": SCHEMA_VERSION,
            "cw.operator": operator,
            "cw.sector": sector,
            "cw.mode": mode,  # unless the calendar says otherwise
            **({"cw.site": site} if site else {}),
        }
        self.off = off
        self.rule_states = rule_states
        self._watch = watch
        self.learner = learner
        self.modes = modes or Modes(mode)
        self._reread = reread
        self._newest = version or db.inventory.version
        self._version = self._newest()
        self._queue: queue.Queue[Gathered] = queue.Queue(maxsize=QUEUE_BATCHES)
        self._batch_number = 0
        self._snapshot_at = clock()
        self._due = {"states": 0.0, "compact": 0.0, "retain": 0.0}
        self._watermark: datetime | None = None
        self._is_full = False
        self._late_s: float | None = None

    # ---- Record → Event

    def collect(self) -> Iterator[Gathered | None]:
        """Batches of all sources as they come, until `stop` is set; None: only time has passed."""
        places = self.events.places()
        readers = [self._start(one, one.resume(places.get(one.id))) for one in self.sources]
        while not self.stop.is_set():
            yield self._next(TICK_S)
        # What was received is kept: a datagram does not come again. A capture is read again.
        until_s = time.monotonic() + STOP_S
        while any(one.is_alive() for one in readers) or not self._queue.empty():
            if time.monotonic() > until_s:
                log.error("Batches that wait are lost, unless their sources are read again.")
                return
            gathered = self._next(TICK_S / 10)
            if gathered and not gathered.source.rereads:
                yield gathered

    def _next(self, timeout_s: float) -> Gathered | None:
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _start(self, source: Source, place: Any) -> threading.Thread:
        reader = threading.Thread(
            target=self._read, args=(source, place), name=source.id, daemon=True
        )
        reader.start()
        return reader

    def collect_from(self, source: Source) -> Iterator[Gathered]:
        """Batches of one source in this thread, until it ends."""
        place = source.resume(self.events.places().get(source.id))
        yield from self._batches(source, place)

    def _read(self, source: Source, place: Any) -> None:
        """One thread a reader; one that fails is tried again, from where it stood."""
        while True:
            ended = False
            for gathered in self._batches(source, place):
                self._queue.put(gathered)
                if gathered.batch is not None:
                    place, ended = gathered.batch.place, gathered.batch.ended
            # A capture cannot be taken up in the middle: that happens at the next start.
            if ended or source.rereads or self.stop.wait(RETRY_S):
                return

    def _batches(self, source: Source, place: Any) -> Iterator[Gathered]:
        """What a reader gives; one that fails is said, the others go on."""
        error = "the reader stopped by itself"
        try:
            for batch in source.reader.read(place, self.stop):
                yield Gathered(source, batch)
                if batch.ended:
                    return
        except CitywardError as fault_:
            error = str(fault_)
        except Exception as fault_:  # a fault of ours must not stop the other sources
            log.exception("Source %s failed.", source.id)
            error = repr(fault_)
        if not self.stop.is_set():
            yield Gathered(source, None, error)

    # ---- Event kept

    def keep(self, gathered: Gathered) -> list[Event]:
        """Make a batch durable: its events, described, and its place in one commit."""
        source, batch = gathered.source, gathered.batch
        now = self.clock()
        if batch is None:
            return self._failed(source, gathered.error, now)
        fault("after-receive")
        events = [self._described(event, source, now) for event in source.events(batch, now)]
        source.count(batch, events, now)
        made = len(events)
        if self.learner is not None:
            # What is new to the inventory is durable with the events that showed it.
            news = self.learner.learn(events, now)
            events += [self._described(event, source, now) for event in news]
        if batch.ended:
            self._ended(source)
        if events or len(batch.records) or batch.lost or batch.rejected or batch.ended:
            documents = [document(event) for event in events]
            place = {source.id: source.place(batch)}
            self._batch_number = self._written(lambda: self.events.append(documents, place))
            fault("after-commit-before-detect")
        batch.done()
        self._watch(source, batch, made)
        return events

    def _ended(self, source: Source) -> None:
        """Tell the detectors that care that nothing more comes from a source."""
        for detector in self.detectors:
            if end := getattr(detector, "end", None):
                end(source.id)

    def _failed(self, source: Source, error: str, now: datetime) -> list[Event]:
        if (source.state.state, source.state.error) != ("failed", error):
            log.error("Source %s failed: %s", source.id, error)
        source.state = msgspec.structs.replace(source.state, state="failed", error=error)
        return []

    def _described(self, event: Event, source: Source, now: datetime) -> Event:
        """What the node adds to what the collector said."""
        said = event.fields
        record = event.record
        logsource = event.logsource
        fields = {
            "event.kind": "event",
            "event.outcome": "unknown",
            "event.dataset": source.name,
            "cw.domain": ["cyber"],
            **self._constant,
            **self.inventory.describe(event),
            "observer.name": source.id,
            "observer.type": "collector",
            **said,
            "event.ingested": now,
            "cw.record.source": record.source,
            "cw.record.place": str(record.place),
            "cw.record.number": event.number,
        }
        if logsource.category:
            fields["cw.logsource.category"] = logsource.category
        if logsource.product:
            fields["cw.logsource.product"] = logsource.product
        if logsource.service:
            fields["cw.logsource.service"] = logsource.service
        if self.modes.entries:
            fields["cw.mode"] = said.get("cw.mode") or self.modes.at(fields, event.time)
        if source.framing == "lines" and record.data and "event.original" not in said:
            fields["event.original"] = text_of(record.data)
            if len(record.data) > ORIGINAL_MAX_BYTES:
                fields["event.hash"] = _sha256(record.data)
        return Event(event.time, logsource, fields, record, event.number)

    # ---- Finding

    def detect(self, events: Sequence[Event]) -> list[Finding]:
        """Ask every detector; a detector that fails is said, its neighbours go on."""
        found = self._detected(events[:SLICE_EVENTS])
        for begin in range(SLICE_EVENTS, len(events), SLICE_EVENTS):
            if self.is_late:
                break
            found += self._detected(events[begin : begin + SLICE_EVENTS])
        return found

    def _detected(self, events: Sequence[Event]) -> list[Finding]:
        found: list[Finding] = []
        now = self._now(events)
        for detector in self.detectors:
            try:
                if events:
                    found += detector.detect(events)
                found += detector.tick(now)
            except Exception:  # one detector must not blind the others
                log.exception("Detector %s failed on a batch of %d.", detector.name, len(events))
        return [one for one in found if one.analytic.id not in self.off]

    def _now(self, events: Sequence[Event]) -> datetime:
        """Time of detection: the clock's, or for files of the past the newest event's."""
        if not self._event_time:
            return self.clock()
        if events:
            self._watermark = max(event.time for event in events)
        return self._watermark or self.clock()

    def conclude(self, findings: Sequence[Finding]) -> None:
        """Keep the findings and how far detection has come, in one transaction."""
        now = self.clock()
        snapshot = now - self._snapshot_at >= SNAPSHOT_EVERY
        states = self._is_due("states", STATES_EVERY_S)
        if not (findings or snapshot or states):
            return
        keep = partial(
            self.db.keep,
            findings,
            checkpoint=self._batch_number,
            snapshots=self._snapshots() if snapshot else None,
            sources=[source.state for source in self.sources],
            rules=self.rule_states() if states else (),
            now=now,
            learnt=self.learner.changes() if self.learner is not None else None,
        )
        self._written(keep)
        if states and (version := self._newest()) != self._version:
            self._version = version
            self._reread()
        fault("after-detect")
        if snapshot:
            self._snapshot_at = now

    def _snapshots(self) -> dict[str, bytes]:
        return {detector.name: detector.snapshot() for detector in self.detectors}

    def _is_due(self, what: str, every_s: float) -> bool:
        now_s = time.monotonic()
        if now_s < self._due[what]:
            return False
        self._due[what] = now_s + every_s
        return True

    def _written(self, write: Callable[[], T]) -> T:
        """What a write gives; on a full disk the oldest events go, then this node waits."""
        while True:
            try:
                done = write()
            except (OSError, CitywardError) as error:
                if not is_full(error):
                    raise
                if not self._is_full:
                    log.error(
                        "The disk is full. What was kept is safe; sources wait until there is room."
                    )
                self._is_full = True
                if not self.make_room() and self.stop.wait(ROOM_S):
                    raise
                continue
            if self._is_full:
                log.warning("There is room on the disk again.")
            self._is_full = False
            return done

    # ---- life

    @property
    def is_late(self) -> bool:
        """Whether the stop was so long ago that what is not concluded on is left for the start.

        What is kept is detected then, since its checkpoint does not move and no snapshot is taken.
        """
        if self._late_s is None and self.stop.is_set():
            self._late_s = time.monotonic() + LATE_STOP_S
        return self._late_s is not None and time.monotonic() > self._late_s

    def make_room(self) -> int:
        """Let go of what may go first when the disk is full; 0: nothing."""
        return self.events.make_room(self.clock())

    def recover(self) -> None:
        """After a start: models and windows from their snapshot, then what came since.

        Events up to the checkpoint were concluded on: the detectors only see them. What came
        later is detected as if it had just arrived.
        """
        checkpoint, taken_at, snapshots = self.db.checkpoint()
        for detector in self.detectors:
            if detector.name in snapshots:
                try:
                    detector.restore(snapshots[detector.name])
                except ValueError as error:
                    log.warning("%s starts anew: %s.", detector.name, error)
        for number, documents in self.events.replay(taken_at):
            self._batch_number = number
            events = [event_of(one) for one in documents]
            if self.learner is not None:
                self.learner.learn(events, self.clock(), again=True)
            findings = self.detect(events)
            if self.stop.is_set():
                return
            if number > checkpoint:
                self.conclude(findings)
        self._batch_number = self.events.last_batch

    def tidy(self) -> None:
        """Compact and retain when it is time; detection never has to go back behind a snapshot."""
        try:
            if self._is_due("compact", COMPACT_EVERY_S):
                self._save()
                self.events.compact(self._batch_number)
            if self._is_due("retain", RETAIN_EVERY_S):
                self.events.retain(self.clock())
                self.db.retain(self.clock(), self._findings_days)
        except (OSError, CitywardError) as error:
            if not is_full(error) or self.stop.is_set():
                raise
            log.error("The disk is full: tidying comes later.")

    def _save(self) -> None:
        self._snapshot_at = self.clock() - SNAPSHOT_EVERY
        self.conclude(())

    def finish(self) -> None:
        """Keep what is not kept yet: states, models and windows."""
        self._due["states"] = 0.0
        self._save()

    def close(self) -> None:
        """Stop reading and let go of the files.

        It saves nothing: after a fault, what was not concluded on is detected at the next start.
        """
        self.stop.set()
        self.events.close()
        self.db.close()


def settle_memory() -> None:
    """Spare the garbage collector what is loaded for good, and batches while they live.

    Measured: a fifth off the making of events.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def run(node: Node) -> None:
    """The whole path of a node."""
    settle_memory()
    node.recover()
    if node.stop.is_set():
        return  # what was not seen again is seen at the next start
    for gathered in node.collect():
        events = node.keep(gathered) if gathered else []
        findings = [] if node.is_late else node.detect(events)
        if not node.is_late:
            node.conclude(findings)
            node.tidy()
    if not node.is_late:
        node.finish()


def document(event: Event) -> Document:
    """An event as it is stored."""
    return {"@timestamp": event.time, **event.fields}


def event_of(stored: Document) -> Event:
    """A stored event as detectors see it."""
    fields = dict(stored)
    time = fields.pop("@timestamp")
    record = Record(
        b"", fields["cw.record.source"], fields["cw.record.place"], fields["event.ingested"]
    )
    logsource = LogSource(
        fields.get("cw.logsource.category", ""),
        fields.get("cw.logsource.product", ""),
        fields.get("cw.logsource.service", ""),
    )
    return Event(time, logsource, fields, record, fields["cw.record.number"])


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()
