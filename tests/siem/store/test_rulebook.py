"""The rulebook: what people deploy, draft and protect, in a real file."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from cityward.errors import InputError
from siem.store import rulebook
from siem.store.embedded import NodeDb
from siem.store.protocol import Change, Conflict
from siem.store.rulebook import Draft, Note, Version
from tests.siem.store.test_embedded import KEY, match
from tests.siem.store.test_embedded import NOON as NOW

ID = "5b9a3f0e-0000-4000-8000-000000000001"


def opened(folder: Path) -> NodeDb:
    return NodeDb(folder / "node.db", KEY)


def version(text: str = "title: x", reason: str = "it was too loud", **more: str) -> Version:
    said = {"document": ID, "kind": "rule", "title": "x", "samples": "", "by": "a.ana", **more}
    return Version(0, text=text, reason=reason, time=NOW, is_whole=True, **said)


def test_the_newest_version_counts_until_it_is_taken_back(tmp_path: Path) -> None:
    book = opened(tmp_path).rulebook

    first = book.deploy(version("title: one"))
    second = book.deploy(version("title: two"), seen=first)
    assert [one.text for one in book.deployed()] == ["title: two"]
    book.deploy(version("", "the file was right"), seen=second)

    assert book.deployed() == []
    assert [one.text for one in book.history(ID)] == ["", "title: two", "title: one"]


def test_who_saw_an_older_version_is_told_so(tmp_path: Path) -> None:
    book = opened(tmp_path).rulebook
    book.deploy(version("title: one"), seen=0)

    with pytest.raises(Conflict) as told:
        book.deploy(version("title: mine"), seen=0)
    assert [one.text for one in book.deployed()] == ["title: one"]
    assert told.value.what == (
        "version 1 has been deployed since, by a.ana, 2026-03-01 12:00 UTC: it was too loud"
    )
    assert told.value.todo == "Look at what counts now before you replace it."


def test_who_is_told_of_a_newer_version_is_not_told_a_whole_page_of_reasons(tmp_path: Path) -> None:
    book = opened(tmp_path).rulebook
    book.deploy(version(reason="a" * 200), seen=0)
    with pytest.raises(Conflict, match=r": a{200}\n"):
        book.deploy(version(), seen=0)

    book.deploy(version(reason="a" * 2_000))
    with pytest.raises(Conflict, match=r": a{199}…\n"):
        book.deploy(version(), seen=0)


def test_who_did_not_see_that_it_was_taken_back_is_told_so(tmp_path: Path) -> None:
    book = opened(tmp_path).rulebook
    first = book.deploy(version("title: one"), seen=0)
    book.deploy(version("", "the file was right"), seen=first)

    with pytest.raises(Conflict, match=r"taken back since, by a\.ana, .*: the file was"):
        book.deploy(version("title: mine"), seen=first)
    with pytest.raises(Conflict, match="not there any more"):
        book.deploy(version("title: mine", document="other"), seen=first)


@pytest.mark.parametrize("reason", ["", "  ", "x" * 2_001])
def test_nothing_is_deployed_without_a_reason(tmp_path: Path, reason: str) -> None:
    with pytest.raises(InputError, match="reason"):
        opened(tmp_path).rulebook.deploy(version(reason=reason))


@pytest.mark.parametrize("column", ["text", "samples", "document", "kind", "person", "reason"])
def test_a_version_that_was_written_past_us_is_seen(tmp_path: Path, column: str) -> None:
    db = opened(tmp_path)
    db.rulebook.deploy(version())
    with sqlite3.connect(db.path) as direct:
        direct.execute(f"UPDATE rulebook SET {column} = 'detection: {{}}'")

    (found,) = db.rulebook.deployed()
    assert not found.is_whole


def test_an_older_version_that_was_put_in_front_past_us_is_seen(tmp_path: Path) -> None:
    db = opened(tmp_path)
    db.rulebook.deploy(version("title: one"))
    db.rulebook.deploy(version("title: two"))
    columns = "document, kind, title, text, samples, person, reason, time, seal"
    with sqlite3.connect(db.path) as direct:
        direct.execute(
            f"INSERT INTO rulebook ({columns}) SELECT {columns} FROM rulebook WHERE number = 1"
        )

    (found,) = db.rulebook.deployed()
    assert (found.text, found.is_whole) == ("title: one", False)
    assert [one.is_whole for one in db.rulebook.history(ID)] == [False, True, True]


def test_of_one_document_the_newest_versions_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rulebook, "VERSIONS_KEPT", 3)
    book = opened(tmp_path).rulebook

    for number in range(6):
        book.deploy(version(f"title: {number}"))

    assert [one.text for one in book.history(ID)] == ["title: 5", "title: 4", "title: 3"]


def test_only_so_many_documents_and_drafts_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rulebook, "DOCUMENTS_MAX", 1)
    monkeypatch.setattr(rulebook, "DRAFTS_MAX", 1)
    book = opened(tmp_path).rulebook
    book.deploy(version())
    book.put_draft(Draft(ID, "title: y", "", "a.ana", NOW))

    book.deploy(version("title: y"))
    book.put_draft(Draft("other", "title: x", "", "a.ana", NOW))
    with pytest.raises(InputError, match="1 documents"):
        book.deploy(version(document="other"))
    with pytest.raises(InputError, match="1 drafts"):
        book.put_draft(Draft("third", "title: x", "", "a.ana", NOW))


def test_a_draft_goes_when_it_is_deployed(tmp_path: Path) -> None:
    book = opened(tmp_path).rulebook
    book.put_draft(Draft(ID, "title: half", "cases: []", "a.ana", NOW))
    assert book.draft(ID) == Draft(ID, "title: half", "cases: []", "a.ana", NOW)

    book.deploy(version("title: half", samples="cases: []"))

    assert book.draft(ID) is None
    assert book.drafts() == []


@pytest.mark.parametrize(("text", "samples"), [("title: x", ""), ("title: half", "cases: [1]")])
def test_a_draft_that_says_something_else_stays(tmp_path: Path, text: str, samples: str) -> None:
    book = opened(tmp_path).rulebook
    book.put_draft(Draft(ID, "title: half", "cases: []", "a.ana", NOW))

    book.deploy(version(text, samples=samples))
    book.deploy(version("", "the file was right"))

    assert [one.text for one in book.drafts()] == ["title: half"]


def test_the_same_draft_sent_twice_is_no_conflict_with_oneself(tmp_path: Path) -> None:
    book = opened(tmp_path).rulebook
    book.put_draft(Draft(ID, "title: half", "cases: []", "a.\x00ana", NOW))
    first = book.drafts()

    later = NOW + timedelta(seconds=1)
    book.put_draft(Draft(ID, "title: half", "cases: []", "a.\x00ana", later))

    assert book.drafts() == first
    for other in (
        Draft(ID, "title: half", "cases: []", "b.oth", later),
        Draft(ID, "title: other", "cases: []", "a.\x00ana", later),
        Draft(ID, "title: half", "cases: [1]", "a.\x00ana", later),
    ):
        with pytest.raises(Conflict, match="another draft has been saved since, by a"):
            book.put_draft(other)


def test_every_version_raises_what_the_path_looks_at_and_stands_in_the_trail(
    tmp_path: Path,
) -> None:
    db = opened(tmp_path)
    before = db.inventory.version()
    db.rulebook.deploy(version())

    assert db.inventory.version() == before + 1
    (line,) = [one for one in db.audited() if one.about == ID]
    assert (line.by, line.action) == ("a.ana", "rule: deployed. it was too loud")
    assert db.audit_proof().fault == ""


def verdict(db: NodeDb, id: str, word: str, after: timedelta = timedelta()) -> None:
    db.change([id], Change(status="resolved", verdict=word), "a.ana", NOW + after)


def test_events_of_a_finding_that_was_right_are_protected(tmp_path: Path) -> None:
    db = opened(tmp_path)
    (id,) = db.keep([match()], checkpoint=1, now=NOW)

    verdict(db, id, "true_positive")
    (one,) = db.rulebook.protected()

    assert (one.finding, one.by, one.operator) == (id, "a.ana", "")
    assert one.event["@timestamp"] == db.events_of(id)[0]["@timestamp"]
    assert db.rulebook.protected(one.rule) == [one]
    assert db.rulebook.protected("another") == []


@pytest.mark.parametrize("word", ["false_positive", "benign", "suspicious", "unknown"])
def test_they_are_no_longer_when_it_was_wrong(tmp_path: Path, word: str) -> None:
    db = opened(tmp_path)
    (id,) = db.keep([match()], checkpoint=1, now=NOW)
    verdict(db, id, "true_positive")

    verdict(db, id, word, timedelta(seconds=5))

    assert db.rulebook.protected() == []


def test_a_verdict_that_is_undone_protects_nothing(tmp_path: Path) -> None:
    db = opened(tmp_path)
    (id,) = db.keep([match()], checkpoint=1, now=NOW)
    verdict(db, id, "true_positive")

    db.undo("a.ana", NOW + timedelta(seconds=5))

    assert db.rulebook.protected() == []


def test_of_one_rule_the_newest_findings_stay_protected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rulebook, "FINDINGS_PROTECTED", 2)
    db = opened(tmp_path)
    ids = db.keep([match(source=f"192.0.2.{n}") for n in range(5)], checkpoint=1, now=NOW)
    for number, id in enumerate(ids):
        verdict(db, id, "true_positive", timedelta(seconds=number))

    assert {one.finding for one in db.rulebook.protected()} == {*ids[-2:]}


def test_notes_stay_newest_first_and_stand_in_the_audit_trail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rulebook, "NOTES_KEPT", 2)
    db = opened(tmp_path)

    for text in ("one", "two", " two ", "three"):
        db.rulebook.add_note(ID, Note(text, "a.ana", NOW))
    db.rulebook.add_note("other", Note("three", "a.ana", NOW))

    assert db.rulebook.notes(ID) == [Note("three", "a.ana", NOW), Note("two", "a.ana", NOW)]
    trail = [one for one in db.audited() if one.action == "note on a rule"]
    assert [one.about for one in trail] == ["other", ID, ID, ID]
    for text in (" ", "x" * 2_001):
        with pytest.raises(InputError, match="1 to 2,000"):
            db.rulebook.add_note(ID, Note(text, "a.ana", NOW))
