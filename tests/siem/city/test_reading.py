"""What people of a hub may see of shared findings, and that operators are told of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward.errors import CitywardError, TransientError
from siem.city.commons import CITY_SOC, Write
from siem.city.reading import ACCESS, NOTHING, AccessLog, Reading, accesses, rights_of
from siem.city.sqlite import SqliteCommons
from siem.store.protocol import Person, Range

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
TOKEN = "j:2026-03:aaaa"


def share(number: int, operator: str, *audiences: str, tlp: str = "green") -> dict[str, Any]:
    return {
        "cw.share.id": f"{operator}-{number}",
        "cw.operator": operator,
        "cw.share.audiences": list(audiences),
        "cw.marking.tlp": tlp,
        "finding.first_seen": NOW - timedelta(minutes=number),
        "finding.severity": "high",
        "finding.title": f"Scan {number}",
        "source.token": [TOKEN],
    }


@pytest.fixture
def commons(tmp_path: Path) -> Iterator[SqliteCommons]:
    store = SqliteCommons(tmp_path / "commons.db", clock=lambda: NOW)
    documents = [
        share(1, "op-metro", "city-soc"),
        share(2, "op-metro", "city-soc", "police"),
        share(3, "op-grid", "city-soc", "peers", tlp="amber"),
        share(4, "op-grid", "city-soc", "peers", "police"),
        share(5, "city", "peers"),
        share(6, "city", "city-soc", tlp="amber+strict"),
    ]
    assert set(store.put([Write(one, 1) for one in documents])) == {"written"}
    yield store
    store.close()


def reading(commons: SqliteCommons, *roles: Any, audience: str = "") -> Reading:
    person = Person("p", roles, "", audience=audience)
    log = AccessLog(commons.records, lambda: NOW)
    return Reading(commons, rights_of(person), log.of(person.name), lambda: NOW)


def ids(one: Reading, query: str = "") -> set[str]:
    return {row["cw.share.id"] for row in one.search(query, Range()).rows}


def test_each_role_sees_its_own_and_nothing_else(commons: SqliteCommons) -> None:
    assert len(ids(reading(commons, "ciso"))) == 5
    assert ids(reading(commons, "authority", audience="police")) == {"op-metro-2", "op-grid-4"}
    assert ids(reading(commons, "authority", audience="prefecture")) == set()
    assert ids(reading(commons, "peer", audience="op-metro")) == {
        "op-metro-1", "op-metro-2", "city-5",
    }  # fmt: skip
    assert ids(reading(commons, "administrator")) == set()
    assert rights_of(Person("p", ("administrator",), "")) == NOTHING


def test_an_authority_can_neither_read_nor_ask_for_a_token(commons: SqliteCommons) -> None:
    police, ciso = reading(commons, "authority", audience="police"), reading(commons, "ciso")

    assert "source.token" not in police.search("", Range()).rows[0]
    assert "source.token" not in (police.get("op-metro-2") or {})
    for query in (f'source.token:"{TOKEN}"', "source.token:*", "nothing.known:*"):
        with pytest.raises(CitywardError, match="no field"):
            police.search(query, Range())
    with pytest.raises(CitywardError, match="are not counted"):
        police.tally("", Range(), "source.token")
    assert ids(police, "aaaa") == set()
    assert len(ids(ciso, f'source.token:"{TOKEN}"')) == 5


def test_what_may_not_be_seen_is_answered_like_what_is_not_there(commons: SqliteCommons) -> None:
    police = reading(commons, "authority", audience="police")

    assert police.get("op-metro-1") is police.get("none") is None


def test_an_operator_is_told_who_read_its_shares(commons: SqliteCommons) -> None:
    clock = [NOW]
    log = AccessLog(commons.records, lambda: clock[0])
    ciso = Reading(commons, CITY_SOC, log.of("c.iso"), lambda: NOW)

    ciso.search("cw.operator:op-metro", Range())
    first = list(accesses(commons.records, "op-metro"))
    ciso.get("op-metro-1")
    ciso.get("none")
    log.flush()

    assert [(one.person, one.reads, one.shares) for one in first] == [("c.iso", 1, 2)]
    (both,) = accesses(commons.records, "op-metro")
    assert (both.day, both.reads, both.shares) == ("2026-03-02", 2, 3)
    assert list(accesses(commons.records, "op-grid")) == []
    assert list(accesses(commons.records, "op-metr")) == []

    log.forget(NOW + timedelta(days=1))
    assert list(commons.records.all(ACCESS)) == []


def test_two_processes_add_up_and_the_number_of_names_is_bounded(
    commons: SqliteCommons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siem.city.reading.PEOPLE_MAX", 2)
    documents = [share(1, "op-metro")]
    one, two = (AccessLog(commons.records, lambda: NOW) for _ in range(2))

    for name in ("a", "b", "c", "d"):
        one.note(name, documents)
        two.note(name, documents)

    found = {each.person: each.reads for each in accesses(commons.records, "op-metro")}
    assert found == {"a": 2, "b": 2, "(others)": 4}


def test_nobody_is_shown_what_cannot_be_noted(commons: SqliteCommons) -> None:
    class Down:
        def get(self, kind: str, name: str) -> None:
            raise TransientError("away", "records", "Wait.")

    log = AccessLog(Down(), lambda: NOW)  # type: ignore[arg-type]
    ciso = Reading(commons, CITY_SOC, log.of("c.iso"), lambda: NOW)

    with pytest.raises(TransientError):
        ciso.get("op-metro-1")
