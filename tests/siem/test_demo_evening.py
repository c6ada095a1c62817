"""The evening of the demo, without a node: what is played is what real devices would send."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from cityward import Event, InputError, Record
from cityward.plugin import load
from collectors.packets.capture import CaptureReader
from collectors.packets.packets import Packets
from siem import config
from siem.exercise import evening, protocols
from siem.exercise.evening import Clock, Put, Stage, capture_at
from siem.exercise.exercise import Exercise, Options
from siem.exercise.frames import Talk, datagram, pcap_head, pcap_record, segment
from siem.exercise.saltmere import City, Place
from siem.exercise.steps import STEPS, Expected, scenes
from siem.exercise.stranger import Verdict, is_after, is_noticed, is_of, judge
from siem.ruleset import RULES_FOLDER, states_alone

CLOCK = Clock(datetime(2026, 3, 1, 20, 0, tzinfo=UTC), 60.0)
CLIENT, SERVER = "10.1.2.3", "10.1.2.4"


def _talk(port: int) -> Talk:
    return Talk(CLIENT, SERVER, port, 1.0, Random(1))


def _events_of_frames(frames: Sequence[tuple[float, bytes]], folder: Path) -> list[Event]:
    path = folder / "talk.pcap"
    records = [pcap_record(round((1_772_000_000 + at_s) * 1e6), frame) for at_s, frame in frames]
    path.write_bytes(pcap_head() + b"".join(records))
    packets, events = Packets(), []
    import threading

    for batch in CaptureReader(path, "tap").read(None, threading.Event()):
        events += packets(batch.records)
    return events + list(packets.end())


def _events(talk: Talk, folder: Path) -> list[Event]:
    return _events_of_frames(talk.frames, folder)


def _sum_of(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


# ---- frames


def test_a_segment_has_the_checksums_that_a_receiver_wants() -> None:
    frame = segment((CLIENT, 40_000), (SERVER, 502), 24, (7, 9), b"even")

    header, body = frame[14:34], frame[34:]
    assert _sum_of(header) == 0xFFFF
    assert _sum_of(header[12:20] + struct.pack(">BBH", 0, 6, len(body)) + body) == 0xFFFF


def _flow(events: Sequence[Event]) -> Event:
    """The one flow, beside the messages that were read in it."""
    (flow,) = (one for one in events if one.logsource.category == "flow")
    return flow


def test_a_datagram_goes_over_ipv6_as_well(tmp_path: Path) -> None:
    frame = datagram(("2001:db8::1", 123), ("2001:db8::2", 123), b"\x23" + bytes(47))

    flow = _flow(_events_of_frames([(0.0, frame)], tmp_path))

    assert flow.fields["source.ip"] == "2001:db8::1"
    assert flow.fields["destination.ip"] == "2001:db8::2"
    assert flow.fields["network.transport"] == "udp"


@pytest.mark.parametrize(
    ("how", "state", "outcome"),
    [("whole", "SF", "success"), ("refused", "REJ", "failure"), ("unanswered", "S0", "failure")],
)
def test_a_connection_ends_as_it_was_told(
    how: str, state: str, outcome: str, tmp_path: Path
) -> None:
    talk = _talk(8080)
    if how == "whole":
        talk.open().ask(b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.0 204 \r\n\r\n").close()
    elif how == "refused":
        talk.refused()
    else:
        talk.unanswered()

    flow = _flow(_events(talk, tmp_path))

    assert flow.fields["source.ip"] == CLIENT
    assert flow.fields["cw.vendor"]["conn_state"] == state
    assert flow.fields["event.outcome"] == outcome


# ---- protocols, as the real decoders read them


def test_modbus_reads_and_writes_are_decoded(tmp_path: Path) -> None:
    read, write = protocols.read_holding(40, 2), protocols.write_single(200, 5)
    talk = _talk(502).open()
    talk.ask(protocols.modbus(1, 7, read), protocols.modbus(1, 7, protocols.holding([21, 22])))
    talk.ask(protocols.modbus(2, 7, write), protocols.modbus(2, 7, write)).close()

    events = [one.fields for one in _events(talk, tmp_path) if "ot.function.code" in one.fields]

    assert [(one["ot.operation"], one["ot.direction"]) for one in events] == [
        ("read", "request"),
        ("read", "response"),
        ("write", "request"),
        ("write", "response"),
    ]
    assert events[2]["ot.point.address"] == 200
    assert events[2]["ot.value"] == 5.0
    assert events[2]["ot.unit"] == "7"


def test_an_engineering_session_is_decoded(tmp_path: Path) -> None:
    talk = _talk(502).open()
    stop, done = protocols.umas(1, 0x41, b"\xff\0"), protocols.umas(0, 0xFE)
    talk.ask(protocols.modbus(1, 0, stop), protocols.modbus(1, 0, done)).close()

    asked = next(one.fields for one in _events(talk, tmp_path) if "ot.function.sub" in one.fields)

    assert asked["ot.function.sub"] == "0x41"
    assert asked["ot.is_command"] is True


def test_a_substation_is_interrogated_and_switched(tmp_path: Path) -> None:
    station = protocols.Station(9)
    talk = _talk(2404).open().ask(protocols.STARTDT_ACT, protocols.STARTDT_CON)
    evening.interrogate(talk, station, Random(1))
    evening.switch(talk, station, 6001, on=False)

    events = [one.fields for one in _events(talk.close(), tmp_path) if one.fields.get("ot.cause")]

    assert events[0]["event.action"] == "iec104_interrogation"
    assert not [one for one in events if one.get("event.kind") == "pipeline_error"]
    command = next(one for one in events if one.get("ot.operation") == "control")
    assert (command["ot.point.address"], command["ot.common_address"]) == (6001, "9")
    assert command["ot.is_command"] is True


def test_a_feed_is_read_as_it_was_meant() -> None:
    data = protocols.feed(
        1_772_000_000,
        [
            protocols.vehicle("tram-1", "t1", "line-1", (53.5, 1.2), 84.0, 1_772_000_000),
            protocols.trip_update("t2", "line-2", 90, 1_772_000_000),
            protocols.trip_cancelled("t3", "line-3", 1_772_000_000),
        ],
    )
    collect = load("collectors")["gtfs-realtime"]

    place, update, cancelled = collect([Record(data, "vehicles", 1, CLOCK.began)])

    assert (place.fields["phys.track"], place.fields["phys.speed"]) == ("tram-1", 84.0)
    assert (update.fields["ot.trip.id"], update.fields["ot.trip.delay_s"]) == ("t2", 90)
    assert cancelled.fields["event.action"] == "trip_cancelled"


# ---- the city


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_settings_of_every_operator_are_read(seed: int, tmp_path: Path) -> None:
    for place in City(seed).places.values():
        file = tmp_path / f"{place.operator}.toml"
        ports = {feed.id: 5000 for feed in place.feeds}
        file.write_text(place.settings(tmp_path, ports), encoding="utf-8")

        settings = config.load(file)

        assert settings.operator == place.operator
        assert {asset.id for asset in settings.asset} == set(place.assets)
        assert settings.console.port == 0


def test_a_seed_is_a_city_and_another_seed_another_one() -> None:
    first, again, other = City(1), City(1), City(2)

    grid = [city.places["op-grid"].of("plc-1") for city in (first, again, other)]

    assert grid[0] == grid[1] != grid[2]
    assert first.scanner == again.scanner != other.scanner


def test_who_is_outside_has_an_address_that_documents_may_use() -> None:
    import ipaddress

    nets = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
    city = City(5)

    outside = [
        city.outsider(operator, step, number)
        for operator in city.places
        for step in range(sum(one.operator == operator for one in STEPS))
        for number in range(4)
    ]

    assert len(set(outside)) == 4 * len(STEPS)
    for address in outside + city.internet:
        ip = ipaddress.ip_address(address)
        assert any(ip in ipaddress.ip_network(net) for net in nets), address


# ---- the evening


def _ordinary(seed: int) -> Iterator[tuple[Place, Put]]:
    city = City(seed)
    for place in city.places.values():
        for tell in (evening.afternoon, evening.ordinary):
            for put in tell(Stage(city, place, CLOCK, tell.__name__)):
                yield place, put


def _of_steps(seed: int) -> Iterator[tuple[Place, Put]]:
    city = City(seed)
    for step, scene in scenes(city, CLOCK):
        for put in scene.puts:
            yield city.places[step.operator], put


@pytest.mark.parametrize("seed", [1, 2])
def test_every_record_is_one_that_its_collector_reads(seed: int) -> None:
    collectors = load("collectors")
    records: dict[tuple[str, str], list[Record]] = {}
    for place, put in (*_ordinary(seed), *_of_steps(seed)):
        collector = {feed.id: feed.collector for feed in place.feeds}.get(put.source)
        if collector:
            record = Record(put.data, put.source, len(records), CLOCK.began)
            records.setdefault((place.operator, collector), []).append(record)

    for (_, name), given in records.items():
        collect = collectors[name]
        collect = collect() if isinstance(collect, type) else collect
        events = list(collect(given))

        assert [one.fields for one in events if one.is_malformed] == []
        assert len(events) >= len(given)
    assert {name for _, name in records} == {
        "sshd",
        "zeek",
        "gtfs-realtime",
        "syslog",
        "river-readings",
    }


def test_the_same_seed_plays_the_same_evening() -> None:
    def played(seed: int) -> list[Put]:
        return [put for _, put in (*_ordinary(seed), *_of_steps(seed))]

    first, again, other = played(3), played(3), played(4)

    assert first == again
    assert first != other


def test_a_step_that_is_left_out_changes_no_other() -> None:
    whole = {step.name: scene for step, scene in scenes(City(3), CLOCK)}

    for left_out in whole:
        rest = {step.name: scene for step, scene in scenes(City(3), CLOCK, [left_out])}

        assert rest == {name: scene for name, scene in whole.items() if name != left_out}


def test_every_operator_has_two_steps_and_no_two_promise_the_same_finding() -> None:
    promised: Counter[tuple[str, Expected]] = Counter()
    operators: Counter[str] = Counter()
    for step, scene in scenes(City(1), CLOCK):
        operators[step.operator] += 1
        promised.update((step.operator, one) for one in scene.expected)

        assert step.says.endswith(".")

    assert min(operators.values()) >= 2
    assert set(operators) == set(City(1).places)
    assert max(promised.values()) == 1


def test_every_promised_rule_is_in_the_library_and_its_place_can_evaluate_it(
    tmp_path: Path,
) -> None:
    import yaml

    city = City(1)
    rules: dict[str, set[str]] = {name: set() for name in city.places}
    for step, scene in scenes(city, CLOCK):
        for one in scene.expected:
            text = (RULES_FOLDER / f"{one.rule}.yml").read_text(encoding="utf-8")
            rules[step.operator].add(yaml.safe_load(text)["id"])

    for name, place in city.places.items():
        file = tmp_path / f"{name}.toml"
        file.write_text(place.settings(tmp_path, dict.fromkeys(_listening(place), 5000)))
        settings = config.load(file)
        on = {state.id for state in states_alone(settings) if state.state == "on"}

        assert rules[name] <= on


def _listening(place: Place) -> list[str]:
    return [feed.id for feed in place.feeds if feed.kind.startswith("syslog")]


@pytest.mark.parametrize(
    ("at_s", "number"), [(-900.0, 0), (0.0, 1), (599.9, 1), (600.0, 2), (3_599.0, 6), (3_610.0, 6)]
)
def test_a_frame_is_in_the_capture_of_its_time(at_s: float, number: int) -> None:
    assert capture_at(at_s) == number


def test_the_evening_passes_faster_than_a_clock_and_the_time_before_it_does_not() -> None:
    assert CLOCK.time(120.0) == datetime(2026, 3, 1, 20, 0, 2, tzinfo=UTC)
    assert CLOCK.time(-60.0) == datetime(2026, 3, 1, 19, 59, tzinfo=UTC)


# ---- the verdict


def test_a_finding_is_told_by_rule_and_culprit() -> None:
    promised = Expected("port/smb_to_many_hosts", "source.ip", "10.1.2.3")
    ids = {"port/smb_to_many_hosts": "c3855597"}

    assert is_of({"rule.id": "c3855597", "source.ip": "10.1.2.3"}, promised, ids)
    assert is_of({"rule.id": "c3855597", "source.ip": ["10.1.2.3"]}, promised, ids)
    assert not is_of({"rule.id": "c3855597", "source.ip": "10.1.2.4"}, promised, ids)
    assert not is_of({"rule.id": "c3855597"}, promised, ids)
    assert not is_of({"rule.id": "another", "source.ip": "10.1.2.3"}, promised, ids)


def test_a_model_that_names_the_culprit_noticed_the_step_by_itself() -> None:
    promised = Expected("port/smb_to_many_hosts", "source.ip", "10.1.2.3")

    assert is_noticed({"rule.id": "model.surprise.flow", "source.ip": "10.1.2.3"}, promised)
    assert not is_noticed({"rule.id": "model.surprise.flow", "source.ip": "10.1.2.4"}, promised)
    assert not is_noticed({"rule.id": "c3855597", "source.ip": "10.1.2.3"}, promised)
    assert not is_noticed({"rule.id": "model.x"}, Expected("transport/many_trips_cancelled"))


@pytest.mark.parametrize(("is_held_back", "false"), [(False, 1), (True, 0)])
def test_what_a_playbook_refused_counts_as_false_unless_it_was_held_back(
    is_held_back: bool, false: int
) -> None:
    refused: list[dict[str, Any]] = [{"rule.id": "response.refused"}]
    shown: Any = SimpleNamespace(
        sources=list,
        findings=lambda: refused,
        node=SimpleNamespace(place=SimpleNamespace(feeds=())),
    )

    verdict, *_ = judge(shown, {}, (), {}, ended=CLOCK.began, is_held_back=is_held_back)

    assert verdict.false == false


def test_silence_is_false_unless_the_evening_is_over() -> None:
    silent = {"rule.id": "model.silence.source", "finding.last_seen": "2026-03-01T20:30:01Z"}
    ended = datetime(2026, 3, 1, 20, 30, tzinfo=UTC)

    assert is_after(silent, ended)
    assert not is_after(silent, datetime(2026, 3, 1, 20, 31, tzinfo=UTC))
    assert not is_after({**silent, "rule.id": "model.surprise.flow"}, ended)


@pytest.mark.parametrize("field", ["missed", "false", "lost"])
def test_a_promise_is_broken_by_one_finding_or_one_record(field: str) -> None:
    assert Verdict(found=3, expected=3).holds
    assert not Verdict(found=3, expected=3, **{field: 1}).holds


def test_a_step_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(InputError, match="no step is called 'nothing'") as fault:
        Exercise(Options(without=["nothing"]), print)

    assert "open-breakers" in fault.value.todo


def test_an_evening_that_would_not_pass_is_refused() -> None:
    with pytest.raises(InputError, match="0 times as fast"):
        Exercise(Options(speed=0.0), print)
