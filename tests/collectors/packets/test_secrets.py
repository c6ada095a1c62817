"""Passwords, tokens and keys in text from the wire."""

from __future__ import annotations

import time

import pytest

from collectors.packets.secrets import is_secret, without_secrets


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("user=ann&password=pw&next=/", "user=ann&password=***&next=/"),
        ("/a?access_token=t0&x=1", "/a?access_token=***&x=1"),
        ("/a;jsessionid=AB12", "/a;jsessionid=***"),
        ('{"user": "ann", "newPassword": "two words", "n": 1}',
         '{"user": "ann", "newPassword": "***", "n": 1}'),
        ('{"api_key":"a\\"b"}', '{"api_key":"***"}'),
        ('<w:Password Type="x#PasswordText">pw</w:Password>\n<b>1</b>',
         '<w:Password Type="x#PasswordText">***</w:Password>\n<b>1</b>'),
        ("rtsp://ann:pw@cam/live", "rtsp://***@cam/live"),
        ("/compass/token", "/compass/token"),
    ],
)  # fmt: skip
def test_what_is_secret_is_not_kept_and_the_rest_is(text: str, kept: str) -> None:
    assert without_secrets(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "password=${jndi:ldap://a}",
        "pwd=x'+or+1=1--",
        "pass=%27%20UNION%20SELECT",
        "token=%3Cscript",
    ],
)
def test_an_attack_is_no_secret(text: str) -> None:
    assert without_secrets(text) == text


def test_a_password_with_an_apostrophe_is_a_secret() -> None:
    assert without_secrets("password=o'hara7") == "password=***"


def test_names_say_whether_a_value_is_secret() -> None:
    assert is_secret("Api-Token")
    assert not is_secret("topic")


def test_no_text_takes_for_ever() -> None:
    began = time.thread_time()

    for part in ("pass", "token=", '"pass":"', "<pass", "a.", "//", "pwd\\", "secret'"):
        without_secrets((part * 16_384)[:16_384])

    assert time.thread_time() - began < 2
