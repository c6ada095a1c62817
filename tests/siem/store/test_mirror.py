"""A node's findings and events in its own OpenSearch: all of them, once, and the newest."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cityward import TransientError
from siem.store.archive import archives
from siem.store.bulk import BulkWriter
from siem.store.cluster import ClusterFindings
from siem.store.dead_letters import DeadLetters
from siem.store.embedded import NodeDb
from siem.store.events import EventStore
from siem.store.mirror import Kept, Mirror, event_write, state_of
from siem.store.opensearch import OpenSearchCluster
from siem.store.protocol import Change, Document, Range
from siem.store.protocol_cluster import Result
from siem.store.tail import EventTail
from siem.store.templates import Names, differences
from tests.opensearch import Server
from tests.siem.store.test_embedded import KEY, NOON, Clock, match

OP = "op-metro"
EVERY = {"match_all": {}}


def event(number: int, **fields: Any) -> Document:
    return {
        "@timestamp": NOON + timedelta(seconds=number),
        "event.action": "login",
        "source.ip": "192.0.2.7",
        "cw.operator": OP,
        "cw.record.source": "auth",
        "cw.record.place": str(number),
        "cw.record.number": 0,
        "event.ingested": NOON,
        **fields,
    }


class Place:
    """A node's store, and what copies it."""

    def __init__(self, folder: Path, cluster: Any, prefix: str = "cw-x") -> None:
        self.clock = Clock()
        self.folder = folder
        self.db = NodeDb(folder / "node.db", KEY, clock=self.clock)
        self.events = EventStore.open(folder / "events", self.clock, segment_max_bytes=20_000)
        self.names = Names(prefix, OP)
        self.cluster = cluster
        self.dead = DeadLetters(folder / "dead.ndjson")
        self.mirror = self.mirrored()

    def mirrored(self, **kept: Any) -> Mirror:
        """Another process that copies."""
        return Mirror(
            self.db,
            EventTail(self.folder / "events"),
            lambda: self.events.last_batch,
            self.cluster,
            lambda stop: BulkWriter(self.cluster, self.dead, stop, backoff_s=0.01),
            self.names,
            Kept(**kept),
            self.clock,
            url="https://search",
        )

    def copied(self, mirror: Mirror | None = None) -> None:
        """Copy all there is."""
        while (mirror or self.mirror).copy():
            pass
        if not isinstance(self.cluster, Taking):
            self.cluster.refresh(f"{self.names.prefix}-*")

    def close(self) -> None:
        self.events.close()
        self.db.close()


class Taking:
    """A cluster that takes everything, for what needs no server."""

    kind = "opensearch"

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.uuid = "one"

    def bulk(self, writes: Sequence[bytes], *, refresh: bool = False) -> Sequence[Result]:
        self.writes += writes
        return [Result(201)] * len(writes)

    def health(self) -> Any:
        return type("Health", (), {"version": "opensearch 2.19.4"})

    def request(self, method: str, path: str, body: Any = None) -> Any:
        return {"cluster_uuid": self.uuid} if path == "/" else None

    def put_template(self, name: str, body: Any) -> None: ...

    def create_index(self, name: str) -> bool:
        return True

    def indices(self, pattern: str) -> list[str]:
        return []

    def close(self) -> None: ...

    @property
    def ids(self) -> list[str]:
        return [
            next(iter(msgspec.json.decode(one.split(b"\n")[0]).values()))["_id"]
            for one in self.writes
        ]


@pytest.fixture
def taking() -> Taking:
    return Taking()


@pytest.fixture
def place(tmp_path: Path, taking: Taking) -> Iterator[Place]:
    made = Place(tmp_path, taking)
    yield made
    made.close()


@pytest.fixture
def real(tmp_path: Path, opensearch: Server, index_prefix: str) -> Iterator[Place]:
    cluster = OpenSearchCluster(
        [opensearch.url],
        user=opensearch.user,
        password=opensearch.password,
        ca=Path(opensearch.ca_file),
    )
    made = Place(tmp_path, cluster, index_prefix)
    yield made
    made.close()
    cluster.close()


