"""A playbook's file is checked whole before it is one; what is refused says where and why."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cityward import RuleError
from cityward.plugin import ActuatorSpec
from playbooks import playbook
from playbooks.model import Action, BlastLimit

KNOWN = {
    "gate": ActuatorSpec(
        "gate", {"deny": "allow"}, ("ipv4_net", "ipv6_net", "ipv4_connection"), "A1", "device"
    ),
    "broker": ActuatorSpec("broker", {"contain": "allow"}, ("x-mqtt:client",), "A2", "journal"),
    "desk": ActuatorSpec("desk", {"create": ""}, (), "A0", "none"),
    "caller": ActuatorSpec("caller", {"create": ""}, ("uri",), "A0", "none"),
}
GOOD = """\
name: Scanner at the gate
description: Keeps a scanner out for an hour.
created_by: night shift
created: 2026-11-28
trigger:
  when: {rule.id: a857feef-da01-49e1-9429-51e6b5bc5d7e, finding.risk: ">=40"}
  group_by: [source.ip]
rate: {per_hour: 20, cooldown: PT30M}
workflow_exception: ask
workflow:
  start: {type: start, on_completion: tell}
  tell:
    type: action
    agent: desk
    commands:
      - type: cityward-actuator
        command: {action: create, args: {summary: "Scan by ${finding.source.ip}"}}
    on_completion: block
  block:
    type: action
    class: A1
    time_box: PT1H
    rollback: device
    verify: {expect: {is_applied: true}, within: PT10S}
    blast_limit: {assets: 2}
    requires: [corroborated]
    agent: gate
    commands:
      - type: cityward-actuator
        command: {action: deny, target: {ipv4_net: "${finding.source.ip}"}}
    on_success: end
    on_failure: ask
  ask:
    type: action
    agent: duty officer
    commands:
      - {type: manual, command: "Block ${finding.source.ip} by hand."}
    timeout: PT30M
    on_completion: end
  end: {type: end}
"""


def faults(text: str) -> list[RuleError]:
    _, found = playbook.examine(text.encode(), "x.yml", KNOWN)
    return found


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_a_good_file_becomes_a_playbook():
    made = playbook.parse(GOOD.encode(), "x.yml", KNOWN)

    steps = {step.name: step for step in made.steps.values()}
    assert made.stage == "shadow"
    assert made.group_by == ("source.ip",)
    assert made.rate.cooldown == timedelta(minutes=30)
    assert steps["block"].action == Action(
        actuator="gate",
        verb="deny",
        target={"type": "ipv4_net", "value": "${finding.source.ip}"},
    )
    assert steps["block"].safety.action_class == "A1"
    assert steps["block"].safety.time_box == timedelta(hours=1)
    assert steps["block"].safety.blast_limit == BlastLimit(assets=2)
    assert steps["block"].on_failure == steps["ask"].id == made.exception
    assert steps["ask"].action == Action(
        actuator="manual",
        type="manual",
        args={"text": "Block ${finding.source.ip} by hand.", "role": "duty officer"},
    )
    assert steps["ask"].deadline == timedelta(minutes=30)


def test_the_same_file_has_the_same_ids_and_the_same_version():
    one, other = (playbook.parse(GOOD.encode(), name, KNOWN) for name in ("a.yml", "b.yml"))

    assert (one.id, one.version, list(one.steps)) == (other.id, other.version, list(other.steps))


def test_another_time_box_is_another_version_of_the_same_playbook():
    one = playbook.parse(GOOD.encode(), "x.yml", KNOWN)
    other = playbook.parse(changed("PT1H", "PT2H").encode(), "x.yml", KNOWN)

    assert one.id == other.id
    assert one.version != other.version


CONTAIN = """\
  block:
    type: action
    class: {}
    time_box: PT1H
    rollback: {}
    agent: broker
    commands:
      - type: cityward-actuator
        command: {{action: contain, target: {{"x-mqtt:client": "meter-7"}}}}
    on_success: end
    on_failure: ask
