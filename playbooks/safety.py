"""The safety gate: twelve checks, at plan time and again directly before each effect.

Each check is a function of the question alone, says what it saw, and answers in a sentence for the
person who decides. Nothing is remembered between two askings, and nothing overrides a denial; what
cannot be found out is denied. A step that only tells or collects (A0), or asks a person (manual),
changes nothing, so most checks let it pass; a step counts at least as what its actuator says that
it does, whatever the playbook calls it.

References:
    IEC 62443-3-3: checks 2, 3 and 12 serve SR 2.1 and 2.12, 5 and 8 SR 7.1 and the support of
    essential functions, 6 and 7 SR 5.1 and 5.2.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from cityward import Asset, Target, Unsafe
from cityward.plugin import ActuatorSpec
from playbooks import targets, variables
from playbooks.journal import APPROVAL_LIVES, Approval
from playbooks.model import Called, Check, Facts, Outcome, Plan, Planned, Playbook, Step

CONTROLLERS = frozenset(
    {
        *("plc", "rtu", "ied", "safety_controller", "field_io", "control_server"),
        *("crane_plc", "message_sign", "siren", "level_gauge", "onboard_unit"),
    }
)
"""Types of assets that move a process or warn people, besides all `*_controller` and `*_plc`.

References:
    ATT&CK for ICS assets A0003, A0004, A0005, A0009, A0010, A0013.
"""
PURDUE_CONTROL = 1.0
"""Up to this level of the Purdue model an asset is part of the control itself."""
VISIBLE = ("clear", "green")
"""PAP under which those who are watched may notice something."""
PRECISION_LEAST = 0.95
FAILURES_MOST, ROLLBACKS_MOST, BREAKER_SPAN = 3, 2, timedelta(hours=1)
SKEW = timedelta(minutes=1)
"""So far ahead of ours a clock may be whose approval counts."""
SHOWN = 12
"""So many names of a list are shown."""

CLASSES = ("A0", "A1", "A2", "A3", "A4")

log = logging.getLogger(__name__)


class Consent(msgspec.Struct, frozen=True, kw_only=True):
    """Who has said yes to what; before an effect."""

    plan: Plan
    """What they were shown."""
    approvals: tuple[Approval, ...] = ()
    asked_by: str = ""
    """Who started the run; nobody approves their own request."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the gate is asked: may this be done, about this finding, in this world?"""

    planned: Planned
    playbook: Playbook
    finding: Mapping[str, Any]
    facts: Facts
    consent: Consent | None
    """None: at plan time, when nobody has approved yet."""

    @property
    def step(self) -> Step | None:
        """The step of the playbook that it is."""
        return self.playbook.steps.get(self.planned.step)

    @property
    def spec(self) -> ActuatorSpec | None:
        """What the actuator says of itself."""
        return self.facts.actuator(self.planned.actuator)

    @property
    def is_manual(self) -> bool:
        """Whether a person is asked and nothing is done."""
        return self.planned.actuator == "manual" and not self.planned.commands

    @property
    def action_class(self) -> str:
        """The strictest of what plan, playbook and actuator say."""
        said = [self.planned.action_class]
        if self.step is not None:
            said.append(self.step.safety.action_class)
        if self.spec is not None and self.spec.action_class in CLASSES:
            said.append(self.spec.action_class)  # type: ignore[arg-type]
        return max(said)

    @property
    def tells(self) -> bool:
        """Whether nothing in the world is changed by it."""
        return self.is_manual or (self.action_class == "A0" and self.spec is not None)

    @property
    def targets(self) -> tuple[Target, ...]:
        """All that would be acted on: what the plan says, and what its commands say."""
        every = (self.planned.target, *(one.target for one in self.planned.commands))
        return tuple(dict.fromkeys(every))

    @property
    def senders(self) -> tuple[Target, ...]:
        """What is acted on: targets, of a connection the end that begins it."""
        return tuple(_ends(one)[0] for one in self.targets)

    @property
    def ends(self) -> tuple[Target, ...]:
        """Both ends of connections, and all other targets."""
        return tuple(dict.fromkeys(end for one in self.targets for end in _ends(one)))

    @property
    def assets(self) -> tuple[Asset, ...]:
        """Own assets that are acted on."""
        found = (asset for one in self.senders for asset in self.facts.assets_in(one))
        return tuple({asset.id: asset for asset in found}.values())


