"""FortiGate firewalls: traffic, VPN and administrator logins, what their inspection found.

Send: On the FortiGate: `config log syslogd setting`, `set status enable`, `set server` and the
node's address, `set format default`. A syslog reader (`reader = "syslog_udp"`) knows such lines by
itself; for a file write `collector = "fortigate"`. With `set format cef` the lines are read as CEF.

Understood: `traffic` (ends of sessions, refused packets), `event/vpn` (logins, tunnels),
`event/system` (logins of administrators, changes of the configuration), `event/user`, `utm`
(intrusions, viruses, web filter, application control, DNS). The time is `eventtime`, to the
microsecond.

Not understood: events of other subtypes keep their action as it is; what has no field is kept
under `cw.vendor`.

References:
    Fortinet, "FortiOS Log Message Reference" 7.4, log schema and log types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.logs.envelope import enveloped
from collectors.logs.marked import around_mark, most_lines, read_marked, slug
from collectors.values import (
    Table,
    address,
    count,
    lower,
    mac,
    moment,
    port,
    real,
    sort_in,
    text,
    word,
)

FORTIGATE = LogSource(product="fortigate")

_MARK = re.compile(
    rb"(?:date=\d{4}-\d\d-\d\d[, ] ?time=\d\d:\d\d:\d\d|\blogver=\d{1,12} )(?=.{1,400}type=)"
)
_PAIR = re.compile(r'([A-Za-z][\w.-]{0,63})=(?:"((?:[^"\\]|\\.)*+)"|([^\s",]*))')
LINE_MAX = 16_384
"""Characters of a line that are read; the device writes at most 8 KiB."""
PAIRS_MAX = 400

_PROTOCOLS = {"1": "icmp", "2": "igmp", "6": "tcp", "17": "udp", "47": "gre", "50": "esp"}


def _transport(value: Any) -> str | None:
    return _PROTOCOLS.get(value, text(value))


def _user(value: Any) -> str | None:
    """A name; `N/A` stands for none."""
    return text(value) if value not in ("N/A", "unknown") else None


TABLE: Table = {
    "srcip": ("source.ip", address),
    "remip": ("source.ip", address),
    "srcport": ("source.port", port),
    "srcmac": ("source.mac", mac),
    "srcname": ("source.domain", text),
    "dstip": ("destination.ip", address),
    "dstport": ("destination.port", port),
    "dstmac": ("destination.mac", mac),
    "dstname": ("destination.domain", text),
    "sentbyte": ("source.bytes", count),
    "rcvdbyte": ("destination.bytes", count),
    "sentpkt": ("source.packets", count),
    "rcvdpkt": ("destination.packets", count),
    "proto": ("network.transport", _transport),
    "service": ("network.protocol", lower),
    "app": ("network.application", lower),
    "srcintf": ("observer.ingress.interface.name", text),
    "dstintf": ("observer.egress.interface.name", text),
    "devname": ("host.name", text),
    "devid": ("observer.serial_number", text),
    "logid": ("event.code", word),
    "level": ("log.level", text),
    "msg": ("message", text),
    "reason": ("event.reason", text),
    "user": ("user.name", _user),
    "xauthuser": ("user.name", _user),
    "unauthuser": ("user.name", _user),
    "attackid": ("rule.id", word),
    "policyid": ("rule.id", word),
    "attack": ("rule.name", text),
    "virus": ("rule.name", text),
    "policyname": ("rule.name", text),
    "catdesc": ("rule.category", text),
    "hostname": ("url.domain", text),
    "url": ("url.original", text),
    "httpmethod": ("http.request.method", text),
    "agent": ("user_agent.original", text),
    "filename": ("file.name", text),
    "qname": ("dns.question.name", text),
    "qtype": ("dns.question.type", text),
}
LEFT_OUT = frozenset(("date", "time", "eventtime", "tz", "itime", "timestamp"))
"""They say the time."""

_DENIED = frozenset(("deny", "denied", "block", "blocked", "drop", "dropped", "violation", "reset"))
_UI = re.compile(r"\(([0-9A-Fa-f.:]{3,45})\)\Z")
_ALERTS = frozenset(("ips", "virus", "anomaly", "waf"))

Said = dict[str, str]
Fields = dict[str, Any]


def looks_like_fortigate(head: bytes) -> bool:
    """Most of the first lines begin with the date and name a type, as FortiOS writes."""
    return most_lines(head, _MARK)


@collector(FORTIGATE, looks_like=looks_like_fortigate, strength=75)
def fortigate(records: Iterable[Record]) -> Iterator[Event]:
    """Read lines of FortiOS, bare or behind an envelope of syslog."""
    yield from read_marked(records, FORTIGATE, read_fortigate, "FortiOS")


def read_fortigate(record: Record) -> Event | None:
    """Read one line; None if it is not of FortiOS."""
    found = _MARK.search(record.data)
    if found is None:
        return None
    line = record.data[found.start() : found.start() + LINE_MAX].decode("utf-8", "backslashreplace")
    said: Said = {}
    for name, quoted, plain in _PAIR.findall(line)[:PAIRS_MAX]:
        said.setdefault(name, quoted or plain)
    kind, sort = said.get("type", "")[:64], said.get("subtype", "")[:64]
    if not kind:
        raise ValueError("a line of FortiOS without a type")
    fields, rest = sort_in(
        {key: said[key] for key in said if key not in LEFT_OUT and said[key]}, TABLE
    )
    own: Fields = {
        "event.category": ["network"],
        "event.action": slug(said.get("action") or said.get("logdesc") or kind) or "log",
        "event.dataset": f"fortigate.{slug(sort or kind)}",
        "observer.vendor": "Fortinet",
        "observer.product": "FortiGate",
        **fields,
    }
    if seconds := real(rest.get("duration")):
        own["event.duration"] = int(min(max(seconds, 0), 1e9) * 1e9)
        del rest["duration"]
    category = MEANINGS.get(kind, _plain)(sort, said, own)
    if rest:
        own["cw.vendor"] = rest
    around = around_mark(record, found.start())
    time = _time(said)
    if time is not None:
        own["cw.time_source"] = "source"
    source = LogSource(category=category, product="fortigate", service=slug(kind))
    return Event(time or around.time, source, enveloped(around, own), record)


def _time(said: Said) -> datetime | None:
    """`eventtime` in seconds, milli-, micro- or nanoseconds; else date, time and zone."""
    raw = said.get("eventtime", "")
    if raw.isdigit() and 10 <= len(raw) <= 19:
        return moment(int(raw) / 10 ** (len(raw) - 10))
    return moment(f"{said.get('date', '')}T{said.get('time', '')}{said.get('tz', '')}")


def _plain(sort: str, said: Said, own: Fields) -> str:
    return ""


def _traffic(sort: str, said: Said, own: Fields) -> str:
    act = said.get("action", "")
    if act in _DENIED:
        own["event.action"], own["event.type"] = "packet_denied", ["denied"]
    elif act == "start":
        own["event.action"], own["event.type"] = "connection_started", ["allowed"]
    else:
        own["event.action"], own["event.type"] = "connection_ended", ["allowed"]
        own["event.outcome"] = "failure" if act == "ip-conn" else "success"
    return "firewall"


def _event(sort: str, said: Said, own: Fields) -> str:
    act, status = said.get("action", "").lower(), said.get("status", "").lower()
    said_so = f"{said.get('logdesc', '')} {act} {status}".lower()
    failed = "fail" in said_so or status in ("error", "negotiate_error", "denied")
    if sort == "vpn":
        return _vpn(act, failed, own)
    if act == "login" or "admin login" in said_so:
        own["event.action"] = "device_login"
    elif act == "logout" and "admin" in said_so:
        own["event.action"] = "device_logout"
    elif "cfgpath" in said:
        own["event.action"], own["event.category"] = "device_config", ["configuration"]
        own["event.type"] = ["change"]
    elif sort == "user" and act in ("authentication", "auth-logon", "fsso-logon"):
        own["event.action"] = "login"
    if own["event.action"] in ("device_login", "device_logout", "login"):
        own["event.category"] = ["authentication"]
        own["event.outcome"] = "failure" if failed else "success"
    if "source.ip" not in own and (at := _UI.search(said.get("ui", ""))) and (ip := address(at[1])):
        own["source.ip"] = ip
    return "edge_device" if own["event.action"].startswith("device_") else ""


def _vpn(act: str, failed: bool, own: Fields) -> str:
    named = "user.name" in own
    if act.startswith("ssl-login") or (act == "tunnel-up" and named):
        own["event.action"], own["event.category"] = "vpn_login", ["authentication"]
    elif act == "tunnel-down" and named:
        own["event.action"], own["event.category"] = "vpn_logout", ["authentication"]
    else:
        own["event.action"] = f"vpn_{slug(act) or 'log'}"
    if own["event.action"] in ("vpn_login", "vpn_logout", "vpn_tunnel_up", "vpn_negotiate"):
        own["event.outcome"] = "failure" if failed else "success"
    return "remote_access"


def _utm(sort: str, said: Said, own: Fields) -> str:
    if sort in _ALERTS:
        own["event.kind"] = "alert"
        own["event.category"] = ["malware" if sort == "virus" else "intrusion_detection"]
    denied = said.get("action", "").lower() in _DENIED
    own["event.action"] = f"{slug(sort) or 'utm'}_{'denied' if denied else 'allowed'}"
    own["event.type"] = ["denied" if denied else "allowed"]
    return ""


MEANINGS: dict[str, Callable[[str, Said, Fields], str]] = {
    "traffic": _traffic,
    "event": _event,
    "utm": _utm,
}
"""What a type of log means; each gives the category of its log source."""
