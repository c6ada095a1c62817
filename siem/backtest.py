"""What a rule would have said of the events that are kept, and what the deployed version says.

Files of events are asked one after the other, in bounded memory. A file is only read if a rule can
match something in it (`siem/pushdown.py`), and of its rows only those that match are counted, by
day and by asset. Correlations and absences get the rows of their rules in the order in which they
came, into the same windows as live.

References:
    Fast path, part C, "Backtest".
"""

from __future__ import annotations

import heapq
import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from cityward.errors import InputError, TransientError
from cityward.event import Event, LogSource, Record
from cityward.finding import Finding
from detectors.sigma.correlation import Correlator
from detectors.sigma.engine import Engine
from detectors.sigma.matchers import Placeholders
from detectors.sigma.rule import Correlation, Rule, RuleSet, Speaking
from detectors.sigma.sentence import fields_of
from siem.pushdown import LITERALS_MAX, SOURCE, Pushed, Question, columns_of
from siem.samples import alone
from siem.store.archive import DamagedError, Look, Looking, quoted, reading, whole_row
from siem.store.distinct import Column, Raw, Values
from siem.store.protocol import TIME_MIN, Document, Range

log = logging.getLogger(__name__)

Group = tuple[tuple[str, str], ...]
R = TypeVar("R", bound="_Run")

SAMPLES_MAX = 10
"""Of what would have been said, of what is new and of what is gone, so many are shown."""
ASSETS_MAX = 10_000
"""Assets counted one by one; the others together."""
FINDINGS_MAX = 100_000
"""Findings of correlations that are kept to compare two versions."""
OTHERS = "(others)"
NOBODY = "(no asset)"
ATTEMPTS = 3
"""How often it begins anew because events were tidied under it."""
TICK = timedelta(seconds=0.5)
"""How often a node tells its windows the time."""
PAST = timedelta(hours=1)
"""An event that came so long after its time was read from a file of the past."""

ASSET_FIELDS = (
    "cw.asset.asset_id",
    "phys.point",
    "phys.track",
    "host.name",
    "destination.ip",
    "source.ip",
    "observer.name",
)
"""Whom an event is about, most telling first."""
_IDENTITY = (
    "@timestamp",
    "event.ingested",
    "cw.operator",
    "cw.record.source",
    "cw.record.place",
    "cw.record.number",
)
_NOT_FIELDS = ("@timestamp", "event.id")
"""An id is only made when an event is read: live, detectors see none."""


class Counts(msgspec.Struct):
    """Findings of one day, of one asset, or of all."""

    would: int = 0
    """What the rule would have said."""
    deployed: int = 0
    """What the deployed version would have said."""
    new: int = 0
    gone: int = 0

    def add(self, other: Counts) -> None:
        """Count what is counted there."""
        self.would += other.would
        self.deployed += other.deployed
        self.new += other.new
        self.gone += other.gone


class Said(msgspec.Struct, frozen=True):
    """One finding that would have been."""

    time: datetime
    asset: str
    sentence: str
    event: str
    """Id of the event that decides it."""


class Progress(msgspec.Struct, frozen=True):
    """How far it has come."""

    files: int
    files_all: int
    events: int
    """Looked at so far."""
    found: int


Compared = Literal["nothing", "deployed", "no version", "idle version"]
"""The deployed version, or why there is none: nobody asked, none is there, it is not evaluated."""


class Backtest(msgspec.Struct, frozen=True):
    """What came out for one rule."""

    rule: str
    """UUID."""
    title: str
    kind: Literal["rule", "correlation", "absence"]
    since: datetime
    until: datetime
    total: Counts
    days: list[tuple[str, Counts]]
    """UTC days, oldest first."""
    assets: list[tuple[str, Counts]]
    """Most first."""
    samples: list[Said]
    """The newest; `new` and `gone` too."""
    new: list[Said]
    gone: list[Said]
    events: int
    """Events looked at."""
    files: int
    unread: int
    """Files of which it was known beforehand that nothing in them matches."""
    against: Compared
    """What it was compared with."""
    is_whole: bool
    """False: it was stopped, and says only what it had come to."""
    first: datetime | None = None
    """Time of the oldest event looked at: older ones are not kept, or not of the span."""
    lacking: list[str] = []
    """What should have been looked at and could not be: damaged files, batches that are gone."""
    idle: str = ""
    """Why it cannot be evaluated here."""


