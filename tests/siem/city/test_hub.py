"""A whole hub, and operators' ends as they are in a node, over mutual TLS on loopback."""

from __future__ import annotations

import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec
import pytest

from siem import library
from siem.assembly import db_of
from siem.assets import from_settings
from siem.city import hub as hubs
from siem.city.authority import Operators
from siem.city.campaigns import TOLD
from siem.city.commons import CITY_SOC
from siem.cli import run
from siem.common_store import commons_of
from siem.config import Cluster, Settings, load
from siem.config import Hub as HubSettings
from siem.hub import EXCHANGE, hub_of, listen, view_of
from siem.sharing import link as links
from siem.sharing.drop import Drop
from siem.sharing.envelope import split
from siem.sharing.external import Plan
from siem.sharing.identity import Identity
from siem.sharing.link import Link, join
from siem.sharing.outbox import Outbox
from siem.sharing.tokens import Hmac, Tokens
from siem.store.embedded import NodeDb
from siem.store.protocol import Document, Person, Range
from siem.store.samples import Release
from tests.opensearch import Server
from tests.programs import PATIENCE_S, is_crowded
from tests.siem.sharing.findings import accepted, written
from tests.siem.sharing.standin import match

ROOT = b"r" * 32
RULE = {
    "name": "external",
    "when": {"finding.severity": ["high"]},
    "to": ["city-soc", "peers"],
    "tlp": "green",
    "fields": {
        "finding.title": "template",
        "finding.severity": "keep",
        "finding.first_seen": "round",
        "finding.last_seen": "round",
        "source.ip": "join",
    },
}
ROOT_FOLDER = Path(__file__).parent.parent.parent.parent


class Operator:
    """An operator's end: its store, its outbox under a real policy, and its link."""

    def __init__(self, folder: Path, name: str, operators: Operators, url: str) -> None:
        folder.mkdir()
        self.name = name
        self.db = NodeDb(folder / "node.db", name.encode())
        identity = Identity(folder)
        text = written([RULE], policy=f"{name}/test", operator=name)
        tokens = Tokens(name.encode() * 4, Hmac(ROOT))
        self.policy = accepted(text, Plan(["10.0.0.0/8"]), tokens)
        self.outbox = Outbox(
            self.db.outgoing, name, identity.signing_key(), lambda: self.policy, clock=now
        )
        token = operators.add(name, {"op-metro": "transport.public"}.get(name, "other"))
        join(identity, self.db.outgoing, url, token, "--token-file")
        self.link = Link(self.outbox, identity, now, url)
        self.batch = 0

    def find(self, address: str) -> str:
        """A finding about an outside address; its id."""
        self.batch += 1
        one = match(self.batch, at=now())
        event = msgspec.structs.replace(
            one.events[0], fields={**one.events[0].fields, "source.ip": address}
        )
        one = msgspec.structs.replace(one, events=(event,), fields={"source.ip": address})
        (id,) = self.db.keep([one], self.batch, now=now())
        return id

    def close(self) -> None:
        self.link.stop()
        self.db.close()


def now() -> datetime:
    return datetime.now(UTC)


def until(what: Callable[[], object]) -> float:
    """Wait until something is so; how many seconds it took."""
    begin = time.monotonic()
    while not what():
        assert time.monotonic() - begin < PATIENCE_S, "it never came"
        time.sleep(0.02)
    return time.monotonic() - begin


def settings(tmp_path: Path, cluster: Cluster | None = None) -> Settings:
    said = HubSettings(listen="127.0.0.1:0", drop_dir=str(tmp_path / "drop"))
    return Settings(operator="city", state_dir=str(tmp_path / "hub"), hub=said, cluster=cluster)


class Running:
    """A hub that runs in this process."""

    def __init__(self, tmp_path: Path, cluster: Cluster | None = None) -> None:
        said = settings(tmp_path, cluster)
        assert said.hub is not None
        self.hub = hub_of(said)
        listening = listen(said)
        self.url = f"https://localhost:{listening.getsockname()[1]}"
        self.hub.start(listening, said.hub.names)
        self._thread = threading.Thread(target=self.hub.run)
        self._thread.start()

    def campaigns(self) -> list[Document]:
        page = self.hub.commons.search(CITY_SOC, "cw.campaign.join:*", Range())
        return list(page.rows)

    def close(self) -> None:
        self.hub.stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(links, "INBOX_EVERY_S", 0.2)
    monkeypatch.setattr(hubs, "SAMPLES_EVERY_S", 0.2)
    made = Running(tmp_path)
    yield made
    made.close()


