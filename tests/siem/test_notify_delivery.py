"""What is handed over, to real servers of this machine, and what becomes of an attempt."""

from __future__ import annotations

import email
import email.policy
import hashlib
import hmac
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from siem.notify.routes import words
from siem.notify.syslog import envelope
from siem.notify.worker import ATTEMPTS_MAX, Notifier, attempt
from siem.store.notices import Delivery
from siem.tls import make_self_signed
from tests.programs import PATIENCE_S
from tests.siem.notify_fakes import Pair, mail_server, syslog_server, web_server
from tests.siem.test_notify import MAIL, Desk, desk, match, rule

__all__ = ["desk"]

HOSTILE = (
    "a\r\nBcc: thief@evil.example\r\n\r\nbody",
    "line\u2028end\u0085 tail\x00\x1b[31m",
    "\u202egnp.exe \u2066 hidden\u200b",
    "CEF|pipe \\ back=slash src=203.0.113.9\nCEF:0|x",
    '"},{"findings":[]',
    "\n.\r\nMAIL FROM:<x@evil.example>",
    "http://evil.example/login www.evil.example",
    "=?utf-8?q?=E2=80=AEencoded=0D=0ABcc:_x@evil.example?= ünïcödé " + "x" * 5000,
    "\ud800 lone",
)


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", "s3cret")
    monkeypatch.delenv("MAIL_PASSWORD", raising=False)


def mail_to(port: int, **said: Any) -> dict[str, Any]:
    return {"server": f"127.0.0.1:{port}", "transport": "tcp", **said}


def hook_to(port: int) -> dict[str, Any]:
    url = f"http://127.0.0.1:{port}/hook"
    return {"to": "webhook", "url": url, "secret_env": "HOOK_SECRET"}


def syslog_to(port: int, transport: str = "tcp") -> dict[str, Any]:
    return {"to": "syslog", "server": f"127.0.0.1:{port}", "transport": transport}


def deliver(desk: Desk, route: str = "duty") -> Delivery:
    """Try what is due for longest, once; the delivery as it is afterwards."""
    delivery = desk.db.notices.due(route, desk.now)
    assert delivery is not None
    attempt(delivery, desk.routes[route], "op-port", desk.db.notices, desk.now)
    found = desk.db.notices.delivery(delivery.id)
    assert found is not None
    return found


def read(mail: bytes) -> email.message.EmailMessage:
    return email.message_from_bytes(mail, policy=email.policy.default)


# ---- Mail


def test_a_mail_says_what_where_and_how_bad_and_its_reply_is_kept(desk: Desk) -> None:
    with mail_server() as fake:
        desk.set(mail_to(fake.port, link="https://siem.port.example/"))
        (id,) = desk.keep(match())
        done = deliver(desk)

    (sender, receivers, raw), *_ = fake.mails
    mail = read(raw)
    assert (sender, receivers) == ("<cityward@port.example>", ["duty@port.example"])
    assert mail["subject"] == "[high] Password guessed: jump-1 (op-port)"
    assert mail["message-id"] == f"<{done.id}@port.example>"
    text = mail.get_content()
    assert "192.0.2.7 guessed the password of root." in text
    assert f"https://siem.port.example/findings/{id}" in text
    assert (done.state, done.attempts, done.answer) == ("sent", 1, "250 2.0.0 queued as 4711")
    assert (done.tried, done.receivers) == (desk.now, ("duty@port.example",))


