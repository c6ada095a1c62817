"""The workbench behind the console: drafts, two people, tries, previews, filters."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward import InputError, RuleError, Unsafe
from detectors.sigma import load, samples
from detectors.sigma.load import load_folder
from siem import assembly, ruleset, serve, words
from siem.config import Settings
from siem.console.tuning import Job
from siem.node import document
from siem.store.embedded import NodeDb
from siem.store.protocol import Conflict
from siem.workbench import BLANK, Workbench
from tests.programs import PATIENCE_S
from tests.siem.test_tuning import (
    FILTER,
    FILTER_ID,
    MANY,
    MANY_ID,
    NOW,
    RULE,
    RULE_ID,
    SAMPLES,
    attempts,
    findings,
    right,
    seen,
)
from tests.siem.test_tuning import db as db  # noqa: PLC0414
from tests.siem.test_tuning import settings as settings  # noqa: PLC0414

LINE = "2026-01-05T10:00:00Z gw sshd[7]: Failed password for root from 192.0.2.7 port 4000 ssh2"


@pytest.fixture
def bench(settings: Settings, db: NodeDb) -> Iterator[Workbench]:
    made = Workbench(settings, db, lambda: NOW)
    yield made
    made.close()


def test_rules_that_were_read_ahead_are_not_read_when_a_page_asks(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.read_ahead()
    monkeypatch.setattr(ruleset, "Library", lambda settings: pytest.fail("read again"))
    monkeypatch.setattr("siem.workbench.FILES_LOOKED_AT_S", 0.0)

    assert bench.source(RULE_ID) is not None


def test_rules_that_cannot_be_read_ahead_end_nothing(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ruleset, "Library", lambda settings: 1 / 0)
        bench.read_ahead()

    assert "The rules cannot be read ahead." in caplog.text
    assert bench.source(RULE_ID) is not None


def test_the_console_begins_to_read_rules_as_it_starts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    monkeypatch.setattr(Workbench, "read_ahead", lambda bench: begun.set())
    monkeypatch.setattr(serve, "_answer", lambda *given: None)
    monkeypatch.setattr(serve.signal, "signal", lambda *given: None)

    with socket.socket() as listening:
        serve.serve(settings, listening)

    assert begun.wait(PATIENCE_S)


def test_a_document_is_edited_from_its_file_its_draft_or_what_is_deployed(
    bench: Workbench,
) -> None:
    first = bench.source(RULE_ID)
    assert first is not None
    assert (first.origin, first.text, first.samples, first.number) == ("file", RULE, SAMPLES, 0)

    louder = RULE.replace("medium", "high")
    assert bench.save(louder, SAMPLES, "a.ana") == RULE_ID
    draft = bench.source(RULE_ID)
    number = bench.deploy(louder, SAMPLES, "a.ana", "why", 0)
    deployed = bench.source(RULE_ID)

    assert draft is not None
    assert (draft.origin, draft.text, draft.draft_by) == ("draft", louder, "a.ana")
    assert deployed is not None
    assert (deployed.origin, deployed.text, deployed.number) == ("deployed", louder, number)
    assert bench.source("nothing") is None


def test_a_draft_may_be_wrong_but_has_an_id(bench: Workbench) -> None:
    bench.save(f"id: {RULE_ID}\ndetection: 7", "", "a.ana")
    assert [one.document for one in bench.drafts()] == [RULE_ID]
    bench.discard(RULE_ID, NOW)
    assert bench.drafts() == []
    with pytest.raises(RuleError, match="no id"):
        bench.save("title: x", "", "a.ana")


def test_a_new_rule_is_whole_but_for_what_it_says(bench: Workbench) -> None:
    blank = bench.blank()
    one = bench.examine(blank.text, blank.samples)

    assert blank.document in blank.text
    assert [outcome.passed for outcome in one.outcomes] == [True, True]
    assert BLANK.count("{id}") == 1


def test_what_comes_with_cityward_is_changed_by_two_people(settings: Settings, db: NodeDb) -> None:
    import msgspec

    own = msgspec.structs.replace(
        settings, rules=msgspec.structs.replace(settings.rules, shipped=True)
    )
    bench = Workbench(own, db, lambda: NOW)
    file = ruleset.RULES_FOLDER / "transport" / "vehicle_too_fast.yml"
    rule = next(one for one in ruleset.load(own).rules if one.document.file == str(file))
    source = bench.source(rule.id)
    assert source is not None
    assert source.is_shipped
    text = source.text.replace("status: experimental", "status: test")

    with pytest.raises(Unsafe, match="two people"):
        bench.deploy(text, source.samples, "a.ana", "why", 0)
    bench.save(text, source.samples, "a.ana")
    with pytest.raises(Unsafe, match="two people"):
        bench.deploy(text, source.samples, "a.ana", "why", 0)
    with pytest.raises(Unsafe, match="two people"):
        bench.deploy(text + "\n# more\n", source.samples, "b.oth", "why", 0)

    with pytest.raises(Unsafe, match="two people"):
        bench.deploy(text, source.samples + "\n# fewer\n", "b.oth", "why", 0)

    assert bench.deploy(text, source.samples, "b.oth", "seen and right", 0) > 0


WIDER = RULE.replace("event.outcome: failure", "event.outcome: [failure, denied]")
WIDER_SAMPLES = SAMPLES.replace(
    "cases:",
    """cases:
  - {name: a denied one, kind: must match,
     events: [{event.action: ssh_login, event.outcome: denied, source.ip: 192.0.2.9}]}""",
)


def by_two(bench: Workbench, text: str, samples: str, seen: int = 0) -> int:
    bench.save(text, samples, "a.ana")
    return bench.deploy(text, samples, "b.oth", "both of us", seen)


def test_a_change_is_undone_by_one_person_unless_something_would_be_missed(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siem.workbench.shipped_ids", lambda: frozenset((RULE_ID,)))
    louder = by_two(bench, RULE.replace("medium", "high"), SAMPLES)
    wider = by_two(bench, WIDER, WIDER_SAMPLES, louder)

    for number in (0, louder):
        with pytest.raises(Unsafe, match="must find: a denied one"):
            bench.revert(RULE_ID, number, "a.ana", "alone")
    older, samples = bench.text_of(RULE_ID, louder)
    again = by_two(bench, older, samples, wider)
    bench.revert(RULE_ID, 0, "a.ana", "it was too loud at three in the night")

    assert [one.number for one in bench.history(RULE_ID)][1:] == [again, wider, louder]
    assert bench.text_of(RULE_ID, 0) == (RULE, SAMPLES)
    assert bench.text_of(RULE_ID, 4711) == ("", "")
    source = bench.source(RULE_ID)
    assert source is not None
    assert source.counts == RULE


def test_what_is_ours_is_undone_by_one_person_whatever_it_misses(bench: Workbench) -> None:
    louder = bench.deploy(RULE.replace("medium", "high"), SAMPLES, "a.ana", "louder", 0)
    bench.deploy(WIDER, WIDER_SAMPLES, "a.ana", "wider", louder)

    assert bench.revert(RULE_ID, louder, "a.ana", "back") > louder


def test_who_did_not_see_the_newest_version_goes_back_to_none(bench: Workbench) -> None:
    louder = bench.deploy(RULE.replace("medium", "high"), SAMPLES, "a.ana", "louder", 0)
    newest = bench.deploy(RULE.replace("medium", "low"), SAMPLES, "b.oth", "quieter", louder)

    for number in (0, louder):
        with pytest.raises(Conflict):
            bench.revert(RULE_ID, number, "a.ana", "back", louder)
    assert bench.revert(RULE_ID, louder, "a.ana", "back", newest) > newest


def test_lines_are_left_out_while_others_take_their_turn(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[bool] = []
    tried = samples.tried_mutants

    def watched(*given: Any) -> Iterator[tuple[str, bool]]:
        turns.append(bench._turn.locked())
        return tried(*given)

    monkeypatch.setattr(samples, "tried_mutants", watched)

    assert bench.unnoticed(RULE, SAMPLES) == ["failed: event.action"]
    assert turns == [False]
    for text in (MANY, FILTER.replace("SOURCE", "192.0.2.8")):
        with pytest.raises(InputError, match=r"single events|filter has no samples"):
            bench.unnoticed(text, SAMPLES)


def test_one_engine_serves_all_samples_of_a_rule_without_a_line(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    engine = samples.Engine

    def counted(*given: Any) -> Any:
        made.append(given)
        return engine(*given)

    monkeypatch.setattr(samples, "Engine", counted)

    bench.unnoticed(RULE, SAMPLES)

    assert len(made) == 2  # as many as lines


def test_lines_that_take_too_long_are_counted_and_what_was_found_is_said(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    times_s = iter((0.0, 9.0, 10.5))
    monkeypatch.setattr("siem.workbench.time.thread_time", lambda: next(times_s))

    with pytest.raises(InputError) as told:
        bench.unnoticed(RULE, SAMPLES)

    assert told.value.what == (
        "1 of 2 lines were looked at in 10 s of a processor;"
        " 1 of them no sample misses: failed: event.action"
    )


def test_when_rules_were_tuned_is_told_while_somebody_takes_a_long_turn(bench: Workbench) -> None:
    assert bench.tuned_at() == {}
    bench.deploy(RULE.replace("medium", "high"), SAMPLES, "a.ana", "louder", 0)
    tuned = bench.tuned_at()
    assert tuned == {RULE_ID: NOW, MANY_ID: NOW}

    asked: list[object] = []
    with bench._turn:
        asking = threading.Thread(target=lambda: asked.append(bench.tuned_at()), daemon=True)
        asking.start()
        asking.join(PATIENCE_S)
        assert asked == [tuned]


def test_when_rules_were_tuned_is_asked_anew_if_a_file_changed(
    settings: Settings, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siem.workbench.FILES_LOOKED_AT_S", 0.0)
    bench.deploy(RULE.replace("medium", "high"), SAMPLES, "a.ana", "louder", 0)
    assert MANY_ID in bench.tuned_at()

    Path(settings.rules.folders[0], "many.yml").unlink()

    assert bench.tuned_at() == {RULE_ID: NOW}


def test_who_goes_back_loses_nobodys_draft(bench: Workbench) -> None:
    louder = bench.deploy(RULE.replace("medium", "high"), SAMPLES, "a.ana", "louder", 0)
    newest = bench.deploy(RULE.replace("medium", "low"), SAMPLES, "b.oth", "quieter", louder)
    bench.save(WIDER, WIDER_SAMPLES, "b.oth")

    back = bench.revert(RULE_ID, louder, "a.ana", "back", newest)
    bench.revert(RULE_ID, 0, "a.ana", "to the file", back)

    assert [one.text for one in bench.drafts()] == [WIDER]


def test_a_line_is_tried_and_it_says_why_not(bench: Workbench) -> None:
    (yes,) = bench.attempt(RULE, LINE)
    (no,) = bench.attempt(RULE.replace("failure", "success"), LINE)

    assert (yes.matched, no.matched) == (True, False)
    assert yes.fields["source.ip"] == "192.0.2.7"
    assert [one.held for one in no.why.checks] == [True, False]
    assert no.why.checks[1].field == "event.outcome"
    with pytest.raises(InputError, match="no collector recognises"):
        bench.attempt(RULE, "\0\1\2")
    with pytest.raises(InputError, match="more than 65,536"):
        bench.attempt(RULE, LINE + " " * 65_536)
    many = bench.source(MANY_ID)
    assert many is not None
    with pytest.raises(InputError, match="single events"):
        bench.attempt(many.text, LINE)


def over(bench: Workbench, job: Job) -> Job:
    until = time.monotonic() + PATIENCE_S
    while not job.is_over and time.monotonic() < until:
        time.sleep(0.02)
    found = bench.job(job.id)
    assert found is not None
    return found


def test_a_preview_says_what_is_new_and_what_is_gone(settings: Settings, bench: Workbench) -> None:
    store = assembly.events_of(settings, lambda: NOW, write=True)
    events = [*attempts("192.0.2.7", count=3), *attempts("192.0.2.8", minute=1)]
    store.append([document(one) for one in events], {})
    store.close()
    narrow = RULE.replace("failure}", "failure, source.ip: 192.0.2.7}")

    job = over(bench, bench.preview(narrow, 7, "a.ana"))

    assert job.fault == ""
    assert job.result is not None
    total = job.result.total
    assert (total.would, total.deployed, total.new, total.gone) == (3, 4, 0, 1)
    assert (job.text, job.days) == (narrow, 7)
    assert job.cost is not None
    assert (job.cost.events, job.cost.measured) == (4, 4)
    assert job.cost.share == pytest.approx(job.cost.cpu_us * 4 / (7 * 86_400) / 1_000_000)
    assert job.cost.cpu_us > 0.0


def test_the_cost_of_a_rule_is_that_of_events_of_its_own_log_source(
    settings: Settings, bench: Workbench
) -> None:
    set_ = document(*attempts("192.0.2.8")) | {
        "cw.logsource.category": "registry_set", "cw.logsource.product": "windows",
    }  # fmt: skip
    store = assembly.events_of(settings, lambda: NOW, write=True)
    store.append([set_, *map(document, attempts("192.0.2.7", count=3))], {})
    store.close()
    other = RULE.replace("service: sshd", "service: sudo")
    wider = RULE.replace("{product: linux, service: sshd}", "{category: registry_event}")

    costs = [over(bench, bench.preview(text, 7, "a.ana")).cost for text in (MANY, other, wider)]

    assert [(one.events, one.measured) for one in costs if one] == [(3, 3), (0, 0), (1, 1)]


def test_a_preview_of_a_filter_asks_its_rule(settings: Settings, bench: Workbench) -> None:
    store = assembly.events_of(settings, lambda: NOW, write=True)
    events = [*attempts("192.0.2.7"), *attempts("192.0.2.8", minute=1)]
    store.append([document(one) for one in events], {})
    store.close()

    job = over(bench, bench.preview(FILTER.replace("SOURCE", "192.0.2.8"), 30, "a.ana"))

    assert job.result is not None
    assert (job.result.rule, job.result.total.would, job.result.total.gone) == (RULE_ID, 1, 1)


def test_a_preview_is_held_against_what_counted_when_it_began(
    settings: Settings, bench: Workbench
) -> None:
    store = assembly.events_of(settings, lambda: NOW, write=True)
    events = [*attempts("192.0.2.7"), *attempts("192.0.2.8", minute=1)]
    store.append([document(one) for one in events], {})
    store.close()
    narrow = RULE.replace("failure}", "failure, source.ip: 192.0.2.7}")

    with bench._previews:
        job = bench.preview(narrow, 7, "a.ana")
        bench.deploy(narrow, SAMPLES.replace("192.0.2.9", "192.0.2.7"), "a.ana", "why", 0)
    over(bench, job)

    assert job.result is not None
    assert (job.result.total.deployed, job.result.total.gone) == (2, 1)


def test_a_list_that_grew_is_used_at_once(db: NodeDb, bench: Workbench) -> None:
    listed = RULE.replace("event.outcome: failure", "'source.ip|expand': '%jump_hosts%'")
    with pytest.raises(InputError, match="jump_hosts"):
        bench.attempt(listed, LINE)

    said = {"roles": ("jump_host",), "addresses": ("192.0.2.7",)}
    db.inventory.say(["jump"], "approved", "a.ana", "", NOW, **said)

    assert [one.matched for one in bench.attempt(listed, LINE)] == [True]


def test_a_check_reads_the_files_of_the_rules_only_once(
    settings: Settings, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    read = load.read_folder

    def counted(*folders: Path, **given: Any) -> Any:
        reads.extend(folders)
        return read(*folders, **given)

    monkeypatch.setattr(load, "read_folder", counted)
    for level in ("low", "high", "critical"):
        assert bench.examine(RULE.replace("medium", level), SAMPLES).reasons() == []
    bench.deploy(RULE.replace("medium", "low"), SAMPLES, "a.ana", "quieter", 0)
    source = bench.source(RULE_ID)

    assert source is not None
    assert (source.origin, source.counts) == ("deployed", RULE.replace("medium", "low"))
    assert [one for one in reads if str(one) in settings.rules.folders] == [
        Path(settings.rules.folders[0])
    ]


def test_a_file_that_somebody_changed_is_taken_up(
    settings: Settings, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siem.workbench.FILES_LOOKED_AT_S", 0.0)
    (folder,) = settings.rules.folders
    assert bench.source(MANY_ID) is not None

    Path(folder, "deeper").mkdir()
    Path(folder, "many.yml").rename(Path(folder, "deeper", "many.yml.off"))
    assert bench.source(MANY_ID) is None
    Path(folder, "deeper", "many.yml.off").rename(Path(folder, "deeper", "many.yml"))
    assert bench.source(MANY_ID) is not None


def test_a_file_that_was_put_in_place_with_the_time_of_the_old_one_is_taken_up(
    settings: Settings, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siem.workbench.FILES_LOOKED_AT_S", 0.0)
    file = Path(next(one for one in bench._tuner.rules.rules if one.id == RULE_ID).document.file)
    before = file.stat()
    newer = RULE.replace("level: medium", "level: high  ")
    assert len(newer) == len(RULE)

    file.write_text(newer)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    source = bench.source(RULE_ID)
    assert source is not None
    assert (source.text, bench._tuner.rules.rules[0].analytic.level) == (newer, "high")


def test_a_folder_of_rules_that_may_not_be_read_stops_nobody(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    before = ruleset.stamp(settings)
    with monkeypatch.context() as patched:
        patched.setattr("os.scandir", refuse)
        during = ruleset.stamp(settings)

    assert during == ()
    assert ruleset.stamp(settings) == before != ()


def test_a_preview_of_nothing_and_of_too_much_is_refused(bench: Workbench) -> None:
    with pytest.raises(RuleError):
        bench.preview("title: x", 7, "a.ana")
    with pytest.raises(InputError, match="13 days"):
        bench.preview(RULE, 13, "a.ana")
    assert bench.job("nothing") is None
    bench.cancel("nothing")


def test_filters_say_who_hides_what_until_when(
    settings: Settings, db: NodeDb, bench: Workbench
) -> None:
    seen(settings, db, [*attempts("192.0.2.7"), *attempts("192.0.2.8", minute=1)])
    (finding,) = findings(db, "source.ip:192.0.2.8")
    until = (NOW + timedelta(days=30)).date()
    assert "source.ip" in bench.choices(finding)

    text, one, hidden = bench.filter_of(finding, ["source.ip"], "our scanner", until, "a.ana")
    assert one.reasons() == []
    assert [each.finding for each in hidden] == [finding["finding.id"]]
    bench.deploy(text, "", "a.ana", "our scanner", 0)

    (row,) = bench.filters()
    assert (row.owner, row.reason, row.expires) == ("a.ana", "our scanner", until)
    assert row.rules == ((RULE_ID, "Wrong password"),)
    assert (row.is_ours, row.is_expired, row.since) == (True, False, NOW)
    assert bench.filters(RULE_ID) == [row]
    assert [each.finding for each in bench.filter_hides(row.id)] == [finding["finding.id"]]
    bench.save(text.replace("192.0.2.8", "192.0.2.9"), "", "a.ana")
    assert [each.finding for each in bench.filter_hides(row.id)] == [finding["finding.id"]]
    bench.revert(row.id, 0, "b.oth", "over")
    assert bench.filters() == []


def test_an_expired_filter_of_a_file_comes_first_and_is_not_taken_back_here(
    settings: Settings, bench: Workbench
) -> None:
    old = FILTER.replace("SOURCE", "192.0.2.9").replace("2026-03-01", "2026-01-01")
    (Path(settings.rules.folders[0]) / "old.yml").write_text(old)
    bench.deploy(
        FILTER.replace("SOURCE", "192.0.2.8").replace(FILTER_ID, FILTER_ID[:-1] + "9"),
        "", "a.ana", "why", 0,
    )  # fmt: skip

    first, second = bench.filters()

    assert (first.is_expired, first.is_ours, first.expires) == (True, False, date(2026, 1, 1))
    assert (second.is_expired, second.is_ours) == (False, True)


def test_protected_findings_are_counted(settings: Settings, db: NodeDb, bench: Workbench) -> None:
    seen(settings, db, attempts("192.0.2.7"))
    one = right(db, f"rule.id:{RULE_ID}")

    assert bench.protected(RULE_ID) == {one["finding.id"]: 1}


def test_every_word_of_our_library_is_offered_where_it_stands() -> None:
    rules = load_folder(*ruleset.NODE_RULES)
    for one in (*rules.speaking(), *rules.filters):
        value = one.document.value
        assert set(value) <= set(words.KEYS), one.document.file
        for name in ("logsource", "correlation", "cw_absence", "cityward"):
            assert set(value.get(name, ())) <= set(words.INSIDE[name]), one.document.file


def test_words_are_there_for_the_editor(bench: Workbench) -> None:
    names = bench.words()["fields"]
    assert {"source.ip", "event.action", "ot.operation"} <= {*names}
    assert names == sorted(names)
