"""What the hub's console needs from the hub behind it; `siem/city/hub.py` fulfils it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from siem.city.commons import Records
from siem.city.known import Duty, Link, Shares, Told
from siem.city.proposals import Playbook
from siem.city.town import Town
from siem.console.protocol import Cased
from siem.store.protocol import Person


class CityConsole(Cased, Protocol):
    """A hub as its console sees it; `operator` is `city`, `sector` is empty."""

    @property
    def town(self) -> Town:
        """Name, services and districts of the city, from its own two files."""
        ...

    @property
    def records(self) -> Records:
        """The hub's memory; the console keeps kinds `service`, `change` and `visit` in it."""
        ...

    def reading(self, person: Person) -> Shares:
        """Shared findings as this person may see them."""
        ...

    def links(self) -> Sequence[Link]:
        """Every operator that was ever enrolled, by its id."""
        ...

    def told(self, campaign_id: str) -> Sequence[Told]:
        """What operators were told of a campaign (its share id), newest first."""
        ...

    def proposable(self) -> Sequence[Playbook]:
        """Playbooks that may be proposed: those that ship and act."""
        ...

    def concerned(self, campaign_id: str) -> Sequence[str]:
        """Operators that were told of a campaign, to whom something may be proposed."""
        ...

    def propose(
        self, campaign_id: str, playbook: str, operators: Sequence[str], reason: str, by: str
    ) -> None:
        """Have a response proposed to operators of a campaign; they decide.

        Raises:
            InputError: nothing of it may be proposed.
        """
        ...

    def duties(self, person: Person) -> Sequence[Duty]:
        """Clocks of all open cases that are told of, soonest first."""
        ...

    def facts(self) -> Mapping[str, str]:
        """What the line at the bottom and Operators say of hub and store, in order."""
        ...
