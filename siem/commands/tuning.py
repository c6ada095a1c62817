"""`cityward filter`, and `cityward rule deploy`, `revert`, `history`: how rules are tuned here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from siem import assembly
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import ConfigFile, Output, UsageError, settings_with_state, who
from siem.commands.finding import one_of
from siem.console.tuning import FILTER_DAYS_MAX
from siem.node import now_utc
from siem.output import visible
from siem.sharing.samples import RELEASED
from siem.store.embedded import NodeDb

if TYPE_CHECKING:
    from siem.console.tuning import Examined, FilterRow, HideCount
    from siem.store.samples import Foreign, Release
    from siem.tuning import Tuner

Reason = Annotated[str, Parameter(name=["--reason"])]
Fields = Annotated[tuple[str, ...], Parameter(name=["--field"], negative=())]

FILTER_COLUMNS = ("state", "until", "title", "hides", "rules", "owner", "reason", "id")
COUNTED = ("hides_days", "hides_why")
VERSION_COLUMNS = ("version", "time", "by", "reason", "state")
HIDDEN_COLUMNS = ("time", "finding", "title", "sentence", "verdict", "hidden")
PROTECTED_COLUMNS = ("rule", "title", "finding", "events", "from", "by", "time", "state")


def list_(*, hides: bool = True, config: ConfigFile = None, output: Output = None) -> int:
    """List the filters that count here: what they hide, for whom, until when; expired ones first.

    How much each hides is counted over the events that are kept of the last 30 days, for at most
    five minutes. Example: cityward filter list

    Args:
        hides: Count it; without, the list is there at once.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv.
    """
    form = streams.form_for(output, sys.stdout)
    with _tuner(config) as (tuner, _):
        now = now_utc()
        counts = tuner.hide_counts(now) if hides else {}
        rows = [
            {
                "state": "expired" if one.is_expired else "on",
                "until": one.expires,
                "title": one.title,
                **_hides(counts.get(one.id), form),
                "rules": ", ".join(title for _, title in one.rules) or "all",
                "owner": one.owner,
                "reason": one.reason,
                "id": one.id,
            }
            for one in tuner.filters(now.date())
        ]
    streams.write(rows, form, FILTER_COLUMNS if form == "table" else (*FILTER_COLUMNS, *COUNTED))
    return 0


def _hides(one: HideCount | None, form: streams.Form) -> dict[str, Any]:
    """Matches that a filter hides: for people with the period, for programs by parts."""
    if one is None:
        return {}
    if form == "table":
        return {"hides": one.words}
    return {"hides": one.matches, "hides_days": one.days, "hides_why": one.why}


def add(
    file: str = "",
    *,
    from_: Annotated[str, Parameter(name=["--from"])] = "",
    field: Fields = (),
    reason: Reason = "",
    days: int = 30,
    yes: Annotated[bool, Parameter(negative=())] = False,
    config: ConfigFile = None,
    output: Output = None,
) -> int:
    """Add a filter, from a file or made from a finding, and show what it would have hidden.

    Without --yes nothing changes. What was found right once is never hidden: then it leaves with 6.
    Example: cityward filter add --from 0b8f4e1c --field source.ip --reason "the historian"

    Args:
        file: A Sigma filter, YAML; without it, --from.
        from_: Id of a finding, or how it begins.
        field: Field whose value tells what is harmless; may be given several times.
        reason: Why it is harmless; a file has its own.
        days: For so many days (with --from).
        yes: Let it count from now on.
        config: Settings file; otherwise the first one found counts.
        output: Form of the list: table, json, ndjson or csv.
    """
    if bool(file) is bool(from_):
        raise UsageError("one of both is needed", "FILE or --from", "Name a file, or a finding.")
    if not 1 <= days <= FILTER_DAYS_MAX:
        raise UsageError(f"{days} days", "--days", f"Choose 1 to {FILTER_DAYS_MAX}.")
    if from_ and not reason.strip():
        raise UsageError("a filter needs a reason", "--reason", "Say why it is harmless.")
    now = now_utc()
    with _tuner(config) as (tuner, db):
        if from_:
            finding = one_of(db, from_)
            until = (now + timedelta(days=days)).date()
            text = tuner.filter_of(finding, field, reason=reason, expires=until, by=who())
        else:
            text = _read(file)
        examined, hidden = tuner.added(text, now, file or "the filter")
        print(*map(visible, text.splitlines()), sep="\n", file=sys.stderr)
        rows = [
            {
                "time": one.time,
                "finding": one.finding,
                "title": one.title,
                "sentence": one.sentence,
                "verdict": one.verdict,
                "hidden": f"{one.hidden} of {one.events}",
            }
            for one in hidden
        ]
        streams.write(rows, streams.form_for(output, sys.stdout), HIDDEN_COLUMNS)
        whole = sum(one.is_whole for one in hidden)
        some = "1 finding" if whole == 1 else f"{whole:,} findings"
        less = len(hidden) - whole
        rest = f", of {less:,} others a part" if less else ""
        _say(f"{some} of the last 30 days would be gone{rest}.")
        if examined.row:
            _say(_binding(examined.row))
        why = reason.strip() or (examined.row.reason if examined.row else "")
        return _deployed(tuner, examined, file or "the filter", why, yes)


def remove(
    id: str,
    *,
    reason: Reason = "",
    yes: Annotated[bool, Parameter(negative=())] = False,
    config: ConfigFile = None,
) -> int:
    """Take a filter back that was added here.

    Example: cityward filter remove 8d1c0a52-5b1f-4b6e-9a5e-1f0d6a6f0c11 --reason "the work is over"

    Args:
        id: Of the filter.
        reason: Why.
        yes: Do it; otherwise it is only said.
        config: Settings file; otherwise the first one found counts.
    """
    return revert(id, to=0, reason=reason, yes=yes, config=config)


def deploy(
    file: str,
    *,
    samples: str = "",
    reason: Reason = "",
    yes: Annotated[bool, Parameter(negative=())] = False,
    config: ConfigFile = None,
) -> int:
    """Let a rule count at this node, in the place of the one with its id.

    It must be free of faults, its samples green, and nothing that was found right may pass in
    silence because of it; otherwise it leaves with 6. The version is sealed, and the running node
    takes it up within a second. Example: cityward rule deploy mine.yml --reason "fewer polls" --yes

    Args:
        file: One Sigma document.
        samples: Its samples; otherwise those beside the file, or those it has already.
        reason: Why; it stands in the history.
        yes: Do it; otherwise it is only said what would be.
        config: Settings file; otherwise the first one found counts.
    """
    from detectors.sigma.samples import samples_file

    path = Path(file)
    beside = samples_file(path)
    given = _read(samples) if samples else _read(str(beside)) if beside.is_file() else ""
    with _tuner(config) as (tuner, _):
        examined = tuner.examine(_read(file), given, file=file, now=now_utc())
        return _deployed(tuner, examined, file, reason, yes)


def revert(
    id: str,
    *,
    to: int = 0,
    reason: Reason = "",
    yes: Annotated[bool, Parameter(negative=())] = False,
    config: ConfigFile = None,
) -> int:
    """Go back to an older version of a rule or filter.

    Example: cityward rule revert ID --to 3 --reason "it missed the crane"

    Args:
        id: Of the document.
        to: Number of the version; without it the deployed one is taken back, so that the file with
            this id, if there is one, counts again.
        reason: Why; it stands in the history.
        yes: Do it; otherwise it is only said.
        config: Settings file; otherwise the first one found counts.
    """
    with _tuner(config) as (tuner, db):
        if not yes:
            versions = db.rulebook.history(id)
            if not versions:
                raise UsageError(f"{id} was never deployed here", "", "See rule history.")
            if to and all(one.number != to for one in versions):
                raise UsageError(f"it has no version {to}", id, "See rule history.")
            what = f"version {to} would count again" if to else "it would be taken back"
            _say(f"{versions[0].title}: {what}. Nothing has changed; say it with --yes.")
            return 0
        tuner.revert(id, to, who(), reason, now_utc())
    _say("Done; a running node takes it up within a second.")
    return 0


def history(id: str, *, config: ConfigFile = None, output: Output = None) -> int:
    """Show the versions of a rule or filter that were deployed here, newest first.

    Example: cityward rule history 8d1c0a52-5b1f-4b6e-9a5e-1f0d6a6f0c11

    Args:
        id: Of the document.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; with json the whole text.
    """
    with _tuner(config) as (_, db):
        versions = db.rulebook.history(id)
    if not versions:
        raise UsageError(f"{id} was never deployed here", "", "Rules of files have their own.")
    form = streams.form_for(output, sys.stdout)
    rows: list[dict[str, Any]] = [
        {
            "version": one.number,
            "time": one.time,
            "by": one.by,
            "reason": one.reason,
            "state": _state(one.is_whole, one.text, is_newest=place == 0),
            **({} if form == "table" else {"text": one.text}),
        }
        for place, one in enumerate(versions)
    ]
    streams.write(rows, form, VERSION_COLUMNS if form == "table" else (*VERSION_COLUMNS, "text"))
    return 0


def protected(*, config: ConfigFile = None, output: Output = None) -> int:
    """List the findings whose events no filter and no change of a rule may silence.

    A verdict of true positive protects a finding; so does a sample that another operator let out,
    unless it is set aside. Example: cityward rule protected

    Args:
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv.
    """
    with _tuner(config) as (tuner, db):
        titles = {one.id: one.analytic.name for one in tuner.rules.speaking()}
        released, now = {one.finding: one for one in reversed(db.samples.releases())}, now_utc()
        rows: dict[str, dict[str, Any]] = {}
        for one in db.rulebook.protected():
            if one.operator:
                continue
            out = released.get(one.finding)
            row = rows.setdefault(
                one.finding,
                {
                    "rule": one.rule, "title": titles.get(one.rule, ""), "finding": one.finding,
                    "events": 0, "from": "here", "by": one.by, "time": one.time,
                    "state": _released(out, now),
                },
            )  # fmt: skip
            row["events"] += 1
        for sample in db.samples.foreign():
            rows[sample.id] = {
                "rule": sample.rule, "title": titles.get(sample.rule, ""), "finding": sample.id,
                "events": sample.count, "from": sample.operator, "by": sample.operator,
                "time": sample.received,
                "state": _foreign_state(sample),
            }  # fmt: skip
    streams.write([*rows.values()], streams.form_for(output, sys.stdout), PROTECTED_COLUMNS)
    return 0


def _released(out: Release | None, now: datetime) -> str:
    if out is None:
        return ""
    if out.is_over(now):
        return f"was let out until {out.expires:%Y-%m-%d}: {out.id}"
    return f"{RELEASED[out.state]}: {out.id}"


def _foreign_state(sample: Foreign) -> str:
    if not sample.is_aside:
        return "counts"
    more = ", with all of this operator" if sample.is_operator_aside else ""
    return f"set aside by {sample.person}{more}"


def _binding(row: FilterRow) -> str:
    """In words: which rules a filter tunes, and what else does not get what it hides."""
    rules, above = (", ".join(title for _, title in one) for one in (row.rules, row.heard_by))
    either = f" What builds on it does not get what is hidden either: {above}." if above else ""
    return f"It binds to {rules or 'every rule of its log source'}.{either}"


def _deployed(tuner: Tuner, one: Examined, file: str, reason: str, yes: bool) -> int:
    def say(what: object) -> None:
        _say(str(what).replace(f"rulebook/{one.document}.yml", file))

    for problem in one.problems:
        say(problem)
    for outcome in one.outcomes:
        _say(f"{'ok' if outcome.passed else 'FAILED':<7} {outcome.kind}: {outcome.name}")
    for why in one.reasons():
        say(f"No: {why}")
    if one.reasons():
        return 6
    if not yes:
        _say("Nothing has changed; let it count with --yes.")
        return 0
    number = tuner.deploy(one, who(), reason, now_utc())
    _say(f"{one.title} counts as version {number}; a running node takes it up within a second.")
    return 0


def _state(is_whole: bool, text: str, *, is_newest: bool) -> str:
    if not is_whole:
        return "changed past us: does not count"
    if not text:
        return "taken back"
    return "counts" if is_newest else ""


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", file, "Check the path.") from error


def _say(line: str) -> None:
    print(visible(line), file=sys.stderr)


@contextmanager
def _tuner(config: str | None) -> Iterator[tuple[Tuner, NodeDb]]:
    from siem.tuning import Tuner

    settings = settings_with_state(config)
    with closing(assembly.db_of(settings, from_settings(settings), now_utc)) as db:
        yield Tuner(settings, db), db
