"""The demo as a stranger starts it: a command, four nodes and a hub, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from siem.exercise.evening import Clock
from siem.exercise.gateway import cannot_be_real
from siem.exercise.processes import below
from siem.exercise.saltmere import City
from siem.exercise.steps import scenes
from siem.node import now_utc
from tests.programs import PATIENCE_S, is_crowded

pytestmark = pytest.mark.slow

FAST = ("--speed", "240")
"""A quarter of a minute for the evening."""
KEYS = [
    "operators",
    "sources",
    "records",
    "events",
    "rejected",
    "findings",
    "expected",
    "found",
    "missed",
    "false",
    "lost",
    "shared",
    "campaigns",
    "kept_back",
    "runs",
    "effects_applied",
    "effects_undone",
    "in_force",
    "first_finding_s",
    "peak_rss_mb",
]
OF_THE_EVENING = KEYS[:-2]
"""The last two are of the machine."""
LEFT_OUT = "open-breakers"
PROMISED = 40
REFUSED = 4
"""Findings that say what the kill switch refused: a step and what a person would do, twice."""


def _demo(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, verdict, and what was said."""
    done = subprocess.run(
        [sys.executable, "-m", "siem.cli", "demo", "--once", "-o", "json", *FAST, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stderr
    assert list(tmp_path.glob("cityward-demo-*")) == []
    return done.returncode, json.loads(lines[0]), done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], str]:
    return _demo(tmp_path_factory.mktemp("whole"), "--seed", "1")


def test_the_evening_keeps_its_promises(whole: tuple[int, dict[str, Any], str]) -> None:
    code, verdict, said = whole

    assert list(verdict) == KEYS
    assert verdict["operators"] == 4
    assert verdict["rejected"] == 0
    assert verdict["found"] == verdict["expected"] == PROMISED, said
    assert verdict["findings"] >= PROMISED
    assert (verdict["missed"], verdict["false"], verdict["lost"]) == (0, 0, 0), said
    assert verdict["campaigns"] == 1, said
    assert 0 < verdict["shared"] == verdict["findings"] - verdict["kept_back"]
    assert "2 operators (op-metro, op-port) saw the same indicator" in said
    assert verdict["runs"] == {"done": 2}, said
    assert (verdict["effects_applied"], verdict["effects_undone"]) == (2, 2), said
    assert verdict["in_force"] == 0
    actuator = "simulator" if cannot_be_real() else "nftables"
    for operator in ("op-metro", "op-port"):
        assert re.search(rf"{operator}: ipv6_net \S+ is kept out by {actuator}", said), said
        assert f"city: {operator} answered" in said, said
    assert "op-port: duty undoes it" in said
    assert verdict["first_finding_s"] > 0
    assert verdict["first_finding_s"] <= 60 or is_crowded(2)
    assert 0 < verdict["peak_rss_mb"] < 4000
    assert code == 0


@pytest.mark.full
def test_another_city_keeps_them_as_well_with_gateways_that_are_simulated(tmp_path: Path) -> None:
    """The same city with one stranger less: test_different_strangers…"""
    code, verdict, said = _demo(tmp_path, "--seed", "2", "--simulate")

    assert (verdict["found"], verdict["missed"], verdict["false"]) == (PROMISED, 0, 0), said
    assert "Gateways are simulated" in said
    assert "is kept out by simulator" in said
    assert (verdict["effects_applied"], verdict["effects_undone"]) == (2, 2), said
    assert code == 0, said


@pytest.mark.full
def test_the_same_seed_gives_the_same_numbers(
    whole: tuple[int, dict[str, Any], str], tmp_path: Path
) -> None:
    """That the same evening is played: test_demo_evening."""
    _, again, _ = _demo(tmp_path, "--seed", "1")

    for name in OF_THE_EVENING:
        assert again[name] == whole[1][name], name


def test_a_step_left_out_takes_its_findings_along_and_the_kill_switch_all_blocks(
    whole: tuple[int, dict[str, Any], str], tmp_path: Path
) -> None:
    city = City(1)
    lacks = {step.name: scene for step, scene in scenes(city, Clock(now_utc(), 240.0))}[LEFT_OUT]

    stop = tmp_path / "STOP"
    stop.touch()

    code, verdict, said = _demo(
        tmp_path, "--seed", "1", "--without", LEFT_OUT, "--stop-file", str(stop)
    )

    assert code == 0, said
    # None is false: what the step promised is gone; none is missed: all else is there.
    assert (verdict["missed"], verdict["false"], verdict["lost"]) == (0, 0, 0), said
    assert verdict["expected"] == PROMISED - len(lacks.expected)
    assert verdict["findings"] <= whole[1]["findings"] - len(lacks.expected) + REFUSED
    assert verdict["records"] == whole[1]["records"] - len(lacks.puts)
    assert verdict["sources"] == whole[1]["sources"]
    assert LEFT_OUT not in said
    assert (verdict["effects_applied"], verdict["in_force"]) == (0, 0), said
    assert "done" not in verdict["runs"]
    assert "is kept out" not in said


