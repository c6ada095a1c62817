"""What sigma-cli's validators say of rules, if pySigma is there; nothing is asked of the network.

Left out, with the reason: ATT&CK and D3FEND tags, whose tables pySigma downloads (our own check has
ATT&CK's in it); tag namespaces (`threats.row-27` is ours); names of files, which are SigmaHQ's own
custom; numbers as text, which are equal here.

References:
    pySigma, "Rule Validation". pySigma is an extra: `pip install 'cityward[pipelines]'`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from cityward.documents import Document
from detectors.sigma.texts import is_written_out_far

LEFT_OUT = frozenset(
    {
        *("attacktag", "d3_fendtag", "namespace_tag"),
        *("duplicate_filename", "filename_length", "number_as_string"),
    }
)
_PLACES = {
    "condition": ("detection", "condition"),
    "logsources": ("logsource",),
    "modifiers": ("detection",),
    "tags": ("tags",),
    "values": ("detection",),
}
"""Where a validator looks, by its module; others look at the whole document."""


class Issue(msgspec.Struct, frozen=True):
    """What a validator found."""

    where: str
    what: str


def issues_of(given: Iterable[Document]) -> Iterator[Issue]:
    """Run the validators over rules and correlations, each and together.

    A document that pySigma cannot read is ours to judge: it has less of Sigma than we do.
    """
    try:
        from sigma.exceptions import SigmaError
        from sigma.validation import SigmaValidator
        from sigma.validators.core import validators
    except ImportError:
        return
    chosen = [one for name, one in validators.items() if name not in LEFT_OUT]
    validator = SigmaValidator(chosen)
    known: dict[int, Document] = {}
    kept = []
    for document in given:
        if is_written_out_far(document.value.get("detection")):
            what = "the validators of sigma-cli are not asked: the dashes stand for too many texts"
            yield Issue(document.where("detection"), what)
            continue
        try:
            rule = _read(document.value)
            if rule is None:
                continue
            kept.append(rule)  # or its number could be another one's
            known[id(rule)] = document
            found = validator.validate_rule(rule)
        except (SigmaError, AttributeError, KeyError, TypeError, ValueError):
            continue
        yield from (issue for one in found for issue in _issues(one, known))
    yield from (issue for one in validator.finalize() for issue in _issues(one, known))


def _read(value: Any) -> Any:
    from sigma.correlations import SigmaCorrelationRule
    from sigma.rule import SigmaRule

    if "detection" in value:
        return SigmaRule.from_dict(value)
    return SigmaCorrelationRule.from_dict(value) if "correlation" in value else None


def _issues(one: Any, known: dict[int, Document]) -> Iterator[Issue]:
    place = _PLACES.get(type(one).__module__.rpartition(".")[2], ())
    parts = [
        f"{field.name.replace('_', ' ')} {_shown(getattr(one, field.name))}"
        for field in dataclasses.fields(one)
        if field.name not in ("rules", "severity", "description")
    ]
    more = f" ({', '.join(parts)})" if parts else ""
    for rule in one.rules:
        if document := known.get(id(rule)):
            yield Issue(document.where(*place), f"{one.description.rstrip('.')}{more}")


def _shown(value: Any) -> str:
    text = getattr(value, "field", None) or str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
