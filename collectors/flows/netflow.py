"""NetFlow 5, NetFlow 9 and IPFIX: what routers and probes report, one event a flow.

Send: point the flow export of the router at the node (`reader = "udp"`, `listen = "0.0.0.0:2055"`,
`collector = "netflow"`). A file with the payload of datagrams is read, too.

Understood: flows with addresses, ports, bytes, packets, start and end, TCP flags, ICMP type, VLAN,
interfaces, both directions (RFC 5103, Cisco ASA), refused connections of firewalls, the stated
sampling, exporter options, templates of each exporter and domain, gaps in the sequence. Counts are
as reported: where `cw.vendor.sampling` is N, the traffic was about N times as much. Records that
come before their template wait for it.

Not understood: NetFlow 1, 7 and 8; a file with several messages of version 9; structured data
(RFC 6313); TCP, SCTP and DTLS transport; the meaning of enterprise elements, which stand under
`e<enterprise>.<element>` in `cw.vendor`.

References:
    RFC 3954 (NetFlow 9), RFC 7011 (IPFIX), RFC 5103 (both directions); Cisco, "NetFlow Export
    Datagram Format" (version 5).
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from datetime import datetime
from struct import Struct
from typing import Any, NamedTuple, TypeVar

from netflume import TemplateStore, parse_message, sampling_rate

from cityward import Event, LogSource, Record, collector
from collectors.flows.elements import ELEMENTS, FIELDS, FIREWALL, REASONS, SCOPES
from collectors.flows.ends import Fields, ends
from collectors.flows.sequence import Sequences
from collectors.packets.walk import ICMP, ICMP6, TCP
from collectors.values import LONG_MAX, address, moment, sort_in

FLOW = LogSource(category="flow", service="netflow")

EXPORTERS_MAX = 4_096
"""Streams (exporter, domain) and sampling rates that are remembered; who was silent for longest
goes. A sender's address is easily forged."""
TEMPLATES_MAX, ELEMENTS_MAX = 2_048, 65_536
"""Templates, and elements of all templates together, that are remembered."""
TEMPLATE_ELEMENTS_MAX = 512
WORK = 4
"""A template may have so many elements for each byte of its records: else one datagram of records
without bytes would take minutes."""
HELD_MAX_BYTES = 1 << 20
"""Records that wait for their template, of all exporters together."""
RECORDS_MAX = 4_096
"""Records of one datagram; a real one has less than a hundred."""
VENDOR_MAX, TEXT_MAX = 128, 1_024

# The functions of netflume have no types.
_parse: Any = parse_message
_stated_rate: Any = sampling_rate
_V5, _V9, _IPFIX = 5, 9, 10
_V5_HEAD, _V5_SIZE = 24, 48
_HEADS = {_V9: 20, _IPFIX: 16}
_WORDS = Struct("!HH")
_LONG = Struct("!I")
_IPFIX_HEAD = Struct("!HHIII")
_WRAP = 1 << 32
_VARIABLE = 0xFFFF
_NUMBER_BYTES = 8
_TIMES = (
    ("flow_start_ms", "flow_end_ms", 1e-3),
    ("flow_start_s", "flow_end_s", 1.0),
    ("flow_start_us", "flow_end_us", 1.0),
    ("flow_start_ns", "flow_end_ns", 1.0),
)
"""Absolute times; netflume gives those of micro- and nanoseconds in seconds."""
_TAKEN = frozenset(("src_addr", "dst_addr", "proto", "flow_end_reason", "icmp_type", "icmp_code"))
_LEFT = {"bytes": "out_octets", "packets": "out_packets"}
"""What left the exporter, where it does not say what came in."""
FLOW_FIELDS = {"event.category": ["network"], "event.dataset": "netflow.flow"}
STATE_FIELDS = {"event.kind": "state", "event.dataset": "netflow.exporter"}

