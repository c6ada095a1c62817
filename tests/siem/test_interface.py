"""A live interface through the whole path: real packets of a network namespace's own link."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from subprocess import run

import pytest

from siem import assembly, config
from siem.node import Node
from siem.store.protocol import Range
from tests.programs import PATIENCE_S

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and ip"),
]


@pytest.fixture
def link() -> Iterator[str]:
    name = f"cw{uuid.uuid4().hex[:6]}"
    run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    for end in (name, f"{name}p"):
        # Without IPv6 no neighbour discovery of the kernel's own is on the link.
        Path(f"/proc/sys/net/ipv6/conf/{end}/disable_ipv6").write_text("1")
        run(["ip", "link", "set", end, "up"], check=True)
    yield name
    run(["ip", "link", "del", name], check=True)


def _node(folder: Path, link: str) -> Node:
    settings = config.parse(
        {
            "state_dir": str(folder),
            "rules": {"shipped": False},
            "models": {"on": False},
            "source": [{"id": "span", "reader": "interface", "interface": link}],
        }
    )
    return assembly.node_of(settings)


def _send(link: str, frames: int, vlan: int = 0) -> None:
    tag = b"\x81\x00" + vlan.to_bytes(2, "big") if vlan else b""
    ip = bytes.fromhex("45000021000040001111b6b6c0000207c0000208")
    udp = bytes.fromhex("1388138900 0d0000".replace(" ", "")) + b"hello"
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind((f"{link}p", 0))
        for _ in range(frames):
            out.send(b"\x02" * 6 + b"\x04" * 6 + tag + b"\x08\x00" + ip + udp)


def _listen(node: Node, link: str, frames: int, vlan: int = 0) -> None:
    """Run the path while frames are sent, until all of them were taken."""
    source = node.sources[0]
    sender = threading.Thread(target=_send, args=(link, frames, vlan))
    until_s = time.monotonic() + PATIENCE_S
    for gathered in node.collect():
        if gathered and sender.ident is None:  # it listens: nothing came, and it said so
            sender.start()
        events = node.keep(gathered) if gathered else []
        node.conclude(node.detect(events))
        if source.state.records >= frames or time.monotonic() > until_s:
            node.stop.set()


def test_every_frame_of_an_interface_is_taken_and_the_vlan_is_kept(
    tmp_path: Path, link: str
) -> None:
    node = _node(tmp_path, link)

    _listen(node, link, 500, vlan=7)
    flows = list(node.sources[0].collector.end())
    node.close()

    assert node.sources[0].state.records == 500
    assert node.sources[0].state.lost == 0
    assert [one.fields["source.packets"] for one in flows] == [500]
    assert flows[0].fields["network.vlan.id"] == "7"


def test_flows_that_were_open_when_the_process_ended_are_said(tmp_path: Path, link: str) -> None:
    first = _node(tmp_path, link)
    _listen(first, link, 3)
    first.close()

    second = _node(tmp_path, link)
    _listen(second, link, 3 + 1)
    said = second.events.search("event.kind:pipeline_error", Range()).rows
    second.close()

    assert [one["event.reason"] for one in said] == [
        "1 open flows were lost with the process that metered them"
    ]
