"""URLs: their parts, names and parents."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote

_URL = re.compile(r"((?:[A-Za-z][\w+.-]+::)*[A-Za-z][\w+.-]+://)([^?]*?)(::.*)?", re.DOTALL)
_WEB = re.compile(r"(https?://)([^?#]*)(\?[^#]*)?(?:#.*)?", re.DOTALL | re.IGNORECASE)


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
