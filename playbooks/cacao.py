"""Playbooks as CACAO 2.0 JSON: ours out and back in, those of others only to be looked at.

Ids are made from names, so the same playbook has the same JSON everywhere. What CACAO has no place
for – class, time box, rollback, trigger – stands in an extension, whose schema is shipped as
`playbooks/safety.schema.json`. Nothing of a foreign playbook is run: not its commands, which may be
shells, nor its conditions, nor the addresses in it.

References:
    CACAO Security Playbooks 2.0, sections 3 (playbook), 4 (workflow), 5 (commands), 7 (agents),
    8 (extensions); STIX 2.1, section 9 (patterning); OpenC2 Language 1.0, section 3.3.1 (command).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from cityward import RuleError
from cityward.when import LIMIT, RANGE
from playbooks import words
from playbooks.model import Action, BlastLimit, Playbook, Safety, Step

FOREIGN_MAX_BYTES = 1_048_576
DEPTH_MAX = 24
SHOWN_STEPS = 500
SHOWN_TEXT = 300

EXTENSION = words.id_of("extension-definition", "cityward safety")
EXTENSION_VERSION = "1.0.0"
OPENC2_LINE = "POST /.well-known/openc2 HTTP/1.1"
"""OpenC2 over HTTPS 1.1, section 3.2."""
OPENC2_TYPE = "application/openc2+json;version=1.0"

CATEGORIES = {
    "nftables": "firewall",
    "openc2": "firewall",
    "mosquitto": "server",
    "ocpp": "server",
    "unbound": "server",
    "smtp": "server",
    "ticket": "ticketing",
    "evidence": "analytics",
}
"""Actuator to what CACAO calls such a thing; the others are an `orchestrator`."""
AGENTS = {"manual": "group", "http-api": "http-api", "ssh": "ssh"}
"""Command type to the type of its agent; the others are a `security-category`."""
VARIABLE_TYPES = {"long": "integer", "float": "float", "double": "float", "boolean": "bool"}
ENCODED = {"openc2-http": "content_b64", "http-api": "content", "ssh": "command_b64"}
"""Where a command type has its OpenC2 command."""
LINKS = ("on_completion", "on_success", "on_failure", "on_true", "on_false")
ABOUT = {
    "playbook_types": "types",
    "playbook_activities": "activities",
    "industry_sectors": "sectors",
    "labels": "labels",
    "severity": "severity",
    "impact": "impact",
}
TIMES = ("created", "modified", "valid_from", "valid_until")

Document = dict[str, Any]


def canonical(document: Document) -> bytes:
    """One spelling of a document: keys sorted, nothing between."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def encode(document: Document) -> bytes:
    """A document as it is written to a file, for people as well."""
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def version_of(playbook: Playbook) -> str:
    """SHA-256 of what a playbook is as CACAO."""
    return hashlib.sha256(canonical(build(playbook))).hexdigest()


def decode(data: bytes, file: str) -> Document:
    """Read JSON of anybody, bounded.

    Raises:
        RuleError: it is too large, no JSON, nested too deep, or no object.
    """
    if len(data) > FOREIGN_MAX_BYTES:
        raise RuleError(f"larger than {FOREIGN_MAX_BYTES} bytes", file, "No playbook is so long.")
    try:
        document = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RuleError(f"no JSON: {str(error)[:200]}", file, "Mend the syntax.") from error
    if not isinstance(document, dict):
        raise RuleError("no object", file, "A playbook is one JSON object.")
    if _is_deeper(document, DEPTH_MAX):
        raise RuleError(f"nested deeper than {DEPTH_MAX}", file, "No playbook is so deep.")
    return document


def without_signatures(document: Document) -> Document:
    """What a playbook says, without who says so."""
    return {key: value for key, value in document.items() if key != "signatures"}


# ---- Ours, out


def build(playbook: Playbook) -> Document:
    """A playbook as CACAO 2.0."""
    steps = playbook.steps.values()
    used = sorted({name for step in steps for name in _variables(step)})
    document: Document = {
        "type": "playbook",
        "spec_version": "cacao-2.0",
        "id": playbook.id,
        "name": playbook.name,
        "description": playbook.description,
        "created_by": words.id_of("identity", playbook.about.created_by),
        **_times(playbook),
        **_about(playbook),
        "playbook_variables": {_cacao_name(name): _variable(name) for name in used},
        "workflow_start": playbook.start,
        "workflow_exception": playbook.exception,
        "workflow": {step.id: _step(step) for step in steps},
        "agent_definitions": dict(_agent(step.action) for step in steps if step.action),
        "extension_definitions": {EXTENSION: _definition()},
        "playbook_extensions": {EXTENSION: _playbook_extension(playbook)},
    }
    return {key: value for key, value in document.items() if value not in ({}, [])}


