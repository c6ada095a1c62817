"""A second opinion: pySigma reads the rule, a plain walk over its tree decides.

Known differences, which the tests leave out: pySigma has no `utf16le`, encodes the byte order mark
of `utf16` as UTF-8, counts characters instead of bytes in `base64offset`, and refuses wildcards
and numbers beside some modifiers that we take.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from sigma.conditions import (
    ConditionAND,
    ConditionFieldEqualsValueExpression,
    ConditionNOT,
    ConditionOR,
    ConditionValueExpression,
)
from sigma.rule import SigmaRule
from sigma.types import (
    SigmaBool,
    SigmaCasedString,
    SigmaCIDRExpression,
    SigmaCompareExpression,
    SigmaExists,
    SigmaExpansion,
    SigmaFieldReference,
    SigmaNull,
    SigmaNumber,
    SigmaRegularExpression,
    SigmaRegularExpressionFlag,
    SigmaString,
    SpecialChars,
)

FLAGS = {
    SigmaRegularExpressionFlag.IGNORECASE: re.I,
    SigmaRegularExpressionFlag.MULTILINE: re.M,
    SigmaRegularExpressionFlag.DOTALL: re.S,
}


class Twin:
    """A rule whose conditions are parsed once; pySigma parses them whenever they are asked for."""

    def __init__(self, rule: SigmaRule) -> None:
        self._conditions = [one.parsed for one in rule.detection.parsed_condition]

    def matches(self, event: Mapping[str, Any]) -> bool:
        """True if one of the rule's conditions holds on a flat event."""
        return any(_holds(one, event) for one in self._conditions)


def _holds(node: Any, event: Mapping[str, Any]) -> bool:
    if isinstance(node, ConditionAND):
        return all(_holds(one, event) for one in node.args)
    if isinstance(node, ConditionOR):
        return any(_holds(one, event) for one in node.args)
    if isinstance(node, ConditionNOT):
        return not _holds(node.args[0], event)
    if isinstance(node, ConditionValueExpression):
        return any(_keyword(node.value, value) for value in event.values())
    assert isinstance(node, ConditionFieldEqualsValueExpression)
    return _field(node.field, node.value, event)


def _field(field: str, wanted: Any, event: Mapping[str, Any]) -> bool:
    if isinstance(wanted, SigmaExpansion):
        return any(_field(field, one, event) for one in wanted.values)
    if isinstance(wanted, SigmaExists):
        return (field in event) == bool(wanted)
    if isinstance(wanted, SigmaNull):
        return event.get(field) is None
    if event.get(field) is None:
        return False
    if isinstance(wanted, SigmaFieldReference):
        return _reference(wanted, event[field], event.get(wanted.field))
    return _value(wanted, event[field])


def _reference(wanted: SigmaFieldReference, a: Any, b: Any) -> bool:
    if b is None:
        return False
    a, b = str(a).lower(), str(b).lower()
    if wanted.starts_with and wanted.ends_with:
        return b in a
    if wanted.starts_with:
        return a.startswith(b)
    return a.endswith(b) if wanted.ends_with else a == b


def _value(wanted: Any, seen: Any) -> bool:
    if isinstance(wanted, SigmaString):
        flags = re.S if isinstance(wanted, SigmaCasedString) else re.S | re.I
        return re.fullmatch(_pattern(wanted), str(seen), flags) is not None
    if isinstance(wanted, SigmaRegularExpression):
        flags = sum(FLAGS[flag] for flag in wanted.flags)
        return re.search(str(wanted.regexp), str(seen), flags) is not None
    if isinstance(wanted, SigmaCIDRExpression):
        try:
            return ip_address(str(seen)) in wanted.network
        except ValueError:
            return False
    if isinstance(wanted, SigmaBool):
        return str(seen).lower() == str(wanted).lower()
    number = _number(seen)
    if isinstance(wanted, SigmaCompareExpression):
        compare = {"LT": "__lt__", "LTE": "__le__", "GT": "__gt__", "GTE": "__ge__"}
        limit = float(wanted.number.number)
        return number is not None and bool(getattr(number, compare[wanted.op.name])(limit))
    assert isinstance(wanted, SigmaNumber), wanted
    return number == float(wanted.number)


def _number(seen: Any) -> float | None:
    try:
        return float(seen)
    except (TypeError, ValueError):
        return None


def _keyword(wanted: Any, seen: Any) -> bool:
    if isinstance(wanted, SigmaString):
        return re.search(_pattern(wanted), str(seen), re.S | re.I) is not None
    if isinstance(wanted, SigmaNumber):
        return str(wanted.number) in str(seen)
    return _value(wanted, seen)


def _pattern(wanted: SigmaString) -> str:
    signs = {SpecialChars.WILDCARD_MULTI: ".*", SpecialChars.WILDCARD_SINGLE: "."}
    return "".join(re.escape(p) if isinstance(p, str) else signs[p] for p in wanted.s)
