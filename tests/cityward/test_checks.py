"""The contract tests that third parties call: they pass what is right and name what is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from cityward import Event, LogSource, Record, collector, decoder
from cityward.checks import (
    NOW,
    check_collector,
    check_decoder,
    check_detector,
    events_of,
    records,
)
from tests.collectors.test_hostile import SAMPLES

GATE = LogSource(category="fare", service="ticket_gate")
GOOD = b'{"gate": "N1", "result": "open", "ts": "2026-03-01T10:00:00+00:00"}'


def gate(change: Any = lambda event: [event], guard: bool = True) -> Any:
    """A small collector whose events are changed before they leave."""

    @collector(GATE)
    def ticket_gate(given: Iterable[Record]) -> Iterator[Event]:
        for record in given:
            try:
                line = json.loads(record.data)
                fields = {"host.name": str(line["gate"])[:100], "event.action": "opened"}
                json.dumps(fields, ensure_ascii=False).encode()
                time = datetime.fromisoformat(line["ts"])
                if time.tzinfo is None:
                    raise ValueError("no zone")
                event = Event(time, GATE, fields, record)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if not guard:
                    raise
                event = Event.malformed(record, GATE, why=repr(error))
            yield from change(event)

    return ticket_gate


def test_a_collector_that_keeps_its_promises_passes():
    check_collector(gate(), [GOOD])


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        pytest.param(gate(guard=False), "ticket_gate raises JSONDecodeError", id="raises"),
        pytest.param(gate(lambda event: []), "a record without an event", id="drops"),
        pytest.param(
            gate(lambda event: [event, event]), "numbers [0, 0] instead of 0, 1, 2", id="twice"
        ),
        pytest.param(
            gate(lambda event: [Event(event.time, GATE, {"gate": "N1"}, event.record)]),
            "gate is no field of the table",
            id="unknown field",
        ),
        pytest.param(
            gate(lambda event: [Event(event.time, GATE, {"source.ip": "N1"}, event.record)]),
            "source.ip holds 'N1', which is no address",
            id="no address",
        ),
        pytest.param(
            gate(lambda event: [Event(event.time.replace(tzinfo=None), GATE, {}, event.record)]),
            "has no zone",
            id="naive time",
        ),
        pytest.param(
            gate(lambda event: [Event.malformed(event.record, GATE, why="always")]),
            "cannot read its own sample",
            id="reads nothing",
        ),
        pytest.param(lambda given: iter(()), "not marked with @collector", id="not marked"),
    ],
)
def test_a_collector_that_breaks_a_promise_is_told_which(part, sentence):
    with pytest.raises(AssertionError) as said:
        check_collector(part, [GOOD])

    assert sentence in str(said.value)


def test_a_collector_that_reads_the_same_record_in_two_ways_is_told():
    calls = iter(range(10**9))

    def moody(event: Event) -> list[Event]:
        fields = {"event.sequence": next(calls)}
        return [Event(event.time, GATE, fields, event.record)]

    with pytest.raises(AssertionError, match="in two ways"):
        check_collector(gate(moody), [GOOD])


def test_a_test_of_the_first_bytes_must_recognise_the_samples():
    @collector(GATE, looks_like=lambda head: head.startswith(b"GATE"))
    def blind(given: Iterable[Record]) -> Iterator[Event]:
        yield from gate()(given)

    with pytest.raises(AssertionError, match="looks_like does not recognise its own samples"):
        check_collector(blind, [GOOD])


@pytest.mark.parametrize(
    "point",
    [pytest.param(one, id=one.name) for one in entry_points(group="cityward.collectors")],
)
def test_every_registered_collector_keeps_its_promises(point):
    part = point.load()
    if part.cityward_spec.framing == "packets":
        pytest.skip("captures are checked by their decoders")

    check_collector(part, SAMPLES[point.name], mutants_each=100)


# ---- Decoders

CONVERSATIONS: dict[str, list[tuple[bool, bytes]]] = {
    "modbus": [
        (True, bytes.fromhex("000100000006010300000002")),
        (False, bytes.fromhex("000100000007010304000a0014")),
        (True, bytes.fromhex("00020000000601060010002a")),
        (False, bytes.fromhex("00020000000601060010002a")),
    ],
    "iec104": [
        (True, bytes.fromhex("680407000000")),
        (False, bytes.fromhex("68040b000000")),
        (True, bytes.fromhex("680e0000000064010600010000000014")),
        (False, bytes.fromhex("680e0000020064010700010000000014")),
    ],
}
"""A reading and a writing of registers; STARTDT and a general interrogation."""


@pytest.mark.parametrize("name", sorted(CONVERSATIONS))
def test_our_first_decoders_keep_their_promises(name):
    (point,) = entry_points(group="cityward.decoders", name=name)

    check_decoder(point.load(), CONVERSATIONS[name])


@pytest.mark.parametrize(
    "point", [pytest.param(one, id=one.name) for one in entry_points(group="cityward.decoders")]
)
def test_every_registered_decoder_is_checked(point):
    tests = Path(__file__).parent.parent / "collectors"
    called = re.compile(rf"check_decoder\(\s*{point.attr}\b")

    asked = [path.name for path in tests.rglob("test_*.py") if called.search(path.read_text())]

    assert point.name in CONVERSATIONS or asked, f"no test calls check_decoder({point.attr}, …)"


class Length:
    """A message is a length and so many bytes."""

    def __init__(self, session: Any) -> None:
        self.session = session

    @staticmethod
    def recognises(head: bytes) -> bool:
        return bool(head) and head[0] < 10

    def feed(self, data: bytes, from_client: bool, time_s: float, frame: int) -> Any:
        at, found = 0, []
        while at < len(data) and at + 1 + data[at] <= len(data):
            found.append(self.message(data[at + 1 : at + 1 + data[at]]))
            at += 1 + data[at]
        return at, found

    def message(self, body: bytes) -> dict[str, Any]:
        return {**self.session.base, "event.action": "said", "event.code": body.hex()}

    def gap(self, from_client: bool) -> None: ...

    def end(self) -> list[dict[str, Any]]:
        return []


class Eager(Length):
    """Does not wait for the rest of a message."""

    def feed(self, data: bytes, from_client: bool, time_s: float, frame: int) -> Any:
        return len(data), [self.message(data)]


class Fragile(Length):
    """Breaks on a byte it has never seen."""

    def message(self, body: bytes) -> dict[str, Any]:
        return {**super().message(body), "event.action": {1: "one", 2: "two"}[body[0]]}


MARK = decoder("length", LogSource(category="ot_protocol", service="length"))
SAID = [(True, b"\x02\x01\x02"), (False, b"\x01\x02")]


def test_a_decoder_that_keeps_its_promises_passes():
    check_decoder(MARK(Length), SAID)


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (Eager, "Eager gives other messages when the bytes come one by one"),
        (Fragile, "Fragile raises"),
    ],
)
def test_a_decoder_that_breaks_a_promise_is_told_which(part, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_decoder(MARK(part), SAID)


# ---- Detectors


def _seen() -> list[Event]:
    """Six failed logins within a minute, and something of every other collector."""
    logins = [
        f"Mar  1 10:00:{second:02} gw sshd[7]: Failed password for root from 192.0.2.7 port 1 ssh2"
        for second in range(6)
    ]
    samples = {**SAMPLES, "sshd": [line.encode() for line in logins]}
    return [
        Event(event.time, event.logsource, {**event.fields, "event.dataset": point.name}, record)
        for point in entry_points(group="cityward.collectors")
        if point.name in samples
        for record in records(samples[point.name])
        for event in events_of(point.load(), [record])[0]
    ]


def _makers() -> Iterator[Any]:
    from detectors.anomaly.series import Series
    from detectors.anomaly.silence import Silence
    from detectors.anomaly.surprise import Surprise
    from detectors.sigma.engine import Engine
    from detectors.sigma.load import load_folder
    from siem.ruleset import RULES_FOLDER

    for part in (Series, Silence, Surprise):
        yield pytest.param(part, id=part.__name__)
    yield pytest.param(lambda: Engine(load_folder(RULES_FOLDER / "shared")), id="Engine")


@pytest.mark.parametrize("make", list(_makers()))
def test_every_detector_keeps_its_promises(make):
    check_detector(make, _seen())


class Counting:
    """Speaks at every third event."""

    name = "counting"

    def __init__(self) -> None:
        self.count = 0

    def detect(self, events: Any) -> Iterator[Any]:
        from cityward import Analytic, Finding

        for event in events:
            self.count += 1
            if self.count % 3 == 0:
                yield Finding(
                    analytic=Analytic("model.counting", "Counting", "model", "1"),
                    title=self.title(),
                    description=f"{self.count} events came.",
                    severity="low",
                    group=(),
                    first_seen=event.time,
                    last_seen=event.time,
                    events=(event,),
                )

    def title(self) -> str:
        return "Three more"

    def tick(self, now: datetime) -> Iterator[Any]:
        return iter(())

    def snapshot(self) -> bytes:
        return json.dumps({"counting": self.count}).encode()

    def restore(self, state: bytes) -> None:
        try:
            self.count = json.loads(state)["counting"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError("no snapshot") from error


class Mute(Counting):
    """Does not say what it means."""

    def title(self) -> str:
        return ""


class Forgetful(Counting):
    """Begins anew after a restart."""

    def restore(self, state: bytes) -> None:
        json.loads(state)["counting"]


class Growing(Counting):
    """Keeps everything it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def detect(self, events: Any) -> Iterator[Any]:
        self.seen += [event.fields["source.ip"] * 600 for event in events]
        yield from super().detect(events)

    def snapshot(self) -> bytes:
        return json.dumps({"counting": self.count, "seen": self.seen}).encode()


def _events(count: int) -> list[Event]:
    return [
        Event(
            NOW + timedelta(seconds=number),
            GATE,
            {"event.action": "opened", "source.ip": "192.0.2.1"},
            Record(b"", "src", number, datetime(2026, 3, 1, tzinfo=UTC)),
        )
        for number in range(count)
    ]


def test_a_detector_that_keeps_its_promises_passes():
    check_detector(Counting, _events(7))


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (Mute, "counting: a finding without title or sentence"),
        (Forgetful, "counting says something else after it was restored"),
        (Growing, "counting keeps .* bytes of 20,000 addresses"),
    ],
)
def test_a_detector_that_breaks_a_promise_is_told_which(part, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_detector(part, _events(7))
