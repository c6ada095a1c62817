"""nftables at a gateway between two namespaces: TCP before, during and after a block."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from cityward import Command, ConfigError, Target, TransientError, Unsafe
from playbooks.actuators.nftables import Nftables
from playbooks.targets import target_of
from tests.playbooks.namespaces import (
    NEIGHBOUR,
    PARTNER,
    PORT,
    SERVER,
    STRANGER,
    STRANGER_6,
    City,
    speaks,
)
from tests.programs import PATIENCE_S

HOUR = timedelta(hours=1)

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("ip"), reason="needs root, ip and nft"
    ),
]


@pytest.fixture(scope="module")
def city() -> Iterator[City]:
    made = City()
    try:
        made.build()
        yield made
    finally:
        made.tear_down()


@pytest.fixture
def gateway(city) -> Iterator[Nftables]:
    yield Nftables(program=city.nft, keep=[PARTNER])
    nft(city, "delete", "table", "inet", "cityward")


def nft(city: City, *words: str) -> bytes:
    return subprocess.run([*city.nft, *words], check=False, capture_output=True).stdout


def soon(**named: float) -> datetime:
    return datetime.now(UTC) + timedelta(**named)


def address(value: str = STRANGER) -> Target:
    return target_of("ipv4_net", value)


def planned(gateway: Nftables, target: Target, until: datetime) -> Command:
    (command,) = gateway.plan("deny", target, until)
    return command


def undone(command: Command) -> Command:
    return Command(command.undo, command.target, "deny", command.until, prior=command.prior)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (STRANGER, target_of("ipv4_net", STRANGER)),
        (STRANGER, target_of("ipv4_net", "203.0.113.0/28")),
        (STRANGER_6, target_of("ipv6_net", STRANGER_6)),
        (STRANGER_6, target_of("ipv6_net", "2001:db8:1::/64")),
    ],
)
def test_an_address_is_reached_before_and_after_a_block_and_not_during_it(
    city, gateway, source, target
):
    assert city.reaches(source)
    command = planned(gateway, target, soon(hours=1))
    assert city.reaches(source)

    gateway.apply(command)

    assert city.is_cut(source)
    assert city.reaches(PARTNER)
    state = gateway.probe(target)
    assert state.is_applied
    assert abs(state.until - command.until) <= timedelta(seconds=2)

    gateway.apply(undone(command))

    assert city.reaches(source)
    assert not gateway.probe(target).is_applied


def test_an_established_session_is_cut_and_goes_on_after_the_undo(city, gateway):
    with city.connect() as session, city.connect(PARTNER) as partners:
        assert speaks(session)
        command = planned(gateway, address(), soon(hours=1))

        gateway.apply(command)

        assert not speaks(session, 0.3)
        assert speaks(partners)
        gateway.apply(undone(command))
        session.settimeout(PATIENCE_S)
        assert session.recv(16) == b"hello"


def test_a_block_ends_although_every_process_of_ours_was_killed(city, gateway):
    script = f"""
import os, signal
from datetime import UTC, datetime, timedelta
from cityward import Target
from playbooks.actuators.nftables import Nftables
gateway = Nftables(program={city.nft!r})
until = datetime.now(UTC) + timedelta(seconds=8)
for command in gateway.plan("deny", Target("ipv4_net", {STRANGER!r}), until):
    gateway.apply(command)
