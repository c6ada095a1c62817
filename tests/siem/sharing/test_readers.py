"""Who read ours: the hub is asked with the operator's certificate, and says it or not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cityward import ConfigError, TransientError
from siem.sharing.identity import Identity
from siem.sharing.link import RefusalError, join
from siem.sharing.readers import readers
from tests.siem.sharing.server import FakeServer
from tests.siem.sharing.standin import OPERATOR, FakeHub, Node

AT = datetime(2026, 3, 2, 12, tzinfo=UTC)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    made = FakeServer(
        tmp_path, FakeHub(Identity(tmp_path).signing_key()), lambda: datetime.now(UTC)
    )
    yield made
    made.close()


def read(day: str, person: str) -> dict[str, object]:
    return {
        "day": day, "person": person, "reads": 2, "shares": 40, "first": AT, "last": AT, "more": 1,
    }  # fmt: skip


def test_the_newest_day_stands_first_and_what_a_newer_hub_adds_is_passed_over(
    tmp_path: Path, server: FakeServer
) -> None:
    identity = Identity(tmp_path)
    join(identity, Node(tmp_path).db.outgoing, server.url, server.said, "--token-file")
    server.reads = [read("2026-03-01", "c.iso"), read("2026-03-02", "p.olice")]

    found = readers(identity)

    assert [(one.day, one.person, one.shares) for one in found] == [
        ("2026-03-02", "p.olice", 40),
        ("2026-03-01", "c.iso", 40),
    ]
    assert server.asked[-1][2] == OPERATOR


def test_a_hub_that_does_not_say_it_is_said(tmp_path: Path, server: FakeServer) -> None:
    identity = Identity(tmp_path)
    with pytest.raises(ConfigError, match="joined no hub"):
        readers(identity)
    join(identity, Node(tmp_path).db.outgoing, server.url, server.said, "--token-file")

    server.reads = [{"day": 7}]
    with pytest.raises(TransientError):
        readers(identity)
    server.status = 403
    with pytest.raises(RefusalError):
        readers(identity)
    server.close()
    with pytest.raises(TransientError, match="does not answer"):
        readers(identity)
