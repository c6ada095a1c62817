"""Shares that belong together become one campaign, and what does not belong together none."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from detectors.sigma.load import load_folder
from detectors.sigma.rule import RuleSet
from siem.city import joins as module
from siem.city.campaigns import OURS, Campaigns, variant
from siem.city.commons import CITY_SOC, Rights, Write
from siem.city.joins import Joins
from siem.city.shares import SHARE_FIELDS
from siem.city.sqlite import SqliteCommons
from siem.ruleset import HUB_RULES
from siem.sharing.tokens import EPOCH_DAYS, Hmac, Tokens, epochs
from siem.store.protocol import Document, Range

NOW = datetime(2026, 3, 25, 12, tzinfo=UTC)
ROOT = bytes(range(32))
SECTORS = {
    "op-metro": "transport.public",
    "op-grid": "energy.electricity",
    "op-water": "water.drinking",
    "op-harbour": "transport.maritime",
}


@cache
def rules() -> RuleSet:
    return load_folder(HUB_RULES)


def tokens_of(address: str, at: datetime = NOW) -> list[str]:
    """Of an address and of the network around it, as an operator makes them."""
    around = address.rpartition(".")[0] + ".0/24"
    names = [("j", f"ipv4-addr:{address}"), ("p", f"ipv4-addr:{around}")]
    return Tokens(b"k" * 32, Hmac(ROOT)).joined(names, at)


def share(
    id: str, operator: str, minutes: float = 0.0, *, address: Any = "", **said: Any
) -> Document:
    first = NOW - timedelta(minutes=minutes)
    return {
        "cw.share.id": id,
        "cw.share.revision": 1,
        "cw.share.audiences": ["city-soc", "peers"],
        "cw.operator": operator,
        "cw.sector": SECTORS.get(operator, "other"),
        "cw.marking.tlp": "green",
        "finding.type": "detection",
        "finding.title": "Modbus write, host is no writer",
        "finding.severity": "medium",
        "finding.mode": "normal",
        "finding.first_seen": first,
        "finding.last_seen": first,
        **({"source.token": tokens_of(address, first)} if address else {}),
        **said,
    }


class City:
    """A hub's joins on a store of its own, and what operators were told."""

    def __init__(self, path: Path) -> None:
        self.commons = SqliteCommons(path / "commons.db", clock=lambda: NOW)
        self.letters: list[tuple[str, str, str, Document]] = []
        self.campaigns = Campaigns(self.commons, self.send, lambda: NOW)
        self.joins = Joins(rules())

    def send(self, operator: str, kind: str, payload: Any, share_id: str = "", **_: Any) -> int:
        self.letters.append((operator, kind, share_id, payload))
        return len(self.letters)

    def take(self, *shares: Document) -> None:
        self.commons.put([Write(one, one["cw.share.revision"]) for one in shares])
        for one in shares:
            self.joins.add(one, NOW)
        self.campaigns.take(self.joins.news(), self.joins)

    def withdraw(self, *ids: str) -> None:
        self.commons.remove(ids)
        for one in ids:
            self.joins.remove(one)
        self.campaigns.take(self.joins.news(), self.joins)

    def found(self, rights: Rights = CITY_SOC) -> list[Document]:
        page = self.commons.search(rights, "cw.operator:city", Range())
        return sorted(page.rows, key=lambda one: one["cw.share.id"])


@pytest.fixture
def city(tmp_path: Path) -> Iterator[City]:
    made = City(tmp_path)
    yield made
    made.commons.close()


def test_rules_group_by_mode_and_name_fields_of_shares() -> None:
    for one in rules().correlations:
        named = {*one.group_by, *one.field}
        assert "finding.mode" in named, one.document.file
        assert named <= SHARE_FIELDS.keys(), one.document.file


