"""The link: joining a hub, sending over mutual TLS, hearing what it has, and what goes wrong."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from cityward import ConfigError, TransientError, Unsafe
from siem.sharing import link as links
from siem.sharing.certificates import Authority
from siem.sharing.envelope import Signed
from siem.sharing.identity import Identity
from siem.sharing.ledger import prove
from siem.sharing.link import Link, RefusalError, join
from siem.sharing.wire import ENROL, RENEW, TOKEN_PREFIX
from tests.programs import wait_until
from tests.siem.sharing.server import WHILE, FakeServer
from tests.siem.sharing.standin import OPERATOR, FakeHub, Node, match

OPTION = "--token-file"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node with the key that it would make itself."""
    monkeypatch.setattr(links, "RETRY_S", 0.0)
    monkeypatch.setattr(links, "INBOX_EVERY_S", 0.0)
    made = Node(tmp_path)
    made.key = Identity(tmp_path).signing_key()
    made.hub = FakeHub(made.key)
    made.clock.now = datetime.now(UTC)  # TLS asks the real clock
    made.again()
    return made


@pytest.fixture
def server(tmp_path: Path, node: Node) -> Iterator[FakeServer]:
    made = FakeServer(tmp_path, node.hub, node.clock)
    yield made
    made.close()


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return Identity(tmp_path)


@pytest.fixture
def link(node: Node, server: FakeServer, identity: Identity) -> Link:
    join(identity, node.db.outgoing, server.url, server.said, OPTION)
    return Link(node.outbox, identity, node.clock, server.url)


# ---- Joining


def test_a_node_joins_with_a_token_and_tells_nothing_before_it_knows_the_hub(
    node: Node, server: FakeServer, identity: Identity
) -> None:
    hub = join(identity, node.db.outgoing, server.url, server.said, OPTION)

    assert [path for _, path, _ in server.asked] == ["/exchange/v1/authority", ENROL]
    assert identity.has_joined
    assert hub == identity.hub()
    assert (hub.operator, hub.url) == (OPERATOR, server.url)
    assert all(not one.stat().st_mode & 0o077 for one in identity.folder.iterdir())


