"""The image: made by the script, and what the chart starts is started in it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from tests.programs import PATIENCE_S, program

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.full, pytest.mark.root]
IDS = "10001:10001"
CONFIG = "/var/lib/cityward/cityward.toml"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The image, unpacked: `config.json` says what it starts, `rootfs` is its root."""
    for needed in ("mmdebstrap", "umoci", "setpriv"):
        program(needed)
    folder = tmp_path_factory.mktemp("image")
    made = os.environ.get("CITYWARD_IMAGE")
    if made is None:
        said = subprocess.run(
            [ROOT / "scripts" / "image", folder / "dist"],
            check=False,
            capture_output=True,
            text=True,
        )
        assert said.returncode == 0, said.stderr
        made = said.stdout.strip().splitlines()[-1]
    subprocess.run(["umoci", "unpack", "--image", made, folder / "run"], check=True)
    yield folder / "run"
    shutil.rmtree(folder, ignore_errors=True)


def _process(image: Path) -> dict[str, Any]:
    return dict(json.loads((image / "config.json").read_text())["process"])


def _containers(values: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    chart = helm_python.Chart.load(ROOT / "helm" / "cityward")
    made = chart.render(values, name="saltmere")
    settings = yaml.safe_load(made["cityward/templates/settings.yaml"].split("\n---")[0])
    pod = yaml.safe_load(made["cityward/templates/statefulset.yaml"])["spec"]["template"]["spec"]
    return settings["data"]["cityward.toml"], pod["containers"]


def _start(image: Path, args: list[str]) -> subprocess.Popen[bytes]:
    """A container as near as a chroot comes: its account, a root that cannot be written."""
    rootfs = image / "rootfs"
    inside = ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", "--no-new-privs"]
    words = " ".join([*_process(image)["args"][:3], *args])
    environment = "HOME=/tmp PATH=/opt/cityward/bin:/usr/bin:/bin CITYWARD_CONFIG=" + CONFIG
    script = f"""
        mount --bind {rootfs} {rootfs} && mount -o remount,bind,ro {rootfs}
        mount -t tmpfs -o mode=1777 tmp {rootfs}/tmp
        mount --bind {image}/state {rootfs}/var/lib/cityward
        mount --rbind /proc {rootfs}/proc
        mount --rbind /dev {rootfs}/dev
        exec chroot {rootfs} {" ".join(inside)} env -i {environment} {words}
    """
    return subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script],
        stderr=subprocess.PIPE,
    )


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/sign-in", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            time.sleep(0.5)
    return False


def test_it_runs_as_nobody_in_particular(image: Path) -> None:
    assert "cityward" in _process(image)["args"]
    assert _process(image)["user"]["uid"] == 10001


def test_what_the_chart_starts_runs_in_it(image: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings, containers = _containers(
        {"settings": {"operator": "op-metro"}, "console": {"port": port}}
    )
    state = image / "state"
    state.mkdir()
    (state / "cityward.toml").write_text(settings)
    subprocess.run(["chown", "-R", IDS, state], check=True)
    started = {one["name"]: _start(image, one["args"]) for one in containers}
    try:
        answers = _answers(port, started["console"])
        alive = next(one for one in containers if one["name"] == "path")["livenessProbe"]
        probe = alive["exec"]["command"][2].replace("/var/lib/cityward", str(state))

        assert answers
        assert subprocess.run(["sh", "-c", probe], check=False).returncode == 0
        assert started["path"].poll() is None
    finally:
        for one in started.values():
            one.terminate()
        ends = {
            name: (one.communicate(timeout=PATIENCE_S)[1], one.returncode)
            for name, one in started.items()
        }
        print(ends)
    assert [code for _, code in ends.values()] == [0, 0]
