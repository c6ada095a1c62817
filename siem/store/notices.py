"""The outbox of notifications: what is news of findings, what waits, what was delivered.

News is written in the transaction that keeps the finding. What routes make of it commits together
with taking the news away, and a delivery keeps its id until its receiver has answered. So a process
that is killed loses nothing; a delivery that was sent and not yet noted is sent again, with its id.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

import msgspec

from cityward.finding import SEVERITIES
from siem.store.faults import fault
from siem.store.lines import UNWRITABLE, harmless
from siem.store.protocol import Document
from siem.store.query import from_micros, micros

SCHEMA = """
CREATE TABLE news (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    finding TEXT NOT NULL, kind TEXT NOT NULL, time INTEGER NOT NULL
);
CREATE TABLE routes (id TEXT PRIMARY KEY, since INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE told (
    route TEXT NOT NULL, grp TEXT NOT NULL, severity INTEGER NOT NULL, time INTEGER NOT NULL,
    PRIMARY KEY (route, grp)
) WITHOUT ROWID;
CREATE TABLE waiting (
    number INTEGER PRIMARY KEY, route TEXT NOT NULL, finding TEXT NOT NULL, kind TEXT NOT NULL,
    why TEXT NOT NULL, due INTEGER NOT NULL,
    UNIQUE (route, finding)
);
CREATE TABLE escalations (
    route TEXT NOT NULL, finding TEXT NOT NULL, due INTEGER NOT NULL,
    PRIMARY KEY (route, finding)
) WITHOUT ROWID;
CREATE TABLE deliveries (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    route TEXT NOT NULL,
    kind TEXT NOT NULL,
    made INTEGER NOT NULL,
    due INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'due',
    attempts INTEGER NOT NULL DEFAULT 0,
    tried INTEGER,
    receivers TEXT NOT NULL,
    answer TEXT NOT NULL DEFAULT '',
    about TEXT NOT NULL,
    findings INTEGER NOT NULL,
    message TEXT NOT NULL
);
CREATE INDEX deliveries_by_route ON deliveries (route, made);
CREATE INDEX deliveries_by_try ON deliveries (route, tried);
CREATE INDEX deliveries_due ON deliveries (route, due) WHERE state = 'due';
"""
"""Since format 2 of the state."""

TAKEN_AT_ONCE = 200
LISTED_MAX = 50
"""So many findings stand in one message; of what is more, it says how many."""
NEWS_DAYS = 7
"""News that nobody takes, since no console runs, is let go after so many days."""
DELIVERIES_DAYS = 90
DELIVERIES_MAX = 100_000
ANSWER_MAX = 500
HOUR = timedelta(hours=1)

Kind = Literal["finding", "digest", "escalation", "test"]
News = Literal["made", "raised", "back", "escalated"]
OPEN = ("new", "in_progress")
_LEFT_OUT = ("cw.history", "cw.why", "cw.evidence", "finding.fingerprint")
"""What a message does not carry: too long, or of no use elsewhere."""


class Route(Protocol):
    """A route as the outbox sees it."""

    @property
    def id(self) -> str:
        """Its name in the settings."""
        ...

    @property
    def receivers(self) -> tuple[str, ...]:
        """To whom it sends."""
        ...

    @property
    def max_per_hour(self) -> int:
        """Messages of single findings in a clock hour; 0: no limit."""
        ...

    @property
    def escalate_after(self) -> timedelta | None:
        """How long it waits for somebody to take a finding."""
        ...

    @property
    def escalate_to(self) -> str:
        """Which route is told then."""
        ...

    def wants(self, finding: Document) -> bool:
        """Whether it is told of a finding."""
        ...

    def accepts(self, finding: Document) -> bool:
        """Whether it may be told of a finding by an escalation."""
        ...

    def due(self, now: datetime, severity: str) -> tuple[datetime, str]:
        """When news is sent, and why not at once (`digest`, `quiet`); empty: at once."""
        ...


class Item(msgspec.Struct, frozen=True):
    """One finding of a message, as it was when the message was made."""

    news: News
    finding: Document


class Message(msgspec.Struct, frozen=True):
    """What a delivery says; it is the same at each attempt."""

    items: tuple[Item, ...] = ()
    more: int = 0
    """Findings that are left out."""
    why: str = ""
    """Why it was held: `digest`, `quiet`, `limit`, joined by commas."""
    full: bool = False
    """The last message of its hour: what is more comes together at the next full hour."""


class Delivery(msgspec.Struct, frozen=True):
    """One message to one route, and what became of it."""

    id: str
    route: str
    kind: Kind
    made: datetime
    due: datetime
    state: Literal["due", "sent", "dead"]
    attempts: int
    tried: datetime | None
    receivers: tuple[str, ...]
    """Who has not got it yet; of one that was sent: to whom."""
    answer: str
    """What the server said last."""
    about: str
    findings: int
    message: Message


class Tally(msgspec.Struct, frozen=True):
    """What a route has done so far."""

    sent: int = 0
    dead: int = 0
    retrying: int = 0
    waiting: int = 0
    """Findings that wait for a digest, the end of quiet hours or the next hour."""
    last: Delivery | None = None
    """The one that was tried last."""


def add_news(db: sqlite3.Connection, finding: str, kind: News, now: datetime) -> None:
    """Say that something is news, within the transaction that makes it so."""
    db.execute(
        "INSERT INTO news (finding, kind, time) VALUES (?, ?, ?)", (finding, kind, micros(now))
    )


class NoticeStore:
    """The tables of the outbox; made by `NodeDb`, on its connections."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
        reading: Callable[[], sqlite3.Connection],
        get: Callable[[str], Document | None],
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._get = get

    # ---- From news to deliveries

    def begin(self, routes: Sequence[Route], now: datetime) -> None:
        """Take up the routes of the settings; a new one begins with what is found from now on."""
        marks = ", ".join("?" * len(routes))
        ids = [route.id for route in routes]
        with self._writing() as db:
            db.executemany(
                "INSERT OR IGNORE INTO routes VALUES (?, ?)", [(id, micros(now)) for id in ids]
            )
            db.execute(
                "UPDATE deliveries SET state = 'dead', answer = 'the route was taken out of the"
                f" settings' WHERE state = 'due' AND route NOT IN ({marks})",
                ids,
            )
            db.execute(f"DELETE FROM routes WHERE id NOT IN ({marks})", ids)
            for table in ("told", "waiting", "escalations"):
                db.execute(f"DELETE FROM {table} WHERE route NOT IN ({marks})", ids)

    def plan(self, routes: Mapping[str, Route], now: datetime) -> int:
        """Make deliveries of what is due; returns how many pieces of news were taken."""
        if not self._has_work(now):
            return 0
        with self._writing() as db:
            since = dict(tuple(row) for row in db.execute("SELECT id, since FROM routes"))
            taken = db.execute(
                "SELECT * FROM news ORDER BY number LIMIT ?", (TAKEN_AT_ONCE,)
            ).fetchall()
            for news in taken:
                told = [one for one in routes.values() if news["time"] >= since.get(one.id, 0)]
                self._take(db, news, told, now)
            if taken:
                db.execute("DELETE FROM news WHERE number <= ?", (taken[-1]["number"],))
            self._escalate(db, routes, now)
            self._gather(db, routes, now)
            fault("notify-before-commit")
        return len(taken)

    def _has_work(self, now: datetime) -> bool:
        """Whether anything is to be planned; asked without the right to write."""
        due = micros(now)
        row = self._reading().execute(
            "SELECT EXISTS (SELECT 1 FROM news)"
            " OR EXISTS (SELECT 1 FROM escalations WHERE due <= ?1)"
            " OR EXISTS (SELECT 1 FROM waiting WHERE due <= ?1)",
            (due,),
        )
        return bool(row.fetchone()[0])

    def _take(
        self, db: sqlite3.Connection, news: sqlite3.Row, routes: Sequence[Route], now: datetime
    ) -> None:
        finding = self._get(news["finding"])
        if finding is None or finding["finding.status"] not in OPEN:
            return
        for route in routes:
            if route.wants(finding) and _is_new(db, route.id, finding, news["kind"]):
                self._tell(db, route, finding, news["kind"], now)

    def _tell(
        self, db: sqlite3.Connection, route: Route, finding: Document, news: News, now: datetime
    ) -> None:
        """Make a message of one finding, or let it wait for its time."""
        severity = finding["finding.severity"]
        _set_told(db, route.id, finding, now)
        due, why = route.due(now, severity)
        left = _left(db, route, now) if not why else 1
        if not why and left < 1:
            next_hour = now.replace(minute=0, second=0, microsecond=0) + HOUR
            due, why = max(next_hour, route.due(next_hour, severity)[0]), "limit"
        if not why:
            kind: Kind = "escalation" if news == "escalated" else "finding"
            message = Message((_item(news, finding),), full=left == 1)
            self._make(db, route, kind, message, now)
            # What waited for a better time has just been said.
            db.execute(
                "DELETE FROM waiting WHERE route = ? AND finding = ?",
                (route.id, finding["finding.id"]),
            )
            return
        db.execute(
            "INSERT INTO waiting (route, finding, kind, why, due) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (route, finding) DO UPDATE SET kind = excluded.kind,"
            " why = excluded.why, due = min(due, excluded.due)",
            (route.id, finding["finding.id"], news, why, micros(due)),
        )

    def _escalate(self, db: sqlite3.Connection, routes: Mapping[str, Route], now: datetime) -> None:
        """Tell the next route of what nobody has taken in time."""
        rows = db.execute("SELECT * FROM escalations WHERE due <= ?", (micros(now),)).fetchall()
        for row in rows:
            db.execute(
                "DELETE FROM escalations WHERE route = ? AND finding = ?",
                (row["route"], row["finding"]),
            )
            finding, first = self._get(row["finding"]), routes.get(row["route"])
            onward = routes.get(first.escalate_to) if first else None
            is_open = finding is not None and finding["finding.status"] == "new"
            if finding is None or onward is None or not is_open or finding.get("assignee"):
                continue
            if onward.accepts(finding):
                self._tell(db, onward, finding, "escalated", now)

    def _gather(self, db: sqlite3.Connection, routes: Mapping[str, Route], now: datetime) -> None:
        """One message a route of all that waited until now and that nobody has settled."""
        for route in routes.values():
            due = (route.id, micros(now))
            reasons = db.execute(
                "SELECT why FROM waiting WHERE route = ? AND due <= ?"
                " GROUP BY why ORDER BY min(number)",
                due,
            ).fetchall()
            if not reasons:
                continue
            # Of a flood only what is listed is read: meanwhile nobody else can write.
            worst = db.execute(
                "SELECT kind, finding, count(*) OVER () AS total FROM waiting"
                " JOIN findings ON findings.id = finding"
                " WHERE route = ? AND due <= ? AND status IN (?, ?)"
                " ORDER BY severity DESC, number LIMIT ?",
                (*due, *OPEN, LISTED_MAX),
            ).fetchall()
            db.execute("DELETE FROM waiting WHERE route = ? AND due <= ?", due)
            items = tuple(
                _item(row["kind"], finding)
                for row in worst
                if (finding := self._get(row["finding"]))
            )
            if items:
                why = ", ".join(row["why"] for row in reasons)
                more = worst[0]["total"] - len(items)
                self._make(db, route, "digest", Message(items, more, why), now)

    def _make(
        self, db: sqlite3.Connection, route: Route, kind: Kind, message: Message, now: datetime
    ) -> str:
        count = len(message.items) + message.more
        first = str(message.items[0].finding["finding.title"]) if message.items else "test"
        id = str(uuid.uuid4())
        db.execute(
            "INSERT INTO deliveries (id, route, kind, made, due, receivers, about, findings,"
            " message) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                id,
                route.id,
                kind,
                micros(now),
                micros(now),
                _encoded(route.receivers),
                harmless(first) if count < 2 else f"{count} findings",
                count,
                _encoded(message),
            ),
        )
        if route.escalate_after is not None:
            until = micros(now + route.escalate_after)
            db.executemany(
                "INSERT OR REPLACE INTO escalations VALUES (?, ?, ?)",
                [(route.id, one.finding["finding.id"], until) for one in message.items],
            )
        return id

    # ---- Delivering

    def add_test(self, route: Route, now: datetime, *, taken: bool = False) -> Delivery:
        """A message that says that it is a test, to be delivered like any other.

        Args:
            route: Over which it goes.
            now: The node's time.
            taken: The caller delivers it; if that ends before, nobody does.
        """
        with self._writing() as db:
            id = self._make(db, route, "test", Message(), now)
            if taken:
                db.execute(
                    "UPDATE deliveries SET state = 'dead', answer = 'not finished' WHERE id = ?",
                    (id,),
                )
            row = db.execute("SELECT * FROM deliveries WHERE id = ?", (id,)).fetchone()
        return _delivery(row)

    def due(self, route: str, now: datetime) -> Delivery | None:
        """The delivery of a route that has been due for longest."""
        row = self._reading().execute(
            "SELECT * FROM deliveries WHERE route = ? AND state = 'due' AND due <= ?"
            " ORDER BY due, number LIMIT 1",
            (route, micros(now)),
        )
        found = row.fetchone()
        return _delivery(found) if found else None

    def sent(self, id: str, receivers: Sequence[str], answer: str, now: datetime) -> None:
        """Note that the receiver has it, and by what words it said so."""
        with self._writing() as db:
            db.execute(
                "UPDATE deliveries SET state = 'sent', attempts = attempts + 1, tried = ?,"
                " receivers = ?, answer = ?, message = '{}' WHERE id = ?",
                (micros(now), _encoded(receivers), harmless(answer)[:ANSWER_MAX], id),
            )

    def failed(
        self, id: str, left: Sequence[str], answer: str, now: datetime, again: datetime | None
    ) -> None:
        """Note that an attempt failed.

        Args:
            id: Of the delivery.
            left: Who has not got it.
            answer: What the server said, or why there was no answer.
            now: The node's time.
            again: When it is tried again; None: never.
        """
        with self._writing() as db:
            db.execute(
                "UPDATE deliveries SET state = ?, attempts = attempts + 1, tried = ?,"
                " receivers = ?, answer = ?, due = ? WHERE id = ?",
                (
                    "due" if again else "dead",
                    micros(now),
                    _encoded(left),
                    harmless(answer)[:ANSWER_MAX],
                    micros(again or now),
                    id,
                ),
            )

    # ---- Looking

    def deliveries(self, route: str = "", limit: int = 200, offset: int = 0) -> list[Delivery]:
        """Deliveries, newest first."""
        rows = self._reading().execute(
            "SELECT * FROM deliveries WHERE ?1 = '' OR route = ?1 ORDER BY number DESC"
            " LIMIT ?2 OFFSET ?3",
            (route, limit, offset),
        )
        return [_delivery(row) for row in rows]

    def delivery(self, id: str) -> Delivery | None:
        """One delivery, or None."""
        row = self._reading().execute("SELECT * FROM deliveries WHERE id = ?", (id,)).fetchone()
        return _delivery(row) if row else None

    def count(self, route: str = "") -> int:
        """How many deliveries are kept."""
        row = self._reading().execute(
            "SELECT count(*) FROM deliveries WHERE ?1 = '' OR route = ?1", (route,)
        )
        return int(row.fetchone()[0])

    def tally(self, route: str) -> Tally:
        """What a route has done so far."""
        db = self._reading()
        counts = db.execute(
            "SELECT count(*) FILTER (WHERE state = 'sent'), count(*) FILTER (WHERE state = 'dead'),"
            " count(*) FILTER (WHERE state = 'due' AND attempts > 0)"
            " FROM deliveries WHERE route = ?",
            (route,),
        ).fetchone()
        waits = db.execute("SELECT count(*) FROM waiting WHERE route = ?", (route,)).fetchone()
        last = db.execute(
            "SELECT * FROM deliveries WHERE route = ? AND tried IS NOT NULL"
            " ORDER BY tried DESC LIMIT 1",
            (route,),
        ).fetchone()
        sent, dead, retrying = counts
        return Tally(sent, dead, retrying, waits[0], _delivery(last) if last else None)

    # ---- Retention

    def retain(self, db: sqlite3.Connection, now: datetime) -> None:
        """Let go of what is old, within the transaction of retention."""
        db.execute("DELETE FROM news WHERE time < ?", (micros(now - timedelta(days=NEWS_DAYS)),))
        db.execute(
            "DELETE FROM deliveries WHERE state <> 'due' AND (made < ?"
            " OR number <= (SELECT max(number) FROM deliveries) - ?)",
            (micros(now - timedelta(days=DELIVERIES_DAYS)), DELIVERIES_MAX),
        )
        db.execute("DELETE FROM told WHERE grp NOT IN (SELECT grp FROM findings)")


