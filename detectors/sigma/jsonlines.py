"""Lines of JSON on their way through the rules, read no further than the rules ask.

To make every value of a line takes longer than to decide on it. So first a line's log source is
read, and the fields that most rules begin with; then, of all lines alike in that, only the fields
that rules still look at. A line that says one of them in a way that takes more to understand –
nested, under another name, or with what may be a keyword – is read whole, as any event is.

What rules do not ask is skipped: bytes there that are no UTF-8 do not break a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import repeat
from typing import Any, Generic

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import astuple

from cityward.event import Event, LogSource, Record
from detectors.sigma.find import NOTHING, Held
from detectors.sigma.keywords import Raw
from detectors.sigma.knowledge import Knowledge
from detectors.sigma.memory import SHAPE_BYTES, Memory, Room, size_of_answers
from detectors.sigma.native import elsewhere
from detectors.sigma.plan import Rule, Spoken, Verdict
from detectors.sigma.route import Piles, Route, prefixes_of
from detectors.sigma.view import TIME, taker

PARTS = ("category", "product", "service")
"""Where a line names its log source."""
BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What is raised for a line that is no object."""
WIDE_FROM = 24
"""Of a line of which so many members are asked, all are read: to say of each that it is missing
would take longer."""

Row = tuple[Any, ...]
Decode = Callable[[bytes], Any]

_read_all = msgspec.json.Decoder(dict[str, Any]).decode
_GROUPS = frozenset({list, dict})


class Lines(Generic[Rule]):
    """Lines of JSON, many at a time.

    Args:
        route_of: The route of a log source.
        first: Fields that are read with the log source.
        room: Where it is remembered what each kind of line needs.
    """

    def __init__(
        self, route_of: Callable[[LogSource], Route[Rule]], first: Iterable[str], room: Room
    ) -> None:
        self._route_of = route_of
        self._first = sorted(first)
        self._names = [*PARTS, *(name for name in self._first if name not in PARTS)]
        self._read_first = _reader(self._names, str | int | None | UnsetType)
        self._room = room
        self._alike: Memory[tuple[Route[Rule], Held], Alike[Rule]] = Memory(
            room, lambda key: Alike(*key, self._first, room), SHAPE_BYTES
        )
        self._by_first: Memory[Row, Alike[Rule]] = Memory(room, self._alike_of)

    def verdicts(
        self, lines: Sequence[bytes], time: datetime
    ) -> tuple[dict[int, Spoken[Rule]], list[int]]:
        """Places of lines that rules match or fail on, with those; and of lines that are broken.

        Args:
            lines: One JSON object each.
            time: When they happened, or came.
        """
        read, by_first = self._read_first, self._by_first
        piles: dict[int, tuple[Alike[Rule], list[int]]] = {}
        whole: list[int] = []
        for place, line in enumerate(lines):
            try:
                alike = by_first[astuple(read(line))]
            except BROKEN:
                whole.append(place)
                continue
            pile = piles.get(id(alike))
            if pile is None:
                pile = piles[id(alike)] = (alike, [])
            pile[1].append(place)
        found: dict[int, Spoken[Rule]] = {}
        for alike, places in piles.values():
            found.update(alike.verdicts(places, lines, time, whole))
        broken = [*self._read_whole(whole, lines, time, found)]
        return found, broken

    def _alike_of(self, row: Row) -> Alike[Rule]:
        route = self._route_of(log_source(row[: len(PARTS)]))
        said = dict(zip(self._names, row, strict=True))
        held = NOTHING
        for name in self._first:
            held = held.union(*(one.known[said[name]] for one in route.fields.get(name, ())))
        return self._alike[route, held]

    def _read_whole(
        self,
        places: Iterable[int],
        lines: Sequence[bytes],
        time: datetime,
        found: dict[int, Spoken[Rule]],
    ) -> Iterator[int]:
        """Read lines as any event; places of those that are broken."""
        piles: Piles[Rule] = {}
        for place in places:
            try:
                event = event_of(lines[place], time)
            except BROKEN:
                yield place
                continue
            route = self._route_of(event.logsource)
            if route.plan.rules:
                route.sort_in(piles, place, event)
        for pile in piles.values():
            found.update(pile.verdicts())


