"""Cases from outside that the Sigma engine has to hold: rules, events, and how many must match.

A case is a line of JSON: `case`, `rule_id`, `rule_path` below the rules (or `rule`, its text),
`expected_match_count` (null: at least one) or `corrected_match_count`, `logsource`, `events`.
Events are routed as a node does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from cityward import Event, InputError, LogSource, Record
from cityward.errors import CitywardError
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_folder, load_text

TIME = datetime(2026, 1, 5, tzinfo=UTC)


class Failed(msgspec.Struct, frozen=True):
    """A case that came to something else than it should."""

    case: str
    wanted: str
    found: str


def conformance(cases: Path, rules: Path | None = None) -> tuple[int, list[Failed]]:
    """Run cases: how many there are, and which failed.

    Args:
        cases: The file.
        rules: Folder of the rules; otherwise `rules_under_test` or the folder of the file.

    Raises:
        InputError: the file cannot be read.
    """
    beside = cases.parent / "rules_under_test"
    folder = rules or (beside if beside.is_dir() else cases.parent)
    tried = 0
    failed: list[Failed] = []
    try:
        with cases.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    tried += 1
                    failed += _failed(line, f"line {number}", folder)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", str(cases), "Check it.") from error
    return tried, failed


def _failed(line: bytes, name: str, folder: Path) -> Iterator[Failed]:
    try:
        case = msgspec.json.decode(line, type=dict[str, Any])
        name = str(case.get("case", name))
        wanted = case.get("corrected_match_count", case.get("expected_match_count"))
        found = _matches(case, folder)
    except (CitywardError, msgspec.MsgspecError, KeyError, TypeError, ValueError, OSError) as error:
        yield Failed(name, "a case that can be run", str(error).splitlines()[0])
        return
    if found != wanted if wanted is not None else found < 1:
        yield Failed(name, "at least 1" if wanted is None else str(wanted), str(found))


def _matches(case: Mapping[str, Any], folder: Path) -> int:
    rules = load_text(case["rule"]) if "rule" in case else load_folder(folder / case["rule_path"])
    for refused in rules.refused:
        raise refused
    given = case.get("logsource") or {}
    parts = [str(given.get(part) or "") for part in ("category", "product", "service")]
    logsource = LogSource(*parts) if given else rules.rules[0].logsource
    record = Record(b"", "case", 0, TIME)
    events = [
        Event(_time(fields), logsource, dict(fields), record, number)
        for number, fields in enumerate(case["events"])
    ]
    found = Engine(rules, case.get("placeholders") or {}).detect(events)
    wanted = case.get("rule_id")
    return sum(one.count for one in found if wanted in (None, one.analytic.id))


def _time(fields: Mapping[str, Any]) -> datetime:
    try:
        time_ = datetime.fromisoformat(str(fields["@timestamp"]))
    except (KeyError, ValueError):
        return TIME
    return time_ if time_.tzinfo else time_.replace(tzinfo=UTC)