class TunedOut(msgspec.Struct, frozen=True):
    """What the filters of one rule hide."""

    matches: tuple[int, ...]
    """Of each of its filters, in their order: what the rule would match without any, less what it
    matches with just this one."""
    is_whole: bool
    first: datetime | None
    lacking: list[str]
    idle: str
    """These four as in `Backtest`."""


Tell = Callable[[Progress], None]


def backtest(
    looking: Looking,
    rule: str,
    rules: RuleSet,
    *,
    span: Range,
    now: datetime,
    placeholders: Placeholders,
    against: RuleSet | None = None,
    tell: Tell = lambda progress: None,
    stop: threading.Event | None = None,
) -> Backtest:
    """Say what a rule would have said; it may run in a thread beside others.

    Args:
        looking: The events; for this thread alone, and good for several rules.
        rule: Id of the rule, correlation or absence.
        rules: Where it stands, with the filters and base rules it has.
        span: Of event time.
        now: The node's time: up to here absences are decided.
        placeholders: Values of `%name%`, today's.
        against: What is deployed; None: no comparison.
        tell: Is told after each file.
        stop: Set by somebody who does not want to wait longer.

    Raises:
        KeyError: no rule has this id.
        TransientError: events were tidied under it again and again.
        InputError: a correlation says more than can be compared.
    """
    one = _of(rules, rule)
    if one is None:
        raise KeyError(rule)
    deployed = None if against is None else _of(against, rule)
    draft = _Side(one, rules, placeholders)
    sides = [draft]
    compared: Compared = "nothing" if against is None else "no version"
    if deployed is not None and against is not None:
        before = _Side(deployed, against, placeholders)
        compared = "idle version" if before.idle else "deployed"
        sides += [] if before.idle else [before]
    tally = _Tally()
    if not draft.idle:

        def begun() -> _Run:
            run = _Run(sides, span, now, _Tally(), tell, stop or threading.Event())
            run.is_compared = against is not None
            return run

        tally = _gone_through(begun, looking).tally
    return Backtest(
        rule=one.id,
        title=one.analytic.name,
        kind=_kind(one),
        since=span.since,
        until=span.until,
        total=tally.total,
        days=sorted(tally.days.items()),
        assets=sorted(tally.assets.items(), key=lambda pair: (-pair[1].would, pair[0])),
        samples=tally.newest("would"),
        new=tally.newest("new") if against is not None else [],
        gone=tally.newest("gone"),
        events=tally.events,
        files=tally.files,
        unread=tally.unread,
        against=compared,
        is_whole=tally.is_whole,
        first=tally.first,
        lacking=tally.lacking,
        idle=draft.idle,
    )


def tuned_out(
    looking: Looking,
    rule: Rule,
    *,
    span: Range,
    placeholders: Placeholders,
    stop: threading.Event,
) -> TunedOut:
    """Count what each filter of a rule hides of the events that are kept, in one way through them.

    Args:
        looking: The events; for this thread alone.
        rule: With its filters; each counts until it expires.
        span: Of event time.
        placeholders: Values of `%name%`, today's.
        stop: Set by somebody who does not want to wait longer.

    Raises:
        TransientError: events were tidied under it again and again.
    """
    with_each = [(), *((one,) for one in rule.filters)]
    variants = [msgspec.structs.replace(rule, filters=filters) for filters in with_each]
    sides = [_Side(one, RuleSet((one,)), placeholders) for one in variants]
    idle = next((side.idle for side in sides if side.idle), "")
    if idle:
        return TunedOut((), is_whole=True, first=None, lacking=[], idle=idle)

    def begun() -> _Hiding:
        return _Hiding(sides, span, span.until, _Tally(), lambda progress: None, stop)

    run = _gone_through(begun, looking)
    tally = run.tally
    return TunedOut(tuple(run.matches), tally.is_whole, tally.first, tally.lacking, "")


