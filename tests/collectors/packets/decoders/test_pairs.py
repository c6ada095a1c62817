"""Requests joined to their answers."""

from __future__ import annotations

from collectors.packets.decoders.pairs import OPEN_MAX, Fields, Pairs, broken, printable
from tests.collectors.packets.decoders.streams import session


def command(number: int = 1) -> Fields:
    return {"event.action": f"write_{number}", "ot.is_command": True}


def test_a_malformed_command_that_nobody_answered_is_counted_as_malformed_once() -> None:
    pairs, fields = Pairs(session()), command()
    broken(fields, "it is cut")
    pairs.ask(1, fields, 0.0)

    (left,) = pairs.end("unanswered")

    assert "event.kind" not in left
    assert (left["event.outcome"], left["ot.is_command"]) == ("unknown", False)


def test_open_requests_have_a_bound_and_the_oldest_is_said_to_be_given_up() -> None:
    pairs, last = Pairs(session()), command()
    for number in range(OPEN_MAX):
        pairs.ask(number, command(number), 0.0)

    pairs.ask(OPEN_MAX, last, 0.0)

    assert "given up unanswered" in last["event.reason"]
    assert len(pairs.end("unanswered")) == OPEN_MAX


def test_no_terminal_obeys_a_text() -> None:
    assert printable(b"\x1b[2Jpump\0") == ".[2Jpump."
    assert printable(b"x" * 300, 256) == "x" * 256
