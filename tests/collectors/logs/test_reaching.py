"""A line reaches its reader by itself: through a syslog port, and in a file of its own."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cityward import Event, Record
from cityward.plugin import load
from collectors.logs.syslog import syslog
from collectors.recognise import recognise
from tests.collectors.suites import crowdsec_parsed
from tests.collectors.test_hostile import SAMPLES

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MINE = ("cef", "cisco", "fortigate", "leef", "mikrotik", "paloalto", "pf")
OTHERS = ("opencanary", "wazuh", "web-access", "windows", "zoneminder")
SPECS = {name: part.cityward_spec for name, part in load("collectors").items()}
FILES = {
    "logs/unifi_cef.log": "cef",
    "logs/fortigate_vpn_bruteforce.log": "fortigate",
    "logs/mikrotik_port_scan.log": "mikrotik",
    "city/zoneminder_cctv_bruteforce.log": "zoneminder",
    "logs/sshd_bruteforce.log": "syslog",
    "logs/iptables_port_scan.log": "netfilter",
}


def _read(line: bytes) -> Event:
    (event,) = syslog([Record(line, "s", 0, NOW)])
    return event


@pytest.mark.parametrize("name", MINE)
@pytest.mark.parametrize("head", [b"", b"<134>", b"<134>Feb  3 10:00:00 gw1 "])
def test_a_line_from_a_syslog_port_is_read_by_its_own_reader(name: str, head: bytes) -> None:
    for sample in SAMPLES[name]:
        if sample[:1] == b"<" or (head and name == "pf"):
            continue
        event = _read(head + sample)

        (direct,) = load("collectors")[name]([Record(sample, "s", 0, NOW)])
        assert event.fields["event.action"] == direct.fields["event.action"] != "log"
        assert event.logsource == direct.logsource
        assert event.fields.get("source.ip") == direct.fields.get("source.ip")


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_recognised(name: str, data: Path) -> None:
    head = (data / name).read_bytes()[:65_536]

    assert recognise(head, name, SPECS) == FILES[name]


@pytest.mark.parametrize("name", MINE + OTHERS)
def test_samples_are_recognised(name: str) -> None:
    assert recognise(b"\n".join(SAMPLES[name]), "x.log", SPECS) == name


@pytest.mark.parametrize(
    "line",
    [
        b"<13>Feb  3 10:00:00 gw app[1]: CEF:0|broken",
        b"<13>Feb  3 10:00:00 gw app[1]: the date=2025-01-01 is set",
        b"<13>Feb  3 10:00:00 gw app[1]: 100%A-7-B",
        b"<13>Feb  3 10:00:00 gw app[1]: a,info b",
    ],
)
def test_a_line_that_only_looks_like_a_format_is_kept_as_text(line: bytes) -> None:
    event = _read(line)

    assert event.fields["event.action"] == "log"
    assert event.fields["host.name"] == "gw"


def test_crowdsec_and_we_read_the_same_of_unifis_firewall(data: Path) -> None:
    lines, expected = crowdsec_parsed(data / "logs/suite_crowdsec_hub_tests.tar.gz", "unifi-logs")
    names = {
        "src_ip": "source.ip",
        "dst_ip": "destination.ip",
        "src_port": "source.port",
        "dst_port": "destination.port",
        "int_eth": "observer.ingress.interface.name",
        "service": "network.transport",
    }
    did = {"drop": "packet_denied", "accept": "packet_allowed"}
    claimed = 0

    for line, want in zip(lines, expected, strict=True):
        if "int_eth" not in want:
            continue
        fields = _read(line).fields
        claimed += len(names) + 1
        assert {name: str(fields[field]) for name, field in names.items()} == {
            name: want[name] for name in names
        }
        assert fields["event.action"] == did[want["action"]]

    assert claimed == 21
