"""Facts for the gate: inventory, flows of a day, calendar, settings, verdicts, the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward import Analytic, Event, Finding, LogSource, Record, Target
from playbooks import sign
from playbooks.playbook import SHIPPED_BY
from playbooks.targets import target_of
from siem import assembly, config
from siem.actuators import specs
from siem.assets import from_settings
from siem.config import Settings
from siem.facts import FactBook, Facts, bases_in, stop_file
from siem.ruleset import rule_folders
from siem.store.embedded import NodeDb
from siem.store.protocol import Change, Learnt, ModeEntry, Observed, Range

NOW = datetime(2026, 11, 12, 3, 0, tzinfo=UTC)
SCANNER = "203.0.113.7"
RULE = "8b5db9da-5732-4afb-9b5b-4a1a3b8a2f0e"
FILE = """
operator = "op-tram"

[sharing]
hub = "https://hub.city.example:8443"
peer_networks = ["198.51.100.0/24"]
own_networks = ["192.0.2.0/28"]
own_domains = ["tram.example"]

[[zone]]
id = "office"
type = "enterprise"
networks = ["10.1.0.0/16"]

[[zone]]
id = "cams"
type = "iot"
networks = ["10.4.0.0/24"]

[[zone]]
id = "z7"
type = "control"
networks = ["10.7.0.0/24"]

[[zone]]
id = "trip"
type = "safety"
networks = ["10.7.0.64/28"]

[[asset]]
id = "plc-1"
type = "plc"
addresses = ["10.7.0.5", "00:11:22:33:44:55"]
last_confirmed = "2026-10-20"
serves = ["line-2"]

[[asset]]
id = "scada-1"
name = "SCADA"
addresses = ["10.7.0.2"]
depends_on = ["plc-1"]
last_confirmed = "2026-10-01"

[[asset]]
id = "hmi-1"
addresses = ["10.1.0.9"]
depends_on = ["SCADA"]

[[asset]]
id = "camera-1"
type = "camera"
addresses = ["10.4.0.9", "cam1.tram.example"]
serves = ["platform-3"]
site = "north"

[[asset]]
id = "camera-2"
type = "camera"
addresses = ["10.4.0.10"]
serves = ["platform-3"]

[[asset]]
id = "gw-1"
type = "router"
addresses = ["10.1.0.1"]

[[asset]]
id = "clock-1"
roles = ["time"]
addresses = ["10.1.0.4"]

[response]
stop_file = "{stop}"
keep = {{"203.0.113.64/28" = "maintenance partner", "cdn.example" = "shared cloud"}}
protected = {{"10.1.0.53" = "name server"}}
peak_hours = ["mo-fr 06:30-09:00", "22:00-01:00"]
time_zone = "Europe/Paris"

people = {{"line-2" = 40000}}

[response.actuators.nftables]

[[response.nonessential]]
source = "office"
destination = "plc-1"
port = 502
why = "engineering goes over the jump host"
"""


class Flows:
    """The events of a day: who began to talk to whom."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self.pairs = pairs
        self.asked: list[tuple[str, Range]] = []

    def top_values(
        self, query: str, span: Range, field: str, limit: int = 10
    ) -> tuple[Sequence[tuple[str, int]], int]:
        self.asked.append((query, span))
        found = {source for source, target in self.pairs if f'"{target}"' in query}
        return [(one, 1) for one in sorted(found)], len(found)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    file = tmp_path / "cityward.toml"
    file.write_text(f'state_dir = "{tmp_path}/state"' + FILE.format(stop=tmp_path / "STOP"))
    return config.load(file)


@pytest.fixture
def db(settings: Settings) -> Iterator[NodeDb]:
    db = assembly.db_of(settings, from_settings(settings), lambda: NOW)
    yield db
    db.close()


Ask = Callable[..., Facts]


@pytest.fixture
def facts(settings: Settings, db: NodeDb) -> Ask:
    def at(now: datetime = NOW, flows: Any = None, **bases: Any) -> Facts:
        book = FactBook(settings, db, flows or Flows(), db.runs, specs(), bases)
        return book.at(now)

    return at


def net(value: str) -> Target:
    return target_of("ipv4_net", value)


def flow(source: str, destination: str, port: int = 502) -> Target:
    said = {"src_addr": source, "dst_addr": destination, "dst_port": str(port)}
    return target_of("ipv4_connection", said)


# ---- Whose it is, and where


