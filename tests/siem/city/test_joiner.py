"""The joiner: what the exchange tells it, what it does when the store fails or it was away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward.errors import TransientError
from siem.city import joiner as module
from siem.city.campaigns import Campaigns
from siem.city.commons import CITY_SOC, Outcome, Write
from siem.city.joiner import Joiner
from siem.city.known import Link
from siem.city.sqlite import SqliteCommons
from siem.store.protocol import Document, Range
from tests.siem.city.test_joins import NOW, rules, share

LATER = timedelta(hours=1)


class Store(SqliteCommons):
    """A common store that can be away."""

    is_away = False

    def put(self, writes: Sequence[Write]) -> list[Outcome]:
        if self.is_away:
            raise TransientError("away", "store", "Wait.")
        return super().put(writes)


class City:
    """A joiner on a store of its own; time is turned by hand."""

    def __init__(self, path: Path) -> None:
        self.now = NOW
        self.links: list[Link] = []
        self.letters: list[tuple[str, str]] = []
        self.commons = Store(path / "commons.db", clock=lambda: self.now)
        self.campaigns = Campaigns(self.commons, self.send, lambda: self.now)
        self.joiner = self.begun()

    def begun(self) -> Joiner:
        """As after a start."""
        self.joiner = Joiner(
            self.commons, self.campaigns, rules(), lambda: self.links, lambda: self.now
        )
        self.joiner.rebuild()
        return self.joiner

    def send(self, operator: str, kind: str, payload: Any, **_: Any) -> int:
        self.letters.append((operator, kind))
        return len(self.letters)

    def share(self, *shares: Document) -> None:
        self.commons.put([Write(one, 1) for one in shares])
        for one in shares:
            self.joiner.shared(one)

    def withdraw(self, operator: str, share_id: str) -> Any:
        self.commons.remove([share_id])
        return self.joiner.withdrawn(operator, [share_id])

    def found(self) -> list[Document]:
        return list(self.commons.search(CITY_SOC, "cw.campaign.join:*", Range()).rows)


@pytest.fixture
def city(tmp_path: Path) -> Iterator[City]:
    made = City(tmp_path)
    yield made
    made.commons.close()


def both(minutes: float = 5.0) -> list[Document]:
    return [
        share("a", "op-metro", minutes, address="203.0.113.9"),
        share("b", "op-grid", minutes, address="203.0.113.9"),
    ]


def silent(operator: str, since: datetime) -> Link:
    return Link(operator=operator, sector="other", state="silent", heartbeat=since)


def test_a_withdrawal_is_mended_when_it_is_answered(city: City) -> None:
    city.share(*both())

    # Neither has been joined yet: the loop has not come round.
    did = city.withdraw("op-grid", "b")
    assert (did, city.found()) == ({}, [])

    city.share(share("c", "op-water", 1, address="203.0.113.9"))
    city.joiner.step()
    assert len(city.found()) == 1
    assert city.withdraw("op-water", "c") == {"campaigns_changed": 0, "campaigns_removed": 1}
    assert city.found() == []
    assert city.letters[-2:] == [("op-metro", "withdraw"), ("op-water", "withdraw")]


def test_a_campaign_of_long_ago_is_mended_too(city: City) -> None:
    shares = [*both(), share("c", "op-water", 5, address="203.0.113.9")]
    city.share(*shares)
    city.joiner.step()
    city.now += timedelta(days=30)
    city.begun()
    assert len(city.joiner) == 0

    assert city.withdraw("op-water", "c") == {"campaigns_changed": 1, "campaigns_removed": 0}
    (found,) = city.found()
    assert found["cw.share.derived_from"] == ["a", "b"]
    assert city.withdraw("op-grid", "b") == {"campaigns_changed": 0, "campaigns_removed": 1}
    assert city.found() == []


def test_what_was_withdrawn_while_the_hub_was_away_is_mended_at_its_start(city: City) -> None:
    city.share(*both())
    city.joiner.step()
    city.commons.remove(["b"])

    city.begun()

    assert city.found() == []


def test_what_the_store_does_not_take_now_is_owed(city: City) -> None:
    city.share(*both())
    city.commons.is_away = True
    with pytest.raises(TransientError):
        city.joiner.step()
    city.commons.is_away = False
    assert city.found() == []

    city.joiner.step(0.0)

    assert len(city.found()) == 1


def test_a_share_that_found_no_room_in_the_queue_is_joined_all_the_same(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    monkeypatch.setattr(module, "WAITING_MAX", 1)
    city.begun()
    city.share(*both())

    city.joiner.step(0.0)

    assert len(city.found()) == 1


def test_operators_that_fall_silent_together_are_one_campaign(city: City) -> None:
    since = NOW - timedelta(minutes=6)
    city.links = [
        silent("op-metro", since),
        silent("op-grid", since + timedelta(minutes=2)),
        Link(operator="op-water", state="linked", heartbeat=NOW),
    ]
    city.joiner.look()
    city.joiner.step(0.0)
    assert city.found() == []  # it may be we who were away

    city.now += timedelta(minutes=7)
    for _ in range(2):
        city.joiner.look()
        city.joiner.step(0.0)
    (found,) = city.found()

    assert found["cw.campaign.join"] == "heartbeat"
    assert found["cw.campaign.operators"] == ["op-grid", "op-metro"]
    assert "fell silent within 5 min" in found["finding.description"]
    assert city.letters == []
    city.begun()
    assert city.found() == [found]


def test_a_hub_that_is_not_the_active_one_joins_nothing(city: City) -> None:
    city.joiner.stop()
    city.share(*both())
    city.joiner.step()
    assert city.found() == []

    city.joiner.rebuild()

    assert len(city.found()) == 1