def event_of(line: bytes, time: datetime) -> Event:
    """A line as an event.

    Raises:
        ValueError: it is no JSON object, `msgspec.DecodeError` or `UnicodeDecodeError`.
        RecursionError: it is nested too deep.
    """
    fields = _read_all(line)
    logsource = log_source([fields.get(part) for part in PARTS])
    return Event(time, logsource, fields, Record(b"", "lines", 0, time))


def log_source(parts: Sequence[Any]) -> LogSource:
    """What a line names; what is no text names nothing."""
    return LogSource(*[part.strip() if type(part) is str else "" for part in parts])


class Alike(Generic[Rule]):
    """Lines of one log source of whose first fields the same holds.

    Args:
        route: The rules of the log source.
        held: What holds of the first fields.
        first: These.
        room: Where it is remembered what answers say.
    """

    def __init__(self, route: Route[Rule], held: Held, first: Sequence[str], room: Room) -> None:
        needed = route.plan.gates.needed(held)
        self.known = {name: route.fields[name] for name in route.fields.keys() & needed - {*first}}
        self.references = [ask for ask in route.references if ask in needed]
        names = {*self.known}
        for ask in self.references:
            names |= {ask.field or "", *ask.others}
        self.others = {other for name in names for other in elsewhere(name)[1:]} - names
        """Names under which a field may stand, too."""
        keywords = route.keywords if None in needed else route.library.keywords(frozenset())
        self._raw = keywords.raw if keywords is not None and TIME not in names else None
        self._hides: Memory[tuple[int, ...], bool] = Memory(room, self._may_hide)
        self._held: Memory[tuple[tuple[int, ...], tuple[str, ...]], Held | None] = Memory(
            room, self._held_keywords
        )
        self.route = route
        self.held = held
        self.room = room
        holders = prefixes_of(names.union(self.others, first)) - names - self.others
        every = [*names, *self.others, *holders]
        self._every = frozenset(every)
        self._is_wide = len(every) > WIDE_FROM
        self._read: Decode = _read_all if self._is_wide else _reader(every, Any)
        self._members = Members(self, every)
        self._by_names: Memory[tuple[str, ...], Members[Rule]] = Memory(
            room,
            lambda names: Members(self, [one for one in names if one in self._every]),
            SHAPE_BYTES,
        )

    def verdicts(
        self, places: Sequence[int], lines: Sequence[bytes], time: datetime, whole: list[int]
    ) -> Iterator[tuple[int, Spoken[Rule]]]:
        """Places of lines that rules match or fail on; those to be read whole are added there."""
        if self._raw is None:
            whole += places
            return
        for members, rows in self._rows(self._raw, places, lines, whole).items():
            yield from members.verdicts(rows, time, whole)

    def _rows(
        self, raw: Raw, places: Iterable[int], lines: Sequence[bytes], whole: list[int]
    ) -> Mapping[Members[Rule], dict[int, Row]]:
        """What lines say in the fields that are asked."""
        found, hides, read, is_wide = raw.found, self._hides, self._read, self._is_wide
        members = self._members
        rows: dict[Members[Rule], dict[int, Row]] = {}
        for place in places:
            line = lines[place]
            numbers = found(line)
            is_hiding = bool(numbers) and hides[tuple(numbers)]
            if is_hiding and not is_wide:
                whole.append(place)
                continue
            try:
                said = read(line)
            except BROKEN:
                whole.append(place)
                continue
            if not is_wide:
                rows.setdefault(members, {})[place] = astuple(said)
                continue
            names = tuple(said)
            keywords: Held | None = NOTHING
            if is_hiding:
                keywords = self._held[tuple(numbers), names] if _is_plain(line, said) else None
            if keywords is None:
                whole.append(place)
                continue
            members = self._by_names[names]
            rows.setdefault(members, {})[place] = (*members.take(said), keywords)
        return rows

    def _held_keywords(self, key: tuple[tuple[int, ...], tuple[str, ...]]) -> Held | None:
        return None if self._raw is None else self._raw.held(*key)

    def _may_hide(self, numbers: tuple[int, ...]) -> bool:
        asks = self._raw.asks(numbers) if self._raw is not None else None
        return asks is None or self.route.plan.needs(asks)


