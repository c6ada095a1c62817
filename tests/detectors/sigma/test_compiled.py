"""Rules that were read once are not read again, and nothing but speed may tell."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from detectors.sigma import compiled, load
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_folder
from detectors.sigma.rule import RuleSet
from tests.detectors.sigma.test_fuzz import SEEDS
from tests.detectors.sigma.test_truth import unpacked

THRESHOLDS = gc.get_threshold()


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """One file of each kind of document, and one that is none."""
    folder = tmp_path / "rules"
    folder.mkdir()
    for number, text in enumerate(SEEDS):
        (folder / f"{number}.yml").write_text(text)
    (folder / "bad.yml").write_text("title: Bad\ndetection: {}\n")
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Files that were really read."""
    seen: list[str] = []
    original = load._rules_of

    def _rules_of(data: Any, file: str, pipelines: Any) -> Any:
        seen.append(Path(file).name)
        return original(data, file, pipelines)

    monkeypatch.setattr(load, "_rules_of", _rules_of)
    return seen


def refused(given: Any) -> list[tuple[str, str, str]]:
    return [(one.what, one.where, one.todo) for one in given.refused]


def test_what_comes_from_the_cache_is_what_was_read(rules: Path, read: list[str]) -> None:
    kept = rules.parent / "state" / "rules.compiled"

    plain = load_folder(rules)
    first = load_folder(rules, compiled=kept)
    del read[:]
    second = load_folder(rules, compiled=kept)

    assert read == []
    for one in (first, second):
        assert one.speaking() == plain.speaking()
        assert one.filters == plain.filters
        assert refused(one) == refused(plain)
    assert len(plain.speaking()) == 6
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700


def test_one_changed_file_is_read_again_and_it_alone(rules: Path, read: list[str]) -> None:
    kept = rules.parent / "rules.compiled"
    load_folder(rules, compiled=kept)
    del read[:]

    (rules / "2.yml").write_text(SEEDS[2].replace("Three", "Four"))
    (rules / "3.yml").unlink()
    changed = load_folder(rules, compiled=kept)

    assert read == ["2.yml"]
    assert "Four" in [one.analytic.name for one in changed.speaking()]
    assert load_folder(rules, compiled=kept).speaking() == changed.speaking()
    assert read == ["2.yml"]


def test_the_same_text_elsewhere_has_its_own_place(rules: Path, tmp_path: Path) -> None:
    kept = tmp_path / "rules.compiled"
    load_folder(rules, compiled=kept)
    rules.rename(tmp_path / "moved")

    moved = load_folder(tmp_path / "moved", compiled=kept)

    assert {Path(one.document.file).parent.name for one in moved.speaking()} == {"moved"}


@pytest.mark.parametrize("text", [b"", b"\x00", b"\x92\xa1x\x80", bytes(range(255, 155, -1))])
def test_what_is_no_cache_is_read_anew(rules: Path, read: list[str], text: bytes) -> None:
    kept = rules.parent / "rules.compiled"
    kept.write_bytes(text)

    assert len(load_folder(rules, compiled=kept).speaking()) == 6
    assert len(read) == len(SEEDS) + 1


def test_a_cache_of_which_one_byte_is_another_is_read_anew(rules: Path, read: list[str]) -> None:
    kept = rules.parent / "rules.compiled"
    load_folder(rules, compiled=kept)
    content = kept.read_bytes()

    for place in range(0, len(content), 997):
        del read[:]
        kept.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])

        assert len(load_folder(rules, compiled=kept).speaking()) == 6
        assert len(read) == len(SEEDS) + 1


def test_a_document_from_the_cache_is_read_when_it_is_asked_for(rules: Path) -> None:
    kept = rules.parent / "rules.compiled"
    load_folder(rules, compiled=kept)
    (plain,) = (one for one in load_folder(rules).rules if one.title == "Three")
    (later,) = (one for one in load_folder(rules, compiled=kept).rules if one.title == "Three")

    assert vars(later.document).keys() == {"file", "_kept"}
    assert later.document.where("detection", "s", "f") == plain.document.where("detection", "s")
    assert vars(later.document).keys() == {"file", "_kept", "lines"}
    assert (later.document, deepcopy(later.document)) == (plain.document, plain.document)
    assert not hasattr(later.document, "other")


