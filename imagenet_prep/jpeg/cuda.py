"""JPEGs and raw images on a CUDA device -> batches of views, in three kernels around ``core``.

    huffman   one thread for each MCU row: coefficients
    idct      eight threads for each block: a column each, then a row each: planes; leaves zeros
              in the place of the coefficients
    view      upsampling, colour, crop, mirror, mean, shift, gain, dtype and layout

Needs numba-cuda (``pip install numba-cuda[cu13]``). With NUMBA_ENABLE_CUDASIM=1 the kernels run in
its simulator. A batch of arrays is described by ``Batch``; nothing in it makes a kernel read or
write outside of its arrays. Kernels never wait for the host, nor the host for them: what is
wrong with an image is written into ``Batch.status``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.jpeg import core, kernels
from imagenet_prep.jpeg.core import STRIDE, i32
from imagenet_prep.jpeg.index import Index, lookup_tables, turned_quants
from imagenet_prep.jpeg.kernels import (
    BAND,
    DTYPES,
    HUFFMAN_THREADS,
    IDCT_THREADS,
    LAYOUTS,
    SIMULATED,
    SLOTS,
    cuda,
    global_kernel,
    pixel,
)

__all__ = [
    "DTYPES", "LAYOUTS", "SIMULATED", "Batch", "Decoder", "Tables", "Views", "as_array",
    "as_stream", "cuda", "elements", "global_kernel", "kernel", "pixel", "tables",
]  # fmt: skip
F = Any
_kernels: dict[tuple[Any, ...], F] = {}


def kernel(make: Callable[..., F], *variant: int) -> F:
    """The kernel that a factory makes for a variant: once in a process, cached on disk."""
    key = (make, *variant)
    if key not in _kernels:
        _kernels[key] = make(*variant, core.SOURCE)
    return _kernels[key]


def as_array(tensor: Any) -> Any:
    """A contiguous CUDA tensor of torch -> the same memory for kernels (bfloat16 as int16)."""
    if str(tensor.dtype) == "torch.bfloat16":
        import torch

        tensor = tensor.view(torch.int16)
    return cuda.as_cuda_array(tensor, sync=False)


def as_stream(stream: Any) -> Any:
    """A CUDA stream of torch -> the same stream for kernels."""
    return cuda.external_stream(stream.cuda_stream)


class Tables(NamedTuple):
    """What all batches of an index share, on the device; see ``tables``."""

    luts: Any
    quants: Any
    sets: tuple[int, int]


def tables(index: Index, upload: Callable[[NDArray[Any]], Any] = cuda.to_device) -> Tables:
    """The index's Huffman and quantisation tables, brought to the device by ``upload``."""
    luts = lookup_tables(index)
    if luts is None:
        raise ValueError("an index with Huffman tables that are not valid")
    empty = np.zeros(4 * STRIDE, np.uint16)
    quants = turned_quants(index) if len(index.quants) else np.zeros(48, np.int64)
    sets = (max(len(index.specs), 1), max(len(index.quants), 1))
    return Tables(upload(luts if len(luts) else empty), upload(quants), sets)


class Batch(NamedTuple):
    """n images on the device. ``jobs``, ``positions`` and ``predictors`` are those of
    ``Index.jobs``.

    words uint32 (W,): the bytes of the images as they are in the file; begins int64 (n,): the
    byte in ``words`` where each starts, of any alignment; jobs int32 (n, JOB); positions int32
    (R,); predictors int16 (R, 3); status int32 (n,), zeros, where the kernels write what is wrong.
    """

    words: Any
    begins: Any
    jobs: Any
    positions: Any
    predictors: Any
    status: Any


class Views(NamedTuple):
    """What is made of each image, on the device.

    windows int32 (n · each, 5): y, x, height, width, mirror, views of one image together;
    mean float32 (H, W, 3), or (1, 1, 3) for one value per channel; shift float32 (n, 3); gain
    float32 (3,). A view is (window - mean + shift) · gain. ``centre``: the mean's centre is
    subtracted wherever the window lies, never mirrored. Zeros and ones for what is not wanted;
    uint8 views that are not ``resized`` are the image's pixels as they are.
    """

    windows: Any
    each: int
    mean: Any
    centre: bool
    shift: Any
    gain: Any


def zeros(count: int, dtype: Any) -> Any:
    """A device array of zeros (count,)."""
    return cuda.to_device(np.zeros(count, dtype))


