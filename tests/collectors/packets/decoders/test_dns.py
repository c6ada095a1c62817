"""DNS against real captures, hand-made messages and hostile bytes."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cityward.checks import check_decoder
from collectors.packets.decoders.dns import Dns, registered_domain
from tests.collectors.packets.decoders.captured import datagrams, messages
from tests.collectors.packets.decoders.streams import Wire, session
from tests.programs import PATIENCE_S


def name(text: str) -> bytes:
    labels = [label.encode() for label in text.split(".")]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def query(text: str = "scada.example.gr", kind: int = 1, number: int = 7) -> bytes:
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + name(text) + struct.pack(">HH", kind, 1)


def record(data: bytes, kind: int = 1, ttl: int = 60, owner: bytes = b"\xc0\x0c") -> bytes:
    return owner + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data


def answer(
    *records: bytes, text: str = "scada.example.gr", kind: int = 1, number: int = 7, code: int = 0
) -> bytes:
    head = struct.pack(">6H", number, 0x8180 | code, 1, len(records), 0, 0)
    return head + name(text) + struct.pack(">HH", kind, 1) + b"".join(records)


def prefixed(message: bytes) -> bytes:
    return struct.pack(">H", len(message)) + message


def read(*pieces: tuple[bytes, bool], port: int = 53) -> list[dict[str, Any]]:
    decoder = Dns(datagrams(server=f"10.0.0.2:{port}"))
    return [
        fields
        for at, (data, who) in enumerate(pieces)
        for fields in decoder.feed(data, who, float(at), 1)[1]
    ]


def test_an_answer_is_joined_to_its_question() -> None:
    asked, answered = read(
        (query(), True), (answer(record(bytes((10, 0, 0, 9)))), False)
    )  # fmt: skip

    assert asked["event.action"] == "dns_query"
    assert (asked["dns.question.name"], asked["dns.question.type"]) == ("scada.example.gr", "A")
    assert answered["ot.link_id"] == asked["ot.link_id"]
    assert answered["event.duration"] == 1_000_000_000
    assert answered["dns.resolved_ip"] == ["10.0.0.9"]
    assert (answered["dns.answers.data"], answered["dns.answers.ttl"]) == ("10.0.0.9", 60)
    assert answered["dns.response_code"] == "NOERROR"


def test_an_answer_nobody_asked_for_says_so() -> None:
    found = read((query(number=7), True), (answer(number=8), False))

    assert found[1]["event.reason"] == "no request was seen for this answer"


def test_a_name_that_does_not_exist_is_a_failure() -> None:
    found = read((query(), True), (answer(code=3), False))

    assert (found[1]["dns.response_code"], found[1]["event.outcome"]) == ("NXDOMAIN", "failure")


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        (28, bytes(15) + b"\1", "::1"),
        (5, name("a.example"), "a.example"),
        (15, struct.pack(">H", 10) + name("mail.example"), "10 mail.example"),
        (33, struct.pack(">HHH", 1, 2, 389) + name("ldap.example"), "1 2 389 ldap.example"),
        (16, b"\x05v=spf\x04-all", "v=spf -all"),
        (10, bytes(40), "00" * 32 + "…"),
    ],
)
def test_records_are_said_as_text(kind: int, data: bytes, said: str) -> None:
    found = read((query(kind=kind), True), (answer(record(data, kind), kind=kind), False))

    assert found[1]["dns.answers.data"] == said


def test_names_that_are_no_text_are_escaped() -> None:
    data = struct.pack(">6H", 1, 0, 1, 0, 0, 0) + b"\x03a.b\x03x\xe4\x00\x05\xce\xb1\xce\xb2 \0"

    found = read((data + struct.pack(">HH", 1, 1), True))

    assert found[0]["dns.question.name"] == "a\\.b.x\\228\\000.αβ "


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (query()[:12] + b"\xc0\x0c\0\1\0\1", "points forward or round in a circle"),
        (query()[:12] + b"\xc0\x20\0\1\0\1", "points forward or round in a circle"),
        (query()[:20], "claims"),
        (query()[:-2], "question 1 is cut"),
        (query()[:12] + b"\x40", "unknown kind"),
        (b"\0" * 11, "at least 12 bytes"),
        (answer(record(b"abcd"))[:-2], "claims 4 bytes, 2 are left"),
    ],
)
def test_a_broken_message_is_an_event_that_says_why(data: bytes, why: str) -> None:
    found = read((data, True))

    assert found[0]["event.kind"] == "pipeline_error"
    assert why in found[0]["event.reason"]


def test_many_pointers_cost_nothing() -> None:
    chain = b"".join(struct.pack(">H", 0xC000 | max(12, 10 + at)) for at in range(0, 16_000, 2))
    data = struct.pack(">6H", 1, 0x8000, 0, 1_024, 0, 0) + b"\0\0" + chain

    assert read((data, False))[0]["event.kind"] == "pipeline_error"


def test_questions_to_everybody_are_not_joined() -> None:
    found = read((query(number=0), True), (answer(number=0), False), port=5353)

    assert {fields["network.protocol"] for fields in found} == {"mdns"}
    assert not any("event.reason" in fields for fields in found)


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("a.b.pirate.sea", "pirate.sea"),
        ("www.attica.gov.gr", "attica.gov.gr"),
        ("com.gr", "com.gr"),
        ("localhost", "localhost"),
        ("", ""),
    ],
)
def test_the_registered_domain_is_what_somebody_registered(text: str, domain: str) -> None:
    assert registered_domain(text) == domain


def test_after_a_gap_the_next_message_of_a_stream_is_found() -> None:
    wire = Wire(Dns(session(server="10.0.0.2:53")))
    wire.send(prefixed(query(number=1)), True)
    wire.decoder.gap(True)

    found = wire.send(b"rest of a message" + prefixed(query(number=2)), True)

    assert [fields["dns.id"] for fields in found] == ["2"]


def test_a_stream_that_ends_within_a_message_says_so() -> None:
    wire = Wire(Dns(session(server="10.0.0.2:53")))
    wire.send(prefixed(query())[:-3], True)

    assert "ended 33 bytes into a message" in wire.decoder.end()[0]["event.reason"]


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_the_decoder_keeps_its_promises(transport: Any) -> None:
    pieces = [(True, query()), (False, answer(record(bytes((10, 0, 0, 9)))))]
    if transport == "tcp":
        pieces = [(who, prefixed(data)) for who, data in pieces]

    check_decoder(Dns, pieces, transport=transport, mutants_each=40)


@given(st.binary(max_size=120))
def test_random_bytes_are_no_dns(data: bytes) -> None:
    assert not Dns.recognises(b"\xff" + data)
    assert not Dns.recognises(b"\0\0\0\0" + data[:12])


def test_names_of_netbios_are_not_claimed() -> None:
    encoded = b"\x20" + b"EKEDFEEIEDCACACACACACACACACACAAA" + b"\0"

    assert not Dns.recognises(
        struct.pack(">6H", 1, 0, 1, 0, 0, 0) + encoded + struct.pack(">HH", 33, 1)
    )


def test_the_tunnel_is_read_whole(data: Path) -> None:
    found = messages(data / "network/dns_tunnel_iodine.pcap", Dns)

    asked = [fields for fields in found if fields["event.action"] == "dns_query"]
    assert len(asked) == 222
    assert Counter(fields["dns.question.type"] for fields in found) == {"NULL": 434}
    assert {fields["dns.question.registered_domain"] for fields in asked} == {"pirate.sea"}
    lengths = sorted(len(fields["dns.question.name"]) for fields in asked)
    assert (lengths[0], lengths[111]) == (17, 19)
    assert not any("event.kind" in fields for fields in found)
    answered = [fields for fields in found if fields["event.action"] == "dns_answer"]
    assert not any("event.reason" in fields for fields in answered)


def test_dns_among_other_protocols_is_read(data: Path) -> None:
    found = messages(data / "city/iot_botnet_telnet_scan.pcap", Dns)

    counts = Counter((fields["network.protocol"], fields["event.action"]) for fields in found)
    assert counts == {
        ("mdns", "dns_query"): 61,
        ("mdns", "dns_answer"): 26,
        ("dns", "dns_query"): 36,
        ("dns", "dns_answer"): 30,
    }


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
@pytest.mark.parametrize(
    "name", ["network/dns_tunnel_iodine.pcap", "city/iot_botnet_telnet_scan.pcap"]
)
def test_tshark_reads_the_same(name: str, data: Path) -> None:
    columns = ("id", "flags.response", "flags.rcode", "qry.type", "qry.name", "resp.ttl", "a")
    said = subprocess.run(
        ["tshark", "-r", str(data / name), "-Y", "dns && udp.port==53", "-T", "fields"]
        + [part for column in columns for part in ("-e", f"dns.{column}")],
        capture_output=True, text=True, check=True, timeout=PATIENCE_S, errors="replace",
    ).stdout.splitlines()  # fmt: skip
    ours = [one for one in messages(data / name, Dns) if one["network.protocol"] == "dns"]
    theirs = sorted(line.split("\t") for line in said)

    shown = sorted(_as_tshark(one) for one in ours)

    assert len(shown) == len(theirs)
    for mine, other in zip(shown, theirs, strict=True):
        assert mine[:4] == other[:4]
        # A label that is no text is shown as it is there, escaped here.
        assert mine[4] == other[4] or "\\" in mine[4]
        assert mine[6] == other[6]


def _as_tshark(fields: dict[str, Any]) -> list[str]:
    types = {"A": 1, "NULL": 10, "AAAA": 28, "PTR": 12, "SOA": 6}
    answers = {"NOERROR": "0", "NXDOMAIN": "3", "": ""}
    four = (one for one in fields.get("dns.resolved_ip", ()) if ":" not in one)
    return [
        f"0x{int(fields['dns.id']):04x}",
        "1" if fields["dns.type"] == "answer" else "0",
        answers[fields.get("dns.response_code", "")],
        str(types[fields["dns.question.type"]]),
        fields["dns.question.name"],
        "",
        ",".join(four),
    ]
