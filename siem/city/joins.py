"""Joins: shared findings that belong together, found by the Sigma correlations of `rules/hub/`.

Each share becomes events – one for each join token, for its place, for the order of techniques –
and each event stands in the group of a correlation. When a group changes, its events go through
the engine anew, in order of time: so what is joined follows from the shares that are there, not
from the order in which they came, and it is the same after a restart or a withdrawal.

Where the engine speaks, the events around form a *burst*; bursts of one rule that share a finding
are one campaign: the same attacker has a token for its address and one for the network around.
"""

from __future__ import annotations

import uuid
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from cityward.event import Event, LogSource, Record
from detectors.sigma.engine import Engine
from detectors.sigma.rule import Correlation, RuleSet
from detectors.sigma.view import text_of
from siem.city.commons import CITY
from siem.sharing.tokens import tokens_in
from siem.store.protocol import TIME_MIN, Document

NAMESPACE = uuid.UUID("9a3c1d0e-58a5-5b7c-8d0f-3f2f6a1f6f20")
"""Of the ids of campaigns."""
LOGSOURCE = LogSource(category="shared", product="cityward")
HORIZON = timedelta(hours=48)
"""Shares are joined for so long after they were last seen: twice the longest time span."""
AHEAD = timedelta(hours=24)
"""A share from further in the future is not joined: it would stay for ever."""
SHARES_MAX = 200_000
"""Kept in memory; those seen longest ago go first."""
GROUP_MAX = 1_000
"""Events of one group that are looked at: as many of each operator, the newest."""
TOKENS_MAX = 64
"""Of one share; an operator that sends more joins no more by it."""
SEQUENCE = 3
SEQUENCE_SPAN = timedelta(hours=2)
MATCHING_MAX = 1_000
MERGED = ("token", "sequence")
"""Joins of which those that share a finding are one campaign: an address and the network around it,
the first three steps of a hand and its next three."""
WITHIN_MAX = 50
"""Groups of a campaign that are looked at again for those who may know only some of its shares."""
BACK_MAX = 200
"""Shares that are gone back through for a sequence."""

KINDS = {
    "share_token": "token",
    "share_sequence": "sequence",
    "share_place": "place",
    "heartbeat_lost": "heartbeat",
}
"""Action of an event to why a campaign was joined."""
_KEPT = (
    "cw.share.id",
    "cw.share.audiences",
    "cw.operator",
    "cw.sector",
    "cw.site",
    "cw.domain",
    "cw.marking.tlp",
    "cw.marking.pap",
    "cw.campaign.operators",
    "event.action",
    "finding.type",
    "finding.title",
    "finding.severity",
    "finding.mode",
    "finding.first_seen",
    "finding.last_seen",
    "phys.location",
    "threat.technique.id",
    "threat.framework",
)
"""What is kept of a share in memory, with its tokens."""

OURS_VERSION = 8
"""Of the UUIDs that the hub makes; what operators send has none of it, so nobody can take the id of
a campaign before it is there."""

Group = tuple[str, tuple[str, ...]]
"""A correlation and the values that it groups by."""


class Kept(msgspec.Struct, frozen=True):
    """A share in memory."""

    id: str
    operator: str
    mode: str
    first: datetime
    last: datetime
    tokens: tuple[str, ...]
    document: Document


class Burst(msgspec.Struct, frozen=True):
    """Events of one group that belong together, since the engine spoke among them."""

    group: Group
    fired: datetime
    """When the condition held first."""
    members: frozenset[str]
    """The shares."""

    @property
    def rank(self) -> tuple[datetime, bool, str]:
        """The burst of a campaign that gives it its id comes first; `j:` before `p:`."""
        key = " ".join(self.group[1])
        return self.fired, not key.startswith("j:"), key


