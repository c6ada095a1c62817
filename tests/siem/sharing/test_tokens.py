"""Tokens: joining is real, and nothing joins that is not the same."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from cityward import ConfigError
from siem.sharing.tokens import (
    EPOCH_DAYS,
    OVERLAP_DAYS,
    Hmac,
    Tokens,
    epochs,
    fingerprint,
    new_root,
    root_of,
    root_text,
    tokens_in,
)
from tests.siem.sharing.findings import PLAN, accepted, written

BEGIN = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=EPOCH_DAYS * 680)
MIDDLE = BEGIN + timedelta(days=15)
SEEDS = (1, 2, 3)
FIELDS = {
    "finding.first_seen": "round",
    "source.ip": "join",
    "dns.question.name": "join",
    "destination.ip": "local",
}
POLICY = written([{"name": "all", "when": {}, "to": ["city-soc"], "fields": FIELDS}])


def tokens_of(root: bytes, local: bytes, address: str, at: datetime) -> set[str]:
    """The join tokens that an operator sends of an address."""
    policy = accepted(POLICY, tokens=Tokens(local, Hmac(root)))
    document = {
        "finding.id": "1", "finding.severity": "high", "finding.first_seen": at,
        "finding.last_seen": at, "source.ip": address, "destination.ip": "10.1.2.3",
    }  # fmt: skip
    share = policy.share(document, at + timedelta(minutes=1))
    assert share is not None
    return {token for _, token in tokens_in(share.payload)}


def outsiders(seed: int, count: int) -> list[str]:
    """Addresses of outside, no two in one network."""
    draw = random.Random(seed)
    nets = draw.sample(range(11 << 16, 90 << 16), count)
    return [f"{net >> 16}.{net >> 8 & 255}.{net & 255}.{draw.randint(1, 254)}" for net in nets]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_attacker_joins_at_two_operators_and_different_ones_do_not(seed: int) -> None:
    root = random.Random(seed).randbytes(32)
    seen = outsiders(seed, 60)
    here = {one: tokens_of(root, b"a" * 32, one, MIDDLE) for one in seen[:40]}
    there = {one: tokens_of(root, b"b" * 32, one, MIDDLE) for one in seen[20:]}

    joined = {(a, b) for a in here for b in there if here[a] & there[b]}

    assert joined == {(one, one) for one in seen[20:40]}


@pytest.mark.parametrize("seed", SEEDS)
def test_an_attacker_who_moves_within_a_network_joins_by_it(seed: int) -> None:
    root = random.Random(seed).randbytes(32)
    network = outsiders(seed, 1)[0].rpartition(".")[0]

    one = tokens_of(root, b"a" * 32, f"{network}.7", MIDDLE)
    other = tokens_of(root, b"b" * 32, f"{network}.9", MIDDLE)

    assert {token[:2] for token in one & other} == {"p:"}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_address_in_different_epochs_joins_nothing(seed: int) -> None:
    root = random.Random(seed).randbytes(32)
    later = MIDDLE + timedelta(days=EPOCH_DAYS)

    for one in outsiders(seed, 20):
        assert not tokens_of(root, b"a" * 32, one, MIDDLE) & tokens_of(root, b"b" * 32, one, later)


@pytest.mark.parametrize("seed", SEEDS)
def test_different_roots_join_nothing(seed: int) -> None:
    draw = random.Random(seed)
    one, other = draw.randbytes(32), draw.randbytes(32)

    for address in outsiders(seed, 20):
        here = tokens_of(one, b"a" * 32, address, MIDDLE)
        assert not here & tokens_of(other, b"a" * 32, address, MIDDLE)


def test_at_the_turn_of_an_epoch_operators_still_join() -> None:
    root = b"r" * 32
    last = tokens_of(root, b"a" * 32, "203.0.113.7", BEGIN - timedelta(hours=1))
    first = tokens_of(root, b"b" * 32, "203.0.113.7", BEGIN + timedelta(hours=1))

    assert last & first
    assert len(epochs(BEGIN + timedelta(days=OVERLAP_DAYS - 0.1))) == 2
    assert len(epochs(BEGIN + timedelta(days=OVERLAP_DAYS))) == 1


def test_what_waited_for_a_month_still_has_the_tokens_of_its_time() -> None:
    tokens = Tokens(b"l" * 32, Hmac(b"r" * 32))
    policy = accepted(POLICY, tokens=tokens)
    document = {
        "finding.id": "1", "finding.severity": "high", "finding.first_seen": MIDDLE,
        "finding.last_seen": MIDDLE, "source.ip": "203.0.113.7",
    }  # fmt: skip

    at_once = policy.share(document, MIDDLE)
    late = policy.share(document, MIDDLE + timedelta(days=35))

    assert at_once is not None
    assert late is not None
    assert at_once.payload == late.payload


def test_a_local_token_is_stable_here_and_means_nothing_elsewhere() -> None:
    here, there = Tokens(b"a" * 32), Tokens(b"b" * 32)

    assert here.local("ipv4-addr:10.1.2.3") == here.local("ipv4-addr:10.1.2.3")
    assert here.local("ipv4-addr:10.1.2.3") != there.local("ipv4-addr:10.1.2.3")
    assert here.local("user.name:10.1.2.3") != here.local("ipv4-addr:10.1.2.3")


def test_a_root_is_handed_over_as_text_and_a_wrong_letter_is_noticed() -> None:
    root = new_root()
    text = root_text(root)
    wrong = ("B" if text[0] != "B" else "C") + text[1:]

    assert root_of(text.lower().replace("-", " "), "here") == root
    for bad in (wrong, text[:-6], "", "no key", "ÄÖ"):
        with pytest.raises(ConfigError, match="no join key"):
            root_of(bad, "here")
    assert fingerprint(root) == fingerprint(root_of(text, "here"))
    assert fingerprint(root).replace("-", "") not in text.replace("-", "")


def test_a_short_root_is_refused() -> None:
    with pytest.raises(ConfigError, match="16 bytes"):
        Hmac(b"r" * 16)


def test_what_a_plan_calls_ours_has_no_join_token() -> None:
    assert PLAN.is_empty is False
    assert tokens_of(b"r" * 32, b"a" * 32, "192.0.2.9", MIDDLE) == set()
