"""Mail, webhook and ticket, each to a sink on this machine."""

from __future__ import annotations

import email
import email.policy
import hashlib
import hmac
import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from cityward import Command, ConfigError, Target, TransientError, Unsafe
from cityward.checks import INJECTIONS
from playbooks.actuators.smtp import Smtp
from playbooks.actuators.ticket import Ticket
from playbooks.actuators.webhook import Webhook
from playbooks.targets import NOWHERE
from tests.siem.notify_fakes import FakeMail, FakeWeb, mail_server, web_server

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SOC = "soc@operator.example"


def command(args: dict[str, Any], *, key: str = "k1", target: Target = NOWHERE) -> Command:
    return Command("create", target, "", NOW + timedelta(minutes=5), args=args, key=key)


# ---- Mail


@pytest.fixture
def mail() -> Iterator[FakeMail]:
    with mail_server() as fake:
        yield fake


def smtp(mail: FakeMail, **named: Any) -> Smtp:
    said = {"transport": "plain", "sender": "cityward@operator.example", "to": [SOC], **named}
    return Smtp(server=f"127.0.0.1:{mail.port}", clock=lambda: NOW, **said)


def read(data: bytes) -> email.message.EmailMessage:
    return email.message_from_bytes(data, policy=email.policy.default)


def test_a_mail_goes_to_those_whom_the_settings_name(mail):
    (planned,) = smtp(mail).plan("create", NOWHERE, NOW)
    assert (planned.undo, mail.mails) == ("", [])

    smtp(mail).apply(command({"subject": "Scanner at the edge", "text": "203.0.113.7\nStürmisch"}))

    ((sender, receivers, data),) = mail.mails
    said = read(data)
    assert (sender.split()[0], receivers) == ("<cityward@operator.example>", [SOC])
    assert said["Subject"] == "Scanner at the edge"
    assert said["Message-ID"] == "<k1@operator.example>"
    assert said["Auto-Submitted"] == "auto-generated"
    assert said.get_content().split() == ["203.0.113.7", "Stürmisch"]


def test_a_step_may_name_one_of_the_receivers_and_nobody_else(mail):
    actuator = smtp(mail, to=[SOC, "chief@operator.example"])
    actuator.apply(command({}, target=Target("email_addr", "chief@operator.example")))
    assert mail.mails[0][1] == ["chief@operator.example"]

    for value in ("thief@example.net", f"{SOC}, thief@example.net", "", SOC.upper()):
        with pytest.raises(Unsafe):
            list(actuator.plan("create", Target("email_addr", value), NOW))
        with pytest.raises(Unsafe):
            actuator.apply(command({}, target=Target("email_addr", value)))
    assert len(mail.mails) == 1


def test_a_mail_server_that_refuses_for_now_or_for_good_is_told_apart(mail):
    mail.refuse[SOC] = "450 busy"
    with pytest.raises(TransientError, match="450 busy"):
        smtp(mail).apply(command({}))
    mail.refuse[SOC] = "550 who?"
    with pytest.raises(Unsafe, match="550 who"):
        smtp(mail).apply(command({}))
    mail.port = 1
    with pytest.raises(TransientError):
        smtp(mail).apply(command({}))


@pytest.mark.parametrize(
    "named",
    [
        {"to": ["nobody"]},
        {"sender": "a@b\r\nBcc: c@d.example"},
        {"user": "x", "password": "y"},
        {"transport": "none"},
    ],
)
def test_settings_of_mail_that_make_no_sense_are_refused(mail, named):
    with pytest.raises(ConfigError):
        smtp(mail, **named)


# ---- Webhook


@pytest.fixture
def web() -> Iterator[FakeWeb]:
    with web_server() as fake:
        yield fake


def webhook(web: FakeWeb, **named: Any) -> Webhook:
    said = {"url": f"http://127.0.0.1:{web.port}/hook", "secret": "s3cret", **named}
    return Webhook(clock=lambda: NOW, **said)


