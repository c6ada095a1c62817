"""What answers the evening of the demo: the simulator, the gateway in namespaces, the playbook."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cityward import Target
from cityward.checks import check_actuator, check_actuator_alone
from playbooks.actuators.nftables import Nftables
from siem import playbooks
from siem.config import Response as ResponseSettings
from siem.config import Settings
from siem.exercise.gateway import RealGateway, SimulatedGateway, cannot_be_real
from siem.exercise.shelf import PLAYBOOK, Shelf
from siem.exercise.simulator import Simulator

STRANGER = "2001:db8:7::1009"
SCANNER = Target("ipv6_net", STRANGER)
BLOCK_S = 5.0
"""Longer than a busy machine takes to try it."""


def test_the_simulator_keeps_the_promises_of_an_actuator(tmp_path: Path) -> None:
    file = tmp_path / "denied.json"

    check_actuator(
        Simulator(file=str(file)),
        SCANNER,
        look=lambda: Simulator(file=str(file)).probe(SCANNER),
    )
    check_actuator_alone(Simulator(file=str(tmp_path / "nowhere" / "denied.json")), SCANNER)


def test_the_simulator_forgets_by_itself_when_the_time_is_over(tmp_path: Path) -> None:
    now = datetime(2026, 3, 1, 20, 0, tzinfo=UTC)
    clock = [now]
    gateway = Simulator(file=str(tmp_path / "denied.json"), clock=lambda: clock[0])
    (command,) = gateway.plan("deny", SCANNER, now + timedelta(seconds=10))
    gateway.apply(command)
    assert gateway.probe(SCANNER).until == now + timedelta(seconds=10)

    clock[0] = now + timedelta(seconds=10)

    assert not gateway.probe(SCANNER).is_applied


def test_a_simulated_gateway_lets_nobody_in_whom_its_file_denies(tmp_path: Path) -> None:
    gateway = SimulatedGateway(tmp_path, "op-port", STRANGER)
    simulator = Simulator(**gateway.settings)
    assert gateway.lets_in()

    (command,) = simulator.plan("deny", SCANNER, datetime.now(UTC) + timedelta(minutes=1))
    simulator.apply(command)

    assert not gateway.lets_in()
    assert (gateway.actuator, simulator.cityward_spec.name) == ("simulator", "simulator")  # type: ignore[attr-defined]


@pytest.mark.root
def test_a_real_gateway_drops_packets_until_the_kernel_forgets() -> None:
    if why := cannot_be_real():
        pytest.skip(why)
    gateway = RealGateway(STRANGER)
    nft = Nftables(**gateway.settings)
    assert gateway.lets_in()

    (command,) = nft.plan("deny", SCANNER, datetime.now(UTC) + timedelta(seconds=BLOCK_S))

    nft.apply(command)
    during = gateway.lets_in()
    time.sleep(BLOCK_S + 1)
    after = gateway.lets_in()
    gateway.close()

    assert (during, after) == (False, True)
    pid = gateway.settings["program"][1].split("/")[2]
    assert not Path("/proc", pid).exists(), "the namespace goes with its process"


@pytest.mark.parametrize("actuator", ["nftables", "simulator"])
def test_the_playbook_of_the_operators_is_signed_and_says_who_acts_and_how_long(
    actuator: str, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    shelf = Shelf(tmp_path)
    shelf.fill(actuator, 25, now)
    response = ResponseSettings(**{**shelf.settings, "folders": tuple(shelf.settings["folders"])})

    loaded = playbooks.playbooks_of(Settings(operator="op-port", response=response), now)

    (one,) = loaded.playbooks
    (step,) = (step for step in one.steps.values() if step.safety.time_box)
    assert (Path(one.file).stem, one.signed_by, one.stage) == (PLAYBOOK, "saltmere", "approve_all")
    assert step.action is not None
    assert (step.action.actuator, step.safety.time_box) == (actuator, timedelta(seconds=25))
    assert not one.trigger, "the city proposes it; no finding starts it"
