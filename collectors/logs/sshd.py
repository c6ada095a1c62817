"""OpenSSH's server: who logged in, who failed, who only knocked.

Each line is read for itself. A line that names no address gives an event without one: joining it
to an earlier line of the same process would need a memory that a restart loses, and then the same
file would not give the same events.

Send: let the server log to syslog and name this node as its loghost (`reader = "syslog_tcp"`), or
read its file (`reader = "file"`, `path = "/var/log/auth.log"`).

Understood: accepted, failed and invalid logins with user, address, port and method, disconnects
before sign-in, too many tries, closed and reset connections, repeated-message lines.

Not understood: lines of PAM and of other programs; they are kept as syslog events.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from cityward import Event, LogSource, Record, collector
from collectors.logs.envelope import Envelope, enveloped, read_lines
from collectors.values import address, clean, port

SSHD = LogSource(product="linux", service="sshd")

MESSAGE_MAX = 4_096
"""Characters of a message that are read; sshd writes at most 1 024."""


class Says(msgspec.Struct, frozen=True):
    """What a message means."""

    pattern: re.Pattern[str]
    action: str
    outcome: str = "unknown"
    reason: str = ""
    """Why; empty: what the pattern calls `reason`."""


def _says(pattern: str, action: str, outcome: str = "unknown", reason: str = "") -> Says:
    return Says(re.compile(pattern, re.DOTALL), action, outcome, reason)


# The sender chooses user name and version string, and both may look like the end of a message.
# So a name is greedy and what follows it is anchored at the end: the last address is sshd's own.
_FROM = r"from (?P<host>\S+)(?: port (?P<port>\d+))?"
_AT = r"(?P<host>\S+) port (?P<port>\d+)"
_END = r"(?P<preauth> \[preauth\])?\Z"
_SSH = r"(?: ssh\d?)?"
_INVALID = r"(?:invalid|illegal) user"

# First word → what messages beginning with it mean; the first that matches counts.
# References: OpenSSH auth.c, auth2.c, auth-pam.c, monitor.c, packet.c, kex.c, sshd.c and
# sshd-session.c, versions 3.8 to 10; older wordings as fail2ban's filter for sshd knows them.
MEANINGS: dict[str, tuple[Says, ...]] = {
    "Accepted": (
        # What follows the colon is a key or certificate, whose id the client chose.
        _says(
            rf"Accepted (?P<method>\S+) for (?P<user>\S+) {_FROM}{_SSH}(?:: .*|{_END})",
            "ssh_login",
            "success",
        ),
        _says(rf"Accepted (?P<method>\S+) for (?P<user>.*) {_FROM}{_SSH}", "ssh_login", "success"),
    ),
    "Failed": (
        _says(
            rf"Failed (?P<method>\S+) for {_INVALID} (?P<user>\S+) {_FROM}{_SSH}(?:: .*|{_END})",
            "ssh_login",
            "failure",
            "invalid user",
        ),
        _says(
            rf"Failed (?P<method>\S+) for {_INVALID} (?P<user>.*) {_FROM}{_SSH}(?:: \S.*|{_END})",
            "ssh_login",
            "failure",
            "invalid user",
        ),
        # A client offers every key it has and asks for the methods by trying `none`: a refusal
        # of these is no failed login of a user who exists.
        _says(
            rf"Failed (?P<method>publickey|none) for (?P<user>.*?) {_FROM}{_SSH}(?:: .*|{_END})",
            "ssh_method_refused",
            reason="one method refused, others may follow",
        ),
        _says(
            rf"Failed (?P<method>\S+) for (?P<user>\S+) {_FROM}{_SSH}(?:: .*|{_END})",
            "ssh_login",
            "failure",
            "wrong credentials",
        ),
        _says(
            rf"Failed (?P<method>\S+) for (?P<user>.*) {_FROM}{_SSH}(?:: \S.*|{_END})",
            "ssh_login",
            "failure",
            "wrong credentials",
        ),
    ),
    "Postponed": (
        _says(
            rf"Postponed (?P<method>\S+) for (?:{_INVALID} )?(?P<user>.*) {_FROM}{_SSH}{_END}",
            "ssh_method_postponed",
        ),
    ),
    "Partial": (
        _says(
            rf"Partial (?P<method>\S+) for (?P<user>.*) {_FROM}{_SSH}(?:: .*|{_END})",
            "ssh_method_accepted",
        ),
    ),
    "PAM:": (
        # macOS adds `via` its own address.
        _says(
            rf"PAM: (?P<reason>[A-Za-z' ]{{1,100}}?) for (?:{_INVALID} )?(?P<user>.*) {_FROM}"
            rf"(?: via \S+)?{_END}",
            "ssh_login",
            "failure",
        ),
    ),
    "pam_": (
        _says(
            r"pam_\w+\(sshd:auth\): (?P<reason>authentication (?:failure|error));"
            r"(?: \w+=\S*){0,8}? ruser=(?P<ruser>\S*) rhost=(?P<host>\S+)"
            r"(?:\s+user=(?P<user>\S+))?",
            "pam_authentication",
            reason="one method of authentication failed, sshd decides",
        ),
        _says(
            r"pam_\w+\(sshd:session\): session (?P<reason>opened|closed) "
            r"for user (?P<user>[^\s(]+)",
            "ssh_session",
        ),
        _says(
            r"pam_\w+\(sshd:account\): (?P<reason>.*)",
            "pam_account",
        ),
    ),
    "authentication": (
        _says(
            r"authentication failure; logname=\S* uid=\S* euid=\S* tty=\S* ruser=(?P<ruser>\S*) "
            r"rhost=(?P<host>\S+)(?:\s+user=(?P<user>\S+))?",
            "pam_authentication",
            reason="one method of authentication failed, sshd decides",
        ),
    ),
    "more": (
        _says(
            r"\d+ more authentication failures?; logname=\S* uid=\S* euid=\S* tty=\S* "
            r"ruser=(?P<ruser>\S*) rhost=(?P<host>\S+)(?:\s+user=(?P<user>\S+))?",
            "pam_authentication",
            reason="one method of authentication failed, sshd decides",
        ),
    ),
    "maximum": (
        _says(
            rf"maximum authentication attempts exceeded for (?:{_INVALID} )?(?P<user>.*) {_FROM}"
            rf"{_SSH}{_END}",
            "ssh_login",
            "failure",
            "maximum of authentication attempts exceeded",
        ),
    ),
    "Invalid": (
        _says(rf"Invalid user (?P<user>.*) {_FROM}{_END}", "ssh_login", "failure", "invalid user"),
    ),
    "Illegal": (
        _says(rf"Illegal user (?P<user>.*) {_FROM}{_END}", "ssh_login", "failure", "invalid user"),
    ),
    "input_userauth_request:": (
        _says(
            rf"input_userauth_request: {_INVALID} (?P<user>.*?){_END}",
            "ssh_login",
            "failure",
            "invalid user",
        ),
    ),
    "User": (
        _says(
            r"User (?P<user>.*) from (?P<host>\S+) not allowed because (?P<reason>.*)",
            "ssh_login",
            "failure",
        ),
        _says(
            r"User (?P<user>.*) not allowed because (?P<reason>.*)",
            "ssh_login",
            "failure",
        ),
        _says(
            r"User child is on pid \d+",
            "ssh_session",
        ),
    ),
    "ROOT": (
        _says(
            rf"ROOT LOGIN REFUSED (?i:{_FROM}){_END}",
            "ssh_login",
            "failure",
            "root may not log in",
        ),
    ),
    "refused": (
        _says(
            r"refused connect from (?:\S*@)?\S+ \((?P<host>[^()\s]+)\)",
            "ssh_connection",
            "failure",
            "refused by the access list",
        ),
        _says(
            r"refused connect from (?P<host>\S+)",
            "ssh_connection",
            "failure",
            "refused by the access list",
        ),
    ),
    "drop": (
        _says(
            r"drop connection #\d+ from \[(?P<host>[^\]\s]+)\]:(?P<port>\d+) on \S+ (?P<reason>.*)",
            "ssh_connection",
            "failure",
        ),
    ),
    "Connection": (
        _says(
            r"Connection (?P<reason>closed|reset) by (?:(?:authenticating|invalid) user "
            r"(?P<user>.*) (?=\S+ port \d))?(?P<host>\S+)(?: port (?P<port>\d+))? \[preauth\]\Z",
            "ssh_disconnect",
            "failure",
        ),
        _says(
            rf"Connection (?P<reason>closed|reset) by (?:(?:authenticating|invalid) )?"
            rf"(?:user (?P<user>.*) (?=\S+ port \d))?(?P<host>\S+)(?: port (?P<port>\d+))?{_END}",
            "ssh_disconnect",
        ),
        _says(
            rf"Connection {_FROM}(?: on \S+ port \d+)?(?: rdomain .*)?\Z",
            "ssh_connection",
        ),
        _says(rf"Connection {_FROM}: (?P<reason>.*?){_END}", "ssh_protocol_fault", "failure"),
    ),
    "banner": (
        _says(
            rf"banner exchange: Connection {_FROM}: (?P<reason>.*?){_END}",
            "ssh_protocol_fault",
            "failure",
        ),
    ),
    "ssh_dispatch_run_fatal:": (
        _says(
            rf"ssh_dispatch_run_fatal: Connection {_FROM}: (?P<reason>.*?){_END}",
            "ssh_protocol_fault",
            "failure",
        ),
        _says(
            rf"ssh_dispatch_run_fatal: Connection (?:from|to) (?:authenticating|invalid) user "
            rf"(?P<user>.*) {_AT}: (?P<reason>.*?){_END}",
            "ssh_protocol_fault",
            "failure",
        ),
    ),
    "kex_exchange_identification:": (
        _says(
            r"kex_exchange_identification: (?P<reason>.*)",
            "ssh_protocol_fault",
            "failure",
        ),
    ),
    "Did": (
        _says(
            rf"Did not receive identification string {_FROM}{_END}",
            "ssh_protocol_fault",
            "failure",
            "no identification string",
        ),
    ),
    "Bad": (
        _says(
            rf"Bad protocol version identification (?P<sent>'.*') {_FROM}{_END}",
            "ssh_protocol_fault",
            "failure",
            "bad protocol version",
        ),
        _says(r"(?P<reason>Bad packet length.*?)" + _END, "ssh_protocol_fault", "failure"),
        _says(
            rf"Bad remote protocol version identification: (?P<sent>'.*?'){_END}",
            "ssh_protocol_fault",
            "failure",
            "bad protocol version",
        ),
    ),
    "Protocol": (
        _says(
            r"Protocol major versions differ for (?P<host>\S+)(?: port (?P<port>\d+))?: .*",
            "ssh_protocol_fault",
            "failure",
            "protocol versions differ",
        ),
    ),
    "Unable": (
        _says(
            r"Unable to negotiate with (?P<host>\S+?)(?: port (?P<port>\d+))?: "
            rf"(?P<reason>no matching [\w ]+ found)\. Their offer: (?P<sent>.*?){_END}",
            "ssh_protocol_fault",
            "failure",
        ),
        _says(rf"(?P<reason>Unable to negotiate.*?){_END}", "ssh_protocol_fault", "failure"),
    ),
    "no": (
        _says(r"(?P<reason>no matching \w+ found): .*", "ssh_protocol_fault", "failure"),
        _says(r"(?P<reason>no hostkey alg.*)", "ssh_protocol_fault", "failure"),
    ),
    "Corrupted": (
        _says(rf"(?P<reason>Corrupted MAC on input)\.?{_END}", "ssh_protocol_fault", "failure"),
    ),
    "Magic": (
        _says(
            rf"Magic value check failed \(\d+\) on obfuscated handshake {_FROM}{_END}",
            "ssh_protocol_fault",
            "failure",
            "obfuscated handshake failed",
        ),
    ),
    "Read": (
        _says(
            r"Read from socket failed: (?P<reason>.*) \[preauth\]\Z",
            "ssh_disconnect",
            "failure",
        ),
        _says(
            r"Read error from remote host (?:(?P<user>.*) (?=\S+ port \d))?(?P<host>\S+?)"
            r"(?: port (?P<port>\d+))?: (?P<reason>.*)",
            "ssh_disconnect",
        ),
    ),
    "Write": (_says(r"Write failed: (?P<reason>.*)", "ssh_disconnect"),),
    "Timeout": (
        _says(
            r"Timeout before authentication for (?:connection from )?(?P<host>\S+)"
            r"(?: port (?P<port>\d+))?(?: to .*)?\Z",
            "ssh_disconnect",
            "failure",
            "timeout before authentication",
        ),
    ),
    "Received": (
        _says(
            r"Received disconnect from (?P<host>\S+?)(?: port (?P<port>\d+))?: ?"
            r"(?P<code>\d+): ?(?P<reason>.*) \[preauth\]\Z",
            "ssh_disconnect",
            "failure",
        ),
        _says(
            r"Received disconnect from (?P<host>\S+?)(?: port (?P<port>\d+))?: ?"
            r"(?P<code>\d+): ?(?P<reason>.*Auth fail.*)",
            "ssh_disconnect",
            "failure",
        ),
        _says(
            r"Received disconnect from (?P<host>\S+?)(?: port (?P<port>\d+))?: ?"
            r"(?P<code>\d+): ?(?P<reason>.*)",
            "ssh_disconnect",
        ),
        _says(r"Received signal (?P<reason>.*)", "ssh_server"),
    ),
    "Disconnecting:": (
        _says(
            rf"Disconnecting: (?P<reason>Too many authentication failures)"
            rf"(?: for (?P<user>.*?))?{_END}",
            "ssh_disconnect",
            "failure",
        ),
        _says(
            rf"Disconnecting: Change of username or service not allowed: "
            rf"\((?P<user>[^,]*),.*?{_END}",
            "ssh_disconnect",
            "failure",
            "change of user name or service",
        ),
        _says(rf"Disconnecting: (?P<reason>.*?){_END}", "ssh_disconnect", "failure"),
    ),
    "Disconnecting": (
        # The line before it said `maximum authentication attempts exceeded`.
        _says(
            rf"Disconnecting (?:(?:authenticating|invalid) user (?P<user>.*) )?{_AT}: "
            rf"(?P<reason>Too many authentication failures){_END}",
            "ssh_disconnect",
        ),
        _says(
            rf"Disconnecting (?:(?:authenticating|invalid) user (?P<user>.*?) )?{_AT}: "
            rf"(?P<reason>.*?){_END}",
            "ssh_disconnect",
            "failure",
        ),
    ),
    "Disconnected": (
        _says(
            r"Disconnected from (?:(?:\w+ )?user (?P<user>.*) (?=\S+ port \d))?(?P<host>\S+)"
            r"(?: port (?P<port>\d+))? \[preauth\]\Z",
            "ssh_disconnect",
            "failure",
            "disconnected before authentication",
        ),
        _says(
            rf"Disconnected from (?:(?:\w+ )?user (?P<user>.*) (?=\S+ port \d))?(?P<host>\S+)"
            rf"(?: port (?P<port>\d+))?{_END}",
            "ssh_disconnect",
            reason="disconnected",
        ),
    ),
    "Close": (
        _says(rf"Close session: user (?P<user>.*) {_FROM} id \d+", "ssh_session", reason="closed"),
    ),
    "Closing": (_says(rf"Closing connection to {_AT}", "ssh_disconnect", reason="closed"),),
    "Starting": (
        _says(
            rf"Starting session: (?P<reason>.*) for (?P<user>.*) {_FROM} id \d+",
            "ssh_session",
        ),
    ),
    "Transferred:": (_says(r"(?P<reason>Transferred: .*)", "ssh_session"),),
    "Address": (
        _says(
            r"Address (?P<host>\S+) maps to (?P<reason>.*)",
            "ssh_reverse_mapping",
            reason="the name of the address does not map back",
        ),
    ),
    "reverse": (
        _says(
            r"reverse mapping checking getaddrinfo for \S+ \[(?P<host>[^\]\s]+)\] failed.*",
            "ssh_reverse_mapping",
            reason="the name of the address does not map back",
        ),
    ),
    "Authentication": (
        _says(r"Authentication refused: (?P<reason>.*)", "ssh_method_refused"),
        _says(
            r"Authentication tried for (?P<user>.*) with correct key but not from a permitted host"
            r" \(host=(?P<name>[^,]*), ip=(?P<host>[^,)]*).*",
            "ssh_login",
            "failure",
            "correct key, host not permitted",
        ),
    ),
    "subsystem": (
        _says(
            r"subsystem request for (?P<reason>\S+) (?:by user (?P<user>.*) )?failed.*",
            "ssh_subsystem",
        ),
        _says(r"subsystem request for (?P<reason>\S+)(?: by user (?P<user>.*))?", "ssh_subsystem"),
    ),
    "Server": (
        _says(r"Server listening on (?P<listens>\S+) port \d+.*", "ssh_server", reason="listening"),
    ),
    "SSH:": (
        # Logged with the patch of the high-performance variant (HPN-SSH).
        _says(
            r"SSH: Server;Ltype: (?P<reason>\w+);Remote: (?P<host>[^;\s]+)-(?P<port>\d+);.*",
            "ssh_connection",
        ),
    ),
}

_LEAD = re.compile(r"(?:\[ID \d+ \w+\.\w+\] |error: |fatal: |debug\d: |\(\w+\) )*")
_PROGRAM = re.compile(r"sshd\b")


def looks_like_sshd(head: bytes) -> bool:
    """Every line of the head with an envelope is sshd's."""
    lines = [line for line in head.split(b"\n") if line.strip() and line[:1] != b"#"][:40]
    return bool(lines) and all(_PROGRAM.search(line[:300].decode("latin-1")) for line in lines)


