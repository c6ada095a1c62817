"""`cityward demo`: a small city on this machine, and a labelled evening in it."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

from siem.exercise.nodes import OFFICER, PERSON
from siem.exercise.steps import STEPS

BLOCK_S, WATCHED_BLOCK_S = 10, 60
"""How long the stranger is kept out; longer where somebody may be looking."""


def demo(
    *,
    seed: int = 1,
    without: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    ordinary: Annotated[bool, Parameter(negative=())] = False,
    once: Annotated[bool, Parameter(negative=())] = False,
    approval: bool = True,
    simulate: Annotated[bool, Parameter(negative=())] = False,
    stop_file: Path | None = None,
    speed: float = 60.0,
    output: Annotated[Literal["text", "json"], Parameter(name=["--output", "-o"])] = "text",
) -> int:
    """Start four operators of an invented city and its hub, and play a labelled evening.

    One stranger comes to two operators; after a yes of their duty officers the gateways keep it out
    for a short while. Everything stays on this machine and is thrown away at the end. Leaves with 3
    if the evening's promises did not hold: a finding missed, one too many, a record lost, a block
    that did not come or was not undone.

    Args:
        seed: Another number is another city: addresses, order, times and noise.
        without: Name of a step that is left out; may be given several times.
        ordinary: Play no step at all, only what happens every evening.
        once: Leave when the evening is over, with its verdict.
        approval: Whether the duty officers say yes; without, a person can at the consoles.
        simulate: Let a simulator stand for the gateways; otherwise it does only without root or
            nft.
        stop_file: While this file is there no playbook acts: the kill switch of all nodes.
        speed: How much faster than a clock the evening passes; it has one hour.
        output: Form of the verdict: text or json.
    """
    from siem.exercise.exercise import Exercise, Options

    options = Options(
        seed=seed,
        speed=speed,
        without=tuple(step.name for step in STEPS) if ordinary else without,
        approves=approval,
        simulate=simulate,
        block_s=BLOCK_S if once else WATCHED_BLOCK_S,
        stop_file=stop_file.absolute() if stop_file else None,
    )
    with Exercise(options, _say) as exercise:
        _stop_on_signals(exercise.stop)
        exercise.start()
        for child in (exercise.hub, *exercise.nodes):
            _say(f"{child.name:<24} {child.address}  {PERSON} / {child.password}")
        _say(f"Who says yes at an operator signs in as {OFFICER}, with the same password.")
        exercise.play()
        if exercise.stop.is_set():
            return 130
        verdict = exercise.judge()
        if output == "json":
            print(msgspec.json.encode(verdict).decode(), flush=True)
        else:
            for name, value in msgspec.to_builtins(verdict).items():
                print(f"{name:<16} {value}", flush=True)
        if not once:
            _say("The evening is over; the city goes on, and the consoles answer, until Ctrl+C.")
            exercise.go_on()
    return 0 if verdict.holds else 3


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _stop_on_signals(stop: threading.Event) -> None:
    """The first signal ends the demo in order, the second at once."""

    def set_(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, set_)
