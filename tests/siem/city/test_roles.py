"""Roles of the cluster: the real Security plugin stops who ought not to read or to write."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from cityward.errors import ConfigError
from siem.city.cluster import ClusterCommons, Names, prepare
from siem.city.commons import CITY_SOC
from siem.city.roles import put_roles, roles, told
from siem.store.opensearch import OpenSearchCluster
from siem.store.protocol import TIME_MIN, Range
from siem.store.templates import differences
from tests.opensearch import Server
from tests.siem.city.homes import client
from tests.siem.city.writer import BEGIN, write

pytestmark = pytest.mark.slow

API = "/_plugins/_security/api"
PASSWORD = "three words, no name: 4711-heron"
As = Callable[[str], OpenSearchCluster]


@pytest.fixture
def as_(opensearch: Server, index_prefix: str) -> Iterator[As]:
    """Clients of accounts that have one role each, of a cluster that is prepared."""
    names = Names(index_prefix)
    opened: list[OpenSearchCluster] = []

    def opening(user: str, password: str) -> OpenSearchCluster:
        opened.append(client(opensearch, user, password))
        return opened[-1]

    admin = opening("admin", opensearch.admin_password)
    prepare(admin, names)
    assert put_roles(admin, names)
    users = {}
    for role in roles(names):
        users[role.rpartition("-")[2]] = user = f"u{uuid.uuid4().hex[:12]}"
        body = {"password": PASSWORD, "opendistro_security_roles": [role]}
        status, said = opensearch.ask("PUT", f"{API}/internalusers/{user}", body)
        assert status in (200, 201), said
    yield lambda name: opening(users[name], PASSWORD)
    for one in opened:
        one.close()
    for user in users.values():
        opensearch.ask("DELETE", f"{API}/internalusers/{user}")
    for role in roles(names):
        opensearch.ask("DELETE", f"{API}/roles/{role}")


def test_the_hub_may_let_go_of_what_was_removed_its_records_too(as_: As, index_prefix: str) -> None:
    names, joins = Names(index_prefix), as_("joins")
    hub = ClusterCommons(joins, writer=as_("exchange"), names=names)
    hub.put([write(0, 1)])

    hub.purge()

    # It does not wait for the end, and would not hear that it may not.
    every = f"/{names.shared},{names.records}"
    done = joins.request("POST", f"{every}/_forcemerge?only_expunge_deletes=true")
    assert done is not None
    assert done["_shards"]["failed"] == 0
    assert done["_shards"]["successful"] >= 2


def test_who_takes_shares_in_cannot_read_them_and_who_shows_them_cannot_write(
    as_: As, index_prefix: str
) -> None:
    names = Names(index_prefix)
    exchange, joins, console = as_("exchange"), as_("joins"), as_("console")
    hub = ClusterCommons(joins, writer=exchange, names=names)
    shown = ClusterCommons(console, names=names)
    index = names.index("op-metro", f"{BEGIN:%Y.%m}")

    assert hub.put([write(0, 1), write(4, 1), write(0, 2)]) == ["written"] * 3
    hub.refresh()

    for forbidden in (
        lambda: exchange.search(names.shared, {"query": {"match_all": {}}}),
        lambda: exchange.search(f"{index_prefix}-shared", {"query": {"match_all": {}}}),
        lambda: exchange.get(index, "share-0"),
        lambda: exchange.count(index, {"match_all": {}}),
        lambda: exchange.open_pit(index),
        lambda: exchange.get(names.records, "link:op-metro"),
        lambda: console.delete(index, "share-0"),
        lambda: console.put(index, "share-9", {}, None),
        lambda: console.delete_indices([index]),
        lambda: joins.request("GET", "/_plugins/_security/api/internalusers"),
        lambda: console.search(".opendistro_security", {"query": {"match_all": {}}}),
    ):
        with pytest.raises(ConfigError, match="let us in"):
            forbidden()
    with pytest.raises(ConfigError, match="security_exception"):
        shown.put([write(8, 1)])
    assert shown.search(CITY_SOC, "", Range()).total == 2
    assert shown.tally(CITY_SOC, "", Range(), "cw.operator") == [("op-metro", 2)]
    assert shown.get(CITY_SOC, "share-0") == write(0, 2).document


def test_the_role_of_the_joins_is_enough_for_a_whole_hub(as_: As, index_prefix: str) -> None:
    names = Names(index_prefix)
    joins = as_("joins")
    prepare(joins, names)
    hub = ClusterCommons(joins, names=names)
    hub.put([write(number, 1) for number in range(8)])

    assert joins.health().version == "opensearch 2.19.4"
    assert differences(joins, names.templates()) == []
    assert hub.remove(["share-0", "share-1"]) == 2
    assert len(list(hub.scan(TIME_MIN))) == 6
    version = hub.records.put("link", "op-metro", {"seq": 1}, None)
    hub.records.delete("link", "op-metro", hub.records.put("link", "op-metro", {}, version))
    assert list(hub.records.all("link")) == []
    assert hub.retain(BEGIN.replace(month=BEGIN.month + 1)) == 4


def test_a_cluster_without_the_plugin_has_no_roles(
    opensearch: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = client(opensearch, "admin", opensearch.admin_password)
    monkeypatch.setattr("siem.city.roles.API", "/_plugins/_nothing/roles")

    assert not put_roles(admin)
    assert "no Security plugin" in told(admin, Names())
    admin.close()


def test_an_account_that_may_not_make_roles_is_told_so(opensearch: Server) -> None:
    someone = client(opensearch, opensearch.user, opensearch.password)

    assert "this account may not" in told(someone, Names())
    someone.close()