@collector(SSHD, strength=20)
def sshd(records: Iterable[Record]) -> Iterator[Event]:
    """Read syslog lines of sshd.

    A login that failed is category `authentication`, outcome `failure`; so is a connection that
    ended before authentication or broke the protocol, with another action.

    References:
        OpenSSH portable, log messages; RFC 3164; RFC 5424.
    """
    yield from read_lines(records, SSHD, lambda _app: read_sshd)


def read_sshd(around: Envelope, record: Record, number: int) -> Event:
    """Read one message; one that is not known is kept as `ssh_log`."""
    message = around.message[:MESSAGE_MAX]
    start = _LEAD.match(message)
    said = (message[start.end() :] if start else message).rstrip()
    fields: dict[str, Any] = {
        "event.category": ["authentication"],
        "event.action": "ssh_log",
        "event.dataset": "sshd.log",
        "network.protocol": "ssh",
        "message": clean(message),
    }
    for meaning in _candidates(said):
        if found := meaning.pattern.match(said):
            _take(meaning, found.groupdict(), fields)
            break
    return Event(around.time, SSHD, enveloped(around, fields), record, number)


def _candidates(said: str) -> tuple[Says, ...]:
    first, _, rest = said[:200].partition(" ")
    if first.startswith("pam_"):
        return MEANINGS["pam_"]
    if first.isdigit() and rest.startswith("more "):
        return MEANINGS["more"]
    return MEANINGS.get(first, ())


def _take(meaning: Says, found: dict[str, str | None], fields: dict[str, Any]) -> None:
    fields["event.action"] = meaning.action
    fields["event.outcome"] = meaning.outcome
    if reason := meaning.reason or found.get("reason"):
        fields["event.reason"] = clean(reason.strip())
    user = found.get("user") or found.get("ruser")
    if user and user != "<invalid username>":
        fields["user.name"] = clean(user)
    if host := found.get("host"):
        ip = address(host)
        fields["source.ip" if ip else "source.domain"] = ip or clean(host)
    number = port(found.get("port"))
    if number is not None:
        fields["source.port"] = number
    kept = {name: clean(value) for name in ("method", "sent", "code") if (value := found.get(name))}
    if kept:
        fields["cw.vendor"] = kept
