"""What a finding may put into a command: whole values for targets, harmless text for people.

A finding is made of what strangers sent. A field becomes a target only as a whole and only in the
spelling of its type (`playbooks/targets.py`). In texts that people read – a mail, a ticket, a
manual step – characters that mean something to a shell, a template, a header, a spreadsheet, a
query or a path are replaced, so that the same text is safe wherever it ends up.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cityward import Target, Unsafe
from playbooks import targets, words
from playbooks.model import Action

TEXT_MAX = 400
"""Characters of one field in a text."""
LIST_MAX = 20
INSTEAD = "·"
NOT_THERE = "(not known)"

WRITTEN_OUT = ("uri", "iri", "email_addr")
"""Types of targets to which something is sent."""

_RISKY = re.compile(
    r"""[\\`$'"{}<>|&;*?~^\[\]#!\x7f]"""
    r"|\.\.+|://|%[0-9a-fA-F]{2}|\b(?:javascript|data|file|jndi|ldaps?|gopher|dict)\s*:"
    r"|^[\s=+@-]+|--+|/\*|\b(?:bcc|cc|to|subject|from|content-type|set-cookie|location)\s*:",
    re.IGNORECASE,
)
"""What shells, templates, browsers, spreadsheets, queries, headers and paths would act upon."""
_KINDS_KEPT = ("L", "M", "N", "P", "S", "Z")


def filled(value: Any, finding: Mapping[str, Any]) -> Any:
    """Arguments with their variables put in; numbers and truth values stay what they are."""
    if isinstance(value, str):
        return _filled_text(value, finding)
    if isinstance(value, Mapping):
        return {key: filled(inner, finding) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [filled(inner, finding) for inner in value]
    return value


def target_for(action: Action, finding: Mapping[str, Any]) -> Target:
    """The target of an action: each part written out, or one variable as a whole.

    Raises:
        Unsafe: a field is not there, has several values, or is no value of the target's type.
    """
    if not action.target:
        return targets.NOWHERE
    kind = action.target.get("type", "")
    if kind in WRITTEN_OUT and any(words.has_variable(text) for text in action.target.values()):
        raise Unsafe("a finding never decides where something is sent", f"target {kind}", _BY_HAND)
    parts = {name: _whole(text, finding) for name, text in action.target.items() if name != "type"}
    return targets.target_of(kind, parts)


def used(value: Any) -> set[str]:
    """Fields of the finding that arguments or parts of a target name."""
    if isinstance(value, str):
        return {field for name in words.variables(value) if (field := words.field_of(name))}
    if isinstance(value, Mapping):
        return {field for inner in value.values() for field in used(inner)}
    if isinstance(value, (list, tuple)):
        return {field for inner in value for field in used(inner)}
    return set()


def harmless(value: Any) -> Any:
    """A field's value for a text or a list of a command: nothing in it means anything."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return [harmless(one) for one in value[:LIST_MAX]]
    return _plain(value) if isinstance(value, str) else NOT_THERE


def _filled_text(text: str, finding: Mapping[str, Any]) -> Any:
    if (variable := words.only_variable(text)) is not None:
        value = harmless(_value(variable, finding))
        return NOT_THERE if value is None else value

    def put(variable: str) -> str:
        value = harmless(_value(variable, finding))
        if isinstance(value, list):
            return ", ".join(map(str, value)) or NOT_THERE
        return NOT_THERE if value is None else str(value)

    # What is put in is not looked at again: a value cannot name another variable.
    return words.replaced(text, put)


def _whole(text: str, finding: Mapping[str, Any]) -> str:
    if (variable := words.only_variable(text)) is None:
        if words.has_variable(text):
            raise Unsafe(f"{text[:60]!r} has a variable inside a value", "target", _BY_HAND)
        return text
    value = _value(variable, finding)
    if isinstance(value, (list, tuple)) and len(value) == 1:
        (value,) = value
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Unsafe(f"the finding says no single {variable}", "target", _BY_HAND)
    return str(value)


def _value(variable: str, finding: Mapping[str, Any]) -> Any:
    field = words.field_of(variable)
    return finding.get(field) if field is not None else None


def _plain(text: str) -> str:
    text = text[: 4 * TEXT_MAX]
    text = "".join(one if unicodedata.category(one)[0] in _KINDS_KEPT else " " for one in text)
    text = unicodedata.normalize("NFKC", " ".join(text.split()))
    # Again until nothing changes: what was replaced may have kept two halves apart.
    while (cleaned := _RISKY.sub(INSTEAD, text)) != text:
        text = cleaned
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…"


_BY_HAND = "Look at the finding, and act by hand."
