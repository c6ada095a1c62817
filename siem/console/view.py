"""What templates need: links that carry the view, words for times and numbers, charts as numbers.

Nothing here makes markup: text from outside stays text until the template escapes it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from urllib.parse import quote, urlencode

from cityward.finding import SEVERITIES
from siem.store.protocol import Document, Range
from siem.store.query import quoted

PAGE_ROWS = 50
FOLD_CHARS = 240
"""Longer values are folded."""
SENTENCE_CHARS = 2_000
"""Longer sentences of findings are cut on pages; the JSON has all."""

_FIELD_NAME = re.compile(r"[A-Za-z0-9_@.\-]{1,100}")
_KEEP_ORDER = ("q", "f", "from", "to", "status", "group", "sort")


# Links: every view is one


@dataclass(frozen=True, slots=True)
class Chip:
    """A filter beside the query: one field, one value, wanted or not."""

    field: str
    value: str
    negated: bool = False

    @classmethod
    def read(cls, text: str) -> Chip | None:
        """A chip as it stands in the address bar; None if it is none."""
        negated = text.startswith("-")
        field, colon, value = text.removeprefix("-").partition(":")
        if not colon or not _FIELD_NAME.fullmatch(field):
            return None
        return cls(field, value, negated)

    @property
    def text(self) -> str:
        """The chip for the address bar."""
        return f"{'-' if self.negated else ''}{self.field}:{self.value}"

    @property
    def query(self) -> str:
        """The chip in words of the query bar."""
        said = f"{self.field}:{quoted(self.value)}"
        return f"NOT {said}" if self.negated else said


@dataclass(frozen=True, slots=True)
class View:
    """A page and what its address says; `link` gives the address of a neighbour."""

    path: str
    pairs: tuple[tuple[str, str], ...]

    def one(self, name: str, otherwise: str = "") -> str:
        """The last value of a name."""
        return next((value for key, value in reversed(self.pairs) if key == name), otherwise)

    def all(self, name: str) -> list[str]:
        """All values of a name, in order."""
        return [value for key, value in self.pairs if key == name]

    def link(self, path: str = "", drop: Iterable[str] = (), **changes: Any) -> str:
        """This view with changes; None drops a name, a list gives it several values."""
        gone = {*drop, *(name.rstrip("_") for name in changes)}
        pairs = [(key, value) for key, value in self.pairs if key not in gone]
        for name, value in changes.items():
            values = value if isinstance(value, list | tuple) else [value]
            pairs += [(name.rstrip("_"), str(one)) for one in values if one not in (None, "")]
        return (path or self.path) + (f"?{urlencode(pairs)}" if pairs else "")

    @property
    def chips(self) -> list[Chip]:
        """The filters beside the query."""
        return [chip for text in self.all("f") if (chip := Chip.read(text))]

    def without(self, chip: Chip) -> str:
        """The view with one chip taken away."""
        rest = [text for text in self.all("f") if text != chip.text]
        return self.link(drop=("offset", "open", "g", "id"), f=rest)

    def adding(self, chip: Chip, path: str = "", only: bool = False) -> str:
        """The view with one chip more; `only` drops the query and the other chips."""
        before = [] if only else [text for text in self.all("f") if text != chip.text]
        drop = ("offset", "open", "g", "id", "by", "value", *(("q",) if only else ()))
        return self.link(path, drop, f=[*before, chip.text])

    def include(self, field: str, value: Any, path: str = "") -> str:
        """The view narrowed to a value."""
        return self.adding(Chip(field, plain(value)), path)

    def exclude(self, field: str, value: Any, path: str = "") -> str:
        """The view without a value."""
        return self.adding(Chip(field, plain(value), negated=True), path)

    def only(self, field: str, value: Any, path: str = "") -> str:
        """Nothing but that value."""
        return self.adding(Chip(field, plain(value)), path, only=True)

    def hidden(self, *drop: str) -> list[tuple[str, str]]:
        """The view as hidden inputs of a form, in a fixed order."""
        kept = [pair for pair in self.pairs if pair[0] not in drop]
        place = {name: number for number, name in enumerate(_KEEP_ORDER)}
        return sorted(kept, key=lambda pair: place.get(pair[0], len(place)))


def query_of(view: View, *more: str) -> tuple[str, int]:
    """The query for the store, and by how many characters the bar's text is shifted in it."""
    parts = [part for part in (*(chip.query for chip in view.chips), *more) if part]
    bar = view.one("q").strip()
    if not parts:
        return bar, 0
    return " AND ".join([f"({bar})", *parts] if bar else parts), 1 if bar else 0