def test_one_address_at_two_operators_is_one_campaign_and_says_why(city: City) -> None:
    city.take(share("a", "op-metro", 60, address="203.0.113.9"))
    assert city.found() == []
    city.take(share("b", "op-grid", 5, address="203.0.113.9"))

    (found,) = city.found()
    assert found["cw.share.derived_from"] == ["a", "b"]
    assert found["cw.campaign.join"] == "token"
    assert found["cw.campaign.operators"] == ["op-grid", "op-metro"]
    assert found["cw.campaign.sectors"] == ["energy.electricity", "transport.public"]
    assert found["cw.campaign.tokens"] == tokens_of("203.0.113.9")
    assert found["finding.severity"] == "high"
    assert found["finding.confidence"] == 0.8
    assert found["cw.share.audiences"] == ["city-soc"]
    assert found["finding.description"] == (
        "2 operators (op-grid, op-metro) saw the same indicator within 24 h. It rests on 2 shares."
    )


def test_an_attacker_that_moves_within_its_network_joins_with_less_confidence(city: City) -> None:
    city.take(share("a", "op-metro", 60, address="203.0.113.9"))
    city.take(share("b", "op-grid", 5, address="203.0.113.77"))

    (found,) = city.found()
    assert found["finding.confidence"] == 0.6
    assert [one[:2] for one in found["cw.campaign.tokens"]] == ["p:"]
    assert found["finding.severity"] == "medium"
    assert found["finding.title"].startswith("Same network or domain at several operators")
    assert (
        "saw the same network or domain, not the same address, within"
        in (found["finding.description"])
    )