@pytest.fixture
def both(running: Running, tmp_path: Path) -> Iterator[tuple[Operator, Operator]]:
    two = tuple(
        Operator(tmp_path / name, name, running.hub.operators, running.url)
        for name in ("op-metro", "op-grid")
    )
    for one in two:
        one.link.start()
    yield two[0], two[1]
    for one in two:
        one.close()


def test_one_outside_address_at_two_nodes_becomes_a_campaign_and_is_gone_when_withdrawn(
    running: Running, both: tuple[Operator, Operator], tmp_path: Path
) -> None:
    metro, grid = both
    metro.find("203.0.113.9")
    grid.find("198.51.100.77")
    until(lambda: len(running.hub.exchange.links()) == 2 and shares_of(running) == 2)
    assert running.campaigns() == []

    grid.find("203.0.113.9")
    until(running.campaigns)
    (found,) = running.campaigns()
    assert found["cw.campaign.operators"] == ["op-grid", "op-metro"]
    assert len(found["cw.share.derived_from"]) == 2
    assert "203.0.113" not in repr(found)

    # Each was told of its own share, and nothing of the other.
    until(lambda: metro.db.outgoing.inbox() and grid.db.outgoing.inbox())
    (letter,) = metro.db.outgoing.inbox()
    assert letter.share_id == found["cw.share.id"]
    assert "op-grid" not in repr(letter)

    view = view_of(settings(tmp_path))
    # The letter goes out before the hub writes down that it did.
    both_told = {"op-grid", "op-metro"}
    until(lambda: {one.operator for one in view.told(found["cw.share.id"])} == both_told)
    reading = view.reading(Person("c.iso", ("ciso",), ""))
    assert reading.get(found["cw.share.id"]) == found
    view.close()

    share = next(one for one in found["cw.share.derived_from"] if one_of(metro, one))
    metro.db.outgoing.withdraw("m.rossi", "error", now(), share_id=share)
    until(lambda: not running.campaigns())
    until(lambda: len(grid.db.outgoing.inbox()) == 2)
    until(lambda: last_words(running) == ["withdrawn", "withdrawn"])


def test_a_sample_goes_from_one_node_to_the_other_and_is_taken_back(
    running: Running, both: tuple[Operator, Operator]
) -> None:
    metro, grid = both
    rule = min(one.id for one in library.shipped().rules)
    event = {"@timestamp": "2026-03-01T10:00:00Z", "source.ip": "203.0.113.1"}
    payload = msgspec.json.encode({"rule": rule, "events": [event]})
    metro.db.samples.release(
        Release(
            id=str(uuid.uuid4()), finding="f-1", rule=rule, policy=metro.policy.hash,
            payload=payload, people=("ada",), reason="it was real", time=now(), changed=now(),
        )
    )  # fmt: skip

    until(lambda: grid.db.samples.foreign(rule))
    # The other may have it before the hub's receipt has come to the one that sent it.
    until(lambda: [one.state for one in metro.db.samples.releases()] == ["taken"])
    (out,) = metro.db.samples.releases()
    assert metro.db.samples.foreign() == []

    metro.db.samples.withdraw(out.id, "ada", "we were wrong", now())
    until(lambda: not grid.db.samples.foreign())
    assert grid.db.rulebook.protected() == []


def last_words(running: Running) -> list[str]:
    """What the hub wrote down that it told operators last."""
    return [one.value["what"] for _, one in running.hub.commons.records.all(TOLD)]


def has(running: Running, shares: int | None = None, campaigns: int | None = None) -> bool:
    if shares is not None:
        return shares_of(running) == shares
    return len(running.campaigns()) == campaigns


def is_gone(path: Path) -> bool:
    return not path.exists()


def shares_of(running: Running) -> int:
    return running.hub.commons.search(CITY_SOC, "not cw.operator:city", Range()).total


