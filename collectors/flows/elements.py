"""Information elements: names and types beyond netflume's, and the fields where they go.

References:
    IANA, "IP Flow Information Export (IPFIX) Entities"; Cisco ASA NetFlow Implementation Guide.
"""

from __future__ import annotations

from typing import Any

from collectors.values import Table, count, lower, mac, port, text, word

ELEMENTS = {
    "ie54": ("fragment_id", "uint"),
    "ie88": ("fragment_offset", "uint"),
    "ie90": ("mpls_vpn_rd", "hex"),
    "ie94": ("application_description", "string"),
    "ie95": ("application_id", "hex"),
    "ie96": ("application_name", "string"),
    "ie98": ("post_dscp", "uint"),
    "ie130": ("exporter_address", "ipv4"),
    "ie131": ("exporter_address", "ipv6"),
    "ie143": ("metering_process_id", "uint"),
    "ie144": ("exporting_process_id", "uint"),
    "ie147": ("wlan_ssid", "string"),
    "ie158": ("flow_start_delta_us", "uint"),
    "ie159": ("flow_end_delta_us", "uint"),
    "ie161": ("flow_duration_ms", "uint"),
    "ie195": ("dscp", "uint"),
    "ie196": ("precedence", "uint"),
    "ie230": ("nat_event", "uint"),
    "ie231": ("initiator_octets", "uint"),
    "ie232": ("responder_octets", "uint"),
    "ie233": ("firewall_event", "uint"),
    "ie236": ("vrf_name", "string"),
    "ie239": ("biflow_direction", "uint"),
    "ie252": ("in_physical_if", "uint"),
    "ie253": ("out_physical_if", "uint"),
    "ie281": ("post_nat_src_addr", "ipv6"),
    "ie282": ("post_nat_dst_addr", "ipv6"),
    "ie298": ("initiator_packets", "uint"),
    "ie299": ("responder_packets", "uint"),
    "ie335": ("selector_name", "string"),
    "ie365": ("station_mac", "mac"),
    "ie366": ("station_address", "ipv4"),
    "ie367": ("access_point_mac", "mac"),
    "ie371": ("user_name", "string"),
    "ie459": ("http_method", "string"),
    "ie460": ("http_host", "string"),
    "ie461": ("http_target", "string"),
    "ie468": ("http_user_agent", "string"),
    "ie33002": ("firewall_event_more", "uint"),
    "ie40000": ("user_name", "string"),
    "ie40001": ("post_nat_src_addr", "ipv4"),
    "ie40002": ("post_nat_dst_addr", "ipv4"),
    "ie40003": ("post_nat_src_port", "uint"),
    "ie40004": ("post_nat_dst_port", "uint"),
    "ie40005": ("firewall_event", "uint"),
    # Palo Alto Networks.
    "ie56701": ("application_name", "string"),
    "ie56702": ("user_name", "string"),
    # netflume 0.6 calls element 351 otherwise; the registry says layer2SegmentId.
    "srh_flags": ("layer2_segment_id", "uint"),
    # Enterprise 29305 is "the other direction of the element of this number" (RFC 5103).
    "e29305.1": ("reverse_octets", "uint"),
    "e29305.2": ("reverse_packets", "uint"),
    "e29305.6": ("reverse_tcp_flags", "uint"),
    "e29305.85": ("reverse_octets_total", "uint"),
    "e29305.86": ("reverse_packets_total", "uint"),
}
"""Name of netflume → our name, and how the bytes are read."""

SCOPES = {
    "octets": ("scope_system", "uint"),
    "packets": ("scope_interface", "uint"),
    "flows": ("scope_line_card", "uint"),
    "proto": ("scope_cache", "uint"),
    "tos": ("scope_template", "uint"),
}
"""NetFlow 9 numbers scopes from 1 again (RFC 3954, 6.1), which netflume reads as elements."""


def _named(value: Any) -> str | None:
    """A number that names something; zero names nothing."""
    return word(value) if value else None


def _as(value: Any) -> int | None:
    return count(value) or None


FIELDS: Table = {
    "src_port": ("source.port", port),
    "dst_port": ("destination.port", port),
    "src_mac": ("source.mac", mac),
    "dst_mac": ("destination.mac", mac),
    "post_dst_mac": ("destination.mac", mac),
    "src_as": ("source.as.number", _as),
    "dst_as": ("destination.as.number", _as),
    "octets": ("source.bytes", count),
    "octets_total": ("source.bytes", count),
    "initiator_octets": ("source.bytes", count),
    "packets": ("source.packets", count),
    "packets_total": ("source.packets", count),
    "initiator_packets": ("source.packets", count),
    "reverse_octets": ("destination.bytes", count),
    "reverse_octets_total": ("destination.bytes", count),
    "responder_octets": ("destination.bytes", count),
    "reverse_packets": ("destination.packets", count),
    "reverse_packets_total": ("destination.packets", count),
    "responder_packets": ("destination.packets", count),
    "vlan": ("network.vlan.id", _named),
    "dot1q_vlan": ("network.vlan.id", _named),
    "application_name": ("network.application", lower),
    "user_name": ("user.name", text),
    "http_method": ("http.request.method", text),
    "http_host": ("url.domain", text),
    "http_target": ("url.original", text),
    "http_user_agent": ("user_agent.original", text),
    "if_name": ("observer.ingress.interface.name", text),
}
"""What has a field of its own; the rest is `cw.vendor`."""

REASONS = {1: "idle", 2: "active", 3: "end", 4: "forced", 5: "evicted"}
"""flowEndReason (element 136), in the words of our own meter where it has one."""
FIREWALL = {
    1: "flow_begun",
    2: "flow_ended",
    3: "flow_denied",
    5: "flow_continues",
}
"""firewallEvent (element 233)."""