T = TypeVar("T")
Told = tuple[datetime | None, Fields]
"""When it happened, if the exporter says so, and the fields of an event."""
Key = tuple[str, int, int]
"""Exporter, observation domain, template."""


class Templates(TemplateStore):
    """Netflume's store with our names, and with bounds on what a template may ask for."""

    def __init__(self, templates_max: int, elements_max: int) -> None:
        super().__init__(LONG_MAX, max_pending=1)  # type: ignore[no-untyped-call]
        self.templates_max, self.elements_max, self.elements = templates_max, elements_max, 0
        self.version = 0
        self.asked: list[bool] = []
        """For each data set of a datagram whether its template was known."""
        self.given: list[tuple[Key, bool, int]] = []
        """Templates of a datagram, whether they say anything new, and how many elements."""
        self.refused: list[str] = []

    def begin(self, version: int) -> None:
        """Start on a datagram."""
        self.version = version
        self.asked, self.given, self.refused = [], [], []

    def put(
        self, exporter: str, domain: int, tid: int, fields: list[Any], options: bool = False
    ) -> bool:
        """Remember a template; one that would cost too much is refused."""
        size = sum(1 if length == _VARIABLE else length for _, _, length in fields)
        if len(fields) > min(TEMPLATE_ELEMENTS_MAX, size * WORK):
            self.refused.append(f"template {tid} has {len(fields)} elements in {size} bytes")
            return False
        scopes = SCOPES if options and self.version == _V9 else {}
        named = [
            _number(scopes.get(name) or ELEMENTS.get(name) or (name, kind), length)
            for name, kind, length in fields
        ]
        key = (exporter, domain, tid)
        old = self.templates.get(key)
        self.elements += len(named) - (len(old[0]) if old else 0)
        is_new: bool = super().put(exporter, domain, tid, named, options)  # type: ignore[no-untyped-call]
        while self.elements > self.elements_max or len(self.templates) > self.templates_max:
            _, (gone, _) = self.templates.popitem(last=False)
            self.elements -= len(gone)
            self.evicted += 1
        self.given.append((key, is_new, len(named)))
        return is_new

    def get(self, exporter: str, domain: int, tid: int) -> tuple[Any, bool]:
        """The template of a data set; none for one that netflume cannot read as it stands."""
        found: tuple[Any, bool] = super().get(exporter, domain, tid)  # type: ignore[no-untyped-call]
        if self.version == _V9 and found[0] and any(one[2] == _VARIABLE for one in found[0]):
            found = (None, False)
        self.asked.append(found[0] is not None)
        return found


def _number(element: tuple[str, str], length: int) -> tuple[str, str, int]:
    """A number has eight bytes at most; what is longer is none, and is not called so."""
    name, kind = element
    if kind == "uint" and length > _NUMBER_BYTES:
        return f"{name}_raw", "hex", length
    return name, kind, length


class Held(NamedTuple):
    """A data set whose template has not come."""

    message: bytes
    """As a message of its own."""
    version: int


