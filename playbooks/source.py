"""The written form of a playbook: which keys there are, and all that is refused.

References:
    CACAO Security Playbooks 2.0, sections 3 (playbook), 4 (workflow), 5 (commands).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any, get_args

import msgspec

from cityward import ConfigError, RuleError, Unsafe
from cityward.documents import Document
from cityward.plugin import ActuatorSpec
from cityward.when import compile_when
from playbooks import cacao, graph, targets, words
from playbooks.model import (
    About,
    Action,
    ActionClass,
    BlastLimit,
    Guard,
    Playbook,
    Rate,
    Rollback,
    Safety,
    Stage,
    Step,
    StepType,
    Verify,
)

STEPS_MAX = 200
ROUNDS_MAX = 100
TEXT_MAX = 8_000
LINE_MAX = 200
LIST_MAX = 64
ARGS_DEPTH = 4
NUMBER_MAX = 2**53
DEADLINE = timedelta(minutes=5)
ERRORS_MAX = 50
"""So many faults of one file are told."""

STEP_TYPES: tuple[str, ...] = get_args(StepType)
CLASSES: tuple[str, ...] = get_args(ActionClass)
COMMANDS = ("cityward-actuator", "openc2-http", "http-api", "ssh", "manual")
"""Types of commands; all but `manual` are an OpenC2 action that the actuator named by the agent
carries out, so that nothing can be sent but what an actuator has a verb for."""
FORBIDDEN = {
    "bash": "A shell is never started; use an actuator.",
    "powershell": "A shell is never started; use an actuator.",
}

PLAYBOOK_KEYS = {
    *("type", "spec_version", "id", "name", "description", "created_by", "created", "modified"),
    *("valid_from", "valid_until", "playbook_types", "playbook_activities", "industry_sectors"),
    *("labels", "severity", "impact", "workflow_start", "workflow_exception", "workflow"),
    *("trigger", "rate", "stage"),
}
PLAYBOOK_NEEDS = ("name", "description", "created_by", "created", "workflow_exception", "workflow")

_ALL = {"type", "description"}
_ON = {"on_completion", "on_success", "on_failure"}
_SAFETY = {"class", "time_box", "rollback", "verify", "blast_limit", "requires"}
STEP_KEYS: Mapping[str, set[str]] = {
    "start": _ALL | {"on_completion"},
    "end": _ALL,
    "action": _ALL | _ON | _SAFETY | {"agent", "commands", "timeout"},
    "parallel": _ALL | _ON | {"next_steps", "timeout"},
    "if-condition": _ALL | _ON | {"when", "on_true", "on_false", "timeout"},
    "switch-condition": _ALL | _ON | {"switch", "cases", "timeout"},
    "while-condition": _ALL | _ON | {"when", "on_true", "rounds_max", "timeout"},
    "playbook-action": _ALL | _ON | {"playbook_id", "timeout"},
}
STEP_NEEDS: Mapping[str, tuple[str, ...]] = {
    "start": ("on_completion",),
    "end": (),
    "action": ("agent", "commands"),
    "parallel": ("next_steps",),
    "if-condition": ("when", "on_true"),
    "switch-condition": ("switch", "cases"),
    "while-condition": ("when", "on_true", "rounds_max"),
    "playbook-action": ("playbook_id",),
}
BLAST = ("assets", "services", "people")
ADDRESS_ARGS = {
    *("to", "cc", "bcc", "from", "sender", "reply_to", "url", "uri", "host", "server", "address"),
    *("addresses", "path", "method", "headers", "file", "topic", "port"),
}
"""Arguments that say where a command goes; a finding never decides that."""

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_ARGUMENT = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,63}")
_PLAYBOOK_ID = re.compile(r"playbook--[0-9a-f-]{36}")
_CASE = re.compile(r"[a-zA-Z0-9_-]{1,250}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u2028\u2029\ud800-\udfff]")
_YEARS = (1970, 9998)
_EARLY, _LATE = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)

Place = str | int
"""Key or index on the way to a part of the document."""
Specs = Mapping[str, ActuatorSpec]
"""What the actuators that are there say of themselves, by name."""


class Source:
    """One playbook's document, and what is wrong with it.

    Args:
        document: YAML with the keys of the tables above.
        known: Actuators that a step may name.
    """

    def __init__(self, document: Document, known: Specs) -> None:
        self.document = document
        self.known = known
        self.errors: list[RuleError] = []
        self.ids: dict[str, str] = {}
        """Name of a step to its id."""

    def result(self) -> tuple[Playbook | None, list[RuleError]]:
        """The playbook, or None and what is wrong, in the order of the file."""
        playbook = self._playbook()
        self.errors.sort(key=lambda error: int("0" + error.where.rpartition(":")[2][:9]))
        return (None if self.errors else playbook), self.errors

    def refuse(self, what: str, *place: Place, todo: str = "") -> None:
        """Note a fault and where it is; after `ERRORS_MAX` no more are told."""
        if len(self.errors) < ERRORS_MAX:
            where = self.document.where(*place)
            self.errors.append(RuleError(what, where, todo or "Mend the playbook."))

    # ---- Playbook

    def _playbook(self) -> Playbook | None:
        value = self.document.value
        if not isinstance(value, dict):
            self.refuse("a playbook is a mapping of keys and values")
            return None
        self._keys(value, PLAYBOOK_KEYS, PLAYBOOK_NEEDS, "playbook")
        for key, only in (("type", "playbook"), ("spec_version", "cacao-2.0")):
            if value.get(key, only) != only:
                self.refuse(f"{key} is {_short(value[key])}, not {only}", key)
        name = self._line(value, "name")
        own = words.id_of("playbook", name)
        if value.get("id", own) != own:
            self.refuse("id is made from the name", "id", todo="Leave it out.")
        steps = self._steps(value.get("workflow"), own)
        start, exception = self._start(value, steps), self._step(value, "workflow_exception")
        if self.errors:
            return None
        for one, what in graph.problems(steps, start, exception):
            self.refuse(what, "workflow", steps[one].name)
        playbook = Playbook(
            id=own,
            name=name,
            description=self._text(value, "description"),
            version="",
            steps=steps,
            start=start,
            exception=exception,
            stage=self._one_of(value, "stage", get_args(Stage), "shadow"),
            valid_from=self._time(value, "valid_from"),
            valid_until=self._time(value, "valid_until"),
            file=self.document.file,
            about=self._about(value),
            rate=self._rate(value),
            **self._trigger(value),
        )
        if (playbook.valid_from or _EARLY) >= (playbook.valid_until or _LATE):
            self.refuse("it ends before it begins", "valid_until")
        if self.errors:
            return None
        return msgspec.structs.replace(playbook, version=cacao.version_of(playbook))

    def _about(self, value: dict[str, Any]) -> About:
        created = self._time(value, "created")
        modified = self._time(value, "modified") or created
        if created and modified and modified < created:
            self.refuse("it was modified before it was created", "modified")
        if "playbook_types" in value and "playbook_activities" not in value:
            # Section 3.1 of CACAO wants it so.
            self.refuse("playbook_types without playbook_activities", "playbook_types")
        return About(
            created_by=self._line(value, "created_by"),
            created=created,
            modified=modified,
            types=self._lines(value, "playbook_types"),
            activities=self._lines(value, "playbook_activities"),
            sectors=self._lines(value, "industry_sectors"),
            labels=self._lines(value, "labels"),
            severity=self._number(value, "severity", 0, 100),
            impact=self._number(value, "impact", 0, 100),
        )

    def _trigger(self, value: dict[str, Any]) -> dict[str, Any]:
        trigger = self._mapping(value, "trigger")
        self._keys(trigger, {"when", "group_by"}, ("when",) * bool(trigger), "trigger", "trigger")
        when = self._when(trigger, "trigger")
        group = self._lines(trigger, "group_by", "trigger")
        for index, field in enumerate(group):
            if field not in words.FIELDS:
                self.refuse(f"there is no field {field}", "trigger", "group_by", index)
        return {"trigger": when, "group_by": group}

    def _rate(self, value: dict[str, Any]) -> Rate:
        rate = self._mapping(value, "rate")
        self._keys(rate, {"per_hour", "at_once", "cooldown"}, (), "rate", "rate")
        usual = Rate()
        return Rate(
            per_hour=self._number(rate, "per_hour", 1, 1_000, "rate") or usual.per_hour,
            at_once=self._number(rate, "at_once", 1, 100, "rate") or usual.at_once,
            cooldown=self._duration(rate, "cooldown", "rate") or usual.cooldown,
        )

    # ---- Steps

    def _steps(self, workflow: Any, own: str) -> dict[str, Step]:
        if not isinstance(workflow, dict):
            if workflow is not None:
                self.refuse("workflow is a mapping of step names to steps", "workflow")
            return {}
        if len(workflow) > STEPS_MAX:
            self.refuse(f"more than {STEPS_MAX} steps", "workflow")
            return {}
        for name, step in workflow.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                what = f"{_short(name)} is no name of a step: small letters, digits, - and _"
                self.refuse(what, "workflow", name if isinstance(name, str) else "")
            elif not isinstance(step, dict) or step.get("type") not in STEP_TYPES:
                kind = step.get("type") if isinstance(step, dict) else step
                what = f"step {name} has the unknown type {_short(kind)}"
                self.refuse(what, "workflow", name, "type", todo=f"Types: {', '.join(STEP_TYPES)}.")
            else:
                self.ids[name] = words.id_of(step["type"], own, name)
        steps = (self._one_step(name, workflow[name]) for name in self.ids)
        return {step.id: step for step in steps}

    def _one_step(self, name: str, step: dict[str, Any]) -> Step:
        place = ("workflow", name)
        kind = step["type"]
        self._keys(step, STEP_KEYS[kind], STEP_NEEDS[kind], f"step {name}", *place)
        action = self._action(step, *place) if kind == "action" else None
        safety = self._safety(step, action, *place)
        self._goes_on(step, kind, safety, action, *place)
        return Step(
            id=self.ids[name],
            name=name,
            type=kind,
            description=self._text(step, "description", *place),
            action=action,
            safety=safety,
            when=self._when(step, *place),
            on_completion=self._step(step, "on_completion", *place),
            on_success=self._step(step, "on_success", *place),
            on_failure=self._step(step, "on_failure", *place),
            on_true=self._step(step, "on_true", *place),
            on_false=self._step(step, "on_false", *place),
            cases=self._cases(step, *place),
            switch=self._switch(step, *place),
            next_steps=self._next_steps(step, *place),
            playbook=self._called(step, *place),
            rounds_max=self._number(step, "rounds_max", 1, ROUNDS_MAX, *place) or 0,
            deadline=self._duration(step, "timeout", *place) or DEADLINE,
        )

    def _goes_on(
        self,
        step: dict[str, Any],
        kind: str,
        safety: Safety,
        action: Action | None,
        *place: Place,
    ) -> None:
        """What comes next is said, and for a step that acts also what if it fails."""
        has = step.keys() & _ON
        if kind in ("start", "end"):
            return
        if "on_completion" in has and len(has) > 1:
            what = "on_completion stands alone; with on_failure write on_success"
            self.refuse(what, *place, "on_completion")
        if "on_failure" in has and "on_success" not in has | {"on_completion"}:
            self.refuse("on_failure without on_success", *place, "on_failure")
        is_condition = kind in ("if-condition", "switch-condition")
        cases = step.get("cases")
        other = "on_false" if kind == "if-condition" else "default"
        is_open = other not in (cases if isinstance(cases, dict) else step)
        if is_condition and not has and is_open:
            self.refuse(f"neither {other} nor on_completion says what comes otherwise", *place)
        if not is_condition and not has & {"on_completion", "on_success"}:
            self.refuse("neither on_completion nor on_success says what comes next", *place)
        acts = action is not None and action.actuator != "manual"
        if acts and safety.action_class != "A0" and "on_failure" not in has:
            what = f"a step of class {safety.action_class} without a failure path"
            self.refuse(what, *place, todo="Write on_success and on_failure.")

    def _start(self, value: dict[str, Any], steps: Mapping[str, Step]) -> str:
        starts = [one for one, step in steps.items() if step.type == "start"]
        if steps and len(starts) != 1:
            self.refuse(f"{len(starts)} steps of type start instead of one", "workflow")
        said = self._step(value, "workflow_start")
        if said and said not in starts:
            self.refuse("workflow_start is no step of type start", "workflow_start")
        return starts[0] if starts else ""

    def _step(self, given: dict[str, Any], key: str, *place: Place) -> str:
        """Id of the step that a key names; empty: the key is not there."""
        return self._id(given[key], *place, key) if key in given else ""

    def _id(self, name: Any, *place: Place) -> str:
        if not isinstance(name, str) or name not in self.ids:
            self.refuse(f"{place[-1]} leads to {_short(name)}, which is no step", *place)
            return ""
        return self.ids[name]

    def _next_steps(self, step: dict[str, Any], *place: Place) -> tuple[str, ...]:
        names = self._lines(step, "next_steps", *place)
        if "next_steps" in step and (len(names) < 2 or len(set(names)) < len(names)):
            self.refuse("next_steps has at least two steps, each once", *place, "next_steps")
        return tuple(
            self._id(name, *place, "next_steps", index) for index, name in enumerate(names)
        )

    def _cases(self, step: dict[str, Any], *place: Place) -> dict[str, str]:
        found = {}
        for case, name in self._mapping(step, "cases", *place).items():
            if not _CASE.fullmatch(case):
                what = f"{_short(case)} is no case: letters, digits, - and _"
                self.refuse(what, *place, "cases", case)
            found[case] = self._id(name, *place, "cases", case)
        return found

    def _switch(self, step: dict[str, Any], *place: Place) -> str:
        field = self._line(step, "switch", *place)
        if "switch" in step:
            self._field(field, *place, "switch")
        return field

    def _field(self, field: str, *place: Place) -> None:
        """A field of the finding, or how a step before ended: `step.block: failure`."""
        head, _, name = field.partition(".")
        if field not in words.FIELDS and not (head == "step" and name in self.ids):
            self.refuse(f"there is no field {_short(field)}", *place)

    def _called(self, step: dict[str, Any], *place: Place) -> str:
        """Id of the playbook that a step calls by its name."""
        called = self._line(step, "playbook_id", *place)
        if not called or _PLAYBOOK_ID.fullmatch(called):
            return called
        return words.id_of("playbook", called)

    # ---- Actions

    def _action(self, step: dict[str, Any], *place: Place) -> Action | None:
        commands = step.get("commands")
        if (
            not isinstance(commands, list)
            or len(commands) != 1
            or not isinstance(commands[0], dict)
        ):
            if "commands" in step:
                self.refuse("commands has one command; write a step for each", *place, "commands")
            return None
        command, step_place, place = commands[0], place, (*place, "commands", 0)
        kind = command.get("type")
        if kind not in COMMANDS:
            todo = FORBIDDEN.get(str(kind), f"Types: {', '.join(COMMANDS)}.")
            self.refuse(f"a command of type {_short(kind)} is refused", *place, todo=todo)
            return None
        self._keys(command, {"type", "command"}, ("type", "command"), "the command", *place)
        agent = self._line(step, "agent", *step_place)
        if kind == "manual":
            text = self._text(command, "command", *place)
            self._known_variables(text, *place)
            return Action(actuator="manual", type=kind, args={"text": text, "role": agent})
        if agent not in self.known:
            names = ", ".join(sorted(self.known)) or "none"
            self.refuse(
                f"there is no actuator {_short(agent)}", *step_place, "agent",
                todo=f"Actuators that are installed: {names}; a person's task is manual.",
            )  # fmt: skip
            return None
        said = self._mapping(command, "command", *place)
        return self._command(said, kind, agent, *place, "command")

    def _command(
        self, command: dict[str, Any], kind: str, agent: str, *place: Place
    ) -> Action | None:
        spec = self.known[agent]
        self._keys(command, {"action", "target", "args"}, ("action",), "the command", *place)
        verb = command.get("action")
        if not isinstance(verb, str) or verb not in spec.verbs:
            verbs = ", ".join(spec.verbs)
            what = f"{agent} has no verb {_short(verb)}"
            self.refuse(what, *place, "action", todo=f"Verbs: {verbs}.")
            return None
        target = self._target(self._mapping(command, "target", *place), spec, *place, "target")
        args = self._mapping(command, "args", *place)
        for key in args:
            if key in ("duration", "start_time", "stop_time"):
                todo = "Write time_box at the step."
                self.refuse(f"{key} is said by the time box", *place, "args", key, todo=todo)
        self._values(args, 0, *place, "args")
        return Action(actuator=agent, type=kind, verb=verb, target=target, args=args)

    def _target(self, target: dict[str, Any], spec: ActuatorSpec, *place: Place) -> dict[str, str]:
        if not target and (not spec.targets or spec.action_class == "A0"):
            return {}
        if len(target) != 1:
            todo = f"Types: {', '.join(spec.targets)}."
            self.refuse("target is one type with its value", *place, todo=todo)
            return {}
        ((kind, value),) = target.items()
        if kind not in spec.targets:
            what = f"{spec.name} does not act on {_short(kind)}"
            self.refuse(what, *place, todo=f"Types: {', '.join(spec.targets)}.")
        parts = value if isinstance(value, dict) else {"value": value}
        for part, text in parts.items():
            self._address(part, text, *place)
        if not any(isinstance(text, str) and "$" in text for text in parts.values()):
            try:
                targets.target_of(kind, parts)
            except Unsafe as error:
                self.refuse(error.what, *place)
        return {"type": kind, **parts}

    def _address(self, part: Any, text: Any, *place: Place) -> None:
        """A part of a target: written out, or one variable and nothing else."""
        is_part = isinstance(part, str) and _ARGUMENT.fullmatch(part) and part != "type"
        if not is_part or not isinstance(text, str) or _CONTROL.search(text):
            self.refuse(f"{_short(text)} is no value of a target; quote it", *place)
        elif words.only_variable(text) is not None:
            self._known_variables(text, *place)
        elif words.has_variable(text):
            todo = "A target is written out, or one variable and nothing else."
            self.refuse(f"{_short(text)} has a variable inside an address", *place, todo=todo)

    def _values(self, value: Any, depth: int, *place: Place) -> None:
        """Arguments: plain values, no address that a variable decides."""
        if depth > ARGS_DEPTH:
            self.refuse(f"arguments nested deeper than {ARGS_DEPTH}", *place)
        elif isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str) or not _ARGUMENT.fullmatch(key):
                    self.refuse(f"{_short(key)} is no name of an argument", *place)
                elif key.lower() in ADDRESS_ARGS and _any_variable(inner):
                    todo = "A finding never decides where a command goes; write it out."
                    self.refuse(f"{key} has a variable inside an address", *place, todo=todo)
                else:
                    self._values(inner, depth + 1, *place, key)
        elif isinstance(value, list):
            for inner in value:
                self._values(inner, depth + 1, *place)
        elif isinstance(value, str):
            if _CONTROL.search(value) or len(value) > TEXT_MAX:
                self.refuse("an argument with control characters, or too long", *place)
            self._known_variables(value, *place)
        elif not _is_plain(value):
            self.refuse(f"{_short(value)} is no text or number; quote it", *place)

    def _known_variables(self, text: str, *place: Place) -> None:
        for variable in words.variables(text):
            if words.field_of(variable) is None:
                what = f"there is no variable {_short(variable)}"
                self.refuse(what, *place, todo="Write ${finding.…} with a field of the finding.")
        if words.has_variable(words.replaced(text, lambda _: " ")):
            self.refuse("a variable that is not written as ${finding.…}", *place)

    # ---- Safety

    def _safety(self, step: dict[str, Any], action: Action | None, *place: Place) -> Safety:
        action_class = self._one_of(step, "class", CLASSES, "A0", *place)
        if str(step.get("rollback", "")).startswith("step:"):
            # Undoing brings back what was found, needs no yes and is tried until that is seen: a
            # step, which is planned, gated and may fail, can promise none of that.
            todo = "Write the one its actuator has; what else is to be done is a step of the flow."
            self.refuse("a rollback is never a step", *place, "rollback", todo=todo)
            step = {**step, "rollback": "none"}
        safety = Safety(
            action_class=action_class,
            time_box=self._duration(step, "time_box", *place),
            rollback=self._one_of(step, "rollback", get_args(Rollback), "none", *place),
            verify=self._verify(step, *place),
            blast_limit=self._blast_limit(step, *place),
            requires=self._requires(step, *place),
        )
        if action is not None and action.actuator == "manual":
            if action_class != "A4" and (safety.time_box or safety.rollback != "none"):
                self.refuse("a person's task has no time box and no rollback", *place)
        elif action_class == "A4":
            todo = "Write a manual command; cityward never does that itself."
            self.refuse("a step of class A4 that is not manual", *place, "class", todo=todo)
        elif action is not None:
            self._is_bounded(step, safety, action, *place)
        return safety

    def _is_bounded(
        self, step: dict[str, Any], safety: Safety, action: Action, *place: Place
    ) -> None:
        """From A1 up an effect ends by itself or is undone, by the means its actuator has."""
        said, spec = safety.action_class, self.known[action.actuator]
        if said < spec.action_class:
            todo = f"Write class: {spec.action_class} or higher."
            self.refuse(
                f"class {said} is lower than {spec.action_class}, which {spec.name} has",
                *place, "class", todo=todo,
            )  # fmt: skip
        elif said == "A0":
            if safety.time_box or safety.rollback != "none":
                self.refuse("a step of class A0 has no time box and no rollback", *place)
        elif "time_box" not in step:
            self.refuse(f"a step of class {said} without time_box", *place, todo="time_box: PT1H")
        elif safety.rollback == "none" or not spec.verbs[action.verb]:
            what = f"a step of class {said} without rollback"
            self.refuse(what, *place, todo=f"{spec.name} can: {spec.rollback}.")
        elif safety.rollback != spec.rollback:
            what = f"{spec.name} does not end by {safety.rollback}, but by {spec.rollback}"
            self.refuse(what, *place, "rollback")
        elif said == "A3" and safety.rollback == "journal":
            what = "a step of class A3 ends by the device or a lease, never by a timer of ours"
            self.refuse(what, *place, "rollback")

    def _verify(self, step: dict[str, Any], *place: Place) -> Verify | None:
        if "verify" not in step:
            return None
        verify, place = self._mapping(step, "verify", *place), (*place, "verify")
        self._keys(verify, {"expect", "within"}, ("expect", "within"), "verify", *place)
        expect = self._mapping(verify, "expect", *place)
        self._condition(expect, *place, "expect")
        within = self._duration(verify, "within", *place)
        return Verify(expect, within or timedelta(seconds=30))

    def _blast_limit(self, step: dict[str, Any], *place: Place) -> BlastLimit:
        limit, place = self._mapping(step, "blast_limit", *place), (*place, "blast_limit")
        self._keys(limit, {"assets", "services", "people"}, (), "blast_limit", *place)
        said = {key: self._number(limit, key, 0, 10_000, *place) for key in limit if key in BLAST}
        return BlastLimit(**{key: number for key, number in said.items() if number is not None})

    def _requires(self, step: dict[str, Any], *place: Place) -> tuple[Any, ...]:
        said = self._lines(step, "requires", *place)
        for index, guard in enumerate(said):
            if guard not in get_args(Guard):
                todo = f"Guards: {', '.join(get_args(Guard))}."
                self.refuse(f"there is no guard {guard}", *place, "requires", index, todo=todo)
        return said

    # ---- Values

    def _keys(
        self,
        given: dict[str, Any],
        there: set[str],
        needs: tuple[str, ...],
        of: str,
        *place: Place,
    ) -> None:
        for key in given:
            if key not in there:
                todo = f"Keys: {', '.join(sorted(there))}."
                where = (*place, key) if isinstance(key, str) else place
                self.refuse(f"{of} has no key {_short(key)}", *where, todo=todo)
        for key in needs:
            if given.get(key) in (None, "", [], {}):
                self.refuse(f"{of} has no {key}", *place, todo=f"Write {key}.")

    def _mapping(self, given: dict[str, Any], key: str, *place: Place) -> dict[str, Any]:
        value = given.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value):
            self.refuse(f"{key} is a mapping of names to values", *place, key)
            return {}
        return value

    def _text(self, given: dict[str, Any], key: str, *place: Place) -> str:
        value = given.get(key)
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > TEXT_MAX or _CONTROL.search(value):
            what = f"{key} is {_short(value)}, no text of at most {TEXT_MAX} characters"
            self.refuse(what, *place, key)
            return ""
        return value.strip()

    def _line(self, given: dict[str, Any], key: str, *place: Place) -> str:
        text = self._text(given, key, *place)
        if len(text) > LINE_MAX or "\n" in text or "\t" in text:
            self.refuse(f"{key} is more than a line of {LINE_MAX} characters", *place, key)
            return ""
        return text

    def _lines(self, given: dict[str, Any], key: str, *place: Place) -> tuple[str, ...]:
        value = given.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not 0 < len(value) <= LIST_MAX:
            self.refuse(f"{key} is a list of 1 to {LIST_MAX} names", *place, key)
            return ()
        for index, one in enumerate(value):
            if not isinstance(one, str) or not one or len(one) > LINE_MAX or _CONTROL.search(one):
                self.refuse(f"{_short(one)} is no name", *place, key, index)
                return ()
        return tuple(value)

    def _number(
        self, given: dict[str, Any], key: str, least: int, most: int, *place: Place
    ) -> int | None:
        value = given.get(key)
        if key not in given:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.refuse(f"{key} is {_short(value)}, not {least} to {most}", *place, key)
            return None
        return value

    def _one_of(
        self, given: dict[str, Any], key: str, there: tuple[str, ...], usual: str, *place: Place
    ) -> Any:
        value = given.get(key, usual)
        if value not in there:
            self.refuse(f"{key} is {_short(value)}, none of {', '.join(there)}", *place, key)
            return usual
        return value

    def _duration(self, given: dict[str, Any], key: str, *place: Place) -> timedelta | None:
        if key not in given:
            return None
        try:
            return words.duration(given[key] if isinstance(given[key], str) else "")
        except ValueError as error:
            what = str(error) if isinstance(given[key], str) else f"{key} is no duration"
            self.refuse(what, *place, key, todo="Write PT30M, PT12H or P1D.")
            return None

    def _time(self, given: dict[str, Any], key: str) -> datetime | None:
        value = given.get(key)
        if isinstance(value, str):
            with suppress(ValueError):  # it is refused below, as what it still is
                value = datetime.fromisoformat(value)
        elif isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day, tzinfo=UTC)
        if value is None:
            return None
        if not isinstance(value, datetime) or not _YEARS[0] <= value.year <= _YEARS[1]:
            self.refuse(f"{key} is {_short(value)}, no time", key)
            return None
        # YAML 1.1 reads a time with a zone as UTC, and drops the zone.
        aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return aware.replace(microsecond=aware.microsecond // 1_000 * 1_000)

    def _when(self, given: dict[str, Any], *place: Place) -> dict[str, Any]:
        when = self._mapping(given, "when", *place)
        self._condition(when, *place, "when")
        for field in when:
            self._field(field, *place, "when", field)
        return when

    def _condition(self, when: dict[str, Any], *place: Place) -> None:
        for field, wanted in when.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            if len(values) > LIST_MAX or not all(_is_plain(value, TEXT_MAX) for value in values):
                self.refuse(f"{_short(wanted)} is no condition", *place, field)
                return
        try:
            compile_when(when)
        except ConfigError as error:
            self.refuse(error.what, *place, todo=error.todo)


def _short(value: Any) -> str:
    """A value in a message: never long, whatever it is."""
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value[:60]) if isinstance(value, str) else repr(value)[:60]


def _is_plain(value: Any, text_max: int = 0) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= text_max and not _CONTROL.search(value)
    if isinstance(value, float):
        return -NUMBER_MAX < value < NUMBER_MAX
    return value is None or (isinstance(value, int) and abs(value) < NUMBER_MAX)


def _any_variable(value: Any) -> bool:
    if isinstance(value, str):
        return words.has_variable(value)
    if isinstance(value, dict):
        return any(_any_variable(one) for pair in value.items() for one in pair)
    return isinstance(value, list) and any(_any_variable(one) for one in value)
