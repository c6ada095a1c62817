"""A node in memory: the stores' protocols, and a small operator to look at."""

# ruff: noqa: E501 – tables of data, one row a line

from __future__ import annotations

import fnmatch
import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from argon2 import PasswordHasher
from luqum.exceptions import ParseError
from luqum.parser import parser
from luqum.tree import (
    AndOperation,
    FieldGroup,
    From,
    Group,
    Item,
    Not,
    OrOperation,
    Phrase,
    Prohibit,
    SearchField,
    To,
    UnknownOperation,
)

from cityward import Asset
from cityward.errors import CitywardError, InputError
from detectors.sigma.load import load_folder
from siem import config, duties
from siem.console.protocol import Heard, Hearing, Sample, Samples, Usage, Why
from siem.notify.routes import Route
from siem.releasing import Releasing
from siem.sharing.ledger import Proof as LedgerProof
from siem.sharing.policy import Policy
from siem.sharing.readers import Read
from siem.store.cases import CaseStore
from siem.store.embedded import NodeDb
from siem.store.inventory import names_of, spoken
from siem.store.outgoing import OutgoingStore
from siem.store.proposals import ProposalStore
from siem.store.protocol import (
    AssetRow,
    AssetState,
    Change,
    Conduit,
    Conflict,
    Document,
    Observed,
    Page,
    Person,
    Range,
    Role,
    RuleState,
    SourceState,
    Token,
    ZoneRow,
)
from siem.store.trail import Audited, Proof
from siem.workbench import Workbench
from tests.siem.console import fake_response
from tests.siem.test_tuning import RULE, SAMPLES

NOW = datetime(2026, 11, 12, 3, 14, 7, tzinfo=UTC)
PASSWORD = "correct horse battery"
HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
SEVERITIES = ("informational", "low", "medium", "high", "critical", "fatal")


def _matches(node: Item, document: Document, field: str = "") -> bool:
    match node:
        case AndOperation() | UnknownOperation():
            return all(_matches(child, document, field) for child in node.children)
        case OrOperation():
            return any(_matches(child, document, field) for child in node.children)
        case Not() | Prohibit():
            return not _matches(node.a, document, field)
        case SearchField():
            return _matches(node.expr, document, node.name)
        case Group() | FieldGroup():
            return _matches(node.expr, document, field)
        case From() | To():
            limit, value = float(str(node.a)), document.get(field)
            return value is not None and (
                value >= limit if isinstance(node, From) else value <= limit
            )
    wanted = str(node).strip()
    if isinstance(node, Phrase):
        wanted = wanted[1:-1].replace('\\"', '"').replace("\\\\", "\\")
        return any(_text(value) == wanted for value in _values(document, field))
    return any(
        fnmatch.fnmatchcase(_text(value).lower(), wanted.lower())
        for value in _values(document, field)
    )


def _values(document: Document, field: str) -> list[Any]:
    if field:
        value = document.get(field)
        return value if isinstance(value, list) else [] if value is None else [value]
    return [value for value in document.values() if isinstance(value, str | int | float)]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def select(documents: Sequence[Document], query: str, span: Range, time: str) -> list[Document]:
    """Documents that fit, newest first."""
    if query.count("/33"):
        raise CitywardError(
            "no network is /33",
            f"query, character {query.index('/33') + 1}",
            "Write 192.0.2.0/24 or a single address.",
        )
    words = query.replace(" and ", " AND ").replace(" or ", " OR ").replace("not ", "NOT ")
    try:
        tree = parser.parse(words) if words.strip() else None
    except ParseError as error:
        raise CitywardError(str(error), f"query, character {len(query)}", "Close it.") from None
    found = [
        one
        for one in documents
        if span.since <= one[time] < span.until and (tree is None or _matches(tree, one))
    ]
    return sorted(found, key=lambda one: (one[time], str(one.get("event.id"))), reverse=True)


