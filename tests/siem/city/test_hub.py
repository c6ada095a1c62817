"""A whole hub, and operators' ends as they are in a node, over mutual TLS on loopback."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec
import pytest

from siem.city.campaigns import TOLD
from siem.city.commons import CITY_SOC
from siem.city.hub import Hub
from siem.config import Hub as HubSettings
from siem.config import Settings
from siem.hub import hub_of, listen, view_of
from siem.sharing import link as links
from siem.sharing.drop import Drop
from siem.sharing.envelope import split
from siem.sharing.external import Plan
from siem.sharing.identity import Identity
from siem.sharing.link import Link, join
from siem.sharing.outbox import Outbox
from siem.sharing.tokens import Hmac, Tokens
from siem.store.embedded import NodeDb
from siem.store.protocol import Document, Person, Range
from tests.siem.sharing.findings import accepted, written
from tests.siem.sharing.standin import match

ROOT = b"r" * 32
RULE = {
    "name": "external",
    "when": {"finding.severity": ["high"]},
    "to": ["city-soc", "peers"],
    "tlp": "green",
    "fields": {
        "finding.title": "template",
        "finding.severity": "keep",
        "finding.first_seen": "round",
        "finding.last_seen": "round",
        "source.ip": "join",
    },
}
WAIT_S = 20.0


class Operator:
    """An operator's end: its store, its outbox under a real policy, and its link."""

    def __init__(self, folder: Path, name: str, hub: Hub, url: str) -> None:
        folder.mkdir()
        self.name = name
        self.db = NodeDb(folder / "node.db", name.encode())
        identity = Identity(folder)
        text = written([RULE], policy=f"{name}/test", operator=name)
        tokens = Tokens(name.encode() * 4, Hmac(ROOT))
        policy = accepted(text, Plan(["10.0.0.0/8"]), tokens)
        self.outbox = Outbox(
            self.db.outgoing, name, identity.signing_key(), lambda: policy, clock=now
        )
        token = hub.operators.add(name, {"op-metro": "transport.public"}.get(name, "other"))
        join(identity, self.db.outgoing, url, token, "--token-file")
        self.link = Link(self.outbox, identity, now, url)
        self.batch = 0

    def find(self, address: str) -> str:
        """A finding about an outside address; its id."""
        self.batch += 1
        one = match(self.batch, at=now())
        event = msgspec.structs.replace(
            one.events[0], fields={**one.events[0].fields, "source.ip": address}
        )
        one = msgspec.structs.replace(one, events=(event,), fields={"source.ip": address})
        (id,) = self.db.keep([one], self.batch, now=now())
        return id

    def close(self) -> None:
        self.link.stop()
        self.db.close()


def now() -> datetime:
    return datetime.now(UTC)


def until(what: Callable[[], object]) -> float:
    """Wait until something is so; how many seconds it took."""
    begin = time.monotonic()
    while not what():
        assert time.monotonic() - begin < WAIT_S, "it never came"
        time.sleep(0.02)
    return time.monotonic() - begin


def settings(tmp_path: Path) -> Settings:
    said = HubSettings(listen="127.0.0.1:0", drop_dir=str(tmp_path / "drop"))
    return Settings(operator="city", state_dir=str(tmp_path / "hub"), hub=said)


class Running:
    """A hub that runs in this process."""

    def __init__(self, tmp_path: Path) -> None:
        said = settings(tmp_path)
        assert said.hub is not None
        self.hub = hub_of(said)
        listening = listen(said)
        self.url = f"https://localhost:{listening.getsockname()[1]}"
        self.hub.start(listening, said.hub.names)
        self._thread = threading.Thread(target=self.hub.run)
        self._thread.start()

    def campaigns(self) -> list[Document]:
        page = self.hub.commons.search(CITY_SOC, "cw.campaign.join:*", Range())
        return list(page.rows)

    def close(self) -> None:
        self.hub.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(links, "INBOX_EVERY_S", 0.2)
    made = Running(tmp_path)
    yield made
    made.close()


@pytest.fixture
def both(running: Running, tmp_path: Path) -> Iterator[tuple[Operator, Operator]]:
    two = tuple(
        Operator(tmp_path / name, name, running.hub, running.url)
        for name in ("op-metro", "op-grid")
    )
    for one in two:
        one.link.start()
    yield two[0], two[1]
    for one in two:
        one.close()


