"""A message as a mail, handed to a mail server.

References:
    RFC 5321 (SMTP), RFC 3207 (STARTTLS), RFC 5322 (message), RFC 3834 (automatic messages).
"""

from __future__ import annotations

import smtplib
import socket
from collections.abc import Iterable
from email.message import EmailMessage
from email.policy import SMTP as POLICY
from email.utils import format_datetime

from siem.notify.answer import TIMEOUT_S, Answer, Refused, context_of, place_of, words
from siem.notify.routes import Route
from siem.notify.text import body, subject
from siem.store.notices import Delivery

OK = (250, 251)
PERMANENT = 500


def send(delivery: Delivery, route: Route, operator: str) -> Answer:
    """Hand a message to the mail server.

    Raises:
        Refused: no receiver was accepted, or the message was not.
        OSError, TransientError: the server cannot be reached, or a secret is missing.
    """
    message = mail_of(delivery, route, operator).as_bytes()
    try:
        with _connected(route) as smtp:
            if route.said.user:
                _sign_in(smtp, route.said.user, route.secret())
            return _handed_over(smtp, route.said.sender, delivery.receivers, message)
    except smtplib.SMTPResponseException as error:
        said = words(error.smtp_code, error.smtp_error)
        raise Refused(said, permanent=error.smtp_code >= PERMANENT) from error
    except smtplib.SMTPException as error:
        raise Refused(words(error)) from error


def mail_of(delivery: Delivery, route: Route, operator: str) -> EmailMessage:
    """The mail; at each attempt the same, so that a second one can be told by its id."""
    mail = EmailMessage(policy=POLICY)
    mail["From"] = route.said.sender
    mail["To"] = ", ".join(route.said.receivers)
    mail["Subject"] = subject(delivery, operator)
    mail["Date"] = format_datetime(delivery.made)
    mail["Message-ID"] = f"<{delivery.id}@{route.said.sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Cityward-Delivery"] = delivery.id
    mail.set_content(body(delivery, route, operator), charset="utf-8", cte="quoted-printable")
    return mail


def _connected(route: Route) -> smtplib.SMTP:
    host, port = place_of(route)
    # The default asks the name service, which may not answer for long.
    name = socket.gethostname()
    if route.transport == "tls":
        return smtplib.SMTP_SSL(
            host, port, local_hostname=name, timeout=TIMEOUT_S, context=context_of(route)
        )
    smtp = smtplib.SMTP(host, port, local_hostname=name, timeout=TIMEOUT_S)
    if route.transport == "starttls":
        smtp.starttls(context=context_of(route))
    return smtp


def _sign_in(smtp: smtplib.SMTP, user: str, password: str) -> None:
    try:
        smtp.login(user, password)
    except UnicodeEncodeError:
        # Its words would show a letter of the password.
        said = "name or password have letters that smtplib cannot send"
        raise Refused(said, permanent=True) from None


def _handed_over(
    smtp: smtplib.SMTP, sender: str, receivers: Iterable[str], message: bytes
) -> Answer:
    smtp.ehlo_or_helo_if_needed()
    _expect(smtp.mail(sender))
    refused: dict[str, tuple[int, bytes]] = {}
    accepted = 0
    for one in receivers:
        reply = smtp.rcpt(one)
        if reply[0] in OK:
            accepted += 1
        else:
            refused[one] = reply
    said = "; ".join(words(one, *reply) for one, reply in refused.items())
    if not accepted:
        permanent = all(code >= PERMANENT for code, _ in refused.values())
        raise Refused(said, permanent=permanent)
    reply = smtp.data(message)
    _expect(reply)
    return Answer("; ".join(filter(None, (words(*reply), said))), tuple(refused))


def _expect(reply: tuple[int, bytes]) -> None:
    if reply[0] not in OK:
        raise smtplib.SMTPResponseException(*reply)
