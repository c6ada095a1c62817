"""Nobody reaches what is another's: who may open which route, and answers that tell nothing.

*Two worlds*: one hub holds only what somebody may see, the other one everything. Whatever they ask,
both answer with the same bytes.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from siem import duties
from siem.city.cluster import ClusterCommons, Names, prepare
from siem.city.commons import Commons, Write
from siem.city.hub import HubView
from siem.city.port import Limits, make_app
from siem.city.reading import AccessLog
from siem.city.sqlite import SqliteCommons
from siem.city.town import Town
from siem.console.access import Access
from siem.console.app import make_city_app
from siem.sharing.envelope import key_id, sign
from siem.store.embedded import NodeDb
from siem.store.opensearch import OpenSearchCluster
from siem.store.protocol import HUB_ROLES, Document, Person, Role, Token
from tests.opensearch import Server, forget
from tests.siem.city.city import FINDING, Hub, Node, share_id
from tests.siem.console.fake import HASHER, PASSWORD
from tests.siem.console.test_rights import routes

NOW = datetime(2026, 3, 14, 12, tzinfo=UTC)
PEOPLE: dict[str, tuple[tuple[Role, ...], str]] = {
    "ciso": (("ciso",), ""),
    "peer": (("peer",), "op-port"),
    "authority": (("authority",), "police"),
    "administrator": (("administrator",), ""),
}
READERS = ("ciso", "peer", "authority")
ALL = (*READERS, "administrator")
ADMIN = ("administrator",)
RIGHTS: dict[str, tuple[tuple[str, ...], str]] = {
    "GET /city": (READERS, "read"),
    "GET /campaigns": (READERS, "read"),
    "GET /campaigns/{campaign_id}": (READERS, "read"),
    "GET /shared": (READERS, "read"),
    "GET /shared/{share_id}": (READERS, "read"),
    "GET /operators": (("ciso", "administrator"), "read"),
    "GET /operators/{name}": (("ciso", "administrator"), "read"),
    "GET /duties": (("ciso",), "read"),
    "GET /incidents": (("ciso",), "read"),
    "GET /incidents/{incident_id}": (("ciso",), "read"),
    "GET /incidents/{incident_id}/draft/{duty_id}": (("ciso",), "read"),
    "POST /incidents/change": (("ciso",), "triage"),
    "POST /campaigns/propose": (("ciso",), "respond"),
    "GET /views": (ALL, "read"),
    "GET /keys": (ALL, "read"),
    "GET /password": (ALL, "read"),
    "GET /api": (ALL, "read"),
    "GET /api/openapi": (ALL, "read"),
    "GET /people": (ADMIN, "admin"),
    "GET /people/{name}": (ADMIN, "admin"),
    "GET /tokens": (ADMIN, "admin"),
    "GET /audit": (ADMIN, "admin"),
    "POST /people/change": (ADMIN, "admin"),
    "POST /tokens/change": (ADMIN, "admin"),
    "POST /views/change": (ALL, ""),
    "POST /password": (ALL, ""),
    "POST /settings": (ALL, "read"),
}
"""Roles that may, and the scope that a token needs for it; none: no token may."""
OPEN = {"GET /", "GET /sign-in", "POST /sign-in", "POST /sign-out"}
"""Routes for whoever comes."""
EXCHANGE = {
    "GET /exchange/v1/authority": "anybody",
    "POST /exchange/v1/enrol": "anybody",
    "POST /exchange/v1/messages": "operator",
    "GET /exchange/v1/inbox": "operator",
    "POST /exchange/v1/renew": "operator",
    "GET /exchange/v1/mirror": "operator",
    "GET /exchange/v1/access": "operator",
}
"""Who may: an operator with a certificate that is in force, or whoever brings a token."""
TOKEN = "j:687:00ff00ff00ff00ff00ff00ff00ff00ff"
FOREIGN, NONE = "0f0e0d0c-0000-4000-8000-000000000001", "0f0e0d0c-0000-4000-8000-00000000000f"
CAMPAIGN = "0f0e0d0c-0000-4000-8000-000000000002"


def share(id: str, operator: str, *audiences: str, tlp: Any = "green", **said: Any) -> Document:
    return {
        "cw.share.id": id,
        "cw.share.revision": 1,
        "cw.share.policy": "feed" * 16,
        "cw.share.audiences": list(audiences),
        "cw.operator": operator,
        "cw.sector": "transport.public",
        "cw.marking.tlp": tlp,
        "finding.type": "detection",
        "finding.title": f"Zebra signals of {operator}",
        "finding.severity": "critical",
        "finding.mode": "normal",
        "finding.first_seen": NOW - timedelta(minutes=30),
        "finding.last_seen": NOW - timedelta(minutes=10),
        "source.token": [TOKEN],
        **said,
    }


def campaign(id: str, *audiences: str, **said: Any) -> Document:
    own = {"cw.campaign.join": "token", "finding.title": "Same indicator", "source.token": []}
    return share(id, "city", *audiences, **own, **said)


WHOLE = campaign(
    CAMPAIGN, "city-soc", tlp="amber+strict",
    **{"cw.campaign.operators": ["op-metro", "op-port"], "cw.campaign.tokens": [TOKEN],
       "cw.share.derived_from": [FOREIGN, "port-1"]},
)  # fmt: skip
SEEN: dict[str, Sequence[Document]] = {
    "peer": (
        share("port-1", "op-port", "city-soc"),
        share("port-2", "op-port", "city-soc", tlp="amber+strict"),
        campaign("campaign-peers", "peers"),
    ),
    "authority": (
        share("metro-police", "op-metro", "city-soc", "police"),
        campaign("campaign-police", "police"),
    ),
    "administrator": (),
}
"""What each may see."""
HIDDEN = (
    share(FOREIGN, "op-metro", "city-soc", "peers"),
    share("metro-amber", "op-metro", "city-soc", "police", tlp="amber"),
    share("grid-1", "op-grid", "city-soc", tlp="amber+strict"),
    share("flood", "op-water", "prefecture", "civil-protection"),
    WHOLE,
)
"""What none of them may see."""
EVERYTHING = [*HIDDEN, *(one for seen in SEEN.values() for one in seen)]

QUERIES = (
    "",
    "zebra",
    "signals of op-metro",
    "op-metro",
    TOKEN,
    "00ff00ff",
    f'source.token:"{TOKEN}"',
    "source.token:*",
    f'cw.campaign.tokens:"{TOKEN}"',
    "cw.operator:op-metro",
    "cw.operator:op-*",
    "cw.operator:*",
    "not cw.operator:op-port",
    "cw.campaign.operators:op-metro",
    f'cw.share.derived_from:"{FOREIGN}"',
    f'cw.share.id:"{FOREIGN}"',
    "cw.share.id:metro*",
    f"cw.share.policy:{'feed' * 16}",
    "cw.share.audiences:city-soc",
    "cw.marking.tlp:amber",
    'cw.marking.tlp:"amber+strict"',
    "finding.title:*metro*",
    "finding.severity:critical",
    "finding.first_seen:>now-1h",
    "_index:cw-shared-op-metro-2026.03",
    "_index:*",
    "cw-shared-*",
    "folded:zebra",
    "audiences:police",
    "1=1) or (1=1",
    "cw.operator:op-metro or",
    "finding.first_seen:never",
)
ADDRESSES = (
    "/shared?sort=cw.operator",
    "/shared?sort=-finding.severity",
    "/shared?sort=source.token",
    "/shared?sort=_score",
    "/shared?page=2",
    "/shared?limit=1",
    "/shared?from=now-15m&to=now",
    "/shared.csv",
    "/shared.ndjson",
    "/shared.json?columns=source.token",
    f"/shared/{FOREIGN}",
    f"/shared/{FOREIGN}.json",
    "/shared/metro-amber.json",
    "/shared/cw-shared-op-metro-2026.03.json",
    "/shared/op-metro*",
    "/shared/..%2f..%2fcw-shared-op-metro",
    "/shared/%00",
    "/campaigns",
    "/campaigns.json",
    "/campaigns.csv",
    "/campaigns.json?q=cw.campaign.operators:op-metro",
    f"/campaigns/{CAMPAIGN}",
    f"/campaigns/{CAMPAIGN}.json",
    f"/campaigns/{FOREIGN}.json",
    "/campaigns/campaign-peers.json",
    "/campaigns/campaign-police.json",
    "/city",
    "/city.json",
    "/city.csv",
    "/city?state=at+risk",
    "/views",
    "/api/openapi.json",
)


def view_of(folder: Path, commons: Commons) -> HubView:
    folder.mkdir(exist_ok=True)
    db = NodeDb(folder / "node.db", b"city", clock=lambda: NOW)
    db.accounts.offers = HUB_ROLES
    for name, (roles, audience) in PEOPLE.items():
        db.accounts.add(Person(name, roles, HASHER.hash(PASSWORD), audience=audience))
        for scope in ("read", "triage", "respond", "tune", "admin"):
            digest = hashlib.sha256(f"{scope} {name}".encode()).hexdigest()
            token = Token(digest[:12], name, scope, (scope,))
            db.accounts.add_token(digest, token, "administrator", NOW)
    return HubView(
        commons, db, folder, Town(), b"of a test, and long enough for it", threshold=3,
        store="a store", deadlines=duties.load(), clock=lambda: NOW,
    )  # fmt: skip


def app_of(view: HubView) -> Any:
    return make_city_app(view, Access(view, HASHER))


def sqlite(folder: Path) -> Commons:
    folder.mkdir(exist_ok=True)
    return SqliteCommons(folder / "commons.db", clock=lambda: NOW)


@pytest.fixture(params=["sqlite", pytest.param("opensearch", marks=pytest.mark.slow)])
def home(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], Commons]]:
    """Makes an empty common store; called twice it makes two."""
    if request.param == "sqlite":
        yield sqlite
        return
    server: Server = request.getfixturevalue("opensearch")
    prefixes = []

    def made(folder: Path) -> ClusterCommons:
        names = Names(f"cw-{uuid.uuid4().hex[:10]}")
        prefixes.append(names.prefix)
        cluster = OpenSearchCluster(
            [server.url],
            user=server.user,
            password=server.password,
            ca=Path(server.ca_file),
        )
        prepare(cluster, names)
        return ClusterCommons(cluster, names=names, clock=lambda: NOW)

    yield made
    for one in prefixes:
        forget(server, one)


# ---- Who may open which route


def test_every_route_of_the_console_is_in_the_table(tmp_path: Path) -> None:
    view = view_of(tmp_path, sqlite(tmp_path))

    assert {name for name, _, _ in routes(app_of(view))} == RIGHTS.keys() | OPEN
    view.close()


def test_every_route_of_the_exchange_is_in_the_table(tmp_path: Path) -> None:
    app = make_app(Hub(tmp_path).exchange, Limits())
    named = {
        f"{method} {route.path}"
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }

    assert named == EXCHANGE.keys()


def test_roles_and_scopes_get_what_the_table_says_and_nothing_else(tmp_path: Path) -> None:
    view = view_of(tmp_path, sqlite(tmp_path))
    app = app_of(view)
    browser = TestClient(app, follow_redirects=False)
    wrong = []
    for name, method, address in routes(app):
        if name in OPEN or address.endswith((".csv", ".ndjson")):
            continue
        roles, needed = RIGHTS[name]
        for role in PEOPLE:
            for scope in ("read", "triage", "respond", "tune", "admin"):
                status = browser.request(method, address, headers=bearer(scope, role)).status_code
                if (status == 403) != (role not in roles or scope != needed):
                    wrong.append((name, role, scope, status))
        stranger = browser.request(method, address).status_code
        if stranger not in (303, 401):
            wrong.append((name, "nobody", "", stranger))

    assert wrong == []
    view.close()


@pytest.mark.parametrize("name", [name for name, who in EXCHANGE.items() if who == "operator"])
@pytest.mark.parametrize("state", ["no certificate", "revoked", "foreign"])
def test_only_an_operator_whose_certificate_is_in_force_opens_the_exchange(
    name: str, state: str, tmp_path: Path
) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "other").mkdir()
    hub, other = Hub(tmp_path / "hub"), Hub(tmp_path / "other")
    node, own = admitted(hub, "op-port")
    hub.operators.revoke("op-port")
    certificates = {"revoked": own, "foreign": admitted(other, "op-port")[1]}
    certificate = certificates.get(state)
    method, path = name.split()

    answer = shown(hub, certificate).request(method, path, content=node.beat().lines())

    assert answer.status_code in (401, 403)
    assert answer.json()["error"]["todo"]


# ---- Two worlds


def bearer(scope: str, name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {scope} {name}"}


@pytest.mark.parametrize("who", SEEN)
def test_what_is_hidden_changes_no_byte_of_any_answer(
    who: str, home: Callable[[Path], Commons], tmp_path: Path
) -> None:
    views = []
    for name, documents in (("bare", SEEN[who]), ("full", EVERYTHING)):
        commons = home(tmp_path / name)
        assert set(commons.put([Write(one, 1) for one in documents])) <= {"written"}
        views.append(view_of(tmp_path / name, commons))
        if isinstance(commons, ClusterCommons):
            commons.refresh()
    clients = [TestClient(app_of(one), follow_redirects=False) for one in views]
    addresses: list[tuple[str, dict[str, str]]] = [(one, {}) for one in ADDRESSES]
    addresses += [("/shared.json", {"q": one}) for one in QUERIES]
    addresses += [("/shared", {"q": one}) for one in QUERIES[::4]]
    if who == "administrator" or isinstance(commons, ClusterCommons):
        # Pages are made of what the lists of programs are made of, on every home.
        addresses = [one for one in addresses if ".json" in one[0]]
    if who == "administrator":
        addresses = addresses[::5]

    told = []
    for address, words in addresses:
        bare, full = (
            one.get(address, params=words or None, headers=bearer("read", who)) for one in clients
        )
        if (bare.status_code, bare.content) != (full.status_code, full.content):
            told.append((address, words))

    assert told == []
    seen = clients[1].get("/shared.json", headers=bearer("read", who))
    if SEEN[who]:
        assert len(seen.json()["rows"]) == len(SEEN[who])
    else:
        assert seen.status_code == 403
    for one in views:
        one.close()


@pytest.mark.parametrize("who", ["peer", "authority"])
@pytest.mark.parametrize("page", ["/shared/{}", "/shared/{}.json", "/campaigns/{}.json"])
def test_the_id_of_what_is_hidden_is_answered_like_one_that_does_not_exist(
    who: str, page: str, tmp_path: Path
) -> None:
    commons = sqlite(tmp_path)
    commons.put([Write(one, 1) for one in EVERYTHING])
    view = view_of(tmp_path, commons)
    browser = TestClient(app_of(view), follow_redirects=False)

    there, none = (
        browser.get(page.format(one), headers=bearer("read", who)) for one in (FOREIGN, NONE)
    )

    assert there.status_code == none.status_code == 404
    assert there.text.replace(FOREIGN, NONE) == none.text
    view.close()


# ---- A stolen certificate


def admitted(hub: Hub, name: str) -> tuple[Node, bytes]:
    """An operator's end, and the certificate that it was given."""
    node = Node(name)
    token = hub.operators.add(name, "energy.electricity")
    _, enrolled = hub.operators.enrol(token, node.request, node.signing_key)
    made = x509.load_pem_x509_certificates(enrolled.certificate.encode())[0]
    return node, made.public_bytes(Encoding.DER)


