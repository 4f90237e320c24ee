"""The functions of the device kernels, compiled for the CPU and called in the kernels' order.

What ``jpeg.cuda`` runs in threads runs here in loops, on arrays of the same sizes: with numba's
bounds checks on (NUMBA_BOUNDSCHECK=1) an access outside of any array is an IndexError.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.jpeg import core
from imagenet_prep.jpeg.core import HUFFMAN, JOB, OK, QUANT, RAW, STRIDE, TURNED, i32, i64, u64
from imagenet_prep.jpeg.index import lookup_tables, turned_quants
from imagenet_prep.jpeg.parse import compiled
from tests.kit.jpegs import Host

F = Any
_core = core.make(compiled)
decode_row, column, idct8, packed = _core.decode_row, _core.column, _core.idct8, _core.packed
place, pixel, job_status = _core.place, _core.pixel, _core.job_status
view_status = _core.view_status


@compiled
def _huffman(
    words: F, jobs: F, begins: F, positions: F, predictors: F, luts: F, turned: F, coefs: F,
    status: F, rows: F, blocks: F, quants: F,
) -> None:  # fmt: skip
    for image in range(len(jobs)):
        job = jobs[image]
        bad = job_status(
            job, begins[image], len(words) * 4, len(positions), blocks, len(luts) // (4 * STRIDE),
            quants,
        )  # fmt: skip
        status[image] = bad
        if bad != OK or job[0] == RAW:
            continue
        side = 16 if job[0] == 2 else 8
        for r in range(min(rows, (job[2] + side - 1) // side)):
            found = decode_row(
                words, begins[image], job, i32(r), positions, predictors, luts,
                i32(job[HUFFMAN] * 4 * STRIDE), turned, coefs, i32(image * blocks * 64),
            )  # fmt: skip
            if found != OK:
                status[image] = found


@compiled
def _idct(coefs: F, jobs: F, quants: F, planes: F, status: F, blocks: F) -> None:
    work = np.zeros((8, 8), np.int32)
    for image in range(len(jobs)):
        if status[image] != OK or jobs[image, 0] == RAW:
            continue
        for inside in range(blocks):
            component, first, wide = place(jobs[image], i32(inside))
            if component < 0:
                continue
            for lane in range(8):
                p = (image * blocks + inside) * 16 + 2 * lane
                q = jobs[image, QUANT] * 48 + component * 16 + 2 * lane
                line = column(coefs[p], coefs[p + 1], quants[q], quants[q + 1])
                for k in range(8):
                    work[k, lane] = line[k]
            by = (inside - first) // wide
            bx = inside - first - by * wide
            for lane in range(8):
                w = work[lane]
                a = idct8(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], i32(18))
                low, high = packed(a[0], a[1], a[2], a[3]), packed(a[4], a[5], a[6], a[7])
                at = image * blocks * 8 + first * 8 + (by * 8 + lane) * wide + bx
                planes[at] = u64(low) | u64(high) << u64(32)


@compiled
def _pixels(
    data: F, planes: F, job: F, begin: F, blocks: F, image: F, window: F, size: F, mean: F,
    centre: F, out: F,
) -> F:  # fmt: skip
    bad = view_status(job, window, size, False, mean, centre)
    if bad != OK:
        return bad
    for y in range(size):
        for x in range(size):
            sy, sx = i32(window[0] + y), i32(window[1] + x)
            if job[0] == RAW:
                out[y, x] = pixel(data, i64(begin), i32(RAW), i32(job[1]), i32(job[2]), sy, sx)
            else:
                at = i64(image * blocks * 64)
                out[y, x] = pixel(planes, at, i32(job[0]), i32(job[1]), i32(job[2]), sy, sx)
    return OK


class Kernels:
    """A batch, decoded: its statuses (n,), and pixels of its images."""

    def __init__(self, host: Host) -> None:
        index, self.host = host.indexed, host
        assert host.jobs.shape[1] == JOB
        self.blocks, rows = index.blocks(), index.most_rows()
        luts = lookup_tables(index)
        assert luts is not None
        count = len(host.jobs)
        self.status = np.zeros(count, np.int32)
        coefs = np.zeros(count * self.blocks * 16, np.int64)
        planes = np.zeros(count * self.blocks * 8, np.uint64)
        quants = turned_quants(index)
        _huffman(
            host.words, host.jobs, host.begins, host.positions, host.predictors, luts, TURNED,
            coefs.view(np.int16), self.status, rows, self.blocks, len(index.quants),
        )  # fmt: skip
        _idct(coefs, host.jobs, quants, planes, self.status, self.blocks)
        self.planes = planes.view(np.uint8)

    def pixels(
        self, image: int, window: NDArray[np.int32], size: int
    ) -> tuple[int, NDArray[np.uint8]]:
        """-> the view's status, and the view (size, size, 3), which is not mirrored."""
        host, out = self.host, np.zeros((size, size, 3), np.int32)
        status = _pixels(
            host.words.view(np.uint8), self.planes, host.jobs[image], host.begins[image],
            self.blocks, image, window, size, np.zeros((1, 1, 3), np.float32), False, out,
        )  # fmt: skip
        return int(status), out.astype(np.uint8)