def test_a_webhook_is_signed_over_time_and_body(web):
    webhook(web).apply(command({"title": "Scanner", "hosts": 3}))

    ((headers, body),) = web.posts
    at, signed = re.fullmatch(
        r"t=(\d+),v1=([0-9a-f]{64})", headers["x-cityward-signature"]
    ).groups()
    assert int(at) == int(NOW.timestamp())
    assert signed == hmac.new(b"s3cret", f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    assert headers["x-cityward-delivery"] == "k1"
    assert json.loads(body) == {
        "format": 1,
        "delivery": "k1",
        "said": {"title": "Scanner", "hosts": 3},
    }


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_is_refused_and_not_followed(web, status):
    web.status = status

    with pytest.raises(Unsafe, match=str(status)):
        webhook(web).apply(command({}))

    assert web.paths == ["/hook"]


def test_a_receiver_that_asks_for_patience_is_asked_again_later(web):
    for status, error in (
        *((503, TransientError), (500, TransientError), (429, TransientError)),
        *((403, Unsafe), (404, Unsafe), (501, Unsafe)),
    ):
        web.status = status
        with pytest.raises(error):
            webhook(web).apply(command({}))
    with pytest.raises(TransientError):
        webhook(web, url="http://127.0.0.1:1/").apply(command({}))


def test_a_step_may_name_an_address_only_where_the_operator_listed_it(web):
    target = Target("uri", f"http://127.0.0.1:{web.port}/other")
    listed = webhook(web, url="", allowed=["127.0.0.1"])

    listed.apply(command({}, target=target))

    assert web.paths == ["/other"]
    with pytest.raises(Unsafe):
        webhook(web, url="", public=True).apply(command({}, target=target))
    with pytest.raises(Unsafe):
        webhook(web, url="").apply(command({}))
    with pytest.raises(ConfigError):
        webhook(web, secret="")


def test_too_much_is_not_sent(web):
    with pytest.raises(Unsafe):
        webhook(web).apply(command({"text": "A" * 300_000}))

    assert web.posts == []


# ---- Ticket


class Desk:
    """A desk for tickets: GET by external id, POST; told a token."""

    def __init__(self) -> None:
        self.tickets: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.forgets_answer = False
        desk = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = parse_qs(urlsplit(self.path).query)["external_id"][0]
                found = [one for one in desk.tickets if one["external_id"] == wanted]
                self.answer(200, {"tickets": found, "total": len(found)})

            def do_POST(self) -> None:
                desk.headers.append(dict(self.headers))
                made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                desk.tickets.append(made)
                self.answer(502 if desk.forgets_answer else 201, {"id": len(desk.tickets)})

            def answer(self, status: int, said: Any) -> None:
                body = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/api/tickets"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_ticket_is_opened_once_however_often_it_is_tried(desk):
    actuator = Ticket(url=desk.url, token="t0k", names={"title": "subject"}, also={"queue": "soc"})
    (planned,) = actuator.plan("create", NOWHERE, NOW)
    asked = command({"title": "Scanner", "text": "Look at it", "severity": "high"})
    assert planned.undo == ""

    for _ in range(3):
        actuator.apply(asked)

    assert desk.tickets == [
        {
            "queue": "soc",
            "subject": "Scanner",
            "text": "Look at it",
            "severity": "high",
            "external_id": "k1",
        }
    ]
    assert desk.headers[0]["Authorization"] == "Bearer t0k"
    assert desk.headers[0]["Idempotency-Key"] == "k1"


def test_a_ticket_whose_answer_was_lost_is_found_again(desk):
    desk.forgets_answer = True
    with pytest.raises(TransientError):
        Ticket(url=desk.url).apply(command({"title": "Scanner"}))

    Ticket(url=desk.url).apply(command({"title": "Scanner"}))

    assert len(desk.tickets) == 1


def test_tickets_have_no_target_and_no_unknown_argument(desk):
    for asked in (
        command({}, target=Target("uri", "http://127.0.0.1/")),
        command({"queue": "root"}),
        command({}, key=""),
        command({}, key="a\r\nb"),
    ):
        with pytest.raises(Unsafe):
            Ticket(url=desk.url).apply(asked)
    assert desk.tickets == []


# ---- What strangers write


def test_what_strangers_write_stays_text(mail, desk, web, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for injection in INJECTIONS:
        stays_text(injection.replace("{mark}", str(tmp_path / "mark")), mail, desk, web)

    assert len(INJECTIONS) >= 40
    assert list(tmp_path.iterdir()) == []


def stays_text(evil: str, mail: FakeMail, desk: Desk, web: FakeWeb) -> None:
    for kept in (mail.mails, mail.commands, desk.tickets, desk.headers, web.posts):
        kept.clear()

    smtp(mail).apply(command({"subject": evil, "text": evil}))
    Ticket(url=desk.url).apply(command({"title": evil, "text": evil, "severity": evil}))
    try:
        webhook(web).apply(command({"title": evil, "to": [evil]}))
    except Unsafe:
        assert evil == "\ud800"  # is no text that JSON could carry
    for asked in (
        command({evil: evil}),
        command({}, key=evil),
        command({}, target=Target("uri", evil)),
        command({}, target=Target("email_addr", evil)),
        command({}, target=Target(evil, "x")),
        Command(evil, NOWHERE, "", NOW, key="k"),
    ):
        for actuator in (smtp(mail), Ticket(url=desk.url)):
            with pytest.raises(Unsafe):
                actuator.apply(asked)
        if evil not in asked.args:
            with pytest.raises(Unsafe):
                webhook(web).apply(asked)

    ((_, receivers, data),) = mail.mails
    said = read(data)
    assert receivers == [SOC]
    assert sorted(said.keys()) == sorted(
        (
            *("From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted"),
            *("Content-Type", "Content-Transfer-Encoding", "MIME-Version"),
        )
    )
    assert [
        one.split(" size=")[0] for one in mail.commands if one[:4].upper() in ("MAIL", "RCPT")
    ] == [
        "mail FROM:<cityward@operator.example>",
        f"rcpt TO:<{SOC}>",
    ]
    (ticket,) = desk.tickets
    assert set(ticket) == {"title", "text", "severity", "external_id"}
    assert ticket["title"].isprintable()
    assert all(one == "\n" or one.isprintable() for one in ticket["text"])
    assert set(desk.headers[0]) == {
        *("Host", "Accept-Encoding", "User-Agent", "Accept"),
        *("Content-Length", "Content-Type", "Idempotency-Key"),
    }
    assert all("x-injected" not in headers for headers, _ in web.posts)
