"""Below the channel everything is exactly once, however often it is sent and the hub is killed."""

from __future__ import annotations

import random
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from siem.city import exchange as exchange_module
from siem.city.links import links
from siem.sharing.envelope import Signed
from tests.siem.city.city import FINDING, Hub, Node

OPERATORS = 3
KILLED_EVERY = 40


class Killed(BaseException):
    """The hub's process ended here."""


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory: what is asked here is what becomes of kills, not of power cuts."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("findings", [300, pytest.param(20_000, marks=pytest.mark.full)], ids=str)
@pytest.mark.parametrize("seed", [1])
def test_findings_sent_often_and_in_any_order_are_there_once_in_their_newest_revision(
    memory, monkeypatch, findings, seed
):
    chance = random.Random(seed)

    def perhaps(name: str) -> None:
        if chance.randrange(KILLED_EVERY) == 0:
            raise Killed(name)

    monkeypatch.setattr(exchange_module, "fault", perhaps)
    hub = Hub(memory)
    nodes = [hub.enrolled(f"op-{n}") for n in range(OPERATORS)]
    kills, newest = 0, {}
    sent: dict[str, list[Signed]] = {node.name: [] for node in nodes}

    def send(node: Node, signed: Signed) -> None:
        nonlocal hub, kills
        while True:
            try:
                hub.exchange.take(node.name, signed)
                return
            except Killed:
                kills += 1
                hub = hub.another()

    for _ in range(findings):
        node = chance.choice(nodes)
        again = chance.random() < 0.2 and bool(newest)
        id = chance.choice(list(newest)) if again else (node.name, str(uuid.uuid4()))
        node = next(one for one in nodes if one.name == id[0])
        newest[id] = newest.get(id, 0) + 1
        payload = {**FINDING, "finding.count": newest[id]}
        signed = node.share(share_id=id[1], revision=newest[id], payload=payload)
        sent[node.name].append(signed)
        send(node, signed)
        for _ in range(chance.randrange(4)):
            send(node, chance.choice(sent[node.name]))

    found = {
        (one["cw.operator"], one["cw.share.id"]): one["cw.share.revision"]
        for one in hub.everything()
    }
    assert found == newest
    assert kills > findings / KILLED_EVERY
    for one in links(hub.operators, hub.commons.records, datetime.now(UTC)):
        assert (one.seq, one.shares, one.refused) == (*[len(sent[one.operator])] * 2, 0)
