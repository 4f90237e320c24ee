"""Addresses of pictures as text: which texts are URLs, their parts, and how they are shown.

Pure. Whatever is printed or stored goes through ``shown``: a URL may carry a password or be
signed, and then it is a secret.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote

HIDDEN = "***"
_URL = re.compile(r"((?:[A-Za-z][\w+.-]+::)*[A-Za-z][\w+.-]+://)([^?]*?)(::.*)?", re.DOTALL)
_WEB = re.compile(r"(https?://)([^?#]*)(\?[^#]*)?(?:#.*)?", re.DOTALL | re.IGNORECASE)
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


class Parts(NamedTuple):
    """A URL in three: ``s3://``, the path, and what follows it (``?query``, ``::inner``)."""

    lead: str
    path: str
    tail: str

    @property
    def web(self) -> bool:
        """Whether it is http(s), where a path is quoted and a query may follow."""
        return self.lead.lower() in ("http://", "https://")


def is_url(text: str) -> bool:
    """Whether a text names its place by URL: ``s3://bucket/raw``, ``zip://a::s3://b/c.zip``."""
    return "://" in text and _URL.match(text) is not None


def split_url(url: str) -> Parts:
    """A URL -> its parts. Raises ValueError for a text that is none."""
    match = _WEB.fullmatch(url)
    if match is None:
        lead, _, rest = url.partition("://")
        match = _URL.fullmatch(url) if "?" not in rest else None
        if match is None and is_url(url):
            return Parts(f"{lead}://", rest, "")  # a ? is a letter of a name elsewhere
    if match is None:
        raise ValueError("not a URL")
    return Parts(match[1], match[2], match[3] or "")


def below(url: str, name: str) -> str:
    """The URL of a file or folder in the folder ``url``, by its name or relative path."""
    parts = split_url(url)
    path = quote(name, safe="/!$&'()*+,;=:@~") if parts.web else name
    return f"{parts.lead}{parts.path.rstrip('/')}/{path}{parts.tail}"


def name_of(url: str) -> str:
    """The last part of a URL's path; that of a server alone is empty."""
    parts = split_url(url)
    head, slash, name = parts.path.rstrip("/").rpartition("/")
    if parts.web:
        return unquote(name) if slash else ""
    return name if head else name.rpartition("@")[2]


def parent_of(url: str) -> str:
    """The URL of the folder that holds it; that of a server or bucket is its own."""
    parts = split_url(url)
    head, _, _ = parts.path.rstrip("/").rpartition("/")
    return f"{parts.lead}{head or parts.path}{parts.tail}"


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
