"""The NetFlow suite of logstash-codec-netflow: its names and ours, and where it is wrong."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from collectors.packets.flows import TRANSPORTS

FIELDS = {
    "source.ip": ("ipv4_src_addr", "ipv6_src_addr", "sourceIPv4Address", "sourceIPv6Address"),
    "destination.ip": (
        *("ipv4_dst_addr", "ipv6_dst_addr"),
        *("destinationIPv4Address", "destinationIPv6Address"),
    ),
    "source.port": ("l4_src_port", "sourceTransportPort"),
    "destination.port": ("l4_dst_port", "destinationTransportPort"),
    "source.bytes": ("in_bytes", "octetDeltaCount", "octetTotalCount", "fwd_flow_delta_bytes"),
    "source.packets": ("in_pkts", "packetDeltaCount", "packetTotalCount"),
    "destination.bytes": ("rev_flow_delta_bytes", "reverseOctetTotalCount"),
    "destination.packets": ("reversePacketTotalCount",),
    "source.mac": ("in_src_mac", "sourceMacAddress"),
    "destination.mac": ("in_dst_mac",),
    "event.start": (
        *("first_switched", "flowStartMilliseconds", "flowStartSeconds", "flow_start_msec"),
        "flowStartMicroseconds",
    ),
    "event.end": ("last_switched", "flowEndMilliseconds", "flowEndSeconds", "flowEndMicroseconds"),
    "network.vlan.id": ("src_vlan", "vlanId"),
    "network.application": ("app_id", "application_name"),
    "user.name": ("user_id",),
}
"""Our field → names of the suite; the first that an event has counts."""

VENDOR = {
    "version": "version",
    "tcp_flags": "tcp_flags",
    "tcpControlBits": "tcp_flags",
    "src_tos": "tos",
    "ipClassOfService": "tos",
    "input_snmp": "in_if",
    "ingressInterface": "in_if",
    "output_snmp": "out_if",
    "egressInterface": "out_if",
    "direction": "direction",
    "flowDirection": "direction",
    "src_mask": "src_mask",
    "dst_mask": "dst_mask",
    "ipv4_next_hop": "next_hop",
    "ipNextHopIPv4Address": "next_hop",
    "conn_id": "flow_id",
    "flowId": "flow_id",
    "fw_event": "firewall_event",
    "firewallEvent": "firewall_event",
    "xlate_src_addr_ipv4": "post_nat_src_addr",
    "xlate_dst_addr_ipv4": "post_nat_dst_addr",
    "xlate_src_port": "post_nat_src_port",
    "xlate_dst_port": "post_nat_dst_port",
    "ip_protocol_version": "ip_version",
    "ipVersion": "ip_version",
    "ingressPhysicalInterface": "in_physical_if",
    "egressPhysicalInterface": "out_physical_if",
    "tcpOptions": "tcp_options",
    "ethernetType": "ethertype",
    "ingressVRFID": "ingress_vrf",
    "egressVRFID": "egress_vrf",
    "flow_sampler_id": "sampler_id",
    "layer2SegmentId": "layer2_segment_id",
    "maximumTTL": "max_ttl",
    "flowDurationMilliseconds": "flow_duration_ms",
    "staMacAddress": "station_mac",
    "staIPv4Address": "station_address",
    "wtpMacAddress": "access_point_mac",
    "wlanSSID": "wlan_ssid",
    "scope_system": "scope_system",
    "total_flows_exp": "exported_flows",
    "total_pkts_exp": "exported_packets",
    "meteringProcessId": "metering_process_id",
    "exportingProcessId": "exporting_process_id",
    "systemInitTimeMilliseconds": "system_init_time_ms",
    "selectorAlgorithm": "selector_algorithm",
    "samplingPacketInterval": "sampling_packet_interval",
    "samplingPacketSpace": "sampling_packet_space",
    "application_description": "application_description",
    "VRFname": "vrf_name",
    "flows": "flows",
    "icmpTypeCodeIPv4": "icmp_type_code",
    "flowStartSysUpTime": "first_switched",
    "flowEndSysUpTime": "last_switched",
    "samplingInterval": "sampling_interval",
}
"""Name of the suite → ours in `cw.vendor`."""

OPTIONS = {"application_name": "application_name", "packetTotalCount": "packets_total"}
"""The same, in what an exporter says of itself."""

A_SECOND = "the suite forgets the borrow when it takes the uptime from the export time (ours)"
WRAPPED = "the suite takes a start before the first millisecond for one 49 days later (ours)"
MILLI = "the suite takes the milliseconds of the uptime for microseconds (ours)"


HELD = ("IPFIX Netscaler with variable length fields, missing templates",)
"""Cases in which the suite counts what we count otherwise."""


class Case(NamedTuple):
    """One case: messages in, events out."""

    name: str
    messages: list[bytes]
    count: int | None
    expected: list[Mapping[str, Any]]


def cases(archive: Path) -> list[Case]:
    """All cases of the archive."""
    with tarfile.open(archive) as tar:
        files = {
            one.name.removeprefix("./"): opened.read()
            for one in tar
            if one.isfile() and (opened := tar.extractfile(one)) is not None
        }
    found = []
    for case in json.loads(files["expected.json"]):
        messages = [files[name] for name in case["packets_in_order"]]
        expected = [one["netflow"] for one in case["expected_events"] if "netflow" in one]
        found.append(Case(case["case"], messages, case["expected_event_count"], expected))
    return found


def pairs(expected: Mapping[str, Any], fields: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, what the suite says and what we say, of everything that both can say."""
    found: list[tuple[str, Any, Any]] = []
    vendor = fields["cw.vendor"]
    is_icmp = "icmp_type" in vendor
    is_option = fields["event.action"] == "flow_options"
    for ours, theirs in FIELDS.items() if not is_option else ():
        name = next((one for one in theirs if one in expected), None)
        # Without a protocol (and for ICMP) a port is not one; zero names no VLAN.
        if name is None or (ours.endswith(".port") and is_icmp):
            continue
        value, said = expected[name], fields.get(ours)
        if ours == "network.vlan.id":
            value, said = value or None, said and int(said)
        elif ours.endswith(".mac"):
            value = value.upper().replace(":", "-")
        elif ours.startswith("event."):
            value = _time(value)
        found.append((ours, value, said))
    for name, ours in (VENDOR | OPTIONS if is_option else VENDOR).items():
        if name in expected:
            found.append((ours, expected[name], vendor.get(ours)))
    number = expected.get("protocol", expected.get("protocolIdentifier"))
    if number is not None:
        known = TRANSPORTS.get(number, str(number))
        found.append(("network.transport", known, fields.get("network.transport")))
    return found


def _time(value: str | int) -> datetime:
    if isinstance(value, str):
        return datetime.fromisoformat(value)
    return datetime.fromtimestamp(value / 1_000 if value > 1 << 32 else value, UTC)


def agrees(value: Any, said: Any) -> bool:
    """Equal, or the same time: the suite cuts milliseconds."""
    if isinstance(value, datetime) and isinstance(said, datetime):
        return abs(value - said) <= timedelta(milliseconds=1)
    return bool(value == said)


def reason(name: str, value: Any, said: Any) -> str:
    """Why they differ; empty if that is not known."""
    if isinstance(value, datetime) and isinstance(said, datetime):
        apart = value - said
        if abs(apart - timedelta(seconds=1)) <= timedelta(milliseconds=1):
            return A_SECOND
        if value.microsecond == 999_000 and value.replace(microsecond=0) - said.replace(
            microsecond=0
        ) == timedelta(seconds=1):
            return MILLI
        if abs(apart) > timedelta(days=49):
            return WRAPPED
    return ""
