"""A hub that is away: nothing is lost, and what is new does not wait behind what is old."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cityward.finding import SEVERITIES
from siem.sharing.outbox import CHANGES_AT_ONCE
from tests.siem.sharing.standin import Node, match

PER_S = 10
SENT_PER_S = 30
"""What the stand-in of a hub takes in a second once it is back."""
FRESH_S = 10


@pytest.mark.parametrize(
    "outage_s",
    [
        pytest.param(120, marks=pytest.mark.slow),
        pytest.param(86_400, marks=pytest.mark.full),
    ],
)
def test_after_an_outage_nothing_is_lost_and_what_is_new_goes_first(
    tmp_path: Path, outage_s: int
) -> None:
    """On a turned clock; the hub is a fake in this process."""
    node = Node(tmp_path)
    made: dict[str, datetime] = {}
    ages: list[float] = []

    def second() -> None:
        node.clock.pass_(1)
        first = len(made)
        levels = [SEVERITIES[n % 6] for n in range(first, first + PER_S)]
        new = [match(first + n, level) for n, level in enumerate(levels)]
        made.update(dict.fromkeys(node.find(*new), node.clock()))
        while node.outbox.offer() == CHANGES_AT_ONCE:
            pass

    for _ in range(outage_s):
        second()
    away_until = node.clock()
    back_at = len(made)
    while node.db.outgoing.tally().waiting:
        second()
        for one in node.send(most=SENT_PER_S):
            found = made[one.share_id]
            if found > away_until:
                ages.append((node.clock() - found).total_seconds())

    drained = node.clock() - away_until
    assert set(node.hub.documents) == set(made)
    assert len(node.hub.taken) == node.db.outgoing.head().seq
    assert node.db.outgoing.tally().dropped == 0
    assert max(ages) <= FRESH_S
    assert drained <= timedelta(seconds=back_at / (SENT_PER_S - PER_S) + 2 * FRESH_S)
