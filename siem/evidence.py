"""What the actuator for evidence is given: rings, dissectors, and a place on the finding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from siem.config import Settings

RINGS = "ring"
"""Folder of the packets that interfaces keep, one below it a source."""
EVIDENCE = "evidence"

Tell = Callable[[str, Mapping[str, Any]], None]


class Findings(Protocol):
    """Where findings are."""

    def attach(self, finding: str, entry: Mapping[str, Any], now: datetime) -> bool:
        """Write an entry of evidence on a finding, once."""
        ...


def given(settings: Settings, tell: Tell | None = None) -> dict[str, dict[str, Any]]:
    """Arguments of actuators that no settings file can say, by the name of the actuator."""
    from collectors.packets.ring import cut

    state = settings.state_path
    return {
        "evidence": {
            "folder": state / EVIDENCE,
            "cut": partial(cut, state / RINGS),
            "dissect": dissected,
            "tell": tell,
            "holder": settings.operator,
        }
    }


def teller(findings: Findings, clock: Callable[[], datetime]) -> Tell:
    """Writes entries of evidence on the findings of a node."""

    def tell(finding: str, entry: Mapping[str, Any]) -> None:
        findings.attach(finding, entry, clock())

    return tell


def dissected(capture: Path) -> Sequence[tuple[str, Mapping[str, Any]]]:
    """What each dissector made of a capture."""
    from collectors.packets.dissect import dissect

    return [
        (
            one.tool,
            {
                "frames": one.frames,
                "deaths": list(one.deaths),
                "notes": list(one.notes),
                "file": one.path.name if one.path else "",
            },
        )
        for one in dissect(capture)
    ]
