"""A city with a hub and operators, all real but for the wire: proposals there, answers back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from cityward import Actuator
from cityward.event import Event, LogSource, Record
from cityward.finding import Analytic, Finding, Severity
from detectors.sigma.rule import RuleSet
from playbooks import plan as planning
from playbooks import safety
from playbooks.journal import QUEUES, Run
from playbooks.model import Plan, Planned, Playbook, Step
from playbooks.playbook import SHIPPED_BY
from playbooks.runner import Gate, Runner
from siem import config
from siem.city.campaigns import Campaigns
from siem.city.commons import CITY_SOC
from siem.city.joiner import Joiner
from siem.city.proposals import Playbook as Way
from siem.city.proposals import Proposals as CityProposals
from siem.city.proposals import Wanted, given, want
from siem.facts import FactBook
from siem.literals import Literals
from siem.proposals import Proposals
from siem.samples import alone
from siem.sharing.certificates import new_key
from siem.sharing.identity import Hub as HubFile
from siem.sharing.identity import public_text
from siem.sharing.link import fetch_inbox
from siem.sharing.outbox import Outbox
from siem.sharing.share import Share
from siem.sharing.wire import InboxLine
from siem.store.embedded import NodeDb
from siem.store.proposals import Proposed
from siem.store.protocol import Document, Range
from tests.playbooks.kit import Clock, Planner, approved, deny, playbook, run_of
from tests.playbooks.recorder import Recorder
from tests.siem.city.city import Hub as Exchange
from tests.siem.city.test_joins import rules, tokens_of
from tests.siem.sharing.standin import FakePolicy, key_from
from tests.siem.test_facts import Flows

ATTACKER = "203.0.113.9"
WAY = Way("block", "Block an address for an hour")


class TokenPolicy(FakePolicy):
    """Lets out a severity, times, and the tokens of an address."""

    def __init__(self, hash: str = "p1", **said: Any) -> None:
        said.setdefault("audiences", ("city-soc", "peers"))
        super().__init__(hash, **said)

    def share(self, document: Document, now: datetime) -> Share | None:
        made = super().share(document, now)
        if made is None:
            return None
        tokens = tokens_of(str(document["source.ip"]), document["finding.first_seen"])
        payload = {
            "finding.type": "detection", "finding.severity": document["finding.severity"],
            "finding.first_seen": document["finding.first_seen"],
            "finding.last_seen": document["finding.last_seen"], "finding.mode": "normal",
            "source.token": tokens,
        }  # fmt: skip
        return msgspec.structs.replace(made, payload=payload, pap="green")


class City:
    """A hub that joins what operators share, and proposes."""

    shared = RuleSet()
    """Rules that all operators have."""

    def __init__(self, folder: Path, clock: Clock, by_itself: Way | None = None) -> None:
        self.clock = clock
        self.folder = folder / "hub"
        self.folder.mkdir(exist_ok=True)
        self.begin(by_itself)

    def begin(self, by_itself: Way | None = None) -> None:
        """As after a start on the same state."""
        self.ends = _Timed(self.folder, self.clock)
        exchange = self.ends.exchange
        self.proposals = CityProposals(
            self.ends.commons, exchange.letters.send, self.clock, by_itself
        )
        campaigns = Campaigns(
            self.ends.commons, exchange.letters.send, self.clock, 3, self.proposals.told
        )
        self.joiner = Joiner(self.ends.commons, campaigns, rules(), lambda: [], self.clock)
        exchange.listener = self.joiner
        exchange.answered = self.proposals.answered
        self.joiner.rebuild()

    def words_of(self, rule: str) -> Literals:
        """What one of the shared rules says itself."""
        one = next((each for each in self.shared.speaking() if each.id == rule), None)
        return Literals(RuleSet() if one is None else alone(one, self.shared))

    @property
    def campaign(self) -> str:
        """Id of the campaign that there is."""
        (found,) = self.ends.commons.search(CITY_SOC, "cw.campaign.join:*", Range()).rows
        return str(found["cw.share.id"])

    def propose(self, *operators: str, reason: str = "it scans us all", **said: Any) -> None:
        """A person wants it, and the active process sends it."""
        self.want(*operators, reason=reason, **said)
        self.proposals.step()

    def want(self, *operators: str, reason: str = "it scans us all", **said: Any) -> None:
        wanted = Wanted(
            campaign=self.campaign, operators=operators, playbook=WAY.name, action=WAY.action,
            reason=reason, by="ciso", at=self.clock(),
        )  # fmt: skip
        known = [one.name for one in self.ends.operators.all()]
        want(self.ends.commons.records, msgspec.structs.replace(wanted, **said), known)

    def answers(self) -> dict[str, str]:
        """What each operator answered last."""
        names = [one.name for one in self.ends.operators.all()]
        found = given(self.ends.commons.records, self.campaign, names)
        return {operator: one.answer(self.clock()) for operator, one in found}


class _Timed(Exchange):
    def __init__(self, folder: Path, clock: Clock) -> None:
        self._clock = clock
        super().__init__(folder)

    def clock(self) -> datetime:
        return self._clock()


class Shelf:
    """The playbooks of an operator, by the names of their files."""

    def __init__(self, db: NodeDb, books: Mapping[str, Playbook]) -> None:
        self.db = db
        self.books = books

    def named(self, name: str) -> Playbook | None:
        return self.books.get(name)

    def plan(self, book: Playbook, finding: Document) -> Plan:
        made = run_of(book, str(finding["source.ip"]), self.db.runs.now()).plan
        return msgspec.structs.replace(made, finding=finding["finding.id"])


class Operator:
    """A node with outbox, journal and a device; its people approve by `yes`."""

    def __init__(
        self,
        folder: Path,
        name: str,
        city: City,
        *,
        gate: Gate = approved,
        books: Mapping[str, Playbook] | None = None,
        plans: bool = True,
        policy: FakePolicy | None = None,
    ) -> None:
        self.name, self.city, self.clock = name, city, city.clock
        self.folder = folder / name
        self.folder.mkdir(exist_ok=True)
        self.plans, self.gate = plans, gate
        self.books = {"block": playbook(deny("block"))} if books is None else books
        self.policy = policy or TokenPolicy()
        self.key = key_from(name)
        if city.ends.operators.known(name) is None:
            token = city.ends.operators.add(name, "transport.rail")
            _, csr = new_key(name)
            city.ends.operators.enrol(token, csr, public_text(self.key.public_key()))
        hub = public_text(city.ends.operators.signing_key.public_key())
        self.hub = HubFile(url="", operator=name, authority="", signing_keys=(hub,))
        self.batch = 0
        self.begin()

    def begin(self) -> None:
        """As after a start on the same state."""
        self.db = NodeDb(self.folder / "node.db", self.name.encode() * 4, clock=self.clock)
        self.device = Recorder(self.folder / "device")
        actuators: dict[str, Actuator] = {"recorder": self.device}
        self.runner = Runner(
            self.db.runs, actuators, Planner(actuators, self.db.runs.now), self.gate
        )
        self.proposals = Proposals(self.db, Shelf(self.db, self.books))
        self.outbox = Outbox(
            self.db.outgoing, self.name, self.key, lambda: self.policy, clock=self.clock
        )

    def find(self, address: str = ATTACKER, severity: Severity = "high", rule: str = "r-1") -> str:
        """A finding, and its id."""
        now = self.clock()
        event = Event(
            now, LogSource(service="sshd"), {"source.ip": address}, Record(b"", "auth", 1, now)
        )
        one = Finding(
            analytic=Analytic(id=rule, name="scan", kind="rule", version="1"),
            title="scan", description="somebody scans", severity=severity,
            group=(("source.ip", address),), first_seen=now, last_seen=now, events=(event,),
        )  # fmt: skip
        self.batch += 1
        return self.db.keep([one], self.batch, now=now)[0]

    def send(self) -> None:
        """What is due goes to the hub, and its receipts come back."""
        exchange = self.city.ends.exchange
        while self.outbox.offer():
            pass
        while signed := self.outbox.next():
            receipt = exchange.take(self.name, signed)
            self.outbox.receipted(receipt, self.hub.key)
        self.city.joiner.step(0)

    def ask(self, method: str, path: str) -> bytes:
        """The channel: what the hub has for this operator."""
        after = int(path.partition("after=")[2])
        lines = self.city.ends.exchange.inbox(self.name, after)
        return b"\n".join(map(msgspec.json.encode, lines))

    def hear(self) -> None:
        """Fetch what the hub has."""
        self._fetch(self)

    def hear_this(self, *letters: tuple[bytes, str]) -> None:
        """Hear envelopes that a test made: signature in base64 and bytes."""
        first = self.db.outgoing.heard() + 1
        lines = [
            msgspec.json.encode(InboxLine(first + n, signature, data.decode()))
            for n, (data, signature) in enumerate(letters)
        ]

        class Made:
            def ask(self, method: str, path: str) -> bytes:
                return b"\n".join(lines)

        self._fetch(Made())

    def _fetch(self, channel: Any) -> None:
        fetch_inbox(
            channel, self.db.outgoing, self.hub, self.clock(), plans=self.plans,
            words_of=self.city.words_of,
        )  # fmt: skip

    def work(self) -> None:
        """The engine plans and goes on with what it can."""
        for _ in range(12):
            did = self.proposals.look()
            did = bool(list(self.runner.work(QUEUES, timedelta()))) or did
            if not did:
                return

    def round(self) -> None:
        """Hear, work, and tell."""
        self.hear()
        self.work()
        self.send()

    def yes(self, by: str = "ada") -> bool:
        """A person here approves the run that waits."""
        (run,) = self.db.runs.all(open_only=True)
        return self.db.runs.approve(run.id, by, "analyst", run.plan.hash)

    @property
    def one(self) -> Proposed:
        """The proposal that there is."""
        (found,) = self.db.proposals.all()
        return found

    @property
    def said(self) -> list[dict[str, Any]]:
        """What was answered, as it left."""
        lines = [one for one in self.db.outgoing.lines() if one.type == "proposal_answer"]
        return [json.loads(one.data)["payload"] for one in lines]


def told_twice(folder: Path, clock: Clock, *operators: str, **said: Any) -> Any:
    """A city whose operators have seen one attacker, and were told of the campaign."""
    city, address = City(folder, clock, said.pop("by_itself", None)), said.pop("address", ATTACKER)
    nodes = [Operator(folder, name, city, **said) for name in operators]
    for node in nodes:
        node.find(address)
    for node in nodes:
        node.send()
    for node in nodes:
        node.hear()
    return city, *nodes


SETTINGS = """
operator = "op-metro"
state_dir = "{folder}/state"

