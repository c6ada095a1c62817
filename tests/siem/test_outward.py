"""What a heartbeat tells the city of a node."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from siem import assembly, config
from siem.node import Node, now_utc
from siem.outward import health_of
from siem.store.protocol import SourceState


@pytest.fixture
def settings(tmp_path: Path) -> config.Settings:
    return config.parse(
        {"operator": "op-metro", "state_dir": str(tmp_path), "sharing": {"clocks": True}}
    )


def _node(settings: config.Settings) -> Node:
    node = assembly.node_of(settings)
    now = now_utc()
    node.db.cases.open(
        "op-metro",
        "Writes to the heating, by m.rossi",
        "mara",
        now,
        aware_at=now - timedelta(hours=2),
        duties=["nis2-early-warning", "nis2-final-report"],
    )
    return node


def test_the_city_is_told_of_running_clocks_and_nothing_of_the_case(
    settings: config.Settings,
) -> None:
    node = _node(settings)

    said = health_of(settings, node)()

    node.close()
    (clock,) = said.clocks
    assert clock.duty == "NIS2 early warning, 24h"
    assert clock.due - clock.began == timedelta(hours=24)
    assert clock.draft == "3 of 6 fields"
    assert "rossi" not in repr(said)


def test_the_city_is_told_where_a_node_is_blind_and_not_why(settings: config.Settings) -> None:
    node = _node(settings)
    quiet = config.Source(id="alarm", reader="udp", quiet_ok=True)
    settings = msgspec.structs.replace(settings, source=[quiet])
    now = now_utc()
    node.clock = lambda: now
    health, before = health_of(settings, node), now - timedelta(hours=1)
    states = [
        SourceState("a", "c", state="running", last_received=now),
        SourceState("b", "c", state="running", last_received=before),
        SourceState("c", "c", state="waiting"),
        SourceState("d", "c", state="failed", error="/home/m.rossi is not there"),
        SourceState("e", "c", state="running", last_received=now, lag_s=360.0),
        SourceState("f", "c", state="ended", last_received=before),
        SourceState("alarm", "c", state="running", last_received=before),
    ]
    node.sources = [SimpleNamespace(state=one) for one in states]  # type: ignore[misc]
    first = {one.source: one.what for one in health().lost}
    node.clock = lambda: now + timedelta(minutes=16)
    later = {one.source for one in health().lost}

    node.close()
    assert first == {"b": "no data", "d": "failed", "e": "late by 6 min"}
    assert later == {"a", "b", "c", "d", "e"}
    assert "rossi" not in repr(health().lost)


def test_without_a_word_in_the_settings_it_is_told_of_none(tmp_path: Path) -> None:
    settings = config.parse({"operator": "op-metro", "state_dir": str(tmp_path)})
    node = _node(settings)

    said = health_of(settings, node)()

    node.close()
    assert said.clocks == ()
