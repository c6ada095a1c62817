"""`operator join`, `ledger` and `doctor`, as a person types them, against a fake hub behind TLS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from siem import assembly, cli, outward
from siem.config import Settings, load
from siem.hub import hub_of
from siem.sharing.drop import Drop, read_drop
from siem.sharing.identity import Identity
from siem.sharing.link import Link
from tests.siem.sharing.server import FakeServer
from tests.siem.sharing.standin import OPERATOR, Clock, FakeHub, match

POLICY = f"""
policy: {OPERATOR}/test
operator: {OPERATOR}
inherits: baseline-2026
defaults:
  tlp: amber+strict
  pap: amber
  retention: 90d
  approval: auto
  fields: {{finding.first_seen: round, finding.last_seen: round, finding.severity: keep}}
audiences: [city-soc]
rules:
  - name: all
    when: {{finding.type: [detection]}}
    fields: {{finding.type: keep}}
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Site:
    """A node's folder, and the command on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.hub = FakeHub(Identity(folder / "state").signing_key())
        self.server = FakeServer(folder, self.hub, Clock(datetime.now(UTC)))
        (folder / "policy.yml").write_text(POLICY)
        (folder / "token").write_text(self.server.said + "\n")
        self.write(f'hub = "{self.server.url}"')

    def write(self, sharing: str) -> None:
        """The settings file."""
        (self.folder / "cityward.toml").write_text(
            f'operator = "{OPERATOR}"\nstate_dir = "{self.folder}/state"\n'
            f"[models]\non = false\n[rules]\nshipped = false\n[sharing]\n{sharing}\n"
            f'policy = "{self.folder}/policy.yml"\n'
        )

    @property
    def settings(self) -> Settings:
        return load(self.folder / "cityward.toml")

    def run(self, *words: str) -> Said:
        code = cli.run([*words, "--config", str(self.folder / "cityward.toml")])
        said = self._capsys.readouterr()
        return Said(code, said.out, said.err)

    def join(self, *words: str) -> Said:
        return self.run("operator", "join", self.server.url, *words)

    def share(self, findings: int) -> None:
        """As `cityward run` does, but in this thread."""
        node = assembly.node_of(self.settings, sources=[])
        carrier = outward.carrier_of(self.settings, node)
        assert carrier is not None
        node.db.keep([match(number, at=node.clock()) for number in range(findings)], 1)
        while carrier.turn():
            pass
        node.close()


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Site]:
    made = Site(tmp_path, capsys)
    yield made
    made.server.close()


def rows(said: Said) -> Sequence[dict[str, object]]:
    return [msgspec.json.decode(line) for line in said.out.splitlines()]


def test_a_node_joins_shares_and_proves_what_it_sent(site: Site) -> None:
    joined = site.join("--token-file", str(site.folder / "token"))
    site.share(3)
    found = rows(site.run("ledger", "search", "share"))
    proof = site.run("ledger", "verify")
    exported = rows(site.run("ledger", "export"))
    doctor = site.run("doctor").out

    assert joined.code == 0, joined.err
    assert f"{OPERATOR} has joined {site.server.url}" in joined.out
    assert len(site.hub.documents) == 3
    assert {(one["type"], one["state"], one["rule"]) for one in found} == {
        ("share", "receipted", "all")
    }
    assert (proof.code, "state      whole" in proof.out) == (0, True)
    assert [one["seq"] for one in exported] == [1, 2, 3, 4]
    assert "3 shared, 0 wait, 0 want a yes" in doctor


def test_a_ledger_that_somebody_changed_leaves_with_3(site: Site) -> None:
    site.join("--token-file", str(site.folder / "token"))
    site.share(1)
    node = assembly.node_of(site.settings, sources=[])
    with node.db._writing() as db:
        db.execute("DROP TRIGGER ledger_unchanged")
        db.execute("DROP TRIGGER ledger_receipted")
        db.execute("UPDATE ledger SET rule = 'other' WHERE seq = 2")
    node.close()

    proof = site.run("ledger", "verify")

    assert (proof.code, "record 2 was changed" in proof.out) == (3, True)


def test_a_token_comes_from_a_variable_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITY_TOKEN", site.server.said)

    assert site.join("--token-env", "CITY_TOKEN").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "one place has to hold the token"),
        (("--token-env", "A", "--token-file", "token"), "one place has to hold the token"),
        (("--token-env", "NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE is empty"),
        (("--token-file", "/no/such/file"), "the token cannot be read"),
    ],
)
def test_a_token_that_is_nowhere_is_asked_for(
    site: Site, words: tuple[str, ...], said: str
) -> None:
    done = site.join(*words)

    assert (done.code, said in done.err) == (2, True)


def test_a_token_of_another_operator_is_not_used(site: Site) -> None:
    other = msgspec.structs.replace(site.server.token, name="op-port").text("cwo1.")
    (site.folder / "token").write_text(other)

    done = site.join("--token-file", str(site.folder / "token"))

    assert done.code == 2
    assert f"the token is for op-port, this node is {OPERATOR}" in done.err
    assert site.server.asked == []


def test_a_node_that_cannot_call_the_hub_is_admitted_by_a_file_and_shares_through_the_drop(
    site: Site, tmp_path: Path
) -> None:
    (tmp_path / "city.toml").write_text(
        f'operator = "city"\nstate_dir = "{tmp_path}/city"\n[hub]\n'
    )
    hub = ("--config", str(tmp_path / "city.toml"))
    cli.run(["operator", "enrol", OPERATOR, *hub])
    (tmp_path / "token").write_text(site._capsys.readouterr().out)
    site.write(f'drop_dir = "{tmp_path}/drop"')
    asked = site.run(
        "operator", "request", f"{tmp_path}/r.json", "--token-file", f"{tmp_path}/token"
    )
    admitted = cli.run(["operator", "admit", f"{tmp_path}/r.json", *hub])
    again = cli.run(["operator", "admit", f"{tmp_path}/r.json", *hub])
    site.share(2)
    city = hub_of(load(tmp_path / "city.toml"))
    city.lease.step()

    taken = [city.exchange.take(one.operator, one.signed) for one in read_drop(tmp_path / "drop")]

    city.close()
    assert (asked.code, admitted, again) == (0, 0, 6)
    assert len(taken) == 3


def test_doctor_says_that_a_node_has_not_joined(site: Site) -> None:
    assert "this node has not joined it" in site.run("doctor").out


@pytest.mark.parametrize(
    ("sharing", "kind"),
    [("", type(None)), ('hub = "https://hub:1"', Link), ('drop_dir = "d"', Drop)],
)
def test_the_settings_say_how_findings_leave(site: Site, sharing: str, kind: type) -> None:
    site.write(sharing)
    node = assembly.node_of(site.settings, sources=[])

    assert isinstance(outward.carrier_of(site.settings, node), kind)
    node.close()


def test_a_heartbeat_says_whether_the_node_sees(site: Site) -> None:
    site.join("--token-file", str(site.folder / "token"))
    site.share(0)

    beat = site.hub.taken[0].payload

    assert (beat["mode"], beat["running"], beat["lost"]) == ("normal", 0, [])
    assert beat["version"]
    assert len(beat["policy"]) == 64