os.kill(os.getpid(), signal.SIGKILL)
"""

    done = subprocess.run([sys.executable, "-c", script], check=False)
    killed = time.monotonic()

    assert done.returncode == -9
    assert city.is_cut()
    assert city.reaches(PARTNER)
    while city.is_cut():
        assert time.monotonic() < killed + 8 + 5
    assert not gateway.probe(address()).is_applied


def test_a_connection_is_cut_in_both_directions_and_its_neighbours_go_on(city, gateway):
    flow = target_of(
        "ipv4_connection", {"src_addr": STRANGER, "dst_addr": SERVER, "dst_port": PORT}
    )
    with city.connect() as session:
        assert speaks(session)

        gateway.apply(planned(gateway, flow, soon(hours=1)))

        assert not speaks(session, 0.3)
        assert city.is_cut()
        assert city.reaches(port=PORT + 1)
        assert city.reaches(NEIGHBOUR)


def test_a_connection_without_a_port_is_every_one_of_its_protocol(city, gateway):
    flow = target_of("ipv4_connection", {"src_addr": STRANGER, "dst_addr": SERVER})

    gateway.apply(planned(gateway, flow, soon(hours=1)))

    assert city.is_cut()
    assert city.is_cut(port=PORT + 1)
    assert city.reaches(NEIGHBOUR)


@pytest.mark.parametrize(
    ("type", "ends"),
    [
        ("ipv4_connection", {"src_addr": STRANGER, "dst_addr": SERVER}),
        ("ipv6_connection", {"src_addr": STRANGER_6, "dst_addr": "2001:db8:2::2"}),
    ],
)
def test_connections_of_every_protocol_are_found_again(gateway, type, ends):
    for said in (
        {"protocol": "udp", "dst_port": 502},
        {"protocol": "sctp"},
        {"protocol": "icmp"},
    ):
        flow = target_of(type, {**ends, **said})
        command = planned(gateway, flow, soon(hours=1))
        gateway.apply(command)
        assert gateway.probe(flow).is_applied, said
        gateway.apply(undone(command))
        assert not gateway.probe(flow).is_applied, said


@pytest.mark.parametrize("value", ["2001:db8::1:2", "64:ff9b::102:304", "2001:db8:0:0:1::"])
def test_an_address_that_nft_spells_in_its_own_way_is_found_again(gateway, value):
    target = target_of("ipv6_net", value)

    gateway.apply(planned(gateway, target, soon(hours=1)))

    assert gateway.probe(target).is_applied


def test_what_holds_long_enough_needs_no_command_and_a_longer_one_renews_it(gateway):
    first = planned(gateway, address(), soon(minutes=10))
    gateway.apply(first)

    assert list(gateway.plan("deny", address(), first.until)) == []
    longer = planned(gateway, address(), soon(hours=1))
    gateway.apply(longer)

    assert gateway.probe(address()).until > soon(minutes=59)
    assert list(gateway.plan("deny", address(), first.until)) == []


def test_undoing_brings_back_the_block_that_was_there_with_the_time_it_had_left(city, gateway):
    earlier = planned(gateway, address(), soon(minutes=10))
    gateway.apply(earlier)
    longer = planned(gateway, address(), soon(hours=1))
    gateway.apply(longer)

    gateway.apply(undone(longer))

    state = gateway.probe(address())
    assert state.is_applied
    assert abs(state.until - earlier.until) <= timedelta(seconds=3)


def test_a_block_within_a_wider_one_is_undone_alone(city, gateway):
    one = planned(gateway, address(), soon(hours=1))
    gateway.apply(one)
    wide = planned(gateway, address("203.0.113.0/28"), soon(hours=1))
    gateway.apply(wide)

    gateway.apply(undone(wide))

    assert city.is_cut()
    assert city.reaches(NEIGHBOUR)


def test_a_set_whose_rules_somebody_took_away_does_not_count_as_a_block(city, gateway):
    command = planned(gateway, address(), soon(hours=1))
    gateway.apply(command)
    nft(city, "flush", "chain", "inet", "cityward", "in")

    assert not gateway.probe(address()).is_applied
    gateway.apply(planned(gateway, address(), command.until))

    assert city.is_cut()


def test_planning_and_looking_leave_the_gateway_as_it_was(city, gateway):
    before = nft(city, "list", "ruleset")

    planned(gateway, address(), soon(hours=1))
    gateway.probe(address())
    gateway.apply(Command("allow", address(), "deny", soon(hours=1), prior={"denied": False}))

    assert nft(city, "list", "ruleset") == before


@pytest.mark.parametrize(
    ("type", "value"),
    [
        ("ipv4_net", "127.0.0.1"),
        ("ipv4_net", "224.0.0.1"),
        ("ipv4_net", "0.0.0.0"),
        ("ipv4_net", "10.0.0.0/8"),
        ("ipv4_net", "203.0.113.7; drop"),
        ("ipv6_net", "::1"),
        ("ipv6_net", "fe80::1%eth0"),
        ("domain_name", "a.example"),
        ("ipv4_connection", '{"src_addr":"203.0.113.0/28","dst_addr":"10.77.0.2"}'),
        ("ipv4_connection", "a > b"),
    ],
)
def test_what_must_not_be_touched_is_refused_also_when_it_is_already_a_command(
    gateway, type, value
):
    target = Target(type, value)

    with pytest.raises(Unsafe):
        list(gateway.plan("deny", target, soon(hours=1)))
    for verb in ("deny", "allow"):
        with pytest.raises(Unsafe):
            gateway.apply(Command(verb, target, "", soon(hours=1)))
    with pytest.raises(Unsafe):
        gateway.probe(target)


@pytest.mark.parametrize(
    ("type", "value"),
    [
        ("ipv4_net", PARTNER),
        ("ipv4_net", "203.0.113.0/24"),
        ("ipv4_connection", f'{{"src_addr":"{PARTNER}","dst_addr":"{SERVER}","dst_port":1}}'),
    ],
)
def test_what_is_kept_is_not_denied(gateway, type, value):
    target = target_of(type, value)

    with pytest.raises(Unsafe, match="keep list"):
        list(gateway.plan("deny", target, soon(hours=1)))
    with pytest.raises(Unsafe, match="keep list"):
        gateway.apply(Command("deny", target, "allow", soon(hours=1)))


def test_what_is_kept_since_is_let_in_again(city, gateway):
    (command,) = gateway.plan("deny", address(), soon(hours=1))
    gateway.apply(command)

    later = Nftables(program=city.nft, keep=[address().value])
    with pytest.raises(Unsafe, match="keep list"):
        list(later.plan("deny", address(), soon(hours=1)))
    with pytest.raises(Unsafe, match="keep list"):
        later.apply(command)
    assert later.probe(address()).is_applied
    later.apply(Command("allow", address(), "deny", soon(hours=1), prior=command.prior))

    assert not later.probe(address()).is_applied


@pytest.mark.parametrize("after", [timedelta(), timedelta(seconds=-1), timedelta(days=400)])
def test_a_block_that_is_over_or_has_no_end_in_sight_is_refused(gateway, after):
    with pytest.raises(Unsafe):
        gateway.apply(Command("deny", address(), "allow", datetime.now(UTC) + after))


@pytest.mark.parametrize("until", ["soon", "2026-03-01T00:00:00", 7, "9" * 50])
def test_a_prior_state_that_was_tampered_with_is_refused(gateway, until):
    prior = {"denied": True, "until": until}

    with pytest.raises(Unsafe):
        gateway.apply(Command("allow", address(), "deny", soon(hours=1), prior=prior))


def test_a_gateway_that_does_not_answer_is_asked_again_later():
    for program in (("/nowhere/nft",), ("false",), ("echo", "no JSON")):
        with pytest.raises(TransientError):
            Nftables(program=program).probe(address())


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError):
        Nftables(table="filter; flush ruleset")
    for keep in (["everybody"], PARTNER):
        with pytest.raises(ConfigError):
            Nftables(keep=keep)
    with pytest.raises(ConfigError):
        Nftables(program="nft")
