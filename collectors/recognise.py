"""Which collector reads a file, by its first bytes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from cityward.plugin import CollectorSpec

HEAD_BYTES = 65_536
"""How much of a file is looked at, after decompression."""

CAPTURES = (
    b"\xd4\xc3\xb2\xa1",
    b"\xa1\xb2\xc3\xd4",
    b"\x4d\x3c\xb2\xa1",
    b"\xa1\xb2\x3c\x4d",
    b"\x0a\x0d\x0d\x0a",
)
"""First bytes of pcap (µs and ns, both byte orders) and pcapng files."""
LATIN_MAX = 0.02
"""Share of control bytes from which a head is no text."""


def recognise(head: bytes, name: str, specs: Mapping[str, CollectorSpec]) -> str | None:
    """Name of the registered collector that reads a file; None if none does.

    Args:
        head: First bytes of the file, 64 KiB are enough; compressed by gzip is fine.
        name: Name of the file; only a hint where the bytes leave a choice.
        specs: Registered collectors by name.
    """
    head = expand(head)[:HEAD_BYTES]
    if not head:
        return None
    if head[:4] in CAPTURES:
        return _first(specs, "packets")
    ranked = sorted(specs.items(), key=lambda item: (-item[1].strength, item[0]))
    readable = [(who, spec) for who, spec in ranked if spec.framing != "packets"]
    for who, spec in readable:
        if spec.framing == "lines" and _is_binary(head):
            continue
        if spec.looks_like is not None and _says_yes(spec, head):
            return who
    return None


def expand(head: bytes) -> bytes:
    """The beginning of a gzip file decompressed as far as it goes (bounded); else as it is."""
    if head[:2] != b"\x1f\x8b":
        return head
    try:
        return zlib.decompressobj(31).decompress(head, HEAD_BYTES)
    except zlib.error:
        return head


def _first(specs: Mapping[str, CollectorSpec], framing: str) -> str | None:
    return next((who for who, spec in sorted(specs.items()) if spec.framing == framing), None)


def _is_binary(head: bytes) -> bool:
    sample = head[:4_096]
    strange = sum(byte < 9 or (13 < byte < 32 and byte != 27) for byte in sample)
    return strange > len(sample) * LATIN_MAX


def _says_yes(spec: CollectorSpec, head: bytes) -> bool:
    # A test that breaks on a strange file is a no; the file is then read by another, or by hand.
    try:
        return bool(spec.looks_like and spec.looks_like(head))
    except Exception:
        return False
