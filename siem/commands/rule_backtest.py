"""`cityward rule backtest`: what a rule would have said of the events that are kept."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cityward import CitywardError, InputError, RuleError
from siem import assembly
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import (
    ConfigFile,
    Output,
    Quiet,
    Teller,
    settings_with_state,
    span,
    stopping,
)
from siem.node import now_utc
from siem.output import many, text, visible

if TYPE_CHECKING:
    from detectors.sigma.rule import RuleSet
    from siem.backtest import Backtest, Counts, Progress, Said
    from siem.config import Settings
    from siem.store.rulebook import RulebookStore

COLUMNS = (
    "rule",
    "part",
    "name",
    "would",
    "deployed",
    "new",
    "gone",
    "time",
    "asset",
    "sentence",
)
ASSETS_TOLD = 20
"""Assets of a table; the other forms have all."""
AGAINST = {
    "deployed": "the deployed version",
    "no version": "nothing, since no version is deployed",
    "idle version": "nothing, since the deployed version is not evaluated",
}


def backtest(
    path: str,
    *,
    since: str = "30d",
    until: str = "",
    against: Literal["deployed"] | None = None,
    config: ConfigFile = None,
    output: Output = None,
    quiet: Quiet = False,
) -> int:
    """Say what a rule would have said of the kept events: per day, per asset, the newest of it.

    The rule is taken with the filters and lists that count at this node. A filter is tried on the
    rules that it binds to. Of a folder, what cannot be tried is told and the rest is tried. Leaves
    with 3 if there is something: a finding, or, with --against, a difference; with 4 if a document
    is refused or not evaluated; with 7 if a file, or events that should be there, cannot be read.
    Ctrl+C stops, and what it had come to is told.
    Example: cityward rule backtest rules/mine.yml --since 30d --against deployed

    Args:
        path: A rule, a filter, or a folder of them.
        since: Start of the span: 24h, 30d, a time, or all.
        until: End of the span; otherwise now.
        against: With what to compare: deployed, the version that counts at this node.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv.
        quiet: Do not say how far it has come.
    """
    from siem.backtest import backtest as backtest_
    from siem.store.archive import MEMORY_LIMIT, Looking
    from siem.tuning import Tuner

    texts, refused = _texts(Path(path))
    settings = settings_with_state(config)
    now = now_utc()
    wanted = span("" if since == "all" else since, until, now)
    teller = Teller(quiet)
    found: list[Backtest] = []
    took_s: list[float] = []
    stop = threading.Event()
    with closing(assembly.db_of(settings, from_settings(settings), now_utc)) as db:
        tuner = Tuner(settings, db)
        rules, ids = _drafted(texts, db.rulebook, settings, refused)
        events = settings.state_path / "events"
        with closing(Looking(events, MEMORY_LIMIT)) as looking, stopping(stop):
            for number, rule in enumerate(ids, 1):
                if stop.is_set():
                    break
                began_s = time.monotonic()
                found.append(
                    backtest_(
                        looking,
                        rule,
                        rules,
                        span=wanted,
                        now=now,
                        placeholders=tuner.placeholders,
                        against=tuner.rules if against else None,
                        tell=lambda progress, number=number: teller.progress(  # type: ignore[misc]
                            _progress(progress, number, len(ids))
                        ),
                        stop=stop,
                    )
                )
                took_s.append(time.monotonic() - began_s)
    _print(found, streams.form_for(output, sys.stdout))
    for one, seconds in zip(found, took_s, strict=True):
        teller.line(_looked_at(one, seconds))
    for error in refused:
        print(
            f"Not tried: {visible(f'{error.what} ({error.where})')}.", error.todo, file=sys.stderr
        )
    for lack in dict.fromkeys(lack for one in found for lack in one.lacking):
        print(f"Not looked at: {visible(lack)}.", file=sys.stderr)
    if stop.is_set():
        teller.line("Interrupted: this is what it had come to.")
        return 130
    codes = {error.exit_code for error in refused}
    if RuleError.exit_code in codes or any(one.idle for one in found):
        return RuleError.exit_code
    if codes or any(one.lacking for one in found):
        return InputError.exit_code
    return 3 if any(_is_something(one) for one in found) else 0


def _is_something(one: Backtest) -> bool:
    if one.against == "nothing":
        return one.total.would > 0
    return one.total.new + one.total.gone > 0


# ---- which rules


def _texts(path: Path) -> tuple[dict[str, str], list[CitywardError]]:
    """What stands in files, by their names; and those that cannot be read.

    Raises:
        InputError: there is nothing to read.
    """
    from detectors.sigma.load import rule_files

    if not path.exists():
        raise InputError("there is no such file or folder", str(path), "Check the path.")
    found: dict[str, str] = {}
    refused: list[CitywardError] = []
    for file in rule_files(path.resolve()):
        try:
            found[str(file)] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            refused.append(InputError("it cannot be read", str(file), "Check the file."))
    if not found and not refused:
        raise InputError("there is no rule in it", str(path), "Name a .yml file.")
    return found, refused


def _drafted(
    texts: Mapping[str, str],
    book: RulebookStore,
    settings: Settings,
    refused: list[CitywardError],
) -> tuple[RuleSet, list[str]]:
    """What would count with these texts in the place of what is deployed, and which to try.

    What is no rule in them is added to what is refused.

    Raises:
        RuleError: nothing is wrong with them, and there is nothing to try.
    """
    from siem import ruleset

    ours = {id for name, text in texts.items() for id in ruleset.ids_in(text, name)}
    deployed = {
        one.file: one.text for one in book.deployed() if one.is_whole and one.document not in ours
    }
    rules = ruleset.load(settings, {**deployed, **texts})
    refused += [
        error
        for error in rules.refused
        if error.where.rpartition(":")[0] in texts or error.where in texts
    ]
    ids = [one.id for one in rules.speaking() if one.document.file in texts]
    for rule in rules.rules:
        if any(one.document.file in texts for one in rule.filters) and rule.id not in ids:
            ids.append(rule.id)
    if not ids and not refused:
        what = "nothing in it speaks, and no filter in it binds to a rule"
        raise RuleError(what, next(iter(texts)), "Name a rule.")
    return rules, ids


# ---- what is told


def _progress(progress: Progress, number: int, rules: int) -> str:
    which = f"rule {number} of {rules}, " if rules > 1 else ""
    return (
        f"{which}file {progress.files:,} of {progress.files_all:,}, "
        f"{many(progress.events, 'event')}, {progress.found:,} found"
    )


def _looked_at(one: Backtest, took_s: float) -> str:
    read = f"{one.files - one.unread:,} of {one.files:,} files read"
    return f"{visible(one.title)}: {many(one.events, 'event')} looked at, {read}, {took_s:.1f} s"


def _print(found: Sequence[Backtest], form: streams.Form) -> None:
    if form == "table":
        for one in found:
            _tell(one)
    elif form == "json":
        streams.write([msgspec.to_builtins(one) for one in found], form, COLUMNS)
    else:
        streams.write([row for one in found for row in _rows(one)], form, COLUMNS)


def _tell(one: Backtest) -> None:
    """For a person."""
    print(visible(one.title))
    if one.idle:
        print(f"  It is not evaluated here: {visible(one.idle)}.")
        return
    total, is_compared = one.total, one.against != "nothing"
    if one.first is None:
        known = one.is_whole and not one.lacking
        print(f"  No event of this time {'is kept' if known else 'was looked at'}.")
        return
    print(f"  It would have spoken {_times(total.would)} in {many(one.events, 'event')}", end=" ")
    print(f"since {text(one.first)}.")
    if is_compared:
        print(f"  Against {AGAINST[one.against]}, which says {total.deployed:,}:", end=" ")
        print(f"{total.new:,} new, {total.gone:,} gone.")
    counted = ("would", "deployed", "new", "gone") if is_compared else ("would",)
    for name, pairs in (("day", one.days), ("asset", one.assets[:ASSETS_TOLD])):
        if pairs:
            print()
            rows = [{name: key, **_counts(counts)} for key, counts in pairs]
            streams.write(rows, "table", (name, *counted))
    if len(one.assets) > ASSETS_TOLD:
        print(f"and {len(one.assets) - ASSETS_TOLD:,} more assets")
    parts = [("new", one.new), ("gone", one.gone)] if is_compared else [("newest", one.samples)]
    for name, said in parts:
        if said:
            print(f"\n{name}")
            for each in said:
                print(f"  {text(each.time)}  {visible(each.asset)}: {visible(each.sentence)}")
    print()


def _rows(one: Backtest) -> Iterator[dict[str, Any]]:
    head = {"rule": one.title, "rule.id": one.rule}
    yield {**head, "part": "total", "name": one.idle, **_counts(one.total)}
    for part, pairs in (("day", one.days), ("asset", one.assets)):
        for name, counts in pairs:
            yield {**head, "part": part, "name": name, **_counts(counts)}
    for part, said in (("sample", one.samples), ("new", one.new), ("gone", one.gone)):
        for each in said:
            yield {**head, "part": part, "name": each.event, **_sample(each)}


def _counts(counts: Counts) -> dict[str, int]:
    found: dict[str, int] = msgspec.to_builtins(counts)
    return found


def _sample(one: Said) -> dict[str, Any]:
    return {"time": one.time, "asset": one.asset, "sentence": one.sentence}


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count:,} times")
