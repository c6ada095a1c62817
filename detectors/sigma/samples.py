"""Samples of a rule: `x.test.yml` beside `x.yml`, and what they prove.

    placeholders: {ot_writers: [10.1.0.5]}       # values of %name% for every case; may be missing
    cases:
      - name: a host that is no writer sets a register
        kind: must match                         # must match | near miss | ordinary
        events:                                  # flat names of the field table
          - {"@timestamp": 2026-01-05T10:00:00Z, source.ip: 10.1.0.9, ot.operation: write}
        expect:
          count: 1                               # findings of this rule, repeats included
          fields: {source.ip: 10.1.0.9}          # on one of its findings
          sentence: "10.1.0.9 wrote"             # part of its description
      - name: the same from the wire
        kind: must match
        collector: packets                       # name of an entry point in cityward.collectors
        frames:                                  # Ethernet, hexadecimal, blanks allowed
          - {time: 2026-01-05T10:00:00Z, hex: "0050 56c0 …"}
        expect: {count: 1}
      - name: a login by key
        kind: ordinary
        collector: sshd
        records: ["Jan  5 10:00:00 gw sshd[1]: Accepted publickey for …"]

A case has `events`, or a `collector` with `records` (lines; text) or `frames`. An event's log
source is the rule's, or the case's `logsource: {category: …, product: …, service: …}`, or its own
`cw.logsource.category` …; without `@timestamp` the events are one second apart. `time` of a frame
may be missing too. `until: 2026-01-05T10:10:00Z` lets time pass after the last event, for absences.
A case may have `placeholders` of its own, which replace those of the file by name.
`expect.count` is 1 for *must match* and 0 otherwise, unless it is given.

Detectors know no collectors: who runs a raw case hands a function in (`Collect`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from cityward import documents
from cityward.errors import RuleError
from cityward.event import Event, LogSource, Record
from cityward.finding import Finding
from detectors.sigma.engine import Engine
from detectors.sigma.load import SAMPLES_SUFFIX, read_document
from detectors.sigma.matchers import Placeholders
from detectors.sigma.rule import Rule, RuleSet, Speaking

FIRST_TIME = datetime(2026, 1, 5, 10, tzinfo=UTC)
"""When a sample begins that does not say it: a Monday morning."""

WANTED = (("must match", 2), ("near miss", 1), ("ordinary", 2))
"""How many cases of a kind a rule has at least; one *must match* is raw."""

Kind = Literal["must match", "near miss", "ordinary"]
EngineFactory = Callable[[Placeholders], Engine]
"""Makes a fresh engine with all rules and these values of placeholders."""


class Frame(msgspec.Struct, frozen=True):
    """One Ethernet frame of a sample."""

    data: bytes
    time_s: float
    """Seconds since 1970."""


class Collect(Protocol):
    """Runs raw records through a collector; one of both is empty."""

    def __call__(
        self, collector: str, records: Sequence[bytes], frames: Sequence[Frame]
    ) -> Sequence[Event]:
        """The events the collector makes of them, its `end()` included."""
        ...


class Expect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a case must come to."""

    count: int | None = None
    fields: dict[str, Any] = {}
    sentence: str = ""


