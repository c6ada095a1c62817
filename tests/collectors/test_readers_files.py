"""Files and folders: every line once, whatever happens to the file."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cityward.errors import InputError
from collectors.readers import Batch, FileReader, FolderReader, Reader
from collectors.readers.lines import CUT_BYTES, LINE_MAX_BYTES, LineCutter
from tests.programs import PATIENCE_S

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def read_all(reader: Reader, place: Any = None) -> list[Batch]:
    return list(reader.read(place, threading.Event()))


def lines_of(batches: list[Batch]) -> list[bytes]:
    return [record.data for batch in batches for record in batch.records]


def until(
    reader: Reader,
    enough: Callable[[list[Batch]], bool],
    place: Any = None,
    patience_s: float = PATIENCE_S,
) -> list[Batch]:
    """Read a source that never ends until there is enough, and a little beyond."""
    stop, batches, end = threading.Event(), [], time.monotonic() + patience_s
    for batch in reader.read(place, stop):
        json.dumps(batch.place)
        batches.append(batch)
        if enough(batches) or time.monotonic() > end:
            stop.set()
    return batches


def count(n: int) -> Callable[[list[Batch]], bool]:
    return lambda batches: sum(len(batch.records) for batch in batches) >= n


def idle(n: int) -> Callable[[list[Batch]], bool]:
    """Enough when nothing came n times in a row."""
    return lambda batches: len(batches) >= n and not any(b.records for b in batches[-n:])


def ids(batches: list[Batch]) -> list[tuple[str, int | str]]:
    return [(record.source, record.place) for batch in batches for record in batch.records]


# ---- lines


def test_lines_lose_their_line_end_and_blank_ones_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"one\n\n  \t\r\ntwo\r\nthr\xff\x00ee")

    batches = read_all(FileReader(path, "x", clock=lambda: NOON))

    records = [record for batch in batches for record in batch.records]
    assert [(r.data, r.place, r.source) for r in records] == [
        (b"one", 0, "x"),
        (b"two", 10, "x"),
        (b"thr\xff\x00ee", 15, "x"),
    ]
    assert {r.received for r in records} == {NOON}
    assert [batch.ended for batch in batches] == [False] * (len(batches) - 1) + [True]


def test_an_empty_file_ends_without_a_record(tmp_path: Path) -> None:
    (tmp_path / "x").touch()

    batches = read_all(FileReader(tmp_path / "x", "x"))

    assert lines_of(batches) == []
    assert batches[-1].ended


def test_a_line_of_a_mebibyte_is_whole_and_a_longer_one_is_cut_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * LINE_MAX_BYTES + b"\r\n" + b"b" * (LINE_MAX_BYTES + 1) + b"\nend\n")

    batches = read_all(FileReader(path, "x"))

    assert [len(line) for line in lines_of(batches)] == [1_048_576, 65_536, 3]
    assert sum(batch.cut for batch in batches) == 1
    assert sum(batch.lost + sum(batch.rejected.values()) for batch in batches) == 0


def test_batches_are_bounded_in_records_and_bytes(tmp_path: Path) -> None:
    many, big = tmp_path / "many", tmp_path / "big"
    many.write_bytes(b"x\n" * 2500)
    big.write_bytes((b"y" * 1_000_000 + b"\n") * 20)

    many_sizes = [len(batch.records) for batch in read_all(FileReader(many, "x"))]
    big_sizes = [len(batch.records) for batch in read_all(FileReader(big, "x"))]

    assert (max(many_sizes), sum(many_sizes)) == (1000, 2500)
    assert (max(big_sizes) <= 9, sum(big_sizes)) == (True, 20)


def test_a_file_that_is_not_there_is_said_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.log"):
        read_all(FileReader(tmp_path / "nowhere.log", "x"))


pieces = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([b"\n", b"\r", b"\r\n", b" ", b"\n\n", b"\0", b"<34>1 ", b"7 <"]),
        st.integers(LINE_MAX_BYTES - 2, LINE_MAX_BYTES + 3).map(lambda n: b"z" * n),
        st.integers(LINE_MAX_BYTES, LINE_MAX_BYTES + 2).map(lambda n: b" " * n),
    ),
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(pieces, st.integers(0, 2**32))
def test_lines_are_the_same_however_the_bytes_are_cut(parts: list[bytes], seed: int) -> None:
    soup, chance = b"".join(parts), random.Random(seed)
    at, cutter, found = 0, LineCutter(), []

    while at < len(soup):
        size = chance.choice([1, 2, 7, 65_536, 300_000, 1_500_000])
        found += cutter.feed(soup[at : at + size])
        at += size
    found += cutter.end()

    expected = [line.removesuffix(b"\r") for line in soup.split(b"\n") if line.strip()]
    assert [(line.data, line.cut) for line in found] == [
        (line[:CUT_BYTES], True) if len(line) > LINE_MAX_BYTES else (line, False)
        for line in expected
    ]
    assert cutter.start == len(soup)
    for line in found:
        assert soup.startswith(line.data, line.start)


# ---- gzip


def test_gzip_of_several_members_is_read_like_its_text(tmp_path: Path) -> None:
    path = tmp_path / "x.log.gz"
    path.write_bytes(gzip.compress(b"one\ntw") + gzip.compress(b"o\nthree") + b"\0" * 512)

    batches = read_all(FileReader(path, "x"))

    assert lines_of(batches) == [b"one", b"two", b"three"]
    assert [place for _, place in ids(batches)] == [0, 4, 8]
    assert batches[-1].rejected == {}


def test_gzip_that_swells_enormously_is_read_in_small_steps(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"a" * 30_000_000 + b"\nend"))

    batches = read_all(FileReader(path, "x"))

    assert [len(line) for line in lines_of(batches)] == [65_536, 3]
    assert batches[-1].rejected == {}


def test_gzip_cut_at_any_byte_gives_its_whole_lines_and_says_that_it_is_cut(tmp_path: Path) -> None:
    text = b"".join(b"line %d of a log\n" % n for n in range(300))
    packed = gzip.compress(text)
    path = tmp_path / "x.gz"
    for end in range(20, len(packed), 7):
        path.write_bytes(packed[:end])

        batches = read_all(FileReader(path, "x"))

        found = lines_of(batches)
        assert text.startswith(b"\n".join(found))
        assert [batch.rejected for batch in batches if batch.rejected] == [{"gzip_cut": 1}]


def test_gzip_that_is_broken_in_the_middle_is_said(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(random.Random(1).randbytes(50_000).hex().encode()))
    packed[20_000:20_040] = b"\xff" * 40
    (tmp_path / "x.gz").write_bytes(bytes(packed))

    batches = read_all(FileReader(tmp_path / "x.gz", "x"))

    assert [batch.rejected for batch in batches if batch.rejected] == [{"gzip_broken": 1}]
    assert batches[-1].ended


# ---- documents and pipes


def test_a_document_is_one_record_and_is_not_read_twice(tmp_path: Path) -> None:
    (tmp_path / "x.pb").write_bytes(b"\n\x00\nbytes\n")
    reader = FileReader(tmp_path / "x.pb", "x", "document")

    first = read_all(reader)
    again = read_all(reader, first[-1].place)

    assert lines_of(first) == [b"\n\x00\nbytes\n"]
    assert lines_of(again) == []
    assert again[-1].ended


def test_a_document_that_is_too_long_is_rejected_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"\0" * ((64 << 20) + 1), 1))

    batches = read_all(FileReader(tmp_path / "x.gz", "x", "document"))

    assert batches[-1].records == []
    assert batches[-1].rejected == {"document_too_long": 1}


def test_a_followed_document_is_a_record_each_time_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "feed.pb"
    path.write_bytes(b"first")

    def replace(batches: list[Batch]) -> bool:
        if len(lines_of(batches)) == 1 and path.read_bytes() == b"first":
            (tmp_path / "new").write_bytes(b"second")
            (tmp_path / "new").rename(path)
        return count(2)(batches)

    batches = until(FileReader(path, "x", "document", follow=True), replace)
    later = until(FileReader(path, "x", "document", follow=True), idle(4), batches[-1].place)

    assert lines_of(batches) == [b"first", b"second"]
    assert len(set(ids(batches))) == 2
    assert lines_of(later) == []


def test_standard_input_is_read_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    out, into = os.pipe()
    monkeypatch.setattr("sys.stdin", os.fdopen(out))
    batches: Iterator[Batch] = FileReader("-", "x").read(None, threading.Event())

    os.write(into, b"one\ntwo\nthr")
    first = next(batch for batch in batches if batch.records)
    os.write(into, b"ee")
    os.close(into)
    rest = list(batches)

    assert lines_of([first]) == [b"one", b"two"]
    assert lines_of(rest) == [b"three"]
    assert rest[-1].ended


# ---- follow


def test_idle_readers_say_so_and_stop_when_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    stop = threading.Event()
    readers: list[Reader] = [
        FileReader(tmp_path / "x", "x", follow=True),
        FileReader(tmp_path / "missing", "x", follow=True),
        FolderReader(tmp_path / "missing", "*", "x"),
        FolderReader(tmp_path, "*", "x", "document"),
    ]

    running = [reader.read(None, stop) for reader in readers]
    firsts = [next(batches) for batches in running]
    seconds = [next(batches) for batches in running]
    stop.set()

    assert [batch.records for batch in firsts + seconds[:3]] == [[]] * 7
    assert [sum(1 for _ in batches) <= 1 for batches in running] == [True] * 4


def test_an_unfinished_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"one\ntw")

    before = until(FileReader(path, "x", follow=True), idle(3))
    with path.open("ab") as file:
        file.write(b"o\n")
    after = until(FileReader(path, "x", follow=True), count(1), before[-1].place)

    assert lines_of(before) == [b"one"]
    assert lines_of(after) == [b"two"]
    assert ids(after) == [("x", 4)]


def write_and_rotate(path: Path, lines: list[bytes], rotate: Callable[[Path], None]) -> None:
    """What a service and logrotate do: append, and rotate now and then."""
    for number, line in enumerate(lines):
        with path.open("ab") as file:
            file.write(line + b"\n")
        if number % 700 == 699:
            rotate(path)


def shift(path: Path) -> None:
    for number in range(8, 0, -1):
        for end in ("", ".gz"):
            old = path.with_name(f"{path.name}.{number}{end}")
            if old.exists():
                old.rename(path.with_name(f"{path.name}.{number + 1}{end}"))


def by_rename(path: Path) -> None:
    shift(path)
    path.rename(path.with_name(path.name + ".1"))


def by_copy_truncate(path: Path) -> None:
    shift(path)
    shutil.copyfile(path, path.with_name(path.name + ".1"))
    os.truncate(path, 0)


def packed(path: Path) -> None:
    """Rename, and pack the one before."""
    shift(path)
    path.rename(path.with_name(path.name + ".1"))
    second = path.with_name(path.name + ".2")
    if second.exists():
        (path.parent / "half").write_bytes(gzip.compress(second.read_bytes()))
        (path.parent / "half").rename(second.with_name(second.name + ".gz"))
        second.unlink()


ROTATIONS = pytest.mark.parametrize("rotate", [by_rename, by_copy_truncate, packed])
MANY = [b"%d a line that was written once" % number for number in range(5000)]


@ROTATIONS
def test_rotation_while_another_writes_loses_and_doubles_nothing(
    tmp_path: Path, rotate: Callable[[Path], None]
) -> None:
    path = tmp_path / "x.log"
    path.touch()
    writer = threading.Thread(target=write_and_rotate, args=(path, MANY, rotate))

    def enough(batches: list[Batch]) -> bool:
        # What was rotated away before a new source is first looked at is not its past.
        if len(batches) == 1:
            writer.start()
        return count(len(MANY))(batches)

    batches = until(FileReader(path, "x", follow=True), enough, patience_s=40)
    writer.join()

    assert lines_of(batches) == MANY
    assert len(set(ids(batches))) == len(MANY)
    assert sum(batch.lost for batch in batches) == 0


@ROTATIONS
def test_a_restart_after_any_batch_finds_the_rest_in_rotated_files(
    tmp_path: Path, rotate: Callable[[Path], None]
) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"".join(line + b"\n" for line in MANY[:1500]))
    found: list[bytes] = []
    place, places = None, []
    rounds = [MANY[1500:2000], MANY[2000:4000], MANY[4000:]]

    for part in rounds:
        stop = threading.Event()
        for batch in FileReader(path, "x", follow=True).read(place, stop):
            place = json.loads(json.dumps(batch.place))
            found += lines_of([batch])
            places += ids([batch])
            stop.set()
        write_and_rotate(path, part, rotate)
    rest = until(FileReader(path, "x", follow=True), count(len(MANY) - len(found)), place)

    assert found + lines_of(rest) == MANY
    assert len(set(places + ids(rest))) == len(MANY)


@pytest.mark.parametrize("pack", [False, True])
def test_a_restart_in_the_middle_of_a_file_goes_on_with_the_next_line(
    tmp_path: Path, pack: bool
) -> None:
    path = tmp_path / "x.log"
    text = b"".join(line + b"\r\n\n" for line in MANY)
    path.write_bytes(gzip.compress(text) if pack else text)
    whole = read_all(FileReader(path, "x"))

    for at, batch in enumerate(whole):
        rest = read_all(FileReader(path, "x"), json.loads(json.dumps(batch.place)))

        assert ids(whole[: at + 1]) + ids(rest) == ids(whole)
        assert lines_of(whole[: at + 1]) + lines_of(rest) == MANY


def test_a_file_that_was_emptied_and_grew_beyond_its_place_is_read_from_its_start(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"old 1\nold 2\n")
    before = until(FileReader(path, "x", follow=True), count(2))
    path.write_bytes(b"new 1\nnew 2\nnew 3\nnew 4\n")

    after = until(FileReader(path, "x", follow=True), count(4), before[-1].place)

    assert lines_of(after) == [b"new 1", b"new 2", b"new 3", b"new 4"]
    assert len(set(ids(before + after))) == 6


def test_a_file_that_vanished_unread_is_said_to_be_lost(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"".join(line + b"\n" for line in MANY))
    stop = threading.Event()
    for batch in FileReader(path, "x", follow=True).read(None, stop):
        place = batch.place
        stop.set()
    path.unlink()
    path.write_bytes(b"new\n")

    after = until(FileReader(path, "x", follow=True), count(1), place)

    assert lines_of(after) == [b"new"]
    assert sum(batch.lost for batch in after) == 1


def test_the_unfinished_last_line_of_a_renamed_file_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"one\ntwo without end")

    def rotate(batches: list[Batch]) -> bool:
        if lines_of(batches) == [b"one"] and not (tmp_path / "x.log.1").exists():
            by_rename(path)
            path.write_bytes(b"three\n")
        return count(3)(batches)

    batches = until(FileReader(path, "x", follow=True), rotate)

    assert lines_of(batches) == [b"one", b"two without end", b"three"]


def test_a_place_of_another_kind_is_read_from_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"one\n")

    batches = read_all(FileReader(tmp_path / "x", "x"), {"offset": "many"})

    assert lines_of(batches) == [b"one"]


# ---- folder


def by_source(batches: list[Batch]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for batch in batches:
        for record in batch.records:
            found.setdefault(record.source, []).append(record.data)
    return found


def test_a_folder_follows_each_file_and_new_ones_as_they_appear(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"a1\n")
    (tmp_path / "b.txt").write_bytes(b"not asked for\n")
    (tmp_path / ".c.log").write_bytes(b"hidden\n")
    (tmp_path / "d.log").symlink_to(tmp_path / "b.txt")

    def grow(batches: list[Batch]) -> bool:
        if count(1)(batches) and not (tmp_path / "e.log").exists():
            (tmp_path / "e.log").write_bytes(b"e1\ne2\n")
            with (tmp_path / "a.log").open("ab") as file:
                file.write(b"a2\n")
        return count(4)(batches)

    batches = until(FolderReader(tmp_path, "*.log", "city"), grow)
    after = until(FolderReader(tmp_path, "*.log", "city"), idle(3), batches[-1].place)

    assert by_source(batches) == {"city/a.log": [b"a1", b"a2"], "city/e.log": [b"e1", b"e2"]}
    assert {batch.source for batch in batches} == {"city"}
    assert lines_of(after) == []


@ROTATIONS
def test_a_folder_reads_rotated_files_as_the_past_of_their_file(
    tmp_path: Path, rotate: Callable[[Path], None]
) -> None:
    path = tmp_path / "x.log"
    write_and_rotate(path, MANY[:2000], rotate)

    first = until(FolderReader(tmp_path, "x.log*", "s"), count(2000))
    write_and_rotate(path, MANY[2000:], rotate)
    rest = until(
        FolderReader(tmp_path, "x.log*", "s"),
        count(3000),
        json.loads(json.dumps(first[-1].place)),
    )
    last = until(FolderReader(tmp_path, "x.log*", "s"), idle(8), rest[-1].place)

    assert by_source(first + rest) == {"s/x.log": MANY}
    assert len(set(ids(first + rest))) == len(MANY)
    assert lines_of(last) == []


def test_a_resting_file_wakes_when_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collectors.readers.folder.REST_S", 0.0)
    path = tmp_path / "x.log"
    path.write_bytes(b"one\n")

    def grow(batches: list[Batch]) -> bool:
        if len(batches) == 6:
            with path.open("ab") as file:
                file.write(b"two\n")
        return count(2)(batches)

    batches = until(FolderReader(tmp_path, "*", "s"), grow)

    assert lines_of(batches) == [b"one", b"two"]


def test_a_folder_of_more_files_than_may_be_open_gives_every_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collectors.readers.folder.OPEN_MAX", 5)
    for number in range(40):
        (tmp_path / f"{number}.log").write_bytes(b"one\ntwo\n")

    batches = until(FolderReader(tmp_path, "*.log", "s"), count(80))
    after = until(FolderReader(tmp_path, "*.log", "s"), idle(3), batches[-1].place)

    assert by_source(batches) == {f"s/{n}.log": [b"one", b"two"] for n in range(40)}
    assert lines_of(after) == []


def test_files_beyond_the_bound_are_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collectors.readers.folder.FILES_MAX", 3)
    for number in range(5):
        (tmp_path / f"{number}.log").write_bytes(b"line\n")

    batches = until(FolderReader(tmp_path, "*", "s"), idle(3))

    assert len(lines_of(batches)) == 3
    assert [batch.rejected for batch in batches if batch.rejected] == [{"too_many_files": 2}]


def test_documents_of_a_folder_are_each_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collectors.readers.folder.FILES_MAX", 4)
    for number in range(9):
        (tmp_path / f"{number}.pb").write_bytes(b"%d" % number)
        os.utime(tmp_path / f"{number}.pb", ns=(0, 1_000_000_000 + number))

    first = until(FolderReader(tmp_path, "*.pb", "s", "document"), count(9))
    (tmp_path / "3.pb").write_bytes(b"3 again")
    after = until(
        FolderReader(tmp_path, "*.pb", "s", "document"),
        idle(6),
        json.loads(json.dumps(first[-1].place)),
    )

    assert sorted(lines_of(first)) == [b"%d" % number for number in range(9)]
    assert ids(first)[0] == ("s/0.pb", 1_000_000_000)
    assert len(first[-1].place["done"]) == 4

    assert [batch.records[0].source for batch in after if batch.records] == ["s/3.pb"]


# ---- real files


def test_real_logs_are_whole(data: Path) -> None:
    counted = 0
    for path in sorted(data.glob("*/*")):
        if path.suffix not in {".log", ".jsonl", ".csv"}:
            continue
        outside = sum(1 for line in path.read_bytes().split(b"\n") if line.strip())

        batches = read_all(FileReader(path, "x"))

        assert len(lines_of(batches)) == outside
        counted += outside
    assert counted > 50_000
