"""Sigma files in, rules out; what cannot be read is named with file, line and reason.

This is an own reader of the detection section. pySigma, the reference, takes 13 s for SigmaHQ's
3,728 rules and misreads or refuses some of Sigma 2.1 (ranges in correlations, `utf16le`, filters
that bind to nothing); the tests hold both against each other.

References:
    Sigma specification 2.1.0: rules, correlation rules, filters.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from cityward import documents
from cityward.documents import Document
from cityward.errors import RuleError
from cityward.event import LogSource
from cityward.finding import Analytic, Severity
from detectors.sigma import attack, bind, condition
from detectors.sigma.compiled import Compiled, FileRules, Loaded, key_of, undisturbed
from detectors.sigma.condition import Condition
from detectors.sigma.lines import Budget, compile_item, needs_of
from detectors.sigma.matchers import Item, Placeholders
from detectors.sigma.pipelines import Every, Pipelines
from detectors.sigma.rule import (
    Absence,
    Correlation,
    CorrelationType,
    Detection,
    Filter,
    Own,
    Rule,
    RuleSet,
    Selection,
    Several,
)
from detectors.sigma.window import KEPT_MAX

Progress = Callable[[int, int], None]
"""Told how many are done, and of how many."""
TOLD_EVERY = 100

SAMPLES_SUFFIX = ".test.yml"
_NOT_RULES = "pipelines"
"""Folder of field mappings, which are no rules."""

LEVELS = ("informational", "low", "medium", "high", "critical")
_LOGSOURCE_KEYS = frozenset({"category", "product", "service", "definition"})
_OPERATORS = ("lt", "lte", "gt", "gte", "eq", "neq")
_TIMESPAN = re.compile(r"(\d{1,9})([smhdwMy])")
_UNIT_S = {
    "s": 1,
    "m": 60,
    "h": 3600,
    "d": 86_400,
    "w": 604_800,
    "M": 2_629_746,
    "y": 31_556_952,
}
"""A month and a year are their mean lengths (Sigma specification 2.1.0, correlation, timespan)."""


def load_folder(
    *folders: Path,
    over: Mapping[str, str] | None = None,
    compiled: Path | None = None,
    pipelines: Sequence[Path] = (),
    progress: Progress | None = None,
) -> RuleSet:
    """Load every `.yml` below folders, samples left out; faults are collected, the rest loads.

    Args:
        folders: Folders, or files.
        over: Texts by name; a document of them stands in the place of that of a file.
        compiled: A file of our own that keeps what was read, for the next start.
        pipelines: Processing pipelines of pySigma that translate rules of others.
        progress: Told how many files are read, and of how many.
    """
    files = read_folder(*folders, compiled=compiled, pipelines=pipelines, progress=progress)
    return tie(files, over or {}, pipelines=pipelines)


def read_folder(
    *folders: Path,
    compiled: Path | None = None,
    pipelines: Sequence[Path] = (),
    progress: Progress | None = None,
) -> list[FileRules]:
    """Read every `.yml` below folders and tie nothing yet; see `load_folder` and `tie`."""
    translating = Pipelines(pipelines)
    with undisturbed():
        files = [file for folder in folders for file in _names(folder)]
        kept = Compiled(compiled) if compiled is not None else None
        found: list[FileRules] = []
        for number, file in enumerate(files):
            if progress is not None and number % TOLD_EVERY == 0:
                progress(number, len(files))
            found.append(_file_rules(file, kept, translating))
        if kept is not None:
            kept.save()
        if progress is not None:
            progress(len(files), len(files))
    return found


def tie(
    files: Sequence[FileRules], over: Mapping[str, str], *, pipelines: Sequence[Path] = ()
) -> RuleSet:
    """Tie together what files gave, with texts by name over it; takes milliseconds.

    A document of a text stands in the place of that of a file. Faults are collected.
    """
    translating = Pipelines(pipelines if over else ())
    with undisturbed():
        texts = [_rules_of(text, name, translating) for name, text in over.items()]
        newer = [one for given in texts for one in given.found]
        taken = {one.id for one in newer}
        older = [one for given in files for one in given.found if one.id not in taken]
        # An unusable pipeline is one fault, however many rules there are.
        faults = dict.fromkeys(one for given in (*files, *texts) for one in given.refused)
        return bind.bind([*older, *newer], [RuleError(*one) for one in faults])


def load_text(text: str | bytes, file: str = "<text>") -> RuleSet:
    """Load the documents of a text."""
    given = _rules_of(text, file, Pipelines(()))
    return bind.bind(given.found, given.faults())


def rule_files(folder: Path) -> Iterator[Path]:
    """The files of a folder that hold rules, in order of their names; of a file, itself."""
    yield from map(Path, _names(folder))


def _names(folder: Path) -> Iterable[str]:
    """The same without a `Path` of each: there may be thousands."""
    return (str(folder),) if folder.is_file() else _names_below(str(folder))


def _names_below(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as found:
            entries = sorted((one for one in found if one.name[0] != "."), key=lambda one: one.name)
    except OSError:
        return
    for one in entries:
        name = one.name.lower()
        is_rule = name.endswith((".yml", ".yaml")) and not name.endswith(SAMPLES_SUFFIX)
        if is_rule and (one.is_file(follow_symlinks=False) or os.path.isfile(one.path)):
            yield one.path.removeprefix("./")
    for one in entries:
        if one.name != _NOT_RULES and one.is_dir(follow_symlinks=False):
            yield from _names_below(one.path)


def _file_rules(file: str, kept: Compiled | None, pipelines: Pipelines) -> FileRules:
    try:
        data = _content(file)
    except OSError as error:
        return FileRules((), ((f"cannot be read: {error.strerror}", file, "Mend its rights."),))
    if kept is None:
        return _rules_of(data, file, pipelines)
    key = key_of(file, data, pipelines.fingerprint)
    given = kept.get(key)
    if given is None:
        given = _rules_of(data, file, pipelines)
        kept.put(key, given)
    return given


def _content(file: str) -> bytes:
    """What is in a file, no more than what would be refused; as bare as can be, of thousands."""
    handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(handle, documents.MAX_BYTES + 1)
        while data and (more := os.read(handle, documents.MAX_BYTES + 1 - len(data))):
            data += more
        return data
    finally:
        os.close(handle)


def _rules_of(data: str | bytes, file: str, pipelines: Pipelines) -> FileRules:
    """Read the documents of a file; each that cannot be read is named, the rest stays."""
    found: list[Loaded] = []
    refused: list[RuleError] = []
    try:
        read = documents.parse(data, file)
    except RuleError as error:
        read = []
        refused.append(error)
    for document in read:
        if document.value is None:
            continue
        try:
            one = read_document(document)
            translated = pipelines.translated(document)
            found.append(one if translated is document else read_document(translated))
        except RuleError as error:
            refused.append(error)
    return FileRules(tuple(found), tuple((one.what, one.where, one.todo) for one in refused))


def read_document(document: Document) -> Loaded:
    """Read one Sigma document.

    Raises:
        RuleError: it is no Sigma; file, line and reason are named.
    """
    value = document.value
    if not isinstance(value, dict):
        raise _fault(document, "the document is no mapping")
    if bad := [key for key in value if not isinstance(key, str)]:
        raise _fault(document, f"attribute {bad[0]!r} is no text")
    if "action" in value:
        raise _fault(document, "`action` collections are deprecated", "action")
    kinds = [kind for kind in _READERS if kind in value]
    if len(kinds) != 1:
        what = " and ".join(kinds) or "no detection, correlation, filter or cw_absence"
        raise _fault(document, f"the document has {what}", *kinds[:1])
    return _READERS[kinds[0]](document)


# --- Rules and filters -------------------------------------------------------------------------


def _rule(document: Document) -> Rule:
    return Rule(
        name=_text(document, "name"),
        logsource=_logsource(document),
        detection=compile_detection(document, "detection"),
        needs=_needs(document, "detection"),
        analytic=_analytic(document, "rule"),
        own=_own(document),
        taxonomy=_text(document, "taxonomy"),
        document=document,
    )


def _filter(document: Document) -> Filter:
    section = _mapping(document, "filter")
    if not isinstance(section.get("condition"), str):
        raise _fault(document, "a filter has one condition", "filter", "condition")
    if "rules" not in section:
        raise _fault(document, "`rules` is missing: ids or names, or any", "filter")
    rules = section["rules"]
    if rules == []:
        raise _fault(document, "`rules` is empty; name some, or any", "filter", "rules")
    anyone = isinstance(rules, str) and rules.lower() == "any"
    return Filter(
        id=_id(document),
        title=_title(document),
        logsource=_logsource(document),
        rules=() if anyone else _texts(document, rules, "filter", "rules"),
        detection=compile_detection(document, "filter"),
        needs=_needs(document, "filter"),
        own=_own(document),
        document=document,
    )


def compile_detection(
    document: Document, key: str, placeholders: Placeholders | None = None
) -> Detection:
    """Read the section `detection` or `filter` of a document.

    Args:
        document: The whole document.
        key: Name of the section.
        placeholders: Values of `%name%`; None checks a section that has some with stand-ins.

    Raises:
        RuleError: a fault, with its line.
        KeyError: a placeholder that is not given.
    """
    section = _mapping(document, key)
    if "timeframe" in section:
        raise _fault(
            document, "timeframe is deprecated; write a correlation document", key, "timeframe"
        )
    if "condition" not in section:
        raise _fault(document, "the condition is missing", key)
    others = {"condition"} | ({"rules"} if key == "filter" else set())
    names = [name for name in section if name not in others]
    if bad := [name for name in names if not isinstance(name, str)]:
        raise _fault(document, f"selection {bad[0]!r} is no text", key)
    reader = _Selections(document, placeholders)
    selections = {name: reader.read(section[name], (key, name)) for name in names}
    given = section["condition"]
    texts = _texts(document, given, key, "condition")
    if not texts:
        raise _fault(document, "the list of conditions is empty", key, "condition")
    read = [(text, _condition(document, text, names, (key, "condition"))) for text in texts]
    return Detection(selections, tuple(read))


def _condition(
    document: Document, text: str, names: Sequence[str] | None, place: documents.Place
) -> Condition:
    try:
        return condition.parse(text, names)
    except ValueError as error:
        raise _fault(document, str(error), *place) from error


_NESTED = (dict, list, Every)


class _Selections:
    """Reads the selections of one document."""

    def __init__(self, document: Document, placeholders: Placeholders | None) -> None:
        self.document = document
        self.placeholders = placeholders
        self.budget = Budget()

    def read(self, value: Any, place: documents.Place) -> Selection:
        """A mapping is an "and", a list an "or", words alone are keywords."""
        if isinstance(value, dict) and value:
            parts = [self._item(key, inner, (*place, key)) for key, inner in value.items()]
            return parts[0] if len(parts) == 1 else Several(True, tuple(parts))
        is_every = isinstance(value, Every)
        if is_every or (isinstance(value, list) and any(isinstance(one, _NESTED) for one in value)):
            several = [self.read(one, (*place, number)) for number, one in enumerate(value)]
            return Several(is_every, tuple(several))
        if value is None or value in ({}, []):
            raise _fault(self.document, "the selection is empty", *place)
        return self._item(None, value, place)

    def _item(self, key: Any, value: Any, place: documents.Place) -> Item:
        if key is not None and not isinstance(key, str):
            raise _fault(self.document, f"field {key!r} is no text", *place)
        try:
            return compile_item(key, value, self.placeholders, self.budget)
        except ValueError as error:
            raise _fault(self.document, str(error), *place) from error


def _needs(document: Document, key: str) -> frozenset[str]:
    return frozenset(_walk_needs(document.value[key]))


def _walk_needs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, dict):
                yield from _walk_needs(inner)
            else:
                yield from needs_of(str(key), inner)
                yield from _walk_needs(inner)
    elif isinstance(value, (list, Every)):
        for inner in value:
            yield from _walk_needs(inner)


def _logsource(document: Document) -> LogSource:
    section = _mapping(document, "logsource")
    for key, value in section.items():
        if key not in _LOGSOURCE_KEYS:
            raise _fault(document, f"{key!r} is no part of a log source", "logsource", key)
        if not isinstance(value, str):
            raise _fault(document, f"{value!r} is no text", "logsource", key)
    parts = {key: section.get(key, "").lower() for key in ("category", "product", "service")}
    if not any(parts.values()):
        raise _fault(document, "the log source names no category, product or service", "logsource")
    return LogSource(**parts)


# --- Correlations and absences -----------------------------------------------------------------


def _correlation(document: Document) -> Correlation:
    section = _mapping(document, "correlation")
    known = {"type", "rules", "timespan", "group-by", "aliases", "condition", "generate"}
    _only(document, section, known, "correlation")
    kind = str(section.get("type"))
    if kind not in get_args(CorrelationType):
        raise _fault(document, f"{kind!r} is no type of correlation", "correlation", "type")
    limits, field, percentile, expression = _correlation_condition(document, section, kind)
    rules = _texts(document, section.get("rules", []), "correlation", "rules")
    if not rules and expression is not None:
        rules = tuple(dict.fromkeys(name for name, _ in condition.named(expression)))
    if not rules:
        raise _fault(document, "the correlation names no rules", "correlation")
    if not limits and expression is None:
        limits = (("gte", float(len(set(rules)))),)
    generate = section.get("generate", False)
    if not isinstance(generate, bool):
        raise _fault(document, f"{generate!r} is no true or false", "correlation", "generate")
    shown = section.get("condition", f"all of {', '.join(rules)}")
    return Correlation(
        name=_text(document, "name"),
        type=cast(CorrelationType, kind),
        rules=rules,
        timespan_s=_timespan(document, section.get("timespan"), "correlation", "timespan"),
        group_by=_texts(document, section.get("group-by", []), "correlation", "group-by"),
        aliases=_aliases(document, section.get("aliases", {})),
        limits=limits,
        field=field,
        percentile=percentile,
        expression=expression,
        generate=generate,
        condition_text=shown if isinstance(shown, str) else _limits_text(kind, shown),
        analytic=_analytic(document, "correlation"),
        own=_own(document),
        document=document,
    )


_Condition = tuple[tuple[tuple[str, float], ...], tuple[str, ...], float | None, Condition | None]


def _correlation_condition(document: Document, section: Any, kind: str) -> _Condition:
    given = section.get("condition")
    place = ("correlation", "condition")
    temporal = kind.startswith("temporal")
    if isinstance(given, str):
        if not temporal:
            raise _fault(document, "a boolean condition needs a temporal type", *place)
        expression = _condition(document, given, None, place)
        named = {name for name, _ in condition.named(expression)}
        listed = set(_texts(document, section.get("rules", []), "correlation", "rules"))
        if listed and listed != named:
            raise _fault(document, f"rules and condition differ in {min(listed ^ named)}", *place)
        return (), (), None, expression
    if given is None and temporal:
        return (), (), None, None
    if not isinstance(given, dict):
        raise _fault(document, "the condition of the correlation is missing", *place)
    _only(document, given, {*_OPERATORS, "field", "percentile"}, *place)
    limits = tuple(
        (name, _number(document, given[name], *place, name)) for name in given if name in _OPERATORS
    )
    if not limits:
        raise _fault(document, f"the condition needs one of {', '.join(_OPERATORS)}", *place)
    if kind in ("event_count", "value_count") and any(most > KEPT_MAX for _, most in limits):
        raise _fault(document, f"nothing is counted further than {KEPT_MAX}", *place)
    field = _texts(document, given.get("field", []), *place, "field")
    if kind.startswith("value_") and not field:
        raise _fault(document, f"{kind} needs a field", *place)
    percentile = given.get("percentile")
    if percentile is not None:
        percentile = _number(document, percentile, *place, "percentile")
        if kind != "value_percentile" or not 0 <= percentile <= 100:
            raise _fault(document, "percentile is 0 to 100, of value_percentile", *place)
    return limits, field, percentile, None


def _limits_text(kind: str, given: Mapping[str, Any]) -> str:
    return f"{kind} {' '.join(f'{name}: {value}' for name, value in given.items())}"


def _aliases(document: Document, given: Any) -> dict[str, dict[str, str]]:
    good = isinstance(given, dict) and all(
        isinstance(mapping, dict)
        and all(isinstance(part, str) for pair in mapping.items() for part in pair)
        for mapping in given.values()
    )
    if not good:
        raise _fault(document, "aliases map a name to fields by rule", "correlation", "aliases")
    return cast(dict[str, dict[str, str]], given)


def _absence(document: Document) -> Absence:
    section = _mapping(document, "cw_absence")
    _only(document, section, {"trigger", "expected", "within", "before", "by"}, "cw_absence")
    for name in ("trigger", "expected"):
        if not isinstance(section.get(name), str):
            raise _fault(document, f"`{name}` names one rule", "cw_absence", name)
    within_s = _timespan(document, section.get("within"), "cw_absence", "within", least=0)
    before = section.get("before", section.get("within"))
    return Absence(
        name=_text(document, "name"),
        trigger=section["trigger"],
        expected=section["expected"],
        within_s=within_s,
        before_s=_timespan(document, before, "cw_absence", "before", least=0),
        group_by=_texts(document, section.get("by", []), "cw_absence", "by"),
        analytic=_analytic(document, "correlation"),
        own=_own(document),
        document=document,
    )


def _timespan(document: Document, given: Any, *place: str, least: int = 1) -> int:
    found = _TIMESPAN.fullmatch(given) if isinstance(given, str) else None
    if found is None or int(found[1]) < least:
        raise _fault(document, f"{given!r} is no time span like 90s, 5m, 1h or 7d", *place)
    return int(found[1]) * _UNIT_S[found[2]]


_READERS: dict[str, Callable[[Document], Loaded]] = {
    "detection": _rule,
    "correlation": _correlation,
    "filter": _filter,
    "cw_absence": _absence,
}


# --- What every document has -------------------------------------------------------------------


def _analytic(document: Document, kind: str) -> Analytic:
    value = document.value
    title = _title(document)
    level = value.get("level", "medium")
    if level not in LEVELS:
        raise _fault(document, f"{level!r} is no level", "level")
    tags = _texts(document, value.get("tags") or [], "tags")
    meaning = attack.read_tags(tags)
    return Analytic(
        id=_id(document),
        name=title,
        kind="correlation" if kind == "correlation" else "rule",
        version=_version(value),
        level=cast(Severity, level),
        status=_text(document, "status") or "experimental",
        author=_text(document, "author"),
        license=_text(document, "license"),
        references=_texts(document, value.get("references") or [], "references"),
        techniques=meaning.techniques,
        tactics=meaning.tactics,
        framework=meaning.framework,
        tags=tags,
        falsepositives=_texts(document, value.get("falsepositives") or [], "falsepositives"),
        description=_text(document, "description").strip(),
    )


def _title(document: Document) -> str:
    title = _text(document, "title")
    if not title:
        raise _fault(document, "the title is missing", "title")
    return title


def _version(value: Any) -> str:
    """Content hash: spaces and comments do not count, everything else does."""
    try:
        data = msgspec.json.encode(value, order="sorted", enc_hook=str)
    except (TypeError, ValueError):  # YAML knows keys and characters that JSON does not
        data = _spelt(value).encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()[:16]


def _spelt(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{','.join(sorted(f'{_spelt(k)}:{_spelt(v)}' for k, v in value.items()))}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{','.join(sorted(map(_spelt, value)))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_spelt, value))}]"
    return ascii(value)


def _id(document: Document) -> str:
    given = document.value.get("id")
    if given is None:
        return str(uuid5(NAMESPACE_URL, f"sigma:{_version(document.value)}"))
    try:
        return str(UUID(given))
    except (ValueError, AttributeError, TypeError) as error:
        raise _fault(document, f"{given!r} is no UUID", "id") from error


def _own(document: Document) -> Own:
    try:
        return msgspec.convert(document.value.get("cityward", {}), Own)
    except (ValueError, TypeError) as error:
        raise _fault(document, str(error), "cityward") from error


def _text(document: Document, key: str) -> str:
    value = document.value.get(key)
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)):
        raise _fault(document, f"{key} is no text", key)
    return str(value)


def _texts(document: Document, given: Any, *place: str) -> tuple[str, ...]:
    values = given if isinstance(given, list) else [given]
    for value in values:
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise _fault(document, f"{value!r} is no text", *place)
    return tuple(str(value) for value in values)


def _number(document: Document, value: Any, *place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _fault(document, f"{value!r} is no number", *place)
    return float(value)


def _mapping(document: Document, key: str) -> dict[Any, Any]:
    value = document.value.get(key)
    if not isinstance(value, dict):
        raise _fault(document, f"`{key}` is missing or no mapping", key)
    return value


def _only(document: Document, section: Mapping[Any, Any], known: set[str], *place: str) -> None:
    for key in section:
        if key not in known:
            raise _fault(document, f"{key!r} is not known here", *place, str(key))


def _fault(document: Document, what: str, *place: str | int) -> RuleError:
    return RuleError(what, document.where(*place), "Mend the document.")
