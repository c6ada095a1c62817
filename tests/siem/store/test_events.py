"""The events of an operator: what is durable, what is found, and what a bad disk does."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest

from cityward.errors import ConfigError
from siem.store import compact
from siem.store.archive import archives
from siem.store.events import EventStore, event_id
from siem.store.protocol import Document, Range
from siem.store.query import QueryError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def later(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[EventStore]:
    store = EventStore.open(tmp_path, clock)
    yield store
    store.close()


@pytest.fixture
def reader(tmp_path: Path, clock: Clock, store: EventStore) -> Iterator[EventStore]:
    reader = EventStore(tmp_path, clock, write=False)
    yield reader
    reader.close()


def event(number: int, **fields: Any) -> Document:
    return {
        "@timestamp": NOON + timedelta(seconds=number),
        "event.action": "login" if number % 2 else "logout",
        "event.sequence": number,
        "source.ip": f"192.0.2.{number % 4}",
        "tags": ["even"] if number % 2 == 0 else ["odd", "vpn"],
        "cw.vendor": {"n": number},
        "cw.operator": "op-metro",
        "cw.record.source": "auth",
        "cw.record.place": str(number),
        "cw.record.number": 0,
        "event.ingested": NOON,
        **fields,
    }


def sequences(store: EventStore, query: str = "", span: Range | None = None) -> list[int]:
    found = store.search(query, span or Range(), limit=10_000)
    assert found.total == len(found.rows)
    return [row["event.sequence"] for row in found.rows]


def spool(folder: Path) -> list[Path]:
    return sorted((folder / "spool").iterdir())


# ---- Appending and coming back


def test_batches_have_numbers_without_a_gap_over_restarts(tmp_path: Path, clock: Clock) -> None:
    first = EventStore.open(tmp_path, clock)
    numbers = [first.append([event(0)], {"auth": 1}), first.append([], {"auth": 2})]
    first.close()

    second = EventStore.open(tmp_path, clock)
    numbers.append(second.append([event(1)], {"dns": 7}))
    places = second.places()
    second.close()

    assert numbers == [1, 2, 3]
    assert places == {"auth": 2, "dns": 7}


def test_a_segment_that_cannot_begin_loses_no_batch_behind_it(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EventStore.open(tmp_path, clock, segment_max_bytes=1)
    store.append([event(0)], {"auth": 1})
    with monkeypatch.context() as full:
        full.setattr(EventStore, "_write", staticmethod(_no_space))
        with pytest.raises(OSError, match="No space"):
            store.append([event(1)], {"auth": 2})

    number = store.append([event(1)], {"auth": 2})
    store.close()

    again = EventStore.open(tmp_path, clock)
    assert number == again.last_batch == 2
    assert sequences(again) == [1, 0]
    again.close()


def _no_space(file: IO[bytes], data: bytes) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_places_survive_although_their_segments_are_compacted(tmp_path: Path, clock: Clock) -> None:
    first = EventStore.open(tmp_path, clock)
    first.append([event(0)], {"auth": [1, {"inode": 4}]})
    clock.later(seconds=61)
    first.append([event(1)], {"dns": 7})
    clock.later(seconds=61)
    assert first.compact(2, wait=True)
    first.close()

    second = EventStore.open(tmp_path, clock)
    places, last = second.places(), second.last_batch
    second.close()

    assert places == {"auth": [1, {"inode": 4}], "dns": 7}
    assert last == 2
    assert len(archives(tmp_path)) == 1


def test_a_replay_gives_the_batches_after_a_number_as_they_were(store: EventStore) -> None:
    batches = [[event(0), event(1)], [], [event(2)]]
    for batch in batches:
        store.append(batch, {})

    assert list(store.replay(0)) == [(1, batches[0]), (2, []), (3, batches[2])]
    assert list(store.replay(2)) == [(3, batches[2])]
    assert list(store.replay(3)) == []


def test_a_replay_crosses_segments(store: EventStore, clock: Clock) -> None:
    for number in range(5):
        store.append([event(number)], {})
        clock.later(seconds=61)

    assert [number for number, _ in store.replay(2)] == [3, 4, 5]


@pytest.mark.parametrize("torn", [b'{"@timestamp":"2026-03-01T12:00:09Z","event.sequ', b"\n", None])
def test_a_torn_tail_is_cut_when_the_folder_is_opened(
    tmp_path: Path, clock: Clock, torn: bytes | None
) -> None:
    first = EventStore.open(tmp_path, clock)
    first.append([event(0)], {"auth": 1})
    first.append([event(1)], {"auth": 2})
    first.close()
    segment = spool(tmp_path)[-1]
    whole = segment.read_bytes()
    # None: the commit line itself is torn.
    segment.write_bytes(whole[:-9] if torn is None else whole + torn)

    second = EventStore.open(tmp_path, clock)
    kept = [document["event.sequence"] for _, batch in second.replay(0) for document in batch]
    places = second.places()
    number = second.append([event(5)], {"auth": 9})
    second.close()

    assert kept == ([0] if torn is None else [0, 1])
    assert places == {"auth": 1 if torn is None else 2}
    assert number == (2 if torn is None else 3)


def test_a_full_disk_leaves_no_half_batch(
    store: EventStore, reader: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([event(0)], {"auth": 1})

    def refuse(file: Any, data: bytes) -> None:
        file.write(data[:40])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(EventStore, "_write", staticmethod(refuse))
        with pytest.raises(OSError, match="No space left"):
            store.append([event(1)], {"auth": 2})
    number = store.append([event(2)], {"auth": 3})

    assert number == 2
    assert sequences(reader) == [2, 0]
    assert [n for n, _ in store.replay(0)] == [1, 2]


def test_a_folder_of_a_newer_format_is_refused(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "format").write_text("2\n")

    with pytest.raises(ConfigError) as caught:
        EventStore.open(tmp_path, clock)

    assert caught.value.what == "format 2 of the events is newer than 1"
    assert caught.value.where == str(tmp_path / "format")


def test_a_second_writer_is_refused(tmp_path: Path, store: EventStore, clock: Clock) -> None:
    with pytest.raises(ConfigError, match="another process writes these events"):
        EventStore.open(tmp_path, clock)


# ---- Two processes


def test_another_process_reads_what_was_committed_while_we_write(
    tmp_path: Path, store: EventStore
) -> None:
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from siem.store.events import EventStore
        from siem.store.protocol import Range
        store = EventStore(Path(sys.argv[1]), write=False)
        for _ in sys.stdin:
            print(store.search("", Range(), limit=0).total, flush=True)
        store.close()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as other:  # fmt: skip
        assert other.stdin is not None
        assert other.stdout is not None

        def asked() -> int:
            other.stdin.write("?\n")
            return int(other.stdout.readline())

        seen = [asked()]
        for number in range(3):
            store.append([event(number), event(number + 100)], {})
            seen.append(asked())
        store._rotate()
        assert store.compact(store.last_batch, wait=True)
        seen.append(asked())
        other.stdin.close()

    assert seen == [0, 2, 4, 6, 6]


def test_a_reader_never_sees_a_batch_whose_commit_line_is_not_whole(
    tmp_path: Path, store: EventStore, reader: EventStore
) -> None:
    store.append([event(0)], {})
    segment = spool(tmp_path)[-1]
    store.append([event(1), event(2)], {})
    whole = segment.read_bytes()
    first_batch_ends = whole.index(b"\n", whole.index(b'{"cw.batch":1')) + 1

    commit_line = whole.rindex(b'{"cw.batch":')
    seen = set()
    for end in (*range(first_batch_ends, commit_line, 67), *range(commit_line, len(whole) - 1, 7)):
        segment.write_bytes(whole[:end])
        other = EventStore(tmp_path, write=False)
        seen.add(tuple(sequences(other)))
        other.close()

    assert seen == {(0,)}


# ---- Compaction


def test_nothing_is_counted_twice_while_segment_and_parquet_both_exist(
    tmp_path: Path, store: EventStore, reader: EventStore, clock: Clock
) -> None:
    store.append([event(number) for number in range(10)], {})
    store._rotate()
    segment = spool(tmp_path)[0]
    kept = segment.read_bytes()

    before = sequences(reader)
    assert store.compact(1, wait=True)
    segment.write_bytes(kept)  # as if the process had died before it could delete
    between = sequences(reader)
    store.append([event(10)], {})
    compact.compact(tmp_path, 1)
    after = sequences(reader)

    assert before == between == list(range(9, -1, -1))
    assert after == list(range(10, -1, -1))
    assert not segment.exists()


def test_only_segments_that_no_replay_needs_are_compacted(
    tmp_path: Path, store: EventStore, clock: Clock
) -> None:
    for number in range(4):
        store.append([event(number)], {})
        clock.later(seconds=61)

    store.compact(2, wait=True)

    assert [(one.first, one.last) for one in archives(tmp_path)] == [(1, 2)]
    assert [number for number, _ in store.replay(2)] == [3, 4]


def test_small_files_of_a_day_become_one(
    tmp_path: Path, store: EventStore, reader: EventStore, clock: Clock
) -> None:
    for number in range(compact.MERGE_AT):
        store.append([event(number)], {})
        store._rotate()
        compact.compact(tmp_path, store.last_batch)

    assert [(one.first, one.last) for one in archives(tmp_path)] == [(1, compact.MERGE_AT)]
    assert len(list(tmp_path.glob("parquet/*/*.parquet"))) == 1
    assert sequences(reader) == list(range(compact.MERGE_AT - 1, -1, -1))


def test_a_segment_ends_at_midnight_and_goes_into_the_day_of_its_receipt(
    tmp_path: Path, store: EventStore, reader: EventStore, clock: Clock
) -> None:
    clock.now = datetime(2026, 3, 1, 23, 59, 50, tzinfo=UTC)
    store._rotate()
    store.append([event(0)], {})
    clock.later(seconds=20)
    store.append([event(1)], {})
    clock.later(seconds=61)
    store.compact(2, wait=True)

    assert [one.day for one in archives(tmp_path)] == ["2026-03-01", "2026-03-02"]
    assert sequences(reader) == [1, 0]


def test_an_unfinished_parquet_file_is_ignored_and_removed(
    tmp_path: Path, store: EventStore, reader: EventStore
) -> None:
    store.append([event(0)], {})
    store._rotate()
    day = tmp_path / "parquet" / "day=2026-03-01"
    day.mkdir()
    unfinished = day / "0000000000000001-0000000000000001.parquet.tmp"
    unfinished.write_bytes(b"PAR1 and no end")

    before = sequences(reader)
    compact.compact(tmp_path, 1)

    assert before == sequences(reader) == [0]
    assert sorted(path.suffix for path in day.iterdir()) == [".json", ".parquet"]


def test_a_line_the_archive_refuses_goes_into_quarantine_and_an_event_says_so(
    tmp_path: Path, store: EventStore, reader: EventStore
) -> None:
    bad = b'{"@timestamp":"2026-03-01T12:00:05Z","source.port":"many","cw.record.source":"x"}'
    store.append([msgspec.json.encode(event(0)), bad, msgspec.json.encode(event(1))], {})
    store._rotate()

    seen_in_spool = reader.search("event.kind:pipeline_error", Range()).total
    compact.compact(tmp_path, 1)

    assert seen_in_spool == 1
    assert reader.search("", Range()).total == 3
    said = reader.search("event.kind:pipeline_error", Range()).rows[0]
    assert said["event.reason"] == "the archive refused this line; it is in quarantine"
    assert said["event.original"] == bad.decode()
    assert said["cw.record.source"] == "x"
    assert (tmp_path / "quarantine" / "0000000000000001.ndjson").read_bytes() == bad + b"\n"


def test_a_batch_that_the_disk_damaged_is_set_aside_and_the_others_are_kept(
    tmp_path: Path, store: EventStore, reader: EventStore
) -> None:
    for number in range(3):
        store.append([event(number)], {})
    store._rotate()
    segment = spool(tmp_path)[0]
    data = segment.read_bytes()
    segment.write_bytes(data.replace(b'"event.sequence":1,', b'"event.sequence":\x00,'))

    replayed = [number for number, _ in store.replay(0)]
    compact.compact(tmp_path, 3)

    assert replayed == [1, 3]
    assert sequences(reader, "event.sequence:*") == [2, 0]
    said = reader.search("event.kind:pipeline_error", Range()).rows[0]
    assert said["event.reason"] == "the disk damaged its batch; it is in quarantine"
    assert said["cw.record.place"] == "batch 2, event 0"


# ---- Retention


def test_days_older_than_the_retention_go(tmp_path: Path, clock: Clock) -> None:
    store = EventStore.open(tmp_path, clock, retention_days=2)
    for number in range(5):
        store.append([event(number)], {})
        clock.later(days=1)
    store.compact(5, wait=True)
    gone = store.retain(clock.now)
    left = [one.day for one in archives(tmp_path)]
    store.close()

    assert left == ["2026-03-04", "2026-03-05"]
    assert (gone["days"], gone["files"], gone["batches"]) == (3, 3, 3)


def test_over_the_quota_the_oldest_parquet_goes_first_and_the_spool_never(
    tmp_path: Path, clock: Clock
) -> None:
    store = EventStore.open(tmp_path, clock, quota_bytes=1)
    for number in range(3):
        store.append([event(number)], {})
        clock.later(days=1)
    store.append([event(3)], {})
    store.compact(2, wait=True)
    gone = store.retain(clock.now)
    kept = [number for number, _ in store.replay(0)]
    store.close()

    assert (gone["files"], gone["batches"], gone["days"]) == (2, 2, 2)
    assert gone["bytes"] > 0
    assert archives(tmp_path) == []
    assert kept == [3, 4]


def test_the_quota_takes_no_more_than_it_must(tmp_path: Path, clock: Clock) -> None:
    store = EventStore.open(tmp_path, clock)
    for number in range(4):
        store.append([event(number)], {})
        clock.later(days=1)
    store.compact(4, wait=True)
    used = store.used_bytes()
    store.close()

    tight = EventStore.open(tmp_path, clock, quota_bytes=used - 1)
    gone = tight.retain(clock.now - timedelta(days=2))
    tight.close()

    assert gone["files"] == 1
    assert [one.first for one in archives(tmp_path)] == [2, 3, 4]


# ---- What does not fit


@pytest.mark.parametrize(
    ("name", "value", "moved"),
    [
        ("source.port", "80", "80"),
        ("source.port", True, "True"),
        ("source.port", 2**63, "9223372036854775808"),
        ("ot.value", float("nan"), "nan"),
        ("ot.is_command", 1, "1"),
        ("tags", "one", "one"),
        ("tags", ["a", 1], "['a', 1]"),
        ("user.name", ["a"], "['a']"),
        ("no.such.field", 7, "7"),
        ("event.start", "2026-03-01", "2026-03-01"),
    ],
)
def test_a_value_of_a_wrong_type_is_moved_to_vendor_and_counted(
    store: EventStore, reader: EventStore, name: str, value: Any, moved: str
) -> None:
    store.append([event(0, **{name: value}), event(1)], {})

    rows = reader.search("", Range()).rows
    assert len(rows) == 2
    assert name not in rows[1] or rows[1][name] != value
    assert rows[1]["cw.vendor"] == {"n": 0, name: moved}
    assert store.encoder.moved == {name: 1}


def test_a_place_that_is_a_number_is_kept_as_text(store: EventStore, reader: EventStore) -> None:
    store.append([event(0, **{"cw.record.place": 17})], {})

    assert reader.search("", Range()).rows[0]["cw.record.place"] == "17"
    assert store.encoder.moved == {}


def test_a_time_with_an_offset_is_kept_as_the_same_moment(
    store: EventStore, reader: EventStore
) -> None:
    athens = timezone(timedelta(hours=2))
    store.append([event(0, **{"@timestamp": datetime(2026, 3, 1, 14, tzinfo=athens)})], {})

    assert reader.search("", Range()).rows[0]["@timestamp"] == NOON


@pytest.mark.parametrize(
    "text", ["\ud800", "a\x00b", "\n\r\u2028", "'); DROP TABLE x; --", "é" * 9]
)
def test_any_text_is_kept(store: EventStore, reader: EventStore, text: str) -> None:
    store.append([event(0, **{"user.name": text})], {})
    store._rotate()
    compact.compact(store.folder, 1)

    kept = reader.search("", Range()).rows[0]["user.name"]
    assert kept == text.encode("utf-8", "backslashreplace").decode()


def test_a_line_of_more_than_a_mebibyte_is_cut_and_the_next_is_kept(
    store: EventStore, reader: EventStore
) -> None:
    store.append([event(0, **{"user.name": "x" * 2_000_000}), event(1)], {})

    rows = reader.search("", Range()).rows
    assert [row["event.sequence"] for row in rows] == [1, 0]
    assert len(rows[1]["user.name"]) == 4096
    assert store.encoder.moved == {"line": 1}


def test_an_event_without_a_time_is_refused_and_nothing_is_written(store: EventStore) -> None:
    with pytest.raises(ValueError, match="without a time"):
        store.append([event(0), {"event.action": "login"}], {})

    assert store.last_batch == 0
    assert list(store.replay(0)) == []


# ---- Asking


@pytest.fixture(params=["spool", "parquet", "both"])
def filled(request: pytest.FixtureRequest, store: EventStore, reader: EventStore) -> EventStore:
    """20 events in the spool, in Parquet, or half and half."""
    store.append([event(number) for number in range(10)], {})
    if request.param != "spool":
        store._rotate()
        compact.compact(store.folder, 1)
    store.append([event(number) for number in range(10, 20)], {})
    if request.param == "parquet":
        store._rotate()
        compact.compact(store.folder, 2)
    return reader


def test_events_come_newest_first_page_by_page(filled: EventStore) -> None:
    pages = [filled.search("", Range(), limit=8, offset=offset) for offset in (0, 8, 16)]

    assert [page.total for page in pages] == [20, 20, 20]
    assert [row["event.sequence"] for page in pages for row in page.rows] == list(range(19, -1, -1))


def test_a_row_is_the_event_with_its_id(filled: EventStore) -> None:
    row = filled.search("event.sequence:3", Range()).rows[0]

    assert row == {**event(3), "event.id": event_id("op-metro", "auth", "3", 0)}


def test_an_event_is_found_by_its_id(filled: EventStore) -> None:
    wanted = event_id("op-metro", "auth", "7", 0)

    by_id = filled.get(wanted)
    by_query = filled.search(f"event.id:{wanted}", Range()).rows

    assert by_id is not None
    assert by_id["event.sequence"] == 7
    assert by_id == filled.get(wanted, near=NOON) == by_query[0]
    assert filled.get("0" * 32, near=NOON) is None


def test_the_span_includes_its_start_and_not_its_end(filled: EventStore) -> None:
    span = Range(NOON + timedelta(seconds=5), NOON + timedelta(seconds=8))

    assert sequences(filled, span=span) == [7, 6, 5]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("event.action:login and event.sequence:<4", [3, 1]),
        ("source.ip:192.0.2.2/31 event.sequence:<4", [3, 2]),
        ("tags:vpn event.sequence:[1 to 3]", [3, 1]),
        ("cw.vendor.n:3", [3]),
        ("LOGOUT event.sequence:<=2", [2, 0]),
        ("@timestamp:>=2026-03-01T12:00:18Z", [19, 18]),
        ("not event.sequence:>1", [1, 0]),
        ("user.name:*", []),
    ],
)
def test_queries_find_the_same_in_spool_and_parquet(
    filled: EventStore, query: str, expected: list[int]
) -> None:
    assert sequences(filled, query) == expected


def test_a_histogram_counts_every_event_once(filled: EventStore) -> None:
    span = Range(NOON, NOON + timedelta(seconds=20))

    assert filled.histogram("", span, 4) == [
        (NOON, 5),
        (NOON + timedelta(seconds=5), 5),
        (NOON + timedelta(seconds=10), 5),
        (NOON + timedelta(seconds=15), 5),
    ]
    assert sum(count for _, count in filled.histogram("", Range(), 7)) == 20
    assert filled.histogram("user.name:*", span) == []


def test_top_values_count_values_and_those_that_have_one(filled: EventStore) -> None:
    assert filled.top_values("", Range(), "tags") == ([("even", 10), ("odd", 10), ("vpn", 10)], 20)
    assert filled.top_values("event.sequence:<3", Range(), "event.action") == (
        [("logout", 2), ("login", 1)],
        3,
    )
    assert filled.top_values("", Range(), "user.name") == ([], 0)


def test_fields_are_counted(filled: EventStore) -> None:
    found = dict(filled.fields("event.sequence:<5", Range()))

    assert found["@timestamp"] == found["tags"] == 5
    assert "user.name" not in found


def test_a_fault_in_a_query_is_said_with_its_character(filled: EventStore) -> None:
    with pytest.raises(QueryError) as caught:
        filled.search("source.ip:192.0.2.0/33", Range())

    assert caught.value.where == "query, character 11"


def test_an_empty_store_answers(reader: EventStore) -> None:
    assert reader.search("", Range()).rows == []
    assert reader.fields("", Range()) == []
    assert reader.top_values("", Range(), "tags") == ([], 0)
    assert reader.get("0" * 32) is None


def test_old_parquet_without_a_column_and_new_with_it_are_read_together(
    store: EventStore, reader: EventStore
) -> None:
    store.append([event(0)], {})
    store._rotate()
    compact.compact(store.folder, 1)
    store.append([event(1, **{"user.name": "anna"})], {})
    store._rotate()
    compact.compact(store.folder, 2)

    assert sequences(reader, "user.name:anna") == [1]
    assert sequences(reader, "not user.name:anna") == [0]
