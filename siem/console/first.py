"""The page for the first source: what could be heard, and why nothing arrives. It only shows."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from siem.console.protocol import Heard
from siem.console.site import NodeSite

MEASURED_S = 3.0
SYSLOG = '[[source]]\nid = "syslog"\nreader = "syslog_udp"\nlisten = "0.0.0.0:5514"\n'
FILE = '[[source]]\nid = "firewall"\nreader = "file"\npath = "/var/log/firewall.log"\n'

SPAN_HINTS = (
    (
        "One direction only",
        "A mirror port must copy what is received and what is sent (rx and tx, “both”). If flows "
        "have packets of the client only, answers are missing, and so are results of commands.",
    ),
    (
        "Packets twice",
        "Mirror the ports of the devices or the uplink, not both: else each packet comes twice, "
        "and counts double.",
    ),
    (
        "Wrong checksums, huge packets",
        "Offloading in the network card of this machine joins packets: "
        "ethtool -K INTERFACE gro off lro off rx off.",
    ),
    (
        "VLAN tags",
        "They are read; a switch that strips them hides which network a device is in.",
    ),
)
"""What goes wrong with mirror ports, and how it is mended."""


@dataclass(frozen=True, slots=True)
class Counted:
    """An interface, with what it received while somebody counted."""

    heard: Heard
    packets: int | None = None


class First:
    """The page for the first source."""

    def __init__(self, site: NodeSite, sleep: Callable[[float], None] = time.sleep) -> None:
        self.site = site
        self.node = site.node
        self._sleep = sleep

    def page(self, request: Request) -> Response:
        """What could be heard here, and why sources that are set up bring nothing."""
        session = self.site.access.enter(request, "health")
        view = self.site.view_of(request)
        heard = self.node.hearing()
        counted = [Counted(one) for one in heard.interfaces]
        if view.one("count"):
            before = {one.name: one.packets for one in heard.interfaces}
            self._sleep(MEASURED_S)
            heard = self.node.hearing()
            counted = [
                Counted(one, max(0, one.packets - before.get(one.name, one.packets)))
                for one in heard.interfaces
            ]
        chosen = next(
            (one.name for one in heard.interfaces if one.name == view.one("interface")), ""
        )
        return self.site.page(
            request,
            session,
            "first.html",
            title="First source",
            current="health",
            heard=heard,
            because=[*heard.silent, *heard.hints],
            counted=counted,
            measured_s=MEASURED_S if view.one("count") else 0,
            chosen=chosen,
            lines=lines_of(chosen) if chosen else "",
            others=(("Syslog of devices", SYSLOG), ("A log file of this machine", FILE)),
            events=sum(one.events for one in self.node.sources()),
            span_hints=SPAN_HINTS,
        )


def lines_of(interface: str) -> str:
    """What to write into the settings to listen on an interface."""
    id_ = "tap-" + (re.sub(r"[^a-z0-9]+", "-", interface.lower()).strip("-") or "1")
    return f'[[source]]\nid = "{id_}"\nreader = "interface"\ninterface = {json.dumps(interface)}\n'