def test_a_cache_of_another_version_is_read_anew(
    rules: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = rules.parent / "rules.compiled"
    load_folder(rules, compiled=kept)
    del read[:]

    monkeypatch.setattr(compiled, "_version", lambda: "another")
    load_folder(rules, compiled=kept)

    assert len(read) == len(SEEDS) + 1


def test_a_cache_that_others_may_write_is_not_believed(
    rules: Path, read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    kept = rules.parent / "rules.compiled"
    load_folder(rules, compiled=kept)
    del read[:]

    kept.chmod(0o666)
    load_folder(rules, compiled=kept)

    assert len(read) == len(SEEDS) + 1
    assert "could be another person's" in caplog.text


def test_a_place_that_cannot_be_written_costs_time_only(
    rules: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (rules.parent / "file").write_text("")

    found = load_folder(rules, compiled=rules.parent / "file" / "rules.compiled")

    assert len(found.speaking()) == 6
    assert "cannot be kept" in caplog.text


def test_what_cannot_be_kept_leaves_nothing_behind(rules: Path) -> None:
    kept = rules.parent / "state" / "rules.compiled"
    kept.mkdir(parents=True)

    assert len(load_folder(rules, compiled=kept).speaking()) == 6
    assert [*kept.parent.iterdir()] == [kept]


@pytest.mark.parametrize("name", ["load", "window", "filter"])
def test_a_cache_that_another_line_has_read_is_read_anew(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "detectors" / "sigma"
    shutil.copytree(compiled._HERE, here)
    shutil.copytree(compiled._HERE.parent.parent / "cityward", tmp_path / "cityward")
    monkeypatch.setattr(compiled, "_HERE", here)
    before = compiled._version.__wrapped__()

    with (here / f"{name}.py").open("a") as file:
        file.write("# another line\n")

    assert compiled._version.__wrapped__() != before


def test_progress_is_told_to_its_end_and_garbage_is_collected_again(rules: Path) -> None:
    told: list[tuple[int, int]] = []

    load_folder(rules, progress=lambda done, total: told.append((done, total)))

    assert told == [(0, 8), (8, 8)]
    assert gc.isenabled()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_what_thousands_of_rules_are_made_of_is_old_at_once(is_frozen: bool) -> None:
    gc.collect()
    gc.set_threshold(10_000_000)  # so that nothing but this makes it old
    if is_frozen:
        gc.freeze()
    try:
        with compiled.undisturbed():
            few: list[list[int]] = [[]]
        with compiled.undisturbed():
            many: list[list[int]] = [[] for _ in range(2 * compiled._MANY)]
        old = {id(one) for one in gc.get_objects(generation=2)}

        assert id(few[0]) not in old or not is_frozen
        assert (id(many[0]) in old) is not is_frozen
        assert (gc.get_freeze_count() > 0) is is_frozen
    finally:
        gc.set_threshold(*THRESHOLDS)
        gc.unfreeze()


def test_a_file_that_is_read_in_pieces_is_whole(
    rules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, read = load_folder(rules), os.read
    monkeypatch.setattr("detectors.sigma.load.os.read", lambda file, size: read(file, min(size, 9)))

    assert load_folder(rules).speaking() == before.speaking()


def test_a_file_that_is_too_large_is_refused_and_not_read_to_its_end(rules: Path) -> None:
    with (rules / "large.yml").open("wb") as file:
        file.truncate(1 << 40)

    found = load_folder(rules)

    assert any("large.yml" in one.where for one in found.refused)
    assert len(found.speaking()) == 6


@pytest.mark.slow
def test_3728_rules_start_from_the_cache_without_reading_or_compiling_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """Read, planned, and ready for every log source."""
    folder, state = unpacked(data, "sigmahq_rules", tmp_path / "rules"), tmp_path / "state"

    def start() -> tuple[RuleSet, float]:
        begun_s = time.process_time()
        found = load_folder(folder, compiled=state / "rules.compiled")
        Engine(found, databases=state / "words").prepare()
        return found, time.process_time() - begun_s

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the cache has it")

    first, _ = start()
    words = sorted((state / "words").iterdir())
    monkeypatch.setattr("detectors.sigma.load._rules_of", never)
    again, took_s = start()

    record_property("start_s", took_s)
    assert again == first
    assert len(first.rules) == 3728
    assert words
    assert words == sorted((state / "words").iterdir())
