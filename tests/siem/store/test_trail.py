"""The audit trail is a chain: whoever tampers with the file is found out."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from cityward.errors import InputError
from siem.store import accounts, embedded
from siem.store.embedded import NodeDb
from siem.store.protocol import Conflict, Person, SavedView, Switch, Token

NOON = datetime(2026, 11, 12, 12, tzinfo=UTC)
KEY = b"key of the operator"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[NodeDb]:
    db = NodeDb(tmp_path / "node.db", KEY, clock=lambda: NOON)
    for number in range(5):
        db.audit("anna", "sign-in", f"192.0.2.{number}", NOON, after="d1")
    yield db
    db.close()


def intruder(db: NodeDb, *statements: str) -> None:
    """Somebody who writes the file and knows how it is guarded, but not the key."""
    with sqlite3.connect(db.path, isolation_level=None) as other:
        other.execute("DROP TRIGGER audit_unchanged")
        other.execute("DROP TRIGGER audit_kept")
        for one in statements:
            other.executescript(one)
    other.close()


def test_a_whole_trail_is_proved_and_names_its_head(db: NodeDb) -> None:
    proof = db.audit_proof()

    assert (proof.lines, proof.fault) == (5, "")
    assert proof.head == db.audited(limit=1)[0].hash


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE audit SET person = 'bob' WHERE number = 3", "line 3 was changed"),
        ("UPDATE audit SET time = time + 1 WHERE number = 1", "line 1 was changed"),
        ("UPDATE audit SET after = 'd2' WHERE number = 2", "line 2 was changed"),
        ("DELETE FROM audit WHERE number = 3", "line 3 is missing"),
        ("DELETE FROM audit WHERE number = 1", "line 1 is missing"),
        ("DELETE FROM audit WHERE number = 5", "the last line is 4, there were 5"),
        ("DELETE FROM audit", "the last line is 0, there were 5"),
        ("DELETE FROM settings WHERE name = 'audit_head'", "the seal of the last line is missing"),
        (
            "DELETE FROM audit; DELETE FROM settings WHERE name GLOB 'audit_*'",
            "the seal of the last line is missing",
        ),
        (
            'UPDATE settings SET value = \'{"number":5,"hash":"x","seal":"x"}\''
            " WHERE name = 'audit_head'",
            "the seal of the last line was changed",
        ),
        (
            'INSERT INTO settings VALUES (\'audit_anchor\', \'{"number":2,"hash":"","seal":1}\')',
            "the seal of the lines that retention took was changed",
        ),
        (
            "INSERT INTO audit SELECT 6, time, person, 'token', about, '', '', hash, hash"
            " FROM audit WHERE number = 5",
            "line 6 was changed",
        ),
    ],
)
def test_tampering_is_found_and_the_line_is_named(statement: str, fault: str, db: NodeDb) -> None:
    intruder(db, statement)

    assert db.audit_proof().fault == fault


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("DELETE FROM audit WHERE number > 3", "line 4 is missing"),
        ("DELETE FROM audit", "line 1 is missing"),
        ("DELETE FROM audit; DELETE FROM settings WHERE name GLOB 'audit_*'", "line 1 is missing"),
        (
            "DELETE FROM audit WHERE number > 3;"
            " UPDATE settings SET value = 'x' WHERE name = 'audit_head'",
            "line 4 is missing",
        ),
    ],
)
def test_a_line_that_comes_later_does_not_hide_those_that_were_taken(
    statement: str, fault: str, db: NodeDb
) -> None:
    intruder(db, statement)

    db.audit("anna", "sign-in", "192.0.2.9", NOON)

    assert db.audit_proof().fault == fault


def test_the_file_itself_refuses_to_change_or_lose_a_line(db: NodeDb) -> None:
    for statement in ("UPDATE audit SET person = 'bob'", "DELETE FROM audit WHERE number = 5"):
        with (
            sqlite3.connect(db.path, isolation_level=None) as other,
            pytest.raises(sqlite3.IntegrityError),
        ):
            other.execute(statement)
        other.close()


def test_another_key_proves_nothing(db: NodeDb, tmp_path: Path) -> None:
    other = NodeDb(tmp_path / "node.db", b"another key", clock=lambda: NOON)

    assert "changed" in other.audit_proof().fault
    other.close()


def test_retention_takes_the_oldest_and_the_rest_is_still_proved(
    db: NodeDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "AUDIT_MAX", 3)

    taken = [db.retain(NOON)["audit"] for _ in range(2)]
    db.audit("anna", "sign-out", "", NOON)

    assert taken == [2, 0]
    assert [one.number for one in db.audited()] == [6, 5, 4, 3]
    assert db.audit_proof().fault == ""
    intruder(db, "DELETE FROM audit WHERE number = 3")
    assert db.audit_proof().fault == "line 3 is missing"


def test_a_file_of_format_1_gets_its_chain_its_roles_and_its_tokens(tmp_path: Path) -> None:
    file = tmp_path / "node.db"
    with sqlite3.connect(file, isolation_level=None) as old:
        for statement in embedded._statements(embedded._SCHEMA):
            old.execute(statement)
        old.execute("INSERT INTO people VALUES ('anna', 'engineer', 'hash')")
        old.execute("INSERT INTO tokens VALUES (?, 'anna')", ("ab" * 32,))
        for number in range(3):
            old.execute("INSERT INTO audit VALUES (?, 0, 'anna', 'sign-in', '')", (number + 7,))
        old.execute("PRAGMA user_version = 1")
    old.close()

    db = NodeDb(file, KEY, clock=lambda: NOON)

    assert db.person("anna") == Person("anna", ("engineer",), "hash")
    held = db.accounts.holder_of("ab" * 32, NOON)
    assert held is not None
    assert held[1].scopes == ("read", "triage")
    assert (db.audit_proof().lines, db.audit_proof().fault) == (3, "")
    db.close()


def test_the_last_administrator_stays_one(db: NodeDb) -> None:
    anna = Person("anna", ("administrator", "analyst"), "h1")
    db.accounts.put(anna, "root", "person: added", NOON)

    with pytest.raises(InputError, match="last administrator"):
        db.accounts.put(replace(anna, roles=("analyst",), epoch=1), "anna", "person: roles", NOON)
    with pytest.raises(InputError, match="last administrator"):
        db.accounts.put(replace(anna, disabled=True, epoch=1), "anna", "person: off", NOON)

    assert db.person("anna") == Person("anna", ("analyst", "administrator"), "h1")
    line = db.audited(limit=1)[0]
    assert (line.action, line.before == "", line.after != "") == ("person: added", True, True)


def test_of_two_changes_at_once_the_later_is_refused(db: NodeDb) -> None:
    read = Person("anna", ("analyst",), "old")
    db.accounts.put(read, "root", "person: add", NOON)

    db.accounts.put(replace(read, disabled=True, epoch=1), "root", "person: disable", NOON)
    with pytest.raises(Conflict):
        db.accounts.put(replace(read, password_hash="new", epoch=1), "anna", "password", NOON)
    with pytest.raises(Conflict):
        db.accounts.put(read, "root", "person: add", NOON)

    assert db.person("anna") == replace(read, disabled=True, epoch=1)


def test_the_tokens_of_a_disabled_person_do_not_come_back_with_them(db: NodeDb) -> None:
    read = Person("anna", ("analyst",), "h")
    db.accounts.put(read, "root", "person: add", NOON)
    db.accounts.add_token("a" * 64, Token("", "anna", "desk", ("read",)), "root", NOON)

    db.accounts.put(replace(read, disabled=True, epoch=1), "root", "person: disable", NOON)
    db.accounts.put(replace(read, epoch=2), "root", "person: enable", NOON)

    assert db.accounts.holder_of("a" * 64, NOON) is None


def test_a_program_reads_also_when_its_last_use_cannot_be_written(db: NodeDb) -> None:
    db.add_person(Person("anna", ("analyst",), "h"))
    db.accounts.add_token("a" * 64, Token("", "anna", "desk", ("read",)), "root", NOON)

    with sqlite3.connect(db.path, isolation_level=None) as other:
        db._db.execute("PRAGMA busy_timeout = 1")
        other.execute("BEGIN IMMEDIATE")
        held = db.accounts.holder_of("a" * 64, NOON)
        other.rollback()
    other.close()

    assert held is not None


@pytest.mark.parametrize(
    "person",
    [Person("", ("analyst",), "h"), Person("a/b", ("analyst",), "h"),
     Person("a.json", ("analyst",), "h"), Person(" a", ("analyst",), "h"),
     Person("a\nb", ("analyst",), "h"), Person("a", (), "h"),
     Person("a", ("king",), "h"), Person("a" * 201, ("analyst",), "h")],  # type: ignore[arg-type]
)  # fmt: skip
def test_a_person_that_is_none_is_refused(person: Person, db: NodeDb) -> None:
    with pytest.raises(InputError):
        db.accounts.put(person, "root", "person: added", NOON)


def test_a_revoked_token_and_one_of_a_disabled_person_open_nothing(db: NodeDb) -> None:
    db.add_person(Person("anna", ("analyst",), "h"))
    for number in range(2):
        token = Token("", "anna", f"program {number}", ("read",))
        db.accounts.add_token(f"{number}" * 64, token, "root", NOON)

    assert db.accounts.revoke("0" * 12, "root", NOON)
    assert not db.accounts.revoke("0" * 12, "root", NOON)
    assert not db.accounts.revoke("*" * 12, "root", NOON)
    assert db.accounts.holder_of("0" * 64, NOON) is None
    assert db.accounts.holder_of("1" * 64, NOON) is not None
    db.add_person(Person("anna", ("analyst",), "h", disabled=True))
    assert db.accounts.holder_of("1" * 64, NOON) is None


@pytest.mark.parametrize(
    "token",
    [Token("", "anna", "", ("read",)), Token("", "anna", "x", ()), Token("", "anna", "x", ("all",)),
     Token("", "nobody", "x", ("read",))],
)  # fmt: skip
def test_a_token_that_is_none_is_refused(token: Token, db: NodeDb) -> None:
    db.add_person(Person("anna", ("analyst",), "h"))

    with pytest.raises(InputError):
        db.accounts.add_token("a" * 64, token, "root", NOON)


def test_views_are_mine_or_shared(db: NodeDb) -> None:
    store = db.accounts
    store.save_view(SavedView(0, "Pumps", "/findings?q=pump", "anna"), NOON)
    store.save_view(SavedView(0, "Night", "/hunt?q=x", "bob", shared=True), NOON)
    store.save_view(SavedView(0, "Pumps", "/findings?q=pumps", "anna"), NOON)

    mine, bobs = store.views("anna"), store.views("bob")

    assert [(one.name, one.link) for one in mine] == [
        ("Night", "/hunt?q=x"),
        ("Pumps", "/findings?q=pumps"),
    ]
    assert [one.name for one in bobs] == ["Night"]
    assert not store.remove_view(bobs[0].number, "anna", NOON)
    assert store.remove_view(bobs[0].number, "bob", NOON)


def test_a_switched_rule_raises_what_the_path_looks_at(db: NodeDb) -> None:
    off = Switch("r1", False, "two weeks of tests at the mill", "anna", NOON)

    assert db.accounts.switch(off)
    assert not db.accounts.switch(off)
    assert db.accounts.switches() == [off]
    assert db.inventory.version() == 1
    assert db.audited(limit=1)[0].action == "rule: off. two weeks of tests at the mill"
    with pytest.raises(InputError):
        db.accounts.switch(Switch("r1", True, " ", "anna", NOON + timedelta(hours=1)))


def test_the_bounds_are_said(db: NodeDb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "PEOPLE_MAX", 1)
    db.add_person(Person("anna", ("analyst",), "h"))

    with pytest.raises(InputError, match="more than 1 people"):
        db.accounts.put(Person("bob", ("analyst",), "h"), "root", "person: added", NOON)
