"""What decoders share and what is none itself: requests joined to their answers, words for events.

A request and its answer are joined by what the protocol numbers them with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from typing import Any, NamedTuple

from cityward import Session

OPEN_MAX = 64
"""Requests of one conversation that wait for an answer; the oldest gives way."""
TEXT_MAX = 120
"""Characters of a text from the wire that an event keeps."""

Fields = dict[str, Any]


class Waiting(NamedTuple):
    """A request that waits for its answer."""

    fields: Fields
    time_s: float


class Pairs:
    """What one conversation has asked and nobody has answered yet."""

    def __init__(self, session: Session) -> None:
        self.asked = self.answered = self.unmatched = self.unanswered = 0
        self._ends = f"{session.client}>{session.server}"
        self._link = ""
        self._waiting: dict[Hashable, Waiting] = {}

    def ask(self, key: Hashable, fields: Fields, time_s: float) -> None:
        """Give a request its link, and wait for the answer that has the same key."""
        if not self._link:
            self._link = link_prefix(self._ends, time_s)
        self.asked += 1
        waiting = self._waiting
        fields["ot.link_id"] = f"{self._link}{self.asked}"
        if key in waiting:
            given_up = waiting.pop(key).fields["ot.link_id"]
            say(fields, f"its number is that of {given_up}, which nobody answered")
            self.unanswered += 1
        elif len(waiting) >= OPEN_MAX:
            oldest = waiting.pop(next(iter(waiting))).fields["ot.link_id"]
            say(fields, f"{oldest} is given up unanswered, {OPEN_MAX} requests are open")
            self.unanswered += 1
        waiting[key] = Waiting(fields, time_s)

    def waits(self, key: Hashable) -> Fields | None:
        """Fields of the request with that key, which goes on waiting."""
        found = self._waiting.get(key)
        return found.fields if found else None

    def answer(self, key: Hashable, fields: Fields, time_s: float) -> Fields | None:
        """Join an answer to its request, whose fields are returned; says so if there is none."""
        asked = self._waiting.pop(key, None)
        if asked is None:
            self.unmatched += 1
            say(fields, "no request was seen for this answer")
            return None
        self.answered += 1
        fields["ot.link_id"] = asked.fields["ot.link_id"]
        if time_s >= asked.time_s:
            fields["event.duration"] = int((time_s - asked.time_s) * 1e9)
        return asked.fields

    def end(self, action: str) -> list[Fields]:
        """Commands that nobody answered, as events; other requests are only counted."""
        self.unanswered += len(self._waiting)
        found = [
            {
                # That the request was malformed is said by its own event.
                **{name: value for name, value in fields.items() if name != "event.kind"},
                "event.action": action,
                "event.outcome": "unknown",
                "event.reason": f"no answer to the {name_of(fields)} of {fields['ot.link_id']}",
                "ot.is_command": False,
            }
            for fields, _ in self._waiting.values()
            if fields.get("ot.is_command")
        ]
        self._waiting.clear()
        return found


def link_prefix(ends: str, time_s: float) -> str:
    """What the links of a conversation begin with: short, and the same when it is read again."""
    return hashlib.blake2b(f"{ends} {time_s}".encode(), digest_size=6).hexdigest() + "."


def name_of(fields: Fields) -> str:
    """What a request asked for, for people."""
    return str(fields.get("ot.function.name") or fields["event.action"])


def say(fields: Fields, why: str) -> None:
    """Add a reason to those that an event has."""
    fields["event.reason"] = f"{fields['event.reason']}; {why}" if "event.reason" in fields else why


def broken(fields: Fields, why: str) -> None:
    """Mark an event as one of a message that is not whole or not as its standard wants it."""
    fields["event.kind"] = "pipeline_error"
    say(fields, why)


def unreadable(always: Fields, why: str) -> Fields:
    """An event for bytes that are no message."""
    return {
        **always,
        "event.kind": "pipeline_error",
        "event.action": "unreadable",
        "event.outcome": "failure",
        "event.reason": why,
    }


def turned(base: Fields) -> Fields:
    """The same conversation with its ends exchanged: the other side speaks of its own accord."""
    other = {"source": "destination", "destination": "source"}
    found = {}
    for name, value in base.items():
        side, _, rest = name.partition(".")
        found[f"{other[side]}.{rest}" if side in other else name] = value
    return found


def printable(data: bytes, most: int = TEXT_MAX) -> str:
    """Text from the wire that no terminal obeys, at most `most` characters."""
    text = data[: 4 * most].decode("utf-8", "replace")[:most]
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "." for char in text)