def shown(hub: Hub, certificate: bytes | None) -> TestClient:
    """Somebody who asks the exchange with this certificate."""
    app: Starlette = make_app(hub.exchange, Limits())

    async def with_certificate(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {"certificate": certificate}}, receive, send)

    return TestClient(with_certificate)


def attacks(port: Node, metro: Node, foreign: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What a thief of the certificate and the signing key of op-port may try."""
    messages = "/exchange/v1/messages"
    for path in ("mirror", "access", "inbox"):
        for words in ("", "?operator=op-metro", "?after=0&operator=op-metro", "/op-metro"):
            yield "GET", f"/exchange/v1/{path}{words}", {}
        named = {"x-operator": "op-metro", "x-ssl-client-s-dn": "CN=op-metro"}
        yield "GET", f"/exchange/v1/{path}", {"headers": named}
    for after in ("-1", "0 or 1=1", "999999", "op-metro/0"):
        yield "GET", "/exchange/v1/inbox", {"params": {"after": after}}
    yield "GET", "/exchange/v1/%2e%2e/mirror", {}
    yield "POST", "/exchange/v1/renew", {"json": {"csr": metro.request}}
    for signed in (
        port.withdraw(foreign),
        port.withdraw(str(uuid.UUID(int=7))),
        port.share(type="evidence_answer", share_id=foreign, revision=0),
        port.share(type="proposal_answer", share_id=foreign, revision=0),
        port.beat(),
        port.share(payload={**FINDING, "cw.operator": "op-metro"}),
        port.share(payload={**FINDING, "cw.share.id": foreign}),
        port.share(audiences=("city-soc", "peers"), derived_from=(foreign,)),
    ):
        yield "POST", messages, {"content": signed.lines()}
    # These are refused, so that the chain goes on without them.
    for named in (
        {"operator": "op-metro"},
        {"key_id": key_id(metro.key.public_key())},
        {"share_id": f"../op-metro/{foreign}"},
        {"share_id": "op-metro/x"},
        {"type": "receipt"},
        {"type": "evidence_request", "share_id": foreign},
    ):
        yield "POST", messages, {"content": sign(port.envelope(**named), port.key).lines()}


def test_a_stolen_certificate_opens_nothing_of_another_operator(tmp_path: Path) -> None:
    """Of the same two worlds: in one of them op-metro has shared, was sent letters, was read."""
    (tmp_path / "bare").mkdir()
    bare = Hub(tmp_path / "bare")
    port, certificate = admitted(bare, "op-port")
    metro, _ = admitted(bare, "op-metro")
    bare.exchange.take("op-port", port.share())
    bare.commons.close()
    shutil.copytree(tmp_path / "bare", tmp_path / "full")
    bare, full = Hub(tmp_path / "bare"), Hub(tmp_path / "full")
    secret = metro.share(payload={**FINDING, "finding.title": "Zebra"})
    full.exchange.take("op-metro", secret)
    full.exchange.letters.send("op-metro", "share", {"finding.title": "Zebra"}, share_id=CAMPAIGN)
    read = [one for one in full.everything() if one["cw.operator"] == "op-metro"]
    AccessLog(full.commons.records, full.clock).note("ciso", read)
    held = list(full.exchange.mirror("op-metro"))

    doors, told, statuses = [shown(one, certificate) for one in (bare, full)], [], set()
    for method, path, words in attacks(port, metro, share_id(secret)):
        answers = [one.request(method, path, **words) for one in doors]
        statuses.add(answers[0].status_code)
        if answers[0].content != answers[1].content or b"Zebra" in answers[1].content:
            told.append((method, path, words, answers[0].text[:300], answers[1].text[:300]))

    assert told == []
    assert {200, 403, 404} <= statuses
    assert list(full.exchange.mirror("op-metro")) == held
    for one in (bare, full):
        one.commons.close()


def test_a_share_under_the_id_of_another_operator_changes_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    hub = Hub(tmp_path / "hub")
    port, certificate = admitted(hub, "op-port")
    metro, _ = admitted(hub, "op-metro")
    secret = metro.share()
    hub.exchange.take("op-metro", secret)
    before = hub.everything()

    theirs = port.share(share_id=share_id(secret), revision=9)
    answer = shown(hub, certificate).post("/exchange/v1/messages", content=theirs.lines())

    assert answer.status_code in (200, 403)
    assert hub.everything() == before
    hub.commons.close()
