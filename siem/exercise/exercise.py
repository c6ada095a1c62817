"""The evening from its start to its verdict."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec
import yaml

from cityward import InputError, TransientError
from siem.exercise import evening
from siem.exercise.evening import Clock, Put, Stage
from siem.exercise.gateway import Gateway, RealGateway, SimulatedGateway, cannot_be_real
from siem.exercise.nodes import Child, OneHub, OneNode
from siem.exercise.officer import Officer, Officers
from siem.exercise.patience import Patience
from siem.exercise.player import Player, play, write
from siem.exercise.processes import Memory, cpu_s
from siem.exercise.saltmere import City, captures_of
from siem.exercise.shelf import Shelf
from siem.exercise.steps import STEPS, Expected, Scene, Step, scenes
from siem.exercise.stranger import Stranger, Verdict, Visitor, judge
from siem.node import now_utc
from siem.ruleset import RULES_FOLDER
from siem.sharing.certificates import write_secret
from siem.sharing.tokens import new_root, root_text
from siem.store.protocol import Document

LOOK_EVERY_S = 1.0
SPEED_MIN, SPEED_MAX = 20.0, 360.0
"""Slower, a capture that has ended would be long enough for its devices to be missed."""
AFTERWARDS = 60.0
"""Speed of the evenings after the labelled one: no window must add up what is rare in each."""

Says = Callable[[str], None]
STRANGER = ("scanner-at-the-metro", "scanner-at-the-port")
"""Steps of the one stranger who comes to two operators."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is played, and who answers."""

    seed: int = 1
    """Which city, and which evening in it."""
    speed: float = 60.0
    """How much faster than a clock the evening passes."""
    without: Sequence[str] = ()
    """Names of steps that are left out."""
    approves: bool = True
    """Whether the duty officers say yes to what playbooks would do."""
    simulate: bool = False
    """Whether the gateways are simulated also where they could be real."""
    block_s: int = 10
    """How long a gateway keeps the stranger out; longer on a busy machine."""
    stop_file: Path | None = None
    """While it is there no playbook acts."""


