"""Silence: who is quiet for longer than they ever were."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cityward import Analytic, Check, Event, Finding, Why
from detectors.anomaly.state import pack, unpack
from detectors.anomaly.words import span

VERSION = 1
MODEL_VERSION = "1.0.0"
JUMP_S = 86_400.0
"""A source whose clock jumps forward by more, or back, starts anew: that is no pause."""
BACK_S = 60.0
"""Events of a source may be out of order by so much; more is a jump back."""
LIVE_S = 600.0
"""A source is live while its events are no older than this when they arrive."""
BURST_S = 1.0
"""Messages closer than this are one: what matters is the pause between polls, not within."""
STEP = 1.05
"""The usual pause is followed by steps of 5 % (Frugal streaming median)."""
SOURCE = "source"


class Speaker:
    """One who should be heard: a gauge, an RTU, a source as a whole."""

    __slots__ = (
        "beat_s",
        "first_s",
        "heard_s",
        "kind",
        "longest_s",
        "name",
        "pauses",
        "silent",
        "usual_s",
    )

    def __init__(self, kind: str, name: str, first_s: float) -> None:
        self.kind = kind
        """Field that names it."""
        self.name = name
        self.first_s = first_s
        self.heard_s = first_s
        self.beat_s = first_s
        self.pauses = 0
        self.usual_s = 0.0
        self.longest_s = 0.0
        self.silent = False

    def hear(self, time_s: float) -> None:
        """It spoke at this time of its source's clock; a burst counts as one message."""
        self.heard_s = max(self.heard_s, time_s)
        pause = time_s - self.beat_s
        if pause < BURST_S:
            return
        self.beat_s = time_s
        self.pauses += 1
        if self.pauses == 1:
            self.usual_s = pause
        elif pause > self.usual_s:
            self.usual_s *= STEP
        else:
            self.usual_s /= STEP
        # What was told as a silence is not yet what is usual; if it stays so, it becomes so.
        longest = min(pause, self.longest_s * 2.0) if self.silent else pause
        self.longest_s = max(self.longest_s, longest)
        self.silent = False

    def move(self, seconds: float) -> None:
        """Its source's clock was set, or its source was silent: that is no pause of its own."""
        self.first_s += seconds
        self.heard_s += seconds
        self.beat_s += seconds


class Source:
    """Clock of one source, and who speaks through it."""

    __slots__ = ("ended", "live", "newest_s", "resumed", "speakers", "whole")

    def __init__(self, name: str, time_s: float) -> None:
        self.newest_s = time_s
        self.live = False
        self.ended = False
        self.resumed = False
        """Restored and not heard since: nobody listened meanwhile."""
        self.whole = Speaker(SOURCE, name, time_s)
        self.speakers: OrderedDict[str, Speaker] = OrderedDict()


