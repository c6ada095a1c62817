"""Common Event Format (CEF): one header of seven fields, then `key=value`, from many products.

Send: Choose "CEF" or "ArcSight" as syslog format in the product (UniFi: Settings, Control Plane,
Integrations, SIEM server) and name the node's syslog port. A syslog reader
(`reader = "syslog_udp"`) knows such lines by itself; for a file write `collector = "cef"`.

Understood: Header with escapes; extension with blanks and escapes in values; custom labels
(`cs1Label`, `cn1Label` …); addresses, ports, users, files, requests, bytes, times, outcome. An
action that blocks or allows a connection becomes an event of a firewall; names that speak of a
threat become alerts; of a login, an authentication.

Not understood: What a product means by keys of its own; they are kept under `cw.vendor`.

References:
    Micro Focus ArcSight, "Common Event Format", version 26; CEF key names, producer and consumer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.logs.envelope import MONTHS, enveloped
from collectors.logs.marked import around_mark, most_lines, read_marked, slug
from collectors.values import (
    Table,
    address,
    clean,
    count,
    lower,
    mac,
    moment,
    port,
    sort_in,
    text,
    whole,
    word,
)

CEF = LogSource(service="cef")

_PART = r"((?:[^|\\]|\\.)*+)\|"
_HEADER = re.compile(r"(?:CEF: ?)?(\d{1,2}(?:\.\d)?)\|" + _PART * 6, re.DOTALL)
_MARK = re.compile(rb"CEF: ?\d{1,2}(?:\.\d)?\||^\d\|(?:[^|\\]|\\.){1,63}\|(?:[^|\\]|\\.){1,63}\|")
_KEY = re.compile(r"(?:^|(?<=\s))([A-Za-z0-9_][\w.\-\[\]]{0,63})=")
_ESCAPED = re.compile(r"\\([\\=|nr])")
_SIGNS = {"n": "\n", "r": "\r"}
_CUSTOM = re.compile(r"(?:c(?:s|n|fp|6a)\d|deviceCustomDate\d|flex(?:String|Date|Number)\d)Label\Z")
EXTENSION_MAX = 16_384
"""Characters of an extension that are read; collectors of other makers take as many."""

TABLE: Table = {
    "src": ("source.ip", address),
    "dst": ("destination.ip", address),
    "spt": ("source.port", port),
    "dpt": ("destination.port", port),
    "smac": ("source.mac", mac),
    "dmac": ("destination.mac", mac),
    "shost": ("source.domain", text),
    "dhost": ("destination.domain", text),
    "suser": ("user.name", text),
    "duser": ("user.name", text),
    "suid": ("user.id", word),
    "duid": ("user.id", word),
    "sntdom": ("user.domain", text),
    "dntdom": ("user.domain", text),
    "proto": ("network.transport", lower),
    "app": ("network.protocol", lower),
    "in": ("source.bytes", count),
    "out": ("destination.bytes", count),
    "msg": ("message", text),
    "reason": ("event.reason", text),
    "request": ("url.original", text),
    "requestMethod": ("http.request.method", text),
    "requestClientApplication": ("user_agent.original", text),
    "requestContext": ("http.request.referrer", text),
    "fname": ("file.name", text),
    "filePath": ("file.path", text),
    "fsize": ("file.size", count),
    "cat": ("rule.category", text),
    "dvchost": ("observer.hostname", text),
    "deviceExternalId": ("observer.serial_number", text),
    "deviceInboundInterface": ("observer.ingress.interface.name", text),
    "deviceOutboundInterface": ("observer.egress.interface.name", text),
    "dproc": ("process.name", text),
    "sproc": ("process.name", text),
    "deviceProcessName": ("process.name", text),
    "UNIFIadmin": ("user.name", text),
    "UNIFIhost": ("host.name", text),
    "UNIFIipsSignature": ("rule.name", text),
    "UNIFIipsSignatureId": ("rule.id", word),
    "UNIFIdeviceName": ("observer.name", text),
    "UNIFIclientMac": ("source.mac", mac),
}
"""Keys of the extension; those of UniFi are its own."""

TIMES = ("rt", "UNIFIutcTime", "end", "start")
"""When it happened, the best first."""
SEVERITIES = {"unknown": 0, "low": 3, "medium": 6, "high": 8, "very-high": 10}
"""Words of the specification as its numbers, the highest of each range."""

_DENIED = re.compile(r"\b(?:den(?:y|ied)|block(?:ed)?|drop(?:ped)?|reject(?:ed)?|prevent(?:ed)?)\b")
_ALLOWED = re.compile(r"\b(?:allow(?:ed)?|accept(?:ed)?|permit(?:ted)?|pass(?:ed)?)\b")
_THREAT = re.compile(r"threat|intrusion|malware|virus|attack|exploit|botnet|\bids\b|\bips\b")
_LOGIN = re.compile(r"log(?:ged)?[ -]?(?:in|on)\b|sign[ -]?in\b|authenticat|accessed")
_FAILED = re.compile(r"fail|den(?:y|ied)|invalid|reject|unauthori[sz]ed|bad|incorrect|lock")
_SUCCEEDED = re.compile(r"success|accept|allow|permit|grant|accessed|logged|ok\b")


def looks_like_cef(head: bytes) -> bool:
    """Most of the first lines have the header of CEF."""
    return most_lines(head, _MARK)


@collector(CEF, looks_like=looks_like_cef, strength=75)
def cef(records: Iterable[Record]) -> Iterator[Event]:
    """Read CEF, bare or behind an envelope of syslog."""
    yield from read_marked(records, CEF, read_cef, "CEF")


def read_cef(record: Record) -> Event | None:
    """Read one line; None if it has no header of CEF."""
    found = _MARK.search(record.data)
    if found is None:
        return None
    line = record.data[found.start() :].decode("utf-8", "backslashreplace")
    header = _HEADER.match(line)
    if header is None:
        raise ValueError("a header of CEF has seven fields")
    version, vendor, product, release, code, name, severity = header.groups()
    said = _extension(line[header.end() : header.end() + EXTENSION_MAX])
    fields, rest = sort_in(_labelled(said), TABLE)
    around = around_mark(record, found.start())
    own = {
        "observer.vendor": _plain(vendor),
        "observer.product": _plain(product),
        "event.code": _plain(code),
        "event.dataset": f"cef.{slug(vendor) or 'log'}",
        "message": _plain(name),
        "rule.name": _plain(name),
        **fields,
    }
    if (number := whole(severity) or SEVERITIES.get(severity.lower())) is not None:
        own["event.severity"] = number
    if device := address(said.get("dvc")):
        own["observer.ip"] = [device]
    meaning(own, rest, f"{name} {said.get('cat', '')}", said)
    own["observer.version"] = _plain(release)
    rest.update({"version": version, "name": _plain(name)})
    own["cw.vendor"] = rest
    own = {key: value for key, value in own.items() if value != ""}
    time = next((t for key in TIMES if (t := event_time(said.get(key)))), None)
    if time is not None:
        own["cw.time_source"] = "source"
    category = "firewall" if own["event.action"].startswith("packet_") else ""
    return Event(
        time or around.time,
        LogSource(category=category, product=slug(vendor), service="cef"),
        enveloped(around, own),
        record,
    )


def _extension(part: str) -> dict[str, str]:
    """`key=value` pairs; a value goes on until the next key, the first of a key counts."""
    pieces = _KEY.split(part)
    found: dict[str, str] = {}
    for number in range(1, len(pieces) - 1, 2):
        value = pieces[number + 1].strip()
        if value:
            found.setdefault(pieces[number], _unescaped(value) if "\\" in value else value)
    return found


def _unescaped(value: str) -> str:
    return _ESCAPED.sub(lambda found: _SIGNS.get(found[1], found[1]), value)


def _plain(value: str) -> str:
    return clean(_unescaped(value) if "\\" in value else value)


def _labelled(said: dict[str, str]) -> dict[str, str]:
    """Custom values under the name that their label gives them."""
    labels = [key for key in said if key.endswith("Label") and _CUSTOM.match(key)]
    if not labels:
        return said
    found = dict(said)
    for key in labels:
        name, label = key.removesuffix("Label"), clean(said[key])[:256]
        if name in found and label not in found:
            del found[key]
            if label in ("Source IPv6 Address", "Destination IPv6 Address"):
                label = "src" if label[0] == "S" else "dst"
            found[label] = found.pop(name)
    return found


def meaning(own: dict[str, Any], rest: dict[str, Any], name: str, said: dict[str, str]) -> None:
    """Action, category and outcome, from the words that the product chose."""
    act, result = said.get("act") or said.get("action", ""), said.get("outcome", "")
    ends = "source.ip" in own and "destination.port" in own
    own.update(_meant(name[:256], act[:256], result[:64], ends))
    rest.pop("outcome", None)


@lru_cache(maxsize=4_096)
def _meant(name: str, act: str, result: str, ends: bool) -> dict[str, Any]:
    """The fields that words mean; a product has few of them, so they are judged once."""
    words, act = name.lower(), act.lower()
    own: dict[str, Any] = {"event.action": slug(name.strip()) or "log"}
    if _THREAT.search(words):
        own["event.kind"] = "alert"
        own["event.category"] = ["intrusion_detection"]
    elif _LOGIN.search(words):
        own["event.action"], own["event.category"] = "login", ["authentication"]
        act = f"{act} {words}"
    elif ends:
        own["event.category"] = ["network"]
        if _DENIED.search(act):
            own["event.action"] = "packet_denied"
        elif _ALLOWED.search(act):
            own["event.action"] = "packet_allowed"
    if _DENIED.search(act):
        own["event.type"] = ["denied"]
    elif _ALLOWED.search(act):
        own["event.type"] = ["allowed"]
    judged = result.lower() or (act if own["event.action"] == "login" else "")
    if _FAILED.search(judged):
        own["event.outcome"] = "failure"
    elif _SUCCEEDED.search(judged):
        own["event.outcome"] = "success"
    return own


@lru_cache(maxsize=16_384)
def event_time(value: str | None) -> datetime | None:
    """Milliseconds since 1970, ISO 8601, or `MMM dd yyyy HH:mm:ss.SSS zzz` of the specification."""
    if not value:
        return None
    if value.isdigit() and len(value) <= 16:
        return moment(int(value) / 1_000)
    if value[4:5] == "-":
        return moment(value)
    parts = value.replace(",", "").split()
    try:
        month, day, year, clock = MONTHS[parts[0]], int(parts[1]), int(parts[2]), parts[3]
        hour, minute, rest = clock.split(":")
        second, _, part = rest.partition(".")
        micro = int((part + "000000")[:6])
        return datetime(year, month, day, int(hour), int(minute), int(second), micro, tzinfo=UTC)
    except (KeyError, IndexError, ValueError, OverflowError):
        return None