def _times(playbook: Playbook) -> Document:
    about = playbook.about
    said = zip(
        TIMES,
        (about.created, about.modified, playbook.valid_from, playbook.valid_until),
        strict=True,
    )
    return {key: _timestamp(time) for key, time in said if time is not None}


def _about(playbook: Playbook) -> Document:
    said = msgspec.json.decode(msgspec.json.encode(playbook.about))
    return {key: said[name] for key, name in ABOUT.items() if said[name] not in ([], None)}


def _playbook_extension(playbook: Playbook) -> Document:
    rate = playbook.rate
    return {
        "created_by": playbook.about.created_by,
        "stage": playbook.stage,
        "trigger": {"when": dict(playbook.trigger), "group_by": list(playbook.group_by)},
        "rate": {
            "per_hour": rate.per_hour,
            "at_once": rate.at_once,
            "cooldown": words.spelled(rate.cooldown),
        },
    }


def _definition() -> Document:
    return {
        "type": "extension-definition",
        "name": "cityward safety",
        "description": "How far a step may go, how long it holds and how it is undone.",
        "created_by": words.id_of("identity", "cityward"),
        "schema": "safety.schema.json, shipped with cityward",
        "version": EXTENSION_VERSION,
    }


def _step(step: Step) -> Document:
    document: Document = {
        "type": step.type,
        "name": step.name,
        "description": step.description,
        "next_steps": list(step.next_steps),
        "cases": dict(step.cases),
        **{key: getattr(step, key) for key in LINKS},
    }
    if step.action is not None:
        document["agent"], _ = _agent(step.action)
        document["commands"] = [_command(step.action, step.safety)]
    if step.type in ("if-condition", "while-condition"):
        document["condition"] = condition(step.when)
    if step.switch:
        document["switch"] = f"{_cacao_name(variable_of(step.switch))}:value"
    if step.playbook:
        document["playbook_id"] = step.playbook
    if step.type not in ("start", "end"):
        document["timeout"] = _milliseconds(step.deadline)
    if extension := _step_extension(step):
        document["step_extensions"] = {EXTENSION: extension}
    return {key: value for key, value in document.items() if value not in ("", [], {})}


def _step_extension(step: Step) -> Document:
    safety = step.safety
    said: Document = {
        "when": dict(step.when),
        "switch": step.switch,
        "rounds_max": step.rounds_max,
    }
    if step.type == "action":
        said |= {
            "class": safety.action_class,
            "time_box": words.spelled(safety.time_box) if safety.time_box else "",
            "rollback": safety.rollback,
            "requires": list(safety.requires),
        }
    if safety.verify is not None:
        within = words.spelled(safety.verify.within)
        said["verify"] = {"expect": safety.verify.expect, "within": within}
    if safety.blast_limit != BlastLimit():
        said["blast_limit"] = msgspec.to_builtins(safety.blast_limit)
    return {key: value for key, value in said.items() if value not in ("", [], {}, 0)}


def _command(action: Action, safety: Safety) -> Document:
    if action.type == "manual":
        return {"type": "manual", "command": _to_cacao(action.args["text"])}
    said = canonical(openc2(action, safety)).decode()
    if action.type == "openc2-http":
        headers = {"Content-Type": [OPENC2_TYPE]}
        encoded = _base64(said)
        return {
            "type": action.type, "command": OPENC2_LINE, "headers": headers, "content_b64": encoded,
        }  # fmt: skip
    if action.type == "http-api":
        return {"type": action.type, "command": "POST / HTTP/1.1", "content": said}
    if action.type == "ssh":
        return {"type": action.type, "command_b64": _base64(said)}
    return {"type": action.type, "command": said}


def openc2(action: Action, safety: Safety) -> Document:
    """The OpenC2 command of an action, with CACAO variables where the finding's values go."""
    target = {key: value for key, value in action.target.items() if key != "type"}
    value = target["value"] if target.keys() == {"value"} else target
    args = dict(action.args)
    if safety.time_box is not None:
        args["duration"] = _milliseconds(safety.time_box)
    command: Document = {"action": action.verb}
    if action.target:
        command["target"] = {action.target["type"]: value}
    if args:
        command["args"] = args
    return _mapped(command, _to_cacao)  # type: ignore[no-any-return]


