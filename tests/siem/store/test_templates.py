"""How indices are named, made, and let go of."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cityward import InputError
from cityward.fields import FIELDS, FINDING_FIELDS
from siem.store.templates import Names, ism_policy, month_of, months_before

NAMES = Names("cw", "op-metro")
TYPES = {"flat_object": "flat_object", "text": "match_only_text", "float": "double"}


def test_every_field_of_the_table_has_its_type_in_the_template_of_findings() -> None:
    mappings = NAMES.templates()["cw-findings"]["template"]["mappings"]
    wanted = {
        name: TYPES.get(kind, kind)
        for name, field in (FIELDS | FINDING_FIELDS).items()
        if (kind := field.type.removesuffix("[]"))
    }

    made = {name: mappings["properties"][name]["type"] for name in wanted}

    assert mappings["dynamic"] is False
    assert made == wanted


def test_what_is_only_read_is_not_indexed() -> None:
    mappings = NAMES.templates()["cw-events"]["template"]["mappings"]

    assert mappings["properties"]["event.original"] == {
        "type": "keyword",
        "index": False,
        "doc_values": False,
    }


def test_the_patterns_of_an_operator_are_of_no_other() -> None:
    assert NAMES.findings == "cw-findings-op-metro-*,-cw-findings-op-metro-*-*"
    assert NAMES.findings_in(datetime(2026, 3, 1, tzinfo=UTC)) == "cw-findings-op-metro-2026.03"
    assert NAMES.events_in("2026.03") == "cw-events-op-metro-2026.03"


@pytest.mark.parametrize(
    ("months", "oldest"),
    [(1, "2026.03"), (3, "2026.01"), (4, "2025.12"), (13, "2025.03"), (27, "2024.01")],
)
def test_months_are_counted_with_the_running_one(months: int, oldest: str) -> None:
    assert months_before(datetime(2026, 3, 31, 23, tzinfo=UTC), months) == oldest


def test_no_month_is_none() -> None:
    with pytest.raises(InputError):
        months_before(datetime(2026, 3, 1, tzinfo=UTC), 0)


def test_a_month_is_written_in_four_and_two_digits() -> None:
    assert month_of(datetime(1, 2, 3, tzinfo=UTC)) == "0001.02"


def test_the_policy_of_index_state_management_is_the_golden_one() -> None:
    golden = json.loads((Path(__file__).parent / "golden/ism_policy.json").read_text())

    assert ism_policy(["cw-findings-*"], 13) == golden
