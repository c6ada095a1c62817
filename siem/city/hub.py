"""The hub: exchange, joins and what both rest on, as one active process; and its console's view.

Exchange and joins are one process, since a withdrawal is answered when what rests on it is mended.
The console is another: it reads the common store within the rights of people, and writes nothing
of it. Both have people and audit trail in `node.db`.
"""

from __future__ import annotations

import logging
import shutil
import socket
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from cityward.errors import CitywardError, InputError, TransientError
from detectors.sigma.rule import RuleSet
from siem.city import joiner
from siem.city.authority import Operators
from siem.city.campaigns import TOLD, Campaigns, told
from siem.city.commons import CITY, CITY_SOC, Commons, Records
from siem.city.exchange import ANSWER, RECEIPT, TOMBSTONE, Exchange
from siem.city.intake import OLDEST, Refused
from siem.city.known import Duty, Link, Told
from siem.city.lease import Lease
from siem.city.links import hearing, links
from siem.city.people import People
from siem.city.port import Port
from siem.city.proposals import PROPOSED, Playbook, Proposals, Wanted, given, said_of, waiting, want
from siem.city.reading import AccessLog, Reading, rights_of
from siem.city.samples import SAMPLE, Samples
from siem.city.town import Town
from siem.city.watch import STATE, look_around
from siem.duties import Duties, clocks
from siem.sharing.drop import answer, read_drop, refuse
from siem.sharing.samples import Words, no_words
from siem.store.accounts import Accounts
from siem.store.cases import CaseStore
from siem.store.embedded import NodeDb
from siem.store.protocol import Conflict, Document, Person, Range
from siem.store.trail import Audited, Proof

EXPIRE_EVERY_S = 30.0
LOOK_EVERY_S = 10.0
AROUND_EVERY_S = 60.0
DROP_EVERY_S = 1.0
PROPOSE_EVERY_S = 1.0
SAMPLES_EVERY_S = 5.0
PEOPLE_EVERY_S = 5.0
RETAIN_EVERY_S = 3_600.0
FORGET_EVERY = timedelta(days=1)
ACCESS_FOR = timedelta(days=400)
WORDS = {
    "campaign": "Told of it, with its own shares in it",
    "update": "Told that it has grown or changed",
    "withdrawn": "Told that it does not hold any more",
}
"""What an operator was told, in words for people."""

log = logging.getLogger(__name__)

Clock = Callable[[], datetime]


