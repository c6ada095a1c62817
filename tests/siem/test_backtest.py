"""What a rule would have said: differences, samples, what is kept beside a file, and stops."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cityward import InputError, TransientError
from detectors.sigma.load import load_text
from siem import backtest as backtests
from siem.backtest import Backtest, Counts, Progress, backtest
from siem.store import compact, distinct
from siem.store.archive import MEMORY_LIMIT, Look, Looking, archives, connect
from siem.store.distinct import Column
from siem.store.events import EventStore
from siem.store.protocol import Document, Range

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW = NOON + timedelta(days=3)
ID = "6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b11"
HEAD = f"title: Root\nname: root\nid: {ID}\nlevel: low\nlogsource: {{service: sshd}}\n"
SENTENCE = 'cityward: {sentence: "{user.name} from {source.ip} at {host.name}"}\n'
RULE = f"{HEAD}detection:\n  one: {{user.name: root}}\n  condition: one\n{SENTENCE}"
NARROW = RULE.replace("user.name: root", "user.name: root, source.ip: 192.0.2.1")
GUESSING = """
---
title: Guessing
id: 6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b13
level: high
correlation:
  type: event_count
  rules: [root]
  group-by: [host.name]
  timespan: 1m
  condition: {gte: 3}
"""
NO_ANSWER = """
---
title: Answer
name: answer
id: 6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b14
level: low
logsource: {service: sshd}
detection:
  two: {user.name: me}
  condition: two
---
title: No answer
id: 6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b15
level: high
cw_absence: {trigger: root, expected: answer, within: 30s, by: [host.name]}
"""


def event(number: int, user: str = "root", **fields: Any) -> Document:
    at = NOON + timedelta(seconds=number)
    return {
        "@timestamp": at,
        "event.action": "login",
        "user.name": user,
        "source.ip": f"192.0.2.{number % 4}",
        "host.name": "gw",
        "cw.logsource.service": "sshd",
        "cw.operator": "op",
        "cw.record.source": "auth",
        "cw.record.place": str(number),
        "cw.record.number": 0,
        "event.ingested": at,
        **fields,
    }


class Clock:
    now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, datetime]:
    """Yesterday and today in a file each, and the last events in the spool; and when that was."""
    folder, clock = tmp_path_factory.mktemp("written"), Clock()
    store = EventStore.open(folder, clock, retention_days=1)
    for batch, first in enumerate((-86_400, 0, 100), 1):
        users = ["root", "me", "you"] if batch < 3 else ["root"]
        store.append([event(first + n, user) for n, user in enumerate(users * 4)], {})
        clock.now += timedelta(minutes=2) if batch > 1 else timedelta(days=1)
        if batch < 3:
            store.compact(batch, wait=True)
    store.close()
    return folder, clock.now


@pytest.fixture
def store(written: tuple[Path, datetime], tmp_path: Path) -> Iterator[EventStore]:
    """A copy of what was written, for a test that may change it."""
    clock = Clock()
    folder, clock.now = written
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    store = EventStore.open(tmp_path, clock, retention_days=1)
    yield store
    store.close()


def said(folder: Path, text: str, against: str = "", rule: str = ID, **more: Any) -> Backtest:
    given = {"span": Range(), "now": NOW, "placeholders": {}, **more}
    with closing(Looking(folder, MEMORY_LIMIT)) as looking:
        return backtest(
            looking, rule, load_text(text), against=load_text(against) if against else None, **given
        )


def test_it_counts_by_day_and_asset_and_shows_the_newest(store: EventStore) -> None:
    found = said(store.folder, RULE)

    assert found.total == Counts(would=12)
    assert [(day, counts.would) for day, counts in found.days] == [
        ("2026-02-28", 4),
        ("2026-03-01", 8),
    ]
    assert [(asset, counts.would) for asset, counts in found.assets] == [("gw", 12)]
    assert (found.events, found.files) == (28, 3)
    assert found.samples[0].sentence == "root from 192.0.2.3 at gw"
    assert found.samples[0].time == NOON + timedelta(seconds=103)
    assert store.get(found.samples[0].event) is not None
    assert (found.against, found.new, found.gone, found.is_whole) == ("nothing", [], [], True)


def test_against_the_deployed_version_it_says_what_is_new_and_what_is_gone(
    store: EventStore,
) -> None:
    other = RULE.replace("user.name: root", "user.name: me")

    narrower, changed = said(store.folder, NARROW, RULE), said(store.folder, other, RULE)

    assert narrower.total == Counts(would=3, deployed=12, new=0, gone=9)
    assert {one.sentence.split()[2] for one in narrower.gone} == {
        "192.0.2.0",
        "192.0.2.2",
        "192.0.2.3",
    }
    assert changed.total == Counts(would=8, deployed=12, new=8, gone=12)
    assert {one.sentence.split()[0] for one in changed.new} == {"me"}


def test_where_nothing_is_deployed_all_is_new(store: EventStore) -> None:
    found = said(store.folder, RULE, RULE.replace(ID, ID.replace("11", "99")))

    assert (found.against, found.total.new, len(found.new)) == ("no version", 12, 10)


def test_a_span_cuts_through_files(store: EventStore) -> None:
    found = said(
        store.folder, RULE, span=Range(NOON + timedelta(seconds=3), NOON + timedelta(seconds=102))
    )

    assert (found.total.would, found.events) == (5, 11)


def test_a_filter_counts_until_the_day_on_which_it_expires(store: EventStore) -> None:
    tuned = f"""{RULE}
