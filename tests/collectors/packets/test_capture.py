"""Captures in: formats, byte orders, damage."""

from __future__ import annotations

import gzip
import struct
import threading
from pathlib import Path

import pytest

from cityward import InputError
from collectors.packets.capture import CaptureReader, Chunk
from tests.collectors.packets.wire import (
    T0,
    batches,
    block,
    chunks,
    datagram,
    enhanced,
    interface,
    pcap,
    section,
)

FRAMES = [(T0 + 1_500, datagram("10.0.0.1", 1, "10.0.0.2", 2)), (T0 + 2_000_001_000, b"short")]

PACKETS = {
    "energy/modbus_icsnpp_example.pcap": 100,
    "energy/modbus_quickdraw_attacks_1.pcap": 118,
    "energy/modbus_quickdraw_attacks_2.pcap": 350,
    "energy/modbus_umas_modicon_attacks.pcap": 191,
    "energy/modbus_plant1_normal.pcap": 15_387,
    "energy/dnp3_icsnpp_example.pcap": 834,
    "energy/dnp3_quickdraw_attacks_1.pcap": 181,
    "energy/dnp3_request_flood.pcap": 40,
    "energy/iec104_wattson_normal.pcapng": 928,
    "energy/iec104_wattson_replay_9clones.pcapng": 937,
    "energy/iec104_control_commands.pcap": 173,
    "energy/iec61850_goose_sample.pcap": 451,
    "energy/iec61850_mms_and_goose.pcap": 301,
    "energy/iec61850_sampled_values.pcap": 10_161,
    "energy/c37118_pmu_tcp.pcap": 417,
    "energy/s7comm_snap7_read_write_stop_download.pcap": 64,
    "energy/opcua_open62541_session.pcap": 154,
    "energy/hartip_session.pcap": 116,
    "energy/dlms_meter.pcap": 27,
    "energy/triton_tristation_malware.pcap": 896,
    "port/enip_quickdraw_reboot_restart.pcap": 972,
    "port/enip_cip_icsnpp_example.pcap": 776,
    "port/profinet_dcp_change_ip.pcap": 6,
    "port/omron_fins.pcap": 243,
    "port/atg_fuel_tank_gauge.pcap": 31,
    "transport/genisys_rail_signalling.pcap": 996,
    "transport/trdp_train_bus.pcapng": 14,
    "transport/snmp_v2c_requests.pcap": 8,
    "city/rtsp_camera_streams.pcap": 568,
    "city/bacnet_all_services.pcap": 7_158,
    "city/bacnet_quickdraw_recon.pcap": 26,
    "city/knx_ip.pcapng": 3,
    "city/coap_mqtt.pcap": 1_082,
    "city/mqtt_zeek.pcap": 19,
    "city/mqtt_cleartext_credentials.pcap": 12,
    "city/mqtt_publish_without_connect.pcap": 115,
    "city/iot_botnet_telnet_scan.pcap": 2_000,
    "network/ssh_bruteforce_nmap.pcap": 1_178,
    "network/arp_scan.pcap": 534,
    "network/syn_scan.pcap": 2_011,
    "network/web_sql_injection.pcap": 94,
    "network/log4shell.pcap": 426,
    "network/dns_tunnel_iodine.pcap": 438,
    "network/ftp_bruteforce.pcap": 606,
    "network/netflow9_capture.pcap": 10,
}


def frames(path: Path) -> list[tuple[int, bytes]]:
    return [
        (int(piece.columns.time_ns[row]), piece.packet(row))
        for piece in chunks(path)
        for row in range(len(piece))
    ]


