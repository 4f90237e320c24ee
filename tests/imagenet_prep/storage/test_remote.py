"""The seam to fsspec: other protocols, missing packages, faults and what is made of them."""

from __future__ import annotations

import errno
import importlib.util
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_prep.containers.tar import Windows
from imagenet_prep.crop.run import run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.sources.scan import scan
from imagenet_prep.storage import byte_range
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Url, location_of
from imagenet_prep.storage.remote import status
from imagenet_prep.storage.remote_errors import RemoteError, fault_of
from tests.kit.command import REPOSITORY, Running, one_message, python
from tests.kit.errors import fails
from tests.kit.remote import SECRETS, files_of, secrets_in

SMALL = CropSettings(size=16)


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in memory, empty."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def rows(src: Any) -> list[tuple[Any, ...]]:
    return [(s.key, s.split, s.label, s.crop, s.place.read()) for s in scan(src).sources]


def test_any_protocol_of_fsspec_will_do(
    memory: Any, make_raw: Callable[..., Path], tmp_path: Path
) -> None:
    raw = make_raw()
    for name, data in files_of(raw).items():
        memory.pipe(f"/deep/raw/{name}", data)
    src = location_of("memory://deep/raw")
    assert rows(src) == rows(raw)
    dst = tmp_path / "cropped"
    assert run_crop(src, dst, SMALL, jobs=1).ok == 12
    assert run_crop(src, dst, SMALL, jobs=1).tried == 0
    memory.pipe("/deep/raw/train/ant/ant0.jpg", memory.cat("/deep/raw/train/ant/ant1.jpg"))
    assert run_crop(src, dst, SMALL, jobs=1).tried == 1


