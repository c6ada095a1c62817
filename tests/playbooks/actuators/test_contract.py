"""What `cityward.checks` asks of an actuator, asked of every one that is registered."""

from __future__ import annotations

import contextlib
import email
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from cityward import Target, plugin
from cityward.checks import check_actuator, check_actuator_alone
from cityward.plugin import Actuator
from playbooks.targets import NOWHERE, target_of
from tests.playbooks.actuators.test_mosquitto import Broker
from tests.playbooks.actuators.test_ocpp import StationSimulator
from tests.playbooks.actuators.test_telling import Desk
from tests.playbooks.actuators.test_unbound import Resolver
from tests.playbooks.namespaces import STRANGER, City
from tests.programs import PATIENCE_S
from tests.siem.notify_fakes import mail_server, web_server

REGISTERED = plugin.load("actuators")


class Case(NamedTuple):
    """An actuator on a real program, and that program as somebody else sees it."""

    settings: dict[str, Any]
    target: Target
    look: Callable[[], Any]
    args: Mapping[str, Any] = MappingProxyType({})


@contextlib.contextmanager
def nftables(_: Path) -> Iterator[Case]:
    city = City()
    try:
        city.build()
        yield Case(
            {"program": city.nft, "keep": ["192.0.2.0/24"]},
            target_of("ipv4_net", STRANGER),
            lambda: city.reaches(STRANGER),
        )
    finally:
        city.tear_down()


@contextlib.contextmanager
def mosquitto(folder: Path) -> Iterator[Case]:
    broker = Broker(folder)
    try:
        yield Case(
            {"url": f"mqtt://127.0.0.1:{broker.port}", "user": "admin", "password": "secret"},
            Target("account", "gate-7"),
            lambda: broker.said("getClient", "gate-7"),
        )
    finally:
        broker.process.terminate()
        broker.process.wait(PATIENCE_S)


@contextlib.contextmanager
def unbound(folder: Path) -> Iterator[Case]:
    resolver = Resolver(folder)
    try:
        yield Case(
            {"program": resolver.control, "sinkhole": ["192.0.2.99"]},
            Target("domain_name", "evil.example"),
            lambda: (resolver.everything(), resolver.asked("www.evil.example")),
        )
    finally:
        resolver.process.terminate()
        resolver.process.wait(PATIENCE_S)
        resolver.upstream.close()


@contextlib.contextmanager
def ocpp(_: Path) -> Iterator[Case]:
    from playbooks.actuators.csms import Csms

    central = Csms({"CP-17": "secret"}, "t0k")
    central.start()
    station = StationSimulator(central.port, "ocpp2.0.1")
    yield Case(
        {"url": f"http://127.0.0.1:{central.port}", "token": "t0k"},
        Target("device", "CP-17"),
        lambda: station.is_operative,
    )
    station.end()
    central.stop()


@contextlib.contextmanager
def smtp(_: Path) -> Iterator[Case]:
    with mail_server() as fake:
        yield Case(
            {
                "server": f"127.0.0.1:{fake.port}",
                "transport": "plain",
                "sender": "cityward@operator.example",
                "to": ["soc@operator.example"],
            },
            NOWHERE,
            # A mail that comes twice has the same id, and is one.
            lambda: {email.message_from_bytes(one)["Message-ID"] for _, _, one in fake.mails},
            {"subject": "A scanner", "text": "Look at it."},
        )


@contextlib.contextmanager
def webhook(_: Path) -> Iterator[Case]:
    with web_server() as fake:
        yield Case(
            {"url": f"http://127.0.0.1:{fake.port}/", "secret": "s3cret"},
            NOWHERE,
            lambda: {headers["x-cityward-delivery"] for headers, _ in fake.posts},
            {"title": "A scanner"},
        )


@contextlib.contextmanager
def ticket(_: Path) -> Iterator[Case]:
    desk = Desk()
    yield Case({"url": desk.url}, NOWHERE, lambda: len(desk.tickets), {"title": "A scanner"})
    desk.server.shutdown()
    desk.server.server_close()


CASES = {one.__name__: one for one in (nftables, mosquitto, unbound, ocpp, smtp, webhook, ticket)}
ROOT = {"nftables"}
"""Needs namespaces."""
MISSING: dict[str, dict[str, Any]] = {
    "nftables": {"program": ["/nowhere/nft"]},
    "mosquitto": {"url": "mqtt://127.0.0.1:1"},
    "unbound": {"program": ["/nowhere/unbound-control"]},
    "ocpp": {"url": "http://127.0.0.1:1"},
    "smtp": {"server": "127.0.0.1:1"},
    "webhook": {"url": "http://127.0.0.1:1/"},
    "ticket": {"url": "http://127.0.0.1:1/"},
}
ELSEWHERE = {"evidence", "openc2"}
"""Those that are checked beside their own tests."""


def test_every_actuator_that_is_registered_is_checked():
    ours = {name for name, part in REGISTERED.items() if part.__module__.startswith("playbooks.")}

    assert ours - ELSEWHERE == set(CASES) == set(MISSING)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=pytest.mark.root) if one in ROOT else one for one in CASES],
)
def test_an_actuator_keeps_its_promises_on_a_real_program(tmp_path, name):
    if name in ROOT and (os.geteuid() != 0 or not shutil.which("ip")):
        pytest.skip("needs root, ip and nft")
    with CASES[name](tmp_path) as case:
        part: Actuator = REGISTERED[name](**case.settings)

        check_actuator(part, case.target, args=case.args, look=case.look)


@pytest.mark.parametrize("name", sorted(MISSING))
def test_an_actuator_whose_program_is_missing_says_so(tmp_path, name):
    settings: dict[str, dict[str, Any]] = {
        "ocpp": {"token": "t0k"},
        "smtp": {
            "transport": "plain",
            "sender": "cityward@operator.example",
            "to": ["soc@operator.example"],
        },
        "webhook": {"secret": "s3cret"},
    }
    targets = {
        "nftables": target_of("ipv4_net", STRANGER),
        "mosquitto": Target("account", "gate-7"),
        "unbound": Target("domain_name", "evil.example"),
        "ocpp": Target("device", "CP-17"),
    }
    if name == "unbound":
        settings[name] = {"sinkhole": ["192.0.2.99"]}

    part = REGISTERED[name](**settings.get(name, {}), **MISSING[name])

    check_actuator_alone(part, targets.get(name, NOWHERE))
