"""FTP against a real capture, hand-made lines and hostile bytes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cityward.checks import check_decoder
from collectors.packets.decoders.ftp import LINE_MAX, OPEN_MAX, Ftp
from tests.collectors.packets.decoders.captured import messages
from tests.collectors.packets.decoders.streams import Wire, session

GREETING = b"220-Crane 3\r\n 220 is no end\r\n220 FTP server ready\r\n"


def wire() -> Wire:
    return Wire(Ftp(session(server="10.0.0.2:21")))


def talk(*lines: tuple[bytes, bytes]) -> list[dict[str, Any]]:
    """Commands, each with its reply, behind a greeting."""
    line = wire()
    line.send(GREETING, False)
    found: list[dict[str, Any]] = []
    for asked, replied in lines:
        found += line.send(asked + b"\r\n", True)
        found += line.send(replied + b"\r\n", False)
    return [*found, *line.decoder.end()]


def test_a_greeting_of_several_lines_is_one_event() -> None:
    found = wire().send(GREETING, False)

    assert [one["event.action"] for one in found] == ["ftp_greeting"]
    assert found[0]["cw.vendor"] == {"software": "FTP server ready"}


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [(b"230 Welcome", "success"), (b"530 Login incorrect.", "failure"), (b"332 ?", "unknown")],
)
def test_a_login_has_its_user_and_outcome_and_never_the_password(
    reply: bytes, outcome: str
) -> None:
    found = talk((b"USER ada", b"331 Password?"), (b"PASS s3cr3t", reply))

    assert [one["event.action"] for one in found] == ["ftp_login"]
    assert (found[0]["user.name"], found[0]["event.outcome"]) == ("ada", outcome)
    assert "s3cr3t" not in repr(found)


def test_a_login_of_the_factory_is_marked() -> None:
    found = talk((b"USER sysdiag", b"331 ?"), (b"PASS factorycast@schneider", b"230 in"))

    assert found[0]["cw.vendor"] == {"default_login": True}
    assert "factorycast" not in repr(found)


@pytest.mark.parametrize(
    ("command", "reply", "expected"),
    [
        (b"STOR /fw/plc.bin", b"226 ok", ("ftp_store", True, "plc.bin", "success")),
        (b"RETR prog.st", b"550 no", ("ftp_fetch", False, "prog.st", "failure")),
        (b"dele C:\\log\\a.txt", b"250 ok", ("ftp_delete", True, "a.txt", "success")),
        (b"LIST", b"226 ok", ("ftp_list", False, None, "success")),
        (b"SITE PSWD old new", b"200 ok", ("ftp_site", True, None, "success")),
    ],
)
def test_a_command_is_one_event_with_its_reply(
    command: bytes, reply: bytes, expected: tuple[Any, ...]
) -> None:
    found = talk((command, b"150 here it comes\r\n" + reply))

    names = ("event.action", "ot.is_command", "file.name", "event.outcome")
    assert [tuple(one.get(name) for name in names) for one in found] == [expected]
    assert "old" not in repr(found)


def test_data_sent_to_a_third_host_are_said() -> None:
    found = talk((b"PORT 10,0,0,99,4,1", b"200 ok"), (b"PORT 10,0,0,1,4,1", b"200 ok"))

    assert found[0]["event.reason"] == "data are to go to 10.0.0.99, not to the client 10.0.0.1"
    assert "event.reason" not in found[1]


def test_nothing_is_read_once_it_is_encrypted() -> None:
    found = talk((b"AUTH TLS", b"234 go"), (b"\x16\x03\x01\x00\x05", b"\x16\x03\x03"))

    assert [one["event.action"] for one in found] == ["ftp_encrypt"]


def test_a_command_without_a_reply_is_said_at_the_end() -> None:
    line = wire()
    line.send(b"DELE a\r\n", True)

    left = line.decoder.end()

    assert (left[0]["event.action"], left[0]["event.outcome"]) == ("ftp_delete", "unknown")
    assert left[0]["event.reason"] == "the server did not reply to it"


def test_replies_behind_a_gap_are_not_joined_to_what_was_asked_before() -> None:
    line = wire()
    line.send(GREETING, False)
    line.send(b"DELE a\r\n", True)
    line.decoder.gap(False)

    found = line.send(b"st of a line\r\n250 ok\r\n", False)

    assert [one["event.outcome"] for one in found] == ["unknown"]


def test_what_the_client_says_beside_the_protocol_is_not_shown() -> None:
    found = talk((b"my password is s3cr3t", b"500 ?"))

    assert found[0]["event.kind"] == "pipeline_error"
    assert "s3cr3t" not in repr(found)


def test_many_strange_lines_are_one_event() -> None:
    line = wire()

    found = line.send(b"?\r\n" * 500 + b"NOOP\r\n?\r\n", True)

    assert [one["event.action"] for one in found] == ["unreadable", "unreadable"]


def test_a_line_without_an_end_is_said_once_and_passed_over() -> None:
    line = wire()

    found = [one for _ in range(8) for one in line.decoder.feed(bytes(LINE_MAX + 1), True, 0, 1)[1]]

    assert len(found) == 1
    assert line.send(b"x\r\nNOOP\r\n", True) == []


def test_commands_that_wait_are_bounded() -> None:
    found = wire().send(b"DELE a\r\n" * (OPEN_MAX + 1), True)

    assert len(found) == OPEN_MAX
    assert found[0]["event.reason"] == "64 commands are open"


def test_the_decoder_keeps_its_promises() -> None:
    check_decoder(
        Ftp,
        [
            (False, GREETING),
            (True, b"USER ada\r\n"),
            (False, b"331 Password?\r\n"),
            (True, b"PASS secret\r\n"),
            (False, b"230-Welcome\r\n230 In\r\n"),
            (True, b"TYPE I\r\nSTOR a/b.bin\r\n"),
            (False, b"200 ok\r\n150 go\r\n226 done\r\n"),
        ],
        mutants_each=30,
    )


@given(st.binary(max_size=80))
def test_other_bytes_are_no_ftp(data: bytes) -> None:
    assert not Ftp.recognises(b"\x01" + data)
    assert not Ftp.recognises(b"220 mail.example.gr ESMTP ftp " + data)


def test_the_attack_is_what_zeek_counts(data: Path) -> None:
    found = messages(data / "network/ftp_bruteforce.pcap", Ftp)

    logins = [one for one in found if one["event.action"] == "ftp_login"]
    assert Counter((one["event.code"], one["user.name"]) for one in logins) == {("530", "bro"): 30}
    assert {one["source.ip"] for one in logins} == {"192.168.56.1"}
    assert Counter(one["event.action"] for one in found) == {"ftp_greeting": 30, "ftp_login": 30}
    notice = (data / "network/ftp_bruteforce.expected_notice.log").read_text()
    counted = re.search(r"(\S+) had (\d+) failed logins on (\d+) FTP server", notice)
    assert counted is not None
    # Zeek speaks at its threshold, and counts no further.
    assert (counted[1], int(counted[2]) <= 30, counted[3]) == ("192.168.56.1", True, "1")
