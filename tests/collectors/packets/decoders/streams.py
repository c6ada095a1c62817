"""TCP payloads of a capture as tshark reassembles them, and a decoder fed with them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cityward import Session
from cityward.fields import faults
from tests.programs import PATIENCE_S


class Piece(NamedTuple):
    """Payload of one frame."""

    frame: int
    time_s: float
    stream: int
    source: str
    destination: str
    data: bytes


@cache
def pieces(capture: Path, port: int = 0, again: bool = False) -> tuple[Piece, ...]:
    """Payloads in order of arrival. `port`: the server's, 0 for any; `again`: also those that TCP
    would drop because it had them."""
    wanted = "tcp.len>0"
    if not again:
        wanted += " && !tcp.analysis.retransmission && !tcp.analysis.spurious_retransmission"
    if port:
        wanted += f" && tcp.port=={port}"
    names = "frame.number frame.time_epoch tcp.stream ip.src tcp.srcport ip.dst tcp.dstport"
    columns = [part for name in (*names.split(), "tcp.payload") for part in ("-e", name)]
    said = subprocess.run(
        ["tshark", "-r", str(capture), "-Y", wanted, "-T", "fields", *columns],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    ).stdout
    return tuple(_piece(line.split("\t")) for line in said.splitlines())


def _piece(cells: list[str]) -> Piece:
    frame, time, stream, source, source_port, destination, destination_port, payload = cells
    # The inner address of a tunnel comes last.
    sender, receiver = (
        f"{address.split(',')[-1]}:{number}"
        for address, number in ((source, source_port), (destination, destination_port))
    )
    data = bytes.fromhex(payload)
    return Piece(int(frame), float(time), int(stream), sender, receiver, data)


def session(client: str = "10.0.0.1:40000", server: str = "10.0.0.2:502") -> Session:
    base: dict[str, Any] = {"network.transport": "tcp"}
    for side, end in (("source", client), ("destination", server)):
        address, _, port = end.rpartition(":")
        base |= {f"{side}.ip": address, f"{side}.port": int(port)}
    return Session(base, client, server)


class Wire:
    """One decoder and the bytes that it has not consumed yet, as the reassembly keeps them."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.rest = {True: b"", False: b""}

    def send(
        self, data: bytes, from_client: bool, time_s: float = 0.0, frame: int = 1
    ) -> Sequence[dict[str, Any]]:
        whole = self.rest[from_client] + data
        found: Sequence[dict[str, Any]]
        used, found = self.decoder.feed(whole, from_client, time_s, frame)
        assert 0 <= used <= len(whole)
        self.rest[from_client] = whole[used:]
        assert len(self.rest[from_client]) < 2_048
        for fields in found:
            assert faults(fields) == []
            assert fields["network.protocol"]
            assert fields["event.action"]
        return found


def decoded(
    made: Any, capture: Path, port: int, again: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(Frame, fields) of every message of a capture; `made` is the decoder class."""
    wires: dict[int, Wire] = {}
    for piece in pieces(capture, port, again):
        from_client = piece.destination.endswith(f":{port}")
        client, server = piece.source, piece.destination
        if not from_client:
            client, server = server, client
        wire = wires.setdefault(piece.stream, Wire(made(session(client, server))))
        for fields in wire.send(piece.data, from_client, piece.time_s, piece.frame):
            yield piece.frame, fields
    for wire in wires.values():
        for fields in wire.decoder.end():
            assert faults(fields) == []
            yield 0, fields