class FakeEvents:
    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents

    def search(self, query: str, span: Range, limit: int = 50, offset: int = 0) -> Page:
        found = select(self.documents, query, span, "@timestamp")
        return Page(found[offset : offset + limit], len(found))

    def get(self, event_id: str, near: datetime | None = None) -> Document | None:
        return next((one for one in self.documents if one["event.id"] == event_id), None)

    def histogram(self, query: str, span: Range, buckets: int = 96) -> list[tuple[datetime, int]]:
        found = select(self.documents, query, span, "@timestamp")
        return [(at, sum(kinds.values())) for at, kinds in _buckets(found, span, buckets, None)]

    def top_values(
        self, query: str, span: Range, field: str, limit: int = 10
    ) -> tuple[list[tuple[str, int]], int]:
        found = select(self.documents, query, span, "@timestamp")
        counted = Counter(_text(value) for one in found for value in _values(one, field))
        return counted.most_common(limit), sum(field in one for one in found)

    def fields(self, query: str, span: Range) -> list[tuple[str, int]]:
        found = select(self.documents, query, span, "@timestamp")
        return Counter(name for one in found for name in one).most_common()


def _buckets(
    found: Sequence[Document], span: Range, buckets: int, kind: str | None
) -> list[tuple[datetime, Counter[str]]]:
    if not found:
        return []
    time = "@timestamp" if kind is None else "finding.last_seen"
    since = max(span.since, min(one[time] for one in found))
    until = min(span.until, max(one[time] for one in found) + timedelta(seconds=1))
    if span.since.year > 1990:
        since, until = span.since, span.until
    step = max((until - since) / buckets, timedelta(milliseconds=1))
    made: dict[int, Counter[str]] = {}
    for one in found:
        place = int((one[time] - since) / step)
        made.setdefault(place, Counter())[one[kind] if kind else "all"] += 1
    return [(since + step * place, made[place]) for place in sorted(made)]


class FakeFindings:
    def __init__(self, documents: list[Document], events: FakeEvents) -> None:
        self.documents = documents
        self.events = events

    def _select(self, query: str, span: Range, sort: str) -> list[Document]:
        found = select(self.documents, query, span, "finding.last_seen")
        key = sort.removeprefix("-")
        rank = SEVERITIES.index if key == "finding.severity" else (lambda value: value)
        return sorted(found, key=lambda one: rank(one[key]), reverse=sort.startswith("-"))

    def search(
        self,
        query: str,
        span: Range,
        sort: str = "-finding.risk",
        limit: int = 50,
        offset: int = 0,
    ) -> Page:
        found = self._select(query, span, sort)
        return Page(found[offset : offset + limit], len(found))

    def groups(
        self,
        query: str,
        span: Range,
        sort: str = "-finding.risk",
        limit: int = 50,
        offset: int = 0,
    ) -> Page:
        made: dict[str, list[Document]] = {}
        for one in self._select(query, span, sort):
            made.setdefault(_group(one), []).append(one)
        rows = [_row(group, members) for group, members in made.items()]
        return Page(rows[offset : offset + limit], len(rows))

    def members(self, group: str, query: str, span: Range, limit: int = 50) -> Page:
        found = [
            one for one in self._select(query, span, "-finding.last_seen") if _group(one) == group
        ]
        return Page(found[:limit], len(found))

    def get(self, finding_id: str) -> Document | None:
        return next((one for one in self.documents if one["finding.id"] == finding_id), None)

    def events_of(self, finding_id: str) -> list[Document]:
        finding = self.get(finding_id)
        if finding is None:
            return []
        rows = [
            one for one in self.events.documents if one.get("source.ip") == finding.get("source.ip")
        ]
        return rows[:5]

    def related(self, finding_id: str, within_s: float = 7200.0) -> list[Document]:
        mine = self.get(finding_id)
        return [
            one
            for one in self.documents
            if mine and one is not mine and one.get("source.ip") == mine.get("source.ip")
        ][:4]

    def counts(self, query: str, span: Range) -> Mapping[str, int]:
        return Counter(
            one["finding.status"]
            for one in select(self.documents, query, span, "finding.last_seen")
        )

    def histogram(
        self, query: str, span: Range, buckets: int = 48
    ) -> list[tuple[datetime, Mapping[str, int]]]:
        found = select(self.documents, query, span, "finding.last_seen")
        return list(_buckets(found, span, buckets, "finding.severity"))

    def change(
        self,
        ids: Sequence[str],
        change: Change,
        by: str,
        now: datetime,
        revisions: Mapping[str, int] | None = None,
    ) -> int:
        changed = 0
        for one in self.documents:
            seen = (revisions or {}).get(one["finding.id"])
            if one["finding.id"] in ids and seen not in (None, one["finding.revision"]):
                raise Conflict("another revision", "revision", "Read it again.")
        self.before: list[Document] = []
        for one in self.documents:
            if one["finding.id"] not in ids:
                continue
            changed += 1
            self.before.append(dict(one))
            one["finding.revision"] += 1
            if change.status is not None:
                one["finding.status"] = change.status
            if change.verdict is not None:
                one["finding.verdict"] = change.verdict
            if change.assignee is not None:
                one["assignee"] = change.assignee
            said = {
                "time": now,
                "by": by,
                "what": change.status or "comment",
                "why": change.comment,
            }
            one["cw.history"] = [*one.get("cw.history", []), said]
        return changed

    def undoable(self, by: str, now: datetime) -> int:
        return len(getattr(self, "before", ()))

    def undo(self, by: str, now: datetime) -> int:
        found = {one["finding.id"]: one for one in self.documents}
        undone, self.before = self.before, []
        for one in undone:
            found[one["finding.id"]].update(one)
        return len(undone)


