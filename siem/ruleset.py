"""The rules of a node: which ones count, which are off, and how each is doing.

Files come first: the library that comes with cityward, then the operator's own folders. What people
deployed stands in the place of a file with the same id.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cityward import RuleError
from siem.assets import from_settings
from siem.config import Settings
from siem.store.embedded import NodeDb
from siem.store.protocol import OFF_IN_SETTINGS, RuleState

if TYPE_CHECKING:
    from detectors.sigma.engine import Engine
    from detectors.sigma.rule import RuleSet, Speaking
    from siem.canaries import Canaries

log = logging.getLogger(__name__)

SWITCHED = "switched off by"
COMPILED = "rules.compiled"
"""Rules as they were read last time, in the state folder."""
SAID_EVERY_S = 2.0

RULES_FOLDER = Path(__file__).parent.parent / "rules"
"""The rule library that comes with cityward."""
HUB_RULES = RULES_FOLDER / "hub"
"""Those of a hub, over shared findings; a node has no use for them."""


def _node_rules() -> Iterator[Path]:
    for folder in sorted(RULES_FOLDER.iterdir()):
        if folder.is_dir() and folder != HUB_RULES and not folder.name.startswith("_"):
            yield folder


NODE_RULES = tuple(_node_rules())


class Library:
    """The rules of the files, read once: a text is tried over them without reading them again."""

    def __init__(self, settings: Settings) -> None:
        from detectors.sigma.load import read_folder

        state = settings.state_path
        self._pipelines = pipelines(settings)
        self._files = read_folder(
            *rule_folders(settings),
            compiled=state / COMPILED if state.is_dir() else None,
            pipelines=self._pipelines,
            progress=_Progress(),
        )

    def with_texts(self, over: Mapping[str, str]) -> RuleSet:
        """All rules; a text stands in the place of a file with the same id."""
        from detectors.sigma.load import tie

        return tie(self._files, over, pipelines=self._pipelines)


def rules_of(
    settings: Settings,
    db: NodeDb,
    library: Library | None = None,
    tried: Mapping[str, str] | None = None,
) -> RuleSet:
    """The rules that count at a node: files, and in their place what people deployed.

    Args:
        settings: Of the node.
        db: Where it stands what was deployed.
        library: The files, if they are read already.
        tried: Texts by name that stand in the place of either.
    """
    tried = tried or {}
    taken = {id for name, text in tried.items() for id in ids_in(text, name)}
    deployed = [one for one in db.rulebook.deployed() if one.document not in taken]
    texts = {one.file: one.text for one in deployed if one.is_whole}
    rules = (library or Library(settings)).with_texts({**texts, **tried})
    broken = [
        RuleError("it is not as it was deployed", one.file, "Deploy it again.")
        for one in deployed
        if not one.is_whole
    ]
    return msgspec.structs.replace(rules, refused=(*rules.refused, *broken))


def ids_in(text: str, name: str) -> list[str]:
    """Ids of documents; none of what is no YAML, which is refused when it is loaded."""
    from cityward import documents

    with contextlib.suppress(RuleError):
        read = documents.parse(text, name)
        return [str(one.value.get("id")) for one in read if isinstance(one.value, dict)]
    return []


def tuned_at(rules: RuleSet, db: NodeDb) -> dict[str, datetime]:
    """When what counts now of a rule was deployed here, or of its filters, or of what it builds on.

    What people called wrong before says nothing of the rule as it is: if it is still wrong, it
    comes again. What they called right before, no change may silence. It is compared with the time
    of events.
    """
    from detectors.sigma.correlation import bases_of
    from detectors.sigma.rule import Rule

    deployed = {one.document: one.time for one in db.rulebook.deployed() if one.is_whole}
    speaking = {one.id: one for one in rules.speaking()}

    @cache
    def latest(id: str) -> datetime | None:
        one = speaking.get(id)
        times = [deployed.get(id)]
        if isinstance(one, Rule):
            times += [deployed.get(each.id) for each in one.filters]
        elif one is not None:
            times += map(latest, bases_of(one))
        return max((time for time in times if time is not None), default=None)

    return {id: time for id in speaking if (time := latest(id)) is not None}


def load(settings: Settings, over: Mapping[str, str] | None = None) -> RuleSet:
    """Read the rules of the files; a text stands in the place of a file with the same id."""
    return Library(settings).with_texts(over or {})


class _Progress:
    """Says how far it is while thousands of rules are read for the first time."""

    def __init__(self) -> None:
        self._said_s = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        if now_s - self._said_s >= SAID_EVERY_S:
            self._said_s = now_s
            log.info("%d of %d files of rules are read.", done, total)


def states_of(
    engine: Engine, off: Mapping[str, str], canaries: Canaries | None = None
) -> list[RuleState]:
    """What is known of each rule, those that are off with the reason."""
    documents = {one.id: one for one in engine.rules.speaking()}
    found = [_rule_state(one, documents, off) for one in engine.states()]
    return found if canaries is None else [_with_canary(one, canaries) for one in found]


def _with_canary(rule: RuleState, canaries: Canaries) -> RuleState:
    last = canaries.of(rule.id) if rule.state == "on" else None
    if last is None:
        return rule
    return msgspec.structs.replace(rule, canary_at=last.time, canary_found=last.is_found)


def samples_of(db: NodeDb, one: Speaking) -> str:
    """YAML of the samples of a rule that counts; empty: there are none."""
    deployed = db.rulebook.newest(one.id)
    return deployed.samples if deployed and deployed.text else samples_beside(one)


def samples_beside(one: Speaking) -> str:
    """The samples of the file that a rule stands in; empty: there are none."""
    from detectors.sigma.samples import samples_file

    try:
        return samples_file(Path(one.document.file)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def states_alone(settings: Settings) -> list[RuleState]:
    """How the rules of the files would do under these settings, without any state."""
    from detectors.sigma.engine import Engine

    lists = from_settings(settings).placeholders(settings.lists)
    engine = Engine(load(settings), lists)
    return states_of(engine, dict.fromkeys(settings.rules.off, OFF_IN_SETTINGS))


def stamp(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Another one if somebody changed a file of the operator's own, or the rights of one."""
    own = (Path(one).expanduser() for one in settings.rules.folders)
    return tuple(
        one
        for path in (*own, *pipelines(settings))
        for one in (_times(path) if path.is_dir() else _time(path))
    )


