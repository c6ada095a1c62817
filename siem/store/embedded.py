"""`node.db`: findings and all other state of a node in one SQLite file.

The path and the console write to it at the same time. What belongs together – findings, the copies
of their events, how far detection has come, the state of its models – commits together.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cityward.asset import Asset
from cityward.errors import InputError
from cityward.event import Event
from cityward.fields import SCHEMA_VERSION
from cityward.finding import EVENTS_KEPT, SEVERITIES, STATUSES, Finding
from siem.store.accounts import AUDIENCE_SCHEMA, Accounts
from siem.store.accounts import SCHEMA as ACCOUNTS_SCHEMA
from siem.store.cases import SCHEMA as CASES_SCHEMA
from siem.store.cases import CaseStore
from siem.store.database import Database
from siem.store.faults import fault
from siem.store.findings import (
    DATES,
    EXTRA,
    FINDING_FIELDS,
    MARKS,
    SORTS,
    UNDO_FOR,
    Before,
    check,
    check_revision,
    given_back,
    group_of,
    judged,
    label,
    left,
    marks_now,
    note,
    set_mark,
    texts,
    triage_of,
    words,
)
from siem.store.inventory import SCHEMA as INVENTORY_SCHEMA
from siem.store.inventory import InventoryStore
from siem.store.lines import UNWRITABLE, event_id, harmless
from siem.store.notices import SCHEMA as NOTICES_SCHEMA
from siem.store.notices import NoticeStore, add_news
from siem.store.outgoing import SCHEMA as OUTGOING_SCHEMA
from siem.store.outgoing import OutgoingStore
from siem.store.proposals import SCHEMA as PROPOSALS_SCHEMA
from siem.store.proposals import ProposalStore
from siem.store.protocol import (
    Change,
    Document,
    Learnt,
    Page,
    Person,
    Range,
    RuleState,
    SourceState,
)
from siem.store.query import (
    SqliteDialect,
    folded,
    from_micros,
    micros,
    parse,
    steps,
)
from siem.store.rulebook import NOTES_SCHEMA, RulebookStore
from siem.store.rulebook import SCHEMA as RULEBOOK_SCHEMA
from siem.store.runs import SCHEMA as RUNS_SCHEMA
from siem.store.runs import RunStore
from siem.store.samples import ASIDE_SCHEMA, SampleStore
from siem.store.samples import SCHEMA as SAMPLES_SCHEMA
from siem.store.stages import StageStore
from siem.store.trail import SCHEMA as TRAIL_SCHEMA
from siem.store.trail import Audited, Proof, Trail, digest

T = TypeVar("T", SourceState, RuleState)

FORMAT = 6
"""Of the file (`user_version`); a newer one is refused, an older one is brought up to it."""
CHAINED_SINCE = 2
"""The format since which the audit trail is a chain."""
STATES_KEPT = 8_192
"""States of rules and sources, read already; with more rules each page reads them all again."""
FIRST_EVENTS = 10
NEWEST_EVENTS = EVENTS_KEPT - FIRST_EVENTS
FINDINGS_MAX = 1_000_000
AUDIT_MAX = 1_000_000
EVIDENCE_KEPT = 50
_NAMESPACE = uuid.UUID("6f6b1c1e-5d0c-5b58-9a53-3c1f5f2b7f10")
"""Of finding ids; fixed for ever, since shares and tickets name them."""

# ---- Risk and confidence

RISK_MODEL = "1"
"""`finding.risk_model`. Model 1: worst severity × asset criticality × confidence, cut to 100:

risk = base × (0.7 + 0.1 × criticality) × (0.6 + 0.4 × confidence), criticality 1 to 5 (2 if the
asset is not known), base by severity below. So severity leads, a vital asset adds up to a fifth,
and doubt takes away at most two fifths: what is severe stays in sight however unsure it is.
"""
_BASE = {
    "informational": 10,
    "low": 30,
    "medium": 50,
    "high": 75,
    "critical": 92,
    "fatal": 100,
}
CRITICALITY_UNKNOWN = 2
_PRIOR = {
    "informational": 0.3,
    "low": 0.4,
    "medium": 0.5,
    "high": 0.6,
    "critical": 0.7,
    "fatal": 0.8,
}
"""Precision that is assumed of a rule of a level until people have judged its findings."""
PRIOR_WEIGHT = 10
"""How many verdicts the prior is worth."""
COUNTED_FOR_S = 30.0
"""So long a count of verdicts stands that takes a look at each finding."""
_RIGHT = ("true_positive", "suspicious")
_WRONG = ("false_positive", "benign")


def risk(severity: str, criticality: int, confidence: float) -> int:
    """0 to 100, as `RISK_MODEL` says."""
    value = _BASE[severity] * (0.7 + 0.1 * criticality) * (0.6 + 0.4 * confidence)
    return min(100, round(value))


def confidence_of(level: str, right: int, wrong: int) -> float:
    """Precision of a rule: its verdicts, shrunk towards the prior of its level."""
    share = (_PRIOR[level] * PRIOR_WEIGHT + right) / (PRIOR_WEIGHT + right + wrong)
    return round(share, 3)


# ---- Fields


_COLUMNS = {
    "finding.id": "id",
    "finding.status": "status",
    "finding.verdict": "verdict",
    "finding.severity": "severity",
    "finding.risk": "risk",
    "finding.first_seen": "first_seen",
    "finding.last_seen": "last_seen",
    "finding.count": "count",
    "finding.title": "title",
    "finding.type": "type",
    "rule.id": "rule_id",
    "cw.asset.asset_id": "asset_id",
    "cw.asset.zone": "zone",
    "source.ip": "source_ip",
    "assignee": "assignee",
}
"""Fields with a column of their own; everything else is read from the JSON document."""
_SORTS = {name: _COLUMNS[name] for name in SORTS}

_SCHEMA = """
CREATE TABLE findings (
    id TEXT PRIMARY KEY,
    grp TEXT NOT NULL,
    label TEXT NOT NULL,
    status TEXT NOT NULL,
    verdict TEXT NOT NULL,
    severity INTEGER NOT NULL,
    risk INTEGER NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    count INTEGER NOT NULL,
    title TEXT NOT NULL,
    type TEXT NOT NULL,
    rule_id TEXT NOT NULL,
    asset_id TEXT,
    zone TEXT,
    source_ip TEXT,
    assignee TEXT,
    marks INTEGER NOT NULL,
    grown_at INTEGER,
    document TEXT NOT NULL,
    folded TEXT NOT NULL,
    extra TEXT NOT NULL
);
CREATE INDEX findings_by_group ON findings
    (grp, last_seen, risk, severity, status, verdict, count, first_seen, marks, grown_at);