def _gone_through(begun: Callable[[], R], looking: Looking) -> R:
    """One way through the files; begun anew if events were tidied under it."""
    for attempt in range(ATTEMPTS):
        run = begun()
        try:
            with Look(looking) as look:
                run.through(looking, look)
            break
        except (TransientError, FileNotFoundError) as error:
            if attempt == ATTEMPTS - 1:
                what = "events were tidied while they were read"
                raise TransientError(what, str(error)[:200], "Ask again.") from error
    return run


def _of(rules: RuleSet, rule: str) -> Speaking | None:
    return next((one for one in rules.speaking() if one.id == rule), None)


def _kind(one: Speaking) -> Literal["rule", "correlation", "absence"]:
    if isinstance(one, Rule):
        return "rule"
    return "correlation" if isinstance(one, Correlation) else "absence"


class _Side:
    """One version of a rule, with what it builds on."""

    def __init__(self, one: Speaking, rules: RuleSet, placeholders: Placeholders) -> None:
        self.one = one
        self.rules = alone(one, rules)
        self.engine = Engine(self.rules, placeholders)
        states = {state.id: state for state in self.engine.states()}
        self.idle = "" if states[one.id].state == "on" else states[one.id].reason
        self.pushed: list[Pushed] = []
        if not self.idle:
            self.pushed = [Pushed(rule, placeholders) for rule in self.rules.rules]

    @property
    def lead(self) -> timedelta:
        """How long before a finding the first of its events may be."""
        windows = sum(one.timespan_s for one in self.rules.correlations)
        waits = sum(one.before_s + one.within_s for one in self.rules.absences)
        return timedelta(seconds=windows + waits)

    @property
    def fields(self) -> frozenset[str]:
        """What correlations and absences need of an event, and what their sentence names."""
        named = set(fields_of(self.one.own.sentence))
        for one in self.rules.correlations:
            named.update(one.group_by, one.field)
            named.update(*(each.values() for each in one.aliases.values()))
        for absence in self.rules.absences:
            named.update(absence.group_by)
        return frozenset(column.field for name in named for column in columns_of(name))


class _Tally:
    """What was found so far."""

    def __init__(self) -> None:
        self.total = Counts()
        self.days: dict[str, Counts] = {}
        self.assets: dict[str, Counts] = {}
        self.said: dict[str, list[Said]] = {"would": [], "new": [], "gone": []}
        self.events = self.files = self.unread = 0
        self.is_whole = True
        self.first: datetime | None = None
        self.lacking: list[str] = []

    def count(self, counts: Counts, day: str, asset: str) -> None:
        if asset not in self.assets and len(self.assets) >= ASSETS_MAX:
            asset = OTHERS
        self.total.add(counts)
        self.days.setdefault(day, Counts()).add(counts)
        self.assets.setdefault(asset, Counts()).add(counts)

    def newest(self, kind: str) -> list[Said]:
        return sorted(self.said[kind], key=lambda one: one.time, reverse=True)[:SAMPLES_MAX]


