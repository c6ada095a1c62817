"""What rings for workers elsewhere, when people or findings give a playbook run something to do."""

from __future__ import annotations

import os
from collections.abc import Mapping

from cityward import ConfigError
from playbooks.journal import Bell
from siem.config import Settings

LOOKED = "worker.looked"
"""A file of the state folder, touched whenever a worker looks at the journal by itself."""


def bell_of(settings: Settings, environment: Mapping[str, str] = os.environ) -> Bell | None:
    """What rings for workers; None: there is no Redis, so the node does the work itself.

    It reaches for Redis when it is first rung. Where its password is not known, at a person's
    terminal perhaps, workers see by themselves what there is to do, some seconds later.
    """
    if not settings.response.redis:
        return None
    from playbooks import tasks

    url = settings.response.redis
    return tasks.Bell(lambda: tasks.app_of(url, password=redis_password(settings, environment)))


def redis_password(settings: Settings, environment: Mapping[str, str] = os.environ) -> str:
    """The password of Redis; empty if none is named.

    Raises:
        ConfigError: its variable is not set.
    """
    name = settings.response.redis_secret_env
    if name and not environment.get(name):
        raise ConfigError(f"{name} is not set", "response.redis_secret_env", "Set the variable.")
    return environment[name] if name else ""
