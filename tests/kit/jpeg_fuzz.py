"""Damaged JPEGs, batches and index files through the compiled decoders.

    NUMBA_BOUNDSCHECK=1 python -m tests.kit.jpeg_fuzz COUNT SEED

With numba's bounds checks on, an access outside of an array is an IndexError, which ends this.
What a decoder accepts must have Pillow's pixels. Prints how many of each kind were accepted.
"""

from __future__ import annotations

import io
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagenet_prep.core.errors import ToolError
from imagenet_prep.jpeg import core, cpu
from imagenet_prep.jpeg.index import HEADER, digest_of, load_index, save_index
from tests.kit.jpeg_kernels import Kernels
from tests.kit.jpegs import Host, host_batch, made

EDGES = np.array([0, 1, 2, 15, 16, 255, 256, 65535, 65536, (1 << 31) - 1, -1, -(1 << 31)])


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, dropped, doubled, or the end cut off."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, len(changed)))
        kind = rng.integers(0, 6)
        if kind < 3:
            changed[at] = int(rng.integers(0, 256))
        elif kind == 3:
            changed[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 4:
            del changed[at : at + int(rng.integers(1, 9))]
        else:
            changed[at:at] = changed[at : at + int(rng.integers(1, 9))]
        if len(changed) < 4:
            return bytes(changed)
    return (
        bytes(changed[: int(rng.integers(1, len(changed)))])
        if rng.random() < 0.1
        else bytes(changed)
    )


def shuffled(values: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """A copy with up to three elements changed: to an edge, to noise, or by a little."""
    copy = values.copy()
    flat = copy.reshape(-1)
    for _ in range(int(rng.integers(0, 4)) if len(flat) else 0):
        at = int(rng.integers(0, len(flat)))
        kind = rng.integers(0, 3)
        new = int(flat[at]) + int(rng.integers(-9, 10))
        if kind == 0:
            new = int(rng.choice(EDGES))
        elif kind == 1:
            new = int(rng.integers(-(1 << 62), 1 << 62))
        flat[at] = np.array(new & ((1 << 64) - 1), np.uint64).astype(flat.dtype)
    return copy


def files(images: list[bytes], count: int, rng: np.random.Generator) -> int:
    """Damaged JPEGs through the CPU's decoder and, where they are accepted, both."""
    accepted = 0
    for number in range(count):
        data = damaged(images[number % len(images)], rng)
        shape = (int(rng.integers(1, 80)), int(rng.integers(1, 80)))
        want = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            shape = (want.shape[0], want.shape[1])
        except Exception:  # noqa: BLE001 - Pillow has many ways to refuse a file
            want = None
        out = np.zeros((*shape, 3), np.uint8)
        if cpu.decoder().decode(np.frombuffer(data, np.uint8), out) == core.OK:
            accepted += 1
            assert want is None or np.array_equal(out, want), (number, data.hex())
    return accepted


def batches(host: Host, count: int, rng: np.random.Generator) -> int:
    """Damaged batches through the functions of the device's kernels, and damaged windows."""
    accepted = 0
    for _ in range(count):
        changed = host._replace(
            words=shuffled(host.words.view(np.uint8), rng).view(np.uint32),
            begins=shuffled(host.begins, rng),
            jobs=shuffled(host.jobs, rng),
            positions=shuffled(host.positions, rng),
            predictors=shuffled(host.predictors, rng),
        )
        kernels = Kernels(changed)
        for image in range(len(host.jobs)):
            window = shuffled(np.array([0, 0, 8, 8, 0], np.int32), rng)
            if kernels.status[image] == core.OK:
                accepted += 1
                kernels.pixels(image, window, 8)
    return accepted


def indexes(host: Host, count: int, rng: np.random.Generator) -> int:
    """Damaged index files, with digests that fit: refused, or fit for the kernels."""
    accepted = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.rows"
        save_index(path, host.indexed, bytes(32))
        whole = path.read_bytes()
        for _ in range(count):
            body = bytearray(shuffled(np.frombuffer(whole, np.uint8), rng).tobytes())
            head = np.frombuffer(bytes(body[: HEADER.itemsize]), HEADER).copy()
            head["digest"] = digest_of(head, bytes(body[HEADER.itemsize :]))
            path.write_bytes(head.tobytes() + body[HEADER.itemsize :])
            try:
                index = load_index(path)
            except ToolError as error:
                assert error.code == "rows.damaged"
                continue
            accepted += 1
            jobs = index.jobs(np.arange(len(index.images)))
            if index.blocks() < 1000:
                Kernels(Host(index, host.words, host.begins, *jobs))
    return accepted


def main() -> None:
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    rng = np.random.default_rng(seed)
    images = made(40, seed=seed, largest=40)
    raw = rng.integers(0, 256, (9, 11, 3), np.uint8).tobytes()
    host = host_batch([*images[:6], raw], [(0, 0)] * 6 + [(9, 11)])
    found = files(images, count, rng), batches(host, count, rng), indexes(host, count, rng)
    sys.stdout.write("{} files, {} images, {} indexes accepted\n".format(*found))


if __name__ == "__main__":
    main()