def gate(
    planned: Planned,
    playbook: Playbook,
    finding: Mapping[str, Any],
    facts: Facts,
    consent: Consent | None = None,
) -> tuple[Check, ...]:
    """Ask all twelve checks.

    Args:
        planned: The action; its own `checks` are not looked at.
        playbook: Whose step it is.
        finding: Fields of the finding it is about.
        facts: The world now.
        consent: Who has approved; None at plan time.

    Returns:
        One `Check` each, in order, whatever the ones before it say.
    """
    question = Question(planned, playbook, finding, facts, consent)
    return tuple(_asked(number, question) for number in CHECKS)


def _asked(number: int, question: Question) -> Check:
    try:
        outcome, why, saw = CHECKS[number][1](question)
    except Exception:
        # A gate that cannot see says no; the run goes on with what a person can do.
        log.exception("Check %d of the gate could not be made.", number)
        outcome, why, saw = "deny", "What this needs to know could not be looked up.", {}
    if outcome == "deny":
        why = f"{why} Instead: {INSTEAD[number]}"
    return Check(number, CHECKS[number][0], outcome, why, saw)


Said = tuple[Outcome, str, Mapping[str, Any]]


def _allow(why: str, **saw: Any) -> Said:
    return "allow", why, saw


def _deny(why: str, **saw: Any) -> Said:
    return "deny", why, saw


_TELLS = "It only tells or collects."


# ---- 1 Kill switch


def kill_switch(question: Question) -> Said:
    """Nothing is done while a switch is on: global, operator, playbook or actuator."""
    if question.is_manual:
        return _allow("People may go on while the engine is stopped.")
    facts, playbook = question.facts, question.playbook
    mine = {
        "global": "everything",
        f"operator:{facts.operator}": f"everything of {facts.operator}",
        f"playbook:{playbook.id}": f"playbook {playbook.name}",
        f"playbook:{playbook.name}": f"playbook {playbook.name}",
        **{f"playbook:{one.id}": f"playbook {one.name}" for one in playbook.called},
        **{f"playbook:{one.name}": f"playbook {one.name}" for one in playbook.called},
        f"actuator:{question.planned.actuator}": f"actuator {question.planned.actuator}",
    }
    on = [name for name in facts.stopped() if name in mine]
    if on:
        return _deny(f"A person has stopped {mine[on[0]]}.", on=on)
    return _allow("No kill switch is on.")


# ---- 2 Playbook, stage, mode


def playbook(question: Question) -> Said:
    """The step is one of a signed playbook, which is valid now, for what is going on now."""
    saw = {
        "stage": question.playbook.stage,
        "signed_by": question.playbook.signed_by,
        "mode": question.finding.get("finding.mode"),
    }
    if question.is_manual:
        return _allow("It asks a person.", **saw)
    for why in (*_not_of_playbook(question), *_not_valid(question), *_not_now(question)):
        return _deny(why, **saw)
    name, stage = question.playbook.name, question.playbook.stage
    if question.tells:
        return _allow(f"{name} is signed by {question.playbook.signed_by}. {_TELLS}", **saw)
    return _allow(f"{name} is signed by {question.playbook.signed_by} and {stage}.", **saw)


def _not_of_playbook(question: Question) -> Iterator[str]:
    """What of the plan no playbook has said."""
    planned, step, now = question.planned, question.step, question.facts.now
    if step is None or step.action is None:
        yield f"{question.playbook.name} has no such step."
        return
    verbs = {one.verb for one in planned.commands}
    try:
        target = variables.target_for(step.action, question.finding)
    except Unsafe as error:
        yield f"{error.what}."
        return
    if any(one != target for one in question.targets):
        yield f"The plan acts on something else than step {step.name} says."
    if step.action.actuator != planned.actuator or verbs - {step.action.verb}:
        yield f"The plan does something else than step {step.name} says."
    if question.tells:
        return
    box = step.safety.time_box
    if box is None or planned.until is None:
        yield f"Step {step.name} says no time at which it ends."
    elif not now < planned.until <= now + box + SKEW:
        yield f"It would not end within {span(box)}, as step {step.name} says."
    elif any(one.until > planned.until or not one.undo for one in planned.commands):
        yield "A command has no end, or nothing that takes it back."


