"""Web servers: requests, refusals and failed logins, against CrowdSec, fail2ban and Wazuh."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.logs.web_access import looks_like_web_access, web_access
from tests.collectors.suites import crowdsec_parsed, member, members, wazuh_cases

NOW = datetime(2026, 3, 1, tzinfo=UTC)
CROWDSEC = "logs/suite_crowdsec_hub_tests.tar.gz"
FAIL2BAN = "logs/suite_fail2ban_labelled_logs.tar.gz"
ACCESS = (
    b'www.example.net:80 192.0.2.1 - ann lee [08/Jun/2020:08:04:43 +0200] "GET /a/b?x=1 HTTP/1.1" '
    b'301 12 "http://r/" "curl/7 \\"x\\"" "-"'
)
NGINX = (
    b'2012/04/09 11:53:29 [error] 2865#0: *66647 user "xyz" was not found in "/var/.htpasswd", '
    b'client: 192.0.43.10, server: www.myhost.com, request: "GET / HTTP/1.1", host: "www.h.com"'
)
APACHE = (
    b"[Sat Jul 20 21:39:11.978080 2013] [auth_basic:error] [pid 17512:tid 1401] [client "
    b'192.0.2.1:51390] AH01617: user username: authentication failure for "/f": Password Mismatch'
)


def _read(line: bytes) -> Event:
    (event,) = web_access([Record(line, "s", 0, NOW)])
    return event


def test_a_request_is_read_with_all_its_parts() -> None:
    event = _read(ACCESS)

    fields = event.fields
    assert event.time == datetime(2020, 6, 8, 6, 4, 43, tzinfo=UTC)
    assert (fields["url.domain"], fields["source.ip"]) == ("www.example.net", "192.0.2.1")
    assert fields["user.name"] == "ann lee"
    assert (fields["url.original"], fields["url.path"]) == ("/a/b?x=1", "/a/b")
    assert (fields["url.query"], fields["http.version"]) == ("x=1", "1.1")
    assert (fields["http.response.status_code"], fields["destination.bytes"]) == (301, 12)
    assert fields["http.request.referrer"] == "http://r/"
    assert fields["user_agent.original"] == r"curl/7 \"x\""
    assert fields["event.outcome"] == "success"
    assert str(event.logsource) == "*/webserver/*"


def test_a_request_that_is_no_http_is_kept_as_it_was_sent() -> None:
    event = _read(rb'1.2.3.4 - - [29/Jul/2023:10:26:06 -0700] "\x16\x03\x01" 400 157 "-" "-"')

    assert event.fields["url.original"] == r"\x16\x03\x01"
    assert event.fields["event.reason"] == "no request of HTTP"
    assert "user_agent.original" not in event.fields


@pytest.mark.parametrize(("line", "user"), [(NGINX, "xyz"), (APACHE, "username")])
def test_a_failed_login_of_an_error_log_names_who_and_whence(line: bytes, user: str) -> None:
    fields = _read(line).fields

    assert (fields["event.action"], fields["event.outcome"]) == ("web_login", "failure")
    assert fields["user.name"] == user
    assert fields["source.ip"] in ("192.0.43.10", "192.0.2.1")


@pytest.mark.parametrize(
    "head",
    [
        b"<190>Feb  1 10:00:00 web1 nginx: ",
        b"Feb  1 10:00:00 web1 nginx: ",
        b"Feb 11 10:00:00 web1 nginx[7]: ",
        b"2024-02-01T10:00:00+00:00 web1 nginx: ",
        b"<190>1 2024-02-01T10:00:00Z web1 nginx - - - ",
    ],
)
def test_a_line_behind_an_envelope_is_read(head: bytes) -> None:
    event = _read(head + ACCESS)

    assert (event.fields["host.name"], event.fields["source.ip"]) == ("web1", "192.0.2.1")
    assert event.fields["url.domain"] == "www.example.net"
    assert event.time.year == 2020


def test_a_client_that_is_named_is_a_domain() -> None:
    event = _read(b'client.example - - [08/Jun/2020:08:04:43 +0200] "GET / HTTP/1.1" 200 12')

    assert event.fields["source.domain"] == "client.example"


NAMES = {
    "remote_addr": "source.ip",
    "source_ip": "source.ip",
    "clientip": "source.ip",
    "verb": "http.request.method",
    "http_verb": "http.request.method",
    "request": "url.original",
    "http_version": "http.version",
    "status": "http.response.status_code",
    "http_status": "http.response.status_code",
    "response": "http.response.status_code",
    "http_user_agent": "user_agent.original",
    "body_bytes_sent": "destination.bytes",
    "remote_user": "user.name",
    "target_fqdn": "url.domain",
}
"""CrowdSec's names for our fields."""
NOT_CLAIMED = {
    "base-upsun-httplog-logs": "JSON of one hosting company",
    "nginx-mail-logs": "nginx as a mail proxy",
    "nginx-mail-bf": "nginx as a mail proxy",
    "nginx_http-catch-npm": "a format of NPMplus of its own",
    "npmplus-logs": "a format of NPMplus of its own",
}
DIFFERENT = {
    "request": "CrowdSec cuts the query, or the scheme, off what was asked; we keep it whole",
}
_PARSERS = re.compile(r"/(?:nginx-logs|apache2-logs|nginx-proxy-manager-logs)")


