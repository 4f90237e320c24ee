"""Raw pictures in a bucket: the same crops and journal as from a disk, whatever the net does.

The store is moto's server, with a server of our own before it that spoils its answers.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imagenet_prep import cli
from imagenet_prep.artifacts import JOURNAL_NAME, ToolError, UsageError
from imagenet_prep.crop_settings import CropSettings
from imagenet_prep.crop_stage import CropReport, run_crop
from imagenet_prep.locations import Url, location_of
from imagenet_prep.sources import scan
from tests.conftest import REPOSITORY, jpeg_bytes, smooth_pixels
from tests.prep.remote_kit import SECRETS, Fault, Spoiler, files_of, passed_on, secrets_in
from tests.prep.source_kit import devkit, idx_pair, tar_bytes, train_tar, val_tar

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

SMALL = CropSettings(size=16)
BUCKET = "pictures"


@dataclasses.dataclass
class Store:
    """A bucket, and the server before it."""

    spoiler: Spoiler
    plain: Any  # a client that does not pass it

    def put(self, folder: Path, name: str = "raw") -> Url:
        """Uploads a folder -> its URL."""
        for path, data in files_of(folder).items():
            self.plain.put_object(Bucket=BUCKET, Key=f"{name}/{path}", Body=data)
        url = location_of(f"s3://{BUCKET}/{name}")
        assert isinstance(url, Url)
        return url

    def remove(self, name: str) -> None:
        self.plain.delete_object(Bucket=BUCKET, Key=name)


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    import boto3
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = moto_server.ThreadedMotoServer("127.0.0.1", 0)
    moto.start()
    host, port = moto.get_host_and_port()
    spoiler = Spoiler(passed_on(host, port))
    environment = {
        "AWS_ENDPOINT_URL": spoiler.url,
        "AWS_ACCESS_KEY_ID": "the-id",
        "AWS_SECRET_ACCESS_KEY": SECRETS[0],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "IMAGENET_PREP_REMOTE_PAUSE_S": "0.001",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        try:
            yield Store(spoiler, boto3.client("s3", endpoint_url=f"http://{host}:{port}"))
        finally:
            spoiler.close()
            moto.stop()
            S3FileSystem.clear_instance_cache()


@pytest.fixture
def store(server: Store) -> Iterator[Store]:
    """An empty bucket, and a server that does no harm yet."""
    server.spoiler.reset()
    server.plain.create_bucket(Bucket=BUCKET)
    yield server
    for found in server.plain.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        server.remove(found["Key"])
    server.plain.delete_bucket(Bucket=BUCKET)


def crop(src: Path | Url, dst: Path, **options: Any) -> CropReport:
    return run_crop(src, dst, SMALL, **({"jobs": 1} | options))


def made(dst: Path) -> dict[str, Any]:
    """The crops and classes byte by byte, and the journal but for the sources' times."""
    files: dict[str, Any] = dict(files_of(dst))
    lines = [json.loads(line) for line in files.pop(JOURNAL_NAME).splitlines()]
    for line in lines:
        for name in ("mtime_ns", "check", "sum"):
            line.pop(name, None)
    return files | {"journal": lines}


def failures(dst: Path) -> dict[str, str]:
    rows = map(json.loads, (dst / JOURNAL_NAME).read_bytes().splitlines())
    return {row["key"]: row["reason"] for row in rows if row.get("status") == "failed"}