def test_one_outside_address_at_two_nodes_becomes_a_campaign_and_is_gone_when_withdrawn(
    running: Running, both: tuple[Operator, Operator], tmp_path: Path
) -> None:
    metro, grid = both
    metro.find("203.0.113.9")
    grid.find("198.51.100.77")
    until(lambda: len(running.hub.exchange.links()) == 2 and shares_of(running) == 2)
    assert running.campaigns() == []

    grid.find("203.0.113.9")
    until(running.campaigns)
    (found,) = running.campaigns()
    assert found["cw.campaign.operators"] == ["op-grid", "op-metro"]
    assert len(found["cw.share.derived_from"]) == 2
    assert "203.0.113" not in repr(found)

    # Each was told of its own share, and nothing of the other.
    until(lambda: metro.db.outgoing.inbox() and grid.db.outgoing.inbox())
    (letter,) = metro.db.outgoing.inbox()
    assert letter.share_id == found["cw.share.id"]
    assert "op-grid" not in repr(letter)

    view = view_of(settings(tmp_path))
    assert {one.operator for one in view.told(found["cw.share.id"])} == {"op-grid", "op-metro"}
    reading = view.reading(Person("c.iso", ("ciso",), ""))
    assert reading.get(found["cw.share.id"]) == found
    view.close()

    share = next(one for one in found["cw.share.derived_from"] if one_of(metro, one))
    metro.db.outgoing.withdraw("m.rossi", "error", now(), share_id=share)
    until(lambda: not running.campaigns())
    until(lambda: len(grid.db.outgoing.inbox()) == 2)
    told = [one.value["what"] for _, one in running.hub.commons.records.all(TOLD)]
    assert told == ["withdrawn", "withdrawn"]


def has(running: Running, shares: int | None = None, campaigns: int | None = None) -> bool:
    if shares is not None:
        return shares_of(running) == shares
    return len(running.campaigns()) == campaigns


def is_gone(path: Path) -> bool:
    return not path.exists()


def shares_of(running: Running) -> int:
    return running.hub.commons.search(CITY_SOC, "not cw.operator:city", Range()).total


def one_of(operator: Operator, share_id: str) -> bool:
    return any(one.share_id == share_id for one in operator.db.outgoing.lines())


def test_from_a_finding_at_a_node_to_the_campaign(
    running: Running, both: tuple[Operator, Operator]
) -> None:
    metro, grid = both
    took = []
    for number in range(12):
        address = f"45.{number}.7.9"
        metro.find(address)
        until(partial(has, running, shares=2 * number + 1))
        grid.find(address)
        took.append(until(partial(has, running, campaigns=number + 1)))

    worst = statistics.quantiles(took, n=20)[-1]
    print(f"finding to campaign: median {statistics.median(took):.2f} s, 95 % {worst:.2f} s")
    assert worst < 5


def test_a_hub_that_was_stopped_goes_on_with_the_same_campaigns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Running(tmp_path)
    two = [
        Operator(tmp_path / name, name, first.hub, first.url) for name in ("op-metro", "op-grid")
    ]
    for one in two:
        one.find("203.0.113.9")
        while one.link.turn():
            pass
    until(first.campaigns)
    before = first.campaigns()
    first.close()

    again = Running(tmp_path)
    until(lambda: len(again.hub.joiner) == 2)
    time.sleep(0.5)
    assert again.campaigns() == before
    again.close()
    for one in two:
        one.close()


def test_what_comes_too_early_into_the_drop_waits_for_the_one_before_it(
    running: Running, tmp_path: Path
) -> None:
    one = Operator(tmp_path / "op-metro", "op-metro", running.hub, running.url)
    one.find("203.0.113.9")
    carrier = Drop(one.outbox, tmp_path / "carried", Identity(tmp_path), now)
    while carrier.turn():
        pass
    one.close()
    late, early = sorted((tmp_path / "carried").glob("*.cwe"))
    drop = tmp_path / "drop"
    drop.mkdir()
    early.rename(drop / early.name)
    running.hub.take_drop()
    has_waited = (drop / early.name).exists()
    late.rename(drop / late.name)

    until(partial(is_gone, drop / early.name))

    assert has_waited
    assert not list(drop.glob("*.refused"))
    assert len(list((drop / "answers").iterdir())) == 2


def test_what_lies_in_the_drop_is_taken_and_joined(running: Running, tmp_path: Path) -> None:
    two = [
        Operator(tmp_path / name, name, running.hub, running.url)
        for name in ("op-metro", "op-grid")
    ]
    (tmp_path / "drop").mkdir()
    for one in two:
        one.find("203.0.113.9")
        one.outbox.offer()
        while (signed := one.outbox.next()) is not None:
            path = tmp_path / "drop" / f"{one.name}.{1:015d}.cwe"
            path.write_bytes(signed.lines())
            until(partial(is_gone, path))
            answers = sorted((tmp_path / "drop" / "answers").glob(f"{one.name}*.cwr"))
            receipt = split(answers[-1].read_bytes())
            one.outbox.receipted(receipt, running.hub.operators.signing_key.public_key())
        one.close()

    until(running.campaigns)
