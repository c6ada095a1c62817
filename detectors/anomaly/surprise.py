"""Surprise: what a device does now against all it ever did, in bits, and the bits say why."""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from cityward import Analytic, Check, Event, Finding, Why
from detectors.anomaly import words
from detectors.anomaly.calibrate import Budget, Calibration
from detectors.anomaly.features import (
    KINDS,
    Codes,
    EntityKind,
    Trail,
    conn_state_of,
    offsets,
    service_of,
    value_bin,
)
from detectors.anomaly.state import pack, unpack

VERSION = 2
"""Of the state; another one is refused."""
MODEL_VERSION = "1.0.0"
TERMS = 5
"""The score is the sum of the largest terms, as in the measurements of the design."""
PSEUDO = 0.1
"""What a symbol nobody ever saw counts as."""
QUARANTINE = 256
MEAN_RATE = 1.0 / 512.0
"""How fast a feature's own mean surprise follows."""
P_MIN = 1e-250
REACH = 0.95
"""This much of the highest score that a row could have is enough, if none was ever so high."""
WEIGHT_MAX = 1e6
PRIOR_ROWS = 3.0
"""So many rows without surprise are in the mean of a context before its first one."""
SETTLING_ROWS = 20
"""The scores of an entity's first rows say nothing of what is usual."""
BITS_MAX = 8.0
"""A row moves the mean surprise of a feature by no more than such an excess would."""
SOURCE, COMMANDER = 0, 9
"""Features of OT: who speaks, and who uses which function."""
CONTEXT = 1
"""A row is compared with what is usual for rows of its own function or service, so that an hourly
write is not strange among polls, and a stranger's write is."""
CONTEXTS = 16
"""So many have means of their own; all others share one."""
OTHER = -1
STRANGE_RATE = 1.0 / 2_048.0
FLOOD = 0.015
"""Three times as many withheld rows as the guard of a mature entity means."""
GAP_MAX_S = 86_400.0
"""A clock that jumps forward by years does not make an entity watched for years."""
RANGES = 32
"""Points of which the range of values is kept, for the sentence; later ones have none."""
GROUP = ("destination.ip", "network.protocol", "source.ip")
SHOWN = (
    "source.ip", "source.port", "destination.ip", "destination.port", "network.protocol",
    "ot.operation", "ot.is_command", "ot.direction", "ot.function.code", "ot.function.name",
    "ot.unit", "ot.common_address", "ot.point.address", "ot.point.count", "ot.point.type",
    "ot.value", "ot.exception", "ot.cause", "ot.link_id",
)  # fmt: skip
"""Fields of the deciding event that its finding carries."""


