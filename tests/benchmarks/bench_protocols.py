"""Messages per second of CPU, protocol by protocol: `python tests/benchmarks/bench_protocols.py`.

A real capture of each protocol, again and again between other addresses, goes through the whole
packet room (walk, flows, reassembly, decoder, events) and through `tshark -T fields` in the same
run. Ours is the CPU of reading it without the start of the interpreter, theirs that of the process
less that of the same program on a capture of one packet.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cityward import Event
from collectors.packets.capture import CaptureReader
from collectors.packets.packets import Packets
from tests.benchmarks.bench_packets import ROOT, _frames, _rounds, _write

PACKETS = 30_000
REPEATS = 3
Row = dict[str, Any]

PROTOCOLS: dict[str, tuple[str, str]] = {
    "modbus": ("energy/modbus_plant1_normal.pcap", "modbus.func_code"),
    "iec104": ("energy/iec104_wattson_normal.pcapng", "iec60870_asdu.typeid"),
    "dnp3": ("energy/dnp3_icsnpp_example.pcap", "dnp3.al.func"),
    "s7comm": ("energy/s7comm_snap7_read_write_stop_download.pcap", "s7comm.param.func"),
    "mms": ("energy/iec61850_mms_and_goose.pcap", "mms.invokeID"),
    "goose": ("energy/iec61850_goose_sample.pcap", "goose.stNum"),
    "sampled_values": ("energy/iec61850_sampled_values.pcap", "sv.smpCnt"),
    "c37118": ("energy/c37118_pmu_tcp.pcap", "synphasor.idcode_data_source"),
    "opcua": ("energy/opcua_open62541_session.pcap", "opcua.servicenodeid.numeric"),
    "dlms": ("energy/dlms_meter.pcap", "frame.protocols"),
    "tristation": ("energy/triton_tristation_malware.pcap", "udp.length"),
    "hartip": ("energy/hartip_session.pcap", "hart_ip.message_id"),
    "enip": ("port/enip_quickdraw_reboot_restart.pcap", "cip.sc"),
    "fins": ("port/omron_fins.pcap", "omron.command"),
    "genisys": ("transport/genisys_rail_signalling.pcap", "tcp.len"),
    "bacnet": ("city/bacnet_all_services.pcap", "bacapp.type"),
    "mqtt": ("city/mqtt_zeek.pcap", "mqtt.msgtype"),
    "rtsp": ("city/rtsp_camera_streams.pcap", "rtsp.method"),
    "snmp": ("transport/snmp_v2c_requests.pcap", "snmp.community"),
    "dns": ("network/dns_tunnel_iodine.pcap", "dns.qry.name"),
    "http": ("network/web_sql_injection.pcap", "http.request.uri"),
    "ssh": ("network/ssh_bruteforce_nmap.pcap", "ssh.protocol"),
    "ftp": ("network/ftp_bruteforce.pcap", "ftp.request.command"),
    "arp": ("network/arp_scan.pcap", "arp.opcode"),
}
"""Protocol to a capture of it and to the field that the other program is asked for."""


def run(data: Path) -> list[Row]:
    """A row a protocol; `ratio` is ours by theirs, in packets of the same capture a CPU second."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="cityward-bench-") as folder:
        path, single = Path(folder) / "protocol.pcap", Path(folder) / "one.pcap"
        for name, (file, field) in PROTOCOLS.items():
            frames = _frames(data / file)
            if not frames:
                continue
            count = _write(path, _rounds(frames), PACKETS)
            _write(single, iter(frames[:1]), 1)
            row = {"protocol": name, "packets": count, **_ours(path, name)}
            theirs = _tshark(path, single, field, count)
            ours = row["packets_per_cpu_s"]
            ratio = round(ours / theirs, 2) if theirs else None
            rows.append({**row, "tshark_packets_per_cpu_s": theirs, "ratio": ratio})
    return rows


def one(path: Path, protocol: str) -> Row:
    """Read one capture in this process."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    collector = Packets()
    packets, seen = 0, Counter[str]()
    began_s = time.process_time()
    for batch in CaptureReader(path, "bench").read(None, threading.Event()):
        packets += len(batch.records)
        seen.update(map(_spoken, collector(batch.records)))
    seen.update(map(_spoken, collector.end()))
    spent_s = time.process_time() - began_s
    messages = seen[protocol]
    return {
        "messages": messages,
        "messages_per_cpu_s": round(messages / spent_s),
        "packets_per_cpu_s": round(packets / spent_s),
    }


def _spoken(event: Event) -> str:
    """The protocol of a message; a flow speaks none."""
    is_flow = event.logsource.category == "flow"
    return "" if is_flow else str(event.fields.get("network.protocol", ""))


def _ours(path: Path, protocol: str) -> Row:
    words = [sys.executable, "-m", "tests.benchmarks.bench_protocols", "one", protocol, str(path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = [
        json.loads(subprocess.run(words, check=True, capture_output=True, env=env, cwd=ROOT).stdout)
        for _ in range(REPEATS)
    ]
    return max(found, key=lambda row: row["messages_per_cpu_s"])


def _tshark(path: Path, single: Path, field: str, count: int) -> int | None:
    if not shutil.which("tshark"):
        return None
    words = ["tshark", "-T", "fields", "-e", "frame.number", "-e", field, "-r"]
    whole_s = min(_cpu_s([*words, str(path)]) for _ in range(REPEATS))
    start_s = min(_cpu_s([*words, str(single)]) for _ in range(REPEATS))
    return round(count / max(whole_s - start_s, 0.001))


def _cpu_s(words: list[str]) -> float:
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = 0
    return usage.ru_utime + usage.ru_stime


def _print(rows: list[Row]) -> None:
    print(f"{'protocol':16}{'messages/s':>12}{'packets/s':>12}{'tshark':>12}{'ratio':>8}")
    for row in rows:
        theirs = row["tshark_packets_per_cpu_s"]
        print(
            f"{row['protocol']:16}{row['messages_per_cpu_s']:>12,}{row['packets_per_cpu_s']:>12,}"
            f"{theirs or 0:>12,}{row['ratio'] or 0:>8}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        print(json.dumps(one(Path(sys.argv[3]), sys.argv[2])))
    else:
        place = Path(os.environ.get("CITYWARD_DATA", ROOT.parent / "shared" / "data"))
        found = run(place)
        print(json.dumps(found)) if sys.argv[1:2] == ["json"] else _print(found)
