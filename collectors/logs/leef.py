"""Log Event Extended Format (LEEF) of IBM QRadar, versions 1.0 and 2.0.

Send: Choose "LEEF" or "QRadar" as syslog format in the product and name the node's syslog port. A
syslog reader (`reader = "syslog_udp"`) knows such lines by itself; for a file write
`collector = "leef"`.

Understood: The header, the delimiter that version 2.0 names (a sign or hexadecimal), predefined
attributes (addresses, ports, users, bytes, times, severity); actions and names as in CEF.

Not understood: `devTimeFormat` other than ISO 8601, milliseconds and `MMM dd yyyy HH:mm:ss`;
attributes of a product are kept under `cw.vendor`.

References:
    IBM, "QRadar Log Event Extended Format (LEEF)", versions 1.0 and 2.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from cityward import Event, LogSource, Record, collector
from collectors.logs.cef import event_time, meaning
from collectors.logs.envelope import enveloped
from collectors.logs.marked import around_mark, most_lines, read_marked, slug
from collectors.values import (
    Table,
    address,
    clean,
    count,
    lower,
    mac,
    port,
    sort_in,
    text,
    whole,
    word,
)

LEEF = LogSource(service="leef")

_MARK = re.compile(rb"LEEF: ?[12](?:\.\d)?\|")
_HEADER = re.compile(
    r"LEEF: ?([12])(?:\.\d)?\|([^|]*+)\|([^|]*+)\|([^|]*+)\|([^|\t]*+)(?:\||(?=\t))"
)
_DELIMITER = re.compile(r"(?:0?x([0-9A-Fa-f]{1,4})|([^|]?))\|")
ATTRIBUTES_MAX = 16_384
PAIRS_MAX = 512

TABLE: Table = {
    "src": ("source.ip", address),
    "dst": ("destination.ip", address),
    "srcPort": ("source.port", port),
    "dstPort": ("destination.port", port),
    "srcMAC": ("source.mac", mac),
    "dstMAC": ("destination.mac", mac),
    "srcBytes": ("source.bytes", count),
    "dstBytes": ("destination.bytes", count),
    "srcPackets": ("source.packets", count),
    "dstPackets": ("destination.packets", count),
    "usrName": ("user.name", text),
    "accountName": ("user.name", text),
    "domain": ("user.domain", text),
    "proto": ("network.transport", lower),
    "url": ("url.original", text),
    "cat": ("rule.category", text),
    "policy": ("rule.name", text),
    "identHostName": ("host.name", text),
    "sev": ("event.severity", whole),
    "msg": ("message", text),
    "reason": ("event.reason", text),
    "resource": ("file.path", text),
    "fileName": ("file.name", text),
    "serial_number": ("observer.serial_number", word),
}
"""Predefined attributes, and some that many products share."""


def looks_like_leef(head: bytes) -> bool:
    """Most of the first lines have the header of LEEF."""
    return most_lines(head, _MARK)


@collector(LEEF, looks_like=looks_like_leef, strength=75)
def leef(records: Iterable[Record]) -> Iterator[Event]:
    """Read LEEF, bare or behind an envelope of syslog."""
    yield from read_marked(records, LEEF, read_leef, "LEEF")


def read_leef(record: Record) -> Event | None:
    """Read one line; None if it has no header of LEEF."""
    found = _MARK.search(record.data)
    if found is None:
        return None
    line = record.data[found.start() :].decode("utf-8", "backslashreplace")
    header = _HEADER.match(line)
    if header is None:
        raise ValueError("a header of LEEF has five fields")
    version, vendor, product, release, code = header.groups()
    end, delimiter = header.end(), "\t"
    if version == "2" and (named := _DELIMITER.match(line, end)):
        end = named.end()
        delimiter = chr(int(named[1], 16)) if named[1] else named[2] or "\t"
    said = _attributes(line[end : end + ATTRIBUTES_MAX], delimiter)
    fields, rest = sort_in(said, TABLE)
    around = around_mark(record, found.start())
    own = {
        "observer.vendor": clean(vendor),
        "observer.product": clean(product),
        "observer.version": clean(release),
        "event.code": clean(code),
        "event.dataset": f"leef.{slug(vendor) or 'log'}",
        "message": clean(code),
        **fields,
    }
    meaning(own, rest, f"{code} {said.get('cat', '')}", said)
    own["cw.vendor"] = {**rest, "version": version}
    own = {key: value for key, value in own.items() if value != ""}
    time = event_time(said.get("devTime"))
    if time is not None:
        own["cw.time_source"] = "source"
    category = "firewall" if own["event.action"].startswith("packet_") else ""
    return Event(
        time or around.time,
        LogSource(category=category, product=slug(vendor), service="leef"),
        enveloped(around, own),
        record,
    )


def _attributes(part: str, delimiter: str) -> dict[str, str]:
    """`key=value` pairs between delimiters, the first of a key counts."""
    found: dict[str, str] = {}
    for pair in part.split(delimiter, PAIRS_MAX)[:PAIRS_MAX]:
        key, equals, value = pair.partition("=")
        if equals and (key := key.strip()) and value:
            found.setdefault(clean(key)[:128], clean(value.strip()))
    return found
