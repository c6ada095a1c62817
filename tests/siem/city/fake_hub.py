"""A fake hub: real stores, people and rights; links, answers and duties are what a test says."""

# ruff: noqa: E501 – tables of findings

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

import siem
from cityward import InputError
from siem import duties as legal
from siem.city.commons import CITY_SOC, Write
from siem.city.known import Duty, Link, Lost, Told
from siem.city.proposals import Playbook
from siem.city.reading import AccessLog, Reading, rights_of
from siem.city.sqlite import SqliteCommons
from siem.city.town import Town, read
from siem.store.embedded import NodeDb
from siem.store.protocol import HUB_ROLES, Document, Person, Range, Role, Token
from siem.store.trail import Audited, Proof
from tests.siem.console.fake import HASHER, MEMORY, NOW, PASSWORD

DATA = Path(siem.__file__).parent / "exercise" / "data"
PEOPLE: dict[str, tuple[tuple[Role, ...], str]] = {
    "m.tarn": (("ciso",), ""),
    "a.admin": (("administrator",), ""),
    "b.oth": (("ciso", "administrator"), ""),
    "p.olice": (("authority",), "police"),
    "p.eer": (("peer",), "op-port"),
}
"""Name, roles, audience."""
TOKEN = "j:11:7ce1a04f9be2"


def minutes_ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


def share(id: str, operator: str, minutes: float, **fields: Any) -> Document:
    """A shared finding; fields with `__` for the dots."""
    said = {name.replace("__", "."): value for name, value in fields.items()}
    return {
        "cw.share.id": id,
        "cw.share.revision": 1,
        "cw.share.policy": "9b41" * 16,
        "cw.share.rule": "external-attackers",
        "cw.share.audiences": ["city-soc"],
        "cw.marking.tlp": "amber",
        "cw.marking.pap": "amber",
        "cw.operator": operator,
        "finding.type": "detection",
        "finding.severity": "medium",
        "finding.first_seen": minutes_ago(minutes),
        "finding.last_seen": minutes_ago(minutes / 2),
        "finding.count": 3,
        "finding.mode": "normal",
        "finding.status": "new",
    } | said


def evening() -> list[Document]:
    """What four operators shared in an evening, and the campaign that the hub made of it."""
    metro = {"cw__sector": "transport.public"}
    port = {"cw__sector": "transport.maritime", "cw__asset__type": "vpn_server"}
    grid = {"cw__sector": "energy.electricity"}
    seen = {"source__token": [TOKEN], "threat__technique__id": ["T0886"]}
    peers = {"cw__share__audiences": ["city-soc", "peers", "police"], "cw__marking__tlp": "green"}
    return [
        share("s-1", "op-port", 263, finding__title="Scan from outside", finding__severity="low", **port, **seen),
        share("s-2", "op-metro", 214, finding__title="Scan from outside", finding__severity="low", **metro, **seen),
        share("s-3", "op-grid", 214, finding__title="Sign-in tried with many names", **grid, **seen),
        share("s-4", "op-port", 156, finding__title="Remote access from a new place", **port, **seen),
        share("s-5", "op-grid", 126, finding__title="Remote access from a new place", **grid, **seen),
        share("s-6", "op-port", 126, finding__title="Account used at many gateways", finding__severity="high",
              finding__impact=["loss_of_view"], **port, **seen, **peers),
        share("s-7", "op-metro", 110, finding__title="Jump host reached from outside", **metro, **seen),
        share("s-8", "op-grid", 39, finding__title="Modbus scan inside", finding__severity="high", **grid, **seen),
        share("s-9", "op-grid", 23, finding__title="Modbus write, host is no writer", finding__severity="critical",
              finding__impact=["loss_of_control"], cw__asset__type="plc", network__protocol="modbus",
              finding__description="An unknown host wrote 12 registers of a heat station.", **grid, **seen),
        share("s-10", "op-metro", 304, finding__title="Passenger signs do not answer, 14 of 62",
              finding__impact=["loss_of_availability"], cw__asset__type="message_sign", **metro),
        share("s-11", "op-city", 139, finding__title="Recorder is not reachable", finding__severity="high",
              finding__impact=["loss_of_view"], cw__asset__type="vms_server", cw__sector="administration.local"),
        share("s-12", "op-metro", 60, finding__title="Cabinet opened", finding__severity="low",
              cw__asset__type="signal_controller", finding__mode="exercise", **metro),
        share("c-1", "city", 263, finding__title="Edge, remote access, then OT write", finding__type="correlation",
              finding__severity="critical", finding__confidence=0.86, finding__last_seen=minutes_ago(23),
              finding__description="The same outside address was seen by three operators within four hours.",
              threat__technique__id=["T0886", "T0855"], cw__campaign__join="token", cw__campaign__tokens=[TOKEN],
              cw__campaign__operators=["op-grid", "op-metro", "op-port"], rule__name="One outsider at two operators",
              cw__campaign__sectors=["energy.electricity", "transport.maritime", "transport.public"],
              cw__share__derived_from=[f"s-{number}" for number in range(1, 10)], **peers),
    ]  # fmt: skip


