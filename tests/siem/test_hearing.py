"""Why nothing arrives: files, ports, interfaces and states, without touching any of them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from detectors.sigma.load import load_folder
from siem.config import Settings, Source
from siem.console.first import lines_of
from siem.hearing import hearing, interfaces, why_silent
from siem.rule_runs import Runs
from siem.store.protocol import RuleState, SourceState
from tests.siem.console import fake

DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs
    lo:   40000     412    0    0    0     0          0         0    40000     412    0
enp1s0: 9200000   18204    0    0    0     0          0         0        0       0    0
broken
"""
UDP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt
   1: 00000000:158A 00000000:0000 07 00000000:00000000 00:00000000 00000000
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "dev").write_text(DEV)
    (tmp_path / "udp").write_text(UDP)
    return tmp_path


def source(**said: Any) -> Source:
    return msgspec.convert({"id": "s", **said}, Source)


def test_interfaces_are_listed_with_what_they_received(net: Path) -> None:
    (net / "enp1s0").mkdir()
    (net / "enp1s0" / "operstate").write_text("up\n")
    settings = Settings(source=(source(reader="interface", interface="enp1s0"),))

    found = list(interfaces(settings, net, net))

    assert [(one.name, one.packets, one.bytes, one.is_up, one.in_use) for one in found] == [
        ("lo", 412, 40_000, False, False),
        ("enp1s0", 18_204, 9_200_000, True, True),
    ]


@pytest.mark.parametrize(
    ("said", "state", "why"),
    [
        ({"reader": "file", "path": "/nowhere/x.log"}, {}, "/nowhere/x.log is not there"),
        ({"reader": "syslog_udp", "listen": "0.0.0.0:5515"}, {}, "nobody listens on 0.0.0.0:5515"),
        ({"reader": "syslog_udp", "listen": "127.0.0.1:5514"}, {}, "only this machine reaches"),
        ({"reader": "syslog_udp", "listen": "0.0.0.0:5514"}, {}, "nothing has arrived"),
        ({"reader": "syslog_tcp", "listen": "0.0.0.0:5514"}, {}, "nobody listens"),
        ({"reader": "interface", "interface": "eth9"}, {}, "there is no interface eth9"),
        ({"reader": "http", "url": "https://x.example/"}, {}, "nothing was sent yet"),
        (
            {"reader": "http", "url": "https://x.example/"},
            {"error": "timed out"},
            "it failed: timed",
        ),
        (
            {"reader": "http", "url": "https://x.example/"},
            {"error": "no answer\nsource s, https://x.example/\nIt is asked again in 10 s."},
            "it failed: no answer",
        ),
        ({"reader": "file", "path": "/"}, {"malformed": 3, "events": 3}, "all 3 records could not"),
        ({"reader": "file", "path": "/"}, {"rejected": 3}, "all 3 records were rejected"),
    ],
)
def test_a_silent_source_says_why(
    said: dict[str, Any], state: dict[str, Any], why: str, net: Path
) -> None:
    found = why_silent(source(**said), SourceState(source="s", collector="syslog", **state), net)

    assert found is not None
    assert why in found.what
    assert found.todo
    assert "\n" not in found.what + found.todo


def test_a_source_that_brings_events_is_not_silent(net: Path) -> None:
    state = SourceState(source="s", collector="syslog", events=5, malformed=4)

    assert why_silent(source(reader="file", path="/nowhere"), state, net) is None


def test_a_mirror_port_that_shows_one_direction_is_named(net: Path) -> None:
    flow = {"cw.record.source": "s", "network.transport": "tcp", "source.packets": 5}
    documents = [
        {
            **flow,
            "event.id": str(number),
            "@timestamp": fake.NOW - timedelta(minutes=1),
            "destination.packets": 0 if number < 60 else 4,
        }
        for number in range(80)
    ]
    settings = Settings(source=(source(reader="interface", interface="enp1s0"),))
    states = [SourceState(source="s", collector="packets", events=80)]

    events = fake.FakeEvents(documents)
    found = hearing(settings, states, events, fake.NOW, net=net)

    assert [one.what for one in found.hints] == [
        "60 of 80 TCP flows of the last hour have no answer"
    ]
    few = hearing(settings, states, fake.FakeEvents(documents[:40]), fake.NOW, net=net)
    assert few.hints == []


def test_the_lines_are_toml_whatever_the_interface_is_called() -> None:
    import tomllib

    said = tomllib.loads(lines_of('br0"]\nx'))

    assert said["source"] == [{"id": "tap-br0-x", "reader": "interface", "interface": 'br0"]\nx'}]


def test_samples_run_once_until_the_rule_changes(tmp_path: Path) -> None:
    from siem.ruleset import RULES_FOLDER

    shipped = next(RULES_FOLDER.rglob("bacnet_password_refused.yml"))
    for end in (".yml", ".test.yml"):
        text = shipped.with_name(shipped.stem + end).read_text(encoding="utf-8")
        (tmp_path / f"rule{end}").write_text(text, encoding="utf-8")
    file = tmp_path / "rule.yml"
    id_ = next(line[4:] for line in file.read_text().splitlines() if line.startswith("id: "))
    rule = RuleState(id=id_, title="x", level="low", state="on", file=f"{file}:1")
    runs = Runs(lambda: load_folder(tmp_path))

    before, made = runs.of(rule, run=False), runs.of(rule, run=True)
    again = runs.of(rule, run=False)
    (tmp_path / "rule.test.yml").unlink()

    assert before is None
    assert made is not None
    assert made.cases
    assert all(one.passed for one in made.cases), made
    assert again is made
    gone = runs.of(rule, run=True)
    assert gone is not None
    assert "No samples" in gone.reason
