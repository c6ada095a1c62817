"""The packet filter: addresses, ports and verdict of logged packets."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest

from cityward import Record
from collectors.logs.netfilter import netfilter
from tests.collectors.suites import crowdsec

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def _read(lines):
    return list(netfilter(Record(line, "s", place, NOW) for place, line in enumerate(lines)))


def test_crowdsec_and_we_find_the_same_packets(data):
    lines, expected = crowdsec(data / "logs/suite_crowdsec_hub_tests.tar.gz", "iptables-logs")

    found = _read(lines)

    assert [want["ok"] for want in expected] == ["true", "true", "false", "true"]
    for event, want in zip(found, expected, strict=True):
        if want["ok"] == "true":
            fields = event.fields
            assert fields["source.ip"] == want["src_ip"]
            assert fields["destination.ip"] == want["dst_ip"]
            assert fields["source.port"] == int(want["src_port"])
            assert fields["destination.port"] == int(want["dst_port"])
            assert fields["network.transport"] == want["service"]
            assert fields["observer.ingress.interface.name"] == want["int_eth"]
            assert fields["host.name"] == want["machine"]
    assert found[2].fields["event.action"] == "log"


def test_the_scans_of_the_log_have_their_sources_and_ports(data):
    lines = (data / "logs/iptables_port_scan.log").read_bytes().split(b"\n")

    found = _read(line for line in lines if line)

    assert len(found) == 49
    ports = {
        source: len(
            {e.fields["destination.port"] for e in found if e.fields["source.ip"] == source}
        )
        for source in ("62.34.17.168", "127.0.0.2")
    }
    assert min(ports.values()) >= 16
    assert Counter(event.fields["event.action"] for event in found) == {
        "packet_logged": 33,
        "packet_denied": 16,
    }


@pytest.mark.parametrize(
    ("prefix", "action"),
    [
        ("[UFW BLOCK] ", "packet_denied"),
        ("IPTABLES-DROP: ", "packet_denied"),
        ("[UFW ALLOW] ", "packet_allowed"),
        ("fw-in-accept ", "packet_allowed"),
        ("", "packet_logged"),
    ],
)
def test_the_prefix_says_what_the_filter_did(prefix, action):
    line = f"Oct 30 10:09:23 gw kernel: [ 1.000001] {prefix}IN=eth0 OUT= SRC=::1 DST=::2 PROTO=TCP"

    (event,) = _read([line.encode()])

    assert event.fields["event.action"] == action
    assert event.fields["source.ip"] == "::1"


def test_an_icmp_error_keeps_the_addresses_of_its_own_packet():
    line = (
        b"Oct 30 10:09:23 gw kernel: IN=eth0 OUT= MAC=00:08:a2:0c:1f:12:00:c8:8b:e2:d6:87:08:00 "
        b"SRC=192.0.2.1 DST=192.0.2.2 LEN=96 PROTO=ICMP TYPE=3 CODE=1 "
        b"[SRC=192.0.2.2 DST=203.0.113.9 LEN=68 PROTO=UDP SPT=5 DPT=53 LEN=48 ]"
    )

    (event,) = _read([line])

    fields = event.fields
    assert (fields["source.ip"], fields["destination.ip"]) == ("192.0.2.1", "192.0.2.2")
    assert (fields["network.transport"], fields.get("destination.port")) == ("icmp", None)
    assert fields["cw.vendor"]["quoted"].startswith("[SRC=192.0.2.2 DST=203.0.113.9")
    assert fields["destination.mac"] == "00-08-A2-0C-1F-12"
    assert fields["source.mac"] == "00-C8-8B-E2-D6-87"


def test_what_is_no_address_and_no_port_goes_to_the_vendor():
    (event,) = _read(
        [b"Oct 30 10:09:23 gw kernel: IN=eth0 OUT= SRC=300.1.1.1 DST=192.0.2.2 PROTO=TCP DPT=70000"]
    )

    assert "source.ip" not in event.fields
    assert "destination.port" not in event.fields
    assert event.fields["cw.vendor"]["SRC"] == "300.1.1.1"
    assert event.fields["cw.vendor"]["DPT"] == "70000"
