"""Cases from outside that the Sigma engine has to hold: rules, events, and how many must match.

A case is a line of JSON, see `Case`. Events are routed as a node does it. They come in the order of
the case; time passes as they say, and after the last one all that was waited for is over. A rule
counts once for each event it matches, a correlation once for each event with which its condition
holds, an absence once for each trigger that stayed alone.

A case of which nothing could be run has failed, whatever it wanted.
"""

from __future__ import annotations

import gzip
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec

from cityward import Event, Finding, InputError, LogSource, Record, RuleError
from detectors.sigma.engine import Engine
from detectors.sigma.jsonlines import BROKEN
from detectors.sigma.load import load_folder, load_text
from detectors.sigma.rule import RuleSet

TIME = datetime(2026, 1, 5, tzinfo=UTC)
END = datetime.max.replace(tzinfo=UTC)
"""When nothing is waited for any more."""

RUNS = "a case that can be run"
COUNTS = ("expected_match_count", "corrected_match_count")

Count = Annotated[int, msgspec.Meta(ge=0)]


class Parts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A log source as a Sigma rule writes it."""

    category: str | None = None
    product: str | None = None
    service: str | None = None
    definition: str | None = None
    """For people; nothing is routed by it."""

    def logsource(self) -> LogSource:
        """The same for an event."""
        return LogSource(self.category or "", self.product or "", self.service or "")


class Case(msgspec.Struct, frozen=True):
    """What a line says; whoever made it may say more there."""

    events: list[dict[str, Any]]
    """`@timestamp` says when one happened; those without one happen all at the same time."""
    case: str = ""
    """What it is called."""
    rule: str | None = None
    """YAML of the rule, and of what it builds on."""
    rule_path: str = ""
    """Or a file, or a folder, below the folder of rules."""
    rule_id: str | None = None
    """Whose findings are counted; None: of all rules of the case."""
    logsource: Parts | None = None
    """Of the events; otherwise that of the first rule."""
    expected_match_count: Count | None = None
    """None: at least one."""
    corrected_match_count: Count | None = None
    """What counts instead, where the source is known to be wrong."""
    placeholders: dict[str, list[str]] = {}
    """Lists by name, for `%name%`."""

    @property
    def wanted(self) -> int | None:
        """How many must match; None: at least one."""
        corrected = self.corrected_match_count
        return self.expected_match_count if corrected is None else corrected


class Failed(msgspec.Struct, frozen=True):
    """A case that came to something else than it should."""

    case: str
    where: str
    """File and line."""
    wanted: str
    found: str
    """How many matched, or why the case could not be run."""


def conformance(cases: Path, rules: Path | None = None) -> tuple[int, list[Failed]]:
    """Run cases: how many there are, and which failed.

    Args:
        cases: The file, which may be packed (`.gz`).
        rules: Folder of the rules; otherwise `rules_under_test` or the folder of the file.

    Raises:
        InputError: the file cannot be read, or has no case; or there is no such folder.
    """
    if rules is not None and not rules.is_dir():
        raise InputError("there is no such folder", str(rules), "Check the path of --rules.")
    beside = cases.parent / "rules_under_test"
    folder = rules or (beside if beside.is_dir() else cases.parent)
    tried = 0
    failed: list[Failed] = []
    for number, line in _lines(cases):
        tried += 1
        failed += _failed(line, f"{cases}:{number}", folder)
    if not tried:
        raise InputError("there is no case in it", str(cases), "Write one JSON object a line.")
    return tried, failed


def _lines(cases: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, with their number."""
    try:
        with gzip.open(cases) if cases.suffix == ".gz" else cases.open("rb") as file:
            for number, line in enumerate(file, 1):
                if said := line.removeprefix(BOM_UTF8).strip():
                    yield number, said
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read: {why}", str(cases), "Check it.") from error


