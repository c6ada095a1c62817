"""Write a mail to people whom the settings name.

    [response.actuators.smtp]
    server = "mail.operator.example:587"
    transport = "starttls"
    user = "cityward"
    password_env = "CITYWARD_MAIL_PASSWORD"
    sender = "cityward@operator.example"
    to = ["soc@operator.example"]

References:
    RFC 5321 (SMTP), RFC 3207 (STARTTLS), RFC 5322 (message), RFC 3834 (automatic messages).
"""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP as POLICY
from email.utils import format_datetime
from typing import Literal

from cityward import Command, ConfigError, State, Target, TransientError, Unsafe, actuator
from playbooks.actuators.text import key_of, line, listed, only, text
from playbooks.targets import NOWHERE, is_spelled

STEP_S = 15.0
PERMANENT = 500


@actuator("smtp", verbs={"create": ""}, targets=("email_addr",), action_class="A0", rollback="none")
class Smtp:
    """Send a mail with `subject` and `text`.

    Args:
        server: `name:port` of the mail server.
        sender: Address that it comes from.
        to: Who gets it; a step may name one of them, and nobody else.
        transport: `starttls`, `tls` or `plain`.
        user: Ours at the server; empty: no login.
        password: Of this user.
        ca_file: PEM file that the server is checked by; empty: the system's.
        clock: Date of the mail.
    """

    def __init__(
        self,
        *,
        server: str,
        sender: str,
        to: Sequence[str],
        transport: Literal["starttls", "tls", "plain"] = "starttls",
        user: str = "",
        password: str = "",
        ca_file: str = "",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        host, _, port = server.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(f"{server!r} is no name:port", "smtp.server", "Name the server.")
        to = listed(to, "smtp.to")
        for one in (sender, *to):
            if not is_spelled(Target("email_addr", one)):
                raise ConfigError(f"{one!r} is no mail address", "smtp", "Mend it.")
        if transport not in ("starttls", "tls", "plain"):
            raise ConfigError(f"{transport!r} is none of starttls, tls, plain", "smtp.transport")
        if user and transport == "plain":
            raise ConfigError("a password is not sent unencrypted", "smtp.transport", "Use tls.")
        self._place = (host.strip("[]"), int(port))
        self._sender, self._to, self._transport = sender, to, transport
        self._user, self._password, self._ca_file = user, password, ca_file
        self._clock = clock

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        """Always one: a mail is sent anew."""
        self._receivers(verb, target)
        yield Command(verb, target, undo="", until=until)

    def apply(self, command: Command) -> None:
        """Hand it to the server; at each attempt with the same id."""
        to = self._receivers(command.verb, command.target)
        mail = self._mail(command, to)
        try:
            with self._connected() as smtp:
                if self._user:
                    smtp.login(self._user, self._password)
                left = smtp.send_message(mail, self._sender, list(to))
        except smtplib.SMTPResponseException as error:
            raise self._failed(error.smtp_code, error.smtp_error) from error
        except smtplib.SMTPRecipientsRefused as error:
            raise self._failed(*max(error.recipients.values())) from error
        except (OSError, smtplib.SMTPException, UnicodeError) as error:
            # Its words may show a letter of the password.
            raise self._failed(0, type(error).__name__) from None
        if left:
            raise self._failed(PERMANENT, f"some receivers were refused: {', '.join(left)}")

    def probe(self, target: Target) -> State:
        """Nothing is kept that could be looked at."""
        self._receivers("create", target)
        return State(False)

    def _receivers(self, verb: str, target: Target) -> tuple[str, ...]:
        if verb != "create":
            raise Unsafe(f"{verb[:40]!r} is no verb of smtp", "smtp", "Use create.")
        if target == NOWHERE:
            return self._to
        if target.type != "email_addr" or target.value not in self._to:
            raise Unsafe(f"{target.value[:80]!r} is not in the settings", "smtp", "Add it to `to`.")
        return (target.value,)

    def _mail(self, command: Command, to: Sequence[str]) -> EmailMessage:
        args = only(command.args, "subject", "text")
        mail = EmailMessage(policy=POLICY)
        mail["From"] = self._sender
        mail["To"] = ", ".join(to)
        mail["Subject"] = line(args.get("subject")) or "cityward"
        mail["Date"] = format_datetime(self._clock())
        mail["Message-ID"] = f"<{key_of(command)}@{self._sender.rpartition('@')[2]}>"
        mail["Auto-Submitted"] = "auto-generated"
        said = text(args.get("text"))
        mail.set_content(f"{said}\n", charset="utf-8", cte="quoted-printable")
        return mail

    def _connected(self) -> smtplib.SMTP:
        # The default asks the name service, which may not answer for long.
        name = socket.gethostname()
        if self._transport == "plain":
            return smtplib.SMTP(*self._place, local_hostname=name, timeout=STEP_S)
        context = ssl.create_default_context(cafile=self._ca_file or None)
        if self._transport == "tls":
            return smtplib.SMTP_SSL(
                *self._place, local_hostname=name, timeout=STEP_S, context=context
            )
        smtp = smtplib.SMTP(*self._place, local_hostname=name, timeout=STEP_S)
        smtp.starttls(context=context)
        return smtp

    def _failed(self, code: int, said: bytes | str) -> TransientError | Unsafe:
        words = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
        what = line(f"the mail server says {code or ''} {words}".replace("  ", " "))
        kind = Unsafe if code >= PERMANENT else TransientError
        return kind(what, f"smtp {self._place[0]}", "Look at the mail server.")