def test_an_asset_is_found_by_address_name_hardware_address_and_network(facts):
    world = facts()

    for target in (
        net("10.7.0.5"),
        Target("device", "plc-1"),
        Target("mac_addr", "00:11:22:33:44:55"),
    ):
        assert [one.id for one in world.assets_in(target)] == ["plc-1"]
    assert {one.id for one in world.assets_in(net("10.4.0.0/24"))} == {"camera-1", "camera-2"}
    assert world.asset_of(Target("domain_name", "cam1.tram.example")).id == "camera-1"
    assert world.asset_of(Target("uri", "https://cam1.tram.example/x")).id == "camera-1"
    assert world.asset_of(net(SCANNER)) is None


def test_an_asset_is_in_the_zone_of_its_address(facts):
    plc = facts().asset_of(net("10.7.0.5"))

    assert (plc.zone, plc.zone_type) == ("z7", "control")
    assert facts().zone_size("cams") == 2


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (net(SCANNER), "external"),
        (net("10.7.0.5"), "control"),
        (net("10.7.0.70"), "safety"),
        (net("10.7.0.0/24"), "safety"),
        (net("10.4.0.77"), "iot"),
        (Target("device", "camera-1"), "iot"),
        (Target("device", "nobody"), ""),
        (net("198.51.100.9"), ""),
        (net("10.99.0.1"), ""),
        (Target("domain_name", "evil.example"), "external"),
    ],
)
def test_the_zone_of_a_target_is_the_strictest_that_it_meets(facts, target, kind):
    assert facts().zone_type(target) == kind


@pytest.mark.parametrize(
    ("target", "owner", "is_external"),
    [
        (net(SCANNER), "", True),
        (net("203.0.113.0/24"), "", True),
        (net("198.51.100.9"), "peer", False),
        (net("198.51.100.0/24"), "peer", False),
        (net("192.0.2.5"), "op-tram", False),
        (net("192.0.2.200"), "", True),
        (net("192.0.2.0/24"), "op-tram", False),
        (net("10.7.0.200"), "op-tram", False),
        (net("172.16.0.1"), "", False),
        (Target("domain_name", "evil.example"), "", True),
        (Target("domain_name", "www.tram.example"), "", False),
        (Target("domain_name", "cam1.tram.example"), "op-tram", False),
        (Target("domain_name", "printer.local"), "", False),
        (Target("device", "evil"), "", False),
    ],
)
def test_external_is_what_is_nobodys_whom_we_know(facts, target, owner, is_external):
    assert facts().owner_of(target) == owner
    assert facts().is_external(target) == is_external


def test_without_zones_nothing_is_known_to_be_external(db, settings):
    import msgspec

    bare = msgspec.structs.replace(
        settings, zone=(), asset=(), sharing=config.Sharing(), response=config.Response()
    )
    world = FactBook(bare, db, Flows(), db.runs, {}).at(NOW)

    assert not world.is_external(net(SCANNER))


def test_the_keep_list_holds_networks_and_domains_both_ways(facts):
    world = facts()

    assert world.kept(net("203.0.113.70")) == "maintenance partner"
    assert world.kept(net("203.0.113.0/24")) == "maintenance partner"
    assert world.kept(net(SCANNER)) == ""
    for name in ("cdn.example", "img.cdn.example"):
        assert world.kept(Target("domain_name", name)) == "shared cloud"
    assert world.kept(Target("domain_name", "notcdn.example")) == ""


@pytest.mark.parametrize(
    ("target", "what"),
    [
        (net("10.1.0.53"), "name server"),
        (net("10.1.0.1"), "gateway"),
        (Target("device", "clock-1"), "time"),
        (Target("domain_name", "hub.city.example"), "the hub (hub.city.example)"),
        (Target("domain_name", "city.example"), "the hub (hub.city.example)"),
        (net("10.1.0.0/24"), "name server"),
        (net("10.4.0.9"), ""),
    ],
)
def test_protected_peers_are_known_by_role_type_settings_and_what_the_node_needs(
    facts, target, what
):
    assert facts().protected(target) == what


def test_a_confirmation_lasts_thirty_days(facts):
    world = facts()

    assert world.is_confirmed(world.asset_of(Target("device", "plc-1")))
    assert not world.is_confirmed(world.asset_of(Target("device", "scada-1")))
    assert not world.is_confirmed(world.asset_of(Target("device", "hmi-1")))