class _Run:
    """One way through the files."""

    def __init__(
        self,
        sides: Sequence[_Side],
        span: Range,
        now: datetime,
        tally: _Tally,
        tell: Tell,
        stop: threading.Event,
    ) -> None:
        self._sides = sides
        self._span = span
        lead = max(side.lead for side in sides)
        self._read = Range(max(span.since - lead, TIME_MIN) if lead else span.since, span.until)
        """A window that is open when the span begins has its earlier events."""
        self._now = now
        self.tally = tally
        self._tell = tell
        self._stop = stop
        self.is_compared = False
        """Without a comparison nothing is new."""

    def through(self, looking: Looking, look: Look) -> None:
        """Every file, until the stop: for a rule the newest first, for windows as they came."""
        paths = look.paths(self._read)
        self.tally.lacking += looking.lacking(self._read)
        is_rule = all(isinstance(side.one, Rule) for side in self._sides)
        windows = None if is_rule else [_Replay(side) for side in self._sides]
        for number, path in enumerate(reversed(paths) if is_rule else paths, 1):
            if self._stop.is_set():
                self.tally.is_whole = False
                break
            is_kept = looking.place not in path.parents
            try:
                with reading(path):
                    held = looking.span_of(path)
                    file = _File(path, look, self._read, held, self._stop, keep=is_kept)
                    self._ask(file, windows)
                    self._looked_at(held, file.count(_within(self._span, held)))
            except _StopError:
                self.tally.is_whole = False
                break
            except DamagedError as error:
                self.tally.lacking.append(f"{path} cannot be read to its end: {error}")
            self._tell(Progress(number, len(paths), self.tally.events, self.tally.total.would))
        if windows is not None:
            self._conclude(windows)

    def _ask(self, file: _File, windows: Sequence[_Replay] | None) -> None:
        if windows is None:
            self._count(file)
        else:
            self._feed(file, windows)
        file.values.save()

    def _looked_at(self, held: tuple[datetime, datetime], count: int) -> None:
        tally = self.tally
        tally.files += 1
        tally.events += count
        if count:
            begin = max(held[0], self._span.since)
            tally.first = min(begin, tally.first or begin)

    # ---- a rule

    def _count(self, file: _File) -> None:
        """The matches of a file, by day and asset, without looking at any whole."""
        would, *rest = [file.matching(side, side.pushed[0]) for side in self._sides]
        deployed = rest[0] if rest else "FALSE"
        if {would, deployed} == {"FALSE"}:
            self.tally.unread += not file.is_read
            return
        for is_would, is_deployed, day, asset, count in file.counted(would, deployed):
            counts = Counts(
                would=count * is_would,
                deployed=count * is_deployed,
                new=count * (self.is_compared and is_would and not is_deployed),
                gone=count * (is_deployed and not is_would),
            )
            self.tally.count(counts, day.isoformat(), asset)
        kinds = [("would", self._sides[0], would)]
        if len(self._sides) > 1 and would != deployed:
            kinds.append(("new", self._sides[0], f"({would}) AND ({deployed}) IS NOT TRUE"))
            kinds.append(("gone", self._sides[1], f"({deployed}) AND ({would}) IS NOT TRUE"))
        for kind, side, where in kinds:
            said = self.tally.said[kind]
            if len(said) < SAMPLES_MAX and where != "FALSE":
                said += self._shown(file, side, where)
        if len(self._sides) == 1:  # all is new, if it is compared at all
            self.tally.said["new"] = self.tally.said["would"]

    @staticmethod
    def _shown(file: _File, side: _Side, where: str) -> Iterator[Said]:
        """The newest matches, in the words of the rule; the engine says whether they are."""
        documents = {one["event.id"]: one for one in file.newest(where)}
        shown = set()
        for finding in side.engine.detect([event_of(one) for one in documents.values()]):
            event = str(finding.events[-1].record.place)
            document = documents[event]
            shown.add(event)
            time, asset = document["@timestamp"], asset_of(document)
            yield Said(time, asset, finding.description, event)
        for event in documents.keys() - shown:
            log.error("%s and %s disagree on %s.", file.path, side.one.id, event)

    # ---- correlations and absences

    def _feed(self, file: _File, windows: Sequence[_Replay]) -> None:
        conditions = [
            [file.matching(side, pushed) for pushed in side.pushed] for side in self._sides
        ]
        flat = [one for each in conditions for one in each]
        if set(flat) <= {"FALSE"}:
            self.tally.unread += not file.is_read
            return
        fields = frozenset().union(*(side.fields for side in self._sides))
        for event, held in file.events(flat, fields):
            place = 0
            for side, window in zip(self._sides, windows, strict=True):
                for pushed in side.pushed:
                    if held[place]:
                        window.see(pushed.rule.id, event)
                    place += 1

    def _conclude(self, windows: Sequence[_Replay]) -> None:
        for window in windows:
            if self.tally.is_whole:
                window.until(min(self._now, self._span.until))
        apart = max(_apart(side.one) for side in self._sides)
        ours, *others = [window.found for window in windows]
        theirs = others[0] if others else {}
        for group in dict.fromkeys([*ours, *theirs]):
            would, deployed = ours.get(group, []), theirs.get(group, [])
            self._note(would, deployed, apart, "would", "new")
            self._note(deployed, would, apart, "deployed", "gone")

    def _note(
        self,
        found: Sequence[Said],
        others: Sequence[Said],
        apart: timedelta,
        kind: Literal["would", "deployed"],
        alone_: Literal["new", "gone"],
    ) -> None:
        """Count what one version says of a group, and what of it the other does not speak of."""
        times = sorted(one.time for one in others)
        for one in found:
            if one.time < self._span.since:
                continue
            place = bisect_left(times, one.time - apart)
            is_alone = place == len(times) or times[place] > one.time + apart
            counts = Counts(**{kind: 1, alone_: int(is_alone and self.is_compared)})
            self.tally.count(counts, one.time.date().isoformat(), one.asset)
            if kind == "would":
                self.tally.said["would"].append(one)
            if is_alone:
                self.tally.said[alone_].append(one)


