"""A playbook's file becomes a checked `Playbook`, or is refused with line and reason.

The keys are those of CACAO, with names of steps instead of ids, ISO 8601 durations, and the keys
of the safety extension directly at step and playbook. A playbook that was built to CACAO JSON is
read through the same checks; a foreign one is refused here, `playbooks/cacao.py` shows it.

References:
    CACAO Security Playbooks 2.0, sections 3 (playbook), 4 (workflow), 5 (commands).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import msgspec

from cityward import RuleError, documents, plugin
from cityward.plugin import ActuatorSpec
from playbooks import cacao, calls, sign
from playbooks.model import Playbook
from playbooks.source import Source, Specs

LIBRARY = Path(__file__).parent / "library"
"""The playbooks that come with cityward."""
SHIPPED_BY = "cityward, as shipped"
"""Whose word those have. Who can change these files can change the code that would check them, so a
signature on them would prove nothing; the release as a whole is signed."""
MAX_BYTES = 65_536


class Loaded(msgspec.Struct, frozen=True):
    """What became of some folders."""

    playbooks: tuple[Playbook, ...]
    refused: tuple[RuleError, ...]


def specs() -> dict[str, ActuatorSpec]:
    """Every actuator that is installed, by name."""
    return {name: part.cityward_spec for name, part in plugin.load("actuators").items()}


def read(path: Path, known: Specs) -> Playbook:
    """Read a playbook's file, YAML or built JSON.

    Raises:
        RuleError: it is refused; for all reasons at once see `examine`.
    """
    return parse(read_bytes(path), str(path), known)


def parse(data: bytes, file: str, known: Specs) -> Playbook:
    """Read a playbook from bytes; the same checks and errors as `read`."""
    playbook, errors = examine(data, file, known)
    if errors or playbook is None:
        raise errors[0]
    return playbook


def read_bytes(path: Path) -> bytes:
    """What stands in a file, as far as it is not too large to be a playbook."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RuleError(f"not read: {error.strerror}", str(path), "Check the path.") from error


def examine(data: bytes, file: str, known: Specs) -> tuple[Playbook | None, list[RuleError]]:
    """Read a playbook and say all that is wrong with it; None if something is."""
    try:
        if len(data) > MAX_BYTES:
            raise RuleError(f"larger than {MAX_BYTES} bytes", file, "No playbook is so long.")
        if data.lstrip()[:1] == b"{":
            return _examine_built(data, file, known)
        found = documents.parse(data, file)
        if len(found) != 1:
            raise RuleError(f"{len(found)} documents", file, "Write one playbook a file.")
    except RuleError as error:
        return None, [error]
    return Source(found[0], known).result()


def _examine_built(data: bytes, file: str, known: Specs) -> tuple[Playbook | None, list[RuleError]]:
    """Read what `cacao.build` wrote: built again it has to be the same."""
    given = cacao.decode(data, file)
    source = cacao.source_of(given, file)
    playbook, errors = Source(documents.Document(source, file, {}), known).result()
    said = cacao.canonical(cacao.without_signatures(given))
    if playbook is not None and cacao.canonical(cacao.build(playbook)) != said:
        errors.append(RuleError("it says more than cityward would run", file, "Build it anew."))
    return (None if errors else playbook), errors


def files_of(folder: Path) -> list[Path]:
    """Playbooks below a folder, or the file itself; cases and signatures beside them are none."""
    if folder.is_file():
        return [folder]
    found = (path for kind in ("*.yml", "*.yaml", "*.json") for path in folder.rglob(kind))
    return sorted(path for path in found if ".cases." not in path.name)


def read_signed(
    path: Path, known: Specs, keys: Sequence[sign.PublicKey], now: datetime
) -> Playbook:
    """Read a playbook and who signed it; without a signature `signed_by` is empty.

    Raises:
        RuleError: it is refused, or its signature is none that counts, which is worse than none.
    """
    # Once: a link that leads elsewhere a moment later vouches for nothing.
    real = path.resolve()
    data, signature = read_bytes(real), sign.beside(path)
    playbook = parse(data, str(path), known)
    waived_by = _waived_by(path, data, keys, now)
    playbook = msgspec.structs.replace(playbook, waived_by=waived_by)
    if LIBRARY in real.parents:
        return msgspec.structs.replace(playbook, signed_by=SHIPPED_BY)
    if not signature.exists():
        return playbook
    try:
        name = sign.verify(data, read_bytes(signature), keys, now)
    except ValueError as error:
        todo = "Look at what was changed, and sign it again."
        raise RuleError(str(error), str(path), todo) from error
    return msgspec.structs.replace(playbook, signed_by=name)


def _waived_by(path: Path, data: bytes, keys: Sequence[sign.PublicKey], now: datetime) -> str:
    """Who lets this very file go live without runs in shadow."""
    waiver = sign.beside(path, sign.WAIVER)
    if waiver.exists():
        with suppress(ValueError):
            return sign.verify(data, read_bytes(waiver), keys, now, sign.WAIVER)
    return ""


def read_folders(
    folders: Sequence[Path], known: Specs, keys: Sequence[sign.PublicKey], now: datetime
) -> Loaded:
    """Read all playbooks below folders; what is refused keeps none of the others out."""
    playbooks: dict[str, Playbook] = {}
    refused: list[RuleError] = []
    for path in (path for folder in folders for path in files_of(folder)):
        try:
            one = read_signed(path, known, keys, now)
        except RuleError as error:
            refused.append(error)
            continue
        if one.id in playbooks:
            there = playbooks[one.id].file
            refused.append(RuleError(f"{one.name} is in {there}, too", str(path), "Rename one."))
        else:
            playbooks[one.id] = one
    whole, faults = calls.linked(playbooks)
    refused += (_refused(playbooks[one.playbook], one) for one in faults)
    return Loaded(tuple(whole.values()), tuple(refused))


def faults_of_calls(paths: Sequence[Path], known: Specs) -> list[RuleError]:
    """Calls of some playbooks that lead nowhere, in a circle or too deep.

    They may call each other, what is beside them, and what ships.
    """
    given = {path.resolve() for path in paths}
    found: dict[str, Playbook] = {}
    for path in given:
        _add(found, path, known)
    if any(next(calls.calls(one), None) for one in found.values()):
        beside = {one for path in given for one in path.parent.glob("*.yml")}
        for path in sorted({*beside, *files_of(LIBRARY)} - given):
            _add(found, path, known)
    faults = calls.linked(found)[1]
    refused = ((found[one.playbook], one) for one in faults)
    return [_refused(one, fault) for one, fault in refused if Path(one.file) in given]


def _add(found: dict[str, Playbook], path: Path, known: Specs) -> None:
    if ".cases." not in path.name:
        with suppress(RuleError):  # what else is wrong with it is told of it alone
            one = read(path, known)
            found.setdefault(one.id, one)


def _refused(playbook: Playbook, fault: calls.Fault) -> RuleError:
    """A fault with the line of the step that calls, as far as the file can say it."""
    where = playbook.file
    with suppress(RuleError):
        document = documents.parse(read_bytes(Path(where)), where)[0]
        where = document.where("workflow", fault.step, "playbook_id")
    return RuleError(fault.what, where, fault.todo)