class Decoder:
    """Working memory for batches of up to ``images`` images, and the launches.

    ``index`` gives the sizes (the largest image decides). 192 bytes a block: 295 kB for an image
    of 256 px with 4:2:0. ``allocate(count, dtype)`` -> a one-dimensional device array. Batches
    on several streams need a Decoder each. All calls return at once.
    """

    def __init__(
        self,
        index: Index,
        shared: Tables,
        images: int,
        allocate: Callable[[int, Any], Any] = zeros,
    ) -> None:
        self.images, self.blocks, self.rows = images, index.blocks(), index.most_rows()
        if images * self.blocks * 64 >= 1 << 31:
            raise ValueError(f"{images} images of {self.blocks} blocks are more than 2^31 pixels")
        self.shared = shared
        self._allocate = allocate
        self._coefs64 = allocate(images * self.blocks * 16, np.int64)
        self._coefs = self._coefs64.view(np.int16)
        self._planes64 = allocate(images * self.blocks * 8, np.uint64)
        self._planes = self._planes64.view(np.uint8)
        self._side = index.most_side()
        # What resampling needs; without it, arrays of the same kinds.
        self._filters = self._allocated(1, 1, 1)

    def decode(self, batch: Batch, stream: Any = 0) -> None:
        """Starts the decoding of a batch; statuses are complete when the stream has come here."""
        count = len(batch.jobs)
        rows, blocks = i32(self.rows), i32(self.blocks)
        luts, quants, sets = self.shared
        grid = -(-count * self.rows // HUFFMAN_THREADS)
        kernel(kernels.huffman_kernel, int(sets[0] == 1))[grid, HUFFMAN_THREADS, stream](
            batch.words, batch.jobs, batch.begins, batch.positions, batch.predictors, luts,
            self._coefs, batch.status, rows, blocks, i32(sets[1]),
        )  # fmt: skip
        grid = -(-self.blocks // SLOTS) * count
        kernel(kernels.idct_kernel)[grid, IDCT_THREADS, stream](
            self._coefs64, batch.jobs, quants, self._planes64, batch.status, blocks
        )

    def view(
        self,
        batch: Batch,
        views: Views,
        out: Any,
        size: int,
        dtype: str,
        layout: str,
        *,
        resized: bool = False,
        stream: Any = 0,
    ) -> None:
        """Starts making views of ``size`` pixels of a decoded batch, into ``out``.

        ``out``: one-dimensional, of ``elements(...)``; bfloat16 as int16. channels_last is (n ·
        each, S, S, 3), channels_first (n · each, 3, S, S), space_to_depth (n · each, C, C, 48)
        with C = ceil(S / 4), where element (dy · 4 + dx) · 3 + c of cell (i, j) is channel c of
        pixel (4 i + dy, 4 j + dx), and zeros beyond the view. With ``resized``, windows of any
        size are resampled by a triangle filter. A view of an image with a status is zeros.
        """
        count = len(views.windows)
        if resized:
            self._weigh(views.windows, size, stream)
        form, order = DTYPES.index(dtype), LAYOUTS.index(layout)
        threads = min(-(-4 * size // 96) * 32, 512)
        limits = (len(batch.positions), *self.shared.sets)
        made = kernel(kernels.view_kernel, form, order, int(resized))
        made[-(-size // BAND) * count, threads, stream](
            batch.words.view(np.uint8), self._planes, batch.jobs, batch.begins, views.windows,
            i32(views.each), views.mean, i32(views.centre), views.shift, views.gain, *self._filters,
            out, batch.status, i32(size), i32(self.blocks), limits,
        )  # fmt: skip

    def _allocated(self, lines: int, size: int, taps: int) -> tuple[Any, Any]:
        spans = self._allocate(lines * size * 2, np.int32).reshape(lines, size, 2)
        return spans, self._allocate(lines * size * taps, np.float32).reshape(lines, size, taps)

    def _weigh(self, windows: Any, size: int, stream: Any) -> None:
        """Starts the computation of the filters that resample ``windows``."""
        lines, taps = 2 * len(windows), int(np.ceil(2 * max(self._side / size, 1.0))) + 2
        spans, weights = self._filters
        if len(spans) < lines or spans.shape[1] != size or weights.shape[2] != taps:
            self._filters = spans, weights = self._allocated(lines, size, taps)
        grid = -(-lines * size // 128)
        kernel(kernels.weigh_kernel)[grid, 128, stream](
            windows, i32(size), i32(taps), spans, weights
        )


def elements(size: int, layout: str) -> int:
    """Elements of one view of ``size`` pixels in ``out``."""
    return 48 * (-(-size // BAND)) ** 2 if layout == "space_to_depth" else 3 * size * size