def test_crowdsec_and_we_read_the_same_requests(data: Path) -> None:
    archive = data / CROWDSEC
    names = set(members(archive))
    cases = [
        name.split("/")[-2]
        for name in names
        if name.endswith("config.yaml")
        and _PARSERS.search(member(archive, name))
        and name.replace("config.yaml", "parser.assert") in names
    ]
    claimed, differences = 0, []

    for case in sorted(set(cases) - set(NOT_CLAIMED)):
        for line, want in zip(*crowdsec_parsed(archive, case), strict=True):
            fields = _read(line).fields
            for name, field in NAMES.items():
                value = want.get(name, "-")
                if value in ("-", ""):
                    continue
                claimed += 1
                if str(fields.get(field)) != value and fields.get("url.path") != value:
                    differences.append((case, name, value, fields.get(field)))

    print(f"web: {claimed - len(differences)}/{claimed} agree with CrowdSec")
    assert claimed > 850
    assert {name for _, name, _, _ in differences} <= set(DIFFERENT)
    assert len(differences) / claimed <= 0.03


FILTERS = {
    "nginx-http-auth": "web_login",
    "apache-auth": "web_login",
    "nginx-forbidden": "web_denied",
    "nginx-limit-req": "web_limited",
    "nginx-bad-request": "http_request",
}
"""A filter of fail2ban and our action for what it matches."""
BROADER = {
    "apache-auth": "it also counts refused files and wrong SSL names as failures of a login; "
    "we say `web_denied` and `web_error`",
    "nginx-http-auth": "its fallback mode also counts broken handshakes of TLS; we do not",
}
JOURNAL = "host nginx"
"""Three lines whose time is not in the line; fail2ban takes it from the journal."""


@pytest.mark.parametrize("name", FILTERS)
def test_fail2ban_and_we_name_the_same_client(name: str, data: Path) -> None:
    lines = [line for line in member(data / FAIL2BAN, name).split("\n") if line.strip()]
    labels = agree = 0
    broader = 0

    for number, line in enumerate(lines):
        if not line.startswith("# failJSON:") or lines[number + 1].startswith(JOURNAL):
            continue
        label: dict[str, Any] = json.loads(line.removeprefix("# failJSON:"))
        fields = _read(lines[number + 1].encode()).fields
        ours = fields.get("event.action") == FILTERS[name]
        labels += 1
        if label["match"] and not ours:
            broader += 1
            agree += fields.get("source.ip") == label["host"]
        elif label["match"]:
            agree += fields.get("source.ip") == label["host"]
        else:
            agree += not ours or name == "nginx-bad-request"

    print(f"{name}: {agree}/{labels} agree with fail2ban, {broader} are broader there")
    assert agree / labels >= 0.97
    assert broader == 0 or name in BROADER


@pytest.mark.parametrize("file", ["nginx.ini", "apache.ini", "web_appsec.ini"])
def test_every_line_of_wazuh_in_these_formats_is_read(data: Path, file: str) -> None:
    cases = wazuh_cases(data / "logs/suite_wazuh_rule_tests.tar.gz", file)
    decoders = ("nginx-errorlog", "apache-errorlog", "web-accesslog")
    wanted = [case for case in cases if case.decoder in decoders and b" W3SVC" not in case.line]

    unread = [case.line for case in wanted if _read(case.line).is_malformed]

    print(f"{file}: {len(wanted) - len(unread)}/{len(wanted)} agree with Wazuh")
    assert unread == []


def test_web_access_keeps_the_promises_of_a_collector() -> None:
    assert looks_like_web_access(ACCESS)
    assert looks_like_web_access(NGINX)
    assert looks_like_web_access(APACHE)
    check_collector(web_access, [ACCESS, NGINX, APACHE])


def test_a_long_line_takes_no_long_time() -> None:
    for part in (b'1.1.1.1 - - [01/Jan/2020:00:00:00 +0000] "', b"[error] ", b"a " * 99):
        _read(part + b"\\\\" * 200_000)
        _read(part * 9_000)
