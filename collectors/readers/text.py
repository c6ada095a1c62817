"""The text of a file or stream, uncompressed if it is gzip, and how a file is known again."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

CHUNK_BYTES = 256 << 10
GZIP_MAGIC = b"\x1f\x8b"
GZIP_WBITS = 31
"""zlib's number for a gzip member with header and checksum."""
HEAD_BYTES = 1024
"""How much of its beginning a file is known by."""
COMPRESSED_HEAD_BYTES = 16 << 10
"""More than a gzip header with a long name and `HEAD_BYTES` of any text take."""


class Text:
    """Text in chunks of at most `CHUNK_BYTES`; gzip is recognised by its magic (RFC 1952).

    Args:
        raw: Gives up to so many bytes, `b""` at the end, None if nothing is there yet.
        skip: How much text to leave out at the beginning.
        plain: The text is known not to be packed.
    """

    def __init__(
        self, raw: Callable[[int], bytes | None], skip: int = 0, plain: bool = False
    ) -> None:
        self._raw = raw
        self._skip = skip
        self._begun = b""
        self._plain = plain
        self._unzip: zlib._Decompress | None = None
        self._packed = b""
        self._more_inside = False
        self.ended = False
        """The raw bytes are at their end, for now."""
        self.fault = ""
        """Why the rest cannot be unpacked; empty if it can."""

    @property
    def zipped(self) -> bool:
        """True once the gzip magic was seen."""
        return self._unzip is not None

    @property
    def whole(self) -> bool:
        """False in the middle of a gzip member."""
        return self._unzip is None or self._unzip.eof

    def read(self) -> bytes | None:
        """The next text, maybe empty; None when there is none for now (see `ended`)."""
        if self.fault:
            self.ended = True
            return None
        chunk = self._more()
        if chunk and self._skip:
            left_out = min(self._skip, len(chunk))
            self._skip -= left_out
            chunk = chunk[left_out:]
        return chunk

    def _more(self) -> bytes | None:
        if self._unzip is not None and (self._packed or self._more_inside):
            return self._unpacked()
        data = self._raw(CHUNK_BYTES)
        self.ended = data == b""
        if self._plain:
            return data or None
        if self._unzip is None:
            return self._first(data)
        if not data:
            return None
        self._packed = data
        return self._unpacked()

    def _first(self, data: bytes | None) -> bytes | None:
        """Decide on the first two bytes what this is."""
        self._begun += data or b""
        if self._begun.startswith(GZIP_MAGIC):
            self._unzip = zlib.decompressobj(GZIP_WBITS)
            self._packed, self._begun = self._begun, b""
            return b""
        if GZIP_MAGIC.startswith(self._begun):
            return b"" if data else None
        self._plain = True
        return self.rest()

    def _unpacked(self) -> bytes:
        assert self._unzip is not None
        if self._unzip.eof:
            self._more_inside = False
            # Tapes and some writers fill up with zero bytes between or behind members.
            self._packed = self._packed.lstrip(b"\0")
            if not self._packed:
                return b""
            self._unzip = zlib.decompressobj(GZIP_WBITS)
        try:
            text = self._unzip.decompress(self._packed, CHUNK_BYTES)
        except zlib.error as error:
            self.fault, self._packed = str(error), b""
            return b""
        # zlib can hold text back although it took all bytes in.
        self._more_inside = len(text) >= CHUNK_BYTES
        self._packed = self._unzip.unused_data or self._unzip.unconsumed_tail
        return text

    def rest(self) -> bytes:
        """What was held back to decide whether it is gzip; only at the end of a short file."""
        text, self._begun = self._begun, b""
        return text


class Identity(msgspec.Struct, frozen=True):
    """By what a file is known again after it was renamed, copied or packed."""

    device: int
    inode: int
    head_bytes: int
    """How much of its beginning (uncompressed) was there to be hashed, ≤ `HEAD_BYTES`."""
    head: str

    @classmethod
    def of(cls, file: BinaryIO) -> Identity:
        """Identity of an open file as it is now."""
        stat = os.fstat(file.fileno())
        head = _head(file)
        return cls(stat.st_dev, stat.st_ino, len(head), _hash(head))

    def is_inode_of(self, other: Identity) -> bool:
        """True if both name the same file of the file system, whatever it holds."""
        return (self.device, self.inode) == (other.device, other.inode)

    def begins(self, file: BinaryIO) -> bool:
        """True if the file still begins as it did; it may have grown since."""
        head = _head(file)[: self.head_bytes]
        return len(head) == self.head_bytes and _hash(head) == self.head

    def is_of(self, file: BinaryIO) -> bool:
        """True if the file is this one; an empty file is only known by its inode."""
        return self.begins(file) and (self.head_bytes > 0 or self.is_inode_of(Identity.of(file)))


def open_raw(path: Path) -> BinaryIO:
    """Open a file for reading, unbuffered: what is behind the end may still come."""
    return path.open("rb", buffering=0)


def is_zipped(file: BinaryIO) -> bool:
    """True if an open file begins like gzip."""
    return os.pread(file.fileno(), len(GZIP_MAGIC), 0) == GZIP_MAGIC


def _head(file: BinaryIO) -> bytes:
    head = os.pread(file.fileno(), HEAD_BYTES, 0)
    if not head.startswith(GZIP_MAGIC):
        return head
    packed = os.pread(file.fileno(), COMPRESSED_HEAD_BYTES, 0)
    try:
        return zlib.decompressobj(GZIP_WBITS).decompress(packed, HEAD_BYTES)
    except zlib.error:
        return head


def _hash(head: bytes) -> str:
    return hashlib.sha256(head).hexdigest()[:32]