def test_a_bucket_gives_the_crops_and_journal_of_a_folder(
    store: Store, make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw = make_raw()
    (raw / "train/ant/odd name #1?.x+y=z.jpg").write_bytes(jpeg_bytes(smooth_pixels(60, 50, 9)))
    (raw / "train/bee/no picture.jpg").write_bytes(b"nothing of it")
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
    picture = before.read_bytes()
    before.write_bytes(picture + b"one")
    url = store.put(raw)
    crop(url, tmp_path / "cropped")
    store.spoiler.reset()
    assert crop(url, tmp_path / "cropped").tried == 0
    assert store.spoiler.gets() == []
    # As long as before: only what the store calls it, its ETag, tells.
    before.write_bytes(picture + b"two")
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


@pytest.mark.parametrize("kind", ["503", "500", "429", "reset", "cut", "slow", "stall"])
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


@pytest.mark.parametrize("times", [1, 2])
def test_a_listing_that_fails_now_and_then_is_whole(
    store: Store, make_raw: Callable[..., Path], times: int
) -> None:
    url = store.put(make_raw())
    store.spoiler.reset(Fault("503", f"/{BUCKET}", times), Fault("reset", f"/{BUCKET}", 1))
    assert len(scan(url).sources) == 12


@pytest.mark.parametrize(
    ("kind", "reason", "asked"),
    [
        ("403", "cannot be read: access denied (403 Forbidden)", 1),
        ("404", "cannot be read: No such file or directory", 1),
        ("503", "cannot be read: the server answers 503 Service Unavailable, tried 5 times", 5),
        ("cut", "cannot be read: the connection broke off, tried 5 times", 5),
    ],
)
def test_what_fails_for_good_is_listed_and_tried_by_the_next_run_alone(
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


def test_an_object_that_is_replaced_while_it_is_read_is_done_again(
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
        report = crop(url, tmp_path / "cropped")
    finally:
        store.spoiler.serve = inner
    assert report.failures[0][0] == "train/ant/ant0.jpg"
    assert "other bytes come than it has" in report.failures[0][1]
    assert crop(url, tmp_path / "cropped").ok == 1


@pytest.mark.parametrize("fault", ["outage", "403", "503"])
def test_a_listing_that_cannot_be_had_is_one_sentence(
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
    said = capsys.readouterr()
    assert status == 1
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert f"s3://{BUCKET}/raw: cannot be " in said.err
    assert ("check the credentials" if fault == "403" else "try again later") in said.err
    assert not dst.exists()
    assert secrets_in(said.err) == []


def test_a_folder_or_bucket_that_is_not_there_is_wrong_usage(store: Store) -> None:
    for url in (f"s3://{BUCKET}/none", "s3://no-such-bucket/raw"):
        with pytest.raises(UsageError, match="no such folder or file"):
            scan(location_of(url))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("ant/1.jpg", "ant/1.jpg/2.jpg"), r"has a file 1\.jpg and a folder of that name"),
        (("ant/1.jpg", "ant//2.jpg"), "names with an empty part"),
        (("ant//1.jpg", "ant/ant/2.jpg"), "names with an empty part"),
    ],
)
def test_keys_that_no_disk_can_hold_are_named(
    store: Store, tmp_path: Path, keys: tuple[str, ...], said: str
) -> None:
    url = store.put(tmp_path, "odd")
    for key in keys:
        store.plain.put_object(Bucket=BUCKET, Key=f"odd/{key}", Body=b"x")
    with pytest.raises(ToolError, match=said):
        scan(url)


def same(store: Store, folder: Path, file: str = "", **options: Any) -> list[tuple[Any, ...]]:
    """What a layout finds in a folder, after a look that the bucket has the same."""
    url = store.put(folder, folder.name)
    there = scan(url / file if file else url, **options)
    here = scan(folder / file if file else folder, **options)
    assert there.classes == here.classes
    found = [(s.key, s.split, s.label, s.crop, s.place.read()) for s in there.sources]
    assert found == [(s.key, s.split, s.label, s.crop, s.place.read()) for s in here.sources]
    return found


def test_flat_names_and_tiny_imagenet(store: Store, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("cat.1.jpg", "cat.2.jpg", "dog.1.jpg"):
        (flat / name).write_bytes(name.encode())
    assert len(same(store, flat)) == 3
    tiny = tmp_path / "tiny"
    for name in ("train/n01/images/n01_0.JPEG", "train/n02/images/n02_0.JPEG", "val/images/v.JPEG"):
        (tiny / name).parent.mkdir(parents=True, exist_ok=True)
        (tiny / name).write_bytes(name.encode())
    (tiny / "val/val_annotations.txt").write_text("v.JPEG\tn02\t0\t0\t1\t1\n")
    (tiny / "words.txt").write_text("n01\tgoldfish\n")
    assert [row[2] for row in same(store, tiny)] == [0, 1, 1]


@pytest.mark.parametrize("packed", [False, True])
def test_arrays(store: Store, tmp_path: Path, packed: bool) -> None:
    idx_pair(tmp_path / "mnist", "train", [1, 0, 1], packed)
    idx_pair(tmp_path / "mnist", "t10k", [0], packed)
    assert len(same(store, tmp_path / "mnist")) == 4
    name = f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    assert len(same(store, tmp_path / "mnist", name)) == 3


def test_ilsvrc_archives_are_read_in_place(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "archives"
    folder.mkdir()
    pictures = {name: name.encode() * 4000 for name in ("n01_1.JPEG", "n01_2.JPEG")}
    val_tar(folder, [b"one", b"two" * 30_000, b"three"])
    devkit(folder, (1, 2, 1))
    train_tar(folder, {"n01": pictures, "n02": {"n02_1.JPEG": b"x"}, "n03": {"n03_1.JPEG": b"y"}})
    assert len(same(store, folder)) == 7


def test_shards_are_read_in_place(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    for split, count in (("train", 3), ("val", 1)):
        (folder / split).mkdir(parents=True)
        for shard in range(count):
            members = [
                (f"{n:04}.{kind}", data)
                for n in range(20)
                for kind, data in (
                    ("cls", b"%d" % (n % 3)),
                    ("jpg", bytes([n]) * (n * n * 150)),
                    ("json", b"{}"),
                )
            ]
            (folder / f"{split}/{shard}.tar").write_bytes(tar_bytes(members))
    assert len(same(store, folder)) == 80
    url = store.put(folder)
    store.spoiler.reset()
    assert len(scan(url / "train" / "0.tar").sources) == 20
    asked = len(store.spoiler.gets(".tar"))
    assert 3 < asked < 30  # and neither all at once nor one for each of 60 members


def test_a_shard_that_is_cut_off_is_one_sentence(store: Store, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    whole = tar_bytes({"1.jpg": b"x" * 90_000, "1.cls": b"1"})
    (tmp_path / "raw/0.tar").write_bytes(whole[:60_000])
    with pytest.raises(ToolError, match=r"^s3://pictures/raw/0\.tar: is cut off"):
        scan(store.put(tmp_path / "raw"))


def test_lists_name_pictures_beside_them_and_anywhere(
    store: Store, make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw = make_raw(train=2, val=1)
    rows = [(p.relative_to(raw).as_posix(), p.parent.name) for p in sorted(raw.rglob("*.jpg"))]
    with (raw / "list.csv").open("w") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    assert len(same(store, raw, "list.csv")) == 6
    crop(raw / "list.csv", tmp_path / "local")
    crop(location_of(f"s3://{BUCKET}/raw/list.csv"), tmp_path / "there")
    assert made(tmp_path / "there") == made(tmp_path / "local")
    # A list on the disk of pictures in the bucket, one of which is not there.
    here = tmp_path / "list.tsv"
    urls = [(f"s3://{BUCKET}/raw/{path}", label) for path, label in [*rows, ("gone.jpg", "ant")]]
    here.write_text("".join(f"{path}\t{label}\n" for path, label in urls))
    report = crop(here, tmp_path / "mixed")
    assert (report.ok, report.failed) == (6, 1)
    assert failures(tmp_path / "mixed") == {
        urls[-1][0]: "cannot be read: No such file or directory"
    }
    assert (tmp_path / "mixed/train/ant/pictures/raw/train/ant/ant0.JPEG").is_file()
    assert crop(here, tmp_path / "mixed").tried == 1


def test_classes_may_be_listed_in_the_bucket(store: Store, make_raw: Callable[..., Path]) -> None:
    raw = make_raw(train=1, val=1)
    (raw / "classes.txt").write_text("bee\ta bee\n")
    url = store.put(raw)
    classes = scan(url, classes=url / "classes.txt").classes
    assert (classes.names, classes.title(0)) == (("bee",), "a bee")


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


def test_the_command_itself_with_faults_and_workers_and_no_secret_left_behind(
    store: Store, make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw = make_raw(train=8, val=2)
    store.put(raw)
    crop(raw, tmp_path / "local")
    store.spoiler.reset(
        Fault("503", "ant", 2), Fault("reset", "bee", 2), Fault("404", "train/bee/bee7.jpg", 1000)
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "imagenet_prep", "crop", "--src", f"s3://{BUCKET}/raw"),
            *("--dst", str(tmp_path / "cropped"), "--size", "16", "--jobs", "2"),
        ],
        cwd=REPOSITORY, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert failures(tmp_path / "cropped").keys() == {"train/bee/bee7.jpg"}
    store.spoiler.reset()
    assert crop(location_of(f"s3://{BUCKET}/raw"), tmp_path / "cropped").tried == 1
    assert {k: v for k, v in made(tmp_path / "cropped").items() if k != "journal"} == {
        k: v for k, v in made(tmp_path / "local").items() if k != "journal"
    }
    assert secrets_in(done.stdout, done.stderr, *files_of(tmp_path / "cropped").values()) == []