def test_an_exercise_is_marked_in_the_subject(desk: Desk) -> None:
    with mail_server() as fake:
        desk.set(mail_to(fake.port, exercises=True))
        desk.keep(match(mode="exercise"))
        deliver(desk)

    assert read(fake.mails[0][2])["subject"].startswith("[EXERCISE] [high] ")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_finding_adds_a_header_a_receiver_or_a_link(desk: Desk, text: str) -> None:
    with mail_server() as fake:
        desk.set(mail_to(fake.port))
        fields = {"user.name": text, "destination.ip": text}
        desk.keep(match(title=text, description=text, asset=text, fields=fields))
        done = deliver(desk)

    assert done.state == "sent"
    (_, receivers, raw) = fake.mails[0]
    mail = read(raw)
    assert receivers == ["duty@port.example"]
    assert [one for one in fake.commands if one.startswith(("RCPT", "MAIL"))][2:] == []
    assert set(map(str.lower, mail)) == {
        *("from", "to", "subject", "date", "message-id", "auto-submitted", "mime-version"),
        *("x-cityward-delivery", "content-type", "content-transfer-encoding"),
    }
    said = mail["subject"] + "".join(mail.get_content().splitlines())
    assert said.isprintable()
    assert len(mail["subject"]) <= 200
    assert not re.search("http://|www[.]evil", mail.get_content())


def test_a_receiver_that_is_refused_is_tried_again_alone(desk: Desk) -> None:
    both = ["duty@port.example", "chief@port.example"]
    with mail_server() as fake:
        fake.refuse = {"chief@port.example": "450 4.2.0 greylisted"}
        desk.set(mail_to(fake.port, receivers=both))
        desk.keep(match())
        half = deliver(desk)
        assert (half.state, half.receivers) == ("due", ("chief@port.example",))
        assert "450 4.2.0 greylisted" in half.answer

        fake.refuse = {}
        desk.pass_(minutes=1)
        whole = deliver(desk)

    assert [receivers for _, receivers, _ in fake.mails] == [both[:1], both[1:]]
    assert len({read(raw)["message-id"] for *_, raw in fake.mails}) == 1
    assert whole.state == "sent"


def test_a_server_that_is_away_is_tried_again_later_and_in_the_end_no_more(desk: Desk) -> None:
    with mail_server() as fake:
        port = fake.port
    desk.set(mail_to(port))
    desk.keep(match())
    waits, before = [], desk.now
    while (done := deliver(desk)).state == "due":
        waits.append((done.due - before).total_seconds())
        before = desk.now = done.due

    assert waits[:8] == [30, 60, 120, 240, 480, 960, 1920, 3600]
    assert 23 * 3600 < sum(waits) < 25 * 3600
    assert (done.state, done.attempts) == ("dead", ATTEMPTS_MAX)
    assert "refused" in done.answer.lower()


def test_what_is_refused_for_good_is_tried_rarely(desk: Desk) -> None:
    with mail_server() as fake:
        fake.data = "554 5.7.1 rejected\x1b[31m"
        desk.set(mail_to(fake.port))
        desk.keep(match())
        done = deliver(desk)

    assert done.due - desk.now == timedelta(hours=1)
    assert done.answer == "554 5.7.1 rejected\\x1b[31m"


def test_no_mail_goes_out_without_the_tls_that_was_asked_for(desk: Desk) -> None:
    with mail_server() as fake:
        desk.set(mail_to(fake.port, transport="starttls"))
        desk.keep(match())
        done = deliver(desk)

    assert (done.state, fake.mails) == ("due", [])
    assert "STARTTLS" in done.answer


def test_a_missing_secret_is_said_by_name(desk: Desk) -> None:
    with mail_server() as fake:
        desk.set(mail_to(fake.port, user="cityward", secret_env="MAIL_PASSWORD"))
        desk.keep(match())
        done = deliver(desk)

    assert done.answer == "the variable MAIL_PASSWORD is not set"


