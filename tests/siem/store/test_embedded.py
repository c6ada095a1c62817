"""`node.db`: findings that grow and come back, triage, and what commits together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cityward import Analytic, Asset, Check, Event, Finding, LogSource, Record, Why
from cityward.errors import ConfigError
from siem.store import embedded
from siem.store.embedded import NodeDb, confidence_of, risk
from siem.store.events import event_id
from siem.store.protocol import Change, Person, Range, RuleState, SourceState, Token

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = b"key of the operator"
RULE = Analytic(
    id="8b5db9da-5732-4afb-9b5b-4a1a3b8a2f0e",
    name="Password guessed",
    kind="rule",
    version="3f9c",
    level="high",
    author="cityward",
    techniques=("T1110.001",),
    tactics=("TA0006",),
    framework="attack-enterprise",
    tags=("insider",),
)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def db(tmp_path: Path, clock: Clock) -> Iterator[NodeDb]:
    assets = {"jump-1": Asset(id="jump-1", type="jump_host", criticality=5, zone="ra-1")}
    db = NodeDb(tmp_path / "node.db", KEY, asset_of=assets.get, clock=clock)
    yield db
    db.close()


def event(second: float, source: str = "192.0.2.7", asset: str = "jump-1") -> Event:
    at = NOON + timedelta(seconds=second)
    fields = {
        "source.ip": source,
        "cw.operator": "op-metro",
        "cw.sector": "transport.rail",
        "cw.asset.asset_id": asset,
        "event.ingested": at,
    }
    return Event(at, LogSource(service="sshd"), fields, Record(b"", "auth", int(second), at))


def match(second: float = 0, source: str = "192.0.2.7", **changes: Any) -> Finding:
    seen = event(second, source, changes.pop("asset", "jump-1"))
    made = Finding(
        analytic=RULE,
        title="Password guessed at the jump host",
        description=f"{source} tried 12 names in 60 s",
        severity="high",
        group=(("source.ip", source),),
        first_seen=seen.time,
        last_seen=seen.time,
        events=(seen,),
        why=Why("selection", (Check("selection", "event.outcome", "is failure", "failure", True),)),
    )
    return msgspec.structs.replace(made, **changes)


# ---- Merging


def test_a_finding_says_what_the_schema_wants(db: NodeDb) -> None:
    (finding_id,) = db.keep([match()], checkpoint=7, now=NOON)

    assert db.get(finding_id) == {
        "finding.id": finding_id,
        "finding.fingerprint": db.fingerprint(match()),
        "finding.revision": 1,
        "finding.type": "detection",
        "finding.title": "Password guessed at the jump host",
        "finding.description": "192.0.2.7 tried 12 names in 60 s",
        "finding.status": "new",
        "finding.verdict": "unknown",
        "finding.severity": "high",
        "finding.risk": 76,
        "finding.risk_model": "1",
        "finding.confidence": 0.6,
        "finding.cause": "unknown",
        "finding.mode": "normal",
        "finding.first_seen": NOON,
        "finding.last_seen": NOON,
        "finding.count": 1,
        "finding.created": NOON,
        "finding.modified": NOON,
        "rule.id": "8b5db9da-5732-4afb-9b5b-4a1a3b8a2f0e",
        "rule.name": "Password guessed",
        "rule.version": "3f9c",
        "rule.ruleset": "cityward",
        "rule.status": "stable",
        "rule.author": ["cityward"],
        "cw.analytic.type": "rule",
        "threat.framework": "attack-enterprise",
        "threat.technique.id": ["T1110.001"],
        "threat.tactic.id": ["TA0006"],
        "tags": ["insider"],
        "source.ip": "192.0.2.7",
        "cw.operator": "op-metro",
        "cw.sector": "transport.rail",
        "cw.schema": "1.0.0",
        "cw.marking.tlp": "amber+strict",
        "cw.marking.pap": "green",
        "cw.asset.asset_id": "jump-1",
        "cw.asset.type": "jump_host",
        "cw.asset.zone": "ra-1",
        "cw.asset.criticality": 5,
        "cw.asset.safety_related": False,
        "cw.why": {
            "condition": "selection",
            "checks": [
                {"selection": "selection", "field": "event.outcome", "wanted": "is failure",
                 "saw": "failure", "held": True, "negated": False, "bits": None},
            ],
            "score": None, "threshold": None, "unit": "",
        },
        "cw.history": [{"time": NOON, "by": "", "what": "made", "why": "1 events"}],
        "marks": [],
    }  # fmt: skip


def test_matches_of_one_group_and_day_are_one_finding_that_grows(db: NodeDb) -> None:
    first = db.keep([match(10), match(5, severity="critical")], 1, now=NOON)
    second = db.keep([match(60, count=4), match(0, "192.0.2.9")], 2, now=NOON)

    assert first == second[:1]
    assert len(second) == 2
    grown = db.get(first[0])
    assert grown is not None
    assert grown["finding.count"] == 6
    assert grown["finding.first_seen"] == NOON + timedelta(seconds=5)
    assert grown["finding.last_seen"] == NOON + timedelta(seconds=60)
    assert grown["finding.severity"] == "critical"
    assert grown["finding.revision"] == 2
    assert grown["marks"] == ["grows"]


def test_the_next_day_and_another_rule_are_other_findings(db: NodeDb) -> None:
    other = msgspec.structs.replace(RULE, id="other")

    ids = db.keep([match(0), match(43_200), match(0, analytic=other)], 1, now=NOON)

    assert len(set(ids)) == 3


def test_an_id_depends_on_the_key_and_not_on_the_order_of_the_group(tmp_path: Path) -> None:
    one, other = NodeDb(tmp_path / "a.db", b"a"), NodeDb(tmp_path / "b.db", b"b")
    forth = match(group=(("source.ip", "1"), ("user.name", "2")))
    back = match(group=(("user.name", "2"), ("source.ip", "1")))

    assert one.fingerprint(forth) == one.fingerprint(back)
    assert one.fingerprint(forth) != other.fingerprint(forth)
    one.close()
    other.close()


def test_the_first_ten_and_the_newest_forty_events_are_kept(db: NodeDb) -> None:
    ids = set()
    for second in range(100):
        ids.update(db.keep([match(second)], second, now=NOON))

    (finding_id,) = ids
    kept = [int((one["@timestamp"] - NOON).total_seconds()) for one in db.events_of(finding_id)]
    assert kept == [*range(99, 59, -1), *range(9, -1, -1)]


def test_the_copy_of_an_event_has_the_id_of_the_event_store(db: NodeDb) -> None:
    (finding_id,) = db.keep([match(3)], 1, now=NOON)

    (copy,) = db.events_of(finding_id)
    assert copy["event.id"] == event_id("op-metro", "auth", "3", 0)
    assert copy["@timestamp"] == copy["event.ingested"] == NOON + timedelta(seconds=3)


def test_a_resolved_finding_that_matches_again_came_back(db: NodeDb) -> None:
    ids = db.keep([match(0)], 1, now=NOON)
    db.change(ids, Change(status="resolved", verdict="true_positive"), "i.vasko", NOON)

    db.keep([match(9)], 2, now=NOON)

    found = db.get(ids[0])
    assert found is not None
    assert (found["finding.status"], found["marks"]) == ("new", ["came back"])
    assert "finding.closed" not in found
    assert [line["what"] for line in found["cw.history"]] == [
        "made",
        "status resolved, verdict true_positive",
        "came back",
    ]


def test_a_suppressed_finding_stays_quiet_until_its_time_is_over(db: NodeDb) -> None:
    ids = db.keep([match(0)], 1, now=NOON)
    until = NOON + timedelta(hours=2)
    db.change(ids, Change(status="suppressed", suppressed_until=until), "i.vasko", NOON)

    db.keep([match(9)], 2, now=NOON + timedelta(hours=1))
    quiet = db.get(ids[0])
    db.keep([match(10)], 3, now=until)
    loud = db.get(ids[0])

    assert quiet is not None
    assert loud is not None
    assert (quiet["finding.status"], quiet["marks"], quiet["finding.count"]) == (
        "suppressed",
        ["suppressed"],
        2,
    )
    assert (loud["finding.status"], loud["marks"]) == ("new", ["came back"])


def test_a_finding_grows_for_an_hour_or_until_somebody_looked(db: NodeDb, clock: Clock) -> None:
    ids = db.keep([match(0)], 1, now=NOON)
    db.keep([match(1)], 2, now=NOON)
    marks = []
    for minutes in (59, 61):
        clock.now = NOON + timedelta(minutes=minutes)
        marks.append(db.search("", Range()).rows[0]["marks"])
        marks.append(db.groups("", Range()).rows[0]["marks"])
    clock.now = NOON
    db.change(ids, Change(status="in_progress"), "i.vasko", NOON)
    marks.append(db.search("", Range()).rows[0]["marks"])

    assert marks == [["grows"], ["grows"], [], [], []]


def test_exercises_are_marked(db: NodeDb) -> None:
    seen = event(0)
    exercise = Event(seen.time, seen.logsource, {**seen.fields, "cw.mode": "exercise"}, seen.record)

    (finding_id,) = db.keep([match(events=(exercise,))], 1, now=NOON)

    found = db.get(finding_id)
    assert found is not None
    assert (found["finding.mode"], found["marks"]) == ("exercise", ["exercise"])


# ---- Risk and confidence


@pytest.mark.parametrize(
    ("severity", "criticality", "confidence", "expected"),
    [
        ("informational", 1, 0.0, 5),
        ("low", 2, 0.4, 21),
        ("medium", 3, 0.5, 40),
        ("high", 5, 0.6, 76),
        ("critical", 5, 1.0, 100),
        ("fatal", 5, 1.0, 100),
    ],
)
def test_risk_is_severity_times_criticality_times_confidence(
    severity: str, criticality: int, confidence: float, expected: int
) -> None:
    assert risk(severity, criticality, confidence) == expected


@pytest.mark.parametrize(
    ("right", "wrong", "expected"), [(0, 0, 0.6), (10, 0, 0.8), (0, 10, 0.3), (0, 1000, 0.006)]
)
def test_confidence_goes_from_the_prior_to_what_people_said(
    right: int, wrong: int, expected: float
) -> None:
    assert confidence_of("high", right, wrong) == expected


def test_verdicts_on_a_rule_change_the_confidence_of_its_next_match(db: NodeDb) -> None:
    ids = db.keep([match(0, f"192.0.2.{number}") for number in range(10)], 1, now=NOON)
    db.change(ids, Change(status="resolved", verdict="false_positive"), "i.vasko", NOON)

    (finding_id,) = db.keep([match(0, "192.0.2.99")], 2, now=NOON)

    found = db.get(finding_id)
    assert found is not None
    assert found["finding.confidence"] == 0.3


def test_a_model_says_its_own_confidence(db: NodeDb) -> None:
    model = Analytic("model.surprise", "Surprise", "model", "1")

    (finding_id,) = db.keep([match(analytic=model, confidence=0.91)], 1, now=NOON)

    found = db.get(finding_id)
    assert found is not None
    assert found["finding.confidence"] == 0.91


# ---- Commits


def test_findings_checkpoint_snapshots_and_states_commit_together(
    db: NodeDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, rule = SourceState("auth", "sshd", records=3), RuleState("r", "R", "high", "on")
    db.keep([match(0)], 5, {"silence": b"\x00state"}, [source], [rule], NOON)

    def die(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "fault", die)
    with pytest.raises(KeyboardInterrupt):
        db.keep([match(9)], 6, {"silence": b"later"}, [], [], NOON)

    assert db.checkpoint() == (5, 5, {"silence": b"\x00state"})
    assert db.search("", Range()).rows[0]["finding.count"] == 1
    assert db.sources() == [source]
    assert [(one.id, one.state) for one in db.rules()] == [("r", "on")]


def test_a_checkpoint_without_snapshots_leaves_those_there_are(db: NodeDb) -> None:
    db.keep([], 5, {"silence": b"five"}, now=NOON)
    db.keep([], 9, now=NOON)

    assert db.checkpoint() == (9, 5, {"silence": b"five"})


@pytest.mark.parametrize(("point", "kept"), [("keep-before-commit", 1), ("keep-after-commit", 2)])
def test_a_kill_keeps_all_of_a_transaction_or_nothing(
    tmp_path: Path, point: str, kept: int
) -> None:
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from tests.siem.store.test_embedded import KEY, NOON, match
        from siem.store.embedded import NodeDb
        db = NodeDb(Path(sys.argv[1]), KEY)
        for number in (1, 2, 3):
            db.keep([match(number)], number, {"d": bytes([number])}, now=NOON)
    """)
    process = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "node.db")],
        env={**os.environ, "CITYWARD_FAULT": f"{point}:2", "PYTHONPATH": str(Path.cwd())},
        check=False,
    )

    db = NodeDb(tmp_path / "node.db", KEY)
    state = db.checkpoint()
    counts = [one["finding.count"] for one in db.search("", Range()).rows]
    db.close()

    assert process.returncode == -signal.SIGKILL
    assert state == (kept, kept, {"d": bytes([kept])})
    assert counts == [kept]