@pytest.mark.parametrize("name", PACKETS)
def test_every_packet_of_a_real_capture_is_read(data: Path, name: str) -> None:
    found = batches(data / name)

    assert sum(len(batch.records) for batch in found) == PACKETS[name]
    assert found[-1].ended
    assert found[-1].rejected == {}
    assert found[-1].place == {"frames": PACKETS[name], "done": True}


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcap_of_nanoseconds_keeps_every_nanosecond(tmp_path: Path, order: str) -> None:
    (tmp_path / "a.pcap").write_bytes(pcap(FRAMES, order=order))

    assert frames(tmp_path / "a.pcap") == FRAMES


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcap_of_microseconds_is_read_in_both_byte_orders(tmp_path: Path, order: str) -> None:
    (tmp_path / "a.pcap").write_bytes(pcap(FRAMES, order=order, nano=False))

    assert frames(tmp_path / "a.pcap") == [(T0 + 1_000, FRAMES[0][1]), FRAMES[1]]


def test_a_compressed_capture_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.pcap.gz").write_bytes(gzip.compress(pcap(FRAMES)))

    assert frames(tmp_path / "a.pcap.gz") == FRAMES


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_has_a_clock_and_a_link_type_for_each_interface(tmp_path: Path, order: str) -> None:
    seconds = T0 // 10**9
    (tmp_path / "a.pcapng").write_bytes(
        section(order)
        + interface(1, order)
        + interface(113, order, resolution=9)
        + interface(228, order, resolution=0x8A, offset_s=100)
        + block(5, bytes(12), order)
        + enhanced(0, seconds * 10**6 + 7, b"micro", order)
        + enhanced(1, T0 + 9, b"nano", order)
        + enhanced(2, 3 << 9, b"binary", order)
    )

    (piece,) = chunks(tmp_path / "a.pcapng")

    assert piece.columns.link.tolist() == [1, 113, 228]
    assert piece.columns.time_ns.tolist() == [T0 + 7_000, T0 + 9, 101_500_000_000]
    assert [piece.packet(row) for row in range(3)] == [b"micro", b"nano", b"binary"]


def test_a_new_section_brings_its_own_byte_order_and_interfaces(tmp_path: Path) -> None:
    (tmp_path / "a.pcapng").write_bytes(
        section("<") + interface(1, "<") + enhanced(0, 1, b"one", "<")
        + section(">") + interface(101, ">") + enhanced(0, 2, b"two", ">")
    )  # fmt: skip

    (piece,) = chunks(tmp_path / "a.pcapng")

    assert piece.columns.link.tolist() == [1, 101]
    assert piece.columns.time_ns.tolist() == [1_000, 2_000]


def test_simple_and_old_packet_blocks_are_read(tmp_path: Path) -> None:
    old = struct.pack("<HHIIII", 0, 7, 0, 5, 3, 90) + b"old"
    simple = struct.pack("<I", 6) + b"simple"
    cut = struct.pack("<I", 900) + b"y" * 64
    (tmp_path / "a.pcapng").write_bytes(
        section() + interface(snaplen=64) + block(3, simple) + block(2, old) + block(3, cut)
    )

    (piece,) = chunks(tmp_path / "a.pcapng")

    assert [piece.packet(row) for row in range(3)] == [b"simple", b"old", b"y" * 64]
    assert piece.columns.wirelen.tolist() == [6, 90, 900]
    assert piece.columns.time_ns.tolist() == [0, 5_000, 5_000]


def test_frame_numbers_begin_at_one_and_go_on_over_chunks(tmp_path: Path) -> None:
    (tmp_path / "a.pcap").write_bytes(pcap([(T0, b"x")] * 70_000))

    pieces = chunks(tmp_path / "a.pcap")

    assert [(piece.frame, len(piece)) for piece in pieces] == [(1, 65_536), (65_537, 4_464)]
    assert pieces[1][-1].place == 70_000


def test_a_large_capture_gives_the_same_chunks_each_time(tmp_path: Path) -> None:
    (tmp_path / "a.pcap").write_bytes(pcap([(T0, bytes(60_000))] * 300))

    first, second = chunks(tmp_path / "a.pcap"), chunks(tmp_path / "a.pcap")

    assert [(piece.frame, len(piece)) for piece in first] == [(1, 139), (140, 139), (279, 22)]
    assert [len(piece) for piece in second] == [139, 139, 22]


