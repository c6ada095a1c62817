"""Files of our own that are kept from one start to the next, and believed only if they are ours."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)


def read(path: Path) -> bytes | None:
    """What was kept; None if another person could have written it.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        if about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            log.warning("%s could be another person's: not used.", path)
            return None
        return file.read()


def write(path: Path, content: bytes) -> None:
    """Keep this, whole or not at all, in a folder that is ours alone.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, unfinished = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(unfinished, path)
    except OSError:
        Path(unfinished).unlink(missing_ok=True)
        raise
