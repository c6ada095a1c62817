"""The `cityward` command: nouns, verbs, exit codes; results on standard output only."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence
from importlib.metadata import version

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
    7: "done in part; the rest is listed",
    130: "interrupted; place kept",
}
"""What an exit code means, the same in every command."""

LISTING = ("finding", "source", "asset", "calendar", "route", "person", "token", "audit")
"""Nouns with a verb `list`."""

HELP = {"--help", "-h"}

log = logging.getLogger(__name__)

app = App(
    name="cityward",
    help="The city's shared watch: captures and logs in, findings that explain themselves out.",
    version=lambda: version("cityward"),
    version_flags=["--version"],
    result_action="return_value",
)
app.command("siem.commands.demo:demo", name="demo")
app.command("siem.commands.ingest:ingest", name="ingest")
app.command("siem.commands.run:run", name="run")
app.command("siem.commands.run:serve", name="serve")
app.command("siem.commands.sensor:collect", name="collect")
app.command("siem.commands.init:init", name="init")
app.command("siem.commands.doctor:doctor", name="doctor")
app.command("siem.commands.search:search", name="search")
app.command("siem.commands.backup:backup", name="backup")
app.command("siem.commands.backup:restore", name="restore")
finding = App(name="finding", help="Findings: list them, show one, say what you make of them.")
app.command(finding)
finding.command("siem.commands.finding:list_", name="list")
finding.command("siem.commands.finding:show", name="show")
finding.command("siem.commands.finding:set_", name="set")
source = App(name="source", help="Sources: what arrives, and whether it can be read.")
app.command(source)
source.command("siem.commands.source:list_", name="list")
source.command("siem.commands.source:show", name="show")
source.command("siem.commands.source:check", name="check")
source.command("siem.commands.sensor:add", name="add")
source.command("siem.commands.sensor:list_", name="sensors")
source.command("siem.commands.sensor:remove", name="remove")
route = App(name="route", help="Routes: whom the node tells of findings, and what was delivered.")
app.command(route)
route.command("siem.commands.route:list_", name="list")
route.command("siem.commands.route:send_test", name="test")
route.command("siem.commands.route:deliveries", name="deliveries")
asset = App(
    name="asset", help="Assets: what was seen, what is approved, what comes from elsewhere."
)
app.command(asset)
asset.command("siem.commands.asset:list_", name="list")
asset.command("siem.commands.asset:show", name="show")
asset.command("siem.commands.asset:approve", name="approve")
asset.command("siem.commands.asset:retire", name="retire")
asset.command("siem.commands.asset:merge", name="merge")
asset.command("siem.commands.asset:import_", name="import")
asset.command("siem.commands.asset:export", name="export")
calendar = App(name="calendar", help="Calendar: when and where another mode holds.")
app.command(calendar)
calendar.command("siem.commands.calendar:list_", name="list")
calendar.command("siem.commands.calendar:add", name="add")
calendar.command("siem.commands.calendar:remove", name="remove")
person = App(name="person", help="People: who may sign in to the console, with which roles.")
app.command(person)
person.command("siem.commands.person:list_", name="list")
person.command("siem.commands.person:add", name="add")
person.command("siem.commands.person:disable", name="disable")
person.command("siem.commands.person:enable", name="enable")
person.command("siem.commands.person:reset", name="reset")
token = App(name="token", help="Tokens: what programs may ask of the console.")
app.command(token)
token.command("siem.commands.token:list_", name="list")
token.command("siem.commands.token:add", name="add")
token.command("siem.commands.token:revoke", name="revoke")
audit = App(name="audit", help="Audit trail: what people did, and whether its record is whole.")
app.command(audit)
audit.command("siem.commands.audit:list_", name="list")
audit.command("siem.commands.audit:verify", name="verify")
rule = App(name="rule", help="Sigma rules: check them, test them, try them on an event.")
app.command(rule)
rule.command("siem.commands.rule:check", name="check")
rule.command("siem.commands.rule:run_samples", name="test")
rule.command("siem.commands.rule:try_event", name="try")
rule.command("siem.commands.rule:add", name="add")
config = App(name="config", help="Settings: what is in force, and what may be set.")
app.command(config)
config.command("siem.commands.config:show", name="show")
config.command("siem.commands.config:schema", name="schema")

model = App(name="model", help="Anomaly models: a second opinion on what they let pass.")
app.command(model)
model.command("siem.commands.model:audit", name="audit")
bench = App(name="bench", help="Speed figures, with the machine they were measured on.")
app.command(bench)
bench.command("siem.commands.bench:node", name="node")
bench.command("siem.commands.sizing:sizing", name="sizing")
bench.command("siem.commands.bench:packets", name="packets")
bench.command("siem.commands.bench:protocols", name="protocols")


@app.command(name="help")
def help_(topic: str = "") -> int:
    """Print help on a topic: `exit-codes`.

    Args:
        topic: What to explain.
    """
    if topic == "exit-codes":
        for code, meaning in EXIT_CODES.items():
            print(f"{code:>4}  {meaning}")
        return 0
    app.help_print([topic] if topic else [])
    return 0


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
        code = app(_spelled(words), exit_on_error=False, print_error=False)
        sys.stdout.flush()  # here a full disk can still be said
    except CycloptsError as error:
        _say(str(error), "command line", "See cityward --help.")
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
    is_alone = noun in LISTING and (not rest or rest[0].startswith("-")) and not HELP & {*rest}
    if noun == "ingest" or (noun == "asset" and rest[:1] == ["import"]):
        return [noun, *("/dev/stdin" if word == "-" else word for word in rest)]
    return [noun, "list", *rest] if is_alone else list(words)


def _place_of(error: Exception) -> str:
    return str(getattr(error, "filename", None) or "the file that was being written")


def _say(*lines: str) -> None:
    shown = (visible(line) for text in lines for line in text.splitlines())
    print("\n".join(shown), file=sys.stderr)


if __name__ == "__main__":
    main()
