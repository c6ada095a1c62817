"""TCP in order, whatever order it comes in."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.packets.reassembly import HELD_BYTES, HELD_SEGMENTS, Budget, Direction

GAP = None


def delivered(direction: Direction, *segments: tuple[int, bytes]) -> list[bytes | None]:
    return [piece for seq, data in segments for piece in direction.accept(seq & 0xFFFFFFFF, data)]


def begun(isn: int = 999) -> Direction:
    direction = Direction(Budget())
    direction.syn(isn)
    return direction


def test_segments_in_order_are_delivered_at_once() -> None:
    assert delivered(begun(), (1000, b"ab"), (1002, b"cd")) == [b"ab", b"cd"]


def test_a_duplicate_is_delivered_once() -> None:
    direction = begun()

    assert delivered(direction, (1000, b"ab"), (1000, b"ab"), (1002, b"c")) == [b"ab", b"c"]
    assert direction.overlaps == 1


def test_of_an_overlap_the_first_data_win() -> None:
    assert delivered(begun(), (1000, b"abc"), (1001, b"XYZ")) == [b"abc", b"Z"]


def test_of_an_overlap_behind_a_gap_the_first_data_win() -> None:
    pieces = delivered(begun(), (1004, b"ef"), (1002, b"CDEFGH"), (1000, b"ab"))

    assert b"".join(piece or b"" for piece in pieces) == b"abCDefGH"


def test_a_gap_waits_for_what_fills_it() -> None:
    assert delivered(begun(), (1002, b"cd"), (1000, b"ab")) == [b"ab", b"cd"]


def test_numbers_go_around() -> None:
    direction = begun(0xFFFFFFFD)

    assert delivered(direction, (0xFFFFFFFE, b"ab"), (1, b"de"), (0, b"c")) == [b"ab", b"c", b"de"]


def test_a_stream_seen_from_the_middle_begins_with_its_first_segment() -> None:
    assert delivered(Direction(Budget()), (5000, b"ab"), (5002, b"c")) == [b"ab", b"c"]


def test_what_was_sent_before_the_first_segment_seen_is_not_taken_for_a_duplicate() -> None:
    direction = Direction(Budget())

    pieces = delivered(direction, (5004, b"ef"), (5000, b"ab"), (5002, b"cd"), (5006, b"g"))

    assert pieces == [b"ef", GAP, b"ab", b"cd", GAP, b"g"]


def test_too_many_segments_behind_a_gap_give_it_up() -> None:
    direction = begun()
    held = [(2000 + number, b"x") for number in range(HELD_SEGMENTS + 1)]

    pieces = delivered(direction, *held)

    assert pieces == [GAP] + [b"x"] * (HELD_SEGMENTS + 1)
    assert direction.lost == 1
    assert direction.budget.bytes == 0


def test_too_many_bytes_behind_a_gap_give_it_up() -> None:
    direction = begun()

    pieces = delivered(direction, (2000, bytes(HELD_BYTES)), (2000 + HELD_BYTES, b"x"))

    assert pieces == [GAP, bytes(HELD_BYTES), b"x"]


def test_all_directions_together_have_a_bound() -> None:
    budget = Budget(max_bytes=1000)
    one, two = Direction(budget), Direction(budget)
    one.syn(0)
    two.syn(0)

    first = delivered(one, (10, bytes(800)))
    second = delivered(two, (10, bytes(300)))

    assert first == []
    assert second == [GAP, bytes(300)]
    assert budget.bytes == 800


def test_far_too_old_segments_in_a_row_begin_anew() -> None:
    direction = begun(3_000_000_000)
    old = [(2_990_000_000 + number, b"x") for number in range(4)]

    assert delivered(direction, *old) == [GAP, b"x"]


def test_one_far_too_old_segment_changes_nothing() -> None:
    direction = begun(3_000_000_000)

    assert delivered(direction, (2_990_000_000, b"x"), (3_000_000_001, b"ab")) == [b"ab"]


def test_a_repeated_syn_is_no_new_connection() -> None:
    direction = begun(999)
    delivered(direction, (1000, b"ab"))

    assert direction.syn(999) is False
    assert delivered(direction, (1002, b"c")) == [b"c"]


def test_a_syn_with_another_number_is_a_new_connection() -> None:
    direction = begun(999)
    delivered(direction, (1000, b"ab"), (1010, b"held"))

    assert direction.syn(50_000_000) is True
    assert delivered(direction, (50_000_001, b"c")) == [b"c"]
    assert direction.budget.bytes == 0


def test_what_waits_at_the_end_is_delivered_behind_gaps() -> None:
    direction = begun()
    delivered(direction, (1010, b"c"), (1020, b"e"))

    assert list(direction.flush()) == [GAP, b"c", GAP, b"e"]
    assert direction.budget.bytes == 0


def scrambled(r: random.Random, data: bytes, isn: int) -> list[tuple[int, bytes]]:
    """Every byte at least once, in segments that are late, repeated and overlap."""
    at, placed = 0, []
    while at < len(data):
        size = r.randrange(1, 120)
        placed.append((at + r.random() * 400, at, data[at : at + size]))
        at += size
    for _ in range(r.randrange(10)):
        at, size = r.randrange(len(data)), r.randrange(1, 200)
        placed.append((at + r.random() * 800, at, data[at : at + size]))
    return [((isn + 1 + at) & 0xFFFFFFFF, piece) for _, at, piece in sorted(placed)]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 7, 2**31, 2**32 - 1000, 2**32 - 1]))
@settings(max_examples=200, deadline=None)
def test_reordered_repeated_and_overlapping_segments_give_the_original_bytes(
    seed: int, isn: int
) -> None:
    r = random.Random(seed)
    data = r.randbytes(r.randrange(1, 3000))
    direction = begun(isn)

    pieces = delivered(direction, *scrambled(r, data, isn))

    assert GAP not in pieces
    assert b"".join(piece or b"" for piece in pieces) == data
    assert direction.budget.bytes == 0


@pytest.mark.parametrize("seed", range(200))
def test_with_loss_every_delivered_byte_stands_in_its_place(seed: int) -> None:
    r = random.Random(seed)
    data = r.randbytes(8000)
    direction = begun(0)
    segments = [one for one in scrambled(r, data, 0) if r.random() > 0.1]

    pieces = delivered(direction, *segments) + list(direction.flush())

    runs: list[bytes] = [b""]
    for piece in pieces:
        if piece is GAP:
            runs.append(b"")
        else:
            runs[-1] += piece
    at = 0
    for run in runs:
        at = data.find(run, at)
        assert at >= 0
        at += len(run)
    assert len(runs) - 1 == direction.lost
    assert direction.budget.bytes == 0
    assert len(direction.held) == 0


@pytest.mark.parametrize("seed", range(50))
def test_hostile_segments_never_raise_and_never_keep_more_than_the_bound(seed: int) -> None:
    r = random.Random(seed)
    budget = Budget(max_bytes=200_000)
    directions = [Direction(budget) for _ in range(20)]
    numbers = [0, 1, 2**31, 2**31 - 1, 2**32 - 1, 5000]

    for _ in range(3000):
        direction = r.choice(directions)
        seq = (r.choice(numbers) + r.randrange(3000)) & 0xFFFFFFFF
        if r.random() < 0.05:
            direction.syn(seq)
        for piece in direction.accept(seq, bytes(r.randrange(3000))):
            assert piece is None or isinstance(piece, bytes)

    assert all(len(direction.held) <= HELD_SEGMENTS * 2 for direction in directions)
    assert budget.bytes <= 200_000 + 20 * 3000
    for direction in directions:
        direction.close()
    assert budget.bytes == 0
