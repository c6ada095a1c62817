"""`rule check`: what is wrong with rules, and what could be better, with file and line."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec

from cityward.documents import Document
from cityward.errors import RuleError
from cityward.fields import FIELDS
from detectors.sigma import attack, condition, never, validators
from detectors.sigma.load import load_folder
from detectors.sigma.rule import Absence, Correlation, Filter, Rule, RuleSet, Speaking
from detectors.sigma.samples import Samples, lacks, read_samples, samples_file
from detectors.sigma.sentence import fields_of
from detectors.sigma.written import misread

TITLE_MAX = 45
UNSEEN_MAX = 50
"""Of a text so many characters that nobody sees are told, and values that are misread."""
NODE_SAYS = frozenset(("inventory_change", "shared"))
"""Categories of events that the node or the hub itself makes: no record is behind them."""
HUB_SAYS = "shared"
"""Category of what the hub makes of shared findings, which bring their techniques with them."""
OURS = "cityward"
"""The taxonomy whose field names are those of the field table."""
_NUMBERS = re.compile(r":(\d+)(?::(\d+))?\Z")
"""Line and column of a place."""
_WORDS = frozenset({"count", "value", "timespan"})
"""What the sentence of a correlation has beside fields."""


class Problem(msgspec.Struct, frozen=True, order=True):
    """One line of what `rule check` says."""

    where: str
    """`file:line`, or `file:line:column`."""
    what: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.where}: {self.severity}: {self.what}"


def check(path: Path, *others: Path) -> list[Problem]:
    """Check a file or folder of rules.

    Args:
        path: What is checked.
        others: Files and folders that it may refer to, and that are not checked themselves.
    """
    return problems_of(load_folder(path, *others), path)


def problems_of(rules: RuleSet, path: Path, *, samples: bool = True) -> list[Problem]:
    """What is wrong with the loaded documents of a file or folder.

    Args:
        rules: With all that they refer to.
        path: Whose documents are meant.
        samples: Look at their files and at the samples beside them, too.
    """
    return sorted(set(_problems(rules, path, samples=samples)), key=_place)


def _place(one: Problem) -> tuple[str, list[int], Problem]:
    """By file, then by line and column as numbers: line 4 stands before line 39."""
    file, *numbers = _NUMBERS.split(one.where)
    return file, [int(number) for number in numbers if number], one


def unseen(text: str, file: str) -> list[Problem]:
    """What one does not see in a text.

    Characters that are invisible, or that turn the line they stand in (Unicode, TR 36), and values
    that are read as something else than what stands there.
    """
    bare = text.removeprefix("\ufeff")
    read = (
        Problem(f"{file}:{one.line}:{one.column}", one.what, "warning") for one in misread(bare)
    )
    return [*islice(_unseen(bare, file), UNSEEN_MAX), *islice(read, UNSEEN_MAX)]


def _unseen(text: str, file: str) -> Iterator[Problem]:
    for number, line in enumerate(text.split("\n"), 1):
        for one in dict.fromkeys("" if line.isprintable() else line):
            if not one.isprintable() and one not in "\t\r":
                name = unicodedata.name(one, "a control character").lower()
                what = f"an invisible character U+{ord(one):04X}, {name}"
                yield Problem(f"{file}:{number}", what, "warning")


def lacking(id: str, rules: RuleSet, samples: Samples) -> list[str]:
    """What is missing for the samples of a rule to be a proof, in words; see `lacks`."""
    return lacks(samples, has_records=id not in _said_by(rules, NODE_SAYS))


def _problems(rules: RuleSet, path: Path, *, samples: bool) -> Iterator[Problem]:
    is_meant = _below(path)
    for error in rules.refused:
        if is_meant(error.where.rpartition(":")[0] or error.where):
            yield Problem(error.where, error.what)
    ours = _of_ours(rules)
    said = _said_by(rules, NODE_SAYS)
    hub = _said_by(rules, frozenset((HUB_SAYS,)))
    for one in rules.speaking():
        if is_meant(one.document.file):
            yield from _head(one)
            yield from _attack(one, is_of_hub=one.id in hub)
            yield from _names(one, one.id in ours)
            if samples:
                yield from _samples(one, has_records=one.id not in said)
    for one in rules.rules:
        if is_meant(one.document.file):
            yield from _unused(one)
            yield from _metadata(one)
            yield from _never(one.document, never.of_detection(one.document.value, "detection"))
    for correlation in rules.correlations:
        if is_meant(correlation.document.file):
            yield from _never(correlation.document, never.of_correlation(correlation))
    mine = [one.document for one in rules.speaking() if is_meant(one.document.file)]
    if samples:
        hiding = [one.document for one in rules.filters if is_meant(one.document.file)]
        for file in dict.fromkeys(one.file for one in (*mine, *hiding)):
            yield from unseen(Path(file).read_text(encoding="utf-8"), file)
    for issue in validators.issues_of(mine):
        yield Problem(issue.where, issue.what, "warning")
    for tuning in rules.filters:
        if is_meant(tuning.document.file):
            yield from _filter(tuning)
            yield from _never(tuning.document, never.of_detection(tuning.document.value, "filter"))


def _below(path: Path) -> Callable[[str], bool]:
    """Whether a file is the path or in it; by its letters, as thousands of files are asked."""
    if path == Path():
        return lambda file: not os.path.isabs(file)
    name, folder = str(path), os.path.join(path, "")
    return lambda file: file == name or file.startswith(folder)


def _of_ours(rules: RuleSet) -> frozenset[str]:
    """What uses the field table: rules that say so, and what builds on them alone."""
    ours = {one.id for one in rules.rules if one.taxonomy == OURS}
    for correlation in rules.correlations:
        if ours.issuperset(correlation.rules):
            ours.add(correlation.id)
    for absence in rules.absences:
        if ours.issuperset((absence.trigger, absence.expected)):
            ours.add(absence.id)
    return frozenset(ours)


def _said_by(rules: RuleSet, categories: frozenset[str]) -> frozenset[str]:
    """Rules of these categories, and correlations that build on them alone."""
    said = {one.id for one in rules.rules if one.logsource.category in categories}
    for correlation in rules.correlations:
        if said.issuperset(correlation.rules):
            said.add(correlation.id)
    return frozenset(said)


def _head(one: Speaking) -> Iterator[Problem]:
    value, where = one.document.value, one.document.where
    for name in ("id", "level"):
        if value.get(name) is None:
            yield Problem(where(), f"`{name}` is missing")
    for name in ("description", "falsepositives", "author"):
        if not value.get(name):
            yield Problem(where(), f"`{name}` is missing", "warning")
    if len(one.analytic.name) > TITLE_MAX:
        what = f"the title has {len(one.analytic.name)} characters, more than {TITLE_MAX}"
        yield Problem(where("title"), what, "warning")


def _attack(one: Speaking, *, is_of_hub: bool) -> Iterator[Problem]:
    where, tags = one.document.where("tags"), one.analytic.tags
    meaning = attack.read_tags(tags)
    for word in meaning.unknown:
        yield Problem(where, f"{word} is unknown to ATT&CK {_versions()}")
    for tag in tags:
        technique = tag.rpartition("attack.")[2].upper()
        for framework in attack.table().values():
            if now := framework.replaced.get(technique):
                yield Problem(where, f"{technique} is {now} now", "warning")
    if not meaning.techniques and not is_of_hub:
        yield Problem(where, "no ATT&CK technique is named", "warning")


def _versions() -> str:
    return " and ".join(f"{name} {one.version}" for name, one in attack.table().items())


def _names(one: Speaking, ours: bool) -> Iterator[Problem]:
    if not ours:
        return
    if not one.own.sentence:
        where = one.document.where("cityward")
        yield Problem(where, "no sentence of its own (cityward: {sentence: …})", "warning")
    template = sorted(set(fields_of(one.own.sentence)))
    if isinstance(one, Rule):
        yield from _unknown(one, sorted(one.detection.fields()), "detection")
    else:
        template = [name for name in template if name not in {*_WORDS, *one.group_by}]
        yield from _unknown(one, _group_fields(one), "correlation", "group-by")
    yield from _unknown(one, template, "cityward", "sentence")


def _filter(one: Filter) -> Iterator[Problem]:
    if not owner_of(one):
        what = "the filter has no owner: name under `author` who answers for it"
        yield Problem(one.document.where("author"), what)
    if one.document.value.get("taxonomy") == OURS:
        yield from _unknown(one, sorted(one.detection.fields()), "filter")


def owner_of(one: Filter) -> str:
    """Who answers for a filter; empty: nobody does."""
    return str(one.document.value.get("author") or "").strip()


def _group_fields(one: Correlation | Absence) -> list[str]:
    if isinstance(one, Absence):
        return list(one.group_by)
    aliased = [field for mapping in one.aliases.values() for field in mapping.values()]
    return [name for name in one.group_by if name not in one.aliases] + aliased + list(one.field)


def _unknown(one: Speaking | Filter, names: list[str], *place: str) -> Iterator[Problem]:
    for name in names:
        if name not in FIELDS and not name.startswith("cw.vendor."):
            where = one.document.where(*_place_of(one, name, place))
            yield Problem(where, f"{name} is no field of the table")


def _place_of(one: Speaking | Filter, name: str, place: tuple[str, ...]) -> tuple[str | int, ...]:
    """Where the field stands first, or at least its section."""
    for key in one.document.lines:
        if key[: len(place)] == place and key and str(key[-1]).split("|")[0] == name:
            return key
    return place


def _unused(rule: Rule) -> Iterator[Problem]:
    used = {name for _, read in rule.detection.conditions for name, _ in condition.named(read)}
    for name in rule.detection.selections:
        if name not in used:
            where = rule.document.where("detection", name)
            yield Problem(where, f"no condition uses the selection {name}", "warning")


def _never(document: Document, claims: Iterable[never.Claim]) -> Iterator[Problem]:
    for one in claims:
        yield Problem(document.where(*one.place), one.what, "warning")


STATUS = frozenset({"stable", "test", "experimental", "deprecated", "unsupported"})
_TEXTS = ("title", "description", "author", "license", "taxonomy")
_LISTS = ("references", "tags", "falsepositives", "fields", "scope", "related")
_DAYS = ("date", "modified")


def _metadata(rule: Rule) -> Iterator[Problem]:
    """What says nothing of what is detected, and is still not as the specification has it."""
    value, where = rule.document.value, rule.document.where
    for name in _TEXTS:
        if name in value and not isinstance(value[name], str):
            yield Problem(where(name), f"{name} is no text", "warning")
    for name in _LISTS:
        if name in value and not isinstance(value[name], list):
            yield Problem(where(name), f"{name} is no list", "warning")
    for name in _DAYS:
        if name in value and not isinstance(value[name], date):
            yield Problem(where(name), f"{name} is no day like 2026-01-31", "warning")
    if "status" in value and value["status"] not in STATUS:
        wanted = ", ".join(sorted(STATUS))
        yield Problem(where("status"), f"{value['status']!r} is none of {wanted}", "warning")


def _samples(one: Speaking, *, has_records: bool) -> Iterator[Problem]:
    file = samples_file(Path(one.document.file))
    try:
        samples = read_samples(file)
    except RuleError as error:
        yield Problem(error.where, error.what)
        return
    for what in lacks(samples, has_records=has_records):
        yield Problem(str(file), what)
