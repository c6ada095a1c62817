"""Operators with rules and findings that were right, and a hub that passes their samples on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectors.sigma.load import load_folder
from siem import config
from siem.city.links import hearing
from siem.city.samples import SAMPLE
from siem.city.samples import Samples as CitySamples
from siem.config import Settings
from siem.releasing import Releasing
from siem.sharing.external import Plan
from siem.sharing.policy import Samples
from siem.store.protocol import Document
from siem.tuning import Tuner
from tests.playbooks.kit import Clock
from tests.siem.sharing.proposing import City, Operator, TokenPolicy
from tests.siem.test_tuning import FILTER, MANY, MANY_ID, RULE, RULE_ID, attempts, right, seen

ATTACKER, OURS = "198.51.100.7", "10.1.2.3"
USER = "m.rossi"


class Town(City):
    """A hub that passes samples on."""

    def begin(self, by_itself: Any = None) -> None:
        super().begin(by_itself)
        exchange = self.ends.exchange
        self.samples = CitySamples(
            self.ends.commons.records, exchange.letters, self.names,
            lambda: {RULE_ID, MANY_ID}, b"of a test", self.clock, self.words_of,
        )  # fmt: skip
        exchange.samples = self.samples

    def names(self) -> list[str]:
        return hearing(self.ends.operators, self.ends.commons.records, SAMPLE, self.clock())

    @property
    def kept(self) -> list[dict[str, Any]]:
        """Samples that the hub has."""
        return [one.value for _, one in self.ends.commons.records.all(SAMPLE)]

    def letters(self) -> bytes:
        """All that the hub has left for operators."""
        every = [one.value["data"] for _, one in self.ends.commons.records.all("letter")]
        return "\n".join(every).encode()


class Node(Operator):
    """An operator that has the rules of everybody, and a policy that a test sets."""

    def __init__(self, folder: Path, name: str, city: City, **samples: Any) -> None:
        policy: Any = TokenPolicy(lets_out=lambda document: False)
        policy.samples = Samples(**{"release": "person", **samples})
        policy.plan = Plan(["10.0.0.0/8", "192.0.2.0/24"])
        rules = folder / name / "rules"
        rules.mkdir(parents=True, exist_ok=True)
        (rules / "wrong.yml").write_text(RULE)
        (rules / "many.yml").write_text(MANY)
        self.settings = Settings(
            operator=name,
            state_dir=str(folder / name),
            rules=config.Rules(shipped=False, folders=(str(rules),)),
        )
        super().__init__(folder, name, city, policy=policy)

    def begin(self) -> None:
        super().begin()
        shared = self.city.shared = load_folder(Path(self.settings.rules.folders[0]))
        self.releasing = Releasing(
            self.settings, self.db, lambda: self.policy, self.clock, lambda: shared
        )

    def was_right(
        self, source: str = ATTACKER, count: int = 1, user: str = USER, rule: str = RULE_ID
    ) -> Document:
        """A finding of somebody's attempts that a person calls right."""
        seen(self.settings, self.db, attempts(source, count=count, user=user))
        return right(self.db, f"rule.id:{rule} and source.ip:{source}")

    def release(self, finding: Document, by: str = "ada", reason: str = "it was real") -> str:
        id = finding["finding.id"]
        return self.releasing.release(id, self.releasing.offer(id).seen, by, reason)

    def round(self) -> None:
        """Tell the hub, have it pass on, hear it."""
        self.send()
        self.city.samples.step()
        self.hear()

    @property
    def tuner(self) -> Tuner:
        return Tuner(self.settings, self.db)

    def refusal_of(self, source: str) -> list[str]:
        """What forbids a filter on a source here."""
        return self.tuner.examine(FILTER.replace("SOURCE", source)).reasons()

    @property
    def foreign(self) -> list[Document]:
        """Events of others that are protected here."""
        return [one.event for one in self.db.rulebook.protected() if one.operator]


def two(folder: Path, clock: Clock, **samples: Any) -> tuple[Town, Node, Node]:
    """A town with two operators."""
    town = Town(folder, clock)
    return town, Node(folder, "op-metro", town, **samples), Node(folder, "op-grid", town, **samples)
