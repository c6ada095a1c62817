"""`cityward rule`: check rules, test them on their samples, try them, take up those of others."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from cityward import InputError, RuleError
from siem import config as settings_file
from siem import output as streams
from siem.commands.config import ConfigFile
from siem.config import Settings
from siem.output import Form, text, visible
from siem.ruleset import RULES_FOLDER

OutputForm = Annotated[Form | None, Parameter(name=["--output", "-o"])]

CHECK_COLUMNS = ("where", "severity", "what")
TEST_COLUMNS = ("result", "rule", "case", "why")
TRY_COLUMNS = ("event", "time", "action", "rule", "result", "why")
ADD_COLUMNS = ("logsource", "rules", "speak", "needs")
EACH_COLUMNS = ("rule", "state", "why", "logsource", "level", "author", "license", "where")
TOLD_MAX = 20
"""Refused and double documents that are told one by one for a person; a pipe gets all."""


def check(*paths: str, output: OutputForm = None, strict: bool = False) -> int:
    """Say what is wrong with rules, with file and line.

    Looks at the document, its fields, its ATT&CK tags and whether its samples are a proof. Leaves
    with 4 if there is an error. Example: cityward rule check rules/mine.yml

    Args:
        paths: Rules, or folders of them; without any, the library that comes with cityward.
        output: Form of the result: table, json, ndjson or csv.
        strict: Warnings count as errors.
    """
    from detectors.sigma.lint import check as check_path

    problems = [problem for path in _paths(paths) for problem in check_path(path, *_others(path))]
    rows = [
        {"where": _near(one.where), "severity": one.severity, "what": one.what} for one in problems
    ]
    _print(rows, output, CHECK_COLUMNS, "Nothing is wrong.")
    return 4 if any(strict or one.severity == "error" for one in problems) else 0


def run_samples(*paths: str, output: OutputForm = None) -> int:
    """Run the samples of rules through the real collectors and the real engine.

    Each case is told with what it came to; then each line of a rule is left out in turn, and a
    line that no case misses is told too. Leaves with 3 if something failed.
    Example: cityward rule test rules/mine.yml

    Args:
        paths: Rules, or folders of them; without any, the library that comes with cityward.
        output: Form of the result: table, json, ndjson or csv.
    """
    rows = [row for path in _paths(paths) for row in _tested(path)]
    _print(rows, output, TEST_COLUMNS, "There is nothing to test.")
    failed = sum(row["result"] != "ok" for row in rows)
    print(f"{len(rows):,} cases, {failed:,} failed", file=sys.stderr)
    return 3 if failed else 0


def try_event(
    path: Annotated[str, Parameter(allow_leading_hyphen=True)] = "-",
    *,
    rules: str = "",
    config: ConfigFile = None,
    collector: str = "",
    limit: int = 20,
    output: OutputForm = None,
) -> int:
    """Show what becomes of a line, a log or a capture: collector, event, every rule and why.

    Every rule of an event's log source is told, with the lines that kept it from matching, as it
    counts at the node of the settings: with what people deployed and switched off there. Of rules
    that are named it is also told if one is refused, and the command leaves with 4.
    Example: echo 'Jan  5 10:00:00 gw sshd[1]: Failed password for root from 192.0.2.1 port 5 ssh2'
    | cityward rule try

    Args:
        path: A file; without one, or with -, standard input.
        rules: A rule or a folder of rules to try beside the others, in the place of what was
            deployed.
        config: Settings file, for rules, inventory and lists; otherwise the first one found counts.
        collector: Name of the collector that shall read it; otherwise it is recognised.
        limit: Show so many events; all of them are read.
        output: Form of the result: table, json, ndjson or csv.
    """
    from siem import trial

    extra = [str(_paths([rules])[0])] if rules else []
    settings = trial.settings_of(config)
    steps = trial.of_file(path, settings=settings, named=collector, rules=extra)
    chosen = streams.form_for(output, sys.stdout)
    if chosen == "table":
        return 4 if _tell(steps, limit) else 0
    rows = [row for event in trial.first(steps, limit) for row in _try_rows(event)]
    streams.write(rows, chosen, TRY_COLUMNS)
    return 4 if any(row["result"] == "refused" for row in rows) else 0


def add(
    folder: str,
    *,
    config: ConfigFile = None,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative=())] = False,
    each: Annotated[bool, Parameter(name="--each", negative=())] = False,
    pipeline: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    output: OutputForm = None,
) -> int:
    """Say what rules of others could tell here, and take their folder into the settings.

    Works with the unpacked rules of SigmaHQ or any folder of Sigma documents. Tells by log source
    how many rules can speak with the sources, fields and lists of these settings, and what the
    others want. Nothing is copied: the rules stay where they are, with their authors and licence.
    Example: cityward rule add sigma/rules --yes

    Args:
        folder: Rules, or a folder of them.
        config: Settings file; otherwise the first one found counts.
        yes: Write the folder into the settings file; without it, the line to write is printed.
        each: A row a rule instead of one a log source.
        pipeline: A processing pipeline of pySigma that puts these rules in the names of our fields;
            taken into the settings with the folder. May be given several times.
        output: Form of the result: table, json, ndjson or csv.
    """
    from siem import adopt
    from siem.assets import from_settings
    from siem.ruleset import pipelines, rule_folders

    path = _paths([folder])[0]
    file = settings_file.find(config)
    settings = settings_file.load(file) if file else Settings()
    others = [one.resolve() for one in rule_folders(settings)]
    there = [one.resolve() for one in pipelines(settings)]
    given = [one for one in _paths(pipeline) if one not in there] if pipeline else []
    report = adopt.look_at(
        path,
        settings,
        [one for one in others if one != path],
        from_settings(settings).placeholders(settings.lists),
        [*given, *there],
    )
    if each:
        _print([_each(one) for one in report.verdicts], output, EACH_COLUMNS, "There are no rules.")
    else:
        rows = adopt.by_logsource(report.verdicts)
        _print(rows, output, ADD_COLUMNS, "There are no rules.")
    _tell_report(report, folder)
    if not report.verdicts:
        return 4 if report.refused else 0
    _take_up(path, path in others, given, file if yes else None)
    return 0


def _each(verdict: Any) -> dict[str, Any]:
    analytic = verdict.rule.analytic
    return {
        "rule": analytic.name,
        "state": verdict.state,
        "why": verdict.why,
        "logsource": verdict.logsource,
        "level": analytic.level,
        "author": analytic.author,
        "license": analytic.license,
        "where": _near(verdict.rule.document.where()),
    }


def _tell_report(report: Any, folder: str) -> None:
    """What concerns the whole folder, for a person, beside the rows."""
    speak = sum(one.state == "can speak" for one in report.verdicts)
    authors = Counter(one.rule.analytic.author or "nobody named" for one in report.verdicts)
    most = ", ".join(f"{name} ({count:,})" for name, count in authors.most_common(3))
    count = len(report.verdicts)
    said = [f"{count:,} {'rule' if count == 1 else 'rules'} in {folder}, {speak:,} can speak here"]
    if len(authors) == 1:
        said.append(f"by {', '.join(authors)}")
    elif authors:
        said.append(f"by {len(authors):,} authors, most by {most}")
    said += [f"licence: {one}" for one in report.licences]
    for what, errors in (("refused", report.refused), ("there already", report.twice)):
        said += [f"{what}: {_near(one.where)}: {one.what}" for one in errors[:TOLD_MAX]]
        if len(errors) > TOLD_MAX:
            more = len(errors) - TOLD_MAX
            said.append(f"{what}: {more:,} more; see cityward rule check {folder}")
    print("\n".join(visible(one) for one in said), file=sys.stderr)


def _take_up(path: Path, is_there: bool, pipelines: Sequence[Path], file: Path | None) -> None:
    from siem import adopt

    if is_there and not pipelines:
        print("The folder is in the settings already.", file=sys.stderr)
        return
    if file is None:
        lines = [] if is_there else [f'folders = ["{path}"]']
        quoted = ", ".join(f'"{one}"' for one in pipelines)
        lines += [f"pipelines = [{quoted}]"] if pipelines else []
        wanted = "\n".join(lines)
        print(
            f"To use them: cityward rule add … --yes, or write\n\n[rules]\n{wanted}",
            file=sys.stderr,
        )
        return
    text = file.read_text(encoding="utf-8")
    if not is_there:
        text = adopt.with_folder(text, str(path))
    for one in reversed(pipelines):
        text = adopt.with_pipeline(text, str(one))
    adopt.write(file, text)
    print(f"{file}: the folder is in the settings now; restart the node.", file=sys.stderr)


# ---- test


def _tested(path: Path) -> Iterator[dict[str, Any]]:
    from detectors.sigma.load import load_folder
    from detectors.sigma.samples import read_samples, samples_file
    from siem import samples as runs

    rules = load_folder(path, *_others(path))
    for error in rules.refused:
        if _is_below(Path(error.where.rpartition(":")[0]), path):
            yield _row("failed", error.where, "(loading)", error.what)
    for one in rules.speaking():
        file = Path(one.document.file)
        if not _is_below(file, path):
            continue
        try:
            given = read_samples(samples_file(file))
            for outcome in runs.outcomes(one, rules, given):
                result = "ok" if outcome.passed else "failed"
                yield _row(result, str(file), outcome.name, "; ".join(outcome.problems))
            for line in runs.unnoticed(one, rules, given):
                yield _row("failed", str(file), f"without {line}", "no case notices")
        except RuleError as error:
            yield _row("failed", error.where, "(samples)", error.what)


def _row(result: str, rule: str, case: str, why: str) -> dict[str, Any]:
    return {"result": result, "rule": _near(rule), "case": case, "why": why}


# ---- try


def _tell(steps: Iterable[Any], limit: int) -> bool:
    """Step by step, for a person; True if a rule that was named is refused."""
    is_refused = False
    for step in steps:
        if step.event is None and step.rules:
            print("\nOf the rules that were named")
            _tell_rules(step.rules)
            is_refused = any(one.result == "refused" for one in step.rules)
        elif step.event is not None and step.number <= limit:
            _tell_event(step)
        for finding in step.findings:
            print(f"\nFinding, {finding.severity}: {visible(finding.title)}")
            print(f"  {visible(finding.description)}")
    return is_refused


def _tell_event(step: Any) -> None:
    print(f"\nEvent {step.number}, read by {step.collector}, log source {step.event.logsource}")
    for name, value in {"@timestamp": step.event.time, **step.event.fields}.items():
        print(f"  {name:28} {visible(text(value))}")
    if not step.rules:
        print("  no rule is for this log source")
    _tell_rules(step.rules)


def _tell_rules(rules: Iterable[Any]) -> None:
    for rule in rules:
        near = _near(rule.file)
        print(f"  {rule.result:13}", f"{visible(rule.title)}  ({near})" if rule.title else near)
        for line in rule.why:
            print(f"  {'':13}   {visible(line)}")


def _try_rows(step: Any) -> Iterator[dict[str, Any]]:
    event = step.event
    if event is not None:
        head: Mapping[str, Any] = {
            "event": step.number,
            "time": event.time,
            "collector": step.collector,
            "logsource": str(event.logsource),
            "action": event.fields.get("event.action", ""),
            "fields": event.fields,
        }
        if not step.rules:
            yield {**head, "rule": "", "result": "no rule", "why": ""}
    else:
        head = {"event": "", "time": "", "collector": "", "logsource": "", "action": "rule"}
    for rule in step.rules:
        title = rule.title or _near(rule.file)
        yield {**head, "rule": title, "result": rule.result, "why": "; ".join(rule.why)}
    for one in step.findings:
        yield {
            "event": step.number,
            "time": one.last_seen,
            "action": "finding",
            "rule": one.title,
            "result": one.severity,
            "why": one.description,
        }


# ---- what is looked at


def _paths(given: Sequence[str]) -> list[Path]:
    paths = [Path(one).resolve() for one in given] or [RULES_FOLDER]
    for path in paths:
        if not path.exists():
            raise InputError("there is no such file or folder", str(path), "Check the path.")
    return paths


def _others(path: Path) -> list[Path]:
    """What a rule may refer to: the library, and what stands beside it; nothing twice."""
    from detectors.sigma.load import rule_files

    folders = [RULES_FOLDER, path.parent if path.is_file() else path]
    files = {file.resolve() for folder in folders for file in rule_files(folder)}
    return sorted(file for file in files if not _is_below(file, path))


def _is_below(file: Path, path: Path) -> bool:
    return file == path or path in file.parents


def _near(where: str) -> str:
    """A place as a person at this folder would write it."""
    return where.removeprefix(f"{Path.cwd()}{os.sep}")


def _print(
    rows: Sequence[dict[str, Any]], form: Form | None, columns: Sequence[str], nothing: str
) -> None:
    chosen = streams.form_for(form, sys.stdout)
    if chosen == "table" and not rows:
        print(nothing)
        return
    streams.write(rows, chosen, columns)
