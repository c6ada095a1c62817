"""What becomes of a field: canonical forms, what is external, grids, intervals, ranges, classes."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siem.sharing import transforms
from siem.sharing.external import NEVER, Plan, address_of, name_of, registered
from siem.sharing.transforms import Stays

PLAN = Plan(
    ["10.0.0.0/8", "192.0.2.7", "2001:db8:aaaa::/48"], ["198.51.100.0/25"], ["Saltmere.Example."]
)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:DB8:0:0:0::1", "2001:db8::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("64:ff9b::203.0.113.7", "203.0.113.7"),
        ("fe80::1%eth0", "fe80::1"),
        (" 203.0.113.7 ", "203.0.113.7"),
    ],
)
def test_an_address_has_one_canonical_form(written: str, canonical: str) -> None:
    assert str(address_of(written)) == canonical
    assert transforms.typed("source.ip", written) == (
        f"ipv{ipaddress.ip_address(canonical).version}-addr:{canonical}"
    )


@pytest.mark.parametrize("text", ["203.0.113.007", "host", "", "1.2.3", "203.0.113.7/24"])
def test_what_is_no_address_has_none(text: str) -> None:
    assert address_of(text) is None


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("WWW.Example.ORG.", "www.example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("_dmarc.example.org", "_dmarc.example.org"),
        ("host", None),
        ("203.0.113.7", None),
        ("a b.example", None),
        ("x" * 300 + ".org", None),
    ],
)
def test_a_name_is_lower_case_and_idna(written: str, canonical: str | None) -> None:
    assert name_of(written) == canonical


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("a.b.example.org", "example.org"),
        ("a.b.example.co.uk", "example.co.uk"),
        ("x.evil.duckdns.org", "evil.duckdns.org"),
        ("example.org", "example.org"),
        ("co.uk", None),
        ("duckdns.org", None),
    ],
)
def test_the_registered_part_of_a_name(name: str, owner: str | None) -> None:
    assert registered(name) == owner


@pytest.mark.parametrize("network", NEVER)
def test_no_special_network_is_external(network: str) -> None:
    first = ipaddress.ip_network(network)[0]
    last = ipaddress.ip_network(network)[-1]

    assert not PLAN.is_external(first)
    assert not PLAN.is_external(last)


@pytest.mark.parametrize(
    "address",
    ["10.9.9.9", "192.0.2.7", "2001:db8:aaaa:5::1", "198.51.100.127", "::1", "::ffff:10.1.1.1"],
)
def test_own_and_peer_addresses_are_never_joined(address: str) -> None:
    assert transforms.indicators("source.ip", address, {}, PLAN) is Stays.OURS
    assert transforms.trunc("source.ip", address, PLAN) is Stays.OURS


def test_an_address_joins_with_its_network_unless_some_of_that_is_ours() -> None:
    alone = transforms.indicators("source.ip", "203.0.113.7", {}, PLAN)
    beside_a_peer = transforms.indicators("source.ip", "198.51.100.200", {}, PLAN)
    six = transforms.indicators("source.ip", "2001:db8:bbbb::1", {}, PLAN)

    assert alone == [("j", "ipv4-addr:203.0.113.7"), ("p", "ipv4-addr:203.0.113.0/24")]
    assert beside_a_peer == [("j", "ipv4-addr:198.51.100.200")]
    assert six == [("j", "ipv6-addr:2001:db8:bbbb::1"), ("p", "ipv6-addr:2001:db8:bbbb::/48")]
    assert transforms.trunc("source.ip", "203.0.113.7", PLAN) == "n:203.0.113.0/24"
    assert transforms.trunc("source.ip", "198.51.100.200", PLAN) is Stays.OURS


def test_without_a_plan_nothing_is_external() -> None:
    assert transforms.indicators("source.ip", "203.0.113.7", {}, Plan()) is Stays.OURS


@given(st.ip_addresses())
def test_an_address_is_external_just_if_it_is_in_no_network_of_the_plan(address) -> None:
    said = ["10.0.0.0/8", "192.0.2.7/32", "2001:db8:aaaa::/48", "198.51.100.0/25", *NEVER]
    networks = [ipaddress.ip_network(one) for one in said]

    inside = any(address.version == one.version and address in one for one in networks)

    assert PLAN.is_external(address) is not inside


@pytest.mark.parametrize(
    "name", ["db.saltmere.example", "saltmere.example", "nas.local", "7.2.0.192.in-addr.arpa"]
)
def test_own_names_and_names_of_every_house_are_never_joined(name: str) -> None:
    assert transforms.indicators("dns.question.name", name, {}, PLAN) is Stays.OURS


def test_a_name_joins_with_its_registered_part() -> None:
    found = transforms.indicators("dns.question.name", "C2.Evil.Example.", {}, PLAN)

    assert found == [("j", "domain-name:c2.evil.example"), ("p", "domain-name:evil.example")]
    assert transforms.trunc("dns.question.name", "c2.evil.example", PLAN) == "evil.example"


def test_a_fingerprint_joins_only_if_it_is_of_somebody_outside() -> None:
    hash_ = "E7D705A3286E19EA42F587B344EE6865"

    outside = transforms.indicators("tls.client.ja3", hash_, {"source.ip": "203.0.113.7"}, PLAN)
    ours = transforms.indicators("tls.client.ja3", hash_, {"source.ip": "10.1.2.3"}, PLAN)

    assert outside == [("j", f"tls-fingerprint:{hash_.lower()}")]
    assert ours is Stays.OURS
    assert transforms.indicators("tls.client.ja3", hash_, {}, PLAN) is Stays.OURS


def test_a_path_joins_as_tools_ask_for_it() -> None:
    at = {"source.ip": "203.0.113.7"}

    one = transforms.indicators("url.path", "/Scripts/v12/x/y/z?id=7", at, PLAN)

    assert one == [("j", "url-path:/scripts/v0/x")]
    assert transforms.category("/wp-admin/login.php", transforms.PATH_CLASSES) == "cms"
    assert transforms.category("/timetable", transforms.PATH_CLASSES) == "other"


@given(st.integers(-(10**15), 10**15) | st.floats(-1e15, 1e15))
def test_a_bucket_is_the_lower_limit_of_its_range(number: float) -> None:
    low = transforms.bucket(number)

    assert low is not None
    assert low <= number
    assert type(low) is type(number)
    assert transforms.bucket(low) == low
    assert str(abs(int(low))).rstrip("0") in ("", "1", "2", "5")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_has_no_bucket(number: float) -> None:
    assert transforms.bucket(number) is None


@given(st.datetimes(timezones=st.just(UTC)), st.sampled_from((1, 60, 3600, 86_400)))
def test_a_time_is_rounded_down_to_its_interval(time: datetime, seconds: int) -> None:
    step = timedelta(seconds=seconds)

    rounded = transforms.round_time(time, step)

    assert timedelta() <= time - rounded < step
    assert transforms.round_time(rounded, step) == rounded


@given(st.floats(-85, 85), st.floats(-180, 180), st.sampled_from((100.0, 500.0, 1000.0)))
def test_a_place_is_within_its_cell_and_the_middle_stays_where_it_is(
    latitude: float, longitude: float, metres: float
) -> None:
    shown = transforms.grid(f"{latitude},{longitude}", metres)

    assert shown is not None
    north, _ = (float(part) for part in shown.split(","))
    assert abs(north - latitude) * 111_320 <= metres / 2 + 2
    assert transforms.grid(shown, metres) == shown


@pytest.mark.parametrize("point", ["", "91,0", "0,181", "a,b", "1", "nan,nan"])
def test_what_is_no_place_has_no_cell(point: str) -> None:
    assert transforms.grid(point, 1000.0) is None


def test_a_template_is_filled_only_with_what_leaves() -> None:
    texts = ("{rule.name} on {cw.asset.type}", "{rule.name}")

    assert transforms.filled(texts, {"rule.name": "Scan {user.name}"}) == "Scan {user.name}"
    assert transforms.filled(texts, {"rule.name": "Scan", "cw.asset.type": "plc"}) == "Scan on plc"
    assert transforms.filled(texts, {}) is Stays.NOTHING
