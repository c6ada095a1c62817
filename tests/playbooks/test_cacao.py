"""What we write is CACAO 2.0; what others write is looked at, and nothing of it is trusted."""

from __future__ import annotations

import json
import re
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing

from cityward import RuleError
from playbooks import cacao, playbook
from playbooks.playbook import LIBRARY
from tests.playbooks.test_playbook import GOOD, KNOWN

SCHEMAS = "standards/cacao2_json_schemas.tar.gz"
EXTENSION = json.loads((LIBRARY.parent / "safety.schema.json").read_text())
EVERY_STEP = """\
name: Every kind of step
description: One of each.
created_by: night shift
created: 2026-11-28T10:00:00+01:00
valid_from: 2026-12-01
valid_until: 2027-12-01
playbook_types: [notification]
playbook_activities: [deliver-content]
labels: [one]
severity: 70
impact: 5
workflow_exception: ask
workflow:
  start: {type: start, on_completion: both}
  both: {type: parallel, next_steps: [post, which], on_completion: loop}
  post:
    type: action
    agent: caller
    commands:
      - type: http-api
        command: {action: create, target: {uri: "https://desk.example/x"}, args: {note: "é ${finding.title}"}}
    on_completion: end
  which:
    type: switch-condition
    switch: finding.severity
    cases: {high: block, critical: block, default: end}
  block:
    type: action
    class: A1
    time_box: P1DT2H3M4S
    rollback: device
    requires: [corroborated, not_peak]
    verify: {expect: {is_applied: true}, within: PT5S}
    blast_limit: {assets: 3, people: 2}
    agent: gate
    commands:
      - type: openc2-http
        command:
          action: deny
          target:
            ipv4_connection: {src_addr: "${finding.source.ip}", dst_addr: 192.0.2.7, dst_port: "22"}
    on_success: end
    on_failure: ask
  loop:
    type: while-condition
    when: {finding.status: new, finding.risk: "2..90", step.block: success}
    on_true: remind
    rounds_max: 3
    on_completion: other
  remind:
    type: action
    agent: desk
    commands:
      - {type: ssh, command: {action: create, args: {summary: still there, list: [1, 2.5, true, null]}}}
    timeout: PT10M
    on_completion: end
  other: {type: playbook-action, playbook_id: Scanner at the gate, on_success: is-ours, on_failure: ask}
  is-ours: {type: if-condition, when: {source.ip: "*", user.name: null}, on_true: end, on_false: ask}
  ask:
    type: action
    class: A4
    agent: duty officer
    commands:
      - {type: manual, command: "Look at ${finding.source.ip}.\\nThen at ${finding.title}."}
    on_completion: end
  end: {type: end}
"""  # noqa: E501


@cache
def validator(archive: Path) -> jsonschema.Draft7Validator:
    """The published schemas, without the network."""
    registry: Any = referencing.Registry()
    with tarfile.open(archive) as files:
        found = {
            member.name: json.loads(files.extractfile(member).read())  # type: ignore[union-attr]
            for member in files
            if member.name.endswith(".json")
        }
    for name, schema in found.items():
        schema.pop("$id", None)
        # Draft 7 has not heard of it; what it says of properties is checked when it is told so.
        contents = referencing.jsonschema.DRAFT7.create_resource(schema)
        registry = registry.with_resource(f"file:///{name}", contents)
    return jsonschema.Draft7Validator(
        {"$ref": "file:///playbook.json"}, registry=registry,
        format_checker=jsonschema.FormatChecker(),
    )  # fmt: skip


def faults(document: dict[str, Any], data: Path) -> list[str]:
    return [
        f"{one.json_path}: {one.message}" for one in validator(data / SCHEMAS).iter_errors(document)
    ]


def made(text: str) -> dict[str, Any]:
    return cacao.build(playbook.parse(text.encode(), "x.yml", KNOWN))


@pytest.mark.parametrize("text", [GOOD, EVERY_STEP])
def test_what_is_built_is_valid_cacao(text, data):
    assert faults(made(text), data) == []


def test_the_schemas_would_notice(data):
    document = made(GOOD) | {"spec_version": "cacao-1.0"}

    assert faults(document, data)


@pytest.mark.parametrize("file", playbook.files_of(LIBRARY), ids=lambda file: file.stem)
def test_the_shipped_playbooks_are_valid_cacao(file, data):
    assert faults(cacao.build(playbook.read(file, playbook.specs())), data) == []


@pytest.mark.parametrize("text", [GOOD, EVERY_STEP])
def test_the_extension_is_as_its_schema_says(text):
    document = made(text)
    whole = jsonschema.Draft7Validator(EXTENSION)
    steps = [
        step["step_extensions"][cacao.EXTENSION]
        for step in document["workflow"].values()
        if "step_extensions" in step
    ]

    assert list(whole.iter_errors(document["playbook_extensions"][cacao.EXTENSION])) == []
    assert [fault for step in steps for fault in whole.iter_errors(step)] == []
    assert len(steps) >= 3


