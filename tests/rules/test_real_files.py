"""What a person would expect of real files, through the path that `cityward ingest` takes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cityward.finding import severity_rank
from cityward.plugin import load
from siem import assembly
from siem.config import Models, Settings
from siem.store.protocol import Document, Range
from tests.collectors.suites import member, members

pytestmark = pytest.mark.slow


def findings(
    path: Path, state: Path, *, lists: Mapping[str, Sequence[str]] | None = None, models: bool
) -> tuple[list[Document], int]:
    """Findings of a file, worst first, and how many events it gave."""
    settings = Settings(
        state_dir=str(state),
        models=Models(on=models),
        lists={name: tuple(values) for name, values in (lists or {}).items()},
    )
    source = assembly.file_source(path, load("collectors"))
    node = assembly.node_of(settings, sources=[source], event_time=True)
    try:
        for gathered in node.collect_from(source):
            node.conclude(node.detect(node.keep(gathered)))
        node.finish()
        assert not source.state.error
        return list(node.db.search("", Range(), limit=1000).rows), source.state.events
    finally:
        node.close()


def told(rows: Sequence[Document]) -> list[tuple[str, str, str]]:
    """Severity, title and culprit of each finding."""
    found: list[tuple[str, str, str]] = [
        (row["finding.severity"], row["finding.title"], row.get("source.ip", "")) for row in rows
    ]
    return sorted(found, key=lambda one: (-severity_rank(one[0]), one[1], one[2]))


SILENCED = "Modbus controller silenced or restarted"
CLEARED = "Modbus counters of a controller cleared"
NAMES = "SSH user names tried from one address"
GUESSED = "SSH passwords guessed from one address"
BROKEN = "SSH connections broken off again and again"
PORTS = "Ports of one host scanned"
HOSTS = "Many hosts scanned for one port"
LOGINS = "Many short connections to a login service"
CALLS = "Host keeps calling a dead internet address"

ALL_COMMANDED = "DNP3 command to all outstations"
STOPPED = "DNP3 application of an outstation stopped"
RESTARTED = "DNP3 outstation told to restart"
UNREPORTED = "DNP3 outstation told not to report on its own"

VPN = "VPN passwords guessed from one address"
DEVICE = "Passwords of a firewall or router guessed"
WINDOWS = "Windows passwords guessed from one address"
VIDEO = "Passwords of a video recorder guessed"
VIDEO_NAMES = "User names of a video recorder tried"

ATTACKS: dict[str, list[tuple[str, str, str]]] = {
    "city/bacnet_all_services.pcap": [
        ("high", "BACnet device told to be silent", "192.168.0.50"),
        ("high", "BACnet device told to restart", "192.168.0.50"),
        ("medium", "Wrong password for a BACnet device", "192.168.0.50"),
    ],
    "city/bacnet_quickdraw_recon.pcap": [
        ("medium", "Foreign device joins the BACnet network", "10.1.1.167")
    ],
    "energy/triton_tristation_malware.pcap": [
        ("critical", "Safety controller program changed", "192.168.1.88"),
        ("high", "Safety controller started or halted", "192.168.1.88"),
        ("medium", "Safety controller program read", "192.168.1.88"),
    ],
    "energy/opcua_open62541_session.pcap": [("low", "OPC UA password in clear", "::1")],
    "transport/can_crysys_attack_speed_const.log": [
        ("medium", "Signal on a vehicle bus frozen", "")
    ],
    "port/omron_fins.pcap": [
        ("high", "Omron controller stopped or reset (FINS)", "10.4.14.102"),
        ("high", "Program of an Omron controller changed (FINS)", "10.4.14.102"),
    ],
    "port/atg_fuel_tank_gauge.pcap": [
        ("medium", "Functions of a tank gauge tried out", "192.168.0.105")
    ],
    "energy/dnp3_quickdraw_attacks_1.pcap": [
        ("high", STOPPED, "10.0.0.8"),
        ("high", STOPPED, "10.0.0.9"),
        ("high", ALL_COMMANDED, "10.0.0.8"),
        ("high", ALL_COMMANDED, "10.0.0.9"),
        ("high", RESTARTED, "10.0.0.8"),
        ("high", RESTARTED, "10.0.0.9"),
        ("low", UNREPORTED, "10.0.0.8"),
        ("low", UNREPORTED, "10.0.0.9"),
    ],
    "energy/dnp3_request_flood.pcap": [
        ("high", "DNP3 outstation flooded with selections", "192.168.1.100")
    ],
    "energy/modbus_quickdraw_attacks_1.pcap": [
        ("high", SILENCED, "10.0.0.57"),
        ("low", CLEARED, "10.0.0.57"),
    ],
    "energy/modbus_quickdraw_attacks_2.pcap": [
        ("high", "Modbus functions of a controller scanned", "192.168.66.235")
    ],
    "energy/modbus_umas_modicon_attacks.pcap": [
        ("high", "Controller program transferred (UMAS)", "192.168.63.100")
    ],
    "energy/s7comm_snap7_read_write_stop_download.pcap": [
        ("high", "Controller program changed (S7)", "134.217.61.131"),
        ("high", "Controller stopped or started (S7)", "134.217.61.131"),
        ("medium", "Controller program read (S7)", "134.217.61.131"),
    ],
    "port/enip_quickdraw_reboot_restart.pcap": [
        ("high", "Controller program transferred (EtherNet/IP)", "192.168.10.105"),
        ("high", "Controller stopped or started (EtherNet/IP)", "192.168.10.105"),
    ],
    "logs/sshd_bruteforce.log": [
        ("medium", GUESSED, "35.188.49.176"),
        ("medium", NAMES, "35.188.49.176"),
    ],
    "logs/iptables_port_scan.log": [
        ("medium", PORTS, "127.0.0.2"),
        ("medium", PORTS, "62.34.17.168"),
    ],
    "logs/fortigate_vpn_bruteforce.log": [("medium", VPN, "192.168.0.1")],
    "logs/mikrotik_port_scan.log": [("medium", PORTS, "36.97.161.219")],
    "city/zoneminder_cctv_bruteforce.log": [
        ("medium", VIDEO, "2222:3333:444a:a300:3c65:1111:1111:1111"),
        ("medium", VIDEO_NAMES, "2222:3333:444a:a300:3c65:1111:1111:1112"),
    ],
    "logs/suricata_eve_alerts.log": [
        ("high", "Suricata alert of highest severity", "1.2.3.4"),
        ("medium", "Several Suricata alerts of one address", "2.2.3.4"),
    ],
    "network/portscan_vertical_zeek_conn.log": [("medium", PORTS, "192.168.1.9")],
    "network/syn_scan.pcap": [("medium", PORTS, "172.16.0.8")],
    "network/ssh_bruteforce_nmap.pcap": [("medium", LOGINS, "147.32.80.40")],
    "network/ftp_bruteforce.pcap": [
        ("medium", "FTP passwords guessed from one address", "192.168.56.1"),
        ("medium", LOGINS, "192.168.56.1"),
    ],
    "network/dns_tunnel_iodine.pcap": [("high", "Data hidden in names (DNS tunnel)", "10.0.2.30")],
    "network/ctu_win7_zeek_conn_labelled.log": [("medium", CALLS, "192.168.1.107")],
    "city/iot_botnet_telnet_scan.pcap": [
        ("high", "Device tries telnet at many addresses", "192.168.2.16"),
        ("medium", HOSTS, "192.168.2.16"),
        ("medium", HOSTS, "192.168.2.16"),
    ],
    "network/web_sql_injection.pcap": [("high", "SQL injection in a web request", "172.16.0.1")],
    "network/log4shell.pcap": [
        ("high", "Java program fetches code over HTTP", "172.16.238.10"),
        ("high", "Log4Shell string in a web request", "172.16.238.1"),
    ],
    "city/mqtt_cleartext_credentials.pcap": [("low", "MQTT password sent in clear", "::1")],
    "city/mqtt_publish_without_connect.pcap": [("low", "MQTT session without CONNECT", "::1")],
    "city/coap_mqtt.pcap": [
        ("low", "MQTT session without CONNECT", "192.168.56.1"),
        ("low", "MQTT session without CONNECT", "192.168.56.101"),
    ],
    "energy/iec61850_mms_and_goose.pcap": [
        ("low", "Device answers to a well-known community", "172.16.0.101"),
        ("low", "Device answers to a well-known community", "172.16.0.101"),
    ],
    "network/arp_scan.pcap": [("medium", "Whole network asked for by ARP", "192.168.1.247")],
    "port/profinet_dcp_change_ip.pcap": [
        ("medium", "Name or address of a PROFINET device set", "")
    ],
    "city/osdp_reader_poll_cycle.osdpcap": [("low", "Card reader loses its power", "")],
    "city/osdp_reader_power_fail.osdpcap": [("low", "Card reader loses its power", "")],
}
"""Each attack file of a format that is read, and all that the rules say of it."""

TECHNIQUES: dict[str, set[str]] = {
    "transport/can_crysys_attack_speed_const.log": {"T1692.002"},
    "city/bacnet_all_services.pcap": {"T0814", "T0816"},
    "city/bacnet_quickdraw_recon.pcap": {"T0846"},
    "energy/triton_tristation_malware.pcap": {"T0843", "T0845", "T0858", "T0889"},
    "energy/opcua_open62541_session.pcap": {"T0842"},
    "port/omron_fins.pcap": {"T0816", "T0843", "T0858", "T0889"},
    "port/atg_fuel_tank_gauge.pcap": {"T0888"},
    "energy/dnp3_quickdraw_attacks_1.pcap": {"T0816", "T0878", "T0881", "T1692.001"},
    "energy/dnp3_request_flood.pcap": {"T0814", "T1692.001"},
    "energy/modbus_quickdraw_attacks_1.pcap": {"T0814", "T0816", "T0872"},
    "energy/modbus_quickdraw_attacks_2.pcap": {"T0888"},
    "energy/modbus_umas_modicon_attacks.pcap": {"T0843", "T0845", "T0889"},
    "energy/s7comm_snap7_read_write_stop_download.pcap": {
        *("T0843", "T0845", "T0858", "T0816", "T0889"),
    },
    "port/enip_quickdraw_reboot_restart.pcap": {"T0843", "T0858", "T0889"},
    "logs/sshd_bruteforce.log": {"T1110.001", "T1110.003"},
    "logs/iptables_port_scan.log": {"T1046"},
    "logs/fortigate_vpn_bruteforce.log": {"T1110.001"},
    "logs/mikrotik_port_scan.log": {"T1046"},
    "city/zoneminder_cctv_bruteforce.log": {"T1110.001", "T1110.003"},
    "logs/suricata_eve_alerts.log": {"T1190", "T1595.002"},
    "network/portscan_vertical_zeek_conn.log": {"T1046"},
    "network/syn_scan.pcap": {"T1046"},
    "network/ssh_bruteforce_nmap.pcap": {"T1110"},
    "network/ftp_bruteforce.pcap": {"T1110", "T1110.001"},
    "network/dns_tunnel_iodine.pcap": {"T1071.004", "T1572"},
    "network/ctu_win7_zeek_conn_labelled.log": {"T1571"},
    "city/iot_botnet_telnet_scan.pcap": {"T1694.001", "T0846.001"},
    "network/web_sql_injection.pcap": {"T1190"},
    "network/log4shell.pcap": {"T1105", "T1190"},
    "city/mqtt_cleartext_credentials.pcap": {"T1040"},
    "city/mqtt_publish_without_connect.pcap": {"T0830"},
    "city/coap_mqtt.pcap": {"T0830"},
    "energy/iec61850_mms_and_goose.pcap": {"T1694.001"},
    "network/arp_scan.pcap": {"T1018", "T1046"},
    "port/profinet_dcp_change_ip.pcap": {"T0814", "T0836"},
    "city/osdp_reader_poll_cycle.osdpcap": {"T0814"},
    "city/osdp_reader_power_fail.osdpcap": {"T0814"},
}

BENIGN: dict[str, int] = {
    "energy/dlms_meter.pcap": 89,
    "energy/dnp3_icsnpp_example.pcap": 743,
    "energy/c37118_pmu_tcp.pcap": 257,
    "transport/genisys_rail_signalling.pcap": 689,
    "energy/modbus_plant1_normal.pcap": 15_992,
    "energy/modbus_icsnpp_example.pcap": 50,
    "energy/iec104_wattson_normal.pcapng": 736,
    "energy/iec104_control_commands.pcap": 78,
    "port/enip_cip_icsnpp_example.pcap": 329,
    "transport/snmp_v2c_requests.pcap": 12,
    "transport/siri_et_bane_nor_rail.xml": 126,
    "transport/can_crysys_benign.log": 551,
    "transport/can_candump_icsim.log": 164,
    "transport/gtfsrt_nyct_subway_ace_1707397157.pb": 320,
    "transport/gtfsrt_nyct_subway_ace_1707397217.pb": 314,
    "transport/gtfsrt_nyct_subway_with_alert.pb": 160,
    "transport/gtfsrt_vehicle_positions_bullrunner.pb": 10,
    "transport/gtfsrt_wmata_bus_2345.pb": 324,
    "city/river_usgs_instantaneous_values.json": 20,
    "city/rtsp_camera_streams.pcap": 78,
    "city/mqtt_zeek.pcap": 22,
    "city/unifi_video_access_events.json": 1351,
    "port/ais_dma_stream.txt": 8551,
    "port/ais_gpsd.log": 1500,
    "port/ais_pyais_mixed_types.txt": 898,
    "port/gnss_ublox_nmea.log": 1414,
    "port/nmea2000_candump.log": 4329,
    "energy/hartip_session.pcap": 101,
    "energy/iec61850_goose_sample.pcap": 277,
    "energy/iec61850_sampled_values.pcap": 5,
    "transport/trdp_train_bus.pcapng": 3,
    "city/knx_ip.pcapng": 2,
    "network/netflow9_capture.pcap": 11,
    "network/netflow5_softflowd.dat": 30,
    "network/netflow9_softflowd.dat": 8,
    "network/ipfix_softflowd.dat": 14,
    "logs/unifi_cef.log": 3,
}
"""Files without an attack, and how many events they give."""

BUDGET = {
    "port/omron_fins.pcap": "nearly every command there is, stop and clearing programs included"
}
"""Files that the README calls no attack and that are told above low, and why that is right."""
SILENT = {
    "energy/iec104_wattson_replay_9clones.pcapng": "a copy of a value is sent as the value is",
    "logs/sshd_fail2ban_labelled.log": "single lines of many hosts and years: nobody tries twice",
    "energy/water_loop_valve_anomaly_labelled.csv": "a table, which no collector reads",
    "transport/road_speed_7578.csv": "a table, which no collector reads",
    "city/ambient_temperature_failure.csv": "a table, which no collector reads",
    "port/ais_spoofed_mmsi_2016.txt": "a list for the placeholder of a rule",
}
"""Files with an attack, or labelled, of which the rules have nothing to say, and why."""
ROOMS = ("Energy", "Port and maritime", "Transport", "City systems", "Network", "Logs")


def listed(data: Path) -> dict[str, bool]:
    """Each capture and log that the README lists, by its name alone, and whether it is benign."""
    found, room = {}, ""
    for line in (data / "README.md").read_text(encoding="utf-8").splitlines():
        room = line.removeprefix("## ") if line.startswith("## ") else room
        name = re.match(r"\| `([^`]+)`", line)
        if name and room in ROOMS:
            found[name[1]] = line.split(" | ")[4].startswith("no")
    return found


def test_every_capture_and_log_of_the_data_has_its_expectation(data: Path) -> None:
    told_of = {Path(name).name for name in (*ATTACKS, *BENIGN, *SILENT)}

    assert set(listed(data)) == told_of


def test_no_file_without_an_attack_is_told_above_low(data: Path) -> None:
    benign = {name for name, is_benign in listed(data).items() if is_benign}
    loud = {
        name
        for name, rows in ATTACKS.items()
        if any(severity_rank(one[0]) > severity_rank("low") for one in rows)
    }

    assert {name for name in loud if Path(name).name in benign} == set(BUDGET)


def test_few_findings_tell_an_attack() -> None:
    most = {name: Counter(culprit for _, _, culprit in rows) for name, rows in ATTACKS.items()}

    assert {name: many for name, many in most.items() if max(many.values()) > 4} == {}


def test_the_labelled_lines_of_fail2ban_are_no_attack_together(data: Path, tmp_path: Path) -> None:
    rows, events = findings(data / "logs/sshd_fail2ban_labelled.log", tmp_path, models=False)

    assert events > 150
    assert told(rows) == []


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_file_gives_what_a_person_would_expect(
    name: str, data: Path, tmp_path: Path
) -> None:
    rows, _ = findings(data / name, tmp_path, models=False)

    assert told(rows) == ATTACKS[name]
    assert {one for row in rows for one in row["threat.technique.id"]} == TECHNIQUES[name]


@pytest.mark.parametrize("name", BENIGN)
def test_a_benign_file_gives_all_its_events_and_nothing_above_low(
    name: str, data: Path, tmp_path: Path
) -> None:
    rows, events = findings(data / name, tmp_path, models=True)

    assert events == BENIGN[name]
    assert [one for one in told(rows) if severity_rank(one[0]) > severity_rank("low")] == []
    assert told([row for row in rows if row["cw.analytic.type"] != "model"]) == []


def test_an_ordinary_substation_gives_nothing_above_low(data: Path, tmp_path: Path) -> None:
    rows, _ = findings(data / "energy/iec61850_mms_and_goose.pcap", tmp_path, models=True)

    assert [one for one in told(rows) if severity_rank(one[0]) > severity_rank("low")] == []


@pytest.mark.parametrize(
    ("name", "lists", "expected"),
    [
        (
            "energy/modbus_quickdraw_attacks_1.pcap",
            {"ot_writers": ["10.0.0.57"]},
            [
                ("high", SILENCED, "10.0.0.57"),
                ("high", "Modbus write, host is no writer", "10.0.0.9"),
                ("low", CLEARED, "10.0.0.57"),
            ],
        ),
        ("energy/modbus_plant1_normal.pcap", {"ot_writers": ["141.81.0.10"]}, []),
        (
            "energy/modbus_umas_modicon_attacks.pcap",
            {"engineering_hosts": ["192.168.63.10"]},
            [
                ("high", "Controller program transferred (UMAS)", "192.168.63.100"),
                ("high", "Controller reserved by a stranger (UMAS)", "192.168.63.100"),
            ],
        ),
        (
            "energy/dnp3_quickdraw_attacks_1.pcap",
            {"ot_writers": ["10.0.0.8"]},
            [
                ("high", STOPPED, "10.0.0.8"),
                ("high", STOPPED, "10.0.0.9"),
                ("high", ALL_COMMANDED, "10.0.0.8"),
                ("high", ALL_COMMANDED, "10.0.0.9"),
                ("high", "DNP3 command, host is no writer", "10.0.0.9"),
                ("high", RESTARTED, "10.0.0.8"),
                ("high", RESTARTED, "10.0.0.9"),
                ("low", UNREPORTED, "10.0.0.8"),
                ("low", UNREPORTED, "10.0.0.9"),
            ],
        ),
        ("energy/dnp3_icsnpp_example.pcap", {"ot_writers": ["10.10.20.5"]}, []),
        ("energy/c37118_pmu_tcp.pcap", {"pmu_receivers": ["192.168.0.20"]}, []),
        (
            "energy/c37118_pmu_tcp.pcap",
            {"pmu_receivers": ["192.168.0.21"]},
            [("high", "Phasor stream turned off by a stranger", "192.168.0.20")],
        ),
        (
            "port/ais_dma_stream.txt",
            {"ais_forged_numbers": ["205110000", "999999999"]},
            [("low", "Ship number known as forged", "")],
        ),
        ("energy/iec104_control_commands.pcap", {"iec104_masters": ["10.0.0.10"]}, []),
        ("energy/iec104_wattson_normal.pcapng", {"iec104_masters": ["10.0.104.2"]}, []),
        (
            "energy/iec104_control_commands.pcap",
            {"iec104_masters": ["10.0.0.11"]},
            [
                ("critical", "IEC 104 interrogated, then commanded", "10.0.0.10"),
                ("high", "IEC 104 command, host is no master", "10.0.0.10"),
                ("medium", "IEC 104 interrogation, host is no master", "10.0.0.10"),
            ],
        ),
        (
            "energy/modbus_quickdraw_attacks_2.pcap",
            {"own_nets": ["166.161.16.0/24"]},
            [
                ("high", "Controller reached from outside", "192.168.66.235"),
                ("high", "Modbus functions of a controller scanned", "192.168.66.235"),
            ],
        ),
    ],
)
def test_who_may_do_what_decides_once_the_site_says_it(
    name: str,
    lists: dict[str, list[str]],
    expected: list[tuple[str, str, str]],
    data: Path,
    tmp_path: Path,
) -> None:
    rows, _ = findings(data / name, tmp_path, lists=lists, models=False)

    assert told(rows) == expected


def test_a_rule_that_needs_a_list_is_shown_as_not_evaluated(tmp_path: Path) -> None:
    node = assembly.node_of(Settings(state_dir=str(tmp_path)), sources=[], event_time=True)

    states = {one.title: (one.state, one.reason) for one in node.rule_states()}
    node.close()

    assert states["Modbus write, host is no writer"] == ("not evaluated", "needs %ot_writers%")
    assert states["IEC 104 interrogated, then commanded"][0] == "not evaluated"
    assert states[SILENCED] == ("on", "")


# ---- CrowdSec's cases of our formats

SUITE = "logs/suite_crowdsec_hub_tests.tar.gz"

CROWDSEC: dict[str, list[tuple[str, str, str]]] = {
    "iptables-scan-multi-port": [
        ("medium", PORTS, "127.0.0.2"),
        ("medium", PORTS, "62.34.17.168"),
    ],
    "suricata-eve-detect": [
        ("high", "Suricata alert of highest severity", "1.2.3.4"),
        ("medium", "Several Suricata alerts of one address", "2.2.3.4"),
    ],
    "fortinet-vpn-bf": [("medium", VPN, "192.168.0.1")],
    "mikrotik-scan-multi_ports": [("medium", PORTS, "36.97.161.219")],
    "mikrotik-bf": [("medium", DEVICE, "10.10.0.35")],
    "windows-bf": [("medium", WINDOWS, "192.168.9.212")],
    "pf-scan-multi-port": [("medium", PORTS, "10.0.2.2")],
    "pfsense-gui-auth": [("medium", DEVICE, "10.0.0.1")],
    "opnsense-gui-auth": [("medium", DEVICE, "1.2.3.4")],
    "zoneminder-bf": [
        ("medium", VIDEO, "2222:3333:444a:a300:3c65:1111:1111:1111"),
        ("medium", VIDEO_NAMES, "2222:3333:444a:a300:3c65:1111:1111:1112"),
    ],
    "ssh-bf": [("medium", GUESSED, "35.188.49.176"), ("medium", NAMES, "35.188.49.176")],
    "ssh-slow-bf": [("medium", GUESSED, "103.100.210.198")],
    "ssh-time-based-bf": [("medium", NAMES, "10.0.0.101")],
    "opnsense-sshd": [("medium", GUESSED, "1.2.3.4")],
    "sshd-invalid-bf": [("low", BROKEN, "179.43.183.98")],
    "sshd_banner_exchange": [("low", BROKEN, "59.91.122.57")],
    "sshd-bad-keyexchange-bf": [
        ("low", BROKEN, "123.123.123.123"),
        ("low", BROKEN, "123.57.135.134"),
        ("low", BROKEN, "206.189.59.169"),
    ],
    "ssh-timeout": [],
    "sshd-refused-conn": [],
    "ssh-generic-test": [],
    "endlessh-syslogs": [],
}
"""Cases with logs that our collectors read, and all that our rules say of them."""

DIFFERENT = {
    "ssh-time-based-bf": "one finding of the address, where CrowdSec raises two of the same lines",
    "ssh-timeout": "four broken connections are too few: health checks make as many",
    "sshd-refused-conn": "one connection that an access list refused is no finding",
    "ssh-generic-test": "a user name that CrowdSec made up to test itself",
    "endlessh-syslogs": "a tarpit that no collector of ours reads",
}
"""Where the number of alerts differs from CrowdSec's, and why."""