def _agent(action: Action) -> tuple[str, Document]:
    kind = AGENTS.get(action.type, "security-category")
    name = action.args["role"] if action.type == "manual" else action.actuator
    agent: Document = {"type": kind, "name": name}
    if kind == "security-category":
        agent["category"] = [CATEGORIES.get(name, "orchestrator")]
    elif kind != "group":
        # Where it goes stands in the settings of whoever runs it, not in a file that is passed on.
        agent["address"] = {}
    return words.id_of(kind, name), agent


def _variables(step: Step) -> Iterator[str]:
    """Names of the variables that a step uses."""
    if step.action is not None:
        said = msgspec.json.encode((step.action.target, step.action.args)).decode()
        yield from words.variables(said)
    yield from (variable_of(field) for field in (*step.when, *filter(None, (step.switch,))))


def variable_of(field: str) -> str:
    """Name of the variable that holds a field of the finding, or how a step ended."""
    return field if field.startswith(("finding.", "step.")) else f"finding.{field}"


def _variable(name: str) -> Document:
    field = words.field_of(name)
    kind = words.FIELDS[field].type if field else "keyword"
    meaning = words.FIELDS[field].meaning if field else "how that step ended: success or failure"
    return {
        "type": VARIABLE_TYPES.get(kind, "string"),
        "description": f"{name}: {meaning}",
        "external": field is not None,
    }


def _cacao_name(name: str) -> str:
    return f"__{name.replace('.', '-')}__"


def _to_cacao(text: str) -> str:
    return words.replaced(text, lambda name: f"{_cacao_name(name)}:value")


# ---- Conditions


def condition(when: Mapping[str, Any]) -> str:
    """A `when` as comparison expressions of STIX patterning."""
    return " AND ".join(_compared(field, wanted) for field, wanted in sorted(when.items()))


def _compared(field: str, wanted: Any) -> str:
    path = f"{_cacao_name(variable_of(field))}:value"
    if not isinstance(wanted, list):
        return _comparison(path, wanted)
    plain = [one for one in wanted if _is_literal(one)]
    tests = [_comparison(path, one) for one in wanted if not _is_literal(one)]
    if plain:
        several = f"{path} IN ({', '.join(_literal(one) for one in plain)})"
        tests.insert(0, several if len(plain) > 1 else _comparison(path, plain[0]))
    return tests[0] if len(tests) == 1 else f"({' OR '.join(tests)})"


def _comparison(path: str, wanted: Any) -> str:
    if wanted is None:
        return f"NOT EXISTS {path}"
    if wanted == "*":
        return f"EXISTS {path}"
    if isinstance(wanted, str) and (limit := LIMIT.match(wanted)):
        return f"{path} {limit[1]} {_number(limit[2])}"
    if isinstance(wanted, str) and (span := RANGE.match(wanted)):
        return f"({path} >= {_number(span[1])} AND {path} <= {_number(span[2])})"
    return f"{path} = {_literal(wanted)}"


def _number(digits: str) -> str:
    return _literal(float(digits) if "." in digits else int(digits))


def _is_literal(wanted: Any) -> bool:
    is_special = isinstance(wanted, str) and (
        wanted == "*" or LIMIT.match(wanted) or RANGE.match(wanted)
    )
    return wanted is not None and not is_special


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        digits = format(Decimal(repr(value)), "f")
        return digits if "." in digits else f"{digits}.0"
    if isinstance(value, int):
        return str(value)
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


# ---- Ours, back in


def is_ours(document: Document) -> bool:
    """Whether a document has our extension; whether it is true is seen by building it again."""
    extensions = document.get("playbook_extensions")
    return isinstance(extensions, dict) and isinstance(extensions.get(EXTENSION), dict)


def source_of(document: Document, file: str) -> Document:
    """The written form of a playbook that was built here, to be checked as any other.

    Raises:
        RuleError: it is a foreign one, or was changed after it was built.
    """
    if not is_ours(document):
        what = "a playbook from elsewhere is shown, never run"
        raise RuleError(what, file, "See cityward playbook show; write your own after it.")
    try:
        return _source(document)
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        what = f"not as cityward builds it: {type(error).__name__} {str(error)[:80]}"
        raise RuleError(what, file, "Build it anew.") from error


