"""Reading: the one place through which people and programs come to shared findings.

It adds operator, audience, TLP and threshold of counts to every read, and tells each operator who
read its shares: the first read of a person on a day is durable before it is answered, how often
they read follows within seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from siem.city.commons import CITY, CITY_SOC, Commons, Records, Rights
from siem.city.shares import SHARE_FIELDS, UNSAID, check_tallied
from siem.store.protocol import Conflict, Document, Page, Person, Range
from siem.store.query import parse

OPEN_TLP = ("clear", "green")
"""What all operators and authorities may see."""
NOTHING = Rights(audiences=(), tlp=(), operators=())

ACCESS = "access"
"""Kind of the records of who read: one an operator and day."""
PEOPLE_MAX = 500
"""Kept by name in one of them; those beyond are counted together."""
OTHERS = "(others)"
FLUSH_EVERY = timedelta(seconds=5)


def rights_of(person: Person, threshold: int = 3) -> Rights:
    """What a person of the hub may see of shared findings.

    Args:
        person: As they are signed in.
        threshold: Peers and authorities are told no count below it.
    """
    if "ciso" in person.roles:
        return CITY_SOC
    if "authority" in person.roles:
        return Rights((person.audience,), OPEN_TLP, threshold=threshold)
    if "peer" in person.roles:
        # What other operators shared with peers reaches them as campaigns, never by itself.
        own = person.audience
        if own == CITY:  # what is the city's own is not a peer's
            return NOTHING
        return Rights(("peers",), OPEN_TLP, own, (CITY, own), threshold)
    return NOTHING


class Reading:
    """Shared findings as somebody may see them.

    Args:
        commons: Where they are.
        rights: What they may see.
        told: Takes what was read, before it is answered.
        clock: What now is, for relative times in queries.
    """

    def __init__(
        self,
        commons: Commons,
        rights: Rights,
        told: Callable[[Iterable[Document]], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._commons = commons
        self._rights = rights
        self._told = told
        self._clock = clock
        is_authority = not rights.own and "city-soc" not in rights.audiences
        self._hidden = UNSAID if is_authority else frozenset[str]()
        self._fields = {k: v for k, v in SHARE_FIELDS.items() if k not in self._hidden}

    @property
    def rights(self) -> Rights:
        """What they may see."""
        return self._rights

    def search(
        self,
        query: str,
        span: Range,
        sort: str = "-finding.last_seen",
        limit: int = 50,
        offset: int = 0,
    ) -> Page:
        """Shares, by `finding.last_seen`; a query is text of the query bar."""
        self._check(query)
        page = self._commons.search(self._rights, query, span, sort, limit, offset)
        self._told(page.rows)
        return Page([self._shown(one) for one in page.rows], page.total)

    def get(self, share_id: str) -> Document | None:
        """One share; None if there is none, or none that they may see: the same answer."""
        found = self._commons.get(self._rights, share_id)
        if found is None:
            return None
        self._told([found])
        return self._shown(found)

    def tally(
        self, query: str, span: Range, field: str, limit: int = 20
    ) -> Sequence[tuple[str, int]]:
        """Values of a field with the number of shares that have them, most frequent first.

        Values that fewer shares than the threshold have are left out.
        """
        self._check(query)
        check_tallied(field if field not in self._hidden else f"{field} here")
        return self._commons.tally(self._rights, query, span, field, limit)

    def _check(self, query: str) -> None:
        """A field they may not read is asked for like one that does not exist."""
        if self._hidden:
            parse(query, self._fields, self._clock())

    def _shown(self, document: Document) -> Document:
        return {k: v for k, v in document.items() if k not in self._hidden}


class Accessed(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody's reading of one operator's shares on one day."""

    day: str
    person: str
    reads: int
    shares: int
    """Documents that were answered, each time counted."""
    first: datetime
    last: datetime


class _Count(msgspec.Struct):
    reads: int
    shares: int
    first: datetime
    last: datetime

    def add(self, other: _Count) -> None:
        self.reads += other.reads
        self.shares += other.shares
        self.first, self.last = min(self.first, other.first), max(self.last, other.last)


Key = tuple[str, str]
"""Operator and day."""


class AccessLog:
    """Who read whose shares, summed by person, day and operator."""

    def __init__(self, records: Records, clock: Callable[[], datetime]) -> None:
        self._records = records
        self._clock = clock
        self._lock = threading.Lock()
        self._said: set[tuple[str, Key]] = set()
        """People of whom something is durable already."""
        self._waiting: dict[Key, dict[str, _Count]] = {}
        self._flushed = clock()

    def of(self, person: str) -> Callable[[Iterable[Document]], None]:
        """What takes the documents that a person is about to be shown."""
        return lambda documents: self.note(person, documents)

    def note(self, person: str, documents: Iterable[Document]) -> None:
        """Keep that a person read these; durable if it is their first time of the day.

        Raises:
            TransientError: the home does not answer, so nobody may be shown anything.
        """
        now = self._clock()
        counts: dict[str, int] = {}
        for one in documents:
            if (operator := one["cw.operator"]) != CITY:
                counts[operator] = counts.get(operator, 0) + 1
        if not counts:
            return
        with self._lock:
            keys = [(operator, f"{now:%Y-%m-%d}") for operator in counts]
            for key in keys:
                count = _Count(1, counts[key[0]], now, now)
                _add(self._waiting.setdefault(key, {}), {person: count})
            new = [key for key in keys if (person, key) not in self._said]
            self._flush(new)
            self._said.update((person, key) for key in new)
            if now - self._flushed > FLUSH_EVERY:
                self._flush(list(self._waiting))
                self._flushed = now

    def flush(self) -> None:
        """Make everything durable."""
        with self._lock:
            self._flush(list(self._waiting))
            today = f"{self._clock():%Y-%m-%d}"
            self._said = {one for one in self._said if one[1][1] >= today}

    def _flush(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self._keep(key, self._waiting[key])
            del self._waiting[key]

    def _keep(self, key: Key, counts: Mapping[str, _Count]) -> None:
        """Add to a record; another process of the hub may do so at the same time."""
        name = " ".join(key)
        while True:
            found = self._records.get(ACCESS, name)
            people = msgspec.convert(found.value, dict[str, _Count]) if found else {}
            _add(people, counts)
            value = msgspec.to_builtins(people)
            try:
                self._records.put(ACCESS, name, value, found.version if found else None)
                return
            except Conflict:
                continue

    def forget(self, before: datetime) -> None:
        """Delete what was read before then."""
        for name, found in list(self._records.all(ACCESS)):
            if name.rpartition(" ")[2] < f"{before:%Y-%m-%d}":
                self._records.delete(ACCESS, name, found.version)


def _add(people: dict[str, _Count], counts: Mapping[str, _Count]) -> None:
    for person, count in counts.items():
        name = person if person in people or len(people) < PEOPLE_MAX else OTHERS
        there = people.get(name)
        if there is None:
            people[name] = msgspec.structs.replace(count)
        else:
            there.add(count)


def accesses(records: Records, operator: str) -> Iterator[Accessed]:
    """Who read an operator's shares, by day; for that operator alone."""
    for name, found in records.all(ACCESS):
        whose, _, day = name.rpartition(" ")
        if whose == operator:
            for person, count in msgspec.convert(found.value, dict[str, _Count]).items():
                yield Accessed(day=day, person=person, **_fields(count))


def _fields(count: _Count) -> dict[str, Any]:
    return msgspec.structs.asdict(count)