def _not_valid(question: Question) -> Iterator[str]:
    """What speaks against a playbook, or against one that it calls."""
    facts, now = question.facts, question.facts.now
    every: tuple[Playbook | Called, ...] = (question.playbook, *question.playbook.called)
    for one in every:
        if not one.signed_by or not facts.trusts(one.signed_by):
            yield f"No key that counts here has signed {one.name}."
        if one.valid_from is not None and now < one.valid_from:
            yield f"{one.name} is valid from {one.valid_from:%Y-%m-%d %H:%M} on."
        if one.valid_until is not None and now >= one.valid_until:
            yield f"{one.name} was valid until {one.valid_until:%Y-%m-%d %H:%M}."
        if one.stage == "draft":
            yield f"{one.name} is a draft."
        if one.stage == "shadow" and not question.tells:
            yield f"{one.name} is in shadow: it shows what it would do, and does not act."


def _not_now(question: Question) -> Iterator[str]:
    facts, mode = question.facts, question.finding.get("finding.mode")
    is_played = mode in ("exercise", "test")
    if facts.limits.exercises:
        if not is_played:
            yield "This node plays an exercise; the finding is of none."
    elif mode != "normal":
        yield f"The finding was made in {str(mode)[:20]} mode, not in normal operation."
    if question.tells or question.step is None:
        return
    requires = question.step.safety.requires
    if "mode:normal" in requires and not facts.limits.exercises:
        modes = {facts.mode(end) for end in question.ends} - {"normal"}
        if modes:
            yield f"It is {', '.join(sorted(modes))} there now."
    if "not_peak" in requires and facts.is_peak():
        yield "These are peak hours."


# ---- 3 Actuator and target of one operator


def actuator(question: Question) -> Said:
    """The actuator is this operator's, does such a thing, and the target is nobody else's."""
    planned, facts, spec = question.planned, question.facts, question.spec
    if question.is_manual:
        return _allow("It asks a person.")
    if spec is None:
        return _deny(f"{facts.operator} has set up no actuator {planned.actuator}.")
    whose = question.finding.get("cw.operator", facts.operator)
    if whose != facts.operator:
        return _deny(f"The finding is {str(whose)[:64]}'s, not {facts.operator}'s.", finding=whose)
    wrong = {one.verb for one in planned.commands} - set(spec.verbs)
    if wrong:
        return _deny(f"{spec.name} knows no verb {', '.join(sorted(wrong))}.")
    if spec.targets and any(one.type not in spec.targets for one in question.targets):
        return _deny(f"{spec.name} does not act on a target of type {planned.target.type}.")
    if not all(_is_spelled(one, question) for one in question.targets):
        return _deny("The target is not spelled as its type is.")
    if question.tells:
        return _allow(f"{spec.name} is {facts.operator}'s. {_TELLS}")
    owners = {end.value: facts.owner_of(end) for end in question.ends}
    for name, owner in owners.items():
        if owner not in ("", facts.operator):
            return _deny(f"{name} belongs to another operator.", owner=owners)
    return _allow(f"{spec.name} and the target are {facts.operator}'s, or nobody's.", owner=owners)


def _is_spelled(target: Target, question: Question) -> bool:
    return targets.is_spelled(target) or (question.tells and target == targets.NOWHERE)


# ---- 4 Known, or external


def known(question: Question) -> Said:
    """What is inside was confirmed; what is outside is nobody's whom we know, and not kept."""
    if question.tells:
        return _allow(_TELLS)
    facts = question.facts
    saw: dict[str, str] = {}
    for end in question.ends:
        if kept := facts.kept(end):
            return _deny(f"{end.value} is on the keep list: {kept}.", kept=kept)
        if facts.is_external(end):
            saw[end.value] = "external"
            continue
        inside = facts.assets_in(end)
        if not inside:
            return _deny(f"{end.value} is neither external nor in the inventory.", **saw)
        if len(inside) > 1 or any(one.num_addresses > 1 for one in targets.networks_of(end)):
            return _deny(f"{end.value} is more than one own device.", assets=_some(inside))
        if not facts.is_confirmed(inside[0]):
            return _deny(
                f"Nobody has confirmed {_name(inside[0])} in the last 30 days.",
                last_confirmed=inside[0].last_confirmed,
            )
        saw[end.value] = inside[0].id
    return _allow("The target is known." if set(saw.values()) != {"external"} else
                  "The target is outside of everybody we know.", **saw)  # fmt: skip