def _group(one: Document) -> str:
    return hashlib.sha256(f"{one['rule.id']} {one['cw.asset.asset_id']}".encode()).hexdigest()[:16]


def _row(group: str, members: Sequence[Document]) -> Document:
    worst = max(members, key=lambda one: SEVERITIES.index(one["finding.severity"]))
    hours = [0] * 24
    for one in members:
        place = 23 - int((NOW - one["finding.last_seen"]) / timedelta(hours=1))
        if 0 <= place < 24:
            hours[place] += one["finding.count"]
    return {
        "group": group,
        "rule.id": worst["rule.id"],
        "finding.title": worst["finding.title"],
        "cw.asset.asset_id": worst["cw.asset.asset_id"],
        "cw.asset.zone": worst["cw.asset.zone"],
        "finding.severity": worst["finding.severity"],
        "finding.risk": max(one["finding.risk"] for one in members),
        "finding.status": sorted({one["finding.status"] for one in members}),
        "findings": len(members),
        "finding.count": sum(one["finding.count"] for one in members),
        "finding.first_seen": min(one["finding.first_seen"] for one in members),
        "finding.last_seen": max(one["finding.last_seen"] for one in members),
        "assignee": worst.get("assignee", ""),
        "marks": worst.get("marks", []),
        "hours": hours,
    }


class FakeInventory:
    def __init__(self) -> None:
        self.rows: dict[str, AssetRow] = {}
        self.ways: list[Conduit] = []
        self.areas: list[ZoneRow] = []
        self.numbers: dict[str, int] = {}

    def assets(self) -> list[AssetRow]:
        return list(self.rows.values())

    def asset(self, name: str) -> AssetRow | None:
        found = (row for row in self.rows.values() if name in names_of(row))
        return self.rows.get(name) or next(found, None)

    def conduits(self) -> list[Conduit]:
        return self.ways

    def zones(self) -> list[ZoneRow]:
        return self.areas

    def learning(self) -> Mapping[str, int]:
        return self.numbers

    def approve(self, ids: Sequence[str], by: str, why: str, now: datetime, **said: object) -> int:
        return self._say(ids, "approved", by, why, now, said)

    def correct(self, id: str, by: str, why: str, now: datetime, **said: object) -> int:
        return self._say([id], self.rows[id].state, by, why, now, said)

    def retire(self, ids: Sequence[str], by: str, why: str, now: datetime) -> int:
        return self._say(ids, "retired", by, why, now, {})

    def merge(self, id: str, other: str, by: str, why: str, now: datetime) -> int:
        if id == other:
            raise InputError(f"{other!r} cannot be merged", "merge", "Name two different assets.")
        gone = self.rows.pop(other)
        addresses = (*self.rows[id].asset.addresses, *gone.asset.addresses)
        self._say([id], self.rows[id].state, by, why, now, {"addresses": addresses})
        self.rows[id] = msgspec.structs.replace(self.rows[id], aliases=(other,))
        return 1

    def approve_conduits(self, ids: Sequence[str], by: str, why: str, now: datetime) -> int:
        done = [one for one in self.ways if one.id in ids and one.state != "approved"]
        for one in done:
            one.state = "approved"
        return len(done)

    def _say(
        self,
        ids: Sequence[str],
        state: AssetState,
        by: str,
        why: str,
        now: datetime,
        said: Mapping[str, Any],
    ) -> int:
        for id in ids:
            row = self.rows[id]
            line = {"time": now.isoformat(), "by": by, "what": state, "why": why}
            self.rows[id] = msgspec.structs.replace(
                row,
                asset=spoken(row.asset, said),
                state=state,
                origin="person",
                history=(*row.history, line),
            )
        return len(ids)


MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
PEOPLE: dict[str, tuple[Role, ...]] = {
    "a.admin": ("administrator",),
    "i.vasko": ("analyst",),
    "e.ngineer": ("engineer",),
    "t.lindqvar": ("approver",),
    "b.oth": ("engineer", "administrator"),
}
HEARD = Hearing(
    interfaces=(
        Heard("enp1s0", 18_204_551, 12_400_000_000, is_up=True),
        Heard("enp2s0", 0, 0, is_up=False),
        Heard("lo", 412, 40_000, is_up=True),
    ),
    silent=(
        Why("dns", "file", "/var/log/dns.log is not there", "Check the path."),
        Why("tap-east", "interface", "enp2s0 is down", "ip link set enp2s0 up; check the cable."),
    ),
    hints=(Why("tap-north-1", "interface", "412 of 500 TCP flows have no answer", "Both ways."),),
    file="/etc/cityward/cityward.toml",
)


class FakeSharing:
    """What people see of sharing: a real store, a policy that a test sets."""

    goes_to = "https://hub.saltmere.example:8443"

    def __init__(self, store: OutgoingStore, proposals: ProposalStore) -> None:
        self.store = store
        self.proposals = proposals
        self.said: Policy | None = None
        self.fault: CitywardError | None = None
        self.proved = LedgerProof()
        self.reads: list[Read] = []

    def policy(self) -> Policy | None:
        if self.fault:
            raise self.fault
        return self.said

    def proof(self) -> LedgerProof:
        return self.proved

    def readers(self) -> Sequence[Read]:
        if self.fault:
            raise self.fault
        return self.reads


class FakeNode:
    """A node whose stores of findings and events live in memory; its accounts are real ones."""

    operator = "op-energy"
    sector = "energy.district_heating"
    secret = b"only for tests, and long enough"

    def __init__(
        self, findings: list[Document] | None = None, events: Sequence[Document] = ()
    ) -> None:
        self.clock = NOW
        self.events = FakeEvents(list(events))
        self.findings = FakeFindings(findings or [], self.events)
        self._folder = tempfile.TemporaryDirectory(prefix="cityward-", dir=MEMORY)
        self.db = NodeDb(Path(self._folder.name) / "node.db", b"operator", clock=self.now)
        self.accounts = self.db.accounts
        self.deadlines = duties.load()
        # Its findings are not in the database: every one that is named is taken for one.
        self.cases = CaseStore(
            self.db._writing,
            lambda: self.db._db,
            lambda db, ids, *rest: list(ids),
            self.db._trail,
        )
        self.sharing = FakeSharing(self.db.outgoing, self.db.proposals)
        self.notices = self.db.notices
        self.routes: dict[str, Route] = {}
        for name, roles in PEOPLE.items():
            self.accounts.add(Person(name, roles, HASHER.hash(PASSWORD)))
        self.give_token("t0ken", "i.vasko", "read", "triage")
        self.said: list[tuple[str, str, str]] = []
        self.rule_samples = Samples(
            "rule.test.yml",
            (
                Sample("a stranger writes", "must match", passed=True),
                Sample("a master writes", "near miss", False, ("1 finding, wanted 0",)),
            ),
        )
        self.heard = HEARD
        self.source_states: list[SourceState] = []
        self.rule_states: list[RuleState] = []
        self.inventory = FakeInventory()
        rules = Path(self._folder.name) / "rules"
        rules.mkdir()
        (rules / "wrong.yml").write_text(RULE)
        (rules / "wrong.test.yml").write_text(SAMPLES)
        own = config.Rules(shipped=False, folders=(str(rules),))
        settings = config.Settings(state_dir=self._folder.name, rules=own)
        self.tuning = Workbench(settings, self.db, self.now)
        self.releases = Releasing(
            settings, self.db, self.sharing.policy, self.now, lambda: load_folder(rules)
        )
        self.response = fake_response.FakeResponder(self.db.runs, self.findings.get, self.now)

    def now(self) -> datetime:
        return self.clock

    def give_token(self, secret: str, person: str, *scopes: str) -> None:
        digest = hashlib.sha256(secret.encode()).hexdigest()
        token = Token(digest[:12], person, f"{secret} of {person}", scopes)
        self.accounts.add_token(digest, token, "a.admin", NOW)

    def samples(self, rule: RuleState, *, run: bool) -> Samples | None:
        return self.rule_samples if run else None

    def hearing(self) -> Hearing:
        return self.heard

    def case_findings(self, ids: Sequence[str]) -> list[Document]:
        return [one for one in map(self.findings.get, ids) if one is not None]

    def trail(
        self, words: str, span: Range, limit: int = 50, offset: int = 0
    ) -> tuple[Sequence[Audited], int]:
        return self.db.trail(words, span, limit, offset)

    def audit_proof(self) -> Proof:
        return self.db.audit_proof()

    def sources(self) -> list[SourceState]:
        return self.source_states

    def rules(self) -> list[RuleState]:
        return self.rule_states

    def rule_text(self, rule: RuleState) -> str:
        return rule.text

    def disk(self) -> list[Usage]:
        return [
            Usage("Parquet", 1_240_000_000, 2_000_000_000),
            Usage("node.db", 192_000_000, 400_000_000),
            Usage("spool", 6_000_000, 200_000_000),
        ]

    def facts(self) -> Mapping[str, str]:
        return {"Store": "embedded, 18,204 events", "Keeps": "events 30 days, findings 1 year"}

    def audit(self, by: str, action: str, about: str, now: datetime) -> None:
        self.said.append((by, action, about))
        self.db.audit(by, action, about, now)


