"""The playbooks of the exercise, signed by a key that is made for it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from playbooks import sign
from siem.exercise.saltmere import DATA
from siem.sharing.certificates import write_secret

PLAYBOOK = "remote-access-guessing"
"""By this name the city proposes it; what it does here is the operators' own word."""
KEY = "saltmere"


class Shelf:
    """A folder with a signed playbook, as all operators of Saltmere have it.

    Args:
        folder: Where it is; made anew.
        stop_file: While it is there nothing is applied; None: that of each node's own state.
    """

    def __init__(self, folder: Path, stop_file: Path | None = None) -> None:
        self._folder = folder
        self._public = folder / f"{KEY}.pub.yml"
        self._stop_file = stop_file

    def fill(self, actuator: str, block_s: int, now: datetime) -> None:
        """Write the playbook and sign it.

        Args:
            actuator: What its step is done by.
            block_s: How long the stranger is kept out.
            now: When it is signed.
        """
        text = (DATA / f"{PLAYBOOK}.yml").read_text(encoding="utf-8")
        text = text.replace("agent: nftables", f"agent: {actuator}")
        text = text.replace("time_box: PT10S", f"time_box: PT{block_s}S")
        private, public = sign.new_key(now)
        playbooks = self._folder / "playbooks"
        playbooks.mkdir(parents=True)
        self._public.write_bytes(public)
        write_secret(self._folder / f"{KEY}.key", private)
        playbook = playbooks / f"{PLAYBOOK}.yml"
        playbook.write_text(text, encoding="utf-8")
        sign.beside(playbook).write_bytes(sign.sign(playbook.read_bytes(), private, KEY, now))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The section `response` of a node that has it."""
        stop = {"stop_file": str(self._stop_file)} if self._stop_file else {}
        return {
            "on": True,
            "exercises": True,
            "shipped": False,
            "folders": [str(self._folder / "playbooks")],
            "keys": [str(self._public)],
            **stop,
        }
