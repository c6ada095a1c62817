"""What a node learns by listening: once each, bounded, and the same after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward import Asset, Event, LogSource, Record
from cityward.checks import broken_promises
from cityward.plugin import load as load_parts
from siem import assembly
from siem.assets import Inventory, from_settings
from siem.config import Zone, load, parse
from siem.learning import CHANGE, LINKS_MOST, SOURCE, Learner
from siem.modes import Modes
from siem.node import now_utc
from siem.register import Register
from siem.store.inventory import Kept
from siem.store.protocol import ModeEntry, Range
from tests.programs import PATIENCE_S, wait_until

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
ZONES = (
    Zone(id="grid", type="supervisory", networks=("192.0.2.0/26",), purdue=2),
    Zone(id="bay-7", type="control", networks=("192.0.2.64/26",), purdue=1),
    Zone(id="internet", type="external", networks=("203.0.113.0/24",)),
)
WRITE: dict[str, Any] = {
    "source.ip": "192.0.2.5",
    "destination.ip": "192.0.2.70",
    "destination.port": 502,
    "network.transport": "tcp",
    "network.protocol": "modbus",
    "event.action": "modbus_write_register",
    "event.outcome": "unknown",
    "ot.direction": "request",
    "ot.is_command": True,
    "ot.operation": "write",
    "ot.function.name": "write_single_register",
}
SYN: dict[str, Any] = {
    "source.ip": "192.0.2.5",
    "destination.port": 80,
    "network.transport": "tcp",
    "event.outcome": "failure",
}


def learner(*assets: Asset, hours: float = 0.0, **more: Any) -> Learner:
    return Learner(Inventory(assets, ZONES), hours=hours, has_zones=True, **more)


def event(
    fields: dict[str, Any], after_s: float = 0.0, category: str = "ot_protocol", **more: Any
) -> Event:
    fields = {**fields, **{name.replace("__", "."): value for name, value in more.items()}}
    made = Event(
        NOON + timedelta(seconds=after_s), LogSource(category), fields, Record(b"", "tap", 1, NOON)
    )
    described = Inventory((), ZONES).describe(made)
    return Event(made.time, made.logsource, {**described, **fields}, made.record)


def actions(events: Sequence[Event]) -> list[str]:
    return [
        one.record.place.partition(" ")[0] for one in events if isinstance(one.record.place, str)
    ]


def assets_of(made: Learner) -> dict[str, Any]:
    learnt = made.changes()
    return {one.id: one for one in learnt.assets} if learnt else {}


def test_a_first_command_shows_two_assets_a_conduit_and_a_writer() -> None:
    news = learner().learn([event(WRITE)], NOON)

    assert [one.record.place for one in news] == [
        "new_asset 192.0.2.5",
        "new_asset 192.0.2.70",
        "new_conduit grid>bay-7/modbus/502",
        "new_writer 192.0.2.5>192.0.2.70",
    ]
    assert {one.logsource for one in news} == {CHANGE}
    assert {one.fields["event.kind"] for one in news} == {"asset"}
    assert news[1].fields["message"] == (
        "192.0.2.70 in zone bay-7 was seen for the first time: modbus with 192.0.2.5"
    )
    assert news[1].fields["cw.asset.zone_type"] == "control"
    for one in news:
        assert broken_promises(one.record, [one]) == []


def test_what_was_seen_before_is_no_news_and_brings_its_time_up_to_date() -> None:
    made = learner()
    made.learn([event(WRITE)], NOON)
    assets_of(made)

    assert made.learn([event(WRITE, 30), event(WRITE, 60)], NOON) == []
    found = assets_of(made)

    assert found["192.0.2.70"].last_seen == NOON + timedelta(seconds=60)
    assert found["192.0.2.70"].first_seen == NOON
    assert found["192.0.2.70"].speaks == ["modbus server"]
    assert found["192.0.2.70"].words == ["write_single_register"]
    assert found["192.0.2.70"].writers == ["192.0.2.5"]
    assert found["192.0.2.5"].speaks == ["modbus client"]
    assert made.changes() is None


def test_an_address_that_only_received_unanswered_syns_is_no_asset_and_counted() -> None:
    made = learner()
    scan = [event(SYN, category="flow", destination__ip=f"192.0.2.{n}") for n in range(64, 127)]

    news = made.learn(scan, NOON)
    later = made.learn(
        [event(SYN, category="flow", destination__ip="192.0.2.64", event__outcome="success")], NOON
    )

    assert [one.record.place for one in news] == ["new_asset 192.0.2.5"]
    assert made.refused == {"unanswered": 63}
    assert [one.record.place for one in later][:1] == ["new_asset 192.0.2.64"]


def test_a_firewall_that_lets_a_packet_pass_proves_no_asset() -> None:
    passed = event(SYN, category="firewall", destination__ip="192.0.2.70", event__outcome="success")

    assert actions(learner().learn([passed], NOON)) == ["new_asset"]


@pytest.mark.parametrize(
    "address",
    [
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.251",
        "255.255.255.255",
        "0.0.0.0",
        "127.0.0.1",
        "ff02::fb",
        "01-00-5E-00-00-FB",
        "FF-FF-FF-FF-FF-FF",
        "00-00-00-00-00-00",
        "zz-00-5E-00-00-FB",
        "no address",
        "",
    ],
)
def test_what_is_no_device_of_ours_is_no_asset(address: str) -> None:
    named = "source.mac" if "-" in address else "source.ip"

    assert learner().learn([event({named: address})], NOON) == []


@pytest.mark.parametrize(
    ("address", "is_ours"), [("10.1.2.3", True), ("fd00::1", True), ("8.8.8.8", False)]
)
def test_without_zones_an_address_that_is_not_public_is_ours(address: str, is_ours: bool) -> None:
    made = Learner(Inventory((), ()), hours=0)

    news = made.learn([event({"source.ip": address})], NOON)

    assert actions(news) == (["new_asset"] if is_ours else [])


def test_a_device_without_ip_is_known_by_its_mac_address() -> None:
    (news,) = learner().learn([event({"source.mac": "02-00-00-00-00-07"})], NOON)

    assert news.fields["source.mac"] == "02-00-00-00-00-07"


def test_an_asset_of_the_inventory_is_no_news_but_a_new_writer_of_it_is() -> None:
    rtu = Asset(id="rtu-7", addresses=("192.0.2.70",))
    scada = Asset(id="scada-1", addresses=("192.0.2.5",))
    made = learner(rtu, scada)

    news = made.learn([event(WRITE)], NOON)

    assert actions(news) == ["new_conduit", "new_writer"]
    assert news[1].fields["cw.asset.asset_id"] == "rtu-7"
    assert set(assets_of(made)) == {"rtu-7", "scada-1"}


def test_a_device_that_says_who_it_is_is_believed_and_a_log_names_its_writer_only() -> None:
    made = learner()
    identity = {
        **WRITE,
        "ot.is_command": False,
        "ot.direction": "response",
        "event.action": "modbus_read_device_identification",
        "cw.vendor": {"vendor_name": "Acme", "product_code": "X1", "revision": "2.1"},
    }
    login = {"source.ip": "192.0.2.9", "host.name": "gateway", "network.protocol": "ssh"}

    made.learn([event(identity), event(login)], NOON)
    first = assets_of(made)
    made.learn([event({**identity, "cw.vendor": {"revision": "2.2"}})], NOON)

    found = first["192.0.2.70"]
    assert (found.vendor, found.model) == ("Acme", "X1")
    assert first["192.0.2.9"].names == []
    assert assets_of(made)["192.0.2.70"].firmware == "2.2"


def test_a_lease_joins_name_and_mac_address_to_the_asset() -> None:
    made = learner()
    lease = {
        "source.ip": "192.0.2.9",
        "source.mac": "02-00-00-00-00-09",
        "network.protocol": "dhcp",
        "host.name": "panel-9",
    }

    made.learn([event(lease), event({"source.mac": "02-00-00-00-00-09"})], NOON)

    found = assets_of(made)
    assert list(found) == ["192.0.2.9"]
    assert found["192.0.2.9"].names == ["panel-9"]
    assert found["192.0.2.9"].addresses == ["192.0.2.9", "02-00-00-00-00-09"]


def test_a_server_that_speaks_of_its_client_names_the_client() -> None:
    made = learner()
    lease = {
        "source.ip": "192.0.2.1",
        "network.protocol": "dhcp",
        "host.ip": ["192.0.2.9"],
        "host.mac": ["02:00:00:00:00:0a"],
        "host.hostname": "panel-9",
    }

    made.learn([event({"source.ip": "192.0.2.9"}), event(lease)], NOON)

    found = assets_of(made)
    assert found["192.0.2.9"].names == ["panel-9"]
    assert found["192.0.2.9"].addresses == ["192.0.2.9", "02-00-00-00-00-0A"]
    assert found["192.0.2.1"].names == []


def test_in_the_learning_period_nothing_is_news_and_its_end_is_said_once() -> None:
    made = learner(hours=24)
    other = {**WRITE, "source.ip": "192.0.2.6"}

    first = made.learn([event(WRITE)], NOON)
    end = made.learn([event(other)], NOON + timedelta(hours=24))
    after = made.learn([event({**WRITE, "source.ip": "192.0.2.7"})], NOON + timedelta(hours=25))

    assert first == []
    assert made.until is None
    assert [one.fields["event.action"] for one in end] == ["learning_ended"]
    assert end[0].fields["message"].startswith("3 assets and 1 conduits were learnt in 24 h;")
    assert actions(after) == ["new_asset", "new_writer"]


def test_batches_that_come_again_teach_the_same_and_tell_nothing() -> None:
    made, again = learner(), learner()
    batch = [event(WRITE)]
    news = made.learn(batch, NOON)

    assert again.learn([*batch, *news], NOON, again=True) == []
    assert again.learn(batch, NOON) == []
    assert assets_of(again) == assets_of(made)


def test_assets_and_links_are_bounded_and_what_is_refused_is_counted() -> None:
    made = Learner(Inventory((), ()), hours=0, most=10)

    for turn in range(3):
        made.learn(
            [event({"source.ip": f"10.{turn}.{n >> 8}.{n & 255}"}) for n in range(LINKS_MOST // 2)],
            NOON,
        )

    assert len(made._assets) == 10
    assert len(made._links) <= LINKS_MOST
    assert made.refused["full"] == 3 * (LINKS_MOST // 2) - 10


def test_a_forger_who_changes_its_mac_address_fills_no_memory() -> None:
    made = learner()
    lease = {
        "network.protocol": "dhcp",
        "source.ip": "192.0.2.5",
        "destination.ip": "192.0.2.70",
        "event.outcome": "success",
        "host.ip": ["192.0.2.70"],
        "host.name": "x",
    }
    made.learn(
        [
            event({**lease, "host.mac": [f"02-00-00-00-{at >> 8:02X}-{at & 255:02X}"]})
            for at in range(1_000)
        ],
        NOON,
    )

    assert len(made._ids) < 100


def test_names_that_are_too_long_are_not_remembered() -> None:
    made = learner()

    made.learn([event(WRITE, host__name=f"{at}" + "x" * 30_000) for at in range(100)], NOON)

    assert not made._links


def test_lists_of_an_asset_are_bounded() -> None:
    made = learner()
    for number in range(500):
        made.learn(
            [
                event(
                    {
                        **WRITE,
                        "source.ip": f"192.0.2.{number % 64}",
                        "network.protocol": f"p{number}" + "x" * 1000,
                        "ot.function.name": f"f{number}",
                        "event.action": f"a{number}",
                    }
                )
            ],
            NOON,
        )

    found = assets_of(made)["192.0.2.70"]
    assert max(map(len, (found.speaks, found.words, found.peers, found.writers))) <= 64
    assert max(map(len, found.speaks)) <= 210


@pytest.mark.parametrize("value", [None, 7, "", ["192.0.2.5"], {"a": 1}, b"\x00", "x" * 10_000])
def test_strange_values_are_no_fault(value: Any) -> None:
    made = learner()
    names = ("source.ip", "destination.ip", "network.protocol", "destination.port", "host.name")

    for name in (*names, "cw.vendor", "ot.function.name", "source.mac", "ot.firmware.version"):
        fields = {**event(WRITE).fields, name: value}
        made.learn([Event(NOON, LogSource("ot_protocol"), fields, Record(b"", "t", 1, NOON))], NOON)

    made.changes()


def test_a_merged_asset_is_taken_up_under_the_one_it_became() -> None:
    made = learner()
    made.learn([event(WRITE)], NOON)
    assets_of(made)
    seen = {one.id: one for one in made._assets.values()}
    kept = [
        Kept("192.0.2.5", "approved", None, seen["192.0.2.5"]),
        Kept("192.0.2.70", "observed", None, seen["192.0.2.70"], merged_into="192.0.2.5"),
    ]

    made.load(kept, (), {})
    made.learn([event({**WRITE, "source.ip": "192.0.2.8"})], NOON)

    assert "192.0.2.70" not in assets_of(made)


@pytest.mark.slow
def test_a_known_combination_costs_less_than_a_microsecond() -> None:
    made = learner()
    events = [
        event(
            {**WRITE, "source.ip": f"192.0.2.{n % 20}", "destination.ip": f"192.0.2.{64 + n % 50}"}
        )
        for n in range(1000)
    ]
    made.learn(events, NOON)
    costs = []

    for _ in range(200):  # the best of many: another process may hold the core
        began = time.process_time()
        made.learn(events, NOON)
        costs.append((time.process_time() - began) / len(events))

    assert min(costs) < 1e-6, f"{min(costs) * 1e9:.0f} ns an event"


# ---- The calendar


def test_the_mode_is_that_of_the_smallest_part_that_holds() -> None:
    two = timedelta(hours=2)
    modes = Modes(
        "normal",
        [
            ModeEntry(NOON, NOON + two, "exercise"),
            ModeEntry(NOON, NOON + two, "maintenance", zone="bay-7"),
            ModeEntry(NOON, NOON + two, "test", assets=("rtu-7",)),
            ModeEntry(NOON, NOON + two, "normal", site="North"),
        ],
    )
    bay = {"cw.destination.zone": "bay-7"}

    assert modes.at({}, NOON) == "exercise"
    assert modes.at(bay, NOON) == "maintenance"
    assert modes.at({**bay, "cw.asset.asset_id": "rtu-7"}, NOON) == "test"
    assert modes.at({"cw.site": "North"}, NOON) == "normal"
    assert modes.at(bay, NOON - timedelta(seconds=1)) == "normal"
    assert modes.at(bay, NOON + two) == "normal"


# ---- In a node

ALLOW = (
    "title: A writer that is none\n"
    "id: 5b0d1c1e-0c53-4f51-8a3f-4c1f8a6b7c12\n"
    "logsource: {product: linux, service: sshd}\n"
    "detection:\n"
    "  login: {event.outcome: failure}\n"
    "  known: {source.ip|expand: '%jump_hosts%'}\n"
    "  condition: login and not known\n"
    "level: medium\n"
)


def _line(number: int, address: str = "") -> bytes:
    minute, second = divmod(number % 3600, 60)
    address = address or f"192.0.2.{number % 200 + 1}"
    return (
        f"2026-01-05T10:{minute:02d}:{second:02d}Z gw sshd[{number}]: "
        f"Failed password for root from {address} port 4000 ssh2\n"
    ).encode()


def _folder(folder: Path, hours: float = 0.0) -> Path:
    (folder / "rules").mkdir()
    (folder / "rules" / "allow.yml").write_text(ALLOW)
    (folder / "cityward.toml").write_text(
        f"""
