"""Lines of JSON on their way through the rules, read no further than the rules ask.

To make every value of a line takes longer than to decide on it. So first a line's log source is
read, and the fields that most rules begin with; then, of all lines alike in that, only the fields
that rules still look at. A line that says one of them in a way that takes more to understand –
nested, under another name, or with what may be a keyword – is read whole, as any event is.

What rules do not ask is skipped: bytes there that are no UTF-8 do not break a line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import repeat
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import astuple

from cityward.event import Event, LogSource, Record
from detectors.sigma.ask import NOTHING, Held
from detectors.sigma.knowledge import ONLY_UNSET, Knowledge
from detectors.sigma.memory import SHAPE_BYTES, Memory, Room, size_of_answers
from detectors.sigma.native import elsewhere
from detectors.sigma.plan import Rule, Spoken, Verdict
from detectors.sigma.route import Route, prefixes_of, verdicts_on
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
T = TypeVar("T")


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
        piles: dict[Alike[Rule] | None, list[int]] = defaultdict(list)
        for place, alike in enumerate(_each(self._alike_of_each, lines)):
            piles[alike].append(place)
        whole = piles.pop(None, [])
        found: dict[int, Spoken[Rule]] = {}
        for alike, places in piles.items():
            if alike is not None:
                found.update(alike.verdicts(places, _of(lines, places), time, whole))
        broken = [*self._read_whole(whole, lines, time, found)]
        return found, broken

    def _alike_of_each(self, lines: Iterable[bytes]) -> Iterator[Alike[Rule]]:
        return map(self._by_first.__getitem__, map(astuple, map(self._read_first, lines)))

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
        events: dict[int, Event] = {}
        for place in places:
            try:
                events[place] = event_of(lines[place], time)
            except BROKEN:
                yield place
        found.update(verdicts_on(events, self._route_of))


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
        self.others = {other for name in names for other in elsewhere(name)[1:]}
        """Names under which a field may stand, too; some of them are asked themselves."""
        keywords = route.keywords if None in needed else route.library.keywords(frozenset())
        self._raw = keywords.raw if keywords is not None and TIME not in names else None
        self._hides: Memory[tuple[int, ...], bool] = Memory(room, self._may_hide)
        self._held: Memory[tuple[tuple[int, ...], tuple[str, ...]], Held | None] = Memory(
            room, self._held_keywords
        )
        self.route = route
        self.held = held
        self.room = room
        asked = names | self.others
        every = sorted(asked | prefixes_of(asked.union(first)))
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
        """Places of lines that rules match or fail on; those to be read whole are added there.

        Args:
            places: Where the lines stand among others.
            lines: These.
            time: When they happened, or came.
            whole: Places of lines that have to be read whole.
        """
        if self._raw is None:
            whole += places
            return
        found = self._raw.scanner.found_in(lines)
        hiding = {
            number: key for number, words in found.items() if self._hides[key := tuple(words)]
        }
        said: Sequence[Any] = _each(self._said_by_each, lines)
        if self._is_wide:
            yield from self._verdicts_on_all(places, lines, said, hiding, time, whole)
            return
        if hiding or None in said:
            left = [n for n, row in enumerate(said) if row is None or n in hiding]
            whole += [places[number] for number in left]
            places, said = _without(places, left), _without(said, left)
        yield from self._members.verdicts(places, said, time, whole)

    def _said_by_each(self, lines: Iterable[bytes]) -> Iterator[Any]:
        said = map(self._read, lines)
        return said if self._is_wide else map(astuple, said)

    def _verdicts_on_all(
        self,
        places: Sequence[int],
        lines: Sequence[bytes],
        said: Sequence[Any],
        hiding: Mapping[int, tuple[int, ...]],
        time: datetime,
        whole: list[int],
    ) -> Iterator[tuple[int, Spoken[Rule]]]:
        """The same of lines of which all members are read."""
        keywords: dict[int, Held] = {}
        piles: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, row in enumerate(said):
            names = () if row is None else tuple(row)
            if row is None or number in hiding:
                is_plain = row is not None and _is_plain(lines[number], row)
                held = self._held[hiding[number], names] if is_plain else None
                if held is None:
                    whole.append(places[number])
                    continue
                keywords[number] = held
            piles[names].append(number)
        for names, numbers in piles.items():
            members = self._by_names[names]
            rows = [*map(members.take, _of(said, numbers))]
            of_each = [keywords.get(number, NOTHING) for number in numbers] if keywords else ()
            yield from members.verdicts(_of(places, numbers), rows, time, whole, of_each)

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
        self,
        places: Sequence[int],
        rows: Sequence[Row],
        time: datetime,
        whole: list[int],
        keywords: Sequence[Held] = (),
    ) -> Iterator[tuple[int, Spoken[Rule]]]:
        """Places of rows that rules match or fail on; those that do not say all are added there.

        Args:
            places: Where the lines stand.
            rows: What they say in these members.
            time: When they happened, or came.
            whole: Places of lines that have to be read whole.
            keywords: Which hold on each; empty: none on any.
        """
        if not rows:
            return
        columns = [*zip(*rows, strict=True)]
        kinds = [{*map(type, column)} for column in columns]
        if doubtful := self._doubtful(columns, kinds):
            whole += [places[number] for number in doubtful]
            places, rows = _without(places, doubtful), _without(rows, doubtful)
            keywords = keywords and _without(keywords, doubtful)
            yield from self.verdicts(places, rows, time, whole, keywords)
            return
        self._route.events += len(rows)
        held = [one.of_column(columns[place], kinds[place]) for place, one in self._known]
        if keywords:
            held.append(keywords)
        held.append(repeat(self._route.plan.past(time), len(rows)))
        verdicts = map(self._decided.__getitem__, zip(*held, strict=True))
        yield from ((place, one) for place, one in zip(places, verdicts, strict=True) if one)

    def _doubtful(self, columns: Sequence[Row], kinds: Sequence[set[type]]) -> Sequence[int]:
        """Numbers of the rows that do not say all."""
        found: set[int] = set()
        for column, several in zip(columns, kinds, strict=True):
            if not _GROUPS.isdisjoint(several):
                found.update(n for n, value in enumerate(column) if type(value) in _GROUPS)
        for place in self._others:
            if kinds[place] != ONLY_UNSET:
                found.update(n for n, value in enumerate(columns[place]) if value is not UNSET)
        for place, other in self._references:
            pairs = zip(columns[place], columns[other], strict=True)
            found.update(n for n, pair in enumerate(pairs) if UNSET not in pair)
        return sorted(found)


def _each(
    several: Callable[[Iterable[bytes]], Iterator[T]], lines: Sequence[bytes]
) -> list[T | None]:
    """What is read of each line; None of one that cannot be read.

    Args:
        several: Reads lines one after the other, many in less time than as often one.
        lines: These.
    """
    said: list[T | None] = []
    left = iter(lines)
    while True:
        try:
            said.extend(several(left))
        except BROKEN:  # what was read before it is there; on with what comes after it
            said.append(None)
        else:
            return said


def _of(several: Sequence[T], numbers: Sequence[int]) -> Sequence[T]:
    """Those of these numbers, which are in order."""
    return several if len(numbers) == len(several) else [several[number] for number in numbers]


def _without(several: Sequence[T], numbers: Sequence[int]) -> Sequence[T]:
    """All but those of these numbers."""
    gone = {*numbers}
    return [one for number, one in enumerate(several) if number not in gone]


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
