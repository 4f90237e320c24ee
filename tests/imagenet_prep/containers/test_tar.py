"""Tars read by their headers alone: where members lie, damaged archives, hostile names."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_prep.containers.tar import LINKED, SPARSE, Member, open_tar
from imagenet_prep.core.errors import ToolError
from tests.kit.errors import fails
from tests.kit.sources import tar_bytes

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def members_of(path: Path) -> list[Member]:
    return list(open_tar(path).members())


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def one_header(info: tarfile.TarInfo, data: bytes = b"") -> bytes:
    """A tar with this member and a image after it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(info, io.BytesIO(data))
        after = tarfile.TarInfo("after.jpg")
        after.size = 5
        tar.addfile(after, io.BytesIO(b"after"))
    return buffer.getvalue()


def of_kind(kind: bytes, name: str = "odd.jpg", link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("form", FORMATS)
def test_members_lie_where_tarfile_finds_them(tmp_path: Path, form: int) -> None:
    long = "deep/" * 30 + "x" * 90 + ".jpg"
    names = ["a.jpg", "dir/b c.JPEG", "empty", "d" * 80 + "/" + "e" * 90]
    names += [] if form == tarfile.USTAR_FORMAT else ["ämeise/蟻.jpg", long]
    expected = {name: bytes([n]) * (n * 700) for n, name in enumerate(names)} | {"empty": b""}
    path = written(tmp_path / "a.tar", tar_bytes(expected, form))
    data = path.read_bytes()
    found = members_of(path)
    assert {m.name: data[m.offset : m.offset + m.length] for m in found} == expected
    assert [m.fault for m in found] == [""] * len(names)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 1500), max_size=6),
    width=st.integers(1, 180),
    form=st.sampled_from(FORMATS[1:]),
)
def test_any_sizes_and_lengths_of_names(sizes: list[int], width: int, form: int) -> None:
    files = [(f"{n}{'n' * width}", bytes([n + 1]) * size) for n, size in enumerate(sizes)]
    data = tar_bytes(files, form)
    handle = os.memfd_create("tar")
    try:
        os.write(handle, data)
        found = members_of(Path(f"/proc/self/fd/{handle}"))
    finally:
        os.close(handle)
    assert [(m.name, data[m.offset : m.offset + m.length]) for m in found] == files


def test_a_size_in_binary_is_understood(tmp_path: Path) -> None:
    data = bytearray(tar_bytes({"a.jpg": b"abc"}))
    data[124:136] = b"\x80" + (3).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (member,) = members_of(written(tmp_path / "a.tar", bytes(data)))
    assert (member.offset, member.length) == (512, 3)


def test_a_tar_within_a_tar_is_read_in_place(tmp_path: Path) -> None:
    inner = tar_bytes({"x.jpg": b"first", "y.jpg": b"second"})
    path = written(tmp_path / "o.tar", tar_bytes({"pad": b"p" * 700, "i.tar": inner}))
    tar = open_tar(path)
    _, member = tar.members()
    found = list(tar.inner(member).members())
    whole = path.read_bytes()
    assert [whole[m.offset : m.offset + m.length] for m in found] == [b"first", b"second"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.jpg", "a/../../x.jpg", "./../x.jpg", "a/.."])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "a.tar", tar_bytes({name: b"x"}))
    with fails("archive.unsafe_name"):
        members_of(path)


def test_a_long_name_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    data = tar_bytes({"../" + "n" * 150: b"x"}, tarfile.GNU_FORMAT)
    with fails("archive.unsafe_name"):
        members_of(written(tmp_path / "a.tar", data))


def test_detours_in_names_go(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", tar_bytes({"./a//b/./c.jpg": b"x", "./..d": b"y"}))
    assert [m.name for m in members_of(path)] == ["a/b/c.jpg", "..d"]


def test_a_name_that_no_disk_can_hold_is_refused(tmp_path: Path) -> None:
    data = tar_bytes({"n" * 300: b"x"}, tarfile.PAX_FORMAT)
    with fails("archive.long_name"):
        members_of(written(tmp_path / "a.tar", data))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_of_no_use(tmp_path: Path, kind: bytes) -> None:
    info = of_kind(kind, link="/etc/passwd")
    odd, after = members_of(written(tmp_path / "a.tar", one_header(info)))
    assert (odd.name, odd.length, odd.fault) == ("odd.jpg", 0, LINKED)
    assert (after.name, after.length, after.fault) == ("after.jpg", 5, "")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"5"])
def test_devices_and_folders_are_left_out(tmp_path: Path, kind: bytes) -> None:
    path = written(tmp_path / "a.tar", one_header(of_kind(kind)))
    assert [m.name for m in members_of(path)] == ["after.jpg"]


def test_members_of_unknown_kinds_are_of_no_use(tmp_path: Path) -> None:
    odd, after = members_of(written(tmp_path / "a.tar", one_header(of_kind(b"Z"))))
    assert "unknown kind" in odd.fault
    assert after.fault == ""