class _Hiding(_Run):
    """One way through the files for a rule without filters, and with each of them alone."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.matches = [0] * (len(self._sides) - 1)

    def _count(self, file: _File) -> None:
        bare, *tuned = [file.matching(side, side.pushed[0]) for side in self._sides]
        if bare != "FALSE":
            counts = file.without(bare, tuned)
            self.matches = [sum(pair) for pair in zip(self.matches, counts, strict=True)]


def _apart(one: Speaking) -> timedelta:
    """How far two versions may be apart and still speak of the same.

    One that wants an event more speaks a moment later.
    """
    if isinstance(one, Rule):
        return timedelta(0)
    seconds = one.timespan_s if isinstance(one, Correlation) else one.within_s
    return timedelta(seconds=seconds)


class _StopError(Exception):
    """Somebody does not want to wait longer."""


class _File:
    """One file of events, and how it is asked."""

    def __init__(
        self,
        path: Path,
        look: Look,
        span: Range,
        held: tuple[datetime, datetime],
        stop: threading.Event,
        *,
        keep: bool,
    ) -> None:
        self.path = path
        self._look = look
        self._stop = stop
        self.is_read = False
        """Whether rows were read; to know its values is not to read them."""
        self.values = Values(path, look.rows, keep=keep)
        self._within = _within(span, held)
        self._day = held[0].date() if held[0].date() == held[1].date() else None
        """The day of all its events, if they are of one."""
        self._tables = 0

    def count(self, within: str) -> int:
        """Events of a span."""
        if within == "TRUE":
            return self.values.count
        return int(self._ask(f"SELECT count(*) FROM {self._table} WHERE {within}")[0][0])

    @property
    def _table(self) -> str:
        return self.values.table

    def _ask(self, sql: str) -> Sequence[tuple[Any, ...]]:
        self.is_read = True
        return self._look.rows(sql)

    def _parts(self, sql: str) -> Iterator[Sequence[tuple[Any, ...]]]:
        self.is_read = True
        for rows in self._look.parts(sql):
            if self._stop.is_set():
                raise _StopError
            yield rows

    def matching(self, side: _Side, pushed: Pushed) -> str:
        """SQL that is true for events of the span which the rule matches, filters included."""
        answer = Question(pushed, self.values, self._distinct, self._placed).answer()
        return answer.may if answer.is_exact else self._decided(side.engine, pushed, answer.may)

    def _distinct(self, columns: Sequence[Column], where: str) -> Iterator[Raw]:
        listed = ", ".join(column.sql for column in columns)
        sql = f"SELECT DISTINCT {listed} FROM {self._table} WHERE {where} AND {self._within}"
        for rows in self._parts(sql):
            yield from rows

    def _placed(self, column: Column, where: str, most: int) -> list[tuple[int, Any]]:
        sql = (
            f"SELECT file_row_number, {column.sql} FROM {self._table}"
            f" WHERE {where} AND {self._within} LIMIT {most}"
        )
        return [row for rows in self._parts(sql) for row in rows]

    def _decided(self, engine: Engine, pushed: Pushed, where: str) -> str:
        """The same, row by row, by the engine, on the fields that the rule names."""
        wanted = self.values.fields if pushed.fields is None else pushed.fields
        wanted |= {"@timestamp", *(column.field for column in SOURCE)}
        found = [
            place
            for place, event in self._events(wanted, f"{where} AND {self._within}")
            if engine.matches(pushed.rule.id, event)
        ]
        if len(found) <= LITERALS_MAX:
            listed = ", ".join(map(str, found))
            return f"file_row_number IN ({listed})" if found else "FALSE"
        # Of a table of its own for each: of two versions, both are asked together.
        self._tables += 1
        name = f"decided_{self._tables}"
        self._look.rows(f"CREATE OR REPLACE TABLE {name} AS SELECT unnest(?) AS place", [found])
        return f"file_row_number IN (SELECT place FROM {name})"

    def _events(self, fields: Iterable[str], where: str) -> Iterator[tuple[int, Event]]:
        names = sorted(self.values.fields.intersection(fields))
        listed = ", ".join(f'"{name}"' for name in names)
        sql = f"SELECT file_row_number, {listed} FROM {self._table} WHERE {where}"
        for rows in self._parts(sql):
            for place, *values in rows:
                yield place, event_of(whole_row(dict(zip(names, values, strict=True))))

    def events(
        self, conditions: Sequence[str], fields: Iterable[str]
    ) -> Iterator[tuple[Event, Sequence[bool]]]:
        """Events for which one of the conditions is true, as they came, and which."""
        wanted = {*fields, *_IDENTITY, *ASSET_FIELDS}
        names = sorted(self.values.fields.intersection(wanted))
        columns = ", ".join(f'"{name}"' for name in names)
        flags = ", ".join(f"({one}) IS TRUE" for one in conditions)
        some = " OR ".join(f"({one})" for one in dict.fromkeys(conditions) if one != "FALSE")
        sql = (
            f"SELECT {flags}, {columns} FROM {self._table}"
            f" WHERE ({some}) AND {self._within} ORDER BY file_row_number"
        )
        for rows in self._parts(sql):
            for row in rows:
                values = row[len(conditions) :]
                document = whole_row(dict(zip(names, values, strict=True)))
                yield event_of(document), row[: len(conditions)]

    def counted(self, would: str, deployed: str) -> Iterator[tuple[bool, bool, Any, str, int]]:
        """Matches of two versions by day and asset."""
        some_day = f"DATE '{self._day}'" if self._day else 'CAST("@timestamp" AS DATE)'
        asset = f"coalesce({', '.join([*self._assets(), quoted(NOBODY)])})"
        some = would if deployed in ("FALSE", would) else f"(({would}) OR ({deployed}))"
        # The same condition twice would be worked out twice.
        flags = "TRUE, TRUE" if would == deployed else f"({would}) IS TRUE, ({deployed}) IS TRUE"
        flags = "TRUE, FALSE" if deployed == "FALSE" else flags
        sql = (
            f"SELECT {flags}, {some_day}, {asset}, count(*) FROM {self._table}"
            f" WHERE {some} AND {self._within} GROUP BY 1, 2, 3, 4"
        )
        for rows in self._parts(sql):
            yield from rows

    def without(self, bare: str, tuned: Sequence[str]) -> Sequence[int]:
        """How many events each of several conditions takes away from one that is wider."""
        counts = ", ".join(f"count(*) FILTER (({one}) IS NOT TRUE)" for one in tuned)
        sql = f"SELECT {counts} FROM {self._table} WHERE ({bare}) AND {self._within}"
        return self._ask(sql)[0]

    def _assets(self) -> Iterator[str]:
        """Columns that may name the asset; behind one that every event has, none is read."""
        for name in ASSET_FIELDS:
            if name in self.values.fields:
                yield f"nullif(\"{name}\", '')"
            if name in self.values.full:
                return

    def newest(self, where: str) -> list[Document]:
        """The newest events for which a condition is true, whole."""
        places = self._ask(
            f"SELECT file_row_number FROM {self._table} WHERE {where} AND {self._within}"
            f' ORDER BY "@timestamp" DESC LIMIT {SAMPLES_MAX}'
        )
        return self._look.documents([(str(self.path), place) for (place,) in places])


def _within(span: Range, held: tuple[datetime, datetime]) -> str:
    """The span as a condition; nothing if all that a file holds is within."""
    if span.since <= held[0] and held[1] < span.until:
        return "TRUE"
    since, until = (
        f"TIMESTAMP '{time.astimezone(UTC).replace(tzinfo=None).isoformat(sep=' ')}'"
        for time in (span.since, span.until)
    )
    return f'("@timestamp" >= {since} AND "@timestamp" < {until})'


class _Replay:
    """The windows of one version, and the clock as a node would have had it."""

    def __init__(self, side: _Side) -> None:
        self._side = side
        self._correlator = Correlator(side.rules)
        self._now: datetime | None = None
        self._waits = [
            (one.trigger, timedelta(seconds=one.within_s)) for one in side.rules.absences
        ]
        self._due: list[datetime] = []
        """When absences are decided."""
        self.found: dict[Group, list[Said]] = {}
        self._count = 0

    def see(self, rule: str, event: Event) -> None:
        """A base rule matched."""
        self.until(_clock_of(event))
        for trigger, wait in self._waits:
            if rule == trigger:
                heapq.heappush(self._due, event.time + wait + TICK)
        if rule == self._side.one.id:  # one version is a rule, the other a correlation
            self._take(self._side.engine.detect([event]))
        self._take(self._correlator.see(rule, event))

    def until(self, now: datetime) -> None:
        """Time passes; a node would have told so in between, when an absence was to be decided."""
        while self._due and self._due[0] < now:
            self._tick(heapq.heappop(self._due))
        if self._now is None or abs(now - self._now) >= TICK:
            self._tick(now)

    def _tick(self, now: datetime) -> None:
        self._now = now
        self._take(self._correlator.tick(now))

    def _take(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            if finding.analytic.id != self._side.one.id:
                continue
            self._count += 1
            if self._count > FINDINGS_MAX:
                raise InputError(
                    f"it would have spoken more than {FINDINGS_MAX:,} times",
                    self._side.one.analytic.name,
                    "Choose a shorter time, or make the rule narrower.",
                )
            deciding = finding.events[-1]
            said = Said(
                finding.last_seen,
                asset_of(deciding.fields),
                finding.description,
                str(deciding.record.place),
            )
            self.found.setdefault(finding.group, []).append(said)


def _clock_of(event: Event) -> datetime:
    """What the node's clock said when the event came, or for a file of the past its own time."""
    received = event.record.received
    return event.time if received - event.time > PAST else received


def event_of(stored: Document) -> Event:
    """A stored event, or the part of it that was read, as detectors see it; its place is its id."""
    fields = {name: value for name, value in stored.items() if name not in _NOT_FIELDS}
    time = stored["@timestamp"]
    source = fields.get("cw.record.source", "")
    received = fields.get("event.ingested") or time
    record = Record(b"", source, stored["event.id"], received)
    logsource = LogSource(*(fields.get(column.field, "") for column in SOURCE))
    return Event(time, logsource, fields, record, fields.get("cw.record.number", 0))


def asset_of(fields: Any) -> str:
    """Whom an event is about."""
    return next((str(fields[name]) for name in ASSET_FIELDS if fields.get(name)), NOBODY)