def one_of(operator: Operator, share_id: str) -> bool:
    return any(one.share_id == share_id for one in operator.db.outgoing.lines())


@pytest.mark.slow
def test_a_hub_on_a_cluster_does_the_same_and_its_standby_takes_over(
    opensearch: Server, index_prefix: str, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text(opensearch.password)
    cluster = Cluster(
        url=opensearch.url, user=opensearch.user, secret_file=str(secret),
        ca_file=str(opensearch.ca_file), prefix=index_prefix,
    )  # fmt: skip
    first = Running(tmp_path, cluster)
    until(lambda: first.hub.lease.is_active)
    two = [
        Operator(tmp_path / name, name, first.hub.operators, first.url)
        for name in ("op-metro", "op-grid")
    ]
    for one in two:
        one.find("203.0.113.9")
        while one.link.turn():
            pass
    until(first.campaigns)
    before = first.campaigns()
    shutil.copytree(tmp_path / "hub" / EXCHANGE, tmp_path / "other" / "hub" / EXCHANGE)
    standby = Running(tmp_path / "other", cluster)
    assert not standby.hub.lease.is_active

    first.close()
    until(lambda: standby.hub.lease.is_active and len(standby.hub.joiner) == 2)
    assert standby.campaigns() == before
    standby.close()
    for one in two:
        one.close()


def test_from_a_finding_at_a_node_to_the_campaign(
    running: Running, both: tuple[Operator, Operator]
) -> None:
    metro, grid = both
    took = []
    for number in range(6):
        address = f"45.{number}.7.9"
        metro.find(address)
        until(partial(has, running, shares=2 * number + 1))
        grid.find(address)
        took.append(until(partial(has, running, campaigns=number + 1)))

    worst = statistics.quantiles(took, n=20)[-1]
    print(f"finding to campaign: median {statistics.median(took):.2f} s, 95 % {worst:.2f} s")
    assert worst < 5 or is_crowded()


def test_a_hub_that_was_stopped_goes_on_with_the_same_campaigns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Running(tmp_path)
    two = [
        Operator(tmp_path / name, name, first.hub.operators, first.url)
        for name in ("op-metro", "op-grid")
    ]
    for one in two:
        one.find("203.0.113.9")
        while one.link.turn():
            pass
    until(first.campaigns)
    before = first.campaigns()
    first.close()

    again = Running(tmp_path)
    until(lambda: len(again.hub.joiner) == 2)
    time.sleep(0.5)
    assert again.campaigns() == before
    again.close()
    for one in two:
        one.close()


def test_what_comes_too_early_into_the_drop_waits_for_the_one_before_it(
    running: Running, tmp_path: Path
) -> None:
    one = Operator(tmp_path / "op-metro", "op-metro", running.hub.operators, running.url)
    one.find("203.0.113.9")
    carrier = Drop(one.outbox, tmp_path / "carried", Identity(tmp_path), now)
    while carrier.turn():
        pass
    one.close()
    late, early = sorted((tmp_path / "carried").glob("*.cwe"))
    drop = tmp_path / "drop"
    drop.mkdir()
    early.rename(drop / early.name)
    running.hub.take_drop()
    has_waited = (drop / early.name).exists()
    late.rename(drop / late.name)

    until(partial(is_gone, drop / early.name))

    assert has_waited
    assert not list(drop.glob("*.refused"))
    assert len(list((drop / "answers").iterdir())) == 2


def test_what_lies_in_the_drop_is_taken_and_joined(running: Running, tmp_path: Path) -> None:
    two = [
        Operator(tmp_path / name, name, running.hub.operators, running.url)
        for name in ("op-metro", "op-grid")
    ]
    (tmp_path / "drop").mkdir()
    for one in two:
        one.find("203.0.113.9")
        one.outbox.offer()
        while (signed := one.outbox.next()) is not None:
            path = tmp_path / "drop" / f"{one.name}.{1:015d}.cwe"
            path.write_bytes(signed.lines())
            until(partial(is_gone, path))
            answers = sorted((tmp_path / "drop" / "answers").glob(f"{one.name}*.cwr"))
            receipt = split(answers[-1].read_bytes())
            one.outbox.receipted(receipt, running.hub.operators.signing_key.public_key())
        one.close()

    until(running.campaigns)


# ---- As a person runs it


class Process:
    """`cityward hub` in a folder that `cityward init --hub` made."""

    def __init__(self, folder: Path) -> None:
        words = [sys.executable, "-m", "siem.cli", "hub", "-c", str(folder / "cityward.toml")]
        self._child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT_FOLDER)
        self.said: list[str] = []
        threading.Thread(target=self._hear, daemon=True).start()
        until(lambda: self.at("exchange") and self.at("console"))

    def _hear(self) -> None:
        assert self._child.stderr is not None
        self.said.extend(iter(self._child.stderr.readline, ""))

    def at(self, what: str) -> str:
        """Address that it said."""
        lines = [line.split()[1] for line in [*self.said] if line.startswith(f"{what} ")]
        return lines[-1] if lines else ""

    def end(self, how: signal.Signals) -> int:
        self._child.send_signal(how)
        return self._child.wait(PATIENCE_S)