class Members(Generic[Rule]):
    """What is asked of lines that have these members.

    Args:
        alike: What they have in common.
        names: Of the members; others are missing.
    """

    def __init__(self, alike: Alike[Rule], names: Sequence[str]) -> None:
        places = {name: place for place, name in enumerate(names)}
        self._route = alike.route
        self._width = len(names)
        self.take = taker(names)
        self._known: list[tuple[int, Knowledge]] = []
        held = [alike.held]
        for name, several in alike.known.items():
            if name in places:
                self._known += [(places[name], one) for one in several]
            else:
                held += [one.missing for one in several]
        self._others = [places[name] for name in alike.others if name in places]
        self._references = [
            (places[ask.field or ""], places[other])
            for ask in alike.references
            for other in ask.others
            if ask.field in places and other in places
        ]
        together, decide = NOTHING.union(*held), alike.route.plan.decide
        self._decided: Memory[tuple[Held, ...], Verdict[Rule]] = Memory(
            alike.room, lambda answers: decide((together, *answers)), size_of=size_of_answers
        )

    def verdicts(
        self, rows: dict[int, Row], time: datetime, whole: list[int]
    ) -> Iterator[tuple[int, Spoken[Rule]]]:
        """Places of rows that rules match or fail on; those that do not say all are added there.

        Args:
            rows: What lines say in these members, and beyond, if it is known, which keywords hold.
            time: When they happened, or came.
            whole: Places of lines that have to be read whole.
        """
        columns = [*zip(*rows.values(), strict=True)]
        if doubtful := self._doubtful(columns):
            whole += [place for number, place in enumerate(rows) if number in doubtful]
            rows = {p: row for n, (p, row) in enumerate(rows.items()) if n not in doubtful}
            columns = [*zip(*rows.values(), strict=True)]
        self._route.events += len(rows)
        if not rows:
            return
        held = [one.of_column(columns[place]) for place, one in self._known]
        held += columns[self._width :]
        held.append(repeat(self._route.plan.past(time), len(rows)))
        verdicts = map(self._decided.__getitem__, zip(*held, strict=True))
        yield from ((place, one) for place, one in zip(rows, verdicts, strict=True) if one)

    def _doubtful(self, columns: Sequence[Row]) -> set[int]:
        """Numbers of the rows that do not say all."""
        found: set[int] = set()
        for column in columns:
            if not _GROUPS.isdisjoint(map(type, column)):
                found.update(n for n, value in enumerate(column) if type(value) in _GROUPS)
        for place in self._others:
            found.update(n for n, value in enumerate(columns[place]) if value is not UNSET)
        for place, other in self._references:
            pairs = zip(columns[place], columns[other], strict=True)
            found.update(n for n, pair in enumerate(pairs) if UNSET not in pair)
        return found


def _is_plain(line: bytes, said: Mapping[str, Any]) -> bool:
    """True if texts stand in a line as they are, no object in another, and no member twice."""
    strings = len(said) + sum(type(value) is str for value in said.values())
    is_flat = line.count(b"{") == 1 and b"\\" not in line
    return is_flat and line.count(b'"') == 2 * strings


def _reader(names: Sequence[str], kind: Any) -> Decode:
    """What reads these members of an object, and no others."""
    fields = [
        (f"f{number}", kind, msgspec.field(default=UNSET, name=name))
        for number, name in enumerate(names)
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Members", fields, gc=False)).decode
