"""What may be a password, token or key in text from the wire, so that no event keeps it.

References:
    RFC 3986, section 3.2.1 (passwords in URLs); OWASP Logging Cheat Sheet, "Data to exclude".
"""

from __future__ import annotations

import re

_NAMED = r"(?:pass|pwd|secret|token|api_?key|access_?key|credential|sess(?:ion)?_?id)"
_NAME = rf"[\w.\-]{{0,32}}{_NAMED}[\w.\-]{{0,32}}"
_HINT = re.compile(rf"(?i){_NAMED}|//[^/@\s]{{1,256}}@")
_LOGIN = re.compile(r"//[^/@\s]{1,256}@")
_FORM = re.compile(rf"(?i)(\b{_NAME}=)([^&\"\s<>]{{0,1024}})")
_JSON = re.compile(rf"(?i)(\"{_NAME}\"\s{{0,4}}:\s{{0,4}}\")((?:[^\"\\]|\\.){{0,1024}})")
_XML = re.compile(
    rf"(?i)(<[\w:.\-]{{0,32}}{_NAMED}[\w.\-]{{0,32}}(?:\s[^<>]{{0,256}})?>)([^<]{{1,1024}})"
)
# A value that is an attack is no secret: a look-up, a tag, a quote behind which SQL goes on.
_PROBE = re.compile(
    r"(?i)\$\{|%24%7b|<|%3c|(?:'|%27)(?:[\s+)]|%20|%29){0,8}(?:--|%2d|[#;|]|%23|or\b|and\b|union\b|$)"
)


def is_secret(name: str) -> bool:
    """Whether what has this name may be a password, token or key."""
    return _HINT.search(name) is not None


def without_secrets(text: str) -> str:
    """A URL, form, JSON or XML with asterisks where passwords, tokens and keys stood."""
    if not _HINT.search(text):
        return text
    text = _LOGIN.sub("//***@", text)
    for pattern in (_FORM, _JSON, _XML):
        text = pattern.sub(_hidden, text)
    return text


def _hidden(found: re.Match[str]) -> str:
    return found[0] if _PROBE.search(found[2]) else f"{found[1]}***"
