"""How much filters hide of the events that are kept: one by one, in time, and never wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from cityward import Event, TransientError
from detectors.sigma.load import load_text
from detectors.sigma.rule import Rule, RuleSet
from siem import assembly, backtest, hide_counts
from siem.config import Settings
from siem.console.tuning import HideCount, HideCounts
from siem.hide_counts import AGE, DAYS, FAILED, NO_EVENT, NO_RULE, TOO_LONG, Counter, counted
from siem.node import document
from siem.store.archive import Looking
from tests.programs import PATIENCE_S
from tests.siem.test_tuning import FILTER, FILTER_ID, MANY, NOW, RULE, RULE_ID, attempts
from tests.siem.test_tuning import settings as settings  # noqa: PLC0414

OTHER_ID = FILTER_ID[:-1] + "4"


def tuned(*sources: str, more: str = "", **changes: str) -> RuleSet:
    """The rule with a filter on each source."""
    texts = [RULE, MANY]
    for number, source in enumerate(sources):
        text = FILTER.replace("SOURCE", source).replace(FILTER_ID, f"{FILTER_ID[:-1]}{3 + number}")
        for old, new in changes.items():
            text = text.replace({"expires": "2026-03-01"}.get(old, old), new)
        texts.append(text)
    rules = load_text("---".join([*texts, *([more] if more else [])]))
    assert not rules.refused
    return rules


def keep(settings: Settings, events: list[Event]) -> Path:
    """Where these events are kept."""
    store = assembly.events_of(settings, lambda: NOW, write=True)
    store.append([document(one) for one in events], {})
    store.close()
    return settings.state_path / "events"


@pytest.fixture
def folder(settings: Settings) -> Path:
    """Four wrong passwords of two sources, all of this morning."""
    return keep(settings, [*attempts("192.0.2.7", count=3), *attempts("192.0.2.8", minute=1)])


def counts(folder: Path, rules: RuleSet, now: object = NOW) -> dict[str, HideCount]:
    ids = [one.id for one in rules.filters]
    return dict(counted(folder, rules, {}, ids, now, threading.Event()))  # type: ignore[arg-type]


def test_each_filter_says_how_much_it_hides_and_which_hides_nothing(folder: Path) -> None:
    found = counts(folder, tuned("192.0.2.7", "192.0.2.9"))

    assert found == {
        FILTER_ID: HideCount(3, 1, NOW),
        OTHER_ID: HideCount(0, 1, NOW),
    }
    assert [one.is_useless for one in found.values()] == [False, True]
    assert [one.words for one in found.values()] == ["3 in 1 day", "nothing in 1 day"]


def test_of_two_that_hide_the_same_neither_is_said_to_be_useless(folder: Path) -> None:
    found = counts(folder, tuned("192.0.2.7", "192.0.2.0/24"))

    assert [one.matches for one in found.values()] == [3, 0]  # an address is no network

    found = counts(folder, tuned("192.0.2.7", "192.0.2.*"))

    assert [one.matches for one in found.values()] == [3, 4]


def test_a_filter_hides_nothing_after_its_end(folder: Path) -> None:
    found = counts(folder, tuned("192.0.2.7", expires="2026-01-05"))

    assert found[FILTER_ID].matches == 0


def test_days_are_those_of_which_events_are_kept(settings: Settings, folder: Path) -> None:
    later = counts(folder, tuned("192.0.2.7"), NOW + timedelta(days=12))
    gone = counts(folder, tuned("192.0.2.7"), NOW + timedelta(days=DAYS + 1))

    assert later[FILTER_ID].words == "3 in 13 days"
    assert gone[FILTER_ID] == HideCount(None, DAYS, NOW + timedelta(days=DAYS + 1), NO_EVENT)


def test_where_nothing_was_ever_kept_nothing_is_known(settings: Settings) -> None:
    found = counts(settings.state_path / "events", tuned("192.0.2.7"))

    assert found[FILTER_ID].why == NO_EVENT
    assert not found[FILTER_ID].is_useless


def test_a_filter_of_no_rule_is_told(folder: Path) -> None:
    rules = tuned("192.0.2.7")
    rules = RuleSet(filters=rules.filters)

    assert counts(folder, rules)[FILTER_ID].why == NO_RULE


def test_without_a_list_that_its_rules_need_nothing_is_known(folder: Path) -> None:
    found = counts(folder, tuned("'%jump_hosts%'", **{"source.ip:": "source.ip|expand:"}))

    assert found[FILTER_ID].matches is None
    assert "jump_hosts" in found[FILTER_ID].why


def test_what_cannot_be_read_takes_the_certainty(settings: Settings, folder: Path) -> None:
    store = assembly.events_of(settings, lambda: NOW, write=True)
    store.append([], {})
    store.compact(store.last_batch, wait=True)
    store.close()
    (file,) = folder.glob("parquet/*/*.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 3] + bytes(64) + whole[len(whole) // 3 + 64 :])

    found = counts(folder, tuned("192.0.2.9"))[FILTER_ID]

    assert not found.is_useless
    assert file.name in found.why


def test_who_asks_too_much_is_told_and_waits_no_longer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hide_counts, "COUNT_S", 0.0)
    asked = backtest.tuned_out

    def slowly(*given: object, stop: threading.Event, **named: object) -> backtest.TunedOut:
        assert stop.wait(PATIENCE_S)
        return asked(*given, stop=stop, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(backtest, "tuned_out", slowly)

    assert counts(folder, tuned("192.0.2.7"))[FILTER_ID].why == TOO_LONG


def test_a_rule_that_cannot_be_asked_takes_no_number_of_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = RULE.replace(RULE_ID, RULE_ID[:-1] + "2").replace("failure", "success")
    more = FILTER.replace(RULE_ID, RULE_ID[:-1] + "2").replace(FILTER_ID, OTHER_ID)
    rules = tuned("192.0.2.7", more=f"{right}---{more.replace('SOURCE', '192.0.2.7')}")
    asked = backtest.tuned_out

    def tidied(looking: Looking, rule: Rule, **named: object) -> backtest.TunedOut:
        if rule.id != RULE_ID:
            raise TransientError("events were tidied while they were read", "", "Ask again.")
        return asked(looking, rule, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(backtest, "tuned_out", tidied)

    assert [one.words for one in counts(folder, rules).values()] == [
        "3 in 1 day",
        "not known: events were tidied while they were read",
    ]


def test_no_process_stays_because_of_a_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {*threading.enumerate()}
    begun: list[threading.Thread] = []
    asked = backtest.tuned_out

    def noted(*given: object, **named: object) -> backtest.TunedOut:
        begun.extend({*threading.enumerate()} - before)
        return asked(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(backtest, "tuned_out", noted)
    counts(folder, tuned("192.0.2.7"))

    assert begun
    assert all(one.daemon for one in begun)


def test_who_waits_for_a_turn_has_it_before_the_next_rule(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = threading.Lock()
    held: list[tuple[str, bool]] = []
    asked = backtest.tuned_out

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            held.append(("pause", turn.locked()))
            return super().wait(timeout)

    def noted(*given: object, **named: object) -> backtest.TunedOut:
        held.append(("rule", turn.locked()))
        return asked(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(backtest, "tuned_out", noted)
    other = RULE_ID[:-1] + "2"
    more = FILTER.replace(RULE_ID, other).replace(FILTER_ID, OTHER_ID).replace("SOURCE", "a")
    rules = tuned("192.0.2.7", more=f"{RULE.replace(RULE_ID, other)}---{more}")
    found = dict(counted(folder, rules, {}, [FILTER_ID, OTHER_ID], NOW, Stop(), turn))

    assert [one.matches for one in found.values()] == [3, 0]
    assert held == [("pause", False), ("rule", True)] * 2


# ---- Remembered


class Clock:
    now = NOW

    def __call__(self) -> object:
        return self.now


@pytest.fixture
def counter(folder: Path) -> Iterator[Counter]:
    made = Counter(folder, Clock(), threading.Lock())  # type: ignore[arg-type]
    yield made
    made.close()


def until_over(counter: Counter, rules: RuleSet) -> HideCounts:
    end_s = time.monotonic() + PATIENCE_S
    while not (found := counter.ask(rules, {})).is_over:
        assert time.monotonic() < end_s
    return found


def counting(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Ids of the filters of each time that is counted."""
    seen: list[list[str]] = []
    ask = hide_counts.counted

    def noted(*given: object) -> Iterator[tuple[str, HideCount]]:
        seen.append(list(given[3]))  # type: ignore[call-overload]
        return ask(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(hide_counts, "counted", noted)
    return seen


def test_what_is_counted_is_remembered_until_it_changes_or_is_old(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counting(monkeypatch)
    rules = tuned("192.0.2.7", "192.0.2.9")
    until_over(counter, rules)
    until_over(counter, tuned("192.0.2.7", "192.0.2.9"))
    assert seen == [[FILTER_ID, OTHER_ID]]

    changed = until_over(counter, tuned("192.0.2.7", "192.0.2.8"))
    assert changed.of[OTHER_ID].matches == 1
    assert seen[1:] == [[OTHER_ID]]

    counter._clock.now = NOW + AGE + timedelta(seconds=1)  # type: ignore[attr-defined]
    old = counter.ask(tuned("192.0.2.7", "192.0.2.8"), {})
    assert old.of.keys() == {FILTER_ID, OTHER_ID}
    assert until_over(counter, tuned("192.0.2.7", "192.0.2.8")).is_over
    assert seen[2:] == [[FILTER_ID, OTHER_ID]]


def test_a_rule_says_of_itself_what_yaml_can_say(counter: Counter) -> None:
    text = f"{RULE}custom: {{on: 1, null: .nan, 2026-01-01: !!set {{a}}}}\n"
    rules = load_text(f"{text}---{FILTER.replace('SOURCE', '192.0.2.7')}")

    assert until_over(counter, rules).of[FILTER_ID].matches == 3


def test_nobody_waits_for_what_takes_long(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hide_counts, "WAIT_S", 0.0)
    with counter._turn:
        first = counter.ask(tuned("192.0.2.7"), {})

    assert first == HideCounts({}, is_over=False)
    assert until_over(counter, tuned("192.0.2.7")).of[FILTER_ID].matches == 3


def test_a_count_that_fails_is_told_and_not_begun_again_at_every_look(
    counter: Counter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backtest, "tuned_out", lambda *given, **named: 1 / 0)

    found = until_over(counter, tuned("192.0.2.7"))
    until_over(counter, tuned("192.0.2.7"))

    assert found.of[FILTER_ID].why == "it could not be counted; the log says why"
    assert caplog.text.count("What filters hide could not be counted.") == 1


def test_numbers_that_are_old_are_not_asked_for_for_ever_if_they_cannot_be_counted_again(
    counter: Counter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rules = tuned("192.0.2.7")
    until_over(counter, rules)
    counter._clock.now = NOW + AGE + timedelta(seconds=1)  # type: ignore[attr-defined]
    monkeypatch.setattr(backtest, "tuned_out", lambda *given, **named: 1 / 0)

    assert until_over(counter, rules).of[FILTER_ID].why == FAILED
    assert caplog.text.count("What filters hide could not be counted.") == 1