def _times(folder: Path) -> Iterator[tuple[str, int]]:
    """Files that may hold rules, with when they changed in ns; of thousands in some 10 ms.

    Not the time that a copy may bring along: a file that was put in place with it is another one.
    """
    folders = [str(folder)]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as found:  # it may not be read
            for one in found:
                try:
                    if one.name.lower().endswith((".yml", ".yaml")) and one.is_file():
                        yield one.path, one.stat().st_ctime_ns
                    elif one.is_dir(follow_symlinks=False):
                        folders.append(one.path)
                except OSError:  # it has just gone
                    continue


def _time(file: Path) -> Iterator[tuple[str, int]]:
    with contextlib.suppress(OSError):
        yield str(file), file.stat().st_ctime_ns


def rule_folders(settings: Settings) -> list[Path]:
    """Where the rules of a node come from: the library, unless it is left out, and its own."""
    own = [Path(one).expanduser() for one in settings.rules.folders]
    shipped = (HUB_RULES,) if settings.hub else NODE_RULES
    return [*shipped, *own] if settings.rules.shipped else own


def pipelines(settings: Settings) -> list[Path]:
    """What puts rules of others in our words."""
    return [Path(one).expanduser() for one in settings.rules.pipelines]


def switched_off(settings: Settings, db: NodeDb) -> dict[str, str]:
    """Rules that are off, with the reason; what the settings say cannot be switched on here."""
    off = {
        one.rule: f"{SWITCHED} {one.by}: {one.reason}"
        for one in db.accounts.switches()
        if not one.is_on
    }
    return off | dict.fromkeys(settings.rules.off, OFF_IN_SETTINGS)


def known(settings: Settings, db: NodeDb) -> list[RuleState]:
    """What the path said last of each rule; one that was switched just now is shown so already."""
    off = switched_off(settings, db)
    return [with_switch(one, off) for one in db.rules()]


def with_switch(rule: RuleState, off: Mapping[str, str]) -> RuleState:
    """A rule as it stands with what people switched off."""
    if rule.id not in off and rule.reason.startswith(SWITCHED):
        return msgspec.structs.replace(rule, state="on", reason="")
    if rule.id not in off or rule.state == "refused":
        return rule
    return msgspec.structs.replace(rule, state="not evaluated", reason=off[rule.id])


def _rule_state(state: Any, documents: Mapping[str, Any], off: Mapping[str, str]) -> RuleState:
    """What the engine knows of a rule, with what its document says."""
    found = RuleState(
        id=state.id,
        title=state.title,
        level=state.level,
        state=state.state,
        reason=state.reason,
        file=state.file,
        kind=state.kind,
        evaluated=state.evaluated,
        matches=state.matches,
        arriving=state.arriving,
        never_seen=state.never_seen,
        share=state.share,
        heavy=state.heavy,
        faults=state.faults,
        lost=state.lost,
    )
    found = with_switch(found, off)
    document = documents.get(state.id)
    if document is None:
        return found
    analytic = document.analytic
    return msgspec.structs.replace(
        found,
        logsource=str(getattr(document, "logsource", "")),
        techniques=analytic.techniques,
        tactics=analytic.tactics,
        author=analytic.author,
        license=analytic.license,
        status=analytic.status,
        description=analytic.description,
        falsepositives=analytic.falsepositives,
    )