def test_different_strangers_at_two_operators_of_another_city_are_no_campaign(
    tmp_path: Path,
) -> None:
    code, verdict, said = _demo(
        tmp_path, "--seed", "2", "--without", "scanner-at-the-port", "--simulate"
    )

    assert (verdict["campaigns"], verdict["missed"], verdict["false"]) == (0, 0, 0), said
    assert verdict["found"] == verdict["expected"] > PROMISED / 2, said
    assert "Gateways are simulated" in said
    assert verdict["shared"] > 0
    assert code == 0, said


# ---- nothing is left behind


@contextmanager
def _running(tmp_path: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A demo whose consoles answer, and the processes below it; it writes `said` and `verdict`."""
    said = tmp_path / "said"
    with said.open("wb") as log, (tmp_path / "verdict").open("wb") as verdict:
        demo = subprocess.Popen(
            [sys.executable, "-m", "siem.cli", "demo", *FAST, *words],
            stdout=verdict,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
    pids: list[int] = []
    try:
        _wait_for(lambda: len(re.findall(r"http://\S+", said.read_text())) == 5, demo, said)
        pids += below(demo.pid)
        yield demo, pids
    finally:
        for pid in (demo.pid, *pids):
            if _lives(pid):
                os.kill(pid, signal.SIGKILL)
        demo.wait()


def _wait_for(is_so: Callable[[], bool], demo: subprocess.Popen[bytes], said: Path) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert demo.poll() is None, said.read_text()
        assert time.monotonic() < until_s, said.read_text()
        time.sleep(0.2)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _wait_until_gone(pids: list[int]) -> list[int]:
    until_s = time.monotonic() + PATIENCE_S
    while (left := [pid for pid in pids if _lives(pid)]) and time.monotonic() < until_s:
        time.sleep(0.2)
    return left


@pytest.mark.full
def test_ctrl_c_before_the_evening_ends_all_processes_and_leaves_no_file(tmp_path: Path) -> None:
    with _running(tmp_path) as (demo, pids):
        assert len(pids) >= 10

        os.killpg(demo.pid, signal.SIGINT)

        assert demo.wait(PATIENCE_S) == 130
        assert _wait_until_gone(pids) == []
        assert list(tmp_path.glob("cityward-demo-*")) == []


def test_without_a_yes_nothing_is_applied_and_ctrl_c_afterwards_leaves_nothing(
    tmp_path: Path,
) -> None:
    """Not `--once`, the city goes on after the verdict: it is ended then."""
    said = tmp_path / "said"
    with _running(tmp_path, "--seed", "3", "--no-approval", "-o", "json") as (demo, pids):
        _wait_for(lambda: "the city goes on" in said.read_text(), demo, said)
        assert len([pid for pid in pids if _lives(pid)]) >= 10

        os.killpg(demo.pid, signal.SIGINT)

        assert demo.wait(PATIENCE_S) == 0, said.read_text()
        assert _wait_until_gone(pids) == []
        assert list(tmp_path.glob("cityward-demo-*")) == []
    verdict = json.loads((tmp_path / "verdict").read_text())
    assert (verdict["found"], verdict["missed"], verdict["false"]) == (PROMISED, 0, 0)
    assert verdict["runs"] == {"waiting": 2}
    assert (verdict["effects_applied"], verdict["in_force"]) == (0, 0)
    assert "is kept out" not in said.read_text()


def test_an_ordinary_evening_is_quiet_and_a_killed_demo_takes_its_nodes_along(
    tmp_path: Path,
) -> None:
    """Not `--once`, the city goes on after the verdict: it is killed then."""
    said = tmp_path / "said"
    words = ("--seed", "3", "--ordinary", "-o", "json")
    with _running(tmp_path, *words) as (demo, pids):
        _wait_for(lambda: "the city goes on" in said.read_text(), demo, said)
        lives = [pid for pid in pids if _lives(pid)]

        demo.kill()
        demo.wait(PATIENCE_S)

        assert len(lives) >= 10
        assert _wait_until_gone(pids) == []
    verdict = json.loads((tmp_path / "verdict").read_text())
    assert verdict["records"] > 10_000
    assert (verdict["findings"], verdict["expected"], verdict["lost"]) == (0, 0, 0)
    assert verdict["first_finding_s"] is None
