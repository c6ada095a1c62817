"""What all tests share: the real data, where it is present."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.opensearch import index_prefix, opensearch  # noqa: F401 – fixtures for all

ROOT = Path(__file__).parent.parent
_REAL: set[str] = set()


def _keep_bytecode() -> None:
    """Keep what Python compiles also where it is told to keep nothing, as images do.

    Else each of the processes that tests start compiles all that it imports anew: a console
    begins after 3 s of processor time, and after 1 s with it. It is kept where it always is: there
    an installation has left what it compiled, too.
    """
    if sys.dont_write_bytecode:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.dont_write_bytecode = False


_keep_bytecode()

# How long an example takes says how busy the machine is, and nothing of what is tested.
# CI asks the same examples each time: a change is judged by what it changes, and new examples are
# looked for by hand and in `scripts/test full`.
settings.register_profile(
    "cityward",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("cityward")


def _data_dir() -> Path | None:
    named = os.environ.get("CITYWARD_DATA")
    for place in ([Path(named)] if named else []) + [ROOT.parent / "shared" / "data"]:
        if (place / "SHA256SUMS").is_file():
            return place
    return None


@pytest.fixture
def data(request: pytest.FixtureRequest) -> Path:
    """The folder of real captures and logs; skipped where it is missing, never in CI."""
    found = _data_dir()
    if found is None:
        why = "no real data: set CITYWARD_DATA to the folder that holds SHA256SUMS"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    request.node.user_properties.append(("real_files", "yes"))
    return found


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the tests that ran on real files, also those that another worker ran."""
    if report.when == "call" and ("real_files", "yes") in report.user_properties:
        _REAL.add(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests ran on real files."""
    terminalreporter.write_line(f"{len(_REAL)} tests ran on real files")
