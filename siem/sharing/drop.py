"""The file drop: the same envelopes as files, for a data diode or a carrier.

Nothing comes back over a diode, so several envelopes are under way and the ledger marks them *not
receipted*. Where somebody does carry answers back, they lie in the folder `answers` beside them.
A file is there whole or not at all; it is the other side, or the carrier, that takes it away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cityward import CitywardError, TransientError
from siem.sharing.certificates import write_secret
from siem.sharing.envelope import BYTES_MAX, Envelope, Signed, split
from siem.sharing.identity import Identity
from siem.sharing.outbox import Outbox
from siem.store.faults import fault
from siem.store.outgoing import LinkState

LOOK_S = 1.0
STOP_S = 3.0
FILES_MAX = 10_000
"""With so many that nobody took away, the rest waits in the outbox."""
ANSWERS = "answers"
SUFFIX, ANSWER, BAD = ".cwe", ".cwr", ".refused"
_LINES_MAX = 2 * BYTES_MAX

log = logging.getLogger(__name__)


class Drop(threading.Thread):
    """Leaves what the outbox has in a folder, for as long as the process lives.

    Args:
        outbox: Makes the envelopes; only this thread uses it.
        folder: Where they are left.
        identity: Knows the hub's key, if this node has joined it.
        clock: The node's time.
    """

    def __init__(
        self, outbox: Outbox, folder: Path, identity: Identity, clock: Callable[[], datetime]
    ) -> None:
        super().__init__(name="drop", daemon=True)
        self.ended = threading.Event()
        self._outbox, self._store = outbox, outbox.store
        self._folder, self._identity, self._clock = folder, identity, clock
        self._state = LinkState()

    def run(self) -> None:
        """Look and leave, until `stop`."""
        while not self.ended.is_set():
            if not self.turn():
                self.ended.wait(LOOK_S)

    def stop(self) -> None:
        """End."""
        self.ended.set()
        if self.is_alive():
            self.join(STOP_S)

    def turn(self) -> bool:
        """One round; False if there was nothing to do."""
        try:
            looked = self._outbox.offer()
            answered = self._answered()
            is_full = sum(1 for _ in self._folder.glob(f"*{SUFFIX}")) >= FILES_MAX
            left = False if is_full else self._left()
            said = f"{FILES_MAX:,} envelopes lie in {self._folder}" if is_full else ""
            self._say(said)
        except (OSError, CitywardError) as error:
            self._say(str(error).splitlines()[0][:300])
            return False
        except Exception as error:  # a fault of ours must not end the sharing for good
            log.exception("The file drop failed.")
            self._say(repr(error))
            return False
        return bool(looked or left or answered)

    def _left(self) -> bool:
        """Leave the next envelope; a kill before the ledger knows leaves the same file again."""
        signed = self._outbox.next()
        if signed is None:
            return False
        said = msgspec.json.decode(signed.data, type=Envelope)
        write_secret(self._folder / name_of(said.operator, said.seq), signed.lines())
        fault("drop-before-commit")
        with self._store.desk() as desk:
            desk.set_dropped(said.seq)
        return True

    def _answered(self) -> int:
        """Keep the receipts that somebody carried back."""
        key, count = self._key(), 0
        for path in sorted((self._folder / ANSWERS).glob(f"*{ANSWER}")) if key else ():
            assert key is not None
            try:
                self._outbox.receipted(_read(path), key)
            except TransientError:
                raise
            except CitywardError as error:
                _set_aside(path, error.what)
                continue
            path.unlink()
            count += 1
        return count

    def _key(self) -> Ed25519PublicKey | None:
        return self._identity.hub().key if self._identity.has_joined else None

    def _say(self, error: str) -> None:
        if (self._state.state, self._state.error) == ("drop", error):
            return
        if error:
            log.warning("Nothing is left in the drop, %s; it waits in the outbox.", error)
        self._state = LinkState(state="drop", error=error, since=self._clock())
        with contextlib.suppress(TransientError):
            self._store.set_link(self._state)


# ---- The other side


class Dropped(msgspec.Struct, frozen=True):
    """An envelope that lies in a folder."""

    path: Path
    operator: str
    """Who it says it is of; nothing is proven yet."""
    signed: Signed


def read_drop(folder: Path) -> Iterator[Dropped]:
    """Envelopes of a folder, those of one operator in their order.

    The caller takes each, answers it with `answer`, and it is gone; what is no envelope is set
    aside with the suffix `.refused`.
    """
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            signed = _read(path)
            said = msgspec.json.decode(signed.data, type=Envelope)
        except OSError as error:
            log.warning("%s cannot be read: %s", path, error)
            continue
        except (CitywardError, msgspec.MsgspecError, RecursionError) as error:
            _set_aside(path, str(error))
            continue
        yield Dropped(path, said.operator, signed)


def answer(dropped: Dropped, receipt: Signed) -> None:
    """Leave the receipt of an envelope for whoever carries it back, and take the envelope away."""
    folder = dropped.path.parent / ANSWERS
    write_secret(folder / dropped.path.with_suffix(ANSWER).name, receipt.lines())
    dropped.path.unlink(missing_ok=True)


def refuse(dropped: Dropped, why: str) -> None:
    """Set an envelope aside that is not taken; it is not asked for again."""
    _set_aside(dropped.path, why)


def name_of(operator: str, seq: int) -> str:
    """Name of the file of an envelope; sorted by name they are in their order."""
    return f"{operator}.{seq:015d}{SUFFIX}"


def _read(path: Path) -> Signed:
    with path.open("rb") as file:
        return split(file.read(_LINES_MAX + 1))


def _set_aside(path: Path, why: str) -> None:
    log.warning("%s is set aside: %s", path, why.splitlines()[0][:300])
    with contextlib.suppress(OSError):
        os.replace(path, path.with_name(path.name + BAD))