---
title: Known
id: 6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b12
logsource: {{service: sshd}}
filter:
  rules: [root]
  known: {{source.ip: 192.0.2.1}}
  condition: not known
cityward: {{reason: test, expires: 2026-03-01}}
"""

    found = said(store.folder, tuned, RULE)

    assert [(day, counts.gone) for day, counts in found.days] == [
        ("2026-02-28", 1),
        ("2026-03-01", 0),
    ]


def test_a_rule_without_its_list_says_so_and_asks_nothing(store: EventStore) -> None:
    found = said(store.folder, RULE.replace("user.name: root", '"user.name|expand": "%people%"'))

    assert (found.idle, found.total.would, found.files) == ("needs %people%", 0, 0)


def test_windows_are_those_of_a_node(store: EventStore) -> None:
    found = said(store.folder, RULE + GUESSING, rule="6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b13")

    # Once when three are there, and once more for those that came until the minute was over.
    assert [int((one.time - NOON).total_seconds()) for one in found.samples] == [
        *(103, 102, 9, 6),
        *(9 - 86_400, 6 - 86_400),
    ]


@pytest.mark.parametrize(
    ("begin", "spoken"),
    [(99, [103, 102]), (102, [103, 102]), (103, [103]), (104, [])],
)
def test_a_window_that_is_open_at_the_start_of_the_span_has_its_earlier_events(
    store: EventStore, begin: int, spoken: list[int]
) -> None:
    since = NOON + timedelta(seconds=begin)
    guessing = "6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b13"

    found = said(store.folder, RULE + GUESSING, rule=guessing, span=Range(since))

    assert [int((one.time - NOON).total_seconds()) for one in found.samples] == spoken
    assert found.events == 104 - begin if begin > 99 else 4
    assert found.total.would == len(spoken)


@pytest.mark.parametrize(
    ("seconds", "speaks"),
    [
        ((0, 30, 60), True),  # at the end of the minute
        ((0, 30, 61), False),
        ((0, 1), False),  # below
        ((30, 0, 60), True),  # out of order
        ((61, 30, 0), False),
        ((0, 61, 30, 62), True),
    ],
)
def test_a_window_counts_what_is_within_it_in_whatever_order(
    tmp_path: Path, seconds: Sequence[int], speaks: bool
) -> None:
    store = EventStore.open(tmp_path, Clock())
    came = [NOON + timedelta(seconds=number) for number in range(90, 95)]
    store.append(
        [
            {**event(at), "event.ingested": ingested}
            for at, ingested in zip(seconds, came, strict=False)
        ],
        {},
    )
    store.close()

    found = said(tmp_path, RULE + GUESSING, rule="6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b13")

    assert (found.total.would > 0) is speaks


def test_a_stricter_window_speaks_of_the_same_a_little_later(store: EventStore) -> None:
    stricter = RULE + GUESSING.replace("gte: 3", "gte: 4")

    found = said(
        store.folder, stricter, RULE + GUESSING, rule="6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b13"
    )

    assert found.total == Counts(would=3, deployed=6)


def test_an_absence_is_decided_when_its_time_is_over(store: EventStore) -> None:
    found = said(store.folder, RULE + NO_ANSWER, rule="6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b15")

    assert {one.time for one in found.samples} == {
        NOON + timedelta(seconds=second) for second in range(100, 104)
    }


def test_too_much_to_compare_is_said(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backtests, "FINDINGS_MAX", 1)

    with pytest.raises(InputError, match="more than 1 times"):
        said(store.folder, RULE + GUESSING, rule="6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b13")


# ---- What is kept beside a file


def compacted(folder: Path, count: int, **fields: Any) -> Path:
    """The file that some events became."""
    clock = Clock()
    store = EventStore.open(folder, clock)
    store.append([event(number, **fields) for number in range(count)], {})
    clock.now += timedelta(minutes=2)
    store.compact(1, wait=True)
    store.close()
    return archives(folder)[0].path


def noted(path: Path) -> dict[str, Any]:
    """What stands beside it, with the values by column."""
    kept: dict[str, Any] = msgspec.json.decode(distinct.beside(path).read_bytes())
    kept["values"] = {
        one["columns"][0]["field"]: one["values"] for one in kept.pop("known") if one["values"]
    }
    return kept


def test_files_without_a_match_are_not_read_even_the_first_time(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(list(store.folder.glob("parquet/*/*.values.json"))) == 2
    asked: list[str] = []
    rows = Look.rows

    def ask(look: Look, sql: str) -> list[tuple[Any, ...]]:
        asked.append(sql)
        return rows(look, sql)

    monkeypatch.setattr(Look, "rows", ask)

    found = said(store.folder, RULE.replace("user.name: root", "user.name: nobody"))

    assert (found.total.would, found.unread) == (0, 3)
    assert asked  # of the spool nothing is noted
    assert not [sql for sql in asked if "day=" in sql]


def test_compaction_notes_columns_of_few_values_and_the_names_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compacted(tmp_path, 20, **{"cw.vendor": {"Image": "a", "b.c": {"d": 1}}})

    kept = noted(path)
    assert kept["keys"] == ["Image", "b.c"]
    assert kept["values"]["user.name"] == [["root"]]
    assert sorted(kept["values"]["source.ip"]) == [[f"192.0.2.{n}"] for n in range(4)]
    assert len(kept["values"]["cw.record.place"]) == 20
    monkeypatch.setattr(distinct, "UNREPEATED", 10)
    monkeypatch.setattr(distinct, "NOTED_MAX", 100)
    distinct.let_go(path)
    with closing(Looking(tmp_path, MEMORY_LIMIT)) as looking, Look(looking) as look:
        distinct.note(path, look.rows)
    again = noted(path)
    assert again["values"]["user.name"] == [["root"]]
    assert "cw.record.place" in again["many"]
    assert "user.name" not in again["many"]
    assert sum(len(msgspec.json.encode(one)) for one in again["values"].values()) <= 100


def test_values_of_another_file_of_the_same_size_are_not_believed(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    path = compacted(tmp_path / "one", 20, **{"user.name": "root"})
    other = compacted(tmp_path / "other", 20, **{"user.name": "toor"})
    before, times = noted(path), path.stat()
    assert other.stat().st_size == times.st_size

    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    with closing(Looking(tmp_path / "one", MEMORY_LIMIT)) as looking, Look(looking) as look:
        values = distinct.Values(path, look.rows)
        assert values.of((Column("user.name"),)) == [("toor",)]
        values.save()
    assert before["values"]["user.name"] == [["root"]]
    assert noted(path)["identity"] != before["identity"]


def test_a_file_that_went_before_its_values_were_noted_ends_no_compaction(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(connect(MEMORY_LIMIT, tmp_path)) as db:
        compact._note(db, tmp_path / "1-2.parquet")

    assert "are not noted" in caplog.text


def test_a_merged_file_has_its_values_beside_it(tmp_path: Path) -> None:
    clock = Clock()
    store = EventStore.open(tmp_path, clock)
    for batch in range(1, compact.MERGE_AT + 2):
        store.append([event(batch)], {})
        clock.now += timedelta(minutes=2)
        compact.compact(tmp_path, batch)
    store.close()

    names = sorted(one.name for one in tmp_path.glob("parquet/*/*"))
    assert names == [f"{1:016d}-{16:016d}.{kind}" for kind in ("parquet", "values.json")]


def test_values_that_cannot_be_read_or_are_of_another_file_are_counted_again(
    store: EventStore,
) -> None:
    said(store.folder, RULE)
    one, other = (distinct.beside(file.path) for file in archives(store.folder))
    one.write_bytes(b"{")
    other.write_bytes(other.read_bytes().replace(b'"identity":"', b'"identity":"1'))

    assert said(store.folder, RULE).total.would == 12
    assert said(store.folder, RULE).total.would == 12


def test_values_go_with_their_file(store: EventStore) -> None:
    said(store.folder, RULE)
    left = store.folder / "parquet" / "day=2026-03-01" / f"{9:016d}-{9:016d}.values.json"
    left.write_text("{}")  # its file went while its values were counted

    store.retain(NOON + timedelta(days=2))

    kept = [one.name for one in store.folder.glob("parquet/*/*")]
    assert sorted(name.partition(".")[2] for name in kept) == ["parquet", "values.json"]
    assert [one.name for one in store.folder.glob("parquet/*")] == ["day=2026-03-02"]


def test_a_file_without_a_column_has_no_such_field(tmp_path: Path) -> None:
    clock = Clock()
    store = EventStore.open(tmp_path, clock)
    old = {
        name: value for name, value in event(0).items() if name.startswith(("@", "user", "cw.log"))
    }
    store.append([old], {})
    clock.now += timedelta(minutes=2)
    store.compact(1, wait=True)
    store.close()
    missing = RULE.replace("condition: one", "condition: one and not two").replace(
        "  condition", "  two: {source.ip: 192.0.2.1}\n  condition"
    )

    assert said(tmp_path, missing).total.would == 1
    assert said(tmp_path, NARROW).total.would == 0


# ---- Life


def test_who_does_not_want_to_wait_gets_what_it_had_come_to(store: EventStore) -> None:
    stop, told = threading.Event(), []

    def tell(progress: Progress) -> None:
        told.append(progress)
        stop.set()

    found = said(store.folder, RULE, tell=tell, stop=stop)

    assert told == [Progress(files=1, files_all=3, events=4, found=4)]
    assert (found.total.would, found.is_whole) == (4, False)


def test_a_stop_while_a_file_is_counted_ends_it_too(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, counted = threading.Event(), backtests._File.counted

    def stopped(file: backtests._File, *conditions: str) -> Iterator[Any]:
        stop.set()
        return counted(file, *conditions)

    monkeypatch.setattr(backtests._File, "counted", stopped)
    found = said(store.folder, RULE, stop=stop)

    assert (found.total.would, found.files, found.events, found.is_whole) == (0, 0, 0, False)


def test_it_begins_anew_when_events_were_tidied_under_it(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = archives(store.folder)[-1].path
    counted = distinct.Values.of

    def of(values: distinct.Values, columns: Any) -> Any:
        last.unlink(missing_ok=True)  # newest first: the rest of the file is still to be asked
        return counted(values, columns)

    monkeypatch.setattr(distinct.Values, "of", of)
    found = said(store.folder, RULE)

    assert (found.total.would, found.files) == (8, 2)
    assert found.lacking == ["batch 2 is not there any more"]


def test_events_that_are_tidied_again_and_again_are_asked_another_time(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(values: distinct.Values, columns: Any) -> Any:
        raise FileNotFoundError("gone")

    monkeypatch.setattr(distinct.Values, "of", gone)
    with pytest.raises(TransientError, match="tidied"):
        said(store.folder, RULE)


# ---- What is not there


def test_a_file_that_cannot_be_opened_is_said_and_the_others_are_asked(store: EventStore) -> None:
    damaged = archives(store.folder)[0].path
    damaged.write_bytes(damaged.read_bytes()[:-100])

    found = said(store.folder, RULE)

    assert (found.total.would, found.files, found.is_whole) == (8, 2, True)
    assert len(found.lacking) == 1
    assert found.lacking[0].startswith(f"{damaged} cannot be read: Invalid Input Error")


@pytest.mark.parametrize("which", ["rule", "correlation"])
def test_a_file_that_cannot_be_read_to_its_end_is_said(store: EventStore, which: str) -> None:
    damaged = archives(store.folder)[0].path
    data = bytearray(damaged.read_bytes())
    distinct.let_go(damaged)
    sql = f"SELECT data_page_offset FROM parquet_metadata('{damaged}')"
    with closing(Looking(store.folder, MEMORY_LIMIT)) as looking:
        wanted = looking.db.execute(f"{sql} WHERE path_in_schema = 'user.name'").fetchone()[0]
    data[wanted : wanted + 8] = b"\xff" * 8
    damaged.write_bytes(data)

    rule = ID if which == "rule" else "6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b13"
    found = said(store.folder, RULE + GUESSING, rule=rule)

    assert (found.files, found.total.would > 0) == (2, True)
    assert len(found.lacking) == 1
    assert found.lacking[0].startswith(f"{damaged} cannot be read to its end: ")


def test_events_between_others_that_are_not_there_are_said_if_the_span_has_them(
    store: EventStore,
) -> None:
    first, last = (one.path for one in archives(store.folder))
    last.unlink()

    everything = said(store.folder, RULE)
    old = said(store.folder, RULE, span=Range(until=NOON - timedelta(hours=23)))

    assert everything.lacking == ["batch 2 is not there any more"]
    assert (everything.total.would, everything.files) == (8, 2)
    assert old.total.would == 4
    first.unlink()
    assert said(store.folder, RULE).lacking == []  # the oldest go by retention


def test_it_runs_beside_others(store: EventStore) -> None:
    found: list[Backtest] = []
    threads = [
        threading.Thread(target=lambda: found.append(said(store.folder, RULE))) for _ in "ab"
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [one.total.would for one in found] == [12, 12]
