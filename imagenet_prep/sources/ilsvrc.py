"""ILSVRC2012 as it is downloaded: its archives, read in place -> classes and pictures.

``ILSVRC2012_img_train.tar`` is a tar of a tar per class, named after its wnid;
``ILSVRC2012_img_val.tar`` holds the 50,000 pictures of validation, whose classes are in the
devkit: line i of the ground truth is the ILSVRC2012_ID (1 to 1000) of picture i, and
``meta.mat`` gives each id its wnid and its words. Keys and crops are those that the same
pictures have in unpacked class folders.
"""

from __future__ import annotations

import functools
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.sources.mat import read_mat
from imagenet_prep.sources.tar import Member, Tar, open_tar
from imagenet_prep.sources.types import (
    Finding,
    Found,
    FoundList,
    is_worth_trying,
    place_of,
    safe_part,
)
from imagenet_prep.storage.byte_range import unpack
from imagenet_prep.storage.location import Location, Url, each, place_of_file

TRAIN_NAME = "ILSVRC2012_img_train.tar"
VAL_NAME = "ILSVRC2012_img_val.tar"
DEVKIT_NAME = "ILSVRC2012_devkit_t12.tar.gz"
_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_META = "data/meta.mat"
_CLASSES = 1000
_MAX_DEVKIT_MEMBER_BYTES = 16 << 20
_VAL_PICTURE = re.compile(r"(?:.*/)?[^/]*_val_(\d{1,8})\.[^./]+", re.DOTALL)


def is_ilsvrc(src: Location) -> bool:
    """Whether ``src`` is the archive of train or val, or a folder with one of them."""
    if src.is_dir():
        return (src / TRAIN_NAME).is_file() or (src / VAL_NAME).is_file()
    return src.name in (TRAIN_NAME, VAL_NAME)


def find_ilsvrc(src: Location) -> Finding:
    """The archives in a folder, or one of them -> their pictures.

    Raises ToolError with one sentence for a missing or damaged archive.
    """
    folder = src if src.is_dir() else src.parent
    names = (TRAIN_NAME, VAL_NAME) if src.is_dir() else (src.name,)
    train, val, devkit = folder / TRAIN_NAME, folder / VAL_NAME, folder / DEVKIT_NAME
    has_train = TRAIN_NAME in names and train.is_file()
    has_val = VAL_NAME in names and val.is_file()
    if not has_train and not has_val:
        raise UsageError(f"{src}: has neither {TRAIN_NAME} nor {VAL_NAME}; name their folder")
    known = _read_devkit(devkit) if devkit.is_file() else None
    found = FoundList()
    if has_train:
        found.extend(_find_train(train))
    if has_val and known is None:
        raise ToolError(
            f"{val}: its classes are in {DEVKIT_NAME}, which is not beside it; put it there"
        )
    if has_val and known is not None:
        found.extend(_find_val(val, known))
    readable = known.words if known is not None else {}
    return Finding(found, readable, tuple(sorted(readable)) if not has_train else None)


def _find_train(path: Location) -> Iterator[Found]:
    """The pictures of a tar of class tars."""
    with open_tar(path) as outer:
        find = functools.partial(_find_class, outer)
        yield from each(find, _class_archives(outer), waiting=isinstance(path, Url))


def _class_archives(outer: Tar) -> Iterator[tuple[str, Member]]:
    """(wnid, member) of every class."""
    seen: set[str] = set()
    for member in outer.members():
        name = member.name.rpartition("/")[2]
        wnid, _, suffix = name.rpartition(".")
        if suffix.lower() != "tar" or name.startswith("."):
            continue
        if member.fault or not wnid:
            raise ToolError(
                f"{outer.shown}: its member {member.name} is {member.fault or 'nameless'}"
            )
        if wnid in seen:
            raise ToolError(f"{outer.shown}: has {name} twice; fetch or make the archive again")
        seen.add(wnid)
        yield wnid, member
    if not seen:
        raise ToolError(
            f"{outer.shown}: holds no class archives (such as n01440764.tar); fetch it again"
        )


