"""What the library covers: enough, of every sector, and the page says exactly that."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from detectors.sigma.load import load_folder
from detectors.sigma.rule import RuleSet
from siem.ruleset import RULES_FOLDER
from tests.programs import PATIENCE_S

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "coverage.md"


@cache
def library() -> RuleSet:
    return load_folder(RULES_FOLDER)


def rows(heading: str) -> list[list[str]]:
    """The cells of a table of the page."""
    _, _, below = PAGE.read_text(encoding="utf-8").partition(heading)
    found = re.findall(r"^\| (.+) \|$", below.partition("\n## ")[0], re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in found]


def test_the_page_is_what_the_rules_say() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "coverage-page"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip

    assert PAGE.read_text(encoding="utf-8") == made.stdout


def test_there_are_documents_of_every_kind_and_sector() -> None:
    counts = {sector: int(count) for sector, count in rows("| sector |")[:5]}
    print(PAGE.read_text(encoding="utf-8"))

    assert len(library().speaking()) >= 200
    assert len(library().correlations) >= 50
    assert len(library().absences) >= 6
    assert all(count >= 10 for count in counts.values())


def test_four_of_five_incidents_have_a_rule() -> None:
    told = [cells for cells in rows("## Incidents") if cells[0].isdigit() and cells[2] != "–"]

    assert len(told) >= 36


def test_every_number_of_an_incident_is_one_of_the_page() -> None:
    known = {f"threats.row-{cells[0]}" for cells in rows("## Incidents") if cells[0].isdigit()}
    named = {tag for one in library().speaking() for tag in one.analytic.tags}

    assert {tag for tag in named if tag.startswith("threats.")} <= known


def test_every_document_names_who_wrote_it() -> None:
    assert [one.document.file for one in library().speaking() if not one.analytic.author] == []