# A small operator, invented; addresses of RFC 5737

_ROWS = (
    ("Modbus write, host is no writer", "critical", 92, "RTU-7", "cz-north", 14, 1, "new", "", ("grows",)),
    ("Interrogation, then control by a new master", "high", 81, "RTU-L2", "cz-south", 3, 9, "new", "", ()),
    ("Remote session, then 5 controls in 10 min", "high", 78, "HMI-2", "sup-heat", 1, 25, "in_progress", "i.vasko", ()),
    ("Firmware older than before", "high", 74, "GW-12", "cz-north", 1, 36, "in_progress", "i.vasko", ()),
    ("Source silent: protection relays, feeder 9", "high", 71, "SUB-TANN", "cz-south", 1, 82, "new", "", ()),
    ("Writes a register nobody wrote in 41 days", "medium", 58, "RTU-7", "cz-north", 6, 2, "new", "", ()),
    ("Supply temperature off its profile", "medium", 55, "TT-31", "fld-north", 2, 4, "new", "", ("grows",)),
    ("VPN login from a network not seen in 60 days", "medium", 52, "vpn-1", "ra-1", 1, 43, "in_progress", "t.lindqvar", ()),
    ("Edge firewall as a client outside", "medium", 49, "fw-edge-2", "dmz-1", 4, 47, "new", "", ("came back",)),
    ("Same configuration call at 9 chargers", "medium", 47, "9 chargers", "iot-ev", 9, 116, "in_progress", "n.okerren", ()),
    ("Conduit not declared: sup-heat to iot-ev", "medium", 44, "HMI-1", "sup-heat", 2, 147, "new", "", ()),
    ("Default account on serial server", "low", 33, "ser-4", "cz-north", 7, 182, "new", "", ("came back",)),
    ("IoT gateway asks an unknown resolver", "low", 31, "iotgw-3", "iot-ev", 38, 5, "new", "", ()),
    ("Engineering outside the window", "low", 28, "eng-2", "sup-heat", 1, 274, "in_progress", "t.lindqvar", ("exercise",)),
    ("Discovery scan in a control zone", "low", 24, "scan-1", "cz-south", 2, 419, "in_progress", "t.lindqvar", ("exercise",)),
    ("Certificate ends in 12 days", "low", 22, "broker-1", "dmz-1", 1, 554, "new", "n.okerren", ()),
    ("New talker approved by the asset owner", "informational", 12, "hist-1", "dmz-1", 1, 653, "new", "n.okerren", ()),
    ("Model of TT-28 finished its warm-up", "informational", 8, "TT-28", "fld-north", 1, 758, "new", "", ()),
    ("Password guessed at the jump host", "high", 70, "jump-1", "ra-1", 155, 600, "resolved", "i.vasko", ()),
)  # fmt: skip

