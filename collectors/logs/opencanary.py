"""OpenCanary, a decoy: every touch of it is worth a look, for nobody has business there.

Send: In `opencanary.conf` add a `SysLogHandler` with the node's address, or follow its file
(`reader = "file"`, `path = "/var/tmp/opencanary.log"`, `collector = "opencanary"`).

Understood: All kinds of `logtype` by name, both ends, node, user name, what was asked (path, file,
command, user agent). A login is always a failure: a decoy lets nobody in.

Not understood: Passwords; that there was one is said, its text is left out.

References:
    Thinkst, opencanary/logger.py, versions 0.7 to 0.9.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.logs.envelope import Envelope, enveloped
from collectors.values import (
    Table,
    address,
    flat,
    moment,
    port,
    read_json,
    scalar,
    sort_in,
    text,
    whole,
)

OPENCANARY = LogSource(category="application", product="opencanary")

# fmt: off
KINDS: dict[int, tuple[str, str]] = {
    2000: ("ftp_login", "ftp"), 2001: ("ftp_login", "ftp"),
    3000: ("http_request", "http"), 3001: ("http_login", "http"), 3002: ("http_request", "http"),
    3003: ("http_request", "http"),
    4000: ("ssh_connection", "ssh"), 4001: ("ssh_version", "ssh"), 4002: ("ssh_login", "ssh"),
    5000: ("smb_file_opened", "smb"), 5001: ("port_scan", ""), 5002: ("port_scan", ""),
    5003: ("port_scan", ""), 5004: ("port_scan", ""), 5005: ("port_scan", ""),
    6001: ("telnet_login", "telnet"), 6002: ("telnet_connection", "telnet"),
    7001: ("http_proxy_login", "http"), 8001: ("mysql_login", "mysql"),
    9001: ("mssql_login", "tds"), 9002: ("mssql_login", "tds"), 9003: ("mssql_connection", "tds"),
    10001: ("tftp_request", "tftp"), 11001: ("ntp_monlist", "ntp"), 12001: ("vnc_login", "vnc"),
    13001: ("snmp_request", "snmp"), 14001: ("rdp_login", "rdp"), 15001: ("sip_request", "sip"),
    16001: ("git_clone", "git"), 17001: ("redis_command", "redis"),
    18001: ("tcp_connection", ""), 18002: ("tcp_connection", ""), 18003: ("tcp_connection", ""),
    18004: ("tcp_connection", ""), 18005: ("tcp_connection", ""), 19001: ("llmnr_answer", "llmnr"),
}
# fmt: on
"""Action and protocol by `logtype`."""
OWN = range(1000, 2000)
"""Kinds that speak of the decoy itself: start, errors, pings."""
_SECRET = frozenset(("PASSWORD", "PWHASH", "VNC Password", "HASH", "RESPONSE", "PASS"))

TABLE: Table = {
    "src_host": ("source.ip", address),
    "src_port": ("source.port", port),
    "dst_host": ("destination.ip", address),
    "dst_port": ("destination.port", port),
    "node_id": ("host.name", text),
    "logdata.USERNAME": ("user.name", text),
    "logdata.USER": ("user.name", text),
    "logdata.PATH": ("url.path", text),
    "logdata.USERAGENT": ("user_agent.original", text),
    "logdata.HOSTNAME": ("url.domain", text),
    "logdata.FILENAME": ("file.name", text),
    "logdata.REMOTEVERSION": ("user_agent.original", text),
    "logdata.CMD": ("process.command_line", text),
    "logdata.msg": ("message", text),
}
"""Names of a line, flat."""


def looks_like_opencanary(head: bytes) -> bool:
    """The first line is an object with a kind, a node and what was seen."""
    line = head.partition(b"\n")[0]
    return b"{" in line[:256] and all(
        part in line for part in (b'"logtype":', b'"node_id":', b'"logdata":')
    )


@collector(OPENCANARY, looks_like=looks_like_opencanary, strength=74)
def opencanary(records: Iterable[Record]) -> Iterator[Event]:
    """Read touches of a decoy, one JSON object a line."""
    for record in records:
        around = Envelope(record.received, "", time_source="collector")
        try:
            start = max(record.data.find(b"{", 0, 256), 0)
            yield _event(read_json(record.data[start:]), around, record, 0)
        except ValueError as error:
            yield _without_secret(Event.malformed(record, OPENCANARY, why=str(error)))


def _without_secret(event: Event) -> Event:
    """What cannot be read may hold a password, so its text is not kept."""
    event.fields["event.original"] = "left out: it may hold a password"
    return event


def read_opencanary(around: Envelope, record: Record, number: int) -> Event | None:
    """Read a touch that came through syslog; None if the message is another one."""
    start = around.message.find("{")
    if not 0 <= start <= 256 or '"logtype"' not in around.message:
        return None
    try:
        line = read_json(around.message[start:].encode("utf-8", "replace"))
        return _event(line, around, record, number)
    except ValueError:
        return None


def _event(line: dict[str, Any], around: Envelope, record: Record, number: int) -> Event:
    kind = whole(line.get("logtype"))
    if kind is None:
        raise ValueError("no line of OpenCanary: it has no logtype")
    line, secret = _told(line)
    said = flat(line)
    times = [said.pop(name, None) for name in ("utc_time", "local_time", "local_time_adjusted")]
    fields, rest = sort_in(said, TABLE)
    action, protocol = KINDS.get(kind, ("canary_touched", ""))
    own: dict[str, Any] = {
        "event.kind": "alert",
        "event.category": ["intrusion_detection", "network"],
        "event.action": action,
        "event.code": str(kind),
        "event.dataset": "opencanary.log",
        "event.original": str(scalar(line)),
        **fields,
    }
    if kind in OWN:
        own.update(
            {"event.kind": "state", "event.category": ["host"], "event.action": "canary_log"}
        )
    if protocol:
        own["network.protocol"] = protocol
    if action.endswith("_login"):
        own["event.category"] = ["intrusion_detection", "authentication"]
        own["event.outcome"] = "failure"
    if secret:
        rest["password"] = "given, not kept"
    own["cw.vendor"] = rest
    time = next((found for one in times if (found := moment(one))), None)
    if time is not None:
        own["cw.time_source"] = "source"
    return Event(time or around.time, OPENCANARY, enveloped(around, own), record, number)


def _told(line: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The line without passwords, and whether it had any."""
    said = line.get("logdata")
    if not isinstance(said, dict) or _SECRET.isdisjoint(said):
        return line, False
    kept = {name: value for name, value in said.items() if name not in _SECRET}
    return {**line, "logdata": kept}, True
