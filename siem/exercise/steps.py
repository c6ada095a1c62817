"""The steps of the labelled evening: what an attacker does, and what the city must find."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

import msgspec

from siem.exercise import protocols as says
from siem.exercise.evening import EVENING_S, Clock, Put, Stage, interrogate, switch, vehicles
from siem.exercise.saltmere import City

FIRST_S, LAST_S = 120.0, EVENING_S - 200.0
"""The steps are spread over this part of the evening."""
NOBODIES = ("admin", "guest", "test", "oracle", "support")
"""Names that many devices have, and none here."""


class Expected(NamedTuple):
    """A finding that a step promises."""

    rule: str
    """Path of the rule in the library without its ending."""
    field: str = ""
    """Field that names the culprit or what is affected; empty: the finding names nobody."""
    value: str = ""


class Scene(msgspec.Struct, frozen=True):
    """A step as it is played."""

    puts: Sequence[Put]
    expected: Sequence[Expected]


Plays = Callable[[Stage, float, int], Scene]
"""From the stage, the second of the evening, and the number of the step at its operator."""


class Step(msgspec.Struct, frozen=True):
    """One step of the evening."""

    name: str
    operator: str
    says: str
    """What happens, in one sentence."""
    plays: Plays


STEPS: list[Step] = []
"""All steps, in the order in which they were written; the seed says when each is played."""


def _step(name: str, operator: str) -> Callable[[Plays], Plays]:
    def add(plays: Plays) -> Plays:
        says_ = (plays.__doc__ or "").partition("\n")[0]
        STEPS.append(Step(name, operator, says_, plays))
        return plays

    return add


def scenes(city: City, clock: Clock, without: Sequence[str] = ()) -> Iterator[tuple[Step, Scene]]:
    """The steps as this city's seed plays them; one that is left out changes no other."""
    random = Random(f"{city.seed}:order")
    order = random.sample(range(len(STEPS)), len(STEPS))
    every_s = (LAST_S - FIRST_S) / len(STEPS)
    for number, step in enumerate(STEPS):
        at_s = FIRST_S + every_s * (order[number] + 0.5 * random.random())
        if step.name not in without:
            stage = Stage(city, city.places[step.operator], clock, step.name)
            before = sum(one.operator == step.operator for one in STEPS[:number])
            yield step, step.plays(stage, at_s, before)


# ---- Saltmere Metro


@_step("cabinet-login", "op-metro")
def _cabinet_login(stage: Stage, at_s: float, step: int) -> Scene:
    """Somebody guesses the password of a signal cabinet, and gets in as admin."""
    who, host = stage.outsider(step), stage.random.choice(stage.place.named("cabinet-"))
    puts = [
        stage.password("cabinets", at_s + 3.0 * number, host, "admin", who, fits=number == 10)
        for number in range(11)
    ]
    rules = (
        "correlations/ssh_password_guessing",
        "correlations/ssh_login_after_guessing",
        "transport/default_login_on_signal_controller",
    )
    return Scene(puts, [Expected(rule, "source.ip", who) for rule in rules])


@_step("forged-sign", "op-metro")
def _forged_sign(stage: Stage, at_s: float, step: int) -> Scene:
    """An office computer writes its own text on a passenger sign."""
    who, sign = stage.place.of("desk-1"), stage.random.choice(stage.place.addresses("sign-"))
    put = stage.http("signs", at_s, who, sign, method="POST", uri="/text", status_code=204)
    return Scene([put], [Expected("transport/sign_text_from_unknown_host", "source.ip", who)])


@_step("ghost-trams", "op-metro")
def _ghost_trams(stage: Stage, at_s: float, step: int) -> Scene:
    """The trams of the feed race through the city at 300 km/h."""
    put = stage.feed("vehicles", at_s, vehicles(stage, at_s, 84.0))
    tracks = [f"tram-{401 + number}" for number in range(12)]
    return Scene(
        [put],
        [
            Expected("transport/many_vehicles_too_fast"),
            *(Expected("transport/vehicle_too_fast", "phys.track", one) for one in tracks),
        ],
    )


