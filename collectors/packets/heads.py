"""Heads of text protocols: a start line, named values, an empty line (HTTP, RTSP, SIP).

References:
    RFC 9112, sections 2.2 and 5 (message format, field syntax); RFC 2326, section 4.
"""

from __future__ import annotations

import base64
import binascii
import re

import msgspec

from collectors.values import clean

HEAD_MAX = 16_384
"""Bytes of a head; what is longer is no head."""
NAMES_MAX = 128
"""Named values of one head that are kept."""

_END = re.compile(rb"\r?\n\r?\n")
_LINE = re.compile(r"\r?\n")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class Head(msgspec.Struct, gc=False):
    """One head."""

    start: str
    names: dict[str, str]
    """Names in lower case; a repeated one has its values joined by a comma."""
    fault: str = ""
    """What is wrong with it."""


def end_of(data: bytes, at: int) -> int:
    """Where the head that begins at `at` ends; -1 if its end is not there."""
    found = _END.search(data, at, at + HEAD_MAX)
    return found.end() if found else -1


def read(data: bytes) -> Head:
    """Read one whole head; what is wrong is said and the rest is read."""
    start, *lines = _LINE.split(data.decode("utf-8", "backslashreplace").rstrip("\r\n"))
    head = Head(clean(start), {})
    last = ""
    for line in lines:
        if line[:1] in (" ", "\t") and last:
            # A folded line is obsolete, and still sent (section 5.2).
            head.names[last] = clean(f"{head.names[last]} {line.strip()}")
            continue
        name, colon, value = line.partition(":")
        if not colon or not _NAME.fullmatch(name):
            # Only its first word: what follows may be what somebody logs in with.
            word = line.split(None, 1)[0][:32] if line.strip() else ""
            head.fault = head.fault or f"a line is no named value: {word!r}"
            continue
        last = name.lower()
        value = value.strip()
        if last in head.names:
            value = f"{head.names[last]}, {value}"
        elif len(head.names) >= NAMES_MAX:
            head.fault = head.fault or f"more than {NAMES_MAX} named values"
            last = ""
            continue
        head.names[last] = clean(value)
    return head


def length_of(head: Head) -> int:
    """Bytes of the body by Content-Length; 0 without one, -1 if it is none.

    The same length said twice is one (RFC 9112, section 6.3).
    """
    said = {one.strip() for one in head.names.get("content-length", "0").split(",")}
    one = said.pop()
    return int(one) if not said and one.isascii() and one.isdigit() and len(one) < 16 else -1


def user_of(head: Head) -> str:
    """Who says to be who, of Basic or Digest credentials; the password is not looked at."""
    scheme, _, said = head.names.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(said, validate=True).partition(b":")[0].decode()
        except (ValueError, binascii.Error):
            return ""
    if scheme.lower() == "digest":
        found = re.search(r'username="([^"]{0,256})"', said)
        return found[1] if found else ""
    return ""
