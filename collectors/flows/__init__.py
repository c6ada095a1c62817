"""Flows that routers, switches and probes report: NetFlow, IPFIX and sFlow."""