CREATE INDEX findings_by_time ON findings (last_seen, status, severity);
CREATE INDEX findings_by_asset ON findings (asset_id, last_seen) WHERE asset_id IS NOT NULL;
CREATE INDEX findings_by_source ON findings (source_ip, last_seen) WHERE source_ip IS NOT NULL;
CREATE INDEX findings_judged ON findings (rule_id, verdict) WHERE verdict <> 'unknown';
CREATE TABLE finding_events (
    number INTEGER PRIMARY KEY,
    finding TEXT NOT NULL REFERENCES findings(id) ON DELETE CASCADE,
    event TEXT NOT NULL,
    document TEXT NOT NULL,
    UNIQUE (finding, event)
);
CREATE TABLE snapshots (name TEXT PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE settings (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE sources (id TEXT PRIMARY KEY, place INTEGER, state BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE rules (id TEXT PRIMARY KEY, place INTEGER, state BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE people (
    name TEXT PRIMARY KEY, role TEXT NOT NULL, password_hash TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE tokens (
    sha256 TEXT PRIMARY KEY, person TEXT NOT NULL REFERENCES people(name) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL,
    person TEXT NOT NULL, action TEXT NOT NULL, about TEXT NOT NULL
);
"""
_CHANGES_SCHEMA = """
CREATE TABLE changes (finding TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE) WITHOUT ROWID;
INSERT INTO changes SELECT id, row_number() OVER (ORDER BY last_seen, id) FROM findings;
"""
"""Since format 3: which finding was written last, for who follows the findings with a cursor."""
_STEPS = (
    _SCHEMA,
    INVENTORY_SCHEMA + ACCOUNTS_SCHEMA + TRAIL_SCHEMA + NOTICES_SCHEMA,
    _CHANGES_SCHEMA
    + AUDIENCE_SCHEMA
    + OUTGOING_SCHEMA
    + PROPOSALS_SCHEMA
    + CASES_SCHEMA
    + RUNS_SCHEMA
    + RULEBOOK_SCHEMA,
    SAMPLES_SCHEMA,
    ASIDE_SCHEMA,
    NOTES_SCHEMA,
)
"""What each format has more than the one before it; a new file takes all steps.

A step that is out is never changed: who has its format already would not get what is added.
"""


class NodeDb:
    """Findings, people, states, checkpoint and audit trail of one operator; any thread may ask."""

    def __init__(
        self,
        path: Path,
        operator_key: bytes,
        *,
        asset_of: Callable[[str], Asset | None] = lambda name: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        is_hub: bool = False,
    ) -> None:
        """Open, or make, the file.

        Args:
            path: `node.db`; beside it SQLite keeps `-wal` and `-shm`.
            operator_key: Secret of this operator; fingerprints depend on it.
            asset_of: The inventory, for what the affected asset is and how critical.
            clock: What now is, for `grows` and relative times in queries.
            is_hub: It is a hub's: what its incidents name are shares, which stand elsewhere.

        Raises:
            ConfigError: the file was written by a newer cityward, or is no database.
        """
        self.path = path
        self._key = operator_key
        self._asset_of = asset_of
        self._clock = clock
        self.tuned_at: Mapping[str, datetime] = {}
        """Rules that were changed here, and when: what was called wrong before does not count."""
        self._counted: dict[str, tuple[datetime, float, int]] = {}
        self._dialect = SqliteDialect(_COLUMNS, "document", "folded")
        self._trail = Trail(operator_key)
        steps = [tuple(_statements(step)) for step in _STEPS]
        self._file = Database(path, steps, brought_up=self._chain)
        self.inventory = InventoryStore(self._writing, lambda: self._db, self._trail.add)
        self.accounts = Accounts(self._writing, lambda: self._db, self._trail)
        self.notices = NoticeStore(self._writing, lambda: self._db, self.get)
        self.outgoing = OutgoingStore(
            self._writing, lambda: self._db, self.get, operator_key, self._trail
        )
        self.proposals = ProposalStore(self._writing, lambda: self._db, self._trail)
        self.samples = SampleStore(self._writing, lambda: self._db, self._trail)
        mark = _every if is_hub else self._mark_case
        self.cases = CaseStore(self._writing, lambda: self._db, mark, self._trail)
        turns = path.parent / "turns"
        self.stages = StageStore(self._writing, lambda: self._db, self._trail)
        self.rulebook = RulebookStore(
            self._writing, lambda: self._db, operator_key, self._trail, _loaded
        )
        self.runs = RunStore(self._writing, lambda: self._db, self._trail, clock, turns)

    # ---- Connections

    def _chain(self, db: sqlite3.Connection, found: int) -> None:
        if found < CHAINED_SINCE:
            self._trail.take_up(db)

    @property
    def _db(self) -> sqlite3.Connection:
        """The connection of this thread."""
        return self._file.here

    def _writing(self) -> AbstractContextManager[sqlite3.Connection]:
        """One transaction that has the right to write from its beginning."""
        return self._file.writing()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    # ---- The path: findings, checkpoint and states in one transaction

    def keep(
        self,
        findings: Sequence[Finding],
        checkpoint: int,
        snapshots: Mapping[str, bytes] | None = None,
        sources: Sequence[SourceState] = (),
        rules: Sequence[RuleState] = (),
        now: datetime | None = None,
        learnt: Learnt | None = None,
    ) -> list[str]:
        """Keep what was concluded up to a batch, all or nothing.

        Args:
            findings: Matches; those with one fingerprint become, or grow, one stored finding.
            checkpoint: Number of the last batch that detection has seen whole.
            snapshots: State of every detector after that batch; replaces the older ones.
            sources: State of every source; none: unchanged.
            rules: State of every rule; none: unchanged.
            now: The node's time.
            learnt: What was learnt of assets and conduits up to that batch.

        Returns:
            Ids of the stored findings that were made or changed, in order, each once.
        """
        now = now or self._clock()
        with self._writing() as db:
            changed = [
                self._merge(db, fingerprint, matches, now)
                for fingerprint, matches in self._by_fingerprint(findings).items()
            ]
            _set_number(db, "checkpoint", checkpoint)
            if snapshots is not None:
                db.execute("DELETE FROM snapshots")
                db.executemany("INSERT INTO snapshots VALUES (?, ?)", snapshots.items())
                _set_number(db, "snapshots_at", checkpoint)
            if learnt is not None:
                self.inventory.keep(db, learnt)
            if sources:
                _replace_states(db, "sources", [(one.source, one) for one in sources])
            if rules:
                _replace_states(db, "rules", [(one.id, one) for one in rules])
            fault("keep-before-commit")
        fault("keep-after-commit")
        return changed

    def checkpoint(self) -> tuple[int, int, dict[str, bytes]]:
        """Last batch that was concluded on, the batch of the snapshots, and the snapshots."""
        db = self._db
        db.execute("BEGIN")
        try:
            numbers = dict(tuple(row) for row in db.execute("SELECT name, value FROM numbers"))
            states = dict(tuple(row) for row in db.execute("SELECT name, state FROM snapshots"))
        finally:
            db.commit()
        return numbers.get("checkpoint", 0), numbers.get("snapshots_at", 0), states

    def fingerprint(self, finding: Finding) -> str:
        """What makes two matches one finding: keyed, since a plain hash could be guessed."""
        group = sorted([name, value] for name, value in finding.group)
        day = finding.first_seen.astimezone(UTC).date().isoformat()
        said = _encoded([finding.analytic.id, group, day])
        return hmac.new(self._key, said, hashlib.sha256).hexdigest()

    def _by_fingerprint(self, findings: Sequence[Finding]) -> dict[str, list[Finding]]:
        found: dict[str, list[Finding]] = {}
        for one in findings:
            found.setdefault(self.fingerprint(one), []).append(one)
        return found

    def _merge(
        self, db: sqlite3.Connection, fingerprint: str, matches: Sequence[Finding], now: datetime
    ) -> str:
        finding_id = str(uuid.uuid5(_NAMESPACE, fingerprint))
        row = db.execute("SELECT * FROM findings WHERE id = ?", (finding_id,)).fetchone()
        newest = matches[-1]
        events = {_id_of(event): event for match in matches for event in match.events}
        document = _whole(row) if row else {}
        # What never changes once the finding is there is said by its first match.
        document = {**self._said(newest), **_first(document)} if row else self._said(matches[0])
        seen = [document] if row else []
        document["finding.first_seen"] = min(
            [one["finding.first_seen"] for one in seen] + [one.first_seen for one in matches]
        )
        document["finding.last_seen"] = max(
            [one["finding.last_seen"] for one in seen] + [one.last_seen for one in matches]
        )
        document["finding.count"] = document.get("finding.count", 0) + sum(
            one.count for one in matches
        )
        severities = [one.severity for one in matches] + [one["finding.severity"] for one in seen]
        document["finding.severity"] = max(severities, key=SEVERITIES.index)
        document["finding.confidence"] = self._confidence(db, newest)
        document["finding.risk"] = risk(
            document["finding.severity"],
            document.get("cw.asset.criticality", CRITICALITY_UNKNOWN),
            document["finding.confidence"],
        )
        document["finding.id"] = finding_id
        document["finding.fingerprint"] = fingerprint
        document["finding.revision"] = document.get("finding.revision", 0) + 1
        document["finding.modified"] = now
        document.setdefault("finding.created", now)
        document.setdefault("finding.status", "new")
        document.setdefault("finding.verdict", "unknown")
        if row:
            _matched_again(document, sum(one.count for one in matches), now)
        else:
            note(document, now, "", "made", f"{len(events)} events")
        if document.get("finding.mode") in ("exercise", "test"):
            set_mark(document, "exercise")
        _write(db, document, grown_at=micros(now) if row else None)
        _keep_events(db, finding_id, events)
        if row is None:
            add_news(db, finding_id, "made", now)
        elif row["status"] != document["finding.status"]:
            add_news(db, finding_id, "back", now)
        elif SEVERITIES.index(document["finding.severity"]) > row["severity"]:
            add_news(db, finding_id, "raised", now)
        return finding_id

    def _said(self, finding: Finding) -> Document:
        """What a match says of itself, under the names of the schema."""
        analytic, why = finding.analytic, finding.why
        last = finding.events[-1].fields if finding.events else {}
        copied = {name: last[name] for name in _COPIED if name in last}
        said: Document = {
            "finding.type": finding.type,
            "finding.title": finding.title,
            "finding.description": finding.description,
            "finding.severity": finding.severity,
            "finding.risk_model": RISK_MODEL,
            "finding.cause": finding.cause,
            "finding.category": list(finding.category),
            "finding.impact": list(finding.impact),
            "finding.mode": last.get("cw.mode", "normal"),
            "rule.id": analytic.id,
            "rule.name": analytic.name,
            "rule.version": analytic.version,
            "rule.ruleset": analytic.ruleset,
            "rule.status": analytic.status,
            "rule.author": [analytic.author] if analytic.author else [],
            "rule.license": analytic.license,
            "rule.reference": analytic.references[0] if analytic.references else "",
            "rule.description": analytic.description,
            "cw.analytic.type": analytic.kind,
            "cw.analytic.score": why.score,
            "cw.analytic.threshold": why.threshold,
            "threat.framework": analytic.framework,
            "threat.technique.id": list(analytic.techniques),
            "threat.tactic.id": list(analytic.tactics),
            "cw.schema": SCHEMA_VERSION,
            "cw.marking.tlp": "amber+strict",
            "cw.marking.pap": "green",
            "tags": sorted({*analytic.tags, *finding.tags}),
            "cw.why": msgspec.to_builtins(why),
            **copied,
            **finding.fields,
        }
        said = {name: value for name, value in said.items() if value not in (None, "", [])}
        try:
            msgspec.json.encode(said)
        except UNWRITABLE:
            said = harmless(said)
        asset_id = said.get("cw.asset.asset_id")
        if asset_id and (asset := self._asset_of(asset_id)):
            said["cw.asset.criticality"] = asset.criticality
            said["cw.asset.safety_related"] = asset.safety_related
            said |= {"cw.asset.type": asset.type} if asset.type else {}
            said |= {"cw.asset.zone": asset.zone} if asset.zone else {}
        return said

    def _confidence(self, db: sqlite3.Connection, finding: Finding) -> float:
        if finding.analytic.kind == "model":
            return finding.confidence
        rule = finding.analytic.id
        rows = db.execute(
            "SELECT verdict, count(*) FROM findings WHERE rule_id = ? AND verdict <> 'unknown'"
            " GROUP BY verdict",
            (rule,),
        )
        counts = dict(tuple(row) for row in rows)
        right = sum(counts.get(verdict, 0) for verdict in _RIGHT)
        wrong = sum(counts.get(verdict, 0) for verdict in _WRONG)
        if wrong and rule in self.tuned_at:
            wrong = self._wrong_since(db, rule, self.tuned_at[rule])
        return confidence_of(finding.analytic.level, right, wrong)

    def _wrong_since(self, db: sqlite3.Connection, rule: str, tuned: datetime) -> int:
        """How many findings of a rule were called wrong that came after it was tuned.

        No index has their time, so it is counted anew only now and then.
        """
        now_s = time.monotonic()
        of, counted_s, count = self._counted.get(rule, (tuned, -COUNTED_FOR_S, 0))
        if of != tuned or now_s - counted_s >= COUNTED_FOR_S:
            marks = ", ".join("?" * len(_WRONG))
            (count,) = db.execute(
                f"SELECT count(*) FROM findings WHERE rule_id = ? AND verdict IN ({marks})"
                " AND last_seen >= ?",
                (rule, *_WRONG, micros(tuned)),
            ).fetchone()
            self._counted[rule] = tuned, now_s, count
        return int(count)

    # ---- The console: reading findings

    def search(
        self,
        query: str,
        span: Range,
        sort: str = "-finding.risk",
        limit: int = 50,
        offset: int = 0,
    ) -> Page:
        """Findings whose last match lies in the span."""
        where, values = self._where(query, span)
        order = _order(sort, _SORTS)
        rows = self._db.execute(
            f"SELECT * FROM findings WHERE {where} ORDER BY {order}, last_seen DESC, id"
            " LIMIT ? OFFSET ?",
            (*values, limit, offset),
        ).fetchall()
        return Page([self._document(row) for row in rows], self._count(where, values))

    def groups(
        self,
        query: str,
        span: Range,
        sort: str = "-finding.risk",
        limit: int = 50,
        offset: int = 0,
    ) -> Page:
        """Findings grouped by rule and asset; see the protocol for the columns."""
        where, values = self._where(query, span)
        order = _order(sort, _GROUP_SORTS)
        found = self._db.execute(
            f"SELECT {_GROUP_COLUMNS}, count(*) OVER () AS total FROM findings WHERE {where}"
            f" GROUP BY grp ORDER BY {order}, last_seen DESC, grp LIMIT ? OFFSET ?",
            (*values, limit, offset),
        ).fetchall()
        if not found:
            counted = f"SELECT count(DISTINCT grp) FROM findings WHERE {where}"
            return Page([], self._db.execute(counted, values).fetchone()[0])
        newest = max(group["last_seen"] for group in found) + 1
        if span.since.year > 1970:  # else it is about what there is, not about now
            newest = max(newest, micros(self._clock()))
        hours = self._hours(found, where, values, min(micros(span.until), newest))
        rows = [self._group(group, hours[group["grp"]], where, values) for group in found]
        return Page(rows, found[0]["total"])

    def _group(
        self, group: sqlite3.Row, hours: list[int], where: str, values: Sequence[Any]
    ) -> Document:
        """One row of the list: what its newest finding says, and what all of them share."""
        newest = self._db.execute(
            "SELECT title, rule_id, label, zone, assignee,"
            " document ->> '$.\"finding.description\"' AS sentence FROM findings"
            f" WHERE grp = ? AND last_seen = ? AND {where} ORDER BY id LIMIT 1",
            (group["grp"], group["last_seen"], *values),
        ).fetchone()
        said = dict(newest) if newest else {}  # it may have grown meanwhile
        return {
            "group": group["grp"],
            "rule.id": said.get("rule_id", ""),
            "finding.title": said.get("title", ""),
            "finding.description": said.get("sentence") or "",
            "cw.asset.asset_id": said.get("label", ""),
            "cw.asset.zone": said.get("zone") or "",
            "finding.severity": SEVERITIES[group["severity"]],
            "finding.risk": group["risk"],
            "finding.status": [one for one in STATUSES if group[f"is_{one}"]],
            "findings": group["findings"],
            "finding.count": group["count"],
            "finding.first_seen": from_micros(group["first_seen"]),
            "finding.last_seen": from_micros(group["last_seen"]),
            "assignee": said.get("assignee") or "",
            "marks": marks_now(
                [one for one in MARKS if group[f"is_{one}"]], group["grown_at"], self._clock()
            ),
            "hours": hours,
        }

    def _hours(
        self, groups: Sequence[sqlite3.Row], where: str, values: Sequence[Any], until: int
    ) -> dict[str, list[int]]:
        """Matches in each of the last 24 hours: a finding's count, at its last match."""
        hour = 3_600_000_000
        made = {group["grp"]: [0] * 24 for group in groups}
        rows = self._db.execute(
            f"SELECT grp, (? - last_seen) / {hour} AS age, sum(count) FROM findings"
            f" WHERE grp IN ({', '.join('?' * len(made))}) AND {where}"
            " AND last_seen > ? AND last_seen <= ? GROUP BY grp, age",
            (until, *made, *values, until - 24 * hour, until),
        )
        for name, age, count in rows:
            made[name][23 - min(age, 23)] += count
        return made

    def members(self, group: str, query: str, span: Range, limit: int = 50) -> Page:
        """Findings of one group, newest first."""
        where, values = self._where(query, span)
        where, values = f"grp = ? AND {where}", [group, *values]
        rows = self._db.execute(
            f"SELECT * FROM findings WHERE {where} ORDER BY last_seen DESC, id LIMIT ?",
            (*values, limit),
        ).fetchall()
        return Page([self._document(row) for row in rows], self._count(where, values))

    def get(self, finding_id: str) -> Document | None:
        """One finding, or None."""
        row = self._db.execute("SELECT * FROM findings WHERE id = ?", (finding_id,)).fetchone()
        return self._document(row) if row else None

    def changes_after(self, number: int, limit: int) -> list[tuple[int, str]]:
        """Findings written since a number, each once with its newest, in order.

        A cursor that keeps the last number it was given misses none; a finding that retention took
        is not told of again.
        """
        rows = self._db.execute(
            "SELECT number, finding FROM changes WHERE number > ? ORDER BY number LIMIT ?",
            (number, limit),
        )
        return [(row["number"], row["finding"]) for row in rows]

    def events_of(self, finding_id: str) -> list[Document]:
        """Copies of the events that made it speak, newest first."""
        rows = self._db.execute(
            "SELECT document FROM finding_events WHERE finding = ? ORDER BY number DESC LIMIT ?",
            (finding_id, EVENTS_KEPT),
        )
        found = [_loaded(row["document"]) for row in rows]
        return sorted(found, key=lambda one: one["@timestamp"], reverse=True)

    def related(self, finding_id: str, within_s: float = 7200.0) -> list[Document]:
        """Findings of the same asset or source address whose last match is near, newest first."""
        row = self._db.execute("SELECT * FROM findings WHERE id = ?", (finding_id,)).fetchone()
        if row is None:
            return []
        near = int(within_s * 1e6)
        found = self._db.execute(
            "SELECT * FROM findings WHERE id <> ? AND last_seen BETWEEN ? AND ? AND"
            " (asset_id = ? OR source_ip = ?) ORDER BY last_seen DESC, id LIMIT 50",
            (
                finding_id,
                row["first_seen"] - near,
                row["last_seen"] + near,
                row["asset_id"],
                row["source_ip"],
            ),
        ).fetchall()
        return [self._document(one) for one in found]

    def counts(self, query: str, span: Range) -> dict[str, int]:
        """How many by status, whatever status the query asks for.

        The caller leaves the status out of its query; what it still says is obeyed.
        """
        where, values = self._where(query, span)
        rows = self._db.execute(
            f"SELECT status, count(*) FROM findings WHERE {where} GROUP BY status", values
        )
        return dict(tuple(row) for row in rows)

    def histogram(
        self, query: str, span: Range, buckets: int = 48
    ) -> list[tuple[datetime, Mapping[str, int]]]:
        """Start of each bucket and counts by severity; empty if nothing is in the range."""
        where, values = self._where(query, span)
        first, last = self._db.execute(
            f"SELECT min(last_seen), max(last_seen) FROM findings WHERE {where}", values
        ).fetchone()
        if first is None:
            return []
        start, step = steps(span, first, last, buckets)
        made: list[dict[str, int]] = [{} for _ in range(buckets)]
        for place, severity, count in self._db.execute(
            f"SELECT (last_seen - ?) / ? AS place, severity, count(*) FROM findings WHERE {where}"
            " GROUP BY place, severity",
            (start, step, *values),
        ):
            made[min(place, buckets - 1)][SEVERITIES[severity]] = count
        return [(from_micros(start + step * place), one) for place, one in enumerate(made)]

    def _where(self, query: str, span: Range) -> tuple[str, list[Any]]:
        condition = parse(query, FINDING_FIELDS, self._clock())
        text, values = self._dialect.where(condition)
        return f"last_seen >= ? AND last_seen < ? AND {text}", [
            micros(span.since),
            micros(span.until),
            *values,
        ]

    def _count(self, where: str, values: Sequence[Any]) -> int:
        return int(
            self._db.execute(f"SELECT count(*) FROM findings WHERE {where}", values).fetchone()[0]
        )

    def _document(self, row: sqlite3.Row) -> Document:
        document = _whole(row)
        document["marks"] = marks_now(document.get("marks", ()), row["grown_at"], self._clock())
        return document

    # ---- The console: triage

    def change(
        self,
        ids: Sequence[str],
        change: Change,
        by: str,
        now: datetime,
        revisions: Mapping[str, int] | None = None,
    ) -> int:
        """Triage of some findings in one transaction; see the protocol.

        Raises:
            InputError: a status or verdict is not one, or a comment is too long.
            Conflict: a finding has another revision than the one that was seen.
        """
        check(change)
        by, change = harmless(by), Change(**harmless(msgspec.structs.asdict(change)))
        changed: list[Before] = []
        with self._writing() as db:
            for one in dict.fromkeys(ids):
                row = db.execute("SELECT * FROM findings WHERE id = ?", (one,)).fetchone()
                if row is None:
                    continue
                before = _whole(row)
                check_revision(before, (revisions or {}).get(one))
                after = judged(before, change, by, now)
                if after is not None:
                    _write(db, after, grown_at=None)
                    self._say_change(db, before, after, by, words(change), now)
                    changed.append(Before(one, triage_of(before), triage_of(after)))
                    if after["finding.verdict"] != before["finding.verdict"]:
                        self.rulebook.judged(db, after, by, now)
            if changed:
                state = msgspec.json.encode(changed)
                db.execute("INSERT OR REPLACE INTO undo VALUES (?, ?, ?)", (by, micros(now), state))
        return len(changed)

    def attach(self, finding: str, entry: Mapping[str, Any], now: datetime) -> bool:
        """Write an entry of evidence on a finding; whether it was not there before.

        A finding carries at most `EVIDENCE_KEPT`: the first ones stay.
        """
        entry = harmless(dict(entry))
        with self._writing() as db:
            row = db.execute("SELECT * FROM findings WHERE id = ?", (finding,)).fetchone()
            if row is None:
                return False
            before = _whole(row)
            known = list(before.get("cw.evidence") or ())
            if len(known) >= EVIDENCE_KEPT or any(one.get("ref") == entry["ref"] for one in known):
                return False
            after = {**before, "cw.evidence": [*known, entry], "finding.modified": now}
            after["finding.revision"] += 1
            note(after, now, "", f"evidence {entry['ref']}", "")
            _write(db, after, grown_at=None)
        return True

    def _say_change(
        self,
        db: sqlite3.Connection,
        before: Document,
        after: Document,
        by: str,
        words: str,
        now: datetime,
    ) -> None:
        about = after["finding.id"]
        self._trail.add(db, by, f"finding: {words}", about, now, digest(before), digest(after))

    def _mark_case(
        self, db: sqlite3.Connection, ids: Sequence[str], incident: str, by: str, now: datetime
    ) -> list[str]:
        """Write on findings which incident they belong to; returns those that exist."""
        known: list[str] = []
        for one in dict.fromkeys(ids):
            row = db.execute("SELECT * FROM findings WHERE id = ?", (one,)).fetchone()
            if row is None:
                continue
            known.append(one)
            document = _whole(row)
            if document.get("cw.incident_id", "") == incident:
                continue
            if incident:
                document["cw.incident_id"] = incident
            else:
                document.pop("cw.incident_id", None)
            document["finding.revision"] += 1
            document["finding.modified"] = now
            note(document, now, by, f"incident {incident}" if incident else "left the incident", "")
            _write(db, document, grown_at=None)
        return known

    def undoable(self, by: str, now: datetime) -> int:
        """How many findings of a person's last triage can be given back as they were."""
        return sum(1 for _ in self._undoable(self._db, harmless(by), now))

    def undo(self, by: str, now: datetime) -> int:
        """Give the findings of a person's last triage back, those that nobody changed since."""
        by = harmless(by)
        with self._writing() as db:
            found = list(self._undoable(db, by, now))
            for before, one in found:
                after = given_back(before, one, by, now)
                _write(db, after, grown_at=None)
                self._say_change(db, before, after, by, "undone", now)
                if after["finding.verdict"] != before["finding.verdict"]:
                    self.rulebook.judged(db, after, by, now)
            db.execute("DELETE FROM undo WHERE person = ?", (by,))
        return len(found)

    def _undoable(
        self, db: sqlite3.Connection, by: str, now: datetime
    ) -> Iterator[tuple[Document, Before]]:
        """Findings as they are, and what their triage was before; only those still as left."""
        row = db.execute("SELECT * FROM undo WHERE person = ?", (by,)).fetchone()
        if row is None or now - from_micros(row["time"]) > UNDO_FOR:
            return
        for one in msgspec.json.decode(row["state"], type=list[Before]):
            found = db.execute("SELECT * FROM findings WHERE id = ?", (one.id,)).fetchone()
            if found and left(document := _whole(found), one):
                yield document, one

    # ---- People

    def add_person(self, person: Person) -> None:
        """Add somebody who may sign in, or change their roles and password."""
        self.accounts.add(person)

    def person(self, name: str) -> Person | None:
        """Somebody who may sign in, or None."""
        return self.accounts.person(name)

    def people(self) -> list[Person]:
        """Everybody who may sign in, by name."""
        return self.accounts.people()

    # ---- Audit trail, states, settings

    def audit(
        self, by: str, action: str, about: str, now: datetime, before: str = "", after: str = ""
    ) -> None:
        """Keep what a person did; digests say what of."""
        with self._writing() as db:
            self._trail.add(db, by, action, about, now, before, after)

    def audited(self, limit: int = 200, before: int | None = None) -> list[Audited]:
        """The audit trail, newest first; `before` a number for the next page."""
        return self._trail.lines(self._db, limit, before)

    def trail(
        self, words: str, span: Range, limit: int = 50, offset: int = 0
    ) -> tuple[list[Audited], int]:
        """Lines of the audit trail in which all words stand, newest first, and how many."""
        return self._trail.search(self._db, words, span, limit, offset)

    def audit_proof(self) -> Proof:
        """Whether the whole audit trail is as it was written."""
        db = self._db
        db.execute("BEGIN")
        try:
            return self._trail.proof(db)
        finally:
            db.commit()

    def has_line(self, line: str) -> bool:
        """Whether a line of the audit trail has this hash."""
        found = self._db.execute("SELECT 1 FROM audit WHERE hash = ?", (line,)).fetchone()
        return found is not None

    def sources(self) -> list[SourceState]:
        """State of every source as the path last said."""
        return _states(self._db, "sources", SourceState)

    def rules(self) -> list[RuleState]:
        """State of every rule as the path last said."""
        return _states(self._db, "rules", RuleState)

    def setting(self, name: str) -> bytes | None:
        """A kept value, e.g. the secret of the sessions, or None."""
        row = self._db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return bytes(row["value"]) if row else None

    def keep_setting(self, name: str, value: bytes, *, replace: bool = True) -> bytes:
        """Keep a value; without `replace` the one that is there wins and is returned."""
        with self._writing() as db:
            word = "REPLACE" if replace else "IGNORE"
            db.execute(f"INSERT OR {word} INTO settings VALUES (?, ?)", (name, value))
            row = db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
            return bytes(row["value"])

    # ---- Retention

    def retain(self, now: datetime, days: int = 365) -> dict[str, int]:
        """Let go of what is old; counted.

        Closed findings (resolved, archived, deleted) go when their last match is older than
        `days`. Open ones never go by age. Above a million findings the closed go first, then the
        open ones, those of least risk first and the older before the newer.
        """
        limit = micros(now - timedelta(days=days))
        with self._writing() as db:
            old = db.execute(
                f"DELETE FROM findings WHERE last_seen < ? AND status IN {_CLOSED}", (limit,)
            ).rowcount
            surplus = db.execute("SELECT count(*) FROM findings").fetchone()[0] - FINDINGS_MAX
            if surplus > 0:
                db.execute(
                    "DELETE FROM findings WHERE id IN (SELECT id FROM findings ORDER BY"
                    f" status NOT IN {_CLOSED}, risk, last_seen LIMIT ?)",
                    (surplus,),
                )
            # The newest stays: its number must not come again.
            db.execute(
                "DELETE FROM changes WHERE finding NOT IN (SELECT id FROM findings)"
                " AND number < (SELECT max(number) FROM changes)"
            )
            audited = self._trail.forget(db, AUDIT_MAX)
            self.notices.retain(db, now)
            self.outgoing.retain(db, now)
            self.proposals.retain(db, now)
            self.samples.retain(db, now)
            self.runs.retain(db, now)
        return {"findings_old": old, "findings_surplus": max(0, surplus), "audit": audited}


_CLOSED = "('resolved', 'archived', 'deleted')"
_GROUP_SORTS = {
    "finding.risk": "risk",
    "finding.severity": "severity",
    "finding.count": "count",
    "finding.first_seen": "first_seen",
    "finding.last_seen": "last_seen",
    "findings": "findings",
    "finding.title": "max(title)",
    "finding.status": "min(status)",
    "rule.id": "max(rule_id)",
    "cw.asset.asset_id": "max(label)",
    "cw.asset.zone": "max(zone)",
    "assignee": "max(assignee)",
}
_GROUP_COLUMNS = ", ".join(
    (
        "grp, count(*) AS findings, max(severity) AS severity, max(risk) AS risk",
        "sum(count) AS count, min(first_seen) AS first_seen, max(last_seen) AS last_seen",
        "max(grown_at) AS grown_at",
        *(f"max(status = '{one}') AS is_{one}" for one in STATUSES),
        *(f'max(marks & {1 << bit}) AS "is_{one}"' for bit, one in enumerate(MARKS)),
    )
)
_COPIED = (
    "cw.operator",
    "cw.sector",
    "cw.site",
    "cw.domain",
    "cw.asset.asset_id",
    "cw.asset.zone",
    "cw.asset.zone_type",
    "source.ip",
    "source.port",
    "destination.ip",
    "destination.port",
    "host.name",
    "user.name",
    "network.protocol",
)
"""What a finding has of its deciding event, beside what the detector names."""
_KEPT = (
    "finding.first_seen",
    "finding.last_seen",
    "finding.count",
    "finding.severity",
    "finding.revision",
    "finding.created",
    "finding.closed",
    "finding.status",
    "finding.verdict",
    "finding.suppressed_until",
    "assignee",
    "marks",
    "cw.history",
    "cw.asset.asset_id",
    "cw.asset.zone",
    "cw.asset.zone_type",
    "cw.incident_id",
    "cw.evidence",
)
"""What a stored finding keeps when it matches again; the rest is said by the newest match."""


def _every(
    db: sqlite3.Connection, ids: Sequence[str], incident: str, by: str, now: datetime
) -> list[str]:
    return list(dict.fromkeys(ids))


def _first(document: Document) -> Document:
    return {name: document[name] for name in _KEPT if name in document}


def _matched_again(document: Document, count: int, now: datetime) -> None:
    """Resolved: it came back. Suppressed: quiet until its time is over. Else: it grows."""
    status, until = document["finding.status"], document.get("finding.suppressed_until")
    if status == "suppressed" and (until is None or now < until):
        return
    if status in ("new", "in_progress"):
        set_mark(document, "grows")
        return
    document["finding.status"] = "new"
    document.pop("finding.closed", None)
    document.pop("finding.suppressed_until", None)
    set_mark(document, "suppressed", on=False)
    set_mark(document, "came back")
    note(document, now, "", "came back", f"{count} more after it was {status}")


def _id_of(event: Event) -> str:
    fields, record = event.fields, event.record
    return event_id(
        str(fields.get("cw.operator", "")), record.source, str(record.place), event.number
    )


def _keep_events(db: sqlite3.Connection, finding: str, events: Mapping[str, Event]) -> None:
    """Add copies of events: of all that came, the first 10 and the newest 40 stay."""
    for one, event in events.items():
        document = {"event.id": one, "@timestamp": event.time, **event.fields}
        db.execute(
            "INSERT OR IGNORE INTO finding_events (finding, event, document) VALUES (?, ?, ?)",
            (finding, one, _dumped(document)),
        )
    db.execute(
        "DELETE FROM finding_events WHERE finding = ?1"
        " AND number NOT IN (SELECT number FROM finding_events WHERE finding = ?1"
        "   ORDER BY number LIMIT ?2)"
        " AND number NOT IN (SELECT number FROM finding_events WHERE finding = ?1"
        "   ORDER BY number DESC LIMIT ?3)",
        (finding, FIRST_EVENTS, NEWEST_EVENTS),
    )


def _write(db: sqlite3.Connection, document: Document, grown_at: int | None) -> None:
    row = (
        document["finding.id"],
        group_of(document),
        label(document),
        document["finding.status"],
        document["finding.verdict"],
        SEVERITIES.index(document["finding.severity"]),
        document["finding.risk"],
        micros(document["finding.first_seen"]),
        micros(document["finding.last_seen"]),
        document["finding.count"],
        document["finding.title"],
        document["finding.type"],
        document["rule.id"],
        document.get("cw.asset.asset_id"),
        document.get("cw.asset.zone"),
        document.get("source.ip"),
        document.get("assignee") or None,
        sum(1 << bit for bit, mark in enumerate(MARKS) if mark in document.get("marks", ())),
        grown_at,
        _dumped({name: value for name, value in document.items() if name not in EXTRA}),
        folded(texts(document)),
        _dumped({name: document[name] for name in EXTRA if name in document}),
    )
    marks = ", ".join("?" * len(row))
    # No REPLACE: it would delete the row, and with it the copies of its events.
    names = "status verdict severity risk first_seen last_seen count title type asset_id zone"
    names += " source_ip assignee marks grown_at document folded extra grp label"
    kept = ", ".join(f"{name} = excluded.{name}" for name in names.split())
    db.execute(f"INSERT INTO findings VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {kept}", row)
    db.execute(
        "INSERT OR REPLACE INTO changes SELECT ?, coalesce(max(number), 0) + 1 FROM changes",
        (document["finding.id"],),
    )


def _dumped(document: Document) -> str:
    """A document as JSON; times of the field table as microseconds, so that they compare."""
    plain = {
        name: micros(value) if isinstance(value, datetime) and name in DATES else value
        for name, value in document.items()
    }
    return _encoded(plain).decode()


def _encoded(value: Any) -> bytes:
    """JSON of something from outside: broken text is shown in hexadecimal."""
    try:
        return msgspec.json.encode(value)
    except UNWRITABLE:
        return msgspec.json.encode(harmless(value))


def _whole(row: sqlite3.Row) -> Document:
    """The finding of a row."""
    return _loaded(row["document"]) | _loaded(row["extra"])


def _loaded(text: str) -> Document:
    document: Document = msgspec.json.decode(text)
    for name in DATES.intersection(document):
        document[name] = from_micros(document[name])
    for one in document.get("cw.history", ()):
        one["time"] = datetime.fromisoformat(one["time"])
    return document


def _order(sort: str, columns: Mapping[str, str]) -> str:
    name = sort.removeprefix("-")
    if name not in columns:
        raise InputError(f"findings are not sorted by {name}", "sort", f"One of {sorted(columns)}.")
    return f"{columns[name]} {'DESC' if sort.startswith('-') else 'ASC'}"


def _set_number(db: sqlite3.Connection, name: str, value: int) -> None:
    db.execute("INSERT OR REPLACE INTO numbers VALUES (?, ?)", (name, value))


def _replace_states(
    db: sqlite3.Connection, table: str, states: Iterable[tuple[str, SourceState | RuleState]]
) -> None:
    db.execute(f"DELETE FROM {table}")
    db.executemany(
        f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)",
        [(name, place, msgspec.json.encode(one)) for place, (name, one) in enumerate(states)],
    )


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; a trigger is one, whatever stands in it."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _states(db: sqlite3.Connection, table: str, kind: type[T]) -> list[T]:
    rows = db.execute(f"SELECT state FROM {table} ORDER BY place")
    return [_state(row["state"], kind) for row in rows]


@lru_cache(maxsize=STATES_KEPT)
def _state(state: bytes, kind: type[T]) -> T:
    """One state; every page asks for thousands, of which few have changed."""
    return msgspec.json.decode(state, type=kind)
