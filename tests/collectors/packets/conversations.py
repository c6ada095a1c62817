"""Conversations of every decoder: out of real captures, or made by the decoder's own tests."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cityward import plugin
from cityward.plugin import Transport
from collectors.packets.walk import SYN, SYN_ACK, TCP, UDP, walk
from tests.collectors.flows import test_sflow as sflow
from tests.collectors.packets.decoders import (
    test_coap,
    test_dnp3,
    test_hartip,
    test_http,
    test_mqtt,
    test_opcua,
    test_rtsp,
    test_s7comm,
    test_ssh,
    test_tank_gauge,
    test_telnet,
    test_tls,
)
from tests.collectors.packets.wire import chunks

Piece = tuple[bool, bytes]
"""From the client or not, and bytes."""

CAPTURES: dict[str, tuple[str, ...]] = {
    "arp": ("network/arp_scan.pcap",),
    "bacnet": ("city/bacnet_quickdraw_recon.pcap", "city/bacnet_all_services.pcap"),
    "c37118": ("energy/c37118_pmu_tcp.pcap",),
    "cip_io": ("port/enip_cip_icsnpp_example.pcap",),
    "coap": ("city/coap_mqtt.pcap",),
    "dhcp": ("city/iot_botnet_telnet_scan.pcap",),
    "dlms": ("energy/dlms_meter.pcap",),
    "dnp3": ("energy/dnp3_icsnpp_example.pcap", "energy/dnp3_quickdraw_attacks_1.pcap"),
    "dns": ("network/dns_tunnel_iodine.pcap",),
    "enip": ("port/enip_cip_icsnpp_example.pcap", "port/enip_quickdraw_reboot_restart.pcap"),
    "fins": ("port/omron_fins.pcap",),
    "ftp": ("network/ftp_bruteforce.pcap",),
    "genisys": ("transport/genisys_rail_signalling.pcap",),
    "goose": ("energy/iec61850_goose_sample.pcap",),
    "hartip": ("energy/hartip_session.pcap",),
    "http": ("network/web_sql_injection.pcap", "network/log4shell.pcap"),
    "iec104": ("energy/iec104_control_commands.pcap", "energy/iec104_wattson_normal.pcapng"),
    "mms": ("energy/iec61850_mms_and_goose.pcap",),
    "modbus": (
        "energy/modbus_icsnpp_example.pcap",
        "energy/modbus_quickdraw_attacks_1.pcap",
        "energy/modbus_umas_modicon_attacks.pcap",
    ),
    "mqtt": ("city/mqtt_zeek.pcap", "city/mqtt_cleartext_credentials.pcap", "city/coap_mqtt.pcap"),
    "netflow": ("network/netflow9_capture.pcap",),
    "ntp": ("energy/iec61850_mms_and_goose.pcap",),
    "opcua": ("energy/opcua_open62541_session.pcap",),
    "profinet_dcp": ("port/profinet_dcp_change_ip.pcap",),
    "rtsp": ("city/rtsp_camera_streams.pcap",),
    "s7comm": ("energy/s7comm_snap7_read_write_stop_download.pcap",),
    "sampled_values": ("energy/iec61850_sampled_values.pcap",),
    "snmp": ("transport/snmp_v2c_requests.pcap",),
    "ssh": ("network/ssh_bruteforce_nmap.pcap",),
    "tank-gauge": ("port/atg_fuel_tank_gauge.pcap",),
    "tristation": ("energy/triton_tristation_malware.pcap",),
}
"""Decoder → captures in which it is spoken."""


def _hex(*pieces: tuple[bool, str]) -> list[Piece]:
    return [(who, bytes.fromhex(text)) for who, text in pieces]


MADE: dict[str, list[list[Piece]]] = {
    "coap": [test_coap.TALK],
    "dnp3": [test_dnp3.CONVERSATION],
    "hartip": [
        [
            (True, test_hartip.START),
            (False, test_hartip.STARTED),
            (True, test_hartip.READ),
            (False, test_hartip.ANSWER),
        ]
    ],
    "http": [test_http.WEB, test_http.CHARGER],
    "mqtt": [test_mqtt.TALK],
    "opcua": [
        [
            (True, test_opcua.HELLO),
            (False, test_opcua.ACK),
            (True, test_opcua.OPEN),
            (False, test_opcua.OPENED),
            (True, test_opcua.WRITE),
            (False, test_opcua.WRITTEN),
            (True, test_opcua.CLOSE),
        ]
    ],
    "rtsp": [test_rtsp.TALK],
    "s7comm_plus": [
        _hex(
            (True, test_s7comm.PLUS_CONNECT),
            (True, test_s7comm.PLUS_OPEN),
            (False, test_s7comm.PLUS_OPENED),
            (True, test_s7comm.PLUS_SET),
        )
    ],
    "sflow": [
        [
            (True, sflow.datagram(sflow.flow(sflow.sampled(sflow.SYN), sflow.SWITCH))),
            (True, sflow.datagram(sflow.counters(sflow.interface()), sequence=2)),
        ]
    ],
    "ssh": [[(False, test_ssh.BANNER), (True, b"SSH-2.0-libssh2_1.4\r\n")]],
    "tank-gauge": [
        [(True, test_tank_gauge.ASK), (False, test_tank_gauge.REPORT), (True, test_tank_gauge.SET)]
    ],
    "telnet": [test_telnet.WORM],
    "tls": list(test_tls.CASES.values()),
}
"""What no capture holds, or not everything of."""


class Talk(NamedTuple):
    """One conversation."""

    transport: Transport
    sport: int
    dport: int
    """The server's."""
    pieces: list[Piece]


