"""Parts of strangers: what cannot be loaded is named, and the rest is."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from cityward import plugin

GROUP = "cityward.collectors"
OURS = EntryPoint("sshd", "collectors.logs.sshd:sshd", GROUP)
POINTS = EntryPoints(
    [
        EntryPoint("gone", "no_such_module_of_anyone:collect", GROUP),
        EntryPoint("unmarked", "json:loads", GROUP),
        OURS,
    ]
)


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "entry_points", lambda group: POINTS.select(group=group))


@pytest.mark.usefixtures("strangers")
def test_a_part_that_cannot_be_loaded_is_named_and_the_rest_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        found = plugin.load("collectors")

    assert found == {"sshd": OURS.load()}
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == [
        "entry point gone = no_such_module_of_anyone:collect in cityward.collectors is left out",
        "entry point unmarked = json:loads in cityward.collectors is left out",
    ]


@pytest.mark.usefixtures("strangers")
def test_what_is_left_out_is_told_with_its_reason() -> None:
    told = [error.what for error in plugin.broken("collectors")]

    assert told == [
        "ModuleNotFoundError: No module named 'no_such_module_of_anyone'",
        "TypeError: json:loads is not marked as one of the collectors",
    ]
