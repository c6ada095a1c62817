"""Triggers of shipped playbooks hold for what our own rules say, from their own samples."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cityward.when import compile_when
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_folder
from detectors.sigma.samples import events_of, read_samples, samples_file
from playbooks import playbook, words
from playbooks.playbook import LIBRARY
from siem.ruleset import RULES_FOLDER
from siem.samples import alone, collect
from siem.store.embedded import _COPIED

SPECS = playbook.specs()
FROM_THE_HUB = "campaign-across-operators"


@cache
def rules() -> Any:
    return load_folder(RULES_FOLDER)


def findings(rule_id: str) -> Iterator[dict[str, Any]]:
    """What a rule says of the samples that it must match, as far as a trigger looks at it."""
    (one,) = [rule for rule in rules().speaking() if rule.id == rule_id]
    for case in read_samples(samples_file(Path(one.document.file))).cases:
        if case.kind != "must match":
            continue
        engine = Engine(alone(one, rules()), case.placeholders)
        for found in engine.detect(events_of(case, one, collect)):
            if found.analytic.id == rule_id:
                last = found.events[-1].fields
                copied = {name: last[name] for name in _COPIED if name in last}
                said = {"rule.id": rule_id, "finding.severity": found.severity}
                yield {**said, **copied, **found.fields}


@pytest.mark.slow
@pytest.mark.parametrize("file", playbook.files_of(LIBRARY), ids=lambda file: file.stem)
def test_each_rule_of_a_trigger_starts_the_playbook(file):
    one = playbook.read(file, SPECS)
    fits = compile_when(one.trigger)
    seen: set[str] = set()

    for rule_id in one.trigger["rule.id"]:
        said = list(findings(rule_id))
        assert said, rule_id
        assert any(fits(finding) for finding in said), rule_id
        seen |= {field for finding in said for field in finding}

    actions = [step.action for step in one.steps.values() if step.action is not None]
    wanted = {
        words.field_of(name)
        for action in actions
        for text in action.target.values()
        for name in words.variables(text)
    }
    assert wanted <= seen
    assert file.stem == FROM_THE_HUB or {*one.group_by} & seen
