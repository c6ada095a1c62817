"""Dissects a capture with tshark by pyshark: a program of its own, which nothing imports.

It takes and prints what `scapy_worker.py` does; tshark is a process of its own below it, under the
same limits.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

LAYERS_MAX = 64
FIELDS_MAX = 128
VALUE_MAX = 200
NO_TSHARK = 3


def layers_of(packet: Any) -> list[dict[str, Any]]:
    """Layers from the outside in, at most so many."""
    found: list[dict[str, Any]] = []
    for layer in packet.layers[:LAYERS_MAX]:
        names = list(layer.field_names)[:FIELDS_MAX]
        fields = {name: str(layer.get(name))[:VALUE_MAX] for name in names}
        found.append({"name": layer.layer_name[:60], "fields": fields})
    return found


def tell(what: dict[str, Any]) -> None:
    """Print a line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main(name: str, skip: int, most: int) -> int:
    """Dissect the frames behind `skip`, up to `most`."""
    try:
        import pyshark
    except ImportError:
        return NO_TSHARK
    if shutil.which("tshark") is None:
        return NO_TSHARK
    frames = pyshark.FileCapture(
        name,
        keep_packets=False,
        use_ek=False,
        custom_parameters=["-n", "-Y", f"frame.number > {skip} && frame.number <= {most}"],
    )
    frame = skip
    for packet in frames:
        frame = int(packet.number)
        tell({"frame": frame, "time": float(packet.sniff_timestamp), "layers": layers_of(packet)})
    frames.close()
    tell({"end": frame})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