class Hub:
    """The active process of a hub.

    Args:
        commons: The common store.
        db: People, and the audit trail.
        folder: Keys of the exchange.
        rules: The correlations of the hub.
        holder: Who we are, for the people of the other hub.
        alone: No other hub can be there: the store is in files.
        threshold: Counts of operators below it are told to the city only.
        by_itself: What is proposed for every severe campaign; None: only people propose.
        library: Ids of the rules that all operators share, asked when a sample comes.
        words_of: What one of them says itself.
        drop: Folder in which envelopes arrive as files; None: none do.
        shares_for: Shares are kept at most so long.
        town: Services and districts, whose changes are kept also while nobody looks.
        clock: The hub's time.
    """

    def __init__(
        self,
        commons: Commons,
        db: NodeDb,
        folder: Path,
        rules: RuleSet,
        *,
        holder: str,
        alone: bool,
        threshold: int,
        by_itself: Playbook | None = None,
        library: Callable[[], Container[str]] = frozenset,
        words_of: Callable[[str], Words] = no_words,
        drop: Path | None,
        shares_for: timedelta,
        town: Town,
        clock: Clock,
    ) -> None:
        self.commons = commons
        self._town = town
        self.db = db
        self.clock = clock
        self.stop = threading.Event()
        self.operators = Operators(commons.records, folder, clock)
        self.operators.make()
        self.lease = Lease(commons.records, holder, alone=alone)
        self.exchange = Exchange(commons, self.operators, self.lease, db.audit, clock)
        send = self.exchange.letters.send
        self.proposals = Proposals(commons, send, clock, by_itself)
        self.campaigns = Campaigns(commons, send, clock, threshold, self.proposals.told)
        self.joiner = joiner.Joiner(commons, self.campaigns, rules, self.exchange.links, clock)
        self.exchange.listener = self.joiner
        self.exchange.answered = self.proposals.answered
        key = self.operators.signing_key.private_bytes_raw()
        self.samples = Samples(
            commons.records, self.exchange.letters, self._told_of_samples, library, key, clock,
            words_of,
        )  # fmt: skip
        self.exchange.samples = self.samples
        self._access = AccessLog(commons.records, clock)
        self._drop = drop
        self._early: set[Path] = set()
        """Envelopes of the drop that came before the one that they follow; they are not asked for
        again until another one was taken."""
        self._shares_for = shares_for
        self._forgot: datetime | None = None
        self._threads = [
            threading.Thread(target=self._keep_lease, name="lease", daemon=True),
            threading.Thread(
                target=joiner.run,
                args=(self.joiner, lambda: self.lease.is_active, self.stop),
                name="joins",
                daemon=True,
            ),
        ]
        self._port: Port | None = None
        self._holder = holder
        self._people = None if alone else self._people_of(db, commons)

    def _told_of_samples(self) -> list[str]:
        return hearing(self.operators, self.commons.records, SAMPLE, self.clock())

    def _people_of(self, db: NodeDb, commons: Commons) -> People:
        key = self.operators.signing_key.private_bytes_raw()
        return People(db.accounts, commons.records, key)

    def start(self, listening: socket.socket, names: Sequence[str]) -> None:
        """Take the lease if it is free, and answer operators."""
        self.lease.step()
        for one in self._threads:
            one.start()
        self._port = Port(self.exchange, listening, names)
        self._port.start()

    def run(self) -> None:
        """Do what comes round, until `stop` is set; then end in good order."""
        rounds: list[tuple[float, Callable[[], object]]] = [
            (EXPIRE_EVERY_S, lambda: self.exchange.expire(self.clock())),
            (LOOK_EVERY_S, self.joiner.look),
            (PROPOSE_EVERY_S, self.proposals.step),
            (SAMPLES_EVERY_S, self.samples.step),
            (AROUND_EVERY_S, self._look_around),
            (RETAIN_EVERY_S, self._retain),
        ]
        if self._drop is not None:
            rounds.append((DROP_EVERY_S, self.take_drop))
        threads = [threading.Thread(target=self._again, args=one, daemon=True) for one in rounds]
        if self._people is not None:
            # A standby, too, has to know who may sign in.
            args = (PEOPLE_EVERY_S, self._people.step, lambda: True)
            threads.append(threading.Thread(target=self._again, args=args, daemon=True))
        for each in threads:
            each.start()
        self._threads += threads
        self.stop.wait()
        self.close()

    def close(self) -> None:
        """End: what is under way is finished, a standby may take over at once."""
        self.stop.set()
        if self._port is not None:
            self._port.stop()
        for one in self._threads:
            if one.is_alive():
                one.join(10)
        self.lease.give_up()
        self.commons.close()
        self.db.close()

    def take_drop(self) -> int:
        """Take the envelopes that lie in the drop; returns how many."""
        count = 0
        if self._drop is None or not self.lease.is_active:
            return count
        for one in read_drop(self._drop):
            if self.stop.is_set():
                break
            if one.path in self._early:
                continue
            try:
                answer(one, self.exchange.take(one.operator, one.signed))
                count += 1
            except Refused as error:
                if error.said.get("is_gap"):
                    self._early.add(one.path)
                else:
                    refuse(one, error.what)
        if count:
            self._early.clear()
        return count

    def _keep_lease(self) -> None:
        while not self.stop.wait(self.lease.every_s):
            self.lease.step()

    def _again(
        self,
        every_s: float,
        what: Callable[[], object],
        is_due: Callable[[], bool] | None = None,
    ) -> None:
        """Do something again and again while this hub is active; what fails is tried again."""
        is_due = is_due or (lambda: self.lease.is_active)
        while not self.stop.wait(every_s):
            try:
                if is_due():
                    what()
            except CitywardError as error:
                log.warning("It comes later: %s.", error.what)
            except Exception:  # a fault of ours must not end what comes round for good
                log.exception("What comes round failed.")

    def _look_around(self) -> None:
        look_around(self.commons, self._town, self.exchange.links(), self.clock())

    def _retain(self) -> None:
        now = self.clock()
        self.commons.retain(now - self._shares_for)
        self.commons.purge()
        self._access.forget(now - ACCESS_FOR)
        if self._forgot is None or now - self._forgot > FORGET_EVERY:
            self._forgot = now
            # Shares go by whole months; what a tombstone blocks is too old to be taken at last.
            before = now - self._shares_for - timedelta(days=31)
            limits = dict.fromkeys((RECEIPT, ANSWER, TOLD, PROPOSED, STATE), before)
            forget(self.commons.records, limits | {TOMBSTONE: now - OLDEST})
        if self._people is not None:
            self._people.leave_head(self._holder.partition(",")[0], self.db.audit_proof())


