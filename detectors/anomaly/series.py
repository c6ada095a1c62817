"""Series: one small score for each sensor, process value or gauge; scores first, learns second."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from cityward import Analytic, Check, Event, Finding, Why
from detectors.anomaly.calibrate import Budget, Calibration
from detectors.anomaly.state import pack, unpack
from detectors.anomaly.words import number, span

VERSION = 2
MODEL_VERSION = "1.0.0"
LEVEL_RATE = 0.05
SCALE_RATE = 0.01
WINSOR = 4.0
"""A row moves level and scale by no more than four usual deviations would."""
PROFILE_BINS = 48
PROFILE_RATE = 0.2
PROFILE_DAYS = 3
"""The daily profile is a channel once each of its half hours may have been seen three times."""
DAY_S = 86_400.0
GAP_MAX_S = 86_400.0
CHANNELS = ("expected", "change", "daily profile", "range", "flat line", "river")
"""`river` is the vote of a half-space forest; it is left out until it was rebuilt."""
HST_TREES, HST_HEIGHT, HST_WINDOW = 25, 6, 250


class Forest:
    """River's half-space trees on value and change, scaled by what is usual; never saved.

    References:
        Tan, Ting, Liu 2011, "Fast anomaly detection for streaming data".
    """

    def __init__(self, seed: int) -> None:
        from river.anomaly import HalfSpaceTrees

        limits: dict[Hashable, tuple[float, float]] = {"value": (0.0, 1.0), "change": (0.0, 1.0)}
        self._trees: Any = HalfSpaceTrees(
            n_trees=HST_TREES, height=HST_HEIGHT, window_size=HST_WINDOW, limits=limits, seed=seed
        )
        self.rows = 0

    def vote(self, value: float, change: float) -> float | None:
        """0 (usual) to 1 (strange) for two numbers in usual deviations; None while it is young."""
        row = {"value": _squash(value), "change": _squash(change)}
        vote = float(self._trees.score_one(row)) if self.rows >= 2 * HST_WINDOW else None
        self._trees.learn_one(row)
        self.rows += 1
        return vote


class Sensor:
    """What is known of one series: some forty numbers, a profile, seven histograms of 1 KiB."""

    __slots__ = (
        "calm", "change", "channels", "forest", "high", "last_s", "level", "longest_flat", "low",
        "previous", "profile", "profile_scale", "profile_seen", "recent", "rest_p", "rest_row",
        "rest_s", "rows", "run", "scale", "total", "watched_s",
    )  # fmt: skip

    def __init__(self, smooth_rows: int) -> None:
        self.rows = 0
        self.last_s = -math.inf
        self.watched_s = 0.0
        self.previous = 0.0
        self.level = 0.0
        self.scale = 0.0
        self.change = 0.0
        self.low = math.inf
        self.high = -math.inf
        self.run = 0
        self.longest_flat = 0
        self.profile = [0.0] * PROFILE_BINS
        self.profile_seen = [0] * PROFILE_BINS
        self.profile_scale = 0.0
        self.channels = [Calibration() for _ in CHANNELS]
        self.total = Calibration()
        self.recent: deque[float] = deque(maxlen=smooth_rows)
        self.rest_row = -1
        self.rest_s = -math.inf
        self.rest_p = 0.0
        self.calm = True
        """Its score was usual since the last finding."""
        self.forest: Forest | None = None

    def header(self) -> list[Any]:
        """All numbers, for a snapshot; the forest is not among them."""
        return [
            self.rows, _told(self.last_s), self.watched_s, self.previous, self.level, self.scale,
            self.change, _told(self.low), _told(self.high), self.run, self.longest_flat,
            self.profile, self.profile_seen, self.profile_scale, list(self.recent), self.rest_row,
            _told(self.rest_s), self.rest_p, self.calm,
            [calibration.header() for calibration in (*self.channels, self.total)],
        ]  # fmt: skip

    @classmethod
    def of(cls, header: Sequence[Any], arrays: Sequence[bytes], smooth_rows: int) -> Sensor:
        """Take back what `header()` said and the histograms.

        Raises:
            ValueError: it is not that.
        """
        made = cls(smooth_rows)
        (
            made.rows, last_s, made.watched_s, made.previous, made.level, made.scale, made.change,
            low, high, made.run, made.longest_flat, made.profile, made.profile_seen,
            made.profile_scale, recent, made.rest_row, rest_s, made.rest_p, made.calm,
            headers,
        ) = header  # fmt: skip
        if len(made.profile) != PROFILE_BINS or len(made.profile_seen) != PROFILE_BINS:
            raise ValueError("a profile of another size")
        made.last_s = -math.inf if last_s is None else last_s
        made.low = math.inf if low is None else low
        made.high = -math.inf if high is None else high
        made.rest_s = -math.inf if rest_s is None else rest_s
        made.recent.extend(recent)
        *made.channels, made.total = (
            Calibration.of(counts, one) for counts, one in zip(arrays, headers, strict=True)
        )
        return made


class Series:
    """Readings that are not as they were: level, change, daily profile, range, flat line, forest.

    Each channel becomes a probability by its own histogram, −log10 of them is added and averaged
    over a few rows, and a second histogram makes one probability of it.
    """

    name = "model.series"

    def __init__(
        self,
        *,
        findings_per_day: float = 0.02,
        p_max: float = 1e-3,
        floor: float = 4.0,
        warm_up_rows: int = 100,
        settle_rows: int = 300,
        smooth_rows: int = 5,
        guard: float = 0.995,
        rest_rows: int = 100,
        rest_s: float = 43_200.0,
        sensors_max: int = 5_000,
        forests_max: int = 200,
        young_factor: float = 0.01,
        seed: int = 7,
    ) -> None:
        """Set up an empty model.

        Args:
            findings_per_day: Budget of false alarms a day and sensor.
            p_max: Rows more probable than this never speak.
            floor: Scores (decades, mean of `smooth_rows`) below never speak.
            warm_up_rows: No score before so many readings of a sensor.
            settle_rows: No word before so many.
            smooth_rows: The score is the mean of the last so many rows.
            guard: Quantile of the scores above which a row moves level and profile no more.
            rest_rows: After a finding a sensor rests for so many rows and until it is usual …
            rest_s: … or for so many seconds, unless it becomes a hundred times less probable.
            sensors_max: Sensors kept; the least recently seen makes room.
            forests_max: Sensors that get a forest (about 0.3 MB each), first come, first served.
            young_factor: Until a sensor was watched for a day, only what is so much rarer speaks.
            seed: Of the forests.
        """
        self.budget = Budget(findings_per_day, p_max)
        self.floor = floor
        self.warm_up_rows = warm_up_rows
        self.settle_rows = settle_rows
        self.smooth_rows = smooth_rows
        self.guard = guard
        self.rest_rows = rest_rows
        self.rest_s = rest_s
        self.sensors_max = sensors_max
        self.forests_max = forests_max
        self.young_factor = young_factor
        self.seed = seed
        self.evicted = 0
        """Sensors forgotten for want of room."""
        self._forests = 0
        self._sensors: OrderedDict[str, Sensor] = OrderedDict()

    def __len__(self) -> int:
        """Sensors known."""
        return len(self._sensors)

    def detect(self, events: Sequence[Event]) -> Iterator[Finding]:
        """Score each reading, learn it, and speak of what is rarer than the budget."""
        for event in events:
            found = reading(event)
            if found is None:
                continue
            key, value = found
            time_s = event.time.timestamp()
            score, votes, sensor = self.score(key, value, time_s)
            if score > self.floor and sensor.rows >= self.settle_rows:
                p, limit = sensor.total.p(score), self._limit(sensor)
                if p <= limit and self._may_speak(sensor, time_s, p):
                    yield self._finding(event, sensor, value, score, p, limit, votes)
                    sensor.rest_row = sensor.rows + self.rest_rows
                    sensor.rest_s = time_s + self.rest_s
                    sensor.rest_p = p / 100.0
                    sensor.calm = False
            self.learn(sensor, time_s, value, score, votes)

    def tick(self, now: datetime) -> Iterator[Finding]:
        """Time alone says nothing here; silence is another model's."""
        return iter(())

    def score(
        self, key: str, value: float, time_s: float
    ) -> tuple[float, dict[str, float], Sensor]:
        """Decades of improbability of one reading (mean of the last rows), and each channel's raw.

        Nothing is learnt but the forest's row: it scores and learns at once.
        """
        sensor = self._sensors.get(key)
        if sensor is None:
            sensor = self._sensors[key] = Sensor(self.smooth_rows)
            if len(self._sensors) > self.sensors_max:
                _, gone = self._sensors.popitem(last=False)
                self._forests -= gone.forest is not None
                self.evicted += 1
        else:
            self._sensors.move_to_end(key)
        if sensor.rows < self.warm_up_rows:
            return 0.0, {}, sensor
        votes = self._votes(sensor, value, time_s)
        decades = 0.0
        for at, name in enumerate(CHANNELS):
            raw = votes.get(name)
            if raw is not None and sensor.channels[at].rows >= self.warm_up_rows:
                decades -= math.log10(max(sensor.channels[at].p(raw), 1e-12))
        sensor.recent.append(decades)
        return sum(sensor.recent) / len(sensor.recent), votes, sensor

    def _votes(self, sensor: Sensor, value: float, time_s: float) -> dict[str, float]:
        scale, change = max(sensor.scale, 1e-12), max(sensor.change, 1e-12)
        deviation, step = (value - sensor.level) / scale, (value - sensor.previous) / change
        votes = {
            "expected": min(abs(deviation), 1e6),
            "change": min(abs(step), 1e6),
            "range": min(max(value - sensor.high, sensor.low - value, 0.0) / scale, 1e6),
            "flat line": float(sensor.run + 1) if value == sensor.previous else 0.0,
        }
        at = int(time_s % DAY_S // (DAY_S / PROFILE_BINS))
        if sensor.profile_seen[at] and sensor.watched_s > PROFILE_DAYS * DAY_S:
            usual = max(sensor.profile_scale, 1e-12)
            votes["daily profile"] = min(abs(value - sensor.profile[at]) / usual, 1e6)
        forest = self._forest(sensor)
        if forest is not None and (vote := forest.vote(deviation, step)) is not None:
            votes["river"] = 100.0 * vote
        return votes

    def _forest(self, sensor: Sensor) -> Forest | None:
        """The forest of a sensor: new after a start, so it votes again after 500 rows."""
        # River takes two seconds to import: not for a sensor that says a few things and ends.
        grown = sensor.rows >= self.settle_rows
        if sensor.forest is None and grown and self._forests < self.forests_max:
            sensor.forest = Forest(self.seed)
            self._forests += 1
        return sensor.forest

    def _limit(self, sensor: Sensor) -> float:
        limit = self.budget.p(sensor.rows, sensor.watched_s)
        return limit if sensor.watched_s >= DAY_S else limit * self.young_factor

    def _may_speak(self, sensor: Sensor, time_s: float, p: float) -> bool:
        # A state that lasts is one finding, and another one each `rest_s`.
        lasting = sensor.rows < sensor.rest_row or not sensor.calm
        resting = lasting and time_s < sensor.rest_s
        return not resting or p < sensor.rest_p

    def learn(
        self, sensor: Sensor, time_s: float, value: float, score: float, votes: Mapping[str, float]
    ) -> None:
        """Learn a reading from what `score` said of it."""
        if sensor.rows == 0:
            sensor.level = sensor.previous = value
        else:
            sensor.watched_s += min(max(time_s - sensor.last_s, 0.0), GAP_MAX_S)
        sensor.rows += 1
        sensor.last_s = time_s
        strange = (
            score > self.floor
            and sensor.rows > self.settle_rows
            and score > sensor.total.quantile(self.guard)
        )
        for at, name in enumerate(CHANNELS):
            if name in votes:
                edge = sensor.channels[at].start * 4.0 + 1.0
                free = not strange or sensor.channels[at].rows < self.settle_rows
                sensor.channels[at].add(votes[name] if free else min(votes[name], edge))
        sensor.calm = sensor.calm or score <= self.floor
        if votes:
            sensor.total.add(min(score, 2.0 * sensor.total.start + 2.0))
        if not strange:
            _follow(sensor, time_s, value)
        if value != sensor.previous:
            sensor.longest_flat = max(sensor.longest_flat, sensor.run)
            sensor.run = 0
        sensor.run += 1
        sensor.previous = value

    def _finding(
        self,
        event: Event,
        sensor: Sensor,
        value: float,
        score: float,
        p: float,
        limit: float,
        votes: Mapping[str, float],
    ) -> Finding:
        bits = {
            name: -math.log2(max(sensor.channels[at].p(votes[name]), 1e-12))
            for at, name in enumerate(CHANNELS)
            if name in votes
        }
        lead = max(bits, key=lambda name: bits[name])
        fields = event.fields
        return Finding(
            analytic=Analytic(
                id="model.series.sensor",
                name="Series",
                kind="model",
                version=MODEL_VERSION,
                author="cityward",
                level="low",
                description="Readings of a sensor against all it ever read.",
            ),
            title=TITLES[lead],
            description=_sentence(lead, fields, sensor, value),
            severity="low",
            group=tuple(
                (name, str(fields[name])) for name in GROUP if fields.get(name) is not None
            ),
            first_seen=event.time,
            last_seen=event.time,
            events=(event,),
            type="anomaly",
            confidence=round(min(0.9, 0.3 - 0.05 * math.log10(max(p, 1e-12))), 2),
            why=Why(
                condition=f"mean of {len(sensor.recent)} rows; p = {p:.1g}, spoken of at "
                f"{limit:.1g}, {sensor.rows} rows; votes: {', '.join(votes)}",
                checks=tuple(
                    Check(
                        selection="series",
                        field=name,
                        wanted=_wanted(name, sensor, event.time.timestamp()),
                        saw=_saw(name, value, votes[name], sensor),
                        held=True,
                        bits=round(bits[name], 2),
                    )
                    for name in sorted(bits, key=lambda name: -bits[name])
                ),
                score=round(score, 2),
                threshold=round(max(self.floor, sensor.total.score_at(limit)), 2),
                unit="decades",
            ),
            fields={name: fields[name] for name in SHOWN if name in fields},
        )

    def snapshot(self) -> bytes:
        """All sensors, without their forests, which are rebuilt from what comes."""
        sensors = [[key, *sensor.header()] for key, sensor in self._sensors.items()]
        arrays = [
            calibration.counts.tobytes()
            for sensor in self._sensors.values()
            for calibration in (*sensor.channels, sensor.total)
        ]
        return pack(self.name, VERSION, {"evicted": self.evicted, "sensors": sensors}, arrays)

    def restore(self, state: bytes) -> None:
        """Take a snapshot back; ValueError, and no change, if it is of another version."""
        header, arrays = unpack(state, self.name, VERSION)
        width = len(CHANNELS) + 1
        sensors: OrderedDict[str, Sensor] = OrderedDict()
        try:
            for at, (key, *rest) in enumerate(header["sensors"]):
                mine = arrays[at * width : at * width + width]
                sensors[key] = Sensor.of(rest, mine, self.smooth_rows)
            evicted = int(header["evicted"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no snapshot of {self.name}: {error!r}") from error
        self._sensors, self.evicted, self._forests = sensors, evicted, 0


TITLES = {
    "expected": "Reading far from what is expected",
    "change": "Reading jumps",
    "daily profile": "Reading unusual for this time of day",
    "range": "Reading outside all that was ever read",
    "flat line": "Reading does not move any more",
    "river": "Readings in an unusual combination",
}
GROUP = ("destination.ip", "ot.point.address", "phys.point", "phys.quantity")
SHOWN = (
    "phys.point", "phys.quantity", "phys.reading", "phys.unit", "phys.quality", "phys.location",
    "source.ip", "destination.ip", "network.protocol", "ot.unit", "ot.common_address",
    "ot.point.address", "ot.point.type", "ot.value", "ot.function.name",
)  # fmt: skip


def reading(event: Event) -> tuple[str, float] | None:
    """Which series an event belongs to and its value; None if it is no reading.

    A reading that its source calls bad is none; a command's value is not the process's.
    """
    get = event.fields.get
    value = get("phys.reading")
    if value is not None and get("phys.point"):
        if get("phys.quality") == "bad":
            return None
        key = f"{get('phys.point')}|{get('phys.quantity')}"
    elif event.logsource.category == "ot_protocol" and get("ot.direction") != "request":
        value = get("ot.value")
        if value is None or get("ot.point.address") is None or get("ot.is_command"):
            return None
        unit = get("ot.unit") or get("ot.common_address")
        where = f"{get('ot.point.type')}|{get('ot.point.address')}|{get('ot.point.count')}"
        key = f"{get('destination.ip')}|{unit}|{where}"
    else:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        return None
    return key, float(value)


def _follow(sensor: Sensor, time_s: float, value: float) -> None:
    """Level, scale, profile and range follow; winsorised once they are known."""
    rate = max(LEVEL_RATE, 1.0 / sensor.rows)
    slow = max(SCALE_RATE, 1.0 / sensor.rows)
    off, step = value - sensor.level, abs(value - sensor.previous)
    if sensor.rows > 50 and sensor.scale > 0.0:
        off = max(-WINSOR * sensor.scale, min(WINSOR * sensor.scale, off))
        step = min(step, WINSOR * max(sensor.change, 0.1 * sensor.scale))
    sensor.level += rate * off
    sensor.scale += slow * (abs(off) - sensor.scale)
    sensor.change += slow * (step - sensor.change)
    sensor.low, sensor.high = min(sensor.low, value), max(sensor.high, value)
    at = int(time_s % DAY_S // (DAY_S / PROFILE_BINS))
    seen = sensor.profile_seen[at] = sensor.profile_seen[at] + 1
    miss = value - sensor.profile[at]
    if seen > 10 and sensor.profile_scale > 0.0:
        miss = max(-WINSOR * sensor.profile_scale, min(WINSOR * sensor.profile_scale, miss))
    if seen > 1:
        sensor.profile_scale += slow * (abs(miss) - sensor.profile_scale)
    sensor.profile[at] += max(PROFILE_RATE / 6.0, 1.0 / seen) * miss


def _sentence(lead: str, fields: Mapping[str, Any], sensor: Sensor, value: float) -> str:
    unit = f" {fields['phys.unit']}" if fields.get("phys.unit") else ""
    if fields.get("phys.point"):
        what = f"{fields.get('phys.quantity') or 'reading'} of {fields['phys.point']}"
    else:
        what = f"point {fields.get('ot.point.address')} of {fields.get('destination.ip')}"
    usual = f"usual {number(sensor.low)} to {number(sensor.high)}{unit}"
    since = span(sensor.watched_s)
    if lead == "flat line":
        flat = f"{sensor.run + 1} readings, longest before {sensor.longest_flat}"
        return f"{what} stays at {number(value)}{unit} for {flat}, in {since}"
    return (
        f"{what} is {number(value)}{unit}, expected {number(round(sensor.level, 4))} ± "
        f"{number(round(sensor.scale, 4))}{unit}; {usual} in {since}"
    )


def _wanted(name: str, sensor: Sensor, time_s: float) -> str:
    if name == "range":
        return f"usual {number(sensor.low)} to {number(sensor.high)}"
    if name == "flat line":
        return f"at most {sensor.longest_flat} equal readings"
    if name == "change":
        return f"usual step {number(sensor.change)}"
    if name == "daily profile":
        at = int(time_s % DAY_S // (DAY_S / PROFILE_BINS))
        return f"{number(sensor.profile[at])} ± {number(sensor.profile_scale)} at this time of day"
    if name == "river":
        return "a usual place in the half-space forest"
    return f"{number(sensor.level)} ± {number(sensor.scale)}"


def _saw(name: str, value: float, raw: float, sensor: Sensor) -> str:
    if name == "flat line":
        return f"{int(raw)} equal readings"
    if name == "change":
        return f"step {number(abs(value - sensor.previous))}"
    if name == "river":
        return f"{raw:.0f} of 100"
    return number(value)


def _squash(deviations: float) -> float:
    return 0.5 + 0.5 * math.tanh(deviations / 8.0)


def _told(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
