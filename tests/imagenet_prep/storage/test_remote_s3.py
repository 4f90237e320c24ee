"""Raw images in a bucket: the same crops and journal as from a disk, whatever the net does."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.cli import main as cli
from imagenet_prep.sources.scan import scan
from imagenet_prep.storage.location import location_of
from tests.conftest import jpeg_bytes, smooth_pixels
from tests.kit.command import prep
from tests.kit.errors import fails
from tests.kit.journal import failures
from tests.kit.remote import Fault, files_of, secrets_in
from tests.kit.store import BUCKET, Store, crop, made


def test_a_bucket_gives_the_crops_and_journal_of_a_folder(
    store: Store, make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw = make_raw()
    (raw / "train/ant/odd name #1?.x+y=z.jpg").write_bytes(jpeg_bytes(smooth_pixels(60, 50, 9)))
    (raw / "train/bee/no image.jpg").write_bytes(b"nothing of it")
    url = store.put(raw)
    store.plain.put_object(Bucket=BUCKET, Key="raw/train/", Body=b"")  # what consoles leave
    assert crop(raw, tmp_path / "local") is not None
    report = crop(url, tmp_path / "cropped")
    assert (report.ok, report.failed) == (13, 1)
    assert made(tmp_path / "cropped") == made(tmp_path / "local")


def test_a_second_run_does_only_what_has_changed(
    store: Store, make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw = make_raw()
    before = raw / "train/ant/ant0.jpg"
    image = before.read_bytes()
    before.write_bytes(image + b"one")
    url = store.put(raw)
    crop(url, tmp_path / "cropped")
    store.spoiler.reset()
    assert crop(url, tmp_path / "cropped").tried == 0
    assert store.spoiler.gets() == []
    # As long as before: only what the store calls it, its ETag, tells.
    before.write_bytes(image + b"two")
    (raw / "train/bee/new.jpg").write_bytes(jpeg_bytes(smooth_pixels(60, 50, 9)))
    store.put(raw)  # all again, the others with the same bytes at another time
    store.remove("raw/val/ant/ant0.jpg")
    report = crop(url, tmp_path / "cropped")
    assert (report.tried, report.ok, report.skipped) == (2, 2, 10)
    assert not (tmp_path / "cropped/val/ant/ant0.JPEG").exists()
    assert sorted(store.spoiler.gets()) == [
        f"/{BUCKET}/raw/train/ant/ant0.jpg",
        f"/{BUCKET}/raw/train/bee/new.jpg",
    ]


@pytest.mark.parametrize("kind", ["503", "reset", "slow", "stall"])
def test_what_fails_now_and_then_comes_out_the_same(
    store: Store,
    make_raw: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    raw = make_raw(train=2, val=1)
    url = store.put(raw)
    crop(raw, tmp_path / "local")
    only = {"stall": "ant0.jpg", "slow": "ant"}.get(kind, ".jpg")
    if kind == "stall":
        monkeypatch.setenv("IMAGENET_PREP_REMOTE_TIMEOUT_S", "2.5")
    store.spoiler.reset(Fault(kind, only, times=2), Fault("503", "prefix", 1))
    report = crop(url, tmp_path / "cropped")
    assert report.failed == 0
    assert made(tmp_path / "cropped") == made(tmp_path / "local")
    asked = store.spoiler.gets("ant0.jpg")
    assert len(asked) == (2 if kind == "slow" else 6)  # of train and of val


def test_a_listing_that_fails_now_and_then_is_whole(
    store: Store, make_raw: Callable[..., Path]
) -> None:
    url = store.put(make_raw())
    store.spoiler.reset(Fault("503", f"/{BUCKET}", 2), Fault("reset", f"/{BUCKET}", 1))
    assert len(scan(url).sources) == 12


@pytest.mark.parametrize(
    ("kind", "reason", "asked"),
    [
        ("403", "cannot be read: access denied (403 Forbidden)", 1),
        ("503", "cannot be read: the server answers 503 Service Unavailable, tried 5 times", 5),
    ],
)
def test_permanent_failures_are_listed_and_retried_alone(
    store: Store,
    make_raw: Callable[..., Path],
    tmp_path: Path,
    kind: str,
    reason: str,
    asked: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw, dst = make_raw(train=2, val=1), tmp_path / "cropped"
    url = store.put(raw)
    crop(raw, tmp_path / "local")
    store.spoiler.reset(Fault(kind, "train/bee/", times=1000))
    report = crop(url, dst)
    assert (report.ok, report.failed) == (4, 2)
    assert len(store.spoiler.gets("bee0.jpg")) == asked + 1  # that of val is good
    keys = ["train/bee/bee0.jpg", "train/bee/bee1.jpg"]
    assert failures(dst) == dict.fromkeys(keys, reason)
    assert cli.run(["failures", str(dst)]) == 0
    assert capsys.readouterr().out == "".join(f"{key}\t{reason}\n" for key in keys)
    store.spoiler.reset()
    again = crop(url, dst)
    assert (again.tried, again.ok, again.skipped, again.failed) == (2, 2, 4, 0)
    assert sorted({Path(path).name for path in store.spoiler.gets()}) == ["bee0.jpg", "bee1.jpg"]
    assert crop(url, dst).tried == 0
    assert {k: v for k, v in made(dst).items() if k != "journal"} == {
        k: v for k, v in made(tmp_path / "local").items() if k != "journal"
    }


def test_an_object_replaced_during_reading_is_done_again(
    store: Store, make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw = make_raw(train=1, val=0)
    url = store.put(raw)
    changed = jpeg_bytes(smooth_pixels(60, 50, 9))
    inner = store.spoiler.serve

    def change(method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        if method == "GET" and "ant0.jpg" in path:
            store.plain.put_object(Bucket=BUCKET, Key="raw/train/ant/ant0.jpg", Body=changed)
        return inner(method, path, headers, body)

    store.spoiler.serve = change
    try:
        crop(url, tmp_path / "cropped")
    finally:
        store.spoiler.serve = inner
    reason = failures(tmp_path / "cropped")["train/ant/ant0.jpg"]
    assert "other bytes come than it has" in reason
    assert crop(url, tmp_path / "cropped").ok == 1


@pytest.mark.parametrize("fault", ["outage", "403"])
def test_a_listing_that_cannot_be_had_is_one_message(
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    from s3fs import S3FileSystem

    monkeypatch.setenv("IMAGENET_PREP_REMOTE_TRIES", "2")
    if fault == "outage":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        S3FileSystem.clear_instance_cache()
    else:
        store.spoiler.reset(Fault(fault, f"/{BUCKET}", 1000))
    dst = tmp_path / "cropped"
    try:
        status = cli.run(["crop", "--src", f"s3://{BUCKET}/raw", "--dst", str(dst)])
    finally:
        if fault == "outage":
            S3FileSystem.clear_instance_cache()
    printed = capsys.readouterr()
    assert status == 1
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert f"s3://{BUCKET}/raw: cannot be " in printed.err
    assert ("check the credentials" if fault == "403" else "try again later") in printed.err
    assert not dst.exists()
    assert secrets_in(printed.err) == []


def test_a_folder_or_bucket_that_is_not_there_is_wrong_usage(store: Store) -> None:
    for url in (f"s3://{BUCKET}/none", "s3://no-such-bucket/raw"):
        with fails("source.missing", usage=True):
            scan(location_of(url))


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        (("ant/1.jpg", "ant/1.jpg/2.jpg"), "remote.file_and_folder"),
        (("ant/1.jpg", "ant//2.jpg"), "remote.empty_name"),
        (("ant//1.jpg", "ant/ant/2.jpg"), "remote.empty_name"),
    ],
)
def test_keys_that_no_disk_can_hold_are_named(
    store: Store, tmp_path: Path, keys: tuple[str, ...], code: str
) -> None:
    url = store.put(tmp_path, "odd")
    for key in keys:
        store.plain.put_object(Bucket=BUCKET, Key=f"odd/{key}", Body=b"x")
    with fails(code):
        _ = scan(url).sources


def test_a_forked_process_opens_its_own_connections(
    store: Store, make_raw: Callable[..., Path]
) -> None:
    place = scan(store.put(make_raw(train=1, val=0))).sources[0].place
    data = place.read()  # this process has a connection, and a thread that serves it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if child == 0:
        os._exit(0 if place.read() == data else 1)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        threading.Event().wait(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the forked process waits for ever")
    assert os.waitstatus_to_exitcode(status) == 0


def test_the_command_with_faults_and_workers_leaves_no_secret(
    store: Store, make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw = make_raw(train=8, val=2)
    store.put(raw)
    crop(raw, tmp_path / "local")
    store.spoiler.reset(
        Fault("503", "ant", 2), Fault("reset", "bee", 2), Fault("404", "train/bee/bee7.jpg", 1000)
    )
    words = ["crop", "--src", f"s3://{BUCKET}/raw", "--dst", tmp_path / "cropped"]
    ended = prep(*words, "--size", 16, "--jobs", 2)
    assert ended.status == 0, ended.err
    assert failures(tmp_path / "cropped").keys() == {"train/bee/bee7.jpg"}
    store.spoiler.reset()
    assert crop(location_of(f"s3://{BUCKET}/raw"), tmp_path / "cropped").tried == 1
    assert {k: v for k, v in made(tmp_path / "cropped").items() if k != "journal"} == {
        k: v for k, v in made(tmp_path / "local").items() if k != "journal"
    }
    assert secrets_in(ended.out, ended.err, *files_of(tmp_path / "cropped").values()) == []
