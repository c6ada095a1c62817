"""A playbook and a finding become a plan: what would be done in the world as it is now.

Planning changes nothing. Conditions are followed where they can be known; where they depend on how
a step ends, every branch is planned. A step that the gate denies goes on as its run would: on its
failure path.

References:
    CACAO Security Playbooks 2.0, section 4 (workflow steps).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from cityward import Actuator, Command, State, Target, TransientError, Unsafe
from cityward.when import compile_when
from playbooks import targets, variables
from playbooks.model import ActionClass, Check, Facts, Plan, Planned, Playbook, Step
from playbooks.safety import Consent, gate, span

COMMANDS_MAX = 64
"""An actuator that wants to do more for one step does something else than it was asked."""
MANUAL, PLAYBOOK_ACTION = "manual", "playbook-action"
CHOICES = ("if-condition", "switch-condition", "while-condition")
"""What fails within these is told by the step that failed; they go on."""
BY_HAND = {
    "deny": "block {what}",
    "allow": "let {what} through",
    "contain": "isolate {what}",
    "set": "set {what}",
    "restart": "restart {what}",
    "redirect": "redirect {what}",
    "delete": "remove {what}",
    "query": "look at {what}",
}
"""OpenC2 verbs as a person's task."""

log = logging.getLogger(__name__)


def plan(
    playbook: Playbook,
    finding: Mapping[str, Any],
    facts: Facts,
    actuators: Mapping[str, Actuator],
) -> Plan:
    """What a playbook would do about a finding.

    Args:
        playbook: Checked.
        finding: Its fields under their names in the schema.
        facts: The world now.
        actuators: By the name that steps call them by.
    """
    walk = _Walk(playbook, finding, facts, actuators)
    walk.follow(playbook.start)
    return Plan(
        playbook=playbook.id,
        version=playbook.version,
        finding=str(finding.get("finding.id", "")),
        revision=int(finding.get("finding.revision", 0)),
        operator=facts.operator,
        made=facts.now,
        actions=tuple(walk.actions),
        variables={name: variables.harmless(finding.get(name)) for name in sorted(walk.used)},
    )


def planned(
    step: Step,
    playbook: Playbook,
    finding: Mapping[str, Any],
    facts: Facts,
    actuators: Mapping[str, Actuator],
) -> Planned:
    """What one step would do now; the gate has not been asked.

    Raises:
        Unsafe: the finding gives no target, or the actuator has no such verb or target.
        TransientError: the actuator's program does not answer.
    """
    action = step.action
    if action is None:
        raise Unsafe(f"step {step.name} has no action", playbook.name, "Mend the playbook.")
    if action.actuator == MANUAL:
        return _task(step, finding)
    actuator, spec = actuators.get(action.actuator), facts.actuator(action.actuator)
    if actuator is None or spec is None:
        what = f"there is no actuator {action.actuator} here"
        raise Unsafe(what, "response.actuators", "Set it up, or act by hand.")
    target = variables.target_for(action, finding)
    until = facts.now + (step.safety.time_box or step.deadline)
    state = actuator.probe(target) if step.safety.action_class != "A0" else State(False)
    return Planned(
        step=step.id,
        name=step.name,
        action_class=_strictest(step, spec.action_class),
        actuator=action.actuator,
        target=target,
        commands=tuple(_commands(step, actuator, target, until, state, finding)),
        prior=state.found,
        until=until if step.safety.action_class != "A0" else None,
        undo=_undo(step, spec.verbs.get(action.verb, "")),
        dependants=_dependants(target, facts),
    )


def checked(
    planned: Planned,
    playbook: Playbook,
    finding: Mapping[str, Any],
    facts: Facts,
    consent: Consent | None = None,
) -> Planned:
    """An action with what the gate says of it, and what a person does if it says no."""
    checks = gate(planned, playbook, finding, facts, consent)
    found = msgspec.structs.replace(planned, checks=checks)
    if found.outcome != "deny":
        return found
    return msgspec.structs.replace(found, manual=form(found, playbook.steps.get(planned.step)))


