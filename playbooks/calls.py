"""A playbook that calls another has its steps within it: one plan, one approval, one run.

So what is called is planned, approved, held to its own time boxes and undone with whoever calls
it, and a run keeps all of it as it was. A playbook is worth no more than those it calls: the gate
looks at the signature, the stage and the validity of each (`Playbook.called`).

References:
    CACAO Security Playbooks 2.0, section 4.6 (playbook action step).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import msgspec

from playbooks import words
from playbooks.model import Called, Playbook, Step

DEPTH_MAX = 3
"""A playbook calls one that calls one that calls one; nobody oversees more."""
STEPS_MAX = 200
"""Of a playbook with all that it calls; a file of its own may have as many."""


class Fault(msgspec.Struct, frozen=True):
    """A call that cannot be followed."""

    playbook: str
    step: str
    """Name of the step that calls."""
    what: str
    todo: str


def linked(playbooks: Mapping[str, Playbook]) -> tuple[dict[str, Playbook], list[Fault]]:
    """Playbooks, each with the steps of those it calls, and the calls that lead nowhere."""
    done: dict[str, Playbook] = {}
    faults: dict[str, Fault] = {}
    for _ in range(DEPTH_MAX + 1):
        ready = [
            one
            for id, one in playbooks.items()
            if id not in done and {step.playbook for step in calls(one)} <= done.keys()
        ]
        for one in ready:
            if sum(_size(one, done)) > STEPS_MAX:
                what = f"with what it calls {one.name} has more than {STEPS_MAX} steps"
                first = next(calls(one)).name
                faults[one.id] = Fault(one.id, first, what, "Call less, or write it shorter.")
        done |= {one.id: with_called(one, done) for one in ready if one.id not in faults}
    for id, one in playbooks.items():
        if id not in done and id not in faults:
            faults[id] = _fault(one, playbooks, done)
    return done, list(faults.values())


def calls(playbook: Playbook) -> Iterator[Step]:
    """Steps of a playbook that call another and do not contain it yet."""
    return (one for one in playbook.steps.values() if one.playbook and not one.next_steps)


def with_called(playbook: Playbook, others: Mapping[str, Playbook]) -> Playbook:
    """A playbook with the steps of those it calls, which are there and have theirs already."""
    steps: dict[str, Step] = {}
    called: dict[str, Called] = {}
    for step in playbook.steps.values():
        steps[step.id] = step
        other = others.get(step.playbook)
        if other is None:
            continue
        ids = {id: words.id_of(id.partition("--")[0], step.id, id) for id in other.steps}
        steps[step.id] = msgspec.structs.replace(
            step, next_steps=(ids[other.start],), exception=ids[other.exception]
        )
        steps |= {ids[id]: _within(one, step.name, ids) for id, one in other.steps.items()}
        called |= {one.id: one for one in (_called(other), *other.called)}
    if not called:
        return playbook
    # Another version of what is called is another version of who calls it.
    versions = (playbook.version, *(one.version for one in called.values()))
    return msgspec.structs.replace(
        playbook,
        steps=steps,
        called=tuple(called.values()),
        version=hashlib.sha256(msgspec.json.encode(versions)).hexdigest(),
    )


def _within(step: Step, caller: str, ids: Mapping[str, str]) -> Step:
    """A step under the step that calls its playbook: `caller/step`, with ids of its own."""

    def of_step(field: str) -> str:
        head, dot, name = field.partition(".")
        return f"step.{caller}/{name}" if head == "step" and dot else field

    links = ("on_completion", "on_success", "on_failure", "on_true", "on_false", "exception")
    return msgspec.structs.replace(
        step,
        id=ids[step.id],
        name=f"{caller}/{step.name}",
        when={of_step(field): wanted for field, wanted in step.when.items()},
        switch=of_step(step.switch),
        next_steps=tuple(ids[one] for one in step.next_steps),
        cases={case: ids[one] for case, one in step.cases.items()},
        **{link: ids.get(getattr(step, link), "") for link in links},
    )


def _called(playbook: Playbook) -> Called:
    return Called(**{name: getattr(playbook, name) for name in Called.__struct_fields__})


def _size(playbook: Playbook, others: Mapping[str, Playbook]) -> Iterator[int]:
    yield len(playbook.steps)
    yield from (len(others[step.playbook].steps) for step in calls(playbook))


# ---- What is wrong with a call


def _fault(one: Playbook, playbooks: Mapping[str, Playbook], done: Mapping[str, Playbook]) -> Fault:
    step = next((step for step in calls(one) if step.playbook not in done), None)
    if step is None:
        what, todo = (
            f"its calls are more than {DEPTH_MAX} deep",
            "Call what is further down itself.",
        )
        return Fault(one.id, next(calls(one)).name, what, todo)
    other = playbooks.get(step.playbook)
    if other is None:
        what, todo = "it calls a playbook that is not there", "Call one that counts here."
    elif circle := _circle(one, playbooks):
        what = f"{' → '.join(circle)} is a circle of calls"
        todo = "A playbook never comes back to itself; write a while-condition."
    else:
        what, todo = f"{other.name}, which it calls, is refused", "Mend that one."
    return Fault(one.id, step.name, what, todo)


def _circle(one: Playbook, playbooks: Mapping[str, Playbook]) -> list[str]:
    """Names of the playbooks on the way from one back to itself; empty: there is none."""
    ways = {one.id: [one.name]}
    waiting = [one]
    while waiting:
        now = waiting.pop()
        for step in calls(now):
            other = playbooks.get(step.playbook)
            if other is not None and other.id == one.id:
                return [*ways[now.id], one.name]
            if other is not None and other.id not in ways:
                ways[other.id] = [*ways[now.id], other.name]
                waiting.append(other)
    return []
