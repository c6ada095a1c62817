"""Surprise: what nobody ever did here is told, in bits and in a sentence; attack is not learnt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from cityward import Event, Finding
from cityward.finding import severity_rank
from detectors.anomaly import words
from detectors.anomaly.state import pack
from detectors.anomaly.surprise import CONTEXTS, QUARANTINE, Surprise
from tests.detectors.anomaly.plant import (
    CONTROLLER,
    DAY_S,
    KEY,
    MASTER,
    STRANGER,
    WRITER,
    event,
    flow,
    message,
    noise,
    ordinary,
)

DAYS = 4
NOW_S = DAYS * DAY_S


@pytest.fixture(scope="module")
def learnt() -> bytes:
    """The state after four ordinary days, in which nothing was said."""
    model = Surprise()
    assert list(model.detect(list(ordinary(DAYS)))) == []
    return model.snapshot()


@pytest.fixture
def model(learnt: bytes) -> Surprise:
    """A model that knows four ordinary days."""
    made = Surprise()
    made.restore(learnt)
    return made


def said(model: Surprise, *events: Event) -> list[Finding]:
    return list(model.detect(events))


def bits_of(model: Surprise, event: Event) -> float:
    """Score of an event."""
    kind = 0 if event.logsource.category == "ot_protocol" else 1
    scored = model.score(event, kind)
    assert scored is not None
    return scored[2]


# ---- what is found


def test_a_write_by_a_stranger_to_a_new_register_is_told_with_numbers(model: Surprise) -> None:
    [found] = said(model, message(NOW_S, 6, 2, 65_280, source=STRANGER))

    assert found.analytic.id == "model.surprise.ot_link"
    assert found.analytic.kind == "model"
    assert found.title == "Host never spoke to this device before"
    assert found.description == (
        "10.0.0.66 writes register 2 of 10.0.1.7, to which it never spoke in 4 days; "
        "value 65280, usual 231 to 892"
    )
    assert found.severity == "medium"
    assert found.type == "anomaly"
    assert found.group == (
        ("destination.ip", CONTROLLER),
        ("network.protocol", "modbus"),
        ("source.ip", STRANGER),
    )
    assert found.fields["ot.point.address"] == 2
    assert found.fields["ot.value"] == 65_280
    assert found.why.unit == "bits"
    assert found.why.score is not None
    assert found.why.threshold is not None
    assert 5.0 < found.why.threshold < found.why.score < 100.0


def test_the_terms_say_what_was_usual_and_how_many_bits_each_added(model: Surprise) -> None:
    [found] = said(model, message(NOW_S, 6, 2, 65_280, source=STRANGER))

    terms = {check.field: check for check in found.why.checks}
    assert terms["source"].saw == STRANGER
    assert terms["source"].wanted == "seen 0 times in 23232 rows"
    assert terms["address by function"].saw == "write_single_register at 2"
    top = [check.bits for check in found.why.checks if check.bits is not None]
    assert top == sorted(top, reverse=True)
    assert found.why.score == pytest.approx(sum(top[:5]), abs=0.5)


@pytest.mark.parametrize(
    ("strange", "title", "sentence"),
    [
        (
            message(NOW_S, 6, 1, 450, source=MASTER),
            "Host does what it never did here",
            "10.0.0.9 writes register 1 of 10.0.1.7, which this host never did in 4 days; "
            "value 450, usual 231 to 892",
        ),
        (
            message(NOW_S, 6, 78, 450, source=WRITER, more={"ot.unit": 9}),
            "Writes a register nobody wrote before",
            "10.0.0.8 writes register 78 of 10.0.1.7, which nobody wrote in 4 days; "
            "value 450, usual 231 to 892",
        ),
        (
            message(NOW_S, 8, 0, source=MASTER, more={"ot.operation": "diagnostic"}),
            "Host does what it never did here",
            "10.0.0.9 diagnoses register 0 of 10.0.1.7, which this host never did in 4 days",
        ),
        (
            message(NOW_S, 3, 77, source=STRANGER),
            "Host never spoke to this device before",
            "10.0.0.66 reads register 77 of 10.0.1.7, to which it never spoke in 4 days",
        ),
        (
            message(NOW_S, 3, 1, answer=True, more={"ot.exception": "illegal_data_address"}),
            "Error this device hardly ever answers",
            "10.0.1.7 answers read_holding_registers for register 1 to 10.0.0.9; "
            "error this device hardly ever answers, new in 4 days; "
            "exception illegal_data_address",
        ),
    ],
)
def test_what_is_new_leads_the_sentence(
    model: Surprise, strange: Event, title: str, sentence: str
) -> None:
    [found] = said(model, strange)

    assert (found.title, found.description) == (title, sentence)


def test_only_commands_are_medium_and_nothing_is_more(model: Surprise) -> None:
    [write] = said(model, message(NOW_S, 6, 2, 65_280, source=STRANGER))
    [read] = said(model, message(NOW_S + DAY_S, 99, 2, source="10.0.0.67"))

    assert (write.severity, read.severity) == ("medium", "low")
    assert max(severity_rank(one.analytic.level) for one in (write, read)) == 2


def test_every_title_fits_in_a_row() -> None:
    assert max(map(len, words.TITLES.values())) <= 45
    longest = {"ot.point.type": "input_register", "ot.point.address": 1, "ot.operation": "control"}
    assert len(words.title("address", longest)) <= 45


def test_a_host_that_talks_to_a_controller_for_the_first_time_is_told() -> None:
    model = Surprise()
    office = [
        flow(number * 300.0, f"10.0.0.{20 + number % 3}", size=int(5_000 + 900 * noise(number)))
        for number in range(int(3 * DAY_S / 300))
    ]
    assert said(model, *office) == []

    [found] = said(model, flow(3 * DAY_S, CONTROLLER, 502, size=260))

    assert found.analytic.id == "model.surprise.flow_link"
    assert found.severity == "low"
    assert found.title == "Talks to a peer it never talked to"
    assert found.description == (
        "10.0.0.9 uses tcp/502 of 10.0.1.7, to which it never spoke in 3 days; "
        "52 bytes out, 260 in, ended SF"
    )


# ---- what is not


def test_ordinary_days_stay_without_a_word(model: Surprise) -> None:
    # fourteen more days, an hourly write among them, through the relearning of the first week
    assert said(model, *ordinary(14, since_s=NOW_S)) == []


def test_an_hourly_write_is_not_strange_among_polls(model: Surprise) -> None:
    *polls, write, _ = ordinary(8 * 30.0 / DAY_S, NOW_S)
    said(model, *polls)

    assert write.fields["ot.operation"] == "write"
    assert bits_of(model, write) < 10.0


def test_nothing_is_said_in_the_warm_up() -> None:
    model = Surprise()
    wild = [
        message(number * 40.0, number % 128, number * 7 % 1_000, number, source=f"10.0.9.{number}")
        for number in range(99)
    ]

    assert said(model, *wild) == []


def test_the_first_day_of_a_small_site_is_quiet() -> None:
    # few events, each of another kind: a controller, two hosts, started in the morning
    model = Surprise()
    site = [
        *ordinary(0.9, poll_s=120.0),
        *(flow(number * 777.0, f"203.0.113.{number % 50}", number % 9_000) for number in range(90)),
        *(flow(number * 60.0, "10.0.0.20", 53, size=90) for number in range(1_200)),
    ]

    assert said(model, *sorted(site, key=lambda one: one.time)) == []


def test_in_its_first_day_a_device_speaks_of_the_command_of_a_stranger_alone() -> None:
    model = Surprise()
    morning = list(ordinary(0.3))
    read = message(0.3 * DAY_S, 99, 77, source=STRANGER)
    command = message(0.3 * DAY_S, 6, 77, 65_280, source=STRANGER)

    assert said(model, *morning) == []
    other = Surprise()
    other.restore(model.snapshot())

    assert said(other, read) == []
    assert [one.severity for one in said(model, command)] == ["medium"]


def test_after_a_finding_a_device_rests_but_another_stranger_is_told(model: Surprise) -> None:
    sweep = [message(NOW_S + at, 6, 1, 450, source=STRANGER) for at in range(150)]
    other = message(NOW_S + 160.0, 6, 1, 450, source="10.0.0.67")
    later = message(NOW_S + 43_500.0, 6, 1, 450, source=STRANGER)

    assert len(said(model, *sweep)) == 1
    assert len(said(model, other)) == 1
    assert said(model, message(NOW_S + 161.0, 6, 1, 450, source="10.0.0.68")) == []
    assert len(said(model, later)) == 1


def test_events_of_other_sources_and_broken_ones_are_left_alone() -> None:
    model = Surprise()
    broken = message(0.0, 3, 1, more={"event.kind": "pipeline_error"})
    nameless = message(0.0, 3, 1, more={"destination.ip": None})

    assert said(model, broken, nameless) == []
    assert (len(model), model.unkeyed) == (0, 1)


# ---- learning


def half_attack(days: float, since_s: float) -> Iterator[Event]:
    """Ordinary traffic with a stranger's write behind each message."""
    for number, one in enumerate(ordinary(days, since_s)):
        yield one
        at_s = since_s + number * 15.0 + 0.005
        yield message(at_s, 6, 40 + number % 200, number * 7_919 % 65_536, source=STRANGER)