def test_sparse_members_are_of_no_use(tmp_path: Path) -> None:
    info = tarfile.TarInfo("odd.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "odd.jpg"}
    odd, after = members_of(written(tmp_path / "a.tar", one_header(info)))
    assert (odd.fault, after.fault) == (SPARSE, "")


def test_an_old_sparse_member_with_a_long_map_is_passed_over(tmp_path: Path) -> None:
    header = bytearray(one_header(of_kind(b"S"), b"")[:512])
    header[124:136] = b"%011o\0" % 512
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    maps = bytes(504) + b"\1" + bytes(7) + bytes(512)
    data = bytes(header) + maps + b"\7" * 512 + tar_bytes({"after.jpg": b"after"})
    odd, after = members_of(written(tmp_path / "a.tar", data))
    assert (odd.fault, odd.offset, after.name) == (SPARSE, 3 * 512, "after.jpg")


@pytest.mark.parametrize("form", FORMATS)
def test_a_tar_cut_off_anywhere_is_one_message(tmp_path: Path, form: int) -> None:
    whole = tar_bytes({"n" * 99: b"x" * 700, "m" * 90: b"y" * 30}, form)
    end = whole.rindex(b"y") + 1
    for length in (1, 511, 513, 700, end - 1, (end + 511) // 512 * 512):
        path = written(tmp_path / "cut.tar", whole[:length])
        with fails("archive.cut_off", "cut.tar"):
            members_of(path)


def test_an_inner_tar_that_is_cut_off_is_named(tmp_path: Path) -> None:
    inner = tar_bytes({"x.jpg": b"x" * 700})[:1024]
    path = written(tmp_path / "o.tar", tar_bytes({"i.tar": inner}))
    tar = open_tar(path)
    (member,) = tar.members()
    with fails("archive.cut_off", "o.tar, member i.tar"):
        list(tar.inner(member).members())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: b"", "archive.empty"),
        (lambda data: b"\x1f\x8b" + data[2:], "archive.compressed"),
        (lambda data: b"\xfd7zXZ" + data[5:], "archive.compressed"),
        (lambda data: b"hello" + data[5:], "archive.not_a_tar"),
        (lambda data: data[:1024] + b"hello" + data[1029:], "archive.damaged"),
        (lambda data: data[:1148] + b"-0000000001" + data[1159:], "archive.damaged"),
        # Ends before its mark, or with half of it.
        (lambda data: data[:2048], "archive.cut_off"),
        (lambda data: data[:2560], "archive.cut_off"),
        # One block of zeros in the place of a header, or many, as of a damaged download.
        (lambda data: data[:1024] + bytes(512) + data[1024:], "archive.hole"),
        (lambda data: data[:1024] + bytes(20480) + data[1024:], "archive.hole"),
        (lambda data: data[:1024] + bytes(1 << 20), "archive.hole"),
        # A second archive, or anything else, after the end.
        (lambda data: data + data, "archive.data_after_end"),
        (lambda data: data[:4096] + b"more" + data[4100:], "archive.data_after_end"),
    ],
)
def test_what_is_no_whole_tar_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], code: str
) -> None:
    data = change(tar_bytes({"a.jpg": b"a", "b.jpg": b"b"}))
    with fails(code, "a.tar"):
        members_of(written(tmp_path / "a.tar", data))


def test_joined_tars_are_one_where_that_is_allowed(tmp_path: Path) -> None:
    data = tar_bytes({"a.jpg": b"1"}) + tar_bytes({"b.jpg": b"2"})
    tar = open_tar(written(tmp_path / "a.tar", data))
    found = {m.name: data[m.offset : m.offset + m.length] for m in tar.members(joined=True)}
    assert found == {"a.jpg": b"1", "b.jpg": b"2"}


def test_a_hard_link_is_the_member_that_it_links_to(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("./a.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
        for name, target in (("b.jpg", "./a.jpg"), ("c.jpg", "none.jpg")):
            tar.addfile(of_kind(tarfile.LNKTYPE, name, target))
    first, link, broken = members_of(written(tmp_path / "a.tar", buffer.getvalue()))
    assert link == first._replace(name="b.jpg")
    assert broken.fault == LINKED


@pytest.mark.parametrize("size", [-1, -512, 1 << 60])
def test_a_size_that_cannot_be_never_leads_round_in_a_circle(tmp_path: Path, size: int) -> None:
    data = bytearray(tar_bytes({"a.jpg": b"a"}))
    data[124:136] = b"-%010o\0" % -size if size < 0 else b"\x80" + size.to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    with fails("archive.cut_off" if size > 0 else "archive.not_a_tar"):
        members_of(written(tmp_path / "a.tar", bytes(data)))


@settings(max_examples=150, deadline=None)
@given(where=st.integers(0, 3 * 1024 - 1), value=st.integers(0, 255), form=st.sampled_from(FORMATS))
def test_a_changed_byte_is_an_error_or_harmless(where: int, value: int, form: int) -> None:
    data = bytearray(tar_bytes({"n" * 99: b"x" * 700, "m" * 90: b"y" * 30}, form))
    data[where] = value
    handle = os.memfd_create("tar")
    try:
        os.write(handle, data)
        members = members_of(Path(f"/proc/self/fd/{handle}"))
    except ToolError as error:
        assert "\n" not in str(error)
    else:
        assert all(0 <= m.offset <= m.offset + m.length <= len(data) for m in members)
    finally:
        os.close(handle)