# ---- 5 Never touched


def never_touched(question: Question) -> Said:
    """No action on what people's safety or the operator's purpose hangs on; nothing overrides it.

    A step of class A3 acts on the conduit, at the sender's side: what receives may be a controller
    or have an essential function, which check 6 protects by the list of flows.
    """
    if question.tells:
        return _allow(_TELLS)
    facts = question.facts
    narrow = question.action_class == "A3"
    acted_on = question.senders if narrow else question.ends
    for end in question.ends:
        if facts.zone_type(end) == "safety":
            return _deny(f"{end.value} is in a safety zone.", zone_type="safety")
        for asset in facts.assets_in(end):
            reasons = [*_untouchable(asset), *(_controlling(asset) if end in acted_on else ())]
            if reasons:
                return _deny(f"{_name(asset)} {reasons[0]}.", asset=asset.id, reasons=reasons)
    return _allow("It touches nothing that a process or people depend on.")


def _untouchable(asset: Asset) -> Iterator[str]:
    if asset.never_touch:
        yield "is marked as never to be touched"
    if asset.safety_related:
        yield "is safety related: a wrong action could hurt people"
    if asset.zone_type == "safety":
        yield "is in a safety zone"


def _controlling(asset: Asset) -> Iterator[str]:
    if asset.essential_function:
        yield f"has an essential function: {asset.essential_function}"
    kind = asset.type.lower()
    if kind in CONTROLLERS or kind.endswith(("_controller", "_plc")):
        yield f"is a controller ({kind})"
    elif asset.purdue is not None and asset.purdue <= PURDUE_CONTROL:
        yield f"is part of the control itself (Purdue level {asset.purdue:g})"


# ---- 6 Class and zone


def zone(question: Question) -> Said:
    """The class may act in the zones of the target; A3 only on a flow that is not essential."""
    action_class, facts = question.action_class, question.facts
    if question.is_manual:
        return _allow("It asks a person.")
    if action_class == "A4":
        return _deny("Class A4 is never executed.", action_class=action_class)
    if question.tells:
        return _allow(_TELLS)
    allowed = facts.limits.zones.get(action_class, frozenset())
    types = {end.value: facts.zone_type(end) for end in question.ends}
    for name, kind in types.items():
        if kind not in allowed:
            where = f"a zone of type {kind}" if kind else "no zone that is known"
            return _deny(f"{name} is in {where}, where {action_class} may not act.", zones=types)
    if action_class != "A3":
        return _allow(f"{action_class} may act in {_list(types.values())}.", zones=types)
    reasons = [_why_not_essential(one, facts) for one in question.targets]
    if not all(reasons):
        return _deny("No person has listed this flow as not essential.", zones=types)
    return _allow(f"The flow is listed as not essential: {reasons[0]}.", zones=types)


def _why_not_essential(target: Target, facts: Facts) -> str:
    return facts.nonessential(target) if targets.connection_of(target) else ""


# ---- 7 Protected peers


def protected(question: Question) -> Said:
    """What others cannot do without – gateways, name servers, time, brokers – is left alone."""
    if question.tells:
        return _allow(_TELLS)
    for end in question.ends:
        if what := question.facts.protected(end):
            return _deny(f"{end.value} is protected: {what}.", protected=what)
    return _allow("No protected peer is touched.")


# ---- 8 Blast radius