def test_a_database_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    raw = sqlite3.connect(tmp_path / "node.db")
    raw.execute("PRAGMA user_version = 99")
    raw.close()

    with pytest.raises(ConfigError) as caught:
        NodeDb(tmp_path / "node.db", KEY)

    assert caught.value.what == "format 99 of the database is newer than 6"


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "node.db").write_bytes(b"not a database, but long enough to look" * 40)

    with pytest.raises(ConfigError, match="no database"):
        NodeDb(tmp_path / "node.db", KEY)


def _resolve(path: Path, ids: list[str]) -> None:
    db = NodeDb(path, KEY)
    for finding_id in ids:
        db.change([finding_id], Change(comment="seen"), "console", NOON)
    db.close()


def test_path_and_console_write_at_the_same_time(tmp_path: Path, db: NodeDb) -> None:
    ids = db.keep([match(0, f"192.0.2.{number}") for number in range(40)], 1, now=NOON)
    other = multiprocessing.get_context("spawn").Process(
        target=_resolve, args=(tmp_path / "node.db", ids)
    )
    other.start()
    for second in range(1, 41):
        db.keep([match(second, f"192.0.2.{second - 1}")], second + 1, now=NOON)
    other.join()

    rows = db.search("", Range(), limit=100).rows
    assert other.exitcode == 0
    assert {row["finding.revision"] for row in rows} == {3}
    assert {row["finding.count"] for row in rows} == {2}


