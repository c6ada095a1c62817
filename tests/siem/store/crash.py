"""Power cuts, made up: what a process wrote, as far as a disk may have kept it.

`traced` runs a program under strace and reads its writes, syncs and names. A `Disk` replays them up
to any moment and makes an image: what was synced is there; of what was not, any part may be – none
of it, the begin, some of it in another order, the last write cut within – and names come in their
order, as a journaling file system keeps them.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.programs import PATIENCE_S, program

CALLS = "openat,lseek,write,pwrite64,ftruncate,fsync,fdatasync,rename,unlink,mkdir,close"
SECTOR = 512
_CALL = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+)")
_FD = re.compile(r"(\d+)<([^>]*)>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


class Op(NamedTuple):
    """Something that the process did to the disk, or said."""

    kind: str
    """`write`, `cut`, `sync`, `make`, `rename`, `remove`, `say`."""
    path: str
    at: int = 0
    data: bytes = b""
    to: str = ""


def traced(words: Sequence[str], folder: Path, environment: dict[str, str]) -> list[Op]:
    """Run a program of one thread; what it did in a folder, and what it said, in order."""
    trace = folder.parent / "trace"
    strace = (
        program("strace"),
        "-y",
        "-xx",
        "-s",
        "4000000",
        "-e",
        f"trace={CALLS}",
        "-o",
        str(trace),
    )
    subprocess.run(
        [*strace, *words], env=environment, check=True, capture_output=True, timeout=PATIENCE_S
    )
    return list(_ops(trace, str(folder)))


def _ops(trace: Path, folder: str) -> Iterator[Op]:
    places: dict[int, int | None] = {}
    with trace.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            found = _CALL.match(line)
            if found and int(found[3]) >= 0:
                yield from _op(found[1], found[2], int(found[3]), folder, places)


def _op(
    call: str, words: str, result: int, folder: str, places: dict[int, int | None]
) -> Iterator[Op]:
    """One system call; `places` is where each open file is written next, None: at its end."""
    texts = [_plain(one) for one in _TEXT.findall(words)]
    if call in ("openat", "mkdir"):
        path = texts[0].decode(errors="replace") if texts else ""
        if call == "openat":
            places[result] = None if "O_APPEND" in words else 0
        if path.startswith(folder) and ("O_CREAT" in words or call == "mkdir"):
            yield Op("make" if call == "openat" else "folder", path)
            if "O_TRUNC" in words:
                yield Op("cut", path)
        return
    if call in ("rename", "unlink"):
        path = texts[0].decode()
        if path.startswith(folder):
            to = texts[1].decode() if call == "rename" else ""
            yield Op("rename" if to else "remove", path, to=to)
        return
    handle = _FD.search(words)
    if handle is None:
        return
    number, path = int(handle[1]), _plain(handle[2]).decode(errors="replace")
    if call == "write" and number == 1:
        yield Op("say", "", data=texts[-1])
    if not path.startswith(folder):
        return
    if call == "lseek":
        places[number] = result
    elif call == "write":
        at = places.get(number, 0)
        yield Op("write", path, -1 if at is None else at, texts[-1][:result])
        places[number] = None if at is None else at + result
    elif call == "pwrite64":
        yield Op("write", path, int(words.rsplit(",", 1)[1]), texts[-1][:result])
    elif call == "ftruncate":
        yield Op("cut", path, int(words.rsplit(",", 1)[1]))
    elif call in ("fsync", "fdatasync"):
        yield Op("sync", path)


def _plain(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


class _File:
    """Bytes that are on the disk, and changes that may be."""

    def __init__(self) -> None:
        self.kept = bytearray()
        self.size = 0
        self.open: list[Op] = []

    def sync(self) -> None:
        for op in self.open:
            _change(self.kept, op)
        self.open.clear()

    def image(self, dice: random.Random) -> bytes:
        """What may be there after a cut."""
        data = bytearray(self.kept)
        ops = list(self.open)
        how = dice.choice(("none", "begin", "some", "shuffled", "cut", "all"))
        if how in ("none", "begin", "cut"):
            ops = ops[: 0 if how == "none" else dice.randint(0, len(ops))]
        elif how in ("some", "shuffled"):
            ops = [op for op in ops if dice.random() < 0.5]
        if how == "shuffled":
            dice.shuffle(ops)
        if how == "cut" and ops and ops[-1].kind == "write":
            sectors = dice.randint(0, len(ops[-1].data) // SECTOR) * SECTOR
            ops[-1] = ops[-1]._replace(data=ops[-1].data[:sectors])
        for op in ops:
            _change(data, op)
        return bytes(data)


def _change(data: bytearray, op: Op) -> None:
    if op.kind == "cut":
        del data[op.at :]
        data.extend(bytes(op.at - len(data)))
        return
    data.extend(bytes(max(0, op.at - len(data))))
    data[op.at : op.at + len(op.data)] = op.data


class Disk:
    """The disk under a process, at the moment up to which it was replayed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, _File] = {}
        """As the process sees them."""
        self._kept: dict[str, _File] = {}
        """As they are on the disk for sure …"""
        self._open: list[tuple[str, Any]] = []
        """… and what may have come to them since, in order."""
        self.said: list[bytes] = []

    def do(self, op: Op) -> None:
        """One step more."""
        if op.kind == "say":
            self.said += op.data.splitlines()
        elif op.kind == "make" and op.path not in self._names:
            self._names[op.path] = _File()
            self._open.append(("make", (op.path, self._names[op.path])))
        elif op.kind == "rename" and op.path in self._names:
            self._names[op.to] = self._names.pop(op.path)
            self._open.append(("rename", (op.path, op.to)))
        elif op.kind == "remove" and op.path in self._names:
            del self._names[op.path]
            self._open.append(("remove", op.path))
        elif op.kind == "sync" and op.path not in self._names:
            self._settle(len(self._open))  # a folder
        elif op.path in self._names:
            self._content(self._names[op.path], op)

    def _content(self, file: _File, op: Op) -> None:
        if op.kind == "sync":
            file.sync()
            made = [
                n for n, (kind, what) in enumerate(self._open) if kind == "make" and what[1] is file
            ]
            self._settle(made[-1] + 1 if made else 0)
        elif op.kind in ("write", "cut"):
            at = file.size if op.at < 0 else op.at
            file.size = at if op.kind == "cut" else max(file.size, at + len(op.data))
            file.open.append(op._replace(at=at))

    def _settle(self, count: int) -> None:
        for change in self._open[:count]:
            _name(self._kept, *change)
        del self._open[:count]

    def image(self, target: Path, dice: random.Random) -> None:
        """Write what may be on the disk after a power cut at this moment."""
        names = dict(self._kept)
        for change in self._open[: dice.randint(0, len(self._open))]:
            _name(names, *change)
        for path, file in names.items():
            there = target / Path(path).relative_to(self._folder)
            there.parent.mkdir(parents=True, exist_ok=True)
            if not path.endswith("-shm"):  # memory, it does not outlive the machine
                there.write_bytes(file.image(dice))


def _name(names: dict[str, _File], kind: str, what: Any) -> None:
    if kind == "make":
        names[what[0]] = what[1]
    elif kind == "rename" and what[0] in names:
        names[what[1]] = names.pop(what[0])
    elif kind == "remove":
        names.pop(what, None)
