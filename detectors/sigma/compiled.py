"""Rules as they were read last time, so that a start does not read them all again.

What a file gave is kept under the hash of its path and its content; so one changed file is read
again, and it alone. Everything is plain data, read back with its types: nothing in the file is ever
run. Documents, half of all, are only read back when somebody asks for them. A file that another
person could have written is not believed, nor one that is not whole.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import zlib
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from cityward.documents import Document, Place
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
_DAY, _EVERY, _DOCUMENT = 1, 2, 3
"""Extension types of msgpack for what would come back as a text, as a list, and too soon."""
_MANY = 50_000
"""So many new objects are looked through for garbage in some 5 ms."""
_SUM_BYTES = 4
"""Stand before all: the sum of what follows."""


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
            if _decoder(FileRules).decode(_encoder().encode(given)) == given:
                self._used[key] = given

    def save(self) -> None:
        """Write what was used, if it is not what was read; files that have gone are forgotten.

        Nothing is lost if it cannot be written: the next start takes longer.
        """
        if self._used.keys() == self._known.keys():
            return
        content = _encoder().encode(_Kept(_version(), self._used))
        try:
            kept.write(self._path, _sum(content) + content)
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
            if gc.get_count()[0] > _MANY:
                _grow_old()
            gc.enable()


def _grow_old() -> None:
    """Put all that was made among what is old, where garbage is looked for last."""
    if not gc.get_freeze_count():  # else somebody else wants it to stay frozen
        gc.freeze()
        gc.unfreeze()


def _read(path: Path) -> Mapping[bytes, FileRules]:
    try:
        given = memoryview(kept.read(path) or b"")
        content = given[_SUM_BYTES:]
        if given[:_SUM_BYTES] != _sum(content):
            return {}
        found = _decoder(_Kept).decode(content)
    except (OSError, msgspec.DecodeError):
        return {}
    return found.files if found.version == _version() else {}


def _sum(content: bytes | memoryview) -> bytes:
    return zlib.crc32(content).to_bytes(_SUM_BYTES, "big")


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


@cache
def _encoder() -> msgspec.msgpack.Encoder:
    return msgspec.msgpack.Encoder(enc_hook=_enc_hook)


def _enc_hook(one: Any) -> Any:
    if not isinstance(one, Document):
        raise TypeError(f"{type(one)} is not kept")
    parts = (one.file, *map(msgspec.msgpack.encode, (_packed(one.value), one.lines)))
    return msgspec.msgpack.Ext(_DOCUMENT, msgspec.msgpack.encode(parts))


_PARTS: Mapping[str, Any] = {"value": Any, "lines": dict[Place, int]}


class _Later(Document):
    """A document whose parts are read back when they are first asked for, by any thread."""

    def __init__(self, file: str, value: bytes, lines: bytes) -> None:
        self.file = file
        self._kept = {"value": value, "lines": lines}

    def __getattr__(self, name: str) -> Any:
        """Only called for what is not there yet."""
        if name not in _PARTS:
            raise AttributeError(name)
        part = _decoder(_PARTS[name]).decode(self._kept[name])
        setattr(self, name, part)
        return part


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
    if code == _DOCUMENT:
        return _Later(*_decoder(tuple[str, bytes, bytes]).decode(data))
    if code == _EVERY:
        return Every(_decoder(list[Any]).decode(data))
    return date.fromisoformat(bytes(data).decode())
