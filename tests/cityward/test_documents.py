"""YAML from strangers is bounded and says where it is wrong."""

from __future__ import annotations

import pytest

from cityward.documents import parse
from cityward.errors import RuleError


def test_a_document_knows_the_line_of_each_part() -> None:
    text = "title: x\ndetection:\n  selection:\n    a|contains:\n      - one\n      - two\n"

    document = parse(text, "r.yml")[0]

    assert document.value["detection"]["selection"]["a|contains"] == ["one", "two"]
    assert document.where("detection", "selection", "a|contains", 1) == "r.yml:6"
    assert document.where("detection", "nothing", "here") == "r.yml:2"


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("a: &x 1\nb: *x\n", "the alias *x is not taken: write out", "r.yml:2"),
        ("[" * 40 + "]" * 40, "nested deeper than 24", "r.yml:1"),
        ("a: [1\nb: 2\n", "no YAML", "r.yml:2"),
        ("b: 2\na: 1" + ":1" * 400_000, "800001 characters in a number", "r.yml:2"),
        ("a: 0x" + "f" * 900_000, "900002 characters in a number", "r.yml:1"),
        ("a: !!int '1" + ":1" * 400_000 + "'", "800001 characters in a number", "r.yml:1"),
        ("a: 59" + ":59" * 99 + ":59" * 80 + ".5", "characters in a number", "r.yml:1"),
        ("a:\n  b: 1\n  b: 2\n", "key 'b' is there twice", "r.yml:3"),
        ("a: !!python/object:os.system 1\n", "no YAML", "r.yml:1"),
        ("- 1\n" * 250_000, "more than 200000 values", "r.yml:"),
    ],
)
def test_what_is_hostile_or_broken_is_refused_with_its_line(
    text: str, what: str, where: str
) -> None:
    with pytest.raises(RuleError) as caught:
        parse(text, "r.yml")

    assert what in caught.value.what
    assert caught.value.where.startswith(where)