def _proposal(action: str, by: str, reason: str) -> str:
    return f"Proposed by {by}: {action}. {reason}"


def forget(records: Records, limits: Mapping[str, datetime]) -> int:
    """Let go of records of some kinds that were written before a time; how many there were."""
    count = 0
    for kind, before in limits.items():
        for name, one in records.all(kind):
            if (at := one.value.get("at")) and msgspec.convert(at, datetime) < before:
                with suppress(Conflict):  # it is new again
                    records.delete(kind, name, one.version)
                    count += 1
    return count


class HubView:
    """A hub as its console sees it, see `siem/console/city_protocol.py`.

    Args:
        commons: The common store.
        db: People, and the audit trail.
        folder: Keys of the exchange.
        town: Services and districts.
        secret: Signs sessions.
        threshold: Peers and authorities are told no count below it.
        store: What the common store is, in words.
        deadlines: Legal duties that an incident of the city may have.
        playbooks: What may be proposed to operators.
        clock: The hub's time.
    """

    operator = CITY
    sector = ""

    def __init__(
        self,
        commons: Commons,
        db: NodeDb,
        folder: Path,
        town: Town,
        secret: bytes,
        *,
        threshold: int,
        store: str,
        deadlines: Duties,
        playbooks: Callable[[], Sequence[Playbook]] = tuple,
        clock: Clock,
    ) -> None:
        self.deadlines = deadlines
        self._playbooks = playbooks
        self._commons = commons
        self._db = db
        self._folder = folder
        self._threshold = threshold
        self._store = store
        self._clock = clock
        self._operators = Operators(commons.records, folder, clock)
        self._access = AccessLog(commons.records, clock)
        self.town = town
        self.secret = secret

    @property
    def accounts(self) -> Accounts:
        """People, tokens, saved views."""
        return self._db.accounts

    @property
    def records(self) -> Records:
        """The hub's memory."""
        return self._commons.records

    def now(self) -> datetime:
        """The hub's time."""
        return self._clock()

    def audit(self, by: str, action: str, about: str, now: datetime) -> None:
        """Keep what a person did."""
        self._db.audit(by, action, about, now)

    def trail(
        self, words: str, span: Range, limit: int = 50, offset: int = 0
    ) -> tuple[Sequence[Audited], int]:
        """Lines of the audit trail."""
        return self._db.trail(words, span, limit, offset)

    def audit_proof(self) -> Proof:
        """Whether the whole audit trail is as it was written."""
        return self._db.audit_proof()

    def reading(self, person: Person) -> Reading:
        """Shared findings as a person may see them."""
        rights = rights_of(person, self._threshold)
        return Reading(self._commons, rights, self._access.of(person.name), self._clock)

    def links(self) -> Sequence[Link]:
        """Every operator that was ever enrolled, by its id."""
        return links(self._operators, self.records, self._clock())

    def told(self, campaign_id: str) -> Sequence[Told]:
        """What operators were told of a campaign, newest first."""
        operators = [one.operator for one in self.links()]
        found = [
            Told(operator, WORDS[said.what], said.at)
            for operator, said in told(self.records, campaign_id, operators)
        ]
        for operator, one in given(self.records, campaign_id, operators):
            what = _proposal(one.action, one.by, one.reason)
            found.append(Told(operator, what, one.at, one.answer(self._clock()), one.answered))
        for wanted in waiting(self.records, campaign_id):
            what = f"Waits to be sent. {_proposal(wanted.action, wanted.by, wanted.reason)}"
            found += [Told(operator, what, wanted.at) for operator in wanted.operators]
        return sorted(found, key=lambda one: one.at, reverse=True)

    def proposable(self) -> Sequence[Playbook]:
        """Playbooks that ship, which operators may have."""
        return self._playbooks()

    def concerned(self, campaign_id: str) -> Sequence[str]:
        """Operators that were told of a campaign, to whom something may be proposed."""
        names = (one.operator for one in self.links() if one.state != "revoked")
        return [one for one in names if said_of(self.records, one, campaign_id)]

    def propose(
        self, campaign_id: str, playbook: str, operators: Sequence[str], reason: str, by: str
    ) -> None:
        """Have a response proposed to operators of a campaign.

        Raises:
            InputError: nothing of it may be proposed.
        """
        way = next((one for one in self.proposable() if one.name == playbook), None)
        if way is None:
            what = f"no playbook is called {playbook[:80]!r}"
            raise InputError(what, "playbook", "Choose one of the list.")
        wanted = Wanted(
            campaign=campaign_id, operators=tuple(dict.fromkeys(operators)), playbook=way.name,
            action=way.action, reason=reason, by=by, at=self._clock(),
        )  # fmt: skip
        want(self.records, wanted, [one.operator for one in self.links()])
        about = f"{way.name} to {', '.join(wanted.operators)} for {campaign_id}: {reason}"
        self.audit(by, "campaign: proposed", about, wanted.at)

    @property
    def cases(self) -> CaseStore:
        """The city's own incidents."""
        return self._db.cases

    def case_findings(self, ids: Sequence[str]) -> Sequence[Document]:
        """The shares and campaigns of an incident that are there, oldest first."""
        found = [one for id in ids if (one := self._commons.get(CITY_SOC, id)) is not None]
        return sorted(found, key=lambda one: one["finding.first_seen"])

    def duties(self, person: Person) -> Sequence[Duty]:
        """Clocks that run: those that operators told of, and those of the city's own incidents."""
        if "city-soc" not in rights_of(person, self._threshold).audiences:
            return ()
        now = self._clock()
        told = [one for link in self.links() for one in link.clocks]
        own = [
            Duty(
                incident=one.id,
                operator=CITY,
                duty=f"{clock.duty.name}, {clock.duty.within}",
                began=clock.begin,
                due=clock.due,
                draft=f"{clock.filled} of {len(clock.duty.fields)} fields",
            )
            for one in self.cases.all(open_only=True)
            for clock in clocks(one, self.deadlines, now, self.case_findings(one.findings))
            if clock.state in ("runs", "overdue") and clock.begin and clock.due
        ]
        return sorted([*told, *own], key=lambda one: one.due)

    def facts(self) -> Mapping[str, str]:
        """What hub and store say of themselves."""
        free = shutil.disk_usage(self._folder).free
        return {"disk": f"{free / 1e9:,.0f} GB free", "store": self._store}

    def close(self) -> None:
        """Let go of the stores."""
        with suppress(TransientError):
            self._access.flush()
        self._commons.close()
        self._db.close()
