"""Zeek's logs, as JSON lines or as tab-separated values with their header.

Send: read Zeek's log folder (`reader = "folder"`, `path = "/opt/zeek/logs/current"`,
`glob = "*.log"`, `collector = "zeek"`); JSON (`LogAscii::use_json=T`) or tab-separated.

Understood: conn as flows, dns, http, ssl, ssh, files, notice, weird and the logs of industrial
protocols, under ECS names; each log has the log source `product: zeek, service: <log>`.

Not understood: a tab-separated file that is read from its middle, without its `#fields` line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.values import (
    Table,
    address,
    clean,
    count,
    flat,
    lower,
    mac,
    moment,
    port,
    read_json,
    real,
    sort_in,
    text,
    word,
)

ZEEK = LogSource(product="zeek")

COMMON: Table = {
    "id.orig_h": ("source.ip", address),
    "id.orig_p": ("source.port", port),
    "id.resp_h": ("destination.ip", address),
    "id.resp_p": ("destination.port", port),
    "proto": ("network.transport", lower),
    "service": ("network.protocol", lower),
    "community_id": ("network.community_id", text),
    "orig_l2_addr": ("source.mac", mac),
    "resp_l2_addr": ("destination.mac", mac),
}
"""What most logs have; docs.zeek.org, "Log Files"."""

TABLES: dict[str, Table] = {
    "conn": {
        "orig_bytes": ("source.bytes", count),
        "resp_bytes": ("destination.bytes", count),
        "orig_pkts": ("source.packets", count),
        "resp_pkts": ("destination.packets", count),
    },
    "dns": {
        "trans_id": ("dns.id", word),
        "query": ("dns.question.name", text),
        "qtype_name": ("dns.question.type", text),
        "rcode_name": ("dns.response_code", text),
    },
    "http": {
        "method": ("http.request.method", text),
        "host": ("url.domain", text),
        "uri": ("url.original", text),
        "referrer": ("http.request.referrer", text),
        "version": ("http.version", text),
        "user_agent": ("user_agent.original", text),
        "username": ("user.name", text),
        "status_code": ("http.response.status_code", count),
    },
    "ssl": {
        "version": ("tls.version", text),
        "cipher": ("tls.cipher", text),
        "server_name": ("tls.client.server_name", text),
        "subject": ("tls.server.subject", text),
        "issuer": ("tls.server.issuer", text),
        "ja3": ("tls.client.ja3", text),
    },
    "ssh": {"client": ("user_agent.original", text)},
    "modbus": {
        "unit": ("ot.unit", word),
        "func": ("ot.function.name", text),
        "exception": ("ot.exception", text),
    },
    "notice": {
        "note": ("rule.name", text),
        "msg": ("message", text),
        "src": ("source.ip", address),
        "dst": ("destination.ip", address),
        "p": ("destination.port", port),
    },
}
"""What a log has besides, by its path."""

PROTOCOLS = {"dns": "dns", "http": "http", "ssl": "tls", "ssh": "ssh", "modbus": "modbus"}
FAILED = frozenset(("S0", "REJ", "RSTO", "RSTR", "RSTOS0", "RSTRH", "SH", "SHR"))
"""Connection states of conn.log that were refused, reset or never answered."""
ANSWERED = frozenset(("S1", "S2", "S3", "SF"))

# Which log a JSON line is from, where the file name does not say it: keys only this log has.
SIGNS = (
    ("conn", "conn_state"),
    ("dns", "qtype_name"),
    ("dns", "rcode"),
    ("http", "uri"),
    ("http", "trans_depth"),
    ("ssl", "cipher"),
    ("ssl", "established"),
    ("ssh", "auth_attempts"),
    ("notice", "note"),
    ("modbus", "func"),
)
FIELDS_MAX = 1_024
HEADERS_MAX = 1_000
"""Files whose header is remembered; the oldest gives way."""
"""Columns of a header that are kept."""


def looks_like_zeek(head: bytes) -> bool:
    """A header of tab-separated values, or JSON with Zeek's `ts` and `uid`."""
    line = head.lstrip().partition(b"\n")[0]
    if line.startswith((b"#separator", b"#fields\t")):
        return True
    return line[:1] == b"{" and b'"ts":' in line and (b'"uid":' in line or b'"id.orig_h"' in line)


