"""The policy: what it lets out, and what its compiler refuses, each with file, key and reason."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from math import isfinite
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cityward import ConfigError
from cityward.fields import FIELDS, PERSONAL, faults
from siem.sharing import preview, transforms
from siem.sharing.compiler import BASELINE, compile_policy, load_baseline
from siem.sharing.external import Plan
from siem.sharing.policy import CLOSEST_TLP, TLP
from siem.sharing.share import share_id
from siem.sharing.tokens import Tokens
from tests.siem.sharing.findings import (
    BASE,
    KNOWN,
    NOW,
    PLAN,
    TOKENS,
    accepted,
    drafts,
    values,
    written,
)

EXAMPLE = (BASELINE.parent / "example.yml").read_text(encoding="utf-8")
ATTACK: dict[str, Any] = {
    "finding.id": "0b8f4e1c-0000-5000-8000-000000000000",
    "finding.revision": 3,
    "finding.type": "detection",
    "finding.title": "SSH login of m.rossi from 203.0.113.7",
    "finding.severity": "high",
    "finding.verdict": "unknown",
    "finding.mode": "exercise",
    "finding.first_seen": NOW - timedelta(minutes=7, seconds=12),
    "finding.last_seen": NOW - timedelta(seconds=42),
    "rule.name": "SSH passwords guessed from one address",
    "rule.id": "b8797130",
    "source.ip": "203.0.113.7",
    "destination.ip": "10.1.2.3",
    "destination.port": 22,
    "user.name": "m.rossi",
    "cw.asset.asset_id": "jump-1",
    "cw.asset.type": "jump_host",
    "cw.why": {"condition": "x"},
}
RULE: dict[str, Any] = {
    "name": "all",
    "when": {},
    "to": ["city-soc"],
    "fields": {"finding.first_seen": "round"},
}


def refused(text: str, **options: Any) -> str:
    """What a file is refused for, with its place."""
    options = {"plan": PLAN, "tokens": TOKENS, "baseline": BASE, **options}
    with pytest.raises(ConfigError) as error:
        compile_policy(text.encode(), "policy.yml", **options)
    assert error.value.todo
    return f"{error.value.where}: {error.value.what}"


def with_fields(more: Mapping[str, str], **said: Any) -> str:
    return written([{**RULE, **said, "fields": {"finding.first_seen": "round", **more}}])


def wrong(payload: Mapping[str, Any]) -> list[str]:
    """What of a payload the hub would refuse."""
    document = {name: value for name, value in payload.items() if name in FIELDS}
    numbers = [
        name for name, value in payload.items() if isinstance(value, float) and not isfinite(value)
    ]
    long = [name for name, value in payload.items() if len(str(value)) > 1_100]
    return [*faults(document), *numbers, *long]


# ---- what leaves


def test_a_finding_leaves_in_the_form_of_the_first_rule_that_holds() -> None:
    share = accepted(EXAMPLE).share(ATTACK, NOW)

    assert share is not None
    assert share.rule == "external-attackers"
    assert share.audiences == ("city-soc", "peers")
    assert (share.tlp, share.pap, share.approval) == ("green", "green", "auto")
    assert (share.finding, share.revision) == (ATTACK["finding.id"], 3)
    assert share.share_id == share_id(ATTACK["finding.id"])
    payload = dict(share.payload)
    tokens = payload.pop("source.token")
    assert [token[:2] for token in tokens] == ["j:", "p:"]
    assert payload.pop("destination.token")[0].startswith("l:")
    assert payload.pop("cw.asset.asset_id").startswith("l:")
    assert payload == {
        "finding.type": "detection",
        "finding.severity": "high",
        "finding.title": "SSH passwords guessed from one address",
        "finding.mode": "exercise",
        "finding.first_seen": NOW - timedelta(minutes=8),
        "finding.last_seen": NOW - timedelta(minutes=1),
        "rule.name": "SSH passwords guessed from one address",
        "rule.id": "b8797130",
        "destination.port": 22,
        "cw.asset.type": "jump_host",
    }
    assert {"user.name", "cw.why", "finding.id", "finding.verdict"} <= set(share.kept)


def test_a_share_ends_after_its_retention_and_is_not_let_out_any_more() -> None:
    policy = accepted(EXAMPLE)
    share = policy.share(ATTACK, NOW)

    assert share is not None
    assert share.expires == (NOW + timedelta(days=91)).replace(hour=0)
    assert policy.share(ATTACK, share.expires - timedelta(seconds=1)) is not None
    assert policy.share(ATTACK, share.expires) is None


@pytest.mark.parametrize(
    "change",
    [
        {"finding.severity": "low"},
        {"finding.verdict": "false_positive"},
        {"finding.first_seen": None},
        {"finding.first_seen": "yesterday"},
        {"finding.id": ""},
    ],
)
def test_a_finding_stays_when_no_rule_holds_or_something_is_missing(
    change: Mapping[str, Any],
) -> None:
    assert accepted(EXAMPLE).share({**ATTACK, **change}, NOW) is None


def test_without_a_root_what_is_to_be_joined_stays() -> None:
    policy = accepted(EXAMPLE, tokens=Tokens(b"l" * 32))
    share = policy.share(ATTACK, NOW)

    assert share is not None
    assert "source.token" not in share.payload
    assert "source.ip" in share.kept


def test_a_payload_has_the_types_of_the_schema() -> None:
    """Or the hub refuses it: a field of one value has one, its further tokens stand elsewhere."""
    policy = accepted(EXAMPLE)
    early = NOW.replace(month=3, day=10)  # in the first days of an epoch, when there are two tokens
    odd = {"finding.first_seen": early, "finding.last_seen": early, "url.path": "/wp-login"}
    hash_ = {"dns.question.name": "c2.evil.example", "file.hash.sha256": "ab" * 32}

    share = policy.share({**ATTACK, **odd, **hash_}, early)

    assert share is not None
    payload = share.payload
    assert len(payload["source.token"]) == 4 + 3 + 1
    assert {token[:2] for token in payload["source.token"]} == {"j:", "p:"}
    assert payload["dns.question.name"].startswith("j:")
    assert payload["file.hash.sha256"].startswith("j:")
    assert payload["url.path"] == "cms"
    assert faults({n: v for n, v in payload.items() if n in FIELDS}) == []
    _, steps = policy.trace({**ATTACK, **odd, **hash_}, early)
    assert sum(step.field == "dns.question.name" for step in steps) == 2


def test_the_hash_of_a_policy_follows_its_text() -> None:
    assert accepted(EXAMPLE).hash == accepted(EXAMPLE).hash
    assert accepted(EXAMPLE).hash != accepted(EXAMPLE + "\n").hash


def test_values_of_a_hostile_finding_break_nothing() -> None:
    policy = accepted(EXAMPLE)
    odd: list[Any] = [None, {}, [], [{}], 7, float("nan"), "x" * 100_000, b"\0", True, [["a"]]]
    for value in odd:
        for name in KNOWN:
            if name not in ("finding.id", "finding.first_seen", "finding.revision"):
                share = policy.share({**ATTACK, name: value}, NOW)
                assert share is None or not wrong(share.payload)


# ---- preview


def test_a_preview_shows_the_very_document_beside_what_stays_and_why() -> None:
    policy = accepted(EXAMPLE)

    [shown] = preview.preview(policy, [ATTACK], NOW)

    assert shown.share == policy.share(ATTACK, NOW)
    leaves = {step.to: step.made for step in shown.leaves}
    stays = {step.field: step.made for step in shown.stays}
    assert shown.share is not None
    assert leaves == shown.share.payload
    assert stays["user.name"] == "the rule drops it"
    assert stays["cw.why"] == "no rule names it"
    assert {step.field for step in (*shown.leaves, *shown.stays)} >= set(ATTACK)
    assert {one.audience: one.findings for one in preview.tallies([shown])} == {
        "city-soc": 1,
        "peers": 1,
    }
    assert preview.for_audience([shown], "police") == []


def test_a_preview_says_why_nothing_leaves() -> None:
    [low] = preview.preview(accepted(EXAMPLE), [{**ATTACK, "finding.severity": "low"}], NOW)
    [none] = preview.preview(None, [ATTACK], NOW)

    assert {step.made for step in low.stays} == {"no rule holds for it"}
    assert {step.made for step in none.stays} == {"there is no policy"}


def test_a_changed_policy_is_shown_as_what_leaves_more_and_less() -> None:
    now = preview.preview(accepted(EXAMPLE), [ATTACK], NOW)
    changed = accepted(EXAMPLE.replace("destination.port: keep", "finding.risk: keep"))
    then = preview.preview(changed, [{**ATTACK, "finding.risk": 40}], NOW)

    [one] = preview.difference(now, then)

    assert (one.before, one.after) == ("external-attackers", "external-attackers")
    assert (one.more, one.less) == (["finding.risk: 40"], ["destination.port: 22"])
    same = preview.preview(accepted(EXAMPLE), [ATTACK], NOW)
    assert preview.difference(same, preview.preview(accepted(EXAMPLE), [ATTACK], NOW)) == []


# ---- what is refused

REFUSED = {
    "no yaml": ("a: [", "no YAML"),
    "a list": ("[1]", "no mapping of keys"),
    "a key nobody knows": (written([RULE], polices=1), "polices: 'polices' is no key here"),
    "another baseline": (written([RULE]).replace(BASE.id, "base-1999"), "inherits: there is no"),
    "no rules": (written([]), "rules: 0 rules"),
    "no when": (written([{k: v for k, v in RULE.items() if k != "when"}]), "when is missing"),
    "a name twice": (written([RULE, RULE]), "rules[1].name: 'all' is there twice"),
    "nobody told": (written([{**RULE, "to": []}]), "to: to is missing"),
    "a condition on no field": (with_fields({}, when={"finding.sevrity": "high"}),
        "rules[0].when.finding.sevrity: finding.sevrity is no field"),
    "a field that is none": (with_fields({"finding.sevrity": "keep"}),
        "rules[0].fields.finding.sevrity: finding.sevrity is no field"),
    "a field of the hub": (with_fields({"cw.share.id": "keep"}), "cw.share.id is no field of a"),
    "a transform that is none": (with_fields({"rule.id": "hash"}), "'hash' is no transform"),
    "seal, which is later": (with_fields({"source.ip": "seal"}), "'seal' is no transform"),
    "an address kept": (with_fields({"source.ip": "keep"}), "keep does not fit source.ip"),
    "free text kept": (with_fields({"finding.title": "keep"}), "keep does not fit finding.title"),
    "an address without a place": (with_fields({"related.ip": "join"}), "no field for tokens"),
    "a person kept": (with_fields({"user.name": "keep"}), "user.name can identify a person"),
    "wider than the baseline": (with_fields({"event.original": "local"}),
        "local of event.original is wider than the baseline"),
    "kept, where it may only be joined": (with_fields({"file.hash.sha256": "keep"}),
        "keep of file.hash.sha256 is wider"),
    "a person, with a basis": (with_fields({"user.name": "keep"}, legal_basis="GDPR 6(1)(f)"),
        "keep of user.name is wider than the baseline"),
    "no first_seen": (written([{**RULE, "fields": {"rule.id": "keep"}}]),
        "rules[0].fields: finding.first_seen is missing"),
    "an audience nobody knows": (with_fields({}, to=["press"]), "to[0]: 'press' is no audience"),
    "an audience the baseline leaves out": (with_fields({}, to=["prefecture"], tlp="green"),
        "prefecture may not be told this"),
    "an audience above its marking": (with_fields({}, to=["city-soc", "peers"], tlp="amber"),
        "peers may not read tlp amber"),
    "red": (with_fields({}, tlp="red"), "red is for named persons"),
    "clearer than the baseline": (with_fields({}, tlp="clear"), "tlp clear is more open"),
    "pap clearer than the baseline": (with_fields({}, pap="clear"), "pap clear is more open"),
    "too fine in time": (with_fields({}, precision={"time": "1s"}),
        "rules[0].precision.time: time is finer"),
    "too fine in place": (with_fields({}, precision={"place": "10m"}), "place is finer"),
    "kept too long": (with_fields({}, retention="400d"), "retention of 400d is too long"),
    "no span": (with_fields({}, retention="long"), "'long' is no span of time"),
    "counts of persons": (with_fields({}, release={"min_count": 5}),
        "rules[0].release: aggregates over persons are not made yet"),
    "a template with what stays": (
        with_fields({"finding.title": "template"},
                    templates={"finding.title": "login of {user.name}"}),
        "{user.name} does not leave"),
    "classes that are missing": (with_fields({"event.action": "category"}), "has no classes"),
    "a test that fails": (written([RULE], tests=[{"given": {}, "must_leave": ["rule.id"]}]),
        "tests[0].must_leave[0]: rule.id does not leave"),
    "a test of what leaves": (
        written([{**RULE, "fields": {**RULE["fields"], "rule.id": "keep"}}],
                tests=[{"given": {"rule.id": "r-1"}, "must_stay": ["rule.id"]}]),
        "tests[0].must_stay[0]: rule.id leaves"),
    "a test of another rule": (written([RULE], tests=[{"given": {}, "rule": "none"}]),
        "all lets it out, not none"),
    "an alias": ("policy: &a x\noperator: *a\n", "alias"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_policy_is_refused_with_file_key_and_reason(name: str) -> None:
    text, reason = REFUSED[name]

    said = refused(text)

    assert said.startswith("policy.yml")
    assert reason in said


def test_the_place_of_a_fault_is_line_and_key() -> None:
    text = EXAMPLE.replace("      user.name: drop", "      user.name: keep")

    line = text.splitlines().index("      user.name: keep") + 1

    assert refused(text).startswith(f"policy.yml:{line}, rules[2].fields.user.name: ")


def test_a_policy_of_another_operator_is_refused() -> None:
    assert "it is not for op-metro" in refused(EXAMPLE, operator="op-metro")


def test_every_personal_field_needs_more_than_a_wish() -> None:
    for name in sorted(PERSONAL):
        for transform in transforms.TRANSFORMS:
            if transform in ("drop",) or transform in BASE.limits.fields.get(name, ()):
                continue
            assert refused(with_fields({name: transform}))


def test_hazards_may_be_told_wider_and_only_they() -> None:
    wide = {"to": ["city-soc", "prefecture"], "tlp": "clear", "precision": {"place": "exact"}}
    fields = {"phys.location": "keep"}

    hazard = accepted(with_fields(fields, when={"cw.domain": "hazard"}, **wide))
    share = hazard.share({**ATTACK, "cw.domain": ["hazard"], "phys.location": "45.1,9.2"}, NOW)

    assert share is not None
    assert share.payload["phys.location"] == "45.1,9.2"
    for when in ({}, {"cw.domain": "cyber"}, {"cw.domain": ["hazard", "cyber"]}):
        assert refused(with_fields(fields, when=when, **wide))


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=drafts(), data=st.data())
def test_no_accepted_policy_shares_what_the_baseline_does_not_allow(
    text: str, data: st.DataObject
) -> None:
    said = json.loads(text)["rules"][0]
    try:
        policy = accepted(text)
    except ConfigError:
        assert re.match(r"policy\.yml:\d+, ", refused(text))
        return
    limits = BASE.limits_for(said["when"])
    [rule] = policy.rules
    for way in rule.ways:
        allowed = limits.fields.get(way.field, frozenset())
        assert way.transform in allowed or "keep" in allowed
    assert set(rule.audiences) <= limits.audiences
    assert TLP.index(rule.tlp) >= TLP.index(limits.tlp)
    assert all(TLP.index(rule.tlp) <= TLP.index(CLOSEST_TLP[one]) for one in rule.audiences)
    assert rule.time >= limits.time
    document = {name: data.draw(values(name)) for name in said["fields"]}
    share = policy.share({**ATTACK, **document, "cw.domain": ["hazard"]}, NOW)
    outside = {transforms.TOKEN_FIELDS.get(name, name) for name in limits.fields}
    assert share is None or set(share.payload) <= outside


def test_what_ships_is_sound() -> None:
    base = load_baseline()
    policy = compile_policy(
        EXAMPLE.encode(), "example.yml", plan=Plan(["10.0.0.0/8"]), tokens=TOKENS
    )

    assert base.id == "baseline-2026"
    assert policy.tested == 3
    for name, ways in base.limits.fields.items():
        kind = KNOWN[name].type.removesuffix("[]")
        assert all(kind in transforms.TRANSFORMS[way] for way in ways), name
        assert name not in PERSONAL or ways == {"local"}, name
