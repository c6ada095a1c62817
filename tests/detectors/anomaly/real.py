"""Events of real captures, decoded by our own decoders from streams that tshark put in order."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cityward import Event, LogSource, Record, Session, utc

FIELDS = [
    "frame.number",
    "frame.time_epoch",
    "ip.src",
    "ip.dst",
    "tcp.srcport",
    "tcp.dstport",
    "tcp.stream",
    "tcp.payload",
]


def ot_events(path: Path, decoder: Any, port: int) -> list[Event]:
    """Every message of a capture, by one decoder, in the order of its frames."""
    return list(_events(path, decoder, port))


def _events(path: Path, decoder: Any, port: int) -> Iterator[Event]:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is missing: apt-get install tshark")
    wanted = [part for name in FIELDS for part in ("-e", name)]
    command = ["tshark", "-r", str(path), "-T", "fields", "-E", "separator=|", *wanted]
    again = "!tcp.analysis.retransmission && !tcp.analysis.spurious_retransmission"
    ran = subprocess.run(
        [*command, "-Y", f"tcp.len > 0 && tcp.port == {port} && {again}"],
        capture_output=True,
        text=True,
        check=True,
    )
    logsource = LogSource(category="ot_protocol", service=decoder.cityward_spec.name)
    sessions: dict[str, Any] = {}
    waiting: dict[tuple[str, bool], bytes] = {}
    for line in ran.stdout.splitlines():
        number, time, src, dst, sport, dport, stream, payload = line.split("|")
        from_client = dport == str(port)
        if stream not in sessions:
            client, server = (
                ((src, sport), (dst, dport)) if from_client else ((dst, dport), (src, sport))
            )
            sessions[stream] = decoder(_session(client, server))
        data = waiting.pop((stream, from_client), b"") + bytes.fromhex(payload)
        used, messages = sessions[stream].feed(data, from_client, float(time), int(number))
        waiting[stream, from_client] = data[used:]
        when = utc(float(time))
        for at, fields in enumerate(messages):
            yield Event(when, logsource, fields, Record(b"", path.name, int(number), when), at)


def _session(client: tuple[str, str], server: tuple[str, str]) -> Session:
    base = {
        "source.ip": client[0],
        "source.port": int(client[1]),
        "destination.ip": server[0],
        "destination.port": int(server[1]),
        "network.transport": "tcp",
    }
    return Session(base, ":".join(client), ":".join(server))
