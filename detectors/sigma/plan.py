"""Rules as one plan: what they ask, each question once, and which answers decide which rule.

A rule becomes a tree over `Ask` objects. Its *witnesses* are asks of which at least one must hold
for the rule to match, chosen so that few events have them; only rules with a witness are looked at.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from functools import cached_property, reduce
from itertools import chain
from operator import or_
from typing import Any, Generic, NamedTuple, TypeVar, cast
from weakref import WeakValueDictionary

from detectors.sigma.ask import NOTHING, Ask, Failed, Held, is_look_up
from detectors.sigma.condition import Condition, Name, Not
from detectors.sigma.matchers import Comparison, Item
from detectors.sigma.memory import ENTRY_BYTES, Memory, Room
from detectors.sigma.native import elsewhere
from detectors.sigma.rule import Detection, Selection
from detectors.sigma.view import TIME

CLAUSES = 4
"""So many things that a rule needs are looked for before it is looked at: two pairs (`decide`)."""
BARRED, FAILED = CLAUSES, CLAUSES + 1
"""Rows behind those of clauses."""
GATED_FROM, GATED_PART = 8, 32
"""A field that so many rules begin with, and one rule of so many, is looked at first."""

Question = tuple["str | None", frozenset[Comparison]]
Rule = TypeVar("Rule", bound="Planned")
Spoken = tuple[tuple[Rule, ...], tuple[Rule, ...]]
"""Rules that match, and rules that failed."""
Verdict = tuple[()] | Spoken[Rule]
"""Empty if there are none of either."""
Truth = Callable[[AbstractSet[Any]], bool]
"""Whether a tree is true, given the asks that hold."""


class Asks:
    """Every ask of an engine: equal questions are one ask as long as a rule needs it."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[Question, Ask] = WeakValueDictionary()

    def of(self, field: str | None, *comparisons: Comparison) -> Ask:
        """The ask whether any of the comparisons holds on a field."""
        question = (field, frozenset(comparisons))
        ask = self._known.get(question)
        if ask is None:
            ask = self._known[question] = Ask(*question)
        return ask


class Expired(NamedTuple):
    """Stands among what holds once a filter has expired; those of one day are one."""

    at: datetime


Leaf = Ask | Expired


class Tree:
    """Parts of which every one must be true, or at least one; or an ask that must (not) hold."""

    __slots__ = ("every", "leaf", "negated", "parts")

    def __init__(
        self,
        every: bool = True,
        parts: Sequence[Tree] = (),
        leaf: Leaf | None = None,
        negated: bool = False,
    ) -> None:
        self.every = every
        self.parts = parts
        self.leaf = leaf
        self.negated = negated

    def leaves(self) -> Iterator[Leaf]:
        """Every ask, as often as it is asked."""
        if self.leaf is not None:
            yield self.leaf
        for part in self.parts:
            yield from part.leaves()

    def witnesses(self, may: Callable[[Leaf], bool]) -> frozenset[Leaf] | None:
        """Few asks of which one must hold; None if the tree can be true without any.

        Args:
            may: Says which asks may be among them.
        """
        if (leaf := self.leaf) is not None:
            return None if self.negated or not may(leaf) else frozenset((leaf,))
        known: list[frozenset[Leaf]] = []
        for part in self.parts:
            if (found := part.witnesses(may)) is not None:
                known.append(found)
            elif not self.every:
                return None
        return min(known, key=len, default=None) if self.every else frozenset[Leaf]().union(*known)

    def clauses(self) -> list[frozenset[Leaf]]:
        """Asks of which one must hold for the tree to be true, and more such."""
        if self.leaf is not None:
            return [] if self.negated else [frozenset((self.leaf,))]
        found = [part.clauses() for part in self.parts]
        if self.every:
            return sorted(chain.from_iterable(found), key=len)[:CLAUSES]
        if not all(found):
            return []
        longest = max(map(len, found), default=0)
        return [
            frozenset[Leaf]().union(*(some[min(n, len(some) - 1)] for some in found))
            for n in range(longest)
        ]

    def truth(self) -> Truth:
        """The tree as a function."""
        if (leaf := self.leaf) is not None:
            return (lambda held: leaf not in held) if self.negated else (lambda held: leaf in held)
        plain = [one for one in self.parts if one.leaf is not None]
        must = frozenset(one.leaf for one in plain if not one.negated)
        must_not = frozenset(one.leaf for one in plain if one.negated)
        truths = [one.truth() for one in self.parts if one.leaf is None]
        every = self.every

        def truth(held: AbstractSet[Any]) -> bool:
            if every:
                if not (must.issubset(held) and must_not.isdisjoint(held)):
                    return False
            elif not (must.isdisjoint(held) and must_not.issubset(held)):
                return True
            for part in truths:
                if part(held) is not every:
                    return not every
            return every

        return truth


def joined(every: bool, parts: Sequence[Tree]) -> Tree:
    """One tree of several, as flat as can be."""
    flat: list[Tree] = []
    for part in parts:
        flat += part.parts if part.leaf is None and part.every is every else [part]
    return flat[0] if len(flat) == 1 else Tree(every, flat)


