"""kill -9 between any two steps: no acknowledged finding is lost, none goes under two numbers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from siem.sharing.drop import read_drop
from siem.sharing.envelope import Envelope, Signed
from siem.sharing.ledger import keys_of, prove
from siem.store.embedded import NodeDb
from tests.programs import PATIENCE_S
from tests.siem.sharing.sender import Journal
from tests.siem.sharing.standin import KEY, OPERATOR, key_from

ROOT = Path(__file__).parents[3]
SENDER = Path(__file__).with_name("sender.py")
POINTS = (
    "keep-before-commit", "keep-after-commit", "offer-before-commit", "seal-before-commit",
    "seal-after-commit", "hub-took", "receipt-before-commit", "receipt-after-commit",
)  # fmt: skip


class Oracle:
    """Stands outside of the process, and remembers what it was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.acknowledged: set[str] = set()

    def run(self, findings: int, variant: str, fault: str = "", after_s: float = 0.0) -> bool:
        """Let the process send; True if it was killed."""
        environment = {**os.environ, "CITYWARD_FAULT": fault, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, str(SENDER), str(self.folder), str(findings), variant],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        ) as process:
            if after_s:
                assert process.stdout is not None
                self.acknowledged.add(process.stdout.readline().decode().strip())
                time.sleep(after_s)
                process.send_signal(signal.SIGKILL)
            said, complaint = process.communicate(timeout=PATIENCE_S)
        assert process.returncode in (0, -signal.SIGKILL), complaint.decode()
        self.acknowledged |= set(said.decode().split("\n")[:-1])
        return process.returncode != 0

    def said(self) -> list[Signed]:
        """What reached the hub, or lies in the drop, also what came twice."""
        return Journal(self.folder).said or [one.signed for one in read_drop(self.folder / "drop")]

    def judge(self) -> tuple[int, int]:
        """Acknowledged findings that never left, and numbers beyond one for the same content."""
        numbers: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
        hashes: defaultdict[int, set[str]] = defaultdict(set)
        left = set()
        for signed in self.said():
            said = msgspec.json.decode(signed.data, type=Envelope)
            hashes[said.seq].add(signed.hash)
            if said.type in ("share", "update"):
                left.add(said.share_id)
                numbers[said.share_id, said.revision].add(said.seq)
        assert sorted(hashes) == list(range(1, len(hashes) + 1))
        twice = sum(len(one) - 1 for one in numbers.values())
        twice += sum(len(one) - 1 for one in hashes.values())
        return len(self.acknowledged - {""} - left), twice

    def fault(self) -> str:
        """What the ledger's own proof says."""
        db = NodeDb(self.folder / "node.db", KEY)
        own, hubs = keys_of(key_from("node").public_key()), keys_of(key_from("hub").public_key())
        found = prove(db.outgoing, OPERATOR, own, hubs).fault
        db.close()
        return found


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_named_point_loses_and_doubles_nothing(tmp_path: Path, point: str) -> None:
    oracle = Oracle(tmp_path)

    was_killed = oracle.run(20, "right", f"{point}:3")
    right_after = oracle.fault()
    oracle.run(3, "right")

    assert was_killed
    assert len(oracle.acknowledged) >= 2
    assert right_after == oracle.fault() == ""
    assert oracle.judge() == (0, 0)


@pytest.mark.slow
def test_a_kill_between_file_and_ledger_leaves_the_same_file_again(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path)

    was_killed = oracle.run(20, "drop", "drop-before-commit:5")
    oracle.run(3, "drop")

    assert was_killed
    assert oracle.judge() == (0, 0)
    assert oracle.fault() == ""


@pytest.mark.slow
def test_kills_at_random_moments_lose_and_double_nothing(tmp_path: Path) -> None:
    oracle, dice = Oracle(tmp_path), random.Random(6)

    killed = sum(oracle.run(100_000, "right", after_s=dice.uniform(0.0, 0.3)) for _ in range(5))
    oracle.run(1, "right")

    assert killed == 5
    assert len(oracle.acknowledged) > 10
    assert oracle.judge() == (0, 0)
    assert oracle.fault() == ""


@pytest.mark.slow
def test_the_oracle_sees_an_outbox_that_does_not_write_down_what_it_sends(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path)

    with pytest.raises(AssertionError, match="does not follow"):
        oracle.run(5, "two_steps")
