"""Whatever a playbook's file holds, it is loaded or refused, never an exception, in linear time."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest

from cityward import documents
from cityward.checks import VALUES, mutants
from playbooks import cacao, playbook
from playbooks.source import Source
from tests.playbooks.test_cacao import EVERY_STEP
from tests.playbooks.test_playbook import GOOD, KNOWN

TEXTS = (GOOD, EVERY_STEP)
SOURCES = [pickle.dumps(documents.parse(text)[0].value) for text in TEXTS]
PLAYBOOKS = [playbook.parse(text.encode(), "x.yml", KNOWN) for text in TEXTS]
BUILT = [pickle.dumps(cacao.build(one)) for one in PLAYBOOKS]
STRANGE = (
    *VALUES, {1: 2}, {None: 1}, float("nan"), float("inf"), "${finding.source.ip}", "${", "}${x}",
    "__finding-source-ip__:value", "end", "start", "A3", "device", "P99999W", "PT1H", "bash",
    ">=1e9", "1..2..3", "\ud800", "\x1b[2J", ["end", "end"], {"type": "manual", "command": []},
)  # fmt: skip


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and index of a document."""
    steps = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in steps:
        yield (*here, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*here, key))


def retyped(document: bytes, chance: random.Random) -> Any:
    """A document (pickled, to be copied fast) with parts that are other, elsewhere, or gone."""
    made = pickle.loads(document)
    for _ in range(chance.randint(1, 3)):
        every = list(places(made))
        *way, last = chance.choice(every)
        part = made
        for key in way:
            part = part[key]
        what = chance.randrange(4)
        if what == 0:
            del part[last]
        elif what == 1 and isinstance(part, dict):
            part[chance.choice(every)[-1]] = deepcopy(part[last])
        elif what == 2:
            part[last] = deepcopy(part) if len(str(part)) < 2_000 else []
        else:
            part[last] = deepcopy(chance.choice(STRANGE))
    return made


def as_file(chance: random.Random, number: int) -> bytes:
    return next(mutants((GOOD, EVERY_STEP)[number % 2].encode(), number, 1))


def as_json(chance: random.Random, number: int) -> bytes:
    document = retyped(BUILT[number % 2], chance)
    try:
        return cacao.canonical(document)
    except (TypeError, ValueError):  # what JSON cannot say
        return b"{}"


@pytest.mark.parametrize(
    "count",
    [pytest.param(3_000, marks=pytest.mark.slow), pytest.param(10_000, marks=pytest.mark.full)],
)
@pytest.mark.parametrize("make", [as_file, as_json])
def test_a_mutated_file_is_loaded_or_refused(make: Callable[..., bytes], count: int):
    chance = random.Random(count)
    loaded = 0

    for number in range(count):
        found, errors = playbook.examine(make(chance, number), "x", KNOWN)
        assert (found is None) is bool(errors)
        assert all(len(str(error)) < 1_000 for error in errors)
        loaded += found is not None

    assert loaded < count / 2


@pytest.mark.slow
def test_a_retyped_document_is_loaded_or_refused():
    chance = random.Random(11)

    for number in range(2_000):
        document = documents.Document(retyped(SOURCES[number % 2], chance), "x.yml", {})
        found, errors = Source(document, KNOWN).result()
        assert (found is None) is bool(errors)


def wide(steps: int) -> bytes:
    names = [f"s{number}" for number in range(steps)]
    line = "  {}: {{type: if-condition, when: {{finding.risk: 1}}, on_true: {}, on_false: end}}\n"
    lines = "".join(map(line.format, names, [*names[1:], "ask"]))
    return (GOOD.replace("start, on_completion: tell", "start, on_completion: s0") + lines).encode()


@pytest.mark.parametrize(
    "make",
    [
        lambda size: GOOD.encode() + b"#" * size,
        lambda size: GOOD.encode() + b"\n".join(b"k%d: 1" % n for n in range(size // 10)),
        lambda size: GOOD.replace("Keeps a", "${" * (size // 2)).encode(),
        lambda size: GOOD.replace("by hand.", "__finding-" * (size // 10)).encode(),
        lambda size: GOOD.replace("[source.ip]", str(["source.ip"] * (size // 14))).encode(),
        lambda size: wide(size // 90),
        lambda size: b'{"a":' + b"[1]," * (size // 4) + b"}",
    ],
)  # fmt: skip
def test_a_file_four_times_as_long_takes_about_four_times_as_long(make):
    def seconds(size: int) -> float:
        data, best = make(size), 9.0
        for _ in range(3):
            began = time.thread_time()  # of a processor: others may have it for longer than we
            playbook.examine(data, "x", KNOWN)
            best = min(best, time.thread_time() - began)
        return best

    short, long = seconds(15_000), seconds(60_000)

    assert long < 2
    assert long < 12 * short + 0.05