def test_a_flow_is_not_essential_only_where_a_person_listed_all_of_it(facts):
    world = facts()

    assert world.nonessential(flow("10.1.0.9", "10.7.0.5")) == (
        "office to plc-1 port 502, engineering goes over the jump host"
    )
    for other in (
        flow("10.1.0.9", "10.7.0.5", 102),
        flow("10.1.0.9", "10.7.0.5", 0),
        flow("10.1.0.9", "10.7.0.2"),
        flow("10.4.0.9", "10.7.0.5"),
        flow("10.1.0.9", "10.7.0.0/24"),
        net("10.1.0.9"),
    ):
        assert world.nonessential(other) == ""


# ---- What hangs on it


def test_how_many_people_use_a_service_is_what_the_settings_say(facts):
    now = facts()

    assert now.people("line-2") == 40_000
    assert now.people("platform-3") is None


def test_dependants_are_those_of_the_inventory_and_those_who_began_to_talk_to_it(facts):
    flows = Flows(
        ("10.1.0.9", "10.4.0.9"),
        ("10.4.0.10", "10.4.0.9"),
        ("10.1.0.77", "10.4.0.9"),
        ("203.0.113.1", "10.4.0.9"),
        ("203.0.113.2", "10.4.0.9"),
        ("10.4.0.9", SCANNER),
    )
    world = facts(flows=flows)

    assert set(world.dependants(Target("device", "camera-1"))) == {
        *("platform-3", "10.1.0.77", "hmi-1", "camera-2", "2 addresses outside")
    }
    assert world.dependants(net(SCANNER)) == ("camera-1",)
    assert set(world.dependants(net("10.7.0.5"))) == {"line-2", "scada-1", "hmi-1"}
    query, span = flows.asked[0]
    assert query == 'destination.ip:("10.4.0.9")'
    assert NOW - span.since == timedelta(hours=24)


def test_a_target_is_asked_about_once_a_moment(facts):
    flows = Flows()
    world = facts(flows=flows)

    world.dependants(net(SCANNER))
    world.dependants(net(SCANNER))

    assert len(flows.asked) == 1


def test_redundant_are_assets_of_a_type_that_serve_the_same(facts, db):
    world = facts()
    camera = world.asset_of(Target("device", "camera-1"))
    (peer,) = world.redundant_peers(camera)

    assert peer.id == "camera-2"
    assert not world.is_up(peer)
    seen = Observed("10.4.0.10", NOW, NOW - timedelta(minutes=10), ["10.4.0.10"])
    db.keep([], checkpoint=1, learnt=Learnt([seen]))
    assert world.is_up(peer)
    assert not facts(NOW + timedelta(hours=1)).is_up(peer)


# ---- Now


@pytest.mark.parametrize(
    ("time", "is_peak"),
    [
        ("2026-11-12T05:29:00", False),
        ("2026-11-12T05:30:00", True),
        ("2026-11-12T07:59:00", True),
        ("2026-11-12T08:00:00", False),
        ("2026-11-14T06:00:00", False),
        ("2026-11-14T21:30:00", True),
        ("2026-11-14T23:59:00", True),
        ("2026-11-15T00:00:00", False),
    ],
)
def test_peak_hours_are_local_and_may_pass_midnight(facts, time, is_peak):
    assert facts(datetime.fromisoformat(time + "+00:00")).is_peak() == is_peak


def test_the_mode_is_that_of_the_calendar_at_the_place_of_the_target(facts, db):
    entry = ModeEntry(
        NOW - timedelta(hours=1), NOW + timedelta(hours=1), "maintenance", zone="cams", by="ada"
    )
    assert facts().mode(net("10.4.0.9")) == "normal"

    db.inventory.add_entry(entry, NOW)

    assert facts().mode(net("10.4.0.9")) == "maintenance"
    assert facts().mode(net("10.4.0.200")) == "maintenance"
    assert facts().mode(net(SCANNER)) == "normal"


def test_what_people_change_is_seen_by_the_next_facts(settings, db):
    book = FactBook(settings, db, Flows(), db.runs, specs())
    assert book.at(NOW).asset_of(net("10.4.0.30")) is None

    db.inventory.say(["10.4.0.30"], "approved", "ada", "", NOW, type="camera")

    found = book.at(NOW).asset_of(net("10.4.0.30"))
    assert (found.zone, found.zone_type) == ("cams", "iot")
    assert book.at(NOW).is_confirmed(found)


def test_the_stop_file_stops_everything(facts, settings):
    assert facts().stopped() == []

    stop_file(settings).touch()

    assert facts().stopped() == ["global"]


