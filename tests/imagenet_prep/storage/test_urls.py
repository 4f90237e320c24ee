"""URLs as text: what is one, its parts, and that no secret is ever shown."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_prep.core.redact import shown
from imagenet_prep.storage.urls import below, is_url, name_of, parent_of


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("s3://bucket/raw/a.jpg", "s3://bucket/raw/a.jpg"),
        ("s3://bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        ("s3://bucket/key=3/session=4/a.jpg", "s3://bucket/key=3/session=4/a.jpg"),
        ("https://host:8080/a@b?id=3&w=1", "https://host:8080/a@b?id=3&w=1"),
        ("https://user:pw@host/a.jpg", "https://***@host/a.jpg"),
        ("https://user@host/a.jpg", "https://***@host/a.jpg"),
        ("https://user:p/w?x#y@host/a.jpg", "https://***@host/a.jpg"),
        ("https://user:p w@host/a.jpg", "https://***@host/a.jpg"),
        ("zip://a.jpg::https://user:pw@host/c.zip", "zip://a.jpg::https://***@host/c.zip"),
        ("https://host/a.jpg?token=abc", "https://host/a.jpg?***"),
        ("https://host/a.jpg?w=1&access%5Ftoken=abc&id=3", "https://host/a.jpg?w=1&id=3&***"),
        ("https://host/a.jpg?b=1?sig=abc", "https://host/a.jpg?b=1&***"),
        ("https://host/a.jpg#access_token=abc", "https://host/a.jpg#***"),
        (
            "https://b.s3.amazonaws.com/a.jpg?X-Amz-Algorithm=A&X-Amz-Credential=C&"
            "X-Amz-Date=20260101T000000Z&X-Amz-Expires=600&X-Amz-Signature=abc",
            "https://b.s3.amazonaws.com/a.jpg?***",
        ),
        ("https://c.blob/a.jpg?sv=2024&se=2026&sr=b&sp=r&sig=abc%3D", "https://c.blob/a.jpg?***"),
        ("https://g/a.jpg?GoogleAccessId=me&Expires=1&Signature=abc", "https://g/a.jpg?***"),
        ("https://h/a.jpg?apiKey=abc&design=3&keyword=x", "https://h/a.jpg?design=3&keyword=x&***"),
        (
            "403, message='Forbidden', url='https://h/a?sig=abc', more",
            "403, message='Forbidden', url='https://h/a?***', more",
        ),
        ("Credential=AKIAABCDEFGHIJKLMNOP/2026, Signature=abc", "Credential=***, Signature=***"),
        ('{"aws_secret_access_key": "abc/d"}', '{"aws_secret_access_key": "***"}'),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("the key AKIAABCDEFGHIJKLMNOP does not exist", "the key *** does not exist"),
        ("key 'a' is missing, 50% of it", "key 'a' is missing, 50% of it"),
    ],
)
def test_secrets_are_not_shown_and_all_else_is(text: str, safe: str) -> None:
    assert shown(text) == safe
    assert shown(safe) == safe


_NAMES = ("token", "X-Amz-Signature", "sig", "password", "API_KEY", "auth", "client-secret")


@given(
    secret=st.text(min_size=8, max_size=30).filter(lambda s: s.strip("*") == s.strip()),
    name=st.sampled_from(_NAMES),
    path=st.text(st.characters(categories=("L", "N")), max_size=8),
    around=st.sampled_from(["{}", "cannot open {}", "url='{}', status=403", '"{}"']),
)
def test_no_secret_survives_wherever_it_stands(
    secret: str, name: str, path: str, around: str
) -> None:
    quoted = quote(secret, safe="")
    for url in (
        f"https://host/{path}?a=1&{name}={quoted}",
        f"https://me:{quoted}@host/{path}",
        f"ftp://{quoted}@host/{path}",
        f"simplecache::https://me:{quoted}@host/{path}?{name}={quoted}",
    ):
        assert quoted not in shown(around.format(url)).replace(path, "")


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("s3://bucket", True),
        ("https://host/a", True),
        ("simplecache::s3://bucket/a", True),
        ("zip://a::s3://bucket/c.zip", True),
        ("raw/a.jpg", False),
        ("/raw/s3://a", False),
        ("c://a", False),
        ("a b://c", False),
        ("://a", False),
    ],
)
def test_a_url_has_a_protocol(text: str, is_one: bool) -> None:
    assert is_url(text) == is_one


@pytest.mark.parametrize(
    ("folder", "name", "url"),
    [
        ("s3://bucket/raw", "a b#?.jpg", "s3://bucket/raw/a b#?.jpg"),
        ("s3://bucket", "raw", "s3://bucket/raw"),
        ("https://host/raw/", "ä #?.jpg", "https://host/raw/%C3%A4%20%23%3F.jpg"),
        ("https://host/raw?token=1", "a.jpg", "https://host/raw/a.jpg?token=1"),
        ("zip://raw::s3://bucket/c.zip", "a.jpg", "zip://raw/a.jpg::s3://bucket/c.zip"),
    ],
)
def test_names_are_put_below_folders_and_found_again(folder: str, name: str, url: str) -> None:
    assert below(folder, name) == url
    assert name_of(url) == name
    assert parent_of(url).rstrip("/") == folder.replace("raw/", "raw").rstrip("/")


def test_a_server_has_no_name_and_a_bucket_has_its_own() -> None:
    assert name_of("https://user:pw@host") == name_of("https://host/") == ""
    assert name_of("s3://bucket/") == "bucket"
    assert parent_of("s3://bucket") == "s3://bucket"
