"""Slots: the same in every process, one for each feature, whatever an event holds."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from detectors.anomaly import features
from detectors.anomaly.features import (
    FLOW,
    KINDS,
    OT,
    Codes,
    Trail,
    flow_slots,
    gap_bin,
    offsets,
    ot_slots,
    service_of,
    size_bin,
    value_bin,
)
from tests.detectors.anomaly.plant import MASTER, flow, message

JUNK: tuple[object, ...] = (
    None, "", "x" * 300, "\udcff", -1, 0, 1, 2**70, -(2**70), 1.5, float("nan"), float("inf"),
    True, [], ["a"], {"conn_state": "SF"}, {}, b"\xff",
)  # fmt: skip


def test_each_feature_has_a_region_of_its_own() -> None:
    codes, trail = Codes(), Trail()

    for kind, made in ((OT, ot_slots), (FLOW, flow_slots)):
        edges = offsets(kind)
        for number in range(2_000):
            fields = (
                message(number, 3, number, number).fields
                if made is ot_slots
                else flow(number, f"10.1.{number % 256}.{number // 256}", number).fields
            )
            slots = made(fields, float(number), trail, codes)
            assert len(slots) == len(kind)
            assert all(
                low <= slot < high for slot, low, high in zip(slots, edges, edges[1:], strict=False)
            )


def test_a_table_of_a_device_has_a_few_kibibytes() -> None:
    assert offsets(OT)[-1] == 1664
    assert offsets(FLOW)[-1] == 1344


def test_a_symbol_is_the_same_number_in_every_process() -> None:
    said = message(5.0, 6, 2, 65_280).fields
    code = f"""
from detectors.anomaly.features import Codes, Trail, ot_slots
print(ot_slots({said!r}, 5.0, Trail(), Codes()))
"""
    root = Path(features.__file__).parent.parent.parent
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )

    assert ran.stdout.strip() == str(ot_slots(said, 5.0, Trail(), Codes()))


def test_the_memory_of_texts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CODES_MAX", 100)
    codes = Codes()
    first = codes("10.0.0.1")

    for number in range(1_000):
        codes(f"text {number}")

    assert len(codes._known) <= 100
    assert codes("10.0.0.1") == first
    assert codes(None) == 0


def test_a_transition_and_a_gap_depend_on_what_the_device_did_before() -> None:
    codes, trail = Codes(), Trail()
    read, write = message(0.0, 3, 1).fields, message(0.0, 6, 1, 5).fields

    first = ot_slots(read, 100.0, trail, codes)
    same = ot_slots(read, 101.0, trail, codes)
    other = ot_slots(write, 131.0, trail, codes)

    transition, gap = 7, 8
    assert trail.time_s == 131.0
    assert len({first[transition], same[transition], other[transition]}) == 3
    assert same[gap] - offsets(OT)[gap] == gap_bin(1.0) == 28
    assert other[gap] - offsets(OT)[gap] == gap_bin(30.0) == 38


@pytest.mark.parametrize(
    ("seconds", "found"),
    [(-5.0, 1), (0.0, 1), (0.0001, 1), (0.0002, 4), (1.0, 28), (86_400.0, 61), (1e12, 62)],
)
def test_gaps_have_two_bins_an_octave(seconds: float, found: int) -> None:
    assert gap_bin(seconds) == found


@pytest.mark.parametrize(
    ("size", "found"),
    [(None, 0), ("9", 0), (-1, 0), (0, 1), (1, 3), (1_500, 22), (1e18, 62), (float("inf"), 0)],
)
def test_sizes_have_two_bins_an_octave(size: object, found: int) -> None:
    assert size_bin(size) == found


def test_values_of_other_size_or_sign_are_other_symbols() -> None:
    assert value_bin(450) == value_bin(455)
    assert len({value_bin(value) for value in (0, 450, 600, 65_280, -450, 0.001)}) == 6
    assert value_bin(float("nan")) == value_bin("450") == value_bin(None) == 0


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"network.protocol": "modbus", "destination.port": 1502}, "modbus"),
        ({"network.transport": "udp", "destination.port": 53}, "udp/53"),
        ({"network.transport": "tcp", "destination.port": 50_001}, "tcp/high"),
        ({"network.transport": "icmp"}, "icmp"),
        ({}, "ip"),
    ],
)
def test_a_service_is_a_name_or_a_known_port(fields: dict[str, object], found: str) -> None:
    assert service_of(fields) == found


def test_an_event_without_a_device_belongs_to_none() -> None:
    ot, host = KINDS

    assert ot.key(message(0.0, 3, 1)) == "10.0.1.7|modbus"
    assert host.key(flow(0.0, "10.0.0.20")) == MASTER
    assert ot.key(message(0.0, 3, 1, more={"destination.ip": None})) is None


def test_no_value_of_any_field_breaks_a_feature() -> None:
    chance, codes, trail = random.Random(3), Codes(), Trail()

    for number in range(5_000):
        for made, event in ((ot_slots, message(0.0, 3, 1, 7)), (flow_slots, flow(0.0, "10.0.0.1"))):
            broken = {
                name: chance.choice(JUNK) if chance.random() < 0.5 else value
                for name, value in event.fields.items()
            }
            slots = made(broken, float(number), trail, codes)
            assert min(slots) >= 0
            assert max(slots) < 1664