def tree_of(detection: Detection, asks: Asks) -> Tree:
    """A detection as a tree."""
    reads = [read for _, read in detection.conditions]
    return joined(False, [_of_condition(read, detection, asks, False) for read in reads])


def _of_condition(one: Condition, detection: Detection, asks: Asks, negated: bool) -> Tree:
    if isinstance(one, Name):
        return _of_selection(detection.selections[one.name], asks, negated)
    if isinstance(one, Not):
        return _of_condition(one.part, detection, asks, not negated)
    parts = [_of_condition(part, detection, asks, negated) for part in one.parts]
    return joined(one.every is not negated, parts)


def _of_selection(one: Selection, asks: Asks, negated: bool) -> Tree:
    if isinstance(one, Item):
        return _of_item(one, asks, negated is not one.negated)
    parts = [_of_selection(part, asks, negated) for part in one.parts]
    return joined(one.every is not negated, parts)


def _of_item(item: Item, asks: Asks, negated: bool) -> Tree:
    if not item.every:
        return Tree(leaf=asks.of(item.field, *item.comparisons), negated=negated)
    leaves = [asks.of(item.field, one) for one in item.comparisons]
    return joined(not negated, [Tree(leaf=leaf, negated=negated) for leaf in leaves])


class Planned:
    """A rule as a plan needs it."""

    never_seen: set[str]
    """Fields it looks at that no event had so far."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.leaves = frozenset(tree.leaves())
        self.asks = [leaf for leaf in self.leaves if isinstance(leaf, Ask)]
        self.failures = frozenset(ask.failed for ask in self.asks)

        self._gates: dict[frozenset[str], frozenset[Ask] | None] = {}

    @cached_property
    def clauses(self) -> list[frozenset[Leaf]]:
        """Leaves of which one must hold, and more such."""
        return self.tree.clauses()

    @property
    def bars(self) -> Iterator[Leaf]:
        """Leaves of which none may hold."""
        return (one.leaf for one in self._parts if one.leaf is not None and one.negated)

    @property
    def _parts(self) -> Sequence[Tree]:
        """What must all be true."""
        return self.tree.parts if self.tree.every and self.tree.leaf is None else [self.tree]

    def is_true(self, answers: Iterable[Held]) -> bool:
        """Whether it matches, if none of its clauses and bars says that it does not."""
        if self._rest is None:
            return True
        truth, leaves = self._rest
        return truth(NOTHING.union(*map(leaves.intersection, answers)))

    @cached_property
    def _rest(self) -> tuple[Truth, frozenset[object]] | None:
        """What clauses and bars do not say of the tree; of most rules it is never asked."""
        rest = [one for one in self._parts if not self._is_said(one)]
        if not rest:
            return None
        tree = joined(True, rest)
        return tree.truth(), frozenset(tree.leaves())

    def _is_said(self, part: Tree) -> bool:
        """True if clauses or bars say all of a part."""
        leaves = [part] if part.leaf is not None else [] if part.every else part.parts
        if any(one.leaf is None for one in leaves):
            return False
        if any(one.negated for one in leaves):
            return part.leaf is not None
        return frozenset(one.leaf for one in leaves) in self.clauses

    @cached_property
    def keywords(self) -> frozenset[Leaf]:
        """What it asks of all values of an event."""
        return frozenset(ask for ask in self.asks if ask.field is None)

    def may_hold(self, keywords: frozenset[Leaf]) -> bool:
        """False if it cannot match where no more of its keywords hold than these."""
        clauses = (one for one in self.clauses if one <= self.keywords)
        return not any(keywords.isdisjoint(one) for one in clauses)

    def gate(self, fields: frozenset[str]) -> frozenset[Ask] | None:
        """What `gate_of` says; it is remembered."""
        if fields not in self._gates:
            self._gates[fields] = self.gate_of(fields)
        return self._gates[fields]

    def gate_of(self, fields: AbstractSet[str | None]) -> frozenset[Ask] | None:
        """Asks of these fields of which one must hold for the rule to match; None: none is."""
        if not any(ask.field in fields for ask in self.asks):
            return None
        found = self.tree.witnesses(lambda leaf: isinstance(leaf, Ask) and leaf.field in fields)
        return cast("frozenset[Ask] | None", found)


class Gates(NamedTuple):
    """Fields that are looked at first, and what they say of the others.

    Many rules begin with a number of the event; what they ask of other fields matters only to
    events that have it.
    """

    first: frozenset[str]
    always: frozenset[object]
    """What is looked at in any case: fields, None for keywords, asks that compare fields."""
    opened: Mapping[object, AbstractSet[object]]
    """What is looked at, too, if an ask holds."""

    def needed(self, held: Iterable[object]) -> frozenset[object]:
        """What is looked at where this holds of the first fields."""
        return self.always.union(*(self.opened[one] for one in held if one in self.opened))

    @classmethod
    def of(cls, first: frozenset[str], rules: Iterable[Planned]) -> Gates:
        """What these fields say of all that rules look at."""
        always: set[object] = {Expired}
        opened: dict[object, set[object]] = defaultdict(set)
        for rule in rules:
            looks_at = {ask if ask.others else ask.field for ask in rule.asks}
            gate = rule.gate(first)
            if gate is None:
                always |= looks_at
            for ask in gate or ():
                opened[ask] |= looks_at
        return cls(first, frozenset(always), opened)


def first_fields(rules: Collection[Planned]) -> frozenset[str]:
    """Fields with which many rules begin, and that tables alone decide; every event has a time."""
    plain: set[str | None] = set()
    others: set[str | None] = {TIME, None}
    for ask in {ask for rule in rules for ask in rule.asks}:
        if ask.field not in others:
            (plain if is_look_up(ask) else others).add(ask.field)
    plain -= others
    gates = (rule.gate_of(plain) or () for rule in rules)
    used = Counter(field for gate in gates for field in {ask.field or "" for ask in gate})
    least = max(GATED_FROM, len(rules) // GATED_PART)
    return frozenset(
        field for field, count in used.items() if count >= least and len(elsewhere(field)) < 2
    )


class Plan(Generic[Rule]):
    """The rules of a log source.

    Args:
        rules: These.
        room: Where it is remembered what answers do.
        first: Fields that are looked at first.
    """

    def __init__(self, rules: Sequence[Rule], room: Room, first: frozenset[str]) -> None:
        self.rules = rules
        self._first = first
        leaves = frozenset[Leaf]().union(*(rule.leaves for rule in rules))
        self.fields: dict[str | None, set[Ask]] = defaultdict(set)
        """What is asked, by field; None stands for keywords."""
        for leaf in leaves:
            if isinstance(leaf, Ask):
                self.fields[leaf.field].add(leaf)
        expiries = [leaf for leaf in leaves if isinstance(leaf, Expired)]
        self.expiries = sorted(expiries, key=lambda one: one.at)
        self._past = [Held(self.expiries[:count]) for count in range(len(expiries) + 1)]
        self._size = len(rules)
        self._every = (1 << len(rules)) - 1
        self._free = 0
        """Bits of the clauses that rules do not have."""
        self._bits: dict[object, list[int]] = defaultdict(list)
        """Bits that stand for what holds: a row of bits, one a rule, says which have their first
        clause by it, another their second …, one which are barred, and one which are failed."""
        for number, rule in enumerate(rules):
            for row in range(len(rule.clauses), CLAUSES):
                self._free |= 1 << row * len(rules) + number
            for row, some in (*enumerate(rule.clauses), (BARRED, rule.bars)):
                for one in some:
                    self._bits[one].append(row * len(rules) + number)
        self._rows_of = Memory(room, self._rows, ENTRY_BYTES + (FAILED + 1) * len(rules) // 8)

    @cached_property
    def gates(self) -> Gates:
        """What decides which fields have to be looked at."""
        return Gates.of(self._first, self.rules)

    def past(self, time: datetime) -> Held:
        """The filters that have expired."""
        return self._past[bisect_right(self.expiries, time, key=lambda one: one.at)]

    def decide(self, answers: Sequence[Held]) -> Verdict[Rule]:
        """The rules that match where these hold together, and those that cannot be decided."""
        several = {*answers}
        rows = reduce(or_, map(self._rows_of.__getitem__, several), self._free)
        size = self._size
        pairs = rows & rows >> 2 * size
        candidates = self._every & pairs & pairs >> size & ~(rows >> BARRED * size)
        if failing := rows >> FAILED * size:
            candidates &= ~failing
        if not candidates and not failing:
            return ()
        matched = [rule for rule in self._numbered(candidates) if rule.is_true(several)]
        failed = [*self._numbered(failing)]
        return (tuple(matched), tuple(failed)) if matched or failed else ()

    def needs(self, keywords: frozenset[Leaf]) -> bool:
        """True if it makes a difference to a rule whether these keywords hold, and no others."""
        return any(
            not rule.keywords.isdisjoint(keywords) and rule.may_hold(keywords)
            for rule in self._with_keywords
        )

    @cached_property
    def _with_keywords(self) -> list[Rule]:
        asked = self.fields.get(None, set())
        return [rule for rule in self.rules if not rule.leaves.isdisjoint(asked)]

    def _rows(self, held: Held) -> int:
        """What an answer says of all rules, in rows of bits."""
        found = bytearray((FAILED + 1) * self._size // 8 + 1)
        for one in held:
            bits: Iterable[int] = self._bits.get(one, ())
            if isinstance(one, Failed):
                start = FAILED * self._size
                bits = [start + n for n, rule in enumerate(self.rules) if one in rule.failures]
            for bit in bits:
                found[bit >> 3] |= 1 << (bit & 7)
        return int.from_bytes(found, "little")

    def _numbered(self, bits: int) -> Iterator[Rule]:
        while bits:
            lowest = bits & -bits
            yield self.rules[lowest.bit_length() - 1]
            bits ^= lowest