def blast_radius(question: Question) -> Said:
    """What would be affected stays within the step's limit and the zone's cap."""
    if question.tells or question.step is None:
        return _allow(_TELLS) if question.tells else _deny("No step says how much it may affect.")
    facts, limit = question.facts, question.step.safety.blast_limit
    own = {asset.id: asset for asset in question.assets}
    needs = tuple(dict.fromkeys(n for one in question.targets for n in facts.dependants(one)))
    found = {name: facts.asset_of(Target("device", name)) for name in needs}
    affected = {**own, **{one.id: one for one in found.values() if one is not None}}
    services = [name for name, asset in found.items() if asset is None]
    saw: dict[str, Any] = {
        "assets": _some(affected.values()),
        "services": services[:SHOWN],
        "assets_affected": len(affected),
        "services_affected": len(services),
        "people_affected": _people([*affected, *services], facts),
    }
    if len(affected) > limit.assets:
        return _deny(f"{len(affected)} assets would be affected, {limit.assets} may be.", **saw)
    if len(services) > limit.services:
        return _deny(f"{len(services)} services would be affected, {limit.services} may be.", **saw)
    unknown = [name for name in services if facts.people(name) is None]
    if unknown:
        return _deny(f"Nobody has said how many people use {_list(unknown[:SHOWN])}.", **saw)
    if saw["people_affected"] > limit.people:
        count = saw["people_affected"]
        return _deny(f"{count} people would be affected, {limit.people} may be.", **saw)
    for why in (*_zones_full(affected, facts), *_last_of_group(question, own)):
        return _deny(why, **saw)
    others = [one for one in affected.values() if one.id not in own]
    hurt = [one for one in others if any(_untouchable(one)) or one.essential_function]
    if own and hurt:
        return _deny(f"{_name(hurt[0])} depends on it, which must not be hurt.", **saw)
    return _allow(_how_many(affected, services), **saw)


def _people(names: Sequence[str], facts: Facts) -> int:
    """All who use these, as far as it is known; who uses two of them counts twice."""
    return sum(facts.people(name) or 0 for name in names)


def _zones_full(affected: Mapping[str, Asset], facts: Facts) -> Iterator[str]:
    """Zones of which too large a part would be affected, with what already is."""
    share = facts.limits.blast_share
    counts: dict[str, int] = {}
    for asset in affected.values():
        if asset.zone:
            counts[asset.zone] = counts.get(asset.zone, 0) + 1
    for name, count in counts.items():
        size = facts.zone_size(name)
        if count > max(1, int(share * size)):
            yield f"{count} of {size} assets of zone {name} are more than {share:.0%}."


def _last_of_group(question: Question, own: Mapping[str, Asset]) -> Iterator[str]:
    facts, step = question.facts, question.step
    for asset in own.values():
        peers = facts.redundant_peers(asset)
        if any(peer.id in own or facts.in_force(peer.id) for peer in peers):
            yield f"The other one of the redundant pair of {_name(asset)} is affected already."
        needs_peer = step is not None and "redundant_peer_up" in step.safety.requires
        if needs_peer and not any(facts.is_up(peer) for peer in peers):
            yield f"No redundant peer of {_name(asset)} is up."


def _how_many(affected: Mapping[str, Asset], services: Sequence[str]) -> str:
    if not affected and not services:
        return "Nothing of our own depends on it."
    names = _list([*_some(affected.values()), *services])
    return f"Affected: {names}."


# ---- 9 Corroboration


def corroboration(question: Question) -> Said:
    """More than one own analytic says so, or one rule that is nearly always right."""
    if question.tells and not _wants_corroboration(question):
        return _allow(_TELLS)
    facts, finding = question.facts, question.finding
    own = tuple(dict.fromkeys(facts.analytics(finding)))
    rules = [one for one in own if not is_model(one)]
    rule = finding.get("rule.id")
    precision = facts.precision(rule) if isinstance(rule, str) and rule in rules else None
    saw = {"analytics": list(own[:SHOWN]), "precision": precision}
    if not own:
        return _deny("No own analytic has seen it; a sighting of others counts as none.", **saw)
    if not rules:
        return _deny("Only a model says so; its score alone never starts more than A0.", **saw)
    if len(own) >= 2:
        return _allow(f"{len(own)} own analytics say so.", **saw)
    if precision is not None and precision >= PRECISION_LEAST:
        return _allow(f"The rule was right in {precision:.0%} of what people judged.", **saw)
    said = "nobody has judged it" if precision is None else f"it was right in {precision:.0%}"
    return _deny(f"Only one rule says so, and {said}; {PRECISION_LEAST:.0%} would do.", **saw)


def is_model(analytic: str) -> bool:
    """Whether an id is that of an anomaly model."""
    return analytic.startswith("model.")


def _wants_corroboration(question: Question) -> bool:
    step = question.step
    return not question.is_manual and step is not None and "corroborated" in step.safety.requires


# ---- 10 Permissible actions


