"""Notifications: who is told of what, when, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward import Analytic, ConfigError, Event, Finding, LogSource, Record
from siem import config
from siem.notify.routes import Route, routes_of
from siem.store.embedded import NodeDb
from siem.store.protocol import Change

NOON = datetime(2026, 3, 2, 12, 10, tzinfo=UTC)
MAIL = {
    "id": "duty",
    "to": "mail",
    "server": "mail.example:587",
    "sender": "cityward@port.example",
    "receivers": ["duty@port.example"],
    "when": {},
}


def rule(level: str = "high", name: str = "Password guessed") -> Analytic:
    return Analytic(id=f"rule-{name}", name=name, kind="rule", version="1", level=level)  # type: ignore[arg-type]


def match(
    at: datetime = NOON, *, source: str = "192.0.2.7", severity: str = "high", **said: Any
) -> Finding:
    fields = {
        "source.ip": source,
        "cw.operator": "op-port",
        "cw.sector": "transport.maritime",
        "cw.asset.asset_id": said.pop("asset", "jump-1"),
        "cw.mode": said.pop("mode", "normal"),
        **said.pop("fields", {}),
    }
    record = Record(b"", "auth", f"{source} {at}", at)
    seen = Event(at, LogSource(service="sshd"), fields, record)
    return Finding(
        analytic=said.pop("analytic", rule()),
        title=said.pop("title", "Password guessed"),
        description=said.pop("description", "192.0.2.7 guessed the password of root."),
        severity=severity,  # type: ignore[arg-type]
        group=(("source.ip", source),),
        first_seen=at,
        last_seen=at,
        events=(seen,),
        **said,
    )


class Desk:
    """A node's state and the routes that are told of it."""

    def __init__(self, path: Path) -> None:
        self.now = NOON
        self.db = NodeDb(path / "node.db", b"key", clock=lambda: self.now)
        self.routes: dict[str, Route] = {}
        self.checkpoint = 0

    def set(self, *routes: dict[str, Any]) -> None:
        self.routes = routes_of(config.parse({"route": [{**MAIL, **one} for one in routes]}).route)
        self.db.notices.begin(list(self.routes.values()), self.now)

    def keep(self, *findings: Finding) -> list[str]:
        self.checkpoint += 1
        ids = self.db.keep(findings, checkpoint=self.checkpoint, now=self.now)
        self.plan()
        return ids

    def plan(self) -> None:
        while self.db.notices.plan(self.routes, self.now):
            pass

    def pass_(self, **time: float) -> None:
        self.now += timedelta(**time)
        self.plan()

    def told(self, route: str = "duty") -> list[str]:
        """What was made for a route, oldest first."""
        made = reversed(self.db.notices.deliveries(route))
        return [one.kind if one.findings != 1 else one.about for one in made]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.db.close()


# ---- Who is told


def test_a_finding_is_told_once_and_its_growth_is_not(desk: Desk) -> None:
    desk.set({})
    desk.keep(match())
    desk.keep(match(NOON + timedelta(minutes=1)))
    desk.keep(match(source="192.0.2.8"))

    assert desk.told() == ["Password guessed"]


def test_a_group_is_told_again_when_it_is_worse(desk: Desk) -> None:
    desk.set({})
    desk.keep(match(severity="medium"))
    desk.keep(match(severity="critical"))
    desk.keep(match(severity="critical", source="192.0.2.8"))

    (worse, first) = desk.db.notices.deliveries()
    assert worse.message.items[0].news == "raised"
    assert first.message.items[0].news == "made"


def test_a_group_is_told_again_when_it_comes_back(desk: Desk) -> None:
    desk.set({})
    (id,) = desk.keep(match())
    desk.db.change([id], Change(status="resolved", verdict="benign"), "i.vasko", desk.now)
    desk.keep(match(NOON + timedelta(minutes=1)))

    assert [one.message.items[0].news for one in desk.db.notices.deliveries()] == ["back", "made"]


def test_a_new_finding_is_told_once_the_others_of_its_group_are_closed(desk: Desk) -> None:
    desk.set({})
    (id,) = desk.keep(match())
    desk.db.change([id], Change(status="resolved", verdict="benign"), "i.vasko", desk.now)
    desk.keep(match(source="192.0.2.8"))

    assert len(desk.told()) == 2


def test_a_route_is_told_of_what_its_condition_says(desk: Desk) -> None:
    desk.set(
        {"when": {"finding.severity": ["high", "critical"], "cw.sector": "transport.maritime"}},
        {"id": "technique", "when": {"threat.technique.id": ["T1110"]}},
        {"id": "rail", "when": {"cw.sector": "transport.rail"}},
    )
    brute = Analytic(
        id="b", name="b", kind="rule", version="1", techniques=("T1110", "T1078"), level="low"
    )
    desk.keep(match(title="high one"), match(title="low one", severity="low", analytic=brute))

    assert desk.told() == ["high one"]
    assert desk.told("technique") == ["low one"]
    assert desk.told("rail") == []


def test_an_exercise_is_not_told_unless_the_route_wishes_it(desk: Desk) -> None:
    desk.set({}, {"id": "drill", "exercises": True})
    desk.keep(match(mode="exercise"))

    assert desk.told() == []
    assert desk.told("drill") == ["Password guessed"]


def test_what_was_settled_before_it_is_planned_is_not_told(desk: Desk) -> None:
    desk.set({})
    (id,) = desk.db.keep([match()], checkpoint=1, now=desk.now)
    desk.db.change([id], Change(status="resolved", verdict="benign"), "i.vasko", desk.now)
    desk.plan()

    assert desk.told() == []


