"""Whatever is planned, said, forged or approved: what must not be touched never is.

The oracle below is written from the design, with nothing of the gate in it.
"""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cityward import Asset, Command, Target, Unsafe
from playbooks.flow import new_run
from playbooks.journal import RUN_ENDS, Approval, Run
from playbooks.model import BlastLimit, Check, Limits, Plan, Planned, Playbook, Step, outcome_of
from playbooks.plan import plan, planned
from playbooks.runner import Runner
from playbooks.safety import Consent, gate
from playbooks.targets import target_of
from siem.store.runs import RunStore
from tests.playbooks.kit import Clock, db_at
from tests.playbooks.world import NOW, ZONES, World, action, actuators, finding, playbook

ADDRESSES = (
    *("203.0.113.7", "203.0.113.8", "198.51.100.7", "10.4.0.9", "10.4.0.10", "10.6.0.5"),
    *("10.7.0.5", "10.9.0.1", "192.0.2.77", "2001:db8:10::5", "2001:db8:77::5"),
)
NETWORKS = ("203.0.113.0/28", "10.4.0.0/28", "198.51.100.0/24", "10.7.0.0/24")
CONTROLLERS = ("plc", "rtu", "ied", "siren", "signal_controller", "safety_controller", "crane_plc")
HARMLESS = ("camera", "workstation", "switch")
ZONE_TYPES = ("iot", "enterprise", "dmz", "control", "supervisory", "safety", "external", "")
SEEN: Counter[str] = Counter()

WORLDS = 20
"""So many worlds are made of each seed."""


class Dice(random.Random):
    """Most of the time all is well, so that much is allowed that could be wrong."""

    def rarely(self, one_in: int = 12) -> bool:
        return self.randrange(one_in) == 0

    def mostly(self, well: Any, *other: Any) -> Any:
        return self.choice(other) if self.rarely() else well


def assets(dice: Dice) -> list[Asset]:
    chosen = dice.sample(ADDRESSES, dice.randrange(8))
    return [
        Asset(
            id=f"asset-{number}",
            type=dice.choice(CONTROLLERS if dice.rarely(5) else HARMLESS),
            addresses=(address,),
            zone=dice.choice(["z1", "z2"]),
            zone_type=dice.mostly("iot", *ZONE_TYPES),
            never_touch=dice.rarely(),
            safety_related=dice.rarely(),
            essential_function="signals" if dice.rarely() else "",
            purdue=dice.mostly(None, 1.0, 3.0),
        )
        for number, address in enumerate(chosen)
    ]


def targets(dice: Dice) -> dict[str, str]:
    kind = dice.choice(["variable", "variable", "address", "network", "device", "flow", "domain"])
    if kind == "variable":
        return {"type": "ipv4_net", "value": "${finding.source.ip}"}
    if kind == "device":
        return {"type": "device", "value": f"asset-{dice.randrange(4)}"}
    if kind == "domain":
        return {"type": "domain_name", "value": dice.choice(["a.example", "x.tram.example"])}
    if kind == "flow":
        ends = dice.sample(ADDRESSES[3:8], 2)
        return {"type": "ipv4_connection", "src_addr": ends[0], "dst_addr": ends[1]}
    return {"type": "ipv4_net", "value": dice.choice(ADDRESSES if kind == "address" else NETWORKS)}


TYPES = (
    *("ipv4_net", "ipv6_net", "ipv4_connection", "device", "domain_name", "uri", "mac_addr"),
    "x-a:b",
)
CLASS_OF = {"device": "A2", "ipv4_connection": "A3"}


def playbooks(dice: Dice) -> Playbook:
    target = targets(dice)
    by_device = target["type"] == "device"
    usual = CLASS_OF.get(target["type"], "A1")
    step = action(
        "block",
        "broker" if by_device else dice.mostly("gateway", "mail"),
        "contain" if by_device else dice.mostly("deny", "allow"),
        target,
        action_class=dice.mostly(usual, "A0", "A1", "A2", "A3", "A4"),
        limit=BlastLimit(
            assets=dice.randrange(4), services=dice.randrange(2), people=dice.mostly(900, 0)
        ),
    )
    return playbook(
        step,
        stage=dice.mostly("live", "approve_all", "shadow", "draft"),
        signed_by=dice.mostly("release", "stranger", ""),
    )