def test_a_token_in_the_address_of_a_webhook_is_sent_and_not_shown(desk: Desk) -> None:
    with web_server() as fake:
        said = hook_to(fake.port)
        desk.set({**said, "url": said["url"] + "?token=t0ken"})
        desk.keep(match())
        done = deliver(desk)

    assert fake.paths == ["/hook?token=t0ken"]
    assert done.receivers == (said["url"],)
    assert "t0ken" not in str(words(desk.routes))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A certificate of this machine, and its key."""
    return make_self_signed(tmp_path_factory.mktemp("tls"), datetime.now(UTC))


def secure(transport: str, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("MAIL_PASSWORD", "right")
    said = {"transport": transport, "user": "cityward", "secret_env": "MAIL_PASSWORD"}
    return {**said, "ca_file": str(pair[0])}


@pytest.mark.parametrize("transport", ["starttls", "tls"])
def test_a_mail_goes_over_tls_with_name_and_password(
    desk: Desk, pair: Pair, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mail_server(**{transport: pair}) as fake:
        desk.set(mail_to(fake.port, **secure(transport, pair, monkeypatch)))
        desk.keep(match())
        done = deliver(desk)

    assert (done.state, fake.logins) == ("sent", [("cityward", "right")])


def test_a_password_that_smtp_cannot_carry_is_not_shown(
    desk: Desk, pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with mail_server(tls=pair) as fake:
        desk.set(mail_to(fake.port, **secure("tls", pair, monkeypatch)))
        monkeypatch.setenv("MAIL_PASSWORD", "pßssword")
        desk.keep(match())
        done = deliver(desk)

    assert done.answer == "name or password have letters that smtplib cannot send"
    assert "xdf" not in caplog.text
    assert "ß" not in caplog.text


def test_a_wrong_password_is_tried_rarely_and_never_shown(
    desk: Desk, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mail_server(tls=pair) as fake:
        desk.set(mail_to(fake.port, **secure("tls", pair, monkeypatch)))
        fake.password = "another"
        desk.keep(match())
        done = deliver(desk)

    assert (done.answer, fake.mails) == ("535 5.7.8 no", [])
    assert done.due - desk.now == timedelta(hours=1)


@pytest.mark.parametrize("to", ["starttls", "tls", "syslog"])
def test_nothing_goes_to_a_server_that_cannot_prove_its_name(
    desk: Desk, pair: Pair, to: str
) -> None:
    with (
        syslog_server(tls=pair) as syslog,
        mail_server(**{to: pair} if to != "syslog" else {}) as mail,
    ):
        if to == "syslog":
            desk.set(syslog_to(syslog.port, "tls"))
        else:
            desk.set(mail_to(mail.port, transport=to))
        desk.keep(match())
        done = deliver(desk)

    assert done.state == "due"
    assert "CERTIFICATE_VERIFY_FAILED" in done.answer
    assert (mail.mails, b"".join(syslog.received)) == ([], b"")


# ---- Webhook


def verified(headers: dict[str, str], body: bytes, secret: str = "s3cret") -> bool:
    """As a receiver does it."""
    said = dict(part.split("=", 1) for part in headers["x-cityward-signature"].split(","))
    wanted = hmac.new(secret.encode(), said["t"].encode() + b"." + body, hashlib.sha256)
    return hmac.compare_digest(wanted.hexdigest(), said["v1"])


def test_what_is_posted_is_signed_and_names_its_delivery(desk: Desk) -> None:
    with web_server() as fake:
        desk.set(hook_to(fake.port))
        (id,) = desk.keep(match())
        done = deliver(desk)

    ((headers, body),) = fake.posts
    posted = msgspec.json.decode(body)
    assert verified(headers, body)
    assert not verified(headers, body + b" ")
    assert not verified(headers, body, "guessed")
    assert headers["x-cityward-delivery"] == posted["delivery"] == done.id
    assert posted["findings"][0]["finding.id"] == id
    assert posted["findings"][0]["news"] == "made"
    assert (done.state, done.answer) == ("sent", "HTTP 204 No Content")


def test_a_redirection_is_not_followed(desk: Desk) -> None:
    with web_server() as fake:
        fake.status = 307
        desk.set(hook_to(fake.port))
        desk.keep(match())
        done = deliver(desk)

    assert fake.paths == ["/hook"]
    assert (done.state, done.answer) == ("due", "HTTP 307 Temporary Redirect")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_finding_changes_the_shape_of_what_is_posted(desk: Desk, text: str) -> None:
    with web_server() as fake:
        desk.set(hook_to(fake.port))
        desk.keep(match(title=text, description=text))
        deliver(desk)

    posted = msgspec.json.decode(fake.posts[0][1])
    assert len(posted["findings"]) == 1
    assert posted["findings"][0]["finding.title"] == text.replace("\ud800", "\\ud800")


# ---- Syslog

CEF_HEAD = re.compile(r"CEF:0((?:\|(?:[^\\|]|\\[\\|])*){6})\|")
CEF_PAIR = re.compile(r"(\w+)=((?:[^\\=]|\\[\\=])*?)(?= \w+=|$)")


def parsed(line: str) -> tuple[list[str], dict[str, str]]:
    """As a receiver reads CEF."""
    head = CEF_HEAD.match(line)
    assert head, line
    return re.split(r"(?<!\\)(?:\\\\)*\|", head[1])[1:], dict(CEF_PAIR.findall(line[head.end() :]))


def lines_of(data: bytes) -> list[str]:
    """Octet counting (RFC 6587)."""
    found = []
    while data:
        length, _, data = data.partition(b" ")
        found.append(data[: int(length)].decode())
        data = data[int(length) :]
    return found


def test_a_finding_is_one_line_of_cef(desk: Desk) -> None:
    with syslog_server() as fake:
        desk.set(syslog_to(fake.port))
        (id,) = desk.keep(match(severity="critical", analytic=rule("critical")))
        done = deliver(desk)

    (line,) = lines_of(fake.received[0])
    envelope_, cef = line.split("\ufeff")
    assert re.fullmatch(r"<34>1 \S+Z \S+ cityward - finding - ", envelope_)
    head, said = parsed(cef)
    assert (head[0], head[5]) == ("cityward", "9")
    assert said["externalId"] == done.id
    assert (said["src"], said["cs1"], said["cs2"]) == ("192.0.2.7", id, "jump-1")
    assert done.answer == "1 line sent; the receiver closed after it"


def test_a_digest_is_one_line_a_finding(desk: Desk) -> None:
    with syslog_server() as fake:
        desk.set({**syslog_to(fake.port), "digest": "hourly"})
        desk.keep(*(match(asset=f"rtu-{n}", source=f"192.0.2.{n}") for n in range(5)))
        desk.pass_(minutes=50)
        deliver(desk)

    assert len(lines_of(fake.received[0])) == 5


def test_a_line_goes_over_tls(desk: Desk, pair: Pair) -> None:
    with syslog_server(tls=pair) as fake:
        desk.set({**syslog_to(fake.port, "tls"), "ca_file": str(pair[0])})
        desk.keep(match())
        done = deliver(desk)

    (line,) = lines_of(fake.received[0])
    assert "CEF:0|cityward" in line
    assert (done.state, done.answer) == ("sent", "1 line sent; the receiver closed after it")


def test_udp_says_that_it_has_no_receipt(desk: Desk) -> None:
    with syslog_server(udp=True) as fake:
        desk.set(syslog_to(fake.port, "udp"))
        desk.keep(match(source="2001:db8::7"))
        done = deliver(desk)
        until = time.monotonic() + PATIENCE_S
        while not fake.received and time.monotonic() < until:
            time.sleep(0.01)

    assert b"c6a2=2001:db8::7 " in fake.received[0]
    assert "no receipt" in done.answer


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_finding_ends_a_line_or_adds_a_field(desk: Desk, text: str) -> None:
    with syslog_server() as fake:
        desk.set(syslog_to(fake.port))
        fields = {"user.name": text, "source.ip": text}
        desk.keep(match(title=text, description=text, asset=text, fields=fields))
        deliver(desk)

    (line,) = lines_of(fake.received[0])
    assert line.replace("\ufeff", "").isprintable()
    head, said = parsed(line.split("\ufeff")[1])
    assert len(head) == 6
    assert "src" not in said
    assert said["suser"] == said["cs2"]


def test_a_line_of_syslog_has_its_envelope() -> None:
    assert envelope("CEF:0|", 3).startswith(b"<35>1 2")


# ---- The threads, and kill -9


@pytest.fixture
def notifier(desk: Desk, tmp_path: Path) -> Iterator[Notifier]:
    made = Notifier(desk.routes, desk.db.notices, "op-port", lambda: desk.now, tmp_path)
    yield made
    made.stop()


def wait_for(what: Any, within_s: float = PATIENCE_S) -> None:
    until = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def test_a_route_whose_server_hangs_does_not_hold_up_the_others(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(
        "siem.notify.worker.syslog.send", lambda *_: hangs.wait(PATIENCE_S) and None
    )
    with web_server() as fake:
        desk.set({**hook_to(fake.port), "id": "hook"}, {**syslog_to(1), "id": "hung"})
        made = Notifier(desk.routes, desk.db.notices, "op-port", lambda: desk.now, tmp_path)
        made.start()
        desk.db.keep([match()], checkpoint=1, now=desk.now)
        wait_for(lambda: fake.posts)
        hangs.set()
        made.stop()


def test_many_routes_that_hang_hold_up_the_end_no_longer_than_one(
    notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siem.notify.worker.STOP_S", 1.0)
    hangs = threading.Event()
    notifier._threads += [threading.Thread(target=hangs.wait, daemon=True) for _ in range(60)]
    for thread in notifier._threads:
        thread.start()

    began = time.monotonic()
    notifier.stop()

    assert time.monotonic() - began < 30  # one after the other they would take a minute
    hangs.set()


def test_only_one_process_delivers(desk: Desk, tmp_path: Path) -> None:
    with web_server() as fake:
        desk.set(hook_to(fake.port))
        both = [
            Notifier(desk.routes, desk.db.notices, "op-port", lambda: desk.now, tmp_path)
            for _ in range(2)
        ]
        for one in both:
            one.start()
        desk.db.keep([match()], checkpoint=1, now=desk.now)
        wait_for(lambda: fake.posts)
        assert [len(one._threads) for one in both].count(1) == 1
        for one in both:
            one.stop()

    assert len(fake.posts) == 1


WORKER = """
import sys
from pathlib import Path
from siem.node import now_utc
from siem.notify.worker import Notifier
from siem.notify.routes import routes_of
from siem import config
from siem.store.embedded import NodeDb
import msgspec, time
from tests.siem.test_notify import match

