"""How a model keeps its state: one line of JSON, then raw arrays; never a pickle."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

STATE_MAX_BYTES = 1 << 30
"""No honest snapshot unpacks to more; a longer one is refused before it fills the memory."""


def pack(
    model: str, version: int, header: Mapping[str, Any], arrays: Sequence[bytes] = ()
) -> bytes:
    """One snapshot: a header line that says what follows, and the arrays, compressed."""
    lengths = [len(array) for array in arrays]
    line = {"model": model, "version": version, "lengths": lengths, "header": header}
    return msgspec.json.encode(line) + b"\n" + zlib.compress(b"".join(arrays), 1)


def unpack(state: bytes, model: str, version: int) -> tuple[dict[str, Any], list[bytes]]:
    """Header and arrays of a snapshot.

    Raises:
        ValueError: it is of another model or version, or damaged.
    """
    line, _, body = state.partition(b"\n")
    try:
        said = msgspec.json.decode(line)
        if (said["model"], said["version"]) != (model, version):
            raise ValueError(
                f"a snapshot of {said['model']} version {said['version']}, "
                f"{model} version {version} is wanted"
            )
        raw = zlib.decompressobj().decompress(body, STATE_MAX_BYTES)
        header, lengths = dict(said["header"]), [int(length) for length in said["lengths"]]
    except (KeyError, TypeError, RecursionError, zlib.error) as error:
        raise ValueError(f"no snapshot of {model}: {error!r}") from error
    if sum(lengths) != len(raw) or any(length < 0 for length in lengths):
        raise ValueError(f"a damaged snapshot of {model}: {len(raw)} bytes of {sum(lengths)}")
    arrays, at = [], 0
    for length in lengths:
        arrays.append(raw[at : at + length])
        at += length
    return header, arrays
