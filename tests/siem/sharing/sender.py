"""A process that finds, shares and is killed: `python sender.py FOLDER FINDINGS VARIANT`.

The hub is a fake with a journal: what it took is in `hub.log` before it answers, so it survives the
kill of this process as a real one would. Each finding is acknowledged on standard output once it is
kept. `right` is the real outbox; the other variants are broken on purpose.
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

import msgspec

from siem.sharing.drop import Drop
from siem.sharing.envelope import Envelope, Signed
from siem.sharing.identity import Identity
from siem.sharing.outbox import Outbox
from siem.sharing.share import share_id
from siem.store.embedded import NodeDb
from siem.store.faults import fault
from tests.siem.sharing.standin import KEY, OPERATOR, Clock, FakeHub, FakePolicy, key_from, match


class Journal(FakeHub):
    """A fake hub that remembers in a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(key_from("node"), key_from("hub"))
        self._path = folder / "hub.log"
        self.said: list[Signed] = []
        """Everything that came, also what came again."""
        for line in self._path.read_bytes().splitlines() if self._path.exists() else ():
            signature, _, data = line.partition(b" ")
            signed = Signed(base64.b64decode(data), base64.b64decode(signature))
            self.said.append(signed)
            super().take(signed)

    def take(self, signed: Signed) -> Signed:
        receipt = super().take(signed)
        with self._path.open("ab") as file:
            said = (base64.b64encode(signed.signature), base64.b64encode(signed.data))
            file.write(b" ".join(said) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return receipt


class TwoSteps(Outbox):
    """Sends what it has not written down."""

    def next(self) -> Signed | None:
        signed = super().next()
        if signed is not None:
            said = msgspec.json.decode(signed.data, type=Envelope)
            with self.store.desk() as desk:
                desk._db.execute("DROP TRIGGER IF EXISTS ledger_kept")
                desk._db.execute("DELETE FROM ledger WHERE seq = ?", (said.seq,))
                desk._db.execute("DELETE FROM settings WHERE name = 'ledger_head'")
        return signed


def main(folder: Path, findings: int, variant: str) -> None:
    db = NodeDb(folder / "node.db", KEY)
    policy = FakePolicy()
    kind = TwoSteps if variant == "two_steps" else Outbox
    outbox = kind(db.outgoing, OPERATOR, key_from("node"), lambda: policy, clock=Clock())
    hub = Journal(folder)
    carrier = Drop(outbox, folder / "drop", Identity(folder), Clock())
    begin = db.checkpoint()[0]
    for number in range(begin, begin + findings):
        [kept] = db.keep([match(number)], number + 1)
        sys.stdout.write(f"{share_id(kept)}\n")
        sys.stdout.flush()
        while outbox.offer():
            pass
        if variant == "drop":
            while carrier.turn():
                pass
            continue
        while (signed := outbox.next()) is not None:
            receipt = hub.take(signed)
            fault("hub-took")
            if variant == "two_steps":
                break
            outbox.receipted(receipt, hub.public)
    db.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
