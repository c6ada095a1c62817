"""Real HTTPS requests to the real port: what is refused is answered in words, and never kept."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from siem.city.authority import Operators
from siem.city.port import Limits, Port
from siem.sharing.certificates import Authority, name_of, new_key, pem, private_pem
from siem.sharing.envelope import Envelope, sign, split
from siem.sharing.wire import Enrolled, Renewed
from tests.programs import PATIENCE_S, wait_until
from tests.siem.city.city import FINDING, Hub, Node, receipt

LIMITS = Limits(enrol_burst=1_000, request_s=PATIENCE_S, connections_each=8)
"""On a busy machine an answer takes a while: who is too slow is tried with a port of its own."""


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def error(self) -> Mapping[str, str]:
        """In our form: what, where, what to do."""
        said: Mapping[str, str] = json.loads(self.body)["error"]
        assert set(said) == {"what", "where", "todo"}
        return said


class City(Hub):
    """A hub with its port, at the real time."""

    def __init__(self, state: Path, limits: Limits = LIMITS) -> None:
        super().__init__(state, datetime.now(UTC))
        self.port = Port(
            self.exchange, socket.create_server(("127.0.0.1", 0)), ["localhost"], limits
        )
        self.port.start()

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.operators.authority.certificate)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        as_: Client | None = None,
        **headers: str,
    ) -> Answer:
        context = as_.context(self) if as_ else self.context()
        address = ("localhost", self.port.address[1])
        one = http.client.HTTPSConnection(*address, timeout=PATIENCE_S, context=context)
        try:
            one.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = one.getresponse()
            return Answer(answer.status, answer.read())
        finally:
            one.close()

    def join(self, name: str, **asked: Any) -> Answer:
        """Ask for a certificate with a token."""
        node = Node(name)
        said = {"csr": node.request, "signing_key": node.signing_key} | asked
        return self.ask("POST", "/exchange/v1/enrol", msgspec.json.encode(said))

    def send(self, client: Client, body: bytes, **headers: str) -> Answer:
        return self.ask("POST", "/exchange/v1/messages", body, client, **headers)

    def says(self, what: str) -> bool:
        """Whether the audit trail says so; some refusals are written a moment later."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if any("exchange refused" in one and what in one for one in self.trail):
                return True
            time.sleep(0.02)
        return False


