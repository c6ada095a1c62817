"""OPC UA binary against a real session, an independent log, and hostile bytes."""

from __future__ import annotations

import random
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.opcua import KEPT, OPEN_MESSAGES, Opcua
from tests.collectors.packets.decoders.captured import messages
from tests.collectors.packets.decoders.streams import Wire, session

URL = b"opc.tcp://localhost:4840"
POLICY = "http://opcfoundation.org/UA/SecurityPolicy#"


def text(value: bytes | None) -> bytes:
    return struct.pack("<i", -1) if value is None else struct.pack("<i", len(value)) + value


def chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", 8 + len(body)) + body


def message(number: int, body: bytes, request: int = 1, last: bytes = b"F") -> bytes:
    head = struct.pack("<IIII", 3, 3, request, request)
    return chunk(b"MSG" + last, head + node(number) + body)


def node(number: int) -> bytes:
    return b"\x01\x00" + struct.pack("<H", number)


def asks(handle: int = 1) -> bytes:
    return b"\0\0" + bytes(8) + struct.pack("<II", handle, 0) + text(None) + bytes(4) + b"\0\0\0"


def answers(status: int = 0) -> bytes:
    return bytes(8) + struct.pack("<II", 1, status) + b"\0" + text(None) + b"\0\0\0"


def opened(policy: str, kind: int, body: bytes) -> bytes:
    uri = text((POLICY + policy).encode())
    head = struct.pack("<I", 3) + uri + text(None) * 2 + struct.pack("<II", 1, 1)
    return chunk(b"OPNF", head + node(kind) + body)


HELLO = chunk(b"HELF", struct.pack("<IIIII", 0, 65_535, 65_535, 0, 0) + text(URL))
ACK = chunk(b"ACKF", struct.pack("<IIIII", 0, 65_535, 65_535, 0, 0))
OPEN = opened("None", 446, asks() + struct.pack("<III", 0, 0, 1) + text(None) + bytes(4))
OPENED = opened("None", 449, answers() + bytes(20) + text(None))
POINT = b"\x03\x01\x00" + text(b"pump") + struct.pack("<I", 13) + text(None)
WRITE = message(
    673,
    asks() + struct.pack("<I", 2) + (POINT + b"\x01\x0b" + struct.pack("<d", 4.5))
    + (b"\x01\x00\x55\x00" + struct.pack("<I", 13) + text(None) + b"\x01\x01\x01"),
)  # fmt: skip
WRITTEN = message(676, answers() + struct.pack("<III", 2, 0, 0x8034_0000) + text(None))
CLOSE = chunk(b"CLOF", struct.pack("<IIII", 3, 3, 9, 9) + node(452) + asks())


def line() -> Wire:
    return Wire(Opcua(session()))


def test_a_write_is_one_command_a_node_and_its_answer_tells_the_bad_status() -> None:
    wire = line()

    asked = wire.send(WRITE, True, 1.0)
    answered = wire.send(WRITTEN, False, 1.25)[0]

    assert [f["cw.vendor"]["node"] for f in asked] == ["ns=1;s=pump", "i=85"]
    assert [f["ot.value"] for f in asked] == [4.5, 1]
    assert all(f["ot.is_command"] and f["ot.operation"] == "write" for f in asked)
    assert asked[1]["ot.point.address"] == 85
    assert answered["ot.link_id"] == asked[0]["ot.link_id"]
    assert answered["ot.is_command"] is False
    assert answered["ot.exception"] == "bad_node_id_unknown"
    assert answered["event.outcome"] == "failure"
    assert answered["event.duration"] == 250_000_000


def test_a_channel_says_its_policy_and_its_mode() -> None:
    wire = line()

    asked = wire.send(OPEN, True)[0]

    assert asked["cw.vendor"]["security_policy"] == "None"
    assert asked["cw.vendor"]["security_mode"] == "none"
    assert wire.send(OPENED, False)[0]["event.outcome"] == "success"


def test_of_an_encrypted_channel_the_policy_and_the_first_message_are_told() -> None:
    wire = line()
    secret = chunk(b"MSGF", struct.pack("<II", 3, 3) + random.Random(1).randbytes(80))

    told = wire.send(opened("Basic256Sha256", 446, bytes(200)), True)[0]
    found = [*wire.send(secret, True), *wire.send(secret, True)]

    assert told["cw.vendor"] == {"security_policy": "Basic256Sha256"}
    assert [f["event.action"] for f in found] == ["opcua_encrypted"]
    assert wire.decoder.tally.encrypted == 2


