"""`cityward rule list` and `rule show`: how the rules of a node are doing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from siem import assembly, ruleset
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import ConfigFile, Output, UsageError, settings_of
from siem.config import Settings
from siem.node import now_utc
from siem.output import text, visible
from siem.store.protocol import RuleState

Wanted = Literal["on", "off", "refused"]

COLUMNS = ("state", "level", "title", "evaluated", "matches", "share", "remarks", "id")
STATES: dict[Wanted, str] = {"on": "on", "off": "not evaluated", "refused": "refused"}
ID_SHOWN = 8
NAMED_MAX = 5
"""So many rules are named where a word stands for several."""


def list_(
    *,
    state: Annotated[tuple[Wanted, ...], Parameter(negative=())] = (),
    config: ConfigFile = None,
    output: Output = None,
) -> int:
    """List the rules of this node: whether each is on, what it took and found, what it lacks.

    As the node said last; where none has run, the rules of its files. Filters have a list of their
    own. Example: cityward rule list --state off

    Args:
        state: Only those that are on, off for whatever reason, or refused; may be given several
            times.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    settings, _ = settings_of(config)
    wanted = {STATES[one] for one in state}
    found = [one for one in _states(settings) if one.kind != "filter"]
    shown = [one for one in found if not wanted or one.state in wanted]
    form = streams.form_for(output, sys.stdout)
    as_row = _short if form == "table" else _row
    streams.write([as_row(one) for one in shown], form, COLUMNS)
    print(f"{len(shown):,} of {len(found):,} rules", file=sys.stderr)
    return 0


def show(rule: str, *, config: ConfigFile = None, output: Output = None) -> int:
    """Show all that is known of one rule: what arrives, what it found, costs and lacks.

    Example: cityward rule show "SSH passwords guessed from one address"

    Args:
        rule: Its id or title, or a part that no other has.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    settings, origin = settings_of(config)
    found = _one(_states(settings), rule, origin)
    form = streams.form_for(output, sys.stdout)
    if form == "table":
        for name, value in _told(found):
            if value:
                print(f"{name:<15} {visible(value)}")
    else:
        row = _row(found)
        streams.write([row], form, tuple(row))
    return 0


def _states(settings: Settings) -> Sequence[RuleState]:
    """What the node last said of its rules; where none has run, what the files give."""
    if (settings.state_path / "node.db").is_file():
        with closing(assembly.db_of(settings, from_settings(settings), now_utc)) as db:
            if said := ruleset.known(settings, db):
                return said
    return ruleset.states_alone(settings)


def _one(states: Sequence[RuleState], word: str, origin: str) -> RuleState:
    """The rule that a word stands for.

    Raises:
        UsageError: there is none, or several.
    """
    sought = word.casefold()
    found = [one for one in states if sought in (one.id, one.title.casefold())] or [
        one for one in states if one.id.startswith(sought) or sought in one.title.casefold()
    ]
    if not found:
        raise UsageError(f"there is no rule {word!r}", origin, "cityward rule list names them.")
    if len(found) > 1:
        named = "; ".join(f"{one.id} {one.title}" for one in found[:NAMED_MAX])
        what = f"{word!r} stands for {len(found):,} rules"
        raise UsageError(what, origin, f"Write the id of one: {named}.")
    return found[0]


def _row(rule: RuleState) -> dict[str, Any]:
    said = msgspec.structs.asdict(rule)
    del said["text"]
    return said | {"share": round(rule.share, 4), "remarks": rule.remarks}


def _short(rule: RuleState) -> dict[str, Any]:
    """For a person: as much of the id as `rule show` needs."""
    id = rule.id if rule.kind == "document" else rule.id[:ID_SHOWN]
    return _row(rule) | {"share": _percent(rule.share), "id": id}


def _told(rule: RuleState) -> Iterator[tuple[str, str]]:
    """What is known of it, name by name; what is empty nobody knows."""
    yield "title", rule.title
    yield "id", rule.id
    yield "state", rule.state
    yield from (("", one) for one in rule.remarks)
    yield "kind", rule.kind
    yield "level", rule.level
    yield "log source", rule.logsource
    yield "arriving", "yes" if rule.arriving else "no"
    yield "events seen", f"{rule.evaluated:,}"
    yield "matches", f"{rule.matches:,}"
    yield from (("not counted", one) for one in rule.losses)
    yield "time", f"{_percent(rule.share)} of that of all rules" if rule.share else "not measured"
    if rule.canary_at:
        yield "last canary", f"{text(rule.canary_at)}: {'' if rule.canary_found else 'not '}found"
    yield "techniques", text(rule.techniques)
    yield "tactics", text(rule.tactics)
    yield "description", " ".join(rule.description.split())
    yield from (("false positive", one) for one in rule.falsepositives)
    yield "status", rule.status
    yield "author", rule.author
    yield "licence", rule.license
    yield "file", rule.file


def _percent(share: float) -> str:
    return f"{share:.1%}" if share else ""
