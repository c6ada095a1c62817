"""Every rule that is shipped: checked, proved by its samples, and needed line by line."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from detectors.sigma.lint import check
from detectors.sigma.load import load_folder
from detectors.sigma.rule import RuleSet
from detectors.sigma.samples import read_samples, samples_file
from siem import samples
from siem.config import Hub, Settings
from siem.ruleset import RULES_FOLDER, rule_folders


@cache
def library() -> RuleSet:
    return load_folder(RULES_FOLDER)


def speaking() -> list[str]:
    return sorted(
        str(Path(one.document.file).relative_to(RULES_FOLDER)) for one in library().speaking()
    )


def test_no_rule_of_the_library_is_refused() -> None:
    assert [str(error) for error in library().refused] == []


def test_nothing_is_wrong_with_any_rule() -> None:
    assert [str(problem) for problem in check(RULES_FOLDER)] == []


def test_energy_and_what_all_sectors_share_have_rules() -> None:
    folders = [name.split("/")[0] for name in speaking()]

    assert folders.count("energy") >= 11
    assert folders.count("shared") >= 12
    assert folders.count("correlations") >= 12


@pytest.mark.parametrize("name", speaking())
def test_a_rule_keeps_what_its_samples_promise(name: str) -> None:
    rules = library()
    one = next(each for each in rules.speaking() if each.document.file.endswith(f"/{name}"))
    given = read_samples(samples_file(RULES_FOLDER / name))

    failed = [case for case in samples.outcomes(one, rules, given) if not case.passed]

    assert [(case.name, case.problems) for case in failed] == []
    assert samples.unnoticed(one, rules, given) == []


def test_a_node_loads_no_rule_of_the_hub_and_a_hub_no_other() -> None:
    node, hub = (load_folder(*rule_folders(one)) for one in (Settings(), Settings(hub=Hub())))

    assert {one.id for one in node.speaking()} & {one.id for one in hub.speaking()} == set()
    assert {one.id for one in library().speaking()} == {
        one.id for rules in (node, hub) for one in rules.speaking()
    }
