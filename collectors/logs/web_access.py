"""Web servers: access logs of nginx, Apache and all that write the same, and their error logs.

Send: Follow the files (`reader = "folder"`, `path = "/var/log/nginx"`, `glob = "*.log"`,
`collector = "web-access"`), or let nginx send them: `access_log syslog:server=` and the node's
address, `error_log syslog:server=`; Apache: `ErrorLog syslog`. A syslog reader knows them by the
program (`nginx`, `apache2`, `httpd`).

Understood: Common and combined format, with a virtual host before it, with anything behind it
(Traefik); Nginx Proxy Manager; requests that are no HTTP; error logs of both servers with client,
request and level: failed logins (basic, digest, PAM), refused and limited requests.

Not understood: Formats of one's own; what stands behind the user agent is kept in `cw.vendor`.

References:
    Apache HTTP Server, "Log Files"; nginx, `ngx_http_log_module`; SigmaHQ, taxonomy of `webserver`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

import msgspec

from cityward import Event, LogSource, Record, collector
from collectors.logs.envelope import MONTHS, Envelope, envelope, enveloped
from collectors.logs.marked import most_lines
from collectors.values import address, clean, count

WEB = LogSource(category="webserver")
ERRORS = {
    name: LogSource(category="webserver", product=name, service="error")
    for name in ("nginx", "apache")
}

LINE_MAX = 16_384
"""Characters of a line that are read; servers take requests of 8 KiB."""

_TIME = r"\[(?P<time>\d{1,2}/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d(?: [+-]\d{4})?)\]"
_TEXT = r"((?:[^\"\\]|\\.)*+)"
_ACCESS = re.compile(
    rf"(?P<head>[^\"\[]{{3,600}}?) {_TIME} \"(?P<request>{_TEXT[1:-1]})\" "
    rf"(?P<status>\d{{3}}|-) (?P<bytes>\d{{1,18}}|-)"
    rf"(?: \"(?P<referrer>{_TEXT[1:-1]})\" \"(?P<agent>{_TEXT[1:-1]})(?:\"|\Z))?(?P<rest>.*)",
    re.DOTALL,
)
_PROXY = re.compile(
    rf"{_TIME} (?:\S{{1,16}} )?(?:\d{{3}} )?(?P<status>\d{{3}}) - (?P<method>[A-Z]{{1,16}}) "
    rf"(?P<scheme>\w{{1,8}}) (?P<host>\S{{1,255}}) \"(?P<url>{_TEXT[1:-1]})\" "
    rf"\[Client (?P<head>\S{{2,64}})\] \[Length (?P<bytes>\d{{1,18}}|-)\](?:[^\"]{{0,300}})"
    rf"(?:\"(?P<agent>{_TEXT[1:-1]})\" \"(?P<referrer>{_TEXT[1:-1]})\")?"
)
_REQUEST = re.compile(
    r"(?P<method>[A-Z]{2,20}) (?P<url>\S.{0,16000}?)(?: HTTP/(?P<version>\d(?:\.\d)?))?\Z"
)
_NGINX = re.compile(
    r"(?P<time>\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) \[(?P<level>\w{1,16})\] "
    r"(?P<pid>\d{1,10})[#:]\d{1,10}:? ?(?:\*\d{1,20} )?(?P<message>.*)",
    re.DOTALL,
)
_NGINX_CLIENT = re.compile(
    r"(?P<said>.*), client: (?P<ip>[0-9A-Fa-f:.]{2,45})(?:, server: (?P<server>[^,]{0,255}))?"
    r"(?:, request: \"(?P<request>[^\"]*)\"?)?(?:.*?, host: \"(?P<host>[^\"]*)\"?)?.*",
    re.DOTALL,
)
_APACHE = re.compile(
    r"(?:\[[A-Z][a-z]{2} (?P<month>[A-Z][a-z]{2}) (?P<day>[ \d]\d) (?P<clock>\d\d:\d\d:\d\d)"
    r"(?:\.(?P<part>\d{1,6}))? (?P<year>\d{4})\] )?\[(?:(?P<module>[\w.-]{0,64}):)?"
    r"(?P<level>[a-z]+\d?)\] (?:\[pid (?P<pid>\d{1,10})(?::tid \d{1,20})?\] )?"
    r"(?:\[(?:client|remote) \[?(?P<ip>[0-9A-Fa-f:.]{2,45}?)\]?(?::(?P<port>\d{1,5}))?\] )?"
    r"(?P<message>.*)",
    re.DOTALL,
)
_VHOST = re.compile(r"[\w.-]{1,255}(?::\d{1,5})?\Z")
_CODE = re.compile(r"(AH\d{5}): ")
_LOGINS = (
    re.compile(
        r"user \"(?P<user>.{0,256})\"(?:: password mismatch|:? was not found in .*)\Z", re.S
    ),
    re.compile(r"PAM: user '(?P<user>.{0,256})' - not authenticated.*", re.S),
    re.compile(r"user (?P<user>.{0,256}?) not found(?:: .*)?\Z", re.S),
    re.compile(
        r"(?:Digest: )?user (?P<user>.{0,256}?): (?:authenti|authori[sz]a)\w{2,8} failure for .*",
        re.S,
    ),
    re.compile(r"(?:Digest: )?user (?P<user>.{0,256}?): password mismatch: .*", re.S),
    re.compile(
        r"(?:Digest: )?user `(?P<user>.{0,256}?)' in realm `.*' (?:not found|denied by).*", re.S
    ),
    re.compile(r"Authorization of user (?P<user>.{0,256}?) to access .* failed, reason: .*", re.S),
    re.compile(
        r"(?P<user>)(?:Digest: )?(?:invalid (?:qop|nonce) (?!.*hash is not).*|realm mismatch .*"
        r"|unknown algorithm .*|client used wrong authentication scheme: .*)",
        re.S,
    ),
)
"""How the servers say that a login failed; a name is what the client sent."""
_MARK = re.compile(
    rb"^[^\"\[]{3,300} \[\d{1,2}/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d(?: [+-]\d{4})?\] \""
    rb"|^\[\d{1,2}/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] (?:\S{1,16} )?\d{3} "
    rb"|^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[\w{1,16}\] \d{1,10}[#:]\d"
    rb"|^\[[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d[ .\d]{5,12}\] \[[\w.:-]{2,64}\] "
)


def looks_like_web_access(head: bytes) -> bool:
    """Most of the first lines are of an access log or of an error log."""
    return most_lines(head, _MARK)


@collector(WEB, looks_like=looks_like_web_access, strength=60)
def web_access(records: Iterable[Record]) -> Iterator[Event]:
    """Read access and error logs, bare or behind an envelope of syslog."""
    for record in records:
        line = record.data[:LINE_MAX].decode("utf-8", "backslashreplace")
        bare = Envelope(record.received, line, time_source="collector")
        try:
            event = read_web(bare, record, 0)
            if event is None:
                around = envelope(record.data[:LINE_MAX], record.received)
                event = read_web(around, record, 0)
        except ValueError:
            event = None
        yield event or Event.malformed(record, WEB, why="no line of a web server")


def read_web(around: Envelope, record: Record, number: int) -> Event | None:
    """Read one line of an access or error log; None if it is none."""
    line = around.message
    if found := _ACCESS.match(line):
        return _access(found, around, record, number)
    if found := _NGINX.match(line):
        return _nginx(found, around, record, number)
    if (found := _APACHE.match(line)) and (found["month"] or around.app or found["level"]):
        return _apache(found, around, record, number)
    if found := _PROXY.match(line):
        return _proxy(found, around, record, number)
    return None


def _access(found: re.Match[str], around: Envelope, record: Record, number: int) -> Event | None:
    head, stamp, request, status, size, referrer, agent, rest = found.groups()
    fields: dict[str, Any] = {}
    if not _client(head.split(), fields):
        return None
    if asked := _REQUEST.match(request):
        _asked(asked, fields)
    else:  # no HTTP: what a scanner sent to see what answers
        fields["url.original"] = clean(request)
        fields["event.reason"] = "no request of HTTP"
    if size != "-":
        fields["destination.bytes"] = int(size)
    if rest.strip():
        fields["cw.vendor"] = {"rest": clean(rest.strip())}
    return _event(stamp, status, referrer, agent, fields, around, record, number)


def _proxy(found: re.Match[str], around: Envelope, record: Record, number: int) -> Event | None:
    fields: dict[str, Any] = {
        "http.request.method": found["method"],
        "url.scheme": found["scheme"],
        "url.domain": clean(found["host"]),
    }
    if not _client([found["head"]], fields):
        return None
    _url(found["url"], fields)
    if found["bytes"] != "-":
        fields["destination.bytes"] = int(found["bytes"])
    said = found["time"], found["status"], found["referrer"], found["agent"]
    return _event(*said, fields, around, record, number)


def _client(parts: list[str], fields: dict[str, Any]) -> bool:
    """Client, perhaps with a virtual host before it, and user; false if there is no client."""
    at = 0
    ip = address(parts[0])
    if ip is None and len(parts) > 1 and _VHOST.match(parts[0]) and (ip := address(parts[1])):
        at = 1
        host, _, number = parts[0].rpartition(":")
        fields["url.domain"] = clean(host if host and number.isdigit() else parts[0])
    if ip is None:
        if len(parts) != 3 or not _VHOST.match(parts[0]):
            return False
        fields["source.domain"] = clean(parts[0])
    else:
        fields["source.ip"] = ip
    user = " ".join(parts[at + 2 :]) if len(parts) > at + 2 else "-"
    if user not in ("-", '""'):
        fields["user.name"] = clean(user)
    return True


def _asked(asked: re.Match[str], fields: dict[str, Any]) -> None:
    fields["http.request.method"] = asked["method"]
    if asked["version"]:
        fields["http.version"] = asked["version"]
    _url(asked["url"], fields)


def _url(url: str, fields: dict[str, Any]) -> None:
    fields["url.original"] = clean(url)
    path, asks, query = url.partition("?")
    fields["url.path"] = clean(path)
    if asks:
        fields["url.query"] = clean(query)


def _event(
    stamp: str,
    status: str,
    referrer: str | None,
    agent: str | None,
    fields: dict[str, Any],
    around: Envelope,
    record: Record,
    number: int,
) -> Event:
    own: dict[str, Any] = {
        "event.category": ["web"],
        "event.action": "http_request",
        "event.dataset": "web.access",
        "network.protocol": "http",
        **fields,
        "cw.time_source": "source",
    }
    if status != "-":
        code = int(status)
        own["http.response.status_code"] = code
        own["event.outcome"] = "failure" if code >= 400 else "success"
    if referrer and referrer != "-":
        own["http.request.referrer"] = clean(referrer)
    if agent and agent != "-":
        own["user_agent.original"] = clean(agent)
    return Event(_time(stamp), WEB, {**enveloped(around, own), **own}, record, number)


@lru_cache(maxsize=4_096)
def _time(stamp: str) -> datetime:
    """`08/Dec/2021:09:16:05 +0000`; without a zone it is UTC."""
    date, _, clock = stamp.partition(":")
    day, month, year = date.split("/")
    clock, _, zone = clock.partition(" ")
    hour, minute, second = map(int, clock.split(":"))
    away = timedelta(hours=int(zone[:3]), minutes=int(zone[0] + zone[3:])) if zone else timedelta()
    found = datetime(int(year), MONTHS.get(month, 0), int(day), hour, minute, min(second, 59))
    try:
        return found.replace(tzinfo=timezone(away)).astimezone(UTC)
    except OverflowError:
        raise ValueError(f"no time: {stamp!r}") from None


def _nginx(found: re.Match[str], around: Envelope, record: Record, number: int) -> Event:
    message = found["message"]
    fields: dict[str, Any] = {"log.level": found["level"], "process.pid": int(found["pid"])}
    said = message
    if client := _NGINX_CLIENT.match(message):
        said = client["said"]
        if ip := address(client["ip"]):
            fields["source.ip"] = ip
        if client["request"] and (asked := _REQUEST.match(client["request"])):
            _asked(asked, fields)
        if host := client["host"] or client["server"]:
            fields["url.domain"] = clean(host)
    time = datetime.strptime(found["time"], "%Y/%m/%d %H:%M:%S").replace(tzinfo=UTC)
    around = msgspec.structs.replace(around, time=time, time_source="source", pid=None)
    return _error("nginx", said, fields, around, record, number)


def _apache(found: re.Match[str], around: Envelope, record: Record, number: int) -> Event:
    fields: dict[str, Any] = {"log.level": found["level"]}
    if found["pid"]:
        fields["process.pid"] = int(found["pid"])
    if ip := address(found["ip"]):
        fields["source.ip"] = ip
        if found["port"] and (number_of := count(found["port"])) is not None:
            fields["source.port"] = min(number_of, 65_535)
    said = found["message"]
    if code := _CODE.match(said):
        fields["event.code"] = code[1]
        said = said[code.end() :]
    if found["month"]:
        at = f"{found['month']} {found['day']} {found['year']} {found['clock']} apache: "
        dated = envelope(at.encode(), record.received)
        time = dated.time
        if found["part"]:
            time = time.replace(microsecond=int((found["part"] + "00000")[:6]))
        around = msgspec.structs.replace(around, time=time, time_source="source")
    return _error("apache", said, fields, around, record, number)


def _error(
    product: str,
    said: str,
    fields: dict[str, Any],
    around: Envelope,
    record: Record,
    number: int,
) -> Event:
    """An event of an error log: a failed login, a refused request, or what it says."""
    own: dict[str, Any] = {
        "event.category": ["web"],
        "event.action": "web_error",
        "event.dataset": f"{product}.error",
        "message": clean(said),
        **fields,
    }
    words, _, referrer = said.rpartition(", referer: ") if ", referer: " in said else (said, "", "")
    if referrer:
        own["http.request.referrer"] = clean(referrer)
    login = next((one for pattern in _LOGINS if (one := pattern.match(words))), None)
    if login is not None and "source.ip" in own:
        own["event.category"] = ["authentication", "web"]
        own["event.action"], own["event.outcome"] = "web_login", "failure"
        if login["user"].strip():
            own["user.name"] = clean(login["user"])
    elif words.startswith(("access forbidden by rule", "client denied by server configuration")):
        own["event.action"], own["event.type"] = "web_denied", ["denied"]
    elif words.startswith(("limiting ", "delaying ")):
        own["event.action"], own["event.type"] = "web_limited", ["denied"]
    own["event.reason"] = clean(words[:1_000])
    return Event(around.time, ERRORS[product], enveloped(around, own), record, number)
