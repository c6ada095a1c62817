"""Shipped playbooks: each case beside a playbook says what is planned and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cityward import Asset, Command, State, Target, documents
from cityward.plugin import ActuatorSpec
from cityward.when import compile_when
from playbooks import playbook, targets
from playbooks.model import Planned
from playbooks.plan import plan
from playbooks.playbook import LIBRARY
from playbooks.safety import span
from tests.playbooks.world import NOW, World

RULES = Path(__file__).parents[2] / "rules"
FILES = playbook.files_of(LIBRARY)
SPECS = playbook.specs()
KEYS = {"name", "finding", "facts", "stage", "starts", "plan"}


class Told:
    """Does what an actuator says that it can, in memory."""

    def __init__(self, spec: ActuatorSpec) -> None:
        self.spec = spec

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        yield Command(verb, target, undo=self.spec.verbs[verb], until=until)

    def apply(self, command: Command) -> None:
        raise AssertionError("planning changes nothing")

    def probe(self, target: Target) -> State:
        return State(False)


class Installed(World):
    """A world with the actuators that are installed."""

    def actuator(self, name: str) -> ActuatorSpec | None:
        return SPECS.get(name)


def world(facts: Mapping[str, Any]) -> Installed:
    said = {**facts, "assets": [msgspec.convert(one, Asset) for one in facts.get("assets", [])]}
    return Installed(operator="op-grid", keys=[playbook.SHIPPED_BY], **said)


def command(planned: Planned, one: Command) -> str:
    held = "" if planned.until is None else f" for {span(one.until - NOW)}"
    return f"{planned.actuator} {one.verb} {targets.words(one.target)}".strip() + held


def said(planned: Planned) -> dict[str, Any]:
    """What is planned, as the cases write it."""
    found: dict[str, Any] = {"step": planned.name, "outcome": planned.outcome}
    if planned.commands:
        found["commands"] = [command(planned, one) for one in planned.commands]
    if denied := [check.number for check in planned.checks if check.outcome == "deny"]:
        found["denied_by"] = denied
    return found


def cases() -> Iterator[Any]:
    for file in FILES:
        (document,) = documents.read(file.with_suffix(".cases.yml"))
        for case in document.value["cases"]:
            finding = {**document.value["finding"], **case.get("finding", {})}
            facts = {**document.value.get("facts", {}), **case.get("facts", {})}
            yield pytest.param(file, case, finding, facts, id=f"{file.stem}: {case['name']}")


@pytest.mark.parametrize(("file", "case", "finding", "facts"), list(cases()))
def test_a_case_comes_out_as_its_file_says(file, case, finding, facts):
    one = playbook.read_signed(file, SPECS, (), NOW)
    one = msgspec.structs.replace(one, stage=case.get("stage", "live"))
    assert case.keys() <= KEYS

    assert compile_when(one.trigger)(finding) is case.get("starts", True)
    if "plan" not in case:
        return
    actuators = {name: Told(spec) for name, spec in SPECS.items()}
    made = plan(one, finding, world(facts), actuators)

    assert [said(planned) for planned in made.actions] == [
        {"outcome": "allow", **expected} for expected in wanted(case["plan"])
    ]


def wanted(plan: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """A step alone is one that is allowed and asks a person, or tells without a target."""
    yield from ({"step": one} if isinstance(one, str) else one for one in plan)


def test_the_step_that_the_page_of_evidence_shows_is_one_and_keeps_the_packets():
    page = (RULES.parent / "docs" / "evidence.md").read_text(encoding="utf-8")
    (step,) = re.findall(r"```yaml\n(  keep:\n.*?)```", page, re.DOTALL)
    text = (
        "name: Keep\ndescription: As the page shows it.\ncreated_by: me\ncreated: 2026-11-28\n"
        "workflow_exception: end\nworkflow:\n  start: {type: start, on_completion: keep}\n"
        f"{step}  end: {{type: end}}\n"
    )
    finding = {
        **{"finding.id": "f-1", "source.ip": "203.0.113.33", "finding.mode": "normal"},
        **{"finding.first_seen": NOW, "finding.last_seen": NOW, "cw.operator": "op-grid"},
    }

    one = playbook.parse(text.encode(), "page.yml", SPECS)
    one = msgspec.structs.replace(one, signed_by=playbook.SHIPPED_BY)
    (keep,) = plan(one, finding, world({}), {"evidence": Told(SPECS["evidence"])}).actions

    assert (keep.outcome, keep.action_class) == ("allow", "A0")
    assert command(keep, keep.commands[0]) == "evidence copy 203.0.113.33"
    moment = NOW.isoformat()
    assert keep.commands[0].args == {"finding": "f-1", "since": moment, "until": moment}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_packets_of_an_address_are_kept_before_anything_is_done_to_it(file):
    one = playbook.read(file, SPECS)
    names = [step.name for step in one.steps.values()]
    acting = [
        step.name
        for step in one.steps.values()
        if step.action is not None
        and step.safety.action_class in ("A1", "A2", "A3")
        and "ip" in str(step.action.target)
    ]

    assert all(names.index("keep") < names.index(name) for name in acting)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_playbook_starts_in_shadow_and_its_rules_are_ours(file):
    one = playbook.read(file, SPECS)
    ids = {
        found[1]
        for path in RULES.rglob("*.yml")
        if ".test." not in path.name
        and (found := re.search(r"^id: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE))
    }

    assert one.stage == "shadow"
    assert {*one.trigger["rule.id"]} <= ids


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_playbook_has_cases_that_start_act_are_refused_and_are_in_shadow(file):
    (document,) = documents.read(file.with_suffix(".cases.yml"))
    found = document.value["cases"]

    acts = any(
        step.safety.action_class in ("A1", "A2", "A3")
        for step in playbook.read(file, SPECS).steps.values()
    )
    assert any(case.get("starts") is False for case in found)
    if acts:
        steps = [step for case in found for step in case.get("plan", []) if isinstance(step, dict)]
        assert any(step.get("outcome") == "needs approval" for step in steps)
        assert any(step.get("outcome") == "deny" for step in steps)
        assert any(case.get("stage") == "shadow" for case in found)