def _source(document: Document) -> Document:
    extension = document["playbook_extensions"][EXTENSION]
    names = {id: step["name"] for id, step in document["workflow"].items()}
    agents = {id: agent["name"] for id, agent in document.get("agent_definitions", {}).items()}
    keys = ("type", "spec_version", "id", "name", "description", *ABOUT, *TIMES)
    source = {key: document[key] for key in keys if key in document}
    trigger = {key: value for key, value in extension["trigger"].items() if value}
    return source | {
        "created_by": extension["created_by"],
        "stage": extension["stage"],
        "rate": extension["rate"],
        "trigger": trigger,
        "workflow_start": names[document["workflow_start"]],
        "workflow_exception": names[document["workflow_exception"]],
        "workflow": {
            step["name"]: _source_step(step, names, agents)
            for step in document["workflow"].values()
        },
    }


def _source_step(step: Document, names: Mapping[str, str], agents: Mapping[str, str]) -> Document:
    said = step.get("step_extensions", {}).get(EXTENSION, {})
    kept = ("type", "description", "playbook_id")
    source: Document = {key: step[key] for key in kept if key in step}
    source |= {key: names[step[key]] for key in LINKS if key in step} | said
    if "next_steps" in step:
        source["next_steps"] = [names[id] for id in step["next_steps"]]
    if "cases" in step:
        source["cases"] = {case: names[id] for case, id in step["cases"].items()}
    if "timeout" in step:
        source["timeout"] = words.spelled(timedelta(milliseconds=step["timeout"]))
    if step["type"] == "action":
        source["agent"] = agents[step["agent"]]
        source["commands"] = [_source_command(one) for one in step["commands"]]
    return source


def _source_command(command: Document) -> Document:
    kind = command["type"]
    if kind == "manual":
        return {"type": kind, "command": words.from_cacao(command["command"])}
    said = command[ENCODED.get(kind, "command")]
    if kind in ("openc2-http", "ssh"):
        said = base64.b64decode(said, validate=True).decode()
    openc2 = _mapped(json.loads(said), words.from_cacao)
    args = {key: value for key, value in openc2.get("args", {}).items() if key != "duration"}
    openc2.pop("args", None)
    return {"type": kind, "command": openc2 | ({"args": args} if args else {})}


# ---- Those of others


class Shown(msgspec.Struct, frozen=True):
    """One step of a playbook, as people read it."""

    name: str
    type: str
    does: str
    then: str


class Outline(msgspec.Struct, frozen=True):
    """What a playbook from elsewhere says, cut to what fits a page; nothing of it is trusted."""

    id: str
    name: str
    description: str
    spec_version: str
    steps: tuple[Shown, ...]
    left_out: int = 0


def outline(document: Document) -> Outline:
    """Tell what a CACAO document says, whatever is in it."""
    workflow = document.get("workflow")
    steps = workflow if isinstance(workflow, dict) else {}
    names = {id: _said(step, "name") or id for id, step in steps.items()}
    shown = [
        Shown(names[id][:SHOWN_TEXT], _said(step, "type"), _does(step), _then(step, names))
        for id, step in list(steps.items())[:SHOWN_STEPS]
    ]
    return Outline(
        id=_said(document, "id"),
        name=_said(document, "name"),
        description=_said(document, "description"),
        spec_version=_said(document, "spec_version"),
        steps=tuple(shown),
        left_out=len(steps) - len(shown),
    )


def _does(step: Any) -> str:
    commands = step.get("commands") if isinstance(step, dict) else None
    if isinstance(commands, list):
        said = (f"{_said(one, 'type')}: {_said(one, 'command')}" for one in commands[:5])
        return "; ".join(said)[:SHOWN_TEXT]
    return _said(step, "condition") or _said(step, "switch") or _said(step, "playbook_id")


def _then(step: Any, names: Mapping[str, str]) -> str:
    found = []
    for key in LINKS:
        if after := _said(step, key):
            found.append(f"{key} {names.get(after, after)}")
    several = step.get("next_steps") if isinstance(step, dict) else None
    if isinstance(several, list):
        found += [names.get(str(one), str(one)[:80]) for one in several[:20]]
    return ", ".join(found)[:SHOWN_TEXT]


def _said(part: Any, key: str) -> str:
    value = part.get(key) if isinstance(part, dict) else None
    return value[:SHOWN_TEXT] if isinstance(value, str) else ""


# ---- Values


def _mapped(value: Any, change: Any) -> Any:
    """A value in which every text was changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    return [_mapped(inner, change) for inner in value] if isinstance(value, list) else value


def _is_deeper(value: Any, most: int) -> bool:
    layer = [value]
    for _ in range(most):
        layer = [
            inner
            for one in layer
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, (dict, list))
        ]
        if not layer:
            return False
    return True


def _timestamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _milliseconds(length: timedelta) -> int:
    return length // timedelta(milliseconds=1)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
