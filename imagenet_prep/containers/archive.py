"""A zip or tar, or a folder of them named as splits -> a tree of folders, read in place.

The tree has the methods of a ``Url``, so every layout can be recognised in it. Members of a
zip and of a plain tar are read where they lie. A compressed tar is unpacked in memory, in one
pass from its beginning to its end (``streams``).
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping

from imagenet_prep.containers.names import entries_of, split_of, text_of
from imagenet_prep.containers.tar import Member, Tar, check_member_name, open_tar
from imagenet_prep.core.errors import ToolError
from imagenet_prep.storage.byte_range import Place
from imagenet_prep.storage.location import Location, Url, location_in
from imagenet_prep.storage.streams import STREAM_TAR, open_compressed
from imagenet_prep.storage.urls import is_url

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
ARCHIVES = (".zip", *_TARS)
"""How the names of archives end."""
_ENCRYPTED = 1

_Tree = dict[str, "_Node"]
_Node = _Tree | Place | Callable[[], _Tree]
"""A folder, a file, or an archive that is read each time its entries are asked for."""
_Members = Iterable[tuple[str, _Node]]


class Inside(Url):
    """A file or folder in an archive; also an entry of the folder that it lies in."""

    def __init__(self, shown: str, name: str, node: _Node | None, above: Inside | None) -> None:
        # Url's own attributes are not needed, and there may be a million of these.
        self._shown, self.name, self._node, self._up = shown, name, node, above

    def __str__(self) -> str:
        return self._shown

    def __truediv__(self, name: str) -> Inside:
        return self._below(name, self._tree().get(name))

    def _below(self, name: str, node: _Node | None) -> Inside:
        return Inside(f"{self._shown}/{name}", name, node, self)

    def _tree(self) -> _Tree:
        if self._node is None or isinstance(self._node, Place):
            return {}
        return self._node if isinstance(self._node, dict) else self._node()

    @property
    def full(self) -> str:  # type: ignore[override]
        """Names it among other folders; nothing is read by it."""
        return f"archive://{self._shown}"

    @property
    def parent(self) -> Inside:
        """The folder that holds it; of the archive, itself."""
        return self._up or self

    @property
    def waits(self) -> bool:
        """Whether the archive is behind a URL."""
        return is_url(self._shown)

    def anew(self) -> Url:
        """Itself."""
        return self

    def entries(self) -> list[Url]:
        """What lies in this folder."""
        return [self._below(name, node) for name, node in self._tree().items()]

    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return self._node is not None

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self._node is not None and not isinstance(self._node, Place)

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


def open_tars(src: Location, tars: Mapping[str, Location]) -> Inside:
    """Tars by the names of their folders in ``src`` -> a tree; each is read when it is listed."""
    folders: _Tree = {name: functools.partial(_tree, path) for name, path in tars.items()}
    return Inside(str(src), src.name, folders, None)


def open_tar_of_tars(src: Location, path_of: Callable[[str], str]) -> Inside:
    """A tar -> a tree in which each tar in it is a folder, read when it is listed; ``path_of``
    gives the path of each other member by the last part of its name."""
    tar = open_tar(src)

    def members() -> Iterator[tuple[str, _Node]]:
        for member in tar.members():
            file = member.name.rpartition("/")[2]
            name = _stem(file)
            if name == file:
                yield path_of(file), tar.place_of(member)
            elif member.fault:
                raise ToolError(
                    "archive.damaged", f"{src}: its member {member.name} is {member.fault}"
                )
            else:
                yield name, functools.partial(_tree_in, tar, member)

    return Inside(str(src), _stem(src.name), _grown(str(src), members()), None)


def _tree_in(outer: Tar, member: Member) -> _Tree:
    inner = outer.inner(member)
    return _grown(inner.shown, _of_tar(inner))


def _stem(name: str) -> str:
    suffix = next((s for s in ARCHIVES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def _tree(path: Location) -> _Tree:
    """The members of one archive as nested folders."""
    if path.name.lower().endswith(".tar"):
        return _grown(str(path), _of_tar(open_tar(path)))
    if isinstance(path, Url):
        raise ToolError(
            "archive.remote", f"{path}: cannot be read in place behind a URL; copy it to a disk"
        )
    if path.name.lower().endswith(".zip"):
        return _grown(str(path), _in_zip(path))
    return _grown(str(path), _in_compressed_tar(path))


def _grown(shown: str, members: _Members) -> _Tree:
    """Members by their paths -> nested folders."""
    tree: _Tree = {}
    for name, leaf in members:
        *folders, last = name.split("/")
        at = tree
        for folder in folders:
            below = at.setdefault(folder, {})
            if not isinstance(below, dict):
                raise _twice(shown, name)
            at = below
        if at.setdefault(last, leaf) is not leaf:
            raise _twice(shown, name)
    return tree


def _twice(shown: str, name: str) -> ToolError:
    return ToolError("source.duplicate", f"{shown}: has {name} twice; make the archive again")


def _of_tar(tar: Tar, form: str = "") -> Iterator[tuple[str, Place]]:
    for member in tar.members():
        yield member.name, tar.place_of(member, form)


def _in_compressed_tar(path: Location) -> Iterator[tuple[str, Place]]:
    with open_compressed(str(path)) as stream:

        def read(length: int, offset: int) -> bytes:
            try:
                return stream.read_at(length, offset)
            except OSError as error:
                raise ToolError(
                    "archive.damaged", f"{path}: {error.strerror}; fetch or make the archive again"
                ) from None

        yield from _of_tar(Tar(lambda: read, Place(str(path)), str(path), 0, 1 << 62), STREAM_TAR)


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
