"""Raw images behind http(s): lists, shards and index pages, addresses that are secrets."""

from __future__ import annotations

import email.utils
import hashlib
import html
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

from imagenet_prep.cli import main as cli
from imagenet_prep.crop.run import CropReport, run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.names import JOURNAL_NAME
from imagenet_prep.sources.scan import scan
from imagenet_prep.storage.location import location_of
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.errors import fails
from tests.kit.journal import failures
from tests.kit.remote import SECRETS, Answer, Fault, Spoiler, files_of, secrets_in
from tests.kit.sources import idx_pair, tar_bytes

pytest.importorskip("aiohttp")
pytest.importorskip("fsspec")

SMALL = CropSettings(size=16)
IMAGE = jpeg_bytes(smooth_pixels(60, 50, 1))


@dataclass
class Site:
    """A folder as a web server gives it: ETags, perhaps parts, pages of links, a token."""

    folder: Path
    parts: bool = True
    pages: bool = False
    etags: bool = True
    token: str = ""

    def serve(self, method: str, target: str, headers: dict[str, str], _body: bytes) -> Answer:
        url = urlsplit(target)
        if self.token and parse_qs(url.query).get("token") != [self.token]:
            return Answer(403, {}, b"")
        path = self.folder / unquote(url.path).strip("/")
        if path.is_dir() and self.pages and url.path.endswith("/"):
            return Answer(200, {"Content-Type": "text/html"}, self._page(path))
        if not path.is_file():
            return Answer(404, {}, b"")
        data = path.read_bytes()
        fields = {"Content-Type": "application/octet-stream"}
        if self.etags:
            fields["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        else:
            fields["Last-Modified"] = email.utils.formatdate(path.stat().st_mtime, usegmt=True)
        if method == "HEAD":
            return Answer(200, fields | {"Content-Length": str(len(data))}, b"")
        asked = headers.get("Range", "").removeprefix("bytes=")
        if not asked or not self.parts:
            return Answer(200, fields, data)
        first, _, last = asked.partition("-")
        start, stop = int(first), min(int(last or len(data) - 1), len(data) - 1)
        fields["Content-Range"] = f"bytes {start}-{stop}/{len(data)}"
        return Answer(206, fields, data[start : stop + 1])

    def _page(self, folder: Path) -> bytes:
        names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
        links = [f'<a href="{quote(name)}">{html.escape(name)}</a>' for name in names]
        extra = '<a href="../">up</a><a href="?C=N;O=D">sort</a><a href="/elsewhere/">away</a>'
        return f"<html>{extra}{''.join(links)}</html>".encode()


@pytest.fixture
def spoiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Spoiler]:
    from fsspec.implementations.http import HTTPFileSystem

    monkeypatch.setenv("IMAGENET_PREP_REMOTE_PAUSE_S", "0.001")
    (tmp_path / "site").mkdir()
    found = Spoiler(Site(tmp_path / "site").serve)
    yield found
    found.close()
    HTTPFileSystem.clear_instance_cache()


def crop(src: Any, dst: Path) -> CropReport:
    return run_crop(src, dst, SMALL, jobs=1)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("etags", [True, False])
def test_a_list_at_a_url_names_images_beside_it(
    spoiler: Spoiler, tmp_path: Path, etags: bool
) -> None:
    rows = b"path,label\nant/1 a#?%20.jpg,ant\nbee/2.jpg,bee\nbee/gone.jpg,bee\n"
    site = write(
        tmp_path / "site",
        {"ant/1 a#?%20.jpg": IMAGE, "bee/2.jpg": IMAGE, "list.csv": rows},
    )
    spoiler.serve = Site(site, etags=etags).serve
    spoiler.reset(Fault("503", ".jpg", 2), Fault("cut", ".csv", 1))
    src, dst = location_of(f"{spoiler.url}/list.csv"), tmp_path / "cropped"
    report = crop(src, dst)
    assert report.ok == 2
    assert failures(dst) == {"bee/gone.jpg": "cannot be read: No such file or directory"}
    assert (dst / "train/ant/ant/1 a#?%20.JPEG").is_file()
    assert crop(src, dst).tried == 1
    (site / "bee/2.jpg").write_bytes(IMAGE + b"longer")
    spoiler.reset()
    assert (crop(src, dst).ok, len(spoiler.gets("2.jpg"))) == (1, 1)


def test_shards_at_a_url_are_read_in_place(spoiler: Spoiler, tmp_path: Path) -> None:
    members = {f"{n}.{kind}": data for n in range(9) for kind, data in
               (("jpg", IMAGE + bytes(n * 9000)), ("cls", b"%d" % (n % 2)))}  # fmt: skip
    site = write(tmp_path / "site", {"val-0.tar": tar_bytes(members)})
    src = location_of(f"{spoiler.url}/val-0.tar")
    here = scan(site / "val-0.tar")
    there = scan(src)
    assert [(s.key, s.label, s.place.read()) for s in there.sources] == [
        (s.key, s.label, s.place.read()) for s in here.sources
    ]
    assert crop(src, tmp_path / "cropped").ok == 9
    assert crop(src, tmp_path / "cropped").tried == 0


def test_a_server_without_byte_ranges_is_named_first(spoiler: Spoiler, tmp_path: Path) -> None:
    big = bytes(3 << 20)
    site = write(tmp_path / "site", {"0.tar": tar_bytes({"1.jpg": big, "1.cls": b"1"})})
    spoiler.serve = Site(site, parts=False).serve
    with fails("remote.no_parts"):
        scan(location_of(f"{spoiler.url}/0.tar"))


