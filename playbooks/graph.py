"""How the steps of a playbook hang together, and what is wrong with that.

What never comes, what comes in a circle, and a failure path that would act are found here, before
a playbook is one; where a run goes is `playbooks/flow.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from playbooks.model import Step


def following(step: Step) -> Iterator[str]:
    """Ids of the steps that may come after one, in the order of reading."""
    named = (
        *step.next_steps,
        *(step.on_true, step.on_false),
        *step.cases.values(),
        *(step.on_completion, step.on_success, step.on_failure),
    )
    return (one for one in named if one)


def reachable(steps: Mapping[str, Step], *begin: str) -> set[str]:
    """Ids of all steps that can come, those to begin with included."""
    found: set[str] = set()
    waiting = list(begin)
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += following(steps[one])
    return found


def problems(steps: Mapping[str, Step], start: str, exception: str) -> Iterator[tuple[str, str]]:
    """Say by step what is wrong; every id that a step names has to be there."""
    if circle := _circle(steps):
        names = " → ".join(steps[one].name for one in circle[:6])
        yield circle[0], f"{names} is a circle; only a while-condition repeats"
    comes = reachable(steps, start, exception)
    for one, step in steps.items():
        if one not in comes:
            yield one, f"step {step.name} never comes"
    fails = reachable(steps, exception)
    for one, step in steps.items():
        if one in fails and (step.type in ("while-condition", "playbook-action") or acts(step)):
            what = "is on the path of workflow_exception, which tells and asks, and never acts"
            yield one, f"step {step.name} {what}"


def acts(step: Step) -> bool:
    """Whether a step changes something that has to be taken back."""
    is_manual = step.action is not None and step.action.actuator == "manual"
    return step.safety.action_class != "A0" and not is_manual


def _circle(steps: Mapping[str, Step]) -> list[str]:
    """A circle of steps, the first one again at its end; empty: there is none."""
    done: set[str] = set()
    for begin in steps:
        path: list[str] = []
        on_path: set[str] = set()
        walks = [] if begin in done else [iter((begin,))]
        while walks:
            after = next(walks[-1], None)
            if after is None:
                walks.pop()
                if path:
                    on_path.discard(path[-1])
                    done.add(path.pop())
            elif after in on_path:
                return [*path[path.index(after) :], after]
            elif after not in done:
                path.append(after)
                on_path.add(after)
                walks.append(following(steps[after]))
    return []
