"""CAN logs: what a bus says in a second, and what it never said before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from cityward import Record
from cityward.checks import check_collector
from collectors.transport.can import IDS_MAX, Can, looks_like_can

NOW = datetime(2026, 3, 1, tzinfo=UTC)
START = 1_772_000_000


def _read(*logs: bytes):
    return list(Can()(Record(log, "s", place, NOW) for place, log in enumerate(logs)))


def _log(frames: Iterator[tuple[float, str]] | list[tuple[float, str]], bus: str = "can0") -> bytes:
    return "".join(f"({START + time_s:.6f}) {bus} {frame}\n" for time_s, frame in frames).encode()


def _of(found, action):
    return [event for event in found if event.fields["event.action"] == action]


CLASSIC = _log(
    [(0.0, "123#0102"), (0.1, "123#0103"), (0.3, "123#0103"), (0.4, "18FEF100#FF"), (1.1, "123#R8")]
)
FLEXIBLE = _log([(0.0, "123##1" + "AB" * 64), (0.5, "123#"), (0.6, "20000044#0000000000000000")])

FILES = [
    # file, frames, ids, comments
    ("transport/can_crysys_benign.log", 17_935, 18, 0),
    ("transport/can_crysys_attack_speed_const.log", 17_935, 18, 0),
    ("transport/can_candump_icsim.log", 6_158, 34, 0),
    ("port/nmea2000_candump.log", 10_495, 16, 6),
]


@pytest.mark.parametrize(("name", "frames", "ids", "comments"), FILES, ids=[f[0] for f in FILES])
def test_every_frame_of_a_log_is_counted_once(data, name, frames, ids, comments):
    found = _read((data / name).read_bytes())

    messages = _of(found, "can_messages")
    assert sum(event.fields["network.packets"] for event in messages) == frames
    assert len({event.fields["ot.function.code"] for event in messages}) == ids
    assert found[-1].fields["cw.vendor"] == {
        "frames": frames, "error_frames": 0, "comments": comments, "unreadable": 0, "buses": 1,
    }  # fmt: skip
    assert not [event for event in found if event.is_malformed]


def test_the_speed_that_an_attacker_holds_is_a_frozen_signal_and_nothing_else_is(data):
    log = (data / "transport/can_crysys_attack_speed_const.log").read_bytes()
    benign = (data / "transport/can_crysys_benign.log").read_bytes()
    end = NOW - timedelta(seconds=30.082)  # times are since the start; the end is when it came

    found = _read(log)

    (frozen,) = _of(found, "can_signal_frozen")
    (moves,) = _of(found, "can_signal_moves")
    assert frozen.fields["ot.function.code"] == moves.fields["ot.function.code"] == "410"
    assert frozen.fields["cw.vendor"]["bytes"] == "2"
    assert frozen.fields["ot.value"] == 0xCD
    # Labelled from 12.091 to 17.992 s; the first of these frames is as it was.
    assert (frozen.fields["event.start"] - end).total_seconds() == pytest.approx(12.09, abs=0.02)
    assert (frozen.time - end).total_seconds() == pytest.approx(14.09, abs=0.02)
    assert (moves.time - end).total_seconds() == pytest.approx(18.09, abs=0.02)
    assert not _of(_read(benign), "can_signal_frozen")


def test_the_label_of_a_data_set_is_no_field(data):
    found = _read((data / "transport/can_crysys_attack_speed_const.log").read_bytes())
    plain = _read(
        b"\n".join(
            b" ".join(line.split()[:3])
            for line in (data / "transport/can_crysys_attack_speed_const.log")
            .read_bytes()
            .splitlines()
        )
    )

    assert [event.fields for event in found] == [event.fields for event in plain]


def test_an_id_and_second_is_one_event():
    first, extended, remote, read = _read(CLASSIC)

    assert first.time.timestamp() == START
    assert first.fields["network.packets"] == 3
    assert first.fields["network.bytes"] == 6
    assert first.fields["phys.point"] == "can0 123"
    assert first.fields["phys.reading"] == 0.15
    assert first.fields["ot.value_raw"] == "0103"
    assert first.fields["cw.vendor"] == {
        "first": "0102", "payloads": 2, "changes": 1, "is_extended": False, "interval_min_s": 0.1,
    }  # fmt: skip
    assert extended.fields["ot.point.address"] == 0x18FEF100
    assert remote.fields["cw.vendor"]["remote"] == 1
    assert read.fields["cw.vendor"]["frames"] == 5


def test_flexible_frames_and_errors_are_read():
    messages, errors, _ = _read(FLEXIBLE)

    assert messages.fields["network.bytes"] == 64
    assert messages.fields["cw.vendor"]["fd"] == 1
    assert errors.fields["event.action"] == "can_bus_off"
    assert errors.fields["ot.exception"] == "controller bus_off"


def _steady(seconds: int) -> Iterator[tuple[float, str]]:
    return ((tenth / 10, f"0A0#{tenth % 251:02X}") for tenth in range(seconds * 10))


def test_an_id_is_new_once_the_bus_is_known_also_over_files():
    known = _log(_steady(70))
    later = _log([(80.0, "7DF#0210030000000000"), (80.1, "0A0#01"), (80.2, "7DF#02")])

    assert not _of(_read(known), "can_id_new")
    assert not _of(_read(later), "can_id_new")
    (new,) = _of(_read(known, later), "can_id_new")
    assert new.fields["ot.function.code"] == "7DF"
    assert new.fields["event.reason"] == "not seen in 70 s; 2 ids are known"


def test_what_is_known_of_a_bus_outlives_a_restart():
    before, after = Can(), Can()
    list(before([Record(_log(_steady(70)), "s", 0, NOW)]))
    after.memory = before.memory

    found = list(after([Record(_log([(80.0, "7DF#02"), (80.1, "0A0#01")]), "s", 1, NOW)]))

    assert [event.fields["ot.function.code"] for event in _of(found, "can_id_new")] == ["7DF"]


@pytest.mark.parametrize(
    ("rest", "count"),
    [("00", 0), ("FF", 0), ("17", 1)],
    ids=["a vehicle that stands", "not available", "held"],
)
def test_a_lively_byte_that_stands_is_frozen_unless_it_is_at_rest(rest, count):
    held = [(30 + tenth / 10, f"0A0#{rest}") for tenth in range(60)]

    assert len(_of(_read(_log([*_steady(30), *held])), "can_signal_frozen")) == count


def test_more_ids_than_are_learnt_are_counted_together():
    flood = [(70 + at / 10_000, f"{at:08X}#00") for at in range(IDS_MAX + 500)]

    found = _read(_log([*_steady(70), *flood]))

    (others,) = (e for e in _of(found, "can_messages") if e.fields["ot.function.code"] == "others")
    assert others.fields["network.packets"] == 501
    assert len(_of(found, "can_id_new")) == IDS_MAX
    assert Counter(event.is_malformed for event in found)[True] == 0


def test_strange_lines_are_one_event_with_their_count():
    found = _read(CLASSIC + b"hello\n(1.0) can0 12#00\n(1.0) can0 123#000\n" + b"x" * 9_000)

    (strange,) = (event for event in found if event.is_malformed)
    assert strange.fields["event.reason"] == (
        "4 of 9 lines could not be read, line 6: no frame of candump"
    )
    assert found[-1].fields["cw.vendor"]["unreadable"] == 4


def test_a_log_without_frames_is_said():
    (event,) = _read(b"# nothing\n")

    assert event.fields["event.reason"] == "a log without frames"


def test_only_logs_of_frames_are_recognised():
    assert looks_like_can(CLASSIC)
    assert looks_like_can(b"# Bus\n(1.000000) vcan0 123##0AA\n")
    for strange in (b"(1.0) can0 hello\n", b"(1.0) note 123#\nhello\nhello\n", b"#\n", b"123#00"):
        assert not looks_like_can(strange)


def test_the_collector_keeps_its_promises():
    check_collector(Can, [CLASSIC, FLEXIBLE, _log(_steady(3))], mutants_each=100)