def _is_new(db: sqlite3.Connection, route: str, finding: Document, kind: News) -> bool:
    """Whether a route has not been told of a group yet, or it is worse or back since then."""
    group = _group(db, finding)
    told = db.execute(
        "SELECT severity FROM told WHERE route = ? AND grp = ?", (route, group)
    ).fetchone()
    if told is None or kind == "back":
        return True
    if SEVERITIES.index(finding["finding.severity"]) > told["severity"]:
        return True
    others = db.execute(
        "SELECT EXISTS (SELECT 1 FROM findings WHERE grp = ? AND id <> ? AND status IN (?, ?))",
        (group, finding["finding.id"], *OPEN),
    )
    return kind == "made" and not others.fetchone()[0]


def _set_told(db: sqlite3.Connection, route: str, finding: Document, now: datetime) -> None:
    severity = SEVERITIES.index(finding["finding.severity"])
    db.execute(
        "INSERT OR REPLACE INTO told VALUES (?, ?, ?, ?)",
        (route, _group(db, finding), severity, micros(now)),
    )


def _group(db: sqlite3.Connection, finding: Document) -> str:
    row = db.execute("SELECT grp FROM findings WHERE id = ?", (finding["finding.id"],)).fetchone()
    return str(row["grp"])


def _left(db: sqlite3.Connection, route: Route, now: datetime) -> int:
    """How many more single messages a route may send in this clock hour; 2: many."""
    if not route.max_per_hour:
        return 2
    hour = micros(now.replace(minute=0, second=0, microsecond=0))
    made = db.execute(
        "SELECT count(*) FROM deliveries WHERE route = ? AND made >= ?"
        " AND kind IN ('finding', 'escalation')",
        (route.id, hour),
    ).fetchone()[0]
    return route.max_per_hour - int(made)


def _item(news: News, finding: Document) -> Item:
    return Item(news, {name: one for name, one in finding.items() if name not in _LEFT_OUT})


def _encoded(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except UNWRITABLE:
        return msgspec.json.encode(harmless(msgspec.to_builtins(value))).decode()


def _delivery(row: sqlite3.Row) -> Delivery:
    return Delivery(
        id=row["id"],
        route=row["route"],
        kind=row["kind"],
        made=from_micros(row["made"]),
        due=from_micros(row["due"]),
        state=row["state"],
        attempts=row["attempts"],
        tried=from_micros(row["tried"]) if row["tried"] is not None else None,
        receivers=tuple(msgspec.json.decode(row["receivers"])),
        answer=row["answer"],
        about=row["about"],
        findings=row["findings"],
        message=msgspec.json.decode(row["message"], type=Message),
    )
