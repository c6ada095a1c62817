"""What the decoders of ordinary network services claim in every capture, and nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from collectors.packets.decoders.dhcp import Dhcp
from collectors.packets.decoders.dns import Dns
from collectors.packets.decoders.ftp import Ftp
from collectors.packets.decoders.ntp import Ntp
from collectors.packets.decoders.snmp import Snmp
from collectors.packets.decoders.ssh import Ssh
from collectors.packets.decoders.telnet import Telnet
from collectors.packets.decoders.tls import Tls
from tests.collectors.packets.decoders.captured import messages

DECODERS = (Dhcp, Dns, Ftp, Ntp, Snmp, Ssh, Telnet, Tls)

CLAIMED: dict[str, dict[str, int]] = {
    "iot_botnet_telnet_scan.pcap": {"mdns": 87, "dhcp": 103, "dns": 66, "ntp": 136, "ssh": 8},
    "iec61850_mms_and_goose.pcap": {"ntp": 52, "snmp": 14},
    "opcua_open62541_session.pcap": {"dns": 4, "ntp": 2},
    "dns_tunnel_iodine.pcap": {"dns": 434},
    "ftp_bruteforce.pcap": {"ftp": 60},
    "ssh_bruteforce_nmap.pcap": {"ssh": 207},
    "snmp_v2c_requests.pcap": {"snmp": 8},
}
"""Messages by protocol, as tshark counts them too; in any other capture there are none."""


@pytest.mark.slow
def test_no_other_protocol_is_claimed_and_nothing_is_malformed(data: Path) -> None:
    for capture in sorted(data.rglob("*.pcap*")):
        found = messages(capture, *DECODERS)

        counts = Counter(fields["network.protocol"] for fields in found)
        assert counts == CLAIMED.get(capture.name, {}), capture.name
        assert not any("event.kind" in fields for fields in found), capture.name
