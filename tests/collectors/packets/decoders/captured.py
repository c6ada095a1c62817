"""Messages of a capture that some decoders read, through the packet collector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cityward import Session
from cityward.fields import faults
from collectors.packets.packets import Packets
from tests.collectors.packets.decoders.streams import session
from tests.collectors.packets.wire import chunks, collected


def messages(capture: Path, *decoders: Any) -> list[dict[str, Any]]:
    """Fields of every event that is no flow."""
    by_name = {decoder.cityward_spec.name: decoder for decoder in decoders}
    found = [
        dict(event.fields)
        for event in collected(Packets(by_name), chunks(capture))
        if event.logsource.category != "flow"
    ]
    for fields in found:
        assert faults(fields) == []
    return found


def datagrams(client: str = "10.0.0.1:40000", server: str = "10.0.0.2:53") -> Session:
    """A session over UDP."""
    made = session(client, server)
    made.base["network.transport"] = "udp"
    return made
