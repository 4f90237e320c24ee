"""A CUDA kernel: the colour shift of each image from its own pixels (lighting_mode "image")."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from imagenet_prep.jpeg.core import RAW, i32, i64
from imagenet_prep.jpeg.cuda import cuda, global_kernel, pixel
from trainer.views.kernels import LEAST_DEVIATION

THREADS = 128
_SUMS = 9  # r, g, b, rr, rg, rb, gg, gb, bb
_SHARED = _SUMS * THREADS
_LEAST = LEAST_DEVIATION**2


def own_shifts(source: int) -> Any:
    """-> the kernel; see ``imagenet_prep.jpeg.cuda.kernel``."""

    @global_kernel
    def shifts_of(
        data: Any, planes: Any, jobs: Any, begins: Any, status: Any, blocks: Any, normals: Any,
        shifts: Any,
    ) -> None:  # fmt: skip
        """Normals times lighting (n, 3) -> shifts float32 (n, 3), as ``kernels._own_shift``: one
        block of THREADS per image, integer sums, Cholesky's factor of the covariance."""
        _ = source  # in the key of the cache
        sums = cuda.shared.array(_SHARED, np.int64)
        image, me = i32(cuda.blockIdx.x), i32(cuda.threadIdx.x)
        job = jobs[image]
        width, height = i32(job[1]), i32(job[2])
        good = status[image] == 0
        is_raw = job[0] == RAW
        origin = begins[image] if is_raw else i64(image) * i64(blocks * i32(64))
        pixels = data if is_raw else planes
        r, g, b = i64(0), i64(0), i64(0)
        rr, rg, rb = i64(0), i64(0), i64(0)
        gg, gb, bb = i64(0), i64(0), i64(0)
        p = me if good else i32(width * height)
        while p < width * height:
            y = i32(p // width)
            x, y_, z = pixel(pixels, origin, i32(job[0]), width, height, y, i32(p - y * width))
            r, g, b = r + x, g + y_, b + z
            rr, rg, rb = rr + x * x, rg + x * y_, rb + x * z
            gg, gb, bb = gg + y_ * y_, gb + y_ * z, bb + z * z
            p = i32(p + i32(THREADS))
        mine = (r, g, b, rr, rg, rb, gg, gb, bb)
        for k in range(_SUMS):
            sums[k * THREADS + me] = mine[k]
        cuda.syncthreads()
        if me < _SUMS:
            total = i64(0)
            for t in range(THREADS):
                total += sums[me * THREADS + t]
            sums[me * THREADS] = total
        cuda.syncthreads()
        if me == 0 and good:
            n = np.float64(width * height)
            u, v, w = sums[0] / n, sums[THREADS] / n, sums[2 * THREADS] / n
            xx, xy = sums[3 * THREADS] / n - u * u, sums[4 * THREADS] / n - u * v
            xz, yy = sums[5 * THREADS] / n - u * w, sums[6 * THREADS] / n - v * v
            yz, zz = sums[7 * THREADS] / n - v * w, sums[8 * THREADS] / n - w * w
            a, c, d = normals[image, 0], normals[image, 1], normals[image, 2]
            f, q, h, s, t_ = 0.0, 0.0, 0.0, 0.0, 0.0
            if xx > _LEAST:
                f = sqrt(xx)
                q, h = xy / f, xz / f
            if yy - q * q > _LEAST:
                s = sqrt(yy - q * q)
                t_ = (yz - q * h) / s
            last = sqrt(max(zz - h * h - t_ * t_, 0.0))
            shifts[image, 0] = np.float32(f * a)
            shifts[image, 1] = np.float32(q * a + s * c)
            shifts[image, 2] = np.float32(h * a + t_ * c + last * d)

    return shifts_of