def plain(value: Any) -> str:
    """A value as the query bar writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return str(value)


def path_of(*parts: str) -> str:
    """A path whose parts may hold anything."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


# Text from outside

_HIDDEN_CATEGORIES = ("Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp")
_BLANK_LETTERS = "\u115f\u1160\u3164\uffa0\u2800\u180e\u034f\u17b4\u17b5"
_NAMED = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


def shown(value: Any) -> str:
    """A value for people: characters that hide, turn or break the line become marks."""
    if value is None or value == "":
        return "–"
    if isinstance(value, datetime):
        return clock(value, "full")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(shown(one) for one in value) or "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{shown(key)}: {shown(one)}" for key, one in value.items()) or "–"
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_mark, text))


def _mark(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if character == "\u00ad" or character in _BLANK_LETTERS or _hides(character):
        return f"⟨U+{ord(character):04X}⟩"
    return character


def _hides(character: str) -> bool:
    is_selector = 0xFE00 <= ord(character) <= 0xFE0F or 0xE0100 <= ord(character) <= 0xE01EF
    is_odd_space = unicodedata.category(character) == "Zs" and character not in " \u00a0\u202f"
    return is_selector or is_odd_space or unicodedata.category(character) in _HIDDEN_CATEGORIES


def brief(value: Any, most: int = 160) -> str:
    """A value for a heading or a cell: cut where it would fill the page."""
    said = shown(value)
    return said if len(said) <= most else f"{said[: most - 1]}…"


def middle(text: Any, keep: int = 4) -> str:
    """An id, shortened in the middle."""
    said = shown(text)
    return said if len(said) <= 2 * keep + 3 else f"{said[:keep]}…{said[-keep:]}"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a sentence; with a field it is a value and has a menu."""

    text: str
    field: str = ""
    value: str = ""


_HANDLES = (
    "source.ip",
    "destination.ip",
    "host.name",
    "user.name",
    "cw.asset.asset_id",
    "cw.asset.zone",
    "cw.source.zone",
    "cw.destination.zone",
    "ot.function.name",
    "ot.value",
    "source.domain",
    "url.full",
    "process.name",
)


def pieces(sentence: str, finding: Document) -> list[Piece]:
    """The sentence of a finding, cut where it names a value of the finding."""
    if len(sentence) > SENTENCE_CHARS:
        sentence = f"{sentence[:SENTENCE_CHARS]}…"
    values = {plain(finding[name]): name for name in reversed(_HANDLES) if finding.get(name)}
    values = {value: name for value, name in values.items() if len(value) > 2}
    if not values:
        return [Piece(shown(sentence))]
    words = "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))
    parts = re.split(rf"(?<![\w.:-])({words})(?![\w:-])", sentence)
    return [
        Piece(shown(part), values.get(part, ""), part) if number % 2 else Piece(shown(part))
        for number, part in enumerate(parts)
        if part
    ]


# Times and numbers


def time_of(value: Any) -> Any:
    """A time that was stored as text, as a time; anything else as it is."""
    if isinstance(value, str):
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            return value
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    return value


def clock(time: Any, form: str = "list", now: datetime | None = None) -> str:
    """A time in UTC: `list` is short and by age, `full` has all, `ms` the time of day."""
    time = time_of(time)
    if not isinstance(time, datetime):
        return "not known" if time is None else shown(time)
    time = time.astimezone(UTC)
    if form == "ms":
        return f"{time:%H:%M:%S}.{time.microsecond // 1000:03d}"
    if form == "full" or now is None:
        return f"{time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03d}"
    exact = f"{time:%H:%M:%S}" if form == "exact" else f"{time:%H:%M}"
    if time.date() == now.date():
        return exact
    if timedelta() <= now.date() - time.date() < timedelta(days=7):
        return f"{time:%a} {exact}"
    if time.year == now.year:
        return f"{time.day} {time:%b} {exact}"
    return f"{time:%Y-%m-%d}" if form == "list" else f"{time:%Y-%m-%d} {exact}"


def iso(time: Any) -> str:
    """A time for `datetime` attributes."""
    time = time_of(time)
    if not isinstance(time, datetime):
        return ""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ago(seconds: float) -> str:
    """A duration in at most two units."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86_400)
    if minutes < 60:
        return f"{minutes} min"
    if hours < 24:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    if days < 14:
        return f"{days} d {hours % 24} h" if hours % 24 else f"{days} d"
    return f"{days:,} d"


def size(count: float) -> str:
    """Bytes in the unit a person would choose."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def number(value: Any) -> str:
    """A number with thousands apart."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return shown(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"


def share(part: float, whole: float) -> str:
    """A part of a whole in per cent, for people."""
    per_cent = 100 * part / whole if whole else 0.0
    return "< 1 %" if 0 < per_cent < 1 else f"{per_cent:.0f} %"


def title_case(word: str) -> str:
    """A machine word as a person reads it: `in_progress` is `In progress`."""
    said = shown(word).replace("_", " ")
    return said[:1].upper() + said[1:]


# Charts: x in per cent, y in px, so that nothing is stretched


@dataclass(frozen=True, slots=True)
class Bar:
    """One rectangle of a chart."""

    kind: str
    x: str
    width: str
    y: str
    height: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A label on an axis; `x` in per cent or `y` in px."""

    at: str
    text: str
    anchor: str = "middle"


@dataclass(frozen=True, slots=True)
class Row:
    """One bucket of a chart for the table beside it."""

    start: datetime
    end: datetime
    counts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Chart:
    """A histogram, ready to be drawn by a template."""

    bars: Sequence[Bar]
    x_marks: Sequence[Mark]
    y_marks: Sequence[Mark]
    rows: Sequence[Row]
    since: datetime
    until: datetime
    height: int
    base: int
    step: str
    totals: Mapping[str, int]

    @property
    def total(self) -> int:
        """All that is drawn."""
        return sum(self.totals.values())


def chart(
    buckets: Sequence[tuple[datetime, Mapping[str, int]]],
    span: Range,
    order: Sequence[str],
    plot_px: int = 66,
    count: int = 48,
) -> Chart | None:
    """Stack the counts of each bucket, first of `order` at the bottom; None without any."""
    if not any(sum(counts.values()) for _, counts in buckets):
        return None
    step_s = _step_s(buckets, span, count)
    first = buckets[0][0] if span.since.year < 1990 else span.since
    last = max(buckets[-1][0] + timedelta(seconds=step_s), min(span.until, _far(buckets, step_s)))
    whole_s = max((last - first).total_seconds(), 1.0)
    top = _round_up(max(sum(counts.values()) for _, counts in buckets))
    px, base = (plot_px - 4) / top, plot_px + 8
    bars: list[Bar] = []
    for start, counts in buckets:
        x = 100 * (start - first).total_seconds() / whole_s
        width = max(100 * step_s / whole_s - 0.35, 0.15)
        y = float(base)
        for kind in order:
            if count_here := counts.get(kind, 0):
                height = max(count_here * px, 1.5)
                y -= height
                bars.append(
                    Bar(kind, f"{max(x, 0):.2f}%", f"{width:.2f}%", f"{y:.1f}", f"{height - 1:.1f}")
                )
    totals = {kind: sum(counts.get(kind, 0) for _, counts in buckets) for kind in order}
    step = timedelta(seconds=step_s)
    rows = [Row(start, start + step, counts) for start, counts in buckets if sum(counts.values())]
    y_marks = [
        Mark(f"{base - value * px:.0f}", number(value))
        for value in dict.fromkeys((0, top // 2, top))
    ]
    return Chart(
        bars,
        _x_marks(first, last),
        y_marks,
        rows,
        first,
        last,
        base + 18,
        base,
        _step_text(step_s),
        totals,
    )


def _step_text(step_s: float) -> str:
    """Length of a bucket; a hair over half an hour is still half an hour."""
    return ago(round(step_s / 60) * 60 if step_s >= 60 else step_s)


def _far(buckets: Sequence[tuple[datetime, Any]], step_s: float) -> datetime:
    return buckets[-1][0] + timedelta(seconds=step_s * max(len(buckets), 400))


def _step_s(buckets: Sequence[tuple[datetime, Any]], span: Range, count: int) -> float:
    gaps = [(after[0] - before[0]).total_seconds() for before, after in pairwise(buckets)]
    if gaps and min(gaps) > 0:
        return min(gaps)
    return (
        max((span.until - span.since).total_seconds() / count, 1.0)
        if span.since.year > 1990
        else 60.0
    )


def _round_up(value: int) -> int:
    """The next number that an axis may end with; even, so that its half is whole."""
    if value <= 4:
        return 4
    scale = 10 ** (len(str(value)) - 1)
    return next(
        (int(m * scale) for m in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if m * scale >= value),
        10 * scale,
    )


_X_STEPS_S = (
    1,
    5,
    15,
    60,
    300,
    600,
    1800,
    3600,
    10_800,
    21_600,
    43_200,
    86_400,
    604_800,
    2_592_000,
)


def _x_marks(first: datetime, last: datetime) -> list[Mark]:
    whole_s = (last - first).total_seconds()
    step_s = next((step for step in _X_STEPS_S if whole_s / step <= 8), whole_s / 4)
    at = first.timestamp() - first.timestamp() % step_s + step_s
    marks: list[Mark] = []
    day = first.date() if step_s < 86_400 else None
    while at < last.timestamp() and len(marks) < 12:
        time = datetime.fromtimestamp(at, UTC)
        x = 100 * (at - first.timestamp()) / whole_s
        if 2 <= x <= 98:
            marks.append(
                Mark(f"{x:.2f}%", _x_text(time, step_s, bool(marks) and day == time.date()))
            )
            day = time.date() if step_s < 86_400 else None
        at += step_s
    return marks


def _x_text(time: datetime, step_s: float, same_day: bool) -> str:
    if step_s >= 86_400:
        return f"{time.day} {time:%b}"
    text = f"{time:%H:%M:%S}" if step_s < 60 else f"{time:%H:%M}"
    return text if same_day else f"{text} {time:%a}"


def spark(counts: Sequence[int]) -> list[Bar]:
    """24 bars of one hour; the scale starts at 4, so that one event does not look like a storm."""
    top = max(4, *counts) if counts else 4
    bars = []
    for place, count_here in enumerate(counts[-24:]):
        height = max(18 * count_here / top, 0.6)
        kind = "now" if place == len(counts[-24:]) - 1 else ""
        bars.append(
            Bar(kind, f"{place * 100 / 24:.2f}%", "3.0%", f"{18 - height:.1f}", f"{height:.1f}")
        )
    return bars


def severity_glyph(severity: Any) -> str:
    """Name of glyph and colour of a severity or Sigma level."""
    name = str(severity)
    return "info" if name == "informational" or name not in SEVERITIES else name


def initials(name: str) -> str:
    """Two letters for a person."""
    words = [word for word in re.split(r"[\s._-]+", name) if word[:1].isalnum()]
    letters = words[0][:2] if len(words) == 1 else "".join(word[0] for word in words[:2])
    return letters.upper() or "?"


def moved(view: View, path: str) -> View:
    """The same view at another path."""
    return replace(view, path=path)
