"""The field table: what a value of each type may be, and that the table itself is sound."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from cityward.fields import FIELDS, SECTORS, faults

WHEN = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source.ip", "192.0.2.1"),
        ("source.port", 502),
        ("event.category", ["network"]),
        ("event.category", ("network", "session")),
        ("host.ip", []),
        ("event.start", WHEN),
        ("ot.value", 3),
        ("ot.value", 3.5),
        ("ot.is_command", True),
        ("phys.location", "40.63,22.94"),
        ("cw.vendor", {"conn_state": "SF"}),
        ("message", "text"),
    ],
)
def test_a_value_of_the_type_of_its_field_fits(name, value):
    assert faults({name: value}) == []


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("source.ip", 3_221_225_985, "ip"),
        ("source.port", "502", "long"),
        ("source.port", 502.0, "long"),
        ("source.port", True, "long"),
        ("ot.value", True, "double"),
        ("ot.is_command", 1, "boolean"),
        ("event.category", "network", "keyword[]"),
        ("event.category", [1], "keyword[]"),
        ("event.start", "2026-03-01", "date"),
        ("cw.vendor", "SF", "flat_object"),
        ("event.action", None, "keyword"),
        ("event.action", ["a"], "keyword"),
    ],
)
def test_a_value_of_another_type_is_named_with_what_the_table_wants(name, value, wanted):
    assert faults({name: value}) == [f"{name} is {value!r}, the table wants {wanted}"]


def test_a_name_that_is_not_in_the_table_is_named_with_the_way_out():
    assert faults({"gate.id": "N1"}) == ["gate.id is no field of the table; put it under cw.vendor"]


def test_all_faults_are_told():
    assert len(faults({"gate.id": "N1", "source.port": "1", "source.ip": "192.0.2.1"})) == 2


def test_the_table_has_known_types_and_a_meaning_for_each():
    known = {
        "keyword", "text", "long", "double", "float", "boolean", "date", "ip", "geo_point",
        "flat_object",
    }  # fmt: skip

    assert {field.type.removesuffix("[]") for field in FIELDS.values()} == known
    assert [name for name, field in FIELDS.items() if not field.meaning] == []


def test_what_the_node_adds_and_what_collectors_must_fill_is_in_the_table():
    needed: list[str] = [
        "@timestamp", "event.id", "event.kind", "event.action", "event.outcome", "event.dataset",
        "event.ingested", "event.original", "event.reason", "observer.name", "cw.operator",
        "cw.sector", "cw.mode", "cw.domain", "cw.record.source", "cw.record.place",
        "cw.record.number", "cw.logsource.category", "cw.logsource.product",
        "cw.logsource.service", "cw.asset.asset_id", "cw.source.zone",
    ]  # fmt: skip

    assert [name for name in needed if name not in FIELDS] == []


def test_a_sector_has_one_name():
    assert len(SECTORS) == len(set(SECTORS)) == 18


@pytest.mark.parametrize("value", [float("nan"), 10**400, "\x00", b"x", object()])
def test_any_value_is_judged_without_an_exception(value: Any):
    assert isinstance(faults(dict.fromkeys(FIELDS, value)), list)
