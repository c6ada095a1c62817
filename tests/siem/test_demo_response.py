"""What answers the evening of the demo: the simulator, the gateway in namespaces, the playbook."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cityward import Target
from cityward.checks import check_actuator, check_actuator_alone
from siem.exercise.simulator import Simulator

SCANNER = Target("ipv6_net", "2001:db8:7::9")


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
