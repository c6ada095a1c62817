"""ZoneMinder: who tried to log in to the video recorder."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.logs.zoneminder import looks_like_zoneminder, zoneminder
from tests.collectors.suites import crowdsec_parsed, member

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OLD = (
    b"01/25/22 16:22:17.359785 web_php[118919].ERR [2001:db8::1] "
    b'[Login denied for user "test"] at /usr/share/zoneminder/www/includes/auth.php line 313'
)
NEW = (
    b"12/17/22, 10:31:29 PM MST.557710 web_php[254894].ERR [10.0.1.5] "
    b"[Could not retrieve user aaaa details] at /usr/share/zoneminder/www/includes/auth.php"
)


def _read(line: bytes) -> Event:
    (event,) = zoneminder([Record(line, "s", 0, NOW)])
    return event


def test_both_forms_of_a_line_are_read() -> None:
    old, new = _read(OLD), _read(NEW)

    assert old.time == datetime(2022, 1, 25, 16, 22, 17, 359_785, tzinfo=UTC)
    assert new.time == datetime(2022, 12, 17, 22, 31, 29, 557_710, tzinfo=UTC)
    assert (old.fields["source.ip"], old.fields["user.name"]) == ("2001:db8::1", "test")
    assert (new.fields["user.name"], new.fields["event.reason"]) == ("aaaa", "unknown user")
    assert (new.fields["process.name"], new.fields["process.pid"]) == ("web_php", 254894)


def test_a_name_that_ends_like_a_message_stays_a_name() -> None:
    line = OLD.replace(b'"test"', b'"x"] [Login successful for user "y"')

    assert _read(line).fields["event.outcome"] == "failure"


def test_a_line_of_syslog_is_read_too() -> None:
    event = _read(
        b'<11>Jan 25 16:22:17 nvr web_php[118919]: ERR [10.0.0.9] [Login denied for user "a"] at x'
    )

    assert (event.fields["host.name"], event.fields["source.ip"]) == ("nvr", "10.0.0.9")
    assert event.fields["event.action"] == "video_login"


def test_fail2ban_and_we_see_the_same_failures(data: Path) -> None:
    text = member(data / "logs/suite_fail2ban_labelled_logs.tar.gz", "zoneminder").split("\n")
    labels = 0
    for label, line in pairwise(text):
        if label.startswith("# failJSON:"):
            labels += 1
            said, event = json.loads(label.removeprefix("# failJSON:")), _read(line.encode())
            assert event.fields["source.ip"] == said["host"]
            assert event.fields["event.outcome"] == "failure"
            assert event.time.replace(microsecond=0, tzinfo=None).isoformat() == said["time"]

    assert labels == 3


def test_crowdsec_and_we_read_the_same(data: Path) -> None:
    archive = data / "logs/suite_crowdsec_hub_tests.tar.gz"
    lines, expected = crowdsec_parsed(archive, "zoneminder-logs")
    claimed = 0

    for line, want in zip(lines, expected, strict=True):
        fields = _read(line).fields
        if want.get("log_type") == "zm_failed_auth":
            claimed += 1
            assert fields["event.outcome"] == "failure"
            assert fields["source.ip"] == want["source_ip"]
            assert fields["user.name"] == want["username"]

    assert claimed >= 7


def test_the_attack_file_has_two_guessers_and_a_third(data: Path) -> None:
    raw = (data / "city/zoneminder_cctv_bruteforce.log").read_bytes()

    found = [_read(line) for line in raw.split(b"\n") if line]

    assert looks_like_zoneminder(raw)
    assert len(found) == 23
    assert [event for event in found if event.is_malformed] == []
    failed = Counter(
        event.fields["source.ip"]
        for event in found
        if event.fields["event.action"] == "video_login"
        and event.fields["event.outcome"] == "failure"
    )
    assert failed == {
        "2222:3333:444a:a300:3c65:1111:1111:1111": 7,
        "2222:3333:444a:a300:3c65:1111:1111:1112": 6,
        "10.0.1.5": 6,
    }


def test_zoneminder_keeps_the_promises_of_a_collector() -> None:
    check_collector(zoneminder, [OLD, NEW])
