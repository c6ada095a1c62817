"""`cityward run` and `serve`: a node, or its console alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cityward import ConfigError, TransientError
from siem import assembly
from siem import config as settings_file
from siem.config import Settings
from siem.console_process import ConsoleProcess
from siem.logs import log_to
from siem.node import Node
from siem.node import run as run_node
from siem.notify.routes import routes_of
from siem.outward import carrier_of

if TYPE_CHECKING:
    from siem.response import Response
    from siem.store.mirror import Mirror

ConfigFile = Annotated[str | None, Parameter(name=["--config", "-c"])]


def run(*, config: ConfigFile = None, path_only: bool = False) -> int:
    """Run a node: collect, keep, detect, and serve the console.

    Ctrl+C finishes the batch and keeps the place; a second one stops at once.

    Args:
        config: Settings file; otherwise the first one found counts.
        path_only: Leave the console out; it runs elsewhere, by cityward serve.
    """
    file, settings = settings_with_file(config)
    if settings.hub is not None:
        what = "these are the settings of a hub"
        raise ConfigError(what, str(file), f"Run it: cityward hub -c {file}")
    log_to(settings)
    routes = routes_of(settings.route)  # here, where what is wrong with them ends the node
    node = assembly.node_of(settings)
    # Before the first finding: the console, which delivers, comes up later.
    node.db.notices.begin(list(routes.values()), node.clock())
    carrier = carrier_of(settings, node)
    mirror = _mirror_of(settings, node)
    response = _response_of(settings, node)
    console = None if path_only else ConsoleProcess(file)
    stop_on_signals(node)
    if carrier is not None:
        carrier.start()
    if mirror is not None:
        mirror.start()
    if response is not None:
        response.start()
    try:
        run_node(node)
    except OSError as error:
        raise TransientError(
            f"the state cannot be written: {error.strerror or error}",
            str(settings.state_path),
            "Make room and start it again; it goes on where it stood, nothing kept is lost.",
        ) from error
    finally:
        if console is not None:
            console.tell_to_stop()
        if carrier is not None:
            carrier.stop()
        if mirror is not None:
            mirror.stop()
        if response is not None:
            response.stop()
        node.close()
        if console is not None:
            console.wait()
    return 0


def _response_of(settings: Settings, node: Node) -> Response | None:
    if not settings.response.on and not node.db.runs.in_force():
        return None
    from siem.response import response_of

    return response_of(settings, node.db, node.events)


def _mirror_of(settings: Settings, node: Node) -> Mirror | None:
    if settings.cluster is None:
        return None
    from siem.clusters import mirror_of

    return mirror_of(settings, node)


def serve(*, config: ConfigFile = None, with_parent: bool = False) -> int:
    """Serve the console of a node that runs on the same state folder.

    Args:
        config: Settings file; otherwise the first one found counts.
        with_parent: End when standard input closes: when the node that started it is gone.
    """
    from siem import serve as console
    from siem import tls

    file, settings = settings_with_file(config)
    log_to(settings)
    secure = tls.context_of(settings.console) is not None
    listening = console.listen(settings)
    if with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    print(f"console {console.address_of(listening, secure=secure)}", file=sys.stderr, flush=True)
    console.serve(settings, listening, str(file))
    return 0


def _end_with_parent() -> None:
    """Standard input is a pipe from the node: it closes when the node is gone, even killed."""
    # Read past Python's buffer: whose lock, held at the end of the process, is a fatal error.
    while os.read(sys.stdin.fileno(), 4_096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def settings_with_file(named: str | None) -> tuple[Path, Settings]:
    """The settings of a process that needs a file of them, and the file.

    Raises:
        ConfigError: there is none.
    """
    path = settings_file.find(named)
    if path is None:
        raise ConfigError(
            "there is no settings file",
            ", ".join(settings_file.SEARCH_PATH),
            "Make one: cityward init",
        )
    return path, settings_file.load(path)


def stop_on_signals(node: Node) -> None:
    """The first signal finishes the batch, the second stops at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if node.stop.is_set():
            raise KeyboardInterrupt
        node.stop.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
