"""What leaves, in `node.db`: the outbox, the ledger of all that was sent, and the hub's inbox.

An envelope gets its number, its line in the ledger and its bytes in one transaction, and those very
bytes are sent until there is a receipt for them. So a kill at any moment loses nothing, and nothing
is sent under two numbers. Lines of the ledger are never changed but for their receipt; each carries
a keyed hash over itself and the one before it, as the audit trail does.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from siem.store import proposals, samples
from siem.store.lines import harmless
from siem.store.proposals import Proposed
from siem.store.protocol import Document, Range
from siem.store.query import from_micros, micros
from siem.store.samples import SAMPLES, SampleDesk
from siem.store.trail import Trail

SCHEMA = """
CREATE TABLE outgoing (
    share_id TEXT PRIMARY KEY,
    finding TEXT NOT NULL,
    kind TEXT NOT NULL,
    rank INTEGER NOT NULL,
    offered INTEGER NOT NULL,
    due INTEGER NOT NULL,
    state TEXT NOT NULL,
    policy TEXT NOT NULL DEFAULT '',
    rule TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    note TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX outgoing_by_rank ON outgoing (state, kind, rank, offered);
CREATE INDEX outgoing_by_time ON outgoing (state, kind, offered);
CREATE TABLE approvals (
    share_id TEXT NOT NULL, policy TEXT NOT NULL, rule TEXT NOT NULL, person TEXT NOT NULL,
    time INTEGER NOT NULL,
    PRIMARY KEY (share_id, policy, rule, person)
) WITHOUT ROWID;
CREATE TABLE shared (
    share_id TEXT PRIMARY KEY,
    finding TEXT NOT NULL,
    state TEXT NOT NULL,
    policy TEXT NOT NULL,
    rule TEXT NOT NULL,
    rank INTEGER NOT NULL,
    payload_sha256 TEXT NOT NULL,
    marks TEXT NOT NULL,
    revision INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    sent INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE ledger (
    n INTEGER PRIMARY KEY,
    seq INTEGER NOT NULL,
    type TEXT NOT NULL,
    share_id TEXT NOT NULL,
    finding TEXT NOT NULL,
    policy TEXT NOT NULL,
    rule TEXT NOT NULL,
    approvers TEXT NOT NULL,
    fields TEXT NOT NULL,
    sent INTEGER NOT NULL,
    data BLOB NOT NULL,
    signature BLOB NOT NULL,
    hash TEXT NOT NULL,
    chain TEXT NOT NULL,
    state TEXT NOT NULL,
    received INTEGER,
    receipt BLOB,
    receipt_signature BLOB
);
CREATE UNIQUE INDEX ledger_by_seq ON ledger (seq) WHERE state <> 'refused';
CREATE INDEX ledger_by_share ON ledger (share_id, seq);
CREATE INDEX ledger_open ON ledger (state) WHERE state = 'sent';
CREATE TRIGGER ledger_unchanged BEFORE UPDATE OF n, seq, type, share_id, finding, policy, rule,
    approvers, fields, sent, data, signature, hash, chain ON ledger BEGIN
    SELECT RAISE(ABORT, 'lines of the ledger are never changed');
END;
CREATE TRIGGER ledger_receipted BEFORE UPDATE ON ledger WHEN old.receipt IS NOT NULL BEGIN
    SELECT RAISE(ABORT, 'a receipt is never changed');
END;
CREATE TRIGGER ledger_kept BEFORE DELETE ON ledger
    WHEN old.seq > coalesce((SELECT value FROM numbers WHERE name = 'ledger_anchor'), 0) BEGIN
    SELECT RAISE(ABORT, 'lines of the ledger are only taken by retention');
END;
CREATE TABLE inbox (
    n INTEGER PRIMARY KEY, received INTEGER NOT NULL, type TEXT NOT NULL, share_id TEXT NOT NULL,
    data BLOB NOT NULL, signature BLOB NOT NULL
);
"""
"""Since format 3 of the state."""

OUTGOING_MAX = 1_000_000
"""More than a day of ten findings a second; of more, the oldest of the least severe go first, and
are counted."""
LATEST = timedelta(minutes=2)
"""Nothing waits for longer; what is due later than that was offered by a clock that was ahead."""
LIVE = timedelta(minutes=1)
"""What changed since then goes before all that waits from an outage."""
LEDGER_MAX = 2_000_000
SHARED_FOR = timedelta(days=400)
"""No hub holds a share for longer; then it need not be known here either."""
INBOX_MAX = 10_000
BEGIN = "0" * 64
"""What the first line names as the one before it."""
CURSOR = "changes_outbox"
DROPPED, REFUSED = "outgoing_dropped", "outgoing_refused"
NOTE_MAX = 500
TERMINAL = " (terminal)"
"""Behind the account of who said yes there: it may be the one of who signed in, by another name."""

Kind = Literal["share", "withdraw"]
State = Literal["due", "approval", "refused"]
"""`approval`: somebody has to say yes; `refused`: somebody said no."""
Sent = Literal["sent", "receipted", "not receipted", "refused"]
"""`sent`: on its way; `not receipted`: left in a drop, from where no answer has come; `refused`:
the hub will never take these bytes, so what follows has their number."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """What waits to be sent: a finding, or its withdrawal."""

    share_id: str
    finding: str
    kind: Kind = "share"
    rank: int
    """Of its severity."""
    offered: datetime
    due: datetime
    state: State = "due"
    policy: str = ""
    rule: str = ""
    reason: str = ""
    note: str = ""


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """What was shared of a finding last."""

    share_id: str
    finding: str
    state: Literal["shared", "withdrawn"]
    policy: str
    rule: str
    rank: int
    payload_sha256: str
    marks: str
    """Audiences, TLP, PAP and end, as they were sent."""
    revision: int
    """As it was sent: grows where the finding is the same and its marks are others."""
    seq: int
    sent: datetime


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the ledger."""

    seq: int
    type: str
    share_id: str
    finding: str
    policy: str
    rule: str
    approvers: tuple[str, ...]
    fields: tuple[str, ...]
    """Names that left."""
    sent: datetime
    data: bytes
    signature: bytes
    hash: str
    chain: str
    state: Sent
    received: datetime | None = None
    receipt: bytes = b""
    receipt_signature: bytes = b""


class Head(msgspec.Struct, frozen=True):
    """The last line of the ledger, or the last that retention took."""

    seq: int = 0
    hash: str = BEGIN
    chain: str = BEGIN
    seal: str = ""


class Gap(msgspec.Struct, frozen=True):
    """Lines that were lost with an older state: what follows names the hub's last one."""

    after: int
    """The last line that is here."""
    seq: int
    """The last that the hub took …"""
    hash: str
    """… and its hash."""


class _Gaps(msgspec.Struct, frozen=True):
    gaps: tuple[Gap, ...] = ()
    seal: str = ""


class Told(msgspec.Struct, frozen=True):
    """An envelope of the hub."""

    n: int
    received: datetime
    type: str
    share_id: str
    data: bytes
    signature: bytes


class Tally(msgspec.Struct, frozen=True):
    """What stands in the outbox."""

    waiting: int = 0
    oldest: datetime | None = None
    """Since when the first of it might have been sent."""
    approval: int = 0
    """Waiting for somebody to say yes."""
    dropped: int = 0
    refused: int = 0
    """Envelopes that the hub would never take, and that were sealed anew."""
    shared: int = 0
    withdrawn: int = 0


class LinkState(msgspec.Struct, frozen=True, kw_only=True):
    """How it stands between this node and its hub, as the sending end says."""

    state: Literal["none", "linked", "unreachable", "refused", "drop"] = "none"
    error: str = ""
    since: datetime | None = None
    """Since when it is so."""
    heard: datetime | None = None
    """When the hub answered last."""
    certificate_until: datetime | None = None


class OutgoingStore:
    """The tables of sharing; any thread may ask."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
        reading: Callable[[], sqlite3.Connection],
        get: Callable[[str], Document | None],
        operator_key: bytes,
        trail: Trail,
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._get = get
        self._key = hmac.digest(operator_key, b"ledger", "sha256")
        self._trail = trail

    @contextmanager
    def desk(self) -> Iterator[Desk]:
        """One transaction of the outbox, all or nothing."""
        with self._writing() as db:
            yield Desk(db, self._get, self._key)

    def begin(self, *, anew: bool = False) -> None:
        """Follow the findings from now on; unless `anew`, only if they are not followed yet."""
        with self._writing() as db:
            db.execute(
                f"INSERT OR {'REPLACE' if anew else 'IGNORE'} INTO numbers"
                " SELECT ?, coalesce(max(number), 0) FROM changes",
                (CURSOR,),
            )

    def had_policy(self) -> bool:
        """Whether a policy was ever in force; without one now, what is found waits for it."""
        found = self._reading().execute("SELECT 1 FROM settings WHERE name = 'sharing_policy'")
        return found.fetchone() is not None

    def has_changes(self) -> bool:
        """Whether findings were written that the outbox has not looked at."""
        found = self._reading().execute(
            "SELECT EXISTS (SELECT 1 FROM changes WHERE number >"
            " (SELECT value FROM numbers WHERE name = ?))",
            (CURSOR,),
        )
        return bool(found.fetchone()[0])

    def has_due(self, now: datetime) -> bool:
        """Whether something is on its way, or may be sent now."""
        found = self._reading().execute(
            "SELECT EXISTS (SELECT 1 FROM ledger INDEXED BY ledger_open WHERE state = 'sent')"
            f" OR EXISTS (SELECT 1 FROM outgoing WHERE state = 'due' AND {_DUE})",
            _due(now),
        )
        return bool(found.fetchone()[0])

    def has_answer(self) -> bool:
        """Whether the hub was not told yet what became of one of its proposals."""
        return proposals.has_answer(self._reading())

    def has_release(self, policy: str) -> bool:
        """Whether the hub is to be told of a sample; see `has_due` of the samples."""
        return samples.has_due(self._reading(), policy)

    # ---- people

    def waiting(self, state: State, limit: int = 200, offset: int = 0) -> list[Waiting]:
        """What waits in a state, the newest first."""
        rows = self._reading().execute(
            "SELECT * FROM outgoing WHERE state = ? ORDER BY offered DESC LIMIT ? OFFSET ?",
            (state, limit, offset),
        )
        return [_waiting(row) for row in rows]

    def approvers(self, share_id: str, policy: str, rule: str) -> tuple[str, ...]:
        """Who said yes to a share under a rule of a policy."""
        return _approvers(self._reading(), share_id, policy, rule)

    def approve(self, share_id: str, by: str, now: datetime, *, yes: bool = True) -> bool:
        """Say yes, or no, to a share that waits for it; False if it does not wait.

        Two persons are needed where the rule says so; the same person counts once, and only who
        signed in is known to be one. It holds for this share as long as policy and rule are the
        same.
        """
        by = harmless(by)
        with self._writing() as db:
            row = db.execute(
                "SELECT * FROM outgoing WHERE share_id = ? AND state <> 'due'", (share_id,)
            ).fetchone()
            if row is None:
                return False
            if yes:
                db.execute(
                    "INSERT OR REPLACE INTO approvals VALUES (?, ?, ?, ?, ?)",
                    (share_id, row["policy"], row["rule"], by, micros(now)),
                )
            else:
                db.execute("DELETE FROM approvals WHERE share_id = ?", (share_id,))
            db.execute(
                "UPDATE outgoing SET state = ?, due = ? WHERE share_id = ?",
                ("due" if yes else "refused", micros(now), share_id),
            )
            what = "sharing: approved" if yes else "sharing: refused"
            self._trail.add(db, by, what, f"{share_id} by rule {row['rule']}", now)
        return True

    def withdraw(
        self,
        by: str,
        reason: str,
        now: datetime,
        *,
        note: str = "",
        share_id: str = "",
        rule: str = "",
        token: str = "",
        sent: Range | None = None,
    ) -> list[str]:
        """Take back what was shared, for good; what is named must all hold.

        Args:
            by: Who asks for it.
            reason: `error`, `false_positive`, `consent`, `legal`, `expired`.
            now: The node's time.
            note: In words, for the hub.
            share_id: This one.
            rule: What a rule let out.
            token: What holds this token now.
            sent: What was sent in this span.

        Returns:
            Ids of the shares that are taken back.
        """
        if not (share_id or rule or token or sent):
            return []
        where, values = "TRUE", list[object]()
        for name, value in (("share_id", share_id), ("rule", rule)):
            if value:
                where, values = f"{where} AND {name} = ?", [*values, value]
        unsent = (where, list(values)) if not token and not sent else ("FALSE", [])
        where += " AND state = 'shared'"
        if token:
            where += (
                " AND seq IN (SELECT seq FROM ledger WHERE instr(data, ?) > 0"
                " AND state <> 'refused')"
            )
            values.append(msgspec.json.encode(token))
        if sent:
            where += (
                " AND EXISTS (SELECT 1 FROM ledger WHERE ledger.share_id = shared.share_id"
                " AND ledger.sent >= ? AND ledger.sent < ?)"
            )
            values += [micros(sent.since), micros(sent.until)]
        note = harmless(note[:NOTE_MAX])
        with self._writing() as db:
            desk = Desk(db, self._get, self._key)
            gone = [
                _shared(row) for row in db.execute(f"SELECT * FROM shared WHERE {where}", values)
            ]
            for one in gone:
                desk.take_back(one, reason, note, now)
            found = [one.share_id for one in gone]
            query = f"SELECT * FROM outgoing WHERE {unsent[0]} AND kind = 'share'"
            for waits in [_waiting(row) for row in db.execute(query, unsent[1])]:
                desk.never(waits, now)
                found.append(waits.share_id)
            if not token and rule in ("", SAMPLES):
                for id in desk.samples.open(share_id, sent):
                    desk.samples.take_back(reason, now, id=id)
                    found.append(id)
            what = f"sharing: withdrawn ({reason})"
            if found:
                self._trail.add(db, harmless(by), what, ", ".join(found), now)
        return found

    # ---- reading

    def tally(self) -> Tally:
        """What stands in the outbox, counted."""
        db = self._reading()
        waiting, oldest, approval = db.execute(
            "SELECT count(*) FILTER (WHERE state = 'due'),"
            " min(max(offered, due)) FILTER (WHERE state = 'due'),"
            " count(*) FILTER (WHERE state = 'approval') FROM outgoing"
        ).fetchone()
        shared, withdrawn = db.execute(
            "SELECT count(*) FILTER (WHERE state = 'shared'),"
            " count(*) FILTER (WHERE state = 'withdrawn') FROM shared"
        ).fetchone()
        return Tally(
            waiting,
            from_micros(oldest) if oldest is not None else None,
            approval,
            _number(db, DROPPED),
            _number(db, REFUSED),
            shared,
            withdrawn,
        )

    def shared(self, share_id: str) -> Shared | None:
        """What was shared last under an id."""
        row = self._reading().execute("SELECT * FROM shared WHERE share_id = ?", (share_id,))
        found = row.fetchone()
        return _shared(found) if found else None

    def all_shared(self) -> Iterator[tuple[Shared, bool]]:
        """What was shared last under every id, and whether the hub has answered all of it."""
        for row in self._reading().execute(
            "SELECT *, NOT EXISTS (SELECT 1 FROM ledger WHERE ledger.share_id = shared.share_id"
            " AND ledger.state IN ('sent', 'not receipted')) AND NOT EXISTS (SELECT 1 FROM outgoing"
            " WHERE outgoing.share_id = shared.share_id AND kind = 'withdraw') AS answered"
            " FROM shared ORDER BY share_id"
        ):
            said = dict(row)
            is_answered = bool(said.pop("answered"))
            yield Shared(**{**said, "sent": from_micros(said["sent"])}), is_answered

    def ledger(
        self, words: str = "", span: Range | None = None, limit: int = 100, offset: int = 0
    ) -> list[Line]:
        """Lines in which all words stand – in what was sent, too – the newest first."""
        span = span or Range()
        where = "sent >= ? AND sent < ?"
        values: list[object] = [micros(span.since), micros(span.until)]
        for word in words.split()[:20]:
            where += (
                " AND (instr(data, CAST(? AS BLOB)) > 0 OR instr(approvers || fields || finding"
                " || state, ?) > 0)"
            )
            values += [word, word]
        rows = self._reading().execute(
            f"SELECT * FROM ledger WHERE {where} ORDER BY n DESC LIMIT ? OFFSET ?",
            (*values, limit, offset),
        )
        return [_line(row) for row in rows]

    def lines(self, after: int = 0) -> Iterator[Line]:
        """All lines behind a number, the oldest first."""
        for row in self._reading().execute(
            "SELECT * FROM ledger WHERE seq > ? ORDER BY n", (after,)
        ):
            yield _line(row)

    def head(self) -> Head:
        """The sealed head of the ledger."""
        return _head(self._reading(), "ledger_head")

    def anchor(self) -> Head:
        """What the first line of the ledger follows."""
        return _head(self._reading(), "ledger_anchor")

    def is_sealed(self, name: str, head: Head) -> bool:
        """Whether a head is as it was sealed; `ledger_head` or `ledger_anchor`."""
        if not head.seal:
            return head == Head()
        return hmac.compare_digest(head.seal, _seal(self._key, name, head))

    def gaps(self) -> dict[int, Gap]:
        """Where lines were lost, by the last line before; none whose seal does not hold."""
        found = _gaps(self._reading())
        is_sealed = hmac.compare_digest(found.seal, _seal_of(self._key, found.gaps))
        return {one.after: one for one in found.gaps} if is_sealed else {}

    def chained(self, line: Line, chain: str) -> str:
        """The keyed hash that a line must carry behind another one."""
        return _chained(self._key, line, chain)

    def inbox(self, limit: int = 100) -> list[Told]:
        """What the hub said, the newest first."""
        rows = self._reading().execute("SELECT * FROM inbox ORDER BY n DESC LIMIT ?", (limit,))
        return [
            Told(
                row["n"],
                from_micros(row["received"]),
                row["type"],
                row["share_id"],
                bytes(row["data"]),
                bytes(row["signature"]),
            )
            for row in rows
        ]

    def link(self) -> LinkState:
        """How it stands between this node and its hub."""
        row = self._reading().execute("SELECT value FROM settings WHERE name = 'sharing_link'")
        found = row.fetchone()
        return msgspec.json.decode(_blob(found[0]), type=LinkState) if found else LinkState()

    def set_link(self, state: LinkState) -> None:
        """Say how it stands."""
        said = msgspec.json.encode(state)
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO settings VALUES ('sharing_link', ?)", (said,))

    def heard(self) -> int:
        """Number of the last envelope of the hub."""
        return int(self._reading().execute("SELECT coalesce(max(n), 0) FROM inbox").fetchone()[0])

    # ---- Retention

    def retain(self, db: sqlite3.Connection, now: datetime) -> None:
        """Let go of what is old, and of the oldest lines above a bound, within its transaction."""
        last = db.execute(
            "SELECT seq, hash, chain FROM ledger"
            " WHERE seq <= (SELECT max(seq) FROM ledger) - ? AND state = 'receipted'"
            " ORDER BY seq DESC LIMIT 1",
            (LEDGER_MAX,),
        ).fetchone()
        if last is not None:
            _set_number(db, "ledger_anchor", last["seq"])
            _set_head(db, self._key, "ledger_anchor", Head(*last))
            db.execute("DELETE FROM ledger WHERE seq <= ?", (last["seq"],))
        db.execute(
            "DELETE FROM shared WHERE sent < ? AND finding NOT IN (SELECT id FROM findings)",
            (micros(now - SHARED_FOR),),
        )
        db.execute("DELETE FROM approvals WHERE time < ?", (micros(now - SHARED_FOR),))
        db.execute("DELETE FROM inbox WHERE n <= (SELECT max(n) FROM inbox) - ?", (INBOX_MAX,))


class Desk:
    """What the outbox does within one transaction."""

    def __init__(
        self, db: sqlite3.Connection, get: Callable[[str], Document | None], key: bytes
    ) -> None:
        self._db, self.finding, self._key = db, get, key
        self.samples = SampleDesk(db)

    # ---- what waits

    def changes(self, limit: int) -> list[str]:
        """The next findings that were written; they count as looked at."""
        rows = self._db.execute(
            "SELECT number, finding FROM changes WHERE number > ? ORDER BY number LIMIT ?",
            (_number(self._db, CURSOR), limit),
        ).fetchall()
        if rows:
            _set_number(self._db, CURSOR, rows[-1]["number"])
        return [row["finding"] for row in rows]

    def policy(self, id: str, now: datetime) -> None:
        """Under another policy than before all that was shared is judged anew."""
        row = self._db.execute("SELECT value FROM settings WHERE name = 'sharing_policy'")
        before = row.fetchone()
        if before is not None and bytes(before[0]).decode() == id:
            return
        self._db.execute(
            "INSERT OR REPLACE INTO settings VALUES ('sharing_policy', ?)", (id.encode(),)
        )
        # Offered when it was sent: it is nothing new, and comes behind what is.
        self._db.execute(
            "INSERT OR IGNORE INTO outgoing (share_id, finding, kind, rank, offered, due, state)"
            " SELECT share_id, finding, 'share', rank, sent, ?, 'due' FROM shared"
            " WHERE state = 'shared'",
            (micros(now),),
        )
        self._db.execute("UPDATE outgoing SET state = 'due'")

    def offer(self, one: Waiting) -> None:
        """Let it wait; the newest replaces what waits of the same share."""
        self._db.execute(
            "INSERT INTO outgoing VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (share_id) DO UPDATE SET rank = excluded.rank,"
            " offered = excluded.offered, due = min(due, excluded.due) WHERE kind <> 'withdraw'",
            _waiting_row(one),
        )

    def hold(self, share_id: str, policy: str, rule: str) -> None:
        """Somebody has to say yes first; a no holds as long as policy and rule do."""
        self._db.execute(
            "UPDATE outgoing SET state = CASE WHEN state = 'refused' AND policy = ?1 AND rule = ?2"
            " THEN 'refused' ELSE 'approval' END, policy = ?1, rule = ?2 WHERE share_id = ?3",
            (policy, rule, share_id),
        )

    def drop(self, share_id: str) -> None:
        """It waits no more."""
        self._db.execute("DELETE FROM outgoing WHERE share_id = ?", (share_id,))

    def bound(self) -> tuple[int, int]:
        """Let the oldest of the least severe go above the bound; how many, and the room left."""
        room = OUTGOING_MAX - self._db.execute("SELECT count(*) FROM outgoing").fetchone()[0]
        if room >= 0:
            return 0, room
        gone = self._db.execute(
            "DELETE FROM outgoing WHERE share_id IN (SELECT share_id FROM outgoing"
            " WHERE kind = 'share' ORDER BY rank, offered LIMIT ?)",
            (-room,),
        ).rowcount
        _set_number(self._db, DROPPED, _number(self._db, DROPPED) + gone)
        return gone, 0

    def next(self, now: datetime) -> Waiting | None:
        """What goes next: withdrawals, what is new, then the most severe; the newest first."""
        live = micros(now - LIVE)
        for where, order, values in (
            ("kind = 'withdraw'", "offered", ()),
            ("kind = 'share' AND offered > ?", "offered DESC", (live,)),
            ("kind = 'share'", "rank DESC, offered DESC", ()),
        ):
            row = self._db.execute(
                f"SELECT * FROM outgoing WHERE state = 'due' AND {_DUE} AND {where}"
                f" ORDER BY {order} LIMIT 1",
                (*_due(now), *values),
            ).fetchone()
            if row is not None:
                return _waiting(row)
        return None

    def approvers(self, share_id: str, policy: str, rule: str) -> tuple[str, ...]:
        """Who said yes to a share under a rule of a policy."""
        return _approvers(self._db, share_id, policy, rule)

    # ---- what was shared

    def shared(self, share_id: str) -> Shared | None:
        """What was shared last under an id."""
        row = self._db.execute("SELECT * FROM shared WHERE share_id = ?", (share_id,)).fetchone()
        return _shared(row) if row else None

    def set_shared(self, one: Shared) -> None:
        """Note what was shared last under an id."""
        self._db.execute(
            "INSERT OR REPLACE INTO shared VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*msgspec.structs.astuple(one)[:-1], micros(one.sent)),
        )

    def take_back(self, one: Shared, reason: str, note: str, now: datetime) -> None:
        """Let the withdrawal of a share wait, in place of whatever waits of it."""
        self.drop(one.share_id)
        self.offer(
            Waiting(
                share_id=one.share_id, finding=one.finding, kind="withdraw", rank=one.rank,
                offered=now, due=now, policy=one.policy, rule=one.rule, reason=reason, note=note,
            )
        )  # fmt: skip
        self.set_shared(msgspec.structs.replace(one, state="withdrawn"))

    def never(self, one: Waiting, now: datetime) -> None:
        """What was not sent yet never will be."""
        self.drop(one.share_id)
        self.set_shared(
            Shared(
                share_id=one.share_id, finding=one.finding, state="withdrawn", policy=one.policy,
                rule=one.rule, rank=one.rank, payload_sha256="", marks="", revision=0, seq=0,
                sent=now,
            )
        )  # fmt: skip

    # ---- the ledger

    def on_the_way(self) -> Line | None:
        """The oldest envelope that was sealed and has neither a receipt nor a drop."""
        row = self._db.execute(
            "SELECT * FROM ledger INDEXED BY ledger_open WHERE state = 'sent' ORDER BY seq LIMIT 1"
        ).fetchone()
        return _line(row) if row else None

    def head(self) -> Head:
        """The last line; a new one follows it."""
        return _head(self._db, "ledger_head")

    def go_on(self, seq: int, hash: str) -> None:
        """Begin an empty ledger behind what an earlier one, which is lost, had sent."""
        head = Head(seq, hash)
        _set_number(self._db, "ledger_anchor", seq)
        for name in ("ledger_anchor", "ledger_head"):
            _set_head(self._db, self._key, name, head)

    def resume(self, seq: int, hash: str) -> None:
        """Go on behind what the hub has, though lines before it are lost: the gap is kept."""
        head = self.head()
        gaps = (*_gaps(self._db).gaps, Gap(head.seq, seq, hash))
        said = msgspec.json.encode(_Gaps(gaps, _seal_of(self._key, gaps)))
        self._db.execute("INSERT OR REPLACE INTO settings VALUES ('ledger_gaps', ?)", (said,))
        # Its number was given to something else, which the hub took.
        self._db.execute("UPDATE ledger SET state = 'not receipted' WHERE state = 'sent'")
        _set_head(self._db, self._key, "ledger_head", Head(seq, hash, head.chain))

    def tell_again(self, after: int) -> None:
        """A hub has nothing of what was sent behind a number: as it is now, it is said again.

        What is on its way is sent anyway.
        """
        lost = self._db.execute(
            "SELECT * FROM shared WHERE share_id IN (SELECT share_id FROM ledger WHERE seq > ?)"
            " AND seq NOT IN (SELECT seq FROM ledger WHERE state = 'sent')",
            (after,),
        ).fetchall()
        for one in map(_shared, lost):
            waits = Waiting(
                share_id=one.share_id, finding=one.finding, rank=one.rank, offered=one.sent,
                due=one.sent, policy=one.policy, rule=one.rule,
            )  # fmt: skip
            if one.state == "withdrawn":
                waits = msgspec.structs.replace(waits, kind="withdraw", reason="error")
            else:
                self.set_shared(msgspec.structs.replace(one, payload_sha256=""))
            self.offer(waits)
        proposals.answer_again(self._db, after)
        self.samples.again(after)

    def append(self, line: Line) -> None:
        """Add a line behind the head; its chain is made here."""
        line = msgspec.structs.replace(line, chain=_chained(self._key, line, self.head().chain))
        self._db.execute(
            "INSERT INTO ledger VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                line.seq, line.type, line.share_id, line.finding, line.policy, line.rule,
                msgspec.json.encode(line.approvers).decode(),
                msgspec.json.encode(line.fields).decode(),
                micros(line.sent), line.data, line.signature, line.hash, line.chain, line.state,
                None, None, None,
            ),
        )  # fmt: skip
        _set_head(self._db, self._key, "ledger_head", Head(line.seq, line.hash, line.chain))

    def line(self, seq: int) -> Line | None:
        """One line of the ledger."""
        row = self._db.execute(
            "SELECT * FROM ledger WHERE seq = ? AND state <> 'refused'", (seq,)
        ).fetchone()
        return _line(row) if row else None

    def set_aside(self, line: Line, prev: str, again: Waiting | None) -> None:
        """The hub will never take these bytes: they stay here, and what follows has their number.

        Args:
            line: Of the envelope; it is on its way.
            prev: The envelope before it.
            again: What it carried, which waits once more; None: nothing.
        """
        self._db.execute(
            "UPDATE ledger SET state = 'refused' WHERE seq = ? AND state = 'sent'", (line.seq,)
        )
        _set_head(self._db, self._key, "ledger_head", Head(line.seq - 1, prev, line.chain))
        _set_number(self._db, REFUSED, _number(self._db, REFUSED) + 1)
        if again is not None:
            self.offer(again)
            # The hub has nothing of it, or what was before.
            self._db.execute(
                "UPDATE shared SET payload_sha256 = '' WHERE share_id = ?", (again.share_id,)
            )

    def set_dropped(self, seq: int) -> None:
        """It was left in a drop."""
        self._db.execute(
            "UPDATE ledger SET state = 'not receipted' WHERE seq = ? AND state = 'sent'", (seq,)
        )

    def set_receipt(self, seq: int, data: bytes, signature: bytes, now: datetime) -> None:
        """Keep the receipt of a line that has none yet."""
        self._db.execute(
            "UPDATE ledger SET state = 'receipted', received = ?, receipt = ?,"
            " receipt_signature = ? WHERE seq = ? AND state <> 'refused' AND receipt IS NULL",
            (micros(now), data, signature, seq),
        )

    def takes(self) -> tuple[str, ...]:
        """Types of envelopes that the hub understands besides those that all do."""
        row = self._db.execute("SELECT value FROM settings WHERE name = 'hub_takes'").fetchone()
        return _words(row[0]) if row else ()

    def set_takes(self, kinds: Sequence[str]) -> None:
        """Note what the hub says, or that it is to be asked anew."""
        said = msgspec.json.encode(kinds)
        if tuple(kinds) == self.takes():
            return
        self._db.execute("INSERT OR REPLACE INTO settings VALUES ('hub_takes', ?)", (said,))
        if "sample" in kinds:
            self.samples.understood()

    def tell(self, told: Told) -> None:
        """Keep an envelope of the hub."""
        self._db.execute(
            "INSERT OR IGNORE INTO inbox VALUES (?, ?, ?, ?, ?, ?)",
            (told.n, micros(told.received), told.type, told.share_id, told.data, told.signature),
        )
        if told.type == "withdraw":
            proposals.withdraw(self._db, told.share_id)
            self.samples.forget(told.share_id)

    # ---- proposals of the city

    def propose(self, one: Proposed) -> bool:
        """Keep a proposal that came; False: too many are open."""
        return proposals.take(self._db, one)

    def next_answer(self) -> Proposed | None:
        """A proposal of which the hub is to be told how it stands."""
        return proposals.next_answer(self._db)

    def set_answered(self, one: Proposed, seq: int) -> None:
        """The hub is told, by the envelope of that number."""
        proposals.set_answered(self._db, one, seq)

    def answer_again(self, behind: int) -> None:
        """What was answered behind a number is answered again."""
        proposals.answer_again(self._db, behind)


_DUE = "(due <= ? OR due > ?)"


def _due(now: datetime) -> tuple[int, int]:
    return micros(now), micros(now + LATEST)


def _chained(key: bytes, line: Line, chain: str) -> str:
    said = (
        chain, line.seq, line.type, line.share_id, line.finding, line.policy, line.rule,
        line.approvers, line.fields, micros(line.sent), line.hash,
        hashlib.sha256(line.signature).hexdigest(),
    )  # fmt: skip
    return hmac.digest(key, msgspec.json.encode(said), "sha256").hex()


def _seal(key: bytes, name: str, head: Head) -> str:
    said = msgspec.json.encode((name, head.seq, head.hash, head.chain))
    return hmac.digest(key, said, "sha256").hex()


def _seal_of(key: bytes, gaps: Sequence[Gap]) -> str:
    return hmac.digest(key, msgspec.json.encode(("ledger_gaps", gaps)), "sha256").hex()


def _gaps(db: sqlite3.Connection) -> _Gaps:
    row = db.execute("SELECT value FROM settings WHERE name = 'ledger_gaps'").fetchone()
    try:
        return msgspec.json.decode(_blob(row[0]), type=_Gaps) if row else _Gaps()
    except msgspec.MsgspecError:
        return _Gaps()


def _head(db: sqlite3.Connection, name: str) -> Head:
    row = db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
    if row is None:
        return Head()
    try:
        return msgspec.json.decode(_blob(row[0]), type=Head)
    except msgspec.MsgspecError:
        return Head(seal="none")


def _set_head(db: sqlite3.Connection, key: bytes, name: str, head: Head) -> None:
    sealed = msgspec.structs.replace(head, seal=_seal(key, name, head))
    said = msgspec.json.encode(sealed)
    db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, said))


def _number(db: sqlite3.Connection, name: str) -> int:
    row = db.execute("SELECT value FROM numbers WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def _set_number(db: sqlite3.Connection, name: str, value: int) -> None:
    db.execute("INSERT OR REPLACE INTO numbers VALUES (?, ?)", (name, value))


def _approvers(db: sqlite3.Connection, share_id: str, policy: str, rule: str) -> tuple[str, ...]:
    rows = db.execute(
        "SELECT person FROM approvals WHERE share_id = ? AND policy = ? AND rule = ?"
        " ORDER BY time, person",
        (share_id, policy, rule),
    )
    return tuple(row["person"] for row in rows)


def _waiting_row(one: Waiting) -> Sequence[object]:
    return (
        one.share_id, one.finding, one.kind, one.rank, micros(one.offered), micros(one.due),
        one.state, one.policy, one.rule, one.reason, one.note,
    )  # fmt: skip


def _waiting(row: sqlite3.Row) -> Waiting:
    times = {name: from_micros(row[name]) for name in ("offered", "due")}
    return Waiting(**{**dict(row), **times})


def _shared(row: sqlite3.Row) -> Shared:
    return Shared(**{**dict(row), "sent": from_micros(row["sent"])})


def _line(row: sqlite3.Row) -> Line:
    """A line as it stands there; what somebody wrote over it must not keep it from being named."""
    said = dict(row)
    del said["n"]
    said |= {name: _words(row[name]) for name in ("approvers", "fields")}
    said |= {name: _time(row[name]) for name in ("sent", "received")}
    said["sent"] = said["sent"] or from_micros(0)
    for name in ("data", "signature", "receipt", "receipt_signature"):
        said[name] = _blob(row[name])
    return Line(**said)


def _words(value: object) -> tuple[str, ...]:
    try:
        return msgspec.json.decode(_blob(value), type=tuple[str, ...])
    except msgspec.MsgspecError:
        return (str(value),)


def _time(value: object) -> datetime | None:
    try:
        return from_micros(value) if isinstance(value, int) else None
    except (OverflowError, ValueError):
        return None


def _blob(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value or "").encode()