class Entity:
    """All that is known of one device: about 15 KiB, most of it two arrays."""

    __slots__ = (
        "calibration",
        "counts",
        "guard",
        "held",
        "held_at",
        "held_rows",
        "held_s",
        "kind",
        "last_s",
        "means",
        "p_limit",
        "ranges",
        "rest_row",
        "rest_s",
        "rest_score",
        "rows",
        "settled",
        "spoke_of",
        "spoke_s",
        "strange",
        "threshold",
        "total",
        "trail",
        "watched_s",
        "weight",
    )  # fmt: skip

    def __init__(self, kind: int) -> None:
        self.kind = kind
        features = KINDS[kind].features
        self.counts = array("f", bytes(4 * offsets(features)[-1]))
        self.means: dict[int, array[float]] = {}
        """Context (slot of `CONTEXT`) → usual surprise of each feature, and rows it is made of."""
        self.calibration = Calibration()
        self.held = array("H", bytes(2 * len(features) * QUARANTINE))
        """Ring of rows that were too strange to be learnt."""
        self.held_at = 0
        self.held_rows = 0
        self.held_s = 0.0
        """When the first of them came."""
        self.spoke_s = 0.0
        self.spoke_of = -1
        """Slot of the command that made it speak last."""
        self.ranges: dict[int, tuple[float, float]] = {}
        self.trail = Trail()
        self.rows = 0
        self.total = 0.0
        self.weight = 1.0
        self.watched_s = 0.0
        self.last_s = math.inf
        self.settled = 0
        """How many halves of its first day are over."""
        self.strange = 0.0
        """Share of the newest rows that were withheld."""
        self.guard = math.inf
        self.threshold = math.inf
        self.p_limit = 1.0
        self.rest_row = -1
        self.rest_s = 0.0
        self.rest_score = 0.0

    def excess(self, slots: list[int]) -> list[float]:
        """Bits of each feature over its own mean in rows of this context."""
        counts, weight, log2 = self.counts, self.weight, math.log2
        # log2((total / w + 1) / (count / w + PSEUDO)), one logarithm a feature
        whole, pseudo = log2(self.total + weight), PSEUDO * weight
        return [
            whole - log2(counts[slot] + pseudo) - mean
            for slot, mean in zip(slots, self.means_of(slots), strict=False)
        ]

    def means_of(self, slots: list[int]) -> array[float]:
        """The usual surprise of each feature in rows of this context; 0 in one never learnt."""
        found = self.means.get(slots[CONTEXT])
        if found is None:
            found = self.means.get(OTHER) if len(self.means) > CONTEXTS else None
        return _NO_MEANS if found is None else found

    def learn(self, slots: list[int], excess: list[float], weight: float) -> None:
        """Count a row, and let the means of its context follow."""
        means = self.means_of(slots)
        if means is _NO_MEANS:
            context = slots[CONTEXT] if len(self.means) < CONTEXTS else OTHER
            means = self.means[context] = array("d", bytes(8 * (len(slots) + 1)))
        rows = means[-1] = means[-1] + 1.0
        rate = max(MEAN_RATE, 1.0 / (rows + PRIOR_ROWS))
        counts = self.counts
        for feature, slot in enumerate(slots):
            counts[slot] += weight
            bits = excess[feature]
            means[feature] += rate * (bits if bits < BITS_MAX else BITS_MAX)
        self.total += weight

    def confirm(self) -> int:
        """Learn what waits in quarantine; how many rows that were.

        They stand for those that found no more room, too. Their scores, given when they were
        strange, are forgotten; those they have now count.
        """
        width = len(KINDS[self.kind].features)
        waiting = min(self.held_rows, QUARANTINE)
        rows = [list(self.held[at * width : at * width + width]) for at in range(waiting)]
        each = self.held_rows / max(waiting, 1)
        for slots in rows:
            self.learn(slots, self.excess(slots), self.weight * each)
        self.calibration.forget(self.guard)
        for slots in rows:
            self.calibration.add(_sum(self.excess(slots)), each)
        self.held_rows = self.held_at = 0
        self.strange = 0.0
        return waiting

    def header(self) -> list[Any]:
        """What is no array, for a snapshot; in the order of `of`."""
        return [
            self.kind, self.calibration.header(), self.held_at, self.held_rows,
            list(self.ranges.items()), self.trail.function, self.trail.time_s, self.rows,
            self.total, self.weight, self.watched_s, _limit(self.last_s), _limit(self.guard),
            _limit(self.threshold), self.p_limit, self.rest_row, self.rest_s, self.rest_score,
            self.held_s, self.spoke_s, self.settled,
            self.strange, self.spoke_of,
        ]  # fmt: skip

    def arrays(self) -> list[bytes]:
        """Counters, histogram, quarantine, means."""
        means = array("d")
        for context, one in self.means.items():
            means.append(context)
            means.extend(one)
        counts, histogram = self.counts.tobytes(), self.calibration.counts.tobytes()
        return [counts, histogram, self.held.tobytes(), means.tobytes()]

    @classmethod
    def of(cls, header: Sequence[Any], arrays: Sequence[bytes]) -> Entity:
        """Take back what `header()` and `arrays()` said.

        Raises:
            ValueError: the sizes are not those of this kind of entity.
        """
        made = cls(int(header[0]))
        counts, histogram, held, means = arrays
        if len(counts) != 4 * len(made.counts) or len(held) != 2 * len(made.held):
            raise ValueError("arrays of another size")
        width = len(KINDS[made.kind].features) + 2
        rows = array("d", means)
        if len(rows) % width or len(rows) > width * (CONTEXTS + 1):
            raise ValueError("means of another size")
        for at in range(0, len(rows), width):
            made.means[int(rows[at])] = rows[at + 1 : at + width]
        made.counts, made.held = array("f", counts), array("H", held)
        made.calibration = Calibration.of(histogram, header[1])
        (
            _, _, made.held_at, made.held_rows, ranges, function, time_s, made.rows,
            made.total, made.weight, made.watched_s, last_s, guard, threshold, made.p_limit,
            made.rest_row, made.rest_s, made.rest_score, made.held_s, made.spoke_s,
            made.settled, made.strange, made.spoke_of,
        ) = header  # fmt: skip
        made.ranges = {int(key): (low, high) for key, (low, high) in ranges}
        made.trail = Trail(function, time_s)
        made.last_s = math.inf if last_s is None else last_s
        made.guard = math.inf if guard is None else guard
        made.threshold = math.inf if threshold is None else threshold
        return made


