"""Lists for programs: the rows a page shows, as JSON, NDJSON or CSV, in the same order."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError, Unsafe
from siem.store.protocol import Conflict

TYPES = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
}

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_ENCODER = msgspec.json.Encoder(enc_hook=str)


def form_of(request: Request) -> str:
    """`json`, `ndjson` or `csv` if the path ends so; empty for a page."""
    ending = request.url.path.rpartition(".")[2]
    return ending if ending in TYPES and "." in request.url.path else ""


def wants_data(request: Request) -> bool:
    """True if errors are to be told as JSON."""
    return bool(form_of(request)) or "authorization" in request.headers


def json(content: Any, status: int = 200) -> Response:
    """Anything as one JSON document."""
    return Response(_ENCODER.encode(content), status, media_type=TYPES["json"])


def rows(
    form: str, listed: Sequence[Mapping[str, Any]], total: int, said: Mapping[str, Any], name: str
) -> Response:
    """A list in one of the three forms.

    Args:
        form: `json`, `ndjson` or `csv`.
        listed: Rows, in the order of the page.
        total: How many there are in all.
        said: What the query was, for the head of the JSON document.
        name: File name for a browser, without ending.
    """
    if form == "json":
        return json({**said, "total": total, "rows": listed})
    if form == "ndjson":
        body = b"".join(_ENCODER.encode(row) + b"\n" for row in listed)
    else:
        body = _csv(listed).encode("utf-8", "backslashreplace")
    response = Response(body, media_type=TYPES[form])
    response.headers["content-disposition"] = f'attachment; filename="{name}.{form}"'
    response.headers["x-total-count"] = str(total)
    return response


def tagged(request: Request, response: Response, *said: Any) -> Response:
    """An answer with a mark of its content; nothing more to whoever has it already (RFC 9110)."""
    tag = f'"{hashlib.sha256(_ENCODER.encode(said)).hexdigest()[:32]}"'
    if request.headers.get("if-none-match") == tag:
        response = Response(status_code=304)
    response.headers["etag"] = tag
    return response


def error(status: int, what: str, where: str = "", todo: str = "") -> Response:
    """An error for programs: what happened, where, what to do."""
    return json({"error": {"what": what, "where": where, "todo": todo}}, status)


def status_of(fault: CitywardError) -> int:
    """Of the answer to a fault of ours: 409 if the state of things does not allow it now."""
    return 409 if isinstance(fault, Conflict | Unsafe) else 400


def _csv(listed: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in listed for name in row))
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\r\n")
    writer.writerow([_cell(name) for name in names])
    writer.writerows([[_cell(row.get(name)) for name in names] for row in listed])
    return written.getvalue()


def _cell(value: Any) -> str | int | float:
    """A cell that no spreadsheet takes for a formula (CWE-1236)."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if not isinstance(value, str):
        value = _ENCODER.encode(value).decode()
    return f"'{value}" if value.startswith(_FORMULA) else value