state_dir = "{folder}/state"
[rules]
shipped = false
folders = ["{folder}/rules"]
[models]
on = false
[inventory]
learning_hours = {hours}
[[asset]]
id = "jump"
addresses = ["192.0.2.250"]
roles = ["jump_host"]
[[calendar]]
since = 2026-01-05T10:00:05Z
until = 2026-01-05T10:00:07Z
mode = "maintenance"
[[source]]
id = "auth"
reader = "file"
path = "{folder}/auth.log"
collector = "syslog"
"""
    )
    return folder / "cityward.toml"


def _through(config: Path) -> Any:
    settings = load(config)
    source = assembly.file_source(
        config.parent / "auth.log", load_parts("collectors"), source="auth"
    )
    return assembly.node_of(settings, sources=[source], event_time=True), source


def test_news_of_a_node_is_kept_beside_what_showed_it_and_counts_as_no_record(
    tmp_path: Path,
) -> None:
    config = _folder(tmp_path)
    (tmp_path / "auth.log").write_bytes(b"".join(map(_line, range(10))))
    node, source = _through(config)

    for gathered in node.collect_from(source):
        node.conclude(node.detect(node.keep(gathered)))
    node.finish()

    rows = node.events.search("cw.record.source:inventory", Range(), limit=100).rows
    assert {one["event.action"] for one in rows} == {"new_asset"}
    assert len(rows) == 10
    assert source.state.events == 10
    assert len(node.db.inventory.assets()) == 10
    assert {one["observer.name"] for one in rows} == {"auth"}
    node.close()


def test_the_mode_of_the_calendar_is_on_the_events_of_its_time(tmp_path: Path) -> None:
    config = _folder(tmp_path, 24)
    (tmp_path / "auth.log").write_bytes(b"".join(map(_line, range(10))))
    node, source = _through(config)

    for gathered in node.collect_from(source):
        node.keep(gathered)
    rows = node.events.search("", Range(), limit=100).rows

    modes = {one["@timestamp"].second: one["cw.mode"] for one in rows}
    assert [second for second, mode in sorted(modes.items()) if mode == "maintenance"] == [5, 6]
    node.close()


def test_a_role_that_a_person_approves_holds_in_the_running_path(tmp_path: Path) -> None:
    config = _folder(tmp_path, 24)
    (tmp_path / "auth.log").write_bytes(_line(1))
    node, source = _through(config)
    gathered = next(iter(node.collect_from(source)))
    events = node.keep(gathered)
    assert len(node.detect(events)) == 1

    register = Register(node.db, load(config))
    node._due["states"] = 0.0
    node.conclude(())
    register.approve(["192.0.2.2"], "kim", "our jump host", NOON, roles=("jump_host",))
    node._due["states"] = 0.0
    node.conclude(())

    assert node.detect(events) == []
    assert node.inventory.find("192.0.2.2").roles == ("jump_host",)
    node.close()


def test_what_the_settings_say_wins_over_what_was_approved(tmp_path: Path) -> None:
    config = _folder(tmp_path)
    (tmp_path / "auth.log").write_bytes(_line(1))
    node, _ = _through(config)
    register = Register(node.db, load(config))
    register.approve(["other"], "kim", "", NOON, addresses=("192.0.2.250", "192.0.2.9"))

    node._reread()

    assert node.inventory.find("192.0.2.250").id == "jump"
    assert node.inventory.find("192.0.2.9").id == "other"
    node.close()


def test_an_asset_of_the_settings_shows_what_was_seen_at_its_addresses(tmp_path: Path) -> None:
    settings = parse(
        {
            "state_dir": str(tmp_path),
            "rules": {"shipped": False},
            "asset": [{"id": "rtu-7", "addresses": ["192.0.2.70", "192.0.2.71"]}],
        }
    )
    node = assembly.node_of(settings, sources=[])
    node.learner.learn([event(WRITE), event({**WRITE, "destination.ip": "192.0.2.71"})], NOON)  # type: ignore[union-attr]
    node.finish()

    rows = {row.asset.id: row for row in Register(node.db, settings).assets()}

    assert set(rows) == {"rtu-7", "192.0.2.5"}
    assert rows["rtu-7"].origin == "settings"
    assert rows["rtu-7"].seen is not None
    assert rows["rtu-7"].seen.writers == ["192.0.2.5"]
    node.close()


FAULTS = (
    "after-receive",
    "before-commit",
    "after-commit-before-detect",
    "keep-before-commit",
    "keep-after-commit",
)


def _run(config: Path, fault: str = "") -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "siem.cli", "run", "--path-only", "--config", str(config)]
    return subprocess.Popen(
        words, env={**os.environ, "CITYWARD_FAULT": fault}, stderr=subprocess.DEVNULL
    )


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_killed_node_tells_what_is_new_once_and_forgets_nothing(
    tmp_path: Path, fault: str
) -> None:
    config = _folder(tmp_path)
    log = tmp_path / "auth.log"
    log.write_bytes(b"".join(map(_line, range(100))))

    assert _run(config, f"{fault}:1").wait(PATIENCE_S) == -signal.SIGKILL
    with log.open("ab") as file:
        file.writelines(map(_line, range(100, 400)))
    second = _run(config)
    _wait_for_assets(config, 200)
    second.send_signal(signal.SIGTERM)
    assert second.wait(PATIENCE_S) == 0

    events = assembly.events_of(load(config), now_utc, write=False)
    rows = events.search(f"cw.record.source:{SOURCE}", Range(), limit=1000).rows
    told = Counter(one["cw.record.place"] for one in rows)
    assert len(told) == 200
    assert set(told.values()) == {1}


def _wait_for_assets(config: Path, wanted: int) -> None:
    def found() -> int:
        settings = load(config)
        db = assembly.db_of(settings, from_settings(settings), now_utc)
        try:
            return len(db.inventory.assets())
        finally:
            db.close()

    wait_until(lambda: found() >= wanted, f"not all of {wanted} assets came")
