"""Text with credentials -> the same text with the credentials hidden."""

from __future__ import annotations

import re
from urllib.parse import unquote

HIDDEN = "***"
# Whoever forgets to quote a slash in a password has one here too; a port is no password.
_USER = re.compile(r"(?<=://)(?:[^/?#]*@|[^/@:]+:(?![:\s]|\d*(?:[/?#\s\"']|$))[^\"'<>\n]*@)")
_QUERY = re.compile(r"([?#])([^\"'<>?#\n]*=[^\"'<>#\n]*)")
_NAMED = re.compile(
    r"\S*://[^\s\"'<>]*"  # a URL: its path may have any names
    r"|(?<![\w%-])([\w-]+)(\"?'?\s*[=:]\s*\"?'?)((?:(?:Basic|Bearer)\s+)?[^\s\"'<>&;,]+)"
)
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_SECRET_TEXT = """
    sig signature token secret password passwd passphrase pass pwd credential credentials cred
    creds auth authorization session key apikey jwt sas policy otp bearer cookie code
"""
_SECRET = frozenset(_SECRET_TEXT.split())
_SECRET_ENDS = ("token", "secret", "password", "signature", "apikey", "accesskey", "keyid")
# What a signature is about changes with every signing (AWS, Google, Azure): no part of a name.
_SIGNING_STARTS = ("x-amz-", "x-goog-", "googleaccessid", "awsaccesskeyid")
_SIGNING_TEXT = "expires sv ss srt sp se st spr sr sip ske skoid sks skt sktid skv"
_SIGNING = frozenset(_SIGNING_TEXT.split())


def shown(text: str) -> str:
    """A URL, or any text with some in it -> the same without what is secret.

    ``***`` stands for user and password, for the parameters of signatures and tokens, and
    for values that a message names so (``Signature=...``, ``"secret": "..."``). What is left
    of a signed URL is the same however often it is signed.
    """
    text = _USER.sub(f"{HIDDEN}@", text)
    text = _QUERY.sub(_plain_query, text)
    text = _NAMED.sub(_plain_value, text)
    return _KEY_ID.sub(HIDDEN, text)


def shown_address(address: str) -> str:
    """``host:port`` or a URL, without user and password."""
    return shown(address if "://" in address else f"://{address}").removeprefix("://")


def _plain_query(match: re.Match[str]) -> str:
    """A query without its secrets, with one mark for all of them."""
    fields = re.split("[&;?]", match[2])
    kept = [field for field in fields if not _is_secret(unquote(field.partition("=")[0]))]
    return match[0] if kept == fields else match[1] + "&".join([*kept, HIDDEN])


def _plain_value(match: re.Match[str]) -> str:
    """``Signature=abc`` -> ``Signature=***``."""
    if match[1] is None or not _is_secret(match[1]):
        return match[0]
    return f"{match[1]}{match[2]}{HIDDEN}"


def _is_secret(name: str) -> bool:
    """Whether what bears this name is a secret, or belongs to a signature."""
    lowered = name.lower()
    if lowered in _SIGNING or lowered.startswith(_SIGNING_STARTS):
        return True
    if lowered.replace("-", "").replace("_", "").endswith(_SECRET_ENDS):
        return True
    return any(word.lower() in _SECRET for word in _WORDS.findall(name))
