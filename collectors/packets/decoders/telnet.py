"""Telnet: who tries to log in, as whom, whether it worked, and which kinds of commands follow.

Understood: negotiation of options; prompts for a name and a password, the login between them and
what the server says to it; behind a prompt of a shell the known commands, by their first word. What
is typed as a password is compared with those that devices leave the factory with, and forgotten.

Not understood: prompts in other languages than English, screens of 3270 terminals, encryption of
RFC 2946; text that is neither prompt nor command is not kept.

References:
    RFC 854 (commands), RFC 855 (options), RFC 857 (echo); IANA, "Telnet Options".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.default_logins import is_default_login
from collectors.packets.decoders.pairs import printable, unreadable

TELNET = LogSource(category="network", service="telnet")

LINE_MAX = 256
"""Bytes of a line that are looked at; the rest of a longer one is not."""
SUBNEGOTIATION_MAX = 512
"""Bytes between IAC SB and IAC SE."""
HEAD_LOOKED_AT = 256
"""Bytes in which negotiation shows itself."""
PROMPT_MAX = 32
"""Bytes at the end of a text in which a prompt for a name is looked for."""

OPTIONS: dict[int, str] = {
    0: "binary", 1: "echo", 3: "suppress_go_ahead", 5: "status", 6: "timing_mark",
    17: "extended_ascii", 18: "logout", 23: "send_location", 24: "terminal_type",
    25: "end_of_record", 31: "window_size", 32: "terminal_speed", 33: "flow_control",
    34: "line_mode", 35: "x_display", 36: "environment", 37: "authentication", 38: "encryption",
    39: "new_environment", 42: "charset", 44: "com_port",
}  # fmt: skip

COMMANDS = frozenset(
    (
        *("cat", "cd", "clear", "date", "debug", "df", "dmesg", "echo", "enable", "exit", "free"),
        *("ftpput", "help", "id", "ifconfig", "ip", "linuxshell", "logout", "ls", "mkdir", "mount"),
        *("netstat", "ping", "ping6", "ps", "pwd", "quit", "route", "run", "sh", "shell", "show"),
        *("su", "system", "telnet", "top", "touch", "traceroute", "uname", "uptime", "who"),
    )
)
"""First words that are shown; of any other it is only said that it is one."""
CHANGES = frozenset(
    (
        *("busybox", "chmod", "conf", "config", "configure", "copy", "cp", "curl", "delete"),
        *("erase", "ftpget", "insmod", "iptables", "kill", "killall", "mv", "nc", "passwd"),
        *("reboot", "reload", "restart", "rm", "save", "set", "shutdown", "start", "stop", "tftp"),
        *("wget", "write"),
    )
)
"""The same, and they can change a device."""

_IAC, _SB = 255, 250
_VERBS = range(251, 255)
_NEGOTIATION = re.compile(rb"\xff(?:[\xfb-\xfe](.)|\xfa.)", re.DOTALL)
_COMMAND = re.compile(
    rb"\xff\xfa.*?(?:\xff\xf0|\Z)|\xff[\xfb-\xfe](?:.|\Z)|\xff(?:[\xf0-\xf9]|\Z)", re.DOTALL
)
_RETURN = re.compile(rb"\r[\n\0]?|\n")
_USER_PROMPT = re.compile(rb"(?:log[io]n(?: name)?|user ?(?:name|id)?|account) ?[:>] ?$", re.I)
_PASSWORD_PROMPT = re.compile(rb"(?:password|passwd|passcode|pass phrase)[^:]{0,40}[:>] ?$", re.I)
_SHELL_PROMPT = re.compile(rb"[\w\])~/)-] ?[#$%>] ?$")
_FAILURE = re.compile(
    rb"incorrect|invalid|fail|denied|bad (?:password|login|user)|refused|wrong|error|locked", re.I
)
_WELCOME = re.compile(rb"busybox|built-in shell|welcome|last login|logged in|succe", re.I)

Fields = dict[str, Any]


class Lane(msgspec.Struct):
    """One direction."""

    line: bytearray = msgspec.field(default_factory=bytearray)
    is_passing: bool = False
    """Within a subnegotiation that is too long."""
    after_return: bool = False
    rest: int = 0


_TEXT = bytes(range(32, 127)) + b"\r\n\t\0\x1b\x07\x08"


@decoder("telnet", TELNET, ports=(23, 2323), begins=b"\xff" + _TEXT)
class Telnet:
    """One Telnet conversation."""

    def __init__(self, session: Session) -> None:
        self.attempts = 0
        self.options: list[str] = []
        self._always = {
            **session.base,
            "network.protocol": "telnet",
            "event.category": ["network"],
            "event.type": ["protocol"],
        }
        self._lanes = (Lane(), Lane())
        self._wanted = ""
        """What the server asked for last: `user`, `password`, `command` or nothing."""
        self._user = ""
        self._login: Fields | None = None
        """An attempt on which the server has not said anything yet."""
        self._has_told = False

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; negotiation of known options, or a prompt for a name."""
        if head[:1] == b"\xff":
            head = head[:HEAD_LOOKED_AT]
            first = _NEGOTIATION.match(head)
            if first is None or not _is_negotiation(head[:3]):
                return False
            return all(
                _is_negotiation(head[match.start() : match.start() + 3])
                for match in _NEGOTIATION.finditer(head[:60])
            ) and _is_text(_plain(head))
        if len(head) >= 1_024 or not _is_text(head):
            return False
        return _USER_PROMPT.search(head, len(head) - PROMPT_MAX) is not None

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        found: list[Fields] = []
        at, end = 0, len(data)
        while at < end:
            byte = data[at]
            if lane.is_passing:
                stop = data.find(b"\xff\xf0", at)
                lane.is_passing = stop < 0
                at = stop + 2 if stop >= 0 else max(at, end - (data[-1] == _IAC))
                if lane.is_passing:
                    break
            elif byte == _IAC:
                used = self._option(data, at, lane, found, from_client)
                if not used:
                    break
                at += used
            else:
                stop = data.find(b"\xff", at)
                stop = end if stop < 0 else stop
                self._text(data[at:stop], lane, from_client, found)
                at = stop
        lane.rest = end - at
        return at, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; what is typed next may be anything, so nothing of it is believed."""
        lane = self._lanes[from_client]
        lane.line.clear()
        lane.is_passing, lane.rest = False, 0
        self._wanted = ""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; an attempt on which the server said nothing, and options cut short."""
        found = self._prompted()
        found += self._decided("unknown", "the server said nothing to it")
        for lane, who in zip(self._lanes, ("server", "client"), strict=True):
            if lane.rest:
                why = f"the conversation ended within an option of the {who}"
                found.append(unreadable(self._always, why))
                lane.rest = 0
        return found

    def _option(
        self, data: bytes, at: int, lane: Lane, found: list[Fields], from_client: bool
    ) -> int:
        """How long the command at `at` is; 0 if it is not whole."""
        if len(data) - at < 2:
            return 0
        verb = data[at + 1]
        if verb == _IAC:
            self._text(b"\xff", lane, from_client, found)
            return 2
        if verb in _VERBS:
            if len(data) - at < 3:
                return 0
            self._negotiated(data[at + 2], found)
            return 3
        if verb != _SB:
            return 2
        stop = data.find(b"\xff\xf0", at + 2)
        if stop >= 0:
            return stop + 2 - at
        if len(data) - at <= SUBNEGOTIATION_MAX:
            return 0
        found.append(unreadable(self._always, "a subnegotiation has more than 512 bytes"))
        lane.is_passing = True
        return 2

    def _negotiated(self, option: int, found: list[Fields]) -> None:
        """Say once that the two negotiate: it is how Telnet shows itself."""
        if not self._has_told:
            self._has_told = True
            name = OPTIONS.get(option) or f"option_{option}"
            own = {"event.action": "telnet_negotiation", "cw.vendor": {"option": name}}
            found.append({**self._always, **own})

    def _text(self, data: bytes, lane: Lane, from_client: bool, found: list[Fields]) -> None:
        # Behind a carriage return stands a line feed or a null (RFC 854).
        if lane.after_return and data[:1] in (b"\n", b"\0"):
            data = data[1:]
        lane.after_return = data.endswith(b"\r")
        first, *others = _RETURN.split(data)
        self._more(first, lane, from_client, found)
        for part in others:
            if from_client and not lane.line:
                found += self._prompted()
            whole = bytes(lane.line)
            lane.line.clear()
            found += self._typed(whole) if from_client else self._said(whole)
            self._more(part, lane, from_client, found)

    def _more(self, part: bytes, lane: Lane, from_client: bool, found: list[Fields]) -> None:
        """Add to a line; its first byte from the client answers what the server shows then."""
        if not part:
            return
        if from_client and not lane.line:
            found += self._prompted()
        lane.line += part[: max(0, LINE_MAX - len(lane.line))]

    # ---- What the server says

    def _said(self, line: bytes) -> list[Fields]:
        """A whole line of the server."""
        if self._login is None or not line.strip():
            return []
        if _FAILURE.search(line):
            # The line is not shown: it may be the echo of a password.
            return self._decided("failure")
        if _WELCOME.search(line):
            return self._decided("success")
        return []

    def _prompted(self) -> list[Fields]:
        """The line on which the server's cursor stands; it is looked at once."""
        text = bytes(self._lanes[False].line[-80:])
        self._lanes[False].line.clear()
        if _PASSWORD_PROMPT.search(text):
            self._wanted = "password"
            return self._decided("failure") if self._login is not None else []
        if _USER_PROMPT.search(text):
            self._wanted = "user"
            return self._decided("failure") if self._login is not None else []
        if _SHELL_PROMPT.search(text) and self._wanted in ("command", "answer"):
            self._wanted = "command"
            return self._decided("success")
        return []

    # ---- What the client types

    def _typed(self, line: bytes) -> list[Fields]:
        """A whole line of the client."""
        wanted = self._wanted
        if wanted == "user":
            self._user = printable(_unedited(line))
            self._wanted = ""
        elif wanted == "password":
            found = self._decided("unknown")
            self._attempt(_unedited(line))
            self._wanted = "answer"
            return found
        elif wanted == "command" and self._login is None:
            return self._command(_unedited(line).strip())
        return []

    def _attempt(self, password: bytes) -> None:
        self.attempts += 1
        fields = {
            **self._always,
            "event.action": "telnet_login",
            "event.category": ["authentication"],
            "event.type": ["start"],
            "ot.operation": "auth",
        }
        if self._user:
            fields["user.name"] = self._user
        if is_default_login(self._user, password.decode("latin-1")):
            fields["cw.vendor"] = {"default_login": True}
        self._login = fields

    def _decided(self, outcome: str, why: str = "") -> list[Fields]:
        login, self._login = self._login, None
        if login is None:
            return []
        login["event.outcome"] = outcome
        if why:
            login["event.reason"] = why
        if outcome == "success":
            self._wanted = "command"
        return [login]

    def _command(self, line: bytes) -> list[Fields]:
        if not line:
            return []
        first = line.split(None, 1)[0].rpartition(b"/")[2].decode("latin-1")
        name = first if first in COMMANDS or first in CHANGES else "other"
        own: Fields = {
            **self._always,
            "event.action": "telnet_command",
            "process.name": name,
            "ot.is_command": first in CHANGES,
        }
        if self._user:
            own["user.name"] = self._user
        return [own]


def _unedited(line: bytes) -> bytes:
    """What is left of a line after its backspaces."""
    if b"\x7f" not in line and b"\x08" not in line:
        return line
    kept = bytearray()
    for byte in line:
        if byte not in (0x7F, 0x08):
            kept.append(byte)
        elif kept:
            kept.pop()
    return bytes(kept)


def _is_negotiation(three: bytes) -> bool:
    return len(three) == 3 and (
        (three[1] in _VERBS and three[2] in OPTIONS) or (three[1] == _SB and three[2] in OPTIONS)
    )


def _plain(head: bytes) -> bytes:
    """What is left without negotiation, also without one that is cut at the end."""
    return _COMMAND.sub(b"", head)


def _is_text(data: bytes) -> bool:
    return not data.translate(None, _TEXT)