def test_a_hub_is_made_run_killed_and_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "city"
    assert run(["init", str(folder), "--hub", "--yes", "--name", "Saltmere"]) == 0
    file = folder / "cityward.toml"
    text = file.read_text().replace("8443", "0").replace("port = 8765", "port = 0")
    file.write_text(text)
    said = load(file)
    first = Process(folder)
    commons = commons_of(said, now)
    operators = Operators(commons.records, said.state_path / EXCHANGE, now)
    two = [
        Operator(
            tmp_path / name, name, operators, first.at("exchange").replace("127.0.0.1", "localhost")
        )
        for name in ("op-metro", "op-grid")
    ]
    for one in two:
        one.find("203.0.113.9")
        while one.link.turn():
            pass

    def campaigns() -> list[Document]:
        return list(commons.search(CITY_SOC, "cw.campaign.join:*", Range()).rows)

    until(campaigns)
    before = campaigns()
    with urllib.request.urlopen(first.at("console") + "sign-in") as answer:
        assert answer.status == 200
    assert first.end(signal.SIGKILL) == -signal.SIGKILL

    again = Process(folder)
    time.sleep(1)
    assert campaigns() == before
    assert again.end(signal.SIGTERM) == 0
    commons.close()
    for one in two:
        one.close()


def test_a_hub_and_a_node_offer_their_own_roles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, more in (("hub", ["--hub"]), ("node", ["--sector", "other"])):
        assert run(["init", str(tmp_path / name), "--yes", *more]) == 0

    def add(where: str, name: str, *words: str) -> int:
        file = str(tmp_path / where / "cityward.toml")
        return run(["person", "add", name, *words, "-c", file])

    assert add("hub", "a", "--role", "authority", "--audience", "police") == 0
    assert add("hub", "b", "--role", "peer", "--audience", "op-metro") == 0
    assert add("hub", "c") == 0
    refused = [
        add("hub", "d", "--role", "analyst"),
        add("hub", "e", "--role", "authority"),
        add("hub", "f", "--role", "authority", "--audience", "press"),
        add("hub", "g", "--role", "ciso", "--audience", "police"),
        add("node", "h", "--role", "ciso"),
    ]
    assert 0 not in refused
    said = load(tmp_path / "hub" / "cityward.toml")
    db = db_of(said, from_settings(said), now)
    people = {one.name: (one.roles, one.audience) for one in db.people()}
    db.close()
    assert people["a"] == (("authority",), "police")
    assert people["b"] == (("peer",), "op-metro")
    assert people["c"] == (("ciso",), "")
    assert sorted(len(roles) for roles, _ in people.values()) == [1, 1, 1, 2]


def test_a_node_is_no_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", str(tmp_path / "node"), "--yes", "--sector", "other"]) == 0

    assert run(["hub", "-c", str(tmp_path / "node" / "cityward.toml")]) == 4
    assert "these are the settings of a node" in capsys.readouterr().err


def test_a_hub_is_no_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cityward.toml"
    file.write_text(f'operator = "city"\nstate_dir = "{tmp_path}"\n[hub]\n')

    assert run(["run", "-c", str(file)]) == 4
    assert "these are the settings of a hub" in capsys.readouterr().err