class Heard(NamedTuple):
    """A payload of a capture."""

    transport: Transport
    key: tuple[Any, ...]
    """The same for both directions."""
    side: bool
    sport: int
    dport: int
    state: int
    seq: int
    data: bytes


@cache
def decoders() -> dict[str, Any]:
    return plugin.load("decoders")


def heard(capture: Path, packets: int) -> Iterator[Heard]:
    """The first payloads of a capture, and its SYNs."""
    for chunk in chunks(capture):
        w, starts = walk(chunk), chunk.columns.starts
        for row in range(min(len(chunk), packets)):
            kind, protocol = int(w.ethertype[row]), int(w.protocol[row])
            if kind:
                at, end = int(w.l4[row]), int(starts[row] + chunk.columns.caplen[row])
                sender = chunk.packet(row)[6:12]
                yield Heard("link", (kind, sender), True, kind, kind, 0, 0, chunk.data[at:end])
            elif protocol in (TCP, UDP):
                ends = int(w.sender[row]), int(w.receiver[row])
                at, size = int(w.payload[row]), int(w.length[row])
                yield Heard(
                    "tcp" if protocol == TCP else "udp",
                    (protocol, *sorted(ends)),
                    ends[0] > ends[1],
                    int(w.sport[row]),
                    int(w.dport[row]),
                    int(w.state[row]) & (SYN | SYN_ACK),
                    int(w.seq[row]),
                    bytes(chunk.data[at : at + size]),
                )
        return


def talks(capture: Path, packets: int) -> list[Talk]:
    """Conversations at the beginning of a capture; each ends where a segment is missing."""
    found: dict[tuple[Any, ...], Talk] = {}
    wanted: dict[tuple[Any, ...], int] = {}
    client: dict[tuple[Any, ...], bool] = {}
    broken: set[tuple[Any, ...]] = set()
    for one in heard(capture, packets):
        key = one.key
        if one.state:
            if (key, one.side) in wanted:
                broken.add(key)  # a second connection of the same ends
            client.setdefault(key, one.side == (one.state == SYN))
            wanted[key, one.side] = one.seq + 1 & 0xFFFF_FFFF
        if not one.data or key in broken:
            continue
        if one.transport == "tcp":
            seq = wanted.setdefault((key, one.side), one.seq)
            if one.seq != seq:
                if (one.seq - seq) & 0x8000_0000 == 0:
                    broken.add(key)
                continue
            wanted[key, one.side] = one.seq + len(one.data) & 0xFFFF_FFFF
        is_client = client.setdefault(key, _client_first(one) == one.side)
        if key not in found:
            ports = (one.sport, one.dport) if one.side == is_client else (one.dport, one.sport)
            found[key] = Talk(one.transport, *ports, [])
        found[key].pieces.append((one.side == is_client, one.data))
    return list(found.values())


def _client_first(one: Heard) -> bool:
    """Which side asked, where no SYN was seen: the one with the higher port."""
    return one.side if one.sport >= one.dport else not one.side


def of(name: str, data: Path | None, packets: int = 400) -> list[Talk]:
    """Conversations that a decoder recognises: of captures if there are any, and made ones."""
    made, spec = decoders()[name], decoders()[name].cityward_spec
    port = next(iter(spec.ports), 8443)
    found = [Talk(spec.transports[0], 40_000, port, pieces) for pieces in MADE.get(name, ())]
    for file in CAPTURES.get(name, ()) if data else ():
        assert data is not None
        for talk in talks(data / file, packets):
            fits = talk.transport in spec.transports
            if fits and any(made.recognises(piece) for _, piece in talk.pieces[:3]):
                found.append(talk._replace(dport=port))
    return found
