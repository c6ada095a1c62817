"""YAML from strangers: no aliases, bounded in size, depth and nodes, with line numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cityward.errors import RuleError

MAX_BYTES = 1_048_576
MAX_DEPTH = 24
MAX_NODES = 200_000
_LONG_NUMBER = re.compile(r"[-+.\d][\w.:+-]{300,}")
"""YAML 1.1 counts `1:1:1…` to the base of 60, in a time that grows with the square."""

Place = tuple[str | int, ...]
"""Path of keys and list positions from the root of a document."""
T = TypeVar("T")


class Document:
    """One YAML document and where each of its parts stands; it is never changed."""

    value: Any
    file: str
    lines: dict[Place, int]
    """Place of every key and list item to its line, from 1."""

    def __init__(self, value: Any, file: str, lines: dict[Place, int]) -> None:
        self.value = value
        self.file = file
        self.lines = lines

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Document):
            return NotImplemented
        return (self.value, self.file, self.lines) == (other.value, other.file, other.lines)

    def __hash__(self) -> int:
        return hash(self.file)

    def line(self, *place: str | int) -> int:
        """Line of a part, or of the nearest part around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def where(self, *place: str | int) -> str:
        """`file:line` of a part, for messages."""
        return f"{self.file}:{self.line(*place)}"


def read(path: Path) -> list[Document]:
    """Read every document of a file.

    Raises:
        RuleError: the file is too large, no UTF-8, no YAML, or uses aliases.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    return parse(data, str(path))


def parse(data: bytes | str, file: str = "<text>") -> list[Document]:
    """Parse YAML text into documents; the same limits and errors as `read`."""

    def document(loader: Any, node: Any) -> Document:
        lines: dict[Place, int] = {}
        _mark(node, (), lines)
        return Document(loader.construct_document(node), file, lines)

    return _each(data, file, document)


class Unquoted(NamedTuple):
    """A value that stands without quotes and that YAML reads as something else than text."""

    place: Place
    text: str
    """As it stands there."""
    value: Any
    line: int
    """From 1, like the column."""
    column: int


def unquoted(data: bytes | str, file: str = "<text>") -> list[Unquoted]:
    """Values of all documents that YAML 1.1 takes for a number, a flag, a time or null.

    References:
        YAML 1.1, "Language-Independent Types": bool, float, int, null, timestamp.

    Raises:
        RuleError: as of `read`.
    """
    found = _each(data, file, lambda loader, node: [*_unquoted(loader, node, ())])
    return [*chain.from_iterable(found)]


def _each(data: bytes | str, file: str, take: Callable[[Any, Any], T]) -> list[T]:
    """What is taken of the root of each document, with the loader that has read it."""
    import yaml

    raw = data.encode() if isinstance(data, str) else data
    if len(raw) > MAX_BYTES:
        raise RuleError(f"larger than {MAX_BYTES} bytes", file, "Split the file.")
    try:
        text = raw.decode("utf-8")
        _guard(text, file)
        loader = _loader()(text)
        try:
            found = []
            while loader.check_node():
                found.append(take(loader, loader.get_node()))
            return found
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise RuleError(f"no UTF-8 at byte {error.start}", file, "Save it as UTF-8.") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        what = getattr(error, "problem", None) or str(error)
        raise RuleError(f"no YAML: {what}", where, "Mend the syntax.") from error


def _loader() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _guard(text: str, file: str) -> None:
    """Refuse aliases, depth and number of nodes while nothing has been built yet."""
    import yaml

    depth = 0
    for nodes, event in enumerate(yaml.parse(text, Loader=_loader())):
        mark = event.start_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        if isinstance(event, yaml.AliasEvent):
            # Where only `what` is told, in lists of rules, it still says what to do.
            what = f"the alias *{event.anchor} is not taken: write out what it stands for"
            raise RuleError(what, where, "A few aliases can stand for gigabytes, so none is taken.")
        if isinstance(event, yaml.ScalarEvent) and _is_endless(event):
            raise RuleError(f"{len(event.value)} characters in a number", where, "Quote it.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise RuleError(f"nested deeper than {MAX_DEPTH}", where, "Flatten it.")
        if nodes > MAX_NODES:
            raise RuleError(f"more than {MAX_NODES} values", where, "Split the file.")


def _is_endless(scalar: Any) -> bool:
    """Whether a value without quotes would be read as a number of hundreds of digits."""
    return not scalar.implicit[1] and _LONG_NUMBER.fullmatch(scalar.value) is not None


def _mark(node: Any, place: Place, lines: dict[Place, int]) -> None:
    import yaml

    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, key.value) if isinstance(key, yaml.ScalarNode) else place
            if inner in lines and inner != place:
                what = f"key {key.value[:60]!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
            lines[inner] = key.start_mark.line + 1
            _mark(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _mark(value, (*place, index), lines)


def _unquoted(loader: Any, node: Any, place: Place) -> Iterator[Unquoted]:
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield from _unquoted(loader, value, (*place, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _unquoted(loader, value, (*place, index))
    elif node.tag != "tag:yaml.org,2002:str" and _stands_there(node):
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        yield Unquoted(place, node.value, loader.construct_object(node), line, column)


def _stands_there(scalar: Any) -> bool:
    """Whether a value is all that stands there: no quotes, and no tag that says what it is."""
    start, end = scalar.start_mark, scalar.end_mark
    length: int = end.column - start.column
    return start.line == end.line and length == len(scalar.value) > 0
