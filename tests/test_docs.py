"""The pages are true: what they show runs, and what they list is all there is."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from cityward import plugin
from siem import cli, config
from siem.notify.routes import routes_of
from tests.programs import PATIENCE_S

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"file=(\S+)")


class Block(NamedTuple):
    """One code block of a page."""

    language: str
    said: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*match.groups()) for match in FENCE.finditer(page.read_text(encoding="utf-8"))]


def unpack(page: Path, folder: Path) -> str:
    """Write the files that a page shows; the commands that are to be run."""
    for block in blocks(page):
        if named := FILE.search(block.said):
            path = folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
    return "\n".join(block.text for block in blocks(page) if block.said.split() == ["test"])


PIP = """\
#!{python}
import pathlib, sys, tomllib
*words, source = sys.argv[1:]
assert words == ["install", "--quiet"], words
source, site = pathlib.Path(source), pathlib.Path({site!r})
said = tomllib.loads((source / "pyproject.toml").read_text())
project = said["project"]
for module in said["tool"]["setuptools"]["py-modules"]:
    (site / f"{{module}}.py").write_text((source / f"{{module}}.py").read_text())
info = site / f"{{project['name'].replace('-', '_')}}-{{project['version']}}.dist-info"
info.mkdir()
(info / "METADATA").write_text(
    f"Metadata-Version: 2.1\\nName: {{project['name']}}\\nVersion: {{project['version']}}\\n"
)
(info / "entry_points.txt").write_text("".join(
    f"[{{group}}]\\n" + "".join(f"{{name}} = {{part}}\\n" for name, part in parts.items())
    for group, parts in project["entry-points"].items()
))
"""
"""What `pip install` does with the package of the page, without a build tool from the network."""


def environment(folder: Path) -> dict[str, str]:
    """A package that a page installs goes to a folder of the test, not into the environment."""
    site, tools = folder / "site", folder / "tools"
    for one in (site, tools):
        one.mkdir(exist_ok=True)
    (tools / "pip").write_text(PIP.format(python=sys.executable, site=str(site)))
    (tools / "pip").chmod(0o755)
    return {
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(site),
    }


def run_page(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = unpack(ROOT / "docs" / name, folder)
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("page", [page.name for page in PAGES])
def test_a_page_begins_with_a_command(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")

    assert re.match(r"# [^\n]+\n\n```sh", text)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page.name}" for page in PAGES)])
def test_links_lead_somewhere(page):
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))

    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.slow
def test_the_quick_start_finds_the_guesser_and_judges_it(tmp_path):
    done = run_page("quickstart.md", tmp_path)

    assert done.returncode == 0, done.stderr
    assert "203.0.113.7 failed to log in 5 times" in done.stdout
    assert "1 of 1 findings changed" in done.stderr


@pytest.mark.slow
def test_the_source_of_ones_own_is_built_checked_and_read(tmp_path):
    done = run_page("source.md", tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "gates.log (ticket-gate): 3 records, 3 events, 0 rejected" in done.stderr
    assert "2026-03-01T06:30:09Z,gate_forced,,,,,failure," in done.stdout
    assert re.search(r"gates-north +ticket-gate +3 +3 +0 +0 +yes", done.stdout)


@pytest.mark.slow
def test_the_rule_of_the_page_passes_and_speaks(tmp_path):
    done = run_page("rules.md", tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "203.0.113.7 logged in to gw-7 as root; ask who it was." in done.stdout
    assert "Not Root logged in by password counts as version 1" in done.stderr
    assert "It would have spoken" in done.stdout
    assert "a thief, not a mistake" in done.stdout


@pytest.mark.slow
def test_the_page_of_sensors_runs(tmp_path):
    said = run_page("sensor.md", tmp_path)

    assert said.returncode == 0
    assert "cw1." in said.stdout
    assert "quay-4" in said.stdout


@pytest.mark.slow
def test_the_page_of_notifications_runs(tmp_path):
    said = run_page("notify.md", tmp_path)

    assert said.returncode == 0, said.stderr
    assert "received test" in said.stdout
    assert re.search(r"desk +sent +test .* HTTP 204 No Content", said.stdout)


@pytest.mark.parametrize("name", ["mail.toml", "hook.toml", "syslog.toml"])
def test_the_routes_of_the_page_are_accepted(tmp_path, name):
    unpack(ROOT / "docs" / "notify.md", tmp_path)

    assert routes_of(config.load(tmp_path / name).route)


def test_the_settings_of_the_page_of_the_cluster_are_accepted(tmp_path):
    unpack(ROOT / "docs" / "opensearch.md", tmp_path)

    said = config.load(tmp_path / "cluster.toml").cluster

    assert said == config.Cluster(
        url="https://127.0.0.1:19200",
        user="cityward",
        secret_env="CITYWARD_CLUSTER_PASSWORD",
        ca_file="/var/cache/cityward/opensearch-2.19.4/server/ca.pem",
    )


@pytest.mark.slow
def test_the_page_of_sharing_runs(tmp_path):
    said = run_page("sharing.md", tmp_path)

    assert said.returncode == 0, said.stdout + said.stderr
    assert "policy.yml is accepted, 3 tests passed" in said.stderr
    assert re.search(r"source.ip +203.0.113.7 +join +source.token +j:", said.stdout)
    assert re.search(r"user.name +m.rossi +– the rule drops it", said.stdout)
    assert "n:203.0.113.0/24" in said.stdout


@pytest.mark.slow
def test_the_page_of_the_exchange_runs(tmp_path):
    said = run_page("exchange.md", tmp_path)

    assert said.returncode == 0, said.stdout + said.stderr
    assert "cwo1." in said.stdout
    assert "operator revoke" in said.stdout


@pytest.mark.slow
def test_the_page_of_playbooks_runs(tmp_path):
    said = run_page("playbooks.md", tmp_path)

    assert said.returncode == 0, said.stdout + said.stderr
    assert "Nothing is wrong." in said.stdout
    assert "192.0.2.7" in said.stdout
    assert re.search(r"guesser +Guesser on the .* soc", said.stdout)


@pytest.mark.slow
def test_the_page_of_approvals_runs(tmp_path):
    said = run_page("response.md", tmp_path)

    assert said.returncode == 0, said.stdout + said.stderr
    assert "Nothing waits for a yes." in said.stderr
    assert "Everything is stopped." in said.stderr
    assert "Everything goes on." in said.stderr


def test_the_page_of_architecture_runs(tmp_path):
    assert run_page("architecture.md", tmp_path).returncode == 0


# ---- Lists are whole


def test_the_settings_page_is_what_the_code_says():
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "settings-page"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip

    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == made.stdout


def test_the_page_of_sources_is_what_the_code_says():
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "sources-page"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip

    assert (ROOT / "docs" / "sources.md").read_text(encoding="utf-8") == made.stdout


@pytest.mark.parametrize("group", ["collectors", "decoders"])
def test_every_source_says_what_is_understood_of_it(group):
    wanted = ("Send", "Understood", "Not understood")[group == "decoders" :]
    said = {
        name: inspect.getdoc(inspect.getmodule(part)) or ""
        for name, part in plugin.load(group).items()
    }

    assert len(said) > 20
    for name, text in said.items():
        assert [one for one in wanted if f"\n{one}: " not in text] == [], name


def test_every_setting_is_explained():
    rows = re.findall(
        r"^\| `\w+` \| [^|]+ \|(.*)\|$", (ROOT / "docs/settings.md").read_text(), re.MULTILINE
    )

    assert len(rows) > 40
    assert [row for row in rows if len(row.strip()) < 5] == []


def test_the_example_of_the_settings_page_is_accepted(tmp_path):
    unpack(ROOT / "docs" / "settings.md", tmp_path)

    settings = config.load(tmp_path / "example.toml")

    assert settings.asset[0].roles == ("ot_writer",)


def test_every_command_has_its_line():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `cityward ([a-z0-9-]+(?: [a-z-]+)?)", page, re.MULTILINE))
    there = {"help exit-codes"}
    for name in cli.app:
        if not name.startswith("-") and name != "help":
            verbs = [verb for verb in cli.app[name] if not verb.startswith("-")]
            there |= {f"{name} {verb}" for verb in verbs} if verbs else {name}

    assert named == there


def test_every_exit_code_has_its_line():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)

    assert {int(code): meaning for code, meaning in rows} == cli.EXIT_CODES


def test_every_kind_of_reader_is_named():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    kinds = msgspec.json.schema(config.Source)["$defs"]["Source"]["properties"]["reader"]["enum"]

    assert [kind for kind in kinds if f"`{kind}`" not in page] == []
