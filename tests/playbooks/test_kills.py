"""Runs while workers, their trees, the runner and Redis are killed, and clocks step.

The trimmed storms run in CI, the whole ones (500 runs, 50 kills) in `scripts/test full`, and
10,000 runs by `cityward bench playbook`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.playbooks.storm import storm

needs_redis = pytest.mark.skipif(not shutil.which("redis-server"), reason="no redis-server here")


@pytest.mark.slow
def test_a_node_that_is_killed_at_every_edge_loses_and_repeats_nothing(tmp_path: Path) -> None:
    found = storm(tmp_path, "node", runs=30, kills=10, box_s=5)

    assert found.is_whole, found
    assert found.kills == 10


@pytest.mark.slow
@needs_redis
def test_workers_and_redis_that_are_killed_lose_and_repeat_nothing(tmp_path: Path) -> None:
    found = storm(tmp_path, "celery", runs=20, kills=10, box_s=6)

    assert found.is_whole, found
    assert found.kills == 10


@pytest.mark.slow
@needs_redis
def test_celery_trusted_alone_does_not_keep_the_promise(tmp_path: Path) -> None:
    found = storm(tmp_path, "naive", runs=20, kills=10, box_s=4, within_s=20)

    assert not found.is_whole, found


@pytest.mark.full
@needs_redis
@pytest.mark.parametrize("driver", ["node", "celery"])
def test_five_hundred_runs_survive_fifty_kills(tmp_path: Path, driver: str) -> None:
    found = storm(tmp_path, driver, runs=500, kills=50, box_s=60, within_s=900)

    assert found.is_whole, found
    assert found.kills >= 50
