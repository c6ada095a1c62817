"""Nothing that operators keep back is in anything that a hub stores, logs, says or exports."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from siem.city.authority import Operators
from siem.hub import view_of
from siem.sharing import link as links
from siem.sharing.compiler import BASELINE
from siem.sharing.external import Plan
from siem.sharing.policy import Policy
from siem.sharing.share import share_id
from siem.sharing.tokens import Hmac, Tokens
from siem.sharing.wire import Heartbeat, LostSource
from siem.store.protocol import Person, Range
from tests.siem.city.test_hub import ROOT, Operator, Running, now, settings, shares_of, until
from tests.siem.sharing.findings import accepted
from tests.siem.sharing.leaks import Leak, leaks, leaks_in_files
from tests.siem.sharing.standin import match

EXAMPLE = (BASELINE.parent / "example.yml").read_text(encoding="utf-8")
ATTACKER, MOVED = "203.0.113.77", "203.0.113.201"
CANARY = "198.51.100.133"
PLACES = ("50.123456,4.654321", "50.129876,4.651234")


class Careless:
    """Only hashes, as somebody may think is enough."""

    def token(self, name: str, epoch: int) -> str:
        return hashlib.sha256(name.encode()).hexdigest()


class Site(Operator):
    """An operator under the example policy, whose findings are full of what has to stay."""

    def __init__(self, folder: Path, name: str, operators: Operators, url: str) -> None:
        super().__init__(folder, name, operators, url)
        self.secrets: dict[str, list[str]] = {}
        self.use(Hmac(ROOT))
        lost = LostSource("s-17", "no data", now())
        self.outbox._health = lambda: Heartbeat(version="9", running=3, lost=(lost,))

    def use(self, joiner: Hmac | Careless) -> None:
        tokens = Tokens(self.name.encode() * 4, joiner)
        policy: Policy = accepted(EXAMPLE, Plan(["10.0.0.0/8"]), tokens)
        self.outbox._policy = lambda: policy

    def meet(self, address: str, severity: str = "high", **said: str) -> str:
        """A finding; its share id."""
        self.batch += 1
        person, host = f"m.rossi-{self.name}-{self.batch}", f"rtu-{self.batch}.{self.name}.lan"
        inside = f"10.{len(self.name)}.{self.batch}.213"
        fields = {
            "source.ip": address,
            "source.mac": f"02-00-5e-10-{self.batch:02x}-{len(self.name):02x}",
            "destination.ip": inside,
            "user.name": person,
            "host.name": host,
            "cw.asset.asset_id": f"asset-{self.name}-{self.batch}",
            "url.original": f"https://{host}/staff/{person}?pin=4711-{self.batch}",
            "url.path": f"/staff/{person}",
            "phys.location": PLACES[self.batch % 2],
            **said,
        }
        for key, value in fields.items():
            self.secrets.setdefault(key, []).append(value)
        self.secrets.setdefault("network", []).append(address.rpartition(".")[0] + ".0/24")
        one = match(self.batch, severity=severity, at=now())  # type: ignore[arg-type]
        event = msgspec.structs.replace(one.events[0], fields={**one.events[0].fields, **fields})
        one = msgspec.structs.replace(
            one, title=f"Login of {person} from {address}", description=f"{person} at {host}",
            events=(event,), fields=fields,
        )  # fmt: skip
        (id,) = self.db.keep([one], self.batch, now=now())
        return share_id(id)


class Heard(logging.Handler):
    """What the hub's threads log; those of the nodes may say what is theirs."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.threadName not in ("link", "MainThread"):
            self.lines.append(logging.Formatter().format(record))


@pytest.fixture
def heard() -> Iterator[Heard]:
    made, root = Heard(), logging.getLogger()
    level = root.level
    root.addHandler(made)
    root.setLevel(logging.DEBUG)
    yield made
    root.removeHandler(made)
    root.setLevel(level)


def found(tmp_path: Path, heard: Heard, secrets: dict[str, list[str]]) -> list[Leak]:
    """What of it a hub has: in its files, in its log, and in all that it answers."""
    view = view_of(settings(tmp_path))
    said: dict[str, bytes] = {"log": "\n".join(heard.lines).encode()}
    for person in (
        Person("c.iso", ("ciso",), ""),
        Person("p.eer", ("peer",), "", audience="op-metro"),
        Person("a.uth", ("authority",), "", audience="csirt"),
    ):
        reading = view.reading(person)
        rows = reading.search("", Range(), limit=1_000).rows
        tallies = [reading.tally("", Range(), one) for one in ("rule.id", "finding.type")]
        said[person.name] = msgspec.json.encode([rows, tallies])
    campaigns = view.reading(Person("c.iso", ("ciso",), "")).search("cw.campaign.join:*", Range())
    told = [list(view.told(one["cw.share.id"])) for one in campaigns.rows]
    said["pages"] = msgspec.json.encode([view.links(), told, view.trail("", Range(), 1_000)])
    view.close()
    return leaks(secrets, said) + leaks_in_files(secrets, tmp_path / "hub")


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(links, "INBOX_EVERY_S", 0.2)
    made = Running(tmp_path)
    yield made
    made.close()


@pytest.fixture
def both(running: Running, tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    two = tuple(
        Site(tmp_path / name, name, running.hub.operators, running.url)
        for name in ("op-metro", "op-grid")
    )
    for one in two:
        one.link.start()
    yield two[0], two[1]
    for one in two:
        one.close()


def test_a_whole_hub_has_nothing_of_what_stays_and_a_canary_is_caught(
    heard: Heard, running: Running, both: tuple[Site, Site], tmp_path: Path
) -> None:
    metro, grid = both
    # The same attacker at both, one that moves, one that is alone, and what must not leave.
    first = metro.meet(ATTACKER)
    grid.meet(ATTACKER)
    grid.meet(MOVED, "critical")
    metro.meet("192.0.2.199")
    metro.meet("192.0.2.55", "low")
    until(running.campaigns)
    until(lambda: shares_of(running) == 4)
    until(lambda: metro.db.outgoing.inbox() and grid.db.outgoing.inbox())
    metro.db.outgoing.withdraw("m.rossi-by", "error", now(), share_id=first)
    until(lambda: shares_of(running) == 3)
    running.hub.exchange.expire(now())

    secrets = {name: metro.secrets[name] + grid.secrets[name] for name in metro.secrets}
    assert found(tmp_path, heard, secrets | {"by": ["m.rossi-by"]}) == []
    for ours, theirs in ((metro, grid), (grid, metro)):
        letters = {str(one.n): one.data for one in ours.db.outgoing.inbox(1_000)}
        assert leaks({"operator": [theirs.name], **theirs.secrets}, letters) == []

    grid.use(Careless())
    grid.meet(CANARY)
    until(lambda: shares_of(running) == 4)
    caught = found(tmp_path, heard, {"source.ip": [CANARY]})
    assert {one.form for one in caught} == {"sha256 with its type"}
    places = {one.where.split()[0].removesuffix("-wal") for one in caught}
    assert places >= {"c.iso", "commons.db"}
