"""SSH against real captures, hand-made packets and hostile bytes."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cityward.checks import check_decoder
from collectors.packets.decoders.ssh import Ssh
from tests.collectors.packets.decoders.captured import messages
from tests.collectors.packets.decoders.streams import Wire, session

BANNER = b"SSH-2.0-OpenSSH_9.6\r\n"
NAMES = ("curve25519-sha256", "ssh-ed25519", "aes1", "aes2", "mac1", "mac2", "none", "zlib", "", "")


def packet(payload: bytes) -> bytes:
    return struct.pack(">IB", len(payload) + 5, 4) + payload + bytes(4)


def offer(*names: str) -> bytes:
    lists = b"".join(struct.pack(">I", len(name)) + name.encode() for name in names)
    return packet(b"\x14" + bytes(16) + lists + bytes(5))


def disconnect(code: int, text: bytes) -> bytes:
    return packet(b"\x01" + struct.pack(">II", code, len(text)) + text + bytes(4))


def wire() -> Wire:
    return Wire(Ssh(session(server="10.0.0.2:22")))


def test_both_sides_say_what_they_are_and_what_they_offer() -> None:
    line = wire()

    found = [
        *line.send(BANNER, False),
        *line.send(b"SSH-2.0-libssh2_1.11.0\r\n" + offer(*NAMES), True),
        *line.send(offer(*NAMES), False),
    ]

    assert [(one["event.action"], one["cw.vendor"]["side"]) for one in found] == [
        ("ssh_banner", "server"),
        ("ssh_banner", "client"),
        ("ssh_key_exchange", "client"),
        ("ssh_key_exchange", "server"),
    ]
    assert found[1]["user_agent.original"] == "libssh2_1.11.0"
    # MD5 of `curve25519-sha256;aes1;mac1;none` and of `curve25519-sha256;aes2;mac2;zlib`.
    assert found[2]["cw.vendor"]["hassh"] == "a88d1fb70cec2a757b90f0207daf22a6"
    assert found[3]["cw.vendor"]["hassh_server"] == "66b3078943106552b84f630c5882cfdf"


def test_what_is_encrypted_is_passed_over() -> None:
    line = wire()
    line.send(BANNER + offer(*NAMES) + packet(b"\x15") + bytes(500), True)

    assert not line.send(bytes(10_000), True)
    assert line.rest[True] == b""
    assert line.decoder.encrypted_bytes == 10_500
    assert line.decoder.end() == []


def test_a_disconnection_says_why() -> None:
    found = wire().send(BANNER + disconnect(12, b"Too many logins"), True)

    assert found[1]["event.action"] == "ssh_disconnect"
    assert (found[1]["event.code"], found[1]["event.outcome"]) == (
        "too_many_connections",
        "failure",
    )
    assert found[1]["event.reason"] == "Too many logins"


def test_a_server_may_say_something_before_its_banner() -> None:
    found = wire().send(b"Authorised people only\r\n" + BANNER, False)

    assert [one["event.action"] for one in found] == ["ssh_banner"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"hello\r\n", "no identification string comes first"),
        (b"SSH-2.0-" + b"x" * 300, "at most 255 bytes"),
        (BANNER + bytes(10), "a packet of 0 bytes"),
        (BANNER + packet(b"\x14" + bytes(16) + b"\0\0\0\x09abc"), "has 0 of its 10 lists"),
    ],
)
def test_what_is_no_ssh_is_an_event(data: bytes, why: str) -> None:
    line = wire()

    found = line.send(data, True)

    assert found[-1]["event.kind"] == "pipeline_error"
    assert why in found[-1]["event.reason"]


def test_after_a_gap_nothing_is_guessed() -> None:
    line = wire()
    line.send(BANNER, True)
    line.decoder.gap(True)

    assert not line.send(offer(*NAMES), True)


def test_a_packet_that_is_cut_at_the_end_is_said() -> None:
    line = wire()
    line.send(BANNER + offer(*NAMES)[:50], False)

    assert "50 bytes into a message of the server" in line.decoder.end()[0]["event.reason"]


def test_the_decoder_keeps_its_promises() -> None:
    check_decoder(
        Ssh,
        [
            (False, BANNER),
            (True, BANNER + offer(*NAMES)),
            (False, offer(*NAMES) + packet(b"\x15")),
            (True, disconnect(11, b"bye")),
        ],
        mutants_each=30,
    )


@given(st.binary(max_size=80))
def test_other_bytes_are_no_ssh(data: bytes) -> None:
    assert not Ssh.recognises(b"S" + data[:6])
    assert not Ssh.recognises(b"SIP/2.0 " + data)


def test_the_attack_on_port_902_is_read(data: Path) -> None:
    found = messages(data / "network/ssh_bruteforce_nmap.pcap", Ssh)

    banners = Counter(
        (one["cw.vendor"]["side"], one["cw.vendor"]["software"])
        for one in found
        if one["event.action"] == "ssh_banner"
    )
    assert banners == {
        ("client", "libssh2_1.11.0"): 65,
        ("server", "OpenSSH_9.6p1 Ubuntu-3ubuntu13.11"): 48,
    }
    assert not any("event.kind" in one for one in found)
    assert {one["cw.vendor"]["hassh"] for one in found if "hassh" in one["cw.vendor"]} == {
        "44ac1859818d6cacfb48ec9cb230b3f0"
    }