def _failed(line: bytes, where: str, folder: Path) -> Iterator[Failed]:
    name = ""
    try:
        said = msgspec.json.decode(line, type=dict[str, Any])
        name = str(said.get("case", ""))
        _check_count(said)
        case = msgspec.convert(said, Case)
        found = _matches(case, folder)
    except (InputError, RuleError) as error:
        yield Failed(name, where, RUNS, f"{error.what} ({error.where})")
    except (msgspec.ValidationError, OSError, *BROKEN) as error:
        yield Failed(name, where, RUNS, str(error))
    else:
        wanted = case.wanted
        if found != wanted if wanted is not None else found < 1:
            yield Failed(name, where, "at least 1" if wanted is None else str(wanted), str(found))


def _check_count(said: Mapping[str, Any]) -> None:
    """Refuse what may be a misspelt count: without one, one match would be enough.

    Raises:
        InputError: there is none, and a member that we do not know.
    """
    known = {field.name for field in msgspec.structs.fields(Case)}
    if said.keys().isdisjoint(COUNTS) and (others := sorted(said.keys() - known)):
        what = f"there is no {COUNTS[0]}, and {', '.join(others)[:200]} is not known"
        raise InputError(what, "the case", "Write null for at least one.")


def _matches(case: Case, folder: Path) -> int:
    """How many match.

    Raises:
        InputError: the case cannot be run.
        RuleError: its rule cannot be loaded, or does not run.
    """
    rules = _rules_of(case, folder)
    given = case.logsource.logsource() if case.logsource else LogSource()
    logsource = rules.rules[0].logsource if given == LogSource() else given
    engine = Engine(rules, case.placeholders)
    found = [*_found(engine, [*_events(case.events, logsource)])]
    _check_ran(engine, case.rule_id)
    return sum(one.count for one in found if case.rule_id in (None, one.analytic.id))


def _rules_of(case: Case, folder: Path) -> RuleSet:
    file = folder / case.rule_path
    if case.rule is not None:
        rules, name = load_text(case.rule, "rule"), "rule"
    elif not case.rule_path:
        raise InputError("there is neither rule nor rule_path", "the case", "Write one of them.")
    elif not file.exists():
        raise InputError("there is no such rule", str(file), "Name its folder with --rules.")
    else:
        rules, name = load_folder(file), str(file)
    for refused in rules.refused:
        raise refused
    ids = [one.id for one in rules.speaking()]
    if not ids:
        raise RuleError("there is no rule in it", name, "Write one.")
    if case.rule_id is not None and case.rule_id not in ids:
        raise RuleError(f"no rule in it has the id {case.rule_id}", name, "Mend rule_id.")
    return rules


def _events(events: Sequence[Mapping[str, Any]], logsource: LogSource) -> Iterator[Event]:
    record = Record(b"", "case", 0, TIME)
    for number, fields in enumerate(events):
        try:
            time = _time(fields.get("@timestamp"))
        except ValueError:
            what = f"{fields['@timestamp']!r} is no time"
            place = f"@timestamp of events[{number}]"
            raise InputError(what, place, "Write 2026-01-05T10:00:00Z.") from None
        yield Event(time, logsource, dict(fields), record, number)


def _time(said: object) -> datetime:
    time = TIME if said is None else datetime.fromisoformat(str(said))
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _found(engine: Engine, events: Sequence[Event]) -> Iterator[Finding]:
    now = datetime.min.replace(tzinfo=UTC)
    for event in events:
        yield from engine.detect([event])
        now = max(now, event.time)
        yield from engine.tick(now)
    for _ in engine.rules.absences:  # each may wait for another one
        yield from engine.tick(END)
    yield from engine.leftover()


def _check_ran(engine: Engine, wanted: str | None) -> None:
    """Refuse a count that says nothing.

    Raises:
        RuleError: a rule was not evaluated, or failed on an event.
    """
    for one in engine.states():
        if wanted in (None, one.id) and one.state != "on":
            raise RuleError(f"{one.title} is {one.state}: {one.reason}", one.file, "Mend it.")
        if one.faults:
            raise RuleError(f"{one.title} fails on an event", one.file, "Mend it.")
