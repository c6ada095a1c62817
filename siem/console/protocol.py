"""What the console needs from the node behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from playbooks.model import Plan, Playbook, Stage
from siem.console.tuning import Tuning
from siem.duties import Duties
from siem.notify.routes import Route
from siem.sharing.ledger import Proof as LedgerProof
from siem.sharing.policy import Policy
from siem.sharing.readers import Read
from siem.sharing.samples import Offer, Own
from siem.store.accounts import Accounts
from siem.store.cases import CaseStore
from siem.store.notices import NoticeStore
from siem.store.outgoing import OutgoingStore
from siem.store.proposals import ProposalStore
from siem.store.protocol import Assets, Document, Events, Findings, Range, RuleState, SourceState
from siem.store.runs import RunStore
from siem.store.samples import Foreign
from siem.store.trail import Audited, Proof


class Usage(msgspec.Struct, frozen=True):
    """How much of its place a part of the store takes."""

    name: str
    used_bytes: int
    limit_bytes: int
    """0: no limit is set."""


class Sample(msgspec.Struct, frozen=True):
    """One case of a rule and what it came to."""

    name: str
    wanted: str
    """`match`, or why it must not."""
    passed: bool
    problems: Sequence[str] = ()


class Samples(msgspec.Struct, frozen=True):
    """The samples of a rule, run; `reason` says why there are none."""

    file: str
    cases: Sequence[Sample] = ()
    reason: str = ""


class Heard(msgspec.Struct, frozen=True):
    """A network interface and what it has received since the machine started."""

    name: str
    packets: int
    bytes: int
    is_up: bool
    in_use: bool = False
    """A source of the settings reads it."""


class Why(msgspec.Struct, frozen=True):
    """A source that brings nothing, why, and what to do."""

    source: str
    reader: str
    what: str
    todo: str = ""


class Hearing(msgspec.Struct, frozen=True):
    """What the page for the first source shows; nothing of it is written anywhere."""

    interfaces: Sequence[Heard] = ()
    silent: Sequence[Why] = ()
    hints: Sequence[Why] = ()
    """What is wrong with a mirror port: `source` is its source."""
    file: str = ""
    """The settings file, where lines have to be added."""


class Home(Protocol):
    """What every console needs of what is behind it, node or hub: people and their trail."""

    @property
    def operator(self) -> str:
        """Stable id, e.g. `op-metro`."""
        ...

    @property
    def sector(self) -> str:
        """Its sector, as the schema lists them."""
        ...

    @property
    def secret(self) -> bytes:
        """Signs sessions; stays the same over restarts, never leaves the state folder."""
        ...

    def now(self) -> datetime:
        """The clock of the node; a demo turns it faster."""
        ...

    @property
    def accounts(self) -> Accounts:
        """People, their tokens and saved views, switched rules."""
        ...

    def audit(self, by: str, action: str, about: str, now: datetime) -> None:
        """Keep what a person did: sign-ins, exports; the stores keep what they change."""
        ...

    def trail(
        self, words: str, span: Range, limit: int = 50, offset: int = 0
    ) -> tuple[Sequence[Audited], int]:
        """Lines of the audit trail in which all words stand, newest first, and how many."""
        ...

    def audit_proof(self) -> Proof:
        """Whether the whole audit trail is as it was written."""
        ...


class Cased(Home, Protocol):
    """What the pages of incidents need: a node, or a hub."""

    @property
    def cases(self) -> CaseStore:
        """Where incidents are kept."""
        ...

    @property
    def deadlines(self) -> Duties:
        """Duties that may stand on an incident."""
        ...

    def case_findings(self, ids: Sequence[str]) -> Sequence[Document]:
        """The findings of an incident that are there, oldest first."""
        ...


class Sharing(Protocol):
    """What people see and decide of sharing."""

    @property
    def store(self) -> OutgoingStore:
        """What left, what waits, what the city said."""
        ...

    @property
    def proposals(self) -> ProposalStore:
        """What the city proposed, and what became of it."""
        ...

    @property
    def goes_to(self) -> str:
        """The hub, or the folder of the drop; empty: nothing is carried out."""
        ...

    def policy(self) -> Policy | None:
        """The policy of this moment; None: nothing leaves.

        Raises:
            ConfigError: it is refused.
        """
        ...

    def proof(self) -> LedgerProof:
        """Whether everything that was sent stands as it was sent."""
        ...

    def readers(self) -> Sequence[Read]:
        """Who at the hub read what we shared; the hub is asked now.

        Raises:
            CitywardError: no hub was joined, or it does not say it.
        """
        ...


class Releaser(Protocol):
    """Protected samples that leave, and those of other operators.

    What it raises: `InputError` for what is not there or without a reason, `Unsafe` for what is
    forbidden, `Conflict` if somebody else was faster.
    """

    def own(self, rule: str = "") -> Sequence[Own]:
        """Findings of ours that are protected, with what was let out of them last."""
        ...

    def foreign(self, rule: str = "") -> Sequence[Foreign]:
        """Samples of other operators, the newest first."""
        ...

    def events(self, id: str) -> Sequence[Document]:
        """Events of a sample of another operator that counts here."""
        ...

    def offer(self, finding: str) -> Offer:
        """What would leave of a finding, and what forbids it; nothing changes."""
        ...

    def release(self, finding: str, seen: str, by: str, reason: str) -> str:
        """Let out what was seen; returns the id under which it leaves."""
        ...

    def approve(self, id: str, by: str) -> bool:
        """Say yes as one more person; False if it does not wait for them."""
        ...

    def withdraw(self, id: str, by: str, reason: str) -> bool:
        """Take it back; False if it is not out."""
        ...

    def set_aside(self, id: str, by: str, reason: str, *, aside: bool = True) -> bool:
        """Let a sample of another operator forbid nothing here, or again."""
        ...

    def set_operator_aside(
        self, operator: str, by: str, reason: str, *, aside: bool = True
    ) -> int | None:
        """The same of all that an operator let out or lets out; None: it is so already."""
        ...


class Sharer(Home, Protocol):
    """What the pages of sharing need: a node."""

    @property
    def findings(self) -> Findings:
        """Where findings are kept."""
        ...

    @property
    def sharing(self) -> Sharing:
        """What may leave, what waits, what left."""
        ...

    @property
    def releases(self) -> Releaser:
        """Protected samples that leave, and those that came."""
        ...


class Responder(Protocol):
    """Playbooks of a node, what they would do, and the runs that do it."""

    @property
    def is_on(self) -> bool:
        """Whether the settings let playbooks act; otherwise they only plan."""
        ...

    @property
    def runs(self) -> RunStore:
        """The journal: runs, effects, approvals, kill switches."""
        ...

    def playbooks(self) -> Sequence[Playbook]:
        """All that can be used, each with the stage that holds for it here."""
        ...

    def refused(self) -> Sequence[Why]:
        """Files that are no playbook: `source` is the file."""
        ...

    def fitting(self, finding: Document) -> Sequence[Playbook]:
        """Those whose trigger holds for a finding."""
        ...

    def plan(self, playbook: str, finding: str) -> Plan:
        """What a playbook would do about a finding now; nothing is sent.

        Raises:
            CitywardError: there is no such playbook or finding, or it cannot be planned.
        """
        ...

    def start(self, playbook: str, finding: str, by: str, plan_hash: str) -> str:
        """Start a run of the plan that a person saw; returns its id.

        Raises:
            CitywardError: responses are off, it runs already, or the world has changed the plan.
        """
        ...

    def set_stage(self, playbook: str, stage: Stage, by: str, reason: str) -> None:
        """Say how far a playbook may go at this node.

        Raises:
            CitywardError: there is no such playbook, a reason is missing, or it has not run in
                shadow often enough to go live.
        """
        ...

    def shadow_runs(self, playbook: Playbook) -> int:
        """How often a playbook as it is now has come to its end in shadow."""
        ...


class Console(Cased, Sharer, Protocol):
    """A node as its console sees it; `siem` fulfils it."""

    @property
    def events(self) -> Events:
        """Where events are kept."""
        ...

    @property
    def inventory(self) -> Assets:
        """What is known of its assets, zones and conduits."""
        ...

    @property
    def routes(self) -> Mapping[str, Route]:
        """Whom the node tells of findings, by the name of the route."""
        ...

    @property
    def notices(self) -> NoticeStore:
        """What was told to whom, and what waits."""
        ...

    def sources(self) -> Sequence[SourceState]:
        """What every source has sent."""
        ...

    def rules(self) -> Sequence[RuleState]:
        """What is known of every rule."""
        ...

    def rule_text(self, rule: RuleState) -> str:
        """A rule as it stands in its file; empty if it is not at hand."""
        ...

    def disk(self) -> Sequence[Usage]:
        """How full the store is."""
        ...

    def facts(self) -> Mapping[str, str]:
        """What else Health says of store and node: name to words, in order."""
        ...

    def samples(self, rule: RuleState, *, run: bool) -> Samples | None:
        """The samples of a rule, run through the real collectors and the real engine.

        Without `run`, only what is known of a run before; None if nothing is.
        """
        ...

    @property
    def response(self) -> Responder:
        """What playbooks plan and do here."""
        ...

    @property
    def tuning(self) -> Tuning:
        """Rules and filters as people change them."""
        ...

    def hearing(self) -> Hearing:
        """What a first source could be, and why those that are set up bring nothing."""
        ...
