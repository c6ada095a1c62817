"""The hub proposes, the operator decides: proposals, plans and answers, end to end."""

from __future__ import annotations

import base64
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward import ConfigError, InputError, TransientError, Unsafe
from playbooks.flow import group_of, new_run
from playbooks.model import Rate
from siem import config, duties
from siem.city.hub import HubView
from siem.city.intake import Refused
from siem.city.proposals import Wanted, want
from siem.city.town import Town
from siem.hub import hub_of
from siem.proposals import is_too_often
from siem.sharing.envelope import BEGIN, Envelope, payload_hash, sign
from siem.sharing.inbox import newest, told_row
from siem.store import faults, proposals
from siem.store.embedded import NodeDb
from siem.store.proposals import ASKED_BY
from siem.store.protocol import Range
from tests.playbooks.kit import NOON, Clock, deny, playbook, run_of
from tests.siem.city.test_joins import tokens_of
from tests.siem.sharing.proposing import (
    ATTACKER,
    WAY,
    City,
    Operator,
    Shelf,
    TokenPolicy,
    guard,
    told_twice,
)
from tests.siem.sharing.standin import key_from


def own(node: Operator) -> tuple[str, ...]:
    """Its own shares."""
    return tuple(one.share_id for one, _ in node.db.outgoing.all_shared())


def test_a_person_of_the_city_proposes_and_each_operator_decides_for_itself(
    tmp_path: Path,
) -> None:
    city, metro, grid = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    city.propose("op-metro", "op-grid")
    for node in (metro, grid):
        node.round()

    assert city.answers() == dict.fromkeys(("op-metro", "op-grid"), "Planned, waits for a person")
    assert metro.device.calls() == grid.device.calls() == []
    (run,) = metro.db.runs.all()
    assert (run.asked_by, run.stage, run.playbook.stage) == ("city: ciso", *["approve_all"] * 2)
    assert metro.one.run == run.id

    assert metro.yes()
    metro.round()
    assert metro.device.denied() == {"203.0.113.9/block"}
    assert city.answers()["op-metro"] == "Applied"
    assert grid.device.calls() == []

    city.clock.turn(hours=1, minutes=1)
    metro.round()
    assert metro.device.denied() == set()
    assert city.answers()["op-metro"] == "Undone"


def test_the_hub_proposes_by_itself_where_its_settings_say_so(tmp_path: Path) -> None:
    city, metro, grid = told_twice(tmp_path, Clock(), "op-metro", "op-grid", by_itself=WAY)

    for node in (metro, grid):
        node.round()

    assert metro.one.said.by == "hub"
    assert city.answers() == dict.fromkeys(("op-metro", "op-grid"), "Planned, waits for a person")


def test_what_was_proposed_and_is_not_over_is_not_proposed_again(tmp_path: Path) -> None:
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    city.want("op-metro", reason="it scans us all")
    with pytest.raises(InputError, match="was proposed to op-metro for this campaign already"):
        city.want("op-metro", "op-grid", reason="again")
    city.proposals.step()
    with pytest.raises(InputError, match="already"):
        city.want("op-metro", reason="again")

    metro.hear()
    metro.db.proposals.decline(metro.one.id, "ada", "later", "", NOON)
    metro.send()
    city.propose("op-metro", reason="now, then")

    metro.hear()
    assert sorted(one.state for one in metro.db.proposals.all()) == ["declined", "new"]


def test_a_proposal_that_nobody_answered_is_said_to_have_ended(tmp_path: Path) -> None:
    city, *_ = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    city.propose("op-metro")
    city.clock.turn(hours=25)

    assert city.answers() == {"op-metro": "No answer before it ended"}


def test_a_proposal_hides_no_campaign_in_the_inbox(tmp_path: Path) -> None:
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    city.propose("op-metro")
    metro.hear()

    rows = [told_row(one) for one in metro.db.outgoing.inbox()]

    assert (rows[0]["type"], rows[0]["title"]) == ("proposal", WAY.action)
    assert [one["type"] for one in newest(rows)] == ["share"]


# ---- What comes in is hostile