@_step("lost-trips", "op-metro")
def _lost_trips(stage: Stage, at_s: float, step: int) -> Scene:
    """The supplier's feed cancels every trip of the night at once."""
    time_s = stage.epoch_s(at_s)
    trips = [
        says.trip_cancelled(f"night-{number}", f"line-{number % 4 + 1}", time_s)
        for number in range(28)
    ]
    return Scene(
        [stage.feed("vehicles", at_s, trips)], [Expected("transport/many_trips_cancelled")]
    )


# ---- Saltmere Power and Heat


@_step("heat-setpoint", "op-grid")
def _heat_setpoint(stage: Stage, at_s: float, step: int) -> Scene:
    """An office computer writes set-points of the district heating over Modbus."""
    who, plc = stage.place.of("desk-2"), stage.random.choice(stage.place.addresses("plc-"))
    talk = stage.talk(who, plc, says.MODBUS_PORT, at_s).open()
    for number in range(6):
        write = says.write_single(200 + number, 5)
        talk.ask(says.modbus(number, 1, write), says.modbus(number, 1, write))
    return Scene(
        list(stage.seen(talk.close())),
        [Expected("energy/modbus_write_by_non_writer", "source.ip", who)],
    )


@_step("open-breakers", "op-grid")
def _open_breakers(stage: Stage, at_s: float, step: int) -> Scene:
    """A server that is no control centre learns the points of a substation and opens them all."""
    who, rtu = stage.place.of("historian-1"), stage.random.choice(stage.place.addresses("rtu-"))
    station = says.Station(9)
    talk = stage.talk(who, rtu, says.IEC104_PORT, at_s).open()
    talk.ask(says.STARTDT_ACT, says.STARTDT_CON)
    interrogate(talk, station, stage.random)
    for number in range(24):
        switch(talk, station, 6001 + number, on=False)
    rules = (
        "energy/iec104_interrogated_by_stranger",
        "energy/iec104_command_by_stranger",
        "correlations/iec104_interrogation_then_command",
        "correlations/iec104_points_enumerated",
    )
    return Scene(
        list(stage.seen(talk.close())), [Expected(rule, "source.ip", who) for rule in rules]
    )


@_step("station-search", "op-grid")
def _station_search(stage: Stage, at_s: float, step: int) -> Scene:
    """Somebody outside looks for substations at the firewall, address by address."""
    who = stage.outsider(step)
    targets = stage.place.unused("substations", 26)
    puts = [
        stage.blocked("firewall", at_s + 1.5 * number, who, target, says.IEC104_PORT)
        for number, target in enumerate(targets)
    ]
    return Scene(puts, [Expected("correlations/network_scan", "source.ip", who)])


# ---- Port of Saltmere


@_step("crane-program", "op-port")
def _crane_program(stage: Stage, at_s: float, step: int) -> Scene:
    """A yard computer takes a crane's controller, loads a program into it, and stops it."""
    who, crane = stage.place.of("yard-1"), stage.random.choice(stage.place.addresses("crane-"))
    talk = stage.talk(who, crane, says.MODBUS_PORT, at_s).open()
    for number, (function, data) in enumerate(
        ((0x10, b"\x01\0\0\x05yard\0"), (0x30, b"\0\x01"), (0x41, b"\xff\0"))
    ):
        answer = says.umas(0, 0xFE, b"\x01")
        talk.ask(
            says.modbus(number, 0, says.umas(number and 1, function, data)),
            says.modbus(number, 0, answer),
        )
    rules = (
        "port/crane_program_changed_by_stranger",
        "port/new_talker_in_crane_zone",
        "energy/umas_reserved_by_stranger",
        "energy/umas_program_transfer",
        "energy/umas_controller_stopped",
    )
    return Scene(
        list(stage.seen(talk.close())), [Expected(rule, "source.ip", who) for rule in rules]
    )


@_step("smb-burst", "op-port")
def _smb_burst(stage: Stage, at_s: float, step: int) -> Scene:
    """A worm on an office computer reaches for the shares of all others."""
    desks = stage.place.addresses("desk-")
    who, others = desks[-1], desks[:-1]
    talks = [
        stage.talk(who, other, 445, at_s + 1.2 * number)
        .open()
        .ask(b"\xfeSMB" + bytes(60), b"\xfeSMB" + bytes(90))
        .close()
        for number, other in enumerate(others)
    ]
    return Scene(list(stage.seen(*talks)), [Expected("port/smb_to_many_hosts", "source.ip", who)])


