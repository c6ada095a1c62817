"""NetFlow and IPFIX: the suite of logstash, real exports, a real exporter, and strangers."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cityward import Event, Record
from cityward.checks import NOW, check_collector, check_decoder, events_of, records, wrong_fields
from collectors.flows import netflow
from collectors.flows.netflow import Exports, Netflow, is_export
from collectors.flows.sequence import Sequences
from collectors.packets.decoders.netflow import NetflowDatagrams
from collectors.packets.packets import Packets
from collectors.readers.syslog import SyslogUdp
from tests.collectors.flows import suite
from tests.collectors.packets.wire import chunks, collected
from tests.programs import PATIENCE_S

RECORD = {"flow_ended", "flow_begun", "flow_continues", "flow_denied", "flow_options"}
"""Actions that stand for one record of an export."""

CAPTURE = "web_sql_injection.pcap"
"""What softflowd meters."""

START = 1_700_000_000
ENDS = bytes((192, 0, 2, 1, 198, 51, 100, 7))


def v5(sequence: int = 0, count: int = 1, sampling: int = 0) -> bytes:
    head = struct.pack("!HHIIIIBBH", 5, count, 60_000, START, 500_000_000, sequence, 0, 0, sampling)
    flow = ENDS + bytes(4) + struct.pack(
        "!HHIIIIHHBBBBHHBBH", 1, 2, 3, 180, 50_000, 59_000, 40_000, 443, 0, 27, 6, 0, 0, 0, 0, 0, 0
    )  # fmt: skip
    return head + flow * count


def v9(*sets: tuple[int, bytes], sequence: int = 0, domain: int = 0) -> bytes:
    parts = b"".join(struct.pack("!HH", number, len(body) + 4) + body for number, body in sets)
    return struct.pack("!HHIIII", 9, len(sets), 60_000, START, sequence, domain) + parts


def template(number: int, *elements: tuple[int, int]) -> bytes:
    said = b"".join(struct.pack("!HH", *one) for one in elements)
    return struct.pack("!HH", number, len(elements)) + said


TEMPLATE = (0, template(256, (8, 4), (12, 4), (4, 1), (1, 4), (2, 4)))
DATA = (256, ENDS + struct.pack("!BII", 17, 1_000, 10))


def read(*messages: bytes) -> list[Event]:
    """Events of messages of one exporter."""
    return [event for events in events_of(Netflow, records(messages)) for event in events]


def actions(events: list[Event]) -> list[str]:
    return [event.fields["event.action"] for event in events]


def test_a_flow_of_version_5_has_the_fields_of_our_own_meter() -> None:
    (event,) = Netflow()([Record(v5(), "udp", "192.0.2.250|1", NOW)])

    vendor = event.fields.pop("cw.vendor")
    assert event.fields == {
        "event.category": ["network"],
        "event.dataset": "netflow.flow",
        "event.action": "flow_ended",
        "event.outcome": "unknown",
        "event.start": datetime(2023, 11, 14, 22, 13, 10, 500_000, UTC),
        "event.end": datetime(2023, 11, 14, 22, 13, 19, 500_000, UTC),
        "event.duration": 9_000_000_000,
        "observer.ip": ["192.0.2.250"],
        "source.ip": "192.0.2.1",
        "source.port": 40_000,
        "source.bytes": 180,
        "source.packets": 3,
        "destination.ip": "198.51.100.7",
        "destination.port": 443,
        "network.type": "ipv4",
        "network.transport": "tcp",
        "network.bytes": 180,
        "network.packets": 3,
        "network.community_id": "1:lWOTJwBjzASkHgo+w0kukpG9z0M=",
    }
    assert event.time == event.fields["event.end"]
    assert (vendor["tcp_flags"], vendor["in_if"], vendor["out_if"]) == (27, 1, 2)


def test_the_netflow_suite_agrees_field_by_field(data: Path) -> None:
    """Each difference has a reason, and in each the suite is wrong."""
    counted: Counter[str] = Counter()
    for case in suite.cases(data / "network" / "suite_netflow_ipfix_cases.tar.gz"):
        found = [event.fields for event in read(*case.messages)]
        found = [fields for fields in found if fields["event.action"] in RECORD]
        # The codec of the suite reads no further than the first message of a file.
        if case.count is not None and case.name not in ("Netflow 5 valid 01", "IPFIX"):
            assert len(found) == case.count or case.name in suite.HELD, case.name
        for expected in case.expected:
            best = max(found, key=lambda fields: _alike(expected, fields))
            for name, value, said in suite.pairs(expected, best):
                if suite.agrees(value, said):
                    counted["agree"] += 1
                    continue
                why = suite.reason(name, value, said)
                assert why, f"{case.name}: {name} is {said!r} instead of {value!r}"
                counted[why] += 1
    total = sum(counted.values())
    print(f"NetFlow suite: {counted['agree']} of {total} agree; {dict(counted)}")
    assert counted["agree"] >= 736
    assert total == 780


def _alike(expected: Any, fields: dict[str, Any]) -> int:
    return sum(suite.agrees(value, said) for _, value, said in suite.pairs(expected, fields))


def test_real_exports_of_softflowd_are_read(data: Path) -> None:
    five = read((data / "network" / "netflow5_softflowd.dat").read_bytes())
    nine = read((data / "network" / "netflow9_softflowd.dat").read_bytes())
    ipfix = read((data / "network" / "ipfix_softflowd.dat").read_bytes())

    said = [
        (event.fields["source.ip"], event.fields["source.packets"], event.fields["source.bytes"])
        for event in five[:2]
    ]
    assert said == [("10.0.2.2", 5, 230), ("10.0.2.15", 4, 304)]
    assert actions(nine).count("flow_ended") == 7
    # The file holds a second message; the first has six flows and an option.
    assert actions(ipfix).count("flow_options") == 1
    # This exporter counts the records of each message with it: 6, 7, 12. Nothing is lost.
    assert "flows_lost" not in actions(ipfix)
    assert ipfix[1].fields["event.start"] == datetime(2015, 5, 13, 11, 20, 13, 506_000, UTC)


def test_records_without_their_template_wait_and_are_read_when_it_comes() -> None:
    events = read(v9(DATA), v9(DATA), v9(TEMPLATE))

    assert actions(events) == [
        "flows_waiting", "flows_waiting", "flow_templates", "flow_ended", "flow_ended",
    ]  # fmt: skip
    assert events[0].fields["cw.vendor"]["bytes"] == 17
    assert events[3].fields["cw.vendor"]["waited"] is True
    assert events[3].fields["source.bytes"] == 1_000


def test_templates_belong_to_their_exporter_and_domain() -> None:
    one = Netflow()
    said = [
        Record(v9(TEMPLATE), "udp", "192.0.2.250|1", NOW),
        Record(v9(DATA), "udp", "192.0.2.251|2", NOW),
        Record(v9(DATA, domain=7), "udp", "192.0.2.250|3", NOW),
        Record(v9(DATA), "udp", "192.0.2.250|4", NOW),
    ]

    assert actions(list(one(said))) == [
        "flow_templates", "flows_waiting", "flows_waiting", "flow_ended",
    ]  # fmt: skip


def test_a_gap_in_the_sequence_says_how_many_flows_are_lost() -> None:
    events = read(v5(0, 3), v5(3, 3), v5(6, 3), v5(20, 3))

    lost = [event for event in events if event.fields["event.action"] == "flows_lost"]
    assert [event.fields["cw.vendor"]["lost"] for event in lost] == [11]
    assert lost[0].fields["event.reason"] == "11 flow records of this exporter did not arrive"


@pytest.mark.parametrize(
    ("numbers", "records", "lost"),
    [
        ([0, 1, 2, 5, 6], [3, 3, 3, 3, 3], [2]),
        ([0, 3, 5, 9, 17], [3, 2, 4, 1, 1], [7]),
        ([3, 5, 9, 10, 20], [3, 2, 4, 1, 2], [8]),
        ([7, 8, 9, 12], [1, 1, 1, 1], [2]),
        ([0, 3, 6, 3, 9], [3, 3, 3, 3, 3], []),
        ([900_000, 900_003, 900_006, 0, 3, 6], [3, 3, 3, 3, 3, 3], []),
        ([4_294_967_290, 4_294_967_293, 0, 3], [3, 3, 3, 3], []),
        ([0, 50, 90], [3, 3, 3], []),
    ],
    ids=[
        "messages", "records before", "records with its own", "one record each", "late", "restart",
        "wrap", "not learned",
    ],
)  # fmt: skip
def test_each_way_to_count_is_learned(
    numbers: list[int], records: list[int], lost: list[int]
) -> None:
    sequences = Sequences(10)
    found = [
        sequences.lost("x", number, count)[0]
        for number, count in zip(numbers, records, strict=True)
    ]

    assert [one for one in found if one] == lost


def test_sampling_is_stated_and_counts_stay_as_reported() -> None:
    header = read(v5(sampling=1 << 14 | 100))
    options = (1, struct.pack("!HHHHHHH", 300, 4, 4, 1, 4, 34, 4))
    stated = (300, struct.pack("!II", 1, 1_000))
    told = read(v9(TEMPLATE, options), v9(stated), v9(DATA))

    assert header[0].fields["cw.vendor"]["sampling"] == 100
    assert header[0].fields["source.packets"] == 3
    assert told[-1].fields["cw.vendor"]["sampling"] == 1_000
    assert told[-1].fields["source.packets"] == 10


@pytest.mark.parametrize(
    ("flags", "outcome"), [(0x02, "failure"), (0x06, "failure"), (0x1B, "unknown"), (0, "unknown")]
)
def test_who_asks_and_never_acknowledges_did_not_get_through(flags: int, outcome: str) -> None:
    shape = (0, template(257, (8, 4), (12, 4), (4, 1), (6, 1), (7, 2), (11, 2)))
    (_, event) = read(v9(shape, (257, ENDS + struct.pack("!BBHH", 6, flags, 40_000, 23))))

    assert event.fields["event.outcome"] == outcome


def test_an_icmp_flow_has_a_type_and_no_ports() -> None:
    shape = (0, template(257, (8, 4), (12, 4), (4, 1), (7, 2), (11, 2)))
    (_, event) = read(v9(shape, (257, ENDS + struct.pack("!BHH", 1, 0, 8 << 8))))

    assert "destination.port" not in event.fields
    assert event.fields["cw.vendor"]["icmp_type"] == 8
    assert event.fields["network.transport"] == "icmp"


def test_a_message_cut_short_gives_what_arrived_and_says_so() -> None:
    events = read(v5(count=3)[:-10])

    assert actions(events) == ["flow_ended", "flow_ended", "unreadable"]


def test_a_forger_costs_neither_memory_nor_the_exporter_its_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(netflow, "EXPORTERS_MAX", 50)
    exports = Exports(templates_max=100, elements_max=300, held_max_bytes=1_000)
    list(exports.read(v9(TEMPLATE), "192.0.2.250"))
    evicted = 0
    for number in range(2_000):
        forged = f"10.9.{number >> 8}.{number & 255}"
        for _, fields in exports.read(v9(TEMPLATE, (999, bytes(40)), domain=number), forged):
            evicted += fields["cw.vendor"].get("evicted", 0)
        list(exports.read(v5(), forged))
        found = [fields for _, fields in exports.read(v9(DATA), "192.0.2.250")]
        assert found[-1]["event.action"] == "flow_ended"

    assert len(exports.templates.templates) <= 60
    assert evicted > 1_900
    assert exports._held_bytes <= 1_000
    assert len(exports.sequences.streams) <= 50


@pytest.mark.parametrize(
    "elements",
    [((1, 0),) * 400 + ((2, 1),), ((1, 1),) * 600],
    ids=["records of almost no bytes", "too many elements"],
)
def test_a_template_that_would_take_minutes_is_refused(elements: Any) -> None:
    began = time.process_time()
    events = read(v9((0, template(256, *elements))), v9((256, bytes(60_000))))

    assert actions(events)[0] == "unreadable"
    assert time.process_time() - began < 2


@pytest.mark.parametrize("seed", range(4))
def test_whatever_a_template_says_the_events_can_be_kept(seed: int) -> None:
    chance = random.Random(seed)
    exports = Exports()
    known = [1, 2, 4, 7, 8, 11, 12, 21, 22, 27, 34, 50, 58, 61, 82, 96, 136, 152, 153, 154, 155]
    known += [156, 158, 160, 161, 176, 231, 233, 305, 306, 309, 310, 323, 365, 371]
    for number in range(256, 316):
        elements = tuple(
            (chance.choice(known), chance.choice((0, 1, 2, 4, 6, 8, 9, 16, 40, 65_535)))
            for _ in range(chance.randint(1, 12))
        )
        sets = [(2, template(number, *elements))]
        if chance.random() < 0.3:
            scoped = struct.pack("!HHH", number, len(elements), 1)
            sets = [(3, scoped + b"".join(struct.pack("!HH", *one) for one in elements))]
        fill = chance.choice((b"\0", b"\xff", b"\x7f"))
        data = chance.choice((chance.randbytes(400), fill * 400))
        body = b"".join(
            struct.pack("!HH", kind, len(part) + 4) + part for kind, part in [*sets, (number, data)]
        )
        head = struct.pack("!HHIII", 10, 16 + len(body), START, number, 0)
        for when, fields in exports.read(head + body, "192.0.2.9"):
            assert when is None or when.utcoffset() is not None
            assert wrong_fields(fields) == []


def test_one_message_gives_a_bounded_number_of_events() -> None:
    events = read(v9((0, template(256, (4, 1)))), v9((256, bytes(60_000))))

    assert len(events) == 1 + netflow.RECORDS_MAX + 1
    assert events[-1].is_malformed


def test_the_collector_and_the_decoder_keep_their_promises() -> None:
    check_collector(Netflow, [v5(count=2), v9(TEMPLATE, DATA)], mutants_each=100)
    check_decoder(
        NetflowDatagrams, [(True, v9(TEMPLATE, DATA)), (True, v5(count=2))], mutants_each=60
    )


def test_only_whole_exports_are_recognised(data: Path) -> None:
    assert all(map(is_export, (v5(), v9(TEMPLATE), v9(DATA) + bytes(30))))
    assert not is_export(v5() + b"\0")
    assert not is_export(v9(DATA)[:-1])
    assert not is_export(bytes(64))
    assert not is_export(struct.pack("!HHHHHH", 5, 1, 1, 0, 0, 0) + b"\3www\0\0\1\0\1")


def test_a_capture_of_an_exporter_says_what_it_waits_for(data: Path) -> None:
    capture = data / "network" / "netflow9_capture.pcap"
    events = collected(Packets({"netflow": NetflowDatagrams}), chunks(capture))

    waiting = [one for one in events if one.fields["event.action"] == "flows_waiting"]
    assert len(waiting) == 10
    assert waiting[0].fields["observer.ip"] == ["192.168.2.134"]
    named = " ".join(one.fields["event.reason"] for one in waiting)
    assert all(number in named for number in ("258", "259", "260", "262", "263"))


@pytest.mark.slow
@pytest.mark.parametrize("version", [5, 9, 10])
def test_softflowd_reports_over_a_real_socket(data: Path, version: int) -> None:
    program = shutil.which("softflowd") or "/usr/sbin/softflowd"
    if not Path(program).exists():
        pytest.skip("softflowd is not installed")
    reader, stop = SyslogUdp("127.0.0.1", 0, "udp"), threading.Event()
    reader.open()
    command = [program, "-r", str(data / "network" / CAPTURE), "-v", str(version)]
    command += ["-n", f"127.0.0.1:{reader.port}"]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    threading.Timer(1.0, stop.set).start()
    collect = Netflow()
    found = [event for batch in reader.read(None, stop) for event in collect(batch.records)]
    reader.close()

    assert "unreadable" not in actions(found)
    own = collected(Packets({}), chunks(data / "network" / CAPTURE))
    assert _packets(found) == _packets(own)
    assert {tuple(one.fields["observer.ip"]) for one in found} == {("127.0.0.1",)}


def _packets(events: list[Event]) -> Counter[str]:
    """Packets of each conversation, whichever way they went."""
    found: Counter[str] = Counter()
    for event in events:
        if "network.community_id" in event.fields:
            found[event.fields["network.community_id"]] += event.fields["network.packets"]
    return found
