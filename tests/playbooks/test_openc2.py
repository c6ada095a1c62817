"""OpenC2 in both directions over real HTTP, against the published schemas."""

from __future__ import annotations

import http.client
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cityward import Actuator, Command, State, Target, TransientError, Unsafe, actuator
from cityward.checks import check_actuator, check_actuator_alone
from playbooks import openc2
from playbooks.actuators.openc2 import OpenC2
from playbooks.actuators.web import Answer
from playbooks.openc2_consumer import Consumer, Gate, Server
from playbooks.runner import Runner
from playbooks.targets import target_of, words
from tests.playbooks.kit import Clock, Planner, allows, db_at, deny, playbook, run_of
from tests.programs import PATIENCE_S

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
TOKEN = "s3cret-t0ken"
HOST = Target("ipv4_net", "192.0.2.7")
FLOW = target_of(
    "ipv4_connection", {"src_addr": "192.0.2.7", "dst_addr": "192.0.2.9", "dst_port": 502}
)
ENDS = {"src_addr": "192.0.2.7", "dst_addr": "192.0.2.9"}
DENY = {"action": "deny", "target": {"ipv4_net": "192.0.2.7"}, "args": {"duration": 60_000}}


@actuator("filter", verbs={"deny": "allow"}, targets=openc2.NETWORKS + openc2.CONNECTIONS)
class Filter:
    """A packet filter that only remembers what it denies."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.denied: dict[Target, datetime] = {}
        self.applied: list[Command] = []
        self.clock, self.fault = clock, None

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        if self.denied.get(target, NOW) < until:
            yield Command(verb, target, undo="allow", until=until)

    def apply(self, command: Command) -> None:
        if self.fault:
            raise self.fault
        self.applied.append(command)
        if command.verb == "deny":
            self.denied[command.target] = command.until
        else:
            self.denied.pop(command.target, None)

    def probe(self, target: Target) -> State:
        until = self.denied.get(target)
        is_applied = until is not None and until > self.clock()
        return State(is_applied, until if is_applied else None)


class Bench:
    """A consumer on loopback, and who talks to it."""

    def __init__(self, clock: Callable[[], datetime] | None = None, **more: Any) -> None:
        self.now = NOW
        clock = clock or (lambda: self.now)
        self.filter = Filter(clock)
        self.consumer = Consumer(self.filter, clock=clock, **more)
        self.server = Server(("127.0.0.1", 0), self.consumer, Gate(token=TOKEN))
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}{openc2.PATH}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.number = 0

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def send(self, said: Any, id: str = "", **headers: str) -> tuple[int, Any]:
        self.number += 1
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        own = {
            "Content-Type": openc2.COMMAND_TYPE,
            "Authorization": f"Bearer {TOKEN}",
            "X-Request-ID": id or f"r{self.number}",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        connection.request("POST", headers.get("path", openc2.PATH), body, own)
        answer = connection.getresponse()
        found = answer.read()
        connection.close()
        assert answer.headers["X-Request-ID"] == own["X-Request-ID"]
        return answer.status, json.loads(found) if found else None


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def schemas(data: Path) -> tuple[Any, Any, dict[str, bytes]]:
    """Validators of command and response, and the published examples by name."""
    jsonschema = pytest.importorskip("jsonschema")
    archive = data / "standards" / "openc2_json_schema.tar.gz"
    if not archive.exists():
        pytest.skip("no schemas here")
    with tarfile.open(archive) as tar:
        files = {
            one.name: file.read()
            for one in tar.getmembers()
            if one.isfile() and (file := tar.extractfile(one)) is not None
        }
    made = [
        jsonschema.Draft7Validator(
            json.loads(files[next(n for n in files if n.endswith(f"main/resources/{name}.json"))])
        )
        for name in ("command", "response")
    ]
    return made[0], made[1], files


# ---- The consumer


def test_a_deny_holds_for_its_duration_and_says_its_rule(bench: Bench) -> None:
    status, said = bench.send(DENY)
    number = said["results"]["slpf"]["rule_number"]
    denied = dict(bench.filter.denied)
    deleted = bench.send({"action": "delete", "target": {"slpf:rule_number": number}})

    assert (status, said["status"]) == (200, 200)
    assert denied == {HOST: NOW + timedelta(minutes=1)}
    assert deleted == (200, {"status": 200})
    assert bench.filter.denied == {}


def test_a_connection_is_denied_until_its_stop_time_and_allowed_again(bench: Bench) -> None:
    said = {
        "ipv4_connection": {
            "protocol": "tcp",
            "src_addr": "192.0.2.7",
            "dst_addr": "192.0.2.9",
            "dst_port": 502,
        }
    }
    stop = int((NOW + timedelta(hours=1)).timestamp() * 1000)

    bench.send(
        {"action": "deny", "target": said, "args": {"stop_time": stop}, "actuator": {"slpf": {}}}
    )
    denied = dict(bench.filter.denied)
    bench.send({"action": "allow", "target": said})

    assert [(words(target), until) for target, until in denied.items()] == [
        ("192.0.2.7 to 192.0.2.9, tcp port 502", NOW + timedelta(hours=1))
    ]
    assert bench.filter.denied == {}


def test_the_same_request_again_is_answered_as_before_and_does_nothing(bench: Bench) -> None:
    first = bench.send(DENY, id="one")
    bench.now += timedelta(seconds=30)
    again = bench.send({**DENY, "args": {"duration": 30_000}}, id="one")
    other = bench.send({**DENY, "target": {"ipv4_net": "192.0.2.8"}}, id="one")
    own_id = [bench.send({**DENY, "command_id": "c"}) for _ in range(2)]

    assert first == again
    assert other == (400, {"status": 400, "status_text": "this id was another command's"})
    assert own_id[0] == own_id[1]
    assert len(bench.filter.applied) == 2


def test_features_are_told(bench: Bench) -> None:
    query = {
        "action": "query",
        "target": {"features": ["versions", "profiles", "pairs", "rate_limit"]},
    }

    _, said = bench.send(query)
    none = bench.send({"action": "query", "target": {"features": []}})

    targets = ["ipv4_net", "ipv6_net", "ipv4_connection", "ipv6_connection"]
    assert said == {
        "status": 200,
        "results": {
            "versions": ["1.0"],
            "profiles": ["slpf", "x-cityward"],
            "pairs": {
                "deny": targets,
                "allow": targets,
                "delete": ["slpf:rule_number"],
                "query": ["features"],
            },
            "rate_limit": 60,
        },
    }
    assert none == (200, {"status": 200})


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"action": "explode"}, 400),
        ({"action": ["deny"]}, 400),
        ({"action": "restart"}, 501),
        ({"target": {"domain_name": "a.example"}}, 501),
        ({"target": {"ipv4_net": "192.0.2.7", "ipv6_net": "2001:db8::1"}}, 400),
        ({"target": {}}, 400),
        ({"target": {"ipv4_net": "0.0.0.0/0"}}, 400),
        ({"target": {"ipv4_net": "192.0.2.7; reboot"}}, 400),
        ({"target": {"ipv4_net": "2001:db8::1"}}, 400),
        ({"target": {"ipv4_net": {"value": "192.0.2.7"}}}, 400),
        ({"target": {"ipv4_connection": {"src_addr": "192.0.2.7"}}}, 501),
        ({"target": {"ipv4_connection": {**ENDS, "protocol": "gre"}}}, 400),
        ({"target": {"slpf:rule_number": 7}}, 501),
        ({"action": "delete", "target": {"slpf:rule_number": 7}, "args": {}}, 404),
        ({"action": "delete", "target": {"slpf:rule_number": [7]}, "args": {}}, 404),
        ({"action": "update", "target": {"file": {"name": "a"}}}, 501),
        ({"action": "allow"}, 501),
        ({"args": {}}, 400),
        ({"args": {"duration": 0}}, 400),
        ({"args": {"duration": True}}, 400),
        ({"args": {"duration": 1e3}}, 400),
        ({"args": {"duration": -5}}, 400),
        ({"args": {"duration": 10**12}}, 400),
        ({"args": {"duration": 5, "stop_time": 5}}, 400),
        ({"args": {"duration": 5, "start_time": 2**52}}, 501),
        ({"args": {"duration": 5, "shell": "reboot"}}, 501),
        ({"args": {"duration": 5, "slpf": {"drop_process": "reject"}}}, 501),
        ({"args": {"duration": 5, "slpf": {"insert_rule": 1}}}, 501),
        ({"args": {"duration": 5, "response_requested": "loud"}}, 400),
        ({"args": [5]}, 400),
        ({"actuator": {"x-acme": {}}}, 501),
        ({"actuator": {"slpf": {"asset_id": "30"}}}, 404),
        ({"actuator": {"slpf": []}}, 400),
        ({"command_id": 7}, 400),
        ({"command_id": "x" * 200}, 400),
        ({"extra": 1}, 400),
        ({"action": "query", "target": {"features": ["schema"]}, "args": {}}, 400),
        ({"action": "query", "target": {"features": ["pairs", "pairs"]}, "args": {}}, 400),
        ({"action": "query", "target": {"features": []}}, 400),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(change: dict[str, Any], status: int, bench: Bench) -> None:
    found = bench.send({**DENY, **change})

    assert found[0] == found[1]["status"] == status
    assert bench.filter.applied == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"7", b'"deny"', b"\xff\xfe", b"[" * 60_000, b" " * 70_000]
)
def test_what_is_no_command_is_refused(body: bytes, bench: Bench) -> None:
    assert bench.send(body)[0] == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": ""}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Content_Type": "application/json"}, 400),
        ({"path": "/"}, 404),
    ],
)
def test_who_does_not_know_the_way_in_stays_out(
    headers: dict[str, str], status: int, bench: Bench
) -> None:
    assert bench.send(DENY, **headers)[0] == status
    assert bench.filter.applied == []


def test_responses_come_as_they_were_wished(bench: Bench) -> None:
    def with_wish(wish: str) -> tuple[int, Any]:
        return bench.send({**DENY, "args": {"duration": 5_000, "response_requested": wish}})

    assert with_wish("none") == (200, None)
    assert with_wish("ack") == (200, {"status": 102})
    assert with_wish("complete")[1]["status"] == 200


def test_a_filter_that_does_not_answer_is_asked_again_by_the_same_request(bench: Bench) -> None:
    bench.filter.fault = TransientError("gone", "nft 10.0.0.1", "")
    first = bench.send(DENY, id="one")
    bench.filter.fault = ValueError("secret path")
    broken = bench.send(DENY, id="one")
    bench.filter.fault = Unsafe("kept", "", "")
    refused = bench.send(DENY, id="two")
    bench.filter.fault = None
    again = bench.send(DENY, id="one")

    assert (first[0], broken[0], refused[0], again[0]) == (503, 500, 403, 200)
    assert "secret" not in json.dumps(broken)
    assert "10.0.0.1" not in json.dumps(first)


def test_there_is_a_limit_to_commands_a_minute() -> None:
    bench = Bench(per_minute=3)
    found = [bench.send({**DENY, "target": {"ipv4_net": f"192.0.2.{n}"}})[0] for n in range(5)]
    bench.now += timedelta(seconds=61)
    later = bench.send(DENY)[0]
    bench.close()

    assert found == [200, 200, 200, 429, 429]
    assert later == 200


@pytest.mark.parametrize("kind", ["commands", "responses"])
def test_the_published_examples_are_taken_or_refused_as_the_schema_says(
    kind: str, schemas: tuple[Any, Any, dict[str, bytes]]
) -> None:
    bench_filter = Filter(lambda: NOW)
    consumer = Consumer(bench_filter, clock=lambda: NOW, per_minute=10**6)
    for name, body in schemas[2].items():
        if f"/{kind}/" not in name:
            continue
        answer = consumer.handle(body, "token", name[-100:])
        if name.endswith("/openc2_command_query_features_all.json"):
            assert answer is not None, "it is a bad response because it is a command"
            assert answer.status == 200
        elif kind == "responses" or "/bad/" in name:
            assert answer is not None, name
            assert answer.status in (400, 501), name
        elif answer is not None:
            schemas[1].validate(json.loads(json.dumps({"status": answer.status})))
            assert answer.status != 500, name
    assert {one.verb for one in bench_filter.applied} <= {"deny", "allow"}


# ---- The producer


def producer(bench: Bench, **more: Any) -> OpenC2:
    allowed = ["127.0.0.1"]
    return OpenC2(url=bench.url, token=TOKEN, allowed=allowed, clock=lambda: bench.now, **more)


def ordered(verb: str, target: Target, until: datetime, **more: Any) -> Command:
    return Command(verb, target, undo="", until=until, key="k1", **more)


def test_the_actuator_keeps_its_promises_against_our_consumer() -> None:
    bench = Bench(clock=lambda: datetime.now(UTC))
    part = OpenC2(url=bench.url, token=TOKEN, allowed=["127.0.0.1"])

    check_actuator(part, HOST, look=lambda: sorted(one.value for one in bench.filter.denied))
    check_actuator(part, FLOW, look=lambda: sorted(one.value for one in bench.filter.denied))
    bench.close()


def test_a_consumer_that_is_not_there_is_tried_again() -> None:
    check_actuator_alone(OpenC2(url="http://127.0.0.1:1/", allowed=["127.0.0.1"]), HOST)


def test_undoing_brings_back_the_deny_that_was_there_before(bench: Bench) -> None:
    part = producer(bench)
    bench.filter.denied[HOST] = NOW + timedelta(minutes=5)

    (command,) = part.plan("deny", HOST, NOW + timedelta(hours=1))
    part.apply(ordered("deny", HOST, NOW + timedelta(hours=1)))
    part.apply(ordered("allow", HOST, NOW, prior=command.prior))

    assert bench.filter.denied == {HOST: NOW + timedelta(minutes=5)}


def test_what_is_sent_and_answered_is_valid(
    bench: Bench, schemas: tuple[Any, Any, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    part, heard = producer(bench, asset_id=""), []
    ask = part._web.ask

    def listened(method: str, url: str, body: bytes, headers: Any) -> Any:
        answer = ask(method, url, body, headers)
        heard.append((json.loads(body), json.loads(answer.body)))
        return answer

    monkeypatch.setattr(part._web, "ask", listened)
    for target in (HOST, FLOW, Target("ipv6_net", "2001:db8:1::/64")):
        (command,) = part.plan("deny", target, NOW + timedelta(minutes=1))
        part.apply(ordered("deny", target, command.until))
        part.apply(ordered("allow", target, command.until))

    assert len(heard) == 10
    for command_, response in heard:
        schemas[0].validate(command_)
        schemas[1].validate(response)


def test_a_filter_of_another_make_counts_as_denying_what_it_acknowledged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.consumer, "_features", lambda: {"profiles": ["slpf"]})
    part = producer(bench)

    before = part.probe(HOST)
    part.apply(ordered("deny", HOST, NOW + timedelta(minutes=1)))
    during = part.probe(HOST)
    bench.now += timedelta(minutes=2)

    assert not before.is_applied
    assert (during.is_applied, during.until) == (True, NOW + timedelta(minutes=1))
    assert not part.probe(HOST).is_applied


def test_what_another_process_told_a_filter_of_another_make_is_undone_for_a_person(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench.consumer, "_features", lambda: {"profiles": ["slpf"]})
    clock = Clock(NOW)
    db = db_at(tmp_path, clock)
    step = deny("24", actuator="recorder", by="device")
    assert db.runs.start(run_of(playbook(step), "198.51.100.0", clock()))

    def go() -> None:
        """As another process, which knows nothing."""
        actuators: dict[str, Actuator] = {"recorder": producer(bench)}
        list(Runner(db.runs, actuators, Planner(actuators, clock), allows).work())

    go()
    assert len(bench.filter.denied) == 1
    db.runs.order("198.51.100.0", "undo", "ada", "a partner")
    go()

    assert not bench.filter.denied
    db.close()


def test_a_wrong_token_is_a_refusal_for_good(bench: Bench) -> None:
    part = OpenC2(url=bench.url, token="wrong", allowed=["127.0.0.1"], clock=lambda: NOW)

    with pytest.raises(Unsafe, match="HTTP 401"):
        part.apply(ordered("deny", HOST, NOW + timedelta(minutes=1)))


REFUSALS = [
    *((400, Unsafe), (401, Unsafe), (403, Unsafe), (404, Unsafe), (501, Unsafe)),
    *((102, TransientError), (429, TransientError), (500, TransientError), (503, TransientError)),
]
"""Status codes of the language, and 429, which our own consumer says."""


@pytest.mark.parametrize(("status", "error"), REFUSALS)
def test_a_refusal_for_good_is_final_and_all_else_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, status: int, error: type[Exception]
) -> None:
    part, deny = producer(bench), ordered("deny", HOST, NOW + timedelta(minutes=1))
    said = openc2.Answer(status, "no")

    if status >= 200:  # HTTP itself says the same
        monkeypatch.setattr(bench.consumer, "handle", lambda *_: said)
        with pytest.raises(error, match=str(status)):
            part.apply(deny)

    within = Answer(200, msgspec.json.encode(said))
    monkeypatch.setattr(part._web, "ask", lambda *_: within)
    with pytest.raises(error, match=str(status)):
        part.apply(deny)


def test_a_filter_that_has_made_a_rule_of_it_has_done_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = producer(bench)
    monkeypatch.setattr(part._web, "ask", lambda *_: Answer(201, b'{"status": 201}'))

    part.apply(ordered("deny", HOST, NOW + timedelta(minutes=1)))