def test_who_logs_in_and_whether_the_password_is_in_clear() -> None:
    token = text(b"policy") + text(b"ada") + text(b"secret") + text(None)
    body = asks() + text(None) * 2 + text(None) * 2 + node(324) + b"\x01" + text(token)

    found = line().send(message(467, body), True)[0]

    assert found["user.name"] == "ada"
    assert found["ot.operation"] == "auth"
    assert found["cw.vendor"]["identity"] == "user_name"
    assert found["cw.vendor"]["password"] == "clear"
    assert "secret" not in repr(found)


def test_chunks_of_a_message_are_put_together_and_an_aborted_one_is_told() -> None:
    wire = line()
    head, body = WRITE[8:24], WRITE[24:]

    assert wire.send(chunk(b"MSGC", head + body[:30]), True) == []
    whole = wire.send(chunk(b"MSGF", head + body[30:]), True)
    aborted = wire.send(chunk(b"MSGC", head + body[:30]), True)
    aborted = wire.send(chunk(b"MSGA", head + struct.pack("<I", 0x8080_0000) + text(None)), True)

    assert [f.get("ot.value") for f in whole] == [4.5, 1]
    assert whole[0]["cw.vendor"]["chunks"] == 2
    assert aborted[0]["ot.exception"] == "bad_tcp_message_too_large"


def test_messages_without_an_end_are_bounded() -> None:
    wire = line()

    found = [
        fields
        for number in range(OPEN_MESSAGES + 1)
        for fields in wire.send(message(631, asks(), number, b"C"), True)
    ]

    assert [f["event.kind"] for f in found] == ["pipeline_error"]
    assert len(wire.decoder._lanes[1].open) == OPEN_MESSAGES


def test_a_very_long_chunk_is_read_at_its_beginning_and_the_next_is_found() -> None:
    points = 20_000
    written = (POINT + b"\x01\x0b" + bytes(8)) * points
    whole = message(673, asks() + struct.pack("<I", points) + written) + CLOSE

    for size in (1_000, 70_000):
        decoder, rest = Opcua(session()), b""
        found: list[dict[str, Any]] = []
        for at in range(0, len(whole), size):
            rest += whole[at : at + size]
            used, fields = decoder.feed(rest, True, 0.0, 1)
            rest = rest[used:]
            found += fields
            assert len(rest) <= KEPT

        assert found[0]["cw.vendor"]["node"] == "ns=1;s=pump"
        assert len(found) == 64 + 1
        assert "more than 64 nodes" in found[63]["event.reason"]
        assert found[-1]["event.action"] == "opcua_close_secure_channel"


def test_a_fault_belongs_to_what_was_asked() -> None:
    wire = line()
    wire.send(WRITE, True)

    found = wire.send(message(397, answers(0x801F_0000)), False)[0]

    assert found["event.action"] == "opcua_write"
    assert found["ot.exception"] == "bad_user_access_denied"


def test_behind_a_gap_the_next_message_is_found() -> None:
    wire = line()
    wire.send(HELLO, True)
    wire.decoder.gap(True)

    found = wire.send(WRITE[20:] + b"MSGF" + b"\xff" * 8 + CLOSE, True)

    assert [f["event.action"] for f in found] == ["opcua_close_secure_channel"]


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("<I", 2) + POINT + b"\x01\x3f",
        struct.pack("<I", 0x7FFF_FFFF),
        struct.pack("<I", 1) + b"\x09",
        struct.pack("<I", 1) + POINT + b"\x01" + b"\x18" * 200,
        struct.pack("<I", 1) + POINT + b"\x01\x8b" + struct.pack("<I", 1_000),
        b"",
    ],
)
def test_a_malformed_request_is_an_event_that_says_so(body: bytes) -> None:
    found = line().send(message(673, asks() + body), True)

    assert found[0]["event.action"] == "opcua_write"
    assert found[0]["event.kind"] == "pipeline_error"
    assert "the write is malformed" in found[0]["event.reason"]


