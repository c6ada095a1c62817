"""FortiGate: who logged in, what was refused, what was found."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.logs.fortigate import fortigate, looks_like_fortigate
from tests.collectors.suites import crowdsec_parsed

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HEAD = 'date=2025-05-10 time=09:00:01 devname="FG1" devid="FG100F" eventtime=1746867601123456789 '

TRAFFIC = HEAD + (
    'tz="+0200" logid="0000000013" type="traffic" subtype="forward" level="notice" vd="root" '
    'srcip=10.1.100.11 srcport=58012 srcintf="port12" dstip=23.59.154.35 dstport=80 '
    'dstintf="port11" proto=6 action="close" policyid=1 service="HTTP" duration=1 sentbyte=430 '
    "rcvdbyte=503 sentpkt=6 rcvdpkt=5"
)
LOGIN = HEAD + (
    'logid="0100032002" type="event" subtype="system" level="alert" vd="root" logdesc="Admin login '
    'failed" sn="0" user="admin" ui="https(192.0.2.9)" method="https" srcip=192.0.2.9 '
    'dstip=192.0.2.1 action="login" status="failed" reason="passwd_invalid" msg="Administrator '
    'admin login failed from https(192.0.2.9) because of invalid password"'
)
IPS = HEAD + (
    'logid="0419016384" type="utm" subtype="ips" eventtype="signature" level="alert" '
    'severity="high" srcip=10.1.100.11 dstip=172.16.200.55 action="dropped" proto=6 '
    'service="HTTP" attack="Eicar.Virus.Test.File" srcport=44522 dstport=80 attackid=29844'
)


def _read(line: str | bytes) -> Event:
    data = line.encode() if isinstance(line, str) else line
    (event,) = fortigate([Record(data, "s", 0, NOW)])
    return event


def test_a_session_has_its_ends_and_counts() -> None:
    event = _read(TRAFFIC)

    fields = event.fields
    assert event.time.replace(microsecond=0) == datetime(2025, 5, 10, 9, 0, 1, tzinfo=UTC)
    assert (fields["source.ip"], fields["destination.port"]) == ("10.1.100.11", 80)
    assert (fields["source.bytes"], fields["destination.packets"]) == (430, 5)
    assert (fields["network.transport"], fields["network.protocol"]) == ("tcp", "http")
    assert (fields["event.action"], fields["event.duration"]) == ("connection_ended", 10**9)
    assert (fields["host.name"], fields["rule.id"]) == ("FG1", "1")
    assert str(event.logsource) == "fortigate/firewall/traffic"


@pytest.mark.parametrize(
    ("line", "action", "outcome", "category"),
    [
        (TRAFFIC.replace('"close"', '"deny"'), "packet_denied", None, "firewall"),
        (TRAFFIC.replace('"close"', '"start"'), "connection_started", None, "firewall"),
        (LOGIN, "device_login", "failure", "edge_device"),
        (LOGIN.replace("failed", "successful"), "device_login", "success", "edge_device"),
        (IPS, "ips_denied", None, ""),
        (
            HEAD + 'type="event" subtype="vpn" logdesc="SSL VPN tunnel up" action="tunnel-up" '
            'remip=192.0.2.7 user="ann"',
            "vpn_login",
            "success",
            "remote_access",
        ),
        (
            HEAD + 'type="event" subtype="vpn" action="negotiate" status="failure" remip=192.0.2.7',
            "vpn_negotiate",
            "failure",
            "remote_access",
        ),
        (
            HEAD + 'type="event" subtype="system" logdesc="Attribute configured" user="admin" '
            'ui="GUI(192.0.2.9)" action="Edit" cfgpath="system.admin"',
            "device_config",
            None,
            "edge_device",
        ),
    ],
)
def test_a_line_has_its_meaning(line: str, action: str, outcome: Any, category: str) -> None:
    event = _read(line)

    assert event.fields["event.action"] == action
    assert event.fields.get("event.outcome") == outcome
    assert event.logsource.category == category


def test_an_intrusion_is_an_alert_with_its_signature() -> None:
    fields = _read(IPS).fields

    assert (fields["event.kind"], fields["rule.id"]) == ("alert", "29844")
    assert fields["rule.name"] == "Eicar.Virus.Test.File"


@pytest.mark.parametrize(
    "head", ["", "<189>", "<189>Oct 14 13:46:40 fw1 ", "Oct 14 13:46:40 fw1: "]
)
def test_an_envelope_does_not_matter(head: str) -> None:
    event = _read(head + LOGIN)

    assert event.fields["source.ip"] == "192.0.2.9"
    assert (event.fields["user.name"], event.fields["host.name"]) == ("admin", "FG1")
    assert "process.name" not in event.fields
    assert event.time.year == 2025


USER = "`N/A` says that there is no name; CrowdSec keeps it as one"


def test_crowdsec_and_we_read_the_same_of_vpn_logins(data: Path) -> None:
    archive = data / "logs/suite_crowdsec_hub_tests.tar.gz"
    lines, expected = crowdsec_parsed(archive, "fortinet-vpn-bf")
    names = {
        "source_ip": "source.ip",
        "msg": "message",
        "reason": "event.reason",
        "target_user": "user.name",
    }
    differences = []
    claimed = 0

    for line, want in zip(lines, expected, strict=True):
        fields = _read(line).fields
        for name, field in names.items():
            claimed += 1
            if fields.get(field) != want[name]:
                differences.append((name, want[name], fields.get(field)))

    assert claimed == 36
    assert set(differences) == {("target_user", "N/A", None)}, USER


def test_every_line_of_the_attack_is_a_failed_vpn_login(data: Path) -> None:
    raw = (data / "logs/fortigate_vpn_bruteforce.log").read_bytes()

    found = [_read(line) for line in raw.split(b"\n") if line]

    assert looks_like_fortigate(raw)
    assert len(found) == 9
    said = {(e.fields["event.action"], e.fields["event.outcome"]) for e in found}
    assert said == {("vpn_login", "failure")}
    assert {e.fields["source.ip"] for e in found} == {"192.168.0.1"}
    assert found[0].time.replace(microsecond=0) == datetime(2024, 10, 14, 20, 46, 40, tzinfo=UTC)


def test_fortigate_keeps_the_promises_of_a_collector() -> None:
    check_collector(fortigate, [TRAFFIC.encode(), b"<189>" + LOGIN.encode(), IPS.encode()])