def test_small_arrays_need_no_parts(spoiler: Spoiler, tmp_path: Path) -> None:
    idx_pair(tmp_path / "site", "train", [1, 0, 1])
    spoiler.serve = Site(tmp_path / "site", parts=False).serve
    sources = scan(location_of(f"{spoiler.url}/train-images-idx3-ubyte")).sources
    assert [s.place.read()[-6:] for s in sources] == [bytes([n]) * 6 for n in range(3)]


def test_pages_of_links_are_folders(
    spoiler: Spoiler, make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw = make_raw(train=2, val=1)
    (raw / "train/ant/ä b&c.jpg").write_bytes(IMAGE)
    (raw / "train/ant/http_1.jpg").write_bytes(IMAGE)
    write(raw, {"train/https/1.jpg": IMAGE})
    spoiler.serve = Site(raw, pages=True).serve
    crop(raw, tmp_path / "local")
    src = location_of(f"{spoiler.url}/")
    assert crop(src, tmp_path / "cropped").ok == 9
    crops = {k: v for k, v in files_of(tmp_path / "local").items() if k != JOURNAL_NAME}
    assert {k: v for k, v in files_of(tmp_path / "cropped").items() if k != JOURNAL_NAME} == crops
    assert crop(src, tmp_path / "cropped").tried == 0


def test_links_may_be_written_in_any_way(
    spoiler: Spoiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def page(_: Site, folder: Path) -> bytes:
        names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
        return "".join(f"<A HREF='./{name}'>{name}</A><a>no</a>" for name in names).encode()

    write(tmp_path / "site", {"train/ant/1.jpg": IMAGE, "train/bee/2.jpg": IMAGE})
    monkeypatch.setattr(Site, "_page", page)
    spoiler.serve = Site(tmp_path / "site", pages=True).serve
    found = scan(location_of(f"{spoiler.url}/"))
    assert [source.key for source in found.sources] == ["train/ant/1.jpg", "train/bee/2.jpg"]


def test_what_is_neither_a_list_nor_a_folder_is_wrong_usage(
    spoiler: Spoiler, tmp_path: Path
) -> None:
    write(tmp_path / "site", {"a.html": b"hello"})
    with fails("source.layout_unknown", "end its URL with /", usage=True):
        scan(location_of(f"{spoiler.url}/a.html"))
    with fails("source.missing", usage=True):
        scan(location_of(f"{spoiler.url}/none"))


def addressed(spoiler: Spoiler, path: str, token: str) -> str:
    """An address with a user's password, a image's number and a token."""
    host = spoiler.url.removeprefix("http://")
    return f"http://me:{SECRETS[2]}@{host}/{path}?id={path[0]}&token={token}"


def test_addresses_that_are_secrets_are_nowhere_and_may_change(
    spoiler: Spoiler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = write(tmp_path / "site", {"1.jpg": IMAGE, "2.jpg": IMAGE, "3.jpg": b"none"})
    spoiler.serve = Site(site, token=SECRETS[1]).serve
    dst, listed = tmp_path / "cropped", tmp_path / "list.csv"

    def listing(token: str) -> list[str]:
        urls = [addressed(spoiler, f"{n}.jpg", token) for n in (1, 2, 3, 4)]
        listed.write_text("".join(f"{url},ant\n" for url in urls))
        return ["crop", "--src", str(listed), "--dst", str(dst), "--size", "16", "--jobs", "1"]

    assert cli.run(listing(SECRETS[1])) == 0
    assert cli.run(["failures", str(dst)]) == 0
    printed = capsys.readouterr()
    assert "4.jpg" in printed.out
    # Signed anew: the same images.
    spoiler.serve = Site(site, token=SECRETS[1] + "new").serve
    assert cli.run([*listing(SECRETS[1] + "new"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["skipped"], again["failed"]) == (2, 2)
    # No longer valid: that is no sign for the images, so their crops stay.
    assert cli.run(listing(SECRETS[1])) == 1
    denied = capsys.readouterr()
    assert "no response from the image server (access denied (403 Forbidden))" in denied.err
    assert len([name for name in files_of(dst) if name.startswith("train/")]) == 2
    assert secrets_in(printed.out, printed.err, denied.err, denied.out) == []
    assert secrets_in(*files_of(dst).values(), "\n".join(files_of(dst))) == []


def test_a_source_with_a_password_is_named_without_it(
    spoiler: Spoiler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoiler.serve = Site(tmp_path / "site", token=SECRETS[1]).serve
    src = addressed(spoiler, "list.csv", SECRETS[1])
    assert cli.run(["crop", "--src", src, "--dst", str(tmp_path / "cropped")]) == 2
    assert cli.run(["crop", "--src", "raw", "--dst", src]) == 2
    assert cli.run(["crop", "--src", src.replace("token=", "token=x"), "--dst", "c"]) == 1
    assert cli.run(["crop", "--src", src.replace("http:", "nohttp:"), "--dst", "c"]) == 2
    assert cli.run(["crop", "--src", "raw", "--dst", "c", src]) == 2
    printed = capsys.readouterr().err
    assert printed.count("http://***@127.0.0.1") == 5
    assert secrets_in(printed) == []


def test_a_dead_server_of_listed_images_is_one_message(
    spoiler: Spoiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGENET_PREP_REMOTE_TRIES", "2")
    spoiler.reset(Fault("503", "/", 1_000_000))
    spoiler.serve = lambda *_: Answer(503, {}, b"")
    listed = tmp_path / "list.csv"
    listed.write_text("".join(f"{spoiler.url}/{n}.jpg,ant\n" for n in range(300)))
    with fails("remote.silent", "503 Service Unavailable, tried 2 times"):
        _ = scan(listed).sources
    assert len(spoiler.asked) < 900  # and not each of them as often as is allowed