def test_who_is_not_the_hub_of_the_token_is_told_nothing(
    node: Node, server: FakeServer, identity: Identity, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other", node.clock, "operators")
    with other.locked():
        other.make()
    token = other.token(OPERATOR).text(TOKEN_PREFIX)

    with pytest.raises(Unsafe, match="is not the hub"):
        join(identity, node.db.outgoing, server.url, token, OPTION)

    assert [path for _, path, _ in server.asked] == ["/exchange/v1/authority"]
    assert not identity.has_joined


@pytest.mark.parametrize("token", ["", "cwo1.", "cw1.abc", "cwo1.e30=", "x" * 10_000])
def test_what_is_no_token_is_refused_before_anybody_is_asked(
    node: Node, identity: Identity, token: str
) -> None:
    with pytest.raises(Unsafe, match="no token"):
        join(identity, node.db.outgoing, "https://127.0.0.1:9", token, OPTION)


def test_a_hub_that_refuses_or_is_not_there_leaves_nothing_behind(
    node: Node, server: FakeServer, identity: Identity
) -> None:
    server.token = msgspec.structs.replace(server.token, secret=b"else")
    said = server.said
    server.answer = lambda *_: server.authority.certificate.encode()  # type: ignore[method-assign]
    with pytest.raises(TransientError, match="no certificate"):
        join(identity, node.db.outgoing, server.url, said, OPTION)
    with pytest.raises(TransientError):
        join(identity, node.db.outgoing, "https://127.0.0.1:9", said, OPTION)

    assert not identity.has_joined


def test_a_node_that_lost_its_state_goes_on_behind_what_the_hub_has(
    node: Node, server: FakeServer, identity: Identity
) -> None:
    server.seq, server.prev = node.hub.seq, node.hub.hash = 41, "a" * 64

    join(identity, node.db.outgoing, server.url, server.said, OPTION)
    node.find(match(1))

    assert [one.seq for one in node.send()] == [43]


def test_a_node_that_is_older_than_what_the_hub_has_does_not_number_twice(
    node: Node, server: FakeServer, identity: Identity
) -> None:
    node.find(match(1))
    node.send()
    server.seq = 99

    with pytest.raises(Unsafe, match="99 envelopes of this operator, not those 2 here"):
        join(identity, node.db.outgoing, server.url, server.said, OPTION)

    assert not identity.has_joined


def test_who_joins_again_keeps_its_signing_key(
    node: Node, server: FakeServer, identity: Identity
) -> None:
    before = identity.signing_key().private_bytes_raw()
    for _ in range(2):
        join(identity, node.db.outgoing, server.url, server.said, OPTION)

    assert identity.signing_key().private_bytes_raw() == before
    assert len(identity.hub().signing_keys) == len(identity.own_keys()) == 1


def test_a_node_whose_keys_were_lost_joins_with_new_ones_and_its_ledger_still_proves_itself(
    node: Node, server: FakeServer, identity: Identity
) -> None:
    join(identity, node.db.outgoing, server.url, server.said, OPTION)
    node.find(match(1))
    node.send()
    (identity.folder / "signing.key").unlink()
    server.seq, server.prev = node.hub.seq, node.hub.hash

    join(identity, node.db.outgoing, server.url, server.said, OPTION)

    proof = prove(node.db.outgoing, OPERATOR, identity.own_keys(), identity.hub().keys)
    assert len(identity.own_keys()) == 2
    assert (proof.lines, proof.fault) == (2, "")


# ---- Sending


def drain(link: Link, most: int = 50) -> None:
    for _ in range(most):
        if not link.turn():
            return


def test_findings_reach_the_hub_with_the_operators_certificate(
    node: Node, server: FakeServer, link: Link
) -> None:
    ids = node.find(*(match(number) for number in range(5)))

    drain(link)

    assert sorted(node.hub.documents) == sorted(ids)
    assert {name for _, path, name in server.asked if "messages" in path} == {OPERATOR}
    assert {line.state for line in node.db.outgoing.lines()} == {"receipted"}
    assert node.db.outgoing.link().state == "linked"


def test_without_a_certificate_nothing_is_sent_and_joining_later_is_enough(
    node: Node, server: FakeServer, identity: Identity
) -> None:
    link = Link(node.outbox, identity, node.clock, server.url)
    node.find(match(1))
    drain(link)
    before = node.db.outgoing.link()

    join(identity, node.db.outgoing, server.url, server.said, OPTION)
    drain(link)

    assert (before.state, before.error.split(" (")[0]) == (
        "unreachable",
        "this node has joined no hub yet",
    )
    assert len(node.hub.documents) == 1


@pytest.mark.parametrize("status", [400, 403, 409, 413, 429, 500, 503])
def test_what_the_hub_does_not_take_waits_and_is_said(
    node: Node, server: FakeServer, link: Link, status: int
) -> None:
    node.find(match(1))
    server.status = status
    drain(link)
    state = node.db.outgoing.link()
    server.status = 200
    drain(link)

    assert state.state == ("refused" if status in (400, 403, 409, 413) else "unreachable")
    assert "the hub refuses: no" in state.error
    assert len(node.hub.documents) == 1
    assert node.db.outgoing.link().state == "linked"


def test_an_answer_that_got_lost_is_asked_for_again_with_the_same_bytes(
    node: Node, server: FakeServer, link: Link
) -> None:
    node.find(match(1))
    server.mute = True
    drain(link)
    drain(link)
    server.mute = False
    drain(link)

    assert [one.seq for one in node.hub.taken] == [1, 2]
    assert {line.state for line in node.db.outgoing.lines()} == {"receipted"}


def test_a_connection_that_was_closed_meanwhile_is_made_anew(
    node: Node, server: FakeServer, link: Link
) -> None:
    server.closes = True
    node.find(*(match(number) for number in range(3)))

    drain(link)

    assert len(node.hub.documents) == 3
    assert node.db.outgoing.link().error == ""


def test_a_receipt_that_the_hub_did_not_sign_is_none(
    node: Node, server: FakeServer, link: Link
) -> None:
    node.find(match(1))
    server.forge = lambda receipt: Signed(receipt.data, b"\0" * 64)
    drain(link)
    state = node.db.outgoing.link()

    assert "signature does not hold" in state.error
    assert [line.state for line in node.db.outgoing.lines()] == ["sent"]


def test_a_server_of_another_authority_is_not_the_hub(
    node: Node, server: FakeServer, link: Link, tmp_path: Path
) -> None:
    other = FakeServer(tmp_path / "else", node.hub, node.clock)
    elsewhere = Link(node.outbox, Identity(tmp_path), node.clock, other.url)
    node.find(match(1))

    drain(elsewhere)
    other.close()

    assert other.asked == []
    assert "CERTIFICATE_VERIFY_FAILED" in node.db.outgoing.link().error


# ---- Certificates


def test_at_two_thirds_of_its_life_the_certificate_is_made_anew_on_a_new_key(
    node: Node, server: FakeServer, link: Link, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "RENEW_AGAIN_S", 0.0)
    drain(link)
    before = identity.certificate()
    early = [path for _, path, _ in server.asked]
    node.clock.now += WHILE
    drain(link)
    after = identity.certificate()
    drain(link)

    assert RENEW not in early
    assert [path for _, path, _ in server.asked].count(RENEW) == 1
    assert after.not_valid_after_utc - before.not_valid_after_utc == WHILE
    assert after.public_key() != before.public_key()


# ---- Inbox


def test_what_the_hub_has_for_us_is_kept_once(node: Node, server: FakeServer, link: Link) -> None:
    server.box = [node.hub.says("share", {"n": n}, share_id=f"c-{n}") for n in range(3)]
    drain(link)
    server.box.append(node.hub.says("withdraw", {}, share_id="c-0"))
    drain(link)
    told = node.db.outgoing.inbox()

    assert [(one.n, one.type, one.share_id) for one in told] == [
        (4, "withdraw", "c-0"), (3, "share", "c-2"), (2, "share", "c-1"), (1, "share", "c-0"),
    ]  # fmt: skip


def test_what_somebody_else_put_into_the_inbox_is_not_kept(
    node: Node, server: FakeServer, link: Link
) -> None:
    good = node.hub.says("share", {}, share_id="c-1")
    server.box = [good, FakeHub(node.key).says("share", {}, share_id="c-2"), good]

    drain(link)

    assert [one.n for one in node.db.outgoing.inbox()] == [1]
    assert "signature" in node.db.outgoing.link().error


# ---- The thread


def test_the_thread_sends_by_itself_and_stops(node: Node, server: FakeServer, link: Link) -> None:
    node.find(match(1))
    link.start()
    wait_until(lambda: len(node.hub.documents) == 1)
    link.stop()

    assert len(node.hub.documents) == 1
    assert not link.is_alive()


def test_the_link_speaks_tls_1_3_only(identity: Identity, link: Link) -> None:
    context = identity.context(identity.hub().authority)

    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert context.check_hostname


def test_a_refusal_is_said_in_three_parts() -> None:
    made = links._refused(409, b'{"error": {"what": "a gap", "todo": "Wait."}}', "/x")
    none = links._refused(502, b"<html>", "/x")

    assert (made.what, made.where, made.todo) == ("the hub refuses: a gap", "/x", "Wait.")
    assert none.what == "the hub refuses: status 502"
    assert isinstance(made, RefusalError)


def test_a_hub_file_that_somebody_broke_is_said(identity: Identity, link: Link) -> None:
    (identity.folder / "hub.json").write_text("{")

    with pytest.raises(ConfigError, match="the hub cannot be read"):
        identity.hub()
