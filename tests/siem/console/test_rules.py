"""The list of rules and the page of one: what cannot fire, loses or takes too much is said."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
import pytest
from starlette.testclient import TestClient

from siem.store.protocol import RuleState
from tests.siem.console.fake import FakeNode

Enter = Callable[..., TestClient]

RULE = "00000000-0000-4000-8000-000000000001"


def only(node: FakeNode, **said: object) -> RuleState:
    """The one rule of the node from now on."""
    rule = msgspec.structs.replace(
        next(one for one in node.rules() if one.id == RULE), arriving=True, **said
    )
    node.rule_states = [rule]
    return rule


def test_what_a_correlation_loses_stands_on_its_page(node: FakeNode, signed_in: Enter) -> None:
    only(node, kind="correlation", lost={"ungrouped": 3, "evicted": 2}, faults=1)
    client = signed_in()

    page, listed = client.get(f"/rules/{RULE}").text, client.get("/rules").text
    (row,) = client.get("/rules.json").json()["rows"]

    assert "failed on 1 event, and was passed over there; 2 groups gone for want of room" in page
    assert "<dt>Not counted</dt><dd>3 events without a field by which it is grouped;" in page
    assert ">fails</span>" in listed
    assert row["lost"] == client.get(f"/rules/{RULE}.json").json()["lost"]
    assert (row["lost"], row["faults"]) == ({"ungrouped": 3, "evicted": 2}, 1)
    assert client.get("/rules.csv").status_code == 200


def test_a_rule_that_takes_much_of_the_time_is_named(node: FakeNode, signed_in: Enter) -> None:
    rule = only(node, heavy=True, share=0.41)
    client = signed_in()

    listed, page = client.get("/rules").text, client.get(f"/rules/{RULE}").text

    assert f"{rule.title}</a> takes 41 % of the time of all rules." in listed
    assert '<span class="mark warn">heavy</span>' in listed
    assert "It takes 41 % of the time of all rules." in page
    only(node, heavy=False, share=0.41)
    assert "41 % of the time of all rules." not in client.get("/rules").text


def test_filters_are_no_rules_of_the_list_and_none_of_its_counts(
    node: FakeNode, signed_in: Enter
) -> None:
    rules = node.rules()
    node.rule_states = [rules[0], msgspec.structs.replace(rules[1], kind="filter")]
    client = signed_in()

    page = client.get("/rules").text
    said = client.get("/rules.json").json()

    assert [row["id"] for row in said["rows"]] == [rules[0].id]
    assert 'All <span class="n">1</span>' in page
    assert 'On <span class="n">1</span>' in page
    assert "1 to 1 of 1 rule<" in page
    assert "rules <b>1</b> on" in client.get("/health").text


@pytest.mark.parametrize(
    ("key", "shown"),
    [("noise", "–"), ("share", "41 %"), ("evaluated", "18,204"), ("matches", "3")],
)
def test_what_rules_are_sorted_by_is_shown_on_a_phone(
    key: str, shown: str, node: FakeNode, signed_in: Enter
) -> None:
    only(node, share=0.41)

    page = signed_in().get(f"/rules?sort=-{key}").text

    (cell,) = re.findall(r'<td class="num a-l[^"]*">(.*?)</td>', page)
    assert shown in cell


def test_a_rule_that_loses_nothing_says_nothing(node: FakeNode, signed_in: Enter) -> None:
    only(node)

    page = signed_in().get(f"/rules/{RULE}").text

    assert "Not counted" not in page
    assert "It may miss something" not in page


def test_a_filter_is_not_switched_off_here_as_that_would_change_nothing(
    node: FakeNode, signed_in: Enter
) -> None:
    only(node, kind="filter")
    client = signed_in("e.ngineer")
    page = client.get(f"/rules/{RULE}").text
    csrf = re.search(r'name="csrf" value="([^"]+)"', client.get("/keys").text)
    assert csrf is not None

    form = {"csrf": csrf[1], "act": "off", "id": RULE, "reason": "too loud"}
    answer = client.post("/rules/change", data=form)

    assert 'name="act" value="off"' not in page
    assert (answer.status_code, "o rule has the id" in answer.text) == (400, True)
    assert node.accounts.switches() == []