def permissible(question: Question) -> Said:
    """The markings of finding and indicator allow an action that those watched may notice.

    References:
        Permissible Actions Protocol: `red` is passive only, `amber` has no contact with what is
        watched, `green` allows blocking.
    """
    finding = question.finding
    said = {
        "finding": finding.get("cw.marking.pap"),
        "indicator": finding.get("threat.indicator.marking.pap"),
        "indicator_tlp": finding.get("threat.indicator.marking.tlp"),
    }
    saw = {name: value for name, value in said.items() if value is not None}
    if question.tells:
        return _allow(f"{_TELLS} Nobody outside notices.", **saw)
    for name in ("finding", "indicator"):
        value = said[name]
        if value is not None and value not in VISIBLE:
            return _deny(f"The {name} is marked PAP:{str(value)[:20].upper()}.", **saw)
    has_indicator = any(str(name).startswith("threat.indicator.") for name in finding)
    if said["finding"] is None and has_indicator and said["indicator"] is None:
        return _deny("Nothing says what may be done about this indicator.", **saw)
    if said["indicator"] is None and said["indicator_tlp"] == "red":
        return _deny("The indicator is TLP:RED, and has no PAP that allows to act.", **saw)
    return _allow("Its marking allows to act visibly.", **saw)


# ---- 11 Rates


def rates(question: Question) -> Said:
    """Nothing happens too often; a breaker that has opened is closed by a person only."""
    if question.is_manual:
        return _allow("It asks a person.")
    facts, rate, now = question.facts, question.playbook.rate, question.facts.now
    hour = now - BREAKER_SPAN
    runs, at_once = facts.runs_since(question.playbook.id, hour), facts.running(
        question.playbook.id
    )  # fmt: skip
    saw: dict[str, Any] = {"runs_in_hour": runs, "at_once": at_once}
    if runs >= rate.per_hour:
        return _deny(f"{question.playbook.name} ran {runs} times within an hour.", **saw)
    if at_once >= rate.at_once:
        return _deny(f"{at_once} runs of {question.playbook.name} are not over.", **saw)
    if question.tells:
        return _allow(f"{runs} runs in the last hour, {rate.per_hour} may be.", **saw)
    name = question.planned.actuator
    failures, rollbacks = facts.failures(name), facts.rollbacks(name)
    saw |= {"failures": len(failures), "rollbacks": len(rollbacks)}
    if is_breaker_open(failures, rollbacks):
        return _deny(f"The circuit breaker of {name} is open.", **saw)
    for why in _too_often(question, hour):
        return _deny(why, **saw)
    return _allow(f"{runs} runs in the last hour, {rate.per_hour} may be.", **saw)


def is_breaker_open(failures: Sequence[datetime], rollbacks: Sequence[datetime]) -> bool:
    """Whether too much went wrong within any hour since a person last closed it."""
    return _within(failures, FAILURES_MOST) or _within(rollbacks, ROLLBACKS_MOST)


def _within(times: Sequence[datetime], most: int) -> bool:
    """Whether so many of these times lie within an hour of each other."""
    ordered = sorted(times)
    return any(
        last - first <= BREAKER_SPAN
        for first, last in zip(ordered, ordered[most - 1 :], strict=False)
    )


def _too_often(question: Question, hour: datetime) -> Iterator[str]:
    facts, limits, rate = question.facts, question.facts.limits, question.playbook.rate
    commands = facts.commands_since(question.planned.actuator, hour)
    if commands + len(question.planned.commands) > limits.actuator_per_hour:
        yield f"{question.planned.actuator} was given {commands} commands within an hour."
    for one in question.targets:
        last = facts.last_run(question.playbook.id, one)
        if last is not None and facts.now - last < rate.cooldown:
            yield f"It acted on {targets.words(one)} less than {span(rate.cooldown)} ago."
    for name in {asset.zone for asset in question.assets if asset.zone}:
        held = facts.in_force(name)
        if held >= limits.zone_in_force:
            yield f"{held} effects hold in zone {name} already."


# ---- 12 Approvals