def form(planned: Planned, step: Step | None) -> str:
    """The task of a person where the engine may not act: why, what, for how long, and back."""
    if planned.actuator == MANUAL:
        return planned.manual
    reasons = [f"- {one.why}" for one in planned.checks if one.outcome == "deny"]
    return "\n".join(("cityward does not do this itself:", *reasons, *task(planned, step)))


def task(planned: Planned, step: Step | None) -> Iterator[str]:
    """What a person does instead, for how long, and whom to ask first; a line each."""
    yield f"By hand: {_by_hand(planned, step)}"
    if planned.until is not None:
        yield f"Take it back by {planned.until:%Y-%m-%d %H:%M} UTC."
    if planned.dependants:
        yield f"Ask those first who depend on it: {', '.join(planned.dependants[:12])}."


def _by_hand(planned: Planned, step: Step | None) -> str:
    what = targets.words(planned.target)
    if step is None or step.action is None:
        return f"see to {planned.name}."
    if what and step.action.verb in BY_HAND:
        return f"{BY_HAND[step.action.verb].format(what=what)}."
    return f"what step {step.name} would do. {step.description}".strip()


def _dependants(target: Target, facts: Facts) -> tuple[str, ...]:
    return tuple(facts.dependants(target)) if target != targets.NOWHERE else ()


def _task(step: Step, finding: Mapping[str, Any]) -> Planned:
    assert step.action is not None  # `planned` has looked
    said = variables.filled(dict(step.action.args), finding)
    return Planned(
        step=step.id,
        name=step.name,
        action_class=step.safety.action_class,
        actuator=MANUAL,
        target=Target("role", str(said.get("role", ""))),
        commands=(),
        manual=str(said.get("text", "") or step.name),
    )


def _commands(
    step: Step,
    actuator: Actuator,
    target: Target,
    until: datetime,
    state: State,
    finding: Mapping[str, Any],
) -> Iterator[Command]:
    """What is missing, with the step's arguments and the state to restore."""
    assert step.action is not None
    args = variables.filled(dict(step.action.args), finding)
    for number, one in enumerate(actuator.plan(step.action.verb, target, until)):
        if number >= COMMANDS_MAX:
            what = f"{step.action.actuator} wants more than {COMMANDS_MAX} commands"
            raise Unsafe(what, step.name, "Act by hand.")
        yield msgspec.structs.replace(
            one, args={**one.args, **args}, prior=one.prior or dict(state.found)
        )


def _strictest(step: Step, least: str) -> ActionClass:
    found: ActionClass = msgspec.convert(max(step.safety.action_class, least), ActionClass)
    return found


def _undo(step: Step, verb: str) -> str:
    """How it ends, in words."""
    if step.safety.action_class == "A0" or step.safety.time_box is None:
        return ""
    after = f"after {span(step.safety.time_box)}"
    back = f"by {verb}, to what was there before" if verb else "by itself"
    return {
        "device": f"The device ends it by itself {after}; cityward looks, and undoes it if not.",
        "lease": f"It ends {after}; within 10 min if cityward cannot renew it.",
        "journal": f"cityward takes it back {after}, {back}.",
        "none": "",
    }[step.safety.rollback]


