"""Where a service logs: to standard error, which the journal keeps, or to a file of its own."""

from __future__ import annotations

import logging
import sys
from logging.handlers import WatchedFileHandler
from pathlib import Path

from siem.config import Settings


class LogFile(WatchedFileHandler):
    """A file that logrotate may move away; what cannot be written to it goes to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; a full disk must not stop who logs."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 – the library's name
        """Say it elsewhere."""
        if sys.stderr:
            sys.stderr.write(self.format(record) + "\n")


def log_to(settings: Settings) -> None:
    """Log to the file of the settings, if they name one."""
    if not settings.log.file:
        return
    path = Path(settings.log.file).expanduser()
    handler = LogFile(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger().handlers[:] = [handler]