def approvals(question: Question) -> Said:
    """People have said yes: to this very plan, lately, and not to their own request."""
    if question.tells:
        return _allow(f"{_TELLS} Nobody needs to approve it.")
    action_class, consent = question.action_class, question.consent
    if _may_start_alone(question):
        return _allow("The settings let a corroborated A1 step start without a person.")
    wanted = (
        "two people of different roles have to approve it"
        if action_class == "A3"
        else "one person has to approve it"
    )
    if consent is None:
        return "needs approval", f"Before it is done, {wanted}.", {"wanted": wanted}
    good = list(_good(question, consent))
    saw = {"approved_by": [f"{one.by} ({one.role})" for one in good][:SHOWN]}
    is_enough = _are_two(good) if action_class == "A3" else bool(good)
    if is_enough:
        return _allow(f"Approved by {_list([one.by for one in good])}.", **saw)
    old = len(consent.approvals) - len(good)
    said = f" {old} earlier do not count (late, another plan, or their own request)." if old else ""
    return "needs approval", f"For this plan, {wanted}.{said}", saw


def _may_start_alone(question: Question) -> bool:
    is_free = question.facts.limits.alone and question.playbook.stage == "live"
    if not is_free or question.action_class != "A1":
        return False
    return corroboration(question)[0] == "allow"


def _good(question: Question, consent: Consent) -> Iterator[Approval]:
    """Approvals that count; none if what would be done now is not what people were shown."""
    if not any(_is_same(one, question.planned) for one in consent.plan.actions):
        return
    now, shown = question.facts.now, consent.plan.hash
    for one in consent.approvals:
        is_fresh = now - APPROVAL_LIVES < one.time <= now + SKEW
        if is_fresh and one.plan_hash == shown and one.by and one.by != consent.asked_by:
            yield one


def _is_same(shown: Planned, now: Planned) -> bool:
    """Whether two plans of an action do the same, the time at which they begin apart."""
    return _doing(shown) == _doing(now)


def _doing(planned: Planned) -> tuple[Any, ...]:
    commands = [(one.verb, one.target, one.undo, one.args, one.prior) for one in planned.commands]
    what = (planned.step, planned.action_class, planned.actuator, planned.target)
    # Through JSON, as the journal keeps it: a tuple is a list there.
    return *what, msgspec.json.encode((planned.prior, commands), order="deterministic")


def _are_two(good: Sequence[Approval]) -> bool:
    return any(a.by != b.by and a.role != b.role for a in good for b in good)


# ---- Words and tables


def span(length: timedelta) -> str:
    """A length of time as people say it: `2 h`, `30 min`, `45 s`."""
    seconds = int(length.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _ends(target: Target) -> tuple[Target, ...]:
    networks = targets.networks_of(target)
    if targets.connection_of(target) is None or not networks:
        return (target,)
    return tuple(
        targets.target_of("ipv4_net" if one.version == 4 else "ipv6_net", str(one))
        for one in networks
    )


def _name(asset: Asset) -> str:
    return f"{asset.name} ({asset.id})" if asset.name and asset.name != asset.id else asset.id


def _some(assets: Any) -> list[str]:
    return [_name(asset) for asset in assets][:SHOWN]


def _list(names: Any) -> str:
    return ", ".join(dict.fromkeys(str(name) for name in names))


CHECKS: Mapping[int, tuple[str, Callable[[Question], Said]]] = {
    1: ("kill switch", kill_switch),
    2: ("playbook", playbook),
    3: ("actuator", actuator),
    4: ("known target", known),
    5: ("never touched", never_touched),
    6: ("class and zone", zone),
    7: ("protected peers", protected),
    8: ("blast radius", blast_radius),
    9: ("corroboration", corroboration),
    10: ("permissible actions", permissible),
    11: ("rates", rates),
    12: ("approvals", approvals),
}
"""Number of a check to its name and itself."""

INSTEAD: Mapping[int, str] = {
    1: "do it by hand, or let whoever stopped it release the switch.",
    2: "do it by hand; let the owner of the playbook mend, sign or promote it.",
    3: "ask the operator whose target it is, or set up an actuator.",
    4: "find out what it is, enter or confirm it in the inventory, or act by hand.",
    5: "call the person who answers for the process; only people act on this.",
    6: "call the person who answers for that zone; list the flow if nothing needs it.",
    7: "call the person who answers for it; isolate what talks to it instead.",
    8: "choose a narrower target, say in response.people who uses it, or ask them and act by hand.",
    9: "look at the finding and give a verdict, or wait until another analytic agrees.",
    10: "watch only, or ask whoever marked it for permission.",
    11: "look at what has been done, then close the breaker or act by hand.",
    12: "ask somebody who may approve it.",
}
"""What a person can do where a check says no."""