# ---- History


def test_history_keeps_its_first_lines_and_its_newest(db: NodeDb) -> None:
    (finding_id,) = db.keep([match()], 1, now=NOON)
    for number in range(250):
        db.change([finding_id], Change(comment=f"{number}"), "me", NOON)

    found = db.get(finding_id)
    assert found is not None
    lines = [line["why"] for line in found["cw.history"]]
    assert len(lines) == 200
    assert lines[:3] == ["1 events", "0", "1"]
    assert lines[-1] == "249"


# ---- People, settings, retention


def test_people_and_their_tokens(db: NodeDb) -> None:
    anna = Person("anna", ("analyst",), "$argon2id$1")
    db.add_person(anna)
    db.add_person(Person("bob", ("engineer",), "$argon2id$2"))
    token = Token("ab" * 6, "anna", "ticket desk", ("read",), expires=NOON + timedelta(days=1))
    db.accounts.add_token("ab" * 32, token, "bob", NOON)
    promoted = Person("anna", ("administrator",), "$argon2id$3")
    db.add_person(promoted)

    assert db.people() == [promoted, Person("bob", ("engineer",), "$argon2id$2")]
    assert db.person("anna") == promoted
    held = db.accounts.holder_of("ab" * 32, NOON)
    assert held is not None
    assert held[0] == promoted
    assert held[1].scopes == ("read",)
    assert db.accounts.tokens()[0].used == NOON
    assert db.accounts.holder_of("ab" * 32, NOON + timedelta(days=1)) is None


