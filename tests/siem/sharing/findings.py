"""Findings and policies that hypothesis makes, for the tests of what may leave."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from cityward.fields import FIELDS, FINDING_FIELDS
from cityward.finding import SEVERITIES
from siem.sharing import transforms
from siem.sharing.compiler import Baseline, compile_policy, load_baseline
from siem.sharing.external import Plan
from siem.sharing.policy import CLOSEST_TLP, TLP, Policy
from siem.sharing.tokens import Hmac, Tokens

NOW = datetime(2026, 3, 20, 12, 0, tzinfo=UTC)
OWN = ("10.0.0.0/8", "192.0.2.0/24", "2001:db8:aaaa::/48")
PLAN = Plan(OWN, ["198.51.100.0/24"], ["saltmere.example"])
TOKENS = Tokens(b"l" * 32, Hmac(b"r" * 32))
BASE: Baseline = load_baseline()
KNOWN = {**FIELDS, **FINDING_FIELDS}
WORDS: dict[str, tuple[str, ...]] = {
    "finding.type": ("detection", "anomaly", "correlation", "hazard"),
    "finding.severity": SEVERITIES,
    "finding.mode": ("normal", "exercise", "test"),
    "finding.status": ("new", "in_progress"),
    "finding.verdict": ("unknown", "true_positive"),
    "cw.domain": ("cyber", "physical", "hazard"),
    "cw.sector": ("transport.rail", "energy.electricity"),
}
"""Fields whose values are words of the schema, so nothing that could leak."""

marks = st.integers(0, 0xFFFF_FFFF).map(lambda number: f"zq{number:08x}xk")
"""A text that stands nowhere by chance."""
addresses = st.one_of(
    st.tuples(
        st.sampled_from(("10.7", "192.0", "198.51", "203.0", "93.184")), st.integers(0, 255)
    ).flatmap(lambda two: st.integers(1, 254).map(lambda last: f"{two[0]}.{two[1]}.{last}")),
    st.integers(1, 0xFFFF).map(lambda number: f"2001:db8:aaaa::{number:x}"),
    st.integers(1, 0xFFFF).map(lambda number: f"2001:db8:bbbb:1::{number:x}"),
    st.integers(1, 0xFFFF).map(lambda number: f"fd00::{number:x}"),
)
names = st.tuples(marks, st.sampled_from(("example.org", "saltmere.example", "x.co.uk"))).map(
    ".".join
)
_TIMES = st.integers(0, 40 * 86_400).map(lambda seconds: NOW - timedelta(seconds=seconds))
_OF_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "keyword": marks,
    "text": st.tuples(marks, addresses).map(" seen at ".join),
    "ip": addresses,
    "geo_point": st.tuples(st.floats(-80, 80), st.floats(-170, 170)).map(
        lambda two: f"{two[0]:.6f},{two[1]:.6f}"
    ),
    "date": _TIMES,
    "long": st.integers(-10, 2**40),
    "double": st.floats(allow_nan=True, allow_infinity=True),
    "float": st.floats(0, 1),
    "boolean": st.booleans(),
    "flat_object": st.dictionaries(marks, marks, max_size=2),
}


def values(name: str) -> st.SearchStrategy[Any]:
    """Values of a field."""
    kind = KNOWN[name].type
    one = _OF_TYPE[kind.removesuffix("[]")]
    if kind.startswith("keyword"):
        # Of each field its own, so that no field has by chance what another one hides.
        one = marks.map(lambda mark: f"{mark}{zlib.crc32(name.encode()):08x}")
    if name in WORDS:
        one = st.sampled_from(WORDS[name])
    elif name in transforms.NAMES:
        one = names
    elif name == "url.path":
        one = marks.map(lambda mark: f"/{mark}/login.php?u=1")
    return st.lists(one, min_size=1, max_size=3) if kind.endswith("[]") else one


@st.composite
def findings(draw: st.DrawFn) -> dict[str, Any]:
    """A finding with any fields; texts that a rule may keep sometimes repeat what stays."""
    chosen = draw(st.sets(st.sampled_from(sorted(KNOWN)), max_size=40))
    chosen |= {"source.ip", "destination.ip", "user.name", "rule.name", "finding.title"}
    chosen |= {"finding.type", "finding.verdict"}  # or few would leave
    document = {name: draw(values(name)) for name in sorted(chosen)}
    document |= {
        "finding.id": draw(st.uuids()).hex,
        "finding.revision": 1,
        "finding.severity": draw(st.sampled_from(SEVERITIES)),
        "finding.first_seen": draw(_TIMES),
        "finding.last_seen": draw(_TIMES),
    }
    if draw(st.booleans()):
        hidden = draw(st.sampled_from(("user.name", "source.ip", "destination.ip")))
        document["rule.name"] = f"login of {document[hidden]} at night"
    return document


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """A policy that the baseline allows, with any of its fields in any allowed form."""
    fields = {
        name: draw(st.sampled_from(sorted(BASE.limits.fields[name])))
        for name in sorted(draw(st.sets(st.sampled_from(sorted(BASE.limits.fields)), max_size=40)))
    }
    fields |= {"finding.first_seen": "round", "rule.name": "keep", "finding.title": "template"}
    text = written([{"name": "all", "when": {}, "to": ["city-soc"], "fields": fields}])
    return accepted(text)


@st.composite
def drafts(draw: st.DrawFn) -> str:
    """Any text of a policy, most of them not allowed."""
    kinds = st.sampled_from(sorted(transforms.TRANSFORMS))
    fields = draw(st.dictionaries(st.sampled_from(sorted(KNOWN)), kinds, max_size=6))
    likely = draw(st.sets(st.sampled_from(sorted(BASE.limits.fields)), max_size=8))
    fields |= {name: draw(kinds) for name in sorted(likely)}
    fields.setdefault("finding.first_seen", "round")
    rule: dict[str, Any] = {"name": "all", "fields": fields}
    rule["when"] = draw(st.sampled_from(({}, {"cw.domain": "hazard"}, {"cw.domain": ["hazard"]})))
    rule["to"] = draw(st.lists(st.sampled_from(sorted(CLOSEST_TLP)), min_size=1, max_size=3))
    rule["tlp"] = draw(st.sampled_from(TLP))
    rule["precision"] = {
        "time": draw(st.sampled_from(("1s", "1m", "1h"))),
        "place": draw(st.sampled_from(("exact", "500m", "1km"))),
    }
    if draw(st.booleans()):
        rule["legal_basis"] = "GDPR 6(1)(f)"
    return written([rule])


def written(rules: list[dict[str, Any]], **said: Any) -> str:
    """A policy as a file; JSON is YAML."""
    policy = {"policy": "op-x/test", "operator": "op-x", "inherits": BASE.id, "rules": rules}
    return json.dumps({**policy, **said})


def accepted(text: str, plan: Plan = PLAN, tokens: Tokens = TOKENS) -> Policy:
    """A policy, once it is compiled."""
    return compile_policy(text.encode(), "policy.yml", plan=plan, tokens=tokens, baseline=BASE)


def secrets_of(document: Mapping[str, Any], leaving: Mapping[str, Any]) -> dict[str, list[str]]:
    """Texts of a finding that were to stay: all that do not leave as they are."""
    found: dict[str, list[str]] = {}
    for name, value in document.items():
        if name in WORDS or leaving.get(name) == value:
            continue
        several = value if isinstance(value, (list, tuple)) else [value]
        texts = [one for one in several if isinstance(one, str)]
        texts += [part for one in several if isinstance(one, dict) for part in one.values()]
        found[name] = texts
    return found
