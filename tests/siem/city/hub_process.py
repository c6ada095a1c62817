"""A hub in a process of its own, for tests that stop and kill it: `STATE HOLDER [STOP-AT]`.

It says `port N` when it listens and `active` when it is the active one. At the fault point STOP-AT
it stops itself, once, as if the machine had been frozen just there.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from siem.city import exchange as exchange_module
from siem.city.authority import Operators
from siem.city.exchange import Exchange
from siem.city.lease import Lease
from siem.city.port import Port
from siem.city.sqlite import SqliteCommons
from siem.store.faults import fault

TTL_S = 5.0
"""A hub that waits for a core or a disk must not lose its lease for that."""


class Apart(SqliteCommons):
    """Each write by itself, as in a cluster: a hub that is frozen holds up no other."""

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()


def main(state: Path, holder: str, stop_at: str = "") -> None:
    def clock() -> datetime:
        return datetime.now(UTC)

    def frozen(name: str) -> None:
        nonlocal stop_at
        fault(name)
        if name == stop_at:
            stop_at = ""
            os.kill(os.getpid(), signal.SIGSTOP)
            # It may be another thread that hears it: this one goes no further until then.
            time.sleep(0.2)

    exchange_module.fault = frozen  # type: ignore[attr-defined]
    commons = Apart(state / "commons.db", clock=clock)
    operators = Operators(commons.records, state / "exchange", clock)
    operators.make()
    lease = Lease(commons.records, holder, ttl_s=TTL_S)
    exchange = Exchange(commons, operators, lease, lambda *_: None, clock)
    port = Port(exchange, socket.create_server(("127.0.0.1", 0)), ["localhost"])
    port.start()
    print(f"port {port.address[1]}", flush=True)
    was_active = False
    while True:
        is_active = lease.step()
        if is_active != was_active:
            print("active" if is_active else "standby", flush=True)
        was_active = is_active
        threading.Event().wait(lease.every_s)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
