"""Alerts of Wazuh, the host monitor: which of its rules spoke, about which agent.

Send: Follow `/var/ossec/logs/alerts/alerts.json` on the Wazuh manager (`reader = "file"`,
`collector = "wazuh"`), or let its `syslog_output` send with `<format>json</format>`; a syslog
reader knows such lines by itself.

Understood: Rule (id, level, words, groups, ATT&CK), agent, manager, the addresses, ports, users,
URL and protocol that its decoder found, the line the alert is about; file integrity.

Not understood: Data of particular decoders; it is kept under `cw.vendor`.

References:
    Wazuh 4, "Alert management", "Rules classification"; decoder static fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.logs.envelope import Envelope, enveloped
from collectors.values import (
    Table,
    address,
    count,
    flat,
    lower,
    moment,
    port,
    read_json,
    sort_in,
    text,
    texts,
    whole,
    word,
)

WAZUH = LogSource(product="wazuh", service="alerts")

TABLE: Table = {
    "rule.id": ("rule.id", word),
    "rule.description": ("rule.name", text),
    "rule.level": ("event.severity", whole),
    "rule.groups": ("tags", texts),
    "rule.mitre.id": ("threat.technique.id", texts),
    "rule.mitre.technique": ("threat.technique.name", texts),
    "rule.mitre.tactic": ("threat.tactic.name", texts),
    "agent.name": ("host.name", text),
    "manager.name": ("observer.name", text),
    "predecoder.program_name": ("process.name", text),
    "decoder.name": ("event.provider", text),
    "full_log": ("message", text),
    "location": ("log.file.path", text),
    "id": ("event.code", text),
    "data.srcip": ("source.ip", address),
    "data.src_ip": ("source.ip", address),
    "data.srcport": ("source.port", port),
    "data.src_port": ("source.port", port),
    "data.dstip": ("destination.ip", address),
    "data.dest_ip": ("destination.ip", address),
    "data.dstport": ("destination.port", port),
    "data.dest_port": ("destination.port", port),
    "data.dstuser": ("user.name", text),
    "data.srcuser": ("user.name", text),
    "data.protocol": ("network.transport", lower),
    "data.proto": ("network.transport", lower),
    "data.url": ("url.original", text),
    "data.win.eventdata.targetUserName": ("user.name", text),
    "data.win.eventdata.ipAddress": ("source.ip", address),
    "data.win.eventdata.image": ("process.executable", text),
    "data.win.eventdata.commandLine": ("process.command_line", text),
    "syscheck.path": ("file.path", text),
    "syscheck.size_after": ("file.size", count),
    "syscheck.sha256_after": ("file.hash.sha256", text),
    "syscheck.md5_after": ("file.hash.md5", text),
}
"""Names of `alerts.json`, flat."""
_CATEGORIES = (
    ("authentication_failed", "authentication", "failure"),
    ("authentication_failures", "authentication", "failure"),
    ("invalid_login", "authentication", "failure"),
    ("authentication_success", "authentication", "success"),
    ("syscheck", "file", ""),
    ("web", "web", ""),
)
"""Groups of rules that say what it is about, and how it ended."""
_MARK = re.compile(r'"rule" ?: ?\{')


def looks_like_wazuh(head: bytes) -> bool:
    """The first line is an alert: a rule with a level, an agent, a manager."""
    line = head.lstrip().partition(b"\n")[0].replace(b'": ', b'":')
    return line[:1] == b"{" and all(
        part in line for part in (b'"rule":{', b'"level":', b'"agent":{', b'"manager":{')
    )


@collector(WAZUH, looks_like=looks_like_wazuh, strength=74)
def wazuh(records: Iterable[Record]) -> Iterator[Event]:
    """Read alerts, one JSON object a line."""
    for record in records:
        around = Envelope(record.received, "", time_source="collector")
        try:
            yield _event(read_json(record.data), around, record, 0)
        except ValueError as error:
            yield Event.malformed(record, WAZUH, why=str(error))


def read_wazuh(around: Envelope, record: Record, number: int) -> Event | None:
    """Read an alert that came through syslog; None if the message is another one."""
    start = around.message.find("{")
    if not 0 <= start <= 64 or not _MARK.search(around.message):
        return None
    try:
        line = read_json(around.message[start:].encode("utf-8", "replace"))
        return _event(line, around, record, number)
    except ValueError:
        return None


def _event(line: dict[str, Any], around: Envelope, record: Record, number: int) -> Event:
    rule = line.get("rule")
    if not isinstance(rule, dict) or "level" not in rule:
        raise ValueError("no alert of Wazuh: it has no rule with a level")
    agent = line.get("agent")
    said = flat(line)
    said.pop("timestamp", None)
    fields, rest = sort_in(said, TABLE)
    own: dict[str, Any] = {
        "event.kind": "alert",
        "event.category": ["intrusion_detection"],
        "event.action": "wazuh_alert",
        "event.dataset": "wazuh.alerts",
        "rule.ruleset": "wazuh",
        **fields,
    }
    groups = own.get("tags", [])
    for group, category, outcome in _CATEGORIES:
        if group in groups:
            own["event.category"] = ["intrusion_detection", category]
            if outcome:
                own["event.outcome"] = outcome
            break
    if "threat.technique.id" in own:
        own["threat.framework"] = "attack-enterprise"
    if isinstance(agent, dict) and (ip := address(agent.get("ip"))):
        own["host.ip"] = [ip]
    if "message" not in own and "rule.name" in own:
        own["message"] = own["rule.name"]
    if rest:
        own["cw.vendor"] = rest
    time = moment(line.get("timestamp"))
    if time is not None:
        own["cw.time_source"] = "source"
    return Event(time or around.time, WAZUH, enveloped(around, own), record, number)
