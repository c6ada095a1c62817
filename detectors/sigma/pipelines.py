"""Processing pipelines of pySigma: rules of others in the words of our events.

A pipeline is a YAML file that renames fields, changes log sources, adds conditions, rewrites
values. pySigma itself applies it; what it gives is put back into the form of a Sigma document, and
lines that it left alone stay as they were written. So everything behind this file reads one
language. What a pipeline says of queries (`postprocessing`, `finalizers`) has no meaning here.

Documents that say `taxonomy: cityward` are in our words already and are left alone; so are
correlations that say nothing of their taxonomy but have a `cityward` section, and absences.

References:
    pySigma, "Processing Pipelines". pySigma is LGPL-2.1, an extra, and loaded when it is needed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from cityward import documents
from cityward.documents import Document
from cityward.errors import RuleError
from detectors.sigma.texts import is_written_out_far

OURS = "cityward"
"""The taxonomy whose field names are those of the field table."""

_INSTALL = "Install it: pip install 'cityward[pipelines]'."
_SECTIONS = {"detection": frozenset({"condition"}), "filter": frozenset({"condition", "rules"})}
"""Where selections stand, and what else stands there."""


class Every(tuple[Any, ...]):
    """Alternatives of which each must hold: what a field with several names becomes.

    Sigma has lists of mappings, of which one must hold, and no way to write the other.
    """

    __slots__ = ()


class Pipelines:
    """Pipelines in the order given; without any, documents stay as they are.

    A pipeline that cannot be used refuses every document that it would have translated.

    Args:
        files: Pipelines in YAML.
    """

    def __init__(self, files: Sequence[Path] = ()) -> None:
        self._files = files
        self._fault: RuleError | None = None
        self._texts: list[str] = []
        try:
            self._texts = [_text_of(file) for file in files]
        except RuleError as error:
            self._fault = error
        self.fingerprint = self._fingerprint() if files else b""
        """What a translation depends on."""

    def _fingerprint(self) -> bytes:
        digest = hashlib.blake2b(_version().encode(), digest_size=16)
        for text in [str(self._fault), *self._texts]:
            digest.update(hashlib.blake2b(text.encode()).digest())
        return digest.digest()

    @cached_property
    def _pipeline(self) -> Any:
        if self._fault is not None:
            raise self._fault
        try:
            parts = [_read(file, text) for file, text in zip(self._files, self._texts, strict=True)]
        except RuleError as error:
            self._fault = error
            raise
        return sum(parts[1:], parts[0])

    def translated(self, document: Document) -> Document:
        """A document of others as our rules write it; another one as it is.

        Raises:
            RuleError: pySigma cannot read the document, or the pipeline refuses it.
        """
        value = document.value
        if not self._files or not isinstance(value, dict) or _is_ours(value):
            return document
        pipeline = self._pipeline
        section = next((one for one in _SECTIONS if isinstance(value.get(one), dict)), None)
        if section is not None and is_written_out_far(value[section]):
            what = "the pipelines cannot be applied: the dashes stand for too many texts"
            raise RuleError(what, document.where(section), "Write fewer of them into one text.")
        try:
            if section is not None:
                changed = _rule(pipeline, value, section)
            elif isinstance(value.get("correlation"), dict):
                changed = {"correlation": _correlation(pipeline, value["correlation"])}
            else:
                changed = {}
        except Exception as error:  # pySigma checks little of what it is given
            what = f"the pipelines cannot be applied: {error}"
            raise RuleError(what, document.where(section or "correlation"), _MEND) from error
        if not changed:
            return document
        return Document({**value, **changed}, document.file, document.lines)


def _rule(pipeline: Any, value: Mapping[str, Any], section: str) -> dict[str, Any]:
    from sigma.rule import SigmaRule

    given, apart = value[section], _SECTIONS[section]
    detection = {name: one for name, one in given.items() if name not in apart}
    rule = SigmaRule.from_dict(
        {
            **{name: value[name] for name in _KNOWN if name in value},
            "title": str(value.get("title", "")),
            "logsource": value.get("logsource"),
            "detection": {**_read_as_wide(detection), "condition": given.get("condition")},
        }
    )
    lines = {
        key: line
        for name, one in rule.detection.detections.items()
        for key, line in _written(one, detection[name])
    }
    pipeline.apply(rule)
    if not any(pipeline.applied):
        return {}
    selections = {name: _plain(one, lines) for name, one in rule.detection.detections.items()}
    conditions = [one.condition for one in rule.detection.parsed_condition]
    one_condition = isinstance(given.get("condition"), str)
    kept = {name: given[name] for name in given if name in apart}
    return {
        "logsource": _logsource(value.get("logsource"), rule.logsource),
        section: {
            **selections,
            **kept,
            "condition": conditions[0] if one_condition else conditions,
        },
    }


def _correlation(pipeline: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(given)
    aliases = given.get("aliases") or {}
    if "group-by" in given:
        names = _list(given["group-by"])
        changed["group-by"] = [
            new for name in names for new in ([name] if name in aliases else _names(pipeline, name))
        ]
    if isinstance(aliases, dict) and aliases:
        changed["aliases"] = {
            alias: {rule: _name(pipeline, field) for rule, field in mapping.items()}
            for alias, mapping in aliases.items()
            if isinstance(mapping, dict)
        }
    condition = given.get("condition")
    if isinstance(condition, dict) and "field" in condition:
        field = condition["field"]
        new = [_name(pipeline, one) for one in field] if isinstance(field, list) else None
        changed["condition"] = {**condition, "field": new or _name(pipeline, field)}
    return changed


def _name(pipeline: Any, field: str) -> str:
    names = _names(pipeline, field)
    if len(names) != 1:
        raise _Untranslatable(f"{field} has several names here, and stands for one value")
    return names[0]


def _names(pipeline: Any, field: str) -> list[str]:
    """What a field of a correlation is called here.

    Raises:
        _Untranslatable: that depends on the rule that its event is of.
    """
    from sigma.correlations import SigmaCorrelationRule

    rule = SigmaCorrelationRule.from_dict({**_ANY_CORRELATION, "fields": [field]})
    pipeline.apply(rule)
    for item, applied in zip(pipeline.items, pipeline.applied, strict=True):
        maps = getattr(item.transformation, "apply_field_name", None)
        if maps is not None and not applied and maps(field) not in (None, field):
            raise _Untranslatable(
                f"what {field} is called here depends on the rule; write its name here"
            )
    return list(rule.fields)


class _Untranslatable(Exception):  # noqa: N818 – becomes a RuleError
    """The result cannot be written as a Sigma document; why, in words."""


_MEND = "Mend the document or the pipeline."
_KNOWN = ("id", "name", "level", "status", "tags", "author", "references", "falsepositives")
_ANY_CORRELATION: dict[str, Any] = {
    "title": "Any",
    "correlation": {
        "type": "event_count",
        "rules": ["any"],
        "timespan": "1m",
        "condition": {"gte": 1},
    },
}


def _is_ours(value: Mapping[str, Any]) -> bool:
    taxonomy = value.get("taxonomy")
    return taxonomy == OURS or (taxonomy is None and "correlation" in value and OURS in value)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _logsource(given: Any, read: Any) -> dict[str, Any]:
    parts = {name: getattr(read, name) for name in ("category", "product", "service")}
    others = {} if not isinstance(given, dict) else {k: v for k, v in given.items() if k in _REST}
    return {**{name: part for name, part in parts.items() if part}, **others}


_REST = ("definition",)


# --- Back into the form of a document ----------------------------------------------------------


class _Line(msgspec.Struct, frozen=True):
    """A line as it was written, and the values that pySigma read of it."""

    values: list[Any]
    """The very list; a pipeline that changes a value puts another one in its place."""
    copy: list[Any]
    suffix: str
    raw: Any


_Lines = dict[int, _Line]


def _written(read: Any, given: Any) -> Iterator[tuple[int, _Line]]:
    """Every line of a selection beside what pySigma read of it."""
    from sigma.rule import SigmaDetection

    items = read.detection_items
    if isinstance(given, dict):
        pairs = [(key.partition("|")[1:], inner) for key, inner in given.items()]
    elif any(isinstance(one, SigmaDetection) for one in items):
        for one, inner in zip(items, given, strict=True):
            yield from _written(one, inner)
        return
    else:
        pairs = [(("", ""), given)]
    for item, (suffix, raw) in zip(items, pairs, strict=True):
        line = _Line(item.value, list(item.value), "".join(suffix), raw)
        yield id(item.value), line


def _plain(node: Any, lines: _Lines) -> Any:
    """A selection, or a part of one, as Sigma writes it."""
    from sigma.conditions import ConditionAND
    from sigma.rule import SigmaDetection

    if not isinstance(node, SigmaDetection):
        return _line(node, lines)
    parts = [_plain(one, lines) for one in node.detection_items]
    if len(parts) == 1:
        return parts[0]
    return _all_of(parts) if node.item_linking is ConditionAND else parts


def _all_of(parts: list[Any]) -> Any:
    """A mapping, if no field stands there twice."""
    keys = [key for part in parts if isinstance(part, dict) for key in part]
    if all(isinstance(part, dict) for part in parts) and len(set(keys)) == len(keys):
        return {key: value for part in parts for key, value in part.items()}
    return Every(parts)


def _line(item: Any, lines: _Lines) -> Any:
    from sigma.conditions import ConditionAND

    field = item.field or ""
    line = lines.get(id(item.value))
    if line is not None and line.copy == item.value:
        return {f"{field}{line.suffix}": line.raw} if field or line.suffix else line.raw
    every = item.value_linking is ConditionAND and len(item.value) > 1
    by_kind: dict[str, list[Any]] = {}
    for value in item.value:
        several = list(_flat(value))
        if every and len(several) > 1:
            raise _Untranslatable(f"a value of {field or 'the keywords'} stands for several")
        for one in several:
            kind, plain = _value(one)
            by_kind.setdefault(kind, []).append(plain)
    tail = ("|all" if every else "") + ("|neq" if item.negated else "")
    parts = [
        {f"{field}{kind}{tail}": values[0] if len(values) == 1 else values}
        for kind, values in by_kind.items()
    ]
    if len(parts) == 1:
        return parts[0]
    return _all_of(parts) if every != item.negated else parts


def _flat(value: Any) -> Iterator[Any]:
    from sigma.types import SigmaExpansion

    if isinstance(value, SigmaExpansion):
        for one in value.values:
            yield from _flat(one)
    else:
        yield value


def _value(value: Any) -> tuple[str, Any]:
    """Modifiers and plain form of what pySigma made of a value."""
    from sigma import types

    match value:
        case types.SigmaString():
            expand = "|expand" if value.contains_placeholder() else ""
            cased = "|cased" if isinstance(value, types.SigmaCasedString) else ""
            return expand + cased, _text(value)
        case types.SigmaTimestampPart():
            return f"|{value.timestamp_part.name.lower()}", value.number
        case types.SigmaNumber():
            return "", value.number
        case types.SigmaExists():
            return "|exists", bool(value)
        case types.SigmaBool():
            return "", bool(value)
        case types.SigmaNull():
            return "", None
        case types.SigmaRegularExpression():
            flags = sorted(value.sigma_to_re_flag[one] for one in value.flags)
            return "".join(f"|{one}" for one in ["re", *flags]), str(value.regexp)
        case types.SigmaCIDRExpression():
            return "|cidr", value.cidr
        case types.SigmaCompareExpression():
            return f"|{value.op.name.lower()}", value.number.number
        case types.SigmaFieldReference():
            kinds = [kind for kind, wanted in _kinds_of(value) if wanted]
            return "".join(f"|{one}" for one in ["fieldref", *kinds]), value.field
    raise _Untranslatable(f"{type(value).__name__} is part of a query, not of a rule")


def _kinds_of(reference: Any) -> list[tuple[str, bool]]:
    return [("startswith", reference.starts_with), ("endswith", reference.ends_with)]


def _text(value: Any) -> str:
    from sigma.types import Placeholder, SpecialChars

    signs = {SpecialChars.WILDCARD_MULTI: "*", SpecialChars.WILDCARD_SINGLE: "?"}
    parts = []
    for part in value.s:
        if isinstance(part, Placeholder):
            parts.append(f"%{part.name}%")
        else:
            parts.append(signs[part] if part in signs else _SPECIAL.sub(r"\\\g<0>", part))
    return "".join(parts)


_SPECIAL = re.compile(r"[\\*?]")


def _read_as_wide(value: Any) -> Any:
    """With `wide` for `utf16le`, which pySigma does not know and which says the same."""
    if isinstance(value, list):
        return [_read_as_wide(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {_WIDE.sub("|wide", key): _read_as_wide(inner) for key, inner in value.items()}


_WIDE = re.compile(r"\|utf16le(?=\||$)")


# --- pySigma -----------------------------------------------------------------------------------


def _version() -> str:
    try:
        return version("pySigma")
    except PackageNotFoundError:
        return ""


def _text_of(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(documents.MAX_BYTES + 1)
    except OSError as error:
        what = f"the pipeline cannot be read: {error.strerror}"
        raise RuleError(what, str(file), "Check rules.pipelines.") from error
    if len(data) > documents.MAX_BYTES:
        raise RuleError(f"larger than {documents.MAX_BYTES} bytes", str(file), "Split it.")
    return data.decode("utf-8", "replace")


def _read(file: Path, text: str) -> Any:
    """A pipeline; it reads no other file, asks no other machine and runs no command."""
    try:
        from sigma.processing.pipeline import ProcessingPipeline
    except ImportError as error:
        raise RuleError("a pipeline needs pySigma", str(file), _INSTALL) from error

    read = documents.parse(text, str(file))
    if len(read) != 1 or not isinstance(read[0].value, dict):
        raise RuleError("a pipeline is one mapping", str(file), "See pySigma's documentation.")
    given = read[0].value
    transformations = given.get("transformations")
    if not isinstance(transformations, list) or not transformations:
        what = "the pipeline has no transformations"
        raise RuleError(what, read[0].where("transformations"), "See pySigma's documentation.")
    _prepare(read[0], transformations, ("transformations",))
    wanted = {name: given[name] for name in ("vars", "transformations", "name") if name in given}
    try:
        return ProcessingPipeline.from_dict(wanted)
    except Exception as error:  # pySigma checks little of what it is given
        what = f"pySigma does not take the pipeline: {error}"
        raise RuleError(what, read[0].where("transformations"), "Mend the pipeline.") from error


_OUTSIDE = frozenset({"file_placeholders", "http_placeholders", "command_placeholders"})


def _prepare(document: Document, transformations: list[Any], place: documents.Place) -> None:
    """Refuse what reaches outside; give added conditions the same name each time."""
    for number, one in enumerate(transformations):
        if not isinstance(one, dict):
            continue
        here = (*place, number)
        kind = one.get("type")
        if kind in _OUTSIDE:
            what = f"{kind} reaches outside, which no rule may"
            raise RuleError(what, document.where(*here), "Write the values into `vars`.")
        if kind == "add_condition":  # pySigma would throw dice
            digest = hashlib.blake2b(f"{document.file}:{here}".encode(), digest_size=4)
            one.setdefault("name", f"_cond_{digest.hexdigest()}")
        if isinstance(one.get("items"), list):
            _prepare(document, one["items"], (*here, "items"))
