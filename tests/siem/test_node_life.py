"""What a node does when something fails, when it is told to stop, and when clocks jump."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward import ConfigError, Detector, Event, LogSource, Record, collector
from cityward.plugin import Framing
from collectors.readers import Batch
from siem import assembly
from siem.assets import Inventory
from siem.node import Gathered, Node, Source
from siem.node import run as run_node
from siem.store.embedded import NodeDb
from siem.store.events import EventStore

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
LINES = LogSource(service="lines")


@collector(LINES)
def lines(records: Iterable[Record]) -> Iterator[Event]:
    """Seconds after noon a line; `bad` is a fault of this collector."""
    for record in records:
        after = timedelta(seconds=int(record.data))
        yield Event(NOON + after, LINES, {"event.action": "said"}, record)


@collector(LINES)
class Named:
    """Remembers the name that a line gives, for those after it."""

    def __init__(self) -> None:
        self.memory: dict[str, str] = {}

    def __call__(self, records: Iterable[Record]) -> Iterator[Event]:
        """One event a line."""
        for record in records:
            name, _, value = record.data.decode().partition("=")
            self.memory |= {name: value} if value else {}
            yield Event(NOON, LINES, {"host.name": self.memory[name]}, record)


class Given:
    """A reader of batches that are given."""

    source = "given"
    framing: Framing = "lines"

    def __init__(self, *batches: Batch, then: Callable[[], None] = lambda: None) -> None:
        self.batches = batches
        self.then = then

    def read(self, place: Any, stop: threading.Event) -> Iterator[Batch]:
        """All of them behind the place, then wait."""
        yield from self.batches[place or 0 :]
        self.then()
        stop.wait(30)


class Failing:
    """A detector that is interrupted when it sees an event."""

    name = "failing"

    def detect(self, events: Sequence[Event]) -> Iterator[Any]:
        """Fail as a second Ctrl+C does."""
        raise KeyboardInterrupt

    def tick(self, now: datetime) -> Iterator[Any]:
        """Nothing."""
        return iter(())

    def snapshot(self) -> bytes:
        """Nothing."""
        return b""

    def restore(self, state: bytes) -> None:
        """Nothing."""


def _batch(number: int, *data: str, **more: Any) -> Batch:
    records = [Record(one.encode(), "given", f"{number}.{at}", NOON) for at, one in enumerate(data)]
    return Batch("given", records, number, **more)


def _node(
    folder: Path,
    *readers: Given,
    detectors: Sequence[Detector] = (),
    clock: Callable[[], datetime] = lambda: NOON,
) -> Node:
    return Node(
        operator="op",
        sector="other",
        sources=[Source(reader, "lines", lines) for reader in readers],
        inventory=Inventory((), ()),
        detectors=detectors,
        events=EventStore(folder / "events", clock),
        db=NodeDb(folder / "node.db", b"key", clock=clock),
        clock=clock,
    )


def _keep(node: Node, *batches: Batch) -> list[Event]:
    source = node.sources[0]
    return [event for one in batches for event in node.keep(Gathered(source, one))]


def test_a_batch_whose_detection_was_interrupted_is_detected_at_the_next_start(
    tmp_path: Path,
) -> None:
    node = _node(tmp_path, Given(_batch(1, "0")), detectors=[Failing()])

    with pytest.raises(KeyboardInterrupt):
        run_node(node)
    node.close()

    again = _node(tmp_path)
    assert again.events.last_batch == 1
    assert again.db.checkpoint()[0] == 0
    again.close()


def test_what_readers_took_before_the_stop_is_kept(tmp_path: Path) -> None:
    batches = [_batch(number, "0") for number in range(1, 101)]
    node = _node(tmp_path)
    source = Source(Given(*batches, then=node.stop.set), "lines", lines)
    node.sources = [source]

    run_node(node)
    node.close()

    assert source.state.records == 100
    assert node.events.places()["given"]["at"] == 100


def test_a_record_that_breaks_its_collector_is_said_and_the_next_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = _node(tmp_path, Given())

    events = _keep(node, _batch(1, "1", "bad", "3", "worse", "5"))

    assert [one.is_malformed for one in events] == [False, True, False, True, False]
    assert [one.record.place for one in events] == ["1.0", "1.1", "1.2", "1.3", "1.4"]
    assert events[1].fields["event.reason"] == "the collector failed: ValueError"
    assert node.sources[0].state.malformed == 2
    assert len(caplog.records) == 1
    node.close()


def test_losses_without_a_record_are_still_counted_after_a_restart(tmp_path: Path) -> None:
    node = _node(tmp_path, Given())
    _keep(node, _batch(1, "1"), _batch(1, lost=7), _batch(1, rejected={"bad_record": 2}))
    node.close()

    again = _node(tmp_path, Given())
    again.sources[0].resume(again.events.places()["given"])

    state = again.sources[0].state
    assert (state.records, state.lost, state.rejected) == (1, 7, 2)
    again.close()


def test_a_clock_that_was_set_back_makes_late_only_what_came_with_the_jump(tmp_path: Path) -> None:
    node = _node(tmp_path, Given())

    _keep(node, _batch(1, "1000000"), _batch(2, "5", "6"), _batch(3, "7", "8"))

    state = node.sources[0].state
    assert state.late == 2
    assert state.last_event == NOON + timedelta(seconds=8)
    node.close()


def test_the_rate_counts_five_minutes_however_small_the_batches_are(tmp_path: Path) -> None:
    now = [NOON]
    node = _node(tmp_path, Given(), clock=lambda: now[0])
    source = node.sources[0]

    for number in range(1500):
        now[0] = NOON + timedelta(seconds=number / 5)
        batch = _batch(number, "0")
        source.count(batch, source.events(batch, now[0]), now[0])

    assert source.state.rate_per_min == 300
    node.close()


def test_a_source_that_goes_on_failing_is_logged_once_and_says_no_error_when_it_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = _node(tmp_path, Given())
    source = node.sources[0]

    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            node.keep(Gathered(source, None, "no such device"))

    assert len(caplog.records) == 1
    assert (source.state.state, source.state.error) == ("failed", "no such device")
    _keep(node, _batch(1, "0"))
    assert (source.state.state, source.state.error) == ("running", "")
    node.close()


def test_a_secret_that_was_never_written_whole_is_refused(tmp_path: Path) -> None:
    assert len(assembly.secret_of(tmp_path, "session.key")) == 32
    assert sorted(one.name for one in tmp_path.iterdir()) == ["session.key"]
    (tmp_path / "operator.key").touch()

    with pytest.raises(ConfigError, match="no secret"):
        assembly.secret_of(tmp_path, "operator.key")


def test_a_collector_has_its_memory_back_after_a_restart(tmp_path: Path) -> None:
    node = _node(tmp_path)
    node.sources = [Source(Given(), "named", Named)]
    _keep(node, _batch(1, "host=rtu-7"))
    node.close()

    again = _node(tmp_path)
    again.sources = [Source(Given(), "named", Named)]
    again.sources[0].resume(again.events.places()["given"])
    (event,) = _keep(again, _batch(2, "host"))

    assert event.fields["host.name"] == "rtu-7"
    again.close()