class _RawFrame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hex: str
    time: datetime | None = None


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One case of a sample file."""

    name: str
    kind: Kind
    events: list[dict[str, Any]] = []
    logsource: LogSource | None = None
    collector: str = ""
    records: list[str] = []
    frames: list[_RawFrame] = []
    until: datetime | None = None
    placeholders: dict[str, list[str]] = {}
    expect: Expect = Expect()

    @property
    def is_raw(self) -> bool:
        """True if its records run through a collector."""
        return bool(self.collector)

    @property
    def count(self) -> int:
        """How many findings the rule must give."""
        given = self.expect.count
        return given if given is not None else int(self.kind == "must match")


class Samples(msgspec.Struct, frozen=True):
    """The cases of one rule."""

    cases: tuple[Case, ...]
    file: str


class Outcome(msgspec.Struct, frozen=True):
    """What a case came to."""

    name: str
    kind: Kind
    problems: tuple[str, ...] = ()
    """Empty if all is as expected."""

    @property
    def passed(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems


def samples_file(rule: Path) -> Path:
    """Where the samples of a rule stand."""
    return rule.with_name(rule.stem + SAMPLES_SUFFIX)


def read_samples(file: Path) -> Samples:
    """Read a sample file.

    Raises:
        RuleError: it is not there, or something in it is wrong; with its line.
    """
    try:
        return parse_samples(file.read_bytes(), str(file))
    except OSError as error:
        raise RuleError("there are no samples", str(file), "Write some.") from error


def parse_samples(text: bytes | str, file: str = "<samples>") -> Samples:
    """Read samples; the same errors as `read_samples`."""
    read = documents.parse(text, file)
    if len(read) != 1 or not isinstance(read[0].value, dict):
        raise RuleError("a sample file is one mapping", file, "Write `cases:`.")
    return _samples(read[0])


def _samples(document: documents.Document) -> Samples:
    value = document.value
    if unknown := set(value) - {"cases", "placeholders"}:
        what = sorted(map(str, unknown))[0]
        raise RuleError(f"{what!r} is not known here", document.where(what), "Mend the samples.")
    shared = value.get("placeholders", {})
    cases = []
    for number, raw in enumerate(value.get("cases") or []):
        where = document.where("cases", number)
        try:
            own = {**shared, **raw.get("placeholders", {})}
            case = msgspec.convert({**raw, "placeholders": own}, Case)
        except (msgspec.ValidationError, TypeError, AttributeError) as error:
            raise RuleError(f"case {number + 1}: {error}", where, "Mend the samples.") from error
        _complete(case, where)
        cases.append(case)
    return Samples(tuple(cases), document.file)


def _complete(case: Case, where: str) -> None:
    ways = [name for name in ("events", "records", "frames") if getattr(case, name)]
    if len(ways) != 1:
        what = " and ".join(ways) or "neither events nor records nor frames"
        raise RuleError(f"case {case.name!r} has {what}", where, "Give one of them.")
    if case.is_raw is (ways == ["events"]):
        raise RuleError(
            f"case {case.name!r}: records and frames need a collector, events have none",
            where,
            "Name the collector.",
        )


def lacks(samples: Samples, *, has_records: bool = True) -> list[str]:
    """What is missing for the samples to be a proof, in words.

    Args:
        samples: Of one document.
        has_records: Records are behind its events; false for what the node itself says.
    """
    found = []
    for kind, least in WANTED:
        count = sum(case.kind == kind for case in samples.cases)
        if count < least:
            found.append(f"{count} of at least {least} cases of kind {kind!r}")
    is_raw = any(case.kind == "must match" and case.is_raw for case in samples.cases)
    if has_records and not is_raw:
        found.append("no 'must match' case is raw (records or frames through a collector)")
    return found


def run_case(
    case: Case,
    rule: Speaking,
    engine_factory: EngineFactory,
    collect: Collect | None = None,
) -> Outcome:
    """Run one case on a fresh engine.

    Args:
        case: The case.
        rule: Whose findings are counted.
        engine_factory: Makes the engine.
        collect: Runs raw records through a collector; None passes raw cases over as failed.
    """
    try:
        events = events_of(case, rule, collect)
    except (RuleError, ValueError, KeyError) as error:
        return Outcome(case.name, case.kind, (f"the events cannot be made: {error}",))
    return _judge(case, _findings(case, rule, engine_factory(case.placeholders), events))


def _findings(case: Case, rule: Speaking, engine: Engine, events: Sequence[Event]) -> list[Finding]:
    found = list(engine.detect(events))
    if case.until is not None:
        found += engine.tick(_aware(case.until))
    return [one for one in found if one.analytic.id == rule.id]


def _judge(case: Case, findings: Sequence[Finding]) -> Outcome:
    problems = []
    count = sum(one.count for one in findings)
    if count != case.count:
        problems.append(f"{count} findings, expected {case.count}")
    if findings and case.expect.fields:
        faults = [list(_differences(case.expect.fields, one)) for one in findings]
        if all(faults):
            problems += faults[0]
    if findings and not any(case.expect.sentence in one.description for one in findings):
        problems.append(f"the sentence is {findings[0].description!r}")
    return Outcome(case.name, case.kind, tuple(problems))


def _differences(wanted: Mapping[str, Any], finding: Finding) -> Iterator[str]:
    seen = {**finding.events[-1].fields, **finding.fields} if finding.events else finding.fields
    for name, value in wanted.items():
        if seen.get(name) != value:
            yield f"{name} is {seen.get(name)!r}, expected {value!r}"


def events_of(case: Case, rule: Speaking, collect: Collect | None = None) -> Sequence[Event]:
    """The events of a case, collected if it is raw.

    Raises:
        ValueError: a frame is no hexadecimal, or nobody can collect.
    """
    if not case.is_raw:
        usual = case.logsource or (rule.logsource if isinstance(rule, Rule) else LogSource())
        return [_event(raw, number, usual) for number, raw in enumerate(case.events)]
    if collect is None:
        raise ValueError(f"nobody can run the collector {case.collector}")
    frames = [
        Frame(bytes.fromhex(one.hex), _aware(one.time or _nth(number)).timestamp())
        for number, one in enumerate(case.frames)
    ]
    return collect(case.collector, [one.encode() for one in case.records], frames)


def _event(raw: Mapping[str, Any], number: int, usual: LogSource) -> Event:
    given = dict(raw)
    time = _time(given.pop("@timestamp", _nth(number)))
    parts = {
        part: str(given.pop(f"cw.logsource.{part}", getattr(usual, part)))
        for part in ("category", "product", "service")
    }
    return Event(time, LogSource(**parts), given, Record(b"", "sample", number, time))


def _nth(number: int) -> datetime:
    return FIRST_TIME + timedelta(seconds=number)


def _time(value: Any) -> datetime:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return _aware(value)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    raise ValueError(f"@timestamp is {value!r}")


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


# --- Mutation check ----------------------------------------------------------------------------

ALWAYS = {"@timestamp|exists": True}
"""What stands for a selection whose only line was dropped: every event has a time."""


def surviving_mutants(
    samples: Samples, rule: Rule, rules: RuleSet, collect: Collect | None = None
) -> list[str]:
    """Drop each line of each selection in turn; name those whose loss no case notices."""
    tried = tried_mutants(samples, rule, rules, collect)
    return [name for name, is_noticed in tried if not is_noticed]


def tried_mutants(
    samples: Samples, rule: Rule, rules: RuleSet, collect: Collect | None = None
) -> Iterator[tuple[str, bool]]:
    """Drop each line of each selection in turn; which, and whether a case notices its loss."""
    given = [(case, events_of(case, rule, collect)) for case in samples.cases]
    for name, mutant in mutants(rule):
        yield name, _is_noticed(given, mutant, rules)


def _is_noticed(
    given: Sequence[tuple[Case, Sequence[Event]]], mutant: Rule, rules: RuleSet
) -> bool:
    """One engine serves cases with the same lists: a rule on single events remembers none."""
    changed = tuple(mutant if one.id == mutant.id else one for one in rules.rules)
    for lists, cases in groupby(given, key=lambda one: one[0].placeholders):
        engine = Engine(msgspec.structs.replace(rules, rules=changed), lists)
        for case, events in cases:
            if not _judge(case, _findings(case, mutant, engine, events)).passed:
                return True
    return False


def mutants(rule: Rule) -> Iterator[tuple[str, Rule]]:
    """The rule with one line of one selection missing, and which."""
    detection = rule.document.value["detection"]
    place = (rule.document.file, rule.document.lines)
    for name, selection in detection.items():
        if name == "condition":
            continue
        for line, changed in _dropped(selection):
            value = {**rule.document.value, "detection": {**deepcopy(detection), name: changed}}
            mutant = read_document(documents.Document(value, *place))
            if isinstance(mutant, Rule):
                filters = {"filters": rule.filters, "needs": mutant.needs | _filter_needs(rule)}
                # The id stays even where the document has none and it is made from the content.
                yield (
                    f"{name}: {line}",
                    msgspec.structs.replace(mutant, analytic=rule.analytic, **filters),
                )


def _filter_needs(rule: Rule) -> frozenset[str]:
    return frozenset().union(*(one.needs for one in rule.filters))


def _dropped(selection: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(selection, dict):
        for key in selection:
            yield str(key), {k: v for k, v in selection.items() if k != key} or ALWAYS
    elif isinstance(selection, list) and any(isinstance(one, (dict, list)) for one in selection):
        for number, one in enumerate(selection):
            for line, changed in _dropped(one):
                rest = [*selection[:number], changed, *selection[number + 1 :]]
                yield f"{line} (alternative {number + 1})", rest
    else:
        yield "keywords", ALWAYS
