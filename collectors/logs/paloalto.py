"""Palo Alto Networks firewalls: TRAFFIC, THREAT, SYSTEM, CONFIG and GLOBALPROTECT logs.

Send: Device, Server Profiles, Syslog: the node's address, format BSD or IETF, no custom format;
name the profile in Log Settings and in a log forwarding profile. A syslog reader
(`reader = "syslog_udp"`) knows such lines by itself; for a file write `collector = "paloalto"`.

Understood: The columns of PAN-OS 10 and 11: sessions, refused packets, threats (URL, virus,
spyware, vulnerability, WildFire), administrator and VPN logins, changes of the configuration.

Not understood: Custom formats. Other types (HIP, USERID, DECRYPTION …) have their common columns,
the rest as text. A time without a zone is taken as UTC; the column with a zone comes first.

References:
    Palo Alto Networks, "Syslog Field Descriptions", PAN-OS 11.0, for each log type.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.logs.envelope import enveloped
from collectors.logs.marked import around_mark, most_lines, read_marked, slug
from collectors.values import Table, address, clean, count, lower, port, real, sort_in, text, word

PALOALTO = LogSource(product="paloalto")

_MARK = re.compile(
    rb"\b\d{0,3},\d{4}/\d\d/\d\d \d\d:\d\d:\d\d,[0-9A-Za-z]{5,20},(?:TRAFFIC|THREAT|SYSTEM|CONFIG"
    rb"|GLOBALPROTECT|HIPMATCH|HIP-MATCH|USERID|AUTHENTICATION|DECRYPTION|CORRELATION|GTP|SCTP"
    rb"|TUNNEL|IPTAG|AUDIT),"
)
LINE_MAX = 16_384
COLUMNS_MAX = 160

_COMMON = "future receive_time serial type subtype config_version generated_time"
_ENDS = (
    f"{_COMMON} src dst natsrc natdst rule srcuser dstuser app vsys from to inbound_if outbound_if "
    "logset future2 sessionid repeatcnt sport dport natsport natdport flags proto action"
)
COLUMNS: dict[str, tuple[str, ...]] = {
    "TRAFFIC": tuple(
        f"{_ENDS} bytes bytes_sent bytes_received packets start elapsed category future3 seqno "
        "actionflags srcloc dstloc future4 pkts_sent pkts_received session_end_reason dg1 dg2 dg3 "
        "dg4 vsys_name device_name action_source".split()
    ),
    "THREAT": tuple(
        f"{_ENDS} misc threatid category severity direction seqno actionflags srcloc dstloc "
        "future3 contenttype pcap_id filedigest cloud url_idx user_agent filetype xff referer "
        "sender subject recipient reportid dg1 dg2 dg3 dg4 vsys_name device_name future5 src_uuid "
        "dst_uuid http_method".split()
    ),
    "SYSTEM": tuple(
        f"{_COMMON} vsys eventid object future2 future3 module severity opaque seqno actionflags "
        "dg1 dg2 dg3 dg4 vsys_name device_name".split()
    ),
    "CONFIG": tuple(
        f"{_COMMON} host vsys cmd admin client result path seqno actionflags dg1 dg2 dg3 dg4 "
        "vsys_name device_name".split()
    ),
    "GLOBALPROTECT": tuple(
        f"{_COMMON} vsys eventid stage auth_method tunnel_type srcuser srcregion machinename "
        "public_ip public_ipv6 private_ip private_ipv6 hostid serialnumber client_ver client_os "
        "client_os_ver repeatcnt reason error opaque status location login_duration "
        "connect_method error_code portal".split()
    ),
}
"""Names of the columns by type, in the order of PAN-OS 10 and 11; later ones are not named."""
_USER = re.compile(r"[Uu]ser[ :]+'([^']{1,256})'")
_FROM = re.compile(r"(?:[Ff]rom|IP):? ?([0-9A-Fa-f.:]{3,45})")


def _given(value: Any) -> str | None:
    """An address; that of nobody stands for none."""
    return None if value in ("0.0.0.0", "::") else address(value)


TABLE: Table = {
    "src": ("source.ip", address),
    "dst": ("destination.ip", address),
    "sport": ("source.port", port),
    "dport": ("destination.port", port),
    "public_ip": ("source.ip", _given),
    "public_ipv6": ("source.ip", _given),
    "host": ("source.ip", address),
    "rule": ("rule.name", text),
    "srcuser": ("user.name", text),
    "admin": ("user.name", text),
    "app": ("network.application", lower),
    "proto": ("network.transport", lower),
    "inbound_if": ("observer.ingress.interface.name", text),
    "outbound_if": ("observer.egress.interface.name", text),
    "bytes_sent": ("source.bytes", count),
    "bytes_received": ("destination.bytes", count),
    "pkts_sent": ("source.packets", count),
    "pkts_received": ("destination.packets", count),
    "session_end_reason": ("event.reason", text),
    "reason": ("event.reason", text),
    "serial": ("observer.serial_number", word),
    "device_name": ("host.name", text),
    "eventid": ("event.code", text),
    "opaque": ("message", text),
    "user_agent": ("user_agent.original", text),
    "referer": ("http.request.referrer", text),
    "filedigest": ("file.hash.sha256", text),
    "category": ("rule.category", text),
    "machinename": ("source.domain", text),
}
LEFT_OUT = frozenset(("future", "future2", "future3", "future4", "future5", "type", "receive_time"))
_SEVERITIES = {"informational": 1, "low": 2, "medium": 3, "high": 4, "critical": 5}
_ALLOWED = frozenset(("allow", "alert", "continue", "override"))

Said = dict[str, str]
Fields = dict[str, Any]


def looks_like_paloalto(head: bytes) -> bool:
    """Most of the first lines have the first columns of PAN-OS."""
    return most_lines(head, _MARK)


@collector(PALOALTO, looks_like=looks_like_paloalto, strength=75)
def paloalto(records: Iterable[Record]) -> Iterator[Event]:
    """Read lines of PAN-OS, bare or behind an envelope of syslog."""
    yield from read_marked(records, PALOALTO, read_paloalto, "PAN-OS")


def read_paloalto(record: Record) -> Event | None:
    """Read one line; None if it is not of PAN-OS."""
    mark = _MARK.search(record.data, 0, 1_024)
    if mark is None:
        return None
    line = record.data[mark.start() : mark.start() + LINE_MAX].decode("utf-8", "backslashreplace")
    values = _split(line)
    kind = values[3]
    names = COLUMNS.get(kind) or tuple(_COMMON.split())
    said: Said = {name: value for name, value in zip(names, values, strict=False) if value}
    fields, rest = sort_in({key: said[key] for key in said if key not in LEFT_OUT}, TABLE)
    own: Fields = {
        "event.category": ["network"],
        "event.action": slug(f"{kind} {said.get('subtype', '')}"),
        "event.dataset": f"paloalto.{slug(kind)}",
        "observer.vendor": "Palo Alto Networks",
        "observer.product": "PAN-OS",
        **fields,
    }
    category = MEANINGS.get(kind, _plain)(said, own)
    later = values[len(names) :]
    if later and kind not in COLUMNS:
        rest["columns"] = clean(",".join(later))
    if rest:
        own["cw.vendor"] = rest
    around = around_mark(record, mark.start())
    zoned = next((one for one in values[-40:] if len(one) == 29 and _ZONED.match(one)), "")
    time = _time(zoned or said.get("generated_time", "") or said.get("receive_time", ""))
    if time is not None:
        own["cw.time_source"] = "source"
    source = LogSource(category=category, product="paloalto", service=slug(kind))
    return Event(time or around.time, source, enveloped(around, own), record)


_ZONED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d\Z")
"""The generated time in high resolution, among the last columns from PAN-OS 10 on."""


def _split(line: str) -> list[str]:
    if '"' not in line:
        return line.strip().split(",", COLUMNS_MAX)
    try:
        return next(csv.reader([line.strip().replace("\x00", "")]))[: COLUMNS_MAX + 1]
    except (csv.Error, StopIteration):
        return line.strip().split(",", COLUMNS_MAX)


@lru_cache(maxsize=4_096)
def _time(value: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(value.replace("/", "-"))
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _plain(said: Said, own: Fields) -> str:
    return ""


def _traffic(said: Said, own: Fields) -> str:
    act = said.get("action", "")
    if act in _ALLOWED:
        started = said.get("subtype") == "start"
        own["event.action"] = "connection_started" if started else "connection_ended"
        own["event.type"] = ["allowed"]
    else:
        own["event.action"], own["event.type"] = "packet_denied", ["denied"]
    seconds = real(said.get("elapsed"))
    if seconds is not None and 0 <= seconds < 1e9:
        own["event.duration"] = int(seconds * 1e9)
    return "firewall"


def _of_threat(said: Said, own: Fields) -> str:
    sort = slug(said.get("subtype", ""))
    allowed = said.get("action", "") in _ALLOWED
    own["event.action"] = f"{sort or 'threat'}_{'allowed' if allowed else 'denied'}"
    own["event.type"] = ["allowed" if allowed else "denied"]
    if sort == "url":
        own["event.category"] = ["web", "network"]
        if "misc" in said:
            own["url.original"] = clean(said["misc"])
        if "http_method" in said:
            own["http.request.method"] = clean(said["http_method"].upper())
        return "proxy"
    own["event.kind"] = "alert"
    own["event.category"] = ["malware" if sort in ("virus", "wildfire") else "intrusion_detection"]
    own["event.severity"] = _SEVERITIES.get(said.get("severity", ""), 0)
    name, _, number = said.get("threatid", "").rpartition("(")
    if number.endswith(")") and number[:-1].isdigit():
        own["rule.id"], own["rule.name"] = number[:-1], clean(name or number[:-1])
    elif number:
        own["rule.name"] = clean(number)
    if "misc" in said:
        own["file.name"] = clean(said["misc"])
    return ""


def _system(said: Said, own: Fields) -> str:
    own["event.severity"] = _SEVERITIES.get(said.get("severity", ""), 0)
    own["event.category"] = ["host"]
    words = said.get("opaque", "")
    event = said.get("eventid", "")
    own["event.action"] = slug(event) or "system"
    if said.get("subtype") != "auth" and not event.startswith(
        ("auth-", "globalprotect", "general")
    ):
        return ""
    lowered = words.lower()
    failed = "fail" in event or "fail" in lowered[:200] or "invalid" in lowered[:200]
    good = event == "auth-success" or "logged in" in lowered or "authenticated" in lowered[:200]
    if not (failed or good) or (event == "general" and "log" not in lowered[:200]):
        return ""
    own["event.category"] = ["authentication"]
    own["event.action"] = "device_login"
    own["event.outcome"] = "failure" if failed else "success"
    if (found := _USER.search(words)) and "user.name" not in own:
        own["user.name"] = clean(found[1])
    if (found := _FROM.search(words)) and (ip := address(found[1].rstrip("."))):
        own["source.ip"] = ip
    return "edge_device"


def _config(said: Said, own: Fields) -> str:
    own["event.category"], own["event.action"] = ["configuration"], "device_config"
    own["event.type"] = ["change"]
    own["event.outcome"] = (
        "success" if said.get("result") in ("Succeeded", "Submitted") else "failure"
    )
    own["message"] = clean(f"{said.get('cmd', '')} {said.get('path', '')}".strip())
    return "edge_device"


def _globalprotect(said: Said, own: Fields) -> str:
    own["event.category"] = ["authentication"]
    own["event.outcome"] = "success" if said.get("status") == "success" else "failure"
    login = said.get("stage") == "login" or said.get("eventid", "").endswith("-auth")
    out = said.get("stage") == "logout"
    event = slug(said.get("eventid", "")) or "log"
    own["event.action"] = "vpn_login" if login else "vpn_logout" if out else f"vpn_{event}"
    if "error" in said:
        own["event.reason"] = clean(said["error"])
    return "remote_access"


MEANINGS: dict[str, Callable[[Said, Fields], str]] = {
    "TRAFFIC": _traffic,
    "THREAT": _of_threat,
    "SYSTEM": _system,
    "CONFIG": _config,
    "GLOBALPROTECT": _globalprotect,
}
"""What a type of log means; each gives the category of its log source."""