_WALK = {
    "condition": "write and not known_writer and not safe_value",
    "checks": [
        {"selection": "write", "field": "network.protocol", "wanted": "is modbus", "saw": "modbus", "held": True, "negated": False, "bits": None},
        {"selection": "write", "field": "ot.operation", "wanted": "is write", "saw": "write", "held": True, "negated": False, "bits": None},
        {"selection": "known_writer", "field": "source.ip", "wanted": "one of %ot_writers%", "saw": "198.51.100.73", "held": False, "negated": True, "bits": None},
        {"selection": "safe_value", "field": "ot.value", "wanted": "at most 900", "saw": "65280", "held": False, "negated": True, "bits": None},
    ],
    "score": None, "threshold": None, "unit": "",
}  # fmt: skip
_TERMS = {
    "condition": "surprise of the link",
    "checks": [
        {"selection": "value", "field": "function × register", "wanted": "never in 41 days", "saw": "16 × 2", "held": True, "negated": False, "bits": 14.2},
        {"selection": "value", "field": "value of register 2", "wanted": "usual 0 to 900", "saw": "65280", "held": True, "negated": False, "bits": 9.8},
        {"selection": "link", "field": "source × function", "wanted": "3 sources, not this one", "saw": "198.51.100.73 × 16", "held": True, "negated": False, "bits": 8.1},
        {"selection": "time", "field": "gap between writes", "wanted": "900 s, every 15 min", "saw": "94 s", "held": True, "negated": False, "bits": 3.9},
        {"selection": "time", "field": "hour", "wanted": "writes at 06 to 22", "saw": "02 to 03 Thu", "held": True, "negated": False, "bits": 2.2},
    ],
    "score": 38.2, "threshold": 21.5, "unit": "bits",
}  # fmt: skip


def finding(number: int, row: tuple[Any, ...], member: int = 0) -> Document:
    """One stored finding of the table above."""
    title, severity, risk, asset, zone, count, minutes, status, person, marks = row
    last = NOW - timedelta(minutes=minutes + 2 * member, seconds=26)
    is_model = "41 days" in title or "profile" in title
    return {
        "finding.id": hashlib.md5(f"{number} {member}".encode()).hexdigest(),
        "finding.revision": 3,
        "finding.type": "anomaly" if is_model else "detection",
        "finding.title": title,
        "finding.description": (
            f"198.51.100.73 wrote register 2 of {asset} {count} times since 02:51. "
            f"Six hosts may write in {zone}; this is not one of them."
        ),
        "finding.status": status,
        "finding.verdict": "unknown",
        "finding.severity": severity,
        "finding.risk": risk,
        "finding.confidence": 0.7,
        "finding.cause": "unknown",
        "finding.category": ["Sabotage.Tampering"],
        "finding.impact": ["loss_of_control"],
        "finding.first_seen": last - timedelta(minutes=22, seconds=32),
        "finding.last_seen": last,
        "finding.created": last - timedelta(minutes=22),
        "finding.count": count if member == 0 else 1,
        "rule.id": f"00000000-0000-4000-8000-{number:012d}",
        "rule.name": title,
        "rule.version": hashlib.sha256(title.encode()).hexdigest(),
        "rule.author": "cityward",
        "cw.analytic.type": "model" if is_model else "rule",
        "threat.framework": "attack-ics",
        "threat.technique.id": ["T0836", "T1692.001"],
        "threat.tactic.id": ["TA0106"],
        "cw.asset.asset_id": asset,
        "cw.asset.type": "rtu",
        "cw.asset.zone": zone,
        "cw.asset.criticality": 5,
        "source.ip": "198.51.100.73" if number < 6 else f"192.0.2.{number}",
        "destination.ip": "192.0.2.107",
        "ot.value": 65280,
        "cw.marking.tlp": "amber+strict",
        "cw.evidence": [
            {"kind": "pcap", "ref": "rtu7-0251.pcap", "sha256": "9b41" + "0" * 56 + "e07c", "bytes": 212_000, "holder": "op-energy"},
        ],
        "cw.history": [
            {"time": last - timedelta(minutes=22), "by": "", "what": "First event, finding made", "why": ""},
        ],
        "why": _TERMS if is_model else _WALK,
        "assignee": person,
        "marks": list(marks),
    }  # fmt: skip