[[zone]]
id = "office"
type = "enterprise"
networks = ["10.1.0.0/16", "203.0.113.128/25"]

[[asset]]
id = "pump"
addresses = ["203.0.113.200"]
never_touch = true
last_confirmed = "2026-03-01"

[response]
on = true
alone = true
actuators = {{recorder = {{}}}}
"""


class Guarded:
    """The planner and the twelve checks of a node, all real, in front of a device that notes."""

    def __init__(self, db: NodeDb, folder: Path, device: Recorder) -> None:
        file = folder / "cityward.toml"
        file.write_text(SETTINGS.format(folder=folder), encoding="utf-8")
        known: Any = {"recorder": Recorder.cityward_spec}  # type: ignore[attr-defined]
        flows: Any = Flows()
        self.facts = FactBook(config.load(file), db, flows, db.runs, known, {})
        self.runs = db.runs
        self.actuators: dict[str, Actuator] = {"recorder": device}
        step = deny("block")
        assert step.action is not None
        action = msgspec.structs.replace(
            step.action, target={"type": "ipv4_net", "value": "${finding.source.ip}"}
        )
        step = msgspec.structs.replace(step, action=action)
        self.book = playbook(step, signed_by=SHIPPED_BY)

    def named(self, name: str) -> Playbook | None:
        return self.book if name == "block" else None

    def plan(self, book: Playbook, finding: Document) -> Plan:
        return planning.plan(book, finding, self.facts.at(self.runs.now()), self.actuators)

    def planned(self, run: Run, step: Step) -> Planned:
        now = self.facts.at(self.runs.now(), run.id)
        return planning.planned(step, run.playbook, run.finding, now, self.actuators)

    def gate(self, run: Run, planned: Planned) -> Any:
        now = self.facts.at(self.runs.now(), run.id)
        consent = safety.Consent(plan=run.plan, approvals=run.approvals, asked_by=run.asked_by)
        return safety.gate(planned, run.playbook, run.finding, now, consent)


def guard(node: Operator) -> Guarded:
    """Have a node plan and check as a real one does."""
    made = Guarded(node.db, node.folder, node.device)
    node.runner = Runner(node.db.runs, made.actuators, made.planned, made.gate)
    node.proposals = Proposals(node.db, made)
    return made
