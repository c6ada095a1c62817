"""Protected samples that a person lets out to other operators: shown before, checked, then queued.

What leaves is what was shown, byte by byte. It is refused if the policy forbids it, if its rule is
none of the library that all operators share, or if that rule, as the library has it, does not match
what is left once every name is replaced: such a sample would protect nothing elsewhere. What the
rule says itself may stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec

from cityward import CitywardError, Event, InputError, Unsafe
from detectors.sigma.engine import Engine
from detectors.sigma.matchers import Placeholders
from detectors.sigma.rule import Rule, RuleSet, Speaking
from siem import library, register
from siem import samples as runs
from siem.assets import from_settings
from siem.config import Settings
from siem.literals import Literals
from siem.node import event_of
from siem.sharing.policy import Policy
from siem.sharing.samples import TIME, Offer, Own, checked, masked, plain, sample_id
from siem.sharing.wire import Sample
from siem.store.embedded import NodeDb
from siem.store.protocol import Conflict, Document
from siem.store.rulebook import Protected
from siem.store.samples import EVENTS_MAX, Foreign, Release
from siem.tuning import BEFORE_SEEN, LONGEST


class Releasing:
    """What people see and decide of protected samples at one node; any thread may ask.

    Args:
        settings: What the file says.
        db: Protected samples, and what was released.
        policy: The sharing policy of the moment; None: nothing leaves.
        clock: The node's time.
        shared: The rules that all operators share; None: what comes with cityward.
    """

    def __init__(
        self,
        settings: Settings,
        db: NodeDb,
        policy: Callable[[], Policy | None],
        clock: Callable[[], datetime],
        shared: Callable[[], RuleSet] | None = None,
    ) -> None:
        self._settings = settings
        self._db = db
        self._policy = policy
        self._clock = clock
        self._shared = shared or library.shipped

    # ---- what there is

    def own(self, rule: str = "") -> list[Own]:
        """Findings of ours that are protected, of one rule or all, with what was let out."""
        released: dict[str, Release] = {}
        now = self._clock()
        for one in self._db.samples.releases(rule):
            if not one.is_over(now):
                released.setdefault(one.finding, one)
        found: dict[str, list[Protected]] = {}
        for event in self._db.rulebook.protected(rule):
            if not event.operator:
                found.setdefault(event.finding, []).append(event)
        return [
            Own(finding, of[0].rule, len(of), of[0].by, of[0].time, released.pop(finding, None))
            for finding, of in found.items()
        ] + [
            Own(one.finding, one.rule, 0, one.people[0], one.time, one) for one in released.values()
        ]

    def foreign(self, rule: str = "") -> list[Foreign]:
        """Samples of other operators, of one rule or all, the newest first."""
        return self._db.samples.foreign(rule)

    def events(self, id: str) -> list[Document]:
        """Events of a sample of another operator that counts here."""
        every = self._db.rulebook.protected(finding=id)
        return [one.event for one in every if one.operator]

    # ---- what would leave

    def offer(self, finding: str) -> Offer:
        """What would leave of a finding, and what forbids it; nothing changes.

        Raises:
            InputError: nothing of it is protected.
        """
        rows = self._db.rulebook.protected(finding=finding) if finding else []
        kept = [one for one in rows if not one.operator]
        if not kept:
            what = f"no event of finding {finding[:80]} is protected"
            raise InputError(what, "finding", "Call it a true positive first.")
        rule, before = kept[0].rule, [one.event for one in kept[-EVENTS_MAX:]]
        one = next((each for each in self._shared().speaking() if each.id == rule), None)
        title = one.analytic.name if one else rule
        try:
            policy = self._policy()
            if policy is None or not policy.samples.people:
                todo = "Write samples: {release: person} into it, if that is meant."
                raise Unsafe("the sharing policy lets no sample out", "samples", todo)
            if one is None:
                todo = "Other operators have not got it."
                raise Unsafe("its rule is none of the shared library", title, todo)
            words = Literals(runs.alone(one, self._shared()))
            after = masked(before, policy.plan, policy.samples.drop, words)
            self._check_matches(one, before, after)
            said = Sample(
                rule=rule,
                events=tuple(msgspec.to_builtins(each) for each in after),
                is_named=policy.samples.operator == "named",
            )
            payload = msgspec.json.encode(plain(said), order="sorted")
            checked(msgspec.json.decode(payload), title, lambda rule: words)
        except CitywardError as error:
            why = " ".join(part for part in (f"{error.what}.", error.todo) if part)
            return Offer(finding, rule, title, tuple((each, None) for each in before), why=why)
        seen = hashlib.sha256(payload + policy.hash.encode()).hexdigest()
        return Offer(
            finding=finding,
            rule=rule,
            title=title,
            events=tuple(zip(before, after, strict=True)),
            seen=seen,
            payload=payload,
            policy=policy.hash,
            people=policy.samples.people,
            is_named=said.is_named,
            days=policy.samples.retention.days,
        )

    def _check_matches(
        self, one: Speaking, before: Sequence[Document], after: Sequence[Document]
    ) -> None:
        """Refuse a sample that its rule does not see any more."""
        rules, lists = runs.alone(one, self._shared()), self._lists()
        was, then = [_event(each) for each in before], [_event(each) for each in after]
        if not isinstance(one, Rule) and _speaks(one, rules, lists, was):
            if not _speaks(one, rules, lists, then):
                raise _silent(one, rules, before, after)
            return
        # What wants more events than are kept of it cannot be asked, but its rules can.
        places = _matched(rules, lists, was)
        if not places:
            what = "the rule, as all operators have it, does not match these events"
            raise Unsafe(what, one.analytic.name, "Yours is another one, or a list is.")
        if not places <= _matched(rules, lists, then):
            raise _silent(one, rules, before, after)

    def _lists(self) -> Placeholders:
        inventory = from_settings(self._settings)
        assets = self._db.inventory.assets(merged=True)
        inventory.use(register.known(self._settings, assets))
        return inventory.placeholders(self._settings.lists)

    # ---- what people decide

    def release(self, finding: str, seen: str, by: str, reason: str) -> str:
        """Let a sample out; returns the id under which it leaves.

        Args:
            finding: Whose events.
            seen: `seen` of the offer that the person has looked at.
            by: Who lets it out.
            reason: Why; it stays here.

        Raises:
            InputError: nobody says why, or nothing is protected.
            Unsafe: something forbids it.
            Conflict: other events would leave than they saw, or it is out already.
        """
        offer = self.offer(finding)
        if offer.why:
            raise Unsafe(offer.why.rstrip("."), offer.title, "It stays here.")
        if offer.seen != seen:
            what = "something else would leave than you saw"
            raise Conflict(what, finding, "Look at it once more.")
        before = self._db.samples.releases(finding=finding)
        id, now = sample_id(finding, len(before)), self._clock()
        release = Release(
            id=id,
            finding=finding,
            rule=offer.rule,
            policy=offer.policy,
            payload=offer.payload,
            people=(by,),
            reason=reason,
            time=now,
            changed=now,
        )
        self._db.samples.release(release)
        return id

    def approve(self, id: str, by: str) -> bool:
        """Say yes as one more person; False if it does not wait for them.

        Raises:
            Conflict: something else would leave now, so they have not seen this.
        """
        one = self._db.samples.get(id)
        is_waiting = one is not None and one.state == "approval"
        if one is not None and is_waiting and self.offer(one.finding).payload != one.payload:
            what = "something else would leave now than was let out"
            raise Conflict(what, one.finding, "Take it back, and let it out anew.")
        return self._db.samples.approve(id, by, self._clock())

    def withdraw(self, id: str, by: str, reason: str) -> bool:
        """Take a sample back from all operators; False if it is not out."""
        return self._db.samples.withdraw(id, by, reason, self._clock())

    def set_aside(self, id: str, by: str, reason: str, *, aside: bool = True) -> bool:
        """Let a sample of another operator forbid nothing here, or again; False if it is so."""
        return self._db.samples.set_aside(id, by, reason, self._clock(), aside=aside)

    def set_operator_aside(
        self, operator: str, by: str, reason: str, *, aside: bool = True
    ) -> int | None:
        """Let all samples of an operator forbid nothing here, also later ones, or again.

        Returns:
            How many this changed; None: it is so already, or nothing is of it.
        """
        now = self._clock()
        return self._db.samples.set_operator_aside(operator, by, reason, now, aside=aside)


def _silent(
    one: Speaking, rules: RuleSet, before: Sequence[Document], after: Sequence[Document]
) -> Unsafe:
    gone = {name for was in before for name in was} - {name for now in after for name in now}
    asked = str([one.document.value, *(each.document.value for each in rules.rules)])
    lost = sorted(name for name in gone if name in asked)
    lists = sorted({f"%{name}%" for each in rules.rules for name in each.needs})
    todo = "It stays here."
    if lost:
        todo = f"It needs what is replaced, or what stays here: {', '.join(lost[:8])}."
    if lists:
        todo += f" It asks for lists of this site: {', '.join(lists)}."
    what = "the rule would not match any more once all names are replaced"
    return Unsafe(what, one.analytic.name, todo)


def _speaks(one: Speaking, rules: RuleSet, lists: Placeholders, events: Sequence[Event]) -> bool:
    """Whether a correlation or absence speaks of the events together."""
    engine = Engine(rules, lists)
    found = [*engine.detect(events), *engine.tick(events[-1].time + LONGEST)]
    return any(finding.analytic.id == one.id for finding in found)


def _matched(rules: RuleSet, lists: Placeholders, events: Sequence[Event]) -> set[int]:
    """Places of the events that one of the rules matches."""
    engine = Engine(rules, lists)
    ids = [rule.id for rule in rules.rules]
    return {n for n, event in enumerate(events) if any(engine.matches(id, event) for id in ids)}


def _event(stored: Document) -> Event:
    return event_of({**BEFORE_SEEN, "event.ingested": stored[TIME], **stored})
