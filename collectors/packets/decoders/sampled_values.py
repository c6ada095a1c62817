"""IEC 61850-9-2 sampled values: what merging units measure, thousands of times a second.

One event a second for each stream (svID) says how many frames and samples came and how many did
not; the frames of all events are the frames that were seen.

Understood: the header (APPID, simulation), all fields of a message but the samples. Events of their
own are: a stream seen for the first time (`sv_first_seen`), simulation switched on or off
(`sv_simulation_changed`), another source of time (`sv_synchronisation_changed`), another
configuration revision, data set or APPID (`sv_configuration_changed`). A second in which samples
are missing by their counter is `sv_samples_lost`, any other `sv_samples`.

Not understood: the samples themselves, whose meaning only the substation's SCL file knows; the
signatures of IEC 62351-6; routable sampled values over UDP (IEC 61850-90-5); two senders of one
stream, since a conversation is what one sender says: rules compare senders.

References:
    IEC 61850-9-2:2011, 8.5 (savPdu) and annex A (header); IEC 61869-9:2016, 6.903 (rates).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.ber import BerError, Element, elements
from collectors.packets.decoders.iec61850 import REPORT, frame_of, is_frame
from collectors.packets.decoders.pairs import printable, unreadable

SAMPLED_VALUES = LogSource(category="ot_protocol", service="sampled_values")

ETHERTYPE = 0x88BA
STREAMS_MAX = 64
"""Streams of one sender that are followed; the one that was silent longest gives way."""
SHAPES_MAX = 8
EVERY_S = 1.0
TEXT_MAX = 256
RATES = (4_000, 4_800, 5_760, 12_800, 14_400, 15_360)
"""Usual samples a second, at which the counter begins again."""
NEAR = 100
"""As many samples before a usual rate the counter may begin again because they were lost."""
SYNCHRONISATIONS = ("none", "local", "global")

_PDU, _SEQUENCE, _ASDU = 0x60, 0xA2, 0x30
_ID, _DATA_SET, _COUNT, _REVISION, _SYNCHRONISATION, _SAMPLE = 0x80, 0x81, 0x82, 0x83, 0x85, 0x87
_LEAST = 1_000

Fields = dict[str, Any]
Constants = dict[str, Any]
"""What a stream says of itself with each sample and seldom changes."""


class Sample(NamedTuple):
    """One ASDU without its samples."""

    stream: str
    number: int
    constants: Constants
    number_at: int
    sample_at: int
    """Where its samples begin; 0 if it has none."""


class Shape(NamedTuple):
    """How the last frame of a stream looked apart from counter and samples; most are the same."""

    head: bytes
    tail: bytes
    length: int
    stream: Stream


class Stream:
    """What is known of one svID, and counted since its last event."""

    __slots__ = (
        "constants",
        "first",
        "frames",
        "last",
        "lost",
        "most",
        "name",
        "period",
        "repeated",
        "samples",
        "since_s",
        "time_s",
    )

    def __init__(self, sample: Sample, time_s: float) -> None:
        self.name, self.constants = sample.stream, sample.constants
        self.last = self.most = sample.number
        self.period = 0
        """Count at which it begins again, once that was seen."""
        self.begin(time_s)

    def begin(self, time_s: float) -> None:
        """Count anew."""
        self.frames = self.samples = self.lost = self.repeated = 0
        self.first = -1
        self.since_s = self.time_s = time_s

    def add(self, count: int, time_s: float) -> None:
        """One more sample."""
        if self.samples == 0:
            self.first = count
        self.samples += 1
        self.time_s = time_s
        last, self.last = self.last, count
        if count == last + 1:
            self.most = max(self.most, count)
        else:
            self._leap(last, count)

    def _leap(self, last: int, count: int) -> None:
        """The counter did not go on by one: it began again, samples are missing or came twice."""
        if count > last:
            self.lost += count - last - 1
            self.most = max(self.most, count)
        elif last - count > max(self.period, self.most, _LEAST) // 2:
            self.period = self.period if self.period > last else _period(last)
            self.lost += self.period - 1 - last + count
        else:
            self.repeated += 1


@decoder("sampled_values", SAMPLED_VALUES, transport="link", ethertypes=(ETHERTYPE,))
class SampledValues:
    """All streams of one sender."""

    def __init__(self, session: Session) -> None:
        self._base: Fields = {**session.base, **REPORT}
        self._streams: dict[str, Stream] = {}
        self._shapes: list[Shape] = []
        """Of at most `SHAPES_MAX` streams, the last one read at the end."""

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a header whose length fits and a savPdu behind it."""
        return is_frame(head, _PDU)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        size = len(data)
        for start, tail, length, stream in self._shapes:
            at = len(start)
            if size == length and data.startswith(start) and data.startswith(tail, at + 2):
                stream.frames += 1
                stream.add(data[at] << 8 | data[at + 1], time_s)
                if abs(time_s - stream.since_s) < EVERY_S:
                    return size, ()
                return size, self._summary(stream)
        try:
            return size, self._read(data, time_s)
        except BerError as error:
            return size, [self._unreadable(str(error))]

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; every frame is whole by itself."""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; what was counted since the last second of each stream."""
        streams = list(self._streams.values())
        self._streams.clear()
        self._shapes.clear()
        return [fields for stream in streams for fields in self._summary(stream)]

    def _read(self, data: bytes, time_s: float) -> list[Fields]:
        found: list[Fields] = []
        samples = _samples(data)
        for place, sample in enumerate(samples):
            stream = self._streams.pop(sample.stream, None)
            is_new = stream is None
            if stream is None:
                if len(self._streams) >= STREAMS_MAX:
                    found += self._summary(self._streams.pop(next(iter(self._streams))))
                stream = Stream(sample, time_s)
                stream.last = sample.number - 1
            self._streams[sample.stream] = stream
            stream.frames += place == 0
            stream.add(sample.number, time_s)
            before, stream.constants = stream.constants, sample.constants
            said = [("sv_first_seen", "")] if is_new else _news(before, sample.constants)
            if said:
                found += [self._fields(stream, action, why) for action, why in said]
                stream.begin(time_s)
            elif abs(time_s - stream.since_s) >= EVERY_S:
                found += self._summary(stream)
        self._learn(data, samples)
        return found

    def _learn(self, data: bytes, samples: list[Sample]) -> None:
        names = {sample.stream for sample in samples}
        known = self._streams.get
        self._shapes = [
            shape
            for shape in self._shapes
            if shape.stream.name not in names and known(shape.stream.name) is shape.stream
        ][1 - SHAPES_MAX :]
        sample = samples[0]
        if len(samples) == 1 and sample.sample_at > sample.number_at:
            tail = data[sample.number_at + 2 : sample.sample_at]
            stream = self._streams[sample.stream]
            self._shapes.append(Shape(data[: sample.number_at], tail, len(data), stream))

    def _summary(self, stream: Stream) -> list[Fields]:
        found = []
        if stream.frames or stream.samples:
            action = "sv_samples_lost" if stream.lost else "sv_samples"
            why = f"{stream.lost} samples are missing" if stream.lost else ""
            found.append(self._fields(stream, action, why) | {"event.kind": "metric"})
        stream.begin(stream.time_s)
        return found

    def _fields(self, stream: Stream, action: str, why: str) -> Fields:
        """An event; the first one of several has what was counted."""
        vendor = {
            **stream.constants,
            "frames": stream.frames,
            "samples": stream.samples,
            "lost": stream.lost,
            "repeated": stream.repeated,
            "first": stream.first,
            "last": stream.last,
        }
        fields = {
            **self._base,
            "event.action": action,
            "event.sequence": stream.last,
            "event.duration": int(abs(stream.time_s - stream.since_s) * 1e9),
            "ot.unit": stream.name,
            "ot.point.count": stream.samples,
            "cw.vendor": vendor,
        }
        if why:
            fields["event.reason"] = why
        stream.frames = stream.samples = stream.lost = stream.repeated = 0
        return fields

    def _unreadable(self, why: str) -> Fields:
        return unreadable(self._base, why) | {"cw.vendor": {"frames": 1}}


