"""Lists: the same rows for people and programs, links that say what they show."""

# ruff: noqa: E501 – a table of addresses

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from siem.console.formats import _cell
from siem.console.view import Chip, View, chart, quoted, shown
from siem.store.protocol import Range
from tests.siem.console import fake
from tests.siem.console.conftest import csrf_of

Enter = Callable[..., TestClient]

QUERIES = [
    ("/findings", "group", ""),
    ("/findings", "group", "?status=all&sort=finding.last_seen"),
    ("/findings", "finding.id", "?group=none&sort=-finding.count"),
    ("/findings", "finding.id", "?group=none&limit=7&offset=7&status=all"),
    ("/findings", "finding.id", "?group=none&f=source.ip%3A198.51.100.73&f=-finding.severity%3Amedium"),
    ("/findings", "finding.id", "?group=none&q=finding.severity%3Ahigh+OR+finding.severity%3Alow"),
    ("/hunt", "event.id", ""),
    ("/hunt", "event.id", "?q=ot.operation%3Awrite&limit=20&offset=20"),
    ("/hunt", "event.id", "?f=source.ip%3A192.0.2.20&from=now-1h"),
    ("/rules", "id", ""),
    ("/rules", "id", "?q=modbus&sort=-matches"),
    ("/health", "source", ""),
    ("/health", "source", "?only=trouble"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "key", "query"), QUERIES)
def test_page_json_ndjson_and_csv_show_the_same_ids_in_the_same_order(
    path: str, key: str, query: str, signed_in: Enter
) -> None:
    client = signed_in()

    page = client.get(path + query).text
    document = client.get(f"{path}.json{query}").json()
    lines = client.get(f"{path}.ndjson{query}").text.splitlines()
    table = list(csv.DictReader(io.StringIO(client.get(f"{path}.csv{query}").text)))

    ids = [row[key] for row in document["rows"]]
    if path == "/health":
        listed = re.findall(r"cw\.record\.source%3A([\w-]+)&amp;from=all", page)
    else:
        listed = re.findall(r'data-key="([^"]+)"', page)
    assert ids
    assert list(dict.fromkeys(listed)) == ids
    assert [json.loads(line)[key] for line in lines] == ids
    assert [row[key] for row in table] == ids


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd", "'+cmd"),
        ("-1 day", "'-1 day"),
        ("@x", "'@x"),
        ("\t=1", "'\t=1"),
        ("＝1", "'＝1"),
        ("plain", "plain"),
        (-4, -4),
        (None, ""),
        (True, "true"),
        (["=a"], '["=a"]'),
    ],
)
def test_a_cell_is_never_a_formula(value: object, cell: object) -> None:
    assert _cell(value) == cell


def test_a_query_error_points_at_the_character(signed_in: Enter) -> None:
    client = signed_in()

    page = client.get("/hunt?q=source.ip:192.0.2.0/33&f=event.kind:event")
    data = client.get("/hunt.json?q=source.ip:192.0.2.0/33&f=event.kind:event")
    in_all = client.get("/findings?q=source.ip:192.0.2.0/33&status=all")
    in_filter = client.get("/findings?q=x&f=source.ip:192.0.2.0/33")

    assert page.status_code == 400
    assert 'data-at="20"' in page.text
    assert 'data-at="20"' in in_all.text
    assert "query, one of the filters" in in_filter.text
    assert data.status_code == 400
    assert data.json()["error"] == {
        "what": "no network is /33",
        "where": "query, character 20",
        "todo": "Write 192.0.2.0/24 or a single address.",
    }


@pytest.mark.parametrize(
    "query",
    ["?from=yesterday", "?to=now-99999999999d", "?from=now&to=now-1h", "?sort=x", "?status=odd"],
)
def test_an_address_that_cannot_be_read_is_refused_with_a_reason(
    query: str, signed_in: Enter
) -> None:
    client = signed_in()

    assert client.get(f"/findings.json{query}").json()["error"]["todo"]
    assert client.get(f"/findings{query}").status_code == 400


@pytest.mark.parametrize("query", ["?sort=x", "?state=nonsense"])
def test_rules_of_no_such_state_or_order_are_refused(query: str, signed_in: Enter) -> None:
    client = signed_in()

    said = client.get(f"/rules.json{query}")

    assert (said.status_code, said.json()["error"]["todo"][:6]) == (400, "Write ")
    assert client.get(f"/rules{query}").status_code == 400


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?f=source.ip:nope", "removes them all"),
        ("?from=2020-01-01&to=2020-01-02", "Nothing in this range"),
        ("?q=source.ip:nope", "the query"),
    ],
)
@pytest.mark.parametrize("path", ["/findings", "/hunt"])
def test_an_empty_list_says_why(path: str, query: str, words: str, signed_in: Enter) -> None:
    assert words in signed_in().get(path + query).text


def test_a_node_without_sources_says_so(client: TestClient, node: fake.FakeNode) -> None:
    from tests.siem.console.conftest import sign_in

    node.findings.documents.clear()
    node.events.documents = []
    node.source_states.clear()
    sign_in(client, "i.vasko")

    assert "No source is set up" in client.get("/findings").text
    assert "No source is set up" in client.get("/hunt").text
    assert "No source is set up" in client.get("/health").text


def test_a_filter_of_the_small_form_becomes_a_chip(signed_in: Enter) -> None:
    answer = signed_in().get("/hunt?q=x&add_field=source.ip&add_value=192.0.2.1&add_not=1")

    assert answer.status_code == 303
    assert answer.headers["location"] == "/hunt?q=x&f=-source.ip%3A192.0.2.1"


