"""The path of a node: whole in one process, and killed at every named point."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from siem import assembly
from siem.config import Settings, load
from siem.exercise.processes import below
from siem.node import event_of
from siem.store.protocol import Range
from tests.programs import PATIENCE_S, wait_until

LINES = 400
FAULTS = (
    "after-receive",
    "before-commit",
    "during-write",
    "before-sync",
    "after-commit",
    "after-commit-before-detect",
    "keep-before-commit",
    "keep-after-commit",
    "after-detect",
)
BROKEN = """
from siem.store.embedded import NodeDb
from siem.store.faults import fault
whole = NodeDb.keep
def keep(self, findings, checkpoint, *rest, **named):
    whole(self, [], checkpoint, *rest, **named)
    if findings:
        fault("between")
        whole(self, findings, checkpoint)
NodeDb.keep = keep
from siem.cli import main
main()
"""
"""A node that moves its checkpoint before it keeps the findings."""


def _line(number: int) -> bytes:
    minute, second = divmod(number % 3600, 60)
    return (
        f"2026-01-05T10:{minute:02d}:{second:02d}Z gw sshd[{number}]: "
        f"Failed password for root from 192.0.2.7 port {number % 60_000 + 1} ssh2\n"
    ).encode()


def _node_folder(folder: Path) -> Path:
    (folder / "rules").mkdir()
    (folder / "rules" / "every.yml").write_text(
        "title: Every failed login\n"
        "id: 5b0d1c1e-0c53-4f51-8a3f-4c1f8a6b7c11\n"
        "logsource: {product: linux, service: sshd}\n"
        "detection:\n"
        "  failed: {event.outcome: failure}\n"
        "  condition: failed\n"
        "level: medium\n"
    )
    (folder / "cityward.toml").write_text(
        f"""
