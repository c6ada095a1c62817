"""`cityward playbook`: what is there, what a file says, its CACAO form, its signature."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from cityward import InputError, RuleError
from playbooks import cacao, calls, sign
from playbooks import playbook as files
from playbooks.model import Playbook, Step
from playbooks.safety import span
from siem import output as streams
from siem.commands.common import ConfigFile, Output, UsageError, settings_of
from siem.config import Settings
from siem.node import now_utc
from siem.output import visible
from siem.playbooks import playbooks_of
from siem.sharing.certificates import write_secret
from siem.store.stages import Staged, staged

COLUMNS = ("called", "playbook", "stage", "starts", "classes", "signed")
STEP_COLUMNS = ("step", "type", "class", "does", "holds", "ends", "then")
FOREIGN_COLUMNS = ("step", "type", "does", "then")
CHECK_COLUMNS = ("where", "what", "todo")
KEY_ENDING, PUBLIC_ENDING = ".key", ".pub.yml"

Switch = Annotated[bool, Parameter(negative=())]


def list_(*, in_force: Switch = False, config: ConfigFile = None, output: Output = None) -> int:
    """List the playbooks that count here, or with --in-force what they block now.

    Leaves with 4 if one is refused; the others count.
    Example: cityward playbook list

    Args:
        in_force: What holds now: since when, until when, by whom, why; `undo` takes it back.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv.
    """
    if in_force:
        from siem.commands import response

        return response.in_force(config, output)
    settings, _ = settings_of(config)
    found = playbooks_of(settings, now_utc())
    said = _stages(settings)
    rows = [_row(staged(one, said)) for one in found.playbooks]
    _print(rows, output, COLUMNS, "There are no playbooks.")
    _tell(found.refused)
    return 4 if found.refused else 0


def _called(one: Playbook, config: str | None) -> Mapping[str, str]:
    """Names of the playbooks that it may call, by id; only looked for if it calls one."""
    if next(calls.calls(one), None) is None:
        return {}
    found = playbooks_of(settings_of(config)[0], now_utc()).playbooks
    return {other.id: other.name for other in found}


def _stages(settings: Settings) -> Mapping[str, Staged]:
    """What people said of stages at this node, which may never have run."""
    if not (settings.state_path / "node.db").is_file():
        return {}
    from siem import assembly
    from siem.assets import from_settings

    with closing(assembly.db_of(settings, from_settings(settings), now_utc)) as db:
        return db.stages.all()


def show(
    which: str, *, file: Switch = False, config: ConfigFile = None, output: Output = None
) -> int:
    """Show the steps of a playbook; one from elsewhere is shown, and never run.

    Example: cityward playbook show external-scanner

    Args:
        which: A file, or the name, id or file name of a playbook that counts here.
        file: Print its file as it is, to begin one's own with.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv.
    """
    path = _path_of(which, config)
    data = files.read_bytes(path)
    if file:
        print(data.decode("utf-8", "replace"), end="")
        return 0
    if data.lstrip()[:1] == b"{":
        document = cacao.decode(data, str(path))
        if not cacao.is_ours(document):
            return _show_foreign(cacao.outline(document), output)
    one = files.parse(data, str(path), files.specs())
    called = _called(one, config)
    _print([_step_row(one, step, called) for step in one.steps.values()], output, STEP_COLUMNS, "")
    for line in (one.name, one.description, f"version {one.version[:16]}, stage {one.stage}"):
        print(visible(line), file=sys.stderr)
    return 0


def check(*paths: str, output: Output = None) -> int:
    """Say what is wrong with playbooks, with file and line.

    Leaves with 4 if something is. Example: cityward playbook check

    Args:
        paths: Playbooks, or folders of them; without any, those that come with cityward.
        output: Form of the result: table, json, ndjson or csv.
    """
    known = files.specs()
    errors: list[RuleError] = []
    looked_at = _files(paths)
    for path in looked_at:
        try:
            errors += files.examine(files.read_bytes(path), str(path), known)[1]
        except RuleError as error:
            errors.append(error)
    errors += files.faults_of_calls(looked_at, known)
    rows = [{"where": one.where, "what": one.what, "todo": one.todo} for one in errors]
    _print(rows, output, CHECK_COLUMNS, "Nothing is wrong.")
    return 4 if errors else 0


def build(which: str, to: Path | None = None, *, config: ConfigFile = None) -> int:
    """Write a playbook as CACAO 2.0 JSON, to be passed on.

    Example: cityward playbook build external-scanner scanner.json

    Args:
        which: A file, or the name, id or file name of a playbook that counts here.
        to: Where to; otherwise it is printed.
        config: Settings file; otherwise the first one found counts.
    """
    one = files.read(_path_of(which, config), files.specs())
    text = cacao.encode(cacao.build(one))
    if to is None:
        sys.stdout.write(text.decode())
    else:
        _write(to, text)
        print(f"{to} is written, version {one.version[:16]}.", file=sys.stderr)
    return 0


def sign_(
    file: Path | None = None,
    *,
    key: Path | None = None,
    new_key: str = "",
    waive: Switch = False,
) -> int:
    """Sign a playbook: its signature goes into a file beside it.

    Only what is accepted is signed. Whoever shall trust it names the public key in the setting
    `response.keys`. Example: cityward playbook sign --new-key soc

    Args:
        file: The playbook, YAML or built JSON.
        key: The private key.
        new_key: Make a key of this name instead: NAME.key to keep, NAME.pub.yml to hand out.
        waive: Sign that it may go live without 20 runs in shadow, as it is now.
    """
    if new_key:
        return _new_key(new_key)
    if file is None or key is None:
        what = "a file and a key are needed"
        raise UsageError(what, "playbook sign", "Write cityward playbook sign FILE --key NAME.key.")
    data = files.read_bytes(file)
    one = files.parse(data, str(file), files.specs())
    try:
        private = key.read_bytes()
    except OSError as error:
        raise UsageError(f"not read: {error.strerror}", str(key), "Check the path.") from error
    context = sign.WAIVER if waive else sign.CONTEXT
    beside = sign.beside(file, context)
    beside.write_bytes(sign.sign(data, private, key.stem, now_utc(), context))
    said = "may go live at once" if waive else "is signed"
    print(f"{one.name}, version {one.version[:16]}, {said}: {beside}", file=sys.stderr)
    return 0


def _new_key(name: str) -> int:
    if not sign.NAME.fullmatch(name):
        what = f"{name!r} is no name of a key"
        raise UsageError(what, "--new-key", "Letters, digits, - and _ make one.")
    private, public = Path(name + KEY_ENDING), Path(name + PUBLIC_ENDING)
    for path in (private, public):
        if path.exists():
            raise UsageError("it is there already", str(path), "Name another key.")
    secret, shown = sign.new_key(now_utc())
    write_secret(private, secret)
    _write(public, shown)
    print(
        f"{private} signs; keep it away from the node.\n"
        f"{public}, fingerprint {sign.read_key(public).id}, goes into the settings:\n\n"
        f'[response]\nkeys = ["{public.resolve()}"]',
        file=sys.stderr,
    )
    return 0


# ---- Rows


def _row(one: Playbook) -> dict[str, Any]:
    actions = [step for step in one.steps.values() if step.action is not None]
    return {
        "stage": one.stage,
        "playbook": one.name,
        "starts": "on findings" if one.trigger else "by people",
        "classes": sorted({step.safety.action_class for step in actions}),
        "actuators": sorted({step.action.actuator for step in actions if step.action}),
        "signed": one.signed_by or "no",
        "called": Path(one.file).stem,
        "where": one.file,
        "id": one.id,
        "version": one.version,
    }


def _step_row(one: Playbook, step: Step, called: Mapping[str, str]) -> dict[str, Any]:
    names = {id: step.name for id, step in one.steps.items()}
    safety = step.safety
    return {
        "step": step.name,
        "type": step.type,
        "class": safety.action_class if step.action is not None else "",
        "does": _does(step, called),
        "holds": span(safety.time_box) if safety.time_box is not None else "",
        "ends": safety.rollback if safety.time_box is not None else "",
        "then": ", ".join(_then(step, names)),
    }


def _does(step: Step, called: Mapping[str, str]) -> str:
    action = step.action
    if step.playbook:
        return f"calls {called.get(step.playbook, 'a playbook that is not here')}"
    if action is None:
        said = ", ".join(f"{field}: {streams.text(one)}" for field, one in step.when.items())
        return said or step.switch
    if action.actuator == "manual":
        return f"{action.args['role']}: {action.args['text']}"
    target = " ".join(value for key, value in action.target.items() if key != "type")
    return f"{action.actuator}: {action.verb} {target}".rstrip()


def _then(step: Step, names: Mapping[str, str]) -> Iterator[str]:
    links = {"yes": step.on_true, "no": step.on_false, **step.cases}
    yield from (f"{word}: {names[id]}" for word, id in links.items() if id)
    yield from (names[id] for id in step.next_steps)
    if after := step.on_completion or step.on_success:
        yield f"then {names[after]}"
    if step.on_failure:
        yield f"else {names[step.on_failure]}"


def _show_foreign(said: cacao.Outline, output: Output) -> int:
    rows = [
        {"step": one.name, "type": one.type, "does": one.does, "then": one.then}
        for one in said.steps
    ]
    _print(rows, output, FOREIGN_COLUMNS, "It has no steps.")
    for line in (said.name, said.description, "From elsewhere: it is shown, and never run."):
        print(visible(line), file=sys.stderr)
    return 0


# ---- What is looked at


def _files(given: Sequence[str]) -> list[Path]:
    found = []
    for path in [Path(one) for one in given] or [files.LIBRARY]:
        if not path.exists():
            raise InputError("there is no such file or folder", str(path), "Check the path.")
        found += files.files_of(path)
    return found


def _path_of(which: str, config: str | None) -> Path:
    """File of a playbook that is named by file, name or id."""
    if Path(which).is_file():
        return Path(which)
    settings, _ = settings_of(config)
    for one in playbooks_of(settings, now_utc()).playbooks:
        if which.lower() in (one.id, one.name.lower(), Path(one.file).stem.lower()):
            return Path(one.file)
    raise InputError(f"there is no playbook {which}", "", "See cityward playbook list.")


def _write(path: Path, text: bytes) -> None:
    try:
        path.write_bytes(text)
    except OSError as error:
        what = f"not written: {error.strerror}"
        raise UsageError(what, str(path), "Name another file.") from error


def _tell(refused: Sequence[RuleError]) -> None:
    for one in refused:
        print(visible(f"refused: {one.where}: {one.what}"), file=sys.stderr)


def _print(
    rows: Sequence[dict[str, Any]], form: Output, columns: Sequence[str], nothing: str
) -> None:
    chosen = streams.form_for(form, sys.stdout)
    if chosen == "table" and not rows:
        print(nothing)
        return
    streams.write(rows, chosen, columns)