class Exports:
    """Everything that is remembered of exporters, and how their datagrams are read with it."""

    def __init__(
        self,
        templates_max: int = TEMPLATES_MAX,
        elements_max: int = ELEMENTS_MAX,
        held_max_bytes: int = HELD_MAX_BYTES,
    ) -> None:
        # What it would log, anyone who can reach the port could make it log; events say the same.
        logging.getLogger("netflume").setLevel(logging.CRITICAL)
        self.templates = Templates(templates_max, elements_max)
        self.sequences = Sequences(EXPORTERS_MAX)
        self._rates: OrderedDict[Key, int] = OrderedDict()
        self._boots: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._held: OrderedDict[Key, list[Held]] = OrderedDict()
        self._held_max_bytes, self._held_bytes, self._dropped = held_max_bytes, 0, 0

    def read(self, data: bytes, exporter: str) -> Iterator[Told]:
        """What the messages of a datagram, or of a file, say.

        Args:
            data: One or more whole messages.
            exporter: Who sent them.
        """
        for message in _messages(data):
            yield from self._message(message, exporter)

    def _message(self, data: bytes, exporter: str) -> Iterator[Told]:
        version = _WORDS.unpack_from(data)[0] if len(data) >= 4 else 0
        if version not in (_V5, *_HEADS):
            yield None, _unreadable(f"version {version} of NetFlow", exporter)
            return
        templates, stats = self.templates, Counter[str]()
        templates.begin(version)
        evicted = templates.evicted
        try:
            header, flows, options = self._parsed(data, exporter, stats)
        except Exception as error:  # whatever a library does with what strangers send
            yield None, _unreadable(f"version {version}: {error!r}", exporter)
            return
        if header is None:
            yield None, _unreadable(f"version {version}: {len(data)} bytes are no header", exporter)
            return
        about = _about(header, exporter)
        when = moment(header["unix_secs"])
        self._note(header, options)
        told = 0
        for one in (
            *self._lost(header, exporter, flows, options, about),
            *self._templates(about, evicted),
            *self._waiting(data, header, exporter, about),
            *self._records(header, data, flows, options, about),
            *self._freed(exporter, about),
        ):
            told += 1
            yield one[0] or when, one[1]
        why = ""
        if stats["truncated"]:
            why = f"version {version}: {len(data)} bytes are less than its header announces"
        elif not told and templates.asked:
            why = f"version {version}: no record fits its template"
        if why:
            yield when, {**_unreadable(why, exporter), **about}
        elif not told:
            said = {"event.action": "flows_none", "event.reason": "a message without records"}
            yield when, {**STATE_FIELDS, **said, **about}

    # ------------------------------------------------------------------------- records

    def _records(
        self,
        header: Fields,
        data: bytes,
        flows: list[Fields],
        options: list[Fields],
        about: Fields,
    ) -> Iterator[Told]:
        exporter, domain = header["exporter"], header["domain"]
        vendor = about["cw.vendor"]
        for record in flows[:RECORDS_MAX]:
            rate = self._rate((exporter, domain, _sampler(record)))
            said = {**vendor, "sampling": min(rate, LONG_MAX)} if rate > 1 else vendor
            yield flow_event(record, header, data, {**about, "cw.vendor": said})
        if header["version"] != _V5:
            for record in options[:RECORDS_MAX]:
                yield None, _option(record, about)
        more = max(0, len(flows) - RECORDS_MAX) + max(0, len(options) - RECORDS_MAX)
        if more:
            why = f"{more} records too many in one message"
            yield None, {**_unreadable(why, exporter), **about}

    def _parsed(
        self, data: bytes, exporter: str, stats: Counter[str]
    ) -> tuple[Fields | None, list[Fields], list[Fields]]:
        """Header, flows and options of a message."""
        header, flows, options = _parse(data, exporter, self.templates, stats)
        if header is not None and header["version"] == _V9 and not all(self.templates.asked):
            flows += self._variable(data, header)
        return header, flows, options

    def _variable(self, data: bytes, header: Fields) -> list[Fields]:
        """Records of H3C, who took lengths that vary from IPFIX into version 9; read as IPFIX."""
        flows: list[Fields] = []
        store, asked = self.templates, self.templates.asked
        exporter, domain = header["exporter"], header["domain"]
        for at, (number, part) in zip(range(len(asked)), _data_sets(data), strict=False):
            size = _HEADS[_IPFIX] + len(part)
            if asked[at] or (exporter, domain, number) not in store.templates or size > 0xFFFF:
                continue
            asked[at], store.version = True, _IPFIX
            message = _IPFIX_HEAD.pack(_IPFIX, size, 0, 0, domain) + part
            flows += _parse(message, exporter, store)[1]
        store.version = _V9
        return flows

    def _freed(self, exporter: str, about: Fields) -> Iterator[Told]:
        """Records that waited for a template that has come now."""
        for key, _, _ in list(self.templates.given):
            for held in self._held.pop(key, ()):
                self._held_bytes -= len(held.message)
                self.templates.begin(held.version)
                try:
                    header, flows, options = self._parsed(held.message, exporter, Counter())
                except Exception as error:
                    yield None, _unreadable(f"a set that waited: {error!r}", exporter)
                    continue
                if header is None or not (flows or options):
                    why = f"no record that waited fits template {key[2]}"
                    yield None, {**_unreadable(why, exporter), **about}
                    continue
                said = {**about, "cw.vendor": {**about["cw.vendor"], "waited": True}}
                when = moment(header["unix_secs"])
                self._note(header, options)
                for time, fields in self._records(header, held.message, flows, options, said):
                    yield time or when, fields

    def _waiting(self, data: bytes, header: Fields, exporter: str, about: Fields) -> Iterator[Told]:
        """Keep the sets whose template is not known, within bounds, and say so."""
        if all(self.templates.asked):
            return
        version, domain = header["version"], header["domain"]
        head = data[: _HEADS[version]]
        numbers: Counter[int] = Counter()
        for known, (number, part) in zip(self.templates.asked, _data_sets(data), strict=False):
            if known:
                continue
            numbers[number] += len(part) - 4
            if version == _IPFIX:
                head = head[:2] + (len(head) + len(part)).to_bytes(2, "big") + head[4:]
            key = (exporter, domain, number)
            self._held.setdefault(key, []).append(Held(head + part, version))
            self._held.move_to_end(key)
            self._held_bytes += len(head) + len(part)
        while self._held_bytes > self._held_max_bytes:
            _, oldest = self._held.popitem(last=False)
            self._held_bytes -= sum(len(one.message) for one in oldest)
            self._dropped += len(oldest)
        named = ", ".join(str(number) for number in sorted(numbers)[:20])
        vendor = {**about["cw.vendor"], "bytes": sum(numbers.values())}
        if self._dropped:
            vendor["sets_dropped"], self._dropped = self._dropped, 0
        said = {
            "event.action": "flows_waiting",
            "event.outcome": "unknown",
            "event.reason": f"the exporter has not described template {named} yet; "
            "its records are kept until it does",
            "cw.vendor": vendor,
        }
        yield None, {**STATE_FIELDS, **about, **said}

    # ------------------------------------------------------------------------- the exporter

    def _templates(self, about: Fields, evicted: int) -> Iterator[Told]:
        store = self.templates
        for why in store.refused[:8]:
            yield None, {**_unreadable(why, ""), **about}
        if not store.given:
            return
        numbers = ", ".join(str(key[2]) for key, _, _ in store.given[:32])
        vendor = {
            **about["cw.vendor"],
            "templates": numbers,
            "elements": sum(elements for _, _, elements in store.given),
            "new": sum(is_new for _, is_new, _ in store.given),
        }
        if store.evicted > evicted:
            vendor["evicted"] = store.evicted - evicted
        fields = {**STATE_FIELDS, **about, "event.action": "flow_templates", "cw.vendor": vendor}
        yield None, fields

    def _lost(
        self,
        header: Fields,
        exporter: str,
        flows: list[Fields],
        options: list[Fields],
        about: Fields,
    ) -> Iterator[Told]:
        """What the sequence number says has not arrived."""
        version, domain = header["version"], header["domain"]
        stream = (exporter, domain, version)
        if not all(self.templates.asked):
            # How many records an unknown set has is not known, so the count begins anew.
            self.sequences.forget(stream)
            return
        # Options are records of IPFIX, too; version 5 has them in its header.
        records = len(flows) + (len(options) if version == _IPFIX else 0)
        lost, in_messages = self.sequences.lost(stream, header["sequence"], records)
        if lost:
            unit = "export messages" if in_messages else "flow records"
            said = {
                "event.action": "flows_lost",
                "event.outcome": "failure",
                "event.reason": f"{lost} {unit} of this exporter did not arrive",
                "cw.vendor": {**about["cw.vendor"], "lost": lost, "lost_unit": unit},
            }
            yield None, {**STATE_FIELDS, **about, **said}

    def _note(self, header: Fields, options: list[Fields]) -> None:
        """Remember sampling rates, and when the exporter started; `boot_ms` of the header."""
        exporter, domain = header["exporter"], header["domain"]
        for option in options[:RECORDS_MAX]:
            if rate := _stated_rate(option):
                _remember(self._rates, (exporter, domain, _sampler(option)), rate)
            if boot_ms := option.get("system_init_time_ms"):
                _remember(self._boots, (exporter, domain), boot_ms)
        header["boot_ms"] = self._boots.get((exporter, domain))

    def _rate(self, key: Key) -> int:
        """1-in-N as its sampler said, or as the exporter said of all."""
        return self._rates.get(key) or self._rates.get((*key[:2], 0), 1)


