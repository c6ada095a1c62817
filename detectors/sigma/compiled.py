"""Rules as they were read last time, so that a start does not read them all again.

What a file gave is kept under the hash of its path and its content; so one changed file is read
again, and it alone. Everything is plain data, read back with its types: nothing in the file is ever
run. A file that another person could have written is not believed.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from cityward.errors import RuleError
from detectors.sigma import kept
from detectors.sigma.pipelines import Every
from detectors.sigma.rule import Absence, Correlation, Filter, Rule

log = logging.getLogger(__name__)

Loaded = Rule | Correlation | Absence | Filter

_HERE = Path(__file__).parent
_READ_WITH = ("msgspec", "google-re2", "PyYAML")
_WORDS = ("documents", "event", "finding")
"""The vocabulary that compiled rules are written in."""
_DAY, _EVERY = 1, 2
"""Extension types of msgpack for what would come back as a text, and as a list."""


class FileRules(msgspec.Struct, frozen=True, array_like=True):
    """What one file gave."""

    found: tuple[Loaded, ...]
    refused: tuple[tuple[str, str, str], ...]
    """What, where and what to do, of each `RuleError`."""

    def faults(self) -> list[RuleError]:
        """Why documents of the file are not loaded."""
        return [RuleError(*one) for one in self.refused]


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    version: str
    files: dict[bytes, FileRules]


class Compiled:
    """What the files of a rule set gave, kept in a file of our own.

    Args:
        path: Where it is kept; its folder must be ours alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)
        self._used: dict[bytes, FileRules] = {}

    def get(self, key: bytes) -> FileRules | None:
        """What a file gave last time; None if it was not read, or not by this program."""
        found = self._known.get(key)
        if found is not None:
            self._used[key] = found
        return found

    def put(self, key: bytes, given: FileRules) -> None:
        """Keep what a file gave, if it comes back as it is."""
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            if _decoder(FileRules).decode(msgspec.msgpack.encode(_plain(given))) == given:
                self._used[key] = given

    def save(self) -> None:
        """Write what was used, if it is not what was read; files that have gone are forgotten.

        Nothing is lost if it cannot be written: the next start takes longer.
        """
        if self._used.keys() == self._known.keys():
            return
        files = {key: _plain(one) for key, one in self._used.items()}
        try:
            kept.write(self._path, msgspec.msgpack.encode(_Kept(_version(), files)))
        except OSError as error:
            log.warning("Compiled rules cannot be kept in %s: %s.", self._path, error.strerror)


def key_of(path: str, content: bytes, pipelines: bytes) -> bytes:
    """Under what a file is kept: its path, its content, and what it was translated with."""
    digest = hashlib.blake2b(pipelines, digest_size=16)
    digest.update(path.encode("utf-8", "surrogateescape") + b"\0")
    digest.update(content)
    return digest.digest()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Thousands of rules are made and none dropped: to look for garbage would double the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read(path: Path) -> Mapping[bytes, FileRules]:
    try:
        content = kept.read(path)
        found = None if content is None else _decoder(_Kept).decode(content)
    except (OSError, msgspec.DecodeError):
        return {}
    return found.files if found is not None and found.version == _version() else {}


@cache
def _version() -> str:
    """What the form and the meaning of compiled rules depend on: all lines that could read them."""
    digest = hashlib.blake2b(digest_size=16)
    vocabulary = _HERE.parent.parent / "cityward"
    words = (vocabulary / f"{name}.py" for name in _WORDS)
    for source in (*sorted(_HERE.glob("*.py")), *sorted(_HERE.glob("data/*")), *words):
        digest.update(source.read_bytes())
    return " ".join([digest.hexdigest(), *map(version, _READ_WITH)])


# --- Plain data --------------------------------------------------------------------------------


@cache
def _decoder(kind: Any) -> Any:
    return msgspec.msgpack.Decoder(kind, ext_hook=_ext_hook)


def _plain(given: FileRules) -> FileRules:
    """With its documents as something that comes back as it is."""
    found = []
    for one in given.found:
        value = _packed(one.document.value)
        document = msgspec.structs.replace(one.document, value=value)
        found.append(msgspec.structs.replace(one, document=document))
    return msgspec.structs.replace(given, found=tuple(found))


def _packed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _packed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_packed(inner) for inner in value]
    if isinstance(value, Every):
        return msgspec.msgpack.Ext(_EVERY, msgspec.msgpack.encode(_packed(list(value))))
    if isinstance(value, date) and not isinstance(value, datetime):
        return msgspec.msgpack.Ext(_DAY, value.isoformat().encode())
    return value


def _ext_hook(code: int, data: memoryview) -> Any:
    if code == _EVERY:
        return Every(_decoder(list[Any]).decode(data))
    return date.fromisoformat(bytes(data).decode())