class Found(msgspec.Struct, frozen=True):
    """Shares that belong together."""

    id: str
    rule: Correlation
    join: str
    bursts: tuple[Burst, ...]
    shares: tuple[Kept, ...]
    """By time."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """What they have in common, `j:` first."""
        if self.join != "token":
            return ()
        return tuple(sorted({one.group[1][0] for one in self.bursts}))


class News(msgspec.Struct, frozen=True):
    """What has changed."""

    found: Sequence[Found]
    """New, or other shares than before, or shares that changed."""
    gone: Sequence[str]
    """Ids of campaigns that nothing holds together any more."""


class Joins:
    """All shares of the last two days, and what joins them.

    Args:
        rules: The correlations of the hub and their base rules.
    """

    def __init__(self, rules: RuleSet) -> None:
        self._engine = Engine(rules)
        self._rules = {one.id: one for one in rules.correlations}
        self._sets = {
            one.id: RuleSet(
                rules=tuple(rule for rule in rules.rules if rule.id in one.rules),
                correlations=(one,),
            )
            for one in rules.correlations
        }
        self._looked_at = sorted({name for one in rules.rules for name in one.detection.fields()})
        self._matching: dict[tuple[str, ...], list[Correlation]] = {}
        """By what the base rules look at: correlations that an event belongs to."""
        self._sequences: dict[str, tuple[str, ...]] = {}
        """Of each share: techniques in a row, and the shares that they are of."""
        self._shares: OrderedDict[str, Kept] = OrderedDict()
        self._places: dict[str, dict[Group, list[Event]]] = {}
        """Of each share: its groups, and its events in them."""
        self._groups: dict[Group, dict[str, None]] = {}
        self._lines: dict[tuple[str, str], list[tuple[datetime, str, str]]] = {}
        """Of each operator and mode: time, share and technique, in order."""
        self._dirty: set[Group] = set()
        self._bursts: dict[Group, tuple[Burst, ...]] = {}
        self._fired: dict[str, set[Group]] = {}
        """Of each share: groups in which it is in a burst."""
        self._campaigns: dict[str, frozenset[Group]] = {}
        self._of_group: dict[Group, set[str]] = {}
        self._stubs: set[str] = set()
        """Campaigns of which only is known that they stand in the store."""

    def __len__(self) -> int:
        return len(self._shares)

    def __contains__(self, share_id: str) -> bool:
        return share_id in self._shares

    # ---- Shares come and go

    def add(self, document: Document, now: datetime, *, is_member: bool = False) -> None:
        """Take a share, or its newer revision; an old one only as a member of a campaign."""
        last: datetime = document.get("finding.last_seen") or document["finding.first_seen"]
        is_for_us = "city-soc" in document.get("cw.share.audiences", ())
        if not is_for_us or last > now + AHEAD or (last < now - HORIZON and not is_member):
            return
        share = _kept(document, last)
        self.remove(share.id)
        self._shares[share.id] = share
        self._place(share, _events(share))
        self._resequence(share, gone=False)
        while len(self._shares) > SHARES_MAX:
            self._forget(next(iter(self._shares)))

    def whose(self, share_id: str) -> str:
        """Operator of a share; empty: it is not here."""
        share = self._shares.get(share_id)
        return share.operator if share else ""

    def remove(self, share_id: str) -> bool:
        """Take a share out; what it held together is looked at anew. False: it is not here."""
        share = self._shares.pop(share_id, None)
        if share is None:
            return False
        self._leave(share_id, lambda group: True)
        del self._places[share_id]
        self._sequences.pop(share_id, None)
        self._resequence(share, gone=True)
        return True

    def know(self, campaign_id: str) -> None:
        """A campaign stands in the store: it is gone if nothing here holds it together."""
        self._stubs.add(campaign_id)

    def _forget(self, share_id: str) -> None:
        """Let go of a share without looking at what it held together."""
        share = self._shares.pop(share_id)
        self._sequences.pop(share_id, None)
        for group in self._places.pop(share_id, {}):
            self._groups[group].pop(share_id, None)
            if not self._groups[group]:
                del self._groups[group]
                self._dirty.discard(group)
        line = self._lines.get((share.operator, share.mode), [])
        line[:] = [one for one in line if one[1] != share_id]

    def tidy(self, now: datetime) -> None:
        """Let go of what nothing will join any more; it stays in the store."""
        oldest = now - HORIZON
        for campaign in [id for id in self._campaigns if self._last(id) < oldest]:
            for group in self._campaigns.pop(campaign):
                self._of_group.get(group, set()).discard(campaign)
                kept = tuple(
                    one for one in self._bursts.get(group, ()) if not self._is_old(one, oldest)
                )
                self._settle(group, kept)
        for share in [one for one in self._shares.values() if one.last < oldest]:
            if not self._fired.get(share.id):
                self._forget(share.id)

    def _is_old(self, burst: Burst, oldest: datetime) -> bool:
        return all(self._shares[one].last < oldest for one in burst.members if one in self._shares)

    def _last(self, campaign: str) -> datetime:
        bursts = [one for group in self._campaigns[campaign] for one in self._bursts.get(group, ())]
        lasts = (self._shares[one].last for each in bursts for one in each.members if one in self)
        return max(lasts, default=TIME_MIN)

    # ---- Events and groups

    def _place(self, share: Kept, events: Iterable[Event]) -> None:
        places = self._places.setdefault(share.id, {})
        for event in events:
            for group in self._groups_of(event):
                places.setdefault(group, []).append(event)
                self._groups.setdefault(group, {})[share.id] = None
                self._dirty.add(group)

    def _leave(self, share_id: str, which: Callable[[Group], bool]) -> None:
        places = self._places.get(share_id, {})
        for group in [one for one in places if which(one)]:
            del places[group]
            self._groups[group].pop(share_id, None)
            if not self._groups[group]:
                del self._groups[group]
            self._dirty.add(group)

    def _groups_of(self, event: Event) -> Iterator[Group]:
        looked_at = tuple(str(event.fields.get(name)) for name in self._looked_at)
        matching = self._matching.get(looked_at)
        if matching is None:
            matching = [one for one in self._rules.values() if self._is_of(one, event)]
            if len(self._matching) < MATCHING_MAX:
                self._matching[looked_at] = matching
        for one in matching:
            columns = [_values(event.fields.get(name)) for name in one.group_by]
            if all(columns):
                yield one.id, tuple(",".join(map(text_of, column)) for column in columns)

    def _is_of(self, correlation: Correlation, event: Event) -> bool:
        return any(self._engine.matches(rule, event) for rule in correlation.rules)

    def _resequence(self, share: Kept, *, gone: bool) -> None:
        """Techniques in a row depend on the shares before: look at those after this one anew."""
        techniques = share.document.get("threat.technique.id")
        if not techniques or share.operator == CITY:
            return
        line = self._lines.setdefault((share.operator, share.mode), [])
        here = (share.first, share.id, str(techniques[0]))
        if gone:
            at = bisect_left(line, here)
            del line[at : at + 1]
        else:
            insort(line, here)
        at = bisect_left(line, here)
        while at < len(line) and line[at][0] <= share.first + SEQUENCE_SPAN:
            self._sequence(line, at)
            at += 1

    def _sequence(self, line: list[tuple[datetime, str, str]], at: int) -> None:
        """The last techniques up to a share, as an event of it."""
        time, share_id, _ = line[at]
        last: dict[str, str] = {}
        for back in range(at, max(-1, at - BACK_MAX), -1):
            then, whose, technique = line[back]
            if then < time - SEQUENCE_SPAN or len(last) == SEQUENCE:
                break
            last.setdefault(technique, whose)
        said = (*last, *last.values()) if len(last) == SEQUENCE else ()
        if self._sequences.get(share_id, ()) == said:
            return
        share = self._shares[share_id]
        self._leave(share_id, lambda group: self._join_of(group) == "sequence")
        self._sequences[share_id] = said
        if said:
            fields = {"threat.technique.id": list(last)[::-1]}
            rests = [*dict.fromkeys(last.values())]
            self._place(share, [_event(share, "share_sequence", time, fields, rests)])

    def _join_of(self, group: Group) -> str:
        for share_id in self._groups.get(group, ()):
            for event in self._places[share_id].get(group, ()):
                return KINDS[event.fields["event.action"]]
        return ""

    # ---- What belongs together

    def news(self) -> News:
        """Look at the groups that changed since the last time."""
        dirty, self._dirty = self._dirty, set()
        touched = set(dirty)
        for group in dirty:
            touched |= self._linked(group)
            self._settle(group, self._bursts_of(group, self._shares.__contains__))
            touched |= self._linked(group)
        before = {id for group in touched for id in self._of_group.get(group, ())}
        touched |= {group for id in before for group in self._campaigns.get(id, ())}
        found = self._campaigns_of(touched)
        gone = (before | self._stubs) - found.keys() - self._campaigns_left(touched)
        self._stubs.clear()
        for id in before:
            self._drop(id)
        for id, (_, bursts) in found.items():
            groups = frozenset(one.group for one in bursts)
            self._campaigns[id] = groups
            for group in groups:
                self._of_group.setdefault(group, set()).add(id)
        made = [self._found(id, *each) for id, each in found.items()]
        return News([one for one in made if one.shares], sorted(gone))

    def _campaigns_left(self, touched: set[Group]) -> set[str]:
        """Campaigns that were not looked at now, since none of their groups changed."""
        return {id for id, groups in self._campaigns.items() if not groups & touched}

    def _drop(self, campaign: str) -> None:
        for group in self._campaigns.pop(campaign, ()):
            self._of_group.get(group, set()).discard(campaign)
            if not self._of_group.get(group):
                self._of_group.pop(group, None)

    def _linked(self, group: Group) -> set[Group]:
        """Groups whose bursts share a finding with one of this group."""
        members = {one for burst in self._bursts.get(group, ()) for one in burst.members}
        return {other for one in members for other in self._fired.get(one, ())}

    def _settle(self, group: Group, bursts: tuple[Burst, ...]) -> None:
        for burst in self._bursts.pop(group, ()):
            for one in burst.members:
                if fired := self._fired.get(one):
                    fired.discard(group)
                    if not fired:
                        del self._fired[one]
        if bursts:
            self._bursts[group] = bursts
        for burst in bursts:
            for one in burst.members:
                self._fired.setdefault(one, set()).add(group)

    def _bursts_of(self, group: Group, allowed: Callable[[str], bool]) -> tuple[Burst, ...]:
        """Run the events of a group through the engine, those of allowed shares."""
        rule = self._rules[group[0]]
        events = [
            event
            for one in self._groups.get(group, ())
            if allowed(one)
            for event in self._places[one][group]
        ]
        if not _may_hold(rule, events):
            return ()
        span = timedelta(seconds=rule.timespan_s)
        bursts = []
        for chain in _chains(_newest(events), span):
            if _may_hold(rule, chain) and (fired := self._first_fired(rule, chain)):
                bursts.append(_burst(group, chain, fired, span))
        return tuple(bursts)

    def _first_fired(self, rule: Correlation, chain: Sequence[Event]) -> datetime | None:
        """When the condition held first; the engine is asked no further."""
        engine = Engine(self._sets[rule.id])
        for event in _thinned(rule, chain):
            if any(one.analytic.id == rule.id for one in engine.detect([event])):
                return event.time
        return None

    def _campaigns_of(self, groups: Iterable[Group]) -> dict[str, tuple[str, list[Burst]]]:
        """Bursts that share a finding, as one; by id, with why they were joined."""
        found: dict[str, tuple[str, list[Burst]]] = {}
        seen: set[Burst] = set()
        for group in sorted(groups):
            join = self._join_of(group)
            for start in self._bursts.get(group, ()):
                if start in seen:
                    continue
                linked = self._component(start) if join in MERGED else [start]
                seen.update(linked)
                first = min(linked, key=lambda one: one.rank)
                id = _id(first)
                found.setdefault(id, (join, []))[1].extend(linked)
        return found

    def _component(self, start: Burst) -> list[Burst]:
        found, waiting = {start}, [start]
        while waiting:
            burst = waiting.pop()
            for group in {g for one in burst.members for g in self._fired.get(one, ())}:
                if group[0] != burst.group[0]:
                    continue
                for other in self._bursts[group]:
                    if other not in found and not burst.members.isdisjoint(other.members):
                        found.add(other)
                        waiting.append(other)
        return sorted(found, key=lambda one: one.rank)

    def _found(self, id: str, join: str, bursts: Sequence[Burst]) -> Found:
        members = {one for burst in bursts for one in burst.members if one in self}
        shares = sorted((self._shares[one] for one in members), key=lambda one: (one.first, one.id))
        return Found(id, self._rules[bursts[0].group[0]], join, tuple(bursts), tuple(shares))

    def within(self, found: Found, allowed: Callable[[Kept], bool]) -> Found | None:
        """A campaign as it is for who may know only some of the shares; None: they see none."""
        ids = {one.id for one in found.shares if allowed(one)}
        if len(ids) == len(found.shares):
            return found
        if len(ids) < 2:
            return None
        bursts = [
            burst
            for group in [*dict.fromkeys(one.group for one in found.bursts)][:WITHIN_MAX]
            for burst in self._bursts_of(group, ids.__contains__)
        ]
        return self._found(found.id, found.join, bursts) if bursts else None


def _kept(document: Document, last: datetime) -> Kept:
    """What joins need of a share."""
    tokens = dict.fromkeys(token for _, token in tokens_in(document))
    return Kept(
        id=document["cw.share.id"],
        operator=document["cw.operator"],
        mode=str(document.get("finding.mode", "normal")),
        first=document["finding.first_seen"],
        last=last,
        tokens=tuple(tokens)[:TOKENS_MAX],
        document={name: document[name] for name in _KEPT if name in document},
    )


def _events(share: Kept) -> Iterator[Event]:
    """What of a share may be joined, when it began and when it was last seen."""
    document = share.document
    times = dict.fromkeys((share.first, share.last))
    if share.operator == CITY:
        if document.get("event.action") == "heartbeat_lost":
            fields = {"cw.operator": document["cw.campaign.operators"][0]}
            yield _event(share, "heartbeat_lost", share.first, fields)
        return
    for time in times:
        for token in share.tokens:
            yield _event(share, "share_token", time, {"source.token": token})
        for place in _places(document):
            yield _event(
                share, "share_place", time, {"cw.site": place, "cw.domain": _domain(document)}
            )


def _places(document: Document) -> Iterator[str]:
    """Site of the operator, and cell of about a kilometre."""
    if site := document.get("cw.site"):
        yield f"{document['cw.operator']}/{site}"
    try:
        latitude, longitude = map(float, document.get("phys.location", "").split(","))
    except ValueError:
        return
    yield f"{latitude:.2f},{longitude:.2f}"


def _domain(document: Document) -> list[str]:
    usual = ["hazard"] if document.get("finding.type") == "hazard" else ["cyber"]
    return list(document.get("cw.domain") or usual)


def _event(
    share: Kept,
    action: str,
    time: datetime,
    fields: Mapping[str, Any],
    rests: Sequence[str] = (),
) -> Event:
    said = {
        "event.action": action,
        "cw.share.id": share.id,
        "cw.share.derived_from": list(rests) or [share.id],
        "cw.operator": share.operator,
        "cw.sector": share.document.get("cw.sector", ""),
        "finding.mode": share.mode,
        **fields,
    }
    return Event(time, LOGSOURCE, said, Record(b"", share.operator, share.id, time))


def _values(found: Any) -> Sequence[Any]:
    return found if isinstance(found, (list, tuple)) else () if found is None else (found,)


def _may_hold(rule: Correlation, events: Sequence[Event]) -> bool:
    """Whether it is worth asking the engine: most tokens are seen by one operator only."""
    if len({event.fields["cw.share.id"] for event in events}) < 2:
        return False
    if rule.type != "value_count":
        return True
    values = {tuple(event.fields.get(name) for name in rule.field) for event in events}
    return len(values) >= dict(rule.limits).get("gte", 0)


def _newest(events: list[Event]) -> list[Event]:
    """By time; of too many as many of each operator, so that none can crowd the others out."""
    events.sort(key=lambda one: (one.time, one.fields["cw.share.id"]))
    if len(events) <= GROUP_MAX:
        return events
    by_operator: dict[str, list[int]] = {}
    for number, event in enumerate(events):
        by_operator.setdefault(event.fields["cw.operator"], []).append(number)
    most = max(1, GROUP_MAX // len(by_operator))
    return [events[n] for n in sorted(n for each in by_operator.values() for n in each[-most:])]


def _chains(events: Sequence[Event], span: timedelta) -> Iterator[list[Event]]:
    """Events of which each comes within a span of the one before; no window holds two chains."""
    chain: list[Event] = []
    for event in events:
        if chain and event.time - chain[-1].time > span:
            yield chain
            chain = []
        chain.append(event)
    if chain:
        yield chain


def _thinned(rule: Correlation, chain: Sequence[Event]) -> Iterator[Event]:
    """First and last of each run of events that count alike: those between them change nothing."""
    if rule.type not in ("value_count", "temporal"):
        yield from chain
        return
    names = rule.field or ("cw.domain",)
    values = [tuple(map(str, (event.fields.get(name) for name in names))) for event in chain]
    for number, event in enumerate(chain):
        is_first = number == 0 or values[number] != values[number - 1]
        is_last = number + 1 == len(chain) or values[number] != values[number + 1]
        if is_first or is_last:
            yield event


def _burst(group: Group, chain: Sequence[Event], fired: datetime, span: timedelta) -> Burst:
    members = frozenset(
        one
        for event in chain
        if event.time >= fired - span
        for one in event.fields["cw.share.derived_from"]
    )
    return Burst(group, fired, members)


def _id(first: Burst) -> str:
    rule, key = first.group
    return id_of(f"{rule} {' '.join(key)} {first.fired:%Y-%m-%d}")


def id_of(name: str) -> str:
    """Id of something that the hub says itself (RFC 9562, version 8)."""
    made = bytearray(uuid.uuid5(NAMESPACE, name).bytes)
    made[6] = made[6] & 0x0F | OURS_VERSION << 4
    return str(uuid.UUID(bytes=bytes(made)))