def flow_event(record: Fields, header: Fields, data: bytes, about: Fields) -> Told:
    """One reported flow.

    Args:
        record: As netflume gives it.
        header: Of its message.
        data: The message; netflume leaves out the fraction of a second of version 5.
        about: What all events of the message share.
    """
    protocol = record.get("proto")
    kind, code = _icmp(record, protocol)
    rest = {name: value for name, value in record.items() if name not in _TAKEN}
    own, vendor = sort_in(rest, FIELDS)
    names = ends(
        record.get("src_addr"),
        record.get("dst_addr"),
        protocol,
        own.get("source.port") if kind is None else kind,
        own.get("destination.port") if kind is None else code,
    )
    if kind is not None:
        own.pop("source.port", None)
        own.pop("destination.port", None)
        vendor["icmp_type"], vendor["icmp_code"] = kind, code
    start, end = _times(record, header, data)
    fields: Fields = {
        **FLOW_FIELDS,
        **about,
        **own,
        **names,
        **_ending(record),
        "cw.vendor": {**about["cw.vendor"], **_bounded(vendor)},
    }
    for what in ("bytes", "packets"):
        if f"source.{what}" not in own and isinstance(left := record.get(_LEFT[what]), int):
            own[f"source.{what}"] = fields[f"source.{what}"] = min(LONG_MAX, left)
        parts = [
            own[f"{end}.{what}"] for end in ("source", "destination") if f"{end}.{what}" in own
        ]
        if parts and sum(parts) <= LONG_MAX:
            fields[f"network.{what}"] = sum(parts)
    if start is not None:
        fields["event.start"] = start
    if end is not None:
        fields["event.end"] = end
    if start is not None and end is not None:
        lasted_ns = round((end - start).total_seconds() * 1e6) * 1_000
        if 0 <= lasted_ns <= LONG_MAX:
            fields["event.duration"] = lasted_ns
    return end or start or _milli(record.get("observation_time_ms")), fields


