"""Actuators, one outside program a file: they look first, and do only what is missing."""
