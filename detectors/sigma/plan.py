"""Rules as one plan: what they ask, each question once, and which answers decide which rule.

A rule becomes a tree over `Ask` objects. Its *witnesses* are asks of which at least one must hold
for the rule to match, chosen so that few events have them; only rules with a witness are looked at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from detectors.sigma.condition import Condition, Name, Not
from detectors.sigma.find import Ask, is_look_up
from detectors.sigma.matchers import Comparison, Item
from detectors.sigma.rule import Detection, Selection

GATED_FROM = 8
"""A field that so many rules begin with is looked at first."""

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


class Expired:
    """Stands among what holds once a filter has expired."""

    __slots__ = ("at",)

    def __init__(self, at: datetime) -> None:
        self.at = at


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

    def witnesses(self, cost: Callable[[Leaf], int]) -> frozenset[Leaf] | None:
        """Cheapest asks of which one must hold; None if the tree can be true without any."""
        if self.leaf is not None:
            return None if self.negated else frozenset((self.leaf,))
        found = [part.witnesses(cost) for part in self.parts]
        known = [one for one in found if one is not None]
        if self.every:
            return min(known, key=lambda one: sum(map(cost, one)), default=None)
        return frozenset().union(*known) if len(known) == len(found) else None

    def truth(self) -> Truth:
        """The tree as a function."""
        if (leaf := self.leaf) is not None:
            return (lambda held: leaf not in held) if self.negated else (lambda held: leaf in held)
        plain = frozenset(
            one.leaf for one in self.parts if one.leaf is not None and not one.negated
        )
        truths = [one.truth() for one in self.parts if one.leaf is None or one.negated]
        if self.every:
            if not truths:
                return plain.issubset
            return lambda held: plain.issubset(held) and all(truth(held) for truth in truths)
        if not truths:
            return lambda held: not plain.isdisjoint(held)
        return lambda held: not plain.isdisjoint(held) or any(truth(held) for truth in truths)


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
        self.truth = tree.truth()
        self.leaves = frozenset(tree.leaves())
        self.asks = [leaf for leaf in self.leaves if isinstance(leaf, Ask)]
        self.failures = frozenset(ask.failed for ask in self.asks)


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


def _gate(tree: Tree, fields: AbstractSet[str]) -> frozenset[Ask] | None:
    """Asks of these fields of which one must hold for the tree to be true; None: there are none."""

    def cost(leaf: Leaf) -> int:
        return 1 if isinstance(leaf, Ask) and leaf.field in fields else 1_000_000

    found = tree.witnesses(cost)
    if found is None or sum(map(cost, found)) >= 1_000_000:
        return None
    return frozenset(leaf for leaf in found if isinstance(leaf, Ask))


class Plan(Generic[Rule]):
    """The rules of a log source."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = rules
        users = Counter(leaf for rule in rules for leaf in rule.leaves)
        self.fields: dict[str | None, set[Ask]] = defaultdict(set)
        """What is asked, by field; None stands for keywords."""
        for leaf in users:
            if isinstance(leaf, Ask):
                self.fields[leaf.field].add(leaf)
        expiries = [leaf for leaf in users if isinstance(leaf, Expired)]
        self.expiries = sorted(expiries, key=lambda one: one.at)
        self._always: list[int] = []
        self._watched: dict[object, list[int]] = defaultdict(list)
        for number, rule in enumerate(rules):
            witnesses = rule.tree.witnesses(users.__getitem__)
            if witnesses is None:
                self._always.append(number)
            for one in (*(witnesses or ()), *rule.failures):
                self._watched[one].append(number)

    @cached_property
    def gates(self) -> Gates:
        """What decides which fields have to be looked at."""
        plain = {
            field
            for field, asks in self.fields.items()
            if field is not None and all(map(is_look_up, asks))
        }
        used = Counter(
            field
            for rule in self.rules
            for field in {ask.field for ask in _gate(rule.tree, plain) or ()}
            if field is not None
        )
        first = frozenset(field for field, count in used.items() if count >= GATED_FROM)
        always: set[object] = {Expired}
        opened: dict[object, set[object]] = defaultdict(set)
        for rule in self.rules:
            looks_at = {ask if ask.others else ask.field for ask in rule.asks}
            gate = _gate(rule.tree, first)
            if gate is None:
                always |= looks_at
            for ask in gate or ():
                opened[ask] |= looks_at
        return Gates(first, frozenset(always), opened)

    def decide(self, held: AbstractSet[object]) -> Verdict[Rule]:
        """The rules that match where this holds, and those that cannot be decided."""
        numbers = set(self._always)
        for one in held:
            numbers.update(self._watched.get(one, ()))
        candidates = [self.rules[number] for number in sorted(numbers)]
        failed = [rule for rule in candidates if not rule.failures.isdisjoint(held)]
        matched = [rule for rule in candidates if rule not in failed and rule.truth(held)]
        return (tuple(matched), tuple(failed)) if matched or failed else ()
