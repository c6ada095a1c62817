"""A signature is over the very bytes; one that does not hold is worse than none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from cityward import ConfigError, RuleError
from playbooks import playbook, sign
from playbooks.playbook import LIBRARY
from tests.playbooks.test_playbook import GOOD, KNOWN

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, sign.PublicKey]:
    """A signed playbook, and the key that signed it."""
    private, public = sign.new_key(NOW, NOW + timedelta(days=365))
    (tmp_path / "soc.pub.yml").write_bytes(public)
    path = tmp_path / "own" / "mine.yml"
    path.parent.mkdir()
    path.write_text(GOOD)
    sign.beside(path).write_bytes(sign.sign(path.read_bytes(), private, "soc", NOW))
    return path, sign.read_key(tmp_path / "soc.pub.yml")


def test_a_signed_playbook_says_who_signed_it(signed):
    path, key = signed

    assert playbook.read_signed(path, KNOWN, [key], NOW).signed_by == "soc"


def test_an_unsigned_one_is_nobodys(signed):
    path, key = signed
    sign.beside(path).unlink()

    assert playbook.read_signed(path, KNOWN, [key], NOW).signed_by == ""


def test_a_blank_more_is_another_file(signed):
    path, key = signed
    path.write_text(GOOD + " ")

    with pytest.raises(RuleError, match="changed after soc signed it") as error:
        playbook.read_signed(path, KNOWN, [key], NOW)
    assert error.value.where == str(path)


def test_a_key_that_is_not_here_counts_for_nothing(signed):
    path, _ = signed

    with pytest.raises(RuleError, match="whose key is not here"):
        playbook.read_signed(path, KNOWN, [], NOW)


@pytest.mark.parametrize(
    ("change", "now", "why"),
    [
        ({"revoked": NOW}, NOW, "the key soc is revoked since 2026-11-28"),
        ({}, NOW + timedelta(days=366), "was valid until 2027-11-28"),
        ({}, NOW - timedelta(days=1), "is valid from 2026-11-28 only"),
    ],
)
def test_a_revoked_or_ended_key_counts_no_more(signed, change, now, why):
    path, key = signed

    with pytest.raises(RuleError, match=why):
        playbook.read_signed(path, KNOWN, [msgspec.structs.replace(key, **change)], now)


def test_the_time_of_signing_cannot_be_changed(signed):
    path, key = signed
    beside = sign.beside(path)
    beside.write_text(beside.read_text().replace("2026-11-28T12", "2026-11-28T11"))

    with pytest.raises(RuleError, match="changed after"):
        playbook.read_signed(path, KNOWN, [key], NOW)


@pytest.mark.parametrize(
    "strange", [b"", b"{}", b"[" * 9_999, b"\xff" * 64, b"null", b'{"key": 1}']
)
def test_what_is_no_signature_is_refused(signed, strange):
    path, key = signed
    sign.beside(path).write_bytes(strange)

    with pytest.raises(RuleError, match="no signature"):
        playbook.read_signed(path, KNOWN, [key], NOW)


def test_a_signature_of_another_playbook_does_not_fit(signed):
    path, key = signed
    other = path.with_name("other.yml")
    other.write_text(GOOD.replace("PT1H", "PT9H"))
    sign.beside(path).rename(sign.beside(other))

    with pytest.raises(RuleError, match="changed after"):
        playbook.read_signed(other, KNOWN, [key], NOW)


def test_what_is_signed_for_something_else_is_no_playbook(signed, tmp_path):
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private, public = sign.new_key(NOW)
    (tmp_path / "x.pub.yml").write_bytes(public)
    raw = load_pem_private_key(private, None).sign(GOOD.encode())
    key = sign.read_key(tmp_path / "x.pub.yml")
    forged = sign.Signature(key="x", id=key.id, signed="", value=sign._text(raw))

    with pytest.raises(ValueError, match="changed after"):
        sign.verify(GOOD.encode(), msgspec.json.encode(forged), [key], NOW)


def test_shipped_playbooks_are_the_word_of_the_release():
    path = LIBRARY / "external-scanner.yml"

    assert playbook.read_signed(path, playbook.specs(), [], NOW).signed_by == playbook.SHIPPED_BY


def test_a_link_that_leads_elsewhere_while_it_is_read_vouches_for_nothing(signed, monkeypatch):
    path, _ = signed
    link, shipped = path.with_name("link.yml"), next(LIBRARY.glob("*.yml"))
    link.symlink_to(path)

    def turned(one: Path) -> bytes:
        found = one.read_bytes()
        link.unlink()
        link.symlink_to(shipped)
        return found

    monkeypatch.setattr(playbook, "read_bytes", turned)

    assert playbook.read_signed(link, KNOWN, [], NOW).signed_by == ""


def test_no_key_of_ones_own_can_have_the_name_of_the_release(tmp_path):
    _, public = sign.new_key(NOW)
    path = tmp_path / f"{playbook.SHIPPED_BY}.pub.yml"
    path.write_bytes(public)

    with pytest.raises(ConfigError, match="no name of a key"):
        sign.read_key(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: b",
        "public_key: xxx",
        "public_key: AAAA",
        "[1]",
        "public_key: 5\nrevoked: soon",
        "\x00",
    ],
)
def test_what_is_no_key_is_refused(tmp_path, text):
    path = tmp_path / "x.pub.yml"
    path.write_text(text)

    with pytest.raises(ConfigError):
        sign.read_key(path)


def test_what_is_no_private_key_signs_nothing():
    with pytest.raises(ConfigError, match="no private key"):
        sign.sign(b"", b"-----BEGIN", "x", NOW)


def test_a_folder_keeps_those_that_are_in_order(signed):
    path, key = signed
    path.with_name("bad.yml").write_text("name: x")
    path.with_name("twice.yml").write_text(GOOD)
    calling = (
        GOOD.replace("Scanner at the gate", "Caller")
        .replace(
            "  end: {type: end}",
            "  end: {type: end}\n  more: {type: playbook-action, playbook_id: Nobody, "
            "on_success: end, on_failure: ask}",
        )
        .replace("    on_success: end\n", "    on_success: more\n")
    )
    path.with_name("calling.yml").write_text(calling)

    found = playbook.read_folders([path.parent], KNOWN, [key], NOW)

    assert [(Path(one.file).name, one.signed_by) for one in found.playbooks] == [
        ("mine.yml", "soc")
    ]
    assert sorted(
        (Path(one.where).name.partition(":")[0], one.what[:29]) for one in found.refused
    ) == [
        ("bad.yml", "playbook has no description"),
        ("calling.yml", "it calls a playbook that is n"),
        ("twice.yml", f"Scanner at the gate is in {path}"[:29]),
    ]