class Exercise:
    """Four nodes, and the evening that is played into them.

    Args:
        options: What is played.
        says: Is told what happens.

    Raises:
        InputError: there is no step of that name, or the speed is none.
    """

    def __init__(self, options: Options, says: Says) -> None:
        _check(options.speed, options.without)
        self._began_s = time.monotonic()
        self.stop = threading.Event()
        self._patience = Patience(says, self.stop, self._check_processes)
        self.options = options
        self.speed = options.speed
        self.city = City(options.seed)
        self.without = options.without
        self.says = says
        self.first_finding_s: float | None = None
        self._ended = now_utc()
        self._memory = Memory()
        self._folder = Path(tempfile.mkdtemp(prefix="cityward-demo-"))
        self.hub = OneHub(self._folder / "hub")
        self._join_key = self._folder / "join.key"
        self._shelf = Shelf(self._folder / "shelf", options.stop_file)
        self.nodes = [
            OneNode(place, self._folder / place.operator, self.hub, self._join_key, self._shelf)
            for place in self.city.places.values()
        ]
        self._visitor = Visitor(self.hub)
        self._strangers: dict[str, Stranger] = {}
        self._gateways: dict[str, Gateway] = {}
        self._officers = Officers([], self.stop)
        self._players = {node.place.operator: Player(node) for node in self.nodes}
        self._expected: dict[str, list[Expected]] = {node.place.operator: [] for node in self.nodes}

    def __enter__(self) -> Exercise:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all nodes, and throw away what they kept."""
        self.stop.set()
        for child in (*self.nodes, self.hub):
            child.tell_to_stop()
        for child in (*self.nodes, self.hub):
            child.stop()
        for gateway in self._gateways.values():
            gateway.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start all nodes, and let them read what was before the evening; `stop` ends it early.

        Raises:
            TransientError: a node does not start.
        """
        write_secret(self._join_key, root_text(new_root()).encode())
        self.hub.prepare({place.operator: place.sector for place in self.city.places.values()})
        self._memory.start()
        began_s = time.monotonic()
        self.hub.start()
        self._need(lambda: _silent([self.hub]))
        before = Clock(now_utc(), self.speed)
        self._build_gateways(time.monotonic() - began_s)
        for node in self.nodes:
            node.prepare(self._gateways[node.operator])
            stage = self._stage(node, before, "afternoon")
            write(self._players[node.place.operator], evening.afternoon(stage), before)
        for node in self.nodes:
            if self.stop.is_set():
                return
            node.join()
            node.start()
        self._need(lambda: _silent(self.nodes))
        if self.stop.is_set():
            return
        self._strangers = {node.place.operator: Stranger(node) for node in self.nodes}
        people = [*self._strangers.values(), self._visitor, *self._officers.all]
        self._need(lambda: _outside(people))
        self._need(self._unready)
        self._officers.start()

    def _build_gateways(self, slow_s: float) -> None:
        """A gateway for every node, and officers who watch it.

        Args:
            slow_s: How long a process needs here to start: a block that is shorter would be over
                before its node has seen it, so the safety gate would not let it begin.
        """
        why = "as asked" if self.options.simulate else cannot_be_real()
        if why:
            self.says(f"Gateways are simulated: {why}. Blocks are kept in a file.")
        else:
            self.says("Gateways are real: nft in network namespaces of this demo.")
        for node in self.nodes:
            who = self.city.scanner
            self._gateways[node.operator] = (
                SimulatedGateway(self._folder, node.operator, who) if why else RealGateway(who)
            )
        actuator = next(iter(self._gateways.values())).actuator
        self._shelf.fill(actuator, max(self.options.block_s, round(slow_s)), now_utc())
        approves, says = self.options.approves, self.says
        officers = [
            Officer(node, self._gateways[node.operator], approves, says) for node in self.nodes
        ]
        self._officers = Officers(officers, self.stop)

    def play(self) -> None:
        """Play the evening; looks for the first finding meanwhile."""
        clock = Clock(now_utc(), self.speed)
        given: dict[str, list[Put]] = {}
        for node in self.nodes:
            stage = self._stage(node, clock, "ordinary")
            given[node.place.operator] = list(evening.ordinary(stage))
        steps: list[tuple[Step, Scene]] = list(scenes(self.city, clock, self.without))
        for step, scene in steps:
            given[step.operator] += scene.puts
            self._expected[step.operator] += scene.expected
        watch = threading.Thread(target=self._look, name="first finding", daemon=True)
        watch.start()
        announce = threading.Thread(target=self._announce, args=(steps, clock), daemon=True)
        announce.start()
        self._give([(self._players[name], puts) for name, puts in given.items()], clock)
        self._ended = now_utc()

    def go_on(self) -> None:
        """Play ordinary evenings, one after the other, until `stop`; the taps are done."""
        number = 0
        while not self.stop.is_set():
            number += 1
            clock = Clock(now_utc(), min(self.speed, AFTERWARDS))
            given = []
            for node in self.nodes:
                player = self._players[node.place.operator]
                puts = evening.ordinary(self._stage(node, clock, f"ordinary {number}"))
                given.append((player, [put for put in puts if not player.is_tap(put.source)]))
            self._give(given, clock)

    def _give(self, given: Sequence[tuple[Player, Sequence[Put]]], clock: Clock) -> None:
        try:
            play(given, clock, self.stop)
        except OSError as error:
            raise TransientError(f"a node stopped reading: {error}", "", "Try again.") from error

    def judge(self) -> Verdict:
        """Wait until the nodes have read, shared and undone everything; say what came of it."""
        for lacks in (self._unread, self._unshared, self._unsettled):
            if lacking := self._patience.until_nothing(lacks):
                self.says(f"Nothing moves any more, and {lacking}.")
        self._memory.stop()
        rule_ids = rule_ids_of(self._expected)
        total = Verdict(
            first_finding_s=self.first_finding_s and round(self.first_finding_s, 1),
            peak_rss_mb=round(self._memory.peak_mb),
        )
        for name, stranger in self._strangers.items():
            given, promised = self._players[name].given, self._expected[name]
            verdict, missed, false, lost = judge(
                stranger,
                given,
                promised,
                rule_ids,
                ended=self._ended,
                is_held_back=self._is_held_back,
            )
            total = _sum(total, verdict)
            for one in missed:
                self.says(f"{name}: missed: {one.rule} {one.field} {one.value}".rstrip())
            for source, count in lost.items():
                self.says(f"{name}: {source}: {count} of {given[source]} records are not there")
            for row in false:
                self.says(f"{name}: nobody promised: {_line(row)}")
        return self._with_response(self._with_city(total))

    @property
    def _runs_promised(self) -> int:
        """One at each operator of the stranger's campaign: the hub proposes it to both."""
        return len(STRANGER) if self._is_campaign_promised else 0

    @property
    def _is_campaign_promised(self) -> bool:
        """Whether the stranger comes to both operators."""
        return not {*STRANGER} & {*self.without}

    @property
    def _is_stopped(self) -> bool:
        """Whether the kill switch is on."""
        return self.options.stop_file is not None and self.options.stop_file.exists()

    @property
    def _is_held_back(self) -> bool:
        """Whether what playbooks would do need not come about."""
        return self._is_stopped or not self.options.approves

    def _with_response(self, total: Verdict) -> Verdict:
        """What playbooks did, and whether it is what people said yes to, and all of it undone."""
        found = self._officers.responded()
        wrong = found.unasked
        if found.unasked:
            self.says(f"city: {found.unasked} blocks came without a yes")
        # Without the duty officers it is whoever sits at the consoles who says yes, or nobody.
        if self.options.approves or self._is_stopped:
            promised = 0 if self._is_stopped else self._runs_promised
            wrong += abs(found.effects_applied - promised)
            if found.effects_applied != promised:
                self.says(f"city: {found.effects_applied} blocks, {promised} were promised")
        return msgspec.structs.replace(
            total,
            missed=total.missed + wrong,
            runs=found.runs,
            effects_applied=found.effects_applied,
            effects_undone=found.effects_undone,
            in_force=found.in_force,
        )

    def _with_city(self, total: Verdict) -> Verdict:
        """What the hub shows: what left, what stayed, and what became one picture."""
        shared, joined = self._visitor.shared(), self._visitor.campaigns()
        by_token = [one for one in joined if one["cw.campaign.join"] == "token"]
        for one in joined:
            self.says(f"city: {_line(one)}")
            for told in self._visitor.answers(one["cw.share.id"]):
                self.says(f"city: {told['operator']} answered: {told['answer']}")
        promised = int(self._is_campaign_promised)
        is_right = len(by_token) == promised
        if not is_right:
            self.says(f"city: {len(by_token)} campaigns by token, {promised} was promised")
        return msgspec.structs.replace(
            total,
            shared=len(shared),
            campaigns=len(joined),
            kept_back=total.findings - len(shared),
            missed=total.missed + (not is_right),
        )

    def _stage(self, node: OneNode, clock: Clock, scene: str) -> Stage:
        return Stage(self.city, node.place, clock, scene)

    def _need(self, lacks: Callable[[], str]) -> None:
        """Wait until nothing is lacking, without which no evening can begin."""
        if lacking := self._patience.until_nothing(lacks):
            todo = "Try again when this machine has less to do."
            raise TransientError(f"nothing moves any more, and {lacking}", "", todo)

    def _check_processes(self) -> None:
        """Raise if one has ended."""
        for child in (*self.nodes, self.hub):
            if child.pid and not child.is_running:
                raise child.fault("ended")

    def _unready(self) -> str:
        """What is lacking until every open source is being read, and what was before is known."""
        waiting: list[str] = []
        for name, stranger in self._strangers.items():
            feeds = stranger.node.place.feeds
            waited = {feed.id if feed.kind != "tap" else captures_of(feed)[0] for feed in feeds}
            states = {one["source"]: one for one in stranger.sources()}
            is_open = {one for one, state in states.items() if state["state"] != "waiting"}
            waiting += [f"{one} of {name}" for one in sorted(waited - is_open)]
            for source, count in self._players[name].given.items():
                records = states[source]["records"] if source in states else 0
                if records < count:
                    waiting.append(f"{source} of {name} ({records} of {count} records)")
        return f"these sources are not read: {', '.join(waiting)}" if waiting else ""

    def _unread(self) -> str:
        """What is lacking until the nodes have read all that they were given."""
        read = given = open_ = 0
        for name, stranger in self._strangers.items():
            states = {one["source"]: one for one in stranger.sources()}
            taps = self._taps(stranger)
            for source, count in self._players[name].given.items():
                state = states.get(source, {"records": 0, "state": "waiting"})
                given += count
                read += min(state["records"], count)
                open_ += source in taps and state["state"] != "ended"
        if read == given and not open_:
            return ""
        return f"{read} of {given} records are read, {open_} captures not to their end"

    def _unshared(self) -> str:
        """What is lacking until all that may leave is at the hub."""
        leaving = sum(stranger.leaving() for stranger in self._strangers.values())
        shared = len(self._visitor.shared())
        return "" if shared >= leaving else f"{shared} of {leaving} findings are at the hub"

    def _unsettled(self) -> str:
        """What is lacking until every promised run has begun and ended."""
        return self._officers.unsettled(self._runs_promised)

    def _taps(self, stranger: Stranger) -> set[str]:
        return {
            name
            for feed in stranger.node.place.feeds
            if feed.kind == "tap"
            for name in captures_of(feed)
        }

    def _look(self) -> None:
        """Look for the first finding like a person who reloads the page."""
        while not self.stop.wait(LOOK_EVERY_S) and self.first_finding_s is None:
            for stranger in self._strangers.values():
                try:
                    found = stranger.findings()
                except TransientError:
                    continue
                if found:
                    self.first_finding_s = time.monotonic() - self._began_s
                    self.says(f"The first finding is there: {_line(found[0])}")
                    return

    def _announce(self, steps: Sequence[tuple[Step, Scene]], clock: Clock) -> None:
        """Say each step when it is played."""
        for step, scene in sorted(steps, key=lambda one: one[1].puts[0].at_s):
            wait_s = clock.time(scene.puts[0].at_s).timestamp() - time.time()
            if self.stop.wait(max(wait_s, 0.0)):
                return
            self.says(f"{step.operator}: {step.name}: {step.says}")