def test_a_setting_is_made_once(db: NodeDb) -> None:
    assert db.setting("secret") is None
    assert db.keep_setting("secret", b"one", replace=False) == b"one"
    assert db.keep_setting("secret", b"two", replace=False) == b"one"
    assert db.keep_setting("secret", b"two") == db.setting("secret") == b"two"


def test_the_audit_trail_goes_back_page_by_page(db: NodeDb) -> None:
    for number in range(5):
        db.audit("anna", "sign-in", str(number), NOON)

    first = db.audited(limit=2)
    second = db.audited(limit=2, before=first[-1].number)

    assert [one.about for one in (*first, *second)] == ["4", "3", "2", "1"]


def test_closed_findings_go_after_a_year_and_open_ones_stay(db: NodeDb) -> None:
    ids = db.keep([match(0, f"192.0.2.{number}") for number in range(3)], 1, now=NOON)
    db.change(ids[:1], Change(status="resolved"), "me", NOON)
    db.change(ids[1:2], Change(status="suppressed"), "me", NOON)

    early = db.retain(NOON + timedelta(days=364))
    late = db.retain(NOON + timedelta(days=366))

    assert (early["findings_old"], late["findings_old"]) == (0, 1)
    assert db.get(ids[0]) is None
    assert db.events_of(ids[0]) == []
    assert len(db.events_of(ids[1])) == 1
    assert {row["finding.id"] for row in db.search("", Range()).rows} == set(ids[1:])


