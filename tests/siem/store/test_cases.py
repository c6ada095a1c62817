"""Incidents: what belongs to them, who did what, and that nothing of it is lost."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward.errors import InputError
from siem.store.cases import CaseStore, Incident, Submission
from siem.store.embedded import NodeDb
from siem.store.protocol import Conflict, Range
from tests.siem.store.test_embedded import match

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[NodeDb]:
    db = NodeDb(tmp_path / "node.db", b"key", clock=lambda: LATER)
    yield db
    db.close()


@pytest.fixture
def cases(db: NodeDb) -> CaseStore:
    return db.cases


def findings(db: NodeDb, count: int = 2) -> list[str]:
    return db.keep([match(0, f"192.0.2.{n}") for n in range(1, count + 1)], checkpoint=1, now=NOON)


def opened(cases: CaseStore, **said: Any) -> Incident:
    return cases.open("op-metro", "Writes to the heating", "mara", NOON, **said)


def test_an_incident_has_a_number_that_can_be_read_out(cases: CaseStore) -> None:
    assert [opened(cases).id for _ in range(3)] == ["2026-0001", "2026-0002", "2026-0003"]
    assert cases.open("op", "x", "mara", NOON.replace(year=2027)).id == "2027-0001"


def test_findings_that_join_say_to_which_incident_they_belong(db: NodeDb) -> None:
    ids = findings(db)

    made = opened(db.cases, findings=[*ids, "unknown"])

    assert list(made.findings) == ids
    rows = db.search("", Range()).rows
    assert [row["cw.incident_id"] for row in rows] == [made.id, made.id]
    assert [row["finding.revision"] for row in rows] == [2, 2]


def test_a_finding_that_matches_again_stays_in_its_incident(db: NodeDb) -> None:
    ids = findings(db, 1)
    made = opened(db.cases, findings=ids)

    db.keep([match(60, "192.0.2.1")], checkpoint=2, now=LATER)

    found = db.get(ids[0])
    assert found is not None
    assert (found["cw.incident_id"], found["finding.count"]) == (made.id, 2)


def test_a_finding_belongs_to_one_incident_only(db: NodeDb) -> None:
    ids = findings(db)
    first = opened(db.cases, findings=ids)
    second = opened(db.cases)

    db.cases.join(second.id, [ids[0]], "mara", LATER)

    assert _get(db.cases, first.id).findings == (ids[1],)
    assert _get(db.cases, second.id).findings == (ids[0],)
    moved = db.get(ids[0])
    assert moved is not None
    assert moved["cw.incident_id"] == second.id


def test_what_leaves_says_so_no_more(db: NodeDb) -> None:
    ids = findings(db)
    made = opened(db.cases, findings=ids)

    db.cases.leave(made.id, [ids[0]], "mara", LATER)

    left = db.get(ids[0])
    assert left is not None
    assert "cw.incident_id" not in left
    assert _get(db.cases, made.id).findings == (ids[1],)


def test_every_change_is_in_the_history_and_in_the_audit_trail(db: NodeDb) -> None:
    made = opened(db.cases)

    db.cases.change(made.id, "jo", LATER, "by order", stage="contained", owner="jo", aware_at=NOON)

    kept = _get(db.cases, made.id)
    assert (kept.stage, kept.owner, kept.aware_at, kept.revision) == ("contained", "jo", NOON, 2)
    assert [(step.by, step.why) for step in kept.history] == [("mara", ""), ("jo", "by order")]
    assert "stage contained" in kept.history[-1].what
    lines, _ = db.trail("incident", Range())
    assert len(lines) == 2
    assert db.audit_proof().fault == ""


def test_the_same_again_changes_nothing(cases: CaseStore) -> None:
    made = opened(cases)

    again = cases.change(made.id, "jo", LATER, stage="new", severity="medium")

    assert again == made


def test_who_has_seen_an_older_state_changes_nothing(cases: CaseStore) -> None:
    made = opened(cases)
    cases.change(made.id, "jo", LATER, stage="contained")

    with pytest.raises(Conflict):
        cases.change(made.id, "mara", LATER, seen=made.revision, stage="closed")


@pytest.mark.parametrize(
    "said",
    [
        {"stage": "merged"},
        {"stage": "x"},
        {"severity": "worst"},
        {"cause": "aliens"},
        {"title": " "},
        {"revision": 7},
        {"aware_at": NOON.replace(tzinfo=None)},
    ],
)
def test_what_cannot_be_is_refused(cases: CaseStore, said: dict[str, Any]) -> None:
    made = opened(cases)

    with pytest.raises(InputError):
        cases.change(made.id, "jo", LATER, **said)

    assert cases.get(made.id) == made


def test_closing_says_when_and_opening_again_takes_it_back(cases: CaseStore) -> None:
    made = opened(cases)

    closed = cases.change(made.id, "jo", LATER, stage="closed")
    assert (closed.closed, closed.is_open) == (LATER, False)
    assert cases.all(open_only=True) == []
    assert cases.change(made.id, "jo", LATER, stage="recovering").closed is None


def test_tasks_are_done_once(cases: CaseStore) -> None:
    made = opened(cases)
    cases.add_task(made.id, "Call the control room", "mara", NOON)

    cases.do_task(made.id, 1, "jo", LATER)
    cases.do_task(made.id, 1, "mara", LATER + timedelta(hours=1))

    (task,) = _get(cases, made.id).tasks
    assert (task.done_by, task.done_at) == ("jo", LATER)
    with pytest.raises(InputError):
        cases.do_task(made.id, 2, "jo", LATER)


def test_a_duty_is_submitted_once_and_what_was_sent_is_kept(cases: CaseStore) -> None:
    made = opened(cases, duties=["nis2-early-warning"])
    sent = Submission("nis2-early-warning", "jo", LATER, "CSIRT", "42", "the text")

    cases.submit(made.id, sent, LATER)

    assert _get(cases, made.id).submissions == (sent,)
    with pytest.raises(InputError):
        cases.submit(made.id, sent, LATER)
    with pytest.raises(InputError):
        cases.submit(made.id, Submission("cer-first", "jo", LATER, "x"), LATER)


def test_merging_keeps_both_ids_and_the_earlier_awareness(db: NodeDb) -> None:
    ids = findings(db)
    one = opened(db.cases, findings=[ids[0]], aware_at=LATER)
    other = opened(db.cases, findings=[ids[1]], aware_at=NOON, severity="high")
    db.cases.add_task(other.id, "Call", "mara", NOON)

    kept = db.cases.merge(one.id, other.id, "jo", LATER)

    assert (kept.aware_at, kept.severity) == (NOON, "high")
    assert set(kept.findings) == set(ids)
    assert [task.text for task in kept.tasks] == ["Call"]
    assert _get(db.cases, other.id).merged_into == one.id
    with pytest.raises(InputError, match="merged"):
        db.cases.note(other.id, "too late", "jo", LATER)


def test_splitting_goes_on_with_the_same_clocks(db: NodeDb) -> None:
    ids = findings(db)
    one = opened(db.cases, findings=ids, aware_at=NOON, duties=["nis2-early-warning"])

    made = db.cases.split(one.id, [ids[1]], "Another one", "jo", LATER)

    assert (made.findings, made.aware_at, made.duties) == ((ids[1],), NOON, one.duties)
    assert _get(db.cases, one.id).findings == (ids[0],)
    with pytest.raises(InputError):
        db.cases.split(one.id, ["unknown"], "Nothing", "jo", LATER)


def test_hostile_text_is_kept_as_text(cases: CaseStore) -> None:
    made = cases.open("op", "a\x00b\ud800<script>", "mara", NOON)

    cases.note(made.id, "x" * 100_000, "mara", NOON)

    kept = _get(cases, made.id)
    assert "<script>" in kept.title
    assert len(kept.history[-1].why) == 4_000


def test_words_find_an_incident(cases: CaseStore) -> None:
    opened(cases, services=["District heating"])
    cases.open("op", "Fare gates", "mara", NOON)

    assert [one.title for one in cases.all(words="HEATING district")] == ["Writes to the heating"]


def _get(cases: CaseStore, id: str) -> Incident:
    found = cases.get(id)
    assert found is not None
    return found
