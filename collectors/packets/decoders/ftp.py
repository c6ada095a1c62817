"""FTP: logins and what became of them, and which files were fetched, stored or deleted.

Understood: the control connection: one event a command with its final reply, one a login (`USER`
and `PASS` together) and one for the greeting. A password is compared with those that devices leave
the factory with, and forgotten.

Not understood: contents of files (they go over connections of their own), commands behind
`AUTH TLS`.

References:
    RFC 959, sections 4.1 (commands), 4.2 (replies), 5.4 (sequences).
    RFC 2228 (AUTH), RFC 2428 (EPRT, EPSV), RFC 3659 (MLSD, SIZE).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.default_logins import is_default_login
from collectors.packets.decoders.pairs import printable, say, unreadable

FTP = LogSource(category="network", service="ftp")

LINE_MAX = 4_096
"""Bytes of a line; a longer one is passed over."""
OPEN_MAX = 64
"""Commands of one conversation that wait for a reply."""


class Command(msgspec.Struct, frozen=True):
    """What a command does."""

    action: str
    operation: str
    is_command: bool = False
    """It changes something at the server."""
    is_path: bool = False
    """What follows it names a file or a folder."""


COMMANDS: dict[str, Command] = {
    "RETR": Command("ftp_fetch", "file", is_path=True),
    "STOR": Command("ftp_store", "file", True, True),
    "STOU": Command("ftp_store", "file", True, True),
    "APPE": Command("ftp_append", "file", True, True),
    "DELE": Command("ftp_delete", "file", True, True),
    "RNFR": Command("ftp_rename_from", "file", is_path=True),
    "RNTO": Command("ftp_rename_to", "file", True, True),
    "MKD": Command("ftp_make_folder", "file", True, True),
    "XMKD": Command("ftp_make_folder", "file", True, True),
    "RMD": Command("ftp_remove_folder", "file", True, True),
    "XRMD": Command("ftp_remove_folder", "file", True, True),
    "LIST": Command("ftp_list", "discovery", is_path=True),
    "NLST": Command("ftp_list", "discovery", is_path=True),
    "MLSD": Command("ftp_list", "discovery", is_path=True),
    "MLST": Command("ftp_list", "discovery", is_path=True),
    "SIZE": Command("ftp_size", "discovery", is_path=True),
    "MDTM": Command("ftp_time_of_file", "discovery", is_path=True),
    "CWD": Command("ftp_change_folder", "discovery", is_path=True),
    "SITE": Command("ftp_site", "config", True),
    "AUTH": Command("ftp_encrypt", "session"),
    "PORT": Command("ftp_data_address", "session"),
    "EPRT": Command("ftp_data_address", "session"),
}
"""What gets an event of its own."""
QUIET = frozenset(
    (
        *("ABOR", "ACCT", "ADAT", "ALLO", "CCC", "CDUP", "CLNT", "ENC", "EPSV", "FEAT", "HELP"),
        *("HOST", "LANG", "MFMT", "MIC", "MODE", "NOOP", "OPTS", "PASV", "PBSZ", "PROT", "PWD"),
        *("QUIT", "REIN", "REST", "SMNT", "STAT", "STRU", "SYST", "TYPE", "XCUP", "XCWD", "XPWD"),
    )
)
"""Commands that are only counted."""

_REPLY = re.compile(rb"([1-6][0-9]{2})([ -]?)(.*)", re.DOTALL)
_VERB = re.compile(rb"([A-Za-z]{3,4})(?: +(.*))?", re.DOTALL)
_MARKS = (b"331 ", b"230 ", b"530 ", b"PASV\r\n", b"EPSV\r\n", b"TYPE I\r\n", b"TYPE A\r\n")
"""What only FTP begins with, where a capture begins within a conversation."""
_OTHER_GREETINGS = (b"smtp", b"mail", b"postfix", b"sendmail", b"exim", b"nntp", b"news")

Fields = dict[str, Any]


class Asked(msgspec.Struct):
    """A command that waits for its final reply."""

    verb: str
    fields: Fields


class Lane(msgspec.Struct):
    """One direction."""

    is_passing: bool = False
    """Within a line that nobody reads: it is too long, or its beginning is missing."""
    is_strange: bool = False
    """The last line was none of FTP; that is said once until one is."""
    rest: int = 0


@decoder("ftp", FTP, ports=(21,), begins=b"235PET")
class Ftp:
    """One control connection."""

    def __init__(self, session: Session) -> None:
        self.logins = self.commands = 0
        self._always = {
            **session.base,
            "network.protocol": "ftp",
            "event.category": ["network"],
            "event.type": ["protocol"],
        }
        self._client = session.base.get("source.ip", "")
        self._lanes = (Lane(), Lane())
        self._asked: deque[Asked] = deque()
        self._left: list[Fields] = []
        """Events of commands whose reply is not waited for any more."""
        self._user = ""
        self._is_default = False
        self._code = 0
        """Of a reply of several lines that is not over."""
        self._is_greeted = self._is_encrypted = False

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a greeting that names the protocol, or what only FTP says."""
        if head.startswith((b"220 ", b"220-")):
            text = head[:512].lower()
            return not any(other in text for other in _OTHER_GREETINGS) and (
                b"ftp" in text or b"filezilla" in text or b"file transfer" in text
            )
        return head.startswith(_MARKS)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        if self._is_encrypted:
            return len(data), ()
        lane = self._lanes[from_client]
        found, self._left = self._left, []
        at, end = 0, len(data)
        while at < end and not self._is_encrypted:
            stop = data.find(b"\n", at)
            if stop < 0:
                if end - at > LINE_MAX or lane.is_passing:
                    if not lane.is_passing:
                        why = f"a line has more than {LINE_MAX} bytes"
                        found.append(unreadable(self._always, why))
                    lane.is_passing = True
                    at = end
                break
            if lane.is_passing:
                lane.is_passing = False
            elif stop - at > LINE_MAX:
                found.append(unreadable(self._always, f"a line has more than {LINE_MAX} bytes"))
            else:
                line = data[at:stop].rstrip(b"\r")
                found += self._command(line) if from_client else self._reply(line)
            at = stop + 1
        if self._is_encrypted:
            at = end
        lane.rest = end - at
        return at, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; what was asked before it is not joined to what is answered after it."""
        self._lanes[from_client].is_passing = True
        self._lanes[from_client].rest = 0
        self._code = 0
        self._give_up("bytes of the conversation are missing behind it")

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; what nobody replied to, and lines that were cut."""
        self._give_up("the server did not reply to it")
        found, self._left = self._left, []
        for lane, who in zip(self._lanes, ("server", "client"), strict=True):
            if lane.rest:
                why = f"the conversation ended within a line of the {who}"
                found.append(unreadable(self._always, why))
                lane.rest = 0
        return found

    def _give_up(self, why: str) -> None:
        """What was asked is not joined to a reply any more."""
        for asked in self._asked:
            if asked.fields:
                say(asked.fields, why)
                self._left.append({**asked.fields, "event.outcome": "unknown"})
        self._asked.clear()

    def _strange(self, from_client: bool, why: str) -> list[Fields]:
        """Say that a line is none of FTP, once until there is one that is."""
        lane = self._lanes[from_client]
        found = [] if lane.is_strange else [unreadable(self._always, why)]
        lane.is_strange = True
        return found

    # ---- Commands

    def _command(self, line: bytes) -> list[Fields]:
        # Telnet's signals may stand before an ABOR (RFC 959, section 4.1.3).
        match = _VERB.fullmatch(line.lstrip(b"\xf2\xf4\xff"))
        verb = match[1].decode().upper() if match else ""
        if match is None or not (verb in COMMANDS or verb in QUIET or verb in ("USER", "PASS")):
            # The text is not shown: it may be a password.
            return self._strange(True, "a line of the client is no command of FTP")
        self._lanes[True].is_strange = False
        self.commands += 1
        fields: Fields = {}
        text = match[2] or b""
        if verb == "USER":
            self._user = printable(text)
        elif verb == "PASS":
            fields = self._login(text)
        elif verb in COMMANDS:
            fields = self._told(verb, text)
        if len(self._asked) >= OPEN_MAX:
            self._give_up(f"{OPEN_MAX} commands are open")
        found, self._left = self._left, []
        self._asked.append(Asked(verb, fields))
        return found

    def _login(self, password: bytes) -> Fields:
        self.logins += 1
        fields = {
            **self._always,
            "event.action": "ftp_login",
            "event.category": ["authentication"],
            "event.type": ["start"],
            "ot.operation": "auth",
        }
        if self._user:
            fields["user.name"] = self._user
        if is_default_login(self._user, password.decode("latin-1")):
            fields["cw.vendor"] = {"default_login": True}
        return fields

    def _told(self, verb: str, text: bytes) -> Fields:
        command = COMMANDS[verb]
        fields: Fields = {
            **self._always,
            "event.action": command.action,
            "event.category": ["network", "file"] if command.is_path else ["network"],
            "ot.operation": command.operation,
            "ot.is_command": command.is_command,
            "ot.function.name": verb,
        }
        if self._user:
            fields["user.name"] = self._user
        if command.is_path and text:
            path = printable(text)
            fields["file.path"] = path
            fields["file.name"] = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
        elif verb == "SITE":
            # Its first word only: what follows may be a password.
            fields["ot.function.sub"] = printable(text.split(b" ", 1)[0]).upper()
        elif verb in ("PORT", "EPRT"):
            address = _data_address(text)
            fields["cw.vendor"] = {"data_address": address}
            if self._client and address and address != self._client:
                say(fields, f"data are to go to {address}, not to the client {self._client}")
        return fields

    # ---- Replies

    def _reply(self, line: bytes) -> list[Fields]:
        match = _REPLY.fullmatch(line)
        code = int(match[1]) if match else 0
        if self._code:
            # Several lines end with the code of the first and a blank (RFC 959, section 4.2).
            if match is None or code != self._code or match[2] == b"-":
                return []
        elif match is None:
            return self._strange(False, "a line of the server has no reply code")
        elif match[2] == b"-":
            self._code = code
            return []
        self._code = 0
        self._lanes[False].is_strange = False
        if not self._is_greeted:
            self._is_greeted = True
            if not self._asked and code in (120, 220, 421):
                return [self._greeting(code, match[3])]
        if code < 200 or not self._asked:
            return []
        asked = self._asked.popleft()
        if asked.verb == "AUTH" and code in (234, 334):
            self._is_encrypted = True
        if not asked.fields:
            return []
        fields = {**asked.fields, "event.code": str(code)}
        fields["event.outcome"] = "success" if code < 400 else "failure"
        if asked.verb == "PASS" and code == 332:
            fields["event.outcome"] = "unknown"
        return [fields]

    def _greeting(self, code: int, text: bytes) -> Fields:
        return {
            **self._always,
            "event.action": "ftp_greeting",
            "event.code": str(code),
            "event.outcome": "success" if code < 400 else "failure",
            "cw.vendor": {"software": printable(text)},
        }


def _data_address(text: bytes) -> str:
    """The address of `PORT h1,h2,h3,h4,p1,p2` or `EPRT |1|address|port|`; empty if it is none."""
    if text[:1] == b"|":
        parts = text.split(b"|", 4)
        return printable(parts[2]) if len(parts) > 3 else ""
    numbers = text.split(b",", 6)
    if len(numbers) != 6 or not all(one.isdigit() and len(one) < 4 for one in numbers):
        return ""
    return ".".join(str(int(one)) for one in numbers[:4])