def test_what_is_no_message_is_told_once_and_passed_over() -> None:
    wire = line()
    wire.send(HELLO, True)

    found = wire.send(b"GET / HTTP/1.1\r\n\r\n" + CLOSE, True)

    assert [f["event.action"] for f in found] == ["unreadable", "opcua_close_secure_channel"]


def test_other_protocols_are_not_taken_for_it() -> None:
    chance = random.Random(4)

    assert not any(Opcua.recognises(chance.randbytes(40)) for _ in range(2_000))
    assert not Opcua.recognises(b"MSGF a text of somebody else")
    assert not Opcua.recognises(b"HELO mail.example.org\r\n")


def test_the_decoder_keeps_its_promises() -> None:
    conversation = [
        (True, HELLO),
        (False, ACK),
        (True, OPEN),
        (False, OPENED),
        (True, WRITE),
        (False, WRITTEN),
        (True, CLOSE),
    ]

    check_decoder(Opcua, conversation, mutants_each=60)


# ---- The real session


@cache
def real(data: Path) -> list[dict[str, Any]]:
    return messages(data / "energy/opcua_open62541_session.pcap", Opcua)


def snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")


def test_the_session_agrees_with_the_expected_log(data: Path) -> None:
    log = (data / "energy/opcua_open62541_session.expected.log").read_text()
    rows = [line.split("\t") for line in log.splitlines() if not line.startswith("#")]
    found = real(data)
    by_port_and_id = {
        (f["source.port"], f["ot.direction"], f.get("event.sequence"), f["ot.function.name"]): f
        for f in found
    }
    plain = [f["event.action"] for f in found if "event.sequence" not in f]

    # A row holds a request and its answer: request id 24; encodings 29 and 48, their names behind.
    compared = 0
    for row in rows:
        if row[6] in ("HEL", "ACK"):
            compared += 1
            continue
        for direction, at in (("request", 29), ("response", 48)):
            name = row[at + 1]
            if name == "-":
                continue
            wanted = snake(name.removesuffix("Request").removesuffix("Response"))
            fields = by_port_and_id[int(row[3]), direction, int(row[24]), wanted]
            assert fields["ot.function.code"] == row[at]
            compared += 1
    assert sorted(plain) == ["opcua_acknowledge"] * 2 + ["opcua_hello"] * 2
    assert compared == len(found) == 68
    assert not [f for f in found if "event.kind" in f or "event.reason" in f]


def test_values_within_values_without_end_are_malformed_and_no_exception() -> None:
    nested = b"\x01" + b"\x17\x01" * 3_000

    found = Wire(Opcua(session())).send(
        message(673, asks() + struct.pack("<I", 1) + POINT + nested), True
    )

    assert "nested too deep" in found[0]["event.reason"]


@pytest.mark.parametrize("name", ["i=²", "i=5", f"i={'9' * 90}"])
def test_a_name_that_looks_like_a_number_is_a_name(name: str) -> None:
    point = b"\x03\0\0" + text(name.encode()) + struct.pack("<I", 13) + text(None)

    found = Wire(Opcua(session())).send(
        message(673, asks() + struct.pack("<I", 1) + point + b"\x01\x06" + bytes(4)), True
    )

    assert found[0]["cw.vendor"]["node"] == f"s={name}"
    assert "ot.point.address" not in found[0]


def test_the_session_shows_who_did_what(data: Path) -> None:
    found = real(data)

    commands = [(f["event.action"], f["cw.vendor"]["node"]) for f in found if f["ot.is_command"]]
    assert commands[:3] == [
        ("opcua_write", "ns=1;s=the.answer"),
        ("opcua_write", "ns=1;s=the.answer"),
        ("opcua_call", "ns=1;i=62541"),
    ]
    assert [
        f["ot.value"] for f in found if f["event.action"] == "opcua_write" and f["ot.is_command"]
    ] == [1, 2]
    login = next(f for f in found if f["event.action"] == "opcua_activate_session")
    assert (login["user.name"], login["cw.vendor"]["password"]) == ("user1", "clear")
    assert {f.get("ot.exception") for f in found} == {
        None, "bad_no_subscription", "bad_node_id_unknown", "bad_node_id_exists",
    }  # fmt: skip
