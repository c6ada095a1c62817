"""MikroTik, pfSense and OPNsense: packets and logins, against CrowdSec's cases."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.logs.mikrotik import looks_like_mikrotik, mikrotik
from collectors.logs.pf import looks_like_pf, pf
from tests.collectors.suites import crowdsec_parsed

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SUITE = "logs/suite_crowdsec_hub_tests.tar.gz"


def _read(collector: Any, line: str | bytes) -> Event:
    data = line.encode() if isinstance(line, str) else line
    event: Event
    (event,) = collector([Record(data, "s", 0, NOW)])
    return event


PARSED = {
    "source_ip": "source.ip",
    "src_ip": "source.ip",
    "src_port": "source.port",
    "dst_ip": "destination.ip",
    "dst_port": "destination.port",
    "if_in": "observer.ingress.interface.name",
    "proto": "network.transport",
    "length": "network.bytes",
    "tag": "rule.name",
    "username": "user.name",
    "target_user": "user.name",
    "machine": "host.name",
}
"""CrowdSec's names for our fields."""


def _agreement(data: Path, case: str, collector: Any) -> tuple[int, list[tuple[Any, ...]]]:
    lines, expected = crowdsec_parsed(data / SUITE, case)
    claimed, differences = 0, []
    for line, want in zip(lines, expected, strict=True):
        fields = _read(collector, line).fields
        for name, value in want.items():
            if name not in PARSED or not value:
                continue
            claimed += 1
            ours = fields.get(PARSED[name])
            if str(ours).lower() != value.lower():
                differences.append((line, name, value, ours))
    print(f"{case}: {claimed - len(differences)}/{claimed} agree with CrowdSec")
    return claimed, differences


@pytest.mark.parametrize(
    ("case", "collector", "least"),
    [
        ("mikrotik-logs", mikrotik, 40),
        ("pfsense-gui-auth", pf, 18),
        ("opnsense-gui-auth", pf, 12),
    ],
)
def test_crowdsec_and_we_read_the_same(data: Path, case: str, collector: Any, least: int) -> None:
    claimed, differences = _agreement(data, case, collector)

    assert claimed >= least
    assert differences == []


def test_the_scan_of_the_mikrotik_file_is_refused_packets_to_seventeen_ports(data: Path) -> None:
    raw = (data / "logs/mikrotik_port_scan.log").read_bytes()

    found = [_read(mikrotik, line) for line in raw.split(b"\n") if line]

    assert looks_like_mikrotik(raw)
    assert len(found) == 19
    assert {event.fields["event.action"] for event in found} == {"packet_denied"}
    assert {event.fields["source.ip"] for event in found} == {"36.97.161.219"}
    assert len({event.fields["destination.port"] for event in found}) == 17
    assert {str(event.logsource) for event in found} == {"mikrotik/firewall/firewall"}
    assert found[0].fields["host.name"] == "10.120.127.1"


TOPICS = "system,error,critical "
PACKET = (
    "firewall,info drop-in input: in:ether1 out:(unknown 0), connection-state:new src-mac "
    "00:17:10:88:bc:02, proto TCP (SYN), [2001:db8::1]:40384->[2001:db8::2]:22, len 40"
)
OLD = (
    "<30>Mar 18 20:36:59 MikroTik forward: in:bridge out:ether1, proto ICMP (type 8, code 0), "
    "192.0.2.1->192.0.2.2, NAT (192.0.2.1->198.51.100.1)->192.0.2.2, len 84"
)


def test_packets_of_each_form_are_read() -> None:
    new, old = _read(mikrotik, PACKET), _read(mikrotik, OLD)

    assert (new.fields["source.ip"], new.fields["destination.port"]) == ("2001:db8::1", 22)
    assert new.fields["event.action"] == "packet_denied"
    assert new.fields["cw.vendor"]["flags"] == "SYN"
    assert (old.fields["source.ip"], old.fields["destination.ip"]) == ("192.0.2.1", "192.0.2.2")
    assert (old.fields["network.transport"], old.fields["network.bytes"]) == ("icmp", 84)
    assert (old.fields["event.action"], old.fields["host.name"]) == ("packet_logged", "MikroTik")