def _period(last: int) -> int:
    """Samples a second of a counter that began again behind this number."""
    for rate in RATES:
        if last < rate <= last + NEAR:
            return rate
    return last + 1


def _news(was: Constants, now: Constants) -> list[tuple[str, str]]:
    """What a stream says of itself that it did not say before: action and reason."""
    found = []
    for name, before in was.items():
        if now[name] == before:
            continue
        action = _CHANGES.get(name, "sv_configuration_changed")
        found.append((action, f"{name} was {before}, it is {now[name]}"))
    return found


_CHANGES = {"simulation": "sv_simulation_changed", "synchronisation": "sv_synchronisation_changed"}


# ------------------------------------------------------------------------- reading


def _samples(data: bytes) -> list[Sample]:
    """Read one frame.

    Raises:
        BerError: it is none; the text says why.
    """
    frame = frame_of(data, _PDU, "savPdu", "header of sampled values")
    constants = {"app_id": frame.app_id, "simulation": frame.is_simulated}
    found = [
        _sample(data, one, constants)
        for sequence in elements(data, frame.pdu.at, frame.pdu.stop)
        if sequence.tag == _SEQUENCE
        for one in elements(data, sequence.at, sequence.stop)
        if one.tag == _ASDU
    ]
    if not found:
        raise BerError("the message has no sample")
    return found


def _sample(data: bytes, asdu: Element, constants: Constants) -> Sample:
    parts = {one.tag: one for one in elements(data, asdu.at, asdu.stop)}
    name, count = parts.get(_ID), parts.get(_COUNT)
    if name is None or count is None or count.stop - count.at != 2:
        raise BerError(f"the sample at byte {asdu.at} has no svID or no counter of 16 bits")
    synchronisation = _number(data, parts.get(_SYNCHRONISATION))
    names = SYNCHRONISATIONS
    said = names[synchronisation] if 0 <= synchronisation < len(names) else str(synchronisation)
    data_set = parts.get(_DATA_SET)
    sample = parts.get(_SAMPLE)
    own = {
        **constants,
        "conf_rev": _number(data, parts.get(_REVISION)),
        "dat_set": _text(data, data_set) if data_set else "",
        "synchronisation": said,
    }
    number = data[count.at] << 8 | data[count.at + 1]
    return Sample(_text(data, name), number, own, count.at, sample.at if sample else 0)


def _text(data: bytes, one: Element) -> str:
    return printable(data[one.at : one.stop], TEXT_MAX)


def _number(data: bytes, one: Element | None) -> int:
    """A number of at most 32 bits; -1 if there is none."""
    return int.from_bytes(data[one.at : min(one.stop, one.at + 4)]) if one else -1