state, said = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2])
db = NodeDb(state / "node.db", b"key")
routes = routes_of(config.parse({"route": [said]}).route)
db.notices.begin(list(routes.values()), now_utc())
if sys.argv[3] == "keep":
    db.keep([match(now_utc(), asset=f"rtu-{n}", source=f"192.0.2.{n}") for n in range(3)], 1)
Notifier(routes, db.notices, "op-port", now_utc, state).start()
while True:
    time.sleep(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "twice"),
    [
        ("notify-sent-before-record:2", 1),
        ("notify-before-commit", 0),
    ],
)
def test_what_a_kill_interrupts_is_sent_again_with_its_id_and_nothing_is_lost(
    tmp_path: Path, fault: str, twice: int
) -> None:
    with web_server() as fake:
        said = msgspec.json.encode({**MAIL, **hook_to(fake.port)}).decode()
        words = [sys.executable, "-c", WORKER, str(tmp_path), said]
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        killed = subprocess.run(
            [*words, "keep"],
            env={**environment, "CITYWARD_FAULT": fault},
            timeout=PATIENCE_S,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL
        again = subprocess.Popen([*words, "go on"], env=environment)
        try:
            wait_for(lambda: len(fake.posts) >= 3 + twice)
            time.sleep(0.5)
        finally:
            again.kill()
            again.wait()

    ids = [headers["x-cityward-delivery"] for headers, _ in fake.posts]
    bodies = {msgspec.json.decode(body)["delivery"]: body for _, body in fake.posts}
    assert (len(ids), len(set(ids))) == (3 + twice, 3)
    assert all(bodies[headers["x-cityward-delivery"]] == body for headers, body in fake.posts)
