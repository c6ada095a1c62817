"""Snapshots: a line of JSON and raw arrays, refused when damaged or foreign."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from detectors.anomaly import state as module
from detectors.anomaly.series import Series
from detectors.anomaly.silence import Silence
from detectors.anomaly.state import pack, unpack
from detectors.anomaly.surprise import Surprise


def test_what_was_packed_comes_back() -> None:
    packed = pack("model.x", 3, {"rows": 7, "names": ["ä"]}, [b"\x00\n\xff", b"", b"abc"])

    header, arrays = unpack(packed, "model.x", 3)

    assert header == {"rows": 7, "names": ["ä"]}
    assert arrays == [b"\x00\n\xff", b"", b"abc"]


def test_the_first_line_says_in_plain_json_what_follows() -> None:
    packed = pack("model.x", 3, {}, [b"ab"])

    assert packed.partition(b"\n")[0] == (
        b'{"model":"model.x","version":3,"lengths":[2],"header":{}}'
    )


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (b"", "truncated"),
        (b"\xff\xfe", "malformed"),
        (b"[]\n", "no snapshot of model.x"),
        (b"7\n", "no snapshot of model.x"),
        (b"[" * 100_000, "no snapshot of model.x"),
        (pack("model.y", 3, {}), "a snapshot of model.y version 3, model.x version 3 is wanted"),
        (pack("model.x", 2, {}), "a snapshot of model.x version 2"),
        (pack("model.x", 3, {}, [b"abc"])[:-9], "damaged snapshot of model.x|no snapshot"),
        (b'{"model":"model.x","version":3}\n' + zlib.compress(b""), "'header'"),
        (
            b'{"model":"model.x","version":3,"lengths":[-1,1],"header":{}}\n' + zlib.compress(b""),
            "damaged",
        ),
    ],
)
def test_what_is_damaged_or_foreign_is_refused(damaged: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        unpack(damaged, "model.x", 3)


def test_a_snapshot_that_unpacks_without_end_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STATE_MAX_BYTES", 1_000)
    line = b'{"model":"model.x","version":3,"lengths":[100000],"header":{}}\n'

    with pytest.raises(ValueError, match="1000 bytes of 100000"):
        unpack(line + zlib.compress(bytes(100_000)), "model.x", 3)


@pytest.mark.parametrize("make", [Surprise, Series, Silence])
@pytest.mark.parametrize(
    "header",
    [
        {},
        {"entities": 3, "sensors": 3, "sources": 3},
        {"entities": [[]], "sensors": [[]], "sources": [[]]},
        {
            "entities": [["a", True, 9]],
            "sensors": [["a", 1, 2]],
            "sources": [["a", 0, False, ["x"], []]],
            "evicted": 0,
            "unkeyed": 0,
            "jumps": 0,
        },
    ],
)
def test_a_model_refuses_a_header_of_another_shape_and_stays_as_it_was(
    make: Callable[[], Any], header: dict[str, Any]
) -> None:
    model = make()
    version = sys.modules[make.__module__].VERSION

    with pytest.raises(ValueError, match=r"no snapshot of|wanted|size|unpack|argument"):
        model.restore(pack(model.name, version, header, [b"", b"", b""]))

    assert len(model) == 0