def test_a_route_begins_with_what_is_found_after_it_was_set(desk: Desk) -> None:
    desk.db.keep([match()], checkpoint=1, now=desk.now)
    desk.now += timedelta(seconds=1)
    desk.set({})
    desk.plan()

    assert desk.told() == []


# ---- When


def test_a_daily_digest_is_one_message_at_its_time_in_its_zone(desk: Desk) -> None:
    desk.set({"digest": "daily 07:30", "zone": "Europe/Paris"})
    desk.keep(match(title="a"), match(title="b", asset="hmi-2", source="192.0.2.9"))
    desk.pass_(hours=18, minutes=19)
    assert desk.told() == []

    desk.pass_(minutes=1)

    assert desk.now.hour == 6
    (one,) = desk.db.notices.deliveries()
    assert (one.kind, one.findings, one.message.why) == ("digest", 2, "digest")


def test_an_hourly_digest_leaves_out_what_was_settled_meanwhile(desk: Desk) -> None:
    desk.set({"digest": "hourly"})
    first, _ = desk.keep(match(title="a"), match(title="b", asset="hmi-2", source="192.0.2.9"))
    desk.db.change([first], Change(status="resolved", verdict="benign"), "i.vasko", desk.now)
    desk.pass_(minutes=50)

    assert desk.told() == ["b"]


def test_quiet_hours_hold_all_but_what_breaks_through(desk: Desk) -> None:
    desk.set({"quiet_hours": "22:00-06:00", "breaks_quiet": "critical"})
    desk.now = NOON.replace(hour=23)
    desk.keep(
        match(title="high"),
        match(title="worst", severity="critical", asset="plc-1", source="192.0.2.9"),
    )
    assert desk.told() == ["worst"]

    desk.pass_(hours=6, minutes=49)
    assert desk.told() == ["worst"]
    desk.pass_(minutes=1)

    assert desk.told() == ["worst", "high"]


def test_a_finding_that_gets_worse_in_quiet_hours_is_told_once(desk: Desk) -> None:
    desk.set({"quiet_hours": "22:00-06:00"})
    desk.now = NOON.replace(hour=23)
    desk.keep(match())
    desk.keep(match(severity="critical"))
    desk.pass_(hours=12)

    assert len(desk.told()) == 1


def test_what_is_more_than_the_limit_comes_in_one_message_that_says_how_many(desk: Desk) -> None:
    desk.set({"max_per_hour": 3})
    desk.keep(*(match(asset=f"rtu-{n}", source=f"192.0.2.{n}") for n in range(90)))
    assert desk.told() == ["Password guessed"] * 3
    assert desk.db.notices.deliveries()[0].message.full

    desk.pass_(minutes=50)

    (digest, *_) = desk.db.notices.deliveries()
    assert (digest.kind, digest.findings, digest.message.why) == ("digest", 87, "limit")
    assert (len(digest.message.items), digest.message.more) == (50, 37)


def test_a_finding_that_nobody_takes_is_told_to_the_next(desk: Desk) -> None:
    chief = {"id": "chief", "when": None}
    desk.set({"escalate_after_min": 30, "escalate_to": "chief"}, chief)
    taken, _, _ = desk.keep(
        match(title="taken"),
        match(title="left", asset="rtu-1", source="192.0.2.1"),
        match(title="exercise", asset="rtu-2", source="192.0.2.2", mode="exercise"),
    )
    desk.pass_(minutes=20)
    desk.db.change([taken], Change(assignee="i.vasko"), "i.vasko", desk.now)
    assert desk.told("chief") == []

    desk.pass_(minutes=10)
    desk.pass_(minutes=60)

    assert desk.told("chief") == ["left"]
    assert desk.db.notices.deliveries("chief")[0].kind == "escalation"


# ---- What is set


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"server": "mail.example"}, "no address:port"),
        ({"receivers": []}, "needs receivers"),
        ({"receivers": ["duty@port.example\r\nBcc: x@evil.example"]}, "no mail address"),
        ({"sender": "cityward"}, "no mail address"),
        ({"transport": "udp"}, "not spoken over udp"),
        ({"transport": "tcp"}, "this machine only"),
        ({"to": "webhook", "url": "http://hook.example/", "secret_env": "S"}, "no https"),
        ({"to": "webhook", "url": "https://hook.example/"}, "needs a secret"),
        ({"to": "webhook", "url": "https://a:b@hook.example/", "secret_env": "S"}, "no https"),
        ({"digest": "daily"}, "none of immediately"),
        ({"digest": "daily 24:00"}, "none of immediately"),
        ({"quiet_hours": "22-6"}, "no hours"),
        ({"zone": "Mars/Olympus"}, "no time zone"),
        ({"zone": "../../etc/passwd"}, "no time zone"),
        ({"escalate_to": "duty"}, "need each other"),
        ({"escalate_to": "duty", "escalate_after_min": 5}, "come back to duty"),
        ({"escalate_to": "nobody", "escalate_after_min": 5}, "no route of this file"),
        ({"when": None}, "which findings"),
        ({"max_per_hour": -1}, "is not 0 to"),
    ],
)
def test_an_impossible_route_is_refused_with_its_key(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        config.parse({"route": [{**MAIL, **wrong}]})

    assert "route[0]." in caught.value.where


def test_a_condition_on_a_field_that_findings_do_not_have_is_refused() -> None:
    settings = config.parse({"route": [{**MAIL, "when": {"finding.severty": "high"}}]})

    with pytest.raises(ConfigError, match="no field 'finding"):
        routes_of(settings.route)