SYN, ACK = 0x02, 0x10


def _ending(record: Fields) -> Fields:
    """Action, outcome and reason: how the flow ended, and what a firewall did with it."""
    reason = record.get("flow_end_reason")
    action = FIREWALL.get(record.get("firewall_event", 0))
    fields: Fields = {
        "event.action": action or ("flow_continues" if reason == 2 else "flow_ended"),
        "event.outcome": "unknown",
    }
    if reason in REASONS:
        fields["event.reason"] = REASONS[reason]
    if action == "flow_denied":
        fields["event.outcome"], fields["event.type"] = "failure", ["denied"]
    elif record.get("proto") == TCP and _flags(record) & (SYN | ACK) == SYN:
        # Who asks and never acknowledges an answer did not get through (RFC 9293, 3.5).
        fields["event.outcome"] = "failure"
    return fields


def _flags(record: Fields) -> int:
    flags = record.get("tcp_flags")
    return flags if isinstance(flags, int) else 0


def _icmp(record: Fields, protocol: Any) -> tuple[int | None, int]:
    """Type and code; the destination port holds both where no element does."""
    if protocol not in (ICMP, ICMP6):
        return None, 0
    if isinstance(kind := record.get("icmp_type"), int):
        code = record.get("icmp_code")
        return kind, code if isinstance(code, int) else 0
    both = record.get("icmp_type_code") or record.get("icmp_type_code_v6") or record.get("dst_port")
    return divmod(both & 0xFFFF, 256) if isinstance(both, int) else (None, 0)