def test_one_protocol_may_lie_in_another(make_raw: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    raw = make_raw(train=1, val=1)
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as archive:
        for name, data in files_of(raw).items():
            archive.writestr(f"raw/{name}", data)
    assert rows(location_of(f"zip://raw::file://{tmp_path}/raw.zip")) == rows(raw)


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    assert location_of(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert location_of("s3:/not-a-url") == Path("s3:/not-a-url")
    (tmp_path / "list.csv").write_text(f"file://{tmp_path}/a%20b,ant\n")
    (tmp_path / "a b").write_bytes(b"here")
    assert rows(tmp_path / "list.csv")[0][-1] == b"here"


@pytest.mark.parametrize(
    ("missing", "url"), [("fsspec", "s3://bucket/raw"), ("s3fs", f"s3://{SECRETS[0]}@bucket/raw")]
)
def test_a_missing_package_is_one_message_that_names_the_extra(missing: str, url: str) -> None:
    pytest.importorskip("fsspec")
    code = (
        "import sys; sys.modules[sys.argv[1]] = None; from imagenet_prep.cli import main as cli; "
        "sys.exit(cli.run(['crop', '--src', sys.argv[2], '--dst', 'never-made']))"
    )
    message = one_message(Running([sys.executable, "-c", code, missing, url]).end())
    assert missing in message
    assert "pip install 'imagenet-alexnet[cloud]'" in message
    assert secrets_in(message) == []
    assert not (REPOSITORY / "never-made").exists()


def test_a_protocol_whose_package_is_missing_is_named() -> None:
    pytest.importorskip("fsspec")
    if importlib.util.find_spec("gcsfs") is not None:
        pytest.skip("gcsfs is installed")
    with fails("remote.package_missing", "gs://bucket/raw", "gcsfs", "[cloud]"):
        scan(location_of("gs://bucket/raw"))


def test_an_unknown_protocol_is_wrong_usage() -> None:
    pytest.importorskip("fsspec")
    with fails("remote.protocol", usage=True):
        scan(location_of("nosuch://a/b"))


def test_paths_alone_load_nothing_of_fsspec(make_raw: Callable[..., Path], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from imagenet_prep.crop.run import run_crop; "
        "from imagenet_prep.dataset.crop_settings import CropSettings; "
        "run_crop(Path(sys.argv[1]), Path(sys.argv[2]), CropSettings(size=16), jobs=1); "
        "sys.exit('fsspec' in sys.modules)"
    )
    paths = [str(make_raw(train=1, val=0)), str(tmp_path / "cropped")]
    python("-c", code, *paths)


@pytest.mark.parametrize("value", ["", "no", "0", "-1", "nan", "inf"])
def test_a_setting_that_is_no_number_is_wrong_usage(
    memory: Any, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("IMAGENET_PREP_REMOTE_TIMEOUT_S", value)
    with fails("remote.setting", "IMAGENET_PREP_REMOTE_TIMEOUT_S", usage=True):
        status("memory://raw")


class ServerError(Exception):
    """As the libraries have them: it carries the status of the answer."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class ClientError(Exception):
    """As botocore has it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"An error occurred ({SECRETS[0]})")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class NoCredentialsError(Exception):
    """As botocore has it."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "number", "passing", "reason"),
    [
        (FileNotFoundError("x"), errno.ENOENT, False, "No such file or directory"),
        (PermissionError("x"), errno.EACCES, False, "access denied"),
        (ClientError(403), errno.EACCES, False, "access denied (403 Forbidden)"),
        (ClientError(404), errno.ENOENT, False, "No such file or directory"),
        (ClientError(503), errno.EIO, True, "the server answers 503 Service Unavailable"),
        (ServerError("x", 429), errno.EIO, True, "the server answers 429 Too Many Requests"),
        (ServerError("x", 416), errno.EIO, False, "the server answers 416 "),
        (ServerError("x", 501), errno.EIO, False, "the server answers 501 Not Implemented"),
        (ServerError("x", 599), errno.EIO, True, "the server answers 599"),
        # fsspec reports every fault of a web server as a missing file.
        (caused(FileNotFoundError("x"), ServerError("x", 503)), errno.EIO, True, "the server"),
        (caused(FileNotFoundError("x"), ServerError("x", 401)), errno.EACCES, False, "access"),
        (caused(OSError("x"), ConnectionRefusedError("x")), errno.ECONNREFUSED, True, "the conn"),
        (TimeoutError(), errno.ETIMEDOUT, True, "no answer in time"),
        (ConnectionResetError("x"), errno.ECONNRESET, True, "the connection broke off"),
        (EOFError(), errno.ECONNRESET, True, "the connection broke off"),
        (OSError(errno.EBUSY, "slow down"), errno.EIO, True, "the server is busy"),
        (OSError(errno.EMFILE, "x"), errno.EMFILE, False, "Too many open files"),
        (NoCredentialsError("Unable to locate"), errno.EACCES, False, "no credentials (Unable"),
        (
            ValueError(f"bad https://me:{SECRETS[2]}@host/a?token={SECRETS[1]} here\nand more"),
            errno.EIO,
            False,
            "bad ...",
        ),
        (ValueError(f"Invalid endpoint: me:{SECRETS[2]}@host"), errno.EIO, False, "Invalid"),
        (RuntimeError(), errno.EIO, False, "RuntimeError"),
    ],
)
def test_faults_say_whether_to_try_again_and_no_secret(
    error: Exception, number: int, passing: bool, reason: str
) -> None:
    url = f"https://me:{SECRETS[2]}@host/a.jpg?token={SECRETS[1]}"
    fault = fault_of(error, url)
    assert (fault.errno, fault.passing) == (number, passing)
    assert str(fault.strerror).startswith(reason)
    copy = pickle.loads(pickle.dumps(fault))
    assert (str(copy), copy.passing) == (str(fault), passing)
    assert secrets_in(str(fault), repr(fault), repr(copy), str(fault.filename)) == []
    assert fault.filename == "https://***@host/a.jpg?***"


def test_nothing_that_is_printed_by_chance_has_a_secret() -> None:
    full = f"https://me:{SECRETS[2]}@host/raw/a.jpg?token={SECRETS[1]}"
    url = Url(full)
    texts = [str(url), repr(url), repr(url / "b"), str(url.parent), repr(Place(full)), url.name]
    assert secrets_in(*texts) == []
    assert secrets_in(repr(Place(full).asked)) == []
    assert url.full == full


def test_a_place_with_a_known_stamp_asks_no_server() -> None:
    place = Place("s3://never/asked", seen="12 34")
    assert place.stamp() == (12, 34)
    assert place._replace(offset=2, length=5).stamp() == (5, 34)
    assert not place.needs_asking()
    assert Place("s3://never/asked").needs_asking()
    assert not Place("/raw/a.jpg").needs_asking()


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 60_000),
    asked=st.lists(st.tuples(st.integers(0, 70_000), st.integers(0, 3000)), max_size=25),
    forward=st.booleans(),
)
def test_windows_give_what_reading_gives(
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    asked: list[tuple[int, int]],
    forward: bool,
) -> None:
    data = bytes(n * 7 % 251 for n in range(size))
    path = tmp_path_factory.mktemp("windows") / "file"
    path.write_bytes(data)
    windows = Windows(Place(str(path)), size)
    for offset, length in sorted(asked) if forward else asked:
        assert windows.read(length, offset) == data[offset : offset + length]


def test_data_fetched_ahead_is_read_once_with_its_own_faults(
    memory: Any,
) -> None:
    memory.pipe("/raw/a.jpg", b"a")
    good, gone = Place("memory://raw/a.jpg"), Place("memory://raw/gone.jpg")
    local = Place("/raw/a.jpg")
    byte_range.fetch_ahead([good._replace(seen=f"{1 << 30} 1")])
    assert list(byte_range._coming) == []
    byte_range.fetch_ahead([good, local, gone])
    assert list(byte_range._coming) == [good, gone]
    assert byte_range.read_fetched(good) == b"a"
    with pytest.raises(OSError, match="No such file"):
        byte_range.read_fetched(gone)
    memory.pipe("/raw/a.jpg", b"b")
    assert byte_range.read_fetched(good) == b"b"


def test_a_servers_version_of_a_file_becomes_a_fixed_number(memory: Any) -> None:
    memory.pipe("/raw/a.jpg", b"12345")
    first = status("memory://raw/a.jpg")
    assert (first.folder, first.bytes) == (False, 5)
    assert 0 < first.version < 1 << 63
    assert status("memory://raw/a.jpg") == first
    assert status("memory://raw").folder
    with pytest.raises(RemoteError, match="No such file"):
        status("memory://raw/none.jpg")
