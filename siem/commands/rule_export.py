"""`cityward rule export`: rules as what another search runs itself."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from cyclopts import Parameter

from siem.assets import from_settings
from siem.commands.common import ConfigFile, settings_of
from siem.commands.rule import TOLD_MAX, _is_below, _near, _paths
from siem.output import visible

if TYPE_CHECKING:
    from detectors.sigma.matchers import Placeholders
    from detectors.sigma.rule import RuleSet
    from siem.config import Settings
    from siem.rule_export import Export

PREFIX = "cw"
"""Begin of the names of indices where the settings name no cluster."""


def export(
    *paths: str,
    to: Literal["opensearch"],
    form: Annotated[Literal["queries", "monitors"], Parameter(name="--as")] = "queries",
    config: ConfigFile = None,
) -> int:
    """Write rules as queries or monitors of OpenSearch that find what the engine finds.

    A query is for the indices into which a node copies its events, in the query DSL; the filters
    and lists of now are in it. What cannot be asked there is told with file and reason, and the
    command leaves with 7. Prints one JSON document.
    Example: cityward rule export --to opensearch > queries.json

    Args:
        paths: Rules, or folders of them; without any, all that count here and are not off.
        to: What shall run them: opensearch.
        form: Queries alone, or a monitor a rule.
        config: Settings file, for filters, lists and names of indices; otherwise the first one
            found counts.
    """
    from siem import rule_export
    from siem.store.templates import Names

    settings, _ = settings_of(config)
    named = _paths(paths) if paths else []
    rules, lists, off = _counting(settings, named)
    wanted = {one.id for one in rules.speaking() if _is_in(one.document.file, named)}
    given = rule_export.export(rules, lists, wanted if paths else None, () if paths else off)
    names = Names(settings.cluster.prefix if settings.cluster else PREFIX, settings.operator)
    write = rule_export.monitors if form == "monitors" else rule_export.queries
    text = msgspec.json.format(msgspec.json.encode(write(given, names)), indent=1)
    print(text.decode())
    refused = [
        error
        for error in rules.refused
        if not named or _is_in(error.where.rpartition(":")[0] or error.where, named)
    ]
    for error in refused:
        print(f"refused: {_near(error.where)}: {visible(error.what)}", file=sys.stderr)
    _tell(given)
    return 7 if given.left or refused else 0


def _counting(
    settings: Settings, named: Sequence[Path]
) -> tuple[RuleSet, Placeholders, Collection[str]]:
    """The rules that count here and those of other files, the lists of now, and what is off."""
    from siem import assembly, ruleset
    from siem.tuning import Tuner

    there = [one.resolve() for one in ruleset.rule_folders(settings)]
    more = [one for one in named if not any(_is_below(one, folder) for folder in there)]
    folders = (*settings.rules.folders, *map(str, more))
    wider = msgspec.structs.replace(settings.rules, folders=folders)
    settings = msgspec.structs.replace(settings, rules=wider)
    with assembly.book_of(settings) as db:
        if db is None:
            lists = from_settings(settings).placeholders(settings.lists)
            return ruleset.load(settings), lists, settings.rules.off
        tuner = Tuner(settings, db)
        return tuner.rules, tuner.placeholders, ruleset.switched_off(settings, db)


def _is_in(file: str, named: Sequence[Path]) -> bool:
    """True if a file is one of those that were named, or in one of the folders."""
    return any(_is_below(Path(file).resolve(), path) for path in named)


def _tell(given: Export) -> None:
    """What became of the rules, for a person; the document has all of it."""
    told, others = given.left[:TOLD_MAX], given.left[TOLD_MAX:]
    for one in told:
        print(f"not expressible: {_near(one.file)}: {visible(one.reason)}", file=sys.stderr)
    for reason, count in Counter(one.reason for one in others).most_common():
        print(f"not expressible: {count:,} more: {visible(reason)}", file=sys.stderr)
    print(
        f"{len(given.written):,} {'rule' if len(given.written) == 1 else 'rules'} written,"
        f" {len(given.left):,} not expressible",
        file=sys.stderr,
    )
