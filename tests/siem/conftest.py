"""Fixtures of the application."""

from tests.shipped import shipped_are_read  # noqa: F401 – a fixture
