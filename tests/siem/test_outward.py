"""What a heartbeat tells the city of a node."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from siem import assembly, config
from siem.node import Node, now_utc
from siem.outward import health_of


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


def test_without_a_word_in_the_settings_it_is_told_of_none(tmp_path: Path) -> None:
    settings = config.parse({"operator": "op-metro", "state_dir": str(tmp_path)})
    node = _node(settings)

    said = health_of(settings, node)()

    node.close()
    assert said.clocks == ()
