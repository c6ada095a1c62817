"""What a request has sent: a form of a page, or the same as JSON of a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from cityward.errors import CitywardError

FIELDS_MAX = 2000


async def body_of(request: Request) -> FormData:
    """Texts by name; a list gives a name several, an object gives `key=value` each.

    Raises:
        CitywardError: it is no JSON object of texts, numbers and lists of them.
    """
    if not request.headers.get("content-type", "").startswith("application/json"):
        return await request.form(max_files=0, max_fields=FIELDS_MAX)
    try:
        said = msgspec.json.decode(await request.body())
        if not isinstance(said, dict):
            raise TypeError("no object")
        pairs: list[tuple[str, str | UploadFile]] = [
            (str(name), text) for name, value in said.items() for text in _texts(value)
        ]
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError) as error:
        raise CitywardError(
            f"the body cannot be read: {error}", "body", "Send one JSON object; see /api."
        ) from error
    if len(pairs) > FIELDS_MAX:
        raise CitywardError(
            f"more than {FIELDS_MAX:,} values", "body", "Send it in several requests."
        )
    return FormData(pairs)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, bool):
        yield from ("1",) * value
    elif isinstance(value, int | float):
        yield str(value)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, Mapping):
        yield from (f"{key}={one}" for key, one in value.items())
    elif value is not None:
        raise TypeError(f"{type(value).__name__} is none of them")