def letter(city: City, key: Any = None, **said: Any) -> tuple[bytes, str]:
    """An envelope with a proposal, signed by the hub or by whom a test says."""
    of: dict[str, Any] = {
        "id": "ab" * 16, "operator": "op-metro", "playbook": "block", "action": "Block it",
        "reason": "why not", "by": "ciso",
    }  # fmt: skip
    payload = of | said.pop("payload", {})
    made: dict[str, Any] = {
        "type": "proposal", "sent": NOON, "operator": "city", "key_id": "0" * 16, "seq": 1,
        "prev": BEGIN, "share_id": city.campaign, "tlp": "green", "pap": "green",
        "expires": NOON + timedelta(hours=24), "payload": payload,
        "payload_sha256": payload_hash(payload),
    }  # fmt: skip
    signed = sign(Envelope(**made | said), key or city.ends.operators.signing_key)
    return signed.data, base64.b64encode(signed.signature).decode()


BAD: dict[str, dict[str, Any]] = {
    "for another operator": {"payload": {"operator": "op-grid"}},
    "an id that is none": {"payload": {"id": "../../x"}},
    "a playbook that is a path": {"payload": {"playbook": "../x\n"}},
    "a reason without end": {"payload": {"reason": "x" * 501}},
    "a line that breaks": {"payload": {"action": "Block\r\nBcc: all"}},
    "without a field": {"payload": {"by": None}},
    "without an end": {"expires": None},
    "for a year": {"expires": NOON + timedelta(days=365)},
    "of a thousand shares": {"derived_from": tuple(str(n) for n in range(1_000))},
    "of no campaign": {"share_id": ""},
    "marked with a word that is none": {"pap": "purple"},
}


