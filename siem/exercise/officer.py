"""The duty officers of the exercise: people who say yes, watch, and take back, at their console.

They do what a person does there, by the same addresses with the same forms: read what is asked, say
yes to the plan that they saw, look whether the stranger is really kept out, undo.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from cityward import TransientError
from playbooks.journal import RUN_ENDS
from siem.exercise.gateway import Gateway
from siem.exercise.nodes import OFFICER, OneNode
from siem.exercise.stranger import Visitor
from siem.store.protocol import Document

LOOK_EVERY_S = 1.0
UNDOES = "op-port"
"""Here the officer takes the block back; elsewhere it ends by itself."""
UNDONE_AFTER_S = 3.0
RUNS = 200

Says = Callable[[str], None]


class Responded(msgspec.Struct, frozen=True):
    """What playbooks did at one node, or at all."""

    runs: dict[str, int] = {}
    """By their state."""
    effects_applied: int = 0
    effects_undone: int = 0
    in_force: int = 0
    unasked: int = 0
    """Effects to which nobody said yes."""


class Officer(Visitor):
    """The duty officer of one node.

    Args:
        node: The node; its console answers.
        gateway: What its playbooks act on; anybody can see whether it lets the stranger in.
        approves: Whether they say yes.
        says: Is told what they do and see.
    """

    def __init__(self, node: OneNode, gateway: Gateway, approves: bool, says: Says) -> None:
        super().__init__(node, OFFICER)
        self._operator = node.operator
        self._gateway = gateway
        self._approves = approves
        self._says = says
        self._held: dict[str, float] = {}
        """Effects that were seen at the gateway, and since when."""
        self._answered: set[str] = set()
        """Plans that they said yes to; a run goes on a moment later."""
        self._undone: set[str] = set()

    def turn(self) -> None:
        """Answer what is asked, look at what is in force, and take back what is to be taken back.

        Raises:
            TransientError: the console does not answer, or refuses.
        """
        for ask in self._rows("approvals.json"):
            if self._approves and ask["plan"] not in self._answered:
                self._approve(ask)
        for one in self._rows("in-force.json"):
            if one["state"] == "applied":
                self._look(one)

    def _approve(self, ask: Document) -> None:
        self._says(f"{self._operator}: {OFFICER} is asked: {ask['title']} ({ask['actuator']})")
        self._post(
            f"approvals/{ask['run']}",
            "approvals/answer.json",
            {"id": ask["run"], "plan": ask["plan"], "answer": "approve", "reason": "not ours"},
        )
        self._answered.add(ask["plan"])

    def _look(self, one: Document) -> None:
        effect, now_s = one["effect"], time.monotonic()
        if effect not in self._held:
            if self._gateway.lets_in():
                return  # the device is told next
            self._held[effect] = now_s
            self._says(f"{self._operator}: {one['target']} is kept out by {one['actuator']}")
        is_due = self._operator == UNDOES and now_s - self._held[effect] >= UNDONE_AFTER_S
        if is_due and effect not in self._undone:
            self._undone.add(effect)
            self._says(f"{self._operator}: {OFFICER} undoes it")
            said = {"id": one["run"], "about": effect, "act": "undo", "reason": "it gave up"}
            self._post("in-force", "runs/change.json", said)

    def runs(self) -> tuple[int, list[str]]:
        """How many runs there are, and the states of those under way.

        A run that waits for a person who is not there does not go on.
        """
        asked = {one["run"] for one in self._rows("approvals.json")} if self._approves else set()
        runs = self._runs()
        under_way = [
            one["state"] + (", in force" if one["in_force"] else "")
            for one in runs
            if one["state"] not in RUN_ENDS
            and (one["state"] != "waiting" or one["in_force"] or one["run"] in asked)
        ]
        return len(runs), under_way

    def responded(self) -> Responded:
        """What came of all runs, and whether the gateway agrees that nothing is left."""
        runs = self._runs()
        documents = [self._document(f"runs/{one['run']}.json") for one in runs]
        applied = [effect for one in documents for effect in _applied(one)]
        approved = [effect for one in documents if one["approvals"] for effect in _applied(one)]
        listed = len(self._rows("in-force.json"))
        return Responded(
            runs=dict(Counter(run["state"] for run in runs)),
            effects_applied=len(applied),
            effects_undone=sum(one["state"] == "rolled_back" for one in applied),
            in_force=listed or int(not self._gateway.lets_in()),
            unasked=len(applied) - len(approved),
        )

    def _runs(self) -> list[Document]:
        return self._rows("runs.json", {"limit": RUNS})


def _applied(run: Document) -> list[Document]:
    """Effects of a run that were once seen at the device."""
    seen = {
        one["about"]
        for one in run["history"]
        if one["kind"] == "state" and one["what"].startswith("applied")
    }
    return [one for one in run["effects"] if one["step"] in seen and one["command"]["undo"]]


class Officers:
    """All of them, in a thread of their own.

    Args:
        officers: Each is signed in.
        stop: Ends them.
    """

    def __init__(self, officers: Sequence[Officer], stop: threading.Event) -> None:
        self.all = officers
        self._stop = stop
        self._thread = threading.Thread(target=self._turns, name="officers", daemon=True)

    def start(self) -> None:
        """Go on duty."""
        self._thread.start()

    def _turns(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            for one in self.all:
                try:
                    one.turn()
                except TransientError:
                    continue  # a busy console is asked again

    def unsettled(self, promised: int) -> str:
        """What is lacking until so many runs have begun, and none is under way at any node."""
        every = [one.runs() for one in self.all]
        begun = sum(count for count, _ in every)
        under_way = [state for _, states in every for state in states]
        if begun >= promised and not under_way:
            return ""
        states = ", ".join(f"{count} {state}" for state, count in Counter(under_way).items())
        return f"{begun} of {promised} runs have begun, under way: {states or 'none'}"

    def responded(self) -> Responded:
        """What came of it, all together."""
        every = [one.responded() for one in self.all]
        runs: Counter[str] = Counter()
        for one in every:
            runs.update(one.runs)
        return Responded(
            runs=dict(sorted(runs.items())),
            effects_applied=sum(one.effects_applied for one in every),
            effects_undone=sum(one.effects_undone for one in every),
            in_force=sum(one.in_force for one in every),
            unasked=sum(one.unasked for one in every),
        )
