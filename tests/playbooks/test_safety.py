"""The safety gate: each check refuses alone, and nothing overrides what is never touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as changed
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from cityward import Asset, Target
from playbooks import safety
from playbooks.journal import Approval
from playbooks.model import BlastLimit, Check, Limits, Plan, Planned, Playbook, outcome_of
from playbooks.plan import plan
from playbooks.safety import Consent, gate
from playbooks.targets import target_of
from tests.playbooks.world import (
    CAMERA,
    HMI,
    NOW,
    OTHER,
    PLC,
    RULE,
    SCANNER,
    ZONES,
    World,
    action,
    actuators,
    finding,
    playbook,
)

HOUR = timedelta(hours=1)
replace = msgspec.structs.replace


def planned(
    book: Playbook, about: Mapping[str, Any], world: World, name: str = "action--block"
) -> tuple[Plan, Planned]:
    made = plan(book, about, world, actuators())
    return made, next(one for one in made.actions if one.step == name)


def yes(made: Plan, *by: str, ago: timedelta = timedelta(minutes=1)) -> Consent:
    """People who approved a plan: `ada/soc`."""
    people = [one.split("/") for one in by]
    approvals = tuple(Approval(made.hash, name, role, NOW - ago) for name, role in people)
    return Consent(plan=made, approvals=approvals, asked_by="eve")


def refusing(checks: tuple[Check, ...]) -> list[int]:
    return [one.number for one in checks if one.outcome == "deny"]


def asked(
    world: World,
    about: Mapping[str, Any] | None = None,
    book: Playbook | None = None,
    *,
    by: tuple[str, ...] = ("ada/analyst",),
) -> tuple[Check, ...]:
    """What the gate says before the effect of a plan that was made in a world where all is well."""
    book, about = book or playbook(action("block")), about or finding()
    made, one = planned(book, about, world)
    return gate(one, book, about, world, yes(made, *by))


CAMERAS = playbook(
    action("block", "broker", "contain", {"type": "device", "value": "camera-1"}, action_class="A2")
)
FLOW = {
    "type": "ipv4_connection",
    "src_addr": "10.6.0.5",
    "dst_addr": "10.7.0.5",
    "protocol": "tcp",
    "dst_port": "502",
}
FLOW_VALUE = target_of("ipv4_connection", FLOW).value
CONDUIT = playbook(action("block", target=FLOW, action_class="A3"))
OT = World([HMI, PLC], flows={FLOW_VALUE: "only for commissioning"})
TWO = ("ada/analyst", "bo/engineer")


def test_a_scanner_is_blocked_when_everything_is_well_and_one_person_agreed():
    checks = asked(World())

    assert [check.number for check in checks] == list(range(1, 13))
    assert {check.outcome for check in checks} == {"allow"}


def test_a_camera_is_cut_off_and_a_flow_into_a_control_zone_is_cut_when_two_agreed():
    assert outcome_of(asked(World([CAMERA], sizes={"cams": 20}), book=CAMERAS)) == "allow"
    assert outcome_of(asked(OT, book=CONDUIT, by=TWO)) == "allow"


def block(**said: Any) -> Playbook:
    return playbook(action("block"), **said)


ALONE: list[tuple[str, int, World, dict[str, Any], Playbook]] = [
    ("global stop", 1, World(on=["global"]), {}, block()),
    ("stop of the operator", 1, World(on=["operator:op-tram"]), {}, block()),
    ("stop of the playbook", 1, World(on=["playbook:playbook--1"]), {}, block()),
    ("stop of the actuator", 1, World(on=["actuator:gateway"]), {}, block()),
    ("unsigned", 2, World(), {}, block(signed_by="")),
    ("revoked key", 2, World(keys=["other"]), {}, block()),
    ("not yet valid", 2, World(), {}, block(valid_from=NOW + HOUR)),
    ("not valid any more", 2, World(), {}, block(valid_until=NOW)),
    ("draft", 2, World(), {}, block(stage="draft")),
    ("shadow", 2, World(), {}, block(stage="shadow")),
    ("exercise", 2, World(), {"finding.mode": "exercise"}, block()),
    ("no mode", 2, World(), {"finding.mode": None}, block()),
    (
        "real finding where an exercise is played",
        2,
        World(limits=Limits(zones=ZONES, exercises=True)),
        {},
        block(),
    ),
    ("peak hours", 2, World(peak=True), {}, playbook(action("block", requires=["not_peak"]))),
    (
        "maintenance there",
        2,
        World(modes={SCANNER: "maintenance"}),
        {},
        playbook(action("block", requires=["mode:normal"])),
    ),
    ("another operator's finding", 3, World(), {"cw.operator": "op-port"}, block()),
    ("kept", 4, World(keep={SCANNER: "maintenance partner"}), {}, block()),
    ("not confirmed", 4, World([CAMERA], confirmed=False), {}, CAMERAS),
    ("never to be touched", 5, World([replace(CAMERA, never_touch=True)]), {}, CAMERAS),
    ("zone not in the matrix", 6, World(limits=Limits(zones={})), {}, block()),
    ("A3 on a flow that nobody listed", 6, World([HMI, PLC]), {}, CONDUIT),
    (
        "control zone",
        6,
        World([replace(CAMERA, zone_type="control")]),
        {},
        CAMERAS,
    ),
    ("protected", 7, World(peers={SCANNER: "name server"}), {}, block()),
    ("too many depend on it", 8, World([CAMERA, HMI], needs={SCANNER: ["camera-1", "hmi-1"]}),
     {}, block()),
    ("a service depends on it", 8, World(needs={SCANNER: ["ticket sale"]}), {}, block()),
    ("nobody says who uses the service", 8, World(needs={SCANNER: ["ticket sale"]}), {},
     playbook(action("block", limit=BlastLimit(services=1, people=9_999)))),
    ("too many people use the service", 8,
     World(needs={SCANNER: ["ticket sale"]}, served={"ticket sale": 201}), {},
     playbook(action("block", limit=BlastLimit(services=1, people=200)))),
    ("too many people use the device", 8, World([CAMERA], served={"camera-1": 1}), {}, CAMERAS),
    (
        "too large a part of a zone",
        8,
        World(
            [replace(CAMERA, id=f"camera-{n}", addresses=(f"10.4.0.{n}",)) for n in range(1, 4)],
            needs={"camera-1": ["camera-2", "camera-3"]},
            sizes={"cams": 20},
        ),
        {},
        playbook(
            action("block", "broker", "contain", {"type": "device", "value": "camera-1"},
                   action_class="A2", limit=BlastLimit(assets=5))
        ),
    ),
    (
        "the other one of a pair is cut off already",
        8,
        World([CAMERA, replace(CAMERA, id="camera-2", addresses=("10.4.0.10",))],
              groups=[["camera-1", "camera-2"]], held={"camera-2": 1}),
        {},
        CAMERAS,
    ),
    (
        "no redundant peer is up",
        8,
        World([CAMERA]),
        {},
        playbook(
            action("block", "broker", "contain", {"type": "device", "value": "camera-1"},
                   action_class="A2", requires=["redundant_peer_up"])
        ),
    ),
    ("nobody of ours has seen it", 9, World(spoke=[]), {}, block()),
    ("only a model", 9, World(spoke=["model.surprise"]), {"rule.id": "model.surprise"}, block()),
    ("two models", 9, World(spoke=["model.surprise", "model.series"]), {}, block()),
    ("a rule nobody judged", 9, World(spoke=[RULE]), {}, block()),
    ("a rule that is often wrong", 9, World(spoke=[RULE], precisions={RULE: 0.94}), {}, block()),
    ("PAP amber", 10, World(), {"cw.marking.pap": "amber"}, block()),
    ("PAP red of an indicator", 10, World(), {"threat.indicator.marking.pap": "red"}, block()),
    ("TLP red of an indicator", 10, World(), {"threat.indicator.marking.tlp": "red"}, block()),
    ("ran too often", 11, World(runs=10), {}, block()),
    ("too many at once", 11, World(open=3), {}, block()),
    ("the same target lately", 11, World(last=NOW - timedelta(minutes=14)), {}, block()),
    ("too many commands", 11, World(commands=20), {}, block()),
    ("too much in force in a zone", 11, World([CAMERA], held={"cams": 5}), {}, CAMERAS),
    ("breaker, failures", 11, World(failed=[NOW - n * timedelta(minutes=29) for n in (0, 1, 2)]),
     {}, block()),
    ("breaker, rollbacks", 11, World(taken_back=[NOW - HOUR, NOW]), {}, block()),
]  # fmt: skip


@pytest.mark.parametrize(("number", "world", "said", "book"), [one[1:] for one in ALONE],
                         ids=[one[0] for one in ALONE])  # fmt: skip
def test_each_check_refuses_alone(number, world, said, book):
    checks = asked(world, finding(**said), book, by=TWO)

    assert refusing(checks) == [number]
    (refused,) = [one for one in checks if one.outcome == "deny"]
    assert f"Instead: {safety.INSTEAD[number]}" in refused.why
    assert refused.name == safety.CHECKS[number][0]


def test_every_check_that_denies_has_its_case_and_the_twelfth_asks():
    assert {one[1] for one in ALONE} == set(range(1, 12))
    said = asked(World(), by=())

    assert [one.number for one in said if one.outcome != "allow"] == [12]
    assert said[-1].outcome == "needs approval"


def test_what_is_over_its_limits_by_one_is_within_them_by_none():
    assert outcome_of(asked(World(runs=9, open=2, commands=19))) == "allow"
    assert outcome_of(asked(World(last=NOW - timedelta(minutes=15)))) == "allow"
    assert outcome_of(asked(World([CAMERA], held={"cams": 4}), book=CAMERAS)) == "allow"
    assert outcome_of(asked(World(spoke=[RULE], precisions={RULE: 0.95}))) == "allow"
    assert outcome_of(asked(World(spoke=["model.surprise", OTHER]))) == "allow"
    assert outcome_of(asked(World([CAMERA], needs={SCANNER: ["camera-1"]}))) == "allow"
    crowd = World(needs={SCANNER: ["tickets", "gates"]}, served={"tickets": 150, "gates": 50})
    book = playbook(action("block", limit=BlastLimit(services=2, people=200)))
    assert outcome_of(asked(crowd, book=book)) == "allow"


# ---- Never touched


@pytest.mark.parametrize(
    "said",
    [
        {"never_touch": True},
        {"safety_related": True},
        {"essential_function": "points of line 2"},
        {"type": "plc"},
        {"type": "RTU"},
        {"type": "signal_controller"},
        {"type": "crane_plc"},
        {"type": "siren"},
        {"purdue": 1.0},
        {"zone_type": "safety"},
    ],
)
def test_what_people_or_the_process_depend_on_is_never_the_target(said):
    world = World([replace(CAMERA, **said)], limits=Limits(zones={"A2": frozenset({"iot"})}))

    assert 5 in refusing(asked(world, book=CAMERAS))


@pytest.mark.parametrize("end", ["src_addr", "dst_addr"])
@pytest.mark.parametrize("said", [{"never_touch": True}, {"safety_related": True},
                                  {"zone_type": "safety"}])  # fmt: skip
def test_a_conduit_has_no_end_that_must_not_be_touched(end, said):
    assets = [replace(HMI, **said), PLC] if end == "src_addr" else [HMI, replace(PLC, **said)]

    assert 5 in refusing(asked(changed(OT, assets=assets), book=CONDUIT, by=TWO))


def test_a_conduit_is_cut_at_the_side_of_the_sender_which_is_no_controller():
    turned = {**FLOW, "src_addr": "10.7.0.5", "dst_addr": "10.6.0.5"}
    value = target_of("ipv4_connection", turned).value
    world = changed(OT, flows={value: "not needed"})

    checks = asked(world, book=playbook(action("block", target=turned, action_class="A3")), by=TWO)

    assert refusing(checks) == [5]


def test_below_a3_both_ends_of_a_flow_are_protected():
    book = playbook(action("block", target=FLOW, action_class="A1"))

    assert refusing(asked(OT, book=book)) == [5, 6]


def test_a_network_is_refused_for_one_device_in_it():
    world = World([replace(PLC, addresses=("203.0.113.9",))])
    book = playbook(action("block", target={"type": "ipv4_net", "value": "203.0.113.0/28"}))

    assert 5 in refusing(asked(world, book=book))


def test_a_class_that_is_never_executed_is_not_even_if_the_matrix_says_so():
    world = World(limits=Limits(zones={**ZONES, "A4": ZONES["A3"]}))

    checks = asked(world, book=playbook(action("block", action_class="A4")), by=TWO)

    assert refusing(checks) == [6]


def test_a_step_counts_as_what_its_actuator_does_whatever_the_playbook_calls_it():
    book = playbook(action("block", action_class="A0"))

    checks = asked(World([replace(PLC, addresses=(SCANNER,))]), book=book)

    assert 5 in refusing(checks)
    assert 2 in refusing(checks)  # A1 without a time box


# ---- Targets


@pytest.mark.parametrize("address", ["198.51.100.7", "10.9.9.9", "2001:db8:10::7"])
def test_another_operators_address_and_one_of_ours_that_nobody_knows_are_no_targets(address):
    denied = refusing(asked(World(), finding(**{"source.ip": address})))

    assert 4 in denied
    assert (3 in denied) == (address == "198.51.100.7")


def test_a_forged_plan_is_seen_by_the_gate():
    book, about, world = playbook(action("block")), finding(), World([PLC])
    made, one = planned(book, about, world)
    (command,) = one.commands
    plc = Target("ipv4_net", "10.7.0.5")
    forged = {
        "other target": replace(one, target=plc, commands=(replace(command, target=plc),)),
        "other target of a command": replace(one, commands=(replace(command, target=plc),)),
        "other verb": replace(one, commands=(replace(command, verb="contain"),)),
        "no end": replace(one, until=None),
        "later end": replace(one, until=NOW + 2 * HOUR),
        "command that outlives it": replace(
            one, commands=(replace(command, until=NOW + timedelta(days=9)),)
        ),
        "nothing takes it back": replace(one, commands=(replace(command, undo=""),)),
        "other actuator": replace(one, actuator="broker"),
        "no such step": replace(one, step="action--other"),
        "said to ask a person": replace(one, actuator="manual"),
        "lower class": replace(one, action_class="A0", until=None),
    }

    for name, fake in forged.items():
        checks = gate(fake, book, about, world, yes(made, *TWO))
        assert outcome_of(checks) == "deny", name
        assert 2 in refusing(checks), name


# ---- Approvals


def test_nobody_approves_their_own_request_nor_too_late_nor_another_plan():
    book, about, world = playbook(action("block")), finding(), World()
    made, one = planned(book, about, world)
    other = replace(made, finding="another")
    for consent in (
        yes(made, "eve/analyst"),
        yes(made, "ada/analyst", ago=timedelta(minutes=15)),
        yes(made, "ada/analyst", ago=-timedelta(minutes=2)),
        replace(yes(made), approvals=yes(other, "ada/analyst").approvals),
        yes(made, "/analyst"),
    ):
        checks = gate(one, book, about, world, consent)

        assert checks[-1].outcome == "needs approval"
    assert gate(one, book, about, world, yes(made, "ada/analyst", ago=timedelta(minutes=14)))[
        -1
    ].outcome == "allow"  # fmt: skip


def test_an_approval_is_void_when_the_world_has_changed_what_would_be_done():
    book, about, world = playbook(action("block")), finding(), World()
    made, one = planned(book, about, world)
    (command,) = one.commands
    now = replace(one, commands=(replace(command, prior={"is_there": True}),))

    assert gate(now, book, about, world, yes(made, "ada/analyst"))[-1].outcome == "needs approval"


def test_a3_needs_two_people_of_different_roles():
    for by in (("ada/analyst",), ("ada/analyst", "ada/engineer"), ("ada/analyst", "bo/analyst")):
        checks = asked(OT, book=CONDUIT, by=by)
        assert [one.number for one in checks if one.outcome != "allow"] == [12]
        assert "two people of different roles" in checks[-1].why
    assert outcome_of(asked(OT, book=CONDUIT, by=TWO)) == "allow"


def test_a1_starts_alone_only_where_settings_stage_and_corroboration_allow_it():
    alone = Limits(zones=ZONES, alone=True)

    assert outcome_of(asked(World(limits=alone), by=())) == "allow"
    assert outcome_of(asked(World(limits=alone), book=block(stage="approve_all"), by=())) == (
        "needs approval"
    )
    assert outcome_of(asked(World(limits=alone, spoke=[RULE]), by=())) == "deny"
    assert outcome_of(asked(World([CAMERA], limits=alone), book=CAMERAS, by=())) == (
        "needs approval"
    )


# ---- Telling


def test_people_are_told_about_anything_even_in_shadow_and_without_corroboration():
    book = playbook(action("block", "mail", "set", {}, action_class="A0"), stage="shadow")
    about = finding(**{"cw.marking.pap": "red", "source.ip": "10.7.0.5"})
    broken = [NOW, NOW, NOW]

    checks = asked(World([PLC], spoke=["model.surprise"], failed=broken), about, book, by=())

    assert outcome_of(checks) == "allow"


def test_a_kill_switch_stops_telling_too_but_not_people():
    told = playbook(action("block", "mail", "set", {}, action_class="A0"))
    manual = playbook(action("block", "manual", "", {}, action_class="A4", args={"text": "Look."}))

    assert refusing(asked(World(on=["global"]), book=told)) == [1]
    assert outcome_of(asked(World(on=["global"]), book=manual)) == "allow"


def test_what_cannot_be_looked_up_is_denied():
    class Blind(World):
        def protected(self, target: Target) -> str:
            raise OSError("the disk is gone")

    checks = asked(Blind())

    assert refusing(checks) == [7]
    assert "could not be looked up" in checks[6].why


def test_no_checks_at_all_are_a_denial():
    assert outcome_of(()) == "deny"


def test_a_device_that_an_essential_one_depends_on_is_left_alone():
    switch = Asset(id="switch-1", type="switch", addresses=("10.4.0.1",), zone_type="iot")
    essential = replace(HMI, essential_function="signals")
    book = playbook(
        action("block", "broker", "contain", {"type": "device", "value": "switch-1"},
               action_class="A2", limit=BlastLimit(assets=5))
    )  # fmt: skip
    world = World([switch, essential], needs={"switch-1": ["hmi-1"]})

    assert refusing(asked(world, book=book)) == [8]
