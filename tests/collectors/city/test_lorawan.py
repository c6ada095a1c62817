"""LoRaWAN: 1 479 uplinks of five network servers, counters, strangers."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cityward import Event
from cityward.checks import check_collector, events_of, records
from collectors.city import lorawan
from collectors.city.lorawan import Lorawan, looks_like_lorawan
from collectors.city.lorawan_payload import Measure, decode

UPLINK: dict[str, Any] = {
    "time": "2026-03-01T10:00:00Z",
    "deviceInfo": {
        "applicationName": "Floods",
        "deviceProfileName": "Milesight EM500-SWL",
        "deviceName": "Bridge gauge",
        "devEui": "24E124126B123456",
    },
    "devAddr": "01ab23cd",
    "fCnt": 7,
    "fPort": 85,
    "data": "AXVkA3cCAA==",
    "rxInfo": [
        {"gatewayId": "a1", "rssi": -101, "snr": 1.5},
        {"gatewayId": "b2", "rssi": -80, "snr": 9.0},
    ],
}
DECODED = {
    "end_device_ids": {
        "device_id": "bin-4",
        "application_ids": {"application_id": "bins"},
        "dev_eui": "70B3D57ED0000001",
    },
    "uplink_message": {
        "f_port": 2,
        "f_cnt": 1,
        "frm_payload": "AQ==",
        "decoded_payload": {
            "level": 41.5,
            "lid": {"open": False},
            "temperature": 7,
            "alarms": ["full"],
        },
        "received_at": "2026-03-01T10:00:00Z",
    },
}
LORIOT = {"cmd": "rx", "EUI": "1000000000000001", "ts": 1_684_478_801_936, "fcnt": 2, "port": 85,
          "rssi": -21, "snr": 10, "data": "0175640367e800"}  # fmt: skip
THINGPARK = {
    "DevEUI_uplink": {
        "Time": "2024-11-28T21:08:22.138+00:00", "DevEUI": "70B3D57BA000156B", "FPort": 1,
        "FCntUp": 26, "payload_hex": "0367010a", "LrrRSSI": -114.0, "LrrSNR": 4.75,
        "Lrrid": "100019D4", "CustomerID": "100045194", "CustomerData": {"name": "Rain"},
    }
}  # fmt: skip
HISTORY = "20ce"
"""How stored readings of Milesight begin, which are not claimed."""

NOT_CLAIMED = ("WT201", "DS3604", "EM320-TILT")
"""Thermostat, electronic label, and angles with a flag in their lowest bit."""

NAMES = {"temperature_abnormal": "temperature_alarm", "distance_alarming": "distance_alarm"}

FACTS = ("power", "ipso_version", "sn", "hardware_version", "firmware_version")
FACTS += ("wifi", "wifi_scan_result")
"""Not claimed: what the sensor is, and which access points a tracker hears."""

REASONS = {
    "humidity": "the suite cuts halves (ours)",
    "moisture": "the suite cuts halves (ours)",
    "motion_status": "the status of a position stays a number",
    "geofence_status": "the status of a position stays a number",
    "alarm": "an alarm with several bits stays a number; no reading is said as its state",
}
"""Value of the suite that we say otherwise → why."""


class Pair(NamedTuple):
    """An uplink and what the suite makes of it."""

    maker: str
    model: str
    server: str
    uplink: dict[str, Any]
    result: dict[str, Any]


@lru_cache(maxsize=1)
def _files(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {
            one.name.removeprefix("./"): opened.read()
            for one in tar
            if one.isfile() and (opened := tar.extractfile(one)) is not None
        }


def pairs(data: Path) -> Iterator[Pair]:
    files = _files(data / "city" / "suite_lorawan_uplink_pairs.tar.gz")
    for name, raw in sorted(files.items()):
        path, _, file = name.rpartition("/")
        if not file.startswith("payload"):
            continue
        result = json.loads(files[f"{path}/{file.replace('payload', 'result')}"])
        maker, model, server, _ = path.split("/")[-4:]
        first = result[0] if isinstance(result, list) else result
        yield Pair(maker, model, server, json.loads(raw), first)


def read(*messages: Any) -> list[Event]:
    given = records([json.dumps(one).encode() for one in messages])
    return [event for events in events_of(Lorawan, given) for event in events]


def back(events: list[Event]) -> list[str]:
    return [
        event.fields["event.reason"]
        for event in events
        if event.fields["event.action"] == "lorawan_counter_back"
    ]


def test_a_gauge_of_chirpstack_becomes_one_metric_a_measurement() -> None:
    battery, level = read(UPLINK)

    vendor = level.fields.pop("cw.vendor")
    assert level.fields == {
        "event.kind": "metric",
        "event.category": ["environment"],
        "event.action": "reading",
        "event.dataset": "lorawan.uplink",
        "event.sequence": 7,
        "host.name": "Bridge gauge",
        "cw.domain": ["physical"],
        "cw.time_source": "source",
        "phys.point": "24e124126b123456",
        "phys.quantity": "water_level",
        "phys.reading": 2.0,
        "phys.unit": "cm",
    }
    assert battery.fields["phys.reading"] == 100.0
    assert vendor == {
        "server": "chirpstack",
        "application": "Floods",
        "port": 85,
        "gateways": "a1, b2",
        "rssi": -80.0,
        "snr": 9.0,
        "dev_addr": "01ab23cd",
        "decoded_by": "cityward",
    }


def test_what_the_network_server_decoded_is_taken_as_it_is() -> None:
    events = read(DECODED)

    said = [
        (one.fields["phys.quantity"], one.fields.get("phys.reading", one.fields.get("phys.state")))
        for one in events
    ]
    assert said == [
        ("level", 41.5),
        ("lid.open", "false"),
        ("temperature", 7.0),
        ("alarms", '["full"]'),
    ]
    assert events[2].fields["phys.unit"] == "Cel"
    assert events[1].fields["event.kind"] == "state"
    assert events[0].fields["cw.vendor"]["decoded_by"] == "network server"


def test_every_envelope_of_the_suite_is_read(data: Path) -> None:
    counted: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    uplinks: Counter[str] = Counter()
    for pair in pairs(data):
        event = read(pair.uplink)[0]
        assert not event.is_malformed, pair[:3]
        uplinks[pair.server] += 1
        for name, value, said in _envelope(pair, event):
            (counted if value == said else wrong)[name] += 1
    print(f"LoRaWAN envelopes: {dict(uplinks)}; agree {dict(counted)}; differ {dict(wrong)}")

    assert sum(uplinks.values()) == 1_479
    assert not wrong
    assert sum(counted.values()) > 4_000


def _envelope(pair: Pair, event: Event) -> Iterator[tuple[str, Any, Any]]:
    """Name, what the suite says, what we say."""
    facts, vendor = pair.result.get("attributes", {}), event.fields["cw.vendor"]
    telemetry = pair.result.get("telemetry") or [{}]
    values = telemetry[0].get("values", {}) if isinstance(telemetry, list) else {}
    eui = facts.get("eui") or facts.get("lora_dev_eui")
    every = (
        ("eui", eui and eui.lower(), event.fields["phys.point"]),
        ("port", facts.get("fPort"), vendor.get("port")),
        ("counter", values.get("lora_frame_counter"), event.fields.get("event.sequence")),
        ("rssi", values.get("lora_rssi"), vendor.get("rssi")),
        ("snr", values.get("lora_snr"), vendor.get("snr")),
        (
            "application",
            facts.get("applicationName") or facts.get("applicationId"),
            vendor.get("application"),
        ),
    )
    yield from (one for one in every if one[1] is not None)


def test_payloads_of_milesight_agree_value_by_value(data: Path) -> None:
    """All models of the suite but three; what is stored and sent later is not claimed."""
    agree: Counter[str] = Counter()
    differ: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    models = set()
    for pair in pairs(data):
        if pair.maker != "Milesight" or pair.model in NOT_CLAIMED:
            continue
        said = {
            event.fields["phys.quantity"]: event.fields.get(
                "phys.reading", event.fields.get("phys.state")
            )
            for event in read(_with_model(pair))
            if "phys.quantity" in event.fields
        }
        telemetry = pair.result.get("telemetry") or [{}]
        for name, value in telemetry[0].get("values", {}).items():
            if name in FACTS:
                continue
            models.add(pair.model)
            ours = said.get(NAMES.get(name, name.replace(".0", "")))
            if ours == value or _alike(value, ours):
                agree[pair.server] += 1
                continue
            assert name in REASONS, f"{pair.model}: {name} is {ours!r} instead of {value!r}"
            differ[pair.server] += 1
            reasons[REASONS[name]] += 1
    for server in sorted(agree):
        total = agree[server] + differ[server]
        print(f"Milesight by {server}: {agree[server]} of {total}, {agree[server] / total:.1%}")
    print(f"{len(models)} models; {dict(reasons)}")

    assert all(agree[one] / (agree[one] + differ[one]) >= 0.97 for one in agree)
    assert len(models) >= 50


def _alike(value: Any, ours: Any) -> bool:
    """The same word, or the truth of an alarm."""
    if value is True:
        return bool(ours == "threshold alarm")
    return isinstance(value, str) and value.lower() == ours


def _with_model(pair: Pair) -> dict[str, Any]:
    """The uplink with the model where the network server says it; the suite has placeholders."""
    up = pair.uplink
    if "deviceInfo" in up:
        return {**up, "deviceInfo": {**up["deviceInfo"], "deviceProfileName": pair.model}}
    if "uplink_message" in up:
        message = {**up["uplink_message"], "version_ids": {"model_id": pair.model.lower()}}
        return {**up, "uplink_message": message}
    return {**up, "title": pair.model, "deviceProfileName": pair.model}


def test_a_counter_that_falls_or_stands_is_flagged_unless_the_device_joined() -> None:
    def up(counter: int, second: int) -> dict[str, Any]:
        return {**UPLINK, "fCnt": counter, "time": f"2026-03-01T10:00:{second:02}Z"}

    join = {
        **{key: UPLINK[key] for key in ("deviceInfo", "devAddr")},
        "time": "2026-03-01T10:00:30Z",
    }
    fallen = read(up(100, 1), up(101, 2), up(7, 3), up(8, 4))
    again = read(up(100, 1), up(100, 1), up(100, 9))
    joined = read(up(100, 1), join, up(0, 40))

    assert back(fallen) == ["frame counter 7 after 101, without a join in between"]
    assert back(again) == ["frame counter 100 came twice"]
    assert back(joined) == []
    assert [event.fields["event.action"] for event in joined].count("lorawan_join") == 1


def test_devices_that_somebody_makes_up_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lorawan, "DEVICES_MAX", 20)
    one = Lorawan()
    made = [{**LORIOT, "EUI": f"{number:016x}"} for number in range(200)]
    list(one(records([json.dumps(up).encode() for up in made])))

    assert len(one._counters) == 20


def test_lists_and_lines_of_uplinks_are_read() -> None:
    text = json.dumps([LORIOT, THINGPARK]).encode()
    lines = b"\n".join(json.dumps(one).encode() for one in (LORIOT, THINGPARK))
    found = [
        [event.fields["cw.vendor"]["server"] for event in events]
        for events in events_of(Lorawan, records([text, lines]))
    ]

    assert found[0] == ["loriot", "loriot", "thingpark"]
    # The second time is a delivery of the same messages, which is no replay.
    assert found[1] == found[0]


def test_a_payload_that_nobody_understands_is_kept() -> None:
    (event,) = read({**LORIOT, "port": 1, "data": "0252850003809980220bd3"})

    assert event.fields["event.action"] == "lorawan_uplink"
    assert event.fields["cw.vendor"]["payload"] == "0252850003809980220bd3"
    assert event.fields["cw.vendor"]["decoded_by"] == "nobody"


def test_cayenne_is_read_only_to_its_last_byte() -> None:
    good = bytes.fromhex("03670110056700ff")

    assert decode(good, 2, None) == (
        [Measure("temperature_3", 27.2, "Cel"), Measure("temperature_5", 25.5, "Cel")],
        b"",
    )
    assert decode(good + b"\x01", 2, None) == ([], good + b"\x01")
    assert decode(bytes.fromhex("018806765ff2960a0003e8"), 2, None)[0][0].value == 42.3519


def test_what_is_behind_an_unknown_channel_is_kept() -> None:
    measures, rest = decode(bytes.fromhex("017564" + HISTORY + "0000000001"), 85, None)

    assert measures == [Measure("battery", 100.0, "%")]
    assert rest.hex().startswith(HISTORY)


def test_the_collector_keeps_its_promises() -> None:
    samples = [json.dumps(one).encode() for one in (UPLINK, DECODED, LORIOT, THINGPARK)]

    check_collector(Lorawan, samples, mutants_each=80)
    assert all(looks_like_lorawan(one) for one in samples)
    assert not looks_like_lorawan(b'{"cmd": "run", "deviceInfo": 1}')