def worlds(dice: Dice) -> World:
    known = assets(dice)
    names = [one.id for one in known]
    values = [*ADDRESSES, *names]
    needs = {
        name: dice.sample([*names, "service"], dice.randrange(min(4, len(names) + 2)))
        for name in dice.sample(values, 3)
    }
    every = dict.fromkeys(("A1", "A2", "A3", "A4"), frozenset(ZONE_TYPES))
    return World(
        known,
        limits=Limits(zones=dice.choice([ZONES, every]), alone=dice.rarely(2)),
        flows=EveryFlow() if dice.rarely(2) else {},
        keep={dice.choice(ADDRESSES): "partner"} if dice.rarely(3) else {},
        peers={dice.choice(values): "name server"} if dice.rarely(3) else {},
        needs=needs,
        served=dice.mostly({"service": 900}, {"service": 901}, {}),
        sizes={"z1": dice.randrange(40), "z2": 5},
        confirmed=not dice.rarely(),
        spoke=dice.mostly(("r1", "r2"), ("r1",), ("model.x",), ("model.x", "model.y"), ()),
        on=dice.mostly((), ("global",), ("actuator:gateway",), ("playbook:playbook--1",)),
    )


class EveryFlow(dict[str, str]):
    """Somebody listed every flow."""

    def get(self, key: str, default: Any = None) -> Any:
        return "not needed"


def forged(dice: Dice, one: Planned) -> Planned:
    """The same with anything in it, as from a message that somebody else wrote."""
    target = dice.choice(
        [one.target, Target("ipv4_net", dice.choice(ADDRESSES)), Target("device", "asset-0")]
    )
    command = Command(
        dice.choice(["deny", "contain", "set", "stop"]),
        dice.choice([target, one.target, Target("ipv4_net", "10.7.0.5"), Target("x", "../plc")]),
        dice.mostly("allow", ""),
        NOW + dice.choice([timedelta(minutes=5), timedelta(hours=1), timedelta(days=9)]),
    )
    return msgspec.structs.replace(
        one,
        target=target,
        commands=dice.choice([one.commands, (command,)]),
        actuator=dice.mostly(one.actuator, "gateway", "broker", "mail", "manual", "none"),
        action_class=dice.mostly(one.action_class, "A0", "A1", "A2", "A3", "A4"),
        until=dice.mostly(one.until, None, NOW + timedelta(hours=1)),
        checks=(),
    )


# ---- The oracle

SOMEBODYS = ("198.51.100.0/24", "10.0.0.0/8", "2001:db8:10::/48")
"""Networks of a peer and of our own."""


def wrong(one: Planned, book: Playbook, about: dict[str, Any], world: World) -> list[str]:
    """Why this must never be done, by the design alone."""
    limit = book.steps["action--block"].safety.blast_limit
    found: list[str] = []
    dependants: set[str] = set()
    for target in {one.target, *(command.target for command in one.commands)}:
        ends = _ends(target)
        narrow = one.action_class == "A3" and len(ends) == 2
        for place, end in enumerate(ends):
            met = [asset for asset in world.assets if _meets(end, asset)]
            if any(asset.never_touch or asset.safety_related for asset in met):
                found.append("never touched")
            if any(asset.zone_type == "safety" for asset in met):
                found.append("safety zone")
            if not (narrow and place == 1):
                if any(asset.essential_function for asset in met):
                    found.append("essential")
                if any(asset.type in CONTROLLERS for asset in met):
                    found.append("controller")
                dependants.update(asset.id for asset in met)
            if not met and any(_in(end, net) for net in SOMEBODYS):
                found.append("nobody's asset, but somebody's address")
            if any(name in world.peers for name in (end, *(a.id for a in met if a.id == end))):
                found.append("protected")
            if end in world.keep:
                found.append("kept")
        dependants.update(world.needs.get(target.value, ()))
    services = dependants & {"service"}
    if len(dependants - services) > limit.assets or len(services) > limit.services:
        found.append("blast")
    if any(world.served.get(name, limit.people + 1) > limit.people for name in services):
        found.append("people")
    if one.action_class == "A4":
        found.append("A4")
    if about["cw.operator"] != world.operator or about["finding.mode"] != "normal":
        found.append("not ours, or not real")
    if all(name.startswith("model.") for name in world.spoke):
        found.append("a model alone, or nobody")
    if book.stage not in ("live", "approve_all") or book.signed_by != "release":
        found.append("unsigned or not live")
    if {"global", "playbook:playbook--1", f"actuator:{one.actuator}"} & set(world.on):
        found.append("stopped")
    return found


def _ends(target: Target) -> list[str]:
    if target.type.endswith("_connection"):
        said = msgspec.json.decode(target.value)
        return [said["src_addr"], said["dst_addr"]]
    return [target.value]


def _meets(end: str, asset: Asset) -> bool:
    return end == asset.id or any(_in(address, end) for address in asset.addresses)


def _in(address: str, network: str) -> bool:
    try:
        one, other = ipaddress.ip_network(address), ipaddress.ip_network(network)
    except ValueError:
        return False
    return one.version == other.version and one.overlaps(other)


