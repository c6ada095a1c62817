"""`cityward bench`: reproducible speed figures with the machine's description."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from cityward import InputError
from siem import bench, output
from siem.output import Form


def node(
    *paths: Path,
    form: Annotated[Form | None, Parameter(name=["--output", "-o"])] = None,
) -> int:
    """Measure the whole path on files: CPU by stage, events a second, memory over ten times.

    Example: cityward bench node capture.pcap auth.log

    Args:
        paths: Captures and logs, read by the collectors that recognise them.
        form: Form of the result: table, json, ndjson or csv.
    """
    if not paths:
        raise InputError("no file was named", "cityward bench node", "Name files to measure with.")
    rows = list(bench.node_rows(paths))
    _print(rows, form)
    return 0


def _print(rows: list[dict[str, Any]], form: Form | None) -> None:
    machine = ", ".join(f"{name} {value}" for name, value in bench.machine().items())
    print(machine, file=sys.stderr)
    output.write(rows, output.form_for(form, sys.stdout), list(rows[0]))