@collector(ZEEK, looks_like=looks_like_zeek, strength=70)
class Zeek:
    """Read logs; the header of each file is remembered until its next one.

    References:
        docs.zeek.org, "Log Formats and Inspection"; base/frameworks/logging/writers/ascii.
    """

    def __init__(self) -> None:
        self.memory: dict[str, dict[str, Any]] = {}
        """Header of each file of the source; it is needed after a restart, too."""

    def __call__(self, records: Iterable[Record]) -> Iterator[Event]:
        """One event a line; header lines are events, too, of what they announce."""
        for record in records:
            try:
                yield self._read(record)
            except ValueError as error:
                yield Event.malformed(record, ZEEK, why=str(error))

    def _read(self, record: Record) -> Event:
        data = record.data
        if data[:1] == b"#":
            return self._announce(record)
        if data.lstrip()[:1] == b"{":
            line = flat(read_json(data))
            return _event(line, _path_of(line), record)
        header = self.memory.get(record.source, {})
        if not (columns := header.get("columns")):
            raise ValueError("a line of values before any #fields header")
        parts = data.decode("utf-8", "backslashreplace").split(header["separator"], FIELDS_MAX + 1)
        if len(parts) != len(columns):
            raise ValueError(f"{len(parts)} values, the header has {len(columns)} columns")
        line = {name: _value(part) for name, part in zip(columns, parts, strict=True)}
        return _event(line, header.get("path") or _path_of(line), record)

    def _announce(self, record: Record) -> Event:
        """Take a line of the header and say so."""
        said = record.data[1:].decode("utf-8", "backslashreplace")
        header = self._header_of(record.source)
        name, _, value = said.replace("#separator ", "separator\t").partition(header["separator"])
        if said.startswith("separator "):
            name, value = "separator", said[10:].strip()
            header["separator"] = _unescaped(value)
        elif name == "path":
            header["path"] = value.strip()[:256]
        elif name == "fields":
            columns = value.split(header["separator"], FIELDS_MAX + 1)
            header["columns"] = [clean(column)[:128] for column in columns[:FIELDS_MAX]]
        service = header.get("path", "")
        fields = {
            "event.kind": "state",
            "event.action": "log_header",
            "event.dataset": f"zeek.{service or 'header'}",
            "message": clean(said),
            "cw.time_source": "collector",
        }
        return Event(record.received, ZEEK, fields, record)

    def _header_of(self, source: str) -> dict[str, Any]:
        header = self.memory.setdefault(source, {"separator": "\t"})
        if len(self.memory) > HEADERS_MAX:
            del self.memory[next(iter(self.memory))]
        return header


def _unescaped(value: str) -> str:
    """The sign that a hexadecimal escape means; the tab if it is none."""
    if len(value) == 4 and value[:2] == "\\x":
        try:
            return chr(int(value[2:], 16))
        except ValueError:
            return "\t"
    return value[:1] or "\t"


def _value(part: str) -> Any:
    """A value as written; unset (`-`) is nothing, and empty (`(empty)`) says nothing either."""
    if part in ("-", "(empty)"):
        return None
    return {"T": True, "F": False}.get(part, part)


def _path_of(line: dict[str, Any]) -> str:
    named = line.get("_path")
    if isinstance(named, str) and named:
        return named
    return next((path for path, key in SIGNS if key in line), "")


def _event(line: dict[str, Any], path: str, record: Record) -> Event:
    time = moment(line.get("ts"))
    if time is None:
        raise ValueError(f"no time in ts: {line.get('ts')!r}")
    path = clean(path).removesuffix(".log")[:64]
    table = {**COMMON, **TABLES.get(path, {})}
    said = {key: value for key, value in line.items() if key not in ("ts", "_path")}
    fields, vendor = sort_in(said, table)
    fields = {
        "event.category": ["network"],
        "event.action": f"zeek_{path or 'log'}",
        "event.dataset": f"zeek.{path or 'log'}",
        **fields,
    }
    logsource = LogSource(product="zeek", service=path)
    if path in PROTOCOLS:
        fields["network.protocol"] = PROTOCOLS[path]
    if path == "conn":
        logsource = LogSource(category="flow", product="zeek", service="conn")
        _flow(fields, vendor, time.timestamp())
        fields["event.start"] = time
    elif path == "notice":
        fields.update({"event.kind": "alert", "event.category": ["intrusion_detection"]})
    elif path == "http" and "http.response.status_code" in fields:
        failed = fields["http.response.status_code"] >= 400
        fields["event.outcome"] = "failure" if failed else "success"
    elif path == "ssh":
        _login(fields, vendor)
    elif path == "modbus":
        fields["event.category"] = ["network", "process_control"]
    if vendor:
        fields["cw.vendor"] = vendor
    return Event(time, logsource, fields, record)


def _flow(fields: dict[str, Any], vendor: dict[str, Any], start_s: float) -> None:
    """Fields of a connection: when it ended, how long it took, whether it was answered."""
    fields["event.action"] = "flow_ended"
    duration_s = real(vendor.get("duration"))
    if duration_s is not None and 0 <= duration_s < 1e9:
        fields["event.duration"] = round(duration_s * 1e9)
        end = moment(start_s + duration_s)
        if end is not None:
            fields["event.end"] = end
        del vendor["duration"]
    state = vendor.get("conn_state")
    if state in FAILED:
        fields["event.outcome"] = "failure"
    elif state in ANSWERED:
        fields["event.outcome"] = "success"


def _login(fields: dict[str, Any], vendor: dict[str, Any]) -> None:
    said = vendor.get("auth_success")
    if isinstance(said, bool):
        fields["event.category"] = ["network", "authentication"]
        fields["event.action"] = "ssh_login"
        fields["event.outcome"] = "success" if said else "failure"