def test_two_attackers_behind_one_provider_are_said_to_be_less_sure_than_one(city: City) -> None:
    """Each of them is a campaign of its own right; the network alone makes them one."""
    for id, operator, address in (
        ("a", "op-metro", "203.0.113.9"), ("b", "op-grid", "203.0.113.9"),
        ("c", "op-water", "203.0.113.77"), ("d", "op-port", "203.0.113.77"),
    ):  # fmt: skip
        city.take(share(id, operator, 60, address=address))

    (found,) = city.found()
    assert found["finding.confidence"] == 0.6
    assert found["finding.severity"] == "high"
    assert "some of them the same address" in found["finding.description"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_different_attackers_join_nothing(seed: int, city: City) -> None:
    chance = random.Random(seed)
    networks = chance.sample(range(1, 60_000), 400)
    shares = [
        share(f"{seed}-{n}", chance.choice([*SECTORS]), chance.uniform(0, 1400),
              address=f"45.{net // 256}.{net % 256}.{chance.randrange(1, 255)}")
        for n, net in enumerate(networks)
    ]  # fmt: skip
    city.take(*shares)

    assert city.found() == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_address_in_different_epochs_joins_nothing(seed: int, city: City) -> None:
    chance = random.Random(seed)
    address = f"203.0.113.{chance.randrange(1, 255)}"
    here, before = tokens_of(address), tokens_of(address, NOW - timedelta(days=EPOCH_DAYS))
    assert {*here}.isdisjoint(before)
    assert len(epochs(NOW)) == 1
    city.take(
        share("a", "op-metro", 60, **{"source.token": before}),
        share("b", "op-grid", 5, **{"source.token": here}),
    )

    assert city.found() == []


def test_exercise_and_real_findings_are_not_joined(city: City) -> None:
    city.take(
        share("a", "op-metro", 60, address="203.0.113.9"),
        share("b", "op-grid", 5, address="203.0.113.9", **{"finding.mode": "exercise"}),
    )
    assert city.found() == []

    city.take(share("c", "op-water", 1, address="203.0.113.9", **{"finding.mode": "exercise"}))
    (found,) = city.found()
    assert (found["finding.mode"], found["cw.share.derived_from"]) == ("exercise", ["b", "c"])


def test_a_share_that_is_not_for_the_city_joins_nothing(city: City) -> None:
    city.take(
        share("a", "op-metro", 60, address="203.0.113.9"),
        share("b", "op-grid", 5, address="203.0.113.9", **{"cw.share.audiences": ["police"]}),
    )
    assert city.found() == []


def test_a_campaign_grows_and_keeps_its_id(city: City) -> None:
    city.take(share("a", "op-metro", 60, address="203.0.113.9"))
    city.take(share("b", "op-grid", 50, address="203.0.113.9"))
    (first,) = city.found()
    city.take(share("c", "op-water", 5, address="203.0.113.8"))

    (grown,) = city.found()
    assert grown["cw.share.id"] == first["cw.share.id"]
    assert grown["cw.share.derived_from"] == ["a", "b", "c"]
    assert grown["cw.share.revision"] == 2


def test_what_is_withdrawn_is_taken_out_and_with_it_what_it_held_together(city: City) -> None:
    for number, operator in enumerate(("op-metro", "op-grid", "op-water")):
        city.take(share(operator, operator, 60 - number, address="203.0.113.9"))
    city.withdraw("op-water")
    (found,) = city.found()
    assert found["cw.share.derived_from"] == ["op-metro", "op-grid"]

    city.withdraw("op-grid")
    assert city.found() == []
    assert city.found(OURS) == []
    told = [(operator, kind) for operator, kind, _, _ in city.letters]
    assert told.count(("op-grid", "withdraw")) == told.count(("op-metro", "withdraw")) == 1
    assert told.count(("op-water", "withdraw")) == 1


def test_the_same_techniques_in_a_row_in_two_sectors_are_one_campaign(city: City) -> None:
    steps = ("T0846", "T0888", "T0855")
    for operator, start in (("op-metro", 90), ("op-grid", 30)):
        for number, step in enumerate(steps):
            one = share(f"{operator}-{number}", operator, start - 5 * number)
            city.take({**one, "threat.technique.id": [step]})

    (found,) = city.found()
    assert found["cw.campaign.join"] == "sequence"
    assert len(found["cw.share.derived_from"]) == 6
    assert "T0846, T0888, T0855 in this order" in found["finding.description"]
    assert found["threat.technique.id"] == [*steps]

    city.withdraw("op-grid-1")
    assert city.found() == []


def test_a_playbook_of_many_steps_is_one_campaign(city: City) -> None:
    for operator, start in (("op-metro", 110), ("op-grid", 60)):
        for number, step in enumerate(("T0846", "T0888", "T0855", "T0831", "T0836")):
            one = share(f"{operator}-{number}", operator, start - 5 * number)
            city.take({**one, "threat.technique.id": [step]})

    (found,) = city.found()
    assert len(found["cw.share.derived_from"]) == 10
    assert "T0846, T0888, T0855 in this order" in found["finding.description"]


def test_cyber_and_physical_findings_in_one_cell_are_one_campaign(city: City) -> None:
    cell: dict[str, Any] = {"phys.location": "50.1234,4.5678"}
    city.take(
        share("a", "op-water", 25, **cell, **{"cw.domain": ["hazard"]}),
        share("b", "op-grid", 5, **cell, **{"cw.domain": ["cyber"]}),
        share("c", "op-grid", 5, **{"cw.domain": ["cyber"], "phys.location": "51.1,4.5"}),
    )

    (found,) = city.found()
    assert (found["cw.campaign.join"], found["cw.share.derived_from"]) == ("place", ["a", "b"])


def test_nothing_that_is_said_to_peers_names_an_operator_a_token_or_a_small_count(
    city: City,
) -> None:
    peers = Rights(("peers",), ("clear", "green"), operators=("city",))
    shares = [share(name, name, 60, address="203.0.113.9") for name in SECTORS]
    city.take(*shares[:2])
    (two,) = city.found(peers)
    (whole,) = city.found()
    assert two["cw.share.id"] == variant(whole["cw.share.id"], "peers")
    assert two["finding.description"] == ("<3 operators saw the same indicator within 24 h.")
    said = repr(two)
    kept_back = [*SECTORS, *SECTORS.values(), *tokens_of("203.0.113.9"), whole["cw.share.id"]]
    assert [one for one in kept_back if one in said] == []

    city.take(shares[2])
    (three,) = city.found(peers)
    assert "3 operators" in three["finding.description"]
    assert len(three["cw.campaign.sectors"]) == 3


def test_an_operator_is_told_of_its_own_shares_only_and_each_thing_once(city: City) -> None:
    shares = [share(name, name, 60, address="203.0.113.9") for name in SECTORS]
    city.take(*shares[:2])
    city.take(*shares[:2])
    assert [(operator, kind) for operator, kind, _, _ in city.letters] == [
        ("op-grid", "share"), ("op-metro", "share"),
    ]  # fmt: skip
    payload = city.letters[0][3]
    assert payload["cw.share.derived_from"] == ["op-grid"]
    assert "op-metro" not in repr(payload)

    city.take(shares[2])
    assert [(operator, kind) for operator, kind, _, _ in city.letters[2:]] == [
        ("op-grid", "update"), ("op-metro", "update"), ("op-water", "share"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "said", [{"cw.marking.tlp": "amber+strict"}, {"cw.share.audiences": ["city-soc"]}]
)
def test_what_is_for_the_city_alone_tells_no_other_operator(
    said: dict[str, Any], city: City
) -> None:
    city.take(
        share("a", "op-metro", 60, address="203.0.113.9"),
        share("b", "op-grid", 5, address="203.0.113.9", **said),
    )

    assert len(city.found()) == 1
    assert city.found(Rights(("peers",), ("clear", "green"), operators=("city",))) == []
    # op-grid knows its own share, and that of op-metro is for peers.
    assert [operator for operator, _, _, _ in city.letters] == ["op-grid"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_coming_and_a_restart_change_nothing(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    addresses = [f"203.0.{n}.{chance.randrange(1, 255)}" for n in range(5)]
    shares = [
        share(f"s{n}", chance.choice([*SECTORS]), chance.uniform(0, 1500),
              address=chance.choice(addresses))
        for n in range(40)
    ]  # fmt: skip
    results = []
    for turn in range(3):
        (tmp_path / str(turn)).mkdir()
        city = City(tmp_path / str(turn))
        order = chance.sample(shares, len(shares))
        for at in range(0, len(order), 1 + 7 * turn):
            city.take(*order[at : at + 1 + 7 * turn])
        found = city.found()
        # A new hub on the same store finds the same, and so writes and says nothing.
        letters = len(city.letters)
        city.joins = Joins(rules())
        for one in city.commons.scan(NOW - module.HORIZON):
            if one["cw.operator"] == "city":
                city.joins.know(one["cw.share.id"])
            else:
                city.joins.add(one, NOW)
        city.campaigns.take(city.joins.news(), city.joins)
        assert city.found() == found
        assert len(city.letters) == letters
        results.append([{**one, "cw.share.revision": 1} for one in found])
        city.commons.close()

    assert results[0]
    assert results[0] == results[1] == results[2]


def test_one_operator_cannot_crowd_the_others_out(city: City) -> None:
    tokens: dict[str, Any] = {"source.token": ["j:687:abc"]}
    city.take(share("b", "op-grid", 600, **tokens))
    city.take(*(share(f"a{n}", "op-metro", n / 10, **tokens) for n in range(1500)))

    (found,) = city.found()
    assert found["cw.campaign.operators"] == ["op-grid", "op-metro"]
    assert len(found["cw.share.derived_from"]) <= 500


def test_what_is_old_is_let_go_of_and_stays_in_the_store(city: City) -> None:
    city.take(
        share("a", "op-metro", 60, address="203.0.113.9"),
        share("b", "op-grid", 5, address="203.0.113.9"),
        share("c", "op-grid", 5, address="203.0.115.9"),
    )
    city.joins.tidy(NOW + timedelta(hours=1))
    assert len(city.joins) == 3
    city.joins.tidy(NOW + timedelta(days=3))
    city.campaigns.take(city.joins.news(), city.joins)

    assert len(city.joins) == 0
    assert len(city.found()) == 1