def _sum(excess: list[float]) -> float:
    """The score: only the largest terms count."""
    return sum(sorted(excess)[-TERMS:])


def _limit(value: float) -> float | None:
    """JSON has no infinity."""
    return None if math.isinf(value) else value


class Surprise:
    """Additive surprise of OT and flow events, guarded and calibrated per device.

    Score first, learn second; what is above the guard is not learnt but kept in a ring. A row
    speaks when it is rarer than the budget allows; then the entity rests.
    """

    name = "model.surprise"

    def __init__(
        self,
        *,
        findings_per_day: float = 0.02,
        p_max: float = 1e-3,
        floor_bits: float = 24.0,
        warm_up_rows: int = 100,
        warm_up_s: float = 10.0,
        young_rows: int = 300,
        young_s: float = 86_400.0,
        mature_rows: int = 1_000,
        guard_young: float = 0.95,
        guard_mature: float = 0.995,
        half_life_rows: float = 20_000.0,
        relearn_s: float = 604_800.0,
        rest_rows: int = 100,
        rest_s: float = 43_200.0,
        entities_max: int = 2_000,
        young_max: int = 1_000,
    ) -> None:
        """Set up an empty model.

        Args:
            findings_per_day: Budget of false alarms a day and entity.
            p_max: Rows more probable than this never speak.
            floor_bits: Scores below never speak, however rare they are.
            warm_up_rows: No word before so many rows of an entity …
            warm_up_s: … and so many seconds between its first row and now.
            young_rows: Watched for less than `young_s`, an entity speaks only of a command by a
                host that never spoke to it, only after so many rows, and if it is more than ever.
            young_s: See `young_rows`; seconds.
            mature_rows: From here the guard is `guard_mature`, before `guard_young`.
            guard_young: Quantile of the scores above which a row is not learnt.
            guard_mature: The same when mature.
            half_life_rows: After so many rows of an entity a count is worth half.
            relearn_s: What was withheld for so long, while the entity was spoken of no more, is
                the new usual; seconds.
            rest_rows: After a finding an entity speaks of another one's first command after so
                many rows at the earliest …
            rest_s: … and of all else after so many seconds, unless a row is a hundred times less
                probable.
            entities_max: Grown entities kept; the least recently seen makes room.
            young_max: Entities in warm-up kept, apart, so that a scan pushes out no grown one.
        """
        self.budget = Budget(findings_per_day, p_max)
        self.floor_bits = floor_bits
        self.warm_up_rows = warm_up_rows
        self.warm_up_s = warm_up_s
        self.young_rows = young_rows
        self.young_s = young_s
        self.mature_rows = mature_rows
        self.guard_young = guard_young
        self.guard_mature = guard_mature
        self.relearn_s = relearn_s
        self.rest_rows = rest_rows
        self.rest_s = rest_s
        self.entities_max = entities_max
        self.young_max = young_max
        self.growth = 2.0 ** (1.0 / half_life_rows)
        self.evicted = 0
        """Entities forgotten for want of room."""
        self.unkeyed = 0
        """Events of our log sources that name no entity."""
        self._young: OrderedDict[str, Entity] = OrderedDict()
        self._grown: OrderedDict[str, Entity] = OrderedDict()
        self._codes = Codes()
        self._kinds = {kind.category: number for number, kind in enumerate(KINDS)}

    def __len__(self) -> int:
        """Entities known."""
        return len(self._young) + len(self._grown)

    def detect(self, events: Sequence[Event]) -> Iterator[Finding]:
        """Score each OT and flow event, learn it, and speak of what is rarer than the budget."""
        for event in events:
            number = self._kinds.get(event.logsource.category)
            if number is None or event.is_malformed:
                continue
            scored = self.score(event, number)
            if scored is None:
                self.unkeyed += 1
                continue
            key, entity, score, slots, excess = scored
            time_s = event.time.timestamp()
            if score > entity.guard and self._may_speak(entity, event, score, slots):
                yield self._finding(event, entity, score, slots, excess)
                entity.rest_row = entity.rows + self.rest_rows
                entity.rest_s = time_s + self.rest_s
                entity.spoke_s = time_s
                entity.spoke_of = slots[COMMANDER]
                p = min(entity.calibration.p(score), entity.p_limit)
                entity.rest_score = entity.calibration.score_at(max(p / 100.0, P_MIN))
            self._learn(entity, event, time_s, score, slots, excess)
            self._keep(key, entity)

    def tick(self, now: datetime) -> Iterator[Finding]:
        """Time alone says nothing here."""
        return iter(())

    def score(
        self, event: Event, number: int
    ) -> tuple[str, Entity, float, list[int], list[float]] | None:
        """Key, entity, bits, slots, and bits of each feature over its own mean; learns nothing.

        None if the event names no entity. The transition and the gap move on.
        """
        kind = KINDS[number]
        key = kind.key(event)
        if key is None:
            return None
        entity = self._grown.get(key) or self._young.get(key) or Entity(number)
        slots = kind.slots(event.fields, event.time.timestamp(), entity.trail, self._codes)
        excess = entity.excess(slots)
        return key, entity, _sum(excess), slots, excess

    def confirm(self, key: str) -> int:
        """A person or a change ticket says that what was strange is right: learn what waits."""
        entity = self._grown.get(key)
        return entity.confirm() if entity else 0

    def _may_speak(self, entity: Entity, event: Event, score: float, slots: list[int]) -> bool:
        young = entity.watched_s < self.young_s
        who = slots[SOURCE if young else COMMANDER]
        first = event.fields.get("ot.is_command") is True and entity.counts[who] < 0.5
        if event.time.timestamp() < entity.rest_s and score <= entity.rest_score:
            # Who made it speak must not hide the next one.
            another = first and slots[COMMANDER] != entity.spoke_of
            if not another or entity.rows < entity.rest_row:
                return False
        if young:
            # In its first day a device does much for the first time. A stranger's command is the
            # exception, if it is more than ever was.
            return first and entity.rows >= self.young_rows and score > entity.calibration.highest()
        # Later a command that its host never gave is told even if it is one like many others.
        return first or score > entity.threshold

    def _learn(
        self,
        entity: Entity,
        event: Event,
        time_s: float,
        score: float,
        slots: list[int],
        excess: list[float],
    ) -> None:
        entity.rows += 1
        entity.watched_s += min(max(time_s - entity.last_s, 0.0), GAP_MAX_S)
        entity.last_s = time_s
        strange = score > entity.guard
        entity.strange += STRANGE_RATE * (strange - entity.strange)
        # Winsorised: however wild a row is, it moves the histogram by one row at its edge. And a
        # stream that is half attack does not make attack usual.
        if strange and self._is_flooded(entity):
            if entity.held_rows % QUARANTINE == 0:
                self._set_limits(entity)
        elif entity.rows > SETTLING_ROWS and entity.calibration.add(min(score, entity.threshold)):
            self._set_limits(entity)
        if strange:
            self._withhold(entity, slots)
            return
        entity.learn(slots, excess, entity.weight)
        entity.weight *= self.growth
        if entity.weight > WEIGHT_MAX:
            _scale(entity)
        value = event.fields.get("ot.value")
        if value is not None:
            _widen(entity, slots, value, event.fields.get("ot.is_command") is True)

    def _set_limits(self, entity: Entity) -> None:
        self._settle(entity)
        calibration = entity.calibration
        if calibration.rows < self.warm_up_rows:
            return
        mature = entity.rows >= self.mature_rows
        entity.guard = calibration.quantile(self.guard_mature if mature else self.guard_young)
        if entity.watched_s < self.warm_up_s:
            return
        entity.p_limit = self.budget.p(entity.rows, entity.watched_s)
        # A heavy tail must not put the threshold where no row can come. With the heaviest that is
        # believed, twice the highest row comes as rarely as `BEYOND` says; and what is more than
        # ever was and nearly all new speaks, too.
        new = math.log2((entity.total / entity.weight + 1.0) / PSEUDO)
        reach = min(
            (_sum([new - mean for mean in means[:-1]]) for means in entity.means.values()),
            default=math.inf,
        )
        highest = calibration.highest()
        score = min(
            calibration.score_at(entity.p_limit), 2.0 * highest, max(REACH * reach, highest)
        )
        entity.threshold = max(self.floor_bits, score)

    def _settle(self, entity: Entity) -> None:
        """Learn what was withheld once it is usual: twice in the first day, and each quiet week.

        Who does something once an hour would else be strange for a week. Scores of the first
        half day are those of a newborn: they are forgotten.
        """
        half = int(min(2.0, 2.0 * entity.watched_s / self.young_s))
        if half > entity.settled and not entity.spoke_s:
            if not entity.settled:
                entity.calibration = Calibration()
            entity.settled = half
            entity.confirm()
        waits = entity.held_rows and entity.last_s - entity.held_s > self.relearn_s
        if waits and entity.last_s - entity.spoke_s > self.relearn_s:
            entity.confirm()

    def _is_flooded(self, entity: Entity) -> bool:
        return entity.rows > self.mature_rows and entity.strange > FLOOD

    def _withhold(self, entity: Entity, slots: list[int]) -> None:
        width = len(slots)
        at = entity.held_at * width
        entity.held[at : at + width] = array("H", slots)
        if not entity.held_rows:
            entity.held_s = entity.last_s
        entity.held_at = (entity.held_at + 1) % QUARANTINE
        entity.held_rows += 1

    def _keep(self, key: str, entity: Entity) -> None:
        if entity.rows <= self.warm_up_rows:
            if entity.rows < self.warm_up_rows:
                _put(self._young, key, entity)
                if len(self._young) > self.young_max:
                    self._young.popitem(last=False)
                    self.evicted += 1
                return
            self._young.pop(key, None)
        _put(self._grown, key, entity)
        if len(self._grown) > self.entities_max:
            self._grown.popitem(last=False)
            self.evicted += 1

    def _finding(
        self, event: Event, entity: Entity, score: float, slots: list[int], excess: list[float]
    ) -> Finding:
        kind, fields = KINDS[entity.kind], event.fields
        names = [feature.name for feature in kind.features]
        seen = [entity.counts[slot] / entity.weight for slot in slots]
        order = sorted(range(len(slots)), key=lambda at: -excess[at])[: TERMS + 1]
        top = [at for at in order if excess[at] > 0.5]
        new = [names[at] for at in top if seen[at] < 0.5]
        lead = next((name for name in words.LEADS if name in new), names[top[0]])
        p = max(entity.calibration.p(score), 1e-12)
        command = fields.get("ot.is_command") is True
        by_rarity = score > entity.threshold
        threshold = entity.threshold if by_rarity else entity.guard
        how = "sum of" if by_rarity else "a command its host never gave; sum of"
        return Finding(
            analytic=Analytic(
                id=f"model.surprise.{kind.id}",
                name="Surprise",
                kind="model",
                version=MODEL_VERSION,
                author="cityward",
                level="medium" if command else "low",
                description="What a device does now against all it ever did, in bits.",
            ),
            title=words.title(lead, fields),
            description=_sentence(kind, lead, event, entity, slots, lead in new),
            severity="medium" if command else "low",
            group=_group(fields),
            first_seen=event.time,
            last_seen=event.time,
            events=(event,),
            type="anomaly",
            confidence=round(min(0.9, 0.3 + 0.05 * -math.log10(p)), 2),
            why=Why(
                condition=f"{how} the {TERMS} largest terms; p = {p:.1g} in {entity.rows} rows, "
                f"{min(entity.held_rows, QUARANTINE)} in quarantine",
                checks=tuple(
                    Check(
                        selection="surprise",
                        field=names[at],
                        wanted=_usual(seen[at], entity),
                        saw=words.saw(names[at], fields),
                        held=True,
                        bits=round(excess[at], 2),
                    )
                    for at in top
                ),
                score=round(score, 2),
                threshold=round(threshold, 2),
                unit="bits",
            ),
            fields={name: fields[name] for name in SHOWN if name in fields},
        )

    def snapshot(self) -> bytes:
        """All entities: numbers in the header, counters as raw arrays."""
        header: dict[str, Any] = {"evicted": self.evicted, "unkeyed": self.unkeyed, "entities": []}
        arrays: list[bytes] = []
        for grown, table in ((False, self._young), (True, self._grown)):
            for key, entity in table.items():
                header["entities"].append([key, grown, *entity.header()])
                arrays += entity.arrays()
        return pack(self.name, VERSION, header, arrays)

    def restore(self, state: bytes) -> None:
        """Take a snapshot back; ValueError, and no change, if it is of another version."""
        header, arrays = unpack(state, self.name, VERSION)
        young: OrderedDict[str, Entity] = OrderedDict()
        grown: OrderedDict[str, Entity] = OrderedDict()
        try:
            entities = header["entities"]
            if len(arrays) != 4 * len(entities):
                raise ValueError("four arrays an entity are wanted")
            for at, (key, is_grown, *rest) in enumerate(entities):
                entity = Entity.of(rest, arrays[4 * at : 4 * at + 4])
                (grown if is_grown else young)[key] = entity
            evicted, unkeyed = int(header["evicted"]), int(header["unkeyed"])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"no snapshot of {self.name}: {error!r}") from error
        self._young, self._grown = young, grown
        self.evicted, self.unkeyed = evicted, unkeyed