def test_a_stream_that_is_half_attack_is_not_learnt(model: Surprise) -> None:
    unguarded = Surprise(guard_young=2.0, guard_mature=2.0)
    said(unguarded, *ordinary(DAYS))
    attack = sorted(half_attack(1.0, NOW_S), key=lambda one: one.time)
    last = message(NOW_S + DAY_S, 6, 41, 5, source=STRANGER)

    before = bits_of(model, last)
    found = said(model, *attack)
    said(unguarded, *attack)

    assert before > 35.0
    assert bits_of(model, last) > 0.9 * before
    assert bits_of(unguarded, last) < 0.5 * before
    assert {dict(one.group)["source.ip"] for one in found} == {STRANGER}
    assert len(found) == 3  # it rests for twelve hours, or until it is far stranger


def test_what_was_withheld_waits_in_a_ring_of_its_own(model: Surprise) -> None:
    before = model._grown[KEY].held_rows

    said(model, *(message(NOW_S + at, 6, 2, 65_280, source=STRANGER) for at in range(600)))

    entity = model._grown[KEY]
    assert entity.held_rows == before + 600
    assert len(entity.held) == QUARANTINE * 13


def test_what_a_person_confirms_is_usual_from_then_on(model: Surprise) -> None:
    again = message(NOW_S + 300.0, 6, 2, 65_280, source=STRANGER)
    said(model, *(message(NOW_S + at, 6, 2, 65_280, source=STRANGER) for at in range(256)))
    before = bits_of(model, again)

    assert model.confirm(KEY) == 256
    assert model.confirm("nobody") == 0

    assert before > 35.0
    assert bits_of(model, again) < 15.0