def _silent(children: Sequence[Child]) -> str:
    """Who of them has not yet said where its console is."""
    silent = [
        f"{child.operator} ({cpu_s(child.pid):.0f} s of work)"
        for child in children
        if not child.answers()
    ]
    return f"{', '.join(silent)} did not start" if silent else ""


def _outside(people: Sequence[Visitor]) -> str:
    """How many of them are not signed in; signs in one who is not."""
    outside = [one for one in people if not one.is_signed_in]
    if outside:
        outside[0].sign_in()
    return f"{len(outside)} people are not signed in" if outside else ""


def _check(speed: float, without: Sequence[str]) -> None:
    known = [step.name for step in STEPS]
    for name in without:
        if name not in known:
            raise InputError(f"no step is called {name!r}", "--without", ", ".join(known))
    if not SPEED_MIN <= speed <= SPEED_MAX:
        todo = f"Give {SPEED_MIN:g} to {SPEED_MAX:g}."
        raise InputError(f"the evening cannot pass {speed:g} times as fast", "--speed", todo)


def rule_ids_of(expected: Mapping[str, Sequence[Expected]]) -> dict[str, str]:
    """Id of each promised rule by its path in the library."""
    rules = {one.rule for promised in expected.values() for one in promised}
    texts = {rule: (RULES_FOLDER / f"{rule}.yml").read_text(encoding="utf-8") for rule in rules}
    return {rule: str(yaml.safe_load(text)["id"]) for rule, text in texts.items()}


def _sum(one: Verdict, other: Verdict) -> Verdict:
    added = {
        name: getattr(one, name) + getattr(other, name)
        for name in Verdict.__struct_fields__
        if isinstance(getattr(one, name), int) and name != "peak_rss_mb"
    }
    return msgspec.structs.replace(one, **added)


def _line(finding: Document) -> str:
    return f"{finding.get('finding.severity')}: {finding.get('finding.description')}"
