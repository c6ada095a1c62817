"""BER against the examples of X.690 and against hostile bytes."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.packets.decoders import ber


def test_a_sequence_has_its_elements() -> None:
    data = bytes.fromhex("300a1605536d6974680101ff")

    whole = ber.expect(data, 0, len(data), 0x30)
    inside = ber.elements(data, whole.at, whole.stop)

    assert [(one.tag, data[one.at : one.stop]) for one in inside] == [(22, b"Smith"), (1, b"\xff")]


def test_a_long_tag_and_a_long_length_are_read() -> None:
    data = bytes.fromhex("7f8148820003") + b"abc"

    assert ber.element(data, 0, len(data)) == (0x7F8148, 6, 9)


@pytest.mark.parametrize(
    ("hex", "why"),
    [
        ("", "the tag at byte 0 is cut"),
        ("30", "the length at byte 1 is cut"),
        ("3080", "indefinite or has 0 octets"),
        ("308500000000", "indefinite or has 5 octets"),
        ("30820", "the length at byte 1 is cut"),
        ("3005ff", "claims 5 bytes, 1 are left"),
        ("7fffffffff01", "more than 3 octets"),
    ],
)
def test_what_is_no_element_is_said(hex: str, why: str) -> None:
    data = bytes.fromhex(hex if len(hex) % 2 == 0 else hex + "0")

    with pytest.raises(ber.BerError, match=why):
        ber.element(data, 0, len(data))


@pytest.mark.parametrize(
    ("contents", "said"), [("00", 0), ("7f", 127), ("0080", 128), ("80", -128), ("ff7f", -129)]
)
def test_integers_are_signed(contents: str, said: int) -> None:
    data = bytes.fromhex(contents)

    assert ber.integer(data, 0, len(data)) == said
    assert ber.unsigned(data, 0, len(data)) == said % 256 ** len(data)


@pytest.mark.parametrize(
    ("contents", "said"), [("883703", "2.999.3"), ("2b06010201", "1.3.6.1.2.1"), ("00", "0.0")]
)
def test_object_identifiers_are_dotted(contents: str, said: str) -> None:
    data = bytes.fromhex(contents)

    assert ber.oid(data, 0, len(data)) == said


@given(st.binary(max_size=200))
def test_hostile_bytes_raise_nothing_else(data: bytes) -> None:
    for read in (ber.element, ber.elements, ber.integer, ber.unsigned, ber.oid):
        with suppress(ber.BerError):
            read(data, 0, len(data))
