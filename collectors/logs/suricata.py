"""Suricata's EVE output: alerts and what it saw besides, one JSON object a line.

Send: switch `eve-log` on in suricata.yaml and read its file (`reader = "file"`,
`path = "/var/log/suricata/eve.json"`, `collector = "suricata"`), or let it write to syslog.

Understood: alerts with their rule and ATT&CK metadata, flows, DNS, HTTP, TLS, SSH and file events,
anomalies; addresses, ports and community ids of all of them.

Not understood: packet bodies; statistics are kept as metrics in `cw.vendor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.logs.envelope import Envelope, enveloped
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
    sort_in,
    text,
    texts,
    whole,
    word,
)

SURICATA = LogSource(product="suricata")

TABLE: Table = {
    "src_ip": ("source.ip", address),
    "src_port": ("source.port", port),
    "dest_ip": ("destination.ip", address),
    "dest_port": ("destination.port", port),
    "proto": ("network.transport", lower),
    "app_proto": ("network.protocol", lower),
    "community_id": ("network.community_id", text),
    "in_iface": ("observer.ingress.interface.name", text),
    "host": ("observer.name", text),
    "ether.src_mac": ("source.mac", mac),
    "ether.dest_mac": ("destination.mac", mac),
    "alert.signature_id": ("rule.id", word),
    "alert.signature": ("rule.name", text),
    "alert.category": ("rule.category", text),
    "alert.rev": ("rule.version", word),
    "alert.severity": ("event.severity", whole),
    "alert.metadata.mitre_technique_id": ("threat.technique.id", texts),
    "alert.metadata.mitre_technique_name": ("threat.technique.name", texts),
    "alert.metadata.mitre_tactic_id": ("threat.tactic.id", texts),
    "alert.metadata.mitre_tactic_name": ("threat.tactic.name", texts),
    "flow.pkts_toserver": ("source.packets", count),
    "flow.pkts_toclient": ("destination.packets", count),
    "flow.bytes_toserver": ("source.bytes", count),
    "flow.bytes_toclient": ("destination.bytes", count),
    "flow.start": ("event.start", moment),
    "flow.end": ("event.end", moment),
    "flow.reason": ("event.reason", text),
    "http.hostname": ("url.domain", text),
    "http.url": ("url.original", text),
    "http.http_method": ("http.request.method", text),
    "http.http_refer": ("http.request.referrer", text),
    "http.http_user_agent": ("user_agent.original", text),
    "http.http_content_type": ("http.response.mime_type", text),
    "http.protocol": ("http.version", text),
    "http.status": ("http.response.status_code", count),
    "dns.id": ("dns.id", word),
    "dns.type": ("dns.type", text),
    "dns.rrname": ("dns.question.name", text),
    "dns.rrtype": ("dns.question.type", text),
    "dns.rcode": ("dns.response_code", text),
    "dns.rdata": ("dns.answers.data", text),
    "tls.sni": ("tls.client.server_name", text),
    "tls.version": ("tls.version", text),
    "tls.subject": ("tls.server.subject", text),
    "tls.issuerdn": ("tls.server.issuer", text),
    "tls.ja3.hash": ("tls.client.ja3", text),
    "ssh.client.software_version": ("user_agent.original", text),
    "fileinfo.filename": ("file.path", text),
    "fileinfo.size": ("file.size", count),
    "fileinfo.sha256": ("file.hash.sha256", text),
    "fileinfo.md5": ("file.hash.md5", text),
    "anomaly.event": ("event.reason", text),
    "modbus.request.unit_id": ("ot.unit", word),
    "modbus.request.function_raw": ("ot.function.code", word),
    "modbus.request.function_code": ("ot.function.name", text),
    "modbus.response.exception.raw": ("ot.exception", word),
    "dnp3.request.application.function_code": ("ot.function.code", word),
    "dnp3.response.application.function_code": ("ot.function.code", word),
    "dnp3.request.dst": ("ot.unit", word),
    "dnp3.response.src": ("ot.unit", word),
}
"""EVE keys to fields; doc/userguide/output/eve/eve-json-format of Suricata 8."""

LEFT_OUT = frozenset(("timestamp", "event_type", "payload", "packet", "payload_printable"))
"""Said elsewhere, or the raw bytes again; the original line keeps them."""


def looks_like_suricata(head: bytes) -> bool:
    """The first line is an EVE object, whole or cut."""
    line = head.lstrip().partition(b"\n")[0]
    return line[:1] == b"{" and b'"event_type":' in line.replace(b'": ', b'":')


@collector(SURICATA, looks_like=looks_like_suricata, strength=70)
def suricata(records: Iterable[Record]) -> Iterator[Event]:
    """Read EVE lines; the service of the log source is their `event_type`.

    References:
        Suricata user guide, "Eve JSON Output".
    """
    for record in records:
        try:
            line = read_json(record.data)
            time = moment(line.get("timestamp"))
            if time is None:
                raise ValueError(f"no time in timestamp: {line.get('timestamp')!r}")
            yield _event(line, time, record)
        except ValueError as error:
            yield Event.malformed(record, SURICATA, why=str(error))


def read_suricata(around: Envelope, record: Record, number: int) -> Event | None:
    """Read EVE JSON that came through syslog; None if the message is another one."""
    start = around.message.find("{")
    if not 0 <= start <= 64:
        return None
    try:
        line = read_json(around.message[start:].encode("utf-8", "replace"))
    except ValueError:
        return None
    if "event_type" not in line:
        return None
    event = _event(line, moment(line.get("timestamp")) or around.time, record, number)
    return Event(event.time, event.logsource, enveloped(around, event.fields), record, number)


def _event(line: dict[str, Any], time: datetime, record: Record, number: int = 0) -> Event:
    kind = line.get("event_type")
    if not isinstance(kind, str) or not kind:
        raise ValueError(f"no event_type: {kind!r}")
    kind = clean(kind)[:64]
    said = {key: value for key, value in flat(line).items() if key not in LEFT_OUT}
    fields, vendor = sort_in(said, TABLE)
    fields = {
        "event.category": ["network"],
        "event.action": f"suricata_{kind}",
        "event.dataset": f"suricata.{kind}",
        **fields,
        **SHAPES.get(kind, _plain)(line, fields),
    }
    if vendor:
        fields["cw.vendor"] = vendor
    logsource = LogSource(product="suricata", service=kind)
    if kind == "flow":
        logsource = LogSource(category="flow", product="suricata", service=kind)
    return Event(time, logsource, fields, record, number)


def _plain(line: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    return {}


def _alert(line: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    alert = line.get("alert")
    blocked = isinstance(alert, dict) and alert.get("action") == "blocked"
    own: dict[str, Any] = {
        "event.kind": "alert",
        "event.category": ["intrusion_detection"],
        "event.type": ["denied" if blocked else "info"],
        "rule.ruleset": "suricata",
    }
    if "rule.name" in fields:
        own["message"] = fields["rule.name"]
    if "threat.technique.id" in fields or "threat.tactic.id" in fields:
        own["threat.framework"] = "attack-enterprise"
    return own


def _flow(line: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {"event.action": "flow_ended", "event.outcome": _answered(line, fields)}
    start, end = fields.get("event.start"), fields.get("event.end")
    if start is not None and end is not None and end >= start:
        own["event.duration"] = int((end - start).total_seconds() * 1_000_000) * 1_000
    return own


def _answered(line: dict[str, Any], fields: dict[str, Any]) -> str:
    tcp = line.get("tcp")
    reset = isinstance(tcp, dict) and tcp.get("rst") is True and tcp.get("fin") is not True
    return "failure" if reset or not fields.get("destination.packets") else "success"


def _http(line: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    status = fields.get("http.response.status_code")
    own: dict[str, Any] = {"event.category": ["network", "web"], "network.protocol": "http"}
    if status is not None:
        own["event.outcome"] = "failure" if status >= 400 else "success"
    return own


def _dns(line: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {"network.protocol": "dns"}
    queries = (line.get("dns") or {}) if isinstance(line.get("dns"), dict) else {}
    listed = queries.get("queries")
    if isinstance(listed, list) and listed and isinstance(listed[0], dict):
        # Version 3 of the DNS records lists the questions.
        own["dns.question.name"] = text(listed[0].get("rrname"))
        own["dns.question.type"] = text(listed[0].get("rrtype"))
    return {name: value for name, value in own.items() if value is not None}


def _stats(line: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    return {"event.kind": "metric"}


def _protocol(name: str) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    return lambda line, fields: {"network.protocol": name}


def _process_control(
    name: str,
) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    return lambda line, fields: {
        "network.protocol": name,
        "event.category": ["network", "process_control"],
    }


SHAPES: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = {
    "alert": _alert,
    "dnp3": _process_control("dnp3"),
    "dns": _dns,
    "flow": _flow,
    "http": _http,
    "modbus": _process_control("modbus"),
    "ssh": _protocol("ssh"),
    "stats": _stats,
    "tls": _protocol("tls"),
}
"""What a kind of event adds to the table."""
