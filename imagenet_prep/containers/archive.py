"""A zip or tar, or a folder of them named as splits -> a tree of folders, read in place.

The tree has the methods of a ``Url``, so every layout can be recognised in it. Members of a
zip and of a plain tar are read where they lie. A compressed tar is unpacked in memory, in one
pass from its beginning to its end (``streams``).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import TextIO

from imagenet_prep.containers.names import entries_of, split_of, text_of
from imagenet_prep.containers.tar import Tar, check_member_name, open_tar
from imagenet_prep.core.errors import ToolError
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Location, Url, location_in
from imagenet_prep.storage.streams import STREAM_TAR, open_compressed

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
ARCHIVES = (".zip", *_TARS)
"""How the names of archives end."""
_ENCRYPTED = 1


_Tree = dict[str, "_Tree | Place"]


class Inside(Url):
    """A file or folder in an archive; also an entry of the folder that it lies in."""

    def __init__(
        self, shown: str, name: str, node: _Tree | Place | None, above: Inside | None
    ) -> None:
        super().__init__(f"archive://{shown}")
        self._shown, self.name, self._node, self._up = shown, name, node, above

    def __str__(self) -> str:
        return self._shown

    def __truediv__(self, name: str) -> Inside:
        node = self._node.get(name) if isinstance(self._node, dict) else None
        return Inside(f"{self._shown}/{name}", name, node, self)

    @property
    def parent(self) -> Inside:
        """The folder that holds it; of the archive, itself."""
        return self._up or self

    @property
    def web(self) -> bool:
        """No."""
        return False

    def anew(self) -> Url:
        """Itself."""
        return self

    def entries(self) -> list[Url]:
        """What lies in this folder."""
        return [self / name for name in self._node] if isinstance(self._node, dict) else []

    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return self._node is not None

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return isinstance(self._node, dict)

    def is_file(self) -> bool:
        """Whether it is a file."""
        return isinstance(self._node, Place)

    def place(self) -> Place:
        """Where its bytes lie."""
        if isinstance(self._node, Place):
            return self._node
        return Place(self._shown, form="unusable:no such member")

    def place_of_parts(self) -> Place:
        """As ``place``; an archive within an archive is not read."""
        raise ToolError(
            "archive.nested", f"{self}: is an archive within an archive; unpack the outer one first"
        )

    def open(self, *, encoding: str, newline: str | None = None) -> TextIO:
        """Its text. Raises OSError."""
        return io.TextIOWrapper(io.BytesIO(self.place().read()), encoding, newline=newline)


def is_archive(src: Location) -> bool:
    """Whether ``src`` is a zip or tar, or a folder of nothing but some, named as splits."""
    if not src.is_dir():
        return src.name.lower().endswith(ARCHIVES)
    if isinstance(src, Url):
        return False
    entries = entries_of(src)
    files = [e for e in entries if e.is_file() and e.name.lower().endswith(ARCHIVES)]
    return (
        bool(files) and len(files) == len(entries) and all(split_of(_stem(e.name)) for e in files)
    )


def open_archive(src: Location) -> Inside:
    """An archive, or a folder of them -> the root of its tree. Raises ToolError for damage."""
    if not src.is_dir():
        return Inside(str(src), _stem(src.name), _tree(src), None)
    folders: _Tree = {}
    for entry in entries_of(src):
        folders[text_of(_stem(entry.name))] = _tree(location_in(entry))
    return Inside(str(src), src.name, folders, None)


def _stem(name: str) -> str:
    suffix = next((s for s in ARCHIVES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def _tree(path: Location) -> _Tree:
    """The members of one archive as nested folders."""
    if path.name.lower().endswith(".tar"):
        members = _in_tar(path)
    elif isinstance(path, Url):
        raise ToolError(
            "archive.remote", f"{path}: cannot be read in place behind a URL; copy it to a disk"
        )
    elif path.name.lower().endswith(".zip"):
        members = _in_zip(path)
    else:
        members = _in_compressed_tar(path)
    tree: _Tree = {}
    for name, leaf in members:
        *folders, last = name.split("/")
        at = tree
        for folder in folders:
            below = at.setdefault(folder, {})
            if not isinstance(below, dict):
                raise _twice(path, name)
            at = below
        if at.setdefault(last, leaf) is not leaf:
            raise _twice(path, name)
    return tree


def _twice(path: Location, name: str) -> ToolError:
    return ToolError("source.duplicate", f"{path}: has {name} twice; make the archive again")


def _of_tar(tar: Tar, form: str) -> Iterator[tuple[str, Place]]:
    file, *_, seen = tar.place
    for member in tar.members():
        what = f"unusable:{member.fault}" if member.fault else form
        yield member.name, Place(file, member.offset, member.length, what, seen)


def _in_tar(path: Location) -> Iterator[tuple[str, Place]]:
    with open_tar(path) as tar:
        yield from _of_tar(tar, "")


def _in_compressed_tar(path: Location) -> Iterator[tuple[str, Place]]:
    with open_compressed(str(path)) as stream:
        tar = Tar(lambda: stream.read_at, Place(str(path)), str(path), 0, 1 << 62)
        try:
            yield from _of_tar(tar, STREAM_TAR)
        except OSError as error:
            raise ToolError(
                "archive.damaged", f"{path}: {error.strerror}; fetch or make the archive again"
            ) from None


def _in_zip(path: Location) -> Iterator[tuple[str, Place]]:
    try:
        with zipfile.ZipFile(str(path)) as file:
            for info in file.infolist():
                if info.is_dir():
                    continue
                name = check_member_name(info.filename, str(path))
                form = f"zip:{info.compress_type}:{info.CRC:x}"
                if info.flag_bits & _ENCRYPTED:
                    form = "unusable:encrypted in its archive"
                elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    form = "unusable:compressed in its archive in an unknown way"
                yield name, Place(str(path), info.header_offset, info.compress_size, form)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ToolError(
            "archive.damaged", f"{path}: cannot be read ({error}); fetch or make the archive again"
        ) from None
