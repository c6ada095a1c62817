"""TLS against handshakes that OpenSSL made, hand-made hellos and hostile bytes."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cityward.checks import check_decoder
from collectors.packets.decoders.tls import Hello, Tls, ja4
from tests.collectors.packets.decoders.streams import Wire, session
from tests.collectors.packets.wire import pcap, seconds, segment
from tests.programs import PATIENCE_S

CASES: dict[str, list[tuple[bool, bytes]]] = {
    name: [(who, bytes.fromhex(text)) for who, text in pieces]
    for name, pieces in json.loads((Path(__file__).parent / "tls_cases.json").read_text()).items()
}
"""From the client or not, and bytes: handshakes of OpenSSL 3 with a certificate made for this."""


def wire() -> Wire:
    return Wire(Tls(session(server="10.0.0.2:8443")))


def read(name: str) -> list[dict[str, Any]]:
    line = wire()
    found = [fields for who, data in CASES[name] for fields in line.send(data, who)]
    return [*found, *line.decoder.end()]


def actions(found: list[dict[str, Any]]) -> list[str]:
    return [fields["event.action"] for fields in found]


def test_a_handshake_of_tls_1_2_shows_name_cipher_and_certificate() -> None:
    hello, answer = read("tls12")

    assert hello["event.action"] == "tls_client_hello"
    assert hello["tls.client.server_name"] == "rtu-7.example.gr"
    assert hello["cw.vendor"]["alpn"] == "h2,http/1.1"
    assert answer["event.action"] == "tls_server_hello"
    assert answer["tls.client.server_name"] == "rtu-7.example.gr"
    assert (answer["tls.version"], answer["tls.next_protocol"]) == ("1.2", "http/1.1")
    assert answer["tls.cipher"] == "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
    assert answer["tls.server.subject"] == "CN=rtu-7.example.gr, O=Attica Traffic\\, Signals, C=GR"
    assert answer["tls.server.issuer"] == answer["tls.server.subject"]
    assert answer["tls.server.x509.alternative_names"] == [
        "rtu-7.example.gr",
        "*.signals.example.gr",
        "10.0.0.2",
    ]
    assert answer["tls.server.not_before"] == datetime(2026, 11, 28, 14, 50, 13, tzinfo=UTC)
    assert answer["tls.server.hash.sha256"].startswith("1D5534C6BDF3905C")
    assert answer["tls.resumed"] is False


def test_a_handshake_of_tls_1_3_ends_at_the_hello_of_the_server() -> None:
    found = read("tls13")

    assert actions(found) == ["tls_client_hello", "tls_server_hello"]
    assert (found[1]["tls.version"], found[1]["tls.cipher"]) == ("1.3", "TLS_AES_256_GCM_SHA384")


def test_a_second_hello_is_read_after_a_retry() -> None:
    assert actions(read("retry13")) == [
        "tls_client_hello",
        "tls_hello_retry",
        "tls_client_hello",
        "tls_server_hello",
    ]


def test_a_refused_certificate_is_an_alert() -> None:
    alert = read("refused12")[2]

    assert (alert["event.action"], alert["event.code"]) == ("tls_alert", "unknown_ca")
    assert alert["event.outcome"] == "failure"
    assert alert["tls.client.server_name"] == "rtu-7.example.gr"


def test_encrypted_records_are_passed_over_without_being_kept() -> None:
    line = wire()
    for who, data in CASES["tls13"]:
        line.send(data, who)

    assert line.send(b"\x17\x03\x03\x40\x00" + bytes(1_000), True) == []
    assert line.rest[True] == b""


def test_a_hello_nobody_answers_says_so() -> None:
    line = wire()
    line.send(CASES["tls12"][0][1], True)

    left = line.decoder.end()

    assert [fields["event.action"] for fields in left] == ["tls_unanswered"]
    assert left[0]["tls.client.server_name"] == "rtu-7.example.gr"


def test_a_handshake_may_lie_across_records() -> None:
    hello = CASES["tls12"][0][1]
    records = b"".join(
        b"\x16\x03\x01" + struct.pack(">H", len(part)) + part
        for part in (hello[5:50], hello[50:60], hello[60:])
    )

    assert wire().send(records, True) == wire().send(hello, True)


def test_what_is_no_record_is_said_once_and_the_next_one_is_found() -> None:
    line = wire()
    line.send(CASES["tls12"][0][1], True)

    found = [*line.send(b"GET / HTTP/1.1\r\n" * 20, False), *line.send(CASES["tls12"][1][1], False)]

    assert actions(found) == ["unreadable", "tls_server_hello"]
    assert "no TLS record begins with 474554202f" in found[0]["event.reason"]


def test_after_a_gap_the_next_record_is_read() -> None:
    line = wire()
    line.send(CASES["tls12"][0][1][:100], True)
    line.decoder.gap(True)
    line.rest[True] = b""

    assert actions(list(line.send(CASES["tls12"][0][1], True))) == ["tls_client_hello"]


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (43, 0xFF, "do not fit"),
        (44, 0xFF, "cipher suites do not fit"),
        (6, 0x02, "bytes is not read"),
    ],
)
def test_a_hello_that_is_none_is_an_event(at: int, value: int, why: str) -> None:
    broken = bytearray(CASES["tls12"][0][1])
    broken[at] = value

    found = wire().send(bytes(broken), True)

    assert found[0]["event.kind"] == "pipeline_error"
    assert why in found[0]["event.reason"] or "cut" in found[0]["event.reason"]


def test_the_fingerprint_is_that_of_its_description() -> None:
    listed = "002f,0035,009c,009d,1301,1302,1303,c013,c014,c02b,c02c,c02f,c030,cca8,cca9"
    kinds = "001b,0000,0033,0010,4469,0017,002d,000d,0005,0023,0012,002b,ff01,000b,000a,0015"
    signatures = bytes.fromhex("0010" + "04030804040105030805050108060601")
    extensions = {int(kind, 16): b"" for kind in kinds.split(",")}
    extensions |= {13: signatures, 43: bytes.fromhex("060a0a03040303")}
    ciphers = [0x1A1A, *(int(one, 16) for one in listed.split(","))]

    made = ja4(Hello(0x0303, b"", ciphers, extensions, b""), [b"h2", b"http/1.1"])

    assert made == "t13d1516h2_8daaf6152771_e5627efa2ab1"


@pytest.mark.parametrize("name", ["tls12", "retry13"])
def test_the_decoder_keeps_its_promises(name: str) -> None:
    check_decoder(Tls, CASES[name], mutants_each=4)


@given(st.binary(max_size=200))
def test_random_bytes_are_no_tls(data: bytes) -> None:
    assert not Tls.recognises(b"\x16" + data[:9])
    assert not Tls.recognises(b"\x16\x03\x09" + data)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_sees_the_same_fingerprints(tmp_path: Path) -> None:
    for name, pieces in CASES.items():
        sent = [1, 1]
        packets: list[tuple[float, bytes]] = []
        for who, data in pieces:
            ends = ("10.0.0.1", 40_000, "10.0.0.2", 443)
            ends = ends if who else (*ends[2:], *ends[:2])
            for at in range(0, len(data), 1_400):
                part = data[at : at + 1_400]
                packets.append((float(len(packets)), segment(*ends, seq=sent[who], data=part)))
                sent[who] += len(part)
        file = tmp_path / f"{name}.pcap"
        file.write_bytes(pcap(seconds(*packets)))
        columns = ("tls.handshake.ja3", "tls.handshake.ja3s")
        said = subprocess.run(
            ["tshark", "-r", str(file), "-T", "fields"]
            + [part for column in columns for part in ("-e", column)],
            capture_output=True, text=True, check=True, timeout=PATIENCE_S,
        ).stdout.split()  # fmt: skip
        ours = [
            value
            for fields in read(name)
            for value in (
                (fields["tls.client.ja3"],)
                if fields["event.action"] == "tls_client_hello"
                else (fields["tls.server.ja3s"],)
                if "tls.server.ja3s" in fields
                else ()
            )
        ]

        assert ours == said