def test_the_change_feed_names_what_was_written_since_each_finding_once(db: NodeDb) -> None:
    a, b = db.keep([match(0, "192.0.2.1"), match(0, "192.0.2.2")], 1, now=NOON)
    first = db.changes_after(0, 10)
    db.change([a], Change(status="in_progress"), "me", NOON)
    [c] = db.keep([match(1, "192.0.2.3")], 2, now=NOON)

    assert first == [(1, a), (2, b)]
    assert db.changes_after(2, 10) == [(3, a), (4, c)]
    assert db.changes_after(0, 2) == [(2, b), (3, a)]


def test_a_number_of_the_change_feed_never_comes_again(db: NodeDb) -> None:
    [a] = db.keep([match(0, "192.0.2.1")], 1, now=NOON)
    db.change([a], Change(status="resolved"), "me", NOON)
    db.retain(NOON + timedelta(days=366))

    [b] = db.keep([match(0, "192.0.2.2")], 2, now=NOON)
    db.retain(NOON + timedelta(days=366))

    assert db.changes_after(0, 10) == [(3, b)]


def test_above_the_bound_the_closed_and_the_least_risky_go_first(
    db: NodeDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = ("critical", "low", "high")
    ids = db.keep(
        [match(0, f"192.0.2.{n}", severity=level) for n, level in enumerate(levels)], 1, now=NOON
    )
    db.change(ids[:1], Change(status="resolved"), "me", NOON)
    monkeypatch.setattr(embedded, "FINDINGS_MAX", 1)

    gone = db.retain(NOON)

    assert gone["findings_surplus"] == 2
    assert [row["finding.id"] for row in db.search("", Range()).rows] == ids[2:]


def test_broken_text_does_not_stop_the_others(db: NodeDb) -> None:
    ids = db.keep([match(title="a\ud800b"), match(0, "192.0.2.9")], 1, now=NOON)

    assert len(ids) == 2
    found = db.get(ids[0])
    assert found is not None
    assert found["finding.title"] == "a\\ud800b"


def test_broken_text_of_a_person_is_kept_in_hexadecimal(db: NodeDb) -> None:
    ids = db.keep([match()], 1, now=NOON)

    db.change(ids, Change(comment="\ud800", assignee="\udfff"), "i\ud800", NOON)

    found = db.get(ids[0])
    assert found is not None
    assert (found["cw.history"][-1]["why"], found["assignee"]) == ("\\ud800", "\\udfff")


# ---- Undo


def test_a_finding_that_grew_can_still_be_undone(db: NodeDb) -> None:
    (one,) = db.keep([match()], 1, now=NOON)
    db.change([one], Change(status="in_progress", assignee="anna"), "anna", NOON)
    db.keep([match(60)], 2, now=NOON)

    assert db.undo("anna", NOON) == 1
    found = db.get(one)
    assert found is not None
    assert (found["finding.status"], found["finding.count"]) == ("new", 2)


def test_a_thread_that_ended_leaves_no_open_file(db: NodeDb) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    for _ in range(2):
        thread = threading.Thread(target=db.people)
        thread.start()
        thread.join()
    before = count()

    for _ in range(10):
        thread = threading.Thread(target=db.people)
        thread.start()
        thread.join()

    assert count() <= before
