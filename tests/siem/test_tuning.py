"""Tuning: filters and changes of rules, what they would do, and what they may not silence."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from cityward import Event, InputError, Record, RuleError, Unsafe
from detectors.sigma.engine import Engine
from siem import assembly, config, ruleset
from siem.assets import from_settings
from siem.config import Settings
from siem.samples import collect
from siem.store.embedded import NodeDb
from siem.store.protocol import Change, Conflict, Document, Range
from siem.store.rulebook import EVENTS_PROTECTED
from siem.store.samples import Foreign
from siem.tuning import Tuner, changed_rules, identity, with_builders

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
RULE_ID = "11111111-1111-4111-8111-111111111111"
MANY_ID = "22222222-2222-4222-8222-222222222222"
FILTER_ID = "33333333-3333-4333-8333-333333333333"
RULE = f"""
title: Wrong password
id: {RULE_ID}
level: medium
logsource: {{product: linux, service: sshd}}
detection:
  failed: {{event.action: ssh_login, event.outcome: failure}}
  condition: failed
"""
MANY = f"""
title: Many wrong passwords
id: {MANY_ID}
level: high
correlation:
  type: event_count
  rules: [{RULE_ID}]
  group-by: [source.ip]
  timespan: 5m
  generate: true
  condition: {{gte: 3}}
"""
SAMPLES = """
cases:
  - {name: a wrong one, kind: must match,
     events: [{event.action: ssh_login, event.outcome: failure, source.ip: 192.0.2.9}]}
  - {name: a right one, kind: near miss,
     events: [{event.action: ssh_login, event.outcome: success, source.ip: 192.0.2.9}]}
"""
FILTER = f"""
title: Not the scanner
id: {FILTER_ID}
author: a.ana
logsource: {{product: linux, service: sshd}}
filter:
  rules: [{RULE_ID}]
  scanner: {{source.ip: SOURCE}}
  condition: not scanner