@pytest.mark.parametrize("text", [GOOD, EVERY_STEP])
@pytest.mark.parametrize("spell", [cacao.encode, cacao.canonical])
def test_what_is_built_is_read_back_as_the_same_playbook(text, spell):
    one = playbook.parse(text.encode(), "x.yml", KNOWN)

    again = playbook.parse(spell(cacao.build(one)), "x.json", KNOWN)

    assert again.version == one.version
    assert {**again.steps} == {**one.steps}
    assert again.trigger == one.trigger
    assert again.about == one.about


def test_conditions_are_comparisons_of_stix():
    said = {
        "finding.risk": [">=70", 5],
        "finding.severity": ["high", "it's"],
        "source.ip": "*",
        "step.block": "failure",
        "user.name": None,
        "finding.confidence": "0.5..1",
    }

    assert cacao.condition(said) == (
        "(__finding-confidence__:value >= 0.5 AND __finding-confidence__:value <= 1)"
        " AND (__finding-risk__:value = 5 OR __finding-risk__:value >= 70)"
        " AND __finding-severity__:value IN ('high', 'it\\'s')"
        " AND EXISTS __finding-source-ip__:value"
        " AND __step-block__:value = 'failure'"
        " AND NOT EXISTS __finding-user-name__:value"
    )


def test_the_finding_goes_in_as_variables_and_only_there():
    text = cacao.canonical(made(EVERY_STEP)).decode()

    assert "${" not in text
    assert "__finding-title__:value" in text
    assert set(made(EVERY_STEP)["playbook_variables"]) >= {
        "__finding-source-ip__",
        "__step-block__",
    }


def test_a_changed_document_is_refused():
    document = made(GOOD)
    (block,) = [step for step in document["workflow"].values() if step["name"] == "block"]
    block["commands"][0]["command"] = block["commands"][0]["command"].replace("3600000", "86400000")

    with pytest.raises(RuleError, match="more than cityward would run"):
        playbook.parse(cacao.encode(document), "x.json", KNOWN)


@pytest.mark.parametrize(
    "change",
    [
        {"workflow": {}}, {"workflow": 5}, {"workflow_start": 7}, {"agent_definitions": []},
        {"playbook_extensions": {cacao.EXTENSION: {}}}, {"target_definitions": {"a": {}}},
        {"name": "x" * 5_000}, {"workflow_exception": "end--1"}, {"created": "now"},
    ],
)  # fmt: skip
def test_a_broken_document_is_refused_by_name(change):
    data = cacao.encode(made(GOOD) | change)

    found, errors = playbook.examine(data, "x.json", KNOWN)

    assert found is None
    assert errors
    assert all(one.where.startswith("x.json") for one in errors)


FOREIGN = {
    "type": "playbook",
    "spec_version": "cacao-2.0",
    "id": "playbook--a0777575-5c4c-4710-9f01-15776103837f",
    "name": "Wipe it",
    "workflow": {
        "start--1": {"type": "start", "on_completion": "action--1"},
        "action--1": {
            "type": "action", "name": "wipe", "on_completion": "end--1",
            "commands": [{"type": "bash", "command": "rm -rf / # \x1b[2J"}],
        },
        "end--1": {"type": "end"},
    },
}  # fmt: skip


def test_a_playbook_from_elsewhere_is_never_one():
    with pytest.raises(RuleError, match="from elsewhere is shown, never run"):
        playbook.parse(json.dumps(FOREIGN).encode(), "x.json", KNOWN)


def test_a_playbook_from_elsewhere_is_shown():
    said = cacao.outline(cacao.decode(json.dumps(FOREIGN).encode(), "x.json"))

    assert said.name == "Wipe it"
    assert [step.does for step in said.steps] == ["", "bash: rm -rf / # \x1b[2J", ""]
    assert said.steps[1].then == "on_completion end--1"


@pytest.mark.parametrize(
    "strange",
    [
        {}, {"workflow": []}, {"workflow": {"a": None, "b": [], "c": {"commands": {}}}},
        {"workflow": {"a": {"commands": [None, 5, {"type": []}], "next_steps": [{}, None]}}},
        {"name": ["x"], "workflow": {"a": {"name": {}, "on_true": [], "on_completion": 5}}},
        {"workflow": {str(n): {"name": "x" * 9_000} for n in range(600)}},
    ],
)  # fmt: skip
def test_whatever_it_says_it_is_shown_and_cut_to_size(strange):
    said = cacao.outline(strange)

    assert len(said.steps) <= cacao.SHOWN_STEPS
    assert len(repr(said)) < 400_000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"[" * 100_000, "no JSON"),
        (b'{"a":' * 30 + b"1" + b"}" * 30, "nested deeper than 24"),
        (b"{" + b" " * cacao.FOREIGN_MAX_BYTES + b"}", "larger than"),
        (b"{]", "no JSON"),
        (b"[]", "no object"),
        (b'"\xff"', "no JSON"),
        (b"", "no JSON"),
    ],
)
def test_what_is_too_much_is_refused(text, why):
    with pytest.raises(RuleError, match=re.escape(why)):
        cacao.decode(text, "x.json")
