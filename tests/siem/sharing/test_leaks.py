"""No value that was to stay is in anything that leaves; and the search for it finds what hides."""

from __future__ import annotations

import base64
import gzip
import hashlib
import ipaddress
import json
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from siem.city.authority import Operator
from siem.city.intake import document_of
from siem.sharing.compiler import BASELINE
from siem.sharing.envelope import BEGIN, Envelope, payload_hash, sign
from siem.sharing.policy import Policy
from siem.sharing.share import Share
from tests.siem.sharing.findings import NOW, TOKENS, accepted, findings, policies, secrets_of
from tests.siem.sharing.leaks import leaks, leaks_in_files

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
EXAMPLE = BASELINE.parent / "example.yml"
CANARY = "203.0.113.77"
PERSON = "m.rossi-canary"


def envelope_of(share: Share) -> Envelope:
    """The envelope that leaves."""
    payload = json.loads(msgspec.json.encode(share.payload))
    return Envelope(
        type="share", sent=NOW, operator="op-x", key_id="k", seq=1, prev=BEGIN,
        share_id=share.share_id, revision=share.revision, policy=share.policy, rule=share.rule,
        audiences=share.audiences, tlp=share.tlp, pap=share.pap, expires=share.expires,
        payload=payload, payload_sha256=payload_hash(payload),
    )  # fmt: skip


def sent(share: Share) -> bytes:
    """The bytes that leave."""
    return sign(envelope_of(share), KEY).lines()


def leaked(policy: Policy, document: dict[str, Any]) -> list[Any]:
    share = policy.share(document, NOW)
    if share is None:
        return []
    lines = sent(share)
    return leaks(secrets_of(document, share.payload), {"sent": lines, "gz": gzip.compress(lines)})


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=findings(), policy=policies())
def test_nothing_that_was_to_stay_leaves_under_any_policy_of_the_baseline(
    document: dict[str, Any], policy: Policy
) -> None:
    assert leaked(policy, document) == []


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=findings())
def test_nothing_that_was_to_stay_leaves_under_the_example(document: dict[str, Any]) -> None:
    assert leaked(accepted(EXAMPLE.read_text(encoding="utf-8")), document) == []


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=findings(), policy=policies())
def test_the_hub_takes_whatever_a_policy_lets_out(document: dict[str, Any], policy: Policy) -> None:
    share = policy.share(document, NOW)
    if share is not None:
        operator = Operator(name="op-x", sector="other", added=NOW)
        said, passed_over = document_of(envelope_of(share), operator, NOW)
        assert passed_over == ()
        assert share.payload.keys() <= said.keys()


def test_a_rule_named_after_a_person_or_a_host_does_not_tell_them() -> None:
    policy = accepted(EXAMPLE.read_text(encoding="utf-8"))
    document = {
        "finding.id": "1", "finding.type": "detection", "finding.severity": "high",
        "finding.verdict": "unknown", "finding.first_seen": NOW, "finding.last_seen": NOW,
        "source.ip": CANARY, "user.name": PERSON, "rule.name": f"Login of {PERSON}", "rule.id": "r",
    }  # fmt: skip

    share = policy.share(document, NOW)

    assert share is not None
    assert "rule.name" not in share.payload
    assert "finding.title" not in share.payload
    assert {"rule.name", "user.name"} <= set(share.kept)
    assert leaked(policy, document) == []


HIDDEN: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "in capitals": lambda value: value.upper().encode(),
    "md5": lambda value: hashlib.md5(value.encode(), usedforsecurity=False).hexdigest().encode(),
    "sha1": lambda value: hashlib.sha1(value.encode(), usedforsecurity=False).hexdigest().encode(),
    "sha256": lambda value: hashlib.sha256(value.encode()).hexdigest().upper().encode(),
    "sha256 in base64": lambda value: base64.b64encode(hashlib.sha256(value.encode()).digest()),
    "hex": lambda value: value.encode().hex().encode(),
    "base64": lambda value: base64.b64encode(value.encode()),
    "base64 in a text": lambda value: base64.b64encode(f"so it was {value}, and".encode()),
    "base64 for addresses": lambda value: base64.urlsafe_b64encode(f"?>{value}??".encode()),
    "gzip": lambda value: b"head" + gzip.compress(f"a {value} b".encode() * 3) + b"tail",
    "zlib": lambda value: zlib.compress(value.encode() * 2),
    "gzip in base64": lambda value: base64.b64encode(gzip.compress(value.encode() * 2)),
    "escapes": lambda value: "".join(f"\\u{ord(char):04x}" for char in value).encode(),
    "utf-16": lambda value: value.encode("utf-16-le"),
}
OF_ADDRESS: dict[str, Callable[[str], bytes]] = {
    "octets turned round": lambda value: ".".join(reversed(value.split("."))).encode(),
    "integer": lambda value: str(int(ipaddress.ip_address(value))).encode(),
    "hex integer": lambda value: f"{int(ipaddress.ip_address(value)):08X}".encode(),
    "hash with its type": lambda value: (
        hashlib.sha256(f"ipv4-addr:{value}".encode()).hexdigest().encode()
    ),
}


@pytest.mark.parametrize("way", [*HIDDEN, *OF_ADDRESS])
@pytest.mark.parametrize("value", [CANARY, PERSON])
def test_a_canary_is_found_however_it_is_hidden(way: str, value: str, tmp_path) -> None:
    if way in OF_ADDRESS and value == PERSON:
        return
    hide = HIDDEN.get(way) or OF_ADDRESS[way]
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "shard").write_bytes(b'{"x": "' + hide(value) + b'"}')

    found = leaks_in_files({"field": [value]}, tmp_path)

    assert [one.name for one in found][:1] == ["field"], way
    assert leaks_in_files({"field": ["198.51.100.201", "somebody else"]}, tmp_path) == []


@settings(max_examples=200, deadline=None)
@given(before=st.binary(max_size=40), after=st.binary(max_size=40))
def test_base64_hides_nothing_wherever_it_begins(before: bytes, after: bytes) -> None:
    said = base64.b64encode(before + PERSON.encode() + after)

    assert leaks({"user.name": [PERSON]}, {"sent": b"<" + said + b">"})


def test_a_canary_left_in_a_policy_is_caught() -> None:
    """A transform that only hashes, as somebody may write it, is no protection."""
    policy = accepted(EXAMPLE.read_text(encoding="utf-8"))

    class Careless:
        def token(self, name: str, epoch: int) -> str:
            return hashlib.sha256(name.encode()).hexdigest()

    careless = msgspec.structs.replace(policy, tokens=type(TOKENS)(b"l" * 32, Careless()))
    document = {
        "finding.id": "1", "finding.type": "detection", "finding.severity": "high",
        "finding.verdict": "unknown", "finding.first_seen": NOW, "finding.last_seen": NOW,
        "source.ip": CANARY,
    }  # fmt: skip

    assert leaked(policy, document) == []
    assert {one.form for one in leaked(careless, document)} == {"sha256 with its type"}
