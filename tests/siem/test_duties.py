"""Legal clocks: when they begin, when they are due, who is warned, and what a draft knows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward import ConfigError
from siem import duties
from siem.duties import DutyWatch, clocks, draft
from siem.store.cases import Incident, Step, Submission, Task

AWARE = datetime(2026, 1, 31, 8, tzinfo=UTC)
DUTIES = duties.load()
EARLY, NOTIFICATION, FINAL = "nis2-early-warning", "nis2-notification", "nis2-final-report"


def incident(**said: Any) -> Incident:
    return Incident(
        **{
            "id": "2026-0001",
            "operator": "op-energy",
            "title": "Writes to the heating",
            "opened": AWARE,
            "opened_by": "mara",
            "aware_at": AWARE,
            "duties": duties.usual(DUTIES),
            **said,
        }
    )


def clock(one: Incident, duty: str, now: datetime) -> duties.Clock:
    return next(c for c in clocks(one, DUTIES, now) if c.duty.id == duty)


def test_the_clocks_run_from_awareness() -> None:
    now = AWARE + timedelta(hours=12)

    early, late = clock(incident(), EARLY, now), clock(incident(), NOTIFICATION, now)

    assert (early.state, early.due, early.share) == ("runs", AWARE + timedelta(hours=24), 0.5)
    assert late.due == AWARE + timedelta(hours=72)


def test_without_awareness_no_clock_runs() -> None:
    found = clocks(incident(aware_at=None), DUTIES, AWARE)

    assert {one.state for one in found} == {"waits"}


def test_the_final_report_is_due_a_month_after_the_notification() -> None:
    assert clock(incident(), FINAL, AWARE).state == "waits"

    sent = Submission(NOTIFICATION, "jo", AWARE, "CSIRT")
    found = clock(incident(submissions=(sent,)), FINAL, AWARE)

    # 31 January and a month is the last day of February.
    assert found.due == datetime(2026, 2, 28, 8, tzinfo=UTC)


def test_a_duty_is_overdue_from_the_second_it_was_due() -> None:
    due = AWARE + timedelta(hours=24)

    assert clock(incident(), EARLY, due - timedelta(seconds=1)).state == "runs"
    assert clock(incident(), EARLY, due).state == "overdue"


@pytest.mark.parametrize(("hours", "state"), [(23, "submitted"), (25, "submitted late")])
def test_what_was_submitted_stands_still(hours: int, state: str) -> None:
    sent = Submission(EARLY, "jo", AWARE + timedelta(hours=hours), "CSIRT")

    found = clock(incident(submissions=(sent,)), EARLY, AWARE + timedelta(days=9))

    assert (found.state, found.share) == (state, hours / 24)


def test_a_draft_is_filled_from_the_case_and_people_have_the_last_word() -> None:
    finding = {
        "finding.first_seen": AWARE,
        "finding.title": "Modbus write",
        "finding.impact": ["loss_of_control"],
        "source.ip": "203.0.113.7",
    }
    one = incident(
        cause="malicious",
        services=("District heating",),
        tasks=(Task(1, "Port closed", "jo", "jo", AWARE),),
        history=(Step(AWARE, "jo", "opened"),),
        answers={NOTIFICATION: {"severity": "as bad as it gets"}},
    )

    said = {
        a.asked.name: (a.text, a.by_person) for a in draft(one, DUTIES[NOTIFICATION], [finding])
    }

    assert said["entity"] == ("op-energy", False)
    assert said["severity"] == ("as bad as it gets", True)
    assert said["impact"] == ("loss_of_control", False)
    assert said["services"] == ("District heating", False)
    assert said["indicators"] == ("source.ip: 203.0.113.7", False)
    assert said["contact"] == ("", False)
    final = {a.asked.name: a.text for a in draft(one, DUTIES[FINAL], [finding])}
    assert final["timeline"].splitlines() == [
        "2026-01-31 08:00 UTC Modbus write",
        "2026-01-31 08:00 UTC opened",
    ]
    assert final["measures"] == "Port closed"


def test_people_are_warned_at_half_four_fifths_nearly_all_and_all_of_the_time() -> None:
    one = incident(duties=(EARLY,))
    watch = DutyWatch(DUTIES, lambda: [one])
    said = []

    for minute in range(0, 26 * 60, 10):
        said += watch.tick(AWARE + timedelta(minutes=minute))

    assert [dict(f.group)["share"] for f in said] == ["0.5", "0.8", "0.95", "1.0"]
    assert [f.severity for f in said] == ["medium", "medium", "high", "critical"]
    assert said[0].first_seen == AWARE + timedelta(hours=12)
    assert "50 % of the time is over" in said[0].description


def test_nothing_is_said_twice_after_a_restart() -> None:
    one = incident(duties=(EARLY,))
    watch, now = DutyWatch(DUTIES, lambda: [one]), AWARE + timedelta(hours=13)
    assert len(list(watch.tick(now))) == 1

    again = DutyWatch(DUTIES, lambda: [one])
    again.restore(watch.snapshot())

    assert list(again.tick(now + timedelta(minutes=1))) == []
    with pytest.raises(ValueError, match="array"):
        again.restore(b"{")


def test_after_a_long_stop_only_the_latest_mark_is_news() -> None:
    watch = DutyWatch(DUTIES, lambda: [incident(duties=(EARLY,))])

    (said,) = watch.tick(AWARE + timedelta(hours=23))

    assert dict(said.group)["share"] == "0.95"


def test_what_was_submitted_warns_nobody() -> None:
    sent = Submission(EARLY, "jo", AWARE, "CSIRT")
    watch = DutyWatch(DUTIES, lambda: [incident(duties=(EARLY,), submissions=(sent,))])

    assert list(watch.tick(AWARE + timedelta(hours=30))) == []


@pytest.mark.parametrize(
    "text",
    [
        "duties: 7",
        "other: []",
        "duties:\n- {id: a, name: a, law: a, to: a, begins: aware, within: soon, fields: []}",
        "duties:\n- {id: a, name: a, law: a, to: a, begins: b, within: 24h, fields: []}",
        "duties:\n- {id: a, name: a, law: a, to: a, begins: aware, within: 24h, fields: [], x: 1}",
        "[",
        "",
    ],
)
def test_a_wrong_file_of_deadlines_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deadlines.yml"
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        duties.load(path)

    assert str(path) in caught.value.where


def test_the_shipped_deadlines_are_those_of_the_design() -> None:
    within = {duty.id: duty.within for duty in DUTIES.values()}

    assert within == {
        EARLY: "24h",
        NOTIFICATION: "72h",
        FINAL: "1 month",
        "cer-first": "24h",
        "cer-detailed": "1 month",
        "gdpr-authority": "72h",
    }