"""
BLOCK = GOOD[GOOD.index("  block:") : GOOD.index("  ask:")]
REFUSED = {
    "no path if something fails": ("workflow_exception: ask\n", "", "playbook has no workflow_exc"),
    "a block without failure path": (
        "    on_success: end\n    on_failure: ask\n", "    on_completion: end\n",
        "a step of class A1 without a failure path",
    ),
    "no time box": ("    time_box: PT1H\n", "", "a step of class A1 without time_box"),
    "no rollback": ("    rollback: device\n", "", "a step of class A1 without rollback"),
    "a rollback that the gate does not have": (
        "rollback: device", "rollback: journal", "gate does not end by journal, but by device",
    ),
    "a rollback that is a step": (
        "rollback: device", "rollback: step:ask", "a rollback is never a step",
    ),
    "an unknown rollback": ("rollback: device", "rollback: never", "rollback is 'never', none of"),
    "a shell": ("type: cityward-actuator\n        command: {action: deny", "type: bash\n        "
                "command: {action: deny", "a command of type 'bash' is refused"),
    "another shell": ("{type: manual, c", "{type: powershell, c", "type 'powershell' is"),
    "an unknown command": ("{type: manual, c", "{type: sigma, c", "of type 'sigma' is refused"),
    "an unknown step": ("end: {type: end}", "end: {type: stop}", "has the unknown type 'stop'"),
    "an unknown actuator": ("agent: gate", "agent: wall", "there is no actuator 'wall'"),
    "an unknown verb": ("action: deny", "action: destroy", "gate has no verb 'destroy'"),
    "an unknown target": ("target: {ipv4_net", "target: {device", "gate does not act on 'device'"),
    "an unknown key": ("    timeout: PT30M", "    patience: PT30M", "step ask has no key 'patien"),
    "an unknown key of the playbook": ("stage", "state", "") if "stage" in GOOD else (
        "created_by", "author: x\ncreated_by", "playbook has no key 'author'"),
    "a step that is not there": ("on_success: end", "on_success: done", "leads to 'done', which"),
    "a circle": ("    timeout: PT30M\n    on_completion: end", "    on_completion: tell",
                 "is a circle"),
    "a step that never comes": ("  end: {type: end}", "  end: {type: end}\n  other: {type: end}",
                                "step other never comes"),
    "a class lower than the actuator's": (
        BLOCK, CONTAIN.format("A1", "journal"), "class A1 is lower than A2, which broker has",
    ),
    "a conduit that only our timer would open again": (
        BLOCK, CONTAIN.format("A3", "journal"), "a step of class A3 ends by the device or a lease",
    ),
    "a controller that is not a person's task": (
        "class: A1", "class: A4", "a step of class A4 that is not manual",
    ),
    "an unknown class": ("class: A1", "class: A5", "class is 'A5', none of"),
    "a variable inside an address": (
        '{ipv4_net: "${finding.source.ip}"}', '{ipv4_net: "10.0.0.${finding.source.ip}"}',
        "has a variable inside an address",
    ),
    "a variable that says where a ticket goes": (
        'args: {summary: "Scan by ${finding.source.ip}"}',
        'args: {headers: {x: ["${finding.source.ip}"]}}', "headers has a variable inside an addres",
    ),
    "an unknown variable": (
        'by ${finding.source.ip}"', 'by ${finding.colour}"', "no variable 'finding.colour'",
    ),
    "half a variable": ('by ${finding.source.ip}"', 'by ${finding"', "not written as ${finding.…}"),
    "a variable of CACAO": ('by ${finding.source.ip}"', 'by __finding-x__:value"', "not written"),
    "no address": ('"${finding.source.ip}"}}', "10.0.0.300}}", "is no address or network"),
    "half a country": ('"${finding.source.ip}"}}', "10.0.0.0/8}}", "is wider than /24"),
    "a duration in words": ("PT1H", "1 hour", "'1 hour' is no duration such as PT30M"),
    "a month, whose length nobody knows": ("PT1H", "P1M", "'P1M' is no duration"),
    "no time at all": ("PT1H", "PT0S", "is not between a second and 31 days"),
    "a year": ("PT1H", "P365D", "is not between a second and 31 days"),
    "a duration beside the time box": (
        '"${finding.source.ip}"}}', '"${finding.source.ip}"}, args: {duration: 5}}',
        "duration is said by the time box",
    ),
    "a condition that is none": ('finding.risk: ">=40"', "finding.risk: []", "never holds"),
    "a condition on what no finding has": (
        'finding.risk: ">=40"', "finding.luck: 3", "there is no field 'finding.luck'",
    ),
    "a condition with a mapping": ('finding.risk: ">=40"', "finding.risk: {a: b}", "no condition"),
    "an unknown stage": ("rate: {", "stage: production\nrate: {", "stage is 'production', none of"),
    "an unknown guard": ("[corroborated]", "[lucky]", "there is no guard lucky"),
    "too high a rate": ("per_hour: 20", "per_hour: 100000", "per_hour is 100000, not 1 to 1000"),
    "two commands": (
        "      - {type: manual", "      - {type: manual, command: a}\n      - {type: manual",
        "commands has one command",
    ),
    "a failure path that acts": (
        "workflow_exception: ask", "workflow_exception: block",
        "is on the path of workflow_exception, which tells and asks, and never acts",
    ),
    "two starts": ("  end: {type: end}", "  end: {type: end}\n  go: {type: start, on_completion: "
                   "end}", "2 steps of type start instead of one"),
    "no name": ("name: Scanner at the gate\n", "", "playbook has no name"),
    "a name of two lines": ("Scanner at", '"Scanner\\nat"  #', "is more than a line"),
    "a text with control characters": ("Keeps a", '"a \\e[31m b" #', "no text of at most"),
    "types without activities": (
        "created_by", "playbook_types: [attack]\ncreated_by", "playbook_types without playbook_act",
    ),
    "an id of one's own": ("created_by", "id: playbook--1\ncreated_by", "id is made from the name"),
    "an old CACAO": ("created_by", "spec_version: cacao-1.0\ncreated_by", "not cacao-2.0"),
    "an end before its beginning": (
        "created_by", "valid_from: 2027-01-01\nvalid_until: 2026-01-01\ncreated_by",
        "it ends before it begins",
    ),
    "no time": ("created: 2026-11-28", "created: yesterday", "created is 'yesterday', no time"),
    "a person with a time box": (
        "    timeout: PT30M", "    time_box: PT30M", "a person's task has no time box",
    ),
    "a ticket with a time box": (
        "    agent: desk", "    time_box: PT1H\n    agent: desk", "class A0 has no time box",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why_and_where(name):
    old, new, why = REFUSED[name]

    found = faults(changed(old, new))

    assert any(why in one.what for one in found), [one.what for one in found]
    assert all(one.where.startswith("x.yml") and one.todo for one in found)


def test_the_line_is_that_of_the_fault():
    text = changed("action: deny", "action: destroy")

    (found,) = faults(text)

    assert found.where == f"x.yml:{line_of(text, 'action: destroy')}"


def test_all_faults_are_told_in_the_order_of_the_file():
    text = GOOD.replace("PT1H", "soon").replace("agent: desk", "agent: x")
    text = text.replace("[cor", "[x, cor")

    assert [one.what for one in faults(text)] == [
        "there is no actuator 'x'",
        "'soon' is no duration such as PT30M",
        "there is no guard x",
    ]
