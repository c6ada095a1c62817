"""An operator's end and the hub's, both real, in one conversation over mutual TLS."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from siem.city.commons import CITY_SOC, Write
from siem.city.port import Port
from siem.city.reading import AccessLog, Reading
from siem.sharing import link as links
from siem.sharing.drop import Drop, answer, read_drop
from siem.sharing.identity import Hub as HubFile
from siem.sharing.identity import Identity, public_text
from siem.sharing.ledger import as_document, compared, keys_of, prove
from siem.sharing.link import Link, RefusalError, join, listed
from siem.sharing.wire import ACCESS, MIRROR, Held
from siem.store.embedded import NodeDb
from siem.store.protocol import Range
from tests.siem.city.city import Hub
from tests.siem.sharing.standin import KEY, OPERATOR, FakePolicy, Node, match
from tests.siem.sharing.test_link import drain


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    (tmp_path / "hub").mkdir()
    made = Hub(tmp_path / "hub")
    made.now = datetime.now(UTC)
    return made


@pytest.fixture
def url(hub: Hub) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    port = Port(hub.exchange, listening, ["localhost"])
    port.start()
    yield f"https://localhost:{port.address[1]}"
    port.stop()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(links, "RETRY_S", 0.0)
    monkeypatch.setattr(links, "INBOX_EVERY_S", 0.0)
    made = Node(tmp_path)
    made.clock.now = datetime.now(UTC)
    made.key = Identity(tmp_path).signing_key()
    made.again()
    return made


@pytest.fixture
def link(node: Node, hub: Hub, url: str, tmp_path: Path) -> Link:
    token = hub.operators.add(OPERATOR, "transport.rail")
    join(Identity(tmp_path), node.db.outgoing, url, token, "--token-file")
    return Link(node.outbox, Identity(tmp_path), node.clock, url)


def fault(node: Node, tmp_path: Path) -> str:
    own = keys_of(node.key.public_key())
    return prove(node.db.outgoing, OPERATOR, own, Identity(tmp_path).hub().keys).fault


def kept(hub: Hub) -> dict[str, int]:
    return {one["cw.share.id"]: one["cw.share.revision"] for one in hub.everything()}


def test_a_finding_is_shared_updated_and_taken_back(
    node: Node, hub: Hub, link: Link, tmp_path: Path
) -> None:
    a, b = node.find(match(1), match(2))
    drain(link)
    first = kept(hub)
    node.clock.pass_(61)
    node.find(match(1))
    drain(link)
    second = kept(hub)
    node.db.outgoing.withdraw("me", "error", node.clock(), share_id=a)
    drain(link)
    node.find(match(1))
    drain(link)

    assert (first, second, kept(hub)) == ({a: 1, b: 1}, {a: 2, b: 1}, {b: 1})
    assert hub.gone == [a]
    assert as_document(node.db.outgoing.ledger("withdraw")[0])["hub"]["campaigns"] == 0
    assert {line.state for line in node.db.outgoing.lines()} == {"receipted"}
    assert fault(node, tmp_path) == ""
    assert hub.beats == [OPERATOR] * 2


def test_a_token_serves_once(node: Node, hub: Hub, url: str, tmp_path: Path) -> None:
    token = hub.operators.add(OPERATOR)
    identity = Identity(tmp_path)
    join(identity, node.db.outgoing, url, token, "--token-file")

    with pytest.raises(RefusalError, match="the token is not in force"):
        join(identity, node.db.outgoing, url, token, "--token-file")


def test_what_the_hub_may_not_keep_does_not_stop_the_channel(
    node: Node, hub: Hub, link: Link, tmp_path: Path
) -> None:
    node.policy = FakePolicy(names=("finding.severity",))
    node.find(match(1))
    drain(link)
    node.policy = FakePolicy("p2")
    [good] = node.find(match(2))
    drain(link)

    said = [as_document(one)["hub"] for one in node.db.outgoing.lines() if one.share_id]
    assert "finding.first_seen is missing" in said[0]["refused"]
    assert good in kept(hub)
    assert fault(node, tmp_path) == ""


def test_a_policy_that_opens_less_takes_effect_on_what_was_shared(
    node: Node, hub: Hub, link: Link
) -> None:
    node.policy = FakePolicy("wide", audiences=("city-soc", "peers"))
    [id] = node.find(match(1))
    drain(link)
    wide = hub.everything()[0]
    node.policy = FakePolicy("narrow", audiences=("city-soc",))
    node.clock.pass_(61)
    drain(link)
    narrow = hub.everything()[0]
    node.find(match(1))
    node.clock.pass_(61)
    drain(link)

    assert wide["cw.share.audiences"] == ["city-soc", "peers"]
    assert narrow["cw.share.audiences"] == ["city-soc"]
    assert hub.everything()[0]["finding.count"] == 2
    assert kept(hub) == {id: 3}


def test_an_answer_that_got_lost_changes_nothing(
    node: Node, hub: Hub, link: Link, tmp_path: Path
) -> None:
    ids = node.find(*(match(number) for number in range(3)))
    node.outbox.offer()
    while signed := node.outbox.next():
        first = hub.exchange.take(OPERATOR, signed)
        assert node.outbox.next() == signed
        again = hub.exchange.take(OPERATOR, signed)
        assert again == first
        node.outbox.receipted(again, Identity(tmp_path).hub().key)

    assert kept(hub) == dict.fromkeys(ids, 1)
    assert fault(node, tmp_path) == ""


def test_a_revoked_operator_is_refused_and_joins_again_with_what_waits(
    node: Node, hub: Hub, url: str, link: Link, tmp_path: Path
) -> None:
    drain(link)
    hub.operators.revoke(OPERATOR)
    [id] = node.find(match(1))
    drain(link)
    state = node.db.outgoing.link()
    token = hub.operators.add(OPERATOR)
    join(Identity(tmp_path), node.db.outgoing, url, token, "--token-file")
    drain(link)

    assert state.state == "refused"
    assert kept(hub) == {id: 1}
    assert fault(node, tmp_path) == ""


def test_a_node_that_lost_its_state_goes_on(
    node: Node, hub: Hub, url: str, link: Link, tmp_path: Path
) -> None:
    node.find(match(1))
    drain(link)
    (tmp_path / "new").mkdir()
    new = Node(tmp_path / "new")
    identity = Identity(tmp_path / "new")
    new.key, new.clock.now = identity.signing_key(), node.clock.now
    join(identity, new.db.outgoing, url, hub.operators.add(OPERATOR), "--token-file")
    fresh = Link(new.again(), identity, new.clock, url)
    new.find(match(2))
    drain(fresh)

    assert len(kept(hub)) == 2
    assert [line.seq for line in new.db.outgoing.lines()] == [3, 4]
    assert fault(new, tmp_path / "new") == ""


@pytest.mark.parametrize("later", [0, 1, 5])
@pytest.mark.parametrize("tried", [False, True])
def test_a_node_that_was_restored_goes_on_and_its_ledger_says_what_is_lost(
    node: Node, hub: Hub, url: str, link: Link, tmp_path: Path, later: int, *, tried: bool
) -> None:
    """A backup, then more is sent, then the backup is restored; perhaps it ran before it joined."""
    node.find(match(1))
    drain(link)
    backup = sqlite3.connect(tmp_path / "backup.db")
    node.db._db.backup(backup)
    backup.close()
    node.find(*(match(number) for number in range(10, 10 + later)))
    drain(link)
    node.db.close()
    (tmp_path / "node.db-wal").unlink(missing_ok=True)
    (tmp_path / "backup.db").replace(tmp_path / "node.db")
    node.db = NodeDb(tmp_path / "node.db", KEY, clock=node.clock)
    identity = Identity(tmp_path)
    node.find(match(2))
    if tried:
        drain(Link(node.again(), identity, node.clock, url))
    token = hub.operators.add(OPERATOR)
    join(identity, node.db.outgoing, url, token, "--token-file", restored=True)

    drain(Link(node.again(), identity, node.clock, url))

    own = keys_of(node.key.public_key())
    proof = prove(node.db.outgoing, OPERATOR, own, identity.hub().keys)
    assert len(kept(hub)) == 2 + later
    assert proof.fault == ""
    assert proof.lost == max(0, later - tried)
    assert node.db.outgoing.tally().waiting == 0


def test_the_certificate_is_renewed(
    node: Node, hub: Hub, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "renewal_due", lambda certificate, now: True)
    before = Identity(tmp_path).certificate()
    [id] = node.find(match(1))
    drain(link)

    assert Identity(tmp_path).certificate().serial_number != before.serial_number
    assert kept(hub) == {id: 1}


def test_the_hub_holds_what_the_ledger_says_and_every_difference_is_named(
    node: Node, hub: Hub, link: Link, tmp_path: Path
) -> None:
    a, b, c = node.find(match(1), match(2), match(3))
    drain(link)
    identity = Identity(tmp_path)
    same = list(compared(node.db.outgoing, listed(identity, MIRROR, Held)))
    node.db.outgoing.withdraw("me", "error", node.clock(), share_id=a)
    under_way = list(compared(node.db.outgoing, listed(identity, MIRROR, Held)))
    drain(link)
    held = listed(identity, MIRROR, Held)
    done = list(compared(node.db.outgoing, held))
    wrong = [Held(a, 1, "x"), Held(b, 1, "x"), Held("else", 1, "x")]
    differ = list(compared(node.db.outgoing, wrong))

    assert same == under_way == done == []
    assert sorted(one.share_id for one in held) == sorted([b, c])
    assert {one["share"]: one["what"] for one in differ} == {
        a: "was taken back, and is there",
        b: "is there with another content",
        c: "is not there: it expired, or was not kept",
        "else": "is there, and was not sent from here",
    }


def test_an_operator_hears_who_read_what_it_shared(
    node: Node, hub: Hub, link: Link, tmp_path: Path
) -> None:
    node.find(match(1))
    drain(link)
    told = AccessLog(hub.commons.records, hub.clock).of("m.rossi")
    reading = Reading(hub.commons, CITY_SOC, told, hub.clock)
    assert reading.search("", Range()).total == 1

    read = listed(Identity(tmp_path), ACCESS, dict[str, Any])

    assert [(one["person"], one["shares"]) for one in read] == [("m.rossi", 1)]


def test_a_letter_of_the_hub_comes_into_the_inbox(node: Node, hub: Hub, link: Link) -> None:
    hub.exchange.letters.send(OPERATOR, "share", share_id="c-1", payload={"finding.title": "x"})
    drain(link)

    assert [one.share_id for one in node.db.outgoing.inbox()] == ["c-1"]


def test_the_hub_takes_a_drop_as_it_takes_the_link(node: Node, hub: Hub, tmp_path: Path) -> None:
    there = hub.enrolled(OPERATOR)
    node.key = there.key
    ids = node.find(*(match(number) for number in range(3)))
    carrier = Drop(node.again(), tmp_path / "drop", Identity(tmp_path), node.clock)
    for _ in range(2):
        while carrier.turn():
            pass
        for one in read_drop(tmp_path / "drop"):
            answer(one, hub.exchange.take(one.operator, one.signed))
        key = public_text(hub.operators.signing_key.public_key())
        Identity(tmp_path).keep_hub(
            HubFile(url="", operator=OPERATOR, authority="", signing_keys=(key,))
        )

    assert kept(hub) == dict.fromkeys(ids, 1)
    assert {line.state for line in node.db.outgoing.lines()} == {"receipted"}
    assert fault(node, tmp_path) == ""


def test_what_was_sealed_by_a_clock_that_was_ahead_goes_anew_when_the_clock_is_right(
    node: Node, hub: Hub, link: Link, tmp_path: Path
) -> None:
    drain(link)
    node.clock.pass_(3 * 86_400)
    a, b = node.find(match(1, at=hub.now), match(2, at=hub.now))
    drain(link)
    state, wrong = node.db.outgoing.link(), kept(hub)
    node.clock.now = hub.now
    drain(link)

    assert (state.state, wrong) == ("refused", {})
    assert "more than a day in the future" in state.error
    assert kept(hub).keys() == {a, b}
    assert fault(node, tmp_path) == ""
    assert [line.seq for line in node.db.outgoing.lines()] == [1, 2, 2, 3, 4]
    assert node.db.outgoing.tally().refused == 1
    assert all(one["what"] != "is not there" for one in differences(node, tmp_path))


def test_a_withdrawal_that_a_wrong_clock_had_sealed_is_not_lost(
    node: Node, hub: Hub, link: Link, tmp_path: Path
) -> None:
    [id] = node.find(match(1))
    drain(link)
    node.clock.pass_(3 * 86_400)
    node.db.outgoing.withdraw("me", "legal", node.clock(), share_id=id, note="by order")
    link._outbox._beat = node.clock()
    drain(link)
    there = kept(hub)
    node.clock.now = hub.now
    drain(link)

    assert there.keys() == {id}
    assert kept(hub) == {}
    assert fault(node, tmp_path) == ""


def test_a_hub_that_was_restored_goes_on_behind_its_operator_and_hears_again_what_it_lost(
    node: Node, hub: Hub, link: Link, url: str, tmp_path: Path
) -> None:
    a, b, c = node.find(match(1), match(2), match(3))
    drain(link)
    before = {
        kind: list(hub.commons.records.all(kind)) for kind in ("link", "receipt", "tombstone")
    }
    shares = hub.everything()
    [d] = node.find(match(4))
    node.db.outgoing.withdraw("me", "error", node.clock(), share_id=a)
    drain(link)
    # The backup comes back.
    hub.commons.remove([d])
    hub.commons.put([Write(one, one["cw.share.revision"]) for one in shares])
    for kind, kept_ in before.items():
        for name, one in list(hub.commons.records.all(kind)):
            hub.commons.records.delete(kind, name, one.version)
        for name, one in kept_:
            hub.commons.records.put(kind, name, one.value, None)
    hub.exchange._links.clear()
    node.clock.pass_(61)
    node.outbox._beat = node.clock()
    [e] = node.find(match(5))
    drain(link)
    state, wrong = node.db.outgoing.link().state, kept(hub)
    join(Identity(tmp_path), node.db.outgoing, url, hub.operators.add(OPERATOR), "--token-file")
    drain(Link(node.again(), Identity(tmp_path), node.clock, url))

    assert (state, wrong.keys()) == ("refused", {a, b, c})
    assert kept(hub).keys() == {b, c, d, e}
    assert fault(node, tmp_path) == ""
    assert any("had 4 envelopes of it, goes on behind" in one for one in hub.trail)


def test_a_node_that_moves_to_a_new_hub_tells_it_all_that_it_shares(
    node: Node, hub: Hub, tmp_path: Path
) -> None:
    node.hub.node = node.key.public_key()
    a, b = node.find(match(1), match(2))
    node.send()
    node.db.outgoing.withdraw("me", "error", node.clock(), share_id=a)
    node.send()
    listening = socket.create_server(("127.0.0.1", 0))
    port = Port(hub.exchange, listening, ["localhost"])
    port.start()
    url = f"https://localhost:{port.address[1]}"
    join(Identity(tmp_path), node.db.outgoing, url, hub.operators.add(OPERATOR), "--token-file")
    [c] = node.find(match(3))
    drain(Link(node.again(), Identity(tmp_path), node.clock, url))
    port.stop()

    assert kept(hub).keys() == {b, c}


@pytest.mark.parametrize("was_taken", [False, True])
def test_a_signing_key_that_was_lost_with_an_envelope_on_its_way_blocks_nothing(
    node: Node, hub: Hub, link: Link, url: str, tmp_path: Path, was_taken: bool
) -> None:
    drain(link)
    [id] = node.find(match(1))
    node.outbox.offer()
    signed = node.outbox.next()
    assert signed is not None
    if was_taken:
        hub.exchange.take(OPERATOR, signed)
    identity = Identity(tmp_path)
    (identity.folder / "signing.key").unlink()
    join(identity, node.db.outgoing, url, hub.operators.add(OPERATOR), "--token-file")
    node.key = identity.signing_key()
    again = Link(node.again(), identity, node.clock, url)
    [other] = node.find(match(2))
    drain(again)

    assert kept(hub).keys() == {id, other}
    own, hubs = identity.own_keys(), identity.hub().keys
    assert prove(node.db.outgoing, OPERATOR, own, hubs).fault == ""
    assert node.db.outgoing.tally().refused == (not was_taken)


def differences(node: Node, tmp_path: Path) -> list[dict[str, str]]:
    return list(compared(node.db.outgoing, listed(Identity(tmp_path), MIRROR, Held)))