state_dir = "{folder}/state"
[rules]
shipped = false
folders = ["{folder}/rules"]
[models]
on = false
[[source]]
id = "auth"
reader = "file"
path = "{folder}/auth.log"
collector = "syslog"
"""
    )
    return folder / "cityward.toml"


def _start(config: Path, fault: str = "") -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "siem.cli", "run", "--path-only", "--config", str(config)]
    environment = {**os.environ, "CITYWARD_FAULT": fault}
    return subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)


def _kept(config: Path, limit: int = 10 * LINES) -> Counter[str]:
    """What the store holds, by place: read in this process while no other has it open."""
    settings = load(config)
    events = assembly.events_of(settings, assembly.now_utc, write=False)
    rows = events.search("", Range(), limit=limit).rows
    return Counter(f"{one['cw.record.place']}/{one['cw.record.number']}" for one in rows)


def _found(config: Path) -> tuple[int, int]:
    """How many findings there are, and how many matches they stand for."""
    settings = load(config)
    db = assembly.db_of(settings, assembly.from_settings(settings), assembly.now_utc)
    rows = db.search("", Range(), limit=1000).rows
    return len(rows), sum(one["finding.count"] for one in rows)


def _until(config: Path, wanted: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a node has concluded on so many matches, or has died."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if process.poll() is not None:
            return
        if (config.parent / "state" / "node.db").exists() and _found(config)[1] >= wanted:
            return
        time.sleep(0.1)
    raise AssertionError(f"the node concluded on {_found(config)[1]} of {wanted} matches")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0


def test_a_batch_becomes_events_and_a_finding_that_explains_itself(tmp_path: Path) -> None:
    config = _node_folder(tmp_path)
    (tmp_path / "auth.log").write_bytes(b"".join(_line(number) for number in range(5)))
    settings = load(config)
    source = assembly.file_source(tmp_path / "auth.log", assembly.load("collectors"))
    node = assembly.node_of(settings, sources=[source], event_time=True)

    for gathered in node.collect_from(source):
        node.conclude(node.detect(node.keep(gathered)))
    node.finish()

    finding = node.db.search("", Range()).rows[0]
    assert finding["finding.count"] == 5
    assert finding["source.ip"] == "192.0.2.7"
    assert finding["finding.severity"] == "medium"
    assert len(node.db.events_of(finding["finding.id"])) == 5
    assert source.state.records == source.state.events == 5
    stored = event_of(node.events.search("", Range()).rows[0])
    assert stored.fields["event.original"].startswith("2026-01-05T10:00:04Z gw sshd[4]:")
    node.close()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_node_killed_at_a_named_point_loses_nothing_and_doubles_nothing(
    tmp_path: Path, fault: str
) -> None:
    config = _node_folder(tmp_path)
    log = tmp_path / "auth.log"
    log.write_bytes(b"".join(_line(number) for number in range(LINES // 2)))

    killed = _start(config, f"{fault}:1")
    _until(config, LINES, killed)
    assert killed.wait(PATIENCE_S) == -signal.SIGKILL, f"{fault} was never reached"
    with log.open("ab") as file:
        file.writelines(_line(number) for number in range(LINES // 2, LINES))
    second = _start(config)
    _until(config, LINES, second)
    _end(second)

    kept = _kept(config)
    assert len(kept) == LINES
    assert set(kept.values()) == {1}
    assert _found(config) == (1, LINES)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [8, pytest.param(30, marks=pytest.mark.full)])
def test_a_node_killed_at_random_moments_loses_nothing_and_doubles_nothing(
    tmp_path: Path, rounds: int
) -> None:
    config = _node_folder(tmp_path)
    log = tmp_path / "auth.log"
    log.touch()
    chance = random.Random(7)
    written = 0

    for _ in range(rounds):
        process = _start(config)
        until_s = time.monotonic() + 1.0 + chance.random()
        while time.monotonic() < until_s:
            with log.open("ab") as file:
                file.writelines(_line(written + number) for number in range(5))
            written += 5
            time.sleep(0.02)
        process.kill()
        process.wait()
    last = _start(config)
    _until(config, written, last)
    _end(last)

    kept = _kept(config, 2 * written)
    assert len(kept) == written
    assert set(kept.values()) == {1}
    assert _found(config) == (1, written)


@pytest.mark.slow
def test_the_same_oracle_sees_a_node_that_forgets_findings(tmp_path: Path) -> None:
    config = _node_folder(tmp_path)
    (tmp_path / "auth.log").write_bytes(b"".join(_line(number) for number in range(LINES)))
    environment = {**os.environ, "CITYWARD_FAULT": "between:1"}
    words = [sys.executable, "-c", BROKEN, "run", "--path-only", "--config", str(config)]

    broken = subprocess.run(words, env=environment, stderr=subprocess.DEVNULL, check=False)
    with (tmp_path / "auth.log").open("ab") as file:
        file.write(_line(LINES))
    second = _start(config)
    _until(config, 1, second)
    _end(second)

    assert broken.returncode == -signal.SIGKILL
    assert len(_kept(config)) == LINES + 1
    assert _found(config)[1] <= LINES


def test_settings_without_a_source_make_a_node_that_only_waits(tmp_path: Path) -> None:
    node = assembly.node_of(Settings(state_dir=str(tmp_path)))

    assert node.sources == []
    node.close()


def test_a_rule_that_is_off_does_not_speak_and_is_shown_so(tmp_path: Path) -> None:
    config = _node_folder(tmp_path)
    rule = "5b0d1c1e-0c53-4f51-8a3f-4c1f8a6b7c11"
    config.write_text(
        config.read_text().replace("shipped = false", f'shipped = false\noff = ["{rule}"]')
    )
    (tmp_path / "auth.log").write_bytes(_line(1))
    source = assembly.file_source(tmp_path / "auth.log", assembly.load("collectors"))
    node = assembly.node_of(load(config), sources=[source], event_time=True)

    for gathered in node.collect_from(source):
        node.conclude(node.detect(node.keep(gathered)))
    node.finish()

    assert node.db.search("", Range()).total == 0
    state = next(one for one in node.db.rules() if one.id == rule)
    assert (state.state, state.reason) == ("not evaluated", "off in the settings (rules.off)")
    node.close()


@pytest.mark.slow
def test_a_node_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    config = _node_folder(tmp_path)
    lines = 20_000
    (tmp_path / "auth.log").write_bytes(b"".join(_line(number) for number in range(lines)))
    words = [sys.executable, "-m", "siem.cli", "run", "--path-only", "--config", str(config)]

    full = subprocess.run(
        words,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000)),
        timeout=PATIENCE_S,
        check=False,
    )
    second = _start(config)
    _until(config, lines, second)
    _end(second)

    assert full.returncode == 5
    what, where, todo = full.stderr.decode().splitlines()[-3:]
    assert what.startswith("the state cannot be written: ")
    assert where.startswith(f"{tmp_path}/state")
    assert todo.startswith("Make room")
    kept = _kept(config, 2 * lines)
    assert len(kept) == lines
    assert set(kept.values()) == {1}
    assert _found(config) == (1, lines)


@pytest.mark.slow
def test_the_console_ends_with_a_node_that_is_killed(tmp_path: Path) -> None:
    config = _node_folder(tmp_path)
    (tmp_path / "auth.log").touch()
    config.write_text(config.read_text() + "[console]\nport = 0\n")
    words = [sys.executable, "-m", "siem.cli", "run", "--config", str(config)]
    node = subprocess.Popen(words, stderr=subprocess.PIPE)
    assert node.stderr is not None
    said = node.stderr.readline().decode()
    address = said.split()[1]

    node.kill()
    node.wait()

    assert said.startswith("console http://127.0.0.1:")
    wait_until(lambda: not _answers(address), f"the console at {address} outlived its node")


@pytest.mark.slow
def test_a_console_that_is_killed_is_started_again_and_ends_with_its_node(tmp_path: Path) -> None:
    config = _node_folder(tmp_path)
    (tmp_path / "auth.log").touch()
    config.write_text(config.read_text() + "[console]\nport = 0\n")
    words = [sys.executable, "-m", "siem.cli", "run", "--config", str(config)]
    node = subprocess.Popen(words, stderr=subprocess.PIPE)
    assert node.stderr is not None
    assert node.stderr.readline().startswith(b"console http://")
    (first,) = below(node.pid)

    os.kill(first, signal.SIGKILL)

    assert b"The console ended with -9" in node.stderr.readline()
    address = node.stderr.readline().decode().split()[1]
    assert _answers(address)
    (second,) = below(node.pid)
    node.send_signal(signal.SIGTERM)
    assert node.wait(timeout=PATIENCE_S) == 0
    assert not Path(f"/proc/{second}").exists()


@pytest.mark.slow
def test_a_console_that_hangs_does_not_spoil_the_end_of_its_node(tmp_path: Path) -> None:
    config = _node_folder(tmp_path)
    (tmp_path / "auth.log").touch()
    config.write_text(config.read_text() + "[console]\nport = 0\n")
    words = [sys.executable, "-m", "siem.cli", "run", "--config", str(config)]
    node = subprocess.Popen(words, stderr=subprocess.PIPE)
    assert node.stderr is not None
    assert node.stderr.readline().startswith(b"console http://")
    console = int(Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text())

    os.kill(console, signal.SIGSTOP)
    node.send_signal(signal.SIGTERM)

    assert node.wait(timeout=PATIENCE_S) == 0
    assert not Path(f"/proc/{console}").exists()


def _answers(address: str) -> bool:
    host, port = address.removeprefix("http://").strip("/").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