cityward: {{reason: it looks for weak passwords at night, expires: 2026-03-01}}
"""


def attempts(
    source: str, count: int = 1, minute: int = 0, user: str = "root", port: int = 4000
) -> list[Event]:
    lines = [
        f"2026-01-05T10:{minute:02d}:{second:02d}Z gw sshd[7]: "
        f"Failed password for {user} from {source} port {port} ssh2"
        for second in range(count)
    ]
    constant = {"cw.operator": "harbour", "event.ingested": NOW, "cw.record.source": "auth"}
    return [
        Event(
            one.time,
            one.logsource,
            {
                **one.fields,
                **constant,
                "cw.record.place": f"{source}/{minute}",
                "cw.record.number": number,
                "cw.logsource.product": one.logsource.product,
                "cw.logsource.service": one.logsource.service,
            },
            Record(b"", "auth", f"{source}/{minute}", NOW),
            number,
        )
        for number, one in enumerate(collect("sshd", [line.encode() for line in lines], []))
    ]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "wrong.yml").write_text(RULE)
    (rules / "wrong.test.yml").write_text(SAMPLES)
    (rules / "many.yml").write_text(MANY)
    return Settings(
        operator="harbour",
        state_dir=str(tmp_path / "state"),
        rules=config.Rules(shipped=False, folders=(str(rules),)),
    )


@pytest.fixture
def db(settings: Settings) -> Iterator[NodeDb]:
    made = assembly.db_of(settings, from_settings(settings), lambda: NOW)
    yield made
    made.close()


@pytest.fixture
def tuner(settings: Settings, db: NodeDb) -> Tuner:
    return Tuner(settings, db)


def seen(settings: Settings, db: NodeDb, events: list[Event]) -> None:
    engine = Engine(ruleset.rules_of(settings, db))
    db.keep([*engine.detect(events), *engine.leftover()], checkpoint=1, now=NOW)


def findings(db: NodeDb, query: str = "") -> list[Document]:
    return list(db.search(query, Range(), limit=100).rows)


def right(db: NodeDb, query: str) -> Document:
    (one,) = findings(db, query)
    db.change([one["finding.id"]], Change(verdict="true_positive"), "a.ana", NOW)
    return one


# ---- Deploying


def test_a_rule_that_is_deployed_counts_in_the_place_of_its_file(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    louder = RULE.replace("medium", "critical")
    one = tuner.examine(louder)
    assert (one.document, one.kind, one.number, one.reasons()) == (RULE_ID, "rule", 0, [])
    assert [outcome.passed for outcome in one.outcomes] == [True, True]

    tuner.deploy(one, "a.ana", "it matters more here", NOW)

    (rule,) = ruleset.rules_of(settings, db).rules
    assert rule.analytic.level == "critical"
    assert tuner.rules.rules == (rule,)


def test_taken_back_the_file_counts_again(settings: Settings, db: NodeDb, tuner: Tuner) -> None:
    first = tuner.deploy(tuner.examine(RULE.replace("medium", "high")), "a.ana", "why", NOW)
    second = tuner.deploy(tuner.examine(RULE.replace("medium", "critical")), "a.ana", "why", NOW)

    tuner.revert(RULE_ID, first, "b.oth", "too loud", NOW)
    assert ruleset.rules_of(settings, db).rules[0].analytic.level == "high"
    tuner.revert(RULE_ID, 0, "b.oth", "the file is right", NOW)
    assert ruleset.rules_of(settings, db).rules[0].analytic.level == "medium"

    numbers = [one.number for one in db.rulebook.history(RULE_ID)]
    assert numbers[-2:] == [second, first]
    with pytest.raises(InputError, match="taken back already"):
        tuner.revert(RULE_ID, 0, "b.oth", "again", NOW)
    with pytest.raises(InputError, match="no version 999"):
        tuner.revert(RULE_ID, 999, "b.oth", "again", NOW)
    with pytest.raises(InputError, match="never deployed"):
        tuner.revert("another", 0, "b.oth", "again", NOW)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (RULE.replace("failure", "success"), "sample 'a wrong one' fails"),
        (
            RULE.replace("event.action", "event.action|expand").replace("ssh_login", "'%nobody%'"),
            "fails",
        ),
        (RULE.replace("condition: failed", "condition: other"), "is not defined"),
        (RULE.replace(RULE_ID, "44444444-4444-4444-8444-444444444444"), "there are no samples"),
        (FILTER.replace("expires: 2026-03-01", "").replace("night,", "night"), "never expires"),
        (FILTER.replace("not scanner", "scanner"), "lacks `not`"),
        (FILTER.replace("it looks for weak passwords at night", "'   '"), "has no reason"),
        (FILTER.replace("author: a.ana\n", ""), "the filter has no owner: name under `author`"),
        (FILTER.replace("a.ana", "'  '"), "has no owner"),
        (FILTER.replace(RULE_ID, MANY_ID), "is a correlation"),
    ],
)
def test_what_is_wrong_is_said_and_not_deployed(
    db: NodeDb, tuner: Tuner, text: str, why: str
) -> None:
    try:
        one = tuner.examine(text, now=NOW)
        with pytest.raises(Unsafe):
            tuner.deploy(one, "a.ana", "why", NOW)
        said = "; ".join(one.reasons())
    except RuleError as error:
        said = str(error)

    assert why in said
    assert db.rulebook.deployed() == []


def test_somebody_else_deployed_meanwhile(db: NodeDb, tuner: Tuner) -> None:
    mine, theirs = (tuner.examine(RULE.replace("medium", level)) for level in ("low", "high"))
    tuner.deploy(theirs, "b.oth", "why", NOW)

    with pytest.raises(Conflict):
        tuner.deploy(mine, "a.ana", "why", NOW)


def test_a_version_that_was_written_past_us_does_not_count_and_is_told(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    tuner.deploy(tuner.examine(RULE.replace("medium", "high")), "a.ana", "why", NOW)
    with db._writing() as direct:
        direct.execute("UPDATE rulebook SET text = replace(text, 'failure', 'success')")

    rules = ruleset.rules_of(settings, db)

    assert rules.rules[0].analytic.level == "medium"
    assert [one.what for one in rules.refused] == ["it is not as it was deployed"]


@pytest.mark.parametrize(
    "text", ["", "a: b", "- 1", RULE + "---" + MANY, RULE.replace("id:", "x:")]
)
def test_only_one_whole_document_with_an_id_is_deployed(text: str) -> None:
    with pytest.raises(RuleError):
        identity(text)


# ---- What was right once is never silenced


def test_a_filter_that_hides_what_was_right_is_refused(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    seen(settings, db, [*attempts("192.0.2.7"), *attempts("192.0.2.8", minute=1)])
    one = right(db, "source.ip:192.0.2.7")

    good = tuner.examine(FILTER.replace("SOURCE", "192.0.2.8"))
    bad = tuner.examine(FILTER.replace("SOURCE", "192.0.2.7"))

    assert good.silenced == ()
    assert [each.finding for each in bad.silenced] == [one["finding.id"]]
    with pytest.raises(Unsafe, match="would not be made any more"):
        tuner.deploy(bad, "a.ana", "why", NOW)


def test_a_rule_that_misses_what_was_right_is_refused(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    seen(settings, db, attempts("192.0.2.7", user="root"))
    right(db, "source.ip:192.0.2.7")
    narrow = RULE.replace("event.outcome: failure", "event.outcome: failure, source.ip: 192.0.2.9")

    one = tuner.examine(narrow)

    assert [each.rule for each in one.silenced] == [RULE_ID]
    assert all(each.passed for each in one.outcomes)


def test_one_event_that_would_pass_in_silence_is_enough(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    seen(settings, db, [*attempts("192.0.2.7"), *attempts("192.0.2.7", minute=2, port=5000)])
    right(db, "source.ip:192.0.2.7")

    some = FILTER.replace("source.ip: SOURCE", "source.port: 5000")

    assert len(tuner.examine(some).silenced) == 1


def test_a_filter_below_a_correlation_that_was_right_is_refused(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    seen(settings, db, attempts("192.0.2.7", count=4))
    right(db, f"rule.id:{MANY_ID}")

    bad = tuner.examine(FILTER.replace("SOURCE", "192.0.2.7"))

    assert [each.rule for each in bad.silenced] == [MANY_ID]


def test_below_a_correlation_of_more_events_than_are_kept_none_is_hidden(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    file = Path(settings.rules.folders[0]) / "many.yml"
    file.write_text(MANY.replace("gte: 3", f"gte: {EVENTS_PROTECTED + 10}"))
    seen(settings, db, attempts("192.0.2.7", count=EVENTS_PROTECTED + 11))
    right(db, f"rule.id:{MANY_ID}")

    good, bad = (tuner.examine(FILTER.replace("SOURCE", f"192.0.2.{n}")) for n in (8, 7))

    assert good.silenced == ()
    assert [each.rule for each in bad.silenced] == [MANY_ID]


def test_a_rule_that_becomes_a_correlation_speaks_of_what_was_right(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    seen(settings, db, attempts("192.0.2.7"))
    right(db, f"rule.id:{RULE_ID}")
    base = "44444444-4444-4444-8444-444444444444"
    tuner.deploy(tuner.examine(RULE.replace(RULE_ID, base), SAMPLES), "a.ana", "why", NOW)
    several = MANY.replace(RULE_ID, base).replace(MANY_ID, RULE_ID)

    assert [each.rule for each in tuner.examine(several, SAMPLES).silenced] == [RULE_ID]
    once = tuner.examine(several.replace("gte: 3", "gte: 1"), SAMPLES)
    assert once.silenced == ()


def test_a_correlation_that_wants_more_than_there_was_is_refused(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    seen(settings, db, attempts("192.0.2.7", count=4))
    right(db, f"rule.id:{MANY_ID}")
    samples = SAMPLES.replace("a wrong one, kind: must match", "x, kind: ordinary")
    more = MANY.replace("gte: 3", "gte: 5")

    assert [each.rule for each in tuner.examine(more, samples).silenced] == [MANY_ID]
    assert tuner.examine(MANY.replace("gte: 3", "gte: 2"), samples).silenced == ()


def test_a_sample_that_another_operator_released_counts_as_ours(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    (event,) = attempts("203.0.113.5")
    released = {
        "@timestamp": event.time,
        **{
            k: v
            for k, v in event.fields.items()
            if k != "event.ingested" and not k.startswith("cw.record")
        },
    }
    foreign = Foreign(
        id="f-at-theirs", rule=RULE_ID, operator="metro", received=NOW, events=(released,),
        expires=NOW + timedelta(days=90),
    )  # fmt: skip
    with db.outgoing.desk() as desk:
        assert desk.samples.take(foreign) == ""

    (one,) = tuner.examine(FILTER.replace("SOURCE", "203.0.113.0/24").replace(
        "source.ip:", "source.ip|cidr:")).silenced  # fmt: skip

    assert (one.operator, one.finding) == ("metro", "f-at-theirs")


def test_taking_a_rule_back_that_found_what_was_right_is_refused(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    own = RULE.replace(RULE_ID, "44444444-4444-4444-8444-444444444444").replace(
        "Wrong password", "Ours"
    )
    tuner.deploy(tuner.examine(own, SAMPLES), "a.ana", "why", NOW)
    seen(settings, db, attempts("192.0.2.7"))
    right(db, 'rule.id:"44444444-4444-4444-8444-444444444444"')

    with pytest.raises(Unsafe, match="it was right"):
        tuner.revert("44444444-4444-4444-8444-444444444444", 0, "a.ana", "why", NOW)


def test_only_what_changes_is_asked(settings: Settings, db: NodeDb, tuner: Tuner) -> None:
    rules = tuner.rules

    assert changed_rules(rules, rules) == set()
    assert changed_rules(rules, tuner._with(FILTER_ID, FILTER)) == {RULE_ID, MANY_ID}
    assert changed_rules(rules, tuner._with(MANY_ID, MANY.replace("5m", "6m"))) == {MANY_ID}
    above = MANY.replace(RULE_ID, MANY_ID).replace(f"id: {MANY_ID}", f"id: {FILTER_ID}")
    taller = tuner._with(FILTER_ID, above)
    assert with_builders(taller, {RULE_ID}) == {RULE_ID, MANY_ID, FILTER_ID}
    assert with_builders(taller, {MANY_ID}) == {MANY_ID, FILTER_ID}


# ---- Filters that are added


@pytest.mark.parametrize(
    ("day", "why"),
    [
        ("2026-01-05", "ends on 2026-01-05, which is past"),
        ("2025-12-31", "ends on 2025-12-31, which is past"),
        ("2027-01-07", "a year is enough, so by 2027-01-06"),
        ("2026-01-06", ""),
        ("2027-01-06", ""),
    ],
)
def test_a_filter_that_is_to_count_ends_within_a_year(
    db: NodeDb, tuner: Tuner, day: str, why: str
) -> None:
    text = FILTER.replace("SOURCE", "192.0.2.8").replace("2026-03-01", day)

    said = "; ".join(tuner.examine(text, now=NOW).reasons())

    assert why in said
    assert bool(said) is bool(why)


def test_a_filter_that_has_ended_is_still_read_and_not_gone_back_to(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    text, later = FILTER.replace("SOURCE", "192.0.2.8"), NOW + timedelta(days=60)
    first = tuner.deploy(tuner.examine(text, now=NOW), "a.ana", "why", NOW)
    longer = text.replace("2026-03-01", "2026-06-01")
    tuner.deploy(tuner.examine(longer, now=NOW), "a.ana", "why", NOW)

    with pytest.raises(Unsafe, match="which is past"):
        tuner.revert(FILTER_ID, first, "b.oth", "why", later)

    (row,) = Tuner(settings, db).filters((NOW + timedelta(days=300)).date())
    assert (row.is_expired, row.expires) == (True, date(2026, 6, 1))


def test_what_is_hidden_already_is_not_added_again_and_the_filter_is_named(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    text = FILTER.replace("SOURCE", "192.0.2.8")
    tuner.deploy(tuner.examine(text, now=NOW), "a.ana", "why", NOW)
    other = text.replace(FILTER_ID, FILTER_ID[:-1] + "9").replace("Not the", "No")

    for each in (text, other):
        (why,) = tuner.added(each, NOW)[0].reasons()
        assert f"Not the scanner ({FILTER_ID}) hides the same already, to 2026-03-01" in why
    assert tuner.added(other.replace("192.0.2.8", "192.0.2.9"), NOW)[0].reasons() == []
    longer = text.replace("2026-03-01", "2026-04-01")
    assert tuner.examine(longer, now=NOW).reasons() == []
    after = NOW + timedelta(days=60)
    assert tuner.added(other.replace("2026-03-01", "2026-04-01"), after)[0].reasons() == []


@pytest.mark.parametrize(
    ("sources", "others", "is_told"), [(20, 2, True), (20, 3, False), (19, 0, False)]
)
def test_a_filter_that_leaves_next_to_nothing_of_a_rule_is_told_and_not_refused(
    settings: Settings, db: NodeDb, tuner: Tuner, sources: int, others: int, is_told: bool
) -> None:
    known = [one for n in range(sources) for one in attempts(f"192.0.2.{n}")]
    rest = [one for n in range(others) for one in attempts(f"198.51.100.{n}")]
    seen(settings, db, [*known, *rest])
    text = FILTER.replace("source.ip: SOURCE", "source.ip|cidr: 192.0.2.0/24")

    examined, hidden = tuner.added(text, NOW)

    assert (len(hidden), examined.reasons()) == (sources, [])
    told = [one.what for one in examined.problems if one.severity == "warning"]
    much = (
        f"it would hide 20 of the newest {20 + others} findings of Wrong password in 30 days, "
        "nearly all that it says: name more fields if that is not meant"
    )
    assert told == ([much] if is_told else [])


# ---- Filters from findings


def test_a_filter_is_made_from_a_finding_and_hides_just_that(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    seen(settings, db, [*attempts("192.0.2.7"), *attempts("192.0.2.8", minute=1)])
    (finding,) = findings(db, "source.ip:192.0.2.8")

    text = tuner.filter_of(
        finding, ["source.ip"], reason="our scanner", expires=date(2026, 3, 1), by="a.ana"
    )
    one = tuner.examine(text)
    hidden = tuner.hides(text, NOW)
    tuner.deploy(one, "a.ana", "our scanner", NOW)

    assert one.kind == "filter"
    assert [(each.finding, each.is_whole) for each in hidden] == [(finding["finding.id"], True)]
    engine = Engine(ruleset.rules_of(settings, db))
    again = [*attempts("192.0.2.7", minute=30), *attempts("192.0.2.8", minute=31)]
    assert [one.events[0].fields["source.ip"] for one in engine.detect(again)] == ["192.0.2.7"]


def test_without_fields_it_takes_who_and_what(settings: Settings, db: NodeDb, tuner: Tuner) -> None:
    seen(settings, db, attempts("192.0.2.8"))
    (finding,) = findings(db)
    choices = tuner.choices(finding)

    text = tuner.filter_of(finding, [], reason="why", expires=date(2026, 3, 1), by="a.ana")

    assert choices["source.ip"] == "192.0.2.8"
    assert "source.ip: 192.0.2.8" in text
    assert "taxonomy: cityward" in text


def test_a_filter_from_a_correlation_binds_to_its_rules(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    seen(settings, db, attempts("192.0.2.8", count=4))
    (finding,) = findings(db, f"rule.id:{MANY_ID}")

    text = tuner.filter_of(finding, ["source.ip"], reason="why", expires=date(2026, 3, 1), by="a")
    examined, hidden = tuner.added(text, NOW)

    assert examined.reasons() == []
    assert {one.title for one in hidden} == {"Wrong password", "Many wrong passwords"}
    assert examined.row is not None
    assert examined.title == examined.row.title == "Not Wrong password"
    assert examined.row.rules == ((RULE_ID, "Wrong password"),)
    assert examined.row.heard_by == ((MANY_ID, "Many wrong passwords"),)


def test_a_correlation_has_the_filters_of_the_rules_that_it_builds_on(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    tuner.deploy(tuner.examine(FILTER.replace("SOURCE", "192.0.2.8")), "a.ana", "why", NOW)
    today = NOW.date()

    (row,) = tuner.filters(today, MANY_ID)

    assert row.id == FILTER_ID
    assert tuner.filters(today) == tuner.filters(today, RULE_ID) == [row]
    assert tuner.filters(today, FILTER_ID) == []


@pytest.mark.parametrize("user", ["a*b", "a?b", "a\\b", "%x%", "'\"", "x: y", "null", "1"])
def test_a_value_from_outside_stands_for_itself_alone(
    settings: Settings, db: NodeDb, tuner: Tuner, user: str
) -> None:
    seen(settings, db, [*attempts("192.0.2.8", user=user), *attempts("192.0.2.9", user="aXb")])
    (finding,) = findings(db, "source.ip:192.0.2.8")

    text = tuner.filter_of(finding, ["user.name"], reason="w", expires=date(2026, 3, 1), by="a")

    assert tuner.examine(text).reasons() == []
    assert [one.finding for one in tuner.hides(text, NOW)] == [finding["finding.id"]]


def test_a_filter_with_a_list_hides_what_is_in_it(settings: Settings, db: NodeDb) -> None:
    seen(settings, db, [*attempts("192.0.2.7"), *attempts("192.0.2.8", minute=1)])
    text = FILTER.replace("source.ip: SOURCE", "'source.ip|expand': '%scanners%'")
    tuner = Tuner(msgspec.structs.replace(settings, lists={"scanners": ("192.0.2.8",)}), db)
    (finding,) = findings(db, "source.ip:192.0.2.8")

    assert tuner.examine(text).reasons() == []
    assert [one.finding for one in tuner.hides(text, NOW)] == [finding["finding.id"]]


def test_a_filter_without_its_list_would_switch_its_rules_off_and_is_refused(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    seen(settings, db, [*attempts("192.0.2.7"), *attempts("192.0.2.8", minute=1)])
    text = FILTER.replace("source.ip: SOURCE", "'source.ip|expand': '%scanners%'")

    with pytest.raises(Unsafe, match="%scanners% has no values here"):
        tuner.deploy(tuner.examine(text), "a.ana", "why", NOW)
    assert [one.is_whole for one in tuner.hides(text, NOW)] == [True, True]


def test_a_field_that_differs_is_no_choice(
    settings: Settings, db: NodeDb, tuner: Tuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siem.tuning.WHO", ("source.ip", "source.port"))
    seen(settings, db, [*attempts("192.0.2.8"), *attempts("192.0.2.8", minute=1, port=5000)])
    (finding,) = findings(db)

    with pytest.raises(InputError, match=r"source\.port is not the same"):
        tuner.filter_of(finding, ["source.port"], reason="w", expires=date(2026, 3, 1), by="a")


def test_what_is_older_than_asked_is_not_looked_at(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    seen(settings, db, attempts("192.0.2.8"))

    text = FILTER.replace("SOURCE", "192.0.2.8")

    assert len(tuner.hides(text, NOW)) == 1
    assert tuner.hides(text, NOW + timedelta(days=31)) == []
