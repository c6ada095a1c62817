"""The units, and that the path needs one right only."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from siem import config
from siem.cli import app
from tests.programs import PATIENCE_S

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "scripts" / "systemd").glob("*.service"))
NOBODY, CAP_NET_RAW = 65_534, 13
METERED = re.compile(rb'"open_flows":[1-9]')
"""Flows of packets that were read; they become events when they end."""


def _settings(unit: Path) -> dict[str, str]:
    lines = unit.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_units_and_little_exposed(tmp_path: Path) -> None:
    program = shlex.quote(shutil.which("true") or "")
    for unit in UNITS:
        text = unit.read_text().replace("/opt/cityward/bin/cityward", program)
        (tmp_path / unit.name).write_text(re.sub("^Documentation=.*$", "", text, flags=re.M))
    made = [tmp_path / unit.name for unit in UNITS]

    words = ["systemd-analyze", "verify", "--man=no", *map(str, made)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lax = ["systemd-analyze", "security", "--offline=yes", "--threshold=25", "--no-pager"]
    exposed = [
        subprocess.run([*lax, str(one)], capture_output=True, text=True, check=False)
        for one in made
    ]

    assert [line for line in done.stderr.splitlines() if str(tmp_path) in line] == []
    assert [one.returncode for one in exposed] == [0, 0, 0], [one.stdout for one in exposed]


def test_the_units_start_what_there_is_and_only_the_path_has_a_right() -> None:
    console, path, worker = (_settings(unit) for unit in UNITS)

    for unit in (console, path, worker):
        words = unit["ExecStart"].split()
        command = app[words[1]]
        assert command is not None
        assert words[-1] == config.SEARCH_PATH[-1]
        assert unit["NoNewPrivileges"] == "yes"
        # The path asks brokers and addresses, the console delivers by mail and webhook, workers
        # act on other programs.
        assert unit["EnvironmentFile"] == "-/etc/cityward/secrets.env"
    assert "--path-only" in path["ExecStart"]
    for rights in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert (path[rights], console[rights], worker[rights]) == ("CAP_NET_RAW", "", "")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another account may enter; pytest's own is for root alone."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    if subprocess.run(["unshare", "-nm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespaces here")
    with tempfile.TemporaryDirectory(prefix="cityward-nobody-") as named:
        folder = Path(named)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        os.chown(folder / "state", NOBODY, NOBODY)
        (folder / "cityward.toml").write_text(
            f'state_dir = "{folder}/state"\nmodels.on = false\nrules.shipped = false\n'
            '[[source]]\nid = "wire"\nreader = "interface"\ninterface = "lo"\n'
        )
        yield folder


def _as_nobody(folder: Path, words: list[str]) -> list[str]:
    """The command as another account with CAP_NET_RAW alone, in a network of its own."""
    script = ["set -e", "ip link set lo up"]
    python = Path(sys.base_prefix)
    closed = [one for one in python.parents if not one.stat().st_mode & 0o001]
    if closed:  # a Python in the home of root: make the way to it open, for this process only
        (folder / "python").mkdir()
        script += [
            f"mount --bind {python} {folder}/python",
            f"mount -t tmpfs -o mode=755 none {closed[-1]}",
            f"mkdir -p {python}",
            f"mount --bind {folder}/python {python}",
        ]
    script.append(
        f"exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --no-new-privs"
        " --bounding-set=-all,+net_raw --inh-caps=-all,+net_raw --ambient-caps=-all,+net_raw "
        + shlex.join(words)
    )
    return ["unshare", "-nm", "bash", "-c", "\n".join(script)]


def _capabilities(pid: int) -> tuple[int, int]:
    said = Path(f"/proc/{pid}/status").read_text()
    effective = re.search(r"^CapEff:\s*(\w+)", said, re.M)
    user = re.search(r"^Uid:\s*(\d+)", said, re.M)
    assert effective is not None
    assert user is not None
    return int(effective[1], 16), int(user[1])


@pytest.mark.root
@pytest.mark.slow
def test_the_path_reads_an_interface_as_another_account_with_net_raw_alone(
    open_folder: Path,
) -> None:
    run = [sys.executable, "-m", "siem.cli", "run", "--path-only"]
    words = [*run, "--config", str(open_folder / "cityward.toml")]
    node = subprocess.Popen(
        _as_nobody(open_folder, words),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
    )
    send = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        "[s.sendto(b'\\0', ('127.0.0.1', 5000 + n)) for n in range(50)]"
    )
    inside = ["nsenter", "-t", str(node.pid), "-n", sys.executable, "-c", send]
    spool = open_folder / "state" / "events" / "spool"
    held = b""
    for _ in range(720):
        if node.poll() is not None or METERED.search(held):
            break
        subprocess.run(inside, check=False, capture_output=True)
        time.sleep(0.25)
        held = b"".join(one.read_bytes() for one in spool.glob("*.ndjson"))
        rights = _capabilities(node.pid) if node.poll() is None else (0, 0)
    node.send_signal(signal.SIGTERM)
    _, complaint = node.communicate(timeout=PATIENCE_S)

    assert node.returncode == 0, complaint.decode()
    assert rights == (1 << CAP_NET_RAW, NOBODY)
    assert METERED.search(held), complaint.decode()
    assert (open_folder / "state" / "node.db").stat().st_uid == NOBODY
