"""The sharing policy of a node, put together from its settings: file, address plan, keys."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from cityward import Asset, CitywardError, ConfigError
from siem.assembly import secret_of
from siem.config import Settings
from siem.sharing.compiler import BASELINE, compile_policy, load_baseline
from siem.sharing.external import Plan, address_of
from siem.sharing.identity import Identity
from siem.sharing.ledger import Proof, prove
from siem.sharing.policy import Policy
from siem.sharing.readers import Read, readers
from siem.sharing.tokens import Hmac, Tokens, root_of
from siem.store.outgoing import OutgoingStore
from siem.store.proposals import ProposalStore

log = logging.getLogger(__name__)

AGAIN_S = 300.0
"""After so long the policy is read again although no file changed."""
LOCAL_KEY = "share-local.key"
"""Of the tokens that only this operator can make; it never leaves the state folder."""
JOIN_KEY = "join.key"
"""Where the root of the join tokens is, unless the settings name another place."""


def policy_of(
    settings: Settings,
    assets: Iterable[Asset] | None = None,
    *,
    file: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Policy | None:
    """The policy in force; None if the settings name none, so nothing leaves.

    Args:
        settings: What the file says.
        assets: Assets that count; otherwise those of the settings.
        file: Another policy, to try it.
        environment: Where the root of the join tokens may be.

    Raises:
        ConfigError: it is refused, or a key cannot be read.
    """
    named = settings.sharing.policy if file is None else file
    if not named:
        return None
    path = Path(named).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        what = f"the sharing policy cannot be read: {error.strerror}"
        raise ConfigError(what, str(path), "Check sharing.policy in the settings.") from error
    return compile_policy(
        data,
        str(path),
        plan=plan_of(settings, assets),
        tokens=tokens_of(settings, environment),
        operator=settings.operator,
        baseline=load_baseline(_baseline_path(settings)),
    )


def _baseline_path(settings: Settings) -> Path:
    named = settings.sharing.baseline
    return Path(named).expanduser() if named else BASELINE


def plan_of(settings: Settings, assets: Iterable[Asset] | None = None) -> Plan:
    """Which addresses and names are ours, by zones, assets and the section `sharing`."""
    own = [net for zone in settings.zone if zone.type != "external" for net in zone.networks]
    for asset in settings.asset if assets is None else assets:
        own += [one for one in asset.addresses if address_of(one)]
    said = settings.sharing
    return Plan([*own, *said.own_networks], said.peer_networks, said.own_domains)


def tokens_of(settings: Settings, environment: Mapping[str, str] = os.environ) -> Tokens:
    """What makes the tokens of this operator; its own key is made at the first call."""
    root = join_root(settings, environment)
    return Tokens(secret_of(settings.state_path, LOCAL_KEY), Hmac(root) if root else None)


def join_root(settings: Settings, environment: Mapping[str, str] = os.environ) -> bytes | None:
    """The root of the join tokens; None if none was exchanged.

    Raises:
        ConfigError: it is not where the settings say, or is none.
    """
    if name := settings.sharing.join_key_env:
        if not environment.get(name):
            raise ConfigError(f"{name} is not set", "sharing.join_key_env", "Set the variable.")
        return root_of(environment[name], name)
    path = join_key_path(settings)
    if not settings.sharing.join_key_file and not path.exists():
        return None
    try:
        return root_of(path.read_text(encoding="ascii"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        todo = "Make one: cityward share join-key new, or import it."
        raise ConfigError(f"the join key cannot be read: {error}", str(path), todo) from error


def join_key_path(settings: Settings) -> Path:
    """The file of the root of the join tokens."""
    named = settings.sharing.join_key_file
    return Path(named).expanduser() if named else settings.state_path / JOIN_KEY


class Current:
    """The policy in force, read again when its file or a key changes; for the outbox.

    A file that is refused stops the sharing rather than letting the one before go on: it was
    perhaps changed to let less out.

    Args:
        settings: What the file says.
        assets: Assets that count, asked when the policy is read.
    """

    def __init__(
        self, settings: Settings, assets: Callable[[], Iterable[Asset]] | None = None
    ) -> None:
        self._settings = settings
        self._assets = assets
        self._seen: Sequence[object] = ()
        self._policy: Policy | None = None

    def __call__(self) -> Policy | None:
        """The policy; None: nothing leaves."""
        seen = self._state()
        if seen != self._seen:
            self._seen = seen
            self._policy = self._read()
        return self._policy

    def _read(self) -> Policy | None:
        try:
            return policy_of(self._settings, self._assets() if self._assets else None)
        except CitywardError as error:
            log.error("Nothing leaves: %s (%s). %s", error.what, error.where, error.todo)
            return None

    def _state(self) -> Sequence[object]:
        paths = (
            Path(self._settings.sharing.policy).expanduser(),
            _baseline_path(self._settings),
            join_key_path(self._settings),
        )
        # Now and then anyway: people approve assets, whose addresses are ours from then on.
        return [int(time.monotonic() // AGAIN_S), *map(_stamp, paths)]


class SharingDesk:
    """What people see and decide of sharing at a node: the console and the commands ask it.

    Args:
        settings: What the file says.
        store: What left, what waits, what the city said.
        proposals: What the city proposed, and what became of it.
        assets: Assets that count, asked when the policy is read.
    """

    def __init__(
        self,
        settings: Settings,
        store: OutgoingStore,
        proposals: ProposalStore,
        assets: Callable[[], Iterable[Asset]],
    ) -> None:
        self.store = store
        self.proposals = proposals
        self.goes_to = settings.sharing.hub or settings.sharing.drop_dir
        """The hub, or the folder of the drop; empty: nothing is carried out."""
        self._settings = settings
        self._assets = assets

    def policy(self) -> Policy | None:
        """The policy of this moment; None: nothing leaves.

        Raises:
            ConfigError: it is refused.
        """
        return policy_of(self._settings, self._assets())

    def proof(self) -> Proof:
        """Whether everything that was sent stands as it was sent."""
        identity = Identity(self._settings.state_path)
        hubs = identity.hub().keys if identity.has_joined else {}
        return prove(self.store, self._settings.operator, identity.own_keys(), hubs)

    def readers(self) -> Sequence[Read]:
        """Who at the hub read what we shared; the hub is asked now.

        Raises:
            CitywardError: no hub was joined, or it does not say it.
        """
        return readers(Identity(self._settings.state_path))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        said = path.stat()
    except OSError:
        return None
    return said.st_mtime_ns, said.st_size, said.st_ino
