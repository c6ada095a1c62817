"""The rules about the inventory: their samples, and real frames from wire to finding.

They wait beside their test: `rule check` wants a raw sample of every shipped rule, and what is new
to the inventory is said by the learner of a node, which no sample runs yet.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cityward.plugin import load
from detectors.sigma.lint import check
from detectors.sigma.load import load_folder
from detectors.sigma.samples import read_samples, samples_file
from siem import assembly, samples
from siem.config import parse
from siem.store.protocol import Document, Range

FOLDER = Path(__file__).parent / "inventory_rules"
RULES = load_folder(FOLDER)
NAMES = sorted(Path(one.document.file).name for one in RULES.speaking())
RAW = "no 'must match' case is raw"


def test_all_three_are_read_and_lack_nothing_but_a_raw_sample() -> None:
    assert len(NAMES) == 3
    assert [str(one) for one in check(FOLDER) if RAW not in str(one)] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_keeps_what_its_samples_promise(name: str) -> None:
    one = next(each for each in RULES.speaking() if each.document.file.endswith(f"/{name}"))
    given = read_samples(samples_file(FOLDER / name))

    assert [case for case in samples.outcomes(one, RULES, given) if not case.passed] == []
    assert samples.unnoticed(one, RULES, given) == []


def found(capture: Path, folder: Path, hours: float) -> list[Document]:
    """Findings of a node with two zones that reads a capture."""
    settings = parse(
        {
            "state_dir": str(folder),
            "rules": {"shipped": False, "folders": [str(FOLDER)]},
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
    return rows


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
