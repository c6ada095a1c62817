"""`cityward bench sizing`: what a node needs for the logs and captures that it will read."""

from __future__ import annotations

import sys
from pathlib import Path

from cityward import InputError
from siem import bench, output
from siem.commands.common import Output
from siem.sizing import rows


def sizing(*paths: Path, form: Output = None) -> int:
    """Measure cores and disk for 1,000 events a second of what these files hold.

    Take files with some 10,000 events; small ones make the figures too large.
    Example: cityward bench sizing capture.pcap auth.log

    Args:
        paths: Captures and logs, read by the collectors that recognise them.
        form: Form of the result: table, json, ndjson or csv.
    """
    if not paths:
        raise InputError("no file was named", "cityward bench sizing", "Name files to measure.")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError("there is no such file", str(missing[0]), "Check the path.")
    found = list(rows(paths))
    machine = ", ".join(f"{name} {value}" for name, value in bench.machine().items())
    print(machine, file=sys.stderr)
    output.write(found, output.form_for(form, sys.stdout), list(found[0]))
    return 0