def test_a_key_counts_while_its_file_is_named_and_not_revoked(tmp_path, settings, db):
    import msgspec

    path = tmp_path / "soc.pub.yml"
    _, public = sign.new_key(NOW)
    path.write_bytes(public)
    said = msgspec.structs.replace(settings.response, keys=(str(path),))
    keyed = msgspec.structs.replace(settings, response=said)
    world = FactBook(keyed, db, Flows(), db.runs, {}).at(NOW + timedelta(days=1))

    assert world.trusts("soc")
    assert world.trusts(SHIPPED_BY)
    assert not world.trusts("other")
    path.write_bytes(public + b"revoked: 2026-11-12\n")
    assert not world.trusts("soc")
    path.unlink()
    assert not world.trusts("soc")


def test_only_actuators_of_the_settings_are_this_operators(facts):
    assert facts().actuator("nftables").action_class == "A1"
    assert facts().actuator("mosquitto") is None


# ---- What speaks for it


def keep(db: NodeDb, rule: str, kind: Any = "rule", source: str = SCANNER, **said: Any) -> str:
    fields = {"source.ip": source, "cw.operator": "op-tram", "cw.mode": "normal"} | said
    record = Record(b"", "test", "0", NOW)
    found = Finding(
        analytic=Analytic(id=rule, name=rule, kind=kind, version="1"),
        title="t",
        description="d",
        severity="high",
        group=(("source.ip", source), ("n", str(len(fields)))),
        first_seen=NOW,
        last_seen=NOW,
        events=(Event(NOW, LogSource(category="network"), fields, record),),
        fields=fields,
    )
    before = {row["finding.id"] for row in db.search("", Range(), limit=1_000).rows}
    db.keep([found], checkpoint=1)
    rows = db.search("", Range(), limit=1_000).rows
    return next(row["finding.id"] for row in rows if row["finding.id"] not in before)


def spoke(facts: Ask, db: NodeDb, id: str, **bases: Any) -> list[str]:
    return sorted(facts(**bases).analytics(db.get(id)))


def test_analytics_are_own_rules_and_models_that_spoke_of_the_same_address(facts, db):
    first = keep(db, "r1")
    keep(db, "r2")
    keep(db, "model.surprise", "model")
    keep(db, "r3", source="203.0.113.99")
    keep(db, "i1", "indicator")
    keep(db, "r4", **{"cw.operator": "op-port"})

    assert spoke(facts, db, first) == ["model.surprise", "r1", "r2"]


def test_a_correlation_and_the_rules_it_is_made_of_are_one(facts, db):
    first = keep(db, "r1")
    keep(db, "c1", "correlation")
    keep(db, "c2", "correlation")

    assert spoke(facts, db, first) == ["r1"]
    made = {"c1": frozenset({"r1"}), "c2": frozenset({"r8", "r9"})}
    assert spoke(facts, db, first, **made) == ["c2", "r1"]
    both = {"c1": frozenset({"r8"}), "c2": frozenset({"r8", "r9"})}
    assert len(spoke(facts, db, first, **both)) == 2


def test_another_operators_sighting_counts_as_none(facts, db):
    theirs = keep(db, "i1", "indicator")
    hubs = keep(db, "r5", **{"cw.operator": "city"})

    assert spoke(facts, db, theirs) == []
    assert spoke(facts, db, hubs) == []


def test_a_rule_that_calls_itself_a_model_or_the_other_way_counts_as_none(facts, db):
    assert spoke(facts, db, keep(db, "model.mine", "rule")) == []
    assert spoke(facts, db, keep(db, "r1", "model")) == []


def test_a_finding_that_was_wrong_speaks_for_no_other(facts, db):
    first = keep(db, "r1")
    wrong = keep(db, "r2")

    db.change([wrong], Change(verdict="false_positive"), "ada", NOW)

    assert spoke(facts, db, first) == ["r1"]


def test_a_precision_needs_twenty_verdicts(facts, db):
    ids = [keep(db, "r1", source=f"203.0.113.{n}") for n in range(20)]

    db.change(ids[:19], Change(verdict="true_positive"), "ada", NOW)
    assert facts().precision("r1") is None
    db.change(ids[19:], Change(verdict="false_positive"), "ada", NOW)

    assert facts().precision("r1") == 0.95
    assert facts().precision('r2" OR rule.id:"r1') is None


def test_the_rules_at_the_bottom_of_the_shipped_correlations_are_known():
    from detectors.sigma.load import load_folder

    bases = bases_in(load_folder(*rule_folders(Settings())).speaking())

    scan, ports = "a857feef-da01-49e1-9429-51e6b5bc5d7e", "7e536e20-724d-4d43-b901-fb0f998f9cc8"
    assert bases[scan] & bases[ports]
    assert not any(one in bases for found in bases.values() for one in found)