def test_a_cut_capture_gives_what_is_whole_and_says_that_it_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.pcap").write_bytes(pcap(FRAMES)[:-1])
    reader = CaptureReader(tmp_path / "a.pcap", "test")

    found = list(reader.read(None, threading.Event()))

    assert [len(batch.records) for batch in found] == [1, 0]
    assert found[-1].rejected == {"bad_record": 1}
    assert reader.notes == ["the last record is cut, behind frame 1"]


def test_a_record_that_claims_too_much_ends_the_capture(tmp_path: Path) -> None:
    damaged = struct.pack("<IIII", 0, 0, 300_000, 300_000) + bytes(400_000)
    (tmp_path / "a.pcap").write_bytes(pcap(FRAMES) + damaged)
    reader = CaptureReader(tmp_path / "a.pcap", "test")

    found = list(reader.read(None, threading.Event()))

    assert sum(len(batch.records) for batch in found) == 2
    assert found[-1].rejected == {"bad_record": 1}
    assert reader.notes == ["a record claims 300000 bytes, behind frame 2"]


def test_a_cut_compressed_capture_gives_what_can_be_decompressed(tmp_path: Path) -> None:
    whole = gzip.compress(pcap([(T0, bytes([n % 251]) * 900) for n in range(5_000)]))
    (tmp_path / "a.pcap.gz").write_bytes(whole[: len(whole) // 2])

    found = batches(tmp_path / "a.pcap.gz")

    assert 1_000 < sum(len(batch.records) for batch in found) < 5_000
    assert found[-1].rejected == {"bad_record": 1}


def test_a_block_of_an_unknown_interface_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.pcapng").write_bytes(
        section() + interface() + enhanced(0, 1, b"one") + enhanced(7, 1, b"two")
    )

    found = batches(tmp_path / "a.pcapng")

    assert sum(len(batch.records) for batch in found) == 1
    assert found[-1].rejected == {"bad_record": 1}


def test_an_absurd_clock_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.pcapng").write_bytes(
        section()
        + interface(resolution=0)
        + interface(resolution=0xFF)
        + interface(offset_s=-(2**62))
        + interface(offset_s=2**62)
        + b"".join(enhanced(number, 2**64 - 1, b"x") for number in range(4))
    )

    (piece,) = chunks(tmp_path / "a.pcapng")

    assert all(0 <= time_ns <= 9 * 10**18 for time_ns in piece.columns.time_ns.tolist())


@pytest.mark.parametrize(
    "content", [b"", b"\xd4\xc3\xb2\xa1", b"no capture at all, but long enough"]
)
def test_a_file_that_is_no_capture_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pcap").write_bytes(content)

    with pytest.raises(InputError, match=r"a\.pcap"):
        batches(tmp_path / "a.pcap")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pcap"):
        batches(tmp_path / "none.pcap")


def test_a_capture_read_to_its_end_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "a.pcap").write_bytes(pcap(FRAMES))
    reader = CaptureReader(tmp_path / "a.pcap", "test")
    last = list(reader.read(None, threading.Event()))[-1]

    again = list(reader.read(last.place, threading.Event()))

    assert [(len(batch.records), batch.ended) for batch in again] == [(0, True)]


def test_a_capture_not_read_to_its_end_is_read_from_its_start(tmp_path: Path) -> None:
    (tmp_path / "a.pcap").write_bytes(pcap(FRAMES))
    reader = CaptureReader(tmp_path / "a.pcap", "test")
    first = next(reader.read(None, threading.Event()))

    again = next(reader.read(first.place, threading.Event()))

    assert isinstance(again.records, Chunk)
    assert again.records.frame == 1


def test_a_reader_that_is_stopped_ends(tmp_path: Path) -> None:
    (tmp_path / "a.pcap").write_bytes(pcap([(T0, b"x")] * 200_000))
    stop = threading.Event()
    reading = CaptureReader(tmp_path / "a.pcap", "test").read(None, stop)
    next(reading)

    stop.set()

    assert list(reading) == []
