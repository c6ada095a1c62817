"""Fixtures of the rules."""

from tests.shipped import shipped_are_read  # noqa: F401 – a fixture
