"""The `cityward` command: nouns, verbs, exit codes; results on standard output only."""

from __future__ import annotations

import ast
import logging
import os
import sys
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from cyclopts import App, CycloptsError

from cityward import CitywardError
from siem.output import visible
from siem.store.room import is_full

EXIT_CODES = {
    0: "done, and nothing to report",
    1: "a fault of ours; the message has an id that is in the log",
    2: "the command line is wrong",
    3: 'done, and the answer is "yes, there is something"',
    4: "settings, rule, playbook or policy file is wrong",
    5: "something outside did not answer; trying again may help",
    6: "refused: rights, safety gate, missing approval",
    7: "an input could not be read, or done in part; the rest is listed",
    130: "interrupted; place kept",
}
"""What an exit code means, the same in every command."""

HELP = {"--help", "-h"}

COMMANDS = {
    "demo": "demo:demo",
    "ingest": "ingest:ingest",
    "run": "run:run",
    "serve": "run:serve",
    "worker": "worker:worker",
    "openc2-consumer": "openc2:consumer",
    "hub": "hub:hub",
    "collect": "sensor:collect",
    "init": "init:init",
    "doctor": "doctor:doctor",
    "search": "search:search",
    "backup": "backup:backup",
    "restore": "backup:restore",
}
"""A command that is no noun, to its function in `siem/commands/`."""
NOUNS: dict[str, tuple[str, dict[str, str]]] = {
    "finding": (
        "Findings: list them, show one, say what you make of them.",
        {"list": "finding:list_", "show": "finding:show", "set": "finding:set_"},
    ),
    "incident": (
        "Incidents: cases, their legal clocks, drafts of what has to be told.",
        {
            "list": "incident:list_",
            "open": "incident:open_",
            "show": "incident:show",
            "set": "incident:set_",
            "clock": "incident:clock",
            "draft": "incident:draft",
            "submit": "incident:submit",
        },
    ),
    "source": (
        "Sources: what arrives, and whether it can be read.",
        {
            "list": "source:list_",
            "show": "source:show",
            "check": "source:check",
            "add": "sensor:add",
            "sensors": "sensor:list_",
            "remove": "sensor:remove",
        },
    ),
    "route": (
        "Routes: whom the node tells of findings, and what was delivered.",
        {"list": "route:list_", "test": "route:send_test", "deliveries": "route:deliveries"},
    ),
    "asset": (
        "Assets: what was seen, what is approved, what comes from elsewhere.",
        {
            "list": "asset:list_",
            "show": "asset:show",
            "approve": "asset:approve",
            "retire": "asset:retire",
            "merge": "asset:merge",
            "import": "asset:import_",
            "export": "asset:export",
        },
    ),
    "calendar": (
        "Calendar: when and where another mode holds.",
        {"list": "calendar:list_", "add": "calendar:add", "remove": "calendar:remove"},
    ),
    "person": (
        "People: who may sign in to the console, with which roles.",
        {
            "list": "person:list_",
            "add": "person:add",
            "disable": "person:disable",
            "enable": "person:enable",
            "reset": "person:reset",
        },
    ),
    "token": (
        "Tokens: what programs may ask of the console.",
        {"list": "token:list_", "add": "token:add", "revoke": "token:revoke"},
    ),
    "audit": (
        "Audit trail: what people did, and whether its record is whole.",
        {"list": "audit:list_", "verify": "audit:verify"},
    ),
    "rule": (
        "Sigma rules: how each is doing; check them, test them, try them on an event.",
        {
            "list": "rule_list:list_",
            "show": "rule_list:show",
            "check": "rule:check",
            "test": "rule:run_samples",
            "try": "rule:try_event",
            "backtest": "rule_backtest:backtest",
            "add": "rule:add",
            "export": "rule_export:export",
            "deploy": "tuning:deploy",
            "revert": "tuning:revert",
            "history": "tuning:history",
            "protected": "tuning:protected",
            "release": "release:release",
            "aside": "release:aside",
        },
    ),
    "filter": (
        "Filters: what is hidden, for whom, why and until when.",
        {"list": "tuning:list_", "add": "tuning:add", "remove": "tuning:remove"},
    ),
    "playbook": (
        "Playbooks: what would be done about a finding, by whom, for how long.",
        {
            "list": "playbook:list_",
            "show": "playbook:show",
            "check": "playbook:check",
            "build": "playbook:build",
            "sign": "playbook:sign_",
            "plan": "playbook_plan:plan_",
            "breaker": "playbook_plan:breaker",
            "stage": "response:stage",
            "run": "response:run",
            "approve": "response:approve",
            "refuse": "response:refuse",
            "undo": "response:undo",
            "stop": "response:stop",
            "start": "response:start",
        },
    ),
    "operator": (
        "Operators: who shares with the city.",
        {
            "list": "operator:list_",
            "enrol": "operator:enrol",
            "revoke": "operator:revoke",
            "join": "operator:join",
            "request": "operator:request",
            "admit": "operator:admit",
        },
    ),
    "ledger": (
        "Ledger: what was sent to the city, and proof of it.",
        {
            "search": "ledger:search",
            "verify": "ledger:verify",
            "export": "ledger:export",
            "mirror": "ledger:mirror",
            "access": "ledger:access",
        },
    ),
    "store": (
        "Store: the search cluster of a node or a hub.",
        {
            "init": "store:init",
            "verify": "store:verify",
            "retain": "store:retain",
            "replay": "store:replay",
        },
    ),
    "share": (
        "Sharing: what may leave, what would, who waits for a yes, and how it is taken back.",
        {
            "preview": "share:preview",
            "check": "share:check",
            "example": "share:example",
            "join-key": "share:join_key",
            "approve": "share:approve",
            "withdraw": "share:withdraw",
            "inbox": "share:inbox",
            "readers": "share:readers",
        },
    ),
    "config": (
        "Settings: what is in force, and what may be set.",
        {"show": "config:show", "schema": "config:schema"},
    ),
    "model": (
        "Anomaly models: a second opinion on what they let pass.",
        {"audit": "model:audit"},
    ),
    "bench": (
        "Speed figures, with the machine they were measured on.",
        {
            "node": "bench:node",
            "sizing": "sizing:sizing",
            "packets": "bench:packets",
            "protocols": "bench:protocols",
            "hub": "bench:hub",
            "index": "bench:index",
            "backtest": "bench:backtest",
            "playbook": "bench:playbook",
            "sigma": "bench:sigma",
        },
    ),
}
"""A noun, to its help and its verbs with their functions in `siem/commands/`."""

