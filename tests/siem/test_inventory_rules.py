"""The rules about the inventory, from real frames to the finding."""

from __future__ import annotations

from pathlib import Path

from cityward.plugin import load
from siem import assembly
from siem.config import parse
from siem.store.protocol import Document, Range

NEW = ("New commander of a device", "New device in a control zone", "New traffic between zones")


def found(capture: Path, folder: Path, hours: float) -> list[Document]:
    """Findings of a node with two zones that reads a capture."""
    settings = parse(
        {
            "state_dir": str(folder),
            "models": {"on": False},
            "inventory": {"learning_hours": hours},
            "zone": [
                {"id": "plant", "type": "control", "networks": ["192.168.63.252/30"]},
                {"id": "office", "type": "enterprise", "networks": ["192.168.63.0/25"]},
            ],
        }
    )
    source = assembly.file_source(capture, load("collectors"))
    node = assembly.node_of(settings, sources=[source], event_time=True)
    for gathered in node.collect_from(source):
        node.conclude(node.detect(node.keep(gathered)))
    node.finish()
    rows = list(node.db.search("", Range()).rows)
    node.close()
    return [row for row in rows if row["finding.title"] in NEW]


def test_an_attack_on_a_controller_is_told_as_new_device_new_way_and_new_commander(
    data: Path, tmp_path: Path
) -> None:
    capture = data / "energy" / "modbus_umas_modicon_attacks.pcap"

    told = found(capture, tmp_path / "told", 0)
    silent = found(capture, tmp_path / "silent", 24)

    assert sorted((one["finding.title"], one["finding.severity"]) for one in told) == [
        ("New commander of a device", "medium"),
        ("New device in a control zone", "low"),
        ("New traffic between zones", "low"),
    ]
    said = " ".join(one["finding.description"] for one in told)
    assert "192.168.63.100 commanded 192.168.63.253 (modbus, umas)" in said
    assert "192.168.63.253 was seen in zone plant for the first time" in said
    assert silent == []
