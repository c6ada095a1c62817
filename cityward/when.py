"""`when`: the one small condition language, for sharing, playbooks and notification.

A condition is a mapping of field names to what they must be; all of them must hold:

    {finding.severity: [high, critical], finding.risk: ">=70", cw.sector: energy.electricity}

A scalar means equal, a list means one of, a string that begins with `>=`, `<=`, `>`, `<` or holds
`..` a range of numbers (`"2..5"`, both ends included), `"*"` that the field is there, `null` that
it is not. A field with several values holds if one of them does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from cityward.errors import ConfigError

Test = Callable[[Any], bool]
When = Callable[[Mapping[str, Any]], bool]

LIMIT = re.compile(r"(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?)$")
"""A bound of a number."""
RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)$")
"""A range of numbers."""
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}


def compile_when(condition: Mapping[str, Any], where: str = "when") -> When:
    """Turn a condition into a function on flat documents.

    Raises:
        ConfigError: the condition is no mapping, or a wanted value is a mapping or an empty list.
    """
    if not isinstance(condition, Mapping):
        raise ConfigError(f"{condition!r} is no condition", where, "Write field names and values.")
    tests = [(name, _test(wanted, f"{where}.{name}")) for name, wanted in condition.items()]
    return lambda document: all(_holds(test, document.get(name)) for name, test in tests)


def _holds(test: Test, value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(test(one) for one in value)
    return test(value)


def _test(wanted: Any, where: str) -> Test:
    if isinstance(wanted, list):
        if not wanted:
            raise ConfigError("an empty list never holds", where, "Name at least one value.")
        tests = [_test(one, where) for one in wanted]
        return lambda value: any(test(value) for test in tests)
    if isinstance(wanted, Mapping):
        raise ConfigError(f"{wanted!r} is no value", where, "Write a value, a list or a range.")
    if isinstance(wanted, str):
        return _string_test(wanted)
    if wanted is None:
        return lambda value: value is None
    return lambda value: _equal(value, wanted)


def _string_test(wanted: str) -> Test:
    if wanted == "*":
        return lambda value: value is not None
    if limit := LIMIT.match(wanted):
        compare, bound = _COMPARE[limit[1]], float(limit[2])
        return lambda value: _is_number(value) and compare(float(value), bound)
    if span := RANGE.match(wanted):
        low, high = float(span[1]), float(span[2])
        return lambda value: _is_number(value) and low <= float(value) <= high
    return lambda value: _equal(value, wanted)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _equal(value: Any, wanted: Any) -> bool:
    # True == 1 in Python, but a flag is no number.
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)