class _Walk:
    """Follows the steps of a playbook and plans the actions on the way."""

    def __init__(
        self,
        playbook: Playbook,
        finding: Mapping[str, Any],
        facts: Facts,
        actuators: Mapping[str, Actuator],
    ) -> None:
        self.playbook = playbook
        self.finding = finding
        self.facts = facts
        self.actuators = actuators
        self.actions: list[Planned] = []
        self.used: set[str] = set()
        self._seen: set[str] = set()

    def follow(self, name: str, exception: str = "") -> bool:
        """Plan from a step on, to the end of its branch; each step once.

        Args:
            name: Id of the step.
            exception: Where the called playbook goes on that it stands in; empty: in none.

        Returns:
            False if a step would fail that has no failure path of its own.
        """
        exception = exception or self.playbook.exception
        well = True
        while name in self.playbook.steps and name not in self._seen:
            self._seen.add(name)
            step = self.playbook.steps[name]
            if step.type == "end":
                break
            inner = step.exception or exception
            went = [self.follow(branch, inner) for branch in self._branches(step)]
            if step.type == "action":
                went.append(self._act(step))
            elif step.type == PLAYBOOK_ACTION and not step.next_steps:
                self.actions.append(self._missing(step))
                went.append(False)
            if all(went) or step.type in CHOICES:
                well = well and all(went)
                name = step.on_success or step.on_completion
            else:
                well = well and bool(step.on_failure)
                name = step.on_failure or exception
        return well

    def _branches(self, step: Step) -> tuple[str, ...]:
        """Steps within one that can come; all of them where that is not known yet."""
        if step.type in ("parallel", PLAYBOOK_ACTION):
            return step.next_steps
        if step.type == "switch-condition":
            self.used.update({step.switch} - _ends_of_steps([step.switch]))
            if _ends_of_steps([step.switch]):
                return tuple(step.cases.values())
            value = str(self.finding.get(step.switch))
            return (step.cases.get(value) or step.cases.get("default", ""),)
        if step.type in ("if-condition", "while-condition"):
            unknown = _ends_of_steps(step.when)
            self.used.update(set(step.when) - unknown)
            if unknown:
                return step.on_true, step.on_false
            return (step.on_true if compile_when(step.when)(self.finding) else step.on_false,)
        return ()

    def _act(self, step: Step) -> bool:
        """Plan an action; False if its run would take the failure path."""
        assert step.action is not None
        self.used |= variables.used(step.action.target) | variables.used(step.action.args)
        try:
            found = planned(step, self.playbook, self.finding, self.facts, self.actuators)
        except (Unsafe, TransientError) as error:
            self.actions.append(self._refused(step, f"{error.what}.", error.todo))
            return False
        except Exception as error:  # whatever an actuator of a stranger does
            log.exception("Step %s of %s could not be planned.", step.name, self.playbook.name)
            self.actions.append(self._refused(step, f"{type(error).__name__} in the actuator.", ""))
            return False
        found = checked(found, self.playbook, self.finding, self.facts)
        self.actions.append(found)
        # In shadow a step is held back, and its run goes on as if it had been done.
        return found.outcome != "deny" or self.playbook.stage == "shadow"

    def _refused(self, step: Step, why: str, todo: str) -> Planned:
        """A step for which there is no plan, why, and what the gate would say of its target."""
        assert step.action is not None
        is_known = True
        try:
            target = variables.target_for(step.action, self.finding)
        except Unsafe:
            target, is_known = targets.NOWHERE, False
        box = step.safety.time_box
        refused = Planned(
            step=step.id,
            name=step.name,
            action_class=step.safety.action_class,
            actuator=step.action.actuator,
            target=target,
            commands=(),
            until=self.facts.now + box if box is not None else None,
            dependants=_dependants(target, self.facts),
        )
        checks = gate(refused, self.playbook, self.finding, self.facts) if is_known else ()
        first = Check(0, "plan", "deny", f"{why[:1].upper()}{why[1:]} {todo}".strip())
        refused = msgspec.structs.replace(refused, checks=(first, *checks))
        return msgspec.structs.replace(refused, manual=form(refused, step))

    def _missing(self, step: Step) -> Planned:
        """A call of a playbook that is not there."""
        what = "The playbook that it calls is not there."
        return Planned(
            step=step.id,
            name=step.name,
            action_class="A0",
            actuator=MANUAL,
            target=targets.NOWHERE,
            commands=(),
            checks=(Check(0, "plan", "deny", what),),
            manual=f"See to {step.name}. {step.description}".strip(),
        )


def _ends_of_steps(names: Any) -> set[str]:
    """Names of a condition that say how a step before has ended."""
    return {name for name in names if str(name).startswith("step.")}
