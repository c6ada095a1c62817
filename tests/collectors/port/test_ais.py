"""AIS: real streams, gpsd's reading of one, and what a sender may do wrong."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from functools import reduce
from operator import xor

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.port.ais import TRACKS_MAX, Ais, looks_like_ais
from collectors.port.nmea import KNOT

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POSITION = b"!AIVDM,1,1,,B,13aDp<PP000IwSlN?Wm@0?wN2<1T,0*29"
FIRST = b"!AIVDM,2,1,9,B,55R3Vn82=ILTQ3KKS>1<D60Dq@E918U<F222221J1`?164vc03S1CCAD,0*2A"
SECOND = b"!AIVDM,2,2,9,B,`88888888888880,2*76"


def _read(lines: list[bytes], ais: Ais | None = None) -> list[Event]:
    records = [Record(line, "s", at, NOW) for at, line in enumerate(lines)]
    return list((ais or Ais())(records))


def _lines(path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines() if line.strip()]


def _framed(body: str) -> bytes:
    return f"!{body}*{reduce(xor, body.encode(), 0):02X}".encode()


def _payload(bits: str) -> str:
    bits += "0" * (-len(bits) % 6)
    codes = (int(bits[at : at + 6], 2) for at in range(0, len(bits), 6))
    return "".join(chr(code + 48 if code < 40 else code + 56) for code in codes)


def _position(
    mmsi: int,
    north: float,
    east: float,
    knots: float = 10.0,
    at_s: int | None = None,
    kind: int = 1,
) -> bytes:
    """A message 1 as a transponder makes it, with a tag block if it has a time."""
    widths = (
        *((kind, 6), (0, 2), (mmsi, 30), (0, 4), (0, 8), (round(knots * 10), 10), (0, 1)),
        *((round(east * 600_000), 28), (round(north * 600_000), 27), (900, 12), (90, 9)),
        *((10, 6), (0, 2), (0, 3), (0, 1), (0, 19)),
    )
    bits = "".join(f"{value & (1 << width) - 1:0{width}b}" for value, width in widths)
    line = _framed(f"AIVDM,1,1,,A,{_payload(bits)},0")
    if at_s is None:
        return line
    tags = f"s:rx1,c:{at_s}"
    return f"\\{tags}*{reduce(xor, tags.encode(), 0):02X}\\".encode() + line


def test_the_danish_stream_has_all_its_messages_with_their_times(data):
    found = _read(_lines(data / "port/ais_dma_stream.txt"))

    messages = [event for event in found if event.fields["event.dataset"] == "ais.message"]
    kinds = Counter(event.fields["cw.vendor"]["msg_type"] for event in messages)
    assert len(found) == 8551
    assert len(messages) == 4051
    assert len({event.fields["phys.track"] for event in messages}) == 1933
    assert kinds.most_common(3) == [(1, 2511), (5, 424), (3, 369)]
    assert {kind: kinds[kind] for kind in (4, 18, 24, 15, 8, 6, 21, 16)} == {
        **{4: 129, 18: 101, 24: 74, 15: 66},
        **{8: 63, 6: 37, 21: 37, 16: 23},
    }
    assert not any(event.is_malformed for event in found)
    assert not any(event.fields["event.action"] == "ais_jump" for event in found)
    times = {event.time.isoformat()[:15] for event in found if "T" in event.time.isoformat()}
    assert min(times) == "2010-06-11T11:4"
    assert not any("cw.time_source" in event.fields for event in messages)


def test_the_broken_sentences_of_pyais_are_told_and_the_others_read(data):
    found = _read(_lines(data / "port/ais_pyais_mixed_types.txt"))

    reasons = Counter(event.fields["event.reason"] for event in found if event.is_malformed)
    actions = Counter(event.fields["event.action"] for event in found)
    assert len(found) == 898
    assert reasons == {"an AIS message without content": 100}
    assert len(found) - 100 - actions["ais_part"] == 778


def _expected(path) -> list[dict]:
    lines = path.read_text("utf-8").splitlines()
    said = [json.loads(line) for line in lines if line.startswith("{")]
    return [one for one in said if one["class"] == "AIS"]


NAMES = {"shiptype": "ship_type"}
SAME = (
    *("repeat", "imo", "callsign", "shipname", "shiptype", "to_bow", "to_stern", "to_port"),
    *("to_starboard", "epfd", "destination", "dte", "heading", "second", "maneuver", "raim"),
    *("radio", "accuracy", "status", "cs", "display", "dsc", "band", "msg22", "dac", "fid"),
    *("ais_version", "model", "serial", "vendorid"),
)


def _differences(said: dict, event: Event) -> tuple[int, list[str]]:
    """How many values were compared, and which differ."""
    fields, vendor = event.fields, event.fields["cw.vendor"]
    pairs = [("mmsi", f"{said['mmsi']:09d}", fields["phys.track"])]
    if said["type"] == 24:
        # gpsd has seven letters of the vendor, as M.1371-3; since M.1371-4 they are three.
        said = {**said, "vendorid": said["vendorid"][:3]}
    left_out = {24: ("shipname",), 8: SAME[1:]}.get(said["type"], ())  # 8: data stay hex
    for name in SAME:
        if name in said and (name not in left_out or name in ("dac", "fid")):
            pairs.append((name, said[name], vendor.get(NAMES.get(name, name))))
    if "lat" in said and said["lat"] != 91 * 600_000:
        place = f"{said['lat'] / 600_000:.6f},{said['lon'] / 600_000:.6f}"
        pairs.append(("place", place, fields.get("phys.position")))
    if "course" in said and said["course"] != 3600:
        pairs.append(("course", said["course"] / 10, fields.get("phys.course")))
    if "speed" in said and said["speed"] != 1023:
        pairs.append(("speed", round(said["speed"] / 10 * KNOT, 3), fields.get("phys.speed")))
    if "draught" in said and said["type"] == 5:
        pairs.append(("draught", said["draught"] / 10, vendor.get("draught")))
    wrong = [f"{name}: {here!r} != {there!r}" for name, here, there in pairs if here != there]
    return len(pairs), wrong


def test_a_log_is_read_as_gpsd_reads_it(data):
    expected = _expected(data / "port/ais_gpsd.expected.jsonl")
    found = _read(_lines(data / "port/ais_gpsd.log"))

    ours = [event for event in found if event.fields["event.dataset"] == "ais.message"]
    assert len(ours) == 171
    assert len({event.fields["phys.track"] for event in ours}) == 33
    # gpsd repeats its last report, and joins the two halves of message 24: looked up by content.
    compared, wrong, unseen = 0, [], 0
    for said in expected:
        same = [
            event
            for event in ours
            if event.fields["cw.vendor"]["msg_type"] == said["type"]
            and event.fields["phys.track"] == f"{said['mmsi']:09d}"
        ]
        if said["type"] == 24:
            same = [event for event in same if event.fields["cw.vendor"]["partno"] == 1]
        unseen += not same
        if same:
            count, differ = min(
                (_differences(said, event) for event in same), key=lambda d: len(d[1])
            )
            compared += count
            wrong += differ
    assert not unseen
    assert compared > 2_500
    assert not wrong


def test_a_position_is_told_in_our_units():
    (event,) = _read([_position(244660274, 52.85, 5.7, 10.0, at_s=1_700_000_000)])

    assert event.time.isoformat() == "2023-11-14T22:13:20+00:00"
    assert event.fields["event.action"] == "ais_position"
    assert event.fields["phys.track"] == "244660274"
    assert event.fields["phys.position"] == "52.850000,5.700000"
    assert event.fields["phys.speed"] == 5.144
    assert event.fields["phys.course"] == 90.0
    assert event.fields["phys.quality"] == "good"
    assert event.fields["cw.vendor"]["station"] == "rx1"
    assert event.fields["cw.vendor"]["status_name"] == "UnderWayUsingEngine"


def test_two_parts_are_one_message_and_two_events():
    first, second = _read([FIRST, SECOND])

    assert first.fields["event.action"] == "ais_part"
    assert second.fields["event.action"] == "ais_static"
    assert second.fields["phys.track"] == "371255000"
    assert second.fields["cw.vendor"]["shipname"] == "SEA ENTERPRISE"
    assert second.fields["cw.vendor"]["destination"] == "LEMMER"


def test_parts_may_come_in_the_wrong_order():
    assert _read([SECOND, FIRST])[1].fields["cw.vendor"]["shipname"] == "SEA ENTERPRISE"


def test_a_message_that_is_never_completed_is_told_by_the_next():
    found = _read([FIRST, FIRST])

    assert found[1].fields["event.reason"] == "the message before it was not completed"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"!AIVDM,1,1,,B,,0*25", "an AIS message without content"),
        (POSITION[:-1] + b"8", "sentence damaged: its checksum is 29, not 28"),
        (POSITION[:-3], "a sentence without checksum"),
        (_framed("AIVDM,3,4,,A,13u,0"), "part 4 of 3"),
        (_framed("AIVDM,x,1,,A,13u,0"), "a number of parts that is none: 'x'"),
        (_framed("AIVDM,1,1,,A,13u?8T00001Uk8B,0"), "an AIS message 1 of 90 bits is cut short"),
        (b"\\s:x*00\\" + POSITION, "tag block damaged: its checksum is 31, not 00"),
        (b"\\s:x" + POSITION, "a tag block without its end"),
        (b"hello", "no NMEA 0183 sentence"),
        (b"!" + b"A" * 2_000, "2001 bytes where a sentence has at most 1024"),
    ],
)
def test_what_cannot_be_decoded_is_told_with_its_reason(line, reason):
    (event,) = _read([line])

    assert event.is_malformed
    assert event.fields["event.reason"] == reason


@pytest.mark.parametrize(
    ("line", "quality", "reason"),
    [
        (_position(244660274, 91, 181), "uncertain", "the sender does not know its position"),
        (_position(244660274, 95, 5), "bad", "position outside WGS 84: 95.0, 5.0"),
        (_position(244660274, 52, 5, 102.2), "bad", "speed of 102.2 knots or more"),
        (_position(123456789, 52, 5), "uncertain", "MMSI 123456789 is nobody's"),
        (
            _position(244660274, 52, 5, kind=20),
            "uncertain",
            "a base station's message 20 from MMSI 244660274",
        ),
    ],
)
def test_what_cannot_be_is_marked(line, quality, reason):
    event = _read([line])[0]

    assert event.fields["phys.quality"] == quality
    assert reason in event.fields["event.reason"]


def test_a_ship_that_is_suddenly_elsewhere_jumps():
    found = _read(
        [
            _position(244660274, 52.0, 5.0, at_s=1_700_000_000),
            _position(244660275, 52.0, 5.0, at_s=1_700_000_000),
            _position(244660274, 52.5, 5.0, at_s=1_700_000_010),
            _position(244660275, 52.001, 5.0, at_s=1_700_000_010),
        ]
    )

    jumps = [event for event in found if event.fields["event.action"] == "ais_jump"]
    assert [(event.fields["phys.track"], event.number) for event in jumps] == [("244660274", 1)]
    assert jumps[0].fields["event.reason"] == "55,598 m in 10 s"
    assert jumps[0].fields["phys.speed"] == 5559.8


def test_without_a_clock_nothing_jumps():
    assert len(_read([_position(244660274, 52.0, 5.0), _position(244660274, 53.0, 5.0)])) == 2


def test_memory_is_bounded():
    ais = Ais()
    parts = [_framed(f"AIVDM,2,1,{seq},A,53u,0") for seq in range(600)]

    found = _read(parts, ais)

    assert "too many messages" in found[-1].fields["event.reason"]
    assert len(ais._parts) <= 256
    assert TRACKS_MAX <= 50_000


def test_a_gatehouse_line_gives_the_message_behind_it_its_time_and_station():
    found = _read(
        [
            b"$PGHP,1,2010,6,11,11,46,11,390,231,45,992190934,1,2B*5B",
            b"!AIVDM,1,1,,B,402=481uaUcf;OQ55JS9ITi025Jp,0*2B",
        ]
    )

    assert [event.fields["event.action"] for event in found] == [
        "ais_reception",
        "ais_base_station",
    ]
    assert {event.time.isoformat() for event in found} == {"2010-06-11T11:46:11.390000+00:00"}
    assert found[1].fields["cw.vendor"]["station"] == "992190934"


def test_a_datagram_may_hold_several_sentences():
    found = _read([FIRST + b"\r\n" + SECOND + b"\r\n"])

    assert [event.fields["event.action"] for event in found] == ["ais_part", "ais_static"]
    assert [event.number for event in found] == [0, 1]


def test_positions_of_the_receiver_itself_are_those_of_gpsd(data):
    lines = (data / "port/ais_gpsd.expected.jsonl").read_text("utf-8").splitlines()
    said = [json.loads(line) for line in lines if line.startswith('{"class":"TPV"')]
    found = _read(_lines(data / "port/ais_gpsd.log"))

    ours: dict[str, tuple[float, ...]] = {}
    for event in found:
        if event.fields["event.action"] == "gnss_position":
            spot = tuple(map(float, event.fields["phys.position"].split(",")))
            ours[f"{event.time:%Y-%m-%dT%H:%M:%S}"] = spot
    theirs = [(one["time"][:19], one["lat"], one["lon"]) for one in said if "lat" in one]
    assert len(theirs) > 150
    for time, north, east in theirs:
        assert ours[time] == pytest.approx((north, east), abs=0.6e-6)  # we have six digits


def test_a_receiver_with_position_sentences_is_read_whole():
    (event,) = _read([b"$GPGLL,5250.53669,N,00542.34920,E,213950.00,A,A*67"])

    assert event.logsource.service == "gnss"


@pytest.mark.parametrize(
    ("head", "is_ais"),
    [
        (POSITION + b"\n", True),
        (b"# note\n$GPGLL,1*67\n" + POSITION + b"\n", True),
        (b"\\s:rx1,c:1*00\\" + POSITION + b"\n", True),
        (b"$GPGLL,5250.53669,N,00542.34920,E,213950.00,A,A*67\n", False),
        (b"a\nb\nc\n" + POSITION + b"\n", False),
        (b"", False),
    ],
)
def test_a_file_is_recognised_by_its_sentences(head, is_ais):
    assert looks_like_ais(head) is is_ais


def test_the_collector_keeps_its_promises():
    check_collector(Ais, [POSITION, FIRST, SECOND], mutants_each=100)
