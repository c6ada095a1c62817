"""OSDP: real polls of a reader, and what may happen at a door."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.city.osdp import Osdp, looks_like_osdp

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POLL = "ff 53 00 08 00 04 60 eb aa"
STATUS = "ff 53 80 0a 00 04 48 00 01 0f a1"


def _sum(*data: int) -> str:
    """A frame with the older checksum of one byte."""
    frame = bytes((0x53, data[0], len(data) + 4, 0, *data[1:]))
    return (frame + bytes((-sum(frame) & 0xFF,))).hex(" ")


def _line(data: str) -> bytes:
    mark = {"osdpTraceVersion": "1", "osdpSource": "test"}
    time = {"timeSec": "1693167786", "timeNano": "033907099"}
    return json.dumps({**time, "io": "in", "data": data, **mark}).encode()


def _read(*data: str) -> list[Event]:
    records = (Record(_line(one), "s", at, NOW) for at, one in enumerate(data))
    return list(Osdp()(records))


def _reply(*body: int) -> dict:
    return _read(_sum(0x81, 0x00, *body))[0].fields


def test_a_poll_cycle_is_sixteen_frames(data):
    lines = (data / "city/osdp_reader_poll_cycle.osdpcap").read_bytes().splitlines()
    found = list(Osdp()(Record(line, "s", at, NOW) for at, line in enumerate(lines)))

    assert Counter(event.fields["event.action"] for event in found) == {
        **{"osdp_poll": 8, "osdp_ack": 7, "osdp_local_status_report": 1}
    }
    assert not any("event.reason" in event.fields for event in found)
    assert found[0].time == datetime(2023, 8, 27, 20, 23, 6, 33907, tzinfo=UTC)


def test_a_reader_says_that_its_power_fails(data):
    lines = (data / "city/osdp_reader_power_fail.osdpcap").read_bytes().splitlines()
    found = list(Osdp()(Record(line, "s", at, NOW) for at, line in enumerate(lines)))

    assert [event.fields["event.action"] for event in found] == [
        *("osdp_poll", "osdp_local_status_report")
    ]
    assert found[1].fields["phys.state"] == "power_failed"
    assert found[1].fields["cw.vendor"]["tamper"] is False


@pytest.mark.parametrize(
    ("body", "state"),
    [((0x48, 1, 0), "tampered"), ((0x48, 0, 1), "power_failed"), ((0x48, 0, 0), "normal"),
     ((0x4B, 0), "normal"), ((0x4B, 0, 1), "offline"), ((0x4B, 2), "tampered")],
)  # fmt: skip
def test_a_reader_tells_its_state(body, state):
    assert _reply(*body)["phys.state"] == state


def test_a_card_is_told_as_the_reader_gives_it():
    fields = _reply(0x50, 0, 1, 26, 0, 0x12, 0x34, 0x56, 0x40)

    assert fields["event.action"] == "osdp_card_read"
    assert fields["phys.subject"] == "12345640"
    assert fields["phys.point"] == "reader-1"
    assert fields["cw.vendor"]["bits"] == 26


def test_a_card_of_more_bits_than_there_are_is_told():
    fields = _reply(0x50, 0, 1, 200, 0, 0x12)

    assert fields["event.reason"] == "a card of 200 bits in 1 bytes"
    assert "phys.subject" not in fields


def test_keys_are_counted_and_not_told():
    fields = _reply(0x53, 0, 4, 0x31, 0x32, 0x33, 0x34)

    assert fields["cw.vendor"]["keys"] == 4
    assert "31323334" not in str(fields)


def test_a_refusal_says_why():
    fields = _reply(0x41, 6)

    assert fields["event.outcome"] == "failure"
    assert fields["event.reason"] == "encrypted communication required"


@pytest.mark.parametrize(
    ("code", "operation", "is_command"),
    [(0x68, "control", True), (0x6E, "config", True), (0x75, "config", True),
     (0x7C, "firmware", True), (0x61, "discovery", False), (0x60, "read", False)],
)  # fmt: skip
def test_what_changes_the_door_is_a_command(code, operation, is_command):
    (event,) = _read(_sum(0x01, 0x00, code, 1, 2, 3))

    assert event.fields["ot.operation"] == operation
    assert event.fields["ot.is_command"] is is_command


def test_keys_of_a_reader_are_not_told():
    (event,) = _read(_sum(0x01, 0x00, 0x75, 1, 16, 0xAA, 0xBB))

    assert "aabb" not in str(event.fields)


def test_an_encrypted_channel_is_seen_and_its_data_are_not_guessed():
    (event,) = _read(_sum(0x81, 0x08, 2, 0x18, 0x50, 1, 2, 3, 4, 5, 6, 7, 8))

    assert event.fields["event.action"] == "osdp_card_read"
    assert event.fields["cw.vendor"]["secure_channel"] == "encrypted"
    assert "phys.subject" not in event.fields


def test_a_reader_that_does_not_answer_is_told_by_the_next_request():
    found = _read(POLL, POLL, STATUS, STATUS)

    assert [event.fields.get("event.reason") for event in found] == [
        *(None, "the reader did not answer the request before", None),
        "an answer that nobody asked for",
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (POLL.replace("60", "61"), "frame damaged: its check is"),
        ("53 00", "no OSDP frame: 53 00"),
        ("zz", "data is no hexadecimal"),
        ("ff 53 00 09 00 04 60 eb aa", "a frame of 8 bytes that says it has 9"),
        (_sum(0x01, 0x08, 9, 0x18, 0x50), "a security block that does not fit"),
    ],
)
def test_what_is_no_frame_is_told(data, reason):
    (event,) = _read(data)

    assert event.is_malformed
    assert reason in event.fields["event.reason"]


def test_a_trace_is_recognised():
    assert looks_like_osdp(_line(POLL) + b"\n")
    assert not looks_like_osdp(b'{"data": "53"}')


def test_the_collector_keeps_its_promises():
    check_collector(Osdp, [_line(POLL), _line(STATUS)])