@_step("shared-account", "op-port")
def _shared_account(stage: Stage, at_s: float, step: int) -> Scene:
    """The account of a haulier is used from two places at once."""
    user = "haulier7"
    puts = [
        stage.password(
            "gateway",
            at_s + 40.0 * number,
            "gateway-1",
            user,
            stage.outsider(step, 3 * number),
            fits=True,
        )
        for number in range(2)
    ]
    return Scene(puts, [Expected("port/one_account_from_two_addresses", "user.name", user)])


# ---- The same stranger at two of them: neither tells the other who it was


@_step("scanner-at-the-metro", "op-metro")
def _scanner_at_the_metro(stage: Stage, at_s: float, step: int) -> Scene:
    """A stranger guesses passwords of a signal cabinet, and does not get in."""
    return _guesses(stage, at_s, "cabinets", stage.place.named("cabinet-")[0], "root")


@_step("scanner-at-the-port", "op-port")
def _scanner_at_the_port(stage: Stage, at_s: float, step: int) -> Scene:
    """The same stranger guesses passwords of the port's remote access, and does not get in."""
    return _guesses(stage, at_s, "gateway", "gateway-1", "root")


def _guesses(stage: Stage, at_s: float, source: str, host: str, user: str) -> Scene:
    who = stage.city.scanner
    users = (user,) * 6 + tuple(f"invalid user {one}" for one in NOBODIES)
    puts = [
        stage.password(source, at_s + 3.0 * number, host, one, who, fits=False)
        for number, one in enumerate(users)
    ]
    rules = ("correlations/ssh_password_guessing", "correlations/ssh_users_enumerated")
    return Scene(puts, [Expected(rule, "source.ip", who) for rule in rules])


# ---- City of Saltmere


@_step("camera-worm", "op-city")
def _camera_worm(stage: Stage, at_s: float, step: int) -> Scene:
    """A street camera looks for others with telnet, as Mirai did."""
    who = stage.random.choice(stage.place.addresses("camera-"))
    talks = [
        stage.talk(who, target, 23, at_s + 1.3 * number).unanswered()
        for number, target in enumerate(stage.place.unused("cameras", 16))
    ]
    return Scene(list(stage.seen(*talks)), [Expected("correlations/telnet_worm", "source.ip", who)])


@_step("recorder-abroad", "op-city")
def _recorder_abroad(stage: Stage, at_s: float, step: int) -> Scene:
    """A video recorder sends something to the internet."""
    who = stage.place.of("recorder-1")
    talk = stage.talk(who, stage.random.choice(stage.city.internet), 443, at_s).open()
    talk.ask(b"\x16\x03\x01\0\xc8" + stage.random.randbytes(200), stage.random.randbytes(400))
    return Scene(
        list(stage.seen(talk.close())),
        [Expected("city/recorder_as_internet_client", "source.ip", who)],
    )


@_step("forged-level", "op-city")
def _forged_level(stage: Stage, at_s: float, step: int) -> Scene:
    """A forged reading says that the river stands 41 metres high."""
    gauge = "mill-bridge"
    put = stage.reading("gauges", at_s, gauge, 41.0 + stage.random.random())
    return Scene([put], [Expected("city/gauge_reading_impossible", "phys.point", gauge)])


@_step("blind-gauge", "op-city")
def _blind_gauge(stage: Stage, at_s: float, step: int) -> Scene:
    """A gauge goes on sending, and has no level to tell."""
    gauge = "lock-gate"
    puts = [
        stage.reading("gauges", at_s + 20.0 * number, gauge, None, quality="bad")
        for number in range(5)
    ]
    return Scene(puts, [Expected("city/gauge_blind", "phys.point", gauge)])


@_step("camera-round", "op-city")
def _camera_round(stage: Stage, at_s: float, step: int) -> Scene:
    """The account of a supplier opens nearly all cameras, one after the other."""
    who, user = stage.outsider(step), "supplier"
    cameras = stage.random.sample(stage.place.named("camera-"), 22)
    puts = [
        stage.sent(stage.accepted("devices", at_s + 4.0 * number, camera, user, who))
        for number, camera in enumerate(cameras)
    ]
    return Scene(puts, [Expected("city/one_account_on_many_cameras", "user.name", user)])
