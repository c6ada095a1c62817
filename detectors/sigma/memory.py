"""What has been decided is remembered, within one bound for all memories together.

Values of events repeat themselves: a memory decides each distinct one once. When the room that all
memories share is used up, all are emptied: who sends fresh values costs time, never space.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from sys import getsizeof
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

ROOM_BYTES = 64_000_000
"""So much may all memories of an engine hold, by estimate."""
ENTRY_BYTES = 200
"""An entry of a memory without the text of its key."""
SHAPE_BYTES = 4_000
"""An entry that is a way to look at events, with memories of its own."""
LONG = 4_096
"""A text of more bytes than this is decided anew each time: it rarely comes twice."""

Key = TypeVar("Key")
Found = TypeVar("Found")


class Room:
    """How much is remembered, and by whom."""

    def __init__(self, size: int = ROOM_BYTES) -> None:
        self.size = size
        self.used = 0
        self._memories: WeakValueDictionary[int, Memory[Any, Any]] = WeakValueDictionary()

    def enter(self, memory: Memory[Any, Any]) -> None:
        """A memory that has to share this room."""
        self._memories[id(memory)] = memory

    def take(self, size: int) -> None:
        """Something of about this size will be remembered; if there is no room, make it."""
        if self.used + size > self.size:
            self.empty()
        self.used += size

    def empty(self) -> None:
        """Forget everything."""
        for memory in list(self._memories.values()):
            memory.clear()
        self.used = 0


class Memory(dict[Key, Found], Generic[Key, Found]):
    """A look-up that decides what it does not know: `memory[key]`.

    Args:
        room: What it shares with others.
        decide: Says what is not known yet.
        entry_bytes: About what an entry holds besides its key.
        size_of: About how many bytes a key holds.
    """

    def __init__(
        self,
        room: Room,
        decide: Callable[[Key], Found],
        entry_bytes: int = ENTRY_BYTES,
        size_of: Callable[[Key], int] | None = None,
    ) -> None:
        super().__init__()
        self._room = room
        self._decide = decide
        self._entry_bytes = entry_bytes
        self._size_of = size_of or size_of_texts
        room.enter(self)

    def __missing__(self, key: Key) -> Found:
        found = self._decide(key)
        size = getsizeof(key) if isinstance(key, str) else self._size_of(key)
        if size <= LONG:
            self._room.take(self._entry_bytes + size)
            self[key] = found
        return found

    def learn(self, texts: Collection[Key], found: Found) -> None:
        """Remember what was found of several texts at once."""
        self._room.take(sum(map(getsizeof, texts)) + self._entry_bytes * len(texts))
        self.update(dict.fromkeys(texts, found))


def size_of_texts(key: Any) -> int:
    """About how many bytes a key holds that may have texts, or long numbers."""
    if isinstance(key, tuple):
        return sum(map(size_of_texts, key))
    return getsizeof(key) if isinstance(key, (str, int)) else 8


def size_of_answers(key: tuple[Any, ...]) -> int:
    """About how many bytes a key holds whose parts others hold, too."""
    return 8 * len(key)
