"""The page about operation is true."""

from __future__ import annotations

from pathlib import Path

from siem.sizing import measure
from tests.siem.test_node import _line
from tests.test_docs import run_page


def test_the_page_of_operation_runs(tmp_path: Path) -> None:
    done = run_page("operate.md", tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "console   https://127.0.0.1:8765/" in done.stdout
    assert "open.tar: " in done.stderr
    assert (tmp_path / "restored" / "state" / "operator.key").exists()


def test_sizing_says_cores_and_disk(tmp_path: Path) -> None:
    (tmp_path / "auth.log").write_bytes(b"".join(_line(number) for number in range(300)))

    found = measure(tmp_path / "auth.log")

    assert (found["records"], found["events"]) == (300, 300)
    assert 0 < found["gb_per_day"] < found["spool_gb_per_hour"] * 24
    assert found["cores_path"] > 0
    assert found["cores_compaction"] > 0
