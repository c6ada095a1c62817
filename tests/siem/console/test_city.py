"""The hub's console: who sees what, what the pages say, the same for programs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from siem.city.known import Lost
from siem.city.town import Town
from siem.common_store import commons_of
from siem.config import Hub as HubSettings
from siem.config import Settings
from siem.console.access import Access
from siem.console.app import make_city_app
from siem.hub import make_keys, view_of
from siem.store.protocol import Person
from tests.siem.city import fake_hub
from tests.siem.city.fake_hub import NOW, FakeHub, share
from tests.siem.console.conftest import csrf_of, sign_in
from tests.siem.console.fake import HASHER, PASSWORD

Enter = Callable[..., TestClient]

LISTS = ("/city", "/campaigns", "/shared", "/operators")
OWN = ("/campaigns/c-1", "/shared/s-9", "/operators/op-grid")
READING = {"/city", "/campaigns", "/campaigns/c-1", "/shared", "/shared/s-9"}
LINKS = {"/operators", "/operators/op-grid"}
MAY: dict[str, set[str]] = {
    "m.tarn": READING | LINKS,
    "a.admin": LINKS,
    "p.olice": READING,
    "p.eer": READING,
}
GIVEN = {"c-1", "s-6"}
"""Of the evening what the police was given."""


@pytest.fixture
def hub() -> FakeHub:
    return fake_hub.saltmere()


@pytest.fixture(scope="module")
def reader() -> TestClient:
    """The CISO at a hub that no test changes."""
    shared = fake_hub.saltmere()
    client = TestClient(make_city_app(shared, Access(shared, HASHER)), follow_redirects=False)
    assert sign_in(client, "m.tarn").status_code == 303
    return client


@pytest.fixture
def app(hub: FakeHub) -> Any:
    return make_city_app(hub, Access(hub, HASHER))


@pytest.fixture
def enter(app: Any) -> Enter:
    def start(name: str = "m.tarn") -> TestClient:
        client = TestClient(app, follow_redirects=False)
        assert sign_in(client, name).status_code == 303
        return client

    return start


def ids(client: TestClient, path: str) -> set[str]:
    return {row["cw.share.id"] for row in client.get(path).json()["rows"]}


@pytest.mark.parametrize("name", MAY)
def test_each_role_gets_its_pages_in_every_form(name: str, enter: Enter) -> None:
    client = enter(name)
    paths = [path + end for path in LISTS for end in ("", ".json", ".ndjson", ".csv")]
    paths += [path + end for path in OWN for end in ("", ".json")]

    answers = {path: client.get(path).status_code for path in paths}

    for path, status in answers.items():
        page = re.sub(r"\.(json|ndjson|csv)$", "", path)
        given = {403} if page not in MAY[name] else {200}
        if page == "/shared/s-9" and name in ("p.olice", "p.eer"):
            given = {404}
        assert status in given, (name, path)


def test_where_a_role_begins(enter: Enter) -> None:
    starts = {name: enter(name).get("/").headers["location"] for name in MAY}

    assert starts == {
        "m.tarn": "/city", "a.admin": "/operators", "p.olice": "/city", "p.eer": "/city",
    }  # fmt: skip


def test_a_hub_has_no_page_of_a_node(app: Any, enter: Enter) -> None:
    client = enter()
    paths = {route.path for route in app.routes if isinstance(route, APIRoute)}

    assert not {"/findings", "/hunt", "/rules", "/assets"} & paths
    assert client.get("/findings").status_code == 404
    assert "Begin at City" in client.get("/findings").text


def test_the_city_in_a_minute(reader: TestClient) -> None:
    text = reader.get("/city").text

    for said in (
        "TLP:AMBER+STRICT",
        "Heating is at risk in Northbank: 4,100 homes; terminal in East Basin: 6 berths.",
        "Map of Saltmere. At risk: Northbank, East Basin.",
        "3 operators",
        "confidence 0.86",
        "2 of 3 answered, op-metro not yet.",
        "No clock runs, or none is told of",
        "no heartbeat",
        "4</b> of 5 operators linked",
        "op-water silent <b>41 min</b>",
    ):
        assert said in text, said


def test_every_number_opens_its_list(reader: TestClient) -> None:
    client = reader
    text = client.get("/city").text
    links = set(re.findall(r'href="(/(?:city|shared|campaigns|operators)[^"]*)"', text))

    answers = {link: client.get(link.replace("&amp;", "&")).status_code for link in links}

    assert set(answers.values()) == {200}, answers
    degraded = client.get("/city.json?state=degraded").json()
    assert [row["id"] for row in degraded["rows"]] == ["passenger-signs", "public-cameras"]
    assert degraded["counts"] == {"at risk": 2, "degraded": 2, "blind": 1, "running": 6}


def test_the_list_behind_a_service_holds_the_shares_it_rests_on(reader: TestClient) -> None:
    client = reader
    for row in client.get("/city.json").json()["rows"]:
        service = next(one for one in fake_hub.saltmere().town.services if one.id == row["id"])
        listed = client.get("/shared.json", params={"q": service.query}).json()["rows"]
        assert {one["cw.share.id"] for one in listed} >= set(row["shares"]), row["id"]


def test_a_program_gets_the_services_as_the_page_shows_them(reader: TestClient) -> None:
    client = reader
    rows = client.get("/city.json").json()["rows"]

    assert (rows[0]["id"], rows[0]["state"], rows[0]["affected"]) == (
        "district-heating", "at risk", 4100,
    )  # fmt: skip
    assert rows[0]["shares"][0] == "s-9"
    table = list(csv.DictReader(io.StringIO(client.get("/city.csv").text)))
    assert [one["id"] for one in table] == [row["id"] for row in rows]


def test_an_authority_sees_only_what_its_audience_was_given(enter: Enter) -> None:
    client = enter("p.olice")

    assert ids(client, "/shared.json") == GIVEN
    page = client.get("/city").text
    assert "TLP:GREEN" in page
    assert "police: only what was given to this audience" in page
    for secret in ("j:11:", "op-water", "Modbus", "Passenger signs", "heartbeat"):
        assert secret not in page, secret
    campaign = client.get("/campaigns/c-1")
    assert "j:11:" not in campaign.text
    assert "Closed it at" not in campaign.text
    for hidden in ("/shared/s-9", "/shared/nothing", "/campaigns/s-6", "/campaigns/nothing"):
        name = hidden.rpartition("/")[2]
        answer = client.get(f"{hidden}.json")
        assert answer.status_code == 404
        assert answer.json()["error"]["what"].replace(name, "X") in (
            "no shared finding has the id X, or it is not for you",
            "no campaign has the id X, or it is not for you",
        )


def test_a_peer_sees_its_own_and_what_is_for_all(enter: Enter) -> None:
    assert ids(enter("p.eer"), "/shared.json") == {"s-1", "s-4", "s-6", "c-1"}


def test_a_count_of_operators_below_the_threshold_is_not_told(hub: FakeHub, enter: Enter) -> None:
    both = fake_hub.evening()[-1] | {"cw.campaign.operators": ["op-grid", "op-port"]}
    hub.commons.put([fake_hub.Write(both, 2)])

    police, ciso = enter("p.olice"), enter()
    assert "One campaign runs at fewer than three operators." in police.get("/city").text
    assert "&lt;3 operators" in police.get("/campaigns/c-1").text
    assert "One campaign runs at two operators." in ciso.get("/city").text
    assert "2 operators" in ciso.get("/campaigns/c-1").text


def test_operators_that_read_it_are_told_that_they_were_read(hub: FakeHub, enter: Enter) -> None:
    enter().get("/city")
    hub.access.flush()

    kept = {name.partition(" ")[0] for name, _ in hub.records.all("access")}
    assert kept == {"op-city", "op-grid", "op-metro", "op-port"}


def test_a_campaign_says_why_and_what_came_of_it(reader: TestClient) -> None:
    client = reader
    text = client.get("/campaigns/c-1").text

    for said in (
        "the same token of an outside address or name",
        "One outsider at two operators",
        "j:11:7ce1a04f9be2",
        "Closed it at 02:40",
        "none yet",
        "9 shares",
        "Campaign by operator over time: op-port from",
    ):
        assert said in text, said
    found = client.get("/campaigns/c-1.json").json()
    assert len(found["rests_on"]) == 9
    assert [one["operator"] for one in found["told"]] == ["op-grid", "op-port", "op-metro"]


def test_what_was_withdrawn_is_gone_from_a_campaign(hub: FakeHub, enter: Enter) -> None:
    hub.commons.remove(["s-9", "s-8"])

    text = enter().get("/campaigns/c-1").text
    assert "7 shares" in text
    assert "2 more that you may not see, or that were withdrawn" in text


def test_a_share_says_which_campaign_rests_on_it(reader: TestClient) -> None:
    text = reader.get("/shared/s-9").text

    assert 'href="/campaigns/c-1"' in text
    assert "external-attackers" in text


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/shared?q=cw.operator:op-grid", 200, "Modbus scan inside"),
        ("/shared?f=cw.operator:op-none", 200, "Remove that filter"),
        ("/shared?q=nothing-like-it", 200, "Show all of this range"),
        ("/shared?from=2020-01-01&to=2020-01-02", 200, "Show all that is kept"),
        ("/shared?q=source.ip:(", 400, "haracter"),
        ("/shared?sort=cw.vendor", 400, "cannot be sorted"),
        ("/shared?add_field=cw.operator&add_value=op-grid", 303, ""),
        ("/campaigns?q=zzz", 200, "No campaign matches"),
        ("/campaigns?from=2020-01-01&to=2020-01-02", 200, "No campaign in this range"),
        ("/operators?q=silent", 200, "op-water"),
        ("/operators?q=zzz", 200, "No operator matches"),
        ("/operators/nobody", 404, "o operator is called nobody"),
        ("/city?map=list", 200, "<th scope=\"row\">Northbank</th>"),
        ("/city?state=blind", 200, "only blind, show all"),
        ("/city?state=%3Cscript%3E", 200, "11, by sector"),
        ("/city?from=nonsense", 200, "Last 24 h"),
        ("/city?from=2020-01-01&to=2020-01-02", 200, "No campaign in this range"),
    ],
)  # fmt: skip
def test_a_list_says_why_it_is_empty_or_wrong(
    path: str, status: int, said: str, reader: TestClient
) -> None:
    answer = reader.get(path)

    assert answer.status_code == status
    assert said in answer.text


def test_since_the_last_visit(hub: FakeHub, enter: Enter) -> None:
    client = enter()
    assert "Your first visit" in client.get("/city").text
    hub.clock = NOW + timedelta(minutes=45)
    crane = {"cw__asset__type": "crane_plc", "finding__title": "Crane program changed"}
    hub.put([share("new", "op-port", -44, finding__severity="high", **crane)])

    text = client.get("/city").text

    since = text.partition("Since your last visit")[2].partition("</section>")[0]
    assert "03:14" in since
    assert "<b>Container cranes</b> running → at risk, Crane program changed" in since
    assert "Northbank" not in since


def test_a_shorter_range_makes_no_change_of_it(hub: FakeHub, enter: Enter) -> None:
    client = enter()
    client.get("/city")

    assert "One service is degraded" not in client.get("/city?from=now-15m").text
    assert client.get("/city.json?from=now-15m").json()["counts"]["at risk"] == 1

    kept = [one.value["after"] for _, one in hub.records.all("change")]
    assert "running" not in kept


def test_a_kiosk_goes_on_by_itself(reader: TestClient) -> None:
    client = reader

    assert client.get("/city?kiosk=1").headers["refresh"] == "30; url=/campaigns?kiosk=1"
    assert client.get("/campaigns?kiosk=1").headers["refresh"] == "30; url=/city?kiosk=1"
    assert "refresh" not in client.get("/city").headers


def test_duties_show_their_clocks(hub: FakeHub, enter: Enter) -> None:
    hub.clocks = fake_hub.duties()
    text = enter().get("/city").text

    assert "5 h 12 min <small>left</small>" in text
    assert 'class="fill hot"' in text
    hub.clocks = []
    assert "No clock runs, or none is told of" in enter().get("/city").text


def test_every_duty_stands_in_a_list(hub: FakeHub, enter: Enter) -> None:
    client = enter()
    assert "No clock runs, or none is told of" in client.get("/duties").text

    hub.clocks = fake_hub.duties()

    assert "NIS2 incident notification, 72 h" in client.get("/duties").text
    rows = client.get("/duties.json?q=metro").json()["rows"]
    assert [row["operator"] for row in rows] == ["op-metro"]


def test_a_campaign_becomes_an_incident_of_the_city(hub: FakeHub, enter: Enter) -> None:
    client = enter()
    (campaign, *_) = client.get("/campaigns.json?from=all").json()["rows"]
    page = client.get(f"/campaigns/{campaign['cw.share.id']}").text
    assert "Open an incident" in page

    said = {
        "csrf": csrf_of(page),
        "act": "open",
        "title": "Edge",
        "finding": campaign["cw.share.id"],
    }
    answer = client.post("/incidents/change", data=said)

    (made,) = hub.cases.all()
    assert answer.headers["location"].startswith(f"/incidents/{made.id}")
    assert made.findings == (campaign["cw.share.id"],)
    assert campaign["finding.title"][:20] in client.get(f"/incidents/{made.id}").text


def test_a_hub_without_anything_says_so(hub: FakeHub) -> None:
    bare = FakeHub(town=Town("Bare"))
    client = TestClient(make_city_app(bare, Access(bare, HASHER)), follow_redirects=False)
    sign_in(client, "b.oth")

    page = client.get("/city").text
    for said in ("No services are named", "No map is set", "No campaign in this range"):
        assert said in page, said
    assert "Nothing was shared yet" in client.get("/shared").text
    assert "No operator is enrolled" in client.get("/operators").text


def test_an_operator_shows_what_is_known_of_its_link(enter: Enter) -> None:
    text = enter("a.admin").get("/operators/op-metro").text

    for said in ("number 1,204", "in 5 d", "late by 6 min", "cityward operator revoke op-metro"):
        assert said in text, said
    assert "Its shared findings" not in text


def test_a_program_reads_with_the_rights_of_its_person(hub: FakeHub, app: Any) -> None:
    hub.give_token("t0ken", "p.olice", "read")
    client = TestClient(app, headers={"authorization": "Bearer t0ken"})

    assert ids(client, "/shared.json") == GIVEN
    assert client.get("/operators.json").status_code == 403
    assert client.get("/people.json").status_code == 403
    described = client.get("/api/openapi.json").json()["paths"]
    assert {"/city.json", "/campaigns/{campaign_id}.json", "/operators.csv"} <= set(described)


def test_an_export_is_in_the_audit_trail(hub: FakeHub, enter: Enter) -> None:
    enter().get("/shared.csv?q=Modbus")

    said = [f"{one.by} {one.action} {one.about}" for one in hub.trail("export", _ALL, 5)[0]]
    assert said == ["m.tarn export /shared.csv?q=Modbus"]


def test_a_home_that_does_not_answer_is_said_on_the_page(
    hub: FakeHub, enter: Enter, monkeypatch: Any
) -> None:
    from cityward.errors import TransientError

    client = enter()

    def broken(*_: Any, **__: Any) -> Any:
        raise TransientError("the search cluster does not answer", "cluster", "Try again.")

    monkeypatch.setattr(hub.commons, "search", broken)

    for path in ("/city", "/campaigns", "/shared", "/shared.json"):
        answer = client.get(path)
        assert answer.status_code in (400, 503), path
        assert "the search cluster does not answer" in answer.text.lower()


def test_lost_sources_are_blind_spots(hub: FakeHub, enter: Enter) -> None:
    hub.linked[1] = fake_hub.changed(hub.linked[1], lost=(Lost("bastion", "no data"),))

    assert "op-grid, bastion" in enter().get("/city").text


def test_the_pages_stand_on_the_real_hub(tmp_path: Path) -> None:
    said = HubSettings(
        services=str(fake_hub.DATA / "saltmere-services.yml"),
        map=str(fake_hub.DATA / "saltmere.geojson"),
    )
    settings = Settings(operator="city", state_dir=str(tmp_path), hub=said)
    make_keys(settings)
    view = view_of(settings, lambda: NOW)
    view.accounts.add(Person("m.tarn", ("ciso",), HASHER.hash(PASSWORD)))
    store = commons_of(settings, lambda: NOW)
    store.put([fake_hub.Write(one, 1) for one in fake_hub.evening()])
    client = TestClient(make_city_app(view, Access(view, HASHER)), follow_redirects=False)
    assert sign_in(client, "m.tarn").status_code == 303

    answers = {path: client.get(path) for path in (*LISTS, "/campaigns/c-1", "/shared/s-9")}

    assert {one.status_code for one in answers.values()} == {200}
    # Nobody is enrolled, so that only what was shared is seen.
    assert "Heating is at risk in Northbank: 4,100 homes" in answers["/city"].text
    assert "op-grid is not enrolled" in answers["/city"].text
    assert "No operator is enrolled" in answers["/operators"].text
    assert "No operator was told of it yet." in answers["/campaigns/c-1"].text
    store.close()
    view.close()


_ALL = fake_hub.Range()


# ---- Proposals


def test_the_ciso_proposes_a_response_to_the_operators_that_were_told(
    enter: Enter, hub: FakeHub
) -> None:
    client = enter()
    page = client.get("/campaigns/c-1").text
    form = {
        "csrf": csrf_of(page), "id": "c-1", "playbook": "external-scanner",
        "operator": ["op-grid", "op-port"], "reason": "it scans us all",
    }  # fmt: skip

    answer = client.post("/campaigns/propose", data=form)

    assert "External scanner (block at nftables for 1 h)" in page
    assert answer.headers["location"] == "/campaigns/c-1?done=proposed"
    assert hub.proposed == [
        ("c-1", "external-scanner", ("op-grid", "op-port"), "it scans us all", "m.tarn")
    ]
    assert "It is sent within seconds" in client.get("/campaigns/c-1?done=proposed").text


def test_what_cannot_be_proposed_says_why(enter: Enter, hub: FakeHub) -> None:
    client = enter()
    form = {"csrf": csrf_of(client.get("/campaigns/c-1").text), "playbook": "external-scanner"}

    nobody = client.post("/campaigns/propose.json", data={**form, "id": "c-1", "reason": "why"})
    unknown = client.post("/campaigns/propose", data={**form, "id": "s-1", "operator": "op-grid"})
    forged = client.post("/campaigns/propose", data={"id": "c-1", "operator": "op-grid"})

    assert (nobody.status_code, unknown.status_code, forged.status_code) == (400, 404, 403)
    assert "no operator is chosen" in nobody.text
    assert hub.proposed == []


def test_only_the_ciso_is_offered_to_propose(enter: Enter) -> None:
    assert "Propose a response" in enter().get("/campaigns/c-1").text
    assert "Propose a response" not in enter("p.olice").get("/campaigns/c-1").text
