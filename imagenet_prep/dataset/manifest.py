"""The manifest of a beton: train.beton.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.files import publish, read_json
from imagenet_prep.dataset.names import manifest_beside

MANIFEST_FORMAT = 3


@dataclass(frozen=True)
class Manifest:
    """The contents of ``<name>.beton.json``, which is written last and means "complete".

    ``pages`` are the SHA-256 of the beton's pages in file order, ``digest`` that of them all
    (``pages_digest``), ``keys`` the crop path (relative, posix) of each sample in file order.
    ``rows`` is the SHA-256 of the row index beside the beton, "" where an older version built it.
    ``shard`` (0, 1, ...) of ``shards`` files of one set; ``set``, common to them all, is what
    ``pages_digest`` makes of their digests, and "" where the beton is no part of a set.
    """

    samples: int
    split: str
    size_px: int
    classes: tuple[str, ...]
    readable: Mapping[str, str]
    formats: Mapping[str, int]
    page_size_bytes: int
    bytes: int
    digest: str
    pages: tuple[str, ...]
    stats_digest: str
    source: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    keys: tuple[str, ...]
    shard: int = 0
    shards: int = 1
    set: str = ""
    rows: str = ""
    format: int = MANIFEST_FORMAT


def source_digest(pairs: Iterable[tuple[str, str]]) -> str:
    """(crop path, SHA-256 of its bytes) of every crop, in any order -> one digest of them all.

    The sum of SHA-256("<content>  <path>") over the crops, modulo 2^256, as 64 hexadecimal
    digits: so the digests of parts add up to that of the whole (``add_digests``). Statistics
    and betons carry it, so that they can be
    checked for being of the same images.
    """
    lines = (f"{content}  {path}" for path, content in pairs)
    total = sum(int.from_bytes(hashlib.sha256(line.encode()).digest()) for line in lines)
    return f"{total % (1 << 256):064x}"


def add_digests(*digests: str) -> str:
    """``source_digest`` of several sets of crops -> that of all of them.

    Raises ValueError for what is not 64 hexadecimal digits.
    """
    if any(len(digest) != 64 for digest in digests):
        raise ValueError("a source digest has 64 hexadecimal digits")
    return f"{sum(int(digest, 16) for digest in digests) % (1 << 256):064x}"


def pages_digest(pages: Iterable[str]) -> str:
    """The digests of a beton's pages, or of a set's betons -> the one that names the whole:
    SHA-256 of their bytes."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, pages))).hexdigest()


def _self_digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object without its member "self", in its shortest form."""
    rest = {name: part for name, part in value.items() if name != "self"}
    return hashlib.sha256(
        json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def save_manifest(beton: Path, manifest: Manifest) -> None:
    """Writes the manifest beside ``beton``, with a digest of itself; the last act of a build."""
    value = {field.name: getattr(manifest, field.name) for field in fields(manifest)}
    value["self"] = _self_digest(value)
    with publish(manifest_beside(beton)) as temporary:
        # No indent: for a million keys that takes seconds more.
        text = json.dumps(value, sort_keys=True, separators=(",\n", ": "))
        temporary.write_text(text + "\n", encoding="ascii")


def begins_as_beton(path: Path) -> bool:
    """Whether a file has the version of FFCV's format at its start."""
    with path.open("rb") as file:
        return file.read(2) == b"\x02\x00"


def load_manifest(beton: Path) -> Manifest:
    """Reads the manifest beside ``beton`` and checks that the beton has its size.

    Raises ToolError when the beton or its manifest is missing, the beton is another file, the
    manifest is not what was written, or the two do not belong together. The beton's contents are
    not looked at here: that reads the whole file.
    """
    remedy = "build it again with imagenet-prep build"
    if not beton.exists():
        raise UsageError("beton.missing", f"{beton}: no such file; {remedy}, or name the right one")
    if beton.is_dir():
        raise UsageError("beton.is_folder", f"{beton}: is a folder; name the .beton file in it")
    path = manifest_beside(beton)
    if not path.exists() and not begins_as_beton(beton):
        message = f"{beton}: is not a beton file; name one that imagenet-prep build wrote"
        raise ToolError("beton.unknown", message)
    value = read_json(path, "the manifest of a complete beton", remedy, "manifest")
    try:
        if value["format"] != MANIFEST_FORMAT:
            raise ValueError(f"format {value['format']}, this version reads {MANIFEST_FORMAT}")
        if value["self"] != _self_digest(value):
            raise ValueError("it is not what was written")
        del value["self"]
        for name in ("classes", "pages", "keys"):
            value[name] = tuple(value[name])
        manifest = Manifest(**value)
        if len(manifest.keys) != manifest.samples:
            raise ValueError(f"{len(manifest.keys)} keys for {manifest.samples} samples")
        if not 0 <= manifest.shard < manifest.shards:
            raise ValueError(f"shard {manifest.shard} of {manifest.shards}")
    except (KeyError, TypeError, ValueError) as error:
        raise ToolError(
            "manifest.damaged", f"{path}: the manifest is damaged ({error}); {remedy}"
        ) from None
    size = beton.stat().st_size
    if size != manifest.bytes:
        raise ToolError(
            "beton.truncated",
            f"{beton}: has {size} bytes instead of the {manifest.bytes} in its manifest; {remedy}",
        )
    return manifest