def event(number: int) -> Document:
    """One stored event."""
    time = NOW - timedelta(seconds=26 + 94 * number / 3)
    writes = number % 5 == 0
    return {
        "event.id": hashlib.md5(f"event {number}".encode()).hexdigest(),
        "@timestamp": time,
        "event.ingested": time + timedelta(seconds=1.5 if number % 40 else 90),
        "event.kind": "event",
        "event.action": "write" if writes else "read",
        "event.dataset": "modbus",
        "event.outcome": "failure" if number % 23 == 1 else "success",
        "event.original": f"<134>Nov 12 03:13:41 tap-north-1 modbus[{number}]: fc=16 reg=2",
        "source.ip": "198.51.100.73" if writes else f"192.0.2.{20 + number % 2 * 10}",
        "source.port": 49152 + number,
        "destination.ip": f"192.0.2.{107 + number % 3}",
        "destination.port": 502,
        "network.protocol": "modbus",
        "network.community_id": "1:hO+sN4" + str(number),
        "cw.asset.asset_id": ("RTU-7", "RTU-8", "TT-31")[number % 3],
        "cw.asset.zone": "cz-north",
        "cw.conduit.allowed": not writes,
        "ot.operation": "write" if writes else "read",
        "ot.function.code": "16" if writes else "3",
        "ot.function.name": "write_multiple_registers" if writes else "read_holding_registers",
        "ot.point.address": 2,
        "ot.value": 65280 if writes else 412,
        "cw.record.source": "tap-north-1",
        "cw.record.place": str(number),
    }


def operator() -> FakeNode:
    """The invented operator of the design's pictures."""
    findings = [finding(number, row) for number, row in enumerate(_ROWS)]
    findings += [finding(0, _ROWS[0], member) for member in range(1, 14)]
    findings += [finding(1, _ROWS[1], member) for member in range(1, 3)]
    node = FakeNode(findings, [event(number) for number in range(400)])
    for number, (name, collector, rate, lag, state, malformed) in enumerate(
        (
            ("relay-syslog-9", "syslog", 0.0, 4920.0, "running", 0),
            ("gauge-poll", "river", 6.0, 360.0, "failed", 0),
            ("ser-4-modbus", "packets", 2460.0, 0.9, "running", 38),
            ("edge-fw", "netfilter", 72_240.0, 0.3, "running", 2),
            ("tap-north-1", "packets", 85_080.0, 0.4, "running", 0),
            ("tap-south-1", "packets", 66_120.0, 0.4, "running", 0),
            ("vpn-1", "syslog", 126.0, 4.0, "running", 0),
            ("history-2025", "zeek", 0.0, 0.0, "ended", 0),
            ("dns", "zeek", 0.0, 0.0, "waiting", 0),
        )
    ):
        seen = NOW - timedelta(seconds=lag) if state != "waiting" else None
        node.source_states.append(
            SourceState(
                source=name,
                collector=collector,
                records=12_000 * number,
                events=11_500 * number,
                malformed=malformed,
                late=212 if name == "gauge-poll" else 0,
                last_event=seen,
                last_received=seen,
                rate_per_min=rate,
                lag_s=lag if rate else 0.0,
                state=state,
                error="connection refused by 192.0.2.61:443" if state == "failed" else "",
                sample="\\x00\\x01\\x00\\x00\\x00\\xff\\x01" if malformed else "",
            )
        )
    for number, row in enumerate(_ROWS):
        state = "on" if number not in (4, 11) else ("not evaluated", "refused")[number == 11]
        node.rule_states.append(
            RuleState(
                id=f"00000000-0000-4000-8000-{number:012d}",
                title=row[0],
                level=row[1],
                state=state,
                reason={4: "needs %relay_hosts%", 11: "serial_default.yml:14: no modifier is called foo"}.get(number, ""),
                file=f"rules/energy/rule_{number}.yml",
                kind="model" if "41 days" in row[0] else "rule",
                logsource="*/ot_protocol/modbus",
                techniques=("T0836", "T1692.001"),
                tactics=("impair-process-control",),
                author="cityward",
                license="Apache-2.0",
                status="stable",
                description="A host that is not in the list of writers writes to a controller.",
                falsepositives=("A new engineering station that is not in the inventory yet",),
                evaluated=18_204 * number,
                matches=row[5],
                arriving=number % 4 != 3,
                share=0.41 * (number == 5),
                heavy=number == 5,
                lost={"late": 2, "ungrouped": 1_204} if number == 5 else {},
                text=f"title: {row[0]}\nid: 00000000-0000-4000-8000-{number:012d}\nlevel: {row[1]}\ndetection:\n  write:\n    ot.operation: write # as decoded\n  condition: write\n",
            )
        )  # fmt: skip
    _equip(node.inventory)
    return node


