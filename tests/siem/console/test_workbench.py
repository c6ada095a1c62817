"""The rule workbench in the console: written, checked, tried, previewed, deployed, taken back."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.siem.console.conftest import csrf_of
from tests.siem.console.fake import FakeNode
from tests.siem.test_tuning import NOW, RULE, RULE_ID, SAMPLES, attempts, seen

Enter = Callable[..., TestClient]
ENGINEER, OTHER = "b.oth", "e.ngineer"
EDIT = f"/rules/{RULE_ID}/edit"
LOUDER = RULE.replace("level: medium", "level: high")
LINE = "2026-01-05T10:00:00Z gw sshd[7]: Failed password for root from 192.0.2.7 port 4000 ssh2"


@pytest.fixture
def node(node: FakeNode) -> FakeNode:
    """One with real findings of a real rule."""
    seen(node.tuning._settings, node.db, [*attempts("192.0.2.7"), *attempts("192.0.2.8", minute=1)])
    node.findings = node.db  # type: ignore[assignment]
    node.clock = NOW
    return node


def form(client: TestClient, **said: Any) -> dict[str, Any]:
    token = csrf_of(client.get("/keys").text)
    return {"csrf": token, "text": RULE, "samples": SAMPLES, "seen": "0", "draft": "", **said}


def in_textarea(page: str, name: str) -> str:
    found = re.search(rf'<textarea id="{name}"[^>]*>\n(.*?)</textarea>', page, re.DOTALL)
    assert found
    return html.unescape(found[1])


def test_a_rule_is_opened_with_its_text_and_its_samples(node: FakeNode, signed_in: Enter) -> None:
    page = signed_in(ENGINEER).get(EDIT).text

    assert in_textarea(page, "text") == RULE
    assert in_textarea(page, "samples") == SAMPLES
    assert "samples 2 of 2" in page
    assert "its file counts" in page