# ---- Properties


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def _explore(seed: int) -> None:
    dice = Dice(seed)
    for _ in range(WORLDS):
        _one_world(dice)


def _one_world(dice: Dice) -> None:
    book, world = playbooks(dice), worlds(dice)
    about = finding(
        **{
            "source.ip": dice.choice(ADDRESSES),
            "cw.operator": dice.mostly("op-tram", "op-port"),
            "finding.mode": dice.mostly("normal", "exercise", "test"),
            "rule.id": world.spoke[0] if world.spoke else "r1",
        }
    )
    made = plan(book, about, world, actuators())
    one = next(each for each in made.actions if each.step == "action--block")
    if dice.rarely(4):
        one = forged(dice, one)
        made = msgspec.structs.replace(made, actions=(one,))
    outcome = outcome_of(gate(one, book, about, world, _yes(made)))
    SEEN[outcome] += 1
    if outcome == "allow" and one.commands and one.actuator != "mail":
        SEEN[one.action_class] += 1
        assert wrong(one, book, about, world) == []


def _yes(made: Plan) -> Consent:
    people = (("ada", "analyst"), ("bo", "approver"))
    approvals = tuple(Approval(made.hash, name, role, NOW) for name, role in people)
    return Consent(plan=made, approvals=approvals, asked_by="eve")


@pytest.mark.slow
def test_nothing_leads_to_an_effect_that_must_not_be() -> None:
    SEEN.clear()

    _explore()

    # It would be easy to be safe by doing nothing at all.
    assert SEEN["A1"] > 50
    assert SEEN["A2"] > 5
    assert SEEN["deny"] > SEEN["allow"]


# ---- Runs: planner, gate, journal and device together, while the world changes


class Watched:
    """Actuators that look, at the very moment of an effect, whether it is one that must not be."""

    def __init__(self, book: Playbook, about: dict[str, Any], world: World) -> None:
        self.book, self.about, self.world = book, about, world
        self.asked: Planned | None = None
        self.applied = 0
        self.wrong: list[str] = []
        self.actuators = actuators()
        for part in self.actuators.values():
            part.apply = self._watched(part.apply)

    def _watched(self, apply: Any) -> Any:
        def watched(command: Command) -> None:
            if command.undo and command.verb != "allow":
                assert self.asked is not None
                self.applied += 1
                # An error here would be the actuator's; it is looked at when the run is over.
                self.wrong += wrong(self.asked, self.book, self.about, self.world)
                if command.target not in {one.target for one in self.asked.commands}:
                    self.wrong.append("another target than the gate was asked of")
            apply(command)

        return watched

    def plan(self, run: Run, step: Step) -> Planned:
        return planned(step, run.playbook, run.finding, self.world, self.actuators)

    def gate(self, run: Run, one: Planned) -> tuple[Check, ...]:
        self.asked = one
        consent = Consent(plan=run.plan, approvals=run.approvals, asked_by=run.asked_by)
        return gate(one, run.playbook, run.finding, self.world, consent)


@pytest.mark.slow
def test_no_run_has_an_effect_that_must_not_be_though_the_world_changes(tmp_path: Path) -> None:
    clock = Clock(NOW)
    with closing(db_at(tmp_path, clock)) as db:
        applied = sum(_one_run(Dice(seed), db.runs, f"r{seed}") for seed in range(120))

    assert applied > 10


def _one_run(dice: Dice, runs: RunStore, id: str) -> int:
    book, world = playbooks(dice), worlds(dice)
    about = finding(**{"source.ip": dice.choice(ADDRESSES), "rule.id": "r1"})
    watched = Watched(book, about, world)
    runner = Runner(runs, watched.actuators, watched.plan, watched.gate)
    made = plan(book, about, world, watched.actuators)
    run = new_run(id, book, made, NOW, finding=about, group=id, stage=book.stage, asked_by="eve")
    assert runs.start(run)
    for _ in range(40):
        if dice.rarely(5):  # between a plan, a yes and an effect
            watched.world = worlds(dice)
        change = runner.advance(id)
        if change is None or change.wake is None or change.state == "waiting":
            found = runs.get(id)
            assert found is not None
            if found.state in RUN_ENDS or any(one.is_in_force for one in found.effects):
                break
            for by, role in (("ada", "analyst"), ("bo", "approver")):
                runs.approve(id, by, role, found.plan.hash)
    assert watched.wrong == []
    return watched.applied


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80), st.sampled_from(TYPES))
def test_a_target_of_any_text_is_refused_or_has_one_spelling(text: str, kind: str) -> None:
    try:
        made = target_of(kind, text)
    except Unsafe:
        return

    assert target_of(made.type, made.value) == made
    assert made.value.isascii()
    assert made.value.isprintable()
    assert not set(" `$'<>|&;*?\\") & set(made.value)