def _equip(inventory: FakeInventory) -> None:
    """Zones, what goes between them, and devices in every state."""
    inventory.areas = [
        ZoneRow("office", "enterprise", 4.0, ("198.51.100.0/25",)),
        ZoneRow("dmz-1", "dmz", 3.5),
        ZoneRow("sup-heat", "supervisory", 2.0),
        ZoneRow("cz-north", "control", 1.0, ("192.0.2.96/28",)),
        ZoneRow("cz-south", "control", 1.0),
        ZoneRow("fld-north", "field", 0.0),
        ZoneRow("iot-ev", "iot"),
    ]
    for source, destination, protocol, port, state in (
        ("office", "dmz-1", "tls", 443, "approved"),
        ("dmz-1", "sup-heat", "tcp", 1433, "approved"),
        ("sup-heat", "cz-north", "modbus", 502, "approved"),
        ("sup-heat", "cz-north", "tcp", 3389, "observed"),
        ("sup-heat", "cz-south", "iec104", 2404, "approved"),
        ("office", "cz-north", "modbus", 502, "observed"),
        ("cz-north", "cz-south", "modbus", 502, "observed"),
        ("cz-north", "sup-heat", "syslog", 514, "approved"),
        ("external", "dmz-1", "tls", 443, "approved"),
    ):
        id = f"{source}>{destination}/{protocol}/{port}"
        seen = NOW - timedelta(days=3)
        inventory.ways.append(
            Conduit(id, source, destination, protocol, port, seen, NOW, state)  # type: ignore[arg-type]
        )
    for number in range(64):
        id = f"192.0.2.{100 + number}" if number % 3 else f"RTU-{number}"
        address = f"192.0.2.{100 + number}"
        seen_first, seen_last = NOW - timedelta(hours=7 * number), NOW - timedelta(minutes=number)
        seen = Observed(
            id,
            seen_first,
            seen_last,
            [address, f"02-00-00-00-00-{number:02X}"][: 1 + number % 2],
            ["panel-" + str(number)] if number % 4 == 1 else [],
            zone=("cz-north", "cz-south", "sup-heat")[number % 3],
            speaks=["modbus server", "tcp/22 server"],
            words=["read_holding_registers", "write_multiple_registers"],
            peers=["198.51.100.73", "192.0.2.101"],
            writers=["198.51.100.73"],
        )
        is_approved = number % 3 == 0
        asset = Asset(
            id=id,
            name=f"Pump station {number}" if is_approved else "",
            type="rtu" if is_approved else "",
            addresses=(address,),
            zone="cz-north" if is_approved else "",
            criticality=5 if number == 0 else 2,
            never_touch=number == 0,
            roles=("ot_writer",) if number == 3 else (),
        )
        retired = {
            "time": (NOW - timedelta(days=9)).isoformat(),
            "by": "e.ngineer",
            "what": "retired",
            "why": "scrapped",
        }
        inventory.rows[id] = AssetRow(
            asset,
            "retired" if number in (7, 62) else "approved" if is_approved else "observed",
            "settings" if number == 6 else "person" if is_approved else "learnt",
            seen if number != 62 else None,
            history=(retired,) if number in (7, 62) else (),
            findings=number % 5,
        )
