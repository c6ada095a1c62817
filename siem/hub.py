"""Put a hub together from its settings: common store, exchange and joins, or its console."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path

from cityward import ConfigError
from playbooks.model import Step
from playbooks.safety import span
from siem import assembly, config
from siem.assets import from_settings
from siem.city.authority import Operators
from siem.city.hub import Hub, HubView
from siem.city.proposals import Playbook
from siem.city.town import read
from siem.common_store import FILE, commons_of
from siem.config import Settings
from siem.library import shipped_ids, words_of
from siem.node import Clock, now_utc
from siem.playbooks import playbooks_of
from siem.ruleset import load

ACTING = ("A1", "A2", "A3")
"""Classes of steps that change something; the others only tell."""
EXCHANGE = "exchange"
"""Folder of the state with the keys of the exchange."""


def hub_of(settings: Settings, clock: Clock = now_utc) -> Hub:
    """The active process of a hub, with its stores open; nothing listens yet.

    Raises:
        ConfigError: these are the settings of a node, or something in them is impossible.
    """
    said = of(settings)
    state = settings.state_path
    return Hub(
        commons_of(settings, clock),
        assembly.db_of(settings, from_settings(settings), clock),
        state / EXCHANGE,
        load(settings),
        holder=f"{socket.gethostname()}, process {os.getpid()}",
        alone=settings.cluster is None,
        threshold=said.threshold,
        by_itself=_by_itself(settings),
        library=shipped_ids,
        words_of=words_of,
        drop=_path(said.drop_dir),
        shares_for=timedelta(days=said.shares_days),
        town=read(_path(said.services), _path(said.map)),
        clock=clock,
    )


def view_of(settings: Settings, clock: Clock = now_utc) -> HubView:
    """A hub as its console sees it; see `hub_of`."""
    said = of(settings)
    state = settings.state_path
    return HubView(
        commons_of(settings, clock),
        assembly.db_of(settings, from_settings(settings), clock),
        state / EXCHANGE,
        read(_path(said.services), _path(said.map)),
        assembly.secret_of(state, "session.key"),
        threshold=said.threshold,
        store=settings.cluster.kind if settings.cluster else FILE,
        deadlines=assembly.deadlines_of(settings),
        playbooks=lambda: proposable(settings),
        clock=clock,
    )


def proposable(settings: Settings) -> list[Playbook]:
    """Playbooks that ship and act: what operators may have, by the names of their files."""
    found = []
    for one in playbooks_of(settings, now_utc()).playbooks:
        acts = ", ".join(map(_act, filter(_is_acting, one.steps.values())))
        if acts:
            found.append(Playbook(Path(one.file).stem, f"{one.name} ({acts})"))
    return found


def _is_acting(step: Step) -> bool:
    return step.action is not None and step.safety.action_class in ACTING


def _act(step: Step) -> str:
    """What a step does, as it ships: an operator's own playbook may do it for another time."""
    assert step.action is not None
    box = step.safety.time_box
    return f"{step.name} at {step.action.actuator}{f' for {span(box)}' if box else ''}"


def _by_itself(settings: Settings) -> Playbook | None:
    name = of(settings).propose
    if not name:
        return None
    known = proposable(settings)
    found = next((one for one in known if one.name == name), None)
    if found is None:
        todo = f"One of {', '.join(one.name for one in known)}; or leave it empty."
        raise ConfigError(f"no playbook is called {name!r}", "hub.propose", todo)
    return found


def make_keys(settings: Settings) -> None:
    """The keys of the exchange, before anybody is enrolled."""
    commons = commons_of(settings, now_utc)
    Operators(commons.records, settings.state_path / EXCHANGE, now_utc).make()
    commons.close()


def of(settings: Settings) -> config.Hub:
    """What settings say of a hub.

    Raises:
        ConfigError: they are of a node.
    """
    if settings.hub is None:
        raise ConfigError(
            "these are the settings of a node", "hub", "Make a hub: cityward init --hub FOLDER."
        )
    return settings.hub


def listen(settings: Settings) -> socket.socket:
    """The socket of the exchange; port 0 takes a free one.

    Raises:
        ConfigError: the address is taken or is not ours.
    """
    host, _, port = of(settings).listen.rpartition(":")
    host = host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, reuse_port=False)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}",
            "hub.listen",
            "Stop what listens there, or set another address.",
        ) from error


def _path(text: str) -> Path | None:
    return Path(text).expanduser() if text else None