def new_regime(since_s: float, days: float) -> Iterator[Event]:
    """Ordinary traffic, and a second reader that asks for a new register each ten minutes."""
    yield from ordinary(days, since_s)
    for number in range(int(days * DAY_S / 600)):
        yield message(since_s + number * 600.0 + 5.0, 3, 9, source="10.0.0.10")


def test_a_new_regime_is_relearnt_after_a_week_unless_it_was_spoken_of(learnt: bytes) -> None:
    speaking, quiet = Surprise(), Surprise(floor_bits=200.0)
    speaking.restore(learnt)
    said(quiet, *ordinary(DAYS))
    regime = sorted(new_regime(NOW_S, 6.0), key=lambda one: one.time)
    last = max(at for at, one in enumerate(regime) if one.fields["source.ip"] == "10.0.0.10")
    before, reader = regime[:last], regime[last]

    found = said(speaking, *before)

    assert said(quiet, *before) == []
    assert {dict(one.group)["source.ip"] for one in found} == {"10.0.0.10"}
    assert bits_of(speaking, reader) > 30.0
    assert bits_of(quiet, reader) < 25.0


def test_a_clock_that_jumps_does_not_age_a_device() -> None:
    model = Surprise()
    there_and_back = [message(0.0 if number % 2 else 400 * DAY_S, 3, 1) for number in range(1_000)]

    said(model, *ordinary(0.1), *there_and_back[:2])

    assert model._grown[KEY].watched_s < 1.2 * DAY_S