@pytest.mark.parametrize(
    ("line", "action", "outcome", "user"),
    [
        (
            TOPICS + "login failure for user a from 9.9.9.9 from 192.0.2.9 via ssh",
            "device_login",
            "failure",
            "a from 9.9.9.9",
        ),
        (
            "system,info,account user admin logged in from 192.0.2.9 via winbox",
            "device_login",
            "success",
            "admin",
        ),
        (
            "system,info,account user admin logged out from 192.0.2.9 via winbox",
            "device_logout",
            "success",
            "admin",
        ),
        ("system,info filter rule changed by admin", "device_config", None, "admin"),
        ("dhcp,info defconf assigned 192.0.2.9 to 00:17:10:88:bc:02", "log", None, None),
    ],
)
def test_a_line_of_routeros_has_its_meaning(
    line: str, action: str, outcome: Any, user: Any
) -> None:
    fields = _read(mikrotik, line).fields

    assert fields["event.action"] == action
    assert fields.get("event.outcome") == outcome
    assert fields.get("user.name") == user
    assert fields.get("source.ip") in (None, "192.0.2.9")


HEAD = "<134>1 2025-01-01T00:00:00Z fw filterlog 1 - - "
FILTER = [
    (
        "53,,,1000102631,em0,match,block,in,4,0x0,,64,892,0,none,6,tcp,44,10.0.2.2,10.0.2.15,"
        "59576,22,0,S,17536001,,65535,,mss",
        ("packet_denied", "tcp", "10.0.2.2", 59576, "10.0.2.15", 22, 44),
    ),
    (
        "5,,,0,igb1,match,pass,out,4,0x0,,64,1,0,none,17,udp,76,192.0.2.1,192.0.2.2,123,123,56",
        ("packet_allowed", "udp", "192.0.2.1", 123, "192.0.2.2", 123, 76),
    ),
    (
        "5,,,9,igb1,match,block,in,4,0x0,,64,1,0,none,1,icmp,84,192.0.2.1,192.0.2.2,request,1,2",
        ("packet_denied", "icmp", "192.0.2.1", None, "192.0.2.2", None, 84),
    ),
    (
        "5,,,9,igb1,match,block,in,6,0x00,0x00000,255,tcp,6,40,2001:db8::1,2001:db8::2,5000,23,0,S",
        ("packet_denied", "tcp", "2001:db8::1", 5000, "2001:db8::2", 23, 40),
    ),
    (
        "5,,,9,igb1,match,block,in,6,0x00,0x00000,255,ICMPv6,58,40,fe80::1,ff02::2,",
        ("packet_denied", "icmpv6", "fe80::1", None, "ff02::2", None, 40),
    ),
]


@pytest.mark.parametrize(("line", "meaning"), FILTER)
def test_columns_of_the_filter_log_are_read(line: str, meaning: tuple[Any, ...]) -> None:
    fields = _read(pf, HEAD + line).fields

    ends = ("source.ip", "source.port", "destination.ip", "destination.port")
    names = ("event.action", "network.transport", *ends, "network.bytes")
    assert tuple(fields.get(name) for name in names) == meaning


def test_a_filter_line_without_its_columns_is_kept_as_text() -> None:
    assert _read(pf, HEAD + "5,,,9,igb1").fields["event.action"] == "log"
    assert _read(pf, b"hello").is_malformed


def test_the_firewalls_keep_the_promises_of_a_collector() -> None:
    samples = [(HEAD + line).encode() for line, _ in FILTER]
    assert looks_like_pf(b"\n".join(samples))
    check_collector(pf, samples, mutants_each=60)
    login = TOPICS + "login failure for user admin from 192.0.2.9 via ssh"
    check_collector(mikrotik, [PACKET.encode(), OLD.encode(), login.encode()])
