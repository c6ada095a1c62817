"""People of two hubs are the same, and nobody but a hub makes one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from siem.city.people import PERSON, People
from siem.city.sqlite import SqliteCommons
from siem.store.embedded import NodeDb
from siem.store.protocol import HUB_ROLES, Person

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
KEY = b"of both hubs"


class Side:
    """One of two hubs."""

    def __init__(self, folder: Path, commons: SqliteCommons, key: bytes = KEY) -> None:
        folder.mkdir()
        self.db = NodeDb(folder / "node.db", b"k")
        self.db.accounts.offers = HUB_ROLES
        self.people = People(self.db.accounts, commons.records, key)

    def names(self) -> dict[str, tuple[str, ...]]:
        return {one.name: one.roles for one in self.db.people()}

    def change(self, name: str, **said: object) -> None:
        person = self.db.person(name)
        assert person is not None
        changed = msgspec.structs.replace(person, epoch=person.epoch + 1, **said)
        self.db.accounts.put(changed, "a", "person: changed", NOW)


@pytest.fixture
def commons(tmp_path: Path) -> Iterator[SqliteCommons]:
    made = SqliteCommons(tmp_path / "commons.db")
    yield made
    made.close()


def test_a_standby_knows_who_may_sign_in_and_who_may_not_any_more(
    tmp_path: Path, commons: SqliteCommons
) -> None:
    one, two = (Side(tmp_path / name, commons) for name in ("one", "two"))
    one.db.add_person(Person("a", ("administrator",), "hash"))
    one.db.add_person(Person("p", ("authority",), "hash", audience="police"))
    one.people.step()
    two.people.step()
    assert two.names() == one.names() == {"a": ("administrator",), "p": ("authority",)}

    two.change("p", disabled=True)
    for side in (two, one):
        side.people.step()
    found = one.db.person("p")
    assert found is not None
    assert (found.disabled, found.audience) == (True, "police")


def test_who_can_write_to_the_store_makes_nobody_a_ciso(
    tmp_path: Path, commons: SqliteCommons
) -> None:
    hub = Side(tmp_path / "hub", commons)
    hub.db.add_person(Person("a", ("administrator",), "hash"))
    hub.people.step()
    thief = Side(tmp_path / "thief", commons, b"another key")
    thief.db.add_person(Person("thief", ("ciso",), "hash"))
    thief.db.add_person(Person("a", ("ciso", "administrator"), "known", epoch=9))
    thief.people.step()

    hub.people.step()

    assert hub.names() == {"a": ("administrator",)}
    assert commons.records.get(PERSON, "a") is not None