# ---- bounds, and life after a restart


def strangers(number: int) -> Sequence[Event]:
    """So many devices, each seen once."""
    return [
        message(
            at * 0.01, 3, 1, more={"destination.ip": f"10.{at >> 16}.{at >> 8 & 255}.{at & 255}"}
        )
        for at in range(number)
    ]


def test_twenty_times_what_fits_of_new_devices_push_out_no_grown_one(model: Surprise) -> None:
    said(model, *strangers(20_000))

    # the controller was grown: it is still known, and the newest thousand; one of them is itself
    assert len(model) == 1_001
    assert model.evicted == 18_999
    assert KEY in model._grown


@pytest.mark.parametrize(
    ("devices", "rounds"),
    [(10_000, 2), pytest.param(100_000, 10, marks=pytest.mark.full)],
    ids=["some", "a million"],
)
def test_however_many_devices_come_and_come_again_memory_is_bounded(
    devices: int, rounds: int
) -> None:
    """Ten times what fits: from there on one more device changes the count alone."""
    model = Surprise()

    for _ in range(rounds):
        said(model, *strangers(devices))

    assert len(model) == 1_000
    assert model.evicted == devices * rounds - 1_000


def test_the_state_of_a_device_stays_below_sixteen_kibibytes(model: Surprise) -> None:
    wild = [message(NOW_S + at, at % 200, at, at, source=f"10.0.9.{at % 250}") for at in range(999)]
    said(model, *wild)
    model._grown[KEY].confirm()

    entity = model._grown[KEY]
    assert len(entity.means) == CONTEXTS + 1
    assert sum(map(len, entity.arrays())) <= 16_384
    assert len(entity.ranges) <= 32


def test_after_a_restart_the_same_events_give_the_same_scores(model: Surprise) -> None:
    other = Surprise()
    other.restore(model.snapshot())
    ahead = [
        *ordinary(1.0, NOW_S),
        *(message(NOW_S + DAY_S + at, 6, 2, at, source=STRANGER) for at in range(200)),
    ]

    for one in ahead:
        assert bits_of(model, one) == pytest.approx(bits_of(other, one), abs=1e-6)
        assert said(model, one) == said(other, one)
    assert model.snapshot() == other.snapshot()


def test_the_same_events_give_the_same_findings_and_the_same_state() -> None:
    events = [*ordinary(1.5), message(1.5 * DAY_S, 6, 2, 65_280, source=STRANGER)]
    one, other = Surprise(), Surprise()

    assert said(one, *events) == said(other, *events) != []
    assert one.snapshot() == other.snapshot()


def test_a_snapshot_of_another_version_is_refused_and_changes_nothing(model: Surprise) -> None:
    before = model.snapshot()

    for version in (1, 99):
        with pytest.raises(ValueError, match="version 2 is wanted"):
            model.restore(pack(model.name, version, {}))

    assert model.snapshot() == before


def test_a_damaged_snapshot_is_refused_wherever_it_is_damaged(learnt: bytes) -> None:
    model = Surprise()

    for at in range(0, len(learnt), 7):
        damaged = learnt[:at] + bytes([learnt[at] ^ 0x55]) + learnt[at + 1 :]
        try:
            model.restore(damaged)
        except ValueError:
            continue
        # a digit of a number was changed, which nobody can see: it still works
        said(model, event(0.0, {}), message(NOW_S, 3, 1, 450))