class Client(Node):
    """An operator with certificate and key in a file."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.file = folder / f"{name}-{os.urandom(4).hex()}.pem"

    def keep(self, certificate: str, private: bytes | None = None) -> Client:
        self.file.write_bytes((private or self.private) + certificate.encode())
        return self

    def context(self, city: City) -> ssl.SSLContext:
        context = city.context()
        context.load_cert_chain(self.file)
        return context

    @classmethod
    def enrolled(cls, city: City, name: str, folder: Path) -> Client:
        client = cls(name, folder)
        answer = city.join(
            name,
            token=city.operators.add(name, "energy.electricity"),
            csr=client.request,
            signing_key=client.signing_key,
        )
        assert answer.status == 200, answer
        return client.keep(msgspec.json.decode(answer.body, type=Enrolled).certificate)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    made = City(tmp_path_factory.mktemp("hub"))
    yield made
    made.port.stop()


@pytest.fixture
def grid(city: City, tmp_path: Path) -> Client:
    """An operator of its own for each test."""
    return Client.enrolled(city, f"op-{os.urandom(4).hex()}", tmp_path)


def refused(city: City, answer: Answer, status: int, what: str) -> None:
    assert answer.status == status, answer
    assert what in answer.error["what"]
    assert answer.error["todo"]
    assert city.says(what)


# ---- what works


def test_an_operator_enrols_shares_and_hears_what_the_hub_says(city, grid):
    sent = grid.share()

    answer = city.send(grid, sent.lines())

    assert answer.status == 200
    assert receipt(split(answer.body), city).hash == sent.hash
    city.exchange.letters.send(grid.name, "proposal", {"text": "look"})
    lines = city.ask("GET", "/exchange/v1/inbox?after=0", as_=grid).body.splitlines()
    assert msgspec.json.decode(json.loads(lines[0])["data"], type=Envelope).payload == {
        "text": "look"
    }
    (held,) = city.ask("GET", "/exchange/v1/mirror", as_=grid).body.splitlines()
    assert json.loads(held)["revision"] == 1
    assert city.ask("GET", "/exchange/v1/access", as_=grid) == Answer(200, b"")


def test_an_envelope_may_be_packed(city, grid):
    packed = gzip.compress(grid.share().lines())

    assert city.send(grid, packed, Content_Encoding="gzip").status == 200


def test_a_certificate_is_renewed_over_the_old_one_and_then_the_old_one_ends(city, grid, tmp_path):
    private, request = new_key(grid.name)
    asked = msgspec.json.encode({"csr": request})
    answer = city.ask("POST", "/exchange/v1/renew", asked, grid)
    renewed = Client(grid.name, tmp_path)
    renewed.keep(msgspec.json.decode(answer.body, type=Renewed).certificate, private)

    assert city.ask("GET", "/exchange/v1/inbox", as_=grid).status == 200
    assert city.ask("GET", "/exchange/v1/inbox", as_=renewed).status == 200
    refused(city, city.ask("GET", "/exchange/v1/inbox", as_=grid), 403, "is not in force")


def test_a_certificate_lasts_thirty_days_and_has_the_name_of_the_token(city, grid):
    made = x509.load_pem_x509_certificate(grid.file.read_bytes().split(b"KEY-----\n")[-1])

    assert made.not_valid_after_utc - city.now <= timedelta(days=30)
    assert made.subject == name_of(grid.name)
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


def test_a_node_that_enrols_again_is_told_what_comes_next(city, grid):
    sent = grid.share()
    city.send(grid, sent.lines())
    token = city.operators.add(grid.name)

    answer = city.join(grid.name, token=token)

    enrolled = msgspec.json.decode(answer.body, type=Enrolled)
    assert (enrolled.seq, enrolled.prev) == (1, sent.hash)


# ---- tokens


def test_a_token_serves_once(city):
    token = city.operators.add("op-once")
    assert city.join("op-once", token=token).status == 200

    refused(city, city.join("op-once", token=token), 403, "the token is not in force")


def test_a_token_that_is_too_old_is_refused(city):
    token = city.operators.add("op-late")
    city.now += timedelta(minutes=61)
    try:
        answer = city.join("op-late", token=token)
    finally:
        city.now -= timedelta(minutes=61)

    refused(city, answer, 403, "the token is too old")
    assert city.operators.known("op-late").certificates == ()


def test_the_token_of_another_hub_is_refused(city, tmp_path):
    other = Operators(Hub(tmp_path).commons.records, tmp_path / "exchange", city.clock)

    answer = city.join("op-foreign", token=other.add("op-foreign"))

    refused(city, answer, 403, "the token is of another hub")


def test_a_guessed_token_is_refused(city):
    city.operators.add("op-guess")
    guessed = city.operators.authority.token("op-guess").text("cwo1.")

    refused(city, city.join("op-guess", token=guessed), 403, "the token is not in force")
    refused(city, city.join("op-guess", token="cwo1.AAAA"), 403, "no token")
    assert city.operators.known("op-guess").certificates == ()


def test_tokens_are_kept_as_hashes_and_hold_more_than_128_bits(city):
    token = city.operators.add("op-hash")

    (record,) = [
        one.value for name, one in city.commons.records.all("operator") if name == "op-hash"
    ]
    assert len(record["token_sha256"]) == 64
    assert token not in json.dumps(record)
    assert record["token_until"] <= (city.now + timedelta(minutes=60)).isoformat().replace(
        "+00:00", "Z"
    )


# ---- requests for a certificate


def csr(name: str, key: Any = None, *extensions: x509.ExtensionType) -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    made = x509.CertificateSigningRequestBuilder().subject_name(name_of(name))
    for one in extensions:
        made = made.add_extension(one, critical=True)
    return pem(made.sign(key, hashes.SHA256()))


REQUESTS: dict[str, tuple[str, Callable[[], str]]] = {
    "in another name": ("in another name", lambda: csr("op-port")),
    "with a path for a name": ("in another name", lambda: csr("../op-csr")),
    "with markup for a name": ("in another name", lambda: csr("<script>alert(1)</script>")),
    "for an authority": (
        "to be an authority",
        lambda: csr("op-csr", None, x509.BasicConstraints(ca=True, path_length=None)),
    ),
    "with RSA": ("weak key", lambda: csr("op-csr", rsa.generate_private_key(65537, 2048))),
    "with a weak curve": (
        "weak key",
        lambda: csr("op-csr", ec.generate_private_key(ec.SECP224R1())),
    ),
    "that is none": ("no certification request", lambda: "hello"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_for_a_certificate_is_refused(city, name):
    what, request = REQUESTS[name]
    token = city.operators.add("op-csr")

    answer = city.join("op-csr", token=token, csr=request())

    refused(city, answer, 403, what)
    assert city.operators.known("op-csr").certificates == ()
    assert not city.operators.known("op-csr").signing_key


def test_a_signing_key_that_is_none_is_refused(city):
    token = city.operators.add("op-key")

    refused(city, city.join("op-key", token=token, signing_key="AAAA"), 403, "no signing key")


# ---- certificates


def shown(authority: Authority, name: str, tmp_path: Path, days: float = 30) -> Client:
    client = Client(name, tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    return client.keep(pem(authority.signed(name, key.public_key(), days)), private_pem(key))


def foreign(tmp_path: Path, clock: Callable[[], datetime]) -> Authority:
    made = Authority(tmp_path / "foreign", clock, "operators")
    with made.locked():
        made.make()
    return made


def alerted(city: City, client: Client, why: str) -> None:
    """TLS itself refuses, before there could be an answer; the audit trail has it."""
    before = city.everything()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        city.send(client, client.share().lines())
    assert city.says(f"a certificate that is not believed: {why}")
    assert city.everything() == before


def test_a_certificate_of_a_foreign_authority_is_not_believed(city, tmp_path):
    other = foreign(tmp_path, city.clock)

    alerted(city, shown(other, "op-grid", tmp_path), "certificate signature failure")


def test_a_self_signed_certificate_is_not_believed(city, tmp_path):
    other = foreign(tmp_path, city.clock)
    client = Client("op-grid", tmp_path)
    client.keep(other.certificate, (other.folder / "ca.key").read_bytes())

    alerted(city, client, "self-signed certificate")


def test_a_certificate_that_has_ended_is_not_believed(city, tmp_path):
    alerted(
        city,
        shown(city.operators.authority, "op-grid", tmp_path, -0.5),
        "certificate has expired",
    )


def test_a_certificate_that_the_hub_signed_but_does_not_know_is_refused(city, grid, tmp_path):
    client = shown(city.operators.authority, grid.name, tmp_path)

    refused(city, city.send(client, grid.share().lines()), 403, "is not in force")


def test_a_revoked_operator_is_refused_on_the_connection_that_is_open(city, grid):
    address = ("localhost", city.port.address[1])
    one = http.client.HTTPSConnection(*address, timeout=PATIENCE_S, context=grid.context(city))
    one.request("GET", "/exchange/v1/inbox")
    assert one.getresponse().read() == b""
    city.operators.revoke(grid.name)

    one.request("POST", "/exchange/v1/messages", grid.share().lines())
    answer = one.getresponse()

    refused(city, Answer(answer.status, answer.read()), 403, "is not in force")
    assert city.exchange.mirror(grid.name) is not None
    one.close()


def test_without_a_certificate_nothing_is_to_be_had(city):
    for path in ("inbox", "mirror", "access"):
        refused(city, city.ask("GET", f"/exchange/v1/{path}"), 401, "no certificate")
    refused(city, city.ask("POST", "/exchange/v1/messages", b"x"), 401, "no certificate")
    refused(city, city.ask("POST", "/exchange/v1/renew", b"{}"), 401, "no certificate")


# ---- envelopes


def unchanged(city: City, client: Client, body: bytes, status: int, what: str, **headers: str):
    before = city.everything()
    answer = city.send(client, body, **headers)
    refused(city, answer, status, what)
    assert city.everything() == before
    return answer


def test_a_foreign_operator_in_the_body_is_refused(city, grid, tmp_path):
    other = Client.enrolled(city, "op-other", tmp_path)
    in_its_name = sign(grid.envelope(operator="op-other"), grid.key)

    unchanged(city, grid, in_its_name.lines(), 403, "in the name of another operator")
    unchanged(city, grid, other.share().lines(), 403, "the signature does not hold")


def test_replay_rollback_gap_and_clone_are_refused(city, grid):
    first, second = grid.share(), grid.share()
    clone = Node(grid.name)
    clone.key, clone.seq, clone.hash = grid.key, first_seq(first), first.hash
    for one in (first, second):
        assert city.send(grid, one.lines()).status == 200

    cloned = unchanged(city, grid, clone.share().lines(), 409, "was taken already")
    expected = {"seq": 3, "prev": second.hash}
    assert json.loads(cloned.body)["expected"] == expected
    back = sign(grid.envelope(seq=1, prev="0" * 64), grid.key)
    unchanged(city, grid, back.lines(), 409, "was taken already")
    gap = sign(grid.envelope(seq=5), grid.key)
    unchanged(city, grid, gap.lines(), 409, "a gap")
    other_before = sign(grid.envelope(prev="f" * 64), grid.key)
    unchanged(city, grid, other_before.lines(), 409, "does not follow")
    assert city.send(grid, first.lines()).status == 200
    assert len(list(city.exchange.mirror(grid.name))) == 2


def first_seq(signed: Any) -> int:
    return msgspec.json.decode(signed.data, type=Envelope).seq


def test_what_is_too_large_is_refused(city, grid):
    unchanged(city, grid, b"x" * 400_000, 413, "more than an envelope may hold")
    huge = msgspec.json.encode(grid.envelope(payload={**FINDING, "message": "x" * 300_000}))
    unchanged(city, grid, b"AAAA\n" + huge, 413, "more than an envelope may hold")


def test_a_bomb_is_refused(city, grid):
    bomb = gzip.compress(bytes(50 << 20))
    assert len(bomb) < 100_000

    unchanged(city, grid, bomb, 413, "more than an envelope", Content_Encoding="gzip")
    twice = gzip.compress(b"x") * 2
    unchanged(city, grid, twice, 400, "no gzip", Content_Encoding="gzip")
    unchanged(city, grid, b"x", 400, "no gzip", Content_Encoding="gzip")
    unchanged(city, grid, b"x", 415, "a packing", Content_Encoding="br")


def test_what_is_no_envelope_is_refused(city, grid):
    unchanged(city, grid, b"", 400, "no envelope")
    unchanged(city, grid, b"\xff\xff\n{}", 400, "no signed envelope")
    deep = b"[" * 100_000
    unchanged(city, grid, b"AAAA\n" + deep, 400, "no envelope")


def test_paths_and_markup_in_names_are_refused_and_never_said_again(city, grid):
    for share_id in ("../../etc/passwd", "<script>alert(1)</script>"):
        bad = sign(grid.envelope(share_id=share_id), grid.key)
        answer = unchanged(city, grid, bad.lines(), 400, "no share id")
        assert share_id.encode() not in answer.body
    answer = city.ask("GET", "/exchange/v1/<script>alert(1)</script>/../x")
    refused(city, answer, 404, "nothing is here")
    assert b"script" not in answer.body
    refused(city, city.ask("GET", "/exchange/v1/authority/"), 404, "nothing is here")
    refused(city, city.ask("DELETE", "/exchange/v1/messages"), 405, "nothing is here")
    refused(city, city.ask("GET", "/exchange/v1/inbox?after=-1", as_=grid), 400, "no number")


def test_a_request_in_another_form_is_refused(city):
    refused(city, city.ask("POST", "/exchange/v1/enrol", b"{}"), 400, "not what is asked here")
    nested = b'{"token":' + b"[" * 20_000
    refused(city, city.ask("POST", "/exchange/v1/enrol", nested), 400, "not what is asked here")


# ---- those who hold us up


def raw(city: City, client: Client | None = None) -> ssl.SSLSocket:
    context = client.context(city) if client else city.context()
    made = socket.create_connection(city.port.address, timeout=PATIENCE_S)
    return context.wrap_socket(made, server_hostname="localhost")


def read_all(channel: ssl.SSLSocket) -> bytes:
    data = b""
    while more := channel.recv(65_536):
        data += more
    return data


@pytest.fixture
def hasty(tmp_path) -> Iterator[tuple[City, Client]]:
    """A city that soon waits no longer, and an operator that it knows already."""
    made = City(tmp_path)
    try:
        client = Client.enrolled(made, "op-grid", tmp_path)
        made.port.limits = msgspec.structs.replace(LIMITS, request_s=2.0)
        yield made, client
    finally:
        made.port.stop()


@pytest.mark.parametrize(
    "begin",
    [
        b"POST /exchange/v1/messages HTTP/1.1\r\nHost: x\r\n",
        b"POST /exchange/v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc",
        b"",
    ],
    ids=["head", "body", "nothing"],
)
def test_who_is_too_slow_is_told_so_and_closed(hasty, begin):
    city, grid = hasty
    with raw(city, grid) as channel:
        channel.sendall(begin)
        begun = time.monotonic()
        answer = read_all(channel)

    assert time.monotonic() - begun < Limits().request_s, "the limit is another than it was told"
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["what"] == (
        "a request that takes too long"
    )
    assert city.says("a request that takes too long")


def test_what_is_no_http_is_refused_in_words(city):
    for said in (b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000):
        with raw(city) as channel:
            channel.sendall(said)
            assert b'"what":"no HTTP request"' in read_all(channel)


def test_too_many_connections_of_one_address_are_refused(city):
    held = [raw(city) for _ in range(8)]
    try:
        with raw(city) as channel:
            assert read_all(channel).startswith(b"HTTP/1.1 503 ")
    finally:
        for one in held:
            one.close()

    assert city.says("too many connections")


def _answers(city: City) -> bool:
    try:
        return city.ask("GET", "/exchange/v1/authority").status == 200
    except (ConnectionError, ssl.SSLError):
        return False


def test_who_never_speaks_keeps_nobody_out_for_long(tmp_path):
    city = City(tmp_path, Limits(strangers=3, handshake_s=3.0))
    try:
        silent = [socket.create_connection(city.port.address) for _ in range(3)]
        with pytest.raises((ConnectionError, ssl.SSLError)):
            city.ask("GET", "/exchange/v1/authority")
        assert city.says("too many connections that do not speak")
        wait_until(lambda: _answers(city))
        for one in silent:
            one.close()
    finally:
        city.port.stop()


def test_who_asks_too_often_waits(tmp_path):
    city = City(tmp_path, Limits(operator_per_s=0.1, operator_burst=2, enrol_burst=2))
    try:
        grid = Client.enrolled(city, "op-grid", tmp_path)
        answers = [city.ask("GET", "/exchange/v1/inbox", as_=grid) for _ in range(3)]
        assert [one.status for one in answers] == [200, 200, 429]
        refused(city, answers[2], 429, "too many requests")
        tried = [city.join("op-x", token="cwo1.x") for _ in range(2)]
        assert [one.status for one in tried] == [403, 429]
    finally:
        city.port.stop()