LINKS = [
    Link(
        operator=operator,
        name=name,
        sector=sector,
        state="linked",
        enrolled=minutes_ago(60 * 24 * 19),
        heartbeat=minutes_ago(0.4),
        heard=minutes_ago(0.1),
        seq=1_204,
        version="1.0",
        rules="2026.11.2+9b41e07c55",
        policy="c0ffee" * 10,
        shares=shares,
        withdrawals=2,
        lag_s=2.3,
        certificate_until=NOW + timedelta(days=days),
        ledger_head="77ab" * 16,
        countersigned=minutes_ago(14),
        lost=lost,
    )
    for operator, name, sector, shares, days, lost in (
        ("op-city", "City of Saltmere", "administration.local", 14, 11,
         (Lost("gauges", "no data from 3 of 3", minutes_ago(41)),)),
        ("op-grid", "Saltmere Power and Heat", "energy.electricity", 212, 20, ()),
        ("op-metro", "Saltmere Metro", "transport.public", 4_118, 5,
         (Lost("vehicles", "late by 6 min", minutes_ago(139), is_late=True),)),
        ("op-port", "Port of Saltmere", "transport.maritime", 96, 24, ()),
    )
]  # fmt: skip
SILENT = Link(
    operator="op-water",
    name="Saltmere Water",
    sector="water.drinking",
    state="silent",
    enrolled=minutes_ago(60 * 24 * 90),
    heartbeat=minutes_ago(41),
    seq=88,
    gaps=1,
    refused=3,
    shares=7,
    certificate_until=NOW + timedelta(days=9),
)


class FakeHub:
    """A hub whose operators are made up."""

    operator = "city"
    sector = ""
    secret = b"only for tests, and long enough: of a hub"

    def __init__(self, shares: Sequence[Document] = (), town: Town | None = None) -> None:
        self.clock = NOW
        self._folder = tempfile.TemporaryDirectory(prefix="cityward-hub-", dir=MEMORY)
        folder = Path(self._folder.name)
        self.db = NodeDb(folder / "node.db", b"city", clock=self.now, is_hub=True)
        self.accounts = self.db.accounts
        self.accounts.offers = HUB_ROLES
        for name, (roles, audience) in PEOPLE.items():
            self.accounts.add(Person(name, roles, HASHER.hash(PASSWORD), audience=audience))
        self.commons = SqliteCommons(folder / "commons.db", clock=self.now)
        self.records = self.commons.records
        self.access = AccessLog(self.records, self.now)
        self.town = town or read(DATA / "saltmere-services.yml", DATA / "saltmere.geojson")
        self.linked: list[Link] = []
        self.answers: list[Told] = []
        self.proposed: list[tuple[str, str, tuple[str, ...], str, str]] = []
        self.clocks: list[Duty] = []
        self.deadlines = legal.load()
        self.cases = self.db.cases
        self.put(shares)

    def put(self, shares: Sequence[Document]) -> None:
        for at in range(0, len(shares), 1000):
            writes = [Write(one, 1) for one in shares[at : at + 1000]]
            outcomes = self.commons.put(writes)
            assert set(outcomes) <= {"written"}, outcomes

    def give_token(self, secret: str, person: str, *scopes: str) -> None:
        digest = hashlib.sha256(secret.encode()).hexdigest()
        token = Token(digest[:12], person, f"{secret} of {person}", scopes)
        self.accounts.add_token(digest, token, "a.admin", NOW)

    def now(self) -> datetime:
        return self.clock

    def audit(self, by: str, action: str, about: str, now: datetime) -> None:
        self.db.audit(by, action, about, now)

    def trail(
        self, words: str, span: Range, limit: int = 50, offset: int = 0
    ) -> tuple[Sequence[Audited], int]:
        return self.db.trail(words, span, limit, offset)

    def audit_proof(self) -> Proof:
        return self.db.audit_proof()

    def reading(self, person: Person) -> Reading:
        return Reading(self.commons, rights_of(person), self.access.of(person.name), self.now)

    def links(self) -> list[Link]:
        return self.linked

    def told(self, campaign_id: str) -> list[Told]:
        return self.answers

    def proposable(self) -> list[Playbook]:
        return [Playbook("external-scanner", "External scanner (block at nftables for 1 h)")]

    def concerned(self, campaign_id: str) -> list[str]:
        return list(dict.fromkeys(one.operator for one in self.answers))

    def propose(
        self, campaign_id: str, playbook: str, operators: Sequence[str], reason: str, by: str
    ) -> None:
        if not operators:
            raise InputError("no operator is chosen", "operator", "Choose one.")
        self.proposed.append((campaign_id, playbook, tuple(operators), reason, by))

    def duties(self, person: Person) -> list[Duty]:
        return self.clocks

    def case_findings(self, ids: Sequence[str]) -> list[Document]:
        return [one for id in ids if (one := self.commons.get(CITY_SOC, id)) is not None]

    def facts(self) -> Mapping[str, str]:
        return {"disk": "118 days", "store": "commons.db"}


def changed(link: Link, **fields: Any) -> Link:
    return msgspec.structs.replace(link, **fields)


def saltmere() -> FakeHub:
    """The hub of Saltmere in the night of an evening."""
    hub = FakeHub(evening())
    hub.linked = [*LINKS, SILENT]
    hub.answers = [
        Told("op-grid", "Seen by three operators; look at remote access", minutes_ago(70), "Closed it at 02:40", minutes_ago(34)),
        Told("op-port", "Seen by three operators; look at remote access", minutes_ago(70), "Not ours, we look on", minutes_ago(50)),
        Told("op-metro", "Seen by three operators; look at remote access", minutes_ago(70)),
    ]  # fmt: skip
    return hub


def duties() -> list[Duty]:
    """Open clocks."""
    return [
        Duty(incident="i-1", operator="op-port", duty="NIS2 incident notification, 72 h",
             began=minutes_ago(60 * 66.8), due=minutes_ago(-312), draft="draft ready, not submitted"),
        Duty(incident="i-2", operator="op-grid", duty="NIS2 early warning, 24 h",
             began=minutes_ago(16), due=minutes_ago(-1424), draft="draft 4 of 6 fields"),
        Duty(incident="i-3", operator="op-metro", duty="GDPR art. 33, 72 h",
             began=minutes_ago(60 * 42.3), due=minutes_ago(-60 * 29.7), draft="with the data officer"),
    ]  # fmt: skip
