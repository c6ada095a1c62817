"""Files are recognised by their first bytes, and strange ones are left alone."""

from __future__ import annotations

import gzip

import pytest

from cityward import LogSource
from cityward.plugin import CollectorSpec
from collectors.city.river import river, river_readings
from collectors.logs.netfilter import netfilter
from collectors.logs.sshd import sshd
from collectors.logs.suricata import suricata
from collectors.logs.syslog import syslog
from collectors.logs.zeek import Zeek
from collectors.recognise import recognise
from collectors.transport.gtfs import gtfs_realtime

PARTS = {
    "gtfs-realtime": gtfs_realtime,
    "netfilter": netfilter,
    "river": river,
    "river-readings": river_readings,
    "sshd": sshd,
    "suricata": suricata,
    "syslog": syslog,
    "zeek": Zeek,
}
SPECS = {name: part.cityward_spec for name, part in PARTS.items()}
SPECS["packets"] = CollectorSpec(LogSource(category="flow"), "packets")

OURS = {
    "city/river_usgs_instantaneous_values.json": "river",
    "logs/iptables_port_scan.log": "netfilter",
    "logs/sshd_bruteforce.log": "syslog",
    "logs/sshd_fail2ban_labelled.log": "syslog",
    "logs/suricata_eve_alerts.log": "suricata",
    "network/ctu_win7_zeek_conn_labelled.log": "zeek",
    "network/portscan_vertical_zeek_conn.log": "zeek",
    "transport/gtfsrt_nyct_subway_ace_1707397157.pb": "gtfs-realtime",
    "transport/gtfsrt_nyct_subway_ace_1707397217.pb": "gtfs-realtime",
    "transport/gtfsrt_nyct_subway_with_alert.pb": "gtfs-realtime",
    "transport/gtfsrt_vehicle_positions_bullrunner.pb": "gtfs-realtime",
    "transport/gtfsrt_wmata_bus_2345.pb": "gtfs-realtime",
}
"""The files we read; every capture besides is for `packets`, and no other file for anyone."""


def test_every_file_of_the_real_data_is_recognised_or_left_alone(data):
    files = [path for path in sorted(data.glob("*/*")) if path.is_file()]
    wrong = []

    for path in files:
        name = path.relative_to(data).as_posix()
        capture = "packets" if path.suffix in (".pcap", ".pcapng") else None
        found = recognise(path.read_bytes()[:65_536], path.name, SPECS)
        if found != OURS.get(name, capture):
            wrong.append((name, found))

    assert len(files) > 120
    assert wrong == []


@pytest.mark.parametrize("length", [300, 4_096])
def test_a_compressed_file_is_recognised_also_when_it_is_cut(length):
    line = b"Feb 12 14:10:21 gw sshd[16378]: Invalid user a%d from 192.0.2.1 port 2\n"
    packed = gzip.compress(b"".join(line % number for number in range(2_000)))

    assert recognise(packed[:length], "auth.log.gz", SPECS) == "syslog"


def test_a_small_bomb_is_not_blown_up():
    packed = gzip.compress(b"\x00" * 50_000_000)

    assert recognise(packed, "x.gz", SPECS) is None


def test_syslog_of_several_programs_is_syslog():
    lines = [
        b"Feb 12 14:10:21 gw sshd[1]: Invalid user a from 192.0.2.1 port 2",
        b"Feb 12 14:10:22 gw kernel: IN=eth0 OUT= SRC=192.0.2.1 DST=192.0.2.2 PROTO=TCP",
        b"Feb 12 14:10:23 gw cron[7]: x",
    ]

    assert recognise(b"\n".join(lines), "messages", SPECS) == "syslog"


@pytest.mark.parametrize("head", [b"", b"\x00", b"\x1f\x8b", b"\x1f\x8b\x08broken", b"{", b"\n\n"])
def test_nothing_and_garbage_is_left_alone(head):
    assert recognise(head, "x", SPECS) is None


def test_a_test_that_breaks_is_a_no():
    def breaks(head: bytes) -> bool:
        raise IndexError(head)

    specs = {"bad": CollectorSpec(LogSource(service="x"), looks_like=breaks, strength=99), **SPECS}

    assert recognise(b"<13>Feb 12 14:10:23 gw cron[7]: x", "messages", specs) == "syslog"
