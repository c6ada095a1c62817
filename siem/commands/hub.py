"""`cityward hub`: the hub of a city."""

from __future__ import annotations

import signal
import sys
from contextlib import nullcontext
from types import FrameType

from siem.commands.run import ConfigFile, settings_with_file
from siem.console_process import ConsoleProcess
from siem.logs import log_to


def hub(*, config: ConfigFile = None, exchange_only: bool = False) -> int:
    """Run a hub: take what operators share, join it, and serve the city's console.

    Ctrl+C ends it in good order; a standby on the same cluster takes over at once.

    Args:
        config: Settings file; otherwise the first one found counts. cityward init --hub makes one.
        exchange_only: Leave the console out; it runs elsewhere, by cityward serve.
    """
    from siem import hub as assembly
    from siem.city.lease import alone

    file, settings = settings_with_file(config)
    said = assembly.of(settings)
    log_to(settings)
    is_in_files = settings.cluster is None
    with alone(settings.state_path / "hub.lock") if is_in_files else nullcontext():
        listening = assembly.listen(settings)
        made = assembly.hub_of(settings)
        console = None if exchange_only else ConsoleProcess(file)

        def stop(number: int, frame: FrameType | None) -> None:
            if made.stop.is_set():
                raise KeyboardInterrupt
            made.stop.set()

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        try:
            made.start(listening, said.names)
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"exchange https://{shown}:{port}", file=sys.stderr, flush=True)
            made.run()
        finally:
            if console is not None:
                console.tell_to_stop()
                console.wait()
    return 0