@pytest.fixture(scope="module")
def evening(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A city that was told of a campaign; tests of what comes in change nothing of it."""
    return told_twice(tmp_path_factory.mktemp("city"), Clock(), "op-metro", "op-grid")


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_proposal_is_not_taken(name: str, evening: Any, caplog: Any) -> None:
    city, metro, _ = evening

    metro.hear_this(letter(city, **BAD[name]))

    assert metro.db.proposals.all() == []
    assert "A proposal of the city is not taken" in caplog.text


def test_a_forged_proposal_is_not_even_heard(evening: Any) -> None:
    city, metro, _ = evening
    before = metro.db.outgoing.heard()

    with pytest.raises(Unsafe, match="the signature does not hold"):
        metro.hear_this(letter(city, key=key_from("a thief")))

    assert (metro.db.outgoing.heard(), metro.db.proposals.all()) == (before, [])


def test_a_proposal_counts_once_however_often_it_comes(tmp_path: Path) -> None:
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    city.propose("op-metro")
    metro.round()
    (data, signature), *_ = [
        (one.data, base64.b64encode(one.signature).decode())
        for one in metro.db.outgoing.inbox()
        if one.type == "proposal"
    ]

    for _ in range(3):
        metro.hear_this((data, signature))
        metro.round()

    assert len(metro.db.proposals.all()) == len(metro.db.runs.all()) == 1
    assert metro.said == [{"proposal": metro.one.id, "state": "planned", "why": ""}]


def test_more_than_people_can_look_at_is_not_taken(evening: Any, monkeypatch: Any) -> None:
    city, metro, _ = evening
    monkeypatch.setattr(proposals, "OPEN_MAX", 0)

    metro.hear_this(letter(city))

    assert metro.db.proposals.all() == []


# ---- What nothing comes of, and why


def settled(node: Operator) -> tuple[str, str]:
    node.round()
    return node.one.state, node.one.why


def test_an_operator_whose_responses_are_off_says_so(tmp_path: Path) -> None:
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid", plans=False)
    city.propose("op-metro")

    metro.hear()
    metro.send()

    assert city.answers() == {"op-metro": "Not possible: responses are off"}
    assert metro.db.runs.all() == []


def test_an_operator_without_the_playbook_says_so(tmp_path: Path) -> None:
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid", books={})
    city.propose("op-metro")

    assert settled(metro) == ("not possible", "no playbook")


def test_however_much_the_hub_proposes_our_own_findings_find_a_place(tmp_path: Path) -> None:
    book = playbook(deny("block"), rate=Rate(per_hour=4, at_once=3))
    books = dict.fromkeys(("block", "other"), book)
    city, operator, _ = told_twice(tmp_path, Clock(), "op-metro", "op-water", books=books)
    for number in range(2):
        run = run_of(book, f"r{number}", operator.clock(), asked_by=f"{ASKED_BY}ciso")
        assert operator.db.runs.start(run)
    city.propose("op-metro")
    operator.hear()
    operator.proposals.look()

    assert (operator.one.state, operator.one.why) == ("not possible", "too often")
    assert not is_too_often(operator.db, book.id, book.rate)


def test_a_proposal_waits_for_a_store_that_does_not_answer(tmp_path: Path) -> None:
    city, operator, _ = told_twice(tmp_path, Clock(), "op-metro", "op-water")
    city.propose("op-metro")
    operator.hear()
    shelf: Any = operator.proposals._shelf

    def is_away(*_: object) -> Any:
        raise TransientError("no answer", "cluster")

    plan, shelf.plan = shelf.plan, is_away
    operator.work()
    assert operator.one.state == "new"
    shelf.plan = plan
    operator.work()

    assert operator.one.state == "planned"


def test_a_finding_that_is_over_or_of_another_indicator_is_none(tmp_path: Path) -> None:
    city, metro, grid = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    city.propose("op-metro")
    metro.hear()
    metro.hear_this(
        letter(
            city,
            payload={"indicator": "j:687:of-another"},
            derived_from=own(metro),
        )
    )
    grid.hear_this(letter(city, payload={"operator": "op-grid"}, derived_from=("not-ours",)))

    assert settled(grid) == ("not possible", "no finding")
    metro.round()
    assert {one.said.indicator: one.why for one in metro.db.proposals.all()} == {
        "j:687:of-another": "no finding",
        tokens_of(ATTACKER, NOON)[0]: "",
    }


def test_a_proposal_that_came_too_late_is_shown_as_expired(tmp_path: Path) -> None:
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    city.propose("op-metro")
    city.clock.turn(hours=25)

    assert settled(metro) == ("expired", "time")
    assert metro.db.runs.all() == []


def test_what_nobody_decided_in_time_ends_with_its_run(tmp_path: Path) -> None:
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    metro.hear_this(letter(city, expires=NOON + timedelta(minutes=5), derived_from=own(metro)))
    assert settled(metro) == ("planned", "")
    city.clock.turn(minutes=6)
    metro.round()
    metro.round()

    assert settled(metro) == ("expired", "time")
    assert [one.state for one in metro.db.runs.all()] == ["cancelled"]


def test_a_campaign_that_is_taken_back_takes_its_proposals_with_it(tmp_path: Path) -> None:
    city, metro, grid = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    city.propose("op-metro")
    metro.round()
    grid.db.outgoing.withdraw("me", "error", city.clock(), share_id=own(grid)[0])
    grid.send()
    metro.round()

    assert (metro.one.state, metro.one.why) == ("expired", "withdrawn")
    metro.round()
    assert metro.db.runs.all(open_only=True) == []
    assert metro.device.calls() == []


def test_what_was_held_back_in_shadow_may_be_planned_when_it_may_go_further(
    tmp_path: Path,
) -> None:
    books = {"block": playbook(deny("block"), stage="shadow")}
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid", books=books)
    city.propose("op-metro")
    assert settled(metro) == ("planned", "shadow")
    assert city.answers() == {"op-metro": "Planned: in shadow, nothing was done"}

    books["block"] = playbook(deny("block"), stage="approve_all")
    assert metro.db.proposals.accept(metro.one.id, "ada", city.clock())

    assert settled(metro) == ("planned", "")
    assert metro.yes()
    assert settled(metro) == ("applied", "")


def test_what_was_held_back_in_shadow_ends_with_the_proposal(tmp_path: Path) -> None:
    books = {"block": playbook(deny("block"), stage="shadow")}
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid", books=books)
    city.propose("op-metro")
    metro.round()
    city.clock.turn(hours=25)

    assert settled(metro) == ("expired", "time")
    assert metro.db.proposals.open() == []


# ---- The hub's word lifts no check


def test_what_may_never_be_touched_is_refused_by_the_operators_own_gate(tmp_path: Path) -> None:
    address = "203.0.113.200"
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid", address=address)
    guard(metro)
    city.propose("op-metro")

    assert settled(metro) == ("not possible", "refused")
    assert metro.device.calls() == []
    assert city.answers() == {"op-metro": "Not possible: the operator's own safety gate refuses it"}
    denied = [
        check.why
        for run in metro.db.runs.all()
        for planned in run.plan.actions
        for check in planned.checks
        if check.outcome == "deny"
    ]
    assert any("pump" in why and "touched" in why for why in denied), denied


def test_where_a_step_may_start_alone_the_citys_waits_for_a_person(tmp_path: Path) -> None:
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    corroborated = metro.db.get(metro.find(rule="r-2"))
    made = guard(metro)
    city.propose("op-metro")
    metro.round()

    (run,) = metro.db.runs.all()
    said = [
        {check.name: check.outcome for check in plan.actions[0].checks}["approvals"]
        for plan in (made.plan(made.book, corroborated), run.plan)
    ]
    assert said == ["allow", "needs approval"]
    assert metro.device.calls() == []
    assert metro.yes()
    metro.round()
    assert metro.device.denied() == {"203.0.113.9"}


def test_the_citys_marking_counts_where_it_is_the_stricter_one(tmp_path: Path) -> None:
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    guard(metro)
    metro.hear_this(letter(city, pap="red", derived_from=own(metro)))

    assert settled(metro) == ("not possible", "refused")
    (run,) = metro.db.runs.all()
    assert run.finding["cw.marking.pap"] == "red"


def test_nobody_approves_what_they_asked_for_at_the_hub(tmp_path: Path) -> None:
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    city.propose("op-metro")
    metro.round()

    with pytest.raises(InputError, match="nobody approves their own request"):
        metro.yes(by="city: ciso")


def test_a_run_of_ours_about_the_same_is_taken_for_the_citys(tmp_path: Path) -> None:
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    finding = metro.db.get(metro.db.outgoing.shared(own(metro)[0]).finding)
    book = metro.books["block"]
    plan = Shelf(metro.db, metro.books).plan(book, finding)
    mine = new_run("mine", book, plan, NOON, finding=finding, group=group_of(book, finding))
    assert metro.db.runs.start(mine)
    city.propose("op-metro")

    assert settled(metro)[0] == "planned"
    assert metro.one.run == "mine"
    assert len(metro.db.runs.all()) == 1


# ---- Answers


def test_a_person_declines_and_the_city_reads_a_word_of_the_list(tmp_path: Path) -> None:
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    city.propose("op-metro")
    metro.round()

    assert metro.db.proposals.decline(metro.one.id, "ada", "harm", "pump 7 hangs on it", NOON)
    metro.round()

    assert city.answers() == {"op-metro": "Declined: it would do harm"}
    assert metro.said[-1] == {"proposal": metro.one.id, "state": "declined", "why": "harm"}
    letters = b"".join(one.data for one in metro.db.outgoing.lines())
    assert b"pump 7" not in letters


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("none", {}),
        ("state", {"op-metro": "Declined"}),
        ("reason", {"op-metro": "Declined: not now"}),
    ],
)
def test_an_answer_leaves_as_far_as_the_policy_lets_it(
    answers: str, said: dict[str, str], tmp_path: Path
) -> None:
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    metro.policy.answers = answers
    city.propose("op-metro")
    metro.hear()
    metro.db.proposals.decline(metro.one.id, "ada", "later", "", NOON)
    metro.send()

    assert {name: text for name, text in city.answers().items() if text} == said
    fields = {field for one in metro.said for field in one}
    assert fields <= {"proposal", "state", "why"}


def test_an_answer_to_what_was_not_proposed_is_refused_and_the_channel_goes_on(
    tmp_path: Path,
) -> None:
    city, metro, grid = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    city.propose("op-metro")
    metro.hear()
    theirs = metro.one

    for campaign, payload in (
        (city.campaign, {"proposal": theirs.id, "state": "applied"}),
        (city.campaign, {"proposal": "00" * 16, "state": "applied"}),
        ("nothing", {"proposal": theirs.id, "state": "burnt"}),
        (city.campaign, {"proposal": theirs.id, "state": "new"}),
    ):
        with pytest.raises(Refused):
            city.proposals.answered("op-grid", campaign, payload)
    assert city.answers() == {"op-metro": ""}
    assert grid.db.proposals.all() == []


# ---- What an operator may know


def test_nothing_of_another_operator_stands_in_a_proposal(tmp_path: Path) -> None:
    city, metro, grid = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    city.propose("op-metro", "op-grid")
    metro.hear()
    grid.hear()

    for node, other in ((metro, grid), (grid, metro)):
        (said,) = [one for one in node.db.outgoing.inbox() if one.type == "proposal"]
        text = said.data.decode()
        assert other.name not in text
        assert not any(share in text for share in own(other))
        assert set(node.one.said.shares) == set(own(node))


def test_who_was_told_of_no_campaign_is_proposed_nothing(tmp_path: Path) -> None:
    policy = TokenPolicy(audiences=("city-soc",))
    city, metro, grid = told_twice(
        tmp_path, Clock(), "op-metro", "op-grid", by_itself=WAY, policy=policy
    )

    with pytest.raises(InputError, match="op-metro was not told of this campaign"):
        city.want("op-metro")
    for node in (metro, grid):
        node.round()
        assert node.db.proposals.all() == []


@pytest.mark.parametrize(
    "reason", ["", "op-grid sees it, too", "two\nlines", "x" * 501, "as at OP-GRID."]
)
def test_a_reason_is_a_line_that_names_no_operator(reason: str, evening: Any) -> None:
    city, *_ = evening

    with pytest.raises(InputError):
        city.want("op-metro", reason=reason)


@pytest.mark.parametrize("name", ["grid.saltmere", "op_grid", "op-grid"])
def test_whatever_an_operator_is_called_a_reason_does_not_name_it(name: str, evening: Any) -> None:
    city, *_ = evening
    wanted = Wanted(
        campaign=city.campaign, operators=("op-metro",), playbook=WAY.name, action=WAY.action,
        reason=f"As at {name.upper()}-2.", by="ciso", at=NOON,
    )  # fmt: skip

    with pytest.raises(InputError, match="the reason names an operator"):
        want(city.ends.commons.records, wanted, ["op-metro", name])


# ---- kill -9


POINTS = (
    "exchange-letter:1", "exchange-letter:3", "proposal-before-letter", "proposal-before-letter:2",
    "proposal-after-letter", "exchange-receipt:3", "exchange-link:4", "run-start:1", "run-start:2",
    "seal-before-commit:4", "seal-after-commit:4", "receipt-before-commit:5",
)  # fmt: skip


def a_night(folder: Path, clock: Clock) -> tuple[City, list[Operator]]:
    """The whole of it, from the findings to the block; again after a kill, it goes on."""
    city = City(folder, clock, WAY)
    nodes = [Operator(folder, name, city) for name in ("op-metro", "op-grid")]
    for node in nodes:
        if not node.db.checkpoint()[0]:
            node.find()
    for _ in range(5):
        for node in nodes:
            node.round()
            for run in node.db.runs.all(open_only=True):
                if not run.approvals:
                    node.db.runs.approve(run.id, "ada", "analyst", run.plan.hash)
        clock.turn(seconds=20)
    return city, nodes


@pytest.mark.parametrize("point", POINTS)
def test_after_a_kill_nothing_is_lost_and_nothing_is_done_twice(point: str, tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        try:
            faults._NAME, _, faults._NTH = point.partition(":")
            a_night(tmp_path, Clock())
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"{point} was not passed"

    city, nodes = a_night(tmp_path, Clock(NOON + timedelta(minutes=3)))

    assert city.answers() == dict.fromkeys(("op-metro", "op-grid"), "Applied")
    for node in nodes:
        assert len(node.db.runs.all()) == 1
        assert [call[0] for call in node.device.calls()] == ["deny"]
        assert [one["state"] for one in node.said][-1] == "applied"


# ---- At the hub


def test_the_page_of_a_campaign_has_what_was_proposed_and_answered(tmp_path: Path) -> None:
    city, metro, _ = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    db = NodeDb(tmp_path / "people.db", b"city", clock=city.clock, is_hub=True)
    view = HubView(
        city.ends.commons, db, city.folder / "exchange", Town(), b"of a test", threshold=3,
        store="", deadlines=duties.load(), playbooks=lambda: [WAY], clock=city.clock,
    )  # fmt: skip
    view.propose(city.campaign, WAY.name, ["op-metro"], "it scans us all", "ciso")
    what = f"Proposed by ciso: {WAY.action}. it scans us all"
    waits = {(one.what, one.answer) for one in view.told(city.campaign)}
    city.proposals.step()
    metro.round()

    told = {(one.what, one.answer) for one in view.told(city.campaign)}

    assert view.concerned(city.campaign) == ["op-grid", "op-metro"]
    assert (f"Waits to be sent. {what}", "") in waits
    assert (what, "Planned, waits for a person") in told
    assert [one.action for one in view.trail("proposed", Range())[0]] == ["campaign: proposed"]
    with pytest.raises(InputError, match="no playbook is called 'burn'"):
        view.propose(city.campaign, "burn", ["op-metro"], "why", "ciso")
    db.close()


def test_a_hub_that_would_propose_what_does_not_ship_says_so(tmp_path: Path) -> None:
    said = f'operator = "city"\nstate_dir = "{tmp_path}/state"\n[hub]\npropose = "burn"\n'
    (tmp_path / "cityward.toml").write_text(said)

    with pytest.raises(ConfigError, match="no playbook is called 'burn'") as error:
        hub_of(config.load(tmp_path / "cityward.toml"))

    assert error.value.where == "hub.propose"
    assert "external-scanner" in error.value.todo