def _put(table: OrderedDict[str, Entity], key: str, entity: Entity) -> None:
    if key in table:
        table.move_to_end(key)
    else:
        table[key] = entity


def _scale(entity: Entity) -> None:
    """Counts grow in weight instead of all old ones decaying; now and then all shrink at once."""
    counts = np.frombuffer(entity.counts, np.float32)
    counts *= np.float32(1.0 / entity.weight)
    entity.total /= entity.weight
    entity.weight = 1.0


def _widen(entity: Entity, slots: list[int], value: float, command: bool) -> None:
    """Remember the range of a point's values, and that of all commands of this function."""
    if not value_bin(value):
        return
    ranges = entity.ranges
    for key in (_point_slot(slots), -slots[CONTEXT]) if command else (_point_slot(slots),):
        known = ranges.get(key)
        if known is None:
            if len(ranges) < RANGES:
                ranges[key] = (value, value)
        elif value < known[0] or value > known[1]:
            ranges[key] = (min(known[0], value), max(known[1], value))


def _point_slot(slots: list[int]) -> int:
    return slots[10]


def _sentence(
    kind: EntityKind, lead: str, event: Event, entity: Entity, slots: list[int], new: bool
) -> str:
    fields = event.fields
    if kind.id == "ot_link":
        usual = entity.ranges.get(_point_slot(slots))
        if usual is None and fields.get("ot.is_command") is True:
            usual = entity.ranges.get(-slots[CONTEXT])
        return words.ot_sentence(lead, fields, entity.watched_s, new, usual)
    service, state = service_of(fields), conn_state_of(fields)
    return words.flow_sentence(lead, fields, service, state, entity.watched_s, new)


def _usual(seen: float, entity: Entity) -> str:
    total = entity.total / entity.weight
    if seen < 0.5:
        return f"seen 0 times in {entity.rows} rows"
    return f"usual share {100.0 * seen / max(total, 1.0):.2g} %"


def _group(fields: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(fields[name])) for name in GROUP if fields.get(name) is not None)


_NO_MEANS = array("d", bytes(8 * 32))
