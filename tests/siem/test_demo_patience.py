"""The demo on a busy machine: it waits as long as something moves, and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cityward import TransientError
from siem.exercise import patience
from siem.exercise.patience import Patience


class _Hasty(threading.Event):
    """Nobody has to wait for real."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


def _saying(*words: str | None) -> Callable[[], str]:
    """One after the other, the last for ever; None: a console that does not answer."""
    left = list(words)

    def lacks() -> str:
        word = left.pop(0) if len(left) > 1 else left[0]
        if word is None:
            raise TransientError("does not answer")
        return word

    return lacks


def _no_fault() -> None:
    return


def _patience(still_s: float = 0.0, check: Callable[[], None] = _no_fault) -> Patience:
    return Patience(lambda line: None, _Hasty(), check, still_s)


def test_what_goes_on_is_waited_for_however_long_it_takes() -> None:
    moving = [f"{left} records" for left in range(1_000, 0, -1)]

    assert _patience(still_s=0.0).until_nothing(_saying(*moving, "")) == ""


def test_what_does_not_move_any_more_is_told_as_lacking() -> None:
    assert _patience().until_nothing(_saying("3 records", "1 record")) == "1 record"


def test_a_console_that_does_not_answer_in_time_is_asked_again() -> None:
    assert _patience(still_s=60.0).until_nothing(_saying(None, "1 record", None, "")) == ""


def test_a_console_that_answers_now_and_then_is_no_movement() -> None:
    lacks = _saying("1 record", *["1 record", None] * 1_000, "")

    assert _patience().until_nothing(lacks) == "1 record"


def test_a_console_that_answers_no_more_is_told_by_its_fault() -> None:
    with pytest.raises(TransientError, match="does not answer"):
        _patience().until_nothing(_saying("1 record", None))


def test_a_process_that_has_ended_is_not_waited_for() -> None:
    def ended() -> None:
        raise TransientError("op-port ended")

    with pytest.raises(TransientError, match="op-port ended"):
        _patience(still_s=60.0, check=ended).until_nothing(_saying("1 record"))


def test_what_is_waited_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "TELL_EVERY_S", 0.0)
    said: list[str] = []

    Patience(said.append, _Hasty(), _no_fault).until_nothing(_saying("2 records", "1 record", ""))

    assert said == ["Waiting: 2 records …", "Waiting: 1 record …"]


def test_ctrl_c_ends_the_waiting() -> None:
    stop = _Hasty()
    stop.set()

    assert Patience(print, stop, _no_fault, 60.0).until_nothing(_saying("1 record")) == ""