def _times(record: Fields, header: Fields, data: bytes) -> tuple[datetime | None, datetime | None]:
    """Start and end, from absolute times or from the uptime of the exporter."""
    start: datetime | None = None
    end: datetime | None = None
    for first, last, unit in _TIMES:
        if record.get(first) or record.get(last):
            start, end = _scaled(record.get(first), unit), _scaled(record.get(last), unit)
            break
    else:
        start, end = (
            _since_boot(record.get(name), record, header, data)
            for name in ("first_switched", "last_switched")
        )
        if "flow_start_delta_us" in record:
            start, end = (
                _scaled(header["unix_secs"] * 1_000_000 - record.get(name, 0), 1e-6)
                for name in ("flow_start_delta_us", "flow_end_delta_us")
            )
    lasted = record.get("flow_duration_ms")
    if isinstance(lasted, int) and lasted < _WRAP:
        if start is not None and end is None:
            end = _scaled(start.timestamp() + lasted / 1e3, 1.0)
        elif end is not None and start is None:
            start = _scaled(end.timestamp() - lasted / 1e3, 1.0)
    return start, end


def _since_boot(value: Any, record: Fields, header: Fields, data: bytes) -> datetime | None:
    """A time in milliseconds since the exporter started; the counter wraps after 49 days."""
    if not isinstance(value, int):
        return None
    uptime = header["sys_uptime"]
    if uptime is None:
        boot = record.get("system_init_time_ms", header["boot_ms"])
        return _milli(boot + value) if isinstance(boot, int) and boot else None
    export_us = header["unix_secs"] * 1_000_000
    if header["version"] == _V5:
        export_us += _LONG.unpack_from(data, 12)[0] // 1_000
    ago_ms = (uptime - value + _WRAP // 2) % _WRAP - _WRAP // 2
    return _scaled(export_us - ago_ms * 1_000, 1e-6)


def _scaled(value: Any, unit: float) -> datetime | None:
    return moment(value * unit) if isinstance(value, int | float) and value else None


def _milli(value: Any) -> datetime | None:
    return _scaled(value, 1e-3)


def _option(record: Fields, about: Fields) -> Fields:
    """What the exporter says of itself: sampling, names, counters."""
    own, vendor = sort_in(record, {"if_name": FIELDS["if_name"]})
    vendor = {**about["cw.vendor"], **_bounded(vendor)}
    return {**STATE_FIELDS, **about, **own, "event.action": "flow_options", "cw.vendor": vendor}


def _remember(table: OrderedDict[T, int], key: T, value: Any) -> None:
    if isinstance(value, int):
        table[key] = value
        table.move_to_end(key)
        if len(table) > EXPORTERS_MAX:
            table.popitem(last=False)


def _bounded(vendor: Fields) -> Fields:
    """Not more than a person would look at."""
    found = {
        name: _shown(name, value) if isinstance(value, str) else value
        for name, value in list(vendor.items())[:VENDOR_MAX]
    }
    if len(vendor) > VENDOR_MAX:
        found["cut"] = len(vendor) - VENDOR_MAX
    return found


def _shown(name: str, value: str) -> str:
    """Text of an element nobody named, which netflume gives in hexadecimal."""
    if name[-1].isdigit() and name[0] in "ei" and len(value) % 2 == 0:
        try:
            found = bytes.fromhex(value[: 2 * TEXT_MAX]).rstrip(b"\0").decode()
        except ValueError:
            return value[:TEXT_MAX]
        if found.isprintable():
            return found
    return value[:TEXT_MAX]


def _sampler(record: Fields) -> int:
    value = record.get("sampler_id") or record.get("selector_id")
    return value if isinstance(value, int) else 0


def _about(header: Fields, exporter: str) -> Fields:
    fields: Fields = {"cw.vendor": {"version": header["version"], "domain": header["domain"]}}
    if known := address(exporter):
        fields["observer.ip"] = [known]
    return fields


def _unreadable(why: str, exporter: str) -> Fields:
    fields: Fields = {
        "event.kind": "pipeline_error",
        "event.action": "unreadable",
        "event.outcome": "failure",
        "event.reason": why[:1_000],
        "event.dataset": "netflow.exporter",
    }
    if known := address(exporter):
        fields["observer.ip"] = [known]
    return fields


# ---- The messages of a datagram


def _messages(data: bytes) -> Iterator[bytes]:
    """A file may hold one message after the other; those of version 9 do not say their length."""
    at = 0
    while True:
        size = _size(data, at)
        if not 0 < size < len(data) - at:
            yield data[at:] if at else data
            return
        yield data[at : at + size]
        at += size


def _size(data: bytes, at: int) -> int:
    """How long the message says it is; 0 if it does not."""
    if len(data) - at < 4:
        return 0
    version, number = _words(data, at)
    if version == _V5:
        return _V5_HEAD + number * _V5_SIZE
    return number if version == _IPFIX and number >= _HEADS[_IPFIX] else 0


def _data_sets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each data set, in the order in which their templates are asked for."""
    version = _WORDS.unpack_from(data)[0]
    at, end = _HEADS[version], len(data)
    if version == _IPFIX:
        end = min(end, _size(data, 0) or end)
    while at + 4 <= end:
        number, size = _WORDS.unpack_from(data, at)
        if size < 4:
            return
        if number >= 256:
            yield number, data[at : min(at + size, end)]
        at += size


def _words(data: bytes, at: int = 0) -> tuple[int, int]:
    one, two = _WORDS.unpack_from(data, at)
    return one, two


def is_export(head: bytes) -> bool:
    """Whether a datagram is one message: version, counts and lengths agree with one another."""
    if len(head) < _HEADS[_IPFIX]:
        return False
    version, number = _words(head)
    if version == _V5:
        return 1 <= number <= 30 and len(head) == _V5_HEAD + number * _V5_SIZE
    if version not in _HEADS or not number:
        return False
    at = _HEADS[version]
    if version == _IPFIX and number != len(head):
        return False
    sets = 0
    while at + 4 <= len(head):
        which, size = _WORDS.unpack_from(head, at)
        if size == 0 and sets and not any(head[at:]):
            return True
        if size < 4 or not _is_set(version, which) or at + size > len(head):
            return False
        at += size
        sets += 1
    return sets > 0 and at == len(head)


def _is_set(version: int, number: int) -> bool:
    return number >= 256 or number in ((0, 1) if version == _V9 else (2, 3))


def looks_like_netflow(head: bytes) -> bool:
    """The first message is whole."""
    size = _size(head, 0)
    return is_export(head[:size] if size else head)


@collector(FLOW, framing="document", looks_like=looks_like_netflow, strength=60)
class Netflow:
    """Reads export datagrams; remembers what each exporter said of its records."""

    def __init__(self) -> None:
        self._exports = Exports()

    def __call__(self, records: Iterable[Record]) -> Iterator[Event]:
        """Events of each datagram."""
        for record in records:
            exporter = str(record.place).partition("|")[0]
            if address(exporter) is None:
                exporter = record.source
            number = -1
            for number, (when, fields) in enumerate(self._exports.read(record.data, exporter)):
                yield Event(when or record.received, FLOW, fields, record, number)
            if number < 0:
                yield Event.malformed(record, FLOW, why="an empty datagram")