class Silence:
    """Who is silent for longer than they ever were: gauges, RTUs, and sources as a whole.

    Time is the clock of each source: it moves with the source's own events, and, while the source
    is live (its events come at about their time), with `tick`. So a capture of last year is
    judged by its own time and one that has ended stands still. When a whole source falls
    silent, that is one finding, not one for each who spoke through it.
    """

    name = "model.silence"

    def __init__(
        self,
        *,
        patience: float = 3.0,
        pauses_min: int = 30,
        silence_min_s: float = 60.0,
        regular: float = 20.0,
        span_factor: float = 10.0,
        speakers_max: int = 20_000,
        sources_max: int = 1_000,
        quiet: Collection[str] = (),
    ) -> None:
        """Set up an empty model.

        Args:
            patience: Silent means: for so many times the longest pause there was.
            pauses_min: Who has not made so many pauses is not known well enough.
            silence_min_s: No silence is shorter, seconds.
            regular: Only who is regular is missed: the longest pause is at most so many times
                the usual one.
            span_factor: Who was heard for less than so many times the longest pause is not known
                well enough either.
            speakers_max: Speakers kept; the least recently heard of its source makes room.
            sources_max: Sources kept; the least recently heard makes room.
            quiet: Ids of sources whose silence means nothing.
        """
        self.patience = patience
        self.pauses_min = pauses_min
        self.silence_min_s = silence_min_s
        self.regular = regular
        self.span_factor = span_factor
        self.speakers_max = speakers_max
        self.sources_max = sources_max
        self.quiet = frozenset(quiet)
        self.evicted = 0
        """Speakers and sources forgotten for want of room."""
        self.jumps = 0
        """How often the clock of a source jumped."""
        self._now_s = -math.inf
        self._speakers = 0
        self._sources: OrderedDict[str, Source] = OrderedDict()

    def __len__(self) -> int:
        """Speakers known, sources included."""
        return self._speakers + len(self._sources)

    def detect(self, events: Sequence[Event]) -> Iterator[Finding]:
        """Hear who speaks; in the time of each source, tell who does not."""
        touched: dict[str, Source] = {}
        for event in events:
            # A flow is told when it is over: its time says nothing of who speaks now.
            if event.record.source in self.quiet or event.logsource.category == "flow":
                continue
            source = self._source(event)
            touched[event.record.source] = source
            yield from self._hear(source, event)
        for source in touched.values():
            for speaker in source.speakers.values():
                yield from self._miss(speaker, source, source.newest_s)

    def tick(self, now: datetime) -> Iterator[Finding]:
        """Time has come to `now`: for live sources, tell who should have spoken."""
        self._now_s = now.timestamp()
        for source in self._sources.values():
            if source.live and not source.ended:
                yield from self._missing(source, self._now_s)

    def end(self, source: str) -> None:
        """The source has come to its end (a file was read): its silence means nothing."""
        if known := self._sources.get(source):
            known.ended = True

    def _source(self, event: Event) -> Source:
        name, time_s = event.record.source, event.time.timestamp()
        source = self._sources.get(name)
        if source is None:
            source = self._sources[name] = Source(name, time_s)
            if len(self._sources) > self.sources_max:
                _, gone = self._sources.popitem(last=False)
                self._speakers -= len(gone.speakers)
                self.evicted += 1
        else:
            self._sources.move_to_end(name)
        source.ended = False
        return source

    def _hear(self, source: Source, event: Event) -> Iterator[Finding]:
        time_s = event.time.timestamp()
        self._set_clock(source, time_s)
        heard_at_s = max(event.record.received.timestamp(), self._now_s)
        source.live = abs(heard_at_s - time_s) <= LIVE_S
        source.whole.hear(time_s)
        who = speaker_of(event)
        if who is None:
            return
        kind, name = who
        key = f"{kind}|{name}"
        speaker = source.speakers.get(key)
        if speaker is not None:
            source.speakers.move_to_end(key)
            yield from self._miss(speaker, source, time_s)
            speaker.hear(time_s)
            return
        source.speakers[key] = Speaker(kind, name, time_s)
        self._speakers += 1
        if self._speakers > self.speakers_max:
            crowded = source if len(source.speakers) > 1 else self._most_crowded()
            crowded.speakers.popitem(last=False)
            self._speakers -= 1
            self.evicted += 1

    def _set_clock(self, source: Source, time_s: float) -> None:
        """Move a source's clock on; a jump, or a pause of all, is no pause of one."""
        step_s = time_s - source.newest_s
        limit_s = self._limit_s(source.whole)
        whole = source.whole
        if not -BACK_S <= step_s <= JUMP_S or (source.resumed and step_s > limit_s):
            self.jumps += 1
            source.newest_s = time_s
            whole.move(step_s)
            for speaker in source.speakers.values():
                speaker.move(step_s)
        elif step_s > limit_s:
            for speaker in source.speakers.values():
                speaker.move(step_s)
        source.resumed = False
        source.newest_s = max(source.newest_s, time_s)

    def _most_crowded(self) -> Source:
        return max(self._sources.values(), key=lambda source: len(source.speakers))

    def _missing(self, source: Source, now_s: float) -> Iterator[Finding]:
        """Who is missed through a live source."""
        whole = source.whole
        if now_s - source.newest_s > self._limit_s(whole):
            # Nobody is heard: one finding, by the name of the one who speaks if it is only one.
            alone = len(source.speakers) == 1
            yield from self._miss(
                next(iter(source.speakers.values())) if alone else whole, source, now_s
            )
            return
        for speaker in source.speakers.values():
            yield from self._miss(speaker, source, now_s)

    def _miss(self, speaker: Speaker, source: Source, now_s: float) -> Iterator[Finding]:
        if not speaker.silent and self._is_missed(speaker, now_s):
            speaker.silent = True
            yield self._finding(speaker, source, now_s)

    def _limit_s(self, speaker: Speaker) -> float:
        return max(self.silence_min_s, self.patience * speaker.longest_s)

    def _is_missed(self, speaker: Speaker, now_s: float) -> bool:
        silent_s = now_s - speaker.heard_s
        if silent_s <= self._limit_s(speaker) or speaker.pauses < self.pauses_min:
            return False
        known_s = speaker.heard_s - speaker.first_s
        return (
            known_s >= self.span_factor * speaker.longest_s
            and speaker.longest_s <= self.regular * speaker.usual_s
        )

    def _finding(self, speaker: Speaker, source: Source, now_s: float) -> Finding:
        silent_s = now_s - speaker.heard_s
        heard = datetime.fromtimestamp(speaker.heard_s, UTC)
        whole = speaker.kind == SOURCE
        who = f"source {speaker.name}" if whole else speaker.name
        known = span(speaker.heard_s - speaker.first_s)
        limit_s = self._limit_s(speaker)
        field = "observer.name" if whole else speaker.kind
        return Finding(
            analytic=Analytic(
                id="model.silence.source" if whole else "model.silence.speaker",
                name="Silence",
                kind="model",
                version=MODEL_VERSION,
                author="cityward",
                level="medium" if source.live else "low",
                description="Who is silent for longer than they ever were.",
            ),
            title="Source is silent" if whole else "Silent for longer than ever",
            description=(
                f"no message from {who} for {span(silent_s)}; "
                f"longest pause in {known} was {span(speaker.longest_s)}"
            ),
            severity="medium" if source.live else "low",
            group=((field, speaker.name),)
            if whole
            else tuple(sorted(((field, speaker.name), ("observer.name", source.whole.name)))),
            first_seen=heard,
            last_seen=heard + timedelta(seconds=silent_s),
            events=(),
            type="anomaly",
            confidence=0.6,
            category=("availability",),
            why=Why(
                condition=f"silent for more than {self.patience:g} times the longest pause",
                checks=(
                    Check(
                        selection="silence",
                        field=field,
                        wanted=f"at most {span(limit_s)}, usual {speaker.usual_s:.3g} s",
                        saw=f"{silent_s:.0f} s, after {speaker.pauses} pauses",
                        held=True,
                    ),
                ),
                score=round(silent_s, 1),
                threshold=round(limit_s, 1),
                unit="s",
            ),
            fields={field: speaker.name},
        )

    def snapshot(self) -> bytes:
        """All sources and speakers as JSON."""
        sources = [
            [
                name, source.newest_s, source.ended, _told(source.whole),
                [_told(speaker) for speaker in source.speakers.values()],
            ]
            for name, source in self._sources.items()
        ]  # fmt: skip
        return pack(
            self.name,
            VERSION,
            {"evicted": self.evicted, "jumps": self.jumps, "sources": sources},
        )

    def restore(self, state: bytes) -> None:
        """Take a snapshot back; ValueError, and no change, if it is of another version."""
        header, _ = unpack(state, self.name, VERSION)
        sources: OrderedDict[str, Source] = OrderedDict()
        try:
            for name, newest_s, ended, whole, speakers in header["sources"]:
                source = sources[name] = Source(name, float(newest_s))
                # Nobody listened since: it is live again when it is heard.
                source.live, source.ended, source.resumed = False, bool(ended), True
                source.whole = _speaker(whole)
                for told in speakers:
                    speaker = _speaker(told)
                    source.speakers[f"{speaker.kind}|{speaker.name}"] = speaker
            evicted, jumps = int(header["evicted"]), int(header["jumps"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no snapshot of {self.name}: {error!r}") from error
        self._sources, self.evicted, self.jumps = sources, evicted, jumps
        self._speakers = sum(len(source.speakers) for source in sources.values())


def speaker_of(event: Event) -> tuple[str, str] | None:
    """Field and name of who speaks periodically in an event; None if nobody does.

    A gauge speaks by its readings, a controller or RTU by its answers and reports. Hosts and
    vehicles come and go as they like: their silence says nothing.
    """
    get = event.fields.get
    if get("phys.reading") is not None and get("phys.point"):
        return "phys.point", str(get("phys.point"))
    answers = get("ot.direction") in ("response", "unsolicited")
    if answers and event.logsource.category == "ot_protocol" and get("destination.ip"):
        return "destination.ip", str(get("destination.ip"))
    return None


def _told(speaker: Speaker) -> list[Any]:
    return [
        speaker.kind, speaker.name, speaker.first_s, speaker.heard_s, speaker.beat_s,
        speaker.pauses, speaker.usual_s, speaker.longest_s, speaker.silent,
    ]  # fmt: skip


def _speaker(told: Sequence[Any]) -> Speaker:
    kind, name, first_s, heard_s, beat_s, pauses, usual_s, longest_s, silent = told
    made = Speaker(str(kind), str(name), float(first_s))
    made.heard_s, made.beat_s, made.pauses = float(heard_s), float(beat_s), int(pauses)
    made.usual_s, made.longest_s, made.silent = float(usual_s), float(longest_s), bool(silent)
    return made