def test_a_view_links_to_its_neighbours() -> None:
    view = View("/hunt", (("q", "a"), ("f", "source.ip:1"), ("offset", "50")))

    assert view.include("user.name", "x y") == "/hunt?q=a&f=source.ip%3A1&f=user.name%3Ax+y"
    assert view.exclude("user.name", "x") == "/hunt?q=a&f=source.ip%3A1&f=-user.name%3Ax"
    assert view.only("user.name", "x") == "/hunt?f=user.name%3Ax"
    assert view.without(Chip("source.ip", "1")) == "/hunt?q=a"


@pytest.mark.parametrize(
    ("value", "query"),
    [('a"b', '"a\\"b"'), ("a\\", '"a\\\\"'), ("* OR *", '"* OR *"')],
)
def test_a_value_stays_one_value_in_the_query(value: str, query: str) -> None:
    assert quoted(value) == query


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a\u200bb", "a⟨U+200B⟩b"),
        ("a\nb\tc", "a⏎b⇥c"),
        ("\x1b[31m", "⟨U+001B⟩[31m"),
        ("\ufeffx", "⟨U+FEFF⟩x"),
        ("a\u00adb\u3164", "a⟨U+00AD⟩b⟨U+3164⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("Brücke 7 ✓", "Brücke 7 ✓"),
        ("", "–"),
        (True, "true"),
    ],
)
def test_characters_that_hide_or_turn_become_marks(text: object, said: str) -> None:
    assert shown(text) == said


def test_a_chart_stacks_the_worst_at_the_bottom() -> None:
    start = fake.NOW.replace(minute=0)
    drawn = chart([(start, {"high": 2, "low": 2})], Range(start, fake.NOW), ("high", "low"))

    assert drawn is not None
    assert [bar.kind for bar in drawn.bars] == ["high", "low"]
    assert float(drawn.bars[0].y) > float(drawn.bars[1].y)
    assert drawn.totals == {"high": 2, "low": 2}


def test_triage_changes_one_many_groups_and_the_whole_query(
    signed_in: Enter, node: fake.FakeNode
) -> None:
    client = signed_in()
    token = csrf_of(client.get("/findings").text)
    first = node.findings.documents[2]["finding.id"]
    group = fake._group(node.findings.documents[0])

    def post(**form: str) -> str:
        answer = client.post("/findings/triage", data={"csrf": token, **form})
        return str(answer.headers.get("location", answer.status_code))

    one = post(act="resolve", id=first, verdict="benign", comment="planned", back="/findings?q=")
    many = post(act="take", group=group, back="/findings")
    whole = post(
        act="suppress", whole="1", until="7d", back="/findings?f=finding.severity%3Alow&group=none"
    )

    resolved = node.findings.get(first)
    assert resolved is not None
    assert (resolved["finding.status"], resolved["finding.verdict"]) == ("resolved", "benign")
    assert resolved["cw.history"][-1]["why"] == "planned"
    assert one == "/findings?done=resolve-1"
    assert many == "/findings?done=take-14"
    assert whole.endswith("done=suppress-5")
    assert "Suppressed 5 findings." in client.get(whole).text


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"act": "resolve"}, "Verdict"),
        ({"act": "resolve", "asked": "1"}, "Resolving needs a verdict."),
        ({"act": "suppress", "asked": "1"}, "Suppressing needs an end."),
        ({"act": "comment", "comment": " ", "asked": "1"}, "The comment is empty."),
    ],
)
def test_an_act_that_lacks_something_asks_for_it(
    form: dict[str, str], words: str, signed_in: Enter, node: fake.FakeNode
) -> None:
    client = signed_in()
    first = node.findings.documents[0]
    before = dict(first)
    token = csrf_of(client.get("/findings").text)

    answer = client.post(
        "/findings/triage", data={"csrf": token, "id": first["finding.id"], **form}
    )

    assert answer.status_code == 200
    assert words in answer.text
    assert node.findings.documents[0] == before


@pytest.mark.parametrize("until", ["now-1h", "9999d", "soon", "0h"])
def test_a_suppression_ends_within_a_year(
    until: str, signed_in: Enter, node: fake.FakeNode
) -> None:
    client = signed_in()
    token = csrf_of(client.get("/findings").text)
    first = node.findings.documents[0]["finding.id"]

    answer = client.post(
        "/findings/triage.json",
        data={"csrf": token, "act": "suppress", "id": first, "until": until},
    )

    assert answer.status_code == 400
    assert node.findings.documents[0]["finding.status"] == "new"


def test_metrics_speak_prometheus(signed_in: Enter) -> None:
    text = signed_in("a.admin").get("/metrics").text

    assert 'cityward_malformed_total{source="ser-4-modbus"} 38.0' in text
    assert 'cityward_rules{state="on"} 17.0' in text


def test_an_unknown_id_is_404_for_people_and_programs(signed_in: Enter) -> None:
    client = signed_in()

    for path in ("/findings/nope", "/hunt/nope", "/rules/nope", "/nowhere"):
        assert client.get(path).status_code == 404
    assert client.get("/findings/nope.json").json()["error"]["what"] == "no finding has the id nope"


def test_a_fault_of_ours_shows_an_id_and_no_stack(node: fake.FakeNode) -> None:
    from siem.console.access import Access
    from siem.console.app import make_app
    from tests.siem.console.conftest import sign_in

    app = make_app(node, Access(node, fake.HASHER))
    client = TestClient(app, follow_redirects=False, raise_server_exceptions=False)
    sign_in(client, "i.vasko")
    node.findings.groups = None  # type: ignore[assignment, method-assign]

    answer = client.get("/findings")

    assert answer.status_code == 500
    assert "in the log" in answer.text
    assert "Traceback" not in answer.text