_IP = re.compile(r'Sources\["[^"]+"\]\.IP == "([^"]+)"')
_LENGTH = re.compile(r"len\(results\) == (\d+)")


@pytest.mark.parametrize("case", CROWDSEC)
def test_a_crowdsec_case_has_as_many_alerts_of_the_same_sources(
    case: str, data: Path, tmp_path: Path
) -> None:
    name = next(
        one for one in members(data / SUITE) if re.search(rf"(?:^|/){case}/[^/]*\.log$", one)
    )
    log = tmp_path / Path(name).name
    log.write_text(member(data / SUITE, name))
    wanted = member(data / SUITE, f"{case}/scenario.assert")

    found = told(findings(log, tmp_path / "state", models=False)[0])

    assert found == CROWDSEC[case]
    same_sources = {source for _, _, source in found} == set(_IP.findall(wanted))
    lengths = _LENGTH.search(wanted)
    assert lengths is not None
    agrees = same_sources and len(found) == int(lengths[1])
    assert agrees is (case not in DIFFERENT)


def test_the_command_leaves_with_three_only_if_it_was_asked_to(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from siem.cli import run

    file = str(data / "logs/iptables_port_scan.log")

    assert run(["ingest", "-q", file, "-o", "ndjson"]) == 0
    lines: list[dict[str, Any]] = [
        msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()
    ]
    assert {line["source.ip"] for line in lines} == {"127.0.0.2", "62.34.17.168"}
    assert run(["ingest", "-q", file, "-o", "ndjson", "--fail-on", "medium"]) == 3
    assert run(["ingest", "-q", file, "-o", "ndjson", "--fail-on", "high"]) == 0
