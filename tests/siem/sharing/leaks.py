"""Looks for values that were to stay, in all that left: in clear, and as somebody may hide them.

A value is found plain, as hex, in base64 at any offset, as its MD5, SHA-1 or SHA-256, and an
address also with its octets turned round and as a number; in data as they are, in what JSON escapes
hide, in gzip and zlib streams within them and in what decodes as base64, layer by layer.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

LENGTH_MIN = 5
"""A shorter value stands in anything by chance."""
LAYERS = 3
UNPACKED_MAX = 64 << 20
_GZIP = re.compile(rb"\x1f\x8b\x08")
_ZLIB = re.compile(rb"\x78[\x01\x5e\x9c\xda]")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{24,}={0,2}")
_ESCAPE = re.compile(rb"\\u([0-9a-fA-F]{4})")


class Leak(NamedTuple):
    """A value that was to stay."""

    name: str
    form: str
    where: str


def leaks(secrets: Mapping[str, Iterable[str]], data: Mapping[str, bytes]) -> list[Leak]:
    """Every value that is found.

    Args:
        secrets: Field to values that were to stay.
        data: What left, by a name for it: payloads, files, lines of a log.
    """
    needles = {
        needle: (name, form)
        for name, values in secrets.items()
        for value in values
        if len(value) >= LENGTH_MIN
        for form, needle in forms(value)
    }
    found = set()
    for where, raw in data.items():
        for layer, part in layers(raw):
            folded = part.lower()
            for needle, (name, form) in needles.items():
                # Base64 and packed bytes have no other case.
                if needle in (part if form.startswith(("base64", "packed")) else folded):
                    found.add(Leak(name, form, f"{where}{layer}"))
    return sorted(found)


def leaks_in_files(secrets: Mapping[str, Iterable[str]], folder: Path) -> list[Leak]:
    """The same for every file below a folder."""
    data = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    return leaks(secrets, data)


def forms(value: str) -> Iterator[tuple[str, bytes]]:
    """A value in every form in which it is looked for; but for base64 and bytes in lower case."""
    for said in dict.fromkeys((value, value.lower(), value.upper())):
        raw = said.encode()
        yield "plain", raw.lower()
        yield "utf-16", said.encode("utf-16-le").lower()
        yield "hex", raw.hex().encode()
        yield from _in_base64("base64", raw)
        for name in ("md5", "sha1", "sha256"):
            digest = hashlib.new(name, raw, usedforsecurity=False).digest()
            yield name, digest.hex().encode()
            yield from _in_base64(f"base64 of {name}", digest, whole=True)
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return
    yield from _of_address(address)


def _of_address(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> Iterator[tuple[str, bytes]]:
    yield "reversed", address.reverse_pointer.encode()
    yield "reversed", address.reverse_pointer.rpartition(".in-addr")[0].encode() or b"\0none"
    yield "integer", str(int(address)).encode()
    yield "hex", f"{int(address):x}".zfill(address.max_prefixlen // 4).encode()
    yield "exploded", address.exploded.encode()
    # Four bytes stand in compressed data by chance; sixteen do not.
    if address.version == 6:
        yield "packed", address.packed
    for prefix in (f"ipv{address.version}-addr:",):
        typed = f"{prefix}{address}".encode()
        for name in ("md5", "sha1", "sha256"):
            said = hashlib.new(name, typed, usedforsecurity=False).hexdigest()
            yield f"{name} with its type", said.encode()


def _in_base64(form: str, raw: bytes, *, whole: bool = False) -> Iterator[tuple[str, bytes]]:
    """Base64 of bytes wherever they begin in a longer text: three offsets, without the rims."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for offset in (0,) if whole else (0, 1, 2):
            said = encode(b"\0" * offset + raw)
            begin = (0, 2, 3)[offset]
            end = len(said) - (0, 3, 2)[(len(raw) + offset) % 3]
            end -= 1 if (len(raw) + offset) % 3 else 0
            if end - begin >= 6:
                yield form, said[begin:end]


def layers(data: bytes, depth: int = LAYERS) -> Iterator[tuple[str, bytes]]:
    """The data, and what is packed within them."""
    yield "", data
    if b"\\u" in data:
        yield " unescaped", _unescaped(data)
    if depth == 0:
        return
    for name, inner in _packed(data):
        for layer, part in layers(inner, depth - 1):
            yield f" {name}{layer}", part


def _unescaped(data: bytes) -> bytes:
    return _ESCAPE.sub(
        lambda found: json.loads(b'"' + found[0] + b'"').encode("utf-8", "replace"), data
    )


def _packed(data: bytes) -> Iterator[tuple[str, bytes]]:
    for pattern, bits, name in ((_GZIP, 31, "gzip"), (_ZLIB, 15, "zlib")):
        for begin in pattern.finditer(data):
            try:
                unpacker = zlib.decompressobj(bits)
                inner = unpacker.decompress(data[begin.start() :], UNPACKED_MAX)
            except zlib.error:
                continue
            if len(inner) >= LENGTH_MIN:
                yield name, inner
    for found in _BASE64.finditer(data):
        said = found[0].rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        try:
            inner = base64.b64decode(said + b"=" * (-len(said) % 4))
        except binascii.Error:
            continue
        yield "base64", inner
