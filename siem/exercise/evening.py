"""What happens in Saltmere on an ordinary evening, and the stage on which all of it is told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import msgspec

from siem.exercise import protocols as says
from siem.exercise.frames import Talk, datagram
from siem.exercise.saltmere import CAPTURES, City, Place

EVENING_S = 3600.0
"""The evening has one hour; a speed factor makes it shorter."""
CAPTURE_S = EVENING_S / (CAPTURES - 1)
AFTERNOON_S = (-1_180.0, -900.0)
"""The capture of the afternoon: long over when the evening begins."""
GAUGE_DAYS = 4
GAUGE_EVERY_S = 900.0


class Put(msgspec.Struct, frozen=True):
    """One record that goes into a source."""

    at_s: float
    """When, seconds of the evening; negative: before it."""
    source: str
    data: bytes
    """A line without its end, a datagram, a frame, a document."""


class Clock(msgspec.Struct, frozen=True):
    """When the evening began, and how fast it passes."""

    began: datetime
    speed: float = 1.0

    def time(self, at_s: float) -> datetime:
        """The time that a record of a second of the evening names."""
        return self.began + timedelta(seconds=at_s / self.speed if at_s > 0 else at_s)


class Stage:
    """What a scene needs: a place, chance, a clock, and the words of its devices."""

    def __init__(self, city: City, place: Place, clock: Clock, scene: str) -> None:
        self.city = city
        self.place = place
        self.clock = clock
        self.random = Random(f"{city.seed}:{place.operator}:{scene}")

    def outsider(self, step: int, number: int = 0) -> str:
        """An address outside that only this step of this operator uses."""
        return self.city.outsider(self.place.operator, step, number)

    def around(self, every_s: float, since_s: float = 0.0) -> Iterator[float]:
        """Seconds of the evening, about so far apart."""
        at_s = since_s + every_s * self.random.random()
        while at_s < EVENING_S:
            yield at_s
            at_s += every_s * (0.6 + 0.8 * self.random.random())

    def sshd(self, source: str, at_s: float, host: str, message: str) -> Put:
        """What a login server says, as rsyslog writes it into a file."""
        time = self.clock.time(at_s)
        line = f"{time:%Y-%m-%dT%H:%M:%S.%f}+00:00 {host} sshd[{self._pid()}]: {message}"
        return Put(at_s, source, line.encode())

    def sent(self, put: Put) -> Put:
        """The same as it is sent to a collector: with facility `authpriv` and severity `info`."""
        return Put(put.at_s, put.source, b"<86>" + put.data)

    def accepted(self, source: str, at_s: float, host: str, user: str, address: str) -> Put:
        """Somebody logs in with a key."""
        key = "".join(self.random.choices("ABCDEFGHabcdefgh0123456789+/", k=43))
        message = f"Accepted publickey for {user} from {address} port {self._port()} ssh2"
        return self.sshd(source, at_s, host, f"{message}: ED25519 SHA256:{key}")

    def password(
        self, source: str, at_s: float, host: str, user: str, address: str, *, fits: bool
    ) -> Put:
        """Somebody tries a password."""
        word = "Accepted" if fits else "Failed"
        message = f"{word} password for {user} from {address} port {self._port()} ssh2"
        return self.sshd(source, at_s, host, message)

    def syslog(self, source: str, at_s: float, host: str, app: str, message: str) -> Put:
        """A message of a program, RFC 5424."""
        stamp = self.clock.time(at_s).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Put(at_s, source, f"<30>1 {stamp} {host} {app} {self._pid()} - - {message}".encode())

    def blocked(self, source: str, at_s: float, address: str, target: str, port: int) -> Put:
        """A packet filter refused a packet."""
        time = self.clock.time(at_s)
        ports = f"PROTO=TCP SPT={self._port()} DPT={port} WINDOW=1024 RES=0x00 SYN URGP=0"
        line = (
            f"<4>{time:%b} {time.day:>2} {time:%H:%M:%S} fw-1 kernel: [UFW BLOCK] IN=eth0 OUT= "
            f"MAC=02:00:0a:00:00:01:02:00:0a:00:00:02:08:00 SRC={address} DST={target} LEN=44 "
            f"TOS=0x00 PREC=0x00 TTL=241 ID={self.random.randint(1, 65_535)} {ports}"
        )
        return Put(at_s, source, line.encode())

    def http(self, source: str, at_s: float, client: str, server: str, **said: Any) -> Put:
        """A request that Zeek saw."""
        line = {
            "_path": "http",
            "ts": round(self.clock.time(at_s).timestamp(), 6),
            "uid": "C" + "".join(self.random.choices("0123456789abcdef", k=16)),
            "id.orig_h": client,
            "id.orig_p": self._port(),
            "id.resp_h": server,
            "id.resp_p": 80,
            **said,
        }
        return Put(at_s, source, json.dumps(line).encode())

    def feed(self, source: str, at_s: float, entities: Iterable[bytes]) -> Put:
        """A poll answer of the vehicles."""
        return Put(at_s, source, says.feed(self.epoch_s(at_s), list(entities)))

    def reading(
        self, source: str, at_s: float, gauge: str, level_m: float | None, **said: Any
    ) -> Put:
        """A line of a river gauge; without a level it has none to tell."""
        time = self.clock.time(at_s).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told = None if level_m is None else round(level_m, 3)
        line = {"gauge": gauge, "time": time, "water_level_m": told, **said}
        return Put(at_s, source, json.dumps(line).encode())

    def talk(self, client: str, server: str, port: int, at_s: float) -> Talk:
        """A connection on the wire."""
        return Talk(client, server, port, at_s, self.random)

    def seen(self, *talks: Talk, tap: str = "tap") -> Iterator[Put]:
        """What a tap sees of connections: each is in the capture in which it began."""
        for talk in talks:
            source = f"{tap}-{capture_at(talk.frames[0][0])}"
            for at_s, frame in talk.frames:
                yield Put(at_s, source, frame)

    def epoch_s(self, at_s: float) -> int:
        """Time of a second of the evening, whole seconds since 1970."""
        return int(self.clock.time(at_s).timestamp())

    def _port(self) -> int:
        return self.random.randint(32_768, 60_999)

    def _pid(self) -> int:
        return self.random.randint(400, 32_000)


def capture_at(at_s: float) -> int:
    """Number of the capture that records a second of the evening."""
    return 0 if at_s < 0 else min(int(at_s / CAPTURE_S), CAPTURES - 2) + 1


# ---- before the evening


def afternoon(stage: Stage) -> Iterator[Put]:
    """What a node has read before the evening begins, so that it knows what is usual."""
    yield from _BEFORE.get(stage.place.operator, _nothing)(stage)


def _nothing(stage: Stage) -> Iterator[Put]:
    return iter(())


def _grid_before(stage: Stage) -> Iterator[Put]:
    polls = [_polls(stage, plc, *AFTERNOON_S, 1.0) for plc in stage.place.addresses("plc-")]
    stations = [
        _station(stage, number, *AFTERNOON_S, 0.8)
        for number in range(len(stage.place.named("rtu-")))
    ]
    yield from stage.seen(*polls, *stations)


def _port_before(stage: Stage) -> Iterator[Put]:
    cranes = stage.place.addresses("crane-")
    manager = stage.place.of("manager-1")
    yield from stage.seen(*(_polls(stage, one, *AFTERNOON_S, 1.0, manager) for one in cranes))


def _city_before(stage: Stage) -> Iterator[Put]:
    count = int(GAUGE_DAYS * 86_400 / GAUGE_EVERY_S)
    for row in range(count):
        at_s = (row - count) * GAUGE_EVERY_S
        for gauge in gauges(stage.place):
            yield stage.reading("gauges", at_s, gauge, level(stage, gauge, at_s))


_BEFORE: dict[str, Callable[[Stage], Iterator[Put]]] = {
    "op-grid": _grid_before,
    "op-port": _port_before,
    "op-city": _city_before,
}


# ---- the evening


def ordinary(stage: Stage) -> Iterator[Put]:
    """The ordinary traffic of a place in the evening."""
    yield from _ORDINARY[stage.place.operator](stage)


def _metro(stage: Stage) -> Iterator[Put]:
    place, random = stage.place, stage.random
    jump = place.of("jump-1")
    for number, at_s in enumerate(stage.around(90.0)):
        cabinet = random.choice(place.named("cabinet-"))
        if number % 40 == 7:
            yield stage.password("cabinets", at_s, cabinet, "ops", jump, fits=False)
        yield stage.accepted("cabinets", at_s + 4.0, cabinet, "ops", jump)
    for at_s in stage.around(40.0):
        sign, dispatch = random.choice(place.addresses("sign-")), place.of("dispatch-1")
        yield stage.http("signs", at_s, dispatch, sign, method="PUT", uri="/text", status_code=204)
    for number in range(int(EVENING_S / 60)):
        yield stage.feed("vehicles", 60.0 * number + 20.0, vehicles(stage, 60.0 * number))
    yield from _office(stage)


def vehicles(stage: Stage, at_s: float, speed: float | None = None) -> Iterator[bytes]:
    """All vehicles where they are, and how late they run; with `speed` all go so fast."""
    time_s = stage.epoch_s(at_s)
    for number in range(12):
        angle = 0.0005 * at_s + number
        spot = (53.5 + 0.03 * math.sin(angle), 1.2 + 0.05 * math.cos(angle))
        usual = 6.0 + 8.0 * stage.random.random()
        route = f"line-{number % 4 + 1}"
        track, trip = f"tram-{401 + number}", f"trip-{number}-{int(at_s // 1200)}"
        yield says.vehicle(track, trip, route, spot, speed or usual, time_s)
        if speed is None and number % 3 == 0:
            yield says.trip_update(trip, route, stage.random.randint(0, 240), time_s)


def _grid(stage: Stage) -> Iterator[Put]:
    place = stage.place
    for since_s, until_s in _sixths():
        for plc in place.addresses("plc-"):
            yield from stage.seen(_polls(stage, plc, since_s, until_s, 20.0))
        for number in range(len(place.named("rtu-"))):
            yield from stage.seen(_station(stage, number, since_s, until_s, 15.0))
    for at_s in stage.around(120.0):
        said = stage.accepted("bastion", at_s, "bastion-1", "netops", place.of("engineering-1"))
        yield stage.sent(said)
    scanners = stage.city.internet[:12]
    targets = [*place.addresses("rtu-"), *place.addresses("plc-")]
    for at_s in stage.around(15.0):
        # Somebody always knocks: each at few doors, none at many.
        number = stage.random.randrange(len(scanners))
        port = (23, 443, 3389, 8080)[number % 4]
        yield stage.blocked("firewall", at_s, scanners[number], stage.random.choice(targets), port)


def _port(stage: Stage) -> Iterator[Put]:
    place, random = stage.place, stage.random
    manager = place.of("manager-1")
    for since_s, until_s in _sixths():
        for crane in place.addresses("crane-"):
            yield from stage.seen(_polls(stage, crane, since_s, until_s, 20.0, manager))
    for at_s in stage.around(50.0):
        desk = random.choice(place.addresses("desk-")[:20])
        talk = stage.talk(desk, place.of("files-1"), 445, at_s).open()
        yield from stage.seen(talk.ask(b"\xfeSMB" + bytes(60), b"\xfeSMB" + bytes(90)).close())
    for at_s in stage.around(100.0):
        crew = random.randrange(6)
        home = stage.city.internet[20 + crew]
        yield stage.accepted("gateway", at_s, "gateway-1", f"crew{crew}", home)
    guessers = random.sample(stage.city.internet[30:], 20)
    for at_s, who in zip(stage.around(400.0), guessers, strict=False):
        yield stage.password("gateway", at_s, "gateway-1", "root", who, fits=False)
    yield from _office(stage)


def _city(stage: Stage) -> Iterator[Put]:
    place, random = stage.place, stage.random
    broker = place.of("broker-1")
    for at_s in stage.around(12.0):
        sensor = random.choice(place.addresses("sensor-"))
        talk = stage.talk(sensor, broker, 1883, at_s).open()
        yield from stage.seen(
            talk.ask(b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x02s1", b"\x20\x02\0\0").close()
        )
    for at_s in stage.around(60.0):
        camera, recorder = random.choice(place.addresses("camera-")), place.of("recorder-1")
        talk = stage.talk(recorder, camera, 554, at_s).open()
        asks = f"OPTIONS rtsp://{camera}/1 RTSP/1.0\r\nCSeq: 1\r\n\r\n"
        yield from stage.seen(
            talk.ask(asks.encode(), b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n").close()
        )
    for at_s in stage.around(150.0):
        source = f"tap-{capture_at(at_s)}"
        ends = (place.of("recorder-2"), 123), (random.choice(stage.city.internet), 123)
        yield Put(at_s, source, datagram(*ends, b"\x23" + bytes(47)))
        yield Put(at_s + 0.05, source, datagram(*ends[::-1], b"\x24" + bytes(47)))
    for number in range(int(EVENING_S / 60)):
        for offset, gauge in enumerate(gauges(stage.place)):
            at_s = 60.0 * number + 7.0 * offset + 3.0
            yield stage.reading("gauges", at_s, gauge, level(stage, gauge, at_s))
    for at_s in stage.around(200.0):
        camera = random.choice(place.named("camera-")[:5])
        yield stage.sent(stage.accepted("devices", at_s, camera, "upkeep", place.of("jump-1")))
    for at_s in stage.around(45.0):
        camera = random.choice(place.named("camera-"))
        yield stage.syslog("devices", at_s, camera, "streamd", "stream 1 running, 25 frames/s")


_ORDINARY = {"op-metro": _metro, "op-grid": _grid, "op-port": _port, "op-city": _city}


def _sixths() -> Iterator[tuple[float, float]]:
    """Parts of the evening, one a capture, with a moment at each end to open and to close."""
    for number in range(CAPTURES - 1):
        yield number * CAPTURE_S + 1.0, (number + 1) * CAPTURE_S - 10.0


def _office(stage: Stage) -> Iterator[Put]:
    """Programs of an office that say what they do."""
    desks, random = stage.place.addresses("desk-"), stage.random
    for at_s in stage.around(10.0):
        desk = random.choice(desks)
        host, app, message = random.choice(
            (
                ("dhcp-1", "dhcpd", f"DHCPACK on {desk} to 02:00:0a:00:00:07 via eth0"),
                (
                    "web-1",
                    "nginx",
                    f'{desk} - - "GET /timetable HTTP/1.1" 200 {random.randint(400, 9000)}',
                ),
                ("vpn-1", "openvpn", f"staff{random.randint(1, 40)}/{desk} TLS: soft reset"),
                ("mail-1", "postfix/smtpd", f"disconnect from {desk} ehlo=1 mail=1 rcpt=1 quit=1"),
            )
        )
        yield stage.syslog("office", at_s, host, app, message)


def _polls(
    stage: Stage,
    controller: str,
    since_s: float,
    until_s: float,
    every_s: float,
    master: str | None = None,
) -> Talk:
    """A master that asks a controller for the same registers again and again."""
    talk = stage.talk(master or stage.place.of("scada-2"), controller, says.MODBUS_PORT, since_s)
    talk.open()
    random, number = stage.random, 0
    while talk.wait(since_s + every_s * number).now_s < until_s:
        number += 1
        first = (0, 40, 100)[number % 3]
        values = [random.randint(180, 220) for _ in range(4)]
        ask, answer = says.read_holding(first, 4), says.holding(values)
        if number % 15 == 0 and master is None:
            ask = answer = says.write_single(200, random.randint(60, 80))
        talk.ask(says.modbus(number, 1, ask), says.modbus(number, 1, answer))
    return talk.close()


def _station(stage: Stage, number: int, since_s: float, until_s: float, every_s: float) -> Talk:
    """The control centre listens to a substation that tells its measurements."""
    random = stage.random
    rtu = stage.place.of(f"rtu-{number + 1}")
    station = says.Station(number + 1)
    talk = stage.talk(stage.place.of("scada-1"), rtu, says.IEC104_PORT, since_s).open()
    talk.ask(says.STARTDT_ACT, says.STARTDT_CON)
    interrogate(talk, station, random)
    at = 0
    while talk.wait(since_s + 1.0 + every_s * at).now_s < until_s:
        at += 1
        objects = says.measured(4001 + at % 6, 20.0 + random.random())
        talk.tell(station.tells(says.MEASURED_FLOAT, says.SPONTANEOUS, objects))
        if at % 20 == 0:
            switch(talk, station, 6001 + at % 3, on=at % 40 == 0)
    return talk.close()


def interrogate(talk: Talk, station: says.Station, random: Random) -> None:
    """Ask a station for all its values, and hear them."""
    ask = says.interrogation()
    values = [
        station.tells(
            says.MEASURED_FLOAT, says.INTERROGATED, says.measured(4001 + at, 20.0 + random.random())
        )
        for at in range(6)
    ]
    asks = station.asks(says.INTERROGATION, says.ACTIVATION, ask)
    confirms = station.tells(says.INTERROGATION, says.CONFIRMATION, ask)
    ends = station.tells(says.INTERROGATION, says.TERMINATION, ask)
    talk.ask(asks, confirms, *values, ends)


def switch(talk: Talk, station: says.Station, address: int, *, on: bool) -> None:
    """Command a switch of a station, and hear that it obeys."""
    command = says.double_command(address, on=on)
    talk.ask(
        station.asks(says.DOUBLE_COMMAND, says.ACTIVATION, command),
        station.tells(says.DOUBLE_COMMAND, says.CONFIRMATION, command),
    )


def gauges(place: Place) -> list[str]:
    """Names of the river gauges."""
    return [name for name, one in place.assets.items() if one["type"] == "level_gauge"]


def level(stage: Stage, gauge: str, at_s: float) -> float:
    """Level of the river: the tide, and the noise of waves, metres."""
    tide_s = 44_714.0
    time_s = (stage.clock.time(at_s) - datetime(2026, 1, 1, tzinfo=UTC)).total_seconds()
    phase = 2 * math.pi * time_s / tide_s + len(gauge)
    return 2.0 + 0.4 * math.sin(phase) + stage.random.gauss(0.0, 0.02)