log = logging.getLogger(__name__)


def _made(told: str | None = None) -> App:
    """All commands; what they do is imported when one is called.

    Args:
        told: The noun whose verbs say what they are for; empty: the commands that are no nouns.
    """
    made = App(
        name="cityward",
        help="The city's shared watch: captures and logs in, findings that explain themselves out.",
        version=lambda: version("cityward"),
        version_flags=["--version"],
        result_action="return_value",
    )
    for name, function in COMMANDS.items():
        help_ = _purpose(function) if told == "" else None
        made.command(f"siem.commands.{function}", name=name, help=help_)
    for name, (noun_help, verbs) in NOUNS.items():
        made.command(noun := App(name=name, help=noun_help))
        for verb, function in verbs.items():
            help_ = _purpose(function) if told == name else None
            noun.command(f"siem.commands.{function}", name=verb, help=help_)
    made.command(help_topic, name="help")
    return made


def _purpose(function: str) -> str:
    """First sentence of a command's docstring; what the command needs is not imported for it."""
    module, _, name = function.partition(":")
    text = (Path(__file__).parent / "commands" / f"{module}.py").read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    return ""


def help_topic(topic: str = "") -> int:
    """Print help on a command, or on a topic: `exit-codes`.

    Args:
        topic: What to explain.
    """
    if topic == "exit-codes":
        for code, meaning in EXIT_CODES.items():
            print(f"{code:>4}  {meaning}")
        return 0
    if topic and topic not in COMMANDS and topic not in NOUNS:
        todo = "Name a command of cityward --help, or exit-codes."
        _say(f"There is no help on {topic!r}.", "command line", todo)
        return 2
    _made(topic).help_print([topic] if topic else [])
    return 0


app = _made()


def main(words: Sequence[str] | None = None) -> None:
    """Run the command and leave with its exit code; what it makes is for this account alone."""
    os.umask(0o077)
    sys.exit(run(sys.argv[1:] if words is None else words))


def run(words: Sequence[str]) -> int:
    """Run the command; every error becomes three lines and an exit code."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s"
    )
    try:
        spelled = _spelled(words)
        listed = _listed(spelled)
        called = app if listed is None else _made(listed)
        code = called(spelled, exit_on_error=False, print_error=False)
        sys.stdout.flush()  # here a full disk can still be said
    except CycloptsError as error:
        noun = f" {words[0]}" if words and words[0] in NOUNS else ""
        _say(str(error), "command line", f"See cityward{noun} --help.")
        return 2
    except CitywardError as error:
        _say(error.what, error.where, error.todo)
        return error.exit_code
    except KeyboardInterrupt:
        _say("Interrupted; the place is kept.", "", "The same command goes on where it stopped.")
        return 130
    except BrokenPipeError:
        # Who read us has enough; what is left in the buffer must not fail at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if is_full(error):
            _say("The disk is full.", _place_of(error), "Make room; the same command goes on.")
            return 5
        fault_id = uuid.uuid4().hex[:8]
        log.exception("Fault %s.", fault_id)
        _say(
            f"{type(error).__name__}: {error}",
            f"fault {fault_id}",
            "Please report it with the log.",
        )
        return 1
    return code if isinstance(code, int) else 0


def _spelled(words: Sequence[str]) -> list[str]:
    """A noun alone lists; `-` is standard input, which the library takes for an option."""
    noun, *rest = words or [""]
    lists = noun in NOUNS and "list" in NOUNS[noun][1]
    is_alone = lists and (not rest or rest[0].startswith("-")) and not HELP & {*rest}
    if noun == "ingest" or (noun == "asset" and rest[:1] == ["import"]):
        return [noun, *("/dev/stdin" if word == "-" else word for word in rest)]
    return [noun, "list", *rest] if is_alone else list(words)


def _listed(words: Sequence[str]) -> str | None:
    """The noun whose verbs the answer lists; empty: all commands; None: it is no list."""
    first, *rest = [word for word in words if word not in HELP] or [""]
    return first if not rest and (not first or first in NOUNS) else None


def _place_of(error: Exception) -> str:
    return str(getattr(error, "filename", None) or "the file that was being written")


def _say(*lines: str) -> None:
    shown = (visible(line) for text in lines for line in text.splitlines())
    print("\n".join(shown), file=sys.stderr)


if __name__ == "__main__":
    main()
