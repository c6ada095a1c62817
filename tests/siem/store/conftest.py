"""Fixtures of the stores."""

from tests.siem.store.homes import places  # noqa: F401 – a fixture
