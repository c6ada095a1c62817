"""What the engine remembers is bounded, and what it forgets it decides again."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cityward.event import LogSource
from detectors.sigma import ask as module_of_asks
from detectors.sigma import databases, find, keywords, words
from detectors.sigma import engine as module
from detectors.sigma.ask import Ask
from detectors.sigma.databases import Databases
from detectors.sigma.engine import Engine
from detectors.sigma.find import Finder
from detectors.sigma.knowledge import Knowledge
from detectors.sigma.load import load_text
from detectors.sigma.matchers import Comparison, Like, Number, Predicate, Regex
from detectors.sigma.memory import Memory, Room
from detectors.sigma.texts import Sign
from tests.detectors.sigma.city import HEAD, START, engine, event, rule_of

MANY = rule_of("  s:\n    f|contains: [evil, bad]\n    g|endswith: x\n  condition: s\n")


def room_of(one: Engine) -> Room:
    return one._library.room


def entries(room: Room) -> int:
    """How many things are remembered."""
    return sum(map(len, room._memories.values()))


def test_a_value_is_decided_once() -> None:
    asked: list[str] = []

    def decide(value: str) -> str:
        asked.append(value)
        return value.upper()

    memory = Memory(Room(), decide)

    assert [memory["a"], memory["a"], memory["b"]] == ["A", "A", "B"]
    assert asked == ["a", "b"]


def test_a_full_room_is_emptied_for_all_memories() -> None:
    room = Room(size=1_000)
    one, other = Memory(room, len), Memory(room, len)

    for number in range(100):
        assert one[f"{number}"] == len(f"{number}")
        assert other["same"] == 4
        assert entries(room) <= 5


def test_a_very_long_text_is_not_remembered() -> None:
    memory = Memory(Room(), len)

    assert memory["x" * 100_000] == 100_000
    assert len(memory) == 0


def test_a_filter_for_thousands_of_rules_costs_as_much_as_for_one() -> None:
    rules = [rule_of(f"  s: {{f: {number}}}\n  condition: s\n") for number in range(800)]
    tuning = (
        "title: F\nlogsource: {service: test}\ncityward: {reason: r, expires: 2026-01-06}\n"
        "filter: {rules: any, s: {g: x}, condition: not s}\n"
    )
    one = engine("\n---\n".join([*rules, tuning]))
    gc.collect()
    tracemalloc.start()
    try:
        seen = [event(f=7), event(f=7, g="x"), event(86_400.0, f=7, g="x")]
        found = [finding.events[0] for finding in one.detect(seen)]
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 4_000_000
    finally:
        tracemalloc.stop()

    assert found == [seen[0], seen[2]]


def test_a_long_text_is_no_address_that_would_be_remembered() -> None:
    one = engine(rule_of("  s: {f|cidr: 'fe80::/10'}\n  condition: s\n"))
    seen = [event(f="fe80::1%" + "x" * length) for length in (9, 9_000)]

    assert [finding.events[0] for finding in one.detect(seen)] == seen[:1]


def test_the_zone_of_an_address_may_grow_when_letters_are_made_small() -> None:
    one = engine(rule_of("  s: {f|cidr: 'fe80::/10'}\n  condition: s\n"))
    seen = [event(f="fe80::1%" + "\u0130" * 60)]

    assert [finding.events[0] for finding in one.detect(seen)] == seen


def test_halves_of_characters_do_not_make_each_test_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Comparison] = []
    plain = find.predicate_of

    def counted(asked: Comparison) -> Predicate:
        made.append(asked)
        return plain(asked)

    monkeypatch.setattr(find, "predicate_of", counted)
    ask = Ask("f", frozenset({Regex("^a|b$")}))
    finder = Finder([ask], Databases(), Room())

    assert [finder.held([f"{text}\ud800b"]) == {ask} for text in "acd"] == [True] * 3
    assert finder.held(["c\ud800"]) == set()
    assert len(made) == 2


def test_fresh_values_fields_and_types_cost_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine(MANY)
    monkeypatch.setattr(room_of(one), "size", 50_000)
    most = 0

    for number in range(2_000):
        fields = {f"n{number}": number, "f": f"evil {number}", "g": [number, f"{number}x"]}
        assert len(list(one.detect([msgspec.structs.replace(event(), fields=fields)]))) == 1
        most = max(most, entries(room_of(one)))

    assert most < 250
    assert one.states()[0].matches == one.states()[0].evaluated == 2_000


def held_by_fresh(one: Engine, fields: Callable[[int], dict[str, Any]]) -> tuple[float, float]:
    """Bytes that are held after hundreds of fresh events: for each that is counted, and at last."""
    list(one.detect([event()]))
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(400):
            list(one.detect([msgspec.structs.replace(event(), fields=fields(number))]))
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] / room_of(one).used
        room_of(one).empty()
        gc.collect()
        return held, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_what_fresh_layouts_hold_is_counted_and_forgotten() -> None:
    held, left = held_by_fresh(engine(MANY), lambda number: {f"n{number}": 1, "f": "a", "g": "b"})

    assert held < 1.5
    assert left < 50_000


@pytest.mark.parametrize("value", [lambda n: f"{n} " + "\U0001f600" * 900, lambda n: 10**4_000 + n])
def test_what_long_letters_and_numbers_hold_is_counted(value: Callable[[int], Any]) -> None:
    held, _ = held_by_fresh(engine(MANY), lambda number: {"f": value(number), "g": "b"})

    assert held < 1.5


@pytest.mark.parametrize("how", ["contains", "contains|cased"])
def test_what_fresh_mixtures_of_words_hold_is_counted_and_forgotten(how: str) -> None:
    words = [f"w{number}x" for number in range(32)]
    text = "\n---\n".join(rule_of(f"  s: {{f|{how}: {one}}}\n  condition: s\n") for one in words)

    def mixed(number: int) -> dict[str, Any]:
        return {"f": " ".join(word for n, word in enumerate(words) if number * 7919 >> n & 1)}

    held, left = held_by_fresh(engine(text), mixed)

    assert held < 1.5
    assert left < 50_000


def test_fresh_log_sources_cost_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUTES_MAX", 4)
    monkeypatch.setattr(module, "PLANS_MAX", 2)
    text = "\n---\n".join(
        HEAD.replace("service: test", f"service: s{number}")
        + "detection:\n  s: {f: a}\n  condition: s\n"
        for number in range(6)
    )
    one = engine(text)

    for number in range(30):
        list(one.detect([event(0.0, LogSource(service=f"s{number % 10}"), f="a")]))

    assert len(one._routes) <= 4
    assert len(one._plans) <= 2
    assert [(state.evaluated, state.matches) for state in one.states()] == [(3, 3)] * 6


def test_more_plans_than_have_room_in_a_batch_lose_no_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PLANS_MAX", 2)
    text = "\n---\n".join(
        HEAD.replace("service: test", f"service: s{number}")
        + "detection:\n  s: {f: a}\n  condition: s\n"
        for number in range(6)
    )
    lines = [b'{"service": "s%d", "f": "a"}' % (number % 6) for number in range(60)]
    one = engine(text)

    for _ in range(2):
        matched = list(one.matched_lines(lines, START))

    assert len(matched) == 60
    assert [(state.evaluated, state.matches) for state in one.states()] == [(20, 20)] * 6
    list(one.matched_lines(lines[:1], START))
    assert len(one._left) <= 2


def test_old_asks_are_forgotten_when_placeholders_change() -> None:
    one = engine(
        rule_of("  s: {f|expand: '%who%'}\n  condition: s\n").replace("title: T", "title: U"),
        {"who": ["a"]},
    )

    for number in range(50):
        one.use_placeholders({"who": [f"a{number}"]})
        assert len(list(one.detect([event(f=f"a{number}"), event(f="a")]))) == 1

    gc.collect()
    assert len(one._library._later) == 1
    assert one.states()[0].evaluated == 100


WORDS = ["evil", "BAD", "x", "äÖ", "a\nb", "Σ", "wo rd", "n\0ul", "nul\0"]
WORDS += [f"word{number}" for number in range(40)]
SEEN = ["an EVIL x", "evil", "bad word12", "word12 ÄÖ", "xa\nb", "ΑΣ", "wo  rd", "", "n", "nul"]
SEEN += ["n\0ul", "xn\0ul", "nul\0", "\0"]


@pytest.mark.parametrize("has_hyperscan", [True, False])
def test_words_are_found_with_hyperscan_and_without(
    has_hyperscan: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_hyperscan:
        monkeypatch.setattr(databases, "hyperscan", None)
    asks = {
        (word, shape): Ask("f", frozenset({Like(tuple(shape(word.lower())))}))
        for word in WORDS
        for shape in (
            lambda word: (Sign.MANY, word, Sign.MANY),
            lambda word: (word, Sign.MANY),
            lambda word: (Sign.MANY, word),
        )
    }
    finder = Finder(asks.values(), Databases(), Room())

    for seen in SEEN:
        expected = {
            ask
            for (word, _), ask in asks.items()
            for one in ask.comparisons
            if find.predicate_of(one)(seen)
        }
        assert finder.held([seen]) == expected


def test_a_very_long_word_leaves_the_others_to_one_scan(caplog: pytest.LogCaptureFixture) -> None:
    words = ["long" * 5_000, "\0", *(f"word{number}" for number in range(40))]
    asks = {word: Ask("f", frozenset({Like((Sign.MANY, word))})) for word in words}
    finder = Finder(asks.values(), Databases(), Room())

    for seen in ("long" * 4_999, "a" + "long" * 5_000, "word7", "a\0"):
        expected = {ask for word, ask in asks.items() if seen.endswith(word)}
        assert finder.held([seen]) == expected
    assert "one by one" not in caplog.text


@pytest.mark.parametrize("has_hyperscan", [True, False])
def test_keywords_are_found_with_hyperscan_and_without(
    has_hyperscan: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_hyperscan:
        monkeypatch.setattr(databases, "hyperscan", None)
    monkeypatch.setattr(keywords, "SCAN_FROM", 1)
    one = Engine(load_text(rule_of("  s: [evil, bad*thing, 42, 'true']\n  condition: s\n")))

    seen = [{"f": "an EVIL x"}, {"f": "bad", "g": "thing"}, {"f": "a bad little thing"}]
    seen += [{"f": 7_427}, {"f": True}, {"f": [["evil"]]}, {"f": {"g": "evil"}}, {"f": None}]
    found = list(one.detect([msgspec.structs.replace(event(), fields=one) for one in seen]))

    assert [finding.events[0].fields for finding in found] == [seen[i] for i in (0, 2, 3, 4, 5, 6)]


def test_a_rule_that_eats_the_time_is_named_and_set_aside_until_it_changes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MEASURED_NS", 0)
    monkeypatch.setattr(find, "REGEXES_SAMPLED", 8)
    plain_predicate_of, now_ns = find.predicate_of, 0

    def clock() -> int:
        return passes(1_000)

    def passes(time_ns: int) -> int:
        nonlocal now_ns
        now_ns += time_ns
        return now_ns

    def slow(asked: Comparison) -> Predicate:
        test = plain_predicate_of(asked)
        is_dear = asked == Regex("d|ea")
        return (lambda seen: passes(10_000) > 0 and test(seen)) if is_dear else test

    monkeypatch.setattr(find, "predicate_of", slow)
    monkeypatch.setattr(find, "perf_counter_ns", clock)
    monkeypatch.setattr(module_of_asks, "perf_counter_ns", clock)
    monkeypatch.setattr(module, "perf_counter_ns", clock)
    asked = ["contains: a", "re: d|ea", "re: '^q'", "re: '^r'"]
    text = "\n---\n".join(
        HEAD.replace("title: T", f"title: {number}")
        + f"id: 00000000-0000-4000-8000-00000000000{number}\n"
        + f"detection:\n  s: {{f|{key}}}\n  t: {{g|expand: '%who%'}}\n  condition: s and not t\n"
        for number, key in enumerate(asked)
    )
    one = Engine(load_text(text), {"who": ["x"]}, share_max=0.1)
    events = [event(f=f"a{number}") for number in range(100)]

    list(one.detect(events[:50]))
    shares = [state.share for state in one.states()]
    list(one.tick(START))
    list(one.detect(events[50:]))

    assert shares[1] > 0.1 > shares[2]  # although RE2 looks for both in one pass
    assert shares[1] > 10 * shares[2] > 0
    assert shares[0] < 0.1
    plain, dear, cheap, _ = one.states()
    assert (plain.state, plain.evaluated, plain.matches) == ("on", 100, 100)
    assert (cheap.state, cheap.evaluated) == ("on", 100)
    assert (dear.state, dear.evaluated, dear.matches) == ("not evaluated", 50, 0)
    assert dear.share > 0.1
    assert "of the time, the limit is 10%" in dear.reason
    assert "Rule 1 (00000000-0000-4000-8000-000000000001) is set aside: it took" in caplog.text
    one.use_placeholders({"who": ["y"]})
    assert [state.state for state in one.states()] == ["on", "not evaluated", "on", "on"]
    again = one.with_rules(load_text(text + "\n# another remark\n"))
    assert [state.state for state in again.states()] == ["on", "not evaluated", "on", "on"]
    assert again.states()[1] == dear
    again.use_placeholders({"who": ["z"]})
    assert again.states()[1].reason == dear.reason
    mended = again.with_rules(load_text(text.replace("d|ea", "cheap")))
    assert [state.state for state in mended.states()] == ["on"] * 4


def test_a_rule_that_takes_much_of_the_time_is_named_once_while_that_is_not_little(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_ns = 0

    def later(time_ns: int = 1_000) -> int:
        nonlocal now_ns
        now_ns += time_ns
        return now_ns

    monkeypatch.setattr(module, "MEASURED_NS", 0)
    monkeypatch.setattr(module, "perf_counter_ns", later)
    first = rule_of("  s: {f: 1}\n  condition: s\n")
    one = engine(first + "\n---\n" + first.replace("title: T", "title: U"))
    (light, _), (heavy, _) = ((state.id, state.title) for state in one.states())
    parts = {light: 0.25, heavy: 0.75}
    monkeypatch.setattr(
        one, "_times_ns", lambda: {key: part * one._spent_ns for key, part in parts.items()}
    )

    def weighed(pause_ns: int) -> list[bool]:
        later(pause_ns)
        list(one.detect([event(f=2)]))
        list(one.tick(START))
        return [state.heavy for state in one.states()]

    assert weighed(pause_ns=1_000) == [False, True]
    assert weighed(pause_ns=1_000) == [False, True]
    assert [record.getMessage() for record in caplog.records] == [
        f"Rule U ({heavy}) takes 75% of the time of all rules."
    ]
    assert weighed(pause_ns=1_000_000) == [False, False]  # three quarters of next to nothing
    before = {key: part * one._spent_ns for key, part in parts.items()}
    ns = one._spent_ns
    monkeypatch.setattr(
        one, "_times_ns", lambda: {**before, light: before[light] + one._spent_ns - ns}
    )
    assert weighed(pause_ns=1_000) == [True, False]  # whatever was before


def test_a_rule_that_fails_is_passed_over_and_its_neighbours_speak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: object) -> bool:
        raise RuntimeError("broken")

    plain = find.predicate_of
    monkeypatch.setattr(
        find, "predicate_of", lambda one: broken if isinstance(one, Number) else plain(one)
    )
    one = engine(
        rule_of("  s: {f|gt: 3}\n  condition: s\n")
        + "\n---\n"
        + rule_of("  s: {f: a}\n  t: {g|gt: 3}\n  condition: s or t\n").replace(
            "title: T", "title: U"
        )
    )

    assert len(list(one.detect([event(f="a"), event(f="a")]))) == 2
    assert [(state.faults, state.matches) for state in one.states()] == [(2, 0), (0, 2)]


def test_databases_are_kept_and_only_believed_if_they_are_ours(tmp_path: Path) -> None:
    words = ", ".join(f"word{number}" for number in range(300))
    text = rule_of(f"  s:\n    f|contains: [{words}]\n  condition: s\n")
    folder = tmp_path / "databases"

    def matches() -> int:
        one = Engine(load_text(text), databases=folder)
        one.prepare()
        assert one.states()[0].arriving is False
        return len(list(one.detect([event(f="a word7 b"), event(f="word")])))

    assert matches() == 1
    (kept,) = folder.iterdir()
    assert matches() == 1
    kept.write_bytes(kept.read_bytes()[:100])
    assert matches() == 1
    kept.write_bytes(b"")
    kept.chmod(0o666)
    assert matches() == 1


def test_what_matches_can_be_asked_without_findings() -> None:
    one = engine(MANY)

    found = list(one.matched([event(f="evil", g="x"), event(f="a"), event(f="bad", g="x")]))

    assert [(place, [rule.title for rule in rules]) for place, rules in found] == [
        (0, ["T"]),
        (2, ["T"]),
    ]
    assert one.states()[0].matches == 2


def test_regular_expressions_together_say_what_each_says_alone() -> None:
    written = [("^a", ""), ("b$", ""), ("A.B", "s"), ("^b$", "m"), ("x|y", ""), ("(?i)k", "")]
    written += [("[äÄ]", "i"), (r"\Qa.b", ""), (r"\AZ", ""), ("z*", ""), ("s", "i"), ("(a", "")]
    written += [(f"n{number}", "i") for number in range(20)]
    regexes = [Regex(pattern, flags) for pattern, flags in written if pattern != "(a"]
    asks = {Ask("f", frozenset({one})): one for one in regexes}
    finder = Finder(asks, Databases(), Room())

    for seen in ["", "a", "xb", "A\nB", "a\nb\nc", "K", "\u212a", "Ä", "a.b", "Z", "\u017f", "N7"]:
        assert finder.held([seen]) == {
            ask for ask, one in asks.items() if find.predicate_of(one)(seen)
        }


SKIMMED = [
    *(Like((Sign.MANY, "evil", Sign.MANY)), Like(("start", Sign.MANY)), Like((Sign.MANY, ".end"))),
    *(Like(("whole",)), Like(("0x3e7",)), Like((Sign.MANY, "Cased", Sign.MANY), cased=True)),
    *(Number("eq", 42), Number("eq", 1.5), Like((Sign.MANY, "ab", Sign.MANY, "cd", Sign.MANY))),
]


@pytest.mark.parametrize("scan_from", [1, 1_000])
def test_a_column_of_fresh_values_is_told_what_each_is_told_alone(
    scan_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words.Scanner.__init__, "__defaults__", (scan_from, False))
    said: list[bool] = []
    monkeypatch.setattr(
        Finder, "finds_nothing", lambda self, some: said.append(skim(self, some)) or said[-1]
    )
    asks = frozenset(Ask("f", frozenset({one})) for one in SKIMMED)
    told = ["EVIL", "starts", "the.end", "Whole", "0X3E7", "a Cased b", "42", "+1.5e0", "xabxcdx"]
    told += [
        "nd",
        "\u212a",
        "ſtart",
        "ä.end",
        "w\0hole",
        "\ud800",
        "start\xff",
        "4" * 500,
        "9" * 399,
    ]
    quiet = [f"q{number}" for number in range(200)]
    alone = [[*quiet, one] for one in told]  # what else speaks would have it asked with the others
    for column in (quiet, *alone, told, [*told, *range(60), *quiet]):
        one, other = (Knowledge(asks, Room(), Databases()) for _ in range(2))

        held = [*one.of_same(column)]

        assert held == [other.finder.held_on(value) for value in column]
        assert held == [*one.of_same(column)]
    assert True in said
    assert False in said


skim = Finder.finds_nothing


def test_what_is_learnt_of_a_column_takes_room() -> None:
    room = Room(size=20_000)
    one = Knowledge(frozenset({Ask("f", frozenset({SKIMMED[0]}))}), room, Databases())

    for start in range(0, 3_000, 100):
        one.of_same([f"fresh {number}" for number in range(start, start + 100)])
        assert room.used <= room.size
        assert len(one.known) <= 100


def test_dashes_of_any_kind_are_words_to_look_for() -> None:
    texts = [
        (Sign.MANY, " ", Sign.DASH, "enc", Sign.MANY),
        (Sign.DASH, "a ", Sign.DASH, "b", Sign.MANY),
        (Sign.DASH, "5"),
        (Sign.MANY, Sign.DASH, "c", Sign.ONE, "d"),
    ]
    asks = {Ask("f", frozenset({one})): one for one in (Like(text) for text in texts)}
    finder = Finder(asks, Databases(), Room())

    for seen in ["x /ENC y", "x \u2015enc", "x enc", "-a /b c", "-a b", "/5", -5, "x-cxd", "-cd"]:
        assert finder.held([seen]) == {
            ask for ask, one in asks.items() if find.predicate_of(one)(seen)
        }


def test_only_the_databases_that_were_used_last_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "KEPT_MOST", 3)
    many = Databases(tmp_path)
    first = [b"first%d" % number for number in range(databases.KEPT_FROM)]
    many.of(first)
    (used,) = tmp_path.glob("*.hs")

    for round_ in range(6):
        many.of([b"%d-%d" % (round_, number) for number in range(databases.KEPT_FROM)])
        many.of(first)

    assert len([*tmp_path.glob("*.hs")]) == 3
    assert used.is_file()


def test_an_engine_with_other_rules_keeps_its_limit_and_its_databases(tmp_path: Path) -> None:
    one = Engine(load_text(rule_of("  s: {f: a}\n  condition: s\n")), None, 0.5, tmp_path)
    list(one.detect([event(f="a")]))

    other = one.with_rules(one.rules)

    assert (other.share_max, other._databases) == (0.5, tmp_path)
    assert [state.matches for state in other.states()] == [1]