# ---- With a real cluster


@pytest.mark.slow
def test_findings_and_events_arrive_as_the_node_has_them(real: Place) -> None:
    (first, second) = real.db.keep([match(0), match(60, "192.0.2.8")], checkpoint=1, now=NOON)
    real.events.append([event(number) for number in range(5)], {})
    real.copied()

    real.db.change([first], Change(status="resolved", verdict="true_positive"), "anna", NOON)
    real.copied()

    findings = ClusterFindings(real.cluster, real.names, clock=real.clock)
    assert findings.get(first) == real.db.get(first)
    assert findings.events_of(second) == real.db.events_of(second)
    assert findings.search("", Range()).total == 2
    assert real.cluster.indices(real.names.findings) == [
        f"{real.names.prefix}-findings-{OP}-2026.03"
    ]
    assert real.cluster.count(real.names.events, {"term": {"source.ip": "192.0.2.0/24"}}) == 5
    assert real.cluster.count(real.names.events, EVERY) == 5
    assert differences(real.cluster, real.names.templates()) == []


@pytest.mark.slow
def test_whole_months_go_when_their_time_is_over_and_those_of_others_stay(real: Place) -> None:
    mirror = real.mirrored(months=2, events_months=1)
    real.copied(mirror)
    for name in (
        f"findings-{OP}-2026.01",
        f"findings-{OP}-2026.02",
        f"findings-{OP}-2026.03",
        f"events-{OP}-2026.02",
        f"events-{OP}-2026.03",
        f"findings-{OP}-east-2026.01",
    ):
        real.cluster.create_index(f"{real.names.prefix}-{name}")

    gone = mirror.retain()

    assert gone == [
        f"{real.names.prefix}-findings-{OP}-2026.01",
        f"{real.names.prefix}-events-{OP}-2026.02",
    ]
    assert f"{real.names.prefix}-findings-{OP}-east-2026.01" in real.cluster.indices(
        f"{real.names.prefix}-*"
    )


@pytest.mark.slow
def test_what_no_cluster_can_index_whole_is_cut_and_marked(real: Place) -> None:
    real.events.append([event(1, **{"cw.vendor": {"a": ["x" * 60_000], "b": "short"}})], {})
    real.copied()

    found = real.cluster.search(real.names.events, {"query": EVERY})["hits"]["hits"]

    assert len(real.dead) == 0
    assert found[0]["_source"]["cw.vendor"] == {
        "a": ["x" * 8_000],
        "b": "short",
        "cityward.cut": "value",
    }


# ---- With a cluster that takes everything


def test_only_what_is_new_is_sent_and_a_new_process_goes_on_there(
    place: Place, taking: Taking
) -> None:
    place.db.keep([match(0)], checkpoint=1, now=NOON)
    place.events.append([event(1)], {})
    place.copied()
    taking.writes.clear()

    place.events.append([event(2), event(3)], {})
    place.copied(place.mirrored())

    assert len(taking.ids) == 2
    assert len(set(taking.ids)) == 2


def test_another_cluster_is_given_everything(place: Place, taking: Taking) -> None:
    place.events.append([event(1)], {})
    place.copied()

    taking.uuid = "two"
    place.copied(place.mirrored())

    assert len(taking.ids) == 2
    assert len(set(taking.ids)) == 1


def test_events_that_became_parquet_meanwhile_are_not_left_out(
    place: Place, taking: Taking
) -> None:
    for number in range(0, 400, 10):
        place.events.append([event(one) for one in range(number, number + 10)], {})
    expected = {one["event.id"] for one in _all(place.events)}
    place.events.compact(place.events.last_batch, wait=True)
    place.events.append([event(1_000)], {})
    assert archives(place.folder / "events")

    place.copied()

    assert expected < set(taking.ids)
    assert len(taking.ids) == 401


def _all(events: EventStore) -> Sequence[Document]:
    return events.search("", Range(), limit=1_000).rows


