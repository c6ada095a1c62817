"""ARP by hand and from captures."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path
from struct import pack

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.arp import ETHERTYPE, Arp
from tests.collectors.packets.decoders.link import captured, frames_without_ip, heard, speaker

MINE, OTHER = bytes.fromhex("02000000000a"), bytes.fromhex("02000000000b")


def arp(operation: int, source: str, target: str, of: bytes = MINE, to: bytes = bytes(6)) -> bytes:
    one, two = (bytes(map(int, text.split("."))) for text in (source, target))
    return pack(">HHBBH", 1, 0x0800, 6, 4, operation) + of + one + to + two


def test_a_request_says_who_asks_for_which_address() -> None:
    (fields,) = heard(speaker(Arp), arp(1, "10.0.0.1", "10.0.0.2") + bytes(18))

    assert fields["event.action"] == "arp_request"
    assert (fields["source.ip"], fields["destination.ip"]) == ("10.0.0.1", "10.0.0.2")
    assert fields["cw.vendor"] == {"arp_kind": "ordinary"}


def test_a_reply_says_to_whom() -> None:
    (fields,) = heard(speaker(Arp), arp(2, "10.0.0.1", "10.0.0.2", to=OTHER))

    assert fields["event.action"] == "arp_reply"
    assert fields["cw.vendor"] == {"arp_kind": "ordinary", "target_mac": "02-00-00-00-00-0B"}


def test_probes_and_announcements_are_told_apart() -> None:
    (probe,) = heard(speaker(Arp), arp(1, "0.0.0.0", "10.0.0.2"))
    (announced,) = heard(speaker(Arp), arp(1, "10.0.0.2", "10.0.0.2"))

    assert probe["cw.vendor"]["arp_kind"] == "probe"
    assert "source.ip" not in probe
    assert announced["cw.vendor"]["arp_kind"] == "gratuitous"


def test_a_body_that_names_another_sender_is_said() -> None:
    (fields,) = heard(speaker(Arp), arp(2, "10.0.0.1", "10.0.0.2", OTHER))

    assert fields["cw.vendor"]["sender_mac"] == "02-00-00-00-00-0B"
    assert fields["event.reason"] == "the sender in the body is not the sender of the frame"


def test_what_is_cut_or_unknown_is_reported() -> None:
    whole = arp(1, "10.0.0.1", "10.0.0.2")
    reasons = [
        heard(speaker(Arp), data)[0]["event.reason"]
        for data in (b"", whole[:20], whole[:7] + b"\x63" + whole[8:], b"\0\x06" + whole[2:])
    ]

    assert reasons == [
        "0 bytes are no ARP packet",
        "the addresses are cut",
        "operation 99 is not known",
        "addresses of kinds 6 and 0x0800, of [6, 4] bytes",
    ]


def test_arp_keeps_what_a_decoder_promises() -> None:
    check_decoder(Arp, [(True, arp(1, "10.0.0.1", "10.0.0.2"))], transport="link")


def test_the_scan_asks_for_255_addresses(data: Path) -> None:
    events = captured(Arp, data / "network" / "arp_scan.pcap")

    asked = [
        e.fields["destination.ip"]
        for e in events
        if e.fields["event.action"] == "arp_request"
        and e.fields.get("source.ip") == "192.168.1.247"
    ]
    assert len(events) == 519
    assert (len(asked), len(set(asked))) == (507, 255)
    assert Counter(e.fields["event.action"] for e in events) == {
        "arp_request": 514,
        "arp_reply": 5,
    }
    assert not [e for e in events if "event.reason" in e.fields]


@pytest.mark.slow
def test_every_packet_agrees_with_tshark(data: Path) -> None:
    names = ("frame.number", "arp.opcode", "arp.src.proto_ipv4", "arp.dst.proto_ipv4")
    compared = 0

    for name in ("network/arp_scan.pcap", "city/iot_botnet_telnet_scan.pcap"):
        columns = [part for one in names for part in ("-e", one)]
        told = subprocess.run(
            ["tshark", "-r", str(data / name), "-Y", "arp", "-T", "fields", *columns],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        events = captured(Arp, data / name)
        mine = [
            (
                str(e.record.place),
                e.fields["ot.function.code"],
                e.fields.get("source.ip", "0.0.0.0"),
                e.fields["destination.ip"],
            )
            for e in events
        ]
        assert mine == [tuple(line.split("\t")) for line in told.stdout.splitlines()]
        compared += len(mine)

    assert compared == 519 + 31


def test_a_device_with_a_new_address_announces_it(data: Path) -> None:
    events = captured(Arp, data / "port" / "profinet_dcp_change_ip.pcap")

    asked, announced = events
    assert (asked.record.place, announced.record.place) == (5, 6)
    assert announced.fields["source.ip"] == announced.fields["destination.ip"] == "192.168.0.10"
    assert announced.fields["cw.vendor"]["arp_kind"] == "gratuitous"
    assert announced.fields["destination.mac"] == "FF-FF-FF-FF-FF-FF"


def test_no_other_frame_is_taken_for_arp(data: Path) -> None:
    assert not any(map(Arp.recognises, frames_without_ip(data, ETHERTYPE)))
