# SPDX-License-Identifier: GPL-2.0-only
# SPDX-FileCopyrightText: cityward contributors
"""Dissects a capture with scapy: a program of its own, which nothing imports.

    python -I scapy_worker.py CAPTURE SKIP MOST

It prints one JSON object a line: `{"frame", "time", "layers": [{"name", "fields"}]}`, and at the
end `{"end": frames}`; it exits with 3 without scapy. Whoever starts it sets its limits. Scapy is
licensed under GPL-2.0-only, and so is this file, which is why it shares nothing with the rest.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from typing import Any

LAYERS = (
    *("layers.l2", "layers.inet", "layers.inet6", "layers.dns", "layers.dhcp", "layers.ntp"),
    *("layers.snmp", "contrib.modbus"),
)
"""What it knows; all of scapy would take seconds to begin."""
LAYERS_MAX = 64
FIELDS_MAX = 128
VALUE_MAX = 200
NO_SCAPY = 3


def said(value: Any) -> Any:
    """A value of a field as JSON has it."""
    if isinstance(value, bool | int | float) and abs(value) < 2**53:
        return value
    if isinstance(value, bytes):
        return value[: VALUE_MAX // 2].hex()
    return str(value)[:VALUE_MAX]


def layers_of(packet: Any) -> list[dict[str, Any]]:
    """Layers from the outside in, at most so many."""
    found: list[dict[str, Any]] = []
    while packet and len(found) < LAYERS_MAX:
        fields = list(packet.fields.items())[:FIELDS_MAX]
        found.append(
            {"name": packet.name[:60], "fields": {name: said(one) for name, one in fields}}
        )
        packet = packet.payload
    return found


def tell(what: dict[str, Any]) -> None:
    """Print a line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main(capture: str, skip: int, most: int) -> int:
    """Dissect the frames behind `skip`, up to `most`."""
    try:
        from scapy import config
        from scapy.utils import RawPcapReader

        for name in LAYERS:  # their import teaches it to it
            importlib.import_module(f"scapy.{name}")
    except ImportError:
        return NO_SCAPY
    reader = RawPcapReader(capture)
    link = config.conf.l2types.num2layer.get(reader.linktype, config.conf.raw_layer)
    frame = 0
    for frame, (data, meta) in enumerate(itertools.islice(reader, most), 1):
        if frame <= skip:
            continue
        time_s = meta.sec + meta.usec / (1e9 if getattr(reader, "nano", False) else 1e6)
        try:
            tell({"frame": frame, "time": time_s, "layers": layers_of(link(data))})
        except Exception as error:  # whatever a dissector does with hostile bytes
            tell({"frame": frame, "time": time_s, "fault": type(error).__name__})
    tell({"end": frame})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
