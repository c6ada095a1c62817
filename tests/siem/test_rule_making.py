"""Make rule: what a hunt finds, the rule made of it finds, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cityward import Event, InputError
from cityward.fields import FIELDS
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_text
from detectors.sigma.rule import RuleSet
from detectors.sigma.samples import parse_samples
from siem import assembly
from siem.config import Settings
from siem.node import document, event_of
from siem.rule_making import rule_of
from siem.samples import outcomes as run_samples
from siem.store.events import EventStore
from siem.store.protocol import Document, Range
from siem.store.query import parse
from siem.tuning import Tuner
from tests.siem.test_tuning import NOW, attempts
from tests.siem.test_tuning import db as db  # noqa: PLC0414
from tests.siem.test_tuning import settings as settings  # noqa: PLC0414
from tests.siem.test_tuning import tuner as tuner  # noqa: PLC0414

TYPES = {name: field.type for name, field in FIELDS.items()}


@pytest.fixture
def store(settings: Settings) -> Iterator[EventStore]:
    made = assembly.events_of(settings, lambda: NOW, write=True)
    made.append([document(one) for one in events()], {})
    yield made
    made.close()


def events() -> list[Event]:
    return [
        *attempts("192.0.2.7", count=3),
        *attempts("192.0.2.8", minute=1, user="ada"),
        *attempts("198.51.100.4", minute=2, user="a*b", port=4711),
        *attempts("2001:db8::7", minute=3, user="root"),
    ]


def found(store: EventStore, query: str) -> list[Document]:
    return list(store.search(query, Range(), limit=100).rows)


def made_of(query: str, newest: Document) -> tuple[str, str]:
    return rule_of(query, parse(query, TYPES, NOW), newest, "a.ana")


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("user.name:root", 4),
        ("user.name:root AND source.ip:192.0.2.7", 3),
        ("user.name:root NOT source.ip:192.0.2.7", 1),
        ("source.ip:192.0.2.0/24", 4),
        ("source.ip:2001:db8:0:0::7", 1),
        ("source.ip:192.0.2.*", 4),
        ("user.name:(root OR ada)", 5),
        ("user.name:ada OR source.port:4711", 2),
        ('user.name:"a*b"', 1),
        ("user.name:a*", 2),
        ("user.name:?da", 1),
        ("source.port:>=4711", 1),
        ("source.port:[4000 TO 4710}", 5),
        ("source.port:>4000 source.port:<5000", 1),
        ("source.port:4000", 5),
        ("source.port:[* TO *]", 6),
        ("NOT source.port:{4000 TO 4000}", 6),
        ("user.name:* NOT file.path:*", 6),
        ("NOT (user.name:root OR user.name:ada)", 1),
        (
            "event.outcome:failure AND (user.name:ada OR (source.ip:192.0.2.7 AND user.name:root))",
            4,
        ),
        ("NOT NOT user.name:ada", 1),
        ("cw.logsource.service:sshd user.name:ada", 1),
        ("user.name:a* user.name:*a", 1),
        ("4711", 1),
        ('"for ada from"', 1),
    ],
)
def test_what_a_hunt_finds_its_rule_finds(store: EventStore, query: str, count: int) -> None:
    hunted = found(store, query)

    rules, matched = matched_by_its_rule(store, query, hunted[0])

    assert str(rules.rules[0].logsource) == "linux/*/sshd"
    assert len(hunted) == count
    assert matched == {row["event.id"] for row in hunted}


def matched_by_its_rule(
    store: EventStore, query: str, newest: Document
) -> tuple[RuleSet, set[str]]:
    """The rule of a hunt, and the events that it matches."""
    rules = load_text(made_of(query, newest)[0])
    assert rules.refused == ()
    engine = Engine(rules)
    every = found(store, "")
    return rules, {
        row["event.id"] for row in every if engine.matches(rules.rules[0], event_of(row))
    }


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("user.name:Root", 1),
        ("user.name:R*", 1),
        ("NOT user.name:root", 3),
        ("NOT user.name:(root OR ada)", 2),
        ("user.name:Root OR source.port:4711", 2),
        ('"FOR ROOT FROM"', 5),
    ],
)
def test_capitals_count_in_a_rule_as_they_did_in_its_hunt(
    store: EventStore, query: str, count: int
) -> None:
    store.append([document(one) for one in attempts("192.0.2.9", minute=4, user="Root")], {})
    hunted = found(store, query)

    _, matched = matched_by_its_rule(store, query, hunted[0])

    assert len(hunted) == count
    assert matched == {row["event.id"] for row in hunted}


def test_the_draft_has_its_sample_and_only_hints_are_missing(
    store: EventStore, tuner: Tuner
) -> None:
    query = "user.name:ada AND cw.operator:harbour"
    text, samples = made_of(query, found(store, query)[0])

    examined = tuner.examine(text, samples)

    assert examined.reasons() == []
    assert [(one.kind, one.passed) for one in examined.outcomes] == [("must match", True)]
    assert {one.severity for one in examined.problems} == {"warning"}
    assert "author: a.ana" in text
    assert "cw.operator: harbour" in samples
    assert "cw.record" not in samples
    assert "{source.ip} did what it should not to {host.name}." in text


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("zebra", {"event.original": "a zebra crossed"}),
        ("zebra", {"message": "x" * 600 + " zebra"}),
        ("message:zebra", {"message": "x" * 600 + " zebra"}),
        ("cw.vendor.a:*zebra", {"cw.vendor": {"a": "x" * 600 + " zebra", "b": "y" * 600}}),
        ("tags:zebra", {"tags": ["zebra", "y" * 600]}),
    ],
)
def test_a_sample_has_what_the_query_found_in_it(query: str, fields: Document) -> None:
    newest = {"@timestamp": NOW, "cw.logsource.product": "linux", "url.path": "z" * 600, **fields}

    text, samples = made_of(query, newest)

    rules = load_text(text)
    outcomes = run_samples(rules.rules[0], rules, parse_samples(samples, "x.test.yml"))
    assert [(one.kind, one.passed) for one in outcomes] == [("must match", True)]
    assert "zzzz" not in samples
    assert "yyyy" not in samples or "tags" in fields


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("", "the query is empty"),
        ("cw.logsource.service:sshd", "asks for nothing but a log source"),
        ("@timestamp:>=now-24h user.name:root", "no words for the time @timestamp"),
        ("event.id:5f2c", "no event.id yet"),
        ("* OR user.name:root", "a part of the query asks for nothing"),
        ("user.name:root NOT *", "a part of the query asks for nothing"),
    ],
)
def test_what_no_rule_can_say_is_refused(query: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        made_of(query, {})
