"""The page about actuators is true."""

from __future__ import annotations

import re

from cityward import plugin
from tests.test_docs import ROOT, run_page


def test_the_actuator_of_ones_own_is_built_and_checked(tmp_path):
    done = run_page("actuator.md", tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert "badges" in done.stdout.split()


def test_every_actuator_has_its_line_with_verbs_class_and_end():
    page = (ROOT / "docs" / "actuator.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| (A\d) \| (\S+) \|", page, re.MULTILINE)
    said = {name: (verbs, action_class, ends) for name, verbs, _, action_class, ends in rows}
    specs = {
        name: part.cityward_spec
        for name, part in plugin.load("actuators").items()
        if part.__module__.startswith("playbooks.")
    }

    assert {name: said.get(name) for name in specs} == {
        name: (", ".join(spec.verbs), spec.action_class, spec.rollback.replace("none", "–"))
        for name, spec in specs.items()
    }
