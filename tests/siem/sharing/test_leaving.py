"""The policy of a node: where it comes from, what it takes for ours, and when it is read again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cityward import Asset, ConfigError
from siem.config import Settings, Sharing, Zone
from siem.leaving import Current, join_root, plan_of, policy_of
from siem.sharing.compiler import BASELINE
from siem.sharing.external import address_of
from siem.sharing.policy import example_for
from siem.sharing.tokens import root_text

ROOT = b"r" * 32


def settings(folder: Path, **sharing: object) -> Settings:
    (folder / "policy.yml").write_text(example_for("op-metro"))
    return Settings(
        operator="op-metro",
        state_dir=str(folder / "state"),
        zone=(
            Zone(id="depot", type="control", networks=("10.1.0.0/16", "192.0.2.0/28")),
            Zone(id="world", type="external", networks=("203.0.113.0/24",)),
        ),
        asset=(Asset(id="vpn", addresses=("192.0.2.99", "02:00:00:00:00:01")),),
        sharing=Sharing(**{"policy": str(folder / "policy.yml"), **sharing}),  # type: ignore[arg-type]
    )


def test_zones_assets_and_published_networks_are_ours_external_zones_are_not(
    tmp_path: Path,
) -> None:
    plan = plan_of(
        settings(
            tmp_path,
            own_networks=("198.51.100.0/28",),
            peer_networks=("198.51.100.64/28",),
            own_domains=("metro.example",),
        )
    )

    ours = ("192.0.2.3", "192.0.2.99", "198.51.100.1", "198.51.100.70", "10.1.2.3")
    assert not any(plan.is_external(address_of(one)) for one in ours)
    assert all(plan.is_external(address_of(one)) for one in ("203.0.113.7", "192.0.2.98"))
    assert not plan.is_external_name("db.metro.example")


def test_without_a_policy_there_is_none_and_no_key_is_made(tmp_path: Path) -> None:
    assert policy_of(settings(tmp_path, policy="")) is None
    assert not (tmp_path / "state").exists()


def test_the_root_comes_from_the_place_that_the_settings_name(tmp_path: Path) -> None:
    by_variable = settings(tmp_path, join_key_env="JOIN")

    assert join_root(settings(tmp_path)) is None
    assert join_root(by_variable, {"JOIN": root_text(ROOT)}) == ROOT
    with pytest.raises(ConfigError, match="JOIN is not set"):
        join_root(by_variable, {})
    with pytest.raises(ConfigError, match="a letter is wrong"):
        join_root(by_variable, {"JOIN": "x"})
    with pytest.raises(ConfigError, match="cannot be read"):
        join_root(settings(tmp_path, join_key_file=str(tmp_path / "none")))
    (tmp_path / "key").write_text(root_text(ROOT))
    assert join_root(settings(tmp_path, join_key_file=str(tmp_path / "key"))) == ROOT


def test_a_changed_file_counts_at_once_and_a_refused_one_stops_the_sharing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    current = Current(settings(tmp_path))
    file = tmp_path / "policy.yml"
    first = current()
    assert first is not None
    assert current() is first

    file.write_text(example_for("op-metro") + "\n")
    second = current()
    assert second is not None
    assert second.hash != first.hash

    file.write_text(example_for("op-metro").replace("user.name: drop", "user.name: keep"))
    with caplog.at_level(logging.ERROR):
        assert current() is None
    assert "Nothing leaves: user.name can identify a person" in caplog.text
    file.unlink()
    assert current() is None
    file.write_text(example_for("op-metro"))
    again = current()
    assert again is not None
    assert again.hash == first.hash


def test_the_policy_of_another_operator_is_refused(tmp_path: Path) -> None:
    made = settings(tmp_path)
    (tmp_path / "policy.yml").write_text(example_for("op-port"))

    with pytest.raises(ConfigError, match="it is not for op-metro"):
        policy_of(made)


def test_the_city_may_have_a_baseline_of_its_own(tmp_path: Path) -> None:
    narrow = tmp_path / "baseline.yml"
    text = BASELINE.read_text().replace("  source.ip: [join, local, trunc]\n", "")
    narrow.write_text(text)

    with pytest.raises(ConfigError, match=r"join of source\.ip is wider than the baseline"):
        policy_of(settings(tmp_path, baseline=str(narrow)))
    narrow.write_text(text.replace("rule.id: [keep]", "rule.idd: [keep]"))
    with pytest.raises(ConfigError, match=r"rule\.idd is no field"):
        policy_of(settings(tmp_path, baseline=str(narrow)))
    with pytest.raises(ConfigError, match="the baseline cannot be read"):
        policy_of(settings(tmp_path, baseline=str(tmp_path / "none")))