def _find_class(outer: Tar, archive: tuple[str, Member]) -> Iterator[Found]:
    """The pictures of the tar of a class."""
    wnid, member = archive
    folder = safe_part(wnid)
    for picture in outer.inner(member).members():
        if not is_worth_trying(picture.name.rpartition("/")[2]):
            continue
        inside = f"{folder}/{picture.name}"
        place = place_of(outer.place, picture.offset, picture.length, picture.fault)
        yield Found(f"train/{inside}", "train", wnid, inside, place)


@dataclass(frozen=True)
class _Devkit:
    """``truth``: the wnid of each picture of validation; ``words``: of each wnid."""

    truth: tuple[str, ...]
    words: dict[str, str]


def _find_val(path: Location, known: _Devkit) -> Iterator[Found]:
    """The pictures of the archive of validation, by their numbers from 1."""
    with open_tar(path) as tar:
        for member in tar.members():
            name = member.name.rpartition("/")[2]
            if not is_worth_trying(name):
                continue
            match = _VAL_PICTURE.fullmatch(name)
            number = int(match[1]) if match else 0
            if not 1 <= number <= len(known.truth):
                raise ToolError(
                    f"{path}: its member {member.name} is not one of the {len(known.truth)} "
                    f"pictures that {DEVKIT_NAME} has classes for; fetch both again"
                )
            wnid = known.truth[number - 1]
            inside = f"{safe_part(wnid)}/{name}"
            place = place_of(tar.place, member.offset, member.length, member.fault)
            yield Found(f"val/{inside}", "val", wnid, inside, place)


def _read_devkit(path: Location) -> _Devkit:
    """The devkit's archive -> the classes of validation, and what they are called."""
    try:
        files = _devkit_files(path)
        by_id = _synsets(files[_META])
        ids = [int(line) for line in files[_TRUTH].split()]
        truth = tuple(by_id[number][0] for number in ids)
    except KeyError as error:
        missing = error.args[0]
        what = f"the class {missing}" if isinstance(missing, int) else missing
        raise ToolError(f"{path}: does not have {what}; fetch it again") from None
    except OSError as error:
        raise ToolError(f"{path}: cannot be read ({error.strerror}); fetch it again") from None
    except (ValueError, tarfile.TarError) as error:
        raise ToolError(f"{path}: cannot be used ({error}); fetch it again") from None
    return _Devkit(truth, dict(by_id.values()))


def _devkit_files(path: Location) -> dict[str, bytes]:
    """``data/...`` -> bytes, of the two files that are needed."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(unpack(place_of_file(path).file)), mode="r:") as tar:
        for member in tar:
            short = "/".join(member.name.split("/")[-2:])
            if short not in (_TRUTH, _META) or not member.isfile():
                continue
            file = tar.extractfile(member)
            if file is None or member.size > _MAX_DEVKIT_MEMBER_BYTES:
                raise ValueError(f"{short} is too large")
            found[short] = file.read()
    return found


def _synsets(mat: bytes) -> dict[int, tuple[str, str]]:
    """``meta.mat`` -> id -> (wnid, words) of the classes, without the groups above them."""
    rows = read_mat(mat).get("synsets")
    found: dict[int, tuple[str, str]] = {}
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict):
            break
        number, wnid, words = (row.get(name) for name in ("ILSVRC2012_ID", "WNID", "words"))
        if not (isinstance(number, list) and isinstance(wnid, str) and isinstance(words, str)):
            break
        (first,) = number[:1] or [0.0]
        if isinstance(first, float | int) and 1 <= first <= _CLASSES:
            found[int(first)] = (wnid, words)
    if not found or len({wnid for wnid, _ in found.values()}) != len(found):
        raise ValueError("meta.mat has no list of synsets")
    return found