def test_a_copy_under_way_goes_on_when_its_segments_are_compacted(
    place: Place, taking: Taking
) -> None:
    for number in range(0, 400, 10):
        place.events.append([event(one) for one in range(number, number + 10)], {})
    tail = EventTail(place.folder / "events")
    seen: list[int] = []
    for told, _ in tail.after(0):
        if told == 15:
            place.events.compact(place.events.last_batch, wait=True)
        seen += [told] if told else []
    while seen[-1] < place.events.last_batch:
        seen += [told for told, _ in tail.after(seen[-1]) if told]

    assert seen == sorted(seen)
    assert seen[-1] == 40
    assert tail.missed == 0


def test_what_retention_took_before_it_was_copied_is_counted(place: Place, taking: Taking) -> None:
    for number in range(0, 400, 10):
        place.events.append([event(one) for one in range(number, number + 10)], {})
    place.events.compact(place.events.last_batch, wait=True)
    [archived] = archives(place.folder / "events")
    archived.path.unlink()
    place.events.append([event(1_000)], {})

    place.copied()

    assert place.mirror.state.missed == archived.last
    assert place.mirror.state.batches_behind == 0


def test_findings_of_a_wrong_clock_make_no_index(place: Place, taking: Taking) -> None:
    far = NOON + timedelta(days=3_000)
    place.db.keep(
        [match(0), match(9, "192.0.2.9", first_seen=far, last_seen=far)], checkpoint=1, now=NOON
    )

    place.copied()

    assert len(taking.ids) == 1
    assert place.mirror.state.skipped == 1


def test_health_can_read_how_it_goes(place: Place, taking: Taking) -> None:
    assert state_of(place.db) is None
    place.events.append([event(1)], {})
    place.copied()

    state = state_of(place.db)

    assert state is not None
    assert (state.version, state.written, state.batches_behind) == ("opensearch 2.19.4", 1, 0)
    assert state.trouble == ""


def test_a_thread_copies_until_it_is_stopped(place: Place, taking: Taking) -> None:
    place.events.append([event(1)], {})
    waited = threading.Event()

    place.mirror.start()
    while not taking.writes:
        waited.wait(0.02)
    place.mirror.stop()
    state = state_of(place.db)

    assert len(taking.ids) == 1
    assert state is not None
    assert state.events == 1


def test_an_event_is_created_under_its_own_id_in_the_month_it_was_taken_in() -> None:
    line = msgspec.json.encode(event(1, **{"@timestamp": datetime(1999, 1, 1, tzinfo=UTC)}))

    action, source = event_write(line, Names("cw", OP)).splitlines()

    assert msgspec.json.decode(action) == {
        "create": {
            "_index": "cw-events-op-metro-2026.03",
            "_id": "a77f1608783af4da828ff47a126cdaf5",
        }
    }
    assert msgspec.json.decode(source)["@timestamp"] == "1999-01-01T00:00:00Z"


def test_a_cluster_that_is_away_at_the_start_is_not_given_everything_again(
    place: Place, taking: Taking, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.db.keep([match(0)], checkpoint=1, now=NOON)
    place.events.append([event(1)], {})
    place.copied()
    taking.writes.clear()

    def away() -> Any:
        raise TransientError("nobody there")

    with monkeypatch.context() as patched:
        patched.setattr(taking, "health", away)
        again = place.mirrored()
        again.start()
        waited = threading.Event()
        while not again.state.trouble:
            waited.wait(0.02)
        again.stop()
        away_state = state_of(place.db)
    place.copied(place.mirrored())

    assert away_state is not None
    assert away_state.trouble == "nobody there"
    assert taking.ids == []


def test_a_line_that_is_no_event_holds_up_nothing(place: Place, taking: Taking) -> None:
    broken = (
        b'{"@timestamp":5}',
        b'{"@timestamp":"2026-03-01T12:00:00Z","cw.record.number":"x"}',
        b'{"@timestamp":"tomorrow"}',
        b'{"@timestamp":"2026-03-01T12:00:00Z"',
    )
    place.events.append([*broken, event(1)], {})

    place.copied()

    assert len(taking.ids) == 1
    assert place.mirror.state.unreadable == 4
