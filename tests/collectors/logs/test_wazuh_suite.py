"""Wazuh's cases of sshd, through a syslog port: how an attempt ended."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cityward import Record
from collectors.logs.syslog import syslog
from tests.collectors.suites import wazuh_cases

NOW = datetime(2026, 3, 1, tzinfo=UTC)
FAILED = ["5710", "5716", "5758", "64251", "64253", "64254", "64260"]
BROKEN = ["5747", "5748", "5749", "5752", "5753", "64257", "64259", "64264"]
MEANT = {
    **dict.fromkeys(FAILED, ("ssh_login", "failure")),
    **dict.fromkeys(BROKEN, ("", "failure")),
    "64256": ("ssh_login", "success"),
}
"""Rules about an attempt, and what our event must say; an empty action: whatever broke it."""
NOT_CLAIMED = {
    b"Postponed keyboard-interactive": "the attempt is not over; how it ends is another line",
    b"Failed none": "clients ask so for the methods there are; no password was tried",
}
"""Lines on which we differ on purpose."""


@pytest.mark.parametrize("file", ["sshd.ini", "macos-sshd.ini"])
def test_wazuh_and_we_agree_how_an_attempt_ended(data: Path, file: str) -> None:
    claimed, differences = 0, []

    for case in wazuh_cases(data / "logs/suite_wazuh_rule_tests.tar.gz", file):
        if case.rule not in MEANT or any(words in case.line for words in NOT_CLAIMED):
            continue
        action, outcome = MEANT[case.rule]
        event = next(iter(syslog([Record(case.line, "s", 0, NOW)])))
        claimed += 1
        said = event.fields.get("event.action"), event.fields.get("event.outcome")
        if said != (action or said[0], outcome):
            differences.append((case.line, said))

    print(f"{file}: {claimed - len(differences)}/{claimed} agree with Wazuh")
    assert claimed >= 10
    assert differences == []
