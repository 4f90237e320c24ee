"""2,000 mutations of a beton, its manifest and its statistics: none is taken for a good one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imagenet_prep.beton import format as beton_format
from imagenet_prep.beton.verify import check_beton
from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset import beton_tables
from imagenet_prep.dataset.manifest import Manifest
from imagenet_prep.dataset.names import manifest_beside, stats_beside
from tests.imagenet_prep.conftest import Made
from tests.kit.betons import METADATA

SAMPLES = 12
PAGE = 1 << 21
SAMPLE, TABLE = beton_format.SAMPLE.itemsize, beton_tables.TABLE.itemsize
WILD = (0, 1, 7, 2**16, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 2**31, 2**32, 2**63, 2**64 - 8)


@dataclass(frozen=True)
class Target:
    """A beton of twelve samples, half of them raw, to be changed and put back."""

    path: Path
    manifest: Manifest

    @property
    def files(self) -> dict[str, Path]:
        return {
            "beton": self.path,
            "manifest": manifest_beside(self.path),
            "statistics": stats_beside(self.path),
        }


@pytest.fixture
def target(made_beton: Made, tmp_path: Path) -> Target:
    path = tmp_path / "val.beton"
    manifest = made_beton.build(
        path, split="val", crops=made_beton.crops[:SAMPLES], format="mixed:0.5"
    )
    assert set(manifest.formats) == {"jpeg", "raw"}
    return Target(path, manifest)


@dataclass(frozen=True)
class Mutation:
    """New bytes at some offsets, and then a length."""

    patches: tuple[tuple[int, bytes], ...]
    length: int

    def apply(self, path: Path) -> None:
        with path.open("rb+") as file:
            for at, new in self.patches:
                file.seek(at)
                file.write(new)
            file.truncate(self.length)

    def undo(self, path: Path, original: bytes) -> None:
        with path.open("rb+") as file:
            for at, new in (*self.patches, (self.length, original[self.length :])):
                file.seek(at)
                file.write(original[at : at + len(new)])
            file.truncate(len(original))

    def changes(self, original: bytes) -> bool:
        return self.length != len(original) or any(
            original[at : at + len(new)] != new for at, new in self.patches
        )


Change = Callable[[bytes, random.Random], Mutation]


def put(data: bytes, *patches: tuple[int, bytes]) -> Mutation:
    return Mutation(patches, max([len(data), *(at + len(new) for at, new in patches)]))


def flip_at(data: bytes, at: int, rng: random.Random) -> Mutation:
    return put(data, (at, bytes([data[at] ^ 1 << rng.randrange(8)])))


def flip(data: bytes, rng: random.Random) -> Mutation:
    return flip_at(data, rng.randrange(len(data)), rng)


def cut(data: bytes, rng: random.Random) -> Mutation:
    return Mutation((), rng.randrange(len(data)))


def lengthen(data: bytes, rng: random.Random) -> Mutation:
    return put(data, (len(data), rng.randbytes(rng.choice((1, 24, 5000)))))


def swap(data: bytes, rng: random.Random) -> Mutation:
    """Two stretches change places: pages where there are some, otherwise a few bytes."""
    size = PAGE if len(data) > 2 * PAGE and rng.random() < 0.3 else rng.randrange(1, 99)
    a, b = sorted(rng.sample(range(len(data) // size), 2))
    first, second = data[a * size :][:size], data[b * size :][:size]
    return put(data, (a * size, second), (b * size, first))


def forget(data: bytes, rng: random.Random) -> Mutation:
    at = rng.randrange(len(data))
    return put(data, (at, bytes(min(rng.randrange(1, 5000), len(data) - at))))


def wild_number(data: bytes, rng: random.Random) -> Mutation:
    """A number of the header, of a row of the metadata or of the table becomes a wild one."""
    row = rng.randrange(SAMPLES)
    metadata, table = METADATA + row * SAMPLE, len(data) - (SAMPLES - row) * TABLE
    at, size = rng.choice(
        [
            *((0, 2), (2, 2), (4, 4), (8, 8), (16, 8)),
            *((metadata, 1), (metadata + 1, 2), (metadata + 3, 2), (metadata + 5, 8)),
            *((metadata + 16, 8), (table, 8), (table + 8, 8), (table + 16, 8)),
        ]
    )
    number = rng.choice((*WILD, rng.getrandbits(64))) % (1 << 8 * size)
    return put(data, (at, number.to_bytes(size, "little")))


def flip_in_rows(data: bytes, rng: random.Random) -> Mutation:
    """A bit of the header, the metadata or the table."""
    head = METADATA + SAMPLES * SAMPLE
    at = rng.choice((rng.randrange(head), len(data) - 1 - rng.randrange(SAMPLES * TABLE)))
    return flip_at(data, at, rng)


def flip_in_images(data: bytes, rng: random.Random) -> Mutation:
    return flip_at(data, PAGE + rng.randrange(SAMPLES * 20_000), rng)


PLAIN: tuple[Change, ...] = (flip, flip, flip, cut, lengthen, swap, forget)
OF_BETONS: tuple[Change, ...] = (
    *PLAIN, wild_number, wild_number, wild_number, flip_in_rows, flip_in_images,
)  # fmt: skip


def mutations(
    original: bytes, changes: tuple[Change, ...], count: int, seed: str
) -> Iterator[tuple[str, Mutation]]:
    """What is done, and how; each makes another file of ``original``."""
    rng = random.Random(seed)
    number = 0
    while number < count:
        change = rng.choice(changes)
        mutation = change(original, rng)
        if mutation.changes(original):
            number += 1
            yield f"{change.__name__} {number}", mutation


def same_json(a: bytes, b: bytes) -> bool:
    """Whether only spaces between the values differ."""
    try:
        return bool(json.loads(a) == json.loads(b))
    except (ValueError, RecursionError):
        return False


@pytest.mark.parametrize(
    ("which", "count"), [("beton", 1000), ("manifest", 600), ("statistics", 400)]
)
def test_no_mutation_is_taken_for_a_good_beton(target: Target, which: str, count: int) -> None:
    file = target.files[which]
    original = file.read_bytes()
    changes = OF_BETONS if which == "beton" else PLAIN
    refused = 0
    for what, mutation in mutations(original, changes, count, which):
        mutation.apply(file)
        try:
            good = check_beton(target.path, jobs=1).good
        except ToolError as error:
            good = False
            assert "\n" not in str(error), what
        if good:
            assert which == "manifest" and same_json(file.read_bytes(), original), what
        refused += not good
        mutation.undo(file, original)
    assert refused > 0.9 * count
    assert file.read_bytes() == original
    assert check_beton(target.path, decode=True, jobs=1).good


def test_no_mutation_of_a_beton_crashes_the_loader(target: Target) -> None:
    from trainer.loader.loader import eval_loader

    original = target.path.read_bytes()
    read = 0
    for what, mutation in mutations(original, OF_BETONS, 120, "loader"):
        mutation.apply(target.path)
        try:
            with eval_loader(target.path, batch_size=SAMPLES, crop_size=64, jobs=1) as batches:
                read += sum(len(batch.images) for batch in batches)
        except ToolError as error:
            assert "\n" not in str(error), what
        with pytest.raises(ToolError):
            eval_loader(target.path, batch_size=SAMPLES, crop_size=64, jobs=1, verify=True)
        mutation.undo(target.path, original)
    # Damage that is no fault of the structure and decodes to something can pass unverified.
    assert 0 < read < 120 * SAMPLES
