"""A rule that somebody switches off in the console is silent in the path, without a restart."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from siem import assembly
from siem import config as settings_file
from siem.node import now_utc
from siem.serve import Served
from siem.store.protocol import Switch

RULE = """\
title: Anything at all
id: 5b2d6a3c-9d1f-4f0e-8a59-2f6d3a1c7e10
status: test
level: low
author: somebody
license: MIT
logsource:
  product: linux
  service: sshd
detection:
  any:
    event.kind: event
  condition: any
"""
ID = "5b2d6a3c-9d1f-4f0e-8a59-2f6d3a1c7e10"


def test_a_switched_rule_is_silent_at_once_and_speaks_again(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "any.yml").write_text(RULE)
    (tmp_path / "cityward.toml").write_text(
        f'operator = "op-x"\nstate_dir = "{tmp_path / "state"}"\n[models]\non = false\n'
        f'[rules]\nshipped = false\nfolders = ["{tmp_path / "rules"}"]\n'
    )
    settings = settings_file.load(tmp_path / "cityward.toml")
    node = assembly.node_of(settings, sources=[])
    console = Served(settings)
    said: list[tuple[str, str, bool]] = []

    def look() -> None:
        node._due["states"] = 0.0
        node.conclude(())
        node._due["states"] = 0.0
        node.conclude(())
        (rule,) = console.rules()
        said.append((rule.state, rule.reason, rule.id in node.off))

    look()
    console.accounts.switch(Switch(ID, False, "tests at the mill", "ada", now_utc()))
    (shown,) = console.rules()
    look()
    on_again = Switch(ID, True, "the tests are over", "ada", now_utc() + timedelta(hours=1))
    console.accounts.switch(on_again)
    look()
    console.close()
    node.close()

    why = "switched off by ada: tests at the mill"
    assert said == [("on", "", False), ("not evaluated", why, True), ("on", "", False)]
    assert (shown.state, shown.reason) == ("not evaluated", why)
    assert (shown.author, shown.license) == ("somebody", "MIT")
