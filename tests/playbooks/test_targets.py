"""A target has one spelling, however it was written."""

from __future__ import annotations

from playbooks.targets import target_of


def test_a_connection_is_spelled_alike_with_and_without_what_goes_without_saying() -> None:
    said = '{"src_addr": "203.0.113.7", "dst_addr": "10.1.1.1", "protocol": "tcp", "dst_port": 22}'
    parts = {"src_addr": "203.0.113.7", "dst_addr": "10.1.1.1", "dst_port": 22}

    assert target_of("ipv4_connection", said) == target_of("ipv4_connection", parts)
